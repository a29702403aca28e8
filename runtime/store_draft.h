/* The drafters' share of a store: which of their layers are lent, and how long they stay; private
 * to store.c and store_draft.c. */
#ifndef MQ_RUNTIME_STORE_DRAFT_H
#define MQ_RUNTIME_STORE_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/store_backend.h"
#include "runtime/store_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Layers of both drafters count in one row: those of DFlash, then those of MTP. */
typedef struct mq_drafters {
    const mq_backend *backend; /* the store's */
    mq_place *place;           /* the store's */
    mq_rank_span ranks; /* those whose slices are lent */
    int n_dflash, n_mtp; /* layers; 0: not asked for, or not there */
    int64_t shared_bytes, max_layer_bytes;
    int64_t *layer_bytes; /* [n_dflash + n_mtp], of ranks */

    mq_slot shared_slot;
    mq_draft_weights shared;
    bool has_shared;

    mq_slot layer_slot;            /* streaming */
    int held;                      /* -1: nothing */
    mq_draft_layer_weights *layer; /* [ranks.n] */

    mq_slot *slots;                 /* resident: [n_dflash + n_mtp] */
    mq_draft_layer_weights *layers; /* resident: [n_dflash + n_mtp, ranks.n] */
    bool resident;
} mq_drafters;

/* Those of backend (borrowed) that are asked for, lent at place (borrowed); reads nothing.  MQ_E_NOMEM. */
mq_status mq_drafters_init(mq_drafters *d, const mq_backend *backend, mq_place *place,
                           mq_rank_span ranks, bool dflash, bool mtp, mq_err *err);
void mq_drafters_release(mq_drafters *d); /* accepts zeros */

/* Sizes from headers; statuses of the backend. */
mq_status mq_drafters_measure(mq_drafters *d, void *reader, mq_err *err);
int64_t mq_drafters_resident_bytes(const mq_drafters *d);
int64_t mq_drafters_streaming_bytes(const mq_drafters *d);

/* Becoming resident: begin, then every one of n_loads in any order and from any thread, n_bytes
 * saying how much one was, then end; or drop after a failure. */
mq_status mq_drafters_begin(mq_drafters *d, mq_err *err);
int64_t mq_drafters_n_loads(const mq_drafters *d);
mq_status mq_drafters_load(mq_drafters *d, int64_t *n_bytes, void *reader, int64_t i, mq_err *err);
void mq_drafters_end(mq_drafters *d);
void mq_drafters_drop(mq_drafters *d);

/* What runtime/store.h documents. */
mq_status mq_drafters_shared(mq_drafters *d, void *reader, mq_draft_weights *out, mq_err *err);
mq_status mq_drafters_layer(mq_drafters *d, void *reader, mq_draft_layer_weights *out,
                            mq_stack stack, int layer, int rank, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
