/* Text as it comes: whatever the cut into tokens, the pieces together are the whole text up to the
 * stop string. */
#include "tools/text_out.h"

#include <stdlib.h>
#include <string.h>

#include "src/unicode.h"
#include "tests/harness.h"

static mq_tokenizer *tokenizer;
static int32_t id_of_byte[256];

static void setup(void)
{
    mq_err err;
    mq_assert_ok(
        mq_tokenizer_open(&tokenizer, mq_test_path("tests/data/nano/tokenizer.json"), &err), &err);
    for (int i = 0; i < 256; i++)
        id_of_byte[i] = -1;
    for (int32_t id = 0; id < mq_tokenizer_n_ids(tokenizer); id++) {
        mq_buf b = mq_buf_empty();
        if (mq_tokenizer_token_bytes(tokenizer, &b, id, true, &err) == MQ_OK && b.n_bytes == 1)
            id_of_byte[(unsigned char)b.data[0]] = id;
        mq_buf_release(&b);
    }
}

static void teardown(void)
{
    mq_tokenizer_close(tokenizer);
}

/* Feed text byte by byte; all pieces to out. */
static bool feed(mq_buf *out, const char *text, int64_t n, const char *const *stops, int n_stops)
{
    mq_err err;
    mq_text_out o = mq_text_out_begin(tokenizer, stops, n_stops);
    mq_buf piece = mq_buf_empty();
    for (int64_t i = 0; i < n; i++) {
        int32_t id = id_of_byte[(unsigned char)text[i]];
        ck_assert_int_ge(id, 0);
        mq_assert_ok(mq_text_out_add(&o, &piece, id, &err), &err);
        mq_buf_append(out, piece.data, piece.n_bytes);
    }
    mq_assert_ok(mq_text_out_end(&o, &piece, &err), &err);
    mq_buf_append(out, piece.data, piece.n_bytes);
    ck_assert_int_eq(o.all.n_bytes, out->n_bytes);
    ck_assert(out->n_bytes == 0 || memcmp(o.all.data, out->data, (size_t)out->n_bytes) == 0);
    bool stopped = o.stopped;
    mq_buf_release(&piece);
    mq_text_out_release(&o);
    return stopped;
}

static void expect(const char *text, const char *stop, const char *want, bool want_stop)
{
    mq_buf out = mq_buf_empty();
    bool stopped = feed(&out, text, (int64_t)strlen(text), &stop, stop ? 1 : 0);
    ck_assert_str_eq(out.data ? out.data : "", want);
    ck_assert_int_eq(stopped, want_stop);
    mq_buf_release(&out);
}

START_TEST(a_stop_string_is_found_across_tokens_and_removed)
{
    expect("one END two", "END", "one ", true);
    expect("one EN", "END", "one EN", false); /* held back, then released */
    expect("one ENE", "END", "one ENE", false);
    expect("END", "END", "", true);
    expect("x", "x", "", true);
    expect("", "END", "", false);
}
END_TEST

START_TEST(a_stop_string_that_begins_inside_a_failed_match_is_found)
{
    expect("aaab!", "aab", "a", true);
    expect("aaaaaab", "aab", "aaaa", true);
    expect("ababac", "abac", "ab", true);
    expect("aaaa", "aab", "aaaa", false);
}
END_TEST

START_TEST(the_stop_string_complete_first_wins_the_longer_of_two_that_end_together)
{
    const char *const overlap[] = {"abcd", "bc"}, *const tail[] = {"c", "bc"};
    mq_buf out = mq_buf_empty();
    ck_assert(feed(&out, "xabcd", 5, overlap, 2));
    ck_assert_str_eq(out.data, "xa");
    mq_buf_clear(&out);
    ck_assert(feed(&out, "xabcd", 5, tail, 2));
    ck_assert_str_eq(out.data, "xa");
    mq_buf_release(&out);
}
END_TEST

START_TEST(the_cut_into_tokens_does_not_matter)
{
    /* " return" and the like are single tokens of the model, and eight of bytes. */
    static const char text[] = "def main(self):\n    return self.value\n";
    static const char *const stops[] = {"urn self", "self.v"};
    mq_err err;
    mq_tokens ids = {NULL, 0, 0};
    mq_assert_ok(mq_tokenizer_encode(tokenizer, &ids, text, (int64_t)strlen(text), true, &err),
                 &err);
    ck_assert_int_lt(ids.n, (int64_t)strlen(text) / 2);
    mq_text_out o = mq_text_out_begin(tokenizer, stops, 2);
    mq_buf piece = mq_buf_empty(), bytes = mq_buf_empty();
    for (int64_t i = 0; i < ids.n; i++)
        mq_assert_ok(mq_text_out_add(&o, &piece, ids.ids[i], &err), &err);
    ck_assert(o.stopped);
    ck_assert(feed(&bytes, text, (int64_t)strlen(text), stops, 2));
    ck_assert_str_eq(o.all.data, bytes.data);
    ck_assert_str_eq(o.all.data, "def main(self):\n    ret");
    mq_text_out_release(&o);
    mq_buf_release(&piece);
    mq_buf_release(&bytes);
    mq_tokens_release(&ids);
}
END_TEST

