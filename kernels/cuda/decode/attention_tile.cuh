/* One block's work on up to 16 keys a warp: loading, scores, weights, values; for
 * step_attention.cu, which says how work is divided.
 *
 * A group is 16 query heads of one row that share a KV head: the rows of the tensor core's A
 * operand, first as queries, then as weights.  Keys and values stay F32 in the cache; every operand
 * x is split into hi + lo, two BF16 values with 16 bits of mantissa together, and three products
 * (hi hi, hi lo, lo hi) are added in F32.
 *
 * A tile is 16 positions that start at a multiple of 16.  A warp has the keys of a tile in
 * registers, straight from the cache, and multiplies them with all groups; weights are relative to
 * the tile's own maximum.  Then a warp has 16 columns of the values of all tiles, also straight
 * from the cache, and adds every tile's product times a factor that brings the tiles to one
 * maximum.  Keys that a group does not see are masked in both products, so that nothing of them,
 * NaN included, gets through. */
#ifndef MQ_KERNELS_CUDA_DECODE_ATTENTION_TILE_CUH
#define MQ_KERNELS_CUDA_DECODE_ATTENTION_TILE_CUH

#include "kernels/cuda/decode/decode.cuh"

namespace mq_cuda
{
namespace decode
{

/* A round is as many tiles as a block has warps, a strip 16 columns for each of them; UNIT: uint4
 * of a 16 x 16 operand, hi, then lo. */
enum {
    TILES = 8,
    THREADS = TILES * WARP,
    HEADS = 16,
    KEYS = 16,
    WINDOW = TILES * KEYS,
    STRIP = 16 * TILES,
    UNIT = 2 * WARP
};

struct attention_job {
    const float *q, *k, *v, *sink, *rope;
    int64_t q_stride, k_stride, v_stride;
    mq_kv kv;
    const mq_decode_input *in;
    uint16_t *out;
    float *value;  /* parts: [chunk, head, row] of v_dim4 values */
    float2 *state; /* [head, row, chunk] of maximum, in units of log 2, and sum */
    int64_t n_parts;
    int n_heads, share, row_groups, half, window;
    float v_scale, scale; /* scale of scores, log2 e included */
    int v_dim4, n_steps, n_strips,
        n_pairs; /* 16 dimensions, 128 columns each; pairs of (group, head) a block has room for */
};

/* What a block works on: keys first .. last - 1 behind position start are visible to any of its
 * groups; own, which may be negative, is the first row of the step. */
struct work {
    int start, chunk;
    int slot; /* of key first */
    int first, last, own, kv_head, group0, n_groups, column0;
};

struct alignas(8) key_range {
    int x, y;
};

/* Shared memory.  Of tiles: [tile, pair]. */
struct room {
    uint4 *q, *p;              /* [group, step or tile, UNIT] */
    float *max, *sum, *factor; /* of tiles */
    float *most, *shrink,
        *all; /* [2, pair], [pair], [pair]: maximum so far, factor of what was before, sum so far */
    key_range *sees; /* [group] keys x .. y - 1 */
};

static __host__ __device__ inline int room_bytes(int n_pairs, int n_steps)
{
    int groups = n_pairs / HEADS;
    return groups * (n_steps + TILES) * UNIT * (int)sizeof(uint4) +
           n_pairs * (3 * TILES + 4) * (int)sizeof(float) + groups * (int)sizeof(key_range);
}

static __device__ __forceinline__ room room_of(const attention_job &job, float *memory)
{
    room r;
    int groups = job.n_pairs / HEADS;
    r.q = (uint4 *)memory;
    r.p = r.q + groups * job.n_steps * UNIT;
    r.max = (float *)(r.p + groups * TILES * UNIT);
    r.sum = r.max + TILES * job.n_pairs;
    r.factor = r.sum + TILES * job.n_pairs;
    r.most = r.factor + TILES * job.n_pairs;
    r.shrink = r.most + 2 * job.n_pairs;
    r.all = r.shrink + job.n_pairs;
    r.sees = (key_range *)(r.all + job.n_pairs);
    return r;
}

static __device__ __forceinline__ int first_visible(const attention_job &job, int pos)
{
    return job.window > 0 && pos + 1 > job.window ? pos + 1 - job.window : 0;
}

/* (a, b) as two pairs of BF16 with a = a of hi + a of lo to 16 bits. */
static __device__ __forceinline__ void split(uint32_t &hi, uint32_t &lo, float a, float b)
{
    hi = bf16x2_of_floats(a, b);
    lo = bf16x2_of_floats(a - __uint_as_float(hi << 16), b - __uint_as_float(hi & 0xffff0000u));
}

/* Element d of a head, rotated as kernels.h: rope has it; cos_sin: the row's cosines, then its
 * sines. */
static __device__ __forceinline__ float rotated(const float *head, int d, const float *cos_sin,
                                                int half)
{
    if (d >= 2 * half)
        return head[d];
    int k = d < half ? d : d - half;
    float a = head[k], b = head[k + half], c = cos_sin[k], s = cos_sin[half + k];
    return d < half ? a * c - b * s : b * c + a * s;
}

/* Heads that have kernels of their own: FIXED_STEPS * 16 dimensions, STRIP columns, 2 * FIXED_HALF
 * dimensions rotated, all aligned to 16 bytes.  Others go by ANY_STEPS * 16 dimensions at a time.
 */
enum { FIXED_STEPS = 12, FIXED_HALF = 32, ANY_STEPS = 4 };

/* Elements d .. d + 3; zero from dim on. */
static __device__ __forceinline__ float4 load4(const float *row, int d, int dim)
{
    float4 x;
    x.x = d < dim ? row[d] : 0.0f;
    x.y = d + 1 < dim ? row[d + 1] : 0.0f;
    x.z = d + 2 < dim ? row[d + 2] : 0.0f;
    x.w = d + 3 < dim ? row[d + 3] : 0.0f;
    return x;
}
static __device__ __forceinline__ float4 rotated4(const float *head, int d, int dim,
                                                  const float *cos_sin, int half)
{
    float4 x;
    x.x = d < dim ? rotated(head, d, cos_sin, half) : 0.0f;
    x.y = d + 1 < dim ? rotated(head, d + 1, cos_sin, half) : 0.0f;
    x.z = d + 2 < dim ? rotated(head, d + 2, cos_sin, half) : 0.0f;
    x.w = d + 3 < dim ? rotated(head, d + 3, cos_sin, half) : 0.0f;
    return x;
}

/* Four elements of the low half and those of the high half that they turn with. */
static __device__ __forceinline__ void rotate(float &a, float &b, float c, float s)
{
    float low = a * c - b * s;
    b = b * c + a * s;
    a = low;
}
static __device__ __forceinline__ void rotate4(float4 &a, float4 &b, float4 c, float4 s)
{
    rotate(a.x, b.x, c.x, s.x);
    rotate(a.y, b.y, c.y, s.y);
    rotate(a.z, b.z, c.z, s.z);
    rotate(a.w, b.w, c.w, s.w);
}

/* Slot of the key, or of the nearest one that the cache holds: what nobody sees is masked, but has
 * to be read from somewhere. */
static __device__ __forceinline__ int slot_of(const attention_job &job, const work &w, int key)
{
    int end = w.last < w.own ? w.last : w.own, n = (int)job.kv.n_slots;
    key = key < end ? key : end - 1;
    key = key > w.first ? key : w.first;
    int slot = w.slot + (key - w.first);
    return slot < n ? slot : slot - n; /* a row sees at most n_slots positions */
}

/* ---- keys: a lane has dimensions 4 t .. 4 t + 3 of every 16 of keys g and g + 8 of the tile at
 * key0 ---- */

struct key_values {
    float4 at[2][ANY_STEPS];
};
struct key_pieces {
    uint32_t hi[2][ANY_STEPS][2], lo[2][ANY_STEPS][2];
};

static __device__ __forceinline__ void load_cached_keys(key_values &x, const attention_job &job,
                                                        const work &w, int key0, int step0)
{
    int g = (int)(threadIdx.x % WARP) / 4, t = (int)threadIdx.x % 4, dim = job.kv.head_dim;
    if (key0 >= w.own) /* the same in the whole warp */
        return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int64_t slot = slot_of(job, w, key0 + 8 * i + g);
        const float *row = job.kv.k + (slot * job.kv.n_kv_heads + w.kv_head) * dim;
#pragma unroll
        for (int s = 0; s < ANY_STEPS; s++)
            x.at[i][s] = load4(row, 16 * (step0 + s) + 4 * t, dim);
    }
}

static __device__ __forceinline__ void load_own_keys(key_values &x, const attention_job &job,
                                                     const work &w, int key0, int step0)
{
    int g = (int)(threadIdx.x % WARP) / 4, t = (int)threadIdx.x % 4, dim = job.kv.head_dim;
    if (key0 + KEYS <= w.own || key0 >= w.last) /* the same in the whole warp */
        return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = key0 + 8 * i + g - w.own;
        if (row < 0 || row >= w.last - w.own)
            continue;
        const float *head = job.k + row * job.k_stride + (int64_t)w.kv_head * dim,
                    *cos_sin = job.rope + row * 2 * job.half;
#pragma unroll
        for (int s = 0; s < ANY_STEPS; s++)
            x.at[i][s] = rotated4(head, 16 * (step0 + s) + 4 * t, dim, cos_sin, job.half);
    }
}

