/* report.json: a summary by layer and projection, then one line per matrix, in plan order.
 *
 * A large model has some 80,000 expert matrices, so each gets one compact line instead of an indented object. */
#include "tools/convert_report.h"

#include <math.h>
#include <string.h>

const char *mq_convert_projection_name(int projection)
{
    static const char *const names[MQ_PROJ_COUNT] = {"gate_proj", "up_proj", "down_proj"};
    return names[projection];
}

double mq_convert_rel_error(mq_round_stats s)
{
    return s.norm2 > 0 ? sqrt(s.err2 / s.norm2) : 0.0;
}

/* Numbers that a group has about each matrix. */
static int64_t numbers_of(const mq_journal_group *e, int64_t n_experts)
{
    return e->n_stats / (n_experts * MQ_PROJ_COUNT);
}

static mq_round_stats matrix_stats(const mq_journal_group *e, int64_t n_experts, int64_t expert, int projection)
{
    int64_t n = numbers_of(e, n_experts);
    const double *sum = e->stats + (expert * MQ_PROJ_COUNT + projection) * n;
    return (mq_round_stats){sum[MQ_STAT_ERR2], sum[MQ_STAT_NORM2]};
}

mq_round_stats mq_convert_sum(const mq_convert_job *job, const mq_convert_done *done, int layer, int projection)
{
    mq_round_stats total = {0, 0};
    for (int64_t g = 0; g < job->n_groups; g++) {
        const mq_file_spec *f = &job->plan->files[job->groups[g].file0];
        const mq_journal_group *e = &done[g].entry;
        if (f->kind != MQ_SHARD_LAYER || (layer >= 0 && f->layer != layer))
            continue;
        int64_t n_experts = job->source->model.n_experts;
        for (int64_t x = 0; e->n_stats && x < n_experts; x++) {
            mq_round_stats s = matrix_stats(e, n_experts, x, projection);
            total.err2 += s.err2;
            total.norm2 += s.norm2;
        }
    }
    return total;
}

static void write_errors(mq_json_writer *w, const mq_convert_job *job, const mq_convert_done *done, int layer)
{
    for (int p = 0; p < MQ_PROJ_COUNT; p++)
        mq_json_write_double(w, mq_convert_projection_name(p),
                             mq_convert_rel_error(mq_convert_sum(job, done, layer, p)));
}

void mq_convert_notices(mq_buf *out, const mq_convert_job *job)
{
    const mq_buf *lines = &job->source->notices;
    const char *at = lines->n_bytes ? lines->data : "", *dir = mq_checkpoint_dir(job->source->checkpoint);
    size_t n_dir = strlen(dir);
    while (*at) {
        if (strncmp(at, dir, n_dir) == 0 && at[n_dir] == '/')
            at += n_dir + 1;
        size_t n = strcspn(at, "\n");
        mq_buf_append(out, at, (int64_t)n);
        mq_buf_str(out, "\n");
        at += n + (at[n] == '\n');
    }
}

/* One string per line. */
static mq_status write_lines(mq_json_writer *w, mq_buf *lines, mq_err *err)
{
    MQ_TRY(mq_buf_status(lines, err));
    for (char *at = lines->n_bytes ? lines->data : NULL, *end; at && *at; at = end + 1) {
        end = strchr(at, '\n');
        *end = '\0';
        if (end > at)
            mq_json_write_string(w, NULL, at);
    }
    return MQ_OK;
}

/* How a calibrated matrix got its codes. */
static void write_account(mq_json_writer *w, const mq_calib_account *a)
{
    mq_json_write_string(w, "path", mq_calib_path_name(a->path));
    mq_json_write_int(w, "tokens", a->n_tokens);
    if (a->energy > 0)
        mq_json_write_double(w, "rel_output_error", sqrt(a->loss / a->energy));
    mq_json_write_double(w, "damp", a->damp);
    if (a->n_retries)
        mq_json_write_int(w, "retries", a->n_retries);
    mq_json_write_int(w, "refit_rows", a->n_refit);
}

static void write_matrix(mq_buf *out, bool *first, mq_key key, mq_scheme scheme, const char *method, int group,
                         const mq_round_stats *stats, const mq_calib_account *account)
{
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    mq_buf_str(out, *first ? "\n    " : ",\n    ");
    *first = false;
    mq_json_writer w = mq_json_write_begin(out, 0);
    mq_json_write_object(&w, NULL);
    mq_json_write_string(&w, "name", name);
    mq_json_write_string(&w, "scheme", mq_scheme_name(scheme));
    mq_json_write_string(&w, "method", method);
    if (stats) {
        mq_json_write_int(&w, "group", group);
        mq_json_write_double(&w, "rel_rms_error", mq_convert_rel_error(*stats));
    }
    if (account)
        write_account(&w, account);
    mq_json_write_end_object(&w);
}

