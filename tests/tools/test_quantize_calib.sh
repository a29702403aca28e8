#!/usr/bin/env bash
# mimo-quantize with calibration, from outside: options and what they refuse, the plan of --dry-run against the run itself, the
# page of --report, the accounts in report.json, the warning about experts with few tokens.
. "$(dirname "${BASH_SOURCE[0]}")/tool_tests.sh"
nano=$data/nano
text=$data/text/calib.txt
packed=$work/packed
few=(--calib "$text" --calib-tokens 1024 --calib-window 256)

# ---- usage ----
expect 2 mimo-quantize "$nano" "$packed"
err_has '--method gptq needs --calib FILE'
err_has '--method search needs none'
expect 2 mimo-quantize --method imatrix "$nano" "$packed"
err_has '--method imatrix needs --calib FILE'
for option in "--calib $text" '--calib-tokens 4096' '--calib-window 512' '--recipe refit=off'; do
    # shellcheck disable=SC2086  # option and value are two words
    expect 2 mimo-quantize --method search $option "$nano" "$packed"
    err_has "--method search is not calibrated: ${option%% *} goes with gptq and imatrix"
done
expect 2 mimo-quantize --calib "$text@0" "$nano" "$packed"
err_has 'weight 0, expected a positive number'
expect 2 mimo-quantize "${few[@]}" --recipe refit=maybe "$nano" "$packed"
err_has '--recipe refit=maybe: expected on or off'
expect 2 mimo-quantize --calib "$text" --calib-tokens 0 "$nano" "$packed"
err_has '--calib-tokens 0: expected a whole number'
expect 2 mimo-quantize --calib "$text" --calib-window 100000 "$nano" "$packed"
err_has '100000'
expect 2 mimo-quantize "${few[@]}" --report - "$nano" "$packed"
err_has '--report -: expected the name of a file'
expect 2 mimo-quantize "${few[@]}" --report "$nano/report.html" "$nano" "$packed"
err_has 'give a place outside of CHECKPOINT and OUT'
expect 4 mimo-quantize "${few[@]}" --report "$work/absent/report.html" "$nano" "$packed"
err_has 'No such file or directory'
expect 2 mimo-quantize "${few[@]}" --report "$work" "$nano" "$packed"
err_has 'is a folder, expected the name of a file'
cp -rL "$nano" "$work/mine" && chmod -R u+w "$work/mine"
for option in --report --json; do
    expect 2 mimo-quantize "${few[@]}" "$option" "$work/mine/dflash/config.json" "$work/mine" "$packed"
    err_has 'give a place outside of CHECKPOINT and OUT'
done
cmp -s "$nano/dflash/config.json" "$work/mine/dflash/config.json" || fail "the drafter's config was written over"
rm -rf "$work/mine"

# ---- texts that will not do, before anything is written ----
expect 4 mimo-quantize --calib "$work/absent.txt" "$nano" "$packed"
err_has 'absent.txt'
printf 'short' >"$work/short.txt"
expect 2 mimo-quantize --calib "$work/short.txt" "$nano" "$packed"
err_has 'tokens of text, expected at least one window of 2048'
printf '{"text": "good"}\n{"text": 5}\n' >"$work/bad.jsonl"
expect 3 mimo-quantize --calib "$work/bad.jsonl" "$nano" "$packed"
err_has 'bad.jsonl: line 2: "text" is of type number, expected string'
printf 'bad \377' >"$work/latin.txt"
expect 3 mimo-quantize --calib "$work/latin.txt" "$nano" "$packed"
err_has 'latin.txt: byte 4 is not UTF-8'
[ ! -e "$packed" ] || fail 'a refused run left its folder'

# ---- the plan ----
expect 0 mimo-quantize --dry-run "${few[@]}" --json "$work/plan.json" "$nano" "$packed"
out_has 'scratch'
out_has 'about'
out_has 'assumed'
out_has 'nothing was written'
[ ! -e "$packed" ] || fail 'a dry run wrote something'
json_is "$work/plan.json" '(r["calib_tokens"] == 1024 and r["calib_window"] == 256 and r["estimated_seconds"] > 0 and
    abs(sum(r["estimated_parts"].values()) - r["estimated_seconds"]) < 1e-6 * r["estimated_seconds"] and
    r["scratch_bytes"] > 0 and r["estimated_peak_device_bytes"] == 0 and r["measured"]["seconds"] > 0)'

head -c 9000 "$text" >"$work/little.txt"
expect 0 mimo-quantize --dry-run --calib "$work/little.txt" --calib-window 256 --json "$work/little.json" "$nano" "$packed"
err_has 'fewer than the 1048576 asked for'
json_is "$work/little.json" '0 < r["calib_tokens"] < 9000 and r["calib_tokens"] % 256 == 0'

# ---- the run ----
# How much scratch lies in OUT at most, looked at as often as this shell can.
"$bin/mimo-quantize" "${few[@]}" --report "$work/report.html" --json "$work/run.json" "$nano" "$packed" \
    >"$work/out" 2>"$work/err" </dev/null &
run=$!
scratch=0
while kill -0 $run 2>/dev/null; do
    now=$(stat -c %s "$packed"/scratch* 2>/dev/null | awk '{ n += $1 } END { print n + 0 }')
    [ "$now" -le "$scratch" ] || scratch=$now
