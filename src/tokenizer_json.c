/* tokenizer.json, strictly: every member that changes ids or text is either understood or refused
 * by name, and a member we have never heard of is refused too.  Nothing is guessed from names of
 * models.
 *
 * Ids are checked against the library's numbering: it ignores the ids of added tokens in the file
 * and counts on from the vocabulary, in the order of the list.  A file where the two differ means
 * different things to different readers, so it is refused. */
#include "src/tokenizer_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/unicode.h"

/* ---- small helpers; where names the object in error texts ---- */

static mq_status get_member(const mq_json_node **out, const mq_json_node *obj, const char *where,
                            const char *key, mq_json_type type, mq_err *err)
{
    *out = mq_json_find(obj, key);
    if (!*out)
        return mq_fail(err, MQ_E_FORMAT, "%s: no member '%s'", where, key);
    if (mq_json_type_of(*out) != type)
        return mq_fail(err, MQ_E_FORMAT, "%s.%s: %s, expected %s", where, key,
                       mq_json_type_name(mq_json_type_of(*out)), mq_json_type_name(type));
    return MQ_OK;
}

static mq_status get_bool(bool *out, const mq_json_node *obj, const char *where, const char *key,
                          mq_err *err)
{
    const mq_json_node *n;
    MQ_TRY(get_member(&n, obj, where, key, MQ_JSON_BOOL, err));
    (void)mq_json_bool(n, out);
    return MQ_OK;
}

static mq_status want_bool(const mq_json_node *obj, const char *where, const char *key, bool value,
                           mq_err *err)
{
    bool found = false;
    MQ_TRY(get_bool(&found, obj, where, key, err));
    if (found != value)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s.%s is %s, only %s is supported", where, key,
                       found ? "true" : "false", value ? "true" : "false");
    return MQ_OK;
}

/* Absent, null, false or "": the member asks for nothing. */
static mq_status want_nothing(const mq_json_node *obj, const char *where, const char *key,
                              mq_err *err)
{
    const mq_json_node *n = mq_json_find(obj, key);
    bool value = true;
    if (!n || mq_json_type_of(n) == MQ_JSON_NULL || (mq_json_bool(n, &value) && !value) ||
        (mq_json_string(n) && mq_json_string(n)[0] == '\0'))
        return MQ_OK;
    return mq_fail(err, MQ_E_UNSUPPORTED, "%s.%s is set, which is not supported", where, key);
}

static mq_status want_string(const mq_json_node *obj, const char *where, const char *key,
                             const char *value, mq_err *err)
{
    const mq_json_node *n;
    MQ_TRY(get_member(&n, obj, where, key, MQ_JSON_STRING, err));
    if (strcmp(mq_json_string(n), value) != 0)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s.%s is '%s', only '%s' is supported", where, key,
                       mq_json_string(n), value);
    return MQ_OK;
}

/* Every member's key is in the list keys, which a NULL ends. */
static mq_status check_keys(const mq_json_node *obj, const char *where, const char *const *keys,
                            mq_err *err)
{
    for (const mq_json_node *n = mq_json_first(obj); n; n = mq_json_next(n)) {
        int i = 0;
        while (keys[i] && strcmp(keys[i], mq_json_key(n)) != 0)
            i++;
        if (!keys[i])
            return mq_fail(err, MQ_E_UNSUPPORTED, "%s: member '%s' is not known", where,
                           mq_json_key(n));
    }
    return MQ_OK;
}

/* ---- the steps around the model ---- */

