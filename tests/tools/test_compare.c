/* Weights of packed models against checkpoints that were changed by one bit, and against the right
 * ones. */
#include "tools/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/file.h"
#include "tests/harness.h"
#include "tools/convert.h"

static const mq_cli quiet_cli = {.tool = "test_compare", .usage = "", .summary = "", .quiet = true};

/* Packed nano for one rank and for two, and nano-mxfp4; shared by all tests, never changed. */
static char *nano1, *nano2, *mxfp4;

static char *pack(const char *checkpoint, int group, int n_ranks, mq_convert_result *result)
{
    mq_err err;
    char *out = mq_path_join(mq_test_dir(), "packed");
    mq_convert_options o = {.checkpoint = checkpoint,
                            .out_dir = out,
                            .method = MQ_ROUND_RTN,
                            .group = group,
                            .n_ranks = n_ranks,
                            .n_threads = 2};
    mq_assert_ok(mq_convert(result, &o, &quiet_cli, &err), &err);
    return out;
}

static mq_convert_result nano1_result;

static void setup(void)
{
    mq_convert_result r;
    nano1 = pack(mq_test_path("tests/data/nano"), 128, 1, &nano1_result);
    nano2 = pack(mq_test_path("tests/data/nano"), 64, 2, &r);
    mxfp4 = pack(mq_test_path("tests/data/nano-mxfp4"), 64, 2, &r);
}

static void teardown(void)
{
    free(nano1);
    free(nano2);
    free(mxfp4);
}

/* A copy of a bundled checkpoint that a test may change. */
static const char *copy_of(const char *name)
{
    const char *dir = mq_test_dir();
    char command[1024];
    snprintf(command, sizeof command, "cp -rL '%s/.' '%s' && chmod -R u+w '%s'", mq_test_path(name),
             dir, dir);
    ck_assert_int_eq(system(command), 0);
    return dir;
}

/* Flip bits of one byte of a stored tensor: data, or its scales. */
static void flip(const char *dir, mq_key key, bool scale, int64_t at, int mask)
{
    mq_err err;
    mq_source *s;
    mq_source_tensor t;
    mq_assert_ok(mq_source_open(&s, dir, &err), &err);
    mq_assert_ok(mq_source_find(&t, s, key, &err), &err);
    mq_tensor_ref ref = scale ? t.scale : t.data;
    FILE *f = fopen(mq_safetensors_file(ref.file)->path, "r+b");
    ck_assert_ptr_nonnull(f);
    long off = (long)(ref.tensor->off + at);
    fseek(f, off, SEEK_SET);
    int c = fgetc(f);
    fseek(f, off, SEEK_SET);
    fputc(c ^ mask, f);
    fclose(f);
    mq_source_close(s);
}

static mq_status compare(mq_comparison *w, const char *source_dir, const char *packed_dir,
                         int n_threads, mq_err *err)
{
    mq_source *source;
    mq_packed *packed;
    mq_assert_ok(mq_source_open(&source, source_dir, err), err);
    mq_assert_ok(mq_packed_open(&packed, packed_dir, err), err);
    mq_status st = mq_compare_weights(w, source, packed, n_threads, INT64_MAX, NULL, NULL, NULL, err);
    mq_packed_close(packed);
    mq_source_close(source);
    return st;
}

START_TEST(the_right_source_has_no_difference)
{
    const char *const packed[] = {nano1, nano2};
    const char *source = mq_test_path("tests/data/nano");
    for (int i = 0; i < 2; i++) {
        mq_comparison w;
        mq_err err;
        mq_assert_ok(compare(&w, source, packed[i], 2, &err), &err);
        ck_assert_int_eq(w.n_different, 0);
        ck_assert_str_eq(w.first_difference, "");
        ck_assert_int_eq(w.n_matrices, 5 * 16 * 3); /* five MoE layers of 16 experts */
        ck_assert_int_gt(w.n_untouched, 100);
        for (int64_t k = 0; k < w.n_matrices; k++) {
            ck_assert_int_eq(w.matrices[k].key.layer, 1 + k / 48);
            ck_assert_int_eq(w.matrices[k].key.expert, k / 3 % 16);
            ck_assert_int_eq(w.matrices[k].key.role, (int)MQ_ROLE_EXPERT_GATE + k % 3);
            ck_assert_int_eq(w.matrices[k].scheme, MQ_SCHEME_INT4);
            ck_assert(!w.matrices[k].exact);
            double rel = mq_matrix_relative_error(&w.matrices[k]);
            ck_assert(rel > 0.05 && rel < 0.2); /* 4 bits with a scale for 64 or 128 weights */
        }
        mq_comparison_release(&w);
    }
}
END_TEST

