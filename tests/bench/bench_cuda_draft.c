/* Time of a DFlash proposal after 8 committed rows on GPU 0: microseconds on the device and as the host sees them, against the
 * streaming read of the same weights.
 *
 *   bench_cuda_draft cuda [RANKS]      the drafter of MiMo-V2.5-Pro, one rank of RANKS, the others answering as it does (8;
 *                                      1: the whole drafter)
 *   bench_cuda_draft cuda RANKS plain  one proposal without graphs, for profilers
 *   bench_cuda_draft emulator          a small one: that it runs; its times mean nothing
 *
 * Weights are made up (kernels/fill.h).  Ends with 1 when graphs, or rows committed one by one, change a bit.  Exit 77 without
 * a GPU. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/kernels.h"
#include "tests/emulator/emulator.h"
#include "tests/harness.h"

enum { N_LAUNCHES = 21, N_GUESSES = 7, MAX_LAYERS = 5 };

static const mq_kernels *k;
static mq_dev *dev;
static mq_err err;
static int64_t n_weight_bytes;

static void must(mq_status st)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

static void *room(int64_t n_bytes)
{
    void *p;
    must(k->alloc(dev, &p, n_bytes, &err));
    return p;
}

static void *filled(mq_fill_kind kind, int64_t rows, int64_t cols, float scale)
{
    static uint64_t key;
    const mq_fill f = {.kind = kind, .key = ++key, .scale = scale, .rows = rows, .cols = cols, .whole_cols = cols};
    void *p = room(rows * cols * (kind == MQ_FILL_BF16 ? 2 : 4));
    must(k->fill(dev, p, &f, &err));
    return p;
}

static mq_matrix matrix(int64_t rows, int64_t cols)
{
    n_weight_bytes += 2 * rows * cols;
    return (mq_matrix){.scheme = MQ_SCHEME_BF16, .rows = rows, .cols = cols,
                       .data = filled(MQ_FILL_BF16, rows, cols, (float)sqrt(3.0 / (double)cols))};
}

static const float *ones(int64_t n)
{
    return filled(MQ_FILL_CONSTANT, 1, n, 1.0f);
}

typedef struct bench {
    mq_draft_model m;
    mq_draft_step_model step;
    mq_draft_step_rank rank;
    mq_draft_step_layer layers[MAX_LAYERS];
    const float *features[MQ_MAX_TAPS];
} bench;

static void make_layer(bench *b, mq_draft_step_layer *l, int n_ranks)
{
    const mq_attn_geometry *g = &b->m.attn;
    int64_t hidden = b->m.hidden, width = b->m.intermediate / n_ranks;
    int heads = g->n_heads / n_ranks, kv_heads = g->n_kv_heads / n_ranks;
    mq_layer_weights *w = &l->w.layer;
    w->input_norm = ones(hidden);
    w->post_norm = ones(hidden);
    w->attn = (mq_attn_weights){.q = matrix((int64_t)heads * g->head_dim, hidden), .k = matrix((int64_t)kv_heads * g->head_dim, hidden),
                                .v = matrix((int64_t)kv_heads * g->v_head_dim, hidden),
                                .o = matrix(hidden, (int64_t)heads * g->v_head_dim), .sink = ones(heads),
                                .n_heads = heads, .n_kv_heads = kv_heads};
    w->mlp = (mq_mlp_weights){.gate = matrix(width, hidden), .up = matrix(width, hidden), .down = matrix(hidden, width)};
    l->w.q_norm = ones(g->head_dim);
    l->w.k_norm = ones(g->head_dim);
    l->kv = (mq_kv){.n_slots = g->window + b->m.block_size, .n_kv_heads = kv_heads, .head_dim = g->head_dim, .v_head_dim = g->v_head_dim};
    l->kv.k = filled(MQ_FILL_F32, l->kv.n_slots, (int64_t)kv_heads * g->head_dim, 1.0f);
    l->kv.v = filled(MQ_FILL_F32, l->kv.n_slots, (int64_t)kv_heads * g->v_head_dim, 1.0f);
}

static void make(bench *b, bool is_small, int n_ranks)
{
    int vocab = is_small ? 4096 : 152576;
    b->m = is_small ? (mq_draft_model){.n_layers = 2, .hidden = 128, .intermediate = 256, .vocab = vocab, .norm_eps = 1e-5,
                                       .attn = {.n_heads = 8, .n_kv_heads = 2, .head_dim = 32, .v_head_dim = 32, .rotary_dims = 16,
                                                .rope_theta = 10000.0, .window = 64, .has_sink = true},
                                       .value_scale = 0.612, .block_size = 8, .mask_token_id = 1, .n_taps = 3}
                    : (mq_draft_model){.n_layers = 5, .hidden = 6144, .intermediate = 16384, .vocab = vocab, .norm_eps = 1e-5,
                                       .attn = {.n_heads = 128, .n_kv_heads = 8, .head_dim = 128, .v_head_dim = 128, .rotary_dims = 64,
                                                .rope_theta = 10000.0, .window = 1024, .has_sink = true},
                                       .value_scale = 0.612, .block_size = 8, .mask_token_id = 1, .n_taps = 5};
    for (int l = 0; l < b->m.n_layers; l++)
        make_layer(b, &b->layers[l], n_ranks);
    b->rank = (mq_draft_step_rank){.layers = b->layers, .head = matrix(vocab / n_ranks, b->m.hidden)};
    b->step = (mq_draft_step_model){.model = &b->m, .vocab = vocab, .n_ranks = n_ranks, .n_local = 1, .ranks = &b->rank, .loop_back = n_ranks > 1,
                                    .shared = {.hidden_norm = ones(b->m.hidden), .norm = ones(b->m.hidden), .mask = ones(b->m.hidden)}};
    int64_t before = n_weight_bytes;
    b->step.embedding = matrix(64, b->m.hidden); /* of which one row is read */
    n_weight_bytes = before;
    b->step.shared.fc = matrix(b->m.hidden, b->m.n_taps * (int64_t)b->m.hidden);
    n_weight_bytes -= (n_weight_bytes - before) / n_ranks * (n_ranks - 1); /* a rank reads its rows */
    for (int t = 0; t < b->m.n_taps; t++)
        b->features[t] = filled(MQ_FILL_F32, 8, b->m.hidden, 1.0f);
}

