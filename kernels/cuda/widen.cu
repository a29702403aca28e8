/* Stored weights to F32: consecutive rows (widen) or rows asked for (embed).  A thread an element. */
#include "kernels/cuda/weights.cuh"

namespace mq_cuda {

enum { THREADS = 256 };

/* Row i of out is row ids[i] of w, or row0 + i without ids. */
template <int SCHEME>
static __global__ void widen_kernel(float *out, weight_view w, const int32_t *ids, int64_t row0, int64_t n)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        int64_t row = ids ? ids[i] : row0 + i;
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < w.cols; c += (int64_t)gridDim.x * blockDim.x)
            out[i * w.cols + c] = weight_at<SCHEME>(w, row, c);
    }
}

static mq_status widen_rows(mq_dev *dev, const char *what, float *out, const mq_matrix *m, const int32_t *ids,
                            int64_t row0, int64_t n, mq_err *err)
{
    dim3 grid(n_blocks(m->cols, THREADS), n_blocks(n, 1, GRID_Y_LIMIT));
    return by_scheme(m, [=](auto scheme) {
        return launch(dev, err, what, widen_kernel<decltype(scheme)::value>, grid, THREADS, 0, out, view_of(m), ids, row0,
                      n);
    });
}

mq_status widen(mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n_rows, mq_err *err)
{
    return widen_rows(dev, "widen", out, w, NULL, row0, n_rows, err);
}

mq_status embed(mq_dev *dev, float *out, const mq_matrix *m, const int32_t *ids, int64_t n, mq_err *err)
{
    return widen_rows(dev, "embed", out, m, ids, 0, n, err);
}

} // namespace mq_cuda
