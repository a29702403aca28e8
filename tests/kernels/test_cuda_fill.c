/* Filled matrices: values by hand, moments, slices that are cuts of the whole, equal bytes on CPU and CUDA; sums of words. */
#include "src/dtype.h"
#include "tests/kernels/cuda_test.h"

static int64_t n_bytes(const mq_fill *f)
{
    mq_fill_span s = mq_fill_span_of(f);
    return s.n_rows * s.row_bytes;
}

/* f filled on the CPU by n_threads; the caller frees it. */
static uint8_t *filled(const mq_fill *f, int n_threads)
{
    mq_dev *dev;
    mq_assert_ok(cpu->dev_open(&dev, 0, n_threads, NULL, &err), &err);
    uint8_t *out = malloc((size_t)n_bytes(f) + 1);
    ck_assert_ptr_nonnull(out);
    out[n_bytes(f)] = 0xa5;
    mq_assert_ok(cpu->fill(dev, out, f, &err), &err);
    ck_assert_int_eq(out[n_bytes(f)], 0xa5);
    cpu->dev_close(dev);
    return out;
}

START_TEST(words_are_splitmix64s)
{
    /* the generator's published outputs for seed 1234567 */
    ck_assert_uint_eq(mq_fill_hash(1234567, 0), 6457827717110365317u);
    ck_assert_uint_eq(mq_fill_hash(1234567, 1), 3203168211198807973u);
    mq_fill f = {.kind = MQ_FILL_CONSTANT, .scale = 1.0f, .rows = 1, .cols = 3, .whole_cols = 3};
    float *ones = (float *)(void *)filled(&f, 1);
    ck_assert(ones[0] == 1.0f && ones[1] == 1.0f && ones[2] == 1.0f);
    free(ones);
    /* the ends of every range */
    ck_assert(mq_f32_from_bits((uint32_t)mq_fill_f32(0, 2.0f)) == -2.0f + 0x1p-23f);
    ck_assert(mq_f32_from_bits((uint32_t)mq_fill_f32(0xffffffffu, 2.0f)) == 2.0f - 0x1p-23f);
    ck_assert(mq_f32_from_bits((uint32_t)mq_fill_f32_up(0, 2.0f)) == 1.0f);
    ck_assert(mq_f32_from_bits((uint32_t)mq_fill_f32_up(0xffffffffu, 2.0f)) < 3.0f);
    ck_assert(mq_bf16_to_f32((uint16_t)mq_fill_bf16(1 << 15, 1.0f)) == 0x1p-16f);
    ck_assert(mq_bf16_to_f32((uint16_t)mq_fill_int4_scale(1 << 14, 1.0f)) == 1.0f);
    ck_assert(mq_bf16_to_f32((uint16_t)mq_fill_int4_scale(0xc000, 1.0f)) == -1.0f);
}
END_TEST

/* A matrix of kind as a view of bytes. */
static mq_matrix view_of(const mq_fill *f, const uint8_t *bytes)
{
    static const mq_scheme schemes[] = {[MQ_FILL_CONSTANT] = MQ_SCHEME_F32, [MQ_FILL_F32] = MQ_SCHEME_F32,
                                        [MQ_FILL_F32_UP] = MQ_SCHEME_F32,   [MQ_FILL_BF16] = MQ_SCHEME_BF16,
                                        [MQ_FILL_E4M3] = MQ_SCHEME_FP8_BLOCK, [MQ_FILL_INT4] = MQ_SCHEME_INT4,
                                        [MQ_FILL_MXFP4] = MQ_SCHEME_MXFP4};
    static const float ones[64] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    mq_matrix m = {.scheme = schemes[f->kind], .rows = f->rows, .cols = f->cols, .data = bytes, .group = f->group};
    if (f->kind == MQ_FILL_E4M3) {
        m.scale = ones;
        m.seg_rows = f->rows;
    }
    return m;
}

