/* The policy of width.h.
 *
 * Maximising tokens per second over a long run is maximising, step by step, expected tokens less
 * pace times seconds (renewal reward); so a step takes the number of rows for which that difference
 * is largest, the pace being a fading average of what the steps brought, never below plain
 * decoding's.
 *
 * Chances: bins of confidence per position, which lean on bins over all positions, which lean on
 * the drafter's own word.  All counts fade a little with every step, so a kind of guess that is no
 * longer tried returns to the drafter's word and gets another try without steps spent on exploring.
 *
 * How many guesses to ask for is decided the same way, before they are known: by the fading mean of
 * what the first 1, 2, ... guesses would have been worth.
 *
 * Drafting itself is given up for a while when the pace of drafted steps is below plain decoding's;
 * pauses grow while the trials between them fail, and these trials are short: they lean on what the
 * ones before left behind. */
#include "runtime/width.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static const double ROW_SHARE = 0.1;        /* cost of a row before it is measured */
static const double KEEP = 1.0 - 1.0 / 512; /* of a count, step by step */
static const double TRUST_WORD = 4.0;       /* guesses that the drafter's word weighs as much as */
static const double TRUST_ALL = 8.0;        /* the same for the bin over all positions */
static const double PACE_KEEP = 1.0 - 1.0 / 64;
static const double COST_KEEP = 1.0 - 1.0 / 16; /* of the weight of old times */
static const double COST_START = 2.0; /* times that what was measured at start counts for */
static const double COST_LIMIT = 3.0; /* a time this much above the estimate is an accident */
static const double DRAFT_KEEP = 1.0 - 1.0 / 32;
static const double REST_KEEP = 0.5; /* what a pause leaves of the sums that led to it */
static const double WORTH_KEEP = 1.0 - 1.0 / 64;
enum { ASK_ALL = 32 }; /* every so many proposals are of all guesses */
enum { TRIAL = 12, SHORT_TRIAL = 4, FIRST_REST = 32, LONGEST_REST = 1024 };

static int bin_of(float confidence)
{
    static const float edges[MQ_WIDTH_BINS - 1] = {0.10f, 0.25f, 0.40f, 0.55f, 0.70f, 0.85f, 0.95f};
    int bin = 0;
    while (bin < MQ_WIDTH_BINS - 1 && confidence >= edges[bin])
        bin++;
    return bin;
}

void mq_width_init(mq_width *w, int most, int fixed)
{
    assert(most >= 0 && most <= MQ_WIDTH_GUESSES && fixed >= 0 && fixed <= most + 1);
    memset(w, 0, sizeof *w);
    w->most = most;
    w->fixed = fixed;
    w->next_rest = FIRST_REST;
    for (int i = 0; i < MQ_WIDTH_ROWS; i++)
        w->step_s[i] = 1.0 + ROW_SHARE * i;
}

void mq_width_costs(mq_width *w, const double *step_s, const double *draft_s)
{
    for (int i = 0; i <= w->most; i++)
        w->step_s[i] = step_s[i];
    for (int n = 1; n <= w->most; n++)
        w->draft_s[n] = draft_s[n];
    for (int i = 0; i <= w->most; i++)
        w->n_step[i] = w->n_draft[i] = COST_START;
}

double mq_width_chance(const mq_width *w, int i, float confidence)
{
    int bin = bin_of(confidence);
    const mq_width_count *all = &w->all[bin], *at = &w->at[i][bin];
    double word = confidence < 0.0f ? 0.0 : confidence > 1.0f ? 1.0 : (double)confidence;
    double pooled = (all->accepted + TRUST_WORD * word) / (all->n + TRUST_WORD);
    return (at->accepted + TRUST_ALL * pooled) / (at->n + TRUST_ALL);
}

/* Seconds of a step of rows rows: more rows never cost less, so a longer step's estimate bounds a
 * shorter one's that was not tried for long. */
static double cost(const mq_width *w, int rows)
{
    double s = w->step_s[rows - 1];
    for (int i = rows; i <= w->most; i++)
        s = w->step_s[i] < s ? w->step_s[i] : s;
    return s;
}

/* Tokens per second of late, at least plain decoding's. */
static double pace(const mq_width *w)
{
    double plain = 1.0 / cost(w, 1);
    return w->pace_tokens > plain * w->pace_s ? w->pace_tokens / w->pace_s : plain;
}

/* Guesses that were lately worth most; all of them now and then, to see what the others are worth.
 */
static int best_guesses(const mq_width *w)
{
    double per_s = pace(w), gain = 0.0, best = 0.0;
    int n = 1;
    if (w->n_drafted % ASK_ALL == 0 || w->n_drafted < TRIAL)
        return w->most;
    for (int k = 2; k <= w->most; k++) {
        gain += w->worth[k] - per_s * (w->draft_s[k] - w->draft_s[k - 1]);
        if (gain >= best) {
            best = gain;
            n = k;
        }
    }
    return n;
}

int mq_width_guesses(const mq_width *w, int64_t room)
{
    int n = w->fixed ? w->fixed - 1 : w->rest > 0 || w->most == 0 ? 0 : best_guesses(w);
    return n < room ? n : (int)room - 1;
}

/* Rows for n guesses; worth [n + 1] (may be NULL): by how many tokens the best step of k guesses
 * beats the best of k - 1. */
