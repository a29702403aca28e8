/* What a decode step does between products: the rows of the embedding, residual and norm, SwiGLU.
 *
 * The norm has a block for each row: a critical path twice a layer, so a thread asks for all it needs before it adds
 * anything (for the weights before it waits), four columns at a time where everything is aligned to 16 bytes, and keeps
 * them.  Which thread adds which columns depends on hidden alone. */
#include "kernels/cuda/weights.cuh"

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, NORM_THREADS = 768, NORM_WARPS = NORM_THREADS / WARP, QUADS = 2, NORM_STRIDE = 4 * NORM_THREADS };
enum { KEPT_COLS = QUADS * NORM_STRIDE, PARTS_AT_ONCE = 4 };

/* ---- embedding ---- */

template <int SCHEME>
static __global__ void step_embed_kernel(float *x, weight_view w, const mq_decode_input *in)
{
    wait_for_previous();
    let_next_start();
    int64_t i = blockIdx.y, c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c < w.cols)
        x[i * w.cols + c] = i < in->n ? weight_at<SCHEME>(w, in->ids[i], c) : 0.0f;
}

mq_status embed(mq_dev *dev, float *x, const mq_matrix *embedding, const mq_decode_input *in, mq_err *err)
{
    dim3 grid((unsigned)((embedding->cols + THREADS - 1) / THREADS), ROWS);
    return by_scheme(embedding, [=](auto scheme) {
        return launch_dependent(dev, err, "step embed", step_embed_kernel<decltype(scheme)::value>, grid, THREADS, 0, x,
                                view_of(embedding), in);
    });
}

/* ---- residual and norm ---- */

/* Four columns from c; those from hidden on are 0 and not written. */
template <bool WIDE> static __device__ __forceinline__ float4 load4(const float *p, int64_t c, int64_t hidden)
{
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (WIDE)
        return c < hidden ? *(const float4 *)(p + c) : v;
    v.x = c < hidden ? p[c] : 0.0f;
    v.y = c + 1 < hidden ? p[c + 1] : 0.0f;
    v.z = c + 2 < hidden ? p[c + 2] : 0.0f;
    v.w = c + 3 < hidden ? p[c + 3] : 0.0f;
    return v;
}

