/* Loops over one row: SwiGLU, sums for the norm and for softmax statistics; compiled once per instruction set. */
#ifndef MQ_KERNELS_CPU_ELEMENTWISE_IMPL_H
#define MQ_KERNELS_CPU_ELEMENTWISE_IMPL_H

#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vector.h"

MQ_TEMPLATE vf silu_mul(vf g, vf u)
{
    vf e = vf_exp(vf_sub(vf_set1(0.0f), g));
    return vf_mul(vf_div(g, vf_add(vf_set1(1.0f), e)), u);
}

static inline void swiglu_run(float *h, const float *gate, const float *up, int64_t count)
{
    int64_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store(h + i, silu_mul(vf_load(gate + i), vf_load(up + i)));
    if (i < count) {
        float g[16] = {0}, u[16] = {0}, out[16];
        memcpy(g, gate + i, (size_t)(count - i) * sizeof *g);
        memcpy(u, up + i, (size_t)(count - i) * sizeof *u);
        vf_store(out, silu_mul(vf_load(g), vf_load(u)));
        memcpy(h + i, out, (size_t)(count - i) * sizeof *h);
    }
}

MQ_TEMPLATE double double_tree16(const vd s[VF_HALVES])
{
    double a[16];
    for (int h = 0; h < VF_HALVES; h++)
        vd_store(a + h * VF_LANES, s[h]);
    for (int step = 8; step; step /= 2)
        for (int l = 0; l < step; l++)
            a[l] += a[l + step];
    return a[0];
}

/* 16 elements of x from i, zeros or fill past the end. */
MQ_TEMPLATE void tail16(float t[16], const float *x, int64_t i, int64_t count, float fill)
{
    for (int l = 0; l < 16; l++)
        t[l] = i + l < count ? x[i + l] : fill;
}

static inline double square_sum_run(const float *x, int64_t count)
{
    vd s[VF_HALVES];
    for (int h = 0; h < VF_HALVES; h++)
        s[h] = vd_zero();
    float t[16];
    for (int64_t i = 0; i < count; i += 16) {
        const float *p = x + i;
        if (i + 16 > count) {
            tail16(t, x, i, count, 0.0f);
            p = t;
        }
        MQ_UNROLL
        for (int h = 0; h < VF_HALVES; h++) {
            vf v = vf_load(p + h * VF_LANES);
            s[h] = vd_add_product(s[h], v, v);
        }
    }
    return double_tree16(s);
}

static inline float max_run(const float *x, int64_t count)
{
    enum { CHAINS = 64 / VF_LANES };
    vf m[CHAINS];
    for (int k = 0; k < CHAINS; k++)
        m[k] = vf_set1(-INFINITY);
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        MQ_UNROLL
        for (int k = 0; k < CHAINS; k++)
            m[k] = vf_max(vf_load(x + i + k * VF_LANES), m[k]);
    }
    float lanes[64], best = -INFINITY;
    for (int k = 0; k < CHAINS; k++)
        vf_store(lanes + k * VF_LANES, m[k]);
    for (int l = 0; l < 64; l++)
        best = lanes[l] > best ? lanes[l] : best;
    for (; i < count; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

static inline mq_softmax_sums softmax_sums_run(const float *a, const float *b, float max_a, float scale, int64_t count)
{
    vd sum[VF_HALVES], cross[VF_HALVES];
    const vf mv = vf_set1(max_a), sv = vf_set1(scale);
    for (int h = 0; h < VF_HALVES; h++)
        sum[h] = cross[h] = vd_zero();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        MQ_UNROLL
        for (int h = 0; h < VF_HALVES; h++) {
            vf x = vf_load(a + i + h * VF_LANES), e = vf_exp(vf_mul(vf_sub(x, mv), sv));
            sum[h] = vd_add(sum[h], e);
            if (b)
                cross[h] = vd_add_weighted(cross[h], e, x, vf_load(b + i + h * VF_LANES));
        }
    }
    mq_softmax_sums r = {double_tree16(sum), double_tree16(cross)};
    for (; i < count; i++) {
        double e = exp(((double)a[i] - (double)max_a) * (double)scale);
        r.sum += e;
        if (b)
            r.cross += e * ((double)a[i] - (double)b[i]);
    }
    return r;
}

#endif
