/* A shard file as the loader reads it: large aligned blocks, around the page cache where that pays; private to load*.c. */
#ifndef MQ_RUNTIME_LOAD_FILE_H
#define MQ_RUNTIME_LOAD_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/store.h"
#include "src/file.h"

enum { MQ_LOAD_ALIGN = 4096 };

typedef struct mq_load_file {
    const mq_file *file; /* borrowed */
    int direct_fd;       /* the same file opened with O_DIRECT, or -1 */
    bool direct;         /* atomic: blocks go around the page cache; false for good once the file system refuses one */
} mq_load_file;

/* How to read file.  MQ_LOAD_AUTO: directly, unless the file is small, half of it or more is cached, or its file system has no
 * direct reads.  Never fails: what cannot be read directly goes through the page cache. */
void mq_load_file_open(mq_load_file *f, const mq_file *file, mq_load_io io);
void mq_load_file_close(mq_load_file *f);

/* Do blocks go around the page cache?  Any thread. */
bool mq_load_file_is_direct(const mq_load_file *f);
/* Read bytes [off, off + n_bytes) into buf; off and buf are multiples of MQ_LOAD_ALIGN, and buf has room up to the next one
 * behind n_bytes.  *direct_bytes grows by what went around the page cache.  Any thread.  Statuses and texts of mq_file_read. */
mq_status mq_load_file_read(mq_load_file *f, void *buf, int64_t off, int64_t n_bytes, int64_t *direct_bytes, mq_err *err);
/* Tell the system that these bytes are about to be read through the page cache. */
void mq_load_file_expect(const mq_load_file *f, int64_t off, int64_t n_bytes);
/* MQ_E_IO: size or modification time are not those of the moment it was opened. */
mq_status mq_load_file_check(const mq_load_file *f, mq_err *err);

#endif
