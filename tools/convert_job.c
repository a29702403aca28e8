/* Opens a checkpoint for conversion and cuts the plan into groups and items.
 *
 * Items follow the canonical order of records, so that several threads can take them in order and still append to the
 * files front to back.  Where ranks own rows, their items alternate: two threads then write to two files.  Where they own
 * columns (down, o_proj) one item serves all ranks, because reading short pieces of every row would be slower than
 * reading whole rows.  An item is small and its size does not depend on the model: memory is bounded by the
 * number of threads. */
#include "tools/convert_job.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "src/codec.h"
#include "src/dtype.h"
#include "src/units.h"

/* Weights of an item of an expert, bytes of an item that is only copied. */
enum { ITEM_WEIGHTS = 1 << 20, ITEM_BYTES = 2 << 20 };

/* ---- Schemes ---- */

mq_key mq_convert_part_key(const mq_record_spec *r, bool is_up)
{
    mq_key key = r->key;
    key.role = is_up ? MQ_ROLE_EXPERT_UP : MQ_ROLE_EXPERT_GATE;
    return key;
}

mq_status mq_convert_record(mq_scheme *scheme, int *group, mq_source_tensor *t, const mq_convert_job *job,
                            const mq_record_spec *r, mq_err *err)
{
    *group = 0;
    if (r->is_expert) {
        *scheme = (mq_scheme)job->expert_scheme[r->key.layer];
        *group = *scheme == MQ_SCHEME_INT4 ? job->recipe.group : MQ_GROUP_MXFP4;
        if (!t || r->key.role == MQ_ROLE_EXPERT_GATE_UP)
            return MQ_OK;
        return mq_source_find(t, job->source, r->key, err);
    }
    if (r->key.role == MQ_ROLE_DRAFT_MASK) {
        mq_dtype dt = job->source->mask.dtype;
        *scheme = dt == MQ_DT_F32 ? MQ_SCHEME_F32 : dt == MQ_DT_F16 ? MQ_SCHEME_F16 : MQ_SCHEME_BF16;
        return MQ_OK;
    }
    mq_source_tensor found;
    MQ_TRY(mq_source_find(&found, job->source, r->key, err));
    *scheme = found.scheme;
    if (t)
        *t = found;
    if (found.scheme == MQ_SCHEME_MXFP4_ROWS) {
        char name[MQ_KEY_NAME];
        mq_key_name(name, sizeof name, r->key);
        return mq_fail(err, MQ_E_UNSUPPORTED, "tensor '%s': MXFP4 outside of routed experts", name);
    }
    return MQ_OK;
}

/* Are layer l's experts MXFP4?  All of them or none. */
static mq_status layer_is_mxfp4(bool *is_mxfp4, const mq_convert_job *job, int l, mq_err *err)
{
    static const mq_role roles[] = {MQ_ROLE_EXPERT_GATE, MQ_ROLE_EXPERT_UP, MQ_ROLE_EXPERT_DOWN};
    int64_t n_found = 0, n_all = 0;
    char name[MQ_KEY_NAME] = "";
    for (int e = 0; e < job->source->model.n_experts; e++)
        for (int k = 0; k < 3; k++) {
            mq_key key = {MQ_STACK_MODEL, l, roles[k], e};
            mq_source_tensor t;
            MQ_TRY(mq_source_find(&t, job->source, key, err));
            bool found = t.scheme == MQ_SCHEME_MXFP4_ROWS;
            if (n_all && found != (n_found > 0) && !name[0])
                mq_key_name(name, sizeof name, key);
            n_found += found;
            n_all++;
        }
    *is_mxfp4 = n_found > 0;
    if (n_found > 0 && n_found < n_all && !job->opt.force_int4)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "tensor '%s': layer %d mixes MXFP4 with other experts; a layer has one scheme (--experts int4 "
                       "quantizes all of them)",
                       name, l);
    return MQ_OK;
}

