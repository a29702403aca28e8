/* Calibrated conversions on the CUDA table: one and two devices give the same bytes, close to the CPU's in error and in quality; a
 * run that failed goes on on the same kind of device alone.
 *
 * In the emulator a device's memory is closed to the host and to other devices, so a pointer taken for the wrong side ends
 * the program or fails a launch.  With MQ_TEST_DEVICE=cuda on GPUs, or 77 where there is none. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/perplexity.h"
#include "src/file.h"
#include "tests/emulator/emulator.h"
#include "tests/harness.h"
#include "tests/maker/maker.h"
#include "tools/compare.h"
#include "tools/convert.h"

enum { WINDOW = 32, WINDOWS = 6, EXPERTS = 4, LAYERS = 3 };

static const mq_cli quiet_cli = {.tool = "test_cuda_calibrate", .usage = "", .summary = "", .quiet = true};
static const mq_kernels *gpu;
static bool is_real;
static mq_precision precision; /* of products on devices */
static mq_err err;

static char *in_dir(const char *name)
{
    char *path = mq_path_join(mq_test_dir(), name);
    ck_assert_ptr_nonnull(path);
    return path;
}

/* A small model with stored scales in its experts. */
static char *make_model(const char *name, mq_scheme experts)
{
    mq_maker m;
    char *dir = in_dir(name);
    ck_assert(mq_maker_preset(&m, "nano"));
    m.layers = LAYERS;
    m.hidden = 128;
    m.intermediate = 128;
    m.experts = EXPERTS;
    m.top_k = 2;
    m.moe_intermediate = 64;
    m.expert_scheme = experts;
    m.draft_layers = m.mtp = 0;
    m.files = 1;
    m.tokenizer = mq_test_path("tests/data/nano");
    mq_assert_ok(mq_maker_write(&m, dir, NULL, &err), &err);
    return dir;
}

/* n_devices 0: the CPU. */
static mq_convert_options options(const char *checkpoint, const char *out_dir, int n_devices)
{
    static const int ordinals[] = {0, 1};
    static mq_corpus_file file = {NULL, 1.0};
    if (!file.path)
        file.path = mq_test_path("tests/data/text/eval.txt");
    mq_convert_options o = {.checkpoint = checkpoint, .out_dir = out_dir, .group = 64, .n_threads = 2, .force_int4 = true};
    o.n_ranks = 1;
    o.calib = (mq_convert_calib){.files = &file, .n_files = 1, .n_tokens = WINDOW * WINDOWS, .window = WINDOW};
    o.calib.recipe = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    o.calib.recipe.precision = n_devices ? precision : MQ_PRECISION_F32;
    o.kernels = n_devices ? gpu : NULL;
    o.devices = ordinals;
    o.n_devices = n_devices;
    return o;
}

