/* Merging rank slices: by rows they are appended; by columns every row (or tile of 16 rows) is put
 * together from its runs.
 *
 * FP8 scales are the only delicate part.  A slice carries every scale it needs, so two slices that
 * meet inside a 128 block both carry that block's: it is taken from the first and compared with the
 * second. */
#include "runtime/merge.h"

#include <stdbool.h>
#include <string.h>

#include "src/dtype.h"
#include "src/units.h"

static bool is_units(const mq_matrix *m)
{
    return m->scheme == MQ_SCHEME_INT4 || m->scheme == MQ_SCHEME_MXFP4;
}

/* Bytes of the smallest run that columns are put together from, a row or a tile of 16 rows; and how
 * many there are. */
static int64_t run_bytes(const mq_matrix *m)
{
    if (is_units(m))
        return mq_tile_bytes(m->cols, m->group);
    return m->cols * (m->scheme == MQ_SCHEME_F32 ? 4 : m->scheme == MQ_SCHEME_FP8_BLOCK ? 1 : 2);
}

static int64_t n_runs(const mq_matrix *m)
{
    return is_units(m) ? m->rows / MQ_UNIT_ROWS : m->rows;
}

static mq_status check_parts(const mq_part *parts, int n_parts, bool by_cols, mq_err *err)
{
    const mq_matrix *a = &parts[0].m;
    for (int i = 1; i < n_parts; i++) {
        const mq_matrix *b = &parts[i].m;
        if (a->scheme != b->scheme || a->group != b->group)
            return mq_fail(err, MQ_E_FORMAT, "stored as %s and as %s by different ranks",
                           mq_scheme_name(a->scheme), mq_scheme_name(b->scheme));
        bool fits = by_cols ? b->rows == a->rows && b->seg_rows == a->seg_rows &&
                                  b->row_phase == a->row_phase &&
                                  parts[i].col0 == parts[i - 1].col0 + parts[i - 1].m.cols
                            : b->cols == a->cols && b->col_phase == a->col_phase &&
                                  parts[i].row0 == parts[i - 1].row0 + parts[i - 1].m.rows;
        if (!fits)
            return mq_fail(err, MQ_E_FORMAT, "the ranks' slices do not follow each other");
    }
    return MQ_OK;
}

/* ---- FP8 scales ---- */

/* Does part i begin inside a block whose scales part i - 1 has too? */
static bool shares_row(const mq_part *parts, int i, int64_t part_rows)
{
    return i > 0 && parts[i].row0 % part_rows != 0 && parts[i].m.row_phase != 0;
}

static bool shares_col(const mq_part *parts, int i)
{
    return i > 0 && parts[i].m.col_phase != 0;
}

static int64_t scale_rows(const mq_matrix *m)
{
    return m->rows / m->seg_rows * mq_fp8_seg_scale_rows(m);
}

static mq_status disagree(mq_err *err)
{
    return mq_fail(err, MQ_E_FORMAT, "two ranks disagree on the scale of a block they share");
}

/* Append the parts' scale rows; dst NULL: only count.  *n is the number of F32 values. */
static mq_status stack_scales(uint8_t *dst, int64_t *n, const mq_part *parts, int n_parts,
                              int64_t part_rows, mq_err *err)
{
    int64_t row_bytes = 4 * mq_fp8_scale_cols(&parts[0].m), rows = 0;
    for (int i = 0; i < n_parts; i++) {
        const uint8_t *src = parts[i].m.scale;
        int64_t skip = shares_row(parts, i, part_rows) ? 1 : 0,
                take = scale_rows(&parts[i].m) - skip;
        if (dst && skip && memcmp(dst + (rows - 1) * row_bytes, src, (size_t)row_bytes) != 0)
            return disagree(err);
        if (dst)
            memcpy(dst + rows * row_bytes, src + skip * row_bytes, (size_t)(take * row_bytes));
        rows += take;
    }
    *n = rows * row_bytes / 4;
    return MQ_OK;
}

