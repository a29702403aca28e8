/* Options, exit statuses, numbers for people, and the JSON object that ends every run. */
#include "tools/cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "tests/harness.h"

/* One tool with every kind of option. */
typedef struct tool {
    bool flag, given;
    int64_t count, bytes;
    double share;
    const char *name, *mode;
    mq_opt_list stops;
    mq_opt opts[8];
    mq_cli cli;
} tool;

static void tool_init(tool *t)
{
    memset(t, 0, sizeof *t);
    t->count = 7;
    const mq_opt opts[8] = {
        {"flag", MQ_OPT_FLAG, &t->flag, "", NULL, "a flag", 0, 0, 0, 0, NULL},
        {"count", MQ_OPT_INT, &t->count, "N", NULL, "a number", -5, 100, 0, 0, &t->given},
        {"bytes", MQ_OPT_SIZE, &t->bytes, "BYTES", NULL, "a size", 1024, 0, 0, 0, NULL},
        {"share", MQ_OPT_DOUBLE, &t->share, "X", NULL, "a share", 0, 0, 0, 1, NULL},
        {"name", MQ_OPT_STRING, &t->name, "TEXT", NULL, "a text", 0, 0, 0, 0, NULL},
        {"mode", MQ_OPT_STRING, &t->mode, "", "rtn|search", "a choice", 0, 0, 0, 0, NULL},
        {"stop", MQ_OPT_LIST, &t->stops, "TEXT", NULL, "a list", 0, 0, 0, 0, NULL},
        {"serve", MQ_OPT_LATER, NULL, "", NULL, "for later", 0, 0, 0, 0, NULL},
    };
    memcpy(t->opts, opts, sizeof opts);
    t->cli = (mq_cli){.tool = "mimo-test",
                      .usage = "[options] MODEL",
                      .summary = "Tests.",
                      .opts = t->opts,
                      .n_opts = 8,
                      .n_args_min = 1,
                      .n_args_max = 2};
}

enum { MAX_WORDS = 24 };

/* Split words at spaces and parse them; the words live until the next call. */
static mq_status parse(tool *t, const char *words, mq_err *err)
{
    static char text[512];
    static char *argv[MAX_WORDS + 1];
    int argc = 0;
    tool_init(t);
    snprintf(text, sizeof text, "mimo-test %s", words);
    for (char *word = strtok(text, " "); word && argc < MAX_WORDS; word = strtok(NULL, " "))
        argv[argc++] = word;
    argv[argc] = NULL;
    bool done;
    mq_status st = mq_cli_parse(&t->cli, argc, argv, &done, err);
    ck_assert(!done);
    return st;
}

START_TEST(values_stand_behind_a_space_or_an_equals_sign)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "--count 42 --share=0.25 --name=a=b --mode search --flag M", &err),
                 &err);
    ck_assert_int_eq(t.count, 42);
    ck_assert_double_eq(t.share, 0.25);
    ck_assert_str_eq(t.name, "a=b");
    ck_assert_str_eq(t.mode, "search");
    ck_assert(t.flag && t.given);
    ck_assert_int_eq(t.cli.n_args, 1);
    ck_assert_str_eq(t.cli.args[0], "M");
}
END_TEST

START_TEST(defaults_stay_and_given_tells)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "M", &err), &err);
    ck_assert_int_eq(t.count, 7);
    ck_assert(!t.given && !t.flag && !t.name && !t.cli.quiet && !t.cli.json_path);
}
END_TEST

START_TEST(two_dashes_end_the_options_and_one_is_an_argument)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "--flag -- --count -", &err), &err);
    ck_assert_int_eq(t.cli.n_args, 2);
    ck_assert_str_eq(t.cli.args[0], "--count");
    ck_assert_str_eq(t.cli.args[1], "-");
}
END_TEST

START_TEST(a_value_may_look_like_an_option)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "--name --help --count -3 M", &err), &err);
    ck_assert_str_eq(t.name, "--help");
    ck_assert_int_eq(t.count, -3);
}
END_TEST

