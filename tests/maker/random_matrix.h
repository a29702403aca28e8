/* Random stored matrices of every scheme, for the tests and benchmarks of kernels/. */
#ifndef MQ_TESTS_MAKER_RANDOM_MATRIX_H
#define MQ_TESTS_MAKER_RANDOM_MATRIX_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "src/matrix.h"
#include "src/units.h"
#include "tests/harness.h"

/* What to make; fields that a scheme does not have are ignored. */
typedef struct matrix_spec {
    mq_scheme scheme;
    int group;
    int64_t rows, cols, seg_rows;
    int row_phase, col_phase;
} matrix_spec;

typedef struct random_matrix {
    mq_matrix m;
    void *data, *scale;
    float *wide; /* [rows, cols] by the definition */
} random_matrix;

/* BF16 bits of a scale of either sign, magnitude 1/16 to 1/8. */
static inline uint16_t random_scale(uint64_t *seed)
{
    uint64_t r = mq_test_rand(seed);
    return (uint16_t)(0x3d80u + (r & 0x7fu) + ((r >> 8 & 1u) << 15));
}

static inline void random_units(uint8_t *p, const matrix_spec *s, uint64_t *seed)
{
    int block = mq_block_bytes(s->group), codes = mq_block_cols(s->group) * 8;
    int64_t n_blocks = mq_units_bytes(s->rows, s->cols, s->group) / block;
    for (int64_t b = 0; b < n_blocks; b++, p += block) {
        for (int i = 0; i < codes; i++)
            p[i] = (uint8_t)(mq_test_rand(seed) >> 20);
        for (int i = codes; i < block; i += 2) {
            uint16_t bits = random_scale(seed);
            memcpy(p + i, &bits, 2);
            if (s->scheme == MQ_SCHEME_MXFP4) {
                p[i] = (uint8_t)(118 + mq_test_rand(seed) % 12);
                p[i + 1] = (uint8_t)(118 + mq_test_rand(seed) % 12);
            }
        }
    }
}

static inline int64_t random_code_bytes(const matrix_spec *s)
{
    int64_t count = s->rows * s->cols;
    switch (s->scheme) {
    case MQ_SCHEME_F32:
        return 4 * count;
    case MQ_SCHEME_FP8_BLOCK:
        return count;
    case MQ_SCHEME_MXFP4_ROWS:
        return count / 2;
    case MQ_SCHEME_INT4:
    case MQ_SCHEME_MXFP4:
        return mq_units_bytes(s->rows, s->cols, s->group);
    default:
        return 2 * count;
    }
}

static inline void random_codes(void *data, const matrix_spec *s, uint64_t *seed)
{
    int64_t count = s->rows * s->cols;
    for (int64_t i = 0; i < count; i++)
        switch (s->scheme) {
        case MQ_SCHEME_F32:
            ((float *)data)[i] = mq_test_normal(seed);
            break;
        case MQ_SCHEME_BF16:
            ((uint16_t *)data)[i] = mq_f32_to_bf16(mq_test_normal(seed));
            break;
        case MQ_SCHEME_F16: /* any finite pattern below 4, subnormals included */
            ((uint16_t *)data)[i] = (uint16_t)(mq_test_rand(seed) % 0x4400u + ((mq_test_rand(seed) & 1u) << 15));
            break;
        case MQ_SCHEME_FP8_BLOCK: {
            uint8_t c = (uint8_t)(mq_test_rand(seed) >> 30);
            ((uint8_t *)data)[i] = (c & 0x7fu) == 0x7fu ? 0x01u : c;
            break;
        }
        case MQ_SCHEME_MXFP4_ROWS:
            ((uint8_t *)data)[i / 2] = (uint8_t)(mq_test_rand(seed) >> 30);
            break;
        default:
            break;
        }
}

static inline random_matrix random_matrix_create(matrix_spec s, uint64_t seed)
{
    random_matrix r = {.m = {.scheme = s.scheme, .rows = s.rows, .cols = s.cols}};
    size_t bytes = (size_t)random_code_bytes(&s);
    r.data = malloc(bytes + 1);
    r.m.data = r.data;
    if (s.scheme == MQ_SCHEME_INT4 || s.scheme == MQ_SCHEME_MXFP4) {
        r.m.group = s.group;
        random_units(r.data, &s, &seed);
    } else {
        random_codes(r.data, &s, &seed);
    }
    if (s.scheme == MQ_SCHEME_FP8_BLOCK) {
        r.m.seg_rows = s.seg_rows ? s.seg_rows : s.rows;
        r.m.row_phase = s.row_phase;
        r.m.col_phase = s.col_phase;
        int64_t n = mq_fp8_n_scales(&r.m);
        float *scale = malloc((size_t)n * sizeof *scale);
        for (int64_t i = 0; i < n; i++)
            scale[i] = 0.001f + 0.01f * (float)(mq_test_rand(&seed) % 1000u) / 1000.0f;
        r.m.scale = r.scale = scale;
    } else if (s.scheme == MQ_SCHEME_MXFP4_ROWS) {
        uint8_t *scale = malloc((size_t)(s.rows * s.cols / 32) + 1);
        for (int64_t i = 0; i < s.rows * s.cols / 32; i++)
            scale[i] = (uint8_t)(118 + mq_test_rand(&seed) % 12);
        r.m.scale = r.scale = scale;
    }
    r.wide = malloc((size_t)(s.rows * s.cols + 1) * sizeof *r.wide);
    mq_matrix_widen(&r.m, 0, s.rows, r.wide);
    return r;
}

static inline void random_matrix_free(random_matrix *r)
{
    free(r->data);
    free(r->scale);
    free(r->wide);
}

static inline float *random_floats(int64_t n, uint64_t seed)
{
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = mq_test_normal(&seed);
    return x;
}

#endif
