/* The CPU device and the operations of its table; private to kernels/cpu.  kernels/kernels.h documents each operation. */
#ifndef MQ_KERNELS_CPU_CPU_H
#define MQ_KERNELS_CPU_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/vector.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Buffers that grow on demand and are kept until the device closes, so that steady state never allocates. */
enum {
    MQ_WS_X,
    MQ_WS_WEIGHTS,
    MQ_WS_ATTENTION,
    MQ_WS_SAMPLE,
    MQ_WS_ROUTE,
    MQ_WS_GRAM,   /* weighted rows, and one tile a thread */
    MQ_WS_FACTOR, /* inverse of the permutation, diagonal */
    MQ_WS_CHUNK,  /* ldlq, solve, quant_loss, refit_scales, descend: one chunk of rows a thread */
    MQ_WS_MOMENT, /* refit_scales, descend: both triangles of a moment */
    MQ_WS_COUNT
};

/* Cosines and sines of consecutive positions, kept because every layer of a kind asks for the same. */
typedef struct mq_rope_table {
    float *cos_sin; /* [n, rotary_dims]: the cosines of a row's pairs, then the sines */
    int64_t n, room_bytes, pos0;
    int rotary_dims;
    double theta;
} mq_rope_table;
enum { MQ_ROPE_TABLES = 4 };

struct mq_dev {
    int n_threads;
    const mq_vector_ops *v;
    char name[64];
    void *ws[MQ_WS_COUNT];
    int64_t ws_bytes[MQ_WS_COUNT];
    mq_rope_table rope[MQ_ROPE_TABLES];
    int rope_next; /* the table to overwrite next */
};

/* At least n_bytes, 64-byte aligned, contents undefined; dev's until the next call for this slot. */
mq_status mq_cpu_workspace(mq_dev *dev, int slot, int64_t n_bytes, void **out, mq_err *err);

/* What mq_cpu_workspace takes when it has to grow to n_bytes. */
int64_t mq_cpu_workspace_room(int64_t n_bytes);

/* Threads for a loop of so many scalar operations: 1 where starting them costs more than it saves.  Never changes a result. */
int mq_cpu_threads(const mq_dev *dev, double n_ops);

/* c [m, n] = a [m, k] * b [n, k]^T, leading dimensions in floats; single-threaded, also outside parallel regions. */
void mq_blas_gemm_nt(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t m,
                     int64_t n, int64_t k);

/* c [m, n] = beta c + alpha op(a) op(b), op(a) [m, k] and op(b) [k, n]: a [k, m] where ta, b [n, k] where tb. */
void mq_blas_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Lower triangle of c [n, n] = a^T a, a [k, n]. */
void mq_blas_syrk_tn(int64_t n, int64_t k, const float *a, int64_t lda, float *c, int64_t ldc);

/* Upper triangle of c [n, n] -= a a^T, a [n, k]. */
void mq_blas_syrk_nt_subtract(int64_t n, int64_t k, const float *a, int64_t lda, float *c, int64_t ldc);

/* x [m, n] = x r^-1, or x (r^T)^-1 where t; r [n, n] upper triangular, its diagonal taken as 1 where unit. */
void mq_blas_trsm_upper(bool t, bool unit, int64_t m, int64_t n, const float *r, int64_t ldr, float *x, int64_t ldx);

/* Workspace of one thread, for matrices of rows x cols. */
int64_t mq_cpu_ldlq_bytes(int64_t rows, int64_t cols, int group);
int64_t mq_cpu_solve_bytes(int64_t cols);
int64_t mq_cpu_loss_bytes(int64_t cols);
int64_t mq_cpu_refine_bytes(int64_t cols, int group);
/* Workspace of gram and cross on all threads. */
int64_t mq_cpu_gram_bytes(int64_t n, int64_t cols, int threads);
/* Workspace of linear on all threads. */
int64_t mq_cpu_linear_bytes(int64_t rows, int64_t cols, int threads);

/* Both triangles of g [n, n] in the slot MQ_WS_MOMENT. */
mq_status mq_cpu_mirror(mq_dev *dev, const float **full, const float *g, int64_t n, mq_err *err);

mq_status mq_cpu_dev_open(mq_dev **out, int ordinal, int n_threads, const char *isa, mq_err *err);
void mq_cpu_dev_close(mq_dev *dev);
const char *mq_cpu_dev_name(const mq_dev *dev);
mq_status mq_cpu_library(mq_dev *dev, char *out, int64_t out_bytes, mq_err *err);
mq_status mq_cpu_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err);
void mq_cpu_release(mq_dev *dev, void *p);
mq_status mq_cpu_copy(mq_dev *dev, void *dst, const void *src, int64_t n_bytes, mq_err *err);
mq_status mq_cpu_dev_sync(mq_dev *dev, mq_err *err);

