/* The plan of a load: what was noted, in the order of the files, cut into spans for the workers (load_work.c). */
#include "runtime/load.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/load_work.h"
#include "src/dtype.h"
#include "src/pool.h"

enum { BLOCK_BYTES = 4 << 20 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

mq_status mq_load_create(mq_load **out, const mq_load_options *options, mq_err *err)
{
    *out = NULL;
    mq_load *l = calloc(1, sizeof *l);
    mq_load_worker *workers = calloc((size_t)options->n_threads, sizeof *workers);
    if (!l || !workers) {
        free(l);
        free(workers);
        return mq_fail(err, MQ_E_NOMEM, "loading: out of memory");
    }
    l->o = *options;
    l->o.block_bytes = l->o.block_bytes > 0 ? mq_round_up(l->o.block_bytes, MQ_LOAD_ALIGN) : BLOCK_BYTES;
    l->workers = workers;
    *out = l;
    return MQ_OK;
}

static void forget(mq_load *l)
{
    for (int i = 0; i < l->n_files; i++)
        mq_load_file_close(&l->files[i]);
    for (int64_t i = 0; i < l->n_items; i++)
        if (!l->items[i].dst)
            l->items[i].task.free(l->items[i].task.ctx);
    free(l->files);
    free(l->spans);
    l->files = NULL;
    l->spans = NULL;
    l->n_files = 0;
    l->n_spans = l->n_items = 0;
}

void mq_load_free(mq_load *l)
{
    if (!l)
        return;
    forget(l);
    for (int i = 0; i < l->o.n_threads; i++)
        mq_load_worker_release(l, &l->workers[i]);
    free(l->workers);
    free(l->items);
    free(l);
}

/* ---- Filling ---- */

static mq_status add_item(mq_load *l, mq_load_item item, mq_err *err)
{
    if (l->n_items == l->items_cap) {
        int64_t cap = l->items_cap > 0 ? 2 * l->items_cap : 256;
        mq_load_item *items = realloc(l->items, (size_t)cap * sizeof *items);
        if (!items)
            return mq_fail(err, MQ_E_NOMEM, "loading: out of memory");
        l->items = items;
        l->items_cap = cap;
    }
    l->items[l->n_items++] = item;
    return MQ_OK;
}

mq_status mq_load_record(mq_load *l, const mq_shard *shard, int64_t i, void *dst, mq_err *err)
{
    return add_item(l, (mq_load_item){.shard = shard, .record = i, .dst = dst}, err);
}

mq_status mq_load_add(mq_load *l, const mq_shard *shard, int64_t i, mq_load_task task, mq_err *err)
{
    mq_status st = add_item(l, (mq_load_item){.shard = shard, .record = i, .task = task}, err);
    if (st != MQ_OK)
        task.free(task.ctx);
    return st;
}

/* ---- Running ---- */

/* By file, then by offset.  Names of files order as the files of a model do. */
static int compare_items(const void *pa, const void *pb)
{
    const mq_load_item *a = pa, *b = pb;
    if (a->shard != b->shard) {
        int by_name = strcmp(mq_shard_file(a->shard)->path, mq_shard_file(b->shard)->path);
        if (by_name)
            return by_name;
    }
    uint64_t x = mq_shard_entry_at(a->shard, a->record)->off, y = mq_shard_entry_at(b->shard, b->record)->off;
    return x < y ? -1 : x > y;
}

/* One file per shard of the sorted items. */
static mq_status open_files(mq_load *l, mq_err *err)
{
    int n = 0;
    for (int64_t i = 0; i < l->n_items; i++) {
        n += i == 0 || l->items[i].shard != l->items[i - 1].shard;
        l->items[i].file = n - 1;
    }
    l->files = calloc((size_t)n + 1, sizeof *l->files);
    if (!l->files)
        return mq_fail(err, MQ_E_NOMEM, "loading: out of memory");
    for (int64_t i = 0; i < l->n_items; i++)
        if (l->items[i].file == l->n_files)
            mq_load_file_open(&l->files[l->n_files++], mq_shard_file(l->items[i].shard), l->o.io);
    return MQ_OK;
}

static int64_t item_end(const mq_load_item *it)
{
    const mq_shard_entry *e = mq_shard_entry_at(it->shard, it->record);
    return mq_round_up((int64_t)(e->off + e->stored_bytes), MQ_LOAD_ALIGN);
}

/* May item b, the one behind a, join the span of a, which begins at off? */
static bool joins(const mq_load *l, int64_t off, const mq_load_item *a, const mq_load_item *b)
{
    const mq_shard_entry *x = mq_shard_entry_at(a->shard, a->record), *y = mq_shard_entry_at(b->shard, b->record);
    return a->dst && b->dst && a->file == b->file && x->codec == y->codec && (int64_t)y->off == item_end(a) &&
           item_end(b) - off <= l->o.block_bytes;
}

static mq_status cut_spans(mq_load *l, mq_err *err)
{
    l->spans = malloc(((size_t)l->n_items + 1) * sizeof *l->spans);
    if (!l->spans)
        return mq_fail(err, MQ_E_NOMEM, "loading: out of memory");
    for (int64_t i = 0; i < l->n_items; i++) {
        const mq_load_item *it = &l->items[i];
        mq_load_span *s = l->n_spans > 0 ? &l->spans[l->n_spans - 1] : NULL;
        if (!s || !joins(l, s->off, it - 1, it)) {
            s = &l->spans[l->n_spans++];
            *s = (mq_load_span){i, 0, (int64_t)mq_shard_entry_at(it->shard, it->record)->off, 0};
        }
        s->n++;
        s->n_bytes = item_end(it) - s->off;
    }
    return MQ_OK;
}

static mq_status run_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    return mq_load_span_run(ctx, job, worker, err);
}

static mq_status run_spans(mq_load *l, mq_err *err)
{
    if (l->n_items == 0)
        return MQ_OK;
    qsort(l->items, (size_t)l->n_items, sizeof *l->items, compare_items);
    MQ_TRY(open_files(l, err));
    MQ_TRY(cut_spans(l, err));
    MQ_TRY(mq_pool_run(l->o.n_threads, l->n_spans, run_job, l, err));
    for (int i = 0; i < l->n_files; i++)
        MQ_TRY(mq_load_file_check(&l->files[i], err));
    return MQ_OK;
}

mq_status mq_load_run(mq_load *l, mq_err *err)
{
    double start = now();
    mq_status st = run_spans(l, err);
    for (int i = 0; i < l->o.n_threads; i++) {
        mq_status one = mq_load_worker_wait(l, &l->workers[i], st == MQ_OK ? err : NULL);
        st = st == MQ_OK ? one : st;
    }
    forget(l);
    l->seconds += now() - start;
    return st;
}

void mq_load_count(const mq_load *l, mq_load_figures *out)
{
    *out = (mq_load_figures){.seconds = l->seconds};
    for (int i = 0; i < l->o.n_threads; i++) {
        const mq_load_figures *f = &l->workers[i].figures;
        out->n_records += f->n_records;
        out->n_checked += f->n_checked;
        out->read_bytes += f->read_bytes;
        out->direct_bytes += f->direct_bytes;
        out->plain_bytes += f->plain_bytes;
    }
}
