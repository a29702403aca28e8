/* The strict JSON reader and the writer: every rule of json.h with its offset, exact integers,
 * linear time on large objects, and text that survives a round trip. */
#include "src/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/file.h"
#include "tests/harness.h"

static mq_status parse(mq_json **doc, const char *text, mq_err *err)
{
    /* A copy of exact size: the sanitizer sees a read past the end. */
    size_t n = strlen(text);
    char *copy = malloc(n ? n : 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, text, n);
    mq_status st = mq_json_parse(doc, copy, (int64_t)n, 8, err);
    free(copy);
    return st;
}

static const struct {
    const char *text, *error;
} refused[] = {
    {"", "byte 0: the text ends early"},
    {"  ", "byte 2: the text ends early"},
    {"\xef\xbb\xbf{}", "byte 0: byte-order mark"},
    {"{} x", "byte 3: text after the value"},
    {"{}{}", "byte 2: text after the value"},
    {"nul", "byte 0: not a JSON value"},
    {"True", "byte 0: not a JSON value"},
    {"NaN", "byte 0: not a JSON value"},
    {"Infinity", "byte 0: not a JSON value"},
    {"'a'", "byte 0: not a JSON value"},
    {"\x0b 1", "byte 0: not a JSON value"},
    {"// c\n1", "byte 0: not a JSON value"},
    {"+1", "byte 0: not a JSON value"},
    {".5", "byte 0: not a JSON value"},
    {"01", "byte 0: number with a leading zero"},
    {"-007", "byte 0: number with a leading zero"},
    {"[-]", "byte 2: a digit must follow '-'"},
    {"[1.]", "byte 3: a digit must follow '.'"},
    {"[1.e5]", "byte 3: a digit must follow '.'"},
    {"[1e]", "byte 3: a digit must follow the exponent's mark"},
    {"[1e+]", "byte 4: a digit must follow the exponent's mark"},
    {"0x10", "byte 1: text after the value"},
    {"[1e999]", "byte 1: number outside the range of a double"},
    {"{\"a\": \"1e5\", \"b\": -1e400}", "byte 18: number outside the range of a double"},
    {"1000000000000000000000000000000000000000000000000000000000000000",
     "byte 0: number of more than 63 characters"},
    {"[1,]", "byte 3: not a JSON value"},
    {"[1 2]", "byte 3: expected ',' or ']'"},
    {"[", "byte 1: the text ends early"},
    {"[1", "byte 2: the text ends early"},
    {"[1}", "byte 2: expected ',' or ']'"},
    {"{\"a\":1,}", "byte 7: expected a key in double quotes"},
    {"{a:1}", "byte 1: expected a key in double quotes"},
    {"{\"a\" 1}", "byte 5: expected ':' after a key"},
    {"{\"a\":1 \"b\":2}", "byte 7: expected ',' or '}'"},
    {"\"abc", "byte 4: the text ends early"},
    {"\"a\tb\"", "byte 2: control character in a string"},
    {"\"a\nb\"", "byte 2: control character in a string"},
    {"\"\\x41\"", "byte 2: unknown escape in a string"},
    {"\"\\u00g0\"", "byte 5: \\u needs four hex digits"},
    {"\"\\u12\"", "byte 5: \\u needs four hex digits"},
    {"\"a\\u0000\"", "byte 2: \\u0000 in a string"},
    {"\"\\ud800\"", "byte 1: lone surrogate in a string"},
    {"\"\\ud800x\"", "byte 1: lone surrogate in a string"},
    {"\"\\ud800\\n\"", "byte 1: lone surrogate in a string"},
    {"\"\\ud800\\u0041\"", "byte 1: lone surrogate in a string"},
    {"\"\\udc00\"", "byte 1: lone surrogate in a string"},
    {"\"\\ud83d", "byte 1: lone surrogate in a string"},
    {"\"\x80\"", "byte 1: invalid UTF-8 in a string"},
    {"\"\xc0\x80\"", "byte 1: invalid UTF-8 in a string"},
    {"\"\xed\xa0\x80\"", "byte 1: invalid UTF-8 in a string"},
    {"\"\xf4\x90\x80\x80\"", "byte 1: invalid UTF-8 in a string"},
    {"\"\xe2\x82", "byte 1: invalid UTF-8 in a string"},
    {"{\"a\":1,\"a\":2}", "byte 7: duplicate key 'a'"},
    {"{\"a\":1,\"\\u0061\":2}", "byte 7: duplicate key 'a'"},
    {"[{\"x\":\"\\\"\",\"y\":[{\"k\":0, \"k\":0}]}]", "byte 24: duplicate key 'k'"},
    {"[[[[[[[[[1]]]]]]]]]", "byte 8: nested deeper than 8"},
};

