#!/usr/bin/env bash
# mimo-run end to end on nano and a packed nano: greedy text equal to the reference, sampling, stop strings, every exit status.
. "$(dirname "$0")/tool_tests.sh"

nano=$data/nano
packed=$work/packed
n_greedy=3
[ -z "${MQ_TEST_SMALL:-}" ] || n_greedy=1
expect 0 mimo-quantize --method rtn --quiet "$nano" "$packed"

# ---- greedy tokens equal the reference's, prompt by prompt ----
if [ -n "$python" ]; then
    "$python" - "$nano/reference.safetensors" "$work" $n_greedy <<'P'
import json, struct, sys
f = open(sys.argv[1], "rb")
(n,) = struct.unpack("<Q", f.read(8))
t = json.loads(f.read(n))["prompt_and_greedy"]
f.seek(8 + n + t["data_offsets"][0])
raw = f.read(t["data_offsets"][1] - t["data_offsets"][0])
kind = {"I64": "q", "I32": "i"}[t["dtype"]]
ids = struct.unpack("<%d%s" % (len(raw) // struct.calcsize(kind), kind), raw)
for row in range(int(sys.argv[3])):
    line = list(ids[224 * row:224 * row + 224])
    json.dump(line[:128], open("%s/prompt%d.json" % (sys.argv[2], row), "w"))
    json.dump(line[128:], open("%s/greedy%d.json" % (sys.argv[2], row), "w"))
P
    for ((i = 0; i < n_greedy; i++)); do
        expect 0 mimo-run --quiet --tokens "$work/prompt$i.json" --max-tokens 96 --ignore-eos --json "$work/run.json" "$nano"
        json_is "$work/run.json" "r['output_tokens'] == $(cat "$work/greedy$i.json")"
        json_is "$work/run.json" 'r["tokens"] == 96 and r["prompt_tokens"] == 128 and r["finish_reason"] == "length"'
    done
    json_is "$work/run.json" 'r["tok_per_s"] > 0 and r["ttft_ms"] > 0 and 0 < r["itl_ms_p50"] <= r["itl_ms_p99"]'
    # An object with a member "tokens" does as well.
    printf '{"tokens": %s}' "$(cat "$work/prompt0.json")" >"$work/object.json"
    expect 0 mimo-run --quiet --tokens "$work/object.json" --max-tokens 4 --ignore-eos --json - "$nano"
    json_is "$work/out" "r['output_tokens'] == $(cat "$work/greedy0.json")[:4]"
else
    echo 'SKIPPED: the reference continuation (no Python)'
fi

# ---- text: stdout has the continuation alone, whatever the threads ----
prompt='def __init__(self'
expect 0 mimo-run --prompt "$prompt" --max-tokens 24 --threads 1 "$nano"
cp "$work/out" "$work/text"
err_has 'tokens/s'
expect 0 mimo-run --quiet --prompt="$prompt" --max-tokens=24 --threads=3 "$nano"
out_is "$(cat "$work/text")"
err_is_empty
# The note stands on a line of its own behind the text, also where stdout and stderr are one pipe.
"$bin/mimo-run" --prompt "$prompt" --max-tokens 24 "$nano" 2>&1 | cat >"$work/both"
grep -q '^mimo-run: .* tokens/s' "$work/both" || fail "the note shares a line with the text"
printf '%s' "$prompt" >"$work/prompt.txt"
expect 0 mimo-run --quiet --prompt-file "$work/prompt.txt" --max-tokens 24 "$nano"
out_is "$(cat "$work/text")"
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 24 --json - "$nano"
json_is "$work/out" "r['text'] + chr(10) == open('$work/text').read()"
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 1 --json "$work/run.json" "$nano"
json_is "$work/run.json" 'r["tokens"] == 1 and len(r["output_tokens"]) == 1 and r["tok_per_s"] == 0'

# Packed, one rank and two.
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 8 --json "$work/run.json" "$packed"
json_is "$work/run.json" 'r["tokens"] == 8 and r["ranks"] == 1'
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 8 --ranks 2 --json "$work/run.json" "$packed"
json_is "$work/run.json" 'r["tokens"] == 8 and r["ranks"] == 2'

# ---- stop strings: found across tokens, removed, nothing behind them ----
whole=$(cat "$work/text")
stop=${whole:5:6}
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 24 --stop 'never written' --stop "$stop" --json "$work/run.json" "$nano"
out_is "${whole%%"$stop"*}"
json_is "$work/run.json" 'r["finish_reason"] == "stop" and r["tokens"] < 24'

# ---- sampling: a seed fixes the text, another gives another; top-k 1 is greedy ----
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 24 --temperature 1 --top-p 0.95 --seed 7 "$nano"
cp "$work/out" "$work/seed7"
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 24 --temperature 1 --top-p 0.95 --seed 7 --threads 1 "$nano"
out_is "$(cat "$work/seed7")"
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 24 --temperature 1 --top-p 0.95 --seed 8 "$nano"
! cmp -s "$work/out" "$work/seed7" || fail 'seeds 7 and 8 give the same text'
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 24 --temperature 1 --top-k 1 --seed 9 "$nano"
out_is "$whole"

# ---- end tokens come from config.json and generation_config.json; --ignore-eos goes on ----
cp -r "$nano" "$work/eos"
chmod -R u+w "$work/eos"
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 4 --json "$work/run.json" "$nano"
if [ -n "$python" ]; then
    second=$("$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))["output_tokens"][1])' "$work/run.json")
    printf '{"eos_token_id": [4090, %s]}' "$second" >"$work/eos/generation_config.json"
    expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 4 --json "$work/run.json" "$work/eos"
    json_is "$work/run.json" 'r["finish_reason"] == "stop" and r["tokens"] == 1'
    expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 4 --ignore-eos --json "$work/run.json" "$work/eos"
    json_is "$work/run.json" 'r["finish_reason"] == "length" and r["tokens"] == 4'
fi

# ---- the context ends it ----
expect 0 mimo-run --quiet --prompt "$prompt" --context 12 --ignore-eos --json "$work/run.json" "$nano"
json_is "$work/run.json" 'r["finish_reason"] == "context" and r["prompt_tokens"] + r["tokens"] == 13 and r["context"] == 12'

# ---- benchmark, dry run ----
expect 0 mimo-run --quiet --bench --max-tokens 8 --context 72 --json "$work/run.json" "$packed"
out_has 'decode        7 tokens in '
json_is "$work/run.json" 'r["tokens"] == 8 and r["prompt_tokens"] == 64 and "text" not in r'
expect 0 mimo-run --dry-run --json "$work/run.json" "$packed"
if [ -n "$python" ]; then # what the dry run says is what a run takes
    need=$("$python" -c 'import json,sys; r=json.load(open(sys.argv[1])); print(r["weight_bytes"]+r["cache_bytes"]+r["workspace_bytes"]+r["drafter_bytes"])' "$work/run.json")
    expect 0 mimo-run --quiet --prompt a --max-tokens 1 --memory $need "$packed"
    expect 5 mimo-run --quiet --prompt a --max-tokens 1 --memory $((need - 1)) "$packed"
    expect 0 mimo-run --dry-run --memory $need "$packed"
    expect 5 mimo-run --dry-run --memory $((need - 1)) "$packed"
fi
json_is "$work/run.json" 'r["fits"] and r["weight_bytes"] > 1e6 and r["cache_bytes"] > 0'

# ---- 2: usage ----
expect 2 mimo-run
expect 2 mimo-run "$nano"
err_has 'nothing to do'
expect 2 mimo-run --prompt a --tokens x.json "$nano"
expect 2 mimo-run --prompt '' "$nano"
err_has 'the prompt is empty'
: >"$work/empty.txt"
expect 2 mimo-run --prompt-file "$work/empty.txt" "$nano"
err_has 'the prompt is empty'
printf '[]' >"$work/tokens.json"
expect 2 mimo-run --tokens "$work/tokens.json" "$nano"
err_has 'the prompt is empty'
printf '[5, 4096]' >"$work/tokens.json"
expect 2 mimo-run --quiet --tokens "$work/tokens.json" "$nano"
err_has 'token 1 of the prompt is 4096, expected 0 to 4095'
expect 2 mimo-run --quiet --prompt 'one two three four' --context 2 "$nano"
err_has 'but the context holds 2'
expect 2 mimo-run --quiet --prompt a --context 5000 "$nano"
err_has '4096'
expect 2 mimo-run --quiet --prompt a --ranks 3 "$packed"
err_has '3'
expect 2 mimo-run --quiet --prompt a --ranks 4 "$nano"
err_has 'the largest that works is 2'
expect 2 mimo-run --prompt a --max-tokens 0 "$nano"
expect 2 mimo-run --prompt a --temperature -1 "$nano"
expect 2 mimo-run --prompt a --stop '' "$nano"
expect 2 mimo-run --prompt a --stop "$(printf '\377')" "$nano"
err_has 'not UTF-8'
expect 2 mimo-run --bench --stop x "$nano"
expect 2 mimo-run --prompt a --draft gpt "$nano"
err_has 'expected one of dflash|mtp|none'
for option in '--chat' '--serve' '--host 127.0.0.1' '--port 8000' '--api-key-file F'; do
    # shellcheck disable=SC2086  # option and value are two words
    expect 2 mimo-run --prompt a $option --json "$work/later.json" "$nano"
    err_has 'not built yet'
    out_is_empty
    json_is "$work/later.json" 'r["status"] == "arg" and r["exit_code"] == 2'
done
expect 0 mimo-run --quiet --prompt a --draft none --max-tokens 1 "$nano"

# ---- 3: input ----
printf '[1, "two"]' >"$work/tokens.json"
expect 3 mimo-run --tokens "$work/tokens.json" "$nano"
err_has 'element 1 is not a token id'
printf '[1, 2' >"$work/tokens.json"
expect 3 mimo-run --tokens "$work/tokens.json" "$nano"
expect 3 mimo-run --prompt "$(printf 'a\377')" "$nano"
err_has '--prompt'
cp -r "$packed" "$work/damaged"
flip "$work/damaged/layer-002-rank-00-of-02.mqs" 5000
expect 3 mimo-run --quiet --prompt a --json - "$work/damaged"
err_has "layer-002-rank-00-of-02.mqs: tensor 'model.layers.2."
json_is "$work/out" 'r["status"] == "hash" and r["exit_code"] == 3 and "layer-002" in r["errors"][0]["message"]'

# ---- 4: a reader that went away ----
mkfifo "$work/pipe"
head -c 1 <"$work/pipe" >/dev/null &
got=0
"$bin/mimo-run" --quiet --prompt "$prompt" --max-tokens 4000 --ignore-eos --json "$work/run.json" "$nano" >"$work/pipe" 2>"$work/err" || got=$?
wait
: >"$work/out"
[ "$got" = 4 ] || fail "closed stdout: exit status $got, expected 4"
err_has 'stdout: Broken pipe'
json_is "$work/run.json" 'r["status"] == "io" and r["exit_code"] == 4'
expect 4 mimo-run --prompt a "$work/absent"
expect 4 mimo-run --prompt-file "$work/absent.txt" "$nano"

# ---- 5: memory, device ----
expect 5 mimo-run --quiet --prompt a --memory 1M "$nano"
err_has 'are needed'
expect 5 mimo-run --dry-run --memory 1M --json - "$nano"
json_is "$work/out" 'r["fits"] is False and r["status"] == "nomem"'
if [ ! -e /dev/nvidiactl ]; then
    expect 5 mimo-run --prompt a --device cuda:0 "$nano"
    err_has 'no CUDA device'
fi
expect 2 mimo-run --prompt a --device tpu "$nano"

# ---- 128 + n: a signal ends it between tokens, with what was written so far ----
"$bin/mimo-run" --quiet --prompt "$prompt" --max-tokens 4000 --ignore-eos --json "$work/run.json" "$nano" >"$work/out" 2>"$work/err" &
pid=$!
for ((i = 0; i < 200; i++)); do
    [ ! -s "$work/out" ] || break
    sleep 0.05
done
got=0
kill -INT $pid 2>/dev/null || true
wait $pid || got=$?
[ "$got" = 130 ] || fail "SIGINT: exit status $got, expected 130"
err_has 'mimo-run: stopped by signal 2'
json_is "$work/run.json" 'r["status"] == "stopped" and r["exit_code"] == 130 and 0 < r["tokens"] < 4000'

# ---- help ----
expect 0 mimo-run --help
out_has 'usage: mimo-run [options] MODEL'
err_is_empty
expect 0 mimo-run --version
grep -qE '^mimo-run [0-9]+\.[0-9]+' "$work/out" || fail 'no version'

finish test_mimo_run
