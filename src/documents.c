/* Both kinds of file are pieces between delimiters; a piece is looked for in a buffer that grows with the piece at hand and
 * is refilled in blocks.  A piece of a .jsonl file is parsed further.  Parts are pieces that end at starts too. */
#include "src/documents.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "src/file.h"
#include "src/json.h"
#include "src/utf8.h"

enum { BLOCK_BYTES = 256 << 10, JSON_DEPTH = 64 };

struct mq_documents {
    mq_file *file;
    const char *delimiter;
    int64_t delimiter_bytes;
    bool is_jsonl;
    char *data;              /* [cap] */
    int64_t cap;
    int64_t begin, end;      /* of the bytes at hand, in data */
    int64_t begin_off;       /* of data[begin], in the file */
    int64_t first_off;       /* of the text: behind the mark */
    mq_json *json;           /* holds the document given last */
};

bool mq_documents_is_jsonl(const char *path)
{
    size_t n = strlen(path);
    return n >= 6 && strcasecmp(path + n - 6, ".jsonl") == 0;
}

mq_status mq_documents_open(mq_documents **out, const char *path, bool is_jsonl, mq_err *err)
{
    *out = NULL;
    mq_documents *d = calloc(1, sizeof *d);
    if (!d)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", path);
    d->is_jsonl = is_jsonl;
    d->delimiter = is_jsonl ? "\n" : MQ_DOCUMENTS_SEPARATOR;
    d->delimiter_bytes = (int64_t)strlen(d->delimiter);
    char mark[3];
    mq_status st = mq_file_open(&d->file, path, err);
    if (st == MQ_OK && d->file->n_bytes >= 3) {
        st = mq_file_read(d->file, mark, 0, 3, err);
        d->first_off = st == MQ_OK && memcmp(mark, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
        d->begin_off = d->first_off;
    }
    if (st != MQ_OK) {
        mq_documents_close(d);
        return st;
    }
    *out = d;
    return MQ_OK;
}

void mq_documents_close(mq_documents *d)
{
    if (!d)
        return;
    mq_json_free(d->json);
    mq_file_close(d->file);
    free(d->data);
    free(d);
}

static int64_t next_off(const mq_documents *d)
{
    return d->begin_off + (d->end - d->begin);
}

/* Another block behind what is at hand. */
static mq_status refill(mq_documents *d, mq_err *err)
{
    int64_t held = d->end - d->begin, left = d->file->n_bytes - next_off(d);
    int64_t n = left < BLOCK_BYTES ? left : BLOCK_BYTES;
    if (d->begin > 0) { /* the piece moves to the front: once per block */
        memmove(d->data, d->data + d->begin, (size_t)held);
        d->begin = 0;
        d->end = held;
    }
    if (held + n > d->cap) {
        int64_t cap = 2 * d->cap + n;
        char *grown = realloc(d->data, (size_t)cap);
        if (!grown)
            return mq_fail(err, MQ_E_NOMEM, "%s: out of memory for a document of more than %lld bytes", d->file->path,
                           (long long)held);
        d->data = grown;
        d->cap = cap;
    }
    MQ_TRY(mq_file_read(d->file, d->data + held, next_off(d), n, err));
    d->end += n;
    return MQ_OK;
}

static bool is_delimiter(const mq_documents *d, const char *at, int64_t n_bytes)
{
    return n_bytes >= d->delimiter_bytes && memcmp(at, d->delimiter, (size_t)d->delimiter_bytes) == 0;
}

/* Does at[i] begin a line of plain text where a reader may start?  i is at least 1. */
static bool is_line_start(const mq_documents *d, const char *at, int64_t i, int64_t held)
{
    char c = at[i];
    return !d->is_jsonl && at[i - 1] == '\n' && c != ' ' && (c < '\t' || c > '\r') && !is_delimiter(d, at + i, held - i);
}

/* Where, from searched on, the piece of which held bytes are at hand ends: at a delimiter or, in parts, at a line start; -1 when
 * that is not to be seen yet. */
static int64_t find_end(const mq_documents *d, const char *at, int64_t held, int64_t searched, bool last, bool in_parts)
{
    if (held <= searched)
        return -1;
    if (!in_parts) {
        const char *found = memmem(at + searched, (size_t)(held - searched), d->delimiter, (size_t)d->delimiter_bytes);
        return found ? found - at : -1;
    }
    int64_t end = last ? held : held - d->delimiter_bytes + 1;
    for (int64_t i = searched; i < end; i++)
        if (is_delimiter(d, at + i, held - i) || (i > 0 && is_line_start(d, at, i, held)))
            return i;
    return -1;
}

static void take(mq_documents *d, int64_t n_bytes)
{
    d->begin += n_bytes;
    d->begin_off += n_bytes;
}

/* The next piece, or NULL: what stands before an end, or what is left at the end of the file unless that is nothing.  delimited:
 * no line start ended it. */
static mq_status next_piece(mq_documents *d, const char **piece, int64_t *n_bytes, int64_t *off, bool in_parts, bool *delimited,
                            mq_err *err)
{
    int64_t searched = 0;
    *piece = NULL;
    *n_bytes = 0;
    for (;;) {
        int64_t held = d->end - d->begin;
        const char *at = held ? d->data + d->begin : "";
        bool last = next_off(d) == d->file->n_bytes;
        int64_t found = find_end(d, at, held, searched, last, in_parts);
        int64_t n = found >= 0 ? found : held;
        if (n > MQ_DOCUMENT_MAX_BYTES)
            return mq_fail(err, MQ_E_FORMAT, "%s: byte %lld begins a document of over %d bytes; %s", d->file->path,
                           (long long)d->begin_off, MQ_DOCUMENT_MAX_BYTES,
                           d->is_jsonl ? "break it up" : "put " MQ_DOCUMENTS_SEPARATOR " between documents");
        if (found >= 0 || last) {
            bool before_delimiter = found >= 0 && is_delimiter(d, at + n, held - n);
            *delimited = found < 0 || before_delimiter;
            *off = d->begin_off;
            *n_bytes = n;
            *piece = found >= 0 || n > 0 ? at : NULL;
            take(d, n + (before_delimiter ? d->delimiter_bytes : 0));
            return MQ_OK;
        }
        searched = held < d->delimiter_bytes ? 0 : held - d->delimiter_bytes + 1;
        MQ_TRY(refill(d, err));
    }
}

int64_t mq_documents_file_bytes(const mq_documents *d)
{
    return d->file->n_bytes;
}

int64_t mq_documents_off(const mq_documents *d)
{
    return d->begin_off;
}

mq_status mq_documents_seek(mq_documents *d, int64_t off, mq_err *err)
{
    int64_t before = d->delimiter_bytes; /* of a place, to see whether it is a start */
    if (off > d->file->n_bytes)
        off = d->file->n_bytes;
    d->begin = d->end = 0;
    d->begin_off = off - before > d->first_off ? off - before : d->first_off;
    if (off <= d->first_off)
        return MQ_OK;
    for (int64_t i = off - d->begin_off;;) {
        int64_t held = d->end - d->begin;
        bool last = next_off(d) == d->file->n_bytes;
        const char *at = held ? d->data + d->begin : "";
        for (; i < held && (last || held - i >= before); i++) {
            if ((i >= before && is_delimiter(d, at + i - before, before)) || is_line_start(d, at, i, held)) {
                take(d, i);
                return MQ_OK;
            }
        }
        int64_t passed = last ? held : i > before ? i - before : 0;
        take(d, passed);
        i -= passed;
        if (last)
            return MQ_OK;
        MQ_TRY(refill(d, err));
    }
}

/* The number, from 1, of the line that begins at off; for error texts alone: the file is read again from its beginning. */
static long long line_number(const mq_documents *d, int64_t off)
{
    long long line = 1;
    char bytes[4096];
    mq_err ignored;
    for (int64_t at = 0; at < off; at += (int64_t)sizeof bytes) {
        int64_t n = off - at < (int64_t)sizeof bytes ? off - at : (int64_t)sizeof bytes;
        if (mq_file_read(d->file, bytes, at, n, &ignored) != MQ_OK)
            return line;
        for (int64_t i = 0; i < n; i++)
            line += bytes[i] == '\n';
    }
    return line;
}

static mq_status check_utf8(const mq_documents *d, const char *text, int64_t n_bytes, int64_t off, mq_err *err)
{
    for (int64_t i = 0; i < n_bytes;) {
        int n = mq_utf8_bytes(text + i, n_bytes - i);
        if (n == 0 && d->is_jsonl)
            return mq_fail(err, MQ_E_FORMAT, "%s: line %lld: byte %lld of the file is not UTF-8", d->file->path,
                           line_number(d, off), (long long)(off + i));
        if (n == 0)
            return mq_fail(err, MQ_E_FORMAT, "%s: byte %lld is not UTF-8", d->file->path, (long long)(off + i));
        i += n;
    }
    return MQ_OK;
}

static bool is_blank(const char *line, int64_t n_bytes)
{
    for (int64_t i = 0; i < n_bytes; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

/* The "text" of a line; it lives in d->json. */
static mq_status take_line(mq_documents *d, const char **text, int64_t *n_bytes, int64_t off, mq_err *err)
{
    const char *path = d->file->path;
    mq_json_free(d->json);
    d->json = NULL;
    mq_status st = mq_json_parse(&d->json, *text, *n_bytes, JSON_DEPTH, err);
    if (st != MQ_OK)
        return mq_wrap(err, st, "%s: line %lld", path, line_number(d, off));
    const mq_json_node *root = mq_json_root(d->json);
    if (mq_json_type_of(root) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "%s: line %lld: is of type %s, expected object", path, line_number(d, off),
                       mq_json_type_name(mq_json_type_of(root)));
    const mq_json_node *node = mq_json_find(root, "text");
    if (!node)
        return mq_fail(err, MQ_E_FORMAT, "%s: line %lld: no \"text\"", path, line_number(d, off));
    if (!mq_json_string(node))
        return mq_fail(err, MQ_E_FORMAT, "%s: line %lld: \"text\" is of type %s, expected string", path,
                       line_number(d, off), mq_json_type_name(mq_json_type_of(node)));
    *text = mq_json_string(node);
    *n_bytes = (int64_t)strlen(*text); /* no string of mq_json holds a NUL */
    return MQ_OK;
}

static mq_status next_document(mq_documents *d, const char **text, int64_t *n_bytes, bool in_parts, bool *ends, mq_err *err)
{
    int64_t off = 0;
    do {
        MQ_TRY(next_piece(d, text, n_bytes, &off, in_parts, ends, err));
        if (!*text)
            return MQ_OK;
        MQ_TRY(check_utf8(d, *text, *n_bytes, off, err));
    } while (d->is_jsonl && is_blank(*text, *n_bytes));
    return d->is_jsonl ? take_line(d, text, n_bytes, off, err) : MQ_OK;
}

mq_status mq_documents_next(mq_documents *d, const char **text, int64_t *n_bytes, mq_err *err)
{
    bool ends;
    return next_document(d, text, n_bytes, false, &ends, err);
}

mq_status mq_documents_next_part(mq_documents *d, const char **text, int64_t *n_bytes, bool *ends, mq_err *err)
{
    return next_document(d, text, n_bytes, !d->is_jsonl, ends, err);
}
