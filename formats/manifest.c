/* manifest.json: what a packed model consists of, as text that is the same for the same model.
 *
 * Its last member is the SHA-256 of everything before it, so that a damaged manifest is told from a
 * damaged shard.  Every member is required, none is unknown: whoever adds one raises the version.
 * What the shard files and config.json must be is packed.c's. */
#include "formats/manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/codec.h"
#include "src/dtype.h"
#include "src/json.h"

enum { MAX_MANIFEST_BYTES = 256 << 20, MAX_FILES = 1 << 20, MANIFEST_DEPTH = 4 };

static const char FORMAT_NAME[] = "mimo-packed";
/* The end of every manifest: this, 64 hex digits, and the close. */
static const char DIGEST_KEY[] = ",\n  \"digest\": \"";
static const char DIGEST_CLOSE[] = "\"\n}\n";
enum {
    KEY_BYTES = sizeof DIGEST_KEY - 1,
    CLOSE_BYTES = sizeof DIGEST_CLOSE - 1,
    HEX_BYTES = MQ_SHA256_HEX - 1
};

static void release_digests(mq_file_digest *files, int64_t n)
{
    for (int64_t i = 0; files && i < n; i++)
        free(files[i].name);
    free(files);
}

void mq_manifest_release(mq_manifest *m)
{
    release_digests(m->source, m->n_source);
    release_digests(m->extra, m->n_extra);
    free(m->shards);
    memset(m, 0, sizeof *m);
}

void mq_manifest_digest(mq_manifest *m)
{
    mq_buf all = mq_buf_empty();
    for (int64_t i = 0; i < m->n_shards; i++)
        mq_buf_append(&all, m->shards[i].content, MQ_SHA256_BYTES);
    mq_sha256_of(m->content, all.data, all.n_bytes);
    mq_buf_release(&all);
}

/* ---- Print ---- */

static void print_hex(mq_json_writer *w, const char *key, const uint8_t digest[MQ_SHA256_BYTES])
{
    char hex[MQ_SHA256_HEX];
    mq_sha256_hex(hex, digest);
    mq_json_write_string(w, key, hex);
}

static void print_digests(mq_json_writer *w, const char *key, const mq_file_digest *files,
                          int64_t n)
{
    mq_json_write_array(w, key);
    for (int64_t i = 0; i < n; i++) {
        mq_json_write_object(w, NULL);
        mq_json_write_string(w, "name", files[i].name);
        mq_json_write_int(w, "bytes", files[i].bytes);
        print_hex(w, "sha256", files[i].sha256);
        mq_json_write_end_object(w);
    }
    mq_json_write_end_array(w);
}

static void print_shards(mq_json_writer *w, const mq_manifest *m)
{
    mq_json_write_array(w, "shards");
    for (int64_t i = 0; i < m->n_shards; i++) {
        const mq_shard_info *s = &m->shards[i];
        mq_json_write_object(w, NULL);
        mq_json_write_string(w, "name", s->name);
        mq_json_write_int(w, "bytes", s->bytes);
        mq_json_write_int(w, "plain_bytes", s->plain_bytes);
        print_hex(w, "sha256", s->sha256);
        print_hex(w, "content", s->content);
        mq_json_write_end_object(w);
    }
    mq_json_write_end_array(w);
}

static void print_calib(mq_json_writer *w, const mq_recipe_calib *c)
{
    mq_json_write_object(w, "calibration");
    print_hex(w, "text", c->text);
    mq_json_write_int(w, "tokens", c->tokens);
    mq_json_write_int(w, "window", c->window);
    mq_json_write_string(w, "options", c->options);
    mq_json_write_string(w, "library", c->library);
    mq_json_write_end_object(w);
}

static void print_recipe(mq_json_writer *w, const mq_recipe *r)
{
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, r->seed);
    mq_json_write_object(w, "recipe");
    mq_json_write_string(w, "method", r->method);
    mq_json_write_int(w, "group", r->group);
    mq_json_write_string(w, "compress", r->compress);
    mq_json_write_string(w, "backend", r->backend);
    mq_json_write_string(w, "isa", r->isa);
    mq_json_write_string(w, "zstd_version", r->zstd_version);
    mq_json_write_string(w, "seed", seed);
    if (r->calib.present)
        print_calib(w, &r->calib);
    mq_json_write_end_object(w);
}

