/* Products with BF16 inputs: against double sums of inputs rounded by hand, so that what is left is the error of F32 sums; and a
 * device that is back in F32 computes the bits it computed before. */
#include "tests/kernels/cuda_test.h"

static matrix_spec specs[] = {
    {MQ_SCHEME_BF16, 0, 33, 65, 0, 0, 0},      {MQ_SCHEME_F16, 0, 17, 36, 0, 0, 0},
    {MQ_SCHEME_F32, 0, 31, 100, 0, 0, 0},      {MQ_SCHEME_FP8_BLOCK, 0, 130, 140, 65, 100, 77},
    {MQ_SCHEME_MXFP4_ROWS, 0, 9, 64, 0, 0, 0}, {MQ_SCHEME_INT4, 32, 32, 64, 0, 0, 0},
    {MQ_SCHEME_INT4, 64, 16, 192, 0, 0, 0},    {MQ_SCHEME_INT4, 128, 144, 256, 0, 0, 0},
    {MQ_SCHEME_MXFP4, 0, 48, 64, 0, 0, 0},
};
enum { N_SPECS = sizeof specs / sizeof specs[0] };
static const int64_t counts[] = {0, 9, 33, 70};
enum { N_COUNTS = sizeof counts / sizeof counts[0] };

static float rounded(float x)
{
    return mq_bf16_to_f32(mq_f32_to_bf16(x));
}

static void use(mq_precision p)
{
    mq_assert_ok(gpu->set_precision(gpu_dev, p, &err), &err);
    ck_assert_int_eq(gpu->precision(gpu_dev), p);
}

static bool is_packed(const random_matrix *w)
{
    return w->m.scheme == MQ_SCHEME_INT4 || w->m.scheme == MQ_SCHEME_MXFP4;
}

/* Products of BF16 pairs are exact in F32; a chain of k F32 additions mostly errs by far less than k roundings of the sum of
 * magnitudes: 1e-6 of it.  Packed weights are not rounded: codes times scale may take 12 bits. */
static void check_product(const float *y, const float *x, const random_matrix *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < w->m.rows; r++) {
            double sum = 0.0, size = 0.0;
            for (int64_t c = 0; c < w->m.cols; c++) {
                float v = w->wide[r * w->m.cols + c];
                double p = (double)rounded(x[i * w->m.cols + c]) * (double)(is_packed(w) ? v : rounded(v));
                sum += p;
                size += fabs(p);
            }
            double e = fabs((double)y[i * w->m.rows + r] - sum);
            ck_assert_msg(e <= 1e-6 * size, "%s, group %d, %d rows: row %d, output %d: off by %g of %g",
                          mq_scheme_name(w->m.scheme), w->m.group, (int)n, (int)i, (int)r, e, size);
        }
}

START_TEST(products_of_rounded_inputs)
{
    for (int c = 0; c < N_SPECS; c++)
        for (int k = 0; k < N_COUNTS; k++) {
            matrix_spec s = specs[c];
            int64_t n = counts[k], out = n * s.rows;
            random_matrix w = random_matrix_create(s, (uint64_t)c);
            mq_matrix dw = put_matrix(&w, &s);
            float *x = random_floats(n * s.cols, 7), *y = floats(out), *before = floats(out), *after = floats(out);
            float *dx = put_floats(x, n * s.cols), *d[3];
            for (int i = 0; i < 3; i++) {
                d[i] = put_floats(NULL, out);
                use(i == 1 ? MQ_PRECISION_BF16 : MQ_PRECISION_F32);
                mq_assert_ok(gpu->linear(gpu_dev, d[i], dx, &dw, n, &err), &err);
            }
            take(before, d[0], out * 4);
            take(y, d[1], out * 4);
            take(after, d[2], out * 4);
            check_product(y, x, &w, n);
            ck_assert_msg(same_bytes(before, after, out * 4), "F32 after BF16 has other bits");
            drop(dx);
            drop_matrix(&dw);
            free(x);
            free(y);
            free(before);
            free(after);
            random_matrix_free(&w);
        }
}
END_TEST

