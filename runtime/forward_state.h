/* The workspace of a forward pass, shared by forward.c, forward_attn.c and forward_mlp.c; private
 * to them. */
#ifndef MQ_RUNTIME_FORWARD_STATE_H
#define MQ_RUNTIME_FORWARD_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/forward.h"
#include "runtime/join.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Experts of one layer and rank as kernels' experts wants them. */
typedef struct mq_expert_table {
    bool is_known, is_there; /* asked for; all experts packed alike */
    void *pointers;          /* dev's memory, owned */
    mq_decode_expert_table t;
} mq_expert_table;

/* Sizes in elements, all from geometry; W is the widest MLP of a rank, B = max_rows, T = mlp_rows.
 */
struct mq_forward {
    const mq_kernels *k;
    mq_dev *dev;
    mq_store *store;
    const mq_model *m;
    int n_ranks;
    int first_rank, n_held; /* ranks that are computed here: first_rank .. first_rank + n_held - 1 */
    mq_join *join;     /* the others are computed by its other members; NULL: see mq_forward_add_ranks */
    int member;
    int64_t max_rows, mlp_rows;
    int64_t head_rows; /* rows of a head block when there are several ranks */
    int n_captures;
    int capture_layers[MQ_MAX_TAPS];
    float *captures[MQ_MAX_TAPS]; /* lent by the caller */

    mq_expert_table *expert_tables; /* [n_layers, n_ranks] */

    void *block;         /* dev's memory behind the arrays that follow */
    float *h;            /* [B, hidden] normed input */
    float *q;            /* [B, n_heads * head_dim] of a rank */
    float *key, *value;  /* [B, n_kv_heads * ...] of a rank */
    float *heads;        /* [B, n_heads * v_head_dim] attention output of a rank */
    float *part;         /* [B, hidden] one linear's contribution to the residual */
    float *gate_up;      /* [B, 2 W] gate, then up, or interleaved */
    float *mid;          /* [B, W] */
    float *scores;       /* [B, n_experts] router logits */
    float *margin;       /* [B] */
    float *y;            /* [T, hidden] sum of the ranks so far */
    float *y_rank;       /* [T, hidden] one rank's experts, with several ranks only */
    float *zero_row;     /* [hidden] zeros */
    int32_t *zero_index; /* [T] zeros */
    int32_t *ids;        /* [B] token ids */
    int32_t *rows;       /* [B] 0, 1, 2, ... */
    int32_t *route_ids;  /* [T, topk] */
    float *route_coef;   /* [T, topk] */
    int32_t *sorted;     /* [T * topk] rows grouped by expert */
    float *sorted_coef;  /* [T * topk] */
    float *head_parts;   /* [n_ranks, head_rows, vocab / n_ranks], with several ranks only */
    int32_t *head_perm;  /* [head_rows * n_ranks] */

    void *host_block;        /* host memory behind the arrays that follow */
    int32_t *host_ids;       /* [T, topk] */
    float *host_coef;        /* [T, topk] */
    int32_t *host_sorted;    /* [T * topk] */
    float *host_sorted_coef; /* [T * topk] */
    int64_t *first;          /* [n_experts + 1] where an expert's rows begin in sorted */
    int32_t *iota;           /* [T] 0, 1, 2, ... */
    float *host_margin;      /* [B] */
    int32_t *n_distinct;     /* [n_layers] experts that the last rows chose */
    int32_t *host_perm;      /* [head_rows * n_ranks] */
};

/* What the ranks add to a row: rank's contribution goes where mq_forward_part says (y or scratch, [count] each, unless there is
 * a join), then mq_forward_keep_part takes it; after the last rank mq_forward_add_ranks leaves the sum over all ranks,
 * in rank order, in y.  Ranks that nobody computes (mq_store_only_rank) count as equal to the one there is. */
float *mq_forward_part(const mq_forward *f, int rank, float *y, float *scratch);
mq_status mq_forward_keep_part(mq_forward *f, int rank, float *y, const float *part, int64_t count, mq_err *err);
mq_status mq_forward_add_ranks(mq_forward *f, float *y, int64_t count, mq_err *err);

/* y [n, w.rows] = x w^T in the mode's order. */
static inline mq_status mq_forward_linear(mq_forward *f, mq_forward_mode mode, float *y,
                                          const float *x, const mq_matrix *w, int64_t n,
                                          mq_err *err)
{
    return mode == MQ_FORWARD_STEP ? f->k->linear_fixed(f->dev, y, x, w, n, err)
                                   : f->k->linear(f->dev, y, x, w, n, err);
}

/* forward_experts.c.  Whether a layer's experts may run as one operation; and to do so: f->y [n, hidden] = the held ranks' sum
 * (or their parts to the join) for rows f->h routed as f->route_ids and f->route_coef say; not done where experts are not
 * packed alike. */
bool mq_forward_may_group(const mq_forward *f, mq_forward_mode mode, int64_t n, const mq_tap *tap);
mq_status mq_forward_group(mq_forward *f, bool *done, int layer, int64_t n, mq_err *err);
void mq_forward_drop_tables(mq_forward *f);

/* Show tap (may be NULL) n rows that are rows row0 .. of the call. */
static inline mq_status mq_forward_tap(const mq_forward *f, const mq_tap *tap, mq_tap_point point,
                                       int layer, const float *x, int64_t row0, int64_t n,
                                       int64_t cols, mq_err *err)
{
    return tap ? tap->fn(tap->ctx, point, layer, -1, x, f->iota + row0, NULL, n, cols, err) : MQ_OK;
}

#ifdef __cplusplus
}
#endif
#endif