mq_status mq_manifest_print(mq_buf *out, const mq_manifest *m, mq_err *err)
{
    mq_buf_clear(out);
    mq_json_writer w = mq_json_write_begin(out, 2);
    mq_json_write_object(&w, NULL);
    mq_json_write_string(&w, "format", FORMAT_NAME);
    mq_json_write_int(&w, "version", m->version);
    mq_json_write_string(&w, "tool_version", m->tool_version);
    mq_json_write_int(&w, "n_ranks", m->n_ranks);
    mq_json_write_int(&w, "n_layers", m->n_layers);
    mq_json_write_int(&w, "n_mtp", m->n_mtp);
    mq_json_write_bool(&w, "has_draft", m->has_draft);
    mq_json_write_int(&w, "group", m->group);
    mq_json_write_array(&w, "expert_schemes");
    for (int i = 0; i < m->n_layers; i++)
        mq_json_write_string(&w, NULL, mq_scheme_name((mq_scheme)m->expert_scheme[i]));
    mq_json_write_end_array(&w);
    print_recipe(&w, &m->recipe);
    print_digests(&w, "source", m->source, m->n_source);
    print_shards(&w, m);
    print_digests(&w, "extra", m->extra, m->n_extra);
    print_hex(&w, "content", m->content);
    MQ_TRY(mq_buf_status(out, err));

    /* The last member by hand: it covers every byte before its comma. */
    uint8_t digest[MQ_SHA256_BYTES];
    char hex[MQ_SHA256_HEX];
    mq_sha256_of(digest, out->data, out->n_bytes);
    mq_sha256_hex(hex, digest);
    mq_buf_str(out, DIGEST_KEY);
    mq_buf_str(out, hex);
    mq_buf_str(out, DIGEST_CLOSE);
    return mq_buf_status(out, err);
}

mq_status mq_manifest_save(const mq_manifest *m, const char *dir, mq_err *err)
{
    mq_buf text = mq_buf_empty();
    mq_status st = mq_manifest_print(&text, m, err);
    if (st == MQ_OK)
        st = mq_file_save(dir, "manifest.json", text.data, text.n_bytes, err);
    mq_buf_release(&text);
    return st;
}

/* ---- Parse: members ---- */

/* Members arrive in any order; each is looked up by name, and their number must be exactly n. */
static mq_status check_members(const mq_json_node *obj, const char *const *keys, int n,
                               const char *where, mq_err *err)
{
    if (mq_json_type_of(obj) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "%s: %s, expected an object", where,
                       mq_json_type_name(mq_json_type_of(obj)));
    for (const mq_json_node *c = mq_json_first(obj); c; c = mq_json_next(c)) {
        bool known = false;
        for (int i = 0; i < n; i++)
            known |= strcmp(keys[i], mq_json_key(c)) == 0;
        if (!known)
            return mq_fail(err, MQ_E_FORMAT, "%s: unknown member '%s'", where, mq_json_key(c));
    }
    for (int i = 0; i < n; i++)
        if (!mq_json_find(obj, keys[i]))
            return mq_fail(err, MQ_E_FORMAT, "%s: member '%s' is missing", where, keys[i]);
    return MQ_OK;
}

static mq_status get_int(int64_t *out, const mq_json_node *obj, const char *key, int64_t lo,
                         int64_t hi, mq_err *err)
{
    const mq_json_node *n = mq_json_find(obj, key);
    if (!n || !mq_json_int(n, out))
        return mq_fail(err, MQ_E_FORMAT, "member '%s': expected an integer", key);
    if (*out < lo || *out > hi)
        return mq_fail(err, MQ_E_FORMAT, "member '%s': %lld, expected %lld to %lld", key,
                       (long long)*out, (long long)lo, (long long)hi);
    return MQ_OK;
}

