/* See speculate.h.  One step is: ask for guesses, choose the number of rows, run them, choose
 * tokens row by row, take back what was not accepted.
 *
 * Drawn acceptance (synthetic): the chances a of the guesses are independent with mean p, where 1 +
 * p
 * + ... + p^most is the number of tokens asked for, so a full step brings that number on average;
 * a = u^((1 - p) / p), u uniform, has mean p and spreads like a drafter's confidence. */
#include "runtime/speculate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/model.h"

struct mq_speculate {
    mq_engine *engine;
    mq_guesser guesser; /* fn NULL: the engine's drafter */
    int most;           /* guesses */
    mq_width width;
    mq_speculate_figures figures;
    int64_t *experts;   /* [MQ_SPECULATE_ROWS, n_layers] behind figures.experts */
    int32_t *distinct;  /* [n_layers] experts of the last step */
    bool counts_experts;
    double synthetic_p; /* chance of a drawn guess; below 0: not drawn */
    uint64_t random;
    double (*now)(void);
    int64_t drafted_at; /* positions at the last proposal, and its guesses */
    int drafted_n;
    int64_t before; /* positions before the last step */
    int last;       /* tokens of the last step */
};

static double monotonic(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* splitmix64, as a number in (0, 1). */
static double uniform(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

/* p with 1 + p + ... + p^most = tokens, by halving. */
static double chance_of(double tokens, int most)
{
    double low = 0.0, high = 1.0;
    for (int i = 0; i < 60; i++) {
        double p = (low + high) / 2, sum = 1.0;
        for (int k = 0; k < most; k++)
            sum = 1.0 + p * sum;
        if (sum < tokens)
            low = p;
        else
            high = p;
    }
    return (low + high) / 2;
}

static mq_status propose(mq_speculate *s, int32_t *tokens, float *confidence, int32_t anchor, int n,
                         mq_err *err)
{
    if (s->guesser.fn)
        return s->guesser.fn(s->guesser.ctx, tokens, confidence, anchor, n, err);
    return mq_engine_propose(s->engine, tokens, confidence, anchor, n, err);
}

/* ---- Costs ---- */

enum { WARM_PROMPT = 32, REPEATS = 3 };
static const double MEASURE_S = 1.0; /* no width is timed again after this long */

/* Seconds of a step of rows ids, the best of a few; the engine is as before. */
static mq_status time_rows(mq_speculate *s, double *best_s, const int32_t *ids, int rows,
                           double deadline, mq_err *err)
{
    *best_s = HUGE_VAL;
    for (int i = 0; i < REPEATS && (i == 0 || s->now() < deadline); i++) {
        double start = s->now();
        MQ_TRY(mq_engine_step(s->engine, ids, rows, err));
        MQ_TRY(mq_engine_wait(s->engine, err));
        *best_s = fmin(*best_s, s->now() - start);
        mq_engine_rollback(s->engine, WARM_PROMPT);
    }
    return MQ_OK;
}

/* The drafter's share of a step: context for two tokens, and a proposal of n guesses. */
static mq_status time_draft(mq_speculate *s, double *best_s, const int32_t *ids, int n,
                            double deadline, mq_err *err)
{
    int32_t tokens[MQ_WIDTH_GUESSES];
    float confidence[MQ_WIDTH_GUESSES];
    *best_s = HUGE_VAL;
    for (int i = 0; i < REPEATS && (i == 0 || s->now() < deadline); i++) {
        MQ_TRY(mq_engine_step(s->engine, ids, 2, err));
        MQ_TRY(mq_engine_wait(s->engine, err));
        double start = s->now();
        MQ_TRY(propose(s, tokens, confidence, ids[2], n, err));
        *best_s = fmin(*best_s, s->now() - start);
    }
    return MQ_OK;
}

/* Proposals of one guess and of all; the others lie on the line between. */
static mq_status measure_drafts(mq_speculate *s, double *draft_s, const int32_t *ids,
                                double deadline, mq_err *err)
{
    int32_t token;
    float confidence;
    int all = s->most;
    MQ_TRY(propose(s, &token, &confidence, ids[0], 1, err)); /* takes in the prompt */
    MQ_TRY(time_draft(s, &draft_s[all], ids, all, deadline, err));
    if (all > 1)
        MQ_TRY(time_draft(s, &draft_s[1], ids, 1, deadline, err));
    for (int n = 2; n < all; n++)
        draft_s[n] = draft_s[1] + (draft_s[all] - draft_s[1]) * (n - 1) / (all - 1);
    return MQ_OK;
}

/* Steps of 1, 2, 4 and all rows are timed; the others lie on the lines between. */
static mq_status measure_costs(mq_speculate *s, mq_err *err)
{
    int32_t ids[WARM_PROMPT];
    double step_s[MQ_SPECULATE_ROWS] = {0}, draft_s[MQ_SPECULATE_ROWS] = {0};
    int vocab = mq_engine_model(s->engine)->vocab;
    if (mq_engine_length(s->engine) != 0)
        return mq_fail(err, MQ_E_ARG, "the engine holds %lld positions, expected none yet",
                       (long long)mq_engine_length(s->engine));
    if (mq_engine_context(s->engine) < WARM_PROMPT + 2 * MQ_SPECULATE_ROWS)
        return MQ_OK; /* too short to matter: the policy's own idea will do */
    for (int i = 0; i < WARM_PROMPT; i++)
        ids[i] = (int32_t)((2654435761u * (uint32_t)(i + 1)) % (uint32_t)vocab);
    MQ_TRY(mq_engine_prefill(s->engine, ids, WARM_PROMPT, err));
    MQ_TRY(mq_engine_step(s->engine, ids, 1, err)); /* touches all memory once */
    mq_engine_rollback(s->engine, WARM_PROMPT);
    double deadline = s->now() + MEASURE_S;
    int all = s->most + 1, from = 1;
    for (int rows = 1;; rows = 2 * rows < all ? 2 * rows : all) {
        MQ_TRY(time_rows(s, &step_s[rows - 1], ids, rows, deadline, err));
        for (int i = from + 1; i < rows; i++)
            step_s[i - 1] = step_s[from - 1] +
                            (step_s[rows - 1] - step_s[from - 1]) * (i - from) / (rows - from);
        from = rows;
        if (rows == all)
            break;
    }
    MQ_TRY(measure_drafts(s, draft_s, ids, deadline, err));
    mq_width_costs(&s->width, step_s, draft_s);
    mq_engine_reset(s->engine);
    return MQ_OK;
}

/* ---- Life ---- */

static mq_status check_options(const mq_speculate_options *o, int most, mq_err *err)
{
    if (o->width > 1 && most == 0)
        return mq_fail(err, MQ_E_ARG, "--draft-width %d: there is no drafter", o->width);
    if (o->width < 0 || o->width > most + 1)
        return mq_fail(err, MQ_E_ARG,
                       "--draft-width %d: the drafter guesses %d tokens, expected 1 to %d",
                       o->width, most, most + 1);
    if (o->synthetic != 0.0 && most == 0)
        return mq_fail(err, MQ_E_ARG, "--synthetic-acceptance: there is no drafter");
    if (o->synthetic != 0.0 && !(o->synthetic >= 1.0 && o->synthetic <= most + 1))
        return mq_fail(err, MQ_E_ARG,
                       "--synthetic-acceptance %g: the drafter guesses %d tokens, expected 1 to %d",
                       o->synthetic, most, most + 1);
    return MQ_OK;
}

static mq_status set_up(mq_speculate *s, const mq_speculate_options *o, mq_err *err)
{
    int n_layers = mq_engine_model(s->engine)->n_layers;
    s->most = s->guesser.fn ? s->guesser.most : mq_engine_draft_most(s->engine);
    assert(s->most >= 0 && s->most <= MQ_WIDTH_GUESSES);
    MQ_TRY(check_options(o, s->most, err));
    s->experts = calloc((size_t)MQ_SPECULATE_ROWS * (size_t)n_layers, sizeof *s->experts);
    s->distinct = calloc((size_t)n_layers, sizeof *s->distinct);
    if (!s->experts || !s->distinct)
        return mq_fail(err, MQ_E_NOMEM, "speculation: out of memory");
    mq_speculate_clear_figures(s);
    s->counts_experts = !o->no_experts;
    s->synthetic_p = o->synthetic != 0.0 ? chance_of(o->synthetic, s->most) : -1.0;
    s->random = o->synthetic_seed;
    mq_width_init(&s->width, s->most, s->most == 0 ? 1 : o->width);
    return s->width.fixed ? MQ_OK : measure_costs(s, err);
}

mq_status mq_speculate_create(mq_speculate **out, mq_engine *engine,
                              const mq_speculate_options *options, mq_err *err)
{
    *out = NULL;
    mq_speculate *s = calloc(1, sizeof *s);
    if (!s)
        return mq_fail(err, MQ_E_NOMEM, "speculation: out of memory");
    s->engine = engine;
    s->now = options->now ? options->now : monotonic;
    if (options->guesser)
        s->guesser = *options->guesser;
    mq_status st = set_up(s, options, err);
    if (st != MQ_OK) {
        mq_speculate_free(s);
        return st;
    }
    *out = s;
    return MQ_OK;
}

void mq_speculate_free(mq_speculate *s)
{
    if (!s)
        return;
    free(s->experts);
    free(s->distinct);
    free(s);
}

/* ---- A step ---- */

/* The rows of a step while it is built. */
typedef struct block {
    int32_t ids[MQ_SPECULATE_ROWS]; /* anchor, guesses */
    float confidence[MQ_WIDTH_GUESSES];
    double chance[MQ_WIDTH_GUESSES]; /* drawn acceptance alone */
    int n_guesses, rows;
} block;

/* Chances of guesses of which tokens are expected, in the drafter's place. */
static void draw_chances(mq_speculate *s, block *b)
{
    double p = s->synthetic_p;
    for (int i = 0; i < b->n_guesses; i++) {
        b->chance[i] = p > 0.0 ? pow(uniform(&s->random), (1.0 - p) / p) : 0.0;
        b->confidence[i] = (float)b->chance[i];
    }
}

static mq_status build_block(mq_speculate *s, block *b, int32_t anchor, int64_t room, mq_err *err)
{
    b->ids[0] = anchor;
    b->n_guesses = mq_width_guesses(&s->width, room);
    if (b->n_guesses > 0)
        MQ_TRY(propose(s, b->ids + 1, b->confidence, anchor, b->n_guesses, err));
    if (s->synthetic_p >= 0.0)
        draw_chances(s, b);
    b->rows = mq_width_choose(&s->width, b->confidence, b->n_guesses);
    return MQ_OK;
}

static bool is_end(const mq_speculate_end *end, int32_t token)
{
    for (int i = 0; i < end->n_ids; i++)
        if (end->ids[i] == token)
            return true;
    return false;
}

/* Is the guess in row + 1 taken, token being the target's choice after row? */
static bool accepts(mq_speculate *s, const block *b, int row, int32_t *token)
{
    if (s->synthetic_p < 0.0)
        return b->ids[row + 1] == *token;
    bool taken = uniform(&s->random) < b->chance[row];
    if (taken)
        *token = b->ids[row + 1];
    return taken;
}

/* Choose the tokens after the rows, as far as they count. */
static mq_status choose_tokens(mq_speculate *s, const block *b, int32_t *tokens, int *n,
                               int *n_accepted, const mq_sampling *sampling,
                               const mq_speculate_end *end, mq_err *err)
{
    *n = *n_accepted = 0;
    for (int row = 0; row < b->rows; row++) {
        mq_status st = mq_engine_sample(s->engine, &tokens[row], row, sampling, err);
        if (st == MQ_E_NUMERIC && row > 0)
            return MQ_OK;
        MQ_TRY(st);
        bool accepted = row + 1 < b->rows && accepts(s, b, row, &tokens[row]);
        *n = row + 1;
        *n_accepted += accepted;
        if (!accepted || is_end(end, tokens[row]))
            break;
    }
    return MQ_OK;
}

static mq_status count(mq_speculate *s, const block *b, int n, int n_accepted, mq_err *err)
{
    mq_speculate_figures *f = &s->figures;
    int n_layers = s->counts_experts ? mq_engine_model(s->engine)->n_layers : 0;
    if (s->counts_experts)
        MQ_TRY(mq_engine_distinct_experts(s->engine, s->distinct, err));
    f->n_steps++;
    f->n_tokens += n;
    f->steps[b->rows - 1]++;
    for (int i = 0; i < b->rows - 1; i++) {
        f->offered[i]++;
        f->accepted[i] += i < n_accepted;
    }
    for (int l = 0; l < n_layers; l++)
        s->experts[(int64_t)(b->rows - 1) * n_layers + l] += s->distinct[l];
    return MQ_OK;
}

/* Did the drafter have one step's tokens to catch up with, not a prompt or those of a pause, and
 * all the layers it now needs ran last time?  Only then is its time what a proposal costs. */
static bool follows_last_proposal(const mq_speculate *s, int64_t before, int n)
{
    return before > s->drafted_at && before - s->drafted_at <= MQ_SPECULATE_ROWS &&
           n <= s->drafted_n;
}

mq_status mq_speculate_step(mq_speculate *s, int32_t *tokens, int *n, int32_t anchor,
                            const mq_sampling *sampling, const mq_speculate_end *end, mq_err *err)
{
    assert(end->limit >= 1);
    block b = {.rows = 1};
    int n_accepted;
    int64_t before = mq_engine_length(s->engine), room = mq_engine_context(s->engine) - before;
    *n = 0;
    room = room < 1            ? 1
           : room < end->limit ? room
                               : end->limit; /* a full context: the step says so */
    double start = s->now();
    MQ_TRY(build_block(s, &b, anchor, room, err));
    double drafted = s->now();
    MQ_TRY(mq_engine_step(s->engine, b.ids, b.rows, err));
    mq_status st = choose_tokens(s, &b, tokens, n, &n_accepted, sampling, end, err);
    mq_engine_rollback(s->engine, st == MQ_OK ? before + *n : before);
    MQ_TRY(st);
    double done = s->now();
    s->before = before;
    s->last = *n;
    MQ_TRY(count(s, &b, *n, n_accepted, err));
    s->figures.draft_s += drafted - start;
    s->figures.verify_s += done - drafted;
    bool usual = follows_last_proposal(s, before, b.n_guesses);
    if (b.n_guesses > 0) {
        s->drafted_at = before;
        s->drafted_n = b.n_guesses;
    }
    mq_width_learn(&s->width, b.confidence, b.n_guesses, b.rows, n_accepted, done - drafted,
                   b.n_guesses && usual ? drafted - start : 0.0);
    return MQ_OK;
}

void mq_speculate_cut(mq_speculate *s, int n)
{
    assert(n >= 1 && n <= s->last);
    s->figures.n_tokens -= s->last - n;
    s->last = n;
    mq_engine_rollback(s->engine, s->before + n);
}

const mq_speculate_figures *mq_speculate_get_figures(const mq_speculate *s)
{
    return &s->figures;
}

void mq_speculate_clear_figures(mq_speculate *s)
{
    int n_layers = mq_engine_model(s->engine)->n_layers;
    memset(&s->figures, 0, sizeof s->figures);
    memset(s->experts, 0, (size_t)MQ_SPECULATE_ROWS * (size_t)n_layers * sizeof *s->experts);
    for (int i = 0; i < MQ_SPECULATE_ROWS; i++)
        s->figures.experts[i] = s->experts + (int64_t)i * n_layers;
}

const mq_width *mq_speculate_width(const mq_speculate *s)
{
    return &s->width;
}
