/* The conversion held against its source: every record of every packed model here is compared with the checkpoint, whatever
 * the storage, group, method, ranks and compression; and every status that convert.h promises. */
#include "tools/convert.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/manifest.h"
#include "src/file.h"
#include "tests/harness.h"
#include "tests/maker/maker.h"
#include "tools/compare.h"
#include "tools/journal.h"

static const mq_cli quiet_cli = {.tool = "test_convert", .usage = "", .summary = "", .quiet = true};

static mq_convert_options options(const char *checkpoint, const char *out_dir)
{
    return (mq_convert_options){.checkpoint = checkpoint, .out_dir = out_dir, .method = MQ_ROUND_RTN, .group = 64,
                                .n_threads = 2};
}

static char *in_dir(const char *dir, const char *name)
{
    char *path = mq_path_join(dir, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

/* Convert, check the folder, compare with the source; the result's mean relative error of down_proj comes back. */
static double convert_and_compare(const mq_convert_options *opt)
{
    mq_err err;
    mq_convert_result r;
    mq_assert_ok(mq_convert(&r, opt, &quiet_cli, &err), &err);
    mq_packed *packed;
    mq_assert_ok(mq_packed_open(&packed, opt->out_dir, &err), &err);
    mq_assert_ok(mq_packed_verify(packed, 2, 256 << 20, NULL, NULL, NULL, &err), &err);
    mq_source *source;
    mq_assert_ok(mq_source_open(&source, opt->checkpoint, &err), &err);
    mq_comparison c;
    mq_assert_ok(mq_compare_weights(&c, source, packed, 2, INT64_MAX, NULL, NULL, NULL, &err), &err);
    ck_assert_msg(c.n_different == 0, "%s", c.first_difference);
    ck_assert_int_gt(c.n_untouched, 0);
    double sums[MQ_PROJ_COUNT][2] = {{0}};
    for (int64_t i = 0; i < c.n_matrices; i++) {
        const mq_matrix_error *e = &c.matrices[i];
        if (e->scheme == MQ_SCHEME_MXFP4) {
            ck_assert(e->exact);
            continue;
        }
        int p = e->key.role == MQ_ROLE_EXPERT_GATE ? MQ_PROJ_GATE
                                                   : e->key.role == MQ_ROLE_EXPERT_UP ? MQ_PROJ_UP : MQ_PROJ_DOWN;
        sums[p][0] += e->err2;
        sums[p][1] += e->norm2;
    }
    /* What the report says is what the packed bytes hold; the sums are taken in another order. */
    for (int p = 0; p < MQ_PROJ_COUNT; p++) {
        double rel = sums[p][1] > 0 ? sqrt(sums[p][0] / sums[p][1]) : 0.0;
        ck_assert_double_eq_tol(rel, r.rel_error[p], 1e-6);
        ck_assert_double_lt(rel, 0.2);
    }
    mq_comparison_release(&c);
    mq_source_close(source);
    mq_packed_close(packed);
    return r.rel_error[MQ_PROJ_DOWN];
}

START_TEST(bundled_models_come_out_whole_in_every_form)
{
    static const char *const models[] = {"tests/data/nano", "tests/data/nano-fp8", "tests/data/nano-mxfp4"};
    static const struct {
        int group, n_ranks, zstd_level;
        bool force_int4;
    } forms[] = {{32, 1, 0, false}, {32, 2, 3, false}, {64, 2, 0, false}, {64, 1, 1, true}, {128, 1, 0, true}};
    const char *dir = mq_test_dir();
    for (int m = 0; m < 3; m++)
        for (int f = 0; f < 5; f++) {
            double error[2];
            for (int method = 0; method < 2; method++) {
                char name[32];
                snprintf(name, sizeof name, "m%d-f%d-%d", m, f, method);
                char *out = in_dir(dir, name);
                mq_convert_options opt = options(mq_test_path(models[m]), out);
                opt.method = method ? MQ_ROUND_SEARCH : MQ_ROUND_RTN;
                opt.group = forms[f].group;
                opt.n_ranks = forms[f].n_ranks;
                opt.zstd_level = forms[f].zstd_level;
                opt.force_int4 = forms[f].force_int4;
                error[method] = convert_and_compare(&opt);
                free(out);
            }
            if (m < 2 || forms[f].force_int4)
                ck_assert_double_lt(error[1], error[0]);
        }
}
END_TEST

/* Pro's proportions: KV heads fewer than ranks, fused FP8 chunks, slices that start inside a 128 block, drafter, MTP. */
START_TEST(eight_ranks_of_a_generated_model_come_out_whole)
{
    static const mq_scheme experts[] = {MQ_SCHEME_BF16, MQ_SCHEME_FP8_BLOCK, MQ_SCHEME_MXFP4_ROWS, MQ_SCHEME_F32};
    const char *dir = mq_test_dir();
    for (int i = 0; i < 4; i++) {
        mq_maker m;
        mq_err err;
        ck_assert(mq_maker_preset(&m, "pro-small"));
        m.layers = 3;
        m.experts = 4;
        m.top_k = 2;
        m.files = 2;
        m.expert_scheme = experts[i];
        m.split_pairs = i == 1;
        if (i == 3) { /* BF16 and F32, split, and KV heads repeated */
            m.fused = false;
            m.scheme = MQ_SCHEME_BF16;
            m.kv_heads = m.swa_kv_heads = 2;
        }
        char name[32];
        snprintf(name, sizeof name, "source%d", i);
        char *checkpoint = in_dir(dir, name);
        mq_assert_ok(mq_maker_write(&m, checkpoint, NULL, &err), &err);
        for (int n = 1; n <= 8; n *= 8) {
            snprintf(name, sizeof name, "packed%d-%d", i, n);
            char *out = in_dir(dir, name);
            mq_convert_options opt = options(checkpoint, out);
            opt.n_ranks = n;
            opt.n_threads = 3;
            convert_and_compare(&opt);
            free(out);
        }
        free(checkpoint);
    }
}
END_TEST

START_TEST(what_does_not_divide_is_refused_with_advice)
{
    mq_err err;
    mq_convert_result r;
    char *out = in_dir(mq_test_dir(), "out");
    mq_convert_options opt = options(mq_test_path("tests/data/nano"), out);
    opt.group = 128;
    opt.n_ranks = 2;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_ARG, &err, "the largest that works is 1");
    opt.n_ranks = 3;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_ARG, &err, "3 ranks");
    opt.n_ranks = 0;
    opt.memory_bytes = 1 << 20;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_NOMEM, &err, "this model needs");
    opt.memory_bytes = 0;
    opt.resume = opt.overwrite = true;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_ARG, &err, "exclude each other");
    ck_assert(!mq_path_exists(out));
    free(out);
}
END_TEST

