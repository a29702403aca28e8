/* The work on one item.
 *
 * Stored bytes and packed bytes are kept for the whole item; F32 weights exist only inside the rounder.  A matrix that ranks
 * share by columns is read once and rounded or cut rank by rank. */
#include "tools/convert_work.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/codec.h"
#include "src/dtype.h"
#include "src/units.h"

typedef struct buffer {
    uint8_t *data;
    int64_t cap;
} buffer;

struct mq_convert_worker {
    mq_rounder *rounder;
    buffer raw, scale;   /* stored bytes as read */
    buffer out, out_scale; /* pieces */
    buffer packed;       /* compressed pieces */
    buffer wide;         /* F32 [cols], to name a weight that is not finite */
};

static mq_status grow(buffer *b, int64_t n_bytes, mq_err *err)
{
    if (n_bytes <= b->cap)
        return MQ_OK;
    free(b->data);
    b->cap = 0;
    b->data = aligned_alloc(64, (size_t)mq_round_up(n_bytes, 64));
    if (!b->data)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld bytes", (long long)n_bytes);
    b->cap = n_bytes;
    return MQ_OK;
}

mq_status mq_convert_worker_create(mq_convert_worker **out, mq_err *err)
{
    *out = NULL;
    mq_convert_worker *w = calloc(1, sizeof *w);
    if (!w)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = mq_rounder_create(&w->rounder, NULL, err);
    if (st != MQ_OK) {
        free(w);
        return st;
    }
    *out = w;
    return MQ_OK;
}

void mq_convert_worker_free(mq_convert_worker *w)
{
    if (!w)
        return;
    mq_rounder_free(w->rounder);
    free(w->raw.data);
    free(w->scale.data);
    free(w->out.data);
    free(w->out_scale.data);
    free(w->packed.data);
    free(w->wide.data);
    free(w);
}

/* Rows of a source tensor, read; view borrows from the worker. */
typedef struct rows {
    mq_source_tensor t;
    mq_key key;
    mq_matrix view;
    int64_t row0, data_bytes, scale_bytes;
} rows;

/* Size up rows [row0, row0 + n) with all columns. */
static mq_status rows_plan(rows *p, const mq_convert_job *job, mq_key key, int64_t row0, int64_t n, mq_err *err)
{
    p->key = key;
    p->row0 = row0;
    MQ_TRY(mq_source_find(&p->t, job->source, key, err));
    return mq_source_slice(&p->view, &p->data_bytes, &p->scale_bytes, &p->t, row0, n, 0, p->t.cols, err);
}

static mq_status rows_read(rows *p, void *data, void *scale, mq_err *err)
{
    return mq_source_read(&p->view, data, p->scale_bytes ? scale : NULL, &p->t, p->row0, p->view.rows, 0, p->t.cols,
                          err);
}

/* Which weight is not finite, in the checkpoint's own numbering; only ever runs before the end. */
static mq_status name_culprit(mq_convert_worker *w, const rows *parts, int n_parts, mq_status st, mq_err *err)
{
    int64_t cols = parts[0].t.cols;
    if (st != MQ_E_NUMERIC || grow(&w->wide, cols * (int64_t)sizeof(float), err) != MQ_OK)
        return st;
    float *wide = (float *)(void *)w->wide.data;
    for (int p = 0; p < n_parts; p++)
        for (int64_t i = 0; i < parts[p].view.rows; i++) {
            mq_round_widen(w->rounder, &parts[p].view, i, 1, wide);
            for (int64_t c = 0; c < cols; c++) {
                if (isfinite(wide[c]))
                    continue;
                char name[MQ_KEY_NAME];
                mq_key_name(name, sizeof name, parts[p].key);
                const mq_file *file = mq_safetensors_file(parts[p].t.data.file);
                return mq_fail(err, MQ_E_NUMERIC,
                               "%s: tensor '%s': row %lld, column %lld is %s, expected finite weights",
                               file ? file->path : "checkpoint", name, (long long)(parts[p].row0 + i), (long long)c,
                               isnan(wide[c]) ? "NaN" : "infinite");
            }
        }
    return st;
}