START_TEST(lists_repeat_up_to_sixteen_times)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "--stop a M --stop=b", &err), &err);
    ck_assert_int_eq(t.stops.n, 2);
    ck_assert_str_eq(t.stops.items[1], "b");
    mq_assert_fails(
        parse(&t,
              "--stop=1 --stop=2 --stop=3 --stop=4 --stop=5 --stop=6 --stop=7 --stop=8 --stop=9 "
              "--stop=10 --stop=11 --stop=12 --stop=13 --stop=14 --stop=15 --stop=16 --stop=17 M",
              &err),
        MQ_E_ARG, &err, "--stop: given more than 16 times");
}
END_TEST

static const struct {
    const char *words, *text;
} refused[] = {
    {"--bogus M", "unknown option '--bogus'"},
    {"--bogus=1 M", "unknown option '--bogus=1'"},
    {"-f M", "unknown option '-f'"},
    {"--fla M", "unknown option '--fla'"}, /* no abbreviations */
    {"--=3 M", "unknown option '--=3'"},
    {"--flag --flag M", "--flag: given twice"},
    {"--count 1 --count=1 M", "--count: given twice"},
    {"--quiet --quiet M", "--quiet: given twice"},
    {"--flag=yes M", "--flag takes no value"},
    {"M --count", "--count needs a value (N)"},
    {"M --mode", "--mode needs a value (rtn|search)"},
    {"--count= M", "--count : expected a whole number from -5 to 100"},
    {"--count 101 M", "--count 101: expected a whole number from -5 to 100"},
    {"--count -6 M", "from -5 to 100"},
    {"--count 1.0 M", "expected a whole number"},
    {"--count 0x10 M", "expected a whole number"},
    {"--count +1 M", "expected a whole number"},
    {"--count 99999999999999999999 M", "expected a whole number"},
    {"--share 1.5 M", "--share 1.5: expected a number from 0 to 1"},
    {"--share nan M", "expected a number"},
    {"--share inf M", "expected a number"},
    {"--share 0x1p-3 M", "expected a number"},
    {"--share 0.5x M", "expected a number"},
    {"--bytes 1023 M", "expected a size of at least 1024 bytes"},
    {"--bytes -4G M", "expected a size"},
    {"--bytes 4Q M", "expected a size"},
    {"--bytes 4GG M", "expected a size"},
    {"--bytes 4096iB M", "expected a size"},
    {"--bytes G M", "expected a size"},
    {"--bytes 9000P M", "expected a size"},
    {"--mode gptq M", "--mode gptq: expected one of rtn|search"},
    {"--mode rt M", "expected one of rtn|search"},
    {"--serve M", "--serve: not built yet"},
    {"--serve=8000 M", "--serve: not built yet"},
    {"", "usage: mimo-test [options] MODEL"},
    {"a b c", "unexpected argument 'c'"},
};

START_TEST(wrong_usage_is_refused_with_the_reason)
{
    tool t;
    mq_err err;
    mq_assert_fails(parse(&t, refused[_i].words, &err), MQ_E_ARG, &err, refused[_i].text);
}
END_TEST

START_TEST(sizes_take_suffixes_of_1024)
{
    static const struct {
        const char *text;
        int64_t bytes;
    } rows[] = {{"1024", 1024},       {"2k", 2048},          {"512M", 536870912},
                {"48G", 51539607552}, {"1.5K", 1536},        {"3GB", 3221225472},
                {"3GiB", 3221225472}, {"1T", 1099511627776}, {"1P", 1125899906842624},
                {"4096B", 4096}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tool t;
        mq_err err;
        char words[64];
        snprintf(words, sizeof words, "--bytes %s M", rows[i].text);
        mq_assert_ok(parse(&t, words, &err), &err);
        ck_assert_int_eq(t.bytes, rows[i].bytes);
    }
}
END_TEST

START_TEST(a_json_option_behind_an_error_is_still_seen)
{
    tool t;
    mq_err err;
    mq_assert_fails(parse(&t, "--bogus M --json out.json", &err), MQ_E_ARG, &err, "--bogus");
    ck_assert_str_eq(t.cli.json_path, "out.json");
    ck_assert(mq_cli_text(&t.cli));
    mq_assert_ok(parse(&t, "M --json -", &err), &err);
    ck_assert(!mq_cli_text(&t.cli));
}
END_TEST

