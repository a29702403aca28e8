/* The JSON header of a safetensors file, read in one pass: rules S4 to S10, S13 and S15.  Private to safetensors.c.
 *
 * What needs all tensors at once (order and holes, the file's end, duplicate names: S11, S12, S14) is safetensors.c's. */
#ifndef MQ_FORMATS_SAFETENSORS_HEADER_H
#define MQ_FORMATS_SAFETENSORS_HEADER_H

#include <stdint.h>

#include "formats/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Longest tensor name we read, and the most of a name that an error text shows. */
enum { MQ_ST_MAX_NAME = 1024, MQ_ST_NAME_SHOWN = 160 };

typedef struct mq_st_header {
    char *names;           /* [names_bytes] NUL-terminated names one after the other, heap */
    mq_st_tensor *tensors; /* [n_tensors] in the order of the header, heap; off counts from the start of the data */
    int64_t names_bytes, n_tensors;
} mq_st_header;

/* Parse text [n_bytes], a heap block that this call takes over: names are decoded in place, to its front, and what is
 * left over is given back.  MQ_E_FORMAT "tensor 'NAME': rule S7: ..." or "rule S5: ...", MQ_E_NOMEM.  On failure
 * nothing is left to free. */
mq_status mq_st_header_parse(mq_st_header *out, char *text, int64_t n_bytes, mq_err *err);
void mq_st_header_release(mq_st_header *h);

#ifdef __cplusplus
}
#endif
#endif
