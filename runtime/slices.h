/* What one logical rank owns of a model, by the rules of formats/plan.h, as counts and first
 * indexes. */
#ifndef MQ_RUNTIME_SLICES_H
#define MQ_RUNTIME_SLICES_H

#include <stdint.h>

#include "src/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Attention heads of a rank: query heads [head0, head0 + n_heads) and the KV heads they use. */
typedef struct mq_head_slice {
    int head0, n_heads;
    int kv_head0, n_kv_heads;
} mq_head_slice;

/* rank of n_ranks; n_ranks divides the query heads, and divides the KV heads or is a multiple of
 * them. */
static inline mq_head_slice mq_slice_heads(const mq_attn_geometry *g, int n_ranks, int rank)
{
    mq_head_slice s;
    s.n_heads = g->n_heads / n_ranks;
    s.head0 = rank * s.n_heads;
    s.n_kv_heads = g->n_kv_heads >= n_ranks ? g->n_kv_heads / n_ranks : 1;
    s.kv_head0 = (int)((int64_t)rank * g->n_kv_heads / n_ranks);
    return s;
}

#ifdef __cplusplus
}
#endif
#endif
