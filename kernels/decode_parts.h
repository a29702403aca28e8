/* The parts of the decode step and what they hand to each other: kernels/cuda/decode implements them, step.cu there
 * strings them together, tests and benchmarks call them one by one.
 *
 * All arrays are device memory.  Every activation array has R = MQ_DECODE_ROWS rows; a step of n rows uses the first n,
 * and what is written to the others is zero (or unspecified where said).  What a row gets does not depend on n, on other
 * rows or on how the device splits the work: rows are columns of the tensor core's B operand, one path for every n.
 *
 * Everything a step changes (n, ids, position) is read on the device from mq_decode_input, so that one captured graph
 * serves every step.  No allocation: arrays are the caller's, sizes come from the functions here.
 *
 * Operations queue their kernels on dev.  MQ_E_DEVICE: a launch failed.  The check functions say MQ_E_UNSUPPORTED, and
 * why, for what an operation does not compute; the operations themselves take it for granted. */
#ifndef MQ_KERNELS_DECODE_PARTS_H
#define MQ_KERNELS_DECODE_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include "src/matrix.h"
#include "src/status.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mq_dev;
enum { MQ_DECODE_ROWS = 8, MQ_DECODE_MAX_PARTS = 4, MQ_DECODE_CHUNK = 256 };

/* What changes from step to step; written by the host before each step. */
typedef struct mq_decode_input {
    int64_t pos0;
    int32_t n, ids[MQ_DECODE_ROWS];
} mq_decode_input;

/* One of several matrices that share their input. */
typedef struct mq_decode_linear {
    mq_matrix w;    /* BF16, F16, F32 or FP8 blocks */
    float *y;       /* [R, stride], columns 0 .. w.rows - 1 written */
    int64_t stride; /* elements */
} mq_decode_linear;

/* The residual and the norm before the next linear: x += the sum of the parts, in order; xn = RMSNorm(x). */
typedef struct mq_decode_norm {
    float *x;             /* [R, hidden] */
    const float *part;    /* n_parts arrays [R, hidden], or NULL */
    int n_parts;          /* 0: x as it is */
    int64_t stride_parts; /* elements from one to the next; 0: the first stands for all */
    const float *weight;  /* [hidden] */
    uint16_t *xn;         /* [R, hidden] BF16, or NULL */
    float *xn32;          /* [R, hidden], or NULL */
    float *capture;       /* [R, hidden] = x, or NULL */
    double eps;
    int64_t hidden;
} mq_decode_norm;

typedef struct mq_decode_attention {
    const float *q; /* [R, q_stride]: n_heads * head_dim columns */
    const float *k; /* [R, k_stride]: kv.n_kv_heads * head_dim */
    const float *v; /* [R, v_stride]: kv.n_kv_heads * v_head_dim */
    int64_t q_stride, k_stride, v_stride;
    mq_kv kv;
    const float *sink; /* [n_heads] or NULL */
    const float *rope; /* [R, rotary_dims] from rope_table; not read without rotary dimensions */
    int n_heads, rotary_dims, window;
    float v_scale;
    const mq_decode_input *in;
    uint16_t *out;       /* [R, n_heads * v_head_dim] BF16 */
    void *workspace;     /* attention_bytes() */
    int64_t max_context; /* positions there can ever be */
} mq_decode_attention;

/* Which experts the rows of a step chose.  Slot: row * topk + rank of the expert in the row's ascending list. */
typedef struct mq_decode_plan {
    int32_t *n;      /* [1] active experts */
    int32_t *expert; /* [R * topk] ascending; n of them valid */
    int32_t *slot;   /* [R * topk, R]: slot of (active expert, row), or -1 */
    float *coef;     /* [R * topk] by slot: the router's weight */
} mq_decode_plan;

typedef struct mq_decode_router {
    const float *x; /* [R, hidden], normed */
    mq_matrix w;    /* [n_experts, hidden] BF16, F16 or F32 */
    const float *bias;
    int topk;
    bool norm;
    float scaling;
    const mq_decode_input *in;
    mq_decode_plan plan;
    void *workspace; /* router_bytes() */
} mq_decode_router;