/* Copy a string of less than cap bytes. */
static mq_status get_text(char *out, size_t cap, const mq_json_node *obj, const char *key,
                          mq_err *err)
{
    const char *s = mq_json_string(mq_json_find(obj, key));
    if (!s)
        return mq_fail(err, MQ_E_FORMAT, "member '%s': expected a string", key);
    if (strlen(s) >= cap)
        return mq_fail(err, MQ_E_FORMAT, "member '%s': longer than %zu bytes", key, cap - 1);
    strcpy(out, s);
    return MQ_OK;
}

static bool parse_hex(uint8_t out[MQ_SHA256_BYTES], const char *s, size_t n)
{
    if (n != HEX_BYTES)
        return false;
    for (size_t i = 0; i < n; i++) {
        int v = s[i] >= '0' && s[i] <= '9'   ? s[i] - '0'
                : s[i] >= 'a' && s[i] <= 'f' ? s[i] - 'a' + 10
                                             : -1;
        if (v < 0)
            return false;
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | v : v << 4);
    }
    return true;
}

static mq_status get_hex(uint8_t out[MQ_SHA256_BYTES], const mq_json_node *obj, const char *key,
                         mq_err *err)
{
    const char *s = mq_json_string(mq_json_find(obj, key));
    if (!s || !parse_hex(out, s, strlen(s)))
        return mq_fail(err, MQ_E_FORMAT, "member '%s': expected 64 lower-case hexadecimal digits",
                       key);
    return MQ_OK;
}

static mq_status get_array(const mq_json_node **out, int64_t *n, const mq_json_node *obj,
                           const char *key, mq_err *err)
{
    *out = mq_json_find(obj, key);
    if (mq_json_type_of(*out) != MQ_JSON_ARRAY)
        return mq_fail(err, MQ_E_FORMAT, "member '%s': expected an array", key);
    *n = mq_json_count(*out);
    if (*n > MAX_FILES)
        return mq_fail(err, MQ_E_FORMAT, "member '%s': %lld entries, expected at most %d", key,
                       (long long)*n, MAX_FILES);
    return MQ_OK;
}

/* ---- Parse: parts ---- */

/* A plain name, or one below dflash/. */
static bool is_file_name(const char *name)
{
    static const char prefix[] = "dflash/";
    if (strncmp(name, prefix, sizeof prefix - 1) == 0)
        name += sizeof prefix - 1;
    return mq_name_is_plain(name, (int64_t)strlen(name));
}

static mq_status parse_digest(mq_file_digest *f, const mq_json_node *node, const char *where,
                              mq_err *err)
{
    static const char *const keys[] = {"name", "bytes", "sha256"};
    MQ_TRY(check_members(node, keys, 3, where, err));
    const char *name = mq_json_string(mq_json_find(node, "name"));
    if (!name || !is_file_name(name))
        return mq_fail(err, MQ_E_FORMAT, "%s: expected a plain file name, found '%s'", where,
                       name ? name : "(no string)");
    f->name = strdup(name);
    if (!f->name)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = get_int(&f->bytes, node, "bytes", 0, INT64_MAX, err);
    if (st == MQ_OK)
        st = get_hex(f->sha256, node, "sha256", err);
    return mq_wrap(err, st, "%s: file '%s'", where, name);
}

/* Names ascend strictly, so that none repeats. */
static mq_status parse_digests(mq_file_digest **files, int64_t *n_files, const mq_json_node *root,
                               const char *key, mq_err *err)
{
    const mq_json_node *array;
    int64_t n;
    MQ_TRY(get_array(&array, &n, root, key, err));
    *files = calloc((size_t)n + 1, sizeof **files);
    if (!*files)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    *n_files = n;
    int64_t i = 0;
    for (const mq_json_node *c = mq_json_first(array); c; c = mq_json_next(c), i++) {
        MQ_TRY(parse_digest(&(*files)[i], c, key, err));
        if (i > 0 && strcmp((*files)[i - 1].name, (*files)[i].name) >= 0)
            return mq_fail(err, MQ_E_FORMAT, "%s: file '%s' is repeated or out of order", key,
                           (*files)[i].name);
    }
    return MQ_OK;
}

