/* config.json to geometry: the bundled configs, the released forms, and every value that is refused, by name. */
#include "src/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/file.h"
#include "tests/harness.h"

/* The text of a bundled config with one piece replaced; NULL find: as it is.  Heap. */
static char *edited(const char *rel, const char *find, const char *put)
{
    mq_buf b = mq_buf_empty();
    mq_err err;
    mq_assert_ok(mq_file_load(&b, mq_test_path(rel), 1 << 20, &err), &err);
    char *out = malloc((size_t)b.n_bytes + strlen(put ? put : "") + 1);
    ck_assert(out != NULL);
    if (!find) {
        memcpy(out, b.data, (size_t)b.n_bytes + 1);
    } else {
        char *at = strstr(b.data, find);
        ck_assert_msg(at != NULL, "'%s' is not in %s", find, rel);
        sprintf(out, "%.*s%s%s", (int)(at - b.data), b.data, put, at + strlen(find));
    }
    mq_buf_release(&b);
    return out;
}

static mq_status read_text(mq_model *m, const char *text, mq_err *err)
{
    mq_json *doc;
    MQ_TRY(mq_json_parse(&doc, text, (int64_t)strlen(text), 64, err));
    mq_status st = mq_model_read(m, doc, "config.json", err);
    mq_json_free(doc);
    return st;
}

static const char NANO[] = "tests/data/nano/config.json", FP8[] = "tests/data/nano-fp8/config.json",
                  MX[] = "tests/data/nano-mxfp4/config.json";

START_TEST(nano_has_its_geometry)
{
    mq_model m;
    mq_err err;
    mq_assert_ok(mq_model_load(&m, mq_test_path(NANO), &err), &err);
    ck_assert_str_eq(m.model_type, "mimo_v2_flash");
    ck_assert(m.n_layers == 6 && m.hidden == 128 && m.vocab == 4096 && m.intermediate == 256);
    ck_assert(m.full.n_heads == 8 && m.full.n_kv_heads == 2 && m.full.head_dim == 48 && m.full.v_head_dim == 32);
    ck_assert(m.swa.n_heads == 8 && m.swa.n_kv_heads == 4 && m.swa.head_dim == 48 && m.swa.v_head_dim == 32);
    ck_assert(m.full.rotary_dims == 16 && m.swa.rotary_dims == 16); /* int(48 * 0.334) */
    ck_assert(m.full.rope_theta == 5e6 && m.swa.rope_theta == 1e4);
    ck_assert(m.full.window == 0 && m.swa.window == 64);
    ck_assert(!m.full.has_sink && m.swa.has_sink);
    ck_assert(m.n_experts == 16 && m.n_experts_per_tok == 4 && m.moe_intermediate == 128);
    ck_assert(m.norm_topk_prob && m.routed_scaling == 1.0 && m.value_scale == 0.707 && m.norm_eps == 1e-5);
    ck_assert(!m.fused_qkv && !m.fp8 && !m.mxfp4 && m.n_eos == 1 && m.eos[0] == 4090 && m.max_positions == 4096);
    static const bool swa[6] = {0, 1, 1, 0, 1, 0}, moe[6] = {0, 1, 1, 1, 1, 1};
    for (int i = 0; i < 6; i++) {
        ck_assert(m.is_swa[i] == swa[i] && m.is_moe[i] == moe[i]);
        ck_assert_ptr_eq(mq_model_attn(&m, i), swa[i] ? &m.swa : &m.full);
    }
    ck_assert_int_eq(m.warnings.n_bytes, 0);
    mq_model_release(&m);
}
END_TEST

START_TEST(fp8_and_mxfp4_releases_say_so)
{
    mq_model m;
    mq_err err;
    mq_assert_ok(mq_model_load(&m, mq_test_path(FP8), &err), &err);
    ck_assert(m.fused_qkv && m.fp8 && !m.mxfp4);
    mq_model_release(&m);
    mq_assert_ok(mq_model_load(&m, mq_test_path(MX), &err), &err);
    ck_assert(m.fused_qkv && m.fp8 && m.mxfp4);
    ck_assert_int_eq(m.warnings.n_bytes, 0);
    mq_model_release(&m);
}
END_TEST

