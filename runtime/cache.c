/* Allocation and bookkeeping of keys and values.  Storing and attending are kernels' work
 * (kv_store, attention); this file only decides how many slots a layer has and which truncations
 * leave every visible key in place. */
#include "runtime/cache.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#include "runtime/slices.h"
#include "src/dtype.h"

struct mq_cache {
    const mq_kernels *kernels;
    mq_dev *dev;
    int n_layers, n_ranks;
    int first_rank, n_held; /* those there are */
    int64_t capacity, ring_rows;
    int64_t length, high; /* high: positions ever stored since the last truncation to 0 */
    mq_kv *kv;            /* [n_layers, n_held] */
    void *block;          /* all keys and values, dev's memory */
};

static int64_t layer_slots(const mq_attn_geometry *g, int64_t capacity, int64_t ring_rows)
{
    int64_t ring = g->window + ring_rows;
    return g->window > 0 && ring < capacity ? ring : capacity;
}

/* Floats of one layer and rank, a multiple of 16 so that every array starts on a 64-byte line. */
static int64_t rank_floats(const mq_attn_geometry *g, int n_ranks, int64_t n_slots)
{
    int64_t heads = mq_slice_heads(g, n_ranks, 0).n_kv_heads;
    int64_t k = mq_round_up(n_slots * heads * g->head_dim, 16);
    int64_t v = mq_round_up(n_slots * heads * g->v_head_dim, 16);
    return k + v;
}

static int64_t layer_floats(const mq_model *m, int layer, int n_ranks, int64_t capacity,
                            int64_t ring_rows)
{
    const mq_attn_geometry *g = mq_model_attn(m, layer);
    return n_ranks * rank_floats(g, n_ranks, layer_slots(g, capacity, ring_rows));
}

int64_t mq_cache_bytes(const mq_model *m, int n_ranks, int64_t capacity, int64_t ring_rows)
{
    int64_t floats = 0;
    for (int l = 0; l < m->n_layers; l++)
        floats += layer_floats(m, l, n_ranks, capacity, ring_rows);
    return floats * (int64_t)sizeof(float);
}

int64_t mq_cache_scratch_bytes(const mq_model *m, int n_ranks, int64_t capacity, int64_t ring_rows)
{
    int64_t floats = 0;
    for (int l = 0; l < m->n_layers; l++) {
        int64_t n = layer_floats(m, l, n_ranks, capacity, ring_rows);
        floats = n > floats ? n : floats;
    }
    return floats * (int64_t)sizeof(float);
}

/* Point layer's views into memory from p on; returns the end. */
static float *place_layer(mq_cache *c, const mq_model *m, int layer, float *p)
{
    const mq_attn_geometry *g = mq_model_attn(m, layer);
    for (int r = 0; r < c->n_held; r++) {
        mq_kv *kv = &c->kv[layer * c->n_held + r];
        kv->n_slots = layer_slots(g, c->capacity, c->ring_rows);
        kv->n_kv_heads = mq_slice_heads(g, c->n_ranks, r).n_kv_heads;
        kv->head_dim = g->head_dim;
        kv->v_head_dim = g->v_head_dim;
        kv->k = p;
        kv->v = p + mq_round_up(kv->n_slots * kv->n_kv_heads * kv->head_dim, 16);
        p += rank_floats(g, c->n_ranks, kv->n_slots);
    }
    return p;
}

static mq_status create(mq_cache **out, const mq_kernels *kernels, mq_dev *dev, const mq_model *m,
                        int n_ranks, int n_held, int64_t capacity, int64_t ring_rows, bool shared,
                        mq_err *err)
{
    *out = NULL;
    mq_cache *c = calloc(1, sizeof *c);
    mq_kv *kv = calloc((size_t)m->n_layers * (size_t)n_held, sizeof *kv);
    if (!c || !kv) {
        free(c);
        free(kv);
        return mq_fail(err, MQ_E_NOMEM, "KV cache: out of memory");
    }
    *c = (mq_cache){.kernels = kernels,
                    .dev = dev,
                    .n_layers = m->n_layers,
                    .n_ranks = n_ranks,
                    .n_held = n_held,
                    .capacity = capacity,
                    .ring_rows = ring_rows,
                    .kv = kv};
    int64_t bytes = shared ? mq_cache_scratch_bytes(m, n_ranks, capacity, ring_rows)
                           : mq_cache_bytes(m, n_ranks, capacity, ring_rows) / n_ranks * n_held;
    mq_status st = kernels->alloc(dev, &c->block, bytes, err);
    if (st != MQ_OK) {
        mq_cache_free(c);
        return mq_wrap(err, st, "KV cache of %lld positions", (long long)capacity);
    }
    float *p = c->block;
    for (int l = 0; l < m->n_layers; l++) {
        float *end = place_layer(c, m, l, p);
        p = shared ? p : end;
    }
    *out = c;
    return MQ_OK;
}

