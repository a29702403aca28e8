/* The packed expert layout (SHARD.md section "Expert records"): where a weight's nibble and its scale lie.
 *
 * One definition for the packer, the CPU kernels and the CUDA kernels.  A unit is 16 rows x 64 columns:
 *
 *   512 bytes of codes   lane l (g = l / 4, t = l % 4) owns bytes 16 l .. 16 l + 15, four little-endian 32-bit
 *                        words, word j = the A fragments of MMA j (m16n8k16) of rows g and g + 8
 *   scales               behind the codes of a group block, see below
 *
 * MMA j covers columns of the half h = j / 2 (32 columns each); in it lane t holds columns
 * c = 32 h + 8 t + 4 (j % 2) + i, i = 0..3.  In its word, row g has column i = 0,1,2,3 at bits 0, 16, 8, 24 and row
 * g + 8 at bits 4, 20, 12, 28.  So a byte holds one column: row g in the low nibble, row g + 8 in the high
 * nibble, and the four columns of a word stand in byte order 0, 2, 1, 3.
 *
 * Group blocks: INT4 g32 and g64 and MXFP4: one unit and its scales; INT4 g128: two units (128 columns), then the
 * scales.  Scales are ordered [g = 0..7][group in block][row g, row g + 8]: INT4 BF16 bits, g32 64 bytes,
 * g64 and g128 32 bytes; MXFP4 E8M0 bytes, groups of 32, 32 bytes.
 * INT4 codes are stored as u = q + 8, q in -8..7, weight = q * scale; MXFP4 codes are E2M1.
 *
 * A matrix [rows, cols] is tiles of 16 rows; a tile is its group blocks from column 0 upwards; tiles follow each
 * other.  gate_up interleaves: tile t has rows 8 t .. 8 t + 7 of gate as rows 0..7 and of up as rows 8..15.
 * Source: own; fragment positions from the PTX manual, mma.m16n8k16. */
#ifndef MQ_SRC_UNITS_H
#define MQ_SRC_UNITS_H

#include <stdint.h>

#include "src/float.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_UNIT_ROWS = 16, MQ_UNIT_COLS = 64, MQ_UNIT_CODE_BYTES = 512 };

/* group: 32, 64 or 128 for INT4; MQ_GROUP_MXFP4 for MXFP4. */
enum { MQ_GROUP_MXFP4 = 0 };

/* Columns covered by one group block: 64, or 128 for g128. */
static inline MQ_HD int mq_block_cols(int group) { return group == 128 ? 128 : 64; }
/* Bytes of one group block, codes and scales: 576 (g32), 544 (g64, MXFP4), 1056 (g128).  All multiples of 16. */
static inline MQ_HD int mq_block_bytes(int group)
{
    return group == 128 ? 1056 : group == 32 ? 576 : 544;
}
/* Bytes of a tile of 16 rows and of a matrix; rows a multiple of 16, cols of mq_block_cols(group). */
static inline MQ_HD int64_t mq_tile_bytes(int64_t cols, int group)
{
    return cols / mq_block_cols(group) * mq_block_bytes(group);
}
static inline MQ_HD int64_t mq_units_bytes(int64_t rows, int64_t cols, int group)
{
    return rows / MQ_UNIT_ROWS * mq_tile_bytes(cols, group);
}

/* Byte of (row r of 16, column c of 64) inside a unit's codes; the nibble is the low one for r < 8. */
static inline MQ_HD int mq_unit_byte(int r, int c)
{
    int g = r & 7, side = c >> 5, t = (c >> 3) & 3, j = 2 * side + ((c >> 2) & 1), i = c & 3;
    int byte_of_i = i == 1 ? 2 : i == 2 ? 1 : i;
    return 16 * (4 * g + t) + 4 * j + byte_of_i;
}
static inline MQ_HD int mq_unit_shift(int r) { return r < 8 ? 0 : 4; }

/* Index of the scale of (row r of 16, column c inside its group block) in the block's scale array (uint16_t for INT4,
 * uint8_t for MXFP4). */
static inline MQ_HD int mq_unit_scale_index(int r, int c, int group)
{
    int groups = group == 32 || group == MQ_GROUP_MXFP4 ? 2 : 1;
    int k = groups == 2 ? (c >> 5) & 1 : 0;
    return ((r & 7) * groups + k) * 2 + (r >> 3);
}

/* Weight (row, col) of a packed matrix [rows, cols]; the slow definition, for tests and checks. */
float mq_units_at(const uint8_t *units, int64_t cols, int group, int64_t row, int64_t col);

/* out [16, cols] = one tile, the bits of mq_units_at; cols a multiple of mq_block_cols(group). */
void mq_units_widen_tile(float *out, const uint8_t *tile, int64_t cols, int group);

/* gate_up: packed row of gate row i (up: is_up = 1), and back. */
static inline MQ_HD int64_t mq_gate_up_row(int64_t i, int is_up) { return i / 8 * 16 + i % 8 + 8 * is_up; }

#ifdef __cplusplus
}
#endif
#endif
