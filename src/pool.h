/* A small thread pool for I/O and pipeline stages: runs numbered jobs in index order of start.
 * Loops inside host kernels use OpenMP instead. */
#ifndef MQ_SRC_POOL_H
#define MQ_SRC_POOL_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One job; worker is 0..n_threads-1, never two jobs at once on one worker.  May run on any thread; err is the
 * worker's own.  A status other than MQ_OK stops further starts. */
typedef mq_status (*mq_pool_fn)(void *ctx, int64_t job, int worker, mq_err *err);

/* Run jobs 0..n_jobs-1 on n_threads threads (the calling thread is one of them), started in ascending order.
 * At most n_jobs threads are made, all before the first job starts, so min(n_threads, n_jobs) jobs may wait for each other.
 * Returns when all started jobs ended.  The failure of the lowest failing job wins, so the result does not
 * depend on timing; MQ_E_STOPPED wins only when no job has another failure.
 * MQ_E_ARG: n_threads below 1.  MQ_E_NOMEM: a thread could not be made; no job ran. */
mq_status mq_pool_run(int n_threads, int64_t n_jobs, mq_pool_fn fn, void *ctx, mq_err *err);

/* Turns: makes parallel producers append in a fixed order.  mq_turn_wait blocks until every ticket below mine
 * was passed on; returns MQ_E_STOPPED (text "another job failed") after mq_turn_cancel, so that nobody waits for
 * a failed job.  A job that fails must cancel the turns it would have taken; it waits for its own turn first, so that the jobs
 * below it still finish and the same failure is reported every time. */
typedef struct mq_turn mq_turn;
mq_status mq_turn_create(mq_turn **out, mq_err *err);
void mq_turn_free(mq_turn *t);
mq_status mq_turn_wait(mq_turn *t, int64_t ticket, mq_err *err);
void mq_turn_pass(mq_turn *t); /* the next ticket may go */
void mq_turn_cancel(mq_turn *t);

/* Number of processors this process may use (sched_getaffinity), at least 1. */
int mq_cpu_count(void);

#ifdef __cplusplus
}
#endif
#endif
