/* The forward pass from ids to logits: workspace, embedding, order of the layers, head.
 * forward_attn.c and forward_mlp.c hold the two halves of a layer.
 *
 * Every array of the workspace is carved from one block, by one list of sizes that also answers how
 * many bytes a workspace takes. */
#include "runtime/forward.h"

#include <assert.h>
#include <stdlib.h>

#include "runtime/carve.h"
#include "runtime/forward_state.h"
#include "runtime/slices.h"
#include "src/dtype.h"

static int64_t max2(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static void carve_device(mq_forward *f, mq_carver *c)
{
    const mq_model *m = f->m;
    int64_t b = f->max_rows, t = f->mlp_rows, r = f->n_ranks;
    mq_head_slice full = mq_slice_heads(&m->full, f->n_ranks, 0);
    mq_head_slice swa = mq_slice_heads(&m->swa, f->n_ranks, 0);
    int64_t q = max2(full.n_heads * m->full.head_dim, swa.n_heads * m->swa.head_dim);
    int64_t k = max2(full.n_kv_heads * m->full.head_dim, swa.n_kv_heads * m->swa.head_dim);
    int64_t v = max2(full.n_kv_heads * m->full.v_head_dim, swa.n_kv_heads * m->swa.v_head_dim);
    int64_t o = max2(full.n_heads * m->full.v_head_dim, swa.n_heads * m->swa.v_head_dim);
    int64_t w = max2(m->intermediate, m->moe_intermediate) / r;

    f->h = mq_carve(c, b * m->hidden, 4);
    f->q = mq_carve(c, b * q, 4);
    f->key = mq_carve(c, b * k, 4);
    f->value = mq_carve(c, b * v, 4);
    f->heads = mq_carve(c, b * o, 4);
    f->part = mq_carve(c, b * m->hidden, 4);
    f->gate_up = mq_carve(c, b * 2 * w, 4);
    f->mid = mq_carve(c, b * w, 4);
    f->scores = mq_carve(c, b * m->n_experts, 4);
    f->margin = mq_carve(c, b, 4);
    f->y = mq_carve(c, t * m->hidden, 4);
    f->y_rank = r > 1 ? mq_carve(c, t * m->hidden, 4) : NULL;
    f->zero_row = mq_carve(c, m->hidden, 4);
    f->zero_index = mq_carve(c, t, 4);
    f->ids = mq_carve(c, b, 4);
    f->rows = mq_carve(c, b, 4);
    f->route_ids = mq_carve(c, t * m->n_experts_per_tok, 4);
    f->route_coef = mq_carve(c, t * m->n_experts_per_tok, 4);
    f->sorted = mq_carve(c, t * m->n_experts_per_tok, 4);
    f->sorted_coef = mq_carve(c, t * m->n_experts_per_tok, 4);
    f->head_parts = r > 1 ? mq_carve(c, f->head_rows * m->vocab, 4) : NULL;
    f->head_perm = r > 1 ? mq_carve(c, f->head_rows * r, 4) : NULL;
}

static void carve_host(mq_forward *f, mq_carver *c)
{
    const mq_model *m = f->m;
    int64_t picks = f->mlp_rows * m->n_experts_per_tok;
    f->host_ids = mq_carve(c, picks, 4);
    f->host_coef = mq_carve(c, picks, 4);
    f->host_sorted = mq_carve(c, picks, 4);
    f->host_sorted_coef = mq_carve(c, picks, 4);
    f->first = mq_carve(c, m->n_experts + 1, 8);
    f->iota = mq_carve(c, f->mlp_rows, 4);
    f->host_margin = mq_carve(c, f->max_rows, 4);
    f->n_distinct = mq_carve(c, m->n_layers, 4);
    f->host_perm = f->n_ranks > 1 ? mq_carve(c, f->head_rows * f->n_ranks, 4) : NULL;
}

/* A head block of several ranks holds its logits twice: keep it near 64 MiB. */
static int64_t head_block_rows(const mq_model *m, int64_t max_rows)
{
    int64_t rows = max2(8, ((int64_t)64 << 20) / (4 * (int64_t)m->vocab));
    return rows < max_rows ? rows : max_rows;
}

static mq_forward sizes_of(const mq_model *m, int n_ranks, int64_t max_rows, int64_t mlp_rows)
{
    return (mq_forward){.m = m,
                        .n_ranks = n_ranks,
                        .max_rows = max_rows,
                        .mlp_rows = mlp_rows,
                        .head_rows = head_block_rows(m, max_rows)};
}

int64_t mq_forward_workspace_bytes(const mq_model *m, int n_ranks, int64_t max_rows,
                                   int64_t mlp_rows)
{
    mq_forward f = sizes_of(m, n_ranks, max_rows, mlp_rows);
    mq_carver device = {NULL, 0}, host = {NULL, 0};
    carve_device(&f, &device);
    carve_host(&f, &host);
    return device.used + host.used;
}

mq_status mq_forward_create(mq_forward **out, const mq_kernels *kernels, mq_dev *dev,
                            mq_store *store, int64_t max_rows, int64_t mlp_rows, mq_err *err)
{
    assert(max_rows >= 1 && mlp_rows >= max_rows && mlp_rows <= INT32_MAX);
    *out = NULL;
    mq_forward *f = calloc(1, sizeof *f);
    if (!f)
        return mq_fail(err, MQ_E_NOMEM, "forward workspace: out of memory");
    *f = sizes_of(mq_store_model(store), mq_store_n_ranks(store), max_rows, mlp_rows);
    f->k = kernels;
    f->dev = dev;
    f->store = store;
    f->n_held = mq_store_only_rank(store) >= 0 ? 1 : f->n_ranks;

    mq_carver device = {NULL, 0}, host = {NULL, 0};
    carve_device(f, &device);
    carve_host(f, &host);
    mq_status st = kernels->alloc(dev, &f->block, device.used, err);
    f->host_block = calloc(1, (size_t)host.used);
    f->expert_tables = calloc((size_t)f->m->n_layers * (size_t)f->n_ranks, sizeof *f->expert_tables);
    if (st == MQ_OK && (!f->host_block || !f->expert_tables))
        st = mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st != MQ_OK) {
        mq_forward_free(f);
        return mq_wrap(err, st, "forward workspace of %lld bytes",
                       (long long)(device.used + host.used));
    }
    device = (mq_carver){f->block, 0};
    host = (mq_carver){f->host_block, 0};
    carve_device(f, &device);
    carve_host(f, &host);
    for (int64_t i = 0; i < mlp_rows; i++)
        f->iota[i] = (int32_t)i;
    st = kernels->upload(dev, f->rows, f->iota, 4 * max_rows, err);
    if (st == MQ_OK)
        st = kernels->dev_sync(dev, err);
    if (st != MQ_OK) {
        mq_forward_free(f);
        return st;
    }
    *out = f;
    return MQ_OK;
}

