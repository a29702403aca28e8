/* The decode step on a device: what it needs is checked and allocated once, its kernels are captured into a graph once;
 * a step then writes its ids and position and launches the graph.
 *
 * The input is written by a kernel in front of the graph, of which it is a parameter: the host waits for nothing, steps are
 * queued one behind the other. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/decode/step.cuh"
#include "kernels/cuda/graph_time.cuh"

namespace mq_cuda {
namespace decode {

/* ---- what is computed ---- */

static mq_status check_attention_of(const mq_model *m, const mq_decode_layer *layer, int l, mq_err *err)
{
    const mq_attn_weights *w = &layer->w.attn;
    MQ_TRY(check_linear(&w->q, err));
    MQ_TRY(check_linear(&w->k, err));
    MQ_TRY(check_linear(&w->v, err));
    MQ_TRY(check_linear(&w->o, err));
    return check_attention(&layer->kv, w->n_heads, mq_model_attn(m, l)->rotary_dims, err);
}

static mq_status check_experts_of(const mq_model *m, const mq_decode_layer *layer, mq_err *err)
{
    const mq_mlp_weights *first = &layer->experts[0];
    if (first->down.scheme != MQ_SCHEME_INT4 && first->down.scheme != MQ_SCHEME_MXFP4)
        return mq_fail(err, MQ_E_UNSUPPORTED, "experts in %s, expected int4 or mxfp4", mq_scheme_name(first->down.scheme));
    for (int e = 0; e < m->n_experts; e++) {
        const mq_mlp_weights *w = &layer->experts[e];
        if (!w->interleaved || w->gate_up.scheme != first->down.scheme || w->gate_up.group != first->down.group ||
            w->down.scheme != first->down.scheme || w->down.group != first->down.group)
            return mq_fail(err, MQ_E_UNSUPPORTED, "expert %d: another scheme or group than expert 0, expected one a layer", e);
    }
    MQ_TRY(check_router(&layer->w.router, m->n_experts_per_tok, err));
    mq_decode_expert_table t = {};
    t.group = first->down.group;
    t.hidden = m->hidden;
    t.width = first->down.cols;
    t.n_experts = m->n_experts;
    t.topk = m->n_experts_per_tok;
    return check_experts(&t, err);
}

static mq_status check_dense_of(const mq_mlp_weights *w, mq_err *err)
{
    if (w->interleaved)
        return mq_fail(err, MQ_E_UNSUPPORTED, "a dense MLP in packed units, expected rows");
    MQ_TRY(check_linear(&w->gate, err));
    MQ_TRY(check_linear(&w->up, err));
    return check_linear(&w->down, err);
}

static mq_status check_model(const mq_decode_model *d, mq_err *err)
{
    const mq_model *m = d->model;
    if (d->n_local != d->n_ranks && !d->loop_back && !d->exchange)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d of %d ranks on a device and no exchange with others", d->n_local, d->n_ranks);
    for (int r = 0; r < d->n_local; r++) {
        for (int l = 0; l < m->n_layers; l++) {
            const mq_decode_layer *layer = &d->ranks[r].layers[l];
            mq_status st = check_attention_of(m, layer, l, err);
            if (st == MQ_OK)
                st = layer->w.is_moe ? check_experts_of(m, layer, err) : check_dense_of(&layer->w.mlp, err);
            if (st != MQ_OK)
                return mq_wrap(err, st, "layer %d", l);
        }
        mq_status st = check_linear(&d->ranks[r].head, err);
        if (st != MQ_OK)
            return mq_wrap(err, st, "head");
    }
    return MQ_OK;
}

/* ---- memory ---- */

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Columns of a rank's q, k and v together, and of its heads. */
static int64_t qkv_cols(const mq_attn_geometry *g, int n_ranks)
{
    int64_t n_kv = most(g->n_kv_heads / n_ranks, 1);
    return (int64_t)g->n_heads / n_ranks * g->head_dim + n_kv * (g->head_dim + g->v_head_dim);
}

static int64_t heads_cols(const mq_attn_geometry *g, int n_ranks)
{
    return (int64_t)g->n_heads / n_ranks * g->v_head_dim;
}

/* The next n_bytes of the block; with base NULL only counted. */
template <class T> static void take(uint8_t *base, int64_t *used, T **out, int64_t n_items)
{
    *out = base ? (T *)(base + *used) : NULL;
    *used += (n_items * (int64_t)sizeof(T) + 255) / 256 * 256;
}

