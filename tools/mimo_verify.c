/* mimo-verify: prove a packed model: hashes and structure; weights against the source; perplexity and KL divergence. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "src/pool.h"
#include "src/tokenizer.h"
#include "tools/verify_report.h"

enum { MAX_TEXT_BYTES = 1 << 30, DEFAULT_WINDOW = 2048, DEFAULT_WINDOWS = 32 };

typedef struct verify_options {
    const char *source, *text, *device;
    int64_t window, windows, threads, memory;
    bool window_given, windows_given, list, ppl_limit, kl_limit, top1_limit;
    double max_ppl_increase, max_kl, min_top1, max_weight_error;
} verify_options;

typedef struct verify_state {
    mq_cli *cli;
    verify_options *o;
    bool text_out; /* tables on stdout */
    bool missed;   /* a difference or a threshold: exit 1 */
    mq_packed *packed;
    mq_progress *progress;
    int64_t done;
} verify_state;

static void add_bytes(void *ctx, int64_t n) { mq_progress_add(((verify_state *)ctx)->progress, n); }

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

/* One line per check, and an entry in checks[]: kept until the end, because the JSON array is written at once. */
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

static void add_check(verify_state *v, checks *list, const char *id, bool ok, const char *expected, const char *found)
{
    check_row *r = &list->rows[list->n++];
    snprintf(r->id, sizeof r->id, "%s", id);
    snprintf(r->expected, sizeof r->expected, "%s", expected);
    snprintf(r->found, sizeof r->found, "%s", found);
    r->ok = ok;
    v->missed = v->missed || !ok;
}

static void add_limit(verify_state *v, checks *list, const char *id, bool given, bool ok, const char *op, double limit,
                      double value)
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
            printf("%s  %-18s expected %s, found %s\n", r->ok ? "pass" : "FAIL", r->id, r->expected, r->found);
    }
    mq_json_write_end_array(&v->cli->json);
    if (v->text_out)
        printf("%s\n", v->missed ? "RESULT: FAILED" : "RESULT: passed");
}

static mq_status verify_integrity(verify_state *v, checks *list, int n_threads, mq_err *err)
{
    const mq_manifest *m = &v->packed->manifest;
    int64_t bytes = 0;
    for (int64_t i = 0; i < m->n_shards; i++)
        bytes += m->shards[i].bytes;
    MQ_TRY(mq_progress_create(&v->progress, v->cli, "checking hashes and structure", bytes, "B", err));
    mq_status st = mq_packed_verify(v->packed, n_threads, v->o->memory, set_bytes, v, err);
    mq_progress_free(v->progress);
    v->progress = NULL;
    MQ_TRY(st);
    char found[96];
    snprintf(found, sizeof found, "%lld shards and %lld other files sound", (long long)m->n_shards, (long long)m->n_extra);
    add_check(v, list, "integrity", true, "hashes, structure, values", found);
    return mq_cli_check_stop(err);
}

static mq_status verify_weights(verify_state *v, checks *list, int n_threads, mq_err *err)
{
    mq_source *source;
    MQ_TRY(mq_source_open(&source, v->o->source, err));
    int64_t bytes = 0;
    for (int64_t i = 0; i < v->packed->manifest.n_shards; i++)
        bytes += v->packed->manifest.shards[i].bytes;
    mq_comparison w;
    memset(&w, 0, sizeof w);
    mq_status st = mq_progress_create(&v->progress, v->cli, "comparing weights", bytes, "B", err);
    if (st == MQ_OK)
        st = mq_compare_weights(&w, source, v->packed, n_threads, add_bytes, v, mq_cli_stopped, err);
    mq_progress_free(v->progress);
    v->progress = NULL;
    if (st == MQ_OK) {
        mq_report_weights(v->cli, &w, v->text_out);
        double worst = 0;
        bool lossless = true;
        for (int64_t i = 0; i < w.n_matrices; i++) {
            double rel = mq_matrix_relative_error(&w.matrices[i]);
            worst = rel > worst ? rel : worst;
            lossless = lossless && (w.matrices[i].scheme != MQ_SCHEME_MXFP4 || w.matrices[i].exact);
        }
        add_check(v, list, "untouched", w.n_different == 0, "equal byte for byte",
                  w.n_different ? w.first_difference : "equal byte for byte");
        add_check(v, list, "mxfp4", lossless, "carried over without loss", lossless ? "no loss" : "values changed");
        add_limit(v, list, "weight_error", true, worst <= v->o->max_weight_error, "<=", v->o->max_weight_error, worst);
    }
    mq_comparison_release(&w);
    mq_source_close(source);
    return st;
}

