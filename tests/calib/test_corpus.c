/* Calibration tokens, with a tokenizer whose ids are bytes: windows, ends of documents, mixtures (shares, files that run
 * out, prefixes), the digest, every error with its text; and the bundled text as mimo-verify reads it. */
#include "calib/corpus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/documents.h"
#include "src/file.h"
#include "src/vocab.h"
#include "tests/harness.h"

enum { END = 256 }; /* the end-of-text id of these tests */

static const char pre_tokenizer[] =
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"
    "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
    "\"trim_offsets\":true,\"use_regex\":false}]}";

/* Ids are bytes: 256 byte tokens and no merges. */
static mq_tokenizer *byte_tokenizer(void)
{
    mq_buf b = mq_buf_empty();
    mq_err err = {0};
    mq_tokenizer *t;
    mq_buf_fmt(&b,
               "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":{\"type\":\"NFC\"},"
               "\"pre_tokenizer\":%s,\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
               "\"unk_token\":null,\"vocab\":{",
               pre_tokenizer);
    for (int i = 0; i < 256; i++)
        mq_buf_fmt(&b, "%s\"\\u%04x\":%d", i ? "," : "", (unsigned)mq_byte_to_char(i), i);
    mq_buf_str(&b, "},\"merges\":[]}}");
    mq_assert_ok(mq_tokenizer_parse(&t, b.data, b.n_bytes, "bytes.json", &err), &err);
    mq_buf_release(&b);
    return t;
}

/* A file in a folder of the test's; the path lives as long as the program. */
static const char *text_file(const char *name, const char *text)
{
    mq_err err = {0};
    const char *dir = mq_test_dir();
    mq_assert_ok(mq_file_save(dir, name, text, (int64_t)strlen(text), &err), &err);
    return mq_path_join(dir, name);
}

/* n times the letter: with the end id, n + 1 tokens. */
static const char *letters(const char *name, char letter, int n)
{
    char *text = malloc((size_t)n + 1);
    memset(text, letter, (size_t)n);
    text[n] = '\0';
    const char *path = text_file(name, text);
    free(text);
    return path;
}

static mq_status read_corpus(mq_corpus *c, const mq_corpus_file *files, int64_t n_files, int64_t window,
                             int64_t n_tokens, mq_err *err)
{
    mq_tokenizer *t = byte_tokenizer();
    mq_status st = mq_corpus_read(c, files, n_files, t, END, window, n_tokens, err);
    mq_tokenizer_close(t);
    return st;
}

START_TEST(documents_are_joined_and_cut_into_windows)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f = {text_file("a.txt", "ab" MQ_DOCUMENTS_SEPARATOR MQ_DOCUMENTS_SEPARATOR "cdef"), 1};
    mq_assert_ok(read_corpus(&c, &f, 1, 3, 100, &err), &err);
    /* a b end | end c d | e f end: all nine tokens */
    const int32_t expected[] = {'a', 'b', END, END, 'c', 'd', 'e', 'f', END};
    ck_assert_int_eq(c.n_windows, 3);
    ck_assert_int_eq(c.window, 3);
    ck_assert_mem_eq(c.ids, expected, sizeof expected);
    ck_assert_int_eq(c.n_files, 1);
    ck_assert_int_eq(c.windows_of[0], 3);
    mq_corpus_release(&c);
    ck_assert_ptr_null(c.ids);
    mq_assert_ok(read_corpus(&c, &f, 1, 4, 100, &err), &err); /* a last piece of one token is left out */
    ck_assert_int_eq(c.n_windows, 2);
    mq_corpus_release(&c);
    mq_assert_ok(read_corpus(&c, &f, 1, 2, 5, &err), &err); /* 5 tokens: two windows of 2 */
    ck_assert_int_eq(c.n_windows, 2);
    mq_corpus_release(&c);
    mq_assert_ok(read_corpus(&c, &f, 1, 4, 1, &err), &err); /* at least one window */
    ck_assert_int_eq(c.n_windows, 1);
    mq_corpus_release(&c);
}
END_TEST

