/* See compare.h.  A job is one shard file: its records are loaded (digest checked) and held against
 * the same slices of the checkpoint, large plain ones in blocks of rows.  Every (file, record) has
 * its own place for results, summed in plan order afterwards, so the numbers do not depend on the
 * order in which threads finish. */
#include "tools/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/round.h"
#include "src/pool.h"
#include "src/units.h"

enum { BLOCK_BYTES = 1 << 20 }; /* of the source, at a time, where rows stand alone */

/* What one record gave; gate_up records have two parts. */
typedef struct record_result {
    bool different;
    bool exact[2];
    double err2[2], norm2[2];
    mq_scheme scheme;
} record_result;

typedef struct compare_job {
    const mq_source *source;
    const mq_packed *packed;
    record_result **results; /* [n_files][n_records] */
    void (*progress)(void *ctx, int64_t n_bytes);
    void *progress_ctx;
    bool (*stopped)(void);
} compare_job;

double mq_matrix_relative_error(const mq_matrix_error *e)
{
    if (!isfinite(e->err2) || !isfinite(e->norm2))
        return INFINITY; /* the source holds a weight that is no number */
    return e->norm2 > 0 ? sqrt(e->err2 / e->norm2) : e->err2 > 0 ? 1.0 : 0.0;
}

void mq_comparison_release(mq_comparison *c)
{
    free(c->matrices);
    memset(c, 0, sizeof *c);
}

/* A slice of the checkpoint as stored, in buffers of its own. */
typedef struct slice {
    mq_matrix view;
    uint8_t *data, *scale;
    int64_t data_bytes, scale_bytes;
} slice;

static void slice_release(slice *s)
{
    free(s->data);
    free(s->scale);
    memset(s, 0, sizeof *s);
}

/* Rows [row0, row0 + rows) x columns [col0, col0 + cols) of a tensor that must be [full_rows,
 * full_cols]. */
static mq_status slice_read(slice *s, const mq_source *source, mq_key key, int64_t full_rows,
                            int64_t full_cols, int64_t row0, int64_t rows, int64_t col0,
                            int64_t cols, mq_err *err)
{
    mq_source_tensor t;
    memset(s, 0, sizeof *s);
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    if (!mq_source_has(source, key))
        return mq_fail(err, MQ_E_SHAPE, "tensor '%s': in the packed model, but not in the source",
                       name);
    MQ_TRY(mq_source_find(&t, source, key, err));
    if (full_rows != t.rows || full_cols != t.cols)
        return mq_fail(err, MQ_E_SHAPE,
                       "tensor '%s': the packed model has [%lld, %lld], the source [%lld, %lld]",
                       name, (long long)full_rows, (long long)full_cols, (long long)t.rows,
                       (long long)t.cols);
    MQ_TRY(mq_source_slice(&s->view, &s->data_bytes, &s->scale_bytes, &t, row0, rows, col0, cols,
                           err));
    s->data = malloc((size_t)s->data_bytes + 1);
    s->scale = malloc((size_t)s->scale_bytes + 1);
    if (!s->data || !s->scale)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    return mq_source_read(&s->view, s->data, s->scale, &t, row0, rows, col0, cols, err);
}

/* Are the packed plain bytes what the slice says? */
static bool same_bytes(const slice *s, const mq_matrix *packed)
{
    const mq_matrix *v = &s->view;
    if (v->scheme != packed->scheme || v->rows != packed->rows || v->cols != packed->cols)
        return false;
    if (v->scheme == MQ_SCHEME_FP8_BLOCK &&
        (v->seg_rows != packed->seg_rows || v->row_phase != packed->row_phase ||
         v->col_phase != packed->col_phase))
        return false;
    return memcmp(s->data, packed->data, (size_t)s->data_bytes) == 0 &&
           (s->scale_bytes == 0 || memcmp(s->scale, packed->scale, (size_t)s->scale_bytes) == 0);
}

/* Rows of a record that are read from the source at a time: FP8, whose scales span rows, whole. */
static int64_t block_rows(const mq_record_spec *spec, mq_scheme scheme)
{
    if (scheme != MQ_SCHEME_BF16 && scheme != MQ_SCHEME_F16 && scheme != MQ_SCHEME_F32)
        return spec->rows;
    int64_t fit = BLOCK_BYTES / (mq_record_plain_bytes(spec, scheme, 0) / spec->rows);
    return fit < 1 ? 1 : fit < spec->rows ? fit : spec->rows;
}

