/* Slices cut from a whole matrix and merged again: every weight equal, for every scheme, by rows
 * and by columns. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/merge.h"
#include "src/dtype.h"
#include "src/units.h"
#include "tests/harness.h"

enum { MAX_PARTS = 8 };

static uint64_t seed = 1;

static void noise(uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = (uint8_t)(mq_test_rand(&seed) & 0x77); /* finite in BF16, F16, F32, E4M3 and E8M0 */
}

/* A matrix whose memory hangs on it; FP8 as seg_rows and phases say. */
static mq_matrix make(mq_scheme scheme, int group, int64_t rows, int64_t cols, int64_t seg_rows,
                      int row_phase, int col_phase)
{
    mq_matrix m = {.scheme = scheme, .rows = rows, .cols = cols, .group = group};
    int64_t bytes = rows * cols * 4;
    if (scheme == MQ_SCHEME_INT4 || scheme == MQ_SCHEME_MXFP4)
        bytes = mq_units_bytes(rows, cols, group);
    uint8_t *data = malloc((size_t)bytes);
    noise(data, bytes);
    m.data = data;
    if (scheme == MQ_SCHEME_FP8_BLOCK) {
        m.seg_rows = seg_rows;
        m.row_phase = row_phase;
        m.col_phase = col_phase;
        int64_t n = mq_fp8_n_scales(&m);
        float *scale = malloc((size_t)n * sizeof *scale);
        for (int64_t i = 0; i < n; i++)
            scale[i] = mq_test_normal(&seed);
        m.scale = scale;
    }
    return m;
}

static void drop(mq_matrix *m)
{
    free((void *)(uintptr_t)m->data);
    free((void *)(uintptr_t)m->scale);
}

static float *widen(const mq_matrix *m)
{
    float *w = malloc((size_t)(m->rows * m->cols) * sizeof *w);
    mq_matrix_widen(m, 0, m->rows, w);
    return w;
}

/* Cut rows [row0, row0 + rows) of a plain or FP8 matrix whose segments are part_rows long. */
static mq_part cut_rows(const mq_matrix *w, int64_t row0, int64_t rows)
{
    mq_part p = {*w, row0, 0};
    p.m.rows = rows;
    bool whole =
        w->scheme == MQ_SCHEME_FP8_BLOCK && row0 % w->seg_rows == 0 && rows % w->seg_rows == 0;
    if (w->scheme == MQ_SCHEME_FP8_BLOCK) {
        p.m.seg_rows = whole ? w->seg_rows : rows;
        p.m.row_phase = (int)((w->row_phase + row0 % w->seg_rows) % 128);
    }
    bool units = w->scheme == MQ_SCHEME_INT4 || w->scheme == MQ_SCHEME_MXFP4;
    int64_t element = w->scheme == MQ_SCHEME_F32 ? 4 : w->scheme == MQ_SCHEME_FP8_BLOCK ? 1 : 2;
    int64_t run = units ? mq_tile_bytes(w->cols, w->group) : w->cols * element;
    int64_t first_run = units ? row0 / 16 : row0, n = units ? rows / 16 : rows;
    uint8_t *data = malloc((size_t)(n * run));
    memcpy(data, (const uint8_t *)w->data + first_run * run, (size_t)(n * run));
    p.m.data = data;
    if (w->scheme == MQ_SCHEME_FP8_BLOCK) {
        int64_t cols = mq_fp8_scale_cols(w), n_scales = mq_fp8_n_scales(&p.m);
        int64_t first = row0 / w->seg_rows * mq_fp8_seg_scale_rows(w) +
                        (w->row_phase + row0 % w->seg_rows) / 128;
        float *scale = malloc((size_t)n_scales * sizeof *scale);
        memcpy(scale, (const float *)w->scale + first * cols, (size_t)n_scales * sizeof *scale);
        p.m.scale = scale;
    }
    return p;
}

