/* The reader: json_check.c refuses what is not strict, cJSON builds the tree, and one walk over the
 * tree and the text side by side adds what cJSON lacks.  A node is a cJSON item whose spare fields
 * hold that:
 *
 *   array, object   valuedouble   number of members
 *   number          valueint      KIND_...; with KIND_DIGITS valuestring holds the digits, freed
 * with the item
 *
 * So a document costs what cJSON's tree costs. */
#include "src/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "src/file.h"
#include "src/json_check.h"
#include "src/map.h"

/* Objects of up to this many members are searched for duplicates pair by pair. */
enum { PAIRWISE_MAX = 8 };

/* KIND_REAL: has a '.' or an exponent.  KIND_EXACT: an integer that valuedouble holds exactly.
 * KIND_DIGITS: a larger one. */
enum { KIND_REAL, KIND_EXACT, KIND_DIGITS };

struct mq_json {
    cJSON *root;
};

typedef struct walk {
    const char *text; /* [n_bytes] */
    int64_t n_bytes, off;
    mq_err *err;
} walk;

static inline const cJSON *item_of(const mq_json_node *n)
{
    return (const cJSON *)n;
}

static inline const mq_json_node *node_of(const cJSON *item)
{
    return (const mq_json_node *)item;
}

static int kind_of(const cJSON *item)
{
    return item->type & 0xff;
}

static bool is_container(const cJSON *item)
{
    return kind_of(item) == cJSON_Array || kind_of(item) == cJSON_Object;
}

/* Move past the next string or number of the text; its start is returned. */
static int64_t next_token(walk *w)
{
    return mq_json_check_token(w->text, w->n_bytes, w->off, &w->off);
}

static mq_status mark_number(walk *w, cJSON *item)
{
    int64_t start = next_token(w), n = w->off - start;
    if (!isfinite(item->valuedouble))
        return mq_fail(w->err, MQ_E_FORMAT, "JSON byte %lld: number outside the range of a double",
                       (long long)start);
    for (int64_t i = 0; i < n; i++) {
        char b = w->text[start + i];
        if (b == '.' || b == 'e' || b == 'E') {
            item->valueint = KIND_REAL;
            return MQ_OK;
        }
    }
    if (fabs(item->valuedouble) < 0x1p53) {
        item->valueint = KIND_EXACT;
        return MQ_OK;
    }
    char *digits = cJSON_malloc((size_t)n + 1); /* the allocator with which cJSON will free it */
    if (!digits)
        return mq_fail(w->err, MQ_E_NOMEM, "out of memory for a JSON document");
    memcpy(digits, w->text + start, (size_t)n);
    digits[n] = '\0';
    item->valuestring = digits;
    item->valueint = KIND_DIGITS;
    return MQ_OK;
}

/* Whether item's key stands before it in its object. */
static mq_status check_key(walk *w, mq_map *seen, const cJSON *obj, const cJSON *item,
                           int64_t key_off)
{
    bool is_new = true;
    if (seen)
        MQ_TRY(mq_map_put(seen, item->string, (int64_t)strlen(item->string), 1, &is_new, w->err));
    else
        for (const cJSON *e = obj->child; e != item && is_new; e = e->next)
            is_new = strcmp(e->string, item->string) != 0;
    if (!is_new)
        return mq_fail(w->err, MQ_E_FORMAT, "JSON byte %lld: duplicate key '%.200s'",
                       (long long)key_off, item->string);
    return MQ_OK;
}

/* Mark item and everything below it, in the order of the text. */
static mq_status mark(walk *w, cJSON *item)
{
    if (kind_of(item) == cJSON_Number)
        return mark_number(w, item);
    if (kind_of(item) == cJSON_String)
        next_token(w);
    if (!is_container(item))
        return MQ_OK;
    bool is_object = kind_of(item) == cJSON_Object;
    int64_t n = 0;
    for (const cJSON *e = item->child; e; e = e->next)
        n++;
    item->valuedouble = (double)n;
    mq_map *seen = NULL;
    if (is_object && n > PAIRWISE_MAX)
        MQ_TRY(mq_map_create(&seen, n, w->err));
    mq_status st = MQ_OK;
    for (cJSON *e = item->child; e && st == MQ_OK; e = e->next) {
        if (is_object)
            st = check_key(w, seen, item, e, next_token(w));
        if (st == MQ_OK)
            st = mark(w, e);
    }
    mq_map_free(seen);
    return st;
}

