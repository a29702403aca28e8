/* The forward pass against values of the transformers port (reference.safetensors), on every
 * storage of the test models; resident against streaming; one rank against several. */
#include <math.h>

#include "runtime/forward.h"
#include "tests/runtime/reference.h"

enum { N_SEQS = 3, N_TOKENS = 320, N_POSITIONS = 10 };

/* A model opened with everything a forward pass wants. */
typedef struct bench {
    const mq_kernels *k;
    mq_dev *dev;
    mq_store *store;
    const mq_model *m;
    mq_forward *f;
    mq_cache *cache;
    float *x, *normed, *logits; /* [N_TOKENS, ...] */
} bench;

static void open_bench(bench *b, const char *dir, int n_ranks, bool resident, int64_t max_rows)
{
    mq_err err;
    b->k = ref_kernels();
    b->dev = ref_dev(2);
    b->store = ref_store(dir, n_ranks, resident);
    b->m = mq_store_model(b->store);
    mq_assert_ok(mq_forward_create(&b->f, b->k, b->dev, b->store, max_rows, N_TOKENS, &err), &err);
    mq_assert_ok(mq_cache_create(&b->cache, b->k, b->dev, b->m, n_ranks, N_TOKENS, max_rows, &err),
                 &err);
    b->x = ref_floats(b->dev, N_TOKENS * b->m->hidden);
    b->normed = ref_floats(b->dev, N_TOKENS * b->m->hidden);
    b->logits = ref_floats(b->dev, (int64_t)N_TOKENS * b->m->vocab);
}

static void close_bench(bench *b)
{
    b->k->release(b->dev, b->x);
    b->k->release(b->dev, b->normed);
    b->k->release(b->dev, b->logits);
    mq_cache_free(b->cache);
    mq_forward_free(b->f);
    mq_store_close(b->store);
    b->k->dev_close(b->dev);
}

static double worst(const float *a, const float *b, int64_t n)
{
    double most = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

/* Largest difference of hidden states at the reference positions; entry 0 is the embedding.  0
 * where the reference has none (the FP8 and MXFP4 variants). */
static double check_hidden(bench *b, const float *ref, int entry, int seq, const int32_t *positions,
                           const float *x)
{
    double most = 0.0;
    int64_t hidden = b->m->hidden;
    if (!ref)
        return 0.0;
    const float *at = ref + ((int64_t)entry * N_SEQS + seq) * N_POSITIONS * hidden;
    for (int p = 0; p < N_POSITIONS; p++)
        most = fmax(most, worst(x + positions[p] * hidden, at + p * hidden, hidden));
    return most;
}

static double nll(const float *logits, int64_t vocab, int32_t target)
{
    double top = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < vocab; i++)
        top = fmax(top, (double)logits[i]);
    for (int64_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - top);
    return log(sum) + top - (double)logits[target];
}

typedef struct reference {
    int32_t *ids, *argmax, *positions;
    float *logits, *nll, *hidden;
} reference;

static reference load_reference(const char *dir, const mq_model *m)
{
    return (reference){
        .ids = ref_load(dir, "input_ids", N_SEQS * N_TOKENS),
        .argmax = ref_load(dir, "argmax", N_SEQS * N_TOKENS),
        .positions = ref_load(dir, "logit_positions", N_POSITIONS),
        .logits = ref_load(dir, "logits", (int64_t)N_SEQS * N_POSITIONS * m->vocab),
        .nll = ref_load(dir, "nll", N_SEQS * (N_TOKENS - 1)),
        .hidden = ref_load_any(dir, "hidden_after_layer",
                               (int64_t)(m->n_layers + 1) * N_SEQS * N_POSITIONS * m->hidden)};
}

static void free_reference(reference *r)
{
    free(r->ids);
    free(r->argmax);
    free(r->positions);
    free(r->logits);
    free(r->nll);
    free(r->hidden);
}

