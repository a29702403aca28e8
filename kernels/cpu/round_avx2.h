/* Parts of round_avx2.c that round_avx512.c uses as they are: wider vectors gain nothing in them.
 */
#ifndef MQ_KERNELS_CPU_ROUND_AVX2_H
#define MQ_KERNELS_CPU_ROUND_AVX2_H

#include "kernels/cpu/round_ops.h"

void mq_round_absmax_avx2(const mq_round_chunk *c, uint32_t max[MQ_ROUND_GROUPS][MQ_UNIT_ROWS]);
void mq_round_rtn_avx2(const uint32_t max[MQ_UNIT_ROWS], float s[MQ_UNIT_ROWS]);
void mq_round_widen_avx2(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out);

/* Columns col .. col + g - 1 of 8 rows, each row times its pre: to[c * stride + row], 32-byte
 * aligned. */
void mq_round_columns_avx2(const float *const rows[8], int col, int g, const float *pre, float *to,
                           int stride);

#endif