mq_status mq_json_parse(mq_json **out, const char *text, int64_t n_bytes, int max_depth,
                        mq_err *err)
{
    *out = NULL;
    MQ_TRY(mq_json_check(text, n_bytes, max_depth, err));
    mq_json *doc = calloc(1, sizeof *doc);
    if (!doc)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for a JSON document");
    const char *end = NULL;
    /* The text is correct, so only memory can be missing. */
    doc->root = cJSON_ParseWithLengthOpts(text, (size_t)n_bytes, &end, false);
    walk w = {text, n_bytes, 0, err};
    mq_status st = doc->root ? mark(&w, doc->root)
                             : mq_fail(err, MQ_E_NOMEM, "out of memory for a JSON document");
    if (st != MQ_OK) {
        mq_json_free(doc);
        return st;
    }
    *out = doc;
    return MQ_OK;
}

mq_status mq_json_load(mq_json **out, const char *path, int64_t max_bytes, int max_depth,
                       mq_err *err)
{
    *out = NULL;
    mq_buf text = mq_buf_empty();
    MQ_TRY(mq_file_load(&text, path, max_bytes, err));
    mq_status st = mq_json_parse(out, text.data, text.n_bytes, max_depth, err);
    mq_buf_release(&text);
    return mq_wrap(err, st, "%s", path);
}

void mq_json_free(mq_json *doc)
{
    if (!doc)
        return;
    cJSON_Delete(doc->root);
    free(doc);
}

const mq_json_node *mq_json_root(const mq_json *doc)
{
    return node_of(doc->root);
}

mq_json_type mq_json_type_of(const mq_json_node *n)
{
    switch (kind_of(item_of(n))) {
    case cJSON_False:
    case cJSON_True:
        return MQ_JSON_BOOL;
    case cJSON_Number:
        return MQ_JSON_NUMBER;
    case cJSON_String:
        return MQ_JSON_STRING;
    case cJSON_Array:
        return MQ_JSON_ARRAY;
    case cJSON_Object:
        return MQ_JSON_OBJECT;
    default:
        return MQ_JSON_NULL;
    }
}

const char *mq_json_type_name(mq_json_type t)
{
    switch (t) {
    case MQ_JSON_NULL:
        return "null";
    case MQ_JSON_BOOL:
        return "boolean";
    case MQ_JSON_NUMBER:
        return "number";
    case MQ_JSON_STRING:
        return "string";
    case MQ_JSON_ARRAY:
        return "array";
    case MQ_JSON_OBJECT:
        return "object";
    }
    return "unknown";
}

int64_t mq_json_count(const mq_json_node *n)
{
    return is_container(item_of(n)) ? (int64_t)item_of(n)->valuedouble : 0;
}

const mq_json_node *mq_json_first(const mq_json_node *n)
{
    return is_container(item_of(n)) ? node_of(item_of(n)->child) : NULL;
}

const mq_json_node *mq_json_next(const mq_json_node *n)
{
    return node_of(item_of(n)->next);
}

const mq_json_node *mq_json_find(const mq_json_node *obj, const char *key)
{
    if (kind_of(item_of(obj)) != cJSON_Object)
        return NULL;
    for (const cJSON *e = item_of(obj)->child; e; e = e->next)
        if (strcmp(e->string, key) == 0)
            return node_of(e);
    return NULL;
}

const char *mq_json_key(const mq_json_node *n)
{
    return item_of(n)->string;
}

const char *mq_json_string(const mq_json_node *n)
{
    return kind_of(item_of(n)) == cJSON_String ? item_of(n)->valuestring : NULL;
}

bool mq_json_bool(const mq_json_node *n, bool *out)
{
    int kind = kind_of(item_of(n));
    if (kind != cJSON_True && kind != cJSON_False)
        return false;
    *out = kind == cJSON_True;
    return true;
}

bool mq_json_double(const mq_json_node *n, double *out)
{
    if (kind_of(item_of(n)) != cJSON_Number)
        return false;
    *out = item_of(n)->valuedouble;
    return true;
}

/* Plain digits with an optional minus into *out; false outside int64. */
static bool digits_to_i64(const char *s, int64_t *out)
{
    bool negative = *s == '-';
    uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX, v = 0;
    for (s += negative; *s; s++) {
        uint64_t d = (uint64_t)(*s - '0');
        if (v > (limit - d) / 10)
            return false;
        v = 10 * v + d;
    }
    *out = !negative ? (int64_t)v : v == limit ? INT64_MIN : -(int64_t)v;
    return true;
}

bool mq_json_int(const mq_json_node *n, int64_t *out)
{
    const cJSON *item = item_of(n);
    if (kind_of(item) != cJSON_Number || item->valueint == KIND_REAL)
        return false;
    if (item->valueint == KIND_DIGITS)
        return digits_to_i64(item->valuestring, out);
    *out = (int64_t)item->valuedouble;
    return true;
}

const char *mq_json_digits(const mq_json_node *n)
{
    const cJSON *item = item_of(n);
    return kind_of(item) == cJSON_Number && item->valueint == KIND_DIGITS ? item->valuestring
                                                                          : NULL;
}
