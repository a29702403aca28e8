/* The large product: blocks of weight rows widened to the device's precision, each multiplied with all activation rows by
 * cuBLAS with F32 sums.
 *
 * The cut into blocks depends on the shape alone.  Few rows go to linear_fixed, which reads the weights once. */
#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/packed.cuh"

namespace mq_cuda {

enum { FIXED_UP_TO = 8 };
static const int64_t WIDE_FLOATS = 16 << 20, ROWS_AT_LEAST = 128; /* 64 MiB of widened weights at a time */

static int64_t rows_at_once(int64_t rows, int64_t cols)
{
    int64_t block = WIDE_FLOATS / cols / ROWS_AT_LEAST * ROWS_AT_LEAST;
    block = block < ROWS_AT_LEAST ? ROWS_AT_LEAST : block;
    return block < rows ? block : rows;
}

int64_t linear_bytes(int64_t rows, int64_t cols)
{
    int64_t a = rows_at_once(rows, cols) * cols, b = rows_at_once(cols, rows) * rows;
    return (a > b ? a : b) * (int64_t)sizeof(float);
}

/* Stored BF16 weights are taken as they are. */
static mq_status linear_bf16(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    void *room;
    bool stored = w->scheme == MQ_SCHEME_BF16;
    int64_t block = stored ? w->rows : rows_at_once(w->rows, w->cols);
    MQ_TRY(workspace(dev, WS_HALF, n * w->cols * (int64_t)sizeof(uint16_t), &room, err));
    uint16_t *half = (uint16_t *)room;
    MQ_TRY(to_bf16(dev, "linear", half, x, n, w->cols, err));
    if (!stored)
        MQ_TRY(workspace(dev, WS_WEIGHTS, block * w->cols * (int64_t)sizeof(uint16_t), &room, err));
    for (int64_t row0 = 0; row0 < w->rows; row0 += block) {
        int64_t rows = w->rows - row0 < block ? w->rows - row0 : block;
        if (!stored)
            MQ_TRY(widen_to_bf16(dev, "linear", (uint16_t *)room, w, row0, rows, err));
        MQ_TRY(gemm_bf16(dev, "linear", false, true, n, rows, w->cols, half, w->cols,
                         stored ? (const uint16_t *)w->data : (const uint16_t *)room, w->cols, 0.0f, y + row0, w->rows,
                         err));
    }
    return MQ_OK;
}

mq_status linear(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    if (dev->precision == MQ_PRECISION_BF16 && is_packed(w))
        return packed_linear(dev, y, x, w, n, err);
    if (n <= FIXED_UP_TO)
        return linear_fixed(dev, y, x, w, n, err);
    if (w->rows == 0)
        return MQ_OK;
    if (dev->precision == MQ_PRECISION_BF16)
        return linear_bf16(dev, y, x, w, n, err);
    if (w->scheme == MQ_SCHEME_F32)
        return gemm(dev, "linear", false, true, n, w->rows, w->cols, 1.0f, x, w->cols, (const float *)w->data, w->cols, 0.0f,
                    y, w->rows, err);
    int64_t block = rows_at_once(w->rows, w->cols);
    void *room;
    MQ_TRY(workspace(dev, WS_WEIGHTS, block * w->cols * (int64_t)sizeof *x, &room, err));
    float *wide = (float *)room;
    for (int64_t row0 = 0; row0 < w->rows; row0 += block) {
        int64_t rows = w->rows - row0 < block ? w->rows - row0 : block;
        MQ_TRY(widen(dev, wide, w, row0, rows, err));
        MQ_TRY(gemm(dev, "linear", false, true, n, rows, w->cols, 1.0f, x, w->cols, wide, w->cols, 0.0f, y + row0, w->rows,
                    err));
    }
    return MQ_OK;
}

} // namespace mq_cuda
