/* A packed model's folder: the manifest with everything it vouches for.
 *
 * Opening reads the manifest, config.json and the drafter's config, and lays out the plan; the
 * manifest must list exactly the plan's files.  Verifying reads every byte of the folder. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "formats/manifest.h"
#include "src/dtype.h"
#include "src/pool.h"

enum { READ_BYTES = 1 << 20 };

/* ---- Files that are carried along ---- */

static int compare_name(const void *name, const void *file)
{
    return strcmp(name, ((const mq_file_digest *)file)->name);
}

static const mq_file_digest *find_extra(const mq_manifest *m, const char *name)
{
    return bsearch(name, m->extra, (size_t)m->n_extra, sizeof *m->extra, compare_name);
}

static mq_status digest_file(uint8_t digest[MQ_SHA256_BYTES], const mq_file *f, mq_err *err)
{
    mq_sha256 *h;
    MQ_TRY(mq_sha256_create(&h, err));
    uint8_t *buf = malloc(READ_BYTES);
    mq_status st = buf ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "%s: out of memory", f->path);
    for (int64_t off = 0; st == MQ_OK && off < f->n_bytes; off += READ_BYTES) {
        int64_t n = f->n_bytes - off < READ_BYTES ? f->n_bytes - off : READ_BYTES;
        st = mq_file_read(f, buf, off, n, err);
        if (st == MQ_OK)
            mq_sha256_update(h, buf, n);
    }
    if (st == MQ_OK)
        mq_sha256_finish(h, digest);
    free(buf);
    mq_sha256_free(h);
    return st;
}

/* path exists, has the listed size and digest. */
static mq_status check_file(const char *path, const mq_file_digest *listed, mq_err *err)
{
    if (!mq_path_exists(path))
        return mq_fail(err, MQ_E_FORMAT, "%s: missing, but listed in the manifest", path);
    mq_file *f;
    MQ_TRY(mq_file_open(&f, path, err));
    uint8_t digest[MQ_SHA256_BYTES];
    mq_status st = MQ_OK;
    if (f->n_bytes != listed->bytes)
        st = mq_fail(err, MQ_E_FORMAT, "%s: %lld bytes, expected %lld as in the manifest", path,
                     (long long)f->n_bytes, (long long)listed->bytes);
    if (st == MQ_OK)
        st = digest_file(digest, f, err);
    if (st == MQ_OK && memcmp(digest, listed->sha256, sizeof digest) != 0)
        st = mq_fail(err, MQ_E_HASH, "%s: SHA-256 differs from the manifest", path);
    mq_file_close(f);
    return st;
}

static mq_status check_extra(const mq_packed *p, const mq_file_digest *f, mq_err *err)
{
    char *path = mq_path_join(p->dir, f->name);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", p->dir);
    mq_status st = check_file(path, f, err);
    free(path);
    return st;
}

/* Path of a carried file that must be listed and sound; the caller frees it. */
static mq_status get_extra(char **path, const mq_packed *p, const char *name, mq_err *err)
{
    *path = NULL;
    const mq_file_digest *f = find_extra(&p->manifest, name);
    if (!f)
        return mq_fail(err, MQ_E_FORMAT, "%s/manifest.json: extra: '%s' is not listed", p->dir,
                       name);
    MQ_TRY(check_extra(p, f, err));
    *path = mq_path_join(p->dir, name);
    return *path ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "%s: out of memory", p->dir);
}

/* ---- Open ---- */

static mq_status open_model(mq_packed *p, mq_err *err)
{
    char *path;
    MQ_TRY(get_extra(&path, p, "config.json", err));
    mq_status st = mq_model_load(&p->model, path, err);
    free(path);
    if (st != MQ_OK)
        return st;
    p->model.n_mtp = p->manifest.n_mtp;
    if (!find_extra(&p->manifest, "generation_config.json"))
        return MQ_OK;
    MQ_TRY(get_extra(&path, p, "generation_config.json", err));
    st = mq_model_load_generation(&p->model, path, err);
    free(path);
    return st;
}

