/* Sums over ranks that live on several devices: every device ends up with the contributions of all ranks and adds them
 * in rank order, so that the number of devices does not change a bit.
 *
 * The plain way, for many rows: contributions are copied from device to device between meetings of the host threads.
 * The decode step has its own (kernels/exchange.h). */
#ifndef MQ_RUNTIME_JOIN_H
#define MQ_RUNTIME_JOIN_H

#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/group.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_join mq_join;

/* For the members of group, each with dev devs[member] of kernels; ranks are dealt out evenly, in order: n_ranks is a
 * multiple of the members.  A contribution has at most max_count elements.  Everything is borrowed.  MQ_E_NOMEM,
 * MQ_E_DEVICE. */
mq_status mq_join_create(mq_join **out, mq_group *group, const mq_kernels *kernels, mq_dev *const *devs, int n_ranks,
                         int64_t max_count, mq_err *err);
void mq_join_free(mq_join *j); /* accepts NULL */
/* Device bytes of each member. */
int64_t mq_join_bytes(int n_ranks, int64_t max_count);

/* The first rank of a member, and how many it has. */
int mq_join_first_rank(const mq_join *j, int member);
int mq_join_n_local(const mq_join *j);
int64_t mq_join_max_count(const mq_join *j);

/* [max_count] in the member's memory: where a rank of its own leaves its contribution to the next exchange. */
float *mq_join_part(const mq_join *j, int member, int rank);

/* By every member, in a function of the group: count elements of each contribution come to every device; parts [n_ranks] =
 * where each rank's lies, max_count apart, until the member's next exchange.  Statuses of kernels and mq_group_wait. */
mq_status mq_join_exchange(mq_join *j, int member, const float **parts, int64_t count, mq_err *err);
/* The same, then y [count] = the sum in rank order. */
mq_status mq_join_sum(mq_join *j, int member, float *y, int64_t count, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
