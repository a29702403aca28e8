/* One span of a file, by one thread: read, decompress, compare digests, copy.
 *
 * A worker has two stages.  While the device still copies from one, the next block is read into the other and hashed; other
 * workers do the same with other spans.  Where destinations are host memory and the file is read through the page cache,
 * the system's copy into the destination is the only one. */
#include "runtime/load_work.h"

#include <stdlib.h>
#include <string.h>

#include "src/codec.h"
#include "src/dtype.h"

/* What is hashed at a time of bytes that were just read into place: it should still be in the processor's cache. */
enum { HASH_BYTES = 1 << 20 };

bool mq_load_checks(const mq_load *l, const mq_shard *shard, int64_t record)
{
    if (l->o.verify != MQ_VERIFY_PART)
        return l->o.verify == MQ_VERIFY_FULL;
    return record == 0 || mq_shard_entry_at(shard, record)->sha256[0] % MQ_VERIFY_SAMPLE == 0;
}

bool mq_load_is_host(const mq_load *l)
{
    return !l->o.place->kernels;
}

/* ---- Stages ---- */

/* The next stage, free to be written. */
static mq_status take_stage(mq_load *l, mq_load_worker *w, mq_load_stage **out, mq_err *err)
{
    mq_place *p = l->o.place;
    mq_load_stage *s = &w->stages[w->turn = (w->turn + 1) % MQ_LOAD_STAGES];
    *out = s;
    if (s->mem)
        return s->fence ? p->kernels->fence_wait(p->dev, s->fence, err) : MQ_OK;
    if (mq_load_is_host(l)) {
        s->mem = aligned_alloc(MQ_LOAD_ALIGN, (size_t)l->o.block_bytes);
        return s->mem ? MQ_OK
                      : mq_fail(err, MQ_E_NOMEM, "a block of %lld bytes: out of memory", (long long)l->o.block_bytes);
    }
    void *mem = NULL;
    pthread_mutex_lock(&p->lock);
    mq_status st = s->fence ? MQ_OK : p->kernels->fence_create(p->dev, &s->fence, err);
    if (st == MQ_OK)
        st = p->kernels->host_alloc(p->dev, &mem, l->o.block_bytes, err);
    pthread_mutex_unlock(&p->lock);
    s->mem = mem;
    return mq_wrap(err, st, "a block of %lld bytes", (long long)l->o.block_bytes);
}

/* Bytes of stage s to where they belong. */
static mq_status send(mq_load *l, mq_load_stage *s, uint8_t *dst, const uint8_t *src, int64_t n_bytes, mq_err *err)
{
    mq_place *p = l->o.place;
    if (mq_load_is_host(l)) {
        memcpy(dst, src, (size_t)n_bytes);
        return MQ_OK;
    }
    pthread_mutex_lock(&p->lock);
    mq_status st = p->kernels->upload_async(p->dev, dst, src, n_bytes, s->fence, err);
    pthread_mutex_unlock(&p->lock);
    return st;
}

mq_status mq_load_put(mq_load *l, int worker, void *dst, const void *src_host, int64_t n_bytes, mq_err *err)
{
    const uint8_t *src = src_host;
    for (int64_t at = 0; at < n_bytes; at += l->o.block_bytes) {
        int64_t n = n_bytes - at < l->o.block_bytes ? n_bytes - at : l->o.block_bytes;
        mq_load_stage *s;
        MQ_TRY(take_stage(l, &l->workers[worker], &s, err));
        memcpy(s->mem, src + at, (size_t)n);
        MQ_TRY(send(l, s, (uint8_t *)dst + at, s->mem, n, err));
    }
    return MQ_OK;
}

mq_status mq_load_worker_wait(mq_load *l, mq_load_worker *w, mq_err *err)
{
    mq_status st = MQ_OK;
    for (int i = 0; i < MQ_LOAD_STAGES; i++)
        if (w->stages[i].fence) {
            mq_status one = l->o.place->kernels->fence_wait(l->o.place->dev, w->stages[i].fence, st == MQ_OK ? err : NULL);
            st = st == MQ_OK ? one : st;
        }
    return st;
}

void mq_load_worker_release(mq_load *l, mq_load_worker *w)
{
    mq_place *p = l->o.place;
    (void)mq_load_worker_wait(l, w, NULL);
    for (int i = 0; i < MQ_LOAD_STAGES; i++) {
        if (mq_load_is_host(l)) {
            free(w->stages[i].mem);
        } else {
            p->kernels->host_free(p->dev, w->stages[i].mem);
            p->kernels->fence_free(p->dev, w->stages[i].fence);
        }
    }
    mq_sha256_free(w->sha);
    free(w->stored);
}

/* ---- Records ---- */

