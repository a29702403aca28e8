/* Calibration's operations on weights and codes: scales equal the one-group definition bit for bit, with weights of every
 * awkward kind; codes, errors and packed units against plain loops; widening against mq_matrix_widen. */
#include <math.h>
#include <stdio.h>

#include "kernels/kernels.h"
#include "kernels/round.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *k;
static const char *const isas[] = {"scalar", "avx2", "avx512"};

/* Run body on every instruction set, with 1 thread and with 3. */
static void each_dev(void (*body)(mq_dev *dev))
{
    for (size_t i = 0; i < 3; i++)
        for (int threads = 1; threads <= 3; threads += 2) {
            mq_dev *dev;
            if (k->dev_open(&dev, 0, threads, isas[i], NULL) != MQ_OK) {
                printf("SKIPPED: no %s\n", isas[i]);
                continue;
            }
            body(dev);
            k->dev_close(dev);
        }
}

/* ---- weights and their importance ---- */

enum { NORMAL, OUTLIERS, TINY, SUBNORMAL, LARGE, HALVES, ZEROS, N_WEIGHTS };

static float draw_weight(int kind, uint64_t *seed)
{
    float x = mq_test_normal(seed);
    uint64_t u = mq_test_rand(seed);
    switch (kind) {
    case OUTLIERS:
        return u % 50 ? x : 40.0f * x;
    case TINY:
        return x * 0x1p-122f; /* around the guards */
    case SUBNORMAL:
        return x * 0x1p-138f;
    case LARGE:
        return fmaxf(fminf(x * 0x1p126f, 0x1.fffffep127f), -0x1.fffffep127f);
    case HALVES: /* ties everywhere, equal magnitudes of both signs */
        return (float)((int)(u % 33) - 16) * 0.25f;
    case ZEROS:
        return u % 7 ? -0.0f : u % 3 ? 0.0f : x;
    default:
        return x;
    }
}

enum { NONE, UNIFORM, SQUARES, SPARSE, NOTHING, VANISHING, EXPLODING, N_OMEGAS };

/* NONE is left to the caller: NULL. */
static float draw_omega(int kind, uint64_t *seed)
{
    float x = mq_test_normal(seed);
    uint64_t u = mq_test_rand(seed);
    switch (kind) {
    case SQUARES:
        return x * x * (u % 16 ? 1.0f : 300.0f);
    case SPARSE:
        return u % 9 ? 0.0f : x * x;
    case NOTHING:
        return 0.0f;
    case VANISHING:
        return u % 3 ? 0x1p-149f : 0x1p-140f * fabsf(x);
    case EXPLODING:
        return u % 3 ? 0x1.fffffep127f : fabsf(x);
    default:
        return 1.0f;
    }
}

typedef struct problem {
    float *w, *omega; /* [rows, cols], [cols] or NULL */
    int64_t rows, cols;
    int group;
} problem;

static problem problem_create(int64_t rows, int64_t cols, int group, int weights, int omegas, uint64_t seed)
{
    problem p = {malloc((size_t)(rows * cols) * sizeof(float)), NULL, rows, cols, group};
    for (int64_t i = 0; i < rows * cols; i++)
        p.w[i] = draw_weight(weights, &seed);
    memset(p.w + rows / 2 * cols, 0, (size_t)group * sizeof *p.w); /* a group of zeros */
    if (omegas == NONE)
        return p;
    p.omega = malloc((size_t)cols * sizeof(float));
    for (int64_t i = 0; i < cols; i++)
        p.omega[i] = draw_omega(omegas, &seed);
    return p;
}

static void problem_free(problem *p)
{
    free(p->w);
    free(p->omega);
}

/* Scales and codes by the definition of one group. */
static void define(const problem *p, float *scale, uint8_t *codes)
{
    mq_rounder *r;
    mq_err err;
    mq_assert_ok(mq_rounder_create(&r, "scalar", &err), &err);
    for (int64_t i = 0; i < p->rows * p->cols; i += p->group) {
        uint16_t bits;
        mq_assert_ok(mq_round_group(r, MQ_ROUND_SEARCH, p->w + i, p->omega ? p->omega + i % p->cols : NULL, p->group,
                                    codes + i, &bits, &err),
                     &err);
        scale[i / p->group] = mq_bf16_to_f32(bits);
    }
    mq_rounder_free(r);
}

