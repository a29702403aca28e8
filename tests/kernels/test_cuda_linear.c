/* CUDA against double sums: both products, every scheme; the fixed-order one keeps a row's bits in any company. */
#include "tests/kernels/cuda_test.h"

static matrix_spec specs[] = {
    {MQ_SCHEME_BF16, 0, 33, 65, 0, 0, 0},   {MQ_SCHEME_F16, 0, 1, 31, 0, 0, 0},       {MQ_SCHEME_F32, 0, 32, 1, 0, 0, 0},
    {MQ_SCHEME_F32, 0, 31, 100, 0, 0, 0},   {MQ_SCHEME_FP8_BLOCK, 0, 130, 140, 65, 100, 77},
    {MQ_SCHEME_MXFP4_ROWS, 0, 9, 64, 0, 0, 0}, {MQ_SCHEME_INT4, 32, 32, 64, 0, 0, 0}, {MQ_SCHEME_INT4, 64, 16, 192, 0, 0, 0},
    {MQ_SCHEME_INT4, 128, 16, 256, 0, 0, 0}, {MQ_SCHEME_MXFP4, 0, 48, 64, 0, 0, 0},
};
enum { N_SPECS = sizeof specs / sizeof specs[0] };
static const int64_t counts[] = {0, 1, 7, 8, 9, 33};
enum { N_COUNTS = sizeof counts / sizeof counts[0] };

/* Rows from row0 of y against sums in double; a chain of k fused multiply-adds errs by at most k roundings of the sum of magnitudes, and
 * mostly by far less: 1e-6 of it. */
static void check_product(const float *y, const float *x, const random_matrix *w, int64_t n, int64_t row0)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = row0; r < w->m.rows; r++) {
            double sum = 0.0, size = 0.0;
            for (int64_t c = 0; c < w->m.cols; c++) {
                double p = (double)x[i * w->m.cols + c] * (double)w->wide[r * w->m.cols + c];
                sum += p;
                size += fabs(p);
            }
            double e = fabs((double)y[i * w->m.rows + r] - sum);
            ck_assert_msg(e <= 1e-6 * size, "%s, %d rows: row %d, output %d: off by %g of %g", mq_scheme_name(w->m.scheme),
                          (int)n, (int)i, (int)r, e, size);
        }
}

START_TEST(products_of_every_scheme)
{
    for (int c = 0; c < N_SPECS; c++)
        for (int k = 0; k < N_COUNTS; k++) {
            matrix_spec s = specs[c];
            int64_t n = counts[k];
            random_matrix w = random_matrix_create(s, (uint64_t)c);
            mq_matrix dw = put_matrix(&w, &s);
            float *x = random_floats(n * s.cols, 7), *y = floats(n * s.rows), *z = floats(n * s.rows);
            float *dx = put_floats(x, n * s.cols), *dy = put_floats(NULL, n * s.rows), *dz = put_floats(NULL, n * s.rows);
            mq_assert_ok(gpu->linear(gpu_dev, dy, dx, &dw, n, &err), &err);
            mq_assert_ok(gpu->linear_fixed(gpu_dev, dz, dx, &dw, n, &err), &err);
            take(y, dy, n * s.rows * 4);
            take(z, dz, n * s.rows * 4);
            check_product(y, x, &w, n, 0);
            check_product(z, x, &w, n, 0);
            for (int64_t i = 0; i < n; i++) { /* each row alone */
                float *one = put_floats(NULL, s.rows);
                mq_assert_ok(gpu->linear_fixed(gpu_dev, one, dx + i * s.cols, &dw, 1, &err), &err);
                take(y, one, s.rows * 4);
                ck_assert(same_bytes(y, z + i * s.rows, s.rows * 4));
            }
            drop(dx);
            drop_matrix(&dw);
            free(x);
            free(y);
            free(z);
            random_matrix_free(&w);
        }
}
END_TEST

START_TEST(a_product_in_several_blocks_of_rows)
{
    /* 128 rows of 131072 columns fill a block of widened weights */
    matrix_spec s = {MQ_SCHEME_FP8_BLOCK, 0, 130, 131072, 130, 0, 0};
    enum { N = 9 };
    random_matrix w = random_matrix_create(s, 3);
    mq_matrix dw = put_matrix(&w, &s);
    float *x = random_floats(N * s.cols, 7), *y = floats(N * s.rows), *dx = put_floats(x, N * s.cols);
    float *dy = put_floats(NULL, N * s.rows);
    mq_assert_ok(gpu->linear(gpu_dev, dy, dx, &dw, N, &err), &err);
    take(y, dy, N * s.rows * 4);
    check_product(y, x, &w, N, 126);
    drop(dx);
    drop_matrix(&dw);
    free(x);
    free(y);
    random_matrix_free(&w);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_linear");
    TCase *t = tcase_create("all");
    tcase_add_test(t, products_of_every_scheme);
    tcase_add_test(t, a_product_in_several_blocks_of_rows);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
