/* Element types of stored tensors (safetensors names) and overflow-checked sizes. */
#ifndef MQ_SRC_DTYPE_H
#define MQ_SRC_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In the order of the safetensors reference; bits per element in mq_dtype_bits. */
typedef enum mq_dtype {
    MQ_DT_BOOL, MQ_DT_F4, MQ_DT_F6_E2M3, MQ_DT_F6_E3M2, MQ_DT_U8, MQ_DT_I8, MQ_DT_F8_E5M2, MQ_DT_F8_E4M3,
    MQ_DT_F8_E8M0, MQ_DT_F8_E4M3FNUZ, MQ_DT_F8_E5M2FNUZ, MQ_DT_I16, MQ_DT_U16, MQ_DT_F16, MQ_DT_BF16,
    MQ_DT_I32, MQ_DT_U32, MQ_DT_F32, MQ_DT_C64, MQ_DT_F64, MQ_DT_I64, MQ_DT_U64,
    MQ_DT_COUNT
} mq_dtype;

/* Bits of one element: 4, 6, 8, 16, 32 or 64. */
int mq_dtype_bits(mq_dtype dt);

/* safetensors name, "BF16" and so on. */
const char *mq_dtype_name(mq_dtype dt);

/* Find a dtype by its exact safetensors name of name_bytes bytes; false when unknown. */
bool mq_dtype_find(mq_dtype *out, const char *name, int64_t name_bytes);

/* Overflow-checked a * b and a + b of non-negative int64; false (out untouched) on overflow or a negative operand. */
bool mq_mul_i64(int64_t *out, int64_t a, int64_t b);
bool mq_add_i64(int64_t *out, int64_t a, int64_t b);

static inline int64_t mq_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t mq_round_up(int64_t a, int64_t b) { return mq_ceil_div(a, b) * b; }

#ifdef __cplusplus
}
#endif
#endif
