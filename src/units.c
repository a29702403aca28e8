/* The packed expert layout, read one weight at a time.
 *
 * The slow definition behind src/units.h: tests hold the packer and the kernels against it.  The address of a
 * weight is computed from the header's inline functions only, so that nothing here can drift from them. */
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
