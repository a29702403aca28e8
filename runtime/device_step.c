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
    mq_decode_layer *layers; /* [n_local, n_layers] */
    mq_decode_rank *ranks;   /* [n_local] */
    mq_mlp_weights *experts; /* [n_local, n_layers, n_experts] */
    mq_decode_model model;
    mq_decode *decode;
};

int64_t mq_device_step_bytes(const mq_kernels *kernels, const mq_model *m, int n_ranks, int n_local,
                             int n_captures, int64_t context)
{
    return kernels->decode ? kernels->decode->bytes(m, n_ranks, n_local, n_captures, context) : 0;
}

static mq_status gather_layer(mq_device_step *s, mq_store *store, int local, int layer, mq_err *err)
{
    const mq_model *m = s->model.model;
    int rank = s->model.first_rank + local;
    int64_t at = (int64_t)local * m->n_layers + layer;
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
    const mq_model *m = s->model.model;
    size_t n_local = (size_t)s->model.n_local, n_layers = (size_t)m->n_layers;
    s->layers = calloc(n_local * n_layers, sizeof *s->layers);
    s->ranks = calloc(n_local, sizeof *s->ranks);
    s->experts = calloc(n_local * n_layers * (size_t)(m->n_experts + 1), sizeof *s->experts);
    if (!s->layers || !s->ranks || !s->experts)
        return mq_fail(err, MQ_E_NOMEM, "decode step: out of memory");
    s->model.ranks = s->ranks;
    MQ_TRY(mq_store_embedding(store, &s->model.embedding, err));
    MQ_TRY(mq_store_final_norm(store, &s->model.final_norm, err));
    for (int r = 0; r < s->model.n_local; r++) {
        for (int l = 0; l < m->n_layers; l++)
            MQ_TRY(gather_layer(s, store, r, l, err));
        s->ranks[r].layers = s->layers + (size_t)r * n_layers;
        MQ_TRY(mq_store_head(store, &s->ranks[r].head, s->model.first_rank + r, err));
    }
    return MQ_OK;
}

static void describe(mq_device_step *s, const mq_store *store, const mq_device_step_options *o)
{
    s->n_captures = o->n_captures;
    s->model = (mq_decode_model){.model = mq_store_model(store),
                                 .n_ranks = mq_store_n_ranks(store),
                                 .first_rank = o->first_rank,
                                 .n_local = o->n_local,
                                 .exchange_ops = o->exchange_ops,
                                 .exchange = o->exchange,
                                 .exchange_way = o->exchange_way,
                                 .loop_back = mq_store_only_rank(store) >= 0,
                                 .n_captures = o->n_captures,
                                 .max_context = mq_cache_capacity(s->cache),
                                 .plain = o->plain};
    for (int i = 0; i < o->n_captures; i++)
        s->model.capture_layers[i] = o->layers[i];
}

mq_status mq_device_step_create(mq_device_step **out, const mq_kernels *kernels, mq_dev *dev,
                                mq_store *store, mq_cache *cache,
                                const mq_device_step_options *options, mq_err *err)
{
    *out = NULL;
    if (!kernels->decode)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: no decode step of its own", kernels->name);
    assert(options->n_captures <= MQ_MAX_TAPS);
    mq_device_step *s = calloc(1, sizeof *s);
    if (!s)
        return mq_fail(err, MQ_E_NOMEM, "decode step: out of memory");
    s->kernels = kernels;
    s->dev = dev;
    s->cache = cache;
    describe(s, store, options);
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