static __device__ __forceinline__ void split_keys(key_pieces &k, const key_values &x)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int s = 0; s < ANY_STEPS; s++) {
            split(k.hi[i][s][0], k.lo[i][s][0], x.at[i][s].x, x.at[i][s].y);
            split(k.hi[i][s][1], k.lo[i][s][1], x.at[i][s].z, x.at[i][s].w);
        }
}

static __device__ __forceinline__ void store_query(const room &r, int unit, int half, float4 x,
                                                   float scale)
{
    uint2 hi, lo, *to = (uint2 *)(r.q + unit * UNIT + threadIdx.x % WARP) + half;
    split(hi.x, lo.x, x.x * scale, x.y * scale);
    split(hi.y, lo.y, x.z * scale, x.w * scale);
    to[0] = hi;
    to[2 * WARP] = lo;
}

/* Rotated and scaled queries of the groups of w, in the order in which score_tile reads them; zero
 * where there is no such head. */
static __device__ __forceinline__ void store_any_queries(const room &r, const attention_job &job,
                                                         const work &w)
{
    int g = (int)(threadIdx.x % WARP) / 4, t = (int)threadIdx.x % 4, dim = job.kv.head_dim;
    for (int u = (int)threadIdx.x / WARP; u < w.n_groups * job.n_steps * 2; u += TILES) {
        int unit = u / 2, group = w.group0 + unit / job.n_steps, row = group / job.row_groups;
        int head = group % job.row_groups * HEADS + g + u % 2 * 8;
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
        if (head < job.share)
            x = rotated4(job.q + row * job.q_stride + ((int64_t)w.kv_head * job.share + head) * dim,
                         16 * (unit % job.n_steps) + 4 * t, dim, job.rope + row * 2 * job.half,
                         job.half);
        store_query(r, unit, u % 2, x, job.scale);
    }
}

