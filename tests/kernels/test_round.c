/* Rounding to 4 bits: hand-worked groups, the promises of round.h, and quality on synthetic
 * weights. test_round_isa.c holds the instruction sets against each other. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/round.h"
#include "src/float.h"
#include "src/units.h"
#include "tests/harness.h"

static const int groups[3] = {32, 64, 128};

static mq_rounder *new_rounder(void)
{
    mq_rounder *r;
    mq_err err;
    mq_assert_ok(mq_rounder_create(&r, NULL, &err), &err);
    return r;
}

/* Round one group and return its scale. */
static float group_scale(mq_round_method method, const float *w, int g, uint8_t *codes)
{
    mq_rounder *r = new_rounder();
    mq_err err;
    uint16_t scale;
    mq_assert_ok(mq_round_group(r, method, w, NULL, g, codes, &scale, &err), &err);
    mq_rounder_free(r);
    return mq_bf16_to_f32(scale);
}

static double group_error(const float *w, int g, float s, const uint8_t *codes)
{
    double sum = 0.0;
    for (int i = 0; i < g; i++) {
        double d = (double)w[i] - (double)s * (codes[i] - 8);
        sum += d * d;
    }
    return sum;
}

START_TEST(zero_group_has_scale_one_and_codes_zero)
{
    float w[128] = {0};
    w[3] = -0.0f;
    uint8_t codes[128];
    for (int method = 0; method < 2; method++)
        for (int k = 0; k < 3; k++) {
            ck_assert(group_scale((mq_round_method)method, w, groups[k], codes) == 1.0f);
            for (int i = 0; i < groups[k]; i++)
                ck_assert_int_eq(codes[i], 8);
        }
}
END_TEST

START_TEST(largest_positive_weight_takes_code_minus_eight)
{
    float w[64] = {0};
    uint8_t codes[64];
    w[5] = 1.0f;
    ck_assert(group_scale(MQ_ROUND_SEARCH, w, 64, codes) == -0.125f);
    ck_assert_int_eq(codes[5], 0);
    ck_assert_int_eq(codes[6], 8);
    w[5] = -1.0f;
    ck_assert(group_scale(MQ_ROUND_SEARCH, w, 64, codes) == 0.125f);
    ck_assert_int_eq(codes[5], 0);
}
END_TEST

START_TEST(rtn_by_hand)
{
    /* absmax 7: scale exactly 1; ties go to even, 6.5 to 6, -7 stays, and the clamp is never met.
     */
    const float w[32] = {7.0f,  0.5f, 1.5f,  2.5f,  -0.5f,   -1.5f,
                         -2.5f, 6.5f, -6.5f, -7.0f, 0.4999f, 0.5001f};
    const int q[12] = {7, 0, 2, 2, 0, -2, -2, 6, -6, -7, 0, 1};
    uint8_t codes[32];
    ck_assert(group_scale(MQ_ROUND_RTN, w, 32, codes) == 1.0f);
    for (int i = 0; i < 12; i++)
        ck_assert_int_eq(codes[i] - 8, q[i]);

    /* absmax 1: 1/7 = 0x3E124925 rounds to BF16 0x3E12 = 73/512, codes with the rounded scale. */
    float v[32] = {1.0f, -1.0f, 0.5f, 0.2139f, 0.2138f};
    ck_assert(group_scale(MQ_ROUND_RTN, v, 32, codes) == 73.0f / 512.0f);
    const int p[5] = {7, -7, 4, 2, 1}; /* 0.5 * 512 / 73 = 3.507; 1.5 * 73 / 512 = 0.213867 */
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(codes[i] - 8, p[i]);
}
END_TEST

START_TEST(scales_stay_normal_next_to_underflow)
{
    float w[32] = {0};
    uint8_t codes[32];
    for (int method = 0; method < 2; method++) {
        w[0] = 0x1p-149f;
        float s = group_scale((mq_round_method)method, w, 32, codes);
        ck_assert(fabsf(s) == 0x1p-126f);
        ck_assert_int_eq(codes[0], 8);
        w[0] = 0x1p-124f; /* 4 times the least scale */
        s = group_scale((mq_round_method)method, w, 32, codes);
        ck_assert(fabsf(s) == 0x1p-126f);
        ck_assert_int_eq(abs(codes[0] - 8), 4);
        w[0] = 0x1.8p127f; /* no overflow at the other end */
        s = group_scale((mq_round_method)method, w, 32, codes);
        ck_assert(isfinite(s) && fabsf(s * (float)(codes[0] - 8)) > 0x1.7p127f);
    }
}
END_TEST

