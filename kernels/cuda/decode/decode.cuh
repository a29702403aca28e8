/* The pieces of the decode step and what they hand to each other; step.cu strings them together.
 *
 * All arrays are device memory.  Rows: every activation array has ROWS rows; a step of n rows uses the first n, and
 * what is written to the others is zero (or unspecified where said).  No kernel's result for a row depends on n, on the
 * other rows or on the grid.  Rows are columns of the tensor core's B operand: one path for every n.
 *
 * Everything a step changes (n, ids, position) is read on the device from step_input, so that one captured graph serves
 * every step.  Kernels are launched with launch_dependent (common.cuh): weights may be fetched before
 * wait_for_previous(), activations only after it; every kernel calls it, so that work before the previous kernel has
 * finished too.  No allocation: arrays come from step.cu, sizes from the functions here.
 *
 * Each function queues its kernels on dev->stream.  MQ_E_DEVICE: a launch failed. */
#ifndef MQ_KERNELS_CUDA_DECODE_DECODE_CUH
#define MQ_KERNELS_CUDA_DECODE_DECODE_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/decode.h"

namespace mq_cuda {
namespace decode {

enum { ROWS = MQ_DECODE_ROWS };

/* Written by the host before each launch of the graph. */
struct step_input {
    int64_t pos0;
    int32_t n, ids[ROWS];
};

/* ---- linear.cu: matrices as stored, BF16, F16, F32 or FP8 blocks ---- */

/* One of several matrices that share their input: y [ROWS, stride] F32, columns 0 .. w.rows - 1 written. */
struct linear_part {
    mq_matrix w;
    float *y;
    int64_t stride;
};
enum { MAX_PARTS = 4 };

/* Whether linear computes w; MQ_E_UNSUPPORTED says why not.  Any number of rows; cols a multiple of 16. */
mq_status check_linear(const mq_matrix *w, mq_err *err);

/* y = x w^T for n_parts matrices of equal cols in one launch, x [ROWS, cols] BF16.  F32 weights count with at least 16 bits. */
mq_status linear(mq_dev *dev, const linear_part *parts, int n_parts, const uint16_t *x, mq_err *err);

/* ---- rows.cu: what is done to whole rows ---- */

/* x [ROWS, hidden] F32 = embedding rows of in->ids; rows from n on are zero. */
mq_status embed(mq_dev *dev, float *x, const mq_matrix *embedding, const step_input *in, mq_err *err);

/* The residual and the norm before the next linear.  x [ROWS, hidden] += the sum of part [n_parts, ROWS, hidden] in order of
 * parts (n_parts 0: x as it is); xn BF16 and xn32 F32 (either may be NULL) = RMSNorm(x; weight, eps); capture (may be NULL)
 * = x.  stride_parts: elements from a part to the next; 0 where the first stands for all (loop_back). */
struct norm_job {
    float *x;
    const float *part;
    int n_parts;
    int64_t stride_parts;
    const float *weight;
    uint16_t *xn;
    float *xn32, *capture;
    double eps;
    int64_t hidden;
};
mq_status reduce_norm(mq_dev *dev, const norm_job *job, mq_err *err);

/* h [ROWS, width] BF16 = silu(gate) * up, both [ROWS, width] F32. */
mq_status swiglu(mq_dev *dev, uint16_t *h, const float *gate, const float *up, int64_t width, mq_err *err);

/* ---- attention.cu ---- */

struct attention_job {
    const float *q, *k, *v; /* [ROWS, n_heads * head_dim], [ROWS, n_kv_heads * head_dim], [ROWS, n_kv_heads * v_head_dim] */
    int64_t q_stride, k_stride, v_stride;
    mq_kv kv;
    const float *sink; /* [n_heads] or NULL */
    int n_heads, rotary_dims, window;
    double theta;
    float v_scale;
    const step_input *in;
    uint16_t *out;   /* [ROWS, n_heads * v_head_dim] BF16 */
    void *workspace; /* attention_bytes() */
    int64_t max_context; /* positions there can ever be */
};
/* Bytes of workspace: partial results of chunks of ATTENTION_CHUNK positions.  Chunks start at multiples of it, whatever the row
 * or the length; their results are joined in ascending order. */
enum { ATTENTION_CHUNK = 256 };
int64_t attention_bytes(int n_heads, int v_head_dim, int window, int64_t max_context);
mq_status check_attention(const mq_kv *kv, int n_heads, int rotary_dims, mq_err *err);
/* Rotate q and k, store k and v * v_scale at their slots, attend (kernels.h: rope, kv_store, attention). */
mq_status attention(mq_dev *dev, const attention_job *job, mq_err *err);

/* ---- router.cu ---- */

/* Which experts the rows of a step chose, and what they do for them.  Slot: row * topk + rank of the expert in the row's
 * ascending list of chosen experts. */
struct expert_plan {
    int32_t *n;      /* [1] active experts */
    int32_t *expert; /* [ROWS * topk] ascending; n of them valid */
    int32_t *slot;   /* [ROWS * topk, ROWS]: slot of (active expert, row), or -1 */
    float *coef;     /* [ROWS * topk] by slot: the router's weight */
};
struct router_job {
    const float *x; /* [ROWS, hidden] F32, normed */
    mq_matrix w;    /* [n_experts, hidden] BF16, F16 or F32 */
    const float *bias;
    int topk;
    bool norm;
    float scaling;
    const step_input *in;
    expert_plan plan;
    void *workspace; /* router_bytes() */
};
int64_t router_bytes(int n_experts, int64_t hidden);
mq_status check_router(const mq_matrix *w, int topk, mq_err *err);
/* F32 scores and choice as kernels.h: route; rows from n on choose nothing. */
mq_status router(mq_dev *dev, const router_job *job, mq_err *err);

/* ---- experts.cu: INT4 and MXFP4 units ---- */

/* Addresses of every expert of a layer and rank: [n_experts] pointers in device memory. */
struct expert_table {
    const uint8_t *const *gate_up; /* units [2 width, hidden], interleaved */
    const uint8_t *const *down;    /* units [hidden, width] */
    int group;                     /* 32, 64, 128 or MQ_GROUP_MXFP4 */
    int64_t hidden, width;
    int n_experts, topk;
};
struct experts_job {
    expert_table experts;
    expert_plan plan;
    const uint16_t *x; /* [ROWS, hidden] BF16 */
    uint16_t *h;       /* [ROWS * topk, width] BF16 by slot: workspace */
    float *y;          /* [ROWS, hidden] F32: sum over the row's experts, ascending, of coef * down(h); 0 for a row without any */
};
/* hidden and width multiples of 64 (128 for g128). */
mq_status check_experts(const expert_table *t, mq_err *err);
mq_status experts(mq_dev *dev, const experts_job *job, mq_err *err);

} // namespace decode

/* Operation of the table (device.cu): the step. */
extern const mq_decode_ops decode_ops;

} // namespace mq_cuda

#endif
