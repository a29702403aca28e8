/* A model's weights as the forward pass asks for them, wherever they come from: a checkpoint in its
 * own precision or a packed model; resident (a decode engine) or streamed layer by layer and expert
 * by expert (verification).
 *
 * Memory: a resident store loads everything at open.  A streaming store holds one layer's
 * attention, norms, router and dense MLP, and the experts asked for last; what a call lends stays
 * valid until the next call of the same kind. */
#ifndef MQ_RUNTIME_STORE_H
#define MQ_RUNTIME_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "src/model.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_store mq_store;

/* Weights made up instead of read: runtime/store_synthetic.c says how. */
typedef struct mq_synthetic {
    int n_layers;              /* the first so many of the config's; 0: all */
    int only_rank;             /* hold this rank of n_ranks alone; -1: every rank */
    mq_scheme expert_scheme;   /* MQ_SCHEME_INT4 (MQ_SCHEME_NONE means this too) or MQ_SCHEME_MXFP4 */
    int group;                 /* INT4: 32, 64 (0 means this too) or 128; MXFP4: 0 */
    uint64_t seed;
    const char *drafter;       /* config.json of a DFlash drafter to make up too, BF16; NULL: none */
} mq_synthetic;

/* Which records' digests a resident packed model compares while it loads: all, a fixed part (the first record of every file
 * and one in MQ_VERIFY_SAMPLE of the others), or none. */
typedef enum mq_load_verify { MQ_VERIFY_FULL = 0, MQ_VERIFY_PART, MQ_VERIFY_NONE } mq_load_verify;
enum { MQ_VERIFY_SAMPLE = 16 };

/* How it reads files: directly unless they are in the page cache, through it, or directly wherever the file system can. */
typedef enum mq_load_io { MQ_LOAD_AUTO = 0, MQ_LOAD_BUFFERED, MQ_LOAD_DIRECT } mq_load_io;

/* What loading came to. */
typedef struct mq_load_figures {
    int64_t n_records, n_checked;      /* digests compared */
    int64_t read_bytes, direct_bytes;  /* of the files, and those of them that went around the page cache */
    int64_t plain_bytes;               /* after decompression */
    double seconds;                    /* of reading */
} mq_load_figures;

typedef struct mq_store_options {
    bool resident;
    int n_ranks; /* logical ranks R: a divisor of the packed model's N; 1 for a checkpoint or any R
                    that mq_plan allows */
    int first_rank, n_held; /* ranks whose weights are lent; n_held 0: all.  A store with a drafter lends all ranks' of it, and the whole head */
    int n_threads; /* for reading and checking; 0: all processors */
    bool check;    /* packed: compare every record's digest while loading */
    bool dflash;   /* lend the DFlash drafter, where the model has one; without, it takes no memory */
    bool mtp;      /* the same for the MTP layers */
    bool spread_draft; /* of drafters and head the held ranks' slices alone, not all: a drafter that is spread over devices */
    /* Called with bytes read so far and in all while a resident store loads, from any thread, one
     * call at a time; may be NULL. */
    void (*progress)(void *ctx, int64_t done_bytes, int64_t total_bytes);
    void *progress_ctx;
    /* Lend weights in dev's memory; no other thread uses dev while the store loads, and both outlive it.  NULL, or the
     * CPU's: host memory. */
    const mq_kernels *kernels;
    mq_dev *dev;
    const mq_synthetic *synthetic; /* the model is a config.json, and no weights are there; NULL: read them.  Borrowed
                                      while opening */
    mq_load_verify verify; /* a packed model that becomes resident: how far check goes */
    mq_load_io io;    /* the same: how its files are read */
    /* Asked while a store becomes resident, from any thread, between pieces of at most one layer: true ends it with
     * MQ_E_STOPPED; may be NULL. */
    bool (*stopped)(void *ctx);
    void *stopped_ctx;
} mq_store_options;

/* Open dir: a packed model when it has a manifest.json, otherwise a checkpoint; with synthetic, a config.json.  MQ_E_ARG: n_ranks
 * does not fit; MQ_E_NOMEM; the statuses of formats/source.h and formats/manifest.h. */
mq_status mq_store_open(mq_store **out, const char *dir, const mq_store_options *options,
                        mq_err *err);
void mq_store_close(mq_store *s); /* accepts NULL */

/* Make a streaming store resident (what opening with resident does); a failure leaves it streaming.
 */
