/* Calibration tokens, with a tokenizer whose ids are bytes: windows, ends of documents, where windows lie in a file (worked by hand,
 * and against corpus.h's words taken literally over the whole text), mixtures (shares, files that run out, prefixes), the digest,
 * every error with its text; and the bundled text as mimo-verify reads it. */
#include "calib/corpus.h"

#include <math.h>
#include <stdio.h>
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

/* Paths given out, freed at the end. */
static char *paths[64];
static int n_paths;

/* A file in a folder of the test's; the path lives as long as the program. */
static const char *text_file(const char *name, const char *text)
{
    mq_err err = {0};
    const char *dir = mq_test_dir();
    mq_assert_ok(mq_file_save(dir, name, text, (int64_t)strlen(text), &err), &err);
    ck_assert_int_lt(n_paths, 64);
    paths[n_paths] = mq_path_join(dir, name);
    return paths[n_paths++];
}

/* The same where there are many: without waiting for the disk. */
static const char *scratch_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
    return path;
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
    f.path = text_file("b.txt", "aaaa\n\xFF\nbbbb\n"); /* 12 bytes; the windows lie at 0 and 7 */
    mq_assert_ok(read_corpus(&c, &f, 1, 4, 8, &err), &err);
    mq_corpus_release(&c);
    mq_assert_fails(read_corpus(&c, &f, 1, 6, 12, &err), MQ_E_FORMAT, &err, "b.txt: byte 5 is not UTF-8");
    f.path = text_file("c.jsonl", "{\"text\":\"aa\"}\n[]\n{\"text\":\"bb\"}\n{\"text\":1}\n"); /* 42 bytes; 21 -> 31 */
    mq_assert_ok(read_corpus(&c, &f, 1, 3, 3, &err), &err);
    mq_corpus_release(&c);
    mq_assert_fails(read_corpus(&c, &f, 1, 4, 8, &err), MQ_E_FORMAT, &err, "c.jsonl: line 2: is of type array");
    mq_assert_fails(read_corpus(&c, &f, 1, 3, 6, &err), MQ_E_FORMAT, &err, "c.jsonl: line 4: \"text\" is of type number");
}
END_TEST

/* ---- Where the windows lie ---- */

/* n windows of a file with this text are these ids, '|' standing for the end of a document. */
static void expect_windows(const char *name, const char *text, int64_t window, int64_t n, const char *ids)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f = {text_file(name, text), 1};
    mq_assert_ok(read_corpus(&c, &f, 1, window, n * window, &err), &err);
    ck_assert_int_eq(c.n_windows * window, (int64_t)strlen(ids));
    for (int64_t i = 0; i < c.n_windows * window; i++)
        ck_assert_msg(c.ids[i] == (ids[i] == '|' ? END : (uint8_t)ids[i]), "%s: '%s': place %d is %d, expected '%c'", name, text,
                      (int)i, (int)c.ids[i], ids[i]);
    mq_corpus_release(&c);
}

#define SEP MQ_DOCUMENTS_SEPARATOR

START_TEST(windows_begin_at_lines_evenly_spread)
{
    expect_windows("a", "aaaa\nbbbb\ncccc\ndddd\n", 2, 2, "aacc");            /* 20 bytes: 10 is c's */
    expect_windows("a", "aaaa\nbbbb\ncccc\ndddd\n", 6, 2, "aaaa\nbcccc\nd");    /* over line ends */
    expect_windows("a", "aaaa\nbbbb\ncccc\ndddd\n", 2, 1, "aa");
    expect_windows("a", "aaa\r\nbbb\r\nccc\r\nddd\r\n", 4, 2, "aaa\rccc\r");     /* 20 bytes: 10 is c's */
    expect_windows("a", "aa\nbbbbbbbb\n\n  cc\n\tdd\n\r\neee\n", 2, 2, "aaee"); /* 28: no blank line, none that is moved in */
    expect_windows("a", "aa\n\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\nbbbb\n", 2, 2, "aabb"); /* 17: 8 is inside a letter */
    expect_windows("a", "\xEF\xBB\xBF" "aa\nbb\ncc\ndd", 2, 2, "aacc");          /* 14, the mark counted: 7 -> 9 */
}
END_TEST

