/* Calibration's operations on weights and codes: widening, scales by the weighted search, codes one by one, their
 * error, and the way into packed units.
 *
 * Each is cut into tiles of 16 rows, which threads take as they come: a row's result depends on that row alone.
 * What a scale and a code are is said in kernels/round.h and computed by the same code as rounding without activations. */
#include <assert.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/round_ops.h"
#include "src/units.h"

/* The rounding code for dev's instruction set. */
static const mq_round_ops *round_ops(const mq_dev *dev)
{
    const mq_round_ops *ops = NULL;
    mq_status st = mq_round_ops_find(&ops, dev->v->isa, NULL);
    assert(st == MQ_OK && "dev runs on this instruction set");
    (void)st;
    return ops;
}

static int64_t tiles_of(int64_t row0, int64_t n_rows)
{
    return n_rows > 0 ? (row0 + n_rows - 1) / MQ_UNIT_ROWS - row0 / MQ_UNIT_ROWS + 1 : 0;
}

/* ---- widening ---- */

/* Part of tile t of m that lies in rows row0 .. row0 + n_rows - 1. */
static void widen_tile(const mq_dev *dev, const mq_round_ops *ops, float *out, const mq_matrix *m, int64_t t,
                       int64_t row0, int64_t n_rows)
{
    int64_t first = t * MQ_UNIT_ROWS, end = first + MQ_UNIT_ROWS;
    first = first < row0 ? row0 : first;
    end = end > row0 + n_rows ? row0 + n_rows : end;
    float *to = out + (first - row0) * m->cols;
    bool packed = m->scheme == MQ_SCHEME_INT4 || m->scheme == MQ_SCHEME_MXFP4;
    if (!packed)
        for (int64_t r = first; r < end; r++, to += m->cols)
            ops->widen(m, r, 0, m->cols, to);
    else if (end - first == MQ_UNIT_ROWS)
        dev->v->widen(m, first, MQ_UNIT_ROWS, to);
    else
        mq_matrix_widen(m, first, end - first, to);
}

mq_status mq_cpu_widen(mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n_rows, mq_err *err)
{
    (void)err;
    const mq_round_ops *ops = round_ops(dev);
    int64_t tile0 = row0 / MQ_UNIT_ROWS, n_tiles = tiles_of(row0, n_rows);
    int threads = mq_cpu_threads(dev, (double)n_rows * (double)w->cols / 4.0);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < n_tiles; t++)
        widen_tile(dev, ops, out, w, tile0 + t, row0, n_rows);
    return MQ_OK;
}

/* ---- scales ---- */

typedef struct search_job {
    const mq_round_ops *ops;
    const float *w, *omega;
    float *scale;
    int64_t rows, cols;
    int group;
} search_job;

/* Sixteen rows, at most MQ_ROUND_CHUNK columns from col on.  Rows behind the last are the tile's first once more. */
static void search_chunk(const search_job *j, int64_t row0, int64_t col)
{
    MQ_ROUND_ALIGNED uint32_t max[MQ_ROUND_GROUPS][MQ_UNIT_ROWS];
    MQ_ROUND_ALIGNED float work[128 * MQ_UNIT_ROWS];
    mq_round_scales found;
    mq_round_chunk c = {.group = j->group};
    c.n_cols = (int)(j->cols - col < MQ_ROUND_CHUNK ? j->cols - col : MQ_ROUND_CHUNK);
    int64_t n = j->rows - row0 < MQ_UNIT_ROWS ? j->rows - row0 : MQ_UNIT_ROWS, n_groups = j->cols / j->group;
    for (int r = 0; r < MQ_UNIT_ROWS; r++)
        c.rows[r] = j->w + (row0 + (r < n ? r : 0)) * j->cols + col;
    j->ops->absmax(&c, max);
    for (int k = 0; k < c.n_cols / j->group; k++) {
        const float *omega = j->omega ? j->omega + col + k * j->group : NULL;
        j->ops->search(&c, k, omega, max[k], &found, work);
        for (int64_t r = 0; r < n; r++)
            j->scale[(row0 + r) * n_groups + col / j->group + k] = found.s[k][r];
    }
}

mq_status mq_cpu_search_scales(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                               int group, mq_err *err)
{
    (void)err;
    search_job j = {round_ops(dev), w, omega, scale, rows, cols, group};
    int64_t n_tiles = tiles_of(0, rows);
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols * 16.0);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < n_tiles; t++)
        for (int64_t col = 0; col < cols; col += MQ_ROUND_CHUNK)
            search_chunk(&j, t * MQ_UNIT_ROWS, col);
    return MQ_OK;
}

/* ---- codes ---- */

/* Codes of one group.  The search works in units of 2^e, so its codes are (w 2^-e) times the inverse of (s 2^-e). */
static void nearest_group(uint8_t *restrict codes, const float *restrict w, float s, int group)
{
    uint32_t max = 0;
    for (int i = 0; i < group; i++) {
        uint32_t bits = mq_f32_bits(w[i]) & 0x7fffffffu;
        max = bits > max ? bits : max;
    }
    float pre = max ? mq_round_pow2(-mq_round_exponent(max)) : 1.0f, inv = 1.0f / (s * pre);
    for (int i = 0; i < group; i++) {
        float x = w[i] * pre * inv;
        x = x < 7.0f ? x : 7.0f;
        x = x > -8.0f ? x : -8.0f;
        codes[i] = (uint8_t)(mq_f32_bits(x + MQ_ROUND_MAGIC) & 15u);
    }
}

