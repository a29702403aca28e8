/* One sequence on a resident model: prefill in chunks (batch kernels), steps of 1 to 8 rows (fixed
 * order), rollback.
 *
 * With a drafter every call also copies the residual stream after the drafter's layers.  The copies
 * wait in a buffer, where rows that are taken back are simply dropped, until a proposal wants them
 * or the buffer is full: a step without a proposal costs the drafter nothing but the copies.
 *
 * The memory that weights, cache and workspace will take is computed from headers and compared with
 * the budget before anything large is allocated. */
#include "runtime/engine.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device_step.h"
#include "runtime/forward.h"

enum { MAX_STEP = 8, DEFAULT_CONTEXT = 8192, DEFAULT_PREFILL = 256 };

/* What sampling gave for the rows of a call. */
typedef struct chosen {
    int32_t token[MAX_STEP];
    float logit[MAX_STEP];
} chosen;

struct mq_engine {
    const mq_kernels *kernels;
    mq_dev *dev;
    mq_store *store;
    mq_forward *forward;
    mq_cache *cache;
    int64_t context, prefill_rows;
    mq_device_step *step; /* the device's own step; NULL: composed by forward */
    mq_err why_composed;
    float *x;           /* [prefill_rows, hidden], dev's memory */
    float *logits;      /* [MAX_STEP, vocab], dev's memory */
    float *row_logits;  /* those of the last call, in either place */
    chosen *sampled;    /* [1], dev's memory */
    int64_t n_logits;   /* rows of the last call */
    int64_t logits_pos; /* position of the first of them */
    bool was_step;      /* the last call was a step of the device's own */
    bool has_sampled;   /* host_sampled holds what sampling gives for the last call's rows */
    mq_sampling sampling;
    chosen host_sampled;

    mq_draft *draft;      /* NULL: none */
    int n_taps;           /* layers it looks at */
    float *features;      /* [n_taps, prefill_rows, hidden], dev's memory: positions from */
    int32_t *waiting_ids; /* [prefill_rows] the drafter's length on, and their tokens */
    int64_t n_waiting;
};

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t prefill_rows(const mq_engine_options *o)
{
    int64_t rows = o->prefill_rows > 0 ? o->prefill_rows : DEFAULT_PREFILL;
    return rows < MAX_STEP ? MAX_STEP : rows;
}

static const char *draft_name(mq_draft_kind kind)
{
    return kind == MQ_DRAFT_DFLASH ? "DFlash drafter" : "MTP layers";
}

/* Which drafter a store of dir shall lend: known from headers. */
static mq_status choose_draft(mq_draft_kind *out, const char *dir, const mq_engine_options *o,
                              mq_err *err)
{
    *out = o->draft_any ? MQ_DRAFT_NONE : o->draft;
    if (!o->draft_any)
        return MQ_OK;
    const mq_store_options so = {
        .n_ranks = o->n_ranks > 0 ? o->n_ranks : 1, .n_threads = 1, .dflash = true, .mtp = true,
        .synthetic = o->synthetic};
    mq_store *s;
    MQ_TRY(mq_store_open(&s, dir, &so, err));
    *out = mq_draft_available(s, MQ_DRAFT_DFLASH) ? MQ_DRAFT_DFLASH
           : mq_draft_available(s, MQ_DRAFT_MTP)  ? MQ_DRAFT_MTP
                                                  : MQ_DRAFT_NONE;
    mq_store_close(s);
    return MQ_OK;
}

/* How many layers a drafter looks at. */
static int n_taps_of(const mq_store *s, mq_draft_kind kind)
{
    return kind == MQ_DRAFT_NONE     ? 0
           : kind == MQ_DRAFT_DFLASH ? mq_store_draft_model(s)->n_taps
                                     : 1;
}

/* Bytes of the drafter and of the features that wait for it. */
static mq_status drafter_bytes(int64_t *out, const mq_store *s, mq_draft_kind kind, int64_t rows,
                               mq_err *err)
{
    *out = 0;
    if (kind == MQ_DRAFT_NONE)
        return MQ_OK;
    if (!mq_draft_available(s, kind))
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: the model has no %s", mq_store_dir(s),
                       draft_name(kind));
    *out = mq_draft_bytes(s, kind, rows) +
           rows * (4 * (int64_t)n_taps_of(s, kind) * mq_store_model(s)->hidden + 4);
    return MQ_OK;
}

