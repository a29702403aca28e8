/* Speculative steps with guesses that are written down: whatever is guessed, the tokens, the
 * positions held and the place where a block ends are plain decoding's; figures and drawn
 * acceptance mean what they say.  Real drafters meet the same rules in
 * tests/tools/test_speculative.c. */
#include <math.h>

#include "runtime/speculate.h"
#include "tests/runtime/reference.h"

enum { PROMPT = 64, TOKENS = 60, VOCAB = 4096, CONTEXT = 512, ROW = 224, N_PROMPTS = 12 };

static const mq_sampling greedy = {.temperature = 0.0f, .top_p = 1.0f};
static const mq_sampling warm = {.temperature = 0.8f, .top_k = 50, .top_p = 0.95f, .seed = 5};

static mq_engine *open_engine(const char *dir, int64_t context)
{
    mq_engine *e;
    mq_err err;
    mq_engine_options o = {.n_ranks = 1, .n_threads = 1, .context = context, .prefill_rows = 64};
    mq_assert_ok(mq_engine_open(&e, dir, ref_kernels(), &o, &err), &err);
    return e;
}

/* Guesses what truth says follows position length, each wrong with a given chance. */
typedef struct script {
    mq_engine *engine;
    const int32_t *truth; /* [n] tokens from position first on */
    int64_t first, n;
    double wrong;
    uint64_t random;
    int n_calls;
    mq_status fails;
} script;

static mq_status guess(void *ctx, int32_t *tokens, float *confidence, int32_t anchor, int n,
                       mq_err *err)
{
    script *s = ctx;
    int64_t at = mq_engine_length(s->engine) - s->first;
    ck_assert_int_ge(anchor, 0);
    s->n_calls++;
    if (s->fails != MQ_OK)
        return mq_fail(err, s->fails, "no guess today");
    for (int i = 0; i < n; i++) {
        bool wrong = (double)(mq_test_rand(&s->random) % 1000) < 1000 * s->wrong;
        int64_t j = at + 1 + i; /* the anchor is truth[at] */
        int32_t right = j < s->n ? s->truth[j] : 7;
        tokens[i] =
            wrong ? (right + 1 + (int32_t)(mq_test_rand(&s->random) % 4000)) % VOCAB : right;
        confidence[i] = (float)(mq_test_rand(&s->random) % 1000) / 1000.0f;
    }
    return MQ_OK;
}

/* Prompt p of the reference. */
static int32_t *prompts(const char *dir)
{
    return ref_load(dir, "prompt_and_greedy", N_PROMPTS * ROW);
}

static int32_t begin(mq_engine *e, const int32_t *ids, const mq_sampling *s)
{
    mq_err err;
    int32_t token;
    mq_engine_reset(e);
    mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
    mq_assert_ok(mq_engine_sample(e, &token, 0, s, &err), &err);
    return token;
}

/* out [n]: plain decoding's tokens. */
static void plain(mq_engine *e, int32_t *out, const int32_t *ids, int n, const mq_sampling *s)
{
    mq_err err;
    out[0] = begin(e, ids, s);
    for (int i = 1; i < n; i++) {
        mq_assert_ok(mq_engine_step(e, &out[i - 1], 1, &err), &err);
        mq_assert_ok(mq_engine_sample(e, &out[i], 0, s, &err), &err);
    }
}

static mq_speculate *open_speculate(mq_engine *e, script *s, int width, int most)
{
    mq_speculate *spec;
    mq_err err;
    mq_guesser g = {guess, s, most};
    mq_speculate_options o = {.width = width, .guesser = &g};
    mq_engine_reset(e);
    mq_assert_ok(mq_speculate_create(&spec, e, &o, &err), &err);
    ck_assert_int_eq(mq_engine_length(e), 0);
    return spec;
}

