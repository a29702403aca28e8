/* The experts of a decode step in one kernel, for GPUs whose memory is faster than two kernels can ask (compute capability 9.0).
 *
 * A block has one multiprocessor for itself and everything it reads of the weights, first gate and up, then down, is one
 * sequence of stages: WARPS places of 4 units (units.cuh) each, in a ring of shared memory that does not run dry between
 * experts, tiles or the two halves.  Warps have roles:
 *
 *   compute   WARPS   place w of every stage.  Gate and up: the block's items, (active expert, 16-row tile) dealt in turn, a
 *                     stage or two an item; a warp's columns of all eight activations stay in registers.  Down: the block
 *                     owns a strip of output tiles; a place belongs to one (active expert, tile).
 *   producer  1       fetches stages as they become free, in a few bulk copies each: a copy keeps this warp for a hundred cycles
 *   reduce    2       gate and up's sums over the warps, SwiGLU, h as BF16 by slot, and one more tile of the expert is done
 *   gather    1       sees which experts have all their tiles, from all blocks, and brings their h to shared memory
 *
 * So a row's bits come from its own experts only: every column sum is cut in the same way, sums of warps are added as one tree,
 * the slots of a row in ascending order.  Rows that did not choose an expert ride along as columns whose result is not stored.
 *
 * Blocks wait for each other's tiles, which is safe: a grid has no more blocks than there are multiprocessors, and no
 * kernel behind this one can take a place before all of its blocks have theirs (let_next_start).  done [active] counts tiles,
 * done [n_slots] who has finished counting; the last one leaves zeros for the next launch.  Where blocks run one
 * after the other (the emulator) the same kernel is launched once for each half. */
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/units.cuh"

namespace mq_cuda {
namespace decode {

enum {
    REDUCERS = 2,
    SUM_BUFFERS = 3,
    DOWN_UNITS = 4, /* of a place */
    STAGES = 2, /* 52 KB under way; more only queue, and everybody's x and h wait behind them: 3, 4 and 6 were slower on an H200 */
    MOST_EXPERTS = 1024, /* whose addresses are staged */
    SHARED_LIMIT = 227 << 10,
    HALF_UP = 1,
    HALF_DOWN = 2
};
static const uint64_t PATIENCE_NS = 10000000000u; /* then the launch fails */

struct stream_job {
    const uint8_t *const *gate_up, *const *down;
    mq_decode_plan plan;
    const uint16_t *x;
    uint16_t *h;
    float *y;
    uint32_t *done;
    int64_t hidden, width;
    int n_experts, n_slots, topk;
    int n_tiles, strip; /* of down, in all and of a block */
    int halves;
};

/* Offsets in a block's shared memory: bytes in all before the ring. */
struct stream_layout {
    int h, results, addresses, sums, of_slot, some_slot, slot, weights, coef, barriers, ring;

    MQ_HD stream_layout(const stream_job &job, int n_warps)
    {
        int at = 0, n = job.n_slots;
        auto take = [&](int64_t n_bytes) {
            int from = at;
            at += (int)((n_bytes + 15) / 16 * 16);
            return from;
        };
        int64_t result_bytes = (int64_t)n * job.strip * MQ_UNIT_ROWS * 4, address_bytes = (int64_t)job.n_experts * 16;
        h = take((int64_t)n * job.width * 2);
        results = addresses = take(result_bytes > address_bytes ? result_bytes : address_bytes); /* one after the other */
        sums = take((int64_t)SUM_BUFFERS * n_warps * WARP * 16);
        slot = take((int64_t)n * ROWS * 2);
        some_slot = take((int64_t)n * 2);
        of_slot = take((int64_t)(n + WARP) * 2);
        weights = take((int64_t)n * 16);
        coef = take((int64_t)n * 4);
        barriers = take((int64_t)(2 * STAGES + 2 * SUM_BUFFERS + n) * 8);
        ring = (at + 127) / 128 * 128;
    }
};

/* What all roles share. */
struct stream_state {
    const stream_job &job;
    uint8_t *memory;
    int n; /* active experts */
    uint16_t *h;
    float *results, *sums, *coef;
    int16_t (*slot)[ROWS];  /* [active] */
    int16_t *some_slot;     /* [active]: one that is not -1 */
    int16_t *of_slot;       /* [n_slots]: the active expert, or -1 */
    const uint8_t **weights; /* [2][n_slots] of the active experts */
    uint64_t *full, *empty, *sums_full, *sums_empty, *ready;
    uint8_t *ring;
    int tiles_up, strip; /* tiles of an expert; of the block's own strip */

