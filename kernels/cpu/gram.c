/* Second moments: weighted sums of x x^T and x y^T, their diagonal, and blends of them.
 *
 * The lower triangle is cut into fixed tiles, each one single-threaded BLAS call over all rows and then one addition
 * to the sum, so the bits do not depend on the number of threads.  Weights enter gram as
 * their square roots times x, cross as factors of x. */
#include <math.h>
#include <omp.h>

#include "kernels/cpu/cpu.h"

enum { TILE = 512 };

mq_status mq_cpu_axpby(mq_dev *dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err)
{
    (void)err;
    int threads = mq_cpu_threads(dev, (double)count / 4.0);
    if (a == 0.0f || b == 0.0f) { /* the other array may hold anything, NaN too */
        const float *from = a == 0.0f ? x : y, by = a == 0.0f ? b : a;
#pragma omp parallel for simd schedule(static) num_threads(threads)
        for (int64_t i = 0; i < count; i++)
            y[i] = by == 0.0f ? 0.0f : by * from[i];
        return MQ_OK;
    }
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++)
        y[i] = a * y[i] + b * x[i];
    return MQ_OK;
}

mq_status mq_cpu_diag(mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err)
{
    (void)dev;
    (void)err;
    for (int64_t i = 0; i < n; i++)
        out[i] = g[i * n + i];
    return MQ_OK;
}

mq_status mq_cpu_set_diag(mq_dev *dev, float *g, const float *diag, int64_t n, mq_err *err)
{
    (void)dev;
    (void)err;
    for (int64_t i = 0; i < n; i++)
        g[i * n + i] = diag[i];
    return MQ_OK;
}

static void weigh_rows(float *out, const float *x, const float *weight, bool root, int64_t n, int64_t cols, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        const float factor = root ? sqrtf(weight[i]) : weight[i];
        const float *restrict from = x + i * cols;
        float *restrict to = out + i * cols;
#pragma omp simd
        for (int64_t c = 0; c < cols; c++)
            to[c] = factor * from[c];
    }
}

/* Tile (i, j) of the lower triangle, j <= i, in the order (0, 0), (1, 0), (1, 1), (2, 0), ... */
static void find_tile(int64_t job, int64_t *i, int64_t *j)
{
    int64_t row = 0;
    while (job > row)
        job -= ++row;
    *i = row;
    *j = job;
}

/* to [rows, width] += tile, or its lower triangle. */
static void add_rows(float *to, int64_t stride, const float *tile, int64_t rows, int64_t width, bool lower)
{
    for (int64_t r = 0; r < rows; r++, to += stride, tile += TILE) {
        int64_t stop = lower ? r + 1 : width;
#pragma omp simd
        for (int64_t c = 0; c < stop; c++)
            to[c] += tile[c];
    }
}

static void add_tile(float *g, const float *x, float *tile, int64_t job, int64_t n, int64_t cols)
{
    int64_t i, j;
    find_tile(job, &i, &j);
    int64_t r0 = i * TILE, c0 = j * TILE;
    int64_t rows = cols - r0 < TILE ? cols - r0 : TILE, width = cols - c0 < TILE ? cols - c0 : TILE;
    if (i == j)
        mq_blas_syrk_tn(rows, n, x + r0, cols, tile, TILE);
    else
        mq_blas_gemm(true, false, rows, width, n, 1.0f, x + r0, cols, x + c0, cols, 0.0f, tile, TILE);
    add_rows(g + r0 * cols + c0, cols, tile, rows, width, i == j);
}

int64_t mq_cpu_gram_bytes(int64_t n, int64_t cols, int threads)
{
    return ((n * cols + 15) / 16 * 16 + (int64_t)threads * TILE * TILE) * (int64_t)sizeof(float);
}

/* Room for weighted rows and for one tile a thread; x moves to the weighted rows. */
static mq_status prepare(mq_dev *dev, float **tiles, const float **x, const float *weight, bool root, int64_t n,
                         int64_t cols, int threads, mq_err *err)
{
    int64_t weighted = weight ? (n * cols + 15) / 16 * 16 : 0;
    void *room;
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_GRAM, mq_cpu_gram_bytes(weight ? n : 0, cols, threads), &room, err));
    *tiles = (float *)room + weighted;
    if (weight) {
        weigh_rows(room, *x, weight, root, n, cols, threads);
        *x = room;
    }
    return MQ_OK;
}

mq_status mq_cpu_gram(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err)
{
    if (n <= 0)
        return MQ_OK;
    int64_t n_tiles = (cols + TILE - 1) / TILE, n_jobs = n_tiles * (n_tiles + 1) / 2;
    int threads = mq_cpu_threads(dev, (double)n * (double)cols * (double)cols / 16.0);
    float *tiles;
    MQ_TRY(prepare(dev, &tiles, &x, weight, true, n, cols, threads, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t job = 0; job < n_jobs; job++)
        add_tile(g, x, tiles + (int64_t)omp_get_thread_num() * TILE * TILE, job, n, cols);
    return MQ_OK;
}

mq_status mq_cpu_cross(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n,
                       int64_t cols, int64_t y_cols, mq_err *err)
{
    if (n <= 0)
        return MQ_OK;
    int64_t across = (y_cols + TILE - 1) / TILE, n_jobs = (cols + TILE - 1) / TILE * across;
    int threads = mq_cpu_threads(dev, (double)n * (double)cols * (double)y_cols / 8.0);
    float *tiles;
    MQ_TRY(prepare(dev, &tiles, &x, weight, false, n, cols, threads, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t job = 0; job < n_jobs; job++) {
        float *tile = tiles + (int64_t)omp_get_thread_num() * TILE * TILE;
        int64_t r0 = job / across * TILE, c0 = job % across * TILE;
        int64_t rows = cols - r0 < TILE ? cols - r0 : TILE, width = y_cols - c0 < TILE ? y_cols - c0 : TILE;
        mq_blas_gemm(true, false, rows, width, n, 1.0f, x + r0, cols, y + c0, y_cols, 0.0f, tile, TILE);
        add_rows(c + r0 * y_cols + c0, y_cols, tile, rows, width, false);
    }
    return MQ_OK;
}

mq_status mq_cpu_mirror(mq_dev *dev, const float **full, const float *g, int64_t n, mq_err *err)
{
    enum { EDGE = 32 };
    void *room;
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_MOMENT, n * n * (int64_t)sizeof *g, &room, err));
    float *f = room;
#pragma omp parallel for schedule(static, 1) num_threads(mq_cpu_threads(dev, (double)n * (double)n / 2.0))
    for (int64_t i0 = 0; i0 < n; i0 += EDGE)
        for (int64_t j0 = 0; j0 <= i0; j0 += EDGE)
            for (int64_t i = i0; i < i0 + EDGE && i < n; i++)
                for (int64_t j = j0; j < j0 + EDGE && j <= i; j++)
                    f[i * n + j] = f[j * n + i] = g[i * n + j];
    *full = f;
    return MQ_OK;
}
