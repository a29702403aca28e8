/* Compares what was begun with what is asked for, and re-reads what was finished.
 *
 * A file is trusted only after its bytes gave the journalled digest again: a crash may have left anything. */
#include "tools/convert_resume.h"

#include <stdlib.h>
#include <string.h>

#include "src/file.h"
#include "src/pool.h"

enum { READ_BYTES = 1 << 20 };

/* Flat, so that a difference is told by its own name.  Products of another instruction set or library have other bits: the rest
 * of the run would not fit to its beginning. */
static void write_calib(mq_json_writer *w, const mq_recipe *r)
{
    const mq_recipe_calib *c = &r->calib;
    char hex[MQ_SHA256_HEX];
    mq_sha256_hex(hex, c->text);
    mq_json_write_string(w, "calibration text", hex);
    mq_json_write_int(w, "calibration tokens", c->tokens);
    mq_json_write_int(w, "calibration window", c->window);
    mq_json_write_string(w, "calibration options", c->options);
    mq_json_write_string(w, "instruction set", r->isa);
    mq_json_write_string(w, "matrix library", c->library);
}

static void write_recipe(mq_json_writer *w, const mq_convert_job *job)
{
    const mq_recipe *r = &job->recipe;
    mq_json_write_object(w, "recipe");
    mq_json_write_string(w, "version", MQ_VERSION);
    mq_json_write_string(w, "method", r->method);
    mq_json_write_int(w, "group", r->group);
    mq_json_write_string(w, "experts", job->opt.force_int4 ? "int4" : "auto");
    mq_json_write_int(w, "ranks", job->plan->n_ranks);
    mq_json_write_string(w, "compress", r->compress);
    mq_json_write_string(w, "zstd_version", r->zstd_version);
    mq_json_write_string(w, "backend", r->backend);
    mq_json_write_int(w, "seed", (int64_t)r->seed);
    if (r->calib.present)
        write_calib(w, r);
    mq_json_write_end_object(w);
}

mq_status mq_resume_head(mq_buf *out, const mq_convert_job *job, const mq_inputs *in, mq_err *err)
{
    mq_json_writer w = mq_json_write_begin(out, 0);
    mq_json_write_object(&w, NULL);
    mq_json_write_string(&w, "journal", "mimo-quantize");
    mq_json_write_int(&w, "version", 1);
    write_recipe(&w, job);
    mq_json_write_array(&w, "source");
    for (int64_t i = 0; i < in->n; i++) {
        const mq_input *f = &in->items[i];
        char hex[MQ_SHA256_HEX];
        mq_sha256_hex(hex, f->head);
        mq_json_write_object(&w, NULL);
        mq_json_write_string(&w, "name", f->name);
        mq_json_write_int(&w, "bytes", f->bytes);
        mq_json_write_int(&w, "mtime_ns", f->mtime_ns);
        mq_json_write_string(&w, "head", hex);
        mq_json_write_end_object(&w);
    }
    mq_json_write_end_array(&w);
    mq_json_write_end_object(&w);
    return mq_buf_status(out, err);
}

/* ---- The same run? ---- */

static mq_buf node_text(const mq_json_node *n)
{
    mq_buf b = mq_buf_empty();
    mq_json_writer w = mq_json_write_begin(&b, 0);
    if (n)
        mq_json_write_node(&w, NULL, n);
    else
        mq_buf_str(&b, "nothing");
    return b;
}

/* MQ_E_EXISTS unless a and b read the same. */
static mq_status check_node(const char *out_dir, const char *what, const char *key, const mq_json_node *old,
                            const mq_json_node *now, mq_err *err)
{
    mq_buf a = node_text(old), b = node_text(now);
    mq_status st = mq_buf_status(&a, err);
    if (st == MQ_OK)
        st = mq_buf_status(&b, err);
    if (st == MQ_OK && (a.n_bytes != b.n_bytes || memcmp(a.data, b.data, (size_t)a.n_bytes) != 0))
        st = mq_fail(err, MQ_E_EXISTS, "%s: belongs to another %s: %s was %s, now %s; --overwrite begins anew", out_dir,
                     what, key, a.data, b.data);
    mq_buf_release(&a);
    mq_buf_release(&b);
    return st;
}

