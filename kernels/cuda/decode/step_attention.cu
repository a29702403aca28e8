/* Attention of the decode step, for heads of any geometry: rotate, store and attend in one kernel;
 * a second one joins chunks.
 *
 * Work comes in groups, 16 query heads of one row that share a KV head (attention_tile.cuh).  Keys
 * are cut into tiles of 16 positions and chunks of MQ_DECODE_CHUNK, both at multiples of their
 * size; within a chunk rounds of eight tiles follow each other as in online softmax (Milakov and
 * Gimelshein, arXiv 1805.02867), chunks are joined by the second kernel.  So what a row gets does
 * not depend on the block that has its group, nor on what else that block has, and blocks divide
 * chunks and groups among themselves as suits the length, which they read on the device.
 *
 * Rows of the step read each other's keys from the job, rotated anew with the same rounding, not
 * from the cache: no block waits for another.  A window of up to eight tiles needs no parts: a
 * block takes a group through its whole window, whose tiles start where the window does.
 *
 * What the cache holds of earlier steps does not wait for the kernel before this one: windows load
 * it into registers, those for the released models' heads (step_window.cu, step_chunk.cu) into
 * shared memory and L2. */
#include "kernels/cuda/decode/attention_work.cuh"

namespace mq_cuda
{
namespace decode
{

enum { JOIN_WARPS = 8, ROOM_BYTES = 200 << 10 };
/* The rows of the step into the cache, a warp a row; nobody reads these slots in this step. */
static __device__ __forceinline__ void store_rows(const attention_job &job, int kv_head, int n,
                                                  int pos0)
{
    int dim = job.kv.head_dim, v_dim = job.kv.v_head_dim, lane = (int)(threadIdx.x % WARP);
    for (int row = (int)(threadIdx.x / WARP); row < n; row += TILES) {
        int64_t at = (int64_t)((pos0 + row) % (int)job.kv.n_slots) * job.kv.n_kv_heads + kv_head;
        const float *k = job.k + row * job.k_stride + (int64_t)kv_head * dim;
        const float *v = job.v + row * job.v_stride + (int64_t)kv_head * v_dim;
#pragma unroll 4
        for (int d = lane; d < dim; d += WARP)
            job.kv.k[at * dim + d] = rotated(k, d, job.rope + row * 2 * job.half, job.half);
#pragma unroll 4
        for (int d = lane; d < v_dim; d += WARP)
            job.kv.v[at * v_dim + d] = v[d] * job.v_scale;
    }
}

/* The keys of a warp's tile against all groups; x: their first ANY_STEPS * 16 dimensions. */
static __device__ __forceinline__ void score(key_values &x, const room &r, const attention_job &job,
                                             const work &w, int tile, int key0)
{
    for (int step = 0;;) {
        key_pieces k;
        split_keys(k, x);
        bool is_last = step + ANY_STEPS == job.n_steps;
        score_tile(r, k, job, w, tile, key0, step, is_last);
        if (is_last)
            return;
        step += ANY_STEPS;
        load_cached_keys(x, job, w, key0, step);
        load_own_keys(x, job, w, key0, step);
    }
}

/* ---- windows ---- */

static __device__ __forceinline__ void write_output(const room &r, const value_sums<1> &sums,
                                                    const attention_job &job, const work &w,
                                                    int row, int head0, const float sinks[2])
{
    int g = (int)(threadIdx.x % WARP) / 4, v_dim = job.kv.v_head_dim;
    int column = w.column0 + (int)threadIdx.x / WARP * 16 + (int)threadIdx.x % 4 * 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int head = head0 + g + 8 * h;
        if (head >= job.share || column >= v_dim)
            continue;
        head += w.kv_head * job.share;
        float sink = sinks[h], max = r.most[job.n_pairs + g + 8 * h];
        float most = fmaxf(max, sink), shrink = exp2f(max - most), all = r.all[g + 8 * h] * shrink;
        all = job.sink ? all + exp2f(sink - most) : all;
        uint16_t *out = job.out + ((int64_t)row * job.n_heads + head) * v_dim + column;
        float value[4] = {sums.at[0][0][2 * h], sums.at[0][1][2 * h], sums.at[0][0][2 * h + 1],
                          sums.at[0][1][2 * h + 1]};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column + i < v_dim)
                out[i] = mq_f32_to_bf16(value[i] * shrink / all);
    }
}

