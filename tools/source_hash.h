/* The input files of a conversion: which they are, how to notice that one changed, and their SHA-256, computed by a
 * thread that reads them front to back while the conversion runs. */
#ifndef MQ_TOOLS_SOURCE_HASH_H
#define MQ_TOOLS_SOURCE_HASH_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/source.h"
#include "src/sha256.h"

/* An input file.  Identity: size, modification time, and the digest of its head (safetensors: the header; others: the first
 * 64 KiB), which together notice a replaced file without reading it all. */
typedef struct mq_input {
    char *name; /* relative to the checkpoint, "dflash/..." for the drafter's */
    int64_t bytes, mtime_ns;
    uint8_t head[MQ_SHA256_BYTES];
    bool is_weights; /* a safetensors file */
    bool is_extra;   /* copied into the packed model unchanged */
    bool is_hashed;
    uint8_t sha256[MQ_SHA256_BYTES]; /* where is_hashed */
} mq_input;

typedef struct mq_inputs {
    mq_input *items; /* [n], sorted by name */
    int64_t n;
} mq_inputs;

/* List the input files of an open checkpoint: configs, index, weights, tokenizer files, drafter.  MQ_E_IO, MQ_E_NOMEM. */
mq_status mq_inputs_list(mq_inputs *out, const mq_source *s, mq_err *err);
void mq_inputs_release(mq_inputs *in);
mq_input *mq_inputs_find(const mq_inputs *in, const char *name); /* NULL: none */

/* MQ_E_IO "changed while being read" where a file's size or time is not what the list says. */
mq_status mq_inputs_check_unchanged(const mq_inputs *in, const char *dir, mq_err *err);

typedef struct mq_hasher mq_hasher;
/* Called on the hashing thread after each file; a failure ends the hashing. */
typedef mq_status (*mq_hashed_fn)(void *ctx, const mq_input *file, mq_err *err);

/* Start hashing the files of in (borrowed until join) that are not hashed yet. */
mq_status mq_hasher_start(mq_hasher **out, const char *dir, mq_inputs *in, mq_hashed_fn fn, void *ctx, mq_err *err);
bool mq_hasher_failed(const mq_hasher *h);  /* it gave up; join tells why */
bool mq_hasher_running(const mq_hasher *h); /* join would wait */
/* Wait for the end, or with stop end it soon (MQ_E_STOPPED); frees h.  MQ_E_IO. */
mq_status mq_hasher_join(mq_hasher *h, bool stop, mq_err *err);

#endif
