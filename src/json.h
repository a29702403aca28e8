/* Strict JSON (RFC 8259): cJSON behind a checker, and a writer.  json.c is the only user of cJSON.
 *
 * Refused beyond cJSON's own checks: invalid UTF-8, byte-order mark, duplicate keys, raw control characters and
 * \u0000 in strings, lone surrogates, leading zeros, bare "1.", numbers that overflow to infinity or have
 * more than 63 characters, text after the value, nesting deeper than asked (and than 1000).  Integers are read from the
 * digits: 2^53 + 1 is not rounded.  Parsing time is linear in the text, duplicate keys included. */
#ifndef MQ_SRC_JSON_H
#define MQ_SRC_JSON_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_json mq_json;           /* a document; owns everything below it */
typedef struct mq_json_node mq_json_node; /* borrowed from its document */

typedef enum mq_json_type { MQ_JSON_NULL, MQ_JSON_BOOL, MQ_JSON_NUMBER, MQ_JSON_STRING, MQ_JSON_ARRAY, MQ_JSON_OBJECT } mq_json_type;

/* Parse text [n_bytes] (no NUL needed; borrowed only during the call).  MQ_E_FORMAT names rule and byte
 * offset; MQ_E_NOMEM.  max_depth counts nested arrays and objects (1 = flat). */
mq_status mq_json_parse(mq_json **out, const char *text, int64_t n_bytes, int max_depth, mq_err *err);
/* Load and parse a file of at most max_bytes; the error names the path. */
mq_status mq_json_load(mq_json **out, const char *path, int64_t max_bytes, int max_depth, mq_err *err);
void mq_json_free(mq_json *doc); /* accepts NULL */
const mq_json_node *mq_json_root(const mq_json *doc);

mq_json_type mq_json_type_of(const mq_json_node *n);
const char *mq_json_type_name(mq_json_type t); /* "object", "array", ... */
int64_t mq_json_count(const mq_json_node *n);  /* members of an array or object, else 0; O(1) */
/* First member and the next one, NULL at the end: the way to walk arrays and objects. */
const mq_json_node *mq_json_first(const mq_json_node *n);
const mq_json_node *mq_json_next(const mq_json_node *n);
/* Member of a small object by exact key, or NULL; linear, so never in a loop over a large object. */
const mq_json_node *mq_json_find(const mq_json_node *obj, const char *key);
const char *mq_json_key(const mq_json_node *n); /* NULL outside objects; NUL-free by rule */

const char *mq_json_string(const mq_json_node *n); /* NULL when not a string */
bool mq_json_bool(const mq_json_node *n, bool *out);
/* false when not a number; any finite number */
bool mq_json_double(const mq_json_node *n, double *out);
/* false when not an integer written in plain digits (optional minus), or outside int64 */
bool mq_json_int(const mq_json_node *n, int64_t *out);
/* Digits (with a minus) of an integer of 2^53 or more in magnitude, else NULL: for copying one outside int64. */
const char *mq_json_digits(const mq_json_node *n);

/* Writer: appends to b with commas, indentation and escapes handled. */
typedef struct mq_json_writer {
    mq_buf *b;
    int depth, indent; /* indent: spaces per level, 0 = compact */
    bool need_comma;
} mq_json_writer;

mq_json_writer mq_json_write_begin(mq_buf *b, int indent);
/* key is NULL inside arrays and at the top. */
void mq_json_write_object(mq_json_writer *w, const char *key);
void mq_json_write_array(mq_json_writer *w, const char *key);
void mq_json_write_end_object(mq_json_writer *w);
void mq_json_write_end_array(mq_json_writer *w);
void mq_json_write_string(mq_json_writer *w, const char *key, const char *value); /* NULL value: null; invalid UTF-8 becomes U+FFFD */
void mq_json_write_int(mq_json_writer *w, const char *key, int64_t value);        /* all digits */
void mq_json_write_double(mq_json_writer *w, const char *key, double value);      /* shortest of %.9g/%.17g that reads back; not finite: null */
void mq_json_write_bool(mq_json_writer *w, const char *key, bool value);
void mq_json_write_null(mq_json_writer *w, const char *key);
/* Copy a parsed node. */
void mq_json_write_node(mq_json_writer *w, const char *key, const mq_json_node *n);

#ifdef __cplusplus
}
#endif
#endif
