/* A whole MoE layer for many rows: choices grouped by expert on the device, then two grouped products for all experts, and
 * each row's experts added in ascending order.
 *
 * Grouping is counting: a block an expert, rows ascending within it, so the order is that of the router's list.  The number of
 * spans of a product is known on the device alone; the grid has room for the most there can be.  The down product keeps
 * every choice's output apart and a third kernel adds them up: no atomics, and a row's bits depend on that row alone.
 * These outputs go through memory for some columns at a time, so that the workspace stays bounded. */
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/packed.cuh"
#include "src/units.h"

namespace mq_cuda {

enum { THREADS = 256, BLOCK_COLS = 128 };
static const int64_t OUTPUT_BYTES = 512 << 20; /* of the choices' outputs at a time, where 128 columns do not need more */

/* The choices of all rows, grouped; arrays of the workspace. */
struct grouping {
    int32_t *count;   /* [n_experts] */
    int32_t *n_spans; /* [1] */
    packed_span *spans;
    int32_t *row;   /* [picks] by position: the row that chose */
    int32_t *place; /* [n, topk] position of a choice */
};

/* Which of the PER_THREAD choices from i on are this expert's: bit k for choice i + k, a multiple of PER_THREAD. */
enum { PER_THREAD = 8 };
static __device__ __forceinline__ unsigned choices_of(const int32_t *ids, int64_t i, int64_t picks, int expert)
{
    unsigned mine = 0;
    if (i + PER_THREAD <= picks && (uintptr_t)ids % sizeof(uint4) == 0) {
        uint4 a = *(const uint4 *)(ids + i), b = *(const uint4 *)(ids + i + 4);
        unsigned e = (unsigned)expert;
        mine = (unsigned)(a.x == e) | (unsigned)(a.y == e) << 1 | (unsigned)(a.z == e) << 2 |
               (unsigned)(a.w == e) << 3 | (unsigned)(b.x == e) << 4 | (unsigned)(b.y == e) << 5 |
               (unsigned)(b.z == e) << 6 | (unsigned)(b.w == e) << 7;
    } else {
        for (int k = 0; k < PER_THREAD && i + k < picks; k++)
            mine |= (unsigned)(ids[i + k] == expert) << k;
    }
    return mine;
}

static __global__ void count_kernel(grouping to, const int32_t *ids, int64_t picks)
{
    int count = 0, expert = (int)blockIdx.x;
    for (int64_t i = (int64_t)threadIdx.x * PER_THREAD; i < picks; i += (int64_t)blockDim.x * PER_THREAD)
        count += __popc(choices_of(ids, i, picks, expert));
    count = block_sum(count);
    if (threadIdx.x == 0)
        to.count[expert] = count;
}

static __device__ __forceinline__ int spans_of(int count)
{
    return (count + PACKED_TOKENS - 1) / PACKED_TOKENS;
}

/* Positions of this expert's choices and its spans. */
static __global__ void place_kernel(grouping to, const int32_t *ids, int64_t picks, int topk)
{
    MQ_SHARED(in_warp, int[THREADS / WARP]);
    int expert = (int)blockIdx.x, warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, first = 0, span = 0;
    for (int e = (int)threadIdx.x; e < expert; e += (int)blockDim.x) {
        first += to.count[e];
        span += spans_of(to.count[e]);
    }
    first = block_sum(first);
    span = block_sum(span);
    int count = to.count[expert], n_spans = spans_of(count);
    for (int s = (int)threadIdx.x; s < n_spans; s += (int)blockDim.x) {
        int left = count - s * PACKED_TOKENS;
        packed_span one = {expert, first + s * PACKED_TOKENS, left < PACKED_TOKENS ? left : (int)PACKED_TOKENS};
        to.spans[span + s] = one;
    }
    if (expert == (int)gridDim.x - 1 && threadIdx.x == 0)
        *to.n_spans = span + n_spans;
    for (int64_t i0 = 0; i0 < picks; i0 += (int64_t)blockDim.x * PER_THREAD) {
        int64_t i = i0 + (int64_t)threadIdx.x * PER_THREAD;
        unsigned mine = i < picks ? choices_of(ids, i, picks, expert) : 0;
        int own = __popc(mine), upto = own, all = 0; /* upto: with the lanes before */
        for (int step = 1; step < WARP; step *= 2) {
            int other = __shfl_up_sync(ALL_LANES, upto, (unsigned)step);
            upto += lane >= step ? other : 0;
        }
        if (lane == WARP - 1)
            in_warp[warp] = upto;
        __syncthreads();
        int at = first + upto - own;
        for (int w = 0; w < THREADS / WARP; w++) {
            at += w < warp ? in_warp[w] : 0;
            all += in_warp[w];
        }
        for (int k = 0; k < PER_THREAD; k++)
            if (mine >> k & 1u) {
                to.row[at] = (int32_t)((i + k) / topk);
                to.place[i + k] = at++;
            }
        first += all;
        __syncthreads(); /* in_warp is written again */
    }
}

/* Columns col0 .. of y [n, hidden] = sum over the row's choices in their order; outputs [picks, cols], four columns a thread.  Whole
 * tiles: columns come by 16. */
static __global__ void combine_kernel(float *y, const float *outputs, const int32_t *place, const float *coef, int topk,
                                      int64_t n, int64_t hidden, int64_t col0, int64_t cols)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        for (int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; c < cols; c += (int64_t)gridDim.x * blockDim.x * 4) {
            float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
            for (int k = 0; k < topk; k++) {
                float factor = coef[i * topk + k];
                float4 one = *(const float4 *)(outputs + place[i * topk + k] * cols + c);
                sum.x = fmaf(factor, one.x, sum.x);
                sum.y = fmaf(factor, one.y, sum.y);
                sum.z = fmaf(factor, one.z, sum.z);
                sum.w = fmaf(factor, one.w, sum.w);
            }
            *(float4 *)(y + i * hidden + col0 + c) = sum;
        }
}

