/* The CUDA device: open and close, memory and copies, workspaces, and the table that lists the operations.
 *
 * One stream a device; copies from and to host memory have happened when they return.  GPUs before compute capability
 * 8.0 are refused by name.  count.cu, which needs no device, says what GPUs there are. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode/draft.cuh"
#include "kernels/cuda/exchange.cuh"

namespace mq_cuda {

enum { LEAST_MAJOR = 8 };

mq_status check(const mq_dev *dev, cudaError_t e, const char *what, mq_err *err)
{
    if (e == cudaSuccess)
        return MQ_OK;
    (void)cudaGetLastError(); /* said now; the next call starts clean */
    return mq_fail(err, MQ_E_DEVICE, "cuda %d: %s: %s", dev->ordinal, what, cudaGetErrorString(e));
}

static void dev_close(mq_dev *dev)
{
    if (!dev)
        return;
    (void)cudaSetDevice(dev->ordinal);
    blas_close(dev);
    for (int i = 0; i < WS_COUNT; i++)
        (void)cudaFree(dev->ws[i]);
    if (dev->stream)
        (void)cudaStreamDestroy(dev->stream);
    free(dev);
}

static mq_status open_stream(mq_dev *dev, mq_err *err)
{
    cudaDeviceProp prop;
    MQ_TRY(check(dev, cudaGetDeviceProperties(&prop, dev->ordinal), "properties", err));
    if (prop.major < LEAST_MAJOR)
        return mq_fail(err, MQ_E_DEVICE, "cuda %d: %s has compute capability %d.%d, expected 8.0 or later", dev->ordinal,
                       prop.name, prop.major, prop.minor);
    snprintf(dev->name, sizeof dev->name, "cuda %d, %s, %d multiprocessors", dev->ordinal, prop.name,
             prop.multiProcessorCount);
    dev->n_processors = prop.multiProcessorCount;
    bool is_9_0 = prop.major == 9 && prop.minor == 0; /* later ones run what is compiled for 8.0 */
    dev->can_start_early = is_9_0;
    dev->has_clusters = CLUSTERS_RUN && is_9_0;
    snprintf(dev->arch, sizeof dev->arch, "sm_%d%d", prop.major, prop.minor);
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "open", err));
    return check(dev, cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking), "stream", err);
}

static mq_status dev_open(mq_dev **out, int ordinal, int n_threads, const char *isa, mq_err *err)
{
    (void)n_threads;
    *out = NULL;
    int count = 0;
    if (isa)
        return mq_fail(err, MQ_E_ARG, "instruction set '%s': a GPU has none to choose", isa);
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || ordinal < 0 || ordinal >= count) {
        (void)cudaGetLastError();
        return mq_fail(err, MQ_E_DEVICE, "cuda %d: %s", ordinal,
                       e != cudaSuccess ? cudaGetErrorString(e) : "no such GPU");
    }
    mq_dev *dev = (mq_dev *)calloc(1, sizeof *dev);
    if (!dev)
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of host memory", ordinal);
    dev->ordinal = ordinal;
    mq_status st = open_stream(dev, err);
    if (st != MQ_OK) {
        dev_close(dev);
        return st;
    }
    *out = dev;
    return MQ_OK;
}

static const char *dev_name(const mq_dev *dev)
{
    return dev->name;
}

static const char *dev_arch(const mq_dev *dev)
{
    return dev->arch;
}

static void dev_clocks(const mq_dev *dev, int *core_mhz, int *memory_mhz)
{
    int khz[2] = {0, 0};
    if (cudaDeviceGetAttribute(&khz[0], cudaDevAttrClockRate, dev->ordinal) != cudaSuccess ||
        cudaDeviceGetAttribute(&khz[1], cudaDevAttrMemoryClockRate, dev->ordinal) != cudaSuccess)
        (void)cudaGetLastError(); /* not known, then */
    *core_mhz = khz[0] / 1000;
    *memory_mhz = khz[1] / 1000;
}

static mq_status set_precision(mq_dev *dev, mq_precision p, mq_err *err)
{
    if (p != MQ_PRECISION_F32 && p != MQ_PRECISION_BF16)
        return mq_fail(err, MQ_E_UNSUPPORTED, "cuda %d: precision %d", dev->ordinal, (int)p);
    dev->precision = p;
    return MQ_OK;
}

static mq_precision precision(const mq_dev *dev)
{
    return dev->precision;
}

static mq_status allocate(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    *out = NULL;
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "allocation", err));
    if (n_bytes >= 0 && cudaMalloc(out, n_bytes > 0 ? (size_t)n_bytes : 1) == cudaSuccess)
        return MQ_OK;
    (void)cudaGetLastError();
    *out = NULL;
    return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of memory (%lld bytes)", dev->ordinal, (long long)n_bytes);
}

