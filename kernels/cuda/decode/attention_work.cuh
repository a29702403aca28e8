/* How the decode step's attention is divided among blocks: chunks, groups, parts; and rows of the
 * step as the kernels for the released models' heads bring them to shared memory.  For
 * step_attention.cu, step_chunk.cu and step_window.cu. */
#ifndef MQ_KERNELS_CUDA_DECODE_ATTENTION_WORK_CUH
#define MQ_KERNELS_CUDA_DECODE_ATTENTION_WORK_CUH

#include "kernels/cuda/decode/attention_tile.cuh"

namespace mq_cuda
{
namespace decode
{

enum { CHUNK = MQ_DECODE_CHUNK, MAX_GROUPS = 8 };
static const float LOG2_E = 1.44269504088896340736f;

/* A chunk costs a block about as much to load as this many groups to compute: 256 keys of 1280
 * bytes from L2 against products at the rate of the tensor cores. */
enum { LOAD_COST = 2 };

/* What a group of w sees, and its sums set to nothing; barriers are the caller's. */
static __device__ __forceinline__ void start_groups(const room &r, const attention_job &job,
                                                    const work &w, int pos0)
{
    int i = (int)threadIdx.x;
    if (i < w.n_groups) {
        int pos = pos0 + (w.group0 + i) / job.row_groups, a = first_visible(job, pos) - w.start,
            b = pos + 1 - w.start;
        r.sees[i].x = a > w.first ? (a < w.last ? a : w.last) : w.first;
        r.sees[i].y = b < w.last ? (b > w.first ? b : w.first) : w.last;
    }
    if (i < w.n_groups * HEADS) {
        r.most[i] = -INFINITY;
        r.all[i] = 0.0f;
    }
}

struct chunk_items {
    int chunk0, n_chunks, pieces, n;
};

static __device__ __forceinline__ int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* In how many pieces to cut the groups of a chunk, so that the blocks end together; at most
 * max_groups each. */
static __device__ __forceinline__ int best_split(int n_chunks, int n_groups, int max_groups,
                                                 int n_blocks)
{
    int best = n_groups, least = INT32_MAX;
    for (int s = ceil_div(n_groups, max_groups); s < 2 * n_groups; s *= 2) {
        int pieces = s < n_groups ? s : n_groups;
        int cost = ceil_div(n_chunks * pieces, n_blocks) * (ceil_div(n_groups, pieces) + LOAD_COST);
        if (cost < least) {
            least = cost;
            best = pieces;
        }
    }
    return best;
}

static __device__ __forceinline__ chunk_items items_of(const attention_job &job, int n, int pos0)
{
    chunk_items items;
    items.chunk0 = first_visible(job, pos0) / CHUNK;
    items.n_chunks = (pos0 + n - 1) / CHUNK - items.chunk0 + 1;
    int whole = items.n_chunks * job.kv.n_kv_heads * job.n_strips;
    items.pieces = best_split(whole, n * job.row_groups, job.n_pairs / HEADS, (int)gridDim.x);
    items.n = whole * items.pieces;
    return items;
}

static __device__ __forceinline__ work work_of(const attention_job &job, const chunk_items &items,
                                               int item, int n, int pos0)
{
    int n_groups = n * job.row_groups, piece = item % items.pieces;
    work w = {};
    item /= items.pieces;
    w.chunk = item % items.n_chunks;
    item /= items.n_chunks;
    w.column0 = item % job.n_strips * STRIP;
    w.kv_head = item / job.n_strips;
    w.group0 = n_groups * piece / items.pieces;
    w.n_groups = n_groups * (piece + 1) / items.pieces - w.group0;
    w.start = (items.chunk0 + w.chunk) * CHUNK;
    int lo = first_visible(job, pos0 + w.group0 / job.row_groups) - w.start;
    int hi = pos0 + (w.group0 + w.n_groups - 1) / job.row_groups + 1 - w.start,
        own = pos0 - w.start;
    w.first = lo < 0 ? 0 : lo < CHUNK ? lo : (int)CHUNK;
    w.last = hi < CHUNK ? hi : (int)CHUNK;
    w.own = own < CHUNK ? own : (int)CHUNK;
    w.slot = (w.start + w.first) % (int)job.kv.n_slots;
    return w;
}

static __device__ __forceinline__ void write_part(const room &r, const value_sums<MAX_GROUPS> &sums,
                                                  const attention_job &job, const work &w,
                                                  int n_rounds)
{
    int g = (int)(threadIdx.x % WARP) / 4,
        column = w.column0 + (int)threadIdx.x / WARP * 16 + (int)threadIdx.x % 4 * 4;
    int row = w.group0 / job.row_groups, head0 = w.group0 % job.row_groups * HEADS;
#pragma unroll
    for (int j = 0; j < MAX_GROUPS; j++) {
        if (j >= w.n_groups)
            break;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int head = head0 + g + 8 * h, pair = j * HEADS + g + 8 * h;
            if (head >= job.share)
                continue;
            head += w.kv_head * job.share;
            if (column < job.v_dim4)
                *(float4 *)(job.value +
                            (((int64_t)w.chunk * job.n_heads + head) * ROWS + row) * job.v_dim4 +
                            column) = float4{sums.at[j][0][2 * h], sums.at[j][1][2 * h],
                                             sums.at[j][0][2 * h + 1], sums.at[j][1][2 * h + 1]};
            if (column == 0)
                job.state[((int64_t)head * ROWS + row) * job.n_parts + w.chunk] =
                    float2{r.most[n_rounds % 2 * job.n_pairs + pair], r.all[pair]};
        }
        head0 += HEADS;
        if (head0 >= job.share) {
            head0 = 0;
            row++;
        }
    }
}

/* ---- the released models' heads ---- */

/* Floats from one row to the next in shared memory: rows whose elements a warp reads together lie
 * in different banks. */
enum { DIM = 16 * FIXED_STEPS, KEY_STRIDE = DIM + 16, VALUE_STRIDE = STRIP + 4 };

/* Rows of the cache, a warp a row at a time: keys from .. to - 1 to the rows of shared memory
 * behind to. */
template <int WIDTH>
static __device__ __forceinline__ void copy_rows(float *to, int stride, const float *cache,
                                                 const attention_job &job, const work &w, int first,
                                                 int last)
{
    int lane = (int)(threadIdx.x % WARP) * 4;
#pragma unroll 4
    for (int key = first + (int)threadIdx.x / WARP; key < last; key += TILES) {
        const float *from =
            cache + ((int64_t)slot_of(job, w, key) * job.kv.n_kv_heads + w.kv_head) * WIDTH + lane;
        float *row = to + (key - first) * stride + lane;
        copy_async16(row, from);
        if (WIDTH > 4 * WARP && lane < WIDTH - 4 * WARP)
            copy_async16(row + 4 * WARP, from + 4 * WARP);
    }
}

/* A row of the step as a warp reads it: a lane has 4 dimensions that do not turn, lanes 0 .. 7 8
 * that do, and 4 values. */
struct own_row {
    float4 rest, a, b, c, s, v;
};
static __device__ __forceinline__ void load_own_row(own_row &x, const attention_job &job,
                                                    const work &w, int row)
{
    int d = (int)(threadIdx.x % WARP) * 4;
    const float *k = job.k + row * job.k_stride + (int64_t)w.kv_head * DIM,
                *cos_sin = job.rope + row * 2 * FIXED_HALF;
    x.rest = *(const float4 *)(k + 2 * FIXED_HALF + d);
    x.v = *(const float4 *)(job.v + row * job.v_stride + (int64_t)w.kv_head * STRIP + d);
    if (d < FIXED_HALF) {
        x.a = *(const float4 *)(k + d);
        x.b = *(const float4 *)(k + FIXED_HALF + d);
        x.c = *(const float4 *)(cos_sin + d);
        x.s = *(const float4 *)(cos_sin + FIXED_HALF + d);
    }
}
static __device__ __forceinline__ void store_own_row(float *key, float *value, own_row &x,
                                                     float v_scale)
{
    int d = (int)(threadIdx.x % WARP) * 4;
    *(float4 *)(key + 2 * FIXED_HALF + d) = x.rest;
    *(float4 *)(value + d) =
        float4{x.v.x * v_scale, x.v.y * v_scale, x.v.z * v_scale, x.v.w * v_scale};
    if (d < FIXED_HALF) {
        rotate4(x.a, x.b, x.c, x.s);
        *(float4 *)(key + d) = x.a;
        *(float4 *)(key + FIXED_HALF + d) = x.b;
    }
}

/* step_window.cu: windows of up to WINDOW positions; step_chunk.cu: parts. */
mq_status fixed_window(mq_dev *dev, const attention_job *job, mq_err *err);
mq_status fixed_chunks(mq_dev *dev, const attention_job *job, int n_blocks, mq_err *err);

} // namespace decode
} // namespace mq_cuda

#endif
