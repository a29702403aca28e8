/* The dtype table and overflow-checked sizes. */
#include "src/dtype.h"

#include <string.h>

#include "tests/harness.h"

START_TEST(every_name_finds_its_own_dtype)
{
    for (int i = 0; i < MQ_DT_COUNT; i++) {
        const char *name = mq_dtype_name((mq_dtype)i);
        mq_dtype dt = MQ_DT_COUNT;
        ck_assert(mq_dtype_find(&dt, name, (int64_t)strlen(name)));
        ck_assert_int_eq(dt, i);
    }
}
END_TEST

START_TEST(names_are_exact)
{
    static const char *const wrong[] = {"", "bf16", "BF1", "BF16 ", "F8", "F8_E4M3FN", "I128"};
    mq_dtype dt = MQ_DT_C64;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        ck_assert(!mq_dtype_find(&dt, wrong[i], (int64_t)strlen(wrong[i])));
    ck_assert(!mq_dtype_find(&dt, "BF16\0", 5));
    ck_assert_int_eq(dt, MQ_DT_C64);
    ck_assert(mq_dtype_find(&dt, "BF16xx", 4)); /* a slice of a longer text */
    ck_assert_int_eq(dt, MQ_DT_BF16);
}
END_TEST

START_TEST(bits_follow_from_the_name)
{
    static const struct {
        const char *name;
        int bits;
    } want[] = {{"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6},
                {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8},
                {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
                {"U16", 16},    {"F16", 16},        {"BF16", 16},       {"I32", 32},
                {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},
                {"I64", 64},    {"U64", 64}};
    ck_assert_uint_eq(sizeof want / sizeof *want, MQ_DT_COUNT);
    for (int i = 0; i < MQ_DT_COUNT; i++) {
        ck_assert_str_eq(mq_dtype_name((mq_dtype)i), want[i].name);
        ck_assert_int_eq(mq_dtype_bits((mq_dtype)i), want[i].bits);
    }
}
END_TEST

START_TEST(sums_and_products_stop_at_int64_max)
{
    const int64_t edge[] = {0,
                            1,
                            2,
                            3,
                            INT64_C(3037000499),
                            INT64_C(3037000500),
                            INT64_MAX / 2,
                            INT64_MAX / 2 + 1,
                            INT64_MAX - 1,
                            INT64_MAX};
    for (size_t i = 0; i < sizeof edge / sizeof *edge; i++) {
        for (size_t j = 0; j < sizeof edge / sizeof *edge; j++) {
            int64_t a = edge[i], b = edge[j], got = -5, want;
            bool over = __builtin_mul_overflow(a, b, &want);
            ck_assert_int_eq(mq_mul_i64(&got, a, b), !over);
            ck_assert(over ? got == -5 : got == want);
            got = -5;
            over = __builtin_add_overflow(a, b, &want);
            ck_assert_int_eq(mq_add_i64(&got, a, b), !over);
            ck_assert(over ? got == -5 : got == want);
        }
    }
    int64_t out = 9;
    ck_assert(!mq_mul_i64(&out, -1, 2) && !mq_mul_i64(&out, 2, -1) &&
              !mq_mul_i64(&out, 0, INT64_MIN));
    ck_assert(!mq_add_i64(&out, -1, 2) && !mq_add_i64(&out, 2, -1));
    ck_assert_int_eq(out, 9);
}
END_TEST

START_TEST(ceil_and_round_up_at_the_edges_of_a_group)
{
    static const int64_t n[] = {0, 1, 31, 32, 33, 64}, groups[] = {0, 1, 1, 1, 2, 2};
    for (int i = 0; i < 6; i++) {
        ck_assert_int_eq(mq_ceil_div(n[i], 32), groups[i]);
        ck_assert_int_eq(mq_round_up(n[i], 32), 32 * groups[i]);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("dtype");
    TCase *t = tcase_create("dtype");
    tcase_add_test(t, every_name_finds_its_own_dtype);
    tcase_add_test(t, names_are_exact);
    tcase_add_test(t, bits_follow_from_the_name);
    tcase_add_test(t, sums_and_products_stop_at_int64_max);
    tcase_add_test(t, ceil_and_round_up_at_the_edges_of_a_group);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
