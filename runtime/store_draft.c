/* Drafters in a store.  A drafter is small beside its target, so a layer is the unit of everything:
 * one block of memory each when resident, one slot for the layer asked for last when streaming.
 * What DFlash has outside its layers is read once and kept in either case. */
#include "runtime/store_draft.h"

#include <assert.h>
#include <stdlib.h>

#include "src/dtype.h"

static int n_layers(const mq_drafters *d)
{
    return d->n_dflash + d->n_mtp;
}

mq_status mq_drafters_init(mq_drafters *d, const mq_backend *backend, mq_place *place,
                           mq_rank_span ranks, bool dflash, bool mtp, mq_err *err)
{
    *d = (mq_drafters){.backend = backend, .place = place, .ranks = ranks, .held = -1};
    d->n_dflash = dflash && backend->draft ? backend->draft->n_layers : 0;
    d->n_mtp = mtp ? backend->model->n_mtp : 0;
    d->layer_bytes = calloc((size_t)n_layers(d) + 1, sizeof *d->layer_bytes);
    d->layer = calloc((size_t)ranks.n, sizeof *d->layer);
    if (!d->layer_bytes || !d->layer)
        return mq_fail(err, MQ_E_NOMEM, "drafters: out of memory");
    return MQ_OK;
}

void mq_drafters_release(mq_drafters *d)
{
    mq_drafters_drop(d);
    mq_place_free(d->place, &d->shared_slot);
    mq_place_free(d->place, &d->layer_slot);
    free(d->layer_bytes);
    free(d->layer);
    *d = (mq_drafters){.held = -1};
}

/* Layer i of the row into out [ranks.n], as the backend leaves it. */
static mq_status read_layer(const mq_drafters *d, void *reader, mq_slot *slot,
                            mq_draft_layer_weights *out, int i, mq_err *err)
{
    bool is_dflash = i < d->n_dflash;
    mq_stack stack = is_dflash ? MQ_STACK_DRAFT : MQ_STACK_MTP;
    int layer = is_dflash ? i : i - d->n_dflash;
    return d->backend->ops->draft_layer(d->backend->impl, reader, slot, out, stack, layer, d->ranks, err);
}

/* The same where it is lent. */
static mq_status place_layer(const mq_drafters *d, void *reader, mq_slot *slot,
                             mq_draft_layer_weights *out, int i, mq_err *err)
{
    MQ_TRY(read_layer(d, reader, slot, out, i, err));
    MQ_TRY(mq_place_copy(d->place, slot, err));
    mq_place_move_draft_layers(slot, out, d->ranks.n);
    return MQ_OK;
}

mq_status mq_drafters_measure(mq_drafters *d, void *reader, mq_err *err)
{
    if (d->n_dflash > 0) {
        mq_slot slot = {.measuring = true};
        MQ_TRY(d->backend->ops->draft(d->backend->impl, reader, &slot, &d->shared, err));
        d->shared_bytes = slot.used;
    }
    for (int i = 0; i < n_layers(d); i++) {
        mq_slot slot = {.measuring = true};
        MQ_TRY(read_layer(d, reader, &slot, d->layer, i, err));
        d->layer_bytes[i] = slot.used;
        d->max_layer_bytes = slot.used > d->max_layer_bytes ? slot.used : d->max_layer_bytes;
    }
    return MQ_OK;
}

int64_t mq_drafters_resident_bytes(const mq_drafters *d)
{
    int64_t total = d->shared_bytes;
    for (int i = 0; i < n_layers(d); i++)
        total += d->layer_bytes[i];
    return total;
}

int64_t mq_drafters_streaming_bytes(const mq_drafters *d)
{
    return d->shared_bytes + d->max_layer_bytes;
}

/* ---- Becoming resident ---- */

mq_status mq_drafters_begin(mq_drafters *d, mq_err *err)
{
    size_t n = (size_t)n_layers(d);
    d->slots = calloc(n + 1, sizeof *d->slots);
    d->layers = calloc(n * (size_t)d->ranks.n + 1, sizeof *d->layers);
    if (!d->slots || !d->layers)
        return mq_fail(err, MQ_E_NOMEM, "drafters: out of memory");
    return MQ_OK;
}

int64_t mq_drafters_n_loads(const mq_drafters *d)
{
    return n_layers(d) + (d->n_dflash > 0);
}

static mq_status load_shared(mq_drafters *d, void *reader, mq_err *err)
{
    if (d->has_shared)
        return MQ_OK;
    mq_place_free(d->place, &d->shared_slot);
    MQ_TRY(mq_place_keep(d->place, d->backend, &d->shared_slot, d->shared_bytes, err));
    MQ_TRY(d->backend->ops->draft(d->backend->impl, reader, &d->shared_slot, &d->shared, err));
    MQ_TRY(mq_place_copy(d->place, &d->shared_slot, err));
    mq_place_move_draft(&d->shared_slot, &d->shared);
    d->has_shared = true;
    return MQ_OK;
}

mq_status mq_drafters_load(mq_drafters *d, int64_t *n_bytes, void *reader, int64_t i, mq_err *err)
{
    if (i == n_layers(d)) {
        *n_bytes = d->shared_bytes;
        return load_shared(d, reader, err);
    }
    *n_bytes = d->layer_bytes[i];
    MQ_TRY(mq_place_keep(d->place, d->backend, &d->slots[i], d->layer_bytes[i], err));
    return place_layer(d, reader, &d->slots[i], d->layers + i * d->ranks.n, (int)i, err);
}

void mq_drafters_end(mq_drafters *d)
{
    mq_place_free(d->place, &d->layer_slot);
    d->resident = true;
}

void mq_drafters_drop(mq_drafters *d)
{
    for (int i = 0; d->slots && i < n_layers(d); i++)
        mq_place_free(d->place, &d->slots[i]);
    free(d->slots);
    free(d->layers);
    d->slots = NULL;
    d->layers = NULL;
    d->resident = false;
}

/* ---- Lending ---- */

mq_status mq_drafters_shared(mq_drafters *d, void *reader, mq_draft_weights *out, mq_err *err)
{
    if (d->n_dflash == 0)
        return mq_fail(err, MQ_E_ARG, "no DFlash drafter: opened without, or the model has none");
    MQ_TRY(load_shared(d, reader, err));
    *out = d->shared;
    return MQ_OK;
}

mq_status mq_drafters_layer(mq_drafters *d, void *reader, mq_draft_layer_weights *out,
                            mq_stack stack, int layer, int rank, mq_err *err)
{
    bool is_dflash = stack == MQ_STACK_DRAFT;
    int n = is_dflash ? d->n_dflash : d->n_mtp, i = is_dflash ? layer : d->n_dflash + layer;
    rank -= d->ranks.first;
    assert(rank >= 0 && rank < d->ranks.n);
    if (layer < 0 || layer >= n)
        return mq_fail(err, MQ_E_ARG,
                       "layer %d of the %s drafter, which has %d: opened without, or the model has "
                       "no more",
                       layer, is_dflash ? "DFlash" : "MTP", n);
    if (d->resident) {
        *out = d->layers[(int64_t)i * d->ranks.n + rank];
        return MQ_OK;
    }
    if (d->held != i) {
        d->held = -1;
        d->layer_slot.used = 0;
        if (!d->layer_slot.mem)
            MQ_TRY(mq_place_keep(d->place, d->backend, &d->layer_slot, d->max_layer_bytes, err));
        MQ_TRY(place_layer(d, reader, &d->layer_slot, d->layer, i, err));
        d->held = i;
    }
    *out = d->layer[rank];
    return MQ_OK;
}
