/* linear_fixed's inner loops, compiled once per instruction set; linear_fixed.c states the order of sums.
 *
 * Two families.  Row-major schemes take R weight rows against N activation rows, 16 columns a step.  Packed schemes
 * take the row pair g, g + 8 of a tile (their nibbles share bytes) through FIXED_CHUNK units at a time, so that
 * the accumulators stay in registers while the chunk is read once from memory and eight times from L1. */
#ifndef MQ_KERNELS_CPU_FIXED_IMPL_H
#define MQ_KERNELS_CPU_FIXED_IMPL_H

#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vector.h"
#include "src/units.h"

/* Activation rows and pair sides that fit the register file. */
enum {
    FIXED_N = VF_HALVES == 1 ? 8 : 4,
    FIXED_SIDES = VF_HALVES == 1 ? 2 : 1,
    FIXED_WHOLE_TILE = VF_HALVES == 1 && VF_REGISTERS == 32,
    FIXED_CHUNK = 8 /* units: 4.3 KB of weights and, for 8 rows, 16 KB of activations in L1 */
};

/* ---- row-major schemes ---- */

MQ_TEMPLATE int64_t fixed_col_bits(mq_scheme s)
{
    return s == MQ_SCHEME_F32 ? 32 : s == MQ_SCHEME_FP8_BLOCK ? 8 : s == MQ_SCHEME_MXFP4_ROWS ? 4 : 16;
}

/* Half h of 16 columns at p. */
MQ_TEMPLATE vf fixed_weights(mq_scheme s, const uint8_t *p, int h)
{
    switch (s) {
    case MQ_SCHEME_BF16:
        return vf_bf16((const uint16_t *)(const void *)p + h * VF_LANES);
    case MQ_SCHEME_F16:
        return vf_f16((const uint16_t *)(const void *)p + h * VF_LANES);
    case MQ_SCHEME_F32:
        return vf_load((const float *)(const void *)p + h * VF_LANES);
    default:
        return vf_e4m3(p + h * VF_LANES);
    }
}

/* acc += 16 columns of R rows times N rows of x. */
MQ_TEMPLATE void fixed_step(mq_scheme s, int R, int N, vf acc[8][8][VF_HALVES], const uint8_t *const *w, int64_t w_off,
                          const float *x, int64_t x_stride)
{
    MQ_UNROLL
    for (int h = 0; h < VF_HALVES; h++) {
        MQ_UNROLL
        for (int r = 0; r < R; r++) {
            vf wv = fixed_weights(s, w[r] + w_off, h);
            MQ_UNROLL
            for (int i = 0; i < N; i++)
                acc[r][i][h] = vf_fma(wv, vf_load(x + i * x_stride + h * VF_LANES), acc[r][i][h]);
        }
    }
}

MQ_TEMPLATE void fixed_zero(int R, int N, vf acc[8][8][VF_HALVES])
{
    MQ_UNROLL
    for (int r = 0; r < R; r++) {
        MQ_UNROLL
        for (int i = 0; i < N; i++) {
            MQ_UNROLL
            for (int h = 0; h < VF_HALVES; h++)
                acc[r][i][h] = vf_set1(0.0f);
        }
    }
}

/* At most 16 sums: R N of them. */
MQ_TEMPLATE void fixed_finish(const mq_fixed_job *job, int R, int N, vf acc[8][8][VF_HALVES], int64_t row, int64_t i0)
{
    __attribute__((aligned(64))) float lanes[16][16], sums[16];
    MQ_UNROLL
    for (int r = 0; r < R; r++) {
        MQ_UNROLL
        for (int i = 0; i < N; i++) {
            MQ_UNROLL
            for (int h = 0; h < VF_HALVES; h++)
                vf_store(&lanes[r * N + i][h * VF_LANES], acc[r][i][h]);
        }
    }
    for (int t = R * N; t < 16; t++)
        memset(lanes[t], 0, sizeof lanes[t]);
    vf_trees(sums, lanes[0], 16);
    for (int i = 0; i < N && i0 + i < job->n; i++)
        for (int r = 0; r < R; r++)
            job->y[(i0 + i) * job->w->rows + row + r] = sums[r * N + i];
}

