/* The store: who asks for which weights, and how long they stay.  Where they come from is a
 * backend's business.
 *
 * Sizes are measured from headers at open, so a budget is checked before a byte of weights is read.
 * Resident: one block of memory per layer.  A backend that plans (a packed model) lays out a layer,
 * all threads load it (load.h), then the next one; others load a layer per thread.
 * Streaming: three slots, each as large as the largest thing it will hold, reused. */
#include "runtime/store.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/load.h"
#include "runtime/store_backend.h"
#include "runtime/store_device.h"
#include "runtime/store_draft.h"
#include "src/dtype.h"
#include "src/file.h"
#include "src/pool.h"

enum { MOST_READERS = 32 }; /* threads that load */

/* What a vocabulary slot holds. */
enum { VOCAB_NONE, VOCAB_EMBEDDING, VOCAB_HEAD };

struct mq_store {
    char *dir;
    mq_store_options options;
    mq_backend backend;
    mq_place place;
    bool packed, resident, synthetic;
    int n_layers, n_experts, n_ranks;
    int only_rank;                 /* -1, or the one rank there is: it is lent for any */
    mq_rank_span held, held_heads; /* the ranks whose weights are there; and slices of the head */

    int64_t *layer_bytes,
        *experts_bytes; /* [n_layers]: everything but experts; all experts, all ranks */
    int64_t embedding_bytes, head_bytes, norm_bytes;
    mq_drafters drafters; /* those asked for */
    int64_t max_layer_bytes, max_expert_bytes; /* an expert of one rank */

    mq_slot norm_slot;
    const float *final_norm;
    mq_matrix embedding, *head; /* head [held_heads.n] */

    void *reader; /* streaming */
    mq_slot layer_slot, expert_slot, vocab_slot;
    int held_layer, held_expert_layer, held_expert, held_expert_rank,
        held_vocab;          /* -1 or VOCAB_NONE: nothing */
    mq_layer_weights *layer; /* [n_held] */
    mq_mlp_weights expert;
    mq_store_expert_fn expert_fn; /* asked instead of the backend; NULL: none */
    void *expert_ctx;

    mq_slot *slots;           /* resident: [n_layers] then embedding, head */
    mq_layer_weights *layers; /* [n_layers, n_held] */
    mq_mlp_weights *experts;  /* [n_layers, n_experts, n_held] */
    pthread_mutex_t progress_lock;
    int64_t done_bytes, job_bytes; /* job_bytes: said record by record of the job under way */
    mq_load_figures figures;
};

/* Where rank lies among those held, and which rank the i-th of them is. */
static int held_index(const mq_store *s, int rank)
{
    return s->only_rank >= 0 ? 0 : rank - s->held.first;
}

static int held_rank(const mq_store *s, int64_t i)
{
    return s->held.first + (int)i;
}

static mq_status slot_alloc(mq_store *s, mq_slot *slot, int64_t n_bytes, mq_err *err)
{
    return s->backend.in_place || s->place.load ? mq_place_alloc(&s->place, slot, n_bytes, err)
                               : mq_slot_alloc(slot, n_bytes, err);
}

/* ---- Measuring ---- */

static mq_status measure_experts(mq_store *s, void *reader, int layer, mq_err *err)
{
    int64_t total = 0;
    for (int i = 0; i < s->n_experts * s->held.n; i++) {
        mq_slot slot = {.measuring = true};
        mq_mlp_weights w;
        MQ_TRY(s->backend.ops->expert(s->backend.impl, reader, &slot, &w, layer, i / s->held.n,
                                      held_rank(s, i % s->held.n), err));
        total += mq_round_up(slot.used, MQ_SLOT_ALIGN);
        s->max_expert_bytes = slot.used > s->max_expert_bytes ? slot.used : s->max_expert_bytes;
    }
    s->experts_bytes[layer] = total;
    return MQ_OK;
}

