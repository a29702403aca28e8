/* Perplexity over windows of eval.txt against the values of the transformers port; two models side
 * by side; batches and budgets. */
#include <math.h>

#include "runtime/perplexity.h"
#include "src/tokenizer.h"
#include "tests/runtime/reference.h"

enum { WINDOW = 512, WINDOWS = 128, N_IDS = WINDOW * WINDOWS + 1 };

/* The first N_IDS tokens of eval.txt; documents are separated by <|endoftext|>. */
static int32_t *eval_ids(const char *dir)
{
    char path[4096];
    mq_err err;
    mq_tokenizer *tok;
    mq_tokens tokens = {NULL, 0, 0};
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (access(path, R_OK) != 0)
        snprintf(path, sizeof path, "%s", mq_test_path("tests/data/nano/tokenizer.json"));
    mq_assert_ok(mq_tokenizer_open(&tok, path, &err), &err);
    const char *text_path = mq_test_path("tests/data/text/eval.txt");
    FILE *f = fopen(text_path, "rb");
    ck_assert_msg(f != NULL, "%s", text_path);
    enum { MOST = 1 << 21 };
    char *text = malloc(MOST);
    size_t n = fread(text, 1, MOST, f);
    fclose(f);
    mq_assert_ok(mq_tokenizer_encode(tok, &tokens, text, (int64_t)n, true, &err), &err);
    ck_assert_int_ge(tokens.n, N_IDS);
    free(text);
    mq_tokenizer_close(tok);
    return tokens.ids;
}

static int64_t last_done, last_total;

static void remember(void *ctx, int64_t done, int64_t total)
{
    (void)ctx;
    ck_assert_int_ge(done, last_done);
    last_done = done;
    last_total = total;
}

static void run(mq_quality *q, mq_dev *dev, const char *a, const char *b, const int32_t *ids,
                mq_quality_options o)
{
    mq_err err;
    mq_store *sa = ref_store(a, 1, false), *sb = b ? ref_store(b, 1, false) : NULL;
    last_done = 0;
    o.progress = remember;
    mq_assert_ok(mq_quality_run(q, ref_kernels(), dev, sa, sb, ids, N_IDS, &o, &err), &err);
    ck_assert_int_eq(last_done, last_total);
    mq_store_close(sa);
    mq_store_close(sb);
}

static void check_windows(const char *name, double ppl)
{
    const char *dir = ref_model(name);
    if (!dir)
        return;
    int32_t *ids = eval_ids(dir);
    float *ref = ref_load(dir, "window_nll_512", WINDOWS);
    mq_dev *dev = ref_dev(2);
    mq_quality q;
    double start = ref_seconds(), most = 0.0;
    run(&q, dev, dir, NULL, ids, (mq_quality_options){.window = WINDOW, .n_windows = WINDOWS});
    for (int i = 0; i < WINDOWS; i++) {
        double d = fabs(q.windows[i].nll_a - (double)ref[i]);
        bool tie = q.windows[i].margin_a < 1e-6f;
        if (tie)
            printf("%s window %d: two experts within %.1g, nll differs by %.1g\n", name, i,
                   (double)q.windows[i].margin_a, d);
        else
            most = fmax(most, d);
        ck_assert_msg(d < (tie ? 2e-3 : 1e-4), "%s window %d: nll %.6f, expected %.6f", name, i,
                      q.windows[i].nll_a, (double)ref[i]);
    }
    printf("%s: perplexity %.4f, largest difference of a window %.1g, %.1f s\n", name, q.ppl_a,
           most, ref_seconds() - start);
    ck_assert_double_eq_tol(q.ppl_a, ppl, 0.001);
    mq_quality_release(&q);
    ref_kernels()->dev_close(dev);
    free(ref);
    free(ids);
}

START_TEST(nano_windows_equal_the_port)
{
    check_windows("nano", 8.9378);
}
END_TEST

START_TEST(mini_windows_equal_the_port)
{
    check_windows("mini", 7.3952);
}
END_TEST

START_TEST(a_model_beside_itself_agrees)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = eval_ids(dir);
    mq_dev *dev = ref_dev(2);
    mq_quality q;
    run(&q, dev, dir, dir, ids, (mq_quality_options){.window = 200, .n_windows = 3});
    ck_assert_int_eq(q.n_tokens, 600);
    ck_assert(q.ppl_a == q.ppl_b);
    ck_assert_double_eq_tol(q.kl_max, 0.0, 1e-9);
    ck_assert(q.top1_agreement == 1.0);
    mq_quality_release(&q);
    ref_kernels()->dev_close(dev);
    free(ids);
}
END_TEST

