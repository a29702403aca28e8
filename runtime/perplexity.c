/* Two models over the same windows, side by side, layer by layer.
 *
 * As many windows as the budget allows make a batch; a batch walks through the layers once, so each
 * model is read once per batch: attention window by window (with room for the keys of one layer
 * only), experts over all tokens of the batch.  At the end logits of both are made in chunks and
 * compared at once, never kept.  Rows meet only inside a window, so results
 * depend on the batch only by the rounding of matrix products over more or fewer rows (about 1e-7). */
#include "runtime/perplexity.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "runtime/forward.h"
#include "src/machine.h"

enum { MAX_BLOCK_ROWS = 4096, MIN_BLOCK_ROWS = 64 };

/* What one of the two models needs. */
typedef struct side {
    mq_store *store;
    mq_forward *forward;
    mq_cache *cache;
    float *x;      /* [batch * window, hidden], dev's memory */
    float *logits; /* [head_rows, vocab], dev's memory */
} side;

typedef struct run {
    const mq_kernels *k;
    mq_dev *dev;
    const mq_quality_options *o;
    const mq_model *m;
    side sides[2];
    int n_sides;
    int64_t block_rows, head_rows, batch; /* rows of a block; windows of a batch */
    const int32_t *ids;
    int32_t *targets;      /* [head_rows], dev's memory */
    mq_logit_stats *stats; /* [head_rows] */
    float *margin;         /* [batch * window] of model a */
    double *kl;            /* [n_tokens] */
    mq_quality *q;
    int64_t n_agree, done, total;
} run;

/* ---- Memory ---- */

/* Bytes for a batch of n windows. */
static int64_t bytes_for(const run *r, int64_t n)
{
    int64_t rows = n * r->o->window, total = 0;
    int64_t block = r->block_rows < rows ? r->block_rows : rows;
    int64_t ring = r->o->window < block ? r->o->window : block;
    for (int i = 0; i < r->n_sides; i++) {
        const mq_store *s = r->sides[i].store;
        int n_ranks = mq_store_n_ranks(s);
        total += mq_store_bytes(s);
        total += mq_forward_workspace_bytes(r->m, n_ranks, block, rows);
        total += mq_cache_scratch_bytes(r->m, n_ranks, r->o->window, ring);
        total += 4 * rows * r->m->hidden + 4 * r->head_rows * r->m->vocab;
    }
    return total + 4 * rows + r->head_rows * (int64_t)(sizeof *r->stats + 4) +
           8 * r->o->n_windows * r->o->window;
}

static int64_t clamp(int64_t v, int64_t low, int64_t high)
{
    return v < low ? low : v > high ? high : v;
}

/* Block, head and batch sizes within the budget; smaller blocks are tried before giving up. */
static mq_status choose_sizes(run *r, mq_err *err)
{
    int64_t budget = r->o->memory_bytes > 0 ? r->o->memory_bytes : mq_machine_bytes() / 2;
    int64_t row_bytes = 4 * (int64_t)r->m->vocab;
    r->head_rows =
        clamp(budget / 16 / row_bytes, 8, clamp(((int64_t)256 << 20) / row_bytes, 8, 1024));
    r->block_rows = MAX_BLOCK_ROWS;
    while (r->block_rows > MIN_BLOCK_ROWS && bytes_for(r, 1) > budget) {
        r->block_rows /= 2;
        r->head_rows = clamp(r->head_rows / 2, 8, r->head_rows);
    }
    int64_t one = bytes_for(r, 1);
    if (one > budget)
        return mq_fail(err, MQ_E_NOMEM,
                       "a budget of %lld bytes, but %lld are needed for one window of %lld tokens",
                       (long long)budget, (long long)one, (long long)r->o->window);
    int64_t most = INT32_MAX / r->o->window, low = 1;
    int64_t high = r->o->n_windows < most ? r->o->n_windows : most;
    while (low < high) {
        int64_t mid = low + (high - low + 1) / 2;
        if (bytes_for(r, mid) <= budget)
            low = mid;
        else
            high = mid - 1;
    }
    r->batch = low;
    int64_t rows = r->batch * r->o->window;
    r->block_rows = r->block_rows < rows ? r->block_rows : rows;
    return MQ_OK;
}

static mq_status open_side(run *r, side *s, mq_err *err)
{
    int n_ranks = mq_store_n_ranks(s->store);
    int64_t rows = r->batch * r->o->window;
    int64_t ring = r->o->window < r->block_rows ? r->o->window : r->block_rows;
    void *p;
    MQ_TRY(mq_forward_create(&s->forward, r->k, r->dev, s->store, r->block_rows, rows, err));
    MQ_TRY(
        mq_cache_create_scratch(&s->cache, r->k, r->dev, r->m, n_ranks, r->o->window, ring, err));
    MQ_TRY(r->k->alloc(r->dev, &p, 4 * rows * r->m->hidden, err));
    s->x = p;
    MQ_TRY(r->k->alloc(r->dev, &p, 4 * r->head_rows * r->m->vocab, err));
    s->logits = p;
    return MQ_OK;
}

