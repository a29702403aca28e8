/* Packed expert weights (src/units.h) as operands of the tensor core, for 1 to 8 rows of BF16 activations.
 *
 * A block is what shares scales: one unit of 16 rows x 64 columns, or two with g128.  A warp holds a block as it lies in
 * memory, 16 bytes of codes a lane and unit, and turns it into A fragments: weights are rows of A, activations columns
 * of B.  Codes become BF16 exactly (-8..7, or the magnitudes of E2M1); the scale of a group multiplies the F32 sum of
 * the group's products, rows g and g + 8 of a lane at once.
 *
 *   INT4    a number below 256 in the low byte is that many times 2^-133 in BF16: what stands at bits 0..3 is u, at bits 4..7
 *           16 u, and one HFMA2 makes either (u - 8) / 128, exactly; per pair of weights LOP3, HFMA2 and half a shift
 *   MXFP4   sign and magnitude at bits 15 and 6..8 are the value times 2^-126: one product by both shifts, then 2^126
 *
 * Sums over blocks are therefore in units of 1 / SUM_UNIT.
 *
 * In C, lane (g = lane / 4, t = lane % 4) has rows g (acc[0], acc[1]) and g + 8 (acc[2], acc[3]) of activations 2 t and
 * 2 t + 1.  What an activation gets does not depend on the other seven. */
#ifndef MQ_KERNELS_CUDA_DECODE_UNITS_CUH
#define MQ_KERNELS_CUDA_DECODE_UNITS_CUH

#include "kernels/cuda/common.cuh"
#include "src/units.h"

