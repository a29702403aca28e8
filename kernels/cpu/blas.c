/* The only user of OpenBLAS: one single-threaded product.  Threads are ours, above it.
 *
 * The OpenMP build of OpenBLAS stays on the calling thread inside a parallel region; outside one it follows the
 * calling thread's omp_set_num_threads, so that is set to 1 around the call and put back. */
#include <cblas.h>
#include <omp.h>

#include <stdio.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

void mq_cpu_library(char *out, int64_t out_bytes)
{
    const char *config = openblas_get_config(); /* "OpenBLAS 0.3.29 DYNAMIC_ARCH ..." */
    size_t name = strcspn(config, " "), version = strcspn(config + name + (config[name] != 0), " ");
    snprintf(out, (size_t)out_bytes, "%.*s %s", (int)(name + (config[name] != 0) + version), config,
             openblas_get_corename());
}

void mq_blas_gemm_nt(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t m,
                     int64_t n, int64_t k)
{
    int outside = !omp_in_parallel(), threads = outside ? omp_get_max_threads() : 1;
    if (outside)
        omp_set_num_threads(1);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)m, (blasint)n, (blasint)k, 1.0f, a, (blasint)lda, b,
                (blasint)ldb, 0.0f, c, (blasint)ldc);
    if (outside)
        omp_set_num_threads(threads);
}
