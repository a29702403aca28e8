/* The zip container of a torch file: members found through the central directory, stored, checked.  Private to
 * torch_pt.c. */
#ifndef MQ_FORMATS_TORCH_ZIP_H
#define MQ_FORMATS_TORCH_ZIP_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_ZIP_MAX_MEMBERS = 64, MQ_ZIP_MAX_NAME = 200 };

typedef struct mq_zip_member {
    char name[MQ_ZIP_MAX_NAME + 1]; /* without the archive's root folder */
    const uint8_t *bytes;           /* [n_bytes], inside the archive's bytes */
    int64_t n_bytes;
} mq_zip_member;

typedef struct mq_zip {
    mq_zip_member members[MQ_ZIP_MAX_MEMBERS];
    int n_members;
} mq_zip;

/* Read the archive bytes [n_bytes], which the result borrows.  Strict: one end record at the very end, no comment, central
 * entries equal to their local headers, no overlap, no member twice, one root folder, CRC-32 right.  MQ_E_FORMAT;
 * MQ_E_UNSUPPORTED: compressed or encrypted members, more than MQ_ZIP_MAX_MEMBERS. */
mq_status mq_zip_read(mq_zip *out, const uint8_t *bytes, int64_t n_bytes, mq_err *err);
/* NULL when there is none. */
const mq_zip_member *mq_zip_find(const mq_zip *z, const char *name);

#ifdef __cplusplus
}
#endif
#endif