/* Dequantize random weights of one rule: scale s (BF16), codes clamp(rne(w / s), low, 7). */
static void make_lattice(float *w, int g, float s, int low)
{
    for (int i = 0; i < g; i++) {
        float q = rintf(w[i] / s);
        q = q > 7.0f ? 7.0f : q < (float)low ? (float)low : q;
        w[i] = q * s;
    }
}

START_TEST(search_recovers_trained_lattices_without_error)
{
    uint64_t seed = 7;
    for (int trial = 0; trial < 3000; trial++) {
        int g = groups[trial % 3], rule = trial / 3 % 3;
        float w[128], absmax = 0.0f, m = 0.0f;
        float size = ldexpf(1.0f + (float)(mq_test_rand(&seed) % 1000) / 1000.0f,
                            (int)(mq_test_rand(&seed) % 20) - 15);
        for (int i = 0; i < g; i++) {
            w[i] = mq_test_normal(&seed) * size;
            if (fabsf(w[i]) > absmax)
                absmax = fabsf(w[i]), m = w[i];
        }
        float s = rule == 0 ? absmax / 7.0f : rule == 1 ? absmax / 7.5f : m / -8.0f;
        s = mq_bf16_to_f32(mq_f32_to_bf16(s));
        make_lattice(w, g, s, rule == 0 ? -7 : -8);

        uint8_t codes[128];
        float found = group_scale(MQ_ROUND_SEARCH, w, g, codes);
        ck_assert_msg(group_error(w, g, found, codes) == 0.0,
                      "trial %d: g %d, rule %d, scale %g, found %g", trial, g, rule, (double)s,
                      (double)found);
    }
}
END_TEST

START_TEST(omega_moves_the_scale_and_ones_change_nothing)
{
    mq_rounder *r = new_rounder();
    mq_err err;
    uint64_t seed = 11;
    float w[64], ones[64], omega[64];
    for (int i = 0; i < 64; i++) {
        w[i] = mq_test_normal(&seed);
        ones[i] = 1.0f;
        omega[i] = i < 4 ? 100.0f : 0.01f;
    }
    uint8_t a[64], b[64], c[64];
    uint16_t sa, sb, sc;
    mq_assert_ok(mq_round_group(r, MQ_ROUND_SEARCH, w, NULL, 64, a, &sa, &err), &err);
    mq_assert_ok(mq_round_group(r, MQ_ROUND_SEARCH, w, ones, 64, b, &sb, &err), &err);
    mq_assert_ok(mq_round_group(r, MQ_ROUND_SEARCH, w, omega, 64, c, &sc, &err), &err);
    ck_assert(sa == sb && memcmp(a, b, 64) == 0);
    ck_assert(group_error(w, 4, mq_bf16_to_f32(sc), c) < group_error(w, 4, mq_bf16_to_f32(sa), a));

    memset(omega, 0, sizeof omega); /* no weight at all: any finite scale, the first candidate */
    mq_assert_ok(mq_round_group(r, MQ_ROUND_SEARCH, w, omega, 64, c, &sc, &err), &err);
    ck_assert(isfinite(mq_bf16_to_f32(sc)) && mq_bf16_to_f32(sc) > 0.0f);
    for (int i = 0; i < 64; i++)
        omega[i] = 3e38f; /* sums overflow: still a finite scale */
    mq_assert_ok(mq_round_group(r, MQ_ROUND_SEARCH, w, omega, 64, c, &sc, &err), &err);
    ck_assert(isfinite(mq_bf16_to_f32(sc)) && mq_bf16_to_f32(sc) > 0.0f);
    mq_rounder_free(r);
}
END_TEST

START_TEST(search_is_never_worse_than_rtn)
{
    uint64_t seed = 3;
    for (int trial = 0; trial < 1500; trial++) {
        int g = groups[trial % 3];
        float w[128];
        for (int i = 0; i < g; i++) {
            w[i] = mq_test_normal(&seed);
            if (trial % 2 && i % 17 == 0)
                w[i] *= 6.0f;
        }
        uint8_t a[128], b[128];
        float sa = group_scale(MQ_ROUND_RTN, w, g, a), sb = group_scale(MQ_ROUND_SEARCH, w, g, b);
        /* F32 sums of at most 128 squares order the candidates to about 1e-5. */
        ck_assert(group_error(w, g, sb, b) <= group_error(w, g, sa, a) * 1.00001);
    }
}
END_TEST

