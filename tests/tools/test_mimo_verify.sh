#!/usr/bin/env bash
# mimo-verify end to end on a packed nano: what passes, what is missed (1), wrong usage (2), damage (3), I/O (4), devices (5).
. "$(dirname "$0")/tool_tests.sh"

nano=$data/nano
packed=$work/packed
windows=4
[ -z "${MQ_TEST_SMALL:-}" ] || windows=2
text=$data/text/eval.txt

expect 0 mimo-quantize --method rtn --quiet "$nano" "$packed"

# ---- sound ----
expect 0 mimo-verify --quiet "$packed"
out_has 'RESULT: passed'
out_has 'experts int4, groups of 64, method rtn; 2 ranks'
err_is_empty

expect 0 mimo-verify --source "$nano" --text "$text" --window 256 --windows $windows --max-ppl-increase 20 --max-kl 0.2 \
    --min-top1 0.5 --json "$work/full.json" "$packed"
out_has 'top-1 agreement'
out_has 'equal byte for byte'
json_is "$work/full.json" 'r["status"] == "ok" and r["exit_code"] == 0 and r["errors"] == []'
json_is "$work/full.json" 'all(c["ok"] for c in r["checks"])'
json_is "$work/full.json" '[c["id"] for c in r["checks"]] == ["integrity", "config", "untouched", "weight_error",
    "ppl_increase_pct", "kl_mean", "top1_agreement"]'
json_is "$work/full.json" "r['tokens'] == 256 * $windows and len(r['windows']) == $windows and r['window'] == 256"
json_is "$work/full.json" '0 < r["kl_median"] < r["kl_mean"] < r["kl_p90"] < r["kl_p99"] <= r["kl_p999"] <= r["kl_max"]'
json_is "$work/full.json" 'abs(r["ppl_increase_pct"] - 100 * (r["ppl"] / r["ppl_source"] - 1)) < 1e-6'
json_is "$work/full.json" 'len(r["weights"]["tensors"]) == 240 and r["weights"]["different_records"] == 0'

