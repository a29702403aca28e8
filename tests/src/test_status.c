/* Error texts: one line whatever comes in through arguments, cut visibly, wrapped in front. */
#include "src/status.h"

#include <string.h>

#include "src/utf8.h"
#include "tests/harness.h"

START_TEST(fail_fills_code_and_text_and_returns_the_code)
{
    mq_err err;
    ck_assert_int_eq(mq_fail(&err, MQ_E_SHAPE, "tensor '%s': %d", "x", 7), MQ_E_SHAPE);
    ck_assert_int_eq(err.code, MQ_E_SHAPE);
    ck_assert_str_eq(err.text, "tensor 'x': 7");
    ck_assert_int_eq(mq_fail(NULL, MQ_E_IO, "%s", "x"), MQ_E_IO);
}
END_TEST

START_TEST(an_empty_text_becomes_the_name_of_its_code)
{
    mq_err err;
    mq_fail(&err, MQ_E_HASH, "%s", "");
    ck_assert_str_eq(err.text, "hash");
}
END_TEST

START_TEST(control_characters_and_bad_utf8_are_escaped)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"a\nb\tc\x1b[0m\x7f", "a\\x0ab\\x09c\\x1b[0m\\x7f"},
        {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\xc2\x85|\xc2\xa0", "\\xc2\\x85|\xc2\xa0"}, /* NEL is a control character, NBSP is none */
        {"\xff\x80", "\\xff\\x80"},                   /* stray bytes */
        {"\xc0\xaf \xe0\x80\xaf", "\\xc0\\xaf \\xe0\\x80\\xaf"}, /* overlong */
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},                     /* surrogate */
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},            /* past U+10FFFF */
        {"\xe2\x82", "\\xe2\\x82"},                              /* ends early */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mq_err err;
        mq_fail(&err, MQ_E_FORMAT, "%s", cases[i].in);
        ck_assert_str_eq(err.text, cases[i].out);
    }
}
END_TEST

START_TEST(texts_fit_to_the_byte_and_longer_ones_end_in_dots)
{
    char in[4 * MQ_ERR_TEXT];
    mq_err err;
    for (size_t n = MQ_ERR_TEXT - 6; n < sizeof in; n += n < MQ_ERR_TEXT + 6 ? 1 : 511) {
        memset(in, 'a', n);
        in[n] = '\0';
        mq_fail(&err, MQ_E_IO, "%s", in);
        size_t got = strlen(err.text);
        if (n <= MQ_ERR_TEXT - 1) {
            ck_assert_str_eq(err.text, in);
        } else {
            ck_assert_uint_eq(got, MQ_ERR_TEXT - 1);
            ck_assert_str_eq(err.text + got - 4, "a...");
        }
    }
}
END_TEST

START_TEST(a_cut_never_splits_a_character_or_an_escape)
{
    char in[2 * MQ_ERR_TEXT + 1];
    static const char *const pieces[] = {"\xf0\x9f\x98\x80", "\xe2\x82\xac", "\n"};
    for (size_t p = 0; p < 3; p++) {
        for (size_t lead = 0; lead < 4; lead++) {
            size_t n = lead;
            memset(in, 'a', lead);
            while (n + 4 < sizeof in) {
                strcpy(in + n, pieces[p]);
                n += strlen(pieces[p]);
            }
            mq_err err;
            mq_fail(&err, MQ_E_IO, "%s", in);
            size_t got = strlen(err.text);
            ck_assert_uint_le(got, MQ_ERR_TEXT - 1);
            ck_assert_str_eq(err.text + got - 3, "...");
            for (const char *s = err.text; *s;) {
                int k = mq_utf8_bytes(s, 4);
                ck_assert_int_gt(k, 0);
                s += k;
            }
            const char *before = err.text + got - 3 - (p == 2 ? 4 : strlen(pieces[p]));
            ck_assert_int_eq(
                strncmp(before, p == 2 ? "\\x0a" : pieces[p], p == 2 ? 4 : strlen(pieces[p])), 0);
        }
    }
}
END_TEST