static mq_status open_draft(mq_packed *p, mq_err *err)
{
    if (!p->manifest.has_draft)
        return MQ_OK;
    char *path;
    MQ_TRY(get_extra(&path, p, "dflash/config.json", err));
    mq_status st = mq_draft_model_load(&p->draft, path, &p->model, err);
    p->has_draft = st == MQ_OK;
    free(path);
    return st;
}

static mq_status check_layers(const mq_packed *p, mq_err *err)
{
    const mq_manifest *m = &p->manifest;
    if (m->n_layers != p->model.n_layers)
        return mq_fail(err, MQ_E_FORMAT, "n_layers %d, expected %d as in config.json", m->n_layers,
                       p->model.n_layers);
    for (int l = 0; l < m->n_layers; l++)
        if ((m->expert_scheme[l] != MQ_SCHEME_NONE) != p->model.is_moe[l])
            return mq_fail(err, MQ_E_FORMAT,
                           "expert_schemes: layer %d is %s, but '%s' in config.json", l,
                           mq_scheme_name((mq_scheme)m->expert_scheme[l]),
                           p->model.is_moe[l] ? "experts" : "dense");
    return MQ_OK;
}

/* The manifest's shards are the plan's files, in its order. */
static mq_status check_shards(const mq_packed *p, mq_err *err)
{
    const mq_manifest *m = &p->manifest;
    const mq_plan *plan = p->plan;
    for (int64_t i = 0; i < plan->n_files; i++) {
        if (i >= m->n_shards)
            return mq_fail(err, MQ_E_FORMAT, "shards: '%s' is missing", plan->files[i].name);
        if (strcmp(m->shards[i].name, plan->files[i].name) != 0)
            return mq_fail(err, MQ_E_FORMAT, "shards: entry %lld is '%s', expected '%s'",
                           (long long)i, m->shards[i].name, plan->files[i].name);
    }
    if (m->n_shards != plan->n_files)
        return mq_fail(err, MQ_E_FORMAT, "shards: '%s' is not a file of this model",
                       m->shards[plan->n_files].name);
    return MQ_OK;
}

static mq_status open_plan(mq_packed *p, mq_err *err)
{
    MQ_TRY(check_layers(p, err));
    mq_err why;
    mq_status st = mq_plan_create(&p->plan, &p->model, p->has_draft ? &p->draft : NULL,
                                  p->manifest.n_ranks, p->manifest.group, &why);
    if (st != MQ_OK) /* a bad number of ranks is the file's fault here, not the command line's */
        return mq_fail(err, st == MQ_E_ARG ? MQ_E_FORMAT : st, "%s", why.text);
    return check_shards(p, err);
}

mq_status mq_packed_open(mq_packed **out, const char *dir, mq_err *err)
{
    *out = NULL;
    mq_packed *p = calloc(1, sizeof *p);
    if (!p || !(p->dir = strdup(dir))) {
        free(p);
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    }
    mq_status st = mq_manifest_load(&p->manifest, dir, err);
    if (st == MQ_OK)
        st = open_model(p, err);
    if (st == MQ_OK)
        st = open_draft(p, err);
    if (st == MQ_OK)
        st = mq_wrap(err, open_plan(p, err), "%s/manifest.json", dir);
    if (st != MQ_OK) {
        mq_packed_close(p);
        return st;
    }
    *out = p;
    return MQ_OK;
}

void mq_packed_close(mq_packed *p)
{
    if (!p)
        return;
    mq_plan_free(p->plan);
    mq_draft_model_release(&p->draft);
    mq_model_release(&p->model);
    mq_manifest_release(&p->manifest);
    free(p->dir);
    free(p);
}