static mq_status read_normalizer(bool *nfc, const mq_json_node *n, mq_err *err)
{
    static const char *const keys[] = {"type", "normalizers", NULL};
    if (mq_json_type_of(n) == MQ_JSON_NULL)
        return MQ_OK;
    if (mq_json_type_of(n) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "normalizer: %s, expected object",
                       mq_json_type_name(mq_json_type_of(n)));
    const mq_json_node *type, *list;
    MQ_TRY(check_keys(n, "normalizer", keys, err));
    MQ_TRY(get_member(&type, n, "normalizer", "type", MQ_JSON_STRING, err));
    if (strcmp(mq_json_string(type), "NFC") == 0) {
        *nfc = true;
        return MQ_OK;
    }
    if (strcmp(mq_json_string(type), "Sequence") != 0)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "normalizer.type is '%s', only NFC (or a Sequence of it) is supported",
                       mq_json_string(type));
    MQ_TRY(get_member(&list, n, "normalizer", "normalizers", MQ_JSON_ARRAY, err));
    for (const mq_json_node *i = mq_json_first(list); i; i = mq_json_next(i))
        MQ_TRY(read_normalizer(nfc, i, err)); /* as deep as the JSON reader allows */
    return MQ_OK;
}

static mq_status read_split(mq_split **out, const mq_json_node *n, mq_err *err)
{
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const pattern_keys[] = {"Regex", NULL};
    const char *where = "pre_tokenizer.pretokenizers[0]";
    const mq_json_node *pattern, *regex;
    MQ_TRY(want_string(n, where, "type", "Split", err));
    MQ_TRY(check_keys(n, where, keys, err));
    MQ_TRY(want_string(n, where, "behavior", "Isolated", err));
    MQ_TRY(want_bool(n, where, "invert", false, err));
    MQ_TRY(get_member(&pattern, n, where, "pattern", MQ_JSON_OBJECT, err));
    MQ_TRY(check_keys(pattern, "Split.pattern", pattern_keys, err));
    MQ_TRY(get_member(&regex, pattern, "Split.pattern", "Regex", MQ_JSON_STRING, err));
    return mq_split_create(out, mq_json_string(regex), err);
}

static const char *const byte_level_keys[] = {"type", "add_prefix_space", "trim_offsets",
                                              "use_regex", NULL};

static mq_status read_pre_tokenizer(mq_split **out, const mq_json_node *n, mq_err *err)
{
    static const char *const keys[] = {"type", "pretokenizers", NULL};
    const char *where = "pre_tokenizer.pretokenizers[1]";
    const mq_json_node *list;
    MQ_TRY(want_string(n, "pre_tokenizer", "type", "Sequence", err));
    MQ_TRY(check_keys(n, "pre_tokenizer", keys, err));
    MQ_TRY(get_member(&list, n, "pre_tokenizer", "pretokenizers", MQ_JSON_ARRAY, err));
    if (mq_json_count(list) != 2)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "pre_tokenizer: %lld steps, only Split and then ByteLevel is supported",
                       (long long)mq_json_count(list));
    const mq_json_node *split = mq_json_first(list), *byte_level = mq_json_next(split);
    if (mq_json_type_of(split) != MQ_JSON_OBJECT || mq_json_type_of(byte_level) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "pre_tokenizer.pretokenizers: expected two objects");
    MQ_TRY(want_string(byte_level, where, "type", "ByteLevel", err));
    MQ_TRY(check_keys(byte_level, where, byte_level_keys, err));
    MQ_TRY(want_bool(byte_level, where, "add_prefix_space", false, err));
    MQ_TRY(want_bool(byte_level, where, "use_regex", false, err));
    return read_split(out, split, err);
}

/* A decoder or post_processor: ByteLevel, whose settings change neither ids nor text there. */
static mq_status want_byte_level(const mq_json_node *root, const char *key, bool may_be_null,
                                 mq_err *err)
{
    const mq_json_node *n = mq_json_find(root, key);
    if (may_be_null && (!n || mq_json_type_of(n) == MQ_JSON_NULL))
        return MQ_OK;
    MQ_TRY(get_member(&n, root, "tokenizer", key, MQ_JSON_OBJECT, err));
    MQ_TRY(want_string(n, key, "type", "ByteLevel", err));
    return check_keys(n, key, byte_level_keys, err);
}

/* ---- vocabulary ---- */

