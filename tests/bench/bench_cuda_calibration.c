/* Calibration on a GPU at the shapes of MiMo-V2.5-Pro: hidden 6144, experts of width 2048 in FP8 blocks, as many tokens an expert as
 * 2.1M calibration tokens give it.  The whole path of mimo-quantize's benches: from stored bytes in host memory to packed units in
 * host memory, the layer's residual stream lying on the device.
 *
 *   bench_cuda_calibration [TOKENS [EXPERTS [SECONDS [GROUP [METHOD-PRECISION-WORKERS...]]]]]
 *
 * METHOD gptq (gptq0, gptq1: with so many rounds) or imatrix; PRECISION f32 or bf16; WORKERS experts at a time, 0: one expert with the device waited for after every
 * operation, the profile.  No expert is begun after SECONDS.  Exit 77 without a GPU. */
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "calib/expert.h"
#include "src/pool.h"
#include "src/units.h"
#include "tests/maker/calibration_data.h"

enum { HIDDEN = 6144, WIDTH = 2048, BLOCK_ROWS = 2048, STREAM_ROWS = 65536, SOURCES = 4, MAX_WORKERS = 16 };

static const int64_t MATRIX = (int64_t)HIDDEN * WIDTH, SCALES = (int64_t)(HIDDEN / 128) * (WIDTH / 128);

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(mq_status st, const mq_err *err)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

/* ---- the profile: a table whose operations wait for the device and are timed ---- */

typedef struct op_time {
    const char *name;
    double seconds;
    int64_t calls;
} op_time;

static const mq_kernels *k; /* as it is */
static mq_kernels timed;
static op_time ops[32];
static int n_ops;

static op_time *op_of(const char *name)
{
    int i = 0;
    while (i < n_ops && strcmp(ops[i].name, name) != 0)
        i++;
    if (i == n_ops)
        ops[n_ops++].name = name;
    return &ops[i];
}

