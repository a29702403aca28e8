/* The drafter's keys, and attention of a block whose rows see one another.
 *
 * Committed keys lie in the ring, normed and rotated when they are committed; the block's own keys never do: every block of
 * threads makes those it needs from the projections, as it does the queries, a warp for each row.  A block of threads has two heads of all eight
 * rows (16 pairs) and the keys and values of 64 positions in shared memory: chunks start at multiples of 64, a second
 * kernel joins them in ascending order.  Scores and values are single chains of multiply-adds, so a row's bits depend on its
 * own query and the keys it sees. */
#include "kernels/cuda/decode/draft.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, WARPS = THREADS / WARP, KEYS = DRAFT_KEYS, HEADS = 2, PAIRS = HEADS * ROWS, MAX_DIM = 256, PAD = 4 };
enum { JOIN_THREADS = 128, MAX_CHUNKS = JOIN_THREADS };

/* A lane's share of a head or of its norm's weights, and of a row's cosines and sines: all asked for before any is used. */
enum { SHARE = MAX_DIM / WARP };
static __device__ __forceinline__ void load_share(float v[SHARE], const float *from, int n)
{
#pragma unroll
    for (int i = 0; i < SHARE; i++) {
        int d = (int)(threadIdx.x % WARP) + i * WARP;
        v[i] = d < n ? from[d] : 0.0f;
    }
}

/* A head v into to [dim] (shared) by one warp: normed with weight where is_normed, rotated by angles (2 half: cosines, then
 * sines; the lane's share). */
static __device__ __forceinline__ void prepare_head(float *to, const float v[SHARE], bool is_normed, const float weight[SHARE],
                                                    const float angles[2][SHARE / 2], const draft_heads &h)
{
    int lane = (int)(threadIdx.x % WARP);
    float sum = 0.0f, r = 1.0f; /* up to 256 squares: F32 is enough */
#pragma unroll
    for (int i = 0; i < SHARE; i++)
        sum = fmaf(v[i], v[i], sum);
    if (is_normed)
        r = 1.0f / sqrtf(warp_sum(sum) / (float)h.dim + (float)h.eps);
#pragma unroll
    for (int i = 0; i < SHARE; i++)
        if (lane + i * WARP < h.dim)
            to[lane + i * WARP] = is_normed ? weight[i] * (v[i] * r) : v[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < SHARE / 2; i++) {
        int k = lane + i * WARP;
        if (k >= h.half)
            continue;
        float a = to[k], b = to[k + h.half], c = angles[0][i], d = angles[1][i];
        to[k] = a * c - b * d;
        to[k + h.half] = b * c + a * d;
    }
    __syncwarp();
}

static __device__ __forceinline__ void load_angles(float angles[2][SHARE / 2], const float *cos_sin, int half)
{
#pragma unroll
    for (int i = 0; i < SHARE / 2; i++) {
        int k = (int)(threadIdx.x % WARP) + i * WARP;
        angles[0][i] = k < half ? cos_sin[k] : 0.0f;
        angles[1][i] = k < half ? cos_sin[half + k] : 0.0f;
    }
}

/* ---- committed rows ---- */

static __global__ void draft_store_kernel(draft_store job)
{
    MQ_SHARED(head, float[WARPS][MAX_DIM]);
    const draft_heads &h = job.h;
    wait_for_previous();
    let_next_start();
    int row = (int)blockIdx.y, warp = (int)(threadIdx.x / WARP), lane = (int)(threadIdx.x % WARP);
    if (row >= job.in->n)
        return;
    draft_ring ring = job.rings[blockIdx.x];
    int64_t k_cols = (int64_t)h.n_kv_heads * h.dim, v_cols = (int64_t)h.n_kv_heads * h.v_dim;
    int64_t slot = (job.in->pos0 + row) % h.n_slots;
    const float *key = job.kv + (row * job.n_rings + blockIdx.x) * (k_cols + v_cols), *value = key + k_cols;
    float angles[2][SHARE / 2], weight[SHARE] = {}, v[SHARE];
    load_angles(angles, job.cos_sin + row * 2 * h.half, h.half);
    if (ring.norm)
        load_share(weight, ring.norm, h.dim);
    for (int i = warp; i < h.n_kv_heads; i += WARPS) {
        load_share(v, key + i * h.dim, h.dim);
        prepare_head(head[warp], v, ring.norm, weight, angles, h);
        for (int d = lane; d < h.dim; d += WARP)
            ring.k[slot * k_cols + i * h.dim + d] = head[warp][d];
        __syncwarp();
    }
    for (int64_t c = threadIdx.x; c < v_cols; c += THREADS)
        ring.v[slot * v_cols + c] = value[c] * h.v_scale;
}

