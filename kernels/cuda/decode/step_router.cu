/* The router of a decode step: F32 logits, then the choice of every row and the plan that the experts' kernels follow.
 *
 * Two kernels.  Scores: a warp holds EXPERTS experts' weights of WARP_COLS columns in its registers, fetched before it waits
 * for the activations; a block's warps cover BLOCK_COLS columns, and what a block finds is one part of a logit.
 * Plan: one block, a warp a row.  A lane has PER_LANE consecutive experts: it adds the parts, ascending, makes scores and
 * keys (larger key, better choice), and the best is taken topk times; then the rows' choices are joined.  The rules are
 * those of route.cuh.  Which thread adds what depends on the matrix alone, never on the device. */
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/weights.cuh"

namespace mq_cuda {
namespace decode {

enum {
    QUADS = 3,
    QUAD_COLS = 4 * WARP,
    WARP_COLS = QUADS * QUAD_COLS, /* a lane: four columns of each of QUADS */
    COL_WARPS = 4,
    BLOCK_COLS = COL_WARPS * WARP_COLS,
    EXPERTS = 6,
    EXPERT_WARPS = 2,
    BLOCK_EXPERTS = EXPERT_WARPS * EXPERTS,
    SCORE_THREADS = COL_WARPS * EXPERT_WARPS * WARP,
    PASS_ROWS = 4, /* whose sums a lane has at a time */
    SUMS = EXPERTS * PASS_ROWS,
    PLAN_THREADS = ROWS * WARP,
    PARTS_AT_ONCE = 4
};

/* Of columns.  The workspace holds parts [n_chunks, ROWS, WARP * PER_LANE]. */
static int n_chunks(int64_t hidden)
{
    return (int)((hidden + BLOCK_COLS - 1) / BLOCK_COLS);
}

/* Experts of a lane; the plan's kernel exists for these. */
static int experts_per_lane(int n_experts)
{
    static const int sizes[] = {4, 8, 12, 16, 32};
    for (int size : sizes)
        if (n_experts <= size * WARP)
            return size;
    return MQ_MAX_EXPERTS / WARP;
}

int64_t router_bytes(int n_experts, int64_t hidden)
{
    return (int64_t)n_chunks(hidden) * ROWS * WARP * experts_per_lane(n_experts) * 4;
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

/* Four weights as stored, and what they are. */
template <int SCHEME> struct quad {
    uint32_t words[SCHEME == MQ_SCHEME_F32 ? 4 : 2];

    __device__ __forceinline__ void load(const uint8_t *data, int64_t element)
    {
        if constexpr (SCHEME == MQ_SCHEME_F32) {
            uint4 v = load_weights16(data + element * 4);
            words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        } else {
            words[0] = words[1] = 0;
            load_weights8_if(words, data + element * 2, true);
        }
    }
    __device__ __forceinline__ void set(int i, const uint8_t *data, int64_t element)
    {
        if constexpr (SCHEME == MQ_SCHEME_F32)
            words[i] = ((const uint32_t *)data)[element];
        else
            words[i / 2] |= (uint32_t)((const uint16_t *)data)[element] << i % 2 * 16;
    }
    __device__ __forceinline__ float get(int i) const
    {
        if constexpr (SCHEME == MQ_SCHEME_F32)
            return mq_f32_from_bits(words[i]);
        if constexpr (SCHEME == MQ_SCHEME_F16)
            return i % 2 ? floats_of_f16x2(words[i / 2]).y : floats_of_f16x2(words[i / 2]).x;
        return mq_bf16_to_f32((uint16_t)(words[i / 2] >> i % 2 * 16));
    }
};

/* A warp's share; weights of experts and columns that are not there are 0. */
template <int SCHEME, bool WIDE>
static __device__ __forceinline__ void load_share(quad<SCHEME> w[EXPERTS][QUADS], const weight_view &view, int n_experts, int e0,
                                                  int64_t c0)
{
#pragma unroll
    for (int e = 0; e < EXPERTS; e++)
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            int64_t c = c0 + q * QUAD_COLS, row_off = (int64_t)(e0 + e) * view.cols;
            w[e][q] = {};
            if (WIDE && e0 + e < n_experts && c < view.cols)
                w[e][q].load(view.data, row_off + c);
            for (int i = 0; i < 4; i++)
                if (!WIDE && e0 + e < n_experts && c + i < view.cols)
                    w[e][q].set(i, view.data, row_off + c + i);
        }
}

template <bool WIDE> static __device__ __forceinline__ float4 load_x(const float *x, int64_t c, int64_t cols)
{
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (WIDE)
        return c < cols ? *(const float4 *)(x + c) : v;
    v.x = c < cols ? x[c] : 0.0f;
    v.y = c + 1 < cols ? x[c + 1] : 0.0f;
    v.z = c + 2 < cols ? x[c + 2] : 0.0f;
    v.w = c + 3 < cols ? x[c + 3] : 0.0f;
    return v;
}

/* A step of the tree: of 2 N sums a lane keeps N, and adds what its partner has of them. */
template <int N> static __device__ __forceinline__ void fold(float *v, int step, bool upper)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        float mine = upper ? v[i + N] : v[i], other = upper ? v[i] : v[i + N];
        v[i] = mine + __shfl_xor_sync(ALL_LANES, other, step);
    }
}

