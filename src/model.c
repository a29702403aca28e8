/* config.json of a MiMo-V2 model to its geometry.
 *
 * Three kinds of keys: those we compute with, those that must have the one value we compute (refused by name
 * otherwise), and those that say nothing about the arithmetic (KNOWN).  Anything else is a warning.  Bounds are far
 * above the family's values and keep every product of two dimensions inside 63 bits. */
#include "src/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/config.h"
#include "src/file.h"
#include "src/rope_config.h"

enum {
    MAX_HIDDEN = 1 << 17,
    MAX_VOCAB = 1 << 22,
    MAX_HEADS = 1 << 10,
    MAX_HEAD_DIM = 1 << 12,
    MAX_WIDTH = 1 << 20,
    MAX_POSITIONS = 1 << 30
};

/* Every key we read, check, or know to leave the arithmetic alone. */
static const char *const KNOWN[] = {
    /* read */
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads",
    "swa_num_attention_heads", "num_key_value_heads", "swa_num_key_value_heads", "head_dim", "swa_head_dim",
    "v_head_dim", "swa_v_head_dim", "rope_theta", "swa_rope_theta", "partial_rotary_factor", "swa_partial_rotary_factor", "rope_parameters",
    "rope_scaling", "sliding_window", "sliding_window_size", "attention_value_scale", "add_swa_attention_sink_bias",
    "add_full_attention_sink_bias", "intermediate_size", "n_routed_experts", "num_experts_per_tok",
    "moe_intermediate_size", "moe_layer_freq", "hybrid_layer_pattern", "layer_types", "first_k_dense_replace",
    "norm_topk_prob", "routed_scaling_factor", "layernorm_epsilon", "max_position_embeddings", "eos_token_id",
    "attention_projection_layout", "quantization_config", "torch_dtype", "dtype", "conversion_metadata",
    /* one value only */
    "hidden_act", "scoring_func", "topk_method", "n_group", "topk_group", "n_shared_experts", "attention_bias",
    "mlp_bias", "tie_word_embeddings", "use_qk_norm", "swiglu_limit", "attn_logit_softcapping",
    "final_logit_softcapping", "use_sliding_window",
    /* no part in the arithmetic */
    "attention_chunk_size", "attention_dropout", "auto_map", "bos_token_id", "pad_token_id", "initializer_range",
    "transformers_version", "use_cache", "moe_router_dtype", "num_nextn_predict_layers", "hybrid_block_size",
    "pretraining_tp", "output_router_logits", "router_aux_loss_coef", "_name_or_path", "id2label", "label2id",
    "return_dict", "tokenizer_class", "dflash_config",
    /* other modalities of V2.5: their tensors are skipped */
    "text_config", "vision_config", "audio_config", "speech_config", "processor_config", "image_token_id",
    "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id", "video_start_token_id",
    "video_end_token_id", "audio_start_token_id", "audio_end_token_id", "vision_model_type", NULL};

static const char *const KNOWN_QUANTIZATION[] = {
    "quant_method", "fmt", "activation_scheme", "weight_block_size", "ignored_layers", "modules_to_not_convert",
    "packed_modules_mapping", "store_dtype", "mxfp4_block_size", "scale_fmt", NULL};

const mq_attn_geometry *mq_model_attn(const mq_model *m, int layer)
{
    return m->is_swa[layer] ? &m->swa : &m->full;
}

static mq_status read_type(mq_model *m, const mq_config *c)
{
    const char *type;
    const mq_json_node *names;
    MQ_TRY(mq_config_string(c, "model_type", &type));
    MQ_TRY(mq_config_array(c, "architectures", &names));
    const char *arch = names && mq_json_first(names) ? mq_json_string(mq_json_first(names)) : NULL;
    if (!type || !*type) /* the hub's V2-Flash file leaves it empty */
        type = arch && strcmp(arch, "MiMoV2FlashForCausalLM") == 0 ? "mimo_v2_flash"
               : arch && strncmp(arch, "MiMoV2", 6) == 0           ? "mimo_v2"
                                                                   : NULL;
    if (!type)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: model_type is missing", c->where);
    if (strcmp(type, "mimo_v2_flash") != 0 && strcmp(type, "mimo_v2") != 0)
        return mq_fail(c->err, MQ_E_UNSUPPORTED,
                       "%s: model_type: '%.80s' is not supported, only 'mimo_v2_flash' and 'mimo_v2'", c->where, type);
    snprintf(m->model_type, sizeof m->model_type, "%s", type);

    for (int i = 0; i < 2; i++) {
        const char *key = i ? "dtype" : "torch_dtype", *dtype;
        MQ_TRY(mq_config_string(c, key, &dtype));
        if (dtype && strcmp(dtype, "bfloat16") != 0 && strcmp(dtype, "float16") != 0 && strcmp(dtype, "float32") != 0)
            return mq_fail(c->err, MQ_E_UNSUPPORTED,
                           "%s: %s: '%.80s' is not supported, only 'bfloat16', 'float16' and 'float32'", c->where,
                           key, dtype);
    }
    return MQ_OK;
}