float *mq_forward_part(const mq_forward *f, int rank, float *y, float *scratch)
{
    return f->join ? mq_join_part(f->join, f->member, rank) : rank == f->first_rank ? y : scratch;
}

mq_status mq_forward_keep_part(mq_forward *f, int rank, float *y, const float *part, int64_t count, mq_err *err)
{
    return f->join || rank == f->first_rank ? MQ_OK : f->k->add(f->dev, y, part, count, err);
}

mq_status mq_forward_add_ranks(mq_forward *f, float *y, int64_t count, mq_err *err)
{
    if (f->join)
        return mq_join_sum(f->join, f->member, y, count, err);
    return f->n_held == f->n_ranks ? MQ_OK : f->k->axpby(f->dev, y, (float)f->n_ranks, NULL, 0.0f, count, err);
}

void mq_forward_set_join(mq_forward *f, mq_join *join, int member)
{
    assert(mq_join_max_count(join) >= f->mlp_rows * f->m->hidden &&
           mq_join_max_count(join) >= f->m->vocab / f->n_ranks);
    f->join = join;
    f->member = member;
    f->first_rank = mq_join_first_rank(join, member);
    f->n_held = mq_join_n_local(join);
}

void mq_forward_free(mq_forward *f)
{
    if (!f)
        return;
    if (f->block)
        f->k->release(f->dev, f->block);
    mq_forward_drop_tables(f);
    free(f->host_block);
    free(f);
}

mq_status mq_forward_embed(mq_forward *f, float *x, const int32_t *ids, int64_t n, mq_err *err)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= f->m->vocab)
            return mq_fail(err, MQ_E_ARG,
                           "token id %d at position %lld of the input, expected 0 to %d", ids[i],
                           (long long)i, f->m->vocab - 1);
    mq_matrix table;
    MQ_TRY(mq_store_embedding(f->store, &table, err));
    for (int64_t i = 0; i < n; i += f->max_rows) {
        int64_t rows = n - i < f->max_rows ? n - i : f->max_rows;
        MQ_TRY(f->k->upload(f->dev, f->ids, ids + i, rows * 4, err));
        MQ_TRY(f->k->embed(f->dev, x + i * f->m->hidden, &table, f->ids, rows, err));
        MQ_TRY(f->k->dev_sync(f->dev, err)); /* f->ids is written again */
    }
    return MQ_OK;
}

mq_status mq_forward_layer(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n,
                           int64_t pos0, mq_cache *cache, float *margin, const mq_tap *tap,
                           mq_err *err)
{
    MQ_TRY(mq_forward_attention(f, mode, layer, x, n, pos0, cache, tap, err));
    return mq_forward_mlp(f, mode, layer, x, n, margin, tap, err);
}

void mq_forward_capture(mq_forward *f, const int *layers, float *const *out, int n)
{
    assert(n >= 0 && n <= MQ_MAX_TAPS);
    for (int i = 0; i < n; i++) {
        assert(layers[i] >= 0 && layers[i] < f->m->n_layers);
        f->capture_layers[i] = layers[i];
        f->captures[i] = out[i];
    }
    f->n_captures = n;
}

