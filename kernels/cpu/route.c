/* The router: sigmoid scores, the topk largest of score + bias, coefficients from the scores alone.
 *
 * Experts are offered in ascending order and replace a kept one only when strictly larger, so ties go to the lower
 * expert.  A NaN counts as minus infinity. */
#include <math.h>

#include "kernels/cpu/cpu.h"

typedef struct pick {
    float choice; /* score + bias */
    int32_t expert;
} pick;

/* best [topk + 1]: the largest choices in descending order, the last one being the best that was not chosen. */
static void pick_best(pick *best, int n_best, const float *scores, const float *bias, int n_experts)
{
    int count = 0;
    for (int e = 0; e < n_experts; e++) {
        pick p = {scores[e] + bias[e], e};
        int at = count;
        if (isnan(p.choice))
            p.choice = -INFINITY;
        while (at > 0 && p.choice > best[at - 1].choice)
            at--;
        if (at >= n_best)
            continue;
        count = count < n_best ? count + 1 : n_best;
        for (int k = count - 1; k > at; k--)
            best[k] = best[k - 1];
        best[at] = p;
    }
}

static void sort_ids(int32_t *ids, const pick *best, int topk)
{
    for (int k = 0; k < topk; k++) {
        int at = k;
        for (; at > 0 && ids[at - 1] > best[k].expert; at--)
            ids[at] = ids[at - 1];
        ids[at] = best[k].expert;
    }
}

mq_status mq_cpu_route(mq_dev *dev, int32_t *ids, float *coef, float *margin, const float *logits, const float *bias,
                       int64_t n, int n_experts, int topk, bool norm, float scaling, mq_err *err)
{
    void *room;
    int n_best = topk < n_experts ? topk + 1 : topk;
    int64_t row_floats = n_experts + 2 * (int64_t)(topk + 1);
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_ROUTE, n * row_floats * (int64_t)sizeof *coef, &room, err));
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, 8.0 * (double)n * n_experts))
    for (int64_t i = 0; i < n; i++) {
        float *scores = (float *)room + i * row_floats, sum = 0.0f;
        pick *best = (pick *)(void *)(scores + n_experts);
        for (int e = 0; e < n_experts; e++)
            scores[e] = 1.0f / (1.0f + expf(-logits[i * n_experts + e]));
        pick_best(best, n_best, scores, bias, n_experts);
        sort_ids(ids + i * topk, best, topk);
        for (int k = 0; k < topk; k++)
            sum += scores[ids[i * topk + k]];
        for (int k = 0; k < topk; k++) {
            float s = scores[ids[i * topk + k]];
            coef[i * topk + k] = (norm ? s / (sum + 1e-20f) : s) * scaling;
        }
        if (margin)
            margin[i] = n_best > topk ? best[topk - 1].choice - best[topk].choice : INFINITY;
    }
    return MQ_OK;
}
