/* dflash/config.json to the drafter's geometry, checked against its target.
 *
 * The file has Qwen3's keys, with what makes it a drafter in dflash_config; some values stand in both places and must
 * agree.  vocab_size is cosmetic (embedding and head are the target's), backbone_rotary_base informational. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "src/config.h"
#include "src/model.h"
#include "src/rope_config.h"

enum { MAX_DRAFT_LAYERS = 64, MAX_BLOCK = 64, MAX_WINDOW = 1 << 30 };

static const char *const KNOWN[] = {
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "v_head_dim", "partial_rotary_factor", "rope_theta", "rope_parameters",
    "rope_scaling", "rms_norm_eps", "block_size", "sliding_window", "num_target_layers", "vocab_size", "dflash_config",
    "layer_types", "is_causal", "use_sliding_window", "target_hidden_size", "add_swa_attention_sink_bias",
    "attention_bias", "hidden_act", "tie_word_embeddings", "max_position_embeddings", "max_window_layers",
    "torch_dtype", "dtype", "attention_dropout", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "transformers_version", "use_cache", NULL};

static const char *const KNOWN_DFLASH[] = {
    "target_layer_ids", "mask_token_id", "block_size", "use_swa", "swa_window_size", "attention_sink_bias",
    "attention_value_scale", "backbone_rotary_base", "num_anchors", "loss_decay_gamma", NULL};

static mq_status differ(const mq_config *c, const char *key, int64_t found, const char *what, int64_t expected)
{
    return mq_fail(c->err, MQ_E_SHAPE, "%s: %s: %lld, expected %s = %lld", c->where, key, (long long)found, what,
                   (long long)expected);
}

/* Key in c and alias in f: 0 where neither is there. */
static mq_status read_twice(const mq_config *c, const char *key, const mq_config *f, const char *alias, int hi, int *out)
{
    int second;
    MQ_TRY(mq_config_int_or(c, key, 1, hi, 0, out));
    MQ_TRY(mq_config_int_or(f, alias, 1, hi, *out, &second));
    if (*out == 0)
        *out = second;
    return second == *out ? MQ_OK : differ(f, alias, second, key, *out);
}

static mq_status read_window(mq_draft_model *d, const mq_config *c, const mq_config *f)
{
    bool use_swa, use_sliding;
    const mq_json_node *types;
    MQ_TRY(mq_config_only_bool(c, "is_causal", false));
    MQ_TRY(mq_config_bool_or(f, "use_swa", true, &use_swa));
    MQ_TRY(mq_config_bool_or(c, "use_sliding_window", use_swa, &use_sliding));
    MQ_TRY(mq_config_array(c, "layer_types", &types));
    if (use_swa && !use_sliding)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: use_sliding_window is false, dflash_config.use_swa true", c->where);
    if (types && mq_json_count(types) != d->n_layers)
        return differ(c, "layer_types", mq_json_count(types), "num_hidden_layers", d->n_layers);
    const char *expected = use_sliding ? "sliding_attention" : "full_attention";
    for (const mq_json_node *n = types ? mq_json_first(types) : NULL; n; n = mq_json_next(n))
        if (!mq_json_string(n) || strcmp(mq_json_string(n), expected) != 0)
            return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: layer_types: only '%s' for every layer is supported",
                           c->where, expected);
    MQ_TRY(read_twice(c, "sliding_window", f, "swa_window_size", MAX_WINDOW, &d->attn.window));
    if (!use_sliding)
        d->attn.window = 0;
    else if (d->attn.window == 0)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: sliding_window is missing", c->where);
    return MQ_OK;
}

static mq_status read_attention(mq_draft_model *d, const mq_config *c, const mq_config *f)
{
    mq_attn_geometry *a = &d->attn;
    bool by_swa;
    MQ_TRY(mq_config_int(c, "num_attention_heads", 1, 1 << 10, &a->n_heads));
    MQ_TRY(mq_config_int(c, "num_key_value_heads", 1, 1 << 10, &a->n_kv_heads));
    MQ_TRY(mq_config_int(c, "head_dim", 1, 1 << 12, &a->head_dim));
    MQ_TRY(mq_config_int_or(c, "v_head_dim", 1, 1 << 12, a->head_dim, &a->v_head_dim));
    if (a->n_heads % a->n_kv_heads != 0)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: %d attention heads, expected a multiple of the %d key-value heads",
                       c->where, a->n_heads, a->n_kv_heads);
    MQ_TRY(mq_config_bool_or(c, "add_swa_attention_sink_bias", false, &by_swa));
    MQ_TRY(mq_config_bool_or(f, "attention_sink_bias", by_swa, &a->has_sink));
    if (mq_config_find(c, "add_swa_attention_sink_bias") && a->has_sink != by_swa)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: attention_sink_bias is %s, add_swa_attention_sink_bias %s", f->where,
                       a->has_sink ? "true" : "false", by_swa ? "true" : "false");
    MQ_TRY(mq_config_double_or(f, "attention_value_scale", 0.0, 1e6, 1.0, &d->value_scale));
    MQ_TRY(read_window(d, c, f));
    return mq_rope_config_read(a, NULL, c);
}

