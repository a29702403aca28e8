/* The CUDA table over arrays of the host, so that the tests of the CPU's calibration operations run on it unchanged.
 *
 * Linked into their second copies (tests/CMakeLists.txt), where mq_kernels_find is this file's.  Each operation copies
 * its arrays to the device, runs there and copies back what it may have written.  The table behind it is the
 * emulator's, or with MQ_TEST_DEVICE=cuda the real one; with MQ_TEST_PRECISION=bf16 it computes in that. */
#include "tests/kernels/cuda_on_host_arrays.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emulator/emulator.h"
#include "tests/harness.h"

/* An array of the call under way. */
typedef struct array {
    void *host, *dev;
    int64_t n_bytes;
    bool comes_back;
} array;

static const mq_kernels *gpu;
static mq_precision precision;
static _Thread_local array arrays[16]; /* tests call from several threads */
static _Thread_local int n_arrays;

/* The device's copy of host [n_bytes]; the same one for the same array.  NULL stays NULL. */
static void *on_device(mq_dev *dev, const void *host, int64_t n_bytes, bool comes_back)
{
    mq_err err;
    union {
        const void *in;
        void *out;
    } u = {host};
    if (!host)
        return NULL;
    for (int i = 0; i < n_arrays; i++)
        if (arrays[i].host == u.out) {
            ck_assert(arrays[i].n_bytes == n_bytes);
            arrays[i].comes_back |= comes_back;
            return arrays[i].dev;
        }
    array *a = &arrays[n_arrays++];
    *a = (array){u.out, NULL, n_bytes, comes_back};
    mq_assert_ok(gpu->alloc(dev, &a->dev, n_bytes, &err), &err);
    mq_assert_ok(gpu->upload(dev, a->dev, host, n_bytes, &err), &err);
    return a->dev;
}

/* Copy back, release, and hand on the status; after a failure nothing is copied. */
static mq_status finish(mq_dev *dev, mq_status st)
{
    mq_err err;
    for (int i = 0; i < n_arrays; i++) {
        if (arrays[i].comes_back && st == MQ_OK)
            mq_assert_ok(gpu->download(dev, arrays[i].host, arrays[i].dev, arrays[i].n_bytes, &err), &err);
        gpu->release(dev, arrays[i].dev);
    }
    n_arrays = 0;
    return st;
}

#define IN(p, count) on_device(dev, p, (int64_t)(count) * (int64_t)sizeof *(p), false)
#define OUT(p, count) on_device(dev, p, (int64_t)(count) * (int64_t)sizeof *(p), true)

static mq_status dev_open(mq_dev **out, int ordinal, int n_threads, const char *isa, mq_err *err)
{
    *out = NULL;
    if (isa && strcmp(isa, "scalar"))
        return mq_fail(err, MQ_E_DEVICE, "no %s on a GPU", isa);
    MQ_TRY(gpu->dev_open(out, ordinal, n_threads, NULL, err));
    return gpu->set_precision(*out, precision, err);
}

static mq_status widen(mq_dev *dev, float *out, const mq_matrix *w, int64_t row0, int64_t n_rows, mq_err *err)
{
    mq_matrix m = *w;
    int64_t count = w->rows * w->cols, bytes = count * 2;
    if (w->scheme == MQ_SCHEME_INT4 || w->scheme == MQ_SCHEME_MXFP4)
        bytes = mq_units_bytes(w->rows, w->cols, w->group);
    else if (w->scheme != MQ_SCHEME_BF16 && w->scheme != MQ_SCHEME_F16)
        bytes = w->scheme == MQ_SCHEME_F32 ? count * 4 : w->scheme == MQ_SCHEME_FP8_BLOCK ? count : count / 2;
    m.data = on_device(dev, w->data, bytes, false);
    m.scale = on_device(dev, w->scale, w->scheme == MQ_SCHEME_FP8_BLOCK ? mq_fp8_n_scales(w) * 4 : count / 32, false);
    return finish(dev, gpu->widen(dev, OUT(out, n_rows * w->cols), &m, row0, n_rows, err));
}

static mq_status axpby(mq_dev *dev, float *y, float a, const float *x, float b, int64_t count, mq_err *err)
{
    return finish(dev, gpu->axpby(dev, OUT(y, count), a, IN(x, count), b, count, err));
}

static mq_status gram(mq_dev *dev, float *g, const float *x, const float *weight, int64_t n, int64_t cols, mq_err *err)
{
    return finish(dev, gpu->gram(dev, OUT(g, cols * cols), IN(x, n * cols), IN(weight, n), n, cols, err));
}

static mq_status cross(mq_dev *dev, float *c, const float *x, const float *y, const float *weight, int64_t n, int64_t cols,
                       int64_t y_cols, mq_err *err)
{
    return finish(dev, gpu->cross(dev, OUT(c, cols * y_cols), IN(x, n * cols), IN(y, n * y_cols), IN(weight, n), n, cols,
                                  y_cols, err));
}

static mq_status diag(mq_dev *dev, float *out, const float *g, int64_t n, mq_err *err)
{
    return finish(dev, gpu->diag(dev, OUT(out, n), IN(g, n * n), n, err));
}

static mq_status set_diag(mq_dev *dev, float *g, const float *values, int64_t n, mq_err *err)
{
    return finish(dev, gpu->set_diag(dev, OUT(g, n * n), IN(values, n), n, err));
}

static mq_status factor(mq_dev *dev, float *a, float *d, const float *g, const int32_t *perm, float ridge, int64_t n,
                        mq_err *err)
{
    return finish(dev, gpu->factor(dev, OUT(a, n * n), OUT(d, n), IN(g, n * n), IN(perm, n), ridge, n, err));
}