static mq_status compare_untouched(record_result *r, const compare_job *job,
                                   const mq_record_spec *spec, const mq_matrix *packed, mq_err *err)
{
    int64_t step = block_rows(spec, packed->scheme);
    for (int64_t row = 0; row < spec->rows; row += step) {
        int64_t n = spec->rows - row < step ? spec->rows - row : step;
        mq_matrix block = *packed;
        if (step < spec->rows) {
            block.rows = n;
            block.data = (const uint8_t *)packed->data +
                         mq_record_plain_bytes(spec, packed->scheme, 0) / spec->rows * row;
        }
        slice s;
        mq_status st = slice_read(&s, job->source, spec->key, spec->full_rows, spec->full_cols,
                                  spec->row0 + row, n, spec->col0, spec->cols, err);
        if (st == MQ_OK)
            r->different = r->different || !same_bytes(&s, &block);
        slice_release(&s);
        MQ_TRY(st);
    }
    return MQ_OK;
}

/* Add n weights a of the source against b of the packed model.  Eight sums over every eighth
 * weight, then a fixed tree: fast, and the same on every machine. */
static void add_errors(record_result *r, int part, const float *a, const float *b, int64_t n)
{
    double err2[8] = {0}, norm2[8] = {0};
    for (int64_t c = 0; c < n; c += 8) /* n is a multiple of 64 */
        for (int k = 0; k < 8; k++) {
            double w = (double)a[c + k], d = w - (double)b[c + k];
            err2[k] += d * d;
            norm2[k] += w * w;
        }
    for (int half = 4; half; half /= 2)
        for (int k = 0; k < half; k++) {
            err2[k] += err2[k + half];
            norm2[k] += norm2[k + half];
        }
    r->err2[part] += err2[0];
    r->norm2[part] += norm2[0];
    r->exact[part] = r->exact[part] && memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

/* Packed tiles against the source: one slice, or gate and up, which share a tile as its upper and
 * lower eight rows. */
static void compare_tiles(record_result *r, mq_rounder *rounder, const slice parts[2], int n_parts,
                          const mq_matrix *packed, float *workspace)
{
    int64_t cols = packed->cols, tile_bytes = mq_tile_bytes(cols, packed->group);
    int rows = MQ_UNIT_ROWS / n_parts;
    float *from_packed = workspace, *from_source = workspace + MQ_UNIT_ROWS * cols;
    for (int64_t t = 0; t < packed->rows / MQ_UNIT_ROWS; t++) {
        mq_units_widen_tile(from_packed, (const uint8_t *)packed->data + t * tile_bytes, cols,
                            packed->group);
        for (int p = 0; p < n_parts; p++) {
            mq_round_widen(rounder, &parts[p].view, t * rows, rows, from_source);
            add_errors(r, p, from_source, from_packed + p * rows * cols, rows * cols);
        }
    }
}

static mq_status compare_expert(record_result *r, const compare_job *job, mq_rounder *rounder,
                                const mq_record_spec *spec, const mq_matrix *packed, mq_err *err)
{
    int n_parts = spec->key.role == MQ_ROLE_EXPERT_GATE_UP ? 2 : 1;
    const mq_role roles[2] = {n_parts == 2 ? MQ_ROLE_EXPERT_GATE : MQ_ROLE_EXPERT_DOWN,
                              MQ_ROLE_EXPERT_UP};
    slice parts[2];
    memset(parts, 0, sizeof parts);
    float *workspace = malloc((size_t)packed->cols * 2 * MQ_UNIT_ROWS * sizeof *workspace);
    mq_status st = workspace ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int p = 0; p < n_parts && st == MQ_OK; p++) {
        mq_key key = spec->key;
        key.role = roles[p];
        r->exact[p] = true;
        st = slice_read(&parts[p], job->source, key, spec->full_rows / n_parts, spec->full_cols,
                        spec->row0 / n_parts, spec->rows / n_parts, spec->col0, spec->cols, err);
    }
    if (st == MQ_OK)
        compare_tiles(r, rounder, parts, n_parts, packed, workspace);
    slice_release(&parts[0]);
    slice_release(&parts[1]);
    free(workspace);
    return st;
}

static mq_status compare_record(record_result *r, const compare_job *job, mq_rounder *rounder,
                                const mq_shard *shard, int64_t i, const mq_record_spec *spec,
                                mq_err *err)
{
    const mq_shard_entry *e = mq_shard_entry_at(shard, i);
    uint8_t *plain = aligned_alloc(64, (size_t)mq_round_up((int64_t)e->plain_bytes + 1, 64));
    if (!plain)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = mq_shard_load(shard, i, plain, true, err);
    if (st == MQ_OK) {
        mq_matrix m = mq_shard_matrix(shard, i, plain);
        r->scheme = m.scheme;
        st = spec->is_expert ? compare_expert(r, job, rounder, spec, &m, err)
                             : compare_untouched(r, job, spec, &m, err);
    }
    free(plain);
    return st;
}

