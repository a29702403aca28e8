#!/usr/bin/env bash
# Every header compiles alone, as C11 and as C++17 (style.md, "Headers").
set -euo pipefail
cd "${MQ_SOURCE:-$(dirname "$0")/..}"
status=0
for header in $(find src formats kernels calib runtime tools -name '*.h' | sort); do
    if ! ${CC:-cc} -std=c11 -D_GNU_SOURCE -fsyntax-only -Wall -Wextra -Werror -I. -x c "$header"; then
        echo "$header: does not compile alone as C11"
        status=1
    fi
    if ! ${CXX:-c++} -std=c++17 -fsyntax-only -Wall -Wextra -Werror -Wno-pragma-once-outside-header -I. -x c++ "$header"; then
        echo "$header: does not compile alone as C++17"
        status=1
    fi
done
exit $status
