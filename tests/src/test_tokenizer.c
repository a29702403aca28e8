/* The tokenizer through its header, on hand-made files: 256 byte tokens (id = byte) and a few
 * merges. Worked values; every refusal by name; added tokens; NFC; bytes that are not UTF-8;
 * decoding.  Equality with the library on large texts is test_tokenizer_reference.py's. */
#include "src/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/json.h"
#include "src/vocab.h"
#include "tests/harness.h"

#define SPLIT_HEAD "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
#define SPLIT_TAIL                                                                                 \
    ",\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":"   \
    "false,"                                                                                       \
    "\"trim_offsets\":true,\"use_regex\":false}]}"
#define QWEN2                                                                                      \
    "{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| " \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}"
#define ADDED(id, content, normalized, special)                                                    \
    "{\"id\":" #id ",\"content\":\"" content                                                       \
    "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":" #normalized       \
    ",\"special\":" #special "}"

/* JSON texts of the members; NULL: the default. */
typedef struct spec {
    const char *normalizer, *pre, *decoder, *vocab, *merges, *added, *model, *top;
} spec;

/* he = 256, ll = 257, hell = 258, Ġhe = 259, hello = 260 */
#define VOCAB ",\"he\":256,\"ll\":257,\"hell\":258,\"\\u0120he\":259,\"hello\":260"
#define MERGES "[\"h\",\"e\"],[\"l\",\"l\"],[\"he\",\"ll\"],[\"\\u0120\",\"he\"],[\"hell\",\"o\"]"
#define OR(a, b) ((a) ? (a) : (b))

static void write_vocab(mq_buf *b, const char *more)
{
    for (int i = 0; i < 256; i++)
        mq_buf_fmt(b, "%s\"\\u%04x\":%d", i ? "," : "", (unsigned)mq_byte_to_char(i), i);
    mq_buf_str(b, more);
}

static mq_status parse(mq_tokenizer **out, spec s, mq_err *err)
{
    mq_buf b = mq_buf_empty();
    mq_buf_fmt(&b,
               "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[%s],"
               "\"normalizer\":%s,"
               "\"pre_tokenizer\":%s,\"post_processor\":null,\"decoder\":%s%s,"
               "\"model\":{\"type\":\"BPE\",\"unk_token\":null,\"continuing_subword_prefix\":\"\"%"
               "s,\"vocab\":{",
               OR(s.added, ""), OR(s.normalizer, "{\"type\":\"NFC\"}"),
               OR(s.pre, SPLIT_HEAD QWEN2 SPLIT_TAIL), OR(s.decoder, "{\"type\":\"ByteLevel\"}"),
               OR(s.top, ""), OR(s.model, ""));
    write_vocab(&b, OR(s.vocab, VOCAB));
    mq_buf_fmt(&b, "},\"merges\":[%s]}}", OR(s.merges, MERGES));
    mq_status st = mq_tokenizer_parse(out, b.data, b.n_bytes, "tiny.json", err);
    mq_buf_release(&b);
    return st;
}

static mq_tokenizer *tiny(spec s)
{
    mq_err err = {0};
    mq_tokenizer *t = NULL;
    mq_assert_ok(parse(&t, s, &err), &err);
    return t;
}

/* Ids as text: "256 257 111". */
static const char *ids_text(const mq_tokenizer *t, const char *text, int64_t n_bytes,
                            bool with_added)
{
    static char line[4096];
    mq_err err = {0};
    mq_tokens ids = {0};
    size_t at = 0;
    mq_assert_ok(mq_tokenizer_encode(t, &ids, text, n_bytes, with_added, &err), &err);
    line[0] = '\0';
    for (int64_t i = 0; i < ids.n; i++)
        at += (size_t)snprintf(line + at, sizeof line - at, i ? " %d" : "%d", ids.ids[i]);
    mq_tokens_release(&ids);
    return line;
}

