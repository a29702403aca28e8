/* Times what a calibration token passes on its way through a layer: products, attention, routing, the layer's moment.
 *
 * Each kind of work is done as often as it takes to fill some milliseconds, and the shortest counts. */
#include <stdlib.h>
#include <string.h>

#include "src/float.h"
#include "tools/calibrate_bench.h"
#include "tools/cli.h"

enum { MAX_HEADS = 8 /* of attention */ };
static const double enough_seconds = 0.03;

mq_status mq_bench_open(mq_bench *b, int n_threads, mq_err *err)
{
    *b = (mq_bench){.k = mq_kernels_find("cpu"), .noise = 1};
    return b->k->dev_open(&b->dev, 0, n_threads, NULL, err);
}

void mq_bench_close(mq_bench *b)
{
    for (int i = 0; i < b->n_arrays; i++)
        b->k->release(b->dev, b->arrays[i]);
    if (b->dev)
        b->k->dev_close(b->dev);
}

mq_status mq_bench_array(void *out, mq_bench *b, int64_t n_bytes, mq_err *err)
{
    void *p;
    if (b->n_arrays == MQ_BENCH_ARRAYS)
        return mq_fail(err, MQ_E_BUG, "more than %d arrays to measure with", MQ_BENCH_ARRAYS);
    MQ_TRY(b->k->alloc(b->dev, &p, n_bytes, err));
    b->arrays[b->n_arrays++] = p;
    memcpy(out, &p, sizeof p);
    return MQ_OK;
}

/* Between -1 and 1; the quality of the noise does not matter. */
static float draw(mq_bench *b)
{
    b->noise = b->noise * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(b->noise >> 32) * 0x1p-31f;
}

mq_status mq_bench_noise(void *out, mq_bench *b, int64_t n, bool as_bf16, mq_err *err)
{
    size_t n_bytes = (size_t)n * (as_bf16 ? 2 : 4);
    uint8_t *host = malloc(n_bytes);
    void *p = NULL;
    if (!host)
        return mq_fail(err, MQ_E_NOMEM, "out of memory to measure with");
    for (int64_t i = 0; i < n; i++) {
        float x = draw(b);
        uint16_t h = mq_f32_to_bf16(x);
        memcpy(host + (as_bf16 ? 2 : 4) * i, as_bf16 ? (void *)&h : (void *)&x, as_bf16 ? 2 : 4);
    }
    mq_status st = mq_bench_array(&p, b, (int64_t)n_bytes, err);
    if (st == MQ_OK)
        st = b->k->upload(b->dev, p, host, (int64_t)n_bytes, err);
    memcpy(out, &p, sizeof p);
    free(host);
    return st;
}

mq_status mq_bench_time(double *seconds, mq_bench *b, mq_bench_step step, void *ctx, mq_err *err)
{
    double spent = 0;
    *seconds = 1e30;
    for (int i = 0; i < 2 || (spent < enough_seconds && i < 20); i++) {
        double start = mq_cli_now();
        MQ_TRY(step(b, ctx, err));
        MQ_TRY(b->k->dev_sync(b->dev, err));
        double took = mq_cli_now() - start;
        spent += took;
        if (i > 0 || took > enough_seconds)
            *seconds = took < *seconds ? took : *seconds;
        if (took > 4 * enough_seconds)
            break;
    }
    return MQ_OK;
}

/* ---- Measurements ---- */

typedef struct product {
    mq_matrix w;
    float *x, *y;
    int64_t n;
} product;

static mq_status linear_step(mq_bench *b, void *ctx, mq_err *err)
{
    product *p = ctx;
    return b->k->linear(b->dev, p->y, p->x, &p->w, p->n, err);
}

static mq_status measure_linear(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    mq_bench b;
    product p = {.n = mq_min(MQ_BENCH_ROWS, work->n_rows)};
    int64_t cols = mq_min(work->m->hidden, MQ_BENCH_LINEAR);
    int64_t rows = mq_min((int64_t)work->m->full.n_heads * work->m->full.head_dim, MQ_BENCH_LINEAR);
    mq_status st = mq_bench_open(&b, work->n_threads, err);
    void *data = NULL;
    if (st == MQ_OK)
        st = mq_bench_noise(&data, &b, rows * cols, true, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&p.x, &b, p.n * cols, false, err);
    if (st == MQ_OK)
        st = mq_bench_array(&p.y, &b, p.n * rows * 4, err);
    p.w = (mq_matrix){.scheme = MQ_SCHEME_BF16, .rows = rows, .cols = cols, .data = data};
    double seconds = 0;
    if (st == MQ_OK)
        st = mq_bench_time(&seconds, &b, linear_step, &p, err);
    out->linear_flop = seconds / (2.0 * (double)(p.n * rows * cols));
    mq_bench_close(&b);
    return st;
}

typedef struct attended {
    const mq_attn_geometry *g;
    mq_kv kv;
    int n_heads;
    int64_t n, pos0;
    float *q, *k, *v, *out;
} attended;