typedef struct edit {
    const char *file, *find, *put;
    mq_status status;
    const char *fragment;
} edit;

#define U MQ_E_UNSUPPORTED
#define F MQ_E_FORMAT
#define S MQ_E_SHAPE
static const edit REFUSED[] = {
    /* known keys with values we do not compute */
    {NANO, "\"silu\"", "\"gelu\"", U, "hidden_act: 'gelu' is not supported, only 'silu'"},
    {NANO, "\"sigmoid\"", "\"softmax\"", U, "scoring_func: 'softmax'"},
    {NANO, "\"noaux_tc\"", "\"greedy\"", U, "topk_method: 'greedy'"},
    {NANO, "\"n_group\": 1", "\"n_group\": 8", U, "n_group: 8 is not supported, only 1"},
    {NANO, "\"topk_group\": 1", "\"topk_group\": 4", U, "topk_group: 4"},
    {NANO, "\"n_shared_experts\": null", "\"n_shared_experts\": 1", U, "n_shared_experts: 1"},
    {NANO, "\"attention_bias\": false", "\"attention_bias\": true", U, "attention_bias: true"},
    {NANO, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", U, "tie_word_embeddings: true"},
    {NANO, "\"attention_bias\": false", "\"mlp_bias\": true", U, "mlp_bias: true"},
    {NANO, "\"attention_bias\": false", "\"use_qk_norm\": true", U, "use_qk_norm: true"},
    {NANO, "\"attention_bias\": false", "\"swiglu_limit\": 7.0", U, "swiglu_limit: found number"},
    {NANO, "\"attention_bias\": false", "\"final_logit_softcapping\": 30", U, "final_logit_softcapping"},
    {NANO, "\"attention_bias\": false", "\"use_sliding_window\": false", U, "use_sliding_window: false"},
    {NANO, "\"attention_bias\": false", "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}", U,
     "rope_scaling: type: 'yarn' is not supported, only 'default'"},
    {NANO, "\"attention_bias\": false", "\"rope_scaling\": {\"rope_type\": \"linear\"}", U, "rope_type: 'linear'"},
    {NANO, "\"attention_bias\": false",
     "\"rope_parameters\": {\"sliding_attention\": {\"rope_type\": \"dynamic\"}}", U,
     "rope_parameters: sliding_attention: rope_type: 'dynamic'"},
    {NANO, "\"partial_rotary_factor\": 0.334", "\"partial_rotary_factor\": 0.36", U, "17 rotary dims of 48"},
    {NANO, "\"partial_rotary_factor\": 0.334", "\"partial_rotary_factor\": 0.01", U, "0 rotary dims"},
    {NANO, "\"mimo_v2_flash\"", "\"qwen3\"", U, "model_type: 'qwen3'"},
    {NANO, "\"bfloat16\"", "\"float8\"", U, "torch_dtype: 'float8'"},
    {NANO, "\"attention_bias\": false", "\"attention_projection_layout\": \"global_q_k_v\"", U,
     "attention_projection_layout: 'global_q_k_v' is not supported, only 'split' and 'fused_qkv'"},
    {NANO, "\"attention_bias\": false", "\"conversion_metadata\": {\"qkv_layout\": \"global_q_k_v\"}", U,
     "conversion_metadata: qkv_layout"},
    {FP8, "\"fp8\"", "\"awq\"", U, "quantization_config: quant_method: 'awq'"},
    {FP8, "\"e4m3\"", "\"e5m2\"", U, "quantization_config: fmt: 'e5m2'"},
    {FP8, "\"dynamic\"", "\"static\"", U, "activation_scheme: 'static'"},
    {FP8, "   128,\n", "   64,\n", U, "weight_block_size: only [128, 128]"},
    {FP8, "   128,\n", "", U, "weight_block_size: only [128, 128]"},
    {MX, "\"mxfp4\"", "\"nvfp4\"", U, "store_dtype: 'nvfp4'"},
    {MX, "\"mxfp4_block_size\": 32", "\"mxfp4_block_size\": 16", U, "mxfp4_block_size: 16"},
    {NANO, "\"moe_layer_freq\": [\n  0,\n  1,\n  1,\n  1,\n  1,\n  1\n ]", "\"moe_layer_freq\": 2", U,
     "moe_layer_freq: 2"},
    {NANO, "\"hybrid_layer_pattern\": [\n  0,\n  1,\n  1,\n  0,\n  1,\n  0\n ]",
     "\"layer_types\": [\"full_attention\",\"x\",\"x\",\"x\",\"x\",\"x\"]", U, "layer_types[1]"},
    /* missing, of another type, out of range */
    {NANO, "\"hidden_size\": 128,", "", F, "config.json: hidden_size is missing"},
    {NANO, "\"hidden_size\": 128", "\"hidden_size\": \"128\"", F, "hidden_size: found string, expected an integer"},
    {NANO, "\"hidden_size\": 128", "\"hidden_size\": 128.5", F, "hidden_size: found number, expected an integer"},
    {NANO, "\"hidden_size\": 128", "\"hidden_size\": 0", F, "hidden_size: 0, expected 1 to 131072"},
    {NANO, "\"hidden_size\": 128", "\"hidden_size\": -128", F, "hidden_size: -128"},
    {NANO, "\"hidden_size\": 128", "\"hidden_size\": 4294967424", F, "hidden_size: 4294967424"},
    {NANO, "\"vocab_size\": 4096", "\"vocab_size\": 100000000", F, "vocab_size"},
    {NANO, "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 513", F, "num_hidden_layers: 513, expected 1 to 512"},
    {NANO, "\"n_routed_experts\": 16", "\"n_routed_experts\": 5000", F, "n_routed_experts: 5000"},
    {NANO, "\"n_routed_experts\": 16", "\"n_routed_experts\": null", F, "n_routed_experts is missing"},
    {NANO, "\"scoring_func\": \"sigmoid\",", "", F, "scoring_func is missing"},
    {NANO, "\"norm_topk_prob\": true", "\"norm_topk_prob\": 1", F, "norm_topk_prob: found number, expected true or false"},
    {NANO, "\"attention_bias\": false", "\"attention_bias\": \"no\"", F, "attention_bias: found string"},
    {NANO, "\"layernorm_epsilon\": 1e-05", "\"layernorm_epsilon\": 0", F, "layernorm_epsilon: 0, expected more than 0"},
    {NANO, "\"layernorm_epsilon\": 1e-05", "\"layernorm_epsilon\": \"1e-5\"", F, "layernorm_epsilon: found string"},
    {NANO, "\"rope_theta\": 5000000.0,", "", F, "config.json: rope_theta is missing"},
    {NANO, "\"swa_rope_theta\": 10000.0,", "", F, "swa_rope_theta is missing"},
    {NANO, "\"rope_theta\": 5000000.0", "\"rope_theta\": -1", F, "rope_theta: -1"},
    {NANO, "\"hybrid_layer_pattern\"", "\"no_pattern\"", F, "hybrid_layer_pattern is missing"},
    {NANO, "\"moe_layer_freq\"", "\"no_freq\"", F, "moe_layer_freq is missing"},
    {NANO, "[\n  0,\n  1,\n  1,\n  0", "[\n  0,\n  2,\n  1,\n  0", F, "hybrid_layer_pattern[1]: 2, expected 0 to 1"},
    {NANO, "[\n  0,\n  1,\n  1,\n  1", "[\n  0,\n  \"1\",\n  1,\n  1", F, "moe_layer_freq[1]: found string"},
    {NANO, "\"sliding_window\": 64,\n \"sliding_window_size\": 64,", "", F, "sliding_window is missing"},
    {NANO, "\"eos_token_id\": 4090", "\"eos_token_id\": 4096", F, "eos_token_id: 4096, expected 0 to 4095"},
    {NANO, "\"eos_token_id\": 4090", "\"eos_token_id\": [4090, -1]", F, "eos_token_id[1]: -1"},
    {NANO, "\"mimo_v2_flash\"", "7", F, "model_type: found number, expected a string"},
    {FP8, "\"quant_method\": \"fp8\",", "", F, "quant_method is missing"},
    {FP8, "\"weight_block_size\"", "\"block\"", F, "weight_block_size is missing"},
    {NANO, "\"attention_bias\": false", "\"quantization_config\": []", F, "quantization_config: found array"},
    {NANO, "\"attention_bias\": false", "\"rope_parameters\": 5", F, "rope_parameters: found number"},
    /* numbers that do not fit together */
    {NANO, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", S, "8 attention heads, expected a multiple of the 3"},
    {NANO, "\"swa_num_key_value_heads\": 4", "\"swa_num_key_value_heads\": 5", S, "8 sliding attention heads"},
    {FP8, "\"swa_num_key_value_heads\": 4", "\"swa_num_key_value_heads\": 1", S, "fused_qkv"},
    {NANO, "\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 17", S, "at most n_routed_experts = 16"},
    {NANO, "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7", S, "6 entries, expected num_hidden_layers = 7"},
    {NANO, "[\n  0,\n  1,\n  1,\n  1,", "[\n  0,\n  1,\n  1,", S, "moe_layer_freq: 5 entries"},
    {NANO, "\"sliding_window_size\": 64", "\"sliding_window_size\": 128", S, "sliding_window_size: 128, expected"},
    {NANO, "\"attention_bias\": false", "\"rope_parameters\": {\"rope_theta\": 10000.0}", S, "rope_theta: 10000, but 5e+06"},
    {NANO, "\"attention_bias\": false",
     "\"layer_types\": [\"full_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\","
     "\"sliding_attention\",\"full_attention\"]",
     S, "layer_types[1] differs from hybrid_layer_pattern"},
};

START_TEST(what_is_not_computed_is_refused_by_name)
{
    for (size_t i = 0; i < sizeof REFUSED / sizeof REFUSED[0]; i++) {
        const edit *e = &REFUSED[i];
        char *text = edited(e->file, e->find, e->put);
        mq_model m;
        mq_err err;
        mq_assert_fails(read_text(&m, text, &err), e->status, &err, e->fragment);
        ck_assert_msg(strncmp(err.text, "config.json: ", 13) == 0, "'%s' lacks the file", err.text);
        free(text);
    }
}
END_TEST

static void accepted(const char *file, const char *find, const char *put, mq_model *m)
{
    char *text = edited(file, find, put);
    mq_err err;
    mq_assert_ok(read_text(m, text, &err), &err);
    free(text);
}

START_TEST(other_spellings_of_the_same_geometry_are_read)
{
    mq_model m;
    /* new rope form alone, by layer type */
    accepted(NANO, "\"rope_theta\": 5000000.0,\n \"swa_rope_theta\": 10000.0,\n \"partial_rotary_factor\": 0.334",
             "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\", \"rope_theta\": 7e6, "
             "\"partial_rotary_factor\": 0.334}, \"sliding_attention\": {\"rope_theta\": 1e4, "
             "\"partial_rotary_factor\": 0.5}}",
             &m);
    ck_assert(m.full.rope_theta == 7e6 && m.swa.rope_theta == 1e4);
    ck_assert(m.full.rotary_dims == 16 && m.swa.rotary_dims == 24);
    mq_model_release(&m);
    /* both forms, agreeing */
    accepted(NANO, "\"attention_bias\": false",
             "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5000000.0}", &m);
    mq_model_release(&m);
    accepted(NANO, "\"attention_bias\": false", "\"rope_scaling\": {\"type\": \"default\"}", &m);
    mq_model_release(&m);
    /* one window key, the model type of the hub's V2-Flash file, an eos list */
    accepted(NANO, "\"sliding_window\": 64,", "", &m);
    ck_assert_int_eq(m.swa.window, 64);
    mq_model_release(&m);
    accepted(NANO, "\"mimo_v2_flash\"", "\"\"", &m);
    ck_assert_str_eq(m.model_type, "mimo_v2_flash");
    mq_model_release(&m);
    accepted(NANO, "\"eos_token_id\": 4090", "\"eos_token_id\": [4092, 4090, 4092]", &m);
    ck_assert(m.n_eos == 2 && m.eos[0] == 4092 && m.eos[1] == 4090);
    mq_model_release(&m);
    accepted(NANO, "\"moe_layer_freq\": [\n  0,\n  1,\n  1,\n  1,\n  1,\n  1\n ]",
             "\"moe_layer_freq\": 1, \"first_k_dense_replace\": 2", &m);
    ck_assert(!m.is_moe[0] && !m.is_moe[1] && m.is_moe[2] && m.is_moe[5]);
    mq_model_release(&m);
    accepted(NANO, "\"hybrid_layer_pattern\": [\n  0,\n  1,\n  1,\n  0,\n  1,\n  0\n ]",
             "\"layer_types\": [\"full_attention\",\"sliding_attention\",\"sliding_attention\",\"full_attention\","
             "\"sliding_attention\",\"full_attention\"]",
             &m);
    ck_assert(!m.is_swa[0] && m.is_swa[1] && !m.is_swa[5]);
    mq_model_release(&m);
    accepted(NANO, "\"add_full_attention_sink_bias\": false", "\"add_full_attention_sink_bias\": true", &m);
    ck_assert(m.full.has_sink);
    mq_model_release(&m);
    accepted(NANO, "\"attention_bias\": false", "\"vision_config\": {\"depth\": 32}, \"text_config\": {}", &m);
    ck_assert_int_eq(m.warnings.n_bytes, 0);
    mq_model_release(&m);
}
END_TEST

START_TEST(an_unknown_key_is_a_warning)
{
    mq_model m;
    accepted(NANO, "\"attention_bias\": false", "\"brand\\nnew\": 1", &m);
    ck_assert_str_eq(m.warnings.data, "config.json: unknown key 'brand\\x0anew' is ignored\n");
    mq_model_release(&m);
    accepted(FP8, "\"fmt\": \"e4m3\"", "\"fmt\": \"e4m3\", \"zeal\": 1", &m);
    ck_assert(strstr(m.warnings.data, "quantization_config: unknown key 'zeal'") != NULL);
    mq_model_release(&m);
}
END_TEST

static const char *write_file(const char *text)
{
    static char path[4200];
    const char *dir = mq_test_dir();
    mq_err err;
    mq_assert_ok(mq_file_save(dir, "x.json", text, (int64_t)strlen(text), &err), &err);
    snprintf(path, sizeof path, "%s/x.json", dir);
    return path;
}

START_TEST(generation_config_adds_ends_without_repeats)
{
    mq_model m;
    mq_err err;
    mq_assert_ok(mq_model_load(&m, mq_test_path(NANO), &err), &err);
    mq_assert_ok(mq_model_load_generation(&m, "/nonexistent/generation_config.json", &err), &err);
    ck_assert_int_eq(m.n_eos, 1);
    mq_assert_ok(mq_model_load_generation(&m, write_file("{\"eos_token_id\": [4092, 4090]}"), &err), &err);
    ck_assert(m.n_eos == 2 && m.eos[1] == 4092);
    mq_assert_fails(mq_model_load_generation(&m, write_file("{\"eos_token_id\": \"x\"}"), &err), MQ_E_FORMAT, &err,
                    "eos_token_id");
    mq_assert_fails(mq_model_load_generation(&m, write_file("[]"), &err), MQ_E_FORMAT, &err, "expected an object");
    mq_assert_fails(
        mq_model_load_generation(
            &m, write_file("{\"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}"), &err),
        MQ_E_UNSUPPORTED, &err, "more than 16 ids");
    mq_model_release(&m);
}
END_TEST

static const char DRAFT[] = "tests/data/nano/dflash/config.json";

START_TEST(the_drafter_has_its_geometry)
{
    mq_model m;
    mq_draft_model d;
    mq_err err;
    mq_assert_ok(mq_model_load(&m, mq_test_path(NANO), &err), &err);
    mq_assert_ok(mq_draft_model_load(&d, mq_test_path(DRAFT), &m, &err), &err);
    ck_assert(d.n_layers == 3 && d.hidden == 128 && d.intermediate == 256 && d.vocab == 4096);
    ck_assert(d.attn.n_heads == 8 && d.attn.n_kv_heads == 2 && d.attn.head_dim == 32 && d.attn.v_head_dim == 32);
    ck_assert(d.attn.rotary_dims == 16 && d.attn.rope_theta == 1e4 && d.attn.window == 256 && d.attn.has_sink);
    ck_assert(d.norm_eps == 1e-5 && d.value_scale == 0.612 && d.block_size == 8 && d.mask_token_id == 4093);
    ck_assert(d.n_taps == 3 && d.taps[0] == 0 && d.taps[1] == 3 && d.taps[2] == 5);
    ck_assert_int_eq(d.warnings.n_bytes, 0);
    mq_draft_model_release(&d);
    /* no target_layer_ids: round(1 + i (6 - 4) / 2) */
    char *text = edited(DRAFT, "\"target_layer_ids\": [\n   0,\n   3,\n   5\n  ],", "");
    mq_assert_ok(mq_draft_model_load(&d, write_file(text), &m, &err), &err);
    ck_assert(d.n_taps == 3 && d.taps[0] == 1 && d.taps[1] == 2 && d.taps[2] == 3);
    mq_draft_model_release(&d);
    free(text);
    mq_model_release(&m);
}
END_TEST

static const edit DRAFT_REFUSED[] = {
    {DRAFT, "\"hidden_size\": 128", "\"hidden_size\": 256", S, "expected the target's hidden_size = 128"},
    {DRAFT, "\"num_target_layers\": 6", "\"num_target_layers\": 70", S, "expected the target's num_hidden_layers = 6"},
    {DRAFT, "\"mask_token_id\": 4093", "\"mask_token_id\": 4096", F, "dflash_config: mask_token_id: 4096"},
    {DRAFT, "\"mask_token_id\": 4093,", "", F, "mask_token_id is missing"},
    {DRAFT, "   5\n", "   6\n", F, "target_layer_ids[2]: 6, expected 0 to 5"},
    {DRAFT, "\"swa_window_size\": 256", "\"swa_window_size\": 128", S, "swa_window_size: 128, expected sliding_window = 256"},
    {DRAFT, "\"block_size\": 8,\n  \"use_swa\"", "\"block_size\": 16,\n  \"use_swa\"", S, "block_size: 16, expected block_size = 8"},
    {DRAFT, "\"attention_bias\": false", "\"is_causal\": true", U, "is_causal: true"},
    {DRAFT, "\"attention_bias\": false", "\"layer_types\": [\"sliding_attention\",\"full_attention\",\"full_attention\"]",
     U, "layer_types: only 'sliding_attention'"},
    {DRAFT, "\"attention_bias\": false", "\"attention_bias\": true", U, "attention_bias: true"},
    {DRAFT, "\"attention_bias\": false", "\"add_swa_attention_sink_bias\": false", S,
     "dflash_config: attention_sink_bias is true, add_swa_attention_sink_bias false"},
    {DRAFT, "\"attention_bias\": false", "\"target_hidden_size\": 256", S,
     "target_hidden_size: 256, expected the target's hidden_size = 128"},
    {DRAFT, "\"qwen3\"", "\"llama\"", U, "model_type: 'llama'"},
    {DRAFT, "\"dflash_config\"", "\"dspark_config\"", F, "dflash_config is missing"},
    {DRAFT, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", S, "8 attention heads"},
    {DRAFT, "\"rope_theta\": 10000.0,", "", F, "rope_theta is missing"},
};

START_TEST(a_drafter_that_does_not_fit_is_refused)
{
    mq_model m;
    mq_draft_model d;
    mq_err err;
    mq_assert_ok(mq_model_load(&m, mq_test_path(NANO), &err), &err);
    for (size_t i = 0; i < sizeof DRAFT_REFUSED / sizeof DRAFT_REFUSED[0]; i++) {
        const edit *e = &DRAFT_REFUSED[i];
        char *text = edited(e->file, e->find, e->put);
        mq_assert_fails(mq_draft_model_load(&d, write_file(text), &m, &err), e->status, &err, e->fragment);
        free(text);
    }
    mq_model_release(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model");
    TCase *t = tcase_create("config");
    tcase_add_test(t, nano_has_its_geometry);
    tcase_add_test(t, fp8_and_mxfp4_releases_say_so);
    tcase_add_test(t, what_is_not_computed_is_refused_by_name);
    tcase_add_test(t, other_spellings_of_the_same_geometry_are_read);
    tcase_add_test(t, an_unknown_key_is_a_warning);
    tcase_add_test(t, generation_config_adds_ends_without_repeats);
    tcase_add_test(t, the_drafter_has_its_geometry);
    tcase_add_test(t, a_drafter_that_does_not_fit_is_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