static void folder_digest(uint8_t digest[MQ_SHA256_BYTES], const char *dir)
{
    mq_sha256 *sha;
    char **names;
    int64_t n;
    mq_assert_ok(mq_sha256_create(&sha, &err), &err);
    mq_assert_ok(mq_dir_list(&names, &n, dir, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        char *path = mq_path_join(dir, names[i]);
        mq_buf bytes = mq_buf_empty();
        mq_sha256_update(sha, names[i], (int64_t)strlen(names[i]));
        mq_assert_ok(mq_file_load(&bytes, path, 1 << 30, &err), &err);
        mq_sha256_update(sha, bytes.data, bytes.n_bytes);
        mq_buf_release(&bytes);
        free(path);
    }
    mq_dir_list_free(names, n);
    mq_sha256_finish(sha, digest);
    mq_sha256_free(sha);
}

static char *convert(const char *checkpoint, const char *name, int n_devices)
{
    char *out = in_dir(name);
    mq_convert_result r;
    mq_convert_options o = options(checkpoint, out, n_devices);
    mq_assert_ok(mq_convert(&r, &o, &quiet_cli, &err), &err);
    ck_assert_str_eq(r.method, "gptq");
    ck_assert((r.device_bytes > 0) == (n_devices > 0));
    return out;
}

static void check_same(const char *a, const char *b)
{
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    folder_digest(want, a);
    folder_digest(got, b);
    ck_assert_msg(memcmp(want, got, sizeof want) == 0, "%s and %s differ", a, b);
}

static mq_comparison compare(const char *checkpoint, const char *dir)
{
    mq_packed *packed;
    mq_source *source;
    mq_comparison c;
    mq_assert_ok(mq_packed_open(&packed, dir, &err), &err);
    mq_assert_ok(mq_packed_verify(packed, 2, 256 << 20, NULL, NULL, NULL, &err), &err);
    mq_assert_ok(mq_source_open(&source, checkpoint, &err), &err);
    mq_assert_ok(mq_compare_weights(&c, source, packed, 2, INT64_MAX, NULL, NULL, NULL, &err), &err);
    ck_assert_msg(c.n_different == 0, "%s", c.first_difference);
    mq_source_close(source);
    mq_packed_close(packed);
    return c;
}

/* Sums in another order move codes that lie between two: the error of a matrix of 8192 weights by less than 2 %. */
static void check_close_errors(const char *checkpoint, const char *cpu, const char *cuda)
{
    mq_comparison a = compare(checkpoint, cpu), b = compare(checkpoint, cuda);
    ck_assert(a.n_matrices > 0 && a.n_matrices == b.n_matrices);
    for (int64_t i = 0; i < a.n_matrices; i++) {
        double want = mq_matrix_relative_error(&a.matrices[i]), got = mq_matrix_relative_error(&b.matrices[i]);
        ck_assert_msg(fabs(got - want) <= 0.02 * want, "matrix %lld: error %.6f, on the CPU %.6f", (long long)i, got, want);
    }
    mq_comparison_release(&a);
    mq_comparison_release(&b);
}

/* Mean KL of b from a, read on the CPU. */
static double divergence(const char *a, const char *b)
{
    enum { N = 256 };
    const mq_kernels *k = mq_kernels_find("cpu");
    mq_dev *dev;
    mq_store *sa, *sb;
    mq_quality q;
    int32_t ids[N + 1];
    mq_store_options so = {.n_ranks = 1, .n_threads = 2};
    mq_quality_options o = {.window = WINDOW, .n_windows = N / WINDOW, .memory_bytes = (int64_t)1 << 30};
    for (int i = 0; i <= N; i++)
        ids[i] = 17 + i * i * 31 % 900;
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_assert_ok(mq_store_open(&sa, a, &so, &err), &err);
    mq_assert_ok(mq_store_open(&sb, b, &so, &err), &err);
    mq_assert_ok(mq_quality_run(&q, k, dev, sa, sb, ids, N + 1, &o, &err), &err);
    double kl = q.kl_mean;
    mq_quality_release(&q);
    mq_store_close(sa);
    mq_store_close(sb);
    k->dev_close(dev);
    return kl;
}

static void check_schemes(mq_scheme experts)
{
    char *checkpoint = make_model("checkpoint", experts);
    char *cpu = convert(checkpoint, "cpu", 0), *one = convert(checkpoint, "one", 1), *two = convert(checkpoint, "two", 2);
    check_same(one, two);
    check_close_errors(checkpoint, cpu, one);
    double want = divergence(checkpoint, cpu), got = divergence(checkpoint, one);
    printf("%s: KL %.6f, on the CPU %.6f\n", mq_scheme_name(experts), got, want);
    /* Roundings that fall the other way change which codes a model so small has: by chance for the better. */
    ck_assert_msg(want > 0 && got <= 1.03 * want && got >= 0.9 * want, "KL %.6f, on the CPU %.6f", got, want);
    free(checkpoint);
    free(cpu);
    free(one);
    free(two);
}

START_TEST(devices_change_no_byte_and_come_close_to_the_cpu)
{
    check_schemes(MQ_SCHEME_FP8_BLOCK);
    if (!is_real)
        ck_assert_int_eq(mq_emulator_allocated(), 0);
}
END_TEST

START_TEST(experts_that_were_mxfp4)
{
    precision = MQ_PRECISION_BF16;
    check_schemes(MQ_SCHEME_MXFP4_ROWS);
    precision = MQ_PRECISION_F32;
}
END_TEST

static void expect_refused(mq_convert_options o, const char *a, const char *b)
{
    mq_convert_result r;
    o.resume = true;
    ck_assert_int_eq(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_EXISTS);
    ck_assert_msg(strstr(err.text, a) && strstr(err.text, b), "%s", err.text);
}

static mq_status other_library(mq_dev *dev, char *out, int64_t out_bytes, mq_err *e)
{
    (void)dev;
    (void)e;
    snprintf(out, (size_t)out_bytes, "cuBLAS 1.2.4");
    return MQ_OK;
}

/* A run that ends for want of device memory leaves what another device of the kind finishes, and nobody else. */
START_TEST(a_failed_run_goes_on_on_the_same_kind_alone)
{
    char *checkpoint = make_model("checkpoint", MQ_SCHEME_FP8_BLOCK), *want = convert(checkpoint, "whole", 1);
    char *out = in_dir("cut");
    mq_convert_result r;
    mq_convert_options o = options(checkpoint, out, 2);
    mq_emulator_fail_launch(1200);
    ck_assert_int_eq(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_DEVICE);
    mq_emulator_fail_launch(0);
    ck_assert_int_eq(mq_emulator_allocated(), 0);
    expect_refused(options(checkpoint, out, 0), "cpu", "cuda");
    mq_emulator_set_capability(8, 0);
    expect_refused(o, "sm_80", "sm_90");
    mq_emulator_set_capability(9, 0);
    mq_kernels other = *gpu;
    mq_convert_options elsewhere = o;
    other.library = other_library;
    elsewhere.kernels = &other;
    expect_refused(elsewhere, "matrix library was \"cuBLAS 1.2.3\"", "now \"cuBLAS 1.2.4\"");
    o.resume = true;
    o.n_devices = 1;
    mq_assert_ok(mq_convert(&r, &o, &quiet_cli, &err), &err);
    check_same(want, out);
    free(checkpoint);
    free(want);
    free(out);
}
END_TEST

/* Memory of devices is looked at before anything is written; what is asked for is enough. */
START_TEST(device_memory_is_compared_with_what_is_needed)
{
    char *checkpoint = make_model("checkpoint", MQ_SCHEME_BF16), *out = in_dir("memory"), *least = in_dir("least");
    mq_convert_result r;
    mq_convert_options o = options(checkpoint, out, 2);
    mq_emulator_set_memory(1 << 20);
    mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_NOMEM, &err, "cuda 0, emulated GPU");
    ck_assert_msg(strstr(err.text, "calibrating this model needs ") && strstr(err.text, " of its memory, 1.05 MB are free"), "%s",
                  err.text);
    o.dry_run = true;
    ck_assert_int_eq(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_NOMEM);
    ck_assert(!mq_path_exists(out));
    mq_emulator_set_memory(INT64_C(1) << 34);
    mq_assert_ok(mq_convert(&r, &o, &quiet_cli, &err), &err);
    o.dry_run = false;
    mq_emulator_set_memory(r.device_bytes);
    mq_assert_ok(mq_convert(&r, &o, &quiet_cli, &err), &err);
    /* With less the rows of the residual stream stay on the host, and nothing else changes. */
    int64_t enough = r.device_bytes - 1;
    o.out_dir = least;
    mq_emulator_set_memory(enough);
    mq_assert_ok(mq_convert(&r, &o, &quiet_cli, &err), &err);
    ck_assert(r.device_bytes <= enough);
    check_same(out, least);
    mq_emulator_set_memory(INT64_C(1) << 34);
    free(checkpoint);
    free(out);
    free(least);
}
END_TEST