/* Every array starts at a multiple of 16 bytes; base NULL: bytes alone. */
static int64_t lay_out(grouping *g, uint8_t *base, int64_t n_experts, int64_t span_limit, int64_t picks)
{
    const int64_t ALIGN = 16;
    int64_t bytes[] = {4 * n_experts, 4, (int64_t)sizeof(packed_span) * span_limit, 4 * picks, 4 * picks};
    void *at[5];
    int64_t used = 0;
    for (int i = 0; i < 5; i++) {
        at[i] = base ? base + used : NULL;
        used += (bytes[i] + ALIGN - 1) / ALIGN * ALIGN;
    }
    *g = {(int32_t *)at[0], (int32_t *)at[1], (packed_span *)at[2], (int32_t *)at[3], (int32_t *)at[4]};
    return used;
}

static mq_status group_choices(mq_dev *dev, grouping *g, const int32_t *ids, int n_experts, int topk, int64_t picks,
                               int64_t span_limit, mq_err *err)
{
    void *room;
    MQ_TRY(workspace(dev, WS_GROUPS, lay_out(g, NULL, n_experts, span_limit, picks), &room, err));
    lay_out(g, (uint8_t *)room, n_experts, span_limit, picks);
    MQ_TRY(launch(dev, err, "experts", count_kernel, (unsigned)n_experts, THREADS, 0, *g, ids, picks));
    return launch(dev, err, "experts", place_kernel, (unsigned)n_experts, THREADS, 0, *g, ids, picks, topk);
}

/* y = the choices' outputs of h [picks, width], weighted and added, some columns at a time. */
static mq_status down(mq_dev *dev, float *y, const uint16_t *h, const float *coef, const mq_decode_expert_table *t,
                      const grouping *g, int64_t n, int64_t span_limit, mq_err *err)
{
    void *room;
    int64_t picks = n * t->topk, block = OUTPUT_BYTES / (4 * picks) / BLOCK_COLS * BLOCK_COLS;
    block = block < BLOCK_COLS ? (int64_t)BLOCK_COLS : block;
    block = block < t->hidden ? block : t->hidden;
    MQ_TRY(workspace(dev, WS_ROWS, 4 * picks * block, &room, err));
    packed_job job = {};
    job.units = t->down;
    job.x = h;
    job.spans = g->spans;
    job.n_spans = g->n_spans;
    job.cols = t->width;
    job.out = room;
    for (int64_t col0 = 0; col0 < t->hidden; col0 += block) {
        int64_t cols = t->hidden - col0 < block ? t->hidden - col0 : block;
        job.tile0 = col0 / MQ_UNIT_ROWS;
        job.n_tiles = cols / MQ_UNIT_ROWS;
        job.stride = cols;
        MQ_TRY(packed_rows(dev, "experts", &job, t->group, false, span_limit, err));
        MQ_TRY(launch(dev, err, "experts", combine_kernel, dim3(n_blocks(cols, THREADS * 4), n_blocks(n, 1, GRID_Y_LIMIT)),
                      THREADS, 0, y, (const float *)room, (const int32_t *)g->place, coef, t->topk, n, t->hidden, col0,
                      cols));
    }
    return MQ_OK;
}

mq_status experts(mq_dev *dev, float *y, const float *x, const int32_t *ids, const float *coef,
                  const mq_decode_expert_table *t, int64_t n, mq_err *err)
{
    grouping g;
    void *room;
    int64_t picks = n * t->topk, most = picks < t->n_experts ? picks : t->n_experts;
    int64_t span_limit = picks / PACKED_TOKENS + most;
    if (n == 0)
        return MQ_OK;
    MQ_TRY(group_choices(dev, &g, ids, t->n_experts, t->topk, picks, span_limit, err));
    MQ_TRY(workspace(dev, WS_HALF, (n * t->hidden + picks * t->width) * (int64_t)sizeof(uint16_t), &room, err));
    uint16_t *half = (uint16_t *)room, *h = half + n * t->hidden;
    MQ_TRY(to_bf16(dev, "experts", half, x, n, t->hidden, err));
    packed_job job = {};
    job.units = t->gate_up;
    job.x = half;
    job.rows = g.row;
    job.spans = g.spans;
    job.n_spans = g.n_spans;
    job.cols = t->hidden;
    job.n_tiles = 2 * t->width / MQ_UNIT_ROWS;
    job.out = h;
    job.stride = t->width;
    MQ_TRY(packed_rows(dev, "experts", &job, t->group, true, span_limit, err));
    return down(dev, y, h, coef, t, &g, n, span_limit, err);
}

} // namespace mq_cuda
