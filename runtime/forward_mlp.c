/* The MLP half of a layer: norm, then a dense SwiGLU or the router and its experts, residual.
 *
 * Experts own the work: all rows are routed first, grouped by expert, and each expert is asked of
 * the store once (per rank), in ascending order.  So a row's experts are added in ascending order
 * whatever its neighbours chose, and a streamed expert is read once for all windows (forward_experts.c: all
 * experts of a resident layer at once, where the device can).  The ranks'
 * sums are added in rank order, then to the residual. Source: transformers modeling_mimo_v2_flash. */
#include <assert.h>
#include <string.h>

#include "runtime/forward_state.h"

/* out [n, hidden] = down(silu(gate x) * up x), this rank's share; the input of down stays in
 * f->mid. */
static mq_status swiglu_mid(mq_forward *f, mq_forward_mode mode, const float *x,
                            const mq_mlp_weights *w, int64_t n, mq_err *err)
{
    int64_t width = w->down.cols;
    if (w->interleaved) {
        MQ_TRY(mq_forward_linear(f, mode, f->gate_up, x, &w->gate_up, n, err));
        return f->k->swiglu(f->dev, f->mid, f->gate_up, NULL, true, n, width, err);
    }
    float *up = f->gate_up + n * width;
    MQ_TRY(mq_forward_linear(f, mode, f->gate_up, x, &w->gate, n, err));
    MQ_TRY(mq_forward_linear(f, mode, up, x, &w->up, n, err));
    return f->k->swiglu(f->dev, f->mid, f->gate_up, up, false, n, width, err);
}

static mq_status dense_block(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t row0,
                             int64_t n, const mq_tap *tap, mq_err *err)
{
    int64_t hidden = f->m->hidden;
    for (int r = f->first_rank; r < f->first_rank + f->n_held; r++) {
        mq_layer_weights w;
        MQ_TRY(mq_store_layer(f->store, &w, layer, r, err));
        if (r == f->first_rank) {
            MQ_TRY(f->k->rmsnorm(f->dev, f->h, x, w.post_norm, f->m->norm_eps, n, hidden, err));
            MQ_TRY(mq_forward_tap(f, tap, MQ_TAP_MLP_IN, layer, f->h, row0, n, hidden, err));
        }
        MQ_TRY(swiglu_mid(f, mode, f->h, &w.mlp, n, err));
        MQ_TRY(
            mq_forward_tap(f, tap, MQ_TAP_MLP_DOWN, layer, f->mid, row0, n, w.mlp.down.cols, err));
        float *out = mq_forward_part(f, r, f->y, f->part);
        MQ_TRY(mq_forward_linear(f, mode, out, f->mid, &w.mlp.down, n, err));
        MQ_TRY(mq_forward_keep_part(f, r, f->y, out, n * hidden, err));
    }
    MQ_TRY(mq_forward_add_ranks(f, f->y, n * hidden, err));
    return f->k->add(f->dev, x, f->y, n * hidden, err);
}

/* Scores decide who computes: F32, whatever other products take. */
static mq_status router_scores(mq_forward *f, mq_forward_mode mode, const mq_matrix *router,
                               int64_t rows, mq_err *err)
{
    mq_precision kept = f->k->precision(f->dev);
    MQ_TRY(f->k->set_precision(f->dev, MQ_PRECISION_F32, err));
    mq_status st = mq_forward_linear(f, mode, f->scores, f->h, router, rows, err);
    mq_status back = f->k->set_precision(f->dev, kept, st == MQ_OK ? err : NULL);
    return st != MQ_OK ? st : back;
}

/* Choose experts for every row; leaves the last block's normed rows in f->h. */
static mq_status route_rows(mq_forward *f, mq_forward_mode mode, int layer,
                            const mq_layer_weights *w, const float *x, int64_t n, float *margin,
                            const mq_tap *tap, mq_err *err)
{
    const mq_model *m = f->m;
    int topk = m->n_experts_per_tok;
    for (int64_t i = 0; i < n; i += f->max_rows) {
        int64_t rows = n - i < f->max_rows ? n - i : f->max_rows;
        MQ_TRY(f->k->rmsnorm(f->dev, f->h, x + i * m->hidden, w->post_norm, m->norm_eps, rows,
                             m->hidden, err));
        MQ_TRY(mq_forward_tap(f, tap, MQ_TAP_ROUTER, layer, f->h, i, rows, m->hidden, err));
        MQ_TRY(router_scores(f, mode, &w->router, rows, err));
        MQ_TRY(f->k->route(f->dev, f->route_ids + i * topk, f->route_coef + i * topk,
                           margin ? f->margin : NULL, f->scores, w->router_bias, rows, m->n_experts,
                           topk, m->norm_topk_prob, (float)m->routed_scaling, err));
        if (!margin)
            continue;
        MQ_TRY(f->k->download(f->dev, f->host_margin, f->margin, rows * 4, err));
        MQ_TRY(f->k->dev_sync(f->dev, err));
        for (int64_t j = 0; j < rows; j++)
            margin[i + j] = f->host_margin[j] < margin[i + j] ? f->host_margin[j] : margin[i + j];
    }
    return MQ_OK;
}

