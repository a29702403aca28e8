/* What a decode step does between products: the rows of the embedding, residual and norm, SwiGLU.
 *
 * The norm is a critical path twice a layer.  A row is cut into slices of SLICE columns, a thread having four columns of a
 * slice; a thread asks for all it needs before it adds anything, for the weights before it waits.  Slices are shared out to the
 * blocks of a cluster, which tell each other their sums; where there are no clusters, or more slices than a cluster has
 * blocks, to parts of one block.  Which columns make one sum, and the order of the sums, depend on hidden alone. */
#include "kernels/cuda/weights.cuh"

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum {
    THREADS = 256,
    SLICE_THREADS = 256,
    SLICE_WARPS = SLICE_THREADS / WARP,
    SLICE = 4 * SLICE_THREADS,
    MOST_SLICES_OF_BLOCK = 4, /* at a time */
    MOST_IN_CLUSTER = 8,
    PARTS_AT_ONCE = 8
};

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

/* Four columns of x + the sum of the parts. */
template <bool WIDE> static __device__ __forceinline__ float4 add_parts(const mq_decode_norm &job, int64_t row_off, int64_t c)
{
    float4 v = load4<WIDE>(job.x + row_off, c, job.hidden), sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k0 = 0; k0 < job.n_parts; k0 += PARTS_AT_ONCE) {
        const float *part = job.part + row_off + k0 * job.stride_parts;
        float4 next[PARTS_AT_ONCE] = {};
#pragma unroll
        for (int k = 0; k < PARTS_AT_ONCE; k++)
            if (k0 + k < job.n_parts)
                next[k] = load4<WIDE>(part + k * job.stride_parts, c, job.hidden);
#pragma unroll
        for (int k = 0; k < PARTS_AT_ONCE; k++)
            sum = plus(sum, next[k]); /* 0 behind the last */
    }
    return job.n_parts > 0 ? plus(v, sum) : v;
}

template <bool WIDE>
static __device__ __forceinline__ void store_normed(const mq_decode_norm &job, float4 v, float4 w, float r, int64_t row_off,
                                                    int64_t c)
{
    float4 y = {w.x * (v.x * r), w.y * (v.y * r), w.z * (v.z * r), w.w * (v.w * r)};
    if (job.xn)
        store4<WIDE>(job.xn + row_off, y, c, job.hidden);
    if (job.xn32)
        store4<WIDE>(job.xn32 + row_off, y, c, job.hidden);
}

/* sums [n_sums] of warps, added the same way by every warp. */
static __device__ __forceinline__ double add_sums(const double *sums, int n_sums)
{
    double sum = 0.0;
    for (int i = (int)(threadIdx.x % WARP); i < n_sums; i += WARP)
        sum += sums[i];
    return warp_sum(sum);
}

/* A row is blockIdx.y.  CLUSTER: gridDim.x blocks are a cluster and have a slice each, which stays in registers. */
template <bool WIDE, bool CLUSTER>
static __global__ void __launch_bounds__(CLUSTER ? SLICE_THREADS : MOST_SLICES_OF_BLOCK *SLICE_THREADS)
    step_norm_kernel(mq_decode_norm job, int n_slices)
{
    MQ_SHARED_DYNAMIC(sums, double); /* [n_slices, SLICE_WARPS] */
    int first = (int)(CLUSTER ? blockIdx.x : threadIdx.x / SLICE_THREADS);
    int at_once = (int)(CLUSTER ? gridDim.x : blockDim.x / SLICE_THREADS), lane = (int)(threadIdx.x % WARP);
    int64_t row_off = (int64_t)blockIdx.y * job.hidden, c0 = threadIdx.x % SLICE_THREADS * 4;
    float4 v = {}, w = load4<WIDE>(job.weight, c0 + first * SLICE, job.hidden);
    let_next_start();
    if (CLUSTER)
        cluster_barrier(); /* all blocks have started: their shared memory may be written */
    wait_for_previous();
    for (int s = first; s < n_slices; s += at_once) {
        int64_t c = c0 + s * SLICE;
        v = add_parts<WIDE>(job, row_off, c);
        if (job.n_parts > 0)
            store4<WIDE>(job.x + row_off, v, c, job.hidden);
        if (job.capture)
            store4<WIDE>(job.capture + row_off, v, c, job.hidden);
        double sum = warp_sum(square_sum(0.0, v));
        double *to = sums + s * SLICE_WARPS + threadIdx.x % SLICE_THREADS / WARP;
        if (CLUSTER && lane < at_once)
            store_cluster(to, sum, (unsigned)lane);
        else if (!CLUSTER && lane == 0)
            *to = sum;
    }
    if (CLUSTER)
        cluster_barrier();
    else
        __syncthreads();
    float mean = (float)(add_sums(sums, n_slices * SLICE_WARPS) / (double)job.hidden + job.eps);
    float r = 1.0f / sqrtf(mean); /* three roundings; double would keep every thread waiting */
    for (int s = first; s < n_slices; s += at_once) {
        if (!CLUSTER) { /* the thread's own columns again */
            v = load4<WIDE>(job.x + row_off, c0 + s * SLICE, job.hidden);
            w = load4<WIDE>(job.weight, c0 + s * SLICE, job.hidden);
        }
        store_normed<WIDE>(job, v, w, r, row_off, c0 + s * SLICE);
    }
}

mq_status norm(mq_dev *dev, const mq_decode_norm *job, mq_err *err)
{
    uintptr_t all = (uintptr_t)job->x | (uintptr_t)job->part | (uintptr_t)job->weight | (uintptr_t)job->xn |
                    (uintptr_t)job->xn32 | (uintptr_t)job->capture;
    bool wide = all % 16 == 0 && job->hidden % 4 == 0 && job->stride_parts % 4 == 0;
    int n_slices = (int)((job->hidden + SLICE - 1) / SLICE);
    size_t room = (size_t)(n_slices * SLICE_WARPS) * sizeof(double);
    if (dev->has_clusters && n_slices <= MOST_IN_CLUSTER)
        return launch_cluster(dev, err, "step norm", wide ? step_norm_kernel<true, true> : step_norm_kernel<false, true>,
                              dim3((unsigned)n_slices, ROWS), SLICE_THREADS, room, *job, n_slices);
    int at_once = n_slices < MOST_SLICES_OF_BLOCK ? n_slices : MOST_SLICES_OF_BLOCK;
    return launch_dependent(dev, err, "step norm", wide ? step_norm_kernel<true, false> : step_norm_kernel<false, false>,
                            dim3(1, ROWS), (unsigned)(at_once * SLICE_THREADS), room, *job, n_slices);
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
