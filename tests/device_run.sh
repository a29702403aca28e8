#!/usr/bin/env bash
# The CUDA kernels' tests on a GPU: build here, carry an archive to a machine that has one, run there.
#
#   tests/device_run.sh pack ARCHIVE.tar.zst  builds with CUDA (build/device) and packs programs, the shared libraries
#                                             they need and this script, and the models of tests/data unless MQ_DATA=no:
#                                             then MQ_SOURCE names a checkout over there
#   tests/device_run.sh run [KIND...]         in the unpacked folder; KIND: tests tools memcheck racecheck initcheck synccheck
#                                             bench, or all of them in this order (the default)
#
# The archive needs no installation: a driver, cuBLAS and, for the checkers, compute-sanitizer are the machine's.  Programs
# run side by side (MQ_JOBS, default 8), benchmarks by themselves, one by one; each has MQ_LIMIT seconds (default 300); MQ_PROGRAMS
# names the tests to run (default: all).  At the end a table says what ran, for how long and how it ended; the exit
# status is 0 when nothing failed, 77 without a GPU.
set -euo pipefail

programs='test_cuda_device test_cuda_rows test_cuda_linear test_cuda_bf16 test_cuda_moe test_cuda_attention test_cuda_sample
          test_cuda_fill test_cuda_step_linear test_cuda_step_rows test_cuda_step_attention test_cuda_step_experts test_cuda_step_router
          test_cuda_codes test_cuda_gram test_cuda_solve test_cuda_ldlq test_cuda_refine test_cuda_prefill test_cuda_model test_cuda_load
          test_cuda_synthetic test_cuda_exchange test_cuda_draft test_cuda_decode test_cuda_calibrate'
only_tests='test_speculative' # whole texts: too slow for the checkers
benches='bench_cuda bench_cuda_experts bench_cuda_draft bench_cuda_calibration bench_exchange bench_load'
here=$(cd "$(dirname "$0")" && pwd)

# Shared libraries of a program, but for those of the C library, which every machine brings.
libraries_of() {
    ldd "$1" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv)\.so' || true
}

pack() {
    local archive=$1 root=$here/.. stage
    archive=$(realpath "$archive")
    cmake -S "$root" -B "$root/build/device" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMQ_CUDA=ON
    # shellcheck disable=SC2086  # a list of targets
    ninja -C "$root/build/device" $programs $only_tests $benches mimo-quantize mimo-verify mimo-run
    stage=$(mktemp -d)
    mkdir -p "$stage/mq-device/lib"
    for program in $programs $only_tests $benches ../mimo-quantize ../mimo-verify ../mimo-run; do
        cp "$root/build/device/tests/$program" "$stage/mq-device/"
        strip "$stage/mq-device/${program##*/}"
        for library in $(libraries_of "$root/build/device/tests/$program"); do
            cp -L "$library" "$stage/mq-device/lib/"
        done
    done
    if [ "${MQ_DATA:-yes}" = yes ]; then
        mkdir -p "$stage/mq-device/tests/data/text"
        cp -r "$here"/data/nano* "$stage/mq-device/tests/data/" # what tests of whole models read
        cp "$here/data/text/eval.txt" "$stage/mq-device/tests/data/text/"
    fi
    cp -r "$here/bench/configs" "$stage/mq-device/"
    cp "$here/device_run.sh" "$here/device_tools.sh" "$stage/mq-device/"
    tar -C "$stage" -c mq-device | zstd -T0 -12 --long=27 -qfo "$archive" # programs have much in common
    rm -rf "$stage"
    ls -l "$archive"
}

# cuBLAS is loaded by name: find a folder that has it.
find_cublas() {
    local folder
    for folder in /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /usr/lib/x86_64-linux-gnu \
        $(python3 -c 'import nvidia.cublas as c; print(list(c.__path__)[0] + "/lib")' 2>/dev/null) \
        $(python3 -c 'import nvidia.cu13 as c; print(list(c.__path__)[0] + "/lib")' 2>/dev/null); do
        if ls "$folder"/libcublas.so.* >/dev/null 2>&1; then
            echo "$folder"
            return
        fi
    done
}