static mq_status choose_schemes(mq_convert_job *job, mq_err *err)
{
    const mq_model *m = &job->source->model;
    for (int l = 0; l < m->n_layers; l++) {
        job->expert_scheme[l] = MQ_SCHEME_NONE;
        if (!m->is_moe[l])
            continue;
        bool is_mxfp4;
        MQ_TRY(layer_is_mxfp4(&is_mxfp4, job, l, err));
        bool keep = is_mxfp4 && !job->opt.force_int4;
        job->expert_scheme[l] = keep ? MQ_SCHEME_MXFP4 : MQ_SCHEME_INT4;
        job->n_mxfp4_layers += keep;
        job->n_int4_layers += !keep;
        job->n_requantized_layers += is_mxfp4 && !keep;
    }
    return MQ_OK;
}

static void fill_recipe(mq_convert_job *job)
{
    mq_recipe *r = &job->recipe;
    bool any = job->n_int4_layers > 0;
    const char *method = job->opt.method == MQ_ROUND_RTN ? "rtn" : "search";
    if (mq_convert_is_calibrated(job))
        method = job->opt.calib.recipe.method == MQ_CALIB_GPTQ ? "gptq" : "imatrix";
    snprintf(r->method, sizeof r->method, "%s", any ? method : "none");
    r->group = any ? job->opt.group : 0;
    if (job->opt.zstd_level > 0)
        snprintf(r->compress, sizeof r->compress, "zstd:%d", job->opt.zstd_level);
    else
        snprintf(r->compress, sizeof r->compress, "none");
    snprintf(r->backend, sizeof r->backend, "cpu");
    snprintf(r->isa, sizeof r->isa, "any");
    snprintf(r->zstd_version, sizeof r->zstd_version, "%s", job->opt.zstd_level > 0 ? mq_zstd_version() : "");
    r->seed = job->opt.seed;
}

/* ---- Items ---- */

/* Rows of the record's next chunk, beginning at row `start` of it.  FP8 chunks end at the edge of a 128-row block or cover whole
 * segments, so that the chunks' scales, one after the other, are the record's. */
static int64_t chunk_rows(const mq_record_spec *r, mq_scheme scheme, int64_t start)
{
    int64_t left = r->rows - start, read_cols = r->cols != r->full_cols ? r->full_cols : r->cols;
    if (r->is_expert) {
        int64_t n = ITEM_WEIGHTS / read_cols / MQ_UNIT_ROWS * MQ_UNIT_ROWS;
        n = n < MQ_UNIT_ROWS ? MQ_UNIT_ROWS : n;
        return n < left ? n : left;
    }
    int64_t row_bytes = read_cols * (scheme == MQ_SCHEME_F32 ? 4 : scheme == MQ_SCHEME_FP8_BLOCK ? 1 : 2);
    int64_t n = ITEM_BYTES / row_bytes;
    if (scheme == MQ_SCHEME_FP8_BLOCK) {
        int64_t at = start % r->seg_rows, seg_left = r->seg_rows - at;
        if (at == 0 && n >= r->seg_rows) {
            n = n / r->seg_rows * r->seg_rows;
        } else {
            n = (n / MQ_FP8_BLOCK > 0 ? n / MQ_FP8_BLOCK * MQ_FP8_BLOCK : MQ_FP8_BLOCK) -
                (r->row_phase + at) % MQ_FP8_BLOCK;
            n = n < seg_left ? n : seg_left;
        }
    }
    n = n < 1 ? 1 : n;
    return n < left ? n : left;
}

typedef struct item_list {
    mq_convert_item *items; /* NULL: count only */
    mq_convert_group *g;
    int32_t n_tickets[MQ_CONVERT_MAX_FILES];
} item_list;

static int64_t stored_bytes(const mq_source_tensor *t, int64_t n_weights)
{
    switch (t->scheme) {
    case MQ_SCHEME_F32:
        return 4 * n_weights;
    case MQ_SCHEME_FP8_BLOCK:
        return n_weights;
    case MQ_SCHEME_MXFP4_ROWS:
        return n_weights / 2 + n_weights / MQ_MX_GROUP;
    default:
        return 2 * n_weights;
    }
}

