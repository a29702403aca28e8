/* Losses, least-squares scales and coordinate descent against double loops and by hand; rows that must stay; threads.
 *
 * F32 and double part ways where a code or a scale is within rounding of a tie, so results are not compared element by element but by
 * what they promise: no single change of a code, and no step of the scales that double finds, makes the loss smaller by
 * more than rounding. */
#include "kernels/cpu/cpu.h"
#include "tests/maker/calibration_data.h"

static const mq_kernels *k;

static const struct {
    int64_t rows, cols;
    int group;
} shapes[] = {{1, 32, 32},   {7, 64, 32},  {16, 64, 64},   {17, 96, 32},  {33, 128, 128},
              {5, 160, 32},  {40, 192, 64}, {31, 256, 64}, {65, 256, 128}, {300, 96, 32}, {1030, 64, 32}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* In BF16 products are those of parts with 16 bits, and losses are what large terms leave of each other. */
static double slack = 1.0;

/* Random weights with nearest codes; the moment as doubles of what g holds. */
typedef struct problem {
    int64_t rows, cols;
    int group;
    double *h;
    float *g, *w, *scale, *loss;
    uint8_t *codes;
} problem;

static problem problem_create(int64_t rows, int64_t cols, int group, uint64_t seed)
{
    problem p = {.rows = rows, .cols = cols, .group = group, .h = random_moment(cols, 2 * cols, seed + 1)};
    p.g = lower_floats(p.h, cols);
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j <= i; j++)
            p.h[i * cols + j] = p.h[j * cols + i] = (double)p.g[i * cols + j];
    p.w = random_floats(rows * cols, seed + 2);
    p.scale = simple_scales(p.w, rows, cols, group);
    p.loss = malloc((size_t)rows * sizeof *p.loss);
    p.codes = malloc((size_t)(rows * cols));
    for (int64_t i = 0; i < rows * cols; i++)
        p.codes[i] = (uint8_t)(code_of((double)p.w[i], (double)p.scale[i / group]) + 8);
    return p;
}

static void problem_free(problem *p)
{
    free(p->h);
    free(p->g);
    free(p->w);
    free(p->scale);
    free(p->loss);
    free(p->codes);
}

/* e [cols] = D of a row; returns D h D^T. */
static double row_loss(const problem *p, int64_t row, double *e)
{
    for (int64_t c = 0; c < p->cols; c++)
        e[c] = error_of(p->w, p->scale, p->codes, row * p->cols + c, p->group);
    return quadratic_form(e, p->h, p->cols);
}

static void check_losses(mq_dev *dev)
{
    static const int64_t many[] = {300, 513, 600};
    for (int s = 0; s < N_SHAPES + 3; s++) {
        problem p = s < N_SHAPES ? problem_create(shapes[s].rows, shapes[s].cols, shapes[s].group, 1)
                                 : problem_create(many[s - N_SHAPES], 544, 32, 1);
        float *norm = malloc((size_t)p.rows * sizeof *norm);
        double *e = malloc((size_t)p.cols * sizeof *e);
        ck_assert(k->quant_loss(dev, p.loss, norm, p.codes, p.w, p.scale, p.g, p.rows, p.cols, p.group, NULL) == MQ_OK);
        for (int64_t r = 0; r < p.rows; r += s < N_SHAPES ? 1 : 97) {
            double want = row_loss(&p, r, e);
            ck_assert_msg(fabs((double)p.loss[r] - want) <= 2e-5 * slack * want, "row %lld: %g, %g", (long long)r, (double)p.loss[r], want);
            for (int64_t c = 0; c < p.cols; c++)
                e[c] = (double)p.w[r * p.cols + c];
            want = quadratic_form(e, p.h, p.cols);
            ck_assert_msg(fabs((double)norm[r] - want) <= 2e-5 * slack * want, "row %lld: %g, %g", (long long)r, (double)norm[r], want);
        }
        ck_assert(k->quant_loss(dev, norm, NULL, p.codes, p.w, p.scale, p.g, p.rows, p.cols, p.group, NULL) == MQ_OK);
        ck_assert(!memcmp(norm, p.loss, (size_t)p.rows * sizeof *norm));
        free(norm);
        free(e);
        problem_free(&p);
    }
}

START_TEST(loss_and_norm_are_quadratic_forms)
{
    on_each_isa(k, check_losses);
}
END_TEST

