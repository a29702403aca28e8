/* Merging against the rule's definition: look through all neighbours, join the best pair, start
 * again. */
#include "src/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

enum { MAX_MERGES = 200, MAX_PIECE = 400 };

/* Random merges over bytes a..d; each result is a new id. */
typedef struct table {
    mq_merge merges[MAX_MERGES];
    int n;
    int32_t byte_ids[256];
} table;

static bool is_known(const table *t, int32_t left, int32_t right)
{
    for (int i = 0; i < t->n; i++)
        if (t->merges[i].left == left && t->merges[i].right == right)
            return true;
    return false;
}

static void fill(table *t, int n_merges, uint64_t *state)
{
    memset(t, 0, sizeof *t);
    for (int i = 0; i < 256; i++)
        t->byte_ids[i] = i;
    while (t->n < n_merges) {
        int32_t side[2];
        for (int k = 0; k < 2; k++) {
            uint64_t r = mq_test_rand(state) % (uint64_t)(4 + t->n);
            side[k] = r < 4 ? 'a' + (int32_t)r : 256 + (int32_t)r - 4;
        }
        if (!is_known(t, side[0], side[1])) {
            t->merges[t->n] = (mq_merge){side[0], side[1], 256 + t->n};
            t->n++;
        }
    }
    /* Ranks in another order than that of making. */
    for (int i = t->n - 1; i > 0; i--) {
        int j = (int)(mq_test_rand(state) % (uint64_t)(i + 1));
        mq_merge swap = t->merges[i];
        t->merges[i] = t->merges[j];
        t->merges[j] = swap;
    }
}

static int64_t by_definition(const table *t, int32_t *ids, const char *piece, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        ids[i] = t->byte_ids[(uint8_t)piece[i]];
    for (;;) {
        int best = t->n;
        int64_t at = -1;
        for (int64_t i = 0; i + 1 < n; i++)
            for (int r = 0; r < best; r++)
                if (t->merges[r].left == ids[i] && t->merges[r].right == ids[i + 1]) {
                    best = r;
                    at = i;
                }
        if (at < 0)
            return n;
        ids[at] = t->merges[best].result;
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 2) * sizeof *ids);
        n--;
    }
}

START_TEST(ids_follow_the_definition)
{
    uint64_t state = 7;
    static table t;
    mq_err err = {0};
    for (int round = 0; round < 300; round++) {
        fill(&t, (int)(mq_test_rand(&state) % 60), &state);
        mq_bpe *b;
        mq_bpe_work *w;
        mq_assert_ok(mq_bpe_create(&b, t.byte_ids, t.merges, t.n, 256 + t.n + 1, &err), &err);
        mq_assert_ok(mq_bpe_work_create(&w, round % 2, &err), &err);
        for (int i = 0; i < 60; i++) {
            char piece[MAX_PIECE];
            int32_t expected[MAX_PIECE];
            int64_t n = 1 + (int64_t)(mq_test_rand(&state) % (i < 50 ? 12 : 200)), n_ids;
            const int32_t *ids;
            for (int64_t k = 0; k < n; k++)
                piece[k] = (char)('a' + mq_test_rand(&state) % 4);
            int64_t n_expected = by_definition(&t, expected, piece, n);
            mq_assert_ok(mq_bpe_encode(b, w, &ids, &n_ids, piece, n, &err), &err);
            ck_assert_int_eq(n_ids, n_expected);
            ck_assert_mem_eq(ids, expected, (size_t)n_ids * sizeof *ids);
        }
        mq_bpe_work_free(w);
        mq_bpe_free(b);
    }
}
END_TEST

START_TEST(a_cached_piece_gives_the_same_ids)
{
    table t;
    uint64_t state = 9;
    mq_err err = {0};
    mq_bpe *b;
    mq_bpe_work *w;
    fill(&t, 0, &state);
    mq_assert_ok(mq_bpe_create(&b, t.byte_ids, NULL, 0, 256, &err), &err);
    mq_assert_ok(mq_bpe_work_create(&w, true, &err), &err);
    static const char text[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    for (int pass = 0; pass < 3; pass++)
        for (int64_t n = 1; n < (int64_t)sizeof text; n++) { /* around 9 ids and 26 bytes */
            const int32_t *ids;
            int64_t n_ids;
            mq_assert_ok(mq_bpe_encode(b, w, &ids, &n_ids, text, n, &err), &err);
            ck_assert_int_eq(n_ids, n);
            for (int64_t i = 0; i < n; i++)
                ck_assert_int_eq(ids[i], text[i]);
        }
    mq_bpe_work_free(w);
    mq_bpe_free(b);
    mq_bpe_free(NULL);
    mq_bpe_work_free(NULL);
}
END_TEST

START_TEST(a_pair_twice_is_refused)
{
    int32_t byte_ids[256] = {0};
    const mq_merge merges[] = {{1, 2, 3}, {2, 1, 3}, {1, 2, 4}};
    mq_err err = {0};
    mq_bpe *b;
    mq_assert_fails(mq_bpe_create(&b, byte_ids, merges, 3, 5, &err), MQ_E_FORMAT, &err,
                    "merge 2 joins the same pair as merge 0");
    ck_assert_ptr_null(b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bpe");
    TCase *t = tcase_create("bpe");
    tcase_add_test(t, ids_follow_the_definition);
    tcase_add_test(t, a_cached_piece_gives_the_same_ids);
    tcase_add_test(t, a_pair_twice_is_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