static mq_status attend_step(mq_bench *b, void *ctx, mq_err *err)
{
    attended *a = ctx;
    const mq_attn_geometry *g = a->g;
    MQ_TRY(b->k->rope(b->dev, a->q, a->n, a->n_heads, g->head_dim, g->rotary_dims, g->rope_theta, a->pos0, err));
    MQ_TRY(b->k->rope(b->dev, a->k, a->n, a->kv.n_kv_heads, g->head_dim, g->rotary_dims, g->rope_theta, a->pos0, err));
    MQ_TRY(b->k->kv_store(b->dev, &a->kv, a->k, a->v, 1.0f, a->n, a->pos0, err));
    return b->k->attention(b->dev, a->out, a->q, &a->kv, a->n_heads, NULL, g->window, a->n, a->pos0, err);
}

/* Rows in the middle of a window, which see the mean number of keys; a few heads stand for all. */
static mq_status measure_attention(double *row, const mq_attn_geometry *g, const mq_calib_work *work, mq_err *err)
{
    mq_bench b;
    int per_kv = g->n_heads / g->n_kv_heads;
    int n_kv = (int)mq_max(1, mq_min(g->n_kv_heads, MAX_HEADS / per_kv));
    attended a = {.g = g, .n_heads = n_kv * per_kv, .n = mq_min(128, work->window)};
    a.pos0 = mq_max(0, work->window / 2 - a.n / 2);
    a.kv = (mq_kv){.n_slots = a.pos0 + a.n, .n_kv_heads = n_kv, .head_dim = g->head_dim, .v_head_dim = g->v_head_dim};
    mq_status st = mq_bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&a.q, &b, a.n * a.n_heads * g->head_dim, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&a.k, &b, a.n * n_kv * g->head_dim, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&a.v, &b, a.n * n_kv * g->v_head_dim, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&a.kv.k, &b, a.kv.n_slots * n_kv * g->head_dim, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&a.kv.v, &b, a.kv.n_slots * n_kv * g->v_head_dim, false, err);
    if (st == MQ_OK)
        st = mq_bench_array(&a.out, &b, a.n * a.n_heads * g->v_head_dim * 4, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = mq_bench_time(&seconds, &b, attend_step, &a, err);
    *row = seconds / (double)a.n * g->n_heads / a.n_heads;
    mq_bench_close(&b);
    return st;
}

typedef struct routed {
    const mq_model *m;
    int64_t n;
    float *x, *norm, *logits, *bias, *coef;
    int32_t *ids;
} routed;

static mq_status route_step(mq_bench *b, void *ctx, mq_err *err)
{
    routed *r = ctx;
    const mq_model *m = r->m;
    for (int i = 0; i < 2; i++) /* in front of attention, and of the experts */
        MQ_TRY(b->k->rmsnorm(b->dev, r->x, r->x, r->norm, m->norm_eps, r->n, m->hidden, err));
    MQ_TRY(b->k->add(b->dev, r->x, r->x, r->n * m->hidden, err));
    return b->k->route(b->dev, r->ids, r->coef, NULL, r->logits, r->bias, r->n, m->n_experts, m->n_experts_per_tok,
                       m->norm_topk_prob, 1.0f, err);
}

static mq_status measure_route(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    mq_bench b;
    routed r = {.m = work->m, .n = mq_min(256, work->n_rows)};
    int64_t topk = work->m->n_experts_per_tok;
    mq_status st = mq_bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&r.x, &b, r.n * work->m->hidden, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&r.norm, &b, work->m->hidden, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&r.logits, &b, r.n * work->m->n_experts, false, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&r.bias, &b, work->m->n_experts, false, err);
    if (st == MQ_OK)
        st = mq_bench_array(&r.coef, &b, r.n * topk * 4, err);
    if (st == MQ_OK)
        st = mq_bench_array(&r.ids, &b, r.n * topk * 4, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = mq_bench_time(&seconds, &b, route_step, &r, err);
    out->route_row = seconds / (double)r.n;
    mq_bench_close(&b);
    return st;
}

typedef struct summed {
    float *g, *x;
    int64_t n, cols;
} summed;

static mq_status gram_step(mq_bench *b, void *ctx, mq_err *err)
{
    summed *s = ctx;
    return b->k->gram(b->dev, s->g, s->x, NULL, s->n, s->cols, err);
}

static mq_status measure_gram(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    mq_bench b;
    summed s = {.n = mq_min(MQ_BENCH_ROWS, work->n_rows), .cols = mq_min(work->m->hidden, MQ_BENCH_LINEAR)};
    mq_status st = mq_bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = mq_bench_noise(&s.x, &b, s.n * s.cols, false, err);
    if (st == MQ_OK)
        st = mq_bench_array(&s.g, &b, s.cols * s.cols * 4, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = mq_bench_time(&seconds, &b, gram_step, &s, err);
    out->gram_flop = seconds / (double)(s.n * s.cols * s.cols);
    mq_bench_close(&b);
    return st;
}

mq_status mq_measure_forward(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    MQ_TRY(measure_linear(out, work, err));
    MQ_TRY(measure_attention(&out->full_row, &work->m->full, work, err));
    MQ_TRY(measure_attention(&out->swa_row, &work->m->swa, work, err));
    MQ_TRY(measure_route(out, work, err));
    return measure_gram(out, work, err);
}
