/* The MTP layers as a drafter.
 *
 * Layer k at position p joins the target's hidden state of p with token p + 1 + k and predicts
 * token p + 2 + k; every layer gets the target's hidden state, none the output of the layer before.
 * So layer k's entry at p is final once token p + 1 + k is committed.  A layer being one decoder
 * layer, an entry is the key and value of its own input; only the last row goes all the way.
 *
 * Commits only keep hidden states and tokens; a proposal makes all entries that are not final,
 * those with guessed tokens last, in one pass, and the next one makes the latter again.  When the
 * room for hidden states is used up, a commit first makes what has become final.  Entries that no
 * later row can see are left out.
 * Source: MiMo-V2-Flash technical report, section 2.3. */
#include <assert.h>
#include <stddef.h>

#include "runtime/draft_state.h"

static int64_t at_least(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

mq_status mq_draft_mtp_shape(mq_draft_shape *s, const mq_store *store, mq_err *err)
{
    const mq_model *m = mq_store_model(store);
    s->n_layers = m->n_mtp < MQ_DRAFT_MOST ? m->n_mtp : MQ_DRAFT_MOST;
    s->intermediate = m->intermediate;
    s->attn = m->swa;
    s->norm_eps = m->norm_eps;
    s->value_scale = m->value_scale;
    s->n_taps = 1;
    s->taps[0] = m->n_layers - 1;
    s->most = s->n_layers;
    s->rows = s->max_rows + s->n_layers;
    s->decode_rows = s->head_rows = 1;
    s->wide = 2 * (int64_t)m->hidden;
    s->n_slots = m->swa.window; /* entries end where the one row that looks at them stands */
    if (m->swa.window < 1)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "%s/config.json: MTP layers without a sliding window are not supported",
                       mq_store_dir(store));
    return MQ_OK;
}

/* Entries of layer's ring that committed tokens alone decide. */
static int64_t n_final(const mq_draft *d, int layer)
{
    return at_least(d->length - 1 - layer, d->done[layer]);
}

/* y = RMSNorm of the pending hidden states of positions pos0 .. pos0 + n - 1. */
static mq_status norm_pending(mq_draft *d, float *y, const float *weight, int64_t n, int64_t pos0,
                              mq_err *err)
{
    int64_t hidden = d->s.hidden, rows = d->s.rows;
    for (int64_t i = 0; i < n;) {
        int64_t slot = (pos0 + i) % rows, count = n - i < rows - slot ? n - i : rows - slot;
        MQ_TRY(d->k->rmsnorm(d->dev, y + i * hidden, d->pending + slot * hidden, weight,
                             d->s.norm_eps, count, hidden, err));
        i += count;
    }
    return MQ_OK;
}

/* Layer's input for n rows from pos0 on, d->fed their tokens, into d->x. */
static mq_status join(mq_draft *d, int layer, int64_t n, int64_t pos0, mq_err *err)
{
    int64_t hidden = d->s.hidden, part = hidden / d->s.n_ranks;
    mq_draft_layer_weights w;
    mq_matrix embedding;
    MQ_TRY(mq_draft_layer(d, &w, layer, 0, err));
    MQ_TRY(mq_store_embedding(d->store, &embedding, err));
    MQ_TRY(d->k->upload(d->dev, d->ids, d->fed, n * (int64_t)sizeof *d->fed, err));
    MQ_TRY(d->k->embed(d->dev, d->h, &embedding, d->ids, n, err));
    MQ_TRY(d->k->rmsnorm(d->dev, d->h, d->h, w.enorm, d->s.norm_eps, n, hidden, err));
    MQ_TRY(d->k->put_cols(d->dev, d->wide, d->s.wide, 0, d->h, n, hidden, err));
    MQ_TRY(norm_pending(d, d->h, w.hnorm, n, pos0, err));
    MQ_TRY(d->k->put_cols(d->dev, d->wide, d->s.wide, hidden, d->h, n, hidden, err));
    for (int r = 0; r < d->s.n_ranks; r++) {
        MQ_TRY(mq_draft_layer(d, &w, layer, r, err));
        MQ_TRY(mq_draft_linear(d, d->part, d->wide, &w.eh_proj, n, err));
        MQ_TRY(d->k->put_cols(d->dev, d->x, hidden, r * part, d->part, n, part, err));
    }
    return MQ_OK;
}

