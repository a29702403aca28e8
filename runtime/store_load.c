/* A store becomes resident: memory for a layer, its weights into it, the next layer.
 *
 * A backend that plans lays out a layer and all threads load it (load.h), so that files are read front to back and no more than
 * one layer's files are open; others load a layer per thread. */
#include "runtime/store.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/load.h"
#include "runtime/store_state.h"
#include "src/dtype.h"
#include "src/pool.h"

enum { MOST_READERS = 32 }; /* threads that load */

/* A resident slot that is on the device is not needed on the host. */
static void drop_host_copy(mq_slot *slot)
{
    if (slot->device)
        free(slot->mem);
    slot->mem = slot->device ? NULL : slot->mem;
}

static void add_progress(mq_store *s, int64_t n_bytes)
{
    s->done_bytes += n_bytes;
    if (s->options.progress && n_bytes > 0)
        s->options.progress(s->options.progress_ctx, s->done_bytes, mq_store_resident_bytes(s));
}

/* A record has arrived. */
static void report_part(void *ctx, int64_t n_bytes)
{
    mq_store *s = ctx;
    pthread_mutex_lock(&s->progress_lock);
    s->job_bytes += n_bytes;
    add_progress(s, n_bytes);
    pthread_mutex_unlock(&s->progress_lock);
}

/* A job of n_bytes has ended: what its records did not say of it. */
static void report(mq_store *s, int64_t n_bytes)
{
    pthread_mutex_lock(&s->progress_lock);
    add_progress(s, n_bytes - s->job_bytes);
    s->job_bytes = 0;
    pthread_mutex_unlock(&s->progress_lock);
}

static mq_status load_layer(mq_store *s, void *reader, int layer, mq_err *err)
{
    const mq_backend_ops *ops = s->backend.ops;
    mq_slot *slot = &s->slots[layer];
    int64_t bytes = mq_round_up(s->layer_bytes[layer], MQ_SLOT_ALIGN) + s->experts_bytes[layer];
    MQ_TRY(mq_store_slot(s, slot, bytes, err));
    MQ_TRY(ops->layer(s->backend.impl, reader, slot, s->layers + (int64_t)layer * s->held.n, layer,
                      s->held, err));
    int64_t n = s->backend.model->is_moe[layer] ? (int64_t)s->n_experts * s->held.n : 0;
    mq_mlp_weights *experts = s->experts + (int64_t)layer * s->n_experts * s->held.n;
    for (int64_t i = 0; i < n; i++) {
        slot->used = mq_round_up(slot->used, MQ_SLOT_ALIGN);
        MQ_TRY(ops->expert(s->backend.impl, reader, slot, &experts[i], layer, (int)(i / s->held.n),
                           mq_store_held_rank(s, i % s->held.n), err));
    }
    MQ_TRY(mq_place_copy(&s->place, slot, err));
    mq_place_move_layers(slot, s->layers + (int64_t)layer * s->held.n, s->held.n);
    MQ_TRY(mq_place_narrow_routers(&s->place, s->layers + (int64_t)layer * s->held.n, s->held.n, err));
    mq_place_move_mlps(slot, experts, n);
    drop_host_copy(slot);
    report(s, bytes);
    return MQ_OK;
}

/* Embedding or head. */
static mq_status load_vocab(mq_store *s, void *reader, bool is_head, mq_err *err)
{
    mq_slot *slot = &s->slots[s->n_layers + is_head];
    mq_matrix *out = is_head ? s->head : &s->embedding;
    int64_t bytes = is_head ? s->head_bytes : s->embedding_bytes;
    MQ_TRY(mq_store_slot(s, slot, bytes, err));
    const mq_backend_ops *ops = s->backend.ops;
    MQ_TRY(is_head ? ops->head(s->backend.impl, reader, slot, out, s->held_heads, err)
                   : ops->embedding(s->backend.impl, reader, slot, out, err));
    MQ_TRY(mq_place_copy(&s->place, slot, err));
    mq_place_move_matrices(slot, out, is_head ? s->held_heads.n : 1);
    drop_host_copy(slot);
    report(s, bytes);
    return MQ_OK;
}

static mq_status load_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    mq_store *s = ctx;
    (void)worker;
    void *reader;
    if (s->options.stopped && s->options.stopped(s->options.stopped_ctx))
        return mq_fail(err, MQ_E_STOPPED, "stopped");
    MQ_TRY(s->backend.ops->reader_open(s->backend.impl, &reader, err));
    mq_status st = MQ_OK;
    if (job < s->n_layers) {
        st = load_layer(s, reader, (int)job, err);
    } else if (job <= s->n_layers + 1) {
        st = load_vocab(s, reader, job > s->n_layers, err);
    } else {
        int64_t n_bytes;
        st = mq_drafters_load(&s->drafters, &n_bytes, reader, job - s->n_layers - 2, err);
        report(s, n_bytes);
    }
    s->backend.ops->reader_close(s->backend.impl, reader);
    return st;
}

