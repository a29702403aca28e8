/* Workers take items in order, work on them side by side, and append in order.
 *
 * Each file has a queue of turns; an item waits for its turn in each of its files, appends, and passes on.  Items start in order
 * and wait only for lower ones, so nobody waits for ever.  The item that ends a file commits it (fsync included) while the
 * other threads are already in the next group; the item that ends a group writes the journal's line.  Lists, turns and
 * writers of a group exist from its first item to its last, so memory does not grow with the model. */
#include "tools/convert_run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "src/pool.h"

typedef struct live_group {
    const mq_convert_group *g;
    int64_t index;          /* in the job */
    int64_t first_item;     /* number of its first item in this run */
    mq_convert_item *items; /* NULL: not begun or ended */
    bool failed;            /* it could not begin: no item of it runs, or one would wait for another's turn */
    int64_t n_finished;
    mq_round_stats (*stats)[MQ_PROJ_COUNT]; /* [n_items], of groups with experts */
    mq_turn *turns[MQ_CONVERT_MAX_FILES];
    int32_t n_tickets[MQ_CONVERT_MAX_FILES];
    mq_shard_writer *writers[MQ_CONVERT_MAX_FILES];
    mq_buf scales[MQ_CONVERT_MAX_FILES]; /* FP8 scales of the open record */
    mq_shard_info infos[MQ_CONVERT_MAX_FILES];
} live_group;

typedef struct run_state {
    const mq_convert_job *job;
    mq_convert_worker **workers;
    live_group *groups; /* [n_groups]: those to do, in order */
    int64_t n_groups;
    pthread_mutex_t lock; /* guards n_finished, items (begin and end), n_weights, done */
    mq_convert_done *done;
    int64_t n_weights;
    const mq_convert_ready *ready;
    const mq_convert_means *means;
} run_state;

/* ---- A group's life ---- */

static mq_status group_begin(live_group *lg, const mq_convert_job *job, mq_err *err)
{
    mq_convert_group g = *lg->g;
    lg->items = calloc((size_t)g.n_items + 1, sizeof *lg->items);
    if (g.n_expert_weights > 0)
        lg->stats = calloc((size_t)g.n_items + 1, sizeof *lg->stats);
    mq_status st = lg->items && (lg->stats || g.n_expert_weights == 0) ? MQ_OK
                                                                       : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = mq_convert_items(lg->items, &g, job, err);
    for (int f = 0; st == MQ_OK && f < g.n_files; f++) {
        lg->scales[f] = mq_buf_empty();
        st = mq_turn_create(&lg->turns[f], err);
    }
    for (int64_t i = 0; st == MQ_OK && i < g.n_items; i++)
        for (int k = 0; k < lg->items[i].n_files; k++)
            lg->n_tickets[lg->items[i].file + k]++;
    if (st != MQ_OK) {
        free(lg->items);
        lg->items = NULL;
        lg->failed = true;
    }
    return st;
}

/* Free what a group holds; unfinished files are removed. */
static void group_release(live_group *lg)
{
    for (int f = 0; f < MQ_CONVERT_MAX_FILES; f++) {
        mq_shard_writer_abandon(lg->writers[f]);
        mq_turn_free(lg->turns[f]);
        mq_buf_release(&lg->scales[f]);
        lg->writers[f] = NULL;
        lg->turns[f] = NULL;
    }
    free(lg->items);
    free(lg->stats);
    lg->items = NULL;
    lg->stats = NULL;
}

/* Sum the items' errors by expert and projection, in item order. */
static mq_status sum_stats(mq_journal_group *entry, const live_group *lg, const run_state *s, mq_err *err)
{
    if (!lg->stats)
        return MQ_OK;
    const mq_convert_job *job = s->job;
    const mq_record_spec *records = job->plan->files[lg->g->file0].records;
    entry->n_stats = (int64_t)job->source->model.n_experts * MQ_PROJ_COUNT * (s->ready ? (int)MQ_STAT_COUNT : 2);
    entry->stats = calloc((size_t)entry->n_stats, sizeof *entry->stats);
    if (!entry->stats)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (s->ready) {
        mq_account_to_stats(entry->stats, s->ready->account);
        return MQ_OK;
    }
    for (int64_t i = 0; i < lg->g->n_items; i++) {
        const mq_record_spec *r = &records[lg->items[i].record];
        for (int p = 0; r->is_expert && p < MQ_PROJ_COUNT; p++) {
            double *sum = entry->stats + ((int64_t)r->key.expert * MQ_PROJ_COUNT + p) * 2;
            sum[0] += lg->stats[i][p].err2;
            sum[1] += lg->stats[i][p].norm2;
        }
    }
    return MQ_OK;
}

