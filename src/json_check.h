/* The strict half of the JSON reader: rules checked on the raw text, before cJSON sees it.  Only
 * json.c uses this. */
#ifndef MQ_SRC_JSON_CHECK_H
#define MQ_SRC_JSON_CHECK_H

#include <stdint.h>

#include "src/status.h"

/* cJSON refuses deeper nesting, and cuts numbers of more characters. */
enum { MQ_JSON_DEPTH_MAX = 1000, MQ_JSON_NUMBER_MAX = 63 };

/* Check that text [n_bytes] is one JSON value that keeps every rule json.h lists, except duplicate
 * keys and overflowing numbers, which need the parsed values.  MQ_E_FORMAT: the text names the byte
 * offset and the rule. */
mq_status mq_json_check(const char *text, int64_t n_bytes, int max_depth, mq_err *err);

/* In a checked text: the start of the first string (its opening quote) or number at or after off;
 * *end_off is one past its last character.  The caller knows that there is one. */
int64_t mq_json_check_token(const char *text, int64_t n_bytes, int64_t off, int64_t *end_off);

#endif