/* The sums of PASS_ROWS rows over the warp's columns, to [EXPERTS][PASS_ROWS] in shared memory. */
template <int SCHEME, bool WIDE>
static __device__ __forceinline__ void score_rows(float *out, const quad<SCHEME> w[EXPERTS][QUADS], const float *x, int64_t c0,
                                                  int64_t cols, int lane)
{
    float acc[SUMS] = {};
    float4 v[QUADS][PASS_ROWS];
#pragma unroll
    for (int q = 0; q < QUADS; q++)
#pragma unroll
        for (int row = 0; row < PASS_ROWS; row++)
            v[q][row] = load_x<WIDE>(x + row * cols, c0 + q * QUAD_COLS, cols);
#pragma unroll
    for (int q = 0; q < QUADS; q++)
#pragma unroll
        for (int e = 0; e < EXPERTS; e++) {
            float a = w[e][q].get(0), b = w[e][q].get(1), c = w[e][q].get(2), d = w[e][q].get(3);
#pragma unroll
            for (int row = 0; row < PASS_ROWS; row++) {
                float *sum = &acc[e * PASS_ROWS + row];
                *sum = fmaf(d, v[q][row].w, fmaf(c, v[q][row].z, fmaf(b, v[q][row].y, fmaf(a, v[q][row].x, *sum))));
            }
        }
    fold<SUMS / 2>(acc, 16, lane & 16);
    fold<SUMS / 4>(acc, 8, lane & 8);
    fold<SUMS / 8>(acc, 4, lane & 4);
    int first = (lane & 16 ? SUMS / 2 : 0) + (lane & 8 ? SUMS / 4 : 0) + (lane & 4 ? SUMS / 8 : 0);
#pragma unroll
    for (int i = 0; i < SUMS / 8; i++) {
        float sum = acc[i];
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        if (lane % 4 == 0)
            out[first + i] = sum;
    }
}

/* Where expert e stands in a row of parts: the plan's lanes read four experts of theirs at a time. */
static __device__ __forceinline__ int place_of(int e, int per_lane)
{
    return e % per_lane / 4 * QUAD_COLS + e / per_lane * 4 + e % 4;
}

template <int SCHEME, bool WIDE>
static __global__ void __launch_bounds__(SCORE_THREADS, 1)
    router_scores_kernel(float *parts, const float *x, weight_view view, int n_experts, int per_lane)
{
    MQ_SHARED(sums, float[EXPERT_WARPS][COL_WARPS][ROWS / PASS_ROWS][SUMS]);
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP);
    int at_col = warp % COL_WARPS, at_expert = warp / COL_WARPS, e0 = (int)blockIdx.y * BLOCK_EXPERTS;
    int64_t c0 = (int64_t)blockIdx.x * BLOCK_COLS + at_col * WARP_COLS + lane * 4;
    quad<SCHEME> w[EXPERTS][QUADS];
    let_next_start();
    load_share<SCHEME, WIDE>(w, view, n_experts, e0 + at_expert * EXPERTS, c0);
    wait_for_previous();
#pragma unroll
    for (int pass = 0; pass < ROWS / PASS_ROWS; pass++)
        score_rows<SCHEME, WIDE>(sums[at_expert][at_col][pass], w, x + pass * PASS_ROWS * view.cols, c0, view.cols, lane);
    __syncthreads();
    int e = (int)threadIdx.x / ROWS, row = (int)threadIdx.x % ROWS;
    if (e >= BLOCK_EXPERTS || e0 + e >= n_experts)
        return;
    float sum = 0.0f;
    for (int i = 0; i < COL_WARPS; i++)
        sum += sums[e / EXPERTS][i][row / PASS_ROWS][e % EXPERTS * PASS_ROWS + row % PASS_ROWS];
    parts[((int64_t)blockIdx.x * ROWS + row) * per_lane * WARP + place_of(e0 + e, per_lane)] = sum;
}

/* ---- choice and plan ---- */

