/* Products of many rows with packed experts (src/units.h) straight from their storage, on tensor cores. */
#ifndef MQ_KERNELS_CUDA_PACKED_CUH
#define MQ_KERNELS_CUDA_PACKED_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { PACKED_TOKENS = 64 }; /* positions that a block takes at most */

/* Up to PACKED_TOKENS consecutive positions of one expert. */
struct packed_span {
    int32_t expert, first, n;
};

/* For every position: out = the row of x that belongs to it times the expert's rows of tiles tile0 .. tile0 + n_tiles - 1. */
struct packed_job {
    const uint8_t *const *units; /* [n_experts] in dev's memory; NULL: one matrix */
    const uint8_t *matrix;       /* that one */
    const uint16_t *x;           /* [.., cols] BF16, 16-byte aligned, fewer than 2^35 elements */
    const int32_t *rows;         /* [positions] a position's row of x; NULL: its own number */
    const packed_span *spans;    /* in dev's memory; NULL: positions 0 .. n - 1 of the one matrix */
    const int32_t *n_spans;      /* [1], in dev's memory */
    int64_t n;                   /* positions without spans; below 2^31 */
    int64_t cols, tile0, n_tiles;
    void *out;      /* F32 [positions, stride], columns from 0 on for tile0's rows; or, of gate and up interleaved, */
    int64_t stride; /* BF16 [positions, stride] = silu(gate) * up */
};

/* span_limit: the most spans there can be.  group as in src/units.h. */
mq_status packed_rows(mq_dev *dev, const char *what, const packed_job *job, int group, bool is_swiglu, int64_t span_limit,
                      mq_err *err);

/* y [n, w.rows] = x [n, w.cols] w^T with x rounded to BF16; any n.  A row's bits depend on that row and on w alone. */
mq_status packed_linear(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);

} // namespace mq_cuda

#endif