START_TEST(a_character_split_over_tokens_comes_out_whole)
{
    mq_err err;
    mq_text_out o = mq_text_out_begin(tokenizer, NULL, 0);
    mq_buf piece = mq_buf_empty();
    const unsigned char euro[] = {0xE2, 0x82, 0xAC};
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(piece.n_bytes, 0);
        mq_assert_ok(mq_text_out_add(&o, &piece, id_of_byte[euro[i]], &err), &err);
    }
    ck_assert_str_eq(piece.data, "\xE2\x82\xAC");
    mq_text_out_release(&o);
    mq_buf_release(&piece);
}
END_TEST

START_TEST(a_stop_string_may_end_inside_nothing_but_whole_characters)
{
    expect("a\xE2\x82\xAC"
           "b\xE2\x82\xAC"
           "c",
           "b\xE2\x82\xAC", "a\xE2\x82\xAC", true);
    expect("a\xE2\x82\xAD", "\xE2\x82\xAC", "a\xE2\x82\xAD", false); /* two bytes in common */
}
END_TEST

START_TEST(ill_formed_bytes_are_replaced_as_in_the_tokenizer)
{
    static const char *const texts[] = {"\xFF",
                                        "a\x80z",
                                        "\xE2\x82",
                                        "\xE2\x82z",
                                        "\xE0\x80\x80",
                                        "\xF0\x9F\x98",
                                        "\xED\xA0\x80",
                                        "\xC0\xAF",
                                        "\xF4\x90\x80\x80",
                                        "\xE2\xE2\x82\xAC",
                                        "\xF0\x9F\x98\xF0\x9F\x98\x80"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mq_buf want = mq_buf_empty();
        mq_unicode_append_lossy(&want, texts[i], (int64_t)strlen(texts[i]));
        expect(texts[i], NULL, want.data, false);
        mq_buf_release(&want);
    }
}
END_TEST

START_TEST(random_bytes_equal_the_decoder)
{
    static const unsigned char alphabet[] = {'a',  'b',  0x80, 0x82, 0xAC, 0xBF,
                                             0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xFF};
    uint64_t state = 5;
    for (int round = 0; round < 2000; round++) {
        char text[24];
        int32_t ids[24];
        int64_t n = (int64_t)(mq_test_rand(&state) % 24);
        for (int64_t i = 0; i < n; i++) {
            unsigned char c = alphabet[mq_test_rand(&state) % sizeof alphabet];
            text[i] = (char)c;
            ids[i] = id_of_byte[c];
        }
        mq_err err;
        mq_buf want = mq_buf_empty(), got = mq_buf_empty();
        mq_assert_ok(mq_tokenizer_decode(tokenizer, &want, ids, n, true, &err), &err);
        feed(&got, text, n, NULL, 0);
        ck_assert_int_eq(got.n_bytes, want.n_bytes);
        ck_assert(want.n_bytes == 0 || memcmp(got.data, want.data, (size_t)want.n_bytes) == 0);
        mq_buf_release(&want);
        mq_buf_release(&got);
    }
}
END_TEST

START_TEST(special_and_unknown_tokens_have_no_text)
{
    mq_err err;
    mq_text_out o = mq_text_out_begin(tokenizer, NULL, 0);
    mq_buf piece = mq_buf_empty();
    const int32_t ids[] = {mq_tokenizer_find(tokenizer, "<|endoftext|>"),
                           mq_tokenizer_n_ids(tokenizer), 1 << 30};
    for (int i = 0; i < 3; i++) {
        mq_assert_ok(mq_text_out_add(&o, &piece, ids[i], &err), &err);
        ck_assert_int_eq(piece.n_bytes, 0);
    }
    mq_text_out_release(&o);
    mq_buf_release(&piece);
}
END_TEST

START_TEST(nothing_follows_a_stop_string)
{
    const char *stop = "b";
    mq_err err;
    mq_text_out o = mq_text_out_begin(tokenizer, &stop, 1);
    mq_buf piece = mq_buf_empty();
    for (const char *p = "abcd"; *p; p++)
        mq_assert_ok(mq_text_out_add(&o, &piece, id_of_byte[(unsigned char)*p], &err), &err);
    ck_assert_int_eq(piece.n_bytes, 0);
    mq_assert_ok(mq_text_out_end(&o, &piece, &err), &err);
    ck_assert_int_eq(piece.n_bytes, 0);
    ck_assert_str_eq(o.all.data, "a");
    mq_text_out_release(&o);
    mq_buf_release(&piece);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("text_out");
    TCase *t = tcase_create("text_out");
    tcase_add_unchecked_fixture(t, setup, teardown);
    tcase_add_test(t, a_stop_string_is_found_across_tokens_and_removed);
    tcase_add_test(t, a_stop_string_that_begins_inside_a_failed_match_is_found);
    tcase_add_test(t, the_stop_string_complete_first_wins_the_longer_of_two_that_end_together);
    tcase_add_test(t, the_cut_into_tokens_does_not_matter);
    tcase_add_test(t, a_character_split_over_tokens_comes_out_whole);
    tcase_add_test(t, a_stop_string_may_end_inside_nothing_but_whole_characters);
    tcase_add_test(t, ill_formed_bytes_are_replaced_as_in_the_tokenizer);
    tcase_add_test(t, random_bytes_equal_the_decoder);
    tcase_add_test(t, special_and_unknown_tokens_have_no_text);
    tcase_add_test(t, nothing_follows_a_stop_string);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
