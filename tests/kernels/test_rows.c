/* Norm, SwiGLU, routing, embedding, gather, columns, scatter and add against plain loops; ties and hostile values. */
#include <math.h>

#include "kernels/kernels.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *k;
static const char *const isas[] = {"scalar", "avx2", "avx512"};
static const int64_t widths[] = {1, 7, 8, 15, 16, 17, 64, 100, 600};
enum { N_WIDTHS = sizeof widths / sizeof widths[0], N = 5 };

/* Run body on every instruction set. */
static void each_isa(void (*body)(mq_dev *dev))
{
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev;
        if (k->dev_open(&dev, 0, 2, isas[i], NULL) != MQ_OK)
            continue;
        body(dev);
        k->dev_close(dev);
    }
}

static void check_norm(mq_dev *dev)
{
    for (int c = 0; c < N_WIDTHS; c++) {
        int64_t cols = widths[c];
        float *x = random_floats(N * cols, 1), *w = random_floats(cols, 2), *y = random_floats(N * cols, 3);
        ck_assert(k->rmsnorm(dev, y, x, w, 1e-6, N, cols, NULL) == MQ_OK);
        for (int64_t i = 0; i < N; i++) {
            double sum = 0.0;
            for (int64_t j = 0; j < cols; j++)
                sum += (double)x[i * cols + j] * (double)x[i * cols + j];
            double r = 1.0 / sqrt(sum / (double)cols + 1e-6);
            for (int64_t j = 0; j < cols; j++) {
                double want = (double)x[i * cols + j] * r * (double)w[j];
                ck_assert(fabs((double)y[i * cols + j] - want) <= 2e-7 * fabs(want));
            }
        }
        ck_assert(k->rmsnorm(dev, x, x, w, 1e-6, N, cols, NULL) == MQ_OK); /* in place */
        ck_assert(!memcmp(x, y, (size_t)(N * cols) * sizeof *x));
        free(x);
        free(w);
        free(y);
    }
}

START_TEST(norm_divides_by_the_root_mean_square)
{
    each_isa(check_norm);
}
END_TEST

static void check_swiglu(mq_dev *dev)
{
    for (int c = 0; c < N_WIDTHS; c++) {
        int64_t w = widths[c];
        float *g = random_floats(N * w, 1), *u = random_floats(N * w, 2), *h = random_floats(N * w, 3);
        float *both = random_floats(2 * N * w, 4), *h2 = random_floats(N * w, 5);
        g[0] = 100.0f;
        if (w > 4) {
            g[1] = -100.0f;
            g[2] = 0.0f;
            g[3] = -20.0f;
        }
        ck_assert(k->swiglu(dev, h, g, u, false, N, w, NULL) == MQ_OK);
        for (int64_t i = 0; i < N * w; i++) {
            double want = (double)g[i] / (1.0 + exp(-(double)g[i])) * (double)u[i];
            ck_assert_msg(fabs((double)h[i] - want) <= 5e-7 * fabs(want) + 1e-35, "silu(%g): %g, expected %g",
                          (double)g[i], (double)h[i], want);
        }
        if (w % 8 == 0) {
            for (int64_t i = 0; i < N; i++)
                for (int64_t j = 0; j < w; j++) {
                    both[i * 2 * w + mq_gate_up_row(j, 0)] = g[i * w + j];
                    both[i * 2 * w + mq_gate_up_row(j, 1)] = u[i * w + j];
                }
            ck_assert(k->swiglu(dev, h2, both, NULL, true, N, w, NULL) == MQ_OK);
            ck_assert(!memcmp(h, h2, (size_t)(N * w) * sizeof *h));
        }
        free(g);
        free(u);
        free(h);
        free(h2);
        free(both);
    }
}

START_TEST(swiglu_in_both_layouts)
{
    each_isa(check_swiglu);
}
END_TEST

