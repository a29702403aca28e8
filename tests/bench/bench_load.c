/* How fast a packed model is loaded, against a plain read of the same files.
 *
 *     bench_load DIR RANKS THREADS cpu|cuda [REPEATS [LINE...]]
 *
 * LINE: only lines of the table that hold one of these texts, for example "cold load" or "verify full".
 * THREADS 0: the loader's default (the plain read takes as many).  Cold: pages of the files are dropped from the page cache
 * before every run (posix_fadvise); warm: they were all read right before.  The plain read takes the shard files in blocks of 4 MiB,
 * through the page cache and around it, and looks at no byte.  GB/s are bytes of the files a second of the whole call: for a load
 * that includes reading indexes, allocating, and the last copy.  The median of REPEATS (default 3) runs is printed, and the
 * fastest and slowest; CPU: processor seconds of all threads, mean of the runs; resident set: the most that the process has held
 * so far. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "runtime/store.h"
#include "src/file.h"
#include "src/pool.h"

enum { BLOCK = 4 << 20, MOST_REPEATS = 99 };

typedef struct bench {
    const char *dir;
    char **files; /* shards, sorted */
    int64_t n_files, n_bytes;
    int n_ranks, n_threads, n_repeats;
    char **lines; /* [n_lines] */
    int n_lines;
    const mq_kernels *kernels;
    mq_dev *dev;
} bench;

/* A block of a file. */
typedef struct piece {
    int fd;
    int64_t off;
} piece;

typedef struct plain_read {
    piece *pieces;
    int64_t n;
    uint8_t **bufs; /* [n_threads] of BLOCK bytes */
    int64_t *got;   /* [n_threads] */
} plain_read;