START_TEST(jsonl_gives_the_same_tokens)
{
    mq_err err = {0};
    mq_corpus a, b;
    mq_corpus_file text = {text_file("a.txt", "ab" MQ_DOCUMENTS_SEPARATOR "c\n"), 1};
    mq_corpus_file lines = {text_file("b.jsonl", "{\"text\":\"ab\"}\r\n\r\n{\"n\":[1],\"text\":\"c\\n\"}"), 1};
    mq_assert_ok(read_corpus(&a, &text, 1, 2, 100, &err), &err);
    mq_assert_ok(read_corpus(&b, &lines, 1, 2, 100, &err), &err);
    ck_assert_int_eq(a.n_windows, 3); /* a b | end c | \n end */
    ck_assert_int_eq(b.n_windows, 3);
    ck_assert_mem_eq(a.ids, b.ids, 6 * sizeof *a.ids);
    ck_assert_mem_eq(a.sha256, b.sha256, MQ_SHA256_BYTES);
    mq_corpus_release(&a);
    mq_corpus_release(&b);
}
END_TEST

START_TEST(digest_is_of_little_endian_ids)
{
    mq_err err = {0};
    mq_corpus c;
    uint8_t expected[MQ_SHA256_BYTES];
    mq_corpus_file f = {text_file("a.txt", "a"), 1};
    mq_assert_ok(read_corpus(&c, &f, 1, 2, 2, &err), &err);
    mq_sha256_of(expected, "\x61\0\0\0\0\x01\0\0", 8); /* 97 and 256 */
    ck_assert_mem_eq(c.sha256, expected, MQ_SHA256_BYTES);
    mq_corpus_release(&c);
}
END_TEST

START_TEST(a_file_is_read_only_as_far_as_needed)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f = {text_file("a.txt", "abcdef" MQ_DOCUMENTS_SEPARATOR "\xFF"), 1};
    mq_assert_ok(read_corpus(&c, &f, 1, 3, 6, &err), &err);
    mq_corpus_release(&c);
    mq_assert_fails(read_corpus(&c, &f, 1, 3, 9, &err), MQ_E_FORMAT, &err, "a.txt: byte 19 is not UTF-8");
}
END_TEST

/* Weights 2 : 1 : 1 of 10 windows: 5, 2.5, 2.5; the one that is left goes to the earlier file. */
START_TEST(shares_go_by_weight_and_largest_remainder)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f[] = {{letters("a", 'a', 200), 2}, {letters("b", 'b', 200), 1}, {letters("c", 'c', 200), 1}};
    mq_assert_ok(read_corpus(&c, f, 3, 4, 40, &err), &err);
    ck_assert_int_eq(c.n_windows, 10);
    ck_assert_int_eq(c.windows_of[0], 5);
    ck_assert_int_eq(c.windows_of[1], 3);
    ck_assert_int_eq(c.windows_of[2], 2);
    mq_corpus_release(&c);
    f[0].weight = 0.7; /* of 10: 7, 1.5, 1.5 */
    f[1].weight = f[2].weight = 0.15;
    mq_assert_ok(read_corpus(&c, f, 3, 4, 40, &err), &err);
    ck_assert_int_eq(c.windows_of[0], 7);
    ck_assert_int_eq(c.windows_of[1] + c.windows_of[2], 3);
    mq_corpus_release(&c);
    f[0].weight = 1e6; /* nothing is left for the others */
    mq_assert_ok(read_corpus(&c, f, 3, 4, 40, &err), &err);
    ck_assert_int_eq(c.windows_of[0], 10);
    ck_assert_int_eq(c.windows_of[2], 0);
    mq_corpus_release(&c);
}
END_TEST

