/* Filling a matrix with counted pseudo-random content (kernels/fill.h), and the sum of words.
 *
 * Filling: a thread a word of 8 bytes, rows in the grid's y; words that lie in a row only in part, and rows that do not
 * start on a word, are written byte by byte.  Summing: every thread has several 16-byte loads under way, which is what a
 * streaming read of memory can do; sums of integers, so their order is free. */
#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { FILL_THREADS = 256, SUM_THREADS = 512, SUM_LOADS = 8, SUM_BLOCKS = 4 /* a multiprocessor */ };

static __global__ void fill_kernel(uint8_t *dst, mq_fill f, mq_fill_span s)
{
    for (int64_t row = blockIdx.y; row < s.n_rows; row += gridDim.y) {
        int64_t first = s.first + row * s.stride, end = first + s.row_bytes; /* bytes of the whole matrix */
        uint8_t *to = dst + row * s.row_bytes;
        int64_t stop = (end + 7) / 8;
        for (int64_t w = first / 8 + (int64_t)blockIdx.x * blockDim.x + threadIdx.x; w < stop;
             w += (int64_t)gridDim.x * blockDim.x) {
            uint64_t word = mq_fill_content(&f, (uint64_t)w);
            int64_t at = 8 * w - first;
            if (at >= 0 && at + 8 <= s.row_bytes && (uintptr_t)(to + at) % 8 == 0) {
                *(uint64_t *)(to + at) = word;
                continue;
            }
            for (int i = 0; i < 8; i++)
                if (at + i >= 0 && at + i < s.row_bytes)
                    to[at + i] = (uint8_t)(word >> 8 * i);
        }
    }
}

mq_status fill(mq_dev *dev, void *dst, const mq_fill *f, mq_err *err)
{
    mq_fill_span s = mq_fill_span_of(f);
    if (s.row_bytes == 0)
        return MQ_OK;
    dim3 grid(n_blocks(s.row_bytes / 8 + 2, FILL_THREADS), n_blocks(s.n_rows, 1, GRID_Y_LIMIT));
    return launch(dev, err, "fill", fill_kernel, grid, FILL_THREADS, 0, (uint8_t *)dst, *f, s);
}

static __device__ __forceinline__ unsigned long long sum_of(uint4 v)
{
    return ((unsigned long long)v.y << 32 | v.x) + ((unsigned long long)v.w << 32 | v.z);
}

static __global__ void __launch_bounds__(SUM_THREADS) sum_words_kernel(unsigned long long *sum, const uint4 *pairs,
                                                                       int64_t n_pairs, const uint64_t *odd)
{
    const int64_t stride = (int64_t)gridDim.x * SUM_THREADS;
    int64_t i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    unsigned long long total = 0;
    for (; i + (SUM_LOADS - 1) * stride < n_pairs; i += SUM_LOADS * stride) {
        uint4 v[SUM_LOADS];
#pragma unroll
        for (int k = 0; k < SUM_LOADS; k++)
            v[k] = load_weights16(pairs + i + k * stride);
#pragma unroll
        for (int k = 0; k < SUM_LOADS; k++)
            total += sum_of(v[k]);
    }
    for (; i < n_pairs; i += stride)
        total += sum_of(load_weights16(pairs + i));
    total = block_sum(total);
    if (threadIdx.x != 0)
        return;
    if (blockIdx.x == 0 && odd)
        total += *odd;
    atomicAdd(sum, total);
}

mq_status sum_words(mq_dev *dev, uint64_t *sum, const void *p, int64_t n_words, mq_err *err)
{
    if (n_words <= 0)
        return MQ_OK;
    int64_t n_pairs = n_words / 2, most = (int64_t)dev->n_processors * SUM_BLOCKS;
    const uint64_t *odd = n_words % 2 ? (const uint64_t *)p + n_words - 1 : NULL;
    return launch(dev, err, "sum_words", sum_words_kernel, n_blocks(n_pairs + 1, SUM_THREADS, most), SUM_THREADS, 0,
                  (unsigned long long *)sum, (const uint4 *)p, n_pairs, odd);
}

} // namespace mq_cuda
