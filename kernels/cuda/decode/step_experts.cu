/* The experts of a decode step: two kernels over the experts that the rows chose (the plan).
 *
 *   gate_up   an item is (active expert, 16-row tile), dealt to the blocks in turn.  A block's warps share the columns and
 *             keep their part of all eight activations as B fragments while weights of one expert after the other stream
 *             past; a sum over the warps in shared memory, SwiGLU, and h as BF16 by slot.
 *   down      a block owns a strip of output tiles.  A warp's job is (active expert, tile): its sum over all columns goes to
 *             shared memory by slot.  At the end the slots of a row are added in ascending order.
 *
 * So a row's bits come from its own experts only: every column sum is cut as the matrix asks, and no sum crosses slots
 * before the last.  Rows that did not choose an expert ride along as columns whose result is not stored.
 *
 * Weights come through registers (supply.cuh): 35 to 70 KB a block are under way.  This works on every device; where the
 * device and the shapes allow it, step_experts_stream.cu does the same in one kernel, faster.
 *
 * Who waits for whom: gate_up lets the next kernel start after its own wait.  When down starts, all before gate_up has
 * therefore finished, the plan among it: down reads the plan (from L2: an L1 may be older) and fetches its first weights
 * while gate_up still runs, and waits before it touches h. */
#include "kernels/cuda/decode/supply.cuh"

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum {
    DOWN_WARPS = 16,
    MAX_TOPK = 64,
    MAX_ACTIVE = ROWS * MAX_TOPK,
    LARGEST_SIDE = 1 << 20,
    SLOT_BYTES = MQ_UNIT_ROWS * (int)sizeof(float), /* results of one slot and tile in down */
    STRIP_BYTES = 64 << 10                          /* at most, for the slots of a strip */
};

/* The plan, and where each active expert's weights start. */
struct staged_plan {
    const uint8_t *weights[MAX_ACTIVE];
    int16_t slot[MAX_ACTIVE][ROWS];
    int16_t some_slot[MAX_ACTIVE]; /* one that is not -1 */
};

/* Returns the number of active experts, at most n_slots; what it stages is there after a barrier.  Entries are read before
 * it is known whether they are valid: one trip to L2 less. */
static __device__ __forceinline__ int stage_plan(staged_plan &to, const mq_decode_plan &plan, const uint8_t *const *weights, int n_slots)
{
    int n = (int)load_l2_4(plan.n);
    for (int a = (int)threadIdx.x; a < n_slots; a += (int)blockDim.x) {
        int expert = (int)load_l2_4(plan.expert + a);
        uint4 low = load_l2_16(plan.slot + a * ROWS), high = load_l2_16(plan.slot + a * ROWS + 4);
        if (a >= n)
            continue;
        to.weights[a] = weights[expert];
        int16_t *slot = to.slot[a];
        slot[0] = (int16_t)low.x;
        slot[1] = (int16_t)low.y;
        slot[2] = (int16_t)low.z;
        slot[3] = (int16_t)low.w;
        slot[4] = (int16_t)high.x;
        slot[5] = (int16_t)high.y;
        slot[6] = (int16_t)high.z;
        slot[7] = (int16_t)high.w;
        int some = slot[0];
        for (int r = 1; r < ROWS; r++)
            some = slot[r] > some ? slot[r] : some;
        to.some_slot[a] = (int16_t)some;
    }
    return n;
}

/* ---- gate and up ---- */

struct gate_up_job {
    const uint8_t *const *weights;
    mq_decode_plan plan;
    const uint16_t *x;
    uint16_t *h;
    int64_t hidden, width;
    int n_slots;
};

/* How a warp's share of the columns meets the HELD blocks of activations that it can keep. */
enum share {
    ALL,  /* exactly HELD blocks, every warp */
    SOME, /* up to HELD */
    PARTS /* more: HELD at a time, activations read again for each item */
};

/* A warp's place in its stream of weights: part `part` of its share of tile `tile` of the active expert `expert`. */
struct gate_up_place {
    int expert, tile, part;
};

