/* What a store asks of the two places weights come from; private to store.c, store_draft.c,
 * store_checkpoint.c and store_packed.c.
 *
 * A backend's load functions take memory from a slot, piece by piece.  With a measuring slot they
 * take the same pieces, read nothing but headers, and leave pointers NULL: so one piece of code
 * says how large a load is and performs it. */
#ifndef MQ_RUNTIME_STORE_BACKEND_H
#define MQ_RUNTIME_STORE_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/source.h"
#include "runtime/store.h"
#include "src/model.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory of one load; pieces are 64-byte aligned. */
typedef struct mq_slot {
    uint8_t *mem; /* [cap] */
    int64_t cap, used;
    bool measuring;
    uint8_t *device; /* [cap] a copy in the device's memory (store_device.h), or NULL */
    bool in_place;   /* mem is the device's memory itself, which the backend, or load, fills */
    struct mq_load *load; /* pieces are not filled but noted here (load.h), not to be touched; NULL: filled on return */
} mq_slot;

/* The next n_bytes of the slot; *out is NULL when measuring.  MQ_E_BUG: more than was measured. */
mq_status mq_slot_take(mq_slot *s, void **out, int64_t n_bytes, mq_err *err);
/* An empty slot of n_bytes, to be freed with mq_slot_free.  MQ_E_NOMEM. */
mq_status mq_slot_alloc(mq_slot *s, int64_t n_bytes, mq_err *err);
void mq_slot_free(mq_slot *s); /* accepts a slot of zeros */
enum { MQ_SLOT_ALIGN = 64 };

/* Ranks first .. first + n - 1. */
typedef struct mq_rank_span {
    int first, n;
} mq_rank_span;

/* A reader holds what a thread keeps open between loads; one thread per reader, any number of
 * readers. */
typedef struct mq_backend_ops {
    mq_status (*reader_open)(void *impl, void **reader, mq_err *err);
    void (*reader_close)(void *impl, void *reader); /* accepts a NULL reader */
    /* out [ranks.n] */
    mq_status (*layer)(void *impl, void *reader, mq_slot *slot, mq_layer_weights *out, int layer,
                       mq_rank_span ranks, mq_err *err);
    mq_status (*expert)(void *impl, void *reader, mq_slot *slot, mq_mlp_weights *out, int layer,
                        int expert, int rank, mq_err *err);
    mq_status (*embedding)(void *impl, void *reader, mq_slot *slot, mq_matrix *out, mq_err *err);
    /* out [ranks.n] */
    mq_status (*head)(void *impl, void *reader, mq_slot *slot, mq_matrix *out, mq_rank_span ranks, mq_err *err);
    mq_status (*final_norm)(void *impl, void *reader, mq_slot *slot, const float **out,
                            mq_err *err);
    /* The DFlash drafter: what it has outside its layers. */
    mq_status (*draft)(void *impl, void *reader, mq_slot *slot, mq_draft_weights *out, mq_err *err);
    /* A layer of stack MQ_STACK_DRAFT or MQ_STACK_MTP; out [ranks.n] */
    mq_status (*draft_layer)(void *impl, void *reader, mq_slot *slot, mq_draft_layer_weights *out,
                             mq_stack stack, int layer, mq_rank_span ranks, mq_err *err);
    void (*close)(void *impl);
    bool plans; /* slots may have a load; a reader stays until it has run, and asks for one layer, or matrix, until then */
} mq_backend_ops;

typedef struct mq_backend {
    const mq_backend_ops *ops;
    void *impl;            /* owned */
    const mq_model *model; /* of impl */
    const mq_draft_model *draft; /* of impl; NULL: no DFlash drafter */
    bool in_place; /* fills memory of the store's device: one thread at a time, no copies */
} mq_backend;

/* Open dir as a checkpoint or a packed model, seen by n_ranks logical ranks; with_draft: the number
 * of ranks must suit the DFlash drafter too; check: compare digests of records. */
mq_status mq_backend_open_checkpoint(mq_backend *out, const char *dir, int n_ranks, bool with_draft,
                                     mq_err *err);
mq_status mq_backend_open_packed(mq_backend *out, const char *dir, int n_ranks, bool check,
                                 mq_err *err);

/* A config.json, weights made by kernels in dev's memory; kernels NULL: by the CPU's in host memory. */
mq_status mq_backend_open_synthetic(mq_backend *out, const char *path, int n_ranks,
                                    const mq_synthetic *synthetic, const mq_kernels *kernels,
                                    mq_dev *dev, int n_threads, mq_err *err);

/* Check a loaded (or, with NULL pointers, measured) matrix against the shape the model gives it. */
mq_status mq_backend_check(const mq_matrix *m, int64_t rows, int64_t cols, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
