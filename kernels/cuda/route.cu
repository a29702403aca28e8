/* The router: a warp a row.
 *
 * The best choice that comes after the last one in the order (score + bias descending, expert ascending) is taken topk
 * times, and once more for the margin; a NaN counts as minus infinity.  The exponential is double and rounded once, so
 * that scores and with them the chosen experts are those of the CPU. */
#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { WARPS = 4 };

struct route_job {
    int32_t *ids;
    float *coef, *margin;
    const float *logits, *bias;
    int64_t n;
    int n_experts, topk;
    bool norm;
    float scaling;
};

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

/* Chosen experts ascending, their coefficients; by one lane: topk is small. */
static __device__ void finish_row(const route_job &job, int64_t row, int32_t *chosen, const float *scores)
{
    float sum = 0.0f;
    for (int k = 1; k < job.topk; k++) {
        int32_t e = chosen[k];
        int at = k;
        for (; at > 0 && chosen[at - 1] > e; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = e;
    }
    for (int k = 0; k < job.topk; k++)
        sum += scores[chosen[k]];
    for (int k = 0; k < job.topk; k++) {
        float s = scores[chosen[k]];
        job.ids[row * job.topk + k] = chosen[k];
        job.coef[row * job.topk + k] = (job.norm ? s / (sum + 1e-20f) : s) * job.scaling;
    }
}

static __global__ void route_kernel(route_job job)
{
    MQ_SHARED_DYNAMIC(room, float);
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP);
    float *scores = room + warp * (2 * job.n_experts + job.topk), *choice = scores + job.n_experts;
    int32_t *chosen = (int32_t *)(choice + job.n_experts);
    for (int64_t row = (int64_t)blockIdx.x * WARPS + warp; row < job.n; row += (int64_t)gridDim.x * WARPS) {
        for (int e = lane; e < job.n_experts; e += WARP) {
            float s = 1.0f / (1.0f + (float)exp(-(double)job.logits[row * job.n_experts + e])), c = s + job.bias[e];
            scores[e] = s;
            choice[e] = c == c ? c : -INFINITY;
        }
        __syncwarp();
        ranked last = {INFINITY, -1};
        float margin = INFINITY;
        for (int k = 0; k <= job.topk && k < job.n_experts; k++) {
            ranked next = best_after(last, choice, job.n_experts);
            if (k == job.topk)
                margin = last.value - next.value;
            else if (lane == 0)
                chosen[k] = next.id;
            last = next;
        }
        __syncwarp();
        if (lane == 0) {
            finish_row(job, row, chosen, scores);
            if (job.margin)
                job.margin[row] = margin;
        }
        __syncwarp(); /* the next row overwrites scores */
    }
}

mq_status route(mq_dev *dev, int32_t *ids, float *coef, float *margin, const float *logits, const float *bias, int64_t n,
                int n_experts, int topk, bool norm, float scaling, mq_err *err)
{
    route_job job = {ids, coef, margin, logits, bias, n, n_experts, topk, norm, scaling};
    size_t shared = (size_t)WARPS * (size_t)(2 * n_experts + topk) * sizeof *coef;
    return launch(dev, err, "route", route_kernel, n_blocks(n, WARPS), WARPS * WARP, shared, job);
}

} // namespace mq_cuda
