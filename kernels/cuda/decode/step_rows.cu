/* What a decode step does between products: the rows of the embedding, residual and norm, SwiGLU.
 *
 * The norm has a block for each row: a critical path twice a layer, so a thread asks for all it needs before it adds
 * anything, four columns at a time where everything is aligned to 16 bytes.  Which thread adds which columns depends on
 * hidden alone. */
#include "kernels/cuda/weights.cuh"

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, NORM_THREADS = 512, QUADS = 4, NORM_STRIDE = 4 * NORM_THREADS };
static const int64_t KEPT_BYTES = 96 << 10; /* of a row in shared memory; what is longer is read again */

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
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        v[q] = load4<WIDE>(job.x + row_off, c + q * NORM_STRIDE, job.hidden);
    if (job.n_parts == 0)
        return;
    float4 sum[QUADS];
    const float *part = job.part + row_off;
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        sum[q] = load4<WIDE>(part, c + q * NORM_STRIDE, job.hidden);
#pragma unroll 4
    for (int k = 1; k < job.n_parts; k++) {
        const float *next = part + k * job.stride_parts;
#pragma unroll
        for (int q = 0; q < QUADS; q++)
            sum[q] = plus(sum[q], load4<WIDE>(next, c + q * NORM_STRIDE, job.hidden));
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        v[q] = plus(v[q], sum[q]);
}

template <bool WIDE> static __global__ void __launch_bounds__(NORM_THREADS) step_norm_kernel(mq_decode_norm job, bool keep)
{
    MQ_SHARED_DYNAMIC(shared, float); /* the new x, if keep */
    int64_t row_off = (int64_t)blockIdx.x * job.hidden;
    float *kept = keep ? shared : job.x + row_off;
    double sum = 0.0;
    wait_for_previous();
    let_next_start();
    for (int64_t c = 4 * threadIdx.x; c < job.hidden; c += QUADS * NORM_STRIDE) {
        float4 v[QUADS];
        add_parts<WIDE>(v, job, row_off, c);
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            int64_t at = c + q * NORM_STRIDE;
            sum = square_sum(sum, v[q]);
            if (job.n_parts > 0)
                store4<WIDE>(job.x + row_off, v[q], at, job.hidden);
            if (keep)
                store4<WIDE>(shared, v[q], at, job.hidden);
            if (job.capture)
                store4<WIDE>(job.capture + row_off, v[q], at, job.hidden);
        }
    }
    float mean = (float)(block_sum(sum) / (double)job.hidden + job.eps);
    float r = 1.0f / sqrtf(mean); /* three roundings; double would keep every thread waiting */
#pragma unroll 4
    for (int64_t c = 4 * threadIdx.x; c < job.hidden; c += NORM_STRIDE) { /* the thread's own columns again */
        float4 v = load4<WIDE>(kept, c, job.hidden), w = load4<WIDE>(job.weight, c, job.hidden);
        v = {w.x * (v.x * r), w.y * (v.y * r), w.z * (v.z * r), w.w * (v.w * r)};
        if (job.xn)
            store4<WIDE>(job.xn + row_off, v, c, job.hidden);
        if (job.xn32)
            store4<WIDE>(job.xn32 + row_off, v, c, job.hidden);
    }
}

mq_status norm(mq_dev *dev, const mq_decode_norm *job, mq_err *err)
{
    uintptr_t all = (uintptr_t)job->x | (uintptr_t)job->part | (uintptr_t)job->weight | (uintptr_t)job->xn |
                    (uintptr_t)job->xn32 | (uintptr_t)job->capture;
    bool wide = all % 16 == 0 && job->hidden % 4 == 0 && job->stride_parts % 4 == 0;
    int64_t bytes = job->hidden * (int64_t)sizeof(float);
    bool keep = bytes <= KEPT_BYTES;
    return launch_dependent(dev, err, "step norm", wide ? step_norm_kernel<true> : step_norm_kernel<false>, ROWS,
                            NORM_THREADS, keep ? (size_t)bytes : 0, *job, keep);
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
