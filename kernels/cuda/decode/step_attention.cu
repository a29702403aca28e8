/* Attention of the decode step: rotate, store and attend in one kernel; a second one joins chunks.
 *
 * Work comes in groups, eight query heads of one row that share a KV head: what a group sees is the same for all its pairs, so
 * keys outside are passed over, never multiplied by 0.  A block has the keys and values of 64 positions (a tile; tiles start at
 * multiples of 64) in shared memory for up to eight groups.  A score is one chain of multiply-adds over the dimensions, a value
 * one chain over the keys of a chunk; between tiles maximum and sum run as in online softmax (Milakov and Gimelshein, arXiv
 * 1805.02867).  So a row's bits do not depend on which warp or block has its group, and blocks divide chunks and groups
 * among themselves as suits the length, which they read on the device.
 *
 * Rows of the step read each other's keys from the job, rotated anew with the same rounding, not from the cache: no block
 * waits for another.  Windows of at most a chunk need no parts: a block takes a group through its whole window. */
#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, WARPS = THREADS / WARP, KEYS = 64, GROUP = 8, MAX_GROUPS = 8, SLOTS = 4, SLICE = 32 };
enum { JOIN_THREADS = 128, CHUNK = MQ_DECODE_CHUNK, ROOM_BYTES = 160 << 10 };

/* A chunk costs a block about as much to load as this many groups to compute: products of 256 keys at the rates of the
 * multiply-add units against copies of 1280 bytes a key. */
enum { LOAD_COST = 2 };

struct attention_job {
    const float *q, *k, *v, *sink;
    int64_t q_stride, k_stride, v_stride;
    mq_kv kv;
    const mq_decode_input *in;
    uint16_t *out;
    float *value, *state; /* parts: [chunk, head, row] of v_dim4 values; of maximum and sum */
    int n_heads, share, row_groups, half, window;
    float theta, v_scale, scale;
    int dim4, v_dim4, tile_stride, n_slices, max_groups;
    bool is_direct, is_wide_k, is_wide_v;
};

/* Dynamic shared memory, in floats; every piece starts at a multiple of 16 bytes. */
struct room_layout {
    int keys, values, p, cos_sin, inv_freq, state, n_floats;
};

static __host__ __device__ inline room_layout layout_of(int dim4, int v_dim4, int tile_stride, int half, int max_groups)
{
    room_layout r;
    r.keys = max_groups * GROUP * dim4; /* behind the queries */
    r.values = r.keys + KEYS * tile_stride;
    r.p = r.values + KEYS * v_dim4;
    r.cos_sin = r.p + max_groups * KEYS * GROUP;
    r.inv_freq = r.cos_sin + (ROWS * 2 * half + 3) / 4 * 4;
    r.state = r.inv_freq + (half + 3) / 4 * 4;
    r.n_floats = r.state + max_groups * GROUP * 3;
    return r;
}

/* What a block works on now. */
struct work {
    int64_t first, last, slot; /* positions first .. last - 1 visible to any of its groups; the slot of first */
    int64_t chunk;             /* index of the part */
    int kv_head, group0, n_groups;
};

struct room {
    float *q, *keys, *values, *p, *cos_sin, *inv_freq, *max, *sum, *shrink;
};

static __device__ __forceinline__ int64_t first_visible(const attention_job &job, int64_t pos)
{
    return job.window > 0 && pos + 1 > job.window ? pos + 1 - job.window : 0;
}

static __device__ __forceinline__ int inside_tile(int64_t key)
{
    return key < 0 ? 0 : key < KEYS ? (int)key : (int)KEYS;
}

/* Keys a .. b - 1 of the tile at base are those that a group of w sees. */
static __device__ __forceinline__ void visible_keys(const attention_job &job, const work &w, int group, int64_t pos0,
                                                    int64_t base, int *a, int *b)
{
    int64_t pos = pos0 + (w.group0 + group) / job.row_groups, lo = first_visible(job, pos);
    *a = inside_tile((lo > w.first ? lo : w.first) - base);
    *b = inside_tile((pos + 1 < w.last ? pos + 1 : w.last) - base);
}