/* Every expert of a layer and rank, packed units. */
typedef struct mq_decode_expert_table {
    const uint8_t *const *gate_up; /* [n_experts] device pointers, in device memory: units [2 width, hidden], interleaved */
    const uint8_t *const *down;    /* [n_experts]: units [hidden, width] */
    int group;                     /* 32, 64, 128 or MQ_GROUP_MXFP4 */
    int64_t hidden, width;
    int n_experts, topk;
} mq_decode_expert_table;

typedef struct mq_decode_experts {
    mq_decode_expert_table experts;
    mq_decode_plan plan;
    const uint16_t *x; /* [R, hidden] BF16 */
    uint16_t *h;       /* [R * topk, width] BF16 by slot: workspace */
    uint32_t *done;    /* [R * topk + 1]: zero before the first use, and again after each */
    float *y;          /* [R, hidden]: sum over the row's experts, ascending, of coef * down(h); 0 for a row without any */
} mq_decode_experts;

/* Puts work on a device's stream. */
typedef mq_status mq_queue(void *arg, mq_err *err);

typedef struct mq_decode_parts {
    /* Any number of rows; cols a multiple of 16. */
    mq_status (*check_linear)(const mq_matrix *w, mq_err *err);
    /* y = x w^T for n_parts matrices (at most MQ_DECODE_MAX_PARTS) of equal cols, x [R, cols] BF16.  F32 weights count with at
     * least 16 bits. */
    mq_status (*linear)(struct mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_err *err);

    /* x [R, hidden] = rows in->ids of embedding; rows from n on are zero. */
    mq_status (*embed)(struct mq_dev *dev, float *x, const mq_matrix *embedding, const mq_decode_input *in, mq_err *err);
    mq_status (*norm)(struct mq_dev *dev, const mq_decode_norm *job, mq_err *err);
    /* h [R, width] BF16 = silu(gate) * up, both [R, width]. */
    mq_status (*swiglu)(struct mq_dev *dev, uint16_t *h, const float *gate, const float *up, int64_t width, mq_err *err);

    /* Of each row's position the rotary_dims / 2 cosines, then the sines (kernels.h: rope); nothing without such dimensions. */
    mq_status (*rope_table)(struct mq_dev *dev, float *table, int rotary_dims, double theta, const mq_decode_input *in,
                            mq_err *err);
    mq_status (*check_attention)(const mq_kv *kv, int n_heads, int rotary_dims, mq_err *err);
    /* Partial results of chunks of MQ_DECODE_CHUNK positions.  Chunks start at multiples of it, whatever the row or the
     * length; their results are joined in ascending order. */
    int64_t (*attention_bytes)(int n_heads, int v_head_dim, int window, int64_t max_context);
    /* Rotate q and k, store k and v * v_scale at their slots, attend (kernels.h: rope, kv_store, attention).  in and the
     * cache's positions before in->pos0 must have been there before the step: they are read early. */
    mq_status (*attention)(struct mq_dev *dev, const mq_decode_attention *job, mq_err *err);

    mq_status (*check_router)(const mq_matrix *w, int topk, mq_err *err);
    int64_t (*router_bytes)(int n_experts, int64_t hidden);
    /* F32 scores and choice as kernels.h: route; rows from n on choose nothing. */
    mq_status (*router)(struct mq_dev *dev, const mq_decode_router *job, mq_err *err);

    /* hidden and width multiples of 64 (128 for g128). */
    mq_status (*check_experts)(const mq_decode_expert_table *t, mq_err *err);
    mq_status (*experts)(struct mq_dev *dev, const mq_decode_experts *job, mq_err *err);

    /* Seconds that the device takes for what queue(arg) puts on its stream: captured into a graph as the step is, the
     * median of n_launches. */
    mq_status (*time)(struct mq_dev *dev, double *seconds, mq_queue *queue, void *arg, int n_launches, mq_err *err);
} mq_decode_parts;

#ifdef __cplusplus
}
#endif
#endif
