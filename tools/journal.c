/* Writes and reads the journal.
 *
 * Reading is forgiving where a crash may have struck (the tail) and strict in each line: a line that does not have exactly the
 * form we write counts as damaged, and what it would have told is done again. */
#include "tools/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"

enum { MAX_JOURNAL_BYTES = 1 << 30, MAX_DEPTH = 8 };

struct mq_journal {
    pthread_mutex_t lock;
    char *path;
    int fd;
};

static mq_status open_append(mq_journal **out, const char *dir, int64_t good_bytes, mq_err *err)
{
    *out = NULL;
    mq_journal *j = calloc(1, sizeof *j);
    if (!j)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    pthread_mutex_init(&j->lock, NULL);
    j->fd = -1;
    j->path = mq_path_join(dir, MQ_JOURNAL_NAME);
    mq_status st = j->path ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK) {
        j->fd = open(j->path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
        if (j->fd < 0 || (good_bytes >= 0 && ftruncate(j->fd, good_bytes) != 0) || fsync(j->fd) != 0)
            st = mq_fail(err, MQ_E_IO, "%s: %s", j->path, strerror(errno));
    }
    if (st != MQ_OK) {
        mq_journal_close(j);
        return st;
    }
    *out = j;
    return MQ_OK;
}

mq_status mq_journal_create(mq_journal **out, const char *dir, const mq_buf *head, mq_err *err)
{
    *out = NULL;
    mq_buf line = mq_buf_empty();
    mq_buf_fmt(&line, "%s\n", head->data ? head->data : "");
    mq_status st = mq_buf_status(&line, err);
    if (st == MQ_OK)
        st = mq_file_save(dir, MQ_JOURNAL_NAME, line.data, line.n_bytes, err);
    mq_buf_release(&line);
    return st == MQ_OK ? open_append(out, dir, -1, err) : st;
}

mq_status mq_journal_continue(mq_journal **out, const char *dir, int64_t good_bytes, mq_err *err)
{
    return open_append(out, dir, good_bytes, err);
}

void mq_journal_close(mq_journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0)
        close(j->fd);
    pthread_mutex_destroy(&j->lock);
    free(j->path);
    free(j);
}