/* Give every array its place in base; returns the bytes in all. */
static int64_t lay_out(mq_decode *d, uint8_t *base, const mq_model *m, int n_ranks, int n_local, bool loop_back,
                       int n_captures, int64_t max_context)
{
    int64_t used = 0, hidden = m->hidden, slots = ROWS * (int64_t)m->n_experts_per_tok;
    int64_t dense = m->intermediate / n_ranks, width = m->moe_intermediate / n_ranks, room = 0;
    const mq_attn_geometry *kinds[] = {&m->full, &m->swa};
    for (const mq_attn_geometry *g : kinds)
        room = most(room, attention_bytes(g->n_heads / n_ranks, g->v_head_dim, g->window, max_context));
    if (m->n_experts > 0)
        room = most(room, router_bytes(m->n_experts, hidden));
    take(base, &used, &d->in, 1);
    take(base, &used, &d->x, ROWS * hidden);
    take(base, &used, &d->xn, ROWS * hidden);
    take(base, &used, &d->xn32, ROWS * hidden);
    take(base, &used, &d->part, (loop_back ? 1 : n_ranks) * ROWS * hidden);
    take(base, &used, &d->rope[0], ROWS * (int64_t)m->full.rotary_dims);
    take(base, &used, &d->rope[1], ROWS * (int64_t)m->swa.rotary_dims);
    take(base, &used, &d->qkv, ROWS * most(qkv_cols(&m->full, n_ranks), qkv_cols(&m->swa, n_ranks)));
    take(base, &used, &d->heads, ROWS * most(heads_cols(&m->full, n_ranks), heads_cols(&m->swa, n_ranks)));
    take(base, &used, &d->gate_up, ROWS * 2 * dense);
    take(base, &used, &d->mid, ROWS * dense);
    take(base, &used, &d->h, slots * width);
    take(base, &used, &d->done, slots + 1);
    take(base, &used, &d->plan.expert, slots);
    take(base, &used, &d->plan.slot, slots * ROWS);
    take(base, &used, &d->plan.coef, slots);
    take(base, &used, &d->n_active, m->n_layers);
    uint8_t *workspace;
    take(base, &used, &workspace, room);
    d->room = workspace;
    take(base, &used, &d->logits, ROWS * (int64_t)m->vocab);
    take(base, &used, &d->captures, n_captures * ROWS * hidden);
    take(base, &used, &d->tables, 2 * (int64_t)m->n_layers * n_local * m->n_experts);
    return used;
}

static int64_t step_bytes(const mq_model *m, int n_ranks, int n_local, int n_captures, int64_t max_context)
{
    mq_decode unused = {};
    return lay_out(&unused, NULL, m, n_ranks, n_local, false, n_captures, max_context);
}

static mq_status allocate_block(mq_decode *d, mq_err *err)
{
    const mq_decode_model *c = &d->model;
    int64_t n = lay_out(d, NULL, c->model, c->n_ranks, c->n_local, c->loop_back, c->n_captures, c->max_context);
    if (cudaMalloc(&d->block, (size_t)n) != cudaSuccess) {
        (void)cudaGetLastError();
        d->block = NULL;
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of memory (%lld bytes for the decode step)", d->dev->ordinal,
                       (long long)n);
    }
    (void)lay_out(d, (uint8_t *)d->block, c->model, c->n_ranks, c->n_local, c->loop_back, c->n_captures, c->max_context);
    MQ_TRY(check(d->dev, cudaMemsetAsync(d->block, 0, (size_t)n, d->dev->stream), "decode step", err));
    return check(d->dev, cudaStreamSynchronize(d->dev->stream), "decode step", err);
}