mq_status store_context(mq_dev *dev, const draft_store *job, mq_err *err)
{
    return launch_dependent(dev, err, "draft store", draft_store_kernel, dim3((unsigned)job->n_rings, ROWS), THREADS, 0, *job);
}

/* ---- the block ---- */

/* Positions of the chunk that blockIdx.x names; none: first >= last. */
struct chunk_place {
    int64_t base, first, last; /* first .. last - 1 are seen by some row */
};

static __device__ __forceinline__ chunk_place place_of(const draft_heads &h, int64_t pos, int64_t chunk)
{
    int64_t lo = pos + 1 > h.window ? pos + 1 - h.window : 0, hi = pos + h.block;
    chunk_place p;
    p.base = (lo / KEYS + chunk) * KEYS;
    p.first = p.base > lo ? p.base : lo;
    p.last = p.base + KEYS < hi ? p.base + KEYS : hi;
    return p;
}

/* Does row at pos + row see position p of its chunk? */
static __device__ __forceinline__ bool sees(const draft_heads &h, const chunk_place &at, int64_t pos, int row, int64_t p)
{
    return p >= at.first && p < at.last && p + h.window > pos + row && row < h.block;
}

/* Committed keys or values of the chunk; zeros where there are none (the block's own come later). */
static __device__ __forceinline__ void load_ring(float *to, int stride, const float *from, const draft_heads &h, int width,
                                                 int kv_head, const chunk_place &at, int64_t pos)
{
    /* A warp takes a key at a time; the chunk lies in the ring in at most two pieces (n_slots is above KEYS or holds all). */
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP), quads = width / 4;
    int first = (int)(at.first - at.base), last = (int)(pos < at.last ? pos - at.base : at.last - at.base);
    int64_t slot0 = at.base % h.n_slots;
#pragma unroll
    for (int i = 0; i < KEYS / WARPS; i++) {
        int key = warp + i * WARPS;
        int64_t slot = slot0 + key;
        while (slot >= h.n_slots)
            slot -= h.n_slots;
        const float *row = from + (slot * h.n_kv_heads + kv_head) * width;
        for (int q = lane; q < quads; q += WARP) {
            float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
            if (key >= first && key < last)
                v = *(const float4 *)(row + 4 * q);
            *(float4 *)(to + key * stride + 4 * q) = v;
        }
    }
}

struct chunk_room {
    float *keys, *values, *queries, *weights; /* [KEYS, dim + PAD], [KEYS, v_dim], [PAIRS, dim], [PAIRS, KEYS] */
};
static __host__ __device__ __forceinline__ int room_floats(const draft_heads &h)
{
    return KEYS * (h.dim + PAD + h.v_dim) + PAIRS * (h.dim + KEYS);
}

/* What a warp prepares: its row's two queries, and its own key where that is in the chunk.  Pair i of the block is head
 * i / ROWS of its two, row i % ROWS. */
struct row_work {
    float angles[2][SHARE / 2], q_weight[SHARE], k_weight[SHARE];
};

/* Before the wait: what no kernel just before writes. */
static __device__ __forceinline__ void load_row_work(row_work &w, const draft_attention &job)
{
    static_assert((int)WARPS == (int)ROWS, "a warp has a row");
    const draft_heads &h = job.h;
    load_angles(w.angles, job.cos_sin + (ROWS + threadIdx.x / WARP) * 2 * h.half, h.half); /* the block's */
    if (job.q_norm)
        load_share(w.q_weight, job.q_norm, h.dim);
    if (job.ring.norm)
        load_share(w.k_weight, job.ring.norm, h.dim);
}

