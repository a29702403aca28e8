/* Checks that need more than one option, before anything is opened; and the texts "1,2,4,8" and "int4:64". */
#include "tools/run_options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/speculate.h"
#include "src/unicode.h"

mq_status mq_run_options_list(int64_t *out, int *n, const char *text, const char *option, int64_t lo, int64_t hi,
                              mq_err *err)
{
    const char *at = text;
    for (*n = 0; *n < MQ_BENCH_LIST; at++) {
        char *end;
        errno = 0;
        long long v = *at >= '0' && *at <= '9' ? strtoll(at, &end, 10) : -1;
        if (v < lo || v > hi || errno || (*end && *end != ','))
            break;
        out[(*n)++] = v;
        at = end;
        if (!*end)
            return MQ_OK;
    }
    return mq_fail(err, MQ_E_ARG, "--%s %s: expected up to %d whole numbers from %lld to %lld, separated by commas",
                   option, text, MQ_BENCH_LIST, (long long)lo, (long long)hi);
}

/* --draft-width and --synthetic-acceptance, as far as the drafter need not be known. */
static mq_status check_draft(mq_run_options *o, mq_err *err)
{
    bool none = o->draft && strcmp(o->draft, "none") == 0;
    if (o->draft_width && strcmp(o->draft_width, "auto") != 0) {
        const char *w = o->draft_width;
        if (w[0] < '1' || w[0] > '0' + MQ_SPECULATE_ROWS || w[1])
            return mq_fail(err, MQ_E_ARG,
                           "--draft-width %s: expected auto or a whole number from 1 to %d", w,
                           MQ_SPECULATE_ROWS);
        o->width = w[0] - '0';
    }
    if (none && o->draft_width)
        return mq_fail(err, MQ_E_ARG, "--draft-width has no meaning with --draft none");
    if (o->synthetic_acceptance_given && !o->bench)
        return mq_fail(err, MQ_E_ARG,
                       "--synthetic-acceptance is for --bench alone: its text means nothing");
    if (o->synthetic_acceptance_given && none)
        return mq_fail(err, MQ_E_ARG, "--synthetic-acceptance has no meaning with --draft none");
    return MQ_OK;
}

static mq_status check_bench(mq_run_options *o, mq_err *err)
{
    const struct {
        const char *name;
        bool given;
    } options[] = {{"bench-prompt", o->bench_prompt != NULL},
                   {"bench-widths", o->bench_widths != NULL},
                   {"bench-steps", o->bench_steps_given},
                   {"bench-repeats", o->bench_repeats_given},
                   {"bench-context", o->bench_context_given}};
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        if (options[i].given && !o->bench)
            return mq_fail(err, MQ_E_ARG, "--%s is for --bench", options[i].name);
    mq_bench_options *m = &o->measure;
    m->steps = o->bench_steps;
    m->repeats = o->bench_repeats;
    m->context = o->bench_context_given ? o->bench_context : -1;
    m->seed = (uint64_t)o->seed;
    if (o->bench_prompt)
        MQ_TRY(mq_run_options_list(m->prompts, &m->n_prompts, o->bench_prompt, "bench-prompt", 1, 1 << 24, err));
    if (o->bench_widths)
        MQ_TRY(mq_run_options_list(m->widths, &m->n_widths, o->bench_widths, "bench-widths", 1, MQ_BENCH_ROWS, err));
    if (o->stops.n && o->bench)
        return mq_fail(err, MQ_E_ARG, "--stop has no meaning with --bench");
    return MQ_OK;
}

