/* A packed model as the runtime sees it: every weight equal to the checkpoint's, for every number
 * of logical ranks, those of drafters included; one and eight ranks give the same logits; a packed
 * model in the engine keeps the decode step's promises, and its drafters guess as the
 * checkpoint's. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/draft.h"
#include "runtime/engine.h"
#include "runtime/forward.h"
#include "src/file.h"
#include "src/units.h"
#include "tests/harness.h"
#include "tests/maker/maker.h"
#include "tools/convert.h"

static const mq_cli quiet_cli = {.tool = "test_ranks", .usage = "", .summary = "", .quiet = true};

/* Pack checkpoint for n_ranks; the folder's path is heap. */
static char *pack(const char *checkpoint, int n_ranks, int group, int zstd_level)
{
    mq_err err;
    mq_convert_result result;
    char *out = mq_path_join(mq_test_dir(), "packed");
    mq_convert_options o = {.checkpoint = checkpoint,
                            .out_dir = out,
                            .method = MQ_ROUND_RTN,
                            .group = group,
                            .n_ranks = n_ranks,
                            .zstd_level = zstd_level,
                            .n_threads = 2};
    mq_assert_ok(mq_convert(&result, &o, &quiet_cli, &err), &err);
    return out;
}

static mq_store *open_store(const char *dir, int n_ranks, bool resident)
{
    mq_err err;
    mq_store *s;
    mq_store_options o = {.resident = resident,
                          .n_ranks = n_ranks,
                          .n_threads = 2,
                          .check = true,
                          .dflash = true,
                          .mtp = true};
    mq_assert_ok(mq_store_open(&s, dir, &o, &err), &err);
    return s;
}

/* ---- Weights ---- */

static void same_vector(const char *what, const float *a, const float *b, int64_t n)
{
    ck_assert_msg((a == NULL) == (b == NULL), "%s: only one side has it", what);
    ck_assert_msg(!a || memcmp(a, b, (size_t)n * sizeof *a) == 0, "%s differs", what);
}

static void same_matrix(const char *what, const mq_matrix *a, const mq_matrix *b)
{
    ck_assert_msg(a->rows == b->rows && a->cols == b->cols, "%s: shapes differ", what);
    float *x = malloc((size_t)(a->rows * a->cols) * sizeof *x);
    float *y = malloc((size_t)(a->rows * a->cols) * sizeof *y);
    mq_matrix_widen(a, 0, a->rows, x);
    mq_matrix_widen(b, 0, b->rows, y);
    ck_assert_msg(memcmp(x, y, (size_t)(a->rows * a->cols) * sizeof *x) == 0, "%s differs", what);
    free(x);
    free(y);
}

static void same_layer(const mq_model *m, const mq_layer_weights *a, const mq_layer_weights *b)
{
    same_vector("input norm", a->input_norm, b->input_norm, m->hidden);
    same_vector("post norm", a->post_norm, b->post_norm, m->hidden);
    ck_assert_int_eq(a->attn.n_heads, b->attn.n_heads);
    ck_assert_int_eq(a->attn.n_kv_heads, b->attn.n_kv_heads);
    same_vector("sinks", a->attn.sink, b->attn.sink, a->attn.n_heads);
    same_matrix("q", &a->attn.q, &b->attn.q);
    same_matrix("k", &a->attn.k, &b->attn.k);
    same_matrix("v", &a->attn.v, &b->attn.v);
    same_matrix("o", &a->attn.o, &b->attn.o);
    if (a->is_moe) {
        same_matrix("router", &a->router, &b->router);
        same_vector("router bias", a->router_bias, b->router_bias, m->n_experts);
    } else {
        same_matrix("gate", &a->mlp.gate, &b->mlp.gate);
        same_matrix("up", &a->mlp.up, &b->mlp.up);
        same_matrix("down", &a->mlp.down, &b->mlp.down);
    }
}