/* Element d of a head, rotated as kernels.h: rope has it; cos_sin: the row's cosines, then its sines. */
static __device__ __forceinline__ float rotated(const float *head, int d, const float *cos_sin, int half)
{
    if (d >= 2 * half)
        return head[d];
    int k = d < half ? d : d - half;
    float a = head[k], b = head[k + half], c = cos_sin[k], s = cos_sin[half + k];
    return d < half ? a * c - b * s : b * c + a * s;
}

/* Positions of the tile at base that the cache holds, those before pos0, a warp a position; pads are zero. */
static __device__ __forceinline__ void load_cached(float *tile, int stride, const float *cache, const attention_job &job,
                                                   const work &w, int width, int width4, bool is_wide, int64_t base,
                                                   int64_t pos0)
{
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP);
    int64_t from = base > w.first ? base : w.first, to = base + KEYS < w.last ? base + KEYS : w.last;
    to = to < pos0 ? to : pos0;
    for (int64_t pos = from + warp; pos < to; pos += WARPS) {
        int64_t slot = w.slot + (pos - w.first);
        slot = slot < job.kv.n_slots ? slot : slot - job.kv.n_slots; /* a row sees at most n_slots positions */
        const float *src = cache + (slot * job.kv.n_kv_heads + w.kv_head) * width;
        float *dst = tile + (int)(pos - base) * stride;
        if (is_wide)
            for (int c = 4 * lane; c < width; c += 4 * WARP)
                copy_async16(dst + c, src + c);
        else
            for (int c = lane; c < width4; c += WARP)
                dst[c] = c < width ? src[c] : 0.0f;
    }
}

/* The rest of the tile: keys, or values, of the step's own rows. */
static __device__ __forceinline__ void load_own_keys(const room &r, const attention_job &job, const work &w, int64_t base,
                                                     int64_t pos0)
{
    int64_t from = base > pos0 ? base : pos0, to = base + KEYS < w.last ? base + KEYS : w.last;
    int dim = job.kv.head_dim;
    for (int64_t pos = from + threadIdx.x / WARP; pos < to; pos += WARPS)
        for (int d = (int)(threadIdx.x % WARP); d < job.dim4; d += WARP) {
            const float *head = job.k + (pos - pos0) * job.k_stride + (int64_t)w.kv_head * dim;
            r.keys[(int)(pos - base) * job.tile_stride + d] =
                d < dim ? rotated(head, d, r.cos_sin + (int)(pos - pos0) * 2 * job.half, job.half) : 0.0f;
        }
}
static __device__ __forceinline__ void load_own_values(const room &r, const attention_job &job, const work &w, int64_t base,
                                                       int64_t pos0)
{
    int64_t from = base > pos0 ? base : pos0, to = base + KEYS < w.last ? base + KEYS : w.last;
    int dim = job.kv.v_head_dim;
    for (int64_t pos = from + threadIdx.x / WARP; pos < to; pos += WARPS)
        for (int d = (int)(threadIdx.x % WARP); d < job.v_dim4; d += WARP) {
            const float *head = job.v + (pos - pos0) * job.v_stride + (int64_t)w.kv_head * dim;
            r.values[(int)(pos - base) * job.v_dim4 + d] = d < dim ? head[d] * job.v_scale : 0.0f;
        }
}

/* Rows from .. to - 1 into the cache; nobody reads these slots in this step. */
static __device__ __forceinline__ void store_rows(const room &r, const attention_job &job, int kv_head, int from, int to,
                                                  int64_t pos0)
{
    int dim = job.kv.head_dim, v_dim = job.kv.v_head_dim;
    for (int row = from + (int)(threadIdx.x / WARP); row < to; row += WARPS) {
        int64_t at = (pos0 + row) % job.kv.n_slots * job.kv.n_kv_heads + kv_head;
        const float *k = job.k + row * job.k_stride + (int64_t)kv_head * dim;
        const float *v = job.v + row * job.v_stride + (int64_t)kv_head * v_dim;
        for (int d = (int)(threadIdx.x % WARP); d < dim; d += WARP)
            job.kv.k[at * dim + d] = rotated(k, d, r.cos_sin + row * 2 * job.half, job.half);
        for (int d = (int)(threadIdx.x % WARP); d < v_dim; d += WARP)
            job.kv.v[at * v_dim + d] = v[d] * job.v_scale;
    }
}

