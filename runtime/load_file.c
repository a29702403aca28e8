/* Reading shard files in large blocks.
 *
 * A model is read once and is larger than what the page cache should hold: direct reads leave the cache alone and cost no copy
 * in the kernel.  A file that is in the cache already is faster from there, so each file is asked first.  File systems differ
 * in what they refuse, and when: at open, or at the first read. */
#include "runtime/load_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LEAST_DIRECT = 1 << 20, /* below, a file is a few requests whatever the way */
    READ_BYTES = 1 << 30    /* a read call moves less than 2 GiB */
};

/* Is half of the file or more in the page cache?  Also where the system does not tell. */
static bool is_cached(const mq_file *file)
{
    size_t n_bytes = (size_t)file->n_bytes, page = (size_t)sysconf(_SC_PAGESIZE);
    size_t n_pages = (n_bytes + page - 1) / page, n_cached = 0;
    void *map = n_bytes ? mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, file->fd, 0) : MAP_FAILED;
    if (map == MAP_FAILED)
        return true;
    unsigned char *pages = malloc(n_pages);
    bool told = pages && mincore(map, n_bytes, pages) == 0;
    for (size_t i = 0; told && i < n_pages; i++)
        n_cached += pages[i] & 1u;
    munmap(map, n_bytes);
    free(pages);
    return !told || n_cached >= n_pages / 2;
}

/* The very file that is open, once more with O_DIRECT; -1 where that is not possible. */
static int open_direct(const mq_file *file)
{
    struct stat a, b;
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_DIRECT);
    if (fd < 0)
        return -1;
    if (fstat(file->fd, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return fd;
    close(fd);
    return -1;
}

void mq_load_file_open(mq_load_file *f, const mq_file *file, mq_load_io io)
{
    bool wanted = io == MQ_LOAD_DIRECT ||
                  (io == MQ_LOAD_AUTO && file->n_bytes >= LEAST_DIRECT && !is_cached(file));
    f->file = file;
    f->direct_fd = wanted ? open_direct(file) : -1;
    f->direct = f->direct_fd >= 0;
}

void mq_load_file_close(mq_load_file *f)
{
    if (f->direct_fd >= 0)
        close(f->direct_fd);
    f->direct_fd = -1;
    f->direct = false;
}

bool mq_load_file_is_direct(const mq_load_file *f)
{
    return __atomic_load_n(&f->direct, __ATOMIC_RELAXED);
}

/* As many bytes as come directly, a multiple of MQ_LOAD_ALIGN or all. */
static mq_status read_direct(mq_load_file *f, uint8_t *buf, int64_t off, int64_t n_bytes, int64_t *n_read, mq_err *err)
{
    int64_t want = (n_bytes + MQ_LOAD_ALIGN - 1) / MQ_LOAD_ALIGN * MQ_LOAD_ALIGN;
    *n_read = 0;
    while (*n_read < n_bytes) {
        int64_t n = want - *n_read < READ_BYTES ? want - *n_read : READ_BYTES;
        ssize_t got = pread(f->direct_fd, buf + *n_read, (size_t)n, off + *n_read);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EINVAL) { /* not this file system, after all */
            __atomic_store_n(&f->direct, false, __ATOMIC_RELAXED);
            return MQ_OK;
        }
        if (got < 0) {
            char text[128];
            return mq_fail(err, MQ_E_IO, "%s: read: %s", f->file->path, strerror_r(errno, text, sizeof text));
        }
        *n_read += got;
        if (got == 0 || *n_read % MQ_LOAD_ALIGN) { /* the end of the file is near */
            *n_read = *n_read < n_bytes ? *n_read / MQ_LOAD_ALIGN * MQ_LOAD_ALIGN : n_bytes;
            return MQ_OK;
        }
    }
    *n_read = n_bytes;
    return MQ_OK;
}

mq_status mq_load_file_read(mq_load_file *f, void *buf, int64_t off, int64_t n_bytes, int64_t *direct_bytes, mq_err *err)
{
    int64_t n_read = 0;
    if (mq_load_file_is_direct(f))
        MQ_TRY(read_direct(f, buf, off, n_bytes, &n_read, err));
    *direct_bytes += n_read;
    return n_read < n_bytes ? mq_file_read(f->file, (uint8_t *)buf + n_read, off + n_read, n_bytes - n_read, err) : MQ_OK;
}

void mq_load_file_expect(const mq_load_file *f, int64_t off, int64_t n_bytes)
{
    (void)posix_fadvise(f->file->fd, off, n_bytes, POSIX_FADV_WILLNEED);
}

mq_status mq_load_file_check(const mq_load_file *f, mq_err *err)
{
    struct stat info;
    char text[128];
    if (fstat(f->file->fd, &info) != 0)
        return mq_fail(err, MQ_E_IO, "%s: stat: %s", f->file->path, strerror_r(errno, text, sizeof text));
    int64_t mtime_ns = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
    if (info.st_size != f->file->n_bytes)
        return mq_fail(err, MQ_E_IO, "%s: changed while being read: %lld bytes, expected %lld", f->file->path,
                       (long long)info.st_size, (long long)f->file->n_bytes);
    if (mtime_ns != f->file->mtime_ns)
        return mq_fail(err, MQ_E_IO, "%s: changed while being read: it was written to", f->file->path);
    return MQ_OK;
}
