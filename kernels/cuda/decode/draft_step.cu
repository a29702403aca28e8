/* The drafter's step on a device: checked and allocated once, its kernels captured into two graphs, one for commits alone and
 * one for proposals.  A proposal is an upload of its input, a launch and a download; the host waits once, for the last. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/decode/draft.cuh"
#include "kernels/cuda/graph_time.cuh"

namespace mq_cuda {
namespace decode {

/* ---- what is computed ---- */

static mq_status check_layer(const mq_draft_step_layer *layer, const mq_draft_step_layer *first, mq_err *err)
{
    const mq_layer_weights *w = &layer->w.layer;
    if (w->is_moe || w->mlp.interleaved)
        return mq_fail(err, MQ_E_UNSUPPORTED, "an MLP of experts or in packed units, expected a dense one in rows");
    if (w->attn.n_heads != first->w.layer.attn.n_heads || w->attn.n_kv_heads != first->w.layer.attn.n_kv_heads)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d heads on %d key heads, expected %d on %d as in the first layer",
                       w->attn.n_heads, w->attn.n_kv_heads, first->w.layer.attn.n_heads, first->w.layer.attn.n_kv_heads);
    const mq_matrix *all[] = {&w->attn.q, &w->attn.k, &w->attn.v, &w->attn.o, &w->mlp.gate, &w->mlp.up, &w->mlp.down};
    for (const mq_matrix *m : all)
        MQ_TRY(check_linear(m, err));
    return MQ_OK;
}

static mq_status check_shared(const mq_draft_step_model *c, mq_err *err)
{
    mq_scheme s = c->shared.fc.scheme;
    if (c->n_local != c->n_ranks && !c->loop_back && !c->exchange)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%d of %d ranks on a device and no exchange with others", c->n_local, c->n_ranks);
    if (c->n_local != c->n_ranks && s != MQ_SCHEME_BF16 && s != MQ_SCHEME_F16 && s != MQ_SCHEME_F32)
        return mq_fail(err, MQ_E_UNSUPPORTED, "fc in %s, ranks cut bf16, f16 and f32", mq_scheme_name(s));
    if (c->vocab >= 1 << 24)
        return mq_fail(err, MQ_E_UNSUPPORTED, "a vocabulary of %d, the draft step computes less than 2^24", c->vocab);
    if (c->model->hidden % 4)
        return mq_fail(err, MQ_E_UNSUPPORTED, "a hidden size of %d, the draft step computes multiples of 4", c->model->hidden);
    return mq_wrap(err, check_linear(&c->shared.fc, err), "fc");
}

static mq_status check_model(const mq_draft_step *d, mq_err *err)
{
    const mq_draft_step_model *c = &d->model;
    MQ_TRY(check_shared(c, err));
    MQ_TRY(check_draft_heads(&d->heads, err));
    for (int r = 0; r < c->n_local; r++) {
        for (int l = 0; l < c->model->n_layers; l++) {
            mq_status st = check_layer(&c->ranks[r].layers[l], &c->ranks[0].layers[0], err);
            if (st != MQ_OK)
                return mq_wrap(err, st, "layer %d", l);
        }
        mq_status st = check_linear(&c->ranks[r].head, err);
        if (st != MQ_OK)
            return mq_wrap(err, st, "head");
    }
    return MQ_OK;
}

static int at_least_one(int n)
{
    return n > 1 ? n : 1;
}

/* A rank's share, for sizes. */
static draft_heads heads_of(const mq_draft_model *m, int n_ranks)
{
    draft_heads h = {};
    h.n_heads = m->attn.n_heads / n_ranks;
    h.n_kv_heads = at_least_one(m->attn.n_kv_heads / n_ranks);
    h.dim = m->attn.head_dim;
    h.v_dim = m->attn.v_head_dim;
    h.half = m->attn.rotary_dims / 2;
    h.window = m->attn.window;
    h.block = m->block_size;
    h.v_scale = (float)m->value_scale;
    h.theta = m->attn.rope_theta;
    h.eps = m->norm_eps;
    return h;
}

/* ---- memory ---- */

/* The next n_items of the block; with base NULL only counted. */
template <class T> static void take(uint8_t *base, int64_t *used, T **out, int64_t n_items)
{
    *out = base ? (T *)(base + *used) : NULL;
    *used += (n_items * (int64_t)sizeof(T) + 255) / 256 * 256;
}