/* Rotated queries of the groups of w, a warp a pair; zero where a row has no such head. */
static __device__ __forceinline__ void load_queries(const room &r, const attention_job &job, const work &w)
{
    int dim = job.kv.head_dim;
    for (int pair = (int)(threadIdx.x / WARP); pair < w.n_groups * GROUP; pair += WARPS) {
        int group = w.group0 + pair / GROUP, row = group / job.row_groups;
        int head = group % job.row_groups * GROUP + pair % GROUP;
        const float *q = job.q + row * job.q_stride + ((int64_t)w.kv_head * job.share + head) * dim;
        for (int d = (int)(threadIdx.x % WARP); d < job.dim4; d += WARP)
            r.q[pair * job.dim4 + d] =
                head < job.share && d < dim ? rotated(q, d, r.cos_sin + row * 2 * job.half, job.half) : 0.0f;
    }
}

static __device__ __forceinline__ float dot4(float4 a, float4 b, float sum)
{
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* Scores of PAIRS queries with keys lane, lane + 32 (LANE_KEYS of them) of the tile. */
template <int PAIRS, int LANE_KEYS>
static __device__ __forceinline__ void score_keys(float *p, const float *q, const float *keys, const attention_job &job)
{
    int lane = (int)(threadIdx.x % WARP);
    float sum[PAIRS][LANE_KEYS] = {};
    keys += lane * job.tile_stride;
#pragma unroll 2
    for (int d = 0; d < job.dim4; d += 4) {
        float4 key[LANE_KEYS];
#pragma unroll
        for (int j = 0; j < LANE_KEYS; j++)
            key[j] = *(const float4 *)(keys + j * WARP * job.tile_stride + d);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float4 x = *(const float4 *)(q + i * job.dim4 + d);
#pragma unroll
            for (int j = 0; j < LANE_KEYS; j++)
                sum[i][j] = dot4(x, key[j], sum[i][j]);
        }
    }
#pragma unroll
    for (int j = 0; j < LANE_KEYS; j++)
#pragma unroll
        for (int i = 0; i < PAIRS; i += 4)
            *(float4 *)(p + (lane + j * WARP) * GROUP + i) =
                float4{sum[i][j] * job.scale, sum[i + 1][j] * job.scale, sum[i + 2][j] * job.scale, sum[i + 3][j] * job.scale};
}

/* p [group][key][pair] for all groups: in as many pieces as keep the warps busy; a score is the same in all of them. */
static __device__ __forceinline__ void score_tile(const room &r, const attention_job &job, int n_groups)
{
    int warp = (int)(threadIdx.x / WARP);
    if (n_groups <= 2) {
        for (int u = warp; u < 4 * n_groups; u += WARPS) { /* half the keys, half the pairs */
            int key = u % 2 * WARP, pair = u / 2 % 2 * 4, group = u / 4;
            score_keys<4, 1>(r.p + (group * KEYS + key) * GROUP + pair, r.q + (group * GROUP + pair) * job.dim4,
                             r.keys + key * job.tile_stride, job);
        }
    } else if (n_groups <= 4) {
        int key = warp % 2 * WARP, group = warp / 2;
        if (group < n_groups)
            score_keys<GROUP, 1>(r.p + (group * KEYS + key) * GROUP, r.q + group * GROUP * job.dim4,
                                 r.keys + key * job.tile_stride, job);
    } else if (warp < n_groups) {
        score_keys<GROUP, 2>(r.p + warp * KEYS * GROUP, r.q + warp * GROUP * job.dim4, r.keys, job);
    }
}

/* Scores of a group become weights, 0 outside a .. b - 1; lane: pair lane % 8, keys lane / 8, + 4, + 8, ... */
static __device__ __forceinline__ void weigh_group(const room &r, int group, int a, int b)
{
    int lane = (int)(threadIdx.x % WARP), pair = lane % GROUP, at = group * GROUP + pair;
    float *p = r.p + group * KEYS * GROUP + lane;
    float before = r.max[at], max = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        int key = 4 * i + lane / GROUP;
        max = fmaxf(max, key >= a && key < b ? p[i * WARP] : -INFINITY);
    }
    max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 8));
    max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 16));
    max = fmaxf(max, before);
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
        int key = 4 * i + lane / GROUP;
        float e = key >= a && key < b ? expf(p[i * WARP] - max) : 0.0f;
        p[i * WARP] = e;
        sum += e;
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    sum += __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane < GROUP) {
        float shrink = expf(before - max);
        r.max[at] = max;
        r.sum[at] = r.sum[at] * shrink + sum;
        r.shrink[at] = shrink;
    }
}

