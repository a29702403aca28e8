/* Writes a shard file front to back through mq_out, which makes it appear whole or not at all.
 *
 * Bytes are hashed as they pass: the file's digest in mq_out, each record's here.  Nothing is read
 * back and nothing is sought, so memory is the index and, with compression, one frame. */
#include "formats/shard_write.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "src/codec.h"
#include "src/dtype.h"

struct mq_shard_writer {
    const mq_file_spec *file; /* borrowed */
    mq_out *out;
    mq_sha256 *sha; /* of the open record's plain bytes */
    int zstd_level;
    mq_shard_header header;
    mq_shard_entry *entries; /* [file->n_records] */
    int64_t n_begun;
    bool is_open;
    int64_t appended;    /* plain bytes of the open record so far */
    int64_t plain_bytes; /* of all records */
    mq_buf names;
    uint8_t *frame; /* [frame_cap] for compression here */
    int64_t frame_cap;
};

static void writer_free(mq_shard_writer *w)
{
    mq_sha256_free(w->sha);
    mq_buf_release(&w->names);
    free(w->entries);
    free(w->frame);
    free(w);
}

void mq_shard_writer_abandon(mq_shard_writer *w)
{
    if (!w)
        return;
    mq_out_abandon(w->out);
    writer_free(w);
}

/* Zero-fill up to the next record. */
static mq_status pad(mq_shard_writer *w, mq_err *err)
{
    static const uint8_t zeros[MQ_SHARD_ALIGN];
    int64_t at = mq_out_bytes(w->out);
    int64_t n = mq_round_up(at, MQ_SHARD_ALIGN) - at;
    return n ? mq_out_append(w->out, zeros, n, err) : MQ_OK;
}

static mq_shard_header make_header(const mq_file_spec *file, int n_ranks)
{
    mq_shard_header h = {.version = MQ_SHARD_VERSION, .kind = (uint32_t)file->kind};
    memcpy(h.magic, MQ_SHARD_MAGIC, sizeof h.magic);
    bool is_common = file->kind == MQ_SHARD_COMMON;
    h.layer = (uint32_t)file->layer;
    h.rank = is_common ? 0 : (uint32_t)file->rank;
    h.n_ranks = is_common ? 1 : (uint32_t)n_ranks;
    return h;
}

mq_status mq_shard_writer_create(mq_shard_writer **out, const char *dir, const mq_file_spec *file,
                                 int n_ranks, int zstd_level, mq_err *err)
{
    *out = NULL;
    mq_shard_writer *w = calloc(1, sizeof *w);
    if (!w)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", file->name);
    w->file = file;
    w->zstd_level = zstd_level;
    w->header = make_header(file, n_ranks);
    w->names = mq_buf_empty();

    mq_status st = mq_sha256_create(&w->sha, err);
    if (st == MQ_OK) {
        w->entries = calloc((size_t)file->n_records + 1, sizeof *w->entries);
        if (!w->entries)
            st = mq_fail(err, MQ_E_NOMEM, "out of memory");
    }
    if (st == MQ_OK)
        st = mq_out_create(&w->out, dir, file->name, true, err);
    if (st == MQ_OK)
        st = mq_out_append(w->out, &w->header, sizeof w->header, err);
    if (st == MQ_OK)
        st = pad(w, err);
    if (st != MQ_OK) {
        mq_shard_writer_abandon(w);
        return mq_wrap(err, st, "%s", file->name);
    }
    *out = w;
    return MQ_OK;
}

/* May a record of this spec be stored so? */
static bool is_allowed(const mq_record_spec *r, mq_scheme scheme)
{
    if (r->is_expert)
        return scheme == MQ_SCHEME_INT4 || scheme == MQ_SCHEME_MXFP4;
    bool plain = scheme == MQ_SCHEME_BF16 || scheme == MQ_SCHEME_F16 || scheme == MQ_SCHEME_F32;
    return plain || (scheme == MQ_SCHEME_FP8_BLOCK && !r->is_vector);
}

mq_status mq_shard_writer_begin(mq_shard_writer *w, int64_t record, mq_scheme scheme, int group,
                                mq_err *err)
{
    const mq_file_spec *f = w->file;
    if (w->is_open || record != w->n_begun || record >= f->n_records)
        return mq_fail(err, MQ_E_BUG, "%s: record %lld begun out of order, expected %lld of %lld",
                       f->name, (long long)record, (long long)w->n_begun, (long long)f->n_records);
    const mq_record_spec *r = &f->records[record];
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, r->key);
    if (!is_allowed(r, scheme))
        return mq_fail(err, MQ_E_BUG, "%s: tensor '%s' begun as %s", f->name, name,
                       mq_scheme_name(scheme));

    mq_shard_entry *e = &w->entries[record];
    memset(e, 0, sizeof *e);
    e->off = (uint64_t)mq_out_bytes(w->out);
    e->plain_bytes = (uint64_t)mq_record_plain_bytes(r, scheme, group);
    e->rows = (uint64_t)r->rows;
    e->cols = (uint64_t)r->cols;
    e->row0 = (uint64_t)r->row0;
    e->col0 = (uint64_t)r->col0;
    e->scheme = (uint8_t)scheme;
    e->codec = w->zstd_level ? MQ_CODEC_ZSTD : MQ_CODEC_NONE;
    if (scheme == MQ_SCHEME_INT4)
        e->group = (uint16_t)group;
    if (scheme == MQ_SCHEME_MXFP4)
        e->group = MQ_MX_GROUP;
    if (scheme == MQ_SCHEME_FP8_BLOCK) {
        e->seg_rows = (uint64_t)r->seg_rows;
        e->row_phase = (uint8_t)r->row_phase;
        e->col_phase = (uint8_t)r->col_phase;
    }
    e->name_off = (uint32_t)w->names.n_bytes;
    e->name_bytes = (uint16_t)strlen(name);
    mq_err why;
    if (mq_shard_check_entry(e, &why) != MQ_OK)
        return mq_fail(err, MQ_E_BUG, "%s: tensor '%s': %s", f->name, name, why.text);
    mq_buf_str(&w->names, name);
    MQ_TRY(mq_buf_status(&w->names, err));

    mq_sha256_reset(w->sha);
    w->appended = 0;
    w->is_open = true;
    w->n_begun++;
    return MQ_OK;
}

