/* What the two kernels of a step's products share (step_linear.cu documents it): the layout of a step of 16 rows, and its
 * product with x. */
#ifndef MQ_KERNELS_CUDA_DECODE_LINEAR_TILE_CUH
#define MQ_KERNELS_CUDA_DECODE_LINEAR_TILE_CUH

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {
namespace linear_tile {

enum { WARPS = 8, THREADS = WARPS * WARP, TILE_ROWS = 16, SUM_STRIDE = 20 };

template <int SCHEME> struct layout {
    enum {
        BYTES = SCHEME == MQ_SCHEME_FP8_BLOCK ? 1 : SCHEME == MQ_SCHEME_F32 ? 4 : 2,
        E = 16 / BYTES,
        STEP = 4 * E, /* columns */
        CHUNK = SCHEME == MQ_SCHEME_F32 ? 64 : MQ_FP8_BLOCK,
        STEPS = CHUNK / STEP,
        X_WORDS = E / 2
    };
};

static __device__ __forceinline__ void set_row(uint32_t w[4], uint4 v)
{
    w[0] = v.x;
    w[1] = v.y;
    w[2] = v.z;
    w[3] = v.w;
}

template <int SCHEME> static __device__ __forceinline__ void load_x(uint32_t *x, const uint16_t *from)
{
    if constexpr (SCHEME == MQ_SCHEME_F32) {
        uint2 v = *(const uint2 *)from;
        x[0] = v.x;
        x[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < layout<SCHEME>::X_WORDS; i += 4) {
            uint4 v = *(const uint4 *)(from + 2 * i);
            x[i] = v.x;
            x[i + 1] = v.y;
            x[i + 2] = v.z;
            x[i + 3] = v.w;
        }
    }
}

/* Two elements at word i (16 bits a code: half a word) of a row as BF16 pairs: high parts, and what they leave. */
template <int SCHEME> static __device__ __forceinline__ uint32_t two_weights(uint32_t &low, const uint32_t w[4], int i)
{
    float2 v;
    if (SCHEME == MQ_SCHEME_BF16)
        return w[i];
    if (SCHEME == MQ_SCHEME_FP8_BLOCK) {
        v = floats_of_e4m3x2((uint16_t)(w[i / 2] >> 16 * (i % 2)));
        return bf16x2_of_floats(v.x, v.y);
    }
    if (SCHEME == MQ_SCHEME_F16)
        v = floats_of_f16x2(w[i]);
    else
        v = {__uint_as_float(w[2 * i]), __uint_as_float(w[2 * i + 1])};
    uint32_t high = bf16x2_of_floats(v.x, v.y);
    low = bf16x2_of_floats(v.x - __uint_as_float(high << 16), v.y - __uint_as_float(high & 0xffff0000u));
    return high;
}

/* Two chains of sums: even and odd products, or high and low parts. */
struct sums {
    float c[2][4];
};

/* s += one step of two rows of weights times x. */
template <int SCHEME>
static __device__ __forceinline__ void multiply(sums &s, const uint32_t w[2][4], const uint32_t *x)
{
    const bool split = SCHEME == MQ_SCHEME_F16 || SCHEME == MQ_SCHEME_F32;
#pragma unroll
    for (int j = 0; j < layout<SCHEME>::E / 4; j++) {
        uint32_t high[4], low[4];
        high[0] = two_weights<SCHEME>(low[0], w[0], 2 * j);
        high[1] = two_weights<SCHEME>(low[1], w[1], 2 * j);
        high[2] = two_weights<SCHEME>(low[2], w[0], 2 * j + 1);
        high[3] = two_weights<SCHEME>(low[3], w[1], 2 * j + 1);
        mma_bf16(s.c[split ? 0 : j % 2], high, x + 2 * j);
        if (split)
            mma_bf16(s.c[1], low, x + 2 * j);
    }
}

/* total += scale * s, per row; s is then 0. */
static __device__ __forceinline__ void apply_scale(float total[4], sums &s, const float scale[2])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        total[i] = fmaf(scale[i / 2], s.c[0][i] + s.c[1][i], total[i]);
        s.c[0][i] = s.c[1][i] = 0.0f;
    }
}

/* Row of x and of the tile of this thread's output, the first ROWS * TILE_ROWS threads: the sum over the warps, in their order. */
static __device__ __forceinline__ float add_warps(const float sums_of_warps[WARPS][ROWS * SUM_STRIDE], int row, int within)
{
    float sum = sums_of_warps[0][row * SUM_STRIDE + within];
#pragma unroll
    for (int v = 1; v < WARPS; v++)
        sum += sums_of_warps[v][row * SUM_STRIDE + within];
    return sum;
}

} // namespace linear_tile

/* step_linear_bulk.cu: queues the parts of a scheme, if it computes all of them; otherwise *done is false. */
mq_status linear_bulk(mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_scheme scheme, bool *done,
                      mq_err *err);

} // namespace decode
} // namespace mq_cuda

#endif
