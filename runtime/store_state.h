/* What a store holds; private to store.c and store_load.c. */
#ifndef MQ_RUNTIME_STORE_STATE_H
#define MQ_RUNTIME_STORE_STATE_H

#include <pthread.h>

#include "runtime/store.h"
#include "runtime/store_backend.h"
#include "runtime/store_device.h"
#include "runtime/store_draft.h"

#ifdef __cplusplus
extern "C" {
#endif

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
static inline int mq_store_held_index(const mq_store *s, int rank)
{
    return s->only_rank >= 0 ? 0 : rank - s->held.first;
}

static inline int mq_store_held_rank(const mq_store *s, int64_t i)
{
    return s->held.first + (int)i;
}

/* A slot that the store keeps. */
static inline mq_status mq_store_slot(mq_store *s, mq_slot *slot, int64_t n_bytes, mq_err *err)
{
    return mq_place_keep(&s->place, &s->backend, slot, n_bytes, err);
}

/* Give back what a resident, or a streaming, store holds but for the final norm; both accept what is not there. */
void mq_store_drop_resident(mq_store *s);
void mq_store_drop_streaming(mq_store *s);

#ifdef __cplusplus
}
#endif
#endif