/* One row of 32 columns, scale 1, under a moment with one pair of neighbours. */
static void tiny(float g[1024], float diag, float pair)
{
    for (int i = 0; i < 1024; i++)
        g[i] = i % 32 > i / 32 ? NAN : i % 33 == 0 ? diag : 0.0f;
    g[32] = pair;
}

static void descend_by_hand(mq_dev *dev)
{
    float g[1024], w[32] = {0.4f, 0.4f, 9.0f}, scale[1] = {1.0f}, loss[1], sum[1];
    uint8_t codes[32];
    memset(codes, 8, sizeof codes);
    tiny(g, 1.0f, 0.75f);
    codes[3] = 11; /* a code that is wrong by three */
    /* Column 0: 0.4 + 0.75 * 0.4 = 0.7 -> 1; then column 1: 0.4 - 0.75 * 0.6 = -0.05 -> 0; column 2 is clamped at 7. */
    ck_assert(k->descend(dev, codes, loss, w, scale, g, 1, 1, 32, 32, NULL) == MQ_OK);
    ck_assert_int_eq(codes[0], 9);
    ck_assert_int_eq(codes[1], 8);
    ck_assert_int_eq(codes[2], 15);
    ck_assert_int_eq(codes[3], 8);
    ck_assert_float_eq_tol(loss[0], 0.36f + 0.16f - 2.0f * 0.75f * 0.6f * 0.4f + 4.0f, 1e-5f);
    ck_assert(k->quant_loss(dev, sum, NULL, codes, w, scale, g, 1, 32, 32, NULL) == MQ_OK);
    ck_assert_float_eq_tol(loss[0], sum[0], 1e-5f);
    codes[0] = codes[2] = 8;
    g[0] = 0.0f; /* a dead column keeps its code */
    g[32] = 0.0f;
    ck_assert(k->descend(dev, codes, NULL, w, scale, g, 3, 1, 32, 32, NULL) == MQ_OK);
    ck_assert_int_eq(codes[0], 8);
    ck_assert_int_eq(codes[2], 15);
    g[0] = 1e-42f; /* and so does one that is as good as dead */
    w[0] = 2.4f;
    ck_assert(k->descend(dev, codes, NULL, w, scale, g, 3, 1, 32, 32, NULL) == MQ_OK);
    ck_assert_int_eq(codes[0], 8);
    w[0] = 0.4f;
    ck_assert(k->descend(dev, codes, loss, w, scale, g, 0, 1, 32, 32, NULL) == MQ_OK); /* no pass: the loss alone */
    ck_assert_float_eq_tol(loss[0], 0.16f + 4.0f, 1e-5f);
}

START_TEST(descent_by_hand)
{
    on_each_isa(k, descend_by_hand);
}
END_TEST

static void check_descent(mq_dev *dev)
{
    for (int s = 0; s < N_SHAPES; s++) {
        problem p = problem_create(shapes[s].rows, shapes[s].cols, shapes[s].group, 3);
        int64_t n = p.cols;
        double *e = malloc((size_t)n * sizeof *e), *before = malloc((size_t)p.rows * sizeof *before), fell = 0.0, all = 0.0;
        for (int64_t r = 0; r < p.rows; r++)
            all += before[r] = row_loss(&p, r, e);
        ck_assert(k->descend(dev, p.codes, p.loss, p.w, p.scale, p.g, 1000, p.rows, n, p.group, NULL) == MQ_OK);
        for (int64_t r = 0; r < p.rows; r++) {
            double now = row_loss(&p, r, e);
            ck_assert_msg(now <= before[r] * (1.0 + 1e-6), "row %lld: %g after %g", (long long)r, now, before[r]);
            ck_assert_msg(fabs((double)p.loss[r] - now) <= 2e-4 * slack * now, "row %lld: %g, %g", (long long)r, (double)p.loss[r], now);
            fell += before[r] - now;
            for (int64_t c = 0; c < n; c++) {
                double y = 0.0, step = (double)p.scale[(r * n + c) / p.group];
                for (int64_t j = 0; j < n; j++)
                    y += e[j] * p.h[c * n + j];
                int q = (int)p.codes[r * n + c] - 8;
                for (int way = -1; way <= 1; way += 2) {
                    double change = step * step * p.h[c * n + c] - 2.0 * way * step * y;
                    ck_assert_msg(q + way < -8 || q + way > 7 || change >= -1e-4 * now - 1e-4 * step * step * p.h[c * n + c],
                                  "row %lld column %lld: %+d changes the loss of %g by %g", (long long)r, (long long)c, way, now,
                                  change);
                }
            }
        }
        ck_assert_msg(fell > 0.1 * all, "descent took %g of %g", fell, all);
        free(e);
        free(before);
        problem_free(&p);
    }
}