/* One sequence through all layers; the largest hidden difference. */
static double run_layers(bench *b, const reference *r, int seq)
{
    mq_err err;
    const int32_t *ids = r->ids + seq * N_TOKENS;
    mq_cache_truncate(b->cache, 0);
    mq_assert_ok(mq_forward_embed(b->f, b->x, ids, N_TOKENS, &err), &err);
    double most = check_hidden(b, r->hidden, 0, seq, r->positions, b->x);
    for (int l = 0; l < b->m->n_layers; l++) {
        mq_assert_ok(mq_forward_layer(b->f, MQ_FORWARD_BATCH, l, b->x, N_TOKENS, 0, b->cache, NULL,
                                      NULL, &err),
                     &err);
        const float *x = b->x;
        if (l == b->m->n_layers - 1) {
            mq_assert_ok(mq_forward_final_norm(b->f, b->normed, b->x, N_TOKENS, &err), &err);
            x = b->normed;
        }
        double d = check_hidden(b, r->hidden, l + 1, seq, r->positions, x);
        ck_assert_msg(d < 1e-3, "sequence %d, layer %d: hidden states differ by %g", seq, l, d);
        most = fmax(most, d);
    }
    mq_assert_ok(mq_forward_head(b->f, MQ_FORWARD_BATCH, b->logits, b->x, N_TOKENS, &err), &err);
    return most;
}

/* argmax equal wherever the two largest logits are more than 1e-3 apart. */
static void check_argmax(const float *logits, int64_t vocab, int32_t expected, int position)
{
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    if (best != expected)
        ck_assert_msg((double)logits[best] - (double)logits[expected] < 1e-3,
                      "position %d: token %d, expected %d", position, (int)best, (int)expected);
}

static void check_model(const char *name, int n_ranks, bool resident, int64_t max_rows)
{
    const char *dir = ref_model(name);
    if (!dir)
        return;
    bench b;
    open_bench(&b, dir, n_ranks, resident, max_rows);
    reference r = load_reference(dir, b.m);
    double hidden = 0, logit = 0, token = 0;
    for (int s = 0; s < N_SEQS; s++) {
        hidden = fmax(hidden, run_layers(&b, &r, s));
        for (int p = 0; p < N_POSITIONS; p++)
            logit = fmax(logit,
                         worst(b.logits + r.positions[p] * (int64_t)b.m->vocab,
                               r.logits + ((int64_t)s * N_POSITIONS + p) * b.m->vocab, b.m->vocab));
        for (int i = 0; i < N_TOKENS; i++) {
            const float *row = b.logits + (int64_t)i * b.m->vocab;
            check_argmax(row, b.m->vocab, r.argmax[s * N_TOKENS + i], i);
            if (i + 1 < N_TOKENS)
                token = fmax(token, fabs(nll(row, b.m->vocab, r.ids[s * N_TOKENS + i + 1]) -
                                         (double)r.nll[s * (N_TOKENS - 1) + i]));
        }
    }
    printf("%s, %d ranks: largest difference of a logit %.2g, of an nll %.2g, of a hidden state "
           "%.2g\n",
           name, n_ranks, logit, token, hidden);
    ck_assert_msg(logit < 1e-3, "%s: logits differ by %g", name, logit);
    ck_assert_msg(token < 1e-4, "%s: nll differs by %g", name, token);
    free_reference(&r);
    close_bench(&b);
}

START_TEST(nano_equals_the_port)
{
    check_model("nano", 1, true, N_TOKENS);
}
END_TEST

START_TEST(nano_streamed_in_small_blocks_equals_the_port)
{
    check_model("nano", 1, false, 48);
}
END_TEST

START_TEST(nano_fp8_equals_the_port)
{
    check_model("nano-fp8", 1, true, N_TOKENS);
}
END_TEST

START_TEST(nano_mxfp4_equals_the_port)
{
    check_model("nano-mxfp4", 1, true, N_TOKENS);
}
END_TEST

START_TEST(mini_equals_the_port)
{
    check_model("mini", 1, true, N_TOKENS);
}
END_TEST

START_TEST(two_ranks_equal_the_port)
{
    check_model("nano", 2, true, N_TOKENS);
    check_model("nano-fp8", 2, true, N_TOKENS);
    check_model("nano-mxfp4", 2, false, 100);
}
END_TEST

/* A window at a time, three windows at once, or blocks smaller than a window: the same hidden
 * states up to the order of sums inside a linear. */
