/* The MiMo-V2 forward pass in terms of the table of operations: embedding, layers, head.
 *
 * One code for verification (many rows, BLAS allowed) and for the decode step (fixed order), told
 * apart by mode. Ranks run one after another and their partial sums are added in rank order, so
 * that a number of ranks fixes the arithmetic.  Source: transformers modeling_mimo_v2_flash. */
#ifndef MQ_RUNTIME_FORWARD_H
#define MQ_RUNTIME_FORWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/cache.h"
#include "runtime/join.h"
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
    MQ_TAP_QKV,
    MQ_TAP_O,
    MQ_TAP_ROUTER,
    MQ_TAP_MLP_IN,
    MQ_TAP_MLP_DOWN,
    MQ_TAP_EXPERT_IN,
    MQ_TAP_EXPERT_DOWN,
    MQ_TAP_LAYER_OUT /* residual stream [n, hidden] after the layer */
} mq_tap_point;

/* Lends a linear's input: x [n, cols] F32 in the device's memory, row i belongs to row tokens[i] of
 * the call's x; coef [n] the router's weights for expert taps, else NULL; tokens and coef are host
 * memory.  expert is -1 outside experts.  All are borrowed for the call.  A status other than MQ_OK
 * ends the forward call with it. */
typedef struct mq_tap {
    mq_status (*fn)(void *ctx, mq_tap_point point, int layer, int expert, const float *x,
                    const int32_t *tokens, const float *coef, int64_t n, int64_t cols, mq_err *err);
    void *ctx;
} mq_tap;

typedef struct mq_forward mq_forward;

/* Workspace for blocks of max_rows rows; mlp_rows (at least max_rows) is the most that
 * mq_forward_mlp takes in one call. kernels, dev and store are borrowed.  MQ_E_NOMEM, MQ_E_DEVICE.
 */
mq_status mq_forward_create(mq_forward **out, const mq_kernels *kernels, mq_dev *dev,
                            mq_store *store, int64_t max_rows, int64_t mlp_rows, mq_err *err);
void mq_forward_free(mq_forward *f); /* accepts NULL */
/* Bytes that mq_forward_create takes, host and device together. */
int64_t mq_forward_workspace_bytes(const mq_model *m, int n_ranks, int64_t max_rows,
                                   int64_t mlp_rows);

/* From now on f computes member's ranks alone, and its other members' forward passes, each on its device and thread, the rest;
 * all of them make the same calls.  join takes mlp_rows * hidden
 * and vocab / n_ranks elements, and is borrowed. */
void mq_forward_set_join(mq_forward *f, mq_join *join, int member);

/* All of these queue work on dev.  Statuses: those of the store, of kernels and of the tap.  A tap
 * wants a store of one rank (MQ_E_ARG otherwise): with several, no linear sees its whole input. */

/* x [n, hidden] = embedding of ids [n] (host); any n.  MQ_E_ARG: an id outside the vocabulary. */
mq_status mq_forward_embed(mq_forward *f, float *x, const int32_t *ids, int64_t n, mq_err *err);

/* Attention half of a layer, in place over x [n, hidden]: rows at positions pos0 .. of cache, keys
 * and values stored there. Any n, in chunks of max_rows; the cache's ring_rows are at least min(n,
 * max_rows), its capacity at least pos0 + n. */
mq_status mq_forward_attention(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n,
                               int64_t pos0, mq_cache *cache, const mq_tap *tap, mq_err *err);
/* The same for n_windows sequences of window rows each, all starting at position 0: x [n_windows,
 * window, hidden].  One after the other they use cache (capacity at least window), whose content is
 * lost. */
mq_status mq_forward_attention_windows(mq_forward *f, mq_forward_mode mode, int layer, float *x,
                                       int64_t n_windows, int64_t window, mq_cache *cache,
                                       const mq_tap *tap, mq_err *err);

/* MLP or MoE half of a layer, in place over x [n, hidden], n up to mlp_rows; each expert is asked
 * of the store once per rank.  margin [n] host (may be NULL) keeps the smaller of what stands there
 * and the row's router margin. */
mq_status mq_forward_mlp(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n,
                         float *margin, const mq_tap *tap, mq_err *err);

/* Which experts the MLP half would give rows x [n, hidden] of an MoE layer: ids [n, topk] ascending
 * in each row and coef [n, topk], host memory; n up to mlp_rows.  The bits are those of mq_forward_mlp
 * for the same n.  x is not changed. */
mq_status mq_forward_route(mq_forward *f, mq_forward_mode mode, int layer, int32_t *ids,
                           float *coef, const float *x, int64_t n, mq_err *err);

/* Both halves. */
mq_status mq_forward_layer(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n,
                           int64_t pos0, mq_cache *cache, float *margin, const mq_tap *tap,
                           mq_err *err);

/* Embedding and every layer for ids [n] (host) that follow cache's length; x [n, hidden] is the
 * residual stream after the last layer; the cache is n longer.  n up to max_rows.  MQ_E_ARG: an id
 * outside the vocabulary, or no room. */
mq_status mq_forward_tokens(mq_forward *f, mq_forward_mode mode, float *x, const int32_t *ids,
                            int64_t n, mq_cache *cache, float *margin, const mq_tap *tap,
                            mq_err *err);

/* From now on every mq_forward_tokens copies its residual stream [n, hidden] after layers[i] (before
 * any norm) to out[i] [n, hidden] F32 in dev's memory, rows from the first on, for each of n layers
 * (at most MQ_MAX_TAPS, in any order); any number of ranks.  n 0: no more.  The lists are copied;
 * what out[i] points to must stay. */
void mq_forward_capture(mq_forward *f, const int *layers, float *const *out, int n);

/* [n_layers] how many experts the rows of the last mq_forward_mlp on each layer chose, each expert
 * counted once; 0 for a dense layer.  Calls whose experts ran as one operation (batch mode in BF16)
 * do not count.  Host memory, borrowed. */
const int32_t *mq_forward_distinct_experts(const mq_forward *f);

/* y [n, hidden] = RMSNorm(x; final norm): what the head sees.  Any n. */
mq_status mq_forward_final_norm(mq_forward *f, float *y, const float *x, int64_t n, mq_err *err);

/* logits [n, vocab] = head(RMSNorm(x)); x is not changed.  Any n, in blocks. */
mq_status mq_forward_head(mq_forward *f, mq_forward_mode mode, float *logits, const float *x,
                          int64_t n, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