static mq_part cut_cols(const mq_matrix *w, int64_t col0, int64_t cols)
{
    mq_part p = {*w, 0, col0};
    p.m.cols = cols;
    bool units = w->scheme == MQ_SCHEME_INT4 || w->scheme == MQ_SCHEME_MXFP4;
    int64_t bytes = w->scheme == MQ_SCHEME_F32 ? 4 : w->scheme == MQ_SCHEME_FP8_BLOCK ? 1 : 2;
    int64_t n = units ? w->rows / 16 : w->rows;
    int64_t run = units ? mq_tile_bytes(cols, w->group) : cols * bytes;
    int64_t stride = units ? mq_tile_bytes(w->cols, w->group) : w->cols * bytes;
    int64_t off = units ? mq_tile_bytes(col0, w->group) : col0 * bytes;
    uint8_t *data = malloc((size_t)(n * run));
    for (int64_t i = 0; i < n; i++)
        memcpy(data + i * run, (const uint8_t *)w->data + i * stride + off, (size_t)run);
    p.m.data = data;
    if (w->scheme != MQ_SCHEME_FP8_BLOCK)
        return p;
    p.m.col_phase = (int)((w->col_phase + col0) % 128);
    int64_t all = mq_fp8_scale_cols(w), have = mq_fp8_scale_cols(&p.m);
    int64_t rows = mq_fp8_n_scales(w) / all, first = (w->col_phase + col0) / 128;
    float *scale = malloc((size_t)(rows * have) * sizeof *scale);
    for (int64_t r = 0; r < rows; r++)
        memcpy(scale + r * have, (const float *)w->scale + r * all + first, (size_t)have * 4);
    p.m.scale = scale;
    return p;
}

/* Merge, measured and done; the widened result equals rows [row0, ...) of whole. */
static void check_merge(const mq_matrix *whole, int64_t row0, mq_part *parts, int n,
                        int64_t part_rows)
{
    mq_err err;
    mq_matrix out, planned;
    mq_slot slot = {.measuring = true};
    mq_assert_ok(mq_merge_parts(&slot, &planned, parts, n, part_rows, &err), &err);
    uint8_t *mem = aligned_alloc(64, (size_t)mq_round_up(slot.used, 64));
    slot = (mq_slot){.mem = mem, .cap = slot.used};
    mq_assert_ok(mq_merge_parts(&slot, &out, parts, n, part_rows, &err), &err);
    mq_assert_ok(mq_matrix_check(&out, &err), &err);
    ck_assert_int_eq(planned.rows, out.rows);
    ck_assert_int_eq(planned.seg_rows, out.seg_rows);
    ck_assert_int_eq(slot.used, slot.cap);

    float *expected = widen(whole), *got = widen(&out);
    ck_assert_int_eq(out.cols, whole->cols);
    ck_assert(memcmp(got, expected + row0 * whole->cols, (size_t)(out.rows * out.cols) * 4) == 0);
    free(expected);
    free(got);
    free(mem);
    for (int i = 0; i < n; i++)
        drop(&parts[i].m);
}

START_TEST(plain_and_unit_matrices)
{
    static const struct {
        mq_scheme scheme;
        int group;
    } kinds[] = {{MQ_SCHEME_BF16, 0},
                 {MQ_SCHEME_F16, 0},
                 {MQ_SCHEME_F32, 0},
                 {MQ_SCHEME_INT4, 32},
                 {MQ_SCHEME_INT4, 64},
                 {MQ_SCHEME_INT4, 128},
                 {MQ_SCHEME_MXFP4, MQ_GROUP_MXFP4}};
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
        for (int n = 1; n <= 4; n++) {
            mq_part parts[MAX_PARTS];
            mq_matrix w = make(kinds[k].scheme, kinds[k].group, 16 * n, 128 * n, 0, 0, 0);
            for (int i = 0; i < n; i++)
                parts[i] = cut_rows(&w, 16 * i, 16);
            check_merge(&w, 0, parts, n, INT64_MAX);
            for (int i = 0; i < n; i++)
                parts[i] = cut_cols(&w, 128 * i, 128);
            check_merge(&w, 0, parts, n, INT64_MAX);
            drop(&w);
        }
}
END_TEST

/* 8 slices of 48 rows: borders at 48, 96, 144 ... lie inside blocks; slices of 128 rows touch none.
 */
START_TEST(fp8_rows_that_share_blocks)
{
    static const int64_t heights[4] = {48, 128, 100, 320};
    for (int h = 0; h < 4; h++) {
        mq_part parts[MAX_PARTS];
        mq_matrix w = make(MQ_SCHEME_FP8_BLOCK, 0, 8 * heights[h], 200, 8 * heights[h], 0, 0);
        for (int first = 0; first < 8; first += 2)
            for (int n = 1; first + n <= 8; n++) {
                for (int i = 0; i < n; i++)
                    parts[i] = cut_rows(&w, (first + i) * heights[h], heights[h]);
                check_merge(&w, first * heights[h], parts, n, INT64_MAX);
            }
        drop(&w);
    }
}
END_TEST

/* Two chunks whose k part starts 64 rows into a block (192 query rows before it): each rank has
 * half a chunk's part, a whole one, or several. */
