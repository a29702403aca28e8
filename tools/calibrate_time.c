/* Times each kind of work: as often as it takes to fill some milliseconds, the best of a few.  Sizes that are cut down say
 * so by their flops: a rate is per flop, per row or per token, never per call. */
#include "tools/calibrate_time.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "src/float.h"
#include "src/pool.h"
#include "src/sha256.h"
#include "src/units.h"
#include "tools/cli.h"

enum {
    MAX_HIDDEN = 384,    /* of the expert that is timed */
    MAX_LINEAR = 1024,   /* rows and columns of the linear */
    MAX_HEADS = 8,       /* of attention */
    BLOCK_ROWS = 2048,   /* as the run has it */
    FEW_ROWS = 32,
    DISK_BYTES = 32 << 20,
    DISK_BLOCK = 4 << 20,
    HASH_BYTES = 8 << 20,
    MAX_ARRAYS = 40
};
static const double enough_seconds = 0.03;

/* A device with arrays that are released together. */
typedef struct bench {
    const mq_kernels *k;
    mq_dev *dev;
    void *arrays[MAX_ARRAYS];
    int n_arrays;
    uint64_t noise;
} bench;

static mq_status bench_open(bench *b, int n_threads, mq_err *err)
{
    *b = (bench){.k = mq_kernels_find("cpu"), .noise = 1};
    return b->k->dev_open(&b->dev, 0, n_threads, NULL, err);
}

static void bench_close(bench *b)
{
    for (int i = 0; i < b->n_arrays; i++)
        b->k->release(b->dev, b->arrays[i]);
    if (b->dev)
        b->k->dev_close(b->dev);
}

static mq_status array(void *out, bench *b, int64_t n_bytes, mq_err *err)
{
    void *p;
    if (b->n_arrays == MAX_ARRAYS)
        return mq_fail(err, MQ_E_BUG, "more than %d arrays to measure with", MAX_ARRAYS);
    MQ_TRY(b->k->alloc(b->dev, &p, n_bytes, err));
    b->arrays[b->n_arrays++] = p;
    memcpy(out, &p, sizeof p);
    return MQ_OK;
}

/* Between -1 and 1; the quality of the noise does not matter. */
static float draw(bench *b)
{
    b->noise = b->noise * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(b->noise >> 32) * 0x1p-31f;
}

/* n floats of noise; as_bf16: n BF16 numbers. */
static mq_status noise(void *out, bench *b, int64_t n, bool as_bf16, mq_err *err)
{
    size_t n_bytes = (size_t)n * (as_bf16 ? 2 : 4);
    uint8_t *host = malloc(n_bytes);
    void *p;
    if (!host)
        return mq_fail(err, MQ_E_NOMEM, "out of memory to measure with");
    for (int64_t i = 0; i < n; i++) {
        float x = draw(b);
        uint16_t h = mq_f32_to_bf16(x);
        memcpy(host + (as_bf16 ? 2 : 4) * i, as_bf16 ? (void *)&h : (void *)&x, as_bf16 ? 2 : 4);
    }
    mq_status st = array(&p, b, (int64_t)n_bytes, err);
    if (st == MQ_OK)
        st = b->k->upload(b->dev, p, host, (int64_t)n_bytes, err);
    memcpy(out, &p, sizeof p);
    free(host);
    return st;
}

typedef mq_status (*step_fn)(bench *b, void *ctx, mq_err *err);

/* Seconds of one step: once to warm up, then until enough time has passed; the shortest. */
static mq_status time_step(double *seconds, bench *b, step_fn step, void *ctx, mq_err *err)
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

