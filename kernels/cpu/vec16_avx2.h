/* vec16.h for AVX2, FMA and F16C: 8 lanes a register, two registers for 16. */
#ifndef MQ_KERNELS_CPU_VEC16_AVX2_H
#define MQ_KERNELS_CPU_VEC16_AVX2_H

#include "kernels/cpu/inline.h"

#if defined(__AVX2__)
#include <immintrin.h>

enum { VF_LANES = 8, VF_REGISTERS = 16 };
typedef __m256 vf;
typedef __m256i vi;
typedef struct vd {
    __m256d lo, hi;
} vd;

MQ_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
MQ_INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
MQ_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
MQ_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
MQ_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
MQ_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
MQ_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
MQ_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
MQ_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
MQ_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }

/* Bit l is set where lane l of a and b differ. */
MQ_INLINE uint32_t vf_differ(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ));
}

MQ_INLINE vf vf_pow2_of_magic(vf s)
{
    __m256i n = _mm256_add_epi32(_mm256_castps_si256(s), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}

MQ_INLINE vf vf_bf16(const uint16_t *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
MQ_INLINE vf vf_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
/* E4M3's seven bits below the sign are an F16's exponent and mantissa with the bias off by 8: value * 2^-8.  The sign,
 * extended to 16 bits and shifted, falls on bits 15 and 14; bit 14 goes. */
MQ_INLINE vf vf_e4m3(const uint8_t *p)
{
    __m128i w = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)p));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(w, 7), _mm_set1_epi16((short)0xbf80)));
}

MQ_INLINE vf vf_pairs(float a, float b)
{
    return _mm256_blend_ps(_mm256_set1_ps(a), _mm256_set1_ps(b), 0xcc);
}

MQ_INLINE vi vi_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
MQ_INLINE vi vi_load_bytes(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

/* u = q + 8 with the top bit flipped is q in two's complement: shift it to the top and back down. */
MQ_INLINE vf int4_at(vi v, int left)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, left), 28));
}
MQ_INLINE void vi_int4(vf w[4], vi v, int high)
{
    v = _mm256_xor_si256(v, _mm256_set1_epi32((int)0x88888888u));
    w[0] = int4_at(v, high ? 24 : 28);
    w[1] = int4_at(v, high ? 16 : 20);
    w[2] = int4_at(v, high ? 8 : 12);
    w[3] = int4_at(v, high ? 0 : 4);
}

/* Bytes of nibbles to bytes of doubled E2M1 values. */
MQ_INLINE __m256i e2m1_bytes(__m256i nibbles)
{
    const __m256i table = _mm256_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12, 0, 1, 2, 3, 4, 6,
                                           8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    return _mm256_shuffle_epi8(table, nibbles);
}
MQ_INLINE vf byte_at(__m256i b, int left)
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b, left), 24));
}
MQ_INLINE void vi_e2m1(vf w[4], vi v, int high)
{
    v = _mm256_and_si256(high ? _mm256_srli_epi32(v, 4) : v, _mm256_set1_epi8(15));
    v = e2m1_bytes(v);
    w[0] = byte_at(v, 24);
    w[1] = byte_at(v, 16);
    w[2] = byte_at(v, 8);
    w[3] = byte_at(v, 0);
}
MQ_INLINE void vi_e2m1_byte(vf *low, vf *high, vi v)
{
    const __m256i mask = _mm256_set1_epi8(15);
    *low = byte_at(e2m1_bytes(_mm256_and_si256(v, mask)), 24);
    *high = byte_at(e2m1_bytes(_mm256_and_si256(_mm256_srli_epi32(v, 4), mask)), 24);
}

MQ_INLINE void vf_transpose4(float *out, int64_t stride, const float *const *rows, int from)
{
    __m128 a = _mm_loadu_ps(rows[0] + from), b = _mm_loadu_ps(rows[1] + from);
    __m128 c = _mm_loadu_ps(rows[2] + from), d = _mm_loadu_ps(rows[3] + from);
    __m128 ab0 = _mm_unpacklo_ps(a, b), ab1 = _mm_unpackhi_ps(a, b);
    __m128 cd0 = _mm_unpacklo_ps(c, d), cd1 = _mm_unpackhi_ps(c, d);
    _mm_storeu_ps(out, _mm_movelh_ps(ab0, cd0));
    _mm_storeu_ps(out + stride, _mm_movehl_ps(cd0, ab0));
    _mm_storeu_ps(out + 2 * stride, _mm_movelh_ps(ab1, cd1));
    _mm_storeu_ps(out + 3 * stride, _mm_movehl_ps(cd1, ab1));
}

/* Two rows meet in every step, so that all lanes keep working: + 8, + 4, + 2, + 1; eight rows a time. */
MQ_INLINE void vf_trees(float *out, const float *a, int64_t stride)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* lane 4 k + m holds row 2 m + k */
    for (int r = 0; r < 16; r += 8, a += 8 * stride) {
        __m256 u[4], t[2];
        MQ_UNROLL
        for (int p = 0; p < 4; p++) {
            const float *p0 = a + 2 * p * stride, *p1 = p0 + stride;
            vf x = vf_add(vf_load(p0), vf_load(p0 + 8)), y = vf_add(vf_load(p1), vf_load(p1 + 8));
            u[p] = vf_add(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
        }
        MQ_UNROLL
        for (int q = 0; q < 2; q++)
            t[q] = vf_add(_mm256_shuffle_ps(u[2 * q], u[2 * q + 1], 0x44),
                          _mm256_shuffle_ps(u[2 * q], u[2 * q + 1], 0xee));
        vf s = vf_add(_mm256_shuffle_ps(t[0], t[1], 0x88), _mm256_shuffle_ps(t[0], t[1], 0xdd));
        vf_store(out + r, _mm256_permutevar8x32_ps(s, order));
    }
}

MQ_INLINE __m256d wide_lo(vf a) { return _mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
MQ_INLINE __m256d wide_hi(vf a) { return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
MQ_INLINE vd vd_zero(void) { return (vd){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
MQ_INLINE vd vd_add(vd s, vf a)
{
    return (vd){_mm256_add_pd(s.lo, wide_lo(a)), _mm256_add_pd(s.hi, wide_hi(a))};
}
MQ_INLINE vd vd_add_product(vd s, vf a, vf b)
{
    return (vd){_mm256_fmadd_pd(wide_lo(a), wide_lo(b), s.lo), _mm256_fmadd_pd(wide_hi(a), wide_hi(b), s.hi)};
}
MQ_INLINE vd vd_add_weighted(vd s, vf e, vf a, vf b)
{
    __m256d lo = _mm256_sub_pd(wide_lo(a), wide_lo(b)), hi = _mm256_sub_pd(wide_hi(a), wide_hi(b));
    return (vd){_mm256_fmadd_pd(wide_lo(e), lo, s.lo), _mm256_fmadd_pd(wide_hi(e), hi, s.hi)};
}
MQ_INLINE void vd_store(double *p, vd s)
{
    _mm256_storeu_pd(p, s.lo);
    _mm256_storeu_pd(p + 4, s.hi);
}

#endif
#endif
