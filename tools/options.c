/* Options of the command lines: long options only, "--opt V" or "--opt=V", from one table per tool
 * that also makes
 * --help.  Unknown options, repeated options, missing and out-of-range values are errors that say
 * what was expected. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"

static void print_help(const mq_cli *c)
{
    printf("usage: %s %s\n\n%s\n\noptions:\n", c->tool, c->usage, c->summary);
    for (int i = 0; i < c->n_opts; i++) {
        const mq_opt *o = &c->opts[i];
        char left[64];
        const char *value = o->choices ? o->choices : o->value_name;
        snprintf(left, sizeof left, "--%s%s%s", o->name, value && value[0] ? " " : "",
                 value ? value : "");
        printf("  %-36s %s%s\n", left, o->help, o->kind == MQ_OPT_LATER ? " (not built yet)" : "");
    }
    printf("  %-36s %s\n", "--json FILE|-",
           "write one JSON object with the result, also on failure");
    printf("  %-36s %s\n", "--quiet", "no progress and no notices");
    printf("  %-36s %s\n  %-36s %s\n", "--help", "this text", "--version", "the version");
}

/* Does the list "a|b|c" hold value? */
static bool in_choices(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = choices; p && *p;) {
        const char *end = strchr(p, '|');
        size_t m = end ? (size_t)(end - p) : strlen(p);
        if (m == n && memcmp(p, value, n) == 0)
            return true;
        p = end ? end + 1 : NULL;
    }
    return false;
}

/* strtod and strtoll take more than people mean: leading space, "+", "inf", "0x1p3". */
static bool is_plain_number(const char *value)
{
    const char *digits = value[0] == '-' ? value + 1 : value;
    return ((digits[0] >= '0' && digits[0] <= '9') || digits[0] == '.') && !strpbrk(digits, "xX");
}

static mq_status read_int(const mq_opt *o, const char *value, mq_err *err)
{
    char *end;
    errno = 0;
    long long x = strtoll(value, &end, 10);
    if (!is_plain_number(value) || end == value || *end || errno || x < o->min || x > o->max)
        return mq_fail(err, MQ_E_ARG, "--%s %s: expected a whole number from %lld to %lld", o->name,
                       value, (long long)o->min, (long long)o->max);
    *(int64_t *)o->out = x;
    return MQ_OK;
}

static mq_status read_size(const mq_opt *o, const char *value, mq_err *err)
{
    static const char suffixes[] = "KMGTP";
    char *end;
    errno = 0;
    double x = strtod(value, &end);
    const char *at = *end ? strchr(suffixes, *end >= 'a' ? *end - 32 : *end) : NULL;
    double unit = at ? ldexp(1.0, 10 * (int)(at - suffixes + 1)) : 1.0;
    if (at)
        end++;
    if (end != value && (strcmp(end, "B") == 0 || (at && strcmp(end, "iB") == 0)))
        end += strlen(end);
    if (!is_plain_number(value) || end == value || *end || errno || !(x * unit >= (double)o->min) ||
        !(x * unit <= 9e18))
        return mq_fail(err, MQ_E_ARG,
                       "--%s %s: expected a size of at least %lld bytes, such as 48G or 512M",
                       o->name, value, (long long)o->min);
    *(int64_t *)o->out = (int64_t)(x * unit);
    return MQ_OK;
}

static mq_status read_double(const mq_opt *o, const char *value, mq_err *err)
{
    char *end;
    errno = 0;
    double x = strtod(value, &end);
    if (!is_plain_number(value) || end == value || *end || errno || !isfinite(x) || x < o->dmin ||
        x > o->dmax)
        return mq_fail(err, MQ_E_ARG, "--%s %s: expected a number from %g to %g", o->name, value,
                       o->dmin, o->dmax);
    *(double *)o->out = x;
    return MQ_OK;
}

static mq_status read_value(const mq_opt *o, const char *value, mq_err *err)
{
    if (o->choices && o->kind != MQ_OPT_LATER && !in_choices(o->choices, value))
        return mq_fail(err, MQ_E_ARG, "--%s %s: expected one of %s", o->name, value, o->choices);
    switch (o->kind) {
    case MQ_OPT_INT:
        return read_int(o, value, err);
    case MQ_OPT_SIZE:
        return read_size(o, value, err);
    case MQ_OPT_DOUBLE:
        return read_double(o, value, err);
    case MQ_OPT_LIST: {
        mq_opt_list *list = o->out;
        if (list->n == (int)(sizeof list->items / sizeof list->items[0]))
            return mq_fail(err, MQ_E_ARG, "--%s: given more than %d times", o->name, list->n);
        list->items[list->n++] = value;
        return MQ_OK;
    }
    case MQ_OPT_STRING:
        *(const char **)o->out = value;
        return MQ_OK;
    case MQ_OPT_FLAG:
    case MQ_OPT_LATER:
        break;
    }
    return mq_fail(err, MQ_E_BUG, "--%s: no value is read for this kind", o->name);
}

