/* One item of a conversion: read its rows, round or re-order them, and leave one piece of record bytes per file. */
#ifndef MQ_TOOLS_CONVERT_WORK_H
#define MQ_TOOLS_CONVERT_WORK_H

#include "tools/calibrate_codes.h"
#include "tools/convert_account.h"
#include "tools/convert_job.h"

/* Bytes of the item for one file; they lie in the worker. */
typedef struct mq_convert_piece {
    const uint8_t *plain;
    int64_t plain_bytes;
    const uint8_t *packed; /* the same as one zstd frame; NULL without compression */
    int64_t packed_bytes;
    const uint8_t *scale; /* FP8: F32 scales of these rows, to be stored behind the record's codes */
    int64_t scale_bytes;
} mq_convert_piece;

/* INT4 experts of the layer that codes holds, quantized already: their bytes are taken from there. */
typedef struct mq_convert_ready {
    const mq_codes *codes;
    const mq_convert_account *account;
} mq_convert_ready;

typedef struct mq_convert_worker mq_convert_worker; /* buffers and rounder of one thread */

mq_status mq_convert_worker_create(mq_convert_worker **out, mq_err *err);
void mq_convert_worker_free(mq_convert_worker *w); /* accepts NULL */

/* Do item it of group g.  pieces [it->n_files] are valid until the next call; stats [MQ_PROJ_COUNT] gets the squared
 * error and weights of the item's rows by projection (zero unless something was rounded here); *read_bytes counts what was
 * read.  ready may be NULL. */
mq_status mq_convert_work(mq_convert_worker *w, mq_convert_piece *pieces, mq_round_stats stats[MQ_PROJ_COUNT],
                          int64_t *read_bytes, const mq_convert_job *job, const mq_convert_ready *ready,
                          const mq_convert_group *g, const mq_convert_item *it, mq_err *err);

#endif