    __device__ __forceinline__ stream_state(const stream_job &j, uint8_t *m, int n_warps) : job(j), memory(m), n(0)
    {
        stream_layout at(j, n_warps);
        h = (uint16_t *)(m + at.h);
        results = (float *)(m + at.results);
        sums = (float *)(m + at.sums);
        coef = (float *)(m + at.coef);
        slot = (int16_t(*)[ROWS])(m + at.slot);
        some_slot = (int16_t *)(m + at.some_slot);
        of_slot = (int16_t *)(m + at.of_slot);
        weights = (const uint8_t **)(m + at.weights);
        full = (uint64_t *)(m + at.barriers);
        empty = full + STAGES;
        sums_full = empty + STAGES;
        sums_empty = sums_full + SUM_BUFFERS;
        ready = sums_empty + SUM_BUFFERS;
        ring = m + at.ring;
        int left = j.n_tiles - (int)blockIdx.x * j.strip;
        tiles_up = (int)(j.width / 8);
        strip = left < 0 || !(j.halves & HALF_DOWN) ? 0 : left < j.strip ? left : j.strip;
    }
    __device__ __forceinline__ int n_items() const { return job.halves & HALF_UP ? n * tiles_up : 0; }
};

static __device__ __forceinline__ void await(uint64_t *barrier, unsigned parity)
{
    while (!mbarrier_try_wait(barrier, parity))
        ;
}

/* A stage after the other; parity 0 in the first round. */
struct stage_place {
    int at;
    unsigned parity;

    __device__ __forceinline__ void advance(int n)
    {
        if (++at == n) {
            at = 0;
            parity ^= 1;
        }
    }
};

/* ---- what a block needs to know ---- */

static __device__ __forceinline__ void init_barriers(const stream_state &s, int n_warps)
{
    enum { EMPTY = STAGES, SUMS_EMPTY = 2 * STAGES + SUM_BUFFERS, READY = SUMS_EMPTY + SUM_BUFFERS };
    for (int i = (int)threadIdx.x; i < READY + s.job.n_slots; i += (int)blockDim.x)
        mbarrier_init(s.full + i, i >= READY ? (unsigned)WARP : i >= EMPTY && i < SUMS_EMPTY ? (unsigned)n_warps : 1);
    mbarrier_fence_init();
}

/* Before the wait: every expert's addresses, which do not change, and no slot taken. */
static __device__ __forceinline__ void stage_addresses(const stream_state &s)
{
    const uint8_t **to = (const uint8_t **)s.results;
    for (int e = (int)threadIdx.x; e < s.job.n_experts; e += (int)blockDim.x) {
        to[e] = s.job.gate_up[e];
        to[s.job.n_experts + e] = s.job.down[e];
    }
    for (int i = (int)threadIdx.x; i < s.job.n_slots + WARP; i += (int)blockDim.x)
        s.of_slot[i] = -1;
}

/* Entries are read before it is known whether they are valid: one trip to L2 less.  From L2, as an L1 may be older. */
static __device__ __forceinline__ int stage_plan(const stream_state &s)
{
    const uint8_t **from = (const uint8_t **)s.results;
    int n = (int)load_l2_4(s.job.plan.n);
    for (int a = (int)threadIdx.x; a < s.job.n_slots; a += (int)blockDim.x) {
        int expert = (int)load_l2_4(s.job.plan.expert + a);
        uint4 low = load_l2_16(s.job.plan.slot + a * ROWS), high = load_l2_16(s.job.plan.slot + a * ROWS + 4);
        s.coef[a] = mq_f32_from_bits(load_l2_4(s.job.plan.coef + a));
        if (a >= n)
            continue;
        s.weights[a] = from[expert];
        s.weights[s.job.n_slots + a] = from[s.job.n_experts + expert];
        int slots[ROWS] = {(int)low.x, (int)low.y, (int)low.z, (int)low.w, (int)high.x, (int)high.y, (int)high.z, (int)high.w};
        int some = -1;
        for (int r = 0; r < ROWS; r++) {
            s.slot[a][r] = (int16_t)slots[r];
            some = slots[r] > some ? slots[r] : some;
            if (slots[r] >= 0)
                s.of_slot[slots[r]] = (int16_t)a;
        }
        s.some_slot[a] = (int16_t)some;
    }
    return n;
}

/* ---- the producer ---- */

/* (active expert, tile) of down for warp w: w, w + n_warps, ... of the strip's. */
struct down_place {
    int expert, tile, step_expert, step_tile, strip;

