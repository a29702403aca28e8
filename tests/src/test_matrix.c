/* Views of stored matrices: every scheme widened by hand, FP8 phases and segments, and what the check refuses. */
#include "src/matrix.h"

#include <stdlib.h>
#include <string.h>

#include "src/float.h"
#include "src/units.h"
#include "tests/harness.h"

START_TEST(plain_schemes_widen_to_their_values)
{
    uint16_t bf[4] = {0x3f80, 0xc000, 0x0000, 0x4248}, half[4] = {0x3c00, 0xc000, 0x0001, 0x7bff};
    float f[4] = {1.5f, -2.5f, 0.0f, 1e30f}, out[4];
    mq_matrix m = {.scheme = MQ_SCHEME_BF16, .rows = 2, .cols = 2, .data = bf};
    mq_matrix_widen(&m, 0, 2, out);
    ck_assert(out[0] == 1.0f && out[1] == -2.0f && out[2] == 0.0f && out[3] == 50.0f);
    mq_matrix_widen(&m, 1, 1, out);
    ck_assert(out[0] == 0.0f && out[1] == 50.0f);
    m.scheme = MQ_SCHEME_F16;
    m.data = half;
    mq_matrix_widen(&m, 0, 2, out);
    ck_assert(out[0] == 1.0f && out[1] == -2.0f && out[2] == 0x1p-24f && out[3] == 65504.0f);
    m.scheme = MQ_SCHEME_F32;
    m.data = f;
    mq_matrix_widen(&m, 0, 2, out);
    ck_assert_int_eq(memcmp(out, f, sizeof f), 0);
}
END_TEST

START_TEST(mxfp4_rows_has_the_even_column_low)
{
    uint8_t data[2 * 32], scale[2 * 2] = {127, 128, 126, 1};
    float out[64];
    memset(data, 0, sizeof data);
    data[0] = 0x72;       /* row 0: column 0 code 2 = 1, column 1 code 7 = 6 */
    data[16] = 0x0f;      /* row 0: column 32 code 15 = -6, scale 2 */
    data[32 + 31] = 0x30; /* row 1: column 63 code 3 = 1.5, scale 2^-126 */
    mq_matrix m = {.scheme = MQ_SCHEME_MXFP4_ROWS, .rows = 2, .cols = 64, .data = data, .scale = scale};
    mq_matrix_widen(&m, 0, 1, out);
    ck_assert(out[0] == 1.0f && out[1] == 6.0f && out[2] == 0.0f && out[32] == -12.0f);
    mq_matrix_widen(&m, 1, 1, out);
    ck_assert_float_eq(out[63], 1.5f * 0x1p-126f);
}
END_TEST

/* A whole FP8 matrix of 300 x 200 in two segments, and a slice of it through phases: equal where they overlap. */
START_TEST(fp8_phases_and_segments_pick_the_same_scales)
{
    enum { ROWS = 300, SEG = 150, COLS = 200 };
    uint8_t *data = malloc(ROWS * COLS);
    float scale[4 * 2], *out = malloc(sizeof(float) * ROWS * COLS);
    for (int i = 0; i < ROWS * COLS; i++)
        data[i] = 0x38; /* 1.0 */
    for (int i = 0; i < 8; i++)
        scale[i] = (float)(i + 1);
    mq_matrix m = {.scheme = MQ_SCHEME_FP8_BLOCK, .rows = ROWS, .cols = COLS, .data = data, .scale = scale, .seg_rows = SEG};
    mq_err err;
    mq_assert_ok(mq_matrix_check(&m, &err), &err);
    ck_assert_int_eq(mq_fp8_seg_scale_rows(&m), 2);
    ck_assert_int_eq(mq_fp8_scale_cols(&m), 2);
    ck_assert_int_eq(mq_fp8_n_scales(&m), 8);
    mq_matrix_widen(&m, 0, ROWS, out);
    ck_assert_float_eq(out[0], 1.0f);
    ck_assert_float_eq(out[127 * COLS + 128], 2.0f);
    ck_assert_float_eq(out[128 * COLS], 3.0f);
    ck_assert_float_eq(out[149 * COLS + 199], 4.0f);
    ck_assert_float_eq(out[150 * COLS], 5.0f); /* scale rows restart with the segment */
    ck_assert_float_eq(out[277 * COLS], 5.0f);
    ck_assert_float_eq(out[278 * COLS + 199], 8.0f);

    /* rows 100 .. 139 of the first segment, columns 120 .. 149 */
    mq_matrix s = {.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 40, .cols = 30, .data = data, .scale = scale, .seg_rows = 40,
                   .row_phase = 100, .col_phase = 120};
    mq_assert_ok(mq_matrix_check(&s, &err), &err);
    ck_assert_int_eq(mq_fp8_n_scales(&s), 4);
    float part[40 * 30];
    mq_matrix_widen(&s, 0, 40, part);
    for (int r = 0; r < 40; r++)
        for (int c = 0; c < 30; c++)
            ck_assert_float_eq(part[r * 30 + c], out[(100 + r) * COLS + 120 + c]);
    free(data);
    free(out);
}
END_TEST

