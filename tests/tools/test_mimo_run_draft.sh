#!/usr/bin/env bash
# mimo-run with drafters: the same text whatever the drafter and width, ends at the same token, figures, synthetic acceptance,
# memory, every refusal.
. "$(dirname "$0")/tool_tests.sh"

nano=$data/nano
packed=$work/packed
prompt='def __init__(self'
expect 0 mimo-quantize --quiet --method search "$nano" "$packed"

# ---- the drafter is used without being asked for, and says what it did ----
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --draft none --json "$work/run.json" "$packed"
cp "$work/out" "$work/plain"
json_is "$work/run.json" 'r["draft"] == "none" and r["draft_width"] == 1 and r["accept_length"] == 1 and r["accept_per_position"] == []'
json_is "$work/run.json" 'r["verify_steps"] == 44 and r["width_histogram"] == [44] + 7 * [0] and r["tokens"] == 45'
json_is "$work/run.json" 'len(r["distinct_experts"]) == 1 and r["distinct_experts"][0]["layers"] == [0, 4, 4, 4, 4, 4]'
expect 0 mimo-run --prompt "$prompt" --max-tokens 45 --json "$work/run.json" "$packed"
cmp -s "$work/out" "$work/plain" || fail 'the default drafter changes the text'
err_has ', dflash: '
err_has ' tokens a step, drafting '
json_is "$work/run.json" 'r["draft"] == "dflash" and r["draft_width"] == "auto" and r["synthetic_acceptance"] is None'
json_is "$work/run.json" 'sum(r["width_histogram"]) == r["verify_steps"] and 1 <= r["accept_length"] <= 8'
expect 0 mimo-run --prompt "$prompt" --max-tokens 5 --draft none "$packed"
grep -q 'tokens a step' "$work/err" && fail 'figures of a drafter without one'
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 5 "$packed"
err_is_empty

# ---- every width, greedy and sampled ----
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --draft none --temperature 0.8 --seed 3 "$packed"
cp "$work/out" "$work/sampled"
for draft in 'dflash 2' 'dflash 5' 'dflash 8' 'dflash auto' 'mtp 1' 'mtp 4' 'mtp auto'; do
    read -r kind width <<<"$draft"
    expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --draft "$kind" --draft-width "$width" --json "$work/run.json" "$packed"
    cmp -s "$work/out" "$work/plain" || fail "--draft $kind --draft-width $width changes the text"
    json_is "$work/run.json" "r['draft'] == '$kind' and str(r['draft_width']) == '$width' and r['tokens'] == 45"
    expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --draft "$kind" --draft-width "$width" --temperature 0.8 --seed 3 "$packed"
    cmp -s "$work/out" "$work/sampled" || fail "--draft $kind --draft-width $width changes the sampled text"
done
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --ranks 2 --draft none "$packed"
cp "$work/out" "$work/ranks"
expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --ranks 2 --draft-width 8 "$packed"
cmp -s "$work/out" "$work/ranks" || fail 'two ranks: the drafter changes the text'

# ---- ends inside a block: tokens, stop strings, end tokens, the context; the same members as without a drafter ----
ends() {
    local same='r["tokens"], r["finish_reason"], r["output_tokens"], r["text"]' want
    expect 0 mimo-run --quiet --prompt "$prompt" --draft none --json "$work/a.json" "$@"
    for width in 8 auto; do
        expect 0 mimo-run --quiet --prompt "$prompt" --draft-width $width --json "$work/b.json" "$@"
        [ -z "$python" ] || want=$("$python" -c "import json,sys; r=json.load(open(sys.argv[1])); print(repr(($same)))" "$work/a.json")
        [ -z "$python" ] || json_is "$work/b.json" "($same) == $want"
    done
}
for n in 1 2 3 4 5 6 7 8 9 10 11; do
    ends --max-tokens $n "$packed"
done
for n in 12 13 14 15 16 17 18 19; do # the prompt has five tokens
    ends --context $n --ignore-eos "$packed"
    json_is "$work/b.json" "r['finish_reason'] == 'context' and r['tokens'] == $n - r['prompt_tokens'] + 1"
done
whole=$(cat "$work/plain")
for at in 3 9 14 20 33; do
    ends --max-tokens 45 --stop "${whole:$at:4}" "$packed"
    json_is "$work/b.json" 'r["finish_reason"] == "stop"'