START_TEST(errors_equal_those_of_the_conversion)
{
    mq_comparison w;
    mq_err err;
    mq_assert_ok(compare(&w, mq_test_path("tests/data/nano"), nano1, 1, &err), &err);
    for (int p = 0; p < 3; p++) {
        double err2 = 0, norm2 = 0;
        for (int64_t k = p; k < w.n_matrices; k += 3) {
            err2 += w.matrices[k].err2;
            norm2 += w.matrices[k].norm2;
        }
        /* The same sums in another order; the rounder's differences are rounded to F32 first (2^-24
         * each). */
        ck_assert_double_eq_tol(sqrt(err2 / norm2), nano1_result.rel_error[p], 1e-6);
    }
    mq_comparison_release(&w);
}
END_TEST

START_TEST(threads_do_not_change_a_bit)
{
    mq_comparison a, b;
    mq_err err;
    const char *source = mq_test_path("tests/data/nano");
    mq_assert_ok(compare(&a, source, nano2, 1, &err), &err);
    mq_assert_ok(compare(&b, source, nano2, 4, &err), &err);
    ck_assert_int_eq(a.n_matrices, b.n_matrices);
    for (int64_t k = 0; k < a.n_matrices; k++) {
        ck_assert(a.matrices[k].err2 == b.matrices[k].err2);
        ck_assert(a.matrices[k].norm2 == b.matrices[k].norm2);
    }
    mq_comparison_release(&a);
    mq_comparison_release(&b);
}
END_TEST

/* One flipped bit in a tensor that is carried over: found and named. */
static const struct {
    mq_key key;
    int64_t at;
    const char *name;
} carried[] = {
    {{MQ_STACK_MODEL, -1, MQ_ROLE_EMBED, -1},
     1048575,
     "head-rank-00-of-01.mqs: tensor 'model.embed_tokens.weight'"},
    {{MQ_STACK_MODEL, -1, MQ_ROLE_FINAL_NORM, -1}, 0, "common.mqs: tensor 'model.norm.weight'"},
    {{MQ_STACK_MODEL, 3, MQ_ROLE_ROUTER, -1}, 77, "model.layers.3.mlp.gate.weight'"},
    {{MQ_STACK_MODEL, 1, MQ_ROLE_Q, -1},
     5,
     "layer-001-rank-00-of-01.mqs: tensor 'model.layers.1.self_attn.q_proj.weight'"},
    {{MQ_STACK_MODEL, 5, MQ_ROLE_O, -1}, 4097, "model.layers.5.self_attn.o_proj.weight'"},
    {{MQ_STACK_MODEL, 0, MQ_ROLE_DOWN, -1}, 9, "model.layers.0.mlp.down_proj.weight'"},
    {{MQ_STACK_MTP, 2, MQ_ROLE_MTP_EH_PROJ, -1},
     11,
     "mtp-002-rank-00-of-01.mqs: tensor 'model.mtp.layers.2.eh_proj.weight'"},
    {{MQ_STACK_DRAFT, -1, MQ_ROLE_DRAFT_FC, -1}, 13, "common.mqs: tensor 'draft.fc.weight'"},
};

START_TEST(a_flipped_bit_of_a_carried_tensor_is_named)
{
    const char *dir = copy_of("tests/data/nano");
    flip(dir, carried[_i].key, false, carried[_i].at, 1);
    mq_comparison w;
    mq_err err;
    mq_assert_ok(compare(&w, dir, nano1, 2, &err), &err);
    ck_assert_int_eq(w.n_different, 1);
    ck_assert_msg(strstr(w.first_difference, carried[_i].name), "'%s' lacks '%s'",
                  w.first_difference, carried[_i].name);
    mq_comparison_release(&w);
}
END_TEST

START_TEST(every_slice_that_holds_the_bit_differs)
{
    const char *dir = copy_of("tests/data/nano");
    flip(dir, (mq_key){MQ_STACK_MODEL, -1, MQ_ROLE_HEAD, -1}, false, 4095 * 256,
         1); /* last row: the second rank's */
    mq_comparison w;
    mq_err err;
    mq_assert_ok(compare(&w, dir, nano2, 2, &err), &err);
    ck_assert_int_eq(w.n_different, 1);
    ck_assert_str_eq(w.first_difference, "head-rank-01-of-02.mqs: tensor 'lm_head.weight'");
    mq_comparison_release(&w);
}
END_TEST

