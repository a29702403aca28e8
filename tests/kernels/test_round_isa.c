/* Scalar, AVX2 and AVX-512 rounding give the same bytes and the same error sums; widening gives the
 * bits of mq_matrix_widen. What this processor lacks is left out and said. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/round.h"
#include "src/float.h"
#include "src/units.h"
#include "tests/harness.h"

enum { MAX_ROWS = 48, MAX_COLS = 1152 };
static const char *const fast[2] = {"avx2", "avx512"};

static mq_rounder *open_isa(const char *isa)
{
    mq_rounder *r;
    mq_err err;
    mq_status st = mq_rounder_create(&r, isa, &err);
    if (st == MQ_E_DEVICE) {
        printf("SKIPPED: %s\n", err.text);
        return NULL;
    }
    ck_assert_int_eq(st, MQ_OK);
    ck_assert_str_eq(mq_rounder_isa(r), isa);
    return r;
}

typedef enum noise {
    NORMAL,
    STUDENT,
    OUTLIERS,
    SUBNORMAL,
    TINY,
    HUGE_VALUES,
    ZEROS,
    HALVES,
    WIDE,
    ONE_SIGN,
    N_NOISE
} noise;

static float draw(noise kind, uint64_t *seed)
{
    float x = mq_test_normal(seed);
    uint64_t u = mq_test_rand(seed);
    switch (kind) {
    case STUDENT: { /* 5 degrees of freedom */
        float sum = 0.0f;
        for (int i = 0; i < 5; i++) {
            float y = mq_test_normal(seed);
            sum += y * y;
        }
        return x / sqrtf(sum / 5.0f);
    }
    case OUTLIERS:
        return u % 50 ? x : 40.0f * x;
    case SUBNORMAL:
        return x * 0x1p-138f;
    case TINY:
        return x * 0x1p-122f; /* around the guards */
    case HUGE_VALUES:
        return fmaxf(fminf(x * 0x1p126f, 0x1.fffffep127f), -0x1.fffffep127f);
    case ZEROS:
        return u % 7 ? -0.0f : u % 3 ? 0.0f : x;
    case HALVES:
        return (float)((int)(u % 33) - 16) *
               0.25f; /* ties everywhere, equal magnitudes of both signs */
    case WIDE:
        return ldexpf(x, (int)(u % 250) - 125);
    case ONE_SIGN:
        return -fabsf(x);
    default:
        return x;
    }
}

/* Rows of one kind, with a few groups of zeros between. */
static void fill(float *w, int64_t rows, int64_t cols, noise kind, uint64_t seed)
{
    for (int64_t i = 0; i < rows * cols; i++)
        w[i] = draw(kind, &seed);
    for (int64_t i = 0; i < rows; i += 5)
        memset(w + i * cols + i % 4 * 32, 0, 32 * sizeof *w);
    for (int64_t i = 0; i < rows * cols; i++)
        w[i] = isfinite(w[i]) ? w[i] : 1.0f;
}

static float w[MAX_ROWS * MAX_COLS + 1];
static const float *rows_of[MAX_ROWS];
static uint8_t want[MAX_ROWS * MAX_COLS], got[MAX_ROWS * MAX_COLS];

static void compare(mq_rounder *slow, mq_rounder *r, int method, int group, int64_t rows,
                    int64_t cols, noise kind)
{
    mq_round_stats a[2], b[2];
    mq_err err;
    size_t bytes = (size_t)mq_units_bytes(rows, cols, group);
    memset(want, 1, sizeof want);
    memset(got, 2, sizeof got);
    mq_assert_ok(mq_round_tiles(slow, (mq_round_method)method, rows_of, rows, cols, group, want,
                                true, a, &err),
                 &err);
    mq_assert_ok(
        mq_round_tiles(r, (mq_round_method)method, rows_of, rows, cols, group, got, true, b, &err),
        &err);
    for (size_t i = 0; i < bytes; i++)
        ck_assert_msg(
            want[i] == got[i],
            "%s, method %d, group %d, [%lld, %lld], noise %d: byte %zu of %zu: %02x, %02x",
            mq_rounder_isa(r), method, group, (long long)rows, (long long)cols, (int)kind, i, bytes,
            want[i], got[i]);
    ck_assert_msg(memcmp(a, b, sizeof a) == 0,
                  "%s, method %d, group %d, noise %d: sums %a %a, %a %a", mq_rounder_isa(r), method,
                  group, (int)kind, a[0].err2, b[0].err2, a[0].norm2, b[0].norm2);
    ck_assert(isfinite(a[0].err2) && isfinite(a[1].norm2));
}

