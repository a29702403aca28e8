/* Shares and capacities settle first: each file is asked for its share, and one that has less keeps what it has while the rest
 * is shared out again; a file whose share grew is read anew, as its windows then lie elsewhere.  Then the windows are laid in
 * turn. */
#include "calib/corpus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/documents.h"

#define MAX_WINDOWS (INT64_C(1) << 28) /* products of counts below stay inside 64 bits */

/* One file of the mixture. */
typedef struct stream {
    const mq_corpus_file *file;
    mq_documents *documents;
    mq_tokens tokens;    /* its windows one behind the other; more may follow */
    int64_t n_documents; /* read from the beginning */
    int64_t share;       /* windows asked of it */
    int64_t read_for;    /* the share that tokens was read for */
    int64_t given;       /* windows laid */
    double remainder;    /* while sharing out */
} stream;

typedef struct reader {
    const mq_tokenizer *tokenizer;
    int32_t end_of_text;
    int64_t window;
    stream *streams; /* [n] */
    int64_t n;
} reader;

static mq_status open_stream(stream *s, const mq_corpus_file *file, mq_err *err)
{
    memset(s, 0, sizeof *s);
    s->file = file;
    return mq_documents_open(&s->documents, file->path, mq_documents_is_jsonl(file->path), err);
}

static void close_stream(stream *s)
{
    mq_documents_close(s->documents);
    mq_tokens_release(&s->tokens);
}

/* ---- Reading ---- */

/* The next document into tokens; *end: there is none. */
static mq_status read_document(stream *s, const mq_tokenizer *tokenizer, int32_t end_of_text, bool *end, mq_err *err)
{
    const char *text;
    int64_t n_bytes;
    MQ_TRY(mq_documents_next(s->documents, &text, &n_bytes, err));
    *end = !text;
    if (!text && s->n_documents == 0)
        return mq_fail(err, MQ_E_FORMAT, "%s: holds no text", s->file->path);
    if (!text)
        return MQ_OK;
    s->n_documents++;
    mq_status st = mq_tokenizer_encode(tokenizer, &s->tokens, text, n_bytes, true, err);
    if (st == MQ_OK && end_of_text >= 0)
        st = mq_tokens_append(&s->tokens, end_of_text, err);
    return mq_wrap(err, st, "%s: document %lld", s->file->path, (long long)s->n_documents);
}

/* The same for a part of one. */
static mq_status read_part(reader *r, stream *s, bool *end, mq_err *err)
{
    const char *text;
    int64_t n_bytes, off = mq_documents_off(s->documents);
    bool ends;
    MQ_TRY(mq_documents_next_part(s->documents, &text, &n_bytes, &ends, err));
    *end = !text;
    if (!text)
        return MQ_OK;
    mq_status st = mq_tokenizer_encode(r->tokenizer, &s->tokens, text, n_bytes, true, err);
    if (st == MQ_OK && ends)
        st = mq_tokens_append(&s->tokens, r->end_of_text, err);
    return mq_wrap(err, st, "%s: text at byte %lld", s->file->path, (long long)off);
}

/* floor(j * n_bytes / n) for j <= n <= MAX_WINDOWS. */
static int64_t spread_off(int64_t n_bytes, int64_t j, int64_t n)
{
    return n_bytes / n * j + n_bytes % n * j / n;
}

/* The windows of s's share, evenly spread over span bytes; *full: the file reached that far; *skipped: not all of its text up to
 * the last one was used. */
static mq_status read_spread(reader *r, stream *s, int64_t span, bool *full, bool *skipped, mq_err *err)
{
    bool end = false;
    *skipped = false;
    s->tokens.n = 0;
    MQ_TRY(mq_documents_seek(s->documents, 0, err));
    for (int64_t j = 0; j < s->share && !end; j++) {
        int64_t off = spread_off(span, j, s->share);
        if (mq_documents_off(s->documents) <= off) {
            *skipped = *skipped || j > 0;
            s->tokens.n = j * r->window;
            MQ_TRY(mq_documents_seek(s->documents, off, err));
        }
        while (s->tokens.n < (j + 1) * r->window && !end)
            MQ_TRY(read_part(r, s, &end, err));
    }
    *full = !end;
    return MQ_OK;
}

/* The first windows of the file, s's share or what there is. */
static mq_status read_first(reader *r, stream *s, mq_err *err)
{
    s->tokens.n = 0;
    s->n_documents = 0;
    MQ_TRY(mq_documents_seek(s->documents, 0, err));
    for (bool end = false; s->tokens.n < s->share * r->window && !end;)
        MQ_TRY(read_document(s, r->tokenizer, r->end_of_text, &end, err));
    return MQ_OK;
}

