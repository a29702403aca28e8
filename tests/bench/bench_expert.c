/* How long one expert's calibration takes, operation by operation: FP8 bytes in device memory to packed units on the host.
 *
 *   bench_expert [--device cpu|cuda] [--method gptq|imatrix] [--recipe KEY=VALUE,...] [--hidden N] [--width N] [--group N]
 *                [--tokens N] [--experts N] [--threads N]
 *
 * Every operation is followed by dev_sync, so that times belong to the operation that took them; the line "as it is" is measured
 * again without.  Defaults: MiMo-V2.5-Pro's shape and 43,700 tokens, what 2.1 million calibration tokens give an expert on average. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calib/expert.h"
#include "tools/calib_options.h"

typedef struct settings {
    const char *device;
    mq_calib_recipe recipe;
    int64_t hidden, width, tokens, experts;
    int threads;
} settings;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(mq_status st, const mq_err *err)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(70);
}

/* ---- the table with a clock ---- */

#define OPERATIONS(X)                                                                                                    \
    X(upload) X(download) X(copy) X(linear) X(swiglu) X(widen) X(axpby) X(gram) X(cross) X(diag) X(set_diag) X(factor)    \
    X(solve) X(search_scales) X(nearest) X(weight_error) X(ldlq) X(quant_loss) X(refit_scales) X(descend)                 \
    X(keep_better) X(pack_units)
#define NUMBER(op) OP_##op,
enum { OPERATIONS(NUMBER) N_OPERATIONS };
#define NAME(op) #op,
static const char *const names[] = {OPERATIONS(NAME)};

static const mq_kernels *k;
static double spent_s[N_OPERATIONS];
static int64_t n_calls[N_OPERATIONS];

