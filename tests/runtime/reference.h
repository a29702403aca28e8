/* Opening the test models and their reference values, shared by the programs of this folder.  A
 * model that is not there gives NULL and one line "SKIPPED". */
#ifndef MQ_TESTS_RUNTIME_REFERENCE_H
#define MQ_TESTS_RUNTIME_REFERENCE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "formats/safetensors.h"
#include "kernels/kernels.h"
#include "runtime/store.h"
#include "tests/harness.h"

/* Bundled, or below the folder of test models. */
static inline const char *ref_model(const char *name)
{
    char rel[64], path[4096];
    snprintf(rel, sizeof rel, "tests/data/%s", name);
    const char *bundled = mq_test_path(rel);
    snprintf(path, sizeof path, "%s/reference.safetensors", bundled);
    bool there = access(path, R_OK) == 0;
    snprintf(path, sizeof path, "%s/config.json", bundled);
    if (there && access(path, R_OK) == 0)
        return bundled;
    const char *model = mq_test_model(name);
    if (!model)
        printf("SKIPPED: model %s is not here\n", name);
    return model;
}

/* A reference tensor of n elements of 4 bytes (F32 or I32), NULL where the model's reference has
 * none; the caller frees it. */
static inline void *ref_load_any(const char *dir, const char *tensor, int64_t n)
{
    char path[4096];
    mq_err err;
    mq_safetensors *s;
    void *data = NULL;
    snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    mq_assert_ok(mq_safetensors_open(&s, path, &err), &err);
    const mq_st_tensor *t = mq_safetensors_find(s, tensor);
    if (t) {
        ck_assert_int_eq(t->n_bytes, 4 * n);
        data = malloc((size_t)t->n_bytes);
        ck_assert_ptr_nonnull(data);
        mq_assert_ok(mq_safetensors_read(s, t, data, 0, t->n_bytes, &err), &err);
    }
    mq_safetensors_close(s);
    return data;
}

/* The same, and it is there. */
static inline void *ref_load(const char *dir, const char *tensor, int64_t n)
{
    void *data = ref_load_any(dir, tensor, n);
    ck_assert_msg(data != NULL, "%s/reference.safetensors: no tensor %s", dir, tensor);
    return data;
}

static inline const mq_kernels *ref_kernels(void)
{
    const mq_kernels *k = mq_kernels_find("cpu");
    ck_assert_ptr_nonnull(k);
    return k;
}

static inline mq_dev *ref_dev(int n_threads)
{
    mq_dev *dev;
    mq_err err;
    mq_assert_ok(ref_kernels()->dev_open(&dev, 0, n_threads, NULL, &err), &err);
    return dev;
}

static inline float *ref_floats(mq_dev *dev, int64_t n)
{
    void *p;
    mq_err err;
    mq_assert_ok(ref_kernels()->alloc(dev, &p, 4 * n, &err), &err);
    return p;
}

static inline mq_store *ref_store(const char *dir, int n_ranks, bool resident)
{
    mq_store *s;
    mq_err err;
    mq_store_options o = {.resident = resident, .n_ranks = n_ranks, .n_threads = 2, .check = true};
    mq_assert_ok(mq_store_open(&s, dir, &o, &err), &err);
    return s;
}

static inline double ref_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
