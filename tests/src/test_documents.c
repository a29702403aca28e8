/* The reader of documents: separators, empty documents, byte-order marks, line ends, pieces across the blocks of the
 * reader, and every error with its text. */
#include "src/documents.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/file.h"
#include "tests/harness.h"

#define SEP MQ_DOCUMENTS_SEPARATOR

static char *write_file(const char *name, const char *bytes, int64_t n_bytes)
{
    mq_err err = {0};
    char *path = mq_path_join(mq_test_dir(), name);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    mq_assert_ok(mq_file_save(path, slash + 1, bytes, n_bytes, &err), &err);
    *slash = '/';
    return path;
}

/* The documents of a file with these bytes, joined by '|'. */
static mq_status read_all(mq_buf *joined, const char *name, const char *bytes, int64_t n_bytes, mq_err *err)
{
    char *path = write_file(name, bytes, n_bytes);
    mq_documents *d;
    mq_err mine = {0};
    mq_assert_ok(mq_documents_open(&d, path, mq_documents_is_jsonl(path), &mine), &mine);
    const char *text;
    int64_t n;
    bool first = true;
    mq_status st;
    while ((st = mq_documents_next(d, &text, &n, err)) == MQ_OK && text) {
        mq_buf_str(joined, first ? "" : "|");
        mq_buf_append(joined, text, n);
        first = false;
    }
    if (first && st == MQ_OK)
        mq_buf_str(joined, "(none)");
    mq_documents_close(d);
    free(path);
    return st;
}

static void expect_n(const char *name, const char *bytes, int64_t n_bytes, const char *joined)
{
    mq_err err = {0};
    mq_buf b = mq_buf_empty();
    mq_assert_ok(read_all(&b, name, bytes, n_bytes, &err), &err);
    ck_assert_str_eq(b.data ? b.data : "", joined);
    mq_buf_release(&b);
}

static void expect(const char *name, const char *bytes, const char *joined)
{
    expect_n(name, bytes, (int64_t)strlen(bytes), joined);
}

static void expect_error(const char *name, const char *bytes, const char *fragment)
{
    mq_err err = {0};
    mq_buf b = mq_buf_empty();
    mq_assert_fails(read_all(&b, name, bytes, (int64_t)strlen(bytes), &err), MQ_E_FORMAT, &err, fragment);
    ck_assert_ptr_nonnull(strstr(err.text, name));
    mq_buf_release(&b);
}

START_TEST(separators_end_documents)
{
    expect("a.txt", "one" SEP "two", "one|two");
    expect("a.txt", "one" SEP "two" SEP, "one|two");
    expect("a.txt", "one" SEP SEP "two", "one||two");
    expect("a.txt", SEP "one", "|one");
    expect("a.txt", SEP, "");
    expect("a.txt", "one", "one");
    expect("a.txt", "", "(none)");
    expect("a.txt", "one<|endoftext|two<|endoftext", "one<|endoftext|two<|endoftext");
}
END_TEST

START_TEST(text_keeps_line_ends_and_blanks)
{
    expect("a.txt", "a\r\n" SEP "\r\nb\n", "a\r\n|\r\nb\n");
    expect("a.txt", " " SEP "\n", " |\n");
}
END_TEST

START_TEST(a_mark_at_the_beginning_is_left_out)
{
    expect("a.txt", "\xEF\xBB\xBFone" SEP "\xEF\xBB\xBFtwo", "one|\xEF\xBB\xBFtwo");
    expect("a.txt", "\xEF\xBB\xBF", "(none)");
    expect("a.jsonl", "\xEF\xBB\xBF{\"text\":\"one\"}\n", "one");
    expect("a.txt", "ab", "ab"); /* shorter than a mark */
}
END_TEST

START_TEST(lines_hold_documents)
{
    expect("a.jsonl", "{\"text\":\"one\"}\n{\"id\":7,\"text\":\"t\\u0077o\\n\"}\n", "one|two\n");
    expect("a.jsonl", "{\"text\":\"one\"}\r\n\r\n \t\n{\"text\":\"two\"}", "one|two"); /* CRLF, blank lines, no last newline */
    expect("a.jsonl", "{\"text\":\"\"}\n{\"text\":\"x\"}\n", "|x");
    expect("a.jsonl", "", "(none)");
    expect("a.jsonl", "\n\r\n", "(none)");
    expect("A.JSONL", "{\"text\":\"one" SEP "\"}", "one" SEP); /* no separator here */
    expect("a.json", "{\"text\":\"one\"}", "{\"text\":\"one\"}"); /* plain text by its name */
}
END_TEST

