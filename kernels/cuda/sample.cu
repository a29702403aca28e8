/* Choosing tokens: Gumbel-max over the ids that top-k and top-p keep, a block a row.
 *
 * The noise is that of kernels/cpu/sample.c bit for bit: Philox4x32-10 with key = seed and counter = (id / 2, position);
 * the even id of a pair takes the first two words, the odd one the others.
 *
 * What is kept: every id has a 64-bit key, logit descending, then id ascending.  top-k is the key at which the count
 * reaches k, top-p the key at which the probability mass of what top-k kept reaches its share of their sum: both are
 * found by eight passes over the row, each a histogram of one more byte of the key.  Mass is added in integers
 * (at least 43 bits after the point), so that its sum has no order. */
#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { THREADS = 512, BINS = 256 };
typedef unsigned long long mass; /* the type of atomicAdd */

struct drawn {
    double score;
    int32_t id;
};

struct sample_job {
    int32_t *tokens;
    const float *logits;
    int64_t vocab, pos0;
    double temperature, top_p, unit; /* unit: the mass of probability 1 relative to the best id's */
    int top_k;                       /* 0: all */
    uint64_t seed;
};

static __device__ void philox(uint32_t c[4], uint64_t seed)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
        uint32_t c1 = c[1], c3 = c[3];
        c[0] = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c[1] = (uint32_t)p1;
        c[2] = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static __device__ double noise_of(int64_t id, int64_t pos, uint64_t seed)
{
    int64_t pair = id / 2;
    uint32_t c[4] = {(uint32_t)pair, (uint32_t)((uint64_t)pair >> 32), (uint32_t)pos, (uint32_t)((uint64_t)pos >> 32)};
    philox(c, seed);
    uint64_t bits = id % 2 ? c[2] | (uint64_t)c[3] << 32 : c[0] | (uint64_t)c[1] << 32;
    double u = ((double)(bits >> 11) + 0.5) * 0x1p-53;
    return -log(-log(u));
}

static __device__ __forceinline__ bool beats(drawn a, drawn b)
{
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

static __device__ __forceinline__ drawn warp_drawn(drawn a)
{
    for (int step = 16; step; step /= 2) {
        drawn b = {__shfl_xor_sync(ALL_LANES, a.score, step), __shfl_xor_sync(ALL_LANES, a.id, step)};
        a = beats(b, a) ? b : a;
    }
    return a;
}

static __device__ drawn block_drawn(drawn a)
{
    MQ_SHARED(parts, drawn[WARP]);
    unsigned lane = threadIdx.x % WARP;
    a = warp_drawn(a);
    if (lane == 0)
        parts[threadIdx.x / WARP] = a;
    __syncthreads();
    return warp_drawn(parts[lane < THREADS / WARP ? lane : 0]);
}

/* Ascending keys: logits descend, ids ascend; NaN counts as minus infinity, and the two zeros are equal. */
static __device__ __forceinline__ uint64_t key_of(float logit, int64_t id)
{
    uint32_t u = mq_f32_bits(logit == logit ? logit + 0.0f : -INFINITY);
    uint32_t ascending = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (uint64_t)(uint32_t)~ascending << 32 | (uint64_t)id;
}

/* Mass of an id that is kept; by_count: 1 each. */
static __device__ __forceinline__ mass mass_of(const sample_job &job, float logit, float max, bool by_count)
{
    if (by_count)
        return 1;
    return logit == logit ? (mass)(exp(((double)logit - (double)max) / job.temperature) * job.unit + 0.5) : 0;
}

/* The least key at which the mass of keys up to it, none of them above within, reaches goal (at least 1, at most
 * their whole mass). */
static __device__ uint64_t find_cut(const sample_job &job, const float *row, float max, uint64_t within, mass goal,
                                    bool by_count)
{
    MQ_SHARED(bins, mass[BINS]);
    MQ_SHARED(found, int);
    MQ_SHARED(rest, mass);
    uint64_t prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int b = (int)threadIdx.x; b < BINS; b += THREADS)
            bins[b] = 0;
        __syncthreads();
        for (int64_t id = threadIdx.x; id < job.vocab; id += THREADS) {
            uint64_t key = key_of(row[id], id);
            if (key <= within && (shift == 56 || key >> (shift + 8) == prefix))
                atomicAdd(&bins[key >> shift & (BINS - 1)], mass_of(job, row[id], max, by_count));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int b = 0;
            rest = goal;
            for (; b < BINS - 1 && bins[b] < rest; b++)
                rest -= bins[b];
            found = b;
        }
        __syncthreads();
        prefix = prefix << 8 | (uint64_t)found;
        goal = rest;
    }
    return prefix;
}

