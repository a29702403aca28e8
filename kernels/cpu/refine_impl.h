/* Inner loops of quant_loss, refit_scales and descend: one row at a time; compiled once per instruction set. */
#ifndef MQ_KERNELS_CPU_REFINE_IMPL_H
#define MQ_KERNELS_CPU_REFINE_IMPL_H

#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vector.h"

/* Codes in bytes as -8 .. 7. */
MQ_TEMPLATE vf refine_codes(const uint8_t *codes)
{
    vf q[4];
    vi_int4(q, vi_load_bytes(codes), 0);
    return q[0];
}

static inline void residual_row(float *out, const float *w, const uint8_t *codes, const float *scale, int64_t cols, int group)
{
    for (int64_t c = 0; c < cols; c += group) {
        const vf s = vf_set1(scale ? scale[c / group] : 0.0f);
        for (int64_t i = c; i < c + group; i += VF_LANES) {
            vf q = refine_codes(codes + i);
            vf_store(out + i, w ? vf_sub(vf_load(w + i), vf_mul(q, s)) : q);
        }
    }
}

static inline void dots_run(double *out, const float *a, const float *b, int64_t n_groups, int64_t group)
{
    for (int64_t k = 0; k < n_groups; k++, a += group, b += group) {
        vd sum = vd_zero();
        for (int64_t i = 0; i < group; i += VF_LANES)
            sum = vd_add_product(sum, vf_load(a + i), vf_load(b + i));
        double lanes[VF_LANES];
        vd_store(lanes, sum);
        for (int step = VF_LANES / 2; step; step /= 2)
            for (int l = 0; l < step; l++)
                lanes[l] += lanes[l + step];
        out[k] = lanes[0];
    }
}

/* Bits of the lanes from c on whose best code differs from theirs; best gets the codes, -8 .. 7. */
MQ_TEMPLATE uint32_t descend_look(const mq_descend_row *row, int64_t c, float best[16])
{
    const vf magic = vf_set1(12582912.0f), s = vf_set1(row->scale[c / row->group]); /* adding 1.5 * 2^23 rounds half to even */
    uint32_t differ = 0;
    for (int h = 0; h < VF_HALVES; h++) {
        const int64_t at = c + h * VF_LANES;
        vf q = refine_codes(row->codes + at);
        vf x = vf_add(q, vf_div(vf_load(row->y + at), vf_mul(vf_load(row->diag + at), s)));
        x = vf_max(vf_min(x, vf_set1(7.0f)), vf_set1(-8.0f));
        x = vf_sub(vf_add(x, magic), magic);
        vf_store(best + h * VF_LANES, x);
        differ |= vf_differ(x, q) << (h * VF_LANES);
    }
    return differ;
}

/* y -= step times row k of the moment. */
MQ_TEMPLATE void descend_move(const mq_descend_row *row, int64_t k, float step)
{
    const float *g = row->full + k * row->cols;
    const vf s = vf_set1(-step);
    for (int64_t j = 0; j < row->cols; j += VF_LANES)
        vf_store(row->y + j, vf_fma(s, vf_load(g + j), vf_load(row->y + j)));
}

static inline void descend_row(const mq_descend_row *row)
{
    float best[16];
    for (int pass = 0; pass < row->n_passes; pass++) {
        bool changed = false;
        for (int64_t c = 0; c < row->cols; c += 16) {
            uint32_t todo = 0xffffu; /* lanes not yet passed */
            for (;;) {
                uint32_t differ = descend_look(row, c, best) & todo;
                if (!differ)
                    break;
                int l = __builtin_ctz(differ);
                todo = 0xffffu & ~((2u << l) - 1u);
                const float s = row->scale[c / row->group];
                if (!(row->diag[c + l] > 0.0f) || fabsf(row->diag[c + l] * s) < 0x1p-126f)
                    continue;
                float step = best[l] - (float)((int)row->codes[c + l] - 8);
                row->codes[c + l] = (uint8_t)((int)best[l] + 8);
                descend_move(row, c + l, step * s);
                changed = true;
            }
        }
        if (!changed)
            break;
    }
}

/* b = R transposed with M enlarged = R R^T, R upper: from the last group up.  False where M is not positive definite. */
static inline bool refit_factor(const mq_refit_row *row)
{
    const int n = row->n;
    double *b = row->b;
    for (int i = 0; i < n; i++) {
        bool dead = !(row->m[i * n + i] > 0.0);
        for (int j = 0; j <= i; j++)
            b[i * n + j] = dead || !(row->m[j * n + j] > 0.0) ? 0.0 : row->m[i * n + j];
        b[i * n + i] = dead ? 1.0 : b[i * n + i] * (1.0 + 1e-4);
    }
    for (int k = n - 1; k >= 0; k--) {
        const double *bk = b + k * n;
        if (!(bk[k] > 0.0) || !isfinite(bk[k]))
            return false;
        const double inv = 1.0 / sqrt(bk[k]);
        for (int j = 0; j <= k; j++)
            b[k * n + j] *= inv;
        for (int i = 0; i < k; i++) {
            const double f = bk[i];
            double *bi = b + i * n;
            for (int j = 0; j <= i; j++)
                bi[j] -= f * bk[j];
        }
    }
    return true;
}

/* BF16 nearest to x with x kept between 0.8 and 1.2 times s, magnitude at least 2^-126. */
static inline float refit_round(double x, float s)
{
    const double a = 0.8 * (double)s, b = 1.2 * (double)s, lo = a < b ? a : b, hi = a < b ? b : a;
    float v = mq_bf16_to_f32(mq_f32_to_bf16((float)(x < lo ? lo : x > hi ? hi : x)));
    return fabsf(v) < 0x1p-126f ? copysignf(0x1p-126f, s) : v;
}

static inline double refit_row(const mq_refit_row *row)
{
    const int n = row->n;
    double *z = row->z, *y = row->y, gain = 0.0;
    if (!refit_factor(row))
        return 0.0;
    for (int k = 0; k < n; k++)
        z[k] = row->m[k * n + k] > 0.0 ? row->r[k] : 0.0;
    for (int k = n - 1; k >= 0; k--) { /* R z = r */
        const double *b = row->b + k * n;
        z[k] /= b[k];
        for (int j = 0; j < k; j++)
            z[j] -= b[j] * z[k];
    }
    for (int k = 0; k < n; k++) { /* R^T delta = z, each delta replaced by what is taken */
        const double *b = row->b + k * n;
        double t = z[k];
        for (int j = 0; j < k; j++)
            t -= b[j] * y[j];
        y[k] = row->m[k * n + k] > 0.0 ? (double)refit_round((double)row->scale[k] + t / b[k], row->scale[k]) - (double)row->scale[k]
                                       : 0.0;
    }
    for (int i = 0; i < n; i++) {
        double s = 0.0;
        for (int j = 0; j < i; j++)
            s += 2.0 * row->m[i * n + j] * y[j];
        gain += y[i] * (2.0 * row->r[i] - row->m[i * n + i] * y[i] - s);
    }
    if (!(gain > 0.0))
        return 0.0;
    for (int k = 0; k < n; k++)
        row->scale[k] = (float)((double)row->scale[k] + y[k]);
    return gain;
}

#endif
