/* Attention of the decode step through a window, for the released models' heads: 192 dimensions of
 * which 64 turn, 128 columns.
 *
 * The same sums as step_attention.cu's, but the whole window comes into shared memory: a bulk copy
 * a row of the cache, under way before the kernel in front of this one has finished, then the
 * step's own rows.  What remains is small loops, because such a kernel runs once a layer and its
 * instructions come from far away every time.  A block has a group (16 heads of a row), each of its
 * eight warps a tile of 16 keys, then 16 columns. */
#include "kernels/cuda/decode/attention_work.cuh"

namespace mq_cuda
{
namespace decode
{

struct window_room {
    float keys[WINDOW][KEY_STRIDE];
    float values[WINDOW][VALUE_STRIDE];
    uint4 q[FIXED_STEPS * UNIT], p[TILES * UNIT];
    float max[TILES * HEADS], sum[TILES * HEADS];
};

/* Cached rows: keys before own. */
static __device__ __forceinline__ void fetch_window(window_room *r, const attention_job &job,
                                                    const work &w)
{
    int key = (int)threadIdx.x;
    copy_rows<DIM>(r->keys[0], KEY_STRIDE, job.kv.k, job, w, 0, w.own);
    copy_rows<STRIP>(r->values[0], VALUE_STRIDE, job.kv.v, job, w, 0, w.own);
    copy_async_commit();
    /* weights of keys that do not exist are 0: so their values must be numbers */
    for (int row = w.last + key / WARP; row < (w.last + KEYS - 1) / KEYS * KEYS; row += TILES)
        *(float4 *)&r->values[row][key % WARP * 4] = float4{0.0f, 0.0f, 0.0f, 0.0f};
}

/* Scores of a warp's tile, and their weights. */
static __device__ __forceinline__ void score_window(window_room *r, const work &w)
{
    int lane = (int)(threadIdx.x % WARP), tile = (int)threadIdx.x / WARP, g = lane / 4,
        t = lane % 4;
    if (tile * KEYS >= w.last) { /* the same in the whole warp */
        if (lane < HEADS) {
            r->max[tile * HEADS + lane] = -INFINITY;
            r->sum[tile * HEADS + lane] = 0.0f;
        }
        return;
    }
    float c[3][2][4] = {};
    const float *key = &r->keys[tile * KEYS + g][4 * t];
#pragma unroll 3
    for (int s = 0; s < FIXED_STEPS; s++) {
        uint4 x = r->q[s * UNIT + lane], y = r->q[s * UNIT + WARP + lane];
        uint32_t q_hi[4] = {x.x, x.z, x.y, x.w}, q_lo[4] = {y.x, y.z, y.y, y.w};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float4 k = *(const float4 *)(key + 8 * i * KEY_STRIDE + 16 * s);
            uint32_t hi[2], lo[2];
            split(hi[0], lo[0], k.x, k.y);
            split(hi[1], lo[1], k.z, k.w);
            mma_bf16(c[0][i], q_hi, hi);
            mma_bf16(c[1][i], q_hi, lo);
            mma_bf16(c[2][i], q_lo, hi);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        c[0][i / 4][i % 4] += c[1][i / 4][i % 4] + c[2][i / 4][i % 4];
    weigh(r->p + tile * UNIT + lane, r->max + tile * HEADS, r->sum + tile * HEADS, c[0], 0,
          w.last - tile * KEYS);
}

/* A lane's heads are g and g + 8, its columns 4 t .. 4 t + 3 of the warp's 16. */
static __device__ __forceinline__ void add_window(const window_room *r, const attention_job &job,
                                                  const work &w, int row, int head0,
                                                  const float sinks[2])
{
    int lane = (int)(threadIdx.x % WARP), g = lane / 4, t = lane % 4,
        column = (int)threadIdx.x / WARP * 16;
    float max[2] = {-INFINITY, -INFINITY}, all[2] = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < TILES; k++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            max[h] = fmaxf(max[h], r->max[k * HEADS + g + 8 * h]);
    float sums[2][4] = {};
    const float *value = &r->values[2 * t][column + 2 * g];
    int n = (w.last + KEYS - 1) / KEYS;
#pragma unroll 2
    for (int k = 0; k < n; k++, value += KEYS * VALUE_STRIDE) {
        value_pieces v;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float2 a = *(const float2 *)(value + 8 * i * VALUE_STRIDE),
                   b = *(const float2 *)(value + (8 * i + 1) * VALUE_STRIDE);
            split(v.hi[0][i], v.lo[0][i], a.x, b.x);
            split(v.hi[1][i], v.lo[1][i], a.y, b.y);
        }
        float factor[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = r->max[k * HEADS + g + 8 * h];
            factor[h] = most == -INFINITY ? 0.0f : exp2f(most - max[h]);
            all[h] = fmaf(factor[h], r->sum[k * HEADS + g + 8 * h], all[h]);
        }
        add_product(sums, r->p + k * UNIT + lane, factor, v);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int head = head0 + g + 8 * h;
        if (head >= job.share)
            continue;
        float most = fmaxf(max[h], sinks[h]), shrink = exp2f(max[h] - most),
              total = all[h] * shrink;
        total = job.sink ? total + exp2f(sinks[h] - most) : total;
        float scale = shrink / total;
        uint32_t low = bf16x2_of_floats(sums[0][2 * h] * scale, sums[1][2 * h] * scale);
        uint32_t high = bf16x2_of_floats(sums[0][2 * h + 1] * scale, sums[1][2 * h + 1] * scale);
        *(uint2 *)(job.out + ((int64_t)row * job.n_heads + w.kv_head * job.share + head) * STRIP +
                   column + 4 * t) = uint2{low, high};
    }
}

static __global__ void __launch_bounds__(THREADS, 1) fixed_window_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(memory, window_room);
    window_room *r = memory;
    let_next_start();
    int n = job.in->n, pos0 = (int)job.in->pos0, n_groups = ROWS * job.row_groups,
        block = (int)blockIdx.x;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    work w = {};
    w.kv_head = block / (n_groups + 1); /* the last of a head's blocks stores keys and values */
    w.group0 = block % (n_groups + 1);
    int row = w.group0 / job.row_groups, head0 = w.group0 % job.row_groups * HEADS;
    if (w.group0 == n_groups || row >= n) { /* the same in the whole block */
        wait_for_previous();
        if (row < ROWS)
            for (int i = (int)threadIdx.x; i < HEADS * STRIP && head0 + i / STRIP < job.share;
                 i += THREADS)
                job.out[((int64_t)row * job.n_heads + w.kv_head * job.share + head0) * STRIP + i] =
                    0;
        else if (warp < n) {
            int64_t at =
                (int64_t)((pos0 + warp) % (int)job.kv.n_slots) * job.kv.n_kv_heads + w.kv_head;
            own_row x = {};
            load_own_row(x, job, w, warp);
            store_own_row(job.kv.k + at * DIM, job.kv.v + at * STRIP, x, job.v_scale);
        }
        return;
    }
    w.start = first_visible(job, pos0 + row);
    w.last = pos0 + row + 1 - w.start;
    w.own = pos0 - w.start;
    w.own = w.own > 0 ? w.own : 0; /* a window shorter than the step begins among its own rows */
    w.slot = w.start % (int)job.kv.n_slots;
    w.n_groups = 1;
    fetch_window(r, job, w);
    float sinks[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int head = head0 + lane / 4 + 8 * h;
        sinks[h] = job.sink && head < job.share ? job.sink[w.kv_head * job.share + head] * LOG2_E
                                                : -INFINITY;
    }
    wait_for_previous();
    int own0 = w.start > pos0 ? w.start - pos0 : 0,
        key = pos0 + own0 + warp - w.start; /* a warp a row of the step */
    own_row x = {};
    if (key < w.last)
        load_own_row(x, job, w, own0 + warp);
    room q = {};
    q.q = r->q;
    store_fixed_queries<2>(q, job, w);
    if (key < w.last)
        store_own_row(r->keys[key], r->values[key], x, job.v_scale);
    copy_async_wait<0>();
    __syncthreads(); /* keys, queries and own rows are there */
    score_window(r, w);
    __syncthreads(); /* weights are there */
    add_window(r, job, w, row, head0, sinks);
}

mq_status fixed_window(mq_dev *dev, const attention_job *job, mq_err *err)
{
    return launch_dependent(dev, err, "step attention", fixed_window_kernel,
                            dim3((unsigned)(job->kv.n_kv_heads * (ROWS * job->row_groups + 1))),
                            THREADS, sizeof(window_room), *job);
}

} // namespace decode
} // namespace mq_cuda
