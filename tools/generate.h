/* From a prompt to text: prefill, the loop of speculative steps, end tokens, stop strings, and how
 * long each part took. */
#ifndef MQ_TOOLS_GENERATE_H
#define MQ_TOOLS_GENERATE_H

#include <stdbool.h>

#include "runtime/speculate.h"
#include "src/tokenizer.h"
#include "tools/cli.h"

/* Rows of one prefill call; signals are polled between two.  Equal to the engine's chunk, so calls
 * do not change a bit. */
enum { MQ_GENERATE_PREFILL_ROWS = 1024 };

typedef struct mq_generate_options {
    int64_t max_tokens; /* at least 1 */
    mq_sampling sampling;
    bool ignore_eos;
    const char *const *stops; /* [n_stops] not empty, UTF-8; borrowed */
    int n_stops;
    /* Called with each piece of text that is certain; may be NULL.  A status other than MQ_OK ends
     * the call with it. */
    mq_status (*show)(void *ctx, const mq_buf *piece, mq_err *err);
    void *show_ctx;
} mq_generate_options;

/* What came out.  After a failure the fields hold what was done until then. */
typedef struct mq_generation {
    mq_tokens output;          /* without the end token; with the tokens of a stop string */
    mq_buf text;               /* without the stop string; empty without a tokenizer */
    const char *finish_reason; /* "stop" (end token or stop string), "length", "context" (full), or
                                  "error" */
    int64_t n_decoded;         /* tokens that steps brought, an end token included; the first token
                                  comes out of the prompt */
    double prefill_s, first_token_s,
        decode_s;                  /* prompt; start to first token; first token to the end */
    double itl_ms_p50, itl_ms_p99; /* time of a token; a step's tokens share its time; 0 without */
} mq_generation;

/* Feed prompt to an empty engine and take tokens through speculate, which is the engine's.
 * tokenizer may be NULL: no text.  out is set in every case; release it. Progress of the prompt
 * goes to cli. MQ_E_ARG: an empty prompt, an id outside the vocabulary, a prompt longer than the
 * context (numbers named). MQ_E_STOPPED: a signal. Statuses of the engine and of show. */
mq_status mq_generate(mq_generation *out, mq_engine *engine, mq_speculate *speculate,
                      const mq_tokenizer *tokenizer, const mq_tokens *prompt,
                      const mq_generate_options *o, const mq_cli *cli, mq_err *err);
void mq_generation_release(mq_generation *g);

#endif
