/* Attention of many rows on the tensor cores: 128 (row, head) pairs of one KV head a block, 16 a warp, 32 keys at a time.
 *
 * A first kernel splits keys and values into BF16 high and low parts and lays out an image of what a block's shared memory
 * shall hold for 32 keys, so that the second copies it in order.  Both products share one numbering of keys: column 2 t + i of
 * the scores' tile j is key 8 t + 2 j + i, so a lane's weights are A fragments of the second product as they stand, and the
 * keys of one lane are 16 bytes of a dimension's row of values.  Dimensions are permuted alike: lane t has 8 of 32 in order.
 * Odd keys have the halves of each 128 bytes swapped: a quarter warp then reads all banks once.
 *
 * Running maximum and sum as in online softmax (Milakov and Gimelshein, arXiv 1805.02867), in powers of two.  Tiles start at
 * multiples of 32 of the position and segments, between which a pair's state goes through memory, at multiples of SEGMENT.  A
 * tile of which a pair sees nothing leaves its state as it is. */
#include "kernels/cuda/attention.cuh"

namespace mq_cuda {

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    WARP_PAIRS = 16,
    PAIRS = WARPS * WARP_PAIRS,
    KEYS = 32,
    SCORE_TILES = KEYS / 8,
    STAGES = 2,
    SEGMENT = 8192, /* positions whose image is in memory at a time */
    PIECE = 8       /* BF16 values of 16 bytes */
};

/* Bytes of the image of 32 keys: keys high, low [32][DIM], values high, low [V_DIM][32].  DIM is a multiple of 64, V_DIM of 8. */
template <int DIM, int V_DIM> struct image {
    static const int KEY_BYTES = KEYS * DIM * 2, VALUE_BYTES = V_DIM * KEYS * 2, VALUES_AT = 2 * KEY_BYTES;
    static const int BYTES = VALUES_AT + 2 * VALUE_BYTES;
    static const int SHARED = STAGES * BYTES + WARPS * DIM / 16 * WARP * 16; /* and the queries' low parts */
};

/* Tiles tile0 .. of the positions of one segment; positions first .. last - 1 are there. */
struct segment {
    uint8_t *images; /* [kv heads, n_tiles] */
    float2 *state;   /* [n, heads] maximum and sum between segments */
    int64_t tile0, n_tiles, first, last;
    bool is_first, is_last;
};

/* high + low = a, b but for 2^-17 of them; a in the low halves. */
static __device__ __forceinline__ void split_pair(uint32_t *high, uint32_t *low, float a, float b)
{
    uint32_t h = bf16x2_of_floats(a, b);
    *high = h;
    *low = bf16x2_of_floats(a - __uint_as_float(h << 16), b - __uint_as_float(h & 0xffff0000u));
}

static __device__ __forceinline__ void store_split(uint8_t *high, uint8_t *low, const float v[PIECE])
{
    uint4 h, l;
    split_pair(&h.x, &l.x, v[0], v[1]);
    split_pair(&h.y, &l.y, v[2], v[3]);
    split_pair(&h.z, &l.z, v[4], v[5]);
    split_pair(&h.w, &l.w, v[6], v[7]);
    *(uint4 *)high = h;
    *(uint4 *)low = l;
}

/* A block the image of one tile of one KV head; zeros where there is no position or dimension. */
template <int DIM, int V_DIM> static __global__ void image_kernel(mq_kv kv, segment s)
{
    typedef image<DIM, V_DIM> layout;
    const int KEY_PIECES = DIM / PIECE, VALUE_PIECES = KEYS / PIECE;
    uint8_t *to = s.images + ((int64_t)blockIdx.y * s.n_tiles + blockIdx.x) * layout::BYTES;
    int64_t base = (s.tile0 + blockIdx.x) * KEYS, heads = kv.n_kv_heads;
    for (int i = (int)threadIdx.x; i < KEYS * KEY_PIECES; i += THREADS) {
        int key = i / KEY_PIECES, piece = i % KEY_PIECES;
        int64_t pos = base + key;
        const float *row = kv.k + (pos % kv.n_slots * heads + blockIdx.y) * kv.head_dim;
        float v[PIECE];
        for (int d = 0; d < PIECE; d++)
            v[d] = pos >= s.first && pos < s.last && piece * PIECE + d < kv.head_dim ? row[piece * PIECE + d] : 0.0f;
        uint8_t *at = to + key * DIM * 2 + (piece ^ key % 2 * 4) * 16;
        store_split(at, at + layout::KEY_BYTES, v);
    }
    for (int i = (int)threadIdx.x; i < V_DIM * VALUE_PIECES; i += THREADS) {
        int d = i % V_DIM, piece = i / V_DIM;
        float v[PIECE];
        for (int j = 0; j < PIECE; j++) {
            int64_t pos = base + piece * PIECE + j;
            bool is_there = pos >= s.first && pos < s.last && d < kv.v_head_dim;
            v[j] = is_there ? kv.v[(pos % kv.n_slots * heads + blockIdx.y) * kv.v_head_dim + d] : 0.0f;
        }
        uint8_t *at = to + layout::VALUES_AT + d * KEYS * 2 + piece * 16;
        store_split(at, at + layout::VALUE_BYTES, v);
    }
}