/* Compress into the writer's own frame. */
static mq_status compress(mq_shard_writer *w, const void *plain, int64_t n_bytes,
                          int64_t *packed_bytes, mq_err *err)
{
    int64_t bound = mq_zstd_bound(n_bytes);
    if (bound > w->frame_cap) {
        uint8_t *grown = realloc(w->frame, (size_t)bound);
        if (!grown)
            return mq_fail(err, MQ_E_NOMEM, "%s: out of memory for a frame of %lld bytes",
                           w->file->name, (long long)bound);
        w->frame = grown;
        w->frame_cap = bound;
    }
    return mq_zstd_compress(w->frame, w->frame_cap, packed_bytes, plain, n_bytes, w->zstd_level,
                            err);
}

mq_status mq_shard_writer_append(mq_shard_writer *w, const void *plain, int64_t n_bytes,
                                 const void *packed, int64_t packed_bytes, mq_err *err)
{
    mq_shard_entry *e = &w->entries[w->n_begun - (w->n_begun > 0)];
    if (!w->is_open || n_bytes < 0 || (uint64_t)n_bytes > e->plain_bytes - (uint64_t)w->appended)
        return mq_fail(err, MQ_E_BUG, "%s: more bytes than the record holds, or no record open",
                       w->file->name);
    if (n_bytes == 0)
        return MQ_OK;
    mq_sha256_update(w->sha, plain, n_bytes);
    w->appended += n_bytes;
    if (!w->zstd_level)
        return mq_out_append(w->out, plain, n_bytes, err);
    if (!packed) {
        MQ_TRY(compress(w, plain, n_bytes, &packed_bytes, err));
        packed = w->frame;
    }
    return mq_out_append(w->out, packed, packed_bytes, err);
}

mq_status mq_shard_writer_end(mq_shard_writer *w, mq_err *err)
{
    mq_shard_entry *e = &w->entries[w->n_begun - (w->n_begun > 0)];
    if (!w->is_open || (uint64_t)w->appended != e->plain_bytes)
        return mq_fail(err, MQ_E_BUG, "%s: record %lld ended with %lld bytes, expected %llu",
                       w->file->name, (long long)(w->n_begun - 1), (long long)w->appended,
                       (unsigned long long)e->plain_bytes);
    mq_sha256_finish(w->sha, e->sha256);
    e->stored_bytes = (uint64_t)mq_out_bytes(w->out) - e->off;
    w->plain_bytes += w->appended;
    w->is_open = false;
    return pad(w, err);
}

static mq_status append_index(mq_shard_writer *w, mq_err *err)
{
    int64_t entry_bytes = w->file->n_records * (int64_t)sizeof(mq_shard_entry);
    mq_shard_trailer t = {.index_off = (uint64_t)mq_out_bytes(w->out),
                          .index_bytes = (uint64_t)(entry_bytes + w->names.n_bytes),
                          .n_records = (uint32_t)w->file->n_records,
                          .names_bytes = (uint32_t)w->names.n_bytes};
    memcpy(t.magic, MQ_SHARD_TRAILER_MAGIC, sizeof t.magic);
    mq_sha256_reset(w->sha);
    mq_sha256_update(w->sha, &w->header, sizeof w->header);
    mq_sha256_update(w->sha, w->entries, entry_bytes);
    mq_sha256_update(w->sha, w->names.data, w->names.n_bytes);
    mq_sha256_finish(w->sha, t.index_sha256);
    MQ_TRY(mq_out_append(w->out, w->entries, entry_bytes, err));
    MQ_TRY(mq_out_append(w->out, w->names.data, w->names.n_bytes, err));
    return mq_out_append(w->out, &t, sizeof t, err);
}

mq_status mq_shard_writer_commit(mq_shard_writer *w, mq_shard_info *info, mq_err *err)
{
    mq_status st = MQ_OK;
    if (w->is_open || w->n_begun != w->file->n_records)
        st = mq_fail(err, MQ_E_BUG, "%s: committed after %lld of %lld records", w->file->name,
                     (long long)w->n_begun, (long long)w->file->n_records);
    if (st == MQ_OK)
        st = append_index(w, err);
    if (st != MQ_OK) {
        mq_shard_writer_abandon(w);
        return st;
    }
    memset(info, 0, sizeof *info);
    memcpy(info->name, w->file->name, sizeof info->name);
    info->bytes = mq_out_bytes(w->out);
    info->plain_bytes = w->plain_bytes;
    mq_shard_digest_content(info->content, w->sha, &w->header, w->entries, w->file->n_records,
                            w->names.data);
    st = mq_out_commit(w->out, info->sha256, err); /* frees out in every case */
    writer_free(w);
    return st;
}
