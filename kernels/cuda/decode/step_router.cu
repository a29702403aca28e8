/* The router of a decode step: F32 logits, then the choice of every row and the plan that the experts' kernels follow.
 *
 * Two kernels.  Scores: a warp holds EXPERTS experts' weights of WARP_COLS columns in its registers, fetched before it waits
 * for the activations; a block's warps cover BLOCK_COLS columns, and what a block finds is one part of a logit.
 * Plan: one block.  A thread adds the parts of four experts, ascending, and makes their scores.  Then a warp has a row, a
 * lane PER_LANE consecutive experts, and finds the best of few candidates.  At the end the rows' choices are joined.  The
 * rules are those of route.cuh.  Which thread adds what depends on the matrix alone, never on the device; code is kept
 * short where it runs once, since it has to be fetched, too. */
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
    ROW_WARPS = 3, /* that make a row's scores; more than 2 */
    PLAN_THREADS = ROWS * ROW_WARPS * WARP,
    PARTS_AT_ONCE = 4
};

/* Of columns.  The workspace holds parts [n_chunks, ROWS, padded]. */
static int n_chunks(int64_t hidden)
{
    return (int)((hidden + BLOCK_COLS - 1) / BLOCK_COLS);
}

static int padded_experts(int n_experts)
{
    return (n_experts + 3) / 4 * 4;
}

int64_t router_bytes(int n_experts, int64_t hidden)
{
    return (int64_t)n_chunks(hidden) * ROWS * padded_experts(n_experts) * 4;
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

template <int SCHEME, bool WIDE>
static __global__ void __launch_bounds__(SCORE_THREADS, 1)
    router_scores_kernel(float *parts, const float *x, weight_view view, int n_experts, int padded)
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
    parts[((int64_t)blockIdx.x * ROWS + row) * padded + e0 + e] = sum;
}

/* ---- choice and plan ---- */

struct plan_job {
    mq_decode_plan plan;
    const float *parts, *bias;
    const mq_decode_input *in;
    int n_parts, padded;
    route_rules rules;
};

/* What the block finds out about a row. */
struct row_choice {
    int32_t id[MQ_MAX_TOPK];   /* who is chosen, ascending */
    float score[MQ_MAX_TOPK];  /* theirs */
    uint32_t key[WARP];        /* of lanes, then of candidates; 0 behind them */
    int32_t some[MQ_MAX_TOPK]; /* candidates, ascending; or the chosen, best first */
};

/* Unsigned order is the order of choices; NaN is minus infinity; 0 is below every choice. */
static __device__ __forceinline__ uint32_t key_of(float choice)
{
    choice = choice == choice ? choice + 0.0f : -INFINITY; /* -0 and 0 are equal */
    uint32_t bits = mq_f32_bits(choice);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float sigmoid(float x)
{
    return reciprocal(1.0f + expf(-x));
}

/* The scores of four experts of a row. */
static __device__ __forceinline__ float4 score_quad(const plan_job &job, int row, int e)
{
    const float *from = job.parts + row * job.padded + e;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int c0 = 0; c0 < job.n_parts; c0 += PARTS_AT_ONCE) {
        float4 v[PARTS_AT_ONCE] = {};
#pragma unroll
        for (int c = 0; c < PARTS_AT_ONCE; c++)
            if (c0 + c < job.n_parts)
                v[c] = *(const float4 *)(from + (c0 + c) * ROWS * job.padded);
#pragma unroll
        for (int c = 0; c < PARTS_AT_ONCE; c++)
            sum = {sum.x + v[c].x, sum.y + v[c].y, sum.z + v[c].z, sum.w + v[c].w};
    }
    return {sigmoid(sum.x), sigmoid(sum.y), sigmoid(sum.z), sigmoid(sum.w)};
}

template <int N> static __device__ __forceinline__ uint32_t largest(const uint32_t *v)
{
    if constexpr (N == 1)
        return v[0];
    uint32_t a = largest<(N + 1) / 2>(v), b = largest<(N > 1 ? N / 2 : 1)>(v + (N + 1) / 2 % N);
    return a > b ? a : b;
}

/* How many of all [WARP] are larger than v or, before the lane's own place, as large. */
static __device__ __forceinline__ int rank_among(const uint32_t all[WARP], uint32_t v, int lane)
{
    int rank = 0;
#pragma unroll
    for (int i = 0; i < WARP; i++)
        rank += all[i] >= v + (i >= lane);
    return rank;
}

/* A row's choice by a warp, of keys in registers, with at most WARP experts a token.  The lanes' best keys tell which keys
 * cannot be among the topk best; those that can are gathered and ranked.  false: more than WARP of them, nothing done. */