/* Largest id and bytes of text (NULs included) of a list of tokens. */
typedef struct extent {
    int64_t max_id, n_text_bytes, n_tokens;
} extent;

static mq_status measure(extent *e, const char *text, const mq_json_node *id_node, mq_err *err)
{
    int64_t id;
    if (!mq_json_int(id_node, &id) || id < 0 || id >= MQ_VOCAB_MAX_IDS)
        return mq_fail(err, MQ_E_FORMAT, "token '%s': id is not an integer from 0 to %d", text,
                       MQ_VOCAB_MAX_IDS - 1);
    if (id > e->max_id)
        e->max_id = id;
    e->n_text_bytes += (int64_t)strlen(text) + 1;
    e->n_tokens++;
    return MQ_OK;
}

static mq_status measure_all(extent *e, const mq_json_node *vocab, const mq_json_node *added,
                             mq_err *err)
{
    for (const mq_json_node *n = mq_json_first(vocab); n; n = mq_json_next(n))
        MQ_TRY(measure(e, mq_json_key(n), n, err));
    for (const mq_json_node *n = mq_json_first(added); n; n = mq_json_next(n)) {
        const mq_json_node *id, *content;
        if (mq_json_type_of(n) != MQ_JSON_OBJECT)
            return mq_fail(err, MQ_E_FORMAT, "added_tokens: %s, expected objects",
                           mq_json_type_name(mq_json_type_of(n)));
        MQ_TRY(get_member(&content, n, "added_tokens", "content", MQ_JSON_STRING, err));
        MQ_TRY(get_member(&id, n, "added_tokens", "id", MQ_JSON_NUMBER, err));
        MQ_TRY(measure(e, mq_json_string(content), id, err));
    }
    return MQ_OK;
}

static mq_status read_vocab(mq_vocab *v, const mq_json_node *vocab, mq_err *err)
{
    const mq_token plain = {0};
    for (const mq_json_node *n = mq_json_first(vocab); n; n = mq_json_next(n)) {
        int64_t id = -1;
        (void)mq_json_int(n, &id);
        MQ_TRY(mq_vocab_add(v, id, mq_json_key(n), plain, err));
    }
    return MQ_OK;
}

static mq_status read_added(mq_vocab *v, const mq_json_node *list, int64_t n_vocab, mq_err *err)
{
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    int64_t max_added = -1;
    for (const mq_json_node *n = mq_json_first(list); n; n = mq_json_next(n)) {
        const mq_json_node *id_node, *content;
        mq_token flags = {.added = true};
        char where[160];
        int64_t id = -1;
        MQ_TRY(get_member(&content, n, "added_tokens", "content", MQ_JSON_STRING, err));
        MQ_TRY(get_member(&id_node, n, "added_tokens", "id", MQ_JSON_NUMBER, err));
        (void)mq_json_int(id_node, &id);
        const char *text = mq_json_string(content);
        int64_t n_text = (int64_t)strlen(text);
        (void)snprintf(where, sizeof where, "added token '%.*s'", 128, text);
        MQ_TRY(check_keys(n, where, keys, err));
        MQ_TRY(want_bool(n, where, "single_word", false, err));
        MQ_TRY(want_bool(n, where, "lstrip", false, err));
        MQ_TRY(want_bool(n, where, "rstrip", false, err));
        MQ_TRY(get_bool(&flags.normalized, n, where, "normalized", err));
        MQ_TRY(get_bool(&flags.special, n, where, "special", err));
        /* The library: an added token that the vocabulary has keeps that id, any other gets the
         * next free one. */
        int64_t expected = mq_vocab_find(v, text, n_text);
        if (expected < 0)
            expected = max_added >= n_vocab ? max_added + 1 : n_vocab;
        if (id != expected)
            return mq_fail(err, MQ_E_FORMAT,
                           "%s: id %lld, expected %lld (ids follow the vocabulary's, in order)",
                           where, (long long)id, (long long)expected);
        MQ_TRY(mq_vocab_add(v, id, text, flags, err));
        if (id > max_added)
            max_added = id;
    }
    return MQ_OK;
}