namespace mq_cuda {
namespace decode {

template <int GROUP> struct unit_format {
    enum {
        UNITS = GROUP == 128 ? 2 : 1,                            /* of a block */
        GROUPS = GROUP == 32 || GROUP == MQ_GROUP_MXFP4 ? 2 : 1, /* of a block and row */
        SCALE_WORDS = GROUP == 32 ? 2 : 1,                       /* 32-bit words of scales a lane needs */
        COLS = UNITS * MQ_UNIT_COLS,
        CODE_BYTES = UNITS * MQ_UNIT_CODE_BYTES,
        BYTES = CODE_BYTES + 32 * SCALE_WORDS /* mq_block_bytes */
    };
};

template <int GROUP> static constexpr float SUM_UNIT = GROUP == MQ_GROUP_MXFP4 ? 1.0f : 128.0f;

/* One lane's part of a block. */
template <int GROUP> struct weight_block {
    uint4 codes[unit_format<GROUP>::UNITS];
    uint32_t scale[unit_format<GROUP>::SCALE_WORDS];
};

/* And of the activations of its columns: B fragments, two words a product. */
template <int GROUP> struct input_block {
    uint32_t b[unit_format<GROUP>::UNITS][8];
};

/* block: its first byte, in global memory; where not wanted, w stays what it was. */
template <int GROUP>
static __device__ __forceinline__ void load_block(weight_block<GROUP> &w, const uint8_t *block, unsigned lane, bool wanted)
{
    using F = unit_format<GROUP>;
    const uint8_t *codes = block + lane * 16, *scale = block + lane / 4 * 4 * F::SCALE_WORDS;
#pragma unroll
    for (int u = 0; u < F::UNITS; u++)
        load_weights16_if(w.codes[u], codes + u * MQ_UNIT_CODE_BYTES, wanted);
    if constexpr (F::SCALE_WORDS == 2)
        load_weights8_if(w.scale, scale + F::CODE_BYTES, wanted);
    else
        load_weights4_if(w.scale[0], scale + F::CODE_BYTES, wanted);
}

/* The same from shared memory. */
template <int GROUP> static __device__ __forceinline__ void read_block(weight_block<GROUP> &w, const uint8_t *block, unsigned lane)
{
    using F = unit_format<GROUP>;
    const uint32_t *scale = (const uint32_t *)(block + F::CODE_BYTES) + lane / 4 * F::SCALE_WORDS;
#pragma unroll
    for (int u = 0; u < F::UNITS; u++)
        w.codes[u] = *(const uint4 *)(block + u * MQ_UNIT_CODE_BYTES + lane * 16);
#pragma unroll
    for (int i = 0; i < F::SCALE_WORDS; i++)
        w.scale[i] = scale[i];
}

/* x: column 0 of the block in the row that this lane holds, lane / 4.  16-byte aligned. */
template <int GROUP> static __device__ __forceinline__ void load_inputs(input_block<GROUP> &to, const uint16_t *x, unsigned lane)
{
#pragma unroll
    for (int u = 0; u < unit_format<GROUP>::UNITS; u++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 v = *(const uint4 *)(x + u * MQ_UNIT_COLS + half * 32 + lane % 4 * 8);
            uint32_t *b = to.b[u] + 4 * half;
            b[0] = v.x;
            b[1] = v.y;
            b[2] = v.z;
            b[3] = v.w;
        }
}

/* The A fragment of one product from one word of codes: a[i] has its codes at bits 4 i and 16 + 4 i. */
template <int GROUP> static __device__ __forceinline__ void widen_codes(uint32_t a[4], uint32_t word)
{
    if (GROUP == MQ_GROUP_MXFP4) {
        const uint32_t TWO_126 = 0x7e807e80u, MINUS_0 = 0x80008000u, SIGN_AND_MAGNITUDE = 0x81c081c0u;
        uint32_t high = word >> 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            /* the code moves up so that its sign is at bit 15, and so that its magnitude is at bits 6..8 */
            uint32_t code = (i < 2 ? word : high) & (i % 2 ? 0x00f000f0u : 0x000f000fu);
            uint32_t moved = code * (i % 2 ? (1u << 8) + (1u << 2) : (1u << 12) + (1u << 6));
            a[i] = fma_bf16x2(moved & SIGN_AND_MAGNITUDE, TWO_126, MINUS_0);
        }
    } else {
        const uint32_t LOW = 0x000f000fu, HIGH = 0x00f000f0u, TWO_126 = 0x7e807e80u, TWO_122 = 0x7c807c80u, MINUS_16TH = 0xbd80bd80u;
        uint32_t high = word >> 8;
        a[0] = fma_bf16x2(word & LOW, TWO_126, MINUS_16TH);
        a[1] = fma_bf16x2(word & HIGH, TWO_122, MINUS_16TH);
        a[2] = fma_bf16x2(high & LOW, TWO_126, MINUS_16TH);
        a[3] = fma_bf16x2(high & HIGH, TWO_122, MINUS_16TH);
    }
}

/* E8M0 in byte i of a word: mq_e8m0_to_f32 without a branch. */
static __device__ __forceinline__ float e8m0_of(uint32_t word, int i)
{
    uint32_t bits = (word >> 8 * i & 0xffu) << 23;
    float s = mq_f32_from_bits(bits < 0x00400000u ? 0x00400000u : bits); /* 2^-127 has no exponent */
    return fmaf(s, 0.0f, s);                                             /* infinity, which 255 stands for, becomes NaN */
}

template <int GROUP> static __device__ __forceinline__ float scale_of(const weight_block<GROUP> &w, int group, int half)
{
    if (GROUP == MQ_GROUP_MXFP4)
        return e8m0_of(w.scale[0], 2 * group + half);
    uint32_t pair = w.scale[unit_format<GROUP>::SCALE_WORDS == 2 ? group : 0];
    return mq_f32_from_bits(half ? pair & 0xffff0000u : pair << 16);
}

/* acc [16 rows, 8 activations] += block * inputs / SUM_UNIT; the whole warp. */
template <int GROUP>
static __device__ __forceinline__ void multiply_block(float acc[4], const weight_block<GROUP> &w, const input_block<GROUP> &x)
{
    using F = unit_format<GROUP>;
    enum { PRODUCTS = 4 * F::UNITS, PER_GROUP = PRODUCTS / F::GROUPS };
#pragma unroll
    for (int group = 0; group < F::GROUPS; group++) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < PER_GROUP; i++) {
            int j = group * PER_GROUP + i, u = j / 4;
            uint32_t words[4] = {w.codes[u].x, w.codes[u].y, w.codes[u].z, w.codes[u].w}, a[4];
            widen_codes<GROUP>(a, words[j % 4]);
            mma_bf16(sum, a, x.b[u] + 2 * (j % 4));
        }
        float low = scale_of<GROUP>(w, group, 0), high = scale_of<GROUP>(w, group, 1);
        acc[0] = fmaf(low, sum[0], acc[0]);
        acc[1] = fmaf(low, sum[1], acc[1]);
        acc[2] = fmaf(high, sum[2], acc[2]);
        acc[3] = fmaf(high, sum[3], acc[3]);
    }
}

} // namespace decode
} // namespace mq_cuda

#endif