/* The same rows with the columns of a partial step at the edge copied out and padded with zeros; a code of 0 is 0 in every scheme. */
MQ_TEMPLATE void fixed_edge(mq_scheme s, int R, uint8_t edge[8][64], const uint8_t **edges, const uint8_t *const *w,
                          int64_t from_col, int64_t n_cols, int64_t at_col)
{
    int64_t bytes = fixed_col_bits(s) / 8;
    for (int r = 0; r < R; r++) {
        memset(edge[r], 0, 64);
        memcpy(edge[r] + at_col * bytes, w[r] + from_col * bytes, (size_t)(n_cols * bytes));
        edges[r] = edge[r];
    }
}

MQ_TEMPLATE void fixed_plain(const mq_fixed_job *job, mq_scheme s, int R, int N, int64_t row, int64_t i0)
{
    const mq_matrix *m = job->w;
    int64_t bytes = fixed_col_bits(s) / 8, whole = m->cols / 16 * 16;
    const float *x = job->x + i0 * job->x_stride;
    const uint8_t *w[8], *edges[8];
    uint8_t edge[8][64];
    vf acc[8][8][VF_HALVES];
    for (int r = 0; r < R; r++)
        w[r] = (const uint8_t *)m->data + (row + r) * m->cols * bytes;
    fixed_zero(R, N, acc);
    for (int64_t c = 0; c < whole; c += 16)
        fixed_step(s, R, N, acc, w, c * bytes, x + c, job->x_stride);
    if (whole < m->cols) {
        fixed_edge(s, R, edge, edges, w, whole, m->cols - whole, 0);
        fixed_step(s, R, N, acc, edges, 0, x + whole, job->x_stride);
    }
    fixed_finish(job, R, N, acc, row, i0);
}

/* A NaN weight makes its whole row NaN, so the decoder need not know of NaN. */
MQ_TEMPLATE int fixed_has_nan(const uint8_t *codes, int64_t n)
{
    uint8_t bad = 0;
    for (int64_t c = 0; c < n; c++)
        bad = (uint8_t)(bad | ((codes[c] & 0x7fu) == 0x7fu));
    return bad;
}

/* FP8: positions count from the start of the first column's 16-column step; blocks of 128 end where the source's do. */
MQ_TEMPLATE void fixed_fp8(const mq_fixed_job *job, int R, int N, int64_t row, int64_t i0)
{
    const mq_matrix *m = job->w;
    const mq_scheme s = MQ_SCHEME_FP8_BLOCK;
    int64_t shift = m->col_phase % 16, base = m->col_phase - shift, end = shift + m->cols;
    const float *x = job->x + i0 * job->x_stride, *scale[8];
    const uint8_t *w[8], *edges[8];
    uint8_t edge[8][64];
    vf acc[8][8][VF_HALVES], part[8][8][VF_HALVES];
    for (int r = 0; r < R; r++) {
        int64_t seg = row + r < m->seg_rows ? 0 : (row + r) / m->seg_rows, in_seg = row + r - seg * m->seg_rows;
        w[r] = (const uint8_t *)m->data + (row + r) * m->cols;
        scale[r] = (const float *)m->scale +
                   (seg * job->seg_scale_rows + (m->row_phase + in_seg) / MQ_FP8_BLOCK) * job->scale_cols;
    }
    fixed_zero(R, N, acc);
    for (int64_t b = 0, c = 0; c < end; b++) {
        int64_t stop = (b + 1) * MQ_FP8_BLOCK - base;
        stop = stop < end ? stop : end;
        fixed_zero(R, N, part);
        for (; c >= shift && c + 16 <= stop; c += 16)
            fixed_step(s, R, N, part, w, c - shift, x + c, job->x_stride);
        for (; c < stop; c += 16) {
            int64_t from = c < shift ? shift : c, to = c + 16 < end ? c + 16 : end;
            if (to - from == 16) {
                fixed_step(s, R, N, part, w, c - shift, x + c, job->x_stride);
            } else {
                fixed_edge(s, R, edge, edges, w, from - shift, to - from, from - c);
                fixed_step(s, R, N, part, edges, 0, x + c, job->x_stride);
            }
        }
        MQ_UNROLL
        for (int r = 0; r < R; r++) {
            vf sv = vf_set1(scale[r][b] * 256.0f);
            MQ_UNROLL
            for (int i = 0; i < N; i++) {
                MQ_UNROLL
                for (int h = 0; h < VF_HALVES; h++)
                    acc[r][i][h] = vf_fma(sv, part[r][i][h], acc[r][i][h]);
            }
        }
    }
    fixed_finish(job, R, N, acc, row, i0);
    for (int r = 0; r < R; r++)
        if (fixed_has_nan(w[r], m->cols))
            for (int i = 0; i < N && i0 + i < job->n; i++)
                job->y[(i0 + i) * m->rows + row + r] = NAN;
}