/* Append the line in b, which is released, and make it durable. */
static mq_status write_line(mq_journal *j, mq_buf *b, mq_err *err)
{
    mq_buf_str(b, "\n");
    mq_status st = mq_buf_status(b, err);
    pthread_mutex_lock(&j->lock);
    for (int64_t at = 0; st == MQ_OK && at < b->n_bytes;) {
        ssize_t n = write(j->fd, b->data + at, (size_t)(b->n_bytes - at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            st = mq_fail(err, MQ_E_IO, "%s: write: %s", j->path, strerror(errno));
        at += n;
    }
    if (st == MQ_OK && fdatasync(j->fd) != 0)
        st = mq_fail(err, MQ_E_IO, "%s: fsync: %s", j->path, strerror(errno));
    pthread_mutex_unlock(&j->lock);
    mq_buf_release(b);
    return st;
}

static void write_digest(mq_json_writer *w, const char *key, const uint8_t digest[MQ_SHA256_BYTES])
{
    char hex[MQ_SHA256_HEX];
    mq_sha256_hex(hex, digest);
    mq_json_write_string(w, key, hex);
}

mq_status mq_journal_write_group(mq_journal *j, const mq_journal_group *g, mq_err *err)
{
    mq_buf b = mq_buf_empty();
    mq_json_writer w = mq_json_write_begin(&b, 0);
    mq_json_write_object(&w, NULL);
    mq_json_write_int(&w, "group", g->group);
    mq_json_write_array(&w, "files");
    for (int i = 0; i < g->n_files; i++) {
        const mq_shard_info *f = &g->files[i];
        mq_json_write_object(&w, NULL);
        mq_json_write_string(&w, "name", f->name);
        mq_json_write_int(&w, "bytes", f->bytes);
        mq_json_write_int(&w, "plain_bytes", f->plain_bytes);
        write_digest(&w, "sha256", f->sha256);
        write_digest(&w, "content", f->content);
        mq_json_write_end_object(&w);
    }
    mq_json_write_end_array(&w);
    mq_json_write_array(&w, "stats");
    for (int64_t i = 0; i < g->n_stats; i++)
        mq_json_write_double(&w, NULL, g->stats[i]);
    mq_json_write_end_array(&w);
    mq_json_write_end_object(&w);
    return write_line(j, &b, err);
}

mq_status mq_journal_write_hashed(mq_journal *j, const mq_input *f, mq_err *err)
{
    mq_buf b = mq_buf_empty();
    mq_json_writer w = mq_json_write_begin(&b, 0);
    mq_json_write_object(&w, NULL);
    mq_json_write_string(&w, "hashed", f->name);
    write_digest(&w, "sha256", f->sha256);
    mq_json_write_end_object(&w);
    return write_line(j, &b, err);
}

mq_status mq_journal_write_layer(mq_journal *j, const mq_journal_layer *l, mq_err *err)
{
    mq_buf b = mq_buf_empty();
    mq_json_writer w = mq_json_write_begin(&b, 0);
    mq_json_write_object(&w, NULL);
    mq_json_write_int(&w, "layer", l->layer);
    if (l->has_hidden)
        write_digest(&w, "hidden", l->hidden);
    else
        mq_json_write_string(&w, "hidden", "");
    mq_json_write_array(&w, "loss");
    if (l->loss.measured) {
        mq_json_write_int(&w, NULL, l->loss.n_rows);
        mq_json_write_double(&w, NULL, l->loss.moe_rel_error);
        mq_json_write_double(&w, NULL, l->loss.moe_cosine);
        mq_json_write_double(&w, NULL, l->loss.output_rel_error);
        mq_json_write_double(&w, NULL, l->loss.output_cosine);
    }
    mq_json_write_end_array(&w);
    mq_json_write_end_object(&w);
    return write_line(j, &b, err);
}

/* ---- Reading ---- */

static bool read_digest(uint8_t digest[MQ_SHA256_BYTES], const mq_json_node *n)
{
    const char *s = n ? mq_json_string(n) : NULL;
    if (!s || strlen(s) != 2 * MQ_SHA256_BYTES)
        return false;
    for (int i = 0; i < MQ_SHA256_BYTES; i++) {
        static const char digits[] = "0123456789abcdef";
        const char *hi = strchr(digits, s[2 * i]), *lo = strchr(digits, s[2 * i + 1]);
        if (!hi || !lo)
            return false;
        digest[i] = (uint8_t)((hi - digits) << 4 | (lo - digits));
    }
    return true;
}

static bool read_int(int64_t *out, const mq_json_node *obj, const char *key)
{
    const mq_json_node *n = mq_json_find(obj, key);
    return n && mq_json_int(n, out) && *out >= 0;
}

static bool read_file_entry(mq_shard_info *f, const mq_json_node *n)
{
    const mq_json_node *name = mq_json_find(n, "name");
    const char *s = name ? mq_json_string(name) : NULL;
    if (!s || strlen(s) >= sizeof f->name)
        return false;
    memcpy(f->name, s, strlen(s) + 1);
    return read_int(&f->bytes, n, "bytes") && read_int(&f->plain_bytes, n, "plain_bytes") &&
           read_digest(f->sha256, mq_json_find(n, "sha256")) && read_digest(f->content, mq_json_find(n, "content"));
}

static bool read_group(mq_journal_group *g, const mq_json_node *line)
{
    memset(g, 0, sizeof *g);
    const mq_json_node *files = mq_json_find(line, "files"), *stats = mq_json_find(line, "stats");
    int64_t max_files = (int64_t)(sizeof g->files / sizeof g->files[0]);
    if (!read_int(&g->group, line, "group") || !files || !stats || mq_json_count(files) > max_files)
        return false;
    for (const mq_json_node *n = mq_json_first(files); n; n = mq_json_next(n))
        if (!read_file_entry(&g->files[g->n_files++], n))
            return false;
    g->stats = malloc((size_t)(mq_json_count(stats) + 1) * sizeof *g->stats);
    for (const mq_json_node *n = mq_json_first(stats); g->stats && n; n = mq_json_next(n))
        if (!mq_json_double(n, &g->stats[g->n_stats++])) {
            free(g->stats);
            return false;
        }
    return g->stats != NULL;
}

static bool read_layer(mq_journal_layer *l, const mq_json_node *line)
{
    memset(l, 0, sizeof *l);
    const mq_json_node *hidden = mq_json_find(line, "hidden"), *n = mq_json_find(line, "loss");
    const char *digest = hidden ? mq_json_string(hidden) : NULL;
    if (!read_int(&l->layer, line, "layer") || !digest || mq_json_type_of(n) != MQ_JSON_ARRAY)
        return false;
    l->has_hidden = digest[0] != 0;
    if (l->has_hidden && !read_digest(l->hidden, hidden))
        return false;
    l->loss.measured = mq_json_count(n) > 0;
    if (!l->loss.measured)
        return true;
    double *const to[] = {&l->loss.moe_rel_error, &l->loss.moe_cosine, &l->loss.output_rel_error,
                          &l->loss.output_cosine};
    n = mq_json_first(n);
    bool good = mq_json_int(n, &l->loss.n_rows);
    for (int i = 0; good && i < 4; i++) {
        n = mq_json_next(n);
        good = n && mq_json_double(n, to[i]);
    }
    return good && !mq_json_next(n);
}

static bool take_layer(mq_journal_record *r, const mq_json_node *line)
{
    mq_journal_layer l, *grown = realloc(r->layers, (size_t)(r->n_layers + 1) * sizeof *grown);
    if (!grown)
        return false;
    r->layers = grown;
    if (!read_layer(&l, line))
        return false;
    r->layers[r->n_layers++] = l;
    return true;
}

/* Take one line after the first; false: not of our form (or no memory, which costs only work). */
static bool take_line(mq_journal_record *r, const mq_json_node *line)
{
    if (mq_json_find(line, "group")) {
        mq_journal_group g, *grown = realloc(r->groups, (size_t)(r->n_groups + 1) * sizeof *grown);
        if (!grown)
            return false;
        r->groups = grown;
        if (!read_group(&g, line))
            return false;
        r->groups[r->n_groups++] = g;
        return true;
    }
    if (mq_json_find(line, "layer"))
        return take_layer(r, line);
    const mq_json_node *name = mq_json_find(line, "hashed");
    mq_input f, *grown = realloc(r->hashed, (size_t)(r->n_hashed + 1) * sizeof *grown);
    if (!grown)
        return false;
    r->hashed = grown;
    memset(&f, 0, sizeof f);
    if (!name || !mq_json_string(name) || !read_digest(f.sha256, mq_json_find(line, "sha256")))
        return false;
    f.name = strdup(mq_json_string(name));
    if (!f.name)
        return false;
    r->hashed[r->n_hashed++] = f;
    return true;
}

/* Is line 1 ours? */
static bool is_head(const mq_json_node *line)
{
    const mq_json_node *kind = mq_json_find(line, "journal");
    int64_t version;
    return kind && mq_json_string(kind) && strcmp(mq_json_string(kind), "mimo-quantize") == 0 &&
           read_int(&version, line, "version") && version == 1 && mq_json_find(line, "recipe") &&
           mq_json_find(line, "source");
}

mq_status mq_journal_read(mq_journal_record *out, const char *dir, mq_err *err)
{
    memset(out, 0, sizeof *out);
    char *path = mq_path_join(dir, MQ_JOURNAL_NAME);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_buf text = mq_buf_empty();
    mq_status st = mq_file_load(&text, path, MAX_JOURNAL_BYTES, err);
    for (bool good = st == MQ_OK; good;) {
        const char *at = text.data + out->good_bytes;
        int64_t left = text.n_bytes - out->good_bytes;
        const char *end = left ? memchr(at, '\n', (size_t)left) : NULL;
        mq_json *doc = NULL;
        good = end && mq_json_parse(&doc, at, end - at, MAX_DEPTH, NULL) == MQ_OK &&
               mq_json_type_of(mq_json_root(doc)) == MQ_JSON_OBJECT;
        if (good && !out->head) {
            good = is_head(mq_json_root(doc));
            if (good) {
                out->head = doc;
                doc = NULL;
            }
        } else if (good) {
            good = take_line(out, mq_json_root(doc));
        }
        mq_json_free(doc);
        if (good)
            out->good_bytes += end + 1 - at;
    }
    mq_buf_release(&text);
    free(path);
    return st;
}

void mq_journal_record_release(mq_journal_record *r)
{
    mq_json_free(r->head);
    for (int64_t i = 0; i < r->n_groups; i++)
        free(r->groups[i].stats);
    for (int64_t i = 0; i < r->n_hashed; i++)
        free(r->hashed[i].name);
    free(r->groups);
    free(r->hashed);
    free(r->layers);
    memset(r, 0, sizeof *r);
}
