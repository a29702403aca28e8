/* Reverse Cholesky: H = R R^T with R upper triangular, from the last row up; and products with H^-1.
 *
 * Recursive halves, so that nearly all work is large BLAS products: the trailing half is factored, the rows above it
 * are solved against it, their product is taken off the leading half, which is factored last.  Blocks of up to LEAF
 * columns are factored in double.  Solves and products are cut into fixed pieces, one single-threaded BLAS call each, so the
 * bits do not depend on the number of threads. */
#include <float.h>
#include <math.h>
#include <omp.h>

#include "kernels/cpu/cpu.h"

enum {
    LEAF = 32,
    SOLVE_ROWS = 256, /* rows of one triangular solve */
    TILE = 512        /* edge of one product */
};

typedef struct factor_job {
    mq_dev *dev;
    float *a, *d, *root; /* root [n]: diagonal of R */
    int64_t n;
    int64_t bad; /* pivot that stopped the factorisation, or -1 */
    double bad_value;
} factor_job;

/* Columns lo .. hi - 1 of rows lo .. hi - 1.  b is the transpose, so that the updates run along rows. */
static void factor_leaf(factor_job *f, int64_t lo, int64_t hi)
{
    double b[LEAF][LEAF];
    const int n = (int)(hi - lo);
    for (int j = 0; j < n; j++)
        for (int k = j; k < n; k++)
            b[k][j] = (double)f->a[(lo + j) * f->n + lo + k];
    for (int k = n - 1; k >= 0; k--) {
        const double pivot = b[k][k];
        if (!(pivot >= (double)FLT_MIN && pivot <= (double)FLT_MAX)) {
            f->bad = lo + k;
            f->bad_value = pivot;
            return;
        }
        const double root = sqrt(pivot), inv = 1.0 / root;
        f->d[lo + k] = (float)pivot;
        f->root[lo + k] = (float)root;
        b[k][k] = root;
        for (int j = 0; j < k; j++)
            b[k][j] *= inv;
        for (int i = 0; i < k; i++) {
            const double m = b[k][i];
#pragma omp simd
            for (int j = 0; j <= i; j++)
                b[i][j] -= m * b[k][j];
        }
    }
    for (int j = 0; j < n; j++)
        for (int k = j; k < n; k++)
            f->a[(lo + j) * f->n + lo + k] = (float)b[k][j];
}

/* Rows lo .. mid - 1 of columns mid .. hi - 1, the block of R below and right of them being done. */
static void solve_above(factor_job *f, int64_t lo, int64_t mid, int64_t hi)
{
    double ops = (double)(mid - lo) * (double)(hi - mid) * (double)(hi - mid) / 16.0;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(f->dev, ops))
    for (int64_t r = lo; r < mid; r += SOLVE_ROWS)
        mq_blas_trsm_upper(true, false, mid - r < SOLVE_ROWS ? mid - r : SOLVE_ROWS, hi - mid, f->a + mid * f->n + mid, f->n,
                             f->a + r * f->n + mid, f->n);
}

/* Upper triangle of rows and columns lo .. mid - 1 -= the product of those rows' columns mid .. hi - 1. */
static void subtract_product(factor_job *f, int64_t lo, int64_t mid, int64_t hi)
{
    double ops = (double)(mid - lo) * (double)(mid - lo) * (double)(hi - mid) / 32.0;
    int64_t n_tiles = (mid - lo + TILE - 1) / TILE;
#pragma omp parallel for schedule(static, 1) num_threads(mq_cpu_threads(f->dev, ops))
    for (int64_t job = 0; job < n_tiles * n_tiles; job++) {
        int64_t r0 = lo + job / n_tiles * TILE, c0 = lo + job % n_tiles * TILE;
        int64_t rows = mid - r0 < TILE ? mid - r0 : TILE, cols = mid - c0 < TILE ? mid - c0 : TILE;
        const float *above = f->a + r0 * f->n + mid, *beside = f->a + c0 * f->n + mid;
        if (c0 == r0)
            mq_blas_syrk_nt_subtract(rows, hi - mid, above, f->n, f->a + r0 * f->n + c0, f->n);
        else if (c0 > r0)
            mq_blas_gemm(false, true, rows, cols, hi - mid, -1.0f, above, f->n, beside, f->n, 1.0f,
                         f->a + r0 * f->n + c0, f->n);
    }
}