static mq_status read_share(reader *r, stream *s, mq_err *err)
{
    static const int64_t eighths[] = {8, 7, 6, 4};
    bool full = s->read_for == s->share, skipped = true; /* a narrower span would not help where nothing is skipped */
    s->read_for = s->share;
    for (int i = 0; i < 4 && !full && skipped; i++)
        MQ_TRY(read_spread(r, s, spread_off(mq_documents_file_bytes(s->documents), eighths[i], 8), &full, &skipped, err));
    return full ? MQ_OK : read_first(r, s, err);
}

mq_status mq_corpus_tokens(mq_tokens *out, const char *path, const mq_tokenizer *tokenizer, int32_t end_of_text,
                           mq_err *err)
{
    stream s;
    mq_corpus_file file = {path, 1.0};
    mq_status st = open_stream(&s, &file, err);
    s.tokens = *out; /* appended to, and given back */
    for (bool end = false; st == MQ_OK && !end;)
        st = read_document(&s, tokenizer, end_of_text, &end, err);
    *out = s.tokens;
    mq_documents_close(s.documents);
    return st;
}

/* ---- Shares ---- */

/* Windows that s can give, of its share. */
static int64_t capacity(const reader *r, const stream *s)
{
    int64_t n = s->tokens.n / r->window;
    return n < s->share ? n : s->share;
}

/* Share n_windows out over the files marked in open, by weight and largest remainders. */
static void share_out(reader *r, const bool *open, int64_t n_windows)
{
    double sum = 0;
    int64_t left = n_windows;
    for (int64_t i = 0; i < r->n; i++)
        sum += open[i] ? r->streams[i].file->weight : 0;
    for (int64_t i = 0; i < r->n; i++) {
        stream *s = &r->streams[i];
        if (!open[i])
            continue;
        double exact = (double)n_windows * (s->file->weight / sum);
        s->share = (int64_t)floor(exact);
        s->remainder = exact - floor(exact);
        left -= s->share;
    }
    for (; left > 0; left--) {
        stream *best = NULL;
        for (int64_t i = 0; i < r->n; i++)
            if (open[i] && (!best || r->streams[i].remainder > best->remainder))
                best = &r->streams[i];
        best->share++;
        best->remainder = -1;
    }
}

/* Read every file's share; files that have less keep what they have and leave the rest to the others. */
static mq_status settle_shares(reader *r, bool *open, int64_t n_windows, mq_err *err)
{
    int64_t left = n_windows, n_open = r->n;
    for (int64_t i = 0; i < r->n; i++)
        open[i] = true;
    for (bool again = true; again && n_open > 0;) {
        again = false;
        share_out(r, open, left);
        for (int64_t i = 0; i < r->n; i++)
            if (open[i])
                MQ_TRY(read_share(r, &r->streams[i], err));
        for (int64_t i = 0; i < r->n; i++) {
            stream *s = &r->streams[i];
            if (!open[i] || capacity(r, s) == s->share)
                continue;
            s->share = capacity(r, s);
            left -= s->share;
            open[i] = false;
            n_open--;
            again = true;
        }
    }
    return MQ_OK;
}

/* ---- Order ---- */

/* The file whose window comes at place k (from 1) of n_windows: of those that have fallen behind their share of k, the one
 * that would be late first.  Source: Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980). */
static stream *next_stream(reader *r, int64_t n_active, int64_t k, int64_t n_windows)
{
    int64_t m = n_active > 1 ? 2 * n_active - 2 : 1;
    stream *best = NULL;
    double best_due = 0;
    for (int64_t i = 0; i < r->n; i++) {
        stream *s = &r->streams[i];
        if (s->given == s->share || (n_active > 1 && m * (s->share * k - s->given * n_windows) < n_windows))
            continue;
        double due = (double)(m * s->given + m - 1) / (double)s->share;
        if (!best || due < best_due) {
            best = s;
            best_due = due;
        }
    }
    return best;
}

