/* Rows of the residual stream, on the heap or in a file.
 *
 * A file is NAME.partial until it is saved; then its bytes are synced and it gets its name, so a name always stands for whole
 * contents.  The heap holds what a file would, and saving writes it out.  Rows on the heap are copied, those in a file are
 * read by position: no state is shared, so readers need no lock.  The digest is one over the digests of fixed blocks, which
 * threads compute side by side. */
#include "calib/hidden.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "src/pool.h"

enum { BLOCK_BYTES = 4 << 20, IO_CHUNK = 1 << 30, RUN_ROWS = 64 };

struct mq_hidden {
    char *dir, *name;
    char *path, *partial;
    int64_t n_rows, cols, row_bytes, n_bytes;
    float *mem; /* [n_rows, cols]; NULL: in the file */
    int fd;     /* -1: on the heap */
    bool saved; /* path is there and whole */
};

/* "path: what: errno's text", MQ_E_IO. */
static mq_status io_fail(mq_err *err, const char *path, const char *what)
{
    char text[128];
    return mq_fail(err, MQ_E_IO, "%s: %s: %s", path, what, strerror_r(errno, text, sizeof text));
}

static mq_status hidden_init(mq_hidden **out, const char *dir, const char *name, int64_t n_rows, int64_t cols,
                             mq_err *err)
{
    assert(n_rows >= 0 && cols > 0 && n_rows <= INT64_MAX / 8 / cols);
    *out = NULL;
    mq_hidden *h = calloc(1, sizeof *h);
    if (!h)
        return mq_fail(err, MQ_E_NOMEM, "hidden states: out of memory");
    h->fd = -1;
    h->n_rows = n_rows;
    h->cols = cols;
    h->row_bytes = cols * (int64_t)sizeof(float);
    h->n_bytes = n_rows * h->row_bytes;
    h->dir = strdup(dir);
    h->name = strdup(name);
    h->path = mq_path_join(dir, name);
    size_t n = strlen(dir) + strlen(name) + sizeof "/.partial";
    h->partial = malloc(n);
    if (h->partial)
        snprintf(h->partial, n, "%s/%s.partial", dir, name);
    *out = h;
    return h->dir && h->name && h->path && h->partial ? MQ_OK
                                                      : mq_fail(err, MQ_E_NOMEM, "hidden states: out of memory");
}

static mq_status heap_room(mq_hidden *h, mq_err *err)
{
    size_t n = ((size_t)h->n_bytes + 64) / 64 * 64;
    h->mem = aligned_alloc(64, n);
    return h->mem ? MQ_OK
                  : mq_fail(err, MQ_E_NOMEM, "hidden states of %lld bytes: out of memory", (long long)h->n_bytes);
}