static void same_draft_layer(const mq_model *m, int head_dim, const mq_draft_layer_weights *a,
                             const mq_draft_layer_weights *b)
{
    same_layer(m, &a->layer, &b->layer);
    same_vector("q norm", a->q_norm, b->q_norm, head_dim);
    same_vector("k norm", a->k_norm, b->k_norm, head_dim);
    same_vector("enorm", a->enorm, b->enorm, m->hidden);
    same_vector("hnorm", a->hnorm, b->hnorm, m->hidden);
    same_vector("final norm", a->final_norm, b->final_norm, m->hidden);
    same_matrix("eh_proj", &a->eh_proj, &b->eh_proj);
}

/* Drafters of a checkpoint and of a packed model. */
static void same_drafters(mq_store *a, mq_store *b, int n_ranks)
{
    mq_err err;
    const mq_model *m = mq_store_model(a);
    const mq_draft_model *d = mq_store_draft_model(a);
    ck_assert((d != NULL) == (mq_store_draft_model(b) != NULL));
    for (int i = 0; i < m->n_mtp + (d ? d->n_layers : 0); i++)
        for (int r = 0; r < n_ranks; r++) {
            mq_draft_layer_weights x, y;
            bool is_mtp = i < m->n_mtp;
            int l = is_mtp ? i : i - m->n_mtp;
            if (is_mtp) {
                mq_assert_ok(mq_store_mtp_layer(a, &x, l, r, &err), &err);
                mq_assert_ok(mq_store_mtp_layer(b, &y, l, r, &err), &err);
            } else {
                mq_assert_ok(mq_store_draft_layer(a, &x, l, r, &err), &err);
                mq_assert_ok(mq_store_draft_layer(b, &y, l, r, &err), &err);
            }
            same_draft_layer(m, d ? d->attn.head_dim : 0, &x, &y);
        }
    if (!d)
        return;
    mq_draft_weights x, y;
    mq_assert_ok(mq_store_draft(a, &x, &err), &err);
    mq_assert_ok(mq_store_draft(b, &y, &err), &err);
    same_matrix("fc", &x.fc, &y.fc);
    same_vector("hidden norm", x.hidden_norm, y.hidden_norm, m->hidden);
    same_vector("norm", x.norm, y.norm, m->hidden);
    same_vector("mask", x.mask, y.mask, m->hidden);
}

/* a: gate and up apart; b: interleaved. */
static void same_expert(const mq_mlp_weights *a, const mq_mlp_weights *b)
{
    ck_assert(!a->interleaved && b->interleaved);
    same_matrix("down", &a->down, &b->down);
    int64_t width = a->gate.rows, cols = a->gate.cols;
    float *x = malloc((size_t)cols * sizeof *x), *y = malloc((size_t)cols * sizeof *y);
    for (int64_t i = 0; i < 2 * width; i++) {
        mq_matrix_widen(i < width ? &a->gate : &a->up, i % width, 1, x);
        mq_matrix_widen(&b->gate_up, mq_gate_up_row(i % width, i >= width), 1, y);
        ck_assert_msg(memcmp(x, y, (size_t)cols * sizeof *x) == 0, "gate_up row %d", (int)i);
    }
    free(x);
    free(y);
}

/* Everything but experts is the checkpoint's, bit for bit; experts too where they were passed
 * through. */
static void check_weights(const char *checkpoint, const char *packed, int n_ranks, bool exact)
{
    mq_err err;
    mq_store *a = open_store(checkpoint, n_ranks, false), *b = open_store(packed, n_ranks, false);
    const mq_model *m = mq_store_model(a);
    ck_assert(!mq_store_is_packed(a) && mq_store_is_packed(b));
    for (int l = 0; l < m->n_layers; l++)
        for (int r = 0; r < n_ranks; r++) {
            mq_layer_weights x, y;
            mq_assert_ok(mq_store_layer(a, &x, l, r, &err), &err);
            mq_assert_ok(mq_store_layer(b, &y, l, r, &err), &err);
            same_layer(m, &x, &y);
            for (int e = 0; m->is_moe[l] && e < m->n_experts && exact; e++) {
                mq_mlp_weights p, q;
                mq_assert_ok(mq_store_expert(a, &p, l, e, r, &err), &err);
                mq_assert_ok(mq_store_expert(b, &q, l, e, r, &err), &err);
                same_expert(&p, &q);
            }
        }
    mq_matrix x, y;
    const float *v, *w;
    mq_assert_ok(mq_store_embedding(a, &x, &err), &err);
    mq_assert_ok(mq_store_embedding(b, &y, &err), &err);
    same_matrix("embedding", &x, &y);
    for (int r = 0; r < n_ranks; r++) {
        mq_assert_ok(mq_store_head(a, &x, r, &err), &err);
        mq_assert_ok(mq_store_head(b, &y, r, &err), &err);
        same_matrix("head", &x, &y);
    }
    mq_assert_ok(mq_store_final_norm(a, &v, &err), &err);
    mq_assert_ok(mq_store_final_norm(b, &w, &err), &err);
    same_vector("final norm", v, w, m->hidden);
    same_drafters(a, b, n_ranks);
    mq_store_close(a);
    mq_store_close(b);
}

