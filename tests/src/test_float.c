/* Every code of every small format against a computation in double that shares nothing with
 * float.h. */
#include "src/float.h"

#include <float.h>

#include "tests/harness.h"

/* Value of the low bits of c read as sign, n_exp, n_man with the given bias, by powers of two in
 * double.  top: what the all-ones exponent means. */
enum top_exponent { TOP_IEEE, TOP_NUMBER };
static double decode(unsigned c, int n_exp, int n_man, int bias, enum top_exponent top)
{
    unsigned man = c & ((1u << n_man) - 1u), exp = c >> n_man & ((1u << n_exp) - 1u);
    double sign = c >> (n_exp + n_man) & 1u ? -1.0 : 1.0, frac = ldexp((double)man, -n_man);
    if (top == TOP_IEEE && exp == (1u << n_exp) - 1u)
        return man ? (double)NAN : sign * (double)INFINITY;
    return exp ? sign * ldexp(1.0 + frac, (int)exp - bias) : sign * ldexp(frac, 1 - bias);
}

/* Equal as numbers, with the sign of zero, or both NaN. */
static int same(float got, double want)
{
    if (isnan(want))
        return isnan(got);
    return (double)got == want && !signbit(got) == !signbit(want);
}

START_TEST(all_bf16_patterns_widen_and_come_back)
{
    for (unsigned c = 0; c < 65536; c++) {
        float x = mq_bf16_to_f32((uint16_t)c);
        if (!same(x, decode(c, 8, 7, 127, TOP_IEEE)))
            ck_abort_msg("0x%04x gives %a", c, (double)x);
        unsigned back = mq_f32_to_bf16(x), want = isnan(x) ? c | 0x40u : c;
        if (back != want)
            ck_abort_msg("0x%04x comes back as 0x%04x", c, back);
    }
}
END_TEST

START_TEST(rounding_to_bf16_takes_the_nearest_and_even_on_ties)
{
    /* Between every two neighbours: below the middle, the middle, above it; both signs. */
    for (unsigned c = 0; c < 0x7f80; c++) {
        uint32_t low = c << 16;
        for (uint32_t sign = 0; sign < 2; sign++) {
            uint32_t s = sign << 31;
            unsigned s16 = sign << 15, up = c + 1;
            ck_assert_uint_eq(mq_f32_to_bf16(mq_f32_from_bits(s | low | 0x7fffu)), s16 | c);
            ck_assert_uint_eq(mq_f32_to_bf16(mq_f32_from_bits(s | low | 0x8000u)),
                              s16 | (c & 1u ? up : c));
            ck_assert_uint_eq(mq_f32_to_bf16(mq_f32_from_bits(s | low | 0x8001u)), s16 | up);
        }
    }
    ck_assert_uint_eq(mq_f32_to_bf16(FLT_MAX), 0x7f80u); /* overflow goes to infinity */
    ck_assert_uint_eq(mq_f32_to_bf16(-FLT_MAX), 0xff80u);
    ck_assert_uint_eq(mq_f32_to_bf16(INFINITY), 0x7f80u);
}
END_TEST

START_TEST(rounding_to_bf16_agrees_with_double_on_noise)
{
    uint64_t seed = 1;
    for (int i = 0; i < 200000; i++) {
        float x = mq_f32_from_bits((uint32_t)mq_test_rand(&seed));
        if (!isfinite(x) || fabsf(x) > 0x1.fep127f)
            continue;
        /* One unit in the last of 8 bits, no finer than the subnormal step 2^-133; rint rounds ties
         * to even. */
        int e;
        frexp((double)x, &e);
        int step = e - 8 < -133 ? -133 : e - 8;
        double want = ldexp(rint(ldexp((double)x, -step)), step);
        if (!same(mq_bf16_to_f32(mq_f32_to_bf16(x)), want))
            ck_abort_msg("%a", (double)x);
    }
}
END_TEST

START_TEST(a_nan_stays_a_quiet_nan_with_its_sign)
{
    static const uint32_t nans[] = {0x7f800001u, 0x7f80ffffu, 0x7fffffffu, 0x7fc00000u};
    for (int i = 0; i < 4; i++) {
        ck_assert_uint_eq(mq_f32_to_bf16(mq_f32_from_bits(nans[i])) & 0xffc0u, 0x7fc0u);
        ck_assert_uint_eq(mq_f32_to_bf16(mq_f32_from_bits(nans[i] | 0x80000000u)) & 0xffc0u,
                          0xffc0u);
    }
}
END_TEST

START_TEST(all_f16_patterns_widen)
{
    for (unsigned c = 0; c < 65536; c++)
        if (!same(mq_f16_to_f32((uint16_t)c), decode(c, 5, 10, 15, TOP_IEEE)))
            ck_abort_msg("0x%04x gives %a", c, (double)mq_f16_to_f32((uint16_t)c));
}
END_TEST

START_TEST(all_e4m3_codes)
{
    for (unsigned c = 0; c < 256; c++) {
        double want = (c & 0x7f) == 0x7f ? (double)NAN : decode(c, 4, 3, 7, TOP_NUMBER);
        if (!same(mq_e4m3_to_f32((uint8_t)c), want))
            ck_abort_msg("0x%02x gives %a", c, (double)mq_e4m3_to_f32((uint8_t)c));
    }
    ck_assert_float_eq(mq_e4m3_to_f32(0x7e), 448.0f);
    ck_assert_float_eq(mq_e4m3_to_f32(0x01), 0x1p-9f);
}
END_TEST

START_TEST(all_e8m0_codes)
{
    for (int b = 0; b < 255; b++)
        ck_assert(same(mq_e8m0_to_f32((uint8_t)b), ldexp(1.0, b - 127)));
    ck_assert(isnan(mq_e8m0_to_f32(255)));
}
END_TEST

START_TEST(all_e2m1_codes)
{
    for (unsigned c = 0; c < 16; c++)
        ck_assert(same(mq_e2m1_to_f32(c), decode(c, 2, 1, 1, TOP_NUMBER)));
    ck_assert_float_eq(mq_e2m1_to_f32(7), 6.0f);
}
END_TEST

START_TEST(bits_and_back)
{
    ck_assert_uint_eq(mq_f32_bits(1.0f), 0x3f800000u);
    ck_assert_uint_eq(mq_f32_bits(-0.0f), 0x80000000u);
    ck_assert_float_eq(mq_f32_from_bits(0xc0490fdbu), -0x1.921fb6p+1f);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("float");
    TCase *t = tcase_create("float");
    tcase_add_test(t, all_bf16_patterns_widen_and_come_back);
    tcase_add_test(t, rounding_to_bf16_takes_the_nearest_and_even_on_ties);
    tcase_add_test(t, rounding_to_bf16_agrees_with_double_on_noise);
    tcase_add_test(t, a_nan_stays_a_quiet_nan_with_its_sign);
    tcase_add_test(t, all_f16_patterns_widen);
    tcase_add_test(t, all_e4m3_codes);
    tcase_add_test(t, all_e8m0_codes);
    tcase_add_test(t, all_e2m1_codes);
    tcase_add_test(t, bits_and_back);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
