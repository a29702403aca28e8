/* Members of a group meet, and let each other out when one fails. */
#include "runtime/group.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

enum { MOST = 8, ROUNDS = 2000 };

typedef struct job {
    mq_group *group;
    int n, fails_at, ends_at; /* the member that fails, or ends, in round 3; -1: none */
    atomic_int counters[ROUNDS];
    pthread_t threads[MOST];
} job;

/* In every round each member counts, waits, and finds all of them counted. */
static mq_status rounds(void *ctx, int member, mq_err *err)
{
    job *j = ctx;
    if (!pthread_equal(j->threads[member], pthread_self()))
        j->threads[member] = pthread_self();
    for (int r = 0; r < ROUNDS; r++) {
        if (r == 3 && member == j->fails_at)
            return mq_fail(err, MQ_E_DEVICE, "device %d is gone", member);
        if (r == 3 && member == j->ends_at)
            return MQ_OK;
        atomic_fetch_add(&j->counters[r], 1);
        MQ_TRY(mq_group_wait(j->group, err));
        if (atomic_load(&j->counters[r]) != j->n)
            return mq_fail(err, MQ_E_BUG, "round %d: %d of %d members", r, atomic_load(&j->counters[r]), j->n);
    }
    return MQ_OK;
}

START_TEST(members_meet_every_round)
{
    mq_err err;
    for (int n = 1; n <= MOST; n = n == 1 ? 2 : n * 2 - 1) {
        job *j = calloc(1, sizeof *j);
        ck_assert_ptr_nonnull(j);
        j->n = n;
        j->fails_at = j->ends_at = -1;
        mq_assert_ok(mq_group_create(&j->group, n, &err), &err);
        ck_assert_int_eq(mq_group_n_members(j->group), n);
        mq_assert_ok(mq_group_run(j->group, rounds, j, &err), &err);
        pthread_t first[MOST];
        memcpy(first, j->threads, sizeof first);
        for (int r = 0; r < ROUNDS; r++)
            atomic_store(&j->counters[r], 0);
        mq_assert_ok(mq_group_run(j->group, rounds, j, &err), &err);
        for (int i = 0; i < n; i++)
            ck_assert(pthread_equal(first[i], j->threads[i])); /* a member keeps its thread */
        mq_group_free(j->group);
        free(j);
    }
    mq_group_free(NULL);
}
END_TEST

START_TEST(a_failure_lets_the_others_out)
{
    mq_err err;
    for (int member = 0; member < 3; member++) {
        job *j = calloc(1, sizeof *j);
        ck_assert_ptr_nonnull(j);
        char text[64];
        snprintf(text, sizeof text, "device %d is gone", member);
        j->n = 3;
        j->fails_at = member;
        j->ends_at = -1;
        mq_assert_ok(mq_group_create(&j->group, 3, &err), &err);
        mq_assert_fails(mq_group_run(j->group, rounds, j, &err), MQ_E_DEVICE, &err, text);
        /* and the group is as good as new */
        j->fails_at = -1;
        for (int r = 0; r < ROUNDS; r++)
            atomic_store(&j->counters[r], 0);
        mq_assert_ok(mq_group_run(j->group, rounds, j, &err), &err);
        mq_group_free(j->group);
        free(j);
    }
}
END_TEST

START_TEST(nobody_waits_for_one_that_has_ended)
{
    mq_err err;
    for (int member = 0; member < 3; member++) {
        job *j = calloc(1, sizeof *j);
        ck_assert_ptr_nonnull(j);
        j->n = 3;
        j->fails_at = -1;
        j->ends_at = member;
        mq_assert_ok(mq_group_create(&j->group, 3, &err), &err);
        mq_assert_fails(mq_group_run(j->group, rounds, j, &err), MQ_E_STOPPED, &err, "another device failed");
        mq_group_free(j->group);
        free(j);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("group");
    TCase *t = tcase_create("all");
    tcase_add_test(t, members_meet_every_round);
    tcase_add_test(t, a_failure_lets_the_others_out);
    tcase_add_test(t, nobody_waits_for_one_that_has_ended);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
