/* The packed expert layout: sizes, the column map by hand, a bijection of nibbles, and scales of every group size. */
#include "src/units.h"

#include <string.h>

#include "tests/harness.h"

static const int GROUPS[] = {32, 64, 128, MQ_GROUP_MXFP4};

START_TEST(block_and_matrix_bytes_follow_the_header)
{
    ck_assert_int_eq(mq_block_bytes(32), 512 + 2 * 16 * 2);
    ck_assert_int_eq(mq_block_bytes(64), 512 + 16 * 2);
    ck_assert_int_eq(mq_block_bytes(128), 2 * 512 + 16 * 2);
    ck_assert_int_eq(mq_block_bytes(MQ_GROUP_MXFP4), 512 + 2 * 16);
    ck_assert_int_eq(mq_units_bytes(32, 256, 64), 2 * 4 * 544);
    ck_assert_int_eq(mq_units_bytes(16, 256, 128), 2 * 1056);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(mq_block_bytes(GROUPS[i]) % 16, 0);
}
END_TEST

START_TEST(bytes_of_one_lane_are_those_of_the_mma_fragments)
{
    /* Lane 6 is g = 1, t = 2: rows 1 and 9, columns 16 .. 23 of each half. */
    ck_assert_int_eq(mq_unit_byte(1, 16), 16 * 6 + 0);
    ck_assert_int_eq(mq_unit_byte(1, 17), 16 * 6 + 2); /* columns of a word stand as 0, 2, 1, 3 */
    ck_assert_int_eq(mq_unit_byte(1, 18), 16 * 6 + 1);
    ck_assert_int_eq(mq_unit_byte(1, 19), 16 * 6 + 3);
    ck_assert_int_eq(mq_unit_byte(1, 20), 16 * 6 + 4);      /* word 1 */
    ck_assert_int_eq(mq_unit_byte(1, 32 + 16), 16 * 6 + 8); /* word 2: the other half */
    ck_assert_int_eq(mq_unit_byte(1, 32 + 23), 16 * 6 + 15);
    ck_assert_int_eq(mq_unit_byte(9, 17), mq_unit_byte(1, 17)); /* one byte, two rows */
    ck_assert_int_eq(mq_unit_shift(1), 0);
    ck_assert_int_eq(mq_unit_shift(9), 4);
    ck_assert_int_eq(mq_unit_byte(15, 63), 511);
    ck_assert_int_eq(mq_unit_byte(0, 0), 0);
}
END_TEST

START_TEST(every_nibble_of_a_unit_holds_one_weight)
{
    uint8_t seen[MQ_UNIT_CODE_BYTES] = {0};
    for (int r = 0; r < MQ_UNIT_ROWS; r++) {
        for (int c = 0; c < MQ_UNIT_COLS; c++) {
            int b = mq_unit_byte(r, c);
            uint8_t nibble = (uint8_t)(15u << mq_unit_shift(r));
            ck_assert(b >= 0 && b < MQ_UNIT_CODE_BYTES);
            ck_assert_int_eq(seen[b] & nibble, 0);
            seen[b] |= nibble;
        }
    }
    for (int i = 0; i < MQ_UNIT_CODE_BYTES; i++)
        ck_assert_int_eq(seen[i], 255);
}
END_TEST

START_TEST(every_group_has_its_own_scale)
{
    for (int i = 0; i < 4; i++) {
        int group = GROUPS[i], width = group == MQ_GROUP_MXFP4 ? 32 : group;
        int n = mq_block_cols(group) / width * MQ_UNIT_ROWS;
        int owner[64];
        memset(owner, -1, sizeof owner);
        for (int r = 0; r < MQ_UNIT_ROWS; r++) {
            for (int c = 0; c < mq_block_cols(group); c++) {
                int k = mq_unit_scale_index(r, c, group), who = r * 8 + c / width;
                ck_assert(k >= 0 && k < n);
                ck_assert(owner[k] == -1 || owner[k] == who);
                owner[k] = who;
            }
        }
        for (int k = 0; k < n; k++)
            ck_assert_int_ge(owner[k], 0);
    }
    /* order [g][group][row g, row g + 8] */
    ck_assert_int_eq(mq_unit_scale_index(0, 0, 32), 0);
    ck_assert_int_eq(mq_unit_scale_index(8, 0, 32), 1);
    ck_assert_int_eq(mq_unit_scale_index(0, 32, 32), 2);
    ck_assert_int_eq(mq_unit_scale_index(1, 0, 32), 4);
    ck_assert_int_eq(mq_unit_scale_index(9, 100, 128), 3);
}
END_TEST

