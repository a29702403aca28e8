/* The table of --dry-run: groups that look alike share a line (layer 10 is a few bytes larger than layer 9: its names are longer). */
#include "tools/convert_dry.h"

#include <stdlib.h>
#include <string.h>

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
