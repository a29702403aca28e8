/* Qwen2's pattern by own code against PCRE2 running the same pattern, on characters that both know;
 * and the walk's rules for empty matches, gaps and limits. */
#include "src/pretokenize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

/* Pieces joined by '|'. */
static void pieces_of(char *line, size_t cap, const mq_split *s, const char *text)
{
    mq_err err = {0};
    mq_split_walk w;
    int64_t start, end, covered = 0;
    size_t at = 0;
    line[0] = '\0';
    mq_assert_ok(mq_split_walk_init(&w, s, text, (int64_t)strlen(text), &err), &err);
    for (;;) {
        mq_assert_ok(mq_split_walk_next(&w, &start, &end, &err), &err);
        if (start == end)
            break;
        ck_assert_int_eq(start, covered);
        covered = end;
        at += (size_t)snprintf(line + at, cap - at, at ? "|%.*s" : "%.*s", (int)(end - start),
                               text + start);
    }
    ck_assert_int_eq(covered, (int64_t)strlen(text));
    mq_split_walk_release(&w);
}

static void check_pieces(const char *pattern, const char *text, const char *expected)
{
    mq_err err = {0};
    mq_split *s;
    char line[1000];
    mq_assert_ok(mq_split_create(&s, pattern, &err), &err);
    pieces_of(line, sizeof line, s, text);
    ck_assert_str_eq(line, expected);
    mq_split_free(s);
}

START_TEST(qwen2_pieces_worked_by_hand)
{
    check_pieces(MQ_SPLIT_QWEN2, "", "");
    check_pieces(MQ_SPLIT_QWEN2, "Hello world", "Hello| world");
    check_pieces(MQ_SPLIT_QWEN2, "I'm we'RE it'x 's", "I|'m| we|'RE| it|'x| '|s");
    check_pieces(MQ_SPLIT_QWEN2, "'\xC5\xBF'l'll", "'\xC5\xBF|'l|'ll");
    check_pieces(MQ_SPLIT_QWEN2, "x=12", "x|=|1|2");
    check_pieces(MQ_SPLIT_QWEN2, "  a   12 ", " | a|  | |1|2| ");
    check_pieces(MQ_SPLIT_QWEN2, "a  \n \n  b", "a|  \n \n| | b");
    check_pieces(MQ_SPLIT_QWEN2, "() {\r\n\n}\n", "()| {\r\n\n|}\n");
    check_pieces(MQ_SPLIT_QWEN2, "\t.x\n.x", "\t|.x|\n|.x");
    check_pieces(MQ_SPLIT_QWEN2, "\xC3\xA9t\xC3\xA9!\xE3\x80\x80\xE6\x97\xA5",
                 "\xC3\xA9t\xC3\xA9|!|\xE3\x80\x80\xE6\x97\xA5");
}
END_TEST

START_TEST(own_code_equals_pcre2)
{
    static const char *const parts[] = {"a",
                                        "S",
                                        "\xC5\xBF",
                                        "'",
                                        "'s",
                                        "'LL",
                                        "'v",
                                        "e",
                                        "1",
                                        "\xC2\xBD",
                                        " ",
                                        "  ",
                                        "\t",
                                        "\n",
                                        "\r",
                                        "\xC2\xA0",
                                        "\xE3\x80\x80",
                                        "!",
                                        ".",
                                        "\xCC\x81",
                                        "\xC3\xA9",
                                        "\xE6\x97\xA5",
                                        "\xF0\x9F\x98\x80"};
    uint64_t state = 3;
    mq_err err = {0};
    mq_split *own, *pcre2;
    mq_assert_ok(mq_split_create(&own, MQ_SPLIT_QWEN2, &err), &err);
    mq_assert_ok(mq_split_create_pcre2(&pcre2, MQ_SPLIT_QWEN2, &err), &err);
    for (int round = 0; round < 20000; round++) {
        char text[200] = "", a[500], b[500];
        for (int n = (int)(mq_test_rand(&state) % 20); n > 0; n--)
            strcat(text, parts[mq_test_rand(&state) % (sizeof parts / sizeof *parts)]);
        pieces_of(a, sizeof a, own, text);
        pieces_of(b, sizeof b, pcre2, text);
        ck_assert_str_eq(a, b);
    }
    mq_split_free(own);
    mq_split_free(pcre2);
}
END_TEST

