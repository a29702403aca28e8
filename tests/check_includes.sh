#!/usr/bin/env bash
# Fail on an include against the folder arrows of the project:
#   src -> nothing of ours; formats, kernels -> src; calib -> src, kernels; runtime -> src, formats, kernels;
#   tools -> all of these; tests/x -> what x may, x itself, tests/harness.h, tests/maker, tests/emulator,
#   and the headers beside it.
# A library's header may be included by its one file only; CUDA headers stay below kernels/cuda
# (and its emulator).
# Every run first checks the checker on planted violations.  check_includes.sh [ROOT]
set -eu
shopt -s extglob
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)

# Folders that files below $1 (a path from the root) may include.
allowed_folders() {
    case $1 in
        src/*) echo 'src' ;;
        formats/*) echo 'formats src' ;;
        kernels/*) echo 'kernels src' ;;
        calib/*) echo 'calib src kernels' ;;
        runtime/*) echo 'runtime src formats kernels' ;;
        tools/*) echo 'tools src formats kernels calib runtime' ;;
        tests/*/*)
            rest=${1#tests/}
            case ${rest%%/*} in
                src | formats | kernels | calib | runtime | tools) allowed_folders "$rest" ;;
                *) echo 'tools src formats kernels calib runtime' ;; # fuzz, maker, headers
            esac ;;
        tests/*) echo 'src' ;; # the harness
        *) echo '' ;;
    esac
}

# The only files (a shell pattern) that may include a library's header; nothing for a header of the system.
owner_of() {
    case $1 in
        cJSON.h | cjson/*) echo 'src/json.c' ;;
        zstd.h | zstd_errors.h | zdict.h) echo 'src/codec.c' ;;
        openssl/*) echo 'src/sha256.c' ;;
        pcre2.h) echo 'src/pretokenize.c' ;;
        utf8proc.h) echo 'src/unicode.c' ;;
        cblas.h | openblas* | f77blas.h) echo 'kernels/cpu/blas.c' ;;
        lapack*.h) echo 'kernels/cpu/solve.c' ;;
        omp.h) echo 'kernels/*' ;;
        microhttpd.h) echo 'tools/http.c' ;;
        check.h) echo 'tests/harness.h' ;;
        cusolver*) echo 'kernels/cuda/solve.cu' ;;
        nccl.h) echo 'kernels/cuda/nccl.cu' ;;
        cublas*) echo '@(kernels/cuda/blas.cu|tests/emulator/*)' ;;
        cuda* | cub/* | thrust/* | cooperative_groups* | nv*.h | mma.h) echo '@(kernels/cuda|tests/emulator)/*' ;;
    esac
}

# One include of $2 in file $1; quoted or angled in $3.  Prints a line and returns 1 when it breaks a rule.
check_one() {
    local file=$1 header=$2 form=$3 folder ok owner
    owner=$(owner_of "$header")
    if [ -n "$owner" ]; then
        # shellcheck disable=SC2254  # the owner is a pattern on purpose
        case $file in
            $owner) return 0 ;;
        esac
        echo "$file: includes <$header>, which only $owner may"
        return 1
    fi
    folder=${header%%/*}
    case $folder in
        src | formats | kernels | calib | runtime | tools | tests) ;;
        *)
            [ "$form" = angled ] && return 0 # a header of the system
            echo "$file: includes \"$header\", expected a path from the root"
            return 1 ;;
    esac
    case $header in
        *.c | *.cu) echo "$file: includes the source file \"$header\""; return 1 ;;
        */../* | */./*) echo "$file: includes \"$header\", expected a plain path from the root"; return 1 ;;
        kernels/cuda/*)
            case $file in
                kernels/cuda/* | tests/emulator/*) return 0 ;;
                *) echo "$file: includes \"$header\", which stays below kernels/cuda"; return 1 ;;
            esac ;;
        tests/harness.h | tests/maker/* | tests/emulator/emulator.h)
            case $file in
                tests/*) return 0 ;;
            esac ;;
        tests/*/*.h)
            case $file in
                tests/*) [ "$(dirname "$file")" = "$(dirname "$header")" ] && return 0 ;;
            esac ;;
    esac
    ok=" $(allowed_folders "$file") "
    case $ok in
        *" $folder "*) return 0 ;;
    esac
    echo "$file: includes \"$header\" against the arrows (may include:$ok)"
    return 1
}

# Every include of every source below root $1; prints the violations, returns 1 when there are any.
check_tree() {
    local bad=0 line file header form seen='|'
    while IFS= read -r line; do
        file=${line%%:*}
        line=${line#*:}
        case $line in
            *'<'*) form=angled; header=${line#*<}; header=${header%%>*} ;;
            *'"'*) form=quoted; header=${line#*\"}; header=${header%%\"*} ;;
            *) echo "$file: cannot read '$line'"; bad=1; continue ;;
        esac
        # Headers of the system make up most lines: no owner, no folder, nothing to ask.
        case $seen in
            *"|$form $header|"*) continue ;;
        esac
        if [ "$form" = angled ] && [ -z "$(owner_of "$header")" ]; then
            case ${header%%/*} in
                src | formats | kernels | calib | runtime | tools | tests) ;;
                *) seen="$seen$form $header|"; continue ;;
            esac
        fi
        check_one "$file" "$header" "$form" || bad=1
    done < <(cd "$1" && find src formats kernels calib runtime tools tests -type f \
                 \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' \) 2>/dev/null | sort |
                 xargs -r grep -HE '^[[:space:]]*#[[:space:]]*include' /dev/null)
    return $bad
}

# Plant FILE with LINE in an empty tree; the check must fail there (want=1) or pass (want=0).
plant() {
    local want=$1 file=$2 text=$3 tree got=0
    tree=$(mktemp -d)
    mkdir -p "$tree/$(dirname "$file")"
    printf '%s\n' "$text" >"$tree/$file"
    check_tree "$tree" >/dev/null || got=1
    rm -rf "$tree"
    if [ "$got" != "$want" ]; then
        echo "check_includes.sh: '$text' in $file: got $got, expected $want" >&2
        exit 1
    fi
}

self_check() {
    plant 1 src/a.c '#include "formats/shard.h"'
    plant 1 src/a.h '  #  include "kernels/kernels.h"'
    plant 1 formats/a.c '#include "kernels/kernels.h"'
    plant 1 kernels/cpu/a.c '#include "formats/shard.h"'
    plant 1 calib/a.c '#include "formats/shard.h"'
    plant 1 runtime/a.c '#include "calib/gptq.h"'
    plant 1 runtime/a.c '#include <calib/gptq.h>'
    plant 1 kernels/a.c '#include "tools/options.h"'
    plant 1 src/a.c '#include "tests/harness.h"'
    plant 1 tests/src/a.c '#include "formats/shard.h"'
    plant 1 tests/kernels/a.c '#include "formats/shard.h"'
    plant 1 tests/src/a.c '#include "src/json.c"'
    plant 1 src/a.c '#include "status.h"'
    plant 1 src/a.c '#include "src/../formats/shard.h"'
    plant 1 src/file.c '#include <cjson/cJSON.h>'
    plant 1 formats/a.c '#include <zstd.h>'
    plant 1 formats/a.c '#include <openssl/evp.h>'
    plant 1 runtime/a.c '#include <pcre2.h>'
    plant 1 src/a.c '#include <utf8proc.h>'
    plant 1 kernels/cpu/attention.c '#include <cblas.h>'
    plant 1 runtime/a.c '#include <cuda_runtime.h>'
    plant 1 kernels/kernels.h '#include "kernels/cuda/common.cuh"'
    plant 1 kernels/cuda/norm.cu '#include <cublas_v2.h>'
    plant 0 kernels/cuda/blas.cu '#include <cublas_v2.h>'
    plant 0 tests/emulator/a.cpp '#include <cuda_runtime.h>'
    plant 0 tests/kernels/a.c '#include "tests/emulator/emulator.h"'
    plant 1 tests/kernels/a.c '#include "tests/emulator/scheduler.h"'
    plant 0 src/json.c '#include <cjson/cJSON.h>'
    plant 0 src/codec.c '#include <zstd.h>'
    plant 0 src/pretokenize.c '#include <pcre2.h>'
    plant 0 kernels/cuda/norm.cu '#include "kernels/cuda/common.cuh"'
    plant 0 runtime/a.c '#include "formats/shard.h"'
    plant 0 calib/a.c '#include "kernels/kernels.h"'
    plant 0 tools/a.c '#include "calib/gptq.h"'
    plant 0 tests/runtime/a.c '#include "tests/harness.h"'
    plant 0 tests/fuzz/a.c '#include "formats/shard.h"'
    plant 0 tests/kernels/a.c '#include "tests/kernels/b.h"'
    plant 1 tests/src/a.c '#include "tests/kernels/b.h"'
    plant 0 src/a.c '#include <stdio.h>'
}

self_check
check_tree "${1:-$here/..}"
echo "includes: ok"
