/* Reverse Cholesky, H = R R^T with R upper triangular from the last row up, and products with H^-1.
 *
 * The recursion of kernels/cpu/solve.c: the trailing half is factored, the rows above it are solved against it, their
 * product is taken off the leading half, which is factored last; up to LEAF columns are one block's work, in double.  A pivot
 * that is no positive number is remembered on the device, and what follows it is nonsense that nobody reads. */
#include <float.h>

#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256, LEAF = 64 };

/* The first pivot that stopped the factorization; index -1: none. */
struct pivot_fault {
    int64_t index;
    double value;
};

struct factor_job {
    mq_dev *dev;
    float *a, *d, *root; /* root [n]: diagonal of R */
    pivot_fault *fault;
    int64_t n;
    mq_err *err;
};

static __global__ void load_permuted_kernel(float *a, const float *g, const int32_t *perm, float ridge, int64_t n,
                                            pivot_fault *fault)
{
    for (int64_t j = blockIdx.y; j < n; j += gridDim.y)
        for (int64_t k = j + (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += (int64_t)gridDim.x * blockDim.x) {
            int64_t p = perm[j], q = perm[k], row = p > q ? p : q, col = p > q ? q : p;
            a[j * n + k] = g[row * n + col] + (j == k ? ridge : 0.0f);
        }
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        *fault = {-1, 0.0};
}

/* Columns lo .. lo + size - 1 of the same rows; b is the transpose. */
static __global__ void factor_leaf_kernel(float *a, float *d, float *root, pivot_fault *fault, int64_t lo, int size,
                                          int64_t n)
{
    MQ_SHARED(b, double[LEAF][LEAF]);
    if (fault->index >= 0)
        return;
    int t = (int)threadIdx.x;
    for (int i = t; i < size * size; i += THREADS)
        if (i % size >= i / size)
            b[i % size][i / size] = (double)a[(lo + i / size) * n + lo + i % size];
    __syncthreads();
    for (int k = size - 1; k >= 0; k--) {
        double pivot = b[k][k];
        if (!(pivot >= (double)FLT_MIN && pivot <= (double)FLT_MAX)) {
            __syncthreads(); /* the same in all threads */
            if (t == 0)
                *fault = {lo + k, pivot};
            return;
        }
        double r = sqrt(pivot), inv = 1.0 / r;
        __syncthreads();
        if (t < k)
            b[k][t] *= inv;
        if (t == k)
            b[k][k] = r;
        if (t == 0) {
            d[lo + k] = (float)pivot;
            root[lo + k] = (float)r;
        }
        __syncthreads();
        for (int i = t; i < k * k; i += THREADS)
            if (i % k <= i / k)
                b[i / k][i % k] -= b[k][i / k] * b[k][i % k];
        __syncthreads();
    }
    for (int i = t; i < size * size; i += THREADS)
        if (i % size >= i / size)
            a[(lo + i / size) * n + lo + i % size] = (float)b[i % size][i / size];
}

static mq_status factor_range(const factor_job *f, int64_t lo, int64_t hi)
{
    int64_t n = f->n;
    if (hi - lo <= LEAF)
        return launch(f->dev, f->err, "factor", factor_leaf_kernel, 1, THREADS, 0, f->a, f->d, f->root, f->fault, lo,
                      (int)(hi - lo), n);
    int64_t half = ((hi - lo) / 2 + LEAF - 1) / LEAF * LEAF, mid = hi - half;
    MQ_TRY(factor_range(f, mid, hi));
    MQ_TRY(trsm_upper(f->dev, "factor", true, false, mid - lo, hi - mid, f->a + mid * n + mid, n, f->a + lo * n + mid, n,
                      f->err));
    MQ_TRY(syrk_nt_subtract(f->dev, "factor", mid - lo, hi - mid, f->a + lo * n + mid, n, f->a + lo * n + lo, n, f->err));
    return factor_range(f, lo, mid);
}

/* R to its strict upper part over the diagonal, zeros elsewhere. */
static __global__ void scale_columns_kernel(float *a, const float *root, int64_t n)
{
    for (int64_t j = blockIdx.y; j < n; j += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += (int64_t)gridDim.x * blockDim.x)
            a[j * n + k] = k > j ? a[j * n + k] / root[k] : 0.0f;
}

mq_status factor(mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n,
                 mq_err *err)
{
    void *room;
    if (n <= 0)
        return MQ_OK;
    MQ_TRY(workspace(dev, WS_SMALL, (int64_t)sizeof(pivot_fault) + n * (int64_t)sizeof(float), &room, err));
    pivot_fault *fault = (pivot_fault *)room, found;
    factor_job f = {dev, a, d, (float *)(fault + 1), fault, n, err};
    dim3 grid(n_blocks(n, THREADS), n_blocks(n, 1, GRID_Y_LIMIT));
    MQ_TRY(launch(dev, err, "factor", load_permuted_kernel, grid, THREADS, 0, a, g, perm, ridge, n, fault));
    MQ_TRY(factor_range(&f, 0, n));
    MQ_TRY(launch(dev, err, "factor", scale_columns_kernel, grid, THREADS, 0, a, f.root, n));
    MQ_TRY(download(dev, &found, fault, (int64_t)sizeof found, err));
    if (found.index < 0)
        return MQ_OK;
    int32_t column = 0;
    MQ_TRY(download(dev, &column, perm + found.index, (int64_t)sizeof column, err));
    return mq_fail(err, MQ_E_NUMERIC, "pivot %lld of %lld (column %d) is %g: not positive definite",
                   (long long)found.index, (long long)n, (int)column, found.value);
}

/* ---- solve ---- */

/* to [i][k] = from [i][perm[k]], or back: to [i][perm[k]] = from [i][k]; divided by d[k] where d is there. */
static __global__ void permute_kernel(float *to, const float *from, const int32_t *perm, const float *d, bool back,
                                      int64_t rows, int64_t n)
{
    for (int64_t i = blockIdx.y; i < rows; i += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += (int64_t)gridDim.x * blockDim.x) {
            int64_t p = perm ? perm[k] : k;
            float v = from[i * n + (back ? k : p)];
            to[i * n + (back ? p : k)] = d ? v / d[k] : v;
        }
}

mq_status solve(mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm, int64_t rows,
                int64_t n, mq_err *err)
{
    const int32_t *no_perm = NULL;
    const float *no_d = NULL;
    void *room;
    int64_t chunk = rows < ROWS_AT_ONCE ? rows : (int64_t)ROWS_AT_ONCE;
    MQ_TRY(workspace(dev, WS_ROWS, chunk * n * (int64_t)sizeof *x, &room, err));
    float *z = (float *)room;
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        int64_t m = rows - r0 < chunk ? rows - r0 : chunk;
        dim3 grid(n_blocks(n, THREADS), n_blocks(m, 1, GRID_Y_LIMIT));
        MQ_TRY(launch(dev, err, "solve", permute_kernel, grid, THREADS, 0, z, y + r0 * n, perm, no_d, false, m, n));
        MQ_TRY(trsm_upper(dev, "solve", true, true, m, n, a, n, z, n, err));
        MQ_TRY(launch(dev, err, "solve", permute_kernel, grid, THREADS, 0, z, z, no_perm, d, false, m, n));
        MQ_TRY(trsm_upper(dev, "solve", false, true, m, n, a, n, z, n, err));
        MQ_TRY(launch(dev, err, "solve", permute_kernel, grid, THREADS, 0, x + r0 * n, z, perm, no_d, true, m, n));
    }
    return MQ_OK;
}

} // namespace mq_cuda