/* Values that change the arithmetic and have one form we compute. */
static mq_status check_fixed(const mq_config *c)
{
    MQ_TRY(mq_config_only_string(c, "hidden_act", "silu"));
    MQ_TRY(mq_config_only_string(c, "scoring_func", "sigmoid"));
    MQ_TRY(mq_config_only_string(c, "topk_method", "noaux_tc"));
    MQ_TRY(mq_config_only_int(c, "n_group", 1));
    MQ_TRY(mq_config_only_int(c, "topk_group", 1));
    MQ_TRY(mq_config_only_int(c, "n_shared_experts", 0));
    MQ_TRY(mq_config_only_bool(c, "attention_bias", false));
    MQ_TRY(mq_config_only_bool(c, "mlp_bias", false));
    MQ_TRY(mq_config_only_bool(c, "tie_word_embeddings", false));
    MQ_TRY(mq_config_only_bool(c, "use_qk_norm", false));
    MQ_TRY(mq_config_only_bool(c, "use_sliding_window", true));
    MQ_TRY(mq_config_only_null(c, "swiglu_limit"));
    MQ_TRY(mq_config_only_null(c, "attn_logit_softcapping"));
    return mq_config_only_null(c, "final_logit_softcapping");
}

/* The layer kinds from hybrid_layer_pattern (0 full, 1 sliding) or, where that is absent, layer_types. */
static mq_status read_pattern(mq_model *m, const mq_config *c)
{
    const mq_json_node *pattern, *types;
    MQ_TRY(mq_config_array(c, "hybrid_layer_pattern", &pattern));
    MQ_TRY(mq_config_array(c, "layer_types", &types));
    const char *key = pattern ? "hybrid_layer_pattern" : "layer_types";
    if (!pattern && !types)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: hybrid_layer_pattern is missing", c->where);
    for (int k = 0; k < 2; k++) {
        const mq_json_node *list = k ? types : pattern;
        if (list && mq_json_count(list) != m->n_layers)
            return mq_fail(c->err, MQ_E_SHAPE, "%s: %s: %lld entries, expected num_hidden_layers = %d", c->where,
                           k ? "layer_types" : "hybrid_layer_pattern", (long long)mq_json_count(list), m->n_layers);
    }
    const mq_json_node *n = mq_json_first(pattern ? pattern : types), *t = types ? mq_json_first(types) : NULL;
    for (int i = 0; i < m->n_layers; i++, n = mq_json_next(n), t = t ? mq_json_next(t) : NULL) {
        int v = 0, by_type = 0;
        const char *type = t ? mq_json_string(t) : NULL;
        if (t && (!type || (strcmp(type, "full_attention") != 0 && strcmp(type, "sliding_attention") != 0)))
            return mq_fail(c->err, MQ_E_UNSUPPORTED,
                           "%s: layer_types[%d]: not supported, only 'full_attention' and 'sliding_attention'",
                           c->where, i);
        by_type = type && strcmp(type, "sliding_attention") == 0;
        v = by_type;
        if (pattern)
            MQ_TRY(mq_config_element(c, key, i, n, 0, 1, &v));
        if (type && v != by_type)
            return mq_fail(c->err, MQ_E_SHAPE, "%s: layer_types[%d] differs from hybrid_layer_pattern", c->where, i);
        m->is_swa[i] = v == 1;
    }
    return MQ_OK;
}

