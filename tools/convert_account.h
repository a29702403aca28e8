/* The account of a finished layer: how each expert matrix got its codes, and what the layer's output lost.
 *
 * The driver fills it, the journal carries it over a restart, report.json and the HTML page show it, and the warning about
 * experts with few tokens counts in it.  Plain data: nothing here depends on time, threads or restarts. */
#ifndef MQ_TOOLS_CONVERT_ACCOUNT_H
#define MQ_TOOLS_CONVERT_ACCOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "calib/expert.h"

typedef struct mq_convert_account {
    int64_t n_experts;          /* 0: not calibrated (no quantized experts, or another method) */
    mq_calib_account *matrices; /* [n_experts][MQ_CALIB_MATRICES] heap; gate's n_tokens is the expert's count of tokens */
    bool has_output;            /* the two figures below were measured */
    double output_rel_error;    /* |quantized - source| / |source| of the residual stream behind the layer, same input, all tokens */
    double output_cosine;       /* cosine of the two, same sums */
} mq_convert_account;

#endif