MQ_TEMPLATE void fixed_mx_rows(const mq_fixed_job *job, int R, int N, int64_t row, int64_t i0)
{
    const mq_matrix *m = job->w;
    const float *x = job->x + i0 * job->x_stride;
    int64_t groups = m->cols / MQ_MX_GROUP;
    vf acc[8][8][VF_HALVES];
    fixed_zero(R, N, acc);
    for (int64_t g = 0; g < groups; g++) {
        MQ_UNROLL
        for (int r = 0; r < R; r++) {
            const uint8_t *codes = (const uint8_t *)m->data + (row + r) * m->cols / 2 + g * 16;
            vf sv = vf_set1(mq_e8m0_to_f32(((const uint8_t *)m->scale)[(row + r) * groups + g]) * 0.5f);
            MQ_UNROLL
            for (int h = 0; h < VF_HALVES; h++) {
                vf even, odd;
                vi_e2m1_byte(&even, &odd, vi_load_bytes(codes + h * VF_LANES));
                MQ_UNROLL
                for (int i = 0; i < N; i++) {
                    const float *xi = x + i * job->x_stride + g * 32 + h * VF_LANES;
                    vf p = vf_fma(odd, vf_load(xi + 16), vf_mul(even, vf_load(xi)));
                    acc[r][i][h] = vf_fma(sv, p, acc[r][i][h]);
                }
            }
        }
    }
    fixed_finish(job, R, N, acc, row, i0);
}

MQ_TEMPLATE void fixed_block(const mq_fixed_job *job, mq_scheme s, int R, int N, int64_t row, int64_t i0)
{
    if (s == MQ_SCHEME_FP8_BLOCK)
        fixed_fp8(job, R, N, row, i0);
    else if (s == MQ_SCHEME_MXFP4_ROWS)
        fixed_mx_rows(job, R, N, row, i0);
    else
        fixed_plain(job, s, R, N, row, i0);
}

/* R rows at a time, the rest one by one. */
MQ_TEMPLATE void fixed_rows_of(const mq_fixed_job *job, mq_scheme s, int R, int N, int64_t row0, int64_t row1, int64_t i0)
{
    int64_t row = row0;
    for (; row + R <= row1; row += R)
        fixed_block(job, s, R, N, row, i0);
    for (; row < row1; row++)
        fixed_block(job, s, 1, N, row, i0);
}

/* Rows per step: enough sums in flight to hide the multiply-add's latency, few enough to stay in registers.  FP8 keeps
 * two sums per pair. */
