/* What one thread of a load does with one span of a file; private to load.c and load_work.c. */
#ifndef MQ_RUNTIME_LOAD_WORK_H
#define MQ_RUNTIME_LOAD_WORK_H

#include "runtime/load.h"
#include "runtime/load_file.h"
#include "src/sha256.h"

/* A record with its destination, or (dst NULL) a task. */
typedef struct mq_load_item {
    const mq_shard *shard;
    int64_t record;
    uint8_t *dst;
    mq_load_task task;
    int file; /* in files; set when the plan is run */
} mq_load_item;

/* Items that lie close together in one file: they fit into one block, or are a single record.  All plain, all compressed, or
 * one task. */
typedef struct mq_load_span {
    int64_t first, n;   /* items */
    int64_t off, n_bytes; /* of the file, multiples of MQ_LOAD_ALIGN */
} mq_load_span;

/* A buffer that the device copies from. */
typedef struct mq_load_stage {
    uint8_t *mem; /* [block_bytes]; NULL until first used */
    mq_fence *fence;
} mq_load_stage;

enum { MQ_LOAD_STAGES = 2 };

typedef struct mq_load_worker {
    mq_load_stage stages[MQ_LOAD_STAGES];
    int turn; /* the stage that was taken last */
    mq_sha256 *sha;
    uint8_t *stored; /* [stored_cap] bytes of compressed records */
    int64_t stored_cap;
    mq_load_figures figures; /* but for seconds */
} mq_load_worker;

struct mq_load {
    mq_load_options o;
    mq_load_item *items;
    int64_t n_items, items_cap;
    mq_load_file *files; /* while running */
    int n_files;
    mq_load_span *spans;
    int64_t n_spans;
    mq_load_worker *workers; /* [n_threads] */
    double seconds;
};

/* Is this record's digest compared?  Sample: the first record of every file, and of the others one in MQ_VERIFY_SAMPLE, by
 * its digest, so that it is the same records every time and everywhere. */
bool mq_load_checks(const mq_load *l, const mq_shard *shard, int64_t record);

mq_status mq_load_span_run(mq_load *l, int64_t span, int worker, mq_err *err);
/* Wait until nothing is copied from w's stages any more. */
mq_status mq_load_worker_wait(mq_load *l, mq_load_worker *w, mq_err *err);
void mq_load_worker_release(mq_load *l, mq_load_worker *w); /* waits first; accepts zeros */

#endif
