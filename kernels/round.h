/* Weights to 4-bit codes without activations: plain rounding and the scale search, straight into
 * the packed unit layout (src/units.h).
 *
 * Results are a function of the weights alone: scalar, AVX2 and AVX-512 give the same bytes and
 * error sums, as do any numbers of threads.  Sources: round to nearest, absmax / 7 (symmetric INT4
 * as in compressed-tensors); scale search, own combination of signed
 * full-range candidates (AutoRound, llama.cpp make_qx_quants) with a least-squares refit.
 *
 * All arithmetic is IEEE F32, round to nearest even, one rounding an operation; rne is rounding to
 * an integer, half to even.
 *
 * RTN of a group w:  s = bf16(absmax / 7), at least 2^-126, and 1 for an all-zero group;
 *     q = clamp(rne(w / s), -8, 7), a true division by the rounded scale.
 *
 * SEARCH works on w' = w * 2^-e, e = floor(log2(absmax)) clamped to -122..126: a change of unit
 * that matters only next to overflow and underflow.  m is the value of largest magnitude (the
 * positive one of two equal ones), code(i) = clamp(rne(w' * i), -8, 7).  Candidates for s', in order:
 *
 *     absmax / 7, absmax / 7.5, m / -8    as they are, so that a lattice trained on one of them is
 *                                         found without error
 *     sum(omega w' q) / sum(omega q q)    for c = 6.5, 6.6, ... 8.9: q = code(-c * (1 / m)), then
 *                                         q = code(c * (1 / m)); left out when not finite
 *
 * Each is rounded to BF16 and moved away from zero until s = s' 2^e is at least 2^-126 (and s' at
 * least 2^-40, which only omega can undercut).  Then q = code(1 / s') anew, and its error is
 * sum(omega (w' - s' q)^2).  The least error wins, ties go to the first; an all-zero group has
 * s = 1 and q = 0.  Sums run over ascending columns in one F32 accumulator a: fma(omega w', q, a),
 * fma(omega q, q, a), and with d = fma(-s', q, w') fma(omega d, d, a). */
#ifndef MQ_KERNELS_ROUND_H
#define MQ_KERNELS_ROUND_H

#include <stdbool.h>
#include <stdint.h>

#include "src/matrix.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_round_method { MQ_ROUND_RTN, MQ_ROUND_SEARCH } mq_round_method;

/* Squared error and squared weights summed over what was rounded; relative RMS error is sqrt(err2 /
 * norm2).  w - s q in F32, its square and all sums in double; per row 8 lanes of columns c % 8,
 * then a fixed tree, then rows in order. */
typedef struct mq_round_stats {
    double err2, norm2;
} mq_round_stats;

/* Instruction set and per-thread workspace (about 50 KiB); one per thread. */
typedef struct mq_rounder mq_rounder;

/* isa: NULL for the best this processor has, or "scalar", "avx2", "avx512" (tests).
 *
 * MQ_E_DEVICE: the processor lacks isa.  MQ_E_ARG: no such isa.  MQ_E_NOMEM. */
mq_status mq_rounder_create(mq_rounder **out, const char *isa, mq_err *err);
void mq_rounder_free(mq_rounder *r);
const char *mq_rounder_isa(const mq_rounder *r); /* "scalar", "avx2" or "avx512" */

/* Round one group of g (32, 64, 128) weights w: codes [g] as q + 8, the scale as BF16 bits.  The
 * definition, always scalar; the calls below equal it.  omega [g], finite and not negative, weights
 * the squared error of the search (NULL: 1).
 *
 * MQ_E_NUMERIC  a weight or omega is not finite, or omega is negative (index named)
 * MQ_E_SHAPE    g is another number */
mq_status mq_round_group(mq_rounder *r, mq_round_method method, const float *w, const float *omega,
                         int g, uint8_t *codes, uint16_t *scale, mq_err *err);

/* Round tiles of 16 rows into units [mq_units_bytes(rows, cols, group)]: rows_of[i], i < rows,
 * points to row i's cols F32 weights (so that gate and up rows interleave without a copy); stats[k]
 * is set to the sums of the rows with i % 16 / 8 == k when split is true (gate: 0, up: 1), all in
 * stats[0] otherwise.  Both entries are overwritten.
 *
 * MQ_E_SHAPE    rows not a multiple of 16, cols of mq_block_cols(group), or another group
 * MQ_E_NUMERIC  a weight is not finite (row and column named)
 * After a failure units and stats hold nothing of use. */
mq_status mq_round_tiles(mq_rounder *r, mq_round_method method, const float *const *rows_of,
                         int64_t rows, int64_t cols, int group, uint8_t *units, bool split,
                         mq_round_stats stats[2], mq_err *err);

/* A window of stored matrices: packed row i is row row0 + i of a when b is NULL; otherwise a is
 * gate and b is up, and row row0 + i of each goes to packed row mq_gate_up_row(i, is_up).  Columns
 * col0 .. col0 + n_cols - 1. */
typedef struct mq_round_window {
    /* BF16, F16, F32, FP8_BLOCK or MXFP4_ROWS (col0 a multiple of 32); the same shape */
    const mq_matrix *a, *b;
    int64_t row0, n_rows; /* rows of each matrix; a multiple of 16, or of 8 with b */
    int64_t col0, n_cols;
} mq_round_window;

/* The same as widening the window and mq_round_tiles (split when b is there), but widened 16 rows x
 * 512 columns at a time into the rounder's own workspace, so F32 weights never leave the
 * first-level cache: the fast way in.
 *
 * MQ_E_SHAPE        as mq_round_tiles and mq_matrix_check, or the window leaves its matrices
 * MQ_E_UNSUPPORTED  another scheme
 * MQ_E_NUMERIC      a weight is not finite (row and column of the matrix named) */
mq_status mq_round_matrix(mq_rounder *r, mq_round_method method, const mq_round_window *win,
                          int group, uint8_t *units, mq_round_stats stats[2], mq_err *err);

/* Re-order MXFP4 rows (checkpoint order, scheme MXFP4_ROWS) into units without changing a code or
 * scale.  rows_q[i], rows_s[i]: nibbles [cols/2] and E8M0 [cols/32] of packed row i.  rows a
 * multiple of 16, cols of 64: the caller's invariant. */
void mq_mxfp4_tiles(const uint8_t *const *rows_q, const uint8_t *const *rows_s, int64_t rows,
                    int64_t cols, uint8_t *units);

/* Widen stored rows to F32 fast (the bits of mq_matrix_widen); units of INT4 and MXFP4 are widened
 * by it. */
void mq_round_widen(mq_rounder *r, const mq_matrix *m, int64_t row0, int64_t n_rows, float *out);

#ifdef __cplusplus
}
#endif
#endif