START_TEST(windows_begin_at_documents)
{
    expect_windows("a", "aa\nbbbbbbbbbb" SEP "cccc\n", 2, 2, "aacc");            /* 31: 15 is inside the separator */
    expect_windows("a", "aa\nbb\n" SEP "cccccccccccc\n", 2, 2, "aacc");          /* 32: none begins with a separator, 16 -> 19 */
    expect_windows("a", "aa\nbb" SEP SEP "cccc" SEP SEP SEP, 2, 2, "aa||");      /* 74: 37 is inside the third, two empty ones */
    expect_windows("a.jsonl", "{\"text\":\"aaaa\"}\n{\"text\":\"b\"}\r\n \n{\"text\":\"cccc\"}\n", 4, 2, "aaaacccc"); /* 48: 24 -> 30 */
}
END_TEST

START_TEST(windows_go_on_where_the_one_before_reaches_far)
{
    expect_windows("a", "abcdefghijkl", 3, 2, "abcdef");                  /* one line */
    expect_windows("a", "aaaa\nbbbb\ncccc\ndddd\n", 2, 3, "aacccc");      /* 13 is inside c's line */
    expect_windows("a", "abcdefghijkl\nmno\npqr\n", 3, 3, "abcdefpqr");   /* 21: 7 is inside the first line, 14 -> 17 */
    expect_windows("a.jsonl", "{\"text\":\"aaaabbbb\"}\n{\"text\":\"cc\"}\n{\"text\":\"dd\"}\n", 3, 3, "aaaabbdd|"); /* 48: 16, 32 */
}
END_TEST

START_TEST(windows_draw_together_where_the_end_has_little_text)
{
    expect_windows("a", "aa\nbb\ncc\ndddddddddddd", 3, 2, "aa\nddd"); /* 21: 10 is behind the last start; 18: 9 is not */
    expect_windows("a", "aaaaaa\nbbbbbb\ncc\n", 6, 2, "aaaaaabbbbbb"); /* 17: 8 -> 14, c c \n end; 14: 7 */
}
END_TEST

START_TEST(a_file_with_little_text_gives_its_first_windows)
{
    expect_windows("a", "aa\nbbbbbbbbbbbbbbbbb\nc", 3, 2, "aa\nbbb"); /* 22: half is 11, 5 -> 21, c end */
    expect_windows("a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"bbbbbbbbbbbbbbb\"}\n", 2, 2, "a|bb"); /* 39: 19 is in the last line */
}
END_TEST

/* corpus.h's words over a text that is held whole. */
typedef struct literal {
    const char *text;
    int64_t n_bytes;
    bool is_jsonl;
    const mq_tokenizer *tokenizer;
    int32_t end;
    mq_tokens list;
} literal;

static bool is_start(const literal *l, int64_t p)
{
    static const int64_t n_sep = sizeof SEP - 1;
    const char *t = l->text;
    if (p == 0)
        return true;
    if (l->is_jsonl)
        return t[p - 1] == '\n';
    if (p >= n_sep && memcmp(t + p - n_sep, SEP, (size_t)n_sep) == 0)
        return true;
    return t[p - 1] == '\n' && !strchr("\t\n\v\f\r ", t[p]) && strncmp(t + p, SEP, (size_t)n_sep) != 0;
}

/* Append the part at p; the byte behind it. */
static int64_t literal_part(literal *l, int64_t p)
{
    mq_err err = {0};
    int64_t e = p, behind;
    const char *sep = strstr(l->text + p, SEP);
    bool ends = true;
    do
        e++;
    while (e < l->n_bytes && !is_start(l, e));
    behind = e;
    if (l->is_jsonl) { /* {"text":"..."} or blank; letters only */
        if (l->text[p] != '{')
            return behind;
        p += 9;
        e = strchr(l->text + p, '"') - l->text;
    } else if (sep && sep - l->text < e) {
        e = sep - l->text;
        behind = e + (int64_t)sizeof SEP - 1;
    } else {
        ends = e == l->n_bytes;
    }
    mq_assert_ok(mq_tokenizer_encode(l->tokenizer, &l->list, l->text + p, e - p, true, &err), &err);
    if (ends)
        mq_assert_ok(mq_tokens_append(&l->list, l->end, &err), &err);
    return behind;
}

