/* The attention half of a layer: norm, q k v, rotation, cache, attention with sinks, o_proj,
 * residual.
 *
 * Ranks run one after another; their contributions are summed in rank order first, then added to
 * the residual, as an all-reduce in rank order would.  Linears see all rows of a block at once;
 * only rotation, cache and attention go sequence by sequence.  Source: transformers
 * modeling_mimo_v2_flash. */
#include <assert.h>

#include "runtime/forward_state.h"
#include "runtime/slices.h"

/* Rows of one call: n_seqs sequences of seq_rows rows each, every one at positions pos0 .. of
 * cache. */
typedef struct rows_of {
    int64_t n_seqs, seq_rows, pos0;
    mq_cache *cache;
} rows_of;

/* Rotate, store and attend one sequence; pointers are to its first row. */
static mq_status attend(mq_forward *f, int layer, int rank, const mq_attn_weights *w,
                        const rows_of *rows, int64_t seq, mq_err *err)
{
    const mq_attn_geometry *g = mq_model_attn(f->m, layer);
    const mq_kv *kv = mq_cache_kv(rows->cache, layer, rank);
    int64_t n = rows->seq_rows, first = seq * n;
    float *q = f->q + first * w->n_heads * g->head_dim;
    float *k = f->key + first * w->n_kv_heads * g->head_dim;
    float *v = f->value + first * w->n_kv_heads * g->v_head_dim;
    float *out = f->heads + first * w->n_heads * g->v_head_dim;

    MQ_TRY(f->k->rope(f->dev, q, n, w->n_heads, g->head_dim, g->rotary_dims, g->rope_theta,
                      rows->pos0, err));
    MQ_TRY(f->k->rope(f->dev, k, n, w->n_kv_heads, g->head_dim, g->rotary_dims, g->rope_theta,
                      rows->pos0, err));
    MQ_TRY(f->k->kv_store(f->dev, kv, k, v, (float)f->m->value_scale, n, rows->pos0, err));
    return f->k->attention(f->dev, out, q, kv, w->n_heads, w->sink, g->window, n, rows->pos0, err);
}

/* One rank's contribution o_proj(attention) of all rows, into out. */
static mq_status rank_part(mq_forward *f, mq_forward_mode mode, int layer, int rank,
                           const mq_attn_weights *w, float *out, const rows_of *rows, int64_t row0,
                           const mq_tap *tap, mq_err *err)
{
    int64_t n = rows->n_seqs * rows->seq_rows;
    MQ_TRY(mq_forward_linear(f, mode, f->q, f->h, &w->q, n, err));
    MQ_TRY(mq_forward_linear(f, mode, f->key, f->h, &w->k, n, err));
    MQ_TRY(mq_forward_linear(f, mode, f->value, f->h, &w->v, n, err));
    for (int64_t s = 0; s < rows->n_seqs; s++)
        MQ_TRY(attend(f, layer, rank, w, rows, s, err));
    MQ_TRY(mq_forward_tap(f, tap, MQ_TAP_O, layer, f->heads, row0, n, w->o.cols, err));
    return mq_forward_linear(f, mode, out, f->heads, &w->o, n, err);
}

/* A block of at most max_rows rows; row0 is its first row in the call. */
static mq_status attention_block(mq_forward *f, mq_forward_mode mode, int layer, float *x,
                                 const rows_of *rows, int64_t row0, const mq_tap *tap, mq_err *err)
{
    int64_t n = rows->n_seqs * rows->seq_rows, hidden = f->m->hidden;
    for (int r = f->first_rank; r < f->first_rank + f->n_held; r++) {
        mq_layer_weights w;
        MQ_TRY(mq_store_layer(f->store, &w, layer, r, err));
        if (r == f->first_rank) {
            MQ_TRY(f->k->rmsnorm(f->dev, f->h, x, w.input_norm, f->m->norm_eps, n, hidden, err));
            MQ_TRY(mq_forward_tap(f, tap, MQ_TAP_QKV, layer, f->h, row0, n, hidden, err));
        }
        float *out = mq_forward_part(f, r, f->y, f->part);
        MQ_TRY(rank_part(f, mode, layer, r, &w.attn, out, rows, row0, tap, err));
        MQ_TRY(mq_forward_keep_part(f, r, f->y, out, n * hidden, err));
    }
    MQ_TRY(mq_forward_add_ranks(f, f->y, n * hidden, err));
    return f->k->add(f->dev, x, f->y, n * hidden, err);
}

static mq_status check_tap(const mq_forward *f, const mq_tap *tap, int64_t n, mq_err *err)
{
    if (tap && f->n_ranks > 1)
        return mq_fail(err, MQ_E_ARG, "a tap with %d ranks, expected 1", f->n_ranks);
    if (tap && n > f->mlp_rows)
        return mq_fail(err, MQ_E_ARG, "a tap with %lld rows, expected at most %lld", (long long)n,
                       (long long)f->mlp_rows);
    return MQ_OK;
}

mq_status mq_forward_attention(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n,
                               int64_t pos0, mq_cache *cache, const mq_tap *tap, mq_err *err)
{
    assert(pos0 >= 0 && pos0 + n <= mq_cache_capacity(cache));
    MQ_TRY(check_tap(f, tap, n, err));
    for (int64_t i = 0; i < n; i += f->max_rows) {
        int64_t n_rows = n - i < f->max_rows ? n - i : f->max_rows;
        rows_of rows = {1, n_rows, pos0 + i, cache};
        MQ_TRY(attention_block(f, mode, layer, x + i * f->m->hidden, &rows, i, tap, err));
    }
    return MQ_OK;
}

mq_status mq_forward_attention_windows(mq_forward *f, mq_forward_mode mode, int layer, float *x,
                                       int64_t n_windows, int64_t window, mq_cache *cache,
                                       const mq_tap *tap, mq_err *err)
{
    assert(window >= 1 && window <= mq_cache_capacity(cache));
    MQ_TRY(check_tap(f, tap, n_windows * window, err));
    int64_t at_once = f->max_rows / window; /* 0: a window is longer than a block */
    int64_t block = at_once > 0 ? at_once : 1;
    for (int64_t i = 0; i < n_windows; i += block) {
        int64_t n = n_windows - i < block ? n_windows - i : block;
        for (int64_t pos = 0; pos < window; pos += f->max_rows) {
            int64_t n_rows = window - pos < f->max_rows ? window - pos : f->max_rows;
            rows_of rows = {n, n_rows, pos, cache};
            int64_t row0 = i * window + pos;
            MQ_TRY(attention_block(f, mode, layer, x + row0 * f->m->hidden, &rows, row0, tap, err));
        }
    }
    return MQ_OK;
}
