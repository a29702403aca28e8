/* Sums over devices: every member gets the bits of a sum in rank order, whatever the number of members, at any length up to the
 * most, time after time. */
#include <stdlib.h>

#include "runtime/join.h"
#include "tests/harness.h"

enum { MAX_COUNT = 37, N_RANKS = 12, ROUNDS = 5, MAX_MEMBERS = 6 };

static const int64_t counts[ROUNDS] = {MAX_COUNT, 3, 16, 0, 25};

typedef struct setup {
    const mq_kernels *k;
    mq_group *group;
    mq_join *join;
    mq_dev *devs[MAX_MEMBERS];
    float y[MAX_MEMBERS][ROUNDS][MAX_COUNT + 1];
} setup;

static float value(int round, int rank, int64_t i)
{
    return (float)((rank * 7919 + i * 104729 + round * 31) % 1000 - 500) * (rank % 3 ? 1.0f : 1e6f) / 7.0f;
}

static mq_status add_up(void *ctx, int member, mq_err *err)
{
    setup *s = ctx;
    int first = mq_join_first_rank(s->join, member);
    for (int round = 0; round < ROUNDS; round++) {
        for (int r = first; r < first + mq_join_n_local(s->join); r++)
            for (int64_t i = 0; i < counts[round]; i++)
                mq_join_part(s->join, member, r)[i] = value(round, r, i);
        MQ_TRY(mq_join_sum(s->join, member, s->y[member][round], counts[round], err));
        MQ_TRY(s->k->dev_sync(s->devs[member], err));
    }
    return MQ_OK;
}

START_TEST(sums_are_in_rank_order)
{
    static const int members[] = {1, 2, 3, 4, 6};
    setup *s = calloc(1, sizeof *s);
    mq_err err;
    s->k = mq_kernels_find("cpu");
    for (int c = 0; c < 5; c++) {
        int n = members[c];
        for (int m = 0; m < n; m++) {
            mq_assert_ok(s->k->dev_open(&s->devs[m], 0, 1, NULL, &err), &err);
            for (int round = 0; round < ROUNDS; round++)
                s->y[m][round][counts[round]] = 12345.0f;
        }
        mq_assert_ok(mq_group_create(&s->group, n, &err), &err);
        mq_assert_ok(mq_join_create(&s->join, s->group, s->k, s->devs, N_RANKS, MAX_COUNT, &err), &err);
        mq_assert_ok(mq_group_run(s->group, add_up, s, &err), &err);
        for (int m = 0; m < n; m++)
            for (int round = 0; round < ROUNDS; round++) {
                for (int64_t i = 0; i < counts[round]; i++) {
                    float want = value(round, 0, i);
                    for (int r = 1; r < N_RANKS; r++)
                        want += value(round, r, i);
                    ck_assert_msg(s->y[m][round][i] == want, "%d members, %d of them, round %d, element %d", n, m, round, (int)i);
                }
                ck_assert(s->y[m][round][counts[round]] == 12345.0f);
            }
        mq_join_free(s->join);
        mq_group_free(s->group);
        for (int m = 0; m < n; m++)
            s->k->dev_close(s->devs[m]);
    }
    free(s);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("join");
    TCase *t = tcase_create("all");
    tcase_add_test(t, sums_are_in_rank_order);
    suite_add_tcase(s, t);
    return s;
}

int main(void)
{
    return mq_test_run(suite());
}