typedef struct expected {
    const problem *p;
    float *scale;
    uint8_t *codes;
    const char *text;
} expected;
static expected want; /* what check_search compares with */

static void check_search(mq_dev *dev)
{
    const problem *p = want.p;
    int64_t count = p->rows * p->cols, n_scales = count / p->group;
    float *scale = calloc((size_t)n_scales + 1, sizeof *scale);
    uint8_t *codes = calloc((size_t)count + 1, 1);
    scale[n_scales] = 42.0f;
    codes[count] = 42;
    mq_err err;
    mq_assert_ok(k->search_scales(dev, scale, p->w, p->omega, p->rows, p->cols, p->group, &err), &err);
    mq_assert_ok(k->nearest(dev, codes, p->w, scale, p->rows, p->cols, p->group, &err), &err);
    for (int64_t i = 0; i < n_scales; i++)
        ck_assert_msg(mq_f32_bits(want.scale[i]) == mq_f32_bits(scale[i]), "%s: %s: scale %lld is %a, expected %a",
                      k->dev_name(dev), want.text, (long long)i, (double)scale[i], (double)want.scale[i]);
    for (int64_t i = 0; i < count; i++)
        ck_assert_msg(want.codes[i] == codes[i], "%s: %s: code %lld is %d, expected %d", k->dev_name(dev), want.text,
                      (long long)i, codes[i], want.codes[i]);
    ck_assert(scale[n_scales] == 42.0f && codes[count] == 42);
    free(scale);
    free(codes);
}

static void check_problem(int64_t rows, int64_t cols, int group, int weights, int omegas)
{
    problem p = problem_create(rows, cols, group, weights, omegas, (uint64_t)(100 * weights + omegas));
    char text[100];
    snprintf(text, sizeof text, "[%lld, %lld] g%d, weights %d, omega %d", (long long)rows, (long long)cols, group, weights,
             omegas);
    want = (expected){&p, malloc((size_t)(rows * cols / group) * sizeof(float)), malloc((size_t)(rows * cols)), text};
    define(&p, want.scale, want.codes);
    each_dev(check_search);
    free(want.scale);
    free(want.codes);
    problem_free(&p);
}

START_TEST(scales_and_codes_equal_the_definition_of_a_group)
{
    const int64_t rows[4] = {1, 15, 16, 37}, cols[4] = {384, 640, 128, 128};
    for (int weights = 0; weights < N_WEIGHTS; weights++)
        for (int omegas = 0; omegas < N_OMEGAS; omegas++)
            for (int group = 32; group <= 128; group *= 2) {
                int shape = (weights + omegas + group / 32) % 4;
                check_problem(rows[shape], cols[shape], group, weights, omegas);
            }
    check_problem(3, 96, 32, NORMAL, SQUARES); /* columns of whole groups are enough */
    check_problem(18, 1152, 128, OUTLIERS, SQUARES);
}
END_TEST

/* With an importance on few columns the search fits those: its weighted error is below the plain search's. */
static void check_weighting(mq_dev *dev)
{
    for (int group = 32; group <= 128; group *= 2) {
        problem p = problem_create(64, 256, group, NORMAL, SQUARES, 9);
        float *scale = malloc((size_t)(p.rows * p.cols / group) * sizeof *scale);
        uint8_t *codes = malloc((size_t)(p.rows * p.cols));
        double loss[2] = {0.0, 0.0};
        for (int weighted = 0; weighted < 2; weighted++) {
            ck_assert(!k->search_scales(dev, scale, p.w, weighted ? p.omega : NULL, p.rows, p.cols, group, NULL));
            ck_assert(!k->nearest(dev, codes, p.w, scale, p.rows, p.cols, group, NULL));
            for (int64_t i = 0; i < p.rows * p.cols; i++) {
                double d = (double)p.w[i] - (double)scale[i / group] * ((double)codes[i] - 8.0);
                loss[weighted] += (double)p.omega[i % p.cols] * d * d;
            }
        }
        ck_assert_msg(loss[1] < 0.9 * loss[0], "g%d: weighted %g, plain %g", group, loss[1], loss[0]);
        free(scale);
        free(codes);
        problem_free(&p);
    }
}

