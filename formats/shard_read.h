/* Read one shard file: structure checked at open, records verified when loaded. */
#ifndef MQ_FORMATS_SHARD_READ_H
#define MQ_FORMATS_SHARD_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/plan.h"
#include "formats/shard_write.h"
#include "src/file.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_shard mq_shard;

/* Open and check header, trailer, index digest, entries (offsets aligned, ascending, no overlap, inside the file; sizes match
 * shape and scheme; names UTF-8 and unique; reserved bytes zero).  MQ_E_FORMAT or MQ_E_HASH name file, tensor and rule. */
mq_status mq_shard_open(mq_shard **out, const char *path, mq_err *err);
/* The same on bytes in memory (fuzzing, bit-flip tests); bytes are borrowed until close. */
mq_status mq_shard_open_memory(mq_shard **out, const uint8_t *bytes, int64_t n_bytes, const char *name, mq_err *err);
void mq_shard_close(mq_shard *s); /* accepts NULL */

const mq_shard_header *mq_shard_head(const mq_shard *s);
int64_t mq_shard_count(const mq_shard *s);
const mq_shard_entry *mq_shard_entry_at(const mq_shard *s, int64_t i);
const char *mq_shard_name(const mq_shard *s, int64_t i); /* NUL-terminated copy owned by s */
int64_t mq_shard_find(const mq_shard *s, const char *name); /* record number or -1 */
int64_t mq_shard_bytes(const mq_shard *s);

/* Header and records are exactly what the plan says of this file (names, order, slices, phases; schemes as allowed).
 * expert_scheme and group: of this layer's experts.  MQ_E_FORMAT names the first difference. */
mq_status mq_shard_check_plan(const mq_shard *s, const mq_file_spec *file, int n_ranks, mq_scheme expert_scheme,
                              int group, mq_err *err);

/* Load record i: plain bytes into dst [plain_bytes], decompressed, digest compared unless check is false.  Any thread. */
mq_status mq_shard_load(const mq_shard *s, int64_t i, void *dst, bool check, mq_err *err);
/* Bytes [off, off + n) of the plain bytes of an uncompressed record, unchecked; for loaders that verified the file.
 * MQ_E_ARG for a compressed record. */
mq_status mq_shard_load_range(const mq_shard *s, int64_t i, void *dst, int64_t off, int64_t n_bytes, mq_err *err);
/* View of loaded plain bytes (16-byte aligned). */
mq_matrix mq_shard_matrix(const mq_shard *s, int64_t i, const void *plain);

/* Values of a loaded record are legal: finite BF16/F16/F32, no E4M3 NaN, scales finite with |s| >= 2^-126 (INT4), E8M0 not
 * 255, FP8 scales finite.  MQ_E_FORMAT names tensor, offset and rule. */
mq_status mq_shard_check_values(const mq_shard *s, int64_t i, const void *plain, mq_err *err);

/* One sequential pass over the file: SHA-256 of all bytes, padding zero, every record's digest and values.  info gets the
 * digests.  budget_bytes bounds the memory (at least the largest record is needed).  */
mq_status mq_shard_verify(const mq_shard *s, mq_shard_info *info, int64_t budget_bytes, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
