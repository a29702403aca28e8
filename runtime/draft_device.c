/* The DFlash drafter as a device's own unit of work (kernels/draft_step.h): gathers what it borrows, every rank's view of every
 * layer and ring, and feeds it.
 *
 * All rows of a commit go the same way, up to eight at a time, the last of them together with the proposal. */
#include <assert.h>
#include <stdlib.h>

#include "runtime/draft_state.h"

struct mq_draft_device {
    mq_draft_step_layer *layers; /* [n_local, n_layers] */
    mq_draft_step_rank *ranks;   /* [n_local] */
    mq_draft_step_model model;
    mq_draft_step *step;
};

/* The ranks that compute here. */
static int local_ranks(const mq_store *store, bool is_spread, int *first)
{
    bool is_part = is_spread || mq_store_only_rank(store) >= 0;
    *first = is_part ? mq_store_first_rank(store) : 0;
    return is_part ? mq_store_n_held(store) : mq_store_n_ranks(store);
}

int64_t mq_draft_step_bytes(const mq_kernels *kernels, const mq_store *store, mq_draft_kind kind)
{
    int first;
    if (kind != MQ_DRAFT_DFLASH || !kernels->draft || !mq_draft_available(store, kind))
        return 0;
    return kernels->draft->bytes(mq_store_draft_model(store), mq_store_model(store)->vocab, mq_store_n_ranks(store),
                                 local_ranks(store, false, &first));
}

static mq_status gather(const mq_draft *d, mq_draft_device *v, mq_err *err)
{
    size_t n_layers = (size_t)d->s.n_layers, n_local = (size_t)v->model.n_local;
    v->layers = calloc(n_layers * n_local, sizeof *v->layers);
    v->ranks = calloc(n_local, sizeof *v->ranks);
    if (!v->layers || !v->ranks)
        return mq_fail(err, MQ_E_NOMEM, "draft step: out of memory");
    v->model.ranks = v->ranks;
    MQ_TRY(mq_store_draft(d->store, &v->model.shared, err));
    MQ_TRY(mq_store_embedding(d->store, &v->model.embedding, err));
    for (int r = 0; r < v->model.n_local; r++) {
        int rank = v->model.first_rank + r;
        mq_draft_step_layer *layers = v->layers + (size_t)r * n_layers;
        v->ranks[r].layers = layers;
        MQ_TRY(mq_store_head(d->store, &v->ranks[r].head, rank, err));
        for (int l = 0; l < d->s.n_layers; l++) {
            MQ_TRY(mq_store_draft_layer(d->store, &layers[l].w, l, rank, err));
            layers[l].kv = d->kv[l * d->s.n_ranks + rank];
        }
    }
    return MQ_OK;
}

mq_status mq_draft_use_step(mq_draft *d, const mq_draft_step_options *o, mq_err *err)
{
    const mq_draft_step_ops *ops = d->k->draft;
    assert(!d->device && d->length == 0);
    if (d->kind != MQ_DRAFT_DFLASH || !ops)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: no draft step of its own for this drafter", d->k->name);
    if (!mq_store_is_resident(d->store))
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s: weights are streamed, the draft step needs them resident",
                       mq_store_dir(d->store));
    mq_draft_device *v = d->device = calloc(1, sizeof *v);
    if (!v)
        return mq_fail(err, MQ_E_NOMEM, "draft step: out of memory");
    v->model = (mq_draft_step_model){.model = mq_store_draft_model(d->store),
                                     .vocab = d->s.vocab,
                                     .n_ranks = d->s.n_ranks,
                                     .loop_back = mq_store_only_rank(d->store) >= 0,
                                     .exchange_ops = o->exchange_ops,
                                     .exchange = o->exchange,
                                     .exchange_way = o->exchange_way,
                                     .plain = o->plain};
    v->model.n_local = local_ranks(d->store, o->exchange != NULL, &v->model.first_rank);
    mq_status st = gather(d, v, err);
    if (st == MQ_OK)
        st = ops->create(&v->step, d->dev, &v->model, err);
    if (st != MQ_OK)
        mq_draft_device_free(d);
    return st;
}

void mq_draft_device_free(mq_draft *d)
{
    mq_draft_device *v = d->device;
    if (!v)
        return;
    d->k->draft->free(v->step);
    free(v->layers);
    free(v->ranks);
    free(v);
    d->device = NULL;
}

/* The features of row i on. */
static void rows_from(const float **out, const mq_draft *d, const float *const *features, int64_t i)
{
    for (int t = 0; t < d->s.n_taps; t++)
        out[t] = features[t] + i * d->s.hidden;
}

mq_status mq_draft_device_commit(mq_draft *d, const float *const *features, int64_t n, mq_err *err)
{
    const float *rows[MQ_MAX_TAPS];
    for (int64_t i = 0, some; i < n; i += some) {
        some = n - i < MQ_DRAFT_STEP_ROWS ? n - i : MQ_DRAFT_STEP_ROWS;
        rows_from(rows, d, features, i);
        MQ_TRY(d->k->draft->commit(d->device->step, rows, (int)some, d->length + i, err));
    }
    return MQ_OK;
}

mq_status mq_draft_device_propose(mq_draft *d, int32_t *tokens, float *confidence, int n_guesses, const float *const *features,
                                  int64_t n, int32_t anchor, mq_err *err)
{
    const float *rows[MQ_MAX_TAPS] = {NULL};
    int64_t before = n > MQ_DRAFT_STEP_ROWS ? n - MQ_DRAFT_STEP_ROWS : 0;
    MQ_TRY(mq_draft_device_commit(d, features, before, err));
    if (n > 0)
        rows_from(rows, d, features, before);
    MQ_TRY(d->k->draft->propose(d->device->step, tokens, confidence, n_guesses, rows, (int)(n - before), d->length + before,
                                anchor, err));
    const mq_draft_step_model *m = &d->device->model;
    return m->exchange ? m->exchange_ops->check(m->exchange, err) : MQ_OK;
}

mq_status mq_draft_time_step(mq_draft *d, double *seconds, int n_launches, mq_err *err)
{
    assert(d->device);
    return d->k->draft->time(d->device->step, seconds, n_launches, err);
}