MQ_TEMPLATE void fixed_row_major(const mq_fixed_job *job, mq_scheme s, int64_t row0, int64_t row1)
{
    const int two = s == MQ_SCHEME_FP8_BLOCK ? 2 : 1;
    for (int64_t i0 = 0; i0 < job->n_pad;) {
        int64_t left = job->n_pad - i0;
        if (left >= 8 && FIXED_N == 8) {
            fixed_rows_of(job, s, 2 / two, 8, row0, row1, i0);
            i0 += 8;
        } else if (left >= 4) {
            fixed_rows_of(job, s, (VF_HALVES == 1 ? 4 : 2) / two, 4, row0, row1, i0);
            i0 += 4;
        } else if (left >= 2) {
            fixed_rows_of(job, s, (VF_HALVES == 1 ? 4 : 2) / two, 2, row0, row1, i0);
            i0 += 2;
        } else {
            fixed_rows_of(job, s, (VF_HALVES == 1 ? 8 : 4) / two, 1, row0, row1, i0);
            i0 += 1;
        }
    }
}

/* ---- packed schemes ---- */

/* F32 scales of the blocks of a chunk, [block][g][group in block][side]; MXFP4's are halved. */
MQ_TEMPLATE void fixed_scales(float (*out)[32], const uint8_t *blocks, int n_blocks, int group)
{
    int code_bytes = mq_block_cols(group) / 64 * MQ_UNIT_CODE_BYTES, block_bytes = mq_block_bytes(group);
    for (int b = 0; b < n_blocks; b++) {
        const uint8_t *p = blocks + b * block_bytes + code_bytes;
        if (group == MQ_GROUP_MXFP4) {
            for (int k = 0; k < 32; k++) {
                /* 0 and 255 are no plain exponents: a subnormal, and NaN */
                uint32_t odd = ((p[k] + 1u) & 255u) < 2u ? 0x00400000u : 0u;
                out[b][k] = mq_f32_from_bits((uint32_t)p[k] << 23 | odd) * 0.5f;
            }
        } else {
            for (int k = 0; k < (group == 32 ? 32 : 16); k += VF_LANES)
                vf_store(out[b] + k, vf_bf16((const uint16_t *)(const void *)p + k));
        }
    }
}

MQ_TEMPLATE void fixed_codes(vf w[4], vi v, int side, int group)
{
    if (group == MQ_GROUP_MXFP4)
        vi_e2m1(w, v, side);
    else
        vi_int4(w, v, side);
}

/* Lines of the chunk after this one; a prefetch past the end of a matrix is harmless. */
MQ_TEMPLATE void fixed_prefetch(const uint8_t *p, int64_t n_bytes)
{
    for (int64_t i = 0; i < n_bytes; i += 64)
        __builtin_prefetch(p + i);
}

/* One activation row where 16 lanes are one register: all 16 rows of the tile at once, so that x is loaded once and the
 * weights are read straight through.  acc[g][side]. */
MQ_TEMPLATE void fixed_units_of_one(int group, vf acc[8][2], const uint8_t *codes, const float *scales, const float *x)
{
    const int two_groups = group == 32 || group == MQ_GROUP_MXFP4, units = group == 128 ? 2 : 1;
    vf xv[8];
    MQ_UNROLL
    for (int k = 0; k < 4 * units; k++)
        xv[k] = vf_load(x + 16 * k);
    MQ_UNROLL
    for (int g = 0; g < 8; g++) {
        MQ_UNROLL
        for (int s = 0; s < 2; s++) {
            vf p, w[4];
            MQ_UNROLL
            for (int u = 0; u < units; u++) {
                fixed_codes(w, vi_load(codes + u * MQ_UNIT_CODE_BYTES + 64 * g), s, group);
                p = u == 0 ? vf_mul(w[0], xv[0]) : vf_fma(w[0], xv[4], p);
                MQ_UNROLL
                for (int k = 1; k < 4; k++)
                    p = vf_fma(w[k], xv[4 * u + k], p);
            }
            const float *sc = scales + g * (two_groups ? 4 : 2) + s;
            acc[g][s] = vf_fma(two_groups ? vf_pairs(sc[0], sc[2]) : vf_set1(sc[0]), p, acc[g][s]);
        }
    }
}

