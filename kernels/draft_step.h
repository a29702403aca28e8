/* The DFlash drafter as one unit of work for a device: context of up to 8 committed positions and a block of guesses, for the
 * ranks that live there.
 *
 * A table of operations may have it (mq_kernels.draft); without it, runtime composes the drafter from the table's operations
 * (runtime/draft.h), which stays the definition.  Products take BF16 inputs and add in F32; norms, attention, softmax and the
 * residual stream are F32.  A committed row's keys and values depend on that row alone, guesses on the committed rows, the
 * anchor and the number of ranks: not on how many rows are committed at once, nor on which device a rank lives.
 * Source: own; equations in runtime/draft_dflash.c. */
#ifndef MQ_KERNELS_DRAFT_STEP_H
#define MQ_KERNELS_DRAFT_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/exchange.h"
#include "src/matrix.h"
#include "src/model.h"
#include "src/status.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mq_dev;
enum { MQ_DRAFT_STEP_ROWS = 8 }; /* of a commit, and of a block */

/* One rank's slice of a layer and its ring.  Views point into the device's memory. */
typedef struct mq_draft_step_layer {
    mq_draft_layer_weights w;
    mq_kv kv; /* n_slots >= window + block_size; holds committed positions alone */
} mq_draft_step_layer;

/* A rank that lives on this device. */
typedef struct mq_draft_step_rank {
    const mq_draft_step_layer *layers; /* [n_layers], host memory */
    mq_matrix head;                    /* [vocab / n_ranks, hidden] */
} mq_draft_step_rank;

typedef struct mq_draft_step_model {
    const mq_draft_model *model;
    int vocab;           /* the target's */
    mq_matrix embedding; /* [vocab, hidden] */
    mq_draft_weights shared;
    int n_ranks;                     /* logical ranks in all */
    int first_rank, n_local;         /* those on this device */
    const mq_draft_step_rank *ranks; /* [n_local], host memory */
    bool plain;                      /* queue every kernel by itself instead of a captured graph: same bits, slower */
    const mq_exchange_ops *exchange_ops;
    mq_exchange *exchange; /* this device's end, of the model's hidden size; NULL: none needed */
    mq_exchange_way exchange_way;
    bool loop_back; /* other ranks' contributions are taken to equal those of first_rank: the time of one device of many */
} mq_draft_step_model;

typedef struct mq_draft_step mq_draft_step;

typedef struct mq_draft_step_ops {
    /* Upper bound of the device memory of a step with these numbers; weights and rings not counted. */
    int64_t (*bytes)(const mq_draft_model *m, int vocab, int n_ranks, int n_local);

    /* Prepare the step on dev.  model, what it points to, and dev are borrowed until free.
     * MQ_E_UNSUPPORTED: a scheme or geometry that only the table computes (the text says which); MQ_E_NOMEM; MQ_E_DEVICE. */
    mq_status (*create)(mq_draft_step **out, struct mq_dev *dev, const mq_draft_step_model *model, mq_err *err);
    void (*free)(mq_draft_step *d); /* accepts NULL */

    /* Queue: positions pos0 .. pos0 + n - 1 (n 1 to 8) are committed.  features [n_taps] arrays [n, hidden] F32 in the device's
     * memory, which are read when the device comes to it.  MQ_E_DEVICE. */
    mq_status (*commit)(mq_draft_step *d, const float *const *features, int n, int64_t pos0, mq_err *err);

    /* The same for n rows, 0 to 8 (0: features is not looked at), then guess the n_guesses (below block_size) tokens after
     * anchor (a valid id), which stands at position pos0 + n: tokens and confidence [n_guesses], host, as runtime/draft.h has
     * them.  The device is done on return.  MQ_E_DEVICE. */
    mq_status (*propose)(mq_draft_step *d, int32_t *tokens, float *confidence, int n_guesses, const float *const *features,
                         int n, int64_t pos0, int32_t anchor, mq_err *err);

    /* Seconds that the device takes for a proposal after 8 committed rows, the median of n_launches: for benchmarks.  Rows and
     * positions are those of the last proposal. */
    mq_status (*time)(mq_draft_step *d, double *seconds, int n_launches, mq_err *err);
} mq_draft_step_ops;

#ifdef __cplusplus
}
#endif
#endif
