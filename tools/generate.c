/* See generate.h.  One call is one sequence; runtime/speculate.c brings the tokens, text_out.c the
 * text, and the caller decides where pieces of text go.  Tokens of a step are taken one by one, and
 * whatever ends the text ends it at the token at which steps of one row end it. */
#include "tools/generate.h"

#include <stdlib.h>
#include <string.h>

#include "tools/text_out.h"

/* One call of mq_generate. */
typedef struct run {
    mq_generation *out;
    mq_engine *engine;
    mq_speculate *speculate;
    const mq_generate_options *o;
    const mq_cli *cli;
    bool has_text;
    mq_text_out text;
    mq_buf piece; /* scratch: text that became certain */
    mq_buf times; /* double seconds of each token that steps brought */
} run;

static mq_status check_prompt(const mq_engine *e, const mq_tokens *prompt, mq_err *err)
{
    int vocab = mq_engine_model(e)->vocab;
    int64_t context = mq_engine_context(e);
    if (prompt->n == 0)
        return mq_fail(err, MQ_E_ARG, "the prompt is empty");
    if (prompt->n > context)
        return mq_fail(err, MQ_E_ARG,
                       "the prompt has %lld tokens, but the context holds %lld; --context sets it "
                       "(the model's limit is %d)",
                       (long long)prompt->n, (long long)context, mq_engine_model(e)->max_positions);
    for (int64_t i = 0; i < prompt->n; i++)
        if (prompt->ids[i] < 0 || prompt->ids[i] >= vocab)
            return mq_fail(err, MQ_E_ARG,
                           "token %lld of the prompt is %d, expected 0 to %d (the vocabulary)",
                           (long long)i, prompt->ids[i], vocab - 1);
    return MQ_OK;
}

static mq_status prefill(run *r, const mq_tokens *prompt, mq_err *err)
{
    mq_progress *progress;
    MQ_TRY(mq_progress_create(&progress, r->cli, "reading the prompt", prompt->n, "tokens", err));
    mq_status st = MQ_OK;
    for (int64_t at = 0, n; at < prompt->n && st == MQ_OK; at += n) {
        n = prompt->n - at < MQ_GENERATE_PREFILL_ROWS ? prompt->n - at : MQ_GENERATE_PREFILL_ROWS;
        st = mq_cli_check_stop(err);
        if (st == MQ_OK)
            st = mq_engine_prefill(r->engine, prompt->ids + at, n, err);
        mq_progress_add(progress, n);
    }
    mq_progress_free(progress);
    return st;
}

static bool is_eos(const mq_model *m, int32_t token)
{
    for (int i = 0; i < m->n_eos; i++)
        if (m->eos[i] == token)
            return true;
    return false;
}

static mq_status show_piece(run *r, mq_err *err)
{
    return r->piece.n_bytes && r->o->show ? r->o->show(r->o->show_ctx, &r->piece, err) : MQ_OK;
}

/* Take a chosen token, behind which steps of one row hold length positions; *reason is set when it
 * is the last one. */
static mq_status take_token(run *r, int32_t token, int64_t length, const char **reason, mq_err *err)
{
    if (!r->o->ignore_eos && is_eos(mq_engine_model(r->engine), token)) {
        *reason = "stop";
        return MQ_OK;
    }
    MQ_TRY(mq_tokens_append(&r->out->output, token, err));
    if (r->has_text) {
        MQ_TRY(mq_text_out_add(&r->text, &r->piece, token, err));
        MQ_TRY(show_piece(r, err));
    }
    if (r->has_text && r->text.stopped)
        *reason = "stop";
    else if (r->out->output.n == r->o->max_tokens)
        *reason = "length";
    else if (length == mq_engine_context(r->engine))
        *reason = "context";
    return MQ_OK;
}

