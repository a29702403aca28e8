/* The rules of choosing experts, for one row and one warp: route.cu and the decode step's router use the same.
 *
 * The best choice that comes after the last one in the order (score + bias descending, expert ascending) is taken topk
 * times, and once more for the margin; a NaN counts as minus infinity.  The exponential is double and rounded once, so
 * that scores and with them the chosen experts are those of the CPU. */
#ifndef MQ_KERNELS_CUDA_ROUTE_CUH
#define MQ_KERNELS_CUDA_ROUTE_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

/* What makes up a row's coefficients. */
struct route_rules {
    int n_experts, topk;
    bool norm;
    float scaling;
};

/* score = sigmoid(logit), choice = what the choosing compares. */
static __device__ __forceinline__ void score_expert(float *score, float *choice, float logit, float bias)
{
    float s = 1.0f / (1.0f + (float)exp(-(double)logit)), c = s + bias;
    *score = s;
    *choice = c == c ? c : -INFINITY;
}

static __device__ __forceinline__ ranked best_after(ranked last, const float *choice, int n_experts)
{
    ranked best = {-INFINITY, INT32_MAX};
    for (int e = (int)(threadIdx.x % WARP); e < n_experts; e += WARP) {
        ranked r = {choice[e], e};
        if (ranks_before(last, r) && ranks_before(r, best))
            best = r;
    }
    return warp_best(best);
}

/* ids [topk] ascending and coef [topk] of a row; by one lane: topk is small. */
static __device__ inline void finish_row(const route_rules &r, int32_t *ids, float *coef, int32_t *chosen,
                                         const float *scores)
{
    float sum = 0.0f;
    for (int k = 1; k < r.topk; k++) {
        int32_t e = chosen[k];
        int at = k;
        for (; at > 0 && chosen[at - 1] > e; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = e;
    }
    for (int k = 0; k < r.topk; k++)
        sum += scores[chosen[k]];
    for (int k = 0; k < r.topk; k++) {
        float s = scores[chosen[k]];
        ids[k] = chosen[k];
        coef[k] = (r.norm ? s / (sum + 1e-20f) : s) * r.scaling;
    }
}

/* By a whole warp: ids and coef from scores and choice [n_experts], chosen [topk] being scratch, all three in shared memory and
 * written by this warp (or before a barrier).  Returns the margin. */
static __device__ inline float choose_row(const route_rules &r, int32_t *ids, float *coef, int32_t *chosen,
                                          const float *scores, const float *choice)
{
    int lane = (int)(threadIdx.x % WARP);
    ranked last = {INFINITY, -1};
    float margin = INFINITY;
    for (int k = 0; k <= r.topk && k < r.n_experts; k++) {
        ranked next = best_after(last, choice, r.n_experts);
        if (k == r.topk)
            margin = last.value - next.value;
        else if (lane == 0)
            chosen[k] = next.id;
        last = next;
    }
    __syncwarp();
    if (lane == 0)
        finish_row(r, ids, coef, chosen, scores);
    return margin;
}

} // namespace mq_cuda

#endif
