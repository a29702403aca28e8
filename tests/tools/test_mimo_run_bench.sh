#!/usr/bin/env bash
# mimo-run --bench and --synthetic: members and lines, bytes of a step against a hand computation, the same text whatever the
# threads, one rank alone, the bundled geometries, every refusal.
. "$(dirname "$0")/tool_tests.sh"

# Three layers: full attention and a dense MLP, then two sliding MoE layers of six experts.
config() {
    cat <<JSON
{"model_type": "mimo_v2", "num_hidden_layers": 3, "hidden_size": 128, "vocab_size": 512, "num_attention_heads": 8,
 "num_key_value_heads": 4, "swa_num_attention_heads": 8, "swa_num_key_value_heads": 4, "head_dim": 48, "v_head_dim": 32,
 "swa_head_dim": 48, "swa_v_head_dim": 32, "rope_theta": 10000000, "swa_rope_theta": 10000, "partial_rotary_factor": 0.334,
 "sliding_window": 8, "attention_value_scale": 0.612, "add_swa_attention_sink_bias": true, "intermediate_size": 256,
 "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "moe_layer_freq": [0, 1, 1],
 "hybrid_layer_pattern": [0, 1, 1], "scoring_func": "sigmoid", "norm_topk_prob": true, "layernorm_epsilon": 1e-5,
 "max_position_embeddings": 4096$1}
JSON
}
tiny=$work/tiny.json
fp8=$work/fp8.json
config '' >"$tiny"
config ', "attention_projection_layout": "fused_qkv", "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
 "activation_scheme": "dynamic", "weight_block_size": [128, 128]}' >"$fp8"
quick='--quiet --bench --bench-steps 3 --bench-repeats 2 --bench-prompt 20 --max-tokens 4'

# ---- lines and members ----
# shellcheck disable=SC2086  # quick is a list of options
expect 0 mimo-run $quick --bench-context 100 --synthetic "$tiny" --json "$work/run.json"
for line in 'device        cpu' 'memory        ' 'clocks        ' 'layers        3' 'experts       6 a layer, 2 a token, int4 in groups of 64, ' \
    'SYNTHETIC     weights are made up and route at random' 'memory read   ' 'prefill       20 tokens, ' \
    'steps         6 of each width at a context of 100, its keys and values made up' 'decode        3 tokens in '; do
    out_has "$line"
done
json_is "$work/run.json" 'r["synthetic"] and r["only_rank"] is None and r["layers"] == 3 and r["expert_scheme"] == "int4" and r["expert_group"] == 64'
json_is "$work/run.json" 'len(r["devices"]) == 1 and r["devices"][0] == r["device"] and r["step_composed"] == "cpu: no decode step of its own"'
out_has 'step          composed of single operations: cpu: no decode step of its own'
json_is "$work/run.json" 'r["planned_bytes"] > r["weight_bytes"] and "taken_bytes" in r'
json_is "$work/run.json" 'r["bench_context"] == 100 and r["bench_context_made_up"] and r["seed"] == 0 and r["ranks"] == 1'
json_is "$work/run.json" 'r["read_bytes_per_s"] > 0 and 0 < r["read_bytes"] <= r["weight_bytes"]'
json_is "$work/run.json" '[p["tokens"] for p in r["bench_prompts"]] == [20] and r["bench_prompts"][0]["tok_per_s"] > 0'
json_is "$work/run.json" '[w["width"] for w in r["bench_widths"]] == [1, 2, 4, 8] and all(w["steps"] == 6 for w in r["bench_widths"])'
json_is "$work/run.json" 'all(0 < w["step_ms_p10"] <= w["step_ms_p50"] <= w["step_ms_p90"] for w in r["bench_widths"])'
json_is "$work/run.json" 'all(w["bytes_per_s"] > 0 and w["bandwidth_share"] > 0 for w in r["bench_widths"])'
json_is "$work/run.json" 'r["tokens"] == 4 and r["prompt_tokens"] == 20 and r["finish_reason"] == "length"'

# ---- bytes of a step, by hand (rows times columns times bytes) ----
# Each layer: q 384 x 128, k 192 x 128, v 128 x 128, o 128 x 256 in BF16, two norms; two layers: eight sinks, a router of 6 x
# 128 in F32 and its bias; one layer: three matrices of 256 x 128; the head 512 x 128, the final norm.
fixed=$((3 * (2 * 128 * (384 + 192 + 128 + 256) + 2 * 4 * 128) + 2 * (4 * 8 + 4 * 6 * 128 + 4 * 6) + 3 * 2 * 256 * 128 + 2 * 512 * 128 + 4 * 128))
# An expert: 512 x 128 and 128 x 256 weights in units of 16 x 64, 544 bytes each (groups of 64).
expert=$((544 * (32 * 2 + 8 * 4)))
json_is "$work/run.json" "all(abs(w['weight_bytes'] - ($fixed + 2 * 128 * w['width'] + 2 * w['distinct_experts'] * $expert)) < 1 for w in r['bench_widths'])"
json_is "$work/run.json" "r['bench_widths'][0]['distinct_experts'] == 2 and r['bench_widths'][0]['weight_bytes'] == $((fixed + 2 * 128 + 4 * expert))"
json_is "$work/run.json" 'all(w["width"] <= 6 * w["distinct_experts"] <= 36 and w["distinct_experts"] <= 2 * w["width"] for w in r["bench_widths"])'
# A position: four heads of 48 + 32 values in F32; the full layer sees all, two sliding layers the last eight.
json_is "$work/run.json" 'all(w["kv_bytes"] == 4 * 4 * 80 * ((100 + w["width"]) + 2 * (8 + w["width"] - 1)) for w in r["bench_widths"])'