/* Where every expert lies, for kernels that learn on the device which ones they need. */
static mq_status upload_tables(mq_decode *d, mq_err *err)
{
    const mq_model *m = d->model.model;
    int64_t n = 2 * (int64_t)m->n_layers * d->model.n_local * m->n_experts, at = 0;
    if (n == 0)
        return MQ_OK;
    const void **host = (const void **)calloc((size_t)n, sizeof *host);
    if (!host)
        return mq_fail(err, MQ_E_NOMEM, "decode step: out of host memory");
    for (int l = 0; l < m->n_layers; l++)
        for (int r = 0; r < d->model.n_local; r++, at += 2 * m->n_experts) {
            const mq_decode_layer *layer = &d->model.ranks[r].layers[l];
            for (int e = 0; layer->w.is_moe && e < m->n_experts; e++) {
                host[at + e] = layer->experts[e].gate_up.data;
                host[at + m->n_experts + e] = layer->experts[e].down.data;
            }
        }
    cudaError_t e = cudaMemcpyAsync(d->tables, host, (size_t)n * sizeof *host, cudaMemcpyHostToDevice, d->dev->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(d->dev->stream);
    free(host);
    return check(d->dev, e, "decode step: addresses", err);
}

/* ---- life ---- */

static mq_status capture_graph(mq_decode *d, mq_err *err)
{
    cudaGraph_t graph = NULL;
    MQ_TRY(check(d->dev, cudaStreamBeginCapture(d->dev->stream, cudaStreamCaptureModeThreadLocal), "capture", err));
    mq_status st = queue_step(d, err);
    cudaError_t e = cudaStreamEndCapture(d->dev->stream, &graph);
    if (st == MQ_OK)
        st = check(d->dev, e, "capture", err);
    if (st == MQ_OK)
        st = check(d->dev, cudaGraphInstantiate(&d->graph, graph, 0), "graph", err);
    if (graph)
        (void)cudaGraphDestroy(graph);
    return st;
}

static void step_free(mq_decode *d)
{
    if (!d)
        return;
    (void)cudaSetDevice(d->dev->ordinal);
    (void)cudaStreamSynchronize(d->dev->stream);
    if (d->graph)
        (void)cudaGraphExecDestroy(d->graph);
    (void)cudaFree(d->block);
    free(d);
}

static mq_status prepare(mq_decode *d, mq_err *err)
{
    MQ_TRY(check(d->dev, cudaSetDevice(d->dev->ordinal), "decode step", err));
    MQ_TRY(allocate_block(d, err));
    MQ_TRY(upload_tables(d, err));
    return d->model.plain ? MQ_OK : capture_graph(d, err);
}

static mq_status step_create(mq_decode **out, mq_dev *dev, const mq_decode_model *model, mq_err *err)
{
    *out = NULL;
    MQ_TRY(check_model(model, err));
    mq_decode *d = (mq_decode *)calloc(1, sizeof *d);
    if (!d)
        return mq_fail(err, MQ_E_NOMEM, "decode step: out of host memory");
    d->dev = dev;
    d->model = *model;
    mq_status st = prepare(d, err);
    if (st != MQ_OK) {
        step_free(d);
        return st;
    }
    *out = d;
    return MQ_OK;
}

static __global__ void set_input_kernel(mq_decode_input *to, mq_decode_input value)
{
    if (threadIdx.x == 0)
        *to = value;
}

static mq_status step(mq_decode *d, const int32_t *ids, int n, int64_t pos0, mq_err *err)
{
    mq_dev *dev = d->dev;
    mq_decode_input in = {};
    in.pos0 = pos0;
    in.n = n;
    memcpy(in.ids, ids, (size_t)n * sizeof *ids);
    MQ_TRY(launch(dev, err, "decode step", set_input_kernel, dim3(1), 32, 0, d->in, in));
    if (!d->graph)
        return queue_step(d, err);
    return check(dev, cudaGraphLaunch(d->graph, dev->stream), "decode step", err);
}

static float *step_logits(const mq_decode *d)
{
    return d->logits;
}

static const float *step_capture(const mq_decode *d, int i)
{
    return d->captures + i * ROWS * (int64_t)d->model.model->hidden;
}

static mq_status distinct_experts(mq_decode *d, int32_t *out, mq_err *err)
{
    return download(d->dev, out, d->n_active, d->model.model->n_layers * (int64_t)sizeof *out, err);
}

/* ---- tables ---- */

static mq_status time_queued(mq_dev *dev, double *seconds, mq_queue *queue, void *arg, int n_launches, mq_err *err)
{
    return graph_time(dev, seconds, queue, arg, n_launches, false, err);
}

static constexpr mq_decode_parts parts_table()
{
    mq_decode_parts t = {};
    t.check_linear = check_linear;
    t.linear = linear;
    t.embed = embed;
    t.norm = norm;
    t.swiglu = swiglu;
    t.rope_table = rope_table;
    t.check_attention = check_attention;
    t.attention_bytes = attention_bytes;
    t.attention = attention;
    t.check_router = check_router;
    t.router_bytes = router_bytes;
    t.router = router;
    t.check_experts = check_experts;
    t.experts = experts;
    t.time = time_queued;
    return t;
}
static const mq_decode_parts parts = parts_table();

static constexpr mq_decode_ops ops_table()
{
    mq_decode_ops t = {};
    t.bytes = step_bytes;
    t.create = step_create;
    t.free = step_free;
    t.step = step;
    t.logits = step_logits;
    t.capture = step_capture;
    t.distinct_experts = distinct_experts;
    t.narrow = narrow;
    t.parts = &parts;
    return t;
}

} // namespace decode

const mq_decode_ops decode_ops = decode::ops_table();

} // namespace mq_cuda
