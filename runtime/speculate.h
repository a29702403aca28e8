/* Speculative decoding: a step that brings several tokens, the same ones plain decoding brings.
 *
 * The rows of a step are the last chosen token (the anchor) and guesses of what follows.  The
 * target chooses a token after every row exactly as it would without guesses: argmax, or
 * position-keyed noise after temperature, top-k and top-p, so that a choice depends on the tokens
 * before it, the seed and the position alone.  While the next row's guess equals the choice, the
 * next row's choice counts too; the first other choice is kept and ends the step.  Keys and values
 * of the rows behind it are taken back.  The decode step computes a row to the same bits whatever
 * its neighbours are, so the text is plain decoding's, token for token.  Source: own; the accept
 * rule is that of DFlash's reference code (github.com/z-lab/dflash). */
#ifndef MQ_RUNTIME_SPECULATE_H
#define MQ_RUNTIME_SPECULATE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/engine.h"
#include "runtime/width.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_SPECULATE_ROWS = MQ_WIDTH_ROWS };

typedef struct mq_speculate mq_speculate;

/* Where guesses come from, when not from the engine's drafter: n tokens after anchor, which stands
 * at the engine's length, and the chance of each. */
typedef struct mq_guesser {
    mq_status (*fn)(void *ctx, int32_t *tokens, float *confidence, int32_t anchor, int n,
                    mq_err *err);
    void *ctx;
    int most; /* guesses, at most MQ_SPECULATE_ROWS - 1 */
} mq_guesser;

typedef struct mq_speculate_options {
    int width;                 /* rows of a step, 1 to guesses + 1; 0: auto (runtime/width.h) */
    const mq_guesser *guesser; /* NULL: the engine's drafter; copied */
    /* For measuring speed alone, 0: off.  The tokens a full step shall bring on average, 1 to
     * guesses + 1: acceptance is drawn, not decided, and so is the confidence that the width policy
     * sees.  The drafter and the target still do all their work, but the text means nothing. */
    double synthetic;
    uint64_t synthetic_seed;
    bool no_experts; /* leave figures.experts at 0: asking a device for them is one more wait a step */
    double (*now)(void); /* seconds, for costs and figures; NULL: the monotonic clock */
} mq_speculate_options;

/* What the steps did so far. */
typedef struct mq_speculate_figures {
    int64_t n_steps, n_tokens;           /* their ratio is the acceptance length */
    int64_t steps[MQ_SPECULATE_ROWS];    /* [i] steps of i + 1 rows */
    int64_t offered[MQ_SPECULATE_ROWS];  /* [i] steps in which guess i (0 the first) had a row */
    int64_t accepted[MQ_SPECULATE_ROWS]; /* [i] of them, guess i became a token */
    double draft_s, verify_s;            /* the drafter (its context kept up included), the rest */
    /* [rows - 1][layer] sum over the steps of that many rows of the experts that the step's rows
     * chose, each counted once; borrowed, n_layers entries. */
    const int64_t *experts[MQ_SPECULATE_ROWS];
} mq_speculate_figures;

/* engine is borrowed.  With width 0 the costs of rows and of drafting are measured on it: it is
 * empty before and after (MQ_E_ARG otherwise), and what is measured depends on the machine, never
 * the text.  MQ_E_ARG: a width the guesses do not reach, or synthetic outside its range or without
 * guesses (texts name --draft-width and --synthetic-acceptance).  MQ_E_NOMEM; statuses of the
 * engine. */
mq_status mq_speculate_create(mq_speculate **out, mq_engine *engine,
                              const mq_speculate_options *options, mq_err *err);
void mq_speculate_free(mq_speculate *s); /* accepts NULL */

/* What ends a step before its guesses do. */
typedef struct mq_speculate_end {
    int64_t limit;      /* tokens wanted at most, at least 1 */
    const int32_t *ids; /* [n_ids] a chosen token among these is the step's last (end tokens) */
    int n_ids;
} mq_speculate_end;

/* Run anchor, the token chosen last, which stands at position mq_engine_length, and guesses after
 * it: tokens [MQ_SPECULATE_ROWS] gets the n tokens chosen after it, 1 to limit.  Afterwards the
 * engine holds n positions more, and tokens[n - 1], not yet run, is the next anchor.
 * MQ_E_ARG: an anchor outside the vocabulary, or the context is full.  MQ_E_NUMERIC: the first
 * token's logit is not finite; where a later one's is not, the step ends before it, so that the
 * next step says so.  Statuses of the engine and the guesser. */
mq_status mq_speculate_step(mq_speculate *s, int32_t *tokens, int *n, int32_t anchor,
                            const mq_sampling *sampling, const mq_speculate_end *end, mq_err *err);

/* Only n of the last step's tokens count, 1 to what it brought: the engine goes back to where plain
 * decoding stands when it chose that token. */
void mq_speculate_cut(mq_speculate *s, int n);

/* Borrowed until the next call. */
const mq_speculate_figures *mq_speculate_get_figures(const mq_speculate *s);
void mq_speculate_clear_figures(mq_speculate *s);
/* The policy, for what it measured. */
const mq_width *mq_speculate_width(const mq_speculate *s);

#ifdef __cplusplus
}
#endif
#endif
