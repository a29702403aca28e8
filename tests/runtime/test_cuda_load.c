/* Loading packed models into a GPU's memory: the bytes of a load into host memory, through page-locked buffers; a GPU that is too
 * small is refused before anything is read.
 *
 * In the emulator the device's memory is closed to the host outside kernels and copies.  With MQ_TEST_DEVICE=cuda on GPU 0, or
 * 77 where there is none. */
#include <unistd.h>

#include "runtime/engine.h"
#include "tests/emulator/emulator.h"
#include "tests/runtime/load_fixture.h"

static const mq_kernels *gpu;
static bool is_real;
static mq_dev *dev;
static mq_err err;

static void loaded_equals_host(const char *dir, int n_ranks, mq_load_io io)
{
    mq_store_options o = {.resident = true, .n_ranks = n_ranks, .n_threads = 3, .check = true, .io = io};
    fix_side host = {NULL, NULL, NULL}, device = {NULL, gpu, dev};
    mq_assert_ok(mq_store_open(&host.store, dir, &o, &err), &err);
    o.kernels = gpu;
    o.dev = dev;
    mq_assert_ok(mq_store_open(&device.store, dir, &o, &err), &err);
    fix_same_store(&host, &device);
    mq_load_figures f = mq_store_loaded(device.store);
    ck_assert(f.n_records > 0 && f.n_checked == f.n_records);
    mq_store_close(host.store);
    mq_store_close(device.store);
}

START_TEST(the_bytes_are_those_of_the_host)
{
    const char *plain = fix_model("nano", 2, 32, 0), *packed = fix_model("nano", 2, 64, 1);
    for (int n_ranks = 1; n_ranks <= 2; n_ranks++) {
        loaded_equals_host(plain, n_ranks, MQ_LOAD_DIRECT);
        loaded_equals_host(plain, n_ranks, MQ_LOAD_BUFFERED);
        loaded_equals_host(packed, n_ranks, MQ_LOAD_AUTO);
    }
}
END_TEST

START_TEST(records_larger_than_a_block_and_merges)
{
    mq_maker m;
    mq_maker_packed p = {.n_ranks = 2, .group = 64, .n_threads = 2};
    ck_assert(mq_maker_preset(&m, "nano"));
    m.layers = 2;
    m.vocab = 40000; /* a head slice of 5 MB */
    for (p.zstd_level = 0; p.zstd_level < 2; p.zstd_level++) {
        const char *dir = mq_test_dir();
        mq_assert_ok(mq_maker_write_packed(&m, &p, dir, NULL, &err), &err);
        loaded_equals_host(dir, 2, MQ_LOAD_AUTO);
        loaded_equals_host(dir, 1, MQ_LOAD_DIRECT);
    }
}
END_TEST

/* A table whose device has little memory, or whose copies fail. */
static int64_t room;
static _Atomic int n_uploads; /* that are still done */

static mq_status little_memory(mq_dev *d, int64_t *free_bytes, int64_t *total_bytes, mq_err *e)
{
    (void)d;
    (void)e;
    *free_bytes = room;
    *total_bytes = 2 * room;
    return MQ_OK;
}

static mq_status failing_upload(mq_dev *d, void *dst, const void *src, int64_t n_bytes, mq_fence *f, mq_err *e)
{
    if (n_uploads-- <= 0)
        return mq_fail(e, MQ_E_DEVICE, "cuda 0: upload: made to fail");
    return gpu->upload_async(d, dst, src, n_bytes, f, e);
}

START_TEST(a_gpu_too_small_is_refused_with_both_numbers)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    mq_kernels small = *gpu;
    mq_store *s;
    char text[256];
    small.memory = little_memory;
    mq_store_options o = {.n_ranks = 2, .n_threads = 2, .check = true, .kernels = &small, .dev = dev};
    mq_assert_ok(mq_store_open(&s, dir, &o, &err), &err);
    long long weights = (long long)mq_store_resident_bytes(s), need = weights - 4 * mq_store_model(s)->hidden;
    room = need;
    mq_assert_ok(mq_store_check_room(s, 0, &err), &err);
    mq_assert_fails(mq_store_check_room(s, 1, &err), MQ_E_NOMEM, &err, "bytes of memory are needed");
    room = need - 1;
    snprintf(text, sizeof text, "%lld bytes of memory are needed, %lld of %lld are free; weights are %lld bytes, %lld a rank (2 ranks)",
             need, (long long)room, (long long)(2 * room), weights, (weights + 1) / 2);
    mq_assert_fails(mq_store_load(s, &err), MQ_E_NOMEM, &err, text);
    mq_store_close(s);

    mq_engine *e;
    mq_engine_options eo = {.n_ranks = 2, .n_threads = 2, .context = 64, .prefill_rows = 16};
    mq_assert_fails(mq_engine_open(&e, dir, &small, &eo, &err), MQ_E_NOMEM, &err, "a rank (2 ranks)");
    ck_assert_ptr_null(e);
}
END_TEST

