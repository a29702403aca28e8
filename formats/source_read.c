/* Row and column ranges of logical tensors, read as stored bytes.
 *
 * Rows that lie together in the file are read together.  A column range reads whole rows through a bounce buffer: one
 * large read and a copy cost far less than a read per row. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/source_resolve.h"
#include "src/dtype.h"

enum { BOUNCE_BYTES = 1 << 20 };

/* Bits of one stored element, by scheme. */
static int64_t element_bits(mq_scheme s)
{
    return s == MQ_SCHEME_F32 ? 32 : s == MQ_SCHEME_FP8_BLOCK ? 8 : s == MQ_SCHEME_MXFP4_ROWS ? 4 : 16;
}

static mq_status slice_fp8(mq_matrix *v, const mq_source_tensor *t, int64_t row0, int64_t n_rows, int64_t col0,
                           mq_err *err)
{
    bool whole_parts = row0 % t->part_rows == 0 && n_rows % t->part_rows == 0;
    bool one_part = row0 / t->part_rows == (row0 + n_rows - 1) / t->part_rows;
    if (!whole_parts && !one_part)
        return mq_source_fail(err, MQ_E_SHAPE, t->data,
                              "FP8 rows %lld to %lld, expected a range inside one chunk part of %lld rows or whole parts",
                              (long long)row0, (long long)(row0 + n_rows - 1), (long long)t->part_rows);
    v->seg_rows = one_part ? n_rows : t->part_rows;
    v->row_phase = (int)((t->part_off + row0 % t->part_rows) % MQ_FP8_BLOCK);
    v->col_phase = (int)(col0 % MQ_FP8_BLOCK);
    return MQ_OK;
}

mq_status mq_source_slice(mq_matrix *view, int64_t *data_bytes, int64_t *scale_bytes, const mq_source_tensor *t,
                          int64_t row0, int64_t n_rows, int64_t col0, int64_t n_cols, mq_err *err)
{
    assert(row0 >= 0 && n_rows > 0 && n_rows <= t->rows - row0);
    assert(col0 >= 0 && n_cols > 0 && n_cols <= t->cols - col0);
    memset(view, 0, sizeof *view);
    view->scheme = t->scheme;
    view->rows = n_rows;
    view->cols = n_cols;
    *data_bytes = n_rows * n_cols * element_bits(t->scheme) / 8;
    *scale_bytes = 0;
    if (t->scheme == MQ_SCHEME_FP8_BLOCK) {
        MQ_TRY(slice_fp8(view, t, row0, n_rows, col0, err));
        *scale_bytes = mq_fp8_n_scales(view) * 4;
    }
    if (t->scheme == MQ_SCHEME_MXFP4_ROWS) {
        if (col0 % MQ_MX_GROUP != 0 || n_cols % MQ_MX_GROUP != 0)
            return mq_source_fail(err, MQ_E_SHAPE, t->data, "MXFP4 columns %lld to %lld, expected multiples of %d",
                                  (long long)col0, (long long)(col0 + n_cols - 1), MQ_MX_GROUP);
        *scale_bytes = n_rows * n_cols / MQ_MX_GROUP;
    }
    return MQ_OK;
}

/* A stored matrix of bytes: row_bytes each; the wanted part is want_bytes from off on. */
typedef struct strip {
    mq_tensor_ref ref;
    int64_t row_bytes, off, want_bytes;
} strip;

/* Stored rows [row0, row0 + n_rows) of a strip to dst, packed. */
static mq_status read_strip(const strip *s, int64_t row0, int64_t n_rows, uint8_t *dst, mq_err *err)
{
    if (s->want_bytes == s->row_bytes)
        return mq_safetensors_read(s->ref.file, s->ref.tensor, dst, row0 * s->row_bytes, n_rows * s->row_bytes, err);
    int64_t at_once = BOUNCE_BYTES / s->row_bytes;
    if (at_once < 1) /* a row longer than the buffer: its part is worth a read of its own */
        at_once = 0;
    uint8_t *bounce = at_once ? malloc((size_t)(at_once * s->row_bytes)) : NULL;
    if (at_once && !bounce)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for a read buffer");
    mq_status st = MQ_OK;
    for (int64_t r = 0; r < n_rows && st == MQ_OK;) {
        int64_t n = at_once == 0 ? 1 : n_rows - r < at_once ? n_rows - r : at_once;
        if (at_once == 0) {
            st = mq_safetensors_read(s->ref.file, s->ref.tensor, dst + r * s->want_bytes,
                                     (row0 + r) * s->row_bytes + s->off, s->want_bytes, err);
        } else {
            st = mq_safetensors_read(s->ref.file, s->ref.tensor, bounce, (row0 + r) * s->row_bytes, n * s->row_bytes,
                                     err);
            for (int64_t i = 0; i < n && st == MQ_OK; i++)
                memcpy(dst + (r + i) * s->want_bytes, bounce + i * s->row_bytes + s->off, (size_t)s->want_bytes);
        }
        r += n;
    }
    free(bounce);
    return st;
}

