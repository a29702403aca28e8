/* --calib and --recipe: weights and names with an @, every key, and what is refused with its text. */
#include "tools/calib_options.h"

#include <string.h>

#include "tests/harness.h"

static void expect_file(const char *item, const char *path, double weight)
{
    mq_err err = {0};
    mq_opt_list list = {.items = {item}, .n = 1};
    mq_corpus_file *files;
    mq_assert_ok(mq_calib_files_read(&files, &list, &err), &err);
    ck_assert_str_eq(files[0].path, path);
    ck_assert(files[0].weight == weight);
    mq_calib_files_free(files, 1);
}

static void refuse_file(const char *item, const char *fragment)
{
    mq_err err = {0};
    mq_opt_list list = {.items = {"good", item}, .n = 2};
    mq_corpus_file *files;
    mq_assert_fails(mq_calib_files_read(&files, &list, &err), MQ_E_ARG, &err, fragment);
    ck_assert_ptr_null(files);
}

START_TEST(a_weight_follows_the_last_at_sign)
{
    expect_file("a.txt", "a.txt", 1);
    expect_file("a.txt@2", "a.txt", 2);
    expect_file("a.txt@.25", "a.txt", 0.25);
    expect_file("/x/a@b.txt", "/x/a@b.txt", 1);
    expect_file("a@b@3", "a@b", 3);
    expect_file("a@2@1", "a@2", 1);
    expect_file("a@", "a@", 1);
    expect_file("a@2x", "a@2x", 1);
    expect_file("a@-1", "a@-1", 1);
    expect_file("a@inf", "a@inf", 1);
    expect_file("a@0x10", "a@0x10", 1);
    expect_file("a:2", "a:2", 1);
}
END_TEST

START_TEST(weights_and_names_are_checked)
{
    refuse_file("a@0", "--calib a@0: weight 0, expected a positive number up to 1e9");
    refuse_file("a@1e10", "expected a positive number up to 1e9");
    refuse_file("@2", "--calib @2: expected FILE or FILE@WEIGHT");
    refuse_file("", "expected FILE or FILE@WEIGHT");
    mq_calib_files_free(NULL, 3);
}
END_TEST

START_TEST(several_files_keep_their_order)
{
    mq_err err = {0};
    mq_opt_list list = {.items = {"a@3", "b", "c@0.5"}, .n = 3};
    mq_corpus_file *files;
    mq_assert_ok(mq_calib_files_read(&files, &list, &err), &err);
    ck_assert_str_eq(files[0].path, "a");
    ck_assert_str_eq(files[1].path, "b");
    ck_assert_str_eq(files[2].path, "c");
    ck_assert(files[0].weight == 3 && files[1].weight == 1 && files[2].weight == 0.5);
    mq_calib_files_free(files, 3);
}
END_TEST

START_TEST(recipe_sets_each_member)
{
    mq_err err = {0};
    mq_calib_recipe r = {.weight_power = 1, .act_order = true, .refit = true, .shrink = true, .quantized_h = true};
    mq_assert_ok(mq_calib_recipe_read(&r, "weight=2,act-order=off,refit=off,shrink=off,quantized-h=off", &err), &err);
    ck_assert_int_eq(r.weight_power, 2);
    ck_assert(!r.act_order && !r.refit && !r.shrink && !r.quantized_h);
    mq_assert_ok(mq_calib_recipe_read(&r, "kappa=.5,damp=0.01,damp-few=0.09,refit=on", &err), &err);
    ck_assert(r.kappa == 0.5f && r.damp == 0.01f && r.damp_few == 0.09f && r.refit && !r.shrink);
    mq_assert_ok(mq_calib_recipe_read(&r, "weight=0,rounds=16,descent=64", &err), &err);
    ck_assert_int_eq(r.weight_power, 0);
    ck_assert_int_eq(r.rounds, 16);
    ck_assert_int_eq(r.descent, 64);
    mq_assert_ok(mq_calib_recipe_read(&r, "weighted-search=on,down-target=on,rounds=0,descent=0", &err), &err);
    ck_assert(r.weighted_search && r.down_target && r.rounds == 0 && r.descent == 0);
    mq_assert_ok(mq_calib_recipe_read(&r, "weighted-search=off,down-target=off", &err), &err);
    ck_assert(!r.weighted_search && !r.down_target);
    mq_assert_ok(mq_calib_recipe_read(&r, "damp-columns=on,target-few=2.5", &err), &err);
    ck_assert(r.damp_columns && r.target_few == 2.5f);
}
END_TEST

START_TEST(recipe_is_checked)
{
    static const char *const bad[][2] = {
        {"", "--recipe : expected KEY=VALUE"},
        {"refit", "--recipe refit: expected KEY=VALUE"},
        {"refit=on,", "--recipe : expected KEY=VALUE"},
        {"refit=yes", "--recipe refit=yes: expected on or off"},
        {"weight=3", "--recipe weight=3: expected a whole number from 0 to 2"},
        {"weight=11", "--recipe weight=11: expected a whole number from 0 to 2"},
        {"weight=", "--recipe weight=: expected a whole number from 0 to 2"},
        {"precision=tf32", "--recipe precision=tf32: expected f32 or bf16"},
        {"rounds=17", "--recipe rounds=17: expected a whole number from 0 to 16"},
        {"descent=+1", "--recipe descent=+1: expected a whole number from 0 to 64"},
        {"descent=4294967296", "--recipe descent=4294967296: expected"},
        {"damp=-1", "--recipe damp=-1: expected a number from 0 to 1e6"},
        {"kappa=inf", "--recipe kappa=inf: expected a number from 0 to 1e6"},
        {"Refit=on", "--recipe Refit: expected precision, weight, weighted-search, act-order, refit"},
        {"group=32", "--recipe group: expected precision, weight"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        mq_err err = {0};
        mq_calib_recipe r = {0};
        mq_assert_fails(mq_calib_recipe_read(&r, bad[i][0], &err), MQ_E_ARG, &err, bad[i][1]);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("calib_options");
    TCase *t = tcase_create("calib_options");
    tcase_add_test(t, a_weight_follows_the_last_at_sign);
    tcase_add_test(t, weights_and_names_are_checked);
    tcase_add_test(t, several_files_keep_their_order);
    tcase_add_test(t, recipe_sets_each_member);
    tcase_add_test(t, recipe_is_checked);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
