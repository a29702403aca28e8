/* The router: a warp a row; the rules are in route.cuh. */
#include "kernels/cuda/route.cuh"

namespace mq_cuda {

enum { WARPS = 4 };

struct route_job {
    int32_t *ids;
    float *coef, *margin;
    const float *logits, *bias;
    int64_t n;
    route_rules rules;
};

static __global__ void route_kernel(route_job job)
{
    MQ_SHARED_DYNAMIC(room, float);
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP);
    int n_experts = job.rules.n_experts, topk = job.rules.topk;
    float *scores = room + warp * (2 * n_experts + topk), *choice = scores + n_experts;
    int32_t *chosen = (int32_t *)(choice + n_experts);
    for (int64_t row = (int64_t)blockIdx.x * WARPS + warp; row < job.n; row += (int64_t)gridDim.x * WARPS) {
        for (int e = lane; e < n_experts; e += WARP)
            score_expert(&scores[e], &choice[e], job.logits[row * n_experts + e], job.bias[e]);
        __syncwarp();
        float margin = choose_row(job.rules, job.ids + row * topk, job.coef + row * topk, chosen, scores, choice);
        if (lane == 0 && job.margin)
            job.margin[row] = margin;
        __syncwarp(); /* the next row overwrites scores */
    }
}

mq_status route(mq_dev *dev, int32_t *ids, float *coef, float *margin, const float *logits, const float *bias, int64_t n,
                int n_experts, int topk, bool norm, float scaling, mq_err *err)
{
    route_job job = {ids, coef, margin, logits, bias, n, {n_experts, topk, norm, scaling}};
    size_t shared = (size_t)WARPS * (size_t)(2 * n_experts + topk) * sizeof *coef;
    return launch(dev, err, "route", route_kernel, n_blocks(n, WARPS), WARPS * WARP, shared, job);
}

} // namespace mq_cuda