START_TEST(an_exponent_bit_of_an_expert_weight_shows_in_its_error_alone)
{
    const char *dir = copy_of("tests/data/nano");
    const mq_key up = {MQ_STACK_MODEL, 2, MQ_ROLE_EXPERT_UP, 7};
    flip(dir, up, false, 2 * (130 * 128 / 2 + 3) + 1, 0x08); /* times or divided by 2^16 */
    mq_comparison a, b;
    mq_err err;
    mq_assert_ok(compare(&a, mq_test_path("tests/data/nano"), nano2, 2, &err), &err);
    mq_assert_ok(compare(&b, dir, nano2, 2, &err), &err);
    ck_assert_int_eq(b.n_different, 0);
    int64_t changed = (2 - 1) * 48 + 7 * 3 + 1;
    for (int64_t k = 0; k < a.n_matrices; k++)
        ck_assert_msg((a.matrices[k].err2 == b.matrices[k].err2) == (k != changed), "matrix %d",
                      (int)k);
    mq_comparison_release(&a);
    mq_comparison_release(&b);
}
END_TEST

START_TEST(mxfp4_is_exact_and_one_code_or_scale_less_is_not)
{
    mq_comparison w;
    mq_err err;
    const mq_key down = {MQ_STACK_MODEL, 4, MQ_ROLE_EXPERT_DOWN, 15};
    for (int changed = 0; changed < 3; changed++) { /* nothing, a code, a scale */
        const char *dir = copy_of("tests/data/nano-mxfp4");
        if (changed)
            flip(dir, down, changed == 2, 33, 1);
        mq_assert_ok(compare(&w, dir, mxfp4, 2, &err), &err);
        ck_assert_int_eq(w.n_different, 0);
        for (int64_t k = 0; k < w.n_matrices; k++) {
            bool touched = changed && k == (4 - 1) * 48 + 15 * 3 + 2;
            ck_assert_int_eq(w.matrices[k].scheme, MQ_SCHEME_MXFP4);
            ck_assert_msg(w.matrices[k].exact == !touched, "matrix %d", (int)k);
            ck_assert((mq_matrix_relative_error(&w.matrices[k]) > 0) == touched);
        }
        mq_comparison_release(&w);
    }
}
END_TEST

START_TEST(a_flipped_fp8_scale_is_a_difference)
{
    const char *dir = copy_of("tests/data/nano-mxfp4");
    flip(dir, (mq_key){MQ_STACK_MODEL, 0, MQ_ROLE_GATE, -1}, true, 0, 1);
    mq_comparison w;
    mq_err err;
    mq_assert_ok(compare(&w, dir, mxfp4, 2, &err), &err);
    ck_assert_int_ge(w.n_different, 1);
    ck_assert(strstr(w.first_difference, "tensor 'model.layers.0.mlp.gate_proj.weight'") != NULL);
    mq_comparison_release(&w);
}
END_TEST

START_TEST(another_model_is_refused_by_its_first_difference)
{
    mq_comparison w;
    mq_err err;
    mq_assert_fails(compare(&w, mq_test_path("tests/data/nano-fp8"), nano1, 1, &err), MQ_E_SHAPE,
                    &err, "the source is another model: fused_qkv 1, the packed model has 0");
    const char *dir = copy_of("tests/data/nano");
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s/dflash'", dir);
    ck_assert_int_eq(system(command), 0);
    mq_assert_fails(compare(&w, dir, nano1, 1, &err), MQ_E_SHAPE, &err,
                    "the packed model has a drafter, the source has none");
    ck_assert_ptr_null(w.matrices);
}
END_TEST

