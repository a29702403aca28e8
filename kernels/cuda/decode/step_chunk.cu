/* Chunks of the decode step's attention for the released models' heads: 192 dimensions of which 64
 * turn, 128 columns.
 *
 * The same sums as step_attention.cu's, but keys and values come to shared memory by asynchronous
 * copies, 64 positions a round: the next round's keys while this one's values are added, the next
 * one's values while its scores are made; all of a chunk goes to L2 first. Loops are small, because
 * such a kernel runs once a layer and its instructions come from far away every time.  Of a round a
 * warp has the scores of a tile for half of the groups, then 16 columns of values for all. */
#include "kernels/cuda/decode/attention_work.cuh"

namespace mq_cuda
{
namespace decode
{

enum {
    ROUND_TILES = 4,
    ROUND = ROUND_TILES * KEYS,
    PARTS = TILES / ROUND_TILES,
    PART_GROUPS = MAX_GROUPS / PARTS
};

struct chunk_room {
    float keys[ROUND][KEY_STRIDE];
    float values[ROUND][VALUE_STRIDE];
    uint4 q[MAX_GROUPS * FIXED_STEPS * UNIT], p[MAX_GROUPS * ROUND_TILES * UNIT];
    float max[ROUND_TILES * MAX_GROUPS * HEADS], sum[ROUND_TILES * MAX_GROUPS * HEADS],
        factor[ROUND_TILES * MAX_GROUPS * HEADS];
    float most[2 * MAX_GROUPS * HEADS], shrink[MAX_GROUPS * HEADS], all[MAX_GROUPS * HEADS];
    key_range sees[MAX_GROUPS];
};

/* What the cache holds of an item, into L2, a tile of all KV heads at a time: their blocks share
 * the tiles. */
static __device__ __forceinline__ void prefetch(const attention_job &job, const work &w)
{
    int n_heads = job.kv.n_kv_heads, tile = (int)threadIdx.x / 2, key = tile * KEYS;
    if (tile >= CHUNK / KEYS || tile % n_heads != w.kv_head || key < w.first ||
        key + KEYS > w.last || key + KEYS > w.own)
        return;
    int64_t slot = slot_of(job, w, key);
    if (slot + KEYS > job.kv.n_slots)
        return;
    if (threadIdx.x % 2 == 0)
        prefetch_bulk_l2(job.kv.k + slot * n_heads * DIM,
                         (uint32_t)(KEYS * n_heads * DIM * (int)sizeof(float)));
    else
        prefetch_bulk_l2(job.kv.v + slot * n_heads * STRIP,
                         (uint32_t)(KEYS * n_heads * STRIP * (int)sizeof(float)));
}

/* Keys or values of the round at key0 that the cache holds, a group of asynchronous copies even
 * where there are none. */
template <int WIDTH>
static __device__ __forceinline__ void fetch_round(float *to, int stride, const float *cache,
                                                   const attention_job &job, const work &w,
                                                   int key0)
{
    int end = w.last < w.own ? w.last : w.own;
    int a = key0 > w.first ? key0 : w.first, b = key0 + ROUND < end ? key0 + ROUND : end;
    copy_rows<WIDTH>(to + (a - key0) * stride, stride, cache, job, w, a, b);
    copy_async_commit();
}
static __device__ __forceinline__ void fetch_keys(chunk_room *c, const attention_job &job,
                                                  const work &w, int key0)
{
    fetch_round<DIM>(c->keys[0], KEY_STRIDE, job.kv.k, job, w, key0);
}
static __device__ __forceinline__ void fetch_values(chunk_room *c, const attention_job &job,
                                                    const work &w, int key0)
{
    fetch_round<STRIP>(c->values[0], VALUE_STRIDE, job.kv.v, job, w, key0);
}

/* The step's own rows of the round, a warp a row. */
static __device__ __forceinline__ void place_own_rows(chunk_room *c, const attention_job &job,
                                                      const work &w, int key0)
{
    if (key0 + ROUND <= w.own) /* the same in the whole block */
        return;
    int key = (key0 > w.own ? key0 : w.own) + (int)threadIdx.x / WARP;
    if (key < key0 + ROUND && key < w.last) {
        own_row x = {};
        load_own_row(x, job, w, key - w.own);
        store_own_row(c->keys[key - key0], c->values[key - key0], x, job.v_scale);
    }
}

/* Scores of a tile for the part's groups, and their weights. */
static __device__ __forceinline__ void score_round(chunk_room *r, const attention_job &job,
                                                   const work &w, int key0)
{
    int lane = (int)(threadIdx.x % WARP), warp = (int)threadIdx.x / WARP, g = lane / 4,
        t = lane % 4;
    int tile = warp % ROUND_TILES, each = (w.n_groups + PARTS - 1) / PARTS,
        j0 = warp / ROUND_TILES * each;
    int n = w.n_groups - j0 < each ? w.n_groups - j0 : each, base = key0 + tile * KEYS;
    float c[PART_GROUPS][2][4] = {}, cross[PART_GROUPS][2][4] = {};
    const float *key = &r->keys[tile * KEYS + g][4 * t];
    const uint4 *q = r->q + j0 * FIXED_STEPS * UNIT + lane;
    if (base < w.last && base + KEYS > w.first) { /* the same in the whole warp */
#pragma unroll 2
        for (int s = 0; s < FIXED_STEPS; s++) {
            uint32_t hi[2][2], lo[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float4 k = *(const float4 *)(key + 8 * i * KEY_STRIDE + 16 * s);
                split(hi[i][0], lo[i][0], k.x, k.y);
                split(hi[i][1], lo[i][1], k.z, k.w);
            }
#pragma unroll
            for (int j = 0; j < PART_GROUPS; j++) {
                if (j >= n)
                    break;
                uint4 x = q[(j * FIXED_STEPS + s) * UNIT],
                      y = q[(j * FIXED_STEPS + s) * UNIT + WARP];
                uint32_t q_hi[4] = {x.x, x.z, x.y, x.w}, q_lo[4] = {y.x, y.z, y.y, y.w};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma_bf16(c[j][i], q_hi, hi[i]);
                    mma_bf16(cross[j][i], q_hi, lo[i]);
                    mma_bf16(cross[j][i], q_lo, hi[i]);
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < PART_GROUPS; j++) /* scores wait where their weights will be */
        if (j < n) {
            float4 *p = (float4 *)(r->p + ((j0 + j) * ROUND_TILES + tile) * UNIT + lane);
#pragma unroll
            for (int i = 0; i < 2; i++)
                p[i * WARP] = float4{c[j][i][0] + cross[j][i][0], c[j][i][1] + cross[j][i][1],
                                     c[j][i][2] + cross[j][i][2], c[j][i][3] + cross[j][i][3]};
        }
#pragma unroll 1
    for (int j = j0; j < j0 + n; j++) {
        uint4 *p = r->p + (j * ROUND_TILES + tile) * UNIT + lane;
        float4 a = *(const float4 *)p, b = *(const float4 *)(p + WARP);
        float score[2][4] = {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
        int pair = tile * job.n_pairs + j * HEADS;
        weigh(p, r->max + pair, r->sum + pair, score, r->sees[j].x - base, r->sees[j].y - base);
    }
}

/* A warp's 16 columns.  Groups go two by two without a branch between them: one too many adds to
 * sums that nobody reads. */
static __device__ __forceinline__ void add_round(value_sums<MAX_GROUPS> &sums, const chunk_room *r,
                                                 const attention_job &job, const work &w, int key0)
{
    int lane = (int)(threadIdx.x % WARP), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < MAX_GROUPS; j++) {
        if (j >= w.n_groups)
            break;
        float f[2] = {r->shrink[j * HEADS + g], r->shrink[j * HEADS + g + 8]};
#pragma unroll
        for (int e = 0; e < 8; e++)
            sums.at[j][e / 4][e % 4] *= f[e % 4 / 2];
    }
    const float *value = &r->values[2 * t][(int)threadIdx.x / WARP * 16 + 2 * g];
#pragma unroll 1
    for (int k = 0; k < ROUND_TILES; k++, value += KEYS * VALUE_STRIDE) {
        int base = key0 + k * KEYS;
        if (base >= w.last || base + KEYS <= w.first) /* the same in the whole block */
            continue;
        value_pieces all;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float2 a = *(const float2 *)(value + 8 * i * VALUE_STRIDE),
                   b = *(const float2 *)(value + (8 * i + 1) * VALUE_STRIDE);
            split(all.hi[0][i], all.lo[0][i], a.x, b.x);
            split(all.hi[1][i], all.lo[1][i], a.y, b.y);
        }
        bool is_inner = r->sees[w.n_groups - 1].x <= base &&
                        r->sees[0].y >= base + KEYS; /* rows ascend: all see all of the tile */
#pragma unroll
        for (int j = 0; j < MAX_GROUPS; j += 2) {
            if (j >= w.n_groups)
                break;
#pragma unroll
            for (int i = j; i < j + 2; i++) {
                const float *factor = r->factor + k * job.n_pairs + i * HEADS + g,
                            f[2] = {factor[0], factor[8]};
                value_pieces v = all;
                if (!is_inner)
                    v = masked(all, r->sees[i].x - base, r->sees[i].y - base);
                add_product(sums.at[i], r->p + (i * ROUND_TILES + k) * UNIT + lane, f, v);
            }
        }
    }
}

/* All groups of w through its chunk. */
static __device__ __forceinline__ void attend_chunk(chunk_room *c, const room &r,
                                                    const attention_job &job, const work &w)
{
    value_sums<MAX_GROUPS> sums = {};
    int key0 = w.first / ROUND * ROUND, round = 0;
    fetch_keys(c, job, w, key0);
    fetch_values(c, job, w, key0);
    start_groups(r, job, w, (int)job.in->pos0);
    store_fixed_queries<4>(r, job, w);
#pragma unroll 1
    for (; key0 < w.last; key0 += ROUND, round++) {
        place_own_rows(c, job, w, key0);
        copy_async_wait<1>();
        __syncthreads(); /* keys, queries and own rows are there */
        score_round(c, job, w, key0);
        __syncthreads(); /* weights are there, keys are done with */
        fetch_keys(c, job, w, key0 + ROUND);
        join_tiles<ROUND_TILES>(r, job, w, round);
        copy_async_wait<1>();
        __syncthreads(); /* values and factors are there */
        join_sums<ROUND_TILES>(r, job, w);
        add_round(sums, c, job, w, key0);
        __syncthreads(); /* weights, factors and values are done with, sums are there */
        fetch_values(c, job, w, key0 + ROUND);
    }
    write_part(r, sums, job, w, round);
}

static __global__ void __launch_bounds__(THREADS, 1) fixed_chunk_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(c, chunk_room);
    let_next_start();
    room r = {c->q, c->p, c->max, c->sum, c->factor, c->most, c->shrink, c->all, c->sees};
    int n = job.in->n, pos0 = (int)job.in->pos0, warp = (int)threadIdx.x / WARP;
    chunk_items items = items_of(job, n, pos0);
    work w = work_of(job, items, (int)blockIdx.x, n, pos0);
    if ((int)blockIdx.x < items.n)
        prefetch(job, w);
    wait_for_previous();
    for (int item = (int)blockIdx.x; item < items.n; item += (int)gridDim.x) {
        work next = work_of(job, items, item + (int)gridDim.x, n, pos0);
        if (item + (int)gridDim.x < items.n)
            prefetch(job, next);
        if (w.first < w.last) /* the same in the whole block: a row of the item sees the chunk */
            attend_chunk(c, r, job, w);
        __syncthreads(); /* the next item overwrites what was read */
        w = next;
    }
    if ((int)blockIdx.x != items.n % (int)gridDim.x ||
        warp >= n) /* one that has least to do stores keys and values */
        return;
    for (w.kv_head = 0; w.kv_head < job.kv.n_kv_heads; w.kv_head++) {
        int64_t at = (int64_t)((pos0 + warp) % (int)job.kv.n_slots) * job.kv.n_kv_heads + w.kv_head;
        own_row x = {};
        load_own_row(x, job, w, warp);
        store_own_row(job.kv.k + at * DIM, job.kv.v + at * STRIP, x, job.v_scale);
    }
}

mq_status fixed_chunks(mq_dev *dev, const attention_job *job, int n_blocks, mq_err *err)
{
    return launch_dependent(dev, err, "step attention", fixed_chunk_kernel,
                            dim3((unsigned)n_blocks), THREADS, sizeof(chunk_room), *job);
}

} // namespace decode
} // namespace mq_cuda
