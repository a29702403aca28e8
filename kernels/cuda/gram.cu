/* Second moments: weighted sums of x x^T and x y^T by cuBLAS, and their diagonal.
 *
 * Weights enter gram as their square roots times x, cross as factors of x, as on the CPU. */
#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256, PANEL = 1024 };

static __global__ void diag_kernel(float *out, const float *g, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = g[i * n + i];
}

mq_status diag(mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err)
{
    return launch(dev, err, "diag", diag_kernel, n_blocks(n, THREADS), THREADS, 0, out, g, n);
}

static __global__ void set_diag_kernel(float *g, const float *values, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        g[i * n + i] = values[i];
}

mq_status set_diag(mq_dev *dev, float *g, const float *values, int64_t n, mq_err *err)
{
    return launch(dev, err, "set_diag", set_diag_kernel, n_blocks(n, THREADS), THREADS, 0, g, values, n);
}

static __global__ void weigh_kernel(float *out, const float *x, const float *weight, bool root, int64_t n, int64_t cols)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        float factor = root ? sqrtf(weight[i]) : weight[i];
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < cols; c += (int64_t)gridDim.x * blockDim.x)
            out[i * cols + c] = factor * x[i * cols + c];
    }
}

/* x moves to the weighted rows, where there are weights. */
static mq_status weigh(mq_dev *dev, const float **x, const float *weight, bool root, int64_t n, int64_t cols, mq_err *err)
{
    void *room;
    if (!weight)
        return MQ_OK;
    MQ_TRY(workspace(dev, WS_ROWS, n * cols * (int64_t)sizeof **x, &room, err));
    MQ_TRY(launch(dev, err, "gram", weigh_kernel, dim3(n_blocks(cols, THREADS), n_blocks(n, 1, GRID_Y_LIMIT)), THREADS, 0,
                  (float *)room, *x, weight, root, n, cols));
    *x = (const float *)room;
    return MQ_OK;
}

/* Rows row0 .. of g's lower triangle += those of panel [n_rows, row0 + n_rows]. */
static __global__ void add_lower_kernel(float *g, const float *panel, int64_t row0, int64_t n_rows, int64_t cols)
{
    for (int64_t i = blockIdx.y; i < n_rows; i += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c <= row0 + i;
             c += (int64_t)gridDim.x * blockDim.x)
            g[(row0 + i) * cols + c] += panel[i * (row0 + n_rows) + c];
}

/* Both factors are the rounded sqrt(weight) x: one rounding a factor, and the sum stays a second moment (no negative
 * eigenvalue). */
static mq_status gram_bf16(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err)
{
    void *room, *panel;
    int64_t most = cols < PANEL ? cols : (int64_t)PANEL;
    MQ_TRY(workspace(dev, WS_ROWS, n * cols * (int64_t)sizeof(uint16_t), &room, err));
    MQ_TRY(workspace(dev, WS_MOMENT, most * cols * (int64_t)sizeof *g, &panel, err));
    uint16_t *half = (uint16_t *)room;
    MQ_TRY(weigh_to_bf16(dev, "gram", half, x, weight, true, n, cols, err));
    for (int64_t row0 = 0; row0 < cols; row0 += most) {
        int64_t rows = cols - row0 < most ? cols - row0 : most, width = row0 + rows;
        MQ_TRY(gemm_bf16(dev, "gram", true, false, rows, width, n, half + row0, cols, half, cols, 0.0f, (float *)panel,
                         width, err));
        MQ_TRY(launch(dev, err, "gram", add_lower_kernel,
                      dim3(n_blocks(width, THREADS), n_blocks(rows, 1, GRID_Y_LIMIT)), THREADS, 0, g,
                      (const float *)panel, row0, rows, cols));
    }
    return MQ_OK;
}

static mq_status cross_bf16(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n,
                            int64_t cols, int64_t y_cols, mq_err *err)
{
    void *room;
    MQ_TRY(workspace(dev, WS_ROWS, n * (cols + y_cols) * (int64_t)sizeof(uint16_t), &room, err));
    uint16_t *left = (uint16_t *)room, *right = left + n * cols;
    MQ_TRY(weigh_to_bf16(dev, "cross", left, x, weight, false, n, cols, err));
    MQ_TRY(to_bf16(dev, "cross", right, y, n, y_cols, err));
    return gemm_bf16(dev, "cross", true, false, cols, y_cols, n, left, cols, right, y_cols, 1.0f, c, y_cols, err);
}

mq_status gram(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err)
{
    if (n <= 0)
        return MQ_OK;
    if (dev->precision == MQ_PRECISION_BF16)
        return gram_bf16(dev, g, x, weight, n, cols, err);
    MQ_TRY(weigh(dev, &x, weight, true, n, cols, err));
    return syrk_tn_add(dev, "gram", cols, n, x, cols, g, cols, err);
}

mq_status cross(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n, int64_t cols,
                int64_t y_cols, mq_err *err)
{
    if (n <= 0)
        return MQ_OK;
    if (dev->precision == MQ_PRECISION_BF16)
        return cross_bf16(dev, c, x, y, weight, n, cols, y_cols, err);
    MQ_TRY(weigh(dev, &x, weight, false, n, cols, err));
    return gemm(dev, "cross", true, false, cols, y_cols, n, 1.0f, x, cols, y, y_cols, 1.0f, c, y_cols, err);
}

} // namespace mq_cuda
