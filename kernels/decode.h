/* The decode step as one unit of work for a device: 1 to 8 rows through every layer, for the ranks that live there.
 *
 * A table of operations may have such a step (mq_kernels.decode); without one, runtime composes the step from the
 * table's operations (runtime/forward.h), which stays the definition.  Products take BF16 inputs and add in F32; norms,
 * router, softmax and the residual stream are F32.  A row's bits depend on that row, on the positions before it and on
 * the number of ranks: not on the number of rows, on other rows, nor on which device a rank lives.
 * Source: own; design.md section 5. */
#ifndef MQ_KERNELS_DECODE_H
#define MQ_KERNELS_DECODE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/decode_parts.h"
#include "kernels/exchange.h"
#include "src/matrix.h"
#include "src/model.h"
#include "src/status.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One rank's weights of one layer and its cache.  Views point into the device's memory. */
typedef struct mq_decode_layer {
    mq_layer_weights w;
    const mq_mlp_weights *experts; /* MoE: [n_experts] views (host memory), all of one scheme and group; else NULL */
    mq_kv kv;                      /* n_slots >= window + MQ_DECODE_ROWS on sliding layers */
} mq_decode_layer;

/* A rank that lives on this device. */
typedef struct mq_decode_rank {
    const mq_decode_layer *layers; /* [n_layers], host memory */
    mq_matrix head;                /* [vocab / n_ranks, hidden] */
} mq_decode_rank;

typedef struct mq_decode_model {
    const mq_model *model;
    mq_matrix embedding;         /* [vocab, hidden] */
    const float *final_norm;     /* [hidden], device */
    int n_ranks;                 /* logical ranks in all */
    int first_rank, n_local;     /* those on this device: first_rank .. first_rank + n_local - 1 */
    const mq_decode_rank *ranks; /* [n_local], host memory */
    int64_t max_context;         /* positions there can ever be */
    bool plain;                  /* queue every kernel by itself instead of one captured graph: same bits, slower */
    const mq_exchange_ops *exchange_ops;
    mq_exchange *exchange;        /* this device's end, through which the other ranks' contributions come; NULL: none needed */
    mq_exchange_way exchange_way; /* ONE_SHOT or NCCL */
    bool loop_back; /* other ranks' contributions are taken to equal those of first_rank: the step time of one device
                       of many, with wrong text */
    int n_captures; /* layers whose outgoing residual stream is kept */
    int capture_layers[MQ_MAX_TAPS];
} mq_decode_model;

typedef struct mq_decode mq_decode;

typedef struct mq_decode_ops {
    /* Upper bound of the device memory of a step with these numbers; weights and caches not counted. */
    int64_t (*bytes)(const mq_model *m, int n_ranks, int n_local, int n_captures, int64_t max_context);

    /* Prepare the step on dev.  model, what it points to, and dev are borrowed until free.
     * MQ_E_UNSUPPORTED: a scheme or geometry that only the table computes (the text says which); MQ_E_NOMEM; MQ_E_DEVICE. */
    mq_status (*create)(mq_decode **out, struct mq_dev *dev, const mq_decode_model *model, mq_err *err);
    void (*free)(mq_decode *d); /* accepts NULL */

    /* Queue rows ids [n] (host, checked by the caller; 1 <= n <= 8) at positions pos0 .. through all layers: keys and values are
     * stored, logits and captures set.  Reads of what the step wrote follow dev_sync.  MQ_E_DEVICE. */
    mq_status (*step)(mq_decode *d, const int32_t *ids, int n, int64_t pos0, mq_err *err);

    /* Device memory of d: logits [8, vocab] F32 of the last step's rows (with fewer than n_ranks local ranks: the slices of
     * local ranks only); the residual stream [8, hidden] F32 after capture_layers[i]. */
    float *(*logits)(const mq_decode *d);
    const float *(*capture)(const mq_decode *d, int i);
    /* out [n_layers] (host): how many experts the last step's rows chose, each counted once; 0 for a dense layer.  Synchronous. */
    mq_status (*distinct_experts)(mq_decode *d, int32_t *out, mq_err *err);

    /* An F32 matrix in dev's memory whose weights are all BF16 values becomes that BF16 matrix, in its place; w, any other stays
     * what it is.  Synchronous but for the last copy, which is queued.  MQ_E_NOMEM, MQ_E_DEVICE. */
    mq_status (*narrow)(struct mq_dev *dev, mq_matrix *w, mq_err *err);

    const mq_decode_parts *parts; /* what the step is made of, for tests and benchmarks */
} mq_decode_ops;

#ifdef __cplusplus
}
#endif
#endif