static mq_status read_experts(mq_synthetic *s, const char *text, mq_err *err)
{
    static const struct {
        const char *text;
        mq_scheme scheme;
        int group;
    } forms[] = {{"int4", MQ_SCHEME_INT4, 64},
                 {"int4:32", MQ_SCHEME_INT4, 32},
                 {"int4:64", MQ_SCHEME_INT4, 64},
                 {"int4:128", MQ_SCHEME_INT4, 128},
                 {"mxfp4", MQ_SCHEME_MXFP4, 0}};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++)
        if (strcmp(text, forms[i].text) == 0) {
            s->expert_scheme = forms[i].scheme;
            s->group = forms[i].group;
            return MQ_OK;
        }
    return mq_fail(err, MQ_E_ARG, "--synthetic-experts %s: expected int4:32, int4:64, int4:128 or mxfp4", text);
}

static mq_status check_synthetic(mq_run_options *o, int n_args, const char *usage, mq_err *err)
{
    if (!o->config) {
        if (o->layers_given || o->only_rank_given || o->synthetic_experts || o->drafter)
            return mq_fail(err, MQ_E_ARG, "--%s is for --synthetic",
                           o->layers_given      ? "layers"
                           : o->only_rank_given ? "only-rank"
                           : o->drafter         ? "synthetic-drafter"
                                                : "synthetic-experts");
        return n_args == 1 ? MQ_OK : mq_fail(err, MQ_E_ARG, "usage: mimo-run %s", usage);
    }
    if (n_args > 0)
        return mq_fail(err, MQ_E_ARG, "--synthetic takes the place of MODEL: give one of them");
    if (o->prompt || o->prompt_file || o->stops.n)
        return mq_fail(err, MQ_E_ARG, "--%s needs a tokenizer, and a synthetic model has none: give --tokens or --bench",
                       o->prompt        ? "prompt"
                       : o->prompt_file ? "prompt-file"
                                        : "stop");
    o->synthetic = (mq_synthetic){.n_layers = (int)o->layers,
                                  .only_rank = o->only_rank_given ? (int)o->only_rank : -1,
                                  .seed = (uint64_t)o->seed,
                                  .drafter = o->drafter};
    return o->synthetic_experts ? read_experts(&o->synthetic, o->synthetic_experts, err) : MQ_OK;
}

/* The parser knows the three names. */
static mq_load_verify verify_of(const char *how)
{
    return !how || strcmp(how, "full") == 0 ? MQ_VERIFY_FULL
           : strcmp(how, "sample") == 0     ? MQ_VERIFY_PART
                                            : MQ_VERIFY_NONE;
}

mq_status mq_run_options_check(mq_run_options *o, int n_args, const char *usage, mq_err *err)
{
    int ways = (o->prompt != NULL) + (o->prompt_file != NULL) + (o->tokens_file != NULL);
    MQ_TRY(check_synthetic(o, n_args, usage, err));
    MQ_TRY(check_draft(o, err));
    if (o->allreduce && strcmp(o->allreduce, "push") != 0 && strcmp(o->allreduce, "nccl") != 0)
        return mq_fail(err, MQ_E_ARG, "--allreduce %s: expected push or nccl", o->allreduce);
    o->allreduce_way = o->allreduce && strcmp(o->allreduce, "nccl") == 0 ? MQ_EXCHANGE_NCCL : MQ_EXCHANGE_ONE_SHOT;
    o->how_far = verify_of(o->verify);
    if (ways > 1)
        return mq_fail(err, MQ_E_ARG, "give one of --prompt, --prompt-file and --tokens");
    if (ways == 0 && !o->bench && !o->dry_run)
        return mq_fail(err, MQ_E_ARG,
                       "nothing to do: give --prompt, --prompt-file, --tokens or --bench");
    MQ_TRY(check_bench(o, err));
    for (int i = 0; i < o->stops.n; i++) {
        if (!o->stops.items[i][0])
            return mq_fail(err, MQ_E_ARG, "--stop: the text is empty");
        mq_status st = mq_unicode_check(o->stops.items[i], (int64_t)strlen(o->stops.items[i]), err);
        if (st != MQ_OK)
            return mq_fail(err, MQ_E_ARG, "--stop %s: not UTF-8", o->stops.items[i]);
    }
    return MQ_OK;
}
