/* The definition of rounding in plain C: scales, codes and error sums of one tile, one weight at a
 * time.
 *
 * Every operation is a correctly rounded one (division, multiplication, fused multiply-add) in a
 * fixed order, so the fast files can repeat it exactly.  Order of the sums: ascending columns, one
 * F32 sum per (row, group) in the search, because there a vector lane holds a row and needs no sum
 * across lanes. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/round_ops.h"

const float mq_round_step[MQ_ROUND_STEPS] = {6.5f, 6.6f, 6.7f, 6.8f, 6.9f, 7.0f, 7.1f, 7.2f, 7.3f,
                                             7.4f, 7.5f, 7.6f, 7.7f, 7.8f, 7.9f, 8.0f, 8.1f, 8.2f,
                                             8.3f, 8.4f, 8.5f, 8.6f, 8.7f, 8.8f, 8.9f};

/* Half to even, clamped to -8..7.  Clamping first gives the same and keeps the sum below 2^24. */
static float code_of(float x)
{
    x = x < 7.0f ? x : 7.0f;
    x = x > -8.0f ? x : -8.0f;
    return (x + MQ_ROUND_MAGIC) - MQ_ROUND_MAGIC;
}

static float to_bf16(float x)
{
    return mq_bf16_to_f32(mq_f32_to_bf16(x));
}

float mq_round_rtn_scale(uint32_t max)
{
    if (max == 0)
        return 1.0f;
    float s = to_bf16(mq_f32_from_bits(max) / 7.0f);
    return s < 0x1p-126f ? 0x1p-126f : s;
}

/* Best scale so far, in units of 2^e. */
typedef struct best {
    float s, inv, err;
} best;

/* The group, scaled, and its weights. */
typedef struct problem {
    const float *w, *omega;
    int g;
    float pre, floor;
} problem;

static float omega_at(const problem *p, int i)
{
    return p->omega ? p->omega[i] : 1.0f;
}

/* Round s to BF16 and away from zero, code with it, and keep it when its error is the least. */
static void try_scale(best *b, const problem *p, float s)
{
    s = to_bf16(s);
    s = copysignf(fabsf(s) > p->floor ? fabsf(s) : p->floor, s);
    float inv = 1.0f / s, err = 0.0f;
    for (int i = 0; i < p->g; i++) {
        float w = p->w[i] * p->pre;
        float e = fmaf(-s, code_of(w * inv), w);
        err = fmaf(omega_at(p, i) * e, e, err);
    }
    if (err < b->err)
        *b = (best){s, inv, err};
}

/* Least-squares scale of the codes that inv gives. */
static float refit(const problem *p, float inv)
{
    float wq = 0.0f, qq = 0.0f;
    for (int i = 0; i < p->g; i++) {
        float w = p->w[i] * p->pre, q = code_of(w * inv), o = omega_at(p, i);
        wq = fmaf(o * w, q, wq);
        qq = fmaf(o * q, q, qq);
    }
    return wq / qq;
}

mq_round_one mq_round_search_one(const float *w, const float *omega, int g, uint32_t max)
{
    if (max == 0)
        return (mq_round_one){1.0f, 1.0f, 1.0f};
    int e = mq_round_exponent(max);
    problem p = {w, omega, g, mq_round_pow2(-e), mq_round_floor(e)};

    float absmax = mq_f32_from_bits(max) * p.pre, m = -absmax;
    for (int i = 0; i < g; i++)
        if (w[i] * p.pre == absmax)
            m = absmax;

    best b = {0.0f, 0.0f, INFINITY};
    try_scale(&b, &p, absmax / 7.0f);
    if (b.inv == 0.0f) /* omega overflows: any finite scale is as good */
        b.s = to_bf16(absmax / 7.0f), b.inv = 1.0f / b.s;
    try_scale(&b, &p, absmax / 7.5f);
    try_scale(&b, &p, m / -8.0f);
    float per_m = 1.0f / m;
    for (int k = 0; k < MQ_ROUND_STEPS; k++) {
        float inv = mq_round_step[k] * per_m;
        float down = refit(&p, -inv), up = refit(&p, inv);
        if (isfinite(down)) /* an omega of zeros leaves no least-squares scale */
            try_scale(&b, &p, down);
        if (isfinite(up))
            try_scale(&b, &p, up);
    }
    return (mq_round_one){b.s * mq_round_pow2(e), p.pre, b.inv};
}

