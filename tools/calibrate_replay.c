/* What a resumed run knows already: which layers have all that they leave behind, where to begin, and which part need not be run.
 *
 * A layer's input is a function of the layers before it alone.  So a layer whose shards are damaged or lost is made again from its
 * input, the layers that lead there are only run, with the codes in their shards, and when the stream behind the last damaged layer
 * has the digest that the journal tells, all that was made of it before still holds: the run goes on behind it. */
#include <stdlib.h>
#include <string.h>

#include "formats/shard_read.h"
#include "src/dtype.h"
#include "src/file.h"
#include "src/pool.h"
#include "src/units.h"
#include "tools/calibrate_state.h"

int64_t mq_calibration_group(const mq_convert_job *job, int layer)
{
    for (int64_t g = 0; g < job->n_groups; g++) {
        const mq_file_spec *f = &job->plan->files[job->groups[g].file0];
        if (f->kind == MQ_SHARD_LAYER && f->layer == layer)
            return g;
    }
    return -1;
}

/* Has the layer all that it leaves behind: shards, account, line? */
static bool is_sound(const mq_calibration *c, mq_convert_done *done, int layer)
{
    const mq_journal_layer *line = &c->lines[layer];
    if (line->layer < 0 || c->job->expert_scheme[layer] != MQ_SCHEME_INT4)
        return line->layer >= 0;
    mq_convert_done *d = &done[mq_calibration_group(c->job, layer)];
    if (!d->is_done || !line->loss.measured)
        return false;
    if (!d->account.n_experts && !mq_account_from_stats(&d->account, d->entry.stats, c->m->n_experts))
        return false;
    d->account.loss = line->loss;
    return true;
}

/* Open the stream saved behind layer.  *out is NULL where it is not there or is another than the journal tells of. */
static mq_status open_saved(mq_hidden **out, const mq_calibration *c, int layer, const mq_calibration_plan *plan,
                            mq_err *err)
{
    char name[MQ_HIDDEN_NAME_BYTES];
    const mq_journal_layer *line = &c->lines[layer];
    mq_err why;
    *out = NULL;
    if (!line->has_hidden)
        return MQ_OK;
    mq_hidden_name(name, layer);
    mq_status st = mq_hidden_open(out, c->job->opt.out_dir, name, c->n_rows, c->m->hidden, line->hidden, plan->in_memory,
                                  plan->n_threads, &why);
    return st == MQ_OK || st == MQ_E_HASH || st == MQ_E_IO ? MQ_OK : mq_fail(err, st, "%s", why.text);
}

/* Where the run may go on once the last damaged layer is made again: behind the last layer, which leaves no stream, or behind one
 * whose stream is there. */
static mq_status find_jump(mq_calibration *c, const mq_calibration_plan *plan, mq_err *err)
{
    for (int to = c->last; to > c->first_layer; to--) {
        int damaged = to - 1;
        if (!c->is_sound[to])
            continue;
        while (damaged >= c->first_layer && c->is_sound[damaged])
            damaged--;
        if (damaged < c->first_layer || !c->lines[damaged].has_hidden)
            return MQ_OK;
        mq_hidden *saved;
        MQ_TRY(open_saved(&saved, c, to, plan, err));
        mq_hidden_close(saved);
        if (saved || to == c->last) {
            c->jump_after = damaged;
            c->jump_to = to;
            mq_hidden_name(c->jump_name, to);
            return MQ_OK;
        }
    }
    return MQ_OK;
}

static mq_status take_lines(mq_calibration *c, mq_convert_done *done, const mq_journal_record *old, mq_err *err)
{
    c->lines = calloc((size_t)c->last + 1, sizeof *c->lines);
    c->is_sound = calloc((size_t)c->last + 1, sizeof *c->is_sound);
    if (!c->lines || !c->is_sound)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int l = 0; l <= c->last; l++)
        c->lines[l].layer = -1;
    for (int64_t i = 0; i < old->n_layers; i++) /* a later line for the same layer replaces an earlier one */
        if (old->layers[i].layer <= c->last)
            c->lines[old->layers[i].layer] = old->layers[i];
    for (int l = 0; l <= c->last; l++)
        c->is_sound[l] = is_sound(c, done, l);
    return MQ_OK;
}

mq_status mq_calibration_resume(mq_calibration *c, const char *keep[MQ_CALIB_KEEP], int64_t *n_keep, mq_convert_done *done,
                                const mq_journal_record *old, const mq_calibration_plan *plan, mq_err *err)
{
    int n = 0;
    *n_keep = 0;
    MQ_TRY(take_lines(c, done, old, err));
    while (n <= c->last && c->is_sound[n])
        n++;
    c->first_layer = n > c->last ? n : 0;
    /* The last stream in front of what is to be done: a crash may have left those of two layers, and a run that had to go back
     * leaves earlier ones. */
    for (int l = n - 1; n <= c->last && l >= 0 && !c->before; l--) {
        MQ_TRY(open_saved(&c->before, c, l, plan, err));
        if (!c->before)
            continue;
        mq_hidden_name(c->saved_name, l);
        c->first_layer = l + 1;
        keep[(*n_keep)++] = c->saved_name;
    }
    if (n <= c->last)
        MQ_TRY(find_jump(c, plan, err));
    if (c->jump_to && c->jump_to < c->last)
        keep[(*n_keep)++] = c->jump_name;
    return MQ_OK;
}