/* Fill list with the windows as spread, or give false at the end of the file. */
static bool literal_spread(literal *l, int64_t span, int64_t window, int64_t n)
{
    int64_t at = 0;
    l->list.n = 0;
    for (int64_t j = 0; j < n; j++) {
        int64_t off = j * span / n;
        if (at <= off) {
            l->list.n = j * window;
            for (at = off; at < l->n_bytes && !is_start(l, at); at++)
                ;
        }
        while (l->list.n < (j + 1) * window) {
            if (at >= l->n_bytes)
                return false;
            at = literal_part(l, at);
        }
    }
    return true;
}

static bool literal_windows(literal *l, int64_t window, int64_t n)
{
    return literal_spread(l, l->n_bytes, window, n) || literal_spread(l, l->n_bytes * 7 / 8, window, n) ||
           literal_spread(l, l->n_bytes * 6 / 8, window, n) || literal_spread(l, l->n_bytes * 4 / 8, window, n);
}

/* Read from the file and literally: the same ids.  True when they are spread. */
static bool expect_literal(const char *path, const char *text, const mq_tokenizer *t, int32_t end, int64_t window, int64_t n)
{
    mq_err err = {0};
    mq_corpus c;
    mq_corpus_file f = {path, 1};
    literal l = {text, (int64_t)strlen(text), mq_documents_is_jsonl(path), t, end, {0}};
    mq_tokens all = {0};
    mq_assert_ok(mq_corpus_tokens(&all, path, t, end, &err), &err);
    mq_status st = mq_corpus_read(&c, &f, 1, t, end, window, n * window, &err);
    bool is_spread = literal_windows(&l, window, n);
    if (!is_spread && all.n < window) {
        mq_assert_fails(st, MQ_E_ARG, &err, "tokens of text");
    } else {
        mq_assert_ok(st, &err);
        ck_assert_int_eq(c.n_windows, is_spread || all.n / window > n ? n : all.n / window);
        const int32_t *expected = is_spread ? l.list.ids : all.ids;
        ck_assert_mem_eq(c.ids, expected, (size_t)(c.n_windows * window) * sizeof *c.ids);
        mq_corpus_release(&c);
    }
    mq_tokens_release(&all);
    mq_tokens_release(&l.list);
    return is_spread;
}

START_TEST(windows_are_what_the_header_says)
{
    static const char *const pieces[] = {"a", "bc", "\xC3\xA9", " ", "\n", "\r\n", "\n\n", "\t", "def ghi.", ("\n" SEP), SEP,
                                         "<|endof", "jkl mno pqr stu vwx\n", "\n1 2\n"};
    static const char *const lines[] = {"{\"text\":\"a\"}\n", "{\"text\":\"\"}\r\n", "\n", " \n",
                                        "{\"text\":\"bcdefghijklmnopqrstuvwxyz\"}\n"};
    mq_tokenizer *t = byte_tokenizer();
    char *txt = mq_path_join(mq_test_dir(), "r.txt"), *jsonl = mq_path_join(mq_test_dir(), "r.jsonl");
    uint32_t state = 1;
    int n_spread = 0, n_first = 0;
    for (int round = 0; round < 1500; round++) {
        mq_buf b = mq_buf_empty();
        bool is_jsonl = round % 4 == 3;
        int n_pieces = 1 + round % 97;
        mq_buf_str(&b, is_jsonl ? lines[0] : "x");
        for (int i = 0; i < n_pieces; i++) {
            state = state * 1664525 + 1013904223;
            mq_buf_str(&b, is_jsonl ? lines[(state >> 16) % 5] : pieces[(state >> 16) % 14]);
        }
        int64_t window = 1 + (state >> 8) % 9, n = 1 + (state >> 20) % 12;
        const char *path = scratch_file(is_jsonl ? jsonl : txt, b.data);
        if (expect_literal(path, b.data, t, END, window, n))
            n_spread++;
        else
            n_first++;
        mq_buf_release(&b);
    }
    ck_assert_int_gt(n_spread, 500);
    ck_assert_int_gt(n_first, 50);
    free(txt);
    free(jsonl);
    mq_tokenizer_close(t);
}
END_TEST