/* Some of a lane's experts. */
template <int PER_LANE> struct lane_set {
    enum { WORDS = (PER_LANE + 31) / 32 };
    uint32_t word[WORDS];

    __device__ __forceinline__ int count() const
    {
        int n = 0;
#pragma unroll
        for (int i = 0; i < WORDS; i++)
            n += __popc(word[i]);
        return n;
    }
    __device__ __forceinline__ bool has(int j) const { return word[j / 32] >> j % 32 & 1; }
    __device__ __forceinline__ void add(int j) { word[j / 32] |= 1u << j % 32; }

    /* How many of these come before j. */
    __device__ __forceinline__ int before(int j) const
    {
        int n = 0;
#pragma unroll
        for (int i = 0; i < WORDS; i++)
            n += __popc(i < j / 32 ? word[i] : i == j / 32 ? word[i] & ((1u << j % 32) - 1u) : 0u);
        return n;
    }
};

/* What lanes before this one have, and all together. */
static __device__ __forceinline__ int lanes_before(int mine, int lane, int *total)
{
    int sum = mine;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(ALL_LANES, sum, (unsigned)step);
        sum += lane >= step ? other : 0;
    }
    *total = __shfl_sync(ALL_LANES, sum, WARP - 1);
    return sum - mine;
}

/* Unsigned order is the order of choices; NaN is minus infinity; 0 is below every choice. */
static __device__ __forceinline__ uint32_t key_of(float choice)
{
    choice = choice == choice ? choice + 0.0f : -INFINITY; /* -0 and 0 are equal */
    uint32_t bits = mq_f32_bits(choice);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Scores and keys of a lane's experts. */
template <int PER_LANE>
static __device__ __forceinline__ void score_lane(float score[PER_LANE], uint32_t key[PER_LANE], const float *parts,
                                                  const float *bias, int n_parts, int n_experts, int lane)
{
    float4 sum[PER_LANE / 4] = {};
    for (int c0 = 0; c0 < n_parts; c0 += PARTS_AT_ONCE) {
        float4 v[PARTS_AT_ONCE][PER_LANE / 4] = {};
#pragma unroll
        for (int c = 0; c < PARTS_AT_ONCE; c++)
#pragma unroll
            for (int i = 0; i < PER_LANE / 4; i++)
                if (c0 + c < n_parts)
                    v[c][i] = *(const float4 *)(parts + (int64_t)(c0 + c) * ROWS * WARP * PER_LANE + i * QUAD_COLS + lane * 4);
#pragma unroll
        for (int c = 0; c < PARTS_AT_ONCE; c++)
#pragma unroll
            for (int i = 0; i < PER_LANE / 4; i++)
                if (c0 + c < n_parts)
                    sum[i] = {sum[i].x + v[c][i].x, sum[i].y + v[c][i].y, sum[i].z + v[c][i].z, sum[i].w + v[c][i].w};
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int e = lane * PER_LANE + i;
        float4 v = sum[i / 4];
        float logit = i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
        score[i] = 1.0f / (1.0f + expf(-logit));
        key[i] = e < n_experts ? key_of(score[i] + bias[i]) : 0;
    }
}

/* The topk best of a row, by a warp; the lower expert among equals. */
template <int PER_LANE>
static __device__ __forceinline__ lane_set<PER_LANE> choose_best(uint32_t key[PER_LANE], int topk, int lane)
{
    lane_set<PER_LANE> chosen = {};
    for (int k = 0; k < topk; k++) {
        uint32_t best = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            best = key[i] > best ? key[i] : best;
        uint32_t best_of_all = __reduce_max_sync(ALL_LANES, best);
        unsigned owners = __ballot_sync(ALL_LANES, best == best_of_all);
        bool mine = lane == __ffs((int)owners) - 1;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (mine && key[i] == best_of_all) {
                key[i] = 0;
                chosen.add(i);
                mine = false;
            }
    }
    return chosen;
}

/* The row's coefficients; before: how many the lanes before this one chose. */
template <int PER_LANE>
static __device__ __forceinline__ void write_coefs(float *coef, float *of_chosen, const float score[PER_LANE],
                                                   const lane_set<PER_LANE> &chosen, int before, const route_rules &rules,
                                                   int lane)
{
    int at = before;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (chosen.has(i))
            of_chosen[at++] = score[i];
    __syncwarp();
    float sum = 0.0f;
#pragma unroll 8
    for (int k = 0; k < rules.topk; k++)
        sum += of_chosen[k];
    for (int k = lane; k < rules.topk; k += WARP) {
        float s = of_chosen[k];
        coef[k] = (rules.norm ? s / (sum + 1e-20f) : s) * rules.scaling;
    }
}

/* The row's share of the plan: its column of slot, and by the first warp the experts. */
template <int PER_LANE>
static __device__ __forceinline__ void write_plan(const mq_decode_plan &plan, const lane_set<PER_LANE> &active,
                                                  const lane_set<PER_LANE> &chosen, int before, int row, int topk, int lane)
{
    int n_active, at = lanes_before(active.count(), lane, &n_active);
#pragma unroll
    for (int i = 0; i < lane_set<PER_LANE>::WORDS; i++)
        for (uint32_t left = active.word[i]; left; left &= left - 1, at++) {
            int j = i * 32 + __ffs((int)left) - 1;
            plan.slot[at * ROWS + row] = chosen.has(j) ? row * topk + before + chosen.before(j) : -1;
            if (row == 0)
                plan.expert[at] = lane * PER_LANE + j;
        }
    for (int i = n_active + lane; i < ROWS * topk; i += WARP)
        plan.slot[i * ROWS + row] = -1;
    if (row == 0 && lane == 0)
        *plan.n = n_active;
}

template <int PER_LANE>
static __global__ void __launch_bounds__(PLAN_THREADS)
    router_plan_kernel(mq_decode_plan plan, const float *parts, const float *bias, const mq_decode_input *in, int n_parts,
                       route_rules rules)
{
    MQ_SHARED(sets, lane_set<PER_LANE>[ROWS][WARP]);
    MQ_SHARED(of_chosen, float[ROWS][MQ_MAX_TOPK]);
    int lane = (int)(threadIdx.x % WARP), row = (int)(threadIdx.x / WARP), before = 0, n_chosen;
    float score[PER_LANE], lane_bias[PER_LANE];
    uint32_t key[PER_LANE];
    lane_set<PER_LANE> chosen = {}, active = {};
    let_next_start();
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        lane_bias[i] = lane * PER_LANE + i < rules.n_experts ? bias[lane * PER_LANE + i] : 0.0f;
    wait_for_previous();
    int n = in->n;
    score_lane<PER_LANE>(score, key, parts + (int64_t)row * WARP * PER_LANE, lane_bias, n_parts, rules.n_experts, lane);
    float *coef = plan.coef + row * rules.topk;
    if (row < n) {
        chosen = choose_best<PER_LANE>(key, rules.topk, lane);
        before = lanes_before(chosen.count(), lane, &n_chosen);
        write_coefs<PER_LANE>(coef, of_chosen[row], score, chosen, before, rules, lane);
    } else {
        for (int k = lane; k < rules.topk; k += WARP)
            coef[k] = 0.0f;
    }
    sets[row][lane] = chosen;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < lane_set<PER_LANE>::WORDS; i++)
            active.word[i] |= sets[r][lane].word[i];
    write_plan<PER_LANE>(plan, active, chosen, before, row, rules.topk, lane);
}