/* ---- Guesses ---- */

enum { FEATURES = 40 };

/* What a drafter guesses after FEATURES positions of noise. */
static void guesses_of(int32_t *tokens, float *confidence, const char *dir, mq_draft_kind kind,
                       int n_ranks, bool resident)
{
    mq_err err;
    const mq_kernels *k = mq_kernels_find("cpu");
    mq_dev *dev;
    mq_draft *d;
    const int *layers;
    mq_store *s = open_store(dir, n_ranks, resident);
    int64_t hidden = mq_store_model(s)->hidden;
    int32_t ids[FEATURES];
    const float *rows[MQ_MAX_TAPS];
    float *noise = malloc((size_t)(MQ_MAX_TAPS * FEATURES * hidden) * sizeof *noise);
    uint64_t state = 5;
    for (int64_t i = 0; i < MQ_MAX_TAPS * FEATURES * hidden; i++)
        noise[i] = mq_test_normal(&state);
    for (int i = 0; i < MQ_MAX_TAPS; i++)
        rows[i] = noise + i * FEATURES * hidden;
    for (int i = 0; i < FEATURES; i++)
        ids[i] = (i * 101 + 3) % 1000;
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_assert_ok(mq_draft_create(&d, kind, k, dev, s, FEATURES, &err), &err);
    ck_assert_int_le(mq_draft_taps(d, &layers), MQ_MAX_TAPS);
    mq_assert_ok(mq_draft_commit(d, ids, rows, FEATURES, &err), &err);
    mq_assert_ok(mq_draft_propose(d, tokens, confidence, 9, mq_draft_most(d), &err), &err);
    mq_draft_free(d);
    mq_store_close(s);
    k->dev_close(dev);
    free(noise);
}

/* Resident from the packed model, streaming from the checkpoint: the same bits. */
static void check_guesses(const char *checkpoint, const char *packed, int n_ranks)
{
    for (int kind = MQ_DRAFT_DFLASH; kind <= MQ_DRAFT_MTP; kind++) {
        int32_t a[MQ_DRAFT_MOST] = {0}, b[MQ_DRAFT_MOST] = {0};
        float p[MQ_DRAFT_MOST] = {0}, q[MQ_DRAFT_MOST] = {0};
        guesses_of(a, p, checkpoint, (mq_draft_kind)kind, n_ranks, false);
        guesses_of(b, q, packed, (mq_draft_kind)kind, n_ranks, true);
        ck_assert_mem_eq(a, b, sizeof a);
        ck_assert_mem_eq(p, q, sizeof p);
    }
}

/* ---- Logits ---- */

enum { N = 150 };

/* Logits [N, vocab] of a fixed text, heap. */
static float *logits_of(const char *dir, int n_ranks, bool resident)
{
    mq_err err;
    const mq_kernels *k = mq_kernels_find("cpu");
    mq_dev *dev;
    mq_forward *f;
    mq_cache *cache;
    void *x, *logits;
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_store *s = open_store(dir, n_ranks, resident);
    const mq_model *m = mq_store_model(s);
    int64_t bytes = 4 * (int64_t)N * m->vocab;
    int32_t ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = (i * 7919 + 13) % m->vocab;
    mq_assert_ok(mq_forward_create(&f, k, dev, s, N, N, &err), &err);
    mq_assert_ok(mq_cache_create(&cache, k, dev, m, n_ranks, N, N, &err), &err);
    mq_assert_ok(k->alloc(dev, &x, 4 * (int64_t)N * m->hidden, &err), &err);
    mq_assert_ok(k->alloc(dev, &logits, bytes, &err), &err);
    mq_assert_ok(mq_forward_tokens(f, MQ_FORWARD_BATCH, x, ids, N, cache, NULL, NULL, &err), &err);
    mq_assert_ok(mq_forward_head(f, MQ_FORWARD_BATCH, logits, x, N, &err), &err);
    float *out = malloc((size_t)bytes);
    mq_assert_ok(k->download(dev, out, logits, bytes, &err), &err);
    k->release(dev, logits);
    k->release(dev, x);
    mq_cache_free(cache);
    mq_forward_free(f);
    mq_store_close(s);
    k->dev_close(dev);
    return out;
}

