/* Packed models with their own drafters: the text with speculation is the text without it, token
 * for token, for every drafter, width, kind of experts and number of ranks; drawn tokens are
 * distributed as the target says.
 *
 * By default a few prompts; with MQ_TEST_FULL=1 in the environment 200 greedy and 200 sampled
 * prompts of 64 tokens per case, and 10^5 draws (about half an hour on an idle core;
 * CK_RUN_CASE=int4, mxfp4 or draws runs one part).  MQ_TEST_THREADS: cases side by side.  MQ_TEST_DEVICE=cuda: on GPU 0
 * (77 where there is none). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/speculate.h"
#include "src/file.h"
#include "src/pool.h"
#include "src/tokenizer.h"
#include "tests/harness.h"
#include "tools/convert.h"

enum { TOKENS = 64, CONTEXT = 320, MOST_PROMPTS = 200 };

static const mq_cli quiet_cli = {
    .tool = "test_speculative", .usage = "", .summary = "", .quiet = true};

static int small_or(int small, int usual, int full)
{
    return getenv("MQ_TEST_FULL") ? full : getenv("MQ_TEST_SMALL") ? small : usual;
}

static bool is_cuda(void)
{
    const char *device = getenv("MQ_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}

/* Pack a bundled model for two ranks; the folder's path is heap. */
static char *pack(const char *model)
{
    char rel[64];
    mq_err err;
    mq_convert_result result;
    char *out = mq_path_join(mq_test_dir(), "packed");
    snprintf(rel, sizeof rel, "tests/data/%s", model);
    mq_convert_options o = {.checkpoint = mq_test_path(rel),
                            .out_dir = out,
                            .method = MQ_ROUND_SEARCH,
                            .group = 64,
                            .n_ranks = 2,
                            .n_threads = 2};
    mq_assert_ok(mq_convert(&result, &o, &quiet_cli, &err), &err);
    return out;
}

static mq_status open_engine_of(mq_engine **out, const char *dir, int n_ranks, mq_draft_kind draft, mq_err *err)
{
    mq_engine_options o = {.n_ranks = n_ranks,
                           .n_threads = 1,
                           .context = CONTEXT,
                           .prefill_rows = 64,
                           .draft = draft,
                           .precision = is_cuda() ? MQ_PRECISION_BF16 : MQ_PRECISION_F32};
    return mq_engine_open(out, dir, mq_kernels_find(is_cuda() ? "cuda" : "cpu"), &o, err);
}

static mq_engine *open_engine(const char *dir, int n_ranks, mq_draft_kind draft)
{
    mq_engine *e;
    mq_err err;
    mq_assert_ok(open_engine_of(&e, dir, n_ranks, draft, &err), &err);
    ck_assert_int_eq(mq_engine_draft_kind(e), draft);
    return e;
}

/* The text that prompts are cut from. */
static mq_tokens read_text(const char *dir)
{
    mq_tokenizer *t;
    mq_err err;
    mq_buf text = mq_buf_empty();
    mq_tokens ids = {0};
    char *path = mq_path_join(dir, "tokenizer.json");
    mq_assert_ok(mq_tokenizer_open(&t, path, &err), &err);
    mq_assert_ok(mq_file_load(&text, mq_test_path("tests/data/text/eval.txt"), 64 << 20, &err),
                 &err);
    mq_assert_ok(mq_tokenizer_encode(t, &ids, text.data, text.n_bytes, true, &err), &err);
    mq_buf_release(&text);
    mq_tokenizer_close(t);
    free(path);
    return ids;
}

/* Prompt i: 20 to 163 tokens, so some reach around the sliding window of 64 and over two prefill
 * chunks; spread over the whole text. */
typedef struct prompt {
    const int32_t *ids;
    int64_t n;
    mq_sampling sampling;
} prompt;

static prompt prompt_at(const mq_tokens *text, int i, bool sampled)
{
    int64_t n = 20 + (i * 37) % 144;
    prompt p = {text->ids + (text->n - 200) * i / MOST_PROMPTS, n, {.top_p = 1.0f}};
    if (sampled)
        p.sampling = (mq_sampling){
            .temperature = i % 2 ? 1.0f : 0.7f, .top_p = 0.95f, .seed = 1000u + (uint64_t)i};
    return p;
}

