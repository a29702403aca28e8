/* The decode step's product: one fixed order of sums, whatever the instruction set, the threads and the rows beside.
 *
 * The order.  Every (weight row, activation row) has 16 F32 lanes, starting at zero; all multiply-adds are fused.
 *   BF16, F16, F32  lane = column mod 16, ascending columns; the last step of 16 is padded with zeros
 *   FP8_BLOCK       lane = (col_phase + column) mod 16; per 128-column block of the source a partial sum of
 *                   (value * 2^-8) * x per lane, then lane += (scale * 2^8) * partial
 *   INT4, MXFP4     lane = 32-bit word of the row pair's 64-byte run in a unit (src/units.h); per group block a
 *                   partial sum over its bytes 0..3 (g128: of both units), then lane += scale * partial.  INT4 values are
 *                   -8..7; MXFP4 values are doubled and their scale halved, so that they are integers
 *   MXFP4_ROWS      lane = byte of the group's 16; low nibble, then high, then lane += scale * partial, as MXFP4
 * At the end lanes l and l + 8 are added, then + 4, + 2, + 1.
 *
 * Here: x is put into the order in which the kernel meets it (once per call), and weight rows are dealt to threads.
 * fixed_impl.h is the inner loop. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "src/units.h"

/* Rows of padding are zero rows, so that the kernels know 1, 2, 4 and 8 rows only. */
static int64_t padded_rows(int64_t n)
{
    int64_t rest = n % MQ_FIXED_ROWS;
    return n - rest + (rest > 4 ? 8 : rest > 2 ? 4 : rest);
}

static int64_t padded_cols(const mq_matrix *w)
{
    int64_t shift = w->scheme == MQ_SCHEME_FP8_BLOCK ? w->col_phase % 16 : 0;
    return (shift + w->cols + 15) / 16 * 16;
}

/* Word d of a run, byte k: column 32 (j / 2) + 8 t + 4 (j % 2) + {0, 2, 1, 3}[k] with d = 4 t + j. */
static void order_units(float *out, const float *x, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += 64, x += 64)
        for (int d = 0; d < 16; d++) {
            const float *q = x + 32 * ((d & 3) >> 1) + 8 * (d >> 2) + 4 * (d & 1);
            float *o = out + c + d;
            o[0] = q[0];
            o[16] = q[2];
            o[32] = q[1];
            o[48] = q[3];
        }
}

static void order_pairs(float *out, const float *x, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += 32)
        for (int d = 0; d < 16; d++) {
            out[c + d] = x[c + 2 * d];
            out[c + 16 + d] = x[c + 2 * d + 1];
        }
}

static void order_row(float *out, const float *x, const mq_matrix *w, int64_t stride)
{
    if (w->scheme == MQ_SCHEME_INT4 || w->scheme == MQ_SCHEME_MXFP4) {
        order_units(out, x, w->cols);
    } else if (w->scheme == MQ_SCHEME_MXFP4_ROWS) {
        order_pairs(out, x, w->cols);
    } else {
        int64_t shift = w->scheme == MQ_SCHEME_FP8_BLOCK ? w->col_phase % 16 : 0;
        memset(out, 0, (size_t)shift * sizeof *out);
        memcpy(out + shift, x, (size_t)w->cols * sizeof *out);
        memset(out + shift + w->cols, 0, (size_t)(stride - shift - w->cols) * sizeof *out);
    }
}

static bool needs_order(const mq_matrix *w)
{
    return w->scheme == MQ_SCHEME_INT4 || w->scheme == MQ_SCHEME_MXFP4 || w->scheme == MQ_SCHEME_MXFP4_ROWS;
}

mq_status mq_cpu_linear_fixed(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    if (n == 0 || w->rows == 0)
        return MQ_OK;
    mq_fixed_job job = {w, x, padded_cols(w), n, padded_rows(n), y, 0, 0};
    if (w->scheme == MQ_SCHEME_FP8_BLOCK) {
        job.seg_scale_rows = mq_fp8_seg_scale_rows(w);
        job.scale_cols = mq_fp8_scale_cols(w);
    }
    if (needs_order(w) || job.x_stride != w->cols || job.n_pad != n) {
        void *room;
        MQ_TRY(mq_cpu_workspace(dev, MQ_WS_X, job.n_pad * job.x_stride * (int64_t)sizeof *x, &room, err));
        float *xp = room;
        for (int64_t i = 0; i < n; i++)
            order_row(xp + i * job.x_stride, x + i * w->cols, w, job.x_stride);
        memset(xp + n * job.x_stride, 0, (size_t)((job.n_pad - n) * job.x_stride) * sizeof *xp);
        job.x = xp;
    }
    int64_t n_blocks = (w->rows + 15) / 16;
    int threads = mq_cpu_threads(dev, (double)w->rows * (double)w->cols * (1.0 + (double)n / 4.0));
    if (threads == 1) {
        dev->v->fixed(&job, 0, w->rows);
        return MQ_OK;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < n_blocks; b++)
        dev->v->fixed(&job, 16 * b, 16 * b + 16 < w->rows ? 16 * b + 16 : w->rows);
    return MQ_OK;
}