static void close_side(run *r, side *s)
{
    mq_forward_free(s->forward);
    mq_cache_free(s->cache);
    if (s->x)
        r->k->release(r->dev, s->x);
    if (s->logits)
        r->k->release(r->dev, s->logits);
}

static mq_status open_run(run *r, mq_err *err)
{
    MQ_TRY(choose_sizes(r, err));
    for (int i = 0; i < r->n_sides; i++)
        MQ_TRY(open_side(r, &r->sides[i], err));
    void *p;
    MQ_TRY(r->k->alloc(r->dev, &p, 4 * r->head_rows, err));
    r->targets = p;
    r->stats = calloc((size_t)r->head_rows, sizeof *r->stats);
    r->margin = calloc((size_t)(r->batch * r->o->window), sizeof *r->margin);
    r->kl = calloc((size_t)r->q->n_tokens, sizeof *r->kl);
    r->q->windows = calloc((size_t)r->o->n_windows, sizeof *r->q->windows);
    if (!r->stats || !r->margin || !r->kl || !r->q->windows)
        return mq_fail(err, MQ_E_NOMEM, "results of %lld windows: out of memory",
                       (long long)r->o->n_windows);
    return MQ_OK;
}

static void close_run(run *r)
{
    for (int i = 0; i < r->n_sides; i++)
        close_side(r, &r->sides[i]);
    if (r->targets)
        r->k->release(r->dev, r->targets);
    free(r->stats);
    free(r->margin);
    free(r->kl);
}

/* ---- A batch ---- */

/* n units of work (a window through one layer of one model, or through the head) are done. */
static mq_status tick(run *r, int64_t n, mq_err *err)
{
    r->done += n;
    if (r->o->progress)
        r->o->progress(r->o->progress_ctx, r->done, r->total);
    if (r->o->stopped && r->o->stopped())
        return mq_fail(err, MQ_E_STOPPED, "stopped");
    return MQ_OK;
}

static mq_status run_layers(run *r, int64_t n_windows, mq_err *err)
{
    int64_t rows = n_windows * r->o->window;
    for (int layer = 0; layer < r->m->n_layers; layer++)
        for (int i = 0; i < r->n_sides; i++) {
            side *s = &r->sides[i];
            float *margin = i == 0 ? r->margin : NULL;
            MQ_TRY(mq_forward_attention_windows(s->forward, MQ_FORWARD_BATCH, layer, s->x,
                                                n_windows, r->o->window, s->cache, NULL, err));
            MQ_TRY(
                mq_forward_mlp(s->forward, MQ_FORWARD_BATCH, layer, s->x, rows, margin, NULL, err));
            MQ_TRY(tick(r, n_windows, err));
        }
    return MQ_OK;
}

/* Add rows [first, first + n) of the batch to the results; window0 is the batch's first window. */
static void collect(run *r, int64_t window0, int64_t first, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const mq_logit_stats *s = &r->stats[i];
        int64_t token = window0 * r->o->window + first + i;
        mq_window_result *w = &r->q->windows[token / r->o->window];
        float margin = r->margin[first + i];
        w->nll_a += s->nll_a;
        w->margin_a = margin < w->margin_a ? margin : w->margin_a;
        if (r->n_sides < 2)
            continue;
        w->nll_b += s->nll_b;
        w->kl += s->kl;
        r->kl[token] = s->kl;
        r->n_agree += s->top_a == s->top_b;
    }
}

static mq_status run_head(run *r, int64_t window0, int64_t n_windows, mq_err *err)
{
    int64_t rows = n_windows * r->o->window;
    const int32_t *targets = r->ids + window0 * r->o->window + 1;
    for (int64_t i = 0; i < rows; i += r->head_rows) {
        int64_t n = rows - i < r->head_rows ? rows - i : r->head_rows;
        for (int j = 0; j < r->n_sides; j++) {
            side *s = &r->sides[j];
            MQ_TRY(mq_forward_head(s->forward, MQ_FORWARD_BATCH, s->logits, s->x + i * r->m->hidden,
                                   n, err));
        }
        MQ_TRY(r->k->upload(r->dev, r->targets, targets + i, 4 * n, err));
        const float *b = r->n_sides > 1 ? r->sides[1].logits : NULL;
        MQ_TRY(r->k->logit_stats(r->dev, r->stats, r->sides[0].logits, b, r->targets, n,
                                 r->m->vocab, err));
        collect(r, window0, i, n);
        MQ_TRY(tick(r, 0, err));
    }
    return tick(r, n_windows * r->n_sides, err);
}

