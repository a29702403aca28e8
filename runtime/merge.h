/* Slices of a matrix, stored per rank, put together again for fewer logical ranks.  Values and
 * scales are moved, never computed.  Private to store_packed.c. */
#ifndef MQ_RUNTIME_MERGE_H
#define MQ_RUNTIME_MERGE_H

#include <stdint.h>

#include "runtime/store_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A slice and where it begins in the whole matrix; m.data and m.scale are NULL when measuring. */
typedef struct mq_part {
    mq_matrix m;
    int64_t row0, col0;
} mq_part;

/* Put n_parts slices (at least one) that follow each other by rows, or else by columns, into slot.
 *
 * part_rows  rows of a fused chunk's share of the whole matrix (its FP8 scale rows restart there);
 * INT64_MAX: not fused MQ_E_FORMAT  the slices' schemes, groups or shapes differ, they do not
 * follow each other, or two FP8 slices that share a block disagree on its scale MQ_E_ARG     FP8:
 * these slices together are neither inside one chunk nor whole chunks */
mq_status mq_merge_parts(mq_slot *slot, mq_matrix *out, const mq_part *parts, int n_parts,
                         int64_t part_rows, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
