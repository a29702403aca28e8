/* Attention over the ring cache for many rows: 16 (row, head) pairs of one KV head a block, 32 keys at a time.
 *
 * Pairs of a KV head are numbered row * share + head, so that heads that share keys and rows that stand side by side
 * read them once.  Tiles of keys start at multiples of 32 of the position, ascending.  A warp has four pairs, a lane one
 * key for the scores and every 32nd dimension for the values; running maximum and sum as in online softmax (Milakov and
 * Gimelshein, arXiv 1805.02867).  A tile of which a pair sees nothing leaves it as it is, and keys it does not see are
 * passed over, so its bits depend on its own query and keys alone. */
#include "kernels/cuda/attention.cuh"

namespace mq_cuda {

enum { WARPS = 4, THREADS = WARPS * WARP, PER_WARP = 4, PAIRS = WARPS * PER_WARP, KEYS = 32, STORE_THREADS = 256 };

static __global__ void kv_store_kernel(mq_kv kv, const float *k, const float *v, float v_scale, int64_t first, int64_t n,
                                       int64_t pos0)
{
    int64_t k_cols = (int64_t)kv.n_kv_heads * kv.head_dim, v_cols = (int64_t)kv.n_kv_heads * kv.v_head_dim;
    for (int64_t i = first + blockIdx.x; i < n; i += gridDim.x) {
        int64_t slot = (pos0 + i) % kv.n_slots;
        for (int64_t c = threadIdx.x; c < k_cols; c += blockDim.x)
            kv.k[slot * k_cols + c] = k[i * k_cols + c];
        for (int64_t c = threadIdx.x; c < v_cols; c += blockDim.x)
            kv.v[slot * v_cols + c] = v[i * v_cols + c] * v_scale;
    }
}

mq_status kv_store(mq_dev *dev, const mq_kv *kv, const float *k, const float *v, float v_scale, int64_t n, int64_t pos0,
                   mq_err *err)
{
    int64_t first = n > kv->n_slots ? n - kv->n_slots : 0; /* earlier rows would be overwritten */
    return launch(dev, err, "kv_store", kv_store_kernel, n_blocks(n - first, 1), STORE_THREADS, 0, *kv, k, v, v_scale,
                  first, n, pos0);
}

/* Keys or values of positions base .. base + 31 into tile [32][stride]; zeros outside first .. last - 1. */
static __device__ __forceinline__ void load_tile(float *tile, int stride, const float *from, const mq_kv &kv, int width,
                                                 int64_t base, int64_t first, int64_t last)
{
    int lane = (int)(threadIdx.x % WARP);
    for (int j = (int)(threadIdx.x / WARP); j < KEYS; j += WARPS) {
        int64_t pos = base + j;
        bool is_there = pos >= first && pos < last;
        const float *row = from + (pos % kv.n_slots * kv.n_kv_heads + blockIdx.y) * width;
        for (int d = lane; d < width; d += WARP)
            tile[j * stride + d] = is_there ? row[d] : 0.0f;
    }
}

static __device__ __forceinline__ int inside_tile(int64_t key)
{
    return key < 0 ? 0 : key < KEYS ? (int)key : (int)KEYS;
}

/* What a warp knows of one of its pairs. */
struct pair_state {
    int64_t lo, hi; /* visible positions lo .. hi - 1 */
    float max, sum;
};

/* The score of this lane's key becomes its weight; returns what the pair's output so far shrinks by. */
static __device__ __forceinline__ float take_scores(pair_state *s, float *weights, float score, int64_t base, int lane)
{
    bool is_visible = base + lane >= s->lo && base + lane < s->hi;
    float max = is_visible ? score : -INFINITY;
    for (int step = 16; step; step /= 2)
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, step));
    max = fmaxf(max, s->max);
    float p = is_visible ? expf(score - max) : 0.0f, shrink = expf(s->max - max);
    s->sum = s->sum * shrink + warp_sum(p);
    s->max = max;
    weights[lane] = p;
    return shrink;
}

