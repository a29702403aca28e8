#!/usr/bin/env bash
# The tools on a GPU, as a user runs them: mimo-verify's figures against the CPU's, the same text from every drafter, width and
# number of ranks, errors that say what is wrong, signals while weights are loaded and while text is written.
#
#   device_tools.sh BIN SOURCE   BIN: folder of mimo-quantize, mimo-verify, mimo-run; SOURCE: a checkout, for tests/data
#
# Exit status 0, 1 where something differs, 77 without a GPU.
set -u
bin=$1
data=$2/tests/data
text=$data/text/eval.txt
prompt='def __init__(self'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_failed=0
nvidia-smi -L >/dev/null 2>&1 || exit 77

fail() {
    echo "FAIL: $*"
    n_failed=$((n_failed + 1))
}

# A number or word of a JSON file's top level.
field() { grep -o "\"$2\": *[^,}]*" "$1" | head -1 | sed 's/.*: *//'; }

pack() { # NAME MODEL METHOD GROUP RANKS
    "$bin/mimo-quantize" --quiet --method "$3" --group "$4" --ranks "$5" "$data/$2" "$work/$1" >/dev/null || fail "packing $1"
}

# ---- figures: F32 within 1e-6 of the CPU's, BF16 within 0.1 % ----
verify() { # NAME MODEL DEVICE PRECISION
    "$bin/mimo-verify" --quiet --source "$data/$2" --text "$text" --window 512 --windows 8 --device "$3" --precision "$4" \
        --json "$work/$1-$3-$4.json" "$work/$1" >"$work/$1-$3-$4.out" 2>&1 ||
        fail "mimo-verify $*: $(tail -1 "$work/$1-$3-$4.out")"
}

close_to() { # NAME DEVICE-PRECISION LIMIT
    local a b
    a=$(field "$work/$1-cpu-f32.json" ppl)
    b=$(field "$work/$1-$2.json" ppl)
    awk -v a="$a" -v b="$b" -v l="$3" 'BEGIN { d = b / a - 1; exit !(d < l && -d < l) }' ||
        fail "$1: perplexity $b on $2, $a on the CPU, expected within $3"
}

figures() {
    pack g64 nano search 64 2
    pack g32 nano rtn 32 1
    pack g128 nano search 128 1
    pack fp8 nano-fp8 search 64 2
    pack mx nano-mxfp4 search 64 2
    for pair in g64,nano g32,nano g128,nano fp8,nano-fp8 mx,nano-mxfp4; do
        verify "${pair%,*}" "${pair#*,}" cpu f32
        verify "${pair%,*}" "${pair#*,}" cuda f32
        verify "${pair%,*}" "${pair#*,}" cuda bf16
        close_to "${pair%,*}" cuda-f32 1e-6
        close_to "${pair%,*}" cuda-bf16 1e-3
        echo "${pair%,*}: perplexity $(field "$work/${pair%,*}-cuda-f32.json" ppl)"
    done
}

# ---- text ----
write() { # ARGS: text to stdout
    "$bin/mimo-run" --quiet --device cuda:0 --prompt "$prompt" --max-tokens 64 "$@" || fail "mimo-run $*"
}

texts() { # MODEL, options of sampling
    local model=$1
    shift
    write --draft none "$@" "$work/$model" >"$work/plain"
    for draft in 'dflash 3' 'dflash 8' 'dflash auto' 'mtp 4'; do
        write --draft "${draft% *}" --draft-width "${draft#* }" "$@" "$work/$model" >"$work/drafted"
        cmp -s "$work/plain" "$work/drafted" || fail "$model: --draft $draft $* changes the text"
    done
    write --draft none --ranks 2 "$@" "$work/$model" >"$work/plain"
    write --draft dflash --ranks 2 "$@" "$work/$model" >"$work/drafted"
    cmp -s "$work/plain" "$work/drafted" || fail "$model: a drafter changes the text of two ranks"
}

# ---- errors and signals ----
refused() { # STATUS TEXT DEVICE ARGS
    local want=$1 what=$2 device=$3 got=0
    shift 3
    "$bin/mimo-run" --quiet --device "$device" --prompt a "$@" >"$work/out" 2>"$work/err" || got=$?
    [ "$got" = "$want" ] || fail "mimo-run $*: exit status $got, expected $want"
    grep -qF -- "$what" "$work/err" || fail "mimo-run $*: stderr lacks '$what': $(tail -1 "$work/err")"
}

errors() {
    refused 5 'a budget of 1048576 bytes' cuda --memory 1M "$work/g64"
    refused 5 'but there are' cuda:99 "$work/g64"
    cp -r "$work/g64" "$work/damaged"
    printf '\377' | dd of="$work/damaged/layer-002-rank-01-of-02.mqs" bs=1 seek=5000 conv=notrunc status=none
    refused 3 'SHA-256 of the record differs' cuda "$work/damaged"
    rm "$work/damaged/layer-002-rank-01-of-02.mqs"
    refused 3 'layer-002-rank-01-of-02.mqs: missing' cuda "$work/damaged"
}

signals() { # NAME NUMBER
    local got=0 pid
    "$bin/mimo-run" --quiet --device cuda:0 --prompt "$prompt" --max-tokens 4000 --context 4096 --ignore-eos --draft none \
        --json "$work/signal.json" "$data/nano" >/dev/null 2>"$work/err" &
    pid=$!
    sleep 2
    kill -s "$1" $pid
    wait $pid || got=$?
    [ $got = $((128 + $2)) ] || fail "$1: exit status $got, expected $((128 + $2))"
    [ "$(field "$work/signal.json" status)" = '"stopped"' ] || fail "$1: not called stopped"
}

figures
for model in g64 mx; do
    texts $model
    texts $model --temperature 0.7 --top-p 0.95 --seed 3
done
errors
signals INT 2
signals TERM 15
"$bin/mimo-run" --quiet --device cuda:0 --bench --bench-steps 4 --max-tokens 100 --prompt "$prompt" "$work/g64" || fail 'a benchmark'
[ $n_failed = 0 ] || { echo "$n_failed checks failed"; exit 1; }
echo 'tools: ok'