/* Give every array its place in base; returns the bytes in all. */
static int64_t lay_out(mq_draft_step *d, uint8_t *base, const draft_heads *h, const mq_draft_model *m, int vocab, int n_ranks,
                       int n_local, bool loop_back)
{
    int64_t used = 0, hidden = m->hidden, n_parts = loop_back ? 1 : n_ranks, n_rings = (int64_t)m->n_layers * n_local;
    int64_t kv = (int64_t)h->n_kv_heads * (h->dim + h->v_dim), heads = h->n_heads, width = m->intermediate / n_ranks;
    int64_t pairs = draft_chunks(h->window, h->block) * heads * ROWS;
    take(base, &used, &d->in, 1);
    take(base, &used, &d->out, 1);
    take(base, &used, &d->wide, ROWS * hidden * m->n_taps);
    take(base, &used, &d->context, ROWS * hidden);
    take(base, &used, &d->fc_part, n_local == n_ranks ? 0 : n_parts * ROWS * hidden);
    take(base, &used, &d->xc, ROWS * hidden);
    take(base, &used, &d->kv, ROWS * n_rings * kv);
    take(base, &used, &d->x, ROWS * hidden);
    take(base, &used, &d->xn, ROWS * hidden);
    take(base, &used, &d->part, n_parts * ROWS * hidden);
    take(base, &used, &d->qkv, ROWS * (heads * h->dim + kv));
    take(base, &used, &d->attended, ROWS * heads * h->v_dim);
    take(base, &used, &d->gate_up, ROWS * 2 * width);
    take(base, &used, &d->mid, ROWS * width);
    take(base, &used, &d->cos_sin, 2 * ROWS * 2 * (int64_t)h->half);
    take(base, &used, &d->value, pairs * h->v_dim);
    take(base, &used, &d->state, pairs * 2);
    take(base, &used, &d->logits, ROWS * (int64_t)(vocab / n_ranks));
    take(base, &used, &d->entries, ROWS * draft_entries(vocab / n_ranks));
    take(base, &used, &d->rings, n_rings);
    return used;
}

static int64_t step_bytes(const mq_draft_model *m, int vocab, int n_ranks, int n_local)
{
    mq_draft_step unused = {};
    draft_heads h = heads_of(m, n_ranks);
    return lay_out(&unused, NULL, &h, m, vocab, n_ranks, n_local, false);
}

static mq_status allocate_block(mq_draft_step *d, mq_err *err)
{
    const mq_draft_step_model *c = &d->model;
    int64_t n = lay_out(d, NULL, &d->heads, c->model, c->vocab, c->n_ranks, c->n_local, c->loop_back);
    if (cudaMalloc(&d->block, (size_t)n) != cudaSuccess) {
        (void)cudaGetLastError();
        d->block = NULL;
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of memory (%lld bytes for the draft step)", d->dev->ordinal,
                       (long long)n);
    }
    (void)lay_out(d, (uint8_t *)d->block, &d->heads, c->model, c->vocab, c->n_ranks, c->n_local, c->loop_back);
    MQ_TRY(check(d->dev, cudaMemsetAsync(d->block, 0, (size_t)n, d->dev->stream), "draft step", err));
    return check(d->dev, cudaStreamSynchronize(d->dev->stream), "draft step", err);
}

