/* Reads --calib and --recipe.  Numbers are plain decimals: no sign, no "inf", no hexadecimal. */
#include "tools/calib_options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A decimal number without a sign that takes up all of text. */
static bool read_number(double *out, const char *text)
{
    char *end;
    if (!((text[0] >= '0' && text[0] <= '9') || text[0] == '.') || strpbrk(text, "xXpP"))
        return false;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out);
}

mq_status mq_calib_files_read(mq_corpus_file **files, const mq_opt_list *list, mq_err *err)
{
    *files = calloc((size_t)list->n + 1, sizeof **files);
    if (!*files)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = MQ_OK;
    for (int i = 0; st == MQ_OK && i < list->n; i++) {
        const char *item = list->items[i], *at = strrchr(item, '@');
        double weight = 1;
        size_t n = at && read_number(&weight, at + 1) ? (size_t)(at - item) : strlen(item);
        char *path = strndup(item, n);
        (*files)[i] = (mq_corpus_file){path, weight};
        if (!path)
            st = mq_fail(err, MQ_E_NOMEM, "out of memory");
        else if (n == 0)
            st = mq_fail(err, MQ_E_ARG, "--calib %s: expected FILE or FILE@WEIGHT", item);
        else if (!(weight > 0) || weight > 1e9)
            st = mq_fail(err, MQ_E_ARG, "--calib %s: weight %g, expected a positive number up to 1e9", item, weight);
    }
    if (st != MQ_OK) {
        mq_calib_files_free(*files, list->n);
        *files = NULL;
    }
    return st;
}

void mq_calib_files_free(mq_corpus_file *files, int64_t n_files)
{
    for (int64_t i = 0; files && i < n_files; i++)
        free((char *)files[i].path);
    free(files);
}

/* ---- --recipe ---- */

static mq_status set_switch(bool *out, const char *key, const char *value, mq_err *err)
{
    *out = strcmp(value, "on") == 0;
    if (!*out && strcmp(value, "off") != 0)
        return mq_fail(err, MQ_E_ARG, "--recipe %s=%s: expected on or off", key, value);
    return MQ_OK;
}

static mq_status set_factor(float *out, const char *key, const char *value, mq_err *err)
{
    double x;
    if (!read_number(&x, value) || x > 1e6)
        return mq_fail(err, MQ_E_ARG, "--recipe %s=%s: expected a number from 0 to 1e6", key, value);
    *out = (float)x;
    return MQ_OK;
}

static mq_status set_count(int *out, const char *key, const char *value, int most, mq_err *err)
{
    size_t n = strspn(value, "0123456789");
    int x = n > 0 && n <= 3 && value[n] == '\0' ? atoi(value) : -1;
    if (x < 0 || x > most)
        return mq_fail(err, MQ_E_ARG, "--recipe %s=%s: expected a whole number from 0 to %d", key, value, most);
    *out = x;
    return MQ_OK;
}

static mq_status set_precision(mq_precision *out, const char *value, mq_err *err)
{
    bool bf16 = strcmp(value, "bf16") == 0;
    if (!bf16 && strcmp(value, "f32") != 0)
        return mq_fail(err, MQ_E_ARG, "--recipe precision=%s: expected f32 or bf16", value);
    *out = bf16 ? MQ_PRECISION_BF16 : MQ_PRECISION_F32;
    return MQ_OK;
}

static mq_status set_member(mq_calib_recipe *r, const char *key, const char *value, mq_err *err)
{
    const struct {
        const char *key;
        bool *on;
    } switches[] = {{"weighted-search", &r->weighted_search}, {"act-order", &r->act_order}, {"refit", &r->refit},
                    {"shrink", &r->shrink}, {"quantized-h", &r->quantized_h}, {"down-target", &r->down_target},
                    {"damp-columns", &r->damp_columns}};
    const struct {
        const char *key;
        float *factor;
    } factors[] = {{"kappa", &r->kappa}, {"damp", &r->damp}, {"damp-few", &r->damp_few},
                   {"target-few", &r->target_few}};
    const struct {
        const char *key;
        int *count, most;
    } counts[] = {{"weight", &r->weight_power, 2}, {"rounds", &r->rounds, 16}, {"descent", &r->descent, 64}};
    for (size_t i = 0; i < sizeof switches / sizeof switches[0]; i++)
        if (strcmp(key, switches[i].key) == 0)
            return set_switch(switches[i].on, key, value, err);
    for (size_t i = 0; i < sizeof factors / sizeof factors[0]; i++)
        if (strcmp(key, factors[i].key) == 0)
            return set_factor(factors[i].factor, key, value, err);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (strcmp(key, counts[i].key) == 0)
            return set_count(counts[i].count, key, value, counts[i].most, err);
    if (strcmp(key, "precision") == 0)
        return set_precision(&r->precision, value, err);
    return mq_fail(err, MQ_E_ARG,
                   "--recipe %s: expected precision, weight, weighted-search, act-order, refit, rounds, descent, shrink, quantized-h, "
                   "down-target, target-few, kappa, damp-columns, damp or damp-few",
                   key);
}

mq_status mq_calib_recipe_read(mq_calib_recipe *r, const char *text, mq_err *err)
{
    char *copy = strdup(text);
    if (!copy)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = MQ_OK;
    for (char *at = copy, *next; st == MQ_OK && at; at = next) {
        next = strchr(at, ',');
        if (next)
            *next++ = '\0';
        char *equals = strchr(at, '=');
        if (equals)
            *equals = '\0';
        st = equals ? set_member(r, at, equals + 1, err)
                    : mq_fail(err, MQ_E_ARG, "--recipe %s: expected KEY=VALUE", at);
    }
    free(copy);
    return st;
}
