/* The public face of rounding: choice of the instruction set, checks, and the walk over tiles and
 * chunks of columns.
 *
 * What a group's scale and codes are is said in round.h and computed in round_scalar.c and its fast
 * twins; this file cuts the work into 16 rows x 512 columns so that weights stay in the first-level
 * cache between the passes (largest magnitude, scales, codes), and adds the error sums in one fixed
 * order. */
#include "kernels/round.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/round_ops.h"
#include "src/isa.h"

/* Row stride of the widened tile: 64 bytes more than a chunk, so that 16 rows do not share cache
 * sets. */
enum { TILE_STRIDE = MQ_ROUND_CHUNK + 16 };

struct mq_rounder {
    _Alignas(64) float tile[MQ_UNIT_ROWS][TILE_STRIDE];
    _Alignas(64) float work[128 * MQ_UNIT_ROWS];
    _Alignas(64) uint32_t max[MQ_ROUND_GROUPS][MQ_UNIT_ROWS];
    mq_round_scales scales;
    mq_round_lanes lanes[MQ_UNIT_ROWS];
    const mq_round_ops *ops;
};

mq_status mq_round_ops_find(const mq_round_ops **out, const char *isa, mq_err *err)
{
    static const mq_round_ops *const ops[] = {
        [MQ_ISA_SCALAR] = &mq_round_ops_scalar,
        [MQ_ISA_AVX2] = &mq_round_ops_avx2,
        [MQ_ISA_AVX512] = &mq_round_ops_avx512,
    };
    mq_isa which;
    MQ_TRY(mq_isa_choose(&which, isa, err));
    *out = ops[which];
    return MQ_OK;
}

mq_status mq_rounder_create(mq_rounder **out, const char *isa, mq_err *err)
{
    *out = NULL;
    const mq_round_ops *ops;
    MQ_TRY(mq_round_ops_find(&ops, isa, err));
    mq_rounder *r = aligned_alloc(64, sizeof *r);
    if (!r)
        return mq_fail(err, MQ_E_NOMEM, "out of memory (rounding workspace)");
    memset(r, 0, sizeof *r);
    r->ops = ops;
    *out = r;
    return MQ_OK;
}

void mq_rounder_free(mq_rounder *r)
{
    free(r);
}

const char *mq_rounder_isa(const mq_rounder *r)
{
    return r->ops->name;
}

/* ---- one group ---- */

static bool is_group(int g)
{
    return g == 32 || g == 64 || g == 128;
}

static mq_status check_group(const float *w, const float *omega, int g, mq_err *err)
{
    if (!is_group(g))
        return mq_fail(err, MQ_E_SHAPE, "group %d, expected 32, 64 or 128", g);
    for (int i = 0; i < g; i++) {
        if (!isfinite(w[i]))
            return mq_fail(err, MQ_E_NUMERIC,
                           "weight %d of the group is %g, expected a finite number", i,
                           (double)w[i]);
        if (omega && !(omega[i] >= 0.0f && isfinite(omega[i])))
            return mq_fail(err, MQ_E_NUMERIC,
                           "omega %d of the group is %g, expected finite and not negative", i,
                           (double)omega[i]);
    }
    return MQ_OK;
}

mq_status mq_round_group(mq_rounder *r, mq_round_method method, const float *w, const float *omega,
                         int g, uint8_t *codes, uint16_t *scale, mq_err *err)
{
    (void)r;
    MQ_TRY(check_group(w, omega, g, err));
    uint32_t max = 0;
    for (int i = 0; i < g; i++) {
        uint32_t bits = mq_f32_bits(w[i]) & 0x7fffffffu;
        max = bits > max ? bits : max;
    }
    bool is_search = method == MQ_ROUND_SEARCH;
    mq_round_one one = {mq_round_rtn_scale(max), 1.0f, 1.0f};
    if (is_search)
        one = mq_round_search_one(w, omega, g, max);
    for (int i = 0; i < g; i++) {
        float x = is_search ? w[i] * one.pre * one.inv : w[i] / one.s;
        x = x < 7.0f ? x : 7.0f;
        x = x > -8.0f ? x : -8.0f;
        codes[i] = (uint8_t)(mq_f32_bits(x + MQ_ROUND_MAGIC) & 15u);
    }
    *scale = mq_f32_to_bf16(one.s);
    return MQ_OK;
}