done
if [ -n "$python" ]; then
    cp -r "$nano" "$work/eos"
    chmod -R u+w "$work/eos"
    expect 0 mimo-run --quiet --prompt "$prompt" --max-tokens 45 --json "$work/run.json" "$nano"
    for at in 2 7 12 21; do
        id=$("$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))["output_tokens"][int(sys.argv[2])])' "$work/run.json" $at)
        printf '{"eos_token_id": %s}' "$id" >"$work/eos/generation_config.json"
        ends --max-tokens 45 "$work/eos"
        json_is "$work/b.json" "r['finish_reason'] == 'stop' and r['tokens'] <= $at"
    done
fi

# ---- figures of a benchmark; drawn acceptance says so everywhere ----
expect 0 mimo-run --quiet --bench --prompt "$prompt" --max-tokens 60 --draft-width 8 --json "$work/run.json" "$packed"
for line in 'draft         dflash, width 8' 'acceptance    ' 'widths        ' 'drafting      '; do
    out_has "$line"
done
grep -q -i synthetic "$work/out" && fail 'real figures are called synthetic'
json_is "$work/run.json" 'len(r["accept_per_position"]) == 7 and r["draft_seconds"] > 0 and 0 < r["draft_share"] < 1'
json_is "$work/run.json" '[e["width"] for e in r["distinct_experts"]][-1] == 8 and 4 < r["distinct_experts"][-1]["mean"] <= 16'
expect 0 mimo-run --quiet --bench --max-tokens 600 --context 1200 --draft-width 8 --synthetic-acceptance 6.3 --json "$work/run.json" "$packed"
out_has 'SYNTHETIC     acceptance is drawn, 6.3 tokens a full step on average'
out_has 'tokens a step (synthetic)'
json_is "$work/run.json" 'r["synthetic_acceptance"] == 6.3 and 5 < r["accept_length"] < 7.6'
cp "$work/run.json" "$work/first.json"
expect 0 mimo-run --quiet --bench --max-tokens 600 --context 1200 --draft-width 8 --synthetic-acceptance 6.3 --json "$work/run.json" "$packed"
[ -z "$python" ] || json_is "$work/run.json" "r['accept_length'] == json.load(open('$work/first.json'))['accept_length']"
expect 0 mimo-run --quiet --bench --max-tokens 100 --draft mtp --synthetic-acceptance 1 --json "$work/run.json" "$packed"
json_is "$work/run.json" 'r["accept_length"] == 1 and r["draft"] == "mtp"'

# ---- bytes of the drafter are counted ----
expect 0 mimo-run --dry-run --draft none --json "$work/a.json" "$packed"
json_is "$work/a.json" 'r["drafter_bytes"] == 0 and r["draft"] == "none"'
for kind in dflash mtp; do
    expect 0 mimo-run --dry-run --draft $kind --json "$work/run.json" "$packed"
    out_has "($kind)"
    json_is "$work/run.json" "r['drafter_bytes'] > 0 and r['draft'] == '$kind'"
    [ -z "$python" ] || json_is "$work/run.json" "r['weight_bytes'] > json.load(open('$work/a.json'))['weight_bytes']"
done
if [ -n "$python" ]; then
    less=$("$python" -c 'import json,sys; r=json.load(open(sys.argv[1])); print(sum(r[k] for k in ("weight_bytes","cache_bytes","workspace_bytes")))' "$work/a.json")
    expect 0 mimo-run --quiet --prompt a --max-tokens 1 --draft none --memory "$less" "$packed"
    expect 5 mimo-run --quiet --prompt a --max-tokens 1 --draft mtp --memory "$less" "$packed"
    err_has 'for the drafter'
fi

# ---- refusals ----
for width in 0 9 -1 4x '' 1.5 AUTO; do
    expect 2 mimo-run --prompt a --draft-width "$width" "$packed"
    err_has 'expected auto or a whole number from 1 to 8'
done
expect 2 mimo-run --prompt a --draft gpt "$packed"
err_has 'expected one of dflash|mtp|none'
expect 2 mimo-run --quiet --prompt a --draft mtp --draft-width 5 "$packed"
err_has '--draft-width 5: the drafter guesses 3 tokens, expected 1 to 4'
expect 2 mimo-run --prompt a --draft none --draft-width 2 "$packed"
err_has 'has no meaning with --draft none'
expect 2 mimo-run --prompt a --synthetic-acceptance 2 "$packed"
err_has '--synthetic-acceptance is for --bench alone'
expect 2 mimo-run --bench --draft none --synthetic-acceptance 2 "$packed"
expect 2 mimo-run --bench --synthetic-acceptance 0.5 "$packed"
expect 2 mimo-run --bench --synthetic-acceptance 8.5 "$packed"
expect 2 mimo-run --quiet --bench --draft mtp --synthetic-acceptance 4.5 "$packed"
err_has 'expected 1 to 4'

# A model without drafters: plain by default, refused by name when asked for.
cp -r "$nano" "$work/bare"
chmod -R u+w "$work/bare"
rm -rf "$work/bare/dflash"
expect 3 mimo-run --quiet --prompt a --draft dflash --json "$work/run.json" "$work/bare"
err_has 'the model has no DFlash drafter'
json_is "$work/run.json" 'r["status"] == "unsupported" and r["exit_code"] == 3'
expect 0 mimo-run --quiet --prompt a --max-tokens 2 --json "$work/run.json" "$work/bare" # MTP is next
json_is "$work/run.json" 'r["draft"] == "mtp"'
expect 0 tests/make-checkpoint --preset nano --mtp 0 --draft-layers 0 --tokenizer "$nano" "$work/none"
expect 0 mimo-run --prompt a --max-tokens 2 --json "$work/run.json" "$work/none"
json_is "$work/run.json" 'r["draft"] == "none" and r["draft_width"] == 1'
expect 3 mimo-run --quiet --prompt a --draft mtp "$work/none"
err_has 'the model has no MTP layers'
expect 2 mimo-run --quiet --prompt a --draft-width 4 "$work/none"
err_has '--draft-width 4: there is no drafter'
expect 2 mimo-run --quiet --bench --synthetic-acceptance 3 "$work/none"
err_has '--synthetic-acceptance: there is no drafter'
expect 3 mimo-run --dry-run --draft dflash "$work/none"

finish test_mimo_run_draft
