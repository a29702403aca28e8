/* The decode step as a sequence of kernels: embedding, layers, head.
 *
 * Ranks that share the device run one after another; what each adds to the residual stream stands in a part of its own,
 * an exchange brings the parts of ranks on other devices, and the norm that follows adds all of them in rank order.
 * Nothing here depends on the number of rows. */
#include "kernels/cuda/decode/step.cuh"

namespace mq_cuda {
namespace decode {

/* x += what the ranks left in part (unless nothing has), and its norm. */
static mq_status join_ranks(mq_decode *d, bool has_parts, const float *weight, bool wants_f32, float *capture, mq_err *err)
{
    const mq_model *m = d->model.model;
    mq_decode_norm job = {};
    job.x = d->x;
    job.part = has_parts ? d->part : NULL;
    job.n_parts = has_parts ? d->model.n_ranks : 0;
    job.stride_parts = d->model.loop_back ? 0 : ROWS * (int64_t)m->hidden;
    job.weight = weight;
    job.xn = d->xn;
    job.xn32 = wants_f32 ? d->xn32 : NULL;
    job.capture = capture;
    job.eps = m->norm_eps;
    job.hidden = m->hidden;
    return norm(d->dev, &job, err);
}

/* Where a local rank leaves what it adds to the residual stream. */
static float *part_of(const mq_decode *d, int local)
{
    return d->part + (d->model.loop_back ? 0 : (d->model.first_rank + local) * ROWS * (int64_t)d->model.model->hidden);
}

/* After the local ranks have left their parts: those of ranks on other devices. */
static mq_status exchange_parts(mq_decode *d, mq_err *err)
{
    const mq_decode_model *c = &d->model;
    if (!c->exchange)
        return MQ_OK;
    return c->exchange_ops->gather(c->exchange, c->exchange_way, d->part, part_of(d, 0), &d->in->n, err);
}

/* The residual stream after layer is wanted: where to. */
static float *capture_after(const mq_decode *d, int layer)
{
    for (int i = 0; i < d->model.n_captures; i++)
        if (d->model.capture_layers[i] == layer)
            return d->captures + i * ROWS * (int64_t)d->model.model->hidden;
    return NULL;
}

static mq_status attention_half(mq_decode *d, int l, int local, mq_err *err)
{
    const mq_attn_geometry *g = mq_model_attn(d->model.model, l);
    const mq_decode_layer *layer = &d->model.ranks[local].layers[l];
    const mq_attn_weights *w = &layer->w.attn;
    int64_t stride = w->q.rows + w->k.rows + w->v.rows;
    float *q = d->qkv, *k = q + w->q.rows, *v = k + w->k.rows;
    const mq_decode_linear projections[] = {{w->q, q, stride}, {w->k, k, stride}, {w->v, v, stride}};
    MQ_TRY(linear(d->dev, projections, 3, d->xn, err));

    mq_decode_attention job = {};
    job.q = q;
    job.k = k;
    job.v = v;
    job.q_stride = job.k_stride = job.v_stride = stride;
    job.kv = layer->kv;
    job.sink = w->sink;
    job.rope = d->rope[g == &d->model.model->swa];
    job.n_heads = w->n_heads;
    job.rotary_dims = g->rotary_dims;
    job.window = g->window;
    job.v_scale = (float)d->model.model->value_scale;
    job.in = d->in;
    job.out = d->heads;
    job.workspace = d->room;
    job.max_context = d->model.max_context;
    MQ_TRY(attention(d->dev, &job, err));

    const mq_decode_linear out = {w->o, part_of(d, local), d->model.model->hidden};
    return linear(d->dev, &out, 1, d->heads, err);
}

static mq_status dense_half(mq_decode *d, int l, int local, mq_err *err)
{
    const mq_mlp_weights *w = &d->model.ranks[local].layers[l].w.mlp;
    int64_t width = w->gate.rows;
    float *up = d->gate_up + ROWS * width;
    const mq_decode_linear in[] = {{w->gate, d->gate_up, width}, {w->up, up, width}};
    MQ_TRY(linear(d->dev, in, 2, d->xn, err));
    MQ_TRY(swiglu(d->dev, d->mid, d->gate_up, up, width, err));
    const mq_decode_linear out = {w->down, part_of(d, local), d->model.model->hidden};
    return linear(d->dev, &out, 1, d->mid, err);
}

static mq_decode_plan plan_of(const mq_decode *d, int l)
{
    mq_decode_plan plan = d->plan;
    plan.n = d->n_active + l;
    return plan;
}

static mq_status choose_experts(mq_decode *d, int l, mq_err *err)
{
    const mq_model *m = d->model.model;
    const mq_layer_weights *w = &d->model.ranks[0].layers[l].w;
    mq_decode_router job = {};
    job.x = d->xn32;
    job.w = w->router;
    job.bias = w->router_bias;
    job.topk = m->n_experts_per_tok;
    job.norm = m->norm_topk_prob;
    job.scaling = (float)m->routed_scaling;
    job.in = d->in;
    job.plan = plan_of(d, l);
    job.workspace = d->room;
    return router(d->dev, &job, err);
}

static mq_status expert_half(mq_decode *d, int l, int local, mq_err *err)
{
    const mq_model *m = d->model.model;
    const uint8_t *const *table = d->tables + ((int64_t)l * d->model.n_local + local) * 2 * m->n_experts;
    const mq_mlp_weights *first = &d->model.ranks[local].layers[l].experts[0];
    mq_decode_experts job = {};
    job.experts.gate_up = table;
    job.experts.down = table + m->n_experts;
    job.experts.group = first->down.group;
    job.experts.hidden = m->hidden;
    job.experts.width = first->down.cols;
    job.experts.n_experts = m->n_experts;
    job.experts.topk = m->n_experts_per_tok;
    job.plan = plan_of(d, l);
    job.x = d->xn;
    job.h = d->h;
    job.done = d->done;
    job.y = part_of(d, local);
    return experts(d->dev, &job, err);
}

static mq_status queue_layer(mq_decode *d, int l, mq_err *err)
{
    const mq_layer_weights *w = &d->model.ranks[0].layers[l].w;
    bool is_first = l == 0;
    MQ_TRY(join_ranks(d, !is_first, w->input_norm, false, is_first ? NULL : capture_after(d, l - 1), err));
    for (int r = 0; r < d->model.n_local; r++)
        MQ_TRY(attention_half(d, l, r, err));
    MQ_TRY(exchange_parts(d, err));
    MQ_TRY(join_ranks(d, true, w->post_norm, w->is_moe, NULL, err));
    if (w->is_moe)
        MQ_TRY(choose_experts(d, l, err));
    for (int r = 0; r < d->model.n_local; r++)
        MQ_TRY((w->is_moe ? expert_half : dense_half)(d, l, r, err));
    return exchange_parts(d, err);
}

mq_status queue_step(mq_decode *d, mq_err *err)
{
    const mq_model *m = d->model.model;
    MQ_TRY(rope_table(d->dev, d->rope[0], m->full.rotary_dims, m->full.rope_theta, d->in, err));
    MQ_TRY(rope_table(d->dev, d->rope[1], m->swa.rotary_dims, m->swa.rope_theta, d->in, err));
    MQ_TRY(embed(d->dev, d->x, &d->model.embedding, d->in, err));
    for (int l = 0; l < m->n_layers; l++)
        MQ_TRY(queue_layer(d, l, err));
    MQ_TRY(join_ranks(d, true, d->model.final_norm, false, capture_after(d, m->n_layers - 1), err));
    for (int r = 0; r < d->model.n_local; r++) {
        const mq_matrix *head = &d->model.ranks[r].head;
        const mq_decode_linear job = {*head, d->logits + (d->model.first_rank + r) * head->rows, m->vocab};
        MQ_TRY(linear(d->dev, &job, 1, d->xn, err));
    }
    return MQ_OK;
}

} // namespace decode
} // namespace mq_cuda
