/* The halves of a layer for all calibration tokens, span by span, and what the layer's output lost.
 *
 * The spans are part of the result: rows that meet in one call share blocks of matrix products.  With the same spans, a forward
 * pass over the finished model gives the same residual stream, bit for bit. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "src/units.h"
#include "tools/calibrate_state.h"

/* The residual stream of a span in front of the layer. */
static mq_status load_span(mq_calibration *c, int64_t row0, int64_t n, mq_err *err)
{
    if (c->before)
        return mq_stage_read(&c->stage, c->x, c->before, row0, n, err);
    return mq_forward_embed(c->forward, c->x, c->corpus.ids + row0, n, err);
}

mq_status mq_calibrate_attention(mq_calibration *c, mq_err *err)
{
    int64_t window = c->corpus.window;
    int topk = c->m->n_experts_per_tok;
    bool is_moe = c->m->is_moe[c->layer], routed = is_moe && c->job->expert_scheme[c->layer] == MQ_SCHEME_INT4;
    for (int64_t w = 0; w < c->corpus.n_windows; w += c->span_windows) {
        int64_t n = mq_span_rows(c, w), row0 = w * window;
        MQ_TRY(mq_calibration_check_stop(c, err));
        MQ_TRY(load_span(c, row0, n, err));
        MQ_TRY(mq_forward_attention_windows(c->forward, MQ_FORWARD_BATCH, c->layer, c->x, n / window, window, c->cache,
                                            NULL, err));
        if (!is_moe)
            MQ_TRY(mq_forward_mlp(c->forward, MQ_FORWARD_BATCH, c->layer, c->x, n, NULL, NULL, err));
        if (routed)
            MQ_TRY(mq_forward_route(c->forward, MQ_FORWARD_BATCH, c->layer, c->route_ids + row0 * topk,
                                    c->route_coef + row0 * topk, c->x, n, err));
        if (routed && c->streams)
            MQ_TRY(c->k->copy(c->dev, c->streams[0] + row0 * c->m->hidden, c->x,
                              n * c->m->hidden * (int64_t)sizeof(float), err));
        MQ_TRY(mq_stage_write(&c->stage, c->mid, c->x, row0, n, err));
        mq_progress_add(c->progress, n);
    }
    return MQ_OK;
}

/* Lend an expert of c->codes in dev's memory (mq_store_expert_fn); ctx is the calibration. */
static mq_status lend_codes(void *ctx, mq_mlp_weights *out, int layer, int expert, mq_err *err)
{
    mq_calibration *c = ctx;
    MQ_TRY(mq_codes_lend(c->codes, out, layer, expert, err));
    if (c->stage.on_host)
        return MQ_OK;
    /* Both matrices lie in one piece. */
    const uint8_t *gate_up = out->gate_up.data, *down = out->down.data;
    int64_t n_bytes = down - gate_up + mq_units_bytes(out->down.rows, out->down.cols, out->down.group);
    MQ_TRY(c->k->upload(c->dev, c->device_codes, gate_up, n_bytes, err));
    out->gate_up.data = c->device_codes;
    out->down.data = c->device_codes + (down - gate_up);
    return MQ_OK;
}

mq_status mq_calibrate_mlp(mq_calibration *c, mq_err *err)
{
    mq_status st = MQ_OK;
    mq_store_set_experts(c->store, lend_codes, c);
    for (int64_t w = 0; st == MQ_OK && w < c->corpus.n_windows; w += c->span_windows) {
        int64_t n = mq_span_rows(c, w), row0 = w * c->corpus.window;
        st = mq_calibration_check_stop(c, err);
        if (st == MQ_OK)
            st = mq_stage_read(&c->stage, c->x, c->mid, row0, n, err);
        if (st == MQ_OK)
            st = mq_forward_mlp(c->forward, MQ_FORWARD_BATCH, c->layer, c->x, n, NULL, NULL, err);
        if (st == MQ_OK)
            st = mq_stage_write(&c->stage, c->mid, c->x, row0, n, err);
        mq_progress_add(c->progress, 4 * n);
    }
    mq_store_set_experts(c->store, NULL, NULL);
    return st;
}

