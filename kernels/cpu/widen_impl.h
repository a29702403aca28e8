/* Stored weights to F32 rows, compiled once per instruction set; equal to mq_matrix_widen bit for bit. */
#ifndef MQ_KERNELS_CPU_WIDEN_IMPL_H
#define MQ_KERNELS_CPU_WIDEN_IMPL_H

#include "kernels/cpu/fixed_impl.h"
#include "kernels/cpu/vec16.h"
#include "src/units.h"

/* n columns at p times scale; FP8 comes as value * 2^-8, so its scale is * 2^8. */
MQ_TEMPLATE void widen_run(mq_scheme s, float *out, const uint8_t *p, int64_t n, float scale)
{
    const int64_t bytes = fixed_col_bits(s) / 8;
    const vf sv = vf_set1(scale);
    int64_t c = 0;
    for (; c + VF_LANES <= n; c += VF_LANES) {
        vf v = fixed_weights(s, p + c * bytes, 0);
        vf_store(out + c, s == MQ_SCHEME_FP8_BLOCK ? vf_mul(v, sv) : v);
    }
    if (c < n) {
        uint8_t edge[64] = {0};
        float tail[16];
        memcpy(edge, p + c * bytes, (size_t)((n - c) * bytes));
        vf v = fixed_weights(s, edge, 0);
        vf_store(tail, s == MQ_SCHEME_FP8_BLOCK ? vf_mul(v, sv) : v);
        memcpy(out + c, tail, (size_t)(n - c) * sizeof *out);
    }
}

MQ_TEMPLATE void widen_plain(const mq_matrix *m, mq_scheme s, int64_t row0, int64_t n_rows, float *out)
{
    int64_t row_bytes = m->cols * fixed_col_bits(s) / 8;
    widen_run(s, out, (const uint8_t *)m->data + row0 * row_bytes, n_rows * m->cols, 1.0f);
}

MQ_TEMPLATE void widen_fp8(const mq_matrix *m, int64_t row0, int64_t n_rows, float *out)
{
    int64_t scale_cols = mq_fp8_scale_cols(m);
    for (int64_t row = row0; row < row0 + n_rows; row++, out += m->cols) {
        int64_t seg = row / m->seg_rows, in_seg = row % m->seg_rows;
        const uint8_t *p = (const uint8_t *)m->data + row * m->cols;
        const float *scale = (const float *)m->scale +
                             (seg * mq_fp8_seg_scale_rows(m) + (m->row_phase + in_seg) / MQ_FP8_BLOCK) * scale_cols;
        for (int64_t b = 0, c = 0; c < m->cols; b++) {
            int64_t stop = (b + 1) * MQ_FP8_BLOCK - m->col_phase;
            stop = stop < m->cols ? stop : m->cols;
            widen_run(MQ_SCHEME_FP8_BLOCK, out + c, p + c, stop - c, scale[b] * 256.0f);
            c = stop;
        }
        if (fixed_has_nan(p, m->cols))
            for (int64_t c = 0; c < m->cols; c++)
                out[c] = (p[c] & 0x7fu) == 0x7fu ? NAN : out[c];
    }
}

MQ_TEMPLATE void widen_mx_rows(const mq_matrix *m, int64_t row0, int64_t n_rows, float *out)
{
    int64_t groups = n_rows * (m->cols / MQ_MX_GROUP), first = row0 * (m->cols / MQ_MX_GROUP);
    for (int64_t g = 0; g < groups; g++, out += 32) {
        const uint8_t *codes = (const uint8_t *)m->data + (first + g) * 16;
        const vf sv = vf_set1(mq_e8m0_to_f32(((const uint8_t *)m->scale)[first + g]) * 0.5f);
        float even[16], odd[16];
        for (int h = 0; h < VF_HALVES; h++) {
            vf e, o;
            vi_e2m1_byte(&e, &o, vi_load_bytes(codes + h * VF_LANES));
            vf_store(even + h * VF_LANES, vf_mul(sv, e));
            vf_store(odd + h * VF_LANES, vf_mul(sv, o));
        }
        for (int d = 0; d < 16; d++) {
            out[2 * d] = even[d];
            out[2 * d + 1] = odd[d];
        }
    }
}

/* One row's 64 columns of a unit: word d of its 16 holds columns 32 (j / 2) + 8 t + 4 (j % 2) in byte order 0, 2, 1, 3 (d = 4 t + j,
 * src/units.h). */
MQ_TEMPLATE void widen_unit_row(float *out, const uint8_t *run, int side, int group, float scale0, float scale1)
{
    __attribute__((aligned(64))) float v[4][16];
    for (int h = 0; h < VF_HALVES; h++) {
        vf w[4], sv = vf_pairs(scale0, scale1);
        fixed_codes(w, vi_load(run + 4 * h * VF_LANES), side, group);
        MQ_UNROLL
        for (int k = 0; k < 4; k++)
            vf_store(&v[k][h * VF_LANES], vf_mul(w[k], sv));
    }
    MQ_UNROLL
    for (int d = 0; d < 16; d++) {
        float *o = out + 32 * ((d & 3) >> 1) + 8 * (d >> 2) + 4 * (d & 1);
        o[0] = v[0][d];
        o[1] = v[2][d];
        o[2] = v[1][d];
        o[3] = v[3][d];
    }
}

MQ_TEMPLATE void widen_units(const mq_matrix *m, int group, int64_t row0, int64_t n_rows, float *out)
{
    const int cols_of = mq_block_cols(group), bytes = mq_block_bytes(group);
    const int two_groups = group == 32 || group == MQ_GROUP_MXFP4;
    float sc[1][32];
    for (int64_t tile = row0 / 16; tile < (row0 + n_rows) / 16; tile++) {
        const uint8_t *p = (const uint8_t *)m->data + tile * mq_tile_bytes(m->cols, group);
        float *base = out + (16 * tile - row0) * m->cols;
        for (int64_t c = 0; c < m->cols; c += cols_of, p += bytes) {
            fixed_scales(sc, p, 1, group);
            for (int u = 0; u < cols_of / 64; u++)
                for (int r = 0; r < 16; r++) {
                    const float *s = sc[0] + (r & 7) * (two_groups ? 4 : 2) + (r >> 3);
                    widen_unit_row(base + r * m->cols + c + 64 * u, p + u * MQ_UNIT_CODE_BYTES + 64 * (r & 7), r >> 3,
                                   group, s[0], s[two_groups ? 2 : 0]);
                }
        }
    }
}

static inline void widen_rows(const mq_matrix *m, int64_t row0, int64_t n_rows, float *out)
{
    switch (m->scheme) {
    case MQ_SCHEME_BF16:
        widen_plain(m, MQ_SCHEME_BF16, row0, n_rows, out);
        break;
    case MQ_SCHEME_F16:
        widen_plain(m, MQ_SCHEME_F16, row0, n_rows, out);
        break;
    case MQ_SCHEME_F32:
        widen_plain(m, MQ_SCHEME_F32, row0, n_rows, out);
        break;
    case MQ_SCHEME_FP8_BLOCK:
        widen_fp8(m, row0, n_rows, out);
        break;
    case MQ_SCHEME_MXFP4_ROWS:
        widen_mx_rows(m, row0, n_rows, out);
        break;
    case MQ_SCHEME_MXFP4:
        widen_units(m, MQ_GROUP_MXFP4, row0, n_rows, out);
        break;
    case MQ_SCHEME_INT4:
        widen_units(m, m->group, row0, n_rows, out);
        break;
    default:
        break;
    }
}

#endif