/* ---- tiles ---- */

static mq_status check_units(int64_t rows, int64_t cols, int group, mq_err *err)
{
    if (!is_group(group))
        return mq_fail(err, MQ_E_SHAPE, "group %d, expected 32, 64 or 128", group);
    if (rows < 0 || rows % MQ_UNIT_ROWS)
        return mq_fail(err, MQ_E_SHAPE, "%lld packed rows, expected a multiple of 16",
                       (long long)rows);
    if (cols < 0 || cols % mq_block_cols(group))
        return mq_fail(err, MQ_E_SHAPE, "%lld columns, expected a multiple of %d at group %d",
                       (long long)cols, mq_block_cols(group), group);
    return MQ_OK;
}

/* Scales are exact in BF16, so their upper halves are the stored bits; rows g and g + 8 stand side
 * by side. */
static void store_scales(const mq_round_chunk *c, const mq_round_scales *scales)
{
    int block_cols = mq_block_cols(c->group),
        code_bytes = block_cols / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
    for (int k = 0; k < c->n_cols / c->group; k++) {
        int col = k * c->group;
        uint8_t *to = c->blocks + col / block_cols * mq_block_bytes(c->group) + code_bytes;
        for (int g = 0; g < MQ_UNIT_ROWS / 2; g++) {
            uint32_t low = mq_f32_bits(scales->s[k][g]), high = mq_f32_bits(scales->s[k][g + 8]);
            uint32_t pair = low >> 16 | (high & 0xffff0000u);
            memcpy(to + 2 * mq_unit_scale_index(g, col % block_cols, c->group), &pair, sizeof pair);
        }
    }
}

/* Scales, codes and error sums of one chunk.  False: a weight is not finite. */
static bool round_chunk(mq_rounder *r, mq_round_method method, const mq_round_chunk *c)
{
    bool is_search = method == MQ_ROUND_SEARCH;
    int n_groups = c->n_cols / c->group;
    r->ops->absmax(c, r->max);
    uint32_t most = 0;
    for (int k = 0; k < n_groups; k++)
        for (int i = 0; i < MQ_UNIT_ROWS; i++)
            most = r->max[k][i] > most ? r->max[k][i] : most;
    if (most >= 0x7f800000u)
        return false;

    for (int k = 0; k < n_groups; k++) {
        if (is_search)
            r->ops->search(c, k, NULL, r->max[k], &r->scales, r->work);
        else
            r->ops->rtn(r->max[k], r->scales.s[k]);
    }
    store_scales(c, &r->scales);
    for (int g = 0; g < MQ_UNIT_ROWS / 2; g++)
        r->ops->encode(c, g, is_search, &r->scales, &r->lanes[g], &r->lanes[g + 8]);
    return true;
}

/* First weight of the chunk that is not finite. */
static void find_bad(const mq_round_chunk *c, int *row, int *col)
{
    for (*row = 0; *row < MQ_UNIT_ROWS; ++*row)
        for (*col = 0; *col < c->n_cols; ++*col)
            if (!isfinite(c->rows[*row][*col]))
                return;
    assert(false && "a weight that is not finite");
}

