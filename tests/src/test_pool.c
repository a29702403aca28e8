/* Threads: every job once, the failure that is reported does not depend on timing, turns keep their
 * order. */
#include "src/pool.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

typedef struct count_ctx {
    int n_threads;
    atomic_int runs[200];
    atomic_int busy[16]; /* jobs on one worker now */
} count_ctx;

static mq_status count_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    count_ctx *c = ctx;
    if (worker < 0 || worker >= c->n_threads || atomic_fetch_add(&c->busy[worker], 1) != 0)
        return mq_fail(err, MQ_E_BUG, "worker %d", worker);
    atomic_fetch_add(&c->runs[job], 1);
    atomic_fetch_sub(&c->busy[worker], 1);
    return MQ_OK;
}

START_TEST(every_job_runs_once_on_a_worker_in_range)
{
    static const int threads[] = {1, 2, 3, 16};
    static const int64_t jobs[] = {0, 1, 2, 3, 16, 17, 200};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 7; j++) {
            mq_err err;
            count_ctx c;
            memset(&c, 0, sizeof c);
            c.n_threads = threads[i];
            mq_assert_ok(mq_pool_run(threads[i], jobs[j], count_job, &c, &err), &err);
            for (int64_t k = 0; k < 200; k++)
                ck_assert_int_eq(atomic_load(&c.runs[k]), k < jobs[j]);
        }
    }
}
END_TEST

START_TEST(one_thread_is_the_callers_own)
{
    mq_err err;
    mq_assert_fails(mq_pool_run(0, 1, count_job, NULL, &err), MQ_E_ARG, &err,
                    "0 threads, expected at least 1");
    mq_assert_ok(mq_pool_run(INT_MAX, 0, count_job, NULL, &err), &err);
}
END_TEST

typedef struct meet_ctx {
    pthread_barrier_t barrier;
} meet_ctx;

static mq_status meet_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    (void)job, (void)worker, (void)err;
    meet_ctx *m = ctx;
    pthread_barrier_wait(&m->barrier);
    return MQ_OK;
}

START_TEST(as_many_jobs_as_threads_may_wait_for_each_other)
{
    mq_err err;
    meet_ctx m;
    pthread_barrier_init(&m.barrier, NULL, 8);
    mq_assert_ok(mq_pool_run(8, 8, meet_job, &m, &err), &err);
    mq_assert_ok(mq_pool_run(100, 8, meet_job, &m, &err), &err);
    pthread_barrier_destroy(&m.barrier);
}
END_TEST

/* Jobs 5, 6 and 7 fail, the higher ones sooner. */
static mq_status fail_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    (void)worker;
    atomic_int *started = ctx;
    atomic_fetch_add(started, 1);
    if (job < 5 || job > 7)
        return MQ_OK;
    for (volatile int i = 0; i < (8 - job) * 100000; i = i + 1) {
    }
    return mq_fail(err, job == 5 ? MQ_E_HASH : MQ_E_IO, "job %lld", (long long)job);
}

START_TEST(the_lowest_failing_job_is_reported_each_time)
{
    for (int round = 0; round < 20; round++) {
        mq_err err;
        atomic_int started = 0;
        mq_assert_fails(mq_pool_run(1 + round % 8, 1000000, fail_job, &started, &err), MQ_E_HASH,
                        &err, "job 5");
        ck_assert_int_lt(atomic_load(&started), 1000000); /* the rest never started */
    }
    atomic_int started = 0;
    ck_assert_int_eq(mq_pool_run(3, 10, fail_job, &started, NULL), MQ_E_HASH);
}
END_TEST

typedef struct order_ctx {
    mq_turn *turn;
    int64_t order[64], n, bad_job;
    mq_status bad_status;
} order_ctx;

static mq_status order_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    (void)worker;
    order_ctx *c = ctx;
    for (volatile int i = 0; i < (job * 7919 % 13) * 2000; i = i + 1) { /* finish out of order */
    }
    MQ_TRY(mq_turn_wait(c->turn, job, err));
    if (job == c->bad_job) {
        mq_turn_cancel(c->turn);
        return mq_fail(err, c->bad_status, "job %lld is bad", (long long)job);
    }
    c->order[c->n++] = job;
    mq_turn_pass(c->turn);
    return MQ_OK;
}

START_TEST(turns_are_taken_in_ticket_order)
{
    for (int threads = 1; threads <= 8; threads++) {
        mq_err err;
        order_ctx c = {.bad_job = -1};
        mq_assert_ok(mq_turn_create(&c.turn, &err), &err);
        mq_assert_ok(mq_pool_run(threads, 64, order_job, &c, &err), &err);
        ck_assert_int_eq(c.n, 64);
        for (int64_t i = 0; i < 64; i++)
            ck_assert_int_eq(c.order[i], i);
        mq_turn_free(c.turn);
    }
    mq_turn_free(NULL);
}
END_TEST

START_TEST(a_cancel_frees_the_waiting_and_reports_the_cause)
{
    for (int threads = 1; threads <= 8; threads++) {
        mq_err err;
        order_ctx c = {.bad_job = 20, .bad_status = MQ_E_NUMERIC};
        mq_assert_ok(mq_turn_create(&c.turn, &err), &err);
        mq_assert_fails(mq_pool_run(threads, 64, order_job, &c, &err), MQ_E_NUMERIC, &err,
                        "job 20 is bad");
        ck_assert_int_eq(c.n, 20); /* all below it finished */
        mq_assert_fails(mq_turn_wait(c.turn, 0, &err), MQ_E_STOPPED, &err, "another job failed");
        mq_turn_free(c.turn);
    }
}
END_TEST

/* Job 0 gives up, job 1 has the cause. */
static mq_status stopped_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    meet_job(ctx, job, worker, err);
    return job == 0 ? mq_fail(err, MQ_E_STOPPED, "gave up") : mq_fail(err, MQ_E_IO, "the cause");
}

START_TEST(giving_up_never_hides_the_cause)
{
    for (int round = 0; round < 20; round++) {
        mq_err err;
        meet_ctx m;
        pthread_barrier_init(&m.barrier, NULL, 2);
        mq_assert_fails(mq_pool_run(2, 2, stopped_job, &m, &err), MQ_E_IO, &err, "the cause");
        pthread_barrier_destroy(&m.barrier);
    }
    mq_err err;
    order_ctx c = {.bad_job = 0, .bad_status = MQ_E_STOPPED};
    mq_assert_ok(mq_turn_create(&c.turn, &err), &err);
    mq_assert_fails(mq_pool_run(4, 8, order_job, &c, &err), MQ_E_STOPPED, &err, "job 0 is bad");
    mq_turn_free(c.turn);
}
END_TEST

START_TEST(there_is_a_processor)
{
    ck_assert_int_ge(mq_cpu_count(), 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pool");
    TCase *t = tcase_create("pool");
    tcase_add_test(t, every_job_runs_once_on_a_worker_in_range);
    tcase_add_test(t, one_thread_is_the_callers_own);
    tcase_add_test(t, as_many_jobs_as_threads_may_wait_for_each_other);
    tcase_add_test(t, the_lowest_failing_job_is_reported_each_time);
    tcase_add_test(t, turns_are_taken_in_ticket_order);
    tcase_add_test(t, a_cancel_frees_the_waiting_and_reports_the_cause);
    tcase_add_test(t, giving_up_never_hides_the_cause);
    tcase_add_test(t, there_is_a_processor);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