static mq_status begin(mq_engine *e, int32_t *token, const prompt *p, mq_err *err)
{
    mq_engine_reset(e);
    MQ_TRY(mq_engine_prefill(e, p->ids, p->n, err));
    return mq_engine_sample(e, token, 0, &p->sampling, err);
}

static mq_status plain(mq_engine *e, int32_t *out, const prompt *p, mq_err *err)
{
    MQ_TRY(begin(e, &out[0], p, err));
    for (int i = 1; i < TOKENS; i++) {
        MQ_TRY(mq_engine_step(e, &out[i - 1], 1, err));
        MQ_TRY(mq_engine_sample(e, &out[i], 0, &p->sampling, err));
    }
    return MQ_OK;
}

static mq_status speculative(mq_engine *e, mq_speculate *s, int32_t *out, const prompt *p, mq_err *err)
{
    MQ_TRY(begin(e, &out[0], p, err));
    for (int at = 1, n; at < TOKENS; at += n) {
        int32_t tokens[MQ_SPECULATE_ROWS];
        mq_speculate_end end = {.limit = TOKENS - at};
        MQ_TRY(mq_speculate_step(s, tokens, &n, out[at - 1], &p->sampling, &end, err));
        memcpy(out + at, tokens, (size_t)n * sizeof *tokens);
    }
    return MQ_OK;
}

enum { MOST_RANKS = 2, PLAIN_JOBS = 8, DFLASH_WIDTHS = 9, MTP_WIDTHS = 5, WIDTHS = DFLASH_WIDTHS + MTP_WIDTHS };

typedef struct texts {
    const char *model;
    char *dir;
    mq_tokens source;
    int n_prompts;
    int32_t plain[MOST_RANKS][2][MOST_PROMPTS][TOKENS]; /* of so many ranks; greedy, sampled */
} texts;

/* Which prompt the i-th is: all of them, or some spread over the text, odd and even. */
static int prompt_number(const texts *t, int i)
{
    int spread = i * MOST_PROMPTS / t->n_prompts;
    return t->n_prompts == MOST_PROMPTS ? i : spread - spread % 2 + i % 2;
}

/* A part of the prompts without a drafter. */
static mq_status write_plain(void *ctx, int64_t job, int worker, mq_err *err)
{
    texts *t = ctx;
    mq_engine *e;
    int ranks = 1 + (int)(job % MOST_RANKS), part = (int)(job / MOST_RANKS);
    (void)worker;
    MQ_TRY(open_engine_of(&e, t->dir, ranks, MQ_DRAFT_NONE, err));
    mq_status st = mq_engine_draft_most(e) == 0 ? MQ_OK : mq_fail(err, MQ_E_BUG, "a drafter that was not asked for");
    for (int i = part; i < t->n_prompts && st == MQ_OK; i += PLAIN_JOBS)
        for (int sampled = 0; sampled < 2 && st == MQ_OK; sampled++) {
            prompt p = prompt_at(&t->source, prompt_number(t, i), sampled);
            st = plain(e, t->plain[ranks - 1][sampled][i], &p, err);
        }
    mq_engine_close(e);
    return st;
}

static mq_status check_text(const texts *t, const char *name, mq_engine *e, mq_speculate *s, int ranks, int i, int sampled,
                            mq_err *err)
{
    int32_t out[TOKENS];
    int at = prompt_number(t, i);
    const int32_t *want = t->plain[ranks - 1][sampled][i];
    prompt p = prompt_at(&t->source, at, sampled);
    MQ_TRY(speculative(e, s, out, &p, err));
    for (int j = 0; j < TOKENS; j++)
        if (out[j] != want[j])
            return mq_fail(err, MQ_E_BUG, "%s, prompt %d, sampled %d: token %d is %d, plain decoding has %d", name, at,
                           sampled, j, out[j], want[j]);
    return MQ_OK;
}