static mq_status solve(mq_dev *dev, float *x, const float *y, const float *a, const float *d, const int32_t *perm,
                       int64_t rows, int64_t n, mq_err *err)
{
    return finish(dev, gpu->solve(dev, OUT(x, rows * n), IN(y, rows * n), IN(a, n * n), IN(d, n), IN(perm, n), rows, n, err));
}

static mq_status search_scales(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                               int group, mq_err *err)
{
    return finish(dev, gpu->search_scales(dev, OUT(scale, rows * (cols / group)), IN(w, rows * cols), IN(omega, cols), rows,
                                          cols, group, err));
}

static mq_status nearest(mq_dev *dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols,
                         int group, mq_err *err)
{
    return finish(dev, gpu->nearest(dev, OUT(codes, rows * cols), IN(w, rows * cols), IN(scale, rows * (cols / group)), rows,
                                    cols, group, err));
}

static mq_status weight_error(mq_dev *dev, double *err2, double *norm2, const uint8_t *codes, const float *w,
                              const float *scale, int64_t rows, int64_t cols, int group, mq_err *err)
{
    return finish(dev, gpu->weight_error(dev, OUT(err2, rows), OUT(norm2, rows), IN(codes, rows * cols), IN(w, rows * cols),
                                         IN(scale, rows * (cols / group)), rows, cols, group, err));
}

static mq_status ldlq(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a,
                      const float *d, const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err)
{
    return finish(dev, gpu->ldlq(dev, OUT(codes, rows * cols), OUT(loss, rows), IN(w, rows * cols),
                                 IN(scale, rows * (cols / group)), IN(a, cols * cols), IN(d, cols), IN(perm, cols), rows,
                                 cols, group, err));
}

static mq_status quant_loss(mq_dev *dev, float *loss, float *norm, const uint8_t *codes, const float *w,
                            const float *scale, const float *g, int64_t rows, int64_t cols, int group, mq_err *err)
{
    return finish(dev, gpu->quant_loss(dev, OUT(loss, rows), OUT(norm, rows), IN(codes, rows * cols), IN(w, rows * cols),
                                       IN(scale, rows * (cols / group)), IN(g, cols * cols), rows, cols, group, err));
}

static mq_status refit_scales(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w,
                              const float *g, int64_t rows, int64_t cols, int group, mq_err *err)
{
    return finish(dev, gpu->refit_scales(dev, OUT(scale, rows * (cols / group)), OUT(loss, rows), IN(codes, rows * cols),
                                         IN(w, rows * cols), IN(g, cols * cols), rows, cols, group, err));
}

static mq_status descend(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                         int n_passes, int64_t rows, int64_t cols, int group, mq_err *err)
{
    return finish(dev, gpu->descend(dev, OUT(codes, rows * cols), OUT(loss, rows), IN(w, rows * cols),
                                    IN(scale, rows * (cols / group)), IN(g, cols * cols), n_passes, rows, cols, group, err));
}

static mq_status keep_better(mq_dev *dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept,
                             const uint8_t *codes_new, const float *scale_new, const float *loss_new, int64_t rows,
                             int64_t cols, int group, mq_err *err)
{
    int64_t n_scales = rows * (cols / group);
    return finish(dev, gpu->keep_better(dev, OUT(codes, rows * cols), OUT(scale, n_scales), OUT(loss, rows), n_kept,
                                        IN(codes_new, rows * cols), IN(scale_new, n_scales), IN(loss_new, rows), rows, cols,
                                        group, err));
}

static mq_status pack_units(mq_dev *dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a,
                            const uint8_t *codes_b, const float *scale_b, int64_t rows, int64_t cols, int group,
                            mq_err *err)
{
    int64_t n_scales = rows * (cols / group), packed = codes_b ? 2 * rows : rows;
    return finish(dev, gpu->pack_units(dev, OUT(units, mq_units_bytes(packed, cols, group)), IN(codes_a, rows * cols),
                                       IN(scale_a, n_scales), IN(codes_b, rows * cols), IN(scale_b, n_scales), rows, cols,
                                       group, err));
}

const mq_kernels *mq_test_cuda_on_host_arrays(const char *name)
{
    static mq_kernels t;
    const char *device = getenv("MQ_TEST_DEVICE"), *order = getenv("MQ_TEST_ORDER"), *in = getenv("MQ_TEST_PRECISION");
    precision = in && !strcmp(in, "bf16") ? MQ_PRECISION_BF16 : MQ_PRECISION_F32;
    bool is_real = device && !strcmp(device, "cuda");
    (void)name;
    mq_emulator_run_backwards(order && !strcmp(order, "backwards"));
    gpu = is_real ? mq_kernels_find("cuda") : &mq_cuda_emulated_kernels;
    if (!gpu || (is_real && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        exit(MQ_TEST_SKIP);
    }
    t = (mq_kernels){
        .name = "cuda",
        .dev_open = dev_open,
        .dev_close = gpu->dev_close,
        .dev_name = gpu->dev_name,
        .dev_sync = gpu->dev_sync,
        .widen = widen,
        .axpby = axpby,
        .gram = gram,
        .cross = cross,
        .diag = diag,
        .set_diag = set_diag,
        .factor = factor,
        .solve = solve,
        .search_scales = search_scales,
        .nearest = nearest,
        .weight_error = weight_error,
        .ldlq = ldlq,
        .quant_loss = quant_loss,
        .refit_scales = refit_scales,
        .descend = descend,
        .keep_better = keep_better,
        .pack_units = pack_units,
    };
    return &t;
}

const mq_kernels *mq_test_cuda_emulated(const char *name)
{
    (void)name;
    mq_emulator_allow_host_pointers(true);
    return &mq_cuda_emulated_kernels;
}
