/* vec16.h in plain C: 16 lanes in an array.  The definition the other two are tested against. */
#ifndef MQ_KERNELS_CPU_VEC16_SCALAR_H
#define MQ_KERNELS_CPU_VEC16_SCALAR_H

#include "kernels/cpu/inline.h"

enum { VF_LANES = 16, VF_REGISTERS = 0 };
typedef struct vf {
    float l[16];
} vf;
typedef struct vi {
    uint32_t l[16];
} vi;
typedef struct vd {
    double l[16];
} vd;

#define VF_EACH(expr)                 \
    do {                              \
        vf r_;                        \
        for (int i = 0; i < 16; i++)  \
            r_.l[i] = (expr);         \
        return r_;                    \
    } while (0)

MQ_INLINE vf vf_load(const float *p) { VF_EACH(p[i]); }
MQ_INLINE void vf_store(float *p, vf a) { memcpy(p, a.l, sizeof a.l); }
MQ_INLINE vf vf_set1(float x) { VF_EACH(x); }
MQ_INLINE vf vf_add(vf a, vf b) { VF_EACH(a.l[i] + b.l[i]); }
MQ_INLINE vf vf_sub(vf a, vf b) { VF_EACH(a.l[i] - b.l[i]); }
MQ_INLINE vf vf_mul(vf a, vf b) { VF_EACH(a.l[i] * b.l[i]); }
MQ_INLINE vf vf_div(vf a, vf b) { VF_EACH(a.l[i] / b.l[i]); }
MQ_INLINE vf vf_fma(vf a, vf b, vf c) { VF_EACH(fmaf(a.l[i], b.l[i], c.l[i])); }
/* The second operand where one is NaN, as the instructions do. */
MQ_INLINE vf vf_max(vf a, vf b) { VF_EACH(a.l[i] > b.l[i] ? a.l[i] : b.l[i]); }
MQ_INLINE vf vf_min(vf a, vf b) { VF_EACH(a.l[i] < b.l[i] ? a.l[i] : b.l[i]); }

/* Bit l is set where lane l of a and b differ. */
MQ_INLINE uint32_t vf_differ(vf a, vf b)
{
    uint32_t mask = 0;
    for (int i = 0; i < 16; i++)
        mask |= (uint32_t)(a.l[i] != b.l[i]) << i;
    return mask;
}

/* 2^n of shifted = n + 1.5 * 2^23, n in -126..127. */
MQ_INLINE vf vf_pow2_of_magic(vf s) { VF_EACH(mq_f32_from_bits((mq_f32_bits(s.l[i]) + 127u) << 23)); }

MQ_INLINE vf vf_bf16(const uint16_t *p) { VF_EACH(mq_bf16_to_f32(p[i])); }
MQ_INLINE vf vf_f16(const uint16_t *p) { VF_EACH(mq_f16_to_f32(p[i])); }
/* E4M3 times 2^-8; the NaN codes give any number. */
MQ_INLINE vf vf_e4m3(const uint8_t *p) { VF_EACH(mq_e4m3_to_f32(p[i]) * 0.00390625f); }

/* Lanes 0 1 2 3 of every four: a a b b. */
MQ_INLINE vf vf_pairs(float a, float b) { VF_EACH((i & 2) ? b : a); }

MQ_INLINE vi vi_load(const uint8_t *p)
{
    vi v;
    memcpy(v.l, p, 64);
    return v;
}
/* 16 bytes, one a word. */
MQ_INLINE vi vi_load_bytes(const uint8_t *p)
{
    vi v;
    for (int i = 0; i < 16; i++)
        v.l[i] = p[i];
    return v;
}

MQ_INLINE float nibble_int4(uint32_t c) { return (float)((int)(c & 15u) - 8); }
MQ_INLINE float nibble_e2m1(uint32_t c)
{
    float v = 2.0f * mq_e2m1_to_f32(c & 7u);
    return (c & 8u) && v != 0.0f ? -v : v;
}
/* high: 0 for the low nibbles (row g), 1 for the high ones (row g + 8). */
MQ_INLINE void vi_int4(vf w[4], vi v, int high)
{
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 16; i++)
            w[k].l[i] = nibble_int4(v.l[i] >> (8 * k + 4 * high));
}
MQ_INLINE void vi_e2m1(vf w[4], vi v, int high)
{
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 16; i++)
            w[k].l[i] = nibble_e2m1(v.l[i] >> (8 * k + 4 * high));
}
/* Both nibbles of byte 0. */
MQ_INLINE void vi_e2m1_byte(vf *low, vf *high, vi v)
{
    for (int i = 0; i < 16; i++) {
        low->l[i] = nibble_e2m1(v.l[i]);
        high->l[i] = nibble_e2m1(v.l[i] >> 4);
    }
}

/* out[k][i] = rows[i][from + k], 4 x 4. */
MQ_INLINE void vf_transpose4(float *out, int64_t stride, const float *const *rows, int from)
{
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++)
            out[k * stride + i] = rows[i][from + k];
}

/* out [16]: the sum of each of 16 rows of 16 lanes: l with l + 8, then + 4, + 2, + 1. */
MQ_INLINE void vf_trees(float *out, const float *a, int64_t stride)
{
    for (int r = 0; r < 16; r++, a += stride) {
        float s[8];
        for (int l = 0; l < 8; l++)
            s[l] = a[l] + a[l + 8];
        for (int l = 0; l < 4; l++)
            s[l] += s[l + 4];
        out[r] = (s[0] + s[2]) + (s[1] + s[3]);
    }
}

MQ_INLINE vd vd_zero(void)
{
    vd r;
    memset(&r, 0, sizeof r);
    return r;
}
/* s + a */
MQ_INLINE vd vd_add(vd s, vf a)
{
    for (int i = 0; i < 16; i++)
        s.l[i] += (double)a.l[i];
    return s;
}
/* s + a * b, the product exact. */
MQ_INLINE vd vd_add_product(vd s, vf a, vf b)
{
    for (int i = 0; i < 16; i++)
        s.l[i] = fma((double)a.l[i], (double)b.l[i], s.l[i]);
    return s;
}
/* s + e * (a - b), the difference in double. */
MQ_INLINE vd vd_add_weighted(vd s, vf e, vf a, vf b)
{
    for (int i = 0; i < 16; i++)
        s.l[i] = fma((double)e.l[i], (double)a.l[i] - (double)b.l[i], s.l[i]);
    return s;
}
MQ_INLINE void vd_store(double *p, vd s) { memcpy(p, s.l, sizeof s.l); }

#undef VF_EACH
#endif
