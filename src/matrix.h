/* A borrowed view of one stored weight matrix, whatever its storage scheme, for C and CUDA. */
#ifndef MQ_SRC_MATRIX_H
#define MQ_SRC_MATRIX_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers are part of the shard format (SHARD.md "Schemes"). */
typedef enum mq_scheme {
    MQ_SCHEME_NONE = 0,
    MQ_SCHEME_BF16 = 1,        /* row-major BF16 */
    MQ_SCHEME_F16 = 2,         /* row-major F16 */
    MQ_SCHEME_F32 = 3,         /* row-major F32 */
    MQ_SCHEME_FP8_BLOCK = 4,   /* row-major E4M3, F32 scale per 128 x 128 block */
    MQ_SCHEME_INT4 = 5,        /* src/units.h, group 32, 64 or 128 */
    MQ_SCHEME_MXFP4 = 6,       /* src/units.h, MXFP4 */
    MQ_SCHEME_MXFP4_ROWS = 7,  /* checkpoint order: row-major nibbles (even column low), E8M0 [rows, cols/32];
                                  never in a shard */
    MQ_SCHEME_COUNT
} mq_scheme;

const char *mq_scheme_name(mq_scheme s); /* "bf16", "f16", "f32", "fp8_block", "int4", "mxfp4", "mxfp4_rows" */

enum { MQ_FP8_BLOCK = 128, MQ_MX_GROUP = 32 };

/* FP8: the matrix is rows / seg_rows segments of seg_rows rows.  Each segment starts at row row_phase of a 128-row
 * block and has its own ceil((row_phase + seg_rows) / 128) scale rows; column 0 stands at column col_phase of a
 * block, so there are ceil((col_phase + cols) / 128) scale columns.
 *   w[r][c] = e4m3(data[r][c]) * scale[r / seg_rows * seg_scale_rows + (row_phase + r % seg_rows) / 128][(col_phase + c) / 128] */
typedef struct mq_matrix {
    mq_scheme scheme;
    int64_t rows, cols;  /* elements */
    const void *data;    /* values or codes, see mq_scheme */
    const void *scale;   /* FP8_BLOCK: F32; MXFP4_ROWS: uint8_t; else NULL (INT4 and MXFP4 carry theirs in data) */
    int group;           /* INT4: 32, 64, 128; MXFP4: MQ_GROUP_MXFP4; else 0 */
    int64_t seg_rows;    /* FP8_BLOCK: rows of a segment, divides rows; else 0 */
    int row_phase, col_phase; /* FP8_BLOCK: 0..127; else 0 */
} mq_matrix;

/* Scale rows of one segment, scale columns, and F32 count of an FP8 matrix's scales. */
int64_t mq_fp8_seg_scale_rows(const mq_matrix *m);
int64_t mq_fp8_scale_cols(const mq_matrix *m);
int64_t mq_fp8_n_scales(const mq_matrix *m);

/* Shape and scheme are consistent (divisibility of cols and rows for packed schemes, phases, segments).
 * MQ_E_SHAPE, text says found and expected. */
mq_status mq_matrix_check(const mq_matrix *m, mq_err *err);

/* The definition of every scheme: out [n_rows, cols] F32 = rows row0 .. row0 + n_rows - 1, row-major.  Slow, exact. */
void mq_matrix_widen(const mq_matrix *m, int64_t row0, int64_t n_rows, float *out);

#ifdef __cplusplus
}
#endif
#endif