/* ---- launches ---- */

template <int SCHEME> static mq_status launch_scores(mq_dev *dev, const mq_decode_router *job, int per_lane, mq_err *err)
{
    int n_experts = (int)job->w.rows;
    int64_t element = SCHEME == MQ_SCHEME_F32 ? 4 : 2;
    bool wide = (uintptr_t)job->w.data % (4 * (uintptr_t)element) == 0 && (uintptr_t)job->x % 16 == 0 && job->w.cols % 4 == 0;
    dim3 grid((unsigned)n_chunks(job->w.cols), n_blocks(n_experts, BLOCK_EXPERTS));
    return launch_dependent(dev, err, "router", wide ? router_scores_kernel<SCHEME, true> : router_scores_kernel<SCHEME, false>,
                            grid, SCORE_THREADS, 0, (float *)job->workspace, job->x, view_of(&job->w), n_experts, per_lane);
}

mq_status router(mq_dev *dev, const mq_decode_router *job, mq_err *err)
{
    route_rules rules = {(int)job->w.rows, job->topk, job->norm, job->scaling};
    int per_lane = experts_per_lane(rules.n_experts);
    auto scores = job->w.scheme == MQ_SCHEME_F32   ? launch_scores<MQ_SCHEME_F32>
                  : job->w.scheme == MQ_SCHEME_F16 ? launch_scores<MQ_SCHEME_F16>
                                                   : launch_scores<MQ_SCHEME_BF16>;
    MQ_TRY(scores(dev, job, per_lane, err));
    auto plan = per_lane == 4    ? router_plan_kernel<4>
                : per_lane == 8  ? router_plan_kernel<8>
                : per_lane == 12 ? router_plan_kernel<12>
                : per_lane == 16 ? router_plan_kernel<16>
                : per_lane == 32 ? router_plan_kernel<32>
                                 : router_plan_kernel<MQ_MAX_EXPERTS / WARP>;
    return launch_dependent(dev, err, "router plan", plan, dim3(1), PLAN_THREADS, 0, job->plan, (const float *)job->workspace,
                            job->bias, job->in, n_chunks(job->w.cols), rules);
}

} // namespace decode
} // namespace mq_cuda
