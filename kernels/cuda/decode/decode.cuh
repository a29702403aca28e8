/* What the files of this folder define for step.cu: the operations of kernels/decode_parts.h, documented there.
 *
 * Kernels are launched with launch_dependent (common.cuh): weights, the step's input and cached keys and values of earlier
 * steps may be fetched before wait_for_previous(), activations only after it; every kernel calls it, so that work before the
 * previous kernel has finished too.  What another kernel of the same graph has written may be read before the wait only where the
 * kernel just before this one waits before it lets this one start (experts, gate and up, then down): otherwise several
 * kernels may be under way. */
#ifndef MQ_KERNELS_CUDA_DECODE_DECODE_CUH
#define MQ_KERNELS_CUDA_DECODE_DECODE_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/decode.h"

namespace mq_cuda {
namespace decode {

enum { ROWS = MQ_DECODE_ROWS };

/* step_linear.cu */
mq_status check_linear(const mq_matrix *w, mq_err *err);
mq_status linear(mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_err *err);

/* step_rows.cu */
mq_status embed(mq_dev *dev, float *x, const mq_matrix *embedding, const mq_decode_input *in, mq_err *err);
mq_status norm(mq_dev *dev, const mq_decode_norm *job, mq_err *err);
mq_status swiglu(mq_dev *dev, uint16_t *h, const float *gate, const float *up, int64_t width, mq_err *err);

/* step_attention.cu */
mq_status rope_table(mq_dev *dev, float *table, int rotary_dims, double theta, const mq_decode_input *in, mq_err *err);
mq_status check_attention(const mq_kv *kv, int n_heads, int rotary_dims, mq_err *err);
int64_t attention_bytes(int n_heads, int v_head_dim, int window, int64_t max_context);
mq_status attention(mq_dev *dev, const mq_decode_attention *job, mq_err *err);

/* step_router.cu */
mq_status check_router(const mq_matrix *w, int topk, mq_err *err);
int64_t router_bytes(int n_experts, int64_t hidden);
mq_status router(mq_dev *dev, const mq_decode_router *job, mq_err *err);

/* narrow.cu */
mq_status narrow(mq_dev *dev, mq_matrix *w, mq_err *err);

/* step_experts.cu */
mq_status check_experts(const mq_decode_expert_table *t, mq_err *err);
mq_status experts(mq_dev *dev, const mq_decode_experts *job, mq_err *err);

/* step_experts_stream.cu: the same in one kernel, where it fits the device */
bool can_stream_experts(const mq_dev *dev, const mq_decode_experts *job);
mq_status stream_experts(mq_dev *dev, const mq_decode_experts *job, mq_err *err);

} // namespace decode

/* step.cu */
extern const mq_decode_ops decode_ops;

} // namespace mq_cuda

#endif
