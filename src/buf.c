/* The growable byte buffer.  Capacity doubles, so appending is linear overall; one byte is always
 * kept for the NUL. */
#include "src/buf.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void mq_buf_release(mq_buf *b)
{
    free(b->data);
    *b = mq_buf_empty();
}

void mq_buf_clear(mq_buf *b)
{
    b->n_bytes = 0;
    b->nomem = false;
    if (b->data)
        b->data[0] = '\0';
}

/* Make room for n_bytes more and the NUL. */
static bool reserve(mq_buf *b, int64_t n_bytes)
{
    assert(n_bytes >= 0);
    if (b->nomem)
        return false;
    if (n_bytes < b->cap - b->n_bytes)
        return true;
    if (n_bytes > INT64_MAX / 2 - b->n_bytes - 1) {
        b->nomem = true;
        return false;
    }
    int64_t need = b->n_bytes + n_bytes + 1, cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap = cap > INT64_MAX / 2 ? need : 2 * cap;
    char *data = realloc(b->data, (size_t)cap);
    if (!data) {
        b->nomem = true;
        return false;
    }
    b->data = data;
    b->cap = cap;
    return true;
}

void mq_buf_append(mq_buf *b, const void *bytes, int64_t n_bytes)
{
    if (!reserve(b, n_bytes))
        return;
    if (n_bytes > 0)
        memcpy(b->data + b->n_bytes, bytes, (size_t)n_bytes);
    b->n_bytes += n_bytes;
    b->data[b->n_bytes] = '\0';
}

void mq_buf_str(mq_buf *b, const char *s)
{
    mq_buf_append(b, s, (int64_t)strlen(s));
}

void mq_buf_fmt(mq_buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    if (n < 0) /* only an encoding error or a result above INT_MAX */
        b->nomem = true;
    else if (reserve(b, n)) {
        vsnprintf(b->data + b->n_bytes, (size_t)n + 1, fmt, again);
        b->n_bytes += n;
    }
    va_end(again);
    va_end(args);
}

mq_status mq_buf_status(const mq_buf *b, mq_err *err)
{
    return b->nomem ? mq_fail(err, MQ_E_NOMEM, "out of memory after %lld bytes of text",
                              (long long)b->n_bytes)
                    : MQ_OK;
}
