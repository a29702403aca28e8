/* RMS norm and SwiGLU: one row at a time, rows over threads. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

mq_status mq_cpu_rmsnorm(mq_dev *dev, float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols,
                         mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, (double)n * (double)cols))
    for (int64_t i = 0; i < n; i++) {
        const float *from = x + i * cols;
        float *to = y + i * cols;
        float r = (float)(1.0 / sqrt(dev->v->square_sum(from, cols) / (double)cols + eps));
        for (int64_t k = 0; k < cols; k++)
            to[k] = weight[k] * (from[k] * r);
    }
    return MQ_OK;
}

/* gate and up of 8 channels stand side by side (mq_gate_up_row). */
static void split_gate_up(float *gate, float *up, const float *both, int64_t width)
{
    for (int64_t i = 0; i < width; i += 8) {
        memcpy(gate + i, both + 2 * i, 8 * sizeof *gate);
        memcpy(up + i, both + 2 * i + 8, 8 * sizeof *up);
    }
}

enum { SPLIT = 256 }; /* channels split at a time */

mq_status mq_cpu_swiglu(mq_dev *dev, float *h, const float *gate, const float *up, bool interleaved, int64_t n,
                        int64_t width, mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, 4.0 * (double)n * (double)width))
    for (int64_t i = 0; i < n; i++) {
        if (!interleaved) {
            dev->v->swiglu(h + i * width, gate + i * width, up + i * width, width);
            continue;
        }
        float g[SPLIT], u[SPLIT];
        for (int64_t c = 0; c < width; c += SPLIT) {
            int64_t count = width - c < SPLIT ? width - c : SPLIT;
            split_gate_up(g, u, gate + i * 2 * width + 2 * c, count);
            dev->v->swiglu(h + i * width + c, g, u, count);
        }
    }
    return MQ_OK;
}
