/* The one user of cuBLAS.
 *
 * The library is loaded when the first product is asked for, by name: tools with CUDA built in start, and run on the
 * CPU, on machines that do not have it.  cuBLAS is column-major: a row-major [m, n] matrix is its [n, m] one, so
 * operands change places and a lower triangle is its upper one. */
#include <cublas_v2.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/blas.cuh"

namespace mq_cuda {

/* cuBLAS's header overloads this name for C++. */
typedef cublasStatus_t gemm_ex_fn(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                                  const void *, cudaDataType_t, int, const void *, cudaDataType_t, int, const void *,
                                  void *, cudaDataType_t, int, cublasComputeType_t, cublasGemmAlgo_t);

struct blas {
    void *library;
    cublasHandle_t handle;
    decltype(&cublasCreate_v2) create;
    decltype(&cublasDestroy_v2) destroy;
    decltype(&cublasGetProperty) get_property;
    decltype(&cublasSetStream_v2) set_stream;
    decltype(&cublasSetMathMode) set_math_mode;
    decltype(&cublasSgemm_v2) sgemm;
    gemm_ex_fn *gemm_ex;
    decltype(&cublasSsyrk_v2) ssyrk;
    decltype(&cublasStrsm_v2) strsm;
};

#ifdef MQ_CUDA_EMULATED
#define FIND(b, field, name) ((b)->field = name)
static void *load_library()
{
    return dlopen(NULL, RTLD_NOW);
}
#else
#define FIND(b, field, name) ((b)->field = (decltype((b)->field))dlsym((b)->library, #name))
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
static void *load_library()
{
    return dlopen("libcublas.so." TEXT(CUBLAS_VER_MAJOR), RTLD_NOW | RTLD_LOCAL);
}
#endif

static mq_status check_blas(const mq_dev *dev, cublasStatus_t s, const char *what, mq_err *err)
{
    if (s == CUBLAS_STATUS_SUCCESS)
        return MQ_OK;
    return mq_fail(err, MQ_E_DEVICE, "cuda %d: %s: cuBLAS status %d", dev->ordinal, what, (int)s);
}

void blas_close(mq_dev *dev)
{
    blas *b = dev->blas;
    if (!b)
        return;
    if (b->handle)
        (void)b->destroy(b->handle);
    if (b->library)
        dlclose(b->library);
    free(b);
    dev->blas = NULL;
}

static mq_status open_blas(mq_dev *dev, blas *b, mq_err *err)
{
    b->library = load_library();
    if (!b->library)
        return mq_fail(err, MQ_E_DEVICE, "cuda %d: %s", dev->ordinal, dlerror());
    if (!FIND(b, create, cublasCreate_v2) || !FIND(b, destroy, cublasDestroy_v2) ||
        !FIND(b, get_property, cublasGetProperty) ||
        !FIND(b, set_stream, cublasSetStream_v2) || !FIND(b, set_math_mode, cublasSetMathMode) ||
        !FIND(b, sgemm, cublasSgemm_v2) || !FIND(b, gemm_ex, cublasGemmEx) || !FIND(b, ssyrk, cublasSsyrk_v2) ||
        !FIND(b, strsm, cublasStrsm_v2))
        return mq_fail(err, MQ_E_DEVICE, "cuda %d: cuBLAS lacks a function: %s", dev->ordinal, dlerror());
    MQ_TRY(check_blas(dev, b->create(&b->handle), "cublasCreate", err));
    MQ_TRY(check_blas(dev, b->set_stream(b->handle, dev->stream), "cublasSetStream", err));
    return check_blas(dev, b->set_math_mode(b->handle, CUBLAS_DEFAULT_MATH), "cublasSetMathMode", err);
}

/* The library with dev current. */
static mq_status need(mq_dev *dev, mq_err *err)
{
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "cuBLAS", err));
    if (dev->blas)
        return MQ_OK;
    dev->blas = (blas *)calloc(1, sizeof *dev->blas);
    if (!dev->blas)
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of host memory", dev->ordinal);
    mq_status st = open_blas(dev, dev->blas, err);
    if (st != MQ_OK)
        blas_close(dev);
    return st;
}

mq_status blas_library(mq_dev *dev, char *out, int64_t out_bytes, mq_err *err)
{
    static const libraryPropertyType parts[3] = {MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
    int v[3];
    MQ_TRY(need(dev, err));
    for (int i = 0; i < 3; i++)
        MQ_TRY(check_blas(dev, dev->blas->get_property(parts[i], &v[i]), "cublasGetProperty", err));
    snprintf(out, (size_t)out_bytes, "cuBLAS %d.%d.%d", v[0], v[1], v[2]);
    return MQ_OK;
}

mq_status gemm(mq_dev *dev, const char *what, bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha,
               const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc, mq_err *err)
{
    if (m == 0 || n == 0)
        return MQ_OK;
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->sgemm(dev->blas->handle, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                                       (int)n, (int)m, (int)k, &alpha, b, (int)ldb, a, (int)lda, &beta, c, (int)ldc),
                      what, err);
}

mq_status gemm_bf16(mq_dev *dev, const char *what, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                    int64_t lda, const uint16_t *b, int64_t ldb, float beta, float *c, int64_t ldc, mq_err *err)
{
    const float one = 1.0f;
    if (m == 0 || n == 0)
        return MQ_OK;
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->gemm_ex(dev->blas->handle, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                                         (int)n, (int)m, (int)k, &one, b, CUDA_R_16BF, (int)ldb, a, CUDA_R_16BF, (int)lda,
                                         &beta, c, CUDA_R_32F, (int)ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                      what, err);
}

static mq_status syrk(mq_dev *dev, const char *what, cublasFillMode_t fill, cublasOperation_t op, int64_t n, int64_t k,
                      float alpha, const float *a, int64_t lda, float *c, int64_t ldc, mq_err *err)
{
    const float one = 1.0f;
    if (n == 0)
        return MQ_OK;
    MQ_TRY(need(dev, err));
    return check_blas(
        dev, dev->blas->ssyrk(dev->blas->handle, fill, op, (int)n, (int)k, &alpha, a, (int)lda, &one, c, (int)ldc), what,
        err);
}

mq_status syrk_tn_add(mq_dev *dev, const char *what, int64_t n, int64_t k, const float *a, int64_t lda, float *c,
                      int64_t ldc, mq_err *err)
{
    return syrk(dev, what, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, n, k, 1.0f, a, lda, c, ldc, err);
}

mq_status syrk_nt_subtract(mq_dev *dev, const char *what, int64_t n, int64_t k, const float *a, int64_t lda, float *c,
                           int64_t ldc, mq_err *err)
{
    return syrk(dev, what, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T, n, k, -1.0f, a, lda, c, ldc, err);
}

/* Row-major u is column-major l = u^T, lower; x u^-1 is l^-1 x^T there. */
mq_status trsm_upper(mq_dev *dev, const char *what, bool transposed, bool unit, int64_t m, int64_t n, const float *u,
                     int64_t ldu, float *x, int64_t ldx, mq_err *err)
{
    const float one = 1.0f;
    if (m == 0 || n == 0)
        return MQ_OK;
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->strsm(dev->blas->handle, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER,
                                       transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                                       unit ? CUBLAS_DIAG_UNIT : CUBLAS_DIAG_NON_UNIT, (int)n, (int)m, &one, u, (int)ldu, x,
                                       (int)ldx),
                      what, err);
}

} // namespace mq_cuda
