/* What both kinds of drafters are made of: workspace, keys and values of their layers, the decoder
 * layer they share, and the choice of tokens.  Private to draft*.c and their tests. */
#ifndef MQ_RUNTIME_DRAFT_STATE_H
#define MQ_RUNTIME_DRAFT_STATE_H

#include <stdint.h>

#include "runtime/draft.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a drafter is before any memory: sizes and geometry. */
typedef struct mq_draft_shape {
    int n_ranks, n_layers, hidden, vocab, intermediate;
    mq_attn_geometry attn;
    double norm_eps, value_scale;
    int n_taps, taps[MQ_MAX_TAPS];
    int most;            /* guesses of a block */
    int block;           /* DFlash: rows of a block, the anchor's included */
    int64_t max_rows;    /* of a commit */
    int64_t rows;        /* C: of anything; MTP: of the pending ring too */
    int64_t decode_rows; /* D: that go through a layer at once */
    int64_t head_rows;   /* E: that are given tokens at once */
    int64_t wide;        /* columns of what is joined from several states of hidden columns */
    int64_t n_slots;     /* of a ring of keys and values */
} mq_draft_shape;

typedef struct mq_draft_device mq_draft_device;

struct mq_draft {
    mq_draft_kind kind;
    const mq_kernels *k;
    mq_dev *dev;
    mq_store *store;
    mq_draft_shape s;
    int64_t length;
    mq_draft_device *device; /* NULL: composed of single operations */

    mq_kv *kv;          /* [n_layers, n_ranks] */
    void *block;        /* dev's memory behind the rings and the arrays that follow */
    float *wide;        /* [C, wide] */
    float *x;           /* [C, hidden] residual stream */
    float *h;           /* [C, hidden] normed input */
    float *part;        /* [C, hidden] one rank's contribution */
    float *sum;         /* [D, hidden] of the ranks so far */
    float *q;           /* [D, n_heads * head_dim] of a rank */
    float *key;         /* [C, n_kv_heads * head_dim] */
    float *value;       /* [C, n_kv_heads * v_head_dim] */
    float *heads;       /* [D, n_heads * v_head_dim] */
    float *gate;        /* [D, width] of a rank */
    float *up, *mid;    /* [D, width] */
    float *logits;      /* [E, vocab] */
    float *logits_part; /* [E, vocab / n_ranks], with several ranks only */
    float *prob;        /* [E] */
    int32_t *top;       /* [E] */
    int32_t *ids;       /* [C] token ids */
    int32_t *zeros;     /* [D] */

    /* MTP alone: hidden states of the last positions, at position modulo C, and their tokens; final
     * entries of each layer's ring (those computed from committed tokens). */
    float *pending;  /* [C, hidden] */
    int32_t *tokens; /* [C], host */
    int32_t *fed;    /* [C] tokens of a run, host */
    int64_t *done;   /* [n_layers], host */
};

/* Shapes of the two kinds; what cannot be computed is MQ_E_UNSUPPORTED. */
mq_status mq_draft_dflash_shape(mq_draft_shape *s, const mq_store *store, mq_err *err);
mq_status mq_draft_mtp_shape(mq_draft_shape *s, const mq_store *store, mq_err *err);

/* runtime/draft.h, arguments checked. */
mq_status mq_draft_dflash_commit(mq_draft *d, const float *const *features, int64_t n, mq_err *err);
mq_status mq_draft_dflash_propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor,
                                  int n, mq_err *err);
mq_status mq_draft_mtp_commit(mq_draft *d, const int32_t *ids, const float *const *features,
                              int64_t n, mq_err *err);
mq_status mq_draft_mtp_propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor,
                               int n, mq_err *err);

/* draft_device.c: the same through the device's own step, which d has. */
mq_status mq_draft_device_commit(mq_draft *d, const float *const *features, int64_t n, mq_err *err);
mq_status mq_draft_device_propose(mq_draft *d, int32_t *tokens, float *confidence, int n_guesses,
                                  const float *const *features, int64_t n, int32_t anchor, mq_err *err);
void mq_draft_device_free(mq_draft *d);

/* Layer k's guess at the last committed position, given the k + 1 tokens after it: ahead [k + 1],
 * the anchor and k further ones. */
mq_status mq_draft_mtp_guess(mq_draft *d, int32_t *token, float *confidence, int layer,
                             const int32_t *ahead, mq_err *err);

/* A layer of this drafter, one rank's slice. */
mq_status mq_draft_layer(mq_draft *d, mq_draft_layer_weights *out, int layer, int rank,
                         mq_err *err);
/* Keys and values of rows h [n, hidden] at positions pos0 .. into the ring of a layer and rank. */
mq_status mq_draft_store_keys(mq_draft *d, const mq_draft_layer_weights *w, int layer, int rank,
                              const float *h, int64_t n, int64_t pos0, mq_err *err);
/* A decoder layer in place over x [n, hidden], n up to decode_rows, at positions pos0 ..; is_block:
 * the rows see one another, otherwise only what is before them. */
mq_status mq_draft_decode(mq_draft *d, int layer, float *x, int64_t n, int64_t pos0, bool is_block,
                          mq_err *err);
/* Tokens and confidence [n] (host) of rows h [n, hidden] by the target's head, n up to head_rows.
 * Returns when the device is done. */
mq_status mq_draft_choose(mq_draft *d, int32_t *tokens, float *confidence, const float *h,
                          int64_t n, mq_err *err);

/* y [n, w.rows] = x w^T in the fixed order. */
static inline mq_status mq_draft_linear(mq_draft *d, float *y, const float *x, const mq_matrix *w,
                                        int64_t n, mq_err *err)
{
    return d->k->linear_fixed(d->dev, y, x, w, n, err);
}

#ifdef __cplusplus
}
#endif
#endif
