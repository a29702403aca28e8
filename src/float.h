/* Scalar conversions between F32 and the small float formats of checkpoints, for C and CUDA.
 *
 * The definitions: vector code in kernels/ is tested against these.  Sources: IEEE 754; OCP OFP8 (E4M3, no
 * infinity, 0x7F/0xFF NaN); OCP MX v1.0 (E2M1, E8M0). */
#ifndef MQ_SRC_FLOAT_H
#define MQ_SRC_FLOAT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define MQ_HD __host__ __device__
#else
#define MQ_HD
#endif

static inline MQ_HD uint32_t mq_f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline MQ_HD float mq_f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline MQ_HD float mq_bf16_to_f32(uint16_t b)
{
    return mq_f32_from_bits((uint32_t)b << 16);
}

/* Round to nearest, ties to even; NaN stays NaN (quiet), overflow goes to infinity. */
static inline MQ_HD uint16_t mq_f32_to_bf16(float x)
{
    uint32_t u = mq_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline MQ_HD float mq_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 31u)
        return mq_f32_from_bits(sign | 0x7f800000u | m << 13);
    if (e)
        return mq_f32_from_bits(sign | (e + 112u) << 23 | m << 13);
    float sub = (float)m * 5.9604644775390625e-8f; /* m * 2^-24, exact */
    return sign ? -sub : sub;
}

/* E4M3 (fn): bias 7, 448 the largest, subnormal step 2^-9; 0x7F and 0xFF are NaN. */
static inline MQ_HD float mq_e4m3_to_f32(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 0x80u) << 24, e = (c >> 3) & 15u, m = c & 7u;
    if ((c & 0x7fu) == 0x7fu)
        return mq_f32_from_bits(sign | 0x7fc00000u);
    if (e)
        return mq_f32_from_bits(sign | (e + 120u) << 23 | m << 20);
    float sub = (float)m * 0.001953125f; /* m * 2^-9 */
    return sign ? -sub : sub;
}

/* E8M0 scale 2^(b - 127); 255 is NaN.  0 gives 2^-127, an F32 subnormal. */
static inline MQ_HD float mq_e8m0_to_f32(uint8_t b)
{
    if (b == 255)
        return mq_f32_from_bits(0x7fc00000u);
    return b ? mq_f32_from_bits((uint32_t)b << 23) : mq_f32_from_bits(0x00400000u);
}

/* E2M1 code: sign in bit 3, magnitudes 0 0.5 1 1.5 2 3 4 6. */
static inline MQ_HD float mq_e2m1_to_f32(unsigned c)
{
    uint32_t e = (c >> 1) & 3u, m = c & 1u;
    float mag = e ? (1.0f + 0.5f * (float)m) * (float)(1u << (e - 1u)) : 0.5f * (float)m;
    return (c & 8u) ? -mag : mag;
}

#endif
