/* The DFlash drafter: a block of masked positions filled in one pass.
 *
 * A committed position leaves only keys and values behind: of its context feature (the tapped
 * residuals of the target through fc and hidden_norm), not normed by a layer's input norm.  The
 * block [anchor, mask, mask, ...] goes through the layers with every row seeing every other; its
 * own keys stand in the ring beyond the committed ones, where the next commit overwrites them.
 * Source: github.com/z-lab/dflash, with what the MiMo-V2.5 release adds: mask embedding, sinks,
 * value scale, partial rotation. */
#include "runtime/draft_state.h"

mq_status mq_draft_dflash_shape(mq_draft_shape *s, const mq_store *store, mq_err *err)
{
    const mq_draft_model *m = mq_store_draft_model(store);
    s->n_layers = m->n_layers;
    s->intermediate = m->intermediate;
    s->attn = m->attn;
    s->norm_eps = m->norm_eps;
    s->value_scale = m->value_scale;
    s->n_taps = m->n_taps;
    for (int i = 0; i < m->n_taps; i++)
        s->taps[i] = m->taps[i];
    s->block = m->block_size;
    s->most = m->block_size - 1 < MQ_DRAFT_MOST ? m->block_size - 1 : MQ_DRAFT_MOST;
    s->rows = s->max_rows > s->block ? s->max_rows : s->block;
    s->decode_rows = s->block;
    s->head_rows = s->most;
    s->wide = (int64_t)m->n_taps * m->hidden;
    s->n_slots = (int64_t)m->attn.window + m->block_size;
    if (m->attn.window < m->block_size)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "%s/dflash/config.json: sliding_window: %d, only windows of at least the "
                       "block_size of %d are supported",
                       mq_store_dir(store), m->attn.window, m->block_size);
    return MQ_OK;
}

mq_status mq_draft_dflash_commit(mq_draft *d, const float *const *features, int64_t n, mq_err *err)
{
    const mq_draft_shape *s = &d->s;
    mq_draft_weights shared;
    MQ_TRY(mq_store_draft(d->store, &shared, err));
    for (int i = 0; i < s->n_taps; i++)
        MQ_TRY(d->k->put_cols(d->dev, d->wide, s->wide, (int64_t)i * s->hidden, features[i], n,
                              s->hidden, err));
    MQ_TRY(mq_draft_linear(d, d->part, d->wide, &shared.fc, n, err));
    MQ_TRY(
        d->k->rmsnorm(d->dev, d->h, d->part, shared.hidden_norm, s->norm_eps, n, s->hidden, err));
    for (int l = 0; l < s->n_layers; l++)
        for (int r = 0; r < s->n_ranks; r++) {
            mq_draft_layer_weights w;
            MQ_TRY(mq_draft_layer(d, &w, l, r, err));
            MQ_TRY(mq_draft_store_keys(d, &w, l, r, d->h, n, d->length, err));
        }
    return d->k->dev_sync(d->dev, err); /* the caller's features are free again */
}

mq_status mq_draft_dflash_propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor,
                                  int n, mq_err *err)
{
    const mq_draft_shape *s = &d->s;
    mq_draft_weights shared;
    mq_matrix embedding;
    MQ_TRY(mq_store_draft(d->store, &shared, err));
    MQ_TRY(mq_store_embedding(d->store, &embedding, err));
    MQ_TRY(d->k->upload(d->dev, d->ids, &anchor, sizeof anchor, err));
    MQ_TRY(d->k->embed(d->dev, d->x, &embedding, d->ids, 1, err));
    MQ_TRY(d->k->gather(d->dev, d->x + s->hidden, shared.mask, d->zeros, s->block - 1, s->hidden,
                        err));
    for (int l = 0; l < s->n_layers; l++)
        MQ_TRY(mq_draft_decode(d, l, d->x, s->block, d->length, true, err));
    MQ_TRY(
        d->k->rmsnorm(d->dev, d->h, d->x + s->hidden, shared.norm, s->norm_eps, n, s->hidden, err));
    return mq_draft_choose(d, tokens, confidence, d->h, n, err);
}