static double sum_lanes(const double x[8])
{
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* Add a tile's rows to stats in row order. */
static void add_lanes(const mq_rounder *r, bool split, mq_round_stats stats[2])
{
    for (int i = 0; i < MQ_UNIT_ROWS; i++) {
        mq_round_stats *to = &stats[split && i >= 8];
        to->err2 += sum_lanes(r->lanes[i].err2);
        to->norm2 += sum_lanes(r->lanes[i].norm2);
    }
}

mq_status mq_round_tiles(mq_rounder *r, mq_round_method method, const float *const *rows_of,
                         int64_t rows, int64_t cols, int group, uint8_t *units, bool split,
                         mq_round_stats stats[2], mq_err *err)
{
    MQ_TRY(check_units(rows, cols, group, err));
    memset(stats, 0, 2 * sizeof *stats);
    for (int64_t row = 0; row < rows; row += MQ_UNIT_ROWS) {
        memset(r->lanes, 0, sizeof r->lanes);
        for (int64_t col = 0; col < cols; col += MQ_ROUND_CHUNK) {
            mq_round_chunk c = {.group = group, .blocks = units};
            c.n_cols = (int)(cols - col < MQ_ROUND_CHUNK ? cols - col : MQ_ROUND_CHUNK);
            for (int i = 0; i < MQ_UNIT_ROWS; i++)
                c.rows[i] = rows_of[row + i] + col;
            if (!round_chunk(r, method, &c)) {
                int bad_row, bad_col;
                find_bad(&c, &bad_row, &bad_col);
                return mq_fail(err, MQ_E_NUMERIC,
                               "row %lld, column %lld: weight %g, expected a finite number",
                               (long long)(row + bad_row), (long long)(col + bad_col),
                               (double)c.rows[bad_row][bad_col]);
            }
            units += mq_tile_bytes(c.n_cols, group);
        }
        add_lanes(r, split, stats);
    }
    return MQ_OK;
}

/* ---- stored matrices ---- */

static bool is_row_scheme(mq_scheme s)
{
    return s == MQ_SCHEME_BF16 || s == MQ_SCHEME_F16 || s == MQ_SCHEME_F32 ||
           s == MQ_SCHEME_FP8_BLOCK || s == MQ_SCHEME_MXFP4_ROWS;
}

static mq_status check_source(const mq_matrix *m, mq_err *err)
{
    if (!is_row_scheme(m->scheme))
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "rounding from %s, expected bf16, f16, f32, fp8_block or mxfp4_rows",
                       mq_scheme_name(m->scheme));
    return mq_matrix_check(m, err);
}

static mq_status check_window(const mq_round_window *win, mq_err *err)
{
    const mq_matrix *a = win->a, *b = win->b;
    MQ_TRY(check_source(a, err));
    if (b)
        MQ_TRY(check_source(b, err));
    if (b && (a->rows != b->rows || a->cols != b->cols))
        return mq_fail(
            err, MQ_E_SHAPE, "gate [%lld, %lld] and up [%lld, %lld], expected the same shape",
            (long long)a->rows, (long long)a->cols, (long long)b->rows, (long long)b->cols);
    if (win->row0 < 0 || win->n_rows < 0 || win->row0 > a->rows - win->n_rows || win->col0 < 0 ||
        win->n_cols < 0 || win->col0 > a->cols - win->n_cols)
        return mq_fail(err, MQ_E_SHAPE,
                       "rows %lld + %lld, columns %lld + %lld, expected a window of [%lld, %lld]",
                       (long long)win->row0, (long long)win->n_rows, (long long)win->col0,
                       (long long)win->n_cols, (long long)a->rows, (long long)a->cols);
    if (win->col0 % MQ_MX_GROUP &&
        (a->scheme == MQ_SCHEME_MXFP4_ROWS || (b && b->scheme == MQ_SCHEME_MXFP4_ROWS)))
        return mq_fail(err, MQ_E_SHAPE,
                       "first column %lld of mxfp4_rows, expected a multiple of 32",
                       (long long)win->col0);
    return MQ_OK;
}

/* Matrix and row behind packed row i. */
static const mq_matrix *source_of(const mq_round_window *win, int64_t i, int64_t *row)
{
    bool is_up = win->b && i % MQ_UNIT_ROWS >= 8;
    *row = win->row0 + (win->b ? i / MQ_UNIT_ROWS * 8 + i % 8 : i);
    return is_up ? win->b : win->a;
}

static mq_status refuse(const mq_round_window *win, const mq_round_chunk *c, int64_t packed0,
                        int64_t col, mq_err *err)
{
    int bad_row, bad_col;
    find_bad(c, &bad_row, &bad_col);
    int64_t row;
    const mq_matrix *m = source_of(win, packed0 + bad_row, &row);
    return mq_fail(err, MQ_E_NUMERIC,
                   "%srow %lld, column %lld: weight %g, expected a finite number",
                   !win->b       ? ""
                   : m == win->a ? "gate "
                                 : "up ",
                   (long long)row, (long long)(col + bad_col), (double)c->rows[bad_row][bad_col]);
}