START_TEST(after_descent_no_code_can_change_alone)
{
    on_each_isa(k, check_descent);
}
END_TEST

static void refit_by_hand(mq_dev *dev)
{
    float g[1024], w[32] = {7.5f, -7.5f}, scale[1] = {1.0f}, loss[1];
    uint8_t codes[32];
    memset(codes, 8, sizeof codes);
    codes[0] = 15;
    codes[1] = 1;
    tiny(g, 2.0f, -1.0f);
    /* 7 s against 7.5 in both columns: s = 1.0714.. -> 1.0703125 in BF16; the loss is (2 + 2 + 2) * 0.0078125^2 */
    ck_assert(k->refit_scales(dev, scale, loss, codes, w, g, 1, 32, 32, NULL) == MQ_OK);
    ck_assert(scale[0] == 1.0703125f);
    ck_assert_float_eq_tol(loss[0], 6.0f * 0.0078125f * 0.0078125f, 1e-6f);
    ck_assert(k->refit_scales(dev, scale, NULL, codes, w, g, 1, 32, 32, NULL) == MQ_OK);
    ck_assert_msg(scale[0] == 1.0703125f, "nothing to win: the scale stays");
    scale[0] = 0.5f; /* a step of at most a fifth */
    ck_assert(k->refit_scales(dev, scale, NULL, codes, w, g, 1, 32, 32, NULL) == MQ_OK);
    ck_assert(scale[0] == 0.6015625f);
    scale[0] = -1.0f;
    codes[0] = 1;
    codes[1] = 15;
    ck_assert(k->refit_scales(dev, scale, NULL, codes, w, g, 1, 32, 32, NULL) == MQ_OK);
    ck_assert(scale[0] == -1.0703125f);
    memset(codes, 8, sizeof codes); /* codes that are all zero say nothing about their scale */
    scale[0] = 3.0f;
    ck_assert(k->refit_scales(dev, scale, loss, codes, w, g, 1, 32, 32, NULL) == MQ_OK);
    ck_assert(scale[0] == 3.0f);
    ck_assert_float_eq_tol(loss[0], 6.0f * 7.5f * 7.5f, 1e-3f);
}

START_TEST(refit_by_hand_values)
{
    on_each_isa(k, refit_by_hand);
}
END_TEST

/* Loss of the row's best real scales: the normal equations by Gauss elimination in double. */
static double best_loss(const problem *p, int64_t row)
{
    int64_t n = p->cols, groups = n / p->group, width = groups + 1;
    double *m = calloc((size_t)(groups * width), sizeof *m), *e = malloc((size_t)n * sizeof *e);
    const uint8_t *codes = p->codes + row * n;
    const float *w = p->w + row * n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double a = ((double)codes[i] - 8.0) * p->h[i * n + j];
            m[i / p->group * width + j / p->group] += a * ((double)codes[j] - 8.0);
            m[i / p->group * width + groups] += a * (double)w[j];
        }
    for (int64_t c = 0; c < groups; c++)
        for (int64_t i = 0; i < groups; i++) {
            double f = m[i * width + c] / m[c * width + c];
            for (int64_t j = c; j < width && i != c; j++)
                m[i * width + j] -= f * m[c * width + j];
        }
    for (int64_t c = 0; c < n; c++) {
        int64_t i = c / p->group;
        e[c] = (double)w[c] - m[i * width + groups] / m[i * width + i] * ((double)codes[c] - 8.0);
    }
    double loss = quadratic_form(e, p->h, n);
    free(m);
    free(e);
    return loss;
}

