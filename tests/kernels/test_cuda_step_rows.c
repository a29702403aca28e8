/* Embedding, residual and norm, and SwiGLU of a decode step: against the CPU and sums in double, at sizes around a
 * block's share of columns; rows that are not there; a row's bits in any company. */
#include "kernels/decode_parts.h"
#include "tests/kernels/cuda_test.h"

enum { R = MQ_DECODE_ROWS };

static const mq_decode_parts *parts(void)
{
    return gpu->decode->parts;
}

static void keep(void *host, const void *p, int64_t n_bytes)
{
    mq_assert_ok(gpu->download(gpu_dev, host, p, n_bytes, &err), &err);
    mq_assert_ok(gpu->dev_sync(gpu_dev, &err), &err);
}

static matrix_spec specs[] = {
    {MQ_SCHEME_BF16, 0, 9, 33, 0, 0, 0},       {MQ_SCHEME_F16, 0, 5, 31, 0, 0, 0},
    {MQ_SCHEME_F32, 0, 3, 1, 0, 0, 0},         {MQ_SCHEME_FP8_BLOCK, 0, 260, 300, 130, 100, 77},
    {MQ_SCHEME_BF16, 0, 4, 257, 0, 0, 0},      {MQ_SCHEME_MXFP4_ROWS, 0, 7, 96, 0, 0, 0},
    {MQ_SCHEME_INT4, 32, 32, 192, 0, 0, 0},    {MQ_SCHEME_INT4, 64, 48, 64, 0, 0, 0},
    {MQ_SCHEME_INT4, 128, 16, 384, 0, 0, 0},   {MQ_SCHEME_MXFP4, 0, 32, 128, 0, 0, 0},
};
enum { N_SPECS = sizeof specs / sizeof specs[0] };

START_TEST(embedded_rows_have_the_bits_of_the_definition)
{
    for (int c = 0; c < N_SPECS; c++)
        for (int n = 1; n <= R; n += c % 2 ? 7 : 3) {
            matrix_spec s = specs[c];
            random_matrix w = random_matrix_create(s, (uint64_t)c);
            mq_matrix dw = put_matrix(&w, &s);
            mq_decode_input in = {.n = n};
            for (int i = 0; i < R; i++) /* ids from n on are not looked at */
                in.ids[i] = i < n ? (int32_t)((i * 5 + s.rows - 1) % s.rows) : INT32_MAX;
            mq_decode_input *din = put(&in, sizeof in);
            float *x = floats(R * s.cols), *dx = put_floats(NULL, R * s.cols);
            mq_assert_ok(parts()->embed(gpu_dev, dx, &dw, din, &err), &err);
            take(x, dx, R * s.cols * 4);
            for (int i = 0; i < n; i++)
                ck_assert_msg(same_bytes(x + i * s.cols, w.wide + in.ids[i] * s.cols, s.cols * 4), "%s",
                              mq_scheme_name(s.scheme));
            for (int64_t k = n * s.cols; k < R * s.cols; k++)
                ck_assert(x[k] == 0.0f && !signbit(x[k]));
            drop(din);
            drop_matrix(&dw);
            free(x);
            random_matrix_free(&w);
        }
}
END_TEST

/* A norm job on both sides. */
typedef struct norm_case {
    mq_decode_norm job;
    float *x, *part, *weight, *new_x, *xn32, *capture; /* host */
    uint16_t *xn;
    void *block[6];
} norm_case;