static __device__ __forceinline__ void prepare_row(const chunk_room &r, const draft_attention &job, const row_work &w,
                                                   int kv_head, int head0, int n_heads, const chunk_place &at, int64_t pos)
{
    const draft_heads &h = job.h;
    int row = (int)(threadIdx.x / WARP), lane = (int)(threadIdx.x % WARP);
    const float *q = job.q + row * job.stride + (int64_t)head0 * h.dim;
    int64_t key = pos + row - at.base;
    bool has_key = row < h.block && key >= 0 && key < KEYS;
    float v[HEADS][SHARE], k[SHARE], own[SHARE];
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        load_share(v[i], q + (i < n_heads ? i : 0) * h.dim, h.dim);
    if (has_key) {
        load_share(k, job.k + row * job.stride + (int64_t)kv_head * h.dim, h.dim);
        load_share(own, job.v + row * job.stride + (int64_t)kv_head * h.v_dim, h.v_dim);
    }
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        prepare_head(r.queries + (i * ROWS + row) * h.dim, v[i], job.q_norm, w.q_weight, w.angles, h);
    if (!has_key)
        return;
    prepare_head(r.keys + key * (h.dim + PAD), k, job.ring.norm, w.k_weight, w.angles, h);
#pragma unroll
    for (int i = 0; i < SHARE; i++)
        if (lane + i * WARP < h.v_dim)
            r.values[key * h.v_dim + lane + i * WARP] = own[i] * h.v_scale;
}

/* Scores: a thread has one key and four pairs. */
static __device__ __forceinline__ void score(const chunk_room &r, const draft_heads &h)
{
    static_assert(THREADS / KEYS * 4 == PAIRS, "a thread has four pairs");
    int key = (int)threadIdx.x % KEYS, pair0 = (int)threadIdx.x / KEYS * 4;
    const float *k = r.keys + key * (h.dim + PAD), *q = r.queries + pair0 * h.dim;
    float s[4] = {};
#pragma unroll 4
    for (int d = 0; d < h.dim; d += 4) {
        float4 a = *(const float4 *)(k + d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 b = *(const float4 *)(q + i * h.dim + d);
            s[i] = fmaf(a.x, b.x, s[i]);
            s[i] = fmaf(a.y, b.y, s[i]);
            s[i] = fmaf(a.z, b.z, s[i]);
            s[i] = fmaf(a.w, b.w, s[i]);
        }
    }
    float scale = (float)(1.0 / sqrt((double)h.dim));
#pragma unroll
    for (int i = 0; i < 4; i++)
        r.weights[(pair0 + i) * KEYS + key] = s[i] * scale;
}

/* Scores to weights, relative to the chunk's largest; a warp has two pairs. */
static __device__ __forceinline__ void weigh(const chunk_room &r, const draft_attention &job, int head0, int n_heads,
                                             const chunk_place &at, int64_t pos)
{
    const draft_heads &h = job.h;
    int lane = (int)(threadIdx.x % WARP);
    for (int i = (int)(threadIdx.x / WARP); i < PAIRS; i += WARPS) {
        int row = i % ROWS;
        float s[KEYS / WARP], max = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / WARP; j++) {
            int key = lane + j * WARP;
            bool seen = sees(h, at, pos, row, at.base + key);
            s[j] = seen ? r.weights[i * KEYS + key] : -INFINITY;
            max = fmaxf(max, s[j]);
        }
        for (int step = 16; step; step /= 2)
            max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, step));
