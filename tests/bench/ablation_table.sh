#!/usr/bin/env bash
# Prints the ablation table of calib/QUALITY.md: each ingredient of the calibrated recipe left out or added, judged by mean KL on
# two texts that were not calibrated on: TEXT, and every tenth document of CALIB (the other nine tenths calibrate).
# usage: tests/bench/ablation_table.sh BIN CALIB TEXT MODEL GROUP      (BIN: folder with the tools)
set -euo pipefail
bin=$1 calib=$2 text=$3 model=$4 group=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk -v RS='<[|]endoftext[|]>' -v dir="$work" '{ printf "%s<|endoftext|>", $0 > (dir (NR % 10 ? "/calib.txt" : "/held-out.txt")) }' "$calib"
field() { grep -m1 "\"$1\":" "$work/result.json" | sed 's/.*: *//; s/,$//'; }
kl() { # kl TEXT WINDOWS
    "$bin/mimo-verify" --quiet --source "$model" --text "$1" --window 512 --windows "$2" --json "$work/result.json" \
        "$work/packed" >/dev/null
}
row() { # row LABEL METHOD RECIPE [OPTION...]
    local label=$1 method=$2 recipe=$3
    shift 3
    "$bin/mimo-quantize" --quiet --overwrite --method "$method" --group "$group" --calib "$work/calib.txt" --calib-tokens 131072 \
        --calib-window 512 ${recipe:+--recipe "$recipe"} "$@" "$model" "$work/packed" >/dev/null
    kl "$text" 128
    printf '| %s | %s | %.4f | %.5f |' "$label" "${recipe:-—}" "$(field ppl)" "$(field kl_mean)"
    kl "$work/held-out.txt" 128
    printf ' %.5f |\n' "$(field kl_mean)"
}
printf '| what | --recipe | perplexity | mean KL | mean KL, held-out tenth |\n|---|---|---|---|---|\n'
row 'weighted search alone' imatrix ''
row 'error feedback alone' gptq 'refit=off,descent=0,down-target=off,damp-columns=off,damp-few=0.09,weight=0'
row '+ tokens weighted by c' gptq 'refit=off,descent=0,down-target=off,damp-columns=off,damp-few=0.09'
row '+ ridge by column' gptq 'refit=off,descent=0,down-target=off'
row '+ descent' gptq 'refit=off,down-target=off'
row '+ rounds of refitted scales' gptq 'down-target=off'
row '+ down aims at the source (the default)' gptq ''
row 'default, tokens weighted by 1' gptq 'weight=0'
row 'default, tokens weighted by c squared' gptq 'weight=2'
row 'default, search not weighted' gptq 'weighted-search=off'
row 'default, columns in their own order' gptq 'act-order=off'
row 'default, no rounds' gptq 'refit=off'
row 'default, no descent' gptq 'descent=0'
row 'default, three rounds' gptq 'rounds=3'
row 'default, one ridge for all columns' gptq 'damp-columns=off,damp-few=0.09'
row 'default, no shrinkage' gptq 'shrink=off'
row "default, down sees the source's h" gptq 'quantized-h=off'
