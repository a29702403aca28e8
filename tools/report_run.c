/* Gathers what the page shows: the recipe as people read it, layers with their accounts, input files. */
#include "tools/report_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/file.h"
#include "tools/convert_report.h"
#include "tools/report_html.h"

enum { MAX_FACTS = 24 };

/* Facts with their texts. */
typedef struct facts {
    mq_report_fact *items; /* [n] */
    int64_t n, cap;
    bool nomem;
} facts;

static void add_fact(facts *f, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static void add_fact(facts *f, const char *name, const char *fmt, ...)
{
    char value[320];
    va_list args;
    va_start(args, fmt);
    vsnprintf(value, sizeof value, fmt, args);
    va_end(args);
    if (f->n == f->cap) {
        int64_t cap = 2 * f->cap + MAX_FACTS;
        mq_report_fact *grown = realloc(f->items, (size_t)cap * sizeof *grown);
        if (!grown) {
            f->nomem = true;
            return;
        }
        f->items = grown;
        f->cap = cap;
    }
    mq_report_fact one = {strdup(name), strdup(value)};
    f->nomem = f->nomem || !one.name || !one.value;
    f->items[f->n++] = one;
}

static void facts_release(facts *f)
{
    for (int64_t i = 0; i < f->n; i++) {
        free((char *)f->items[i].name);
        free((char *)f->items[i].value);
    }
    free(f->items);
}

static void add_recipe(facts *f, const mq_convert_job *job)
{
    const mq_recipe *r = &job->recipe;
    const mq_recipe_calib *c = &r->calib;
    char hex[MQ_SHA256_HEX];
    add_fact(f, "method", "%s", r->method);
    if (r->group)
        add_fact(f, "group", "%d", r->group);
    add_fact(f, "ranks", "%d", job->plan->n_ranks);
    add_fact(f, "compression", "%s", r->compress);
    add_fact(f, "backend", "%s, instruction set %s", r->backend, r->isa);
    if (!mq_convert_is_calibrated(job))
        return;
    mq_sha256_hex(hex, c->text);
    add_fact(f, "calibration tokens", "%lld in windows of %lld", (long long)c->tokens, (long long)c->window);
    add_fact(f, "their SHA-256", "%s", hex);
    add_fact(f, "recipe", "%s", c->options);
    add_fact(f, "matrix library", "%s", c->library);
}

static void add_source(facts *f, const mq_inputs *in)
{
    char hex[MQ_SHA256_HEX];
    for (int64_t i = 0; i < in->n; i++) {
        mq_sha256_hex(hex, in->items[i].sha256);
        add_fact(f, in->items[i].name, "%lld bytes, %s", (long long)in->items[i].bytes, hex);
    }
}

/* ---- Layers ---- */

/* Accounts of a layer that was quantized without calibration: errors of the weights alone. */
static mq_calib_account *plain_accounts(const double *stats, int64_t n_experts)
{
    mq_calib_account *a = calloc((size_t)(n_experts * MQ_CALIB_MATRICES), sizeof *a);
    for (int64_t i = 0; a && i < n_experts * MQ_CALIB_MATRICES; i++)
        a[i] = (mq_calib_account){.path = MQ_CALIB_PLAIN, .err2 = stats[2 * i], .norm2 = stats[2 * i + 1]};
    return a;
}

/* One layer; *owned is what has to be freed. */
static mq_status make_layer(mq_report_layer *l, mq_calib_account **owned, const mq_convert_job *job, int layer,
                            const mq_convert_done *done, mq_err *err)
{
    int64_t n_experts = job->source->model.n_experts;
    mq_scheme scheme = (mq_scheme)job->expert_scheme[layer];
    *owned = NULL;
    *l = (mq_report_layer){.layer = layer, .scheme = mq_scheme_name(scheme), .output_rel_error = NAN, .output_cosine = NAN};
    if (done->account.n_experts > 0) {
        l->n_experts = done->account.n_experts;
        l->matrices = done->account.matrices;
        if (done->account.loss.measured) {
            l->output_rel_error = done->account.loss.output_rel_error;
            l->output_cosine = done->account.loss.output_cosine;
        }
    } else if (scheme == MQ_SCHEME_INT4 && done->entry.n_stats == n_experts * MQ_CALIB_MATRICES * 2) {
        *owned = plain_accounts(done->entry.stats, n_experts);
        if (!*owned)
            return mq_fail(err, MQ_E_NOMEM, "out of memory");
        l->n_experts = n_experts;
        l->matrices = *owned;
    }
    return MQ_OK;
}

static mq_status make_layers(mq_report_layer *layers, mq_calib_account **owned, int64_t *n, const mq_convert_job *job,
                             const mq_convert_done *done, mq_err *err)
{
    *n = 0;
    for (int64_t g = 0; g < job->n_groups; g++) {
        const mq_file_spec *f = &job->plan->files[job->groups[g].file0];
        if (f->kind != MQ_SHARD_LAYER || !job->source->model.is_moe[f->layer])
            continue;
        MQ_TRY(make_layer(&layers[*n], &owned[*n], job, f->layer, &done[g], err));
        ++*n;
    }
    return MQ_OK;
}

/* ---- The page ---- */

static mq_status save_page(const char *path, const mq_buf *page, mq_err *err)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    mq_status st = dir ? mq_file_save(dir, slash ? slash + 1 : path, page->data, page->n_bytes, err)
                       : mq_fail(err, MQ_E_NOMEM, "out of memory");
    free(dir);
    return mq_wrap(err, st, "--report");
}

