/* The table of operations: all that other folders see of the compute code.
 *
 * Each operation is documented once, here.  The CPU functions in kernels/cpu are the definition: F32 activations in
 * and out, F32 or wider sums, no atomics, results that do not depend on the number of threads.  Arrays are row-major
 * and in dev's memory (host memory on the CPU).  Work is queued on dev: results may be read after dev_sync.
 * Sizes and matrix views are the caller's invariants (mq_matrix_check at load time); operations return only
 * MQ_E_NOMEM (workspace) or MQ_E_DEVICE.  One call per dev at a time. */
#ifndef MQ_KERNELS_KERNELS_H
#define MQ_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/decode.h"
#include "kernels/draft_step.h"
#include "kernels/exchange.h"
#include "kernels/fill.h"
#include "src/matrix.h"
#include "src/status.h"
#include "src/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_dev mq_dev;
typedef struct mq_fence mq_fence; /* a point in a device's queue of work */

/* How to choose a token from logits. */
typedef struct mq_sampling {
    float temperature; /* 0: greedy, the argmax, lowest id among equals */
    int top_k;         /* keep the k largest (ties: lower id first); 0: all */
    float top_p;       /* then the smallest set of largest probabilities that reaches top_p; 1: all */
    uint64_t seed;
} mq_sampling;

/* Comparison of two rows of logits over the whole vocabulary. */
typedef struct mq_logit_stats {
    double nll_a, nll_b; /* -log p(target), nats */
    double kl;           /* KL(a || b), nats */
    int32_t top_a, top_b; /* argmax, lowest id among equals */
} mq_logit_stats;

/* Inputs of matrix products: as they are, or rounded to BF16 (nearest, ties to even); sums are F32 or wider either way. */
typedef enum mq_precision { MQ_PRECISION_F32, MQ_PRECISION_BF16 } mq_precision;