START_TEST(fp8_rows_of_fused_chunks)
{
    mq_part parts[MAX_PARTS];
    mq_matrix w = make(MQ_SCHEME_FP8_BLOCK, 0, 4 * 96, 130, 96, 64, 0);
    for (int i = 0; i < 8; i++)
        parts[i] = cut_rows(&w, 48 * i, 48);
    check_merge(&w, 0, parts, 8, 96);
    for (int i = 0; i < 4; i++)
        parts[i] = cut_rows(&w, 96 * i, 96);
    check_merge(&w, 0, parts, 4, 96);
    for (int i = 0; i < 2; i++)
        parts[i] = cut_rows(&w, 192 * i, 192);
    check_merge(&w, 0, parts, 2, 96);
    for (int i = 0; i < 2; i++)
        parts[i] = cut_rows(&w, 96 + 48 * i, 48);
    check_merge(&w, 96, parts, 2, 96);
    drop(&w);

    /* Both segments end at phase 64 where the next begins: still not one block (the published value
     * heads). */
    w = make(MQ_SCHEME_FP8_BLOCK, 0, 2 * 128, 130, 128, 64, 0);
    for (int i = 0; i < 2; i++)
        parts[i] = cut_rows(&w, 128 * i, 128);
    check_merge(&w, 0, parts, 2, 128);
    drop(&w);
}
END_TEST

START_TEST(fp8_columns_that_share_blocks)
{
    static const int64_t widths[3] = {64, 128, 200};
    for (int h = 0; h < 3; h++) {
        mq_part parts[MAX_PARTS];
        mq_matrix w = make(MQ_SCHEME_FP8_BLOCK, 0, 3 * 70, 5 * widths[h], 70, 60, 0);
        for (int i = 0; i < 5; i++)
            parts[i] = cut_cols(&w, i * widths[h], widths[h]);
        check_merge(&w, 0, parts, 5, INT64_MAX);
        drop(&w);
    }
}
END_TEST

START_TEST(slices_that_disagree_are_refused)
{
    mq_err err;
    mq_matrix out, w = make(MQ_SCHEME_FP8_BLOCK, 0, 200, 200, 200, 0, 0);
    mq_part parts[2] = {cut_rows(&w, 0, 100), cut_rows(&w, 100, 100)};
    uint8_t *mem = malloc(1 << 20);
    mq_slot slot = {.mem = mem, .cap = 1 << 20};
    ((float *)(uintptr_t)parts[1].m.scale)[0] += 1.0f;
    mq_assert_fails(mq_merge_parts(&slot, &out, parts, 2, INT64_MAX, &err), MQ_E_FORMAT, &err,
                    "two ranks disagree on the scale of a block they share");
    mq_assert_fails(mq_merge_parts(&slot, &out, parts, 2, 150, &err), MQ_E_ARG, &err,
                    "rows 0 to 200 are neither inside a chunk of 150 rows nor whole chunks");
    parts[1].row0 = 101;
    mq_assert_fails(mq_merge_parts(&slot, &out, parts, 2, INT64_MAX, &err), MQ_E_FORMAT, &err,
                    "do not follow each other");
    parts[1].m.scheme = MQ_SCHEME_BF16;
    mq_assert_fails(mq_merge_parts(&slot, &out, parts, 2, INT64_MAX, &err), MQ_E_FORMAT, &err,
                    "stored as fp8_block and as bf16 by different ranks");
    drop(&parts[0].m);
    drop(&parts[1].m);
    free(mem);

    parts[0] = cut_cols(&w, 0, 100);
    parts[1] = cut_cols(&w, 100, 100);
    mem = malloc(1 << 20);
    slot = (mq_slot){.mem = mem, .cap = 1 << 20};
    ((float *)(uintptr_t)parts[1].m.scale)[2] += 1.0f; /* second row, shared column */
    mq_assert_fails(mq_merge_parts(&slot, &out, parts, 2, INT64_MAX, &err), MQ_E_FORMAT, &err,
                    "two ranks disagree");
    slot = (mq_slot){.mem = mem, .cap = 1000};
    mq_assert_fails(mq_merge_parts(&slot, &out, parts, 2, INT64_MAX, &err), MQ_E_BUG, &err,
                    "measured 1000");
    drop(&parts[0].m);
    drop(&parts[1].m);
    free(mem);
    drop(&w);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("merge");
    TCase *t = tcase_create("merge");
    tcase_add_test(t, plain_and_unit_matrices);
    tcase_add_test(t, fp8_rows_that_share_blocks);
    tcase_add_test(t, fp8_rows_of_fused_chunks);
    tcase_add_test(t, fp8_columns_that_share_blocks);
    tcase_add_test(t, slices_that_disagree_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
