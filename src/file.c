/* Files on a POSIX system: positioned reads that any thread may do, names and folders.  Output is in out.c. */
#include "src/file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { IO_CHUNK = 1 << 30 }; /* one read or write call moves less than 2 GiB on Linux */

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

/* ---- reading ---- */

static mq_status check_regular(const struct stat *info, const char *path, mq_err *err)
{
    if (!S_ISREG(info->st_mode))
        return mq_fail(err, MQ_E_FORMAT, "%s: not a regular file", path);
    return MQ_OK;
}

mq_status mq_file_open(mq_file **out, const char *path, mq_err *err)
{
    *out = NULL;
    struct stat info;
    /* Asked before opening, because opening a device can have effects; and again after, because of
     * races. */
    if (stat(path, &info) != 0)
        return io_fail(err, path, "open");
    MQ_TRY(check_regular(&info, path, err));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return io_fail(err, path, "open");

    mq_file *f = NULL;
    mq_status st =
        fstat(fd, &info) == 0 ? check_regular(&info, path, err) : io_fail(err, path, "stat");
    if (st == MQ_OK) {
        f = calloc(1, sizeof *f);
        if (!f || !(f->path = strdup(path)))
            st = path_nomem(err, path);
    }
    if (st != MQ_OK) {
        free(f);
        close(fd);
        return st;
    }
    f->fd = fd;
    f->n_bytes = info.st_size;
    f->mtime_ns = (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
    *out = f;
    return MQ_OK;
}

void mq_file_close(mq_file *f)
{
    if (!f)
        return;
    close(f->fd);
    free(f->path);
    free(f);
}

mq_status mq_file_read(const mq_file *f, void *dst, int64_t off, int64_t n_bytes, mq_err *err)
{
    if (off < 0 || n_bytes < 0 || off > f->n_bytes || n_bytes > f->n_bytes - off)
        return mq_fail(err, MQ_E_IO, "%s: %lld bytes asked for at %lld, the file has %lld", f->path,
                       (long long)n_bytes, (long long)off, (long long)f->n_bytes);
    char *to = dst;
    while (n_bytes > 0) {
        ssize_t n = pread(f->fd, to, (size_t)(n_bytes < IO_CHUNK ? n_bytes : IO_CHUNK), off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_fail(err, f->path, "read");
        if (n == 0)
            return mq_fail(err, MQ_E_IO,
                           "%s: file shrank while being read: it ends at %lld, expected %lld",
                           f->path, (long long)off, (long long)f->n_bytes);
        to += n;
        off += n;
        n_bytes -= n;
    }
    return MQ_OK;
}

/* Room for n_bytes in an empty buffer, exactly once instead of by doubling. */
static mq_status buf_resize(mq_buf *b, int64_t n_bytes, const char *path, mq_err *err)
{
    mq_buf_clear(b);
    if (b->cap <= n_bytes) {
        mq_buf_release(b);
        b->data = malloc((size_t)n_bytes + 1);
        if (!b->data)
            return path_nomem(err, path);
        b->cap = n_bytes + 1;
    }
    return MQ_OK;
}

mq_status mq_file_load(mq_buf *out, const char *path, int64_t max_bytes, mq_err *err)
{
    mq_buf_clear(out);
    mq_file *f;
    MQ_TRY(mq_file_open(&f, path, err));
    mq_status st = MQ_OK;
    if (f->n_bytes > max_bytes)
        st = mq_fail(err, MQ_E_FORMAT, "%s: %lld bytes, expected at most %lld", path,
                     (long long)f->n_bytes, (long long)max_bytes);
    if (st == MQ_OK)
        st = buf_resize(out, f->n_bytes, path, err);
    if (st == MQ_OK)
        st = mq_file_read(f, out->data, 0, f->n_bytes, err);
    if (st == MQ_OK) {
        out->n_bytes = f->n_bytes;
        out->data[out->n_bytes] = '\0';
    }
    mq_file_close(f);
    return st;
}

mq_status mq_file_save(const char *dir, const char *name, const void *bytes, int64_t n_bytes,
                       mq_err *err)
{
    mq_out *o;
    MQ_TRY(mq_out_create(&o, dir, name, false, err));
    mq_status st = mq_out_append(o, bytes, n_bytes, err);
    if (st != MQ_OK) {
        mq_out_abandon(o);
        return st;
    }
    return mq_out_commit(o, NULL, err);
}

/* ---- names and folders ---- */

char *mq_path_join(const char *dir, const char *name)
{
    size_t n_dir = strlen(dir), n_name = strlen(name);
    char *s = malloc(n_dir + n_name + 2);
    if (!s)
        return NULL;
    memcpy(s, dir, n_dir);
    s[n_dir] = '/';
    memcpy(s + n_dir + 1, name, n_name + 1);
    return s;
}

bool mq_name_is_plain(const char *name, int64_t name_bytes)
{
    if (name_bytes < 1 || name_bytes > 255)
        return false;
    if (memchr(name, '/', (size_t)name_bytes) || memchr(name, '\0', (size_t)name_bytes))
        return false;
    return !(name[0] == '.' && (name_bytes == 1 || (name_bytes == 2 && name[1] == '.')));
}

bool mq_path_is_dir(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool mq_path_exists(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0;
}

mq_status mq_dir_create(const char *path, mq_err *err)
{
    if (mkdir(path, 0777) == 0)
        return MQ_OK;
    if (errno != EEXIST)
        return io_fail(err, path, "create folder");
    if (!mq_path_is_dir(path))
        return mq_fail(err, MQ_E_EXISTS, "%s: exists and is not a folder", path);
    return MQ_OK;
}

mq_status mq_dir_sync(const char *path, mq_err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return io_fail(err, path, "open folder");
    mq_status st = MQ_OK;
    if (fsync(fd) != 0 &&
        errno != EINVAL) /* EINVAL: this file system has no such operation for folders */
        st = io_fail(err, path, "fsync folder");
    close(fd);
    return st;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void mq_dir_list_free(char **names, int64_t n_names)
{
    for (int64_t i = 0; names && i < n_names; i++)
        free(names[i]);
    free(names);
}

/* Append a copy of name to the array, which has room for *cap. */
static bool push_name(char ***names, int64_t *n, int64_t *cap, const char *name)
{
    if (*n == *cap) {
        int64_t grown = *cap ? 2 * *cap : 64;
        char **p = realloc(*names, (size_t)grown * sizeof *p);
        if (!p)
            return false;
        *names = p;
        *cap = grown;
    }
    char *copy = strdup(name);
    if (!copy)
        return false;
    (*names)[(*n)++] = copy;
    return true;
}

mq_status mq_dir_list(char ***names, int64_t *n_names, const char *dir, mq_err *err)
{
    *names = NULL;
    *n_names = 0;
    DIR *d = opendir(dir);
    if (!d)
        return io_fail(err, dir, "open folder");
    mq_status st = MQ_OK;
    char **list = NULL;
    int64_t n = 0, cap = 0;
    while (st == MQ_OK) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e) {
            if (errno)
                st = io_fail(err, dir, "read folder");
            break;
        }
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            !push_name(&list, &n, &cap, e->d_name))
            st = path_nomem(err, dir);
    }
    closedir(d);
    if (st != MQ_OK) {
        mq_dir_list_free(list, n);
        return st;
    }
    if (n > 1)
        qsort(list, (size_t)n, sizeof *list, compare_names);
    *names = list;
    *n_names = n;
    return MQ_OK;
}

mq_status mq_dir_free_bytes(int64_t *n_bytes, const char *path, mq_err *err)
{
    *n_bytes = 0;
    struct statvfs info;
    if (statvfs(path, &info) != 0)
        return io_fail(err, path, "statvfs");
    uint64_t unit = info.f_frsize ? info.f_frsize : info.f_bsize, blocks = info.f_bavail;
    *n_bytes = unit && blocks > (uint64_t)INT64_MAX / unit ? INT64_MAX : (int64_t)(unit * blocks);
    return MQ_OK;
}
