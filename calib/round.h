/* Weights to 4-bit codes without activations: plain rounding and the scale search, straight into the packed
 * unit layout (src/units.h).
 *
 * Results are a function of the weights alone: scalar, AVX2 and AVX-512 give the same bytes, as do any numbers of threads.
 * Sources: round to nearest, absmax / 7 (symmetric INT4 as in compressed-tensors, quantization notes 4); scale search, own
 * combination of signed full-range candidates (AutoRound, llama.cpp make_qx_quants) with a least-squares refit
 * (quantization notes 13.4). */
#ifndef MQ_CALIB_ROUND_H
#define MQ_CALIB_ROUND_H

#include <stdbool.h>
#include <stdint.h>

#include "src/matrix.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_round_method { MQ_ROUND_RTN, MQ_ROUND_SEARCH } mq_round_method;

/* Squared error and squared weights summed over what was rounded, in a fixed order; relative RMS error is sqrt(err2 / norm2). */
typedef struct mq_round_stats {
    double err2, norm2;
} mq_round_stats;

typedef struct mq_rounder mq_rounder; /* instruction set and per-thread workspace; one per thread */

/* isa: NULL for the best, or "scalar", "avx2", "avx512" (tests). */
mq_status mq_rounder_create(mq_rounder **out, const char *isa, mq_err *err);
void mq_rounder_free(mq_rounder *r);

/* Round one group of g (32, 64, 128) weights w: codes [g] as q + 8, the scale as BF16 bits.  The definition; the tile calls below
 * equal it.  omega [g] weights the squared error (NULL: 1).  Weights must be finite.
 * RTN: s = absmax / 7 rounded to BF16 (1.0 for an all-zero group; raised to 2^-126 when smaller), q = round half even(w / s)
 * clamped to -8..7, codes computed with the rounded scale.
 * SEARCH: notes 13.4; ties go to the first candidate. */
mq_status mq_round_group(mq_rounder *r, mq_round_method method, const float *w, const float *omega, int g,
                         uint8_t *codes, uint16_t *scale, mq_err *err);

/* Round tiles of 16 rows into units [mq_units_bytes(rows, cols, group)]: rows_of[i], i < rows, points to row i's cols F32 weights (so
 * that gate and up rows interleave without a copy); stats[k] gathers the rows with i % 16 / 8 == k when split is true
 * (gate: 0, up: 1), all in stats[0] otherwise.  rows a multiple of 16, cols of mq_block_cols(group).
 * MQ_E_NUMERIC: a weight is not finite (row and column named). */
mq_status mq_round_tiles(mq_rounder *r, mq_round_method method, const float *const *rows_of, int64_t rows, int64_t cols,
                         int group, uint8_t *units, bool split, mq_round_stats stats[2], mq_err *err);

/* Re-order MXFP4 rows (checkpoint order, scheme MXFP4_ROWS) into units without changing a code or scale.  rows_q[i], rows_s[i]:
 * nibbles [cols/2] and E8M0 [cols/32] of packed row i. */
void mq_mxfp4_tiles(const uint8_t *const *rows_q, const uint8_t *const *rows_s, int64_t rows, int64_t cols,
                    uint8_t *units);

/* Widen stored rows to F32 fast (same values as mq_matrix_widen), for BF16, F16, F32, FP8_BLOCK and MXFP4_ROWS. */
void mq_round_widen(mq_rounder *r, const mq_matrix *m, int64_t row0, int64_t n_rows, float *out);

#ifdef __cplusplus
}
#endif
#endif