START_TEST(each_broken_rule_is_named_with_its_offset)
{
    mq_err err;
    mq_json *doc;
    mq_assert_fails(parse(&doc, refused[_i].text, &err), MQ_E_FORMAT, &err, refused[_i].error);
    ck_assert_ptr_null(doc);
}
END_TEST

START_TEST(a_raw_nul_is_refused_in_and_outside_strings)
{
    mq_err err;
    mq_json *doc;
    mq_assert_fails(mq_json_parse(&doc, "\"a\0b\"", 5, 8, &err), MQ_E_FORMAT, &err,
                    "byte 2: control character");
    mq_assert_fails(mq_json_parse(&doc, "1\0", 2, 8, &err), MQ_E_FORMAT, &err,
                    "byte 1: text after the value");
}
END_TEST

START_TEST(any_truncation_of_a_good_text_is_refused)
{
    const char *good =
        "{\"a\": [1, -2.5e3, true, null], \"b\": {\"c\": \"\\ud83d\\ude00 \xc3\xa9\"}}";
    mq_err err;
    mq_json *doc;
    for (int64_t n = 0; n < (int64_t)strlen(good); n++) {
        char *copy = malloc(n ? (size_t)n : 1); /* exact: the sanitizer sees a read behind it */
        ck_assert_ptr_nonnull(copy);
        memcpy(copy, good, (size_t)n);
        ck_assert_int_eq(mq_json_parse(&doc, copy, n, 8, &err), MQ_E_FORMAT);
        free(copy);
    }
    mq_assert_ok(parse(&doc, good, &err), &err);
    mq_json_free(doc);
}
END_TEST

START_TEST(values_come_back_with_types_keys_and_counts)
{
    mq_err err;
    mq_json *doc;
    mq_assert_ok(
        parse(&doc,
              " {\"s\": \"q\\\"\\u00e9\\ud83d\\ude00\\/\", \"n\":-2.5e3, \"t\":true, \"z\":null, "
              "\"a\":[1,2,3], \"o\":{}, \"\":false } ",
              &err),
        &err);
    const mq_json_node *root = mq_json_root(doc), *n = mq_json_find(root, "s");
    ck_assert_int_eq(mq_json_count(root), 7);
    ck_assert_str_eq(mq_json_string(n), "q\"\xc3\xa9\xf0\x9f\x98\x80/");
    double d = 0;
    bool b = false;
    int64_t i = 0;
    ck_assert(mq_json_double(mq_json_find(root, "n"), &d) && d == -2500.0);
    ck_assert(!mq_json_int(mq_json_find(root, "n"), &i));
    ck_assert(mq_json_bool(mq_json_find(root, "t"), &b) && b);
    ck_assert(mq_json_bool(mq_json_find(root, ""), &b) && !b);
    ck_assert_int_eq(mq_json_type_of(mq_json_find(root, "z")), MQ_JSON_NULL);
    ck_assert_int_eq(mq_json_count(mq_json_find(root, "a")), 3);
    ck_assert_int_eq(mq_json_count(mq_json_find(root, "o")), 0);
    ck_assert_int_eq(mq_json_count(mq_json_find(root, "n")), 0);
    ck_assert_ptr_null(mq_json_first(mq_json_find(root, "o")));
    ck_assert_ptr_null(mq_json_first(n));
    ck_assert_ptr_null(mq_json_find(root, "S")); /* exact, not caseless */
    ck_assert_ptr_null(mq_json_find(n, "s"));
    ck_assert(!mq_json_double(n, &d) && !mq_json_int(n, &i) && !mq_json_bool(n, &b));
    ck_assert_ptr_null(mq_json_string(root));
    const mq_json_node *e = mq_json_first(mq_json_find(root, "a"));
    for (int64_t want = 1; want <= 3; want++, e = mq_json_next(e)) {
        ck_assert_ptr_null(mq_json_key(e));
        ck_assert(mq_json_int(e, &i) && i == want);
    }
    ck_assert_ptr_null(e);
    ck_assert_str_eq(mq_json_key(mq_json_first(root)), "s");
    mq_json_free(doc);
    mq_json_free(NULL);
}
END_TEST

