/* CUDA against CPU: routing, sampling and logit statistics: equal experts and tokens, ties, values that are not numbers. */
#include "tests/kernels/cuda_test.h"

static void check_route(const float *logits, const float *bias, int64_t n, int n_experts, int topk, bool norm)
{
    int64_t count = n * topk;
    int32_t *ids = (int32_t *)floats(count), *got = (int32_t *)floats(count);
    float *coef = floats(count), *got_coef = floats(count), *margin = floats(n), *got_margin = floats(n);
    float *dl = put_floats(logits, n * n_experts), *db = put_floats(bias, n_experts);
    int32_t *di = (int32_t *)put(NULL, count * 4);
    float *dc = put_floats(NULL, count), *dm = put_floats(NULL, n);
    mq_assert_ok(cpu->route(cpu_dev, ids, coef, margin, logits, bias, n, n_experts, topk, norm, 2.5f, &err), &err);
    mq_assert_ok(gpu->route(gpu_dev, di, dc, dm, dl, db, n, n_experts, topk, norm, 2.5f, &err), &err);
    mq_assert_ok(gpu->route(gpu_dev, di, dc, NULL, dl, db, n, n_experts, topk, norm, 2.5f, &err), &err);
    take(got, di, count * 4);
    take(got_coef, dc, count * 4);
    take(got_margin, dm, n * 4);
    ck_assert_msg(same_bytes(ids, got, count * 4), "%d experts, top %d: other experts", n_experts, topk);
    ck_assert(largest_error(got_coef, coef, count, 0.0) <= 5e-7);
    for (int64_t i = 0; i < n; i++) /* a difference of scores below 1 and a bias below 4 */
        ck_assert(margin[i] == got_margin[i] || fabs((double)margin[i] - (double)got_margin[i]) <= 1e-6);
    drop(dl);
    drop(db);
    free(ids);
    free(got);
    free(coef);
    free(got_coef);
    free(margin);
    free(got_margin);
}

START_TEST(routes_are_equal)
{
    static const int shapes[][3] = {{1, 1, 1}, {33, 31, 4}, {5, 32, 32}, {7, 33, 8}, {50, 256, 8}, {9, 384, 8}, {0, 16, 2}};
    for (int c = 0; c < 7; c++) {
        int n = shapes[c][0], experts = shapes[c][1];
        float *logits = random_floats((int64_t)n * experts, (uint64_t)c), *bias = random_floats(experts, 9);
        for (int norm = 0; norm < 2; norm++)
            check_route(logits, bias, n, experts, shapes[c][2], norm);
        free(logits);
        free(bias);
    }
}
END_TEST

START_TEST(ties_go_to_the_lower_expert)
{
    enum { N = 40, EXPERTS = 70, K = 6 };
    uint64_t seed = 1;
    float *logits = floats(N * EXPERTS), bias[EXPERTS] = {0};
    for (int i = 0; i < N * EXPERTS; i++)
        logits[i] = (float)(mq_test_rand(&seed) % 3u);
    check_route(logits, bias, N, EXPERTS, K, true);
    for (int e = 0; e < EXPERTS; e++)
        logits[e] = NAN;
    logits[EXPERTS + 5] = NAN;
    logits[2 * EXPERTS + 5] = INFINITY;
    logits[3 * EXPERTS + 5] = -INFINITY;
    check_route(logits + EXPERTS, bias, N - 1, EXPERTS, K, true);
    /* no number at all: the first experts, with coefficients that are no numbers */
    float *dl = put_floats(logits, EXPERTS), *db = put_floats(bias, EXPERTS), *dc = put_floats(NULL, K);
    int32_t ids[K], *di = (int32_t *)put(NULL, sizeof ids);
    mq_assert_ok(gpu->route(gpu_dev, di, dc, NULL, dl, db, 1, EXPERTS, K, true, 1.0f, &err), &err);
    take(ids, di, sizeof ids);
    for (int k = 0; k < K; k++)
        ck_assert_int_eq(ids[k], k);
    drop(dl);
    drop(db);
    drop(dc);
    free(logits);
}
END_TEST

static void check_sample(const float *logits, mq_sampling s, int64_t n, int64_t vocab, int64_t pos0)
{
    int32_t want[64], got[64], *dt = (int32_t *)put(NULL, n * 4);
    float *dl = put_floats(logits, n * vocab);
    mq_assert_ok(cpu->sample(cpu_dev, want, logits, &s, n, vocab, pos0, &err), &err);
    mq_assert_ok(gpu->sample(gpu_dev, dt, dl, &s, n, vocab, pos0, &err), &err);
    take(got, dt, n * 4);
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(got[i] == want[i], "T %g k %d p %g, vocabulary %d, row %d: %d, expected %d", (double)s.temperature,
                      s.top_k, (double)s.top_p, (int)vocab, (int)i, got[i], want[i]);
    drop(dl);
}

