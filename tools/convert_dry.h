/* --dry-run: what a conversion would write, from headers alone. */
#ifndef MQ_TOOLS_CONVERT_DRY_H
#define MQ_TOOLS_CONVERT_DRY_H

#include "tools/convert_job.h"

/* Print a table of the files to come to stdout: kind, number, schemes, bytes (before compression). */
mq_status mq_convert_print_plan(const mq_convert_job *job, mq_err *err);

#endif
