/* One safetensors file: the rules that need the file's size or all tensors at once, and reads.
 *
 * safetensors_header.c reads the JSON; here stand S1 to S3 (the frame), S11 (no hole, no overlap), S12 (no trailing
 * byte) and S14 (no name twice).  Values are not judged here (S16): formats/source does where they are read. */
#include "formats/safetensors.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/safetensors_header.h"
#include "src/map.h"
#include "src/sha256.h"

struct mq_safetensors {
    mq_file *file; /* NULL after mq_safetensors_parse */
    mq_st_header header;
    mq_map *by_name; /* index in header.tensors */
    uint8_t digest[MQ_SHA256_BYTES];
};

static mq_status fail_tensor(mq_err *err, const mq_st_tensor *t, const char *rule, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static mq_status fail_tensor(mq_err *err, const mq_st_tensor *t, const char *rule, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return mq_fail(err, MQ_E_FORMAT, "tensor '%.*s': rule %s: %s", MQ_ST_NAME_SHOWN, t->name, rule, what);
}

/* Begin, then end (an empty tensor stands before the one that begins there), then place in the header: names
 * lie in header order. */
static int compare_offsets(const void *va, const void *vb)
{
    const mq_st_tensor *a = va, *b = vb;
    if (a->off != b->off)
        return a->off < b->off ? -1 : 1;
    if (a->n_bytes != b->n_bytes)
        return a->n_bytes < b->n_bytes ? -1 : 1;
    return a->name < b->name ? -1 : a->name > b->name;
}

static void sort_by_offset(mq_st_header *h)
{
    bool sorted = true;
    for (int64_t i = 1; i < h->n_tensors && sorted; i++)
        sorted = compare_offsets(&h->tensors[i - 1], &h->tensors[i]) <= 0;
    if (!sorted)
        qsort(h->tensors, (size_t)h->n_tensors, sizeof *h->tensors, compare_offsets);
}

/* S11 and S12 on tensors sorted by offset. */
static mq_status check_cover(const mq_st_header *h, int64_t data_bytes, mq_err *err)
{
    int64_t end = 0;
    for (int64_t i = 0; i < h->n_tensors; i++) {
        const mq_st_tensor *t = &h->tensors[i];
        if (t->off != end)
            return fail_tensor(err, t, "S11", "begins at data byte %lld, expected %lld (%s)", (long long)t->off,
                               (long long)end, t->off > end ? "a hole" : "an overlap");
        end += t->n_bytes;
        if (end > data_bytes)
            return fail_tensor(err, t, "S12", "ends at data byte %lld, the file has %lld (cut short?)",
                               (long long)end, (long long)data_bytes);
    }
    if (end != data_bytes)
        return mq_fail(err, MQ_E_FORMAT, "rule S12: %lld bytes behind the last tensor",
                       (long long)(data_bytes - end));
    return MQ_OK;
}

static mq_status index_names(mq_safetensors *s, mq_err *err)
{
    const mq_st_header *h = &s->header;
    MQ_TRY(mq_map_create(&s->by_name, h->n_tensors, err));
    for (int64_t i = 0; i < h->n_tensors; i++) {
        const mq_st_tensor *t = &h->tensors[i];
        bool is_new;
        MQ_TRY(mq_map_put(s->by_name, t->name, t->name_bytes, i, &is_new, err));
        if (!is_new)
            return fail_tensor(err, t, "S14", "the name stands twice in the header");
    }
    return MQ_OK;
}

/* Take over text (heap) and check everything behind it. */
static mq_status build(mq_safetensors *s, char *text, int64_t header_bytes, int64_t data_bytes, mq_err *err)
{
    uint8_t frame[8];
    for (int i = 0; i < 8; i++)
        frame[i] = (uint8_t)((uint64_t)header_bytes >> (8 * i));
    mq_sha256 *hash;
    mq_status st = mq_sha256_create(&hash, err);
    if (st != MQ_OK) {
        free(text);
        return st;
    }
    mq_sha256_update(hash, frame, sizeof frame);
    mq_sha256_update(hash, text, header_bytes);
    mq_sha256_finish(hash, s->digest);
    mq_sha256_free(hash);

    MQ_TRY(mq_st_header_parse(&s->header, text, header_bytes, err));
    sort_by_offset(&s->header);
    MQ_TRY(index_names(s, err));
    MQ_TRY(check_cover(&s->header, data_bytes, err));
    for (int64_t i = 0; i < s->header.n_tensors; i++)
        s->header.tensors[i].off += 8 + header_bytes;
    return MQ_OK;
}

/* A checkout without its large files holds small texts in their place. */
static bool is_lfs_pointer(const mq_file *f)
{
    static const char start[] = "version https://git-lfs";
    char head[sizeof start - 1];
    return f->n_bytes >= (int64_t)sizeof head && f->n_bytes <= 4096 &&
           mq_file_read(f, head, 0, sizeof head, NULL) == MQ_OK && memcmp(head, start, sizeof head) == 0;
}

static mq_status read_frame(const mq_file *f, int64_t *header_bytes, mq_err *err)
{
    if (is_lfs_pointer(f))
        return mq_fail(err, MQ_E_FORMAT, "rule S2: looks like a Git LFS pointer, the file itself was not fetched");
    if (f->n_bytes < 8)
        return mq_fail(err, MQ_E_FORMAT, "rule S1: %lld bytes, expected at least 8", (long long)f->n_bytes);
    uint8_t frame[8];
    MQ_TRY(mq_file_read(f, frame, 0, 8, err));
    uint64_t n = 0;
    for (int i = 0; i < 8; i++)
        n |= (uint64_t)frame[i] << (8 * i);
    if (n > MQ_ST_MAX_HEADER)
        return mq_fail(err, MQ_E_FORMAT, "rule S2: header of %llu bytes, expected at most %d",
                       (unsigned long long)n, MQ_ST_MAX_HEADER);
    if ((int64_t)n > f->n_bytes - 8)
        return mq_fail(err, MQ_E_FORMAT, "rule S3: header of %llu bytes in a file of %lld",
                       (unsigned long long)n, (long long)f->n_bytes);
    *header_bytes = (int64_t)n;
    return MQ_OK;
}

/* Somebody still writing the file shows as a size that changes while the header is read. */
static mq_status check_unchanged(const mq_file *f, mq_err *err)
{
    struct stat now;
    if (fstat(f->fd, &now) != 0 || now.st_size != f->n_bytes)
        return mq_fail(err, MQ_E_FORMAT, "rule S12: the file's size changed while it was read");
    return MQ_OK;
}

static mq_status open_file(mq_safetensors *s, const char *path, mq_err *err)
{
    int64_t header_bytes = 0;
    MQ_TRY(mq_file_open(&s->file, path, err));
    mq_status st = read_frame(s->file, &header_bytes, err);
    if (st != MQ_OK)
        return mq_wrap(err, st, "%s", path);
    char *text = malloc((size_t)(header_bytes > 0 ? header_bytes : 1));
    if (!text)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory for a header of %lld bytes", path,
                       (long long)header_bytes);
    st = mq_file_read(s->file, text, 8, header_bytes, err);
    if (st != MQ_OK) {
        free(text);
        return st;
    }
    st = build(s, text, header_bytes, s->file->n_bytes - 8 - header_bytes, err);
    if (st == MQ_OK)
        st = check_unchanged(s->file, err);
    return mq_wrap(err, st, "%s", path);
}

