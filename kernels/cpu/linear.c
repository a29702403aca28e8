/* The large product: blocks of weight rows widened to F32, each multiplied with blocks of activation rows by BLAS.
 *
 * The cut into blocks depends on the shapes alone and every block is one single-threaded BLAS call, so the bits do
 * not depend on the number of threads.  Few rows go to linear_fixed, which reads the weights once without widening. */
#include <omp.h>
#include <stddef.h>

#include "kernels/cpu/cpu.h"

enum {
    FIXED_UP_TO = 8,         /* rows of x: below this decoding beats widening */
    X_BLOCK = 256,   /* rows of x a call: what BLAS repacks per call is small beside the product from 128 on, */
    W_BLOCK = 128    /* and so for rows of w */
};

static int64_t block_rows(int64_t rows)
{
    return rows < W_BLOCK ? rows : W_BLOCK;
}

int64_t mq_cpu_linear_bytes(int64_t rows, int64_t cols, int threads)
{
    return threads * block_rows(rows) * cols * (int64_t)sizeof(float);
}

mq_status mq_cpu_linear(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    if (n <= FIXED_UP_TO)
        return mq_cpu_linear_fixed(dev, y, x, w, n, err);
    if (w->rows == 0)
        return MQ_OK;
    int64_t w_block = block_rows(w->rows);
    int64_t n_w = (w->rows + w_block - 1) / w_block, n_x = (n + X_BLOCK - 1) / X_BLOCK;
    int threads = mq_cpu_threads(dev, (double)w->rows * (double)w->cols * (double)n / 16.0);
    bool plain = w->scheme == MQ_SCHEME_F32;
    void *room = NULL;
    if (!plain)
        MQ_TRY(mq_cpu_workspace(dev, MQ_WS_WEIGHTS, mq_cpu_linear_bytes(w->rows, w->cols, threads), &room, err));
#pragma omp parallel num_threads(threads)
    {
        float *scratch = plain ? NULL : (float *)room + omp_get_thread_num() * w_block * w->cols;
        int64_t held = -1;
#pragma omp for schedule(static)
        for (int64_t job = 0; job < n_w * n_x; job++) {
            int64_t wb = job / n_x, x0 = job % n_x * X_BLOCK, row0 = wb * w_block;
            int64_t rows = w->rows - row0 < w_block ? w->rows - row0 : w_block;
            int64_t m = n - x0 < X_BLOCK ? n - x0 : X_BLOCK;
            const float *wide = plain ? (const float *)w->data + row0 * w->cols : scratch;
            if (!plain && held != wb)
                dev->v->widen(w, row0, rows, scratch);
            held = wb;
            mq_blas_gemm_nt(y + x0 * w->rows + row0, w->rows, x + x0 * w->cols, w->cols, wide, w->cols, m, rows, w->cols);
        }
    }
    return MQ_OK;
}