static mq_status check_recipe(const char *out_dir, const mq_json_node *old, const mq_json_node *now, mq_err *err)
{
    for (const mq_json_node *n = mq_json_first(now); n; n = mq_json_next(n))
        MQ_TRY(check_node(out_dir, "recipe", mq_json_key(n), mq_json_find(old, mq_json_key(n)), n, err));
    return MQ_OK;
}

static mq_status check_sources(const char *out_dir, const mq_json_node *old, const mq_json_node *now, mq_err *err)
{
    if (mq_json_count(old) != mq_json_count(now))
        return mq_fail(err, MQ_E_EXISTS, "%s: belongs to another checkpoint: %lld files then, %lld now", out_dir,
                       (long long)mq_json_count(old), (long long)mq_json_count(now));
    const mq_json_node *a = mq_json_first(old), *b = mq_json_first(now);
    for (; a && b; a = mq_json_next(a), b = mq_json_next(b)) {
        const mq_json_node *name = mq_json_find(b, "name");
        mq_buf what = mq_buf_empty();
        mq_status st = check_node(out_dir, "checkpoint", "a file", mq_json_find(a, "name"), name, err);
        for (const mq_json_node *n = mq_json_first(b); st == MQ_OK && n; n = mq_json_next(n)) {
            const char *key = mq_json_key(n);
            mq_buf_clear(&what);
            mq_buf_fmt(&what, "%s of '%s'", strcmp(key, "head") == 0 ? "the header" : key,
                       name && mq_json_string(name) ? mq_json_string(name) : "");
            st = mq_buf_status(&what, err);
            if (st == MQ_OK)
                st = check_node(out_dir, "state of the checkpoint", what.data, mq_json_find(a, key), n, err);
        }
        mq_buf_release(&what);
        MQ_TRY(st);
    }
    return MQ_OK;
}

mq_status mq_resume_check(const mq_journal_record *old, const mq_convert_job *job, const mq_inputs *in, mq_err *err)
{
    mq_buf text = mq_buf_empty();
    mq_json *now = NULL;
    mq_status st = mq_resume_head(&text, job, in, err);
    if (st == MQ_OK)
        st = mq_json_parse(&now, text.data, text.n_bytes, 8, err);
    if (st == MQ_OK)
        st = check_recipe(job->opt.out_dir, mq_json_find(mq_json_root(old->head), "recipe"),
                          mq_json_find(mq_json_root(now), "recipe"), err);
    if (st == MQ_OK)
        st = check_sources(job->opt.out_dir, mq_json_find(mq_json_root(old->head), "source"),
                           mq_json_find(mq_json_root(now), "source"), err);
    mq_json_free(now);
    mq_buf_release(&text);
    return st;
}

/* ---- Sound files ---- */

typedef struct recheck {
    const mq_convert_job *job;
    const mq_shard_info **files; /* [n] */
    bool *is_sound;              /* [n] */
} recheck;

/* Does the file have the digest?  Unreadable counts as damaged. */
static bool has_digest(const char *path, const mq_shard_info *f, mq_sha256 *sha, uint8_t *block)
{
    mq_file *file;
    if (mq_file_open(&file, path, NULL) != MQ_OK)
        return false;
    bool good = file->n_bytes == f->bytes;
    for (int64_t at = 0; good && at < f->bytes && !mq_cli_stopped();) {
        int64_t n = f->bytes - at < READ_BYTES ? f->bytes - at : READ_BYTES;
        good = mq_file_read(file, block, at, n, NULL) == MQ_OK;
        if (good)
            mq_sha256_update(sha, block, n);
        at += n;
    }
    mq_file_close(file);
    uint8_t digest[MQ_SHA256_BYTES];
    mq_sha256_finish(sha, digest);
    return good && memcmp(digest, f->sha256, sizeof digest) == 0;
}

static mq_status recheck_file(void *ctx, int64_t i, int worker, mq_err *err)
{
    (void)worker;
    recheck *c = ctx;
    MQ_TRY(mq_cli_check_stop(err));
    mq_sha256 *sha;
    MQ_TRY(mq_sha256_create(&sha, err));
    uint8_t *block = malloc(READ_BYTES);
    char *path = mq_path_join(c->job->opt.out_dir, c->files[i]->name);
    mq_status st = block && path ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        c->is_sound[i] = has_digest(path, c->files[i], sha, block);
    free(path);
    free(block);
    mq_sha256_free(sha);
    return st == MQ_OK ? mq_cli_check_stop(err) : st;
}

