/* The page of --report: what a conversion did to every layer, as text, tables and plots.
 *
 * One file without scripts or anything loaded from elsewhere; well-formed XML; readable in light and dark.  It is a function of what
 * is passed: no time, no path of this machine unless it is passed. */
#ifndef MQ_TOOLS_REPORT_HTML_H
#define MQ_TOOLS_REPORT_HTML_H

#include <stdbool.h>
#include <stdint.h>

#include "calib/expert.h"
#include "src/buf.h"
#include "src/status.h"

/* A line of a table of facts. */
typedef struct mq_report_fact {
    const char *name, *value;
} mq_report_fact;

typedef struct mq_report_layer {
    int layer;
    const char *scheme;               /* of the experts: "int4", "mxfp4", ... */
    int64_t n_experts;                /* 0: no quantized experts */
    const mq_calib_account *matrices; /* [n_experts][MQ_CALIB_MATRICES] */
    double output_rel_error, output_cosine; /* of the residual stream behind the layer; NaN: not measured */
} mq_report_layer;

typedef struct mq_report {
    const char *title;             /* "MiMo-V2.5-Pro, gptq, groups of 64" */
    bool calibrated;               /* tokens, paths and losses mean something */
    const mq_report_fact *recipe;  /* [n_recipe] */
    int64_t n_recipe;
    const mq_report_fact *source;  /* [n_source] files: name, and size and digest */
    int64_t n_source;
    const mq_report_layer *layers; /* [n_layers] ascending */
    int64_t n_layers;
    const char *notices;           /* lines, or NULL */
} mq_report;

/* Append the page.  MQ_E_NOMEM. */
mq_status mq_report_html(mq_buf *out, const mq_report *r, mq_err *err);

#endif