    __device__ __forceinline__ down_place(int first, int n_warps, int strip_)
        : expert(first / strip_), tile(first % strip_), step_expert(n_warps / strip_), step_tile(n_warps % strip_), strip(strip_)
    {
    }
    __device__ __forceinline__ void advance()
    {
        expert += step_expert;
        tile += step_tile;
        if (tile >= strip) {
            tile -= strip;
            expert++;
        }
    }
};

template <int GROUP, int WARPS, int PER> struct stream_shape {
    using F = unit_format<GROUP>;
    enum {
        DOWN_PER = DOWN_UNITS / F::UNITS, /* blocks of a place */
        PLACE_BYTES = PER * F::BYTES,
        STAGE_BYTES = WARPS * PLACE_BYTES,
        THREADS = (WARPS + 1 + REDUCERS + 1) * WARP
    };
    static_assert((int)PER == (int)DOWN_PER && WARPS % 4 == 0, "places of one size, without gaps; four copies a stage");
};

template <int GROUP, int WARPS, int PER> struct producer {
    using F = unit_format<GROUP>;
    using S = stream_shape<GROUP, WARPS, PER>;
    const stream_state &s;
    stage_place place;
    uint64_t policy;
    int lane;

    /* The next stage, of `total` blocks: lane l brings `count` of them, at from, to place l and those behind it. */
    __device__ __forceinline__ void put(const uint8_t *from, int count, int total)
    {
        uint64_t *full = s.full + place.at;
        await(s.empty + place.at, place.parity ^ 1);
        if (lane == 0 && total > 0)
            mbarrier_arrive_expect_tx(full, (uint32_t)(total * F::BYTES));
        else if (lane == 0) /* nothing comes, but the phase has to end */
            mbarrier_arrive(full);
        __syncwarp();
        if (count > 0)
            copy_bulk_hint(s.ring + place.at * S::STAGE_BYTES + lane * S::PLACE_BYTES, from, (uint32_t)(count * F::BYTES), full, policy);
        place.advance(STAGES);
    }

    /* Four copies a stage: a tile's blocks stand behind each other there as here. */
    __device__ __forceinline__ void gate_up(int parts)
    {
        enum { RUN = WARPS / 4 };
        int n_blocks = (int)(s.job.hidden / F::COLS);
        for (int i = (int)blockIdx.x; i < s.n_items(); i += (int)gridDim.x) {
            const uint8_t *tile = s.weights[i / s.tiles_up] + (int64_t)(i % s.tiles_up) * n_blocks * F::BYTES;
            for (int p = 0; p < parts; p++) {
                int first = (p * WARPS + lane) * PER, left = n_blocks - first, total = n_blocks - p * WARPS * PER;
                put(tile + (int64_t)first * F::BYTES, lane >= WARPS || lane % RUN ? 0 : left < RUN * PER ? left : RUN * PER,
                    total < WARPS * PER ? total : WARPS * PER);
            }
        }
    }

    /* A copy for what is left of an expert's strip, where a place holds a tile; otherwise a copy a place. */
    __device__ __forceinline__ void down()
    {
        if (s.strip == 0)
            return;
        int n_blocks = (int)(s.job.width / F::COLS), n_jobs = s.n * s.strip;
        bool joined = n_blocks == S::DOWN_PER;
        down_place at(lane, WARPS, s.strip);
        for (int j = 0; j < n_jobs; j += WARPS, at.advance()) {
            bool is_there = at.expert < s.n && lane < WARPS;
            int places = n_jobs - j < WARPS ? n_jobs - j : WARPS, run = s.strip - at.tile;
            run = !joined ? 1 : run < WARPS - lane ? run : WARPS - lane;
            if (!is_there || (joined && lane != 0 && at.tile != 0))
                run = 0;
            const uint8_t *tile = s.weights[s.job.n_slots + (is_there ? at.expert : 0)] +
                                  ((int64_t)blockIdx.x * s.job.strip + at.tile) * n_blocks * F::BYTES;
            for (int b = 0; b < n_blocks; b += S::DOWN_PER) {
                int count = n_blocks - b < S::DOWN_PER ? n_blocks - b : S::DOWN_PER;
                put(tile + (int64_t)b * F::BYTES, run * count, places * count);
            }
        }
    }
};

/* ---- compute ---- */

template <int GROUP, int WARPS, int PER, int PARTS, bool WHOLE> struct compute {
    using F = unit_format<GROUP>;
    using S = stream_shape<GROUP, WARPS, PER>;
    const stream_state &s;
    int warp;
    unsigned lane;
    stage_place place;

    /* The warp's place of the next stage, which is free again at once.  Of PER blocks; count of them where not WHOLE. */
    __device__ __forceinline__ void take(weight_block<GROUP> (&w)[PER], int count)
    {
        const uint8_t *from = s.ring + place.at * S::STAGE_BYTES + warp * S::PLACE_BYTES;
        await(s.full + place.at, place.parity);
#pragma unroll
        for (int u = 0; u < PER; u++)
            if (WHOLE || u < count)
                read_block<GROUP>(w[u], from + u * F::BYTES, lane);
        __syncwarp();
        if (lane == 0)
            mbarrier_arrive(s.empty + place.at);
        place.advance(STAGES);
    }
    __device__ __forceinline__ void multiply(float acc[4], const weight_block<GROUP> (&w)[PER], const input_block<GROUP> *x, int count)
    {
#pragma unroll
        for (int u = 0; u < PER; u++)
            if (WHOLE || u < count)
                multiply_block<GROUP>(acc, w[u], x[u]);
    }

    __device__ __forceinline__ void gate_up()
    {
        int n_blocks = (int)(s.job.hidden / F::COLS), row = (int)lane / 4;
        input_block<GROUP> x[PARTS * PER] = {};
        if (s.of_slot[row * s.job.topk] >= 0) /* rows that choose nothing need not be read */
#pragma unroll
            for (int u = 0; u < PARTS * PER; u++) {
                int block = (u / PER * WARPS + warp) * PER + u % PER;
                if (WHOLE || block < n_blocks)
                    load_inputs<GROUP>(x[u], s.job.x + row * s.job.hidden + (int64_t)block * F::COLS, lane);
            }
        stage_place sum = {0, 0};
        for (int i = (int)blockIdx.x; i < s.n_items(); i += (int)gridDim.x) {
            float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                int count = n_blocks - (p * WARPS + warp) * PER;
                weight_block<GROUP> w[PER];
                take(w, count);
                multiply(acc, w, x + p * PER, count);
            }
            await(s.sums_empty + sum.at, sum.parity ^ 1);
            *(float4 *)(s.sums + ((sum.at * WARPS + warp) * WARP + (int)lane) * 4) = {acc[0], acc[1], acc[2], acc[3]};
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(s.sums_full + sum.at);
            sum.advance(SUM_BUFFERS);
        }
    }