#define TIMED(op, parameters, arguments)                                                                               \
    static mq_status timed_##op parameters                                                                             \
    {                                                                                                                  \
        must(k->dev_sync(dev, err), err);                                                                              \
        double start = now();                                                                                          \
        mq_status st = k->op arguments;                                                                                \
        if (st == MQ_OK)                                                                                               \
            st = k->dev_sync(dev, err);                                                                                \
        op_time *o = op_of(#op);                                                                                       \
        o->seconds += now() - start;                                                                                   \
        o->calls++;                                                                                                    \
        return st;                                                                                                     \
    }

TIMED(upload, (mq_dev * dev, void *dst, const void *src, int64_t n, mq_err *err), (dev, dst, src, n, err))
TIMED(download, (mq_dev * dev, void *dst, const void *src, int64_t n, mq_err *err), (dev, dst, src, n, err))
TIMED(copy, (mq_dev * dev, void *dst, const void *src, int64_t n, mq_err *err), (dev, dst, src, n, err))
TIMED(gather, (mq_dev * dev, float *y, const float *x, const int32_t *index, int64_t n, int64_t cols, mq_err *err),
      (dev, y, x, index, n, cols, err))
TIMED(linear, (mq_dev * dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err), (dev, y, x, w, n, err))
TIMED(rmsnorm,
      (mq_dev * dev, float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols, mq_err *err),
      (dev, y, x, weight, eps, n, cols, err))
TIMED(swiglu,
      (mq_dev * dev, float *h, const float *gate, const float *up, bool both, int64_t n, int64_t width, mq_err *err),
      (dev, h, gate, up, both, n, width, err))
TIMED(widen, (mq_dev * dev, float *out, const mq_matrix *w, int64_t row0, int64_t n, mq_err *err), (dev, out, w, row0, n, err))
TIMED(axpby, (mq_dev * dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err), (dev, y, a, x, b, count, err))
TIMED(gram, (mq_dev * dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err),
      (dev, g, x, weight, n, cols, err))
TIMED(cross,
      (mq_dev * dev, float *c, const float *x, const float *y, const float *weight, int64_t n, int64_t cols, int64_t y_cols,
       mq_err *err),
      (dev, c, x, y, weight, n, cols, y_cols, err))
TIMED(diag, (mq_dev * dev, float *out, const float *g, int64_t n, mq_err *err), (dev, out, g, n, err))
TIMED(set_diag, (mq_dev * dev, float *g, const float *d, int64_t n, mq_err *err), (dev, g, d, n, err))
TIMED(factor,
      (mq_dev * dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n, mq_err *err),
      (dev, a, d, g, perm, ridge, n, err))
TIMED(solve,
      (mq_dev * dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm, int64_t rows, int64_t n,
       mq_err *err),
      (dev, x, y, a, d, perm, rows, n, err))
TIMED(search_scales,
      (mq_dev * dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, scale, w, omega, rows, cols, group, err))
TIMED(nearest,
      (mq_dev * dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, codes, w, scale, rows, cols, group, err))
TIMED(weight_error,
      (mq_dev * dev, double *err2, double *norm2, const uint8_t *codes, const float *w, const float *scale, int64_t rows,
       int64_t cols, int group, mq_err *err),
      (dev, err2, norm2, codes, w, scale, rows, cols, group, err))
TIMED(ldlq,
      (mq_dev * dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a, const float *d,
       const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, codes, loss, w, scale, a, d, perm, rows, cols, group, err))
TIMED(quant_loss,
      (mq_dev * dev, float *loss, float *norm, const uint8_t *codes, const float *w, const float *scale, const float *g,
       int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, loss, norm, codes, w, scale, g, rows, cols, group, err))
TIMED(refit_scales,
      (mq_dev * dev, float *scale, float *loss, const uint8_t *codes, const float *w, const float *g, int64_t rows,
       int64_t cols, int group, mq_err *err),
      (dev, scale, loss, codes, w, g, rows, cols, group, err))
TIMED(descend,
      (mq_dev * dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g, int n_passes,
       int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, codes, loss, w, scale, g, n_passes, rows, cols, group, err))
TIMED(keep_better,
      (mq_dev * dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept, const uint8_t *codes_new,
       const float *scale_new, const float *loss_new, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, codes, scale, loss, n_kept, codes_new, scale_new, loss_new, rows, cols, group, err))
TIMED(pack_units,
      (mq_dev * dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a, const uint8_t *codes_b,
       const float *scale_b, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, units, codes_a, scale_a, codes_b, scale_b, rows, cols, group, err))

static void make_timed(void)
{
    timed = *k;
#define USE(op) timed.op = timed_##op
    USE(upload);
    USE(download);
    USE(copy);
    USE(gather);
    USE(linear);
    USE(rmsnorm);
    USE(swiglu);
    USE(widen);
    USE(axpby);
    USE(gram);
    USE(cross);
    USE(diag);
    USE(set_diag);
    USE(factor);
    USE(solve);
    USE(search_scales);
    USE(nearest);
    USE(weight_error);
    USE(ldlq);
    USE(quant_loss);
    USE(refit_scales);
    USE(descend);
    USE(keep_better);
    USE(pack_units);
}

/* ---- data ---- */

/* What all workers read. */
typedef struct source {
    uint8_t *codes[SOURCES]; /* gate, up and down of an expert, E4M3, one after the other */
    float *scales[SOURCES];
    float *stream;           /* [STREAM_ROWS, HIDDEN] on the device */
    float *norm, *coef;
    int64_t n_tokens;
    double end; /* no expert is begun after it */
    mq_calib_recipe recipe;
} source;

typedef struct bench {
    const source *s;
    const mq_kernels *k;
    mq_dev *dev;
    mq_calib_worker *worker;
    uint8_t *host, *gate_up, *down; /* page-locked: stored bytes, units */
    int32_t *host_rows;
    uint8_t *codes; /* on the device */
    float *scales, *norm;
    int32_t *rows;
    mq_calib_account account[MQ_CALIB_MATRICES];
    double read_seconds;
    int64_t n_done;
} bench;

/* E4M3 of a normal value with a standard deviation of 2^3, by rounding its float's bits; never the code of a NaN. */
static uint8_t e4m3_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int e = (int)(bits >> 23 & 255) - 127 + 7;
    uint32_t m = bits >> 20 & 7;
    return (uint8_t)((bits >> 31 << 7) | (e <= 0 ? 1u : e > 14 ? 0x77u : (uint32_t)e << 3 | m));
}

