/* The decode step that a device brings along (kernels/decode.h), fed from a resident store and a cache. */
#ifndef MQ_RUNTIME_DEVICE_STEP_H
#define MQ_RUNTIME_DEVICE_STEP_H

#include "kernels/kernels.h"
#include "runtime/cache.h"
#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_device_step mq_device_step;

/* Device bytes of a step of n_local of n_ranks ranks, 0 where kernels has none. */
int64_t mq_device_step_bytes(const mq_kernels *kernels, const mq_model *m, int n_ranks, int n_local,
                             int n_captures, int64_t context);

typedef struct mq_device_step_options {
    int first_rank, n_local;       /* the ranks on this device */
    const mq_exchange_ops *exchange_ops;
    mq_exchange *exchange;         /* connected to the devices of the other ranks; NULL where there are none */
    mq_exchange_way exchange_way;
    const int *layers;             /* [n_captures] after which the residual stream is wanted */
    int n_captures;
    bool plain;                    /* every kernel by itself, no graph */
} mq_device_step_options;

/* The step of kernels for store's weights (resident on dev) and cache.  A store of one rank alone
 * (mq_store_only_rank) has its contributions looped back.  kernels, dev, store, cache and exchange
 * are borrowed until free.  MQ_E_UNSUPPORTED: kernels has no such step, or not for this model (the
 * text says why); the caller composes it (runtime/forward.h). */
mq_status mq_device_step_create(mq_device_step **out, const mq_kernels *kernels, mq_dev *dev,
                                mq_store *store, mq_cache *cache,
                                const mq_device_step_options *options, mq_err *err);
void mq_device_step_free(mq_device_step *s); /* accepts NULL */

/* Queue ids [n] (host, valid, 1 to 8) behind the cache's length, which grows by n; captures[i] [n,
 * hidden] (dev's memory) = the residual stream after layers[i]. */
mq_status mq_device_step_run(mq_device_step *s, float *const *captures, const int32_t *ids, int n,
                             mq_err *err);
/* [8, vocab] of the last step, dev's memory, of which the columns of local ranks are set; borrowed. */
float *mq_device_step_logits(const mq_device_step *s);
/* out [n_layers] (host): mq_forward_distinct_experts of the last step.  Synchronous. */
mq_status mq_device_step_distinct_experts(mq_device_step *s, int32_t *out, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
