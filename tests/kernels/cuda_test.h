/* What the tests of the CUDA table share: both tables, arrays on either side, and the choice of what runs.
 *
 * Without an argument the kernels run in the emulator (tests/emulator), once in each order of threads; with the argument
 * "cuda", or MQ_TEST_DEVICE=cuda, on GPU 0, or the program exits with 77 (skipped) where there is none. */
#ifndef MQ_TESTS_KERNELS_CUDA_TEST_H
#define MQ_TESTS_KERNELS_CUDA_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/emulator/emulator.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *cpu, *gpu;
static mq_dev *cpu_dev, *gpu_dev;
static bool is_emulated;
static mq_err err;

/* A copy of n_bytes in the GPU's memory; release with drop. */
static inline void *put(const void *host, int64_t n_bytes)
{
    void *p;
    mq_assert_ok(gpu->alloc(gpu_dev, &p, n_bytes, &err), &err);
    if (host)
        mq_assert_ok(gpu->upload(gpu_dev, p, host, n_bytes, &err), &err);
    return p;
}

static inline float *put_floats(const float *host, int64_t n)
{
    return (float *)put(host, n * (int64_t)sizeof *host);
}

static inline void drop(const void *p)
{
    union {
        const void *in;
        void *out;
    } u = {p};
    gpu->release(gpu_dev, u.out);
}

/* Copy back and release. */
static inline void take(void *host, void *p, int64_t n_bytes)
{
    mq_assert_ok(gpu->download(gpu_dev, host, p, n_bytes, &err), &err);
    mq_assert_ok(gpu->dev_sync(gpu_dev, &err), &err);
    drop(p);
}

static inline float *floats(int64_t n)
{
    float *x = (float *)malloc((size_t)(n + 1) * sizeof *x);
    ck_assert(x != NULL);
    memset(x, 0x7f, (size_t)(n + 1) * sizeof *x);
    return x;
}

/* The same matrix with its bytes on the GPU. */
static inline mq_matrix put_matrix(const random_matrix *r, const matrix_spec *s)
{
    mq_matrix m = r->m;
    m.data = put(r->data, random_code_bytes(s));
    if (s->scheme == MQ_SCHEME_FP8_BLOCK)
        m.scale = put(r->scale, mq_fp8_n_scales(&r->m) * 4);
    else if (s->scheme == MQ_SCHEME_MXFP4_ROWS)
        m.scale = put(r->scale, s->rows * s->cols / 32);
    return m;
}

static inline void drop_matrix(const mq_matrix *m)
{
    drop(m->data);
    if (m->scale)
        drop(m->scale);
}

static inline bool same_bytes(const void *a, const void *b, int64_t n_bytes)
{
    return n_bytes == 0 || !memcmp(a, b, (size_t)n_bytes);
}

/* Largest |a - b| / (|b| + floor). */
static inline double largest_error(const float *a, const float *b, int64_t n, double floor_)
{
    double worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - (double)b[i]) / (fabs((double)b[i]) + floor_);
        worst = e > worst || isnan(e) ? e : worst;
        if (isnan(e))
            return INFINITY;
    }
    return worst;
}

/* Open both devices, run the suite that make builds, close; the process's exit status. */
static inline int cuda_test_main(int argc, char **argv, Suite *(*make)(void))
{
    const char *device = argc > 1 ? argv[1] : getenv("MQ_TEST_DEVICE");
    is_emulated = !device || strcmp(device, "cuda");
    cpu = mq_kernels_find("cpu");
    gpu = is_emulated ? &mq_cuda_emulated_kernels : mq_kernels_find("cuda");
    if (!gpu || (!is_emulated && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    if (cpu->dev_open(&cpu_dev, 0, 1, NULL, &err) != MQ_OK || gpu->dev_open(&gpu_dev, 0, 0, NULL, &err) != MQ_OK) {
        printf("%s\n", err.text);
        return 1;
    }
    printf("on %s\n", gpu->dev_name(gpu_dev));
    int status = mq_test_run(make());
    if (is_emulated && status == 0) {
        printf("backwards\n");
        mq_emulator_run_backwards(true);
        status = mq_test_run(make());
        mq_emulator_run_backwards(false);
    }
    gpu->dev_close(gpu_dev);
    cpu->dev_close(cpu_dev);
    return status;
}

#endif