static void fill_experts(source *s)
{
    enum { CYCLE = 1 << 20 };
    float *normal = random_floats(CYCLE + 4096, 11);
    for (int i = 0; i < SOURCES; i++) {
        s->codes[i] = malloc((size_t)(3 * MATRIX));
        s->scales[i] = malloc((size_t)(3 * SCALES) * sizeof(float));
        for (int64_t at = 0; at < 3 * MATRIX; at++)
            s->codes[i][at] = e4m3_of(8.0f * normal[at % CYCLE + (at / CYCLE * 37 + 101 * i) % 4096]);
        for (int64_t at = 0; at < 3 * SCALES; at++)
            s->scales[i][at] = 0.002f;
    }
    free(normal);
}

/* Rows with a part in common and columns of very different size. */
static void fill_stream(source *s, mq_dev *dev)
{
    enum { CYCLE = 1 << 20, AT_ONCE = 1024 };
    mq_err err;
    void *p;
    must(k->alloc(dev, &p, (int64_t)STREAM_ROWS * HIDDEN * (int64_t)sizeof(float), &err), &err);
    s->stream = p;
    float *normal = random_floats(CYCLE + HIDDEN, 5), *rows = malloc((size_t)AT_ONCE * HIDDEN * sizeof *rows);
    for (int64_t r = 0; r < STREAM_ROWS; r++) {
        const float *a = normal + r * 7919 % CYCLE, *b = normal + (r % 97) * 1231;
        float *row = rows + r % AT_ONCE * HIDDEN;
        for (int c = 0; c < HIDDEN; c++)
            row[c] = (0.2f + (float)(c * 7919 % 31) / 10.0f) * (a[c] + b[c] + (c ? 0.5f * a[c - 1] : 0.0f));
        if (r % AT_ONCE == AT_ONCE - 1)
            must(k->upload(dev, s->stream + (r + 1 - AT_ONCE) * HIDDEN, rows, (int64_t)AT_ONCE * HIDDEN * 4, &err), &err);
    }
    free(rows);
    free(normal);
    s->norm = malloc(HIDDEN * sizeof *s->norm);
    for (int c = 0; c < HIDDEN; c++)
        s->norm[c] = 1.0f;
    s->coef = malloc((size_t)s->n_tokens * sizeof *s->coef);
    for (int64_t i = 0; i < s->n_tokens; i++)
        s->coef[i] = 0.05f + 0.3f * (float)(i * 7919 % 1000) / 1000.0f;
}

/* ---- an expert ---- */

static mq_status lend_rows(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err)
{
    bench *b = ctx;
    (void)sample;
    MQ_TRY(b->k->gather(b->dev, x, b->s->stream, b->rows + first, n, HIDDEN, err));
    return b->k->rmsnorm(b->dev, x, x, b->norm, 1e-5, n, HIDDEN, err);
}

static mq_matrix view(const bench *b, int i, int64_t rows, int64_t cols)
{
    return (mq_matrix){.scheme = MQ_SCHEME_FP8_BLOCK, .rows = rows, .cols = cols, .seg_rows = rows,
                       .data = b->codes + i * MATRIX, .scale = b->scales + i * SCALES};
}

static mq_status do_expert(void *ctx, int64_t expert, int worker, mq_err *err)
{
    bench *b = (bench *)ctx + worker;
    const source *s = b->s;
    if (now() > s->end)
        return MQ_OK;
    for (int64_t i = 0; i < s->n_tokens; i++) /* ascending, another choice for every expert */
        b->host_rows[i] = (int32_t)((i * STREAM_ROWS + expert % 7 * s->n_tokens / 7) / s->n_tokens % STREAM_ROWS);
    MQ_TRY(b->k->upload(b->dev, b->rows, b->host_rows, s->n_tokens * (int64_t)sizeof *b->rows, err));
    double start = now();
    memcpy(b->host, s->codes[expert % SOURCES], (size_t)(3 * MATRIX)); /* reading, from the page cache */
    b->read_seconds += now() - start;
    MQ_TRY(b->k->upload(b->dev, b->codes, b->host, 3 * MATRIX, err));
    MQ_TRY(b->k->upload(b->dev, b->scales, s->scales[expert % SOURCES], 3 * SCALES * (int64_t)sizeof(float), err));
    mq_calib_expert e = {.gate = view(b, 0, WIDTH, HIDDEN),
                         .up = view(b, 1, WIDTH, HIDDEN),
                         .down = view(b, 2, HIDDEN, WIDTH),
                         .n_tokens = s->n_tokens,
                         .coef = s->coef,
                         .rows = lend_rows,
                         .ctx = b};
    MQ_TRY(mq_calib_expert_run(b->worker, b->gate_up, b->down, b->account, &e, &s->recipe, err));
    b->n_done++;
    return MQ_OK;
}