template <int GROUP, int WARPS, int HELD, int SHARE> struct gate_up_stream {
    using F = unit_format<GROUP>;
    int n_tiles, n_parts, step_expert, step_tile; /* an item to the block's next */
    int first, share;                             /* blocks of the warp */
    int64_t tile_bytes;

    __device__ __forceinline__ gate_up_stream(const gate_up_job &job, unsigned warp)
    {
        int n_blocks = (int)(job.hidden / F::COLS), each = (n_blocks + WARPS - 1) / WARPS;
        n_tiles = (int)(job.width / 8);
        n_parts = SHARE == PARTS ? (each + HELD - 1) / HELD : 1;
        step_expert = (int)gridDim.x / n_tiles;
        step_tile = (int)gridDim.x % n_tiles;
        first = (int)warp * each;
        int left = n_blocks - first;
        share = left < 0 ? 0 : left < each ? left : each;
        tile_bytes = (int64_t)n_blocks * F::BYTES;
    }

    __device__ __forceinline__ gate_up_place begin() const
    {
        return {(int)blockIdx.x / n_tiles, (int)blockIdx.x % n_tiles, 0};
    }

    __device__ __forceinline__ gate_up_place after(gate_up_place p) const
    {
        if (SHARE == PARTS && ++p.part < n_parts)
            return p;
        p.part = 0;
        p.tile += step_tile;
        p.expert += step_expert + (p.tile >= n_tiles);
        p.tile -= p.tile >= n_tiles ? n_tiles : 0;
        return p;
    }

    /* Blocks of a part.  With ALL it is always HELD, but the compiler does not know: in code without branches it would move
     * every load behind every product. */
    __device__ __forceinline__ int count(int part) const
    {
        int left = SHARE == PARTS ? share - part * HELD : share;
        return left < 0 ? 0 : left < HELD ? left : HELD;
    }

    /* n: active experts. */
    __device__ __forceinline__ next_place weights(const staged_plan &plan, int n, gate_up_place p) const
    {
        bool is_there = p.expert < n;
        const uint8_t *expert = plan.weights[is_there ? p.expert : 0];
        return {expert + p.tile * tile_bytes + (int64_t)(first + p.part * HELD) * F::BYTES, count(p.part), is_there};
    }
};

template <int GROUP, int HELD, class STREAM>
static __device__ __forceinline__ void load_part(input_block<GROUP> (&x)[HELD], const STREAM &s, const gate_up_job &job,
                                                 int part, unsigned lane)
{
    using F = unit_format<GROUP>;
    const uint16_t *row = job.x + lane / 4 * job.hidden + (int64_t)(s.first + part * HELD) * F::COLS;
#pragma unroll
    for (int u = 0; u < HELD; u++)
        if (u < s.count(part))
            load_inputs<GROUP>(x[u], row + u * F::COLS, lane);
}