START_TEST(a_folder_of_others_is_left_alone)
{
    mq_err err;
    mq_convert_result r;
    char *out = in_dir(mq_test_dir(), "out");
    mq_assert_ok(mq_dir_create(out, &err), &err);
    mq_assert_ok(mq_file_save(out, "README.md", "mine", 4, &err), &err);
    mq_convert_options opt = options(mq_test_path("tests/data/nano"), out);
    for (int i = 0; i < 3; i++) {
        opt.resume = i == 1;
        opt.overwrite = i == 2;
        mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_EXISTS, &err, "no packed model");
    }
    mq_buf text = mq_buf_empty();
    char *mine = in_dir(out, "README.md");
    mq_assert_ok(mq_file_load(&text, mine, 100, &err), &err);
    ck_assert_str_eq(text.data, "mine");
    unlink(mine);
    free(mine);
    mq_buf_release(&text);

    mq_assert_ok(mq_convert(&r, &(mq_convert_options){.checkpoint = opt.checkpoint, .out_dir = out, .group = 64, .n_threads = 1},
                            &quiet_cli, &err), &err);
    mq_assert_ok(mq_file_save(out, "notes.txt", "mine", 4, &err), &err);
    opt.overwrite = true;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_EXISTS, &err, "'notes.txt' is not a file of a packed");
    free(out);
}
END_TEST

START_TEST(a_finished_model_is_recognized_and_kept)
{
    mq_err err;
    mq_convert_result r;
    char *out = in_dir(mq_test_dir(), "out");
    mq_convert_options opt = options(mq_test_path("tests/data/nano"), out);
    mq_assert_ok(mq_convert(&r, &opt, &quiet_cli, &err), &err);
    ck_assert(!r.already_complete);
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_EXISTS, &err, "--overwrite");
    opt.resume = true;
    mq_assert_ok(mq_convert(&r, &opt, &quiet_cli, &err), &err);
    ck_assert(r.already_complete);
    opt.method = MQ_ROUND_SEARCH;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_EXISTS, &err, "method was rtn, now search");
    opt.method = MQ_ROUND_RTN;
    opt.group = 32;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_EXISTS, &err, "group was 64, now 32");
    opt.group = 64;
    opt.n_ranks = 1;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_EXISTS, &err, "ranks was 2, now 1");
    opt.resume = false;
    opt.overwrite = true;
    mq_assert_ok(mq_convert(&r, &opt, &quiet_cli, &err), &err);
    ck_assert_int_eq(r.n_ranks, 1);
    free(out);
}
END_TEST

