/* What the operations under a second moment share. */
#ifndef MQ_KERNELS_CUDA_MOMENTS_CUH
#define MQ_KERNELS_CUDA_MOMENTS_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

/* Rows that an operation takes at once; calibration_bytes counts with them. */
enum { ROWS_AT_ONCE = 4096, REFIT_ROWS = 1024 };

/* A matrix [.., stride] as the sum of two of BF16. */
struct parts {
    const uint16_t *high, *low;
    int64_t stride;
};

/* high + low = x [count]: the nearest BF16, and the nearest to what is left. */
mq_status split(mq_dev *dev, const char *what, uint16_t *high, uint16_t *low, const float *x, int64_t count, mq_err *err);

/* c [m, n] = a [m, k] b [k, n] + beta c without the product of the low parts; sums in F32. */
mq_status gemm_parts(mq_dev *dev, const char *what, int64_t m, int64_t n, int64_t k, parts a, parts b, float beta, float *c,
                     int64_t ldc, mq_err *err);

/* Both triangles of a second moment [n, n]: in F32 as full, in BF16 as high + low; where parts are wanted they are there in
 * either precision.  NULL: not there. */
struct moment {
    const float *full;
    const uint16_t *high, *low;
    int64_t n;
};

/* out = both triangles of g, of which the lower one is stored; WS_MOMENT and WS_PARTS. */
mq_status open_moment(mq_dev *dev, moment *out, const float *g, int64_t n, bool wants_parts, mq_err *err);

/* y [rows, n] = x [rows, n] m, in dev's precision; WS_HALF. */
mq_status times_moment(mq_dev *dev, const char *what, float *y, const float *x, const moment *m, int64_t rows, mq_err *err);

/* out [n, cols] = w - scale * codes of n rows. */
mq_status residual(mq_dev *dev, float *out, const float *w, const uint8_t *codes, const float *scale, int64_t n,
                   int64_t cols, int group, mq_err *err);

/* out [i] of double, i < n: row i of a times row i of b [n, cols]. */
mq_status row_dots(mq_dev *dev, double *out, const float *a, const float *b, int64_t n, int64_t cols, mq_err *err);

/* out [n] = (float)in [n]. */
mq_status narrow(mq_dev *dev, float *out, const double *in, int64_t n, mq_err *err);

/* Device bytes of refit_scales' own equations for rows of n groups. */
int64_t refit_bytes(int64_t rows, int64_t n);

} // namespace mq_cuda

#endif
