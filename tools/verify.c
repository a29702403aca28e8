/* See verify.h.  The checks, cheapest first: hashes and structure, weights, quality.  Tables and
 * JSON members are verify_report.c's. */
#include "tools/verify.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/corpus.h"
#include "src/documents.h"
#include "src/file.h"
#include "src/machine.h"
#include "src/pool.h"
#include "src/tokenizer.h"
#include "tools/verify_report.h"

enum {
    MAX_CONFIG_BYTES = 16 << 20,
    DEFAULT_WINDOW = 2048,
    DEFAULT_WINDOWS = 32
};

typedef struct verify_state {
    mq_cli *cli;
    const mq_verify_options *o;
    bool text_out; /* tables on stdout */
    bool missed;   /* a difference or a threshold: exit 1 */
    mq_packed *packed;
    mq_source *source; /* NULL without --source */
    mq_tokens ids;     /* of --text */
    int64_t window, n_windows;
    mq_progress *progress;
    int64_t done;
} verify_state;

static void add_bytes(void *ctx, int64_t n)
{
    mq_progress_add(((verify_state *)ctx)->progress, n);
}

static void set_bytes(void *ctx, int64_t done, int64_t total)
{
    verify_state *v = ctx;
    (void)total;
    mq_progress_add(v->progress, done - v->done);
    v->done = done;
}

static void set_units(void *ctx, int64_t done, int64_t total)
{
    verify_state *v = ctx;
    int64_t permille = total > 0 ? (int64_t)(1000.0 * (double)done / (double)total) : 0;
    mq_progress_add(v->progress, permille - v->done);
    v->done = permille;
}

/* One line per check, and an entry in checks[]: kept until the end, because the JSON array is
 * written at once. */
typedef struct check_row {
    char id[32];
    bool ok;
    char expected[96], found[160];
} check_row;

enum { MAX_CHECKS = 16 };
typedef struct checks {
    check_row rows[MAX_CHECKS];
    int n;
} checks;

static void add_check(verify_state *v, checks *list, const char *id, bool ok, const char *expected,
                      const char *found)
{
    check_row *r = &list->rows[list->n++];
    snprintf(r->id, sizeof r->id, "%s", id);
    snprintf(r->expected, sizeof r->expected, "%s", expected);
    snprintf(r->found, sizeof r->found, "%s", found);
    r->ok = ok;
    v->missed = v->missed || !ok;
}

static void add_limit(verify_state *v, checks *list, const char *id, bool given, bool ok,
                      const char *op, double limit, double value)
{
    char expected[64], found[64];
    if (!given)
        return;
    snprintf(expected, sizeof expected, "%s %g", op, limit);
    snprintf(found, sizeof found, "%.6g", value);
    add_check(v, list, id, ok, expected, found);
}

static void report_checks(verify_state *v, const checks *list)
{
    mq_json_write_array(&v->cli->json, "checks");
    for (int i = 0; i < list->n; i++) {
        const check_row *r = &list->rows[i];
        mq_json_write_object(&v->cli->json, NULL);
        mq_json_write_string(&v->cli->json, "id", r->id);
        mq_json_write_bool(&v->cli->json, "ok", r->ok);
        mq_json_write_string(&v->cli->json, "expected", r->expected);
        mq_json_write_string(&v->cli->json, "found", r->found);
        mq_json_write_end_object(&v->cli->json);
        if (v->text_out)
            printf("%s  %-18s expected %s, found %s\n", r->ok ? "pass" : "FAIL", r->id, r->expected,
                   r->found);
    }
    mq_json_write_end_array(&v->cli->json);
}

static int64_t packed_bytes(const verify_state *v)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < v->packed->manifest.n_shards; i++)
        bytes += v->packed->manifest.shards[i].bytes;
    return bytes;
}

static mq_status verify_integrity(verify_state *v, checks *list, int n_threads, mq_err *err)
{
    const mq_manifest *m = &v->packed->manifest;
    v->done = 0;
    MQ_TRY(mq_progress_create(&v->progress, v->cli, "checking hashes and structure",
                              packed_bytes(v), "B", err));
    mq_status st = mq_packed_verify(v->packed, n_threads, v->o->memory_bytes, set_bytes, v, mq_cli_stopped, err);
    mq_progress_free(v->progress);
    v->progress = NULL;
    MQ_TRY(st);
    char found[96];
    snprintf(found, sizeof found, "%lld shards and %lld other files sound", (long long)m->n_shards,
             (long long)m->n_extra);
    add_check(v, list, "integrity", true, "hashes, structure, values", found);
    return mq_cli_check_stop(err);
}