START_TEST(wrap_puts_a_prefix_in_front_and_keeps_the_code)
{
    mq_err err;
    mq_status st = mq_fail(&err, MQ_E_HASH, "digest differs");
    ck_assert_int_eq(mq_wrap(&err, st, "layer %d", 3), MQ_E_HASH);
    ck_assert_int_eq(mq_wrap(&err, st, "a\nb"), MQ_E_HASH);
    ck_assert_str_eq(err.text, "a\\x0ab: layer 3: digest differs");
    ck_assert_int_eq(err.code, MQ_E_HASH);
    ck_assert_int_eq(mq_wrap(&err, MQ_OK, "x"), MQ_OK);
    ck_assert_str_eq(err.text, "a\\x0ab: layer 3: digest differs");
    ck_assert_int_eq(mq_wrap(NULL, MQ_E_IO, "x"), MQ_E_IO);
    for (int i = 0; i < 400; i++)
        mq_wrap(&err, st, "prefix");
    ck_assert_uint_le(strlen(err.text), MQ_ERR_TEXT - 1);
    ck_assert_str_eq(err.text + strlen(err.text) - 3, "...");
}
END_TEST

static mq_status leaves_early(int *reached)
{
    MQ_TRY(MQ_OK);
    *reached = 1;
    MQ_TRY(MQ_E_NUMERIC);
    *reached = 2;
    return MQ_OK;
}

START_TEST(try_leaves_with_the_callees_status)
{
    int reached = 0;
    ck_assert_int_eq(leaves_early(&reached), MQ_E_NUMERIC);
    ck_assert_int_eq(reached, 1);
}
END_TEST

START_TEST(every_code_has_its_own_name)
{
    for (int a = MQ_OK; a <= MQ_E_BUG; a++)
        for (int b = MQ_OK; b <= MQ_E_BUG; b++)
            ck_assert_int_eq(
                strcmp(mq_status_name((mq_status)a), mq_status_name((mq_status)b)) == 0, a == b);
    ck_assert_str_eq(mq_status_name(MQ_OK), "ok");
    ck_assert_str_eq(mq_status_name(MQ_E_FORMAT), "format");
    ck_assert_str_eq(mq_status_name((mq_status)99), "unknown");
}
END_TEST

/* Independent: decode with wide arithmetic, then ask whether the number needs that many bytes. */
static int utf8_slow(const unsigned char *s, int n)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    int k = s[0] < 0x80             ? 1
            : (s[0] & 0xe0) == 0xc0 ? 2
            : (s[0] & 0xf0) == 0xe0 ? 3
            : (s[0] & 0xf8) == 0xf0 ? 4
                                    : 0;
    if (k < 2 || k > n)
        return k == 1 ? 1 : 0;
    uint32_t c = s[0] & (0x7fu >> k);
    for (int i = 1; i < k; i++) {
        if (s[i] >> 6 != 2)
            return 0;
        c = c << 6 | (s[i] & 63u);
    }
    return c >= least[k] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff) ? k : 0;
}

START_TEST(utf8_rule_agrees_with_decoding_on_all_first_three_bytes)
{
    static const unsigned char last[] = {0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff};
    for (uint32_t v = 0; v < 1u << 24; v++) {
        unsigned char s[4] = {(unsigned char)(v >> 16), (unsigned char)(v >> 8), (unsigned char)v,
                              0x80};
        s[3] = last[v % 6];
        for (int n = v % 7 == 0 ? 0 : 4; n <= 4; n++)
            if (mq_utf8_bytes((const char *)s, n) != (n ? utf8_slow(s, n) : 0))
                ck_abort_msg("%02x %02x %02x %02x, %d bytes", s[0], s[1], s[2], s[3], n);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("status");
    TCase *t = tcase_create("status");
    tcase_add_test(t, fail_fills_code_and_text_and_returns_the_code);
    tcase_add_test(t, an_empty_text_becomes_the_name_of_its_code);
    tcase_add_test(t, control_characters_and_bad_utf8_are_escaped);
    tcase_add_test(t, texts_fit_to_the_byte_and_longer_ones_end_in_dots);
    tcase_add_test(t, a_cut_never_splits_a_character_or_an_escape);
    tcase_add_test(t, wrap_puts_a_prefix_in_front_and_keeps_the_code);
    tcase_add_test(t, try_leaves_with_the_callees_status);
    tcase_add_test(t, every_code_has_its_own_name);
    tcase_add_test(t, utf8_rule_agrees_with_decoding_on_all_first_three_bytes);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
