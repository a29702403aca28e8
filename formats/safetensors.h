/* One safetensors file: its header, strict by the rules S1 to S16 (listed where they are checked: safetensors.c, safetensors_header.c), and
 * positioned reads of its tensors' bytes.  Own streaming JSON reader: a 13 MB header never becomes a tree.
 * Source: the safetensors format description and reference reader. */
#ifndef MQ_FORMATS_SAFETENSORS_H
#define MQ_FORMATS_SAFETENSORS_H

#include <stdint.h>

#include "src/dtype.h"
#include "src/file.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_ST_MAX_DIMS = 8, MQ_ST_MAX_HEADER = 100000000 };

typedef struct mq_st_tensor {
    const char *name;  /* NUL-terminated UTF-8 without NUL inside, in the file's memory */
    int64_t name_bytes;
    mq_dtype dtype;
    int n_dims;        /* 0: a scalar; more than MQ_ST_MAX_DIMS dims is refused */
    int64_t dims[MQ_ST_MAX_DIMS];
    int64_t off, n_bytes; /* off from the start of the file */
} mq_st_tensor;

typedef struct mq_safetensors mq_safetensors;

/* Open and check a file.  MQ_E_FORMAT: a rule is broken; the text has the form
 * "FILE: tensor 'NAME': rule S11: ..." or "FILE: rule S2: ...".  MQ_E_IO, MQ_E_NOMEM.  Memory stays
 * proportional to the header, which is at most 100 MB. */
mq_status mq_safetensors_open(mq_safetensors **out, const char *path, mq_err *err);
void mq_safetensors_close(mq_safetensors *s); /* accepts NULL */

/* The header rules on bytes in memory (fuzzing, tests): header [header_bytes] is the JSON, data_bytes what
 * follows it in the file.  The result lends names from a copy of its own and cannot read. */
mq_status mq_safetensors_parse(mq_safetensors **out, const char *header, int64_t header_bytes, int64_t data_bytes,
                               const char *name, mq_err *err);

/* Tensors in order of offset. */
int64_t mq_safetensors_count(const mq_safetensors *s);
const mq_st_tensor *mq_safetensors_get(const mq_safetensors *s, int64_t i);
const mq_st_tensor *mq_safetensors_find(const mq_safetensors *s, const char *name); /* NULL: none */
/* The file behind it (size, time); NULL after mq_safetensors_parse. */
const mq_file *mq_safetensors_file(const mq_safetensors *s);
/* SHA-256 of the 8 + N header bytes. */
const uint8_t *mq_safetensors_header_digest(const mq_safetensors *s);

/* Bytes [off, off + n_bytes) of tensor t into dst; any thread.  MQ_E_IO.  The range is the caller's invariant. */
mq_status mq_safetensors_read(const mq_safetensors *s, const mq_st_tensor *t, void *dst, int64_t off, int64_t n_bytes,
                              mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