done
wait $run || fail 'the calibrated run'
out_has 'calibrated   on 1024 tokens in windows of 256'
planned=$(sed -n 's/.*"scratch_bytes": \([0-9]*\).*/\1/p' "$work/plan.json")
[ "$scratch" -le "$planned" ] || fail "$scratch bytes of scratch, $planned planned"
echo "scratch: $scratch of $planned bytes planned were seen"
json_is "$work/run.json" "r['bytes_out'] == $(sed -n 's/.*"bytes_out": \([0-9]*\).*/\1/p' "$work/plan.json") and r['method'] == 'gptq'"
ls "$packed" | grep -q '^scratch' && fail 'scratch files are left'
expect 0 mimo-verify --quiet --source "$nano" "$packed"
expect 2 mimo-quantize --calib "$packed/README.md" --overwrite "$nano" "$packed"
err_has 'which is written; give a place outside of OUT'
[ -e "$packed/manifest.json" ] || fail 'a refused run began'
expect 0 mimo-quantize "${few[@]}" --resume "$nano" "$packed"
out_has 'already complete'
expect 2 mimo-quantize "${few[@]}" --resume --report "$work/again.html" "$nano" "$packed"
err_has 'is finished, and its page is written by the run that finishes it; report.json in it has the figures'
expect 6 mimo-quantize "${few[@]}" --recipe refit=off --resume --report "$work/again.html" "$nano" "$packed"
err_has 'calibration options was'
[ ! -e "$work/again.html" ] || fail 'a page was written for a run that did nothing'

# ---- what it tells ----
if [ -n "$python" ]; then
    "$python" - "$work/report.html" "$packed/report.json" "$packed/manifest.json" <<'P' || fail 'the report'
import json, sys, xml.dom.minidom as dom
page = open(sys.argv[1], encoding="utf-8").read()
tree = dom.parseString(page)
assert not tree.getElementsByTagName("script")
assert [s.getAttribute("id") for s in tree.getElementsByTagName("svg")] == ["weights", "loss", "output", "tokens"]
for svg in tree.getElementsByTagName("svg"):
    ids = svg.getAttribute("aria-labelledby").split()
    assert [c.getAttribute("id") for c in svg.childNodes[:2]] == ids
r = json.load(open(sys.argv[2], encoding="utf-8"))
cells = [m for m in r["matrices"] if "path" in m]
assert len(cells) == 5 * 16 * 3
assert all(m["path"] in ("own", "shrunk", "layer", "diagonal", "plain") for m in cells)
layers = [l for l in r["layers"] if "paths" in l]
assert len(layers) == 5
for l in layers:
    assert sum(l["expert_tokens"]) == 4 * 1024 and sum(l["paths"].values()) == 48
    assert 0 < l["output_rel_error"] < 0.5 and 0.9 < l["output_cosine"] <= 1
    for e, n in enumerate(l["expert_tokens"]):
        assert f"layer {l['layer']}, expert {e}: {n} tokens</title>" in page
for m in json.load(open(sys.argv[3], encoding="utf-8"))["source"]:
    assert m["sha256"] in page
P
fi

# Without calibration the page has the weights alone, and the same run writes the same page.
expect 0 mimo-quantize --quiet --method rtn --report "$work/one.html" "$nano" "$work/rtn"
expect 0 mimo-quantize --quiet --method rtn --threads 1 --overwrite --report "$work/two.html" "$nano" "$work/rtn"
cmp -s "$work/one.html" "$work/two.html" || fail 'the same run wrote another page'
grep -q 'id="weights"' "$work/one.html" && ! grep -q 'id="tokens"' "$work/one.html" || fail 'the page of rtn'
expect 0 mimo-quantize --quiet --report "$work/mx.html" --method search "$data/nano-mxfp4" "$work/mx"
grep -q 'experts carried over' "$work/mx.html" || fail 'the page of a carried-over model'

# What the checkpoint's reader had to say stands on the page and in report.json, without the folder's path.
cp -rL "$nano" "$work/said" && chmod -R u+w "$work/said"
sed -i '1s/{/{ "odd<b>": 1,/' "$work/said/config.json"
expect 0 mimo-quantize --method rtn --report "$work/said.html" "$work/said" "$work/said-packed"
err_has "odd<b>"
grep -q "<li>config.json.*odd&lt;b&gt;" "$work/said.html" || fail 'the notice on the page'
json_has=$(grep -c '"config.json.*odd<b>' "$work/said-packed/report.json" || true)
[ "$json_has" = 1 ] || fail 'the notice in report.json'
rm -rf "$work/said" "$work/said-packed"

# Nothing to calibrate: said, and done.
expect 0 mimo-quantize "${few[@]}" --overwrite --json "$work/mx.json" "$data/nano-mxfp4" "$work/mx"
err_has 'nothing is calibrated'
json_is "$work/mx.json" 'r["method"] == "none" and "calib_tokens" not in r'

# A mixture, from .jsonl and plain text; few tokens, which is said; the recipe stands in the manifest.
printf '{"text": "%s"}\n' "$(head -c 9000 "$text" | tr -c 'a-z \n' '.' | tr '\n' ' ')" >"$work/mix.jsonl"
expect 0 mimo-quantize --quiet --method imatrix --calib "$text@3" --calib "$work/mix.jsonl" --calib-tokens 256 --calib-window 64 \
    --recipe weight=2,shrink=off "$nano" "$work/mix"
err_has 'experts saw fewer than 32 calibration tokens (hidden size / 4), the least'
err_has '--calib-tokens'
grep -q 'weight=2' "$work/mix/manifest.json" && grep -q 'shrink=off' "$work/mix/manifest.json" || fail 'the recipe in the manifest'
finish test_quantize_calib
