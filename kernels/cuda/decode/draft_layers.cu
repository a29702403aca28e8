/* The drafter's step as a sequence of kernels: context of the committed rows, the block through the layers, the best tokens.
 *
 * Ranks as in step_layers.cu: what each adds stands in a part of its own, an exchange brings those of other devices, the norm that
 * follows adds all in rank order.  fc is cut by rows: a rank's part has its rows and zeros, so their sum is the whole product;
 * where every rank lives here it is computed at once, with the same bits. */
#include "kernels/cuda/decode/draft.cuh"

namespace mq_cuda {
namespace decode {

static bool is_whole(const mq_draft_step *d)
{
    return d->model.n_local == d->model.n_ranks;
}

static int64_t part_stride(const mq_draft_step *d)
{
    return d->model.loop_back ? 0 : ROWS * (int64_t)d->model.model->hidden;
}

/* Where a local rank leaves its contribution in parts. */
static float *part_of(const mq_draft_step *d, float *parts, int local)
{
    return parts + (d->model.first_rank + local) * part_stride(d);
}

static mq_status exchange_parts(mq_draft_step *d, float *parts, const int32_t *n_rows, mq_err *err)
{
    const mq_draft_step_model *c = &d->model;
    if (!c->exchange)
        return MQ_OK;
    return c->exchange_ops->gather(c->exchange, c->exchange_way, parts, part_of(d, parts, 0), n_rows, err);
}

static mq_status norm_of(mq_draft_step *d, float *x, const float *parts, const float *weight, uint16_t *xn, mq_err *err)
{
    const mq_draft_model *m = d->model.model;
    mq_decode_norm job = {};
    job.x = x;
    job.part = parts;
    job.n_parts = parts ? d->model.n_ranks : 0;
    job.stride_parts = part_stride(d);
    job.weight = weight;
    job.xn = xn;
    job.eps = m->norm_eps;
    job.hidden = m->hidden;
    return norm(d->dev, &job, err);
}

/* ---- context ---- */

static mq_status begin(mq_draft_step *d, mq_err *err)
{
    draft_begin job = {};
    job.h = d->heads;
    job.embedding = d->model.embedding;
    job.mask = d->model.shared.mask;
    job.in = d->in;
    job.wide = d->wide;
    job.context = d->context;
    job.x = d->x;
    job.cos_sin = d->cos_sin;
    job.hidden = d->model.model->hidden;
    job.n_taps = d->model.model->n_taps;
    return begin_draft(d->dev, &job, err);
}

/* Rows of fc that rank computes, as a matrix. */
static mq_matrix fc_rows(const mq_draft_step *d, int rank, int64_t *first)
{
    mq_matrix w = d->model.shared.fc;
    int64_t element = w.scheme == MQ_SCHEME_F32 ? 4 : 2, rows = w.rows;
    *first = rows * rank / d->model.n_ranks;
    w.rows = rows * (rank + 1) / d->model.n_ranks - *first;
    w.data = (const uint8_t *)w.data + *first * w.cols * element;
    return w;
}

/* hidden_norm(fc(features)) to xc. */
static mq_status make_context(mq_draft_step *d, mq_err *err)
{
    const mq_draft_weights *w = &d->model.shared;
    int64_t hidden = d->model.model->hidden;
    if (is_whole(d)) {
        const mq_decode_linear job = {w->fc, d->context, hidden};
        MQ_TRY(linear(d->dev, &job, 1, d->wide, err));
        return norm_of(d, d->context, NULL, w->hidden_norm, d->xc, err);
    }
    for (int r = 0; r < d->model.n_local; r++) {
        int64_t first;
        mq_decode_linear job = {};
        job.w = fc_rows(d, d->model.first_rank + r, &first);
        job.y = part_of(d, d->fc_part, r) + first;
        job.stride = hidden;
        MQ_TRY(linear(d->dev, &job, 1, d->wide, err));
    }
    MQ_TRY(exchange_parts(d, d->fc_part, &d->in->n, err));
    return norm_of(d, d->context, d->fc_part, w->hidden_norm, d->xc, err);
}

/* Keys and values of the context in all layers, as many matrices at a time as a launch takes. */
static mq_status project_context(mq_draft_step *d, mq_err *err)
{
    const draft_heads *h = &d->heads;
    int n_layers = d->model.model->n_layers, n_rings = n_layers * d->model.n_local, n = 0;
    int64_t k_cols = (int64_t)h->n_kv_heads * h->dim, cols = k_cols + (int64_t)h->n_kv_heads * h->v_dim;
    mq_decode_linear parts[MQ_DECODE_MAX_PARTS];
    static_assert(MQ_DECODE_MAX_PARTS % 2 == 0, "keys and values of a ring go together");
    for (int i = 0; i < n_rings; i++) {
        const mq_attn_weights *w = &d->model.ranks[i % d->model.n_local].layers[i / d->model.n_local].w.layer.attn;
        parts[n++] = mq_decode_linear{w->k, d->kv + i * cols, n_rings * cols};
        parts[n++] = mq_decode_linear{w->v, d->kv + i * cols + k_cols, n_rings * cols};
        if (n < MQ_DECODE_MAX_PARTS && i + 1 < n_rings)
            continue;
        MQ_TRY(linear(d->dev, parts, n, d->xc, err));
        n = 0;
    }
    draft_store job = {};
    job.h = *h;
    job.rings = d->rings;
    job.n_rings = n_rings;
    job.kv = d->kv;
    job.cos_sin = d->cos_sin;
    job.in = d->in;
    return store_context(d->dev, &job, err);
}

mq_status queue_commit(mq_draft_step *d, mq_err *err)
{
    MQ_TRY(begin(d, err));
    MQ_TRY(make_context(d, err));
    return project_context(d, err);
}

/* ---- block ---- */

static mq_status attention_half(mq_draft_step *d, int l, int local, mq_err *err)
{
    const mq_draft_step_layer *layer = &d->model.ranks[local].layers[l];
    const mq_attn_weights *w = &layer->w.layer.attn;
    draft_attention job = {};
    job.h = d->heads;
    job.stride = w->q.rows + w->k.rows + w->v.rows;
    float *k = d->qkv + w->q.rows, *v = k + w->k.rows;
    const mq_decode_linear projections[] = {{w->q, d->qkv, job.stride}, {w->k, k, job.stride}, {w->v, v, job.stride}};
    MQ_TRY(linear(d->dev, projections, 3, d->xn, err));
    job.q = d->qkv;
    job.k = k;
    job.v = v;
    job.ring = draft_ring{layer->kv.k, layer->kv.v, layer->w.k_norm};
    job.q_norm = layer->w.q_norm;
    job.sink = w->sink;
    job.cos_sin = d->cos_sin;
    job.in = d->in;
    job.value = d->value;
    job.state = d->state;
    job.out = d->attended;
    MQ_TRY(attend_block(d->dev, &job, err));
    const mq_decode_linear out = {w->o, part_of(d, d->part, local), d->model.model->hidden};
    return linear(d->dev, &out, 1, d->attended, err);
}

static mq_status mlp_half(mq_draft_step *d, int l, int local, mq_err *err)
{
    const mq_mlp_weights *w = &d->model.ranks[local].layers[l].w.layer.mlp;
    int64_t width = w->gate.rows;
    float *up = d->gate_up + ROWS * width;
    const mq_decode_linear in[] = {{w->gate, d->gate_up, width}, {w->up, up, width}};
    MQ_TRY(linear(d->dev, in, 2, d->xn, err));
    MQ_TRY(swiglu(d->dev, d->mid, d->gate_up, up, width, err));
    const mq_decode_linear out = {w->down, part_of(d, d->part, local), d->model.model->hidden};
    return linear(d->dev, &out, 1, d->mid, err);
}

static mq_status queue_layer(mq_draft_step *d, int l, mq_err *err)
{
    const mq_layer_weights *w = &d->model.ranks[0].layers[l].w.layer;
    MQ_TRY(norm_of(d, d->x, l ? d->part : NULL, w->input_norm, d->xn, err));
    for (int r = 0; r < d->model.n_local; r++)
        MQ_TRY(attention_half(d, l, r, err));
    MQ_TRY(exchange_parts(d, d->part, &d->in->n_block, err));
    MQ_TRY(norm_of(d, d->x, d->part, w->post_norm, d->xn, err));
    for (int r = 0; r < d->model.n_local; r++)
        MQ_TRY(mlp_half(d, l, r, err));
    return exchange_parts(d, d->part, &d->in->n_block, err);
}

/* The best tokens of a rank's ids, then of all ranks: their entries take the place of contributions. */
static mq_status choose(mq_draft_step *d, mq_err *err)
{
    const mq_draft_step_model *c = &d->model;
    int64_t hidden = c->model->hidden;
    bool is_alone = c->n_ranks == 1 || c->loop_back;
    for (int r = 0; r < c->n_local; r++) {
        const mq_matrix *head = &c->ranks[r].head;
        const mq_decode_linear job = {*head, d->logits, head->rows};
        int64_t n = draft_entries(head->rows);
        MQ_TRY(linear(d->dev, &job, 1, d->xn, err));
        MQ_TRY(best_of_logits(d->dev, d->entries, d->logits, head->rows, (c->first_rank + r) * head->rows, err));
        MQ_TRY(join_best(d->dev, is_alone ? NULL : part_of(d, d->part, r), hidden, d->out, &d->entries->max, n, 3, 3 * n, err));
    }
    if (is_alone)
        return MQ_OK;
    MQ_TRY(exchange_parts(d, d->part, &d->in->n_block, err));
    return join_best(d->dev, NULL, 0, d->out, d->part, c->n_ranks, ROWS * hidden, hidden, err);
}

mq_status queue_proposal(mq_draft_step *d, mq_err *err)
{
    MQ_TRY(queue_commit(d, err));
    for (int l = 0; l < d->model.model->n_layers; l++)
        MQ_TRY(queue_layer(d, l, err));
    MQ_TRY(norm_of(d, d->x, d->part, d->model.shared.norm, d->xn, err));
    return choose(d, err);
}

} // namespace decode
} // namespace mq_cuda