/* ---- merges ---- */

/* Both sides of merge number i: ["a", "b"] or "a b". */
static mq_status merge_sides(const mq_json_node *n, int64_t i, const char *side[2],
                             int64_t n_bytes[2], mq_err *err)
{
    const char *text = mq_json_string(n);
    if (text) {
        const char *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return mq_fail(err, MQ_E_FORMAT, "merge %lld '%s': expected two tokens and one space",
                           (long long)i, text);
        side[0] = text;
        side[1] = space + 1;
        n_bytes[0] = space - text;
    } else {
        const mq_json_node *a = mq_json_first(n), *b = a ? mq_json_next(a) : NULL;
        if (mq_json_type_of(n) != MQ_JSON_ARRAY || mq_json_count(n) != 2 || !mq_json_string(a) ||
            !mq_json_string(b))
            return mq_fail(err, MQ_E_FORMAT, "merge %lld: expected a string or two strings",
                           (long long)i);
        side[0] = mq_json_string(a);
        side[1] = mq_json_string(b);
        n_bytes[0] = (int64_t)strlen(side[0]);
    }
    n_bytes[1] = (int64_t)strlen(side[1]);
    return MQ_OK;
}

static mq_status read_merge(mq_merge *out, const mq_vocab *v, const mq_json_node *n, int64_t i,
                            mq_buf *joined, mq_err *err)
{
    const char *side[2];
    int64_t n_bytes[2];
    int32_t id[2];
    MQ_TRY(merge_sides(n, i, side, n_bytes, err));
    mq_buf_clear(joined);
    for (int k = 0; k < 2; k++) {
        id[k] = mq_vocab_find(v, side[k], n_bytes[k]);
        if (id[k] < 0)
            return mq_fail(err, MQ_E_FORMAT, "merge %lld: '%.*s' is not in the vocabulary",
                           (long long)i, (int)(n_bytes[k] < 200 ? n_bytes[k] : 200), side[k]);
        mq_buf_append(joined, side[k], n_bytes[k]);
    }
    MQ_TRY(mq_buf_status(joined, err));
    int32_t result = joined->data ? mq_vocab_find(v, joined->data, joined->n_bytes) : -1;
    if (result < 0)
        return mq_fail(err, MQ_E_FORMAT, "merge %lld: the result '%.200s' is not in the vocabulary",
                       (long long)i, joined->data ? joined->data : "");
    *out = (mq_merge){id[0], id[1], result};
    return MQ_OK;
}

static mq_status read_byte_ids(int32_t byte_ids[256], const mq_vocab *v, mq_err *err)
{
    for (int b = 0; b < 256; b++) {
        char text[4];
        int n = mq_unicode_put(text, mq_byte_to_char(b));
        byte_ids[b] = mq_vocab_find(v, text, n);
        if (byte_ids[b] < 0)
            return mq_fail(err, MQ_E_UNSUPPORTED, "model.vocab: no token for byte 0x%02X ('%.*s')",
                           (unsigned)b, n, text);
    }
    return MQ_OK;
}

static mq_status read_merges(mq_bpe **out, const mq_vocab *v, const mq_json_node *list, mq_err *err)
{
    int32_t byte_ids[256];
    MQ_TRY(read_byte_ids(byte_ids, v, err));
    int64_t n_merges = mq_json_count(list), i = 0;
    mq_merge *merges =
        n_merges < INT32_MAX ? malloc(((size_t)n_merges + 1) * sizeof *merges) : NULL;
    if (!merges)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld merges", (long long)n_merges);
    mq_buf joined = mq_buf_empty();
    mq_status st = MQ_OK;
    for (const mq_json_node *n = mq_json_first(list); n && st == MQ_OK; n = mq_json_next(n), i++)
        st = read_merge(&merges[i], v, n, i, &joined, err);
    if (st == MQ_OK)
        st = mq_bpe_create(out, byte_ids, merges, n_merges, v->n_ids, err);
    mq_buf_release(&joined);
    free(merges);
    return st;
}

