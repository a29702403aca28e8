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

/* Open and check header, trailer, index digest, entries (records back to back at multiples of 4096; sizes match shape and
 * scheme; names printable ASCII and unique; reserved bytes zero).  MQ_E_FORMAT or MQ_E_HASH name file, tensor and rule;
 * MQ_E_UNSUPPORTED: another format version.  Memory is bounded by the index, which lies in the file. */
mq_status mq_shard_open(mq_shard **out, const char *path, mq_err *err);
/* The same on bytes in memory (fuzzing, bit-flip tests); bytes are borrowed until close. */
mq_status mq_shard_open_memory(mq_shard **out, const uint8_t *bytes, int64_t n_bytes, const char *name, mq_err *err);
/* As mq_shard_open_memory, but no digest is ever compared, here, in mq_shard_load and in mq_shard_verify.  For fuzzing alone: behind
 * the index digest nothing would be reached. */
mq_status mq_shard_open_unhashed(mq_shard **out, const uint8_t *bytes, int64_t n_bytes, const char *name, mq_err *err);
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

/* For loaders that read records themselves.  The file behind a shard, borrowed until close; NULL for one in memory. */
const mq_file *mq_shard_file(const mq_shard *s);
/* The digest of record i's plain bytes is the index's: what mq_shard_load checks, with its text. */
mq_status mq_shard_check_digest(const mq_shard *s, int64_t i, const uint8_t digest[MQ_SHA256_BYTES], mq_err *err);
/* Put "FILE: tensor 'NAME'", record i's, in front of what st's err says. */
mq_status mq_shard_wrap(const mq_shard *s, int64_t i, mq_status st, mq_err *err);
/* View of loaded plain bytes (16-byte aligned). */
mq_matrix mq_shard_matrix(const mq_shard *s, int64_t i, const void *plain);

/* Values of a loaded record are legal: finite BF16/F16/F32, no E4M3 NaN, scales finite with |s| >= 2^-126 (INT4), E8M0 not
 * 255, FP8 scales finite.  MQ_E_FORMAT names tensor, offset and rule. */
mq_status mq_shard_check_values(const mq_shard *s, int64_t i, const void *plain, mq_err *err);

/* One sequential pass over the file: SHA-256 of all bytes, padding zero, every record's digest and values.  info gets the
 * digests, to be compared with the manifest's.  Plain records pass in pieces of 4 MiB; a compressed one needs its stored and plain
 * bytes at once, and MQ_E_NOMEM says so where they exceed budget_bytes.  MQ_E_HASH, MQ_E_FORMAT name file, tensor and
 * rule. */
mq_status mq_shard_verify(const mq_shard *s, mq_shard_info *info, int64_t budget_bytes, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