static __device__ uint64_t find_kept(const sample_job &job, const float *row, float max)
{
    uint64_t cut = UINT64_MAX;
    if (job.top_k > 0)
        cut = find_cut(job, row, max, cut, (mass)job.top_k, true);
    if (job.top_p >= 1.0)
        return cut;
    mass total = 0;
    for (int64_t id = threadIdx.x; id < job.vocab; id += THREADS)
        if (key_of(row[id], id) <= cut)
            total += mass_of(job, row[id], max, false);
    total = block_sum(total);
    mass goal = (mass)ceil(job.top_p * (double)total);
    goal = goal < 1 ? 1 : goal > total ? total : goal;
    return find_cut(job, row, max, cut, goal, false);
}

static __global__ void sample_kernel(sample_job job)
{
    const double MAX_NOISE = 37.5; /* -log(-log(1 - 2^-54)) = 37.43 */
    const float *row = job.logits + blockIdx.x * job.vocab;
    int64_t pos = job.pos0 + blockIdx.x;
    ranked top = {-INFINITY, INT32_MAX};
    for (int64_t id = threadIdx.x; id < job.vocab; id += THREADS) {
        ranked r = {row[id], (int32_t)id};
        top = ranks_before(r, top) ? r : top;
    }
    top = block_best(top);
    if (top.id == INT32_MAX)
        top.id = 0; /* NaN alone */
    if (!(job.temperature > 0.0)) {
        if (threadIdx.x == 0)
            job.tokens[blockIdx.x] = top.id;
        return;
    }
    bool is_filtered = job.top_k > 0 || job.top_p < 1.0;
    uint64_t cut = is_filtered ? find_kept(job, row, top.value) : UINT64_MAX;
    drawn best = {(double)top.value / job.temperature + noise_of(top.id, pos, job.seed), top.id};
    double reach = best.score - MAX_NOISE;
    for (int64_t id = threadIdx.x; id < job.vocab; id += THREADS) {
        double scaled = (double)row[id] / job.temperature;
        if (!(scaled >= reach) || key_of(row[id], id) > cut)
            continue;
        drawn d = {scaled + noise_of(id, pos, job.seed), (int32_t)id};
        best = beats(d, best) ? d : best;
    }
    best = block_drawn(best);
    if (threadIdx.x == 0)
        job.tokens[blockIdx.x] = best.id;
}

mq_status sample(mq_dev *dev, int32_t *tokens, const float *logits, const mq_sampling *s, int64_t n, int64_t vocab,
                 int64_t pos0, mq_err *err)
{
    sample_job job = {tokens, logits, vocab, pos0, (double)s->temperature, (double)s->top_p, 1.0, 0, s->seed};
    int bits = 0;
    while ((int64_t)1 << bits < vocab)
        bits++;
    job.unit = ldexp(1.0, 62 - bits); /* the sum of vocab masses stays below 2^63 */
    job.top_k = s->top_k > 0 && s->top_k < vocab ? s->top_k : 0;
    return launch(dev, err, "sample", sample_kernel, n_blocks(n, 1, INT32_MAX), THREADS, 0, job);
}

} // namespace mq_cuda
