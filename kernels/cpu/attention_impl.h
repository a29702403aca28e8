/* Attention of a few query rows over one KV head, compiled once per instruction set.
 *
 * Keys come in blocks of 64 at fixed positions (multiples of 64), ascending, each transposed once for all rows and
 * query heads that share it.  Per row and head: 64 scores, each one chain of multiply-adds over the dimensions; a running maximum and
 * sum as in online softmax (Milakov and Gimelshein, arXiv 1805.02867); values added key by key.  Keys a row
 * does not see add nothing to any of its sums, so its bits do not depend on the rows beside it. */
#ifndef MQ_KERNELS_CPU_ATTENTION_IMPL_H
#define MQ_KERNELS_CPU_ATTENTION_IMPL_H

#include "kernels/cpu/vec16.h"
#include "kernels/cpu/vector.h"

enum {
    ATT_K = MQ_ATTENTION_KEYS,
    ATT_Q = 4,                              /* queries taken together */
    ATT_V = VF_HALVES == 1 ? 4 : 2,         /* registers of keys or of value dimensions taken together */
    ATT_SPAN = ATT_V * VF_LANES
};

/* What one (row, head) carries from block to block; o is its unnormalized output. */
typedef struct att_item {
    const float *q;
    float *o, *p; /* [v_head_dim]; [64] scores, then probabilities */
    int64_t lo, hi; /* visible positions lo .. hi - 1 */
    float max, sum;
} att_item;

/* scores of n (1 or ATT_Q) items against the transposed block kt [head_dim][64]. */
MQ_TEMPLATE void att_scores(att_item *const *it, int n, const float *kt, int dim, float scale)
{
    for (int j = 0; j < ATT_K; j += ATT_SPAN) {
        vf acc[ATT_Q][ATT_V];
        MQ_UNROLL
        for (int i = 0; i < n; i++) {
            MQ_UNROLL
            for (int v = 0; v < ATT_V; v++)
                acc[i][v] = vf_set1(0.0f);
        }
        for (int d = 0; d < dim; d++) {
            const float *k = kt + d * ATT_K + j;
            MQ_UNROLL
            for (int i = 0; i < n; i++) {
                vf qv = vf_set1(it[i]->q[d]);
                MQ_UNROLL
                for (int v = 0; v < ATT_V; v++)
                    acc[i][v] = vf_fma(qv, vf_load(k + v * VF_LANES), acc[i][v]);
            }
        }
        MQ_UNROLL
        for (int i = 0; i < n; i++) {
            MQ_UNROLL
            for (int v = 0; v < ATT_V; v++)
                vf_store(it[i]->p + j + v * VF_LANES, vf_mul(acc[i][v], vf_set1(scale)));
        }
    }
}

/* Scores of keys a .. b - 1 of the block to probabilities, zero elsewhere; rescales what the item holds. */
MQ_TEMPLATE void att_softmax(att_item *it, int a, int b, int v_dim)
{
    float *p = it->p, m = it->max;
    for (int j = 0; j < a; j++)
        p[j] = -INFINITY;
    for (int j = b; j < ATT_K; j++)
        p[j] = -INFINITY;
    __attribute__((aligned(64))) float lanes[16];
    vf mv[VF_HALVES], sum[VF_HALVES];
    for (int h = 0; h < VF_HALVES; h++) {
        mv[h] = vf_load(p + h * VF_LANES);
        for (int j = 16; j < ATT_K; j += 16)
            mv[h] = vf_max(vf_load(p + j + h * VF_LANES), mv[h]);
        vf_store(lanes + h * VF_LANES, mv[h]);
    }
    for (int l = 0; l < 16; l++)
        m = lanes[l] > m ? lanes[l] : m;
    for (int j = 0; j < ATT_K; j += VF_LANES)
        vf_store(p + j, vf_exp(vf_sub(vf_load(p + j), vf_set1(m))));
    for (int j = 0; j < a; j++)
        p[j] = 0.0f;
    for (int j = b; j < ATT_K; j++)
        p[j] = 0.0f;
    for (int h = 0; h < VF_HALVES; h++) {
        sum[h] = vf_load(p + h * VF_LANES);
        for (int j = 16; j < ATT_K; j += 16)
            sum[h] = vf_add(sum[h], vf_load(p + j + h * VF_LANES));
        vf_store(lanes + h * VF_LANES, sum[h]);
    }
    if (m != it->max) {
        float shrink[16];
        for (int h = 0; h < VF_HALVES; h++)
            vf_store(shrink + h * VF_LANES, vf_exp(vf_set1(it->max - m)));
        it->sum *= shrink[0];
        for (int d = 0; d < v_dim; d++)
            it->o[d] *= shrink[0];
        it->max = m;
    }
    it->sum += vf_tree16(lanes);
}