/* Put the parts' scale columns side by side; dst NULL: only count. */
static mq_status join_scales(uint8_t *dst, int64_t *n, const mq_part *parts, int n_parts,
                             mq_err *err)
{
    int64_t cols = 0, rows = scale_rows(&parts[0].m);
    for (int i = 0; i < n_parts; i++)
        cols += mq_fp8_scale_cols(&parts[i].m) - (shares_col(parts, i) ? 1 : 0);
    *n = rows * cols;
    for (int64_t r = 0; dst && r < rows; r++) {
        uint8_t *to = dst + r * cols * 4;
        for (int i = 0; i < n_parts; i++) {
            int64_t have = mq_fp8_scale_cols(&parts[i].m), skip = shares_col(parts, i) ? 1 : 0;
            const uint8_t *src = (const uint8_t *)parts[i].m.scale + r * have * 4;
            if (skip && memcmp(to - 4, src, 4) != 0)
                return disagree(err);
            memcpy(to, src + 4 * skip, (size_t)(4 * (have - skip)));
            to += 4 * (have - skip);
        }
    }
    return MQ_OK;
}

static mq_status merge_scales(uint8_t *dst, int64_t *n, const mq_part *parts, int n_parts,
                              bool by_cols, int64_t part_rows, mq_err *err)
{
    return by_cols ? join_scales(dst, n, parts, n_parts, err)
                   : stack_scales(dst, n, parts, n_parts, part_rows, err);
}

/* Segments of rows [row0, row0 + rows): one, or the chunks' parts. */
static mq_status set_segments(mq_matrix *out, int64_t row0, int64_t part_rows, mq_err *err)
{
    bool whole = row0 % part_rows == 0 && out->rows % part_rows == 0;
    if (!whole && row0 % part_rows + out->rows > part_rows)
        return mq_fail(err, MQ_E_ARG,
                       "rows %lld to %lld are neither inside a chunk of %lld rows nor whole chunks",
                       (long long)row0, (long long)(row0 + out->rows), (long long)part_rows);
    out->seg_rows = whole ? part_rows : out->rows;
    return MQ_OK;
}

/* ---- Values ---- */

static void merge_values(uint8_t *dst, const mq_part *parts, int n_parts, bool by_cols)
{
    if (!by_cols) {
        for (int i = 0; i < n_parts; i++) {
            int64_t n = n_runs(&parts[i].m) * run_bytes(&parts[i].m);
            memcpy(dst, parts[i].m.data, (size_t)n);
            dst += n;
        }
        return;
    }
    for (int64_t r = 0; r < n_runs(&parts[0].m); r++)
        for (int i = 0; i < n_parts; i++) {
            int64_t n = run_bytes(&parts[i].m);
            memcpy(dst, (const uint8_t *)parts[i].m.data + r * n, (size_t)n);
            dst += n;
        }
}

mq_status mq_merge_parts(mq_slot *slot, mq_matrix *out, const mq_part *parts, int n_parts,
                         int64_t part_rows, mq_err *err)
{
    bool by_cols = n_parts > 1 && parts[1].col0 != parts[0].col0;
    MQ_TRY(check_parts(parts, n_parts, by_cols, err));
    *out = parts[0].m;
    for (int i = 1; i < n_parts; i++) {
        out->rows += by_cols ? 0 : parts[i].m.rows;
        out->cols += by_cols ? parts[i].m.cols : 0;
    }
    out->data = out->scale = NULL;

    void *values, *scales;
    MQ_TRY(mq_slot_take(slot, &values, n_runs(out) * run_bytes(out), err));
    if (!slot->measuring)
        merge_values(values, parts, n_parts, by_cols);
    out->data = values;
    if (out->scheme != MQ_SCHEME_FP8_BLOCK)
        return MQ_OK;

    int64_t n_scales;
    if (!by_cols)
        MQ_TRY(set_segments(out, parts[0].row0, part_rows, err));
    MQ_TRY(merge_scales(NULL, &n_scales, parts, n_parts, by_cols, part_rows, err));
    if (n_scales != mq_fp8_n_scales(out))
        return mq_fail(err, MQ_E_FORMAT, "%lld scales in all, expected %lld", (long long)n_scales,
                       (long long)mq_fp8_n_scales(out));
    MQ_TRY(mq_slot_take(slot, &scales, 4 * n_scales, err));
    out->scale = scales;
    return slot->measuring
               ? MQ_OK
               : merge_scales(scales, &n_scales, parts, n_parts, by_cols, part_rows, err);
}
