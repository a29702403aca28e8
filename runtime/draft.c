/* Creating a drafter, and what both kinds check before they compute.
 *
 * Every array is carved from one block, by one list of sizes that also answers how many bytes a
 * drafter takes. */
#include "runtime/draft.h"

#include <assert.h>
#include <stdlib.h>

#include "runtime/carve.h"
#include "runtime/draft_state.h"
#include "runtime/slices.h"
#include "src/dtype.h"

bool mq_draft_available(const mq_store *store, mq_draft_kind kind)
{
    return kind == MQ_DRAFT_DFLASH ? mq_store_draft_model(store) != NULL
           : kind == MQ_DRAFT_MTP  ? mq_store_model(store)->n_mtp > 0
                                   : false;
}

/* ---- Memory ---- */

static void carve_rings(mq_draft *d, mq_carver *c)
{
    const mq_draft_shape *s = &d->s;
    const mq_attn_geometry *g = &s->attn;
    int64_t heads = mq_slice_heads(g, s->n_ranks, 0).n_kv_heads;
    for (int i = 0; i < s->n_layers * s->n_ranks; i++) {
        mq_kv kv = {.n_slots = s->n_slots,
                    .n_kv_heads = (int)heads,
                    .head_dim = g->head_dim,
                    .v_head_dim = g->v_head_dim};
        kv.k = mq_carve(c, s->n_slots * heads * g->head_dim, 4);
        kv.v = mq_carve(c, s->n_slots * heads * g->v_head_dim, 4);
        if (d->kv)
            d->kv[i] = kv;
    }
}

static void carve_device(mq_draft *d, mq_carver *c)
{
    const mq_draft_shape *s = &d->s;
    mq_head_slice own = mq_slice_heads(&s->attn, s->n_ranks, 0);
    int64_t hidden = s->hidden, width = s->intermediate / s->n_ranks;
    carve_rings(d, c);
    d->wide = mq_carve(c, s->rows * s->wide, 4);
    d->x = mq_carve(c, s->rows * hidden, 4);
    d->h = mq_carve(c, s->rows * hidden, 4);
    d->part = mq_carve(c, s->rows * hidden, 4);
    d->sum = mq_carve(c, s->decode_rows * hidden, 4);
    d->q = mq_carve(c, s->decode_rows * own.n_heads * s->attn.head_dim, 4);
    d->key = mq_carve(c, s->rows * own.n_kv_heads * s->attn.head_dim, 4);
    d->value = mq_carve(c, s->rows * own.n_kv_heads * s->attn.v_head_dim, 4);
    d->heads = mq_carve(c, s->decode_rows * own.n_heads * s->attn.v_head_dim, 4);
    d->gate = mq_carve(c, s->decode_rows * width, 4);
    d->up = mq_carve(c, s->decode_rows * width, 4);
    d->mid = mq_carve(c, s->decode_rows * width, 4);
    d->logits = mq_carve(c, s->head_rows * s->vocab, 4);
    d->logits_part = s->n_ranks > 1 ? mq_carve(c, s->head_rows * s->vocab / s->n_ranks, 4) : NULL;
    d->prob = mq_carve(c, s->head_rows, 4);
    d->top = mq_carve(c, s->head_rows, 4);
    d->ids = mq_carve(c, s->rows, 4);
    d->zeros = mq_carve(c, s->decode_rows, 4);
    d->pending = d->kind == MQ_DRAFT_MTP ? mq_carve(c, s->rows * hidden, 4) : NULL;
}

static mq_status shape_of(mq_draft_shape *s, mq_draft_kind kind, const mq_store *store,
                          int64_t max_rows, mq_err *err)
{
    const mq_model *m = mq_store_model(store);
    bool is_dflash = kind == MQ_DRAFT_DFLASH;
    if (!mq_draft_available(store, kind))
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: the model has no %s", mq_store_dir(store),
                       is_dflash              ? "DFlash drafter"
                       : kind == MQ_DRAFT_MTP ? "MTP layers"
                                              : "drafter of this kind");
    *s = (mq_draft_shape){.n_ranks = mq_store_n_ranks(store),
                          .hidden = m->hidden,
                          .vocab = m->vocab,
                          .max_rows = max_rows};
    return is_dflash ? mq_draft_dflash_shape(s, store, err) : mq_draft_mtp_shape(s, store, err);
}