/* moe_layer_freq: one 0 or 1 per layer, or a single 0 (all dense) or 1 (MoE from layer first_k_dense_replace on). */
static mq_status read_moe_layers(mq_model *m, const mq_config *c, bool *any)
{
    const mq_json_node *n = mq_config_find(c, "moe_layer_freq");
    int first, v;
    *any = false;
    MQ_TRY(mq_config_int_or(c, "first_k_dense_replace", 0, MQ_MAX_LAYERS, 0, &first));
    if (!n)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: moe_layer_freq is missing", c->where);
    bool is_list = mq_json_type_of(n) == MQ_JSON_ARRAY;
    if (is_list && mq_json_count(n) != m->n_layers)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: moe_layer_freq: %lld entries, expected num_hidden_layers = %d",
                       c->where, (long long)mq_json_count(n), m->n_layers);
    if (!is_list) {
        MQ_TRY(mq_config_int(c, "moe_layer_freq", 0, INT32_MAX, &v));
        if (v > 1)
            return mq_fail(c->err, MQ_E_UNSUPPORTED,
                           "%s: moe_layer_freq: %d is not supported, only 0, 1 or a list of them", c->where, v);
        for (int i = 0; i < m->n_layers; i++)
            m->is_moe[i] = v == 1 && i >= first;
    } else {
        const mq_json_node *e = mq_json_first(n);
        for (int i = 0; i < m->n_layers; i++, e = mq_json_next(e)) {
            MQ_TRY(mq_config_element(c, "moe_layer_freq", i, e, 0, 1, &v));
            if (v && i < first)
                return mq_fail(c->err, MQ_E_SHAPE, "%s: moe_layer_freq[%d] is 1, first_k_dense_replace %d", c->where,
                               i, first);
            m->is_moe[i] = v == 1;
        }
    }
    for (int i = 0; i < m->n_layers; i++)
        *any |= m->is_moe[i];
    return MQ_OK;
}

static mq_status read_moe(mq_model *m, const mq_config *c)
{
    bool any;
    const char *scoring;
    MQ_TRY(read_moe_layers(m, c, &any));
    m->routed_scaling = 1.0;
    if (!any)
        return MQ_OK;
    MQ_TRY(mq_config_string(c, "scoring_func", &scoring));
    if (!scoring)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: scoring_func is missing", c->where);
    MQ_TRY(mq_config_int(c, "n_routed_experts", 1, MQ_MAX_EXPERTS, &m->n_experts));
    MQ_TRY(mq_config_int(c, "num_experts_per_tok", 1, MQ_MAX_TOPK, &m->n_experts_per_tok));
    MQ_TRY(mq_config_int(c, "moe_intermediate_size", 1, MAX_WIDTH, &m->moe_intermediate));
    MQ_TRY(mq_config_bool(c, "norm_topk_prob", &m->norm_topk_prob));
    MQ_TRY(mq_config_double_or(c, "routed_scaling_factor", 0.0, 1e6, 1.0, &m->routed_scaling));
    if (m->n_experts_per_tok > m->n_experts)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: num_experts_per_tok: %d, expected at most n_routed_experts = %d",
                       c->where, m->n_experts_per_tok, m->n_experts);
    return MQ_OK;
}

/* sliding_window and sliding_window_size: one or both; they must agree. */
static mq_status read_window(mq_model *m, const mq_config *c)
{
    int size;
    MQ_TRY(mq_config_int_or(c, "sliding_window", 1, MAX_POSITIONS, 0, &m->swa.window));
    MQ_TRY(mq_config_int_or(c, "sliding_window_size", 1, MAX_POSITIONS, m->swa.window, &size));
    if (m->swa.window == 0)
        m->swa.window = size;
    if (size != m->swa.window)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: sliding_window_size: %d, expected sliding_window = %d", c->where, size,
                       m->swa.window);
    for (int i = 0; i < m->n_layers && m->swa.window == 0; i++)
        if (m->is_swa[i])
            return mq_fail(c->err, MQ_E_FORMAT, "%s: sliding_window is missing", c->where);
    return MQ_OK;
}

static mq_status check_heads(const mq_model *m, const mq_attn_geometry *a, const char *kind, const mq_config *c)
{
    if (a->n_heads % a->n_kv_heads != 0)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: %d %sattention heads, expected a multiple of the %d key-value heads",
                       c->where, a->n_heads, kind, a->n_kv_heads);
    if (m->fused_qkv && (a->n_heads % m->full.n_kv_heads != 0 || a->n_kv_heads % m->full.n_kv_heads != 0))
        return mq_fail(c->err, MQ_E_SHAPE,
                       "%s: fused_qkv with %d %sattention and %d key-value heads, expected multiples of the %d chunks",
                       c->where, a->n_heads, kind, a->n_kv_heads, m->full.n_kv_heads);
    return MQ_OK;
}

