/* The folder a packed model is written to: whose it is, the lock that keeps a second run out, and what may be removed. */
#ifndef MQ_TOOLS_CONVERT_FOLDER_H
#define MQ_TOOLS_CONVERT_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"

typedef enum mq_folder_state {
    MQ_FOLDER_NEW,        /* absent or empty */
    MQ_FOLDER_UNFINISHED, /* a journal stands there, or only its first draft */
    MQ_FOLDER_COMPLETE    /* a manifest without a journal */
} mq_folder_state;

/* Look, change nothing.  MQ_E_EXISTS: not a folder, or it holds a file that no run of ours writes (named), or a packed model
 * cannot be recognized in it.  MQ_E_IO. */
mq_status mq_folder_inspect(mq_folder_state *state, const char *dir, mq_err *err);

/* Create dir where it is absent and lock it; *fd holds the lock until it is closed.  MQ_E_EXISTS: another run writes here.
 * A file system without locks is taken as it is. */
mq_status mq_folder_lock(int *fd, const char *dir, mq_err *err);

/* Remove every file of ours, the manifest first, but for the journal and the names in keep [n_keep].  MQ_E_IO. */
mq_status mq_folder_clean(const char *dir, const char *const *keep, int64_t n_keep, mq_err *err);

#endif