static mq_status measure(mq_store *s, mq_err *err)
{
    const mq_backend_ops *ops = s->backend.ops;
    void *impl = s->backend.impl;
    for (int l = 0; l < s->n_layers; l++) {
        mq_slot slot = {.measuring = true};
        MQ_TRY(ops->layer(impl, s->reader, &slot, s->layer, l, s->held, err));
        s->layer_bytes[l] = slot.used;
        s->max_layer_bytes = slot.used > s->max_layer_bytes ? slot.used : s->max_layer_bytes;
        if (s->backend.model->is_moe[l])
            MQ_TRY(measure_experts(s, s->reader, l, err));
    }
    mq_slot embedding = {.measuring = true}, head = {.measuring = true}, norm = {.measuring = true};
    MQ_TRY(ops->embedding(impl, s->reader, &embedding, &s->embedding, err));
    MQ_TRY(ops->head(impl, s->reader, &head, s->head, s->held_heads, err));
    MQ_TRY(ops->final_norm(impl, s->reader, &norm, &s->final_norm, err));
    s->embedding_bytes = embedding.used;
    s->head_bytes = head.used;
    s->norm_bytes = norm.used;
    return mq_drafters_measure(&s->drafters, s->reader, err);
}

int64_t mq_store_resident_bytes(const mq_store *s)
{
    int64_t total = s->embedding_bytes + s->head_bytes + s->norm_bytes +
                    mq_drafters_resident_bytes(&s->drafters);
    for (int l = 0; l < s->n_layers; l++)
        total += mq_round_up(s->layer_bytes[l], MQ_SLOT_ALIGN) + s->experts_bytes[l];
    return total;
}

int64_t mq_store_streaming_bytes(const mq_store *s)
{
    int64_t vocab = s->embedding_bytes > s->head_bytes ? s->embedding_bytes : s->head_bytes;
    return s->max_layer_bytes + s->max_expert_bytes + vocab + s->norm_bytes +
           mq_drafters_streaming_bytes(&s->drafters);
}

int64_t mq_store_bytes(const mq_store *s)
{
    return s->resident ? mq_store_resident_bytes(s) : mq_store_streaming_bytes(s);
}

/* ---- Loading a resident store ---- */

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
    MQ_TRY(slot_alloc(s, slot, bytes, err));
    MQ_TRY(ops->layer(s->backend.impl, reader, slot, s->layers + (int64_t)layer * s->held.n, layer,
                      s->held, err));
    int64_t n = s->backend.model->is_moe[layer] ? (int64_t)s->n_experts * s->held.n : 0;
    mq_mlp_weights *experts = s->experts + (int64_t)layer * s->n_experts * s->held.n;
    for (int64_t i = 0; i < n; i++) {
        slot->used = mq_round_up(slot->used, MQ_SLOT_ALIGN);
        MQ_TRY(ops->expert(s->backend.impl, reader, slot, &experts[i], layer, (int)(i / s->held.n),
                           held_rank(s, i % s->held.n), err));
    }
    MQ_TRY(mq_place_copy(&s->place, slot, err));
    mq_place_move_layers(slot, s->layers + (int64_t)layer * s->held.n, s->held.n);
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
    MQ_TRY(slot_alloc(s, slot, bytes, err));
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

/* One job after the other, in the order of the files; all threads share each. */
static mq_status load_by_plan(mq_store *s, int64_t n_jobs, mq_err *err)
{
    /* Threads wait for disks: more of them than processors, unless their number was asked for. */
    int n_threads = 2 * mq_cpu_count() < MOST_READERS ? 2 * mq_cpu_count() : MOST_READERS;
    const mq_load_options options = {.n_threads = s->options.n_threads > 0 ? s->options.n_threads : n_threads,
                                     .verify = s->options.check ? s->options.verify : MQ_VERIFY_NONE,
                                     .io = s->options.io,
                                     .place = &s->place,
                                     .progress = report_part,
                                     .progress_ctx = s};
    MQ_TRY(mq_load_create(&s->place.load, &options, err));
    mq_status st = MQ_OK;
    for (int64_t i = 0; st == MQ_OK && i < n_jobs; i++)
        st = load_job(s, i, 0, err);
    mq_load_count(s->place.load, &s->figures);
    mq_load_free(s->place.load);
    s->place.load = NULL;
    return st;
}

static void drop_resident(mq_store *s)
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