static mq_status capture(mq_forward *f, int layer, const float *x, int64_t n, mq_err *err)
{
    for (int i = 0; i < f->n_captures; i++)
        if (f->capture_layers[i] == layer)
            MQ_TRY(f->k->gather(f->dev, f->captures[i], x, f->rows, n, f->m->hidden, err));
    return MQ_OK;
}

mq_status mq_forward_tokens(mq_forward *f, mq_forward_mode mode, float *x, const int32_t *ids,
                            int64_t n, mq_cache *cache, float *margin, const mq_tap *tap,
                            mq_err *err)
{
    assert(n <= f->max_rows);
    int64_t pos0 = mq_cache_length(cache);
    if (n > mq_cache_capacity(cache) - pos0)
        return mq_fail(err, MQ_E_ARG,
                       "%lld positions and %lld more, expected at most %lld (the context)",
                       (long long)pos0, (long long)n, (long long)mq_cache_capacity(cache));
    MQ_TRY(mq_forward_embed(f, x, ids, n, err));
    for (int layer = 0; layer < f->m->n_layers; layer++) {
        MQ_TRY(mq_forward_layer(f, mode, layer, x, n, pos0, cache, margin, tap, err));
        MQ_TRY(capture(f, layer, x, n, err));
    }
    mq_cache_advance(cache, n);
    return MQ_OK;
}

const int32_t *mq_forward_distinct_experts(const mq_forward *f)
{
    return f->n_distinct;
}

mq_status mq_forward_final_norm(mq_forward *f, float *y, const float *x, int64_t n, mq_err *err)
{
    const float *weight;
    MQ_TRY(mq_store_final_norm(f->store, &weight, err));
    return f->k->rmsnorm(f->dev, y, x, weight, f->m->norm_eps, n, f->m->hidden, err);
}

/* The ranks' logits of n rows to f->head_parts, a block [n, vocab / n_ranks] each. */
static mq_status head_parts(mq_forward *f, mq_forward_mode mode, int64_t n, mq_err *err)
{
    int64_t part = f->m->vocab / f->n_ranks;
    for (int r = f->first_rank; r < f->first_rank + f->n_held; r++) {
        mq_matrix w;
        MQ_TRY(mq_store_head(f->store, &w, r, err));
        float *own = f->head_parts + r * n * part;
        MQ_TRY(mq_forward_linear(f, mode, f->join ? mq_join_part(f->join, f->member, r) : own, f->h, &w, n, err));
    }
    if (!f->join)
        return MQ_OK;
    const float *all;
    MQ_TRY(mq_join_exchange(f->join, f->member, &all, n * part, err));
    for (int r = 0; r < f->n_ranks; r++)
        MQ_TRY(f->k->copy(f->dev, f->head_parts + r * n * part, all + r * mq_join_max_count(f->join), 4 * n * part,
                          err));
    return MQ_OK;
}

/* Rows of several ranks: each rank's logits as a block of its own, then put side by side. */
static mq_status head_ranks(mq_forward *f, mq_forward_mode mode, float *logits, int64_t n,
                            mq_err *err)
{
    int64_t part = f->m->vocab / f->n_ranks;
    bool all = f->join || f->n_held == f->n_ranks; /* otherwise the first stands for all */
    MQ_TRY(head_parts(f, mode, n, err));
    for (int r = 0; r < f->n_ranks; r++)
        for (int64_t i = 0; i < n; i++)
            f->host_perm[i * f->n_ranks + r] = (int32_t)((all ? r : 0) * n + i);
    MQ_TRY(f->k->upload(f->dev, f->head_perm, f->host_perm, n * f->n_ranks * 4, err));
    return f->k->gather(f->dev, logits, f->head_parts, f->head_perm, n * f->n_ranks, part, err);
}

mq_status mq_forward_head(mq_forward *f, mq_forward_mode mode, float *logits, const float *x,
                          int64_t n, mq_err *err)
{
    int64_t block = f->n_ranks > 1 ? f->head_rows : f->max_rows;
    if (f->join && block > mq_join_max_count(f->join) / (f->m->vocab / f->n_ranks))
        block = mq_join_max_count(f->join) / (f->m->vocab / f->n_ranks);
    for (int64_t i = 0; i < n; i += block) {
        int64_t rows = n - i < block ? n - i : block;
        MQ_TRY(mq_forward_final_norm(f, f->h, x + i * f->m->hidden, rows, err));
        float *out = logits + i * f->m->vocab;
        if (f->n_ranks > 1) {
            MQ_TRY(head_ranks(f, mode, out, rows, err));
        } else {
            mq_matrix w;
            MQ_TRY(mq_store_head(f->store, &w, 0, err));
            MQ_TRY(mq_forward_linear(f, mode, out, f->h, &w, rows, err));
        }
        MQ_TRY(f->k->dev_sync(f->dev,
                              err)); /* host_perm is written again; a streaming store may reload */
    }
    return MQ_OK;
}