/* config.json on both sides: the same weights under another rope base or top-k are another model.
 */
static mq_status verify_config(verify_state *v, checks *list, mq_err *err)
{
    mq_buf side[2] = {mq_buf_empty(), mq_buf_empty()};
    const char *dirs[2] = {v->o->source, v->packed->dir};
    mq_status st = MQ_OK;
    for (int i = 0; i < 2 && st == MQ_OK; i++) {
        char *path = mq_path_join(dirs[i], "config.json");
        st = path ? mq_file_load(&side[i], path, MAX_CONFIG_BYTES, err)
                  : mq_fail(err, MQ_E_NOMEM, "out of memory");
        free(path);
    }
    if (st == MQ_OK) {
        bool same = side[0].n_bytes == side[1].n_bytes &&
                    (side[0].n_bytes == 0 ||
                     memcmp(side[0].data, side[1].data, (size_t)side[0].n_bytes) == 0);
        add_check(v, list, "config", same, "config.json equal",
                  same ? "config.json equal" : "config.json differs");
    }
    mq_buf_release(&side[0]);
    mq_buf_release(&side[1]);
    return st;
}

static void check_weights(verify_state *v, checks *list, const mq_comparison *w)
{
    double worst = 0;
    bool lossless = true, has_mxfp4 = false, has_int4 = false;
    for (int64_t i = 0; i < w->n_matrices; i++) {
        const mq_matrix_error *e = &w->matrices[i];
        double rel = mq_matrix_relative_error(e);
        worst = rel > worst ? rel : worst;
        has_mxfp4 = has_mxfp4 || e->scheme == MQ_SCHEME_MXFP4;
        has_int4 = has_int4 || e->scheme == MQ_SCHEME_INT4;
        lossless = lossless && (e->scheme != MQ_SCHEME_MXFP4 || e->exact);
    }
    add_check(v, list, "untouched", w->n_different == 0, "equal byte for byte",
              w->n_different ? w->first_difference : "equal byte for byte");
    if (has_mxfp4)
        add_check(v, list, "mxfp4", lossless, "carried over without loss",
                  lossless ? "no loss" : "values changed");
    add_limit(v, list, "weight_error", has_int4, worst <= v->o->max_weight_error,
              "<=", v->o->max_weight_error, worst);
}

static mq_status verify_weights(verify_state *v, checks *list, int n_threads, mq_err *err)
{
    mq_comparison w;
    memset(&w, 0, sizeof w);
    mq_status st = verify_config(v, list, err);
    if (st == MQ_OK)
        st = mq_progress_create(&v->progress, v->cli, "comparing weights", packed_bytes(v), "B",
                                err);
    if (st == MQ_OK)
        st = mq_compare_weights(&w, v->source, v->packed, n_threads, v->o->memory_bytes, add_bytes,
                                v, mq_cli_stopped, err);
    mq_progress_free(v->progress);
    v->progress = NULL;
    if (st == MQ_OK) {
        mq_report_weights(v->cli, &w, v->text_out);
        check_weights(v, list, &w);
    }
    mq_comparison_release(&w);
    return st;
}