/* The sums of the warps, [warp][lane][acc], added as a tree that is the same for all; four warps do it, turn about. */
template <int WARPS>
static __device__ __forceinline__ void finish_tile(const float (*sums)[WARP * 4], const staged_plan &plan, const gate_up_job &job,
                                                   gate_up_place p, unsigned turn, float unit)
{
    unsigned j = threadIdx.x - turn * (WARP * 4);
    if (j >= WARP * 4)
        return;
    float v[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        v[w] = sums[w][j];
#pragma unroll
    for (int step = 1; step < WARPS; step *= 2)
#pragma unroll
        for (int w = 0; w + step < WARPS; w += 2 * step)
            v[w] += v[w + step];
    float gate = v[0] * unit, up = __shfl_down_sync(ALL_LANES, v[0], 2) * unit;
    unsigned lane = j / 4, acc = j % 4; /* of the fragment: rows 0 to 7 of a tile are gate, the rest is up */
    if (acc >= 2)
        return;
    int slot = plan.slot[p.expert][lane % 4 * 2 + acc];
    if (slot >= 0)
        job.h[slot * job.width + p.tile * 8 + (int)(lane / 4)] = mq_f32_to_bf16(gate / (1.0f + expf(-gate)) * up);
}

template <int GROUP, int WARPS, int HELD, int SHARE>
static __global__ void __launch_bounds__(WARPS *WARP, 1) gate_up_kernel(gate_up_job job)
{
    enum { TOGETHER = SHARE == ALL && unit_format<GROUP>::UNITS == 1 ? 2 : 1 }; /* blocks whose products may overlap */
    MQ_SHARED(plan, staged_plan);
    MQ_SHARED(sums, float[2][WARPS][WARP * 4]);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    gate_up_stream<GROUP, WARPS, HELD, SHARE> stream(job, warp);
    register_supply<GROUP, HELD, 1> supply(lane);
    input_block<GROUP> x[HELD] = {};

    wait_for_previous();
    let_next_start();
    if (SHARE != PARTS)
        load_part(x, stream, job, 0, lane);
    int n = stage_plan(plan, job.plan, job.weights, job.n_slots);
    __syncthreads();
    gate_up_place at = stream.begin(), ahead = at;
    if (at.expert >= n)
        return;
    supply.fill(0, stream.weights(plan, n, ahead));
    ahead = stream.after(ahead);

    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (unsigned turn = 0; at.expert < n; at = stream.after(at), ahead = stream.after(ahead)) {
        next_place next = stream.weights(plan, n, ahead);
        int count = stream.count(at.part);
        if (SHARE == PARTS)
            load_part(x, stream, job, at.part, lane);
#pragma unroll
        for (int first = 0; first < HELD; first += TOGETHER) {
            if (first < count)
#pragma unroll
                for (int u = first; u < first + TOGETHER; u++)
                    multiply_block<GROUP>(acc, supply.block(0, u), x[u]);
            supply.used(0, first, TOGETHER, next);
        }
        if (at.part + 1 == stream.n_parts) {
            /* two arrays in turn: whoever is a tile ahead has passed the barrier that ends the reading of this one */
            float(*to)[WARP * 4] = sums[turn & 1];
            *(float4 *)(to[warp] + 4 * lane) = {acc[0], acc[1], acc[2], acc[3]};
            __syncthreads();
            finish_tile<WARPS>(to, plan, job, at, turn % (WARPS / 4), SUM_UNIT<GROUP>);
            acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
            turn++;
        }
    }
}

/* WARPS * HELD units are as much of a row as is kept in registers without spilling them. */
template <int GROUP, int WARPS, int UNITS, int SHARE>
static mq_status launch_gate_up(mq_dev *dev, const gate_up_job &job, mq_err *err)
{
    return launch_dependent(dev, err, "experts, gate and up", gate_up_kernel<GROUP, WARPS, UNITS / unit_format<GROUP>::UNITS, SHARE>,
                            dim3((unsigned)dev->n_processors), WARPS * WARP, 0, job);
}

template <int GROUP> static mq_status gate_up(mq_dev *dev, const mq_decode_experts *e, mq_err *err)
{
    gate_up_job job = {e->experts.gate_up, e->plan, e->x, e->h, e->experts.hidden, e->experts.width, ROWS * e->experts.topk};
    int64_t n_units = job.hidden / MQ_UNIT_COLS;
    if (n_units == 12 * 8)
        return launch_gate_up<GROUP, 12, 8, ALL>(dev, job, err);
    if (n_units == 16 * 4)
        return launch_gate_up<GROUP, 16, 4, ALL>(dev, job, err);
    if (n_units < 16 * 4)
        return launch_gate_up<GROUP, 16, 4, SOME>(dev, job, err);
    return launch_gate_up<GROUP, 16, 4, PARTS>(dev, job, err);
}

/* ---- down ---- */

struct down_job {
    const uint8_t *const *weights;
    mq_decode_plan plan;
    const uint16_t *h;
    float *y;
    int64_t hidden, width;
    int n_tiles, strip; /* tiles in all, and of a block */
    int topk;
};

/* Part `part` of tile `tile` of the strip, active expert `expert`. */
struct down_place {
    int expert, tile, part;
};

template <int GROUP> struct down_stream {
    using F = unit_format<GROUP>;
    enum { HELD = 4 / F::UNITS }; /* blocks of a part */
    int strip, n_blocks, n_parts, step_expert, step_tile;
    int64_t tile_bytes, strip_bytes;

    __device__ __forceinline__ down_stream(const down_job &job)
    {
        int first = (int)blockIdx.x * job.strip, left = job.n_tiles - first;
        strip = left < job.strip ? left : job.strip;
        n_blocks = (int)(job.width / F::COLS);
        n_parts = (n_blocks + HELD - 1) / HELD;
        step_expert = DOWN_WARPS / strip;
        step_tile = DOWN_WARPS % strip;
        tile_bytes = (int64_t)n_blocks * F::BYTES;
        strip_bytes = first * tile_bytes;
    }

    __device__ __forceinline__ down_place begin(unsigned warp) const { return {(int)warp / strip, (int)warp % strip, 0}; }

    __device__ __forceinline__ down_place after(down_place p) const
    {
        if (++p.part < n_parts)
            return p;
        p.part = 0;
        p.tile += step_tile;
        p.expert += step_expert + (p.tile >= strip);
        p.tile -= p.tile >= strip ? strip : 0;
        return p;
    }

    /* Blocks of a part; where all are whole, the compiler does not know, as above. */
    __device__ __forceinline__ int count(int part) const
    {
        int left = n_blocks - part * HELD;
        return left < HELD ? left : HELD;
    }

    __device__ __forceinline__ next_place weights(const staged_plan &plan, int n, down_place p) const
    {
        bool is_there = p.expert < n;
        const uint8_t *expert = plan.weights[is_there ? p.expert : 0];
        return {expert + strip_bytes + p.tile * tile_bytes + (int64_t)(p.part * HELD) * F::BYTES, count(p.part), is_there};
    }
};

/* y of the strip: per row the slots it has, which stand in the order of their experts. */
static __device__ __forceinline__ void finish_strip(const float *results, const staged_plan &plan, int n, int strip,
                                                    const down_job &job, float unit)
{
    MQ_SHARED(n_slots, int[ROWS]);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (warp < ROWS) {
        int count = 0;
        for (int a = (int)lane; a < n; a += WARP)
            count += plan.slot[a][warp] >= 0;
        count = warp_sum(count);
        if (lane == 0)
            n_slots[warp] = count;
    }
    __syncthreads(); /* and every warp's results are there */
    int rows = strip * MQ_UNIT_ROWS;
    for (int i = (int)threadIdx.x; i < rows * ROWS; i += (int)blockDim.x) {
        int row = i / rows, r = i % rows;
        float y = 0.0f;
        for (int k = 0; k < n_slots[row]; k++) {
            int slot = row * job.topk + k;
            y = fmaf(job.plan.coef[slot], results[slot * rows + r] * unit, y);
        }
        job.y[row * job.hidden + (int64_t)blockIdx.x * job.strip * MQ_UNIT_ROWS + r] = y;
    }
}

/* What a warp found for one expert and tile, to the slots of the rows that chose the expert. */
static __device__ __forceinline__ void store_results(float *results, const staged_plan &plan, down_place at, int rows, const float acc[4],
                                                     unsigned lane)
{
    const int16_t *slots = plan.slot[at.expert] + lane % 4 * 2;
#pragma unroll
    for (int column = 0; column < 2; column++) {
        float *to = results + slots[column] * rows + at.tile * MQ_UNIT_ROWS + (int)(lane / 4);
        if (slots[column] >= 0) {
            to[0] = acc[column];
            to[8] = acc[2 + column];
        }
    }
}

/* WHOLE: every part has HELD blocks. */
template <int GROUP, bool WHOLE> static __global__ void __launch_bounds__(DOWN_WARPS *WARP, 1) down_kernel(down_job job)
{
    using F = unit_format<GROUP>;
    enum { HELD = down_stream<GROUP>::HELD, DEPTH = 2, TOGETHER = WHOLE && F::UNITS == 1 ? 2 : 1 };
    MQ_SHARED_DYNAMIC(memory, uint8_t);
    staged_plan &plan = *(staged_plan *)memory;
    float *results = (float *)(memory + sizeof(staged_plan)); /* [slots, 16 strip] */
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    down_stream<GROUP> stream(job);
    register_supply<GROUP, HELD, DEPTH> supply(lane);
    int n = stage_plan(plan, job.plan, job.weights, ROWS * job.topk), rows = stream.strip * MQ_UNIT_ROWS;
    __syncthreads();

    down_place at = stream.begin(warp), ahead = at;
    if (n > 0)
#pragma unroll
        for (int i = 0; i < DEPTH; i++, ahead = stream.after(ahead))
            supply.fill(i, stream.weights(plan, n, ahead));
    wait_for_previous();
    let_next_start();

    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    input_block<GROUP> x[HELD] = {};
    while (at.expert < n) {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (at.expert >= n)
                break;
            /* Activations of this part, a column each for the rows that chose the expert; the other columns repeat one
             * of these. */
            int slot = plan.slot[at.expert][lane / 4], count = stream.count(at.part);
            slot = slot < 0 ? plan.some_slot[at.expert] : slot;
            const uint16_t *h = job.h + slot * job.width + at.part * (HELD * F::COLS);
#pragma unroll
            for (int u = 0; u < HELD; u++)
                if (WHOLE || u < count)
                    load_inputs<GROUP>(x[u], h + u * F::COLS, lane);
            next_place next = stream.weights(plan, n, ahead);
#pragma unroll
            for (int first = 0; first < HELD; first += TOGETHER) {
                if (first < count)
#pragma unroll
                    for (int u = first; u < first + TOGETHER; u++)
                        multiply_block<GROUP>(acc, supply.block(i, u), x[u]);
                supply.used(i, first, TOGETHER, next);
            }
            if (at.part + 1 == stream.n_parts) {
                store_results(results, plan, at, rows, acc, lane);
                acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
            }
            at = stream.after(at);
            ahead = stream.after(ahead);
        }
    }
    finish_strip(results, plan, n, stream.strip, job, SUM_UNIT<GROUP>);
}