START_TEST(type_names_are_those_of_the_rfc)
{
    static const char *const names[] = {"null", "boolean", "number", "string", "array", "object"};
    for (int t = MQ_JSON_NULL; t <= MQ_JSON_OBJECT; t++)
        ck_assert_str_eq(mq_json_type_name((mq_json_type)t), names[t]);
}
END_TEST

static const struct {
    const char *text;
    bool is_int;
    int64_t value;
} ints[] = {
    {"0", true, 0},
    {"-0", true, 0},
    {"9007199254740991", true, 9007199254740991},
    {"9007199254740992", true, 9007199254740992},
    {"9007199254740993", true, 9007199254740993},
    {"-9007199254740993", true, -9007199254740993},
    {"9223372036854775807", true, INT64_MAX},
    {"-9223372036854775808", true, INT64_MIN},
    {"9223372036854775808", false, 0},
    {"-9223372036854775809", false, 0},
    {"18446744073709551616", false, 0},
    {"1.0", false, 0},
    {"1e3", false, 0},
};

START_TEST(integers_are_read_from_their_digits)
{
    mq_err err;
    mq_json *doc;
    char text[64];
    /* Numbers inside strings and keys must not shift which digits belong to which node. */
    snprintf(text, sizeof text, "{\"7\":\"-5\\\"6\",\"k\":[%s]}", ints[_i].text);
    mq_assert_ok(parse(&doc, text, &err), &err);
    int64_t v = 0;
    const mq_json_node *n = mq_json_first(mq_json_find(mq_json_root(doc), "k"));
    ck_assert_int_eq(mq_json_int(n, &v), ints[_i].is_int);
    if (ints[_i].is_int)
        ck_assert_int_eq(v, ints[_i].value);
    mq_json_free(doc);
}
END_TEST

START_TEST(depth_limit_counts_containers_and_ends_at_1000)
{
    mq_err err;
    mq_json *doc;
    mq_assert_ok(mq_json_parse(&doc, "1", 1, 0, &err), &err);
    mq_json_free(doc);
    mq_assert_fails(mq_json_parse(&doc, "[]", 2, 0, &err), MQ_E_FORMAT, &err,
                    "nested deeper than 0");
    mq_assert_ok(mq_json_parse(&doc, "[[],[]]", 7, 2, &err), &err);
    mq_json_free(doc);
    static char deep[200000];
    memset(deep, '[', 1000);
    memset(deep + 1000, ']', 1000);
    mq_assert_ok(mq_json_parse(&doc, deep, 2000, 1 << 20, &err), &err);
    mq_json_free(doc);
    memset(deep, '[', sizeof deep);
    mq_assert_fails(mq_json_parse(&doc, deep, sizeof deep, 1 << 20, &err), MQ_E_FORMAT, &err,
                    "byte 1000: nested deeper than 1000");
}
END_TEST