static mq_status compare_file(void *ctx, int64_t f, int worker, mq_err *err)
{
    (void)worker;
    const compare_job *job = ctx;
    const mq_file_spec *file = &job->packed->plan->files[f];
    if (job->stopped && job->stopped())
        return mq_fail(err, MQ_E_STOPPED, "stopped");
    mq_shard *shard = NULL;
    mq_rounder *rounder;
    MQ_TRY(mq_rounder_create(&rounder, NULL, err));
    mq_status st = mq_packed_shard(&shard, job->packed, f, err);
    for (int64_t i = 0; i < file->n_records && st == MQ_OK; i++) {
        st = compare_record(&job->results[f][i], job, rounder, shard, i, &file->records[i], err);
        if (job->progress)
            job->progress(job->progress_ctx, (int64_t)mq_shard_entry_at(shard, i)->stored_bytes);
        if (st == MQ_OK && job->stopped && job->stopped())
            st = mq_fail(err, MQ_E_STOPPED, "stopped");
    }
    mq_shard_close(shard);
    mq_rounder_free(rounder);
    return st; /* the readers of both sides name file and tensor */
}

/* Place of an expert matrix: layers in order, experts, then gate, up, down. */
static int64_t matrix_index(const int64_t *layer_first, const mq_key *key, int part)
{
    return layer_first[key->layer] + key->expert * 3 + part;
}

static void add_part(mq_comparison *out, int64_t at, mq_key key, mq_role role,
                     const record_result *r, int part)
{
    mq_matrix_error *m = &out->matrices[at];
    bool first = m->key.role != role;
    m->key = key;
    m->key.role = role;
    m->scheme = r->scheme;
    m->exact = (first || m->exact) && r->exact[part];
    m->err2 += r->err2[part];
    m->norm2 += r->norm2[part];
}

static void gather_file(mq_comparison *out, const mq_file_spec *file, const record_result *results,
                        const int64_t *layer_first)
{
    for (int64_t i = 0; i < file->n_records; i++) {
        const mq_record_spec *spec = &file->records[i];
        const record_result *r = &results[i];
        if (spec->key.role == MQ_ROLE_EXPERT_GATE_UP) {
            add_part(out, matrix_index(layer_first, &spec->key, 0), spec->key, MQ_ROLE_EXPERT_GATE,
                     r, 0);
            add_part(out, matrix_index(layer_first, &spec->key, 1), spec->key, MQ_ROLE_EXPERT_UP, r,
                     1);
        } else if (spec->is_expert) {
            add_part(out, matrix_index(layer_first, &spec->key, 2), spec->key, MQ_ROLE_EXPERT_DOWN,
                     r, 0);
        } else {
            out->n_untouched += file->rank == 0;
            out->untouched_bytes += mq_record_plain_bytes(spec, r->scheme, 0);
            if (r->different && out->n_different++ == 0) {
                char name[MQ_KEY_NAME];
                mq_key_name(name, sizeof name, spec->key);
                snprintf(out->first_difference, sizeof out->first_difference, "%s: tensor '%s'",
                         file->name, name);
            }
        }
    }
}

static mq_status gather(mq_comparison *out, const compare_job *job, mq_err *err)
{
    const mq_model *m = &job->packed->model;
    int64_t layer_first[MQ_MAX_LAYERS], n = 0;
    for (int layer = 0; layer < m->n_layers; layer++) {
        layer_first[layer] = n;
        n += m->is_moe[layer] ? (int64_t)m->n_experts * 3 : 0;
    }
    out->matrices = calloc((size_t)n + 1, sizeof *out->matrices);
    if (!out->matrices)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    out->n_matrices = n;
    for (int64_t f = 0; f < job->packed->plan->n_files; f++)
        gather_file(out, &job->packed->plan->files[f], job->results[f], layer_first);
    return MQ_OK;
}

/* Bytes of memory that comparing one record takes: the record (twice when it is compressed) and what
 * is read of the source. */