START_TEST(draws_are_equal)
{
    static const int64_t vocabs[] = {1, 2, 31, 33, 511, 512, 513, 3000};
    static const mq_sampling how[] = {{0, 0, 1, 0},       {1, 0, 1, 7},       {0.7f, 0, 1, 8},   {1, 1, 1, 9},
                                      {1.5f, 20, 1, 10},  {1, 0, 0.9f, 11},   {2, 0, 0.5f, 12},  {1, 40, 0.8f, 13},
                                      {1, 0, 1e-6f, 14},  {0.01f, 5, 0.99f, 15}, {1, 512, 0.9f, UINT64_MAX}};
    for (size_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++)
        for (size_t k = 0; k < sizeof how / sizeof how[0]; k++) {
            float *logits = random_floats(5 * vocabs[v], v);
            for (int64_t i = 0; i < 5 * vocabs[v]; i++)
                logits[i] *= 4.0f;
            check_sample(logits, how[k], 5, vocabs[v], 1000000007 * (int64_t)k);
            free(logits);
        }
}
END_TEST

START_TEST(equal_logits_keep_the_lower_ids)
{
    enum { N = 24, VOCAB = 300 };
    uint64_t seed = 5;
    float *logits = floats(N * VOCAB);
    for (int i = 0; i < N * VOCAB; i++)
        logits[i] = (float)(mq_test_rand(&seed) % 4u) * ((mq_test_rand(&seed) & 1u) ? -1.0f : 1.0f); /* both zeros */
    logits[3] = NAN;
    logits[VOCAB + 3] = -INFINITY;
    check_sample(logits, (mq_sampling){0, 0, 1, 1}, N, VOCAB, 0);
    check_sample(logits, (mq_sampling){1, 10, 1, 1}, N, VOCAB, 0);
    check_sample(logits, (mq_sampling){3, 77, 1, 1}, N, VOCAB, 50);
    check_sample(logits, (mq_sampling){1, 0, 0.6f, 1}, N, VOCAB, 0);
    free(logits);
}
END_TEST

START_TEST(the_best_and_its_probability_agree)
{
    static const int64_t vocabs[] = {1, 2, 31, 512, 515, 3000};
    enum { N = 5 };
    for (size_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++) {
        int64_t vocab = vocabs[v];
        float *x = random_floats(N * vocab, v), want[N], got[N];
        int32_t want_id[N], got_id[N];
        for (int64_t i = 0; i < vocab; i++) {
            x[i] = -INFINITY;
            x[vocab + i] = NAN;
            x[2 * vocab + i] = (float)(i % 2);
        }
        x[4 * vocab - 1] = INFINITY;
        float *dx = put_floats(x, N * vocab), *dp = put_floats(NULL, N);
        int32_t *di = (int32_t *)put(NULL, sizeof got_id);
        mq_assert_ok(cpu->top(cpu_dev, want_id, want, x, N, vocab, &err), &err);
        mq_assert_ok(gpu->top(gpu_dev, di, dp, dx, N, vocab, &err), &err);
        mq_assert_ok(gpu->top(gpu_dev, di, dp, dx, 0, vocab, &err), &err);
        take(got_id, di, sizeof got_id);
        take(got, dp, sizeof got);
        ck_assert(same_bytes(want_id, got_id, sizeof got_id));
        ck_assert(largest_error(got, want, N, 1e-30) <= 3e-7); /* the CPU's exponentials are F32 */
        drop(dx);
        free(x);
    }
}
END_TEST

START_TEST(statistics_agree)
{
    static const int64_t vocabs[] = {1, 31, 512, 515, 3000};
    enum { N = 4 };
    for (size_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++) {
        int64_t vocab = vocabs[v];
        float *a = random_floats(N * vocab, 1), *b = random_floats(N * vocab, 2);
        int32_t targets[N] = {0, (int32_t)vocab - 1, (int32_t)vocab / 2, 0};
        a[vocab / 2] = b[vocab - 1] = 50.0f;
        mq_logit_stats want[N], got[N];
        float *da = put_floats(a, N * vocab), *db = put_floats(b, N * vocab);
        int32_t *dt = (int32_t *)put(targets, sizeof targets);
        for (int both = 0; both < 2; both++) {
            mq_assert_ok(cpu->logit_stats(cpu_dev, want, a, both ? b : NULL, targets, N, vocab, &err), &err);
            mq_assert_ok(gpu->logit_stats(gpu_dev, got, da, both ? db : NULL, dt, N, vocab, &err), &err);
            for (int i = 0; i < N; i++) {
                /* the CPU's exponentials are F32 */
                ck_assert(fabs(want[i].nll_a - got[i].nll_a) <= 2e-7 && fabs(want[i].nll_b - got[i].nll_b) <= 2e-7);
                ck_assert(fabs(want[i].kl - got[i].kl) <= 2e-7 * (1.0 + fabs(want[i].kl)));
                ck_assert_int_eq(want[i].top_a, got[i].top_a);
                ck_assert_int_eq(want[i].top_b, got[i].top_b);
            }
        }
        mq_assert_ok(gpu->logit_stats(gpu_dev, got, da, db, dt, 0, vocab, &err), &err);
        drop(da);
        drop(db);
        drop(dt);
        free(a);
        free(b);
    }
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_sample");
    TCase *t = tcase_create("all");
    tcase_add_test(t, routes_are_equal);
    tcase_add_test(t, ties_go_to_the_lower_expert);
    tcase_add_test(t, draws_are_equal);
    tcase_add_test(t, equal_logits_keep_the_lower_ids);
    tcase_add_test(t, the_best_and_its_probability_agree);
    tcase_add_test(t, statistics_agree);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
