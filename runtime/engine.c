/* One sequence on a resident model: prefill in chunks (batch kernels), steps of 1 to 8 rows (fixed
 * order), rollback.
 *
 * With a drafter every call also copies the residual stream after the drafter's layers.  The copies
 * wait in a buffer, where rows that are taken back are simply dropped, until a proposal wants them
 * or the buffer is full: a step without a proposal costs the drafter nothing but the copies, and of a
 * long prompt or pause only what the drafter can see of it is ever computed. */
#include "runtime/engine_state.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/engine_plan.h"

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Asked by every device's store while it loads. */
static bool is_stopped(void *ctx)
{
    mq_engine *e = ctx;
    return __atomic_load_n(&e->has_failed, __ATOMIC_RELAXED) || (e->stopped && e->stopped());
}

static mq_status load_lane(void *ctx, int member, mq_err *err)
{
    mq_engine *e = ctx;
    const mq_lane_options o = {.context = e->context, .rows = e->prefill_rows};
    mq_status st = mq_lane_load(e->lanes[member], &o, e->join, member, err);
    if (st != MQ_OK)
        __atomic_store_n(&e->has_failed, true, __ATOMIC_RELAXED);
    return st;
}

/* What the lanes' ways through the layers are made of. */
static mq_status prepare_steps(mq_engine *e, const mq_engine_options *o, mq_err *err)
{
    mq_lane_options lo = {.context = e->context,
                          .rows = e->prefill_rows,
                          .composed_step = o->composed_step,
                          .plain_step = o->plain_step};
    if (e->draft)
        lo.n_taps = mq_draft_taps(e->draft, &lo.tap_layers);
    if (!o->composed_step)
        MQ_TRY(mq_lane_connect(e->lanes, e->n_lanes, o->allreduce, err));
    for (int i = 0; i < e->n_lanes; i++) {
        MQ_TRY(mq_lane_prepare_step(e->lanes[i], &lo, err));
        if (e->n_drafts == 1)
            lo.n_taps = 0; /* the drafter is on the first */
    }
    return MQ_OK;
}

/* Every device's lane, its model open but not loaded. */
static mq_status open_lanes(mq_engine *e, const char *dir, const mq_engine_options *o, mq_draft_kind draft, mq_err *err)
{
    int n = mq_engine_n_lanes(o);
    MQ_TRY(mq_engine_check_lanes(o, err));
    MQ_TRY(mq_group_create(&e->group, n, err));
    for (int i = 0; i < n; i++) {
        mq_store_options so = mq_engine_store_options(e->kernels, o, draft, i);
        so.stopped = is_stopped;
        so.stopped_ctx = e;
        int ordinal = o->n_devices > 0 ? o->ordinals[i] : 0;
        MQ_TRY(mq_lane_open(&e->lanes[i], e->kernels, ordinal, dir, &so, err));
        e->n_lanes = i + 1;
        MQ_TRY(e->kernels->set_precision(mq_lane_dev(e->lanes[i]), o->precision, err));
    }
    e->dev = mq_lane_dev(e->lanes[0]);
    e->store = mq_lane_store(e->lanes[0]);
    int64_t total;
    return e->kernels->memory(e->dev, &e->free_at_open, &total, err);
}

static mq_status open_join(mq_engine *e, mq_err *err)
{
    mq_dev *devs[MQ_ENGINE_DEVICES];
    if (e->n_lanes == 1)
        return MQ_OK;
    for (int i = 0; i < e->n_lanes; i++)
        devs[i] = mq_lane_dev(e->lanes[i]);
    int n_ranks = mq_store_n_ranks(e->store);
    int64_t count = mq_lane_join_count(mq_store_model(e->store), n_ranks, e->prefill_rows);
    return mq_join_create(&e->join, e->group, e->kernels, devs, n_ranks, count, err);
}

