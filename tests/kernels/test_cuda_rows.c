/* CUDA against CPU: norm, SwiGLU, gather, columns, scatter, add, axpby, widening and embedding, at sizes around warps and blocks. */
#include "tests/kernels/cuda_test.h"

static const int64_t widths[] = {0, 1, 31, 32, 33, 64, 255, 256, 257, 600};
enum { N_WIDTHS = sizeof widths / sizeof widths[0] };

START_TEST(norm_agrees_within_two_roundings)
{
    for (int c = 1; c < N_WIDTHS; c++)
        for (int64_t n = 0; n < 4; n += 3) {
            int64_t cols = widths[c];
            float *x = random_floats(n * cols, 1), *w = random_floats(cols, 2), *y = floats(n * cols), *z = floats(n * cols);
            float *dx = put_floats(x, n * cols), *dw = put_floats(w, cols), *dy = put_floats(NULL, n * cols);
            mq_assert_ok(cpu->rmsnorm(cpu_dev, y, x, w, 1e-6, n, cols, &err), &err);
            mq_assert_ok(gpu->rmsnorm(gpu_dev, dy, dx, dw, 1e-6, n, cols, &err), &err);
            mq_assert_ok(gpu->rmsnorm(gpu_dev, dx, dx, dw, 1e-6, n, cols, &err), &err);
            take(z, dy, n * cols * 4);
            /* the sums differ in their last double bit: the F32 factor by at most one place */
            ck_assert(largest_error(z, y, n * cols, 0.0) <= 2.5e-7);
            take(y, dx, n * cols * 4);
            ck_assert(same_bytes(y, z, n * cols * 4)); /* in place */
            drop(dw);
            free(x);
            free(w);
            free(y);
            free(z);
        }
}
END_TEST

START_TEST(swiglu_agrees_in_both_layouts)
{
    enum { N = 3 };
    for (int c = 0; c < N_WIDTHS; c++) {
        int64_t w = widths[c], count = N * w;
        float *g = random_floats(count, 1), *u = random_floats(count, 2), *y = floats(count), *z = floats(count);
        if (w > 3) {
            g[0] = 100.0f;
            g[1] = -100.0f;
            g[2] = 0.0f;
            g[3] = -88.0f;
        }
        float *dg = put_floats(g, count), *du = put_floats(u, count), *dh = put_floats(NULL, count);
        mq_assert_ok(cpu->swiglu(cpu_dev, y, g, u, false, N, w, &err), &err);
        mq_assert_ok(gpu->swiglu(gpu_dev, dh, dg, du, false, N, w, &err), &err);
        take(z, dh, count * 4);
        /* exponentials within 2 places, then three roundings */
        ck_assert(largest_error(z, y, count, 1e-30) <= 1e-6);
        if (w % 8 == 0) {
            float *both = floats(2 * count);
            for (int64_t i = 0; i < N; i++)
                for (int64_t j = 0; j < w; j++) {
                    both[i * 2 * w + mq_gate_up_row(j, 0)] = g[i * w + j];
                    both[i * 2 * w + mq_gate_up_row(j, 1)] = u[i * w + j];
                }
            float *db = put_floats(both, 2 * count);
            dh = put_floats(NULL, count);
            mq_assert_ok(gpu->swiglu(gpu_dev, dh, db, NULL, true, N, w, &err), &err);
            take(y, dh, count * 4);
            ck_assert(same_bytes(y, z, count * 4));
            drop(db);
            free(both);
        }
        drop(dg);
        drop(du);
        free(g);
        free(u);
        free(y);
        free(z);
    }
}
END_TEST

START_TEST(rows_move_exactly)
{
    static const int32_t index[5] = {6, 0, 3, 1, 5};
    enum { ROWS = 7 };
    for (int c = 0; c < N_WIDTHS; c++)
        for (int64_t n = 0; n <= 5; n += 5) {
            int64_t cols = widths[c], room = ROWS * (cols + 3);
            float *src = random_floats(room, 1), *x = random_floats(n * cols, 2), *coef = random_floats(5, 3);
            float *y = floats(n * cols), *z = floats(room);
            float *ds = put_floats(src, room), *dx = put_floats(x, n * cols), *dc = put_floats(coef, 5);
            int32_t *di = (int32_t *)put(index, sizeof index);
            float *dy = put_floats(NULL, n * cols);
            mq_assert_ok(cpu->gather(cpu_dev, y, src, index, n, cols, &err), &err);
            mq_assert_ok(gpu->gather(gpu_dev, dy, ds, di, n, cols, &err), &err);
            take(z, dy, n * cols * 4);
            ck_assert(same_bytes(y, z, n * cols * 4));

            int32_t columns[5] = {0}, *dcolumns;
            int64_t n_picked = cols ? n : 0;
            for (int64_t i = 0; i < n_picked; i++)
                columns[i] = (int32_t)(i * 7 % cols);
            dcolumns = (int32_t *)put(columns, sizeof columns);
            mq_assert_ok(cpu->pick(cpu_dev, y, x, columns, n_picked, cols, &err), &err);
            dy = put_floats(NULL, n_picked);
            mq_assert_ok(gpu->pick(gpu_dev, dy, dx, dcolumns, n_picked, cols, &err), &err);
            take(z, dy, n_picked * 4);
            ck_assert(same_bytes(y, z, n_picked * 4));
            drop(dcolumns);

            mq_assert_ok(cpu->scatter_add(cpu_dev, src, x, index, coef, n, cols, &err), &err);
            mq_assert_ok(gpu->scatter_add(gpu_dev, ds, dx, di, dc, n, cols, &err), &err);
            mq_assert_ok(cpu->add(cpu_dev, src, x, n * cols, &err), &err);
            mq_assert_ok(gpu->add(gpu_dev, ds, dx, n * cols, &err), &err);
            mq_assert_ok(cpu->put_cols(cpu_dev, src, cols + 3, 2, x, n, cols, &err), &err);
            mq_assert_ok(gpu->put_cols(gpu_dev, ds, cols + 3, 2, dx, n, cols, &err), &err);
            take(z, ds, room * 4);
            ck_assert(same_bytes(src, z, room * 4));
            drop(dx);
            drop(dc);
            drop(di);
            free(src);
            free(x);
            free(coef);
            free(y);
            free(z);
        }
}
END_TEST

