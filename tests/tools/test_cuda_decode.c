/* The decode step of the CUDA table on packed models: against the CPU's, and against itself with other widths, without
 * its graph, and with speculation.
 *
 * On the emulator, or with MQ_TEST_DEVICE=cuda on GPU 0 (77 where there is none).  Both sides are fed the same tokens of
 * a text through steps of 8 rows, so every position compares two distributions over the vocabulary.  MQ_TEST_FULL=1:
 * 2048 positions, some minutes on the emulator. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/speculate.h"
#include "src/file.h"
#include "src/tokenizer.h"
#include "tests/emulator/emulator.h"
#include "tests/harness.h"
#include "tools/convert.h"

enum { VOCAB = 4096, MOST_TOKENS = 2048, ROWS = 8, CONTEXT = 2112 };

/* BF16 inputs alone, rounded on the CPU, cost these models a mean KL of 1.3e-4 to 3.7e-4 over 2048 positions, most of it at a
 * few positions where two experts nearly tie: fewer positions are judged by their median. */
static const double MEAN_KL = 6e-4, MEDIAN_KL = 2e-4;

static const mq_kernels *gpu;
static int n_devices;
static mq_err err;
static const mq_cli quiet_cli = {.tool = "test_cuda_decode", .usage = "", .summary = "", .quiet = true};

/* Positions fed: past the window of 64 in the first case, wherever time allows it. */
static int n_tokens(int i)
{
    return getenv("MQ_TEST_SMALL") ? 16 : getenv("MQ_TEST_FULL") ? MOST_TOKENS : i == 0 ? 72 : 24;
}

/* Pack a bundled model; the folder's path is heap. */
static char *pack(const char *model, int group, int n_ranks)
{
    char rel[64], name[64];
    mq_convert_result result;
    snprintf(rel, sizeof rel, "tests/data/%s", model);
    snprintf(name, sizeof name, "%s-%d-%d", model, group, n_ranks);
    char *out = mq_path_join(mq_test_dir(), name);
    mq_convert_options o = {.checkpoint = mq_test_path(rel),
                            .out_dir = out,
                            .method = MQ_ROUND_SEARCH,
                            .group = group,
                            .n_ranks = n_ranks,
                            .n_threads = 2};
    mq_assert_ok(mq_convert(&result, &o, &quiet_cli, &err), &err);
    return out;
}

static mq_engine *open_on(const mq_kernels *k, int devices, const char *dir, int n_ranks, mq_draft_kind draft,
                          bool plain)
{
    static const int ordinals[] = {0, 1};
    mq_engine *e;
    mq_engine_options o = {.n_ranks = n_ranks,
                           .n_threads = 2,
                           .context = CONTEXT,
                           .prefill_rows = 16,
                           .draft = draft,
                           .ordinals = ordinals,
                           .n_devices = devices,
                           .plain_step = plain};
    mq_assert_ok(mq_engine_open(&e, dir, k, &o, &err), &err);
    if (k == gpu)
        ck_assert_msg(!mq_engine_why_composed(e), "composed: %s", mq_engine_why_composed(e));
    if (k == gpu)
        ck_assert(mq_engine_has_draft_step(e) == (draft == MQ_DRAFT_DFLASH));
    return e;
}

static mq_engine *open_engine(const mq_kernels *k, const char *dir, int n_ranks, mq_draft_kind draft, bool plain)
{
    return open_on(k, 1, dir, n_ranks, draft, plain);
}

/* Tokens of the bundled text: on made-up ones experts tie more often, and which of two comes first is a matter of rounding. */
static void ids_of(int32_t *ids, int64_t n)
{
    mq_tokenizer *t;
    mq_buf text = mq_buf_empty();
    mq_tokens all = {0};
    mq_assert_ok(mq_tokenizer_open(&t, mq_test_path("tests/data/nano/tokenizer.json"), &err), &err);
    mq_assert_ok(mq_file_load(&text, mq_test_path("tests/data/text/eval.txt"), 64 << 20, &err), &err);
    mq_assert_ok(mq_tokenizer_encode(t, &all, text.data, text.n_bytes < 65536 ? text.n_bytes : 65536, true, &err), &err);
    ck_assert_int_ge(all.n, n);
    memcpy(ids, all.ids, (size_t)n * sizeof *ids);
    mq_tokens_release(&all);
    mq_buf_release(&text);
    mq_tokenizer_close(t);
}

/* logits [n, VOCAB] of ids fed in steps of width rows. */
static float *feed(mq_engine *e, const int32_t *ids, int n, int width)
{
    float *logits = malloc((size_t)n * VOCAB * sizeof *logits);
    ck_assert_ptr_nonnull(logits);
    for (int i = 0; i < n; i += width) {
        int rows = n - i < width ? n - i : width;
        mq_assert_ok(mq_engine_step(e, ids + i, rows, &err), &err);
        mq_assert_ok(mq_engine_logits(e, logits + (int64_t)i * VOCAB, &err), &err);
    }
    return logits;
}

