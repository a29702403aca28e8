/* What mimo-verify prints: tables for people on stdout and members of the JSON object, from the
 * same figures. */
#ifndef MQ_TOOLS_VERIFY_REPORT_H
#define MQ_TOOLS_VERIFY_REPORT_H

#include "formats/manifest.h"
#include "runtime/perplexity.h"
#include "tools/cli.h"
#include "tools/compare.h"

/* Router margin below which two experts count as tied: the window's figures may differ between
 * honest FP32 runs. */
#define MQ_TIE_MARGIN 1e-6f

/* The model in a line or two. */
void mq_report_model(mq_cli *c, const mq_packed *p, bool text);
/* Files, records, schemes and sizes (--list); opens the shards. */
mq_status mq_report_list(mq_cli *c, const mq_packed *p, bool text, mq_err *err);
void mq_report_weights(mq_cli *c, const mq_comparison *w, bool text);
/* has_source: a is the source and b the packed model; otherwise a is the packed model. */
void mq_report_quality(mq_cli *c, const mq_quality *q, bool has_source, bool text);

#endif
