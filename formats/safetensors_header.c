/* A strict single-pass reader of a safetensors header.
 *
 * A release's header reaches 14 MB with 100,000 tensors, a hostile one 100 MB with two million: a JSON tree of that
 * costs seven times its text, so this reader keeps an array of tensors and nothing else.  Strings are decoded to
 * the front of the text itself (a decoded string is never longer than its source), so names need no second
 * block.  Nesting is bounded, so recursion is. */
#include "formats/safetensors_header.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/map.h"
#include "src/utf8.h"

/* Header object, tensor object, shape array, and one more inside unknown members. */
enum { MAX_DEPTH = 4, MAX_UNKNOWN = 16 };

typedef struct str {
    const char *s;
    int64_t n;
} str;

typedef struct parser {
    char *text;
    int64_t n, pos;
    int64_t arena;     /* bytes of text in front that hold decoded strings; never beyond pos */
    str tensor;        /* the tensor being read, for error texts; s is NULL outside tensors */
    mq_st_header *out;
    int64_t cap;       /* of out->tensors */
    bool has_metadata;
    mq_err *err;
} parser;

static mq_status fail(const parser *p, const char *rule, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static mq_status fail(const parser *p, const char *rule, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    if (!p->tensor.s)
        return mq_fail(p->err, MQ_E_FORMAT, "rule %s: header byte %lld: %s", rule, (long long)p->pos, what);
    int shown = (int)(p->tensor.n < MQ_ST_NAME_SHOWN ? p->tensor.n : MQ_ST_NAME_SHOWN);
    return mq_fail(p->err, MQ_E_FORMAT, "tensor '%.*s': rule %s: header byte %lld: %s", shown, p->tensor.s, rule,
                   (long long)p->pos, what);
}

static mq_status check_utf8(parser *p)
{
    const char *s = p->text;
    int64_t i = 0;
    while (i < p->n) {
        uint64_t eight;
        if (p->n - i >= 8) {
            memcpy(&eight, s + i, 8);
            if (!(eight & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        int len = mq_utf8_bytes(s + i, p->n - i);
        p->pos = i;
        if (len == 0)
            return fail(p, "S4", "invalid UTF-8");
        i += len;
    }
    p->pos = 0;
    if (p->n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0)
        return fail(p, "S5", "byte-order mark, expected '{'");
    return MQ_OK;
}

/* The next byte, -1 at the end. */
static int peek(const parser *p)
{
    return p->pos < p->n ? (uint8_t)p->text[p->pos] : -1;
}

static int skip_space(parser *p)
{
    int c = peek(p);
    while (c == ' ' || c == '\n' || c == '\r' || c == '\t') {
        p->pos++;
        c = peek(p);
    }
    return c;
}

static mq_status expected(const parser *p, const char *rule, const char *what)
{
    int c = peek(p);
    if (c < 0)
        return fail(p, rule, "the header ends, expected %s", what);
    if (c < ' ' || c >= 0x7f)
        return fail(p, rule, "byte 0x%02x, expected %s", (unsigned)c, what);
    return fail(p, rule, "'%c', expected %s", c, what);
}

static mq_status hex4(parser *p, uint32_t *out)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++, p->pos++) {
        int c = peek(p);
        int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (d < 0)
            return expected(p, "S5", "four hexadecimal digits after \\u");
        v = v << 4 | (uint32_t)d;
    }
    *out = v;
    return MQ_OK;
}

static int utf8_write(char *dst, uint32_t u)
{
    if (u < 0x80) {
        dst[0] = (char)u;
        return 1;
    }
    int len = u < 0x800 ? 2 : u < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, u >>= 6)
        dst[i] = (char)(0x80 | (u & 0x3f));
    dst[0] = (char)((0xf00 >> len & 0xf0) | u);
    return len;
}

/* The escape behind a backslash (pos stands on the letter), appended to the arena at *w. */
static mq_status unescape(parser *p, int64_t *w)
{
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int c = peek(p);
    const char *at = c > 0 ? strchr(letters, c) : NULL;
    if (at) {
        p->text[(*w)++] = values[at - letters];
        p->pos++;
        return MQ_OK;
    }
    if (c != 'u')
        return expected(p, "S5", "one of \" \\ / b f n r t u after a backslash");
    p->pos++;
    uint32_t u, low;
    MQ_TRY(hex4(p, &u));
    if (u == 0)
        return fail(p, "S5", "\\u0000 in a string");
    if (u >= 0xdc00 && u < 0xe000)
        return fail(p, "S5", "lone surrogate \\u%04x", u);
    if (u >= 0xd800 && u < 0xdc00) {
        if (p->n - p->pos < 2 || p->text[p->pos] != '\\' || p->text[p->pos + 1] != 'u')
            return fail(p, "S5", "lone surrogate \\u%04x", u);
        p->pos += 2;
        MQ_TRY(hex4(p, &low));
        if (low < 0xdc00 || low >= 0xe000)
            return fail(p, "S5", "lone surrogate \\u%04x", u);
        u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
    }
    *w += utf8_write(p->text + *w, u);
    return MQ_OK;
}

/* A string, decoded to the end of the arena and NUL-terminated there.  The caller keeps it or sets the arena back.
 * There is always room: quotes and escapes are longer than what they stand for. */
static mq_status read_string(parser *p, str *out, const char *rule, const char *what)
{
    if (skip_space(p) != '"')
        return expected(p, rule, what);
    p->pos++;
    int64_t start = p->arena, w = start;
    for (;;) {
        int c = peek(p);
        if (c == '"')
            break;
        if (c < 0)
            return fail(p, "S5", "the header ends inside a string");
        if (c < ' ')
            return fail(p, "S5", "control character 0x%02x in a string", (unsigned)c);
        p->pos++;
        if (c == '\\')
            MQ_TRY(unescape(p, &w));
        else
            p->text[w++] = (char)c;
    }
    p->pos++;
    p->text[w] = '\0';
    p->arena = w + 1;
    *out = (str){p->text + start, w - start};
    return MQ_OK;
}

static bool str_is(str s, const char *text)
{
    return s.n == (int64_t)strlen(text) && memcmp(s.s, text, (size_t)s.n) == 0;
}

static mq_status read_integer(parser *p, int64_t *out, const char *rule, const char *what)
{
    int c = skip_space(p);
    if (c == '-')
        return fail(p, rule, "negative number in %s", what);
    if (c < '0' || c > '9')
        return fail(p, rule, "%s holds something else than a non-negative integer", what);
    bool zero = c == '0';
    int64_t v = 0, n_digits = 0;
    for (; c >= '0' && c <= '9'; c = peek(p), n_digits++) {
        if (v > (INT64_MAX - (c - '0')) / 10)
            return fail(p, rule, "integer above 2^63 - 1 in %s", what);
        v = v * 10 + (c - '0');
        p->pos++;
    }
    if (zero && n_digits > 1)
        return fail(p, rule, "leading zero in %s", what);
    if (c == '.' || c == 'e' || c == 'E')
        return fail(p, rule, "number in %s not written as a plain integer", what);
    *out = v;
    return MQ_OK;
}

/* Behind a member or element: *more says whether another follows; eats the comma or the closing bracket. */
static mq_status read_separator(parser *p, char close, bool *more, const char *rule)
{
    int c = skip_space(p);
    if (c != ',' && c != close)
        return expected(p, rule, close == '}' ? "',' or '}'" : "',' or ']'");
    p->pos++;
    *more = c == ',';
    return MQ_OK;
}

/* Open an object or array; *empty when it closes at once. */
static mq_status read_open(parser *p, char open, bool *empty, const char *rule, const char *what)
{
    if (skip_space(p) != open)
        return expected(p, rule, what);
    p->pos++;
    *empty = skip_space(p) == (open == '{' ? '}' : ']');
    if (*empty)
        p->pos++;
    return MQ_OK;
}

static mq_status read_colon(parser *p)
{
    if (skip_space(p) != ':')
        return expected(p, "S5", "':'");
    p->pos++;
    return MQ_OK;
}

static mq_status skip_digits(parser *p)
{
    if (peek(p) < '0' || peek(p) > '9')
        return expected(p, "S5", "a digit");
    while (peek(p) >= '0' && peek(p) <= '9')
        p->pos++;
    return MQ_OK;
}

static mq_status skip_number(parser *p)
{
    if (peek(p) == '-')
        p->pos++;
    if (peek(p) == '0') {
        p->pos++;
        if (peek(p) >= '0' && peek(p) <= '9')
            return fail(p, "S5", "leading zero");
    } else {
        MQ_TRY(skip_digits(p));
    }
    if (peek(p) == '.') {
        p->pos++;
        MQ_TRY(skip_digits(p));
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->pos++;
        if (peek(p) == '+' || peek(p) == '-')
            p->pos++;
        MQ_TRY(skip_digits(p));
    }
    return MQ_OK;
}

static mq_status skip_word(parser *p, const char *word)
{
    int64_t n = (int64_t)strlen(word);
    if (p->n - p->pos < n || memcmp(p->text + p->pos, word, (size_t)n) != 0)
        return expected(p, "S5", "a JSON value");
    p->pos += n;
    return MQ_OK;
}

/* Any well-formed value; depth counts the containers around it.  Leaves the arena as it was. */
static mq_status skip_value(parser *p, int depth)
{
    int64_t arena = p->arena;
    int c = skip_space(p);
    str s;
    if (c == '"') {
        MQ_TRY(read_string(p, &s, "S5", "a string"));
        p->arena = arena;
        return MQ_OK;
    }
    if (c == 't' || c == 'f' || c == 'n')
        return skip_word(p, c == 't' ? "true" : c == 'f' ? "false" : "null");
    if (c != '{' && c != '[')
        return skip_number(p);
    if (depth >= MAX_DEPTH)
        return fail(p, "S5", "nested deeper than %d levels", MAX_DEPTH);
    bool empty, more = true;
    MQ_TRY(read_open(p, (char)c, &empty, "S5", "a value"));
    while (!empty && more) {
        if (c == '{') {
            MQ_TRY(read_string(p, &s, "S5", "a member's name"));
            p->arena = arena;
            MQ_TRY(read_colon(p));
        }
        MQ_TRY(skip_value(p, depth + 1));
        MQ_TRY(read_separator(p, c == '{' ? '}' : ']', &more, "S5"));
    }
    return MQ_OK;
}

static mq_status read_shape(parser *p, mq_st_tensor *t)
{
    bool empty, more = true;
    MQ_TRY(read_open(p, '[', &empty, "S7", "shape to be an array"));
    while (!empty && more) {
        if (t->n_dims == MQ_ST_MAX_DIMS)
            return fail(p, "S7", "shape with more than %d dimensions", MQ_ST_MAX_DIMS);
        MQ_TRY(read_integer(p, &t->dims[t->n_dims], "S7", "shape"));
        t->n_dims++;
        MQ_TRY(read_separator(p, ']', &more, "S7"));
    }
    return MQ_OK;
}

static mq_status read_offsets(parser *p, int64_t offsets[2])
{
    bool empty, more = true;
    MQ_TRY(read_open(p, '[', &empty, "S6", "data_offsets to be an array"));
    if (empty)
        return fail(p, "S6", "data_offsets is empty, expected two integers");
    for (int i = 0; i < 2; i++) {
        MQ_TRY(read_integer(p, &offsets[i], "S6", "data_offsets"));
        MQ_TRY(read_separator(p, ']', &more, "S6"));
        if (more != (i == 0))
            return fail(p, "S6", "data_offsets does not hold exactly two integers");
    }
    return MQ_OK;
}

static mq_status read_dtype(parser *p, mq_dtype *out)
{
    str s;
    int64_t arena = p->arena;
    MQ_TRY(read_string(p, &s, "S6", "dtype to be a string"));
    p->arena = arena;
    if (!mq_dtype_find(out, s.s, s.n))
        return fail(p, "S6", "unknown dtype '%.40s'", s.s);
    return MQ_OK;
}

/* S8, S9 and S10: the byte count that dtype and shape give is the one that the offsets span. */
static mq_status check_size(const parser *p, mq_st_tensor *t, const int64_t offsets[2])
{
    int64_t n = mq_dtype_bits(t->dtype);
    bool is_empty = false;
    for (int i = 0; i < t->n_dims; i++)
        is_empty |= t->dims[i] == 0;
    for (int i = 0; i < t->n_dims; i++)
        if (t->dims[i] != 0 && !mq_mul_i64(&n, n, t->dims[i]))
            return fail(p, "S8", "shape times dtype overflows 63 bits");
    if (is_empty)
        n = 0; /* the other dimensions must still multiply: readers compute strides from them */
    if (n % 8 != 0)
        return fail(p, "S9", "%lld bits are not whole bytes", (long long)n);
    if (offsets[0] > offsets[1])
        return fail(p, "S10", "data_offsets [%lld, %lld] end before they begin", (long long)offsets[0],
                    (long long)offsets[1]);
    if (offsets[1] - offsets[0] != n / 8)
        return fail(p, "S10", "data_offsets span %lld bytes, dtype and shape need %lld",
                    (long long)(offsets[1] - offsets[0]), (long long)(n / 8));
    t->off = offsets[0];
    t->n_bytes = n / 8;
    return MQ_OK;
}

/* A member that is not one of the three: any value, but only once. */
static mq_status read_unknown(parser *p, str key, str unknown[MAX_UNKNOWN], int *n_unknown)
{
    for (int i = 0; i < *n_unknown; i++)
        if (unknown[i].n == key.n && memcmp(unknown[i].s, key.s, (size_t)key.n) == 0)
            return fail(p, "S6", "member '%.40s' twice", key.s);
    if (*n_unknown == MAX_UNKNOWN)
        return fail(p, "S6", "more than %d unknown members", MAX_UNKNOWN);
    unknown[(*n_unknown)++] = key;
    return skip_value(p, 2);
}

static mq_status read_tensor(parser *p, mq_st_tensor *t)
{
    static const char *const members[3] = {"dtype", "shape", "data_offsets"};
    bool seen[3] = {false, false, false}, empty, more = true;
    str unknown[MAX_UNKNOWN];
    int n_unknown = 0;
    int64_t offsets[2] = {0, 0}, arena = p->arena;
    MQ_TRY(read_open(p, '{', &empty, "S6", "an object with dtype, shape and data_offsets"));
    while (!empty && more) {
        str key;
        int64_t before = p->arena;
        MQ_TRY(read_string(p, &key, "S5", "a member's name"));
        MQ_TRY(read_colon(p));
        int m = 0;
        while (m < 3 && !str_is(key, members[m]))
            m++;
        if (m < 3 && seen[m])
            return fail(p, "S6", "member '%s' twice", members[m]);
        if (m < 3) {
            seen[m] = true;
            p->arena = before;
        }
        MQ_TRY(m == 0   ? read_dtype(p, &t->dtype)
               : m == 1 ? read_shape(p, t)
               : m == 2 ? read_offsets(p, offsets)
                        : read_unknown(p, key, unknown, &n_unknown));
        MQ_TRY(read_separator(p, '}', &more, "S5"));
    }
    p->arena = arena;
    for (int m = 0; m < 3; m++)
        if (!seen[m])
            return fail(p, "S6", "member '%s' is missing", members[m]);
    return check_size(p, t, offsets);
}

/* S13: strings to strings, each key once.  An array below "shape" or "data_offsets" is a tensor with this name: S15. */
static mq_status read_metadata(parser *p, mq_map *keys)
{
    bool empty, more = true, is_new;
    MQ_TRY(read_open(p, '{', &empty, "S13", "__metadata__ to be an object"));
    while (!empty && more) {
        str key, value;
        MQ_TRY(read_string(p, &key, "S5", "a key of __metadata__"));
        MQ_TRY(read_colon(p));
        if (skip_space(p) == '[' && (str_is(key, "shape") || str_is(key, "data_offsets")))
            return fail(p, "S15", "a tensor is called __metadata__");
        MQ_TRY(mq_map_put(keys, key.s, key.n, 0, &is_new, p->err));
        if (!is_new)
            return fail(p, "S13", "key '%.40s' twice in __metadata__", key.s);
        int64_t arena = p->arena;
        MQ_TRY(read_string(p, &value, "S13", "values of __metadata__ to be strings"));
        p->arena = arena;
        MQ_TRY(read_separator(p, '}', &more, "S13"));
    }
    return MQ_OK;
}

static mq_status read_metadata_once(parser *p)
{
    if (p->has_metadata)
        return fail(p, "S14", "__metadata__ twice");
    p->has_metadata = true;
    mq_map *keys;
    MQ_TRY(mq_map_create(&keys, 16, p->err));
    int64_t arena = p->arena;
    mq_status st = read_metadata(p, keys);
    p->arena = arena;
    mq_map_free(keys);
    return st;
}

static mq_status append_tensor(parser *p, const mq_st_tensor *t)
{
    mq_st_header *h = p->out;
    if (h->n_tensors == p->cap) {
        int64_t cap = p->cap ? p->cap * 2 : 64;
        mq_st_tensor *grown = realloc(h->tensors, (size_t)cap * sizeof *grown);
        if (!grown)
            return mq_fail(p->err, MQ_E_NOMEM, "out of memory for %lld tensors", (long long)cap);
        h->tensors = grown;
        p->cap = cap;
    }
    h->tensors[h->n_tensors++] = *t;
    return MQ_OK;
}

static mq_status read_entry(parser *p)
{
    str name;
    int64_t before = p->arena;
    MQ_TRY(read_string(p, &name, "S5", "a tensor's name"));
    MQ_TRY(read_colon(p));
    if (str_is(name, "__metadata__")) {
        p->arena = before;
        return read_metadata_once(p);
    }
    if (name.n == 0)
        return fail(p, "S6", "a tensor's name is empty");
    p->tensor = name;
    if (name.n > MQ_ST_MAX_NAME)
        return fail(p, "S6", "name of %lld bytes, expected at most %d", (long long)name.n, MQ_ST_MAX_NAME);
    mq_st_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name.s;
    t.name_bytes = name.n;
    MQ_TRY(read_tensor(p, &t));
    p->tensor = (str){NULL, 0};
    return append_tensor(p, &t);
}

static mq_status read_header(parser *p)
{
    MQ_TRY(check_utf8(p));
    bool empty, more = true;
    MQ_TRY(read_open(p, '{', &empty, "S5", "'{'"));
    while (!empty && more) {
        MQ_TRY(read_entry(p));
        MQ_TRY(read_separator(p, '}', &more, "S5"));
    }
    if (skip_space(p) >= 0)
        return expected(p, "S5", "only white space behind the object");
    return MQ_OK;
}

/* Give back what is behind the names and the tensors; the names' block may move. */
static void shrink(parser *p)
{
    mq_st_header *h = p->out;
    char *old = p->text;
    h->names_bytes = p->arena;
    char *names = realloc(old, (size_t)(p->arena > 0 ? p->arena : 1));
    h->names = names ? names : old;
    int64_t off = 0;
    for (int64_t i = 0; i < h->n_tensors; i++) {
        h->tensors[i].name = h->names + off;
        off += h->tensors[i].name_bytes + 1;
    }
    mq_st_tensor *tensors = realloc(h->tensors, (size_t)(h->n_tensors > 0 ? h->n_tensors : 1) * sizeof *tensors);
    if (tensors)
        h->tensors = tensors;
}

mq_status mq_st_header_parse(mq_st_header *out, char *text, int64_t n_bytes, mq_err *err)
{
    *out = (mq_st_header){NULL, NULL, 0, 0};
    parser p;
    memset(&p, 0, sizeof p);
    p.text = text;
    p.n = n_bytes;
    p.out = out;
    p.err = err;
    mq_status st = n_bytes > 0 ? read_header(&p) : fail(&p, "S5", "the header is empty, expected '{'");
    if (st != MQ_OK) {
        free(text);
        free(out->tensors);
        *out = (mq_st_header){NULL, NULL, 0, 0};
        return st;
    }
    shrink(&p);
    return MQ_OK;
}

void mq_st_header_release(mq_st_header *h)
{
    free(h->names);
    free(h->tensors);
    *h = (mq_st_header){NULL, NULL, 0, 0};
}
