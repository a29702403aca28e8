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
 * Drafting itself is given up for a while when the pace of drafted steps is below plain decoding's;
 * pauses grow while the trials between them fail. */
#include "runtime/width.h"

#include <assert.h>
#include <string.h>

static const double ROW_SHARE = 0.1;        /* cost of a row before it is measured */
static const double KEEP = 1.0 - 1.0 / 512; /* of a count, step by step */
static const double TRUST_WORD = 4.0;       /* guesses that the drafter's word weighs as much as */
static const double TRUST_ALL = 8.0;        /* the same for the bin over all positions */
static const double PACE_KEEP = 1.0 - 1.0 / 64;
static const double COST_GAIN = 1.0 / 16; /* share of a new time in the estimate */
static const double COST_LIMIT = 3.0;     /* a time this much above the estimate is an accident */
static const double DRAFT_KEEP = 1.0 - 1.0 / 128;
static const double REST_KEEP = 0.5; /* what a pause leaves of the sums that led to it */
enum { TRIAL = 12, FIRST_REST = 32, LONGEST_REST = 512 };

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

void mq_width_costs(mq_width *w, const double *step_s, double draft_s)
{
    for (int i = 0; i <= w->most; i++)
        w->step_s[i] = step_s[i];
    w->draft_s = draft_s;
}

int mq_width_guesses(const mq_width *w, int64_t room)
{
    int n = w->fixed ? w->fixed - 1 : w->rest > 0 ? 0 : w->most;
    return n < room ? n : (int)room - 1;
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

int mq_width_choose(const mq_width *w, const float *confidence, int n)
{
    assert(n >= 0 && n <= w->most);
    if (w->fixed)
        return n + 1;
    double per_s = pace(w), chance = 1.0, tokens = 1.0, best = tokens - per_s * cost(w, 1);
    int rows = 1;
    for (int i = 0; i < n; i++) {
        chance *= mq_width_chance(w, i, confidence[i]);
        tokens += chance;
        double gain = tokens - per_s * cost(w, i + 2);
        if (gain > best) {
            best = gain;
            rows = i + 2;
        }
    }
    return rows;
}

static void learn_costs(mq_width *w, int rows, double step_s, double draft_s)
{
    double *own = &w->step_s[rows - 1];
    if (step_s > 0) {
        double seen = step_s < COST_LIMIT * *own ? step_s : COST_LIMIT * *own;
        double change = COST_GAIN * (seen / *own - 1.0);
        /* What made this width slower or faster (a longer context, other load) mostly holds for
         * the others too. */
        for (int i = 0; i <= w->most; i++)
            w->step_s[i] *= 1.0 + (i == rows - 1 ? change : change / 2);
    }
    if (draft_s > 0 && w->draft_s > 0) {
        double limit = COST_LIMIT * w->draft_s;
        w->draft_s += COST_GAIN * ((draft_s < limit ? draft_s : limit) - w->draft_s);
    } else if (draft_s > 0) {
        w->draft_s = draft_s;
    }
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

/* Is drafting worth its time?  Asked every TRIAL drafted steps: go on, or pause. */
static void judge_drafting(mq_width *w, double tokens, double s)
{
    w->draft_tokens = DRAFT_KEEP * w->draft_tokens + tokens;
    w->draft_in_s = DRAFT_KEEP * w->draft_in_s + s;
    if (++w->n_trial < TRIAL)
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
    learn_costs(w, rows, step_s, draft_s);
    double tokens = n_accepted + 1, s = cost(w, rows) + (n > 0 ? w->draft_s : 0.0);
    w->pace_tokens = PACE_KEEP * w->pace_tokens + tokens;
    w->pace_s = PACE_KEEP * w->pace_s + s;
    if (n > 0) {
        learn_chances(w, confidence, rows, n_accepted);
        judge_drafting(w, tokens, s);
    } else if (w->rest > 0) {
        w->rest--;
    }
}
