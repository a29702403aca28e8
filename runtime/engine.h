/* The public face of the runtime: open a model, give it a prompt, take tokens.
 *
 * With a drafter the engine keeps, for every position, what the drafter wants to know of it;
 * runtime/speculate.h turns its guesses into tokens. */
#ifndef MQ_RUNTIME_ENGINE_H
#define MQ_RUNTIME_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/draft.h"
#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_engine mq_engine;

enum { MQ_ENGINE_DEVICES = 16 }; /* at most */

typedef struct mq_engine_options {
    int n_ranks;          /* logical ranks; 0: 1 */
    int n_threads;        /* 0: all processors */
    int64_t context;      /* positions; 0: the smaller of the model's limit and 8192 */
    int64_t prefill_rows; /* rows of a prefill chunk; 0: 1024 */
    int64_t memory_bytes; /* budget; 0: none.  MQ_E_NOMEM says what is needed */
    mq_draft_kind draft;  /* MQ_E_UNSUPPORTED where the model does not have it */
    const mq_synthetic *synthetic; /* runtime/store.h: dir is a config.json; NULL: a model that is there */
    bool draft_any;       /* instead of draft: DFlash where the model has it, else MTP, else none */
    const int *ordinals;  /* [n_devices] devices, each with a thread of its own and n_ranks / n_devices ranks */
    int n_devices;        /* 0: device 0 */
    mq_precision precision; /* of prefill's and drafters' products, and of a composed step's; MQ_E_UNSUPPORTED from a
                               device that has F32 alone */
    mq_exchange_way allreduce; /* between devices: MQ_EXCHANGE_ONE_SHOT or MQ_EXCHANGE_NCCL */
    bool composed_step;   /* decode step and drafter composed of single operations even where the device
                             brings its own along */
    bool plain_step;      /* the device's steps without a graph: same bits */
    void (*progress)(void *ctx, int64_t done_bytes, int64_t total_bytes); /* of the first device */
    void *progress_ctx;
    mq_load_verify verify; /* which digests of a packed model are compared while it loads */
    mq_load_io io;         /* how its files are read */
    bool (*stopped)(void); /* asked while weights are loaded, from any thread: true ends opening with MQ_E_STOPPED; may be NULL */
} mq_engine_options;

/* What a run takes, from headers alone. */
typedef struct mq_engine_bytes {
    int64_t context;                   /* positions */
    int64_t weights;                   /* bytes, those of the drafter included */
    int64_t cache, workspace, drafter; /* bytes; drafter: its context and workspace */
    int64_t reserve; /* kept free on the devices for what nobody plans: buffers of libraries, code, graphs, exchanges */
    mq_draft_kind draft;               /* the drafter chosen */
} mq_engine_bytes;

/* Bytes that mq_engine_open(dir, kernels, options) would take; memory_bytes is not looked at.  Statuses of
 * mq_engine_open that headers and a context beyond the model's limit give. */
mq_status mq_engine_plan(mq_engine_bytes *out, const char *dir, const mq_kernels *kernels,
                         const mq_engine_options *options, mq_err *err);

/* Load dir (packed model or checkpoint) resident on the device of kernels.  MQ_E_NOMEM, before anything large is read or
 * allocated: more is needed than the budget or than the device has free; the text has both numbers. */
mq_status mq_engine_open(mq_engine **out, const char *dir, const mq_kernels *kernels,
                         const mq_engine_options *options, mq_err *err);
void mq_engine_close(mq_engine *e); /* accepts NULL */
const mq_model *mq_engine_model(const mq_engine *e);
const char *mq_engine_device_name(const mq_engine *e); /* of the first */
int mq_engine_n_devices(const mq_engine *e);
const char *mq_engine_nth_device_name(const mq_engine *e, int i);
int64_t mq_engine_weight_bytes(const mq_engine *e);
/* What loading came to on all devices, the seconds being the slowest one's; zeros for a checkpoint. */
mq_load_figures mq_engine_loaded(const mq_engine *e);
int64_t mq_engine_context(const mq_engine *e);

