/* The hash table: every key finds its own value through growth, the first value stays, keys are
 * byte strings. */
#include "src/map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

static void check_n_keys(int64_t n, int64_t hint)
{
    mq_err err;
    mq_map *m;
    bool is_new;
    char(*keys)[24] = calloc((size_t)n + 1, sizeof *keys);
    ck_assert_ptr_nonnull(keys);
    mq_assert_ok(mq_map_create(&m, hint, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        snprintf(keys[i], sizeof keys[i], "key.%lld", (long long)i);
        mq_assert_ok(mq_map_put(m, keys[i], (int64_t)strlen(keys[i]), 3 * i, &is_new, &err), &err);
        ck_assert(is_new);
    }
    ck_assert_int_eq(mq_map_count(m), n);
    for (int64_t i = 0; i < n; i++)
        ck_assert_int_eq(mq_map_find_str(m, keys[i]), 3 * i);
    ck_assert_int_eq(mq_map_find_str(m, "key."), -1);
    ck_assert_int_eq(mq_map_find_str(m, "key.x"), -1);
    mq_map_free(m);
    free(keys);
}

START_TEST(every_key_finds_its_value_around_the_growth_steps)
{
    static const int64_t sizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1000, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_n_keys(sizes[i], 0);
        check_n_keys(sizes[i], sizes[i]);
    }
}
END_TEST

START_TEST(the_first_value_of_a_key_stays)
{
    mq_err err;
    mq_map *m;
    bool is_new;
    mq_assert_ok(mq_map_create(&m, 0, &err), &err);
    mq_assert_ok(mq_map_put(m, "a", 1, 5, &is_new, &err), &err);
    ck_assert(is_new);
    mq_assert_ok(mq_map_put(m, "a", 1, 6, &is_new, &err), &err);
    ck_assert(!is_new);
    ck_assert_int_eq(mq_map_find_str(m, "a"), 5);
    ck_assert_int_eq(mq_map_count(m), 1);
    mq_map_free(m);
}
END_TEST

START_TEST(a_known_key_is_never_new_even_when_the_table_is_full)
{
    mq_err err;
    mq_map *m;
    bool is_new;
    mq_assert_ok(mq_map_create(&m, 0, &err), &err);
    static const char letters[] = "abcdefghijklmnop";
    for (int64_t i = 0; i < 16; i++) {
        mq_assert_ok(mq_map_put(m, letters + i, 1, i, &is_new, &err), &err);
        ck_assert(is_new);
        mq_assert_ok(mq_map_put(m, letters, 1, 99, &is_new, &err), &err);
        ck_assert(!is_new);
    }
    ck_assert_int_eq(mq_map_find(m, "a", 1), 0);
    ck_assert_int_eq(mq_map_count(m), 16);
    mq_map_free(m);
}
END_TEST

START_TEST(keys_are_bytes_of_any_length)
{
    /* Prefixes of one string with NULs inside, 0 to 40 bytes: all different. */
    char bytes[40];
    mq_err err;
    mq_map *m;
    bool is_new;
    memset(bytes, 0, sizeof bytes);
    mq_assert_ok(mq_map_create(&m, 0, &err), &err);
    for (int64_t n = 0; n <= 40; n++) {
        mq_assert_ok(mq_map_put(m, bytes, n, n, &is_new, &err), &err);
        ck_assert(is_new);
    }
    for (int64_t n = 0; n <= 40; n++) {
        char copy[40] = {0};
        ck_assert_int_eq(mq_map_find(m, n ? copy : NULL, n), n);
    }
    mq_map_free(m);
    mq_map_free(NULL);
}
END_TEST

START_TEST(an_impossible_hint_is_out_of_memory)
{
    mq_err err;
    mq_map *m;
    mq_assert_fails(mq_map_create(&m, INT64_MAX, &err), MQ_E_NOMEM, &err,
                    "out of memory for a table");
    ck_assert_ptr_null(m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("map");
    TCase *t = tcase_create("map");
    tcase_add_test(t, every_key_finds_its_value_around_the_growth_steps);
    tcase_add_test(t, the_first_value_of_a_key_stays);
    tcase_add_test(t, a_known_key_is_never_new_even_when_the_table_is_full);
    tcase_add_test(t, keys_are_bytes_of_any_length);
    tcase_add_test(t, an_impossible_hint_is_out_of_memory);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
