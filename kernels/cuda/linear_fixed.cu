/* The product in a fixed order: a warp a weight row, up to eight activation rows at once.
 *
 * Lane l adds columns l, l + 32, ... in ascending order with fused multiply-adds, then the 32 sums are added as a tree:
 * a row's bits depend on that row of x and on w alone.  Plain on purpose; the order is not the CPU's.  In BF16 the tensor
 * core products of packed.cu and of the decode step take over, but for what the step does not compute. */
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/weights.cuh"

namespace mq_cuda {

enum { THREADS = 256, ROWS = 8 };

template <int SCHEME>
static __global__ void linear_fixed_kernel(float *y, const float *x, weight_view w, int64_t rows, int64_t n)
{
    int lane = (int)(threadIdx.x % WARP);
    int64_t i0 = (int64_t)blockIdx.y * ROWS, warps = (int64_t)gridDim.x * (blockDim.x / WARP);
    int count = n - i0 < ROWS ? (int)(n - i0) : ROWS;
    for (int64_t r = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP; r < rows; r += warps) {
        float sum[ROWS] = {};
        for (int64_t c = lane; c < w.cols; c += WARP) {
            float v = weight_at<SCHEME>(w, r, c);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                if (i < count)
                    sum[i] = fmaf(v, x[(i0 + i) * w.cols + c], sum[i]);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float s = warp_sum(sum[i]);
            if (lane == 0 && i < count)
                y[(i0 + i) * rows + r] = s;
        }
    }
}

/* By the decode step's own product, eight rows at a time; the last block may be filled up, and its rows are then copied. */
static mq_status fixed_bf16(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    void *room, *last = NULL;
    int64_t whole = n / ROWS * ROWS, padded = (n + ROWS - 1) / ROWS * ROWS, rest = n - whole;
    MQ_TRY(workspace(dev, WS_HALF, padded * w->cols * (int64_t)sizeof(uint16_t), &room, err));
    if (rest > 0)
        MQ_TRY(workspace(dev, WS_SUMS, ROWS * w->rows * (int64_t)sizeof *y, &last, err));
    uint16_t *half = (uint16_t *)room;
    MQ_TRY(to_bf16(dev, "linear_fixed", half, x, n, w->cols, err));
    MQ_TRY(check(dev,
                 cudaMemsetAsync(half + n * w->cols, 0, (size_t)((padded - n) * w->cols) * sizeof *half, dev->stream),
                 "linear_fixed", err));
    for (int64_t i0 = 0; i0 < padded; i0 += ROWS) {
        mq_decode_linear part = {*w, i0 < whole ? y + i0 * w->rows : (float *)last, w->rows};
        MQ_TRY(decode::linear(dev, &part, 1, half + i0 * w->cols, err));
    }
    if (rest == 0)
        return MQ_OK;
    return check(dev,
                 cudaMemcpyAsync(y + whole * w->rows, last, (size_t)(rest * w->rows) * sizeof *y,
                                 cudaMemcpyDeviceToDevice, dev->stream),
                 "linear_fixed", err);
}

mq_status linear_fixed(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    if (dev->precision == MQ_PRECISION_BF16 && is_packed(w))
        return packed_linear(dev, y, x, w, n, err);
    if (dev->precision == MQ_PRECISION_BF16 && n > 0 && w->rows > 0 && decode::check_linear(w, NULL) == MQ_OK)
        return fixed_bf16(dev, y, x, w, n, err);
    const int64_t most = (int64_t)ROWS * GRID_Y_LIMIT;
    for (int64_t i0 = 0; i0 < n; i0 += most) {
        int64_t part = n - i0 < most ? n - i0 : most;
        dim3 grid(n_blocks(w->rows, THREADS / WARP), n_blocks(part, ROWS));
        MQ_TRY(by_scheme(w, [=](auto scheme) {
            return launch(dev, err, "linear_fixed", linear_fixed_kernel<decltype(scheme)::value>, grid, THREADS, 0,
                          y + i0 * w->rows, x + i0 * w->cols, view_of(w), w->rows, part);
        }));
    }
    return MQ_OK;
}

} // namespace mq_cuda
