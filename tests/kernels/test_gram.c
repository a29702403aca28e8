/* Second moments against double loops: weights, tiles and their edges, the untouched upper triangle, threads;
 * cross, axpby and diag. */
#include "tests/maker/calibration_data.h"

static const mq_kernels *k;
static const int64_t sizes[] = {1, 2, 31, 33, 127, 128, 129, 200, 511, 513};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

START_TEST(gram_by_hand)
{
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 1, NULL, NULL) == MQ_OK);
    /* 4 (1, 2)(1, 2)^T + 1 (3, -1)(3, -1)^T onto ones */
    float x[4] = {1, 2, 3, -1}, weight[2] = {4, 1}, g[4] = {1, -7, 1, 1};
    ck_assert(k->gram(dev, g, x, weight, 2, 2, NULL) == MQ_OK);
    ck_assert(g[0] == 14.0f && g[2] == 6.0f && g[3] == 18.0f);
    ck_assert_msg(g[1] == -7.0f, "the upper triangle is not written");
    ck_assert(k->gram(dev, g, x, NULL, 2, 2, NULL) == MQ_OK);
    ck_assert(g[0] == 24.0f && g[2] == 5.0f && g[3] == 23.0f && g[1] == -7.0f);
    ck_assert(k->gram(dev, g, x, weight, 0, 2, NULL) == MQ_OK); /* no rows: nothing is added */
    ck_assert(g[0] == 24.0f && g[2] == 5.0f && g[3] == 23.0f);
    float d[2];
    ck_assert(k->diag(dev, d, g, 2, NULL) == MQ_OK);
    ck_assert(d[0] == 24.0f && d[1] == 23.0f);
    ck_assert(k->axpby(dev, d, 0.5f, x, -2.0f, 2, NULL) == MQ_OK);
    ck_assert(d[0] == 10.0f && d[1] == 7.5f);
    ck_assert(k->axpby(dev, d, -2.0f, NULL, 0.0f, 2, NULL) == MQ_OK);
    ck_assert(d[0] == -20.0f && d[1] == -15.0f);
    d[0] = NAN; /* an array whose factor is 0 is not read */
    ck_assert(k->axpby(dev, d, 0.0f, x, 2.0f, 2, NULL) == MQ_OK);
    ck_assert(d[0] == 2.0f && d[1] == 4.0f);
    d[1] = INFINITY;
    ck_assert(k->axpby(dev, d, 0.0f, NULL, 0.0f, 2, NULL) == MQ_OK);
    ck_assert(d[0] == 0.0f && d[1] == 0.0f);
    k->dev_close(dev);
}
END_TEST

static void check_sums(mq_dev *dev)
{
    enum { N = 37 };
    for (int c = 0; c < N_SIZES; c++) {
        int64_t n = sizes[c];
        float *x = random_activations(N, n, 1), *weight = random_floats(N, 2), *g = random_floats(n * n, 3);
        float *start = malloc((size_t)(n * n) * sizeof *start);
        memcpy(start, g, (size_t)(n * n) * sizeof *g);
        for (int i = 0; i < N; i++)
            weight[i] = i % 5 ? fabsf(weight[i]) : 0.0f;
        ck_assert(k->gram(dev, g, x, weight, N, n, NULL) == MQ_OK);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                double want = (double)start[i * n + j], size = fabs(want);
                for (int t = 0; t < N && j <= i; t++) {
                    double term = (double)weight[t] * (double)x[t * n + i] * (double)x[t * n + j];
                    want += term;
                    size += fabs(term);
                }
                /* 37 additions and 3 roundings of each term, at 2^-24 */
                ck_assert_msg(fabs((double)g[i * n + j] - want) <= (j <= i ? 3e-6 * size : 0.0), "n %lld: g[%lld][%lld] %g, %g",
                              (long long)n, (long long)i, (long long)j, (double)g[i * n + j], want);
            }
        free(x);
        free(weight);
        free(g);
        free(start);
    }
}

START_TEST(gram_is_the_weighted_sum_of_products)
{
    on_each_isa(k, check_sums);
}
END_TEST

static void check_cross(mq_dev *dev)
{
    enum { N = 37, OTHER = 530 };
    for (int c = 0; c < N_SIZES; c++) {
        int64_t n = sizes[c], m = c % 2 ? OTHER : 3;
        float *x = random_activations(N, n, 1), *y = random_floats(N * m, 4), *weight = random_floats(N, 2);
        float *start = random_floats(n * m, 3), *sum = random_floats(n * m, 3);
        for (int i = 0; i < N; i++)
            weight[i] = i % 5 ? fabsf(weight[i]) : 0.0f;
        ck_assert(k->cross(dev, sum, x, y, weight, N, n, m, NULL) == MQ_OK);
        ck_assert(k->cross(dev, sum, x, y, NULL, N, n, m, NULL) == MQ_OK);
        ck_assert(k->cross(dev, sum, x, y, NULL, 0, n, m, NULL) == MQ_OK);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < m; j++) {
                double want = (double)start[i * m + j], size = fabs(want);
                for (int t = 0; t < N; t++) {
                    double term = (1.0 + (double)weight[t]) * (double)x[t * n + i] * (double)y[t * m + j];
                    want += term;
                    size += fabs(term);
                }
                ck_assert_msg(fabs((double)sum[i * m + j] - want) <= 3e-6 * size, "n %lld: c[%lld][%lld] %g, %g", (long long)n,
                              (long long)i, (long long)j, (double)sum[i * m + j], want);
            }
        free(x);
        free(y);
        free(weight);
        free(start);
        free(sum);
    }
}

START_TEST(cross_is_the_weighted_sum_of_products)
{
    on_each_isa(k, check_cross);
}
END_TEST

START_TEST(gram_bits_do_not_depend_on_threads)
{
    enum { N = 300, COLS = 1100 };
    float *x = random_activations(N, COLS, 1), *weight = random_floats(N, 2), *first = NULL;
    for (int i = 0; i < N; i++)
        weight[i] = fabsf(weight[i]);
    for (int threads = 1; threads <= 8; threads++) {
        mq_dev *dev;
        ck_assert(k->dev_open(&dev, 0, threads, NULL, NULL) == MQ_OK);
        float *g = calloc((size_t)COLS * COLS, sizeof *g);
        ck_assert(k->gram(dev, g, x, weight, N, COLS, NULL) == MQ_OK);
        ck_assert(k->gram(dev, g, x, NULL, N, COLS, NULL) == MQ_OK);
        ck_assert(k->cross(dev, g, x, x, weight, N, COLS, COLS, NULL) == MQ_OK);
        ck_assert(k->axpby(dev, g, 0.3f, x, 0.7f, N * COLS, NULL) == MQ_OK);
        if (!first)
            first = g;
        else
            ck_assert_msg(!memcmp(first, g, (size_t)COLS * COLS * sizeof *g), "%d threads", threads);
        if (g != first)
            free(g);
        k->dev_close(dev);
    }
    free(first);
    free(x);
    free(weight);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("gram");
    TCase *t = tcase_create("gram");
    tcase_add_test(t, gram_by_hand);
    tcase_add_test(t, gram_is_the_weighted_sum_of_products);
    tcase_add_test(t, cross_is_the_weighted_sum_of_products);
    tcase_add_test(t, gram_bits_do_not_depend_on_threads);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
