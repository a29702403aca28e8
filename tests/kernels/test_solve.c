/* Reverse Cholesky: a value by hand, R R^T = P g P^T + ridge I in double, edge sizes, permutations, statuses, threads; and
 * solve, which undoes it. */
#include "tests/maker/calibration_data.h"

static const mq_kernels *k;
static const int64_t sizes[] = {1, 2, 31, 32, 33, 64, 65, 127, 128, 129, 200, 600};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

START_TEST(factor_by_hand)
{
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 1, NULL, NULL) == MQ_OK);
    /* order (1, 0): H = [[4, 2], [2, 9]] - diagonal of g 9 - 1, 4 - 1 plus the ridge of 1; R[1][1]^2 = 9, R[0][1] = 2/3 */
    float g[4] = {8, NAN, 2, 3}, a[4] = {5, 5, 5, 5}, d[2];
    int32_t perm[2] = {1, 0};
    ck_assert(k->factor(dev, a, d, g, perm, 1.0f, 2, NULL) == MQ_OK);
    ck_assert(d[1] == 9.0f);
    ck_assert_float_eq_tol(d[0], 4.0f - 4.0f / 9.0f, 1e-6f);
    ck_assert_float_eq_tol(a[1], 2.0f / 9.0f, 1e-7f);
    ck_assert(a[0] == 0.0f && a[2] == 0.0f && a[3] == 0.0f);
    ck_assert(g[0] == 8.0f && isnan(g[1]) && g[2] == 2.0f && g[3] == 3.0f);
    k->dev_close(dev);
}
END_TEST

static void check_one(mq_dev *dev, int64_t n, uint64_t seed)
{
    double *h = random_moment(n, 2 * n + 1, 5 + seed);
    float *g = lower_floats(h, n), *a = malloc((size_t)(n * n) * sizeof *a), *d = malloc((size_t)n * sizeof *d);
    int32_t *perm = random_permutation(n, seed);
    double trace = 0.0;
    for (int64_t i = 0; i < n; i++)
        trace += h[i * n + i];
    float ridge = (float)(0.01 * trace / (double)n);
    mq_err err;
    mq_assert_ok(k->factor(dev, a, d, g, perm, ridge, n, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++)
            ck_assert(a[i * n + j] == 0.0f);
        for (int64_t j = i; j < n; j++) {
            double sum = 0.0; /* (R R^T)[i][j], R[i][m] = a[i][m] sqrt(d[m]) */
            for (int64_t m = j; m < n; m++)
                sum += (m == i ? 1.0 : (double)a[i * n + m]) * (m == j ? 1.0 : (double)a[j * n + m]) * (double)d[m];
            double hi = h[perm[i] * n + perm[i]], hj = h[perm[j] * n + perm[j]];
            double want = h[perm[i] * n + perm[j]] + (i == j ? (double)ridge : 0.0);
            /* backward error: a few 2^-24 per product of diagonals, growing with the root of n */
            ck_assert_msg(fabs(sum - want) <= 1e-6 * sqrt(hi * hj) * (1.0 + 0.1 * sqrt((double)n)), "n %lld: H[%lld][%lld] %g, %g",
                          (long long)n, (long long)i, (long long)j, sum, want);
        }
    }
    free(h);
    free(g);
    free(a);
    free(d);
    free(perm);
}

/* x H = y again, H with its ridge. */
static void check_solution(mq_dev *dev, int64_t n, int64_t rows, uint64_t seed)
{
    double *h = random_moment(n, 2 * n + 1, 5 + seed);
    float *g = lower_floats(h, n), *a = malloc((size_t)(n * n) * sizeof *a), *d = malloc((size_t)n * sizeof *d);
    float *y = random_floats(rows * n, 3), *x = malloc((size_t)(rows * n) * sizeof *x);
    int32_t *perm = random_permutation(n, seed);
    mq_err err;
    mq_assert_ok(k->factor(dev, a, d, g, perm, 1.0f, n, &err), &err);
    mq_assert_ok(k->solve(dev, x, y, a, d, perm, rows, n, &err), &err);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) {
            double sum = (double)x[r * n + i], size = fabs(sum);
            for (int64_t j = 0; j < n; j++) {
                double term = (double)x[r * n + j] * h[i * n + j];
                sum += term;
                size += fabs(term);
            }
            ck_assert_msg(fabs(sum - (double)y[r * n + i]) <= 1e-5 * size, "n %lld: y[%lld][%lld] %g, %g", (long long)n,
                          (long long)r, (long long)i, sum, (double)y[r * n + i]);
        }
    mq_assert_ok(k->solve(dev, y, y, a, d, perm, rows, n, &err), &err); /* in place */
    ck_assert(!memcmp(x, y, (size_t)(rows * n) * sizeof *x));
    free(h);
    free(g);
    free(a);
    free(d);
    free(x);
    free(y);
    free(perm);
}

