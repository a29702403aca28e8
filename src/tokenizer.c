/* The public face of the tokenizer: opening, and the order of the steps.
 *
 * Encoding, as the library does it: added tokens marked normalized=false are cut out of the text as
 * it came, leftmost first and the longest at a place; each stretch between them is brought to NFC
 * by itself; added tokens marked normalized=true are cut out of that; what remains is split by the
 * pattern and merged piece by piece. */
#include "src/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "src/json.h"
#include "src/tokenizer_json.h"
#include "src/unicode.h"

enum { MAX_FILE_BYTES = 256 << 20, MAX_TEXT_BYTES = 1 << 30, CACHE_FROM_BYTES = 16384 };

struct mq_tokenizer {
    mq_tokenizer_parts p;
};

void mq_tokens_release(mq_tokens *t)
{
    free(t->ids);
    memset(t, 0, sizeof *t);
}

static mq_status reserve(mq_tokens *t, int64_t n_more, mq_err *err)
{
    if (n_more <= t->cap - t->n)
        return MQ_OK;
    int64_t cap = 2 * t->cap + n_more + 16;
    int32_t *ids = realloc(t->ids, (size_t)cap * sizeof *ids);
    if (!ids)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld token ids", (long long)cap);
    t->ids = ids;
    t->cap = cap;
    return MQ_OK;
}

static mq_status append_ids(mq_tokens *t, const int32_t *ids, int64_t n, mq_err *err)
{
    MQ_TRY(reserve(t, n, err));
    memcpy(t->ids + t->n, ids, (size_t)n * sizeof *ids);
    t->n += n;
    return MQ_OK;
}

mq_status mq_tokens_append(mq_tokens *t, int32_t id, mq_err *err)
{
    return append_ids(t, &id, 1, err);
}

/* ---- opening ---- */

static mq_status create(mq_tokenizer **out, const mq_json *doc, const char *name, mq_err *err)
{
    mq_tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", name);
    mq_status st = mq_tokenizer_json_read(&t->p, mq_json_root(doc), err);
    if (st != MQ_OK) {
        free(t);
        return mq_wrap(err, st, "%s", name);
    }
    *out = t;
    return MQ_OK;
}

mq_status mq_tokenizer_open(mq_tokenizer **out, const char *path, mq_err *err)
{
    *out = NULL;
    mq_json *doc = NULL;
    MQ_TRY(mq_json_load(&doc, path, MAX_FILE_BYTES, MQ_TOKENIZER_JSON_DEPTH, err));
    mq_status st = create(out, doc, path, err);
    mq_json_free(doc);
    return st;
}

mq_status mq_tokenizer_parse(mq_tokenizer **out, const char *json, int64_t n_bytes,
                             const char *name, mq_err *err)
{
    *out = NULL;
    mq_json *doc = NULL;
    mq_status st = mq_json_parse(&doc, json, n_bytes, MQ_TOKENIZER_JSON_DEPTH, err);
    if (st != MQ_OK)
        return mq_wrap(err, st, "%s", name);
    st = create(out, doc, name, err);
    mq_json_free(doc);
    return st;
}

void mq_tokenizer_close(mq_tokenizer *t)
{
    if (!t)
        return;
    mq_tokenizer_parts_release(&t->p);
    free(t);
}

int32_t mq_tokenizer_n_ids(const mq_tokenizer *t)
{
    return t->p.vocab.n_ids;
}

int32_t mq_tokenizer_find(const mq_tokenizer *t, const char *text)
{
    return mq_vocab_find(&t->p.vocab, text, (int64_t)strlen(text));
}

/* ---- encoding ---- */

/* One call of mq_tokenizer_encode. */
typedef struct job {
    const mq_tokenizer_parts *p;
    mq_tokens *out;
    mq_bpe_work *work;
    mq_split_walk walk;
    mq_buf normal; /* NFC of the stretch at hand */
    bool with_added;
} job;

/* Text without added tokens, normalised: split and merge. */
static mq_status encode_plain(job *j, const char *text, int64_t n_bytes, mq_err *err)
{
    mq_split_walk_restart(&j->walk, text, n_bytes);
    for (;;) {
        int64_t start, end, n_ids;
        const int32_t *ids;
        MQ_TRY(mq_split_walk_next(&j->walk, &start, &end, err));
        if (start == end)
            return MQ_OK;
        MQ_TRY(mq_bpe_encode(j->p->bpe, j->work, &ids, &n_ids, text + start, end - start, err));
        MQ_TRY(append_ids(j->out, ids, n_ids, err));
    }
}