START_TEST(gaps_and_empty_matches_cut)
{
    check_pieces("b+", "abbcb", "a|bb|c|b");
    check_pieces("x", "abc", "abc");
    check_pieces("", "ab\xC3\xA9", "a|b|\xC3\xA9");
    check_pieces("(?=b)", "aabab", "aa|ba|b");
    check_pieces("a*", "baab", "b|aa|b");
    check_pieces("$", "ab", "ab");
    check_pieces("(?<=a)b", "abb", "a|b|b"); /* the text before the place is seen */
}
END_TEST

START_TEST(patterns_that_do_not_compile_are_refused)
{
    mq_err err = {0};
    mq_split *s;
    mq_assert_fails(mq_split_create(&s, "[a", &err), MQ_E_UNSUPPORTED, &err,
                    "split pattern: missing terminating ] for character class at byte 2");
    ck_assert_ptr_null(s);
    mq_assert_fails(mq_split_create(&s, "\\p{Nope}", &err), MQ_E_UNSUPPORTED, &err,
                    "split pattern: unknown property");
    mq_assert_fails(mq_split_create(&s, "((((a{1,9999}){1,9999}){1,9999}){1,9999})", &err),
                    MQ_E_UNSUPPORTED, &err, "split pattern: ");
    mq_assert_fails(mq_split_create(&s, "(?=a\\K)", &err), MQ_E_UNSUPPORTED, &err,
                    "not allowed in lookarounds");
    char *huge = calloc(1, 5000);
    ck_assert_ptr_nonnull(huge);
    memset(huge, 'a', 4097);
    mq_assert_fails(mq_split_create(&s, huge, &err), MQ_E_UNSUPPORTED, &err,
                    "4097 bytes, at most 4096");
    free(huge);
    mq_split_free(NULL);
}
END_TEST

static void check_limit(const char *pattern, const char *text, int64_t n_bytes,
                        const char *fragment)
{
    mq_err err = {0};
    mq_split *s;
    mq_split_walk w;
    int64_t start, end;
    mq_assert_ok(mq_split_create(&s, pattern, &err), &err);
    mq_assert_ok(mq_split_walk_init(&w, s, text, n_bytes, &err), &err);
    mq_assert_fails(mq_split_walk_next(&w, &start, &end, &err), MQ_E_FORMAT, &err, fragment);
    mq_split_walk_release(&w);
    mq_split_free(s);
}

START_TEST(limits_end_endless_matches)
{
    char text[64] = {0};
    memset(text, 'x', 40);
    strcat(text, " y");
    check_limit("(x+x+)+y", text, 42, "split pattern at byte 0: match limit exceeded");
    check_limit("(*NO_JIT)(x+x+)+y", text, 42, "split pattern at byte 0: match limit exceeded");
    check_limit("(?(DEFINE)(?<r>(?&r)?x))(?&r)", text, 42, "split pattern at byte 0: ");
}
END_TEST

START_TEST(deep_backtracking_leaves_the_jit_stack)
{
    /* Each repetition saves a place: more than the fixed JIT stack holds, within the interpreter's
     * heap limit. */
    enum { N = 100000 };
    mq_err err = {0};
    mq_split *s;
    mq_split_walk w;
    int64_t start, end;
    char *text = malloc(N);
    ck_assert_ptr_nonnull(text);
    memset(text, 'a', N);
    mq_assert_ok(mq_split_create(&s, "(?:(a)|b)*c|a", &err), &err);
    mq_assert_ok(mq_split_walk_init(&w, s, text, N, &err), &err);
    text[N - 1] = 'c';
    mq_assert_ok(mq_split_walk_next(&w, &start, &end, &err), &err);
    ck_assert_int_eq(end, N);
    mq_split_walk_release(&w);
    mq_split_free(s);
    free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pretokenize");
    TCase *t = tcase_create("pretokenize");
    tcase_add_test(t, qwen2_pieces_worked_by_hand);
    tcase_add_test(t, own_code_equals_pcre2);
    tcase_add_test(t, gaps_and_empty_matches_cut);
    tcase_add_test(t, patterns_that_do_not_compile_are_refused);
    tcase_add_test(t, limits_end_endless_matches);
    tcase_add_test(t, deep_backtracking_leaves_the_jit_stack);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
