/* Error feedback inside a block of columns, a row of the matrix in each lane; compiled once per instruction set.
 *
 * Columns are taken in steps of a few: first what earlier columns of the block feed into all of them, with the sums in
 * registers, then one column after the other.  Lane groups run inside a step, so that the long chain of one group's divisions
 * overlaps the products of the next. */
#ifndef MQ_KERNELS_CPU_LDLQ_IMPL_H
#define MQ_KERNELS_CPU_LDLQ_IMPL_H

#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vector.h"

enum {
    LDLQ_STEP = VF_REGISTERS == 16 ? 4 : MQ_LDLQ_STEP, /* columns of a step */
    LDLQ_V = 2,                                        /* registers of lanes taken together */
    LDLQ_SPAN = LDLQ_V * VF_LANES
};

/* t to steps of the scale; codes go out as q + 8. */
MQ_TEMPLATE vf ldlq_round(uint8_t *codes, vf t, vf scale)
{
    const vf magic = vf_set1(12582920.0f); /* 1.5 * 2^23 + 8: adding it rounds half to even and leaves q + 8 in the low bits */
    vf x = vf_max(vf_min(vf_div(t, scale), vf_set1(7.0f)), vf_set1(-8.0f));
    vf m = vf_add(x, magic);
    float lanes[VF_LANES];
    vf_store(lanes, m);
    uint32_t bits[VF_LANES];
    memcpy(bits, lanes, sizeof bits);
    for (int l = 0; l < VF_LANES; l++)
        codes[l] = (uint8_t)(bits[l] & 15u);
    return vf_sub(m, magic);
}

/* Columns c0 .. c0 + LDLQ_STEP - 1 of lanes lane0 .. */
MQ_TEMPLATE void ldlq_step(const mq_ldlq_leaf *f, int c0, int64_t lane0)
{
    vf t[LDLQ_STEP][LDLQ_V], loss[LDLQ_V];
    MQ_UNROLL
    for (int c = 0; c < LDLQ_STEP; c++) {
        MQ_UNROLL
        for (int v = 0; v < LDLQ_V; v++) {
            int64_t at = (c0 + c) * f->lanes + lane0 + v * VF_LANES;
            t[c][v] = vf_add(vf_load(f->w + at), vf_load(f->sum + at));
        }
    }
    for (int j = 0; j < c0; j++) {
        vf e[LDLQ_V];
        MQ_UNROLL
        for (int v = 0; v < LDLQ_V; v++)
            e[v] = vf_load(f->w + j * f->lanes + lane0 + v * VF_LANES);
        const float *a = f->a + j * f->lda + c0;
        MQ_UNROLL
        for (int c = 0; c < LDLQ_STEP; c++) {
            MQ_UNROLL
            for (int v = 0; v < LDLQ_V; v++)
                t[c][v] = vf_fma(vf_set1(a[c]), e[v], t[c][v]);
        }
    }
    MQ_UNROLL
    for (int v = 0; v < LDLQ_V; v++)
        loss[v] = vf_load(f->loss + lane0 + v * VF_LANES);
    MQ_UNROLL
    for (int c = 0; c < LDLQ_STEP; c++) {
        const float *a = f->a + (c0 + c) * f->lda + c0;
        MQ_UNROLL
        for (int v = 0; v < LDLQ_V; v++) {
            int64_t at = (c0 + c) * f->lanes + lane0 + v * VF_LANES;
            vf s = vf_load(f->scale[c0 + c] + lane0 + v * VF_LANES), w = vf_load(f->w + at);
            vf back = vf_mul(ldlq_round(f->codes + at, t[c][v], s), s);
            vf e = vf_sub(w, back), miss = vf_sub(t[c][v], back);
            vf_store(f->w + at, e);
            loss[v] = vf_fma(vf_mul(vf_set1(f->d[c0 + c]), miss), miss, loss[v]);
            MQ_UNROLL
            for (int n = c + 1; n < LDLQ_STEP; n++)
                t[n][v] = vf_fma(vf_set1(a[n]), e, t[n][v]);
        }
    }
    MQ_UNROLL
    for (int v = 0; v < LDLQ_V; v++)
        vf_store(f->loss + lane0 + v * VF_LANES, loss[v]);
}

static inline void ldlq_columns(const mq_ldlq_leaf *f)
{
    for (int c0 = 0; c0 < f->n_cols; c0 += LDLQ_STEP)
        for (int64_t lane = 0; lane < f->lanes; lane += LDLQ_SPAN)
            ldlq_step(f, c0, lane);
}

#endif