static void release(mq_dev *dev, void *p)
{
    (void)cudaSetDevice(dev->ordinal);
    (void)cudaFree(p);
}

static mq_status alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    MQ_TRY(allocate(dev, out, n_bytes, err));
    cudaError_t e = cudaMemsetAsync(*out, 0, (size_t)n_bytes, dev->stream);
    if (e == cudaSuccess)
        return MQ_OK;
    release(dev, *out);
    *out = NULL;
    return check(dev, e, "alloc", err);
}

static mq_status transfer(mq_dev *dev, void *dst, const void *src, int64_t n_bytes, cudaMemcpyKind kind,
                          const char *what, mq_err *err)
{
    if (n_bytes <= 0)
        return MQ_OK;
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(dst, src, (size_t)n_bytes, kind, dev->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(dev->stream); /* the host's memory is the caller's again */
    return check(dev, e, what, err);
}

static mq_status upload(mq_dev *dev, void *dst, const void *src_host, int64_t n_bytes, mq_err *err)
{
    return transfer(dev, dst, src_host, n_bytes, cudaMemcpyHostToDevice, "upload", err);
}

mq_status download(mq_dev *dev, void *dst_host, const void *src, int64_t n_bytes, mq_err *err)
{
    return transfer(dev, dst_host, src, n_bytes, cudaMemcpyDeviceToHost, "download", err);
}

static mq_status copy(mq_dev *dev, void *dst, const void *src, int64_t n_bytes, mq_err *err)
{
    if (n_bytes <= 0)
        return MQ_OK;
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(dst, src, (size_t)n_bytes, cudaMemcpyDeviceToDevice, dev->stream);
    return check(dev, e, "copy", err);
}

static mq_status dev_sync(mq_dev *dev, mq_err *err)
{
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(dev->stream);
    return check(dev, e, "sync", err);
}

mq_status workspace(mq_dev *dev, workspace_slot slot, int64_t n_bytes, void **out, mq_err *err)
{
    if (n_bytes > dev->ws_bytes[slot] || !dev->ws[slot]) {
        release(dev, dev->ws[slot]); /* waits for the work that uses it */
        dev->ws[slot] = NULL;
        dev->ws_bytes[slot] = 0;
        MQ_TRY(allocate(dev, &dev->ws[slot], n_bytes, err));
        dev->ws_bytes[slot] = n_bytes;
    }
    *out = dev->ws[slot];
    return MQ_OK;
}

/* By name, so that the order of kernels.h may change. */
static constexpr mq_kernels table()
{
    mq_kernels t = {};
    t.name = "cuda";
    t.dev_open = dev_open;
    t.dev_close = dev_close;
    t.dev_name = dev_name;
    t.dev_arch = dev_arch;
    t.set_precision = set_precision;
    t.precision = precision;
    t.library = blas_library;
    t.alloc = alloc;
    t.release = release;
    t.upload = upload;
    t.download = download;
    t.dev_sync = dev_sync;
    t.memory = memory;
    t.host_alloc = host_alloc;
    t.host_free = host_free;
    t.fence_create = fence_create;
    t.fence_free = fence_free;
    t.upload_async = upload_async;
    t.fence_wait = fence_wait;
    t.linear = linear;
    t.linear_fixed = linear_fixed;
    t.embed = embed;
    t.rmsnorm = rmsnorm;
    t.rope = rope;
    t.kv_store = kv_store;
    t.attention = attention;
    t.attention_block = attention_block;
    t.swiglu = swiglu;
    t.route = route;
    t.experts = experts;
    t.gather = gather;
    t.pick = pick;
    t.put_cols = put_cols;
    t.scatter_add = scatter_add;
    t.add = add;
    t.sample = sample;
    t.top = top;
    t.logit_stats = logit_stats;
    t.copy = copy;
    t.widen = widen;
    t.axpby = axpby;
    t.gram = gram;
    t.cross = cross;
    t.diag = diag;
    t.set_diag = set_diag;
    t.factor = factor;
    t.solve = solve;
    t.search_scales = search_scales;
    t.nearest = nearest;
    t.weight_error = weight_error;
    t.ldlq = ldlq;
    t.quant_loss = quant_loss;
    t.refit_scales = refit_scales;
    t.descend = descend;
    t.keep_better = keep_better;
    t.calibration_bytes = calibration_bytes;
    t.pack_units = pack_units;
    t.fill = fill;
    t.sum_words = sum_words;
    t.dev_clocks = dev_clocks;
    t.exchange = &exchange_ops;
    t.decode = &decode_ops;
    t.draft = &draft_step_ops;
    return t;
}

} // namespace mq_cuda

extern "C" const mq_kernels mq_cuda_kernels;
extern "C" const mq_kernels mq_cuda_kernels = mq_cuda::table();