/* Cut needles out of text and hand what lies between them to the next step. */
static mq_status encode_around(job *j, const mq_needles *needles, const char *text, int64_t n_bytes,
                               mq_status (*next)(job *, const char *, int64_t, mq_err *),
                               mq_err *err)
{
    int64_t start = 0;
    if (j->with_added && needles->n > 0) {
        for (int64_t i = 0; i < n_bytes;) {
            const mq_needle *found = mq_needles_match(needles, text + i, n_bytes - i);
            if (!found) {
                i++;
                continue;
            }
            MQ_TRY(next(j, text + start, i - start, err));
            MQ_TRY(mq_tokens_append(j->out, found->id, err));
            i += found->n_bytes;
            start = i;
        }
    }
    return next(j, text + start, n_bytes - start, err);
}

static mq_status encode_raw(job *j, const char *text, int64_t n_bytes, mq_err *err)
{
    if (j->p->nfc && !mq_unicode_is_plain(text, n_bytes)) {
        mq_buf_clear(&j->normal);
        MQ_TRY(mq_unicode_nfc(&j->normal, text, n_bytes, err));
        text = j->normal.data;
        n_bytes = j->normal.n_bytes;
    }
    return encode_around(j, &j->p->vocab.normal, text, n_bytes, encode_plain, err);
}

mq_status mq_tokenizer_encode(const mq_tokenizer *t, mq_tokens *out, const char *text,
                              int64_t n_bytes, bool with_added, mq_err *err)
{
    if (n_bytes < 0 || n_bytes > MAX_TEXT_BYTES)
        return mq_fail(err, MQ_E_ARG, "text of %lld bytes, at most %d are encoded at once",
                       (long long)n_bytes, MAX_TEXT_BYTES);
    if (n_bytes == 0)
        return MQ_OK; /* text may be NULL */
    mq_status st = mq_unicode_check(text, n_bytes, err);
    if (st != MQ_OK)
        return mq_wrap(err, st, "text");
    job j = {.p = &t->p, .out = out, .normal = mq_buf_empty(), .with_added = with_added};
    int64_t n_before = out->n;
    st = mq_bpe_work_create(&j.work, n_bytes >= CACHE_FROM_BYTES, err);
    if (st == MQ_OK)
        st = mq_split_walk_init(&j.walk, t->p.split, text, 0, err);
    if (st == MQ_OK)
        st = encode_around(&j, &t->p.vocab.raw, text, n_bytes, encode_raw, err);
    if (st != MQ_OK)
        out->n = n_before;
    mq_split_walk_release(&j.walk);
    mq_bpe_work_free(j.work);
    mq_buf_release(&j.normal);
    return st;
}

/* ---- decoding ---- */

mq_status mq_tokenizer_token_bytes(const mq_tokenizer *t, mq_buf *out, int32_t id,
                                   bool skip_special, mq_err *err)
{
    const mq_vocab *v = &t->p.vocab;
    const mq_token *token = mq_vocab_get(v, id);
    if (!token)
        return mq_fail(err, MQ_E_ARG, "token id %d is not in the vocabulary of %d", id, v->n_ids);
    if (token->special && skip_special)
        return MQ_OK;
    if (token->n_bytes > 0)
        mq_buf_append(out, v->bytes.data + token->bytes_off, token->n_bytes);
    return mq_buf_status(out, err);
}

mq_status mq_tokenizer_decode(const mq_tokenizer *t, mq_buf *out, const int32_t *ids, int64_t n,
                              bool skip_special, mq_err *err)
{
    mq_buf bytes = mq_buf_empty();
    mq_status st = MQ_OK;
    for (int64_t i = 0; i < n && st == MQ_OK; i++)
        st = mq_tokenizer_token_bytes(t, &bytes, ids[i], skip_special, err);
    if (st == MQ_OK && bytes.n_bytes > 0) {
        mq_unicode_append_lossy(out, bytes.data, bytes.n_bytes);
        st = mq_buf_status(out, err);
    }
    mq_buf_release(&bytes);
    return st;
}
