/* Both triangles of a second moment, of which the lower one is stored, and products with it.
 *
 * In F32 they are one array and a product is one of cuBLAS in F32.  In BF16 (mq_kernels.set_precision) every element is the sum of two
 * BF16 numbers, high = the nearest one and low = the nearest one to what is left, together 16 bits and more, and so is every element of
 * the rows: high * high + low * high + high * low are three products on tensor cores with F32 sums, and what they leave out is below
 * 2^-16 of a term. */
#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256, EDGE = 32 };

static __device__ __forceinline__ void put(float *full, uint16_t *high, uint16_t *low, int64_t at, float v)
{
    if (full)
        full[at] = v;
    if (high) {
        uint16_t h = mq_f32_to_bf16(v);
        high[at] = h;
        low[at] = mq_f32_to_bf16(v - mq_bf16_to_f32(h));
    }
}

/* Tile (y, x) of the lower triangle to both places, through shared memory so that both are written along rows. */
static __global__ void both_triangles_kernel(float *full, uint16_t *high, uint16_t *low, const float *g, int64_t n)
{
    MQ_SHARED(tile, float[EDGE][EDGE + 1]);
    int64_t r0 = (int64_t)blockIdx.y * EDGE, c0 = (int64_t)blockIdx.x * EDGE;
    if (blockIdx.x > blockIdx.y)
        return;
    int c = (int)(threadIdx.x % EDGE);
    for (int r = (int)(threadIdx.x / EDGE); r < EDGE; r += THREADS / EDGE)
        if (r0 + r < n && c0 + c <= r0 + r) {
            float v = g[(r0 + r) * n + c0 + c];
            put(full, high, low, (r0 + r) * n + c0 + c, v);
            tile[c][r] = v;
        }
    __syncthreads();
    for (int r = (int)(threadIdx.x / EDGE); r < EDGE; r += THREADS / EDGE)
        if (r0 + c < n && c0 + r < r0 + c)
            put(full, high, low, (c0 + r) * n + r0 + c, tile[r][c]);
}

mq_status open_moment(mq_dev *dev, moment *out, const float *g, int64_t n, bool wants_parts, mq_err *err)
{
    bool wants_full = dev->precision != MQ_PRECISION_BF16;
    void *full = NULL, *parts = NULL;
    if (wants_full)
        MQ_TRY(workspace(dev, WS_MOMENT, n * n * (int64_t)sizeof *g, &full, err));
    if (!wants_full || wants_parts)
        MQ_TRY(workspace(dev, WS_PARTS, 2 * n * n * (int64_t)sizeof(uint16_t), &parts, err));
    uint16_t *high = (uint16_t *)parts, *low = high ? high + n * n : NULL;
    *out = {(float *)full, high, low, n};
    unsigned tiles = n_blocks(n, EDGE, GRID_Y_LIMIT);
    return launch(dev, err, "moment", both_triangles_kernel, dim3(tiles, tiles), THREADS, 0, (float *)full, high, low, g, n);
}

static __global__ void split_kernel(uint16_t *high, uint16_t *low, const float *x, int64_t count)
{
    float *no_full = NULL;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        put(no_full, high, low, i, x[i]);
}

mq_status split(mq_dev *dev, const char *what, uint16_t *high, uint16_t *low, const float *x, int64_t count, mq_err *err)
{
    return launch(dev, err, what, split_kernel, n_blocks(count, THREADS), THREADS, 0, high, low, x, count);
}

mq_status gemm_parts(mq_dev *dev, const char *what, int64_t m, int64_t n, int64_t k, parts a, parts b, float beta, float *c,
                     int64_t ldc, mq_err *err)
{
    MQ_TRY(gemm_bf16(dev, what, false, false, m, n, k, a.low, a.stride, b.high, b.stride, beta, c, ldc, err));
    MQ_TRY(gemm_bf16(dev, what, false, false, m, n, k, a.high, a.stride, b.low, b.stride, 1.0f, c, ldc, err));
    return gemm_bf16(dev, what, false, false, m, n, k, a.high, a.stride, b.high, b.stride, 1.0f, c, ldc, err);
}

mq_status times_moment(mq_dev *dev, const char *what, float *y, const float *x, const moment *m, int64_t rows, mq_err *err)
{
    int64_t n = m->n;
    if (m->full)
        return gemm(dev, what, false, false, rows, n, n, 1.0f, x, n, m->full, n, 0.0f, y, n, err);
    void *room;
    MQ_TRY(workspace(dev, WS_HALF, 2 * rows * n * (int64_t)sizeof(uint16_t), &room, err));
    uint16_t *high = (uint16_t *)room, *low = high + rows * n;
    MQ_TRY(split(dev, what, high, low, x, rows * n, err));
    return gemm_parts(dev, what, rows, n, n, {high, low, n}, {m->high, m->low, n}, 0.0f, y, n, err);
}

} // namespace mq_cuda