/* Logical rows to stored ones, part by part. */
static mq_status read_rows(const strip *s, const mq_source_tensor *t, int64_t row0, int64_t n_rows, uint8_t *dst,
                           mq_err *err)
{
    while (n_rows > 0) {
        int64_t in_part = row0 % t->part_rows, n = t->part_rows - in_part;
        if (n > n_rows || t->part_rows == t->chunk_rows) /* parts without gaps between them are one run */
            n = n_rows;
        int64_t stored = row0 / t->part_rows * t->chunk_rows + t->part_off + in_part;
        MQ_TRY(read_strip(s, stored, n, dst, err));
        dst += n * s->want_bytes;
        row0 += n;
        n_rows -= n;
    }
    return MQ_OK;
}

static mq_status read_fp8_scales(const mq_matrix *v, uint8_t *scale, const mq_source_tensor *t, int64_t row0,
                                 int64_t col0, mq_err *err)
{
    int64_t n_cols = mq_fp8_scale_cols(v), n_rows = mq_fp8_seg_scale_rows(v);
    strip s = {t->scale, mq_ceil_div(t->cols, MQ_FP8_BLOCK) * 4, col0 / MQ_FP8_BLOCK * 4, n_cols * 4};
    for (int64_t seg = 0; seg < v->rows / v->seg_rows; seg++) {
        int64_t row = row0 + seg * v->seg_rows;
        int64_t stored = row / t->part_rows * mq_ceil_div(t->chunk_rows, MQ_FP8_BLOCK) +
                         (t->part_off + row % t->part_rows) / MQ_FP8_BLOCK;
        MQ_TRY(read_strip(&s, stored, n_rows, scale + seg * n_rows * n_cols * 4, err));
    }
    return MQ_OK;
}

/* First byte equal to bad under mask, -1 when there is none. */
static int64_t find_byte(const uint8_t *bytes, int64_t n, uint8_t mask, uint8_t bad)
{
    for (int64_t i = 0; i < n; i += 4096) {
        int64_t end = n - i < 4096 ? n : i + 4096;
        unsigned any = 0; /* no early exit inside a block, so that it vectorizes */
        for (int64_t k = i; k < end; k++)
            any |= (bytes[k] & mask) == bad;
        for (int64_t k = i; any && k < end; k++)
            if ((bytes[k] & mask) == bad)
                return k;
    }
    return -1;
}

/* Where logical (row, byte in row) of the slice stands in the stored tensor. */
static int64_t stored_offset(const mq_source_tensor *t, const strip *s, int64_t row, int64_t byte)
{
    int64_t stored = row / t->part_rows * t->chunk_rows + t->part_off + row % t->part_rows;
    return stored * s->row_bytes + s->off + byte;
}

/* Does value k have all exponent bits set? */
static bool is_not_finite(const uint8_t *bytes, int64_t k, mq_scheme scheme)
{
    uint16_t half;
    uint32_t word;
    if (scheme == MQ_SCHEME_F32) {
        memcpy(&word, bytes + 4 * k, sizeof word);
        return (word & 0x7f800000) == 0x7f800000;
    }
    memcpy(&half, bytes + 2 * k, sizeof half);
    uint16_t exponent = scheme == MQ_SCHEME_BF16 ? 0x7f80 : 0x7c00;
    return (half & exponent) == exponent;
}

/* Eight bytes at a time: adding the exponent's lowest bit to the exponent bits of a value carries into its sign bit (masked
 * out before) exactly when all of them are set. */
int64_t mq_source_find_not_finite(const uint8_t *bytes, int64_t n, mq_scheme scheme)
{
    enum { BLOCK = 2048 }; /* bytes */
    const uint64_t exponent = scheme == MQ_SCHEME_F32    ? 0x7f8000007f800000
                              : scheme == MQ_SCHEME_BF16 ? 0x7f807f807f807f80
                                                         : 0x7c007c007c007c00;
    const uint64_t lowest = scheme == MQ_SCHEME_F32    ? 0x0080000000800000
                            : scheme == MQ_SCHEME_BF16 ? 0x0080008000800080
                                                       : 0x0400040004000400;
    const uint64_t sign = scheme == MQ_SCHEME_F32 ? 0x8000000080000000 : 0x8000800080008000;
    const int64_t value_bytes = scheme == MQ_SCHEME_F32 ? 4 : 2, n_bytes = n * value_bytes;
    int64_t at = 0;
    for (; at + BLOCK <= n_bytes; at += BLOCK) {
        uint64_t any = 0, x;
        for (int64_t k = at; k < at + BLOCK; k += 8) {
            memcpy(&x, bytes + k, sizeof x);
            any |= (x & exponent) + lowest;
        }
        if (any & sign)
            break;
    }
    for (int64_t k = at / value_bytes; k < n; k++)
        if (is_not_finite(bytes, k, scheme))
            return k;
    return -1;
}

