/* UTF-8, classes and NFC against values from the Unicode standard and brute force; equality with
 * the library is test_tokenizer_reference.py's. */
#include "src/unicode.h"

#include <stdlib.h>
#include <string.h>

#include "src/utf8.h"
#include "tests/harness.h"

START_TEST(every_code_point_survives_writing_and_reading)
{
    for (int32_t cp = 0; cp < 0x110000; cp++) {
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        char bytes[4];
        int32_t back;
        int n = mq_unicode_put(bytes, cp);
        ck_assert_int_eq(mq_unicode_next(bytes, n, &back), n);
        ck_assert_int_eq(back, cp);
    }
}
END_TEST

START_TEST(the_rule_is_that_of_utf8_h)
{
    uint64_t state = 1;
    for (int i = 0; i < 2000000; i++) {
        uint64_t r = mq_test_rand(&state);
        char bytes[4] = {(char)(r | 0x80), (char)(r >> 8), (char)(r >> 16), (char)(r >> 24)};
        for (int k = 1; k < 4; k++)
            bytes[k] = (char)(r >> (32 + k) & 7 ? (bytes[k] & 0x3F) | 0x80 : bytes[k]);
        int64_t n_bytes = 1 + (int64_t)(r >> 40 & 3);
        int32_t cp;
        int n = mq_unicode_next(bytes, n_bytes, &cp), n_valid = mq_utf8_bytes(bytes, n_bytes);
        ck_assert_int_eq(cp >= 0 ? n : 0, n_valid);
        ck_assert(n >= 1 && n <= n_bytes);
    }
}
END_TEST

static void check_lossy(const char *bytes, const char *expected)
{
    mq_buf out = mq_buf_empty();
    mq_unicode_append_lossy(&out, bytes, (int64_t)strlen(bytes));
    ck_assert_str_eq(out.data, expected);
    mq_buf_release(&out);
}

#define FFFD "\xEF\xBF\xBD"

START_TEST(damage_becomes_one_replacement_a_maximal_subpart)
{
    /* The Unicode Standard, tables 3-8 to 3-11. */
    check_lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41",
                FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    check_lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41",
                FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    check_lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B");
    check_lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", FFFD FFFD FFFD FFFD "A");
    check_lossy("ok", "ok");
}
END_TEST

