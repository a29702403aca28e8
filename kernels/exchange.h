/* Exchange of contributions between the devices of one model: every rank has a part [8, hidden] of F32, of which the first n
 * rows count; afterwards every device has all parts, or their sum p0 + p1 + ... in rank order.
 *
 * Bits depend on the parts alone: not on the number of devices, on which ranks share one, nor on the way.  A contribution of
 * -0.0 counts as +0.0 everywhere.  Push: each device writes its ranks' rows into memory of the others, where -0.0 marks what has
 * not come, and the receiver polls its own memory; no fence, no counter, no multicast.  One-shot sends every part to every
 * device; two-shot sends column slices to the rank that owns them, which adds and sends the sum.  NCCL gathers the parts, which
 * are then added here, and sends all 8 rows.
 *
 * One end a device (kernels.h: exchange).  All ends queue the same exchanges in the same order, with equal n, each from a host
 * thread of its own: a device waits for the others inside the kernel.  Exchanges may be captured in a graph.  Source: own, after
 * the sentinel scheme ("Lamport") of TensorRT-LLM's all-reduce. */
#ifndef MQ_KERNELS_EXCHANGE_H
#define MQ_KERNELS_EXCHANGE_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mq_dev;
enum { MQ_EXCHANGE_MAX_RANKS = 8, MQ_EXCHANGE_ROWS = 8, MQ_EXCHANGE_TIMEOUT_MS = 5000 };

typedef enum mq_exchange_way { MQ_EXCHANGE_ONE_SHOT, MQ_EXCHANGE_TWO_SHOT, MQ_EXCHANGE_NCCL } mq_exchange_way;

typedef struct mq_exchange_plan {
    int n_ranks;             /* in all, 1 to 8 */
    int first_rank, n_local; /* those of this device */
    int64_t hidden;          /* a multiple of 4 */
    int timeout_ms;          /* how long an exchange waits for the others; 0: MQ_EXCHANGE_TIMEOUT_MS */
} mq_exchange_plan;

typedef struct mq_exchange mq_exchange; /* one device's end */

typedef struct mq_exchange_ops {
    /* Receive buffers on dev, which is borrowed until close.  Done on return.
     * MQ_E_ARG: a plan outside the limits above; MQ_E_NOMEM; MQ_E_DEVICE. */
    mq_status (*create)(mq_exchange **out, struct mq_dev *dev, const mq_exchange_plan *plan, mq_err *err);

    /* Let n ends, which hold all ranks in ascending order, push to each other.  From one thread, nothing queued yet.
     * MQ_E_ARG: plans that do not fit together; MQ_E_UNSUPPORTED: devices (named) without access to each other's memory or
     * without native atomics across their link; MQ_E_DEVICE. */
    mq_status (*connect)(mq_exchange *const *ends, int n, mq_err *err);

    /* The same through NCCL, also beside connect.  library: its file, NULL: "libnccl.so.2".  Ends on distinct devices with
     * equally many ranks.  MQ_E_ARG; MQ_E_DEVICE: the library is missing, too old, or failed (its words). */
    mq_status (*connect_nccl)(mq_exchange *const *ends, int n, const char *library, mq_err *err);

    /* An end's device is idle; other ends queue nothing any more.  Accepts NULL. */
    void (*close)(mq_exchange *x);

    /* Queue: parts [n_ranks, 8, hidden] = everybody's; rows from n on are zero.  local [n_local, 8, hidden], which may lie in its
     * place in parts; n_rows [1]: n, 0 to 8; all in the device's memory.  Way: ONE_SHOT or NCCL.
     * MQ_E_ARG: a way that is not connected or gathers nothing; MQ_E_DEVICE: the launch failed. */
    mq_status (*gather)(mq_exchange *x, mq_exchange_way way, float *parts, const float *local, const int32_t *n_rows,
                        mq_err *err);

    /* Queue: sum [8, hidden] of all parts in rank order; rows from n on are zero.  Otherwise as gather. */
    mq_status (*sum)(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows, mq_err *err);

    /* us = the mean time of a sum in a captured graph of n, launched several times; each sum is there for the kernel behind it.
     * All ends at once.  Done on return.  Statuses of sum; MQ_E_DEVICE: the graph failed. */
    mq_status (*time)(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows, int n,
                      double *us, mq_err *err);

    /* After dev_sync: MQ_E_DEVICE when an exchange was given up, with its number, the rank, row and column it waited for and
     * that rank's device; MQ_E_STOPPED when an end has stopped, which knows the cause.  What was exchanged since is void; the
     * ends can only be closed. */
    mq_status (*check)(const mq_exchange *x, mq_err *err);

    /* This end will not come any more (its thread failed): exchanges of the others that wait are given up soon.  Any thread,
     * while no end is closed. */
    void (*stop)(mq_exchange *x);
} mq_exchange_ops;

#ifdef __cplusplus
}
#endif
#endif