/* The same, by pairs of steps, of which the first two turn with each other; BATCH pairs under way
 * together. */
template <int BATCH>
static __device__ __forceinline__ void store_fixed_queries(const room &r, const attention_job &job,
                                                           const work &w)
{
    int g = (int)(threadIdx.x % WARP) / 4, t = (int)threadIdx.x % 4, n = w.n_groups * FIXED_STEPS;
    for (int u0 = (int)threadIdx.x / WARP; u0 < n; u0 += BATCH * TILES) {
        float4 a[BATCH], b[BATCH], c[BATCH], s[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int u = u0 + i * TILES, pair = u % FIXED_STEPS / 2, group = w.group0 + u / FIXED_STEPS,
                row = group / job.row_groups;
            int head = group % job.row_groups * HEADS + g + u % 2 * 8,
                step = pair < 2 ? pair : 2 * pair;
            const float *cos_sin = job.rope + row * 2 * FIXED_HALF + 16 * pair + 4 * t;
            const float *q = job.q + row * job.q_stride +
                             ((int64_t)w.kv_head * job.share + head) * (16 * FIXED_STEPS) + 4 * t;
            a[i] = b[i] = c[i] = s[i] = float4{0.0f, 0.0f, 0.0f, 0.0f};
            if (u < n && head < job.share) {
                a[i] = *(const float4 *)(q + 16 * step);
                b[i] = *(const float4 *)(q + 16 * (step + (pair < 2 ? 2 : 1)));
            }
            if (u < n && pair < 2) {
                c[i] = *(const float4 *)cos_sin;
                s[i] = *(const float4 *)(cos_sin + FIXED_HALF);
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int u = u0 + i * TILES, pair = u % FIXED_STEPS / 2,
                unit = u / FIXED_STEPS * FIXED_STEPS + (pair < 2 ? pair : 2 * pair);
            if (u >= n) /* the same in the whole warp */
                break;
            if (pair < 2)
                rotate4(a[i], b[i], c[i], s[i]);
            store_query(r, unit, u % 2, a[i], job.scale);
            store_query(r, unit + (pair < 2 ? 2 : 1), u % 2, b[i], job.scale);
        }
    }
}

/* ---- scores and weights ---- */

/* A lane's scores of heads g (elements 0, 1) and g + 8 with keys 2 t and 2 t + 1 (0) or 8 more (1),
 * of which a .. b - 1 are seen, become weights relative to the largest. */
static __device__ __forceinline__ void weigh(uint4 *p, float *max, float *sum, float score[2][4],
                                             int a, int b)
{
    int g = (int)(threadIdx.x % WARP) / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = -INFINITY, total = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = i / 2 * 8 + 2 * t + i % 2;
            most = fmaxf(most, key >= a && key < b ? score[i / 2][2 * h + i % 2] : -INFINITY);
        }
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = i / 2 * 8 + 2 * t + i % 2;
            float &x = score[i / 2][2 * h + i % 2];
            x = key >= a && key < b ? exp2f(x - most) : 0.0f;
            total += x;
        }
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        if (t == 0) {
            max[g + 8 * h] = most;
            sum[g + 8 * h] = total;
        }
    }
    uint4 hi, lo;
    split(hi.x, lo.x, score[0][0], score[0][1]);
    split(hi.y, lo.y, score[0][2], score[0][3]);
    split(hi.z, lo.z, score[1][0], score[1][1]);
    split(hi.w, lo.w, score[1][2], score[1][3]);
    p[0] = hi;
    p[WARP] = lo;
}