/* Group the n * topk choices by expert, rows ascending within an expert: f->first, f->sorted,
 * f->sorted_coef. */
static mq_status group_rows(mq_forward *f, int64_t n, mq_err *err)
{
    int64_t topk = f->m->n_experts_per_tok, picks = n * topk;
    MQ_TRY(f->k->download(f->dev, f->host_ids, f->route_ids, picks * 4, err));
    MQ_TRY(f->k->download(f->dev, f->host_coef, f->route_coef, picks * 4, err));
    MQ_TRY(f->k->dev_sync(f->dev, err));

    int64_t *first = f->first;
    memset(first, 0, (size_t)(f->m->n_experts + 1) * sizeof *first);
    for (int64_t i = 0; i < picks; i++) {
        assert(f->host_ids[i] >= 0 && f->host_ids[i] < f->m->n_experts);
        first[f->host_ids[i] + 1]++;
    }
    for (int e = 0; e < f->m->n_experts; e++)
        first[e + 1] += first[e];
    for (int64_t i = 0; i < picks; i++) {
        int64_t at = first[f->host_ids[i]]++;
        f->host_sorted[at] = (int32_t)(i / topk);
        f->host_sorted_coef[at] = f->host_coef[i];
    }
    /* Filling moved every start to its end, which is the next one's start. */
    for (int e = f->m->n_experts; e > 0; e--)
        first[e] = first[e - 1];
    first[0] = 0;
    MQ_TRY(f->k->upload(f->dev, f->sorted, f->host_sorted, picks * 4, err));
    return f->k->upload(f->dev, f->sorted_coef, f->host_sorted_coef, picks * 4, err);
}

/* Where an expert's input rows come from: rows normed already, or the residual stream and the
 * norm's weight. */
typedef struct moe_input {
    const float *normed;
    const float *x;
    const float *norm_weight;
} moe_input;

static mq_status expert_tap(const mq_forward *f, const mq_tap *tap, mq_tap_point point, int layer,
                            int expert, const float *x, int64_t at, int64_t n, int64_t cols,
                            mq_err *err)
{
    return tap ? tap->fn(tap->ctx, point, layer, expert, x, f->host_sorted + at,
                         f->host_sorted_coef + at, n, cols, err)
               : MQ_OK;
}

/* y += coef * expert(input) for the n choices from at on. */
static mq_status expert_block(mq_forward *f, mq_forward_mode mode, int layer, int expert,
                              const mq_mlp_weights *w, float *y, const moe_input *in, int64_t at,
                              int64_t n, const mq_tap *tap, mq_err *err)
{
    int64_t hidden = f->m->hidden;
    const int32_t *rows = f->sorted + at;
    float *x = f->part; /* free until the expert's output goes there */
    MQ_TRY(f->k->gather(f->dev, x, in->normed ? in->normed : in->x, rows, n, hidden, err));
    if (!in->normed)
        MQ_TRY(f->k->rmsnorm(f->dev, x, x, in->norm_weight, f->m->norm_eps, n, hidden, err));
    MQ_TRY(expert_tap(f, tap, MQ_TAP_EXPERT_IN, layer, expert, x, at, n, hidden, err));
    MQ_TRY(swiglu_mid(f, mode, x, w, n, err));
    MQ_TRY(expert_tap(f, tap, MQ_TAP_EXPERT_DOWN, layer, expert, f->mid, at, n, w->down.cols, err));
    MQ_TRY(mq_forward_linear(f, mode, f->part, f->mid, &w->down, n, err));
    return f->k->scatter_add(f->dev, y, f->part, rows, f->sorted_coef + at, n, hidden, err);
}

