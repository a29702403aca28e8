/* The cuBLAS calls as plain loops over column-major matrices, each output one double sum rounded once. */
#include <cublas_v2.h>

#include <vector>

#include "tests/emulator/scheduler.h"

namespace {
/* Element (row, col) of op(a). */
float at(const float *a, int lda, cublasOperation_t op, int row, int col)
{
    return op == CUBLAS_OP_N ? a[row + (int64_t)col * lda] : a[col + (int64_t)row * lda];
}

float at(const uint16_t *a, int lda, cublasOperation_t op, int row, int col)
{
    uint32_t bits = (uint32_t)(op == CUBLAS_OP_N ? a[row + (int64_t)col * lda] : a[col + (int64_t)row * lda]) << 16;
    return __uint_as_float(bits);
}

/* op(a) [rows, k] with each row in one piece; for the second factor of a product, its columns are the rows. */
template <class T> std::vector<float> rows_of(const T *a, int lda, cublasOperation_t op, int rows, int k)
{
    std::vector<float> out((size_t)rows * (size_t)k);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < k; i++)
            out[(size_t)r * (size_t)k + (size_t)i] = at(a, lda, op, r, i);
    return out;
}

/* Eight interleaved sums: the order is nobody's promise. */
double dot(const float *a, const float *b, int k)
{
    double sum[8] = {};
    int i = 0;
    for (; i + 8 <= k; i += 8)
        for (int l = 0; l < 8; l++)
            sum[l] += (double)a[i + l] * (double)b[i + l];
    for (; i < k; i++)
        sum[0] += (double)a[i] * (double)b[i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* All operands are the device's, or the host's may be given. */
bool are_device(const void *a, const void *b, const void *c)
{
    return emu_allows_host_pointers() ||
           (emu_is_device(a, sizeof(float)) && emu_is_device(b, sizeof(float)) && emu_is_device(c, sizeof(float)));
}

cublasOperation_t other(cublasOperation_t op)
{
    return op == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N;
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

cublasStatus_t cublasGetProperty(libraryPropertyType type, int *value)
{
    *value = type == MAJOR_VERSION ? 1 : type == MINOR_VERSION ? 2 : 3;
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
    if (!are_device(a, b, c))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    emu_memory_use open;
    std::vector<float> x = rows_of(a, lda, ta, m, k), y = rows_of(b, ldb, other(tb), n, k);
    for (int col = 0; col < n; col++)
        for (int row = 0; row < m; row++)
            put(&c[row + (int64_t)col * ldc], dot(&x[(size_t)row * (size_t)k], &y[(size_t)col * (size_t)k], k), *alpha,
                *beta);
    return CUBLAS_STATUS_SUCCESS;
}

/* BF16 factors, F32 sums: the only form in use. */
cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType_t a_type, int lda, const void *b,
                            cudaDataType_t b_type, int ldb, const void *beta, void *c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t)
{
    if (m < 0 || n < 0 || k < 0 || ldc < (m > 1 ? m : 1) || a_type != CUDA_R_16BF || b_type != CUDA_R_16BF ||
        c_type != CUDA_R_32F || compute != CUBLAS_COMPUTE_32F)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!are_device(a, b, c))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    emu_memory_use open;
    std::vector<float> x = rows_of((const uint16_t *)a, lda, ta, m, k), y = rows_of((const uint16_t *)b, ldb, other(tb), n, k);
    for (int col = 0; col < n; col++)
        for (int row = 0; row < m; row++)
            put((float *)c + row + (int64_t)col * ldc, dot(&x[(size_t)row * (size_t)k], &y[(size_t)col * (size_t)k], k),
                *(const float *)alpha, *(const float *)beta);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSsyrk_v2(cublasHandle_t, cublasFillMode_t uplo, cublasOperation_t trans, int n, int k,
                              const float *alpha, const float *a, int lda, const float *beta, float *c, int ldc)
{
    if (!are_device(a, a, c))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    emu_memory_use open;
    std::vector<float> x = rows_of(a, lda, trans, n, k);
    for (int col = 0; col < n; col++)
        for (int row = 0; row < n; row++)
            if (in_triangle(uplo, row, col))
                put(&c[row + (int64_t)col * ldc], dot(&x[(size_t)row * (size_t)k], &x[(size_t)col * (size_t)k], k),
                    *alpha, *beta);
    return CUBLAS_STATUS_SUCCESS;
}

/* op(A) X = alpha B, or X op(A) = alpha B as its transpose. */
cublasStatus_t cublasStrsm_v2(cublasHandle_t, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                              cublasDiagType_t diag, int m, int n, const float *alpha, const float *a, int lda, float *b,
                              int ldb)
{
    if (!are_device(a, a, b))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    emu_memory_use open;
    bool left = side == CUBLAS_SIDE_LEFT;
    int order = left ? m : n, systems = left ? n : m;
    /* the matrix to solve with, in the form op'(A) x = b */
    cublasOperation_t op = left == (trans == CUBLAS_OP_N) ? CUBLAS_OP_N : CUBLAS_OP_T;
    bool forward = (uplo == CUBLAS_FILL_MODE_LOWER) == (op == CUBLAS_OP_N);
    std::vector<float> t = rows_of(a, lda, op, order, order);
    std::vector<double> x((size_t)order);
    for (int s = 0; s < systems; s++) {
        for (int k = 0; k < order; k++) {
            int i = forward ? k : order - 1 - k, first = forward ? 0 : i + 1, end = forward ? i : order;
            int64_t where = left ? i + (int64_t)s * ldb : s + (int64_t)i * ldb;
            const float *row = &t[(size_t)i * (size_t)order];
            double sum[4] = {};
            for (int j = first; j < end; j++)
                sum[j % 4] += (double)row[j] * x[(size_t)j];
            double rest = (double)*alpha * (double)b[where] - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
            x[(size_t)i] = diag == CUBLAS_DIAG_UNIT ? rest : rest / (double)row[i];
            b[where] = (float)x[(size_t)i];
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}
