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
#include "kernels/cuda/decode/attention_tile.cuh"

namespace mq_cuda {
namespace decode {

enum { JOIN_THREADS = 128, CHUNK = MQ_DECODE_CHUNK, ROOM_BYTES = 160 << 10 };

/* A chunk costs a block about as much to load as this many groups to compute: products of 256 keys at the rates of the
 * multiply-add units against copies of 1280 bytes a key. */
enum { LOAD_COST = 2 };

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

template <bool IS_DIRECT>
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
            if (IS_DIRECT) {
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
template <bool IS_DIRECT>
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
        for (int i = (int)threadIdx.x; i < n * 2 * job.half; i += THREADS)
            r.cos_sin[i] = job.rope[i];
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
        score_tile<IS_DIRECT>(r, job, w.n_groups);
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
        add_tile<IS_DIRECT>(sums, r, job, w, pos0, base);
        __syncthreads(); /* values and weights are done with */
        if (has_next) {
            load_cached(r.values, job.v_dim4, job.kv.v, job, w, job.kv.v_head_dim, job.v_dim4, job.is_wide_v, base + KEYS,
                        pos0);
            load_own_values(r, job, w, base + KEYS, pos0);
        }
        copy_async_commit();
    }
    finish<IS_DIRECT>(sums, r, job, w);
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
    attend<true>(r, job, w, n, pos0, true);
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
        attend<false>(r, job, w, n, pos0, is_first);
        is_first = false;
        if (piece == pieces - 1 && end > pos0) /* the piece that sees all rows of the chunk */
            store_rows(r, job, w.kv_head, start > pos0 ? (int)(start - pos0) : 0, end < pos0 + n ? (int)(end - pos0) : n, pos0);
    }
}

template <bool IS_DIRECT> static __global__ void __launch_bounds__(THREADS) step_attention_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(memory, float);
    room_layout l = layout_of(job.dim4, job.v_dim4, job.tile_stride, job.half, job.max_groups);
    float *state = memory + l.state;
    int n_states = job.max_groups * GROUP;
    room r = {memory, memory + l.keys,  memory + l.values,    memory + l.p, memory + l.cos_sin,
              state,  state + n_states, state + 2 * n_states};
    wait_for_previous();
    let_next_start();
    int n = job.in->n;
    int64_t pos0 = job.in->pos0;
    if (IS_DIRECT)
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

/* A block a row; rounding as in kernels/cuda/rope.cu. */
static __global__ void rope_table_kernel(float *table, int half, float theta, const mq_decode_input *in)
{
    float *row = table + (int64_t)blockIdx.x * 2 * half;
    wait_for_previous();
    let_next_start();
    int64_t pos = in->pos0 + blockIdx.x;
    for (int k = (int)threadIdx.x; k < half; k += (int)blockDim.x) {
        float exponent = (float)(2 * k) / (float)(2 * half);
        float inv_freq = 1.0f / (float)pow((double)theta, (double)exponent);
        float angle = (float)pos * inv_freq;
        row[k] = (float)cos((double)angle);
        row[half + k] = (float)sin((double)angle);
    }
}

mq_status rope_table(mq_dev *dev, float *table, int rotary_dims, double theta, const mq_decode_input *in, mq_err *err)
{
    if (rotary_dims < 2)
        return MQ_OK;
    return launch_dependent(dev, err, "step rope", rope_table_kernel, dim3(ROWS), WARP, 0, table, rotary_dims / 2,
                            (float)theta, in);
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
    job.rope = a->rope;
    job.v_scale = a->v_scale;
    job.is_wide_k = is_wide(a->kv.k, a->kv.head_dim);
    job.is_wide_v = is_wide(a->kv.v, a->kv.v_head_dim);
    int64_t parts = n_parts(a->window, a->max_context), groups = (int64_t)a->kv.n_kv_heads * ROWS * job.row_groups;
    size_t n_bytes =
        (size_t)layout_of(job.dim4, job.v_dim4, job.tile_stride, job.half, job.max_groups).n_floats * sizeof(float);
    if (job.is_direct)
        return launch_dependent(dev, err, "step attention", step_attention_kernel<true>, dim3((unsigned)groups), THREADS,
                                n_bytes, job);
    job.value = (float *)a->workspace;
    job.state = job.value + parts * a->n_heads * ROWS * job.v_dim4;
    MQ_TRY(launch_dependent(dev, err, "step attention", step_attention_kernel<false>,
                            dim3(n_blocks(parts * groups, 1, dev->n_processors)), THREADS, n_bytes, job));
    return launch_dependent(dev, err, "step attention: join", join_kernel, dim3((unsigned)(a->n_heads * ROWS)), JOIN_THREADS,
                            0, job);
}

} // namespace decode
} // namespace mq_cuda
