/* The best of a row of logits, and two rows compared, over the whole vocabulary, a block a row: exact log-softmax, exponentials and sums in
 * double.  KL(a || b) = sum p_a (a - b) - lse_a + lse_b. */
#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { THREADS = 512 };

static __device__ ranked first_largest(const float *x, int64_t vocab)
{
    ranked top = {-INFINITY, INT32_MAX};
    for (int64_t id = threadIdx.x; id < vocab; id += THREADS) {
        ranked r = {x[id], (int32_t)id};
        top = ranks_before(r, top) ? r : top;
    }
    top = block_best(top);
    top.id = top.id == INT32_MAX ? 0 : top.id;
    return top;
}

static __global__ void top_kernel(int32_t *tokens, float *prob, const float *logits, int64_t vocab)
{
    const float *x = logits + blockIdx.x * vocab;
    ranked best = first_largest(x, vocab);
    double sum = 0.0;
    for (int64_t k = threadIdx.x; k < vocab; k += THREADS)
        sum += exp((double)x[k] - (double)best.value);
    sum = block_sum(sum);
    if (threadIdx.x)
        return;
    double p = isfinite(best.value) ? 1.0 / sum : 0.0;
    tokens[blockIdx.x] = best.id;
    prob[blockIdx.x] = p > 0.0 && p <= 1.0 ? (float)p : 0.0f; /* NaN logits may make the sum anything */
}

mq_status top(mq_dev *dev, int32_t *tokens, float *prob, const float *logits, int64_t n, int64_t vocab, mq_err *err)
{
    return launch(dev, err, "top", top_kernel, n_blocks(n, 1, INT32_MAX), THREADS, 0, tokens, prob, logits, vocab);
}

static __global__ void logit_stats_kernel(mq_logit_stats *stats, const float *all_a, const float *all_b,
                                          const int32_t *targets, int64_t vocab)
{
    const float *a = all_a + blockIdx.x * vocab, *b = all_b ? all_b + blockIdx.x * vocab : NULL;
    int32_t target = targets[blockIdx.x];
    ranked top_a = first_largest(a, vocab), top_b = {0.0f, 0};
    double sum_a = 0.0, sum_b = 0.0, cross = 0.0;
    if (b)
        top_b = first_largest(b, vocab);
    for (int64_t k = threadIdx.x; k < vocab; k += THREADS) {
        double e = exp((double)a[k] - (double)top_a.value);
        sum_a += e;
        if (b) {
            cross += e * ((double)a[k] - (double)b[k]);
            sum_b += exp((double)b[k] - (double)top_b.value);
        }
    }
    sum_a = block_sum(sum_a);
    sum_b = block_sum(sum_b);
    cross = block_sum(cross);
    if (threadIdx.x)
        return;
    double lse_a = (double)top_a.value + log(sum_a), lse_b = (double)top_b.value + log(sum_b);
    mq_logit_stats *s = &stats[blockIdx.x];
    s->nll_a = lse_a - (double)a[target];
    s->top_a = top_a.id;
    s->nll_b = b ? lse_b - (double)b[target] : 0.0;
    s->kl = b ? cross / sum_a - lse_a + lse_b : 0.0;
    s->top_b = top_b.id;
}

mq_status logit_stats(mq_dev *dev, mq_logit_stats *stats, const float *a, const float *b, const int32_t *targets,
                      int64_t n, int64_t vocab, mq_err *err)
{
    void *room;
    int64_t n_bytes = n * (int64_t)sizeof *stats;
    MQ_TRY(workspace(dev, WS_STATS, n_bytes, &room, err));
    MQ_TRY(launch(dev, err, "logit_stats", logit_stats_kernel, n_blocks(n, 1, INT32_MAX), THREADS, 0,
                  (mq_logit_stats *)room, a, b, targets, vocab));
    return download(dev, stats, room, n_bytes, err);
}

} // namespace mq_cuda
