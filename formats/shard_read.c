/* Reads a shard file: all of its structure at open, its records on demand.
 *
 * Bytes are hostile until shown otherwise.  Nothing is allocated by a number from the file before
 * that number is known to fit the file: the index lies in it, and a compressed record cannot be
 * larger than zstd's best ratio allows.  The index digest covers the header too, so that with the
 * records' own digests and zero padding every bit of a file is accounted for. */
#include "formats/shard_read.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "src/codec.h"
#include "src/dtype.h"
#include "src/map.h"

enum {
    PIECE_BYTES = 4 << 20,
    /* A zstd block of 4 bytes stands for at most 128 KiB. */
    MAX_ZSTD_RATIO = 1 << 15
};

struct mq_shard {
    char *path;           /* for texts */
    mq_file *file;        /* or */
    const uint8_t *bytes; /* borrowed */
    int64_t n_bytes;
    bool hashed; /* digests are compared */
    mq_shard_header header;
    mq_shard_trailer trailer;
    uint8_t *index;                /* [trailer.index_bytes] as in the file */
    const mq_shard_entry *entries; /* [trailer.n_records], in index */
    const char *names;             /* [trailer.names_bytes], in index */
    char *name_text;               /* the names, each with a NUL */
    const char **name_of;          /* [n_records], into name_text */
    mq_map *by_name;
};

/* ---- Access ---- */

/* Bytes [off, off + n_bytes), which lie in the file: a pointer into memory, or buf filled from the
 * file. */
static mq_status view_bytes(const uint8_t **out, const mq_shard *s, void *buf, int64_t off,
                            int64_t n_bytes, mq_err *err)
{
    *out = buf;
    if (s->file)
        return mq_file_read(s->file, buf, off, n_bytes, err);
    *out = s->bytes + off;
    return MQ_OK;
}

static mq_status read_bytes(const mq_shard *s, void *dst, int64_t off, int64_t n_bytes, mq_err *err)
{
    if (s->file)
        return mq_file_read(s->file, dst, off, n_bytes, err);
    memcpy(dst, s->bytes + off, (size_t)n_bytes);
    return MQ_OK;
}

static bool is_zero(const uint8_t *bytes, int64_t n)
{
    return n <= 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, (size_t)n - 1) == 0);
}

static mq_status nomem(const mq_shard *s, mq_err *err)
{
    return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", s->path);
}

/* Put "path: tensor 'name'" in front of a cause. */
static mq_status wrap_record(const mq_shard *s, int64_t i, mq_status st, mq_err *err)
{
    return mq_wrap(err, st, "%s: tensor '%s'", s->path, s->name_of[i]);
}

/* ---- Open ---- */

static mq_status read_ends(mq_shard *s, mq_err *err)
{
    const int64_t least = MQ_SHARD_ALIGN + (int64_t)sizeof s->trailer;
    if (s->n_bytes < least)
        return mq_fail(err, MQ_E_FORMAT, "%lld bytes, expected at least %lld (truncated?)",
                       (long long)s->n_bytes, (long long)least);
    uint8_t page[MQ_SHARD_ALIGN];
    MQ_TRY(read_bytes(s, page, 0, sizeof page, err));
    memcpy(&s->header, page, sizeof s->header);
    MQ_TRY(mq_shard_check_header(&s->header, err));
    if (!is_zero(page + sizeof s->header, (int64_t)(sizeof page - sizeof s->header)))
        return mq_fail(err, MQ_E_FORMAT, "header: bytes 64 to 4095 are not zero");

    mq_shard_trailer *t = &s->trailer;
    MQ_TRY(read_bytes(s, t, s->n_bytes - (int64_t)sizeof *t, sizeof *t, err));
    if (memcmp(t->magic, MQ_SHARD_TRAILER_MAGIC, sizeof t->magic) != 0)
        return mq_fail(err, MQ_E_FORMAT, "trailer: wrong magic (truncated?)");
    if (t->n_records < 1 || t->n_records > MQ_SHARD_MAX_RECORDS)
        return mq_fail(err, MQ_E_FORMAT, "trailer: %u records, expected 1 to %d", t->n_records,
                       MQ_SHARD_MAX_RECORDS);
    uint64_t expected = (uint64_t)t->n_records * sizeof(mq_shard_entry) + t->names_bytes;
    if (t->index_bytes != expected)
        return mq_fail(err, MQ_E_FORMAT, "trailer: index of %llu bytes, expected %llu",
                       (unsigned long long)t->index_bytes, (unsigned long long)expected);
    uint64_t space = (uint64_t)s->n_bytes - sizeof *t;
    if (t->index_bytes > space || t->index_off != space - t->index_bytes ||
        t->index_off % MQ_SHARD_ALIGN)
        return mq_fail(err, MQ_E_FORMAT,
                       "trailer: index at %llu with %llu bytes does not end at the trailer of a "
                       "file of %lld bytes",
                       (unsigned long long)t->index_off, (unsigned long long)t->index_bytes,
                       (long long)s->n_bytes);
    return MQ_OK;
}

