/* The decoder layer of both drafters, and the target's head over their rows.
 *
 * Everything goes through the fixed-order product, so a row's bits depend on that row and its keys
 * alone.  Ranks run one after another; their contributions are summed in rank order first, then
 * added to the residual, as in the target's forward pass. */
#include "runtime/draft_state.h"

mq_status mq_draft_layer(mq_draft *d, mq_draft_layer_weights *out, int layer, int rank, mq_err *err)
{
    return d->kind == MQ_DRAFT_DFLASH ? mq_store_draft_layer(d->store, out, layer, rank, err)
                                      : mq_store_mtp_layer(d->store, out, layer, rank, err);
}

/* Norm of every head (weight may be NULL: none), then rotation, in place over x [n, n_heads,
 * head_dim]. */
static mq_status prepare_heads(mq_draft *d, float *x, const float *weight, int n_heads, int64_t n,
                               int64_t pos0, mq_err *err)
{
    const mq_attn_geometry *g = &d->s.attn;
    if (weight)
        MQ_TRY(d->k->rmsnorm(d->dev, x, x, weight, d->s.norm_eps, n * n_heads, g->head_dim, err));
    return d->k->rope(d->dev, x, n, n_heads, g->head_dim, g->rotary_dims, g->rope_theta, pos0, err);
}

mq_status mq_draft_store_keys(mq_draft *d, const mq_draft_layer_weights *w, int layer, int rank,
                              const float *h, int64_t n, int64_t pos0, mq_err *err)
{
    const mq_attn_weights *a = &w->layer.attn;
    const mq_kv *kv = &d->kv[layer * d->s.n_ranks + rank];
    MQ_TRY(mq_draft_linear(d, d->key, h, &a->k, n, err));
    MQ_TRY(mq_draft_linear(d, d->value, h, &a->v, n, err));
    MQ_TRY(prepare_heads(d, d->key, w->k_norm, a->n_kv_heads, n, pos0, err));
    return d->k->kv_store(d->dev, kv, d->key, d->value, (float)d->s.value_scale, n, pos0, err);
}

/* One rank's o_proj(attention) of rows d->h into out. */
static mq_status attend(mq_draft *d, const mq_draft_layer_weights *w, int layer, int rank,
                        float *out, int64_t n, int64_t pos0, bool is_block, mq_err *err)
{
    const mq_attn_weights *a = &w->layer.attn;
    const mq_kv *kv = &d->kv[layer * d->s.n_ranks + rank];
    int window = d->s.attn.window;
    MQ_TRY(mq_draft_store_keys(d, w, layer, rank, d->h, n, pos0, err));
    MQ_TRY(mq_draft_linear(d, d->q, d->h, &a->q, n, err));
    MQ_TRY(prepare_heads(d, d->q, w->q_norm, a->n_heads, n, pos0, err));
    MQ_TRY((is_block ? d->k->attention_block : d->k->attention)(
        d->dev, d->heads, d->q, kv, a->n_heads, a->sink, window, n, pos0, err));
    return mq_draft_linear(d, out, d->heads, &a->o, n, err);
}

/* One rank's MLP of rows d->h into out. */
static mq_status feed(mq_draft *d, const mq_mlp_weights *w, float *out, int64_t n, mq_err *err)
{
    MQ_TRY(mq_draft_linear(d, d->gate, d->h, &w->gate, n, err));
    MQ_TRY(mq_draft_linear(d, d->up, d->h, &w->up, n, err));
    MQ_TRY(d->k->swiglu(d->dev, d->mid, d->gate, d->up, false, n, w->gate.rows, err));
    return mq_draft_linear(d, out, d->mid, &w->down, n, err);
}

mq_status mq_draft_decode(mq_draft *d, int layer, float *x, int64_t n, int64_t pos0, bool is_block,
                          mq_err *err)
{
    int64_t hidden = d->s.hidden;
    mq_draft_layer_weights w;
    for (int half = 0; half < 2; half++) {
        for (int r = 0; r < d->s.n_ranks; r++) {
            MQ_TRY(mq_draft_layer(d, &w, layer, r, err));
            if (r == 0)
                MQ_TRY(d->k->rmsnorm(d->dev, d->h, x,
                                     half == 0 ? w.layer.input_norm : w.layer.post_norm,
                                     d->s.norm_eps, n, hidden, err));
            float *out = r == 0 ? d->sum : d->part;
            MQ_TRY(half == 0 ? attend(d, &w, layer, r, out, n, pos0, is_block, err)
                             : feed(d, &w.layer.mlp, out, n, err));
            if (r > 0)
                MQ_TRY(d->k->add(d->dev, d->sum, d->part, n * hidden, err));
        }
        MQ_TRY(d->k->add(d->dev, x, d->sum, n * hidden, err));
    }
    return MQ_OK;
}

/* The ranks' slices of the head as one matrix, where they lie one behind the other. */
static mq_status whole_head(mq_draft *d, mq_matrix *out, bool *is_one, mq_err *err)
{
    int64_t part = d->s.vocab / d->s.n_ranks;
    MQ_TRY(mq_store_head(d->store, out, 0, err));
    *is_one = out->scheme == MQ_SCHEME_BF16 || d->s.n_ranks == 1;
    for (int r = 1; *is_one && r < d->s.n_ranks; r++) {
        mq_matrix w;
        MQ_TRY(mq_store_head(d->store, &w, r, err));
        *is_one = (const uint8_t *)w.data == (const uint8_t *)out->data + 2 * r * part * out->cols;
    }
    if (*is_one)
        out->rows = d->s.vocab;
    return MQ_OK;
}

mq_status mq_draft_choose(mq_draft *d, int32_t *tokens, float *confidence, const float *h,
                          int64_t n, mq_err *err)
{
    int64_t vocab = d->s.vocab, part = vocab / d->s.n_ranks;
    mq_matrix w;
    bool is_one;
    MQ_TRY(whole_head(d, &w, &is_one, err));
    if (is_one)
        MQ_TRY(mq_draft_linear(d, d->logits, h, &w, n, err));
    for (int r = 0; !is_one && r < d->s.n_ranks; r++) {
        MQ_TRY(mq_store_head(d->store, &w, r, err));
        MQ_TRY(mq_draft_linear(d, d->logits_part, h, &w, n, err));
        MQ_TRY(d->k->put_cols(d->dev, d->logits, vocab, r * part, d->logits_part, n, part, err));
    }
    MQ_TRY(d->k->top(d->dev, d->top, d->prob, d->logits, n, vocab, err));
    MQ_TRY(d->k->download(d->dev, tokens, d->top, n * (int64_t)sizeof *tokens, err));
    MQ_TRY(d->k->download(d->dev, confidence, d->prob, n * (int64_t)sizeof *confidence, err));
    return d->k->dev_sync(d->dev, err);
}
