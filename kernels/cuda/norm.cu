/* RMS norm (a block a row) and SwiGLU (a thread an element). */
#include "kernels/cuda/common.cuh"
#include "src/units.h"

namespace mq_cuda {

enum { THREADS = 256 };

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
    return launch(dev, err, "rmsnorm", rmsnorm_kernel, n_blocks(n, 1), THREADS, 0, y, x, weight, eps, n, cols);
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