static int64_t record_need(const compare_job *job, const mq_record_spec *spec)
{
    const mq_manifest *m = &job->packed->manifest;
    int copies = strcmp(m->recipe.compress, "none") == 0 ? 1 : 2;
    if (spec->is_expert) /* at most a byte a weight packed, four in the source */
        return spec->rows * spec->cols * (copies + 4) +
               2 * MQ_UNIT_ROWS * spec->cols * (int64_t)sizeof(float);
    mq_source_tensor t;
    mq_err ignored; /* what is wrong with the source is told when the tensor is compared */
    mq_scheme scheme = MQ_SCHEME_F32;
    if (mq_source_has(job->source, spec->key) &&
        mq_source_find(&t, job->source, spec->key, &ignored) == MQ_OK)
        scheme = t.scheme;
    int64_t plain = mq_record_plain_bytes(spec, scheme, 0);
    return copies * plain + plain / spec->rows * block_rows(spec, scheme);
}

/* As many threads as the budget feeds with the largest record. */
static mq_status choose_threads(int *n_threads, const compare_job *job, int64_t budget_bytes,
                                mq_err *err)
{
    int64_t most = 1;
    const mq_record_spec *largest = NULL;
    for (int64_t f = 0; f < job->packed->plan->n_files; f++)
        for (int64_t i = 0; i < job->packed->plan->files[f].n_records; i++) {
            const mq_record_spec *spec = &job->packed->plan->files[f].records[i];
            int64_t need = record_need(job, spec);
            if (need > most) {
                most = need;
                largest = spec;
            }
        }
    if (largest && most > budget_bytes) {
        char name[MQ_KEY_NAME];
        mq_key_name(name, sizeof name, largest->key);
        return mq_fail(err, MQ_E_NOMEM,
                       "a budget of %lld bytes, but %lld are needed to compare tensor '%s'",
                       (long long)budget_bytes, (long long)most, name);
    }
    int64_t fit = budget_bytes / most;
    *n_threads = fit < *n_threads ? (int)fit : *n_threads;
    return MQ_OK;
}

/* Both sides must be the same architecture before tensors are compared. */
static mq_status check_same_model(const mq_model *a, const mq_model *b, mq_err *err)
{
    const struct {
        const char *name;
        int a, b;
    } rows[] = {{"num_hidden_layers", a->n_layers, b->n_layers},
                {"hidden_size", a->hidden, b->hidden},
                {"vocab_size", a->vocab, b->vocab},
                {"n_routed_experts", a->n_experts, b->n_experts},
                {"MTP layers", a->n_mtp, b->n_mtp},
                {"fused_qkv", a->fused_qkv, b->fused_qkv}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].a != rows[i].b)
            return mq_fail(err, MQ_E_SHAPE,
                           "the source is another model: %s %d, the packed model has %d",
                           rows[i].name, rows[i].a, rows[i].b);
    for (int layer = 0; layer < a->n_layers; layer++)
        if (a->is_moe[layer] != b->is_moe[layer] || a->is_swa[layer] != b->is_swa[layer])
            return mq_fail(err, MQ_E_SHAPE,
                           "the source is another model: layer %d is of another kind", layer);
    return MQ_OK;
}

mq_status mq_compare_weights(mq_comparison *out, const mq_source *source, const mq_packed *packed,
                             int n_threads, int64_t budget_bytes,
                             void (*progress)(void *ctx, int64_t n_bytes), void *progress_ctx,
                             bool (*stopped)(void), mq_err *err)
{
    memset(out, 0, sizeof *out);
    MQ_TRY(check_same_model(&source->model, &packed->model, err));
    if (packed->has_draft && !source->has_draft)
        return mq_fail(err, MQ_E_SHAPE, "the packed model has a drafter, the source has none");
    int64_t n_files = packed->plan->n_files;
    compare_job job = {source,   packed,       calloc((size_t)n_files + 1, sizeof(record_result *)),
                       progress, progress_ctx, stopped};
    mq_status st = job.results ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = choose_threads(&n_threads, &job, budget_bytes, err);
    for (int64_t f = 0; f < n_files && st == MQ_OK; f++) {
        job.results[f] =
            calloc((size_t)packed->plan->files[f].n_records + 1, sizeof(record_result));
        if (!job.results[f])
            st = mq_fail(err, MQ_E_NOMEM, "out of memory");
    }
    if (st == MQ_OK)
        st = mq_pool_run(n_threads, n_files, compare_file, &job, err);
    if (st == MQ_OK)
        st = gather(out, &job, err);
    for (int64_t f = 0; job.results && f < n_files; f++)
        free(job.results[f]);
    free(job.results);
    if (st != MQ_OK)
        mq_comparison_release(out);
    return st;
}