/* Host memory: rings' views, and for MTP the tokens. */
static int64_t host_bytes(mq_draft_kind kind, const mq_draft_shape *s)
{
    int64_t bytes = (int64_t)s->n_layers * s->n_ranks * (int64_t)sizeof(mq_kv);
    if (kind == MQ_DRAFT_MTP)
        bytes += 2 * s->rows * (int64_t)sizeof(int32_t) + s->n_layers * (int64_t)sizeof(int64_t);
    return bytes;
}

int64_t mq_draft_bytes(const mq_store *store, mq_draft_kind kind, int64_t max_rows)
{
    mq_draft d = {.kind = kind};
    mq_err err;
    mq_carver c = {NULL, 0};
    if (shape_of(&d.s, kind, store, max_rows, &err) != MQ_OK)
        return 0;
    carve_device(&d, &c);
    return c.used + host_bytes(kind, &d.s);
}

static mq_status alloc_all(mq_draft *d, mq_err *err)
{
    const mq_draft_shape *s = &d->s;
    size_t n_layers = (size_t)s->n_layers, rows = (size_t)s->rows;
    d->kv = calloc(n_layers * (size_t)s->n_ranks, sizeof *d->kv);
    if (!d->kv)
        return mq_fail(err, MQ_E_NOMEM, "drafter: out of memory");
    if (d->kind == MQ_DRAFT_MTP) {
        d->tokens = calloc(rows, sizeof *d->tokens);
        d->fed = calloc(rows, sizeof *d->fed);
        d->done = calloc(n_layers, sizeof *d->done);
        if (!d->tokens || !d->fed || !d->done)
            return mq_fail(err, MQ_E_NOMEM, "drafter: out of memory");
    }
    mq_carver c = {NULL, 0};
    carve_device(d, &c);
    MQ_TRY(mq_wrap(err, d->k->alloc(d->dev, &d->block, c.used, err), "drafter of %lld bytes",
                   (long long)c.used));
    c = (mq_carver){d->block, 0};
    carve_device(d, &c);
    return MQ_OK;
}

/* Are the weights lent?  A streaming store reads a layer here. */
static mq_status check_store(mq_draft *d, mq_err *err)
{
    mq_draft_weights shared;
    mq_draft_layer_weights layer;
    if (d->kind == MQ_DRAFT_DFLASH)
        MQ_TRY(mq_store_draft(d->store, &shared, err));
    return mq_draft_layer(d, &layer, 0, mq_store_first_rank(d->store), err);
}

mq_status mq_draft_create(mq_draft **out, mq_draft_kind kind, const mq_kernels *kernels,
                          mq_dev *dev, mq_store *store, int64_t max_rows, mq_err *err)
{
    assert(max_rows >= 1);
    *out = NULL;
    mq_draft *d = calloc(1, sizeof *d);
    if (!d)
        return mq_fail(err, MQ_E_NOMEM, "drafter: out of memory");
    d->kind = kind;
    d->k = kernels;
    d->dev = dev;
    d->store = store;
    mq_status st = shape_of(&d->s, kind, store, max_rows, err);
    if (st == MQ_OK)
        st = check_store(d, err);
    if (st == MQ_OK)
        st = alloc_all(d, err);
    if (st != MQ_OK) {
        mq_draft_free(d);
        return st;
    }
    *out = d;
    return MQ_OK;
}

void mq_draft_free(mq_draft *d)
{
    if (!d)
        return;
    mq_draft_device_free(d);
    if (d->block)
        d->k->release(d->dev, d->block);
    free(d->kv);
    free(d->tokens);
    free(d->fed);
    free(d->done);
    free(d);
}

/* ---- Questions ---- */

mq_draft_kind mq_draft_kind_of(const mq_draft *d)
{
    return d->kind;
}

int mq_draft_most(const mq_draft *d)
{
    return d->s.most;
}

int mq_draft_taps(const mq_draft *d, const int **layers)
{
    *layers = d->s.taps;
    return d->s.n_taps;
}

int64_t mq_draft_length(const mq_draft *d)
{
    return d->length;
}