/* In a compressed model every record is compressed, in another none. */
static mq_status check_codecs(const mq_shard *s, const char *path, const char *compress, mq_err *err)
{
    bool is_none = strcmp(compress, "none") == 0;
    for (int64_t i = 0; i < mq_shard_count(s); i++)
        if ((mq_shard_entry_at(s, i)->codec == MQ_CODEC_NONE) != is_none)
            return mq_fail(err, MQ_E_FORMAT, "%s: tensor '%s': %scompressed with zstd, but the manifest's compress is '%s'",
                           path, mq_shard_name(s, i), is_none ? "" : "not ", compress);
    return MQ_OK;
}

static mq_status open_shard(mq_shard **out, const mq_packed *p, int64_t i, const char *path,
                            mq_err *err)
{
    const mq_shard_info *info = &p->manifest.shards[i];
    const mq_file_spec *file = &p->plan->files[i];
    if (!mq_path_exists(path))
        return mq_fail(err, MQ_E_FORMAT, "%s: missing, but listed in the manifest", path);
    mq_shard *s;
    MQ_TRY(mq_shard_open(&s, path, err));
    mq_status st = MQ_OK;
    if (mq_shard_bytes(s) != info->bytes)
        st = mq_fail(err, MQ_E_FORMAT, "%s: %lld bytes, expected %lld as in the manifest", path,
                     (long long)mq_shard_bytes(s), (long long)info->bytes);
    mq_scheme scheme = file->kind == MQ_SHARD_LAYER
                           ? (mq_scheme)p->manifest.expert_scheme[file->layer]
                           : MQ_SCHEME_NONE;
    if (st == MQ_OK)
        st = mq_shard_check_plan(s, file, p->plan->n_ranks, scheme, p->manifest.group, err);
    if (st == MQ_OK)
        st = check_codecs(s, path, p->manifest.recipe.compress, err);
    if (st != MQ_OK) {
        mq_shard_close(s);
        return st;
    }
    *out = s;
    return MQ_OK;
}

mq_status mq_packed_shard(mq_shard **out, const mq_packed *p, int64_t i, mq_err *err)
{
    *out = NULL;
    char *path = mq_path_join(p->dir, p->plan->files[i].name);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", p->dir);
    mq_status st = open_shard(out, p, i, path, err);
    free(path);
    return st;
}

/* ---- Verify ---- */

typedef struct folder_check {
    const mq_packed *p;
    int64_t budget_bytes; /* of one worker */
    mq_packed_progress_fn progress;
    bool (*stopped)(void);
    void *ctx;
    pthread_mutex_t lock; /* of done_bytes and progress */
    int64_t done_bytes, total_bytes;
} folder_check;

static mq_status verify_shard(const folder_check *c, int64_t i, mq_err *err)
{
    const mq_shard_info *listed = &c->p->manifest.shards[i];
    mq_shard *s;
    mq_shard_info found;
    MQ_TRY(mq_packed_shard(&s, c->p, i, err));
    mq_status st = mq_shard_verify(s, &found, c->budget_bytes, err);
    mq_shard_close(s);
    if (st != MQ_OK)
        return st;
    const char *what = found.plain_bytes != listed->plain_bytes ? "the number of plain bytes"
                       : memcmp(found.content, listed->content, MQ_SHA256_BYTES) != 0
                           ? "the content digest"
                       : memcmp(found.sha256, listed->sha256, MQ_SHA256_BYTES) != 0 ? "SHA-256"
                                                                                    : NULL;
    if (what)
        return mq_fail(err, MQ_E_HASH, "%s/%s: %s differs from the manifest", c->p->dir,
                       listed->name, what);
    return MQ_OK;
}