static mq_status plan_bytes(mq_engine_bytes *out, const mq_kernels *kernels, const mq_store *s,
                            const mq_engine_options *o, mq_draft_kind draft, mq_err *err)
{
    const mq_model *m = mq_store_model(s);
    int n_ranks = mq_store_n_ranks(s);
    int64_t rows = prefill_rows(o);
    if (o->context > m->max_positions)
        return mq_fail(err, MQ_E_ARG,
                       "a context of %lld positions, expected at most %d (max_position_embeddings)",
                       (long long)o->context, m->max_positions);
    out->context = o->context > 0 ? o->context : at_most(DEFAULT_CONTEXT, m->max_positions);
    out->weights = mq_store_resident_bytes(s);
    out->cache = mq_cache_bytes(m, n_ranks, out->context, rows);
    if (mq_store_only_rank(s) >= 0)
        out->cache /= n_ranks;
    out->workspace = mq_forward_workspace_bytes(m, n_ranks, rows, rows) + 4 * rows * m->hidden +
                     4 * (int64_t)MAX_STEP * m->vocab;
    if (!o->composed_step)
        out->workspace += mq_device_step_bytes(kernels, m, n_ranks, n_taps_of(s, draft), out->context);
    out->draft = draft;
    return drafter_bytes(&out->drafter, s, draft, rows, err);
}

mq_status mq_engine_plan(mq_engine_bytes *out, const char *dir, const mq_kernels *kernels,
                         const mq_engine_options *options, mq_err *err)
{
    mq_draft_kind draft;
    MQ_TRY(choose_draft(&draft, dir, options, err));
    const mq_store_options so = {.n_ranks = options->n_ranks > 0 ? options->n_ranks : 1,
                                 .n_threads = 1,
                                 .dflash = draft == MQ_DRAFT_DFLASH,
                                 .mtp = draft == MQ_DRAFT_MTP,
                                 .synthetic = options->synthetic};
    mq_store *s;
    MQ_TRY(mq_store_open(&s, dir, &so, err));
    mq_status st = plan_bytes(out, kernels, s, options, draft, err);
    mq_store_close(s);
    return st;
}

static mq_status check_budget(const mq_engine_bytes *b, int64_t budget, mq_err *err)
{
    int64_t need = b->weights + b->cache + b->workspace + b->drafter;
    if (budget > 0 && need > budget)
        return mq_fail(err, MQ_E_NOMEM,
                       "a budget of %lld bytes, but %lld are needed: %lld for weights, %lld for a "
                       "context of %lld, %lld for workspace, %lld for the drafter",
                       (long long)budget, (long long)need, (long long)b->weights,
                       (long long)b->cache, (long long)b->context, (long long)b->workspace,
                       (long long)b->drafter);
    return MQ_OK;
}

static mq_status alloc_buffers(mq_engine *e, mq_err *err)
{
    const mq_model *m = mq_store_model(e->store);
    int64_t logits_bytes = 4 * (int64_t)MAX_STEP * m->vocab;
    void *p;
    MQ_TRY(e->kernels->alloc(e->dev, &p, 4 * e->prefill_rows * m->hidden, err));
    e->x = p;
    MQ_TRY(e->kernels->alloc(e->dev, &p, logits_bytes, err));
    e->logits = p;
    MQ_TRY(e->kernels->alloc(e->dev, &p, sizeof(chosen), err));
    e->sampled = p;
    return MQ_OK;
}

static mq_status open_draft(mq_engine *e, mq_draft_kind kind, mq_err *err)
{
    const int *layers;
    void *p;
    if (kind == MQ_DRAFT_NONE)
        return MQ_OK;
    MQ_TRY(mq_draft_create(&e->draft, kind, e->kernels, e->dev, e->store, e->prefill_rows, err));
    e->n_taps = mq_draft_taps(e->draft, &layers);
    int64_t floats = e->n_taps * e->prefill_rows * mq_store_model(e->store)->hidden;
    MQ_TRY(e->kernels->alloc(e->dev, &p, 4 * floats, err));
    e->features = p;
    e->waiting_ids = calloc((size_t)e->prefill_rows, sizeof *e->waiting_ids);
    return e->waiting_ids ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "drafter: out of memory");
}

/* The device's own step, where it has one for this model. */
static mq_status open_step(mq_engine *e, const mq_engine_options *o, mq_err *err)
{
    const int *layers = NULL;
    if (e->draft)
        mq_draft_taps(e->draft, &layers);
    if (o->composed_step) {
        (void)mq_fail(&e->why_composed, MQ_E_UNSUPPORTED, "asked for");
        return MQ_OK;
    }
    mq_status st = mq_device_step_create(&e->step, e->kernels, e->dev, e->store, e->cache, layers,
                                         e->n_taps, o->plain_step, &e->why_composed);
    return st == MQ_OK || st == MQ_E_UNSUPPORTED ? MQ_OK
                                                 : mq_fail(err, st, "%s", e->why_composed.text);
}