static mq_status read_attention(mq_model *m, const mq_config *c)
{
    mq_attn_geometry *f = &m->full, *s = &m->swa;
    MQ_TRY(mq_config_int(c, "num_attention_heads", 1, MAX_HEADS, &f->n_heads));
    MQ_TRY(mq_config_int(c, "num_key_value_heads", 1, MAX_HEADS, &f->n_kv_heads));
    MQ_TRY(mq_config_int(c, "head_dim", 1, MAX_HEAD_DIM, &f->head_dim));
    MQ_TRY(mq_config_int(c, "v_head_dim", 1, MAX_HEAD_DIM, &f->v_head_dim));
    MQ_TRY(mq_config_int_or(c, "swa_num_attention_heads", 1, MAX_HEADS, f->n_heads, &s->n_heads));
    MQ_TRY(mq_config_int_or(c, "swa_num_key_value_heads", 1, MAX_HEADS, f->n_kv_heads, &s->n_kv_heads));
    MQ_TRY(mq_config_int_or(c, "swa_head_dim", 1, MAX_HEAD_DIM, f->head_dim, &s->head_dim));
    MQ_TRY(mq_config_int_or(c, "swa_v_head_dim", 1, MAX_HEAD_DIM, f->v_head_dim, &s->v_head_dim));
    MQ_TRY(mq_config_bool_or(c, "add_full_attention_sink_bias", false, &f->has_sink));
    MQ_TRY(mq_config_bool_or(c, "add_swa_attention_sink_bias", false, &s->has_sink));
    MQ_TRY(mq_config_double_or(c, "attention_value_scale", 0.0, 1e6, 1.0, &m->value_scale));

    const char *layout;
    MQ_TRY(mq_config_string(c, "attention_projection_layout", &layout));
    m->fused_qkv = layout && strcmp(layout, "fused_qkv") == 0;
    if (layout && !m->fused_qkv && strcmp(layout, "split") != 0)
        return mq_fail(c->err, MQ_E_UNSUPPORTED,
                       "%s: attention_projection_layout: '%.80s' is not supported, only 'split' and 'fused_qkv'",
                       c->where, layout);
    MQ_TRY(check_heads(m, f, "", c));
    MQ_TRY(check_heads(m, s, "sliding ", c));
    MQ_TRY(read_window(m, c));
    return mq_rope_config_read(f, s, c);
}

/* conversion_metadata of converted copies may say that q, k and v were put in another order. */
static mq_status check_conversion(const mq_config *c)
{
    const mq_json_node *n;
    MQ_TRY(mq_config_object(c, "conversion_metadata", &n));
    if (!n)
        return MQ_OK;
    char where[256];
    snprintf(where, sizeof where, "%.200s: conversion_metadata", c->where);
    mq_config inner = {n, where, c->err};
    return mq_config_only_null(&inner, "qkv_layout");
}

static mq_status read_blocks(const mq_config *q)
{
    const mq_json_node *list;
    MQ_TRY(mq_config_array(q, "weight_block_size", &list));
    if (!list)
        return mq_fail(q->err, MQ_E_FORMAT, "%s: weight_block_size is missing", q->where);
    int v[2] = {0, 0};
    int64_t i = 0;
    for (const mq_json_node *n = mq_json_first(list); n && i < 2; n = mq_json_next(n), i++)
        MQ_TRY(mq_config_element(q, "weight_block_size", i, n, 1, INT32_MAX, &v[i]));
    if (mq_json_count(list) != 2 || v[0] != 128 || v[1] != 128)
        return mq_fail(q->err, MQ_E_UNSUPPORTED, "%s: weight_block_size: only [128, 128] is supported", q->where);
    return MQ_OK;
}

static mq_status read_quantization(mq_model *m, const mq_config *c)
{
    const mq_json_node *n;
    MQ_TRY(mq_config_object(c, "quantization_config", &n));
    if (!n)
        return MQ_OK;
    char where[256];
    snprintf(where, sizeof where, "%.200s: quantization_config", c->where);
    mq_config q = {n, where, c->err};
    const char *method, *store;
    MQ_TRY(mq_config_string(&q, "quant_method", &method));
    if (!method)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: quant_method is missing", where);
    MQ_TRY(mq_config_only_string(&q, "quant_method", "fp8"));
    MQ_TRY(mq_config_only_string(&q, "fmt", "e4m3"));
    MQ_TRY(mq_config_only_string(&q, "activation_scheme", "dynamic"));
    MQ_TRY(read_blocks(&q));
    MQ_TRY(mq_config_only_string(&q, "store_dtype", "mxfp4"));
    MQ_TRY(mq_config_only_int(&q, "mxfp4_block_size", 32));
    MQ_TRY(mq_config_string(&q, "store_dtype", &store));
    m->fp8 = true;
    m->mxfp4 = store != NULL;
    mq_config_warn_unknown(&q, KNOWN_QUANTIZATION, &m->warnings);
    return MQ_OK;
}