mq_status mq_safetensors_open(mq_safetensors **out, const char *path, mq_err *err)
{
    *out = NULL;
    mq_safetensors *s = calloc(1, sizeof *s);
    if (!s)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", path);
    mq_status st = open_file(s, path, err);
    if (st != MQ_OK) {
        mq_safetensors_close(s);
        return st;
    }
    *out = s;
    return MQ_OK;
}

mq_status mq_safetensors_parse(mq_safetensors **out, const char *header, int64_t header_bytes, int64_t data_bytes,
                               const char *name, mq_err *err)
{
    *out = NULL;
    if (header_bytes < 0 || header_bytes > MQ_ST_MAX_HEADER || data_bytes < 0)
        return mq_fail(err, MQ_E_FORMAT, "%s: rule S2: header of %lld bytes, expected at most %d", name,
                       (long long)header_bytes, MQ_ST_MAX_HEADER);
    mq_safetensors *s = calloc(1, sizeof *s);
    char *text = malloc((size_t)(header_bytes > 0 ? header_bytes : 1));
    if (!s || !text) {
        free(s);
        free(text);
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", name);
    }
    if (header_bytes > 0)
        memcpy(text, header, (size_t)header_bytes);
    mq_status st = build(s, text, header_bytes, data_bytes, err);
    if (st != MQ_OK) {
        mq_safetensors_close(s);
        return mq_wrap(err, st, "%s", name);
    }
    *out = s;
    return MQ_OK;
}

void mq_safetensors_close(mq_safetensors *s)
{
    if (!s)
        return;
    mq_map_free(s->by_name);
    mq_st_header_release(&s->header);
    mq_file_close(s->file);
    free(s);
}

int64_t mq_safetensors_count(const mq_safetensors *s)
{
    return s->header.n_tensors;
}

const mq_st_tensor *mq_safetensors_get(const mq_safetensors *s, int64_t i)
{
    assert(i >= 0 && i < s->header.n_tensors);
    return &s->header.tensors[i];
}

const mq_st_tensor *mq_safetensors_find(const mq_safetensors *s, const char *name)
{
    int64_t i = mq_map_find_str(s->by_name, name);
    return i < 0 ? NULL : &s->header.tensors[i];
}

const mq_file *mq_safetensors_file(const mq_safetensors *s)
{
    return s->file;
}

const uint8_t *mq_safetensors_header_digest(const mq_safetensors *s)
{
    return s->digest;
}

mq_status mq_safetensors_read(const mq_safetensors *s, const mq_st_tensor *t, void *dst, int64_t off,
                              int64_t n_bytes, mq_err *err)
{
    assert(s->file && off >= 0 && n_bytes >= 0 && off <= t->n_bytes - n_bytes);
    return mq_file_read(s->file, dst, t->off + off, n_bytes, err);
}