/* One step from *last on: its tokens are taken until one of them is the end. */
static mq_status step(run *r, int32_t *last, const char **reason, mq_err *err)
{
    const mq_model *m = mq_engine_model(r->engine);
    const mq_speculate_end end = {.limit = r->o->max_tokens - r->out->output.n,
                                  .ids = m->eos,
                                  .n_ids = r->o->ignore_eos ? 0 : m->n_eos};
    int32_t tokens[MQ_SPECULATE_ROWS];
    int64_t length = mq_engine_length(r->engine);
    int n, taken = 0;
    double start = mq_cli_now();
    MQ_TRY(mq_speculate_step(r->speculate, tokens, &n, *last, &r->o->sampling, &end, err));
    while (taken < n && !*reason) {
        MQ_TRY(take_token(r, tokens[taken], length + taken + 1, reason, err));
        taken++;
    }
    if (taken < n)
        mq_speculate_cut(r->speculate, taken);
    *last = tokens[taken - 1];
    double token_s = (mq_cli_now() - start) / taken;
    for (int i = 0; i < taken; i++)
        mq_buf_append(&r->times, &token_s, sizeof token_s);
    r->out->n_decoded += taken;
    return MQ_OK;
}

/* The first token, then steps until something ends it.  start is when the prompt began. */
static mq_status decode(run *r, double start, mq_err *err)
{
    const char *reason = NULL;
    int32_t token;
    MQ_TRY(mq_cli_check_stop(err));
    MQ_TRY(mq_engine_sample(r->engine, &token, 0, &r->o->sampling, err));
    r->out->first_token_s = mq_cli_now() - start;
    MQ_TRY(take_token(r, token, mq_engine_length(r->engine), &reason, err));
    while (!reason) {
        MQ_TRY(mq_cli_check_stop(err));
        mq_status st = step(r, &token, &reason, err);
        r->out->decode_s = mq_cli_now() - start - r->out->first_token_s;
        MQ_TRY(st);
    }
    if (r->has_text) {
        MQ_TRY(mq_text_out_end(&r->text, &r->piece, err));
        MQ_TRY(show_piece(r, err));
    }
    r->out->finish_reason = reason;
    return mq_buf_status(&r->times, err);
}

static int compare_doubles(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Smallest time that share of the tokens do not exceed. */
static double percentile_ms(const mq_buf *sorted, double share)
{
    int64_t n = sorted->n_bytes / (int64_t)sizeof(double), i = (int64_t)(share * (double)n);
    double value = 0;
    if (n > 0)
        memcpy(&value, sorted->data + (i < n ? i : n - 1) * (int64_t)sizeof value, sizeof value);
    return 1e3 * value;
}

mq_status mq_generate(mq_generation *out, mq_engine *engine, mq_speculate *speculate,
                      const mq_tokenizer *tokenizer, const mq_tokens *prompt,
                      const mq_generate_options *o, const mq_cli *cli, mq_err *err)
{
    memset(out, 0, sizeof *out);
    out->finish_reason = "error";
    MQ_TRY(check_prompt(engine, prompt, err));
    run r = {.out = out,
             .engine = engine,
             .speculate = speculate,
             .o = o,
             .cli = cli,
             .has_text = tokenizer != NULL};
    r.text = mq_text_out_begin(tokenizer, o->stops, o->n_stops);
    double start = mq_cli_now();
    mq_status st = prefill(&r, prompt, err);
    out->prefill_s = mq_cli_now() - start;
    if (st == MQ_OK)
        st = decode(&r, start, err);
    if (r.times.n_bytes)
        qsort(r.times.data, (size_t)r.times.n_bytes / sizeof(double), sizeof(double),
              compare_doubles);
    out->itl_ms_p50 = percentile_ms(&r.times, 0.50);
    out->itl_ms_p99 = percentile_ms(&r.times, 0.99);
    out->text = r.text.all;
    r.text.all = mq_buf_empty();
    mq_text_out_release(&r.text);
    mq_buf_release(&r.piece);
    mq_buf_release(&r.times);
    return st;
}

void mq_generation_release(mq_generation *g)
{
    mq_tokens_release(&g->output);
    mq_buf_release(&g->text);
    memset(g, 0, sizeof *g);
}
