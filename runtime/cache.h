/* Keys and values of one sequence, for every layer and rank, with rollback.
 *
 * Full layers hold every position; sliding layers hold a ring of window + ring_rows slots (slot of
 * position p is p modulo the slots), so that rows which are taken back never cost a key that is
 * still inside the window. Source: own. */
#ifndef MQ_RUNTIME_CACHE_H
#define MQ_RUNTIME_CACHE_H

#include <stdint.h>

#include "kernels/kernels.h"
#include "src/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_cache mq_cache;

/* A cache of every layer.  capacity: positions on full layers; ring_rows: the most rows that are
 * appended at once or taken back.  Memory is dev's; kernels, dev and m are borrowed.  MQ_E_NOMEM,
 * MQ_E_DEVICE. */
mq_status mq_cache_create(mq_cache **out, const mq_kernels *kernels, mq_dev *dev, const mq_model *m,
                          int n_ranks, int64_t capacity, int64_t ring_rows, mq_err *err);

/* The same for ranks first .. first + n_held - 1 alone; with one held rank, mq_cache_kv takes any other for it. */
mq_status mq_cache_create_held(mq_cache **out, const mq_kernels *kernels, mq_dev *dev, const mq_model *m, int n_ranks,
                               int first, int n_held, int64_t capacity, int64_t ring_rows, mq_err *err);

/* One layer's room that all layers share: for streaming, where a layer is left before the next
 * begins.  The length stays 0. */
mq_status mq_cache_create_scratch(mq_cache **out, const mq_kernels *kernels, mq_dev *dev,
                                  const mq_model *m, int n_ranks, int64_t capacity,
                                  int64_t ring_rows, mq_err *err);
void mq_cache_free(mq_cache *c); /* accepts NULL */

/* Device bytes of all ranks (one rank's are an equal share), and of scratch. */
int64_t mq_cache_bytes(const mq_model *m, int n_ranks, int64_t capacity, int64_t ring_rows);
int64_t mq_cache_scratch_bytes(const mq_model *m, int n_ranks, int64_t capacity, int64_t ring_rows);

/* The view of a layer and rank; borrowed until mq_cache_free. */
const mq_kv *mq_cache_kv(const mq_cache *c, int layer, int rank);

int64_t mq_cache_capacity(const mq_cache *c);
int64_t mq_cache_length(const mq_cache *c);
/* Every slot of every layer gets pseudo-random keys and values in (-1, 1), a pure function of seed. */
mq_status mq_cache_fill(mq_cache *c, uint64_t seed, mq_err *err);
/* n positions more are complete in every layer (mq_forward_tokens does this). */
void mq_cache_advance(mq_cache *c, int64_t n);
/* Forget positions from length on: at most the current length, and at most ring_rows below the
 * highest length there has been since the last truncation to 0. */
void mq_cache_truncate(mq_cache *c, int64_t length);

#ifdef __cplusplus
}
#endif
#endif