/* o += p * v over keys a .. b - 1 for n items; v_rows[j] is key j's value row. */
MQ_TEMPLATE void att_values(att_item *const *it, int n, const float *const *v_rows, int a, int b, int v_dim)
{
    int d = 0;
    for (; d + ATT_SPAN <= v_dim; d += ATT_SPAN) {
        vf acc[ATT_Q][ATT_V];
        MQ_UNROLL
        for (int i = 0; i < n; i++) {
            MQ_UNROLL
            for (int v = 0; v < ATT_V; v++)
                acc[i][v] = vf_load(it[i]->o + d + v * VF_LANES);
        }
        for (int j = a; j < b; j++) {
            MQ_UNROLL
            for (int i = 0; i < n; i++) {
                vf pv = vf_set1(it[i]->p[j]);
                MQ_UNROLL
                for (int v = 0; v < ATT_V; v++)
                    acc[i][v] = vf_fma(pv, vf_load(v_rows[j] + d + v * VF_LANES), acc[i][v]);
            }
        }
        MQ_UNROLL
        for (int i = 0; i < n; i++) {
            MQ_UNROLL
            for (int v = 0; v < ATT_V; v++)
                vf_store(it[i]->o + d + v * VF_LANES, acc[i][v]);
        }
    }
    for (; d + VF_LANES <= v_dim; d += VF_LANES)
        for (int i = 0; i < n; i++) {
            vf acc = vf_load(it[i]->o + d);
            for (int j = a; j < b; j++)
                acc = vf_fma(vf_set1(it[i]->p[j]), vf_load(v_rows[j] + d), acc);
            vf_store(it[i]->o + d, acc);
        }
    for (; d < v_dim; d++)
        for (int i = 0; i < n; i++)
            for (int j = a; j < b; j++)
                it[i]->o[d] = fmaf(it[i]->p[j], v_rows[j][d], it[i]->o[d]);
}

/* Key block base .. base + 63 where visible to anybody (positions a .. b - 1 of the block): kt and v_rows. */
MQ_TEMPLATE void att_load_block(const mq_kv *kv, int head, int64_t base, int a, int b, float *kt, const float **v_rows)
{
    const float *k_rows[ATT_K];
    for (int j = 0; j < ATT_K; j++) {
        int key = j < a ? a : j >= b ? b - 1 : j; /* columns nobody sees repeat a visible key */
        int64_t slot = (base + key) % kv->n_slots;
        k_rows[j] = kv->k + (slot * kv->n_kv_heads + head) * kv->head_dim;
        v_rows[j] = kv->v + (slot * kv->n_kv_heads + head) * kv->v_head_dim;
    }
    int d = 0;
    for (; d + 4 <= kv->head_dim; d += 4)
        for (int j = 0; j < ATT_K; j += 4)
            vf_transpose4(kt + d * ATT_K + j, ATT_K, k_rows + j, d);
    for (; d < kv->head_dim; d++)
        for (int j = 0; j < ATT_K; j++)
            kt[d * ATT_K + j] = k_rows[j][d];
}

static inline void att_block(att_item *items, int n_items, const mq_kv *kv, const float *kt, const float *const *v_rows,
                      int64_t base, float scale)
{
    for (int i = 0; i < n_items;) {
        att_item *group[ATT_Q];
        int n = 0, a[ATT_Q], b[ATT_Q];
        /* The next items that see anything of this block; four of one kind go together. */
        while (i < n_items && n < ATT_Q) {
            att_item *it = &items[i++];
            int64_t lo = it->lo - base, hi = it->hi - base;
            if (lo >= ATT_K || hi <= 0)
                continue;
            a[n] = lo > 0 ? (int)lo : 0;
            b[n] = hi < ATT_K ? (int)hi : ATT_K;
            group[n++] = it;
        }
        if (n == ATT_Q)
            att_scores(group, ATT_Q, kt, kv->head_dim, scale);
        else
            for (int k = 0; k < n; k++)
                att_scores(group + k, 1, kt, kv->head_dim, scale);
        int same = n == ATT_Q;
        for (int k = 0; k < n; k++) {
            att_softmax(group[k], a[k], b[k], kv->v_head_dim);
            same = same && a[k] == a[0] && b[k] == b[0];
        }
        if (same)
            att_values(group, ATT_Q, v_rows, a[0], b[0], kv->v_head_dim);
        else
            for (int k = 0; k < n; k++)
                att_values(group + k, 1, v_rows, a[k], b[k], kv->v_head_dim);
    }
}

static inline void attention_rows(const mq_attention_job *job, int kv_head, int64_t row0, int64_t row1, float *scratch)
{
    const mq_kv *kv = job->kv;
    int share = job->n_heads / kv->n_kv_heads, n_items = 0;
    float *kt = scratch, *p = kt + (int64_t)kv->head_dim * ATT_K;
    att_item *items = (att_item *)(void *)(p + (int64_t)MQ_ATTENTION_ROWS * share * ATT_K);
    const float *v_rows[ATT_K];
    int64_t first = INT64_MAX, last; /* keys first .. last - 1 */
    last = job->pos0 + (job->is_block ? job->n : row1);
    for (int64_t row = row0; row < row1; row++)
        for (int s = 0; s < share; s++, n_items++) {
            int head = kv_head * share + s;
            int64_t pos = job->pos0 + row, at = row * job->n_heads + head;
            att_item *it = &items[n_items];
            it->q = job->q + at * kv->head_dim;
            it->o = job->out + at * kv->v_head_dim;
            it->p = p + (int64_t)n_items * ATT_K;
            it->hi = job->is_block ? last : pos + 1;
            it->lo = job->window > 0 && pos + 1 > job->window ? pos + 1 - job->window : 0;
            it->max = job->sink ? job->sink[head] : -INFINITY;
            it->sum = job->sink ? 1.0f : 0.0f;
            first = it->lo < first ? it->lo : first;
            memset(it->o, 0, (size_t)kv->v_head_dim * sizeof *it->o);
        }
    for (int64_t base = first / ATT_K * ATT_K; base < last; base += ATT_K) {
        int a = first > base ? (int)(first - base) : 0, b = last - base < ATT_K ? (int)(last - base) : ATT_K;
        att_load_block(kv, kv_head, base, a, b, kt, v_rows);
        att_block(items, n_items, kv, kt, v_rows, base, job->scale);
    }
    for (int i = 0; i < n_items; i++)
        for (int d = 0; d < kv->v_head_dim; d++)
            items[i].o[d] /= items[i].sum;
}

#endif
