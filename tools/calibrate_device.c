/* Copies between host and devices, in pieces that a fixed piece of host memory holds.
 *
 * Between devices everything goes through the host: an array a layer is too little to be worth another way. */
#include "tools/calibrate_device.h"

#include <stdlib.h>
#include <string.h>

bool mq_kernels_on_host(const mq_kernels *k)
{
    return strcmp(k->name, "cpu") == 0;
}

int64_t mq_stage_bytes(const mq_kernels *k, int64_t n_rows, int64_t cols)
{
    return mq_kernels_on_host(k) ? 0 : n_rows * cols * (int64_t)sizeof(float);
}

mq_status mq_stage_init(mq_stage *s, const mq_kernels *k, mq_dev *dev, int64_t n_rows, int64_t cols, mq_err *err)
{
    *s = (mq_stage){.k = k, .dev = dev, .on_host = mq_kernels_on_host(k), .n_rows = n_rows, .cols = cols};
    if (s->on_host)
        return MQ_OK;
    void *rows;
    MQ_TRY(k->host_alloc(dev, &rows, mq_stage_bytes(k, n_rows, cols), err));
    s->rows = rows;
    return MQ_OK;
}

void mq_stage_release(mq_stage *s)
{
    if (s->rows)
        s->k->host_free(s->dev, s->rows);
    s->rows = NULL;
}

static int64_t piece(const mq_stage *s, int64_t left)
{
    return left < s->n_rows ? left : s->n_rows;
}

static int64_t row_bytes(const mq_stage *s, int64_t n)
{
    return n * s->cols * (int64_t)sizeof(float);
}

mq_status mq_stage_read(mq_stage *s, float *x, const mq_hidden *h, int64_t row0, int64_t n, mq_err *err)
{
    if (s->on_host)
        return mq_hidden_read(h, x, row0, n, err);
    for (int64_t i = 0, rows; i < n; i += rows) {
        rows = piece(s, n - i);
        MQ_TRY(mq_hidden_read(h, s->rows, row0 + i, rows, err));
        MQ_TRY(s->k->upload(s->dev, x + i * s->cols, s->rows, row_bytes(s, rows), err));
    }
    return MQ_OK;
}

mq_status mq_stage_gather(mq_stage *s, float *x, const mq_hidden *h, const int32_t *index, int64_t n, mq_err *err)
{
    if (s->on_host)
        return mq_hidden_gather(h, x, index, n, err);
    for (int64_t i = 0, rows; i < n; i += rows) {
        rows = piece(s, n - i);
        MQ_TRY(mq_hidden_gather(h, s->rows, index + i, rows, err));
        MQ_TRY(s->k->upload(s->dev, x + i * s->cols, s->rows, row_bytes(s, rows), err));
    }
    return MQ_OK;
}

mq_status mq_stage_write(mq_stage *s, mq_hidden *h, const float *x, int64_t row0, int64_t n, mq_err *err)
{
    MQ_TRY(s->k->dev_sync(s->dev, err));
    if (s->on_host)
        return mq_hidden_write(h, x, row0, n, err);
    for (int64_t i = 0, rows; i < n; i += rows) {
        rows = piece(s, n - i);
        MQ_TRY(s->k->download(s->dev, s->rows, x + i * s->cols, row_bytes(s, rows), err));
        MQ_TRY(mq_hidden_write(h, s->rows, row0 + i, rows, err));
    }
    return MQ_OK;
}

mq_status mq_floats_across(const mq_kernels *k, mq_dev *to, float *dst, mq_dev *from, const float *src, int64_t count,
                           mq_err *err)
{
    int64_t n_bytes = count * (int64_t)sizeof *src;
    float *host = malloc((size_t)n_bytes);
    if (!host)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = k->dev_sync(from, err);
    if (st == MQ_OK)
        st = k->download(from, host, src, n_bytes, err);
    if (st == MQ_OK)
        st = k->upload(to, dst, host, n_bytes, err);
    free(host);
    return st;
}

mq_status mq_bytes_to_device(const mq_stage *s, uint8_t *dst, const uint8_t *src, int64_t n_bytes, mq_err *err)
{
    return s->on_host ? MQ_OK : s->k->upload(s->dev, dst, src, n_bytes, err);
}

const void *mq_moved_address(const mq_stage *s, const void *p, const uint8_t *host, int64_t n_bytes, const uint8_t *device)
{
    const uint8_t *at = p;
    bool inside = at && at >= host && at < host + n_bytes;
    return s->on_host || !inside ? p : device + (at - host);
}
