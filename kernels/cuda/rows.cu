/* Operations that move or add rows: gather, pick, columns, scatter-add, add, axpby.  A thread an element. */
#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { THREADS = 256 };

static dim3 grid_of(int64_t n, int64_t cols)
{
    return cols ? dim3(n_blocks(cols, THREADS), n_blocks(n, 1, GRID_Y_LIMIT)) : dim3(0);
}

static __global__ void gather_kernel(float *out, const float *src, const int32_t *index, int64_t n, int64_t cols)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < cols; k += (int64_t)gridDim.x * blockDim.x)
            out[i * cols + k] = src[index[i] * cols + k];
}

mq_status gather(mq_dev *dev, float *out, const float *src, const int32_t *index, int64_t n, int64_t cols, mq_err *err)
{
    return launch(dev, err, "gather", gather_kernel, grid_of(n, cols), THREADS, 0, out, src, index, n, cols);
}

static __global__ void pick_kernel(float *out, const float *x, const int32_t *index, int64_t n, int64_t cols)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = x[i * cols + index[i]];
}

mq_status pick(mq_dev *dev, float *out, const float *x, const int32_t *index, int64_t n, int64_t cols, mq_err *err)
{
    return launch(dev, err, "pick", pick_kernel, n_blocks(n, THREADS), THREADS, 0, out, x, index, n, cols);
}

static __global__ void put_cols_kernel(float *y, int64_t y_cols, int64_t col0, const float *x, int64_t n, int64_t cols)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < cols; k += (int64_t)gridDim.x * blockDim.x)
            y[i * y_cols + col0 + k] = x[i * cols + k];
}

mq_status put_cols(mq_dev *dev, float *y, int64_t y_cols, int64_t col0, const float *x, int64_t n, int64_t cols,
                   mq_err *err)
{
    return launch(dev, err, "put_cols", put_cols_kernel, grid_of(n, cols), THREADS, 0, y, y_cols, col0, x, n, cols);
}

static __global__ void scatter_add_kernel(float *y, const float *x, const int32_t *index, const float *coef, int64_t n,
                                          int64_t cols)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < cols; k += (int64_t)gridDim.x * blockDim.x)
            y[index[i] * cols + k] += coef[i] * x[i * cols + k];
}

mq_status scatter_add(mq_dev *dev, float *y, const float *x, const int32_t *index, const float *coef, int64_t n,
                      int64_t cols, mq_err *err)
{
    return launch(dev, err, "scatter_add", scatter_add_kernel, grid_of(n, cols), THREADS, 0, y, x, index, coef, n, cols);
}

static __global__ void add_kernel(float *y, const float *x, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        y[i] += x[i];
}

static __global__ void add_quads_kernel(float4 *y, const float4 *x, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        float4 a = y[i], b = x[i], sum = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
        y[i] = sum;
    }
}

mq_status add(mq_dev *dev, float *y, const float *x, int64_t count, mq_err *err)
{
    if (count % 4 == 0 && ((uintptr_t)y | (uintptr_t)x) % sizeof(float4) == 0)
        return launch(dev, err, "add", add_quads_kernel, n_blocks(count / 4, THREADS), THREADS, 0, (float4 *)y, (const float4 *)x,
                      count / 4);
    return launch(dev, err, "add", add_kernel, n_blocks(count, THREADS), THREADS, 0, y, x, count);
}

static __global__ void axpby_kernel(float *y, float a, const float *x, float b, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        float left = a == 0.0f ? 0.0f : a * y[i], right = b == 0.0f ? 0.0f : b * x[i];
        y[i] = left + right;
    }
}

static __device__ __forceinline__ float weighed(float y, float a, float x, float b)
{
    float left = a == 0.0f ? 0.0f : a * y, right = b == 0.0f ? 0.0f : b * x;
    return left + right;
}

/* An array whose factor is 0 is not read. */
static __global__ void axpby_quads_kernel(float4 *y, float a, const float4 *x, float b, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        float4 zero = {0.0f, 0.0f, 0.0f, 0.0f}, old = a == 0.0f ? zero : y[i], other = b == 0.0f ? zero : x[i];
        float4 sum = {weighed(old.x, a, other.x, b), weighed(old.y, a, other.y, b), weighed(old.z, a, other.z, b),
                      weighed(old.w, a, other.w, b)};
        y[i] = sum;
    }
}

mq_status axpby(mq_dev *dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err)
{
    if (count % 4 == 0 && ((uintptr_t)y | (uintptr_t)x) % sizeof(float4) == 0)
        return launch(dev, err, "axpby", axpby_quads_kernel, n_blocks(count / 4, THREADS), THREADS, 0, (float4 *)y, a,
                      (const float4 *)x, b, count / 4);
    return launch(dev, err, "axpby", axpby_kernel, n_blocks(count, THREADS), THREADS, 0, y, a, x, b, count);
}

} // namespace mq_cuda
