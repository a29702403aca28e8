/* On-disk structs of a shard file (.mqs), SHARD.md section 2.  Little-endian, no padding.
 *
 *   offset 0      mq_shard_header, zero-filled to 4096
 *   4096 ...      records, each at a multiple of 4096, zero-filled up to the next one
 *   then          index: n_records x mq_shard_entry, then the names (no separators)
 *   last 64       mq_shard_trailer
 *
 * The writer needs no seek: offsets come last.  A record's plain bytes (before compression) are, by scheme:
 *   BF16 F16 F32      rows x cols values, row-major (vectors: rows = 1)
 *   FP8_BLOCK         rows x cols codes, zero-filled to a multiple of 16, then the F32 scales (src/matrix.h)
 *   INT4 MXFP4        group blocks (src/units.h)
 * A compressed record is one or more zstd frames, concatenated, each with its content size. */
#ifndef MQ_FORMATS_SHARD_H
#define MQ_FORMATS_SHARD_H

#include <assert.h>
#include <stdint.h>

#include "formats/source.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_SHARD_VERSION = 1, MQ_SHARD_ALIGN = 4096, MQ_SHARD_MAX_RECORDS = 1 << 24 };

/* "MQS" CR LF SUB LF NUL: text-mode transfers damage it visibly. */
#define MQ_SHARD_MAGIC "MQS\r\n\x1a\n"
#define MQ_SHARD_TRAILER_MAGIC "MQSEND\r\n"

typedef enum mq_shard_kind {
    MQ_SHARD_COMMON = 0, /* common.mqs */
    MQ_SHARD_LAYER = 1,  /* layer-LLL-rank-RR-of-NN.mqs */
    MQ_SHARD_HEAD = 2,   /* head-rank-RR-of-NN.mqs: vocabulary slices of embedding and head */
    MQ_SHARD_MTP = 3,    /* mtp-MMM-rank-RR-of-NN.mqs */
    MQ_SHARD_DRAFT = 4,  /* draft-rank-RR-of-NN.mqs: matrices of all draft layers */
    MQ_SHARD_KIND_COUNT
} mq_shard_kind;

typedef struct mq_shard_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t kind;          /* mq_shard_kind */
    uint32_t layer;         /* LAYER: layer, MTP: MTP layer, else 0 */
    uint32_t rank, n_ranks; /* COMMON: 0 of 1 */
    uint8_t reserved[36];   /* zero */
} mq_shard_header;
static_assert(sizeof(mq_shard_header) == 64, "SHARD.md section 2");

enum { MQ_CODEC_NONE = 0, MQ_CODEC_ZSTD = 1 };

typedef struct mq_shard_entry {
    uint64_t off;          /* of the stored bytes, from the start of the file */
    uint64_t stored_bytes; /* without padding */
    uint64_t plain_bytes;
    uint64_t rows, cols;   /* of this slice, elements */
    uint64_t row0, col0;   /* where the slice begins in the logical tensor */
    uint64_t seg_rows;     /* FP8_BLOCK, else 0 */
    uint32_t name_off;     /* from the start of the names */
    uint16_t name_bytes;
    uint8_t scheme;        /* mq_scheme */
    uint8_t codec;         /* MQ_CODEC_... */
    uint16_t group;        /* INT4: 32, 64, 128; MXFP4: 32; else 0 */
    uint8_t row_phase, col_phase; /* FP8_BLOCK, else 0 */
    uint8_t reserved[20];  /* zero */
    uint8_t sha256[32];    /* of the plain bytes */
} mq_shard_entry;
static_assert(sizeof(mq_shard_entry) == 128, "SHARD.md section 3");

typedef struct mq_shard_trailer {
    uint64_t index_off;   /* multiple of 4096 */
    uint64_t index_bytes; /* n_records * 128 + names_bytes */
    uint32_t n_records, names_bytes;
    uint8_t index_sha256[32];
    uint8_t magic[8];
} mq_shard_trailer;
static_assert(sizeof(mq_shard_trailer) == 64, "SHARD.md section 2");

#ifdef __cplusplus
}
#endif
#endif
