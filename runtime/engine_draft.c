/* An engine's drafter: what waits for it, and its proposals.
 *
 * A drafter lives on the first device, or, where devices have a draft step and exchange contributions, each of them has the
 * slices of its ranks and all of them work on a proposal together.  Every device with a drafter keeps the features that wait:
 * the residual stream is the same on all. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/engine_plan.h"
#include "runtime/engine_state.h"

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- Life ---- */

mq_status mq_engine_open_draft(mq_engine *e, mq_draft_kind kind, bool is_spread, mq_err *err)
{
    const int *layers;
    if (kind == MQ_DRAFT_NONE)
        return MQ_OK;
    e->reach = mq_draft_reach(e->store, kind);
    e->most_waiting = mq_engine_waiting_rows(e->reach, e->prefill_rows);
    for (int i = 0; i < (is_spread ? e->n_lanes : 1); i++) {
        mq_dev *dev = mq_lane_dev(e->lanes[i]);
        void *p;
        MQ_TRY(mq_draft_create(&e->drafts[i], kind, e->kernels, dev, mq_lane_store(e->lanes[i]), e->prefill_rows, err));
        e->n_drafts = i + 1;
        e->draft = e->drafts[0];
        e->n_taps = mq_draft_taps(e->draft, &layers);
        MQ_TRY(e->kernels->alloc(dev, &p, 4 * e->n_taps * e->most_waiting * mq_store_model(e->store)->hidden, err));
        e->features[i] = p;
    }
    e->waiting_ids = calloc((size_t)e->most_waiting, sizeof *e->waiting_ids);
    return e->waiting_ids ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "drafter: out of memory");
}

mq_status mq_engine_prepare_draft(mq_engine *e, const mq_engine_options *o, mq_err *err)
{
    mq_err why;
    if (o->composed_step)
        return MQ_OK;
    for (int i = 0; i < e->n_drafts; i++) {
        mq_draft_step_options so = {.plain = o->plain_step};
        if (e->n_drafts > 1) {
            so.exchange_ops = e->kernels->exchange;
            so.exchange = mq_lane_exchange(e->lanes[i], &so.exchange_way);
        }
        mq_status st = mq_draft_use_step(e->drafts[i], &so, &why);
        if (st == MQ_E_UNSUPPORTED && e->n_drafts > 1)
            return mq_fail(err, st, "a drafter on %d devices: %s", e->n_drafts, why.text);
        if (st != MQ_OK && st != MQ_E_UNSUPPORTED)
            return mq_fail(err, st, "%s", why.text);
    }
    return MQ_OK;
}

void mq_engine_close_draft(mq_engine *e)
{
    for (int i = 0; i < e->n_drafts; i++) {
        mq_draft_free(e->drafts[i]);
        e->kernels->release(mq_lane_dev(e->lanes[i]), e->features[i]);
    }
    free(e->waiting_ids);
}

/* ---- What waits ---- */

/* Row i of what waits of a layer's output on lane. */
static float *waiting_row(const mq_engine *e, int lane, int tap, int64_t i)
{
    return e->features[lane] + (tap * e->most_waiting + i) * mq_engine_model(e)->hidden;
}

/* Rows from the first on that wait and that no proposal can see. */
static int64_t out_of_reach(const mq_engine *e)
{
    return e->reach >= 0 && e->n_waiting > e->reach ? e->n_waiting - e->reach : 0;
}

/* Tell a lane's drafter of the positions that wait, as far as it can still see them, but for the last keep (at most
 * prefill_rows). */
static mq_status commit_waiting(mq_engine *e, int lane, int64_t keep, mq_err *err)
{
    int64_t at = out_of_reach(e), n;
    if (at > 0)
        mq_draft_skip(e->drafts[lane], at);
    for (; at < e->n_waiting - keep; at += n) {
        const float *features[MQ_MAX_TAPS];
        n = at_most(e->n_waiting - keep - at, e->prefill_rows);
        for (int i = 0; i < e->n_taps; i++)
            features[i] = waiting_row(e, lane, i, at);
        MQ_TRY(mq_draft_commit(e->drafts[lane], e->waiting_ids + at, features, n, err));
    }
    return MQ_OK;
}

static mq_status commit_all(mq_engine *e, mq_err *err)
{
    assert(e->n_drafts == 1); /* without a reach: MTP */
    MQ_TRY(commit_waiting(e, 0, 0, err));
    e->n_waiting = 0;
    return MQ_OK;
}

/* Forget the rows that no proposal will see, and move the others to the front: in pieces that do not touch
 * what they come from. */