/* Copy nano's single weight file with two bytes of one expert replaced by a BF16 NaN. */
START_TEST(a_weight_that_is_not_finite_is_named)
{
    mq_err err;
    mq_maker m;
    ck_assert(mq_maker_preset(&m, "nano"));
    m.files = 1;
    char *checkpoint = in_dir(mq_test_dir(), "source"), *out = in_dir(mq_test_dir(), "out");
    mq_assert_ok(mq_maker_write(&m, checkpoint, NULL, &err), &err);
    mq_source *s;
    mq_assert_ok(mq_source_open(&s, checkpoint, &err), &err);
    mq_source_tensor t;
    mq_assert_ok(mq_source_find(&t, s, (mq_key){MQ_STACK_MODEL, 2, MQ_ROLE_EXPERT_UP, 3}, &err), &err);
    int64_t off = t.data.tensor->off + (5 * t.cols + 7) * 2;
    int fd = open(mq_safetensors_file(t.data.file)->path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, "\xc0\x7f", 2, off), 2);
    close(fd);
    mq_source_close(s);
    mq_convert_options opt = options(checkpoint, out);
    mq_convert_result r;
    mq_assert_fails(mq_convert(&r, &opt, &quiet_cli, &err), MQ_E_NUMERIC, &err,
                    "tensor 'model.layers.2.mlp.experts.3.up_proj.weight': row 5, column 7 is NaN");
    free(checkpoint);
    free(out);
}
END_TEST

static mq_input input_of(const char *name, int fill)
{
    mq_input f = {.name = (char *)(uintptr_t)name};
    memset(f.sha256, fill, sizeof f.sha256);
    return f;
}

START_TEST(a_journal_survives_a_cut_at_every_byte)
{
    mq_err err;
    const char *dir = mq_test_dir();
    mq_buf head = mq_buf_empty();
    mq_buf_str(&head, "{\"journal\":\"mimo-quantize\",\"version\":1,\"recipe\":{},\"source\":[]}");
    mq_journal *j;
    mq_assert_ok(mq_journal_create(&j, dir, &head, &err), &err);
    double stats[2] = {0.1, 1e-300};
    mq_journal_group g = {.group = 3, .n_files = 1, .stats = stats, .n_stats = 2};
    snprintf(g.files[0].name, sizeof g.files[0].name, "common.mqs");
    g.files[0].bytes = 5;
    mq_assert_ok(mq_journal_write_group(j, &g, &err), &err);
    mq_input f = input_of("config.json", 7);
    mq_assert_ok(mq_journal_write_hashed(j, &f, &err), &err);
    mq_journal_close(j);
    char *path = in_dir(dir, MQ_JOURNAL_NAME);
    mq_buf text = mq_buf_empty();
    mq_assert_ok(mq_file_load(&text, path, 1 << 20, &err), &err);
    int64_t line1 = head.n_bytes + 1, line2 = line1;
    while (text.data[line2++] != '\n')
        continue;
    for (int64_t n = text.n_bytes; n >= 0; n--) {
        ck_assert_int_eq(truncate(path, n), 0);
        mq_journal_record r;
        mq_assert_ok(mq_journal_read(&r, dir, &err), &err);
        ck_assert_int_eq(r.head != NULL, n >= line1);
        ck_assert_int_eq(r.n_groups, n >= line2);
        ck_assert_int_eq(r.n_hashed, n == text.n_bytes);
        ck_assert_int_eq(r.good_bytes, n == text.n_bytes ? n : n >= line2 ? line2 : n >= line1 ? line1 : 0);
        if (r.n_groups) {
            ck_assert_int_eq(r.groups[0].group, 3);
            ck_assert_str_eq(r.groups[0].files[0].name, "common.mqs");
            ck_assert_mem_eq(r.groups[0].stats, stats, sizeof stats);
        }
        mq_journal_record_release(&r);
    }
    free(path);
    mq_buf_release(&text);
    mq_buf_release(&head);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("convert");
    TCase *c = tcase_create("convert");
    tcase_add_test(c, bundled_models_come_out_whole_in_every_form);
    tcase_add_test(c, eight_ranks_of_a_generated_model_come_out_whole);
    tcase_add_test(c, what_does_not_divide_is_refused_with_advice);
    tcase_add_test(c, a_folder_of_others_is_left_alone);
    tcase_add_test(c, a_finished_model_is_recognized_and_kept);
    tcase_add_test(c, a_weight_that_is_not_finite_is_named);
    tcase_add_test(c, a_journal_survives_a_cut_at_every_byte);
    suite_add_tcase(s, c);
    return mq_test_run(s);
}
