/* Views of stored matrices: consistency, scale geometry, and the definition of every scheme as a plain loop.
 *
 * Fast widening lives in kernels/; it is tested against mq_matrix_widen. */
#include "src/matrix.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "src/dtype.h"
#include "src/float.h"
#include "src/units.h"

const char *mq_scheme_name(mq_scheme s)
{
    static const char *const names[MQ_SCHEME_COUNT] = {"none",      "bf16", "f16",   "f32",
                                                       "fp8_block", "int4", "mxfp4", "mxfp4_rows"};
    return (unsigned)s < MQ_SCHEME_COUNT ? names[s] : "unknown";
}

int64_t mq_fp8_seg_scale_rows(const mq_matrix *m)
{
    return mq_ceil_div(m->row_phase + m->seg_rows, MQ_FP8_BLOCK);
}

int64_t mq_fp8_scale_cols(const mq_matrix *m)
{
    return mq_ceil_div(m->col_phase + m->cols, MQ_FP8_BLOCK);
}

int64_t mq_fp8_n_scales(const mq_matrix *m)
{
    return m->rows / m->seg_rows * mq_fp8_seg_scale_rows(m) * mq_fp8_scale_cols(m);
}

static mq_status check_fp8(const mq_matrix *m, mq_err *err)
{
    if (m->seg_rows < 1 || m->rows % m->seg_rows != 0)
        return mq_fail(err, MQ_E_SHAPE, "segments of %lld rows, expected a divisor of %lld rows",
                       (long long)m->seg_rows, (long long)m->rows);
    if (m->row_phase < 0 || m->row_phase >= MQ_FP8_BLOCK || m->col_phase < 0 ||
        m->col_phase >= MQ_FP8_BLOCK)
        return mq_fail(err, MQ_E_SHAPE, "phases (%d, %d), expected 0 to 127", m->row_phase,
                       m->col_phase);
    return MQ_OK;
}

static mq_status check_units(const mq_matrix *m, mq_err *err)
{
    bool is_mx = m->scheme == MQ_SCHEME_MXFP4;
    bool group_ok = is_mx ? m->group == MQ_GROUP_MXFP4
                          : m->group == 32 || m->group == 64 || m->group == 128;
    if (!group_ok)
        return mq_fail(err, MQ_E_SHAPE, "%s with group %d, expected %s", mq_scheme_name(m->scheme),
                       m->group, is_mx ? "0" : "32, 64 or 128");
    if (m->rows % MQ_UNIT_ROWS != 0)
        return mq_fail(err, MQ_E_SHAPE, "%s with %lld rows, expected a multiple of %d",
                       mq_scheme_name(m->scheme), (long long)m->rows, MQ_UNIT_ROWS);
    if (m->cols % mq_block_cols(m->group) != 0)
        return mq_fail(err, MQ_E_SHAPE, "%s with %lld columns, expected a multiple of %d",
                       mq_scheme_name(m->scheme), (long long)m->cols, mq_block_cols(m->group));
    return MQ_OK;
}

mq_status mq_matrix_check(const mq_matrix *m, mq_err *err)
{
    int64_t n;
    if (m->rows < 1 || m->cols < 1 || !mq_mul_i64(&n, m->rows, m->cols) || n > INT64_MAX / 8)
        return mq_fail(err, MQ_E_SHAPE, "shape [%lld, %lld], expected positive dimensions below 2^60 elements",
                       (long long)m->rows, (long long)m->cols);
    if ((unsigned)m->scheme >= MQ_SCHEME_COUNT || m->scheme == MQ_SCHEME_NONE)
        return mq_fail(err, MQ_E_SHAPE, "scheme %d, expected 1 to %d", (int)m->scheme,
                       MQ_SCHEME_COUNT - 1);

    bool is_units = m->scheme == MQ_SCHEME_INT4 || m->scheme == MQ_SCHEME_MXFP4;
    if (!is_units && m->group != 0)
        return mq_fail(err, MQ_E_SHAPE, "%s with group %d, expected 0", mq_scheme_name(m->scheme), m->group);
    if (m->scheme != MQ_SCHEME_FP8_BLOCK && (m->seg_rows || m->row_phase || m->col_phase))
        return mq_fail(err, MQ_E_SHAPE, "%s with segments or phases, expected 0", mq_scheme_name(m->scheme));
    if (m->scheme == MQ_SCHEME_FP8_BLOCK)
        return check_fp8(m, err);
    if (m->scheme == MQ_SCHEME_MXFP4_ROWS && m->cols % MQ_MX_GROUP != 0)
        return mq_fail(err, MQ_E_SHAPE, "mxfp4_rows with %lld columns, expected a multiple of %d",
                       (long long)m->cols, MQ_MX_GROUP);
    return is_units ? check_units(m, err) : MQ_OK;
}

static void widen_fp8(const mq_matrix *m, int64_t r, float *out)
{
    const uint8_t *codes = (const uint8_t *)m->data + r * m->cols;
    int64_t scale_row = r / m->seg_rows * mq_fp8_seg_scale_rows(m) +
                        (m->row_phase + r % m->seg_rows) / MQ_FP8_BLOCK;
    const uint8_t *scales = (const uint8_t *)m->scale + scale_row * mq_fp8_scale_cols(m) * 4;
    for (int64_t c = 0; c < m->cols; c++) {
        float s;
        memcpy(&s, scales + (m->col_phase + c) / MQ_FP8_BLOCK * 4, sizeof s);
        out[c] = mq_e4m3_to_f32(codes[c]) * s;
    }
}

static void widen_mxfp4_rows(const mq_matrix *m, int64_t r, float *out)
{
    const uint8_t *codes = (const uint8_t *)m->data + r * (m->cols / 2);
    const uint8_t *scales = (const uint8_t *)m->scale + r * (m->cols / MQ_MX_GROUP);
    for (int64_t c = 0; c < m->cols; c++) {
        unsigned code = (unsigned)codes[c / 2] >> (c % 2 * 4) & 15u;
        out[c] = mq_e2m1_to_f32(code) * mq_e8m0_to_f32(scales[c / MQ_MX_GROUP]);
    }
}

/* memcpy, not a typed pointer: stored bytes have no alignment of their own. */
static void widen_plain(const mq_matrix *m, int64_t r, float *out)
{
    const uint8_t *bytes = m->data;
    for (int64_t c = 0; c < m->cols; c++) {
        int64_t i = r * m->cols + c;
        uint16_t half;
        if (m->scheme == MQ_SCHEME_F32) {
            memcpy(&out[c], bytes + 4 * i, 4);
        } else {
            memcpy(&half, bytes + 2 * i, 2);
            out[c] = m->scheme == MQ_SCHEME_BF16 ? mq_bf16_to_f32(half) : mq_f16_to_f32(half);
        }
    }
}

void mq_matrix_widen(const mq_matrix *m, int64_t row0, int64_t n_rows, float *out)
{
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t r = row0 + i;
        float *row = out + i * m->cols;
        if (m->scheme == MQ_SCHEME_FP8_BLOCK) {
            widen_fp8(m, r, row);
        } else if (m->scheme == MQ_SCHEME_MXFP4_ROWS) {
            widen_mxfp4_rows(m, r, row);
        } else if (m->scheme == MQ_SCHEME_INT4 || m->scheme == MQ_SCHEME_MXFP4) {
            for (int64_t c = 0; c < m->cols; c++)
                row[c] = mq_units_at(m->data, m->cols, m->group, r, c);
        } else {
            widen_plain(m, r, row);
        }
    }
}