template <int GROUP, bool WHOLE> static mq_status launch_down(mq_dev *dev, const down_job &job, mq_err *err)
{
    size_t shared = sizeof(staged_plan) + (size_t)(ROWS * job.topk * job.strip * SLOT_BYTES);
    return launch_dependent(dev, err, "experts, down", down_kernel<GROUP, WHOLE>,
                            dim3((unsigned)((job.n_tiles + job.strip - 1) / job.strip)), DOWN_WARPS * WARP, shared, job);
}

template <int GROUP> static mq_status down(mq_dev *dev, const mq_decode_experts *e, mq_err *err)
{
    const mq_decode_expert_table *t = &e->experts;
    int n_tiles = (int)(t->hidden / MQ_UNIT_ROWS);
    int strip = (n_tiles + dev->n_processors - 1) / dev->n_processors, most = STRIP_BYTES / (ROWS * t->topk * SLOT_BYTES);
    strip = strip < most ? strip : most;
    down_job job = {t->down, e->plan, e->h, e->y, t->hidden, t->width, n_tiles, strip, t->topk};
    return t->width % (4 * MQ_UNIT_COLS) ? launch_down<GROUP, false>(dev, job, err) : launch_down<GROUP, true>(dev, job, err);
}

/* ---- the operation ---- */

