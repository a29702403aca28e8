/* What an engine will take, from headers and options alone: devices, drafter, bytes. */
#include "runtime/engine_plan.h"

#include <string.h>

enum { DEFAULT_CONTEXT = 8192, DEFAULT_PREFILL = 1024 };

static const int64_t RESERVE_BYTES = 1 << 30; /* of a device: prefill and its libraries take up to 430 MB at Pro's geometry */

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t mq_engine_prefill_rows(const mq_engine_options *o)
{
    int64_t rows = o->prefill_rows > 0 ? o->prefill_rows : DEFAULT_PREFILL;
    return rows < MQ_LANE_STEP_ROWS ? MQ_LANE_STEP_ROWS : rows;
}

static int n_ranks_of(const mq_engine_options *o)
{
    return o->n_ranks > 0 ? o->n_ranks : 1;
}

int mq_engine_n_lanes(const mq_engine_options *o)
{
    return o->n_devices > 0 ? o->n_devices : 1;
}

static const char *draft_name(mq_draft_kind kind)
{
    return kind == MQ_DRAFT_DFLASH ? "DFlash drafter" : "MTP layers";
}

mq_status mq_engine_choose_draft(mq_draft_kind *out, const char *dir, const mq_engine_options *o,
                              mq_err *err)
{
    *out = o->draft_any ? MQ_DRAFT_NONE : o->draft;
    if (!o->draft_any)
        return MQ_OK;
    const mq_store_options so = {
        .n_ranks = n_ranks_of(o), .n_threads = 1, .dflash = true, .mtp = true,
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

/* Those in its reach and before that what a rollback may uncover; room for two chunks of a prompt more, so that old rows go
 * many at a time. */
int64_t mq_engine_waiting_kept(int64_t reach)
{
    return reach + MQ_LANE_STEP_ROWS;
}

int64_t mq_engine_waiting_rows(int64_t reach, int64_t rows)
{
    return reach < 0 ? rows : mq_engine_waiting_kept(reach) + 2 * rows;
}

/* Bytes of the drafter and of the features that wait for it. */
static mq_status drafter_bytes(int64_t *out, const mq_kernels *kernels, const mq_store *s, mq_draft_kind kind,
                               int64_t rows, bool composed, mq_err *err)
{
    *out = 0;
    if (kind == MQ_DRAFT_NONE)
        return MQ_OK;
    if (!mq_draft_available(s, kind))
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: the model has no %s", mq_store_dir(s),
                       draft_name(kind));
    *out = mq_draft_bytes(s, kind, rows) + (composed ? 0 : mq_draft_step_bytes(kernels, s, kind)) +
           mq_engine_waiting_rows(mq_draft_reach(s, kind), rows) * (4 * (int64_t)n_taps_of(s, kind) * mq_store_model(s)->hidden + 4);
    return MQ_OK;
}

mq_status mq_engine_plan_bytes(mq_engine_bytes *out, const mq_kernels *kernels, const mq_store *s,
                            const mq_engine_options *o, mq_draft_kind draft, mq_err *err)
{
    const mq_model *m = mq_store_model(s);
    int n_ranks = mq_store_n_ranks(s);
    int64_t rows = mq_engine_prefill_rows(o);
    if (o->context > m->max_positions)
        return mq_fail(err, MQ_E_ARG,
                       "a context of %lld positions, expected at most %d (max_position_embeddings)",
                       (long long)o->context, m->max_positions);
    out->context = o->context > 0 ? o->context : at_most(DEFAULT_CONTEXT, m->max_positions);
    out->cache = mq_cache_bytes(m, n_ranks, out->context, rows);
    if (mq_store_only_rank(s) >= 0)
        out->cache /= n_ranks;
    out->draft = draft;
    out->reserve = strcmp(kernels->name, "cpu") ? mq_engine_n_lanes(o) * RESERVE_BYTES : 0;
    MQ_TRY(drafter_bytes(&out->drafter, kernels, s, draft, rows, o->composed_step, err)); /* also sees that it is there */
    out->drafter *= mq_engine_spreads_draft(kernels, o, draft) ? mq_engine_n_lanes(o) : 1;
    const mq_lane_options lo = {.context = out->context,
                                .rows = rows,
                                .n_taps = n_taps_of(s, draft),
                                .composed_step = o->composed_step};
    out->workspace = mq_engine_n_lanes(o) * mq_lane_workspace_bytes(kernels, s, mq_engine_n_lanes(o), &lo);
    return MQ_OK;
}

mq_status mq_engine_check_lanes(const mq_engine_options *o, mq_err *err)
{
    int n = mq_engine_n_lanes(o), n_ranks = n_ranks_of(o);
    if (n > MQ_ENGINE_DEVICES || n_ranks % n != 0)
        return mq_fail(err, MQ_E_ARG, "%d ranks on %d devices, expected at most %d and a divisor of the ranks", n_ranks, n,
                       MQ_ENGINE_DEVICES);
    if (n > 1 && o->synthetic && o->synthetic->only_rank >= 0)
        return mq_fail(err, MQ_E_ARG, "one rank alone on %d devices, expected one", n);
    return MQ_OK;
}

bool mq_engine_spreads_draft(const mq_kernels *kernels, const mq_engine_options *o, mq_draft_kind draft)
{
    return mq_engine_n_lanes(o) > 1 && draft == MQ_DRAFT_DFLASH && kernels->draft && kernels->exchange && !o->composed_step &&
           n_ranks_of(o) <= MQ_EXCHANGE_MAX_RANKS;
}

mq_store_options mq_engine_store_options(const mq_kernels *kernels, const mq_engine_options *o, mq_draft_kind draft, int lane)
{
    bool is_spread = mq_engine_spreads_draft(kernels, o, draft);
    int n_ranks = n_ranks_of(o), n_held = n_ranks / mq_engine_n_lanes(o);
    return (mq_store_options){.n_ranks = n_ranks,
                              .first_rank = lane * n_held,
                              .n_held = n_held,
                              .n_threads = o->n_threads,
                              .check = true,
                              .dflash = (lane == 0 || is_spread) && draft == MQ_DRAFT_DFLASH,
                              .spread_draft = is_spread,
                              .mtp = lane == 0 && draft == MQ_DRAFT_MTP,
                              .progress = lane == 0 ? o->progress : NULL,
                              .progress_ctx = o->progress_ctx,
                              .synthetic = o->synthetic,
                              .verify = o->verify,
                              .io = o->io};
}

mq_status mq_engine_plan(mq_engine_bytes *out, const char *dir, const mq_kernels *kernels,
                         const mq_engine_options *options, mq_err *err)
{
    mq_draft_kind draft;
    int64_t weights = 0;
    MQ_TRY(mq_engine_choose_draft(&draft, dir, options, err));
    MQ_TRY(mq_engine_check_lanes(options, err));
    for (int i = 0; i < mq_engine_n_lanes(options); i++) {
        const mq_store_options so = mq_engine_store_options(kernels, options, draft, i);
        mq_store *s;
        MQ_TRY(mq_store_open(&s, dir, &so, err));
        weights += mq_store_resident_bytes(s);
        mq_status st = i == 0 ? mq_engine_plan_bytes(out, kernels, s, options, draft, err) : MQ_OK;
        mq_store_close(s);
        MQ_TRY(st);
    }
    out->weights = weights;
    return MQ_OK;
}

mq_status mq_engine_check_budget(const mq_engine_bytes *b, int64_t budget, mq_err *err)
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