static mq_status read_index(mq_shard *s, mq_err *err)
{
    const mq_shard_trailer *t = &s->trailer;
    s->index = malloc((size_t)t->index_bytes);
    if (!s->index)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for the index");
    MQ_TRY(read_bytes(s, s->index, (int64_t)t->index_off, (int64_t)t->index_bytes, err));
    s->entries = (const mq_shard_entry *)(const void *)s->index;
    s->names = (const char *)s->index + (size_t)t->n_records * sizeof *s->entries;
    if (!s->hashed)
        return MQ_OK;

    mq_sha256 *h;
    uint8_t digest[MQ_SHA256_BYTES];
    MQ_TRY(mq_sha256_create(&h, err));
    mq_sha256_update(h, &s->header, sizeof s->header);
    mq_sha256_update(h, s->index, (int64_t)t->index_bytes);
    mq_sha256_finish(h, digest);
    mq_sha256_free(h);
    if (memcmp(digest, t->index_sha256, sizeof digest) != 0)
        return mq_fail(err, MQ_E_HASH, "SHA-256 of header and index differs from the trailer's");
    return MQ_OK;
}

/* Copy the names, checking that they follow each other without gap and are plain and unique. */
static mq_status read_names(mq_shard *s, mq_err *err)
{
    int64_t n = s->trailer.n_records;
    s->name_text = malloc((size_t)s->trailer.names_bytes + (size_t)n);
    s->name_of = calloc((size_t)n, sizeof *s->name_of);
    if (!s->name_text || !s->name_of)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for the names");
    MQ_TRY(mq_map_create(&s->by_name, n, err));
    uint64_t off = 0;
    char *to = s->name_text;
    for (int64_t i = 0; i < n; i++) {
        const mq_shard_entry *e = &s->entries[i];
        if (e->name_off != off || e->name_bytes < 1 || e->name_bytes >= MQ_KEY_NAME ||
            off + e->name_bytes > s->trailer.names_bytes)
            return mq_fail(err, MQ_E_FORMAT,
                           "record %lld: name of %u bytes at %u, expected 1 to %d bytes at %llu",
                           (long long)i, e->name_bytes, e->name_off, MQ_KEY_NAME - 1,
                           (unsigned long long)off);
        for (int k = 0; k < e->name_bytes; k++)
            if (s->names[off + (uint64_t)k] < 0x21 || s->names[off + (uint64_t)k] > 0x7e)
                return mq_fail(err, MQ_E_FORMAT,
                               "record %lld: name holds byte 0x%02x, expected printable ASCII",
                               (long long)i, (unsigned char)s->names[off + (uint64_t)k]);
        memcpy(to, s->names + off, e->name_bytes);
        to[e->name_bytes] = 0;
        s->name_of[i] = to;
        bool is_new;
        MQ_TRY(mq_map_put(s->by_name, to, e->name_bytes, i, &is_new, err));
        if (!is_new)
            return mq_fail(err, MQ_E_FORMAT, "record %lld: tensor '%s' is there twice",
                           (long long)i, to);
        to += e->name_bytes + 1;
        off += e->name_bytes;
    }
    if (off != s->trailer.names_bytes)
        return mq_fail(err, MQ_E_FORMAT, "names have %u bytes, their entries %llu",
                       s->trailer.names_bytes, (unsigned long long)off);
    return MQ_OK;
}

