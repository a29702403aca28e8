/* Both products against a double-precision loop over the widened weights, for every scheme around every edge; the
 * fixed one bit for bit across instruction sets, rows, threads and neighbours. */
#include <math.h>
#include <stdio.h>

#include "kernels/cpu/cpu.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *k;

static const matrix_spec specs[] = {
    {MQ_SCHEME_BF16, 0, 1, 1, 0, 0, 0},
    {MQ_SCHEME_BF16, 0, 3, 15, 0, 0, 0},
    {MQ_SCHEME_BF16, 0, 17, 16, 0, 0, 0},
    {MQ_SCHEME_BF16, 0, 16, 17, 0, 0, 0},
    {MQ_SCHEME_BF16, 0, 33, 63, 0, 0, 0},
    {MQ_SCHEME_BF16, 0, 24, 64, 0, 0, 0},
    {MQ_SCHEME_BF16, 0, 300, 100, 0, 0, 0},
    {MQ_SCHEME_F16, 0, 1, 17, 0, 0, 0},
    {MQ_SCHEME_F16, 0, 19, 100, 0, 0, 0},
    {MQ_SCHEME_F32, 0, 3, 1, 0, 0, 0},
    {MQ_SCHEME_F32, 0, 31, 129, 0, 0, 0},
    {MQ_SCHEME_FP8_BLOCK, 0, 1, 1, 1, 127, 127},
    {MQ_SCHEME_FP8_BLOCK, 0, 17, 100, 17, 0, 0},
    {MQ_SCHEME_FP8_BLOCK, 0, 130, 300, 130, 0, 0},
    {MQ_SCHEME_FP8_BLOCK, 0, 60, 257, 20, 120, 3},
    {MQ_SCHEME_FP8_BLOCK, 0, 96, 128, 48, 64, 64},
    {MQ_SCHEME_FP8_BLOCK, 0, 5, 40, 5, 3, 97},
    {MQ_SCHEME_INT4, 32, 16, 64, 0, 0, 0},
    {MQ_SCHEME_INT4, 32, 48, 192, 0, 0, 0},
    {MQ_SCHEME_INT4, 64, 16, 64, 0, 0, 0},
    {MQ_SCHEME_INT4, 64, 32, 1088, 0, 0, 0},
    {MQ_SCHEME_INT4, 64, 512, 256, 0, 0, 0},
    {MQ_SCHEME_INT4, 128, 16, 128, 0, 0, 0},
    {MQ_SCHEME_INT4, 128, 32, 1152, 0, 0, 0},
    {MQ_SCHEME_MXFP4, MQ_GROUP_MXFP4, 16, 64, 0, 0, 0},
    {MQ_SCHEME_MXFP4, MQ_GROUP_MXFP4, 32, 640, 0, 0, 0},
    {MQ_SCHEME_MXFP4_ROWS, 0, 1, 32, 0, 0, 0},
    {MQ_SCHEME_MXFP4_ROWS, 0, 17, 160, 0, 0, 0},
};
enum { N_SPECS = sizeof specs / sizeof specs[0], MAX_N = 64 };
static const int64_t row_counts[] = {0, 1, 2, 3, 7, 8, 9, 64};
static const char *const isas[] = {"scalar", "avx2", "avx512"};

typedef mq_status (*product)(mq_dev *, float *, const float *, const mq_matrix *, int64_t, mq_err *);

/* NULL where the processor does not have it. */
static mq_dev *open_isa(int n_threads, const char *isa)
{
    mq_dev *dev;
    return k->dev_open(&dev, 0, n_threads, isa, NULL) == MQ_OK ? dev : NULL;
}

/* F32 sums of cols products: every term may be off by (cols / 16 + 8) half ulps of the sum of magnitudes; BLAS order is
 * free, so cols. */
static void check_product(product f, mq_dev *dev, const random_matrix *w, const float *x, int64_t n)
{
    int64_t rows = w->m.rows, cols = w->m.cols;
    float *y = malloc((size_t)(n * rows + 1) * sizeof *y);
    y[n * rows] = 42.0f;
    mq_err err;
    mq_assert_ok(f(dev, y, x, &w->m, n, &err), &err);
    mq_assert_ok(k->dev_sync(dev, &err), &err);
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0.0, mag = 0.0;
            for (int64_t c = 0; c < cols; c++) {
                double p = (double)w->wide[r * cols + c] * (double)x[i * cols + c];
                sum += p;
                mag += fabs(p);
            }
            double bound = 6e-8 * (double)(cols + 4) * mag + 1e-30;
            ck_assert_msg(fabs((double)y[i * rows + r] - sum) <= bound, "%s g%d [%d, %d] n %d row %d x %d: %g, expected %g",
                          mq_scheme_name(w->m.scheme), w->m.group, (int)rows, (int)cols, (int)n, (int)r, (int)i,
                          (double)y[i * rows + r], sum);
        }
    ck_assert_msg(y[n * rows] == 42.0f, "wrote past y");
    free(y);
}

