/* Times an expert, both ways: rows through its packed form, and its calibration from weights to units.
 *
 * Large experts are replaced by smaller ones of the same proportions, and the arithmetic of both says how much more work the
 * model's own is. */
#include <stdlib.h>

#include "src/pool.h"
#include "src/units.h"
#include "tools/calibrate_bench.h"

enum {
    MAX_HIDDEN = 384, /* of the expert that is timed */
    FEW_ROWS = 32
};

/* An expert of the model's proportions, small enough. */
typedef struct shape {
    int64_t hidden, width;
    double fixed, token; /* how much more work the model's own expert is */
} shape;

static double fixed_work(double h, double w)
{
    return 2 * w * h * h + h * w * w + (h * h * h + w * w * w) / 6;
}

static double token_work(double h, double w)
{
    return h * h + 8 * h * w + 3 * w * w;
}

static shape small_shape(const mq_calib_work *work)
{
    int64_t h = work->m->hidden, w = work->m->moe_intermediate, step = mq_block_cols(work->recipe->group);
    shape s = {.hidden = h, .width = w, .fixed = 1, .token = 1};
    if (h <= MAX_HIDDEN && w <= MAX_HIDDEN)
        return s;
    double scale = (double)MAX_HIDDEN / (double)mq_max(h, w);
    s.hidden = mq_max(1, (int64_t)(scale * (double)h / (double)step + 0.5)) * step;
    s.width = mq_max(1, (int64_t)(scale * (double)w / (double)step + 0.5)) * step;
    s.fixed = fixed_work((double)h, (double)w) / fixed_work((double)s.hidden, (double)s.width);
    s.token = token_work((double)h, (double)w) / token_work((double)s.hidden, (double)s.width);
    return s;
}

typedef struct packed_expert {
    shape s;
    int64_t n;
    mq_matrix gate_up, down;
    float *x, *rows, *mid, *h, *y, *norm, *coef;
    int32_t *index;
    double eps;
} packed_expert;

static mq_status packed_step(mq_bench *b, void *ctx, mq_err *err)
{
    packed_expert *p = ctx;
    int64_t hidden = p->s.hidden;
    MQ_TRY(b->k->gather(b->dev, p->rows, p->x, p->index, p->n, hidden, err));
    MQ_TRY(b->k->rmsnorm(b->dev, p->rows, p->rows, p->norm, p->eps, p->n, hidden, err));
    MQ_TRY(b->k->linear(b->dev, p->mid, p->rows, &p->gate_up, p->n, err));
    MQ_TRY(b->k->swiglu(b->dev, p->h, p->mid, NULL, true, p->n, p->s.width, err));
    MQ_TRY(b->k->linear(b->dev, p->rows, p->h, &p->down, p->n, err));
    return b->k->scatter_add(b->dev, p->y, p->rows, p->index, p->coef, p->n, hidden, err);
}

static mq_status packed_arrays(packed_expert *p, mq_bench *b, int group, mq_err *err)
{
    int64_t hidden = p->s.hidden, width = p->s.width;
    void *gate_up, *down; /* zeros: all codes -8 with a scale of 0 */
    MQ_TRY(mq_bench_array(&gate_up, b, mq_units_bytes(2 * width, hidden, group), err));
    MQ_TRY(mq_bench_array(&down, b, mq_units_bytes(hidden, width, group), err));
    p->gate_up = (mq_matrix){.scheme = MQ_SCHEME_INT4, .rows = 2 * width, .cols = hidden, .data = gate_up, .group = group};
    p->down = (mq_matrix){.scheme = MQ_SCHEME_INT4, .rows = hidden, .cols = width, .data = down, .group = group};
    MQ_TRY(mq_bench_noise(&p->x, b, p->n * hidden, false, err));
    MQ_TRY(mq_bench_noise(&p->norm, b, hidden, false, err));
    MQ_TRY(mq_bench_noise(&p->coef, b, p->n, false, err));
    MQ_TRY(mq_bench_array(&p->rows, b, p->n * hidden * 4, err));
    MQ_TRY(mq_bench_array(&p->y, b, p->n * hidden * 4, err));
    MQ_TRY(mq_bench_array(&p->mid, b, 2 * p->n * width * 4, err));
    MQ_TRY(mq_bench_array(&p->h, b, p->n * width * 4, err));
    MQ_TRY(mq_bench_array(&p->index, b, p->n * 4, err));
    for (int64_t i = 0; i < p->n; i++) {
        int32_t row = (int32_t)i;
        MQ_TRY(b->k->upload(b->dev, p->index + i, &row, sizeof row, err));
    }
    return MQ_OK;
}

