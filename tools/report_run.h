/* From a finished conversion to the page of --report, and what its accounts warn about. */
#ifndef MQ_TOOLS_REPORT_RUN_H
#define MQ_TOOLS_REPORT_RUN_H

#include "tools/convert_run.h"

/* Write the page to path, whole or not at all.  in: the input files with their digests.  MQ_E_IO, MQ_E_NOMEM. */
mq_status mq_report_write(const char *path, const mq_convert_job *job, const mq_convert_done *done, const mq_inputs *in,
                          mq_err *err);

/* Experts with few tokens of a calibrated run: fewer than a quarter of the columns of gate and up.  *smallest is the least count of
 * any expert. */
int64_t mq_report_few_tokens(int64_t *smallest, const mq_convert_job *job, const mq_convert_done *done);

#endif
