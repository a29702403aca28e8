/* --dry-run: what a conversion would write, from headers alone. */
#ifndef MQ_TOOLS_CONVERT_DRY_H
#define MQ_TOOLS_CONVERT_DRY_H

#include "tools/calibrate.h"
#include "tools/convert_job.h"

/* Print a table of the files to come to stdout: kind, number, schemes, bytes (before compression). */
mq_status mq_convert_print_plan(const mq_convert_job *job, mq_err *err);

/* Measure this machine and estimate the time of a calibrated run: r's rates and expect; with GPUs they stay as they are, because
 * what is measured is the CPU.  dir: an existing folder of OUT's file system. */
mq_status mq_convert_expect(mq_convert_result *r, const mq_convert_job *job, const mq_calibration_plan *plan,
                            const mq_inputs *in, int n_threads, const char *dir, mq_err *err);

#endif