static mq_status open_parts(mq_engine *e, const char *dir, const mq_engine_options *o, mq_err *err)
{
    mq_draft_kind draft;
    mq_engine_bytes bytes;
    void *p;
    MQ_TRY(mq_engine_choose_draft(&draft, dir, o, err));
    MQ_TRY(open_lanes(e, dir, o, draft, err));
    MQ_TRY(mq_engine_plan_bytes(&bytes, e->kernels, e->store, o, draft, err));
    bytes.weights = mq_engine_weight_bytes(e);
    MQ_TRY(mq_engine_check_budget(&bytes, o->memory_bytes, err));
    int64_t each = (bytes.cache + bytes.workspace) / e->n_lanes;
    bool is_spread = mq_engine_spreads_draft(e->kernels, o, draft);
    int64_t drafter = bytes.drafter / (is_spread ? e->n_lanes : 1);
    e->planned = mq_store_resident_bytes(e->store) + each + drafter;
    for (int i = 0; i < e->n_lanes; i++)
        MQ_TRY(mq_store_check_room(mq_lane_store(e->lanes[i]),
                                   each + bytes.reserve / e->n_lanes + (i && !is_spread ? 0 : drafter), err));
    e->context = bytes.context;
    e->prefill_rows = mq_engine_prefill_rows(o);
    MQ_TRY(open_join(e, err));
    MQ_TRY(mq_group_run(e->group, load_lane, e, err));
    MQ_TRY(e->kernels->alloc(e->dev, &p, sizeof *e->sampled, err));
    e->sampled = p;
    MQ_TRY(mq_engine_open_draft(e, draft, is_spread, err));
    MQ_TRY(prepare_steps(e, o, err));
    return mq_engine_prepare_draft(e, o, err);
}

mq_status mq_engine_open(mq_engine **out, const char *dir, const mq_kernels *kernels,
                         const mq_engine_options *options, mq_err *err)
{
    *out = NULL;
    mq_engine *e = calloc(1, sizeof *e);
    if (!e)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    e->kernels = kernels;
    e->stopped = options->stopped;
    mq_status st = open_parts(e, dir, options, err);
    if (st != MQ_OK) {
        mq_engine_close(e);
        return st;
    }
    *out = e;
    return MQ_OK;
}

void mq_engine_close(mq_engine *e)
{
    if (!e)
        return;
    if (e->dev) {
        e->kernels->release(e->dev, e->sampled);
    }
    /* After a failure one device may still be reading another's memory. */
    for (int i = 0; i < e->n_lanes; i++)
        (void)e->kernels->dev_sync(mq_lane_dev(e->lanes[i]), NULL);
    mq_engine_close_draft(e);
    mq_join_free(e->join);
    for (int i = 0; i < e->n_lanes; i++)
        mq_lane_close(e->lanes[i]);
    mq_group_free(e->group);
    free(e);
}

const mq_model *mq_engine_model(const mq_engine *e)
{
    return mq_store_model(e->store);
}

const char *mq_engine_device_name(const mq_engine *e)
{
    return e->kernels->dev_name(e->dev);
}

int mq_engine_n_devices(const mq_engine *e)
{
    return e->n_lanes;
}

const char *mq_engine_nth_device_name(const mq_engine *e, int i)
{
    return e->kernels->dev_name(mq_lane_dev(e->lanes[i]));
}

int64_t mq_engine_weight_bytes(const mq_engine *e)
{
    int64_t bytes = 0;
    for (int i = 0; i < e->n_lanes; i++)
        bytes += mq_store_resident_bytes(mq_lane_store(e->lanes[i]));
    return bytes;
}

mq_load_figures mq_engine_loaded(const mq_engine *e)
{
    mq_load_figures all = {0};
    for (int i = 0; i < e->n_lanes; i++) {
        const mq_load_figures f = mq_store_loaded(mq_lane_store(e->lanes[i]));
        all.n_records += f.n_records;
        all.n_checked += f.n_checked;
        all.read_bytes += f.read_bytes;
        all.direct_bytes += f.direct_bytes;
        all.plain_bytes += f.plain_bytes;
        all.seconds = f.seconds > all.seconds ? f.seconds : all.seconds;
    }
    return all;
}

