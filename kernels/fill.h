/* Weights out of nothing: matrices of pseudo-random values, the same on every device and for every number of ranks.
 *
 * Content is counted, not drawn in sequence: word w (8 bytes) of a whole matrix is a hash of (key, w), turned into
 * values of the kind.  A slice takes the words of its place in the whole matrix, so ranks cut a model instead of making
 * one of their own.  mq_fill_content is the definition, for C and CUDA.  Source: own; the hash is the output function of
 * splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014) on a counter. */
#ifndef MQ_KERNELS_FILL_H
#define MQ_KERNELS_FILL_H

#include <stdint.h>

#include "src/float.h"
#include "src/units.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_fill_kind {
    MQ_FILL_CONSTANT, /* F32, every value is scale */
    MQ_FILL_F32,      /* F32, uniform in (-scale, scale) */
    MQ_FILL_F32_UP,   /* F32, uniform in [scale / 2, 3 scale / 2): block scales */
    MQ_FILL_BF16,     /* uniform in (-scale, scale), rounded to BF16 */
    MQ_FILL_E4M3,     /* codes, every one but NaN; root mean square MQ_FILL_E4M3_RMS */
    MQ_FILL_INT4,     /* src/units.h: every code; scales of both signs, uniform magnitude in [scale / 2, 3 scale / 2) */
    MQ_FILL_MXFP4     /* src/units.h: every code; scales scale or scale / 2, scale a power of two above 2^-125 */
} mq_fill_kind;

/* Root mean square of evenly drawn E4M3 codes (NaN's two replaced by zeros), of INT4 codes and of E2M1 codes; and of
 * a uniform magnitude in [1/2, 3/2). */
#define MQ_FILL_E4M3_RMS 99.6661
#define MQ_FILL_INT4_RMS 4.6368
#define MQ_FILL_E2M1_RMS 2.9262
#define MQ_FILL_UP_RMS 1.0408

/* A slice [rows, cols] that begins at (row0, col0) of a matrix with whole_cols columns; whole_cols 0: all rows are
 * equal.  INT4 and MXFP4: rows and row0 multiples of 16, columns of mq_block_cols(group). */
typedef struct mq_fill {
    mq_fill_kind kind;
    int group; /* INT4: 32, 64, 128; MXFP4: MQ_GROUP_MXFP4 */
    uint64_t key;
    float scale;
    int64_t rows, cols, row0, col0, whole_cols;
} mq_fill;

/* The slice in bytes: n_rows rows of row_bytes bytes; row r begins at byte first + r * stride of the whole matrix. */
typedef struct mq_fill_span {
    int64_t n_rows, row_bytes, first, stride;
} mq_fill_span;

static inline MQ_HD mq_fill_span mq_fill_span_of(const mq_fill *f)
{
    mq_fill_span s;
    if (f->kind == MQ_FILL_INT4 || f->kind == MQ_FILL_MXFP4) {
        s.n_rows = f->rows / MQ_UNIT_ROWS;
        s.row_bytes = mq_tile_bytes(f->cols, f->group);
        s.stride = mq_tile_bytes(f->whole_cols, f->group);
        s.first = f->row0 / MQ_UNIT_ROWS * s.stride + mq_tile_bytes(f->col0, f->group);
        return s;
    }
    int64_t bytes = f->kind == MQ_FILL_E4M3 ? 1 : f->kind == MQ_FILL_BF16 ? 2 : 4;
    s.n_rows = f->rows;
    s.row_bytes = f->cols * bytes;
    s.stride = f->whole_cols * bytes;
    s.first = f->row0 * s.stride + f->col0 * bytes;
    return s;
}

static inline MQ_HD uint64_t mq_fill_hash(uint64_t key, uint64_t counter)
{
    uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A key of a seed and what is filled: apart for every (a, b, c). */
static inline MQ_HD uint64_t mq_fill_key(uint64_t seed, int a, int b, int c)
{
    return mq_fill_hash(mq_fill_hash(mq_fill_hash(seed, (uint32_t)a), (uint32_t)b), (uint32_t)c);
}

/* Odd 24-bit or 16-bit multiples: symmetric around 0, exact before the one multiplication. */
static inline MQ_HD uint64_t mq_fill_f32(uint32_t u, float scale)
{
    return mq_f32_bits((float)(2 * ((int32_t)(u >> 8) - (1 << 23)) + 1) * (scale * 0x1p-24f));
}
static inline MQ_HD uint64_t mq_fill_bf16(uint32_t u16, float scale)
{
    return mq_f32_to_bf16((float)(2 * ((int32_t)u16 - (1 << 15)) + 1) * (scale * 0x1p-16f));
}
static inline MQ_HD uint64_t mq_fill_f32_up(uint32_t u, float scale)
{
    return mq_f32_bits((float)((1 << 22) + (int32_t)(u >> 9)) * (scale * 0x1p-23f));
}
/* Sign in the top bit, BF16. */
static inline MQ_HD uint64_t mq_fill_int4_scale(uint32_t u16, float scale)
{
    float up = (float)((1 << 14) + (int32_t)(u16 & 0x7fffu)) * (scale * 0x1p-15f);
    return mq_f32_to_bf16(up) | (u16 & 0x8000u);
}

/* Bytes 8 w .. 8 w + 7 of the whole matrix, little-endian. */
static inline MQ_HD uint64_t mq_fill_content(const mq_fill *f, uint64_t w)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t h = mq_fill_hash(f->key, w), out = 0;
    uint32_t low = (uint32_t)h, high = (uint32_t)(h >> 32);
    switch (f->kind) {
    case MQ_FILL_CONSTANT:
        return mq_f32_bits(f->scale) * 0x100000001u;
    case MQ_FILL_F32:
        return mq_fill_f32(low, f->scale) | mq_fill_f32(high, f->scale) << 32;
    case MQ_FILL_F32_UP:
        return mq_fill_f32_up(low, f->scale) | mq_fill_f32_up(high, f->scale) << 32;
    case MQ_FILL_BF16:
        for (int i = 0; i < 4; i++)
            out |= mq_fill_bf16((uint32_t)(h >> 16 * i) & 0xffffu, f->scale) << 16 * i;
        return out;
    case MQ_FILL_E4M3: /* bytes whose low seven bits are all ones keep their sign alone */
        return h & ~((((h & 127 * ones) + ones) >> 7 & ones) * 127);
    default:
        break;
    }
    uint64_t in_block = 8 * w % (uint64_t)mq_block_bytes(f->group);
    if (in_block < (uint64_t)(mq_block_cols(f->group) / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES))
        return h;
    if (f->kind == MQ_FILL_MXFP4)
        return (mq_f32_bits(f->scale) >> 23) * ones - (h & ones);
    for (int i = 0; i < 4; i++)
        out |= mq_fill_int4_scale((uint32_t)(h >> 16 * i) & 0xffffu, f->scale) << 16 * i;
    return out;
}

#ifdef __cplusplus
}
#endif
#endif