START_TEST(every_instruction_set_gives_the_same_bytes)
{
    const int64_t cols[4] = {128, 512, 640, 1152};
    mq_rounder *slow = open_isa("scalar");
    for (int f = 0; f < 2; f++) {
        mq_rounder *r = open_isa(fast[f]);
        for (int kind = 0; r && kind < N_NOISE; kind++)
            for (int shape = 0; shape < 4; shape++) {
                int64_t rows = 16 * (1 + shape % 3), n = cols[shape];
                float *at = w + shape % 2; /* rows need no alignment */
                fill(at, rows, n, (noise)kind, (uint64_t)(100 * kind + shape));
                for (int64_t i = 0; i < rows; i++)
                    rows_of[i] = at + i * n;
                for (int group = 32; group <= 128; group *= 2)
                    for (int method = 0; method < 2; method++)
                        compare(slow, r, method, group, rows, n, (noise)kind);
            }
        mq_rounder_free(r);
    }
    mq_rounder_free(slow);
}
END_TEST

START_TEST(columns_of_64_are_enough_below_g128)
{
    mq_rounder *slow = open_isa("scalar");
    for (int f = 0; f < 2; f++) {
        mq_rounder *r = open_isa(fast[f]);
        fill(w, 16, 64, NORMAL, 4);
        for (int64_t i = 0; i < 16; i++)
            rows_of[i] = w + i * 64;
        for (int method = 0; r && method < 2; method++)
            for (int group = 32; group <= 64; group *= 2)
                compare(slow, r, method, group, 16, 64, NORMAL);
        mq_rounder_free(r);
    }
    mq_rounder_free(slow);
}
END_TEST

START_TEST(every_instruction_set_refuses_the_same_weight)
{
    for (int f = 0; f < 2; f++) {
        mq_rounder *r = open_isa(fast[f]);
        const uint32_t bad[4] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xff800001u};
        for (int k = 0; r && k < 4; k++) {
            mq_round_stats stats[2];
            mq_err err;
            fill(w, 16, 128, NORMAL, 4);
            w[11 * 128 + 77 + k] = mq_f32_from_bits(bad[k]);
            for (int64_t i = 0; i < 16; i++)
                rows_of[i] = w + i * 128;
            char place[64];
            snprintf(place, sizeof place, "row 11, column %d: weight", 77 + k);
            mq_assert_fails(
                mq_round_tiles(r, MQ_ROUND_RTN, rows_of, 16, 128, 32, got, false, stats, &err),
                MQ_E_NUMERIC, &err, place);
        }
        mq_rounder_free(r);
    }
}
END_TEST

/* ---- widening ---- */

static uint8_t stored[64 * 1024 * 4];
static float wide_want[64 * 1024], wide_got[64 * 1024];

static void compare_widen(mq_rounder *r, const mq_matrix *m)
{
    mq_err err;
    mq_assert_ok(mq_matrix_check(m, &err), &err);
    memset(wide_got, 0x55, sizeof wide_got);
    mq_matrix_widen(m, 1, m->rows - 1, wide_want);
    mq_round_widen(r, m, 1, m->rows - 1, wide_got);
    for (int64_t i = 0; i < (m->rows - 1) * m->cols; i++)
        ck_assert_msg(mq_f32_bits(wide_want[i]) == mq_f32_bits(wide_got[i]),
                      "%s, %s, cols %lld, element %lld: %08x, %08x", mq_rounder_isa(r),
                      mq_scheme_name(m->scheme), (long long)m->cols, (long long)i,
                      mq_f32_bits(wide_want[i]), mq_f32_bits(wide_got[i]));
}

