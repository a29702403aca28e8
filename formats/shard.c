/* What a shard's header and entries must look like, and which values a record may hold: shared by
 * writer and reader.
 *
 * Entries come from files, so every size is computed with bounds that no product can leave: at most
 * 2^31 rows and columns, at most 2^44 elements. */
#include "formats/shard.h"

#include <stdbool.h>
#include <string.h>

#include "src/dtype.h"
#include "src/units.h"

enum { MAX_SHARD_RANKS = 99 };

static bool is_zero(const uint8_t *bytes, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any |= bytes[i];
    return any == 0;
}

/* ---- Header ---- */

mq_status mq_shard_check_header(const mq_shard_header *h, mq_err *err)
{
    if (memcmp(h->magic, MQ_SHARD_MAGIC, sizeof h->magic) != 0)
        return mq_fail(err, MQ_E_FORMAT, "header: not a shard file (wrong magic)");
    if (h->version != MQ_SHARD_VERSION)
        return mq_fail(err, MQ_E_UNSUPPORTED, "header: format version %u, this program reads %d",
                       h->version, MQ_SHARD_VERSION);
    if (h->kind >= MQ_SHARD_KIND_COUNT)
        return mq_fail(err, MQ_E_FORMAT, "header: kind %u, expected 0 to %d", h->kind,
                       MQ_SHARD_KIND_COUNT - 1);
    bool has_layer = h->kind == MQ_SHARD_LAYER || h->kind == MQ_SHARD_MTP;
    if (h->layer >= (has_layer ? (uint32_t)MQ_MAX_LAYERS : 1u))
        return mq_fail(err, MQ_E_FORMAT, "header: layer %u, expected %s", h->layer,
                       has_layer ? "0 to 511" : "0");
    uint32_t max_ranks = h->kind == MQ_SHARD_COMMON ? 1 : MAX_SHARD_RANKS;
    if (h->n_ranks < 1 || h->n_ranks > max_ranks || h->rank >= h->n_ranks)
        return mq_fail(err, MQ_E_FORMAT,
                       "header: rank %u of %u, expected a rank below 1 to %u ranks", h->rank,
                       h->n_ranks, max_ranks);
    if (!is_zero(h->reserved, sizeof h->reserved))
        return mq_fail(err, MQ_E_FORMAT, "header: reserved bytes are not zero");
    return MQ_OK;
}

/* ---- Entries ---- */

mq_matrix mq_shard_entry_matrix(const mq_shard_entry *e, const void *plain)
{
    mq_matrix v = {.scheme = (mq_scheme)e->scheme,
                   .rows = (int64_t)e->rows,
                   .cols = (int64_t)e->cols,
                   .data = plain};
    if (e->scheme == MQ_SCHEME_INT4)
        v.group = e->group;
    if (e->scheme == MQ_SCHEME_MXFP4)
        v.group = MQ_GROUP_MXFP4;
    if (e->scheme == MQ_SCHEME_FP8_BLOCK) {
        v.seg_rows = (int64_t)e->seg_rows;
        v.row_phase = e->row_phase;
        v.col_phase = e->col_phase;
        v.scale = plain ? (const uint8_t *)plain + mq_round_up(v.rows * v.cols, 16) : NULL;
    }
    return v;
}

/* Plain bytes by scheme and shape, of an entry whose dimensions are bounded. */
static int64_t plain_bytes_of(const mq_matrix *v)
{
    int64_t n = v->rows * v->cols;
    if (v->scheme == MQ_SCHEME_FP8_BLOCK)
        return mq_round_up(n, 16) + 4 * mq_fp8_n_scales(v);
    if (v->scheme == MQ_SCHEME_INT4 || v->scheme == MQ_SCHEME_MXFP4)
        return mq_units_bytes(v->rows, v->cols, v->group);
    return v->scheme == MQ_SCHEME_F32 ? 4 * n : 2 * n;
}

static mq_status check_dims(const mq_shard_entry *e, mq_err *err)
{
    const uint64_t max = (uint64_t)1 << 31;
    if (e->rows < 1 || e->rows > max || e->cols < 1 || e->cols > max ||
        e->rows * e->cols > (uint64_t)1 << 44)
        return mq_fail(
            err, MQ_E_FORMAT,
            "shape [%llu, %llu], expected 1 to 2^31 rows and columns and at most 2^44 elements",
            (unsigned long long)e->rows, (unsigned long long)e->cols);
    if (e->row0 > max || e->col0 > max)
        return mq_fail(err, MQ_E_FORMAT, "slice begins at [%llu, %llu], expected at most 2^31",
                       (unsigned long long)e->row0, (unsigned long long)e->col0);
    return MQ_OK;
}

