/* The options of mimo-run beyond what the parser checks: how they fit together, and what the text of some means. */
#ifndef MQ_TOOLS_RUN_OPTIONS_H
#define MQ_TOOLS_RUN_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/store.h"
#include "tools/cli.h"
#include "tools/run_bench.h"

typedef struct mq_run_options {
    const char *prompt, *prompt_file, *tokens_file, *device, *draft, *draft_width, *verify, *allreduce, *drafter;
    bool bench, ignore_eos, dry_run;
    int64_t max_tokens, top_k, seed, ranks, threads, context, memory;
    double temperature, top_p, synthetic_acceptance;
    mq_opt_list stops;
    bool max_tokens_given, synthetic_acceptance_given;
    const char *config, *synthetic_experts; /* --synthetic, --synthetic-experts */
    int64_t layers, only_rank;
    bool layers_given, only_rank_given;
    const char *bench_prompt, *bench_widths;
    int64_t bench_steps, bench_repeats, bench_context;
    bool bench_steps_given, bench_repeats_given, bench_context_given;

    /* Set by mq_run_options_check. */
    int width; /* of --draft-width; 0: auto */
    mq_load_verify how_far; /* --verify */
    mq_exchange_way allreduce_way; /* --allreduce */
    mq_bench_options measure;
    mq_synthetic synthetic; /* with config */
} mq_run_options;

/* n_args: how many MODEL were given.  MQ_E_ARG says which option is wrong and why. */
mq_status mq_run_options_check(mq_run_options *o, int n_args, const char *usage, mq_err *err);

/* "1,2,4" to numbers in lo..hi, at most MQ_BENCH_LIST; option is for the text.  MQ_E_ARG. */
mq_status mq_run_options_list(int64_t *out, int *n, const char *text, const char *option, int64_t lo, int64_t hi,
                              mq_err *err);

#endif
