/* Rotary position embedding, rounding as the transformers port does: exponents, inverse frequencies and angles in
 * F32, cosine and sine of that F32 angle correctly rounded (up to the library's double). */
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu/cpu.h"

static void fill_table(const mq_dev *dev, mq_rope_table *t)
{
    int half = t->rotary_dims / 2;
    double ops = 50.0 * (double)t->n * half;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, ops))
    for (int64_t i = 0; i < t->n; i++)
        for (int k = 0; k < half; k++) {
            float exponent = (float)(2 * k) / (float)t->rotary_dims;
            float inv_freq = 1.0f / (float)pow((double)(float)t->theta, (double)exponent);
            float angle = (float)(t->pos0 + i) * inv_freq;
            t->cos_sin[i * t->rotary_dims + k] = (float)cos((double)angle);
            t->cos_sin[i * t->rotary_dims + half + k] = (float)sin((double)angle);
        }
}

/* The table of these positions, made now unless an earlier call left it. */
static mq_status find_table(mq_dev *dev, const float **out, int64_t n, int rotary_dims, double theta, int64_t pos0,
                            mq_err *err)
{
    for (int i = 0; i < MQ_ROPE_TABLES; i++) {
        mq_rope_table *t = &dev->rope[i];
        if (t->cos_sin && t->rotary_dims == rotary_dims && t->theta == theta && pos0 >= t->pos0 &&
            pos0 + n <= t->pos0 + t->n) {
            *out = t->cos_sin + (pos0 - t->pos0) * rotary_dims;
            return MQ_OK;
        }
    }
    mq_rope_table *t = &dev->rope[dev->rope_next];
    int64_t bytes = n * rotary_dims * (int64_t)sizeof *t->cos_sin;
    dev->rope_next = (dev->rope_next + 1) % MQ_ROPE_TABLES;
    if (bytes > t->room_bytes || !t->cos_sin) {
        free(t->cos_sin);
        t->room_bytes = 0;
        t->cos_sin = malloc((size_t)bytes);
        if (!t->cos_sin)
            return mq_fail(err, MQ_E_NOMEM, "rope table: out of memory (%lld bytes)", (long long)bytes);
        t->room_bytes = bytes;
    }
    t->n = n;
    t->rotary_dims = rotary_dims;
    t->theta = theta;
    t->pos0 = pos0;
    fill_table(dev, t);
    *out = t->cos_sin;
    return MQ_OK;
}

mq_status mq_cpu_rope(mq_dev *dev, float *x, int64_t n, int n_heads, int head_dim, int rotary_dims, double theta,
                      int64_t pos0, mq_err *err)
{
    const float *table;
    int half = rotary_dims / 2;
    if (n == 0 || half == 0)
        return MQ_OK;
    MQ_TRY(find_table(dev, &table, n, rotary_dims, theta, pos0, err));
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, (double)n * n_heads * rotary_dims))
    for (int64_t i = 0; i < n; i++) {
        const float *c = table + i * rotary_dims, *s = c + half;
        for (int h = 0; h < n_heads; h++) {
            float *a = x + (i * n_heads + h) * head_dim, *b = a + half;
            for (int k = 0; k < half; k++) {
                float a0 = a[k], b0 = b[k];
                a[k] = a0 * c[k] - b0 * s[k];
                b[k] = b0 * c[k] + a0 * s[k];
            }
        }
    }
    return MQ_OK;
}
