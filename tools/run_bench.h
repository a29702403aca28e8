/* mimo-run --bench: prompt speed and the time of a step, width by width, with everything they depend on.
 *
 * A step is measured at a fixed context: it runs at the same positions again and again, on other tokens each time, so
 * routing varies and the number of visible keys does not.  Its time is that of the layers and the head;
 * choosing tokens is not in it (tools/generate.h measures whole text).  Widths take turns in every
 * round, so that a machine's drift falls on all of them. */
#ifndef MQ_TOOLS_RUN_BENCH_H
#define MQ_TOOLS_RUN_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/engine.h"
#include "runtime/traffic.h"
#include "src/tokenizer.h"
#include "tools/cli.h"

enum { MQ_BENCH_ROWS = 8, MQ_BENCH_LIST = 8 };

typedef struct mq_bench_options {
    int64_t prompts[MQ_BENCH_LIST]; /* lengths; n_prompts 0: 512, or what the context has room for */
    int n_prompts;
    int64_t widths[MQ_BENCH_LIST]; /* 1 to MQ_BENCH_ROWS; n_widths 0: 1, 2, 4, 8 as far as the context has room */
    int n_widths;
    int64_t steps, repeats; /* of every width in a round; rounds, and runs of a prompt */
    int64_t context;        /* positions before a step; -1: as many as the first prompt, if there is room */
    uint64_t seed;          /* of tokens, and of keys and values that are made up */
} mq_bench_options;

typedef struct mq_bench_prompt {
    int64_t n;
    double seconds; /* median */
} mq_bench_prompt;

/* Means over the steps of a width; times in milliseconds. */
typedef struct mq_bench_width {
    int width;
    int64_t n_steps;
    double ms_p10, ms_p50, ms_p90;
    double distinct;                 /* experts that a step's rows chose in an MoE layer */
    int64_t weight_bytes, kv_bytes;  /* of a step (runtime/traffic.h) */
} mq_bench_width;

typedef struct mq_bench {
    mq_bench_prompt prompts[MQ_BENCH_LIST];
    int n_prompts;
    mq_bench_width widths[MQ_BENCH_LIST];
    int n_widths;
    int64_t context, read_bytes;
    double read_bytes_per_s; /* one stream over all weights, the best of a few; 0: nothing to read */
    int core_mhz, memory_mhz;
    int64_t planned_bytes, taken_bytes; /* mq_engine_memory, at the end */
    mq_traffic traffic;
    bool made_up_cache; /* keys and values before the steps come from no prompt */
} mq_bench;

/* Measure on an empty engine, which is empty afterwards.  MQ_E_ARG: a prompt, or context and width, that the engine's
 * context has no room for (texts name the options); MQ_E_STOPPED: a signal; statuses of the engine. */
mq_status mq_bench_run(mq_bench *out, mq_engine *engine, const mq_bench_options *o, const mq_cli *cli, mq_err *err);

/* n pseudo-random ids behind those of out; the same seed gives the same ids. */
mq_status mq_bench_tokens(mq_tokens *out, int vocab, int64_t n, uint64_t seed, mq_err *err);

/* As members of the JSON object (tools/BENCH.md lists them), and as lines. */
void mq_bench_json(mq_json_writer *w, const mq_bench *b, mq_engine *engine);
void mq_bench_print(const mq_bench *b, mq_engine *engine);

#endif