START_TEST(duplicates_are_found_on_both_sides_of_the_table_size)
{
    mq_err err;
    for (int n = 1; n < 40; n++) {
        mq_buf b = mq_buf_empty();
        mq_json *doc;
        mq_buf_str(&b, "{");
        for (int i = 0; i < n; i++)
            mq_buf_fmt(&b, "%s\"k%d\":{\"k0\":%d}", i ? "," : "", i, i);
        int64_t dup_off = b.n_bytes + 1;
        mq_buf_str(&b, "}");
        mq_assert_ok(mq_json_parse(&doc, b.data, b.n_bytes, 2, &err), &err);
        ck_assert_int_eq(mq_json_count(mq_json_root(doc)), n);
        mq_json_free(doc);
        b.n_bytes--;
        mq_buf_str(&b, ",\"k0\":0}");
        char want[64];
        snprintf(want, sizeof want, "byte %lld: duplicate key 'k0'", (long long)dup_off);
        mq_assert_fails(mq_json_parse(&doc, b.data, b.n_bytes, 2, &err), MQ_E_FORMAT, &err, want);
        mq_buf_release(&b);
    }
}
END_TEST

START_TEST(a_million_keys_take_linear_time)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    mq_json *doc;
    for (int i = 0; i < 1000000; i++)
        mq_buf_fmt(&b, "%s\"model.layers.%d.w\":%d", i ? "," : "{", i, i);
    mq_buf_str(&b, "}");
    clock_t start = clock();
    mq_assert_ok(mq_json_parse(&doc, b.data, b.n_bytes, 1, &err), &err);
    double s = (double)(clock() - start) / CLOCKS_PER_SEC;
    printf("1,000,000 keys: %.2f s\n", s);
    ck_assert_msg(s < 30.0, "%.1f s: quadratic search would take minutes", s);
    ck_assert_int_eq(mq_json_count(mq_json_root(doc)), 1000000);
    mq_json_free(doc);
    mq_buf_release(&b);
}
END_TEST

START_TEST(load_names_the_path)
{
    mq_err err;
    mq_json *doc;
    const char *dir = mq_test_dir();
    char *path = mq_path_join(dir, "c.json");
    mq_assert_ok(mq_file_save(dir, "c.json", "{\"a\":01}", 8, &err), &err);
    mq_assert_fails(mq_json_load(&doc, path, 100, 4, &err), MQ_E_FORMAT, &err,
                    "c.json: JSON byte 5: number with a leading");
    mq_assert_fails(mq_json_load(&doc, path, 7, 4, &err), MQ_E_FORMAT, &err,
                    "c.json: 8 bytes, expected at most 7");
    ck_assert_ptr_eq(strstr(err.text, path), err.text);
    mq_assert_ok(mq_file_save(dir, "c.json", "{\"a\":1}", 7, &err), &err);
    mq_assert_ok(mq_json_load(&doc, path, 7, 4, &err), &err);
    mq_json_free(doc);
    mq_assert_fails(mq_json_load(&doc, "/nonexistent/c.json", 7, 4, &err), MQ_E_IO, &err,
                    "/nonexistent/c.json: ");
    ck_assert_ptr_null(doc);
    free(path);
}
END_TEST

static void write_sample(mq_json_writer *w)
{
    mq_json_write_object(w, NULL);
    mq_json_write_string(w, "s", "a\"\\\n\t\r\x01\x7f\xff\xc3\xa9");
    mq_json_write_string(w, "none", NULL);
    mq_json_write_array(w, "a");
    mq_json_write_int(w, NULL, INT64_MIN);
    mq_json_write_double(w, NULL, 0.1);
    mq_json_write_object(w, NULL);
    mq_json_write_end_object(w);
    mq_json_write_array(w, NULL);
    mq_json_write_end_array(w);
    mq_json_write_end_array(w);
    mq_json_write_bool(w, "t", true);
    mq_json_write_null(w, "z");
    mq_json_write_end_object(w);
}