static void check_products_of(mq_dev *dev, int spec)
{
    random_matrix w = random_matrix_create(specs[spec], (uint64_t)spec + 1);
    mq_err err;
    mq_assert_ok(mq_matrix_check(&w.m, &err), &err);
    float *x = random_floats(MAX_N * w.m.cols, 77);
    for (size_t j = 0; j < sizeof row_counts / sizeof row_counts[0]; j++) {
        check_product(k->linear_fixed, dev, &w, x, row_counts[j]);
        check_product(k->linear, dev, &w, x, row_counts[j]);
    }
    free(x);
    random_matrix_free(&w);
}

START_TEST(products_equal_the_double_loop)
{
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev = open_isa(2, isas[i]);
        if (!dev)
            continue;
        for (int s = 0; s < N_SPECS; s++)
            check_products_of(dev, s);
        k->dev_close(dev);
    }
}
END_TEST

START_TEST(widening_equals_the_definition_bit_for_bit)
{
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev = open_isa(1, isas[i]);
        if (!dev)
            continue;
        for (int s = 0; s < N_SPECS; s++) {
            random_matrix w = random_matrix_create(specs[s], (uint64_t)s + 100);
            size_t bytes = (size_t)(w.m.rows * w.m.cols) * sizeof(float);
            float *out = malloc(bytes);
            dev->v->widen(&w.m, 0, w.m.rows, out);
            for (int64_t j = 0; j < w.m.rows * w.m.cols; j++)
                ck_assert_msg(out[j] == w.wide[j], "%s %s: element %d", isas[i], mq_scheme_name(w.m.scheme), (int)j);
            int64_t from = w.m.rows > 16 ? 16 : 0; /* a start inside the matrix */
            dev->v->widen(&w.m, from, w.m.rows - from, out);
            for (int64_t j = 0; j < (w.m.rows - from) * w.m.cols; j++)
                ck_assert(out[j] == w.wide[from * w.m.cols + j]);
            free(out);
            random_matrix_free(&w);
        }
        k->dev_close(dev);
    }
}
END_TEST

static void run_fixed(int n_threads, const char *isa, float *y, const float *x, const mq_matrix *w, int64_t n)
{
    mq_err err;
    mq_dev *dev = open_isa(n_threads, isa);
    mq_assert_ok(k->linear_fixed(dev, y, x, w, n, &err), &err);
    k->dev_close(dev);
}

START_TEST(fixed_product_has_one_set_of_bits)
{
    static const int threads[] = {1, 2, 8};
    float want[MAX_N * 512], got[MAX_N * 512];
    for (int s = 0; s < N_SPECS; s++) {
        random_matrix w = random_matrix_create(specs[s], (uint64_t)s + 200);
        float *x = random_floats(MAX_N * w.m.cols, 78);
        run_fixed(1, "scalar", want, x, &w.m, MAX_N);
        for (size_t i = 0; i < 3; i++) {
            mq_dev *dev = open_isa(1, isas[i]);
            if (!dev)
                continue;
            k->dev_close(dev);
            for (size_t t = 0; t < 3; t++)
                for (size_t j = 0; j < sizeof row_counts / sizeof row_counts[0]; j++) {
                    /* the same activation row at another place, among other neighbours */
                    int64_t n = row_counts[j], first = n < MAX_N ? 3 : 0;
                    run_fixed(threads[t], isas[i], got, x + first * w.m.cols, &w.m, n);
                    ck_assert_msg(!memcmp(got, want + first * w.m.rows, (size_t)(n * w.m.rows) * sizeof *got),
                                  "%s g%d [%d, %d], %s, %d threads, n %d", mq_scheme_name(w.m.scheme), w.m.group,
                                  (int)w.m.rows, (int)w.m.cols, isas[i], threads[t], (int)n);
                }
        }
        free(x);
        random_matrix_free(&w);
    }
}
END_TEST