/* Absent: layer N / 2 for one draft layer, else round(1 + i (N - 4) / (d - 1)), halves to even. */
static mq_status read_taps(mq_draft_model *d, const mq_model *target, const mq_config *c, const mq_config *f)
{
    const mq_json_node *list;
    MQ_TRY(mq_config_array(f, "target_layer_ids", &list));
    int64_t n_taps = list ? mq_json_count(list) : d->n_layers;
    if (n_taps < 1 || n_taps > MQ_MAX_TAPS)
        return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: target_layer_ids: %lld entries, only 1 to %d are supported",
                       f->where, (long long)n_taps, MQ_MAX_TAPS);
    d->n_taps = (int)n_taps;
    const mq_json_node *n = list ? mq_json_first(list) : NULL;
    for (int i = 0; i < d->n_taps; i++, n = n ? mq_json_next(n) : NULL) {
        if (n)
            MQ_TRY(mq_config_element(f, "target_layer_ids", i, n, 0, target->n_layers - 1, &d->taps[i]));
        else if (d->n_taps == 1)
            d->taps[i] = target->n_layers / 2;
        else
            d->taps[i] = (int)nearbyint(1.0 + (double)i * (target->n_layers - 4) / (d->n_taps - 1));
        if (d->taps[i] < 0 || d->taps[i] >= target->n_layers)
            return differ(f, "target_layer_ids", d->taps[i], "a layer below", target->n_layers);
    }
    return MQ_OK;
}

static mq_status read_all(mq_draft_model *d, const mq_model *target, const mq_config *c)
{
    const mq_json_node *n;
    int n_target, target_hidden;
    MQ_TRY(mq_config_object(c, "dflash_config", &n));
    if (!n)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: dflash_config is missing", c->where);
    char where[256];
    snprintf(where, sizeof where, "%.200s: dflash_config", c->where);
    mq_config f = {n, where, c->err};

    MQ_TRY(mq_config_only_string(c, "model_type", "qwen3"));
    MQ_TRY(mq_config_only_string(c, "hidden_act", "silu"));
    MQ_TRY(mq_config_only_bool(c, "attention_bias", false));
    MQ_TRY(mq_config_int(c, "num_hidden_layers", 1, MAX_DRAFT_LAYERS, &d->n_layers));
    MQ_TRY(mq_config_int(c, "hidden_size", 1, 1 << 17, &d->hidden));
    MQ_TRY(mq_config_int(c, "intermediate_size", 1, 1 << 20, &d->intermediate));
    MQ_TRY(mq_config_int_or(c, "vocab_size", 1, 1 << 22, target->vocab, &d->vocab));
    MQ_TRY(mq_config_double(c, "rms_norm_eps", 0.0, 1.0, &d->norm_eps));
    MQ_TRY(mq_config_int_or(c, "num_target_layers", 1, MQ_MAX_LAYERS, target->n_layers, &n_target));
    MQ_TRY(mq_config_int_or(c, "target_hidden_size", 1, 1 << 17, target->hidden, &target_hidden));
    if (d->hidden != target->hidden)
        return differ(c, "hidden_size", d->hidden, "the target's hidden_size", target->hidden);
    if (target_hidden != target->hidden)
        return differ(c, "target_hidden_size", target_hidden, "the target's hidden_size", target->hidden);
    if (n_target != target->n_layers)
        return differ(c, "num_target_layers", n_target, "the target's num_hidden_layers", target->n_layers);
    MQ_TRY(read_attention(d, c, &f));
    MQ_TRY(read_twice(c, "block_size", &f, "block_size", MAX_BLOCK, &d->block_size));
    if (d->block_size < 2)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: block_size: %d, expected 2 to %d", c->where, d->block_size, MAX_BLOCK);
    MQ_TRY(mq_config_int(&f, "mask_token_id", 0, target->vocab - 1, &d->mask_token_id));
    MQ_TRY(read_taps(d, target, c, &f));
    mq_config_warn_unknown(c, KNOWN, &d->warnings);
    mq_config_warn_unknown(&f, KNOWN_DFLASH, &d->warnings);
    return mq_buf_status(&d->warnings, c->err);
}

mq_status mq_draft_model_load(mq_draft_model *out, const char *path, const mq_model *target, mq_err *err)
{
    mq_json *doc;
    memset(out, 0, sizeof *out);
    out->warnings = mq_buf_empty();
    MQ_TRY(mq_json_load(&doc, path, 16 << 20, 64, err));
    mq_config c = {mq_json_root(doc), path, err};
    mq_status st = mq_json_type_of(c.obj) == MQ_JSON_OBJECT ? read_all(out, target, &c)
                                                            : mq_fail(err, MQ_E_FORMAT, "%s: expected an object", path);
    mq_json_free(doc);
    if (st != MQ_OK)
        mq_draft_model_release(out);
    return st;
}

void mq_draft_model_release(mq_draft_model *d)
{
    mq_buf_release(&d->warnings);
    memset(d, 0, sizeof *d);
}