# The same figures whatever the number of threads, and --memory that suffices.
expect 0 mimo-verify --quiet --text "$text" --window 128 --windows 2 --threads 1 --json "$work/one.json" "$packed"
expect 0 mimo-verify --quiet --text "$text" --window 128 --windows 2 --threads 3 --memory 256M --json "$work/two.json" "$packed"
if [ -n "$python" ]; then
    one=$("$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))["ppl"])' "$work/one.json")
    json_is "$work/two.json" "r['ppl'] == $one and 'ppl_source' not in r"
fi

json_is "$work/one.json" 'r["device"].startswith("cpu") and r["precision"] == "f32"'

expect 0 mimo-verify --list --json - "$packed"
json_is "$work/out" 'len(r["records"]) > 300 and r["records"][0]["file"] == "common.mqs"'
expect 0 mimo-verify --list "$packed"
out_has 'model.layers.1.mlp.experts.15.gate_up_proj.weight'
out_has 'int4 g64'

# MXFP4 is carried over without loss.
expect 0 mimo-quantize --method search --quiet "$data/nano-mxfp4" "$work/mxfp4"
expect 0 mimo-verify --quiet --source "$data/nano-mxfp4" --json "$work/mx.json" "$work/mxfp4"
out_has 'all without loss'
expect 0 mimo-verify --quiet --source "$data/nano-mxfp4" --text "$text" --window 128 --windows 2 "$work/mxfp4"
out_has 'mean 0.00000'
json_is "$work/mx.json" 'r["experts"] == "mxfp4" and r["weights"]["down"]["exact"] == 80'

# ---- 1: sound, but different or missed ----
expect 1 mimo-verify --quiet --source "$nano" --text "$text" --window 128 --windows 2 --max-kl 0.000001 --min-top1 0.1 \
    --json - "$packed"
json_is "$work/out" 'r["status"] == "failed" and r["exit_code"] == 1 and r["errors"] == []'
json_is "$work/out" '[c["id"] for c in r["checks"] if not c["ok"]] == ["kl_mean"]'
expect 1 mimo-verify --quiet --source "$nano" --max-weight-error 0.05 "$packed"
out_has 'FAIL  weight_error'
out_has 'RESULT: FAILED'
cp -r "$nano" "$work/edited"
chmod -R u+w "$work/edited"
sed -i 's/"rope_theta": *[0-9.e+]*/"rope_theta": 4000000/' "$work/edited/config.json"
expect 1 mimo-verify --quiet --source "$work/edited" "$packed"
out_has 'config.json differs'
sed 's/^{/{"new_key": 1,/' "$nano/config.json" >"$work/edited/config.json"
expect 1 mimo-verify --quiet --source "$work/edited" "$packed"
err_has 'warning: '
err_has 'new_key'
cp "$nano/config.json" "$work/edited/config.json"
flip "$work/edited/model-00001-of-00001.safetensors" $(($(stat -c %s "$nano/model-00001-of-00001.safetensors") - 1))
expect 1 mimo-verify --quiet --source "$work/edited" "$packed"
out_has 'FAIL  untouched'
out_has "tensor 'model."

# ---- 2: usage ----
expect 2 mimo-verify
expect 2 mimo-verify --bogus "$packed"
expect 2 mimo-verify "$packed" "$packed"
expect 2 mimo-verify --precision f16 "$packed"
expect 2 mimo-verify --max-kl 0.1 "$packed"
err_has 'need --source and --text'
expect 2 mimo-verify --window 128 "$packed"
err_has '--window and --windows need --text'
expect 2 mimo-verify --max-weight-error 0.1 "$packed"
expect 2 mimo-verify --min-top1 1.5 "$packed"
expect 2 mimo-verify --text "$text" --window 100000 "$packed"
err_has "the model's limit is 4096 positions"
printf 'short text' >"$work/short.txt"
expect 2 mimo-verify --text "$work/short.txt" "$packed"
err_has 'enough for 0 windows of 2048'
for option in '--save-logits F' '--logits F' '--report F.html' '--junit F' '--public-key F'; do
    # shellcheck disable=SC2086  # option and value are two words
    expect 2 mimo-verify $option --json "$work/later.json" "$packed"
    err_has "${option%% *}: not built yet"
    json_is "$work/later.json" 'r["status"] == "arg" and r["exit_code"] == 2 and "not built yet" in r["errors"][0]["message"]'
    out_is_empty
done

# ---- text from .jsonl ----
printf '{"text": "%s"}\r\n\n' "$(printf 'def f(x): return x %.0s' $(seq 40))" >"$work/lines.jsonl"
expect 0 mimo-verify --quiet --text "$work/lines.jsonl" --window 64 --windows 1 "$packed"
printf '["no object"]\n' >"$work/bad.jsonl"
expect 3 mimo-verify --quiet --text "$work/bad.jsonl" "$packed"
err_has 'bad.jsonl: line 1: is of type array, expected object'

# ---- 3: damage ----
expect 3 mimo-verify "$nano"
err_has 'not a packed model (no manifest.json)'
expect 3 mimo-verify --source "$data/nano-fp8" "$packed"
err_has 'the source is another model'
cp -r "$packed" "$work/damaged"
flip "$work/damaged/layer-002-rank-01-of-02.mqs" 5000
expect 3 mimo-verify --quiet --json "$work/damage.json" "$work/damaged"
err_has 'layer-002-rank-01-of-02.mqs'
err_has "tensor 'model.layers.2."
json_is "$work/damage.json" 'r["status"] == "hash" and r["exit_code"] == 3 and len(r["errors"]) == 1'
rm "$work/damaged/layer-002-rank-01-of-02.mqs"
expect 3 mimo-verify --quiet --list --json - "$work/damaged"
err_has 'layer-002-rank-01-of-02.mqs'
json_is "$work/out" 'r["exit_code"] == 3 and len(r["records"]) > 0'
rm "$work/damaged/manifest.json"
expect 3 mimo-verify "$work/damaged"
err_has 'no manifest.json'
printf '\377\376' >"$work/latin.txt"
expect 3 mimo-verify --quiet --text "$work/latin.txt" "$packed"
err_has 'latin.txt'

# Finite weights whose logits overflow: no figure passes for a result, and no text is made of them.
if [ -n "$python" ]; then
    cp -r "$nano" "$work/huge"
    chmod -R u+w "$work/huge"
    "$python" - "$work/huge/model-00001-of-00001.safetensors" <<'P'
import json, struct, sys
f = open(sys.argv[1], "r+b")
(n,) = struct.unpack("<Q", f.read(8))
start, end = json.loads(f.read(n))["model.norm.weight"]["data_offsets"]
f.seek(8 + n + start)
f.write(b"\x7f\x7f" * ((end - start) // 2))  # 3.39e38
P
    expect 0 mimo-quantize --method rtn --quiet "$work/huge" "$work/huge-packed"
    expect 3 mimo-verify --quiet --text "$text" --window 64 --windows 1 --json "$work/huge.json" "$work/huge-packed"
    err_has 'expected a finite number'
    json_is "$work/huge.json" 'r["status"] == "numeric" and r["exit_code"] == 3'
    expect 3 mimo-verify --quiet --source "$work/huge" --text "$text" --window 64 --windows 1 "$work/huge-packed"
    expect 3 mimo-run --quiet --prompt abc --max-tokens 3 "$work/huge-packed"
    err_has 'expected a finite number'
    expect 3 mimo-run --quiet --prompt abc --max-tokens 3 --temperature 1 "$work/huge-packed"
fi

# ---- 4, 5 ----
expect 4 mimo-verify --quiet --text "$work/absent.txt" "$packed"
err_has 'absent.txt'
expect 4 mimo-verify --quiet --json "$work/absent/x.json" "$packed"
[ ! -e /dev/full ] || { "$bin/mimo-verify" --quiet "$packed" >/dev/full 2>"$work/err" && fail 'a full stdout passed' || [ $? = 4 ] || fail 'full stdout: not 4'; }
expect 0 mimo-quantize --method rtn --ranks 1 --quiet "$nano" "$work/one-rank"
expect 5 mimo-verify --quiet --source "$nano" --memory 1M "$work/one-rank"
err_has 'are needed to compare tensor'
expect 5 mimo-verify --quiet --text "$text" --window 512 --windows 2 --memory 1M "$packed"
err_has 'needed'
if [ ! -e /dev/nvidiactl ]; then
    expect 5 mimo-verify --device cuda "$packed"
    err_has 'no CUDA device'
fi

# ---- help ----
expect 0 mimo-verify --help
out_has 'usage: mimo-verify [options] PACKED'
out_has '(not built yet)'
err_is_empty
expect 0 mimo-verify --version
grep -qE '^mimo-verify [0-9]+\.[0-9]+' "$work/out" || fail 'no version'

finish test_mimo_verify