static void check_logits(const char *dir, int vocab, const int *ranks, int n)
{
    float *one = logits_of(dir, 1, true);
    for (int i = 0; i < n; i++) {
        float *many = logits_of(dir, ranks[i], i % 2 == 0);
        double most = 0.0;
        for (int64_t j = 0; j < (int64_t)N * vocab; j++)
            most = fmax(most, fabs((double)one[j] - (double)many[j]));
        printf("%d ranks: logits differ by at most %.2g from one rank's\n", ranks[i], most);
        ck_assert_msg(most < 1e-4, "%d ranks: logits differ by %g", ranks[i], most);
        free(many);
    }
    free(one);
}

/* ---- Tests ---- */

START_TEST(bundled_models_packed_for_two_ranks)
{
    static const char *const models[3] = {"tests/data/nano", "tests/data/nano-fp8",
                                          "tests/data/nano-mxfp4"};
    static const int two[1] = {2};
    for (int i = 0; i < 3; i++) {
        const char *checkpoint = mq_test_path(models[i]);
        char *packed = pack(checkpoint, 2, i == 0 ? 32 : 64, i == 1 ? 3 : 0);
        check_weights(checkpoint, packed, 1, i == 2);
        check_weights(checkpoint, packed, 2, i == 2);
        check_guesses(checkpoint, packed, 1);
        check_guesses(checkpoint, packed, 2);
        check_logits(packed, 4096, two, 1);
        free(packed);
    }
}
END_TEST

/* Pro's proportions: fused FP8 chunks whose slices start inside blocks; more ranks than KV heads in
 * the second. */
START_TEST(a_generated_model_packed_for_eight_ranks)
{
    static const int ranks[3] = {2, 4, 8};
    mq_err err;
    for (int few_kv = 0; few_kv < 2; few_kv++) {
        mq_maker maker;
        char *checkpoint = mq_path_join(mq_test_dir(), "checkpoint");
        ck_assert(mq_maker_preset(&maker, "pro-small"));
        maker.layers = 3;
        maker.experts = 4;
        maker.top_k = 2;
        maker.expert_scheme = few_kv ? MQ_SCHEME_MXFP4_ROWS : MQ_SCHEME_FP8_BLOCK;
        if (few_kv)
            maker.kv_heads = maker.swa_kv_heads = 2;
        mq_assert_ok(mq_maker_write(&maker, checkpoint, NULL, &err), &err);
        char *packed = pack(checkpoint, 8, 64, 0);
        check_weights(checkpoint, packed, 1, few_kv);
        for (int i = 0; i < 3; i++)
            check_weights(checkpoint, packed, ranks[i], few_kv);
        for (int i = 0; i < 3; i++)
            check_guesses(checkpoint, packed, ranks[i]);
        check_logits(checkpoint, maker.vocab, ranks, 3);
        check_logits(packed, maker.vocab, ranks, 3);
        free(packed);
        free(checkpoint);
    }
}
END_TEST

