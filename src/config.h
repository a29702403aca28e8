/* Typed reading of the keys of a JSON configuration object, with one wording for every kind of error:
 *
 *   "config.json: hidden_size is missing"                               MQ_E_FORMAT
 *   "config.json: hidden_size: found string, expected an integer"       MQ_E_FORMAT
 *   "config.json: hidden_size: 0, expected 1 to 131072"                 MQ_E_FORMAT
 *   "config.json: hidden_act: 'gelu' is not supported, only 'silu'"     MQ_E_UNSUPPORTED
 *
 * For src/model.c and src/model_draft.c. */
#ifndef MQ_SRC_CONFIG_H
#define MQ_SRC_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/json.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An object being read; everything is borrowed. */
typedef struct mq_config {
    const mq_json_node *obj;
    const char *where; /* "config.json", or "config.json: rope_scaling" */
    mq_err *err;
} mq_config;

/* Member key unless it is absent or null: then NULL. */
const mq_json_node *mq_config_find(const mq_config *c, const char *key);

/* Value of an integer in lo..hi; absent or null is an error, or in the second form gives fallback. */
mq_status mq_config_int(const mq_config *c, const char *key, int64_t lo, int64_t hi, int *out);
mq_status mq_config_int_or(const mq_config *c, const char *key, int64_t lo, int64_t hi, int fallback, int *out);
/* A number above lo and at most hi. */
mq_status mq_config_double(const mq_config *c, const char *key, double lo, double hi, double *out);
mq_status mq_config_double_or(const mq_config *c, const char *key, double lo, double hi, double fallback, double *out);
mq_status mq_config_bool(const mq_config *c, const char *key, bool *out);
mq_status mq_config_bool_or(const mq_config *c, const char *key, bool fallback, bool *out);
/* *out is NULL when absent or null; borrowed from the document. */
mq_status mq_config_string(const mq_config *c, const char *key, const char **out);
/* Element of an array at position i (for the text) as an integer in lo..hi. */
mq_status mq_config_element(const mq_config *c, const char *key, int64_t i, const mq_json_node *n, int64_t lo,
                            int64_t hi, int *out);
/* *out is the array or object, NULL when absent or null. */
mq_status mq_config_array(const mq_config *c, const char *key, const mq_json_node **out);
mq_status mq_config_object(const mq_config *c, const char *key, const mq_json_node **out);

/* Absent, null, or this one value: anything else is MQ_E_UNSUPPORTED (a wrong type MQ_E_FORMAT). */
mq_status mq_config_only_bool(const mq_config *c, const char *key, bool only);
mq_status mq_config_only_int(const mq_config *c, const char *key, int only);
mq_status mq_config_only_string(const mq_config *c, const char *key, const char *only);
/* Absent or null. */
mq_status mq_config_only_null(const mq_config *c, const char *key);

/* A line "WHERE: unknown key 'x' is ignored" for each member not in known (NULL-terminated); at most 50 lines. */
void mq_config_warn_unknown(const mq_config *c, const char *const *known, mq_buf *warnings);

#ifdef __cplusplus
}
#endif
#endif
