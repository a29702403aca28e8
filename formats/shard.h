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
 * A compressed record is one or more zstd frames, concatenated, each with its content size.
 *
 * Entries stand in the order of their records; there is no gap but the zero fill. */
#ifndef MQ_FORMATS_SHARD_H
#define MQ_FORMATS_SHARD_H

#include <assert.h>
#include <stdint.h>

#include "formats/source.h"
#include "src/sha256.h"

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
    uint8_t index_sha256[32]; /* of the header's 64 bytes and the index */
    uint8_t magic[8];
} mq_shard_trailer;
static_assert(sizeof(mq_shard_trailer) == 64, "SHARD.md section 2");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structs are read and written as they are");

/* ---- What writer and reader share (shard.c) ---- */

/* Magic, version, kind, numbers and reserved bytes.  MQ_E_FORMAT; MQ_E_UNSUPPORTED: another version. */
mq_status mq_shard_check_header(const mq_shard_header *h, mq_err *err);

/* Scheme, shape, slice, group, phases, reserved bytes and plain_bytes fit together; every product is checked for overflow.
 * Offsets, name, codec and digest are the reader's to check.  MQ_E_FORMAT. */
mq_status mq_shard_check_entry(const mq_shard_entry *e, mq_err *err);

/* View of a checked entry's plain bytes (16-byte aligned, or NULL for the geometry alone). */
mq_matrix mq_shard_entry_matrix(const mq_shard_entry *e, const void *plain);

/* A record is checked in pieces: the largest piece of at most want bytes that ends between two values or group blocks, at
 * least one block.  Pieces start at multiples of it. */
int64_t mq_shard_piece_bytes(const mq_shard_entry *e, int64_t want);

/* Values [off, off + n_bytes) of a checked entry's plain bytes are legal (SHARD.md "Legal values").  off is a multiple of a piece.
 * MQ_E_FORMAT names offset and rule. */
mq_status mq_shard_check_piece(const mq_shard_entry *e, int64_t off, const uint8_t *bytes, int64_t n_bytes, mq_err *err);

/* Content digest of a file (SHARD.md "Content digest"): h is borrowed scratch; names [names_bytes] as in the index. */
void mq_shard_digest_content(uint8_t digest[32], mq_sha256 *h, const mq_shard_header *header,
                             const mq_shard_entry *entries, int64_t n_records, const char *names);

#ifdef __cplusplus
}
#endif
#endif
