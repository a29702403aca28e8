/* What benchmarks ask of an engine: positions with made-up keys and values, and a plain read of all weights. */
#include "runtime/engine_state.h"

/* One call for benchmarks on every lane. */
typedef struct bench_call {
    const mq_engine *e;
    int64_t n; /* positions to skip */
    uint64_t seed;
    int64_t n_bytes[MQ_ENGINE_DEVICES]; /* read by each lane */
} bench_call;

static mq_status skip_lane(void *ctx, int member, mq_err *err)
{
    const bench_call *c = ctx;
    mq_lane *l = c->e->lanes[member];
    MQ_TRY(mq_cache_fill(mq_lane_cache(l), c->seed, err));
    mq_cache_advance(mq_lane_cache(l), c->n);
    return c->e->kernels->dev_sync(mq_lane_dev(l), err);
}

mq_status mq_engine_skip(mq_engine *e, int64_t n, uint64_t seed, mq_err *err)
{
    int64_t length = mq_engine_length(e);
    if (e->draft && mq_draft_kind_of(e->draft) != MQ_DRAFT_DFLASH)
        return mq_fail(err, MQ_E_ARG, "positions cannot be skipped with MTP layers");
    if (n < 0 || n > e->context - length)
        return mq_fail(err, MQ_E_ARG,
                       "%lld positions after %lld, expected at most %lld in all (the context)",
                       (long long)n, (long long)length, (long long)e->context);
    bench_call c = {.e = e, .n = n, .seed = seed};
    e->n_logits = 0;
    MQ_TRY(mq_group_run(e->group, skip_lane, &c, err));
    for (int i = 0; i < e->n_drafts; i++)
        mq_draft_skip(e->drafts[i], e->n_waiting + n);
    e->n_waiting = 0;
    return MQ_OK;
}

static mq_status read_lane(void *ctx, int member, mq_err *err)
{
    bench_call *c = ctx;
    const mq_kernels *k = c->e->kernels;
    mq_lane *l = c->e->lanes[member];
    void *sum;
    MQ_TRY(k->alloc(mq_lane_dev(l), &sum, sizeof(uint64_t), err));
    mq_status st = mq_store_sum(mq_lane_store(l), k, mq_lane_dev(l), sum, &c->n_bytes[member], err);
    if (st == MQ_OK)
        st = k->dev_sync(mq_lane_dev(l), err);
    k->release(mq_lane_dev(l), sum);
    return st;
}

mq_status mq_engine_read_weights(mq_engine *e, int64_t *n_bytes, mq_err *err)
{
    bench_call c = {.e = e};
    MQ_TRY(mq_group_run(e->group, read_lane, &c, err));
    *n_bytes = 0;
    for (int i = 0; i < e->n_lanes; i++)
        *n_bytes += c.n_bytes[i];
    return MQ_OK;
}

mq_status mq_engine_memory(mq_engine *e, int64_t *planned, int64_t *taken, mq_err *err)
{
    int64_t free_bytes, total;
    MQ_TRY(e->kernels->memory(e->dev, &free_bytes, &total, err));
    *planned = e->planned;
    *taken = e->free_at_open - free_bytes;
    return MQ_OK;
}
