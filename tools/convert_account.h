/* The account of a finished layer: how each expert matrix got its codes, and what the layer's output lost.
 *
 * The driver fills it, the journal carries it over a restart, report.json and the HTML page show it, and the warning about
 * experts with few tokens counts in it.  Plain data: nothing here depends on time, threads or restarts. */
#ifndef MQ_TOOLS_CONVERT_ACCOUNT_H
#define MQ_TOOLS_CONVERT_ACCOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "calib/expert.h"

/* What a layer's output lost, measured on sampled rows with the same input (the rows that enter the MoE behind the quantized
 * layers before): its experts' codes against their source. */
typedef struct mq_output_loss {
    bool measured;
    int64_t n_rows;
    double moe_rel_error, moe_cosine;       /* |quantized - source| / |source| and cosine of the experts' sum */
    double output_rel_error, output_cosine; /* the same of the residual stream behind the layer */
} mq_output_loss;

typedef struct mq_convert_account {
    int64_t n_experts;          /* 0: not calibrated (no quantized experts, or another method) */
    mq_calib_account *matrices; /* [n_experts][MQ_CALIB_MATRICES] heap; gate's n_tokens is the expert's count of tokens */
    double *coef_sums;          /* [n_experts] heap: the router's coefficients of the expert's tokens, added in order */
    mq_output_loss loss;
} mq_convert_account;

mq_status mq_account_init(mq_convert_account *a, int64_t n_experts, mq_err *err); /* zeroed; MQ_E_NOMEM */
void mq_account_release(mq_convert_account *a);

/* As numbers for the journal: per expert and matrix MQ_STAT_COUNT of them, the first two as for layers that are not
 * calibrated. */
enum {
    MQ_STAT_ERR2,
    MQ_STAT_NORM2,
    MQ_STAT_PATH,
    MQ_STAT_TOKENS,
    MQ_STAT_COEF,
    MQ_STAT_LOSS,
    MQ_STAT_ENERGY,
    MQ_STAT_DAMP,
    MQ_STAT_RETRIES,
    MQ_STAT_REFIT,
    MQ_STAT_COUNT
};
/* stats [n_experts * MQ_CALIB_MATRICES * MQ_STAT_COUNT] */
void mq_account_to_stats(double *stats, const mq_convert_account *a);
/* false: some number cannot be what was written (a is then released).  MQ_OK counts as true; out of memory as false. */
bool mq_account_from_stats(mq_convert_account *a, const double *stats, int64_t n_experts);

#endif