    __device__ __forceinline__ void down()
    {
        if (s.strip == 0)
            return;
        int n_blocks = (int)(s.job.width / F::COLS), rows = s.job.strip * MQ_UNIT_ROWS;
        down_place at(warp, WARPS, s.strip);
        for (int j = 0; j < s.n * s.strip; j += WARPS, at.advance()) {
            bool is_there = at.expert < s.n;
            int a = is_there ? at.expert : 0, slot = s.slot[a][lane / 4]; /* beyond the end: something, for nobody */
            int slots[2] = {s.slot[a][lane % 4 * 2], s.slot[a][lane % 4 * 2 + 1]};
            slot = slot < 0 ? s.some_slot[a] : slot; /* whose column nobody wants */
            const uint16_t *h = s.h + slot * s.job.width;
            float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int b = 0; b < n_blocks; b += PER) {
                input_block<GROUP> x[PER];
                weight_block<GROUP> w[PER];
                int count = is_there ? n_blocks - b : 0;
                take(w, count);
                if (b == 0)
                    await(s.ready + a, 0);
#pragma unroll
                for (int u = 0; u < PER; u++)
                    if (WHOLE || u < count)
                        load_inputs<GROUP>(x[u], h + (b + u) * F::COLS, lane);
                multiply(acc, w, x, count);
            }
            float *to = s.results + at.tile * MQ_UNIT_ROWS + (int)(lane / 4);
#pragma unroll
            for (int column = 0; column < 2; column++)
                if (is_there && slots[column] >= 0) {
                    to[slots[column] * rows] = acc[column];
                    to[slots[column] * rows + 8] = acc[2 + column];
                }
        }
    }
};

