/* The only user of OpenBLAS: single-threaded products and triangular solves.  Threads are ours, above it.
 *
 * The OpenMP build of OpenBLAS stays on the calling thread inside a parallel region; outside one it follows the
 * calling thread's omp_set_num_threads, so that is set to 1 around the call and put back.  That number belongs to the
 * calling thread and one thread takes none of OpenBLAS's shared paths, so plain threads may call at the same time. */
#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

mq_status mq_cpu_library(mq_dev *dev, char *out, int64_t out_bytes, mq_err *err)
{
    (void)dev;
    (void)err;
    const char *config = openblas_get_config(); /* "OpenBLAS 0.3.29 DYNAMIC_ARCH ..." */
    size_t name = strcspn(config, " "), version = strcspn(config + name + (config[name] != 0), " ");
    snprintf(out, (size_t)out_bytes, "%.*s %s", (int)(name + (config[name] != 0) + version), config,
             openblas_get_corename());
    return MQ_OK;
}

/* Returns what leave_one_thread puts back; 0 inside a parallel region. */
static int enter_one_thread(void)
{
    if (omp_in_parallel())
        return 0;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    return threads;
}

static void leave_one_thread(int threads)
{
    if (threads)
        omp_set_num_threads(threads);
}

static enum CBLAS_TRANSPOSE trans(bool t)
{
    return t ? CblasTrans : CblasNoTrans;
}

void mq_blas_gemm_nt(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t m,
                     int64_t n, int64_t k)
{
    mq_blas_gemm(false, true, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, c, ldc);
}

void mq_blas_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    int threads = enter_one_thread();
    cblas_sgemm(CblasRowMajor, trans(ta), trans(tb), (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b,
                (blasint)ldb, beta, c, (blasint)ldc);
    leave_one_thread(threads);
}

void mq_blas_syrk_tn(int64_t n, int64_t k, const float *a, int64_t lda, float *c, int64_t ldc)
{
    int threads = enter_one_thread();
    cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (blasint)n, (blasint)k, 1.0f, a, (blasint)lda, 0.0f, c,
                (blasint)ldc);
    leave_one_thread(threads);
}

void mq_blas_syrk_nt_subtract(int64_t n, int64_t k, const float *a, int64_t lda, float *c, int64_t ldc)
{
    int threads = enter_one_thread();
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasNoTrans, (blasint)n, (blasint)k, -1.0f, a, (blasint)lda, 1.0f, c,
                (blasint)ldc);
    leave_one_thread(threads);
}

void mq_blas_trsm_upper(bool t, bool unit, int64_t m, int64_t n, const float *r, int64_t ldr, float *x, int64_t ldx)
{
    int threads = enter_one_thread();
    cblas_strsm(CblasRowMajor, CblasRight, CblasUpper, trans(t), unit ? CblasUnit : CblasNonUnit, (blasint)m, (blasint)n,
                1.0f, r, (blasint)ldr, x, (blasint)ldx);
    leave_one_thread(threads);
}
