/* Going on with an unfinished conversion: is it the same recipe and source, and which files are sound? */
#ifndef MQ_TOOLS_CONVERT_RESUME_H
#define MQ_TOOLS_CONVERT_RESUME_H

#include "tools/convert_run.h"

/* Line 1 of the journal of this job. */
mq_status mq_resume_head(mq_buf *out, const mq_convert_job *job, const mq_inputs *in, mq_err *err);

/* MQ_E_EXISTS, saying what differs, unless the journal's head is that of this job and these inputs. */
mq_status mq_resume_check(const mq_journal_record *old, const mq_convert_job *job, const mq_inputs *in, mq_err *err);

/* Enter in done the journalled groups whose files are there with the size and digest recorded (read again, by n_threads
 * threads); moves their stats out of old.  *n_damaged counts groups to be done again. */
mq_status mq_resume_groups(mq_convert_done *done, int64_t *n_damaged, mq_journal_record *old, const mq_convert_job *job,
                           int n_threads, mq_err *err);

/* Take over the digests of input files hashed before the interruption. */
void mq_resume_hashes(mq_inputs *in, const mq_journal_record *old);
/* --rehash: MQ_E_EXISTS where a digest computed now differs from the journalled one. */
mq_status mq_resume_compare_hashes(const mq_inputs *in, const mq_journal_record *old, mq_err *err);

/* Is the finished model in m made by this recipe from these files?  MQ_E_EXISTS says what differs, or which shard is missing.
 * with_hashes: the inputs' digests are compared too. */
mq_status mq_resume_check_complete(const mq_manifest *m, const mq_convert_job *job, const mq_inputs *in,
                                   bool with_hashes, mq_err *err);

#endif