static const mq_fill kinds[] = {
    {.kind = MQ_FILL_CONSTANT, .scale = 0.5f},
    {.kind = MQ_FILL_F32, .scale = 0.25f},
    {.kind = MQ_FILL_F32_UP, .scale = 0.25f},
    {.kind = MQ_FILL_BF16, .scale = 0.25f},
    {.kind = MQ_FILL_E4M3},
    {.kind = MQ_FILL_INT4, .group = 32, .scale = 0.01f},
    {.kind = MQ_FILL_INT4, .group = 64, .scale = 0.01f},
    {.kind = MQ_FILL_INT4, .group = 128, .scale = 0.01f},
    {.kind = MQ_FILL_MXFP4, .group = MQ_GROUP_MXFP4, .scale = 0x1p-7f},
};
enum { N_KINDS = sizeof kinds / sizeof kinds[0] };

static bool is_units(const mq_fill *f)
{
    return f->kind == MQ_FILL_INT4 || f->kind == MQ_FILL_MXFP4;
}

START_TEST(moments_are_those_promised)
{
    enum { ROWS = 128, COLS = 256 };
    static const double rms[N_KINDS] = {0.5,
                                        0.25 / 1.7320508,
                                        0.25 * MQ_FILL_UP_RMS,
                                        0.25 / 1.7320508,
                                        MQ_FILL_E4M3_RMS,
                                        0.01 * MQ_FILL_UP_RMS *MQ_FILL_INT4_RMS,
                                        0.01 * MQ_FILL_UP_RMS *MQ_FILL_INT4_RMS,
                                        0.01 * MQ_FILL_UP_RMS *MQ_FILL_INT4_RMS,
                                        0x1p-7 * 0.790569 * MQ_FILL_E2M1_RMS};
    float *w = floats(ROWS * COLS);
    for (int k = 0; k < N_KINDS; k++) {
        mq_fill f = kinds[k];
        f.key = mq_fill_key(7, k, 1, 2);
        f.rows = ROWS;
        f.cols = f.whole_cols = COLS;
        uint8_t *bytes = filled(&f, 1);
        mq_matrix m = view_of(&f, bytes);
        mq_assert_ok(mq_matrix_check(&m, &err), &err);
        mq_matrix_widen(&m, 0, ROWS, w);
        double sum = 0, sum2 = 0;
        for (int i = 0; i < ROWS * COLS; i++) {
            ck_assert(isfinite(w[i]));
            sum += w[i];
            sum2 += (double)w[i] * w[i];
        }
        double got = sqrt(sum2 / (ROWS * COLS)), mean = sum / (ROWS * COLS);
        /* 32768 draws (scales of groups: 256 at least): a few standard errors */
        ck_assert_msg(fabs(got / rms[k] - 1) < 0.02, "kind %d: rms %g, expected %g", k, got, rms[k]);
        if (f.kind != MQ_FILL_CONSTANT && f.kind != MQ_FILL_F32_UP)
            ck_assert_msg(fabs(mean) < 0.03 * rms[k], "kind %d: mean %g", k, mean);
        free(bytes);
    }
    free(w);
}
END_TEST

/* Rows and columns of a slice, aligned for units; odd otherwise. */
static mq_fill slice_of(const mq_fill *kind, int i)
{
    static const int64_t odd[][5] = {{7, 33, 0, 0, 33}, {5, 13, 3, 7, 41}, {1, 1, 2, 9, 10}, {3, 8, 1, 3, 0}, {2, 0, 0, 0, 8}};
    static const int64_t even[][5] = {{32, 256, 0, 0, 256}, {16, 128, 32, 128, 384}, {48, 128, 16, 0, 128}, {16, 256, 0, 128, 512}, {0, 128, 0, 0, 128}};
    const int64_t *v = is_units(kind) ? even[i] : odd[i];
    mq_fill f = *kind;
    f.key = mq_fill_key(3, i, 0, 0);
    f.rows = v[0], f.cols = v[1], f.row0 = v[2], f.col0 = v[3], f.whole_cols = v[4];
    return f;
}

