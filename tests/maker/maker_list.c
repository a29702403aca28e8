/* Which tensors a checkpoint of given settings has: names, shapes, dtypes, scales. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/maker/maker_parts.h"

static maker_tensor *append(maker_list *l, const char *prefix, const char *name, mq_dtype dt, int n_dims, int64_t d0,
                            int64_t d1)
{
    static maker_tensor dropped;
    if (l->n == l->cap) {
        int64_t cap = l->cap ? 2 * l->cap : 256;
        maker_tensor *grown = realloc(l->tensors, (size_t)cap * sizeof *grown);
        if (!grown) {
            l->st = MQ_E_NOMEM;
            return &dropped;
        }
        l->tensors = grown;
        l->cap = cap;
    }
    maker_tensor *t = &l->tensors[l->n++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    t->dtype = dt;
    t->n_dims = n_dims;
    t->dims[0] = d0;
    t->dims[1] = d1;
    t->n_bytes = d0 * (n_dims == 2 ? d1 : 1) * mq_dtype_bits(dt) / 8;
    t->sigma = 1.0;
    return t;
}

static mq_dtype dtype_of(mq_scheme s)
{
    return s == MQ_SCHEME_F32 ? MQ_DT_F32 : s == MQ_SCHEME_F16 ? MQ_DT_F16 : MQ_DT_BF16;
}

static void vector(maker_list *l, const char *prefix, const char *name, mq_dtype dt, maker_fill fill, double sigma,
                   int64_t n)
{
    maker_tensor *t = append(l, prefix, name, dt, 1, n, 0);
    t->fill = fill;
    t->sigma = sigma;
}

/* A matrix in chunks (1, or the chunks of fused qkv), with its scales. */
static void matrix(maker_list *l, const char *prefix, const char *name, mq_scheme s, int64_t n_chunks,
                   int64_t chunk_rows, int64_t cols)
{
    int64_t rows = n_chunks * chunk_rows;
    double sigma = 1.0 / sqrt((double)cols);
    char scale[80];
    maker_tensor *t;
    if (s == MQ_SCHEME_FP8_BLOCK) {
        t = append(l, prefix, name, MQ_DT_F8_E4M3, 2, rows, cols);
        t->fill = FILL_E4M3;
        snprintf(scale, sizeof scale, "%s_scale_inv", name);
        t = append(l, prefix, scale, MQ_DT_F32, 2, n_chunks * mq_ceil_div(chunk_rows, MQ_FP8_BLOCK),
                   mq_ceil_div(cols, MQ_FP8_BLOCK));
        t->fill = FILL_FP8_SCALE;
        t->is_scale = true;
    } else if (s == MQ_SCHEME_MXFP4_ROWS) {
        t = append(l, prefix, name, MQ_DT_U8, 2, rows, cols / 2);
        t->fill = FILL_E2M1;
        snprintf(scale, sizeof scale, "%s_scale", name);
        t = append(l, prefix, scale, MQ_DT_U8, 2, rows, cols / MQ_MX_GROUP);
        t->fill = FILL_E8M0;
        t->is_scale = true;
    } else {
        t = append(l, prefix, name, dtype_of(s), 2, rows, cols);
        t->fill = FILL_NORMAL;
    }
    t->sigma = sigma;
}

static void attention(maker_list *l, const mq_maker *m, const char *prefix, bool swa)
{
    int64_t heads = swa ? m->swa_heads : m->heads, kv = swa ? m->swa_kv_heads : m->kv_heads;
    int64_t dim = swa ? m->swa_head_dim : m->head_dim, v_dim = swa ? m->swa_v_head_dim : m->v_head_dim;
    if (m->fused) {
        int64_t c = m->kv_heads, rows = heads / c * dim + kv / c * (dim + v_dim);
        matrix(l, prefix, "self_attn.qkv_proj.weight", m->scheme, c, rows, m->hidden);
    } else {
        matrix(l, prefix, "self_attn.q_proj.weight", m->scheme, 1, heads * dim, m->hidden);
        matrix(l, prefix, "self_attn.k_proj.weight", m->scheme, 1, kv * dim, m->hidden);
        matrix(l, prefix, "self_attn.v_proj.weight", m->scheme, 1, kv * v_dim, m->hidden);
    }
    mq_scheme o = m->scheme == MQ_SCHEME_FP8_BLOCK ? MQ_SCHEME_BF16 : m->scheme;
    matrix(l, prefix, "self_attn.o_proj.weight", o, 1, m->hidden, heads * v_dim);
    if (swa ? m->swa_sink : m->full_sink)
        vector(l, prefix, "self_attn.attention_sink_bias", dtype_of(m->scheme), FILL_NORMAL, 1.0, heads);
}

static void mlp(maker_list *l, const char *prefix, mq_scheme s, int64_t hidden, int64_t width)
{
    matrix(l, prefix, "gate_proj.weight", s, 1, width, hidden);
    matrix(l, prefix, "up_proj.weight", s, 1, width, hidden);
    matrix(l, prefix, "down_proj.weight", s, 1, hidden, width);
}