static void arrived(mq_load *l, mq_load_worker *w, int64_t n_bytes, bool checked)
{
    w->figures.n_records++;
    w->figures.n_checked += checked;
    w->figures.plain_bytes += n_bytes;
    if (l->o.progress)
        l->o.progress(l->o.progress_ctx, n_bytes);
}

/* All plain bytes of the item went through w's hash. */
static mq_status end_record(mq_load *l, mq_load_worker *w, const mq_load_item *it, bool checked, mq_err *err)
{
    if (checked) {
        uint8_t digest[MQ_SHA256_BYTES];
        mq_sha256_finish(w->sha, digest);
        MQ_TRY(mq_shard_check_digest(it->shard, it->record, digest, err));
    }
    arrived(l, w, (int64_t)mq_shard_entry_at(it->shard, it->record)->plain_bytes, checked);
    return MQ_OK;
}

mq_status mq_load_read(mq_load *l, int worker, const mq_shard *shard, int64_t i, void *dst_host, mq_err *err)
{
    mq_load_worker *w = &l->workers[worker];
    const mq_shard_entry *e = mq_shard_entry_at(shard, i);
    bool checked = mq_load_checks(l, shard, i);
    MQ_TRY(mq_shard_load(shard, i, dst_host, checked, err));
    w->figures.n_records++;
    w->figures.n_checked += checked;
    w->figures.read_bytes += (int64_t)e->stored_bytes;
    w->figures.plain_bytes += (int64_t)e->plain_bytes;
    return MQ_OK;
}

/* ---- Plain records ---- */

/* How far a span's items have come. */
typedef struct cursor {
    int64_t item, done_bytes; /* of this item */
} cursor;

/* Pass bytes [off, off + n_bytes) of the file on to the items that lie there. */
static mq_status pass_block(mq_load *l, mq_load_worker *w, mq_load_stage *s, const mq_load_span *span, cursor *c,
                            int64_t off, int64_t n_bytes, mq_err *err)
{
    while (c->item < span->first + span->n) {
        const mq_load_item *it = &l->items[c->item];
        const mq_shard_entry *e = mq_shard_entry_at(it->shard, it->record);
        bool checked = mq_load_checks(l, it->shard, it->record);
        int64_t at = (int64_t)e->off + c->done_bytes - off, left = (int64_t)e->plain_bytes - c->done_bytes;
        if (at >= n_bytes)
            return MQ_OK;
        int64_t n = left < n_bytes - at ? left : n_bytes - at;
        if (checked)
            mq_sha256_update(w->sha, s->mem + at, n);
        MQ_TRY(mq_shard_wrap(it->shard, it->record, send(l, s, it->dst + c->done_bytes, s->mem + at, n, err), err));
        c->done_bytes += n;
        if (n < left)
            return MQ_OK;
        MQ_TRY(end_record(l, w, it, checked, err));
        *c = (cursor){c->item + 1, 0};
    }
    return MQ_OK;
}

static mq_status run_blocks(mq_load *l, mq_load_worker *w, const mq_load_span *span, mq_load_file *f, mq_err *err)
{
    cursor c = {span->first, 0};
    for (int64_t at = 0; at < span->n_bytes; at += l->o.block_bytes) {
        int64_t n = span->n_bytes - at < l->o.block_bytes ? span->n_bytes - at : l->o.block_bytes;
        const mq_load_item *it = &l->items[c.item];
        mq_load_stage *s;
        MQ_TRY(take_stage(l, w, &s, err));
        mq_status st = mq_load_file_read(f, s->mem, span->off + at, n, &w->figures.direct_bytes, err);
        MQ_TRY(mq_shard_wrap(it->shard, it->record, st, err));
        MQ_TRY(pass_block(l, w, s, span, &c, span->off + at, n, err));
    }
    return MQ_OK;
}

/* Straight from the page cache to the host memory where it belongs. */
static mq_status run_in_place(mq_load *l, mq_load_worker *w, const mq_load_span *span, mq_load_file *f, mq_err *err)
{
    for (int64_t i = span->first; i < span->first + span->n; i++) {
        const mq_load_item *it = &l->items[i];
        const mq_shard_entry *e = mq_shard_entry_at(it->shard, it->record);
        bool checked = mq_load_checks(l, it->shard, it->record);
        int64_t total = (int64_t)e->plain_bytes;
        for (int64_t at = 0; at < total; at += HASH_BYTES) {
            int64_t n = total - at < HASH_BYTES ? total - at : HASH_BYTES;
            mq_status st = mq_file_read(f->file, it->dst + at, (int64_t)e->off + at, n, err);
            MQ_TRY(mq_shard_wrap(it->shard, it->record, st, err));
            if (checked)
                mq_sha256_update(w->sha, it->dst + at, n);
        }
        MQ_TRY(end_record(l, w, it, checked, err));
    }
    return MQ_OK;
}

