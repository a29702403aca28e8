/* The store: who asks for which weights, and how long they stay.  Where they come from is a
 * backend's business.
 *
 * Sizes are measured from headers at open, so a budget is checked before a byte of weights is read.
 * Resident: one block of memory per layer.  A backend that plans (a packed model) lays out a layer,
 * all threads load it (load.h), then the next one; others load a layer per thread.
 * Streaming: three slots, each as large as the largest thing it will hold, reused. */
#include "runtime/store.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/store_state.h"
#include "src/dtype.h"
#include "src/file.h"

/* ---- Measuring ---- */

static mq_status measure_experts(mq_store *s, void *reader, int layer, mq_err *err)
{
    int64_t total = 0;
    for (int i = 0; i < s->n_experts * s->held.n; i++) {
        mq_slot slot = {.measuring = true};
        mq_mlp_weights w;
        MQ_TRY(s->backend.ops->expert(s->backend.impl, reader, &slot, &w, layer, i / s->held.n,
                                      mq_store_held_rank(s, i % s->held.n), err));
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
    MQ_TRY(mq_drafters_init(&s->drafters, &s->backend, &s->place, s->only_rank >= 0 || s->options.spread_draft ? s->held : (mq_rank_span){0, s->n_ranks},
                            s->options.dflash, s->options.mtp, err));
    MQ_TRY(s->backend.ops->reader_open(s->backend.impl, &s->reader, err));
    MQ_TRY(measure(s, err));
    MQ_TRY(mq_store_slot(s, &s->norm_slot, s->norm_bytes, err));
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
    bool has_draft = options->dflash || options->mtp;
    s->held_heads = has_draft && s->only_rank < 0 && !options->spread_draft ? (mq_rank_span){0, s->n_ranks} : s->held;
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
    mq_store_drop_resident(s);
    mq_store_drop_streaming(s);
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
    return slot->mem ? MQ_OK : mq_store_slot(s, slot, n_bytes, err);
}

mq_status mq_store_layer(mq_store *s, mq_layer_weights *out, int layer, int rank, mq_err *err)
{
    assert(layer >= 0 && layer < s->n_layers && rank >= 0 && rank < s->n_ranks);
    if (s->resident) {
        *out = s->layers[(int64_t)layer * s->held.n + mq_store_held_index(s, rank)];
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
    *out = s->layer[mq_store_held_index(s, rank)];
    return MQ_OK;
}

mq_status mq_store_expert(mq_store *s, mq_mlp_weights *out, int layer, int expert, int rank,
                          mq_err *err)
{
    assert(layer >= 0 && layer < s->n_layers && s->backend.model->is_moe[layer]);
    assert(expert >= 0 && expert < s->n_experts && rank >= 0 && rank < s->n_ranks);
    if (s->resident) {
        *out = s->experts[((int64_t)layer * s->n_experts + expert) * s->held.n + mq_store_held_index(s, rank)];
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
    return mq_drafters_layer(&s->drafters, s->reader, out, MQ_STACK_DRAFT, layer, s->only_rank >= 0 ? s->only_rank : rank, err);
}

mq_status mq_store_mtp_layer(mq_store *s, mq_draft_layer_weights *out, int layer, int rank,
                             mq_err *err)
{
    return mq_drafters_layer(&s->drafters, s->reader, out, MQ_STACK_MTP, layer, s->only_rank >= 0 ? s->only_rank : rank, err);
}