/* Half a MiB in lines of 1 to 4000 bytes: starts on both sides of the blocks that are read at once. */
START_TEST(large_files_are_entered_anywhere)
{
    mq_buf b = mq_buf_empty();
    mq_tokenizer *t = byte_tokenizer();
    uint32_t state = 7;
    while (b.n_bytes < 1 << 19) {
        state = state * 1664525 + 1013904223;
        int64_t n = (state >> 16) % 16 ? (state >> 20) % 100 : (state >> 20) % 4000;
        for (int64_t i = 0; i < n; i++)
            mq_buf_append(&b, &"abcdefghijklmnopqrstuvwxyz "[(state + (uint32_t)i) % 27], 1);
        mq_buf_str(&b, state >> 31 ? "\n" : (state >> 30) % 2 ? "\n\n" : "\n" SEP);
    }
    const char *path = text_file("large.txt", b.data);
    ck_assert(expect_literal(path, b.data, t, END, 64, 1000));
    ck_assert(expect_literal(path, b.data, t, END, 4096, 7));
    ck_assert(expect_literal(path, b.data, t, END, 100000, 3));
    ck_assert(!expect_literal(path, b.data, t, END, 4096, 128));
    mq_buf_release(&b);
    mq_tokenizer_close(t);
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
    mq_assert_ok(mq_corpus_read(&c, &f, 1, t, end, whole.n, whole.n, &err), &err); /* parts are no different */
    ck_assert_int_eq(c.n_windows, 1);
    ck_assert_mem_eq(c.ids, whole.ids, (size_t)whole.n * sizeof *c.ids);
    mq_corpus_release(&c);
    mq_assert_ok(mq_corpus_read(&c, &f, 1, t, end, 512, whole.n, &err), &err); /* nor is all there is */
    ck_assert_int_eq(c.n_windows, whole.n / 512);
    ck_assert_mem_eq(c.ids, whole.ids, (size_t)(512 * c.n_windows) * sizeof *c.ids);
    mq_corpus_release(&c);
    ck_assert(expect_literal(path, text.data, t, end, 512, 16));
    ck_assert(expect_literal(path, text.data, t, end, 100, 64));
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
    tcase_add_test(t, windows_begin_at_lines_evenly_spread);
    tcase_add_test(t, windows_begin_at_documents);
    tcase_add_test(t, windows_go_on_where_the_one_before_reaches_far);
    tcase_add_test(t, windows_draw_together_where_the_end_has_little_text);
    tcase_add_test(t, a_file_with_little_text_gives_its_first_windows);
    tcase_add_test(t, windows_are_what_the_header_says);
    tcase_add_test(t, large_files_are_entered_anywhere);
    tcase_add_test(t, shares_go_by_weight_and_largest_remainder);
    tcase_add_test(t, a_file_that_runs_out_leaves_its_share);
    tcase_add_test(t, windows_of_a_file_keep_their_order);
    tcase_add_test(t, every_prefix_is_mixed_alike);
    tcase_add_test(t, too_little_text_is_told);
    tcase_add_test(t, files_without_text_are_refused);
    tcase_add_test(t, arguments_are_checked);
    tcase_add_test(t, bundled_text_is_what_the_whole_text_gives);
    suite_add_tcase(s, t);
    int status = mq_test_run(s);
    while (n_paths > 0)
        free(paths[--n_paths]);
    return status;
}