START_TEST(large_product_does_not_depend_on_threads)
{
    static const matrix_spec big[] = {{MQ_SCHEME_BF16, 0, 700, 384, 0, 0, 0}, {MQ_SCHEME_INT4, 64, 512, 256, 0, 0, 0}};
    for (int s = 0; s < 2; s++) {
        random_matrix w = random_matrix_create(big[s], 5);
        float *x = random_floats(600 * w.m.cols, 79);
        size_t bytes = (size_t)(600 * w.m.rows) * sizeof(float);
        float *one = malloc(bytes), *many = malloc(bytes);
        for (int t = 1; t <= 8; t = t == 2 ? 8 : t + 1) {
            mq_err err;
            mq_dev *dev = open_isa(t, NULL);
            mq_assert_ok(k->linear(dev, t == 1 ? one : many, x, &w.m, 600, &err), &err);
            k->dev_close(dev);
            ck_assert(t == 1 || !memcmp(one, many, bytes));
        }
        free(one);
        free(many);
        free(x);
        random_matrix_free(&w);
    }
}
END_TEST

START_TEST(every_e4m3_code_and_e8m0_scale)
{
    uint8_t codes[256];
    float scale[2] = {0.5f, 0.5f}, x[256] = {0}, y[1];
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    mq_matrix m = {.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 1, .cols = 256, .data = codes, .scale = scale, .seg_rows = 1};
    codes[0x7f] = codes[0xff] = 0;
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev = open_isa(1, isas[i]);
        if (!dev)
            continue;
        for (int c = 0; c < 256; c++) {
            x[c] = 1.0f;
            ck_assert(k->linear_fixed(dev, y, x, &m, 1, NULL) == MQ_OK);
            ck_assert(y[0] == mq_e4m3_to_f32(codes[c]) * 0.5f);
            x[c] = 0.0f;
        }
        uint8_t nan_code = 0x7f;
        mq_matrix bad = {.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 1, .cols = 1, .data = &nan_code, .scale = scale, .seg_rows = 1};
        ck_assert(k->linear_fixed(dev, y, x, &bad, 1, NULL) == MQ_OK);
        ck_assert(isnan(y[0]));
        uint8_t row[16], e8m0;
        memset(row, 0x22, sizeof row); /* 1.0 everywhere */
        mq_matrix mx = {.scheme = MQ_SCHEME_MXFP4_ROWS, .rows = 1, .cols = 32, .data = row, .scale = &e8m0};
        x[5] = 1.0f;
        for (int b = 0; b < 256; b++) {
            e8m0 = (uint8_t)b;
            ck_assert(k->linear_fixed(dev, y, x, &mx, 1, NULL) == MQ_OK);
            ck_assert(b == 255 ? isnan(y[0]) : y[0] == mq_e8m0_to_f32((uint8_t)b));
        }
        x[5] = 0.0f;
        k->dev_close(dev);
    }
}
END_TEST

START_TEST(device_names_and_refusals)
{
    mq_err err;
    mq_dev *dev;
    mq_assert_fails(k->dev_open(&dev, 0, 1, "sse9", &err), MQ_E_ARG, &err, "instruction set 'sse9'");
    ck_assert_ptr_null(dev);
    mq_assert_fails(k->dev_open(&dev, 1, 1, NULL, &err), MQ_E_DEVICE, &err, "only cpu 0");
    mq_assert_ok(k->dev_open(&dev, 0, 2, "scalar", &err), &err);
    ck_assert_str_eq(k->dev_name(dev), "cpu, 2 threads, scalar");
    char *p;
    mq_assert_ok(k->alloc(dev, (void **)&p, 100, &err), &err);
    ck_assert_uint_eq((uintptr_t)p % 64, 0);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(p[i], 0);
    char text[4] = "abc", back[4];
    mq_assert_ok(k->upload(dev, p, text, 4, &err), &err);
    mq_assert_ok(k->download(dev, back, p, 4, &err), &err);
    ck_assert_str_eq(back, "abc");
    k->release(dev, p);
    mq_assert_fails(k->alloc(dev, (void **)&p, INT64_MAX, &err), MQ_E_NOMEM, &err, "out of memory");
    k->dev_close(dev);
    k->dev_close(NULL);
    ck_assert_ptr_null(mq_kernels_find("tpu"));
    ck_assert_int_ge(mq_cuda_count(), 0);
    ck_assert(!mq_cuda_name(1000, text, sizeof text));
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("linear");
    TCase *t = tcase_create("cpu");
    tcase_add_test(t, products_equal_the_double_loop);
    tcase_add_test(t, widening_equals_the_definition_bit_for_bit);
    tcase_add_test(t, fixed_product_has_one_set_of_bits);
    tcase_add_test(t, large_product_does_not_depend_on_threads);
    tcase_add_test(t, every_e4m3_code_and_e8m0_scale);
    tcase_add_test(t, device_names_and_refusals);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