/* shift: floats between a multiple of 16 bytes and each array. */
static norm_case make_norm(int64_t hidden, int n_parts, bool loop_back, int shift, const float *x)
{
    int64_t count = R * hidden, stored = loop_back ? 1 : n_parts;
    norm_case c = {.x = floats(count), .part = random_floats(stored * count, 3), .weight = random_floats(hidden, 4),
                   .new_x = floats(count), .xn32 = floats(count), .capture = floats(count),
                   .xn = (uint16_t *)floats(count)};
    memcpy(c.x, x, (size_t)count * 4);
    const float *from[3] = {c.x, c.part, c.weight};
    int64_t floats_of[6] = {count, stored * count, hidden, count, count, count};
    for (int i = 0; i < 6; i++) {
        c.block[i] = put(NULL, (floats_of[i] + shift) * 4);
        if (i < 3)
            mq_assert_ok(gpu->upload(gpu_dev, (float *)c.block[i] + shift, from[i], floats_of[i] * 4, &err), &err);
    }
    c.job = (mq_decode_norm){.x = (float *)c.block[0] + shift, .part = n_parts ? (float *)c.block[1] + shift : NULL,
                             .n_parts = n_parts, .stride_parts = loop_back ? 0 : count,
                             .weight = (float *)c.block[2] + shift, .xn = (uint16_t *)c.block[3] + shift,
                             .xn32 = (float *)c.block[4] + shift, .capture = (float *)c.block[5] + shift,
                             .eps = 1e-5, .hidden = hidden};
    return c;
}

static void run_norm(norm_case *c)
{
    int64_t bytes = R * c->job.hidden * 4;
    mq_assert_ok(parts()->norm(gpu_dev, &c->job, &err), &err);
    keep(c->new_x, c->job.x, bytes);
    if (c->job.xn)
        keep(c->xn, c->job.xn, bytes / 2);
    if (c->job.xn32)
        keep(c->xn32, c->job.xn32, bytes);
    if (c->job.capture)
        keep(c->capture, c->job.capture, bytes);
}

static void free_norm(norm_case *c)
{
    for (int i = 0; i < 6; i++)
        drop(c->block[i]);
    free(c->x);
    free(c->part);
    free(c->weight);
    free(c->new_x);
    free(c->xn32);
    free(c->capture);
    free(c->xn);
}

static void check_norm(const norm_case *c)
{
    int64_t hidden = c->job.hidden, count = R * hidden;
    for (int64_t i = 0; i < count; i++) {
        float sum = 0.0f;
        for (int k = 0; k < c->job.n_parts; k++)
            sum = k ? sum + c->part[k * c->job.stride_parts + i] : c->part[i];
        ck_assert(c->new_x[i] == (c->job.n_parts ? c->x[i] + sum : c->x[i])); /* this order, so these bits */
    }
    for (int r = 0; r < R; r++) {
        double squares = 0.0;
        for (int64_t k = 0; k < hidden; k++)
            squares += (double)c->new_x[r * hidden + k] * (double)c->new_x[r * hidden + k];
        double scale = 1.0 / sqrt(squares / (double)hidden + c->job.eps);
        for (int64_t k = 0; k < hidden; k++) {
            int64_t i = r * hidden + k;
            double expected = (double)c->weight[k] * (double)c->new_x[i] * scale;
            /* five roundings of 2^-24: mean, root, reciprocal, two products */
            ck_assert_msg(fabs((double)c->xn32[i] - expected) <= 5.0 * 0x1p-24 * fabs(expected), "row %d, column %d of %d: %g, %g",
                          r, (int)k, (int)hidden, (double)c->xn32[i], expected);
            ck_assert(c->xn[i] == mq_f32_to_bf16(c->xn32[i]));
        }
    }
    ck_assert(same_bytes(c->capture, c->new_x, count * 4));
}

/* Below, at and above a slice (1024), what a block has at a time (4096) and the slices of a cluster (8192). */
static const int64_t hiddens[] = {1, 2, 3, 4, 31, 64, 255, 256, 257, 1020, 1024, 1028, 2052, 4096, 4100, 6144, 8190, 8192, 8196, 24576, 24580};
enum { N_HIDDENS = sizeof hiddens / sizeof hiddens[0] };