/* What a lane knows of its two pairs, g and g + 8 of the warp's; positions from the segment's start. */
template <int DIM, int V_DIM> struct lane_state {
    uint32_t q[DIM / 16][4]; /* high parts: A fragments */
    uint4 *q_low;            /* the same of the low ones [DIM / 16], WARP apart */
    float out[V_DIM / 8][4];
    int lo[2], hi[2]; /* visible: lo .. hi - 1 */
    float max[2], sum[2]; /* sum: of this lane's keys */
};

template <int DIM, int V_DIM>
static __device__ __forceinline__ void load_queries(lane_state<DIM, V_DIM> &s, const attention_job &job, const int32_t row[2], int t)
{
    const float to_powers_of_2 = 1.44269504088896340736f;
    float factor = job.scale * to_powers_of_2;
#pragma unroll
    for (int m = 0; m < DIM / 16; m++) {
        uint32_t low[4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int d = m / 2 * 32 + t * 8 + m % 2 * 4 + i;
                v[i] = row[r] >= 0 && d < job.kv.head_dim ? job.q[(int64_t)row[r] * job.kv.head_dim + d] * factor : 0.0f;
            }
            split_pair(&s.q[m][r], &low[r], v[0], v[1]);
            split_pair(&s.q[m][2 + r], &low[2 + r], v[2], v[3]);
        }
        uint4 all = {low[0], low[1], low[2], low[3]};
        s.q_low[m * WARP] = all;
    }
}

/* score [j] = queries times the keys of tile j. */
template <int DIM, int V_DIM>
static __device__ __forceinline__ void make_scores(float score[SCORE_TILES][4], const lane_state<DIM, V_DIM> &s, const uint8_t *keys,
                                                   int g, int t)
{
#pragma unroll
    for (int c = 0; c < DIM / 32; c++) {
        uint4 high[SCORE_TILES], low[SCORE_TILES];
#pragma unroll
        for (int j = 0; j < SCORE_TILES; j++) {
            const uint8_t *at = keys + (g / 2 * 8 + j * 2 + g % 2) * DIM * 2 + ((4 * c + t) ^ g % 2 * 4) * 16;
            high[j] = *(const uint4 *)at;
            low[j] = *(const uint4 *)(at + image<DIM, V_DIM>::KEY_BYTES);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint4 rest = s.q_low[(2 * c + i) * WARP];
            const uint32_t q_low[4] = {rest.x, rest.y, rest.z, rest.w};
#pragma unroll
            for (int product = 0; product < 3; product++)
#pragma unroll
                for (int j = 0; j < SCORE_TILES; j++) {
                    const uint4 &from = product == 1 ? low[j] : high[j];
                    const uint32_t b[2] = {i ? from.z : from.x, i ? from.w : from.y};
                    mma_bf16(score[j], product == 2 ? q_low : s.q[2 * c + i], b);
                }
        }
    }
}

/* Scores become weights; returns in shrink what outputs so far shrink by. */
template <int DIM, int V_DIM>
static __device__ __forceinline__ void take_scores(float score[SCORE_TILES][4], float shrink[2], lane_state<DIM, V_DIM> &s, int key0)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = -INFINITY;
        int lo = s.lo[r] - key0, hi = s.hi[r] - key0; /* key0: this lane's first */
#pragma unroll
        for (int j = 0; j < SCORE_TILES; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &one = score[j][2 * r + i];
                one = 2 * j + i >= lo && 2 * j + i < hi ? one : -INFINITY;
                max = fmaxf(max, one);
            }
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 1));
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));
        max = fmaxf(max, s.max[r]);
        float base = max == -INFINITY ? 0.0f : max, sum = 0.0f; /* nothing seen yet: weights of 0 */
        shrink[r] = exp2f(s.max[r] - base);
#pragma unroll
        for (int j = 0; j < SCORE_TILES; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &one = score[j][2 * r + i];
                one = exp2f(one - base);
                sum += one;
            }
        s.sum[r] = fmaf(s.sum[r], shrink[r], sum);
        s.max[r] = max;
    }
}

