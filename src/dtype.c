/* The table of element types and the two checked operations every size from a file goes through. */
#include "src/dtype.h"

#include <assert.h>
#include <string.h>

/* Indexed by mq_dtype.  Names: the enum Dtype of the safetensors format. */
static const struct {
    const char *name;
    int bits;
} dtypes[MQ_DT_COUNT] = {
    [MQ_DT_BOOL] = {"BOOL", 8},
    [MQ_DT_F4] = {"F4", 4},
    [MQ_DT_F6_E2M3] = {"F6_E2M3", 6},
    [MQ_DT_F6_E3M2] = {"F6_E3M2", 6},
    [MQ_DT_U8] = {"U8", 8},
    [MQ_DT_I8] = {"I8", 8},
    [MQ_DT_F8_E5M2] = {"F8_E5M2", 8},
    [MQ_DT_F8_E4M3] = {"F8_E4M3", 8},
    [MQ_DT_F8_E8M0] = {"F8_E8M0", 8},
    [MQ_DT_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [MQ_DT_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [MQ_DT_I16] = {"I16", 16},
    [MQ_DT_U16] = {"U16", 16},
    [MQ_DT_F16] = {"F16", 16},
    [MQ_DT_BF16] = {"BF16", 16},
    [MQ_DT_I32] = {"I32", 32},
    [MQ_DT_U32] = {"U32", 32},
    [MQ_DT_F32] = {"F32", 32},
    [MQ_DT_C64] = {"C64", 64},
    [MQ_DT_F64] = {"F64", 64},
    [MQ_DT_I64] = {"I64", 64},
    [MQ_DT_U64] = {"U64", 64},
};

int mq_dtype_bits(mq_dtype dt)
{
    assert((unsigned)dt < MQ_DT_COUNT);
    return dtypes[dt].bits;
}

const char *mq_dtype_name(mq_dtype dt)
{
    assert((unsigned)dt < MQ_DT_COUNT);
    return dtypes[dt].name;
}

bool mq_dtype_find(mq_dtype *out, const char *name, int64_t name_bytes)
{
    for (int i = 0; i < MQ_DT_COUNT; i++) {
        if ((int64_t)strlen(dtypes[i].name) == name_bytes &&
            memcmp(dtypes[i].name, name, (size_t)name_bytes) == 0) {
            *out = (mq_dtype)i;
            return true;
        }
    }
    return false;
}

bool mq_mul_i64(int64_t *out, int64_t a, int64_t b)
{
    if (a < 0 || b < 0 || (b != 0 && a > INT64_MAX / b))
        return false;
    *out = a * b;
    return true;
}

bool mq_add_i64(int64_t *out, int64_t a, int64_t b)
{
    if (a < 0 || b < 0 || a > INT64_MAX - b)
        return false;
    *out = a + b;
    return true;
}