START_TEST(writer_places_commas_escapes_and_lines)
{
    mq_buf b = mq_buf_empty();
    mq_json_writer w = mq_json_write_begin(&b, 0);
    write_sample(&w);
    ck_assert_str_eq(b.data,
                     "{\"s\":\"a\\\"\\\\\\n\\t\\r\\u0001\x7f\xef\xbf\xbd\xc3\xa9\",\"none\":null,"
                     "\"a\":[-9223372036854775808,0.1,{},[]],\"t\":true,\"z\":null}");
    mq_buf_clear(&b);
    w = mq_json_write_begin(&b, 2);
    write_sample(&w);
    ck_assert_str_eq(
        b.data,
        "{\n  \"s\": \"a\\\"\\\\\\n\\t\\r\\u0001\x7f\xef\xbf\xbd\xc3\xa9\",\n  \"none\": null,\n"
        "  \"a\": [\n    -9223372036854775808,\n    0.1,\n    {},\n    []\n  ],\n"
        "  \"t\": true,\n  \"z\": null\n}");
    mq_buf_release(&b);
}
END_TEST

START_TEST(doubles_read_back_to_the_same_bits)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0.0, "0"},
                 {-0.0, "-0.0"},
                 {1.0, "1"},
                 {0.1, "0.1"},
                 {1.0 / 3.0, "0.33333333333333331"},
                 {1e300, "1e+300"},
                 {0x1p-1074, "4.94065646e-324"},
                 {123456789.0, "123456789"},
                 {1234567890.0, "1.23456789e+09"},
                 {INFINITY, "null"},
                 {-INFINITY, "null"},
                 {NAN, "null"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mq_buf b = mq_buf_empty();
        mq_json_writer w = mq_json_write_begin(&b, 0);
        mq_json_write_double(&w, NULL, cases[i].value);
        ck_assert_str_eq(b.data, cases[i].text);
        mq_buf_release(&b);
    }
}
END_TEST

START_TEST(a_written_node_is_the_parsed_text)
{
    /* Numbers beyond int64 keep their digits. */
    const char *text = "{\"a\":[1,9007199254740993,18446744073709551615,-2.5,true,false,null,"
                       "\"x\\u0001y\"],\"o\":{\"p\":{}}}";
    mq_err err;
    mq_json *doc;
    mq_assert_ok(parse(&doc, text, &err), &err);
    mq_buf b = mq_buf_empty();
    mq_json_writer w = mq_json_write_begin(&b, 0);
    mq_json_write_node(&w, NULL, mq_json_root(doc));
    mq_assert_ok(mq_buf_status(&b, &err), &err);
    ck_assert_str_eq(b.data, text);
    mq_buf_release(&b);
    mq_json_free(doc);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("json");
    TCase *t = tcase_create("json");
    tcase_add_loop_test(t, each_broken_rule_is_named_with_its_offset, 0,
                        (int)(sizeof refused / sizeof *refused));
    tcase_add_test(t, a_raw_nul_is_refused_in_and_outside_strings);
    tcase_add_test(t, any_truncation_of_a_good_text_is_refused);
    tcase_add_test(t, values_come_back_with_types_keys_and_counts);
    tcase_add_test(t, type_names_are_those_of_the_rfc);
    tcase_add_loop_test(t, integers_are_read_from_their_digits, 0,
                        (int)(sizeof ints / sizeof *ints));
    tcase_add_test(t, depth_limit_counts_containers_and_ends_at_1000);
    tcase_add_test(t, duplicates_are_found_on_both_sides_of_the_table_size);
    tcase_add_test(t, a_million_keys_take_linear_time);
    tcase_add_test(t, load_names_the_path);
    tcase_add_test(t, writer_places_commas_escapes_and_lines);
    tcase_add_test(t, doubles_read_back_to_the_same_bits);
    tcase_add_test(t, a_written_node_is_the_parsed_text);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
