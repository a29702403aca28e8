/* Adds up the views that a store lends; no weight is looked at. */
#include "runtime/traffic.h"

#include <string.h>

#include "runtime/slices.h"
#include "src/units.h"

int64_t mq_traffic_matrix(const mq_matrix *m)
{
    int64_t n = m->rows * m->cols;
    switch (m->scheme) {
    case MQ_SCHEME_BF16:
    case MQ_SCHEME_F16:
        return 2 * n;
    case MQ_SCHEME_F32:
        return 4 * n;
    case MQ_SCHEME_FP8_BLOCK:
        return n + 4 * mq_fp8_n_scales(m);
    case MQ_SCHEME_INT4:
    case MQ_SCHEME_MXFP4:
        return mq_units_bytes(m->rows, m->cols, m->group);
    case MQ_SCHEME_MXFP4_ROWS:
        return n / 2 + n / MQ_MX_GROUP;
    default:
        return 0;
    }
}

static int64_t mlp_bytes(const mq_mlp_weights *w)
{
    return mq_traffic_matrix(&w->down) + (w->interleaved ? mq_traffic_matrix(&w->gate_up)
                                                         : mq_traffic_matrix(&w->gate) + mq_traffic_matrix(&w->up));
}

static int64_t attn_bytes(const mq_attn_weights *a)
{
    return mq_traffic_matrix(&a->q) + mq_traffic_matrix(&a->k) + mq_traffic_matrix(&a->v) + mq_traffic_matrix(&a->o) +
           (a->sink ? 4 * (int64_t)a->n_heads : 0);
}

static mq_status add_layer(mq_traffic *t, mq_store *s, int layer, int first, int n_held, mq_err *err)
{
    const mq_model *m = mq_store_model(s);
    const mq_attn_geometry *g = mq_model_attn(m, layer);
    int64_t *key = g->window ? &t->swa_key : &t->full_key;
    t->fixed += 2 * 4 * (int64_t)m->hidden;
    for (int r = first; r < first + n_held; r++) {
        mq_layer_weights w;
        mq_mlp_weights e;
        MQ_TRY(mq_store_layer(s, &w, layer, r, err));
        t->fixed += attn_bytes(&w.attn) + (w.is_moe ? 0 : mlp_bytes(&w.mlp));
        *key += (int64_t)sizeof(float) * w.attn.n_kv_heads * (g->head_dim + g->v_head_dim);
        if (!w.is_moe)
            continue;
        if (r == first)
            t->fixed += mq_traffic_matrix(&w.router) + 4 * (int64_t)m->n_experts;
        MQ_TRY(mq_store_expert(s, &e, layer, 0, r, err));
        t->expert[layer] += mlp_bytes(&e);
        if (t->expert_scheme == MQ_SCHEME_NONE) {
            t->expert_scheme = e.down.scheme;
            t->expert_group = e.down.group;
        }
    }
    return MQ_OK;
}

mq_status mq_traffic_read(mq_traffic *out, mq_store *s, mq_err *err)
{
    const mq_model *m = mq_store_model(s);
    int first = mq_store_first_rank(s), n_held = mq_store_n_held(s);
    mq_matrix w;
    memset(out, 0, sizeof *out);
    out->n_layers = m->n_layers;
    out->window = m->swa.window;
    for (int l = 0; l < m->n_layers; l++)
        MQ_TRY(add_layer(out, s, l, first, n_held, err));
    MQ_TRY(mq_store_embedding(s, &w, err));
    out->embedding_row = mq_traffic_matrix(&w) / w.rows;
    for (int r = first; r < first + n_held; r++) {
        MQ_TRY(mq_store_head(s, &w, r, err));
        out->fixed += mq_traffic_matrix(&w);
    }
    out->fixed += 4 * (int64_t)m->hidden; /* the final norm */
    return MQ_OK;
}

int64_t mq_traffic_weights(const mq_traffic *t, const int32_t *distinct, int n)
{
    int64_t bytes = t->fixed + n * t->embedding_row;
    for (int l = 0; l < t->n_layers; l++)
        bytes += distinct[l] * t->expert[l];
    return bytes;
}

int64_t mq_traffic_kv(const mq_traffic *t, int64_t pos0, int n)
{
    int64_t all = pos0 + n, near = t->window + n - 1;
    return all * t->full_key + (all < near ? all : near) * t->swa_key;
}