/* A lane's part of the output of (group, slice of 32 values): two pairs of four. */
struct value_sums {
    float at[2][4];
};

/* Keys a .. b - 1 for N slots of one slice, their groups group_step floats apart. */
template <int N>
static __device__ __forceinline__ void add_values(value_sums *sums, const float *p, int group_step, const float *values,
                                                  int v_stride, int a, int b)
{
#pragma unroll 4
    for (int key = a; key < b; key++) {
        float4 x = *(const float4 *)(values + key * v_stride);
#pragma unroll
        for (int s = 0; s < N; s++) {
            float2 w = *(const float2 *)(p + s * group_step + key * GROUP);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float weight = i ? w.y : w.x, *sum = sums[s].at[i];
                sum[0] = fmaf(weight, x.x, sum[0]);
                sum[1] = fmaf(weight, x.y, sum[1]);
                sum[2] = fmaf(weight, x.z, sum[2]);
                sum[3] = fmaf(weight, x.w, sum[3]);
            }
        }
    }
}

/* Where a lane's values of a slot are: slot s of warp w is unit w + 8 s, slices innermost. */
struct value_place {
    int group, pair, column;
};
static __device__ __forceinline__ value_place place_of(const attention_job &job, int slot)
{
    int lane = (int)(threadIdx.x % WARP), unit = (int)(threadIdx.x / WARP) + WARPS * slot;
    return {unit / job.n_slices, lane / GROUP * 2, unit % job.n_slices * SLICE + lane % GROUP * 4};
}

static __device__ __forceinline__ void add_tile(value_sums *sums, const room &r, const attention_job &job, const work &w,
                                                int64_t pos0, int64_t base)
{
    int n = 0, a[SLOTS], b[SLOTS], group_step = WARPS / job.n_slices * KEYS * GROUP;
    bool is_same = WARPS % job.n_slices == 0;
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        value_place at = place_of(job, s);
        a[s] = b[s] = 0;
        if (at.group >= w.n_groups)
            continue;
        n = s + 1;
        visible_keys(job, w, at.group, pos0, base, &a[s], &b[s]);
        is_same = is_same && a[s] == a[0] && b[s] == b[0];
        if (a[s] < b[s]) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float shrink = r.shrink[at.group * GROUP + at.pair + i];
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sums[s].at[i][k] *= shrink;
            }
        }
    }
    value_place at0 = place_of(job, 0);
    const float *p0 = r.p + at0.group * KEYS * GROUP + at0.pair;
    const float *v0 = r.values + (at0.column < job.v_dim4 ? at0.column : 0); /* columns beyond are computed for nobody */
    if (is_same && n == 4) {
        add_values<4>(sums, p0, group_step, v0, job.v_dim4, a[0], b[0]);
    } else if (is_same && n == 2) {
        add_values<2>(sums, p0, group_step, v0, job.v_dim4, a[0], b[0]);
    } else {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
            value_place at = place_of(job, s);
            if (a[s] < b[s])
                add_values<1>(sums + s, r.p + at.group * KEYS * GROUP + at.pair, 0,
                              r.values + (at.column < job.v_dim4 ? at.column : 0), job.v_dim4, a[s], b[s]);
        }
    }
}

/* One part is all there is: as join_kernel has it for one chunk. */
static __device__ __forceinline__ void write_output(const attention_job &job, float max, float sum, const float *value,
                                                    int row, int head, int column)
{
    float sink = job.sink ? job.sink[head] : -INFINITY, most = fmaxf(max, sink), shrink = expf(max - most);
    float all = job.sink ? fmaf(sum, shrink, expf(sink - most)) : sum * shrink;
    uint16_t *out = job.out + ((int64_t)row * job.n_heads + head) * job.kv.v_head_dim;
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (column + k < job.kv.v_head_dim)
            out[column + k] = mq_f32_to_bf16(value[k] * shrink / all);
}

