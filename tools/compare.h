/* Weights of a packed model against the checkpoint it was made from: untouched tensors byte for
 * byte, experts by their error. */
#ifndef MQ_TOOLS_COMPARE_H
#define MQ_TOOLS_COMPARE_H

#include "formats/manifest.h"
#include "formats/source.h"

/* Error of one expert matrix: sums over all its slices. */
typedef struct mq_matrix_error {
    mq_key key;         /* EXPERT_GATE, EXPERT_UP or EXPERT_DOWN */
    mq_scheme scheme;   /* in the packed model */
    bool exact;         /* every weight has the source's bits */
    double err2, norm2; /* relative RMS error: sqrt(err2 / norm2) */
} mq_matrix_error;

typedef struct mq_comparison {
    int64_t n_untouched,
        untouched_bytes; /* tensors (slices of one counted once) and bytes compared */
    int64_t n_different;
    char first_difference[256]; /* file and tensor, "" when none */
    mq_matrix_error *matrices;  /* [n_matrices] by layer, expert, gate up down; heap */
    int64_t n_matrices;
} mq_comparison;

/* sqrt(err2 / norm2); 0 for a zero matrix kept exactly, 1 for one that is not; infinite where the source is. */
double mq_matrix_relative_error(const mq_matrix_error *e);

/* Compare every record.  Files are read in parallel, by at most n_threads and by no more than
 * budget_bytes feed with their records; results do not depend on threads.  progress (may be NULL)
 * gets packed bytes read.  stopped (may be NULL) is polled.  MQ_E_FORMAT, MQ_E_HASH: damage on either
 * side.  MQ_E_SHAPE: the two are different models (first difference named).  MQ_E_NOMEM: the budget
 * is too small for the largest record, which is named with what it needs. */
mq_status mq_compare_weights(mq_comparison *out, const mq_source *source, const mq_packed *packed,
                             int n_threads, int64_t budget_bytes,
                             void (*progress)(void *ctx, int64_t n_bytes), void *progress_ctx,
                             bool (*stopped)(void), mq_err *err);
void mq_comparison_release(mq_comparison *c);

#endif
