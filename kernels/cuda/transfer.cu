/* Copies to the device that overlap the host's work, and how much memory is free.
 *
 * Uploads go to the device's one stream: behind the zeroing of freshly allocated memory, before whatever uses them.  A
 * fence is an event; waiting for it sleeps, because the processor has records to hash meanwhile. */
#include <stdlib.h>

#include "kernels/cuda/common.cuh"

struct mq_fence {
    cudaEvent_t event;
};

namespace mq_cuda {

mq_status memory(mq_dev *dev, int64_t *free_bytes, int64_t *total_bytes, mq_err *err)
{
    size_t n_free = 0, n_total = 0;
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess)
        e = cudaMemGetInfo(&n_free, &n_total);
    *free_bytes = (int64_t)n_free;
    *total_bytes = (int64_t)n_total;
    return check(dev, e, "memory", err);
}

mq_status host_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    *out = nullptr;
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "page-locked memory", err));
    if (n_bytes >= 0 && cudaHostAlloc(out, n_bytes > 0 ? (size_t)n_bytes : 1, cudaHostAllocDefault) == cudaSuccess)
        return MQ_OK;
    (void)cudaGetLastError();
    *out = nullptr;
    return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of page-locked host memory (%lld bytes)", dev->ordinal,
                   (long long)n_bytes);
}

void host_free(mq_dev *dev, void *p)
{
    (void)cudaSetDevice(dev->ordinal);
    if (p)
        (void)cudaFreeHost(p);
}

mq_status fence_create(mq_dev *dev, mq_fence **out, mq_err *err)
{
    *out = nullptr;
    mq_fence *f = (mq_fence *)calloc(1, sizeof *f);
    if (!f)
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of host memory", dev->ordinal);
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&f->event, cudaEventDisableTiming | cudaEventBlockingSync);
    if (e != cudaSuccess) {
        free(f);
        return check(dev, e, "fence", err);
    }
    *out = f;
    return MQ_OK;
}

void fence_free(mq_dev *dev, mq_fence *f)
{
    if (!f)
        return;
    (void)cudaSetDevice(dev->ordinal);
    (void)cudaEventDestroy(f->event);
    free(f);
}

mq_status upload_async(mq_dev *dev, void *dst, const void *src_host, int64_t n_bytes, mq_fence *f, mq_err *err)
{
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess && n_bytes > 0)
        e = cudaMemcpyAsync(dst, src_host, (size_t)n_bytes, cudaMemcpyHostToDevice, dev->stream);
    if (e == cudaSuccess)
        e = cudaEventRecord(f->event, dev->stream);
    return check(dev, e, "upload", err);
}

mq_status fence_wait(mq_dev *dev, mq_fence *f, mq_err *err)
{
    cudaError_t e = cudaSetDevice(dev->ordinal);
    if (e == cudaSuccess)
        e = cudaEventSynchronize(f->event);
    return check(dev, e, "upload", err);
}

} // namespace mq_cuda