static mq_status check_width(const texts *t, mq_engine *e, int ranks, const char *name, int width, mq_err *err)
{
    mq_speculate *s;
    mq_speculate_options o = {.width = width};
    double mean[2] = {0.0, 0.0};
    MQ_TRY(mq_speculate_create(&s, e, &o, err));
    mq_status st = MQ_OK;
    for (int sampled = 0; sampled < 2 && st == MQ_OK; sampled++) {
        mq_speculate_clear_figures(s);
        for (int i = 0; i < t->n_prompts && st == MQ_OK; i++)
            st = check_text(t, name, e, s, ranks, i, sampled, err);
        const mq_speculate_figures *f = mq_speculate_get_figures(s);
        mean[sampled] = (double)f->n_tokens / (double)f->n_steps;
        if (st == MQ_OK && width > 0 && mean[sampled] > width)
            st = mq_fail(err, MQ_E_BUG, "%s: %g tokens a step", name, mean[sampled]);
    }
    if (st == MQ_OK)
        printf("%s: %d texts equal, %.3f tokens a step greedy, %.3f sampled\n", name, 2 * t->n_prompts, mean[0], mean[1]);
    fflush(stdout);
    mq_speculate_free(s);
    return st;
}

/* All prompts with one drafter and width (0: auto). */
static mq_status write_speculative(void *ctx, int64_t job, int worker, mq_err *err)
{
    const texts *t = ctx;
    mq_engine *e;
    char name[96];
    int ranks = 1 + (int)(job % MOST_RANKS), at = (int)(job / MOST_RANKS);
    bool is_mtp = at >= DFLASH_WIDTHS;
    int width = is_mtp ? at - DFLASH_WIDTHS : at;
    (void)worker;
    snprintf(name, sizeof name, "%s packed, %d ranks, %s, width %d", t->model, ranks, is_mtp ? "MTP" : "DFlash", width);
    MQ_TRY(open_engine_of(&e, t->dir, ranks, is_mtp ? MQ_DRAFT_MTP : MQ_DRAFT_DFLASH, err));
    mq_status st = mq_engine_draft_most(e) == (is_mtp ? MTP_WIDTHS : DFLASH_WIDTHS) - 2
                       ? check_width(t, e, ranks, name, width, err)
                       : mq_fail(err, MQ_E_BUG, "%s: guesses %d tokens", name, mq_engine_draft_most(e));
    mq_engine_close(e);
    return st;
}

static void check_model(const char *model)
{
    static texts t;
    mq_err err;
    int n_threads = getenv("MQ_TEST_THREADS") ? atoi(getenv("MQ_TEST_THREADS")) : 1;
    t.model = model;
    t.dir = pack(model);
    t.source = read_text(t.dir);
    t.n_prompts = small_or(1, 2, MOST_PROMPTS);
    if (getenv("MQ_TEST_PROMPTS"))
        t.n_prompts = atoi(getenv("MQ_TEST_PROMPTS"));
    ck_assert(t.n_prompts >= 1 && t.n_prompts <= MOST_PROMPTS);
    mq_assert_ok(mq_pool_run(n_threads, MOST_RANKS * PLAIN_JOBS, write_plain, &t, &err), &err);
    mq_assert_ok(mq_pool_run(n_threads, MOST_RANKS * WIDTHS, write_speculative, &t, &err), &err);
    mq_tokens_release(&t.source);
    free(t.dir);
}

START_TEST(int4_text_is_the_same_with_and_without_speculation)
{
    check_model("nano");
}
END_TEST

START_TEST(mxfp4_text_is_the_same_with_and_without_speculation)
{
    check_model("nano-mxfp4");
}
END_TEST

/* ---- Distribution ---- */

enum { K = 4, CELLS = K * K * K, ANCHOR = 40 };

/* The tree of three tokens after the anchor, K ways each: exact probabilities. */
typedef struct tree {
    mq_engine *engine;
    int64_t length; /* positions before the anchor */
    int32_t t1[K], t2[K][K], t3[K][K][K];
    double p[CELLS];
    int n_own; /* guesses that the drafter made */
} tree;

/* The K largest of logits and their probabilities at temperature. */
static void top_k(int32_t *ids, double *p, const float *logits, int vocab, double temperature)
{
    double sum = 0.0;
    for (int k = 0; k < K; k++) {
        ids[k] = -1;
        for (int32_t i = 0; i < vocab; i++) {
            bool taken = false;
            for (int j = 0; j < k; j++)
                taken = taken || ids[j] == i;
            if (!taken && (ids[k] < 0 || logits[i] > logits[ids[k]]))
                ids[k] = i;
        }
        p[k] = exp(((double)logits[ids[k]] - (double)logits[ids[0]]) / temperature);
        sum += p[k];
    }
    for (int k = 0; k < K; k++)
        p[k] /= sum;
}

