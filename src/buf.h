/* A growable byte buffer; text built in it is NUL-terminated.  Allocation failure is remembered, so that
 * a writer checks once at the end (mq_buf_status). */
#ifndef MQ_SRC_BUF_H
#define MQ_SRC_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_buf {
    char *data; /* [n_bytes] and one NUL behind; NULL while empty */
    int64_t n_bytes, cap;
    bool nomem; /* an append was dropped */
} mq_buf;

static inline mq_buf mq_buf_empty(void)
{
    mq_buf b = {0, 0, 0, false};
    return b;
}
void mq_buf_release(mq_buf *b);
void mq_buf_clear(mq_buf *b); /* keeps the memory */
void mq_buf_append(mq_buf *b, const void *bytes, int64_t n_bytes);
void mq_buf_str(mq_buf *b, const char *s);
void mq_buf_fmt(mq_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* MQ_OK, or MQ_E_NOMEM when an append was dropped. */
mq_status mq_buf_status(const mq_buf *b, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