START_TEST(damage_of_the_packed_model_is_a_hash_failure_with_file_and_tensor)
{
    const char *dir = mq_test_dir();
    char command[1200], path[600];
    snprintf(command, sizeof command, "cp -r '%s/.' '%s'", nano1, dir);
    ck_assert_int_eq(system(command), 0);
    snprintf(path, sizeof path, "%s/layer-003-rank-00-of-01.mqs", dir);
    FILE *f = fopen(path, "r+b");
    ck_assert_ptr_nonnull(f);
    fseek(f, 4096 + 8, SEEK_SET); /* the first record */
    int c = fgetc(f);
    fseek(f, 4096 + 8, SEEK_SET);
    fputc(c ^ 1, f);
    fclose(f);
    mq_comparison w;
    mq_err err;
    mq_assert_fails(compare(&w, mq_test_path("tests/data/nano"), dir, 2, &err), MQ_E_HASH, &err,
                    "layer-003-rank-00-of-01.mqs: tensor 'model.layers.3.");
}
END_TEST

static bool always(void)
{
    return true;
}

START_TEST(a_stop_is_obeyed)
{
    mq_source *source;
    mq_packed *packed;
    mq_comparison w;
    mq_err err;
    mq_assert_ok(mq_source_open(&source, mq_test_path("tests/data/nano"), &err), &err);
    mq_assert_ok(mq_packed_open(&packed, nano1, &err), &err);
    mq_assert_fails(mq_compare_weights(&w, source, packed, 2, INT64_MAX, NULL, NULL, always, &err),
                    MQ_E_STOPPED, &err, "stopped");
    mq_packed_close(packed);
    mq_source_close(source);
}
END_TEST

START_TEST(a_budget_bounds_the_threads_or_is_refused_with_what_is_needed)
{
    mq_source *source;
    mq_packed *packed;
    mq_comparison w;
    mq_err err;
    mq_assert_ok(mq_source_open(&source, mq_test_path("tests/data/nano"), &err), &err);
    mq_assert_ok(mq_packed_open(&packed, nano1, &err), &err);
    /* The largest record: embedding or head, [4096, 128] BF16, and as much of the source, which is one block. */
    int64_t need = 2 * 4096 * 128 * 2;
    mq_assert_ok(mq_compare_weights(&w, source, packed, 8, need, NULL, NULL, NULL, &err), &err);
    ck_assert_int_eq(w.n_different, 0);
    mq_comparison_release(&w);
    mq_assert_fails(mq_compare_weights(&w, source, packed, 8, need - 1, NULL, NULL, NULL, &err),
                    MQ_E_NOMEM, &err,
                    "a budget of 2097151 bytes, but 2097152 are needed to compare tensor 'model.embed_tokens.weight'");
    ck_assert_ptr_null(w.matrices);
    mq_packed_close(packed);
    mq_source_close(source);
}
END_TEST

START_TEST(relative_errors_of_nothing)
{
    mq_matrix_error zero = {.err2 = 0, .norm2 = 0}, lost = {.err2 = 2, .norm2 = 0},
                    half = {.err2 = 1, .norm2 = 4}, nan = {.err2 = NAN, .norm2 = NAN};
    ck_assert_double_eq(mq_matrix_relative_error(&zero), 0.0);
    ck_assert_double_eq(mq_matrix_relative_error(&lost), 1.0);
    ck_assert_double_eq(mq_matrix_relative_error(&half), 0.5);
    ck_assert(isinf(mq_matrix_relative_error(&nan))); /* no threshold is met */
}
END_TEST

int main(void)
{
    Suite *s = suite_create("compare");
    TCase *t = tcase_create("compare");
    tcase_add_unchecked_fixture(t, setup, teardown);
    tcase_add_test(t, the_right_source_has_no_difference);
    tcase_add_test(t, errors_equal_those_of_the_conversion);
    tcase_add_test(t, threads_do_not_change_a_bit);
    tcase_add_loop_test(t, a_flipped_bit_of_a_carried_tensor_is_named, 0,
                        (int)(sizeof carried / sizeof *carried));
    tcase_add_test(t, every_slice_that_holds_the_bit_differs);
    tcase_add_test(t, an_exponent_bit_of_an_expert_weight_shows_in_its_error_alone);
    tcase_add_test(t, mxfp4_is_exact_and_one_code_or_scale_less_is_not);
    tcase_add_test(t, a_flipped_fp8_scale_is_a_difference);
    tcase_add_test(t, another_model_is_refused_by_its_first_difference);
    tcase_add_test(t, damage_of_the_packed_model_is_a_hash_failure_with_file_and_tensor);
    tcase_add_test(t, a_stop_is_obeyed);
    tcase_add_test(t, a_budget_bounds_the_threads_or_is_refused_with_what_is_needed);
    tcase_add_test(t, relative_errors_of_nothing);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
