/* A lane knows two ways through the layers: the forward pass composed of single operations, for many rows and wherever
 * nothing better is there, and the step that a device brings along. */
#include "runtime/lane.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device_step.h"
#include "runtime/forward.h"

struct mq_lane {
    const mq_kernels *kernels;
    mq_dev *dev;
    mq_store *store;
    mq_forward *forward;
    mq_cache *cache;
    int first_rank, n_local; /* its ranks */
    mq_exchange *exchange;   /* with other lanes, or NULL */
    mq_exchange_way way;
    mq_device_step *step; /* NULL: composed */
    mq_err why_composed;
    int n_taps;
    int tap_layers[MQ_MAX_TAPS];
    float *x;        /* [rows, hidden] residual stream, dev's memory */
    float *logits;   /* [MQ_LANE_STEP_ROWS, vocab], dev's memory */
    bool was_step;   /* the last feed went through step */
    int64_t n_fed;   /* its rows */
};

mq_status mq_lane_open(mq_lane **out, const mq_kernels *kernels, int ordinal, const char *dir,
                       const mq_store_options *options, mq_err *err)
{
    *out = NULL;
    mq_lane *l = calloc(1, sizeof *l);
    if (!l)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    mq_store_options so = *options;
    l->kernels = so.kernels = kernels;
    mq_status st = kernels->dev_open(&l->dev, ordinal, options->n_threads, NULL, err);
    so.dev = l->dev;
    if (st == MQ_OK)
        st = mq_store_open(&l->store, dir, &so, err);
    if (st != MQ_OK) {
        mq_lane_close(l);
        return st;
    }
    *out = l;
    return MQ_OK;
}

void mq_lane_close(mq_lane *l)
{
    if (!l)
        return;
    mq_device_step_free(l->step);
    if (l->exchange)
        l->kernels->exchange->close(l->exchange);
    if (l->dev) {
        l->kernels->release(l->dev, l->logits);
        l->kernels->release(l->dev, l->x);
    }
    mq_cache_free(l->cache);
    mq_forward_free(l->forward);
    mq_store_close(l->store); /* its weights are in the device's memory */
    if (l->dev)
        l->kernels->dev_close(l->dev);
    free(l);
}

mq_dev *mq_lane_dev(const mq_lane *l)
{
    return l->dev;
}

mq_store *mq_lane_store(const mq_lane *l)
{
    return l->store;
}

mq_cache *mq_lane_cache(const mq_lane *l)
{
    return l->cache;
}

mq_status mq_lane_load(mq_lane *l, const mq_lane_options *options, mq_join *join, int member, mq_err *err)
{
    const mq_model *m = mq_store_model(l->store);
    int n_ranks = mq_store_n_ranks(l->store);
    void *p;
    assert(options->n_taps <= MQ_MAX_TAPS && options->rows >= MQ_LANE_STEP_ROWS);
    MQ_TRY(mq_store_load(l->store, err));
    MQ_TRY(mq_forward_create(&l->forward, l->kernels, l->dev, l->store, options->rows, options->rows, err));
    if (join)
        mq_forward_set_join(l->forward, join, member);
    int only = mq_store_only_rank(l->store);
    l->first_rank = join ? mq_join_first_rank(join, member) : only >= 0 ? only : 0;
    l->n_local = join ? mq_join_n_local(join) : only >= 0 ? 1 : n_ranks;
    MQ_TRY(mq_cache_create_held(&l->cache, l->kernels, l->dev, m, n_ranks, l->first_rank, l->n_local,
                                options->context, options->rows, err));
    MQ_TRY(l->kernels->alloc(l->dev, &p, 4 * options->rows * m->hidden, err));
    l->x = p;
    MQ_TRY(l->kernels->alloc(l->dev, &p, 4 * (int64_t)MQ_LANE_STEP_ROWS * m->vocab, err));
    l->logits = p;
    return MQ_OK;
}

mq_status mq_lane_connect(mq_lane *const *lanes, int n, mq_exchange_way way, mq_err *err)
{
    mq_exchange *ends[MQ_EXCHANGE_MAX_RANKS];
    const mq_exchange_ops *ops = lanes[0]->kernels->exchange;
    if (n == 1 || !ops || mq_store_n_ranks(lanes[0]->store) > MQ_EXCHANGE_MAX_RANKS)
        return MQ_OK;
    for (int i = 0; i < n; i++) {
        mq_lane *l = lanes[i];
        const mq_exchange_plan plan = {.n_ranks = mq_store_n_ranks(l->store),
                                       .first_rank = l->first_rank,
                                       .n_local = l->n_local,
                                       .hidden = mq_store_model(l->store)->hidden};
        MQ_TRY(ops->create(&l->exchange, l->dev, &plan, err));
        l->way = way;
        ends[i] = l->exchange;
    }
    return way == MQ_EXCHANGE_NCCL ? ops->connect_nccl(ends, n, NULL, err) : ops->connect(ends, n, err);
}