int64_t mq_engine_context(const mq_engine *e)
{
    return e->context;
}

int64_t mq_engine_length(const mq_engine *e)
{
    return mq_cache_length(mq_lane_cache(e->lanes[0]));
}

void mq_engine_reset(mq_engine *e)
{
    for (int i = 0; i < e->n_lanes; i++)
        mq_cache_truncate(mq_lane_cache(e->lanes[i]), 0);
    e->n_logits = 0;
    e->n_waiting = 0;
    for (int i = 0; i < e->n_drafts; i++)
        mq_draft_reset(e->drafts[i]);
}

void mq_engine_rollback(mq_engine *e, int64_t length)
{
    if (e->draft) {
        assert(length >= mq_draft_length(e->draft));
        e->n_waiting = length - mq_draft_length(e->draft);
    }
    for (int i = 0; i < e->n_lanes; i++)
        mq_cache_truncate(mq_lane_cache(e->lanes[i]), length);
}

/* Ids and room are checked before the first chunk, so that a refused call changes nothing. */
static mq_status check_ids(const mq_engine *e, const int32_t *ids, int64_t n, mq_err *err)
{
    int vocab = mq_engine_model(e)->vocab;
    int64_t length = mq_engine_length(e);
    if (n > e->context - length)
        return mq_fail(err, MQ_E_ARG,
                       "%lld tokens after %lld, expected at most %lld in all (the context)",
                       (long long)n, (long long)length, (long long)e->context);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return mq_fail(err, MQ_E_ARG, "token id %d at position %lld, expected 0 to %d", ids[i],
                           (long long)(length + i), vocab - 1);
    return MQ_OK;
}

/* One call of every lane. */
typedef struct call {
    mq_engine *e;
    bool is_step;
    const int32_t *ids;
    int64_t n, n_logits; /* rows fed, and how many of them, the last, get logits */
} call;

static mq_status feed_lane(const call *c, int member, mq_err *err)
{
    const mq_engine *e = c->e;
    mq_lane *l = e->lanes[member];
    float *captures[MQ_MAX_TAPS];
    bool has_draft = mq_engine_captures(e, member, captures);
    MQ_TRY(mq_lane_feed(l, c->is_step, c->ids, c->n, has_draft ? captures : NULL, err));
    if (c->n_logits == 0)
        return e->kernels->dev_sync(mq_lane_dev(l), err);
    MQ_TRY(mq_lane_head(l, c->n_logits, err));
    if (e->n_lanes == 1)
        return MQ_OK;
    MQ_TRY(mq_group_wait(e->group, err));
    for (int i = 1; member == 0 && i < e->n_lanes; i++)
        MQ_TRY(mq_lane_take_logits(l, e->lanes[i], c->n_logits, err));
    return member == 0 ? e->kernels->dev_sync(mq_lane_dev(l), err) : MQ_OK;
}

static mq_status call_lane(void *ctx, int member, mq_err *err)
{
    const call *c = ctx;
    mq_status st = feed_lane(c, member, err);
    if (st != MQ_OK)
        mq_lane_give_up(c->e->lanes[member]);
    return st;
}

/* The layers for n ids, at most prefill_rows; what the drafter wants to know of them waits. */
static mq_status feed(mq_engine *e, bool is_step, const int32_t *ids, int64_t n, int64_t n_logits, mq_err *err)
{
    call c = {.e = e, .is_step = is_step, .ids = ids, .n = n, .n_logits = n_logits};
    e->n_logits = 0;
    e->has_sampled = false;
    if (e->draft)
        MQ_TRY(mq_engine_make_room(e, n, err));
    MQ_TRY(mq_group_run(e->group, call_lane, &c, err));
    if (e->draft) {
        memcpy(e->waiting_ids + e->n_waiting, ids, (size_t)n * sizeof *ids);
        e->n_waiting += n;
    }
    e->n_logits = n_logits;
    e->logits_pos = mq_engine_length(e) - n_logits;
    return MQ_OK;
}