/* b has two windows of its four; the other two are shared out among a and c, which have the same weight. */
START_TEST(a_file_that_runs_out_leaves_its_share)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f[] = {{letters("a", 'a', 199), 1}, {letters("b", 'b', 8), 1}, {letters("c", 'c', 199), 1}};
    mq_assert_ok(read_corpus(&c, f, 3, 4, 48, &err), &err);
    ck_assert_int_eq(c.n_windows, 12);
    ck_assert_int_eq(c.windows_of[0], 5);
    ck_assert_int_eq(c.windows_of[1], 2);
    ck_assert_int_eq(c.windows_of[2], 5);
    mq_corpus_release(&c);
    f[2].path = letters("d", 'd', 19); /* 5 windows: now a gives what both lack */
    mq_assert_ok(read_corpus(&c, f, 3, 4, 80, &err), &err);
    ck_assert_int_eq(c.windows_of[0], 13);
    ck_assert_int_eq(c.windows_of[1], 2);
    ck_assert_int_eq(c.windows_of[2], 5);
    mq_corpus_release(&c);
    mq_assert_ok(read_corpus(&c, f, 3, 4, 4000, &err), &err); /* all three run out: what there is */
    ck_assert_int_eq(c.n_windows, 50 + 2 + 5);
    mq_corpus_release(&c);
}
END_TEST

START_TEST(windows_of_a_file_keep_their_order)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f[] = {{text_file("a", "abcdefgh"), 1}, {text_file("b", "ABCDEFGH"), 1}};
    mq_assert_ok(read_corpus(&c, f, 2, 2, 16, &err), &err);
    const int32_t expected[] = {'a', 'b', 'A', 'B', 'c', 'd', 'C', 'D', 'e', 'f', 'E', 'F', 'g', 'h', 'G', 'H'};
    ck_assert_int_eq(c.n_windows, 8);
    ck_assert_mem_eq(c.ids, expected, sizeof expected);
    mq_corpus_release(&c);
}
END_TEST

/* In the first k windows every file has its share of k, give or take less than one. */
START_TEST(every_prefix_is_mixed_alike)
{
    static const double weights[][5] = {{1, 1, 1, 1, 1}, {100, 10, 5, 2, 1}, {0.31, 0.29, 0.2, 0.17, 0.03}, {1, 50, 1, 50, 1}};
    static const char names[] = "abcde";
    mq_corpus_file f[5];
    for (int i = 0; i < 5; i++)
        f[i].path = letters((char[]){names[i], '\0'}, names[i], 4000);
    for (size_t w = 0; w < sizeof weights / sizeof weights[0]; w++) {
        mq_err err = {0};
        mq_corpus c;
        int64_t given[5] = {0};
        for (int i = 0; i < 5; i++)
            f[i].weight = weights[w][i];
        mq_assert_ok(read_corpus(&c, f, 5, 8, 8 * 301, &err), &err);
        ck_assert_int_eq(c.n_windows, 301);
        for (int64_t k = 0; k < 301; k++) {
            given[c.ids[8 * k] - 'a']++;
            for (int i = 0; i < 5; i++) {
                double fair = (double)c.windows_of[i] * (double)(k + 1) / 301;
                ck_assert_msg(fabs((double)given[i] - fair) < 1, "weights %zu, place %d, file %d: %d, fair %g", w, (int)k,
                              i, (int)given[i], fair);
            }
        }
        for (int i = 0; i < 5; i++)
            ck_assert_int_eq(given[i], c.windows_of[i]);
        mq_corpus_release(&c);
    }
}
END_TEST

START_TEST(too_little_text_is_told)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f[] = {{text_file("a.txt", "ab"), 1}, {text_file("b.txt", "c"), 1}};
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_ARG, &err,
                    "a.txt: 3 tokens of text, expected at least one window of 4");
    ck_assert_ptr_null(c.ids);
    mq_assert_fails(read_corpus(&c, f, 2, 4, 100, &err), MQ_E_ARG, &err,
                    "a.txt and others: 5 tokens of text, expected at least one window of 4");
}
END_TEST

