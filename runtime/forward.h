/* The MiMo-V2 forward pass in terms of the table of operations: embedding, layers, head.
 *
 * One code for verification (many rows, BLAS allowed) and for the decode step (fixed order), told apart by mode.
 * Ranks run one after another and their partial sums are added in rank order, so that a number of ranks fixes the
 * arithmetic.  Source: transformers modeling_mimo_v2_flash, notes mimo-model 3. */
#ifndef MQ_RUNTIME_FORWARD_H
#define MQ_RUNTIME_FORWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_forward_mode {
    MQ_FORWARD_BATCH, /* kernels->linear: any number of rows */
    MQ_FORWARD_STEP   /* kernels->linear_fixed: a row's bits do not depend on its neighbours */
} mq_forward_mode;

/* Which linear an input is about to enter. */
typedef enum mq_tap_point {
    MQ_TAP_QKV, MQ_TAP_O, MQ_TAP_ROUTER, MQ_TAP_MLP_IN, MQ_TAP_MLP_DOWN, MQ_TAP_EXPERT_IN, MQ_TAP_EXPERT_DOWN,
    MQ_TAP_LAYER_OUT /* residual stream [n, hidden] after the layer */
} mq_tap_point;

/* Lends a linear's input: x [n, cols] F32 in the device's memory, row i belongs to token tokens[i] of the call (NULL: row i);
 * coef [n] the router's weights for expert taps, else NULL.  expert is -1 outside experts. */
typedef struct mq_tap {
    mq_status (*fn)(void *ctx, mq_tap_point point, int layer, int expert, const float *x, const int32_t *tokens,
                    const float *coef, int64_t n, int64_t cols, mq_err *err);
    void *ctx;
} mq_tap;

typedef struct mq_forward mq_forward;

/* Workspace for at most max_rows rows a call.  kernels, dev and store are borrowed. */
mq_status mq_forward_create(mq_forward **out, const mq_kernels *kernels, mq_dev *dev, mq_store *store, int64_t max_rows,
                            mq_err *err);
void mq_forward_free(mq_forward *f);
/* Workspace bytes for max_rows. */
int64_t mq_forward_workspace_bytes(const mq_model *m, int n_ranks, int64_t max_rows);

/* A KV cache of every layer and rank for one sequence. */
typedef struct mq_cache mq_cache;
/* capacity positions on full layers; ring_rows: the most rows a call appends, sliding layers hold window + ring_rows. */
mq_status mq_cache_create(mq_cache **out, const mq_kernels *kernels, mq_dev *dev, const mq_model *m, int n_ranks,
                          int64_t capacity, int64_t ring_rows, mq_err *err);
void mq_cache_free(mq_cache *c);
int64_t mq_cache_bytes(const mq_model *m, int n_ranks, int64_t capacity, int64_t ring_rows);
int64_t mq_cache_length(const mq_cache *c);
/* Forget positions from length on (at most the current length, within ring_rows of it on sliding layers). */
void mq_cache_truncate(mq_cache *c, int64_t length);

/* x [n, hidden] = embedding of ids [n]. */
mq_status mq_forward_embed(mq_forward *f, float *x, const int32_t *ids, int64_t n, mq_err *err);
/* One layer in place over x [n, hidden], rows at positions pos0.. of cache (keys and values appended for this layer).
 * margin [n] (may be NULL): smallest router margin seen so far per row is kept (min with what stands there). */
mq_status mq_forward_layer(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n, int64_t pos0,
                           mq_cache *cache, float *margin, const mq_tap *tap, mq_err *err);
/* Attention half and MoE/MLP half of it, for streaming over many windows: attention per window, then experts over all tokens.
 * Attention needs only one layer's cache of one window; the MLP half takes any number of rows (in blocks of max_rows). */
mq_status mq_forward_attention(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n, int64_t pos0,
                               mq_cache *cache, const mq_tap *tap, mq_err *err);
mq_status mq_forward_mlp(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n, float *margin,
                         const mq_tap *tap, mq_err *err);
/* logits [n, vocab] = head(RMSNorm(x)); x is not changed. */
mq_status mq_forward_head(mq_forward *f, mq_forward_mode mode, float *logits, const float *x, int64_t n, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
