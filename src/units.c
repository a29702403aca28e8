/* The packed expert layout, read one weight at a time, and a tile at a time.
 *
 * mq_units_at is the slow definition behind src/units.h: tests hold the packer and the kernels
 * against it.  The address of a weight is computed from the header's inline functions only, so that
 * nothing here can drift from them.  The tile form walks the bytes in their order instead and
 * equals it bit for bit. */
#include "src/units.h"

float mq_units_at(const uint8_t *units, int64_t cols, int group, int64_t row, int64_t col)
{
    int block_cols = mq_block_cols(group);
    int r = (int)(row % MQ_UNIT_ROWS), c = (int)(col % block_cols);
    const uint8_t *block = units + row / MQ_UNIT_ROWS * mq_tile_bytes(cols, group) +
                           col / block_cols * mq_block_bytes(group);
    const uint8_t *codes = block + c / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
    const uint8_t *scales = block + block_cols / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;

    unsigned u = (unsigned)codes[mq_unit_byte(r, c % MQ_UNIT_COLS)] >> mq_unit_shift(r) & 15u;
    int k = mq_unit_scale_index(r, c, group);
    if (group == MQ_GROUP_MXFP4)
        return mq_e2m1_to_f32(u) * mq_e8m0_to_f32(scales[k]);

    uint16_t scale;
    memcpy(&scale, scales + 2 * k, sizeof scale);
    return (float)((int)u - 8) * mq_bf16_to_f32(scale);
}

/* Sixteen rows times 32 columns, half of a unit: a byte holds one column of rows g and g + 8, the
 * four columns of a word stand in byte order 0, 2, 1, 3. */
static void widen_half(float *out, int64_t cols, const uint8_t *codes, int half,
                       const float value[16], const float scale[MQ_UNIT_ROWS])
{
    for (int g = 0; g < 8; g++) {
        float *low = out + g * cols, *high = low + 8 * cols, s = scale[g], s8 = scale[g + 8];
        const uint8_t *row = codes + 64 * g + 8 * half;
        for (int word = 0; word < 8; word++) { /* 16 bytes a lane, two words of this half in each */
            const uint8_t *b = row + 16 * (word / 2) + 4 * (word % 2);
            float *a = low + 4 * word, *c = high + 4 * word;
            a[0] = value[b[0] & 15] * s;
            a[1] = value[b[2] & 15] * s;
            a[2] = value[b[1] & 15] * s;
            a[3] = value[b[3] & 15] * s;
            c[0] = value[b[0] >> 4] * s8;
            c[1] = value[b[2] >> 4] * s8;
            c[2] = value[b[1] >> 4] * s8;
            c[3] = value[b[3] >> 4] * s8;
        }
    }
}

void mq_units_widen_tile(float *out, const uint8_t *tile, int64_t cols, int group)
{
    int block_cols = mq_block_cols(group), block_bytes = mq_block_bytes(group);
    float value[16], scale[MQ_UNIT_ROWS];
    for (unsigned u = 0; u < 16; u++)
        value[u] = group == MQ_GROUP_MXFP4 ? mq_e2m1_to_f32(u) : (float)((int)u - 8);
    for (int64_t c0 = 0; c0 < cols; c0 += 32) {
        int c = (int)(c0 % block_cols);
        const uint8_t *block = tile + c0 / block_cols * block_bytes;
        const uint8_t *scales = block + block_cols / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
        for (int r = 0; r < MQ_UNIT_ROWS; r++) {
            int k = mq_unit_scale_index(r, c, group);
            uint16_t bits;
            memcpy(&bits, scales + (group == MQ_GROUP_MXFP4 ? 0 : 2 * k), sizeof bits);
            scale[r] = group == MQ_GROUP_MXFP4 ? mq_e8m0_to_f32(scales[k]) : mq_bf16_to_f32(bits);
        }
        widen_half(out + c0, cols, block + c / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES, c / 32 % 2, value,
                   scale);
    }
}