typedef struct guesses {
    int32_t token[N_GUESSES];
    float confidence[N_GUESSES];
} guesses;

/* A proposal at pos after 8 rows, the first of them committed one by one. */
static guesses propose(const bench *b, mq_draft_step *s, int64_t pos, int singles)
{
    guesses g;
    for (int i = 0; i <= singles; i++) {
        const float *rows[MQ_MAX_TAPS];
        for (int t = 0; t < b->m.n_taps; t++)
            rows[t] = b->features[t] + (int64_t)i * b->m.hidden;
        if (i < singles)
            must(k->draft->commit(s, rows, 1, pos - 8 + i, &err));
        else
            must(k->draft->propose(s, g.token, g.confidence, N_GUESSES, rows, 8 - i, pos - 8 + i, 5, &err));
    }
    return g;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds that a host waits for a proposal, the best of some. */
static double wall(const bench *b, mq_draft_step *s, int64_t pos)
{
    double best = HUGE_VAL;
    for (int i = 0; i < N_LAUNCHES; i++) {
        double start = now();
        (void)propose(b, s, pos, 0);
        best = fmin(best, now() - start);
    }
    return best;
}

static void check_bits(bench *b, mq_draft_step *s, int64_t pos)
{
    mq_draft_step *plain;
    b->step.plain = true;
    must(k->draft->create(&plain, dev, &b->step, &err));
    guesses want = propose(b, s, pos, 0), single = propose(b, s, pos, 3), other = propose(b, plain, pos, 0);
    k->draft->free(plain);
    if (memcmp(&want, &single, sizeof want) || memcmp(&want, &other, sizeof want)) {
        printf("BITS DIFFER at %d\n", (int)pos);
        exit(1);
    }
    printf("position %5d: token %d, confidence %.3g; ", (int)pos, want.token[0], (double)want.confidence[0]);
}

static void measure(bench *b)
{
    mq_draft_step *s;
    must(k->draft->create(&s, dev, &b->step, &err));
    static const int64_t at[] = {9, 300, 5000};
    for (int i = 0; i < 3; i++) {
        double seconds;
        check_bits(b, s, at[i]);
        double host_s = wall(b, s, at[i]);
        must(k->draft->time(s, &seconds, N_LAUNCHES, &err));
        printf("device %.1f us (%.2f TB/s), host %.1f us\n", 1e6 * seconds, 1e-12 * (double)n_weight_bytes / seconds, 1e6 * host_s);
    }
    k->draft->free(s);
}

int main(int argc, char **argv)
{
    bool is_small = argc > 1 && strcmp(argv[1], "cuda") != 0;
    int n_ranks = argc > 2 ? atoi(argv[2]) : is_small ? 1 : 8;
    k = is_small ? &mq_cuda_emulated_kernels : mq_kernels_find("cuda");
    if (!k || (!is_small && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    must(k->dev_open(&dev, 0, 0, NULL, &err));
    static bench b;
    make(&b, is_small, n_ranks);
    printf("%s: one rank of %d, %.1f MB of weights a proposal\n", k->dev_name(dev), n_ranks, 1e-6 * (double)n_weight_bytes);
    if (argc > 3) {
        mq_draft_step *s;
        b.step.plain = true;
        must(k->draft->create(&s, dev, &b.step, &err));
        (void)propose(&b, s, 5000, 0);
        k->draft->free(s);
        return 0;
    }
    measure(&b);
    return 0; /* the process takes the weights along */
}