void mq_calibration_check_line(mq_calibration *c, mq_convert_done *done, const mq_journal_layer *line)
{
    const mq_journal_layer *old = c->lines ? &c->lines[line->layer] : NULL;
    if (!old || old->layer < 0 || (old->has_hidden == line->has_hidden &&
                                   memcmp(old->hidden, line->hidden, sizeof old->hidden) == 0))
        return;
    c->jump_to = 0;
    for (int l = (int)line->layer + 1; l <= c->last; l++) {
        int64_t g = mq_calibration_group(c->job, l);
        c->is_sound[l] = false;
        if (c->job->expert_scheme[l] != MQ_SCHEME_INT4)
            continue;
        free(done[g].entry.stats);
        mq_account_release(&done[g].account);
        memset(&done[g], 0, sizeof done[g]);
    }
}

mq_status mq_calibration_jump(mq_calibration *c, mq_err *err)
{
    int to = c->jump_to;
    mq_hidden *saved = NULL;
    c->jump_to = 0;
    if (to < c->last)
        MQ_TRY(open_saved(&saved, c, to, c->plan, err));
    if (!saved && to < c->last)
        return MQ_OK; /* it has gone since: layer after layer, then */
    mq_hidden_close(c->before);
    c->before = saved;
    int from = c->layer;
    c->layer = to;
    return mq_calibration_remove_hidden(c, from, err);
}

/* ---- Codes out of finished shards ---- */

typedef struct replay {
    mq_calibration *c;
    const mq_convert_group *g;
    mq_shard *shards[MQ_CONVERT_MAX_FILES];
} replay;

static mq_status open_shards(replay *r, mq_err *err)
{
    const mq_calibration *c = r->c;
    for (int f = 0; f < r->g->n_files; f++) {
        const mq_file_spec *spec = &c->job->plan->files[r->g->file0 + f];
        char *path = mq_path_join(c->job->opt.out_dir, spec->name);
        mq_status st = path ? mq_shard_open(&r->shards[f], path, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
        free(path);
        MQ_TRY(st);
        MQ_TRY(mq_shard_check_plan(r->shards[f], spec, c->job->plan->n_ranks, MQ_SCHEME_INT4, c->job->opt.group, err));
    }
    return MQ_OK;
}

/* One rank's part of an expert's matrix to its place in the whole. */
static mq_status load_part(const replay *r, uint8_t *whole, int file, int64_t record, mq_err *err)
{
    const mq_record_spec *spec = &r->c->job->plan->files[r->g->file0 + file].records[record];
    int group = r->c->job->opt.group;
    int64_t tile = mq_tile_bytes(spec->full_cols, group), n_tiles = spec->rows / MQ_UNIT_ROWS;
    uint8_t *at = whole + spec->row0 / MQ_UNIT_ROWS * tile;
    if (spec->cols == spec->full_cols)
        return mq_shard_load(r->shards[file], record, at, true, err);
    uint8_t *part = aligned_alloc(64, (size_t)mq_round_up(mq_units_bytes(spec->rows, spec->cols, group), 64));
    if (!part)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = mq_shard_load(r->shards[file], record, part, true, err);
    if (st == MQ_OK)
        mq_codes_paste(at, part, n_tiles, spec->full_cols, spec->col0, spec->cols, group);
    free(part);
    return st;
}

static mq_status replay_job(void *ctx, int64_t expert, int worker, mq_err *err)
{
    replay *r = ctx;
    mq_calibration *c = r->c;
    mq_expert_bench *b = &c->benches[worker];
    MQ_TRY(mq_calibration_check_stop(c, err));
    for (int f = 0; f < r->g->n_files; f++) {
        const mq_file_spec *spec = &c->job->plan->files[r->g->file0 + f];
        for (int64_t i = 0; i < spec->n_records; i++)
            if (spec->records[i].is_expert && spec->records[i].key.expert == expert)
                MQ_TRY(load_part(r, spec->records[i].key.role == MQ_ROLE_EXPERT_DOWN ? b->down : b->gate_up, f, i, err));
    }
    mq_progress_add(c->progress, 10 * c->n_rows / c->m->n_experts);
    return mq_codes_write(c->codes, expert, b->gate_up, b->down, err);
}

mq_status mq_replay_experts(mq_calibration *c, mq_err *err)
{
    int64_t group = mq_calibration_group(c->job, c->layer);
    replay r = {.c = c, .g = &c->job->groups[group]};
    mq_codes_begin(c->codes, c->layer, c->job->opt.group);
    mq_status st = open_shards(&r, err);
    if (st == MQ_OK)
        st = mq_pool_run(c->plan->n_workers, c->m->n_experts, replay_job, &r, err);
    for (int f = 0; f < r.g->n_files; f++)
        mq_shard_close(r.shards[f]);
    return mq_wrap(err, st, "going on from layer %d", c->layer);
}