mq_status mq_cache_create(mq_cache **out, const mq_kernels *kernels, mq_dev *dev, const mq_model *m,
                          int n_ranks, int64_t capacity, int64_t ring_rows, mq_err *err)
{
    return create(out, kernels, dev, m, n_ranks, n_ranks, capacity, ring_rows, false, err);
}

mq_status mq_cache_create_held(mq_cache **out, const mq_kernels *kernels, mq_dev *dev, const mq_model *m, int n_ranks,
                               int first, int n_held, int64_t capacity, int64_t ring_rows, mq_err *err)
{
    MQ_TRY(create(out, kernels, dev, m, n_ranks, n_held, capacity, ring_rows, false, err));
    (*out)->first_rank = first;
    return MQ_OK;
}

mq_status mq_cache_create_scratch(mq_cache **out, const mq_kernels *kernels, mq_dev *dev,
                                  const mq_model *m, int n_ranks, int64_t capacity,
                                  int64_t ring_rows, mq_err *err)
{
    return create(out, kernels, dev, m, n_ranks, n_ranks, capacity, ring_rows, true, err);
}

void mq_cache_free(mq_cache *c)
{
    if (!c)
        return;
    if (c->block)
        c->kernels->release(c->dev, c->block);
    free(c->kv);
    free(c);
}

const mq_kv *mq_cache_kv(const mq_cache *c, int layer, int rank)
{
    assert(layer >= 0 && layer < c->n_layers && rank >= 0 && rank < c->n_ranks);
    int at = c->n_held == 1 ? 0 : rank - c->first_rank;
    assert(at >= 0 && at < c->n_held);
    return &c->kv[layer * c->n_held + at];
}

mq_status mq_cache_fill(mq_cache *c, uint64_t seed, mq_err *err)
{
    for (int i = 0; i < c->n_layers * c->n_held; i++) {
        const mq_kv *kv = &c->kv[i];
        int layer = i / c->n_held, rank = c->first_rank + i % c->n_held;
        int64_t k = kv->n_slots * kv->n_kv_heads * kv->head_dim;
        int64_t v = kv->n_slots * kv->n_kv_heads * kv->v_head_dim;
        mq_fill f = {.kind = MQ_FILL_F32, .scale = 1.0f, .rows = 1};
        f.key = mq_fill_key(seed, layer, rank, 0);
        f.cols = f.whole_cols = k;
        MQ_TRY(c->kernels->fill(c->dev, kv->k, &f, err));
        f.key = mq_fill_key(seed, layer, rank, 1);
        f.cols = f.whole_cols = v;
        MQ_TRY(c->kernels->fill(c->dev, kv->v, &f, err));
    }
    return MQ_OK;
}

int64_t mq_cache_capacity(const mq_cache *c)
{
    return c->capacity;
}

int64_t mq_cache_length(const mq_cache *c)
{
    return c->length;
}

void mq_cache_advance(mq_cache *c, int64_t n)
{
    assert(n >= 0 && c->length + n <= c->capacity);
    c->length += n;
    c->high = c->length > c->high ? c->length : c->high;
}

/* A ring holds positions high - n_slots .. high - 1, and row length needs those from length -
 * window + 1 on: n_slots = window + ring_rows allows high - length up to ring_rows + 1. */
void mq_cache_truncate(mq_cache *c, int64_t length)
{
    assert(length >= 0 && length <= c->length);
    assert(length == 0 || c->high - length <= c->ring_rows);
    c->length = length;
    if (length == 0)
        c->high = 0;
}