START_TEST(weighting_lowers_the_weighted_error)
{
    each_dev(check_weighting);
}
END_TEST

/* ---- errors ---- */

static void check_errors(mq_dev *dev)
{
    problem p = problem_create(21, 384, 64, NORMAL, NONE, 3);
    int64_t n = p.rows * p.cols;
    float *scale = random_floats(n / 64, 4);
    uint8_t *codes = malloc((size_t)n);
    uint64_t seed = 5;
    for (int64_t i = 0; i < n; i++)
        codes[i] = (uint8_t)(mq_test_rand(&seed) % 16);
    for (int64_t i = 0; i < n / 64; i++)
        scale[i] = mq_bf16_to_f32(mq_f32_to_bf16(scale[i]));
    double err2[21], norm2[21], alone[21];
    ck_assert(!k->weight_error(dev, err2, norm2, codes, p.w, scale, p.rows, p.cols, 64, NULL));
    ck_assert(!k->weight_error(dev, NULL, alone, NULL, p.w, NULL, p.rows, p.cols, 64, NULL));
    for (int64_t r = 0; r < p.rows; r++) {
        double e = 0.0, w2 = 0.0;
        for (int64_t c = 0; c < p.cols; c++) {
            double w = (double)p.w[r * p.cols + c];
            double d = w - (double)scale[(r * p.cols + c) / 64] * ((double)codes[r * p.cols + c] - 8.0);
            e += d * d;
            w2 += w * w;
        }
        /* D is rounded to F32 once: half an ulp of it, twice that in its square */
        ck_assert(fabs(err2[r] - e) <= 1.5e-7 * e && fabs(norm2[r] - w2) <= 1e-13 * w2 && alone[r] == norm2[r]);
    }
    p.w[7 * p.cols + 380] = NAN;
    p.w[8 * p.cols + 3] = -INFINITY;
    p.w[9 * p.cols] = 0x1.fffffep127f; /* large is still finite */
    ck_assert(!k->weight_error(dev, NULL, alone, NULL, p.w, NULL, p.rows, p.cols, 64, NULL));
    for (int64_t r = 0; r < p.rows; r++)
        ck_assert(!isfinite(alone[r]) == (r == 7 || r == 8));
    free(scale);
    free(codes);
    problem_free(&p);
}

START_TEST(weight_errors_equal_the_double_loop)
{
    each_dev(check_errors);
}
END_TEST

/* ---- packed units ---- */

static void check_pack(mq_dev *dev, int64_t rows, int64_t cols, int group, bool both)
{
    int64_t n = rows * cols, n_scales = n / group, total = both ? 2 * rows : rows;
    uint64_t seed = (uint64_t)(rows + cols + group);
    uint8_t *codes[2];
    float *scale[2];
    for (int m = 0; m < 2; m++) {
        codes[m] = malloc((size_t)n);
        scale[m] = random_floats(n_scales, seed + (uint64_t)m);
        for (int64_t i = 0; i < n; i++)
            codes[m][i] = (uint8_t)(mq_test_rand(&seed) % 16);
        for (int64_t i = 0; i < n_scales; i++)
            scale[m][i] = mq_bf16_to_f32(mq_f32_to_bf16(scale[m][i]));
    }
    int64_t bytes = mq_units_bytes(total, cols, group);
    uint8_t *units = malloc((size_t)bytes + 1);
    memset(units, 0x5a, (size_t)bytes + 1);
    mq_err err;
    mq_assert_ok(k->pack_units(dev, units, codes[0], scale[0], both ? codes[1] : NULL, both ? scale[1] : NULL, rows, cols,
                               group, &err),
                 &err);
    ck_assert(units[bytes] == 0x5a);
    for (int m = 0; m < 1 + both; m++)
        for (int64_t i = 0; i < n; i++) {
            int64_t row = i / cols, packed = both ? mq_gate_up_row(row, m) : row;
            float right = (float)((int)codes[m][i] - 8) * scale[m][i / group];
            float got = mq_units_at(units, cols, group, packed, i % cols);
            ck_assert_msg(mq_f32_bits(right) == mq_f32_bits(got), "[%lld, %lld] g%d: row %lld, column %lld: %a, expected %a",
                          (long long)rows, (long long)cols, group, (long long)row, (long long)(i % cols), (double)got,
                          (double)right);
        }
    for (int m = 0; m < 2; m++) {
        free(codes[m]);
        free(scale[m]);
    }
    free(units);
}

