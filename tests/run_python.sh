#!/usr/bin/env bash
# Run a Python test: run_python.sh TEST.py [ARGS].  The interpreter is $MQ_PYTHON, or else python3.
# Where it or one of the packages below is missing, the test is skipped (exit 77) and the line says what is missing.
set -eu
packages='numpy safetensors tokenizers'

if [ $# -lt 1 ]; then
    echo "usage: run_python.sh TEST.py [ARGS]" >&2
    exit 2
fi
python=${MQ_PYTHON:-python3}
if ! command -v "$python" >/dev/null 2>&1; then
    echo "SKIPPED: no Python interpreter '$python' (set MQ_PYTHON)"
    exit 77
fi
missing=
for package in $packages; do
    "$python" -c "import $package" >/dev/null 2>&1 || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "SKIPPED: '$python' lacks$missing (pip install -r tests/requirements.txt)"
    exit 77
fi
exec "$python" "$@"
