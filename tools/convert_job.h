/* What a conversion will do, before it does anything: the checkpoint opened, the recipe resolved, the plan laid out and cut into
 * groups (files that are finished together) and items (pieces of work of about a million weights). */
#ifndef MQ_TOOLS_CONVERT_JOB_H
#define MQ_TOOLS_CONVERT_JOB_H

#include "formats/manifest.h"
#include "formats/plan.h"
#include "tools/convert.h"

enum { MQ_CONVERT_MAX_FILES = 8 }; /* files of a group: one per rank */

/* A piece of work: rows [row0, row0 + n_rows) of record `record` in files [file, file + n_files) of its group.  One file:
 * these are rows of that rank's slice.  Several: the record is cut by columns, the rows are read once and every rank gets
 * its columns. */
typedef struct mq_convert_item {
    int64_t record;
    int64_t row0, n_rows;
    int file, n_files;
    bool last;                            /* ends the record in these files */
    int32_t ticket[MQ_CONVERT_MAX_FILES]; /* turn of this item in file + k */
} mq_convert_item;

/* Files that are journalled together: common.mqs, one layer's ranks, the heads, ... */
typedef struct mq_convert_group {
    int64_t file0; /* in the plan */
    int n_files;
    int64_t n_items, in_bytes, n_expert_weights;
} mq_convert_group;

typedef struct mq_convert_job {
    mq_convert_options opt;
    mq_source *source;
    mq_plan *plan;
    mq_recipe recipe;
    uint8_t expert_scheme[MQ_MAX_LAYERS]; /* MQ_SCHEME_INT4, MQ_SCHEME_MXFP4, or NONE on dense layers */
    int64_t n_int4_layers, n_mxfp4_layers, n_requantized_layers;
    mq_convert_group *groups;
    int64_t n_groups;
    int64_t n_items, in_bytes, n_expert_weights; /* of all groups */
    int64_t worker_bytes;                        /* memory of one item in flight, at most */
} mq_convert_job;

/* Open the checkpoint and resolve everything.  Statuses as mq_convert. */
mq_status mq_convert_job_open(mq_convert_job *job, const mq_convert_options *opt, mq_err *err);
void mq_convert_job_close(mq_convert_job *job); /* accepts a zeroed job */

/* Are the INT4 layers' experts calibrated? */
static inline bool mq_convert_is_calibrated(const mq_convert_job *job)
{
    return job->opt.calib.n_files > 0 && job->n_int4_layers > 0;
}

/* Does the group hold a layer whose experts are calibrated? */
static inline bool mq_convert_group_is_calibrated(const mq_convert_job *job, int64_t group)
{
    const mq_file_spec *f = &job->plan->files[job->groups[group].file0];
    return mq_convert_is_calibrated(job) && f->kind == MQ_SHARD_LAYER && job->expert_scheme[f->layer] == MQ_SCHEME_INT4;
}

static inline const mq_draft_model *mq_convert_draft(const mq_convert_job *job)
{
    return job->source->has_draft ? &job->source->draft : NULL;
}

/* Scheme a record is stored in, and the group that goes with it (0 unless INT4).  *t (may be NULL) gets the source tensor of
 * records that have exactly one: not of EXPERT_GATE_UP and DRAFT_MASK. */
mq_status mq_convert_record(mq_scheme *scheme, int *group, mq_source_tensor *t, const mq_convert_job *job,
                            const mq_record_spec *r, mq_err *err);

/* Key of the source tensor behind gate_up: its gate or its up. */
mq_key mq_convert_part_key(const mq_record_spec *r, bool is_up);

/* The items of a group in order; items NULL only counts.  g's counters are set. */
mq_status mq_convert_items(mq_convert_item *items, mq_convert_group *g, const mq_convert_job *job, mq_err *err);

/* Exact bytes of a shard file stored uncompressed (SHARD.md section 2). */
mq_status mq_convert_file_bytes(int64_t *n_bytes, const mq_convert_job *job, const mq_file_spec *f, mq_err *err);

#endif