template <int DIM, int V_DIM>
static __device__ __forceinline__ void add_values(lane_state<DIM, V_DIM> &s, const float weight[SCORE_TILES][4], const float shrink[2],
                                                  const uint8_t *values, int g, int t)
{
    uint32_t p[2][2][4]; /* high, low of 16 keys each */
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            split_pair(&p[0][k][i], &p[1][k][i], weight[2 * k + i / 2][i % 2 * 2], weight[2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int v = 0; v < V_DIM / 8; v++) {
        const uint8_t *at = values + (v * 8 + g) * KEYS * 2 + t * 16;
        uint4 high = *(const uint4 *)at, low = *(const uint4 *)(at + image<DIM, V_DIM>::VALUE_BYTES);
        const uint32_t b[2][2][2] = {{{high.x, high.y}, {high.z, high.w}}, {{low.x, low.y}, {low.z, low.w}}};
#pragma unroll
        for (int i = 0; i < 4; i++)
            s.out[v][i] *= shrink[i / 2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            mma_bf16(s.out[v], p[0][k], b[0][k]);
            mma_bf16(s.out[v], p[0][k], b[1][k]);
            mma_bf16(s.out[v], p[1][k], b[0][k]);
        }
    }
}

/* The pairs' state at the start of a segment; row [2]: the pairs' rows of [n, heads], or -1. */
template <int DIM, int V_DIM>
static __device__ __forceinline__ void start(lane_state<DIM, V_DIM> &s, const attention_job &job, const segment &seg, const int32_t row[2], int t)
{
    const float to_powers_of_2 = 1.44269504088896340736f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool is_there = row[r] >= 0, has_sink = is_there && job.sink;
        s.max[r] = has_sink ? job.sink[row[r] % job.n_heads] * to_powers_of_2 : -INFINITY;
        s.sum[r] = has_sink && t == 0 ? 1.0f : 0.0f;
        if (is_there && !seg.is_first) {
            float2 before = seg.state[row[r]];
            s.max[r] = before.x;
            s.sum[r] = t == 0 ? before.y : 0.0f;
        }
#pragma unroll
        for (int v = 0; v < V_DIM / 8; v++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int d = v * 8 + 2 * t + i;
                bool resumes = is_there && !seg.is_first && d < job.kv.v_head_dim;
                s.out[v][2 * r + i] = resumes ? job.out[(int64_t)row[r] * job.kv.v_head_dim + d] : 0.0f;
            }
    }
}

template <int DIM, int V_DIM>
static __device__ __forceinline__ void finish(const lane_state<DIM, V_DIM> &s, const attention_job &job, const segment &seg,
                                              const int32_t row[2], int t)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = s.sum[r];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (row[r] < 0)
            continue;
        float2 state = {s.max[r], sum};
        if (!seg.is_last && t == 0)
            seg.state[row[r]] = state;
#pragma unroll
        for (int v = 0; v < V_DIM / 8; v++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int d = v * 8 + 2 * t + i;
                float one = s.out[v][2 * r + i];
                if (d < job.kv.v_head_dim)
                    job.out[(int64_t)row[r] * job.kv.v_head_dim + d] = seg.is_last ? one / sum : one;
            }
    }
}

static __device__ __forceinline__ void load_image(uint8_t *stage, const uint8_t *from, int n_bytes)
{
    for (int at = (int)threadIdx.x * 16; at < n_bytes; at += THREADS * 16)
        copy_async16(stage + at, from + at);
}

/* Positions from the segment's start, within it. */
static __device__ __forceinline__ int inside(const segment &s, int64_t pos)
{
    int64_t at = pos - s.tile0 * KEYS, end = s.n_tiles * KEYS;
    return (int)(at < 0 ? 0 : at < end ? at : end);
}

