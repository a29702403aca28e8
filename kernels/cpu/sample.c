/* Choosing tokens: Gumbel-max over the ids that top-k and top-p keep.
 *
 * The noise of (seed, position, id) is a counter-based hash, so a draw depends on nothing else: not on batching, the
 * order of the loop, threads, or which other ids were kept.  Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011): key = seed, counter = (id / 2, 0, position low, position high); of its four words the even id
 * takes the first two, the odd id the others, as one 64-bit number whose top 53 bits make u in (0, 1);
 * noise = -log(-log u).
 *
 * A whole vocabulary is not sorted and hardly ever takes a logarithm: an id is dropped as soon as a bound on its noise cannot reach
 * the best score so far. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu/cpu.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

typedef struct drawn {
    double score;
    int32_t id;
} drawn;

enum { CHUNK = 8192 }; /* ids a thread takes at a time where nothing is filtered */
static const double MAX_NOISE = 37.5; /* -log(-log(1 - 2^-54)) = 37.43 */

static void philox(uint32_t c[4], uint64_t seed)
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

/* The 64 random bits of both ids of a pair. */
static void pair_bits(uint64_t bits[2], uint64_t seed, int64_t pos, int64_t pair)
{
    uint32_t c[4] = {(uint32_t)pair, (uint32_t)((uint64_t)pair >> 32), (uint32_t)pos, (uint32_t)((uint64_t)pos >> 32)};
    philox(c, seed);
    bits[0] = c[0] | (uint64_t)c[1] << 32;
    bits[1] = c[2] | (uint64_t)c[3] << 32;
}

static bool beats(drawn a, drawn b)
{
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

/* Offer an id with its random bits. */
static void offer(drawn *best, double scaled, int32_t id, uint64_t bits)
{
    /* noise <= -log(1 - u), and 1 - u >= 2^-(z + 1) with z leading ones in bits (z is at most 53 in effect) */
    int z = bits == UINT64_MAX ? 64 : __builtin_clzll(~bits);
    if (scaled + 0.69314719 * (double)(z + 1) < best->score)
        return;
    double u = ((double)(bits >> 11) + 0.5) * 0x1p-53;
    drawn d = {scaled - log(-log(u)), id};
    if (beats(d, *best))
        *best = d;
}

static drawn draw_listed(const candidate *c, int64_t n, double temperature, uint64_t seed, int64_t pos)
{
    drawn best = {-INFINITY, c[0].id};
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits[2];
        double scaled = (double)c[i].logit / temperature;
        if (scaled + MAX_NOISE < best.score)
            continue;
        pair_bits(bits, seed, pos, c[i].id / 2);
        offer(&best, scaled, c[i].id, bits[c[i].id & 1]);
    }
    return best;
}

/* Ids from .. to - 1 (from even) against a score known to be reached. */
static drawn draw_range(const float *logits, int64_t from, int64_t to, double temperature, uint64_t seed, int64_t pos,
                        drawn best)
{
    for (int64_t id = from; id < to; id += 2) {
        uint64_t bits[2];
        double reach = best.score - MAX_NOISE, s0 = (double)logits[id] / temperature, s1 = -INFINITY;
        if (id + 1 < to)
            s1 = (double)logits[id + 1] / temperature;
        if (!(s0 >= reach) && !(s1 >= reach))
            continue;
        pair_bits(bits, seed, pos, id / 2);
        if (s0 >= reach)
            offer(&best, s0, (int32_t)id, bits[0]);
        if (s1 >= reach && id + 1 < to)
            offer(&best, s1, (int32_t)(id + 1), bits[1]);
    }
    return best;
}

static int32_t argmax(const mq_vector_ops *v, const float *x, int64_t n)
{
    float max = v->max(x, n);
    for (int64_t i = 0; i < n; i++)
        if (x[i] == max)
            return (int32_t)i;
    return 0;
}

static int32_t draw_all(mq_dev *dev, const float *logits, double temperature, uint64_t seed, int64_t pos, int64_t vocab)
{
    candidate top = {0.0f, argmax(dev->v, logits, vocab)};
    top.logit = logits[top.id];
    drawn first = draw_listed(&top, 1, temperature, seed, pos), best = first;
    int64_t n_chunks = (vocab + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, 10.0 * (double)vocab))
    for (int64_t c = 0; c < n_chunks; c++) {
        int64_t to = (c + 1) * CHUNK < vocab ? (c + 1) * CHUNK : vocab;
        drawn d = draw_range(logits, c * CHUNK, to, temperature, seed, pos, first);
#pragma omp critical(mq_sample_best)
        if (beats(d, best))
            best = d;
    }
    return best.id;
}

/* ---- filters ---- */