/* ---- tiles ---- */

typedef struct matrix {
    float *w;
    const float **rows_of;
    uint8_t *units;
    int64_t rows, cols;
} matrix;

static matrix random_matrix(int64_t rows, int64_t cols, uint64_t seed)
{
    matrix m = {malloc((size_t)(rows * cols) * 4), malloc((size_t)rows * sizeof(float *)),
                malloc((size_t)mq_units_bytes(rows, cols, 32)), rows, cols};
    ck_assert(m.w && m.rows_of && m.units);
    for (int64_t i = 0; i < rows * cols; i++)
        m.w[i] = mq_test_normal(&seed) * 0.02f;
    for (int64_t i = 0; i < rows; i++)
        m.rows_of[i] = m.w + i * cols;
    return m;
}

static void release_matrix(matrix *m)
{
    free(m->w);
    free(m->rows_of);
    free(m->units);
}

/* Relative RMS errors of synthetic Gaussian groups, absmax / 7 and searched, percent: from a prototype in Python. */
START_TEST(relative_error_on_gaussian_weights)
{
    const double rtn[3] = {9.70, 10.76, 11.72}, searched[3] = {8.09, 8.99, 9.71};
    mq_rounder *r = new_rounder();
    matrix m = random_matrix(64, 1024, 5);
    for (int k = 0; k < 3; k++)
        for (int method = 0; method < 2; method++) {
            mq_round_stats stats[2];
            mq_err err;
            mq_assert_ok(mq_round_tiles(r, (mq_round_method)method, m.rows_of, m.rows, m.cols,
                                        groups[k], m.units, false, stats, &err),
                         &err);
            double rms = 100.0 * sqrt(stats[0].err2 / stats[0].norm2);
            printf("g%d %s: %.3f %%\n", groups[k], method ? "search" : "rtn", rms);
            ck_assert_double_le(fabs(rms - (method ? searched : rtn)[k]), 0.15);
            ck_assert(stats[1].err2 == 0.0 && stats[1].norm2 == 0.0);
        }
    release_matrix(&m);
    mq_rounder_free(r);
}
END_TEST

/* Error and norm of rows with i % 16 / 8 == half, from the units. */
static mq_round_stats recompute(const matrix *m, int group, int half)
{
    mq_round_stats s = {0.0, 0.0};
    for (int64_t i = 0; i < m->rows; i++)
        for (int64_t c = 0; c < m->cols && i % 16 / 8 == half; c++) {
            double w = m->rows_of[i][c], d = w - mq_units_at(m->units, m->cols, group, i, c);
            s.err2 += d * d;
            s.norm2 += w * w;
        }
    return s;
}

START_TEST(tiles_equal_the_group_definition_and_stats_equal_a_double_loop)
{
    mq_rounder *r = new_rounder();
    mq_err err;
    for (int k = 0; k < 3; k++)
        for (int method = 0; method < 2; method++) {
            int group = groups[k];
            matrix m =
                random_matrix(32, 640, 9 + (uint64_t)k); /* a chunk of 512 columns and one of 128 */
            mq_round_stats stats[2];
            mq_assert_ok(mq_round_tiles(r, (mq_round_method)method, m.rows_of, m.rows, m.cols,
                                        group, m.units, true, stats, &err),
                         &err);
            for (int64_t i = 0; i < m.rows; i++)
                for (int64_t c = 0; c < m.cols; c += group) {
                    uint8_t codes[128];
                    uint16_t scale;
                    mq_assert_ok(mq_round_group(r, (mq_round_method)method, m.rows_of[i] + c, NULL,
                                                group, codes, &scale, &err),
                                 &err);
                    for (int j = 0; j < group; j++)
                        ck_assert(mq_units_at(m.units, m.cols, group, i, c + j) ==
                                  (float)(codes[j] - 8) * mq_bf16_to_f32(scale));
                }
            for (int half = 0; half < 2; half++) {
                mq_round_stats want = recompute(&m, group, half);
                /* w - s q is one F32 rounding of an exact difference: 2^-24 relative, twice that in
                 * the square */
                ck_assert_double_le(fabs(stats[half].err2 / want.err2 - 1.0), 1e-6);
                ck_assert_double_le(fabs(stats[half].norm2 / want.norm2 - 1.0), 1e-12);
            }
            release_matrix(&m);
        }
    mq_rounder_free(r);
}
END_TEST

