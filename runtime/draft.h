/* Drafters: small models that guess the tokens after the last committed one from what the target
 * computed for the tokens before it.
 *
 * Two kinds.  DFlash: a few decoder layers fill a block of masked positions in one pass, conditioned
 * on the residual stream of listed target layers at every committed position.  MTP: the target's own
 * multi-token prediction layers, layer k guessing the k-th further token from the residual stream
 * after the last layer.  Both use the target's embedding and head.  A drafter never changes the
 * text, only how often the target runs.
 *
 * The caller feeds committed positions in order (mq_draft_commit) and asks for a block
 * (mq_draft_propose); what a proposal wrote about uncommitted positions is the drafter's own
 * business and is undone or redone by it.  Everything is a function of the committed rows, the
 * anchor and the weights alone: how many rows a commit brings changes no bit.
 *
 * DFlash's window: the block row at position i sees the context of position j iff j + window > i,
 * so the anchor sees the window - 1 positions before it and each later row one fewer; the rows of a
 * block all see one another (a window is at least as wide as a block).  MTP's rows see what sliding
 * layers of the target see.
 * Sources: DFlash and its reference code (github.com/z-lab/dflash), MiMo-V2-Flash technical report
 * section 2.3 (MTP). */
#ifndef MQ_RUNTIME_DRAFT_H
#define MQ_RUNTIME_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_draft_kind { MQ_DRAFT_NONE, MQ_DRAFT_DFLASH, MQ_DRAFT_MTP } mq_draft_kind;

enum { MQ_DRAFT_MOST = 7 }; /* guesses of a block at most: a verify step has 8 rows */

typedef struct mq_draft mq_draft;

/* Does the model in store have a drafter of this kind? */
bool mq_draft_available(const mq_store *store, mq_draft_kind kind);

/* A drafter with empty context on the logical ranks of store.  kernels, dev and store (resident or
 * streaming) are borrowed.  max_rows: the most rows of one commit.
 *
 * MQ_E_UNSUPPORTED: the model has no drafter of this kind, or one whose window is narrower than its
 * block.  MQ_E_ARG: store was opened without the drafter (mq_store_options).  MQ_E_SHAPE, MQ_E_FORMAT: the drafter does
 * not fit its target (text names what and where).  MQ_E_NOMEM, MQ_E_DEVICE, and those of the store. */
mq_status mq_draft_create(mq_draft **out, mq_draft_kind kind, const mq_kernels *kernels, mq_dev *dev,
                          mq_store *store, int64_t max_rows, mq_err *err);
void mq_draft_free(mq_draft *d); /* accepts NULL */
/* Bytes that mq_draft_create takes beside the store, from headers alone; 0 where it would not
 * succeed. */
int64_t mq_draft_bytes(const mq_store *store, mq_draft_kind kind, int64_t max_rows);

typedef struct mq_draft_step_options {
    bool plain; /* every kernel by itself, no graph: same bits */
    const mq_exchange_ops *exchange_ops;
    mq_exchange *exchange; /* with the drafters of other devices, of which each has the ranks that its store holds; all take every
                              call, each on a thread of its own.  NULL: all ranks are here */
    mq_exchange_way exchange_way;
} mq_draft_step_options;

/* From now on through the device's own step (kernels/draft_step.h), if kernels has one for this drafter; before the first
 * commit.  Guesses may differ from the composed drafter's by the
 * rounding of inputs to BF16.  MQ_E_UNSUPPORTED: there is none (the text says why), and the drafter stays composed; MQ_E_NOMEM;
 * MQ_E_DEVICE. */
mq_status mq_draft_use_step(mq_draft *d, const mq_draft_step_options *o, mq_err *err);
bool mq_draft_has_step(const mq_draft *d);
/* Device memory it takes at most; 0 where kernels has none. */
int64_t mq_draft_step_bytes(const mq_kernels *kernels, const mq_store *store, mq_draft_kind kind);
/* For benchmarks: seconds that the device takes for a commit and a proposal, the median of n_launches, without a host in
 * between; the drafter has proposed before, and has a step. */
mq_status mq_draft_time_step(mq_draft *d, double *seconds, int n_launches, mq_err *err);

mq_draft_kind mq_draft_kind_of(const mq_draft *d);
/* Guesses a block holds at most: block size less one, or the number of MTP layers; at most
 * MQ_DRAFT_MOST. */
int mq_draft_most(const mq_draft *d);
/* Target layers whose output (residual stream after the layer, before any norm) a commit brings;
 * *layers is the drafter's.  Returns how many. */
int mq_draft_taps(const mq_draft *d, const int **layers);

/* Forget everything. */
void mq_draft_reset(mq_draft *d);
/* Committed positions. */
int64_t mq_draft_length(const mq_draft *d);

/* Positions length .. length + n - 1 are committed: ids [n] host, their tokens; features [n_taps]
 * arrays [n, hidden] F32 in dev's memory, row i of tap j the residual after layers[j] at position
 * length + i.  n up to max_rows.  MQ_E_ARG: an id outside the vocabulary. */
mq_status mq_draft_commit(mq_draft *d, const int32_t *ids, const float *const *features, int64_t n,
                          mq_err *err);

/* Committed positions before an anchor that any proposal may look at; -1: no bound (MTP, whose commits
 * compute nothing). */
int64_t mq_draft_reach(const mq_store *store, mq_draft_kind kind);
/* Positions length .. length + n - 1 are committed and out of reach of all proposals to come: nothing is
 * kept of them.  Only where there is a reach. */
void mq_draft_skip(mq_draft *d, int64_t n);

/* Guess the n tokens (1 to mq_draft_most) after anchor, which stands at position length (its own
 * row of the target is not computed yet): tokens [n], and confidence [n] the drafter's softmax
 * probability of each; both host.  At least one position is committed (MQ_E_ARG otherwise).
 * Ties go to the lower id.  The result does not depend on n but for its length. */
mq_status mq_draft_propose(mq_draft *d, int32_t *tokens, float *confidence, int32_t anchor, int n,
                           mq_err *err);

/* mq_draft_commit of n_rows rows (up to max_rows; 0: none), then mq_draft_propose: one piece of work where the device has
 * its own step. */
mq_status mq_draft_commit_propose(mq_draft *d, int32_t *tokens, float *confidence, const int32_t *ids,
                                  const float *const *features, int64_t n_rows, int32_t anchor, int n,
                                  mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