void mq_draft_reset(mq_draft *d)
{
    d->length = 0;
    for (int l = 0; d->done && l < d->s.n_layers; l++)
        d->done[l] = 0;
}

/* ---- Commit and propose ---- */

/* The anchor's row sees the window's positions but its own, the rows behind it fewer. */
int64_t mq_draft_reach(const mq_store *store, mq_draft_kind kind)
{
    return kind == MQ_DRAFT_DFLASH ? mq_store_draft_model(store)->attn.window - 1 : -1;
}

void mq_draft_skip(mq_draft *d, int64_t n)
{
    assert(n >= 0 && d->kind == MQ_DRAFT_DFLASH);
    d->length += n;
}

static mq_status check_id(const mq_draft *d, int32_t id, int64_t pos, mq_err *err)
{
    if (id >= 0 && id < d->s.vocab)
        return MQ_OK;
    return mq_fail(err, MQ_E_ARG, "token id %d at position %lld, expected 0 to %d", id,
                   (long long)pos, d->s.vocab - 1);
}

bool mq_draft_has_step(const mq_draft *d)
{
    return d->device != NULL;
}

static mq_status commit(mq_draft *d, const int32_t *ids, const float *const *features, int64_t n,
                        mq_err *err)
{
    if (d->kind == MQ_DRAFT_MTP)
        return mq_draft_mtp_commit(d, ids, features, n, err);
    if (!d->device)
        return mq_draft_dflash_commit(d, features, n, err);
    MQ_TRY(mq_draft_device_commit(d, features, n, err));
    return d->k->dev_sync(d->dev, err); /* the caller's features are free again */
}

static mq_status check_commit(const mq_draft *d, const int32_t *ids, int64_t n, mq_err *err)
{
    assert(n >= 0 && n <= d->s.max_rows);
    for (int64_t i = 0; i < n; i++)
        MQ_TRY(check_id(d, ids[i], d->length + i, err));
    return MQ_OK;
}

mq_status mq_draft_commit(mq_draft *d, const int32_t *ids, const float *const *features, int64_t n,
                          mq_err *err)
{
    MQ_TRY(check_commit(d, ids, n, err));
    if (n == 0)
        return MQ_OK;
    MQ_TRY(commit(d, ids, features, n, err));
    d->length += n;
    return MQ_OK;
}

static mq_status propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor, int n,
                         mq_err *err)
{
    if (d->kind == MQ_DRAFT_MTP)
        return mq_draft_mtp_propose(d, tokens, confidence, anchor, n, err);
    if (!d->device)
        return mq_draft_dflash_propose(d, tokens, confidence, anchor, n, err);
    return mq_draft_device_propose(d, tokens, confidence, n, NULL, 0, anchor, err);
}

/* The anchor stands at position length. */
static mq_status check_proposal(const mq_draft *d, int64_t length, int32_t anchor, int n, mq_err *err)
{
    if (n < 1 || n > d->s.most)
        return mq_fail(err, MQ_E_ARG, "a draft of %d tokens, expected 1 to %d", n, d->s.most);
    if (length < 1)
        return mq_fail(err, MQ_E_ARG, "a draft before the first committed position");
    return check_id(d, anchor, length, err);
}

mq_status mq_draft_propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor, int n,
                           mq_err *err)
{
    MQ_TRY(check_proposal(d, d->length, anchor, n, err));
    return propose(d, tokens, confidence, anchor, n, err);
}

mq_status mq_draft_commit_propose(mq_draft *d, int32_t *tokens, float *confidence, const int32_t *ids,
                                  const float *const *features, int64_t n_rows, int32_t anchor, int n,
                                  mq_err *err)
{
    MQ_TRY(check_commit(d, ids, n_rows, err));
    MQ_TRY(check_proposal(d, d->length + n_rows, anchor, n, err));
    if (d->device) {
        MQ_TRY(mq_draft_device_propose(d, tokens, confidence, n, features, n_rows, anchor, err));
        d->length += n_rows;
        return MQ_OK;
    }
    MQ_TRY(mq_draft_commit(d, ids, features, n_rows, err));
    return propose(d, tokens, confidence, anchor, n, err);
}