static mq_status add_eos(mq_model *m, int id, const mq_config *c)
{
    for (int i = 0; i < m->n_eos; i++)
        if (m->eos[i] == id)
            return MQ_OK;
    if (m->n_eos == MQ_MAX_EOS)
        return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: eos_token_id: more than %d ids", c->where, MQ_MAX_EOS);
    m->eos[m->n_eos++] = id;
    return MQ_OK;
}

static mq_status read_eos(mq_model *m, const mq_config *c)
{
    const mq_json_node *n = mq_config_find(c, "eos_token_id");
    int id;
    if (!n)
        return MQ_OK;
    if (mq_json_type_of(n) != MQ_JSON_ARRAY) {
        MQ_TRY(mq_config_int(c, "eos_token_id", 0, m->vocab - 1, &id));
        return add_eos(m, id, c);
    }
    int64_t i = 0;
    for (const mq_json_node *e = mq_json_first(n); e; e = mq_json_next(e), i++) {
        MQ_TRY(mq_config_element(c, "eos_token_id", i, e, 0, m->vocab - 1, &id));
        MQ_TRY(add_eos(m, id, c));
    }
    return MQ_OK;
}

static mq_status read_all(mq_model *m, const mq_config *c)
{
    MQ_TRY(read_type(m, c));
    MQ_TRY(check_fixed(c));
    MQ_TRY(mq_config_int(c, "num_hidden_layers", 1, MQ_MAX_LAYERS, &m->n_layers));
    MQ_TRY(mq_config_int(c, "hidden_size", 1, MAX_HIDDEN, &m->hidden));
    MQ_TRY(mq_config_int(c, "vocab_size", 1, MAX_VOCAB, &m->vocab));
    MQ_TRY(mq_config_int(c, "intermediate_size", 1, MAX_WIDTH, &m->intermediate));
    MQ_TRY(mq_config_int(c, "max_position_embeddings", 1, MAX_POSITIONS, &m->max_positions));
    MQ_TRY(mq_config_double(c, "layernorm_epsilon", 0.0, 1.0, &m->norm_eps));
    MQ_TRY(read_pattern(m, c));
    MQ_TRY(read_attention(m, c));
    MQ_TRY(read_moe(m, c));
    MQ_TRY(check_conversion(c));
    MQ_TRY(read_quantization(m, c));
    MQ_TRY(read_eos(m, c));
    mq_config_warn_unknown(c, KNOWN, &m->warnings);
    return mq_buf_status(&m->warnings, c->err);
}

mq_status mq_model_read(mq_model *out, const mq_json *config, const char *name, mq_err *err)
{
    memset(out, 0, sizeof *out);
    out->warnings = mq_buf_empty();
    mq_config c = {mq_json_root(config), name, err};
    if (mq_json_type_of(c.obj) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "%s: found %s, expected an object", name,
                       mq_json_type_name(mq_json_type_of(c.obj)));
    mq_status st = read_all(out, &c);
    if (st != MQ_OK)
        mq_model_release(out);
    return st;
}

mq_status mq_model_load(mq_model *out, const char *path, mq_err *err)
{
    mq_json *doc;
    memset(out, 0, sizeof *out);
    MQ_TRY(mq_json_load(&doc, path, 16 << 20, 64, err));
    mq_status st = mq_model_read(out, doc, path, err);
    mq_json_free(doc);
    return st;
}

void mq_model_release(mq_model *m)
{
    mq_buf_release(&m->warnings);
    memset(m, 0, sizeof *m);
}

mq_status mq_model_load_generation(mq_model *m, const char *path, mq_err *err)
{
    mq_json *doc;
    if (!mq_path_exists(path))
        return MQ_OK;
    MQ_TRY(mq_json_load(&doc, path, 16 << 20, 64, err));
    mq_config c = {mq_json_root(doc), path, err};
    mq_status st = mq_json_type_of(c.obj) == MQ_JSON_OBJECT
                       ? read_eos(m, &c)
                       : mq_fail(err, MQ_E_FORMAT, "%s: expected an object", path);
    mq_json_free(doc);
    return st;
}