static void experts(maker_list *l, const mq_maker *m, int layer)
{
    char prefix[64];
    bool mx = layer < m->dense_layers + m->mx_layers;
    snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.", layer);
    matrix(l, prefix, "gate.weight", m->router_bf16 ? MQ_SCHEME_BF16 : MQ_SCHEME_F32, 1, m->experts, m->hidden);
    vector(l, prefix, "gate.e_score_correction_bias", MQ_DT_F32, FILL_NORMAL, 1.0 / 64, m->experts);
    for (int e = 0; e < m->experts; e++) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.experts.%d.", layer, e);
        mlp(l, prefix, mx ? MQ_SCHEME_MXFP4_ROWS : m->expert_scheme, m->hidden, m->moe_intermediate);
    }
}

static bool is_swa(const mq_maker *m, int layer)
{
    return layer > 0 && layer + 1 < m->layers && (layer + 1) % m->full_every != 0;
}

static void mtp_layer(maker_list *l, const mq_maker *m, int layer)
{
    static const char *const norms[] = {"enorm.weight", "hnorm.weight", "input_layernorm.weight",
                                        "pre_mlp_layernorm.weight", "final_layernorm.weight"};
    char prefix[64];
    snprintf(prefix, sizeof prefix, "model.mtp.layers.%d.", layer);
    for (int i = 0; i < 5; i++)
        vector(l, prefix, norms[i], dtype_of(m->scheme), FILL_NORM, 1.0, m->hidden);
    matrix(l, prefix, "eh_proj.weight", m->scheme == MQ_SCHEME_FP8_BLOCK ? MQ_SCHEME_BF16 : m->scheme, 1, m->hidden,
           2 * (int64_t)m->hidden);
    attention(l, m, prefix, true);
    snprintf(prefix, sizeof prefix, "model.mtp.layers.%d.mlp.", layer);
    mlp(l, prefix, m->scheme, m->hidden, m->intermediate);
}

void maker_list_model(maker_list *l, const mq_maker *m)
{
    mq_dtype dt = dtype_of(m->scheme);
    mq_scheme plain = m->scheme == MQ_SCHEME_FP8_BLOCK ? MQ_SCHEME_BF16 : m->scheme;
    char prefix[64];
    matrix(l, "", "model.embed_tokens.weight", plain, 1, m->vocab, m->hidden);
    l->tensors[0].sigma = 0.5;
    for (int i = 0; i < m->layers; i++) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.", i);
        vector(l, prefix, "input_layernorm.weight", dt, FILL_NORM, 1.0, m->hidden);
        vector(l, prefix, "post_attention_layernorm.weight", dt, FILL_NORM, 1.0, m->hidden);
        attention(l, m, prefix, is_swa(m, i));
        if (i >= m->dense_layers) {
            experts(l, m, i);
        } else {
            snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.", i);
            mlp(l, prefix, m->scheme, m->hidden, m->intermediate);
        }
    }
    vector(l, "", "model.norm.weight", dt, FILL_NORM, 1.0, m->hidden);
    matrix(l, "", "lm_head.weight", plain, 1, m->vocab, m->hidden);
    for (int i = 0; i < m->mtp; i++)
        mtp_layer(l, m, i);
}

void maker_list_draft(maker_list *l, const mq_maker *m)
{
    int64_t q = (int64_t)m->draft_heads * m->draft_head_dim, kv = (int64_t)m->draft_kv_heads * m->draft_head_dim;
    char prefix[64];
    matrix(l, "", "fc.weight", MQ_SCHEME_BF16, 1, m->hidden, (int64_t)m->draft_layers * m->hidden);
    vector(l, "", "hidden_norm.weight", MQ_DT_BF16, FILL_NORM, 1.0, m->hidden);
    vector(l, "", "norm.weight", MQ_DT_BF16, FILL_NORM, 1.0, m->hidden);
    for (int i = 0; i < m->draft_layers; i++) {
        snprintf(prefix, sizeof prefix, "layers.%d.", i);
        vector(l, prefix, "input_layernorm.weight", MQ_DT_BF16, FILL_NORM, 1.0, m->hidden);
        vector(l, prefix, "post_attention_layernorm.weight", MQ_DT_BF16, FILL_NORM, 1.0, m->hidden);
        vector(l, prefix, "self_attn.q_norm.weight", MQ_DT_BF16, FILL_NORM, 1.0, m->draft_head_dim);
        vector(l, prefix, "self_attn.k_norm.weight", MQ_DT_BF16, FILL_NORM, 1.0, m->draft_head_dim);
        vector(l, prefix, "self_attn.attention_sink_bias", MQ_DT_BF16, FILL_NORMAL, 1.0, m->draft_heads);
        matrix(l, prefix, "self_attn.q_proj.weight", MQ_SCHEME_BF16, 1, q, m->hidden);
        matrix(l, prefix, "self_attn.k_proj.weight", MQ_SCHEME_BF16, 1, kv, m->hidden);
        matrix(l, prefix, "self_attn.v_proj.weight", MQ_SCHEME_BF16, 1, kv, m->hidden);
        matrix(l, prefix, "self_attn.o_proj.weight", MQ_SCHEME_BF16, 1, m->hidden, q);
        snprintf(prefix, sizeof prefix, "layers.%d.mlp.", i);
        mlp(l, prefix, MQ_SCHEME_BF16, m->hidden, m->draft_intermediate);
    }
}
