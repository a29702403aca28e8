/* How much memory there is: the machine's, or what the control groups of a container leave of it. */
#ifndef MQ_SRC_MACHINE_H
#define MQ_SRC_MACHINE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that this process may use at most. */
int64_t mq_machine_bytes(void);

/* The smallest limit on the way from the process's group to the root; INT64_MAX where none is set or can be read.
 * self: the process's list of groups (/proc/self/cgroup); root: where the groups are mounted (/sys/fs/cgroup). */
int64_t mq_cgroup_bytes(const char *self, const char *root);

#ifdef __cplusplus
}
#endif
#endif