static void check_solutions(mq_dev *dev)
{
    for (int c = 0; c < N_SIZES - 1; c++)
        for (uint64_t seed = 0; seed < 2; seed++)
            check_solution(dev, sizes[c], c % 3 ? 5 : 300, seed);
}

START_TEST(solve_times_the_moment_is_the_right_side)
{
    on_each_isa(k, check_solutions);
}
END_TEST

static void check_factors(mq_dev *dev)
{
    for (int c = 0; c < N_SIZES; c++)
        for (uint64_t seed = 0; seed < 2; seed++)
            check_one(dev, sizes[c], seed);
}

START_TEST(factor_gives_back_the_permuted_moment)
{
    on_each_isa(k, check_factors);
}
END_TEST

START_TEST(what_is_not_positive_definite_is_named)
{
    mq_dev *dev;
    mq_err err;
    ck_assert(k->dev_open(&dev, 0, 2, NULL, NULL) == MQ_OK);
    float g[4] = {1, 0, 2, 1}, a[4], d[2];
    int32_t perm[2] = {0, 1}, swap[2] = {1, 0}, one[1] = {0};
    mq_assert_fails(k->factor(dev, a, d, g, perm, 0.0f, 2, &err), MQ_E_NUMERIC, &err,
                    "pivot 0 of 2 (column 0) is -3: not positive definite");
    mq_assert_fails(k->factor(dev, a, d, g, swap, 0.0f, 2, &err), MQ_E_NUMERIC, &err, "pivot 0 of 2 (column 1) is -3");
    mq_assert_ok(k->factor(dev, a, d, g, perm, 1.5f, 2, &err), &err); /* more ridge, same g */
    g[0] = 0.0f;
    mq_assert_fails(k->factor(dev, a, d, g, one, 0.0f, 1, &err), MQ_E_NUMERIC, &err, "pivot 0 of 1 (column 0) is 0");
    k->dev_close(dev);
}
END_TEST

START_TEST(what_is_not_finite_is_refused)
{
    enum { N = 150 };
    mq_dev *dev;
    mq_err err;
    ck_assert(k->dev_open(&dev, 0, 2, NULL, NULL) == MQ_OK);
    double *h = random_moment(N, 2 * N, 1);
    float *g = lower_floats(h, N), *a = malloc(N * N * sizeof *a), d[N];
    int32_t *perm = random_permutation(N, 7);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const int at[][2] = {{0, 0}, {149, 149}, {70, 70}, {149, 0}, {1, 0}, {149, 148}, {80, 20}};
    for (size_t b = 0; b < sizeof bad / sizeof bad[0]; b++)
        for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
            float *p = g + at[i][0] * N + at[i][1], keep = *p;
            *p = bad[b];
            mq_assert_fails(k->factor(dev, a, d, g, perm, 1.0f, N, &err), MQ_E_NUMERIC, &err, "not positive definite");
            *p = keep;
        }
    mq_assert_fails(k->factor(dev, a, d, g, perm, NAN, N, &err), MQ_E_NUMERIC, &err, "pivot 149 of 150");
    mq_assert_ok(k->factor(dev, a, d, g, perm, 1.0f, N, &err), &err);
    free(h);
    free(g);
    free(a);
    free(perm);
    k->dev_close(dev);
}
END_TEST

START_TEST(factor_bits_do_not_depend_on_threads)
{
    enum { N = 1300 };
    float *x = random_activations(N, N, 1), *g = calloc((size_t)N * N, sizeof *g), *first = NULL, first_d[N], d[N];
    int32_t *perm = random_permutation(N, 3);
    for (int threads = 1; threads <= 8; threads++) {
        mq_dev *dev;
        mq_err err;
        ck_assert(k->dev_open(&dev, 0, threads, NULL, NULL) == MQ_OK);
        float *a = malloc((size_t)N * N * sizeof *a);
        if (threads == 1)
            mq_assert_ok(k->gram(dev, g, x, NULL, N, N, &err), &err);
        mq_assert_ok(k->factor(dev, a, d, g, perm, 20.0f, N, &err), &err);
        if (!first) {
            first = a;
            memcpy(first_d, d, sizeof d);
        } else {
            ck_assert_msg(!memcmp(first, a, (size_t)N * N * sizeof *a), "%d threads", threads);
            ck_assert(!memcmp(first_d, d, sizeof d));
            free(a);
        }
        k->dev_close(dev);
    }
    free(first);
    free(x);
    free(g);
    free(perm);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("solve");
    TCase *t = tcase_create("factor");
    tcase_add_test(t, factor_by_hand);
    tcase_add_test(t, factor_gives_back_the_permuted_moment);
    tcase_add_test(t, solve_times_the_moment_is_the_right_side);
    tcase_add_test(t, what_is_not_positive_definite_is_named);
    tcase_add_test(t, what_is_not_finite_is_refused);
    tcase_add_test(t, factor_bits_do_not_depend_on_threads);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