static void write_expert(mq_buf *out, bool *first, const mq_convert_job *job, const mq_convert_done *done,
                         const mq_record_spec *r, mq_scheme scheme, int group)
{
    const mq_journal_group *e = &done->entry;
    const mq_calib_account *accounts = done->account.matrices;
    bool quantized = scheme == MQ_SCHEME_INT4;
    bool is_down = r->key.role == MQ_ROLE_EXPERT_DOWN;
    for (int p = is_down ? MQ_PROJ_DOWN : MQ_PROJ_GATE; p <= (is_down ? MQ_PROJ_DOWN : MQ_PROJ_UP); p++) {
        mq_key key = is_down ? r->key : mq_convert_part_key(r, p == MQ_PROJ_UP);
        mq_round_stats s = {0, 0};
        if (quantized && e->n_stats)
            s = matrix_stats(e, job->source->model.n_experts, r->key.expert, p);
        write_matrix(out, first, key, scheme, quantized ? job->recipe.method : "kept", group, quantized ? &s : NULL,
                     quantized && accounts ? &accounts[r->key.expert * MQ_CALIB_MATRICES + p] : NULL);
    }
}

static mq_status write_matrices(mq_buf *out, const mq_convert_job *job, const mq_convert_done *done, mq_err *err)
{
    bool first = true;
    for (int64_t g = 0; g < job->n_groups; g++) {
        const mq_file_spec *f = &job->plan->files[job->groups[g].file0];
        for (int64_t i = 0; i < f->n_records; i++) {
            const mq_record_spec *r = &f->records[i];
            mq_scheme scheme;
            int group;
            if (r->is_vector)
                continue;
            MQ_TRY(mq_convert_record(&scheme, &group, NULL, job, r, err));
            if (r->is_expert)
                write_expert(out, &first, job, &done[g], r, scheme, group);
            else
                write_matrix(out, &first, r->key, scheme, "kept", 0, NULL, NULL);
        }
    }
    return MQ_OK;
}

/* A calibrated layer: its paths with their numbers of matrices, the tokens of its experts, and what its output lost. */
static void write_layer_account(mq_json_writer *w, const mq_convert_account *a)
{
    int64_t n_paths[MQ_CALIB_PATH_COUNT] = {0};
    for (int64_t i = 0; i < a->n_experts * MQ_CALIB_MATRICES; i++)
        n_paths[a->matrices[i].path]++;
    mq_json_write_object(w, "paths");
    for (int p = 0; p < MQ_CALIB_PATH_COUNT; p++)
        if (n_paths[p])
            mq_json_write_int(w, mq_calib_path_name((mq_calib_path)p), n_paths[p]);
    mq_json_write_end_object(w);
    mq_json_write_array(w, "expert_tokens");
    for (int64_t e = 0; e < a->n_experts; e++)
        mq_json_write_int(w, NULL, a->matrices[e * MQ_CALIB_MATRICES + MQ_CALIB_GATE].n_tokens);
    mq_json_write_end_array(w);
    if (!a->loss.measured)
        return;
    mq_json_write_int(w, "measured_tokens", a->loss.n_rows);
    mq_json_write_double(w, "moe_rel_error", a->loss.moe_rel_error);
    mq_json_write_double(w, "moe_cosine", a->loss.moe_cosine);
    mq_json_write_double(w, "output_rel_error", a->loss.output_rel_error);
    mq_json_write_double(w, "output_cosine", a->loss.output_cosine);
}

static const mq_convert_account *account_of(const mq_convert_job *job, const mq_convert_done *done, int layer)
{
    for (int64_t g = 0; g < job->n_groups; g++) {
        const mq_file_spec *f = &job->plan->files[job->groups[g].file0];
        if (f->kind == MQ_SHARD_LAYER && f->layer == layer)
            return done[g].account.n_experts > 0 ? &done[g].account : NULL;
    }
    return NULL;
}

mq_status mq_convert_report(mq_buf *out, const mq_convert_job *job, const mq_convert_done *done, mq_err *err)
{
    const mq_source *s = job->source;
    mq_buf notices = mq_buf_empty();
    mq_buf_str(out, "{");
    mq_json_writer w = mq_json_write_begin(out, 2);
    w.depth = 1;
    mq_json_write_string(&w, "schema", "mimo-report-1");
    mq_json_write_string(&w, "method", job->recipe.method);
    mq_json_write_int(&w, "group", job->recipe.group);
    mq_json_write_int(&w, "ranks", job->plan->n_ranks);
    mq_json_write_int(&w, "expert_weights", job->n_expert_weights);
    mq_json_write_int(&w, "requantized_mxfp4_layers", job->n_requantized_layers);
    mq_json_write_array(&w, "notices");
    mq_convert_notices(&notices, job);
    mq_status st = write_lines(&w, &notices, err);
    mq_buf_release(&notices);
    MQ_TRY(st);
    mq_json_write_end_array(&w);
    mq_json_write_object(&w, "rel_rms_error");
    write_errors(&w, job, done, -1);
    mq_json_write_end_object(&w);
    mq_json_write_array(&w, "layers");
    for (int l = 0; l < s->model.n_layers; l++) {
        mq_scheme scheme = (mq_scheme)job->expert_scheme[l];
        mq_json_write_object(&w, NULL);
        mq_json_write_int(&w, "layer", l);
        mq_json_write_string(&w, "experts", mq_scheme_name(scheme));
        if (scheme == MQ_SCHEME_INT4)
            write_errors(&w, job, done, l);
        const mq_convert_account *account = account_of(job, done, l);
        if (account)
            write_layer_account(&w, account);
        mq_json_write_end_object(&w);
    }
    mq_json_write_end_array(&w);
    mq_buf_str(out, ",\n  \"matrices\": [");
    MQ_TRY(write_matrices(out, job, done, err));
    mq_buf_str(out, "\n  ]\n}\n");
    return mq_buf_status(out, err);
}