static void grow_tree(tree *t, mq_engine *e, const int32_t *ids, double temperature)
{
    mq_err err;
    int vocab = mq_engine_model(e)->vocab;
    double p1[K], p2[K], p3[K];
    t->engine = e;
    t->length = ANCHOR;
    mq_engine_reset(e);
    mq_assert_ok(mq_engine_prefill(e, ids, ANCHOR, &err), &err);
    mq_assert_ok(mq_engine_step(e, ids + ANCHOR, 1, &err), &err);
    float *logits = malloc((size_t)vocab * sizeof *logits);
    ck_assert_ptr_nonnull(logits);
    mq_assert_ok(mq_engine_logits(e, logits, &err), &err);
    top_k(t->t1, p1, logits, vocab, temperature);
    for (int a = 0; a < K; a++) {
        mq_engine_rollback(e, ANCHOR + 1);
        mq_assert_ok(mq_engine_step(e, &t->t1[a], 1, &err), &err);
        mq_assert_ok(mq_engine_logits(e, logits, &err), &err);
        top_k(t->t2[a], p2, logits, vocab, temperature);
        for (int b = 0; b < K; b++) {
            mq_engine_rollback(e, ANCHOR + 2);
            mq_assert_ok(mq_engine_step(e, &t->t2[a][b], 1, &err), &err);
            mq_assert_ok(mq_engine_logits(e, logits, &err), &err);
            top_k(t->t3[a][b], p3, logits, vocab, temperature);
            for (int c = 0; c < K; c++)
                t->p[(a * K + b) * K + c] = p1[a] * p2[b] * p3[c];
        }
    }
    free(logits);
    mq_engine_rollback(e, ANCHOR);
}

static int find(const int32_t *ids, int32_t id)
{
    for (int k = 0; k < K; k++)
        if (ids[k] == id)
            return k;
    ck_abort_msg("token %d is not among the %d likeliest", id, K);
    return -1;
}

static int cell_of(const tree *t, const int32_t *tokens)
{
    int a = find(t->t1, tokens[0]), b = find(t->t2[a], tokens[1]);
    return (a * K + b) * K + find(t->t3[a][b], tokens[2]);
}

/* The drafter's guesses for the first step of a draw, so that its context never grows; behind it
 * the likeliest tokens of the tree would do, and any token does. */
static mq_status guess(void *ctx, int32_t *tokens, float *confidence, int32_t anchor, int n,
                       mq_err *err)
{
    tree *t = ctx;
    if (mq_engine_length(t->engine) == t->length) {
        t->n_own++;
        return mq_engine_propose(t->engine, tokens, confidence, anchor, n, err);
    }
    for (int i = 0; i < n; i++) {
        tokens[i] = t->t2[0][i % K];
        confidence[i] = 0.5f;
    }
    for (int a = 0; a < K; a++)
        if (t->t1[a] == anchor)
            tokens[0] = t->t2[a][0];
    return MQ_OK;
}

/* One draw of three tokens after the anchor. */
static int draw(tree *t, mq_speculate *s, int32_t anchor, const mq_sampling *sampling)
{
    mq_err err;
    int32_t tokens[3 + MQ_SPECULATE_ROWS], last = anchor;
    mq_engine_rollback(t->engine, t->length);
    for (int at = 0, n; at < 3; at += n, last = tokens[at - 1]) {
        mq_speculate_end end = {.limit = 3 - at};
        mq_assert_ok(mq_speculate_step(s, tokens + at, &n, last, sampling, &end, &err), &err);
    }
    return cell_of(t, tokens);
}

/* Probability that a chi-square variable of that many degrees is larger (Wilson and Hilferty). */
static double tail(double chi2, int degrees)
{
    double k = 2.0 / (9.0 * degrees);
    return 0.5 * erfc((cbrt(chi2 / degrees) - (1.0 - k)) / sqrt(k) / sqrt(2.0));
}