template <int PER_LANE>
static __device__ __forceinline__ bool choose_among_few(row_choice &to, const float *scores, const float *bias,
                                                        const route_rules &rules, int lane)
{
    uint32_t key[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i += 4) {
        int e = lane * PER_LANE + i;
        bool is_there = e < rules.n_experts;
        float4 s = is_there ? *(const float4 *)(scores + e) : float4{}, b = is_there ? *(const float4 *)(bias + e) : float4{};
        key[i] = is_there ? key_of(s.x + b.x) : 0;
        key[i + 1] = e + 1 < rules.n_experts ? key_of(s.y + b.y) : 0;
        key[i + 2] = e + 2 < rules.n_experts ? key_of(s.z + b.z) : 0;
        key[i + 3] = e + 3 < rules.n_experts ? key_of(s.w + b.w) : 0;
    }
    uint32_t best = largest<PER_LANE>(key), least = 1;
    to.key[lane] = best;
    __syncwarp();
    unsigned at = __ballot_sync(ALL_LANES, rank_among(to.key, best, lane) == rules.topk - 1);
    best = __shfl_sync(ALL_LANES, best, __ffs((int)at) - 1); /* topk keys are no smaller; 0: fewer lanes have any */
    least = best > least ? best : least;

    int count = 0, before = 0, total = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        count += key[i] >= least;
#pragma unroll
    for (int bit = 0; 1 << bit <= PER_LANE; bit++) {
        unsigned votes = __ballot_sync(ALL_LANES, count >> bit & 1);
        before += __popc(votes & ((1u << lane) - 1u)) << bit;
        total += __popc(votes) << bit;
    }
    if (total > WARP)
        return false;
    to.key[lane] = 0; /* read before the ballot */
    __syncwarp();
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (key[i] >= least) {
            to.key[before] = key[i];
            to.some[before++] = lane * PER_LANE + i;
        }
    __syncwarp();
    bool is_chosen = lane < total && rank_among(to.key, to.key[lane], lane) < rules.topk;
    unsigned votes = __ballot_sync(ALL_LANES, is_chosen);
    if (is_chosen)
        to.id[__popc(votes & ((1u << lane) - 1u))] = to.some[lane];
    return true;
}

/* The same for any number of experts: the best after the last one, topk times. */
static __device__ void choose_one_by_one(row_choice &to, const float *scores, const float *bias,
                                                      const route_rules &rules, int lane)
{
    ranked last = {INFINITY, -1};
    for (int k = 0; k < rules.topk; k++) {
        ranked best = {-INFINITY, INT32_MAX};
        for (int e = lane; e < rules.n_experts; e += WARP) {
            float choice = scores[e] + bias[e];
            ranked r = {choice == choice ? choice : -INFINITY, e};
            if (ranks_before(last, r) && ranks_before(r, best))
                best = r;
        }
        last = warp_best(best);
        if (lane == 0)
            to.some[k] = last.id;
    }
    __syncwarp();
    for (int k = lane; k < rules.topk; k += WARP) {
        int32_t at = 0, e = to.some[k];
        for (int i = 0; i < rules.topk; i++)
            at += to.some[i] < e;
        to.id[at] = e;
    }
}

static __device__ __forceinline__ void write_coefs(float *coef, const row_choice &row, const route_rules &rules, int lane)
{
    float sum = 0.0f;
#pragma unroll 1
    for (int k = 0; k < rules.topk; k++)
        sum += row.score[k];
#pragma unroll 1
    for (int k = lane; k < rules.topk; k += WARP)
        coef[k] = (rules.norm ? row.score[k] / (sum + 1e-20f) : row.score[k]) * rules.scaling;
}

/* Experts below e of those in the bitmap. */
static __device__ __forceinline__ int count_below(const uint32_t *active, int e)
{
    int n = 0;
#pragma unroll 1
    for (int w = 0; w * 32 < e; w++)
        n += __popc(e - w * 32 >= 32 ? active[w] : active[w] & ((1u << e % 32) - 1u));
    return n;
}