static mq_status read_text(mq_tokens *ids, const verify_state *v, mq_err *err)
{
    const char *dir = v->o->source ? v->o->source : v->packed->dir;
    char *path = mq_path_join(dir, "tokenizer.json");
    mq_tokenizer *tokenizer = NULL;
    mq_buf text = mq_buf_empty();
    mq_status st = path ? mq_tokenizer_open(&tokenizer, path, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = mq_file_load(&text, v->o->text, MAX_TEXT_BYTES, err);
    if (st == MQ_OK)
        st = mq_wrap(err, mq_tokenizer_encode(tokenizer, ids, text.data ? text.data : "", text.n_bytes, true, err), "%s",
                     v->o->text);
    mq_buf_release(&text);
    mq_tokenizer_close(tokenizer);
    free(path);
    return st;
}

/* The windows asked for, or by default as many as the text and the model's limit allow. */
static mq_status choose_windows(const verify_state *v, int64_t n_ids, int64_t *window, int64_t *n_windows, mq_err *err)
{
    const verify_options *o = v->o;
    int64_t limit = v->packed->model.max_positions;
    *window = o->window;
    if (!o->window_given && *window > limit)
        *window = limit;
    if (*window > limit)
        return mq_fail(err, MQ_E_ARG, "--window %lld: the model's limit is %lld positions", (long long)*window,
                       (long long)limit);
    int64_t fit = n_ids > 0 ? (n_ids - 1) / *window : 0;
    *n_windows = o->windows_given || fit >= o->windows ? o->windows : fit;
    if (*n_windows < 1 || *n_windows > fit)
        return mq_fail(err, MQ_E_ARG, "%s has %lld tokens, enough for %lld windows of %lld; asked for %lld", o->text,
                       (long long)n_ids, (long long)fit, (long long)*window, (long long)o->windows);
    return MQ_OK;
}

static mq_status run_quality(verify_state *v, mq_quality *q, const mq_tokens *ids, int n_threads, mq_err *err)
{
    const char *name;
    MQ_TRY(mq_cli_device(&name, v->o->device, err));
    const mq_kernels *k = mq_kernels_find(name);
    mq_quality_options options = {
        .memory_bytes = v->o->memory, .progress = set_units, .progress_ctx = v, .stopped = mq_cli_stopped};
    MQ_TRY(choose_windows(v, ids->n, &options.window, &options.n_windows, err));
    const mq_store_options store = {.n_ranks = 1, .n_threads = n_threads, .check = true};
    mq_store *a = NULL, *b = NULL;
    mq_dev *dev = NULL;
    v->done = 0;
    mq_status st = k->dev_open(&dev, 0, n_threads, NULL, err);
    if (st == MQ_OK)
        st = mq_store_open(&a, v->o->source ? v->o->source : v->packed->dir, &store, err);
    if (st == MQ_OK && v->o->source)
        st = mq_store_open(&b, v->packed->dir, &store, err);
    if (st == MQ_OK)
        st = mq_progress_create(&v->progress, v->cli, "running the model", 1000, "permille", err);
    if (st == MQ_OK)
        st = mq_quality_run(q, k, dev, a, b, ids->ids, ids->n, &options, err);
    mq_progress_free(v->progress);
    v->progress = NULL;
    mq_store_close(a);
    mq_store_close(b);
    if (dev)
        k->dev_close(dev);
    return st == MQ_E_STOPPED ? mq_cli_check_stop(err) : st;
}

static mq_status verify_quality(verify_state *v, checks *list, int n_threads, mq_err *err)
{
    const verify_options *o = v->o;
    mq_tokens ids = {NULL, 0, 0};
    mq_quality q;
    memset(&q, 0, sizeof q);
    mq_status st = read_text(&ids, v, err);
    if (st == MQ_OK)
        st = run_quality(v, &q, &ids, n_threads, err);
    if (st == MQ_OK) {
        mq_report_quality(v->cli, &q, o->source != NULL, v->text_out);
        double increase = 100 * (q.ppl_b / q.ppl_a - 1);
        add_limit(v, list, "ppl_increase_pct", o->ppl_limit, increase <= o->max_ppl_increase, "<=", o->max_ppl_increase,
                  increase);
        add_limit(v, list, "kl_mean", o->kl_limit, q.kl_mean <= o->max_kl, "<=", o->max_kl, q.kl_mean);
        add_limit(v, list, "top1_agreement", o->top1_limit, q.top1_agreement >= o->min_top1, ">=", o->min_top1,
                  q.top1_agreement);
    }
    mq_quality_release(&q);
    mq_tokens_release(&ids);
    return st;
}

static mq_status run(verify_state *v, mq_err *err)
{
    verify_options *o = v->o;
    const char *name;
    MQ_TRY(mq_cli_device(&name, o->device, err));
    if ((o->ppl_limit || o->kl_limit || o->top1_limit) && !(o->source && o->text))
        return mq_fail(err, MQ_E_ARG, "thresholds need --source and --text");
    if ((o->window_given || o->windows_given) && !o->text)
        return mq_fail(err, MQ_E_ARG, "--window and --windows need --text");
    if (o->memory == 0)
        o->memory = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGE_SIZE) / 2;
    int n_threads = o->threads ? (int)o->threads : mq_cpu_count();
    checks list = {.n = 0};
    MQ_TRY(mq_packed_open(&v->packed, v->cli->args[0], err));
    mq_report_model(v->cli, v->packed, v->text_out);
    if (o->list)
        MQ_TRY(mq_report_list(v->cli, v->packed, v->text_out, err));
    MQ_TRY(verify_integrity(v, &list, n_threads, err));
    if (o->source)
        MQ_TRY(verify_weights(v, &list, n_threads, err));
    if (o->text)
        MQ_TRY(verify_quality(v, &list, n_threads, err));
    report_checks(v, &list);
    return MQ_OK;
}

