/* The products of a decode step: against sums in double for every scheme and edge, values worked by hand, a row's bits in
 * any place and company, weights at any address, refusals. */
#include "kernels/decode_parts.h"
#include "tests/kernels/cuda_test.h"

enum { R = MQ_DECODE_ROWS, MAX = MQ_DECODE_MAX_PARTS, SPARE = 3 /* columns of y behind a part's own */ };
#define UNTOUCHED (-12345.0f)

/* Up to four matrices of equal cols on both sides. */
typedef struct group {
    int n;
    matrix_spec spec[MAX];
    random_matrix w[MAX];
    mq_decode_linear part[MAX];
    void *block[MAX]; /* what part[].w.data lies in */
} group;

static int element_bytes(mq_scheme s)
{
    return s == MQ_SCHEME_FP8_BLOCK ? 1 : s == MQ_SCHEME_F32 ? 4 : 2;
}

static void fill_y(float *dy, int64_t n)
{
    float *y = floats(n);
    for (int64_t i = 0; i < n; i++)
        y[i] = UNTOUCHED;
    mq_assert_ok(gpu->upload(gpu_dev, dy, y, n * 4, &err), &err);
    free(y);
}

/* shift: elements between a multiple of 16 bytes and the weights. */
static group make_group(const matrix_spec *spec, int n, int shift, uint64_t seed)
{
    group g = {.n = n};
    for (int k = 0; k < n; k++) {
        g.spec[k] = spec[k];
        g.w[k] = random_matrix_create(spec[k], seed + (uint64_t)k);
        int64_t bytes = random_code_bytes(&spec[k]), off = shift * element_bytes(spec[k].scheme);
        g.block[k] = put(NULL, bytes + off);
        mq_decode_linear *p = &g.part[k];
        p->w = g.w[k].m;
        p->w.data = (uint8_t *)g.block[k] + off;
        mq_assert_ok(gpu->upload(gpu_dev, (uint8_t *)g.block[k] + off, g.w[k].data, bytes, &err), &err);
        if (spec[k].scheme == MQ_SCHEME_FP8_BLOCK)
            p->w.scale = put(g.w[k].scale, mq_fp8_n_scales(&g.w[k].m) * 4);
        mq_assert_ok(gpu->decode->parts->check_linear(&p->w, &err), &err);
        p->stride = spec[k].rows + SPARE;
        p->y = put_floats(NULL, R * p->stride);
    }
    return g;
}

static void free_group(group *g)
{
    for (int k = 0; k < g->n; k++) {
        drop(g->block[k]);
        if (g->part[k].w.scale)
            drop(g->part[k].w.scale);
        drop(g->part[k].y);
        random_matrix_free(&g->w[k]);
    }
}

/* y of part k is [R, rows]; the caller frees y[0 .. n - 1].  Nothing else is written. */
static void run(group *g, const uint16_t *x, float *y[MAX])
{
    int64_t cols = g->spec[0].cols;
    uint16_t *dx = put(x, R * cols * 2);
    for (int k = 0; k < g->n; k++)
        fill_y(g->part[k].y, R * g->part[k].stride);
    mq_assert_ok(gpu->decode->parts->linear(gpu_dev, g->part, g->n, dx, &err), &err);
    for (int k = 0; k < g->n; k++) {
        int64_t rows = g->spec[k].rows, stride = g->part[k].stride;
        float *wide = floats(R * stride);
        mq_assert_ok(gpu->download(gpu_dev, wide, g->part[k].y, R * stride * 4, &err), &err);
        mq_assert_ok(gpu->dev_sync(gpu_dev, &err), &err);
        y[k] = floats(R * rows);
        for (int i = 0; i < R; i++) {
            memcpy(y[k] + i * rows, wide + i * stride, (size_t)rows * 4);
            for (int c = 0; c < SPARE; c++)
                ck_assert(wide[i * stride + rows + c] == UNTOUCHED);
        }
        free(wide);
    }
    drop(dx);
}

static void free_y(float *y[MAX], int n)
{
    for (int k = 0; k < n; k++)
        free(y[k]);
}

static uint16_t *random_x(int64_t cols, uint64_t seed)
{
    uint16_t *x = malloc((size_t)(R * cols) * 2);
    for (int64_t i = 0; i < R * cols; i++)
        x[i] = mq_f32_to_bf16(mq_test_normal(&seed));
    return x;
}

/* Products of BF16 values are exact in F32; a chain of some tens of matrix products rounds or cuts each sum at a few 2^-24,
 * which stays well below 2e-6 of the sum of magnitudes.  F32 weights count to 2^-17. */
