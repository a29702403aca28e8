/* Recursive descent over the raw text, building nothing.
 *
 * cJSON is lenient: it takes any bytes in strings, leading zeros, a byte-order mark, and reads
 * numbers with strtod.  What two readers of one file may understand differently is refused here, so
 * cJSON only meets text that every parser agrees on.  The depth of the recursion is the depth of
 * the nesting, which the limit bounds. */
#include "src/json_check.h"

#include <stdbool.h>
#include <string.h>

#include "src/utf8.h"

typedef struct scan {
    const char *s; /* [n] */
    int64_t n, at;
    int depth, max_depth;
    mq_err *err;
} scan;

static mq_status value(scan *c);

static mq_status refuse_at(scan *c, int64_t at, const char *rule)
{
    return mq_fail(c->err, MQ_E_FORMAT, "JSON byte %lld: %s", (long long)at, rule);
}

static mq_status refuse(scan *c, const char *rule)
{
    return refuse_at(c, c->at, c->at < c->n ? rule : "the text ends early");
}

/* The byte at the cursor, or -1 at the end. */
static int peek(const scan *c)
{
    return c->at < c->n ? (unsigned char)c->s[c->at] : -1;
}

static bool is_digit(int b)
{
    return b >= '0' && b <= '9';
}

static void skip_space(scan *c)
{
    int b;
    while ((b = peek(c)) == ' ' || b == '\t' || b == '\n' || b == '\r')
        c->at++;
}

/* Four hex digits after "\u" into *unit. */
static mq_status hex4(scan *c, unsigned *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++, c->at++) {
        int b = peek(c), low = b | 0x20;
        if (is_digit(b))
            *unit = *unit << 4 | (unsigned)(b - '0');
        else if (b >= 0 && low >= 'a' && low <= 'f')
            *unit = *unit << 4 | (unsigned)(low - 'a' + 10);
        else
            return refuse(c, "\\u needs four hex digits");
    }
    return MQ_OK;
}

/* The cursor stands behind a backslash. */
static mq_status escape(scan *c)
{
    int64_t start = c->at - 1;
    int b = peek(c);
    if (b > 0 && strchr("\"\\/bfnrt", b)) {
        c->at++;
        return MQ_OK;
    }
    if (b != 'u')
        return refuse(c, "unknown escape in a string");
    c->at++;
    unsigned unit;
    MQ_TRY(hex4(c, &unit));
    if (unit == 0)
        return refuse_at(c, start, "\\u0000 in a string");
    if (unit < 0xd800 || unit > 0xdfff)
        return MQ_OK;
    if (unit > 0xdbff || c->n - c->at < 2 || c->s[c->at] != '\\' || c->s[c->at + 1] != 'u')
        return refuse_at(c, start, "lone surrogate in a string");
    c->at += 2;
    MQ_TRY(hex4(c, &unit));
    return unit >= 0xdc00 && unit <= 0xdfff ? MQ_OK
                                            : refuse_at(c, start, "lone surrogate in a string");
}

/* The cursor stands on the opening quote. */
static mq_status string(scan *c)
{
    c->at++;
    for (;;) {
        int b = peek(c);
        if (b < 0)
            return refuse(c, "");
        if (b == '"') {
            c->at++;
            return MQ_OK;
        }
        if (b < 0x20)
            return refuse(c, "control character in a string");
        if (b == '\\') {
            c->at++;
            MQ_TRY(escape(c));
            continue;
        }
        int n = mq_utf8_bytes(c->s + c->at, c->n - c->at);
        if (n == 0)
            return refuse(c, "invalid UTF-8 in a string");
        c->at += n;
    }
}

/* One digit or more. */
static mq_status digits(scan *c, const char *rule)
{
    if (!is_digit(peek(c)))
        return refuse(c, rule);
    while (is_digit(peek(c)))
        c->at++;
    return MQ_OK;
}

