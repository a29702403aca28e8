/* What the operations under a second moment share. */
#ifndef MQ_KERNELS_CUDA_MOMENTS_CUH
#define MQ_KERNELS_CUDA_MOMENTS_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

/* Rows that an operation takes at once; calibration_bytes counts with them. */
enum { ROWS_AT_ONCE = 4096, REFIT_ROWS = 128 };

/* full [n, n] = both triangles of g, of which the lower one is stored; WS_MOMENT. */
mq_status mirror(mq_dev *dev, const float **full, const float *g, int64_t n, mq_err *err);

/* out [n, cols] = w - scale * codes of n rows; the codes themselves, -8 .. 7, where w is NULL. */
mq_status residual(mq_dev *dev, float *out, const float *w, const uint8_t *codes, const float *scale, int64_t n,
                   int64_t cols, int group, mq_err *err);

/* out [i * out_stride + k], i < n, k < n_groups: products of columns k group .. of row i of a and of b [n, cols], added
 * up in double. */
mq_status row_dots(mq_dev *dev, double *out, int64_t out_stride, const float *a, const float *b, int64_t n, int64_t cols,
                   int64_t n_groups, int64_t group, mq_err *err);

/* out [n] = (float)in [n]. */
mq_status narrow(mq_dev *dev, float *out, const double *in, int64_t n, mq_err *err);

} // namespace mq_cuda

#endif