/* Forget everything. */
void mq_engine_reset(mq_engine *e);
/* Positions held. */
int64_t mq_engine_length(const mq_engine *e);

/* Feed ids [n] at the end of the sequence in chunks (batch mode); afterwards mq_engine_logits and
 * mq_engine_sample know its last row. MQ_E_ARG: an id outside the vocabulary, or more positions than the
 * context. */
mq_status mq_engine_prefill(mq_engine *e, const int32_t *ids, int64_t n, mq_err *err);
/* Feed 1 to 8 ids through the decode step (fixed order); afterwards mq_engine_logits and
 * mq_engine_sample know all n rows.  On one device it may return before the device is done: mq_engine_wait, or they, wait. */
mq_status mq_engine_step(mq_engine *e, const int32_t *ids, int n, mq_err *err);
mq_status mq_engine_wait(mq_engine *e, mq_err *err); /* MQ_E_DEVICE */
/* Go back to length positions (rows of the last step that were rejected).  With a drafter: not
 * behind what a proposal has built on. */
void mq_engine_rollback(mq_engine *e, int64_t length);
/* logits [rows, vocab] (host) of the last call's rows; for prefill one row. */
mq_status mq_engine_logits(mq_engine *e, float *logits, mq_err *err);
/* Choose from row's logits the token of the next position (position = length before that row's
 * successor).  MQ_E_NUMERIC: its logit is not finite. */
mq_status mq_engine_sample(mq_engine *e, int32_t *token, int row, const mq_sampling *s,
                           mq_err *err);
/* Why the decode step is composed of single operations, or NULL where the device has one of its own
 * (kernels/decode.h).  Borrowed. */
const char *mq_engine_why_composed(const mq_engine *e);

/* The drafter that was opened, and how many tokens it guesses at most (0: MQ_DRAFT_NONE). */
mq_draft_kind mq_engine_draft_kind(const mq_engine *e);
int mq_engine_draft_most(const mq_engine *e);
/* Does the drafter run as the device's own step (kernels/draft_step.h)? */
bool mq_engine_has_draft_step(const mq_engine *e);
/* mq_draft_propose for the sequence held: the n tokens after anchor, which stands at position
 * mq_engine_length.  Needs a drafter. */
mq_status mq_engine_propose(mq_engine *e, int32_t *tokens, float *confidence, int32_t anchor, int n,
                            mq_err *err);
/* out [layers] = how many experts the last call's rows (of a prefill its last chunk's) chose in each
 * layer, each counted once; 0 for a dense layer. */
mq_status mq_engine_distinct_experts(mq_engine *e, int32_t *out, mq_err *err);

/* ---- For benchmarks ---- */

/* Take n more positions as held, with pseudo-random keys and values (a pure function of seed) that overwrite those of all
 * positions: the time of a step then is that of a longer context.  A DFlash drafter knows nothing of them.  MQ_E_ARG: MTP layers,
 * which want to know of every position; more positions than the context. */
mq_status mq_engine_skip(mq_engine *e, int64_t n, uint64_t seed, mq_err *err);
/* Read all weights of every device once, in one stream each; n_bytes is how many.  Synchronous. */
mq_status mq_engine_read_weights(mq_engine *e, int64_t *n_bytes, mq_err *err);
/* The weights (of the first device), borrowed; not for lending while a call runs. */
mq_store *mq_engine_store(mq_engine *e);
/* Of the first device: bytes that were planned (without reserve), and how much less is free than before: the engine's, and
 * whatever others took meanwhile.  MQ_E_DEVICE. */
mq_status mq_engine_memory(mq_engine *e, int64_t *planned, int64_t *taken, mq_err *err);
/* mq_kernels.dev_clocks of the first device. */
void mq_engine_clocks(const mq_engine *e, int *core_mhz, int *memory_mhz);

#ifdef __cplusplus
}
#endif
#endif