static void check_packs(mq_dev *dev)
{
    for (int group = 32; group <= 128; group *= 2) {
        check_pack(dev, 16, 128, group, false);
        check_pack(dev, 48, 384, group, false);
        check_pack(dev, 8, 128, group, true);
        check_pack(dev, 40, 256, group, true);
        check_pack(dev, 128, 1152, group, true);
    }
    check_pack(dev, 16, 64, 32, false);
    check_pack(dev, 24, 192, 64, true);
}

START_TEST(packed_units_hold_every_weight)
{
    each_dev(check_packs);
}
END_TEST

/* ---- widening ---- */

static void check_widen(mq_dev *dev)
{
    static const matrix_spec specs[] = {
        {MQ_SCHEME_BF16, 0, 33, 63, 0, 0, 0},          {MQ_SCHEME_F16, 0, 19, 100, 0, 0, 0},
        {MQ_SCHEME_F32, 0, 31, 129, 0, 0, 0},          {MQ_SCHEME_FP8_BLOCK, 0, 130, 300, 130, 0, 0},
        {MQ_SCHEME_FP8_BLOCK, 0, 60, 257, 20, 120, 3}, {MQ_SCHEME_INT4, 32, 48, 192, 0, 0, 0},
        {MQ_SCHEME_INT4, 64, 32, 1088, 0, 0, 0},       {MQ_SCHEME_INT4, 128, 64, 1152, 0, 0, 0},
        {MQ_SCHEME_MXFP4, MQ_GROUP_MXFP4, 32, 640, 0, 0, 0}, {MQ_SCHEME_MXFP4_ROWS, 0, 40, 160, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        random_matrix m = random_matrix_create(specs[i], i + 1);
        const int64_t rows = m.m.rows, windows[6][2] = {{0, rows}, {1, rows - 1}, {0, 1}, {15, 2}, {17, 0}, {5, 9}};
        for (int j = 0; j < 6; j++) {
            int64_t row0 = windows[j][0], n = windows[j][1] * m.m.cols;
            float *got = malloc((size_t)(n + 1) * sizeof *got);
            got[n] = 42.0f;
            ck_assert(k->widen(dev, got, &m.m, row0, windows[j][1], NULL) == MQ_OK);
            for (int64_t e = 0; e < n; e++)
                ck_assert_msg(mq_f32_bits(got[e]) == mq_f32_bits(m.wide[row0 * m.m.cols + e]) ||
                                  (specs[i].scheme == MQ_SCHEME_MXFP4 && got[e] == m.wide[row0 * m.m.cols + e]),
                              "%s, %s: rows %lld + %lld, element %lld: %a, expected %a", k->dev_name(dev),
                              mq_scheme_name(m.m.scheme), (long long)row0, (long long)windows[j][1], (long long)e,
                              (double)got[e], (double)m.wide[row0 * m.m.cols + e]);
            ck_assert(got[n] == 42.0f);
            free(got);
        }
        random_matrix_free(&m);
    }
}

START_TEST(widening_gives_the_bits_of_the_definition_for_any_rows)
{
    each_dev(check_widen);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("codes");
    TCase *t = tcase_create("all");
    tcase_add_test(t, scales_and_codes_equal_the_definition_of_a_group);
    tcase_add_test(t, weighting_lowers_the_weighted_error);
    tcase_add_test(t, weight_errors_equal_the_double_loop);
    tcase_add_test(t, packed_units_hold_every_weight);
    tcase_add_test(t, widening_gives_the_bits_of_the_definition_for_any_rows);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