mq_status mq_cpu_linear(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);
mq_status mq_cpu_linear_fixed(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);
mq_status mq_cpu_embed(mq_dev *dev, float *out, const mq_matrix *m, const int32_t *ids, int64_t n, mq_err *err);
mq_status mq_cpu_rmsnorm(mq_dev *dev, float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols,
                         mq_err *err);
mq_status mq_cpu_rope(mq_dev *dev, float *x, int64_t n, int n_heads, int head_dim, int rotary_dims, double theta,
                      int64_t pos0, mq_err *err);
mq_status mq_cpu_kv_store(mq_dev *dev, const mq_kv *kv, const float *k, const float *v, float v_scale, int64_t n,
                          int64_t pos0, mq_err *err);
mq_status mq_cpu_attention(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                           int window, int64_t n, int64_t pos0, mq_err *err);
mq_status mq_cpu_attention_block(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads,
                                 const float *sink, int window, int64_t n, int64_t pos0, mq_err *err);
mq_status mq_cpu_swiglu(mq_dev *dev, float *h, const float *gate, const float *up, bool interleaved, int64_t n,
                        int64_t width, mq_err *err);
mq_status mq_cpu_route(mq_dev *dev, int32_t *ids, float *coef, float *margin, const float *logits, const float *bias,
                       int64_t n, int n_experts, int topk, bool norm, float scaling, mq_err *err);
mq_status mq_cpu_gather(mq_dev *dev, float *out, const float *src, const int32_t *index, int64_t n, int64_t cols,
                        mq_err *err);
mq_status mq_cpu_pick(mq_dev *dev, float *out, const float *x, const int32_t *index, int64_t n, int64_t cols,
                      mq_err *err);
mq_status mq_cpu_put_cols(mq_dev *dev, float *y, int64_t y_cols, int64_t col0, const float *x, int64_t n, int64_t cols,
                          mq_err *err);
mq_status mq_cpu_scatter_add(mq_dev *dev, float *y, const float *x, const int32_t *index, const float *coef, int64_t n,
                             int64_t cols, mq_err *err);
mq_status mq_cpu_add(mq_dev *dev, float *y, const float *x, int64_t count, mq_err *err);
mq_status mq_cpu_sample(mq_dev *dev, int32_t *tokens, const float *logits, const mq_sampling *s, int64_t n,
                        int64_t vocab, int64_t pos0, mq_err *err);
mq_status mq_cpu_top(mq_dev *dev, int32_t *tokens, float *prob, const float *logits, int64_t n, int64_t vocab,
                     mq_err *err);
mq_status mq_cpu_logit_stats(mq_dev *dev, mq_logit_stats *stats, const float *a, const float *b, const int32_t *targets,
                             int64_t n, int64_t vocab, mq_err *err);
mq_status mq_cpu_widen(mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n_rows, mq_err *err);
mq_status mq_cpu_search_scales(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                               int group, mq_err *err);
mq_status mq_cpu_nearest(mq_dev *dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols,
                         int group, mq_err *err);
mq_status mq_cpu_weight_error(mq_dev *dev, double *err2, double *norm2, const uint8_t *codes, const float *w,
                              const float *scale, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status mq_cpu_pack_units(mq_dev *dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a,
                            const uint8_t *codes_b, const float *scale_b, int64_t rows, int64_t cols, int group,
                            mq_err *err);

mq_status mq_cpu_fill(mq_dev *dev, void *dst, const mq_fill *f, mq_err *err);
mq_status mq_cpu_sum_words(mq_dev *dev, uint64_t *sum, const void *p, int64_t n_words, mq_err *err);
mq_status mq_cpu_axpby(mq_dev *dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err);
mq_status mq_cpu_gram(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err);
mq_status mq_cpu_cross(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n,
                       int64_t cols, int64_t y_cols, mq_err *err);
mq_status mq_cpu_diag(mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err);
mq_status mq_cpu_set_diag(mq_dev *dev, float *g, const float *diag, int64_t n, mq_err *err);
mq_status mq_cpu_factor(mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n,
                        mq_err *err);
mq_status mq_cpu_solve(mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm,
                       int64_t rows, int64_t n, mq_err *err);
mq_status mq_cpu_ldlq(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a,
                      const float *d, const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status mq_cpu_quant_loss(mq_dev *dev, float *loss, float *norm, const uint8_t *codes, const float *w,
                            const float *scale, const float *g, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status mq_cpu_refit_scales(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w,
                              const float *g, int64_t rows, int64_t cols, int group, mq_err *err);
mq_status mq_cpu_descend(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                         int n_passes, int64_t rows, int64_t cols, int group, mq_err *err);
int64_t mq_cpu_calibration_bytes(const mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n);
mq_status mq_cpu_keep_better(mq_dev *dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept,
                             const uint8_t *codes_new, const float *scale_new, const float *loss_new, int64_t rows,
                             int64_t cols, int group, mq_err *err);

extern const mq_kernels mq_cpu_kernels;

#ifdef __cplusplus
}
#endif
#endif