/* Where the record lies and how it is coded; *next_off is where it must begin, and becomes where
 * the next one must. */
static mq_status check_place(const mq_shard *s, const mq_shard_entry *e, uint64_t *next_off,
                             mq_err *err)
{
    if (e->off != *next_off)
        return mq_fail(err, MQ_E_FORMAT,
                       "offset %llu, expected %llu (records follow each other at multiples of %d)",
                       (unsigned long long)e->off, (unsigned long long)*next_off, MQ_SHARD_ALIGN);
    uint64_t space = s->trailer.index_off - e->off; /* next_off never passes index_off */
    if (e->stored_bytes < 1 || e->stored_bytes > space)
        return mq_fail(err, MQ_E_FORMAT,
                       "%llu stored bytes at %llu, expected 1 to %llu before the index",
                       (unsigned long long)e->stored_bytes, (unsigned long long)e->off,
                       (unsigned long long)space);
    if (e->codec > MQ_CODEC_ZSTD)
        return mq_fail(err, MQ_E_FORMAT, "codec %u, expected 0 or 1", e->codec);
    if (e->codec == MQ_CODEC_NONE && e->stored_bytes != e->plain_bytes)
        return mq_fail(err, MQ_E_FORMAT, "%llu stored bytes of an uncompressed record of %llu",
                       (unsigned long long)e->stored_bytes, (unsigned long long)e->plain_bytes);
    if (e->codec == MQ_CODEC_ZSTD && e->plain_bytes / MAX_ZSTD_RATIO > e->stored_bytes)
        return mq_fail(err, MQ_E_FORMAT, "%llu stored bytes cannot hold %llu plain ones",
                       (unsigned long long)e->stored_bytes, (unsigned long long)e->plain_bytes);
    *next_off = (uint64_t)mq_round_up((int64_t)(e->off + e->stored_bytes), MQ_SHARD_ALIGN);
    return MQ_OK;
}

static mq_status check_entries(const mq_shard *s, mq_err *err)
{
    uint64_t next_off = MQ_SHARD_ALIGN;
    for (int64_t i = 0; i < s->trailer.n_records; i++) {
        mq_status st = mq_shard_check_entry(&s->entries[i], err);
        if (st == MQ_OK)
            st = check_place(s, &s->entries[i], &next_off, err);
        if (st != MQ_OK)
            return mq_wrap(err, st, "tensor '%s'", s->name_of[i]);
    }
    if (next_off != s->trailer.index_off)
        return mq_fail(err, MQ_E_FORMAT, "index at %llu, but the records end at %llu",
                       (unsigned long long)s->trailer.index_off, (unsigned long long)next_off);
    return MQ_OK;
}

/* Takes file, which may be NULL when bytes are given. */
static mq_status open_any(mq_shard **out, mq_file *file, const uint8_t *bytes, int64_t n_bytes,
                          const char *name, bool hashed, mq_err *err)
{
    *out = NULL;
    mq_shard *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(name))) {
        mq_file_close(file);
        free(s);
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", name);
    }
    s->file = file;
    s->bytes = bytes;
    s->n_bytes = n_bytes;
    s->hashed = hashed;
    mq_status st = read_ends(s, err);
    if (st == MQ_OK)
        st = read_index(s, err);
    if (st == MQ_OK)
        st = read_names(s, err);
    if (st == MQ_OK)
        st = check_entries(s, err);
    if (st != MQ_OK) {
        mq_shard_close(s);
        return mq_wrap(err, st, "%s", name);
    }
    *out = s;
    return MQ_OK;
}