int mq_store_load_threads(void)
{
    int n = 2 * mq_cpu_count();
    return n < MOST_READERS ? n : MOST_READERS;
}

/* One job after the other, in the order of the files; all threads share each. */
static mq_status load_by_plan(mq_store *s, int64_t n_jobs, mq_err *err)
{
    int n_threads = s->options.n_threads;
    const mq_load_options options = {.n_threads = n_threads > 0 ? n_threads : mq_store_load_threads(),
                                     .verify = s->options.check ? s->options.verify : MQ_VERIFY_NONE,
                                     .io = s->options.io,
                                     .place = &s->place,
                                     .progress = report_part,
                                     .progress_ctx = s,
                                     .stopped = s->options.stopped,
                                     .stopped_ctx = s->options.stopped_ctx};
    MQ_TRY(mq_load_create(&s->place.load, &options, err));
    mq_status st = MQ_OK;
    for (int64_t i = 0; st == MQ_OK && i < n_jobs; i++)
        st = load_job(s, i, 0, err);
    mq_load_count(s->place.load, &s->figures);
    mq_load_free(s->place.load);
    s->place.load = NULL;
    return st;
}

void mq_store_drop_resident(mq_store *s)
{
    for (int64_t i = 0; s->slots && i < s->n_layers + 2; i++)
        mq_place_free(&s->place, &s->slots[i]);
    mq_drafters_drop(&s->drafters);
    free(s->slots);
    free(s->layers);
    free(s->experts);
    s->slots = NULL;
    s->layers = NULL;
    s->experts = NULL;
}

void mq_store_drop_streaming(mq_store *s)
{
    mq_place_free(&s->place, &s->layer_slot);
    mq_place_free(&s->place, &s->expert_slot);
    mq_place_free(&s->place, &s->vocab_slot);
}

mq_status mq_store_check_room(const mq_store *s, int64_t extra_bytes, mq_err *err)
{
    const mq_place *p = &s->place;
    if (!p->kernels)
        return MQ_OK;
    int64_t free_bytes, total_bytes, weights = mq_store_resident_bytes(s);
    int64_t need = extra_bytes + (s->resident ? 0 : weights - s->norm_bytes);
    MQ_TRY(p->kernels->memory(p->dev, &free_bytes, &total_bytes, err));
    if (need <= free_bytes)
        return MQ_OK;
    return mq_fail(err, MQ_E_NOMEM,
                   "%s: %s: %lld bytes of memory are needed, %lld of %lld are free; weights are "
                   "%lld bytes, %lld a rank (%d rank%s)",
                   s->dir, p->kernels->dev_name(p->dev), (long long)need, (long long)free_bytes,
                   (long long)total_bytes, (long long)weights,
                   (long long)((weights + s->held.n - 1) / s->held.n), s->held.n,
                   s->held.n == 1 ? "" : "s");
}

mq_load_figures mq_store_loaded(const mq_store *s)
{
    return s->figures;
}

mq_status mq_store_load(mq_store *s, mq_err *err)
{
    if (s->resident)
        return MQ_OK;
    MQ_TRY(mq_store_check_room(s, 0, err));
    size_t n_layers = (size_t)s->n_layers, n_held = (size_t)s->held.n;
    s->slots = calloc(n_layers + 2, sizeof *s->slots);
    s->layers = calloc(n_layers * n_held, sizeof *s->layers);
    s->experts = calloc(n_layers * n_held * (size_t)(s->n_experts + 1), sizeof *s->experts);
    mq_status st = MQ_OK;
    if (!s->slots || !s->layers || !s->experts)
        st = mq_fail(err, MQ_E_NOMEM, "%s: out of memory", s->dir);
    s->held_vocab = VOCAB_NONE; /* embedding and head are about to move */
    s->done_bytes = s->norm_bytes;
    s->job_bytes = 0; /* of a load that failed before */
    int n_threads = s->backend.in_place          ? 1
                    : s->options.n_threads > 0 ? s->options.n_threads
                                               : mq_cpu_count();
    if (st == MQ_OK)
        st = mq_drafters_begin(&s->drafters, err);
    int64_t n_jobs = s->n_layers + 2 + mq_drafters_n_loads(&s->drafters);
    if (st == MQ_OK)
        st = s->backend.ops->plans ? load_by_plan(s, n_jobs, err)
                                   : mq_pool_run(n_threads, n_jobs, load_job, s, err);
    if (st != MQ_OK) {
        mq_store_drop_resident(s);
        return st;
    }
    mq_store_drop_streaming(s);
    mq_drafters_end(&s->drafters);
    s->resident = true;
    return MQ_OK;
}