/* ---- Loss ---- */

/* Sums over pairs (q, s): what rel_error and cosine are made of. */
typedef struct pair_sums {
    double diff2, q2, s2, qs;
} pair_sums;

static void add_pair(pair_sums *p, double q, double s)
{
    p->diff2 += (q - s) * (q - s);
    p->q2 += q * q;
    p->s2 += s * s;
    p->qs += q * s;
}

static double rel_error(const pair_sums *p)
{
    return p->s2 > 0 ? sqrt(p->diff2 / p->s2) : 0.0;
}

static double cosine(const pair_sums *p)
{
    double norms = sqrt(p->q2) * sqrt(p->s2);
    return norms > 0 ? p->qs / norms : 1.0;
}

static void compare(mq_output_loss *loss, const float *in, const float *q, const float *s, int64_t n_rows, int64_t cols)
{
    pair_sums moe = {0, 0, 0, 0}, out = {0, 0, 0, 0};
    for (int64_t i = 0; i < n_rows * cols; i++) {
        add_pair(&moe, (double)q[i] - (double)in[i], (double)s[i] - (double)in[i]);
        add_pair(&out, (double)q[i], (double)s[i]);
    }
    *loss = (mq_output_loss){.measured = true,
                             .n_rows = n_rows,
                             .moe_rel_error = rel_error(&moe),
                             .moe_cosine = cosine(&moe),
                             .output_rel_error = rel_error(&out),
                             .output_cosine = cosine(&out)};
}

/* out = what the MoE half makes of in, both [n, hidden] host memory; c->x is in between. */
static mq_status push_rows(mq_calibration *c, float *out, const float *in, int64_t n, mq_err *err)
{
    int64_t n_bytes = n * c->m->hidden * (int64_t)sizeof *in;
    MQ_TRY(c->k->upload(c->dev, c->x, in, n_bytes, err));
    MQ_TRY(mq_forward_mlp(c->forward, MQ_FORWARD_BATCH, c->layer, c->x, n, NULL, NULL, err));
    MQ_TRY(c->k->dev_sync(c->dev, err));
    return c->k->download(c->dev, out, c->x, n_bytes, err);
}

/* Rows spread evenly over all windows, through codes and through the source's experts. */
static mq_status measure(mq_calibration *c, float *in, float *q, float *s, int64_t n, mq_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t row = (int32_t)((2 * i + 1) * c->n_rows / (2 * n));
        MQ_TRY(mq_hidden_gather(c->mid, in + i * c->m->hidden, &row, 1, err));
    }
    mq_store_set_experts(c->store, lend_codes, c);
    mq_status st = push_rows(c, q, in, n, err);
    mq_store_set_experts(c->store, NULL, NULL);
    if (st == MQ_OK)
        st = push_rows(c, s, in, n, err);
    if (st == MQ_OK)
        compare(&c->account.loss, in, q, s, n, c->m->hidden);
    const mq_output_loss *l = &c->account.loss;
    if (st != MQ_OK || (isfinite(l->moe_rel_error) && isfinite(l->moe_cosine) && isfinite(l->output_rel_error) &&
                        isfinite(l->output_cosine)))
        return st;
    return mq_calibration_blame_layer(
        c, mq_fail(err, MQ_E_NUMERIC, "what its experts put out overflows on %lld calibration tokens", (long long)n), err);
}

mq_status mq_calibrate_loss(mq_calibration *c, mq_err *err)
{
    int64_t n = c->n_rows < MQ_CALIB_REPORT_ROWS ? c->n_rows : MQ_CALIB_REPORT_ROWS;
    assert(n <= mq_span_rows(c, 0)); /* so they fit into c->x */
    int64_t count = n * c->m->hidden;
    float *rows = malloc((size_t)(3 * count) * sizeof *rows);
    if (!rows)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = measure(c, rows, rows + count, rows + 2 * count, n, err);
    free(rows);
    return st;
}
