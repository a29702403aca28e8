/* The token table.  Texts are copied into one pool of known size, so that the map may borrow them
 * at once.
 *
 * A token's bytes are what decoding gives: every code point of its text stands for one byte
 * (GPT-2's table), or, when one of them stands for none, the text itself.  The library treats added
 * tokens the same way, so an added token "é" decodes to the byte E9; released ones are ASCII, where
 * both readings agree. Added tokens are found by narrowing a sorted list byte by byte: the longest
 * match at a place costs at most its length times the logarithm of their number. */
#include "src/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "src/unicode.h"

/* Bytes that stand for themselves are printable Latin-1; the other 68 are moved to U+0100 and up,
 * in order. */
static bool stands_for_itself(int32_t c)
{
    return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xFF && c != 0xAD);
}

int mq_byte_of_char(int32_t cp)
{
    if (cp >= 0 && cp < 0x100)
        return stands_for_itself(cp) ? cp : -1;
    int32_t k = cp - 0x100; /* 0..32 are bytes 00..20, then 7F..A0, then AD */
    if (k < 0 || k > 67)
        return -1;
    return k <= 32 ? k : k < 67 ? 0x7F + k - 33 : 0xAD;
}

int32_t mq_byte_to_char(int byte)
{
    if (stands_for_itself(byte))
        return byte;
    return byte <= 0x20 ? 0x100 + byte : byte == 0xAD ? 0x143 : 0x121 + byte - 0x7F;
}

mq_status mq_vocab_create(mq_vocab *v, int32_t n_ids, int64_t n_tokens, int64_t n_text_bytes,
                          mq_err *err)
{
    memset(v, 0, sizeof *v);
    v->n_ids = n_ids;
    v->text_cap = n_text_bytes;
    v->tokens = calloc((size_t)n_ids + 1, sizeof *v->tokens);
    v->text_pool = malloc((size_t)n_text_bytes + 1);
    mq_status st =
        v->tokens && v->text_pool
            ? mq_map_create(&v->ids, n_tokens, err)
            : mq_fail(err, MQ_E_NOMEM, "out of memory for %lld tokens", (long long)n_tokens);
    if (st != MQ_OK)
        mq_vocab_release(v);
    return st;
}

void mq_vocab_release(mq_vocab *v)
{
    free(v->tokens);
    free(v->text_pool);
    free(v->raw.at);
    free(v->normal.at);
    mq_buf_release(&v->bytes);
    mq_map_free(v->ids);
    memset(v, 0, sizeof *v);
}

const mq_token *mq_vocab_get(const mq_vocab *v, int64_t id)
{
    return id >= 0 && id < v->n_ids && v->tokens[id].text ? &v->tokens[id] : NULL;
}

int32_t mq_vocab_find(const mq_vocab *v, const char *text, int64_t n_bytes)
{
    return (int32_t)mq_map_find(v->ids, text, n_bytes);
}

mq_status mq_vocab_add(mq_vocab *v, int64_t id, const char *text, mq_token flags, mq_err *err)
{
    int64_t n = (int64_t)strlen(text);
    if (id < 0 || id >= v->n_ids)
        return mq_fail(err, MQ_E_FORMAT, "token '%s': id %lld, expected 0 to %d", text,
                       (long long)id, v->n_ids - 1);
    if (n >= v->text_cap - v->text_used)
        return mq_fail(err, MQ_E_BUG, "token '%s': more text than announced", text);
    mq_token *t = &v->tokens[id];
    int32_t known = mq_vocab_find(v, text, n);
    if (known >= 0 && known != id)
        return mq_fail(err, MQ_E_FORMAT, "token '%s' has two ids, %d and %lld", text, known,
                       (long long)id);
    if (known >= 0 && (t->added || !flags.added))
        return mq_fail(err, MQ_E_FORMAT, "token '%s' is listed twice", text);
    if (known < 0 && t->text)
        return mq_fail(err, MQ_E_FORMAT, "id %lld belongs to two tokens, '%s' and '%s'",
                       (long long)id, t->text, text);
    if (known < 0) {
        char *copy = v->text_pool + v->text_used;
        memcpy(copy, text, (size_t)n + 1);
        v->text_used += n + 1;
        bool is_new;
        MQ_TRY(mq_map_put(v->ids, copy, n, id, &is_new, err));
        t->text = copy;
        t->n_text = (int32_t)n;
    }
    t->added = flags.added;
    t->special = flags.special;
    t->normalized = flags.normalized;
    return MQ_OK;
}

