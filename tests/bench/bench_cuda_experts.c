/* Speed of the decode step's experts on GPU 0: microseconds a layer, and the share of the streaming read rate that the same run
 * measures.
 *
 *   bench_cuda_experts cuda [HIDDEN WIDTH EXPERTS TOPK LAYERS]       6144 256 384 8 16: one rank of eight of MiMo-V2.5-Pro
 *   bench_cuda_experts emulator [HIDDEN WIDTH EXPERTS TOPK LAYERS]   256 128 9 2 2: that it runs; its times mean nothing
 *
 * Every format in turn, synthetic weights (kernels/fill.h), random routing that differs from layer to layer; with the
 * default sizes a pass reads far more than an L2 holds.  A pass is a graph of all layers, as in a step; the median of 15.
 * Exit 77 without a GPU. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/emulator/emulator.h"
#include "tests/harness.h"

enum { R = MQ_DECODE_ROWS, N_PASSES = 15, MAX_LAYERS = 128 };

static const mq_kernels *k;
static mq_dev *dev;
static mq_err err;
static int n_passes = N_PASSES;

/* Everything of one format. */
typedef struct bench {
    mq_decode_expert_table shape;
    int n_layers;
    int64_t gate_up_bytes, down_bytes; /* of an expert */
    void *weights[MAX_LAYERS][2], *table[MAX_LAYERS][2];
    mq_decode_plan plan[MAX_LAYERS];
    uint16_t *x, *h;
    uint32_t *done;
    float *y;
} bench;

static void must(mq_status st)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

static void *host(int64_t n_bytes)
{
    void *p = calloc((size_t)n_bytes, 1);
    if (!p)
        exit(1);
    return p;
}

static void *room(int64_t n_bytes)
{
    void *p;
    must(k->alloc(dev, &p, n_bytes, &err));
    return p;
}

/* ---- what is computed on ---- */

/* Weights of all experts in one block, and the table of their addresses. */
static void make_weights(bench *b, int layer, int which)
{
    const mq_decode_expert_table *s = &b->shape;
    int64_t bytes = which ? b->down_bytes : b->gate_up_bytes, rows = which ? s->hidden : 2 * s->width, cols = which ? s->width : s->hidden;
    float scale = 1.0f;
    while ((double)scale * (double)scale * 16.0 * (double)cols > 1.0)
        scale *= 0.5f;
    mq_fill f = {.kind = s->group == MQ_GROUP_MXFP4 ? MQ_FILL_MXFP4 : MQ_FILL_INT4, .group = s->group,
                 .key = (uint64_t)(2 * layer + which), .scale = scale, .rows = s->n_experts * rows, .cols = cols, .whole_cols = cols};
    const uint8_t **address = host(s->n_experts * (int64_t)sizeof *address);
    uint8_t *p = room(bytes * s->n_experts);
    must(k->fill(dev, p, &f, &err));
    for (int e = 0; e < s->n_experts; e++)
        address[e] = p + bytes * e;
    b->weights[layer][which] = p;
    b->table[layer][which] = room(s->n_experts * (int64_t)sizeof *address);
    must(k->upload(dev, b->table[layer][which], address, s->n_experts * (int64_t)sizeof *address, &err));
    free(address);
}

static bench *make_bench(mq_decode_expert_table shape, int n_layers)
{
    bench *b = host(sizeof *b);
    int64_t slots = R * shape.topk;
    b->shape = shape;
    b->n_layers = n_layers;
    b->gate_up_bytes = mq_units_bytes(2 * shape.width, shape.hidden, shape.group);
    b->down_bytes = mq_units_bytes(shape.hidden, shape.width, shape.group);
    for (int l = 0; l < n_layers; l++) {
        make_weights(b, l, 0);
        make_weights(b, l, 1);
        b->plan[l] = (mq_decode_plan){.n = room(4), .expert = room(4 * slots), .slot = room(4 * slots * R), .coef = room(4 * slots)};
    }
    b->x = room(2 * R * shape.hidden);
    b->h = room(2 * slots * shape.width);
    b->y = room(4 * R * shape.hidden);
    b->done = room(4 * (slots + 1));
    uint32_t *zero = host(4 * (slots + 1));
    must(k->upload(dev, b->done, zero, 4 * (slots + 1), &err));
    free(zero);
    uint64_t seed = 1;
    uint16_t *x = host(2 * R * shape.hidden);
    for (int64_t i = 0; i < R * shape.hidden; i++)
        x[i] = mq_f32_to_bf16(mq_test_normal(&seed));
    must(k->upload(dev, b->x, x, 2 * R * shape.hidden, &err));
    free(x);
    return b;
}

static void free_bench(bench *b)
{
    for (int l = 0; l < b->n_layers; l++) {
        for (int i = 0; i < 2; i++) {
            k->release(dev, b->weights[l][i]);
            k->release(dev, b->table[l][i]);
        }
        k->release(dev, b->plan[l].n);
        k->release(dev, b->plan[l].expert);
        k->release(dev, b->plan[l].slot);
        k->release(dev, b->plan[l].coef);
    }
    k->release(dev, b->x);
    k->release(dev, b->h);
    k->release(dev, b->done);
    k->release(dev, b->y);
    free(b);
}