mq_status mq_round_matrix(mq_rounder *r, mq_round_method method, const mq_round_window *win,
                          int group, uint8_t *units, mq_round_stats stats[2], mq_err *err)
{
    MQ_TRY(check_window(win, err));
    int64_t n_packed = win->b ? 2 * win->n_rows : win->n_rows, end = win->col0 + win->n_cols;
    MQ_TRY(check_units(n_packed, win->n_cols, group, err));
    memset(stats, 0, 2 * sizeof *stats);
    for (int64_t packed = 0; packed < n_packed; packed += MQ_UNIT_ROWS) {
        memset(r->lanes, 0, sizeof r->lanes);
        for (int64_t col = win->col0; col < end; col += MQ_ROUND_CHUNK) {
            mq_round_chunk c = {.group = group, .blocks = units};
            c.n_cols = (int)(end - col < MQ_ROUND_CHUNK ? end - col : MQ_ROUND_CHUNK);
            for (int i = 0; i < MQ_UNIT_ROWS; i++) {
                int64_t row;
                const mq_matrix *m = source_of(win, packed + i, &row);
                r->ops->widen(m, row, col, c.n_cols, r->tile[i]);
                c.rows[i] = r->tile[i];
            }
            if (!round_chunk(r, method, &c))
                return refuse(win, &c, packed, col, err);
            units += mq_tile_bytes(c.n_cols, group);
        }
        add_lanes(r, win->b != NULL, stats);
    }
    return MQ_OK;
}

void mq_round_widen(mq_rounder *r, const mq_matrix *m, int64_t row0, int64_t n_rows, float *out)
{
    if (!is_row_scheme(m->scheme)) {
        mq_matrix_widen(m, row0, n_rows, out);
        return;
    }
    for (int64_t i = 0; i < n_rows; i++)
        r->ops->widen(m, row0 + i, 0, m->cols, out + i * m->cols);
}

/* ---- MXFP4 ---- */

/* Codes of rows g and g + 8 of one unit: 16 columns (8 bytes of nibbles a row) become two runs of 8
 * bytes.  Even columns of a word of four stand in its bytes 0 and 1, odd ones in 2 and 3, so 16-bit
 * halves of the sources stay together. */
static void mxfp4_pair(const uint8_t *lo, const uint8_t *hi, uint8_t *to)
{
    const uint64_t low = 0x0f0f0f0f0f0f0f0fu;
    for (int part = 0; part < 4;
         part++) { /* half h = part / 2, lanes t = 2 (part % 2) and the next */
        uint64_t a, b;
        memcpy(&a, lo + 8 * part, 8);
        memcpy(&b, hi + 8 * part, 8);
        uint64_t even = (a & low) | (b & low) << 4, odd = (a >> 4 & low) | (b & ~low);
        uint8_t *at = to + 32 * (part % 2) + 8 * (part / 2);
        for (int k = 0; k < 4; k++) {
            uint32_t word =
                (uint32_t)(even >> 16 * k & 0xffffu) | (uint32_t)(odd >> 16 * k & 0xffffu) << 16;
            memcpy(at + 16 * (k / 2) + 4 * (k % 2), &word, sizeof word);
        }
    }
}

void mq_mxfp4_tiles(const uint8_t *const *rows_q, const uint8_t *const *rows_s, int64_t rows,
                    int64_t cols, uint8_t *units)
{
    for (int64_t row = 0; row < rows; row += MQ_UNIT_ROWS)
        for (int64_t col = 0; col < cols; col += MQ_UNIT_COLS) {
            for (int g = 0; g < 8; g++)
                mxfp4_pair(rows_q[row + g] + col / 2, rows_q[row + g + 8] + col / 2,
                           units + 64 * g);
            uint8_t *scales = units + MQ_UNIT_CODE_BYTES;
            for (int r = 0; r < MQ_UNIT_ROWS; r++)
                for (int k = 0; k < 2; k++)
                    scales[mq_unit_scale_index(r, 32 * k, MQ_GROUP_MXFP4)] =
                        rows_s[row + r][col / MQ_MX_GROUP + k];
            units += mq_block_bytes(MQ_GROUP_MXFP4);
        }
}