/* Observed counts of n draws against probabilities; cells expected below 5 count as one. */
static double against_exact(const int *seen, const double *p, int n)
{
    double chi2 = 0.0, rest = 0.0;
    int degrees = -1, rest_seen = 0;
    for (int i = 0; i < CELLS; i++) {
        double expected = p[i] * n;
        if (expected < 5.0) {
            rest += expected;
            rest_seen += seen[i];
            continue;
        }
        chi2 += (seen[i] - expected) * (seen[i] - expected) / expected;
        degrees++;
    }
    if (rest > 0.0) {
        chi2 += (rest_seen - rest) * (rest_seen - rest) / rest;
        degrees++;
    }
    ck_assert_int_gt(degrees, 20);
    return tail(chi2, degrees);
}

/* Do two samples of n draws come from one distribution? */
static double against_each_other(const int *a, const int *b)
{
    double chi2 = 0.0;
    int degrees = -1, rest[2] = {0, 0};
    for (int i = 0; i < CELLS; i++) {
        if (a[i] + b[i] < 10) {
            rest[0] += a[i];
            rest[1] += b[i];
            continue;
        }
        chi2 += (double)(a[i] - b[i]) * (a[i] - b[i]) / (a[i] + b[i]);
        degrees++;
    }
    if (rest[0] + rest[1] > 0) {
        chi2 += (double)(rest[0] - rest[1]) * (rest[0] - rest[1]) / (rest[0] + rest[1]);
        degrees++;
    }
    return tail(chi2, degrees);
}

START_TEST(drawn_tokens_are_distributed_as_the_target_says)
{
    static tree t;
    static int seen[2][CELLS]; /* plain, speculative */
    mq_err err;
    char *dir = pack("nano");
    mq_tokens text = read_text(dir);
    const int32_t *ids = text.ids + 5000;
    mq_engine *e = open_engine(dir, 1, MQ_DRAFT_DFLASH);
    grow_tree(&t, e, ids, 1.0);
    int n = small_or(1200, 2500, 100000), n_long = 0;
    mq_guesser g = {guess, &t, 3};
    for (int kind = 0; kind < 2; kind++) {
        mq_speculate *s;
        mq_speculate_options o = {.width = kind ? 4 : 1, .guesser = &g};
        mq_assert_ok(mq_speculate_create(&s, e, &o, &err), &err);
        for (int i = 0; i < n; i++) { /* seeds of their own: the same ones give the same tokens */
            mq_sampling sampling = {1.0f, K, 1.0f, (uint64_t)(kind * n + i)};
            seen[kind][draw(&t, s, ids[ANCHOR], &sampling)]++;
        }
        const mq_speculate_figures *f = mq_speculate_get_figures(s);
        n_long = (int)(f->n_tokens - f->n_steps);
        mq_speculate_free(s);
    }
    ck_assert_int_eq(t.n_own, n);
    ck_assert_int_gt(n_long, n / 10); /* enough tokens came out of accepted guesses */
    double p[3] = {against_exact(seen[0], t.p, n), against_exact(seen[1], t.p, n),
                   against_each_other(seen[0], seen[1])};
    printf("%d draws each, %d accepted guesses: p = %.3f plain against exact, %.3f speculative "
           "against exact, %.3f plain against speculative\n",
           n, n_long, p[0], p[1], p[2]);
    for (int i = 0; i < 3; i++)
        ck_assert_double_gt(p[i], 0.001);
    mq_engine_close(e);
    mq_tokens_release(&text);
    free(dir);
}
END_TEST

int main(void)
{
    if (is_cuda() && (!mq_kernels_find("cuda") || mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    Suite *s = suite_create("speculative");
    TCase *int4 = tcase_create("int4"), *mxfp4 = tcase_create("mxfp4"),
          *draws = tcase_create("draws");
    tcase_add_test(int4, int4_text_is_the_same_with_and_without_speculation);
    tcase_add_test(mxfp4, mxfp4_text_is_the_same_with_and_without_speculation);
    tcase_add_test(draws, drawn_tokens_are_distributed_as_the_target_says);
    suite_add_tcase(s, int4);
    suite_add_tcase(s, mxfp4);
    suite_add_tcase(s, draws);
    return mq_test_run(s);
}