/* out [n] through steps; returns how many steps. */
static int speculative(mq_engine *e, mq_speculate *spec, int32_t *out, const int32_t *ids, int n,
                       const mq_sampling *s)
{
    mq_err err;
    int at = 1, steps = 0;
    out[0] = begin(e, ids, s);
    for (int got; at < n; at += got, steps++) {
        int32_t tokens[MQ_SPECULATE_ROWS];
        mq_speculate_end end = {.limit = n - at};
        mq_assert_ok(mq_speculate_step(spec, tokens, &got, out[at - 1], s, &end, &err), &err);
        ck_assert(got >= 1 && got <= n - at);
        ck_assert_int_eq(mq_engine_length(e), PROMPT + at - 1 + got);
        memcpy(out + at, tokens, (size_t)got * sizeof *tokens);
    }
    return steps;
}

START_TEST(text_is_plain_decodings_whatever_is_guessed)
{
    static const double wrong[4] = {0.0, 0.1, 0.5, 1.0};
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir), truth[TOKENS + 8], out[TOKENS];
    mq_engine *e = open_engine(dir, CONTEXT);
    bool small = getenv("MQ_TEST_SMALL") != NULL; /* sanitizers are slow */
    for (int p = 0; p < (small ? 1 : 2); p++)
        for (int warmth = 0; warmth < 2; warmth++) {
            const mq_sampling *s = warmth ? &warm : &greedy;
            plain(e, truth, ids + p * ROW, TOKENS + 8, s);
            for (int w = 0; w < 4; w++)
                for (int width = 0; width <= 8; width += small ? 4 : 1) {
                    script sc = {e, truth, PROMPT, TOKENS + 8, wrong[w], (uint64_t)width, 0, MQ_OK};
                    mq_speculate *spec = open_speculate(e, &sc, width, 7);
                    int steps = speculative(e, spec, out, ids + p * ROW, TOKENS, s);
                    for (int i = 0; i < TOKENS; i++)
                        ck_assert_msg(out[i] == truth[i],
                                      "prompt %d, sampled %d, width %d, wrong %g: token %d is %d, "
                                      "plain decoding has %d",
                                      p, warmth, width, wrong[w], i, out[i], truth[i]);
                    if (width && w == 0) /* all guesses right: every step is full */
                        ck_assert_int_eq(steps, (TOKENS - 1 + width - 1) / width);
                    if (w == 3) /* all wrong */
                        ck_assert_int_eq(steps, TOKENS - 1);
                    mq_speculate_free(spec);
                }
        }
    mq_engine_close(e);
    free(ids);
}
END_TEST

START_TEST(figures_count_rows_and_acceptance)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir), truth[TOKENS], out[TOKENS];
    mq_engine *e = open_engine(dir, CONTEXT);
    plain(e, truth, ids, TOKENS, &greedy);
    script sc = {.engine = e, .truth = truth, .first = PROMPT, .n = TOKENS};
    mq_speculate *spec = open_speculate(e, &sc, 4, 7);
    ck_assert_int_eq(speculative(e, spec, out, ids, 15, &greedy), 4);
    const mq_speculate_figures *f = mq_speculate_get_figures(spec);
    /* 14 tokens: 4, 4, 4 and then 2 rows for the 2 that are left. */
    ck_assert_int_eq(f->n_steps, 4);
    ck_assert_int_eq(f->n_tokens, 14);
    ck_assert_int_eq(f->steps[3], 3);
    ck_assert_int_eq(f->steps[1], 1);
    ck_assert_int_eq(f->offered[0], 4);
    ck_assert_int_eq(f->accepted[0], 4);
    ck_assert_int_eq(f->offered[1], 3);
    ck_assert_int_eq(f->accepted[2], 3);
    ck_assert_int_eq(f->offered[3], 0);
    ck_assert(f->draft_s >= 0.0 && f->verify_s > 0.0);
    const mq_model *m = mq_engine_model(e);
    for (int l = 0; l < m->n_layers; l++) {
        int64_t topk = m->n_experts_per_tok, most = 4 * topk;
        if (!m->is_moe[l]) {
            ck_assert_int_eq(f->experts[3][l], 0);
            continue;
        }
        if (most > m->n_experts)
            most = m->n_experts;
        ck_assert(f->experts[3][l] >= 3 * topk && f->experts[3][l] <= 3 * most);
        ck_assert(f->experts[1][l] >= topk && f->experts[1][l] <= 2 * topk);
        ck_assert_int_eq(f->experts[0][l], 0);
    }
    mq_speculate_clear_figures(spec);
    ck_assert_int_eq(f->n_steps, 0);
    ck_assert_int_eq(f->experts[3][m->n_layers - 1], 0);

    /* One row a step: no guesses, and every token its own top-k experts. */
    mq_speculate_free(spec);
    sc.n_calls = 0;
    spec = open_speculate(e, &sc, 1, 7);
    ck_assert_int_eq(speculative(e, spec, out, ids, 11, &greedy), 10);
    f = mq_speculate_get_figures(spec);
    ck_assert_int_eq(sc.n_calls, 0);
    ck_assert_int_eq(f->steps[0], 10);
    ck_assert_int_eq(f->experts[0][m->n_layers - 1], 10 * m->n_experts_per_tok);
    mq_speculate_free(spec);
    mq_engine_close(e);
    free(ids);
}
END_TEST

