/* Speed of the CUDA table's operations on GPU 0 at the shapes of MiMo-V2.5-Pro: hidden 6144, experts of width 2048.
 * Best time of a few calls, the wait for the device included; weights per second for what rounds, TFLOP/s or GB/s for what
 * computes.  Exit 77 without a GPU. */
#include <stdio.h>
#include <time.h>

#include "kernels/kernels.h"
#include "tests/maker/calibration_data.h"

enum { HIDDEN = 6144, WIDTH = 2048, TOKENS = 2048, GROUP = 64, N_HEADS = 128, N_KV_HEADS = 8, DIM = 192, V_DIM = 128 };

static const mq_kernels *k;
static mq_dev *dev;
static mq_err err;

static void must(mq_status st)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    must(k->dev_sync(dev, &err));
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *room(int64_t n_bytes)
{
    void *p;
    must(k->alloc(dev, &p, n_bytes, &err));
    return p;
}

/* count values of standard deviation 1, made from a block of 2^20 over and over. */
static float *normal(int64_t count)
{
    enum { BLOCK = 1 << 20 };
    float *host = random_floats(BLOCK, 7), *p = room(count * 4);
    for (int64_t at = 0; at < count; at += BLOCK)
        must(k->upload(dev, p + at, host, 4 * (count - at < BLOCK ? count - at : BLOCK), &err));
    free(host);
    return p;
}

typedef struct data {
    float *x, *y, *w, *g, *a, *d, *scale, *loss;
    int32_t *perm;
    uint8_t *codes, *units;
    mq_matrix fp8, int4;
    mq_kv kv;
} data;

static void run_linear_fp8(data *t) { must(k->linear(dev, t->y, t->x, &t->fp8, TOKENS, &err)); }
static void run_linear_int4(data *t) { must(k->linear(dev, t->y, t->x, &t->int4, TOKENS, &err)); }
static void run_fixed_int4(data *t) { must(k->linear_fixed(dev, t->y, t->x, &t->int4, 8, &err)); }
static void run_attention(data *t)
{
    must(k->attention(dev, t->y, t->x, &t->kv, N_HEADS, NULL, 0, TOKENS, 0, &err));
}
static void run_window(data *t)
{
    must(k->attention(dev, t->y, t->x, &t->kv, N_HEADS, NULL, 128, TOKENS, 0, &err));
}
static void run_gram(data *t) { must(k->gram(dev, t->g, t->x, NULL, TOKENS, HIDDEN, &err)); }
static void run_factor(data *t) { must(k->factor(dev, t->a, t->d, t->g, t->perm, 1000.0f, HIDDEN, &err)); }
static void run_search(data *t) { must(k->search_scales(dev, t->scale, t->w, NULL, WIDTH, HIDDEN, GROUP, &err)); }
static void run_nearest(data *t) { must(k->nearest(dev, t->codes, t->w, t->scale, WIDTH, HIDDEN, GROUP, &err)); }
static void run_ldlq(data *t)
{
    must(k->ldlq(dev, t->codes, t->loss, t->w, t->scale, t->a, t->d, t->perm, WIDTH, HIDDEN, GROUP, &err));
}
static void run_loss(data *t)
{
    must(k->quant_loss(dev, t->loss, NULL, t->codes, t->w, t->scale, t->g, WIDTH, HIDDEN, GROUP, &err));
}
static void run_refit(data *t)
{
    must(k->refit_scales(dev, t->scale, t->loss, t->codes, t->w, t->g, WIDTH, HIDDEN, GROUP, &err));
}
static void run_descend(data *t)
{
    must(k->descend(dev, t->codes, t->loss, t->w, t->scale, t->g, 1, WIDTH, HIDDEN, GROUP, &err));
}
static void run_pack(data *t)
{
    must(k->pack_units(dev, t->units, t->codes, t->scale, t->codes, t->scale, WIDTH, HIDDEN, GROUP, &err));
}