START_TEST(matrix_windows_equal_widened_tiles)
{
    mq_rounder *r = new_rounder();
    mq_err err;
    uint64_t seed = 21;
    enum { ROWS = 40, COLS = 768 };
    static uint16_t gate[ROWS * COLS], up[ROWS * COLS];
    static float wide[2][ROWS * COLS];
    for (int i = 0; i < ROWS * COLS; i++) {
        gate[i] = mq_f32_to_bf16(mq_test_normal(&seed));
        up[i] = mq_f32_to_bf16(mq_test_normal(&seed) * 0.5f);
    }
    mq_matrix a = {.scheme = MQ_SCHEME_BF16, .rows = ROWS, .cols = COLS, .data = gate}, b = a;
    b.data = up;
    mq_matrix_widen(&a, 0, ROWS, wide[0]);
    mq_matrix_widen(&b, 0, ROWS, wide[1]);

    mq_round_window win = {&a, &b, 8, 24, 128, 640};
    const float *rows_of[48];
    for (int i = 0; i < 24; i++)
        for (int k = 0; k < 2; k++)
            rows_of[mq_gate_up_row(i, k)] = wide[k] + (8 + i) * COLS + 128;
    static uint8_t want[48 * 640], got[48 * 640];
    mq_round_stats s[2], t[2];
    mq_assert_ok(mq_round_tiles(r, MQ_ROUND_RTN, rows_of, 48, 640, 128, want, true, s, &err), &err);
    mq_assert_ok(mq_round_matrix(r, MQ_ROUND_RTN, &win, 128, got, t, &err), &err);
    ck_assert(memcmp(want, got, (size_t)mq_units_bytes(48, 640, 128)) == 0 &&
              memcmp(s, t, sizeof s) == 0);

    up[9 * COLS + 200] = 0x7fc0;
    mq_assert_fails(mq_round_matrix(r, MQ_ROUND_RTN, &win, 128, got, t, &err), MQ_E_NUMERIC, &err,
                    "up row 9, column 200: weight nan");
    mq_round_window one = {&b, NULL, 0, 16, 0, 768};
    mq_assert_fails(mq_round_matrix(r, MQ_ROUND_SEARCH, &one, 64, got, t, &err), MQ_E_NUMERIC, &err,
                    "row 9, column 200: weight nan");
    one.row0 = 32;
    mq_assert_fails(mq_round_matrix(r, MQ_ROUND_RTN, &one, 64, got, t, &err), MQ_E_SHAPE, &err,
                    "expected a window of [40, 768]");
    one.row0 = 0, one.n_rows = 8;
    mq_assert_fails(mq_round_matrix(r, MQ_ROUND_RTN, &one, 64, got, t, &err), MQ_E_SHAPE, &err,
                    "8 packed rows, expected a multiple of 16");
    mq_matrix packed = {
        .scheme = MQ_SCHEME_INT4, .rows = 16, .cols = 64, .data = want, .group = 64};
    mq_round_window units = {&packed, NULL, 0, 16, 0, 64};
    mq_assert_fails(mq_round_matrix(r, MQ_ROUND_RTN, &units, 64, got, t, &err), MQ_E_UNSUPPORTED,
                    &err, "rounding from int4");
    b.cols = 640;
    mq_assert_fails(mq_round_matrix(r, MQ_ROUND_RTN, &win, 64, got, t, &err), MQ_E_SHAPE, &err,
                    "expected the same shape");
    mq_rounder_free(r);
}
END_TEST

START_TEST(what_is_not_finite_is_refused_by_row_and_column)
{
    mq_rounder *r = new_rounder();
    mq_err err;
    matrix m = random_matrix(32, 576, 2);
    mq_round_stats stats[2];
    const float bad[3] = {NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 3; k++) {
        m.w[17 * 576 + 530] = bad[k];
        mq_assert_fails(
            mq_round_tiles(r, MQ_ROUND_SEARCH, m.rows_of, 32, 576, 64, m.units, false, stats, &err),
            MQ_E_NUMERIC, &err, "row 17, column 530: weight ");
    }
    float w[32] = {0}, omega[32] = {0};
    uint8_t codes[32];
    uint16_t scale;
    w[4] = INFINITY;
    mq_assert_fails(mq_round_group(r, MQ_ROUND_RTN, w, NULL, 32, codes, &scale, &err), MQ_E_NUMERIC,
                    &err, "weight 4 of the group is inf");
    w[4] = 1.0f, omega[9] = -1.0f;
    mq_assert_fails(mq_round_group(r, MQ_ROUND_SEARCH, w, omega, 32, codes, &scale, &err),
                    MQ_E_NUMERIC, &err, "omega 9 of the group is -1");
    release_matrix(&m);
    mq_rounder_free(r);
}
END_TEST