/* The fixed order: x rounded, weights as stored (F32 ones have 16 bits or more: 2^-17 of each term); a row's bits are its own. */
START_TEST(products_in_the_fixed_order)
{
    static const matrix_spec fixed[] = {{MQ_SCHEME_BF16, 0, 33, 80, 0, 0, 0},  {MQ_SCHEME_F16, 0, 17, 48, 0, 0, 0},
                                        {MQ_SCHEME_F32, 0, 31, 112, 0, 0, 0},  {MQ_SCHEME_FP8_BLOCK, 0, 130, 144, 65, 100, 77},
                                        {MQ_SCHEME_INT4, 64, 32, 128, 0, 0, 0}, {MQ_SCHEME_MXFP4, 0, 16, 64, 0, 0, 0}};
    use(MQ_PRECISION_BF16);
    for (int c = 0; c < 6; c++)
        for (int64_t n = 1; n <= 19; n += 6) { /* 1, 7, 13, 19 */
            matrix_spec s = fixed[c];
            random_matrix w = random_matrix_create(s, (uint64_t)c);
            mq_matrix dw = put_matrix(&w, &s);
            float *x = random_floats(n * s.cols, 7), *y = floats(n * s.rows), *one = floats(s.rows);
            float *dx = put_floats(x, n * s.cols), *dy = put_floats(NULL, n * s.rows);
            mq_assert_ok(gpu->linear_fixed(gpu_dev, dy, dx, &dw, n, &err), &err);
            take(y, dy, n * s.rows * 4);
            for (int64_t i = 0; i < n; i++) {
                float *d1 = put_floats(NULL, s.rows);
                mq_assert_ok(gpu->linear_fixed(gpu_dev, d1, dx + i * s.cols, &dw, 1, &err), &err);
                take(one, d1, s.rows * 4);
                ck_assert_msg(same_bytes(one, y + i * s.rows, s.rows * 4), "%s: row %d of %d has other bits alone",
                              mq_scheme_name(s.scheme), (int)i, (int)n);
                for (int64_t r = 0; r < s.rows; r++) {
                    double sum = 0.0, size = 0.0;
                    for (int64_t k = 0; k < s.cols; k++) {
                        double p = (double)rounded(x[i * s.cols + k]) * (double)w.wide[r * s.cols + k];
                        sum += p;
                        size += fabs(p);
                    }
                    double bound = (s.scheme == MQ_SCHEME_F32 ? 1e-6 + 0x1p-17 : 1e-6) * size;
                    ck_assert_msg(fabs((double)one[r] - sum) <= bound, "%s: row %d, output %d: off by %g of %g",
                                  mq_scheme_name(s.scheme), (int)i, (int)r, fabs((double)one[r] - sum), size);
                }
            }
            drop(dx);
            drop_matrix(&dw);
            free(x);
            free(y);
            free(one);
            random_matrix_free(&w);
        }
    use(MQ_PRECISION_F32);
}
END_TEST

/* want [n, m] += sum over t of a [t, n] b [t, m], size the sum of magnitudes. */
static void outer(double *want, double *size, const float *a, const float *b, int64_t rows, int64_t n, int64_t m)
{
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < m; j++) {
                double p = (double)a[t * n + i] * (double)b[t * m + j];
                want[i * m + j] += p;
                size[i * m + j] += fabs(p);
            }
}

/* sqrt(weight) x or weight x, rounded to BF16. */
static float *weighed(const float *x, const float *weight, bool root, int64_t rows, int64_t cols)
{
    float *out = floats(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        float w = weight ? weight[i / cols] : 1.0f;
        out[i] = rounded((root ? sqrtf(w) : w) * x[i]);
    }
    return out;
}