static void check_part(const float *y, const uint16_t *x, const random_matrix *w)
{
    double bound = 2e-6 + (w->m.scheme == MQ_SCHEME_F32 ? 1.0 / (1 << 17) : 0.0);
    for (int i = 0; i < R; i++)
        for (int64_t r = 0; r < w->m.rows; r++) {
            double sum = 0.0, magnitude = 0.0;
            for (int64_t c = 0; c < w->m.cols; c++) {
                double p = (double)mq_bf16_to_f32(x[i * w->m.cols + c]) * (double)w->wide[r * w->m.cols + c];
                sum += p;
                magnitude += fabs(p);
            }
            double e = fabs((double)y[i * w->m.rows + r] - sum);
            ck_assert_msg(e <= bound * magnitude, "%s [%d, %d]: row %d, output %d: off by %g of %g",
                          mq_scheme_name(w->m.scheme), (int)w->m.rows, (int)w->m.cols, i, (int)r, e, magnitude);
        }
}

static void check_group(const matrix_spec *spec, int n, int shift)
{
    group g = make_group(spec, n, shift, 5);
    uint16_t *x = random_x(spec[0].cols, 7);
    float *y[MAX];
    run(&g, x, y);
    for (int k = 0; k < n; k++)
        check_part(y[k], x, &g.w[k]);
    free_y(y, n);
    free(x);
    free_group(&g);
}

static const mq_scheme schemes[] = {MQ_SCHEME_BF16, MQ_SCHEME_F16, MQ_SCHEME_F32, MQ_SCHEME_FP8_BLOCK};
enum { N_SCHEMES = sizeof schemes / sizeof schemes[0] };

START_TEST(products_at_every_edge)
{
    static const int64_t rows[] = {1, 15, 16, 17}, cols[] = {16, 32, 48, 64, 112, 128, 1040};
    for (int s = 0; s < N_SCHEMES; s++)
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 7; c++) {
                matrix_spec spec = {schemes[s], 0, rows[r], cols[c], 0, 0, 0};
                check_group(&spec, 1, 0);
            }
}
END_TEST

/* Warps with no, one and several chunks, an odd number of them, and rings that are filled again. */
START_TEST(products_of_many_columns)
{
    static const int64_t cols[] = {1152, 2048, 3216, 4224};
    for (int s = 0; s < N_SCHEMES; s++)
        for (int c = 0; c < 4; c++) {
            matrix_spec spec = {schemes[s], 0, 9, cols[c], 0, 0, 0};
            check_group(&spec, 1, 0);
        }
}
END_TEST

static const matrix_spec blocks[] = {
    {MQ_SCHEME_FP8_BLOCK, 0, 17, 48, 17, 120, 0},    {MQ_SCHEME_FP8_BLOCK, 0, 34, 128, 17, 3, 64},
    {MQ_SCHEME_FP8_BLOCK, 0, 20, 144, 5, 127, 127},  {MQ_SCHEME_FP8_BLOCK, 0, 150, 272, 150, 100, 77},
    {MQ_SCHEME_FP8_BLOCK, 0, 6, 112, 1, 0, 16},      {MQ_SCHEME_FP8_BLOCK, 0, 12, 1040, 4, 126, 112},
    {MQ_SCHEME_FP8_BLOCK, 0, 3, 2288, 3, 0, 16},     {MQ_SCHEME_FP8_BLOCK, 0, 18, 16, 2, 0, 120},
    {MQ_SCHEME_FP8_BLOCK, 0, 300, 32, 150, 50, 100},
};
enum { N_BLOCKS = sizeof blocks / sizeof blocks[0] };

START_TEST(scale_blocks_may_begin_anywhere)
{
    for (int c = 0; c < N_BLOCKS; c++)
        check_group(&blocks[c], 1, 0);
}
END_TEST

