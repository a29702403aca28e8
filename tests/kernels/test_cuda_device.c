/* The CUDA device: what it refuses and says, memory, copies, and that every operation of the table is there. */
#include "tests/kernels/cuda_test.h"
#include "tests/maker/calibration_data.h"

START_TEST(every_operation_is_there)
{
    /* after the name the table is function pointers alone */
    enum { N = (sizeof(mq_kernels) - offsetof(mq_kernels, dev_open)) / sizeof(void *) };
    for (int i = 0; i < N; i++) {
        void *p;
        memcpy(&p, (const char *)gpu + offsetof(mq_kernels, dev_open) + (size_t)i * sizeof p, sizeof p);
        ck_assert_msg(p != NULL, "operation %d of %d is missing", i, (int)N);
    }
    ck_assert_str_eq(gpu->name, "cuda");
}
END_TEST

START_TEST(the_emulator_has_no_public_name)
{
    if (is_emulated)
        ck_assert(mq_kernels_find("cuda") != gpu && !mq_kernels_find("cuda-emulated"));
}
END_TEST

START_TEST(memory_is_zeroed_and_copies_come_back)
{
    unsigned char back[257], pattern[257];
    for (int n = 0; n <= 257; n += 257) {
        void *p = put(NULL, n);
        ck_assert((uintptr_t)p % 64 == 0);
        memset(back, 1, sizeof back);
        mq_assert_ok(gpu->download(gpu_dev, back, p, n, &err), &err);
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(back[i], 0);
        for (int i = 0; i < n; i++)
            pattern[i] = (unsigned char)(i * 7);
        mq_assert_ok(gpu->upload(gpu_dev, p, pattern, n, &err), &err);
        void *q = put(NULL, n);
        mq_assert_ok(gpu->copy(gpu_dev, q, p, n, &err), &err);
        take(back, q, n);
        ck_assert(same_bytes(back, pattern, n));
        take(back, p, n);
        ck_assert(same_bytes(back, pattern, n));
    }
    gpu->release(gpu_dev, NULL);
    gpu->dev_close(NULL);
}
END_TEST

START_TEST(what_is_not_there_is_refused)
{
    mq_dev *dev;
    void *p;
    mq_assert_fails(gpu->dev_open(&dev, 99, 0, NULL, &err), MQ_E_DEVICE, &err, "cuda 99: no such GPU");
    ck_assert(!dev);
    mq_assert_fails(gpu->dev_open(&dev, -1, 0, NULL, &err), MQ_E_DEVICE, &err, "cuda -1");
    mq_assert_fails(gpu->dev_open(&dev, 0, 0, "avx2", &err), MQ_E_ARG, &err, "avx2");
    mq_assert_fails(gpu->alloc(gpu_dev, &p, (int64_t)1 << 50, &err), MQ_E_NOMEM, &err, "out of memory (1125899906842624 bytes)");
    ck_assert(!p);
    p = put(NULL, 4); /* and goes on */
    drop(p);
}
END_TEST

START_TEST(the_library_says_its_version)
{
    char text[64];
    int v[3];
    mq_assert_ok(gpu->library(gpu_dev, text, sizeof text, &err), &err);
    ck_assert_int_eq(sscanf(text, "cuBLAS %d.%d.%d", &v[0], &v[1], &v[2]), 3);
    if (is_emulated)
        ck_assert_str_eq(text, "cuBLAS 1.2.3");
    char cut[7];
    mq_assert_ok(gpu->library(gpu_dev, cut, sizeof cut, &err), &err);
    ck_assert_str_eq(cut, "cuBLAS");
}
END_TEST

START_TEST(old_gpus_are_refused_by_name)
{
    mq_dev *dev;
    if (!is_emulated)
        return;
    mq_emulator_set_capability(7, 5);
    mq_assert_fails(gpu->dev_open(&dev, 0, 0, NULL, &err), MQ_E_DEVICE, &err,
                    "cuda 0: emulated GPU has compute capability 7.5, expected 8.0 or later");
    mq_emulator_set_capability(8, 0);
    mq_assert_ok(gpu->dev_open(&dev, 0, 0, NULL, &err), &err);
    gpu->dev_close(dev);
    mq_emulator_set_capability(9, 0);
}
END_TEST