/* Is this the entry that the plan's group would have? */
static bool fits_plan(const mq_journal_group *e, const mq_convert_job *job)
{
    if (e->group >= job->n_groups || e->n_files != job->groups[e->group].n_files)
        return false;
    const mq_convert_group *g = &job->groups[e->group];
    for (int f = 0; f < e->n_files; f++)
        if (strcmp(e->files[f].name, job->plan->files[g->file0 + f].name) != 0)
            return false;
    int64_t n_stats = g->n_expert_weights ? (int64_t)job->source->model.n_experts * MQ_PROJ_COUNT * 2 : 0;
    if (mq_convert_group_is_calibrated(job, e->group))
        n_stats = n_stats / 2 * MQ_STAT_COUNT;
    return e->n_stats == n_stats;
}

mq_status mq_resume_groups(mq_convert_done *done, int64_t *n_damaged, mq_journal_record *old, const mq_convert_job *job,
                           int n_threads, mq_err *err)
{
    *n_damaged = 0;
    for (int64_t i = 0; i < old->n_groups; i++) { /* a later line for the same group replaces an earlier one */
        mq_journal_group *e = &old->groups[i];
        if (!fits_plan(e, job))
            continue;
        free(done[e->group].entry.stats);
        done[e->group].is_done = true;
        done[e->group].entry = *e;
        e->stats = NULL;
        e->n_stats = 0;
    }
    recheck c = {.job = job};
    c.files = calloc((size_t)job->plan->n_files, sizeof *c.files);
    c.is_sound = calloc((size_t)job->plan->n_files, sizeof *c.is_sound);
    int64_t n = 0;
    mq_status st = c.files && c.is_sound ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int64_t g = 0; st == MQ_OK && g < job->n_groups; g++)
        for (int f = 0; done[g].is_done && f < done[g].entry.n_files; f++)
            c.files[n++] = &done[g].entry.files[f];
    if (st == MQ_OK)
        st = mq_pool_run(n_threads, n, recheck_file, &c, err);
    n = 0;
    for (int64_t g = 0; st == MQ_OK && g < job->n_groups; g++) {
        bool sound = true, was_done = done[g].is_done;
        for (int f = 0; was_done && f < done[g].entry.n_files; f++)
            sound = c.is_sound[n++] && sound;
        if (was_done && !sound) {
            free(done[g].entry.stats);
            memset(&done[g], 0, sizeof done[g]);
            ++*n_damaged;
        }
    }
    free(c.files);
    free(c.is_sound);
    return st;
}

/* ---- Digests of the inputs ---- */

void mq_resume_hashes(mq_inputs *in, const mq_journal_record *old)
{
    for (int64_t i = 0; i < old->n_hashed; i++) {
        mq_input *f = mq_inputs_find(in, old->hashed[i].name);
        if (!f)
            continue;
        memcpy(f->sha256, old->hashed[i].sha256, sizeof f->sha256);
        f->is_hashed = true;
    }
}

mq_status mq_resume_compare_hashes(const mq_inputs *in, const mq_journal_record *old, mq_err *err)
{
    for (int64_t i = 0; i < old->n_hashed; i++) {
        const mq_input *f = mq_inputs_find(in, old->hashed[i].name);
        if (f && f->is_hashed && memcmp(f->sha256, old->hashed[i].sha256, sizeof f->sha256) != 0)
            return mq_fail(err, MQ_E_EXISTS,
                           "'%s' of the checkpoint changed since the run began (size, time and header are the same, "
                           "its SHA-256 is not); --overwrite begins anew",
                           f->name);
    }
    return MQ_OK;
}

/* ---- A finished model ---- */

static mq_status other_recipe(const char *dir, const char *what, const char *was, const char *now, mq_err *err)
{
    return mq_fail(err, MQ_E_EXISTS, "%s: a packed model of another recipe: %s was %s, now %s; --overwrite begins anew",
                   dir, what, was, now);
}

