/* Perplexity and KL divergence over windows of text, streamed layer by layer under a memory budget:
 * the model is read once per batch of windows, never resident. */
#ifndef MQ_RUNTIME_PERPLEXITY_H
#define MQ_RUNTIME_PERPLEXITY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Window j is tokens [j * window, j * window + window] of the text: window inputs, each predicting
 * its successor. */
typedef struct mq_window_result {
    double nll_a, nll_b; /* mean over the window, nats */
    double kl;           /* mean KL(a || b), nats */
    float
        margin_a; /* smallest router margin of model a in the window (two experts tie when tiny) */
} mq_window_result;

typedef struct mq_quality {
    int64_t n_windows, window, n_tokens; /* n_tokens = n_windows * window */
    double ppl_a, ppl_b;                 /* exp of the mean NLL */
    double kl_mean, kl_median, kl_p90, kl_p99, kl_p999, kl_max;
    double top1_agreement;     /* share of positions with equal argmax */
    mq_window_result *windows; /* [n_windows] heap */
} mq_quality;

typedef struct mq_quality_options {
    int64_t window, n_windows;
    int64_t memory_bytes; /* budget for hidden states, workspace and streamed weights; 0: half of
                             the machine's memory */
    void (*progress)(void *ctx, int64_t done, int64_t total); /* work units */
    void *progress_ctx;
    bool (*stopped)(void); /* polled; true ends with MQ_E_STOPPED; may be NULL */
} mq_quality_options;

/* Run a (the source) and b (the packed model; NULL: only a) over ids [n_ids], n_ids >= n_windows *
 * window + 1. MQ_E_ARG: not enough tokens; MQ_E_NOMEM: the budget is too small, the text says what
 * is needed. */
mq_status mq_quality_run(mq_quality *out, const mq_kernels *kernels, mq_dev *dev, mq_store *a,
                         mq_store *b, const int32_t *ids, int64_t n_ids,
                         const mq_quality_options *options, mq_err *err);
void mq_quality_release(mq_quality *q);

#ifdef __cplusplus
}
#endif
#endif
