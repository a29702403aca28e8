/* All experts of a layer in one operation, where the device has it: which calls may use it, and the tables of expert
 * pointers it wants, made once for each layer and rank.
 *
 * Everything else (taps, streamed experts, F32, the decode step) stays with forward_mlp.c's loop over experts. */
#include <stdlib.h>

#include "runtime/forward_state.h"

bool mq_forward_may_group(const mq_forward *f, mq_forward_mode mode, int64_t n, const mq_tap *tap)
{
    return mode == MQ_FORWARD_BATCH && !tap && n <= f->max_rows && f->k->experts &&
           f->k->precision(f->dev) == MQ_PRECISION_BF16 && mq_store_is_resident(f->store);
}

static bool is_alike(const mq_mlp_weights *w, const mq_mlp_weights *first)
{
    mq_scheme scheme = first->down.scheme;
    return w->interleaved && (scheme == MQ_SCHEME_INT4 || scheme == MQ_SCHEME_MXFP4) &&
           w->gate_up.scheme == scheme && w->down.scheme == scheme &&
           w->gate_up.group == first->down.group && w->down.group == first->down.group;
}

/* pointers [2, n_experts] (host): gate_up, then down. */
static mq_status gather(mq_forward *f, mq_expert_table *table, const void **pointers, int layer,
                        int rank, mq_err *err)
{
    int n = f->m->n_experts;
    mq_mlp_weights first = {0}, w;
    for (int e = 0; e < n; e++) {
        MQ_TRY(mq_store_expert(f->store, &w, layer, e, rank, err));
        if (e == 0)
            first = w;
        if (!is_alike(&w, &first))
            return MQ_OK;
        pointers[e] = w.gate_up.data;
        pointers[n + e] = w.down.data;
    }
    int64_t bytes = n * (int64_t)sizeof *pointers;
    MQ_TRY(f->k->alloc(f->dev, &table->pointers, 2 * bytes, err));
    MQ_TRY(f->k->upload(f->dev, table->pointers, pointers, 2 * bytes, err));
    const uint8_t *const *there = table->pointers;
    table->t = (mq_decode_expert_table){.gate_up = there,
                                        .down = there + n,
                                        .group = first.down.group,
                                        .hidden = first.down.rows,
                                        .width = first.down.cols,
                                        .n_experts = n,
                                        .topk = f->m->n_experts_per_tok};
    table->is_there = true;
    return MQ_OK;
}

static mq_status find(mq_forward *f, const mq_decode_expert_table **out, int layer, int rank,
                      mq_err *err)
{
    mq_expert_table *table = &f->expert_tables[(int64_t)layer * f->n_ranks + rank];
    *out = NULL;
    if (!table->is_known) {
        const void **pointers = calloc(2 * (size_t)f->m->n_experts, sizeof *pointers);
        mq_status st = pointers ? gather(f, table, pointers, layer, rank, err)
                                : mq_fail(err, MQ_E_NOMEM, "experts of a layer: out of memory");
        free(pointers);
        if (st != MQ_OK)
            return st;
        table->is_known = true;
    }
    if (table->is_there)
        *out = &table->t;
    return MQ_OK;
}

mq_status mq_forward_group(mq_forward *f, bool *done, int layer, int64_t n, mq_err *err)
{
    const mq_decode_expert_table *t;
    int64_t count = n * f->m->hidden;
    *done = false;
    for (int r = f->first_rank; r < f->first_rank + f->n_held; r++) {
        MQ_TRY(find(f, &t, layer, r, err));
        if (!t)
            return MQ_OK; /* all ranks store their experts alike: this is the first */
        float *y = mq_forward_part(f, r, f->y, f->y_rank);
        MQ_TRY(f->k->experts(f->dev, y, f->h, f->route_ids, f->route_coef, t, n, err));
        MQ_TRY(mq_forward_keep_part(f, r, f->y, y, count, err));
    }
    *done = true;
    return MQ_OK;
}

void mq_forward_drop_tables(mq_forward *f)
{
    for (int64_t i = 0; f->expert_tables && i < (int64_t)f->m->n_layers * f->n_ranks; i++)
        if (f->expert_tables[i].pointers)
            f->k->release(f->dev, f->expert_tables[i].pointers);
    free(f->expert_tables);
}
