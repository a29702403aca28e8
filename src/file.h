/* Files: positioned reads, directory helpers, and output that is either whole or not there.
 *
 * Crash safety: an output is written as NAME.partial, fsynced, renamed to NAME, and its folder fsynced.
 * A failed fsync means the file is lost; nothing retries it. */
#ifndef MQ_SRC_FILE_H
#define MQ_SRC_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/out.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A regular file opened for reading. */
typedef struct mq_file {
    int fd;
    int64_t n_bytes;  /* size at open */
    int64_t mtime_ns; /* modification time at open */
    char *path;       /* owned copy */
} mq_file;

/* Open a regular file (symbolic links are followed).  Directories, FIFOs, devices and sockets are MQ_E_FORMAT
 * "not a regular file" (never blocks on a FIFO); missing or unreadable is MQ_E_IO.  The text names the path. */
mq_status mq_file_open(mq_file **out, const char *path, mq_err *err);
void mq_file_close(mq_file *f); /* accepts NULL */

/* Read exactly n_bytes at off into dst; any thread.  MQ_E_IO: read error or the file ended early ("file shrank
 * while being read"), path named. */
mq_status mq_file_read(const mq_file *f, void *dst, int64_t off, int64_t n_bytes, mq_err *err);

/* Whole file of at most max_bytes into out (cleared first).  MQ_E_FORMAT when larger. */
mq_status mq_file_load(mq_buf *out, const char *path, int64_t max_bytes, mq_err *err);

/* Write a small file at once through mq_out. */
mq_status mq_file_save(const char *dir, const char *name, const void *bytes, int64_t n_bytes, mq_err *err);

/* dir + "/" + name, heap; NULL when out of memory. */
char *mq_path_join(const char *dir, const char *name);
/* A plain file name: not empty, no '/', no NUL, not "." or "..", at most 255 bytes. */
bool mq_name_is_plain(const char *name, int64_t name_bytes);
bool mq_path_is_dir(const char *path);
bool mq_path_exists(const char *path);
/* mkdir; an existing directory is fine.  MQ_E_EXISTS: something else has the name. */
mq_status mq_dir_create(const char *path, mq_err *err);
mq_status mq_dir_sync(const char *path, mq_err *err);
/* Names in dir (without . and ..), sorted bytewise; heap array of heap strings. */
mq_status mq_dir_list(char ***names, int64_t *n_names, const char *dir, mq_err *err);
void mq_dir_list_free(char **names, int64_t n_names);
/* Bytes free to this user on path's file system. */
mq_status mq_dir_free_bytes(int64_t *n_bytes, const char *path, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