/* Bytes an item reads, about; what progress counts. */
static int64_t item_bytes(const mq_convert_job *job, const mq_record_spec *r, int64_t n_rows)
{
    int64_t n = n_rows * (r->cols != r->full_cols ? r->full_cols : r->cols);
    mq_source_tensor t = {.scheme = MQ_SCHEME_BF16};
    mq_key key = r->key.role == MQ_ROLE_EXPERT_GATE_UP ? mq_convert_part_key(r, false) : r->key;
    if (key.role != MQ_ROLE_DRAFT_MASK && mq_source_find(&t, job->source, key, NULL) != MQ_OK)
        return 0;
    return stored_bytes(&t, n);
}

static int64_t push_item(item_list *l, int64_t record, int file, int n_files, const mq_record_spec *r, int64_t row0,
                         mq_scheme scheme)
{
    mq_convert_item it = {.record = record, .row0 = row0, .n_rows = chunk_rows(r, scheme, row0), .file = file,
                          .n_files = n_files};
    it.last = row0 + it.n_rows == r->rows;
    for (int k = 0; k < n_files; k++)
        it.ticket[k] = l->n_tickets[file + k]++;
    if (r->is_expert)
        l->g->n_expert_weights += it.n_rows * (n_files > 1 ? r->full_cols : r->cols);
    if (l->items)
        l->items[l->g->n_items] = it;
    l->g->n_items++;
    return it.n_rows;
}

/* All items of record i in every file of the group. */
static mq_status push_record(item_list *l, const mq_convert_job *job, int64_t i, mq_err *err)
{
    const mq_file_spec *files = &job->plan->files[l->g->file0];
    int n = l->g->n_files;
    const mq_record_spec *r = &files[0].records[i];
    mq_scheme scheme;
    int group;
    MQ_TRY(mq_convert_record(&scheme, &group, NULL, job, r, err));
    int64_t at[MQ_CONVERT_MAX_FILES] = {0}, before = l->g->n_items;
    if (r->cols != r->full_cols) {
        while (at[0] < r->rows)
            at[0] += push_item(l, i, 0, n, r, at[0], scheme);
    } else {
        for (bool more = true; more;) {
            more = false;
            for (int f = 0; f < n; f++) {
                const mq_record_spec *mine = &files[f].records[i];
                if (at[f] < mine->rows)
                    at[f] += push_item(l, i, f, 1, mine, at[f], scheme);
                more = more || at[f] < mine->rows;
            }
        }
    }
    int64_t n_rows = r->cols != r->full_cols ? r->rows : r->rows * n;
    l->g->in_bytes += item_bytes(job, r, n_rows);
    if (l->g->n_items - before > INT32_MAX)
        return mq_fail(err, MQ_E_BUG, "%s: too many items", files[0].name);
    return MQ_OK;
}

mq_status mq_convert_items(mq_convert_item *items, mq_convert_group *g, const mq_convert_job *job, mq_err *err)
{
    item_list l = {.items = items, .g = g};
    g->n_items = g->in_bytes = g->n_expert_weights = 0;
    const mq_file_spec *files = &job->plan->files[g->file0];
    for (int f = 1; f < g->n_files; f++)
        if (files[f].n_records != files[0].n_records)
            return mq_fail(err, MQ_E_BUG, "%s: %lld records, but %s has %lld", files[f].name,
                           (long long)files[f].n_records, files[0].name, (long long)files[0].n_records);
    for (int64_t i = 0; i < files[0].n_records; i++)
        MQ_TRY(push_record(&l, job, i, err));
    return MQ_OK;
}

/* ---- Groups ---- */

