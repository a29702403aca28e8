/* The best id of a row of logits with its probability; two rows of logits compared over the whole vocabulary: exact
 * log-softmax, exponentials in F32 (1 ulp), sums in double.  KL(a || b) = sum p_a (a - b) - lse_a + lse_b. */
#include <math.h>
#include <stddef.h>

#include "kernels/cpu/cpu.h"

static int32_t first_of(const float *x, float value, int64_t vocab)
{
    for (int64_t k = 0; k < vocab; k++)
        if (x[k] == value)
            return (int32_t)k;
    return 0; /* NaN alone */
}

static void compare_rows(const mq_vector_ops *v, mq_logit_stats *out, const float *a, const float *b, int32_t target,
                         int64_t vocab)
{
    float max_a = v->max(a, vocab);
    mq_softmax_sums sa = v->softmax_sums(a, b, max_a, 1.0f, vocab);
    double lse_a = (double)max_a + log(sa.sum);
    *out = (mq_logit_stats){.nll_a = lse_a - (double)a[target], .top_a = first_of(a, max_a, vocab)};
    if (!b)
        return;
    float max_b = v->max(b, vocab);
    double lse_b = (double)max_b + log(v->softmax_sums(b, NULL, max_b, 1.0f, vocab).sum);
    out->nll_b = lse_b - (double)b[target];
    out->top_b = first_of(b, max_b, vocab);
    out->kl = sa.cross / sa.sum - lse_a + lse_b;
}

static void top_of_row(const mq_vector_ops *v, int32_t *token, float *prob, const float *x, int64_t vocab)
{
    float max = v->max(x, vocab);
    double p = isfinite(max) ? 1.0 / v->softmax_sums(x, NULL, max, 1.0f, vocab).sum : 0.0;
    *token = first_of(x, max, vocab);
    *prob = p > 0.0 && p <= 1.0 ? (float)p : 0.0f; /* NaN logits may make the sum anything */
}

mq_status mq_cpu_top(mq_dev *dev, int32_t *tokens, float *prob, const float *logits, int64_t n, int64_t vocab,
                     mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, 2.0 * (double)n * (double)vocab))
    for (int64_t i = 0; i < n; i++)
        top_of_row(dev->v, &tokens[i], &prob[i], logits + i * vocab, vocab);
    return MQ_OK;
}

mq_status mq_cpu_logit_stats(mq_dev *dev, mq_logit_stats *stats, const float *a, const float *b, const int32_t *targets,
                             int64_t n, int64_t vocab, mq_err *err)
{
    (void)err;
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, 2.0 * (double)n * (double)vocab))
    for (int64_t i = 0; i < n; i++)
        compare_rows(dev->v, &stats[i], a + i * vocab, b ? b + i * vocab : NULL, targets[i], vocab);
    return MQ_OK;
}