/* The first token of truth from at on that did not occur before, so that it can be an end. */
static int fresh_token(const int32_t *truth, int at, int n)
{
    for (int i = at; i < n; i++) {
        bool seen = false;
        for (int j = 0; j < i; j++)
            seen = seen || truth[j] == truth[i];
        if (!seen)
            return i;
    }
    ck_abort_msg("every token repeats");
    return -1;
}

START_TEST(an_end_token_inside_a_block_is_the_last)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir), truth[TOKENS], tokens[MQ_SPECULATE_ROWS];
    mq_err err;
    int n;
    mq_engine *e = open_engine(dir, CONTEXT);
    plain(e, truth, ids, TOKENS, &warm);
    int at = fresh_token(truth, 3, 8);
    script sc = {.engine = e, .truth = truth, .first = PROMPT, .n = TOKENS};
    mq_speculate *spec = open_speculate(e, &sc, 8, 7);
    int32_t ends[2] = {VOCAB + 5, truth[at]};
    mq_speculate_end end = {.limit = 100, .ids = ends, .n_ids = 2};
    ck_assert_int_eq(begin(e, ids, &warm), truth[0]);
    mq_assert_ok(mq_speculate_step(spec, tokens, &n, truth[0], &warm, &end, &err), &err);
    ck_assert_int_eq(n, at);
    ck_assert_int_eq(tokens[n - 1], truth[at]);
    ck_assert_int_eq(mq_engine_length(e), PROMPT + at); /* the end token itself was not run */
    /* Going on as if nothing had happened. */
    end.n_ids = 0;
    mq_assert_ok(mq_speculate_step(spec, tokens, &n, truth[at], &warm, &end, &err), &err);
    ck_assert_int_eq(n, 8);
    ck_assert_mem_eq(tokens, truth + at + 1, sizeof tokens);
    mq_speculate_free(spec);
    mq_engine_close(e);
    free(ids);
}
END_TEST

START_TEST(a_cut_block_leaves_what_plain_decoding_leaves)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir), truth[TOKENS], tokens[MQ_SPECULATE_ROWS];
    mq_err err;
    int n;
    mq_engine *e = open_engine(dir, CONTEXT);
    plain(e, truth, ids, TOKENS, &greedy);
    script sc = {.engine = e, .truth = truth, .first = PROMPT, .n = TOKENS};
    mq_speculate *spec = open_speculate(e, &sc, 8, 7);
    mq_speculate_end end = {.limit = 100};
    ck_assert_int_eq(begin(e, ids, &greedy), truth[0]);
    int at = 0;
    for (int keep = 1; keep <= 8; keep++) {
        mq_assert_ok(mq_speculate_step(spec, tokens, &n, truth[at], &greedy, &end, &err), &err);
        ck_assert_int_eq(n, 8);
        mq_speculate_cut(spec, keep);
        at += keep;
        ck_assert_int_eq(mq_engine_length(e), PROMPT + at);
    }
    ck_assert_int_eq(mq_speculate_get_figures(spec)->n_tokens, at);
    for (int i = at; i < TOKENS - 1; i++) { /* plain steps from there */
        int32_t token;
        mq_assert_ok(mq_engine_step(e, &truth[i], 1, &err), &err);
        mq_assert_ok(mq_engine_sample(e, &token, 0, &greedy, &err), &err);
        ck_assert_int_eq(token, truth[i + 1]);
    }
    mq_speculate_free(spec);
    mq_engine_close(e);
    free(ids);
}
END_TEST