static void absmax(const mq_round_chunk *c, uint32_t max[MQ_ROUND_GROUPS][MQ_UNIT_ROWS])
{
    for (int r = 0; r < MQ_UNIT_ROWS; r++)
        for (int k = 0; k < c->n_cols / c->group; k++) {
            uint32_t most = 0;
            for (int i = 0; i < c->group; i++) {
                uint32_t bits = mq_f32_bits(c->rows[r][k * c->group + i]) & 0x7fffffffu;
                most = bits > most ? bits : most;
            }
            max[k][r] = most;
        }
}

static void rtn(const uint32_t max[MQ_UNIT_ROWS], float s[MQ_UNIT_ROWS])
{
    for (int r = 0; r < MQ_UNIT_ROWS; r++)
        s[r] = mq_round_rtn_scale(max[r]);
}

static void search(const mq_round_chunk *c, int k, const float *omega,
                   const uint32_t max[MQ_UNIT_ROWS], mq_round_scales *scales, float *work)
{
    (void)work;
    for (int r = 0; r < MQ_UNIT_ROWS; r++) {
        mq_round_one one = mq_round_search_one(c->rows[r] + k * c->group, omega, c->group, max[r]);
        scales->s[k][r] = one.s;
        scales->pre[k][r] = one.pre;
        scales->inv[k][r] = one.inv;
    }
}

/* q of one weight; adds to its row's lanes. */
static int encode_one(const mq_round_chunk *c, int r, int col, int is_search,
                      const mq_round_scales *scales, mq_round_lanes *lanes)
{
    int k = col / c->group;
    float w = c->rows[r][col], s = scales->s[k][r];
    float q = code_of(is_search ? w * scales->pre[k][r] * scales->inv[k][r] : w / s);
    float e = fmaf(-s, q, w);
    lanes->err2[col % 8] += (double)e * e;
    lanes->norm2[col % 8] += (double)w * w;
    return (int)q;
}

static void encode(const mq_round_chunk *c, int g, int is_search, const mq_round_scales *scales,
                   mq_round_lanes *lo, mq_round_lanes *hi)
{
    for (int col = 0; col < c->n_cols; col++) {
        int low = encode_one(c, g, col, is_search, scales, lo) + 8;
        int high = encode_one(c, g + 8, col, is_search, scales, hi) + 8;
        uint8_t *unit = mq_round_unit(c, col / MQ_UNIT_COLS);
        unit[mq_unit_byte(g, col % MQ_UNIT_COLS)] = (uint8_t)(low | high << 4);
    }
}

static void widen_fp8(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out)
{
    const uint8_t *codes = (const uint8_t *)m->data + r * m->cols;
    int64_t scale_row = r / m->seg_rows * mq_fp8_seg_scale_rows(m) +
                        (m->row_phase + r % m->seg_rows) / MQ_FP8_BLOCK;
    const uint8_t *scales = (const uint8_t *)m->scale + scale_row * mq_fp8_scale_cols(m) * 4;
    for (int64_t c = col0; c < col0 + n; c++) {
        float s;
        memcpy(&s, scales + (m->col_phase + c) / MQ_FP8_BLOCK * 4, sizeof s);
        out[c - col0] = mq_e4m3_to_f32(codes[c]) * s;
    }
}

static void widen_mxfp4(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out)
{
    const uint8_t *codes = (const uint8_t *)m->data + r * (m->cols / 2);
    const uint8_t *scales = (const uint8_t *)m->scale + r * (m->cols / MQ_MX_GROUP);
    for (int64_t c = col0; c < col0 + n; c++) {
        unsigned code = (unsigned)codes[c / 2] >> (c % 2 * 4) & 15u;
        out[c - col0] = mq_e2m1_to_f32(code) * mq_e8m0_to_f32(scales[c / MQ_MX_GROUP]);
    }
}

static void widen(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out)
{
    const uint8_t *bytes = m->data;
    int64_t first = r * m->cols + col0;
    if (m->scheme == MQ_SCHEME_FP8_BLOCK) {
        widen_fp8(m, r, col0, n, out);
    } else if (m->scheme == MQ_SCHEME_MXFP4_ROWS) {
        widen_mxfp4(m, r, col0, n, out);
    } else if (m->scheme == MQ_SCHEME_F32) {
        memcpy(out, bytes + 4 * first, (size_t)n * 4);
    } else {
        for (int64_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, bytes + 2 * (first + i), sizeof half);
            out[i] = m->scheme == MQ_SCHEME_BF16 ? mq_bf16_to_f32(half) : mq_f16_to_f32(half);
        }
    }
}

const mq_round_ops mq_round_ops_scalar = {"scalar", absmax, rtn, search, encode, widen};