/* PER_LANE 0: any number of experts. */
template <int PER_LANE> static __global__ void __launch_bounds__(PLAN_THREADS) router_plan_kernel(plan_job job)
{
    MQ_SHARED_DYNAMIC(scores, float); /* [ROWS, padded] */
    MQ_SHARED(rows, row_choice[ROWS]);
    MQ_SHARED(active, uint32_t[MQ_MAX_EXPERTS / 32]); /* a bit for each expert that somebody chose */
    float *bias = scores + ROWS * job.padded;
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP), row = warp / ROW_WARPS, topk = job.rules.topk;
    let_next_start();
    for (int e = (int)threadIdx.x; e < job.padded; e += PLAN_THREADS)
        bias[e] = e < job.rules.n_experts ? job.bias[e] : 0.0f;
    if (threadIdx.x < MQ_MAX_EXPERTS / 32)
        active[threadIdx.x] = 0;
    wait_for_previous();
    int n = job.in->n; /* at most ROWS */
#pragma unroll 1
    for (int e = (warp % ROW_WARPS * WARP + lane) * 4; e < job.padded; e += ROW_WARPS * WARP * 4)
        *(float4 *)(scores + row * job.padded + e) = score_quad(job, row, e);
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < ROWS * topk * ROWS; i += PLAN_THREADS)
        job.plan.slot[i] = -1;
    __syncthreads();
    if (warp < n) {
        const float *of_row = scores + warp * job.padded;
        if (PER_LANE == 0 || topk > WARP ||
            !choose_among_few<(PER_LANE ? PER_LANE : 4)>(rows[warp], of_row, bias, job.rules, lane))
            choose_one_by_one(rows[warp], of_row, bias, job.rules, lane);
        __syncwarp();
#pragma unroll 1
        for (int k = lane; k < topk; k += WARP) {
            int e = rows[warp].id[k];
            rows[warp].score[k] = of_row[e];
            atomicOr(&active[e / 32], 1u << e % 32);
        }
    }
    __syncthreads();
    if (warp < n) {
#pragma unroll 1
        for (int k = lane; k < topk; k += WARP) {
            int e = rows[warp].id[k], at = count_below(active, e);
            job.plan.slot[at * ROWS + warp] = warp * topk + k;
            job.plan.expert[at] = e; /* the same from every row */
        }
    } else if (warp >= ROWS && warp < ROWS + n) {
        write_coefs(job.plan.coef + (warp - ROWS) * topk, rows[warp - ROWS], job.rules, lane);
    } else if (warp >= ROWS + n && warp < 2 * ROWS) {
        for (int k = lane; k < topk; k += WARP)
            job.plan.coef[(warp - ROWS) * topk + k] = 0.0f;
    } else if (threadIdx.x == PLAN_THREADS - 1) {
        *job.plan.n = count_below(active, job.padded);
    }
}

/* ---- launches ---- */

template <int SCHEME> static mq_status launch_scores(mq_dev *dev, const mq_decode_router *job, mq_err *err)
{
    int n_experts = (int)job->w.rows;
    int64_t element = SCHEME == MQ_SCHEME_F32 ? 4 : 2;
    bool wide = (uintptr_t)job->w.data % (4 * (uintptr_t)element) == 0 && (uintptr_t)job->x % 16 == 0 && job->w.cols % 4 == 0;
    dim3 grid((unsigned)n_chunks(job->w.cols), n_blocks(n_experts, BLOCK_EXPERTS));
    return launch_dependent(dev, err, "router", wide ? router_scores_kernel<SCHEME, true> : router_scores_kernel<SCHEME, false>,
                            grid, SCORE_THREADS, 0, (float *)job->workspace, job->x, view_of(&job->w), n_experts,
                            padded_experts(n_experts));
}

mq_status router(mq_dev *dev, const mq_decode_router *job, mq_err *err)
{
    int n_experts = (int)job->w.rows, padded = padded_experts(n_experts);
    auto scores = job->w.scheme == MQ_SCHEME_F32   ? launch_scores<MQ_SCHEME_F32>
                  : job->w.scheme == MQ_SCHEME_F16 ? launch_scores<MQ_SCHEME_F16>
                                                   : launch_scores<MQ_SCHEME_BF16>;
    MQ_TRY(scores(dev, job, err));
    auto plan = n_experts <= 8 * WARP    ? router_plan_kernel<8>
                : n_experts <= 12 * WARP ? router_plan_kernel<12>
                : n_experts <= 16 * WARP ? router_plan_kernel<16>
                                         : router_plan_kernel<0>;
    plan_job p = {job->plan, (const float *)job->workspace, job->bias, job->in, n_chunks(job->w.cols), padded, {}};
    p.rules = {n_experts, job->topk, job->norm, job->scaling};
    size_t room = (size_t)((ROWS + 1) * padded) * sizeof(float);
    return launch_dependent(dev, err, "router plan", plan, dim3(1), PLAN_THREADS, room, p);
}

} // namespace decode
} // namespace mq_cuda
