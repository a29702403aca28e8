/* A model on several devices: the bits of logits, of captures' guesses and of text are those of the same ranks on one.
 *
 * On the CPU every "device" is a table of operations of its own, with threads of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/speculate.h"
#include "src/file.h"
#include "tests/harness.h"
#include "tools/convert.h"
#include "tools/run_bench.h"

enum { VOCAB = 4096, PROMPT = 40, STEPS = 20, WIDTH = 5 };

static const mq_cli quiet_cli = {.tool = "test_lanes", .usage = "", .summary = "", .quiet = true};
static mq_err err;

/* nano for two ranks; the path is heap. */
static char *pack(void)
{
    mq_convert_result result;
    char *out = mq_path_join(mq_test_dir(), "packed");
    mq_convert_options o = {.checkpoint = mq_test_path("tests/data/nano"),
                            .out_dir = out,
                            .method = MQ_ROUND_RTN,
                            .group = 64,
                            .n_ranks = 2,
                            .n_threads = 2};
    mq_assert_ok(mq_convert(&result, &o, &quiet_cli, &err), &err);
    return out;
}

static mq_engine *open_engine(const char *dir, int n_ranks, int n_devices, mq_draft_kind draft)
{
    static const int ordinals[4] = {0, 0, 0, 0};
    mq_engine *e;
    mq_engine_options o = {.n_ranks = n_ranks,
                           .n_threads = 1,
                           .context = 128,
                           .prefill_rows = 16,
                           .draft = draft,
                           .ordinals = ordinals,
                           .n_devices = n_devices};
    mq_assert_ok(mq_engine_open(&e, dir, mq_kernels_find("cpu"), &o, &err), &err);
    return e;
}

static void ids_of(int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(17 + i * i * 31 % 900);
}

typedef struct result {
    float prompt[VOCAB], step[WIDTH * VOCAB];
    int32_t text[STEPS], experts[64];
    mq_err too_long;
} result;

static void run(result *r, const char *dir, int n_devices, mq_draft_kind draft)
{
    int32_t ids[PROMPT + WIDTH];
    const mq_sampling sampling = {0.8f, 0, 0.9f, 3};
    mq_speculate *s;
    mq_speculate_options so = {.width = draft == MQ_DRAFT_NONE ? 1 : 4};
    ids_of(ids, PROMPT + WIDTH);
    mq_engine *e = open_engine(dir, 2, n_devices, draft);
    mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
    mq_assert_ok(mq_engine_logits(e, r->prompt, &err), &err);
    mq_assert_ok(mq_engine_step(e, ids + PROMPT, WIDTH, &err), &err);
    mq_assert_ok(mq_engine_logits(e, r->step, &err), &err);
    mq_assert_ok(mq_engine_distinct_experts(e, r->experts, &err), &err);
    mq_engine_rollback(e, PROMPT + 1);
    mq_assert_ok(mq_speculate_create(&s, e, &so, &err), &err);
    r->text[0] = ids[PROMPT];
    for (int i = 1, got; i < STEPS; i += got) {
        int32_t step[8];
        mq_speculate_end end = {.limit = STEPS - i};
        mq_assert_ok(mq_speculate_step(s, step, &got, r->text[i - 1], &sampling, &end, &err), &err);
        memcpy(r->text + i, step, (size_t)got * sizeof *step);
    }
    mq_assert_fails(mq_engine_prefill(e, ids, 120, &r->too_long), MQ_E_ARG, &r->too_long, "the context");
    mq_speculate_free(s);
    mq_engine_close(e);
}

START_TEST(devices_do_not_change_a_bit)
{
    static const mq_draft_kind kinds[] = {MQ_DRAFT_NONE, MQ_DRAFT_DFLASH, MQ_DRAFT_MTP};
    static result one, two;
    char *dir = pack();
    for (int k = 0; k < 3; k++) {
        memset(&one, 0, sizeof one);
        memset(&two, 0, sizeof two);
        run(&one, dir, 1, kinds[k]);
        run(&two, dir, 2, kinds[k]);
        ck_assert(!memcmp(one.prompt, two.prompt, sizeof one.prompt));
        ck_assert(!memcmp(one.step, two.step, sizeof one.step));
        ck_assert(!memcmp(one.text, two.text, sizeof one.text));
        ck_assert(!memcmp(one.experts, two.experts, sizeof one.experts));
    }
    free(dir);
}
END_TEST

/* Each device reads its own ranks and what all ranks share: routers, norms, rows of the embedding. */
START_TEST(figures_are_those_of_all_devices)
{
    char *dir = pack();
    static mq_bench bench[2];
    const mq_bench_options o = {.prompts = {8}, .n_prompts = 1, .widths = {2}, .n_widths = 1, .steps = 1, .repeats = 1, .context = 8};
    mq_load_figures loaded[2];
    for (int i = 0; i < 2; i++) {
        mq_engine *e = open_engine(dir, 2, i + 1, MQ_DRAFT_NONE);
        loaded[i] = mq_engine_loaded(e);
        mq_assert_ok(mq_bench_run(&bench[i], e, &o, &quiet_cli, &err), &err);
        mq_engine_close(e);
    }
    ck_assert_int_ge(loaded[1].n_records, loaded[0].n_records);
    ck_assert_int_ge(loaded[1].n_checked, loaded[0].n_checked);
    ck_assert_int_ge(loaded[1].plain_bytes, loaded[0].plain_bytes);
    ck_assert_int_eq(bench[1].widths[0].kv_bytes, bench[0].widths[0].kv_bytes);
    ck_assert_int_ge(bench[1].widths[0].weight_bytes, bench[0].widths[0].weight_bytes);
    ck_assert_int_le(bench[1].widths[0].weight_bytes, bench[0].widths[0].weight_bytes * 5 / 4);
    free(dir);
}
END_TEST

START_TEST(devices_divide_the_ranks)
{
    static const int ordinals[3] = {0, 0, 0};
    mq_engine *e;
    mq_engine_options o = {.n_ranks = 2, .n_threads = 1, .context = 64, .ordinals = ordinals, .n_devices = 3};
    char *dir = pack();
    mq_assert_fails(mq_engine_open(&e, dir, mq_kernels_find("cpu"), &o, &err), MQ_E_ARG, &err,
                    "2 ranks on 3 devices, expected at most 16 and a divisor of the ranks");
    ck_assert_ptr_null(e);
    o.n_devices = 2;
    o.ordinals = (const int[]){0, 7};
    mq_assert_fails(mq_engine_open(&e, dir, mq_kernels_find("cpu"), &o, &err), MQ_E_DEVICE, &err, "cpu 7");
    free(dir);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("lanes");
    TCase *t = tcase_create("all");
    tcase_add_test(t, devices_do_not_change_a_bit);
    tcase_add_test(t, figures_are_those_of_all_devices);
    tcase_add_test(t, devices_divide_the_ranks);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
