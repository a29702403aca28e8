/* The DFlash drafter's step, shared by draft_step.cu (memory, life), draft_layers.cu (the order of the kernels),
 * draft_attention.cu and draft_rows.cu. */
#ifndef MQ_KERNELS_CUDA_DECODE_DRAFT_CUH
#define MQ_KERNELS_CUDA_DECODE_DRAFT_CUH

#include "kernels/cuda/decode/decode.cuh"
#include "kernels/draft_step.h"

namespace mq_cuda {
namespace decode {

enum { DRAFT_KEYS = 64 }; /* of a chunk of attention; chunks start at multiples of it */

/* What changes from proposal to proposal. */
struct draft_input {
    int64_t pos0;                      /* of the first row that is committed; the anchor's is pos0 + n */
    int32_t n, n_block, anchor;        /* rows committed; rows of the block */
    const float *features[MQ_MAX_TAPS]; /* [n, hidden] each, not read with n = 0 */
};

/* The best of some logits of a row: id is exact below 2^24; sum of exp(logit - max).  None: max -infinity, sum 0. */
struct draft_best {
    float max, id, sum;
};

struct draft_output {
    int32_t token[ROWS];
    float confidence[ROWS];
};

/* Where the keys and values of one layer and rank go, and the norm of its key heads (may be NULL). */
struct draft_ring {
    float *k, *v;
    const float *norm;
};

/* Geometry of a rank's attention, the same in all layers. */
struct draft_heads {
    int n_heads, n_kv_heads, dim, v_dim, half, window, block; /* half of the rotary dimensions */
    int64_t n_slots;
    float v_scale;
    double theta, eps;
};

/* Keys and values of the committed rows of every layer and rank. */
struct draft_store {
    draft_heads h;
    const draft_ring *rings; /* [n_rings], device memory */
    int n_rings;
    const float *kv; /* [R, n_rings * cols], a ring's columns: keys, then values; cols = n_kv_heads * (dim + v_dim) */
    const float *cos_sin;
    const draft_input *in;
};

struct draft_attention {
    draft_heads h;
    const float *q, *k, *v; /* rows of stride elements */
    int64_t stride;
    draft_ring ring;
    const float *q_norm, *sink; /* may be NULL */
    const float *cos_sin;       /* [2 * R, 2 * half]: cosines, then sines; of the committed rows, then of the block's */
    const draft_input *in;
    float *value, *state; /* workspace: [chunks, n_heads, R, v_dim], [chunks, n_heads, R, 2] */
    uint16_t *out;        /* [R, n_heads * v_dim] BF16 */
};

/* draft_attention.cu */
mq_status check_draft_heads(const draft_heads *h, mq_err *err);
int draft_chunks(int window, int block); /* at most */
mq_status store_context(mq_dev *dev, const draft_store *job, mq_err *err);
/* Queries and keys normed and rotated, attention of the block, rows from block on are zero. */
mq_status attend_block(mq_dev *dev, const draft_attention *job, mq_err *err);

/* What a proposal begins with. */
struct draft_begin {
    draft_heads h;
    mq_matrix embedding;
    const float *mask;
    const draft_input *in;
    uint16_t *wide; /* [R, n_taps * hidden] BF16: features side by side, zeros in rows that are not committed */
    float *context; /* [R, hidden] = 0 */
    float *x;       /* [R, hidden]: the anchor's embedding, masks, zeros from block on */
    float *cos_sin;
    int64_t hidden;
    int n_taps;
};

/* draft_rows.cu */
mq_status begin_draft(mq_dev *dev, const draft_begin *job, mq_err *err);
int64_t draft_entries(int64_t vocab); /* of a row of vocab logits */
/* entries [R, draft_entries(vocab)] of logits [R, vocab], the ids of which start at id0. */
mq_status best_of_logits(mq_dev *dev, draft_best *entries, const float *logits, int64_t vocab, int64_t id0, mq_err *err);
/* Join n entries of each row, in order: entry i of row r at from + i * stride_entry + r * stride_row, in floats.  To out
 * (row r at out + r * out_stride, 3 floats), or to result: then out is NULL. */
mq_status join_best(mq_dev *dev, float *out, int64_t out_stride, draft_output *result, const float *from, int64_t n,
                    int64_t stride_entry, int64_t stride_row, mq_err *err);

} // namespace decode

/* draft_step.cu */
extern const mq_draft_step_ops draft_step_ops;

} // namespace mq_cuda

/* Sizes in elements; W the width of a rank's MLP, Q, K, V the columns of a rank's projections. */
struct mq_draft_step {
    mq_dev *dev;
    mq_draft_step_model model; /* its arrays are borrowed */
    mq_cuda::decode::draft_heads heads;
    void *block; /* device memory behind the arrays that follow */

    mq_cuda::decode::draft_input *in;
    mq_cuda::decode::draft_output *out;
    uint16_t *wide;    /* [R, n_taps * hidden] */
    float *context;    /* [R, hidden] */
    float *fc_part;    /* [n_parts, R, hidden]: a rank's rows of fc, zeros elsewhere; NULL where all ranks are here */
    uint16_t *xc;      /* [R, hidden] normed context */
    float *kv;         /* [R, n_layers * n_local * (K + V)] */
    float *x;          /* [R, hidden] residual stream of the block */
    uint16_t *xn;      /* [R, hidden] */
    float *part;       /* [n_parts, R, hidden]; n_parts = n_ranks, or 1 with loop_back */
    float *qkv;        /* [R, Q + K + V] */
    uint16_t *attended; /* [R, n_heads * v_dim] */
    float *gate_up;    /* [R, 2 W] */
    uint16_t *mid;     /* [R, W] */
    float *cos_sin, *value, *state;
    float *logits;                        /* [R, vocab / n_ranks] */
    mq_cuda::decode::draft_best *entries; /* [R, draft_entries] */
    mq_cuda::decode::draft_ring *rings;   /* [n_layers, n_local] */

    mq_cuda::decode::draft_input *host_in; /* what the next launch reads */
    bool host_in_used;                     /* perhaps not yet read */
    mq_cuda::decode::draft_output *host_out;
    cudaGraphExec_t commit_graph, propose_graph; /* NULL with model.plain */
};

namespace mq_cuda {
namespace decode {

/* Queue every kernel of a commit; and of a proposal, which begins with one. */
mq_status queue_commit(mq_draft_step *d, mq_err *err);
mq_status queue_proposal(mq_draft_step *d, mq_err *err);

} // namespace decode
} // namespace mq_cuda

#endif
