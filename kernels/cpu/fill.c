/* Filling a matrix with counted pseudo-random content, and the sum of words: writing and reading memory at its speed.
 *
 * The content is kernels/fill.h's; here is only who writes which rows.  A row is cut into pieces so that one long row
 * also keeps every thread busy; pieces never change what is written. */
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { PIECE_BYTES = 1 << 16 };

/* Bytes [from, from + n_bytes) of the whole matrix.  Words that lie in it only in part are cut. */
static void fill_piece(uint8_t *to, const mq_fill *f, int64_t from, int64_t n_bytes)
{
    int64_t at = 0;
    while (at < n_bytes) {
        int64_t skip = (from + at) % 8, n = 8 - skip < n_bytes - at ? 8 - skip : n_bytes - at;
        uint64_t word = mq_fill_content(f, (uint64_t)(from + at) / 8) >> 8 * skip;
        if (n == 8)
            memcpy(to + at, &word, 8);
        else
            memcpy(to + at, &word, (size_t)n);
        at += n;
    }
}

mq_status mq_cpu_fill(mq_dev *dev, void *dst, const mq_fill *f, mq_err *err)
{
    (void)err;
    const mq_fill_span s = mq_fill_span_of(f);
    int64_t per_row = (s.row_bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    const mq_fill fill = *f;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, (double)s.n_rows * (double)s.row_bytes))
    for (int64_t i = 0; i < s.n_rows * per_row; i++) {
        int64_t row = i / per_row, at = i % per_row * PIECE_BYTES;
        int64_t left = s.row_bytes - at;
        fill_piece((uint8_t *)dst + row * s.row_bytes + at, &fill, s.first + row * s.stride + at,
                   left < PIECE_BYTES ? left : PIECE_BYTES);
    }
    return MQ_OK;
}

mq_status mq_cpu_sum_words(mq_dev *dev, uint64_t *sum, const void *p, int64_t n_words, mq_err *err)
{
    (void)err;
    const uint64_t *words = p;
    uint64_t total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total) num_threads(mq_cpu_threads(dev, (double)n_words))
    for (int64_t i = 0; i < n_words; i++)
        total += words[i];
    *sum += total;
    return MQ_OK;
}