static void decode_bytes(mq_vocab *v, mq_token *t)
{
    t->bytes_off = v->bytes.n_bytes;
    for (int32_t i = 0; i < t->n_text;) {
        int32_t cp;
        i += mq_unicode_next(t->text + i, t->n_text - i, &cp);
        int byte = mq_byte_of_char(cp);
        if (byte < 0) {
            v->bytes.n_bytes = t->bytes_off;
            mq_buf_append(&v->bytes, t->text, t->n_text);
            break;
        }
        char c = (char)byte;
        mq_buf_append(&v->bytes, &c, 1);
    }
    t->n_bytes = (int32_t)(v->bytes.n_bytes - t->bytes_off);
}

static int compare_needles(const void *a, const void *b)
{
    const mq_needle *x = a, *y = b;
    int32_t n = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
    int c = memcmp(x->text, y->text, (size_t)n);
    return c != 0 ? c : (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static void seal_needles(mq_needles *s)
{
    if (s->n > 1)
        qsort(s->at, (size_t)s->n, sizeof *s->at, compare_needles);
    for (int32_t i = 0; i < s->n; i++)
        s->first[(uint8_t)s->at[i].text[0]] = true;
}

/* A token found after NFC must be its own NFC form: otherwise the library finds and prints another
 * text than the file's. */
static mq_status check_added(const mq_token *t, int32_t id, bool nfc, mq_buf *scratch, mq_err *err)
{
    if (t->n_text == 0 || t->n_text > MQ_VOCAB_MAX_ADDED_BYTES)
        return mq_fail(err, MQ_E_UNSUPPORTED, "added token %d: %d bytes long, expected 1 to %d", id,
                       t->n_text, MQ_VOCAB_MAX_ADDED_BYTES);
    if (!t->normalized || !nfc)
        return MQ_OK;
    mq_buf_clear(scratch);
    MQ_TRY(mq_unicode_nfc(scratch, t->text, t->n_text, err));
    if (scratch->n_bytes != t->n_text || memcmp(scratch->data, t->text, (size_t)t->n_text) != 0)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "added token '%s' is marked normalized, and NFC changes it", t->text);
    return MQ_OK;
}

static mq_status build_needles(mq_vocab *v, bool nfc, mq_buf *scratch, mq_err *err)
{
    for (int32_t id = 0; id < v->n_ids; id++) {
        const mq_token *t = &v->tokens[id];
        if (!t->added)
            continue;
        MQ_TRY(check_added(t, id, nfc, scratch, err));
        mq_needles *s = t->normalized ? &v->normal : &v->raw;
        s->at[s->n++] = (mq_needle){t->text, t->n_text, id};
    }
    seal_needles(&v->raw);
    seal_needles(&v->normal);
    return MQ_OK;
}

mq_status mq_vocab_finish(mq_vocab *v, bool nfc, mq_err *err)
{
    int64_t n_added = 0;
    for (int32_t id = 0; id < v->n_ids; id++) {
        if (v->tokens[id].text)
            decode_bytes(v, &v->tokens[id]);
        n_added += v->tokens[id].added;
    }
    MQ_TRY(mq_buf_status(&v->bytes, err));
    v->raw.at = calloc((size_t)n_added + 1, sizeof *v->raw.at);
    v->normal.at = calloc((size_t)n_added + 1, sizeof *v->normal.at);
    if (!v->raw.at || !v->normal.at)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for added tokens");
    mq_buf scratch = mq_buf_empty();
    mq_status st = build_needles(v, nfc, &scratch, err);
    mq_buf_release(&scratch);
    return st;
}

/* First needle in [lo, hi) whose byte at depth is at least b; all of them share the bytes before
 * depth. */
static int32_t lower_bound(const mq_needles *s, int32_t lo, int32_t hi, int32_t depth, int b)
{
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        int at = s->at[mid].n_bytes > depth ? (uint8_t)s->at[mid].text[depth] : -1;
        if (at < b)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const mq_needle *mq_needles_match(const mq_needles *s, const char *text, int64_t n_bytes)
{
    if (n_bytes == 0 || !s->first[(uint8_t)text[0]])
        return NULL;
    const mq_needle *best = NULL;
    int32_t lo = 0, hi = s->n;
    for (int32_t depth = 0; depth < n_bytes && lo < hi; depth++) {
        int b = (uint8_t)text[depth];
        lo = lower_bound(s, lo, hi, depth, b);
        hi = lower_bound(s, lo, hi, depth, b + 1);
        if (lo < hi && s->at[lo].n_bytes == depth + 1)
            best = &s->at[lo];
    }
    return best;
}