START_TEST(route_by_hand)
{
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 1, NULL, NULL) == MQ_OK);
    /* scores 0.5 everywhere but expert 3 (bias decides the choice, not the coefficient) */
    float logits[5] = {0, 0, 0, 1, 0}, bias[5] = {0, 0.25f, 0, -1, 0.25f}, coef[2], margin;
    int32_t ids[2];
    ck_assert(k->route(dev, ids, coef, &margin, logits, bias, 1, 5, 2, true, 3.0f, NULL) == MQ_OK);
    ck_assert_int_eq(ids[0], 1);
    ck_assert_int_eq(ids[1], 4);
    ck_assert(coef[0] == 1.5f && coef[1] == 1.5f);
    ck_assert(margin == 0.25f);
    ck_assert(k->route(dev, ids, coef, NULL, logits, bias, 1, 5, 2, false, 1.0f, NULL) == MQ_OK);
    ck_assert(coef[0] == 0.5f && coef[1] == 0.5f);
    k->dev_close(dev);
}
END_TEST

START_TEST(route_ties_go_to_the_lower_expert)
{
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 1, NULL, NULL) == MQ_OK);
    float logits[8] = {1, 2, 1, 2, 1, 2, 1, 1}, bias[8] = {0}, coef[8], margin;
    int32_t ids[8];
    ck_assert(k->route(dev, ids, coef, &margin, logits, bias, 1, 8, 4, true, 1.0f, NULL) == MQ_OK);
    static const int32_t want[4] = {0, 1, 3, 5};
    ck_assert(!memcmp(ids, want, sizeof want));
    ck_assert(margin == 0.0f);
    ck_assert(k->route(dev, ids, coef, &margin, logits, bias, 1, 8, 8, true, 1.0f, NULL) == MQ_OK);
    for (int e = 0; e < 8; e++)
        ck_assert_int_eq(ids[e], e);
    ck_assert(isinf(margin));
    k->dev_close(dev);
}
END_TEST

START_TEST(route_equals_a_full_sort)
{
    enum { ROWS = 50, EXPERTS = 256, K = 8 };
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 2, NULL, NULL) == MQ_OK);
    float *logits = random_floats(ROWS * EXPERTS, 1), *bias = random_floats(EXPERTS, 2), coef[ROWS * K], margin[ROWS];
    int32_t ids[ROWS * K];
    logits[7] = NAN; /* never chosen over a number */
    ck_assert(k->route(dev, ids, coef, margin, logits, bias, ROWS, EXPERTS, K, true, 2.5f, NULL) == MQ_OK);
    for (int i = 0; i < ROWS; i++) {
        double sum = 0.0;
        for (int j = 0; j < K; j++) {
            int32_t e = ids[i * K + j];
            ck_assert(e >= 0 && e < EXPERTS && (j == 0 || e > ids[i * K + j - 1]));
            sum += 1.0 / (1.0 + exp(-(double)logits[i * EXPERTS + e]));
            float choice = 1.0f / (1.0f + expf(-logits[i * EXPERTS + e])) + bias[e];
            int larger = 0;
            for (int o = 0; o < EXPERTS; o++)
                larger += 1.0f / (1.0f + expf(-logits[i * EXPERTS + o])) + bias[o] > choice;
            ck_assert_int_lt(larger, K);
        }
        for (int j = 0; j < K; j++) {
            double s = 1.0 / (1.0 + exp(-(double)logits[i * EXPERTS + ids[i * K + j]]));
            ck_assert(fabs((double)coef[i * K + j] - 2.5 * s / sum) < 1e-6);
        }
        ck_assert(margin[i] > 0.0f);
    }
    free(logits);
    free(bias);
    k->dev_close(dev);
}
END_TEST

