/* Products of F32 matrices through cuBLAS, in this project's row-major terms.  TF32 is never used. */
#ifndef MQ_KERNELS_CUDA_BLAS_CUH
#define MQ_KERNELS_CUDA_BLAS_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

void blas_close(mq_dev *dev);

/* c [m, n] = alpha a [m, k] b^T + beta c, b [n, k] (gemm_nt) or b [k, n] without the transposition (gemm_nn); leading
 * dimensions in floats.  beta = 0 does not read c.  what names the operation in errors. */
mq_status gemm_nt(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
                  int64_t ldb, int64_t m, int64_t n, int64_t k, float alpha, float beta, mq_err *err);
mq_status gemm_nn(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
                  int64_t ldb, int64_t m, int64_t n, int64_t k, float alpha, float beta, mq_err *err);

/* Lower triangle of c [n, n] = alpha a^T b + beta c, a and b [k, n] with a^T b symmetric. */
mq_status syrk_tn(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, const float *b, int64_t ld,
                  int64_t n, int64_t k, float alpha, float beta, mq_err *err);

/* Lower triangle of c [n, n] = alpha a a^T + beta c, a [n, k]. */
mq_status syrk_nt(mq_dev *dev, const char *what, float *c, int64_t ldc, const float *a, int64_t lda, int64_t n,
                  int64_t k, float alpha, float beta, mq_err *err);

/* c [m, n] = a [m, n] s, s [n, n] symmetric with its lower triangle stored. */
mq_status symm(mq_dev *dev, const char *what, float *c, const float *a, const float *s, int64_t m, int64_t n,
               mq_err *err);

/* x [m, n] = x l^-T, l [n, n] lower triangular. */
mq_status trsm(mq_dev *dev, const char *what, float *x, int64_t ldx, const float *l, int64_t ldl, int64_t m, int64_t n,
               mq_err *err);

} // namespace mq_cuda

#endif