mq_status mq_shard_open(mq_shard **out, const char *path, mq_err *err)
{
    *out = NULL;
    mq_file *file;
    MQ_TRY(mq_file_open(&file, path, err));
    return open_any(out, file, NULL, file->n_bytes, path, true, err);
}

mq_status mq_shard_open_memory(mq_shard **out, const uint8_t *bytes, int64_t n_bytes,
                               const char *name, mq_err *err)
{
    return open_any(out, NULL, bytes, n_bytes, name, true, err);
}

mq_status mq_shard_open_unhashed(mq_shard **out, const uint8_t *bytes, int64_t n_bytes,
                                 const char *name, mq_err *err)
{
    return open_any(out, NULL, bytes, n_bytes, name, false, err);
}

void mq_shard_close(mq_shard *s)
{
    if (!s)
        return;
    mq_map_free(s->by_name);
    free(s->name_of);
    free(s->name_text);
    free(s->index);
    mq_file_close(s->file);
    free(s->path);
    free(s);
}

const mq_shard_header *mq_shard_head(const mq_shard *s)
{
    return &s->header;
}
int64_t mq_shard_count(const mq_shard *s)
{
    return s->trailer.n_records;
}
const mq_shard_entry *mq_shard_entry_at(const mq_shard *s, int64_t i)
{
    return &s->entries[i];
}
const char *mq_shard_name(const mq_shard *s, int64_t i)
{
    return s->name_of[i];
}
int64_t mq_shard_find(const mq_shard *s, const char *name)
{
    return mq_map_find_str(s->by_name, name);
}
int64_t mq_shard_bytes(const mq_shard *s)
{
    return s->n_bytes;
}

/* ---- Against the plan ---- */

static mq_status check_header_plan(const mq_shard *s, const mq_file_spec *file, int n_ranks,
                                   mq_err *err)
{
    const mq_shard_header *h = &s->header;
    bool is_common = file->kind == MQ_SHARD_COMMON;
    uint32_t rank = is_common ? 0 : (uint32_t)file->rank, n = is_common ? 1 : (uint32_t)n_ranks;
    if (h->kind != (uint32_t)file->kind || h->layer != (uint32_t)file->layer || h->rank != rank ||
        h->n_ranks != n)
        return mq_fail(
            err, MQ_E_FORMAT,
            "header: kind %u, layer %u, rank %u of %u, expected kind %d, layer %d, rank %u of %u",
            h->kind, h->layer, h->rank, h->n_ranks, (int)file->kind, file->layer, rank, n);
    if ((int64_t)s->trailer.n_records != file->n_records)
        return mq_fail(err, MQ_E_FORMAT, "%u records, expected %lld", s->trailer.n_records,
                       (long long)file->n_records);
    return MQ_OK;
}