#define check_ids(t, text, expected)                                                               \
    ck_assert_str_eq(ids_text(t, text, (int64_t)strlen(text), true), expected)

static void check_decode(const mq_tokenizer *t, const int32_t *ids, int64_t n, bool skip,
                         const char *expected)
{
    mq_err err = {0};
    mq_buf out = mq_buf_empty();
    mq_assert_ok(mq_tokenizer_decode(t, &out, ids, n, skip, &err), &err);
    ck_assert_str_eq(OR(out.data, ""), expected);
    mq_buf_release(&out);
}

START_TEST(lowest_rank_is_joined_first)
{
    mq_tokenizer *t = tiny((spec){0});
    check_ids(t, "hello", "260"); /* he ll o, hell o, hello */
    check_ids(t, "he", "256");
    check_ids(t, "lll", "257 108");            /* of equal pairs the leftmost */
    check_ids(t, "hello hello", "260 32 260"); /* (he, ll) is before (Ġ, he) */
    check_ids(t, " he", "259");
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(pieces_are_merged_apart)
{
    mq_tokenizer *t = tiny((spec){0});
    check_ids(t, "h1e", "104 49 101");
    check_ids(t, "he\nhe", "256 10 256");
    check_ids(t, "", "");
    check_ids(t, "\xC3\xBF", "195 191");
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(merges_may_be_strings)
{
    mq_tokenizer *t = tiny((spec){.merges = "\"h e\",\"l l\",\"he ll\",\"\\u0120 he\",\"hell o\""});
    check_ids(t, "hello", "260");
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(every_byte_is_its_token_and_comes_back)
{
    mq_tokenizer *t = tiny((spec){0});
    mq_err err = {0};
    for (int32_t b = 0; b < 256; b++) {
        mq_buf out = mq_buf_empty();
        mq_assert_ok(mq_tokenizer_token_bytes(t, &out, b, false, &err), &err);
        ck_assert_int_eq(out.n_bytes, 1);
        ck_assert_int_eq((uint8_t)out.data[0], b);
        mq_buf_release(&out);
    }
    ck_assert_str_eq(ids_text(t, "a\0b", 3, true), "97 0 98");
    ck_assert_int_eq(mq_tokenizer_n_ids(t), 261);
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(the_longest_added_token_wins_leftmost_first)
{
    mq_tokenizer *t = tiny(
        (spec){.added = ADDED(261, "<a", false, true) "," ADDED(262, "<ab", false, false) "," ADDED(
                   263, "<abc>", false, false) "," ADDED(264, "abc>", false,
                                                         false) "," ADDED(111, "o", true, false)});
    check_ids(t, "<a", "261");
    check_ids(t, "<abc", "262 99");
    check_ids(t, "<abc>", "263");
    check_ids(t, "<a<ab<", "261 262 60");
    check_ids(t, "xabc>", "120 264");
    check_ids(t, "<aabc>", "261 264");
    check_ids(t, "hello", "258 111"); /* cut before merging */
    ck_assert_str_eq(ids_text(t, "<abc", 4, false), "60 97 98 99");
    ck_assert_str_eq(ids_text(t, "hello", 5, false), "260");
    ck_assert_int_eq(mq_tokenizer_find(t, "<abc>"), 263);
    ck_assert_int_eq(mq_tokenizer_find(t, "hello"), 260);
    ck_assert_int_eq(mq_tokenizer_find(t, "nothing"), -1);
    ck_assert_int_eq(mq_tokenizer_n_ids(t), 265);
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(an_added_token_may_be_in_the_vocabulary)
{
    /* x is byte token 120 and keeps that id; <y> gets the next after the vocabulary's 261 */
    const char *added = ADDED(260, "hello", false, true) "," ADDED(
        120, "x", false, false) "," ADDED(261, "<y>", false, true);
    mq_tokenizer *t = tiny((spec){.added = added});
    check_ids(t, "hellox<y>he", "260 120 261 256");
    check_decode(t, (int32_t[]){260, 120, 261, 256}, 4, true, "xhe");
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(text_is_composed_but_not_across_added_tokens)
{
    /* é is C3 A9; e and U+0301 (CC 81) compose, unless an added token ends between them */
    mq_tokenizer *t = tiny((spec){.added = ADDED(101, "e", false, false)});
    mq_tokenizer *plain = tiny((spec){0}), *none = tiny((spec){.normalizer = "null"});
    mq_tokenizer *list =
        tiny((spec){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}"});
    check_ids(plain, "e\xCC\x81", "195 169");
    check_ids(list, "e\xCC\x81", "195 169");
    check_ids(none, "e\xCC\x81", "101 204 129");
    check_ids(t, "e\xCC\x81", "101 204 129");
    ck_assert_str_eq(ids_text(t, "e\xCC\x81", 3, false), "195 169");
    mq_tokenizer_close(t);
    mq_tokenizer_close(plain);
    mq_tokenizer_close(none);
    mq_tokenizer_close(list);
}
END_TEST

START_TEST(decode_joins_bytes_and_replaces_damaged_ones)
{
    mq_tokenizer *t = tiny(
        (spec){.added = ADDED(261, "<|end|>", false, true) "," ADDED(262, "<t>", false, false)});
    check_decode(t, (int32_t[]){0xC3, 0xA9}, 2, false, "\xC3\xA9");
    check_decode(t, (int32_t[]){0xC3, 260}, 2, false, "\xEF\xBF\xBDhello");
    check_decode(t, (int32_t[]){0xF0, 0x9F, 0x98, 'a'}, 4, false,
                 "\xEF\xBF\xBD"
                 "a"); /* one maximal subpart */
    check_decode(t, (int32_t[]){0xF0, 0x80}, 2, false, "\xEF\xBF\xBD\xEF\xBF\xBD");
    check_decode(t, (int32_t[]){259, 261, 262}, 3, false, " he<|end|><t>");
    check_decode(t, (int32_t[]){259, 261, 262}, 3, true, " he<t>");
    check_decode(t, NULL, 0, true, "");
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(unknown_ids_are_refused)
{
    mq_tokenizer *t = tiny((spec){.vocab = ",\"he\":300", .merges = "[\"h\",\"e\"]"});
    mq_err err = {0};
    mq_buf out = mq_buf_empty();
    static const int32_t unknown[] = {-1, 256, 299, 301, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        mq_assert_fails(mq_tokenizer_token_bytes(t, &out, unknown[i], false, &err), MQ_E_ARG, &err,
                        "is not in the vocabulary");
        mq_assert_fails(mq_tokenizer_decode(t, &out, &unknown[i], 1, false, &err), MQ_E_ARG, &err,
                        "token id");
    }
    ck_assert_int_eq(out.n_bytes, 0);
    mq_buf_release(&out);
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(text_must_be_utf8_and_a_failure_leaves_the_ids)
{
    static const struct {
        const char *text;
        int64_t n_bytes;
        const char *fragment;
    } bad[] = {
        {"\x80", 1, "text: byte 0 is not UTF-8"},
        {"ab\xC3", 3, "byte 2"},
        {"a\xC0\x80", 3, "byte 1"},
        {"\xED\xA0\x80", 3, "byte 0"},
        {"\xF4\x90\x80\x80", 4, "byte 0"},
        {"\xF5\x80\x80\x80", 4, "byte 0"},
        {"\xE0\x9F\xBF", 3, "byte 0"},
        {"12345678\xE6\x97", 10, "byte 8"},
        {"\xC3\xA9\xC3", 3, "byte 2"},
        {"\xFF", 1, "byte 0"},
    };
    mq_tokenizer *t = tiny((spec){0});
    mq_err err = {0};
    mq_tokens ids = {0};
    mq_assert_ok(mq_tokens_append(&ids, 7, &err), &err);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mq_assert_fails(mq_tokenizer_encode(t, &ids, bad[i].text, bad[i].n_bytes, true, &err),
                        MQ_E_FORMAT, &err, bad[i].fragment);
        ck_assert_int_eq(ids.n, 1);
    }
    mq_assert_fails(mq_tokenizer_encode(t, &ids, "", (int64_t)1 << 31, true, &err), MQ_E_ARG, &err,
                    "at most 1073741824");
    mq_assert_ok(mq_tokenizer_encode(t, &ids, "he", 2, true, &err), &err);
    ck_assert_int_eq(ids.n, 2);
    ck_assert_int_eq(ids.ids[0], 7);
    mq_tokens_release(&ids);
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(another_pattern_runs_under_limits)
{
    mq_tokenizer *t = tiny((spec){.pre = SPLIT_HEAD "{\"Regex\":\"e\"}" SPLIT_TAIL});
    check_ids(t, "hello he", "104 101 257 111 32 104 101"); /* e is cut out of he */
    mq_tokenizer_close(t);
    t = tiny((spec){.pre = SPLIT_HEAD "{\"Regex\":\"(x+x+)+y\"}" SPLIT_TAIL});
    char text[64];
    memset(text, 'x', sizeof text);
    memcpy(text + sizeof text - 2, " y", 2);
    mq_err err = {0};
    mq_tokens ids = {0};
    mq_assert_fails(mq_tokenizer_encode(t, &ids, text, sizeof text, true, &err), MQ_E_FORMAT, &err,
                    "split pattern at byte 0: match limit exceeded");
    ck_assert_int_eq(ids.n, 0);
    mq_tokens_release(&ids);
    mq_tokenizer_close(t);
}
END_TEST

START_TEST(long_runs_take_no_quadratic_time)
{
    enum { N = 1 << 20 };
    mq_tokenizer *t = tiny((spec){0});
    mq_err err = {0};
    mq_tokens ids = {0};
    char *text = malloc(N);
    ck_assert_ptr_nonnull(text);
    memset(text, 'l', N);
    mq_assert_ok(mq_tokenizer_encode(t, &ids, text, N, true, &err), &err);
    ck_assert_int_eq(ids.n, N / 2);
    memset(text, ' ', N);
    mq_assert_ok(mq_tokenizer_encode(t, &ids, text, N, true, &err), &err);
    ck_assert_int_eq(ids.n, N / 2 + N);
    for (int i = 0; i < N;
         i += 4) /* marks of class 230 and 220 in turn: an insertion sort would never end */
        memcpy(text + i, "\xCC\x80\xCC\xA3", 4);
    mq_assert_ok(mq_tokenizer_encode(t, &ids, text, N, true, &err), &err);
    ck_assert_int_eq(ids.ids[ids.n - 1], 0x80);
    mq_tokens_release(&ids);
    free(text);
    mq_tokenizer_close(t);
}
END_TEST

#define NODE_BYTE_LEVEL                                                                            \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"

START_TEST(every_refusal_has_its_name)
{
    static const struct {
        spec s;
        mq_status status;
        const char *fragment;
    } bad[] = {
        {{.top = ",\"magic\":1"},
         MQ_E_UNSUPPORTED,
         "tiny.json: tokenizer: member 'magic' is not known"},
        {{.normalizer = "{\"type\":\"NFKC\"}"}, MQ_E_UNSUPPORTED, "normalizer.type is 'NFKC'"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\"}]}"},
         MQ_E_UNSUPPORTED,
         "'Strip'"},
        {{.normalizer = "{\"type\":\"Sequence\"}"},
         MQ_E_FORMAT,
         "normalizer: no member 'normalizers'"},
        {{.normalizer = "3"}, MQ_E_FORMAT, "normalizer: number, expected object"},
        {{.normalizer = "{}"}, MQ_E_FORMAT, "normalizer: no member 'type'"},
        {{.pre = "null"}, MQ_E_FORMAT, "tokenizer.pre_tokenizer: null, expected object"},
        {{.pre = NODE_BYTE_LEVEL},
         MQ_E_UNSUPPORTED,
         "pre_tokenizer.type is 'ByteLevel', only 'Sequence'"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[" NODE_BYTE_LEVEL "]}"},
         MQ_E_UNSUPPORTED,
         "pre_tokenizer: 1 steps"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[1,2]}"},
         MQ_E_FORMAT,
         "expected two objects"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[" NODE_BYTE_LEVEL "," NODE_BYTE_LEVEL
                 "]}"},
         MQ_E_UNSUPPORTED,
         "[0].type is 'ByteLevel'"},
        {{.pre = SPLIT_HEAD "{\"String\":\" \"}" SPLIT_TAIL},
         MQ_E_UNSUPPORTED,
         "member 'String' is not known"},
        {{.pre = SPLIT_HEAD "{\"Regex\":\"a(b\"}" SPLIT_TAIL},
         MQ_E_UNSUPPORTED,
         "split pattern: missing closing parenthesis at byte 3"},
        {{.pre = SPLIT_HEAD "{\"Regex\":\"\\\\C\"}" SPLIT_TAIL},
         MQ_E_UNSUPPORTED,
         "split pattern: using \\C is disabled"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
                 "\"Regex\":\"a\"},\"behavior\":\"Removed\","
                 "\"invert\":false}," NODE_BYTE_LEVEL "]}"},
         MQ_E_UNSUPPORTED,
         "behavior is 'Removed'"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
                 "\"Regex\":\"a\"},\"behavior\":\"Isolated\","
                 "\"invert\":true}," NODE_BYTE_LEVEL "]}"},
         MQ_E_UNSUPPORTED,
         "invert is true"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\"},{\"type\":"
                 "\"ByteLevel\",\"add_prefix_space\":true,"
                 "\"use_regex\":false}]}"},
         MQ_E_UNSUPPORTED,
         "add_prefix_space is true"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\"},{\"type\":"
                 "\"ByteLevel\",\"add_prefix_space\":false,"
                 "\"use_regex\":true}]}"},
         MQ_E_UNSUPPORTED,
         "use_regex is true"},
        {{.decoder = "null"}, MQ_E_FORMAT, "tokenizer.decoder: null"},
        {{.decoder = "{\"type\":\"Metaspace\"}"}, MQ_E_UNSUPPORTED, "decoder.type is 'Metaspace'"},
        {{.decoder = "{\"type\":\"ByteLevel\",\"more\":1}"},
         MQ_E_UNSUPPORTED,
         "decoder: member 'more'"},
        {{.model = ",\"dropout\":0.1"}, MQ_E_UNSUPPORTED, "model.dropout is set"},
        {{.model = ",\"byte_fallback\":true"}, MQ_E_UNSUPPORTED, "model.byte_fallback is set"},
        {{.model = ",\"ignore_merges\":true"}, MQ_E_UNSUPPORTED, "model.ignore_merges is set"},
        {{.model = ",\"end_of_word_suffix\":\"</w>\""},
         MQ_E_UNSUPPORTED,
         "model.end_of_word_suffix is set"},
        {{.model = ",\"cache\":1"}, MQ_E_UNSUPPORTED, "model: member 'cache' is not known"},
        {{.vocab = ",\"x1\":5"}, MQ_E_FORMAT, "id 5 belongs to two tokens"},
        {{.vocab = ",\"x1\":-1"},
         MQ_E_FORMAT,
         "token 'x1': id is not an integer from 0 to 2097151"},
        {{.vocab = ",\"x1\":2097152"}, MQ_E_FORMAT, "token 'x1': id is not"},
        {{.vocab = ",\"x1\":300.5"}, MQ_E_FORMAT, "token 'x1': id is not"},
        {{.vocab = ",\"x1\":\"7\""}, MQ_E_FORMAT, "token 'x1': id is not"},
        {{.vocab = ",\"x1\":300,\"x1\":301"}, MQ_E_FORMAT, "duplicate"},
        {{.merges = "[\"h\",\"e\"],[\"q\",\"zz\"]"},
         MQ_E_FORMAT,
         "merge 1: 'zz' is not in the vocabulary"},
        {{.merges = "[\"q\",\"z\"]"},
         MQ_E_FORMAT,
         "merge 0: the result 'qz' is not in the vocabulary"},
        {{.merges = "[\"h\",\"e\"],[\"l\",\"l\"],[\"h\",\"e\"]"},
         MQ_E_FORMAT,
         "merge 2 joins the same pair as merge 0"},
        {{.merges = "[\"h\"]"}, MQ_E_FORMAT, "merge 0: expected a string or two strings"},
        {{.merges = "[\"h\",1]"}, MQ_E_FORMAT, "merge 0: expected a string or two strings"},
        {{.merges = "7"}, MQ_E_FORMAT, "merge 0: expected a string or two strings"},
        {{.merges = "\"he\""}, MQ_E_FORMAT, "merge 0 'he': expected two tokens and one space"},
        {{.merges = "\"h e l\""}, MQ_E_FORMAT, "expected two tokens and one space"},
        {{.merges = "\" \""}, MQ_E_FORMAT, "merge 0: '' is not in the vocabulary"},
        {{.added = "1"}, MQ_E_FORMAT, "added_tokens: number, expected objects"},
        {{.added = "{\"id\":261}"}, MQ_E_FORMAT, "added_tokens: no member 'content'"},
        {{.added = "{\"content\":\"a\"}"}, MQ_E_FORMAT, "added_tokens: no member 'id'"},
        {{.added = "{\"id\":261,\"content\":\"<x>\"}"},
         MQ_E_FORMAT,
         "added token '<x>': no member 'single_word'"},
        {{.added = "{\"id\":261,\"content\":\"<x>\",\"single_word\":true}"},
         MQ_E_UNSUPPORTED,
         "added token '<x>'.single_word is true"},
        {{.added = "{\"id\":261,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":true}"},
         MQ_E_UNSUPPORTED,
         ".lstrip is true"},
        {{.added = "{\"id\":261,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":false,"
                   "\"rstrip\":true}"},
         MQ_E_UNSUPPORTED,
         ".rstrip is true"},
        {{.added = ADDED(262, "<x>", false, true)},
         MQ_E_FORMAT,
         "added token '<x>': id 262, expected 261"},
        {{.added = ADDED(261, "hello", false, true)},
         MQ_E_FORMAT,
         "added token 'hello': id 261, expected 260"},
        {{.added = ADDED(261, "<x>", false, true) "," ADDED(261, "<x>", false, true)},
         MQ_E_FORMAT,
         "token '<x>' is listed twice"},
        {{.added = ADDED(261, "<x>", false, true) "," ADDED(261, "<y>", false, true)},
         MQ_E_FORMAT,
         "added token '<y>': id 261, expected 262"},
        {{.vocab = ",\"x\\u0301\":258",
          .merges = "",
          .added = ADDED(257, "<x>", false, true) "," ADDED(258, "<y>", false, true)},
         MQ_E_FORMAT,
         "id 258 belongs to two tokens"},
        {{.added = ADDED(261, "", false, true)},
         MQ_E_UNSUPPORTED,
         "added token 261: 0 bytes long, expected 1 to 512"},
        {{.added = ADDED(261, "e\\u0301", true, true)},
         MQ_E_UNSUPPORTED,
         "is marked normalized, and NFC changes it"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mq_err err = {0};
        mq_tokenizer *t = NULL;
        mq_assert_fails(parse(&t, bad[i].s, &err), bad[i].status, &err, bad[i].fragment);
        ck_assert_ptr_null(t);
        ck_assert_ptr_eq(strstr(err.text, "tiny.json: "), err.text);
    }
}
END_TEST

static void check_refused(const char *json, mq_status status, const char *fragment)
{
    mq_err err = {0};
    mq_tokenizer *t = NULL;
    mq_assert_fails(mq_tokenizer_parse(&t, json, (int64_t)strlen(json), "x.json", &err), status,
                    &err, fragment);
    ck_assert_ptr_null(t);
}

START_TEST(files_that_are_no_tokenizers_are_refused)
{
    check_refused("", MQ_E_FORMAT, "x.json: ");
    check_refused("[]", MQ_E_FORMAT, "x.json: array, expected object");
    check_refused("{}", MQ_E_FORMAT, "x.json: tokenizer: no member 'version'");
    check_refused("{\"version\":\"2.0\"}", MQ_E_UNSUPPORTED, "version is '2.0'");
    check_refused("{\"version\":\"1.0\",\"truncation\":{\"max_length\":5}}", MQ_E_UNSUPPORTED,
                  "truncation is set");
    check_refused("{\"version\":\"1.0\",\"padding\":{}}", MQ_E_UNSUPPORTED, "padding is set");
    check_refused("{\"version\":\"1.0\"}", MQ_E_FORMAT, "no member 'pre_tokenizer'");
    mq_err err = {0};
    mq_tokenizer *t = NULL;
    mq_assert_fails(mq_tokenizer_open(&t, "/nonexistent/tokenizer.json", &err), MQ_E_IO, &err,
                    "/nonexistent/tokenizer.json");
    ck_assert_ptr_null(t);
    mq_tokenizer_close(NULL);
}
END_TEST

START_TEST(a_byte_without_a_token_is_refused)
{
    check_refused(
        "{\"version\":\"1.0\",\"added_tokens\":[],\"pre_tokenizer\":" SPLIT_HEAD QWEN2 SPLIT_TAIL
        ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":"
        "[]}}",
        MQ_E_UNSUPPORTED, "x.json: model.vocab: no token for byte 0x00");
}
END_TEST

START_TEST(nano_encodes_a_known_line)
{
    mq_err err = {0};
    mq_tokenizer *t = NULL;
    mq_assert_ok(mq_tokenizer_open(&t, mq_test_path("tests/data/nano/tokenizer.json"), &err), &err);
    ck_assert_int_eq(mq_tokenizer_n_ids(t), 4096);
    ck_assert_int_eq(mq_tokenizer_find(t, "<|endoftext|>"), 4090);
    const char *text =
        "def main():\r\n    return caf\xC3\xA9 's 12<|endoftext|><think>\xF0\x9F\x98\x80";
    mq_tokens ids = {0};
    mq_assert_ok(mq_tokenizer_encode(t, &ids, text, (int64_t)strlen(text), true, &err), &err);
    check_decode(t, ids.ids, ids.n, false, text);
    mq_tokens_release(&ids);
    mq_tokenizer_close(t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tokenizer");
    TCase *t = tcase_create("tokenizer");
    tcase_add_test(t, lowest_rank_is_joined_first);
    tcase_add_test(t, pieces_are_merged_apart);
    tcase_add_test(t, merges_may_be_strings);
    tcase_add_test(t, every_byte_is_its_token_and_comes_back);
    tcase_add_test(t, the_longest_added_token_wins_leftmost_first);
    tcase_add_test(t, an_added_token_may_be_in_the_vocabulary);
    tcase_add_test(t, text_is_composed_but_not_across_added_tokens);
    tcase_add_test(t, decode_joins_bytes_and_replaces_damaged_ones);
    tcase_add_test(t, unknown_ids_are_refused);
    tcase_add_test(t, text_must_be_utf8_and_a_failure_leaves_the_ids);
    tcase_add_test(t, another_pattern_runs_under_limits);
    tcase_add_test(t, long_runs_take_no_quadratic_time);
    tcase_add_test(t, every_refusal_has_its_name);
    tcase_add_test(t, files_that_are_no_tokenizers_are_refused);
    tcase_add_test(t, a_byte_without_a_token_is_refused);
    tcase_add_test(t, nano_encodes_a_known_line);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
