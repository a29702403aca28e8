/* Products of F32 and of BF16 matrices through cuBLAS, in this project's row-major terms.  TF32 is never used. */
#ifndef MQ_KERNELS_CUDA_BLAS_CUH
#define MQ_KERNELS_CUDA_BLAS_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

void blas_close(mq_dev *dev);

/* mq_kernels.library */
mq_status blas_library(mq_dev *dev, char *out, int64_t out_bytes, mq_err *err);

/* c [m, n] = alpha op(a) op(b) + beta c with op(a) [m, k], op(b) [k, n], transposed where ta, tb; leading dimensions in
 * floats.  beta = 0 does not read c.  what names the operation in errors. */
mq_status gemm(mq_dev *dev, const char *what, bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha,
               const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc, mq_err *err);

/* The same with a and b BF16, sums in F32: c = op(a) op(b) + beta c. */
mq_status gemm_bf16(mq_dev *dev, const char *what, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                    int64_t lda, const uint16_t *b, int64_t ldb, float beta, float *c, int64_t ldc, mq_err *err);

/* Lower triangle of c [n, n] += a^T a, a [k, n]. */
mq_status syrk_tn_add(mq_dev *dev, const char *what, int64_t n, int64_t k, const float *a, int64_t lda, float *c,
                      int64_t ldc, mq_err *err);

/* Upper triangle of c [n, n] -= a a^T, a [n, k]. */
mq_status syrk_nt_subtract(mq_dev *dev, const char *what, int64_t n, int64_t k, const float *a, int64_t lda, float *c,
                           int64_t ldc, mq_err *err);

/* x [m, n] = x u^-1, or x u^-T when transposed; u [n, n] upper triangular, its diagonal taken as 1 when unit. */
mq_status trsm_upper(mq_dev *dev, const char *what, bool transposed, bool unit, int64_t m, int64_t n, const float *u,
                     int64_t ldu, float *x, int64_t ldx, mq_err *err);

} // namespace mq_cuda

#endif