#pragma unroll
        for (int j = 0; j < KEYS / WARP; j++) {
            float p = s[j] == -INFINITY ? 0.0f : expf(s[j] - max);
            r.weights[i * KEYS + lane + j * WARP] = p;
            sum += p;
        }
        sum = warp_sum(sum);
        if (lane == 0 && i / ROWS < n_heads) {
            int64_t part = ((int64_t)blockIdx.x * h.n_heads + head0 + i / ROWS) * ROWS + row;
            *(float2 *)(job.state + 2 * part) = float2{max, sum};
        }
    }
}

/* Weighted values: a thread has four columns of two pairs at a time. */
static __device__ __forceinline__ void add_values(const chunk_room &r, const draft_attention &job, int head0, int n_heads)
{
    const draft_heads &h = job.h;
    int quads = h.v_dim / 4;
    for (int item = (int)threadIdx.x; item < PAIRS / 2 * quads; item += THREADS) {
        int column = item % quads * 4, pair0 = item / quads * 2;
        float sum[2][4] = {};
#pragma unroll 2
        for (int key = 0; key < KEYS; key += 4) {
            float4 w[2] = {*(const float4 *)(r.weights + pair0 * KEYS + key),
                           *(const float4 *)(r.weights + (pair0 + 1) * KEYS + key)};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float4 v = *(const float4 *)(r.values + (key + j) * h.v_dim + column);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float p = j == 0 ? w[i].x : j == 1 ? w[i].y : j == 2 ? w[i].z : w[i].w;
                    sum[i][0] = fmaf(p, v.x, sum[i][0]);
                    sum[i][1] = fmaf(p, v.y, sum[i][1]);
                    sum[i][2] = fmaf(p, v.z, sum[i][2]);
                    sum[i][3] = fmaf(p, v.w, sum[i][3]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int head = (pair0 + i) / ROWS, row = (pair0 + i) % ROWS;
            if (head >= n_heads)
                continue;
            int64_t part = ((int64_t)blockIdx.x * h.n_heads + head0 + head) * ROWS + row;
            *(float4 *)(job.value + part * h.v_dim + column) = float4{sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
        }
    }
}

/* Grid: chunks, pairs of heads of a KV head, KV heads.  The input was written before the previous kernel began; the ring may still be
 * being written: a kernel may let the next one start before it has waited for the last. */
static __global__ void __launch_bounds__(THREADS) draft_attention_kernel(draft_attention job)
{
    MQ_SHARED_DYNAMIC(room, float);
    const draft_heads &h = job.h;
    int share = h.n_heads / h.n_kv_heads, kv_head = (int)blockIdx.z, first = (int)blockIdx.y * HEADS;
    int head0 = kv_head * share + first, n_heads = share - first < HEADS ? share - first : HEADS;
    int64_t pos = job.in->pos0 + job.in->n;
    chunk_place at = place_of(h, pos, blockIdx.x);
    if (at.first >= at.last) {
        wait_for_previous();
        return;
    }
    chunk_room r;
    r.keys = room;
    r.values = r.keys + KEYS * (h.dim + PAD);
    r.queries = r.values + KEYS * h.v_dim;
    r.weights = r.queries + PAIRS * h.dim;
    row_work w = {};
    load_row_work(w, job);
    wait_for_previous();
    let_next_start();
    load_ring(r.keys, h.dim + PAD, job.ring.k, h, h.dim, kv_head, at, pos);
    load_ring(r.values, h.v_dim, job.ring.v, h, h.v_dim, kv_head, at, pos);
    __syncthreads(); /* zeros stand where the block's own keys go */
    prepare_row(r, job, w, kv_head, head0, n_heads, at, pos);
    __syncthreads();
    score(r, h);
    __syncthreads();
    weigh(r, job, head0, n_heads, at, pos);
    __syncthreads();
    add_values(r, job, head0, n_heads);
}

/* Grid: heads, rows. */
static __global__ void draft_attention_join_kernel(draft_attention job)
{
    const draft_heads &h = job.h;
    int head = (int)blockIdx.x, row = (int)blockIdx.y;
    int64_t pos = job.in->pos0 + job.in->n;
    int64_t lo = pos + 1 > h.window ? pos + 1 - h.window : 0;
    int n = row < h.block ? (int)((pos + h.block - 1) / KEYS - lo / KEYS + 1) : 0;
    int64_t step = (int64_t)h.n_heads * ROWS, part0 = (int64_t)head * ROWS + row;
    MQ_SHARED(shrinks, float[MAX_CHUNKS]); /* a chunk's share of the largest weight; its maximum before */
    MQ_SHARED(sums, float[MAX_CHUNKS]);
    int chunk = (int)threadIdx.x;
    wait_for_previous();
    let_next_start();
    float2 own = {-INFINITY, 0.0f};
    if (chunk < n) {
        own = *(const float2 *)(job.state + 2 * (part0 + chunk * step));
        shrinks[chunk] = own.x;
    }
    __syncthreads();
    float max = job.sink ? job.sink[head] : -INFINITY;
    for (int c = 0; c < n; c++)
        max = fmaxf(max, shrinks[c]);
    __syncthreads();
    if (chunk < n) {
        shrinks[chunk] = own.y > 0.0f ? expf(own.x - max) : 0.0f;
        sums[chunk] = own.y * shrinks[chunk];
    }
    __syncthreads();
    float sum = job.sink ? expf(job.sink[head] - max) : 0.0f;
    for (int c = 0; c < n; c++)
        sum += sums[c];
    for (int d = (int)threadIdx.x; d < h.v_dim; d += JOIN_THREADS) {
        float value = 0.0f;
#pragma unroll 8
        for (int c = 0; c < n; c++)
            value = fmaf(job.value[(part0 + c * step) * h.v_dim + d], shrinks[c], value);
        job.out[((int64_t)row * h.n_heads + head) * h.v_dim + d] = mq_f32_to_bf16(n > 0 ? value / sum : 0.0f);
    }
}

int draft_chunks(int window, int block)
{
    return (window + block - 2) / KEYS + 2;
}

mq_status check_draft_heads(const draft_heads *h, mq_err *err)
{
    if (h->block < 2 || h->block > ROWS)
        return mq_fail(err, MQ_E_UNSUPPORTED, "a block of %d rows, the draft step computes 2 to %d", h->block, (int)ROWS);
    if (h->dim % 4 || h->dim > MAX_DIM || h->v_dim % 4 || h->v_dim > MAX_DIM)
        return mq_fail(err, MQ_E_UNSUPPORTED, "heads of %d and %d, the draft step computes multiples of 4 up to %d", h->dim,
                       h->v_dim, (int)MAX_DIM);
    if (h->n_kv_heads < 1 || h->n_heads % h->n_kv_heads)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d heads on %d key heads, expected a multiple", h->n_heads, h->n_kv_heads);
    if (h->window < h->block || h->n_slots < (int64_t)h->window + h->block)
        return mq_fail(err, MQ_E_UNSUPPORTED, "a window of %d in a ring of %lld, expected at least a block of %d and both",
                       h->window, (long long)h->n_slots, h->block);
    if (draft_chunks(h->window, h->block) > MAX_CHUNKS)
        return mq_fail(err, MQ_E_UNSUPPORTED, "a window of %d, the draft step computes up to %d", h->window,
                       (MAX_CHUNKS - 2) * KEYS - h->block);
    return MQ_OK;
}

mq_status attend_block(mq_dev *dev, const draft_attention *job, mq_err *err)
{
    const draft_heads &h = job->h;
    int share = h.n_heads / h.n_kv_heads;
    dim3 grid((unsigned)draft_chunks(h.window, h.block), (unsigned)((share + HEADS - 1) / HEADS), (unsigned)h.n_kv_heads);
    MQ_TRY(launch_dependent(dev, err, "draft attention", draft_attention_kernel, grid, THREADS,
                            (size_t)room_floats(h) * sizeof(float), *job));
    return launch_dependent(dev, err, "draft attention", draft_attention_join_kernel, dim3((unsigned)h.n_heads, ROWS),
                            JOIN_THREADS, 0,
                            *job);
}

} // namespace decode
} // namespace mq_cuda