START_TEST(norm_agrees_with_sums_in_double)
{
    for (int h = 0; h < N_HIDDENS && (hiddens[h] < 10000 || !getenv("MQ_TEST_SMALL")); h++)
        for (int shift = 0; shift < 2; shift++) {
            int n_parts = (h + shift) % 4 ? (h + shift) % 4 * 3 - 2 : 0; /* 0, 1, 4, 7 */
            float *x = random_floats(R * hiddens[h], 1);
            memset(x + 5 * hiddens[h], 0, (size_t)hiddens[h] * 4);
            norm_case c = make_norm(hiddens[h], n_parts, false, shift, x);
            run_norm(&c);
            check_norm(&c);
            free_norm(&c);
            free(x);
        }
}
END_TEST

START_TEST(one_part_may_stand_for_all)
{
    float *x = random_floats(R * 68, 1);
    norm_case c = make_norm(68, 8, true, 0, x);
    run_norm(&c);
    check_norm(&c);
    free_norm(&c);
    free(x);
}
END_TEST

/* Nothing is written through a pointer that is NULL, and the others get the same. */
START_TEST(outputs_are_each_optional)
{
    float *x = random_floats(R * 36, 1);
    norm_case all = make_norm(36, 2, false, 0, x);
    run_norm(&all);
    for (int without = 0; without < 3; without++) {
        norm_case c = make_norm(36, 2, false, 0, x);
        if (without == 0)
            c.job.xn = NULL;
        else if (without == 1)
            c.job.xn32 = NULL;
        else
            c.job.capture = NULL;
        run_norm(&c);
        ck_assert(same_bytes(c.new_x, all.new_x, R * 36 * 4));
        ck_assert(without == 0 || same_bytes(c.xn, all.xn, R * 36 * 2));
        ck_assert(without == 1 || same_bytes(c.xn32, all.xn32, R * 36 * 4));
        ck_assert(without == 2 || same_bytes(c.capture, all.capture, R * 36 * 4));
        free_norm(&c);
    }
    free_norm(&all);
    free(x);
}
END_TEST

START_TEST(a_row_of_the_norm_keeps_its_bits_in_any_place_and_company)
{
    enum { HIDDEN = 2100 };
    float *x = random_floats(R * HIDDEN, 1), *moved = floats(R * HIDDEN);
    norm_case base = make_norm(HIDDEN, 0, false, 0, x);
    run_norm(&base);
    for (int by = 1; by < R; by += 2) {
        for (int i = 0; i < R; i++)
            for (int64_t k = 0; k < HIDDEN; k++)
                moved[(i + by) % R * HIDDEN + k] = i % 3 == 1 ? NAN : i % 3 == 2 ? INFINITY : x[i * HIDDEN + k];
        norm_case c = make_norm(HIDDEN, 0, false, by == 3, moved); /* at an address of its own, too */
        run_norm(&c);
        for (int i = 0; i < R; i += 3) {
            int64_t to = (i + by) % R * HIDDEN;
            ck_assert(same_bytes(c.xn32 + to, base.xn32 + i * HIDDEN, HIDDEN * 4));
            ck_assert(same_bytes(c.xn + to, base.xn + i * HIDDEN, HIDDEN * 2));
        }
        free_norm(&c);
    }
    free_norm(&base);
    free(x);
    free(moved);
}
END_TEST

START_TEST(a_norm_worked_by_hand)
{
    enum { HIDDEN = 4 };
    float x[R * HIDDEN] = {1.0f, -1.0f, 1.0f, -1.0f};
    norm_case c = make_norm(HIDDEN, 0, false, 0, x);
    const float weight[HIDDEN] = {0.5f, 1.0f, 2.0f, 1.00390625f};
    mq_assert_ok(gpu->upload(gpu_dev, (float *)c.block[2], weight, sizeof weight, &err), &err);
    c.job.eps = 3.0; /* mean of squares 1, so the factor is 1/2 */
    run_norm(&c);
    ck_assert(c.xn32[0] == 0.25f && c.xn32[1] == -0.5f && c.xn32[2] == 1.0f && c.xn32[3] == -0.501953125f);
    ck_assert(c.xn[0] == 0x3e80 && c.xn[1] == 0xbf00 && c.xn[2] == 0x3f80 && c.xn[3] == 0xbf00); /* a tie goes to even */
    for (int i = HIDDEN; i < R * HIDDEN; i++)
        ck_assert(c.xn32[i] == 0.0f && c.xn[i] == 0);
    free_norm(&c);
}
END_TEST