static void put_code(uint8_t *units, int64_t cols, int group, int64_t r, int64_t c, unsigned code)
{
    int bc = mq_block_cols(group);
    uint8_t *block = units + r / 16 * mq_tile_bytes(cols, group) + c / bc * mq_block_bytes(group);
    uint8_t *byte = block + c % bc / 64 * 512 + mq_unit_byte((int)(r % 16), (int)(c % 64));
    *byte = (uint8_t)(*byte | code << mq_unit_shift((int)(r % 16)));
}

START_TEST(int4_weight_is_code_minus_8_times_scale)
{
    static uint8_t units[2 * 2 * 1056];
    for (int i = 0; i < 3; i++) {
        int group = GROUPS[i];
        int64_t cols = 256;
        memset(units, 0, sizeof units);
        put_code(units, cols, group, 21, 131, 15);
        int bc = mq_block_cols(group);
        uint8_t *block = units + mq_tile_bytes(cols, group) + 131 / bc * mq_block_bytes(group);
        uint16_t s = mq_f32_to_bf16(-0.5f); /* scales may be negative */
        memcpy(block + bc / 64 * 512 + 2 * mq_unit_scale_index(5, 131 % bc, group), &s, 2);
        ck_assert_float_eq(mq_units_at(units, cols, group, 21, 131), -3.5f);
        ck_assert_float_eq(mq_units_at(units, cols, group, 21, 130), 4.0f); /* code 0 is -8 */
        ck_assert_float_eq(mq_units_at(units, cols, group, 20, 131), 0.0f); /* another row, scale 0 */
    }
}
END_TEST

START_TEST(mxfp4_weight_is_e2m1_times_e8m0)
{
    static uint8_t units[544];
    memset(units, 0, sizeof units);
    put_code(units, 64, MQ_GROUP_MXFP4, 12, 40, 15);
    put_code(units, 64, MQ_GROUP_MXFP4, 12, 41, 1);
    units[512 + mq_unit_scale_index(12, 40, MQ_GROUP_MXFP4)] = 128;
    ck_assert_float_eq(mq_units_at(units, 64, MQ_GROUP_MXFP4, 12, 40), -12.0f);
    ck_assert_float_eq(mq_units_at(units, 64, MQ_GROUP_MXFP4, 12, 41), 1.0f);
    ck_assert_float_eq(mq_units_at(units, 64, MQ_GROUP_MXFP4, 12, 8), 0.0f);
}
END_TEST

START_TEST(gate_and_up_rows_interleave_by_eight)
{
    ck_assert_int_eq(mq_gate_up_row(0, 0), 0);
    ck_assert_int_eq(mq_gate_up_row(0, 1), 8);
    ck_assert_int_eq(mq_gate_up_row(7, 0), 7);
    ck_assert_int_eq(mq_gate_up_row(8, 0), 16);
    ck_assert_int_eq(mq_gate_up_row(13, 1), 29);
}
END_TEST

START_TEST(a_tile_widened_at_once_equals_its_weights_one_by_one)
{
    static const int groups[] = {32, 64, 128, MQ_GROUP_MXFP4};
    enum { COLS = 256 };
    uint8_t units[4 * 1056];
    float tile[16 * COLS];
    uint64_t state = 11;
    for (int k = 0; k < 4; k++) {
        int group = groups[k];
        for (size_t i = 0; i < sizeof units; i++)
            units[i] = (uint8_t)(mq_test_rand(&state) & 0x7f); /* no NaN among the scales */
        mq_units_widen_tile(tile, units, COLS, group);
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < COLS; c++) {
                float want = mq_units_at(units, COLS, group, r, c);
                ck_assert_msg(memcmp(&tile[r * COLS + c], &want, sizeof want) == 0,
                              "group %d, row %d, column %d", group, r, c);
            }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("units");
    TCase *t = tcase_create("layout");
    tcase_add_test(t, block_and_matrix_bytes_follow_the_header);
    tcase_add_test(t, bytes_of_one_lane_are_those_of_the_mma_fragments);
    tcase_add_test(t, every_nibble_of_a_unit_holds_one_weight);
    tcase_add_test(t, every_group_has_its_own_scale);
    tcase_add_test(t, int4_weight_is_code_minus_8_times_scale);
    tcase_add_test(t, mxfp4_weight_is_e2m1_times_e8m0);
    tcase_add_test(t, gate_and_up_rows_interleave_by_eight);
    tcase_add_test(t, a_tile_widened_at_once_equals_its_weights_one_by_one);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