static int64_t min2(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max2(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- Forward ---- */

typedef struct product {
    mq_matrix w;
    float *x, *y;
    int64_t n;
} product;

static mq_status linear_step(bench *b, void *ctx, mq_err *err)
{
    product *p = ctx;
    return b->k->linear(b->dev, p->y, p->x, &p->w, p->n, err);
}

static mq_status measure_linear(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    bench b;
    product p = {.n = min2(BLOCK_ROWS, work->n_rows)};
    int64_t cols = min2(work->m->hidden, MAX_LINEAR);
    int64_t rows = min2((int64_t)work->m->full.n_heads * work->m->full.head_dim, MAX_LINEAR);
    mq_status st = bench_open(&b, work->n_threads, err);
    void *data = NULL;
    if (st == MQ_OK)
        st = noise(&data, &b, rows * cols, true, err);
    if (st == MQ_OK)
        st = noise(&p.x, &b, p.n * cols, false, err);
    if (st == MQ_OK)
        st = array(&p.y, &b, p.n * rows * 4, err);
    p.w = (mq_matrix){.scheme = MQ_SCHEME_BF16, .rows = rows, .cols = cols, .data = data};
    double seconds = 0;
    if (st == MQ_OK)
        st = time_step(&seconds, &b, linear_step, &p, err);
    out->linear_flop = seconds / (2.0 * (double)(p.n * rows * cols));
    bench_close(&b);
    return st;
}

typedef struct attended {
    const mq_attn_geometry *g;
    mq_kv kv;
    int n_heads;
    int64_t n, pos0;
    float *q, *k, *v, *out;
} attended;

static mq_status attend_step(bench *b, void *ctx, mq_err *err)
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
    bench b;
    int per_kv = g->n_heads / g->n_kv_heads;
    int n_kv = (int)max2(1, min2(g->n_kv_heads, MAX_HEADS / per_kv));
    attended a = {.g = g, .n_heads = n_kv * per_kv, .n = min2(128, work->window)};
    a.pos0 = max2(0, work->window / 2 - a.n / 2);
    a.kv = (mq_kv){.n_slots = a.pos0 + a.n, .n_kv_heads = n_kv, .head_dim = g->head_dim, .v_head_dim = g->v_head_dim};
    mq_status st = bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = noise(&a.q, &b, a.n * a.n_heads * g->head_dim, false, err);
    if (st == MQ_OK)
        st = noise(&a.k, &b, a.n * n_kv * g->head_dim, false, err);
    if (st == MQ_OK)
        st = noise(&a.v, &b, a.n * n_kv * g->v_head_dim, false, err);
    if (st == MQ_OK)
        st = noise(&a.kv.k, &b, a.kv.n_slots * n_kv * g->head_dim, false, err);
    if (st == MQ_OK)
        st = noise(&a.kv.v, &b, a.kv.n_slots * n_kv * g->v_head_dim, false, err);
    if (st == MQ_OK)
        st = array(&a.out, &b, a.n * a.n_heads * g->v_head_dim * 4, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = time_step(&seconds, &b, attend_step, &a, err);
    *row = seconds / (double)a.n * g->n_heads / a.n_heads;
    bench_close(&b);
    return st;
}

typedef struct routed {
    const mq_model *m;
    int64_t n;
    float *x, *norm, *logits, *bias, *coef;
    int32_t *ids;
} routed;

static mq_status route_step(bench *b, void *ctx, mq_err *err)
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
    bench b;
    routed r = {.m = work->m, .n = min2(256, work->n_rows)};
    int64_t topk = work->m->n_experts_per_tok;
    mq_status st = bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = noise(&r.x, &b, r.n * work->m->hidden, false, err);
    if (st == MQ_OK)
        st = noise(&r.norm, &b, work->m->hidden, false, err);
    if (st == MQ_OK)
        st = noise(&r.logits, &b, r.n * work->m->n_experts, false, err);
    if (st == MQ_OK)
        st = noise(&r.bias, &b, work->m->n_experts, false, err);
    if (st == MQ_OK)
        st = array(&r.coef, &b, r.n * topk * 4, err);
    if (st == MQ_OK)
        st = array(&r.ids, &b, r.n * topk * 4, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = time_step(&seconds, &b, route_step, &r, err);
    out->route_row = seconds / (double)r.n;
    bench_close(&b);
    return st;
}

/* ---- Experts ---- */

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
    double scale = (double)MAX_HIDDEN / (double)max2(h, w);
    s.hidden = max2(1, (int64_t)(scale * (double)h / (double)step + 0.5)) * step;
    s.width = max2(1, (int64_t)(scale * (double)w / (double)step + 0.5)) * step;
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

static mq_status packed_step(bench *b, void *ctx, mq_err *err)
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

static mq_status packed_arrays(packed_expert *p, bench *b, int group, mq_err *err)
{
    int64_t hidden = p->s.hidden, width = p->s.width;
    void *gate_up, *down; /* zeros: all codes -8 with a scale of 0 */
    MQ_TRY(array(&gate_up, b, mq_units_bytes(2 * width, hidden, group), err));
    MQ_TRY(array(&down, b, mq_units_bytes(hidden, width, group), err));
    p->gate_up = (mq_matrix){.scheme = MQ_SCHEME_INT4, .rows = 2 * width, .cols = hidden, .data = gate_up, .group = group};
    p->down = (mq_matrix){.scheme = MQ_SCHEME_INT4, .rows = hidden, .cols = width, .data = down, .group = group};
    MQ_TRY(noise(&p->x, b, p->n * hidden, false, err));
    MQ_TRY(noise(&p->norm, b, hidden, false, err));
    MQ_TRY(noise(&p->coef, b, p->n, false, err));
    MQ_TRY(array(&p->rows, b, p->n * hidden * 4, err));
    MQ_TRY(array(&p->y, b, p->n * hidden * 4, err));
    MQ_TRY(array(&p->mid, b, 2 * p->n * width * 4, err));
    MQ_TRY(array(&p->h, b, p->n * width * 4, err));
    MQ_TRY(array(&p->index, b, p->n * 4, err));
    for (int64_t i = 0; i < p->n; i++) {
        int32_t row = (int32_t)i;
        MQ_TRY(b->k->upload(b->dev, p->index + i, &row, sizeof row, err));
    }
    return MQ_OK;
}

/* As many rows as an expert gets from a span of the run. */
static mq_status measure_packed(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    bench b;
    int64_t span = min2(32768, work->n_rows), share = span * work->m->n_experts_per_tok / work->m->n_experts;
    packed_expert p = {.s = small_shape(work), .n = max2(1, min2(BLOCK_ROWS, share)), .eps = work->m->norm_eps};
    mq_status st = bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = packed_arrays(&p, &b, work->recipe->group, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = time_step(&seconds, &b, packed_step, &p, err);
    out->expert_row = seconds / (double)p.n * ((double)work->m->hidden / (double)p.s.hidden) *
                      ((double)work->m->moe_intermediate / (double)p.s.width);
    bench_close(&b);
    return st;
}

typedef struct summed {
    float *g, *x;
    int64_t n, cols;
} summed;

static mq_status gram_step(bench *b, void *ctx, mq_err *err)
{
    summed *s = ctx;
    return b->k->gram(b->dev, s->g, s->x, NULL, s->n, s->cols, err);
}

static mq_status measure_gram(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    bench b;
    summed s = {.n = min2(BLOCK_ROWS, work->n_rows), .cols = min2(work->m->hidden, MAX_LINEAR)};
    mq_status st = bench_open(&b, work->n_threads, err);
    if (st == MQ_OK)
        st = noise(&s.x, &b, s.n * s.cols, false, err);
    if (st == MQ_OK)
        st = array(&s.g, &b, s.cols * s.cols * 4, err);
    double seconds = 0;
    if (st == MQ_OK)
        st = time_step(&seconds, &b, gram_step, &s, err);
    out->gram_flop = seconds / (double)(s.n * s.cols * s.cols);
    bench_close(&b);
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

static mq_status expert_step(bench *b, void *ctx, mq_err *err)
{
    expert_run *r = ctx;
    mq_calib_account account[MQ_CALIB_MATRICES];
    (void)b;
    return mq_calib_expert_run(r->worker, r->gate_up, r->down, account, &r->e, &r->recipe, err);
}

static mq_status expert_arrays(expert_run *r, bench *b, const calibrated_expert *c, mq_err *err)
{
    int64_t hidden = c->s.hidden, width = c->s.width;
    int group = c->work->recipe->group;
    void *gate, *up, *down, *coef;
    MQ_TRY(mq_calib_worker_create(&r->worker, b->k, b->dev, hidden, width, group, BLOCK_ROWS, err));
    MQ_TRY(noise(&gate, b, hidden * width, true, err));
    MQ_TRY(noise(&up, b, hidden * width, true, err));
    MQ_TRY(noise(&down, b, hidden * width, true, err));
    MQ_TRY(noise(&r->x, b, BLOCK_ROWS * hidden, false, err));
    MQ_TRY(array(&coef, b, BLOCK_ROWS * 4, err)); /* the CPU's memory is the host's */
    for (int i = 0; i < BLOCK_ROWS; i++)
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
    bench b;
    expert_run r = {0};
    (void)worker;
    mq_status st = bench_open(&b, 1, err);
    if (st == MQ_OK)
        st = expert_arrays(&r, &b, c, err);
    r.e.n_tokens = FEW_ROWS;
    if (st == MQ_OK)
        st = time_step(&c->few, &b, expert_step, &r, err);
    r.e.n_tokens = BLOCK_ROWS;
    if (st == MQ_OK)
        st = time_step(&c->many, &b, expert_step, &r, err);
    mq_calib_worker_free(r.worker);
    free(r.gate_up);
    free(r.down);
    bench_close(&b);
    return st;
}

/* All workers at once: they share caches and memory as in the run. */
static mq_status measure_experts(mq_calib_rates *out, const mq_calib_work *work, mq_err *err)
{
    int n = (int)min2(work->n_workers, mq_cpu_count());
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
    double token = many > few ? (many - few) / (BLOCK_ROWS - FEW_ROWS) : 0;
    out->expert_token = token * c[0].s.token;
    out->expert = (few > token * FEW_ROWS ? few - token * FEW_ROWS : few) * c[0].s.fixed;
    free(c);
    return st;
}

/* ---- Disk ---- */

/* What cannot be read or written is left at 0: the run itself will say why. */
static void measure_disk(mq_calib_rates *out, const char *path, const char *dir)
{
    mq_file *f = NULL;
    void *block = aligned_alloc(4096, DISK_BLOCK);
    int fd = open(dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (block && mq_file_open(&f, path, NULL) == MQ_OK) {
        int64_t n = 0;
        double start = mq_cli_now();
        while (n < DISK_BYTES && n + DISK_BLOCK <= f->n_bytes && mq_file_read(f, block, n, DISK_BLOCK, NULL) == MQ_OK)
            n += DISK_BLOCK;
        out->read_byte = n ? (mq_cli_now() - start) / (double)n : 0;
    }
    if (block && fd >= 0) {
        int64_t n = 0;
        memset(block, 0x5A, DISK_BLOCK);
        double start = mq_cli_now();
        while (n < DISK_BYTES && write(fd, block, DISK_BLOCK) == DISK_BLOCK)
            n += DISK_BLOCK;
        bool synced = fdatasync(fd) == 0;
        out->write_byte = n && synced ? (mq_cli_now() - start) / (double)n : 0;
    }
    if (fd >= 0)
        close(fd);
    mq_file_close(f);
    free(block);
}

static void measure_hash(mq_calib_rates *out)
{
    uint8_t digest[MQ_SHA256_BYTES], *bytes = calloc(1, HASH_BYTES);
    if (!bytes)
        return;
    double start = mq_cli_now();
    mq_sha256_of(digest, bytes, HASH_BYTES);
    out->hash_byte = (mq_cli_now() - start) / HASH_BYTES;
    free(bytes);
}

mq_status mq_calib_measure(mq_calib_rates *out, const mq_calib_work *work, const char *path, const char *dir, mq_err *err)
{
    memset(out, 0, sizeof *out);
    double start = mq_cli_now();
    MQ_TRY(measure_linear(out, work, err));
    MQ_TRY(measure_attention(&out->full_row, &work->m->full, work, err));
    MQ_TRY(measure_attention(&out->swa_row, &work->m->swa, work, err));
    MQ_TRY(measure_route(out, work, err));
    MQ_TRY(measure_packed(out, work, err));
    MQ_TRY(measure_gram(out, work, err));
    MQ_TRY(measure_experts(out, work, err));
    measure_disk(out, path, dir);
    measure_hash(out);
    out->seconds = mq_cli_now() - start;
    return MQ_OK;
}

/* ---- Arithmetic ---- */

/* Flops a token of the linears of a layer's attention half. */
static double attention_flops(const mq_model *m, const mq_attn_geometry *g)
{
    double q = (double)g->n_heads * g->head_dim, k = (double)g->n_kv_heads * g->head_dim;
    double v = (double)g->n_kv_heads * g->v_head_dim, o = (double)g->n_heads * g->v_head_dim;
    return 2 * m->hidden * (q + k + v + o);
}

static double attention_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    const mq_model *m = work->m;
    double row = 0;
    for (int64_t l = 0; l < work->n_layers; l++) {
        row += attention_flops(m, mq_model_attn(m, (int)l)) * rates->linear_flop + rates->route_row;
        row += m->is_swa[l] ? rates->swa_row : rates->full_row;
        row += (m->is_moe[l] ? 2.0 * 2 * m->n_experts : 6.0 * m->intermediate) * m->hidden * rates->linear_flop;
    }
    return row * (double)work->n_rows;
}

static double expert_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    const mq_model *m = work->m;
    double picks = (double)work->n_rows * m->n_experts_per_tok, each = picks / m->n_experts;
    double tokens = picks, layer = 0;
    if (mq_calib_needs_sample(work->recipe, (int64_t)each, m->moe_intermediate))
        tokens += (double)m->n_experts * (double)min2(work->sample_rows, work->n_rows);
    if (mq_calib_needs_layer(work->recipe, (int64_t)each, m->hidden))
        layer = (double)work->n_rows * m->hidden * m->hidden * rates->gram_flop;
    double busy = (double)min2(work->n_workers, mq_cpu_count());
    return (double)work->n_calibrated * (layer + (m->n_experts * rates->expert + tokens * rates->expert_token) / busy);
}

static double forward_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    double rows = (double)work->n_rows + 2.0 * (double)min2(work->loss_rows, work->n_rows);
    return (double)(work->n_layers - work->n_dense) * rows * work->m->n_experts_per_tok * rates->expert_row;
}

static double disk_seconds(const mq_calib_work *work, const mq_calib_rates *rates)
{
    double scratch = (double)work->n_layers * (double)work->layer_scratch_bytes;
    double hashed = (double)work->write_bytes + scratch; /* the source is hashed beside the work */
    return (double)work->read_bytes * rates->read_byte + ((double)work->write_bytes + scratch) * rates->write_byte +
           hashed * rates->hash_byte / work->n_threads;
}

mq_calib_seconds mq_calib_estimate(const mq_calib_work *work, const mq_calib_rates *rates)
{
    mq_calib_seconds s = {.attention = attention_seconds(work, rates),
                          .experts = expert_seconds(work, rates),
                          .forward = forward_seconds(work, rates),
                          .disk = disk_seconds(work, rates)};
    s.total = s.attention + s.experts + s.forward + s.disk;
    return s;
}