START_TEST(every_status_has_its_exit_status)
{
    static const struct {
        mq_status st;
        int exit_status;
    } rows[] = {{MQ_OK, 0},       {MQ_E_ARG, 2},         {MQ_E_IO, 4},
                {MQ_E_FORMAT, 3}, {MQ_E_UNSUPPORTED, 3}, {MQ_E_SHAPE, 3},
                {MQ_E_HASH, 3},   {MQ_E_EXISTS, 6},      {MQ_E_NOMEM, 5},
                {MQ_E_DEVICE, 5}, {MQ_E_NUMERIC, 3},     {MQ_E_STOPPED, 143},
                {MQ_E_BUG, 70}};
    ck_assert_int_eq(sizeof rows / sizeof *rows, MQ_E_BUG + 1); /* none left out */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        ck_assert_int_eq(mq_cli_exit_status(rows[i].st), rows[i].exit_status);
}
END_TEST

START_TEST(bytes_and_seconds_for_people)
{
    static const struct {
        int64_t n;
        const char *text;
    } sizes[] = {{0, "0 B"},
                 {999, "999 B"},
                 {1000, "1.00 KB"},
                 {1234567, "1.23 MB"},
                 {12345678, "12.3 MB"},
                 {999499999, "999 MB"},
                 {999500000, "1.00 GB"},
                 {1020000000000, "1.02 TB"}};
    static const struct {
        double s;
        const char *text;
    } times[] = {{0, "0.0 s"},          {99.94, "99.9 s"},       {99.96, "1 min 40 s"},
                 {185, "3 min 05 s"},   {3599.4, "59 min 59 s"}, {3600, "1 h 00 min"},
                 {90061, "25 h 01 min"}};
    char text[32];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mq_cli_bytes_text(text, sizes[i].n);
        ck_assert_str_eq(text, sizes[i].text);
    }
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        mq_cli_seconds_text(text, times[i].s);
        ck_assert_str_eq(text, times[i].text);
    }
}
END_TEST

START_TEST(devices_are_read_strictly)
{
    static const char *const wrong[] = {"gpu",     "",        "cuda:",   "cuda:a", "cuda:0,",
                                        "cuda:,0", "cuda:-1", "cuda: 0", "cuda0", "cuda:0,0"};
    const char *name;
    mq_err err;
    mq_assert_ok(mq_cli_device(&name, NULL, NULL, &err), &err);
    ck_assert_str_eq(name, "cpu");
    mq_assert_ok(mq_cli_device(&name, NULL, "cpu", &err), &err);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        mq_assert_fails(mq_cli_device(&name, NULL, wrong[i], &err), MQ_E_ARG, &err,
                        "expected cpu, cuda or cuda:0,1,...");
    mq_assert_fails(mq_cli_device(&name, NULL, "cuda:0,4096", &err), MQ_E_DEVICE, &err,
                    "--device cuda:0,4096");
}
END_TEST

/* Finish with st, read the object back. */
static mq_json *finish(tool *t, mq_status st, int override, int want_exit, mq_err *why)
{
    mq_err err;
    char *path = mq_path_join(mq_test_dir(), "out.json");
    t->cli.json_path = path;
    ck_assert_int_eq(mq_cli_finish(&t->cli, st, override, why), want_exit);
    mq_json *doc;
    mq_assert_ok(mq_json_load(&doc, path, 1 << 20, 16, &err), &err);
    free(path);
    return doc;
}

static const char *member(const mq_json *doc, const char *key)
{
    const mq_json_node *n = mq_json_find(mq_json_root(doc), key);
    ck_assert_msg(n && mq_json_string(n), "no string '%s'", key);
    return mq_json_string(n);
}

