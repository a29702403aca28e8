/* The state of a decode step, shared by step.cu (memory, life) and step_layers.cu (the order of the kernels). */
#ifndef MQ_KERNELS_CUDA_DECODE_STEP_CUH
#define MQ_KERNELS_CUDA_DECODE_STEP_CUH

#include "kernels/cuda/decode/decode.cuh"

/* Sizes in elements; Q, K, V are the columns of the widest layer's projections of a rank, W the widest dense MLP of a
 * rank, I an expert's width of a rank. */
struct mq_decode {
    mq_dev *dev;
    mq_decode_model model; /* its arrays are borrowed */
    void *block;           /* device memory behind the arrays that follow */

    mq_decode_input *in;
    float *x;        /* [R, hidden] residual stream */
    uint16_t *xn;    /* [R, hidden] */
    float *xn32;     /* [R, hidden] */
    float *part;     /* [n_parts, R, hidden]: what ranks add to the residual; n_parts = n_ranks, or 1 with loop_back */
    float *rope[2];  /* [R, rotary_dims] of full and of windowed layers */
    float *qkv;      /* [R, Q + K + V] */
    uint16_t *heads; /* [R, n_heads * v_head_dim] */
    float *gate_up;  /* [R, 2 W] */
    uint16_t *mid;   /* [R, W] */
    uint16_t *h;     /* [R * topk, I] */
    uint32_t *done;  /* of the experts */
    mq_decode_plan plan;
    int32_t *n_active;      /* [n_layers] active experts */
    void *room;             /* workspace of attention and router */
    float *logits;          /* [R, vocab] */
    float *captures;        /* [n_captures, R, hidden] */
    const uint8_t **tables; /* [n_layers, n_local, 2, n_experts] addresses of gate_up, then of down */

    cudaGraphExec_t graph; /* NULL with model.plain */
};

namespace mq_cuda {
namespace decode {

/* Queue every kernel of a step. */
mq_status queue_step(mq_decode *d, mq_err *err);

} // namespace decode
} // namespace mq_cuda

#endif
