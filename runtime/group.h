/* Threads that belong together: one for each device that holds a part of a model.
 *
 * Every member runs the same function at the same time; in it members may wait for each other, and the failure of one
 * lets the others out instead of leaving them waiting. */
#ifndef MQ_RUNTIME_GROUP_H
#define MQ_RUNTIME_GROUP_H

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_group mq_group;

/* n_members threads (at least 1), the caller being the first of them.  MQ_E_NOMEM: a thread could not be made. */
mq_status mq_group_create(mq_group **out, int n_members, mq_err *err);
void mq_group_free(mq_group *g); /* accepts NULL; nothing runs */
int mq_group_n_members(const mq_group *g);

typedef mq_status (*mq_group_fn)(void *ctx, int member, mq_err *err);

/* fn for members 0 .. n_members - 1, each on its own thread, always the same one; returns when all have ended.  The
 * failure reported is that of the lowest member which failed by itself, not because another had.  From one thread. */
mq_status mq_group_run(mq_group *g, mq_group_fn fn, void *ctx, mq_err *err);

/* In fn: returns when every member has come here.  MQ_E_STOPPED: another member failed (or ended without coming). */
mq_status mq_group_wait(mq_group *g, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