START_TEST(a_document_may_hold_a_zero_byte)
{
    const char bytes[] = "a\0b" SEP "c";
    mq_err err = {0};
    mq_buf b = mq_buf_empty();
    mq_assert_ok(read_all(&b, "a.txt", bytes, (int64_t)sizeof bytes - 1, &err), &err);
    ck_assert_int_eq(b.n_bytes, 5);
    ck_assert_mem_eq(b.data, "a\0b|c", 5);
    mq_buf_release(&b);
}
END_TEST

/* Documents and separators at every place around the edge of a block (256 KiB), and one of several blocks. */
START_TEST(blocks_do_not_show)
{
    enum { BLOCK = 256 << 10 };
    char *bytes = malloc(3 * BLOCK), *joined = malloc(3 * BLOCK);
    for (int shift = -15; shift <= 2; shift++) {
        int64_t n = BLOCK + shift;
        memset(bytes, 'x', (size_t)n);
        memcpy(bytes + n, SEP "two", sizeof SEP + 2);
        memset(joined, 'x', (size_t)n);
        memcpy(joined + n, "|two", 5);
        expect_n("a.txt", bytes, n + (int64_t)sizeof SEP + 2, joined);
    }
    memset(bytes, 'y', 3 * BLOCK);
    memcpy(bytes + 5, SEP, sizeof SEP - 1);
    memset(joined, 'y', 3 * BLOCK);
    joined[5] = '|';
    int64_t n = 3 * BLOCK - 7;
    joined[n - (int64_t)sizeof SEP + 2] = '\0';
    expect_n("a.txt", bytes, n, joined);
    free(bytes);
    free(joined);
}
END_TEST

START_TEST(a_long_line_passes_the_block)
{
    enum { N = 700000 };
    mq_buf line = mq_buf_empty();
    char *x = malloc(N + 1);
    memset(x, 'x', N);
    x[N] = '\0';
    mq_buf_fmt(&line, "{\"text\":\"%s\"}\n{\"text\":\"y\"}\n", x);
    mq_buf joined = mq_buf_empty();
    mq_buf_fmt(&joined, "%s|y", x);
    expect_n("a.jsonl", line.data, line.n_bytes, joined.data);
    mq_buf_release(&line);
    mq_buf_release(&joined);
    free(x);
}
END_TEST

START_TEST(bytes_that_are_not_utf8_are_named)
{
    expect_error("a.txt", "ab\xFF", "a.txt: byte 2 is not UTF-8");
    expect_error("a.txt", "caf\xC3\xA9" SEP "x\xC3" SEP, "a.txt: byte 19 is not UTF-8");
    expect_error("a.txt", "\xEF\xBB\xBF\xC3", "a.txt: byte 3 is not UTF-8"); /* an offset of the file, the mark counted */
    expect_error("a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xE9\"}\n", "a.jsonl: line 2: byte 22 of the file is not UTF-8");
}
END_TEST

START_TEST(lines_that_are_no_documents_are_named)
{
    expect_error("a.jsonl", "{\"text\":\"a\"}\n\n{\"text\":}\n", "a.jsonl: line 3: JSON byte 8");
    expect_error("a.jsonl", "{\"text\":\"a\"} {}\n", "a.jsonl: line 1: JSON byte");
    expect_error("a.jsonl", "[\"text\"]\n", "a.jsonl: line 1: is of type array, expected object");
    expect_error("a.jsonl", "{\"Text\":\"a\"}\n", "a.jsonl: line 1: no \"text\"");
    expect_error("a.jsonl", "{\"text\":\"a\"}\r\n{\"text\":17}", "a.jsonl: line 2: \"text\" is of type number, expected string");
    expect_error("a.jsonl", "{\"text\":null}", "\"text\" is of type null, expected string");
    expect_error("a.jsonl", "plain words\n", "a.jsonl: line 1: JSON byte 0");
}
END_TEST