/* As many rows as an expert gets from a span of the run. */
static mq_status measure_packed(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    mq_bench b;
    int64_t span = mq_min(32768, work->n_rows), share = span * work->m->n_experts_per_tok / work->m->n_experts;
    packed_expert p = {.s = small_shape(work), .n = mq_max(1, mq_min(MQ_BENCH_ROWS, share)), .eps = work->m->norm_eps};
    mq_status st = mq_bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = packed_arrays(&p, &b, work->recipe->group, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = mq_bench_time(&seconds, &b, packed_step, &p, err);
    out->expert_row = seconds / (double)p.n * ((double)work->m->hidden / (double)p.s.hidden) *
                      ((double)work->m->moe_intermediate / (double)p.s.width);
    mq_bench_close(&b);
    return st;
}

/* One worker's expert, from weights to units, as the run does it. */
typedef struct calibrated_expert {
    const mq_calib_work *work;
    shape s;
    double few, many; /* seconds with FEW_ROWS and with a block of tokens */
} calibrated_expert;

typedef struct expert_run {
    mq_calib_worker *worker;
    mq_calib_expert e;
    mq_calib_recipe recipe;
    uint8_t *gate_up, *down;
    const float *x;
    const mq_kernels *k;
    mq_dev *dev;
    int64_t hidden;
} expert_run;

static mq_status lend_noise(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err)
{
    const expert_run *r = ctx;
    (void)sample;
    (void)first;
    return r->k->copy(r->dev, x, r->x, n * r->hidden * 4, err);
}

static mq_status expert_step(mq_bench *b, void *ctx, mq_err *err)
{
    expert_run *r = ctx;
    mq_calib_account account[MQ_CALIB_MATRICES];
    (void)b;
    return mq_calib_expert_run(r->worker, r->gate_up, r->down, account, &r->e, &r->recipe, err);
}

static mq_status expert_arrays(expert_run *r, mq_bench *b, const calibrated_expert *c, mq_err *err)
{
    int64_t hidden = c->s.hidden, width = c->s.width;
    int group = c->work->recipe->group;
    void *gate, *up, *down, *coef;
    MQ_TRY(mq_calib_worker_create(&r->worker, b->k, b->dev, hidden, width, group, MQ_BENCH_ROWS, err));
    MQ_TRY(mq_bench_noise(&gate, b, hidden * width, true, err));
    MQ_TRY(mq_bench_noise(&up, b, hidden * width, true, err));
    MQ_TRY(mq_bench_noise(&down, b, hidden * width, true, err));
    MQ_TRY(mq_bench_noise(&r->x, b, MQ_BENCH_ROWS * hidden, false, err));
    MQ_TRY(mq_bench_array(&coef, b, MQ_BENCH_ROWS * 4, err)); /* the CPU's memory is the host's */
    for (int i = 0; i < MQ_BENCH_ROWS; i++)
        ((float *)coef)[i] = 0.25f;
    r->gate_up = malloc((size_t)mq_units_bytes(2 * width, hidden, group));
    r->down = malloc((size_t)mq_units_bytes(hidden, width, group));
    if (!r->gate_up || !r->down)
        return mq_fail(err, MQ_E_NOMEM, "out of memory to measure with");
    r->recipe = *c->work->recipe;
    r->recipe.shrink = false; /* what other tokens cost is counted apart */
    r->k = b->k;
    r->dev = b->dev;
    r->hidden = hidden;
    r->e = (mq_calib_expert){.gate = {.scheme = MQ_SCHEME_BF16, .rows = width, .cols = hidden, .data = gate},
                             .up = {.scheme = MQ_SCHEME_BF16, .rows = width, .cols = hidden, .data = up},
                             .down = {.scheme = MQ_SCHEME_BF16, .rows = hidden, .cols = width, .data = down},
                             .coef = coef,
                             .rows = lend_noise,
                             .ctx = r};
    return MQ_OK;
}

static mq_status expert_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    calibrated_expert *c = (calibrated_expert *)ctx + job;
    mq_bench b;
    expert_run r = {0};
    (void)worker;
    mq_status st = mq_bench_open(&b, 1, err);
    if (st == MQ_OK)
        st = expert_arrays(&r, &b, c, err);
    r.e.n_tokens = FEW_ROWS;
    if (st == MQ_OK)
        st = mq_bench_time(&c->few, &b, expert_step, &r, err);
    r.e.n_tokens = MQ_BENCH_ROWS;
    if (st == MQ_OK)
        st = mq_bench_time(&c->many, &b, expert_step, &r, err);
    mq_calib_worker_free(r.worker);
    free(r.gate_up);
    free(r.down);
    mq_bench_close(&b);
    return st;
}

/* All workers at once: they share caches and memory as in the run. */
static mq_status measure_experts(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    int n = (int)mq_min(work->n_workers, mq_cpu_count());
    calibrated_expert *c = calloc((size_t)n, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "out of memory to measure with");
    for (int i = 0; i < n; i++)
        c[i] = (calibrated_expert){.work = work, .s = small_shape(work)};
    mq_status st = mq_pool_run(n, n, expert_job, c, err);
    double few = 0, many = 0;
    for (int i = 0; i < n; i++) {
        few += c[i].few / n;
        many += c[i].many / n;
    }
    double token = many > few ? (many - few) / (MQ_BENCH_ROWS - FEW_ROWS) : 0;
    out->expert_token = token * c[0].s.token;
    out->expert = (few > token * FEW_ROWS ? few - token * FEW_ROWS : few) * c[0].s.fixed;
    free(c);
    return st;
}

mq_status mq_measure_experts(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    MQ_TRY(measure_packed(out, work, err));
    return measure_experts(out, work, err);
}
