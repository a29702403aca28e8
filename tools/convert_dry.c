/* The table of --dry-run: groups that look alike share a line (layer 10 is a few bytes larger than layer 9: its names are longer). */
#include "tools/convert_dry.h"

#include <stdlib.h>
#include <string.h>

#include "src/file.h"

/* One line: groups of the same kind, schemes and bytes. */
typedef struct line {
    mq_shard_kind kind;
    int first, last; /* layers */
    char schemes[64];
    int64_t n_files, bytes; /* bytes of all */
    int64_t group_bytes;
} line;

/* Schemes of a group's matrices, "fp8_block, bf16; experts int4 g64". */
static mq_status describe(char out[64], const mq_convert_job *job, const mq_convert_group *g, mq_err *err)
{
    const mq_file_spec *f = &job->plan->files[g->file0];
    bool seen[MQ_SCHEME_COUNT] = {false};
    const mq_record_spec *expert = NULL;
    for (int64_t i = 0; i < f->n_records; i++) {
        mq_scheme scheme;
        int group;
        if (f->records[i].is_expert) {
            expert = &f->records[i];
            continue;
        }
        MQ_TRY(mq_convert_record(&scheme, &group, NULL, job, &f->records[i], err));
        seen[scheme] = true;
    }
    int n = 0;
    for (int s = 0; s < MQ_SCHEME_COUNT; s++)
        if (seen[s])
            n += snprintf(out + n, (size_t)(64 - n), "%s%s", n ? ", " : "", mq_scheme_name((mq_scheme)s));
    if (!expert)
        return MQ_OK;
    mq_scheme scheme = (mq_scheme)job->expert_scheme[expert->key.layer];
    if (scheme == MQ_SCHEME_INT4)
        snprintf(out + n, (size_t)(64 - n), "; experts int4 g%d", job->recipe.group);
    else
        snprintf(out + n, (size_t)(64 - n), "; experts %s", mq_scheme_name(scheme));
    return MQ_OK;
}

static mq_status make_line(line *l, const mq_convert_job *job, const mq_convert_group *g, mq_err *err)
{
    const mq_file_spec *f = &job->plan->files[g->file0];
    memset(l, 0, sizeof *l);
    l->kind = f->kind;
    l->first = l->last = f->layer;
    l->n_files = g->n_files;
    for (int k = 0; k < g->n_files; k++) {
        int64_t bytes;
        MQ_TRY(mq_convert_file_bytes(&bytes, job, f + k, err));
        l->bytes += bytes;
    }
    l->group_bytes = l->bytes;
    return describe(l->schemes, job, g, err);
}

static void print_line(const line *l)
{
    static const char *const kinds[MQ_SHARD_KIND_COUNT] = {"common", "layer", "head", "mtp", "draft"};
    char name[48], bytes[32];
    bool numbered = l->kind == MQ_SHARD_LAYER || l->kind == MQ_SHARD_MTP;
    if (!numbered)
        snprintf(name, sizeof name, "%s", kinds[l->kind]);
    else if (l->first == l->last)
        snprintf(name, sizeof name, "%s %d", kinds[l->kind], l->first);
    else
        snprintf(name, sizeof name, "%s %d to %d", kinds[l->kind], l->first, l->last);
    mq_cli_bytes_text(bytes, l->bytes);
    printf("  %-16s %5lld %10s  %s\n", name, (long long)l->n_files, bytes, l->schemes);
}

mq_status mq_convert_print_plan(const mq_convert_job *job, mq_err *err)
{
    printf("  %-16s %5s %10s  %s\n", "part", "files", "bytes", "stored as");
    line held = {.n_files = 0};
    for (int64_t i = 0; i < job->n_groups; i++) {
        line l;
        MQ_TRY(make_line(&l, job, &job->groups[i], err));
        if (held.n_files && held.kind == l.kind && llabs(held.group_bytes - l.group_bytes) <= held.group_bytes / 1000 &&
            strcmp(held.schemes, l.schemes) == 0) {
            held.last = l.last;
            held.n_files += l.n_files;
            held.bytes += l.bytes;
            continue;
        }
        if (held.n_files)
            print_line(&held);
        held = l;
    }
    if (held.n_files)
        print_line(&held);
    return MQ_OK;
}

/* The largest weight file, to time the disk with. */
static const mq_input *largest_input(const mq_inputs *in)
{
    const mq_input *best = NULL;
    for (int64_t i = 0; i < in->n; i++)
        if (in->items[i].is_weights && (!best || in->items[i].bytes > best->bytes))
            best = &in->items[i];
    return best;
}

mq_status mq_convert_expect(mq_convert_result *r, const mq_convert_job *job, const mq_calibration_plan *plan,
                            const mq_inputs *in, int n_threads, const char *dir, mq_err *err)
{
    if (plan->device_bytes)
        return MQ_OK; /* what is measured is the CPU */
    const mq_model *m = &job->source->model;
    int64_t saved, scratch = mq_calibration_scratch_writes(&saved, job, plan);
    mq_calib_work work = {.m = m,
                          .recipe = &job->opt.calib.recipe,
                          .n_rows = plan->n_rows,
                          .window = r->calib_window,
                          .sample_rows = MQ_CALIB_SAMPLE_ROWS,
                          .loss_rows = MQ_CALIB_REPORT_ROWS,
                          .n_threads = n_threads,
                          .n_workers = plan->n_workers,
                          .read_bytes = r->bytes_in,
                          .write_bytes = r->bytes_out,
                          .scratch_bytes = scratch,
                          .saved_bytes = saved};
    for (int l = 0; l < m->n_layers; l++)
        if (job->expert_scheme[l] == MQ_SCHEME_INT4) {
            work.n_calibrated++;
            work.n_layers = l + 1;
        }
    for (int64_t l = 0; l < work.n_layers; l++)
        work.n_dense += !m->is_moe[l];
    const mq_input *file = largest_input(in);
    char *path = file ? mq_path_join(job->opt.checkpoint, file->name) : NULL;
    mq_status st = mq_calib_measure(&r->rates, &work, path ? path : "", dir, err);
    free(path);
    if (st == MQ_OK)
        r->expect = mq_calib_estimate(&work, &r->rates);
    return st;
}