#define TIMED(op, params, args)                                  \
    static mq_status timed_##op params                           \
    {                                                            \
        double start = now_s();                                  \
        mq_status st = k->op args;                               \
        if (st == MQ_OK)                                         \
            st = k->dev_sync(dev, err);                          \
        spent_s[OP_##op] += now_s() - start;                     \
        n_calls[OP_##op]++;                                      \
        return st;                                               \
    }

TIMED(upload, (mq_dev *dev, void *to, const void *from, int64_t n, mq_err *err), (dev, to, from, n, err))
TIMED(download, (mq_dev *dev, void *to, const void *from, int64_t n, mq_err *err), (dev, to, from, n, err))
TIMED(copy, (mq_dev *dev, void *to, const void *from, int64_t n, mq_err *err), (dev, to, from, n, err))
TIMED(linear, (mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err), (dev, y, x, w, n, err))
TIMED(swiglu, (mq_dev *dev, float *h, const float *g, const float *u, bool both, int64_t n, int64_t width, mq_err *err),
      (dev, h, g, u, both, n, width, err))
TIMED(widen, (mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n, mq_err *err),
      (dev, out, w, row0, n, err))
TIMED(axpby, (mq_dev *dev, float *y, float a, const float *x, float b, int64_t n, mq_err *err), (dev, y, a, x, b, n, err))
TIMED(gram, (mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err),
      (dev, g, x, weight, n, cols, err))
TIMED(cross,
      (mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n, int64_t cols, int64_t y_cols,
       mq_err *err),
      (dev, c, x, y, weight, n, cols, y_cols, err))
TIMED(diag, (mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err), (dev, out, g, n, err))
TIMED(set_diag, (mq_dev *dev, float *g, const float *diag, int64_t n, mq_err *err), (dev, g, diag, n, err))
TIMED(factor,
      (mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n, mq_err *err),
      (dev, a, d, g, perm, ridge, n, err))
TIMED(solve,
      (mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm, int64_t rows, int64_t n,
       mq_err *err),
      (dev, x, y, a, d, perm, rows, n, err))
TIMED(search_scales,
      (mq_dev *dev, float *s, const float *w, const float *omega, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, s, w, omega, rows, cols, group, err))
TIMED(nearest, (mq_dev *dev, uint8_t *q, const float *w, const float *s, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, q, w, s, rows, cols, group, err))
TIMED(weight_error,
      (mq_dev *dev, double *e, double *n, const uint8_t *q, const float *w, const float *s, int64_t rows, int64_t cols,
       int group, mq_err *err),
      (dev, e, n, q, w, s, rows, cols, group, err))
TIMED(ldlq,
      (mq_dev *dev, uint8_t *q, float *loss, const float *w, const float *s, const float *a, const float *d,
       const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, q, loss, w, s, a, d, perm, rows, cols, group, err))
TIMED(quant_loss,
      (mq_dev *dev, float *loss, float *norm, const uint8_t *q, const float *w, const float *s, const float *g, int64_t rows,
       int64_t cols, int group, mq_err *err),
      (dev, loss, norm, q, w, s, g, rows, cols, group, err))
TIMED(refit_scales,
      (mq_dev *dev, float *s, float *loss, const uint8_t *q, const float *w, const float *g, int64_t rows, int64_t cols,
       int group, mq_err *err),
      (dev, s, loss, q, w, g, rows, cols, group, err))
TIMED(descend,
      (mq_dev *dev, uint8_t *q, float *loss, const float *w, const float *s, const float *g, int passes, int64_t rows,
       int64_t cols, int group, mq_err *err),
      (dev, q, loss, w, s, g, passes, rows, cols, group, err))
TIMED(keep_better,
      (mq_dev *dev, uint8_t *q, float *s, float *loss, int64_t *n, const uint8_t *q2, const float *s2, const float *loss2,
       int64_t rows, int64_t cols, int group, mq_err *err),
      (dev, q, s, loss, n, q2, s2, loss2, rows, cols, group, err))
TIMED(pack_units,
      (mq_dev *dev, uint8_t *units, const uint8_t *qa, const float *sa, const uint8_t *qb, const float *sb, int64_t rows,
       int64_t cols, int group, mq_err *err),
      (dev, units, qa, sa, qb, sb, rows, cols, group, err))

/* ---- an expert of noise ---- */

enum { BLOCK = 2048 };

typedef struct tokens {
    mq_dev *dev;
    const float *x; /* [BLOCK, hidden] device: every block is the same tokens */
    int64_t hidden;
} tokens;

static mq_status rows_of(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err)
{
    const tokens *t = ctx;
    (void)sample, (void)first;
    return k->copy(t->dev, x, t->x, n * t->hidden * (int64_t)sizeof *x, err);
}

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void *on_device(mq_dev *dev, const void *host, int64_t n_bytes)
{
    mq_err err;
    void *p;
    check(k->alloc(dev, &p, n_bytes, &err), &err);
    check(k->upload(dev, p, host, n_bytes, &err), &err);
    return p;
}

static mq_matrix make_matrix(mq_dev *dev, int64_t rows, int64_t cols, uint64_t seed)
{
    mq_matrix m = {.scheme = MQ_SCHEME_FP8_BLOCK, .rows = rows, .cols = cols, .seg_rows = rows};
    int64_t n_scales = mq_fp8_n_scales(&m);
    uint8_t *codes = malloc((size_t)(rows * cols));
    float *scales = malloc((size_t)n_scales * sizeof *scales);
    for (int64_t i = 0; i < rows * cols; i++) {
        uint64_t r = next(&seed);
        codes[i] = (uint8_t)((r & 0x80u) | (0x38u + (r & 0x3fu) % 0x30u));
    }
    for (int64_t i = 0; i < n_scales; i++)
        scales[i] = 1e-3f;
    m.data = on_device(dev, codes, rows * cols);
    m.scale = on_device(dev, scales, n_scales * (int64_t)sizeof *scales);
    free(codes);
    free(scales);
    return m;
}

/* Inputs with a common part, so that columns are correlated. */
static float *make_inputs(mq_dev *dev, int64_t hidden)
{
    uint64_t seed = 5;
    float *x = malloc((size_t)(BLOCK * hidden) * sizeof *x);
    for (int64_t i = 0; i < BLOCK; i++) {
        float common = (float)(next(&seed) % 2001u) * 1e-3f - 1.0f;
        for (int64_t c = 0; c < hidden; c++)
            x[i * hidden + c] = (float)(next(&seed) % 2001u) * 1e-3f - 1.0f + common;
    }
    float *on = on_device(dev, x, BLOCK * hidden * (int64_t)sizeof *x);
    free(x);
    return on;
}

static double run(const mq_kernels *table, mq_dev *dev, const mq_calib_expert *e, const settings *s)
{
    mq_err err;
    mq_calib_worker *w;
    mq_calib_account account[MQ_CALIB_MATRICES];
    uint8_t *gate_up = malloc((size_t)(2 * s->width * s->hidden)), *down = malloc((size_t)(s->width * s->hidden));
    check(mq_calib_worker_create(&w, table, dev, s->hidden, s->width, s->recipe.group, BLOCK, &err), &err);
    if (table == k) /* once to warm up */
        check(mq_calib_expert_run(w, gate_up, down, account, e, &s->recipe, &err), &err);
    double start = now_s();
    for (int64_t i = 0; i < s->experts; i++)
        check(mq_calib_expert_run(w, gate_up, down, account, e, &s->recipe, &err), &err);
    double seconds = now_s() - start;
    for (int m = 0; table == k && m < MQ_CALIB_MATRICES; m++)
        printf("matrix %d: path %s, relative loss %.3g\n", m, mq_calib_path_name(account[m].path),
               account[m].loss / account[m].energy);
    mq_calib_worker_free(w);
    free(gate_up);
    free(down);
    return seconds;
}

static void print_times(double seconds, const settings *s)
{
    double experts = (double)s->experts;
    for (int i = 0; i < N_OPERATIONS; i++)
        if (n_calls[i])
            printf("%-14s %8.2f ms %6lld calls %5.1f %%\n", names[i], 1e3 * spent_s[i] / experts,
                   (long long)(n_calls[i] / s->experts), 100.0 * spent_s[i] / seconds);
    printf("%-14s %8.2f ms\n", "all, timed", 1e3 * seconds / experts);
}

static settings read_settings(int argc, char **argv)
{
    settings s = {"cpu", mq_calib_recipe_default(MQ_CALIB_GPTQ, 64), 6144, 2048, 43700, 1, 0};
    const struct {
        const char *name;
        int64_t *value;
    } numbers[] = {{"--hidden", &s.hidden}, {"--width", &s.width}, {"--tokens", &s.tokens}, {"--experts", &s.experts}};
    for (int i = 1; i + 1 < argc; i += 2) {
        mq_err err;
        for (size_t j = 0; j < sizeof numbers / sizeof numbers[0]; j++)
            if (!strcmp(argv[i], numbers[j].name))
                *numbers[j].value = atoll(argv[i + 1]);
        if (!strcmp(argv[i], "--device"))
            s.device = argv[i + 1];
        else if (!strcmp(argv[i], "--threads"))
            s.threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--group"))
            s.recipe.group = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--method") && !strcmp(argv[i + 1], "imatrix"))
            s.recipe = mq_calib_recipe_default(MQ_CALIB_IMATRIX, s.recipe.group);
        else if (!strcmp(argv[i], "--recipe"))
            check(mq_calib_recipe_read(&s.recipe, argv[i + 1], &err), &err);
    }
    return s;
}

int main(int argc, char **argv)
{
    settings s = read_settings(argc, argv);
    k = mq_kernels_find(s.device);
    if (!k) {
        fprintf(stderr, "%s is not built in\n", s.device);
        return 64;
    }
    mq_err err;
    mq_dev *dev;
    check(k->dev_open(&dev, 0, s.threads, NULL, &err), &err);
    float *coef = malloc((size_t)(s.tokens + 1) * sizeof *coef);
    for (int64_t i = 0; i < s.tokens; i++)
        coef[i] = 0.1f + 0.01f * (float)(i % 37);
    tokens t = {dev, make_inputs(dev, s.hidden), s.hidden};
    mq_calib_expert e = {make_matrix(dev, s.width, s.hidden, 1), make_matrix(dev, s.width, s.hidden, 2),
                         make_matrix(dev, s.hidden, s.width, 3), s.tokens, coef, 0, rows_of, &t, NULL, 0, NULL};
    printf("%s: hidden %lld, width %lld, g%d, %lld tokens\n", k->dev_name(dev), (long long)s.hidden, (long long)s.width,
           s.recipe.group, (long long)s.tokens);

    double plain = run(k, dev, &e, &s);
    mq_kernels timed = *k;
#define WRAP(op) timed.op = timed_##op;
    OPERATIONS(WRAP)
    double seconds = run(&timed, dev, &e, &s);
    print_times(seconds, &s);
    double weights = 3.0 * (double)(s.hidden * s.width * s.experts);
    printf("%-14s %8.2f ms, %.3g weights/s\n", "as it is", 1e3 * plain / (double)s.experts, weights / plain);
    free(coef);
    k->dev_close(dev);
    return 0;
}