static mq_status check_model(const mq_json_node *model, mq_err *err)
{
    static const char *const keys[] = {"type",
                                       "dropout",
                                       "unk_token",
                                       "continuing_subword_prefix",
                                       "fuse_unk",
                                       "vocab",
                                       "end_of_word_suffix",
                                       "merges",
                                       "byte_fallback",
                                       "ignore_merges",
                                       NULL};
    static const char *const unset[] = {"dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "byte_fallback",
                                        "ignore_merges",
                                        NULL};
    MQ_TRY(want_string(model, "model", "type", "BPE", err));
    MQ_TRY(check_keys(model, "model", keys, err));
    for (int i = 0; unset[i]; i++)
        MQ_TRY(want_nothing(model, "model", unset[i], err));
    return MQ_OK;
}

static mq_status read_model(mq_tokenizer_parts *p, const mq_json_node *root, mq_err *err)
{
    const mq_json_node *model, *vocab, *merges, *added;
    MQ_TRY(get_member(&model, root, "tokenizer", "model", MQ_JSON_OBJECT, err));
    MQ_TRY(get_member(&added, root, "tokenizer", "added_tokens", MQ_JSON_ARRAY, err));
    MQ_TRY(check_model(model, err));
    MQ_TRY(get_member(&vocab, model, "model", "vocab", MQ_JSON_OBJECT, err));
    MQ_TRY(get_member(&merges, model, "model", "merges", MQ_JSON_ARRAY, err));
    extent e = {-1, 0, 0};
    MQ_TRY(measure_all(&e, vocab, added, err));
    MQ_TRY(mq_vocab_create(&p->vocab, (int32_t)e.max_id + 1, e.n_tokens, e.n_text_bytes, err));
    MQ_TRY(read_vocab(&p->vocab, vocab, err));
    MQ_TRY(read_merges(&p->bpe, &p->vocab, merges, err));
    MQ_TRY(read_added(&p->vocab, added, mq_json_count(vocab), err));
    return mq_vocab_finish(&p->vocab, p->nfc, err);
}

static mq_status read_parts(mq_tokenizer_parts *p, const mq_json_node *root, mq_err *err)
{
    static const char *const keys[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    if (mq_json_type_of(root) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "%s, expected object",
                       mq_json_type_name(mq_json_type_of(root)));
    MQ_TRY(check_keys(root, "tokenizer", keys, err));
    MQ_TRY(want_string(root, "tokenizer", "version", "1.0", err));
    MQ_TRY(want_nothing(root, "tokenizer", "truncation", err));
    MQ_TRY(want_nothing(root, "tokenizer", "padding", err));
    const mq_json_node *n = mq_json_find(root, "normalizer");
    if (n)
        MQ_TRY(read_normalizer(&p->nfc, n, err));
    MQ_TRY(get_member(&n, root, "tokenizer", "pre_tokenizer", MQ_JSON_OBJECT, err));
    MQ_TRY(read_pre_tokenizer(&p->split, n, err));
    MQ_TRY(want_byte_level(root, "decoder", false, err));
    MQ_TRY(want_byte_level(root, "post_processor", true, err));
    return read_model(p, root, err);
}

mq_status mq_tokenizer_json_read(mq_tokenizer_parts *p, const mq_json_node *root, mq_err *err)
{
    memset(p, 0, sizeof *p);
    mq_status st = read_parts(p, root, err);
    if (st != MQ_OK)
        mq_tokenizer_parts_release(p);
    return st;
}

void mq_tokenizer_parts_release(mq_tokenizer_parts *p)
{
    mq_vocab_release(&p->vocab);
    mq_bpe_free(p->bpe);
    mq_split_free(p->split);
    memset(p, 0, sizeof *p);
}
