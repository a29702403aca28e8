/* One block's work on a tile of keys: loading, scores, weights, values; for step_attention.cu, which says how work is divided.
 *
 * A tile is 64 positions that start at a multiple of 64; a group is eight query heads of one row that share a KV head.  All
 * threads of the block call these functions unless they say otherwise; barriers stand between them. */
#ifndef MQ_KERNELS_CUDA_DECODE_ATTENTION_TILE_CUH
#define MQ_KERNELS_CUDA_DECODE_ATTENTION_TILE_CUH

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, WARPS = THREADS / WARP, KEYS = 64, GROUP = 8, MAX_GROUPS = 8, SLOTS = 4, SLICE = 32 };

struct attention_job {
    const float *q, *k, *v, *sink, *rope;
    int64_t q_stride, k_stride, v_stride;
    mq_kv kv;
    const mq_decode_input *in;
    uint16_t *out;
    float *value, *state; /* parts: [chunk, head, row] of v_dim4 values; of maximum and sum */
    int n_heads, share, row_groups, half, window;
    float v_scale, scale;
    int dim4, v_dim4, tile_stride, n_slices, max_groups;
    bool is_direct, is_wide_k, is_wide_v;
};

/* Dynamic shared memory, in floats; every piece starts at a multiple of 16 bytes. */
struct room_layout {
    int keys, values, p, cos_sin, state, n_floats;
};

static __host__ __device__ inline room_layout layout_of(int dim4, int v_dim4, int tile_stride, int half, int max_groups)
{
    room_layout r;
    r.keys = max_groups * GROUP * dim4; /* behind the queries */
    r.values = r.keys + KEYS * tile_stride;
    r.p = r.values + KEYS * v_dim4;
    r.cos_sin = r.p + max_groups * KEYS * GROUP;
    r.state = r.cos_sin + (ROWS * 2 * half + 3) / 4 * 4;
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
    float *q, *keys, *values, *p, *cos_sin, *max, *sum, *shrink;
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
template <bool IS_DIRECT>
static __device__ __forceinline__ void score_tile(const room &r, const attention_job &job, int n_groups)
{
    int warp = (int)(threadIdx.x / WARP);
    if (IS_DIRECT || n_groups <= 2) {
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

template <bool IS_DIRECT>
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
    if (!IS_DIRECT && is_same && n == 4) {
        add_values<4>(sums, p0, group_step, v0, job.v_dim4, a[0], b[0]);
    } else if (!IS_DIRECT && is_same && n == 2) {
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

} // namespace decode
} // namespace mq_cuda

#endif