/* Round the rows of one part (down) or two (gate and up) to INT4 pieces, a slice of columns per file. */
static mq_status round_parts(mq_convert_worker *w, mq_convert_piece *pieces, uint8_t *out, mq_round_stats *stats,
                             const rows *parts, int n_parts, const mq_file_spec *files, const mq_convert_item *it,
                             int group, mq_round_method method, mq_err *err)
{
    for (int f = 0; f < it->n_files; f++) {
        const mq_record_spec *r = &files[it->file + f].records[it->record];
        mq_round_window win = {.a = &parts[0].view, .b = n_parts == 2 ? &parts[1].view : NULL,
                               .n_rows = parts[0].view.rows, .col0 = r->col0, .n_cols = r->cols};
        mq_round_stats got[2];
        mq_status st = mq_round_matrix(w->rounder, method, &win, group, out, got, err);
        if (st != MQ_OK)
            return name_culprit(w, parts, n_parts, st, err);
        out += pieces[f].plain_bytes;
        mq_round_stats *sum = &stats[n_parts == 2 ? MQ_PROJ_GATE : MQ_PROJ_DOWN];
        sum->err2 += got[0].err2;
        sum->norm2 += got[0].norm2;
        if (n_parts == 2)
            stats[MQ_PROJ_UP] = got[1];
    }
    return MQ_OK;
}

/* Re-order MXFP4 rows into units, a slice of columns per file. */
static void reorder_parts(mq_convert_piece *pieces, uint8_t *out, const rows *parts, int n_parts,
                          const mq_file_spec *files, const mq_convert_item *it)
{
    int64_t cols = parts[0].t.cols, rows_per_part = MQ_UNIT_ROWS / n_parts;
    for (int f = 0; f < it->n_files; f++) {
        const mq_record_spec *r = &files[it->file + f].records[it->record];
        int64_t tile_bytes = mq_tile_bytes(r->cols, MQ_GROUP_MXFP4);
        for (int64_t tile = 0; tile < it->n_rows / MQ_UNIT_ROWS; tile++) {
            const uint8_t *rows_q[MQ_UNIT_ROWS], *rows_s[MQ_UNIT_ROWS];
            for (int i = 0; i < MQ_UNIT_ROWS; i++) {
                const mq_matrix *v = &parts[i / rows_per_part].view;
                int64_t row = tile * rows_per_part + i % rows_per_part;
                rows_q[i] = (const uint8_t *)v->data + (row * cols + r->col0) / 2;
                rows_s[i] = (const uint8_t *)v->scale + (row * cols + r->col0) / MQ_MX_GROUP;
            }
            mq_mxfp4_tiles(rows_q, rows_s, MQ_UNIT_ROWS, r->cols, out + tile * tile_bytes);
        }
        out += pieces[f].plain_bytes;
    }
}

/* Room in out for a piece per file, each of the item's rows and the file's columns. */
static mq_status place_pieces(mq_convert_worker *w, mq_convert_piece *pieces, const mq_file_spec *files,
                              const mq_convert_item *it, int group, mq_err *err)
{
    int64_t total = 0;
    for (int f = 0; f < it->n_files; f++) {
        pieces[f].plain_bytes = mq_units_bytes(it->n_rows, files[it->file + f].records[it->record].cols, group);
        total += pieces[f].plain_bytes;
    }
    MQ_TRY(grow(&w->out, total, err));
    const uint8_t *at = w->out.data;
    for (int f = 0; f < it->n_files; f++) {
        pieces[f].plain = at;
        at += pieces[f].plain_bytes;
    }
    return MQ_OK;
}

/* Rows that have their codes: read, and cut by columns where ranks share them. */
static mq_status work_ready(mq_convert_worker *w, mq_convert_piece *pieces, int64_t *read_bytes, const mq_codes *codes,
                            const mq_file_spec *files, const mq_convert_item *it, int group, mq_err *err)
{
    const mq_record_spec *r = &files[it->file].records[it->record];
    bool is_down = r->key.role == MQ_ROLE_EXPERT_DOWN;
    int64_t tile0 = (r->row0 + it->row0) / MQ_UNIT_ROWS, n_tiles = it->n_rows / MQ_UNIT_ROWS;
    MQ_TRY(place_pieces(w, pieces, files, it, group, err));
    *read_bytes = mq_units_bytes(it->n_rows, r->full_cols, group);
    if (r->cols == r->full_cols)
        return mq_codes_read(codes, w->out.data, r->key.expert, is_down, tile0, n_tiles, err);
    MQ_TRY(grow(&w->raw, *read_bytes, err));
    MQ_TRY(mq_codes_read(codes, w->raw.data, r->key.expert, is_down, tile0, n_tiles, err));
    uint8_t *at = w->out.data;
    for (int f = 0; f < it->n_files; f++) {
        const mq_record_spec *mine = &files[it->file + f].records[it->record];
        mq_codes_cut(at, w->raw.data, n_tiles, r->full_cols, mine->col0, mine->cols, group);
        at += pieces[f].plain_bytes;
    }
    return MQ_OK;
}

