/* The inner loops that exist once per instruction set, and the device that chose one of them.  Private to
 * kernels/cpu.  Loops here are serial: the operations around them split the work over threads. */
#ifndef MQ_KERNELS_CPU_VECTOR_H
#define MQ_KERNELS_CPU_VECTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "src/matrix.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One linear_fixed call.  x is prepared (linear_fixed.c): n_pad rows in the order the scheme's kernel reads. */
typedef struct mq_fixed_job {
    const mq_matrix *w;
    const float *x;   /* [n_pad, x_stride] */
    int64_t x_stride; /* floats */
    int64_t n;        /* rows wanted */
    int64_t n_pad;    /* rows there: whole eights, then 0, 1, 2, 4 or 8 for the rest; extra rows are zero */
    float *y;         /* [n, w->rows] */
    int64_t seg_scale_rows, scale_cols; /* FP8: of w, so that no row divides to find them */
} mq_fixed_job;

/* Rows of x taken together through one decoding of the weights. */
enum { MQ_FIXED_ROWS = 8 };

/* One attention call; mq_kernels.attention and attention_block document the fields. */
typedef struct mq_attention_job {
    float *out;
    const float *q;
    const mq_kv *kv;
    const float *sink;
    int n_heads, window;
    int64_t n, pos0;
    float scale;   /* 1 / sqrt(head_dim) */
    bool is_block; /* rows see one another: attention_block */
} mq_attention_job;

/* Rows of q in one piece of attention work, and keys in one block. */
enum { MQ_ATTENTION_ROWS = 16, MQ_ATTENTION_KEYS = 64 };

typedef struct mq_softmax_sums {
    double sum;   /* sum exp((a - max a) * scale) */
    double cross; /* sum of the same times (a - b) */
} mq_softmax_sums;

/* A few consecutive columns of error feedback, a row of the matrix in each lane; ldlq.c.  Columns are in processing order, k0
 * the first. */
typedef struct mq_ldlq_leaf {
    float *w;                  /* [n_cols, lanes] in: weights, out: D */
    const float *sum;          /* [n_cols, lanes] what the columns before k0 feed in */
    const float *a;            /* a[k0][k0] */
    const float *d;            /* [n_cols] */
    const float *const *scale; /* [n_cols] -> [lanes] */
    uint8_t *codes;            /* [n_cols, lanes] */
    float *loss;               /* [lanes], added to */
    int64_t lda, lanes;        /* lanes: a multiple of 32, also the stride of w, sum and codes */
    int n_cols;                /* a multiple of MQ_LDLQ_STEP */
} mq_ldlq_leaf;
enum { MQ_LDLQ_STEP = 8, MQ_LDLQ_LANES = 32 };

/* Coordinate descent on one row; refine.c. */
typedef struct mq_descend_row {
    uint8_t *codes;     /* [cols] */
    float *y;           /* [cols] D g, kept up to date */
    const float *scale; /* [cols / group] */
    const float *full;  /* [cols, cols] g, both triangles */
    const float *diag;  /* [cols] */
    int64_t cols;       /* a multiple of 32 */
    int group, n_passes;
} mq_descend_row;

/* Least squares on the scales of one row; refine.c. */
typedef struct mq_refit_row {
    const double *m, *r; /* [n, n] lower triangle; [n] */
    float *scale;        /* [n] in and out */
    double *b, *z, *y;   /* [n, n], [n], [n] scratch */
    int n;
} mq_refit_row;

typedef struct mq_vector_ops {
    const char *isa; /* "scalar", "avx2", "avx512" */

    /* Rows row0 .. row1 - 1 of y; for packed schemes both are multiples of 16. */
    void (*fixed)(const mq_fixed_job *job, int64_t row0, int64_t row1);

    /* mq_matrix_widen, bit for bit; for packed schemes row0 and n_rows are multiples of 16. */
    void (*widen)(const mq_matrix *w, int64_t row0, int64_t n_rows, float *out);

    /* Rows row0 .. row1 - 1 (at most MQ_ATTENTION_ROWS) of all query heads of one KV head.  scratch holds
     * mq_attention_scratch_floats. */
    void (*attention)(const mq_attention_job *job, int kv_head, int64_t row0, int64_t row1, float *scratch);

    /* h [count] = silu(gate) * up. */
    void (*swiglu)(float *h, const float *gate, const float *up, int64_t count);

    void (*ldlq)(const mq_ldlq_leaf *leaf);

    /* out [cols] = w - scale * (codes - 8); codes - 8 where w is NULL. */
    void (*residual)(float *out, const float *w, const uint8_t *codes, const float *scale, int64_t cols, int group);

    /* out [n_groups] = sums of a * b over groups of group (a multiple of 16) elements, in double. */
    void (*dots)(double *out, const float *a, const float *b, int64_t n_groups, int64_t group);

    void (*descend)(const mq_descend_row *row);

    /* How much the row's loss falls; 0: the scales are as they were. */
    double (*refit)(const mq_refit_row *row);

    /* Sum of squares in double. */
    double (*square_sum)(const float *x, int64_t count);

    /* Largest element, NaN passed over. */
    float (*max)(const float *x, int64_t count);

    /* b may be NULL: cross is then 0. */
    mq_softmax_sums (*softmax_sums)(const float *a, const float *b, float max_a, float scale, int64_t count);
} mq_vector_ops;

int64_t mq_attention_scratch_floats(const mq_attention_job *job);

extern const mq_vector_ops mq_vector_scalar, mq_vector_avx2, mq_vector_avx512;

#ifdef __cplusplus
}
#endif
#endif
