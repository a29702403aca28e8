/* Random packed models of any geometry, written directly: shards of tens of gigabytes in the time the disk takes, for
 * loaders and their measurements.  Weights mean nothing; every digest is right and every value legal. */
#ifndef MQ_TESTS_MAKER_PACKED_H
#define MQ_TESTS_MAKER_PACKED_H

#include "tests/maker/maker.h"

typedef struct mq_maker_packed {
    int n_ranks, group;     /* of INT4 experts: 32, 64 or 128 */
    int zstd_level;         /* 0: records are stored plain */
    int n_threads;
} mq_maker_packed;

/* Write a packed model of m's geometry (no MTP layers, no drafter; experts INT4, router F32, everything else BF16) into dir, which is
 * created.  n_bytes (may be NULL) gets the bytes of all shards.  MQ_E_ARG; MQ_E_IO; MQ_E_NOMEM. */
mq_status mq_maker_write_packed(const mq_maker *m, const mq_maker_packed *p, const char *dir, int64_t *n_bytes,
                                mq_err *err);

#endif
