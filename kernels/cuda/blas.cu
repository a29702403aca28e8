/* The one user of cuBLAS.
 *
 * The library is loaded when the first product is asked for, by name: tools with CUDA built in start, and run on the
 * CPU, on machines that do not have it.  cuBLAS is column-major: a row-major [m, n] matrix is its [n, m] one, so
 * operands change places and a lower triangle is its upper one. */
#include <cublas_v2.h>
#include <dlfcn.h>
#include <stdlib.h>

#include "kernels/cuda/blas.cuh"

namespace mq_cuda {

struct blas {
    void *library;
    cublasHandle_t handle;
    decltype(&cublasCreate_v2) create;
    decltype(&cublasDestroy_v2) destroy;
    decltype(&cublasSetStream_v2) set_stream;
    decltype(&cublasSetMathMode) set_math_mode;
    decltype(&cublasSgemm_v2) sgemm;
    decltype(&cublasSsyrkx) ssyrkx;
    decltype(&cublasSsymm_v2) ssymm;
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
        !FIND(b, set_stream, cublasSetStream_v2) || !FIND(b, set_math_mode, cublasSetMathMode) ||
        !FIND(b, sgemm, cublasSgemm_v2) || !FIND(b, ssyrkx, cublasSsyrkx) || !FIND(b, ssymm, cublasSsymm_v2) ||
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

static mq_status gemm(mq_dev *dev, const char *what, bool transpose_b, float *c, int64_t ldc, const float *a, int64_t lda,
                      const float *b, int64_t ldb, int64_t m, int64_t n, int64_t k, float alpha, float beta, mq_err *err)
{
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->sgemm(dev->blas->handle, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, (int)n,
                                       (int)m, (int)k, &alpha, b, (int)ldb, a, (int)lda, &beta, c, (int)ldc),
                      what, err);
}

mq_status gemm_nt(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
                  int64_t ldb, int64_t m, int64_t n, int64_t k, float alpha, float beta, mq_err *err)
{
    return gemm(dev, what, true, c, ldc, a, lda, b, ldb, m, n, k, alpha, beta, err);
}

mq_status gemm_nn(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
                  int64_t ldb, int64_t m, int64_t n, int64_t k, float alpha, float beta, mq_err *err)
{
    return gemm(dev, what, false, c, ldc, a, lda, b, ldb, m, n, k, alpha, beta, err);
}

mq_status syrk_tn(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, const float *b, int64_t ld,
                  int64_t n, int64_t k, float alpha, float beta, mq_err *err)
{
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->ssyrkx(dev->blas->handle, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N, (int)n, (int)k, &alpha, a,
                                        (int)ld, b, (int)ld, &beta, c, (int)ldc),
                      what, err);
}

mq_status syrk_nt(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, int64_t lda, int64_t n,
                  int64_t k, float alpha, float beta, mq_err *err)
{
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->ssyrkx(dev->blas->handle, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, (int)n, (int)k, &alpha, a,
                                        (int)lda, a, (int)lda, &beta, c, (int)ldc),
                      what, err);
}

mq_status symm(mq_dev *dev, const char *what, float *c, const float *a, const float *s, int64_t m, int64_t n,
               mq_err *err)
{
    const float one = 1.0f, zero = 0.0f;
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->ssymm(dev->blas->handle, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, (int)n, (int)m, &one,
                                       s, (int)n, a, (int)n, &zero, c, (int)n),
                      what, err);
}

/* Row-major x l^-T is column-major L^-1 X with L stored as its transpose, an upper triangle. */
mq_status trsm(mq_dev *dev, const char *what, float *x, int64_t ldx, const float *l, int64_t ldl, int64_t m, int64_t n,
               mq_err *err)
{
    const float one = 1.0f;
    MQ_TRY(need(dev, err));
    return check_blas(dev,
                      dev->blas->strsm(dev->blas->handle, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T,
                                       CUBLAS_DIAG_NON_UNIT, (int)n, (int)m, &one, l, (int)ldl, x, (int)ldx),
                      what, err);
}

} // namespace mq_cuda