/* y [n, hidden] = the experts' weighted sum, one rank's share. */
static mq_status rank_experts(mq_forward *f, mq_forward_mode mode, int layer, int rank, float *y,
                              const moe_input *in, int64_t n, const mq_tap *tap, mq_err *err)
{
    MQ_TRY(f->k->gather(f->dev, y, f->zero_row, f->zero_index, n, f->m->hidden, err));
    for (int e = 0; e < f->m->n_experts; e++) {
        if (f->first[e] == f->first[e + 1])
            continue;
        mq_mlp_weights w;
        MQ_TRY(mq_store_expert(f->store, &w, layer, e, rank, err));
        for (int64_t at = f->first[e]; at < f->first[e + 1]; at += f->max_rows) {
            int64_t left = f->first[e + 1] - at;
            MQ_TRY(expert_block(f, mode, layer, e, &w, y, in, at,
                                left < f->max_rows ? left : f->max_rows, tap, err));
        }
        MQ_TRY(f->k->dev_sync(f->dev, err)); /* a streaming store reuses the weights' memory */
    }
    return MQ_OK;
}

/* f->y [n, hidden] = the experts' weighted sum of the held ranks, expert by expert. */
static mq_status moe_by_expert(mq_forward *f, mq_forward_mode mode, int layer,
                               const mq_layer_weights *w, const float *x, int64_t n,
                               const mq_tap *tap, mq_err *err)
{
    MQ_TRY(group_rows(f, n, err));
    f->n_distinct[layer] = 0;
    for (int e = 0; e < f->m->n_experts; e++)
        f->n_distinct[layer] += f->first[e] < f->first[e + 1];
    moe_input in = {n <= f->max_rows ? f->h : NULL, x, w->post_norm};
    for (int r = f->first_rank; r < f->first_rank + f->n_held; r++) {
        float *out = mq_forward_part(f, r, f->y, f->y_rank);
        MQ_TRY(rank_experts(f, mode, layer, r, out, &in, n, tap, err));
        MQ_TRY(mq_forward_keep_part(f, r, f->y, out, n * f->m->hidden, err));
    }
    return MQ_OK;
}

static mq_status moe(mq_forward *f, mq_forward_mode mode, int layer, const mq_layer_weights *w,
                     float *x, int64_t n, float *margin, const mq_tap *tap, mq_err *err)
{
    bool done = false;
    MQ_TRY(route_rows(f, mode, layer, w, x, n, margin, tap, err));
    if (mq_forward_may_group(f, mode, n, tap))
        MQ_TRY(mq_forward_group(f, &done, layer, n, err));
    if (!done)
        MQ_TRY(moe_by_expert(f, mode, layer, w, x, n, tap, err));
    MQ_TRY(mq_forward_add_ranks(f, f->y, n * f->m->hidden, err));
    return f->k->add(f->dev, x, f->y, n * f->m->hidden, err);
}

mq_status mq_forward_route(mq_forward *f, mq_forward_mode mode, int layer, int32_t *ids,
                           float *coef, const float *x, int64_t n, mq_err *err)
{
    assert(n >= 0 && n <= f->mlp_rows && f->m->is_moe[layer]);
    int64_t picks_bytes = n * f->m->n_experts_per_tok * 4;
    mq_layer_weights w;
    MQ_TRY(mq_store_layer(f->store, &w, layer, f->first_rank, err));
    MQ_TRY(route_rows(f, mode, layer, &w, x, n, NULL, NULL, err));
    MQ_TRY(f->k->download(f->dev, ids, f->route_ids, picks_bytes, err));
    MQ_TRY(f->k->download(f->dev, coef, f->route_coef, picks_bytes, err));
    return f->k->dev_sync(f->dev, err);
}

mq_status mq_forward_mlp(mq_forward *f, mq_forward_mode mode, int layer, float *x, int64_t n,
                         float *margin, const mq_tap *tap, mq_err *err)
{
    assert(n >= 0 && n <= f->mlp_rows);
    if (tap && f->n_ranks > 1)
        return mq_fail(err, MQ_E_ARG, "a tap with %d ranks, expected 1", f->n_ranks);
    mq_layer_weights w;
    MQ_TRY(mq_store_layer(f->store, &w, layer, f->first_rank, err));
    if (w.is_moe) {
        MQ_TRY(moe(f, mode, layer, &w, x, n, margin, tap, err));
    } else {
        for (int64_t i = 0; i < n; i += f->max_rows) {
            int64_t rows = n - i < f->max_rows ? n - i : f->max_rows;
            MQ_TRY(dense_block(f, mode, layer, x + i * f->m->hidden, i, rows, tap, err));
        }
    }
    return mq_forward_tap(f, tap, MQ_TAP_LAYER_OUT, layer, x, 0, n, f->m->hidden, err);
}