mq_status mq_shard_check_entry(const mq_shard_entry *e, mq_err *err)
{
    MQ_TRY(check_dims(e, err));
    if (e->scheme < MQ_SCHEME_BF16 || e->scheme > MQ_SCHEME_MXFP4)
        return mq_fail(err, MQ_E_FORMAT, "scheme %u, expected 1 to %d", e->scheme, MQ_SCHEME_MXFP4);
    unsigned group = e->scheme == MQ_SCHEME_MXFP4 ? MQ_MX_GROUP : 0;
    if (e->scheme != MQ_SCHEME_INT4 && e->group != group)
        return mq_fail(err, MQ_E_FORMAT, "%s with group %u, expected %u",
                       mq_scheme_name((mq_scheme)e->scheme), e->group, group);
    if (e->seg_rows > e->rows) /* before it becomes signed */
        return mq_fail(err, MQ_E_FORMAT, "segments of %llu rows, expected a divisor of %llu",
                       (unsigned long long)e->seg_rows, (unsigned long long)e->rows);
    if (e->scheme != MQ_SCHEME_FP8_BLOCK && (e->seg_rows || e->row_phase || e->col_phase))
        return mq_fail(err, MQ_E_FORMAT, "%s with segments or phases, expected 0",
                       mq_scheme_name((mq_scheme)e->scheme));
    if (!is_zero(e->reserved, sizeof e->reserved))
        return mq_fail(err, MQ_E_FORMAT, "reserved bytes of the entry are not zero");

    mq_matrix v = mq_shard_entry_matrix(e, NULL);
    mq_err why;
    if (mq_matrix_check(&v, &why) != MQ_OK)
        return mq_fail(err, MQ_E_FORMAT, "%s", why.text);
    uint64_t expected = (uint64_t)plain_bytes_of(&v);
    if (e->plain_bytes != expected)
        return mq_fail(err, MQ_E_FORMAT, "%llu plain bytes, expected %llu for %s [%llu, %llu]",
                       (unsigned long long)e->plain_bytes, (unsigned long long)expected,
                       mq_scheme_name((mq_scheme)e->scheme), (unsigned long long)e->rows,
                       (unsigned long long)e->cols);
    return MQ_OK;
}

/* ---- Values ---- */

/* Position of the first 16-bit value whose bits under mask are all ones, or -1.  A first pass that
 * vectorizes, then a search. */
static int64_t find_u16(const uint8_t *bytes, int64_t n, uint16_t mask)
{
    unsigned any = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, bytes + 2 * i, 2);
        any |= (v & mask) == mask;
    }
    for (int64_t i = 0; any && i < n; i++) {
        uint16_t v;
        memcpy(&v, bytes + 2 * i, 2);
        if ((v & mask) == mask)
            return i;
    }
    return -1;
}

static int64_t find_f32(const uint8_t *bytes, int64_t n)
{
    unsigned any = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, bytes + 4 * i, 4);
        any |= (v & 0x7f800000u) == 0x7f800000u;
    }
    for (int64_t i = 0; any && i < n; i++) {
        uint32_t v;
        memcpy(&v, bytes + 4 * i, 4);
        if ((v & 0x7f800000u) == 0x7f800000u)
            return i;
    }
    return -1;
}

static int64_t find_e4m3_nan(const uint8_t *bytes, int64_t n)
{
    unsigned any = 0;
    for (int64_t i = 0; i < n; i++)
        any |= (bytes[i] & 0x7f) == 0x7f;
    for (int64_t i = 0; any && i < n; i++)
        if ((bytes[i] & 0x7f) == 0x7f)
            return i;
    return -1;
}

static mq_status check_plain(const mq_shard_entry *e, int64_t off, const uint8_t *bytes,
                             int64_t n_bytes, mq_err *err)
{
    int size = e->scheme == MQ_SCHEME_F32 ? 4 : 2;
    int64_t bad = e->scheme == MQ_SCHEME_F32    ? find_f32(bytes, n_bytes / 4)
                  : e->scheme == MQ_SCHEME_BF16 ? find_u16(bytes, n_bytes / 2, 0x7f80)
                                                : find_u16(bytes, n_bytes / 2, 0x7c00);
    if (bad < 0)
        return MQ_OK;
    return mq_fail(err, MQ_E_FORMAT, "byte %lld: %s value is not finite",
                   (long long)(off + size * bad), mq_scheme_name((mq_scheme)e->scheme));
}