# one KIND PROGRAM COMMAND...: run, keep the log, leave a row of the table.
one() {
    local kind=$1 program=$2 status=0 start=$SECONDS word
    shift 2
    timeout -k 5 "${MQ_LIMIT:-300}" "$@" >"log/$kind-$program" 2>&1 || status=$?
    case $status in
        0) word=ok ;;
        77) word=skipped ;;
        124 | 137) word='TOO LONG' ;;
        *) word="FAILED ($status)" ;;
    esac
    printf '%-10s %-24s %-12s %6d s\n' "$kind" "$program" "$word" $((SECONDS - start)) >"log/row-$kind-$program"
}

# beside KIND PROGRAM COMMAND...: the same, beside others.
beside() {
    while [ "$(jobs -pr | wc -l)" -ge "${MQ_JOBS:-8}" ]; do
        wait -n || true
    done
    one "$@" &
}

# What a checker must not hold against a program: test_cuda_device asks for more memory than there is, and is refused.
checker_options() {
    [ "$1-$2" != memcheck-test_cuda_device ] || echo --report-api-errors no
}

# What went wrong, and the table.
report() {
    local row status=0
    for row in log/row-*; do
        if grep -qE 'FAILED|TOO LONG' "$row"; then
            status=1
            printf '\n---- %s\n' "$(cat "$row")"
            tail -30 "log/${row#log/row-}"
        fi
    done
    printf '\n'
    cat log/row-*
    return $status
}

run() {
    local kinds=${*:-tests tools memcheck racecheck initcheck synccheck bench} kind program checker cublas context
    cd "$here"
    if ! nvidia-smi -L; then
        echo "no GPU" >&2
        exit 77
    fi
    cublas=$(find_cublas)
    [ -n "$cublas" ] || echo "no cuBLAS found: the products will fail" >&2
    export LD_LIBRARY_PATH=$here/lib:$cublas:${LD_LIBRARY_PATH:-} MQ_TEST_DEVICE=cuda OMP_WAIT_POLICY=passive MQ_SOURCE=${MQ_SOURCE:-$here}
    checker=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
    mkdir -p log
    rm -f log/row-*
    for kind in $kinds; do
        case $kind in
            tests)
                for program in ${MQ_PROGRAMS:-$programs $only_tests}; do
                    beside tests "$program" "./$program"
                done ;;
            tools)
                wait
                one tools device_tools bash ./device_tools.sh . "$MQ_SOURCE" ;;
            bench)
                wait
                one bench bench_cuda ./bench_cuda
                one bench bench_cuda_experts ./bench_cuda_experts cuda
                one bench bench_cuda_draft ./bench_cuda_draft cuda 8
                one bench bench_cuda_calibration ./bench_cuda_calibration 43750 48 6 64 gptq-bf16-4 imatrix-bf16-4
                one bench bench_exchange ./bench_exchange
                for context in 1024 32768; do # one rank of eight of Pro
                    one bench "pro-$context" ./mimo-run --device cuda:0 --bench --synthetic configs/pro.json --ranks 8 \
                        --only-rank 0 --bench-widths 1,4,8 --bench-context $context
                done
                one bench flash ./mimo-run --device cuda:0 --bench --synthetic configs/flash.json --ranks 2 --only-rank 0 --bench-widths 1,8
                cat log/bench-* ;;
            *)
                if [ -z "$checker" ]; then
                    echo "$kind: no compute-sanitizer here" >"log/row-$kind-none"
                    continue
                fi
                for program in ${MQ_PROGRAMS:-$programs}; do
                    # shellcheck disable=SC2046  # words
                    MQ_TEST_SMALL=1 beside "$kind" "$program" "$checker" --tool "$kind" --error-exitcode 9 \
                        $(checker_options "$kind" "$program") "./$program"
                done ;;
        esac
    done
    wait
    report
}

case ${1:-} in
    pack) [ $# = 2 ] || { echo "usage: device_run.sh pack ARCHIVE.tar.zst" >&2; exit 2; }; pack "$2" ;;
    run) shift; run "$@" ;;
    *) echo "usage: device_run.sh pack ARCHIVE.tar.zst | run [KIND...]" >&2; exit 2 ;;
esac