static __device__ __forceinline__ void finish(const value_sums *sums, const room &r, const attention_job &job,
                                              const work &w)
{
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        value_place at = place_of(job, s);
        if (at.group >= w.n_groups || at.column >= job.v_dim4)
            continue;
        int group = w.group0 + at.group, row = group / job.row_groups;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int pair = at.group * GROUP + at.pair + i, within = group % job.row_groups * GROUP + at.pair + i;
            int head = w.kv_head * job.share + within;
            const float *value = sums[s].at[i];
            if (within >= job.share)
                continue;
            if (job.is_direct) {
                write_output(job, r.max[pair], r.sum[pair], value, row, head, at.column);
                continue;
            }
            int64_t part = (w.chunk * job.n_heads + head) * ROWS + row;
            *(float4 *)(job.value + part * job.v_dim4 + at.column) = float4{value[0], value[1], value[2], value[3]};
            if (at.column == 0)
                *(float2 *)(job.state + 2 * part) = float2{r.max[pair], r.sum[pair]};
        }
    }
}

/* All threads of the block; cosines and sines are there when is_first is false. */
static __device__ __forceinline__ void attend(const room &r, const attention_job &job, const work &w, int n, int64_t pos0,
                                              bool is_first)
{
    int64_t first_tile = w.first / KEYS * KEYS;
    int warp = (int)(threadIdx.x / WARP);
    value_sums sums[SLOTS] = {};
    load_cached(r.keys, job.tile_stride, job.kv.k, job, w, job.kv.head_dim, job.dim4, job.is_wide_k, first_tile, pos0);
    copy_async_commit();
    load_cached(r.values, job.v_dim4, job.kv.v, job, w, job.kv.v_head_dim, job.v_dim4, job.is_wide_v, first_tile, pos0);
    copy_async_commit();
    if (is_first) {
        for (int i = (int)threadIdx.x; i < n * job.half; i += THREADS) {
            int row = i / job.half, k = i % job.half;
            float angle = (float)(pos0 + row) * r.inv_freq[k];
            r.cos_sin[row * 2 * job.half + k] = (float)cos((double)angle);
            r.cos_sin[row * 2 * job.half + job.half + k] = (float)sin((double)angle);
        }
        __syncthreads();
    }
    load_queries(r, job, w);
    load_own_keys(r, job, w, first_tile, pos0);
    load_own_values(r, job, w, first_tile, pos0);
    for (int i = (int)threadIdx.x; i < w.n_groups * GROUP; i += THREADS) {
        r.max[i] = -INFINITY;
        r.sum[i] = 0.0f;
    }

    for (int64_t base = first_tile; base < w.last; base += KEYS) {
        bool has_next = base + KEYS < w.last;
        copy_async_wait<1>();
        __syncthreads(); /* keys are there */
        score_tile(r, job, w.n_groups);
        __syncthreads(); /* scores are there, keys are done with */
        if (has_next) {
            load_cached(r.keys, job.tile_stride, job.kv.k, job, w, job.kv.head_dim, job.dim4, job.is_wide_k, base + KEYS,
                        pos0);
            load_own_keys(r, job, w, base + KEYS, pos0);
        }
        copy_async_commit();
        for (int group = warp; group < w.n_groups; group += WARPS) {
            int a, b;
            visible_keys(job, w, group, pos0, base, &a, &b);
            if (a < b) /* the same in the whole warp */
                weigh_group(r, group, a, b);
        }
        copy_async_wait<1>();
        __syncthreads(); /* weights and values are there */
        add_tile(sums, r, job, w, pos0, base);
        __syncthreads(); /* values and weights are done with */
        if (has_next) {
            load_cached(r.values, job.v_dim4, job.kv.v, job, w, job.kv.v_head_dim, job.v_dim4, job.is_wide_v, base + KEYS,
                        pos0);
            load_own_values(r, job, w, base + KEYS, pos0);
        }
        copy_async_commit();
    }
    finish(sums, r, job, w);
    __syncthreads(); /* the next item overwrites what finish read */
}