static mq_status make_groups(mq_convert_job *job, mq_err *err)
{
    const mq_plan *plan = job->plan;
    job->groups = calloc((size_t)plan->n_files, sizeof *job->groups);
    if (!job->groups)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int64_t i = 0; i < plan->n_files; i++) {
        const mq_file_spec *f = &plan->files[i];
        mq_convert_group *g = job->n_groups ? &job->groups[job->n_groups - 1] : NULL;
        const mq_file_spec *first = g ? &plan->files[g->file0] : NULL;
        if (first && first->kind == f->kind && first->layer == f->layer) {
            assert(g->n_files < MQ_CONVERT_MAX_FILES);
            g->n_files++;
            continue;
        }
        job->groups[job->n_groups++] = (mq_convert_group){.file0 = i, .n_files = 1};
    }
    for (int64_t i = 0; i < job->n_groups; i++) {
        mq_convert_group *g = &job->groups[i];
        MQ_TRY(mq_convert_items(NULL, g, job, err));
        job->n_items += g->n_items;
        job->in_bytes += g->in_bytes;
        job->n_expert_weights += g->n_expert_weights;
    }
    return MQ_OK;
}

/* Stored bytes of the largest item (F32 sources: 4 per weight), its packed bytes, the same again compressed, and a tile of F32. */
static int64_t worker_bytes(const mq_convert_job *job)
{
    int64_t max = 0;
    for (int64_t i = 0; i < job->n_groups; i++) {
        const mq_file_spec *f = &job->plan->files[job->groups[i].file0];
        for (int64_t k = 0; k < f->n_records && k < 64; k++) { /* experts of a layer are alike */
            const mq_record_spec *r = &f->records[k];
            int64_t cols = r->full_cols, rows = r->is_expert ? ITEM_WEIGHTS / cols : ITEM_BYTES / 2 / cols;
            rows = rows < MQ_FP8_BLOCK ? MQ_FP8_BLOCK : rows;
            rows = rows < r->rows ? rows : r->rows;
            int64_t n = rows * cols, bytes = r->is_expert ? 5 * n + MQ_UNIT_ROWS * cols * 4 : 8 * n;
            max = bytes > max ? bytes : max;
        }
    }
    return max + (1 << 20);
}

mq_status mq_convert_job_open(mq_convert_job *job, const mq_convert_options *opt, mq_err *err)
{
    memset(job, 0, sizeof *job);
    job->opt = *opt;
    job->opt.calib.recipe.group = opt->group;
    mq_status st = mq_source_open(&job->source, opt->checkpoint, err);
    if (st == MQ_OK)
        st = choose_schemes(job, err);
    if (st == MQ_OK) {
        fill_recipe(job);
        mq_err why;
        int n = opt->n_ranks;
        if (n == 0)
            n = mq_plan_default_ranks(&job->source->model, mq_convert_draft(job), job->recipe.group, &why);
        st = n == 0 ? mq_fail(err, MQ_E_UNSUPPORTED, "%s/config.json: %s", opt->checkpoint, why.text)
                    : mq_plan_create(&job->plan, &job->source->model, mq_convert_draft(job), n, job->recipe.group, err);
    }
    if (st == MQ_OK)
        st = make_groups(job, err);
    if (st == MQ_OK)
        job->worker_bytes = worker_bytes(job);
    if (st != MQ_OK)
        mq_convert_job_close(job);
    return st;
}

void mq_convert_job_close(mq_convert_job *job)
{
    free(job->groups);
    mq_plan_free(job->plan);
    mq_source_close(job->source);
    memset(job, 0, sizeof *job);
}

mq_status mq_convert_file_bytes(int64_t *n_bytes, const mq_convert_job *job, const mq_file_spec *f, mq_err *err)
{
    int64_t total = MQ_SHARD_ALIGN;
    for (int64_t i = 0; i < f->n_records; i++) {
        const mq_record_spec *r = &f->records[i];
        mq_scheme scheme;
        int group;
        char name[MQ_KEY_NAME];
        MQ_TRY(mq_convert_record(&scheme, &group, NULL, job, r, err));
        mq_key_name(name, sizeof name, r->key);
        total += mq_round_up(mq_record_plain_bytes(r, scheme, group), MQ_SHARD_ALIGN);
        total += (int64_t)sizeof(mq_shard_entry) + (int64_t)strlen(name);
    }
    *n_bytes = total + (int64_t)sizeof(mq_shard_trailer);
    return MQ_OK;
}