/* Every item of the group has ended well: journal it. */
static mq_status group_end(run_state *s, live_group *lg, mq_err *err)
{
    mq_journal_group entry = {.group = lg->index, .n_files = lg->g->n_files};
    memcpy(entry.files, lg->infos, sizeof entry.files);
    mq_status st = sum_stats(&entry, lg, s, err);
    if (st == MQ_OK)
        st = mq_journal_write_group(s->means->journal, &entry, err);
    if (st != MQ_OK) {
        free(entry.stats);
        return st;
    }
    pthread_mutex_lock(&s->lock);
    s->done[lg->index].is_done = true;
    s->done[lg->index].entry = entry;
    s->n_weights += lg->g->n_expert_weights;
    pthread_mutex_unlock(&s->lock);
    group_release(lg);
    return MQ_OK;
}

/* ---- One item ---- */

/* Append the FP8 scales gathered for the record behind its codes. */
static mq_status append_scales(mq_shard_writer *writer, mq_buf *scales, const mq_record_spec *r, mq_err *err)
{
    static const uint8_t zeros[16];
    int64_t codes = r->rows * r->cols;
    MQ_TRY(mq_buf_status(scales, err));
    if (codes % 16)
        MQ_TRY(mq_shard_writer_append(writer, zeros, 16 - codes % 16, NULL, 0, err));
    return mq_shard_writer_append(writer, scales->data, scales->n_bytes, NULL, 0, err);
}

/* It is our turn in file f: put the piece there. */
static mq_status put_piece(run_state *s, live_group *lg, const mq_convert_item *it, int k, const mq_convert_piece *piece,
                           mq_err *err)
{
    int f = it->file + k;
    const mq_convert_job *job = s->job;
    const mq_file_spec *spec = &job->plan->files[lg->g->file0 + f];
    const mq_record_spec *r = &spec->records[it->record];
    if (it->ticket[k] == 0)
        MQ_TRY(mq_shard_writer_create(&lg->writers[f], job->opt.out_dir, spec, job->plan->n_ranks, job->opt.zstd_level,
                                      err));
    mq_shard_writer *writer = lg->writers[f];
    if (it->row0 == 0) {
        mq_scheme scheme;
        int group;
        MQ_TRY(mq_convert_record(&scheme, &group, NULL, job, r, err));
        MQ_TRY(mq_shard_writer_begin(writer, it->record, scheme, group, err));
        mq_buf_clear(&lg->scales[f]);
    }
    MQ_TRY(mq_shard_writer_append(writer, piece->plain, piece->plain_bytes, piece->packed, piece->packed_bytes, err));
    if (piece->scale)
        mq_buf_append(&lg->scales[f], piece->scale, piece->scale_bytes);
    if (!it->last)
        return MQ_OK;
    if (piece->scale)
        MQ_TRY(append_scales(writer, &lg->scales[f], r, err));
    MQ_TRY(mq_shard_writer_end(writer, err));
    if (it->ticket[k] + 1 < lg->n_tickets[f])
        return MQ_OK;
    lg->writers[f] = NULL; /* commit frees it, come what may */
    return mq_shard_writer_commit(writer, &lg->infos[f], err);
}

/* The item failed before or in its turn k: end the queues that it would have moved, each when its turn comes. */
static void cancel_turns(live_group *lg, const mq_convert_item *it, int k)
{
    for (; k < it->n_files; k++) {
        mq_turn_wait(lg->turns[it->file + k], it->ticket[k], NULL);
        mq_turn_cancel(lg->turns[it->file + k]);
    }
}