/* ---- between the halves ---- */

/* One more of `of` who count has finished; the last leaves zeros. */
static __device__ __forceinline__ void finish_counting(const stream_job &job, unsigned of)
{
    __threadfence();
    if (atomicAdd(job.done + job.n_slots, 1u) != of - 1)
        return;
    for (int i = 0; i <= job.n_slots; i++)
        job.done[i] = 0;
}

template <int WARPS>
static __device__ __forceinline__ void reduce_items(const stream_state &s, int reducer, unsigned lane, float unit)
{
    int turn = 0;
    for (int i = (int)blockIdx.x; i < s.n_items(); i += (int)gridDim.x, turn++) {
        if (turn % REDUCERS != reducer)
            continue;
        int buffer = turn % SUM_BUFFERS, a = i / s.tiles_up, tile = i % s.tiles_up;
        int slots[2] = {s.slot[a][lane % 4 * 2], s.slot[a][lane % 4 * 2 + 1]};
        await(s.sums_full + buffer, (unsigned)(turn / SUM_BUFFERS) & 1);
        float4 v[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            v[w] = *(const float4 *)(s.sums + ((buffer * WARPS + w) * WARP + (int)lane) * 4);
        __syncwarp();
        if (lane == 0)
            mbarrier_arrive(s.sums_empty + buffer);
#pragma unroll
        for (int step = 1; step < WARPS; step *= 2)
#pragma unroll
            for (int w = 0; w + step < WARPS; w += 2 * step) {
                v[w].x += v[w + step].x;
                v[w].y += v[w + step].y;
                v[w].z += v[w + step].z;
                v[w].w += v[w + step].w;
            }
        float gate[2] = {v[0].x * unit, v[0].y * unit}, up[2] = {v[0].z * unit, v[0].w * unit};
#pragma unroll
        for (int column = 0; column < 2; column++)
            if (slots[column] >= 0)
                s.job.h[slots[column] * s.job.width + tile * 8 + (int)(lane / 4)] =
                    mq_f32_to_bf16(gate[column] / (1.0f + expf(-gate[column])) * up[column]);
        __syncwarp();
        if (lane == 0)
            add_release4(s.job.done + a, 1);
    }
}

/* For the experts base .. base + 31 that `got` names: h of their slots; their barriers complete when it is there. */
static __device__ __forceinline__ void gather_experts(const stream_state &s, int base, unsigned got, unsigned lane)
{
    for (int first = 0; first < s.job.n_slots; first += WARP) {
        int a = s.of_slot[first + (int)lane] - base;
        unsigned slots = __ballot_sync(ALL_LANES, a >= 0 && a < WARP && (got >> a & 1u));
        for (; slots; slots &= slots - 1) {
            int64_t at = (first + __ffs((int)slots) - 1) * s.job.width;
            for (int c = (int)lane * 8; c < s.job.width; c += WARP * 8)
                copy_async16(s.h + at + c, s.job.h + at + c);
        }
    }
    for (; got; got &= got - 1)
        copy_async_arrive(s.ready + base + __ffs((int)got) - 1);
}

static __device__ __forceinline__ void gather(const stream_state &s, unsigned lane)
{
    uint32_t all = s.job.halves & HALF_UP ? (uint32_t)s.tiles_up : 0;
    for (int base = 0; base < s.n; base += WARP) {
        unsigned missing = s.n - base < WARP ? (1u << (s.n - base)) - 1 : ALL_LANES, rounds = 0;
        uint64_t start = 0;
        while (missing) {
            bool mine = (missing >> lane & 1u) && (all == 0 || load_acquire4(s.job.done + base + (int)lane) >= all);
            unsigned got = __ballot_sync(ALL_LANES, mine);
            __syncwarp(); /* orders what other lanes acquired before this one's reads; a vote does not */
            if (got)
                gather_experts(s, base, got, lane);
            missing &= ~got;
            if (got || ++rounds % 1024)
                continue;
            uint64_t now = clock_ns();
            start = start ? start : now;
            if (now - start > PATIENCE_NS)
                give_up();
        }
    }
}

/* y of the strip: per row the slots it has, which stand in the order of their experts. */
static __device__ __forceinline__ void finish_strip(const stream_state &s, float unit)
{
    int rows = s.strip * MQ_UNIT_ROWS, stride = s.job.strip * MQ_UNIT_ROWS;
    for (int i = (int)threadIdx.x; i < rows * ROWS; i += (int)blockDim.x) {
        int row = i / rows, r = i % rows, slot = row * s.job.topk;
        float y = 0.0f;
#pragma unroll 8
        for (int k = 0; k < s.job.topk; k++) {
            float part = s.results[(slot + k) * stride + r] * unit;
            y = s.of_slot[slot + k] >= 0 ? fmaf(s.coef[slot + k], part, y) : y;
        }
        s.job.y[row * s.job.hidden + (int64_t)blockIdx.x * stride + r] = y;
    }
}

template <int GROUP, int WARPS, int PER, int PARTS, bool WHOLE>
static __global__ void __launch_bounds__(stream_shape<GROUP, WARPS, PER>::THREADS, 1) stream_kernel(stream_job job)
{
    MQ_SHARED_DYNAMIC(memory, uint8_t);
    int warp = (int)(threadIdx.x / WARP);
    unsigned lane = threadIdx.x % WARP;
    stream_state s(job, memory, WARPS);
    init_barriers(s, WARPS);
    stage_addresses(s);
    __syncthreads();
    wait_for_previous();
    let_next_start();
    s.n = stage_plan(s);
    __syncthreads();
    if (warp < WARPS) {
        compute<GROUP, WARPS, PER, PARTS, WHOLE> me = {s, warp, lane, {0, 0}};
        if (job.halves & HALF_UP)
            me.gate_up();
        me.down();
    } else if (warp == WARPS) {
        producer<GROUP, WARPS, PER> me = {s, {0, 0}, l2_evict_first(), (int)lane};
        me.gate_up(PARTS);
        me.down();
    } else {
        if (warp <= WARPS + REDUCERS)
            reduce_items<WARPS>(s, warp - WARPS - 1, lane, SUM_UNIT<GROUP>);
        else if (s.strip > 0)
            gather(s, lane);
        __syncwarp();
        if ((job.halves & HALF_UP) && lane == 0)
            finish_counting(job, gridDim.x * (REDUCERS + 1));
    }
    __syncthreads();
    finish_strip(s, SUM_UNIT<GROUP>);
}

/* ---- the launch ---- */

static stream_job make_job(const mq_dev *dev, const mq_decode_experts *e)
{
    const mq_decode_expert_table *t = &e->experts;
    int n_tiles = (int)(t->hidden / MQ_UNIT_ROWS), strip = (n_tiles + dev->n_processors - 1) / dev->n_processors;
    return {t->gate_up, t->down,      e->plan,          e->x,    e->h,    e->y,  e->done, t->hidden,
            t->width,   t->n_experts, ROWS * t->topk,   t->topk, n_tiles, strip, 0};
}

template <int GROUP, int WARPS, int UNITS, int PARTS, bool WHOLE> static mq_status launch_stream(mq_dev *dev, stream_job job, mq_err *err)
{
    enum { PER = UNITS / unit_format<GROUP>::UNITS };
    using S = stream_shape<GROUP, WARPS, PER>;
    auto kernel = stream_kernel<GROUP, WARPS, PER, PARTS, WHOLE>;
    size_t shared = (size_t)(stream_layout(job, WARPS).ring + STAGES * S::STAGE_BYTES);
    dim3 grid((unsigned)dev->n_processors);
    job.halves = BLOCKS_RUN_TOGETHER ? HALF_UP | HALF_DOWN : HALF_UP;
    MQ_TRY(launch_dependent(dev, err, "experts", kernel, grid, S::THREADS, shared, job));
    if (BLOCKS_RUN_TOGETHER)
        return MQ_OK;
    job.halves = HALF_DOWN;
    return launch_dependent(dev, err, "experts, down", kernel, grid, S::THREADS, shared, job);
}

template <int GROUP> static mq_status stream(mq_dev *dev, const stream_job &job, mq_err *err)
{
    int64_t n_units = job.hidden / MQ_UNIT_COLS;
    bool whole = job.width % (DOWN_UNITS * MQ_UNIT_COLS) == 0;
    if (n_units > 16 * 4)
        return launch_stream<GROUP, 12, 4, 2, true>(dev, job, err);
    return whole && n_units == 16 * 4 ? launch_stream<GROUP, 16, 4, 1, true>(dev, job, err)
                                      : launch_stream<GROUP, 16, 4, 1, false>(dev, job, err);
}

bool can_stream_experts(const mq_dev *dev, const mq_decode_experts *e)
{
    stream_job job = make_job(dev, e);
    int64_t n_units = job.hidden / MQ_UNIT_COLS;
    bool is_wide = n_units > 16 * 4, is_whole = job.width % (DOWN_UNITS * MQ_UNIT_COLS) == 0;
    if (!dev->can_start_early || job.n_experts > MOST_EXPERTS || job.n_slots * job.width * 2 > SHARED_LIMIT ||
        (int64_t)job.n_slots * job.strip * MQ_UNIT_ROWS * 4 > SHARED_LIMIT || (is_wide && (n_units != 12 * 4 * 2 || !is_whole)))
        return false;
    int n_warps = is_wide ? 12 : 16;
    return stream_layout(job, n_warps).ring + STAGES * n_warps * DOWN_UNITS * (MQ_UNIT_CODE_BYTES + 64) <= SHARED_LIMIT;
}

mq_status stream_experts(mq_dev *dev, const mq_decode_experts *e, mq_err *err)
{
    stream_job job = make_job(dev, e);
    switch (e->experts.group) {
    case 32:
        return stream<32>(dev, job, err);
    case 64:
        return stream<64>(dev, job, err);
    case 128:
        return stream<128>(dev, job, err);
    default:
        return stream<MQ_GROUP_MXFP4>(dev, job, err);
    }
}

} // namespace decode
} // namespace mq_cuda
