/* Memory that loads take piece by piece (store_backend.h), and the check that every loaded matrix passes. */
#include <stdlib.h>

#include "runtime/store_backend.h"
#include "src/dtype.h"

mq_status mq_slot_take(mq_slot *s, void **out, int64_t n_bytes, mq_err *err)
{
    *out = NULL;
    int64_t off = mq_round_up(s->used, MQ_SLOT_ALIGN);
    if (n_bytes < 0 || off > INT64_MAX / 2 || n_bytes > INT64_MAX / 2)
        return mq_fail(err, MQ_E_NOMEM, "weights of more than 2^62 bytes");
    s->used = off + n_bytes;
    if (s->measuring)
        return MQ_OK;
    if (s->used > s->cap)
        return mq_fail(err, MQ_E_BUG, "weights of %lld bytes, measured %lld", (long long)s->used,
                       (long long)s->cap);
    *out = (s->mem ? s->mem : s->device) + off;
    return MQ_OK;
}

mq_status mq_slot_alloc(mq_slot *s, int64_t n_bytes, mq_err *err)
{
    *s = (mq_slot){.cap = mq_round_up(n_bytes + 1, MQ_SLOT_ALIGN)};
    s->mem = aligned_alloc(MQ_SLOT_ALIGN, (size_t)s->cap);
    if (!s->mem)
        return mq_fail(err, MQ_E_NOMEM, "weights of %lld bytes: out of memory", (long long)n_bytes);
    return MQ_OK;
}

void mq_slot_free(mq_slot *s)
{
    free(s->mem);
    *s = (mq_slot){.cap = 0};
}

mq_status mq_backend_check(const mq_matrix *m, int64_t rows, int64_t cols, mq_err *err)
{
    if (m->rows != rows || m->cols != cols)
        return mq_fail(err, MQ_E_SHAPE, "shape [%lld, %lld], expected [%lld, %lld]",
                       (long long)m->rows, (long long)m->cols, (long long)rows, (long long)cols);
    return mq_matrix_check(m, err);
}