START_TEST(the_engine_runs_a_packed_model)
{
    enum { VOCAB = 4096, PROMPT = 100 };
    static float one[8 * VOCAB], many[8 * VOCAB];
    char *packed = pack(mq_test_path("tests/data/nano"), 2, 64, 0);
    int32_t ids[PROMPT + 8];
    mq_err err;
    for (int i = 0; i < PROMPT + 8; i++)
        ids[i] = (i * 37 + 11) % 4000;
    for (int n_ranks = 1; n_ranks <= 2; n_ranks++) {
        mq_engine *e;
        mq_engine_options o = {.n_ranks = n_ranks, .n_threads = 2, .context = 256};
        mq_assert_ok(mq_engine_open(&e, packed, mq_kernels_find("cpu"), &o, &err), &err);
        mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
        for (int i = 0; i < 8; i++) {
            mq_assert_ok(mq_engine_step(e, ids + PROMPT + i, 1, &err), &err);
            mq_assert_ok(mq_engine_logits(e, one + i * VOCAB, &err), &err);
        }
        for (int n = 1; n <= 8; n++) {
            mq_engine_rollback(e, PROMPT);
            mq_assert_ok(mq_engine_step(e, ids + PROMPT, n, &err), &err);
            mq_assert_ok(mq_engine_logits(e, many, &err), &err);
            ck_assert_msg(memcmp(one, many, (size_t)n * VOCAB * sizeof *one) == 0, "%d rows", n);
        }
        mq_engine_close(e);
    }
    free(packed);
}
END_TEST

/* Flip a bit in the middle of a file. */
static void damage(const char *dir, const char *name)
{
    char *path = mq_path_join(dir, name);
    FILE *f = fopen(path, "r+b");
    ck_assert_ptr_nonnull(f);
    fseek(f, 40000, SEEK_SET);
    int c = fgetc(f);
    fseek(f, 40000, SEEK_SET);
    fputc(c ^ 1, f);
    fclose(f);
    free(path);
}

START_TEST(a_damaged_drafter_is_noticed_where_it_is_asked_for)
{
    static const char *const files[2] = {"draft-rank-01-of-02.mqs", "mtp-001-rank-00-of-02.mqs"};
    for (int i = 0; i < 2; i++) {
        mq_err err;
        mq_store *s;
        char *packed = pack(mq_test_path("tests/data/nano"), 2, 64, 0);
        damage(packed, files[i]);
        mq_store_options o = {.resident = true,
                              .n_ranks = 1,
                              .n_threads = 2,
                              .check = true,
                              .dflash = i == 0,
                              .mtp = i == 1};
        mq_assert_fails(mq_store_open(&s, packed, &o, &err), MQ_E_HASH, &err, files[i]);
        ck_assert_ptr_null(s);
        o.dflash = o.mtp = false;
        mq_assert_ok(mq_store_open(&s, packed, &o, &err), &err);
        mq_store_close(s);
        free(packed);
    }
}
END_TEST

START_TEST(ranks_that_do_not_divide_are_refused)
{
    mq_err err;
    mq_store *s;
    char *packed = pack(mq_test_path("tests/data/nano"), 2, 64, 0);
    mq_store_options o = {.n_ranks = 4};
    mq_assert_fails(mq_store_open(&s, packed, &o, &err), MQ_E_ARG, &err,
                    "4 ranks, expected a divisor of the packed model's 2");
    ck_assert_ptr_null(s);
    o.n_ranks = 0;
    mq_assert_fails(mq_store_open(&s, packed, &o, &err), MQ_E_ARG, &err, "0 ranks");
    o.n_ranks = 4;
    mq_assert_fails(mq_store_open(&s, mq_test_path("tests/data/nano"), &o, &err), MQ_E_ARG, &err,
                    "the largest that works is 2");

    int64_t resident, streaming;
    mq_assert_ok(mq_store_plan_bytes(&resident, &streaming, packed, &err), &err);
    ck_assert_int_gt(streaming, 0);
    ck_assert_int_gt(resident, streaming);
    o = (mq_store_options){.resident = true, .n_ranks = 1, .n_threads = 2};
    mq_assert_ok(mq_store_open(&s, packed, &o, &err), &err);
    ck_assert_int_eq(mq_store_bytes(s), resident);
    mq_store_close(s);
    free(packed);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ranks");
    TCase *t = tcase_create("ranks");
    tcase_add_test(t, bundled_models_packed_for_two_ranks);
    tcase_add_test(t, a_generated_model_packed_for_eight_ranks);
    tcase_add_test(t, the_engine_runs_a_packed_model);
    tcase_add_test(t, a_damaged_drafter_is_noticed_where_it_is_asked_for);
    tcase_add_test(t, ranks_that_do_not_divide_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