START_TEST(a_slice_is_a_cut_of_the_whole)
{
    float *a = floats(64 * 512), *b = floats(64 * 512);
    for (int k = 0; k < N_KINDS; k++)
        for (int i = 0; i < 4; i++) {
            mq_fill part = slice_of(&kinds[k], i), whole = part;
            if (!part.whole_cols)
                continue;
            whole.rows = part.row0 + part.rows, whole.cols = whole.whole_cols;
            whole.row0 = whole.col0 = 0;
            uint8_t *p = filled(&part, 1), *w = filled(&whole, 3);
            mq_matrix mp = view_of(&part, p), mw = view_of(&whole, w);
            mq_matrix_widen(&mp, 0, part.rows, a);
            mq_matrix_widen(&mw, part.row0, part.rows, b);
            for (int64_t r = 0; r < part.rows; r++)
                ck_assert_msg(same_bytes(a + r * part.cols, b + r * whole.cols + part.col0, 4 * part.cols),
                              "kind %d, slice %d, row %d", k, i, (int)r);
            free(p);
            free(w);
        }
    free(a);
    free(b);
}
END_TEST

START_TEST(rows_are_equal_without_a_stride)
{
    mq_fill f = slice_of(&kinds[2], 3);
    float *w = (float *)(void *)filled(&f, 1);
    ck_assert(same_bytes(w, w + 8, 32) && same_bytes(w, w + 16, 32) && w[0] != w[1]);
    free(w);
}
END_TEST

START_TEST(cuda_writes_the_same_bytes)
{
    for (int k = 0; k < N_KINDS; k++)
        for (int i = 0; i < 5; i++)
            for (int off = 0; off < 3; off++) { /* addresses that are not multiples of 8 */
                mq_fill f = slice_of(&kinds[k], i);
                int64_t n = n_bytes(&f), first = 4 * off;
                uint8_t *want = filled(&f, 1), *got = malloc((size_t)n + 32);
                ck_assert_ptr_nonnull(got);
                memset(got, 0x5a, (size_t)n + 32);
                uint8_t *d = put(got, n + 32);
                mq_assert_ok(gpu->fill(gpu_dev, d + first, &f, &err), &err);
                take(got, d, n + 32);
                ck_assert_msg(same_bytes(got + first, want, n), "kind %d, slice %d, offset %d", k, i, (int)first);
                for (int64_t j = 0; j < n + 32; j++)
                    ck_assert(j >= first && j < first + n ? true : got[j] == 0x5a);
                free(want);
                free(got);
            }
}
END_TEST

START_TEST(words_are_summed_on_top)
{
    static const int64_t sizes[] = {0, 1, 2, 3, 1023, 1024, 1025, 40000, 65537};
    enum { MOST = 65537 };
    mq_fill f = {.kind = MQ_FILL_E4M3, .key = 1, .rows = 1, .cols = 8 * MOST, .whole_cols = 8 * MOST};
    uint8_t *bytes = filled(&f, 2);
    const uint64_t *words = (const uint64_t *)(const void *)bytes;
    void *d = put(bytes, 8 * MOST);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint64_t want = 5, sums[2] = {5, 5};
        for (int64_t j = 0; j < sizes[i]; j++)
            want += words[j];
        uint64_t *ds = put(sums, sizeof sums[0]);
        mq_assert_ok(gpu->sum_words(gpu_dev, ds, d, sizes[i], &err), &err);
        mq_assert_ok(cpu->sum_words(cpu_dev, &sums[1], bytes, sizes[i], &err), &err);
        take(&sums[0], ds, sizeof sums[0]);
        ck_assert_msg(sums[0] == want && sums[1] == want, "%d words", (int)sizes[i]);
    }
    drop(d);
    free(bytes);
}
END_TEST

START_TEST(clocks_are_not_negative)
{
    int core = -1, memory = -1;
    gpu->dev_clocks(gpu_dev, &core, &memory);
    ck_assert(core >= 0 && memory >= 0);
    core = memory = -1;
    cpu->dev_clocks(cpu_dev, &core, &memory);
    ck_assert(core >= 0 && memory == 0);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *s = suite_create("cuda_fill");
    TCase *t = tcase_create("all");
    tcase_add_test(t, words_are_splitmix64s);
    tcase_add_test(t, moments_are_those_promised);
    tcase_add_test(t, a_slice_is_a_cut_of_the_whole);
    tcase_add_test(t, rows_are_equal_without_a_stride);
    tcase_add_test(t, cuda_writes_the_same_bytes);
    tcase_add_test(t, words_are_summed_on_top);
    tcase_add_test(t, clocks_are_not_negative);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, make_suite);
}
