/* Error feedback: values by hand, GPTQ's own recursion in double, the loss it reports, edge sizes, threads.
 *
 * F32 and double part ways where t / scale is within rounding of a tie; from there on a row's codes differ.  So a row is compared up
 * to its first difference, and that has to be such a tie. */
#include <pthread.h>

#include "tests/maker/calibration_data.h"

static const mq_kernels *k;

static const struct {
    int64_t rows, cols;
    int group;
} shapes[] = {{1, 32, 32},  {7, 64, 32},   {16, 64, 64},  {17, 96, 32},  {33, 128, 128},
              {5, 160, 32}, {40, 192, 64}, {31, 256, 64}, {65, 256, 128}, {300, 96, 32}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* One problem with everything the operation needs; h includes the ridge and is in the columns' own order. */
typedef struct problem {
    int64_t rows, cols;
    int group;
    double *h;
    float *g, *w, *scale, *a, *d, *loss;
    int32_t *perm;
    uint8_t *codes;
} problem;

static problem problem_create(mq_dev *dev, int64_t rows, int64_t cols, int group, uint64_t seed)
{
    problem p = {.rows = rows, .cols = cols, .group = group, .h = random_moment(cols, 2 * cols, seed + 1)};
    p.g = lower_floats(p.h, cols);
    p.w = random_floats(rows * cols, seed + 2);
    p.scale = simple_scales(p.w, rows, cols, group);
    p.a = malloc((size_t)(cols * cols) * sizeof *p.a);
    p.d = malloc((size_t)cols * sizeof *p.d);
    p.loss = malloc((size_t)rows * sizeof *p.loss);
    p.perm = random_permutation(cols, seed);
    p.codes = malloc((size_t)(rows * cols));
    mq_err err;
    float ridge = 0.05f;
    mq_assert_ok(k->factor(dev, p.a, p.d, p.g, p.perm, ridge, cols, &err), &err);
    for (int64_t i = 0; i < cols; i++)
        p.h[i * cols + i] += (double)ridge;
    mq_assert_ok(k->ldlq(dev, p.codes, p.loss, p.w, p.scale, p.a, p.d, p.perm, rows, cols, group, &err), &err);
    return p;
}

static void problem_free(problem *p)
{
    free(p->h);
    free(p->g);
    free(p->w);
    free(p->scale);
    free(p->a);
    free(p->d);
    free(p->loss);
    free(p->perm);
    free(p->codes);
}

/* U upper with (P h P^T)^-1 = U^T U: Gauss-Jordan without pivoting, then Cholesky. */
static double *inverse_factor(const problem *p)
{
    int64_t n = p->cols;
    double *m = malloc((size_t)(n * n) * sizeof *m), *v = calloc((size_t)(n * n), sizeof *v);
    for (int64_t i = 0; i < n; i++) {
        v[i * n + i] = 1.0;
        for (int64_t j = 0; j < n; j++)
            m[i * n + j] = p->h[p->perm[i] * n + p->perm[j]];
    }
    for (int64_t c = 0; c < n; c++) {
        double inv = 1.0 / m[c * n + c];
        for (int64_t j = 0; j < n; j++) {
            m[c * n + j] *= inv;
            v[c * n + j] *= inv;
        }
        for (int64_t i = 0; i < n; i++) {
            double f = m[i * n + c];
            for (int64_t j = 0; j < n && i != c; j++) {
                m[i * n + j] -= f * m[c * n + j];
                v[i * n + j] -= f * v[c * n + j];
            }
        }
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i; j < n; j++) {
            double sum = v[i * n + j];
            for (int64_t t = 0; t < i; t++)
                sum -= m[t * n + i] * m[t * n + j];
            m[i * n + j] = j == i ? sqrt(sum) : sum / m[i * n + i];
        }
    free(v);
    return m;
}

/* Does code differ from q at t for a reason other than a tie? */
static bool is_wrong(int q, int code, double t, double scale)
{
    double x = t / scale;
    return q != code && !(abs(q - code) == 1 && fabs(x - 0.5 * (q + code)) < 2e-4);
}

/* The recursion of the GPTQ paper on one row; returns whether it came to the end without a tie. */
static bool compare_row(const problem *p, const double *u, int64_t row)
{
    int64_t n = p->cols;
    double *w = malloc((size_t)n * sizeof *w);
    bool whole = true;
    for (int64_t i = 0; i < n; i++)
        w[i] = (double)p->w[row * n + p->perm[i]];
    for (int64_t i = 0; i < n && whole; i++) {
        int64_t c = p->perm[i];
        double s = (double)p->scale[(row * n + c) / p->group];
        int q = code_of(w[i], s), code = (int)p->codes[row * n + c] - 8;
        ck_assert_msg(!is_wrong(q, code, w[i], s), "row %lld column %lld: %d, expected %d (%g)", (long long)row, (long long)c, code,
                      q, w[i] / s);
        whole = q == code;
        double e = (w[i] - q * s) / u[i * n + i];
        for (int64_t j = i + 1; j < n; j++)
            w[j] -= e * u[i * n + j];
    }
    free(w);
    return whole;
}

/* Row's D h D^T. */
static double direct_loss(const problem *p, int64_t row)
{
    int64_t n = p->cols;
    double *e = malloc((size_t)n * sizeof *e), sum = 0.0;
    for (int64_t c = 0; c < n; c++)
        e[c] = (double)p->w[row * n + c] - (double)p->scale[(row * n + c) / p->group] * ((double)p->codes[row * n + c] - 8.0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            sum += e[i] * p->h[i * n + j] * e[j];
    free(e);
    return sum;
}

static void check_gptq(mq_dev *dev)
{
    for (int s = 0; s < N_SHAPES; s++)
        for (uint64_t seed = 0; seed < 2; seed++) {
            problem p = problem_create(dev, shapes[s].rows, shapes[s].cols, shapes[s].group, seed);
            double *u = inverse_factor(&p);
            int64_t whole = 0;
            for (int64_t row = 0; row < p.rows; row++) {
                whole += compare_row(&p, u, row);
                double want = direct_loss(&p, row);
                ck_assert_msg(fabs((double)p.loss[row] - want) <= 1e-3 * want, "row %lld: loss %g, expected %g", (long long)row,
                              (double)p.loss[row], want);
            }
            ck_assert_msg(10 * whole >= 8 * p.rows - 10, "%lld of %lld rows without a tie", (long long)whole, (long long)p.rows);
            free(u);
            problem_free(&p);
        }
}

START_TEST(codes_are_those_of_gptq_and_the_loss_is_theirs)
{
    on_each_isa(k, check_gptq);
}
END_TEST

static void check_by_hand(mq_dev *dev)
{
    enum { N = 32 };
    float a[N * N] = {0}, d[N], w[N] = {1.4f, 1.4f, 9.5f, -20.0f, 2.5f, 3.5f, -0.5f, -8.5f}, scale[1] = {1.0f}, loss[1];
    int32_t perm[N];
    uint8_t codes[N];
    for (int i = 0; i < N; i++) {
        d[i] = 1.0f;
        perm[i] = i;
    }
    d[0] = 2.0f;
    a[0 * N + 1] = 0.5f; /* t of column 1 is 1.4 + 0.4 * 0.5 */
    ck_assert(k->ldlq(dev, codes, loss, w, scale, a, d, perm, 1, N, N, NULL) == MQ_OK);
    static const uint8_t want[10] = {9, 10, 15, 0, 10, 12, 8, 0, 8, 8};
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(codes[i], want[i]);
    /* 2 * 0.4^2 + 0.4^2 + 2.5^2 + 12^2 + 4 * 0.5^2 */
    ck_assert_float_eq_tol(loss[0], 151.73f, 1e-4f);
    perm[0] = 1; /* now column 1 comes first: column 0 gets its 0.4 */
    perm[1] = 0;
    scale[0] = -0.5f;
    ck_assert(k->ldlq(dev, codes, loss, w, scale, a, d, perm, 1, N, N, NULL) == MQ_OK);
    ck_assert_int_eq(codes[1], 5); /* 1.4 / -0.5 = -2.8; D = 1.4 - 1.5 */
    ck_assert_int_eq(codes[0], 5); /* 1.35 / -0.5 = -2.7 */
    ck_assert_int_eq(codes[3], 15);
    ck_assert_int_eq(codes[2], 0);
}

START_TEST(ldlq_by_hand)
{
    on_each_isa(k, check_by_hand);
}
END_TEST

/* Codes and loss of one fixed problem; to be freed. */
static uint8_t *answer(mq_dev *dev, size_t *n_bytes)
{
    problem p = problem_create(dev, 700, 256, 32, 4);
    size_t codes = (size_t)(p.rows * p.cols), losses = (size_t)p.rows * sizeof *p.loss;
    uint8_t *out = malloc(codes + losses);
    memcpy(out, p.codes, codes);
    memcpy(out + codes, p.loss, losses);
    problem_free(&p);
    *n_bytes = codes + losses;
    return out;
}

START_TEST(bits_do_not_depend_on_threads)
{
    uint8_t *first = NULL;
    for (int threads = 1; threads <= 8; threads++) {
        mq_dev *dev;
        size_t n;
        ck_assert(k->dev_open(&dev, 0, threads, NULL, NULL) == MQ_OK);
        uint8_t *now = answer(dev, &n);
        if (first) {
            ck_assert_msg(!memcmp(first, now, n), "%d threads", threads);
            free(now);
        } else {
            first = now;
        }
        k->dev_close(dev);
    }
    free(first);
}
END_TEST

static void *worker(void *out)
{
    mq_dev *dev;
    size_t n;
    if (k->dev_open(&dev, 0, 1, NULL, NULL) == MQ_OK) {
        *(uint8_t **)out = answer(dev, &n);
        k->dev_close(dev);
    }
    return NULL;
}

START_TEST(workers_with_a_device_each_do_not_disturb_each_other)
{
    enum { N = 4 };
    pthread_t id[N];
    uint8_t *got[N + 1] = {NULL};
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(pthread_create(&id[i], NULL, worker, &got[i]), 0);
    for (int i = 0; i < N; i++)
        pthread_join(id[i], NULL);
    mq_dev *dev;
    size_t n;
    ck_assert(k->dev_open(&dev, 0, 1, NULL, NULL) == MQ_OK);
    got[N] = answer(dev, &n);
    for (int i = 0; i < N; i++) {
        ck_assert(got[i] && !memcmp(got[i], got[N], n));
        free(got[i]);
    }
    free(got[N]);
    k->dev_close(dev);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("ldlq");
    TCase *t = tcase_create("ldlq");
    tcase_add_test(t, ldlq_by_hand);
    tcase_add_test(t, codes_are_those_of_gptq_and_the_loss_is_theirs);
    tcase_add_test(t, bits_do_not_depend_on_threads);
    tcase_add_test(t, workers_with_a_device_each_do_not_disturb_each_other);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
