/* What every file of kernels/cuda shares: the device, errors, launches, sums across threads.
 *
 * All of it lives in namespace mq_cuda, so that the copy compiled for the host (tests/emulator) can stand beside the
 * real one under another name.  Kernels are compiled without contraction of a * b + c, as the host code is: fmaf
 * stands where a fused multiply-add is meant.  kernels/kernels.h documents each operation. */
#ifndef MQ_KERNELS_CUDA_COMMON_CUH
#define MQ_KERNELS_CUDA_COMMON_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include <utility>

#include "kernels/cuda/ptx.cuh"
#include "kernels/kernels.h"
#include "src/float.h"

namespace mq_cuda {
struct blas;

/* Buffers that grow on demand and are kept until the device closes. */
enum workspace_slot {
    WS_WEIGHTS, WS_STATS, WS_MOMENT, WS_ROWS, WS_SUMS, WS_SMALL, WS_HALF, WS_GROUPS, WS_KEYS, WS_PARTS, WS_COUNT
};
} // namespace mq_cuda

struct mq_dev {
    int ordinal;
    char name[320], arch[32];
    int n_processors;     /* multiprocessors */
    bool can_start_early; /* programmatic dependent launch */
    bool has_clusters;    /* of blocks: ptx.cuh */
    mq_precision precision;
    cudaStream_t stream;
    mq_cuda::blas *blas; /* NULL until first used */
    void *ws[mq_cuda::WS_COUNT];
    int64_t ws_bytes[mq_cuda::WS_COUNT];
};