/* A warp's keys against all groups.  With more dimensions than ANY_STEPS * 16 scores wait in the
 * place of the weights. */
static __device__ __forceinline__ void score_tile(const room &r, const key_pieces &k,
                                                  const attention_job &job, const work &w, int tile,
                                                  int key0, int step0, bool is_last)
{
    int lane = (int)(threadIdx.x % WARP);
    for (int j = 0; j < w.n_groups; j++) {
        int a = r.sees[j].x - key0, b = r.sees[j].y - key0, pair = tile * job.n_pairs + j * HEADS;
        if (a >= KEYS || b <= 0 || a >= b) { /* the same in the whole warp */
            if (lane < HEADS) {
                r.max[pair + lane] = -INFINITY;
                r.sum[pair + lane] = 0.0f;
            }
            continue;
        }
        float c[2][2][4] = {};
        const uint4 *q = r.q + (j * job.n_steps + step0) * UNIT + lane;
#pragma unroll
        for (int s = 0; s < ANY_STEPS; s++) {
            uint4 x = q[s * UNIT], y = q[s * UNIT + WARP];
            uint32_t hi[4] = {x.x, x.z, x.y, x.w}, lo[4] = {y.x, y.z, y.y, y.w};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_bf16(c[0][i], hi, k.hi[i][s]);
                mma_bf16(c[1][i], hi, k.lo[i][s]);
                mma_bf16(c[1][i], lo, k.hi[i][s]);
            }
        }
        uint4 *p = r.p + (j * TILES + tile) * UNIT + lane;
        float *waiting = (float *)p;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float &x = c[0][i / 4][i % 4];
            x += c[1][i / 4][i % 4];
            if (step0 > 0)
                x += waiting[i / 4 * 4 * WARP + i % 4];
        }
        if (is_last)
            weigh(p, r.max + pair, r.sum + pair, c[0], a, b);
        else
#pragma unroll
            for (int i = 0; i < 8; i++)
                waiting[i / 4 * 4 * WARP + i % 4] = c[0][i / 4][i % 4];
    }
}