static __device__ __forceinline__ int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* In how many pieces to cut the groups of a chunk, so that the blocks end together; at most max_groups each. */
static __device__ __forceinline__ int best_split(int n_chunks, int n_groups, int max_groups, int n_blocks)
{
    int best = n_groups;
    int64_t least = INT64_MAX;
    for (int s = ceil_div(n_groups, max_groups); s < 2 * n_groups; s *= 2) {
        int pieces = s < n_groups ? s : n_groups;
        int64_t rounds = ((int64_t)n_chunks * pieces + n_blocks - 1) / n_blocks;
        int64_t cost = rounds * (ceil_div(n_groups, pieces) + LOAD_COST);
        if (cost < least) {
            least = cost;
            best = pieces;
        }
    }
    return best;
}

/* A whole window, or nothing where a row is not used. */
static __device__ __forceinline__ void attend_window(const room &r, const attention_job &job, int n, int64_t pos0)
{
    int64_t per_head = (int64_t)ROWS * job.row_groups;
    work w = {};
    w.kv_head = (int)(blockIdx.x / per_head);
    w.group0 = (int)(blockIdx.x % per_head);
    w.n_groups = 1;
    int row = w.group0 / job.row_groups;
    if (row >= n) { /* the same in the whole block */
        int head0 = w.group0 % job.row_groups * GROUP, heads = job.share - head0 < GROUP ? job.share - head0 : (int)GROUP;
        uint16_t *out = job.out + ((int64_t)row * job.n_heads + w.kv_head * job.share + head0) * job.kv.v_head_dim;
        for (int i = (int)threadIdx.x; i < heads * job.kv.v_head_dim; i += THREADS)
            out[i] = 0;
        return;
    }
    w.last = pos0 + row + 1;
    w.first = first_visible(job, pos0 + row);
    w.slot = w.first % job.kv.n_slots;
    attend(r, job, w, n, pos0, true);
    if (w.group0 % job.row_groups == 0)
        store_rows(r, job, w.kv_head, row, row + 1, pos0);
}

static __device__ __forceinline__ void attend_chunks(const room &r, const attention_job &job, int n, int64_t pos0)
{
    int n_groups = n * job.row_groups;
    int64_t chunk0 = first_visible(job, pos0) / CHUNK;
    int n_chunks = (int)((pos0 + n - 1) / CHUNK - chunk0 + 1);
    int pieces = best_split(n_chunks * job.kv.n_kv_heads, n_groups, job.max_groups, (int)gridDim.x);
    int64_t n_items = (int64_t)job.kv.n_kv_heads * n_chunks * pieces;
    bool is_first = true;
    for (int64_t item = blockIdx.x; item < n_items; item += gridDim.x) {
        int piece = (int)(item % pieces);
        work w = {};
        w.chunk = item / pieces % n_chunks;
        w.kv_head = (int)(item / pieces / n_chunks);
        w.group0 = n_groups * piece / pieces;
        w.n_groups = n_groups * (piece + 1) / pieces - w.group0;
        int64_t start = (chunk0 + w.chunk) * CHUNK, end = start + CHUNK;
        int64_t lo = first_visible(job, pos0 + w.group0 / job.row_groups);
        int64_t hi = pos0 + (w.group0 + w.n_groups - 1) / job.row_groups + 1;
        w.first = lo > start ? lo : start;
        w.last = hi < end ? hi : end;
        w.slot = w.first % job.kv.n_slots;
        if (w.first >= w.last) /* none of these rows sees the chunk: the same in the whole block */
            continue;
        attend(r, job, w, n, pos0, is_first);
        is_first = false;
        if (piece == pieces - 1 && end > pos0) /* the piece that sees all rows of the chunk */
            store_rows(r, job, w.kv_head, start > pos0 ? (int)(start - pos0) : 0, end < pos0 + n ? (int)(end - pos0) : n, pos0);
    }
}

static __global__ void __launch_bounds__(THREADS) step_attention_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(memory, float);
    room_layout l = layout_of(job.dim4, job.v_dim4, job.tile_stride, job.half, job.max_groups);
    float *state = memory + l.state;
    int n_states = job.max_groups * GROUP;
    room r = {memory,           memory + l.keys,     memory + l.values, memory + l.p,         memory + l.cos_sin,
              memory + l.inv_freq, state, state + n_states,  state + 2 * n_states};
    for (int k = (int)threadIdx.x; k < job.half; k += THREADS) {
        float exponent = (float)(2 * k) / (float)(2 * job.half);
        r.inv_freq[k] = 1.0f / (float)pow((double)job.theta, (double)exponent);
    }
    wait_for_previous();
    let_next_start();
    __syncthreads();
    int n = job.in->n;
    int64_t pos0 = job.in->pos0;
    if (job.is_direct)
        attend_window(r, job, n, pos0);
    else
        attend_chunks(r, job, n, pos0);
}

