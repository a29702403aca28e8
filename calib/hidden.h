/* The residual stream of all calibration tokens: rows of F32, in memory where a budget allows it and otherwise in a
 * scratch file, and saved after a layer so that a run can go on from there.
 *
 * Reads and gathers may come from any number of threads at once; writes from any threads to rows that nobody reads. */
#ifndef MQ_CALIB_HIDDEN_H
#define MQ_CALIB_HIDDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "src/sha256.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_hidden mq_hidden;

/* Room for [n_rows, cols] F32, contents undefined.  in_memory: on the heap; otherwise the file dir/name.partial.
 * MQ_E_IO: no space (checked before), cannot create; MQ_E_NOMEM. */
mq_status mq_hidden_create(mq_hidden **out, const char *dir, const char *name, int64_t n_rows, int64_t cols,
                           bool in_memory, mq_err *err);
/* Open what mq_hidden_save left in dir/name.  MQ_E_IO: not there; MQ_E_HASH: its size or digest is another
 * (compared by n_threads threads). */
mq_status mq_hidden_open(mq_hidden **out, const char *dir, const char *name, int64_t n_rows, int64_t cols,
                         const uint8_t digest[MQ_SHA256_BYTES], bool in_memory, int n_threads, mq_err *err);
/* Close; a file that was not saved is removed.  Accepts NULL. */
void mq_hidden_close(mq_hidden *h);

int64_t mq_hidden_rows(const mq_hidden *h);
int64_t mq_hidden_cols(const mq_hidden *h);

/* Rows row0 .. row0 + n - 1; out and in [n, cols] host. */
mq_status mq_hidden_read(const mq_hidden *h, float *out, int64_t row0, int64_t n, mq_err *err);
mq_status mq_hidden_write(mq_hidden *h, const float *in, int64_t row0, int64_t n, mq_err *err);
/* out [n, cols] = rows index[i] (ascending is fastest). */
mq_status mq_hidden_gather(const mq_hidden *h, float *out, const int32_t *index, int64_t n, mq_err *err);

/* Make the contents durable as dir/name (written, synced, renamed); digest is the SHA-256 of the SHA-256s of the bytes'
 * 4 MiB blocks, so that it takes n_threads threads.  The object stays usable, for reading, by other threads while it is saved too. */
mq_status mq_hidden_save(mq_hidden *h, uint8_t digest[MQ_SHA256_BYTES], int n_threads, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
