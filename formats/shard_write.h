/* Write one shard file front to back: records in order, each in pieces; then index and trailer; then the rename. */
#ifndef MQ_FORMATS_SHARD_WRITE_H
#define MQ_FORMATS_SHARD_WRITE_H

#include <stdint.h>

#include "formats/plan.h"
#include "src/file.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_shard_writer mq_shard_writer;

/* What the manifest records of a finished file. */
typedef struct mq_shard_info {
    char name[64];
    int64_t bytes;                     /* on disk */
    int64_t plain_bytes;               /* of all records */
    uint8_t sha256[MQ_SHA256_BYTES];   /* of the file */
    uint8_t content[MQ_SHA256_BYTES];  /* over the uncompressed records, SHARD.md "Content digest" */
} mq_shard_info;

/* Start DIR/file->name (as .partial).  zstd_level 0: records are stored plain.  file is borrowed until commit. */
mq_status mq_shard_writer_create(mq_shard_writer **out, const char *dir, const mq_file_spec *file, int n_ranks,
                                 int zstd_level, mq_err *err);
void mq_shard_writer_abandon(mq_shard_writer *w); /* removes the partial file; accepts NULL */

/* Begin the next record of the file spec, stored in scheme.  Records come in the spec's order (MQ_E_BUG otherwise). */
mq_status mq_shard_writer_begin(mq_shard_writer *w, int64_t record, mq_scheme scheme, int group, mq_err *err);
/* Append plain bytes to the open record.  With compression each call makes one frame; packed (may be NULL) is that frame made
 * beforehand by mq_zstd_compress at the same level, so that callers compress in parallel. */
mq_status mq_shard_writer_append(mq_shard_writer *w, const void *plain, int64_t n_bytes, const void *packed,
                                 int64_t packed_bytes, mq_err *err);
/* End the open record; MQ_E_BUG when its plain bytes differ from the scheme's. */
mq_status mq_shard_writer_end(mq_shard_writer *w, mq_err *err);

/* Index, trailer, fsync, rename; frees w in every case. */
mq_status mq_shard_writer_commit(mq_shard_writer *w, mq_shard_info *info, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