/* Factors that bring the tiles of a round, and what was before it, to one maximum. */
template <int N_TILES>
static __device__ __forceinline__ void join_tiles(const room &r, const attention_job &job,
                                                  const work &w, int round)
{
    int n = w.n_groups * HEADS, stride = job.n_pairs;
    for (int i = (int)threadIdx.x; i < N_TILES * n; i += THREADS) {
        int tile = i / n, pair = i % n;
        float before = r.most[round % 2 * stride + pair], most = before,
              own = r.max[tile * stride + pair];
#pragma unroll
        for (int k = 0; k < N_TILES; k++)
            most = fmaxf(most, r.max[k * stride + pair]);
        r.factor[tile * stride + pair] = own == -INFINITY ? 0.0f : exp2f(own - most);
        if (tile == 0) {
            r.most[(round + 1) % 2 * stride + pair] = most;
            r.shrink[pair] = before == -INFINITY ? 0.0f : exp2f(before - most);
        }
    }
}

/* Once the factors are there. */
template <int N_TILES>
static __device__ __forceinline__ void join_sums(const room &r, const attention_job &job,
                                                 const work &w)
{
    int pair = (int)threadIdx.x;
    if (pair >= w.n_groups * HEADS)
        return;
    float all = r.all[pair] * r.shrink[pair];
#pragma unroll
    for (int k = 0; k < N_TILES; k++)
        all = fmaf(r.factor[k * job.n_pairs + pair], r.sum[k * job.n_pairs + pair], all);
    r.all[pair] = all;
}

/* ---- values: a lane has columns 2 g, 2 g + 1 of its warp's 16, keys 2 t, 2 t + 1, 2 t + 8, 2 t +
 * 9 of every tile ---- */

struct tile_values {
    float2 at[TILES][4];
};

static __device__ __forceinline__ int column_of(const work &w)
{
    return w.column0 + (int)threadIdx.x / WARP * 16 + (int)(threadIdx.x % WARP) / 4 * 2;
}

static __device__ __forceinline__ void load_cached_values(tile_values &v, const attention_job &job,
                                                          const work &w, int key0)
{
    int t = (int)threadIdx.x % 4, v_dim = job.kv.v_head_dim, column = column_of(w);
    const float *values = job.kv.v + w.kv_head * v_dim + column;
#pragma unroll
    for (int k = 0; k < TILES; k++) {
        if (key0 + k * KEYS >= w.own || key0 + k * KEYS >= w.last) /* the same in the whole block */
            break;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float *from =
                values + (int64_t)slot_of(job, w, key0 + k * KEYS + e / 2 * 8 + 2 * t + e % 2) *
                             (job.kv.n_kv_heads * v_dim);
            v.at[k][e] =
                float2{column < v_dim ? from[0] : 0.0f, column + 1 < v_dim ? from[1] : 0.0f};
        }
    }
}

/* Not scaled yet: add_values does that. */
static __device__ __forceinline__ void load_own_values(tile_values &v, const attention_job &job,
                                                       const work &w, int key0)
{
    int t = (int)threadIdx.x % 4, column = column_of(w), v_dim = job.kv.v_head_dim;
#pragma unroll
    for (int k = 0; k < TILES; k++) {
        if (key0 + (k + 1) * KEYS <= w.own ||
            key0 + k * KEYS >= w.last) /* the same in the whole block */
            continue;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int row = key0 + k * KEYS + e / 2 * 8 + 2 * t + e % 2 - w.own;
            if (row < 0 || row >= w.last - w.own || column >= v_dim)
                continue;
            const float *from = job.v + row * job.v_stride + (int64_t)w.kv_head * v_dim + column;
            v.at[k][e].x = from[0];
            v.at[k][e].y = column + 1 < v_dim ? from[1] : 0.0f;
        }
    }
}

/* A lane's part of the output: heads g (elements 0, 1) and g + 8, columns 2 t and 2 t + 1 of even
 * (0) and odd (1) ones of 16. */
template <int GROUPS> struct value_sums {
    float at[GROUPS][2][4];
};

static __device__ __forceinline__ uint32_t kept(uint32_t pair, int key, int a, int b)
{
    uint32_t low = key >= a && key < b ? 0x0000ffffu : 0u,
             high = key + 1 >= a && key + 1 < b ? 0xffff0000u : 0u;
    return pair & (low | high);
}