static int best_rows(const mq_width *w, const float *confidence, int n, double *worth)
{
    double per_s = pace(w), chance = 1.0, tokens = 1.0, best = tokens - per_s * cost(w, 1);
    int rows = 1;
    for (int i = 0; i < n; i++) {
        chance *= mq_width_chance(w, i, confidence[i]);
        tokens += chance;
        double gain = tokens - per_s * cost(w, i + 2);
        if (worth)
            worth[i + 1] = gain > best ? gain - best : 0.0;
        if (gain > best) {
            best = gain;
            rows = i + 2;
        }
    }
    return rows;
}

int mq_width_choose(const mq_width *w, const float *confidence, int n)
{
    assert(n >= 0 && n <= w->most);
    return w->fixed ? n + 1 : best_rows(w, confidence, n, NULL);
}

static void learn_worth(mq_width *w, const float *confidence, int n)
{
    double worth[MQ_WIDTH_ROWS];
    best_rows(w, confidence, n, worth);
    for (int k = 1; k <= n; k++) {
        w->n_worth[k] = WORTH_KEEP * w->n_worth[k] + 1.0;
        w->worth[k] += (worth[k] - w->worth[k]) / w->n_worth[k];
    }
    w->n_drafted++;
}

/* Move estimate [0 .. n - 1] by a new time of entry at, which weighs more the fewer there were
 * before. What made one entry slower or faster (a longer context, other load) mostly holds for the
 * others too: they go half the way (by the root, so that up and down leave no trace). */
static void learn_cost(double *estimate, double *n_seen, int n, int at, double seen)
{
    double limit = COST_LIMIT * estimate[at], last = estimate[at];
    if (!(seen > 0.0))
        return;
    for (int i = 0; i < n; i++)
        n_seen[i] = n_seen[i] * COST_KEEP > 1.0 ? n_seen[i] * COST_KEEP : 1.0;
    n_seen[at] += 1.0;
    estimate[at] += ((last > 0.0 && seen > limit ? limit : seen) - last) / n_seen[at];
    for (int i = 0; i < n && last > 0.0; i++)
        if (i != at)
            estimate[i] *= sqrt(estimate[at] / last);
}

static void fade(mq_width *w)
{
    for (int b = 0; b < MQ_WIDTH_BINS; b++) {
        w->all[b].n *= KEEP;
        w->all[b].accepted *= KEEP;
        for (int i = 0; i < w->most; i++) {
            w->at[i][b].n *= KEEP;
            w->at[i][b].accepted *= KEEP;
        }
    }
}

/* The verified guesses up to and with the first rejected one: behind it nothing was learnt. */
static void learn_chances(mq_width *w, const float *confidence, int rows, int n_accepted)
{
    fade(w);
    for (int i = 0; i < rows - 1 && i <= n_accepted; i++) {
        int bin = bin_of(confidence[i]);
        double hit = i < n_accepted ? 1.0 : 0.0;
        w->all[bin].n += 1.0;
        w->all[bin].accepted += hit;
        w->at[i][bin].n += 1.0;
        w->at[i][bin].accepted += hit;
    }
}

/* Is drafting worth its time?  Asked every TRIAL drafted steps, sooner after a pause: go on, or
 * pause.  Expected tokens
 * say it sooner than the tokens that came, which vary more from step to step. */
static void judge_drafting(mq_width *w, double tokens, double s)
{
    w->draft_tokens = DRAFT_KEEP * w->draft_tokens + tokens;
    w->draft_in_s = DRAFT_KEEP * w->draft_in_s + s;
    if (++w->n_trial < (w->next_rest == FIRST_REST ? TRIAL : SHORT_TRIAL))
        return;
    w->n_trial = 0;
    if (w->draft_tokens * cost(w, 1) < w->draft_in_s) {
        w->rest = w->next_rest;
        w->next_rest = 2 * w->next_rest < LONGEST_REST ? 2 * w->next_rest : LONGEST_REST;
        w->draft_tokens *= REST_KEEP;
        w->draft_in_s *= REST_KEEP;
    } else {
        w->next_rest = FIRST_REST;
    }
}

void mq_width_learn(mq_width *w, const float *confidence, int n, int rows, int n_accepted,
                    double step_s, double draft_s)
{
    assert(rows >= 1 && rows <= n + 1 && n_accepted >= 0 && n_accepted < rows && n <= w->most);
    if (w->fixed)
        return;
    learn_cost(w->step_s, w->n_step, w->most + 1, rows - 1, step_s);
    if (n > 0)
        learn_cost(w->draft_s, w->n_draft, w->most + 1, n, draft_s);
    double tokens = n_accepted + 1, s = cost(w, rows) + w->draft_s[n];
    double expected = 1.0, chance = 1.0;
    for (int i = 0; i < rows - 1; i++) {
        chance *= mq_width_chance(w, i, confidence[i]);
        expected += chance;
    }
    w->pace_tokens = PACE_KEEP * w->pace_tokens + tokens;
    w->pace_s = PACE_KEEP * w->pace_s + s;
    if (n > 0) {
        learn_worth(w, confidence, n);
        learn_chances(w, confidence, rows, n_accepted);
        judge_drafting(w, expected, s);
    } else if (w->rest > 0) {
        w->rest--;
    }
}
