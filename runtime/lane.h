/* One device's share of an engine: weights of its ranks, their caches, and the way through the layers.
 *
 * Lanes of one engine are members of one group (runtime/group.h), lane i being member i.  All lanes take every call, each
 * on its own thread; what they leave is the same on all of them: the residual stream and the logits of every rank. */
#ifndef MQ_RUNTIME_LANE_H
#define MQ_RUNTIME_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/cache.h"
#include "runtime/join.h"
#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_LANE_STEP_ROWS = 8 };

typedef struct mq_lane mq_lane;

typedef struct mq_lane_options {
    int64_t context, rows;  /* positions; rows of a call at most (at least MQ_LANE_STEP_ROWS) */
    const int *tap_layers;  /* [n_taps] whose residual stream is wanted, borrowed for the call; none where no drafter is */
    int n_taps;
    bool composed_step;     /* never the device's own step */
    bool plain_step;        /* the device's step without a graph */
} mq_lane_options;

/* Device ordinal of kernels, and dir opened there with options (kernels and dev are filled in); nothing large is read yet. */
mq_status mq_lane_open(mq_lane **out, const mq_kernels *kernels, int ordinal, const char *dir,
                       const mq_store_options *options, mq_err *err);
void mq_lane_close(mq_lane *l); /* accepts NULL; the join it was given, if any, has been freed */
mq_dev *mq_lane_dev(const mq_lane *l);
mq_store *mq_lane_store(const mq_lane *l);
mq_cache *mq_lane_cache(const mq_lane *l); /* NULL before mq_lane_load */

/* Read the weights and take the memory that calls will need.  join: NULL where this is the only lane. */
mq_status mq_lane_load(mq_lane *l, const mq_lane_options *options, mq_join *join, int member, mq_err *err);
/* Steps of several lanes exchange their ranks' contributions on the devices (kernels/exchange.h): connects lanes [n] that
 * are loaded and share a join; with one lane, or where kernels cannot exchange, there is nothing to do.  MQ_E_UNSUPPORTED:
 * these devices cannot. */
mq_status mq_lane_connect(mq_lane *const *lanes, int n, mq_exchange_way way, mq_err *err);
/* The device's step, where there is one: after mq_lane_load and mq_lane_connect. */
mq_status mq_lane_prepare_step(mq_lane *l, const mq_lane_options *options, mq_err *err);
/* Its end of the exchange with other lanes, and which way that goes; NULL: none. */
mq_exchange *mq_lane_exchange(const mq_lane *l, mq_exchange_way *way);
/* Why steps are composed of single operations; NULL: they are not. */
const char *mq_lane_why_composed(const mq_lane *l);

/* max_count of the join of n_ranks ranks whose lanes take up to rows rows. */
int64_t mq_lane_join_count(const mq_model *m, int n_ranks, int64_t rows);
/* Device bytes of one of n_lanes lanes beside weights and caches, store being any lane's. */
int64_t mq_lane_workspace_bytes(const mq_kernels *kernels, const mq_store *store, int n_lanes,
                                const mq_lane_options *options);

/* Put ids [n] (host, valid; n up to rows, up to MQ_LANE_STEP_ROWS for a step) behind the sequence; captures[i] [n, hidden]
 * (dev's memory, may be NULL without taps) = the residual stream after tap_layers[i].  is_step: fixed order. */
mq_status mq_lane_feed(mq_lane *l, bool is_step, const int32_t *ids, int64_t n, float *const *captures, mq_err *err);
/* Logits of the last n rows (at most MQ_LANE_STEP_ROWS) of the last feed, to mq_lane_logits.  Then the device is done, but for
 * a step of the only lane, which is queued.  After
 * a step of n rows a lane has the columns of its own ranks, and mq_lane_take_logits brings those of another. */
mq_status mq_lane_head(mq_lane *l, int64_t n, mq_err *err);
/* Queue: the columns of from's ranks, from's device being done. */
mq_status mq_lane_take_logits(mq_lane *l, const mq_lane *from, int64_t n, mq_err *err);
/* This lane's call failed: the others need not wait for it on their devices. */
void mq_lane_give_up(mq_lane *l);
float *mq_lane_logits(const mq_lane *l); /* [n, vocab] F32, dev's memory, until the next feed */
/* out [n_layers] (host): mq_forward_distinct_experts of the last feed. */
mq_status mq_lane_distinct_experts(mq_lane *l, int32_t *out, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
