/* The CUDA device: what it refuses and says, memory, copies, and that every operation of the table is there. */
#include "tests/kernels/cuda_test.h"

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

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_device");
    TCase *t = tcase_create("all");
    tcase_add_test(t, every_operation_is_there);
    tcase_add_test(t, the_emulator_has_no_public_name);
    tcase_add_test(t, memory_is_zeroed_and_copies_come_back);
    tcase_add_test(t, what_is_not_there_is_refused);
    tcase_add_test(t, old_gpus_are_refused_by_name);
    tcase_add_test(t, failures_of_the_device_come_back_with_its_words);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