static mq_status check_complete_inputs(const mq_manifest *m, const char *dir, const mq_inputs *in, bool with_hashes,
                                       mq_err *err)
{
    bool same = m->n_source == in->n;
    for (int64_t i = 0; same && i < in->n; i++) {
        const mq_file_digest *was = &m->source[i];
        const mq_input *now = &in->items[i];
        if (strcmp(was->name, now->name) != 0 || was->bytes != now->bytes ||
            (with_hashes && memcmp(was->sha256, now->sha256, sizeof was->sha256) != 0))
            return mq_fail(err, MQ_E_EXISTS,
                           "%s: a packed model of another checkpoint: '%s' differs; --overwrite begins anew", dir,
                           now->name);
    }
    return same ? MQ_OK
                : mq_fail(err, MQ_E_EXISTS,
                          "%s: a packed model of another checkpoint: %lld files then, %lld now; --overwrite begins anew",
                          dir, (long long)m->n_source, (long long)in->n);
}

static mq_status check_complete_shards(const mq_manifest *m, const char *dir, mq_err *err)
{
    for (int64_t i = 0; i < m->n_shards; i++) {
        char *path = mq_path_join(dir, m->shards[i].name);
        mq_file *file = NULL;
        bool good = path && mq_file_open(&file, path, NULL) == MQ_OK && file->n_bytes == m->shards[i].bytes;
        mq_file_close(file);
        free(path);
        if (!good)
            return mq_fail(err, MQ_E_EXISTS,
                           "%s: finished, but '%s' is missing or has another size; --overwrite begins anew", dir,
                           m->shards[i].name);
    }
    return MQ_OK;
}

/* Both recipes as the journal has them, compared member by member. */
static mq_status check_complete_calib(const mq_recipe *was, const mq_recipe *now, const char *dir, mq_err *err)
{
    if (was->calib.present != now->calib.present)
        return other_recipe(dir, "calibration", was->calib.present ? "there" : "none", now->calib.present ? "there" : "none",
                            err);
    if (!was->calib.present)
        return MQ_OK;
    mq_buf text[2] = {mq_buf_empty(), mq_buf_empty()};
    mq_json *doc[2] = {NULL, NULL};
    mq_status st = MQ_OK;
    for (int i = 0; st == MQ_OK && i < 2; i++) {
        mq_json_writer w = mq_json_write_begin(&text[i], 0);
        mq_json_write_object(&w, NULL);
        write_calib(&w, i ? now : was);
        mq_json_write_end_object(&w);
        st = mq_buf_status(&text[i], err);
        if (st == MQ_OK)
            st = mq_json_parse(&doc[i], text[i].data, text[i].n_bytes, 4, err);
    }
    if (st == MQ_OK)
        st = check_recipe(dir, mq_json_root(doc[0]), mq_json_root(doc[1]), err);
    for (int i = 0; i < 2; i++) {
        mq_json_free(doc[i]);
        mq_buf_release(&text[i]);
    }
    return st;
}

mq_status mq_resume_check_complete(const mq_manifest *m, const mq_convert_job *job, const mq_inputs *in,
                                   bool with_hashes, mq_err *err)
{
    const char *dir = job->opt.out_dir;
    const mq_recipe *was = &m->recipe, *now = &job->recipe;
    char a[32], b[32];
    if (strcmp(was->method, now->method) != 0)
        return other_recipe(dir, "method", was->method, now->method, err);
    snprintf(a, sizeof a, "%d", was->group);
    snprintf(b, sizeof b, "%d", now->group);
    if (was->group != now->group)
        return other_recipe(dir, "group", a, b, err);
    snprintf(a, sizeof a, "%d", m->n_ranks);
    snprintf(b, sizeof b, "%d", job->plan->n_ranks);
    if (m->n_ranks != job->plan->n_ranks)
        return other_recipe(dir, "ranks", a, b, err);
    if (strcmp(was->compress, now->compress) != 0)
        return other_recipe(dir, "compress", was->compress, now->compress, err);
    MQ_TRY(check_complete_calib(was, now, dir, err));
    snprintf(a, sizeof a, "%llu", (unsigned long long)was->seed);
    snprintf(b, sizeof b, "%llu", (unsigned long long)now->seed);
    if (was->seed != now->seed)
        return other_recipe(dir, "seed", a, b, err);
    for (int l = 0; l < m->n_layers && l < job->source->model.n_layers; l++)
        if (m->expert_scheme[l] != job->expert_scheme[l])
            return other_recipe(dir, "the experts' scheme", mq_scheme_name((mq_scheme)m->expert_scheme[l]),
                                mq_scheme_name((mq_scheme)job->expert_scheme[l]), err);
    MQ_TRY(check_complete_inputs(m, dir, in, with_hashes, err));
    return check_complete_shards(m, dir, err);
}