static mq_status run_batch(run *r, int64_t window0, int64_t n_windows, mq_err *err)
{
    int64_t rows = n_windows * r->o->window;
    for (int64_t i = 0; i < rows; i++)
        r->margin[i] = INFINITY;
    for (int64_t w = 0; w < n_windows; w++)
        r->q->windows[window0 + w].margin_a = INFINITY;
    for (int i = 0; i < r->n_sides; i++)
        MQ_TRY(mq_forward_embed(r->sides[i].forward, r->sides[i].x, r->ids + window0 * r->o->window,
                                rows, err));
    MQ_TRY(run_layers(r, n_windows, err));
    return run_head(r, window0, n_windows, err);
}

/* ---- The figures ---- */

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the smallest value with at least a share p of all values at or below it. */
static double quantile(const double *sorted, int64_t n, double p)
{
    int64_t rank = (int64_t)ceil(p * (double)n);
    return sorted[clamp(rank, 1, n) - 1];
}

static void summarize(run *r)
{
    mq_quality *q = r->q;
    double nll_a = 0, nll_b = 0, kl = 0, window = (double)r->o->window;
    for (int64_t i = 0; i < q->n_windows; i++) {
        mq_window_result *w = &q->windows[i];
        nll_a += w->nll_a;
        nll_b += w->nll_b;
        kl += w->kl;
        w->nll_a /= window;
        w->nll_b /= window;
        w->kl /= window;
    }
    q->ppl_a = exp(nll_a / (double)q->n_tokens);
    if (r->n_sides < 2)
        return;
    q->ppl_b = exp(nll_b / (double)q->n_tokens);
    q->kl_mean = kl / (double)q->n_tokens;
    q->top1_agreement = (double)r->n_agree / (double)q->n_tokens;
    qsort(r->kl, (size_t)q->n_tokens, sizeof *r->kl, compare_double);
    q->kl_median = quantile(r->kl, q->n_tokens, 0.5);
    q->kl_p90 = quantile(r->kl, q->n_tokens, 0.9);
    q->kl_p99 = quantile(r->kl, q->n_tokens, 0.99);
    q->kl_p999 = quantile(r->kl, q->n_tokens, 0.999);
    q->kl_max = r->kl[q->n_tokens - 1];
}

static mq_status check_options(const run *r, const mq_quality_options *o, int64_t n_ids,
                               mq_err *err)
{
    if (o->window < 1 || o->n_windows < 1 || o->window > INT32_MAX / 2 || o->n_windows > INT32_MAX)
        return mq_fail(err, MQ_E_ARG, "%lld windows of %lld tokens, expected at least one of each",
                       (long long)o->n_windows, (long long)o->window);
    if (o->window > r->m->max_positions)
        return mq_fail(err, MQ_E_ARG,
                       "a window of %lld tokens, expected at most %d (max_position_embeddings)",
                       (long long)o->window, r->m->max_positions);
    if (n_ids / o->window < o->n_windows || n_ids < o->n_windows * o->window + 1)
        return mq_fail(err, MQ_E_ARG, "a text of %lld tokens, but %lld windows of %lld need %lld",
                       (long long)n_ids, (long long)o->n_windows, (long long)o->window,
                       (long long)(o->n_windows * o->window + 1));
    return MQ_OK;
}

static mq_status check_pair(const mq_model *a, const mq_model *b, mq_err *err)
{
    if (a->vocab != b->vocab || a->n_layers != b->n_layers || a->hidden != b->hidden)
        return mq_fail(
            err, MQ_E_SHAPE,
            "%d layers, hidden %d, vocabulary %d; expected those of the source: %d, %d, %d",
            b->n_layers, b->hidden, b->vocab, a->n_layers, a->hidden, a->vocab);
    return MQ_OK;
}

mq_status mq_quality_run(mq_quality *out, const mq_kernels *kernels, mq_dev *dev, mq_store *a,
                         mq_store *b, const int32_t *ids, int64_t n_ids,
                         const mq_quality_options *options, mq_err *err)
{
    *out = (mq_quality){.n_windows = options->n_windows, .window = options->window};
    run r = {.k = kernels,
             .dev = dev,
             .o = options,
             .m = mq_store_model(a),
             .sides = {{.store = a}, {.store = b}},
             .n_sides = b ? 2 : 1,
             .ids = ids,
             .q = out};
    MQ_TRY(check_options(&r, options, n_ids, err));
    if (b)
        MQ_TRY(check_pair(r.m, mq_store_model(b), err));
    out->n_tokens = options->n_windows * options->window;
    r.total = options->n_windows * r.n_sides * (r.m->n_layers + 1);

    mq_status st = open_run(&r, err);
    for (int64_t w = 0; st == MQ_OK && w < options->n_windows; w += r.batch) {
        int64_t left = options->n_windows - w;
        st = run_batch(&r, w, left < r.batch ? left : r.batch, err);
    }
    if (st == MQ_OK)
        summarize(&r);
    close_run(&r);
    if (st != MQ_OK)
        mq_quality_release(out);
    return st;
}

void mq_quality_release(mq_quality *q)
{
    free(q->windows);
    *q = (mq_quality){0};
}