static mq_status check_scheme_plan(const mq_shard_entry *e, const mq_record_spec *r,
                                   mq_scheme expert_scheme, int group, mq_err *err)
{
    const char *found = mq_scheme_name((mq_scheme)e->scheme);
    if (r->is_expert) {
        unsigned g = expert_scheme == MQ_SCHEME_MXFP4 ? (unsigned)MQ_MX_GROUP : (unsigned)group;
        if (e->scheme != (unsigned)expert_scheme || e->group != g)
            return mq_fail(err, MQ_E_FORMAT,
                           "%s with group %u, expected %s with group %u as in the manifest", found,
                           e->group, mq_scheme_name(expert_scheme), g);
        return MQ_OK;
    }
    bool plain = e->scheme >= MQ_SCHEME_BF16 && e->scheme <= MQ_SCHEME_F32;
    bool fp8_allowed = !r->is_vector && r->key.role != MQ_ROLE_ROUTER;
    if (!plain && !(e->scheme == MQ_SCHEME_FP8_BLOCK && fp8_allowed))
        return mq_fail(err, MQ_E_FORMAT, "stored as %s, expected bf16, f16%s", found,
                       fp8_allowed ? ", f32 or fp8_block" : " or f32");
    if (e->scheme == MQ_SCHEME_FP8_BLOCK &&
        ((int64_t)e->seg_rows != r->seg_rows || e->row_phase != r->row_phase ||
         e->col_phase != r->col_phase))
        return mq_fail(err, MQ_E_FORMAT,
                       "segments of %llu rows with phases (%u, %u), expected %lld with (%d, %d)",
                       (unsigned long long)e->seg_rows, e->row_phase, e->col_phase,
                       (long long)r->seg_rows, r->row_phase, r->col_phase);
    return MQ_OK;
}

static mq_status check_record_plan(const mq_shard *s, int64_t i, const mq_record_spec *r,
                                   mq_scheme expert_scheme, int group, mq_err *err)
{
    const mq_shard_entry *e = &s->entries[i];
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, r->key);
    if (strcmp(name, s->name_of[i]) != 0)
        return mq_fail(err, MQ_E_FORMAT, "record %lld, expected '%s' there", (long long)i, name);
    if ((int64_t)e->rows != r->rows || (int64_t)e->cols != r->cols || (int64_t)e->row0 != r->row0 ||
        (int64_t)e->col0 != r->col0)
        return mq_fail(
            err, MQ_E_FORMAT,
            "shape [%llu, %llu] from [%llu, %llu], expected [%lld, %lld] from [%lld, %lld]",
            (unsigned long long)e->rows, (unsigned long long)e->cols, (unsigned long long)e->row0,
            (unsigned long long)e->col0, (long long)r->rows, (long long)r->cols, (long long)r->row0,
            (long long)r->col0);
    return check_scheme_plan(e, r, expert_scheme, group, err);
}

mq_status mq_shard_check_plan(const mq_shard *s, const mq_file_spec *file, int n_ranks,
                              mq_scheme expert_scheme, int group, mq_err *err)
{
    mq_status st = check_header_plan(s, file, n_ranks, err);
    if (st != MQ_OK)
        return mq_wrap(err, st, "%s", s->path);
    for (int64_t i = 0; i < file->n_records; i++) {
        st = check_record_plan(s, i, &file->records[i], expert_scheme, group, err);
        if (st != MQ_OK)
            return wrap_record(s, i, st, err);
    }
    return MQ_OK;
}

/* ---- Records ---- */

static mq_status check_digest(const mq_shard *s, const mq_shard_entry *e,
                              const uint8_t digest[MQ_SHA256_BYTES], mq_err *err)
{
    if (!s->hashed || memcmp(digest, e->sha256, MQ_SHA256_BYTES) == 0)
        return MQ_OK;
    return mq_fail(err, MQ_E_HASH, "SHA-256 of the record differs from the index");
}

static mq_status load_record(const mq_shard *s, const mq_shard_entry *e, void *dst, bool check,
                             mq_err *err)
{
    int64_t off = (int64_t)e->off, stored = (int64_t)e->stored_bytes,
            plain = (int64_t)e->plain_bytes;
    if (e->codec == MQ_CODEC_NONE) {
        MQ_TRY(read_bytes(s, dst, off, stored, err));
    } else {
        const uint8_t *packed;
        uint8_t *buf = s->file ? malloc((size_t)stored) : NULL;
        if (s->file && !buf)
            return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld stored bytes",
                           (long long)stored);
        mq_status st = view_bytes(&packed, s, buf, off, stored, err);
        if (st == MQ_OK)
            st = mq_zstd_decompress(dst, plain, packed, stored, err);
        free(buf);
        if (st != MQ_OK)
            return st;
    }
    if (!check || !s->hashed)
        return MQ_OK;
    uint8_t digest[MQ_SHA256_BYTES];
    mq_sha256_of(digest, dst, plain);
    return check_digest(s, e, digest, err);
}