static mq_status number(scan *c)
{
    int64_t start = c->at;
    if (peek(c) == '-')
        c->at++;
    bool zero = peek(c) == '0';
    int64_t first = c->at;
    MQ_TRY(digits(c, "a digit must follow '-'"));
    if (zero && c->at > first + 1)
        return refuse_at(c, start, "number with a leading zero");
    if (peek(c) == '.') {
        c->at++;
        MQ_TRY(digits(c, "a digit must follow '.'"));
    }
    if (peek(c) == 'e' || peek(c) == 'E') {
        c->at++;
        if (peek(c) == '+' || peek(c) == '-')
            c->at++;
        MQ_TRY(digits(c, "a digit must follow the exponent's mark"));
    }
    if (c->at - start > MQ_JSON_NUMBER_MAX)
        return refuse_at(c, start, "number of more than 63 characters");
    return MQ_OK;
}

static mq_status literal(scan *c, const char *word)
{
    int64_t n = (int64_t)strlen(word);
    if (c->n - c->at < n || memcmp(c->s + c->at, word, (size_t)n) != 0)
        return refuse(c, "not a JSON value");
    c->at += n;
    return MQ_OK;
}

/* "key": with the cursor on what should be the quote. */
static mq_status member_key(scan *c)
{
    if (peek(c) != '"')
        return refuse(c, "expected a key in double quotes");
    MQ_TRY(string(c));
    skip_space(c);
    if (peek(c) != ':')
        return refuse(c, "expected ':' after a key");
    c->at++;
    skip_space(c);
    return MQ_OK;
}

/* An array or object, the cursor on its opening bracket. */
static mq_status container(scan *c, bool is_object)
{
    char close = is_object ? '}' : ']';
    if (++c->depth > c->max_depth)
        return mq_fail(c->err, MQ_E_FORMAT, "JSON byte %lld: nested deeper than %d",
                       (long long)c->at, c->max_depth);
    c->at++;
    skip_space(c);
    if (peek(c) == close) {
        c->at++;
        c->depth--;
        return MQ_OK;
    }
    for (;;) {
        if (is_object)
            MQ_TRY(member_key(c));
        MQ_TRY(value(c));
        skip_space(c);
        int b = peek(c);
        if (b != ',' && b != close)
            return refuse(c, is_object ? "expected ',' or '}'" : "expected ',' or ']'");
        c->at++;
        if (b == close)
            break;
        skip_space(c);
    }
    c->depth--;
    return MQ_OK;
}

static mq_status value(scan *c)
{
    int b = peek(c);
    switch (b) {
    case '{':
        return container(c, true);
    case '[':
        return container(c, false);
    case '"':
        return string(c);
    case 't':
        return literal(c, "true");
    case 'f':
        return literal(c, "false");
    case 'n':
        return literal(c, "null");
    default:
        break;
    }
    if (b == '-' || is_digit(b))
        return number(c);
    return refuse(c, "not a JSON value");
}

mq_status mq_json_check(const char *text, int64_t n_bytes, int max_depth, mq_err *err)
{
    if (max_depth > MQ_JSON_DEPTH_MAX)
        max_depth = MQ_JSON_DEPTH_MAX;
    scan c = {.s = text, .n = n_bytes, .max_depth = max_depth, .err = err};
    if (n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        return refuse(&c, "byte-order mark");
    skip_space(&c);
    MQ_TRY(value(&c));
    skip_space(&c);
    return c.at < c.n ? refuse(&c, "text after the value") : MQ_OK;
}

int64_t mq_json_check_token(const char *text, int64_t n_bytes, int64_t off, int64_t *end_off)
{
    while (off < n_bytes && text[off] != '"' && text[off] != '-' && !is_digit(text[off]))
        off++;
    int64_t end = off + 1;
    if (off < n_bytes && text[off] == '"') {
        while (end < n_bytes && text[end] != '"')
            end += text[end] == '\\' ? 2 : 1;
        end++;
    } else {
        while (end < n_bytes && (is_digit(text[end]) || memchr("+-.eE", text[end], 5)))
            end++;
    }
    *end_off = end < n_bytes ? end : n_bytes;
    return off < n_bytes ? off : n_bytes;
}
