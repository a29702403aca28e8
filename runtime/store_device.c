/* The copies of slots on a device.
 *
 * Backends read, check and rearrange on the host and know of no device.  All that a load took from its slot lies in one
 * piece, so one copy and a shift of the pointers are the whole difference. */
#include "runtime/store_device.h"

#include <stdlib.h>

#include "kernels/decode.h"
#include "runtime/load.h"

mq_status mq_place_alloc(mq_place *p, mq_slot *slot, int64_t n_bytes, mq_err *err)
{
    if (!p->kernels) {
        MQ_TRY(mq_slot_alloc(slot, n_bytes, err));
        slot->load = p->load;
        return MQ_OK;
    }
    void *mem;
    MQ_TRY(mq_wrap(err, p->kernels->alloc(p->dev, &mem, n_bytes + 1, err), "weights of %lld bytes",
                   (long long)n_bytes));
    *slot = (mq_slot){.mem = mem, .cap = n_bytes, .in_place = true, .load = p->load};
    return MQ_OK;
}

mq_status mq_place_keep(mq_place *p, const mq_backend *backend, mq_slot *slot, int64_t n_bytes, mq_err *err)
{
    return backend->in_place || p->load ? mq_place_alloc(p, slot, n_bytes, err) : mq_slot_alloc(slot, n_bytes, err);
}

mq_status mq_place_copy(mq_place *p, mq_slot *slot, mq_err *err)
{
    if (slot->load) {
        mq_load *load = slot->load;
        slot->load = NULL;
        return mq_load_run(load, err);
    }
    if (!p->kernels || slot->in_place)
        return MQ_OK;
    pthread_mutex_lock(&p->lock);
    mq_status st = MQ_OK;
    void *device = slot->device;
    if (!device)
        st = mq_wrap(err, p->kernels->alloc(p->dev, &device, slot->cap, err), "weights of %lld bytes",
                     (long long)slot->cap);
    slot->device = device;
    if (st == MQ_OK)
        st = p->kernels->upload(p->dev, slot->device, slot->mem, slot->used, err);
    pthread_mutex_unlock(&p->lock);
    return st;
}

void mq_place_free(mq_place *p, mq_slot *slot)
{
    if (slot->device)
        p->kernels->release(p->dev, slot->device);
    slot->device = NULL;
    if (slot->in_place) {
        p->kernels->release(p->dev, slot->mem);
        slot->mem = NULL;
    }
    mq_slot_free(slot);
}

/* The device's address of what lies at p in the slot. */
static const void *moved(const mq_slot *slot, const void *p)
{
    const uint8_t *at = p;
    if (!slot->device || !at || at < slot->mem || at >= slot->mem + slot->cap)
        return p;
    return slot->device + (at - slot->mem);
}

void mq_place_move_floats(const mq_slot *slot, const float **p)
{
    *p = moved(slot, *p);
}

void mq_place_move_matrices(const mq_slot *slot, mq_matrix *m, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        m[i].data = moved(slot, m[i].data);
        m[i].scale = moved(slot, m[i].scale);
    }
}

void mq_place_move_mlps(const mq_slot *slot, mq_mlp_weights *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        mq_place_move_matrices(slot, &w[i].gate_up, 1);
        mq_place_move_matrices(slot, &w[i].gate, 1);
        mq_place_move_matrices(slot, &w[i].up, 1);
        mq_place_move_matrices(slot, &w[i].down, 1);
    }
}

void mq_place_move_layers(const mq_slot *slot, mq_layer_weights *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        mq_attn_weights *a = &w[i].attn;
        mq_place_move_floats(slot, &w[i].input_norm);
        mq_place_move_floats(slot, &w[i].post_norm);
        mq_place_move_matrices(slot, &a->q, 1);
        mq_place_move_matrices(slot, &a->k, 1);
        mq_place_move_matrices(slot, &a->v, 1);
        mq_place_move_matrices(slot, &a->o, 1);
        mq_place_move_floats(slot, &a->sink);
        mq_place_move_mlps(slot, &w[i].mlp, 1);
        mq_place_move_matrices(slot, &w[i].router, 1);
        mq_place_move_floats(slot, &w[i].router_bias);
    }
}

void mq_place_move_draft_layers(const mq_slot *slot, mq_draft_layer_weights *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        mq_place_move_layers(slot, &w[i].layer, 1);
        mq_place_move_floats(slot, &w[i].q_norm);
        mq_place_move_floats(slot, &w[i].k_norm);
        mq_place_move_floats(slot, &w[i].enorm);
        mq_place_move_floats(slot, &w[i].hnorm);
        mq_place_move_floats(slot, &w[i].final_norm);
        mq_place_move_matrices(slot, &w[i].eh_proj, 1);
    }
}

void mq_place_move_draft(const mq_slot *slot, mq_draft_weights *w)
{
    mq_place_move_matrices(slot, &w->fc, 1);
    mq_place_move_floats(slot, &w->hidden_norm);
    mq_place_move_floats(slot, &w->norm);
    mq_place_move_floats(slot, &w->mask);
}

mq_status mq_place_narrow_routers(mq_place *p, mq_layer_weights *w, int64_t n, mq_err *err)
{
    if (!p->kernels || !p->kernels->decode || n == 0 || !w[0].is_moe)
        return MQ_OK;
    pthread_mutex_lock(&p->lock);
    mq_status st = p->kernels->decode->narrow(p->dev, &w[0].router, err);
    pthread_mutex_unlock(&p->lock);
    for (int64_t i = 1; i < n && st == MQ_OK; i++)
        w[i].router.scheme = w[0].router.scheme;
    return st;
}