static void drop_streaming(mq_store *s)
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
        drop_resident(s);
        return st;
    }
    drop_streaming(s);
    mq_drafters_end(&s->drafters);
    s->resident = true;
    return MQ_OK;
}

/* ---- Opening ---- */

static bool has_manifest(const char *dir)
{
    char *path = mq_path_join(dir, "manifest.json");
    bool there = path && mq_path_exists(path);
    free(path);
    return there;
}

static mq_status open_backend(mq_store *s, mq_err *err)
{
    if (s->n_ranks < 1)
        return mq_fail(err, MQ_E_ARG, "%d ranks, expected at least 1", s->n_ranks);
    assert(s->only_rank >= 0 || (s->held.first >= 0 && s->held.first + s->held.n <= s->n_ranks));
    const mq_store_options *o = &s->options;
    s->synthetic = o->synthetic != NULL;
    s->packed = !o->synthetic && has_manifest(s->dir);
    MQ_TRY(o->synthetic
               ? mq_backend_open_synthetic(&s->backend, s->dir, s->n_ranks, o->synthetic,
                                           o->kernels, o->dev, o->n_threads, err)
           : s->packed
               ? mq_backend_open_packed(&s->backend, s->dir, s->n_ranks, o->check, err)
               : mq_backend_open_checkpoint(&s->backend, s->dir, s->n_ranks, o->dflash, err));
    const mq_model *m = s->backend.model;
    s->n_layers = m->n_layers;
    s->n_experts = m->n_experts;
    s->layer_bytes = calloc((size_t)m->n_layers, sizeof *s->layer_bytes);
    s->experts_bytes = calloc((size_t)m->n_layers, sizeof *s->experts_bytes);
    s->layer = calloc((size_t)s->held.n, sizeof *s->layer);
    s->head = calloc((size_t)s->held_heads.n, sizeof *s->head);
    if (!s->layer_bytes || !s->experts_bytes || !s->layer || !s->head)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", s->dir);
    MQ_TRY(mq_drafters_init(&s->drafters, &s->backend, &s->place, s->n_ranks, s->options.dflash,
                            s->options.mtp, err));
    MQ_TRY(s->backend.ops->reader_open(s->backend.impl, &s->reader, err));
    MQ_TRY(measure(s, err));
    MQ_TRY(slot_alloc(s, &s->norm_slot, s->norm_bytes, err));
    MQ_TRY(s->backend.ops->final_norm(s->backend.impl, s->reader, &s->norm_slot, &s->final_norm,
                                      err));
    MQ_TRY(mq_place_copy(&s->place, &s->norm_slot, err));
    mq_place_move_floats(&s->norm_slot, &s->final_norm);
    return MQ_OK;
}

mq_status mq_store_open(mq_store **out, const char *dir, const mq_store_options *options,
                        mq_err *err)
{
    *out = NULL;
    mq_store *s = calloc(1, sizeof *s);
    char *copy = strdup(dir);
    if (!s || !copy) {
        free(s);
        free(copy);
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    }
    s->dir = copy;
    s->options = *options;
    s->n_ranks = options->n_ranks;
    s->only_rank = options->synthetic ? options->synthetic->only_rank : -1;
    s->held = s->only_rank >= 0      ? (mq_rank_span){s->only_rank, 1}
              : options->n_held > 0 ? (mq_rank_span){options->first_rank, options->n_held}
                                    : (mq_rank_span){0, s->n_ranks};
    s->held_heads = options->dflash || options->mtp ? (mq_rank_span){0, s->n_ranks} : s->held;
    s->held_layer = s->held_expert_layer = s->held_expert = s->held_expert_rank = -1;
    pthread_mutex_init(&s->progress_lock, NULL);
    bool is_host = !options->kernels || !strcmp(options->kernels->name, "cpu");
    s->place = (mq_place){.kernels = is_host ? NULL : options->kernels, .dev = options->dev};
    pthread_mutex_init(&s->place.lock, NULL);
    mq_status st = open_backend(s, err);
    if (st == MQ_OK && options->resident)
        st = mq_store_load(s, err);
    if (st != MQ_OK) {
        mq_store_close(s);
        return st;
    }
    *out = s;
    return MQ_OK;
}