/* Parts from the first start at or behind off, joined by '|', "||" where a document ends. */
static void expect_parts(const char *name, const char *bytes, int64_t off, int64_t start, const char *joined)
{
    mq_err err = {0};
    mq_buf b = mq_buf_empty();
    mq_documents *d;
    char *path = write_file(name, bytes, (int64_t)strlen(bytes));
    const char *text;
    int64_t n;
    bool ends;
    mq_assert_ok(mq_documents_open(&d, path, mq_documents_is_jsonl(path), &err), &err);
    ck_assert_int_eq(mq_documents_file_bytes(d), (int64_t)strlen(bytes));
    for (int again = 0; again < 2; again++) { /* back from the end as well */
        mq_buf_clear(&b);
        mq_assert_ok(mq_documents_seek(d, off, &err), &err);
        ck_assert_int_eq(mq_documents_off(d), start);
        for (;;) {
            mq_assert_ok(mq_documents_next_part(d, &text, &n, &ends, &err), &err);
            if (!text)
                break;
            mq_buf_append(&b, text, n);
            mq_buf_str(&b, ends ? "||" : "|");
        }
        ck_assert_int_eq(mq_documents_off(d), (int64_t)strlen(bytes));
        ck_assert_str_eq(b.data ? b.data : "", joined);
    }
    mq_documents_close(d);
    mq_buf_release(&b);
    free(path);
}

START_TEST(files_are_entered_at_starts)
{
    expect_parts("a.txt", "ab\ncd\n\n ef\ngh", 0, 0, "ab\n|cd\n\n ef\n|gh||");
    expect_parts("a.txt", "ab\ncd\n\n ef\ngh", 1, 3, "cd\n\n ef\n|gh||");
    expect_parts("a.txt", "ab\ncd\n\n ef\ngh", 3, 3, "cd\n\n ef\n|gh||");
    expect_parts("a.txt", "ab\ncd\n\n ef\ngh", 4, 11, "gh||");
    expect_parts("a.txt", "ab\ncd\n\n ef\ngh", 12, 13, "");
    expect_parts("a.txt", "ab\ncd\n\n ef\ngh", 99, 13, "");
    expect_parts("a.txt", "a" SEP "b\n" SEP SEP "c\r\n\r\n\tx\n", 1, 14, "b\n||||c\r\n\r\n\tx\n||");
    expect_parts("a.txt", "a" SEP "b\n" SEP SEP "c\r\n\r\n\tx\n", 15, 29, "||c\r\n\r\n\tx\n||");
    expect_parts("a.txt", "a" SEP "b\n" SEP SEP "c", 30, 42, "c||");
    expect_parts("a.txt", "ab" SEP, 1, 15, "");
    expect_parts("a.txt", "\xEF\xBB\xBF\nab", 1, 3, "\n|ab||");
    expect_parts("a.jsonl", "{\"text\":\"a\\nb\"}\n\n{\"text\":\"\"}\n", 0, 0, "a\nb||||");
    expect_parts("a.jsonl", "{\"text\":\"a\\nb\"}\n\n{\"text\":\"\"}\n", 1, 16, "||");
    expect_parts("a.jsonl", "{\"text\":\"a\\nb\"}\n\n{\"text\":\"\"}\n", 17, 17, "||");
    expect_parts("a.jsonl", "{\"text\":\"a\\nb\"}\n\n{\"text\":\"\"}\n", 18, 29, "");
}
END_TEST

START_TEST(what_is_no_file_is_refused)
{
    mq_err err = {0};
    mq_documents *d;
    mq_assert_fails(mq_documents_open(&d, "/nowhere/a.txt", false, &err), MQ_E_IO, &err, "/nowhere/a.txt: open");
    ck_assert_ptr_null(d);
    mq_assert_fails(mq_documents_open(&d, mq_test_dir(), false, &err), MQ_E_FORMAT, &err, "not a regular file");
    mq_documents_close(NULL);
}
END_TEST

START_TEST(names_tell_the_kind)
{
    ck_assert(mq_documents_is_jsonl("x.jsonl"));
    ck_assert(mq_documents_is_jsonl("/a/b.JsonL"));
    ck_assert(!mq_documents_is_jsonl("x.json"));
    ck_assert(!mq_documents_is_jsonl("jsonl"));
    ck_assert(!mq_documents_is_jsonl(""));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("documents");
    TCase *t = tcase_create("documents");
    tcase_add_test(t, separators_end_documents);
    tcase_add_test(t, text_keeps_line_ends_and_blanks);
    tcase_add_test(t, a_mark_at_the_beginning_is_left_out);
    tcase_add_test(t, lines_hold_documents);
    tcase_add_test(t, a_document_may_hold_a_zero_byte);
    tcase_add_test(t, blocks_do_not_show);
    tcase_add_test(t, a_long_line_passes_the_block);
    tcase_add_test(t, bytes_that_are_not_utf8_are_named);
    tcase_add_test(t, lines_that_are_no_documents_are_named);
    tcase_add_test(t, files_are_entered_at_starts);
    tcase_add_test(t, what_is_no_file_is_refused);
    tcase_add_test(t, names_tell_the_kind);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
