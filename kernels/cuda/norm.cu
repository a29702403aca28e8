/* RMS norm (a block a row) and SwiGLU (a thread an element). */
#include "kernels/cuda/common.cuh"
#include "src/units.h"

namespace mq_cuda {

enum { THREADS = 256 };

static __device__ __forceinline__ double squares(float4 v)
{
    return (double)v.x * (double)v.x + (double)v.y * (double)v.y + ((double)v.z * (double)v.z + (double)v.w * (double)v.w);
}

static __device__ __forceinline__ float4 scaled(float4 w, float4 v, float r)
{
    float4 y = {w.x * (v.x * r), w.y * (v.y * r), w.z * (v.z * r), w.w * (v.w * r)};
    return y;
}

/* Rows of whole quads, aligned to them: a thread keeps up to KEPT of its row in registers. */
enum { QUAD = 4, KEPT = 8 };

static __global__ void rmsnorm_quads_kernel(float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols)
{
    int quads = (int)(cols / QUAD);
    const float4 *w = (const float4 *)weight;
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const float4 *from = (const float4 *)(x + i * cols);
        float4 *to = (float4 *)(y + i * cols), kept[KEPT];
        double sum = 0.0;
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            int at = k * THREADS + (int)threadIdx.x;
            float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
            kept[k] = at < quads ? from[at] : zero;
        }
#pragma unroll
        for (int k = 0; k < KEPT; k++)
            sum += squares(kept[k]);
        for (int at = KEPT * THREADS + (int)threadIdx.x; at < quads; at += THREADS)
            sum += squares(from[at]);
        sum = block_sum(sum);
        float r = (float)(1.0 / sqrt(sum / (double)cols + eps));
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            int at = k * THREADS + (int)threadIdx.x;
            if (at < quads)
                to[at] = scaled(w[at], kept[k], r);
        }
        for (int at = KEPT * THREADS + (int)threadIdx.x; at < quads; at += THREADS)
            to[at] = scaled(w[at], from[at], r);
    }
}

static __global__ void rmsnorm_kernel(float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const float *from = x + i * cols;
        double sum = 0.0;
        for (int64_t k = threadIdx.x; k < cols; k += blockDim.x)
            sum += (double)from[k] * (double)from[k];
        sum = block_sum(sum);
        float r = (float)(1.0 / sqrt(sum / (double)cols + eps));
        for (int64_t k = threadIdx.x; k < cols; k += blockDim.x)
            y[i * cols + k] = weight[k] * (from[k] * r);
    }
}

mq_status rmsnorm(mq_dev *dev, float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols,
                  mq_err *err)
{
    bool quads = cols % QUAD == 0 && ((uintptr_t)y | (uintptr_t)x | (uintptr_t)weight) % sizeof(float4) == 0;
    return launch(dev, err, "rmsnorm", quads ? rmsnorm_quads_kernel : rmsnorm_kernel, n_blocks(n, 1), THREADS, 0, y, x, weight, eps, n, cols);
}

static __global__ void swiglu_kernel(float *h, const float *gate, const float *up, bool interleaved, int64_t n,
                                     int64_t width)
{
    int64_t count = n * width, stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
        int64_t i = at / width, c = at % width;
        const float *both = gate + i * 2 * width;
        float g = interleaved ? both[mq_gate_up_row(c, 0)] : gate[at];
        float u = interleaved ? both[mq_gate_up_row(c, 1)] : up[at];
        h[at] = g / (1.0f + expf(-g)) * u;
    }
}

mq_status swiglu(mq_dev *dev, float *h, const float *gate, const float *up, bool interleaved, int64_t n, int64_t width,
                 mq_err *err)
{
    return launch(dev, err, "swiglu", swiglu_kernel, n_blocks(n * width, THREADS), THREADS, 0, h, gate, up, interleaved,
                  n, width);
}

} // namespace mq_cuda
