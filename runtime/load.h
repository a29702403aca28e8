/* Records from shard files to where they will be used, read by several threads; private to store*.c.
 *
 * A load is a plan that is filled and then run, again and again (a layer at a time).  Filling reads nothing large: it notes
 * which record goes where.  Running sorts by file and offset, so that disks stream, and shares the work out in blocks: each
 * thread reads a block, compares digests, decompresses, and copies to the device through two page-locked buffers of its
 * own, so that reading, hashing and copying of different blocks overlap.  What a load needs besides its destination are
 * these buffers, for compressed records their stored bytes, and what a task needs. */
#ifndef MQ_RUNTIME_LOAD_H
#define MQ_RUNTIME_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/shard_read.h"
#include "runtime/store.h"
#include "runtime/store_device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_load mq_load;

typedef struct mq_load_options {
    int n_threads;    /* at least 1 */
    mq_load_verify verify;
    mq_load_io io;
    int64_t block_bytes; /* of a read, a multiple of 4096; 0: 4 MiB */
    mq_place *place;     /* borrowed: destinations are its device's memory, or the host's */
    /* Called with the bytes of each record that has arrived, from any thread, also several at a time; may be NULL. */
    void (*progress)(void *ctx, int64_t n_bytes);
    void *progress_ctx;
    bool (*stopped)(void *ctx); /* asked before every block, from any thread: true ends a run; may be NULL */
    void *stopped_ctx;
} mq_load_options;

mq_status mq_load_create(mq_load **out, const mq_load_options *options, mq_err *err); /* MQ_E_NOMEM */
void mq_load_free(mq_load *l); /* waits for copies under way; accepts NULL */

/* ---- Filling: one thread ---- */

/* Note: the plain bytes of record i of shard go to dst.  The shard stays open until mq_load_run returns.  MQ_E_NOMEM. */
mq_status mq_load_record(mq_load *l, const mq_shard *shard, int64_t i, void *dst, mq_err *err);

/* Work that is more than a copy, done when the reading comes to record i of shard: run may read records with mq_load_read and
 * send n_bytes to their destination with mq_load_put.  free is called exactly once, also where the plan is never run or this call fails. */
typedef struct mq_load_task {
    mq_status (*run)(void *ctx, mq_load *l, int worker, mq_err *err);
    void (*free)(void *ctx);
    void *ctx;
    int64_t n_bytes;
} mq_load_task;
mq_status mq_load_add(mq_load *l, const mq_shard *shard, int64_t i, mq_load_task task, mq_err *err);

/* ---- At once: from tasks with their worker, or with worker 0 while filling ---- */

/* The plain bytes of record i into host memory, checked as the options say; statuses of mq_shard_load. */
mq_status mq_load_read(mq_load *l, int worker, const mq_shard *shard, int64_t i, void *dst_host, mq_err *err);
/* Copy host bytes to a destination; src is the caller's again on return. */
mq_status mq_load_put(mq_load *l, int worker, void *dst, const void *src_host, int64_t n_bytes, mq_err *err);
/* Are destinations host memory? */
bool mq_load_is_host(const mq_load *l);

/* ---- Running ---- */

/* Do what was noted, and forget it, whatever the outcome.  The failure of the first record in reading order wins.
 * MQ_E_HASH, MQ_E_FORMAT, MQ_E_IO name file and tensor (MQ_E_IO also: a file changed meanwhile); MQ_E_NOMEM; MQ_E_DEVICE;
 * MQ_E_STOPPED. */
mq_status mq_load_run(mq_load *l, mq_err *err);

/* Sums over all runs so far. */
void mq_load_count(const mq_load *l, mq_load_figures *out);

#ifdef __cplusplus
}
#endif
#endif