static mq_status verify_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    (void)worker;
    folder_check *c = ctx;
    const mq_manifest *m = &c->p->manifest;
    bool is_shard = job < m->n_shards;
    if (c->stopped && c->stopped())
        return mq_fail(err, MQ_E_STOPPED, "%s: stopped while its files were checked", c->p->dir);
    MQ_TRY(is_shard ? verify_shard(c, job, err)
                    : check_extra(c->p, &m->extra[job - m->n_shards], err));
    pthread_mutex_lock(&c->lock);
    c->done_bytes += is_shard ? m->shards[job].bytes : m->extra[job - m->n_shards].bytes;
    if (c->progress)
        c->progress(c->ctx, c->done_bytes, c->total_bytes);
    pthread_mutex_unlock(&c->lock);
    return MQ_OK;
}

static bool is_listed(const mq_packed *p, const char *name)
{
    const mq_manifest *m = &p->manifest;
    for (int64_t i = 0; i < m->n_shards; i++)
        if (strcmp(m->shards[i].name, name) == 0)
            return true;
    return find_extra(m, name) != NULL;
}

/* No file in dir/below ("" or "dflash/") that the manifest does not list. */
static mq_status check_unlisted(const mq_packed *p, const char *below, mq_err *err)
{
    char **names;
    int64_t n;
    char *dir = mq_path_join(p->dir, below);
    if (!dir)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", p->dir);
    mq_status st = mq_dir_list(&names, &n, dir, err);
    free(dir);
    if (st != MQ_OK)
        return st;
    for (int64_t i = 0; st == MQ_OK && i < n; i++) {
        bool is_top = !*below;
        if (is_top && strcmp(names[i], "manifest.json") == 0)
            continue;
        char *name = is_top ? strdup(names[i]) : mq_path_join("dflash", names[i]);
        if (!name)
            st = mq_fail(err, MQ_E_NOMEM, "%s: out of memory", p->dir);
        else if (is_top && strcmp(name, "dflash") == 0)
            st = check_unlisted(p, "dflash", err);
        else if (!is_listed(p, name))
            st = mq_fail(err, MQ_E_FORMAT, "%s/%s: not listed in the manifest", p->dir, name);
        free(name);
    }
    mq_dir_list_free(names, n);
    return st;
}

/* How many workers the budget feeds: a compressed record needs its stored and plain bytes at once.
 */
static int n_workers(const mq_packed *p, int n_threads, int64_t budget_bytes)
{
    if (strcmp(p->manifest.recipe.compress, "none") == 0)
        return n_threads;
    int64_t largest = 1;
    for (int64_t i = 0; i < p->plan->n_files; i++)
        for (int64_t k = 0; k < p->plan->files[i].n_records; k++) {
            const mq_record_spec *r = &p->plan->files[i].records[k];
            int64_t bytes = r->rows * r->cols * (r->is_expert ? 1 : 4); /* bounds of any scheme */
            if (bytes > largest)
                largest = bytes;
        }
    int64_t fit = budget_bytes / (2 * largest);
    return fit < 1 ? 1 : fit < n_threads ? (int)fit : n_threads;
}

mq_status mq_packed_verify(const mq_packed *p, int n_threads, int64_t budget_bytes,
                           mq_packed_progress_fn progress, void *ctx, bool (*stopped)(void), mq_err *err)
{
    const mq_manifest *m = &p->manifest;
    int workers = n_workers(p, n_threads < 1 ? 1 : n_threads, budget_bytes);
    folder_check c = {
        .p = p, .budget_bytes = budget_bytes / workers, .progress = progress, .ctx = ctx, .stopped = stopped};
    for (int64_t i = 0; i < m->n_shards; i++)
        c.total_bytes += m->shards[i].bytes;
    for (int64_t i = 0; i < m->n_extra; i++)
        c.total_bytes += m->extra[i].bytes;
    MQ_TRY(check_unlisted(p, "", err));
    pthread_mutex_init(&c.lock, NULL);
    mq_status st = mq_pool_run(workers, m->n_shards + m->n_extra, verify_job, &c, err);
    pthread_mutex_destroy(&c.lock);
    return st;
}
