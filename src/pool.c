/* Threads for a list of jobs, made for each run: a run lasts long (files, layers), making a thread
 * does not.
 *
 * Why the result does not depend on timing: jobs start in ascending order and every started job
 * ends, so when any job fails, all jobs below it have been started, and the lowest failing one is
 * always among those that ran.  A job that merely gave up because another had failed (MQ_E_STOPPED)
 * never hides the cause. */
#include "src/pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct run_state {
    pthread_mutex_t lock; /* guards everything below */
    mq_pool_fn fn;
    void *ctx;
    int64_t n_jobs, next_job;
    bool stop;
    mq_status status; /* of failed_job, the failure to report */
    int64_t failed_job;
    mq_err *err;
    int next_worker;
} run_state;

/* Keep the failure to report; called with the lock held. */
static void note_failure(run_state *r, int64_t job, mq_status st, const mq_err *cause)
{
    r->stop = true;
    bool better = r->status == MQ_OK || (r->status == MQ_E_STOPPED && st != MQ_E_STOPPED);
    if (!better && (r->status == MQ_E_STOPPED) == (st == MQ_E_STOPPED))
        better = job < r->failed_job;
    if (!better)
        return;
    r->status = st;
    r->failed_job = job;
    if (r->err)
        *r->err = *cause;
}

static void *work(void *arg)
{
    run_state *r = arg;
    mq_err cause = {MQ_OK, ""};
    pthread_mutex_lock(&r->lock);
    int worker = r->next_worker++;
    while (!r->stop && r->next_job < r->n_jobs) {
        int64_t job = r->next_job++;
        pthread_mutex_unlock(&r->lock);
        mq_status st = r->fn(r->ctx, job, worker, &cause);
        pthread_mutex_lock(&r->lock);
        if (st != MQ_OK)
            note_failure(r, job, st, &cause);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

mq_status mq_pool_run(int n_threads, int64_t n_jobs, mq_pool_fn fn, void *ctx, mq_err *err)
{
    if (n_threads < 1)
        return mq_fail(err, MQ_E_ARG, "%d threads, expected at least 1", n_threads);
    if (n_jobs <= 0)
        return MQ_OK;
    int n_extra = n_jobs < n_threads ? (int)n_jobs - 1 : n_threads - 1, n_made = 0;
    pthread_t *threads = n_extra ? calloc((size_t)n_extra, sizeof *threads) : NULL;
    if (n_extra && !threads)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %d threads", n_threads);
    run_state r = {
        .lock = PTHREAD_MUTEX_INITIALIZER, .fn = fn, .ctx = ctx, .n_jobs = n_jobs, .err = err};

    /* No job starts before every thread exists: jobs may wait for each other. */
    pthread_mutex_lock(&r.lock);
    int code = 0;
    while (n_made < n_extra && (code = pthread_create(&threads[n_made], NULL, work, &r)) == 0)
        n_made++;
    if (code != 0) {
        char text[128];
        r.stop = true;
        r.status = mq_fail(err, MQ_E_NOMEM, "thread %d of %d: %s", n_made + 2, n_extra + 1,
                           strerror_r(code, text, sizeof text));
    }
    pthread_mutex_unlock(&r.lock);
    work(&r);
    for (int i = 0; i < n_made; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    pthread_mutex_destroy(&r.lock);
    return r.status;
}

struct mq_turn {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int64_t next; /* the ticket whose turn it is */
    bool cancelled;
};

mq_status mq_turn_create(mq_turn **out, mq_err *err)
{
    *out = NULL;
    mq_turn *t = calloc(1, sizeof *t);
    if (!t)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    /* Default attributes: on Linux neither call can fail. */
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->moved, NULL);
    *out = t;
    return MQ_OK;
}

void mq_turn_free(mq_turn *t)
{
    if (!t)
        return;
    pthread_cond_destroy(&t->moved);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

mq_status mq_turn_wait(mq_turn *t, int64_t ticket, mq_err *err)
{
    pthread_mutex_lock(&t->lock);
    while (!t->cancelled && t->next < ticket)
        pthread_cond_wait(&t->moved, &t->lock);
    bool cancelled = t->cancelled;
    pthread_mutex_unlock(&t->lock);
    return cancelled ? mq_fail(err, MQ_E_STOPPED, "another job failed") : MQ_OK;
}

void mq_turn_pass(mq_turn *t)
{
    pthread_mutex_lock(&t->lock);
    t->next++;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
}

void mq_turn_cancel(mq_turn *t)
{
    pthread_mutex_lock(&t->lock);
    t->cancelled = true;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
}

int mq_cpu_count(void)
{
    /* A fixed cpu_set_t holds 1024 processors; larger machines refuse it with EINVAL. */
    for (int n_cpus = 1024; n_cpus <= 1 << 20; n_cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n_cpus);
        if (!set)
            return 1;
        size_t set_bytes = CPU_ALLOC_SIZE((size_t)n_cpus);
        int got = sched_getaffinity(0, set_bytes, set),
            count = got == 0 ? CPU_COUNT_S(set_bytes, set) : 0;
        bool too_small = got != 0 && errno == EINVAL;
        CPU_FREE(set);
        if (!too_small)
            return count > 0 ? count : 1;
    }
    return 1;
}