START_TEST(axpby_reads_nothing_whose_factor_is_0)
{
    for (int c = 0; c < N_WIDTHS; c++) {
        int64_t n = widths[c];
        float *x = random_floats(n, 1), *y = random_floats(n, 2), *z = floats(n);
        float *dx = put_floats(x, n), *dy = put_floats(y, n), *nan = put_floats(z, n);
        if (is_emulated)
            memset(nan, 0xff, (size_t)n * 4);
        mq_assert_ok(gpu->axpby(gpu_dev, dy, 2.0f, dx, -0.75f, n, &err), &err);
        mq_assert_ok(gpu->axpby(gpu_dev, nan, 0.0f, dx, 0.5f, n, &err), &err);
        mq_assert_ok(gpu->axpby(gpu_dev, dx, 3.0f, NULL, 0.0f, n, &err), &err);
        take(z, dy, n * 4);
        for (int64_t i = 0; i < n; i++)
            ck_assert(z[i] == 2.0f * y[i] + -0.75f * x[i]);
        take(z, nan, n * 4);
        for (int64_t i = 0; i < n; i++)
            ck_assert(z[i] == 0.5f * x[i]);
        take(z, dx, n * 4);
        for (int64_t i = 0; i < n; i++)
            ck_assert(z[i] == 3.0f * x[i]);
        free(x);
        free(y);
        free(z);
    }
}
END_TEST

static matrix_spec specs[] = {
    {MQ_SCHEME_BF16, 0, 9, 33, 0, 0, 0},       {MQ_SCHEME_F16, 0, 5, 31, 0, 0, 0},
    {MQ_SCHEME_F32, 0, 3, 1, 0, 0, 0},         {MQ_SCHEME_FP8_BLOCK, 0, 260, 300, 130, 100, 77},
    {MQ_SCHEME_FP8_BLOCK, 0, 8, 128, 8, 0, 0}, {MQ_SCHEME_MXFP4_ROWS, 0, 7, 96, 0, 0, 0},
    {MQ_SCHEME_INT4, 32, 32, 192, 0, 0, 0},    {MQ_SCHEME_INT4, 64, 48, 64, 0, 0, 0},
    {MQ_SCHEME_INT4, 128, 16, 384, 0, 0, 0},   {MQ_SCHEME_MXFP4, 0, 32, 128, 0, 0, 0},
};
enum { N_SPECS = sizeof specs / sizeof specs[0] };

START_TEST(widening_gives_the_bits_of_the_definition)
{
    for (int c = 0; c < N_SPECS; c++) {
        matrix_spec s = specs[c];
        random_matrix w = random_matrix_create(s, (uint64_t)c);
        mq_matrix dw = put_matrix(&w, &s);
        int64_t row0 = s.rows / 3, n = s.rows - row0;
        float *z = floats(s.rows * s.cols), *dz = put_floats(NULL, n * s.cols);
        mq_assert_ok(gpu->widen(gpu_dev, dz, &dw, row0, n, &err), &err);
        mq_assert_ok(gpu->widen(gpu_dev, dz, &dw, row0, 0, &err), &err);
        take(z, dz, n * s.cols * 4);
        ck_assert_msg(same_bytes(z, w.wide + row0 * s.cols, n * s.cols * 4), "%s", mq_scheme_name(s.scheme));

        int32_t ids[4] = {(int32_t)s.rows - 1, 0, 1, 0}, *di = (int32_t *)put(ids, sizeof ids);
        dz = put_floats(NULL, 4 * s.cols);
        mq_assert_ok(gpu->embed(gpu_dev, dz, &dw, di, 4, &err), &err);
        take(z, dz, 4 * s.cols * 4);
        for (int i = 0; i < 4; i++)
            ck_assert(same_bytes(z + i * s.cols, w.wide + ids[i] * s.cols, s.cols * 4));
        drop(di);
        drop_matrix(&dw);
        free(z);
        random_matrix_free(&w);
    }
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_rows");
    TCase *t = tcase_create("all");
    tcase_add_test(t, norm_agrees_within_two_roundings);
    tcase_add_test(t, swiglu_agrees_in_both_layouts);
    tcase_add_test(t, rows_move_exactly);
    tcase_add_test(t, axpby_reads_nothing_whose_factor_is_0);
    tcase_add_test(t, widening_gives_the_bits_of_the_definition);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
