/* Proves a packed model: hashes and structure; weights against the source; perplexity and KL
 * divergence; thresholds. */
#ifndef MQ_TOOLS_VERIFY_H
#define MQ_TOOLS_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/cli.h"

typedef struct mq_verify_options {
    const char *packed;        /* the model's folder */
    const char *source;        /* checkpoint to compare with, or NULL */
    const char *text;          /* file for perplexity (with source: and KL, top-1), or NULL */
    const char *device;        /* as --device, or NULL */
    bool list;                 /* report every record */
    int64_t window, n_windows; /* 0: 2048 or the model's limit; 32 or what the text holds */
    int n_threads;             /* 0: all processors */
    int64_t memory_bytes;      /* 0: half of the machine's memory, and on a GPU at most 7/8 of what is free there */
    bool memory_given;         /* filled in */
    bool bf16;                 /* products of BF16 inputs, as mimo-run's on a GPU; false: F32 */
    bool has_max_ppl_increase, has_max_kl, has_min_top1; /* these thresholds need source and text */
    double max_ppl_increase, max_kl, min_top1;
    bool has_max_weight_error; /* asked for: needs source */
    double max_weight_error;   /* limit of each INT4 matrix's relative RMS error, always compared */
} mq_verify_options;

/* Run the checks that the options ask for; tables go to stdout (not with --json -), members to
 * cli's JSON object, checks[] also after a failure.  *missed: both sides are sound, but they differ
 * or a threshold is missed. MQ_E_ARG: options that do not fit together, or a text that is too short
 * (numbers named).  MQ_E_FORMAT, MQ_E_HASH, MQ_E_SHAPE, MQ_E_UNSUPPORTED: damage on either side, or
 * another model (file, tensor and rule named).  MQ_E_IO, MQ_E_NOMEM, MQ_E_DEVICE, MQ_E_STOPPED. */
mq_status mq_verify(bool *missed, const mq_verify_options *o, mq_cli *cli, mq_err *err);

#endif