START_TEST(several_matrices_share_their_input)
{
    static const matrix_spec mixed[MAX] = {{MQ_SCHEME_FP8_BLOCK, 0, 33, 272, 11, 120, 16},
                                           {MQ_SCHEME_BF16, 0, 17, 272, 0, 0, 0},
                                           {MQ_SCHEME_FP8_BLOCK, 0, 7, 272, 0, 0, 0},
                                           {MQ_SCHEME_F32, 0, 1, 272, 0, 0, 0}};
    static const matrix_spec alike[MAX] = {{MQ_SCHEME_BF16, 0, 16, 160, 0, 0, 0},
                                           {MQ_SCHEME_BF16, 0, 1, 160, 0, 0, 0},
                                           {MQ_SCHEME_BF16, 0, 40, 160, 0, 0, 0},
                                           {MQ_SCHEME_BF16, 0, 15, 160, 0, 0, 0}};
    for (int n = 1; n <= MAX; n++) {
        check_group(mixed, n, 0);
        check_group(alike, n, 0);
    }
    /* each alone has the bits it has in company */
    group g = make_group(alike, MAX, 0, 5);
    uint16_t *x = random_x(160, 7);
    float *together[MAX], *alone[MAX];
    run(&g, x, together);
    for (int k = 0; k < MAX; k++) {
        group one = make_group(&alike[k], 1, 0, 5 + (uint64_t)k);
        run(&one, x, alone);
        ck_assert(same_bytes(alone[0], together[k], R * alike[k].rows * 4));
        free_y(alone, 1);
        free_group(&one);
    }
    free_y(together, MAX);
    free(x);
    free_group(&g);
}
END_TEST

/* The path for addresses that are no multiples of 16 adds in the same order. */
START_TEST(bits_do_not_depend_on_the_address)
{
    for (int s = 0; s < N_SCHEMES + N_BLOCKS; s++) {
        matrix_spec spec = s < N_SCHEMES ? (matrix_spec){schemes[s], 0, 18, 1328, 0, 0, 0} : blocks[s - N_SCHEMES];
        group a = make_group(&spec, 1, 0, 5), b = make_group(&spec, 1, 1, 5);
        uint16_t *x = random_x(spec.cols, 7);
        float *y[MAX], *z[MAX];
        run(&a, x, y);
        run(&b, x, z);
        ck_assert_msg(same_bytes(y[0], z[0], R * spec.rows * 4), "%s, case %d", mq_scheme_name(spec.scheme), s);
        free_y(y, 1);
        free_y(z, 1);
        free(x);
        free_group(&a);
        free_group(&b);
    }
}
END_TEST

/* Bulk copies and the other way are chosen by address and columns: the same bits, for one chunk a warp or two, warps without
 * any, tiles of one row, blocks of one tile and of more than the ring holds, and tiles with rows of several matrices. */
START_TEST(bulk_copies_have_the_same_bits)
{
    static const matrix_spec many[][MAX] = {
        {{MQ_SCHEME_BF16, 0, 1, 128, 0, 0, 0}},
        {{MQ_SCHEME_BF16, 0, 260, 2048, 0, 0, 0}},
        {{MQ_SCHEME_F16, 0, 133, 1152, 0, 0, 0}},
        {{MQ_SCHEME_BF16, 0, 2176 / 16, 2176, 0, 0, 0}},
        {{MQ_SCHEME_BF16, 0, 40, 384, 0, 0, 0},
         {MQ_SCHEME_BF16, 0, 1, 384, 0, 0, 0},
         {MQ_SCHEME_F16, 0, 9, 384, 0, 0, 0},
         {MQ_SCHEME_BF16, 0, 30, 384, 0, 0, 0}},
    };
    static const int n_parts[] = {1, 1, 1, 1, MAX};
    for (int c = 0; c < 5; c++) {
        group a = make_group(many[c], n_parts[c], 0, 5), b = make_group(many[c], n_parts[c], 1, 5);
        uint16_t *x = random_x(many[c][0].cols, 7);
        float *y[MAX], *z[MAX];
        run(&a, x, y);
        run(&b, x, z);
        for (int k = 0; k < n_parts[c]; k++) {
            check_part(y[k], x, &a.w[k]);
            ck_assert_msg(same_bytes(y[k], z[k], R * many[c][k].rows * 4), "case %d, part %d", c, k);
        }
        free_y(y, n_parts[c]);
        free_y(z, n_parts[c]);
        free(x);
        free_group(&a);
        free_group(&b);
    }
}
END_TEST

/* x with row i of base at place (i + by) % R; the other places as company says: the other rows, 0, NaN or infinity. */
enum company { OTHERS, NOTHING, NANS, INFINITIES, N_COMPANIES };
static void move_rows(uint16_t *x, const uint16_t *base, int64_t cols, int by, int keep, int company)
{
    static const uint16_t fill[N_COMPANIES] = {0, 0, 0x7fc1, 0xff80};
    for (int i = 0; i < R; i++)
        for (int64_t c = 0; c < cols; c++)
            x[(i + by) % R * cols + c] = company == OTHERS || i == keep ? base[i * cols + c] : fill[company];
}