mq_status mq_cpu_nearest(mq_dev *dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols,
                         int group, mq_err *err)
{
    (void)err;
    int64_t n_groups = rows * (cols / group);
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < n_groups; k++)
        nearest_group(codes + k * group, w + k * group, scale[k], group);
    return MQ_OK;
}

/* Eight sums side by side in double, then a fixed tree, as in rounding without activations. */
static double sum_lanes(const double x[8])
{
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

static double square_sum(const float *w, int64_t cols)
{
    double sum[8] = {0.0};
    for (int64_t c = 0; c < cols; c += 8)
        for (int l = 0; l < 8; l++)
            sum[l] += (double)w[c + l] * (double)w[c + l];
    return sum_lanes(sum);
}

static double error_sum(const uint8_t *codes, const float *w, const float *scale, int64_t cols, int group)
{
    double sum[8] = {0.0};
    for (int64_t c = 0; c < cols; c += 8) {
        float s = scale[c / group];
        for (int l = 0; l < 8; l++) {
            float d = w[c + l] - s * (float)((int)codes[c + l] - 8);
            sum[l] += (double)d * (double)d;
        }
    }
    return sum_lanes(sum);
}

mq_status mq_cpu_weight_error(mq_dev *dev, double *err2, double *norm2, const uint8_t *codes, const float *w,
                              const float *scale, int64_t rows, int64_t cols, int group, mq_err *err)
{
    (void)err;
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        norm2[r] = square_sum(w + r * cols, cols);
        if (codes)
            err2[r] = error_sum(codes + r * cols, w + r * cols, scale + r * (cols / group), cols, group);
    }
    return MQ_OK;
}

/* ---- packed units ---- */

/* 32 columns of rows g and g + 8 to the bytes of half h of unit row g: eight columns at a time are the two words of one
 * lane, with the middle columns of every four swapped (src/units.h). */
static void pack_half(uint8_t *to, const uint8_t *lo, const uint8_t *hi)
{
    for (int t = 0; t < 4; t++) {
        uint64_t a, b;
        memcpy(&a, lo + 8 * t, sizeof a);
        memcpy(&b, hi + 8 * t, sizeof b);
        uint64_t v = a | b << 4;
        v = (v & 0xff0000ffff0000ffu) | (v >> 8 & 0x0000ff000000ff00u) | (v << 8 & 0x00ff000000ff0000u);
        memcpy(to + 16 * t, &v, sizeof v);
    }
}

/* Where the 16 rows of a tile come from. */
typedef struct tile_rows {
    const uint8_t *codes[MQ_UNIT_ROWS];
    const float *scale[MQ_UNIT_ROWS];
} tile_rows;

static void pack_tile(uint8_t *units, const tile_rows *from, int64_t cols, int group)
{
    int block_cols = mq_block_cols(group), code_bytes = block_cols / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
    for (int64_t col = 0; col < cols; col += block_cols, units += mq_block_bytes(group)) {
        for (int c = 0; c < block_cols; c += 32)
            for (int g = 0; g < 8; g++)
                pack_half(units + c / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES + 64 * g + c % MQ_UNIT_COLS / 32 * 8,
                          from->codes[g] + col + c, from->codes[g + 8] + col + c);
        for (int c = 0; c < block_cols; c += group)
            for (int r = 0; r < MQ_UNIT_ROWS; r++) {
                uint16_t bits = (uint16_t)(mq_f32_bits(from->scale[r][(col + c) / group]) >> 16); /* exact */
                memcpy(units + code_bytes + 2 * mq_unit_scale_index(r, c, group), &bits, sizeof bits);
            }
    }
}

mq_status mq_cpu_pack_units(mq_dev *dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a,
                            const uint8_t *codes_b, const float *scale_b, int64_t rows, int64_t cols, int group,
                            mq_err *err)
{
    (void)err;
    int64_t n_tiles = (codes_b ? 2 * rows : rows) / MQ_UNIT_ROWS, n_groups = cols / group;
    int threads = mq_cpu_threads(dev, (double)n_tiles * MQ_UNIT_ROWS * (double)cols / 4.0);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < n_tiles; t++) {
        tile_rows from;
        for (int r = 0; r < MQ_UNIT_ROWS; r++) {
            int64_t row = codes_b ? 8 * t + r % 8 : MQ_UNIT_ROWS * t + r;
            bool is_b = codes_b && r >= 8;
            from.codes[r] = (is_b ? codes_b : codes_a) + row * cols;
            from.scale[r] = (is_b ? scale_b : scale_a) + row * n_groups;
        }
        pack_tile(units + t * mq_tile_bytes(cols, group), &from, cols, group);
    }
    return MQ_OK;
}