START_TEST(classes_of_known_characters)
{
    static const struct {
        int32_t cp;
        mq_char_class c;
    } known[] = {
        {'a', MQ_CHAR_LETTER},     {'Z', MQ_CHAR_LETTER},    {'@', MQ_CHAR_OTHER},
        {'[', MQ_CHAR_OTHER},      {'_', MQ_CHAR_OTHER},     {'0', MQ_CHAR_NUMBER},
        {'9', MQ_CHAR_NUMBER},     {'\n', MQ_CHAR_NEWLINE},  {'\r', MQ_CHAR_NEWLINE},
        {' ', MQ_CHAR_SPACE},      {'\t', MQ_CHAR_SPACE},    {0x0B, MQ_CHAR_SPACE},
        {0x1C, MQ_CHAR_OTHER},     {0x85, MQ_CHAR_SPACE},    {0xA0, MQ_CHAR_SPACE},
        {0xAA, MQ_CHAR_LETTER},    {0xBD, MQ_CHAR_NUMBER},   {0x301, MQ_CHAR_OTHER},
        {0x180E, MQ_CHAR_OTHER},   {0x200A, MQ_CHAR_SPACE},  {0x200B, MQ_CHAR_OTHER},
        {0x2028, MQ_CHAR_SPACE},   {0x2160, MQ_CHAR_NUMBER}, {0x3000, MQ_CHAR_SPACE},
        {0x3007, MQ_CHAR_NUMBER},  {0x65E5, MQ_CHAR_LETTER}, {0x1F600, MQ_CHAR_OTHER},
        {0x2EBF0, MQ_CHAR_LETTER}, /* Unicode 15.1 */
        {0x1C89, MQ_CHAR_LETTER},  /* 16.0 */
        {0x1CCF0, MQ_CHAR_NUMBER}, /* 16.0 */
        {0x10FFFF, MQ_CHAR_OTHER},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        ck_assert_msg(mq_unicode_class(known[i].cp) == known[i].c, "U+%04X", (unsigned)known[i].cp);
}
END_TEST

static void check_nfc(const char *text, const char *expected)
{
    mq_err err = {0};
    mq_buf out = mq_buf_empty();
    mq_assert_ok(mq_unicode_nfc(&out, text, (int64_t)strlen(text), &err), &err);
    ck_assert_str_eq(out.data ? out.data : "", expected);
    mq_buf_release(&out);
}

START_TEST(nfc_of_known_texts)
{
    check_nfc("", "");
    check_nfc("plain", "plain");
    check_nfc("e\xCC\x81", "\xC3\xA9"); /* e + acute */
    check_nfc("xe\xCC\x81y e\xCC\x81", "x\xC3\xA9y \xC3\xA9");
    check_nfc("\xCC\x81"
              "a",
              "\xCC\x81"
              "a"); /* a mark with no base */
    check_nfc("a\xCC\x81\xCC\xA3",
              "\xE1\xBA\xA1\xCC\x81");     /* acute, dot below: the dot is ordered first */
    check_nfc("\xE2\x84\xAB", "\xC3\x85"); /* Angstrom sign */
    check_nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81"); /* Hangul L V T */
    check_nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA7",
              "\xEA\xB0\x80\xE1\x86\xA7");                 /* U+11A7 is no T */
    check_nfc("\xEF\xAC\x81", "\xEF\xAC\x81");             /* fi ligature: only compatibility */
    check_nfc("\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"); /* U+0958: excluded from composition */
    check_nfc("e\xDF\xBD\xCC\x81", "e\xDF\xBD\xCC\x81");   /* U+07FD: a starter to the library */
}
END_TEST

START_TEST(plain_text_needs_no_nfc)
{
    ck_assert(mq_unicode_is_plain("", 0));
    ck_assert(mq_unicode_is_plain("abc\xC3\xA9\xCB\xBF", 7));
    ck_assert(!mq_unicode_is_plain("abc\xCC\x80", 5));
    ck_assert(!mq_unicode_is_plain("\xF0\x9F\x98\x80", 4));
}
END_TEST

/* Swaps of neighbours in the wrong order until there are none: the standard's own definition
 * (D109). */
START_TEST(marks_are_ordered_as_by_swapping_neighbours)
{
    static const struct {
        const char *bytes;
        int class;
    } marks[] = {{"\xCC\x95", 232}, {"\xCC\xA4", 220}, {"\xCC\x85", 230},
                 {"\xCC\xB5", 1},   {"\xCC\xAD", 220}, {"\xD6\xB0", 10}};
    uint64_t state = 5;
    for (int round = 0; round < 2000; round++) {
        int n = (int)(mq_test_rand(&state) % 40), at[40];
        char text[100] = "x", expected[100] = "x";
        for (int i = 0; i < n; i++) {
            at[i] = (int)(mq_test_rand(&state) % 6);
            strcat(text, marks[at[i]].bytes);
        }
        for (int i = 0; i + 1 < n;) {
            if (marks[at[i]].class > marks[at[i + 1]].class) {
                int swap = at[i];
                at[i] = at[i + 1];
                at[i + 1] = swap;
                i = i > 0 ? i - 1 : 0;
            } else {
                i++;
            }
        }
        for (int i = 0; i < n; i++)
            strcat(expected, marks[at[i]].bytes);
        check_nfc(text, expected);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("unicode");
    TCase *t = tcase_create("unicode");
    tcase_add_test(t, every_code_point_survives_writing_and_reading);
    tcase_add_test(t, the_rule_is_that_of_utf8_h);
    tcase_add_test(t, damage_becomes_one_replacement_a_maximal_subpart);
    tcase_add_test(t, classes_of_known_characters);
    tcase_add_test(t, nfc_of_known_texts);
    tcase_add_test(t, plain_text_needs_no_nfc);
    tcase_add_test(t, marks_are_ordered_as_by_swapping_neighbours);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
