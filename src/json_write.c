/* The writer: straight into a buffer, no tree.  One of two layouts: compact, or one member a line.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/json.h"
#include "src/utf8.h"

mq_json_writer mq_json_write_begin(mq_buf *b, int indent)
{
    mq_json_writer w = {.b = b, .indent = indent};
    return w;
}

static void new_line(mq_json_writer *w)
{
    if (w->indent <= 0)
        return;
    mq_buf_append(w->b, "\n", 1);
    for (int i = 0; i < w->depth * w->indent; i++)
        mq_buf_append(w->b, " ", 1);
}

/* Append s in double quotes, as UTF-8 with the escapes that RFC 8259 demands. */
static void quoted(mq_buf *b, const char *s)
{
    int64_t left = (int64_t)strlen(s),
            plain = 0; /* plain: bytes before s that can go out as they are */
    mq_buf_append(b, "\"", 1);
    while (left > 0) {
        unsigned char c = (unsigned char)*s;
        int n = mq_utf8_bytes(s, left);
        if (n > 0 && c >= 0x20 && c != '"' && c != '\\') {
            s += n;
            left -= n;
            plain += n;
            continue;
        }
        mq_buf_append(b, s - plain, plain);
        plain = 0;
        if (n == 0)
            mq_buf_str(b, "\xef\xbf\xbd");
        else if (c == '\n')
            mq_buf_str(b, "\\n");
        else if (c == '\t')
            mq_buf_str(b, "\\t");
        else if (c == '\r')
            mq_buf_str(b, "\\r");
        else if (c < 0x20)
            mq_buf_fmt(b, "\\u%04x", c);
        else
            mq_buf_fmt(b, "\\%c", c);
        s++;
        left--;
    }
    mq_buf_append(b, s - plain, plain);
    mq_buf_append(b, "\"", 1);
}

/* What stands before a value: comma, line break, key. */
static void lead_in(mq_json_writer *w, const char *key)
{
    if (w->need_comma)
        mq_buf_append(w->b, ",", 1);
    if (w->depth > 0)
        new_line(w);
    if (key) {
        quoted(w->b, key);
        mq_buf_str(w->b, w->indent > 0 ? ": " : ":");
    }
    w->need_comma = true;
}

static void open_container(mq_json_writer *w, const char *key, const char *bracket)
{
    lead_in(w, key);
    mq_buf_str(w->b, bracket);
    w->depth++;
    w->need_comma = false;
}

static void close_container(mq_json_writer *w, const char *bracket)
{
    w->depth--;
    if (w->need_comma) /* it has members */
        new_line(w);
    mq_buf_str(w->b, bracket);
    w->need_comma = true;
}

void mq_json_write_object(mq_json_writer *w, const char *key)
{
    open_container(w, key, "{");
}

void mq_json_write_array(mq_json_writer *w, const char *key)
{
    open_container(w, key, "[");
}

void mq_json_write_end_object(mq_json_writer *w)
{
    close_container(w, "}");
}

void mq_json_write_end_array(mq_json_writer *w)
{
    close_container(w, "]");
}

/* A value that needs no quotes. */
static void bare(mq_json_writer *w, const char *key, const char *text)
{
    lead_in(w, key);
    mq_buf_str(w->b, text);
}

void mq_json_write_string(mq_json_writer *w, const char *key, const char *value)
{
    if (!value) {
        bare(w, key, "null");
        return;
    }
    lead_in(w, key);
    quoted(w->b, value);
}

void mq_json_write_int(mq_json_writer *w, const char *key, int64_t value)
{
    lead_in(w, key);
    mq_buf_fmt(w->b, "%lld", (long long)value);
}

void mq_json_write_double(mq_json_writer *w, const char *key, double value)
{
    char text[40];
    if (!isfinite(value)) {
        bare(w, key, "null");
        return;
    }
    if (value == 0 && signbit(value)) { /* "-0" would read back as the integer 0 */
        bare(w, key, "-0.0");
        return;
    }
    snprintf(text, sizeof text, "%.9g", value);
    if (strtod(text, NULL) != value)
        snprintf(text, sizeof text, "%.17g", value);
    bare(w, key, text);
}

void mq_json_write_bool(mq_json_writer *w, const char *key, bool value)
{
    bare(w, key, value ? "true" : "false");
}

void mq_json_write_null(mq_json_writer *w, const char *key)
{
    bare(w, key, "null");
}

static void write_number(mq_json_writer *w, const char *key, const mq_json_node *n)
{
    int64_t i;
    double d = 0;
    if (mq_json_digits(n))
        bare(w, key, mq_json_digits(n));
    else if (mq_json_int(n, &i))
        mq_json_write_int(w, key, i);
    else if (mq_json_double(n, &d))
        mq_json_write_double(w, key, d);
}

/* Recursion is as deep as the document, which its parser limited. */
void mq_json_write_node(mq_json_writer *w, const char *key, const mq_json_node *n)
{
    mq_json_type type = mq_json_type_of(n);
    bool flag = false;
    switch (type) {
    case MQ_JSON_NULL:
        mq_json_write_null(w, key);
        break;
    case MQ_JSON_BOOL:
        mq_json_bool(n, &flag);
        mq_json_write_bool(w, key, flag);
        break;
    case MQ_JSON_NUMBER:
        write_number(w, key, n);
        break;
    case MQ_JSON_STRING:
        mq_json_write_string(w, key, mq_json_string(n));
        break;
    case MQ_JSON_ARRAY:
    case MQ_JSON_OBJECT:
        open_container(w, key, type == MQ_JSON_OBJECT ? "{" : "[");
        for (const mq_json_node *e = mq_json_first(n); e; e = mq_json_next(e))
            mq_json_write_node(w, mq_json_key(e), e);
        close_container(w, type == MQ_JSON_OBJECT ? "}" : "]");
        break;
    }
}