START_TEST(shapes_and_names_are_refused)
{
    mq_rounder *r = new_rounder(), *none;
    mq_err err;
    mq_round_stats stats[2];
    float w[32] = {0};
    uint8_t codes[32];
    uint16_t scale;
    const float *rows_of[16] = {w};
    mq_assert_fails(mq_round_group(r, MQ_ROUND_RTN, w, NULL, 16, codes, &scale, &err), MQ_E_SHAPE,
                    &err, "group 16, expected 32, 64 or 128");
    mq_assert_fails(mq_round_tiles(r, MQ_ROUND_RTN, rows_of, 15, 64, 64, codes, false, stats, &err),
                    MQ_E_SHAPE, &err, "15 packed rows, expected a multiple of 16");
    mq_assert_fails(
        mq_round_tiles(r, MQ_ROUND_RTN, rows_of, 16, 64, 128, codes, false, stats, &err),
        MQ_E_SHAPE, &err, "64 columns, expected a multiple of 128 at group 128");
    mq_assert_fails(mq_round_tiles(r, MQ_ROUND_RTN, rows_of, 16, 64, 0, codes, false, stats, &err),
                    MQ_E_SHAPE, &err, "group 0");
    mq_assert_ok(mq_round_tiles(r, MQ_ROUND_RTN, rows_of, 0, 64, 64, codes, false, stats, &err),
                 &err);
    mq_assert_fails(mq_rounder_create(&none, "sse9", &err), MQ_E_ARG, &err,
                    "instruction set 'sse9'");
    ck_assert_ptr_null(none);
    mq_rounder_free(r);
    mq_rounder_free(NULL);
}
END_TEST

START_TEST(mxfp4_codes_and_scales_only_move)
{
    enum { ROWS = 32, COLS = 192 };
    static uint8_t q[ROWS][COLS / 2], s[ROWS][COLS / 32], units[ROWS * COLS];
    const uint8_t *rows_q[ROWS], *rows_s[ROWS];
    uint64_t seed = 1;
    for (int i = 0; i < ROWS; i++) {
        for (int c = 0; c < COLS / 2; c++)
            q[i][c] = (uint8_t)mq_test_rand(&seed);
        for (int c = 0; c < COLS / 32; c++)
            s[i][c] = (uint8_t)(mq_test_rand(&seed) % 255);
        rows_q[i] = q[i], rows_s[i] = s[i];
    }
    mq_mxfp4_tiles(rows_q, rows_s, ROWS, COLS, units);
    for (int i = 0; i < ROWS; i++)
        for (int c = 0; c < COLS; c++) {
            const uint8_t *unit =
                units + i / 16 * mq_tile_bytes(COLS, MQ_GROUP_MXFP4) + c / 64 * 544;
            ck_assert_uint_eq((unsigned)unit[mq_unit_byte(i % 16, c % 64)] >> mq_unit_shift(i % 16) & 15u,
                              (unsigned)q[i][c / 2] >> (c % 2 * 4) & 15u);
            float want =
                mq_e2m1_to_f32((unsigned)q[i][c / 2] >> (c % 2 * 4) & 15u) * mq_e8m0_to_f32(s[i][c / 32]);
            ck_assert(mq_units_at(units, COLS, MQ_GROUP_MXFP4, i, c) == want);
        }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("round");
    TCase *t = tcase_create("all");
    tcase_add_test(t, zero_group_has_scale_one_and_codes_zero);
    tcase_add_test(t, largest_positive_weight_takes_code_minus_eight);
    tcase_add_test(t, rtn_by_hand);
    tcase_add_test(t, scales_stay_normal_next_to_underflow);
    tcase_add_test(t, search_recovers_trained_lattices_without_error);
    tcase_add_test(t, omega_moves_the_scale_and_ones_change_nothing);
    tcase_add_test(t, search_is_never_worse_than_rtn);
    tcase_add_test(t, relative_error_on_gaussian_weights);
    tcase_add_test(t, tiles_equal_the_group_definition_and_stats_equal_a_double_loop);
    tcase_add_test(t, matrix_windows_equal_widened_tiles);
    tcase_add_test(t, what_is_not_finite_is_refused_by_row_and_column);
    tcase_add_test(t, shapes_and_names_are_refused);
    tcase_add_test(t, mxfp4_codes_and_scales_only_move);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
