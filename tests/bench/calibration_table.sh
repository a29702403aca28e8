#!/usr/bin/env bash
# Prints the calibrated part of the quality table of calib/QUALITY.md: perplexity, mean KL and top-1 of packed models against
# their source, after 256 x 512 tokens of calibration.
# usage: tests/bench/calibration_table.sh BIN CALIB TEXT MODEL...      (BIN: folder with the tools; 128 windows of 512 of TEXT)
# METHODS="imatrix gptq" GROUPS_OF="32 64 128" TOKENS=131072 WINDOW=512 RECIPE=key=value,... change what is run.
set -euo pipefail
bin=$1 calib=$2 text=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
field() { grep -m1 "\"$1\":" "$work/$2.json" | sed 's/.*: *//; s/,$//'; }
printf '| model | method | group | perplexity | mean KL | top-1 | seconds |\n|---|---|---|---|---|---|---|\n'
for model in "$@"; do
    for method in ${METHODS:-imatrix gptq}; do
        for group in ${GROUPS_OF:-32 64 128}; do
            "$bin/mimo-quantize" --quiet --overwrite --method "$method" --group "$group" --calib "$calib" \
                --calib-tokens "${TOKENS:-131072}" --calib-window "${WINDOW:-512}" ${RECIPE:+--recipe "$RECIPE"} \
                --json "$work/quantize.json" "$model" "$work/packed" >/dev/null
            "$bin/mimo-verify" --quiet --source "$model" --text "$text" --window 512 --windows 128 \
                --json "$work/verify.json" "$work/packed" >/dev/null
            printf '| %s | %s | %s | %.4f | %.5f | %.4f | %.0f |\n' "$(basename "$model")" "$method" "$group" \
                "$(field ppl verify)" "$(field kl_mean verify)" "$(field top1_agreement verify)" "$(field seconds quantize)"
        done
    done
done