/* All of --text; .jsonl as well as plain text. */
static mq_status read_text(verify_state *v, mq_err *err)
{
    const char *dir = v->o->source ? v->o->source : v->packed->dir;
    char *path = mq_path_join(dir, "tokenizer.json");
    mq_tokenizer *tokenizer = NULL;
    mq_status st =
        path ? mq_tokenizer_open(&tokenizer, path, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = mq_corpus_tokens(&v->ids, v->o->text, tokenizer,
                              mq_tokenizer_find(tokenizer, MQ_DOCUMENTS_SEPARATOR), err);
    mq_tokenizer_close(tokenizer);
    free(path);
    return st;
}

/* The windows asked for, or by default as many as the text and the model's limit allow. */
static mq_status choose_windows(verify_state *v, mq_err *err)
{
    const mq_verify_options *o = v->o;
    int64_t limit = v->packed->model.max_positions, n_ids = v->ids.n;
    v->window = o->window ? o->window : limit < DEFAULT_WINDOW ? limit : DEFAULT_WINDOW;
    if (v->window > limit)
        return mq_fail(err, MQ_E_ARG, "--window %lld: the model's limit is %lld positions",
                       (long long)v->window, (long long)limit);
    int64_t fit = n_ids > 0 ? (n_ids - 1) / v->window : 0;
    int64_t wanted = o->n_windows            ? o->n_windows
                     : fit < 1               ? 1
                     : fit < DEFAULT_WINDOWS ? fit
                                             : DEFAULT_WINDOWS;
    if (wanted > fit)
        return mq_fail(
            err, MQ_E_ARG, "%s has %lld tokens, enough for %lld windows of %lld, expected %lld",
            o->text, (long long)n_ids, (long long)fit, (long long)v->window, (long long)wanted);
    v->n_windows = wanted;
    return MQ_OK;
}

/* The source and the text, before hours go into hashes: a wrong path or window is told at once. */
static mq_status open_inputs(verify_state *v, mq_err *err)
{
    if (v->o->source) {
        MQ_TRY(mq_source_open(&v->source, v->o->source, err));
        mq_cli_warn_lines(v->cli, &v->source->notices);
    } else {
        mq_cli_warn_lines(v->cli, &v->packed->model.warnings);
    }
    if (!v->o->text)
        return MQ_OK;
    MQ_TRY(read_text(v, err));
    return choose_windows(v, err);
}

/* The device's budget: --memory, or half of the machine's memory and most of what is free on a GPU. */
static mq_status quality_memory(int64_t *out, const verify_state *v, const mq_kernels *k, mq_dev *dev, mq_err *err)
{
    int64_t free_bytes, total;
    *out = v->o->memory_bytes;
    if (v->o->memory_given || !strcmp(k->name, "cpu"))
        return MQ_OK;
    MQ_TRY(k->memory(dev, &free_bytes, &total, err));
    int64_t most = free_bytes / 8 * 7;
    *out = *out < most ? *out : most;
    return MQ_OK;
}

static mq_status run_on(verify_state *v, mq_quality *q, const mq_kernels *k, mq_dev *dev, int n_threads, mq_err *err)
{
    mq_quality_options options = {.window = v->window,
                                  .n_windows = v->n_windows,
                                  .progress = set_units,
                                  .progress_ctx = v,
                                  .stopped = mq_cli_stopped};
    const mq_store_options store = {.n_ranks = 1, .n_threads = n_threads, .check = true, .kernels = k, .dev = dev};
    mq_store *a = NULL, *b = NULL;
    mq_status st = k->set_precision(dev, v->o->bf16 ? MQ_PRECISION_BF16 : MQ_PRECISION_F32, err);
    if (st == MQ_OK)
        st = quality_memory(&options.memory_bytes, v, k, dev, err);
    if (st == MQ_OK)
        st = mq_store_open(&a, v->o->source ? v->o->source : v->packed->dir, &store, err);
    if (st == MQ_OK && v->o->source)
        st = mq_store_open(&b, v->packed->dir, &store, err);
    if (st == MQ_OK)
        st = mq_progress_create(&v->progress, v->cli, "running the model", 1000, "", err);
    if (st == MQ_OK)
        st = mq_quality_run(q, k, dev, a, b, v->ids.ids, v->ids.n, &options, err);
    mq_progress_free(v->progress);
    v->progress = NULL;
    mq_store_close(a);
    mq_store_close(b);
    return st;
}

static mq_status run_quality(verify_state *v, mq_quality *q, int n_threads, mq_err *err)
{
    const char *name;
    mq_cli_devices devices;
    mq_dev *dev;
    MQ_TRY(mq_cli_device(&name, &devices, v->o->device, err));
    const mq_kernels *k = mq_kernels_find(name);
    v->done = 0;
    MQ_TRY(k->dev_open(&dev, devices.n > 0 ? devices.ordinals[0] : 0, n_threads, NULL, err));
    mq_json_write_string(&v->cli->json, "device", k->dev_name(dev));
    mq_json_write_string(&v->cli->json, "precision", v->o->bf16 ? "bf16" : "f32");
    mq_status st = run_on(v, q, k, dev, n_threads, err);
    k->dev_close(dev);
    return st;
}

/* Weights that are finite can still overflow on the way: that is damage, not a figure. */
static mq_status check_finite(const verify_state *v, const mq_quality *q, mq_err *err)
{
    const char *dirs[2] = {v->o->source ? v->o->source : v->packed->dir, v->packed->dir};
    const double ppl[2] = {q->ppl_a, v->o->source ? q->ppl_b : q->ppl_a};
    for (int i = 0; i < 2; i++)
        if (!isfinite(ppl[i]))
            return mq_fail(err, MQ_E_NUMERIC,
                           "%s: the perplexity is %g, expected a finite number: its weights "
                           "overflow",
                           dirs[i], ppl[i]);
    if (v->o->source && !isfinite(q->kl_mean))
        return mq_fail(err, MQ_E_NUMERIC, "the KL divergence is %g, expected a finite number",
                       q->kl_mean);
    return MQ_OK;
}

static mq_status verify_quality(verify_state *v, checks *list, int n_threads, mq_err *err)
{
    const mq_verify_options *o = v->o;
    mq_quality q;
    memset(&q, 0, sizeof q);
    mq_status st = run_quality(v, &q, n_threads, err);
    if (st == MQ_OK)
        st = check_finite(v, &q, err);
    if (st == MQ_OK) {
        mq_report_quality(v->cli, &q, o->source != NULL, v->text_out);
        double increase = 100 * (q.ppl_b / q.ppl_a - 1);
        add_limit(v, list, "ppl_increase_pct", o->has_max_ppl_increase,
                  increase <= o->max_ppl_increase, "<=", o->max_ppl_increase, increase);
        add_limit(v, list, "kl_mean", o->has_max_kl, q.kl_mean <= o->max_kl, "<=", o->max_kl,
                  q.kl_mean);
        add_limit(v, list, "top1_agreement", o->has_min_top1, q.top1_agreement >= o->min_top1,
                  ">=", o->min_top1, q.top1_agreement);
    }
    mq_quality_release(&q);
    return st;
}

static mq_status run_checks(verify_state *v, checks *list, mq_err *err)
{
    const mq_verify_options *o = v->o;
    int n_threads = o->n_threads ? o->n_threads : mq_cpu_count();
    MQ_TRY(mq_packed_open(&v->packed, o->packed, err));
    mq_report_model(v->cli, v->packed, v->text_out);
    if (o->list)
        MQ_TRY(mq_report_list(v->cli, v->packed, v->text_out, err));
    MQ_TRY(open_inputs(v, err));
    MQ_TRY(verify_integrity(v, list, n_threads, err));
    if (o->source)
        MQ_TRY(verify_weights(v, list, n_threads, err));
    return o->text ? verify_quality(v, list, n_threads, err) : MQ_OK;
}

static mq_status check_options(const mq_verify_options *o, mq_err *err)
{
    const char *name;
    if ((o->has_max_ppl_increase || o->has_max_kl || o->has_min_top1) && !(o->source && o->text))
        return mq_fail(err, MQ_E_ARG,
                       "--max-ppl-increase, --max-kl and --min-top1 need --source and --text");
    if ((o->window || o->n_windows) && !o->text)
        return mq_fail(err, MQ_E_ARG, "--window and --windows need --text");
    if (o->has_max_weight_error && !o->source)
        return mq_fail(err, MQ_E_ARG, "--max-weight-error needs --source");
    return mq_cli_device(&name, NULL, o->device, err);
}

mq_status mq_verify(bool *missed, const mq_verify_options *o, mq_cli *cli, mq_err *err)
{
    mq_verify_options options = *o;
    verify_state v = {.cli = cli, .o = &options, .text_out = mq_cli_text(cli)};
    checks list = {.n = 0};
    *missed = false;
    MQ_TRY(check_options(o, err));
    options.memory_given = options.memory_bytes != 0;
    if (!options.memory_given)
        options.memory_bytes = mq_machine_bytes() / 2;
    mq_status st = run_checks(&v, &list, err);
    if (st == MQ_E_STOPPED)
        st = mq_cli_check_stop(err); /* "stopped by signal 2" says more than the layer below */
    report_checks(&v, &list);
    if (st == MQ_OK && v.text_out)
        printf("%s\n", v.missed ? "RESULT: FAILED" : "RESULT: passed");
    mq_tokens_release(&v.ids);
    mq_source_close(v.source);
    mq_packed_close(v.packed);
    *missed = v.missed;
    return st;
}