template <bool WIDE> static __device__ __forceinline__ void store4(float *p, float4 v, int64_t c, int64_t hidden)
{
    if (WIDE) {
        if (c < hidden)
            *(float4 *)(p + c) = v;
        return;
    }
    const float e[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (c + i < hidden)
            p[c + i] = e[i];
}

template <bool WIDE> static __device__ __forceinline__ void store4(uint16_t *p, float4 v, int64_t c, int64_t hidden)
{
    if (WIDE) {
        uint2 pairs = {bf16x2_of_floats(v.x, v.y), bf16x2_of_floats(v.z, v.w)};
        if (c < hidden)
            *(uint2 *)(p + c) = pairs;
        return;
    }
    const float e[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (c + i < hidden)
            p[c + i] = (uint16_t)bf16x2_of_floats(e[i], 0.0f);
}

static __device__ __forceinline__ float4 plus(float4 a, float4 b)
{
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

static __device__ __forceinline__ double square_sum(double sum, float4 v)
{
    sum = fma((double)v.x, (double)v.x, sum);
    sum = fma((double)v.y, (double)v.y, sum);
    sum = fma((double)v.z, (double)v.z, sum);
    return fma((double)v.w, (double)v.w, sum);
}

/* x + the sum of the parts: QUADS times four columns of thread's, from column c on. */
template <bool WIDE>
static __device__ __forceinline__ void add_parts(float4 v[QUADS], const mq_decode_norm &job, int64_t row_off, int64_t c)
{
    float4 sum[QUADS] = {};
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        v[q] = load4<WIDE>(job.x + row_off, c + q * NORM_STRIDE, job.hidden);
    for (int k0 = 0; k0 < job.n_parts; k0 += PARTS_AT_ONCE) {
        const float *part = job.part + row_off + k0 * job.stride_parts;
        float4 next[PARTS_AT_ONCE][QUADS] = {};
#pragma unroll
        for (int k = 0; k < PARTS_AT_ONCE; k++)
#pragma unroll
            for (int q = 0; q < QUADS; q++)
                if (k0 + k < job.n_parts)
                    next[k][q] = load4<WIDE>(part + k * job.stride_parts, c + q * NORM_STRIDE, job.hidden);
#pragma unroll
        for (int k = 0; k < PARTS_AT_ONCE; k++)
#pragma unroll
            for (int q = 0; q < QUADS; q++)
                if (k0 + k < job.n_parts)
                    sum[q] = k0 + k == 0 ? next[k][q] : plus(sum[q], next[k][q]);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        if (job.n_parts > 0)
            v[q] = plus(v[q], sum[q]);
}

/* All threads get the result: by a tree in each warp, and across the warps by the same tree in every warp. */
static __device__ __forceinline__ double sum_of_block(double sum)
{
    MQ_SHARED(of_warp, double[NORM_WARPS]);
    unsigned lane = threadIdx.x % WARP;
    sum = warp_sum(sum);
    if (lane == 0)
        of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    return warp_sum(lane < NORM_WARPS ? of_warp[lane] : 0.0);
}

template <bool WIDE>
static __device__ __forceinline__ void store_x(const mq_decode_norm &job, const float4 v[QUADS], int64_t row_off, int64_t c)
{
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        if (job.n_parts > 0)
            store4<WIDE>(job.x + row_off, v[q], c + q * NORM_STRIDE, job.hidden);
        if (job.capture)
            store4<WIDE>(job.capture + row_off, v[q], c + q * NORM_STRIDE, job.hidden);
    }
}

template <bool WIDE>
static __device__ __forceinline__ void store_normed(const mq_decode_norm &job, const float4 v[QUADS], const float4 w[QUADS], float r,
                                                    int64_t row_off, int64_t c)
{
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        float4 y = {w[q].x * (v[q].x * r), w[q].y * (v[q].y * r), w[q].z * (v[q].z * r), w[q].w * (v[q].w * r)};
        if (job.xn)
            store4<WIDE>(job.xn + row_off, y, c + q * NORM_STRIDE, job.hidden);
        if (job.xn32)
            store4<WIDE>(job.xn32 + row_off, y, c + q * NORM_STRIDE, job.hidden);
    }
}

/* KEEP: hidden is at most KEPT_COLS, the thread's columns stay in registers; otherwise they are read again. */
template <bool WIDE, bool KEEP> static __global__ void __launch_bounds__(NORM_THREADS) step_norm_kernel(mq_decode_norm job)
{
    int64_t row_off = (int64_t)blockIdx.x * job.hidden, c0 = 4 * threadIdx.x;
    float4 v[QUADS], w[QUADS];
    double sum = 0.0;
    let_next_start();
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        w[q] = load4<WIDE>(job.weight, c0 + q * NORM_STRIDE, job.hidden);
    wait_for_previous();
    for (int64_t c = c0; KEEP ? c == c0 : c < job.hidden; c += KEPT_COLS) {
        add_parts<WIDE>(v, job, row_off, c);
        store_x<WIDE>(job, v, row_off, c);
#pragma unroll
        for (int q = 0; q < QUADS; q++)
            sum = square_sum(sum, v[q]);
    }
    float mean = (float)(sum_of_block(sum) / (double)job.hidden + job.eps);
    float r = 1.0f / sqrtf(mean); /* three roundings; double would keep every thread waiting */
    for (int64_t c = c0; KEEP ? c == c0 : c < job.hidden; c += KEPT_COLS) {
#pragma unroll
        for (int q = 0; q < QUADS && !KEEP; q++) {
            v[q] = load4<WIDE>(job.x + row_off, c + q * NORM_STRIDE, job.hidden);
            w[q] = load4<WIDE>(job.weight, c + q * NORM_STRIDE, job.hidden);
        }
        store_normed<WIDE>(job, v, w, r, row_off, c);
    }
}

mq_status norm(mq_dev *dev, const mq_decode_norm *job, mq_err *err)
{
    uintptr_t all = (uintptr_t)job->x | (uintptr_t)job->part | (uintptr_t)job->weight | (uintptr_t)job->xn |
                    (uintptr_t)job->xn32 | (uintptr_t)job->capture;
    bool wide = all % 16 == 0 && job->hidden % 4 == 0 && job->stride_parts % 4 == 0, keep = job->hidden <= KEPT_COLS;
    auto kernel = wide ? keep ? step_norm_kernel<true, true> : step_norm_kernel<true, false>
                  : keep ? step_norm_kernel<false, true>
                         : step_norm_kernel<false, false>;
    return launch_dependent(dev, err, "step norm", kernel, ROWS, NORM_THREADS, 0, *job);
}

/* ---- SwiGLU ---- */

static __global__ void step_swiglu_kernel(uint16_t *h, const float *gate, const float *up, int64_t count)
{
    wait_for_previous();
    let_next_start();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        h[i] = mq_f32_to_bf16(gate[i] / (1.0f + expf(-gate[i])) * up[i]);
}

mq_status swiglu(mq_dev *dev, uint16_t *h, const float *gate, const float *up, int64_t width, mq_err *err)
{
    int64_t count = ROWS * width;
    return launch_dependent(dev, err, "step swiglu", step_swiglu_kernel, (unsigned)((count + THREADS - 1) / THREADS),
                            THREADS, 0, h, gate, up, count);
}

} // namespace decode
} // namespace mq_cuda