START_TEST(windows_share_a_block)
{
    enum { WINDOW = 64, WINDOWS = 5 };
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    static const int64_t blocks[3] = {WINDOW, 3 * WINDOW, 20};
    float *first = NULL;
    mq_err err;
    for (int i = 0; i < 3; i++) {
        bench b;
        open_bench(&b, dir, 1, false, blocks[i]);
        reference r = load_reference(dir, b.m);
        int64_t n = WINDOW * WINDOWS;
        mq_assert_ok(mq_forward_embed(b.f, b.x, r.ids, n, &err), &err);
        for (int l = 0; l < b.m->n_layers; l++) {
            mq_assert_ok(mq_forward_attention_windows(b.f, MQ_FORWARD_BATCH, l, b.x, WINDOWS,
                                                      WINDOW, b.cache, NULL, &err),
                         &err);
            mq_assert_ok(mq_forward_mlp(b.f, MQ_FORWARD_BATCH, l, b.x, n, NULL, NULL, &err), &err);
        }
        if (!first) {
            first = malloc((size_t)(n * b.m->hidden) * sizeof *first);
            memcpy(first, b.x, (size_t)(n * b.m->hidden) * sizeof *first);
        }
        ck_assert_double_lt(worst(first, b.x, n * b.m->hidden), 1e-4);
        free_reference(&r);
        close_bench(&b);
    }
    free(first);
}
END_TEST

/* Counts what a tap sees, and adds the coefficients of every token. */
typedef struct tapped {
    int64_t rows[MQ_TAP_LAYER_OUT + 1];
    double coef[N_TOKENS];
} tapped;

static mq_status count_tap(void *ctx, mq_tap_point point, int layer, int expert, const float *x,
                           const int32_t *tokens, const float *coef, int64_t n, int64_t cols,
                           mq_err *err)
{
    (void)x, (void)cols;
    tapped *t = ctx;
    t->rows[point] += n;
    bool is_expert = point == MQ_TAP_EXPERT_IN || point == MQ_TAP_EXPERT_DOWN;
    ck_assert_int_eq(expert >= 0, is_expert);
    ck_assert_int_eq(coef != NULL, is_expert);
    for (int64_t i = 0; i < n && point == MQ_TAP_EXPERT_IN && layer == 1; i++)
        t->coef[tokens[i]] += (double)coef[i];
    if (point == MQ_TAP_LAYER_OUT && layer == 2)
        return mq_fail(err, MQ_E_STOPPED, "enough");
    return MQ_OK;
}

START_TEST(a_tap_sees_every_input_once)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    bench b;
    open_bench(&b, dir, 1, true, 50);
    reference r = load_reference(dir, b.m);
    tapped t = {.rows = {0}};
    mq_tap tap = {count_tap, &t};
    mq_err err;
    enum { N = 110 };
    mq_assert_ok(mq_forward_embed(b.f, b.x, r.ids, N, &err), &err);
    for (int l = 0; l < 2; l++)
        mq_assert_ok(
            mq_forward_layer(b.f, MQ_FORWARD_BATCH, l, b.x, N, 0, b.cache, NULL, &tap, &err), &err);
    ck_assert_int_eq(t.rows[MQ_TAP_QKV], 2 * N);
    ck_assert_int_eq(t.rows[MQ_TAP_O], 2 * N);
    ck_assert_int_eq(t.rows[MQ_TAP_MLP_IN], N);
    ck_assert_int_eq(t.rows[MQ_TAP_MLP_DOWN], N);
    ck_assert_int_eq(t.rows[MQ_TAP_ROUTER], N);
    ck_assert_int_eq(t.rows[MQ_TAP_EXPERT_IN], N * b.m->n_experts_per_tok);
    ck_assert_int_eq(t.rows[MQ_TAP_EXPERT_DOWN], N * b.m->n_experts_per_tok);
    ck_assert_int_eq(t.rows[MQ_TAP_LAYER_OUT], 2 * N);
    for (int i = 0; i < N; i++)
        ck_assert_double_eq_tol(t.coef[i], 1.0, 1e-5); /* norm_topk_prob */
    mq_assert_fails(
        mq_forward_layer(b.f, MQ_FORWARD_BATCH, 2, b.x, N, 0, b.cache, NULL, &tap, &err),
        MQ_E_STOPPED, &err, "enough");
    free_reference(&r);
    close_bench(&b);
}
END_TEST

