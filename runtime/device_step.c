/* Gathers what the device's decode step borrows: every rank's view of every layer, expert and
 * cache, in the arrays that kernels/decode.h asks for. */
#include "runtime/device_step.h"

#include <assert.h>
#include <stdlib.h>

struct mq_device_step {
    const mq_kernels *kernels;
    mq_dev *dev;
    mq_cache *cache;
    int n_captures;
    mq_decode_layer *layers; /* [n_ranks, n_layers] */
    mq_decode_rank *ranks;   /* [n_ranks] */
    mq_mlp_weights *experts; /* [n_ranks, n_layers, n_experts] */
    mq_decode_model model;
    mq_decode *decode;
};

int64_t mq_device_step_bytes(const mq_kernels *kernels, const mq_model *m, int n_ranks,
                             int n_captures, int64_t context)
{
    if (!kernels->decode || !kernels->decode->create)
        return 0;
    return kernels->decode->bytes(m, n_ranks, n_ranks, n_captures, context);
}

static mq_status gather_layer(mq_device_step *s, mq_store *store, int rank, int layer, mq_err *err)
{
    const mq_model *m = s->model.model;
    int64_t at = (int64_t)rank * m->n_layers + layer;
    mq_decode_layer *out = &s->layers[at];
    MQ_TRY(mq_store_layer(store, &out->w, layer, rank, err));
    out->kv = *mq_cache_kv(s->cache, layer, rank);
    if (!out->w.is_moe)
        return MQ_OK;
    mq_mlp_weights *experts = s->experts + at * m->n_experts;
    out->experts = experts;
    for (int e = 0; e < m->n_experts; e++)
        MQ_TRY(mq_store_expert(store, &experts[e], layer, e, rank, err));
    return MQ_OK;
}

static mq_status gather(mq_device_step *s, mq_store *store, mq_err *err)
{
    const mq_model *m = mq_store_model(store);
    size_t n_ranks = (size_t)mq_store_n_ranks(store), n_layers = (size_t)m->n_layers;
    s->layers = calloc(n_ranks * n_layers, sizeof *s->layers);
    s->ranks = calloc(n_ranks, sizeof *s->ranks);
    s->experts = calloc(n_ranks * n_layers * (size_t)(m->n_experts + 1), sizeof *s->experts);
    if (!s->layers || !s->ranks || !s->experts)
        return mq_fail(err, MQ_E_NOMEM, "decode step: out of memory");
    s->model.model = m;
    s->model.n_ranks = s->model.n_local = (int)n_ranks;
    s->model.ranks = s->ranks;
    MQ_TRY(mq_store_embedding(store, &s->model.embedding, err));
    MQ_TRY(mq_store_final_norm(store, &s->model.final_norm, err));
    for (int r = 0; r < (int)n_ranks; r++) {
        for (int l = 0; l < m->n_layers; l++)
            MQ_TRY(gather_layer(s, store, r, l, err));
        s->ranks[r].layers = s->layers + (size_t)r * n_layers;
        MQ_TRY(mq_store_head(store, &s->ranks[r].head, r, err));
    }
    return MQ_OK;
}

mq_status mq_device_step_create(mq_device_step **out, const mq_kernels *kernels, mq_dev *dev,
                                mq_store *store, mq_cache *cache, const int *layers, int n_captures,
                                bool plain, mq_err *err)
{
    *out = NULL;
    if (!kernels->decode || !kernels->decode->create)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: no decode step of its own", kernels->name);
    assert(n_captures <= MQ_MAX_TAPS);
    mq_device_step *s = calloc(1, sizeof *s);
    if (!s)
        return mq_fail(err, MQ_E_NOMEM, "decode step: out of memory");
    s->kernels = kernels;
    s->dev = dev;
    s->cache = cache;
    s->n_captures = s->model.n_captures = n_captures;
    for (int i = 0; i < n_captures; i++)
        s->model.capture_layers[i] = layers[i];
    s->model.max_context = mq_cache_capacity(cache);
    s->model.plain = plain;
    mq_status st = gather(s, store, err);
    if (st == MQ_OK)
        st = kernels->decode->create(&s->decode, dev, &s->model, err);
    if (st != MQ_OK) {
        mq_device_step_free(s);
        return st;
    }
    *out = s;
    return MQ_OK;
}

void mq_device_step_free(mq_device_step *s)
{
    if (!s)
        return;
    s->kernels->decode->free(s->decode);
    free(s->layers);
    free(s->ranks);
    free(s->experts);
    free(s);
}

mq_status mq_device_step_run(mq_device_step *s, float *const *captures, const int32_t *ids, int n,
                             mq_err *err)
{
    const mq_decode_ops *ops = s->kernels->decode;
    int64_t row_bytes = (int64_t)sizeof(float) * s->model.model->hidden;
    MQ_TRY(ops->step(s->decode, ids, n, mq_cache_length(s->cache), err));
    for (int i = 0; i < s->n_captures; i++)
        MQ_TRY(s->kernels->copy(s->dev, captures[i], ops->capture(s->decode, i), n * row_bytes,
                                err));
    mq_cache_advance(s->cache, n);
    return MQ_OK;
}

float *mq_device_step_logits(const mq_device_step *s)
{
    return s->kernels->decode->logits(s->decode);
}

mq_status mq_device_step_distinct_experts(mq_device_step *s, int32_t *out, mq_err *err)
{
    return s->kernels->decode->distinct_experts(s->decode, out, err);
}
