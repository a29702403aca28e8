/* Keys of a configuration object to C values; the wording of every refusal stands here once. */
#include "src/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_WARNINGS = 50 };

const mq_json_node *mq_config_find(const mq_config *c, const char *key)
{
    const mq_json_node *n = mq_json_find(c->obj, key);
    return n && mq_json_type_of(n) != MQ_JSON_NULL ? n : NULL;
}

static mq_status missing(const mq_config *c, const char *key)
{
    return mq_fail(c->err, MQ_E_FORMAT, "%s: %s is missing", c->where, key);
}

static mq_status wrong_type(const mq_config *c, const char *key, const mq_json_node *n, const char *wanted)
{
    return mq_fail(c->err, MQ_E_FORMAT, "%s: %s: found %s, expected %s", c->where, key,
                   mq_json_type_name(mq_json_type_of(n)), wanted);
}

static mq_status read_int(const mq_config *c, const char *key, const mq_json_node *n, int64_t lo, int64_t hi, int *out)
{
    int64_t v;
    if (!mq_json_int(n, &v))
        return wrong_type(c, key, n, "an integer");
    if (v < lo || v > hi)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: %s: %lld, expected %lld to %lld", c->where, key, (long long)v,
                       (long long)lo, (long long)hi);
    *out = (int)v;
    return MQ_OK;
}

mq_status mq_config_int(const mq_config *c, const char *key, int64_t lo, int64_t hi, int *out)
{
    const mq_json_node *n = mq_config_find(c, key);
    return n ? read_int(c, key, n, lo, hi, out) : missing(c, key);
}

mq_status mq_config_int_or(const mq_config *c, const char *key, int64_t lo, int64_t hi, int fallback, int *out)
{
    const mq_json_node *n = mq_config_find(c, key);
    if (n)
        return read_int(c, key, n, lo, hi, out);
    *out = fallback;
    return MQ_OK;
}

mq_status mq_config_element(const mq_config *c, const char *key, int64_t i, const mq_json_node *n, int64_t lo,
                            int64_t hi, int *out)
{
    char element[128];
    snprintf(element, sizeof element, "%s[%lld]", key, (long long)i);
    return read_int(c, element, n, lo, hi, out);
}

static mq_status read_double(const mq_config *c, const char *key, const mq_json_node *n, double lo, double hi,
                             double *out)
{
    double v;
    if (!mq_json_double(n, &v))
        return wrong_type(c, key, n, "a number");
    if (!isfinite(v) || v <= lo || v > hi)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: %s: %g, expected more than %g and at most %g", c->where, key, v, lo,
                       hi);
    *out = v;
    return MQ_OK;
}

mq_status mq_config_double(const mq_config *c, const char *key, double lo, double hi, double *out)
{
    const mq_json_node *n = mq_config_find(c, key);
    return n ? read_double(c, key, n, lo, hi, out) : missing(c, key);
}

mq_status mq_config_double_or(const mq_config *c, const char *key, double lo, double hi, double fallback, double *out)
{
    const mq_json_node *n = mq_config_find(c, key);
    if (n)
        return read_double(c, key, n, lo, hi, out);
    *out = fallback;
    return MQ_OK;
}

mq_status mq_config_bool(const mq_config *c, const char *key, bool *out)
{
    const mq_json_node *n = mq_config_find(c, key);
    if (!n)
        return missing(c, key);
    return mq_json_bool(n, out) ? MQ_OK : wrong_type(c, key, n, "true or false");
}

mq_status mq_config_bool_or(const mq_config *c, const char *key, bool fallback, bool *out)
{
    *out = fallback;
    return mq_config_find(c, key) ? mq_config_bool(c, key, out) : MQ_OK;
}

mq_status mq_config_string(const mq_config *c, const char *key, const char **out)
{
    const mq_json_node *n = mq_config_find(c, key);
    *out = n ? mq_json_string(n) : NULL;
    return n && !*out ? wrong_type(c, key, n, "a string") : MQ_OK;
}

static mq_status read_container(const mq_config *c, const char *key, mq_json_type type, const mq_json_node **out)
{
    const mq_json_node *n = mq_config_find(c, key);
    *out = NULL;
    if (n && mq_json_type_of(n) != type)
        return wrong_type(c, key, n, type == MQ_JSON_ARRAY ? "an array" : "an object");
    *out = n;
    return MQ_OK;
}

mq_status mq_config_array(const mq_config *c, const char *key, const mq_json_node **out)
{
    return read_container(c, key, MQ_JSON_ARRAY, out);
}

mq_status mq_config_object(const mq_config *c, const char *key, const mq_json_node **out)
{
    return read_container(c, key, MQ_JSON_OBJECT, out);
}

mq_status mq_config_only_bool(const mq_config *c, const char *key, bool only)
{
    bool v;
    MQ_TRY(mq_config_bool_or(c, key, only, &v));
    if (v == only)
        return MQ_OK;
    return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: %s: %s is not supported, only %s", c->where, key,
                   v ? "true" : "false", only ? "true" : "false");
}

mq_status mq_config_only_int(const mq_config *c, const char *key, int only)
{
    int v;
    MQ_TRY(mq_config_int_or(c, key, INT32_MIN, INT32_MAX, only, &v));
    if (v == only)
        return MQ_OK;
    return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: %s: %d is not supported, only %d", c->where, key, v, only);
}

mq_status mq_config_only_string(const mq_config *c, const char *key, const char *only)
{
    const char *v;
    MQ_TRY(mq_config_string(c, key, &v));
    if (!v || strcmp(v, only) == 0)
        return MQ_OK;
    return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: %s: '%.80s' is not supported, only '%s'", c->where, key, v, only);
}

mq_status mq_config_only_null(const mq_config *c, const char *key)
{
    const mq_json_node *n = mq_config_find(c, key);
    if (!n)
        return MQ_OK;
    return mq_fail(c->err, MQ_E_UNSUPPORTED, "%s: %s: found %s, only null is supported", c->where, key,
                   mq_json_type_name(mq_json_type_of(n)));
}

void mq_config_warn_unknown(const mq_config *c, const char *const *known, mq_buf *warnings)
{
    int n_lines = 0;
    for (const mq_json_node *n = mq_json_first(c->obj); n; n = mq_json_next(n)) {
        const char *key = mq_json_key(n);
        int i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (known[i])
            continue;
        if (n_lines++ == MAX_WARNINGS) {
            mq_buf_fmt(warnings, "%s: more unknown keys\n", c->where);
            return;
        }
        mq_err line; /* mq_fail's escapes keep a hostile key on one line */
        mq_fail(&line, MQ_OK, "%s: unknown key '%.80s' is ignored", c->where, key);
        mq_buf_fmt(warnings, "%s\n", line.text);
    }
}