static int argmax(const float *x)
{
    int best = 0;
    for (int i = 1; i < VOCAB; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static double divergence(const float *a, const float *b)
{
    double za = 0.0, zb = 0.0, kl = 0.0, ma = (double)a[argmax(a)], mb = (double)b[argmax(b)];
    for (int i = 0; i < VOCAB; i++) {
        za += exp((double)a[i] - ma);
        zb += exp((double)b[i] - mb);
    }
    za = ma + log(za);
    zb = mb + log(zb);
    for (int i = 0; i < VOCAB; i++)
        kl += exp((double)a[i] - za) * ((double)a[i] - za - ((double)b[i] - zb));
    return kl;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void check_against_cpu(const char *model, int group, int n_ranks, int n)
{
    static int32_t ids[MOST_TOKENS];
    static double kl[MOST_TOKENS];
    int n_equal = 0;
    double mean = 0.0;
    ids_of(ids, n);
    char *dir = pack(model, group, n_ranks);
    mq_engine *e = open_engine(mq_kernels_find("cpu"), dir, n_ranks, MQ_DRAFT_NONE, false);
    float *want = feed(e, ids, n, ROWS);
    mq_engine_close(e);
    e = open_engine(gpu, dir, n_ranks, MQ_DRAFT_NONE, false);
    float *got = feed(e, ids, n, ROWS);
    mq_engine_close(e);
    for (int i = 0; i < n; i++) {
        const float *a = want + (int64_t)i * VOCAB, *b = got + (int64_t)i * VOCAB;
        kl[i] = divergence(a, b);
        mean += kl[i] / n;
        n_equal += argmax(a) == argmax(b);
    }
    qsort(kl, (size_t)n, sizeof *kl, by_value);
    printf("%s, group %d, %d ranks: %d positions, KL mean %.2e, median %.2e, top-1 %d\n", model, group, n_ranks, n, mean,
           kl[n / 2], n_equal);
    ck_assert_double_le(kl[n / 2], MEDIAN_KL);
    ck_assert_int_ge(n_equal, n == MOST_TOKENS ? n * 99 / 100 : n - 1 - n / 20);
    if (n == MOST_TOKENS)
        ck_assert_double_le(mean, MEAN_KL);
    free(want);
    free(got);
    free(dir);
}

static const struct model_case {
    const char *model;
    int group, n_ranks;
} cases[] = {{"nano", 64, 1}, {"nano", 32, 2}, {"nano", 128, 1}, {"nano-mxfp4", 64, 1}, {"nano-fp8", 64, 2}};
enum { N_CASES = sizeof cases / sizeof cases[0] };

START_TEST(distributions_are_the_cpus)
{
    const struct model_case *c = &cases[_i];
    check_against_cpu(c->model, c->group, c->n_ranks, n_tokens(_i));
}
END_TEST

START_TEST(a_rows_bits_do_not_depend_on_the_width_or_the_graph)
{
    enum { N = 16 };
    int32_t ids[N];
    ids_of(ids, N);
    char *dir = pack("nano", 64, 2);
    float *first = NULL;
    static const int widths[] = {1, 3, 8, 8};
    for (int i = 0; i < 4; i++) {
        mq_engine *e = open_engine(gpu, dir, 2, MQ_DRAFT_NONE, i == 3);
        float *logits = feed(e, ids, N, widths[i]);
        if (first)
            ck_assert_msg(!memcmp(first, logits, (size_t)N * VOCAB * sizeof *logits), "width %d%s", widths[i],
                          i == 3 ? ", no graph" : "");
        mq_engine_close(e);
        if (first)
            free(logits);
        else
            first = logits;
    }
    free(first);
    free(dir);
}
END_TEST

/* tokens [n] after a prompt, speculating width tokens a step. */
static void write_text(mq_engine *e, int32_t *tokens, int n, int width, const mq_sampling *sampling)
{
    enum { PROMPT = 21 };
    int32_t ids[PROMPT];
    mq_speculate *s;
    mq_speculate_options o = {.width = width};
    ids_of(ids, PROMPT);
    mq_assert_ok(mq_speculate_create(&s, e, &o, &err), &err);
    mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
    mq_assert_ok(mq_engine_sample(e, &tokens[0], 0, sampling, &err), &err);
    for (int i = 1, got; i < n; i += got) {
        int32_t step[ROWS];
        mq_speculate_end end = {.limit = n - i};
        mq_assert_ok(mq_speculate_step(s, step, &got, tokens[i - 1], sampling, &end, &err), &err);
        memcpy(tokens + i, step, (size_t)got * sizeof *step);
    }
    mq_speculate_free(s);
}

START_TEST(text_is_the_same_with_and_without_speculation)
{
    enum { N = 9 };
    static const mq_draft_kind kinds[] = {MQ_DRAFT_DFLASH, MQ_DRAFT_MTP};
    const mq_sampling how[] = {{0.0f, 0, 1.0f, 0}, {0.9f, 0, 0.95f, 5}};
    int n = getenv("MQ_TEST_SMALL") ? 6 : N;
    char *dir = pack("nano", 64, 1);
    for (int d = 0; d < 2; d++)
        for (int s = 0; s < 2; s++) {
            int32_t plain[N], speculative[N];
            mq_engine *e = open_engine(gpu, dir, 1, kinds[d], false);
            write_text(e, plain, n, 1, &how[s]);
            mq_engine_reset(e);
            write_text(e, speculative, n, 4, &how[s]);
            ck_assert(!memcmp(plain, speculative, (size_t)n * sizeof *plain));
            mq_engine_close(e);
        }
    free(dir);
}
END_TEST

/* Ranks on devices of their own, which exchange their contributions while the step runs. */
START_TEST(two_devices_do_not_change_a_bit)
{
    enum { N = 12, TEXT = 6 };
    const mq_sampling greedy = {0.0f, 0, 1.0f, 0};
    int32_t ids[N], text[2][TEXT];
    float *logits[2];
    if (n_devices < 2) {
        printf("SKIPPED: one device\n");
        return;
    }
    ids_of(ids, N);
    char *dir = pack("nano", 64, 2);
    for (int i = 0; i < 2; i++) {
        mq_engine *e = open_on(gpu, i + 1, dir, 2, MQ_DRAFT_MTP, false);
        logits[i] = feed(e, ids, N, i ? 3 : 8);
        mq_engine_reset(e);
        write_text(e, text[i], TEXT, 3, &greedy);
        mq_engine_close(e);
    }
    ck_assert(!memcmp(logits[0], logits[1], (size_t)N * VOCAB * sizeof(float)));
    ck_assert(!memcmp(text[0], text[1], sizeof text[0]));
    free(logits[0]);
    free(logits[1]);
    free(dir);
}
END_TEST

/* A drafter on two devices, its ranks with those of the model, guesses what one on one device guesses. */
START_TEST(a_drafter_on_two_devices_does_not_change_a_bit)
{
    enum { N = 13, MORE = 5, GUESSES = 7 };
    int32_t ids[N + MORE], tokens[2][2][GUESSES];
    float confidence[2][2][GUESSES];
    if (n_devices < 2) {
        printf("SKIPPED: one device\n");
        return;
    }
    ids_of(ids, N + MORE);
    char *dir = pack("nano", 64, 2);
    for (int i = 0; i < 2; i++) {
        mq_engine *e = open_on(gpu, i + 1, dir, 2, MQ_DRAFT_DFLASH, false);
        for (int at = 0; at < N; at += 8) /* steps: prefill's bits are others on two devices */
            mq_assert_ok(mq_engine_step(e, ids + at, N - at < 8 ? N - at : 8, &err), &err);
        mq_assert_ok(mq_engine_propose(e, tokens[i][0], confidence[i][0], 17, GUESSES, &err), &err);
        mq_assert_ok(mq_engine_step(e, ids + N, MORE, &err), &err);
        mq_engine_rollback(e, N + 3);
        mq_assert_ok(mq_engine_propose(e, tokens[i][1], confidence[i][1], 18, GUESSES, &err), &err);
        mq_engine_close(e);
    }
    ck_assert_mem_eq(tokens[0], tokens[1], sizeof tokens[0]);
    ck_assert_mem_eq(confidence[0], confidence[1], sizeof confidence[0]);
    free(dir);
}
END_TEST

START_TEST(a_checkpoint_in_its_own_precision_is_composed)
{
    mq_engine *e;
    mq_engine_options o = {.n_threads = 2, .context = 32, .prefill_rows = 16};
    int32_t ids[] = {5, 6, 7};
    mq_assert_ok(mq_engine_open(&e, mq_test_path("tests/data/nano"), gpu, &o, &err), &err);
    ck_assert_ptr_nonnull(mq_engine_why_composed(e));
    ck_assert_str_eq(mq_engine_why_composed(e), "layer 1: experts in bf16, expected int4 or mxfp4");
    mq_assert_ok(mq_engine_step(e, ids, 3, &err), &err);
    mq_engine_close(e);
}
END_TEST

int main(void)
{
    const char *device = getenv("MQ_TEST_DEVICE");
    bool is_real = device && !strcmp(device, "cuda");
    gpu = is_real ? mq_kernels_find("cuda") : &mq_cuda_emulated_kernels;
    if (!gpu || (is_real && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    n_devices = is_real ? mq_cuda_count() : 2;
    mq_emulator_set_devices(2);
    mq_emulator_guard_memory(true);
    Suite *s = suite_create("cuda_decode");
    TCase *t = tcase_create("all");
    tcase_add_loop_test(t, distributions_are_the_cpus, 0, getenv("MQ_TEST_SMALL") ? 2 : N_CASES);
    tcase_add_test(t, a_rows_bits_do_not_depend_on_the_width_or_the_graph);
    tcase_add_test(t, text_is_the_same_with_and_without_speculation);
    tcase_add_test(t, two_devices_do_not_change_a_bit);
    tcase_add_test(t, a_drafter_on_two_devices_does_not_change_a_bit);
    tcase_add_test(t, a_checkpoint_in_its_own_precision_is_composed);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