static void check_refit(mq_dev *dev)
{
    for (int s = 0; s < N_SHAPES; s++) {
        problem p = problem_create(shapes[s].rows, shapes[s].cols, shapes[s].group, 5);
        float *old = malloc((size_t)(p.rows * p.cols / p.group) * sizeof *old);
        double *e = malloc((size_t)p.cols * sizeof *e), before = 0.0, after = 0.0, best = 0.0;
        memcpy(old, p.scale, (size_t)(p.rows * p.cols / p.group) * sizeof *old);
        for (int64_t r = 0; r < p.rows; r++) {
            p.loss[r] = (float)row_loss(&p, r, e);
            before += (double)p.loss[r];
            best += best_loss(&p, r);
        }
        float *loss = malloc((size_t)p.rows * sizeof *loss);
        ck_assert(k->refit_scales(dev, p.scale, loss, p.codes, p.w, p.g, p.rows, p.cols, p.group, NULL) == MQ_OK);
        for (int64_t i = 0; i < p.rows * p.cols / p.group; i++) {
            ck_assert(p.scale[i] == mq_bf16_to_f32(mq_f32_to_bf16(p.scale[i])));
            ck_assert(p.scale[i] / old[i] > 0.795f && p.scale[i] / old[i] < 1.205f); /* the limit, rounded to BF16 */
        }
        for (int64_t r = 0; r < p.rows; r++) {
            double now = row_loss(&p, r, e);
            after += now;
            ck_assert_msg(now <= (double)p.loss[r] * (1.0 + 1e-5), "row %lld: %g after %g", (long long)r, now, (double)p.loss[r]);
            ck_assert_msg(fabs((double)loss[r] - now) <= 2e-4 * slack * now, "row %lld: %g, %g", (long long)r, (double)loss[r], now);
        }
        /* BF16 scales, up to a fifth off: all but little of what real ones would win */
        ck_assert_msg(after < before && before - after > 0.6 * (before - best), "%g to %g, best %g", before, after, best);
        free(old);
        free(e);
        free(loss);
        problem_free(&p);
    }
}

START_TEST(refit_wins_most_of_what_least_squares_can)
{
    on_each_isa(k, check_refit);
}
END_TEST

START_TEST(better_rows_are_kept)
{
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 2, NULL, NULL) == MQ_OK);
    uint8_t codes[96], fresh[96];
    float scale[3] = {1, 2, 3}, scale_new[3] = {4, 5, 6}, loss[3] = {1, 1, 1}, loss_new[3] = {0.5f, 1, NAN};
    int64_t n_kept;
    memset(codes, 1, sizeof codes);
    memset(fresh, 2, sizeof fresh);
    ck_assert(k->keep_better(dev, codes, scale, loss, &n_kept, fresh, scale_new, loss_new, 3, 32, 32, NULL) == MQ_OK);
    ck_assert_int_eq(n_kept, 1);
    ck_assert(codes[0] == 2 && codes[31] == 2 && codes[32] == 1 && codes[95] == 1);
    ck_assert(scale[0] == 4.0f && scale[1] == 2.0f && scale[2] == 3.0f);
    ck_assert(loss[0] == 0.5f && loss[1] == 1.0f && loss[2] == 1.0f);
    ck_assert(k->keep_better(dev, codes, scale, loss, NULL, fresh, scale_new, loss_new, 3, 32, 32, NULL) == MQ_OK);
    k->dev_close(dev);
}
END_TEST

/* Every operation that keeps workspace, on rows x cols. */
static void run_all(mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n)
{
    problem p = problem_create(rows, cols, group, 9);
    float *x = random_floats(n * cols, 1), *ones = malloc((size_t)n * sizeof *ones), *a = calloc((size_t)(cols * cols), sizeof *a);
    float *d = calloc((size_t)cols, sizeof *d), *y = malloc((size_t)(n * rows) * sizeof *y);
    int32_t *perm = random_permutation(cols, 1);
    uint16_t *bf16 = calloc((size_t)(rows * cols), sizeof *bf16);
    mq_matrix m = {.scheme = MQ_SCHEME_BF16, .rows = rows, .cols = cols, .data = bf16};
    for (int64_t i = 0; i < n; i++)
        ones[i] = 1.0f;
    ck_assert(k->linear(dev, y, x, &m, n, NULL) == MQ_OK);
    ck_assert(k->gram(dev, p.g, x, ones, n, cols, NULL) == MQ_OK);
    ck_assert(k->cross(dev, a, x, x, ones, n, cols, cols, NULL) == MQ_OK);
    ck_assert(k->factor(dev, a, d, p.g, perm, 1.0f, cols, NULL) == MQ_OK);
    ck_assert(k->ldlq(dev, p.codes, p.loss, p.w, p.scale, a, d, perm, rows, cols, group, NULL) == MQ_OK);
    ck_assert(k->solve(dev, p.w, p.w, a, d, perm, rows, cols, NULL) == MQ_OK);
    ck_assert(k->quant_loss(dev, p.loss, NULL, p.codes, p.w, p.scale, p.g, rows, cols, group, NULL) == MQ_OK);
    ck_assert(k->refit_scales(dev, p.scale, NULL, p.codes, p.w, p.g, rows, cols, group, NULL) == MQ_OK);
    ck_assert(k->descend(dev, p.codes, NULL, p.w, p.scale, p.g, 1, rows, cols, group, NULL) == MQ_OK);
    free(x);
    free(ones);
    free(a);
    free(d);
    free(y);
    free(perm);
    free(bf16);
    problem_free(&p);
}