static mq_status parse_shard(mq_shard_info *s, const mq_json_node *node, mq_err *err)
{
    static const char *const keys[] = {"name", "bytes", "plain_bytes", "sha256", "content"};
    MQ_TRY(check_members(node, keys, 5, "shards", err));
    MQ_TRY(get_text(s->name, sizeof s->name, node, "name", err));
    if (!mq_name_is_plain(s->name, (int64_t)strlen(s->name)))
        return mq_fail(err, MQ_E_FORMAT, "shards: expected a plain file name, found '%s'", s->name);
    mq_status st = get_int(&s->bytes, node, "bytes", 1, INT64_MAX, err);
    if (st == MQ_OK)
        st = get_int(&s->plain_bytes, node, "plain_bytes", 1, INT64_MAX, err);
    if (st == MQ_OK)
        st = get_hex(s->sha256, node, "sha256", err);
    if (st == MQ_OK)
        st = get_hex(s->content, node, "content", err);
    return mq_wrap(err, st, "shards: file '%s'", s->name);
}

static mq_status parse_shards(mq_manifest *m, const mq_json_node *root, mq_err *err)
{
    const mq_json_node *array;
    int64_t n, i = 0;
    MQ_TRY(get_array(&array, &n, root, "shards", err));
    m->shards = calloc((size_t)n + 1, sizeof *m->shards);
    if (!m->shards)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    m->n_shards = n;
    for (const mq_json_node *c = mq_json_first(array); c; c = mq_json_next(c), i++)
        MQ_TRY(parse_shard(&m->shards[i], c, err));
    return MQ_OK; /* that names are the plan's, in its order, is checked when the plan is there */
}

static mq_status parse_schemes(mq_manifest *m, const mq_json_node *root, mq_err *err)
{
    const mq_json_node *array;
    int64_t n, i = 0;
    MQ_TRY(get_array(&array, &n, root, "expert_schemes", err));
    if (n != m->n_layers)
        return mq_fail(err, MQ_E_FORMAT,
                       "member 'expert_schemes': %lld entries, expected %d (n_layers)",
                       (long long)n, m->n_layers);
    bool has_int4 = false;
    for (const mq_json_node *c = mq_json_first(array); c; c = mq_json_next(c), i++) {
        static const mq_scheme allowed[] = {MQ_SCHEME_NONE, MQ_SCHEME_INT4, MQ_SCHEME_MXFP4};
        const char *s = mq_json_string(c);
        int k = 0;
        while (k < 3 && !(s && strcmp(s, mq_scheme_name(allowed[k])) == 0))
            k++;
        if (k == 3)
            return mq_fail(err, MQ_E_FORMAT,
                           "member 'expert_schemes': layer %lld: expected none, int4 or mxfp4",
                           (long long)i);
        m->expert_scheme[i] = (uint8_t)allowed[k];
        has_int4 |= allowed[k] == MQ_SCHEME_INT4;
    }
    if (has_int4 != (m->group != 0))
        return mq_fail(err, MQ_E_FORMAT, "member 'group': %d, but %s layer is int4", m->group,
                       has_int4 ? "a" : "no");
    return MQ_OK;
}

static mq_status parse_group(int *out, const mq_json_node *obj, mq_err *err)
{
    int64_t g;
    MQ_TRY(get_int(&g, obj, "group", 0, 128, err));
    if (g != 0 && g != 32 && g != 64 && g != 128)
        return mq_fail(err, MQ_E_FORMAT, "member 'group': %lld, expected 0, 32, 64 or 128",
                       (long long)g);
    *out = (int)g;
    return MQ_OK;
}

static bool is_compress(const char *s)
{
    if (strcmp(s, "none") == 0)
        return true;
    if (strncmp(s, "zstd:", 5) != 0)
        return false;
    size_t n = strlen(s + 5);
    return n >= 1 && n <= 2 && strspn(s + 5, "0123456789") == n && s[5] != '0';
}

static mq_status parse_calib(mq_recipe_calib *c, const mq_json_node *obj, mq_err *err)
{
    static const char *const keys[] = {"text", "tokens", "window", "options", "library"};
    c->present = true;
    MQ_TRY(check_members(obj, keys, 5, "calibration", err));
    MQ_TRY(get_hex(c->text, obj, "text", err));
    MQ_TRY(get_int(&c->tokens, obj, "tokens", 1, INT64_MAX, err));
    MQ_TRY(get_int(&c->window, obj, "window", 1, INT32_MAX, err));
    MQ_TRY(get_text(c->options, sizeof c->options, obj, "options", err));
    return get_text(c->library, sizeof c->library, obj, "library", err);
}

