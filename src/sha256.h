/* SHA-256 (FIPS 180-4), incremental and one-shot.  sha256.c is the only user of OpenSSL. */
#ifndef MQ_SRC_SHA256_H
#define MQ_SRC_SHA256_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_SHA256_BYTES = 32, MQ_SHA256_HEX = 65 /* with NUL */ };

typedef struct mq_sha256 mq_sha256;

mq_status mq_sha256_create(mq_sha256 **out, mq_err *err); /* MQ_E_NOMEM */
void mq_sha256_free(mq_sha256 *h);                        /* accepts NULL */
void mq_sha256_reset(mq_sha256 *h);
void mq_sha256_update(mq_sha256 *h, const void *bytes, int64_t n_bytes);
/* Writes the digest and resets. */
void mq_sha256_finish(mq_sha256 *h, uint8_t digest[MQ_SHA256_BYTES]);

void mq_sha256_of(uint8_t digest[MQ_SHA256_BYTES], const void *bytes, int64_t n_bytes);
void mq_sha256_hex(char hex[MQ_SHA256_HEX], const uint8_t digest[MQ_SHA256_BYTES]); /* lower case */

#ifdef __cplusplus
}
#endif
#endif
