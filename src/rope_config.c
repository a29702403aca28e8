/* Rotary settings: two generations of keys to one geometry.
 *
 * Both forms may stand side by side in one file; each value that is given twice must agree, so that nothing depends on
 * which form a reader prefers. */
#include "src/rope_config.h"

#include <stdio.h>
#include <string.h>

/* What has been read so far; 0 is nothing yet. */
typedef struct rope {
    double theta, factor;
} rope;

static mq_status set(double *value, double found, const char *what, const mq_config *c)
{
    if (*value != 0.0 && *value != found)
        return mq_fail(c->err, MQ_E_SHAPE, "%s: %s: %g, but %g elsewhere in the file", c->where, what, found, *value);
    *value = found;
    return MQ_OK;
}

static mq_status merge(rope *r, const mq_config *c, const char *theta_key, const char *factor_key)
{
    double v;
    if (mq_config_find(c, theta_key)) {
        MQ_TRY(mq_config_double(c, theta_key, 0.0, 1e18, &v));
        MQ_TRY(set(&r->theta, v, theta_key, c));
    }
    if (mq_config_find(c, factor_key)) {
        MQ_TRY(mq_config_double(c, factor_key, 0.0, 1.0, &v));
        MQ_TRY(set(&r->factor, v, factor_key, c));
    }
    return MQ_OK;
}

static mq_status merge_object(rope *r, const mq_config *c)
{
    MQ_TRY(mq_config_only_string(c, "rope_type", "default"));
    MQ_TRY(mq_config_only_string(c, "type", "default"));
    return merge(r, c, "rope_theta", "partial_rotary_factor");
}

/* rope_scaling, or rope_parameters: an object for all layers, or one per layer type. */
static mq_status read_object(rope *full, rope *swa, const mq_config *c, const char *key)
{
    static const char *const kinds[2] = {"full_attention", "sliding_attention"};
    const mq_json_node *n, *kind;
    MQ_TRY(mq_config_object(c, key, &n));
    if (!n)
        return MQ_OK;
    char where[256], inner_where[300];
    snprintf(where, sizeof where, "%.200s: %s", c->where, key);
    mq_config o = {n, where, c->err};
    bool by_kind = false;
    for (int k = 0; k < 2; k++) {
        MQ_TRY(mq_config_object(&o, kinds[k], &kind));
        if (!kind)
            continue;
        by_kind = true;
        snprintf(inner_where, sizeof inner_where, "%s: %s", where, kinds[k]);
        mq_config inner = {kind, inner_where, c->err};
        rope *r = k ? swa : full;
        rope unused = {0.0, 0.0};
        MQ_TRY(merge_object(r ? r : &unused, &inner));
    }
    return by_kind ? MQ_OK : merge_object(full, &o);
}

static mq_status finish(mq_attn_geometry *a, const rope *r, const mq_config *c, const char *theta_key)
{
    if (r->theta == 0.0)
        return mq_fail(c->err, MQ_E_FORMAT, "%s: %s is missing", c->where, theta_key);
    a->rope_theta = r->theta;
    a->rotary_dims = (int)((double)a->head_dim * (r->factor == 0.0 ? 1.0 : r->factor));
    if (a->rotary_dims < 2 || a->rotary_dims % 2 != 0)
        return mq_fail(c->err, MQ_E_UNSUPPORTED,
                       "%s: partial_rotary_factor: %d rotary dims of %d, only an even number is supported", c->where,
                       a->rotary_dims, a->head_dim);
    return MQ_OK;
}

mq_status mq_rope_config_read(mq_attn_geometry *full, mq_attn_geometry *swa, const mq_config *c)
{
    rope rf = {0.0, 0.0}, rs = {0.0, 0.0};
    MQ_TRY(merge(&rf, c, "rope_theta", "partial_rotary_factor"));
    if (swa)
        MQ_TRY(merge(&rs, c, "swa_rope_theta", "swa_partial_rotary_factor"));
    MQ_TRY(read_object(&rf, swa ? &rs : NULL, c, "rope_scaling"));
    MQ_TRY(read_object(&rf, swa ? &rs : NULL, c, "rope_parameters"));
    MQ_TRY(finish(full, &rf, c, "rope_theta"));
    if (!swa)
        return MQ_OK;
    if (rs.factor == 0.0)
        rs.factor = rf.factor;
    return finish(swa, &rs, c, "swa_rope_theta");
}