/* Lower triangle of gram, or all of cross, onto what stands there; x [rows, cols], y [rows, y_cols] (NULL: gram). */
static void check_moment(const float *x, const float *y, const float *weight, int64_t rows, int64_t cols, int64_t y_cols)
{
    int64_t count = cols * y_cols;
    float *g = random_floats(count, 3), *got = floats(count);
    float *a = weighed(x, weight, !y, rows, cols), *b = weighed(y ? y : x, y ? NULL : weight, !y, rows, y_cols);
    double *want = calloc((size_t)count, sizeof *want), *size = calloc((size_t)count, sizeof *size);
    float *dg = put_floats(g, count), *dx = put_floats(x, rows * cols), *dw = weight ? put_floats(weight, rows) : NULL;
    float *dy = y ? put_floats(y, rows * y_cols) : NULL;
    if (y)
        mq_assert_ok(gpu->cross(gpu_dev, dg, dx, dy, dw, rows, cols, y_cols, &err), &err);
    else
        mq_assert_ok(gpu->gram(gpu_dev, dg, dx, dw, rows, cols, &err), &err);
    take(got, dg, count * 4);
    outer(want, size, a, b, rows, cols, y_cols);
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < y_cols; j++) {
            int64_t at = i * y_cols + j;
            bool is_left = !y && j > i; /* alone */
            double sum = (double)g[at] + (is_left ? 0.0 : want[at]), most = fabs((double)g[at]) + size[at];
            ck_assert_msg(fabs((double)got[at] - sum) <= (is_left ? 0.0 : 1e-6 * most), "%s: [%d][%d] is %g, expected %g",
                          y ? "cross" : "gram", (int)i, (int)j, (double)got[at], sum);
        }
    drop(dx);
    if (dy)
        drop(dy);
    if (dw)
        drop(dw);
    free(g);
    free(got);
    free(a);
    free(b);
    free(want);
    free(size);
}

START_TEST(moments_of_rounded_inputs)
{
    static const int64_t cols[] = {1, 33, 130};
    enum { ROWS = 37 };
    float *weight = random_floats(ROWS, 2);
    for (int i = 0; i < ROWS; i++)
        weight[i] = i % 5 ? fabsf(weight[i]) : 0.0f;
    use(MQ_PRECISION_BF16);
    for (int c = 0; c < 3; c++) {
        float *x = random_floats(ROWS * cols[c], 1), *y = random_floats(ROWS * 29, 5);
        check_moment(x, NULL, weight, ROWS, cols[c], cols[c]);
        check_moment(x, NULL, NULL, ROWS, cols[c], cols[c]);
        check_moment(x, y, weight, ROWS, cols[c], 29);
        check_moment(x, y, NULL, ROWS, cols[c], 29);
        free(x);
        free(y);
    }
    use(MQ_PRECISION_F32);
    free(weight);
}
END_TEST

/* Several panels of rows: 1030 columns, one row of ones, so that every element is exact. */
START_TEST(a_moment_in_several_panels)
{
    enum { COLS = 1030 };
    float *x = floats(COLS), *g = calloc((size_t)COLS * COLS, sizeof *g);
    for (int i = 0; i < COLS; i++)
        x[i] = (float)(i % 100);
    float *dx = put_floats(x, COLS), *dg = put_floats(g, (int64_t)COLS * COLS);
    use(MQ_PRECISION_BF16);
    mq_assert_ok(gpu->gram(gpu_dev, dg, dx, NULL, 1, COLS, &err), &err);
    use(MQ_PRECISION_F32);
    take(g, dg, (int64_t)COLS * COLS * 4);
    for (int i = 0; i < COLS; i++)
        for (int j = 0; j < COLS; j++)
            ck_assert_msg(g[i * COLS + j] == (j <= i ? x[i] * x[j] : 0.0f), "[%d][%d] is %g", i, j, (double)g[i * COLS + j]);
    drop(dx);
    free(x);
    free(g);
}
END_TEST

START_TEST(the_cpu_computes_in_f32_alone)
{
    mq_assert_ok(cpu->set_precision(cpu_dev, MQ_PRECISION_F32, &err), &err);
    ck_assert_int_eq(cpu->set_precision(cpu_dev, MQ_PRECISION_BF16, &err), MQ_E_UNSUPPORTED);
    ck_assert_str_eq(err.text, "cpu: products in BF16, expected F32");
    ck_assert_int_eq(cpu->precision(cpu_dev), MQ_PRECISION_F32);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_bf16");
    TCase *t = tcase_create("all");
    tcase_add_test(t, products_of_rounded_inputs);
    tcase_add_test(t, products_in_the_fixed_order);
    tcase_add_test(t, moments_of_rounded_inputs);
    tcase_add_test(t, a_moment_in_several_panels);
    tcase_add_test(t, the_cpu_computes_in_f32_alone);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