static bool before(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int compare(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return before(*x, *y) ? -1 : before(*y, *x);
}

/* Heap whose root is the last of those kept. */
static void sift_down(candidate *heap, int64_t n, int64_t at)
{
    candidate moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(heap[child], heap[child + 1]))
            child++;
        if (!before(moved, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* The first m of the vocabulary by logit descending, then id; sorted.  NaN counts as minus infinity. */
static void select_top(candidate *top, int64_t m, const float *logits, int64_t vocab)
{
    for (int64_t id = 0; id < vocab; id++) {
        candidate c = {logits[id] == logits[id] ? logits[id] : -INFINITY, (int32_t)id};
        if (id < m)
            top[id] = c;
        if (id == m - 1)
            for (int64_t k = m / 2; k-- > 0;)
                sift_down(top, m, k);
        if (id >= m && before(c, top[0])) {
            top[0] = c;
            sift_down(top, m, 0);
        }
    }
    qsort(top, (size_t)m, sizeof *top, compare);
}

static double weight(float logit, float max, double temperature)
{
    return logit == logit ? exp(((double)logit - (double)max) / temperature) : 0.0;
}

/* How many of the sorted top [n] bring sum from before to goal; all of them when they do not. */
static int64_t reach(const candidate *top, int64_t n, float max, double temperature, double before_them, double goal)
{
    for (int64_t k = 0; k < n; k++) {
        before_them += weight(top[k].logit, max, temperature);
        if (before_them >= goal)
            return k + 1;
    }
    return n;
}

static int64_t keep_top_k(candidate *top, const float *logits, const mq_sampling *s, int64_t vocab)
{
    double t = (double)s->temperature, total = 0.0;
    select_top(top, s->top_k, logits, vocab);
    if (s->top_p >= 1.0f)
        return s->top_k;
    for (int64_t i = 0; i < s->top_k; i++)
        total += weight(top[i].logit, top[0].logit, t);
    return reach(top, s->top_k, top[0].logit, t, 0.0, (double)s->top_p * total);
}

enum { BINS = 1024, BINS_A_NAT = 16 };

static int bin_of(float logit, float max, double temperature)
{
    double d = ((double)max - (double)logit) / temperature * (int)BINS_A_NAT;
    return d < BINS - 1 ? (int)d : BINS - 1; /* NaN too goes last */
}

/* Bins of weight, largest first: those before the bin in which the goal is reached are kept whole, that one is sorted. */
static int64_t keep_top_p(const mq_vector_ops *v, candidate *top, const float *logits, const mq_sampling *s, int64_t vocab)
{
    double t = (double)s->temperature, mass[BINS] = {0.0}, total = 0.0, sum = 0.0;
    float max = v->max(logits, vocab);
    int last = 0;
    for (int64_t id = 0; id < vocab; id++)
        mass[bin_of(logits[id], max, t)] += weight(logits[id], max, t);
    for (int b = 0; b < BINS; b++)
        total += mass[b];
    for (; last < BINS - 1 && sum + mass[last] < (double)s->top_p * total; last++)
        sum += mass[last];
    int64_t n_whole = 0, n_last = 0;
    for (int64_t id = 0; id < vocab; id++)
        n_whole += bin_of(logits[id], max, t) < last;
    for (int64_t id = 0, at = 0; id < vocab; id++) {
        int bin = bin_of(logits[id], max, t);
        candidate c = {logits[id] == logits[id] ? logits[id] : -INFINITY, (int32_t)id};
        if (bin < last)
            top[at++] = c;
        else if (bin == last)
            top[n_whole + n_last++] = c;
    }
    qsort(top + n_whole, (size_t)n_last, sizeof *top, compare);
    return n_whole + reach(top + n_whole, n_last, max, t, sum, (double)s->top_p * total);
}

/* top [vocab]: the kept ids in any order; returns their number, at least 1. */
static int64_t keep(const mq_vector_ops *v, candidate *top, const float *logits, const mq_sampling *s, int64_t vocab)
{
    if (s->top_k > 0 && s->top_k < vocab)
        return keep_top_k(top, logits, s, vocab);
    return keep_top_p(v, top, logits, s, vocab);
}

mq_status mq_cpu_sample(mq_dev *dev, int32_t *tokens, const float *logits, const mq_sampling *s, int64_t n,
                        int64_t vocab, int64_t pos0, mq_err *err)
{
    bool filtered = (s->top_k > 0 && s->top_k < vocab) || s->top_p < 1.0f;
    void *room = NULL;
    if (s->temperature > 0.0f && filtered)
        MQ_TRY(mq_cpu_workspace(dev, MQ_WS_SAMPLE, vocab * (int64_t)sizeof(candidate), &room, err));
    for (int64_t i = 0; i < n; i++) {
        const float *row = logits + i * vocab;
        if (!(s->temperature > 0.0f)) {
            tokens[i] = argmax(dev->v, row, vocab);
        } else if (filtered) {
            int64_t kept = keep(dev->v, room, row, s, vocab);
            tokens[i] = draw_listed(room, kept, (double)s->temperature, s->seed, pos0 + i).id;
        } else {
            tokens[i] = draw_all(dev, row, (double)s->temperature, s->seed, pos0 + i, vocab);
        }
    }
    return MQ_OK;
}