/* As fixed_tile for one row of x. */
MQ_TEMPLATE void fixed_tile_of_one(const mq_fixed_job *job, int group, int64_t tile, int64_t i0)
{
    const mq_matrix *m = job->w;
    const uint8_t *block = (const uint8_t *)m->data + tile * mq_tile_bytes(m->cols, group);
    const float *x = job->x + i0 * job->x_stride;
    __attribute__((aligned(64))) float lanes[16][16], scales[1][32], sums[16];
    vf acc[8][2];
    MQ_UNROLL
    for (int g = 0; g < 8; g++)
        acc[g][0] = acc[g][1] = vf_set1(0.0f);
    for (int64_t c = 0; c < m->cols; c += mq_block_cols(group), block += mq_block_bytes(group)) {
        fixed_prefetch(block + 4096, mq_block_bytes(group));
        fixed_scales(scales, block, 1, group);
        fixed_units_of_one(group, acc, block, scales[0], x + c);
    }
    MQ_UNROLL
    for (int g = 0; g < 8; g++) {
        vf_store(lanes[2 * g], acc[g][0]);
        vf_store(lanes[2 * g + 1], acc[g][1]);
    }
    vf_trees(sums, lanes[0], 16);
    float *y = job->y + i0 * m->rows + 16 * tile;
    for (int g = 0; g < 8; g++) {
        y[g] = sums[2 * g];
        y[g + 8] = sums[2 * g + 1];
    }
}

/* One half (VF_LANES lanes) of sides side0 .. side0 + FIXED_SIDES - 1 of row pair g over a chunk: acc[side][i][lane]. */
MQ_TEMPLATE void fixed_pair(int group, int N, float acc[2][8][16], const uint8_t *blocks, int n_blocks,
                          float (*scales)[32], const float *x, int64_t x_stride, int g, int side0, int h)
{
    const int two_groups = group == 32 || group == MQ_GROUP_MXFP4, units = group == 128 ? 2 : 1;
    const int lane0 = h * VF_LANES;
    vf a[FIXED_SIDES][8];
    MQ_UNROLL
    for (int s = 0; s < FIXED_SIDES; s++) {
        MQ_UNROLL
        for (int i = 0; i < N; i++)
            a[s][i] = vf_load(&acc[side0 + s][i][lane0]);
    }
    for (int b = 0; b < n_blocks; b++) {
        const uint8_t *codes = blocks + b * mq_block_bytes(group) + 64 * g + 4 * lane0;
        const float *xb = x + b * mq_block_cols(group) + lane0;
        vf w[2][FIXED_SIDES][4], sv[FIXED_SIDES];
        MQ_UNROLL
        for (int s = 0; s < FIXED_SIDES; s++) {
            MQ_UNROLL
            for (int u = 0; u < units; u++)
                fixed_codes(w[u][s], vi_load(codes + u * MQ_UNIT_CODE_BYTES), side0 + s, group);
            const float *sc = scales[b] + g * (two_groups ? 4 : 2) + side0 + s;
            sv[s] = two_groups ? vf_pairs(sc[0], sc[2]) : vf_set1(sc[0]);
        }
        MQ_UNROLL
        for (int i = 0; i < N; i++) {
            vf p[FIXED_SIDES];
            MQ_UNROLL
            for (int k = 0; k < 4 * units; k++) {
                vf xv = vf_load(xb + i * x_stride + 16 * k);
                MQ_UNROLL
                for (int s = 0; s < FIXED_SIDES; s++)
                    p[s] = k == 0 ? vf_mul(w[0][s][0], xv) : vf_fma(w[k / 4][s][k % 4], xv, p[s]);
            }
            MQ_UNROLL
            for (int s = 0; s < FIXED_SIDES; s++)
                a[s][i] = vf_fma(sv[s], p[s], a[s][i]);
        }
    }
    MQ_UNROLL
    for (int s = 0; s < FIXED_SIDES; s++) {
        MQ_UNROLL
        for (int i = 0; i < N; i++)
            vf_store(&acc[side0 + s][i][lane0], a[s][i]);
    }
}

