/* F32 weights that are BF16 values all, as which some routers come: half the bytes, the same numbers.
 *
 * The upper halves go to a workspace and back, so that no thread overwrites what another one still reads. */
#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, MOST_BLOCKS = 1024 };

/* *is_wider is set where a word has a lower half. */
static __global__ void upper_halves_kernel(uint16_t *out, int32_t *is_wider, const uint32_t *words, int64_t count)
{
    bool wider = false;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t word = words[i];
        wider = wider || (word & 0xffffu);
        out[i] = (uint16_t)(word >> 16);
    }
    if (wider)
        *is_wider = 1; /* whoever writes */
}

mq_status narrow(mq_dev *dev, mq_matrix *w, mq_err *err)
{
    int64_t count = w->rows * w->cols;
    if (w->scheme != MQ_SCHEME_F32 || count == 0)
        return MQ_OK;
    void *halves, *flag;
    int32_t is_wider = 0;
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "narrow", err));
    MQ_TRY(workspace(dev, WS_HALF, count * (int64_t)sizeof(uint16_t), &halves, err));
    MQ_TRY(workspace(dev, WS_SMALL, sizeof is_wider, &flag, err));
    MQ_TRY(check(dev, cudaMemsetAsync(flag, 0, sizeof is_wider, dev->stream), "narrow", err));
    MQ_TRY(launch(dev, err, "narrow", upper_halves_kernel, n_blocks(count, THREADS, MOST_BLOCKS), THREADS, 0,
                  (uint16_t *)halves, (int32_t *)flag, (const uint32_t *)w->data, count));
    MQ_TRY(download(dev, &is_wider, flag, sizeof is_wider, err));
    if (is_wider)
        return MQ_OK;
    MQ_TRY(check(dev,
                 cudaMemcpyAsync((void *)w->data, halves, (size_t)count * sizeof(uint16_t), cudaMemcpyDeviceToDevice,
                                 dev->stream),
                 "narrow", err));
    w->scheme = MQ_SCHEME_BF16;
    return MQ_OK;
}

} // namespace decode
} // namespace mq_cuda