static mq_status drop_old(mq_engine *e, mq_err *err)
{
    int64_t keep = mq_engine_waiting_kept(e->reach), drop = e->n_waiting - keep;
    int64_t row_bytes = 4 * (int64_t)mq_engine_model(e)->hidden;
    for (int lane = 0; lane < e->n_drafts; lane++) {
        mq_dev *dev = mq_lane_dev(e->lanes[lane]);
        for (int64_t i = 0, n; i < keep; i += n) {
            n = at_most(keep - i, drop);
            for (int tap = 0; tap < e->n_taps; tap++)
                MQ_TRY(e->kernels->copy(dev, waiting_row(e, lane, tap, i), waiting_row(e, lane, tap, drop + i), n * row_bytes,
                                        err));
        }
        MQ_TRY(e->kernels->dev_sync(dev, err)); /* the lanes that write there may have streams of their own */
    }
    memmove(e->waiting_ids, e->waiting_ids + drop, (size_t)keep * sizeof *e->waiting_ids);
    for (int lane = 0; lane < e->n_drafts; lane++)
        mq_draft_skip(e->drafts[lane], drop);
    e->n_waiting = keep;
    return MQ_OK;
}

mq_status mq_engine_make_room(mq_engine *e, int64_t n, mq_err *err)
{
    if (e->n_waiting + n <= e->most_waiting)
        return MQ_OK;
    return e->reach < 0 ? commit_all(e, err) : drop_old(e, err);
}

bool mq_engine_captures(const mq_engine *e, int member, float **out)
{
    if (member >= e->n_drafts)
        return false;
    for (int i = 0; i < e->n_taps; i++)
        out[i] = waiting_row(e, member, i, e->n_waiting);
    return true;
}

/* ---- Proposals ---- */

mq_draft_kind mq_engine_draft_kind(const mq_engine *e)
{
    return e->draft ? mq_draft_kind_of(e->draft) : MQ_DRAFT_NONE;
}

bool mq_engine_has_draft_step(const mq_engine *e)
{
    return e->draft && mq_draft_has_step(e->draft);
}

int mq_engine_draft_most(const mq_engine *e)
{
    return e->draft ? mq_draft_most(e->draft) : 0;
}

/* One proposal of every lane with a drafter. */
typedef struct proposal {
    mq_engine *e;
    int32_t anchor;
    int n;
    int32_t tokens[MQ_DRAFT_MOST]; /* the first lane's */
    float confidence[MQ_DRAFT_MOST];
} proposal;

static mq_status propose_on(proposal *p, int lane, mq_err *err)
{
    mq_engine *e = p->e;
    int32_t tokens[MQ_DRAFT_MOST];
    float confidence[MQ_DRAFT_MOST];
    int64_t last = at_most(e->n_waiting - out_of_reach(e), e->prefill_rows), at = e->n_waiting - last;
    const float *features[MQ_MAX_TAPS];
    MQ_TRY(commit_waiting(e, lane, last, err));
    for (int i = 0; i < e->n_taps; i++)
        features[i] = waiting_row(e, lane, i, at);
    MQ_TRY(mq_draft_commit_propose(e->drafts[lane], tokens, confidence, e->waiting_ids + at, features, last, p->anchor, p->n,
                                   err));
    if (lane == 0) {
        memcpy(p->tokens, tokens, (size_t)p->n * sizeof *tokens);
        memcpy(p->confidence, confidence, (size_t)p->n * sizeof *confidence);
    }
    return MQ_OK;
}

static mq_status propose_lane(void *ctx, int member, mq_err *err)
{
    proposal *p = ctx;
    if (member >= p->e->n_drafts)
        return MQ_OK;
    mq_status st = propose_on(p, member, err);
    if (st != MQ_OK)
        mq_lane_give_up(p->e->lanes[member]);
    return st;
}

mq_status mq_engine_propose(mq_engine *e, int32_t *tokens, float *confidence, int32_t anchor, int n,
                            mq_err *err)
{
    assert(e->draft);
    if (anchor < 0 || anchor >= mq_engine_model(e)->vocab)
        return mq_fail(err, MQ_E_ARG, "token id %d at position %lld, expected 0 to %d", anchor,
                       (long long)mq_engine_length(e), mq_engine_model(e)->vocab - 1);
    if (n < 1 || n > mq_draft_most(e->draft))
        return mq_fail(err, MQ_E_ARG, "a draft of %d tokens, expected 1 to %d", n, mq_draft_most(e->draft));
    proposal p = {.e = e, .anchor = anchor, .n = n};
    if (e->n_drafts > 1)
        MQ_TRY(mq_group_run(e->group, propose_lane, &p, err));
    else
        MQ_TRY(propose_on(&p, 0, err));
    memcpy(tokens, p.tokens, (size_t)n * sizeof *tokens);
    memcpy(confidence, p.confidence, (size_t)n * sizeof *confidence);
    e->n_waiting = 0;
    return MQ_OK;
}