START_TEST(workspace_stays_below_its_bound)
{
    static const struct {
        int64_t rows, cols, n;
        int group;
    } s[] = {{128, 256, 100, 32}, {32, 32, 9, 32}, {512, 256, 700, 128}, {256, 512, 3, 64}};
    if (strcmp(k->name, "cpu"))
        return; /* another device is another struct */
    for (size_t i = 0; i < sizeof s / sizeof s[0]; i++)
        for (int threads = 1; threads <= 3; threads += 2) {
            mq_dev *dev;
            ck_assert(k->dev_open(&dev, 0, threads, NULL, NULL) == MQ_OK);
            run_all(dev, s[i].rows, s[i].cols, s[i].group, s[i].n);
            run_all(dev, s[i].cols, s[i].rows, s[i].group, s[i].n);
            int64_t held = 0, bound = k->calibration_bytes(dev, s[i].rows, s[i].cols, s[i].group, s[i].n);
            for (int w = 0; w < MQ_WS_COUNT; w++)
                held += dev->ws_bytes[w];
            ck_assert_msg(held <= bound && 3 * held >= bound, "%lld held, bound %lld", (long long)held, (long long)bound);
            k->dev_close(dev);
        }
}
END_TEST

START_TEST(bits_do_not_depend_on_threads)
{
    problem first = problem_create(300, 224, 32, 9);
    for (int threads = 1; threads <= 8; threads++) {
        mq_dev *dev;
        problem p = problem_create(300, 224, 32, 9);
        float loss[3][300];
        static float loss1[3][300];
        ck_assert(k->dev_open(&dev, 0, threads, NULL, NULL) == MQ_OK);
        ck_assert(k->quant_loss(dev, loss[0], NULL, p.codes, p.w, p.scale, p.g, p.rows, p.cols, p.group, NULL) == MQ_OK);
        ck_assert(k->refit_scales(dev, p.scale, loss[1], p.codes, p.w, p.g, p.rows, p.cols, p.group, NULL) == MQ_OK);
        ck_assert(k->descend(dev, p.codes, loss[2], p.w, p.scale, p.g, 2, p.rows, p.cols, p.group, NULL) == MQ_OK);
        if (threads == 1) {
            memcpy(first.codes, p.codes, (size_t)(p.rows * p.cols));
            memcpy(first.scale, p.scale, (size_t)(p.rows * p.cols / p.group) * sizeof *p.scale);
            memcpy(loss1, loss, sizeof loss);
        }
        ck_assert(!memcmp(loss, loss1, sizeof loss));
        ck_assert(!memcmp(first.codes, p.codes, (size_t)(p.rows * p.cols)));
        ck_assert(!memcmp(first.scale, p.scale, (size_t)(p.rows * p.cols / p.group) * sizeof *p.scale));
        problem_free(&p);
        k->dev_close(dev);
    }
    problem_free(&first);
}
END_TEST

int main(void)
{
    const char *precision = getenv("MQ_TEST_PRECISION");
    slack = precision && !strcmp(precision, "bf16") ? 10.0 : 1.0;
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("refine");
    TCase *t = tcase_create("refine");
    tcase_add_test(t, loss_and_norm_are_quadratic_forms);
    tcase_add_test(t, descent_by_hand);
    tcase_add_test(t, after_descent_no_code_can_change_alone);
    tcase_add_test(t, refit_by_hand_values);
    tcase_add_test(t, refit_wins_most_of_what_least_squares_can);
    tcase_add_test(t, better_rows_are_kept);
    tcase_add_test(t, workspace_stays_below_its_bound);
    tcase_add_test(t, bits_do_not_depend_on_threads);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
