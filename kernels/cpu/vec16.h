/* Float vectors of the CPU kernels: one vocabulary for plain C, AVX2 and AVX-512.
 *
 * Kernels are written for 16 lanes and see a register as VF_LANES of them: VF_HALVES registers make 16 lanes.  Every
 * operation rounds as the scalar one does (IEEE, fused multiply-add), so the same kernel source gives the same bits
 * on each instruction set; only this file knows which one is compiled.  Included by *_impl.h files, which are
 * compiled once per instruction set (vector_scalar.c, vector_avx2.c, vector_avx512.c).
 *
 * Code vectors (vi) hold VF_LANES little-endian 32-bit words of 8 nibbles; nibble 2 k is byte k's low one.  Decoders
 * give four vectors, one per byte of the word: INT4 as -8..7, E2M1 doubled (0 1 2 3 4 6 8 12; negative zero is 0). */
#ifndef MQ_KERNELS_CPU_VEC16_H
#define MQ_KERNELS_CPU_VEC16_H

#include "kernels/cpu/inline.h"

#if defined(__AVX512F__)
#include "kernels/cpu/vec16_avx512.h"
#elif defined(__AVX2__)
#include "kernels/cpu/vec16_avx2.h"
#else
#include "kernels/cpu/vec16_scalar.h"
#endif

enum { VF_HALVES = 16 / VF_LANES };

/* Sum of 16 lanes as vf_trees does it. */
MQ_INLINE float vf_tree16(const float *a)
{
    float s[8];
    for (int l = 0; l < 8; l++)
        s[l] = a[l] + a[l + 8];
    for (int l = 0; l < 4; l++)
        s[l] += s[l + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* exp(x) within about 1 ulp.  Below -87.3 the result stays at about 1e-38, above 88.3 at about 2e38; NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; Taylor to r^7 (the next term is below 0.05 ulp); own. */
MQ_INLINE vf vf_exp(vf x)
{
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = vf_max(vf_set1(-87.3f), vf_min(vf_set1(88.3f), x));
    vf shifted = vf_fma(x, vf_set1(1.44269504f), magic);
    vf n = vf_sub(shifted, magic);
    vf r = vf_fma(n, vf_set1(-0.693145751953125f), x);     /* ln 2 in two parts: 15 bits, exact times n */
    r = vf_fma(n, vf_set1(-1.42860682030941723212e-6f), r); /* and the rest */
    vf p = vf_set1(1.0f / 5040.0f);
    p = vf_fma(p, r, vf_set1(1.0f / 720.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 120.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 24.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 6.0f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_mul(p, vf_pow2_of_magic(shifted));
}

#endif