template <int GROUP> static mq_status run(mq_dev *dev, const mq_decode_experts *job, mq_err *err)
{
    MQ_TRY(gate_up<GROUP>(dev, job, err));
    return down<GROUP>(dev, job, err);
}

mq_status check_experts(const mq_decode_expert_table *t, mq_err *err)
{
    if (t->group != 32 && t->group != 64 && t->group != 128 && t->group != MQ_GROUP_MXFP4)
        return mq_fail(err, MQ_E_UNSUPPORTED, "experts: group %d, expected 32, 64, 128 or %d (MXFP4)", t->group, MQ_GROUP_MXFP4);
    int cols = mq_block_cols(t->group);
    const int64_t sides[2] = {t->hidden, t->width};
    for (int i = 0; i < 2; i++)
        if (sides[i] <= 0 || sides[i] % cols || sides[i] > LARGEST_SIDE)
            return mq_fail(err, MQ_E_UNSUPPORTED, "experts: %s %lld, expected a multiple of %d up to %d", i ? "width" : "hidden",
                           (long long)sides[i], cols, LARGEST_SIDE);
    if (t->topk < 1 || t->topk > MAX_TOPK)
        return mq_fail(err, MQ_E_UNSUPPORTED, "experts: %d of each row, expected 1 to %d", t->topk, MAX_TOPK);
    if (t->n_experts < t->topk)
        return mq_fail(err, MQ_E_UNSUPPORTED, "experts: %d, expected at least the %d of each row", t->n_experts, t->topk);
    return MQ_OK;
}

mq_status experts(mq_dev *dev, const mq_decode_experts *job, mq_err *err)
{
    if (can_stream_experts(dev, job))
        return stream_experts(dev, job, err);
    switch (job->experts.group) {
    case 32:
        return run<32>(dev, job, err);
    case 64:
        return run<64>(dev, job, err);
    case 128:
        return run<128>(dev, job, err);
    default:
        return run<MQ_GROUP_MXFP4>(dev, job, err);
    }
}

} // namespace decode
} // namespace mq_cuda
