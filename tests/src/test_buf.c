/* The growable buffer: contents over every growth step, the NUL, and remembered failures. */
#include "src/buf.h"

#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

START_TEST(an_empty_buffer_holds_nothing_and_may_be_released)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    mq_assert_ok(mq_buf_status(&b, &err), &err);
    ck_assert_ptr_null(b.data);
    mq_buf_clear(&b);
    mq_buf_release(&b);
    mq_buf_release(&b);
}
END_TEST

START_TEST(text_is_terminated_at_every_size)
{
    for (int n = 0; n < 300; n++) {
        mq_buf b = mq_buf_empty();
        for (int i = 0; i < n; i++)
            mq_buf_append(&b, &"abcdefgh"[i % 8], 1);
        mq_buf_append(&b, NULL, 0);
        ck_assert_int_eq(b.n_bytes, n);
        ck_assert_int_eq(b.data[n], '\0');
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(b.data[i], "abcdefgh"[i % 8]);
        mq_buf_release(&b);
    }
}
END_TEST

START_TEST(formatting_grows_by_what_it_needs)
{
    mq_buf b = mq_buf_empty();
    for (int width = 0; width < 300; width++) {
        mq_buf_clear(&b);
        mq_buf_str(&b, "x=");
        mq_buf_fmt(&b, "%*d|", width, 7);
        ck_assert_int_eq(b.n_bytes, 3 + (width > 1 ? width : 1));
        ck_assert_str_eq(b.data + b.n_bytes - 2, "7|");
    }
    mq_buf_release(&b);
}
END_TEST

START_TEST(bytes_may_hold_nul)
{
    mq_buf b = mq_buf_empty();
    mq_buf_append(&b, "a\0b", 3);
    mq_buf_str(&b, "c");
    ck_assert_int_eq(b.n_bytes, 4);
    ck_assert_mem_eq(b.data, "a\0bc\0", 5);
    mq_buf_release(&b);
}
END_TEST

START_TEST(clear_keeps_the_memory)
{
    mq_buf b = mq_buf_empty();
    mq_buf_str(&b, "abc");
    const char *data = b.data;
    mq_buf_clear(&b);
    ck_assert_int_eq(b.n_bytes, 0);
    ck_assert_str_eq(b.data, "");
    ck_assert_ptr_eq(b.data, data);
    mq_buf_release(&b);
    ck_assert_ptr_null(b.data);
}
END_TEST

START_TEST(a_dropped_append_is_remembered_until_clear)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    mq_buf_str(&b, "abc");
    mq_buf_append(&b, "x", INT64_MAX - 2); /* refused by the overflow check, not read */
    mq_buf_str(&b, "def");
    ck_assert_int_eq(b.n_bytes, 3);
    mq_assert_fails(mq_buf_status(&b, &err), MQ_E_NOMEM, &err, "out of memory after 3 bytes");
    mq_buf_clear(&b);
    mq_assert_ok(mq_buf_status(&b, &err), &err);
    mq_buf_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("buf");
    TCase *t = tcase_create("buf");
    tcase_add_test(t, an_empty_buffer_holds_nothing_and_may_be_released);
    tcase_add_test(t, text_is_terminated_at_every_size);
    tcase_add_test(t, formatting_grows_by_what_it_needs);
    tcase_add_test(t, bytes_may_hold_nul);
    tcase_add_test(t, clear_keeps_the_memory);
    tcase_add_test(t, a_dropped_append_is_remembered_until_clear);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
