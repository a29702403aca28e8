/* Byte-pair merging: the bytes of one piece of text to token ids.
 *
 * The rule (Sennrich et al., arXiv 1508.07909, as the Hugging Face library applies it): a piece
 * starts as one token a byte; of all neighbouring pairs that have a merge, the one of lowest rank
 * is joined, the leftmost where ranks are equal, until no pair has a merge. */
#ifndef MQ_SRC_BPE_H
#define MQ_SRC_BPE_H

#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* left and right, side by side, become result; the index in the list is the rank. */
typedef struct mq_merge {
    int32_t left, right, result;
} mq_merge;

/* A merge table; immutable, any number of threads. */
typedef struct mq_bpe mq_bpe;

/* byte_ids [256]: the token of each byte.  merges [n_merges], n_merges below 2^31, every id at
 * least 0 and below n_ids; both copied.  MQ_E_FORMAT: a pair is there twice (both ranks named);
 * MQ_E_NOMEM. */
mq_status mq_bpe_create(mq_bpe **out, const int32_t byte_ids[256], const mq_merge *merges,
                        int64_t n_merges, int32_t n_ids, mq_err *err);
void mq_bpe_free(mq_bpe *b); /* accepts NULL */

/* Scratch memory and a cache of short pieces, for one thread. */
typedef struct mq_bpe_work mq_bpe_work;
/* with_cache: worth its 1 MiB for texts of some kilobytes.  MQ_E_NOMEM. */
mq_status mq_bpe_work_create(mq_bpe_work **out, bool with_cache, mq_err *err);
void mq_bpe_work_free(mq_bpe_work *w); /* accepts NULL */

/* Ids of piece [n_bytes], 1 <= n_bytes < 2^31: *ids [*n_ids], borrowed from w until its next use.
 * Time is n_bytes log n_bytes times the logarithm of the merges that share a left side. MQ_E_NOMEM.
 */
mq_status mq_bpe_encode(const mq_bpe *b, mq_bpe_work *w, const int32_t **ids, int64_t *n_ids,
                        const char *piece, int64_t n_bytes, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