START_TEST(a_row_keeps_its_bits_in_any_place_and_company)
{
    for (int s = 0; s < N_SCHEMES + 2; s++) {
        bool odd = s == N_SCHEMES, bulk = s > N_SCHEMES; /* incomplete chunks on both sides; bulk copies */
        matrix_spec spec = {odd ? MQ_SCHEME_FP8_BLOCK : bulk ? MQ_SCHEME_BF16 : schemes[s], 0, 17, bulk ? 1280 : 1360, 0,
                            odd ? 120 : 0, odd ? 80 : 0};
        group g = make_group(&spec, 1, 0, 5);
        uint16_t *base = random_x(spec.cols, 7), *x = random_x(spec.cols, 8);
        float *y[MAX], *z[MAX];
        run(&g, base, y);
        for (int by = 0; by < R; by += 3)
            for (int company = 0; company < N_COMPANIES; company++) {
                int keep = (by + 2 * company) % R;
                move_rows(x, base, spec.cols, by, keep, company);
                run(&g, x, z);
                for (int i = 0; i < R; i++)
                    if (company == OTHERS || i == keep)
                        ck_assert_msg(same_bytes(z[0] + (i + by) % R * spec.rows, y[0] + i * spec.rows, spec.rows * 4),
                                      "%s: row %d at %d, company %d", mq_scheme_name(spec.scheme), i, (i + by) % R, company);
                    else if (company == NOTHING)
                        for (int64_t r = 0; r < spec.rows; r++)
                            ck_assert(z[0][(i + by) % R * spec.rows + r] == 0.0f);
                free_y(z, 1);
            }
        free_y(y, 1);
        free(base);
        free(x);
        free_group(&g);
    }
}
END_TEST

/* Rows of w are as separate as rows of x: what is not a number stays in its row. */
START_TEST(a_weight_that_is_not_a_number_stays_in_its_row)
{
    matrix_spec spec = {MQ_SCHEME_FP8_BLOCK, 0, 20, 160, 0, 0, 0};
    group g = make_group(&spec, 1, 0, 5);
    uint16_t *x = random_x(spec.cols, 7);
    float *y[MAX], *z[MAX];
    run(&g, x, y);
    uint8_t nan = 0xff;
    mq_assert_ok(gpu->upload(gpu_dev, (uint8_t *)g.block[0] + 19 * spec.cols + 130, &nan, 1, &err), &err);
    mq_assert_ok(gpu->upload(gpu_dev, (uint8_t *)g.block[0] + 2 * spec.cols + 3, &nan, 1, &err), &err);
    run(&g, x, z);
    for (int i = 0; i < R; i++)
        for (int r = 0; r < 20; r++)
            ck_assert(r == 2 || r == 19 ? isnan(z[0][i * 20 + r]) : z[0][i * 20 + r] == y[0][i * 20 + r]);
    free_y(y, 1);
    free_y(z, 1);
    free(x);
    free_group(&g);
}
END_TEST

/* y = x w^T of given weights; w.data and w.scale are the host's. */
static void hand_worked(mq_matrix w, const uint16_t *x, float *y)
{
    mq_decode_linear part = {.w = w, .stride = w.rows};
    part.w.data = put(w.data, w.rows * w.cols * element_bytes(w.scheme));
    if (w.scale)
        part.w.scale = put(w.scale, mq_fp8_n_scales(&w) * 4);
    part.y = put_floats(NULL, R * w.rows);
    uint16_t *dx = put(x, R * w.cols * 2);
    mq_assert_ok(gpu->decode->parts->linear(gpu_dev, &part, 1, dx, &err), &err);
    take(y, part.y, R * w.rows * 4);
    drop(dx);
    drop(part.w.data);
    if (w.scale)
        drop(part.w.scale);
}