typedef struct mq_kernels {
    const char *name; /* "cpu", "cuda" */

    /* Device.  n_threads: host threads for the CPU (0: all processors).  Instruction set chosen here; isa may force one of
     * "scalar", "avx2", "avx512" for tests (NULL: the best).  MQ_E_DEVICE: not there.  MQ_E_ARG: no such instruction set. */
    mq_status (*dev_open)(mq_dev **out, int ordinal, int n_threads, const char *isa, mq_err *err);
    void (*dev_close)(mq_dev *dev);
    const char *(*dev_name)(const mq_dev *dev); /* for people: "cpu, 2 threads, avx512" */
    /* Kind of device: "scalar", "avx2", "avx512", or a compute capability, "sm_90".  Another kind may give other bits. */
    const char *(*dev_arch)(const mq_dev *dev);
    /* From now on dev's linear, linear_fixed, gram and cross take their inputs in precision p; F32 after dev_open.  In BF16 x is
     * rounded, and so are weights that are no BF16 (FP8 blocks: code times scale), but packed ones: their codes are exact, scales
     * enter the sums in F32.  linear_fixed rounds no weights (but F32 ones, to 16 bits or more), and computes what the decode step
     * does not (kernels/decode_parts.h: check_linear) in F32; so does linear for few rows.  gram rounds sqrt(weight) x, cross weight x and y.  Other operations do not change.
     * MQ_E_UNSUPPORTED: dev computes in F32 alone. */
    mq_status (*set_precision)(mq_dev *dev, mq_precision p, mq_err *err);
    mq_precision (*precision)(const mq_dev *dev);
    /* The library behind large products, with its version and on the CPU its core: "OpenBLAS 0.3.29 SkylakeX", "cuBLAS 12.4.5".
     * Another one may give other bits.  MQ_E_DEVICE: it is not there. */
    mq_status (*library)(mq_dev *dev, char *out, int64_t out_bytes, mq_err *err);
    mq_status (*alloc)(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err); /* 64-byte aligned; zeroed */
    void (*release)(mq_dev *dev, void *p);
    mq_status (*upload)(mq_dev *dev, void *dst, const void *src_host, int64_t n_bytes, mq_err *err);
    mq_status (*download)(mq_dev *dev, void *dst_host, const void *src, int64_t n_bytes, mq_err *err);
    mq_status (*dev_sync)(mq_dev *dev, mq_err *err);

    /* Bytes of the memory that alloc takes from: free now, and in all. */
    mq_status (*memory)(mq_dev *dev, int64_t *free_bytes, int64_t *total_bytes, mq_err *err);

    /* ---- Copies to the device that overlap the host's work ---- */

    /* Host memory that upload_async reads from, page-locked for CUDA, 4096-byte aligned, not zeroed.  host_free accepts NULL and
     * comes before dev_close.  MQ_E_NOMEM. */
    mq_status (*host_alloc)(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err);
    void (*host_free)(mq_dev *dev, void *p);
    /* A fence that is set nowhere; fence_free accepts NULL and comes before dev_close. */
    mq_status (*fence_create)(mq_dev *dev, mq_fence **out, mq_err *err);
    void (*fence_free)(mq_dev *dev, mq_fence *f);
    /* As upload, but returns at once: src_host [n_bytes], from host_alloc, is read until fence_wait returns.  f is set behind this
     * copy, and so behind all that was queued before it; where it was set before is forgotten. */
    mq_status (*upload_async)(mq_dev *dev, void *dst, const void *src_host, int64_t n_bytes, mq_fence *f, mq_err *err);
    /* Wait for what f is set behind; returns at once where it was never set.  From any thread, also while another has a call
     * under way on dev. */
    mq_status (*fence_wait)(mq_dev *dev, mq_fence *f, mq_err *err);

    /* y [n, w.rows] = x [n, w.cols] * w^T, any scheme of mq_matrix.  Large-M form: may widen blocks of w and call BLAS; the
     * order of sums is free but does not depend on the number of threads.  n >= 0. */
    mq_status (*linear)(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);

    /* The same product in the fixed order of the decode step: a row's bits depend on that row of x and on w alone, not on n, on
     * other rows, on threads or on the instruction set (scalar, AVX2 and AVX-512 agree bit for bit).  Never BLAS.
     * Meant for n <= 8, right for any n. */
    mq_status (*linear_fixed)(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err);

    /* out [n, m.cols] = rows ids[i] of m, widened (embedding). */
    mq_status (*embed)(mq_dev *dev, float *out, const mq_matrix *m, const int32_t *ids, int64_t n, mq_err *err);

    /* y = x * rsqrt(mean(x^2) + eps) * weight, per row of cols; y may be x.  Mean of squares in double. */
    mq_status (*rmsnorm)(mq_dev *dev, float *y, const float *x, const float *weight, double eps, int64_t n, int64_t cols,
                         mq_err *err);

    /* Rotate the first rotary_dims of each head in place, rotate-half inside them (pairs i, i + rotary_dims/2), row i at
     * position pos0 + i; x [n, n_heads, head_dim].  Angles position * theta^(-2i/rotary_dims), inv_freq rounded to F32 and the
     * product rounded to F32 as the transformers port does, cos and sin then correctly from that. */
    mq_status (*rope)(mq_dev *dev, float *x, int64_t n, int n_heads, int head_dim, int rotary_dims, double theta,
                      int64_t pos0, mq_err *err);

    /* Store rows at positions pos0 .. pos0 + n - 1: k [n, n_kv_heads * head_dim], v [n, n_kv_heads * v_head_dim] times v_scale. */
    mq_status (*kv_store)(mq_dev *dev, const mq_kv *kv, const float *k, const float *v, float v_scale, int64_t n,
                          int64_t pos0, mq_err *err);

    /* Causal attention of rows at positions pos0 + i over keys pos - window < j <= pos (window 0: all), keys read from kv;
     * the rows' own keys are stored already.  q [n, n_heads, head_dim], out [n, n_heads, v_head_dim]; logits times
     * 1/sqrt(head_dim); sink [n_heads] joins the softmax's denominator (NULL: none).  kv holds every visible key:
     * n_slots >= min(pos0 + n, window + n - 1).  Fixed order: a row's bits depend on its own query and keys alone. */
    mq_status (*attention)(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                           int window, int64_t n, int64_t pos0, mq_err *err);

    /* Attention of a block whose n rows see one another: as attention, but row i at position pos = pos0 + i sees keys
     * pos - window < j < pos0 + n (window 0: all below pos0 + n).  n_slots >= min(pos0 + n, window + n - 1). */
    mq_status (*attention_block)(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads,
                                 const float *sink, int window, int64_t n, int64_t pos0, mq_err *err);

    /* h [n, width] = silu(gate) * up.  interleaved: gate_up [n, 2 width] in mq_gate_up_row order is passed as gate, up is
     * NULL; otherwise gate and up are [n, width]. */
    mq_status (*swiglu)(mq_dev *dev, float *h, const float *gate, const float *up, bool interleaved, int64_t n,
                        int64_t width, mq_err *err);

    /* Router: s = sigmoid(logits [n, n_experts]); choose the topk largest of s + bias (ties: lower expert); ids [n, topk] in
     * ascending expert order, coef [n, topk] = s of the chosen, divided by (their sum + 1e-20) where norm, times scaling.
     * margin [n] (may be NULL): selection score of the last chosen minus that of the best not chosen. */
    mq_status (*route)(mq_dev *dev, int32_t *ids, float *coef, float *margin, const float *logits, const float *bias,
                       int64_t n, int n_experts, int topk, bool norm, float scaling, mq_err *err);

    /* The packed experts of a layer (one rank's) for many rows at once, in BF16 whatever dev's precision: y [n, hidden] = sum over
     * the row's experts, ascending, of coef * down(h), h = silu(gate x) * up x rounded to BF16; x [n, hidden] F32, rounded; ids,
     * coef [n, topk] as route leaves them.  The tables lie in dev's memory, hidden and width are multiples of 64 (128 for g128),
     * n * topk is below 2^31.  A row's bits depend on that row alone.  NULL: not there; runtime calls linear for each expert. */
    mq_status (*experts)(mq_dev *dev, float *y, const float *x, const int32_t *ids, const float *coef,
                         const mq_decode_expert_table *t, int64_t n, mq_err *err);

    /* out [n, cols] = src rows index[i]. */
    mq_status (*gather)(mq_dev *dev, float *out, const float *src, const int32_t *index, int64_t n, int64_t cols,
                        mq_err *err);
    /* out [n] = element index[i] of row i of x [n, cols]. */
    mq_status (*pick)(mq_dev *dev, float *out, const float *x, const int32_t *index, int64_t n, int64_t cols, mq_err *err);
    /* Columns col0 .. col0 + cols - 1 of y [n, y_cols] = x [n, cols]. */
    mq_status (*put_cols)(mq_dev *dev, float *y, int64_t y_cols, int64_t col0, const float *x, int64_t n, int64_t cols,
                          mq_err *err);
    /* y row index[i] += coef[i] * x row i; indexes are distinct. */
    mq_status (*scatter_add)(mq_dev *dev, float *y, const float *x, const int32_t *index, const float *coef, int64_t n,
                             int64_t cols, mq_err *err);
    /* y [count] += x [count] */
    mq_status (*add)(mq_dev *dev, float *y, const float *x, int64_t count, mq_err *err);

    /* tokens [n] from logits [n, vocab]; row i is drawn for position pos0 + i.  temperature > 0: argmax of logit / temperature + Gumbel noise
     * over the kept ids; the noise is a pure function of (seed, position, id), so a draw depends on nothing else. */
    mq_status (*sample)(mq_dev *dev, int32_t *tokens, const float *logits, const mq_sampling *s, int64_t n, int64_t vocab,
                        int64_t pos0, mq_err *err);

    /* tokens [n], the argmax of logits [n, vocab] (lowest id among equals), and prob [n], its softmax probability; sums in
     * double.  Always an id and a value of 0 to 1: 0 where no logit, or an infinite one, is the largest. */
    mq_status (*top)(mq_dev *dev, int32_t *tokens, float *prob, const float *logits, int64_t n, int64_t vocab, mq_err *err);

    /* stats [n] (host memory) of logits a and b [n, vocab] against targets [n]; sums in double.  b may be NULL: then only nll_a and
     * top_a are set.  Synchronous. */
    mq_status (*logit_stats)(mq_dev *dev, mq_logit_stats *stats, const float *a, const float *b, const int32_t *targets,
                             int64_t n, int64_t vocab, mq_err *err);

    /* ---- Calibration.  Symmetric matrices keep their lower triangle (row >= column); the rest is neither read nor
     * written.  Codes are q + 8, q in -8..7, one a byte, row-major, in the columns' own order; scales are F32 that are exact in
     * BF16, [rows, cols / group], group 32, 64 or 128 and dividing cols.  D = W - scale * q.  What these compute depends on
     * their arguments alone, not on threads; across instruction sets and devices the bits may differ. ---- */

    /* dst [n_bytes] = src, apart from each other; dst in dev's memory, src in dev's or that of another device of this table, where
     * whoever wrote it has been waited for. */
    mq_status (*copy)(mq_dev *dev, void *dst, const void *src, int64_t n_bytes, mq_err *err);

    /* out [n_rows, w.cols] = rows row0 .. of w, widened; the bits of mq_matrix_widen for every scheme (MXFP4 units: but for
     * the sign of zeros). */
    mq_status (*widen)(mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n_rows, mq_err *err);

    /* y [count] = a * y + b * x.  An array whose factor is 0 is not read: it may hold anything, and with b = 0 x may be NULL. */
    mq_status (*axpby)(mq_dev *dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err);

    /* g [cols, cols] += sum over i of weight[i] x_i x_i^T, x [n, cols]; weight [n] finite, not negative (NULL: 1).  F32 sums over
     * all n rows of a call, then one addition to g: callers cut their rows into blocks of fixed size (2048). */
    mq_status (*gram)(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err);

    /* c [cols, y_cols] += sum over i of weight[i] x_i y_i^T, all elements; x [n, cols], y [n, y_cols]; otherwise as gram. */
    mq_status (*cross)(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n, int64_t cols,
                       int64_t y_cols, mq_err *err);

    /* out [n] = diagonal of g [n, n]; and back. */
    mq_status (*diag)(mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err);
    mq_status (*set_diag)(mq_dev *dev, float *g, const float *diag, int64_t n, mq_err *err);

    /* H = P g P^T + ridge * I, row and column k of H being perm[k] of g (perm a permutation of 0 .. n - 1 in dev's memory).  Factor H
     * = R R^T, R upper triangular (Cholesky from the last row up): a [n, n] strict upper part a[j][k] = R[j][k] / R[k][k], j < k,
     * zeros elsewhere; d [n] = R[k][k]^2.  g is not changed.  Synchronous.
     * MQ_E_NUMERIC: not positive definite, or not finite (the pivot is named). */
    mq_status (*factor)(mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n,
                        mq_err *err);

    /* x [rows, n] = y H^-1 with a, d, perm from factor, columns in their own order (H with its ridge).  x may be y.  The weights that
     * serve inputs h in place of inputs s best are W + W c^T H^-1, c the cross moment of h and s - h. */
    mq_status (*solve)(mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm,
                       int64_t rows, int64_t n, mq_err *err);

    /* Scales of every group by the weighted search of kernels/round.h, omega [cols] finite and not negative (NULL: 1), w [rows,
     * cols] finite; equals mq_round_group. */
    mq_status (*search_scales)(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                               int group, mq_err *err);

    /* Codes of every weight by itself, for scales from search_scales of the same w: the codes of mq_round_group. */
    mq_status (*nearest)(mq_dev *dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols,
                         int group, mq_err *err);

    /* err2 [rows] = sum of D^2, norm2 [rows] = sum of W^2, both in double.  codes and scale NULL: norm2 alone, err2 not touched;
     * norm2 of a row is finite exactly when its weights are. */
    mq_status (*weight_error)(mq_dev *dev, double *err2, double *norm2, const uint8_t *codes, const float *w,
                              const float *scale, int64_t rows, int64_t cols, int group, mq_err *err);

    /* Codes by error feedback (LDLQ): with a, d, perm from factor, for k = 0, 1, ...: c = perm[k],
     *     t = w[c] + sum over j < k of D[perm[j]] * a[j][k];   q[c] = clamp(rne(t / scale of c's group), -8, 7).
     * codes [rows, cols]; loss [rows] = sum over k of d[k] * (t - scale q)^2 = D H D^T of each row (ridge included).  Source: GPTQ,
     * arXiv 2210.17323, in the form of QuIP, arXiv 2307.13304. */
    mq_status (*ldlq)(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a,
                      const float *d, const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err);

    /* loss [rows] = D g D^T of each row; norm [rows] (may be NULL) = W g W^T. */
    mq_status (*quant_loss)(mq_dev *dev, float *loss, float *norm, const uint8_t *codes, const float *w,
                            const float *scale, const float *g, int64_t rows, int64_t cols, int group, mq_err *err);

    /* Scales by least squares, codes fixed: per row the step delta of its scales solves M delta = r, where u_i is the codes of group i
     * (zeros elsewhere), M[i][j] = u_i g u_j^T, its diagonal enlarged by 1e-4, and r[i] = u_i g D^T.  Scales are rounded to BF16 from
     * the first to the last, the rounding of each fed into those after it as in ldlq; each stays within 0.8 and 1.2 times
     * itself before rounding, and as it is where its codes are all 0.  A row moves only if its D g D^T falls.  scale [rows, cols / group] in and
     * out; loss [rows] (may be NULL) = D g D^T afterwards. */
    mq_status (*refit_scales)(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w,
                              const float *g, int64_t rows, int64_t cols, int group, mq_err *err);

    /* Codes by coordinate descent, scales fixed: up to n_passes times over the columns of a row, ascending, each code becomes
     * clamp(rne(q + (D g)[c] / (g[c][c] * scale)), -8, 7), the best one given all others (as it is where g[c][c] is not positive or
     * g[c][c] * scale subnormal); a row stops after a pass without a change.  codes [rows, cols] in and out; loss [rows] (may be
     * NULL) = D g D^T afterwards. */
    mq_status (*descend)(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                         int n_passes, int64_t rows, int64_t cols, int group, mq_err *err);

    /* Rows whose loss_new is below loss take codes, scale and loss from the new ones; n_kept (host, may be NULL) = how many did.
     * Synchronous. */
    mq_status (*keep_better)(mq_dev *dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept,
                             const uint8_t *codes_new, const float *scale_new, const float *loss_new, int64_t rows,
                             int64_t cols, int group, mq_err *err);

    /* Upper bound of the memory that dev comes to hold for itself once these operations, and linear, have run on matrices of up to
     * rows x cols, their moments, and blocks of up to n rows of either width. */
    int64_t (*calibration_bytes)(const mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n);

    /* Codes and scales into packed units (src/units.h): b's NULL: a's rows as they are (rows a multiple of 16); otherwise a is gate
     * and b is up, interleaved (rows of each a multiple of 8).  units [mq_units_bytes(total rows, cols, group)]. */
    mq_status (*pack_units)(mq_dev *dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a,
                            const uint8_t *codes_b, const float *scale_b, int64_t rows, int64_t cols, int group,
                            mq_err *err);

    /* ---- Synthetic weights and what memory can do. ---- */

    /* dst = the slice that f describes, tightly packed: the content of kernels/fill.h, equal bits on every device. */
    mq_status (*fill)(mq_dev *dev, void *dst, const mq_fill *f, mq_err *err);

    /* *sum (dev's memory) += the sum of p's n_words words of 64 bits, modulo 2^64; p 16-byte aligned.  One streaming read. */
    mq_status (*sum_words)(mq_dev *dev, uint64_t *sum, const void *p, int64_t n_words, mq_err *err);

    /* The highest clocks that driver or system state, in MHz; 0: not known. */
    void (*dev_clocks)(const mq_dev *dev, int *core_mhz, int *memory_mhz);

    const mq_exchange_ops *exchange; /* between devices; NULL on the CPU */
    const mq_decode_ops *decode; /* NULL: runtime composes the step from the operations above */
    const mq_draft_step_ops *draft; /* NULL: the same for DFlash drafters */
} mq_kernels;

/* Table by name ("cpu", "cuda"), or NULL when it is not built in.  Static storage. */
const mq_kernels *mq_kernels_find(const char *name);

/* GPUs visible to this process; 0 without CUDA.  Names for people go to name [name_bytes] for ordinal < count. */
int mq_cuda_count(void);
bool mq_cuda_name(int ordinal, char *name, int64_t name_bytes);

#ifdef __cplusplus
}
#endif
#endif