# One rank of four, FP8: 96, 48 and 32 rows of q, k, v, whose scale blocks begin where the chunk does: 1, 2 and 1 scales.
for rank in 0 1 2 3; do
    # shellcheck disable=SC2086
    expect 0 mimo-run $quick --bench-widths 1,3 --synthetic "$fp8" --ranks 4 --only-rank $rank --json "$work/run.json"
    out_has "rank $rank of 4 alone"
    fixed=$((3 * (128 * (96 + 48 + 32) + 4 * (1 + 2 + 1) + 2 * 128 * 64 + 2 * 4 * 128) + 2 * (4 * 2 + 4 * 6 * 128 + 4 * 6) + 3 * (64 * 128 + 4) + 2 * 128 * 128 + 4 * 128))
    expert=$((544 * (8 * 2 + 8 * 1)))
    json_is "$work/run.json" "r['only_rank'] == $rank and r['ranks'] == 4 and r['bench_widths'][0]['weight_bytes'] == $((fixed + 2 * 128 + 4 * expert))"
    json_is "$work/run.json" "r['bench_widths'][0]['kv_bytes'] == 4 * 80 * (21 + 2 * 8) and [w['width'] for w in r['bench_widths']] == [1, 3]"
done
for experts in int4:32 int4:64 mxfp4; do
    # shellcheck disable=SC2086
    expect 0 mimo-run $quick --bench-widths 1 --synthetic "$tiny" --layers 2 --synthetic-experts $experts --json "$work/run.json"
    json_is "$work/run.json" "r['layers'] == 2 and '$experts'.startswith(r['expert_scheme']) and r['status'] == 'ok'"
done
out_has '2 a token, mxfp4, '

# ---- a drafter made up ----
drafter=$work/drafter.json
cat >"$drafter" <<JSON
{"model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8,
 "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.5, "rope_theta": 10000, "rms_norm_eps": 1e-5,
 "sliding_window": 64, "block_size": 8, "num_target_layers": 3,
 "dflash_config": {"target_layer_ids": [0, 2], "mask_token_id": 500, "block_size": 8, "use_swa": true, "attention_sink_bias": true}}
JSON
for ranks in '' '--ranks 2' '--ranks 4 --only-rank 2' '--layers 2'; do
    # shellcheck disable=SC2086
    expect 0 mimo-run --quiet --bench --bench-steps 1 --bench-repeats 1 --bench-prompt 20 --bench-context 100 --max-tokens 200 $ranks \
        --synthetic "$tiny" --synthetic-drafter "$drafter" --synthetic-acceptance 6.3 --draft-width 8 --json "$work/run.json"
    json_is "$work/run.json" 'r["draft"] == "dflash" and r["synthetic"] and 5 < r["accept_length"] < 7.6 and r["bench_context_made_up"]'