START_TEST(swiglu_agrees_with_the_cpu)
{
    static const int64_t widths[] = {1, 31, 32, 33, 100, 255, 256};
    for (int c = 0; c < 7; c++) {
        int64_t count = R * widths[c];
        float *g = random_floats(count, 1), *u = random_floats(count, 2), *y = floats(count);
        uint16_t *h = (uint16_t *)floats(count);
        g[0] = 100.0f;
        g[1] = -100.0f;
        g[2] = 0.0f;
        g[3] = NAN;
        float *dg = put_floats(g, count), *du = put_floats(u, count);
        uint16_t *dh = put(NULL, count * 2);
        mq_assert_ok(parts()->swiglu(gpu_dev, dh, dg, du, widths[c], &err), &err);
        mq_assert_ok(cpu->swiglu(cpu_dev, y, g, u, false, R, widths[c], &err), &err);
        take(h, dh, count * 2);
        ck_assert(isnan(mq_bf16_to_f32(h[3])));
        for (int64_t i = 0; i < count; i++) /* a place of BF16, and 1e-6; exp(100) is cut off in F32, at 1e-37 or infinity */
            if (i != 3)
                ck_assert_msg(fabs((double)mq_bf16_to_f32(h[i]) - (double)y[i]) <=
                                  (1.0 / 256 + 1e-6) * fabs((double)y[i]) + 1e-37,
                              "%d of width %d: %g, %g", (int)i, (int)widths[c], (double)mq_bf16_to_f32(h[i]), (double)y[i]);
        drop(dg);
        drop(du);
        free(g);
        free(u);
        free(y);
        free(h);
    }
}
END_TEST

START_TEST(a_launch_that_fails_is_reported)
{
    if (!is_emulated)
        return;
    float x[R * 4] = {0}, *dx = put_floats(x, R * 4);
    norm_case c = make_norm(4, 0, false, 0, x);
    random_matrix w = random_matrix_create(specs[2], 1);
    mq_matrix dw = put_matrix(&w, &specs[2]);
    mq_decode_input in = {.n = 1}, *din = put(&in, sizeof in);
    uint16_t *dh = put(NULL, R * 4 * 2);
    mq_emulator_fail_launch(1);
    mq_assert_fails(parts()->norm(gpu_dev, &c.job, &err), MQ_E_DEVICE, &err, "cuda 0: step norm: ");
    mq_emulator_fail_launch(1);
    mq_assert_fails(parts()->embed(gpu_dev, dx, &dw, din, &err), MQ_E_DEVICE, &err, "cuda 0: step embed: ");
    mq_emulator_fail_launch(1);
    mq_assert_fails(parts()->swiglu(gpu_dev, dh, dx, dx, 4, &err), MQ_E_DEVICE, &err, "cuda 0: step swiglu: ");
    free_norm(&c);
    drop_matrix(&dw);
    random_matrix_free(&w);
    drop(din);
    drop(dh);
    drop(dx);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_step_rows");
    TCase *t = tcase_create("all");
    tcase_add_test(t, embedded_rows_have_the_bits_of_the_definition);
    tcase_add_test(t, norm_agrees_with_sums_in_double);
    tcase_add_test(t, one_part_may_stand_for_all);
    tcase_add_test(t, outputs_are_each_optional);
    tcase_add_test(t, a_row_of_the_norm_keeps_its_bits_in_any_place_and_company);
    tcase_add_test(t, a_norm_worked_by_hand);
    tcase_add_test(t, swiglu_agrees_with_the_cpu);
    tcase_add_test(t, a_launch_that_fails_is_reported);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