static mq_status open_parts(mq_engine *e, const char *dir, const mq_engine_options *o, mq_err *err)
{
    mq_draft_kind draft;
    MQ_TRY(choose_draft(&draft, dir, o, err));
    mq_store_options so = {.n_ranks = o->n_ranks > 0 ? o->n_ranks : 1,
                           .n_threads = o->n_threads,
                           .check = true,
                           .dflash = draft == MQ_DRAFT_DFLASH,
                           .mtp = draft == MQ_DRAFT_MTP,
                           .progress = o->progress,
                           .progress_ctx = o->progress_ctx,
                           .kernels = e->kernels,
                           .synthetic = o->synthetic};
    MQ_TRY(e->kernels->dev_open(&e->dev, 0, o->n_threads, NULL, err));
    so.dev = e->dev;
    MQ_TRY(mq_store_open(&e->store, dir, &so, err));
    const mq_model *m = mq_store_model(e->store);
    mq_engine_bytes bytes;
    MQ_TRY(plan_bytes(&bytes, e->kernels, e->store, o, draft, err));
    MQ_TRY(check_budget(&bytes, o->memory_bytes, err));
    e->context = bytes.context;
    e->prefill_rows = prefill_rows(o);
    MQ_TRY(mq_store_load(e->store, err));
    MQ_TRY(mq_forward_create(&e->forward, e->kernels, e->dev, e->store, e->prefill_rows,
                             e->prefill_rows, err));
    MQ_TRY((mq_store_only_rank(e->store) >= 0 ? mq_cache_create_one : mq_cache_create)(
        &e->cache, e->kernels, e->dev, m, so.n_ranks, e->context, e->prefill_rows, err));
    MQ_TRY(alloc_buffers(e, err));
    MQ_TRY(open_draft(e, draft, err));
    return open_step(e, o, err);
}

