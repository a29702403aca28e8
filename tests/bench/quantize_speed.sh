#!/usr/bin/env bash
# Speed and memory of mimo-quantize on a generated checkpoint, from the page cache, hashing and writing included, with the
# disk's plain rates beside.
# usage: tests/bench/quantize_speed.sh BIN GIGABYTES [DTYPE]      (BIN: build folder with the tools and make-checkpoint)
set -euo pipefail
bin=$1 gigabytes=$2 dtype=${3:-bf16}
work=$(mktemp -d "${MQ_BENCH_DIR:-/tmp}/mq-speed.XXXXXX")
trap 'rm -rf "$work"' EXIT
maker=$(find "$bin" -name make-checkpoint -type f | head -1)
# Experts of 2048 x 1024 (three matrices each), 46 a layer: 0.58 GB a layer in BF16.
per_layer=$((46 * 3 * 2048 * 1024 * $([ "$dtype" = bf16 ] && echo 2 || echo 1)))
layers=$((gigabytes * 1000000000 / per_layer + 2))
"$maker" --preset mini --hidden 2048 --moe-intermediate 1024 --experts 46 --layers "$layers" --files 4 \
    --experts-dtype "$dtype" "$work/checkpoint" >/dev/null
bytes=$(du -sbL "$work/checkpoint" | cut -f1)
echo "checkpoint: $bytes bytes, $dtype, $layers layers; $(nproc) processors, $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2)"
plain_write=$( (dd if=/dev/zero of="$work/plain" bs=4M count=512 conv=fsync 2>&1 | tail -1 | sed 's/.*, //') )
cat "$work"/checkpoint/*.safetensors >/dev/null
plain_read=$( (dd if="$work/plain" of=/dev/null bs=4M 2>&1 | tail -1 | sed 's/.*, //') )
rm "$work/plain"
echo "plain write with fsync: $plain_write; plain read from the page cache: $plain_read"
for method in rtn search; do
    "$bin/mimo-quantize" --quiet --overwrite --method $method --json "$work/result.json" "$work/checkpoint" "$work/packed" >/dev/null
    awk -v method=$method '
        /"params_per_s"/ { gsub(/[^0-9.e+]/, "", $2); rate = $2 }
        /"seconds"/ { gsub(/[^0-9.e+]/, "", $2); seconds = $2 }
        /"peak_host_bytes"/ { gsub(/[^0-9.e+]/, "", $2); peak = $2 }
        END { printf "%s: %.3g expert weights/s, %.1f s, peak memory %.0f MB\n", method, rate, seconds, peak / 1e6 }' \
        "$work/result.json"
done