/* Parts of a (row, head) in ascending order: a block each, a thread a value. */
static __global__ void __launch_bounds__(JOIN_THREADS) join_kernel(attention_job job)
{
    MQ_SHARED(weights, float[JOIN_THREADS]);
    MQ_SHARED(sums, float[JOIN_THREADS]);
    int head = (int)(blockIdx.x / ROWS), row = (int)(blockIdx.x % ROWS), v_dim = job.kv.v_head_dim;
    uint16_t *out = job.out + ((int64_t)row * job.n_heads + head) * v_dim;
    wait_for_previous();
    let_next_start();
    if (row >= job.in->n) {
        for (int d = (int)threadIdx.x; d < v_dim; d += JOIN_THREADS)
            out[d] = 0;
        return;
    }
    int64_t pos0 = job.in->pos0, pos = pos0 + row, chunk0 = first_visible(job, pos0) / CHUNK;
    int first = (int)(first_visible(job, pos) / CHUNK - chunk0), last = (int)(pos / CHUNK - chunk0);
    float sink = job.sink ? job.sink[head] : -INFINITY, max = sink;
    for (int c = first + (int)threadIdx.x; c <= last; c += JOIN_THREADS)
        max = fmaxf(max, job.state[2 * (((int64_t)c * job.n_heads + head) * ROWS + row)]);
    ranked most = {max, (int32_t)threadIdx.x};
    max = block_best(most).value;

    for (int d0 = 0; d0 < v_dim; d0 += JOIN_THREADS) {
        int d = d0 + (int)threadIdx.x;
        float value = 0.0f, all = job.sink ? expf(sink - max) : 0.0f;
        for (int base = first; base <= last; base += JOIN_THREADS) {
            int count = last + 1 - base < JOIN_THREADS ? last + 1 - base : (int)JOIN_THREADS, c = base + (int)threadIdx.x;
            __syncthreads(); /* the weights before have been read */
            if (c <= last) {
                float2 s = *(const float2 *)(job.state + 2 * (((int64_t)c * job.n_heads + head) * ROWS + row));
                weights[threadIdx.x] = expf(s.x - max);
                sums[threadIdx.x] = s.y;
            }
            __syncthreads();
            const float *from = job.value + (((int64_t)base * job.n_heads + head) * ROWS + row) * job.v_dim4;
            int64_t step = (int64_t)job.n_heads * ROWS * job.v_dim4;
            if (d < v_dim) {
#pragma unroll 8
                for (int j = 0; j < count; j++) {
                    all = fmaf(sums[j], weights[j], all);
                    value = fmaf(from[j * step + d], weights[j], value);
                }
            }
        }
        if (d < v_dim)
            out[d] = mq_f32_to_bf16(value / all);
    }
}

/* ---- sizes and launches ---- */

static bool is_direct(int window)
{
    return window > 0 && window <= CHUNK;
}

/* Chunks that the rows of a step may touch. */
static int64_t n_parts(int window, int64_t max_context)
{
    int64_t all = (max_context + CHUNK - 1) / CHUNK, some = (window + ROWS - 2) / CHUNK + 2;
    return window > 0 && some < all ? some : all;
}