mq_status mq_shard_load(const mq_shard *s, int64_t i, void *dst, bool check, mq_err *err)
{
    return wrap_record(s, i, load_record(s, &s->entries[i], dst, check, err), err);
}

mq_status mq_shard_load_range(const mq_shard *s, int64_t i, void *dst, int64_t off, int64_t n_bytes,
                              mq_err *err)
{
    const mq_shard_entry *e = &s->entries[i];
    mq_status st = MQ_OK;
    if (e->codec != MQ_CODEC_NONE)
        st = mq_fail(err, MQ_E_ARG, "a compressed record has no ranges");
    else if (off < 0 || n_bytes < 0 || (uint64_t)off > e->plain_bytes ||
             (uint64_t)n_bytes > e->plain_bytes - (uint64_t)off)
        st = mq_fail(err, MQ_E_ARG, "bytes %lld + %lld of a record of %llu", (long long)off,
                     (long long)n_bytes, (unsigned long long)e->plain_bytes);
    else
        st = read_bytes(s, dst, (int64_t)e->off + off, n_bytes, err);
    return wrap_record(s, i, st, err);
}

const mq_file *mq_shard_file(const mq_shard *s)
{
    return s->file;
}

mq_status mq_shard_check_digest(const mq_shard *s, int64_t i, const uint8_t digest[MQ_SHA256_BYTES],
                                mq_err *err)
{
    return wrap_record(s, i, check_digest(s, &s->entries[i], digest, err), err);
}

mq_status mq_shard_wrap(const mq_shard *s, int64_t i, mq_status st, mq_err *err)
{
    return wrap_record(s, i, st, err);
}

mq_matrix mq_shard_matrix(const mq_shard *s, int64_t i, const void *plain)
{
    return mq_shard_entry_matrix(&s->entries[i], plain);
}

mq_status mq_shard_check_values(const mq_shard *s, int64_t i, const void *plain, mq_err *err)
{
    const mq_shard_entry *e = &s->entries[i];
    return wrap_record(s, i, mq_shard_check_piece(e, 0, plain, (int64_t)e->plain_bytes, err), err);
}

/* ---- Verify: one pass ---- */

typedef struct verifier {
    const mq_shard *s;
    mq_sha256 *file_sha, *record_sha;
    uint8_t *piece; /* [PIECE_BYTES]; NULL for a shard in memory */
    int64_t budget_bytes;
} verifier;

static mq_status verify_plain(verifier *v, const mq_shard_entry *e, mq_err *err)
{
    int64_t total = (int64_t)e->plain_bytes, step = mq_shard_piece_bytes(e, PIECE_BYTES);
    uint8_t digest[MQ_SHA256_BYTES];
    mq_sha256_reset(v->record_sha);
    for (int64_t off = 0; off < total; off += step) {
        int64_t n = total - off < step ? total - off : step;
        const uint8_t *bytes;
        MQ_TRY(view_bytes(&bytes, v->s, v->piece, (int64_t)e->off + off, n, err));
        mq_sha256_update(v->file_sha, bytes, n);
        mq_sha256_update(v->record_sha, bytes, n);
        MQ_TRY(mq_shard_check_piece(e, off, bytes, n, err));
    }
    mq_sha256_finish(v->record_sha, digest);
    return check_digest(v->s, e, digest, err);
}