START_TEST(devices_that_are_not_there)
{
    char *checkpoint = make_model("checkpoint", MQ_SCHEME_BF16), *out = in_dir("none");
    static const int ordinals[] = {0, 63};
    mq_convert_result r;
    mq_convert_options o = options(checkpoint, out, 2);
    o.devices = ordinals;
    ck_assert_int_eq(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_DEVICE);
    ck_assert_msg(strstr(err.text, "cuda 63: no such GPU") != NULL, "%s", err.text);
    free(checkpoint);
    free(out);
}
END_TEST

int main(void)
{
    const char *device = getenv("MQ_TEST_DEVICE");
    is_real = device && !strcmp(device, "cuda");
    gpu = is_real ? mq_kernels_find("cuda") : &mq_cuda_emulated_kernels;
    if (!gpu || (is_real && mq_cuda_count() < 2)) {
        printf("SKIPPED: not two GPUs\n");
        return MQ_TEST_SKIP;
    }
    mq_emulator_guard_memory(true);
    mq_emulator_set_devices(2);
    Suite *s = suite_create("cuda_calibrate");
    TCase *t = tcase_create("all");
    tcase_add_test(t, devices_change_no_byte_and_come_close_to_the_cpu);
    tcase_add_test(t, experts_that_were_mxfp4);
    tcase_add_test(t, devices_that_are_not_there);
    if (!is_real) {
        tcase_add_test(t, a_failed_run_goes_on_on_the_same_kind_alone);
        tcase_add_test(t, device_memory_is_compared_with_what_is_needed);
    }
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