static mq_status write_page(const char *path, const mq_report *r, mq_err *err)
{
    mq_buf page = mq_buf_empty();
    mq_status st = mq_report_html(&page, r, err);
    if (st == MQ_OK)
        st = save_page(path, &page, err);
    mq_buf_release(&page);
    return st;
}

mq_status mq_report_write(const char *path, const mq_convert_job *job, const mq_convert_done *done, const mq_inputs *in,
                          mq_err *err)
{
    const mq_model *m = &job->source->model;
    facts recipe = {.n = 0}, source = {.n = 0};
    mq_buf notices = mq_buf_empty();
    char title[128];
    mq_report r = {.title = title, .calibrated = mq_convert_is_calibrated(job)};
    mq_report_layer *layers = calloc((size_t)m->n_layers + 1, sizeof *layers);
    mq_calib_account **owned = calloc((size_t)m->n_layers + 1, sizeof *owned);
    if (job->recipe.group)
        snprintf(title, sizeof title, "%s, %s, groups of %d", m->model_type, job->recipe.method, job->recipe.group);
    else
        snprintf(title, sizeof title, "%s, experts carried over", m->model_type);
    add_recipe(&recipe, job);
    add_source(&source, in);
    mq_convert_notices(&notices, job);
    mq_status st = layers && owned && !recipe.nomem && !source.nomem ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = mq_buf_status(&notices, err);
    if (st == MQ_OK)
        st = make_layers(layers, owned, &r.n_layers, job, done, err);
    r.recipe = recipe.items;
    r.n_recipe = recipe.n;
    r.notices = notices.data;
    r.source = source.items;
    r.n_source = source.n;
    r.layers = layers;
    if (st == MQ_OK)
        st = write_page(path, &r, err);
    for (int l = 0; owned && l < m->n_layers; l++)
        free(owned[l]);
    free(owned);
    free(layers);
    facts_release(&recipe);
    facts_release(&source);
    mq_buf_release(&notices);
    return st;
}

int64_t mq_report_few_tokens(int64_t *smallest, const mq_convert_job *job, const mq_convert_done *done)
{
    int64_t n = 0, least = INT64_MAX;
    for (int64_t g = 0; g < job->n_groups; g++) {
        const mq_convert_account *a = &done[g].account;
        for (int64_t e = 0; e < a->n_experts; e++) {
            int64_t tokens = a->matrices[e * MQ_CALIB_MATRICES + MQ_CALIB_GATE].n_tokens;
            n += tokens < job->source->model.hidden / 4;
            least = tokens < least ? tokens : least;
        }
    }
    *smallest = least == INT64_MAX ? 0 : least;
    return n;
}