START_TEST(limit_and_context_end_inside_a_block)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir), truth[TOKENS], tokens[MQ_SPECULATE_ROWS];
    mq_err err;
    int n;
    mq_engine *e = open_engine(dir, PROMPT + 13);
    plain(e, truth, ids, 14, &greedy); /* 13 places behind the prompt bring 14 tokens */
    script sc = {.engine = e, .truth = truth, .first = PROMPT, .n = 14};
    mq_speculate *spec = open_speculate(e, &sc, 8, 7);
    for (int limit = 1; limit <= 8; limit++) {
        mq_speculate_end end = {.limit = limit};
        begin(e, ids, &greedy);
        mq_assert_ok(mq_speculate_step(spec, tokens, &n, truth[0], &greedy, &end, &err), &err);
        ck_assert_int_eq(n, limit);
        ck_assert_mem_eq(tokens, truth + 1, (size_t)n * sizeof *tokens);
    }
    mq_speculate_end end = {.limit = 100};
    mq_assert_ok(mq_speculate_step(spec, tokens, &n, truth[8], &greedy, &end, &err), &err);
    ck_assert_int_eq(n, 5); /* 13 places, 8 taken */
    ck_assert_mem_eq(tokens, truth + 9, (size_t)n * sizeof *tokens);
    ck_assert_int_eq(mq_engine_length(e), mq_engine_context(e));
    mq_assert_fails(mq_speculate_step(spec, tokens, &n, truth[13], &greedy, &end, &err), MQ_E_ARG,
                    &err, "expected at most 77 in all (the context)");
    ck_assert_int_eq(n, 0);
    mq_speculate_free(spec);
    mq_engine_close(e);
    free(ids);
}
END_TEST

/* Tokens per step over many steps. */
static double synthetic_mean(mq_engine *e, const int32_t *ids, double wanted, int width,
                             int n_steps, uint64_t seed, mq_speculate_figures *figures)
{
    mq_err err;
    mq_speculate *spec;
    script sc = {.engine = e, .wrong = 1.0, .random = seed};
    mq_guesser g = {guess, &sc, 7};
    mq_speculate_options o = {
        .width = width, .guesser = &g, .synthetic = wanted, .synthetic_seed = seed};
    mq_engine_reset(e);
    mq_assert_ok(mq_speculate_create(&spec, e, &o, &err), &err);
    int32_t tokens[MQ_SPECULATE_ROWS], anchor = begin(e, ids, &greedy);
    mq_speculate_end end = {.limit = 8};
    for (int i = 0, n; i < n_steps; i++, anchor = tokens[n - 1]) {
        if (mq_engine_length(e) + 8 > mq_engine_context(e))
            anchor = begin(e, ids, &greedy);
        mq_assert_ok(mq_speculate_step(spec, tokens, &n, anchor, &greedy, &end, &err), &err);
    }
    *figures = *mq_speculate_get_figures(spec);
    for (int i = 0; i < MQ_SPECULATE_ROWS; i++)
        figures->experts[i] = NULL;
    mq_speculate_free(spec);
    return (double)figures->n_tokens / (double)figures->n_steps;
}