/* A group through its window, or zeros where a row is not used. */
static __global__ void __launch_bounds__(THREADS, 1) step_window_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(memory, float);
    let_next_start();
    room r = room_of(job, memory);
    int n = job.in->n, n_groups = ROWS * job.row_groups, block = (int)blockIdx.x;
    int pos0 = (int)job.in->pos0;
    if (block >= job.kv.n_kv_heads * n_groups * job.n_strips) { /* the same in the whole block */
        wait_for_previous();
        store_rows(job, block - job.kv.n_kv_heads * n_groups * job.n_strips, n, pos0);
        return;
    }
    work w = {};
    w.column0 = block % job.n_strips * STRIP;
    w.group0 = block / job.n_strips % n_groups;
    w.kv_head = block / job.n_strips / n_groups;
    w.n_groups = 1;
    int row = w.group0 / job.row_groups, head0 = w.group0 % job.row_groups * HEADS;
    if (row >= n) { /* the same in the whole block */
        wait_for_previous();
        for (int h = head0; h < head0 + HEADS && h < job.share; h++)
            for (int d = w.column0 + (int)threadIdx.x;
                 d < w.column0 + STRIP && d < job.kv.v_head_dim; d += THREADS)
                job.out[((int64_t)row * job.n_heads + w.kv_head * job.share + h) *
                            job.kv.v_head_dim +
                        d] = 0;
        return;
    }
    w.start = first_visible(job, pos0 + row);
    w.last = pos0 + row + 1 - w.start;
    w.own = pos0 - w.start;
    w.slot = w.start % (int)job.kv.n_slots;
    int tile = (int)threadIdx.x / WARP;
    key_values x = {};
    tile_values v = {};
    load_cached_keys(x, job, w, tile * KEYS, 0);
    load_cached_values(v, job, w, 0);
    start_groups(r, job, w, pos0);
    float sinks[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int head = head0 + (int)(threadIdx.x % WARP) / 4 + 8 * h;
        sinks[h] = job.sink && head < job.share ? job.sink[w.kv_head * job.share + head] * LOG2_E
                                                : -INFINITY;
    }
    wait_for_previous();
    load_own_values(v, job, w, 0);
    load_own_keys(x, job, w, tile * KEYS, 0);
    store_any_queries(r, job, w);
    __syncthreads(); /* queries are there */
    score(x, r, job, w, tile, tile * KEYS);
    __syncthreads(); /* weights of tiles are there */
    join_tiles<TILES>(r, job, w, 0);
    __syncthreads(); /* factors are there */
    value_sums<1> sums = {};
    join_sums<TILES>(r, job, w);
    add_values<1>(sums, r, v, job, w, 0);
    __syncthreads(); /* sums are there */
    write_output(r, sums, job, w, row, head0, sinks);
}

/* ---- chunks ---- */

static __device__ __forceinline__ void attend_chunk(const room &r, const attention_job &job,
                                                    const work &w)
{
    int warp = (int)threadIdx.x / WARP, round = 0;
    value_sums<MAX_GROUPS> sums = {};
    for (int key0 = 0; key0 < CHUNK; key0 += TILES * KEYS) {
        if (key0 >= w.last || key0 + TILES * KEYS <= w.first) /* the same in the whole block */
            continue;
        {
            key_values x = {};
            load_cached_keys(x, job, w, key0 + warp * KEYS, 0);
            load_own_keys(x, job, w, key0 + warp * KEYS, 0);
            score(x, r, job, w, warp, key0 + warp * KEYS);
        }
        tile_values v = {};
        load_cached_values(v, job, w, key0);
        load_own_values(v, job, w, key0);
        __syncthreads(); /* weights of tiles are there */
        join_tiles<TILES>(r, job, w, round++);
        __syncthreads(); /* factors are there */
        join_sums<TILES>(r, job, w);
        add_values<MAX_GROUPS>(sums, r, v, job, w, key0);
        __syncthreads(); /* weights and factors are done with, sums are there */
    }
    write_part(r, sums, job, w, round);
}

static __global__ void __launch_bounds__(THREADS, 1) step_chunk_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(memory, float);
    let_next_start();
    room r = room_of(job, memory);
    int n = job.in->n;
    int pos0 = (int)job.in->pos0;
    chunk_items items = items_of(job, n, pos0);
    work w = work_of(job, items, (int)blockIdx.x, n, pos0);
    wait_for_previous();
    for (int item = (int)blockIdx.x; item < items.n; item += (int)gridDim.x) {
        work next = work_of(job, items, item + (int)gridDim.x, n, pos0);
        if (w.first < w.last) { /* the same in the whole block: a row of the item sees the chunk */
            start_groups(r, job, w, pos0);
            store_any_queries(r, job, w);
            __syncthreads(); /* queries are there */
            attend_chunk(r, job, w);
            __syncthreads(); /* the next item overwrites what was read */
        }
        w = next;
    }
    if ((int)blockIdx.x == items.n % (int)gridDim.x) /* has least to do */
        for (int kv_head = 0; kv_head < job.kv.n_kv_heads; kv_head++)
            store_rows(job, kv_head, n, pos0);
}