START_TEST(units_widen_as_their_definition)
{
    uint8_t units[2 * 544];
    uint64_t seed = 5;
    float out[32 * 64];
    for (size_t i = 0; i < sizeof units; i++)
        units[i] = (uint8_t)(mq_test_rand(&seed) & 0x77);
    mq_matrix m = {.scheme = MQ_SCHEME_INT4, .rows = 32, .cols = 64, .data = units, .group = 64};
    mq_err err;
    mq_assert_ok(mq_matrix_check(&m, &err), &err);
    mq_matrix_widen(&m, 0, 32, out);
    for (int r = 0; r < 32; r++)
        for (int c = 0; c < 64; c++)
            ck_assert_float_eq(out[r * 64 + c], mq_units_at(units, 64, 64, r, c));
}
END_TEST

START_TEST(check_names_what_does_not_fit)
{
    mq_err err;
    mq_matrix ok = {.scheme = MQ_SCHEME_INT4, .rows = 32, .cols = 128, .group = 128}, m = ok;
    mq_assert_ok(mq_matrix_check(&m, &err), &err);
    m.rows = 24;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "int4 with 24 rows, expected a multiple of 16");
    m = ok;
    m.cols = 64;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "64 columns, expected a multiple of 128");
    m = ok;
    m.group = 48;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "group 48, expected 32, 64 or 128");
    m = ok;
    m.rows = 0;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "[0, 128]");
    m.rows = INT64_MAX / 2;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "2^60");
    m = ok;
    m.scheme = MQ_SCHEME_NONE;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "scheme 0, expected 1 to 7");
    m.scheme = (mq_scheme)99;
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "scheme 99");
    m = (mq_matrix){.scheme = MQ_SCHEME_MXFP4, .rows = 16, .cols = 64, .group = 32};
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "group 32, expected 0");
    m = (mq_matrix){.scheme = MQ_SCHEME_MXFP4_ROWS, .rows = 16, .cols = 48};
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "48 columns, expected a multiple of 32");
    m = (mq_matrix){.scheme = MQ_SCHEME_BF16, .rows = 16, .cols = 48, .group = 64};
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "bf16 with group 64");
    m = (mq_matrix){.scheme = MQ_SCHEME_BF16, .rows = 16, .cols = 48, .row_phase = 3};
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "segments or phases");
    m = (mq_matrix){.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 16, .cols = 48, .seg_rows = 5};
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "segments of 5 rows");
    m = (mq_matrix){.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 16, .cols = 48, .seg_rows = 16, .col_phase = 128};
    mq_assert_fails(mq_matrix_check(&m, &err), MQ_E_SHAPE, &err, "phases (0, 128), expected 0 to 127");
}
END_TEST

START_TEST(every_scheme_has_its_name)
{
    ck_assert_str_eq(mq_scheme_name(MQ_SCHEME_BF16), "bf16");
    ck_assert_str_eq(mq_scheme_name(MQ_SCHEME_FP8_BLOCK), "fp8_block");
    ck_assert_str_eq(mq_scheme_name(MQ_SCHEME_MXFP4_ROWS), "mxfp4_rows");
    ck_assert_str_eq(mq_scheme_name((mq_scheme)77), "unknown");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("matrix");
    TCase *t = tcase_create("views");
    tcase_add_test(t, plain_schemes_widen_to_their_values);
    tcase_add_test(t, mxfp4_rows_has_the_even_column_low);
    tcase_add_test(t, fp8_phases_and_segments_pick_the_same_scales);
    tcase_add_test(t, units_widen_as_their_definition);
    tcase_add_test(t, check_names_what_does_not_fit);
    tcase_add_test(t, every_scheme_has_its_name);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