void mq_store_close(mq_store *s)
{
    if (!s)
        return;
    drop_resident(s);
    drop_streaming(s);
    mq_place_free(&s->place, &s->norm_slot);
    mq_drafters_release(&s->drafters);
    if (s->backend.impl) {
        s->backend.ops->reader_close(s->backend.impl, s->reader);
        s->backend.ops->close(s->backend.impl);
    }
    pthread_mutex_destroy(&s->progress_lock);
    pthread_mutex_destroy(&s->place.lock);
    free(s->layer_bytes);
    free(s->experts_bytes);
    free(s->layer);
    free(s->head);
    free(s->dir);
    free(s);
}

mq_status mq_store_plan_bytes(int64_t *resident_bytes, int64_t *streaming_bytes, const char *dir,
                              mq_err *err)
{
    mq_store_options options = {.n_ranks = 1};
    mq_store *s;
    MQ_TRY(mq_store_open(&s, dir, &options, err));
    *resident_bytes = mq_store_resident_bytes(s);
    *streaming_bytes = mq_store_streaming_bytes(s);
    mq_store_close(s);
    return MQ_OK;
}

mq_status mq_store_sum(const mq_store *s, const mq_kernels *kernels, mq_dev *dev, uint64_t *sum,
                       int64_t *n_bytes, mq_err *err)
{
    *n_bytes = 0;
    for (int64_t i = 0; s->resident && i < s->n_layers + 2; i++) {
        const mq_slot *slot = &s->slots[i];
        int64_t n_words = slot->used / (int64_t)sizeof(uint64_t);
        MQ_TRY(kernels->sum_words(dev, sum, slot->device ? slot->device : slot->mem, n_words, err));
        *n_bytes += n_words * (int64_t)sizeof(uint64_t);
    }
    return MQ_OK;
}

const mq_model *mq_store_model(const mq_store *s)
{
    return s->backend.model;
}

bool mq_store_is_packed(const mq_store *s)
{
    return s->packed;
}

bool mq_store_is_resident(const mq_store *s)
{
    return s->resident;
}

const char *mq_store_dir(const mq_store *s)
{
    return s->dir;
}

int mq_store_n_ranks(const mq_store *s)
{
    return s->n_ranks;
}

int mq_store_only_rank(const mq_store *s)
{
    return s->only_rank;
}

int mq_store_first_rank(const mq_store *s)
{
    return s->held.first;
}

int mq_store_n_held(const mq_store *s)
{
    return s->held.n;
}

bool mq_store_is_synthetic(const mq_store *s)
{
    return s->synthetic;
}

/* ---- Lending ---- */

/* Ready slot for a load of at most n_bytes. */
static mq_status slot_reuse(mq_store *s, mq_slot *slot, int64_t n_bytes, mq_err *err)
{
    slot->used = 0;
    return slot->mem ? MQ_OK : slot_alloc(s, slot, n_bytes, err);
}

mq_status mq_store_layer(mq_store *s, mq_layer_weights *out, int layer, int rank, mq_err *err)
{
    assert(layer >= 0 && layer < s->n_layers && rank >= 0 && rank < s->n_ranks);
    if (s->resident) {
        *out = s->layers[(int64_t)layer * s->held.n + held_index(s, rank)];
        return MQ_OK;
    }
    if (s->held_layer != layer) {
        s->held_layer = -1;
        MQ_TRY(slot_reuse(s, &s->layer_slot, s->max_layer_bytes, err));
        MQ_TRY(s->backend.ops->layer(s->backend.impl, s->reader, &s->layer_slot, s->layer, layer, s->held,
                                     err));
        MQ_TRY(mq_place_copy(&s->place, &s->layer_slot, err));
        mq_place_move_layers(&s->layer_slot, s->layer, s->held.n);
        s->held_layer = layer;
    }
    *out = s->layer[held_index(s, rank)];
    return MQ_OK;
}