/* BF16, F16, F32: finite, as a shard must hold them. */
static mq_status check_plain(const mq_matrix *v, const mq_source_tensor *t, int64_t row0, int64_t col0,
                             const uint8_t *data, mq_err *err)
{
    int64_t i = mq_source_find_not_finite(data, v->rows * v->cols, t->scheme);
    if (i < 0)
        return MQ_OK;
    int64_t row = row0 + i / v->cols, stored = row / t->part_rows * t->chunk_rows + t->part_off + row % t->part_rows;
    uint64_t bits = 0, fraction = t->scheme == MQ_SCHEME_F32 ? 0x7fffff : t->scheme == MQ_SCHEME_BF16 ? 0x7f : 0x3ff;
    memcpy(&bits, data + i * element_bits(t->scheme) / 8, (size_t)element_bits(t->scheme) / 8);
    const char *what = bits & fraction ? "NaN" : "infinite";
    return mq_source_fail(err, MQ_E_NUMERIC, t->data, "row %lld, column %lld is %s, expected finite weights",
                          (long long)stored, (long long)(col0 + i % v->cols), what);
}

static mq_status check_values(const mq_matrix *v, const mq_source_tensor *t, const strip *s, int64_t row0,
                              const uint8_t *data, int64_t data_bytes, const uint8_t *scale, int64_t scale_bytes,
                              mq_err *err)
{
    if (v->scheme == MQ_SCHEME_MXFP4_ROWS) {
        int64_t i = find_byte(scale, scale_bytes, 0xff, 0xff);
        if (i < 0)
            return MQ_OK;
        return mq_source_fail(err, MQ_E_FORMAT, t->scale, "scale 255 (NaN) of row %lld, byte %lld of the slice",
                              (long long)(row0 + i / (v->cols / MQ_MX_GROUP)), (long long)i);
    }
    int64_t i = find_byte(data, data_bytes, 0x7f, 0x7f);
    if (i >= 0)
        return mq_source_fail(err, MQ_E_FORMAT, t->data, "NaN code 0x%02x at byte %lld", data[i],
                              (long long)stored_offset(t, s, row0 + i / s->want_bytes, i % s->want_bytes));
    for (int64_t k = 0; k < scale_bytes / 4; k++) {
        float f;
        memcpy(&f, scale + 4 * k, sizeof f);
        if (!isfinite(f))
            return mq_source_fail(err, MQ_E_FORMAT, t->scale, "scale %g, number %lld of the slice at row %lld", (double)f,
                                  (long long)k, (long long)row0);
    }
    return MQ_OK;
}

mq_status mq_source_read(mq_matrix *view, void *data, void *scale, const mq_source_tensor *t, int64_t row0,
                         int64_t n_rows, int64_t col0, int64_t n_cols, mq_err *err)
{
    int64_t data_bytes, scale_bytes;
    MQ_TRY(mq_source_slice(view, &data_bytes, &scale_bytes, t, row0, n_rows, col0, n_cols, err));
    int64_t bits = element_bits(t->scheme);
    strip s = {t->data, t->cols * bits / 8, col0 * bits / 8, n_cols * bits / 8};
    if (t->resident)
        memcpy(data, t->resident + s.off, (size_t)data_bytes);
    else
        MQ_TRY(read_rows(&s, t, row0, n_rows, data, err));
    if (t->scheme == MQ_SCHEME_FP8_BLOCK)
        MQ_TRY(read_fp8_scales(view, scale, t, row0, col0, err));
    if (t->scheme == MQ_SCHEME_MXFP4_ROWS) {
        strip e = {t->scale, t->cols / MQ_MX_GROUP, col0 / MQ_MX_GROUP, n_cols / MQ_MX_GROUP};
        MQ_TRY(read_rows(&e, t, row0, n_rows, scale, err));
    }
    if (t->scheme == MQ_SCHEME_FP8_BLOCK || t->scheme == MQ_SCHEME_MXFP4_ROWS)
        MQ_TRY(check_values(view, t, &s, row0, data, data_bytes, scale, scale_bytes, err));
    else if (!t->resident) /* those bytes were checked at open */
        MQ_TRY(check_plain(view, t, row0, col0, data, err));
    view->data = data;
    view->scale = scale_bytes ? scale : NULL;
    return MQ_OK;
}