START_TEST(the_result_names_tool_command_and_status)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "--name \"\x01\xff M", &err), &err);
    mq_json_write_int(&t.cli.json, "answer", 42);
    mq_json *doc = finish(&t, MQ_OK, -1, 0, NULL);
    ck_assert_str_eq(member(doc, "schema"), "mimo-1");
    ck_assert_str_eq(member(doc, "tool"), "mimo-test");
    ck_assert_str_eq(member(doc, "version"), MQ_VERSION);
    ck_assert_str_eq(member(doc, "status"), "ok");
    const mq_json_node *command = mq_json_find(mq_json_root(doc), "command");
    ck_assert_int_eq(mq_json_count(command), 4);
    int64_t answer, exit_code;
    ck_assert(mq_json_int(mq_json_find(mq_json_root(doc), "answer"), &answer) && answer == 42);
    ck_assert(mq_json_int(mq_json_find(mq_json_root(doc), "exit_code"), &exit_code) &&
              exit_code == 0);
    ck_assert_int_eq(mq_json_count(mq_json_find(mq_json_root(doc), "errors")), 0);
    mq_json_free(doc);
}
END_TEST

START_TEST(a_missed_threshold_is_failed_with_exit_1)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "M", &err), &err);
    mq_json *doc = finish(&t, MQ_OK, 1, 1, NULL);
    ck_assert_str_eq(member(doc, "status"), "failed");
    mq_json_free(doc);
}
END_TEST

START_TEST(a_failure_leaves_an_object_whatever_was_open)
{
    tool t;
    mq_err err, why;
    mq_assert_ok(parse(&t, "M", &err), &err);
    mq_json_write_object(&t.cli.json, "weights");
    mq_json_write_string(&t.cli.json, "odd", "[{\"\\");
    mq_json_write_array(&t.cli.json, "records");
    mq_json_write_object(&t.cli.json, NULL);
    mq_fail(&why, MQ_E_HASH, "common.mqs: tensor 'x': \"digest\" differs");
    mq_json *doc = finish(&t, MQ_E_HASH, 1, 3, &why);
    ck_assert_str_eq(member(doc, "status"), "hash");
    const mq_json_node *errors = mq_json_find(mq_json_root(doc), "errors");
    ck_assert_int_eq(mq_json_count(errors), 1);
    ck_assert_str_eq(mq_json_string(mq_json_find(mq_json_first(errors), "message")), why.text);
    ck_assert_str_eq(mq_json_string(mq_json_find(mq_json_first(errors), "code")), "hash");
    ck_assert(mq_json_find(mq_json_find(mq_json_root(doc), "weights"), "records") != NULL);
    mq_json_free(doc);
}
END_TEST

START_TEST(a_result_that_cannot_be_written_is_an_io_failure)
{
    tool t;
    mq_err err;
    mq_assert_ok(parse(&t, "--json /nowhere/at/all.json M", &err), &err);
    ck_assert_int_eq(mq_cli_finish(&t.cli, MQ_OK, -1, NULL), 4);
    mq_assert_ok(parse(&t, "--json /nowhere/at/all.json M", &err), &err);
    mq_fail(&err, MQ_E_NOMEM, "no memory");
    ck_assert_int_eq(mq_cli_finish(&t.cli, MQ_E_NOMEM, -1, &err), 5); /* the first cause stays */
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cli");
    TCase *t = tcase_create("cli");
    tcase_add_test(t, values_stand_behind_a_space_or_an_equals_sign);
    tcase_add_test(t, defaults_stay_and_given_tells);
    tcase_add_test(t, two_dashes_end_the_options_and_one_is_an_argument);
    tcase_add_test(t, a_value_may_look_like_an_option);
    tcase_add_test(t, lists_repeat_up_to_sixteen_times);
    tcase_add_loop_test(t, wrong_usage_is_refused_with_the_reason, 0,
                        (int)(sizeof refused / sizeof *refused));
    tcase_add_test(t, sizes_take_suffixes_of_1024);
    tcase_add_test(t, a_json_option_behind_an_error_is_still_seen);
    tcase_add_test(t, every_status_has_its_exit_status);
    tcase_add_test(t, bytes_and_seconds_for_people);
    tcase_add_test(t, devices_are_read_strictly);
    tcase_add_test(t, the_result_names_tool_command_and_status);
    tcase_add_test(t, a_missed_threshold_is_failed_with_exit_1);
    tcase_add_test(t, a_failure_leaves_an_object_whatever_was_open);
    tcase_add_test(t, a_result_that_cannot_be_written_is_an_io_failure);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