static void open_bench(bench *b, const source *s, const mq_kernels *table, mq_precision precision)
{
    mq_err err;
    int group = s->recipe.group;
    void *p;
    *b = (bench){.s = s, .k = table};
    must(table->dev_open(&b->dev, 0, 1, NULL, &err), &err);
    must(table->set_precision(b->dev, precision, &err), &err);
    must(mq_calib_worker_create(&b->worker, table, b->dev, HIDDEN, WIDTH, group, BLOCK_ROWS, &err), &err);
    must(table->alloc(b->dev, &p, 3 * MATRIX, &err), &err);
    b->codes = p;
    must(table->alloc(b->dev, &p, 3 * SCALES * (int64_t)sizeof(float), &err), &err);
    b->scales = p;
    must(table->alloc(b->dev, &p, HIDDEN * (int64_t)sizeof(float), &err), &err);
    b->norm = p;
    must(table->upload(b->dev, b->norm, s->norm, HIDDEN * (int64_t)sizeof(float), &err), &err);
    must(table->alloc(b->dev, &p, s->n_tokens * (int64_t)sizeof *b->rows, &err), &err);
    b->rows = p;
    must(table->host_alloc(b->dev, &p, 3 * MATRIX, &err), &err);
    b->host = p;
    must(table->host_alloc(b->dev, &p, mq_units_bytes(2 * WIDTH, HIDDEN, group), &err), &err);
    b->gate_up = p;
    must(table->host_alloc(b->dev, &p, mq_units_bytes(HIDDEN, WIDTH, group), &err), &err);
    b->down = p;
    b->host_rows = malloc((size_t)s->n_tokens * sizeof *b->rows);
}

static void close_bench(bench *b)
{
    k->release(b->dev, b->codes);
    k->release(b->dev, b->scales);
    k->release(b->dev, b->norm);
    k->release(b->dev, b->rows);
    k->host_free(b->dev, b->host);
    k->host_free(b->dev, b->gate_up);
    k->host_free(b->dev, b->down);
    mq_calib_worker_free(b->worker);
    k->dev_close(b->dev);
    free(b->host_rows);
}

/* ---- the runs ---- */

static void time_experts(source *s, int n_workers, int64_t n_experts, mq_precision precision, double seconds)
{
    bench b[MAX_WORKERS];
    mq_err err;
    int64_t free_bytes, total_bytes, before, done = 0;
    mq_dev *dev;
    must(k->dev_open(&dev, 0, 1, NULL, &err), &err);
    must(k->memory(dev, &before, &total_bytes, &err), &err);
    for (int i = 0; i < n_workers; i++)
        open_bench(&b[i], s, k, precision);
    s->end = now() + 1e9;
    must(do_expert(b, 0, 0, &err), &err); /* warms up */
    b[0].n_done = 0;
    double start = now();
    s->end = start + seconds;
    must(mq_pool_run(n_workers, n_experts, do_expert, b, &err), &err);
    double took = now() - start;
    must(k->memory(dev, &free_bytes, &total_bytes, &err), &err);
    for (int i = 0; i < n_workers; i++)
        done += b[i].n_done;
    double energy = 0.0, loss = 0.0;
    for (int i = 0; i < MQ_CALIB_MATRICES; i++) {
        energy += b[0].account[i].energy;
        loss += b[0].account[i].loss;
    }
    printf("%lld experts, %d at a time: %.3f s, %.1f ms each, %.3e expert weights/s\n", (long long)done, n_workers, took,
           1e3 * took / (double)done, 3.0 * (double)MATRIX * (double)done / took);
    printf("device memory %.2f GB; relative error of the last: %.5f\n", 1e-9 * (double)(before - free_bytes),
           sqrt(loss / energy));
    for (int i = 0; i < n_workers; i++)
        close_bench(&b[i]);
    k->dev_close(dev);
    fflush(stdout);
}