static mq_status work_expert(mq_convert_worker *w, mq_convert_piece *pieces, mq_round_stats *stats, int64_t *read_bytes,
                             const mq_convert_job *job, const mq_file_spec *files, const mq_convert_item *it,
                             mq_scheme scheme, int group, mq_err *err)
{
    const mq_record_spec *r = &files[it->file].records[it->record];
    int n_parts = r->key.role == MQ_ROLE_EXPERT_GATE_UP ? 2 : 1;
    rows parts[2];
    int64_t data_bytes = 0, scale_bytes = 0;
    for (int p = 0; p < n_parts; p++) {
        mq_key key = n_parts == 2 ? mq_convert_part_key(r, p == 1) : r->key;
        MQ_TRY(rows_plan(&parts[p], job, key, (r->row0 + it->row0) / n_parts, it->n_rows / n_parts, err));
        data_bytes += mq_round_up(parts[p].data_bytes, 64);
        scale_bytes += mq_round_up(parts[p].scale_bytes, 64);
    }
    MQ_TRY(grow(&w->raw, data_bytes, err));
    MQ_TRY(grow(&w->scale, scale_bytes, err));
    int64_t data_at = 0, scale_at = 0;
    for (int p = 0; p < n_parts; p++) {
        uint8_t *scale = parts[p].scale_bytes ? w->scale.data + scale_at : NULL; /* no buffer where nothing has scales */
        MQ_TRY(rows_read(&parts[p], w->raw.data + data_at, scale, err));
        data_at += mq_round_up(parts[p].data_bytes, 64);
        scale_at += mq_round_up(parts[p].scale_bytes, 64);
        *read_bytes += parts[p].data_bytes + parts[p].scale_bytes;
    }
    MQ_TRY(place_pieces(w, pieces, files, it, group, err));
    if (scheme == MQ_SCHEME_INT4)
        return round_parts(w, pieces, w->out.data, stats, parts, n_parts, files, it, group, job->opt.method, err);
    reorder_parts(pieces, w->out.data, parts, n_parts, files, it);
    return MQ_OK;
}

static int64_t element_bytes(mq_scheme s)
{
    return s == MQ_SCHEME_F32 ? 4 : s == MQ_SCHEME_FP8_BLOCK ? 1 : 2;
}

/* Columns [col0, col0 + n) of rows of row_bytes, packed. */
static void cut_columns(uint8_t *to, const uint8_t *from, int64_t n_rows, int64_t row_bytes, int64_t off, int64_t n_bytes)
{
    for (int64_t i = 0; i < n_rows; i++)
        memcpy(to + i * n_bytes, from + i * row_bytes + off, (size_t)n_bytes);
}

/* A rank's columns of copied rows, and of their FP8 scales. */
static mq_status cut_pieces(mq_convert_worker *w, mq_convert_piece *pieces, const rows *src, const mq_file_spec *files,
                            const mq_convert_item *it, mq_err *err)
{
    int64_t eb = element_bytes(src->t.scheme), row_bytes = src->t.cols * eb;
    bool fp8 = src->t.scheme == MQ_SCHEME_FP8_BLOCK;
    int64_t scale_row = fp8 ? 4 * mq_fp8_scale_cols(&src->view) : 0;
    int64_t n_scale_rows = fp8 ? src->scale_bytes / scale_row : 0;
    /* Slices that start inside a block share its scale column: up to one more per file. */
    MQ_TRY(grow(&w->out, src->data_bytes, err));
    MQ_TRY(grow(&w->out_scale, src->scale_bytes + it->n_files * n_scale_rows * 4, err));
    uint8_t *at = w->out.data, *scale_at = w->out_scale.data;
    for (int f = 0; f < it->n_files; f++) {
        const mq_record_spec *r = &files[it->file + f].records[it->record];
        pieces[f].plain = at;
        pieces[f].plain_bytes = it->n_rows * r->cols * eb;
        cut_columns(at, src->view.data, it->n_rows, row_bytes, r->col0 * eb, r->cols * eb);
        at += pieces[f].plain_bytes;
        if (!fp8)
            continue;
        int64_t first = r->col0 / MQ_FP8_BLOCK, n = mq_ceil_div(r->col_phase + r->cols, MQ_FP8_BLOCK);
        pieces[f].scale = scale_at;
        pieces[f].scale_bytes = n_scale_rows * n * 4;
        cut_columns(scale_at, src->view.scale, n_scale_rows, scale_row, first * 4, n * 4);
        scale_at += pieces[f].scale_bytes;
    }
    return MQ_OK;
}

