/* Weights in a device's memory; private to store.c, store_draft.c and load*.c.
 *
 * Either a slot is filled on the host, copied to the device in one piece, and the views that pointed into it move along; or it lies
 * on the device from the start, where its backend or a load (load.h) fills it. */
#ifndef MQ_RUNTIME_STORE_DEVICE_H
#define MQ_RUNTIME_STORE_DEVICE_H

#include <pthread.h>

#include "kernels/kernels.h"
#include "runtime/store_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where a store's weights are lent; kernels NULL: in host memory, and every function here does nothing.  A lock makes
 * copies of several loading threads one at a time. */
typedef struct mq_place {
    const mq_kernels *kernels;
    mq_dev *dev;
    pthread_mutex_t lock;
    struct mq_load *load; /* fills the slots that mq_place_alloc makes now; NULL: their backend does */
} mq_place;

/* An empty slot that is the device's own memory (the host's where kernels is NULL), to be filled there.  MQ_E_NOMEM,
 * MQ_E_DEVICE. */
mq_status mq_place_alloc(mq_place *p, mq_slot *slot, int64_t n_bytes, mq_err *err);
/* A slot that stays: mq_place_alloc's where the backend, or a load, fills it in place, else the host's, to be copied. */
mq_status mq_place_keep(mq_place *p, const mq_backend *backend, mq_slot *slot, int64_t n_bytes, mq_err *err);
/* Run the slot's load; or else copy what slot holds to its memory on the device, allocated at the first call for all that it
 * may hold.  MQ_E_NOMEM, MQ_E_DEVICE; statuses of mq_load_run. */
mq_status mq_place_copy(mq_place *p, mq_slot *slot, mq_err *err);
/* Release the slot's memory on the device and on the host. */
void mq_place_free(mq_place *p, mq_slot *slot);

/* Move views [n] that point into slot's host memory to its copy on the device; others stay as they are. */
void mq_place_move_layers(const mq_slot *slot, mq_layer_weights *w, int64_t n);
void mq_place_move_mlps(const mq_slot *slot, mq_mlp_weights *w, int64_t n);
void mq_place_move_matrices(const mq_slot *slot, mq_matrix *m, int64_t n);
void mq_place_move_floats(const mq_slot *slot, const float **p);
void mq_place_move_draft_layers(const mq_slot *slot, mq_draft_layer_weights *w, int64_t n);
void mq_place_move_draft(const mq_slot *slot, mq_draft_weights *w);

/* On the device, routers [n] of one layer, which share their weights: BF16 where those are all BF16 values (kernels/decode.h:
 * narrow).  MQ_E_NOMEM, MQ_E_DEVICE. */
mq_status mq_place_narrow_routers(mq_place *p, mq_layer_weights *w, int64_t n, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
