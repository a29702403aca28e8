/* The product in a fixed order: a warp a weight row, up to eight activation rows at once.
 *
 * Lane l adds columns l, l + 32, ... in ascending order with fused multiply-adds, then the 32 sums are added as a tree:
 * a row's bits depend on that row of x and on w alone.  Plain on purpose; the order is not the CPU's. */
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

mq_status linear_fixed(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    if (dev->precision == MQ_PRECISION_BF16 && is_packed(w))
        return packed_linear(dev, y, x, w, n, err);
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