/* Parts of a (row, head): a block each.  Chunk c goes to warp c % 8, a lane has four columns; warps
 * are added in ascending order. */
static __global__ void __launch_bounds__(JOIN_WARPS *WARP) join_kernel(attention_job job)
{
    MQ_SHARED(values, float[JOIN_WARPS][STRIP]);
    MQ_SHARED(sums, float[JOIN_WARPS]);
    int head = (int)(blockIdx.x / ROWS), row = (int)(blockIdx.x % ROWS), v_dim = job.kv.v_head_dim;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    uint16_t *out = job.out + ((int64_t)row * job.n_heads + head) * v_dim;
    let_next_start();
    int n = job.in->n;
    int pos0 = (int)job.in->pos0, pos = pos0 + row, chunk0 = first_visible(job, pos0) / CHUNK;
    int first = first_visible(job, pos) / CHUNK, last = pos / CHUNK;
    float sink = job.sink ? job.sink[head] * LOG2_E : -INFINITY;
    wait_for_previous();
    if (row >= n) {
        for (int d = (int)threadIdx.x; d < v_dim; d += JOIN_WARPS * WARP)
            out[d] = 0;
        return;
    }
    const float2 *state = job.state + ((int64_t)head * ROWS + row) * job.n_parts - chunk0;
    ranked most = {sink, (int32_t)threadIdx.x};
    for (int c = first + (int)threadIdx.x; c <= last; c += JOIN_WARPS * WARP)
        most.value = fmaxf(most.value, state[c].x);
    float max = block_best(most).value;
    int mine = first + (warp - first % JOIN_WARPS + JOIN_WARPS) % JOIN_WARPS;
    int64_t step = (int64_t)job.n_heads * ROWS * job.v_dim4;
    for (int d0 = 0; d0 < v_dim; d0 += STRIP) {
        int d = d0 + 4 * lane;
        const float *from = job.value + ((int64_t)head * ROWS + row) * job.v_dim4 +
                            (d < job.v_dim4 ? d : 0) - chunk0 * step;
        float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
        float all = 0.0f;
#pragma unroll 8
        for (int c = mine; c <= last; c += JOIN_WARPS) {
            float2 s = state[c];
            float4 x = *(const float4 *)(from + c * step);
            float weight = exp2f(s.x - max);
            all = fmaf(s.y, weight, all);
            value.x = fmaf(x.x, weight, value.x);
            value.y = fmaf(x.y, weight, value.y);
            value.z = fmaf(x.z, weight, value.z);
            value.w = fmaf(x.w, weight, value.w);
        }
        __syncthreads(); /* the strip before has been read */
        *(float4 *)&values[warp][4 * lane] = value;
        if (lane == 0)
            sums[warp] = all;
        __syncthreads();
        if (threadIdx.x < STRIP && d0 + (int)threadIdx.x < v_dim) {
            float sum = 0.0f, total = job.sink ? exp2f(sink - max) : 0.0f;
            for (int i = 0; i < JOIN_WARPS; i++) {
                sum += values[i][threadIdx.x];
                total += sums[i];
            }
            out[d0 + threadIdx.x] = mq_f32_to_bf16(sum / total);
        }
    }
}

/* ---- the table ---- */

/* A block a row; rounding as in kernels/cuda/rope.cu. */
static __global__ void rope_table_kernel(float *table, int half, float theta,
                                         const mq_decode_input *in)
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

mq_status rope_table(mq_dev *dev, float *table, int rotary_dims, double theta,
                     const mq_decode_input *in, mq_err *err)
{
    if (rotary_dims < 2)
        return MQ_OK;
    return launch_dependent(dev, err, "step rope", rope_table_kernel, dim3(ROWS), WARP, 0, table,
                            rotary_dims / 2, (float)theta, in);
}

/* ---- sizes and launches ---- */

static bool is_direct(int window)
{
    return window > 0 && window <= WINDOW;
}

/* Chunks that the rows of a step may touch. */
static int64_t n_parts(int window, int64_t max_context)
{
    int64_t all = (max_context + CHUNK - 1) / CHUNK, some = (window + ROWS - 2) / CHUNK + 2;
    return window > 0 && some < all ? some : all;
}

static bool is_aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