mq_status mq_store_expert(mq_store *s, mq_mlp_weights *out, int layer, int expert, int rank,
                          mq_err *err)
{
    assert(layer >= 0 && layer < s->n_layers && s->backend.model->is_moe[layer]);
    assert(expert >= 0 && expert < s->n_experts && rank >= 0 && rank < s->n_ranks);
    if (s->resident) {
        *out = s->experts[((int64_t)layer * s->n_experts + expert) * s->held.n + held_index(s, rank)];
        return MQ_OK;
    }
    if (s->expert_fn)
        return s->expert_fn(s->expert_ctx, out, layer, expert, err);
    rank = s->only_rank >= 0 ? s->only_rank : rank;
    if (s->held_expert_layer != layer || s->held_expert != expert || s->held_expert_rank != rank) {
        s->held_expert_layer = -1;
        MQ_TRY(slot_reuse(s, &s->expert_slot, s->max_expert_bytes, err));
        MQ_TRY(s->backend.ops->expert(s->backend.impl, s->reader, &s->expert_slot, &s->expert,
                                      layer, expert, rank, err));
        MQ_TRY(mq_place_copy(&s->place, &s->expert_slot, err));
        mq_place_move_mlps(&s->expert_slot, &s->expert, 1);
        s->held_expert_layer = layer;
        s->held_expert = expert;
        s->held_expert_rank = rank;
    }
    *out = s->expert;
    return MQ_OK;
}

void mq_store_set_experts(mq_store *s, mq_store_expert_fn fn, void *ctx)
{
    assert(!s->resident && s->n_ranks == 1);
    s->expert_fn = fn;
    s->expert_ctx = ctx;
}

static mq_status hold_vocab(mq_store *s, int what, mq_err *err)
{
    if (s->resident || s->held_vocab == what)
        return MQ_OK;
    int64_t most = s->embedding_bytes > s->head_bytes ? s->embedding_bytes : s->head_bytes;
    s->held_vocab = VOCAB_NONE;
    MQ_TRY(slot_reuse(s, &s->vocab_slot, most, err));
    if (what == VOCAB_EMBEDDING)
        MQ_TRY(s->backend.ops->embedding(s->backend.impl, s->reader, &s->vocab_slot, &s->embedding,
                                         err));
    else
        MQ_TRY(s->backend.ops->head(s->backend.impl, s->reader, &s->vocab_slot, s->head, s->held_heads, err));
    MQ_TRY(mq_place_copy(&s->place, &s->vocab_slot, err));
    if (what == VOCAB_EMBEDDING)
        mq_place_move_matrices(&s->vocab_slot, &s->embedding, 1);
    else
        mq_place_move_matrices(&s->vocab_slot, s->head, s->held_heads.n);
    s->held_vocab = what;
    return MQ_OK;
}

mq_status mq_store_embedding(mq_store *s, mq_matrix *out, mq_err *err)
{
    MQ_TRY(hold_vocab(s, VOCAB_EMBEDDING, err));
    *out = s->embedding;
    return MQ_OK;
}

mq_status mq_store_head(mq_store *s, mq_matrix *out, int rank, mq_err *err)
{
    assert(rank >= 0 && rank < s->n_ranks);
    MQ_TRY(hold_vocab(s, VOCAB_HEAD, err));
    *out = s->head[s->only_rank >= 0 ? 0 : rank - s->held_heads.first];
    return MQ_OK;
}

mq_status mq_store_final_norm(mq_store *s, const float **out, mq_err *err)
{
    (void)err;
    *out = s->final_norm;
    return MQ_OK;
}

const mq_draft_model *mq_store_draft_model(const mq_store *s)
{
    return s->backend.draft;
}

mq_status mq_store_draft(mq_store *s, mq_draft_weights *out, mq_err *err)
{
    return mq_wrap(err, mq_drafters_shared(&s->drafters, s->reader, out, err), "%s", s->dir);
}

mq_status mq_store_draft_layer(mq_store *s, mq_draft_layer_weights *out, int layer, int rank,
                               mq_err *err)
{
    return mq_drafters_layer(&s->drafters, s->reader, out, MQ_STACK_DRAFT, layer, rank, err);
}

mq_status mq_store_mtp_layer(mq_store *s, mq_draft_layer_weights *out, int layer, int rank,
                             mq_err *err)
{
    return mq_drafters_layer(&s->drafters, s->reader, out, MQ_STACK_MTP, layer, rank, err);
}