mq_status mq_lane_prepare_step(mq_lane *l, const mq_lane_options *options, mq_err *err)
{
    l->n_taps = options->n_taps;
    for (int i = 0; i < options->n_taps; i++)
        l->tap_layers[i] = options->tap_layers[i];
    if (options->composed_step) {
        (void)mq_fail(&l->why_composed, MQ_E_UNSUPPORTED, "asked for");
        return MQ_OK;
    }
    const mq_device_step_options so = {.first_rank = l->first_rank,
                                       .n_local = l->n_local,
                                       .exchange_ops = l->kernels->exchange,
                                       .exchange = l->exchange,
                                       .exchange_way = l->way,
                                       .layers = l->tap_layers,
                                       .n_captures = l->n_taps,
                                       .plain = options->plain_step};
    mq_status st = mq_device_step_create(&l->step, l->kernels, l->dev, l->store, l->cache, &so, &l->why_composed);
    return st == MQ_OK || st == MQ_E_UNSUPPORTED ? MQ_OK : mq_fail(err, st, "%s", l->why_composed.text);
}

mq_exchange *mq_lane_exchange(const mq_lane *l, mq_exchange_way *way)
{
    *way = l->way;
    return l->exchange;
}

const char *mq_lane_why_composed(const mq_lane *l)
{
    return l->step ? NULL : l->why_composed.text;
}

int64_t mq_lane_workspace_bytes(const mq_kernels *kernels, const mq_store *store, int n_lanes,
                                const mq_lane_options *options)
{
    const mq_model *m = mq_store_model(store);
    int n_ranks = mq_store_n_ranks(store), n_local = mq_store_only_rank(store) >= 0 ? 1 : n_ranks / n_lanes;
    int64_t rows = options->rows;
    int64_t bytes = mq_forward_workspace_bytes(m, n_ranks, rows, rows) + 4 * rows * m->hidden +
                    4 * (int64_t)MQ_LANE_STEP_ROWS * m->vocab;
    if (!options->composed_step)
        bytes += mq_device_step_bytes(kernels, m, n_ranks, n_local, options->n_taps, options->context);
    return n_lanes > 1 ? bytes + mq_join_bytes(n_ranks, mq_lane_join_count(m, n_ranks, rows)) : bytes;
}

int64_t mq_lane_join_count(const mq_model *m, int n_ranks, int64_t rows)
{
    int64_t parts = rows * m->hidden, logits = (int64_t)MQ_LANE_STEP_ROWS * (m->vocab / n_ranks);
    return parts > logits ? parts : logits;
}

mq_status mq_lane_feed(mq_lane *l, bool is_step, const int32_t *ids, int64_t n, float *const *captures, mq_err *err)
{
    l->was_step = is_step && l->step;
    l->n_fed = n;
    if (l->was_step)
        return mq_device_step_run(l->step, captures, ids, (int)n, err);
    if (l->n_taps > 0)
        mq_forward_capture(l->forward, l->tap_layers, captures, l->n_taps);
    return mq_forward_tokens(l->forward, is_step ? MQ_FORWARD_STEP : MQ_FORWARD_BATCH, l->x, ids, n, l->cache, NULL, NULL,
                             err);
}

mq_status mq_lane_head(mq_lane *l, int64_t n, mq_err *err)
{
    assert(n >= 1 && n <= l->n_fed && n <= MQ_LANE_STEP_ROWS);
    const float *x = l->x + (l->n_fed - n) * mq_store_model(l->store)->hidden;
    if (!l->was_step) /* otherwise the step has computed them, of all its rows */
        MQ_TRY(mq_forward_head(l->forward, MQ_FORWARD_STEP, l->logits, x, n, err));
    if (l->was_step && !l->exchange)
        return MQ_OK; /* sampling is queued behind it */
    MQ_TRY(l->kernels->dev_sync(l->dev, err));
    return l->was_step ? l->kernels->exchange->check(l->exchange, err) : MQ_OK;
}

mq_status mq_lane_take_logits(mq_lane *l, const mq_lane *from, int64_t n, mq_err *err)
{
    if (!l->was_step)
        return MQ_OK; /* every lane has them all */
    int64_t vocab = mq_store_model(l->store)->vocab, part = vocab / mq_store_n_ranks(l->store);
    int64_t first = from->first_rank * part, bytes = 4 * from->n_local * part;
    for (int64_t i = 0; i < n; i++)
        MQ_TRY(l->kernels->copy(l->dev, mq_lane_logits(l) + i * vocab + first,
                                mq_lane_logits(from) + i * vocab + first, bytes, err));
    return MQ_OK;
}

void mq_lane_give_up(mq_lane *l)
{
    if (l->exchange)
        l->kernels->exchange->stop(l->exchange);
}

float *mq_lane_logits(const mq_lane *l)
{
    return l->was_step ? mq_device_step_logits(l->step) : l->logits;
}

mq_status mq_lane_distinct_experts(mq_lane *l, int32_t *out, mq_err *err)
{
    if (l->was_step)
        return mq_device_step_distinct_experts(l->step, out, err);
    memcpy(out, mq_forward_distinct_experts(l->forward), (size_t)mq_store_model(l->store)->n_layers * sizeof *out);
    return MQ_OK;
}