START_TEST(values_worked_by_hand)
{
    uint16_t x[R * 256], half[16];
    float y[2 * R], full[16];
    for (int i = 0; i < R * 256; i++)
        x[i] = mq_f32_to_bf16(0.0f);
    for (int c = 0; c < 16; c++)
        half[c] = mq_f32_to_bf16((float)c);
    x[3] = mq_f32_to_bf16(2.0f);
    x[15] = mq_f32_to_bf16(-1.0f);
    x[7 * 16 + 5] = mq_f32_to_bf16(0.25f);
    hand_worked((mq_matrix){.scheme = MQ_SCHEME_BF16, .rows = 1, .cols = 16, .data = half}, x, y);
    ck_assert(y[0] == -9.0f);  /* 2 * 3 - 15 */
    ck_assert(y[7] == 1.25f);  /* 5 / 4 */
    ck_assert(y[1] == 0.0f);
    for (int c = 0; c < 16; c++) {
        half[c] = 0x3c01;                /* F16 1 + 2^-10 */
        full[c] = 1.0f + 0x1p-15f;       /* 16 bits: BF16 alone would lose the last 8 */
        x[c] = mq_f32_to_bf16(1.0f);
    }
    hand_worked((mq_matrix){.scheme = MQ_SCHEME_F16, .rows = 1, .cols = 16, .data = half}, x, y);
    ck_assert(y[0] == 16.0f + 0x1p-6f);
    hand_worked((mq_matrix){.scheme = MQ_SCHEME_F32, .rows = 1, .cols = 16, .data = full}, x, y);
    ck_assert(y[0] == 16.0f + 0x1p-11f);

    /* two segments of one row, columns 100.. of a block: 28 columns with the first scale, 20 with the second */
    uint8_t codes[2 * 48];
    const float scale[4] = {0.5f, 3.0f, -1.0f, 0.0f};
    memset(codes, 0x38, 48);     /* 1 */
    memset(codes + 48, 0x01, 48); /* 2^-9 */
    for (int c = 0; c < 48; c++)
        x[c] = mq_f32_to_bf16(1.0f);
    hand_worked((mq_matrix){.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 2, .cols = 48, .data = codes, .scale = scale, .seg_rows = 1,
                            .row_phase = 9, .col_phase = 100},
                x, y);
    ck_assert(y[0] == 28.0f * 0.5f + 20.0f * 3.0f);
    ck_assert(y[1] == -28.0f * 0x1p-9f);
}
END_TEST

START_TEST(what_is_not_computed_is_refused)
{
    mq_status (*check)(const mq_matrix *, mq_err *) = gpu->decode->parts->check_linear;
    mq_matrix w = {.scheme = MQ_SCHEME_BF16, .rows = 3, .cols = 24};
    mq_assert_fails(check(&w, &err), MQ_E_UNSUPPORTED, &err, "24 columns, the decode step computes multiples of 16");
    w.cols = 32;
    mq_assert_ok(check(&w, &err), &err);
    for (mq_scheme s = MQ_SCHEME_INT4; s < MQ_SCHEME_COUNT; s++) {
        w.scheme = s;
        char text[80];
        snprintf(text, sizeof text, "weights are %s, the decode step computes bf16, f16, f32 and fp8_block", mq_scheme_name(s));
        mq_assert_fails(check(&w, &err), MQ_E_UNSUPPORTED, &err, text);
    }
    w.scheme = MQ_SCHEME_FP8_BLOCK;
    w.rows = (int64_t)1 << 31;
    mq_assert_fails(check(&w, &err), MQ_E_UNSUPPORTED, &err,
                    "shape [2147483648, 32], the decode step computes dimensions below 2^31");
}
END_TEST

START_TEST(a_launch_that_fails_is_reported)
{
    if (!is_emulated)
        return;
    matrix_spec spec = {MQ_SCHEME_F16, 0, 2, 16, 0, 0, 0};
    group g = make_group(&spec, 1, 0, 5);
    uint16_t *x = random_x(16, 7), *dx = put(x, R * 16 * 2);
    mq_emulator_fail_launch(1);
    mq_assert_fails(gpu->decode->parts->linear(gpu_dev, g.part, 1, dx, &err), MQ_E_DEVICE, &err, "cuda 0: step linear: ");
    drop(dx);
    free(x);
    free_group(&g);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_step_linear");
    TCase *t = tcase_create("all");
    tcase_add_test(t, products_at_every_edge);
    tcase_add_test(t, products_of_many_columns);
    tcase_add_test(t, scale_blocks_may_begin_anywhere);
    tcase_add_test(t, several_matrices_share_their_input);
    tcase_add_test(t, bits_do_not_depend_on_the_address);
    tcase_add_test(t, bulk_copies_have_the_same_bits);
    tcase_add_test(t, a_row_keeps_its_bits_in_any_place_and_company);
    tcase_add_test(t, a_weight_that_is_not_a_number_stays_in_its_row);
    tcase_add_test(t, values_worked_by_hand);
    tcase_add_test(t, what_is_not_computed_is_refused);
    tcase_add_test(t, a_launch_that_fails_is_reported);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
