/* Speed of the calibration operations: GFLOP/s of moments, factorisation, error feedback and refinement at the shapes of the small
 * test models and of MiMo-V2.5-Pro.  bench_calibration [THREADS [ISA [LARGEST_COLS [GROUP]]]]
 *
 * Operations are counted as multiply-adds times two of the dense algorithm: gram n cols^2, cross 2 n cols^2, factor cols^3 / 3, solve
 * 2 rows cols^2, ldlq and quant_loss rows cols^2; refit 4 rows cols^2 and descent 2 (gradient alone), whatever passes cost. */
#include <stdio.h>
#include <time.h>

#include "tests/maker/calibration_data.h"

static const mq_kernels *k;
static mq_dev *dev;
static int group = 64;

/* With one thread its processor time, which other programs disturb less. */
static clockid_t clock_id = CLOCK_MONOTONIC;

static double now(void)
{
    struct timespec t;
    clock_gettime(clock_id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Everything one shape needs. */
typedef struct shape {
    int64_t rows, cols, n;
    float *x, *g, *c, *a, *d, *w, *y, *scale, *scale_new, *loss, *weight;
    uint8_t *codes, *codes_new;
    int32_t *perm;
} shape;

typedef mq_status (*step)(shape *s, mq_err *err);

static mq_status do_gram(shape *s, mq_err *err)
{
    return k->gram(dev, s->g, s->x, s->weight, s->n, s->cols, err);
}
static mq_status do_cross(shape *s, mq_err *err)
{
    return k->cross(dev, s->c, s->x, s->x, s->weight, s->n, s->cols, s->cols, err);
}
static mq_status do_factor(shape *s, mq_err *err)
{
    return k->factor(dev, s->a, s->d, s->g, s->perm, 0.05f * s->g[0], s->cols, err);
}
static mq_status do_solve(shape *s, mq_err *err)
{
    return k->solve(dev, s->y, s->w, s->a, s->d, s->perm, s->rows, s->cols, err);
}
static mq_status do_search(shape *s, mq_err *err)
{
    return k->search_scales(dev, s->scale, s->w, NULL, s->rows, s->cols, group, err);
}
static mq_status do_ldlq(shape *s, mq_err *err)
{
    return k->ldlq(dev, s->codes, s->loss, s->w, s->scale, s->a, s->d, s->perm, s->rows, s->cols, group, err);
}
static mq_status do_loss(shape *s, mq_err *err)
{
    return k->quant_loss(dev, s->loss, NULL, s->codes, s->w, s->scale, s->g, s->rows, s->cols, group, err);
}
static mq_status do_refit(shape *s, mq_err *err)
{
    memcpy(s->scale_new, s->scale, (size_t)(s->rows * s->cols / group) * sizeof *s->scale);
    return k->refit_scales(dev, s->scale_new, s->loss, s->codes, s->w, s->g, s->rows, s->cols, group, err);
}
static mq_status do_descend(shape *s, mq_err *err)
{
    memcpy(s->codes_new, s->codes, (size_t)(s->rows * s->cols));
    return k->descend(dev, s->codes_new, s->loss, s->w, s->scale, s->g, 4, s->rows, s->cols, group, err);
}

static void time_step(const char *name, step f, shape *s, double flops)
{
    double best = 1e30, end = now() + 0.5;
    mq_err err;
    do {
        double t = now();
        if (f(s, &err) != MQ_OK) {
            printf("  %-8s %s\n", name, err.text);
            return;
        }
        t = now() - t;
        best = t < best ? t : best;
    } while (now() < end);
    printf("  %-8s %10.3f ms %8.1f GFLOP/s\n", name, best * 1e3, flops / best * 1e-9);
}

static void bench(int64_t rows, int64_t cols, int64_t n)
{
    shape s = {.rows = rows, .cols = cols, .n = n};
    size_t square = (size_t)(cols * cols) * sizeof *s.g;
    s.x = random_activations(n, cols, 1);
    s.weight = random_floats(n, 2);
    for (int64_t i = 0; i < n; i++)
        s.weight[i] = fabsf(s.weight[i]);
    s.g = calloc(1, square);
    s.c = calloc(1, square);
    s.a = malloc(square);
    s.d = malloc((size_t)cols * sizeof *s.d);
    s.w = random_floats(rows * cols, 3);
    s.y = malloc((size_t)(rows * cols) * sizeof *s.y);
    s.scale = malloc((size_t)(rows * cols / group) * sizeof *s.scale);
    s.scale_new = malloc((size_t)(rows * cols / group) * sizeof *s.scale);
    s.loss = malloc((size_t)rows * sizeof *s.loss);
    s.codes = malloc((size_t)(rows * cols));
    s.codes_new = malloc((size_t)(rows * cols));
    s.perm = random_permutation(cols, 5);
    double rc2 = (double)rows * (double)cols * (double)cols, nc2 = (double)n * (double)cols * (double)cols;
    printf("%lld x %lld, moment of %lld rows\n", (long long)rows, (long long)cols, (long long)n);
    time_step("gram", do_gram, &s, nc2);
    time_step("cross", do_cross, &s, 2.0 * nc2);
    time_step("factor", do_factor, &s, (double)cols * (double)cols * (double)cols / 3.0);
    time_step("search", do_search, &s, (double)rows * (double)cols);
    time_step("ldlq", do_ldlq, &s, rc2);
    time_step("loss", do_loss, &s, rc2);
    time_step("refit", do_refit, &s, 4.0 * rc2);
    time_step("descend", do_descend, &s, 2.0 * rc2);
    time_step("solve", do_solve, &s, 2.0 * rc2);
    free(s.x);
    free(s.weight);
    free(s.g);
    free(s.c);
    free(s.a);
    free(s.d);
    free(s.w);
    free(s.y);
    free(s.scale);
    free(s.scale_new);
    free(s.loss);
    free(s.codes);
    free(s.codes_new);
    free(s.perm);
}

int main(int argc, char **argv)
{
    static const struct {
        int64_t rows, cols, n;
    } shapes[] = {{256, 128, 2048}, {128, 256, 2048}, {6144, 2048, 2048}, {2048, 6144, 2048}};
    int64_t largest = argc > 3 ? atoll(argv[3]) : 2048;
    mq_err err;
    k = mq_kernels_find("cpu");
    clock_id = argc > 1 && atoi(argv[1]) == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    group = argc > 4 ? atoi(argv[4]) : 64;
    if (k->dev_open(&dev, 0, argc > 1 ? atoi(argv[1]) : 0, argc > 2 ? argv[2] : NULL, &err) != MQ_OK) {
        fprintf(stderr, "bench_calibration: %s\n", err.text);
        return 1;
    }
    printf("%s, group %d\n", k->dev_name(dev), group);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (shapes[i].cols <= largest)
            bench(shapes[i].rows, shapes[i].cols, shapes[i].n);
    k->dev_close(dev);
    return 0;
}