done
# One rank of four; two layers: its q, k, v, o, gate, up, down and sinks, norms; outside, whole: fc, two norms, the mask.
expect 0 mimo-run --dry-run --synthetic "$tiny" --ranks 4 --only-rank 1 --draft none --synthetic-drafter "$drafter" --json "$work/none.json"
expect 0 mimo-run --dry-run --synthetic "$tiny" --ranks 4 --only-rank 1 --synthetic-drafter "$drafter" --json "$work/run.json"
layer=$((2 * 128 * (64 + 32 + 32 + 64 + 3 * 64) + 4 * (2 * 128 + 2 + 2 * 32)))
if [ -n "$python" ]; then
    bare=$("$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))["weight_bytes"])' "$work/none.json")
    json_is "$work/run.json" "0 <= r['weight_bytes'] - $bare - (2 * $layer + 2 * 128 * 256 + 3 * 4 * 128) < 4096"
fi

# ---- the text is a function of the seed, whatever the threads ----
printf '[3, 500, 77, 77, 1]' >"$work/tokens.json"
for threads in 1 2 3 4; do
    expect 0 mimo-run --quiet --synthetic "$fp8" --ranks 2 --tokens "$work/tokens.json" --max-tokens 24 --seed 5 --threads $threads
    [ $threads = 1 ] && cp "$work/out" "$work/text"
    cmp -s "$work/out" "$work/text" || fail "$threads threads change the text of a synthetic model"
done
[ "$(wc -w <"$work/text")" = 24 ] || fail 'not 24 tokens'
expect 0 mimo-run --quiet --synthetic "$fp8" --ranks 2 --tokens "$work/tokens.json" --max-tokens 24 --seed 6
! cmp -s "$work/out" "$work/text" || fail 'seeds 5 and 6 give the same text'

# ---- a model that is there: its own context, no notice ----
expect 0 mimo-run --quiet --bench --bench-steps 3 --bench-repeats 1 --max-tokens 4 --bench-widths 2 --bench-prompt 20,30 --draft none "$data/nano" --json "$work/run.json"
! grep -q 'SYNTHETIC' "$work/out" || fail 'a model that is there is called synthetic'
json_is "$work/run.json" 'not r["synthetic"] and r["bench_context"] == 20 and not r["bench_context_made_up"] and r["expert_scheme"] == "bf16"'
json_is "$work/run.json" '[p["tokens"] for p in r["bench_prompts"]] == [20, 30]'
# A context too short for the usual widths leaves those that fit.
expect 0 mimo-run --quiet --bench --bench-steps 1 --bench-repeats 1 --context 3 --max-tokens 1 --synthetic "$tiny" --json "$work/run.json"
json_is "$work/run.json" '[w["width"] for w in r["bench_widths"]] == [1, 2] and r["bench_context"] == 1'

# ---- the bundled geometries: bytes of one GPU of eight ----
pro=$root/tests/bench/configs/pro.json
flash=$root/tests/bench/configs/flash.json
# Experts alone: 69 layers of 384, each 512 x 6144 and 6144 x 256 weights of a rank; 47 of 256 at 4096 for Flash.
expect 0 mimo-run --dry-run --memory 1000G --synthetic "$pro" --ranks 8 --only-rank 7 --json "$work/run.json"
json_is "$work/run.json" "$((69 * 384 * 544 * (32 * 96 + 384 * 4))) < r['weight_bytes'] < $((69 * 384 * 544 * (32 * 96 + 384 * 4))) + 6.2e9"
expect 0 mimo-run --dry-run --memory 1000G --synthetic "$flash" --ranks 2 --only-rank 0 --json "$work/run.json"
json_is "$work/run.json" "$((47 * 256 * 544 * (128 * 64 + 256 * 16))) < r['weight_bytes'] < $((47 * 256 * 544 * (128 * 64 + 256 * 16))) + 6e9"

# ---- refusals ----
refused() { # TEXT ARGS: exit 2 and a text
    expect 2 mimo-run --quiet "${@:2}"
    err_has "$1"
}
refused '4 layers, expected at most the 3' --synthetic "$tiny" --bench --layers 4
refused '3 ranks' --synthetic "$tiny" --bench --ranks 3
refused 'rank 4 of 4 ranks alone, expected 0 to 3' --synthetic "$tiny" --bench --ranks 4 --only-rank 4
refused '--prompt needs a tokenizer, and a synthetic model has none' --synthetic "$tiny" --prompt a
refused '--prompt-file needs a tokenizer' --synthetic "$tiny" --prompt-file "$tiny"
refused '--stop needs a tokenizer' --synthetic "$tiny" --tokens "$work/tokens.json" --stop x
refused 'takes the place of MODEL' --synthetic "$tiny" --bench "$data/nano"
refused '--layers is for --synthetic' --bench --layers 1 "$data/nano"
refused '--only-rank is for --synthetic' --bench --only-rank 0 "$data/nano"
refused '--synthetic-drafter is for --synthetic' --bench --synthetic-drafter "$drafter" "$data/nano"
refused '--synthetic-experts is for --synthetic' --bench --synthetic-experts mxfp4 "$data/nano"
refused 'expected int4:32, int4:64, int4:128 or mxfp4' --synthetic "$tiny" --bench --synthetic-experts int5
refused '--bench-steps is for --bench' --bench-steps 3 --tokens "$work/tokens.json" "$data/nano"
for widths in 0 9 1, ,1 1,,2 x 1x '' 1,2,3,4,5,6,7,8,1; do
    refused "--bench-widths $widths: expected up to 8 whole numbers from 1 to 8" --bench --bench-widths "$widths" "$data/nano"
done
refused '--bench-prompt 65: the context holds 64' --synthetic "$tiny" --bench --max-tokens 1 --context 64 --bench-prompt 65
refused '--bench-context 57 and a width of 8: the context holds 64' --synthetic "$tiny" --bench --context 64 --max-tokens 4 --bench-context 57
refused 'there is no drafter' --synthetic "$tiny" --bench --synthetic-acceptance 2
refused 'usage: mimo-run [options] MODEL | --synthetic CONFIG.json' --bench
expect 4 mimo-run --quiet --synthetic "$work/nowhere.json" --bench
err_has 'nowhere.json'
printf '{"model_type": "llama"}' >"$work/other.json"
expect 3 mimo-run --quiet --synthetic "$work/other.json" --bench
err_has 'llama'
finish test_mimo_run_bench
