/* From the key of a logical tensor to the stored tensors that hold it.  Private to formats/source*.c. */
#ifndef MQ_FORMATS_SOURCE_RESOLVE_H
#define MQ_FORMATS_SOURCE_RESOLVE_H

#include "formats/source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Find key's tensor, and its scales, and check dtype and shape.  model_used [tensors of the checkpoint] and draft_used (both
 * or neither NULL) get true for every stored tensor it stands on.  MQ_E_FORMAT: missing; MQ_E_SHAPE; MQ_E_UNSUPPORTED: a
 * dtype that this tensor cannot have.  The text names file and tensor. */
mq_status mq_source_resolve(mq_source_tensor *out, const mq_source *s, mq_key key, bool *model_used, bool *draft_used,
                            mq_err *err);

/* mq_fail with "FILE: tensor 'NAME': " in front of the text. */
mq_status mq_source_fail(mq_err *err, mq_status code, mq_tensor_ref ref, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* First of n values that is NaN or infinite, -1 when there is none.  scheme is BF16, F16 or F32. */
int64_t mq_source_find_not_finite(const uint8_t *bytes, int64_t n, mq_scheme scheme);

#ifdef __cplusplus
}
#endif
#endif
