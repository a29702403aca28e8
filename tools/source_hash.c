/* Lists and hashes the input files.
 *
 * The hashing thread reads through a small buffer that stays in the processor's second-level cache; the bytes come from the
 * page cache where the conversion has just read them, or leave them there for it. */
#include "tools/source_hash.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "src/file.h"

enum { HEAD_BYTES = 64 << 10, READ_BYTES = 256 << 10 };

/* Files next to the weights that belong to the model; those marked are carried along. */
static const struct {
    const char *name;
    bool is_extra;
} side_files[] = {
    {"chat_template.jinja", true},  {"config.json", true},
    {"generation_config.json", true}, {"merges.txt", true},
    {"model.safetensors.index.json", false}, {"tokenizer.json", true},
    {"tokenizer_config.json", true}, {"vocab.json", true},
    {"dflash/config.json", true},   {"dflash/mask_embedding.pt", false},
    {"dflash/model.safetensors.index.json", false},
};

static mq_status add_input(mq_inputs *in, const char *dir, const char *prefix, const char *name,
                           const mq_safetensors *weights, bool is_extra, mq_err *err)
{
    mq_input *grown = realloc(in->items, (size_t)(in->n + 1) * sizeof *grown);
    if (!grown)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    in->items = grown;
    mq_input *f = &in->items[in->n];
    memset(f, 0, sizeof *f);
    mq_buf full = mq_buf_empty();
    mq_buf_fmt(&full, "%s%s", prefix, name);
    f->name = full.data;
    char *path = full.data && !full.nomem ? mq_path_join(dir, full.data) : NULL;
    mq_file *file = NULL;
    mq_status st = path ? mq_file_open(&file, path, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK) {
        in->n++;
        f->bytes = file->n_bytes;
        f->mtime_ns = file->mtime_ns;
        f->is_weights = weights != NULL;
        f->is_extra = is_extra;
        int64_t n_head = file->n_bytes < HEAD_BYTES ? file->n_bytes : HEAD_BYTES;
        uint8_t *head = weights ? NULL : malloc(HEAD_BYTES);
        if (weights)
            memcpy(f->head, mq_safetensors_header_digest(weights), sizeof f->head);
        else
            st = head ? mq_file_read(file, head, 0, n_head, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
        if (head && st == MQ_OK)
            mq_sha256_of(f->head, head, n_head);
        free(head);
    } else {
        mq_buf_release(&full);
    }
    mq_file_close(file);
    free(path);
    return st;
}

static mq_status add_weights(mq_inputs *in, const mq_source *s, const mq_checkpoint *c, const char *prefix, mq_err *err)
{
    const char *dir = mq_checkpoint_dir(s->checkpoint);
    for (int64_t i = 0; i < mq_checkpoint_n_files(c); i++)
        MQ_TRY(add_input(in, dir, prefix, mq_checkpoint_file_name(c, i), mq_checkpoint_file(c, i), false, err));
    return MQ_OK;
}

static int compare_inputs(const void *a, const void *b)
{
    return strcmp(((const mq_input *)a)->name, ((const mq_input *)b)->name);
}

mq_status mq_inputs_list(mq_inputs *out, const mq_source *s, mq_err *err)
{
    *out = (mq_inputs){NULL, 0};
    const char *dir = mq_checkpoint_dir(s->checkpoint);
    mq_status st = add_weights(out, s, s->checkpoint, "", err);
    if (st == MQ_OK && s->has_draft)
        st = add_weights(out, s, s->draft_checkpoint, "dflash/", err);
    for (size_t i = 0; st == MQ_OK && i < sizeof side_files / sizeof side_files[0]; i++) {
        const char *name = side_files[i].name;
        if (!s->has_draft && strncmp(name, "dflash/", 7) == 0)
            continue;
        char *path = mq_path_join(dir, name);
        if (!path)
            st = mq_fail(err, MQ_E_NOMEM, "out of memory");
        else if (mq_path_exists(path))
            st = add_input(out, dir, "", name, NULL, side_files[i].is_extra, err);
        free(path);
    }
    if (st != MQ_OK) {
        mq_inputs_release(out);
        return st;
    }
    qsort(out->items, (size_t)out->n, sizeof *out->items, compare_inputs);
    return MQ_OK;
}

void mq_inputs_release(mq_inputs *in)
{
    for (int64_t i = 0; i < in->n; i++)
        free(in->items[i].name);
    free(in->items);
    *in = (mq_inputs){NULL, 0};
}

mq_input *mq_inputs_find(const mq_inputs *in, const char *name)
{
    for (int64_t i = 0; i < in->n; i++)
        if (strcmp(in->items[i].name, name) == 0)
            return &in->items[i];
    return NULL;
}

/* Open an input file and see that it is the one listed. */
static mq_status open_input(mq_file **out, const char *dir, const mq_input *f, mq_err *err)
{
    *out = NULL;
    char *path = mq_path_join(dir, f->name);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = mq_file_open(out, path, err);
    if (st == MQ_OK && ((*out)->n_bytes != f->bytes || (*out)->mtime_ns != f->mtime_ns)) {
        st = mq_fail(err, MQ_E_IO, "%s: changed while being read", path);
        mq_file_close(*out);
        *out = NULL;
    }
    free(path);
    return st;
}

mq_status mq_inputs_check_unchanged(const mq_inputs *in, const char *dir, mq_err *err)
{
    for (int64_t i = 0; i < in->n; i++) {
        mq_file *file;
        MQ_TRY(open_input(&file, dir, &in->items[i], err));
        mq_file_close(file);
    }
    return MQ_OK;
}

/* ---- The thread ---- */

struct mq_hasher {
    pthread_t thread;
    const char *dir;
    mq_inputs *in;
    mq_hashed_fn fn;
    void *ctx;
    atomic_bool stop, failed, ended;
    mq_status status; /* read after the thread has ended */
    mq_err err;
};

static mq_status hash_file(mq_hasher *h, mq_sha256 *sha, uint8_t *block, mq_input *f, mq_err *err)
{
    mq_file *file;
    MQ_TRY(open_input(&file, h->dir, f, err));
    posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* advice: may fail */
    mq_status st = MQ_OK;
    for (int64_t at = 0; st == MQ_OK && at < f->bytes;) {
        int64_t n = f->bytes - at < READ_BYTES ? f->bytes - at : READ_BYTES;
        st = atomic_load_explicit(&h->stop, memory_order_relaxed) ? mq_fail(err, MQ_E_STOPPED, "stopped")
                                                                  : mq_file_read(file, block, at, n, err);
        if (st == MQ_OK)
            mq_sha256_update(sha, block, n);
        at += n;
    }
    mq_file_close(file);
    if (st != MQ_OK)
        return st;
    mq_sha256_finish(sha, f->sha256);
    MQ_TRY(open_input(&file, h->dir, f, err));
    mq_file_close(file);
    f->is_hashed = true;
    return h->fn(h->ctx, f, err);
}

static void *hash_all(void *arg)
{
    mq_hasher *h = arg;
    mq_sha256 *sha = NULL;
    uint8_t *block = malloc(READ_BYTES);
    mq_status st = block ? mq_sha256_create(&sha, &h->err) : mq_fail(&h->err, MQ_E_NOMEM, "out of memory");
    for (int64_t i = 0; st == MQ_OK && i < h->in->n; i++)
        if (!h->in->items[i].is_hashed)
            st = hash_file(h, sha, block, &h->in->items[i], &h->err);
    mq_sha256_free(sha);
    free(block);
    h->status = st;
    if (st != MQ_OK && st != MQ_E_STOPPED)
        atomic_store(&h->failed, true);
    atomic_store(&h->ended, true);
    return NULL;
}

mq_status mq_hasher_start(mq_hasher **out, const char *dir, mq_inputs *in, mq_hashed_fn fn, void *ctx, mq_err *err)
{
    *out = NULL;
    mq_hasher *h = calloc(1, sizeof *h);
    if (!h)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    h->dir = dir;
    h->in = in;
    h->fn = fn;
    h->ctx = ctx;
    int code = pthread_create(&h->thread, NULL, hash_all, h);
    if (code != 0) {
        free(h);
        return mq_fail(err, MQ_E_NOMEM, "hashing thread: %s", strerror(code));
    }
    *out = h;
    return MQ_OK;
}

bool mq_hasher_failed(const mq_hasher *h)
{
    return atomic_load(&h->failed);
}

bool mq_hasher_running(const mq_hasher *h)
{
    return !atomic_load(&h->ended);
}

mq_status mq_hasher_join(mq_hasher *h, bool stop, mq_err *err)
{
    if (stop)
        atomic_store(&h->stop, true);
    pthread_join(h->thread, NULL);
    mq_status st = h->status;
    if (st != MQ_OK && err)
        *err = h->err;
    free(h);
    return st;
}
