/* F32 rows and stored weights to BF16.  A thread four consecutive elements where addresses allow, else one. */
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/weights.cuh"

namespace mq_cuda {

enum { THREADS = 256, QUAD = 4 };

static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    return (uint32_t)mq_f32_to_bf16(high) << 16 | mq_f32_to_bf16(low);
}

/* quads: x is aligned to 16 bytes, out to 8, and cols is a multiple of 4. */
static __global__ void to_bf16_kernel(uint16_t *out, const float *x, const float *weight, bool root, bool quads,
                                      int64_t n, int64_t cols)
{
    int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        float factor = !weight ? 1.0f : root ? sqrtf(weight[i]) : weight[i];
        const float *from = x + i * cols;
        uint16_t *to = out + i * cols;
        if (quads)
            for (int64_t c = first * QUAD; c < cols; c += stride * QUAD) {
                float4 v = *(const float4 *)(from + c);
                uint2 both = {bf16_pair(factor * v.x, factor * v.y), bf16_pair(factor * v.z, factor * v.w)};
                *(uint2 *)(to + c) = both;
            }
        else
            for (int64_t c = first; c < cols; c += stride)
                to[c] = mq_f32_to_bf16(factor * from[c]);
    }
}

mq_status weigh_to_bf16(mq_dev *dev, const char *what, uint16_t *out, const float *x, const float *weight, bool root,
                        int64_t n, int64_t cols, mq_err *err)
{
    bool quads = cols % QUAD == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)out % 8 == 0;
    dim3 grid(n_blocks(cols, THREADS * (quads ? (int)QUAD : 1)), n_blocks(n, 1, GRID_Y_LIMIT));
    return launch(dev, err, what, to_bf16_kernel, grid, THREADS, 0, out, x, weight, root, quads, n, cols);
}

mq_status to_bf16(mq_dev *dev, const char *what, uint16_t *out, const float *x, int64_t n, int64_t cols, mq_err *err)
{
    return weigh_to_bf16(dev, what, out, x, NULL, false, n * cols > 0, n * cols, err); /* one long row */
}

/* FP8: a thread RUN consecutive weights of a row, which share a scale. */
enum { RUN = 16 };

static __device__ __forceinline__ uint32_t scaled_pair(uint32_t codes, float scale)
{
    float2 v = floats_of_e4m3x2((uint16_t)codes);
    return bf16x2_of_floats(v.x * scale, v.y * scale);
}

static __global__ void widen_fp8_kernel(uint16_t *out, weight_view w, int64_t row0, int64_t n)
{
    int runs = (int)(w.cols / RUN);
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n * runs; i += stride) {
        int64_t r = row0 + i / runs, c = i % runs * RUN;
        int64_t scale_row = r / w.seg_rows * w.seg_scale_rows + (w.row_phase + r % w.seg_rows) / MQ_FP8_BLOCK;
        float s = ((const float *)w.scale)[scale_row * w.scale_cols + (w.col_phase + c) / MQ_FP8_BLOCK];
        uint4 codes = *(const uint4 *)(w.data + r * w.cols + c);
        uint4 low = {scaled_pair(codes.x, s), scaled_pair(codes.x >> 16, s), scaled_pair(codes.y, s), scaled_pair(codes.y >> 16, s)};
        uint4 high = {scaled_pair(codes.z, s), scaled_pair(codes.z >> 16, s), scaled_pair(codes.w, s), scaled_pair(codes.w >> 16, s)};
        uint4 *to = (uint4 *)(out + (r - row0) * w.cols + c);
        to[0] = low;
        to[1] = high;
    }
}

static bool is_in_runs(const mq_matrix *w, const uint16_t *out)
{
    return w->scheme == MQ_SCHEME_FP8_BLOCK && w->cols % RUN == 0 && w->col_phase % RUN == 0 && (uintptr_t)w->data % 16 == 0 &&
           (uintptr_t)out % 16 == 0;
}

template <int SCHEME>
static __global__ void widen_to_bf16_kernel(uint16_t *out, weight_view w, int64_t row0, int64_t n)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < w.cols; c += (int64_t)gridDim.x * blockDim.x)
            out[i * w.cols + c] = mq_f32_to_bf16(weight_at<SCHEME>(w, row0 + i, c));
}

mq_status widen_to_bf16(mq_dev *dev, const char *what, uint16_t *out, const mq_matrix *w, int64_t row0, int64_t n_rows,
                        mq_err *err)
{
    if (is_in_runs(w, out))
        return launch(dev, err, what, widen_fp8_kernel, n_blocks(n_rows * (w->cols / RUN), THREADS), THREADS, 0, out, view_of(w),
                      row0, n_rows);
    dim3 grid(n_blocks(w->cols, THREADS), n_blocks(n_rows, 1, GRID_Y_LIMIT));
    return by_scheme(w, [=](auto scheme) {
        return launch(dev, err, what, widen_to_bf16_kernel<decltype(scheme)::value>, grid, THREADS, 0, out, view_of(w),
                      row0, n_rows);
    });
}

} // namespace mq_cuda