START_TEST(drawn_acceptance_has_the_mean_that_was_asked_for)
{
    const int n_steps = getenv("MQ_TEST_SMALL") ? 100 : 1000;
    static const double wanted[4] = {1.0, 3.2, 6.3, 8.0};
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir);
    mq_engine *e = open_engine(dir, CONTEXT);
    mq_speculate_figures f, again;
    for (int i = 0; i < 4; i++) {
        double mean = synthetic_mean(e, ids, wanted[i], 8, n_steps, 3, &f);
        /* a step's tokens deviate by at most 3.5: five standard errors */
        ck_assert_double_eq_tol(
            mean, wanted[i],
            wanted[i] == 1.0 || wanted[i] == 8.0 ? 1e-12 : 5 * 3.5 / sqrt((double)n_steps));
        synthetic_mean(e, ids, wanted[i], 8, n_steps, 3, &again);
        ck_assert_mem_eq(f.accepted, again.accepted, sizeof f.accepted); /* seeded */
    }
    /* Auto has confidences to judge: hopeless guesses get no rows, whatever the clock says. */
    synthetic_mean(e, ids, 1.001, 0, n_steps, 4, &f);
    ck_assert_int_gt(f.steps[0], n_steps / 2);
    mq_engine_close(e);
    free(ids);
}
END_TEST

START_TEST(wrong_calls_are_refused)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    int32_t *ids = prompts(dir), tokens[MQ_SPECULATE_ROWS];
    mq_err err;
    int n;
    mq_speculate *spec;
    mq_engine *e = open_engine(dir, CONTEXT);
    script sc = {.engine = e};
    mq_guesser g = {guess, &sc, 3};
    mq_speculate_options o = {.width = 5, .guesser = &g};
    mq_assert_fails(mq_speculate_create(&spec, e, &o, &err), MQ_E_ARG, &err,
                    "--draft-width 5: the drafter guesses 3 tokens, expected 1 to 4");
    ck_assert_ptr_null(spec);
    o = (mq_speculate_options){.width = 2, .guesser = &g, .synthetic = 4.5};
    mq_assert_fails(mq_speculate_create(&spec, e, &o, &err), MQ_E_ARG, &err,
                    "--synthetic-acceptance 4.5: the drafter guesses 3 tokens, expected 1 to 4");
    o.synthetic = 0.5;
    mq_assert_fails(mq_speculate_create(&spec, e, &o, &err), MQ_E_ARG, &err, "expected 1 to 4");
    o = (mq_speculate_options){.synthetic = 1.0};
    mq_assert_fails(mq_speculate_create(&spec, e, &o, &err), MQ_E_ARG, &err, "there is no drafter");
    o = (mq_speculate_options){.width = 2};
    mq_assert_fails(mq_speculate_create(&spec, e, &o, &err), MQ_E_ARG, &err,
                    "--draft-width 2: there is no drafter");
    mq_assert_ok(mq_engine_prefill(e, ids, 4, &err), &err);
    o = (mq_speculate_options){.width = 0, .guesser = &g};
    mq_assert_fails(mq_speculate_create(&spec, e, &o, &err), MQ_E_ARG, &err,
                    "the engine holds 4 positions, expected none yet");

    /* A guesser's failure leaves the sequence as it was. */
    o.width = 4;
    mq_assert_ok(mq_speculate_create(&spec, e, &o, &err), &err);
    sc.fails = MQ_E_DEVICE;
    mq_speculate_end end = {.limit = 9};
    mq_assert_fails(mq_speculate_step(spec, tokens, &n, 1, &greedy, &end, &err), MQ_E_DEVICE, &err,
                    "no guess today");
    ck_assert_int_eq(mq_engine_length(e), 4);
    sc.fails = MQ_OK;
    mq_assert_fails(mq_speculate_step(spec, tokens, &n, VOCAB, &greedy, &end, &err), MQ_E_ARG, &err,
                    "token id 4096 at position 4, expected 0 to 4095");
    mq_speculate_free(spec);
    mq_speculate_free(NULL);
    mq_engine_close(e);
    free(ids);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("speculate");
    TCase *t = tcase_create("speculate");
    tcase_add_test(t, text_is_plain_decodings_whatever_is_guessed);
    tcase_add_test(t, figures_count_rows_and_acceptance);
    tcase_add_test(t, an_end_token_inside_a_block_is_the_last);
    tcase_add_test(t, a_cut_block_leaves_what_plain_decoding_leaves);
    tcase_add_test(t, limit_and_context_end_inside_a_block);
    tcase_add_test(t, drawn_acceptance_has_the_mean_that_was_asked_for);
    tcase_add_test(t, wrong_calls_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