static bool is_fixed(const mq_decode_attention *a)
{
    return a->kv.head_dim == FIXED_STEPS * 16 && a->kv.v_head_dim == STRIP &&
           a->rotary_dims == 2 * FIXED_HALF && a->q_stride % 4 == 0 && a->k_stride % 4 == 0 &&
           a->v_stride % 4 == 0 && is_aligned(a->v) && is_aligned(a->kv.k) && is_aligned(a->kv.v) &&
           is_aligned(a->q) && is_aligned(a->k) && is_aligned(a->rope);
}

static attention_job job_of(const mq_decode_attention *a)
{
    attention_job job = {};
    job.q = a->q;
    job.k = a->k;
    job.v = a->v;
    job.sink = a->sink;
    job.rope = a->rope;
    job.q_stride = a->q_stride;
    job.k_stride = a->k_stride;
    job.v_stride = a->v_stride;
    job.kv = a->kv;
    job.in = a->in;
    job.out = a->out;
    job.n_heads = a->n_heads;
    job.share = a->n_heads / a->kv.n_kv_heads;
    job.row_groups = (job.share + HEADS - 1) / HEADS;
    job.half = a->rotary_dims / 2;
    job.window = a->window;
    job.v_scale = a->v_scale;
    job.scale = (float)(1.4426950408889634 / sqrt((double)a->kv.head_dim));
    job.v_dim4 = (a->kv.v_head_dim + 3) / 4 * 4;
    job.n_steps = (a->kv.head_dim + 16 * ANY_STEPS - 1) / (16 * ANY_STEPS) * ANY_STEPS;
    job.n_strips = (a->kv.v_head_dim + STRIP - 1) / STRIP;
    job.n_pairs = is_direct(a->window) ? HEADS : MAX_GROUPS * HEADS;
    while (room_bytes(job.n_pairs, job.n_steps) > ROOM_BYTES)
        job.n_pairs -= 2 * HEADS;
    return job;
}

mq_status check_attention(const mq_kv *kv, int n_heads, int rotary_dims, mq_err *err)
{
    const int most = 1024; /* two groups have room in shared memory */
    if (n_heads % kv->n_kv_heads != 0)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d heads are no multiple of %d KV heads", n_heads,
                       kv->n_kv_heads);
    if (rotary_dims < 0 || rotary_dims % 2 != 0 || rotary_dims > kv->head_dim)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "%d rotary dimensions of %d: expected an even number of at most as many",
                       rotary_dims, kv->head_dim);
    if (kv->head_dim > most || kv->v_head_dim > most)
        return mq_fail(err, MQ_E_UNSUPPORTED, "heads of %d and %d dimensions: expected at most %d",
                       kv->head_dim, kv->v_head_dim, most);
    return MQ_OK;
}

int64_t attention_bytes(int n_heads, int v_head_dim, int window, int64_t max_context)
{
    int64_t v_dim4 = (v_head_dim + 3) / 4 * 4;
    if (is_direct(window))
        return 0;
    return n_parts(window, max_context) * n_heads * ROWS * (v_dim4 + 2) * (int64_t)sizeof(float);
}

mq_status attention(mq_dev *dev, const mq_decode_attention *a, mq_err *err)
{
    attention_job job = job_of(a);
    bool fixed = is_fixed(a) && dev->can_start_early; /* and has as much shared memory */
    int64_t groups = (int64_t)a->kv.n_kv_heads * ROWS * job.row_groups * job.n_strips;
    if (is_direct(a->window) && fixed)
        return fixed_window(dev, &job, err);
    if (is_direct(a->window))
        return launch_dependent(dev, err, "step attention", step_window_kernel,
                                dim3((unsigned)(groups + a->kv.n_kv_heads)), THREADS,
                                (size_t)room_bytes(job.n_pairs, job.n_steps), job);
    job.n_parts = n_parts(a->window, a->max_context);
    job.value = (float *)a->workspace;
    job.state = (float2 *)(job.value + job.n_parts * a->n_heads * ROWS * job.v_dim4);
    int blocks = (int)n_blocks(job.n_parts * groups, 1, dev->n_processors);
    if (fixed)
        MQ_TRY(fixed_chunks(dev, &job, blocks, err));
    else
        MQ_TRY(launch_dependent(dev, err, "step attention", step_chunk_kernel,
                                dim3((unsigned)blocks), THREADS,
                                (size_t)room_bytes(job.n_pairs, job.n_steps), job));
    return launch_dependent(dev, err, "step attention: join", join_kernel,
                            dim3((unsigned)(a->n_heads * ROWS)), JOIN_WARPS * WARP, 0, job);
}

} // namespace decode
} // namespace mq_cuda