static void check_embed(mq_dev *dev)
{
    static const matrix_spec specs[] = {{MQ_SCHEME_BF16, 0, 40, 33, 0, 0, 0},
                                        {MQ_SCHEME_FP8_BLOCK, 0, 40, 130, 40, 100, 5},
                                        {MQ_SCHEME_INT4, 64, 48, 64, 0, 0, 0}};
    static const int32_t ids[4] = {3, 39, 0, 3};
    for (int c = 0; c < 3; c++) {
        random_matrix w = random_matrix_create(specs[c], 1);
        float *out = random_floats(4 * w.m.cols, 1);
        ck_assert(k->embed(dev, out, &w.m, ids, 4, NULL) == MQ_OK);
        for (int i = 0; i < 4; i++)
            ck_assert(!memcmp(out + i * w.m.cols, w.wide + ids[i] * w.m.cols, (size_t)w.m.cols * sizeof *out));
        free(out);
        random_matrix_free(&w);
    }
}

START_TEST(embedding_widens_the_rows_asked_for)
{
    each_isa(check_embed);
}
END_TEST

START_TEST(columns_are_put_where_they_belong)
{
    enum { ROWS = 3, Y_COLS = 7 };
    mq_dev *dev;
    float y[ROWS * Y_COLS] = {0}, x[ROWS * 2] = {1, 2, 3, 4, 5, 6};
    ck_assert(k->dev_open(&dev, 0, 2, NULL, NULL) == MQ_OK);
    ck_assert(k->put_cols(dev, y, Y_COLS, 5, x, ROWS, 2, NULL) == MQ_OK);
    ck_assert(k->put_cols(dev, y, Y_COLS, 0, x, ROWS, 1, NULL) == MQ_OK); /* x is [3, 1] here */
    ck_assert(k->put_cols(dev, y, Y_COLS, 3, x, 0, 4, NULL) == MQ_OK);
    for (int i = 0; i < ROWS; i++) {
        const float *row = y + i * Y_COLS;
        ck_assert(row[0] == x[i] && row[5] == x[2 * i] && row[6] == x[2 * i + 1]);
        for (int c = 1; c < 5; c++)
            ck_assert(row[c] == 0.0f);
    }
    k->dev_close(dev);
}
END_TEST

START_TEST(gather_scatter_and_add)
{
    mq_dev *dev;
    ck_assert(k->dev_open(&dev, 0, 2, NULL, NULL) == MQ_OK);
    float src[6] = {1, 2, 3, 4, 5, 6}, out[4], y[6] = {10, 20, 30, 40, 50, 60}, coef[2] = {2, -1};
    int32_t index[2] = {2, 0};
    ck_assert(k->gather(dev, out, src, index, 2, 2, NULL) == MQ_OK);
    static const float gathered[4] = {5, 6, 1, 2}, scattered[6] = {9, 18, 30, 40, 60, 72};
    ck_assert(!memcmp(out, gathered, sizeof gathered));
    ck_assert(k->scatter_add(dev, y, out, index, coef, 2, 2, NULL) == MQ_OK);
    ck_assert(!memcmp(y, scattered, sizeof scattered));
    ck_assert(k->add(dev, y, scattered, 6, NULL) == MQ_OK);
    for (int i = 0; i < 6; i++)
        ck_assert(y[i] == 2 * scattered[i]);
    ck_assert(k->add(dev, y, scattered, 0, NULL) == MQ_OK);
    ck_assert(k->gather(dev, out, src, index, 0, 2, NULL) == MQ_OK);
    static const int32_t columns[3] = {1, 0, 1};
    static const float picked[3] = {2, 3, 6};
    ck_assert(k->pick(dev, out, src, columns, 3, 2, NULL) == MQ_OK);
    ck_assert(!memcmp(out, picked, sizeof picked));
    k->dev_close(dev);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("rows");
    TCase *t = tcase_create("cpu");
    tcase_add_test(t, norm_divides_by_the_root_mean_square);
    tcase_add_test(t, swiglu_in_both_layouts);
    tcase_add_test(t, route_by_hand);
    tcase_add_test(t, route_ties_go_to_the_lower_expert);
    tcase_add_test(t, route_equals_a_full_sort);
    tcase_add_test(t, embedding_widens_the_rows_asked_for);
    tcase_add_test(t, columns_are_put_where_they_belong);
    tcase_add_test(t, gather_scatter_and_add);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