static attention_job shape_of(const mq_kv *kv, int n_heads, int rotary_dims, int window)
{
    attention_job job = {};
    job.kv = *kv;
    job.n_heads = n_heads;
    job.share = n_heads / kv->n_kv_heads;
    job.row_groups = (job.share + GROUP - 1) / GROUP;
    job.half = rotary_dims / 2;
    job.window = window;
    job.scale = (float)(1.0 / sqrt((double)kv->head_dim));
    job.dim4 = (kv->head_dim + 3) / 4 * 4;
    job.v_dim4 = (kv->v_head_dim + 3) / 4 * 4;
    job.tile_stride = (job.dim4 / 4 | 1) * 4; /* an odd number of 16 bytes: lanes in different banks */
    job.n_slices = (kv->v_head_dim + SLICE - 1) / SLICE;
    job.is_direct = is_direct(window);
    int most = SLOTS * WARPS / job.n_slices;
    job.max_groups = job.is_direct || most < 1 ? 1 : most < MAX_GROUPS ? most : (int)MAX_GROUPS;
    while (job.max_groups > 1 && layout_of(job.dim4, job.v_dim4, job.tile_stride, job.half, job.max_groups).n_floats >
                                     ROOM_BYTES / (int)sizeof(float))
        job.max_groups--;
    return job;
}

mq_status check_attention(const mq_kv *kv, int n_heads, int rotary_dims, mq_err *err)
{
    const int most = SLOTS * WARPS * SLICE;
    if (n_heads % kv->n_kv_heads != 0)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d heads are no multiple of %d KV heads", n_heads, kv->n_kv_heads);
    if (rotary_dims < 0 || rotary_dims % 2 != 0 || rotary_dims > kv->head_dim)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d rotary dimensions of %d: expected an even number of at most as many",
                       rotary_dims, kv->head_dim);
    if (kv->head_dim > most || kv->v_head_dim > most)
        return mq_fail(err, MQ_E_UNSUPPORTED, "heads of %d and %d dimensions: expected at most %d", kv->head_dim,
                       kv->v_head_dim, most);
    attention_job job = shape_of(kv, n_heads, rotary_dims, 1);
    int n_bytes = layout_of(job.dim4, job.v_dim4, job.tile_stride, job.half, 1).n_floats * (int)sizeof(float);
    if (n_bytes > ROOM_BYTES)
        return mq_fail(err, MQ_E_UNSUPPORTED, "heads of %d and %d dimensions need %d bytes of shared memory, more than %d",
                       kv->head_dim, kv->v_head_dim, n_bytes, (int)ROOM_BYTES);
    return MQ_OK;
}

int64_t attention_bytes(int n_heads, int v_head_dim, int window, int64_t max_context)
{
    int64_t v_dim4 = (v_head_dim + 3) / 4 * 4;
    if (is_direct(window))
        return 0;
    return n_parts(window, max_context) * n_heads * ROWS * (v_dim4 + 2) * (int64_t)sizeof(float);
}

static bool is_wide(const void *p, int width)
{
    return (uintptr_t)p % 16 == 0 && width % 4 == 0;
}

mq_status attention(mq_dev *dev, const mq_decode_attention *a, mq_err *err)
{
    attention_job job = shape_of(&a->kv, a->n_heads, a->rotary_dims, a->window);
    job.q = a->q;
    job.k = a->k;
    job.v = a->v;
    job.q_stride = a->q_stride;
    job.k_stride = a->k_stride;
    job.v_stride = a->v_stride;
    job.sink = a->sink;
    job.in = a->in;
    job.out = a->out;
    job.theta = (float)a->theta;
    job.v_scale = a->v_scale;
    job.is_wide_k = is_wide(a->kv.k, a->kv.head_dim);
    job.is_wide_v = is_wide(a->kv.v, a->kv.v_head_dim);
    int64_t parts = n_parts(a->window, a->max_context), groups = (int64_t)a->kv.n_kv_heads * ROWS * job.row_groups;
    size_t n_bytes =
        (size_t)layout_of(job.dim4, job.v_dim4, job.tile_stride, job.half, job.max_groups).n_floats * sizeof(float);
    if (job.is_direct)
        return launch_dependent(dev, err, "step attention", step_attention_kernel, dim3((unsigned)groups), THREADS, n_bytes,
                                job);
    job.value = (float *)a->workspace;
    job.state = job.value + parts * a->n_heads * ROWS * job.v_dim4;
    MQ_TRY(launch_dependent(dev, err, "step attention", step_attention_kernel,
                            dim3(n_blocks(parts * groups, 1, dev->n_processors)), THREADS, n_bytes, job));
    return launch_dependent(dev, err, "step attention: join", join_kernel, dim3((unsigned)(a->n_heads * ROWS)), JOIN_THREADS,
                            0, job);
}

} // namespace decode
} // namespace mq_cuda