static void fail(const char *what)
{
    fprintf(stderr, "bench_load: %s\n", what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void find_files(bench *b)
{
    mq_err err;
    char **names;
    int64_t n;
    if (mq_dir_list(&names, &n, b->dir, &err) != MQ_OK)
        fail(err.text);
    b->files = calloc((size_t)n + 1, sizeof *b->files);
    for (int64_t i = 0; i < n; i++) {
        size_t len = strlen(names[i]);
        if (len < 4 || strcmp(names[i] + len - 4, ".mqs") != 0)
            continue;
        b->files[b->n_files] = mq_path_join(b->dir, names[i]);
        int fd = open(b->files[b->n_files++], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            fail(names[i]);
        b->n_bytes += lseek(fd, 0, SEEK_END);
        close(fd);
    }
    mq_dir_list_free(names, n);
}

static void drop_cache(const bench *b)
{
    for (int64_t i = 0; i < b->n_files; i++) {
        int fd = open(b->files[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fdatasync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
            fail("the page cache keeps the files");
        close(fd);
    }
}

static mq_status read_piece(void *ctx, int64_t job, int worker, mq_err *err)
{
    plain_read *r = ctx;
    ssize_t n = pread(r->pieces[job].fd, r->bufs[worker], BLOCK, r->pieces[job].off);
    if (n <= 0)
        return mq_fail(err, MQ_E_IO, "plain read");
    r->got[worker] += n;
    return MQ_OK;
}

static double read_plainly(const bench *b, int flags)
{
    mq_err err;
    plain_read r = {.pieces = calloc((size_t)(b->n_bytes / BLOCK + b->n_files + 1), sizeof *r.pieces),
                    .bufs = calloc((size_t)b->n_threads, sizeof *r.bufs),
                    .got = calloc((size_t)b->n_threads, sizeof *r.got)};
    int *fds = calloc((size_t)b->n_files + 1, sizeof *fds);
    for (int i = 0; i < b->n_threads; i++)
        r.bufs[i] = aligned_alloc(4096, BLOCK);
    double start = now();
    for (int64_t i = 0; i < b->n_files; i++) {
        fds[i] = open(b->files[i], O_RDONLY | O_CLOEXEC | flags);
        if (fds[i] < 0)
            fail("the file system has no direct reads");
        for (int64_t off = 0, end = lseek(fds[i], 0, SEEK_END); off < end; off += BLOCK)
            r.pieces[r.n++] = (piece){fds[i], off};
    }
    if (mq_pool_run(b->n_threads, r.n, read_piece, &r, &err) != MQ_OK)
        fail(err.text);
    double s = now() - start;
    for (int64_t i = 0; i < b->n_files; i++)
        close(fds[i]);
    for (int i = 0; i < b->n_threads; i++)
        free(r.bufs[i]);
    free(r.pieces);
    free(r.bufs);
    free(r.got);
    free(fds);
    return s;
}

static double load(const bench *b, mq_load_verify verify, mq_load_io io, mq_load_figures *figures)
{
    mq_err err;
    mq_store *s;
    const mq_store_options o = {.resident = true,
                                .n_ranks = b->n_ranks,
                                .n_threads = b->n_threads,
                                .check = true,
                                .kernels = b->kernels,
                                .dev = b->dev,
                                .verify = verify,
                                .io = io};
    double start = now();
    if (mq_store_open(&s, b->dir, &o, &err) != MQ_OK || b->kernels->dev_sync(b->dev, &err) != MQ_OK)
        fail(err.text);
    double seconds = now() - start;
    *figures = mq_store_loaded(s);
    mq_store_close(s);
    return seconds;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

typedef struct way {
    const char *name;
    bool is_load;
    int flags;
    mq_load_verify verify;
    mq_load_io io;
} way;

/* Is the line asked for? */
static bool is_wanted(const bench *b, const way *w, bool cold)
{
    char line[80];
    snprintf(line, sizeof line, "%s %s", cold ? "cold" : "warm", w->name);
    for (int i = 0; i < b->n_lines; i++)
        if (strstr(line, b->lines[i]))
            return true;
    return b->n_lines == 0;
}

static void run_way(const bench *b, const way *w, bool cold)
{
    double s[MOST_REPEATS], cpu = 0;
    mq_load_figures f = {0};
    struct rusage usage;
    for (int i = 0; i < b->n_repeats; i++) {
        if (cold)
            drop_cache(b);
        else
            read_plainly(b, 0);
        double start = cpu_seconds();
        s[i] = w->is_load ? load(b, w->verify, w->io, &f) : read_plainly(b, w->flags);
        cpu += (cpu_seconds() - start) / b->n_repeats;
    }
    qsort(s, (size_t)b->n_repeats, sizeof *s, compare_doubles);
    getrusage(RUSAGE_SELF, &usage);
    double gb = 1e-9 * (double)b->n_bytes, median = s[b->n_repeats / 2];
    printf("%-5s %-28s %7.2f GB/s  %7.2f s  (%.2f to %.2f)  CPU %.2f s", cold ? "cold" : "warm", w->name, gb / median, median,
           s[0], s[b->n_repeats - 1], cpu);
    if (w->is_load)
        printf("  checked %lld of %lld, direct %3.0f %%, resident set %.2f GB", (long long)f.n_checked,
               (long long)f.n_records, f.read_bytes ? 100.0 * (double)f.direct_bytes / (double)f.read_bytes : 0.0,
               (double)usage.ru_maxrss * 1024e-9);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const way ways[] = {
        {"plain read, page cache", false, 0, 0, 0},
        {"plain read, direct", false, O_DIRECT, 0, 0},
        {"load, verify none", true, 0, MQ_VERIFY_NONE, MQ_LOAD_AUTO},
        {"load, verify sample", true, 0, MQ_VERIFY_PART, MQ_LOAD_AUTO},
        {"load, verify full", true, 0, MQ_VERIFY_FULL, MQ_LOAD_AUTO},
        {"load, verify full, buffered", true, 0, MQ_VERIFY_FULL, MQ_LOAD_BUFFERED},
        {"load, verify full, direct", true, 0, MQ_VERIFY_FULL, MQ_LOAD_DIRECT},
    };
    mq_err err;
    if (argc < 5)
        fail("bench_load DIR RANKS THREADS cpu|cuda [REPEATS [LINE...]]");
    bench b = {.dir = argv[1], .n_ranks = atoi(argv[2]), .n_threads = atoi(argv[3]), .kernels = mq_kernels_find(argv[4]),
               .n_repeats = argc > 5 ? atoi(argv[5]) : 3, .lines = argv + 6, .n_lines = argc > 6 ? argc - 6 : 0};
    if (b.n_threads <= 0)
        b.n_threads = mq_store_load_threads();
    if (!b.kernels || b.n_ranks < 1 || b.n_repeats < 1 || b.n_repeats > MOST_REPEATS)
        fail("a device that is not built in, or a number out of range");
    if (b.kernels->dev_open(&b.dev, 0, 0, NULL, &err) != MQ_OK)
        fail(err.text);
    find_files(&b);
    printf("%s: %lld files, %.2f GB; %d ranks, %d threads, to %s; median of %d\n", b.dir, (long long)b.n_files,
           1e-9 * (double)b.n_bytes, b.n_ranks, b.n_threads, b.kernels->dev_name(b.dev), b.n_repeats);
    for (int cold = 1; cold >= 0; cold--)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
            if (is_wanted(&b, &ways[i], cold))
                run_way(&b, &ways[i], cold);
    b.kernels->dev_close(b.dev);
    for (int64_t i = 0; i < b.n_files; i++)
        free(b.files[i]);
    free(b.files);
    return 0;
}