static mq_status upload_rings(mq_draft_step *d, mq_err *err)
{
    int n_layers = d->model.model->n_layers, n_local = d->model.n_local;
    size_t n = (size_t)n_layers * (size_t)n_local;
    draft_ring *host = (draft_ring *)calloc(n, sizeof *host);
    if (!host)
        return mq_fail(err, MQ_E_NOMEM, "draft step: out of host memory");
    for (int l = 0; l < n_layers; l++)
        for (int r = 0; r < n_local; r++) {
            const mq_draft_step_layer *layer = &d->model.ranks[r].layers[l];
            host[l * n_local + r] = draft_ring{layer->kv.k, layer->kv.v, layer->w.k_norm};
        }
    cudaError_t e = cudaMemcpyAsync(d->rings, host, n * sizeof *host, cudaMemcpyHostToDevice, d->dev->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(d->dev->stream);
    free(host);
    return check(d->dev, e, "draft step: rings", err);
}

/* ---- life ---- */

static mq_status capture_graph(mq_draft_step *d, cudaGraphExec_t *out, mq_status (*queue)(mq_draft_step *, mq_err *), mq_err *err)
{
    cudaGraph_t graph = NULL;
    MQ_TRY(check(d->dev, cudaStreamBeginCapture(d->dev->stream, cudaStreamCaptureModeThreadLocal), "capture", err));
    mq_status st = queue(d, err);
    cudaError_t e = cudaStreamEndCapture(d->dev->stream, &graph);
    if (st == MQ_OK)
        st = check(d->dev, e, "capture", err);
    if (st == MQ_OK)
        st = check(d->dev, cudaGraphInstantiate(out, graph, 0), "graph", err);
    if (graph)
        (void)cudaGraphDestroy(graph);
    return st;
}

static void draft_free(mq_draft_step *d)
{
    if (!d)
        return;
    (void)cudaSetDevice(d->dev->ordinal);
    (void)cudaStreamSynchronize(d->dev->stream);
    if (d->commit_graph)
        (void)cudaGraphExecDestroy(d->commit_graph);
    if (d->propose_graph)
        (void)cudaGraphExecDestroy(d->propose_graph);
    (void)cudaFree(d->block);
    (void)cudaFreeHost(d->host_in);
    (void)cudaFreeHost(d->host_out);
    free(d);
}

static mq_status prepare(mq_draft_step *d, mq_err *err)
{
    MQ_TRY(check(d->dev, cudaSetDevice(d->dev->ordinal), "draft step", err));
    MQ_TRY(check(d->dev, cudaMallocHost((void **)&d->host_in, sizeof *d->host_in), "draft step", err));
    MQ_TRY(check(d->dev, cudaMallocHost((void **)&d->host_out, sizeof *d->host_out), "draft step", err));
    memset(d->host_in, 0, sizeof *d->host_in);
    MQ_TRY(allocate_block(d, err));
    MQ_TRY(upload_rings(d, err));
    if (d->model.plain)
        return MQ_OK;
    MQ_TRY(capture_graph(d, &d->commit_graph, queue_commit, err));
    return capture_graph(d, &d->propose_graph, queue_proposal, err);
}

static mq_status draft_create(mq_draft_step **out, mq_dev *dev, const mq_draft_step_model *model, mq_err *err)
{
    *out = NULL;
    mq_draft_step *d = (mq_draft_step *)calloc(1, sizeof *d);
    if (!d)
        return mq_fail(err, MQ_E_NOMEM, "draft step: out of host memory");
    const mq_draft_step_layer *first = &model->ranks[0].layers[0];
    d->dev = dev;
    d->model = *model;
    d->heads = heads_of(model->model, model->n_ranks);
    d->heads.n_heads = first->w.layer.attn.n_heads;
    d->heads.n_kv_heads = first->w.layer.attn.n_kv_heads;
    d->heads.n_slots = first->kv.n_slots;
    mq_status st = check_model(d, err);
    if (st == MQ_OK)
        st = prepare(d, err);
    if (st != MQ_OK) {
        draft_free(d);
        return st;
    }
    *out = d;
    return MQ_OK;
}

/* ---- running ---- */

static mq_status start(mq_draft_step *d, cudaGraphExec_t graph, mq_status (*queue)(mq_draft_step *, mq_err *),
                       const float *const *features, int n, int64_t pos0, int32_t anchor, mq_err *err)
{
    mq_dev *dev = d->dev;
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "draft step", err));
    if (d->host_in_used)
        MQ_TRY(check(dev, cudaStreamSynchronize(dev->stream), "draft step", err));
    d->host_in_used = true;
    memset(d->host_in, 0, sizeof *d->host_in);
    d->host_in->pos0 = pos0;
    d->host_in->n = n;
    d->host_in->n_block = d->model.model->block_size;
    d->host_in->anchor = anchor;
    for (int i = 0; n > 0 && i < d->model.model->n_taps; i++)
        d->host_in->features[i] = features[i];
    MQ_TRY(check(dev, cudaMemcpyAsync(d->in, d->host_in, sizeof *d->in, cudaMemcpyHostToDevice, dev->stream), "draft step",
                 err));
    return graph ? check(dev, cudaGraphLaunch(graph, dev->stream), "draft step", err) : queue(d, err);
}

static mq_status commit(mq_draft_step *d, const float *const *features, int n, int64_t pos0, mq_err *err)
{
    return start(d, d->commit_graph, queue_commit, features, n, pos0, 0, err);
}

static mq_status propose(mq_draft_step *d, int32_t *tokens, float *confidence, int n_guesses, const float *const *features,
                         int n, int64_t pos0, int32_t anchor, mq_err *err)
{
    mq_dev *dev = d->dev;
    MQ_TRY(start(d, d->propose_graph, queue_proposal, features, n, pos0, anchor, err));
    MQ_TRY(check(dev, cudaMemcpyAsync(d->host_out, d->out, sizeof *d->out, cudaMemcpyDeviceToHost, dev->stream), "draft step",
                 err));
    MQ_TRY(check(dev, cudaStreamSynchronize(dev->stream), "draft step", err));
    d->host_in_used = false;
    memcpy(tokens, d->host_out->token + 1, (size_t)n_guesses * sizeof *tokens); /* row 0 is the anchor's */
    memcpy(confidence, d->host_out->confidence + 1, (size_t)n_guesses * sizeof *confidence);
    return MQ_OK;
}

static mq_status queue_timed(void *arg, mq_err *err)
{
    return queue_proposal((mq_draft_step *)arg, err);
}

static mq_status draft_time(mq_draft_step *d, double *seconds, int n_launches, mq_err *err)
{
    return graph_time(d->dev, seconds, queue_timed, d, n_launches, false, err);
}

static constexpr mq_draft_step_ops draft_table()
{
    mq_draft_step_ops t = {};
    t.bytes = step_bytes;
    t.create = draft_create;
    t.free = draft_free;
    t.commit = commit;
    t.propose = propose;
    t.time = draft_time;
    return t;
}

} // namespace decode

const mq_draft_step_ops draft_step_ops = decode::draft_table();

} // namespace mq_cuda
