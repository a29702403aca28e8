/* How many rows a verify step should have: a policy fed with costs, confidences and outcomes.
 *
 * One row more costs time whether its guess is accepted or not.  Guess i is worth it while its
 * chance to be committed (the product of the acceptance chances of guesses 1 .. i) exceeds the
 * tokens that the same time brings at the present pace; and the drafter is asked for as many
 * guesses as have lately been worth its own time.  The chances are the drafter's confidences,
 * corrected on line by what became of guesses of the same position and the same confidence; the
 * costs are measured at start and follow the steps' times.  The policy only sees what the drafter
 * says before the target has answered, so it changes the speed and never the text.
 * No clock, no memory of its own, no randomness.  Source: own. */
#ifndef MQ_RUNTIME_WIDTH_H
#define MQ_RUNTIME_WIDTH_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MQ_WIDTH_ROWS = 8, /* rows of a step at most: the last committed token and the guesses */
    MQ_WIDTH_GUESSES = MQ_WIDTH_ROWS - 1,
    MQ_WIDTH_BINS = 8 /* of confidence */
};

/* How often guesses of a kind were accepted; counts fade. */
typedef struct mq_width_count {
    double n, accepted;
} mq_width_count;

/* Initialised by mq_width_init; the caller's memory, nothing to release. */
typedef struct mq_width {
    int fixed;                     /* rows of every step; 0: auto */
    int most;                      /* guesses the drafter gives, 0 to MQ_WIDTH_GUESSES */
    double step_s[MQ_WIDTH_ROWS];  /* [i] seconds of a step of i + 1 rows */
    double draft_s[MQ_WIDTH_ROWS]; /* [n] seconds of a proposal of n guesses; [0] is 0 */
    double n_step[MQ_WIDTH_ROWS], n_draft[MQ_WIDTH_ROWS]; /* times behind them, fading */
    mq_width_count all[MQ_WIDTH_BINS];                    /* whatever the position */
    mq_width_count at[MQ_WIDTH_GUESSES][MQ_WIDTH_BINS];
    double pace_tokens, pace_s; /* fading sums behind the present pace */
    int64_t rest, next_rest;    /* steps still to go without drafting; the next pause */
    /* [n] fading mean of what the n-th guess adds, in tokens, before the drafter's own time, and
     * how often that was seen. */
    double worth[MQ_WIDTH_ROWS], n_worth[MQ_WIDTH_ROWS];
    int64_t n_drafted;
    int64_t n_trial;                 /* drafted steps since drafting was judged */
    double draft_tokens, draft_in_s; /* fading sums behind the pace of drafted steps */
} mq_width;

/* fixed: rows of every step, 1 to most + 1, or 0 for auto.  Until mq_width_costs is called a row
 * costs a tenth of a one-row step and drafting nothing. */
void mq_width_init(mq_width *w, int most, int fixed);

/* Measured seconds: step_s [most + 1] of steps of 1, 2, ... rows, draft_s [most + 1] of proposals
 * of 0, 1, ... guesses. */
void mq_width_costs(mq_width *w, const double *step_s, const double *draft_s);

/* Guesses to ask of the drafter for the next step; 0: do not draft, run one row.  room: rows that
 * the sequence has place for, at least 1. */
int mq_width_guesses(const mq_width *w, int64_t room);

/* Rows of the step, 1 to n + 1, when the drafter gave n guesses of these confidences. */
int mq_width_choose(const mq_width *w, const float *confidence, int n);

/* What became of a step: the drafter gave n guesses, rows rows were verified (rows - 1 guesses),
 * the first n_accepted of them were accepted.  step_s and draft_s: how long both took; 0 where not
 * measured.  Call it after every step, drafted (n > 0) or not. */
void mq_width_learn(mq_width *w, const float *confidence, int n, int rows, int n_accepted,
                    double step_s, double draft_s);

/* Chance that guess i (0 the first) of this confidence is accepted when those before it are. */
double mq_width_chance(const mq_width *w, int i, float confidence);

#ifdef __cplusplus
}
#endif
#endif