/* Values of one tile as operands: [even or odd columns][keys]. */
struct value_pieces {
    uint32_t hi[2][2], lo[2][2];
};

static __device__ __forceinline__ value_pieces masked(const value_pieces &v, int a, int b)
{
    int t = (int)threadIdx.x % 4;
    value_pieces m;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        m.hi[i / 2][i % 2] = kept(v.hi[i / 2][i % 2], 2 * t + i % 2 * 8, a, b);
        m.lo[i / 2][i % 2] = kept(v.lo[i / 2][i % 2], 2 * t + i % 2 * 8, a, b);
    }
    return m;
}

/* f: of heads g and g + 8. */
static __device__ __forceinline__ void add_product(float sum[2][4], const uint4 *p,
                                                   const float f[2], const value_pieces &v)
{
    uint4 x = p[0], y = p[WARP];
    uint32_t hi[4] = {x.x, x.y, x.z, x.w}, lo[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float c[4] = {};
        mma_bf16(c, hi, v.hi[i]);
        mma_bf16(c, hi, v.lo[i]);
        mma_bf16(c, lo, v.hi[i]);
#pragma unroll
        for (int e = 0; e < 4; e++)
            sum[i][e] = fmaf(c[e], f[e / 2], sum[i][e]);
    }
}

/* All tiles of a round.  Where all groups see a whole tile they go two by two without
 * a branch between them: one too many then adds to sums that nobody reads. */
template <int GROUPS>
static __device__ __forceinline__ void add_values(value_sums<GROUPS> &sums, const room &r,
                                                  const tile_values &v, const attention_job &job,
                                                  const work &w, int key0)
{
    const int each = GROUPS < 2 ? GROUPS : 2;
    int lane = (int)(threadIdx.x % WARP), g = lane / 4, t = lane % 4;
    int inner_a = r.sees[w.n_groups - 1].x - key0, inner_b = r.sees[0].y - key0; /* rows ascend */
#pragma unroll
    for (int j = 0; j < GROUPS; j++)
        if (GROUPS > 1 && j < w.n_groups) {
#pragma unroll
            for (int e = 0; e < 8; e++)
                sums.at[j][e / 4][e % 4] *= r.shrink[j * HEADS + g + e % 4 / 2 * 8];
        }
#pragma unroll
    for (int k = 0; k < TILES; k++) {
        const int at = k * KEYS;
        if (key0 + at >= w.last || key0 + at + KEYS <= w.first)
            continue;
        value_pieces pieces;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float2 a = v.at[k][2 * i], b = v.at[k][2 * i + 1];
            if (key0 + at + KEYS > w.own) { /* the same in the whole block */
                int key = key0 + at + 8 * i + 2 * t;
                float x = key < w.own ? 1.0f : job.v_scale,
                      y = key + 1 < w.own ? 1.0f : job.v_scale;
                a = float2{a.x * x, a.y * x};
                b = float2{b.x * y, b.y * y};
            }
            split(pieces.hi[0][i], pieces.lo[0][i], a.x, b.x);
            split(pieces.hi[1][i], pieces.lo[1][i], a.y, b.y);
        }
        bool is_inner = inner_a <= at && inner_b >= at + KEYS;
#pragma unroll
        for (int j = 0; j < GROUPS; j += each)
            if (is_inner && j < w.n_groups) {
#pragma unroll
                for (int i = 0; i < each; i++) {
                    const float *factor = r.factor + k * job.n_pairs + (j + i) * HEADS + g,
                                f[2] = {factor[0], factor[8]};
                    add_product(sums.at[j + i], r.p + ((j + i) * TILES + k) * UNIT + lane, f,
                                pieces);
                }
            }
        if (is_inner)
            continue;
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            if (j >= w.n_groups)
                continue;
            int a = r.sees[j].x - key0 - at, b = r.sees[j].y - key0 - at;
            const float *factor = r.factor + k * job.n_pairs + j * HEADS + g,
                        f[2] = {factor[0], factor[8]};
            if (a < KEYS && b > 0 && a < b)
                add_product(sums.at[j], r.p + (j * TILES + k) * UNIT + lane, f,
                            masked(pieces, a, b));
        }
    }
}

} // namespace decode
} // namespace mq_cuda

#endif
