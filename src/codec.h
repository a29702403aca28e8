/* zstd behind four calls; codec.c is its only user. */
#ifndef MQ_SRC_CODEC_H
#define MQ_SRC_CODEC_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Upper bound of one frame's bytes for n_bytes of input. */
int64_t mq_zstd_bound(int64_t n_bytes);

/* Compress src into one frame that records its content size; *out_bytes of dst [dst_cap] are used.
 * level 1..19.  Deterministic for one library version.  MQ_E_NOMEM, MQ_E_BUG (dst_cap below the bound, level
 * outside its range). */
mq_status mq_zstd_compress(void *dst, int64_t dst_cap, int64_t *out_bytes, const void *src, int64_t n_bytes, int level,
                           mq_err *err);

/* Decompress one or more concatenated frames that must fill dst [plain_bytes] exactly.  Each frame says its content size; its
 * window is at most 128 MiB.  Skippable and legacy frames are refused.  dst may be NULL when plain_bytes is 0.
 * MQ_E_FORMAT for damaged, short or long data; MQ_E_NOMEM. */
mq_status mq_zstd_decompress(void *dst, int64_t plain_bytes, const void *src, int64_t n_bytes, mq_err *err);

/* Takes the first n_bytes of the buffer last given, and gives the next one, of at least 1 byte; buf NULL: none is asked for. */
typedef mq_status (*mq_zstd_sink)(void *ctx, int64_t n_bytes, uint8_t **buf, int64_t *buf_bytes, mq_err *err);

/* As mq_zstd_decompress, but plain bytes come in pieces: decompressed into one buffer of sink's after the other, full but for
 * the last of a frame.  Memory of its own: a window.  Also the statuses of sink, which ends it. */
mq_status mq_zstd_decompress_to(mq_zstd_sink sink, void *ctx, int64_t plain_bytes, const void *src, int64_t n_bytes,
                                mq_err *err);

/* Library version, "1.5.4". */
const char *mq_zstd_version(void);

#ifdef __cplusplus
}
#endif
#endif
