/* Borrowed views of one layer's weights (one rank's slice, or the whole with one rank) and of a KV cache, for C and
 * CUDA.  Memory is the lender's (runtime/store.h). */
#ifndef MQ_SRC_WEIGHTS_H
#define MQ_SRC_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "src/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* SwiGLU block: y = down(silu(gate x) * up x). */
typedef struct mq_mlp_weights {
    bool interleaved;  /* gate_up holds both (src/units.h order); otherwise gate and up do */
    mq_matrix gate_up; /* [2 width, hidden] */
    mq_matrix gate, up; /* [width, hidden] */
    mq_matrix down;    /* [hidden, width] */
} mq_mlp_weights;

typedef struct mq_attn_weights {
    mq_matrix q;       /* [n_heads * head_dim, hidden] of this rank's heads */
    mq_matrix k;       /* [n_kv_heads * head_dim, hidden] */
    mq_matrix v;       /* [n_kv_heads * v_head_dim, hidden] */
    mq_matrix o;       /* [hidden, n_heads * v_head_dim] */
    const float *sink; /* [n_heads] F32, or NULL */
    int n_heads, n_kv_heads; /* of this rank; query head h uses KV head h / (n_heads / n_kv_heads) */
} mq_attn_weights;

typedef struct mq_layer_weights {
    const float *input_norm, *post_norm; /* [hidden] F32 */
    mq_attn_weights attn;
    bool is_moe;
    mq_mlp_weights mlp;       /* dense layers */
    mq_matrix router;         /* MoE: [n_experts, hidden] BF16, F16 or F32 */
    const float *router_bias; /* MoE: [n_experts] F32 */
} mq_layer_weights;

/* One rank's slice of a drafter's decoder layer. */
typedef struct mq_draft_layer_weights {
    mq_layer_weights layer; /* dense */
    /* DFlash: norms of every query and key head, [head_dim] F32; NULL for MTP */
    const float *q_norm, *k_norm;
    /* MTP: norms [hidden] F32 of embedding and hidden state, and the one before the head; and this rank's rows
     * [hidden / R, 2 hidden] of the matrix that joins both, embedding first.  NULL for DFlash. */
    const float *enorm, *hnorm, *final_norm;
    mq_matrix eh_proj;
} mq_draft_layer_weights;

/* What the DFlash drafter has outside its layers, the same for every rank. */
typedef struct mq_draft_weights {
    mq_matrix fc;                    /* [hidden, n_taps * hidden] */
    const float *hidden_norm, *norm; /* [hidden] F32: of the context features, and before the head */
    const float *mask;               /* [hidden] F32: the embedding of a masked position */
} mq_draft_weights;

/* Keys and values of one layer and rank: the slot of position p is p % n_slots. */
typedef struct mq_kv {
    float *k; /* [n_slots, n_kv_heads, head_dim] F32, rotated */
    float *v; /* [n_slots, n_kv_heads, v_head_dim] F32, scaled by the value scale */
    int64_t n_slots;
    int n_kv_heads, head_dim, v_head_dim;
} mq_kv;

#ifdef __cplusplus
}
#endif
#endif
