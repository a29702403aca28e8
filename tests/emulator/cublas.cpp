/* The cuBLAS calls as plain loops over column-major matrices, each output one double sum rounded once. */
#include <cublas_v2.h>

#include <vector>

namespace {
/* Element (row, col) of op(a). */
float at(const float *a, int lda, cublasOperation_t op, int row, int col)
{
    return op == CUBLAS_OP_N ? a[row + (int64_t)col * lda] : a[col + (int64_t)row * lda];
}

/* beta = 0 does not read c. */
void put(float *c, double sum, float alpha, float beta)
{
    double old = beta == 0.0f ? 0.0 : (double)beta * (double)*c;
    *c = (float)((double)alpha * sum + old);
}

bool in_triangle(cublasFillMode_t uplo, int row, int col)
{
    return uplo == CUBLAS_FILL_MODE_LOWER ? row >= col : row <= col;
}
} // namespace

cublasStatus_t cublasCreate_v2(cublasHandle_t *out)
{
    *out = (cublasHandle_t) new char;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    delete (char *)h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                              const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                              float *c, int ldc)
{
    if (m < 0 || n < 0 || k < 0 || ldc < (m > 1 ? m : 1))
        return CUBLAS_STATUS_INVALID_VALUE;
    for (int col = 0; col < n; col++)
        for (int row = 0; row < m; row++) {
            double sum = 0.0;
            for (int i = 0; i < k; i++)
                sum += (double)at(a, lda, ta, row, i) * (double)at(b, ldb, tb, i, col);
            put(&c[row + (int64_t)col * ldc], sum, *alpha, *beta);
        }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSsyrkx(cublasHandle_t, cublasFillMode_t uplo, cublasOperation_t trans, int n, int k,
                            const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                            float *c, int ldc)
{
    cublasOperation_t other = trans == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N;
    for (int col = 0; col < n; col++)
        for (int row = 0; row < n; row++) {
            double sum = 0.0;
            if (!in_triangle(uplo, row, col))
                continue;
            for (int i = 0; i < k; i++)
                sum += (double)at(a, lda, trans, row, i) * (double)at(b, ldb, other, i, col);
            put(&c[row + (int64_t)col * ldc], sum, *alpha, *beta);
        }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSsymm_v2(cublasHandle_t, cublasSideMode_t side, cublasFillMode_t uplo, int m, int n,
                              const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                              float *c, int ldc)
{
    int order = side == CUBLAS_SIDE_LEFT ? m : n;
    for (int col = 0; col < n; col++)
        for (int row = 0; row < m; row++) {
            double sum = 0.0;
            for (int i = 0; i < order; i++) {
                int r = side == CUBLAS_SIDE_LEFT ? row : i, s = side == CUBLAS_SIDE_LEFT ? i : col;
                double v = (double)(in_triangle(uplo, r, s) ? a[r + (int64_t)s * lda] : a[s + (int64_t)r * lda]);
                sum += v * (double)(side == CUBLAS_SIDE_LEFT ? b[i + (int64_t)col * ldb] : b[row + (int64_t)i * ldb]);
            }
            put(&c[row + (int64_t)col * ldc], sum, *alpha, *beta);
        }
    return CUBLAS_STATUS_SUCCESS;
}

/* op(A) X = alpha B, or X op(A) = alpha B as its transpose. */
cublasStatus_t cublasStrsm_v2(cublasHandle_t, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                              cublasDiagType_t diag, int m, int n, const float *alpha, const float *a, int lda, float *b,
                              int ldb)
{
    bool left = side == CUBLAS_SIDE_LEFT;
    int order = left ? m : n, systems = left ? n : m;
    /* the matrix to solve with, in the form op'(A) x = b */
    cublasOperation_t op = left == (trans == CUBLAS_OP_N) ? CUBLAS_OP_N : CUBLAS_OP_T;
    bool forward = (uplo == CUBLAS_FILL_MODE_LOWER) == (op == CUBLAS_OP_N);
    std::vector<double> x((size_t)order);
    for (int s = 0; s < systems; s++) {
        for (int k = 0; k < order; k++) {
            int i = forward ? k : order - 1 - k;
            int64_t where = left ? i + (int64_t)s * ldb : s + (int64_t)i * ldb;
            double sum = (double)*alpha * (double)b[where];
            for (int p = 0; p < k; p++) {
                int j = forward ? p : order - 1 - p;
                sum -= (double)at(a, lda, op, i, j) * x[(size_t)j];
            }
            x[(size_t)i] = diag == CUBLAS_DIAG_UNIT ? sum : sum / (double)at(a, lda, op, i, i);
            b[where] = (float)x[(size_t)i];
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}