static void widen_everything(mq_rounder *r)
{
    uint64_t seed = 31;
    static float scales[4096];
    static uint8_t exponents[65536];
    for (size_t i = 0; i < sizeof stored; i++)
        stored[i] = (uint8_t)mq_test_rand(&seed);
    for (size_t i = 0; i < 4096; i++)
        scales[i] = mq_test_normal(&seed) * (i % 9 ? 0.01f : 0x1p-130f);
    for (size_t i = 0; i < 65536; i++)
        exponents[i] = (uint8_t)mq_test_rand(&seed);

    const int64_t cols[5] = {1, 7, 64, 131, 1000};
    for (int k = 0; k < 5; k++) {
        mq_matrix m = {.scheme = MQ_SCHEME_BF16, .rows = 12, .cols = cols[k], .data = stored};
        compare_widen(r, &m);
        m.scheme = MQ_SCHEME_F32;
        compare_widen(r, &m);
        m.scheme = MQ_SCHEME_F16; /* every bit pattern, NaN and subnormal too, comes up below */
        compare_widen(r, &m);
        m.scheme = MQ_SCHEME_FP8_BLOCK, m.scale = scales, m.rows = 36, m.seg_rows = 12;
        m.row_phase = 120, m.col_phase = 37 * k % 128;
        compare_widen(r, &m);
    }
    mq_matrix mx = {.scheme = MQ_SCHEME_MXFP4_ROWS,
                    .rows = 40,
                    .cols = 992,
                    .data = stored,
                    .scale = exponents};
    compare_widen(r, &mx);

    for (int i = 0; i < 65536; i++)
        memcpy(stored + 2 * i, &(uint16_t){(uint16_t)i}, 2);
    mq_matrix all = {.scheme = MQ_SCHEME_F16, .rows = 64, .cols = 1024, .data = stored};
    compare_widen(r, &all);
    for (int i = 0; i < 512; i++) /* codes in order, with and without NaN in the sixteen */
        stored[i] = (uint8_t)(i < 256 ? i : i % 127);
    mq_matrix f8 = {.scheme = MQ_SCHEME_FP8_BLOCK,
                    .rows = 2,
                    .cols = 256,
                    .data = stored,
                    .scale = scales,
                    .seg_rows = 2};
    compare_widen(r, &f8);
    f8.data = stored + 256;
    compare_widen(r, &f8);
}

START_TEST(widening_gives_the_bits_of_the_definition)
{
    const char *const all[3] = {"scalar", "avx2", "avx512"};
    for (int f = 0; f < 3; f++) {
        mq_rounder *r = open_isa(all[f]);
        if (r)
            widen_everything(r);
        mq_rounder_free(r);
    }
}
END_TEST

START_TEST(matrix_entry_equals_tiles_for_fp8_and_mxfp4_slices)
{
    uint64_t seed = 8;
    static float scales[64];
    static uint8_t exponents[16 * 12];
    for (int i = 0; i < 64; i++)
        scales[i] = 0.01f * (float)(i + 1);
    for (int i = 0; i < 16 * 12; i++)
        exponents[i] = (uint8_t)(120 + mq_test_rand(&seed) % 8);
    for (int i = 0; i < 16 * 384; i++) {
        stored[i] = (uint8_t)mq_test_rand(&seed);
        stored[i] = (uint8_t)((stored[i] & 0x7f) == 0x7f ? 0 : stored[i]);
    }
    mq_matrix sources[2] = {{.scheme = MQ_SCHEME_FP8_BLOCK,
                             .rows = 16,
                             .cols = 384,
                             .data = stored,
                             .scale = scales,
                             .seg_rows = 16},
                            {.scheme = MQ_SCHEME_MXFP4_ROWS,
                             .rows = 16,
                             .cols = 384,
                             .data = stored,
                             .scale = exponents}};
    mq_rounder *r = open_isa("scalar"), *best;
    mq_err err;
    mq_assert_ok(mq_rounder_create(&best, NULL, &err), &err);
    for (int k = 0; k < 2; k++) {
        mq_matrix_widen(&sources[k], 0, 16, wide_want);
        for (int i = 0; i < 16; i++)
            rows_of[i] = wide_want + i * 384 + 192;
        mq_round_window win = {&sources[k], NULL, 0, 16, 192, 192};
        mq_round_stats a[2], b[2];
        mq_assert_ok(mq_round_tiles(r, MQ_ROUND_SEARCH, rows_of, 16, 192, 64, want, false, a, &err),
                     &err);
        mq_assert_ok(mq_round_matrix(best, MQ_ROUND_SEARCH, &win, 64, got, b, &err), &err);
        ck_assert(memcmp(want, got, (size_t)mq_units_bytes(16, 192, 64)) == 0 &&
                  memcmp(a, b, sizeof a) == 0);
    }
    mq_round_window odd = {&sources[1], NULL, 0, 16, 16, 192};
    mq_round_stats a[2];
    mq_assert_fails(mq_round_matrix(best, MQ_ROUND_SEARCH, &odd, 64, got, a, &err), MQ_E_SHAPE,
                    &err, "first column 16 of mxfp4_rows, expected a multiple of 32");
    mq_rounder_free(best);
    mq_rounder_free(r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("round_isa");
    TCase *t = tcase_create("all");
    tcase_add_test(t, every_instruction_set_gives_the_same_bytes);
    tcase_add_test(t, columns_of_64_are_enough_below_g128);
    tcase_add_test(t, every_instruction_set_refuses_the_same_weight);
    tcase_add_test(t, widening_gives_the_bits_of_the_definition);
    tcase_add_test(t, matrix_entry_equals_tiles_for_fp8_and_mxfp4_slices);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