static void lay_windows(mq_corpus *out, reader *r)
{
    int64_t n_active = 0;
    for (int64_t i = 0; i < r->n; i++)
        n_active += r->streams[i].share > 0;
    for (int64_t k = 0; k < out->n_windows; k++) {
        stream *s = next_stream(r, n_active, k + 1, out->n_windows);
        for (int64_t i = 0; !s; i++) /* never, but for rounding in a tie */
            s = r->streams[i].given < r->streams[i].share ? &r->streams[i] : NULL;
        memcpy(out->ids + k * out->window, s->tokens.ids + s->given * out->window, (size_t)out->window * sizeof *out->ids);
        s->given++;
    }
}

static mq_status hash_ids(mq_corpus *c, mq_err *err)
{
    mq_sha256 *h;
    MQ_TRY(mq_sha256_create(&h, err));
    int64_t n = c->n_windows * c->window;
    for (int64_t i = 0; i < n;) {
        uint8_t bytes[4096];
        int64_t m = 0;
        for (; m < (int64_t)sizeof bytes && i < n; i++, m += 4)
            for (int b = 0; b < 4; b++)
                bytes[m + b] = (uint8_t)((uint32_t)c->ids[i] >> (8 * b));
        mq_sha256_update(h, bytes, m);
    }
    mq_sha256_finish(h, c->sha256);
    mq_sha256_free(h);
    return MQ_OK;
}

static mq_status assemble(mq_corpus *out, reader *r, mq_err *err)
{
    int64_t n_tokens = 0;
    out->window = r->window;
    out->n_files = r->n;
    for (int64_t i = 0; i < r->n; i++) {
        out->n_windows += r->streams[i].share;
        n_tokens += r->streams[i].tokens.n;
    }
    if (out->n_windows == 0)
        return mq_fail(err, MQ_E_ARG, "%s%s: %lld tokens of text, expected at least one window of %lld",
                       r->streams[0].file->path, r->n > 1 ? " and others" : "", (long long)n_tokens,
                       (long long)r->window);
    out->ids = malloc((size_t)(out->n_windows * r->window) * sizeof *out->ids);
    out->windows_of = malloc((size_t)r->n * sizeof *out->windows_of);
    if (!out->ids || !out->windows_of)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld tokens", (long long)(out->n_windows * r->window));
    for (int64_t i = 0; i < r->n; i++)
        out->windows_of[i] = r->streams[i].share;
    lay_windows(out, r);
    return hash_ids(out, err);
}

static mq_status check_arguments(const mq_corpus_file *files, int64_t n_files, int64_t window, int64_t n_tokens,
                                 mq_err *err)
{
    if (n_files < 1)
        return mq_fail(err, MQ_E_ARG, "no calibration text");
    if (window < 1 || n_tokens < 1)
        return mq_fail(err, MQ_E_ARG, "%lld tokens in windows of %lld, expected at least 1 of each", (long long)n_tokens,
                       (long long)window);
    if (n_tokens / window > MAX_WINDOWS)
        return mq_fail(err, MQ_E_ARG, "%lld windows of calibration text, expected at most %lld",
                       (long long)(n_tokens / window), (long long)MAX_WINDOWS);
    for (int64_t i = 0; i < n_files; i++)
        if (!isfinite(files[i].weight) || files[i].weight <= 0)
            return mq_fail(err, MQ_E_ARG, "%s: weight %g, expected a positive number", files[i].path, files[i].weight);
    return MQ_OK;
}

mq_status mq_corpus_read(mq_corpus *out, const mq_corpus_file *files, int64_t n_files, const mq_tokenizer *tokenizer,
                         int32_t end_of_text, int64_t window, int64_t n_tokens, mq_err *err)
{
    memset(out, 0, sizeof *out);
    MQ_TRY(check_arguments(files, n_files, window, n_tokens, err));
    reader r = {.tokenizer = tokenizer, .end_of_text = end_of_text, .window = window};
    r.streams = calloc((size_t)n_files, sizeof *r.streams);
    bool *open = calloc((size_t)n_files, sizeof *open);
    mq_status st = r.streams && open ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (; st == MQ_OK && r.n < n_files; r.n++)
        st = open_stream(&r.streams[r.n], &files[r.n], err);
    if (st == MQ_OK)
        st = settle_shares(&r, open, n_tokens < window ? 1 : n_tokens / window, err);
    if (st == MQ_OK)
        st = assemble(out, &r, err);
    for (int64_t i = 0; i < r.n; i++)
        close_stream(&r.streams[i]);
    free(r.streams);
    free(open);
    if (st != MQ_OK)
        mq_corpus_release(out);
    return st;
}

void mq_corpus_release(mq_corpus *c)
{
    free(c->ids);
    free(c->windows_of);
    memset(c, 0, sizeof *c);
}
