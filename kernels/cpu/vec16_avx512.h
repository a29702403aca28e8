/* vec16.h for AVX-512 (F, BW, VL, DQ): 16 lanes a register; nibbles are looked up by vpermps, which takes the low
 * four bits of each word as its index. */
#ifndef MQ_KERNELS_CPU_VEC16_AVX512_H
#define MQ_KERNELS_CPU_VEC16_AVX512_H

#include "kernels/cpu/inline.h"

#if defined(__AVX512F__)
#include <immintrin.h>

enum { VF_LANES = 16, VF_REGISTERS = 32 };
typedef __m512 vf;
typedef __m512i vi;
typedef struct vd {
    __m512d lo, hi;
} vd;

MQ_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
MQ_INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
MQ_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
MQ_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
MQ_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
MQ_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
MQ_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
MQ_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
MQ_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
MQ_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }

/* Bit l is set where lane l of a and b differ. */
MQ_INLINE uint32_t vf_differ(vf a, vf b) { return (uint32_t)_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }

MQ_INLINE vf vf_pow2_of_magic(vf s)
{
    __m512i n = _mm512_add_epi32(_mm512_castps_si512(s), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}

MQ_INLINE vf vf_bf16(const uint16_t *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
MQ_INLINE vf vf_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* As in vec16_avx2.h. */
MQ_INLINE vf vf_e4m3(const uint8_t *p)
{
    __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(w, 7), _mm256_set1_epi16((short)0xbf80)));
}

MQ_INLINE vf vf_pairs(float a, float b)
{
    return _mm512_mask_blend_ps(0xcccc, _mm512_set1_ps(a), _mm512_set1_ps(b));
}

MQ_INLINE vi vi_load(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }
MQ_INLINE vi vi_load_bytes(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

MQ_INLINE void nibbles_at(vf w[4], vi v, int high, __m512 table)
{
    w[0] = _mm512_permutexvar_ps(high ? _mm512_srli_epi32(v, 4) : v, table);
    w[1] = _mm512_permutexvar_ps(high ? _mm512_srli_epi32(v, 12) : _mm512_srli_epi32(v, 8), table);
    w[2] = _mm512_permutexvar_ps(high ? _mm512_srli_epi32(v, 20) : _mm512_srli_epi32(v, 16), table);
    w[3] = _mm512_permutexvar_ps(high ? _mm512_srli_epi32(v, 28) : _mm512_srli_epi32(v, 24), table);
}
MQ_INLINE void vi_int4(vf w[4], vi v, int high)
{
    nibbles_at(w, v, high, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
}
MQ_INLINE __m512 e2m1_table(void)
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
}
MQ_INLINE void vi_e2m1(vf w[4], vi v, int high) { nibbles_at(w, v, high, e2m1_table()); }
MQ_INLINE void vi_e2m1_byte(vf *low, vf *high, vi v)
{
    *low = _mm512_permutexvar_ps(v, e2m1_table());
    *high = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4), e2m1_table());
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

/* Two rows meet in every step, so that all lanes keep working: + 8, + 4, + 2, + 1. */
MQ_INLINE void vf_trees(float *out, const float *a, int64_t stride)
{
    __m512 w[8], u[4], t[2];
    MQ_UNROLL
    for (int p = 0; p < 8; p++) {
        vf x = vf_load(a + 2 * p * stride), y = vf_load(a + (2 * p + 1) * stride);
        w[p] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    }
    MQ_UNROLL
    for (int q = 0; q < 4; q++)
        u[q] = _mm512_add_ps(_mm512_shuffle_f32x4(w[2 * q], w[2 * q + 1], 0x88),
                             _mm512_shuffle_f32x4(w[2 * q], w[2 * q + 1], 0xdd));
    MQ_UNROLL
    for (int q = 0; q < 2; q++)
        t[q] = _mm512_add_ps(_mm512_shuffle_ps(u[2 * q], u[2 * q + 1], 0x44),
                             _mm512_shuffle_ps(u[2 * q], u[2 * q + 1], 0xee));
    __m512 r = _mm512_add_ps(_mm512_shuffle_ps(t[0], t[1], 0x88), _mm512_shuffle_ps(t[0], t[1], 0xdd));
    /* lane 4 k + m holds row 4 m + k */
    vf_store(out, _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), r));
}

MQ_INLINE __m512d wide_lo(vf a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
MQ_INLINE __m512d wide_hi(vf a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
MQ_INLINE vd vd_zero(void) { return (vd){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
MQ_INLINE vd vd_add(vd s, vf a)
{
    return (vd){_mm512_add_pd(s.lo, wide_lo(a)), _mm512_add_pd(s.hi, wide_hi(a))};
}
MQ_INLINE vd vd_add_product(vd s, vf a, vf b)
{
    return (vd){_mm512_fmadd_pd(wide_lo(a), wide_lo(b), s.lo), _mm512_fmadd_pd(wide_hi(a), wide_hi(b), s.hi)};
}
MQ_INLINE vd vd_add_weighted(vd s, vf e, vf a, vf b)
{
    __m512d lo = _mm512_sub_pd(wide_lo(a), wide_lo(b)), hi = _mm512_sub_pd(wide_hi(a), wide_hi(b));
    return (vd){_mm512_fmadd_pd(wide_lo(e), lo, s.lo), _mm512_fmadd_pd(wide_hi(e), hi, s.hi)};
}
MQ_INLINE void vd_store(double *p, vd s)
{
    _mm512_storeu_pd(p, s.lo);
    _mm512_storeu_pd(p + 8, s.hi);
}

#endif
#endif
