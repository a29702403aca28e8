/* The router of a decode step: F32 logits, the choice of every row, and the plan that the experts' kernels follow.
 *
 * Three kernels.  Scores: a block takes COLS columns of x and a thread one expert, so the weights are read once, by many
 * blocks; its sums over the columns, ascending, are one part of a logit.  Choice: a block a row adds the parts,
 * ascending, and one warp chooses by the rules of route.cuh.  Plan: one block joins the rows' choices.  COLS is fixed:
 * what a row gets does not depend on the device. */
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/weights.cuh"

namespace mq_cuda {
namespace decode {

enum { COLS = 128, SCORE_THREADS = 128, CHOICE_THREADS = 256, PLAN_THREADS = 256 };

/* Of columns.  The workspace holds parts [n_chunks, ROWS, n_experts], then ids [ROWS, topk]. */
static int n_chunks(int64_t hidden)
{
    return (int)((hidden + COLS - 1) / COLS);
}

int64_t router_bytes(int n_experts, int64_t hidden)
{
    return ((int64_t)n_chunks(hidden) * ROWS * n_experts + ROWS * MQ_MAX_TOPK) * 4;
}

mq_status check_router(const mq_matrix *w, int topk, mq_err *err)
{
    if (w->scheme != MQ_SCHEME_BF16 && w->scheme != MQ_SCHEME_F16 && w->scheme != MQ_SCHEME_F32)
        return mq_fail(err, MQ_E_UNSUPPORTED, "router in %s, expected bf16, f16 or f32", mq_scheme_name(w->scheme));
    if (topk < 1 || topk > MQ_MAX_TOPK || topk > w->rows || w->rows > MQ_MAX_EXPERTS)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d of %lld experts a token, expected 1 to %d of at most %d", topk,
                       (long long)w->rows, (int)MQ_MAX_TOPK, (int)MQ_MAX_EXPERTS);
    return MQ_OK;
}

/* ---- scores ---- */

/* Weights col .. col + 7 of row e, of which the first n_cols count; vector: 16-byte loads are allowed. */
template <int SCHEME>
static __device__ __forceinline__ void load8(float *out, const weight_view &w, int64_t e, int64_t col, int n_cols, bool vector)
{
    if (!vector || n_cols < 8) {
        for (int i = 0; i < 8; i++)
            out[i] = i < n_cols ? weight_at<SCHEME>(w, e, col + i) : 0.0f;
        return;
    }
    if (SCHEME == MQ_SCHEME_F32) {
        const float4 *p = (const float4 *)((const float *)w.data + e * w.cols + col);
        float4 a = p[0], b = p[1];
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
        return;
    }
    uint4 v = *(const uint4 *)((const uint16_t *)w.data + e * w.cols + col);
    uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint16_t bits = (uint16_t)(words[i / 2] >> (i % 2 * 16));
        out[i] = SCHEME == MQ_SCHEME_BF16 ? mq_bf16_to_f32(bits) : mq_f16_to_f32(bits);
    }
}

template <int SCHEME>
static __global__ void __launch_bounds__(SCORE_THREADS)
    router_scores_kernel(float *parts, const float *x, weight_view w, int n_experts, bool vector)
{
    MQ_SHARED(slice, float[COLS][ROWS]);
    int64_t col0 = (int64_t)blockIdx.x * COLS;
    int n_cols = (int)(w.cols - col0 < COLS ? w.cols - col0 : (int64_t)COLS), e = (int)(blockIdx.y * SCORE_THREADS + threadIdx.x);
    wait_for_previous();
    let_next_start();
    for (int i = (int)threadIdx.x; i < COLS * ROWS; i += SCORE_THREADS) {
        int col = i % COLS, row = i / COLS;
        slice[col][row] = col < n_cols ? x[row * w.cols + col0 + col] : 0.0f;
    }
    __syncthreads();
    if (e >= n_experts)
        return;
    float acc[ROWS] = {};
    for (int c = 0; c < n_cols; c += 8) {
        float v[8];
        load8<SCHEME>(v, w, e, col0 + c, n_cols - c, vector);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int row = 0; row < ROWS; row++)
                if (c + i < n_cols) /* a product with a column that is not there would turn infinities to NaN */
                    acc[row] = fmaf(v[i], slice[c + i][row], acc[row]);
    }
    for (int row = 0; row < ROWS; row++)
        parts[((int64_t)blockIdx.x * ROWS + row) * n_experts + e] = acc[row];
}

/* ---- choice ---- */

