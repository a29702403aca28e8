/* The parallel part of a conversion: all items of the groups that are not done yet, to finished shard files. */
#ifndef MQ_TOOLS_CONVERT_RUN_H
#define MQ_TOOLS_CONVERT_RUN_H

#include "tools/convert_work.h"
#include "tools/journal.h"

/* A finished group: its files, and per expert and projection some numbers, [expert][projection][n]: squared error and squared
 * weights (n = 2), or those of tools/convert_account.h where experts were calibrated; n_stats 0 without experts. */
typedef struct mq_convert_done {
    bool is_done;
    mq_journal_group entry;     /* owns stats */
    mq_convert_account account; /* of a calibrated layer's group, once calibration has left the layer behind */
} mq_convert_done;

/* What a run works with besides its job. */
typedef struct mq_convert_means {
    int n_threads;
    mq_journal *journal;
    const mq_hasher *hasher; /* watched: its failure ends the run with MQ_E_STOPPED (join tells the cause); may be NULL */
    mq_progress *progress;   /* counts bytes read; may be NULL */
} mq_convert_means;

/* Convert every group of job that wanted [job->n_groups] names (NULL: all) and done [job->n_groups] does not have; each is
 * journalled as soon as its files are committed, and entered in done.  *n_weights grows by the expert weights converted.
 * ready: experts of one layer that have their codes already; NULL: none. */
mq_status mq_convert_run(mq_convert_done *done, int64_t *n_weights, const mq_convert_job *job, const bool *wanted,
                         const mq_convert_ready *ready, const mq_convert_means *means, mq_err *err);

#endif