static void profile(source *s, mq_precision precision)
{
    bench b;
    mq_err err;
    s->end = now() + 1e9;
    open_bench(&b, s, &timed, precision);
    must(do_expert(&b, 0, 0, &err), &err);
    memset(ops, 0, sizeof ops);
    n_ops = 0;
    b.read_seconds = 0.0;
    double start = now();
    must(do_expert(&b, 0, 0, &err), &err);
    double took = now() - start, sum = 0.0;
    printf("| operation | calls | ms |\n|---|---|---|\n");
    for (int i = 0; i < n_ops; i++) {
        printf("| %s | %lld | %.2f |\n", ops[i].name, (long long)ops[i].calls, 1e3 * ops[i].seconds);
        sum += ops[i].seconds;
    }
    printf("| reading | 1 | %.2f |\n| what is left | | %.2f |\n| one expert | | %.2f |\n", 1e3 * b.read_seconds,
           1e3 * (took - sum - b.read_seconds), 1e3 * took);
    close_bench(&b);
}

/* METHOD-PRECISION-WORKERS */
static bool do_run(source *s, const char *what, int64_t n_experts, int group, double seconds)
{
    char method[16], name[16];
    int n_workers;
    if (sscanf(what, "%15[a-z0-9]-%15[a-z0-9]-%d", method, name, &n_workers) != 3 || n_workers < 0 || n_workers > MAX_WORKERS)
        return false;
    bool imatrix = strcmp(method, "imatrix") == 0, bf16 = strcmp(name, "bf16") == 0;
    s->recipe = mq_calib_recipe_default(imatrix ? MQ_CALIB_IMATRIX : MQ_CALIB_GPTQ, group);
    if (strncmp(method, "gptq", 4) == 0 && method[4])
        s->recipe.rounds = atoi(method + 4);
    mq_precision precision = bf16 ? MQ_PRECISION_BF16 : MQ_PRECISION_F32;
    printf("\n%s, g%d, %lld tokens an expert, %s\n", method, group, (long long)s->n_tokens,
           bf16 ? "bf16" : "f32");
    fflush(stdout);
    if (n_workers > 0)
        time_experts(s, n_workers, n_experts, precision, seconds);
    else
        profile(s, precision);
    return true;
}

int main(int argc, char **argv)
{
    static char *const usual[] = {"gptq-bf16-4", "gptq-bf16-0"};
    char name[128];
    k = mq_kernels_find("cuda");
    if (!k || mq_cuda_count() == 0) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    source s = {.n_tokens = argc > 1 ? atoll(argv[1]) : 43750};
    int64_t n_experts = argc > 2 ? atoll(argv[2]) : 48;
    double seconds = argc > 3 ? atof(argv[3]) : 1e9;
    int group = argc > 4 ? atoi(argv[4]) : 64, n_runs = argc > 5 ? argc - 5 : 2;
    char *const *runs = argc > 5 ? argv + 5 : usual;
    if (s.n_tokens < 1 || s.n_tokens > STREAM_ROWS) {
        fprintf(stderr, "1 to %d tokens an expert\n", STREAM_ROWS);
        return 2;
    }
    mq_cuda_name(0, name, sizeof name);
    printf("%s\n", name);
    make_timed();
    fill_experts(&s);
    mq_dev *dev;
    mq_err err;
    must(k->dev_open(&dev, 0, 1, NULL, &err), &err);
    fill_stream(&s, dev);
    bool ok = true;
    for (int i = 0; i < n_runs; i++)
        ok &= do_run(&s, runs[i], n_experts, group, seconds);
    k->release(dev, s.stream);
    k->dev_close(dev);
    for (int i = 0; i < SOURCES; i++) {
        free(s.codes[i]);
        free(s.scales[i]);
    }
    free(s.norm);
    free(s.coef);
    return ok ? 0 : 2;
}
