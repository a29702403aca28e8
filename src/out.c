/* Output that appears whole or not at all.
 *
 * Output goes to NAME.partial, made anew each time (an old one, even a link, is unlinked first),
 * and is renamed only after its bytes are on the disk.  A failed fsync loses the file: the kernel
 * may have dropped the pages, so trying again could report success for bytes that are gone. */
#include "src/out.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"

enum { PAGE_BYTES = 4096, BLOCK_BYTES = 4 << 20, DIRECT_MIN_BYTES = 128 << 10 };

/* "path: what: errno's text", MQ_E_IO. */
static mq_status io_fail(mq_err *err, const char *path, const char *what)
{
    char text[128];
    return mq_fail(err, MQ_E_IO, "%s: %s: %s", path, what, strerror_r(errno, text, sizeof text));
}

static mq_status path_nomem(mq_err *err, const char *path)
{
    return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", path);
}

struct mq_out {
    char *dir, *path, *partial; /* DIR, DIR/NAME, DIR/NAME.partial */
    int fd;                     /* -1: nothing was created */
    int64_t n_bytes;
    mq_sha256 *hash;    /* NULL: none asked for */
    bool failed;        /* an append failed: the file can only be abandoned */
    uint8_t *block;     /* [BLOCK_BYTES] page-aligned; NULL until the first byte */
    int64_t n_block;    /* gathered, not written yet */
    bool direct;        /* O_DIRECT is on */
    bool buffered_only; /* direct writing did not work: not tried again */
};

/* Free o and, where its partial file exists, remove that. */
static void out_drop(mq_out *o, bool remove_partial)
{
    if (o->fd >= 0)
        close(o->fd);
    if (remove_partial)
        unlink(o->partial);
    mq_sha256_free(o->hash);
    free(o->block);
    free(o->dir);
    free(o->path);
    free(o->partial);
    free(o);
}

static char *with_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), n_suffix = strlen(suffix);
    char *s = malloc(n + n_suffix + 1);
    if (s) {
        memcpy(s, path, n);
        memcpy(s + n, suffix, n_suffix + 1);
    }
    return s;
}

mq_status mq_out_create(mq_out **out, const char *dir, const char *name, bool hash, mq_err *err)
{
    *out = NULL;
    if (!mq_name_is_plain(name, (int64_t)strlen(name)))
        return mq_fail(err, MQ_E_ARG, "%s: '%s' is not a plain file name", dir, name);
    mq_out *o = calloc(1, sizeof *o);
    if (!o)
        return path_nomem(err, name);
    o->fd = -1;
    o->dir = strdup(dir);
    o->path = mq_path_join(dir, name);
    o->partial = o->path ? with_suffix(o->path, ".partial") : NULL;
    mq_status st = o->dir && o->partial ? MQ_OK : path_nomem(err, name);
    if (st == MQ_OK && hash)
        st = mq_sha256_create(&o->hash, err);
    if (st == MQ_OK && unlink(o->partial) != 0 && errno != ENOENT)
        st = io_fail(err, o->partial, "remove");
    if (st == MQ_OK) {
        o->fd = open(o->partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (o->fd < 0)
            st = io_fail(err, o->partial, "create");
    }
    if (st != MQ_OK) {
        out_drop(o, false);
        return st;
    }
    *out = o;
    return MQ_OK;
}

static void set_direct(mq_out *o, bool on)
{
    int flags = fcntl(o->fd, F_GETFL);
    o->direct =
        flags >= 0 && fcntl(o->fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 && on;
}

/* Write block bytes [at, end), past the page cache or through it. */
static mq_status write_bytes(mq_out *o, int64_t at, int64_t end, bool direct, mq_err *err)
{
    if (at < end && direct != o->direct)
        set_direct(o, direct);
    while (at < end) {
        ssize_t n = write(o->fd, o->block + at, (size_t)(end - at));
        if (n < 0 && errno == EINTR)
            continue;
        if (o->direct && ((n < 0 && errno == EINVAL) || (n > 0 && n % PAGE_BYTES))) {
            /* Not on this file system, or a short write broke the alignment. */
            o->buffered_only = true;
            set_direct(o, false);
        } else if (n < 0) {
            o->failed = true;
            return io_fail(err, o->partial, "write");
        }
        at += n > 0 ? n : 0;
    }
    return MQ_OK;
}

/* Write the gathered bytes: whole pages directly, unless there are few, and what is left of the last page. */
static mq_status write_block(mq_out *o, mq_err *err)
{
    int64_t pages = o->n_block / PAGE_BYTES * PAGE_BYTES;
    bool direct = !o->buffered_only && pages >= DIRECT_MIN_BYTES;
    if (direct)
        MQ_TRY(write_bytes(o, 0, pages, true, err));
    MQ_TRY(write_bytes(o, direct ? pages : 0, o->n_block, false, err));
    o->n_block = 0;
    return MQ_OK;
}

mq_status mq_out_append(mq_out *o, const void *bytes, int64_t n_bytes, mq_err *err)
{
    assert(n_bytes >= 0);
    if (o->failed)
        return mq_fail(err, MQ_E_IO, "%s: an earlier write failed", o->partial);
    if (!o->block && n_bytes > 0)
        o->block = aligned_alloc(PAGE_BYTES, BLOCK_BYTES);
    if (!o->block && n_bytes > 0)
        return path_nomem(err, o->partial);
    for (int64_t at = 0; at < n_bytes;) {
        int64_t room = BLOCK_BYTES - o->n_block, n = n_bytes - at < room ? n_bytes - at : room;
        memcpy(o->block + o->n_block, (const char *)bytes + at, (size_t)n);
        o->n_block += n;
        at += n;
        if (o->n_block == BLOCK_BYTES)
            MQ_TRY(write_block(o, err));
    }
    if (o->hash)
        mq_sha256_update(o->hash, bytes, n_bytes);
    o->n_bytes += n_bytes;
    return MQ_OK;
}

int64_t mq_out_bytes(const mq_out *o)
{
    return o->n_bytes;
}

/* Bytes to the disk, then close: some file systems report a full disk only here. */
static mq_status out_flush(mq_out *o, mq_err *err)
{
    if (o->failed)
        return mq_fail(err, MQ_E_IO, "%s: an earlier write failed", o->partial);
    MQ_TRY(write_block(o, err));
    if (fsync(o->fd) != 0)
        return io_fail(err, o->partial, "fsync");
    int fd = o->fd;
    o->fd = -1;
    if (close(fd) != 0)
        return io_fail(err, o->partial, "close");
    return MQ_OK;
}

mq_status mq_out_commit(mq_out *o, uint8_t digest[MQ_SHA256_BYTES], mq_err *err)
{
    assert(!digest || o->hash);
    mq_status st = out_flush(o, err);
    if (st == MQ_OK && rename(o->partial, o->path) != 0)
        st = io_fail(err, o->path, "rename");
    if (st != MQ_OK) {
        out_drop(o, true);
        return st;
    }
    st = mq_dir_sync(o->dir, err);
    if (st != MQ_OK)
        unlink(o->path); /* whether the name survives a crash is unknown: better none than a
                            doubtful one */
    if (st == MQ_OK && digest)
        mq_sha256_finish(o->hash, digest);
    out_drop(o, false);
    return st;
}

void mq_out_abandon(mq_out *o)
{
    if (o)
        out_drop(o, true);
}