/* Does the source's slice lie in its scale blocks as the plan says the record does? */
static mq_status check_phases(const rows *src, const mq_record_spec *r, const mq_convert_item *it, mq_err *err)
{
    if (src->t.scheme != MQ_SCHEME_FP8_BLOCK)
        return MQ_OK;
    int64_t phase = (r->row_phase + it->row0 % r->seg_rows) % MQ_FP8_BLOCK;
    if (src->view.row_phase == phase)
        return MQ_OK;
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, r->key);
    return mq_fail(err, MQ_E_BUG, "tensor '%s': rows from %lld have phase %d in the source, %lld in the plan", name,
                   (long long)src->row0, src->view.row_phase, (long long)phase);
}

static mq_status work_copy(mq_convert_worker *w, mq_convert_piece *pieces, int64_t *read_bytes,
                           const mq_convert_job *job, const mq_file_spec *files, const mq_convert_item *it, mq_err *err)
{
    const mq_record_spec *r = &files[it->file].records[it->record];
    if (r->key.role == MQ_ROLE_DRAFT_MASK) {
        const mq_mask_embedding *mask = &job->source->mask;
        pieces[0].plain = mask->bytes;
        pieces[0].plain_bytes = mask->n * (mask->dtype == MQ_DT_F32 ? 4 : 2);
        return MQ_OK;
    }
    rows src;
    MQ_TRY(rows_plan(&src, job, r->key, r->row0 + it->row0, it->n_rows, err));
    MQ_TRY(check_phases(&src, r, it, err));
    MQ_TRY(grow(&w->raw, src.data_bytes, err));
    MQ_TRY(grow(&w->scale, src.scale_bytes, err));
    MQ_TRY(rows_read(&src, w->raw.data, w->scale.data, err));
    *read_bytes += src.data_bytes + src.scale_bytes;
    if (r->cols != r->full_cols)
        return cut_pieces(w, pieces, &src, files, it, err);
    pieces[0].plain = w->raw.data;
    pieces[0].plain_bytes = src.data_bytes;
    pieces[0].scale = src.scale_bytes ? w->scale.data : NULL;
    pieces[0].scale_bytes = src.scale_bytes;
    return MQ_OK;
}

static mq_status compress_pieces(mq_convert_worker *w, mq_convert_piece *pieces, int n, int level, mq_err *err)
{
    int64_t bound = 0;
    for (int f = 0; f < n; f++)
        bound += mq_zstd_bound(pieces[f].plain_bytes);
    MQ_TRY(grow(&w->packed, bound, err));
    uint8_t *at = w->packed.data;
    for (int f = 0; f < n; f++) {
        MQ_TRY(mq_zstd_compress(at, mq_zstd_bound(pieces[f].plain_bytes), &pieces[f].packed_bytes, pieces[f].plain,
                                pieces[f].plain_bytes, level, err));
        pieces[f].packed = at;
        at += pieces[f].packed_bytes;
    }
    return MQ_OK;
}

mq_status mq_convert_work(mq_convert_worker *w, mq_convert_piece *pieces, mq_round_stats stats[MQ_PROJ_COUNT],
                          int64_t *read_bytes, const mq_convert_job *job, const mq_convert_ready *ready,
                          const mq_convert_group *g, const mq_convert_item *it, mq_err *err)
{
    const mq_file_spec *files = &job->plan->files[g->file0];
    const mq_record_spec *r = &files[it->file].records[it->record];
    memset(pieces, 0, (size_t)it->n_files * sizeof *pieces);
    memset(stats, 0, MQ_PROJ_COUNT * sizeof *stats);
    *read_bytes = 0;
    if (r->is_expert) {
        mq_scheme scheme;
        int group;
        MQ_TRY(mq_convert_record(&scheme, &group, NULL, job, r, err));
        if (ready && scheme == MQ_SCHEME_INT4 && r->key.layer == mq_codes_layer(ready->codes))
            MQ_TRY(work_ready(w, pieces, read_bytes, ready->codes, files, it, group, err));
        else
            MQ_TRY(work_expert(w, pieces, stats, read_bytes, job, files, it, scheme, group, err));
    } else {
        MQ_TRY(work_copy(w, pieces, read_bytes, job, files, it, err));
    }
    return job->opt.zstd_level > 0 ? compress_pieces(w, pieces, it->n_files, job->opt.zstd_level, err) : MQ_OK;
}
