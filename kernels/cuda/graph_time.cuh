/* Device time of queued work: captured into a graph once, launched several times, timed by events. */
#ifndef MQ_KERNELS_CUDA_GRAPH_TIME_CUH
#define MQ_KERNELS_CUDA_GRAPH_TIME_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/decode_parts.h"

namespace mq_cuda {

/* Seconds of one launch of what queue(arg) puts on dev's stream: the median of n_launches, after one that is not
 * timed (it absorbs that devices begin at different times).  With together, the mean over launches queued one behind the
 * other, for work that waits for other devices. */
mq_status graph_time(mq_dev *dev, double *seconds, mq_queue *queue, void *arg, int n_launches, bool together, mq_err *err);

} // namespace mq_cuda

#endif