MQ_TEMPLATE void fixed_tile(const mq_fixed_job *job, int group, int N, int64_t tile, int64_t i0)
{
    const mq_matrix *m = job->w;
    const int cols_of = mq_block_cols(group), chunk = group == 128 ? FIXED_CHUNK / 2 : FIXED_CHUNK;
    const uint8_t *blocks = (const uint8_t *)m->data + tile * mq_tile_bytes(m->cols, group);
    const float *x = job->x + i0 * job->x_stride;
    int64_t n_blocks = m->cols / cols_of;
    __attribute__((aligned(64))) float acc[8][2][8][16], scales[FIXED_CHUNK][32];
    for (int g = 0; g < 8; g++)
        for (int s = 0; s < 2; s++)
            memset(acc[g][s], 0, (size_t)N * sizeof acc[g][s][0]);
    for (int64_t b = 0; b < n_blocks; b += chunk) {
        int nb = (int)(n_blocks - b < chunk ? n_blocks - b : chunk);
        const uint8_t *p = blocks + b * mq_block_bytes(group);
        fixed_prefetch(p + nb * mq_block_bytes(group), chunk * mq_block_bytes(group));
        fixed_scales(scales, p, nb, group);
        for (int g = 0; g < 8; g++)
            for (int s = 0; s < 2; s += FIXED_SIDES)
                for (int h = 0; h < VF_HALVES; h++)
                    fixed_pair(group, N, acc[g], p, nb, scales, x + b * cols_of, job->x_stride, g, s, h);
    }
    for (int i = 0; i < N && i0 + i < job->n; i++) {
        float sums[16], *y = job->y + (i0 + i) * m->rows + 16 * tile;
        vf_trees(sums, acc[0][0][i], 8 * 16);
        for (int g = 0; g < 8; g++) {
            y[g] = sums[2 * g];
            y[g + 8] = sums[2 * g + 1];
        }
    }
}

MQ_TEMPLATE void fixed_units(const mq_fixed_job *job, int group, int64_t row0, int64_t row1)
{
    for (int64_t tile = row0 / 16; tile < row1 / 16; tile++)
        for (int64_t i0 = 0; i0 < job->n_pad;) {
            int64_t left = job->n_pad - i0;
            if (left >= 8)
                fixed_tile(job, group, 8, tile, i0);
            else if (left >= 4)
                fixed_tile(job, group, 4, tile, i0);
            else if (left >= 2)
                fixed_tile(job, group, 2, tile, i0);
            else if (FIXED_WHOLE_TILE)
                fixed_tile_of_one(job, group, tile, i0);
            else
                fixed_tile(job, group, 1, tile, i0);
            i0 += left >= 8 ? 8 : left;
        }
}

static inline void fixed_rows(const mq_fixed_job *job, int64_t row0, int64_t row1)
{
    switch (job->w->scheme) {
    case MQ_SCHEME_BF16:
        fixed_row_major(job, MQ_SCHEME_BF16, row0, row1);
        break;
    case MQ_SCHEME_F16:
        fixed_row_major(job, MQ_SCHEME_F16, row0, row1);
        break;
    case MQ_SCHEME_F32:
        fixed_row_major(job, MQ_SCHEME_F32, row0, row1);
        break;
    case MQ_SCHEME_FP8_BLOCK:
        fixed_row_major(job, MQ_SCHEME_FP8_BLOCK, row0, row1);
        break;
    case MQ_SCHEME_MXFP4_ROWS:
        fixed_row_major(job, MQ_SCHEME_MXFP4_ROWS, row0, row1);
        break;
    case MQ_SCHEME_MXFP4:
        fixed_units(job, MQ_GROUP_MXFP4, row0, row1);
        break;
    case MQ_SCHEME_INT4:
        if (job->w->group == 32)
            fixed_units(job, 32, row0, row1);
        else if (job->w->group == 64)
            fixed_units(job, 64, row0, row1);
        else
            fixed_units(job, 128, row0, row1);
        break;
    default:
        break;
    }
}

#endif