START_TEST(files_without_text_are_refused)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f[] = {{text_file("empty.txt", ""), 1}};
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_FORMAT, &err, "empty.txt: holds no text");
    f[0].path = text_file("blank.jsonl", "\n \r\n");
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_FORMAT, &err, "blank.jsonl: holds no text");
    f[0].path = "/nowhere/x.txt";
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_IO, &err, "/nowhere/x.txt");
    f[0].path = text_file("bad.jsonl", "{\"text\":\"a\"}\n{\"text\":[]}\n");
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_FORMAT, &err,
                    "bad.jsonl: line 2: \"text\" is of type array, expected string");
}
END_TEST

START_TEST(arguments_are_checked)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f[] = {{text_file("a.txt", "abcdefgh"), 1}};
    mq_assert_fails(read_corpus(&c, f, 0, 4, 100, &err), MQ_E_ARG, &err, "no calibration text");
    mq_assert_fails(read_corpus(&c, f, 1, 0, 100, &err), MQ_E_ARG, &err, "100 tokens in windows of 0");
    mq_assert_fails(read_corpus(&c, f, 1, 4, 0, &err), MQ_E_ARG, &err, "0 tokens in windows of 4");
    mq_assert_fails(read_corpus(&c, f, 1, 1, INT64_C(1) << 40, &err), MQ_E_ARG, &err, "expected at most 268435456");
    f[0].weight = 0;
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_ARG, &err, "a.txt: weight 0, expected a positive number");
    f[0].weight = NAN;
    mq_assert_fails(read_corpus(&c, f, 1, 4, 100, &err), MQ_E_ARG, &err, "expected a positive number");
}
END_TEST

/* Documents one by one are the text as a whole, whose separators are tokens, and the last end. */
START_TEST(bundled_text_is_what_the_whole_text_gives)
{
    mq_err err = {0};
    mq_tokenizer *t;
    mq_tokens whole = {0}, joined = {0};
    mq_buf text = mq_buf_empty();
    const char *path = mq_test_path("tests/data/text/eval.txt");
    mq_assert_ok(mq_tokenizer_open(&t, mq_test_path("tests/data/nano/tokenizer.json"), &err), &err);
    int32_t end = mq_tokenizer_find(t, MQ_DOCUMENTS_SEPARATOR);
    ck_assert_int_eq(end, 4090);
    mq_assert_ok(mq_file_load(&text, path, 1 << 30, &err), &err);
    mq_assert_ok(mq_tokenizer_encode(t, &whole, text.data, text.n_bytes, true, &err), &err);
    mq_assert_ok(mq_tokens_append(&whole, end, &err), &err);
    mq_assert_ok(mq_corpus_tokens(&joined, path, t, end, &err), &err);
    ck_assert_int_eq(joined.n, whole.n);
    ck_assert_mem_eq(joined.ids, whole.ids, (size_t)whole.n * sizeof *whole.ids);

    mq_corpus c;
    mq_corpus_file f = {path, 1};
    mq_assert_ok(mq_corpus_read(&c, &f, 1, t, end, 512, 512 * 100, &err), &err);
    ck_assert_int_eq(c.n_windows, 100);
    ck_assert_mem_eq(c.ids, whole.ids, 512 * 100 * sizeof *c.ids);
    mq_corpus_release(&c);
    mq_tokens_release(&whole);
    mq_tokens_release(&joined);
    mq_buf_release(&text);
    mq_tokenizer_close(t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("corpus");
    TCase *t = tcase_create("corpus");
    tcase_add_test(t, documents_are_joined_and_cut_into_windows);
    tcase_add_test(t, jsonl_gives_the_same_tokens);
    tcase_add_test(t, digest_is_of_little_endian_ids);
    tcase_add_test(t, a_file_is_read_only_as_far_as_needed);
    tcase_add_test(t, shares_go_by_weight_and_largest_remainder);
    tcase_add_test(t, a_file_that_runs_out_leaves_its_share);
    tcase_add_test(t, windows_of_a_file_keep_their_order);
    tcase_add_test(t, every_prefix_is_mixed_alike);
    tcase_add_test(t, too_little_text_is_told);
    tcase_add_test(t, files_without_text_are_refused);
    tcase_add_test(t, arguments_are_checked);
    tcase_add_test(t, bundled_text_is_what_the_whole_text_gives);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