START_TEST(captures_are_the_residual_after_their_layers)
{
    enum { N = 40, ROWS = 24 };
    const char *dir = ref_model("nano");
    for (int ranks = 1; dir && ranks <= 2; ranks++) {
        bench b;
        mq_err err;
        open_bench(&b, dir, ranks, true, ROWS);
        reference r = load_reference(dir, b.m);
        int64_t hidden = b.m->hidden;
        int layers[3] = {b.m->n_layers - 1, 0, 3};
        float *out[3];
        for (int i = 0; i < 3; i++)
            out[i] = ref_floats(b.dev, ROWS * hidden);
        mq_forward_capture(b.f, layers, out, 3);
        mq_assert_ok(mq_forward_tokens(b.f, MQ_FORWARD_BATCH, b.x, r.ids, ROWS, b.cache, NULL, NULL,
                                       &err),
                     &err);
        ck_assert_mem_eq(out[0], b.x, (size_t)(ROWS * hidden) * sizeof *b.x);
        mq_assert_ok(mq_forward_tokens(b.f, MQ_FORWARD_STEP, b.x, r.ids + ROWS, 3, b.cache, NULL,
                                       NULL, &err),
                     &err);
        ck_assert_mem_eq(out[0], b.x, (size_t)(3 * hidden) * sizeof *b.x);
        /* The same rows layer by layer, over the keys that are there. */
        mq_assert_ok(mq_forward_embed(b.f, b.x, r.ids + ROWS, 3, &err), &err);
        for (int l = 0; l <= 3; l++) {
            mq_assert_ok(mq_forward_layer(b.f, MQ_FORWARD_STEP, l, b.x, 3, ROWS, b.cache, NULL,
                                          NULL, &err),
                         &err);
            if (l == 0 || l == 3)
                ck_assert_mem_eq(out[l == 0 ? 1 : 2], b.x, (size_t)(3 * hidden) * sizeof *b.x);
        }
        float before = out[0][0];
        mq_forward_capture(b.f, NULL, NULL, 0);
        mq_assert_ok(mq_forward_tokens(b.f, MQ_FORWARD_STEP, b.x, r.ids, 1, b.cache, NULL, NULL,
                                       &err),
                     &err);
        ck_assert_float_eq(out[0][0], before);
        for (int i = 0; i < 3; i++)
            b.k->release(b.dev, out[i]);
        free_reference(&r);
        close_bench(&b);
    }
}
END_TEST

START_TEST(wrong_calls_are_refused)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    bench b;
    mq_err err;
    open_bench(&b, dir, 2, false, 64);
    int32_t ids[2] = {5, 4096};
    mq_tap tap = {count_tap, NULL};
    mq_assert_fails(mq_forward_embed(b.f, b.x, ids, 2, &err), MQ_E_ARG, &err,
                    "token id 4096 at position 1 of the input, expected 0 to 4095");
    ids[1] = -1;
    mq_assert_fails(mq_forward_embed(b.f, b.x, ids, 2, &err), MQ_E_ARG, &err, "token id -1");
    mq_assert_fails(mq_forward_mlp(b.f, MQ_FORWARD_BATCH, 1, b.x, 1, NULL, &tap, &err), MQ_E_ARG,
                    &err, "a tap with 2 ranks, expected 1");
    mq_cache_advance(b.cache, N_TOKENS - 1);
    mq_assert_fails(mq_forward_tokens(b.f, MQ_FORWARD_STEP, b.x, ids, 2, b.cache, NULL, NULL, &err),
                    MQ_E_ARG, &err, "319 positions and 2 more, expected at most 320");
    close_bench(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("forward");
    TCase *t = tcase_create("forward");
    tcase_add_test(t, nano_equals_the_port);
    tcase_add_test(t, nano_streamed_in_small_blocks_equals_the_port);
    tcase_add_test(t, nano_fp8_equals_the_port);
    tcase_add_test(t, nano_mxfp4_equals_the_port);
    tcase_add_test(t, mini_equals_the_port);
    tcase_add_test(t, two_ranks_equal_the_port);
    tcase_add_test(t, windows_share_a_block);
    tcase_add_test(t, a_tap_sees_every_input_once);
    tcase_add_test(t, captures_are_the_residual_after_their_layers);
    tcase_add_test(t, wrong_calls_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