template <int DIM, int V_DIM> static __global__ void __launch_bounds__(THREADS, 1) attention_tensor_kernel(attention_job job, segment seg)
{
    typedef image<DIM, V_DIM> layout;
    MQ_SHARED_DYNAMIC(ring, uint8_t);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int share = job.n_heads / job.kv.n_kv_heads;
    int64_t n_pairs = job.n * share, block0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * PAIRS; /* those that see most begin */
    int64_t all_hi = job.pos0 + job.n;
    int32_t row[2];
    int block_lo = 0, block_hi = 0, warp_lo = 0, warp_hi = 0;
    lane_state<DIM, V_DIM> s;

    /* what pairs see: of a run of pairs, the first's first and the last's last */
    auto first_of = [&](int64_t pair) {
        int64_t hi = job.pos0 + pair / share + 1;
        return inside(seg, job.window > 0 && hi > job.window ? hi - job.window : 0);
    };
    auto last_of = [&](int64_t pair) { return inside(seg, job.is_block ? all_hi : job.pos0 + pair / share + 1); };
    auto last_pair = [&](int64_t pair0, int count) { return (pair0 + count < n_pairs ? pair0 + count : n_pairs) - 1; };
    int64_t warp0 = block0 + warp * WARP_PAIRS;
    block_lo = first_of(block0);
    block_hi = last_of(last_pair(block0, PAIRS));
    if (warp0 < n_pairs) {
        warp_lo = first_of(warp0);
        warp_hi = last_of(last_pair(warp0, WARP_PAIRS));
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int64_t pair = warp0 + g + 8 * r;
        bool is_there = pair < n_pairs;
        row[r] = is_there ? (int32_t)(pair / share) * job.n_heads + (int32_t)blockIdx.y * share + (int32_t)(pair % share) : -1;
        s.lo[r] = is_there ? first_of(pair) : 0;
        s.hi[r] = is_there ? last_of(pair) : 0;
    }
    s.q_low = (uint4 *)(ring + STAGES * layout::BYTES) + warp * (DIM / 16) * WARP + lane;
    start(s, job, seg, row, t);
    load_queries(s, job, row, t);

    int tile = block_lo / KEYS, end = (block_hi + KEYS - 1) / KEYS, n = end - tile;
    const uint8_t *from = seg.images + ((int64_t)blockIdx.y * seg.n_tiles + tile) * layout::BYTES;
#pragma unroll
    for (int u = 0; u < STAGES - 1; u++) {
        if (u < n)
            load_image(ring + u * layout::BYTES, from + (int64_t)u * layout::BYTES, layout::BYTES);
        copy_async_commit();
    }
    for (int u = 0; u < n; u++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        int next = u + STAGES - 1, key0 = (tile + u) * KEYS;
        if (next < n)
            load_image(ring + next % STAGES * layout::BYTES, from + (int64_t)next * layout::BYTES, layout::BYTES);
        copy_async_commit();
        if (key0 + KEYS <= warp_lo || key0 >= warp_hi)
            continue;
        const uint8_t *stage = ring + u % STAGES * layout::BYTES;
        float score[SCORE_TILES][4] = {}, shrink[2];
        make_scores(score, s, stage, g, t);
        take_scores(score, shrink, s, key0 + 8 * t);
        add_values(s, score, shrink, stage + layout::VALUES_AT, g, t);
    }
    finish(s, job, seg, row, t);
}

template <int DIM, int V_DIM> static mq_status run(mq_dev *dev, const attention_job *job, mq_err *err)
{
    typedef image<DIM, V_DIM> layout;
    int64_t first = first_seen(job), last = job->pos0 + job->n, heads = job->kv.n_kv_heads, share = job->n_heads / heads;
    int64_t begin = first / SEGMENT * SEGMENT, room_tiles = (last < begin + SEGMENT ? last - first / KEYS * KEYS + KEYS - 1 : (int64_t)SEGMENT) / KEYS;
    int64_t image_bytes = heads * room_tiles * layout::BYTES;
    void *room;
    MQ_TRY(workspace(dev, WS_KEYS, image_bytes + job->n * job->n_heads * (int64_t)sizeof(float2), &room, err));
    segment s = {};
    s.images = (uint8_t *)room;
    s.state = (float2 *)((uint8_t *)room + image_bytes);
    s.first = first;
    s.last = last;
    for (; begin < last; begin += SEGMENT) {
        int64_t end = last < begin + SEGMENT ? last : begin + SEGMENT;
        s.is_first = begin <= first;
        s.is_last = end == last;
        s.tile0 = (s.is_first ? first : begin) / KEYS;
        s.n_tiles = (end + KEYS - 1) / KEYS - s.tile0;
        MQ_TRY(launch(dev, err, "attention", image_kernel<DIM, V_DIM>, dim3((unsigned)s.n_tiles, (unsigned)heads), THREADS, 0, job->kv, s));
        MQ_TRY(launch(dev, err, "attention", attention_tensor_kernel<DIM, V_DIM>,
                      dim3(n_blocks(job->n * share, PAIRS, INT32_MAX), (unsigned)heads), THREADS, layout::SHARED, *job, s));
    }
    return MQ_OK;
}

bool attention_tensor_fits(const mq_kv *kv)
{
    return kv->head_dim <= 192 && kv->v_head_dim <= 128;
}

mq_status attention_tensor(mq_dev *dev, const attention_job *job, mq_err *err)
{
    if (job->n == 0)
        return MQ_OK;
    return job->kv.head_dim <= 64 && job->kv.v_head_dim <= 32 ? run<64, 32>(dev, job, err) : run<192, 128>(dev, job, err);
}

} // namespace mq_cuda
