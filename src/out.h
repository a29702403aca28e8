/* Output that appears whole or not at all: written as NAME.partial, synced, renamed to NAME.
 *
 * Bytes gather in blocks that go to the disk past the page cache where the file system allows it (a third of the
 * processor time of buffered writes, measured; packed models are far larger than memory and are not read back). */
#ifndef MQ_SRC_OUT_H
#define MQ_SRC_OUT_H

#include <stdbool.h>
#include <stdint.h>

#include "src/sha256.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An output being written under a temporary name. */
typedef struct mq_out mq_out;

/* Create DIR/NAME.partial (an old one is replaced).  hash: keep a running SHA-256 of what is appended.
 * MQ_E_ARG: name is not plain.  MQ_E_IO, MQ_E_NOMEM. */
mq_status mq_out_create(mq_out **out, const char *dir, const char *name, bool hash, mq_err *err);
/* Append; retries short writes; MQ_E_IO names the file and errno's text; after it every
 * further append and the commit fail. */
mq_status mq_out_append(mq_out *o, const void *bytes, int64_t n_bytes, mq_err *err);
int64_t mq_out_bytes(const mq_out *o);
/* fsync, rename to NAME, fsync DIR; frees o in every case.  An old NAME is replaced atomically.
 * digest (may be NULL; needs hash) gets the SHA-256.  On failure no file named NAME has been created and the partial file
 * is removed; an old NAME is untouched unless the fsync of DIR itself failed. */
mq_status mq_out_commit(mq_out *o, uint8_t digest[MQ_SHA256_BYTES], mq_err *err);
void mq_out_abandon(mq_out *o); /* remove the partial file; accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