/* topk distinct experts of each of n rows at random; returns how many there are in all. */
static int32_t make_plan(const bench *b, int layer, int n, uint64_t *seed)
{
    const mq_decode_expert_table *s = &b->shape;
    int64_t slots = R * s->topk;
    int32_t active = 0, taken[R] = {0}, *expert = host(4 * slots), *slot = host(4 * slots * R);
    float *coef = host(4 * slots);
    for (int64_t i = 0; i < slots; i++)
        coef[i] = 1.0f / (float)s->topk;
    for (int e = 0; e < s->n_experts; e++) {
        bool chosen = false;
        int32_t of_row[R];
        for (int r = 0; r < R; r++) {
            bool mine = r < n && mq_test_rand(seed) % (uint64_t)(s->n_experts - e) < (uint64_t)(s->topk - taken[r]);
            of_row[r] = mine ? r * s->topk + taken[r]++ : -1;
            chosen = chosen || mine;
        }
        if (!chosen)
            continue;
        expert[active] = e;
        memcpy(slot + active * R, of_row, sizeof of_row);
        active++;
    }
    const mq_decode_plan *p = &b->plan[layer];
    must(k->upload(dev, p->n, &active, 4, &err));
    must(k->upload(dev, p->expert, expert, 4 * slots, &err));
    must(k->upload(dev, p->slot, slot, 4 * slots * R, &err));
    must(k->upload(dev, p->coef, coef, 4 * slots, &err));
    free(expert);
    free(slot);
    free(coef);
    return active;
}

/* ---- what is measured ---- */

typedef struct pass {
    const bench *b;
    uint64_t *sum; /* not NULL: every weight is read, in order, and nothing else */
} pass;

static mq_status run_layer(const bench *b, int layer, mq_err *e)
{
    mq_decode_experts job = {.experts = b->shape, .plan = b->plan[layer], .x = b->x, .h = b->h, .done = b->done, .y = b->y};
    job.experts.gate_up = b->table[layer][0];
    job.experts.down = b->table[layer][1];
    return k->decode->parts->experts(dev, &job, e);
}

static mq_status queue_pass(void *arg, mq_err *e)
{
    const pass *p = arg;
    for (int l = 0; l < p->b->n_layers; l++) {
        if (!p->sum) {
            MQ_TRY(run_layer(p->b, l, e));
            continue;
        }
        MQ_TRY(k->sum_words(dev, p->sum, p->b->weights[l][0], p->b->gate_up_bytes * p->b->shape.n_experts / 8, e));
        MQ_TRY(k->sum_words(dev, p->sum, p->b->weights[l][1], p->b->down_bytes * p->b->shape.n_experts / 8, e));
    }
    return MQ_OK;
}

/* Seconds a pass. */
static double time_layers(const bench *b)
{
    pass p = {b, NULL};
    double seconds;
    must(k->decode->parts->time(dev, &seconds, queue_pass, &p, n_passes, &err));
    return seconds;
}

/* Bytes a second of a plain read of all weights. */
static double read_rate(const bench *b)
{
    pass p = {b, room(8)};
    double seconds;
    must(k->decode->parts->time(dev, &seconds, queue_pass, &p, n_passes, &err));
    k->release(dev, p.sum);
    return (double)b->n_layers * (double)(b->gate_up_bytes + b->down_bytes) * b->shape.n_experts / seconds;
}

static void run_format(mq_decode_expert_table shape, int n_layers)
{
    static const int widths[] = {1, 2, 4, 8};
    if (k->decode->parts->check_experts(&shape, &err) != MQ_OK) {
        printf("group %d: %s\n", shape.group, err.text);
        return;
    }
    bench *b = make_bench(shape, n_layers);
    double rate = read_rate(b);
    printf("%s%.0d, read at %.0f GB/s\n", shape.group == MQ_GROUP_MXFP4 ? "mxfp4" : "int4 g", shape.group, rate * 1e-9);
    printf("  width  experts a layer |     us  share of read\n");
    uint64_t seed = 2;
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        double active = 0.0;
        for (int l = 0; l < n_layers; l++)
            active += make_plan(b, l, widths[i], &seed);
        double bytes = active * (double)(b->gate_up_bytes + b->down_bytes), seconds = time_layers(b);
        printf("  %5d  %15.1f | %6.2f %13.1f %%\n", widths[i], active / n_layers, seconds / n_layers * 1e6, 100.0 * bytes / seconds / rate);
    }
    free_bench(b);
}

int main(int argc, char **argv)
{
    static const int groups[] = {64, 32, 128, MQ_GROUP_MXFP4};
    bool is_emulated = argc > 1 && !strcmp(argv[1], "emulator");
    int64_t size[5] = {6144, 256, 384, 8, 16}, tiny[5] = {256, 128, 9, 2, 2};
    if ((argc != 2 && argc != 7) || (!is_emulated && strcmp(argv[1], "cuda") != 0)) {
        fprintf(stderr, "usage: bench_cuda_experts cuda|emulator [HIDDEN WIDTH EXPERTS TOPK LAYERS]\n");
        return 2;
    }
    if (is_emulated) {
        memcpy(size, tiny, sizeof size);
        n_passes = 1;
    }
    for (int i = 2; i < argc; i++)
        size[i - 2] = atoll(argv[i]);
    if (size[2] < 1 || size[2] > 1 << 20 || size[3] < 1 || size[3] > 1 << 20 || size[4] < 1 || size[4] > MAX_LAYERS) {
        fprintf(stderr, "bench_cuda_experts: experts, topk and up to %d layers are positive\n", MAX_LAYERS);
        return 2;
    }
    k = is_emulated ? &mq_cuda_emulated_kernels : mq_kernels_find("cuda");
    if (!k || k->dev_open(&dev, 0, 0, NULL, &err) != MQ_OK) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    printf("%s; hidden %lld, width %lld, %lld experts, %lld of each row, %lld layers\n", k->dev_name(dev), (long long)size[0],
           (long long)size[1], (long long)size[2], (long long)size[3], (long long)size[4]);
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        mq_decode_expert_table shape = {.group = groups[i], .hidden = size[0], .width = size[1], .n_experts = (int)size[2],
                                        .topk = (int)size[3]};
        run_format(shape, (int)size[4]);
    }
    k->dev_close(dev);
    return 0;
}