START_TEST(failures_of_the_device_come_back_with_its_words)
{
    mq_dev *dev;
    void *p;
    if (!is_emulated)
        return;
    mq_assert_ok(gpu->dev_open(&dev, 0, 0, NULL, &err), &err);
    mq_assert_ok(gpu->alloc(dev, &p, 64 * 4, &err), &err);
    mq_emulator_fail_launch(1);
    mq_assert_fails(gpu->add(dev, p, p, 64, &err), MQ_E_DEVICE, &err, "cuda 0: add: invalid argument");
    mq_assert_ok(gpu->add(dev, p, p, 64, &err), &err);
    mq_emulator_fail_allocation(1);
    mq_logit_stats stats;
    int32_t *target = p;
    mq_assert_fails(gpu->logit_stats(dev, &stats, p, NULL, target, 1, 64, &err), MQ_E_NOMEM, &err, "cuda 0: out of memory");
    mq_assert_ok(gpu->logit_stats(dev, &stats, p, NULL, target, 1, 64, &err), &err);
    gpu->release(dev, p);
    gpu->dev_close(dev);
}
END_TEST

/* Every operation that keeps memory, on weights [rows, cols]. */
static void run_all(mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n)
{
    enum { MOST = 600 };
    int64_t count = MOST * MOST;
    float *ones = floats(count), *a = put_floats(NULL, count), *d = put_floats(NULL, count);
    int32_t *order = random_permutation(MOST, 1);
    for (int64_t i = 0; i < count; i++)
        ones[i] = 1.0f;
    float *x = put_floats(ones, count), *y = put_floats(ones, count), *g = put_floats(NULL, count);
    uint8_t *codes = put(NULL, count);
    int32_t *perm = put(NULL, MOST * 4);
    for (int64_t i = 0; i < cols; i++)
        order[i] = (int32_t)i;
    mq_assert_ok(gpu->upload(dev, perm, order, cols * 4, &err), &err);
    mq_matrix m = {.scheme = MQ_SCHEME_BF16, .rows = rows, .cols = cols, .data = x};
    mq_assert_ok(gpu->linear(dev, y, x, &m, n, &err), &err);
    mq_assert_ok(gpu->gram(dev, g, x, x, n, cols, &err), &err);
    mq_assert_ok(gpu->cross(dev, a, x, x, x, n, cols, cols, &err), &err);
    mq_assert_ok(gpu->set_diag(dev, g, x, cols, &err), &err);
    mq_assert_ok(gpu->axpby(dev, g, 0.0f, NULL, 0.0f, count, &err), &err);
    mq_assert_ok(gpu->factor(dev, a, d, g, perm, 1.0f, cols, &err), &err);
    mq_assert_ok(gpu->ldlq(dev, codes, y, x, x, a, d, perm, rows, cols, group, &err), &err);
    mq_assert_ok(gpu->solve(dev, y, x, a, d, perm, rows, cols, &err), &err);
    mq_assert_ok(gpu->quant_loss(dev, y, NULL, codes, x, x, g, rows, cols, group, &err), &err);
    mq_assert_ok(gpu->refit_scales(dev, x, y, codes, y, g, rows, cols, group, &err), &err);
    mq_assert_ok(gpu->descend(dev, codes, y, x, x, g, 0, rows, cols, group, &err), &err);
    const void *all[] = {a, d, x, y, g, codes, perm};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        drop(all[i]);
    free(ones);
    free(order);
}

START_TEST(calibration_holds_no_more_than_it_says)
{
    static const struct {
        int64_t rows, cols, n;
        int group;
    } s[] = {{128, 256, 100, 32}, {32, 32, 9, 32}, {64, 128, 300, 64}};
    const int64_t CUBLAS_BYTES = 64 << 20;
    for (size_t i = 0; is_emulated && i < sizeof s / sizeof s[0]; i++) {
        mq_dev *dev;
        int64_t before = mq_emulator_allocated();
        mq_assert_ok(gpu->dev_open(&dev, 0, 0, NULL, &err), &err);
        run_all(dev, s[i].rows, s[i].cols, s[i].group, s[i].n);
        run_all(dev, s[i].cols, s[i].rows, s[i].group, s[i].n);
        int64_t held = mq_emulator_allocated() - before;
        int64_t bound = gpu->calibration_bytes(dev, s[i].rows, s[i].cols, s[i].group, s[i].n) - CUBLAS_BYTES;
        ck_assert_msg(held > 0 && held <= bound, "%lld held, bound %lld", (long long)held, (long long)bound);
        gpu->dev_close(dev);
        ck_assert(mq_emulator_allocated() == before);
    }
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_device");
    TCase *t = tcase_create("all");
    tcase_add_test(t, every_operation_is_there);
    tcase_add_test(t, the_emulator_has_no_public_name);
    tcase_add_test(t, memory_is_zeroed_and_copies_come_back);
    tcase_add_test(t, what_is_not_there_is_refused);
    tcase_add_test(t, the_library_says_its_version);
    tcase_add_test(t, old_gpus_are_refused_by_name);
    tcase_add_test(t, failures_of_the_device_come_back_with_its_words);
    tcase_add_test(t, calibration_holds_no_more_than_it_says);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