mq_status mq_engine_prefill(mq_engine *e, const int32_t *ids, int64_t n, mq_err *err)
{
    if (n < 1)
        return mq_fail(err, MQ_E_ARG, "an empty prompt, expected at least one token");
    MQ_TRY(check_ids(e, ids, n, err));
    for (int64_t i = 0, rows; i < n; i += rows) {
        rows = at_most(n - i, e->prefill_rows);
        MQ_TRY(feed(e, false, ids + i, rows, i + rows == n ? 1 : 0, err));
    }
    return MQ_OK;
}

mq_status mq_engine_step(mq_engine *e, const int32_t *ids, int n, mq_err *err)
{
    if (n < 1 || n > MAX_STEP)
        return mq_fail(err, MQ_E_ARG, "a step of %d rows, expected 1 to %d", n, MAX_STEP);
    MQ_TRY(check_ids(e, ids, n, err));
    return feed(e, true, ids, n, n, err);
}

mq_status mq_engine_wait(mq_engine *e, mq_err *err)
{
    return e->kernels->dev_sync(e->dev, err);
}

mq_status mq_engine_logits(mq_engine *e, float *logits, mq_err *err)
{
    int64_t bytes = (int64_t)sizeof *logits * e->n_logits * mq_engine_model(e)->vocab;
    MQ_TRY(e->kernels->download(e->dev, logits, mq_lane_logits(e->lanes[0]), bytes, err));
    return e->kernels->dev_sync(e->dev, err);
}

/* Sample every row of the last call at once: one visit to the device instead of one a row. */
static mq_status sample_rows(mq_engine *e, const mq_sampling *s, mq_err *err)
{
    int64_t vocab = mq_engine_model(e)->vocab;
    MQ_TRY(e->kernels->sample(e->dev, e->sampled->token, mq_lane_logits(e->lanes[0]), s, e->n_logits, vocab,
                              e->logits_pos + 1, err));
    MQ_TRY(e->kernels->pick(e->dev, e->sampled->logit, mq_lane_logits(e->lanes[0]), e->sampled->token,
                            e->n_logits, vocab, err));
    MQ_TRY(e->kernels->download(e->dev, &e->host_sampled, e->sampled, sizeof e->host_sampled, err));
    MQ_TRY(e->kernels->dev_sync(e->dev, err));
    e->sampling = *s;
    e->has_sampled = true;
    return MQ_OK;
}

static bool is_same(const mq_sampling *a, const mq_sampling *b)
{
    return a->temperature == b->temperature && a->top_k == b->top_k && a->top_p == b->top_p &&
           a->seed == b->seed;
}

mq_status mq_engine_sample(mq_engine *e, int32_t *token, int row, const mq_sampling *s, mq_err *err)
{
    assert(row >= 0 && row < e->n_logits);
    if (!e->has_sampled || !is_same(&e->sampling, s))
        MQ_TRY(sample_rows(e, s, err));
    *token = e->host_sampled.token[row];
    float logit = e->host_sampled.logit[row];
    if (!isfinite(logit))
        return mq_fail(err, MQ_E_NUMERIC,
                       "position %lld: the chosen logit is %g, expected a finite number: the "
                       "model's weights overflow",
                       (long long)(e->logits_pos + row), (double)logit);
    return MQ_OK;
}

const char *mq_engine_why_composed(const mq_engine *e)
{
    return mq_lane_why_composed(e->lanes[0]);
}

mq_status mq_engine_distinct_experts(mq_engine *e, int32_t *out, mq_err *err)
{
    return mq_lane_distinct_experts(e->lanes[0], out, err);
}

mq_store *mq_engine_store(mq_engine *e)
{
    return e->store;
}

void mq_engine_clocks(const mq_engine *e, int *core_mhz, int *memory_mhz)
{
    e->kernels->dev_clocks(e->dev, core_mhz, memory_mhz);
}