START_TEST(failures_of_the_device_end_the_load)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    int64_t before = is_real ? 0 : mq_emulator_allocated();
    mq_kernels failing = *gpu;
    failing.upload_async = failing_upload;
    mq_store_options o = {.resident = true, .n_ranks = 1, .n_threads = 3, .check = true, .kernels = &failing, .dev = dev};
    for (int allowed = 0;; allowed += 23) {
        mq_store *s;
        n_uploads = allowed;
        mq_status st = mq_store_open(&s, dir, &o, &err);
        if (st == MQ_OK) {
            mq_store_close(s);
            break;
        }
        ck_assert_msg(st == MQ_E_DEVICE && strstr(err.text, "made to fail"), "%s", err.text);
        ck_assert_ptr_null(s);
        ck_assert(is_real || mq_emulator_allocated() == before);
    }
    for (int i = 1; !is_real && i < 6; i++) {
        mq_store *s;
        o.kernels = gpu;
        mq_emulator_fail_allocation(i);
        mq_assert_fails(mq_store_open(&s, dir, &o, &err), MQ_E_NOMEM, &err, "out of memory");
        ck_assert(mq_emulator_allocated() == before);
    }
}
END_TEST

/* The second device fails at once, the first one is slow. */
static mq_status uneven_upload(mq_dev *d, void *dst, const void *src, int64_t n_bytes, mq_fence *f, mq_err *e)
{
    if (strncmp(gpu->dev_name(d), "cuda 1", 6) == 0)
        return mq_fail(e, MQ_E_DEVICE, "cuda 1: upload: made to fail");
    usleep(2000);
    return gpu->upload_async(d, dst, src, n_bytes, f, e);
}

static void note_progress(void *ctx, int64_t done, int64_t total)
{
    int64_t *seen = ctx;
    seen[0] = done;
    seen[1] = total;
}

static bool never_mind(void)
{
    return true;
}

START_TEST(a_device_that_fails_ends_the_loads_of_the_others)
{
    static const int ordinals[] = {0, 1};
    const char *dir = fix_model("nano", 2, 64, 0);
    mq_kernels uneven = *gpu;
    mq_engine *e;
    int64_t seen[2] = {0, 0};
    mq_engine_options o = {.n_ranks = 2, .n_threads = 1, .context = 64, .prefill_rows = 16, .ordinals = ordinals, .n_devices = 2,
                           .progress = note_progress, .progress_ctx = seen};
    if (is_real && mq_cuda_count() < 2)
        return;
    uneven.upload_async = uneven_upload;
    mq_assert_fails(mq_engine_open(&e, dir, &uneven, &o, &err), MQ_E_DEVICE, &err, "cuda 1: upload: made to fail");
    ck_assert_ptr_null(e);
    ck_assert(seen[0] == 0 || seen[0] < seen[1] / 2);
    o.stopped = never_mind;
    mq_assert_fails(mq_engine_open(&e, dir, gpu, &o, &err), MQ_E_STOPPED, &err, "stopped");
}
END_TEST

START_TEST(fences_and_host_memory)
{
    enum { N = 5000 };
    void *host, *p;
    mq_fence *f;
    uint8_t back[N];
    int64_t free_bytes, total_bytes;
    mq_assert_ok(gpu->memory(dev, &free_bytes, &total_bytes, &err), &err);
    ck_assert(free_bytes > 0 && free_bytes <= total_bytes);
    mq_assert_ok(gpu->host_alloc(dev, &host, N, &err), &err);
    ck_assert((uintptr_t)host % 4096 == 0);
    mq_assert_ok(gpu->fence_create(dev, &f, &err), &err);
    mq_assert_ok(gpu->fence_wait(dev, f, &err), &err); /* set nowhere */
    mq_assert_ok(gpu->alloc(dev, &p, N, &err), &err);
    for (int i = 0; i < N; i++)
        ((uint8_t *)host)[i] = (uint8_t)(i * 13);
    mq_assert_ok(gpu->upload_async(dev, p, host, N, f, &err), &err);
    mq_assert_ok(gpu->fence_wait(dev, f, &err), &err);
    mq_assert_ok(gpu->download(dev, back, p, N, &err), &err);
    ck_assert(memcmp(back, host, N) == 0);
    mq_assert_ok(gpu->upload_async(dev, p, host, 0, f, &err), &err);
    mq_assert_ok(gpu->fence_wait(dev, f, &err), &err);
    gpu->release(dev, p);
    gpu->fence_free(dev, f);
    gpu->fence_free(dev, NULL);
    gpu->host_free(dev, host);
    gpu->host_free(dev, NULL);
}
END_TEST

int main(void)
{
    const char *device = getenv("MQ_TEST_DEVICE");
    is_real = device && !strcmp(device, "cuda");
    gpu = is_real ? mq_kernels_find("cuda") : &mq_cuda_emulated_kernels;
    if (!gpu || (is_real && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    mq_emulator_guard_memory(true);
    mq_emulator_set_devices(2);
    if (gpu->dev_open(&dev, 0, 2, NULL, &err) != MQ_OK) {
        printf("SKIPPED: %s\n", err.text);
        return MQ_TEST_SKIP;
    }
    Suite *s = suite_create("cuda_load");
    TCase *t = tcase_create("all");
    tcase_add_test(t, fences_and_host_memory);
    tcase_add_test(t, the_bytes_are_those_of_the_host);
    tcase_add_test(t, records_larger_than_a_block_and_merges);
    tcase_add_test(t, a_gpu_too_small_is_refused_with_both_numbers);
    tcase_add_test(t, failures_of_the_device_end_the_load);
    tcase_add_test(t, a_device_that_fails_ends_the_loads_of_the_others);
    suite_add_tcase(s, t);
    int failed = mq_test_run(s);
    gpu->dev_close(dev);
    return failed;
}