static __global__ void __launch_bounds__(CHOICE_THREADS)
    router_choice_kernel(int32_t *ids, float *coef, const float *parts, const float *bias, const mq_decode_input *in,
                         int n_parts, route_rules rules)
{
    MQ_SHARED_DYNAMIC(room, float);
    float *scores = room, *choice = scores + rules.n_experts;
    int32_t *chosen = (int32_t *)(choice + rules.n_experts);
    int row = (int)blockIdx.x;
    wait_for_previous();
    let_next_start();
    if (row >= in->n) {
        for (int k = (int)threadIdx.x; k < rules.topk; k += CHOICE_THREADS) {
            ids[row * rules.topk + k] = -1;
            coef[row * rules.topk + k] = 0.0f;
        }
        return;
    }
    for (int e = (int)threadIdx.x; e < rules.n_experts; e += CHOICE_THREADS) {
        float logit = 0.0f;
#pragma unroll 8
        for (int c = 0; c < n_parts; c++)
            logit += parts[((int64_t)c * ROWS + row) * rules.n_experts + e];
        score_expert(&scores[e], &choice[e], logit, bias[e]);
    }
    __syncthreads();
    if (threadIdx.x < WARP)
        (void)choose_row(rules, ids + row * rules.topk, coef + row * rules.topk, chosen, scores, choice);
}

/* ---- plan ---- */

/* Of a block: how many threads before this one brought true, and how many in all. */
static __device__ __forceinline__ int count_before(bool mine, int *total)
{
    MQ_SHARED(warps, int[PLAN_THREADS / WARP]);
    unsigned votes = __ballot_sync(ALL_LANES, mine), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0)
        warps[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1u));
    *total = 0;
    for (unsigned i = 0; i < PLAN_THREADS / WARP; i++) {
        before += i < warp ? warps[i] : 0;
        *total += warps[i];
    }
    __syncthreads(); /* the next call writes warps */
    return before;
}

static __global__ void __launch_bounds__(PLAN_THREADS)
    router_plan_kernel(mq_decode_plan plan, const int32_t *ids, int n_experts, int topk)
{
    MQ_SHARED_DYNAMIC(place, int32_t); /* [n_experts] first whether chosen, then the index among the chosen */
    wait_for_previous();
    let_next_start();
    int n_slots = ROWS * topk, n_active = 0;
    for (int e = (int)threadIdx.x; e < n_experts; e += PLAN_THREADS)
        place[e] = 0;
    for (int i = (int)threadIdx.x; i < n_slots * ROWS; i += PLAN_THREADS)
        plan.slot[i] = -1;
    __syncthreads();
    for (int s = (int)threadIdx.x; s < n_slots; s += PLAN_THREADS)
        if (ids[s] >= 0)
            place[ids[s]] = 1;
    __syncthreads();
    for (int e0 = 0; e0 < n_experts; e0 += PLAN_THREADS) {
        int e = e0 + (int)threadIdx.x, n_new;
        bool is_chosen = e < n_experts && place[e];
        int at = n_active + count_before(is_chosen, &n_new);
        if (is_chosen) {
            place[e] = at;
            plan.expert[at] = e;
        }
        n_active += n_new;
    }
    __syncthreads();
    for (int s = (int)threadIdx.x; s < n_slots; s += PLAN_THREADS)
        if (ids[s] >= 0)
            plan.slot[place[ids[s]] * ROWS + s / topk] = s;
    if (threadIdx.x == 0)
        *plan.n = n_active;
}

mq_status router(mq_dev *dev, const mq_decode_router *job, mq_err *err)
{
    int n_experts = (int)job->w.rows, chunks = n_chunks(job->w.cols);
    float *parts = (float *)job->workspace;
    int32_t *ids = (int32_t *)(parts + (int64_t)chunks * ROWS * n_experts);
    int64_t element = job->w.scheme == MQ_SCHEME_F32 ? 4 : 2;
    bool vector = (uintptr_t)job->w.data % 16 == 0 && job->w.cols * element % 16 == 0;
    weight_view w = view_of(&job->w);
    dim3 grid((unsigned)chunks, n_blocks(n_experts, SCORE_THREADS));
    auto scores = job->w.scheme == MQ_SCHEME_F32   ? router_scores_kernel<MQ_SCHEME_F32>
                  : job->w.scheme == MQ_SCHEME_F16 ? router_scores_kernel<MQ_SCHEME_F16>
                                                   : router_scores_kernel<MQ_SCHEME_BF16>;
    MQ_TRY(launch_dependent(dev, err, "router", scores, grid, SCORE_THREADS, 0, parts, job->x, w, n_experts, vector));
    route_rules rules = {n_experts, job->topk, job->norm, job->scaling};
    size_t room = (size_t)(2 * n_experts + job->topk) * sizeof(float);
    MQ_TRY(launch_dependent(dev, err, "router choice", router_choice_kernel, dim3(ROWS), CHOICE_THREADS, room, ids,
                            job->plan.coef, parts, job->bias, job->in, chunks, rules));
    return launch_dependent(dev, err, "router plan", router_plan_kernel, dim3(1), PLAN_THREADS,
                            (size_t)n_experts * sizeof *ids, job->plan, ids, n_experts, job->topk);
}

} // namespace decode
} // namespace mq_cuda