int main(int argc, char **argv)
{
    verify_options o = {.window = DEFAULT_WINDOW, .windows = DEFAULT_WINDOWS, .max_weight_error = 0.5};
    const mq_opt opts[] = {
        {"source", MQ_OPT_STRING, &o.source, "CHECKPOINT", NULL, "compare weights with the checkpoint it was made from", 0, 0,
         0, 0, NULL},
        {"list", MQ_OPT_FLAG, &o.list, "", NULL, "list files, records, schemes and sizes", 0, 0, 0, 0, NULL},
        {"text", MQ_OPT_STRING, &o.text, "FILE", NULL, "perplexity on this text; with --source also KL and top-1", 0, 0, 0, 0,
         NULL},
        {"window", MQ_OPT_INT, &o.window, "N", NULL, "tokens of a window (default 2048 or the model's limit)", 1, 1 << 24, 0, 0,
         &o.window_given},
        {"windows", MQ_OPT_INT, &o.windows, "N", NULL, "number of windows (default 32, or what the text holds)", 1, 1 << 24, 0,
         0, &o.windows_given},
        {"max-ppl-increase", MQ_OPT_DOUBLE, &o.max_ppl_increase, "PCT", NULL, "exit 1 when perplexity rises more", 0, 0, -100,
         1e9, &o.ppl_limit},
        {"max-kl", MQ_OPT_DOUBLE, &o.max_kl, "X", NULL, "exit 1 when the mean KL divergence is larger", 0, 0, 0, 1e9,
         &o.kl_limit},
        {"min-top1", MQ_OPT_DOUBLE, &o.min_top1, "X", NULL, "exit 1 when the top-1 agreement is smaller", 0, 0, 0, 1,
         &o.top1_limit},
        {"max-weight-error", MQ_OPT_DOUBLE, &o.max_weight_error, "X", NULL,
         "exit 1 when an expert's relative RMS error is larger (default 0.5)", 0, 0, 0, 1e9, NULL},
        {"threads", MQ_OPT_INT, &o.threads, "N", NULL, "host threads (default: all processors)", 1, 1024, 0, 0, NULL},
        {"memory", MQ_OPT_SIZE, &o.memory, "BYTES", NULL, "budget (default: half of the machine's memory)", 1 << 20, 0, 0, 0,
         NULL},
        {"device", MQ_OPT_STRING, &o.device, "cpu|cuda[:0,1]", NULL, "where to run (default cpu)", 0, 0, 0, 0, NULL},
        {"save-logits", MQ_OPT_LATER, NULL, "FILE", NULL, "write a compact reference", 0, 0, 0, 0, NULL},
        {"logits", MQ_OPT_LATER, NULL, "FILE", NULL, "compare with a compact reference", 0, 0, 0, 0, NULL},
        {"report", MQ_OPT_LATER, NULL, "FILE.html", NULL, "report for people", 0, 0, 0, 0, NULL},
        {"junit", MQ_OPT_LATER, NULL, "FILE", NULL, "report for pipelines", 0, 0, 0, 0, NULL},
        {"public-key", MQ_OPT_LATER, NULL, "FILE", NULL, "check a signature", 0, 0, 0, 0, NULL},
    };
    mq_cli cli = {.tool = "mimo-verify",
                  .usage = "[options] PACKED",
                  .summary = "Proves a packed model: hashes, structure, weights and quality against its source.",
                  .opts = opts,
                  .n_opts = (int)(sizeof opts / sizeof opts[0]),
                  .n_args_min = 1,
                  .n_args_max = 1};
    verify_state v = {.cli = &cli, .o = &o};
    mq_err err = {MQ_OK, ""};
    bool done;
    mq_cli_catch_signals();
    mq_status st = mq_cli_parse(&cli, argc, argv, &done, &err);
    v.text_out = !(cli.json_path && strcmp(cli.json_path, "-") == 0);
    if (st == MQ_OK && !done)
        st = run(&v, &err);
    if (done)
        cli.json_path = NULL;
    mq_packed_close(v.packed);
    return mq_cli_finish(&cli, st, v.missed ? 1 : -1, &err);
}