static const mq_opt *find_opt(const mq_cli *c, const char *name, size_t n)
{
    for (int i = 0; i < c->n_opts; i++)
        if (strlen(c->opts[i].name) == n && memcmp(c->opts[i].name, name, n) == 0)
            return &c->opts[i];
    return NULL;
}

/* One long option at argv[*at]; consumes its value. */
static mq_status take_option(mq_cli *c, const mq_opt *o, uint64_t *seen, int argc, char **argv,
                             int *at, mq_err *err)
{
    const char *equals = strchr(argv[*at], '=');
    if (o->kind == MQ_OPT_LATER)
        return mq_fail(err, MQ_E_ARG, "--%s: not built yet", o->name);
    uint64_t bit = o >= c->opts && o < c->opts + c->n_opts ? 1ull << (o - c->opts) : 1ull << 63;
    if ((*seen & bit) && o->kind != MQ_OPT_LIST)
        return mq_fail(err, MQ_E_ARG, "--%s: given twice", o->name);
    *seen |= bit;
    if (o->given)
        *o->given = true;
    if (o->kind == MQ_OPT_FLAG) {
        if (equals)
            return mq_fail(err, MQ_E_ARG, "--%s takes no value", o->name);
        *(bool *)o->out = true;
        return MQ_OK;
    }
    const char *value = equals ? equals + 1 : *at + 1 < argc ? argv[++*at] : NULL;
    if (!value)
        return mq_fail(err, MQ_E_ARG, "--%s needs a value (%s)", o->name,
                       o->choices ? o->choices : o->value_name);
    return read_value(o, value, err);
}

/* What parsing has met so far. */
typedef struct parse_state {
    mq_opt json, quiet;
    uint64_t seen, seen_json, seen_quiet;
    bool only_args;
} parse_state;

static mq_status take_word(mq_cli *c, parse_state *p, int argc, char **argv, int *at, mq_err *err)
{
    const char *word = argv[*at];
    if (p->only_args || word[0] != '-' || word[1] == '\0') {
        if (c->n_args == (int)(sizeof c->args / sizeof c->args[0]) || c->n_args == c->n_args_max)
            return mq_fail(err, MQ_E_ARG, "unexpected argument '%s'; usage: %s %s", word, c->tool,
                           c->usage);
        c->args[c->n_args++] = word;
        return MQ_OK;
    }
    if (strcmp(word, "--") == 0) {
        p->only_args = true;
        return MQ_OK;
    }
    size_t n = word[1] == '-' ? strcspn(word + 2, "=") : 0;
    if (n == 4 && memcmp(word + 2, "json", 4) == 0)
        return take_option(c, &p->json, &p->seen_json, argc, argv, at, err);
    if (n == 5 && memcmp(word + 2, "quiet", 5) == 0)
        return take_option(c, &p->quiet, &p->seen_quiet, argc, argv, at, err);
    const mq_opt *o = n ? find_opt(c, word + 2, n) : NULL;
    if (!o)
        return mq_fail(err, MQ_E_ARG, "unknown option '%s'; --help lists them", word);
    return take_option(c, o, &p->seen, argc, argv, at, err);
}

mq_status mq_cli_parse(mq_cli *c, int argc, char **argv, bool *done, mq_err *err)
{
    parse_state p = {
        .json = {.name = "json",
                 .kind = MQ_OPT_STRING,
                 .out = &c->json_path,
                 .value_name = "FILE|-"},
        .quiet = {.name = "quiet", .kind = MQ_OPT_FLAG, .out = &c->quiet, .value_name = ""},
    };
    *done = false;
    c->started = mq_cli_now();
    c->argc = argc;
    c->argv = argv;
    c->json_body = mq_buf_empty();
    c->json = mq_json_write_begin(&c->json_body,
                                  2); /* members of the result object, after the common ones */
    c->json.depth = 1;
    c->json.need_comma = true;
    mq_status st = MQ_OK;
    for (int i = 1; i < argc; i++) {
        if (!p.only_args && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "--version") == 0)) {
            if (argv[i][2] == 'h')
                print_help(c);
            else
                printf("%s %s\n", c->tool, MQ_VERSION);
            *done = true;
            return MQ_OK;
        }
        mq_err now;
        mq_status one = take_word(c, &p, argc, argv, &i, &now);
        if (one != MQ_OK &&
            st == MQ_OK) { /* keep reading: a --json further on still gets its object */
            st = one;
            *err = now;
        }
    }
    if (st == MQ_OK && c->n_args < c->n_args_min)
        st = mq_fail(err, MQ_E_ARG, "usage: %s %s", c->tool, c->usage);
    return st;
}
