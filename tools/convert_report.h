/* What a finished conversion says about itself: report.json (every matrix) and README.md (a model card). */
#ifndef MQ_TOOLS_CONVERT_REPORT_H
#define MQ_TOOLS_CONVERT_REPORT_H

#include "tools/convert_run.h"

/* Squared error and weights of one projection over a layer (all its experts), or over all layers with layer -1. */
mq_round_stats mq_convert_sum(const mq_convert_job *job, const mq_convert_done *done, int layer, int projection);
/* sqrt(err2 / norm2), 0 without weights. */
double mq_convert_rel_error(mq_round_stats s);

/* "gate_proj", "up_proj", "down_proj". */
const char *mq_convert_projection_name(int projection);

/* What the checkpoint's reader had to say, a line each.  Paths below the checkpoint's folder lose it: reports do not depend on where it
 * lies.  mq_buf_status tells of failure. */
void mq_convert_notices(mq_buf *out, const mq_convert_job *job);

/* Text of report.json; a function of checkpoint and recipe. */
mq_status mq_convert_report(mq_buf *out, const mq_convert_job *job, const mq_convert_done *done, mq_err *err);

#endif