static mq_status do_item(run_state *s, live_group *lg, const mq_convert_item *it, mq_convert_worker *worker,
                         mq_round_stats *stats, mq_err *err)
{
    mq_convert_piece pieces[MQ_CONVERT_MAX_FILES];
    mq_round_stats got[MQ_PROJ_COUNT];
    int64_t read_bytes = 0;
    int k = 0;
    mq_status st = mq_cli_check_stop(err);
    if (st == MQ_OK && s->means->hasher && mq_hasher_failed(s->means->hasher))
        st = mq_fail(err, MQ_E_STOPPED, "hashing the checkpoint failed");
    if (st == MQ_OK)
        st = mq_convert_work(worker, pieces, got, &read_bytes, s->job, s->ready, lg->g, it, err);
    if (st == MQ_OK && stats)
        memcpy(stats, got, sizeof got);
    for (; st == MQ_OK && k < it->n_files; k++) {
        st = mq_turn_wait(lg->turns[it->file + k], it->ticket[k], err);
        if (st == MQ_OK)
            st = put_piece(s, lg, it, k, &pieces[k], err);
        if (st != MQ_OK)
            break;
        mq_turn_pass(lg->turns[it->file + k]);
    }
    if (st != MQ_OK)
        cancel_turns(lg, it, k);
    else
        mq_progress_add(s->means->progress, read_bytes);
    return st;
}

/* The group that item number `job` of the run belongs to. */
static live_group *find_group(run_state *s, int64_t item)
{
    int64_t lo = 0, hi = s->n_groups - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi + 1) / 2;
        if (s->groups[mid].first_item <= item)
            lo = mid;
        else
            hi = mid - 1;
    }
    return &s->groups[lo];
}

static mq_status run_item(void *ctx, int64_t number, int worker, mq_err *err)
{
    run_state *s = ctx;
    live_group *lg = find_group(s, number);
    pthread_mutex_lock(&s->lock);
    mq_status st = MQ_OK;
    if (lg->failed)
        st = mq_fail(err, MQ_E_STOPPED, "another job failed");
    else if (!lg->items)
        st = group_begin(lg, s->job, err);
    pthread_mutex_unlock(&s->lock);
    if (st != MQ_OK)
        return st;
    int64_t i = number - lg->first_item;
    const mq_convert_item it = lg->items[i];
    MQ_TRY(do_item(s, lg, &it, s->workers[worker], lg->stats ? lg->stats[i] : NULL, err));
    pthread_mutex_lock(&s->lock);
    bool is_last = ++lg->n_finished == lg->g->n_items;
    pthread_mutex_unlock(&s->lock);
    return is_last ? group_end(s, lg, err) : MQ_OK;
}

/* ---- The whole ---- */

static mq_status state_init(run_state *s, int64_t *n_items, const bool *wanted, mq_err *err)
{
    int n_threads = s->means->n_threads;
    s->groups = calloc((size_t)s->job->n_groups, sizeof *s->groups);
    s->workers = calloc((size_t)n_threads, sizeof *s->workers);
    if (!s->groups || !s->workers)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    *n_items = 0;
    for (int64_t i = 0; i < s->job->n_groups; i++) {
        if (s->done[i].is_done || (wanted && !wanted[i]))
            continue;
        s->groups[s->n_groups++] =
            (live_group){.g = &s->job->groups[i], .index = i, .first_item = *n_items};
        *n_items += s->job->groups[i].n_items;
    }
    for (int i = 0; i < n_threads; i++)
        MQ_TRY(mq_convert_worker_create(&s->workers[i], err));
    return MQ_OK;
}

mq_status mq_convert_run(mq_convert_done *done, int64_t *n_weights, const mq_convert_job *job, const bool *wanted,
                         const mq_convert_ready *ready, const mq_convert_means *means, mq_err *err)
{
    run_state s = {.job = job, .done = done, .ready = ready, .means = means};
    pthread_mutex_init(&s.lock, NULL);
    int64_t n_items = 0;
    mq_status st = state_init(&s, &n_items, wanted, err);
    if (st == MQ_OK)
        st = mq_pool_run(means->n_threads, n_items, run_item, &s, err);
    for (int64_t i = 0; i < s.n_groups; i++)
        group_release(&s.groups[i]);
    for (int i = 0; s.workers && i < means->n_threads; i++)
        mq_convert_worker_free(s.workers[i]);
    free(s.workers);
    free(s.groups);
    pthread_mutex_destroy(&s.lock);
    *n_weights += s.n_weights;
    return st;
}