/* Codes, zero fill to 16 bytes, F32 scales; a piece may span all three. */
static mq_status check_fp8(const mq_shard_entry *e, int64_t off, const uint8_t *bytes,
                           int64_t n_bytes, mq_err *err)
{
    int64_t n_codes = (int64_t)(e->rows * e->cols), scale_off = mq_round_up(n_codes, 16),
            end = off + n_bytes;
    int64_t codes_end = end < n_codes ? end : n_codes, fill_end = end < scale_off ? end : scale_off;
    int64_t pos = off;
    if (pos < codes_end) {
        int64_t bad = find_e4m3_nan(bytes, codes_end - pos);
        if (bad >= 0)
            return mq_fail(err, MQ_E_FORMAT, "byte %lld: E4M3 code is NaN", (long long)(pos + bad));
        pos = codes_end;
    }
    for (; pos < fill_end; pos++)
        if (bytes[pos - off])
            return mq_fail(err, MQ_E_FORMAT, "byte %lld: fill between codes and scales is not zero",
                           (long long)pos);
    if (pos < end) {
        int64_t bad = find_f32(bytes + (pos - off), (end - pos) / 4);
        if (bad >= 0)
            return mq_fail(err, MQ_E_FORMAT, "byte %lld: FP8 scale is not finite",
                           (long long)(pos + 4 * bad));
    }
    return MQ_OK;
}

/* BF16 scales of INT4 groups: normal numbers, so that 1 / scale and scale * code stay in F32's
 * normal range. */
static mq_status check_int4_scales(int64_t off, const uint8_t *scales, int64_t n, mq_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t s;
        memcpy(&s, scales + 2 * i, 2);
        unsigned exponent = s >> 7 & 0xffu;
        if (exponent == 0 || exponent == 255)
            return mq_fail(
                err, MQ_E_FORMAT,
                "byte %lld: INT4 scale 0x%04x, expected finite and at least 2^-126 in size",
                (long long)(off + 2 * i), s);
    }
    return MQ_OK;
}

static mq_status check_units(const mq_shard_entry *e, int64_t off, const uint8_t *bytes,
                             int64_t n_bytes, mq_err *err)
{
    bool is_mx = e->scheme == MQ_SCHEME_MXFP4;
    int group = is_mx ? MQ_GROUP_MXFP4 : e->group;
    int64_t block = mq_block_bytes(group),
            codes = mq_block_cols(group) / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
    for (int64_t at = 0; at + block <= n_bytes; at += block) {
        const uint8_t *scales = bytes + at + codes;
        if (!is_mx) {
            MQ_TRY(check_int4_scales(off + at + codes, scales, (block - codes) / 2, err));
            continue;
        }
        const uint8_t *bad = memchr(scales, 255, (size_t)(block - codes));
        if (bad)
            return mq_fail(err, MQ_E_FORMAT, "byte %lld: E8M0 scale is 255 (NaN)",
                           (long long)(off + (bad - bytes)));
    }
    return MQ_OK;
}

int64_t mq_shard_piece_bytes(const mq_shard_entry *e, int64_t want)
{
    int64_t block = e->scheme == MQ_SCHEME_INT4    ? mq_block_bytes(e->group)
                    : e->scheme == MQ_SCHEME_MXFP4 ? mq_block_bytes(MQ_GROUP_MXFP4)
                                                   : 16;
    return want < block ? block : want / block * block;
}

mq_status mq_shard_check_piece(const mq_shard_entry *e, int64_t off, const uint8_t *bytes,
                               int64_t n_bytes, mq_err *err)
{
    switch (e->scheme) {
    case MQ_SCHEME_INT4:
    case MQ_SCHEME_MXFP4:
        return check_units(e, off, bytes, n_bytes, err);
    case MQ_SCHEME_FP8_BLOCK:
        return check_fp8(e, off, bytes, n_bytes, err);
    default:
        return check_plain(e, off, bytes, n_bytes, err);
    }
}

/* ---- Content digest ---- */

void mq_shard_digest_content(uint8_t digest[32], mq_sha256 *h, const mq_shard_header *header,
                             const mq_shard_entry *entries, int64_t n_records, const char *names)
{
    mq_sha256_reset(h);
    mq_sha256_update(h, header, sizeof *header);
    for (int64_t i = 0; i < n_records; i++) {
        mq_shard_entry e = entries[i];
        e.off = e.stored_bytes = 0;
        e.codec = 0;
        mq_sha256_update(h, &e, sizeof e);
        mq_sha256_update(h, names + e.name_off, e.name_bytes);
    }
    mq_sha256_finish(h, digest);
}