mq_status mq_engine_open(mq_engine **out, const char *dir, const mq_kernels *kernels,
                         const mq_engine_options *options, mq_err *err)
{
    *out = NULL;
    mq_engine *e = calloc(1, sizeof *e);
    if (!e)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    e->kernels = kernels;
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
    free(e->waiting_ids);
    mq_device_step_free(e->step);
    mq_draft_free(e->draft);
    if (e->dev) {
        e->kernels->release(e->dev, e->features);
        e->kernels->release(e->dev, e->sampled);
        e->kernels->release(e->dev, e->logits);
        e->kernels->release(e->dev, e->x);
        mq_cache_free(e->cache);
        mq_forward_free(e->forward);
    }
    mq_store_close(e->store); /* its weights are in the device's memory */
    if (e->dev)
        e->kernels->dev_close(e->dev);
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

int64_t mq_engine_weight_bytes(const mq_engine *e)
{
    return mq_store_resident_bytes(e->store);
}

int64_t mq_engine_context(const mq_engine *e)
{
    return e->context;
}

int64_t mq_engine_length(const mq_engine *e)
{
    return mq_cache_length(e->cache);
}

void mq_engine_reset(mq_engine *e)
{
    mq_cache_truncate(e->cache, 0);
    e->n_logits = 0;
    e->n_waiting = 0;
    if (e->draft)
        mq_draft_reset(e->draft);
}

void mq_engine_rollback(mq_engine *e, int64_t length)
{
    if (e->draft) {
        assert(length >= mq_draft_length(e->draft));
        e->n_waiting = length - mq_draft_length(e->draft);
    }
    mq_cache_truncate(e->cache, length);
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

/* Tell the drafter of the positions that wait. */
static mq_status commit_waiting(mq_engine *e, mq_err *err)
{
    const float *features[MQ_MAX_TAPS];
    if (e->n_waiting == 0)
        return MQ_OK;
    for (int i = 0; i < e->n_taps; i++)
        features[i] = e->features + i * e->prefill_rows * mq_engine_model(e)->hidden;
    MQ_TRY(mq_draft_commit(e->draft, e->waiting_ids, features, e->n_waiting, err));
    e->n_waiting = 0;
    return MQ_OK;
}

/* Where the residual stream of the next n rows is kept for the drafter. */
static mq_status make_room(mq_engine *e, float **out, int64_t n, mq_err *err)
{
    if (e->n_waiting + n > e->prefill_rows)
        MQ_TRY(commit_waiting(e, err));
    for (int i = 0; i < e->n_taps; i++)
        out[i] = e->features + (i * e->prefill_rows + e->n_waiting) * mq_engine_model(e)->hidden;
    return MQ_OK;
}

/* The layers for n ids, at most prefill_rows; what the drafter wants to know of them waits. */
static mq_status feed(mq_engine *e, mq_forward_mode mode, const int32_t *ids, int64_t n,
                      mq_err *err)
{
    float *out[MQ_MAX_TAPS];
    const int *layers;
    e->n_logits = 0;
    e->has_sampled = false;
    e->was_step = e->step && mode == MQ_FORWARD_STEP;
    if (e->draft)
        MQ_TRY(make_room(e, out, n, err));
    if (e->was_step) {
        MQ_TRY(mq_device_step_run(e->step, out, ids, (int)n, err));
    } else {
        if (e->draft) {
            mq_draft_taps(e->draft, &layers);
            mq_forward_capture(e->forward, layers, out, e->n_taps);
        }
        MQ_TRY(mq_forward_tokens(e->forward, mode, e->x, ids, n, e->cache, NULL, NULL, err));
    }
    if (e->draft) {
        memcpy(e->waiting_ids + e->n_waiting, ids, (size_t)n * sizeof *ids);
        e->n_waiting += n;
    }
    return MQ_OK;
}

/* Logits of the last n rows fed, which stand at positions pos ..; of a prefill they are x's. */
static mq_status finish(mq_engine *e, const float *x, int64_t n, int64_t pos, mq_err *err)
{
    e->row_logits = e->was_step ? mq_device_step_logits(e->step) : e->logits;
    if (!e->was_step)
        MQ_TRY(mq_forward_head(e->forward, MQ_FORWARD_STEP, e->logits, x, n, err));
    e->n_logits = n;
    e->logits_pos = pos;
    return MQ_OK;
}

mq_status mq_engine_prefill(mq_engine *e, const int32_t *ids, int64_t n, mq_err *err)
{
    if (n < 1)
        return mq_fail(err, MQ_E_ARG, "an empty prompt, expected at least one token");
    MQ_TRY(check_ids(e, ids, n, err));
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i += rows) {
        rows = at_most(n - i, e->prefill_rows);
        MQ_TRY(feed(e, MQ_FORWARD_BATCH, ids + i, rows, err));
    }
    MQ_TRY(finish(e, e->x + (rows - 1) * mq_engine_model(e)->hidden, 1, mq_engine_length(e) - 1,
                  err));
    return e->kernels->dev_sync(e->dev, err);
}

mq_status mq_engine_step(mq_engine *e, const int32_t *ids, int n, mq_err *err)
{
    if (n < 1 || n > MAX_STEP)
        return mq_fail(err, MQ_E_ARG, "a step of %d rows, expected 1 to %d", n, MAX_STEP);
    MQ_TRY(check_ids(e, ids, n, err));
    int64_t pos = mq_engine_length(e);
    MQ_TRY(feed(e, MQ_FORWARD_STEP, ids, n, err));
    MQ_TRY(finish(e, e->x, n, pos, err));
    return e->kernels->dev_sync(e->dev, err);
}

mq_status mq_engine_logits(mq_engine *e, float *logits, mq_err *err)
{
    int64_t bytes = (int64_t)sizeof *logits * e->n_logits * mq_engine_model(e)->vocab;
    MQ_TRY(e->kernels->download(e->dev, logits, e->row_logits, bytes, err));
    return e->kernels->dev_sync(e->dev, err);
}

/* Sample every row of the last call at once: one visit to the device instead of one a row. */
static mq_status sample_rows(mq_engine *e, const mq_sampling *s, mq_err *err)
{
    int64_t vocab = mq_engine_model(e)->vocab;
    MQ_TRY(e->kernels->sample(e->dev, e->sampled->token, e->row_logits, s, e->n_logits, vocab,
                              e->logits_pos + 1, err));
    MQ_TRY(e->kernels->pick(e->dev, e->sampled->logit, e->row_logits, e->sampled->token,
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
    return e->step ? NULL : e->why_composed.text;
}

mq_draft_kind mq_engine_draft_kind(const mq_engine *e)
{
    return e->draft ? mq_draft_kind_of(e->draft) : MQ_DRAFT_NONE;
}

int mq_engine_draft_most(const mq_engine *e)
{
    return e->draft ? mq_draft_most(e->draft) : 0;
}

mq_status mq_engine_propose(mq_engine *e, int32_t *tokens, float *confidence, int32_t anchor, int n,
                            mq_err *err)
{
    assert(e->draft);
    if (anchor < 0 || anchor >= mq_engine_model(e)->vocab)
        return mq_fail(err, MQ_E_ARG, "token id %d at position %lld, expected 0 to %d", anchor,
                       (long long)mq_engine_length(e), mq_engine_model(e)->vocab - 1);
    MQ_TRY(commit_waiting(e, err));
    return mq_draft_propose(e->draft, tokens, confidence, anchor, n, err);
}

mq_status mq_engine_distinct_experts(mq_engine *e, int32_t *out, mq_err *err)
{
    if (e->was_step)
        return mq_device_step_distinct_experts(e->step, out, err);
    memcpy(out, mq_forward_distinct_experts(e->forward),
           (size_t)mq_engine_model(e)->n_layers * sizeof *out);
    return MQ_OK;
}