static mq_status verify_packed(verifier *v, const mq_shard_entry *e, mq_err *err)
{
    int64_t stored = (int64_t)e->stored_bytes, plain = (int64_t)e->plain_bytes,
            need = stored + plain;
    if (need > v->budget_bytes)
        return mq_fail(err, MQ_E_NOMEM, "needs %lld bytes at once, %lld are allowed",
                       (long long)need, (long long)v->budget_bytes);
    uint8_t *buf = malloc((size_t)need); /* plain first: it is the aligned one */
    if (!buf)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld bytes", (long long)need);
    const uint8_t *packed;
    mq_status st = view_bytes(&packed, v->s, buf + plain, (int64_t)e->off, stored, err);
    if (st == MQ_OK) {
        mq_sha256_update(v->file_sha, packed, stored);
        st = mq_zstd_decompress(buf, plain, packed, stored, err);
    }
    if (st == MQ_OK) {
        uint8_t digest[MQ_SHA256_BYTES];
        mq_sha256_of(digest, buf, plain);
        st = check_digest(v->s, e, digest, err);
    }
    if (st == MQ_OK)
        st = mq_shard_check_piece(e, 0, buf, plain, err);
    free(buf);
    return st;
}

static mq_status verify_record(verifier *v, const mq_shard_entry *e, mq_err *err)
{
    MQ_TRY(e->codec == MQ_CODEC_NONE ? verify_plain(v, e, err) : verify_packed(v, e, err));
    uint8_t buf[MQ_SHARD_ALIGN];
    const uint8_t *fill;
    int64_t end = (int64_t)(e->off + e->stored_bytes), n = mq_round_up(end, MQ_SHARD_ALIGN) - end;
    MQ_TRY(view_bytes(&fill, v->s, buf, end, n, err));
    mq_sha256_update(v->file_sha, fill, n);
    if (!is_zero(fill, n))
        return mq_fail(err, MQ_E_FORMAT, "padding behind the record is not zero");
    return MQ_OK;
}

/* Header and index were read and checked at open; their bytes in memory are hashed, so that what
 * was checked is what is hashed. */
static mq_status verify_file(verifier *v, mq_err *err)
{
    static const uint8_t zeros[MQ_SHARD_ALIGN - sizeof(mq_shard_header)];
    const mq_shard *s = v->s;
    mq_sha256_update(v->file_sha, &s->header, sizeof s->header);
    mq_sha256_update(v->file_sha, zeros, sizeof zeros);
    for (int64_t i = 0; i < s->trailer.n_records; i++) {
        mq_status st = verify_record(v, &s->entries[i], err);
        if (st != MQ_OK)
            return wrap_record(s, i, st, err);
    }
    mq_sha256_update(v->file_sha, s->index, (int64_t)s->trailer.index_bytes);
    mq_sha256_update(v->file_sha, &s->trailer, sizeof s->trailer);
    return MQ_OK;
}

mq_status mq_shard_verify(const mq_shard *s, mq_shard_info *info, int64_t budget_bytes, mq_err *err)
{
    verifier v = {.s = s, .budget_bytes = budget_bytes};
    mq_status st = mq_sha256_create(&v.file_sha, err);
    if (st == MQ_OK)
        st = mq_sha256_create(&v.record_sha, err);
    if (st == MQ_OK && s->file && !(v.piece = malloc(PIECE_BYTES)))
        st = nomem(s, err);
    if (st == MQ_OK)
        st = verify_file(&v, err);
    if (st == MQ_OK) {
        memset(info, 0, sizeof *info);
        const char *slash = strrchr(s->path, '/'), *base = slash ? slash + 1 : s->path;
        strncpy(info->name, base, sizeof info->name - 1);
        info->bytes = s->n_bytes;
        for (int64_t i = 0; i < s->trailer.n_records; i++)
            info->plain_bytes += (int64_t)s->entries[i].plain_bytes;
        mq_sha256_finish(v.file_sha, info->sha256);
        mq_shard_digest_content(info->content, v.record_sha, &s->header, s->entries,
                                s->trailer.n_records, s->names);
    }
    free(v.piece);
    mq_sha256_free(v.record_sha);
    mq_sha256_free(v.file_sha);
    return st;
}