namespace mq_cuda {

/* MQ_E_DEVICE with CUDA's text unless e is success; what names the operation. */
mq_status check(const mq_dev *dev, cudaError_t e, const char *what, mq_err *err);

/* At least n_bytes, 256-byte aligned, contents undefined; dev's until the next call for this slot. */
mq_status workspace(mq_dev *dev, workspace_slot slot, int64_t n_bytes, void **out, mq_err *err);

/* To host memory, there on return. */
mq_status download(mq_dev *dev, void *dst_host, const void *src, int64_t n_bytes, mq_err *err);

/* Launch on dev's stream; an empty grid is done at once.  early: the kernel may start while the last one before it ends
 * (programmatic dependent launch, compute capability 9.0; otherwise a plain launch).  cluster: of blocks, 1 for none. */
template <class... P, class... A>
mq_status launch_when(mq_dev *dev, mq_err *err, const char *what, bool early, unsigned cluster, void (*kernel)(P...), dim3 grid,
                      unsigned threads, size_t shared_bytes, A &&...args)
{
    if (grid.x == 0 || grid.y == 0)
        return MQ_OK;
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute attributes[2] = {};
    c.gridDim = grid;
    c.blockDim = dim3(threads);
    c.dynamicSmemBytes = shared_bytes;
    c.stream = dev->stream;
    c.attrs = attributes;
    if (early && dev->can_start_early) {
        attributes[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[c.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attributes[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[c.numAttrs++].val.clusterDim = {cluster, 1, 1};
    }
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess && shared_bytes > 32 << 10) /* 48 KB without asking, what a kernel has of its own included */
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (e == cudaSuccess)
        e = cudaLaunchKernelEx(&c, kernel, std::forward<A>(args)...);
    return check(dev, e, what, err);
}

template <class... P, class... A>
mq_status launch(mq_dev *dev, mq_err *err, const char *what, void (*kernel)(P...), dim3 grid, unsigned threads,
                 size_t shared_bytes, A &&...args)
{
    return launch_when(dev, err, what, false, 1, kernel, grid, threads, shared_bytes, std::forward<A>(args)...);
}

/* For kernels that call wait_for_previous() before they touch what work queued before them wrote or reads. */
template <class... P, class... A>
mq_status launch_dependent(mq_dev *dev, mq_err *err, const char *what, void (*kernel)(P...), dim3 grid, unsigned threads,
                           size_t shared_bytes, A &&...args)
{
    return launch_when(dev, err, what, true, 1, kernel, grid, threads, shared_bytes, std::forward<A>(args)...);
}

/* The same, the blocks of a row of the grid (at most 8) being a cluster; for devices that has_clusters. */
template <class... P, class... A>
mq_status launch_cluster(mq_dev *dev, mq_err *err, const char *what, void (*kernel)(P...), dim3 grid, unsigned threads,
                         size_t shared_bytes, A &&...args)
{
    return launch_when(dev, err, what, true, grid.x, kernel, grid, threads, shared_bytes, std::forward<A>(args)...);
}

/* Blocks for count items, per of them a block; kernels stride over what is beyond the limit. */
static inline unsigned n_blocks(int64_t count, int64_t per, int64_t limit = 1 << 20)
{
    int64_t n = (count + per - 1) / per;
    return (unsigned)(n < limit ? n : limit);
}
enum { GRID_Y_LIMIT = 65535 };

/* ---- sums in a fixed order: across the 32 lanes, and across a block of up to 32 warps ---- */

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;

/* Both l and l + 16, + 8, + 4, + 2, + 1: the same tree in every lane. */
template <class T> static __device__ __forceinline__ T warp_sum(T v)
{
    for (int step = 16; step; step /= 2)
        v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

/* All threads get the result; blockDim.x a multiple of 32, all threads of the block call. */
template <class T> static __device__ __forceinline__ T block_sum(T v)
{
    MQ_SHARED(parts, T[WARP]);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    v = warp_sum(v);
    __syncthreads(); /* a call before this one has read parts */
    if (lane == 0)
        parts[warp] = v;
    __syncthreads();
    v = lane < blockDim.x / WARP ? parts[lane] : T(0);
    return warp_sum(v);
}

/* A value and its index: the larger value, the lower index among equals.  NaN is never larger. */
struct ranked {
    float value;
    int32_t id;
};
static __device__ __forceinline__ bool ranks_before(ranked a, ranked b)
{
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}
static __device__ __forceinline__ ranked warp_best(ranked a)
{
    for (int step = 16; step; step /= 2) {
        ranked b = {__shfl_xor_sync(ALL_LANES, a.value, step), __shfl_xor_sync(ALL_LANES, a.id, step)};
        a = ranks_before(b, a) ? b : a;
    }
    return a;
}
static __device__ __forceinline__ ranked block_best(ranked a)
{
    MQ_SHARED(parts, ranked[WARP]);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    a = warp_best(a);
    __syncthreads();
    if (lane == 0)
        parts[warp] = a;
    __syncthreads();
    a = parts[lane < blockDim.x / WARP ? lane : 0];
    return warp_best(a);
}

static inline bool is_packed(const mq_matrix *w)
{
    return w->scheme == MQ_SCHEME_INT4 || w->scheme == MQ_SCHEME_MXFP4;
}

/* ---- the operations, one file a group ---- */

mq_status linear(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);
/* Upper bound of what linear keeps of widened weights for matrices [rows, cols] and [cols, rows]. */
int64_t linear_bytes(int64_t rows, int64_t cols);
mq_status linear_fixed(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);
mq_status widen(mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n_rows, mq_err *err);
mq_status embed(mq_dev *dev, float *out, const mq_matrix *m, const int32_t *ids, int64_t n, mq_err *err);
mq_status rmsnorm(mq_dev *dev, float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols,
                  mq_err *err);
mq_status swiglu(mq_dev *dev, float *h, const float *gate, const float *up, bool interleaved, int64_t n, int64_t width,
                 mq_err *err);
mq_status rope(mq_dev *dev, float *x, int64_t n, int n_heads, int head_dim, int rotary_dims, double theta, int64_t pos0,
               mq_err *err);
mq_status kv_store(mq_dev *dev, const mq_kv *kv, const float *k, const float *v, float v_scale, int64_t n, int64_t pos0,
                   mq_err *err);
mq_status attention(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                    int window, int64_t n, int64_t pos0, mq_err *err);
mq_status attention_block(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                          int window, int64_t n, int64_t pos0, mq_err *err);
mq_status route(mq_dev *dev, int32_t *ids, float *coef, float *margin, const float *logits, const float *bias, int64_t n,
                int n_experts, int topk, bool norm, float scaling, mq_err *err);
mq_status experts(mq_dev *dev, float *y, const float *x, const int32_t *ids, const float *coef,
                  const mq_decode_expert_table *t, int64_t n, mq_err *err);
mq_status gather(mq_dev *dev, float *out, const float *src, const int32_t *index, int64_t n, int64_t cols, mq_err *err);
mq_status pick(mq_dev *dev, float *out, const float *x, const int32_t *index, int64_t n, int64_t cols, mq_err *err);
mq_status put_cols(mq_dev *dev, float *y, int64_t y_cols, int64_t col0, const float *x, int64_t n, int64_t cols,
                   mq_err *err);
mq_status scatter_add(mq_dev *dev, float *y, const float *x, const int32_t *index, const float *coef, int64_t n,
                      int64_t cols, mq_err *err);
mq_status add(mq_dev *dev, float *y, const float *x, int64_t count, mq_err *err);
mq_status axpby(mq_dev *dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err);
mq_status sample(mq_dev *dev, int32_t *tokens, const float *logits, const mq_sampling *s, int64_t n, int64_t vocab,
                 int64_t pos0, mq_err *err);
mq_status top(mq_dev *dev, int32_t *tokens, float *prob, const float *logits, int64_t n, int64_t vocab, mq_err *err);
mq_status logit_stats(mq_dev *dev, mq_logit_stats *stats, const float *a, const float *b, const int32_t *targets,
                      int64_t n, int64_t vocab, mq_err *err);

mq_status gram(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err);
mq_status cross(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n, int64_t cols,
                int64_t y_cols, mq_err *err);
mq_status diag(mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err);
mq_status set_diag(mq_dev *dev, float *g, const float *values, int64_t n, mq_err *err);
mq_status factor(mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n,
                 mq_err *err);
mq_status solve(mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm, int64_t rows,
                int64_t n, mq_err *err);
mq_status search_scales(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                        int group, mq_err *err);
mq_status nearest(mq_dev *dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols, int group,
                  mq_err *err);
mq_status weight_error(mq_dev *dev, double *err2, double *norm2, const uint8_t *codes, const float *w,
                       const float *scale, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status ldlq(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a,
               const float *d, const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status quant_loss(mq_dev *dev, float *loss, float *norm, const uint8_t *codes, const float *w, const float *scale,
                     const float *g, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status refit_scales(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w, const float *g,
                       int64_t rows, int64_t cols, int group, mq_err *err);
mq_status descend(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                  int n_passes, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status keep_better(mq_dev *dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept, const uint8_t *codes_new,
                      const float *scale_new, const float *loss_new, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status fill(mq_dev *dev, void *dst, const mq_fill *f, mq_err *err);
mq_status sum_words(mq_dev *dev, uint64_t *sum, const void *p, int64_t n_words, mq_err *err);
int64_t calibration_bytes(const mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n);
mq_status pack_units(mq_dev *dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a, const uint8_t *codes_b,
                     const float *scale_b, int64_t rows, int64_t cols, int group, mq_err *err);

/* transfer.cu */
mq_status memory(mq_dev *dev, int64_t *free_bytes, int64_t *total_bytes, mq_err *err);
mq_status host_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err);
void host_free(mq_dev *dev, void *p);
mq_status fence_create(mq_dev *dev, mq_fence **out, mq_err *err);
void fence_free(mq_dev *dev, mq_fence *f);
mq_status upload_async(mq_dev *dev, void *dst, const void *src_host, int64_t n_bytes, mq_fence *f, mq_err *err);
mq_status fence_wait(mq_dev *dev, mq_fence *f, mq_err *err);

} // namespace mq_cuda

#endif