mq_status mq_store_load(mq_store *s, mq_err *err);
/* Threads that load a packed model where n_threads is 0: they wait for disks, so more than processors. */
int mq_store_load_threads(void);
/* Zeros but for a packed model that became resident. */
mq_load_figures mq_store_loaded(const mq_store *s);
/* MQ_E_NOMEM where what a resident store and extra_bytes more take does not fit what is free on its device; says both.
 * mq_store_load asks the same with 0 first.  MQ_OK where there is no device. */
mq_status mq_store_check_room(const mq_store *s, int64_t extra_bytes, mq_err *err);

const mq_model *mq_store_model(const mq_store *s);
bool mq_store_is_packed(const mq_store *s);
bool mq_store_is_resident(const mq_store *s);
const char *mq_store_dir(const mq_store *s);
int mq_store_n_ranks(const mq_store *s);
/* The one rank of n_ranks that is there; -1: all are.  Where one is, what the calls below lend for
 * any rank is that one's: the others' contributions are taken to equal its own. */
int mq_store_only_rank(const mq_store *s);
/* The ranks whose weights it lends: first_rank .. first_rank + n_held - 1. */
int mq_store_first_rank(const mq_store *s);
int mq_store_n_held(const mq_store *s);
bool mq_store_is_synthetic(const mq_store *s);
/* Bytes of weights a resident store holds, and the most a streaming one holds at a time; both known
 * from headers alone. */
int64_t mq_store_resident_bytes(const mq_store *s);
int64_t mq_store_streaming_bytes(const mq_store *s);
/* The one of the two that applies. */
int64_t mq_store_bytes(const mq_store *s);
/* The same for one rank, before opening: what --dry-run and memory checks print. */
mq_status mq_store_plan_bytes(int64_t *resident_bytes, int64_t *streaming_bytes, const char *dir,
                              mq_err *err);

/* Read all weights of a resident store once, drafters' aside, in one stream: *sum, dev's memory, grows by the sum of their
 * 64-bit words, and *n_bytes (host) is how many bytes were read.  kernels and dev are those of the options.  Queued on
 * dev.  MQ_E_DEVICE. */
mq_status mq_store_sum(const mq_store *s, const mq_kernels *kernels, mq_dev *dev, uint64_t *sum,
                       int64_t *n_bytes, mq_err *err);

/* What follows lends memory of the store.  Resident: until close, from any thread.  Streaming:
 * reads from disk unless it is what was asked for last; layers, experts, and embedding or head are
 * the three kinds, and what a call lends ends with the next call of its kind for another layer,
 * expert or matrix (all ranks of a layer and of the head are held together); one thread.  Statuses:
 * MQ_E_IO, MQ_E_FORMAT, MQ_E_HASH, MQ_E_NOMEM, naming file and tensor. */

/* Layer's weights for one rank (everything but experts). */
mq_status mq_store_layer(mq_store *s, mq_layer_weights *out, int layer, int rank, mq_err *err);
/* One routed expert of an MoE layer, this rank's slice. */
mq_status mq_store_expert(mq_store *s, mq_mlp_weights *out, int layer, int expert, int rank,
                          mq_err *err);
/* From now on a streaming store of one rank asks fn for routed experts instead of reading them: experts that
 * are being quantized are in no checkpoint yet.  What fn lends lives until it is called again.  fn NULL: read
 * as before. */
typedef mq_status (*mq_store_expert_fn)(void *ctx, mq_mlp_weights *out, int layer, int expert,
                                        mq_err *err);
void mq_store_set_experts(mq_store *s, mq_store_expert_fn fn, void *ctx);
/* Embedding rows: mode of one matrix [vocab, hidden] (whole, whatever the ranks). */
mq_status mq_store_embedding(mq_store *s, mq_matrix *out, mq_err *err);
/* Head rows of a rank: [vocab / R, hidden], ids start at rank * vocab / R. */
mq_status mq_store_head(mq_store *s, mq_matrix *out, int rank, mq_err *err);
mq_status mq_store_final_norm(mq_store *s, const float **out, mq_err *err); /* [hidden] F32 */

/* The DFlash drafter's geometry, or NULL where the model has none, whatever the options; the
 * store's. */
const mq_draft_model *mq_store_draft_model(const mq_store *s);

/* Weights of the drafters that the options asked for; MQ_E_ARG where they did not, or the model has
 * none.  Streaming: layers of drafters, of whichever kind, are one more kind; mq_store_draft's stay
 * until close. */
mq_status mq_store_draft(mq_store *s, mq_draft_weights *out, mq_err *err);
mq_status mq_store_draft_layer(mq_store *s, mq_draft_layer_weights *out, int layer, int rank,
                               mq_err *err);
mq_status mq_store_mtp_layer(mq_store *s, mq_draft_layer_weights *out, int layer, int rank,
                             mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
