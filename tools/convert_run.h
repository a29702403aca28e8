/* The parallel part of a conversion: all items of the groups that are not done yet, to finished shard files. */
#ifndef MQ_TOOLS_CONVERT_RUN_H
#define MQ_TOOLS_CONVERT_RUN_H

#include "tools/convert_job.h"
#include "tools/journal.h"

/* A finished group: its files, and per expert and projection the squared error and squared weights, [expert][projection]
 * [err2, norm2]; n_stats 0 without experts. */
typedef struct mq_convert_done {
    bool is_done;
    mq_journal_group entry; /* owns stats */
} mq_convert_done;

/* Convert every group of job that done [job->n_groups] does not have, with n_threads threads; each is journalled as soon as
 * its files are committed, and entered in done.  hasher (may be NULL) is watched: its failure ends the run (MQ_E_STOPPED
 * then; join tells the cause).  *n_weights counts expert weights converted. */
mq_status mq_convert_run(mq_convert_done *done, int64_t *n_weights, const mq_convert_job *job, int n_threads,
                         mq_journal *journal, const mq_hasher *hasher, mq_progress *progress, mq_err *err);

#endif
