/* mask_embedding.pt of a DFlash drafter: a torch zip archive with a pickled dict {mask_token_id: int,
 * embedding: contiguous BF16 (or F32, F16) tensor [hidden]}.  A strict reader of exactly that: stored (uncompressed) zip
 * members, and a pickle interpreter that knows the few opcodes torch writes for such a dict and calls nothing. */
#ifndef MQ_FORMATS_TORCH_PT_H
#define MQ_FORMATS_TORCH_PT_H

#include <stdint.h>

#include "src/dtype.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_mask_embedding {
    int64_t mask_token_id;
    mq_dtype dtype;   /* MQ_DT_BF16, MQ_DT_F16 or MQ_DT_F32 */
    int64_t n;        /* elements */
    uint8_t *bytes;   /* [n] elements of dtype, little-endian; heap */
} mq_mask_embedding;

/* Read the file at path (at most 64 MiB).  MQ_E_FORMAT names the zip or pickle rule that is broken; MQ_E_UNSUPPORTED: a
 * well-formed archive of something else (compressed member, another class, big-endian).  MQ_E_IO, MQ_E_NOMEM. */
mq_status mq_mask_embedding_load(mq_mask_embedding *out, const char *path, mq_err *err);
mq_status mq_mask_embedding_parse(mq_mask_embedding *out, const uint8_t *bytes, int64_t n_bytes, const char *name,
                                  mq_err *err);
void mq_mask_embedding_release(mq_mask_embedding *e);

#ifdef __cplusplus
}
#endif
#endif
