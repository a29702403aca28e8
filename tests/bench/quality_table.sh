#!/usr/bin/env bash
# Prints the quality table of calib/QUALITY.md: perplexity, mean KL and top-1 of packed models against their source.
# usage: tests/bench/quality_table.sh BIN TEXT MODEL...      (BIN: folder with the tools; 128 windows of 512)
# With MQ_CALIB=FILE also imatrix and gptq, calibrated on 256 windows of 512 tokens of it.
set -euo pipefail
bin=$1 text=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
field() { grep -m1 "\"$1\":" "$work/result.json" | sed 's/.*: *//; s/,$//'; }
printf '| model | method | group | bytes of experts per weight | perplexity | mean KL | top-1 |\n|---|---|---|---|---|---|---|\n'
for model in "$@"; do
    for method in rtn search ${MQ_CALIB:+imatrix gptq}; do
        calib=()
        case $method in
            imatrix | gptq) calib=(--calib "$MQ_CALIB" --calib-tokens 131072 --calib-window 512) ;;
        esac
        for group in 32 64 128; do
            "$bin/mimo-quantize" --quiet --overwrite --method $method --group $group "${calib[@]}" "$model" "$work/packed" >/dev/null
            "$bin/mimo-verify" --quiet --source "$model" --text "$text" --window 512 --windows 128 \
                --json "$work/result.json" "$work/packed" >/dev/null
            per_weight=$(awk -v g=$group 'BEGIN { printf "%.4f", 0.5 + 2 / g }')
            printf '| %s | %s | %s | %s | %.4f | %.5f | %.4f |\n' "$(basename "$model")" $method $group "$per_weight" \
                "$(field ppl)" "$(field kl_mean)" "$(field top1_agreement)"
        done
    done
done
