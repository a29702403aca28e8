/* What round.c asks of an instruction set; private to kernels/cpu/round*.c.
 *
 * round_scalar.c is the definition.  The fast files do the same correctly rounded operations in the
 * same order, so that every result is equal bit for bit.  All work is on one tile: 16 rows and at
 * most MQ_ROUND_CHUNK columns, which with its 32 KiB of F32 weights stays close to the core. */
#ifndef MQ_KERNELS_CPU_ROUND_OPS_H
#define MQ_KERNELS_CPU_ROUND_OPS_H

#include <stdint.h>

#include "src/matrix.h"
#include "src/units.h"

#define MQ_ROUND_ALIGNED __attribute__((aligned(64))) /* _Alignas for C and C++ */

enum { MQ_ROUND_CHUNK = 512, MQ_ROUND_GROUPS = MQ_ROUND_CHUNK / 32 };

/* Added to a value in -8..7 it rounds it half to even and leaves q + 8 in the low bits: 1.5 * 2^23
 * + 8. */
#define MQ_ROUND_MAGIC 12582920.0f

/* Candidates of the search, round.h: exact scales first, then 2 signs of MQ_ROUND_STEPS inverse
 * scales. */
enum { MQ_ROUND_STEPS = 25 };
extern const float mq_round_step[MQ_ROUND_STEPS]; /* 6.5, 6.6, ... 8.9 */

/* Scales of a chunk, [group of the chunk][row of the tile].  RTN: code = w / s.  Search: code = (w
 * * pre) * inv, pre = 2^-e and inv = 1 / (s 2^-e). */
typedef struct mq_round_scales {
    MQ_ROUND_ALIGNED float s[MQ_ROUND_GROUPS][MQ_UNIT_ROWS];
    MQ_ROUND_ALIGNED float pre[MQ_ROUND_GROUPS][MQ_UNIT_ROWS];
    MQ_ROUND_ALIGNED float inv[MQ_ROUND_GROUPS][MQ_UNIT_ROWS];
} mq_round_scales;

/* Running sums of one row: lane l adds the columns c with c % 8 == l, ascending; w and w - s q are
 * F32, squares and sums double (the square of an F32 is exact there). */
typedef struct mq_round_lanes {
    MQ_ROUND_ALIGNED double err2[8];
    MQ_ROUND_ALIGNED double norm2[8];
} mq_round_lanes;

/* Geometry of a chunk inside its units. */
typedef struct mq_round_chunk {
    const float *rows[MQ_UNIT_ROWS]; /* first weight of the chunk in each row */
    int n_cols, group; /* n_cols a multiple of mq_block_cols(group), at most MQ_ROUND_CHUNK */
    uint8_t *blocks;   /* first group block of the chunk */
} mq_round_chunk;

typedef struct mq_round_ops {
    const char *name;

    /* max[k][r]: bits of the largest |w| of group k of row r; 0x7f800000 and above means not
     * finite. */
    void (*absmax)(const mq_round_chunk *c, uint32_t max[MQ_ROUND_GROUPS][MQ_UNIT_ROWS]);

    /* RTN scales of one group of all rows; 64-byte aligned. */
    void (*rtn)(const uint32_t max[MQ_UNIT_ROWS], float s[MQ_UNIT_ROWS]);

    /* Search the scales of group k of all 16 rows, omega [group] for every row (NULL: 1).  work: 128 *
     * 16 floats, 64-byte aligned. */
    void (*search)(const mq_round_chunk *c, int k, const float *omega,
                   const uint32_t max[MQ_UNIT_ROWS], mq_round_scales *scales, float *work);

    /* Codes of rows g and g + 8 (RTN: is_search 0) into the units' code bytes; adds to their lanes.
     */
    void (*encode)(const mq_round_chunk *c, int g, int is_search, const mq_round_scales *scales,
                   mq_round_lanes *lo, mq_round_lanes *hi);

    /* Columns col0 .. col0 + n - 1 of row r of m, widened.  MXFP4_ROWS: col0 and n multiples of 32.
     */
    void (*widen)(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out);
} mq_round_ops;

extern const mq_round_ops mq_round_ops_scalar, mq_round_ops_avx2, mq_round_ops_avx512;

/* By name, NULL for the best this processor has; statuses of mq_isa_choose. */
mq_status mq_round_ops_find(const mq_round_ops **out, const char *isa, mq_err *err);

/* One group, the definition.  is_search: round.h; omega may be NULL. */
typedef struct mq_round_one {
    float s, pre, inv; /* as in mq_round_scales; RTN sets s only */
} mq_round_one;
float mq_round_rtn_scale(uint32_t max);
mq_round_one mq_round_search_one(const float *w, const float *omega, int g, uint32_t max);

/* Powers of two of the search: w * 2^-e with e from the bits of the largest |w|; least |s| 2^-e. */
static inline int mq_round_exponent(uint32_t max)
{
    int e = (int)(max >> 23) - 127;
    return e < -122 ? -122 : e > 126 ? 126 : e;
}
static inline float mq_round_pow2(int e) /* -126..127 */
{
    return mq_f32_from_bits((uint32_t)(e + 127) << 23);
}
static inline float mq_round_floor(int e)
{
    return mq_round_pow2(-126 - e > -40 ? -126 - e : -40);
}

/* First code byte of unit u of a chunk. */
static inline uint8_t *mq_round_unit(const mq_round_chunk *c, int u)
{
    int per_block = mq_block_cols(c->group) / MQ_UNIT_COLS;
    return c->blocks + u / per_block * mq_block_bytes(c->group) +
           u % per_block * MQ_UNIT_CODE_BYTES;
}

#endif
