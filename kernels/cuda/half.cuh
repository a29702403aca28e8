/* What products in BF16 take: rows and weights rounded to it, nearest, ties to even. */
#ifndef MQ_KERNELS_CUDA_HALF_CUH
#define MQ_KERNELS_CUDA_HALF_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

/* out [n, cols] BF16 = x [n, cols]. */
mq_status to_bf16(mq_dev *dev, const char *what, uint16_t *out, const float *x, int64_t n, int64_t cols, mq_err *err);

/* The same of weight[i] x row i, or of its square root (the products in F32). */
mq_status weigh_to_bf16(mq_dev *dev, const char *what, uint16_t *out, const float *x, const float *weight, bool root,
                        int64_t n, int64_t cols, mq_err *err);

/* out [n_rows, w.cols] BF16 = rows row0 .. of w. */
mq_status widen_to_bf16(mq_dev *dev, const char *what, uint16_t *out, const mq_matrix *w, int64_t row0, int64_t n_rows,
                        mq_err *err);

} // namespace mq_cuda

#endif
