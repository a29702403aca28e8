/* Operations that move or add rows: embedding, gather, columns, scatter-add, add. */
#include <string.h>

#include "kernels/cpu/cpu.h"

/* Below this, one thread copies faster than two. */
static int copy_threads(const mq_dev *dev, int64_t n, int64_t cols)
{
    return mq_cpu_threads(dev, (double)n * (double)cols / 4.0);
}

mq_status mq_cpu_embed(mq_dev *dev, float *out, const mq_matrix *m, const int32_t *ids, int64_t n, mq_err *err)
{
    (void)err;
    bool packed = m->scheme == MQ_SCHEME_INT4 || m->scheme == MQ_SCHEME_MXFP4;
#pragma omp parallel for schedule(static) num_threads(copy_threads(dev, n, m->cols))
    for (int64_t i = 0; i < n; i++) {
        if (packed)
            mq_matrix_widen(m, ids[i], 1, out + i * m->cols);
        else
            dev->v->widen(m, ids[i], 1, out + i * m->cols);
    }
    return MQ_OK;
}

mq_status mq_cpu_gather(mq_dev *dev, float *out, const float *src, const int32_t *index, int64_t n, int64_t cols,
                        mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(copy_threads(dev, n, cols))
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * cols, src + index[i] * cols, (size_t)cols * sizeof *out);
    return MQ_OK;
}

mq_status mq_cpu_pick(mq_dev *dev, float *out, const float *x, const int32_t *index, int64_t n, int64_t cols,
                      mq_err *err)
{
    (void)dev;
    (void)err;
    for (int64_t i = 0; i < n; i++)
        out[i] = x[i * cols + index[i]];
    return MQ_OK;
}

mq_status mq_cpu_put_cols(mq_dev *dev, float *y, int64_t y_cols, int64_t col0, const float *x, int64_t n, int64_t cols,
                          mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(copy_threads(dev, n, cols))
    for (int64_t i = 0; i < n; i++)
        memcpy(y + i * y_cols + col0, x + i * cols, (size_t)cols * sizeof *y);
    return MQ_OK;
}

mq_status mq_cpu_scatter_add(mq_dev *dev, float *y, const float *x, const int32_t *index, const float *coef, int64_t n,
                             int64_t cols, mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(copy_threads(dev, n, cols))
    for (int64_t i = 0; i < n; i++) {
        float *restrict to = y + index[i] * cols;
        const float *restrict from = x + i * cols;
        const float c = coef[i];
        for (int64_t k = 0; k < cols; k++)
            to[k] += c * from[k];
    }
    return MQ_OK;
}

mq_status mq_cpu_add(mq_dev *dev, float *y, const float *x, int64_t count, mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(copy_threads(dev, count, 1))
    for (int64_t i = 0; i < count; i++)
        y[i] += x[i];
    return MQ_OK;
}