/* FP8 weights stay close to BF16, and the quantiles ascend. */
START_TEST(two_models_side_by_side)
{
    const char *a = ref_model("nano"), *b = ref_model("nano-fp8");
    if (!a || !b)
        return;
    int32_t *ids = eval_ids(a);
    mq_dev *dev = ref_dev(2);
    mq_quality q, alone;
    run(&q, dev, a, b, ids, (mq_quality_options){.window = WINDOW, .n_windows = 4});
    run(&alone, dev, b, NULL, ids, (mq_quality_options){.window = WINDOW, .n_windows = 4});
    ck_assert_double_eq_tol(q.ppl_b, alone.ppl_a, 1e-9);
    ck_assert_double_gt(q.kl_mean, 0.0);
    ck_assert_double_lt(q.kl_mean, 0.05);
    ck_assert_double_lt(q.kl_median, q.kl_p90);
    ck_assert_double_lt(q.kl_p90, q.kl_p99);
    ck_assert_double_le(q.kl_p99, q.kl_p999);
    ck_assert_double_le(q.kl_p999, q.kl_max);
    ck_assert_double_gt(q.top1_agreement, 0.9);
    mq_quality_release(&q);
    mq_quality_release(&alone);
    ref_kernels()->dev_close(dev);
    free(ids);
}
END_TEST

/* A small budget makes batches of few windows; a smaller one is refused and says what is needed. */
START_TEST(a_budget_changes_no_result)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = eval_ids(dir);
    mq_dev *dev = ref_dev(2);
    mq_err err;
    mq_quality large, small;
    mq_quality_options o = {.window = 100, .n_windows = 20};
    run(&large, dev, dir, NULL, ids, o);
    mq_store *s = ref_store(dir, 1, false);
    o.memory_bytes = mq_store_bytes(s) + (3 << 20);
    run(&small, dev, dir, NULL, ids, o);
    for (int i = 0; i < 20; i++)
        ck_assert_double_eq_tol(large.windows[i].nll_a, small.windows[i].nll_a, 1e-5);
    mq_quality_release(&large);
    mq_quality_release(&small);
    o.memory_bytes = 100000;
    mq_assert_fails(mq_quality_run(&small, ref_kernels(), dev, s, NULL, ids, N_IDS, &o, &err),
                    MQ_E_NOMEM, &err, "a budget of 100000 bytes, but");
    ck_assert_ptr_null(small.windows);
    mq_store_close(s);
    ref_kernels()->dev_close(dev);
    free(ids);
}
END_TEST

static bool stop_now(void)
{
    return true;
}

START_TEST(wrong_calls_are_refused)
{
    const char *dir = ref_model("nano"), *mini = mq_test_model("mini");
    if (!dir)
        return;
    int32_t ids[400] = {0};
    mq_dev *dev = ref_dev(2);
    mq_store *s = ref_store(dir, 1, false);
    mq_err err;
    mq_quality q;
    mq_quality_options o = {.window = 100, .n_windows = 4};
    const mq_kernels *k = ref_kernels();
    mq_assert_fails(mq_quality_run(&q, k, dev, s, NULL, ids, 400, &o, &err), MQ_E_ARG, &err,
                    "a text of 400 tokens, but 4 windows of 100 need 401");
    o.n_windows = 0;
    mq_assert_fails(mq_quality_run(&q, k, dev, s, NULL, ids, 400, &o, &err), MQ_E_ARG, &err,
                    "expected at least one");
    o = (mq_quality_options){.window = 5000, .n_windows = 1};
    mq_assert_fails(mq_quality_run(&q, k, dev, s, NULL, ids, 400, &o, &err), MQ_E_ARG, &err,
                    "a window of 5000 tokens, expected at most 4096");
    o = (mq_quality_options){.window = 100, .n_windows = 3, .stopped = stop_now};
    mq_assert_fails(mq_quality_run(&q, k, dev, s, NULL, ids, 400, &o, &err), MQ_E_STOPPED, &err,
                    "stopped");
    ids[7] = 4096;
    o.stopped = NULL;
    mq_assert_fails(mq_quality_run(&q, k, dev, s, NULL, ids, 400, &o, &err), MQ_E_ARG, &err,
                    "token id 4096 at position 7");
    if (mini) {
        mq_store *other = ref_store(mini, 1, false);
        mq_assert_fails(mq_quality_run(&q, k, dev, s, other, ids, 400, &o, &err), MQ_E_SHAPE, &err,
                        "expected those of the source: 6, 128, 4096");
        mq_store_close(other);
    }
    mq_store_close(s);
    k->dev_close(dev);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("perplexity");
    TCase *t = tcase_create("perplexity");
    tcase_add_test(t, nano_windows_equal_the_port);
    tcase_add_test(t, mini_windows_equal_the_port);
    tcase_add_test(t, a_model_beside_itself_agrees);
    tcase_add_test(t, two_models_side_by_side);
    tcase_add_test(t, a_budget_changes_no_result);
    tcase_add_test(t, wrong_calls_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