static __global__ void attention_kernel(attention_job job)
{
    MQ_SHARED_DYNAMIC(room, float);
    const mq_kv &kv = job.kv;
    int dim = kv.head_dim, v_dim = kv.v_head_dim, share = job.n_heads / kv.n_kv_heads, stride = dim | 1;
    float *q = room, *out = q + PAIRS * dim, *weights = out + PAIRS * v_dim, *tile = weights + PAIRS * KEYS;
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP);
    int64_t pair0 = (int64_t)blockIdx.x * PAIRS, n_pairs = job.n * share;

    for (int i = (int)threadIdx.x; i < PAIRS * dim; i += THREADS) {
        int64_t pair = pair0 + i / dim, head = (int64_t)blockIdx.y * share + pair % share;
        q[i] = pair < n_pairs ? job.q[(pair / share * job.n_heads + head) * dim + i % dim] : 0.0f;
    }
    for (int i = (int)threadIdx.x; i < PAIRS * v_dim; i += THREADS)
        out[i] = 0.0f;

    pair_state state[PER_WARP];
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        int64_t pair = pair0 + warp * PER_WARP + i;
        bool is_there = pair < n_pairs;
        pair_state *s = &state[i];
        s->hi = is_there ? job.pos0 + pair / share + 1 : 0;
        s->lo = job.window > 0 && s->hi > job.window ? s->hi - job.window : 0;
        if (is_there && job.is_block)
            s->hi = job.pos0 + job.n;
        s->max = is_there && job.sink ? job.sink[blockIdx.y * share + pair % share] : -INFINITY;
        s->sum = job.sink ? 1.0f : 0.0f;
    }
    int64_t last_pair = (pair0 + PAIRS < n_pairs ? pair0 + PAIRS : n_pairs) - 1;
    int64_t first = job.pos0 + pair0 / share + 1, last = job.pos0 + (job.is_block ? job.n : last_pair / share + 1);
    first = job.window > 0 && first > job.window ? first - job.window : 0;

    for (int64_t base = first / KEYS * KEYS; base < last; base += KEYS) {
        /* scores: lane = key */
        float score[PER_WARP] = {}, shrink[PER_WARP];
        __syncthreads();
        load_tile(tile, stride, kv.k, kv, dim, base, first, last);
        __syncthreads();
        for (int d = 0; d < dim; d++) {
            float k = tile[lane * stride + d];
#pragma unroll
            for (int i = 0; i < PER_WARP; i++)
                score[i] = fmaf(q[(warp * PER_WARP + i) * dim + d], k, score[i]);
        }
        int a[PER_WARP], b[PER_WARP]; /* visible keys of the tile */
#pragma unroll
        for (int i = 0; i < PER_WARP; i++) {
            a[i] = inside_tile(state[i].lo - base);
            b[i] = inside_tile(state[i].hi - base);
            if (a[i] < b[i]) /* the same in the whole warp */
                shrink[i] = take_scores(&state[i], weights + (warp * PER_WARP + i) * KEYS, score[i] * job.scale, base, lane);
        }
        /* values: lane = dimension */
        __syncthreads();
        load_tile(tile, v_dim, kv.v, kv, v_dim, base, first, last);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PER_WARP; i++) {
            const float *p = weights + (warp * PER_WARP + i) * KEYS;
            float *o = out + (warp * PER_WARP + i) * v_dim;
            for (int d = lane; a[i] < b[i] && d < v_dim; d += WARP) {
                float acc = o[d] * shrink[i];
                for (int j = a[i]; j < b[i]; j++)
                    acc = fmaf(p[j], tile[j * v_dim + d], acc);
                o[d] = acc;
            }
        }
    }

#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        int64_t pair = pair0 + warp * PER_WARP + i, head = (int64_t)blockIdx.y * share + pair % share;
        const float *o = out + (warp * PER_WARP + i) * v_dim;
        for (int d = lane; pair < n_pairs && d < v_dim; d += WARP)
            job.out[(pair / share * job.n_heads + head) * v_dim + d] = o[d] / state[i].sum;
    }
}

static mq_status attend(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                        int window, bool is_block, int64_t n, int64_t pos0, mq_err *err)
{
    attention_job job = {out,  q, sink, *kv, n_heads, window, is_block, n, pos0, (float)(1.0 / sqrt((double)kv->head_dim))};
    if (dev->precision == MQ_PRECISION_BF16 && attention_tensor_fits(kv))
        return attention_tensor(dev, &job, err);
    int share = n_heads / kv->n_kv_heads, stride = kv->head_dim | 1;
    int tile_floats = KEYS * (stride > kv->v_head_dim ? stride : kv->v_head_dim);
    size_t floats = (size_t)(PAIRS * (kv->head_dim + kv->v_head_dim + KEYS) + tile_floats);
    return launch(dev, err, "attention", attention_kernel,
                  dim3(n_blocks(n * share, PAIRS, INT32_MAX), (unsigned)kv->n_kv_heads), THREADS, floats * sizeof *q, job);
}

mq_status attention(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                    int window, int64_t n, int64_t pos0, mq_err *err)
{
    return attend(dev, out, q, kv, n_heads, sink, window, false, n, pos0, err);
}

mq_status attention_block(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                          int window, int64_t n, int64_t pos0, mq_err *err)
{
    return attend(dev, out, q, kv, n_heads, sink, window, true, n, pos0, err);
}

} // namespace mq_cuda