static mq_status parse_recipe(mq_manifest *m, const mq_json_node *root, mq_err *err)
{
    static const char *const keys[] = {"method", "group",        "compress", "backend",
                                       "isa",    "zstd_version", "seed",     "calibration"};
    mq_recipe *r = &m->recipe;
    const mq_json_node *obj = mq_json_find(root, "recipe");
    const mq_json_node *calib = mq_json_find(obj, "calibration");
    MQ_TRY(check_members(obj, keys, calib ? 8 : 7, "recipe", err));
    if (calib)
        MQ_TRY(mq_wrap(err, parse_calib(&r->calib, calib, err), "calibration"));
    MQ_TRY(get_text(r->method, sizeof r->method, obj, "method", err));
    MQ_TRY(parse_group(&r->group, obj, err));
    if (r->group != m->group)
        return mq_fail(err, MQ_E_FORMAT, "group %d, expected the manifest's %d", r->group,
                       m->group);
    MQ_TRY(get_text(r->compress, sizeof r->compress, obj, "compress", err));
    if (!is_compress(r->compress))
        return mq_fail(err, MQ_E_FORMAT, "member 'compress': '%s', expected none or zstd:LEVEL",
                       r->compress);
    MQ_TRY(get_text(r->backend, sizeof r->backend, obj, "backend", err));
    MQ_TRY(get_text(r->isa, sizeof r->isa, obj, "isa", err));
    MQ_TRY(get_text(r->zstd_version, sizeof r->zstd_version, obj, "zstd_version", err));
    if ((r->zstd_version[0] == 0) != (strcmp(r->compress, "none") == 0))
        return mq_fail(err, MQ_E_FORMAT, "member 'zstd_version': '%s' with compress '%s'",
                       r->zstd_version, r->compress);
    char seed[24], back[24];
    MQ_TRY(get_text(seed, sizeof seed, obj, "seed", err));
    r->seed = strtoull(seed, NULL, 10);
    snprintf(back, sizeof back, "%" PRIu64, r->seed);
    if (strcmp(seed, back) != 0)
        return mq_fail(err, MQ_E_FORMAT, "member 'seed': '%s', expected an unsigned 64-bit number",
                       seed);
    return MQ_OK;
}

static mq_status parse_head(mq_manifest *m, const mq_json_node *root, mq_err *err)
{
    const mq_json_node *node = mq_json_find(root, "format");
    const char *format = node ? mq_json_string(node) : NULL;
    if (!format || strcmp(format, FORMAT_NAME) != 0)
        return mq_fail(err, MQ_E_FORMAT, "member 'format': expected \"%s\"", FORMAT_NAME);
    int64_t version, n_ranks, n_layers, n_mtp;
    MQ_TRY(get_int(&version, root, "version", 0, INT32_MAX, err));
    if (version != MQ_SHARD_VERSION)
        return mq_fail(err, MQ_E_UNSUPPORTED,
                       "member 'version': format version %lld, this program reads %d",
                       (long long)version, MQ_SHARD_VERSION);
    static const char *const keys[] = {"format",         "version", "tool_version", "n_ranks",
                                       "n_layers",       "n_mtp",   "has_draft",    "group",
                                       "expert_schemes", "recipe",  "source",       "shards",
                                       "extra",          "content", "digest"};
    MQ_TRY(check_members(root, keys, sizeof keys / sizeof *keys, "manifest", err));
    m->version = (int)version;
    MQ_TRY(get_text(m->tool_version, sizeof m->tool_version, root, "tool_version", err));
    MQ_TRY(get_int(&n_ranks, root, "n_ranks", 1, 8, err));
    MQ_TRY(get_int(&n_layers, root, "n_layers", 1, MQ_MAX_LAYERS, err));
    MQ_TRY(get_int(&n_mtp, root, "n_mtp", 0, MQ_MAX_LAYERS, err));
    if (!mq_json_bool(mq_json_find(root, "has_draft"), &m->has_draft))
        return mq_fail(err, MQ_E_FORMAT, "member 'has_draft': expected true or false");
    m->n_ranks = (int)n_ranks;
    m->n_layers = (int)n_layers;
    m->n_mtp = (int)n_mtp;
    return parse_group(&m->group, root, err);
}