/* ---- Compressed records ---- */

/* Where decompressed pieces of an item go. */
typedef struct sink {
    mq_load *l;
    mq_load_worker *w;
    mq_load_stage *stage;
    uint8_t *dst;
    int64_t done_bytes;
    bool checked;
} sink;

static mq_status sink_piece(void *ctx, int64_t n_bytes, uint8_t **buf, int64_t *buf_bytes, mq_err *err)
{
    sink *k = ctx;
    if (n_bytes > 0) {
        if (k->checked)
            mq_sha256_update(k->w->sha, k->stage->mem, n_bytes);
        MQ_TRY(send(k->l, k->stage, k->dst + k->done_bytes, k->stage->mem, n_bytes, err));
        k->done_bytes += n_bytes;
    }
    if (!buf)
        return MQ_OK;
    MQ_TRY(take_stage(k->l, k->w, &k->stage, err));
    *buf = k->stage->mem;
    *buf_bytes = k->l->o.block_bytes;
    return MQ_OK;
}

static mq_status unpack(mq_load *l, mq_load_worker *w, const mq_load_item *it, const uint8_t *stored, mq_err *err)
{
    const mq_shard_entry *e = mq_shard_entry_at(it->shard, it->record);
    int64_t n_stored = (int64_t)e->stored_bytes, n_plain = (int64_t)e->plain_bytes;
    bool checked = mq_load_checks(l, it->shard, it->record);
    mq_status st;
    if (mq_load_is_host(l)) {
        st = mq_zstd_decompress(it->dst, n_plain, stored, n_stored, err);
        if (st == MQ_OK && checked)
            mq_sha256_update(w->sha, it->dst, n_plain);
    } else {
        sink k = {l, w, NULL, it->dst, 0, checked};
        st = mq_zstd_decompress_to(sink_piece, &k, n_plain, stored, n_stored, err);
    }
    MQ_TRY(mq_shard_wrap(it->shard, it->record, st, err));
    return end_record(l, w, it, checked, err);
}

/* Read all stored bytes of the span, then one record after the other. */
static mq_status run_packed(mq_load *l, mq_load_worker *w, const mq_load_span *span, mq_load_file *f, mq_err *err)
{
    const mq_load_item *first = &l->items[span->first];
    mq_status st = MQ_OK;
    if (w->stored_cap < span->n_bytes) {
        free(w->stored);
        w->stored_cap = 0;
        w->stored = aligned_alloc(MQ_LOAD_ALIGN, (size_t)span->n_bytes);
        if (!w->stored)
            st = mq_fail(err, MQ_E_NOMEM, "out of memory for %lld stored bytes", (long long)span->n_bytes);
        else
            w->stored_cap = span->n_bytes;
    }
    if (st == MQ_OK)
        st = mq_load_file_read(f, w->stored, span->off, span->n_bytes, &w->figures.direct_bytes, err);
    MQ_TRY(mq_shard_wrap(first->shard, first->record, st, err));
    for (int64_t i = span->first; i < span->first + span->n; i++) {
        const mq_load_item *it = &l->items[i];
        int64_t off = (int64_t)mq_shard_entry_at(it->shard, it->record)->off;
        MQ_TRY(unpack(l, w, it, w->stored + (off - span->off), err));
    }
    return MQ_OK;
}

/* ---- Spans ---- */

static mq_status run_task(mq_load *l, int worker, const mq_load_item *it, mq_err *err)
{
    MQ_TRY(it->task.run(it->task.ctx, l, worker, err));
    if (l->o.progress)
        l->o.progress(l->o.progress_ctx, it->task.n_bytes);
    return MQ_OK;
}

mq_status mq_load_span_run(mq_load *l, int64_t span, int worker, mq_err *err)
{
    const mq_load_span *s = &l->spans[span];
    const mq_load_item *it = &l->items[s->first];
    mq_load_worker *w = &l->workers[worker];
    mq_load_file *f = &l->files[it->file];
    bool direct = mq_load_file_is_direct(f);
    if (l->o.stopped && l->o.stopped(l->o.stopped_ctx))
        return mq_fail(err, MQ_E_STOPPED, "stopped");
    if (!direct)
        mq_load_file_expect(f, s->off, s->n_bytes);
    if (!it->dst)
        return run_task(l, worker, it, err);
    if (!w->sha)
        MQ_TRY(mq_sha256_create(&w->sha, err));
    mq_sha256_reset(w->sha);
    w->figures.read_bytes += s->n_bytes;
    if (mq_shard_entry_at(it->shard, it->record)->codec != MQ_CODEC_NONE)
        return run_packed(l, w, s, f, err);
    return mq_load_is_host(l) && !direct ? run_in_place(l, w, s, f, err) : run_blocks(l, w, s, f, err);
}