static void factor_range(factor_job *f, int64_t lo, int64_t hi)
{
    if (hi - lo <= LEAF) {
        factor_leaf(f, lo, hi);
        return;
    }
    int64_t half = ((hi - lo) / 2 + LEAF - 1) / LEAF * LEAF, mid = hi - half;
    factor_range(f, mid, hi);
    if (f->bad >= 0)
        return;
    solve_above(f, lo, mid, hi);
    subtract_product(f, lo, mid, hi);
    factor_range(f, lo, mid);
}

/* Upper triangle of a = P g P^T + ridge I from the lower one of g.  Rows of g are read in their own order: element (j, k) lands where
 * perm[k] <= perm[j], above or below the diagonal; what fell below is mirrored tile by tile. */
static void load_permuted(mq_dev *dev, float *a, const float *g, const int32_t *perm, const int32_t *place, float ridge,
                          int64_t n)
{
    enum { MIRROR = 32 };
    int threads = mq_cpu_threads(dev, (double)n * (double)n / 2.0);
#pragma omp parallel for schedule(static, 16) num_threads(threads)
    for (int64_t j = 0; j < n; j++) {
        const float *from = g + (int64_t)perm[j] * n;
        float *to = a + j * n;
        for (int64_t q = 0; q <= perm[j]; q++)
            to[place[q]] = from[q];
        to[j] += ridge;
    }
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t j0 = 0; j0 < n; j0 += MIRROR)
        for (int64_t k0 = j0; k0 < n; k0 += MIRROR)
            for (int64_t k = k0; k < k0 + MIRROR && k < n; k++)
                for (int64_t j = j0; j < j0 + MIRROR && j < k; j++)
                    if (perm[k] > perm[j])
                        a[j * n + k] = a[k * n + j];
}

/* R to its strict upper part over the diagonal, zeros elsewhere. */
static void scale_columns(mq_dev *dev, float *a, const float *root, int64_t n)
{
#pragma omp parallel for schedule(static, 16) num_threads(mq_cpu_threads(dev, (double)n * (double)n / 2.0))
    for (int64_t j = 0; j < n; j++) {
        float *row = a + j * n;
        for (int64_t k = 0; k <= j; k++)
            row[k] = 0.0f;
#pragma omp simd
        for (int64_t k = j + 1; k < n; k++)
            row[k] /= root[k];
    }
}

mq_status mq_cpu_factor(mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n,
                        mq_err *err)
{
    void *room;
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_FACTOR, n * (int64_t)(sizeof(int32_t) + sizeof(float)), &room, err));
    int32_t *place = room;
    factor_job f = {.dev = dev, .a = a, .d = d, .root = (float *)(place + n), .n = n, .bad = -1};
    for (int64_t k = 0; k < n; k++)
        place[perm[k]] = (int32_t)k;
    load_permuted(dev, a, g, perm, place, ridge, n);
    if (n > 0)
        factor_range(&f, 0, n);
    if (f.bad >= 0)
        return mq_fail(err, MQ_E_NUMERIC, "pivot %lld of %lld (column %d) is %g: not positive definite",
                       (long long)f.bad, (long long)n, (int)perm[f.bad], f.bad_value);
    scale_columns(dev, a, f.root, n);
    return MQ_OK;
}

int64_t mq_cpu_solve_bytes(int64_t cols)
{
    return SOLVE_ROWS * cols * (int64_t)sizeof(float);
}

/* H = P^T A D A^T P with A = a plus a unit diagonal: two triangular solves on chunks of rows in processing order. */
mq_status mq_cpu_solve(mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm,
                       int64_t rows, int64_t n, mq_err *err)
{
    void *room;
    int threads = mq_cpu_threads(dev, (double)rows * (double)n * (double)n / 8.0);
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_CHUNK, threads * mq_cpu_solve_bytes(n), &room, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r0 = 0; r0 < rows; r0 += SOLVE_ROWS) {
        float *z = (float *)room + omp_get_thread_num() * SOLVE_ROWS * n;
        int64_t m = rows - r0 < SOLVE_ROWS ? rows - r0 : SOLVE_ROWS;
        for (int64_t r = 0; r < m; r++)
            for (int64_t k = 0; k < n; k++)
                z[r * n + k] = y[(r0 + r) * n + perm[k]];
        mq_blas_trsm_upper(true, true, m, n, a, n, z, n);
        for (int64_t r = 0; r < m; r++)
            for (int64_t k = 0; k < n; k++)
                z[r * n + k] /= d[k];
        mq_blas_trsm_upper(false, true, m, n, a, n, z, n);
        for (int64_t r = 0; r < m; r++)
            for (int64_t k = 0; k < n; k++)
                x[(r0 + r) * n + perm[k]] = z[r * n + k];
    }
    return MQ_OK;
}