static mq_status create_file(mq_hidden *h, mq_err *err)
{
    int64_t free_bytes;
    if (unlink(h->partial) != 0 && errno != ENOENT)
        return io_fail(err, h->partial, "remove");
    MQ_TRY(mq_dir_free_bytes(&free_bytes, h->dir, err));
    if (free_bytes < h->n_bytes)
        return mq_fail(err, MQ_E_IO, "%s: not enough space: %lld bytes needed, %lld free", h->partial,
                       (long long)h->n_bytes, (long long)free_bytes);
    h->fd = open(h->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (h->fd < 0)
        return io_fail(err, h->partial, "create");
    if (ftruncate(h->fd, h->n_bytes) != 0)
        return io_fail(err, h->partial, "resize");
    return MQ_OK;
}

mq_status mq_hidden_create(mq_hidden **out, const char *dir, const char *name, int64_t n_rows, int64_t cols,
                           bool in_memory, mq_err *err)
{
    mq_status st = hidden_init(out, dir, name, n_rows, cols, err);
    if (st == MQ_OK)
        st = in_memory ? heap_room(*out, err) : create_file(*out, err);
    if (st != MQ_OK) {
        mq_hidden_close(*out);
        *out = NULL;
    }
    return st;
}

void mq_hidden_close(mq_hidden *h)
{
    if (!h)
        return;
    if (h->fd >= 0) {
        close(h->fd);
        if (!h->saved)
            unlink(h->partial);
    }
    free(h->mem);
    free(h->dir);
    free(h->name);
    free(h->path);
    free(h->partial);
    free(h);
}

int64_t mq_hidden_rows(const mq_hidden *h)
{
    return h->n_rows;
}

int64_t mq_hidden_cols(const mq_hidden *h)
{
    return h->cols;
}

/* ---- Bytes ---- */

static mq_status read_at(const mq_hidden *h, void *out, int64_t off, int64_t n_bytes, mq_err *err)
{
    if (h->mem) {
        memcpy(out, (const char *)h->mem + off, (size_t)n_bytes);
        return MQ_OK;
    }
    for (char *to = out; n_bytes > 0;) {
        ssize_t n = pread(h->fd, to, (size_t)(n_bytes < IO_CHUNK ? n_bytes : IO_CHUNK), off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_fail(err, h->path, "read");
        if (n == 0)
            return mq_fail(err, MQ_E_IO, "%s: file shrank while being read", h->path);
        to += n;
        off += n;
        n_bytes -= n;
    }
    return MQ_OK;
}

mq_status mq_hidden_read(const mq_hidden *h, float *out, int64_t row0, int64_t n, mq_err *err)
{
    assert(row0 >= 0 && n >= 0 && row0 <= h->n_rows - n);
    return read_at(h, out, row0 * h->row_bytes, n * h->row_bytes, err);
}

/* Bytes off .. of the file. */
static mq_status write_file(const mq_hidden *h, const float *in, int64_t off, int64_t n_bytes, mq_err *err)
{
    for (const char *from = (const char *)in; n_bytes > 0;) {
        ssize_t got = pwrite(h->fd, from, (size_t)(n_bytes < IO_CHUNK ? n_bytes : IO_CHUNK), off);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return io_fail(err, h->partial, "write");
        from += got;
        off += got;
        n_bytes -= got;
    }
    return MQ_OK;
}

mq_status mq_hidden_write(mq_hidden *h, const float *in, int64_t row0, int64_t n, mq_err *err)
{
    assert(row0 >= 0 && n >= 0 && row0 <= h->n_rows - n && !h->saved);
    int64_t off = row0 * h->row_bytes, n_bytes = n * h->row_bytes;
    if (h->mem) {
        memcpy((char *)h->mem + off, in, (size_t)n_bytes);
        return MQ_OK;
    }
    return write_file(h, in, off, n_bytes, err);
}

mq_status mq_hidden_gather(const mq_hidden *h, float *out, const int32_t *index, int64_t n, mq_err *err)
{
    for (int64_t i = 0, run; i < n; i += run) { /* rows that follow each other are read at once */
        assert(index[i] >= 0 && index[i] < h->n_rows);
        for (run = 1; i + run < n && run < RUN_ROWS && index[i + run] == index[i] + run;)
            run++;
        MQ_TRY(mq_hidden_read(h, out + i * h->cols, index[i], run, err));
    }
    return MQ_OK;
}

/* ---- Digest ---- */

typedef struct block_job {
    const mq_hidden *h;
    uint8_t *digests; /* [n_blocks, MQ_SHA256_BYTES] */
    uint8_t **room;   /* [n_threads] a block each; NULL: not needed, the rows are on the heap */
} block_job;

static mq_status hash_block(void *ctx, int64_t i, int worker, mq_err *err)
{
    block_job *j = ctx;
    int64_t off = i * BLOCK_BYTES, left = j->h->n_bytes - off, n = left < BLOCK_BYTES ? left : BLOCK_BYTES;
    const uint8_t *bytes = (const uint8_t *)j->h->mem + off;
    if (!j->h->mem) {
        if (!j->room[worker] && !(j->room[worker] = malloc(BLOCK_BYTES)))
            return mq_fail(err, MQ_E_NOMEM, "hidden states: out of memory");
        MQ_TRY(read_at(j->h, j->room[worker], off, n, err));
        bytes = j->room[worker];
    }
    mq_sha256_of(j->digests + i * MQ_SHA256_BYTES, bytes, n);
    return MQ_OK;
}

static mq_status digest_of(uint8_t digest[MQ_SHA256_BYTES], const mq_hidden *h, int n_threads, mq_err *err)
{
    int64_t n_blocks = (h->n_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    block_job j = {.h = h};
    j.digests = malloc((size_t)(n_blocks + 1) * MQ_SHA256_BYTES);
    j.room = calloc((size_t)n_threads, sizeof *j.room);
    mq_status st = j.digests && j.room ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "hidden states: out of memory");
    if (st == MQ_OK)
        st = mq_pool_run(n_threads, n_blocks, hash_block, &j, err);
    if (st == MQ_OK)
        mq_sha256_of(digest, j.digests, n_blocks * MQ_SHA256_BYTES);
    for (int i = 0; j.room && i < n_threads; i++)
        free(j.room[i]);
    free(j.room);
    free(j.digests);
    return st;
}

/* ---- Saving and opening ---- */

/* The heap's bytes as NAME.partial. */
static mq_status write_heap(mq_hidden *h, mq_err *err)
{
    MQ_TRY(create_file(h, err));
    return write_file(h, h->mem, 0, h->n_bytes, err);
}

mq_status mq_hidden_save(mq_hidden *h, uint8_t digest[MQ_SHA256_BYTES], int n_threads, mq_err *err)
{
    assert(!h->saved);
    bool on_heap = h->mem != NULL;
    mq_status st = digest_of(digest, h, n_threads, err);
    if (st == MQ_OK && on_heap)
        st = write_heap(h, err);
    if (st == MQ_OK && fsync(h->fd) != 0)
        st = io_fail(err, h->partial, "fsync");
    if (st == MQ_OK && rename(h->partial, h->path) != 0)
        st = io_fail(err, h->path, "rename");
    if (st == MQ_OK) {
        h->saved = true;
        st = mq_dir_sync(h->dir, err);
    }
    if (on_heap && h->fd >= 0) {
        close(h->fd);
        h->fd = -1;
        if (!h->saved)
            unlink(h->partial);
    }
    return st;
}

mq_status mq_hidden_open(mq_hidden **out, const char *dir, const char *name, int64_t n_rows, int64_t cols,
                         const uint8_t digest[MQ_SHA256_BYTES], bool in_memory, int n_threads, mq_err *err)
{
    mq_status st = hidden_init(out, dir, name, n_rows, cols, err);
    mq_hidden *h = *out;
    mq_file *file = NULL;
    if (st == MQ_OK)
        st = mq_file_open(&file, h->path, err);
    if (st == MQ_OK && file->n_bytes != h->n_bytes)
        st = mq_fail(err, MQ_E_HASH, "%s: %lld bytes, expected %lld", h->path, (long long)file->n_bytes,
                     (long long)h->n_bytes);
    if (st == MQ_OK) {
        h->saved = true;
        h->fd = dup(file->fd);
        st = h->fd >= 0 ? MQ_OK : io_fail(err, h->path, "open");
    }
    if (st == MQ_OK && in_memory) {
        st = heap_room(h, err);
        if (st == MQ_OK)
            st = mq_file_read(file, h->mem, 0, h->n_bytes, err);
        close(h->fd);
        h->fd = -1;
    }
    mq_file_close(file);
    uint8_t got[MQ_SHA256_BYTES];
    if (st == MQ_OK)
        st = digest_of(got, h, n_threads, err);
    if (st == MQ_OK && memcmp(got, digest, sizeof got) != 0)
        st = mq_fail(err, MQ_E_HASH, "%s: its digest is not the recorded one", h->path);
    if (st != MQ_OK) {
        mq_hidden_close(h);
        *out = NULL;
    }
    return st;
}