static data make_data(void)
{
    data t = {.x = normal((int64_t)TOKENS * N_HEADS * DIM), .y = room((int64_t)TOKENS * N_HEADS * DIM * 4)};
    int64_t weights = (int64_t)WIDTH * HIDDEN, moment = (int64_t)HIDDEN * HIDDEN;
    t.w = normal(weights);
    t.g = room(moment * 4);
    t.a = room(moment * 4);
    t.d = room(HIDDEN * 4);
    t.scale = room(weights / GROUP * 4);
    t.loss = room(WIDTH * 4);
    t.codes = room(weights);
    t.units = room(mq_units_bytes(2 * WIDTH, HIDDEN, GROUP));
    int32_t *order = random_permutation(HIDDEN, 1);
    t.perm = room(HIDDEN * 4);
    must(k->upload(dev, t.perm, order, HIDDEN * 4, &err));
    free(order);
    t.fp8 = (mq_matrix){.scheme = MQ_SCHEME_FP8_BLOCK, .rows = WIDTH, .cols = HIDDEN, .seg_rows = WIDTH};
    t.fp8.data = room(weights);
    t.fp8.scale = normal(mq_fp8_n_scales(&t.fp8));
    t.int4 = (mq_matrix){.scheme = MQ_SCHEME_INT4, .rows = WIDTH, .cols = HIDDEN, .group = GROUP};
    t.int4.data = room(mq_units_bytes(WIDTH, HIDDEN, GROUP));
    t.kv = (mq_kv){.n_slots = TOKENS, .n_kv_heads = N_KV_HEADS, .head_dim = DIM, .v_head_dim = V_DIM};
    t.kv.k = normal((int64_t)TOKENS * N_KV_HEADS * DIM);
    t.kv.v = normal((int64_t)TOKENS * N_KV_HEADS * V_DIM);
    return t;
}

int main(void)
{
    k = mq_kernels_find("cuda");
    if (!k || mq_cuda_count() == 0) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    must(k->dev_open(&dev, 0, 0, NULL, &err));
    const double weights = (double)WIDTH * HIDDEN, full = (double)TOKENS * TOKENS / 2, sliding = (double)TOKENS * 128;
    const double a_key = 2.0 * N_HEADS * (DIM + V_DIM);
    const struct {
        const char *name, *unit;
        void (*run)(data *t);
        double work; /* in the unit, times 1e-9 or 1e-12 */
    } benches[] = {
        {"linear, fp8, 2048 rows", "TFLOP/s", run_linear_fp8, 2e-12 * TOKENS * weights},
        {"linear, int4 g64, 2048 rows", "TFLOP/s", run_linear_int4, 2e-12 * TOKENS * weights},
        {"linear_fixed, int4 g64, 8 rows", "GB/s", run_fixed_int4, 1e-9 * weights * 544 / 1024},
        {"attention, 2048 rows, all keys", "TFLOP/s", run_attention, 1e-12 * a_key * full},
        {"attention, 2048 rows, window 128", "TFLOP/s", run_window, 1e-12 * a_key * sliding},
        {"gram, 2048 rows of 6144", "TFLOP/s", run_gram, 1e-12 * TOKENS * HIDDEN * HIDDEN},
        {"factor, 6144", "TFLOP/s", run_factor, 1e-12 / 3 * HIDDEN * HIDDEN * HIDDEN},
        {"search_scales", "G weights/s", run_search, 1e-9 * weights},
        {"nearest", "G weights/s", run_nearest, 1e-9 * weights},
        {"ldlq", "G weights/s", run_ldlq, 1e-9 * weights},
        {"quant_loss", "G weights/s", run_loss, 1e-9 * weights},
        {"refit_scales", "G weights/s", run_refit, 1e-9 * weights},
        {"descend, one pass", "G weights/s", run_descend, 1e-9 * weights},
        {"pack_units, gate and up", "G weights/s", run_pack, 2e-9 * weights},
    };
    data t = make_data();
    printf("%s; weights [%d, %d]\n%-34s %10s\n", k->dev_name(dev), WIDTH, HIDDEN, "", "ms");
    for (size_t i = 0; i < sizeof benches / sizeof benches[0]; i++) {
        double best = 1e9;
        for (int round = 0; round < 4; round++) { /* the first one warms up */
            double start = now();
            benches[i].run(&t);
            double took = now() - start;
            best = round && took < best ? took : best;
        }
        printf("%-34s %10.3f %10.2f %s\n", benches[i].name, 1e3 * best, benches[i].work / best, benches[i].unit);
        fflush(stdout);
    }
    k->dev_close(dev);
    return 0;
}