static mq_status parse_root(mq_manifest *m, const mq_json_node *root, bool hashed, mq_err *err)
{
    if (mq_json_type_of(root) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "expected an object");
    MQ_TRY(parse_head(m, root, err));
    MQ_TRY(parse_schemes(m, root, err));
    MQ_TRY(mq_wrap(err, parse_recipe(m, root, err), "recipe"));
    MQ_TRY(parse_digests(&m->source, &m->n_source, root, "source", err));
    MQ_TRY(parse_shards(m, root, err));
    MQ_TRY(parse_digests(&m->extra, &m->n_extra, root, "extra", err));
    MQ_TRY(get_hex(m->content, root, "content", err));
    uint8_t stated[MQ_SHA256_BYTES];
    memcpy(stated, m->content, sizeof stated);
    mq_manifest_digest(m);
    if (hashed && memcmp(stated, m->content, sizeof stated) != 0)
        return mq_fail(err, MQ_E_HASH,
                       "member 'content' is not the digest of the shards' content digests");
    return MQ_OK;
}

/* The last member, by position; checked first, so that damage is called damage. */
static mq_status check_self(const char *text, int64_t n_bytes, mq_err *err)
{
    const int64_t tail = KEY_BYTES + HEX_BYTES + CLOSE_BYTES;
    const char *end = text + n_bytes - tail;
    uint8_t stated[MQ_SHA256_BYTES], found[MQ_SHA256_BYTES];
    if (n_bytes < tail || memcmp(end, DIGEST_KEY, KEY_BYTES) != 0 ||
        !parse_hex(stated, end + KEY_BYTES, HEX_BYTES) ||
        memcmp(end + KEY_BYTES + HEX_BYTES, DIGEST_CLOSE, CLOSE_BYTES) != 0)
        return mq_fail(err, MQ_E_FORMAT, "does not end with the member 'digest' (truncated?)");
    mq_sha256_of(found, text, n_bytes - tail);
    if (memcmp(stated, found, sizeof found) != 0)
        return mq_fail(err, MQ_E_HASH, "SHA-256 of the manifest differs from its member 'digest'");
    return MQ_OK;
}

static mq_status parse_any(mq_manifest *out, const char *text, int64_t n_bytes, const char *name,
                           bool hashed, mq_err *err)
{
    memset(out, 0, sizeof *out);
    mq_json *doc = NULL;
    mq_status st = hashed ? check_self(text, n_bytes, err) : MQ_OK;
    if (st == MQ_OK)
        st = mq_json_parse(&doc, text, n_bytes, MANIFEST_DEPTH, err);
    if (st == MQ_OK)
        st = parse_root(out, mq_json_root(doc), hashed, err);
    mq_json_free(doc);
    if (st != MQ_OK)
        mq_manifest_release(out);
    return mq_wrap(err, st, "%s", name);
}

mq_status mq_manifest_parse(mq_manifest *out, const char *text, int64_t n_bytes, const char *name,
                            mq_err *err)
{
    return parse_any(out, text, n_bytes, name, true, err);
}

mq_status mq_manifest_parse_unhashed(mq_manifest *out, const char *text, int64_t n_bytes,
                                     const char *name, mq_err *err)
{
    return parse_any(out, text, n_bytes, name, false, err);
}

mq_status mq_manifest_load(mq_manifest *out, const char *dir, mq_err *err)
{
    memset(out, 0, sizeof *out);
    char *path = mq_path_join(dir, "manifest.json");
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    mq_buf text = mq_buf_empty();
    mq_status st = mq_path_exists(path) ? mq_file_load(&text, path, MAX_MANIFEST_BYTES, err)
                                        : mq_fail(err, MQ_E_FORMAT,
                                                  "%s: not a packed model (no manifest.json)", dir);
    if (st == MQ_OK)
        st = mq_manifest_parse(out, text.data, text.n_bytes, path, err);
    mq_buf_release(&text);
    free(path);
    return st;
}