/* Inputs and entries of layer for positions done .. end - 1, but for those out of sight of position
 * end - 1 and later; ahead are the tokens from position length on.  The inputs are rows of d->x, n
 * of them.  What has become final stays. */
static mq_status run(mq_draft *d, int64_t *n, int layer, int64_t end, const int32_t *ahead,
                     mq_err *err)
{
    int64_t pos0 = at_least(d->done[layer], end - d->s.attn.window);
    *n = end - pos0;
    if (*n <= 0)
        return MQ_OK;
    assert(*n <= d->s.rows && end <= d->length);
    for (int64_t i = 0; i < *n; i++) {
        int64_t pos = pos0 + i + 1 + layer;
        d->fed[i] = pos < d->length ? d->tokens[pos % d->s.rows] : ahead[pos - d->length];
    }
    MQ_TRY(join(d, layer, *n, pos0, err));
    for (int r = 0; r < d->s.n_ranks; r++) {
        mq_draft_layer_weights w;
        MQ_TRY(mq_draft_layer(d, &w, layer, r, err));
        if (r == 0)
            MQ_TRY(d->k->rmsnorm(d->dev, d->h, d->x, w.layer.input_norm, d->s.norm_eps, *n,
                                 d->s.hidden, err));
        MQ_TRY(mq_draft_store_keys(d, &w, layer, r, d->h, *n, pos0, err));
    }
    MQ_TRY(d->k->dev_sync(d->dev, err)); /* d->fed is written again */
    d->done[layer] = n_final(d, layer);
    return MQ_OK;
}

mq_status mq_draft_mtp_commit(mq_draft *d, const int32_t *ids, const float *const *features,
                              int64_t n, mq_err *err)
{
    const mq_draft_shape *s = &d->s;
    int64_t n_run, oldest = d->length; /* that some layer still has to see */
    for (int l = 0; l < s->n_layers; l++)
        oldest = d->done[l] < oldest ? d->done[l] : oldest;
    for (int l = 0; l < s->n_layers && d->length + n - oldest > s->rows; l++)
        MQ_TRY(run(d, &n_run, l, n_final(d, l), NULL, err));
    for (int64_t i = 0; i < n;) {
        int64_t slot = (d->length + i) % s->rows;
        int64_t count = n - i < s->rows - slot ? n - i : s->rows - slot;
        MQ_TRY(d->k->put_cols(d->dev, d->pending + slot * s->hidden, s->hidden, 0,
                              features[0] + i * s->hidden, count, s->hidden, err));
        i += count;
    }
    for (int64_t i = 0; i < n; i++)
        d->tokens[(d->length + i) % s->rows] = ids[i];
    return d->k->dev_sync(d->dev, err); /* the caller's features are free again */
}

mq_status mq_draft_mtp_guess(mq_draft *d, int32_t *token, float *confidence, int layer,
                             const int32_t *ahead, mq_err *err)
{
    mq_draft_layer_weights w;
    int64_t n;
    MQ_TRY(run(d, &n, layer, d->length, ahead, err));
    float *last = d->x + (n - 1) * d->s.hidden;
    MQ_TRY(mq_draft_decode(d, layer, last, 1, d->length - 1, false, err));
    MQ_TRY(mq_draft_layer(d, &w, layer, 0, err));
    MQ_TRY(d->k->rmsnorm(d->dev, d->h, last, w.final_norm, d->s.norm_eps, 1, d->s.hidden, err));
    return mq_draft_choose(d, token, confidence, d->h, 1, err);
}

mq_status mq_draft_mtp_propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor,
                               int n, mq_err *err)
{
    int32_t ahead[MQ_DRAFT_MOST + 1] = {anchor};
    for (int k = 0; k < n; k++) {
        MQ_TRY(mq_draft_mtp_guess(d, &tokens[k], &confidence[k], k, ahead, err));
        ahead[k + 1] = tokens[k];
    }
    return MQ_OK;
}
