/* The page, from top to bottom: recipe, error by layer, output, tokens, paths, worst matrices, every layer, source. */
#include "tools/report_html.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/svg_plot.h"

enum { N_WORST = 20 };

static const char *const projections[MQ_CALIB_MATRICES] = {"gate_proj", "up_proj", "down_proj"};

/* Sums over experts of one projection. */
typedef struct sums {
    double err2, norm2, loss, energy;
} sums;

static const mq_calib_account *account(const mq_report_layer *l, int64_t expert, int projection)
{
    return &l->matrices[expert * MQ_CALIB_MATRICES + projection];
}

static sums sum_projection(const mq_report_layer *l, int projection)
{
    sums s = {0, 0, 0, 0};
    for (int64_t e = 0; e < l->n_experts; e++) {
        const mq_calib_account *a = account(l, e, projection);
        s.err2 += a->err2;
        s.norm2 += a->norm2;
        s.loss += a->loss;
        s.energy += a->energy;
    }
    return s;
}

static double ratio(double part, double whole)
{
    return whole > 0 ? sqrt(part / whole) : NAN;
}

/* The figure a calibrated run minimises, or the plain one. */
static double matrix_error(const mq_report *r, const mq_calib_account *a)
{
    return r->calibrated && a->energy > 0 ? ratio(a->loss, a->energy) : ratio(a->err2, a->norm2);
}

/* ---- Pieces ---- */

static void cell_text(mq_buf *out, const char *text)
{
    mq_buf_str(out, "<td>");
    mq_html_text(out, text);
    mq_buf_str(out, "</td>");
}

static void cell_number(mq_buf *out, const char *format, double x)
{
    char text[48] = "-";
    if (isfinite(x))
        snprintf(text, sizeof text, format, x);
    mq_buf_fmt(out, "<td class=\"n\">%s</td>", text);
}

static void cell_count(mq_buf *out, int64_t n)
{
    mq_buf_fmt(out, "<td class=\"n\">%lld</td>", (long long)n);
}

static void begin_table(mq_buf *out, const char *caption, const char *const *heads, int n)
{
    mq_buf_str(out, "<div class=\"w\"><table><caption>");
    mq_html_text(out, caption);
    mq_buf_str(out, "</caption><thead><tr>");
    for (int i = 0; i < n; i++) {
        mq_buf_str(out, "<th scope=\"col\">");
        mq_html_text(out, heads[i]);
        mq_buf_str(out, "</th>");
    }
    mq_buf_str(out, "</tr></thead><tbody>\n");
}

static void end_table(mq_buf *out)
{
    mq_buf_str(out, "</tbody></table></div>\n");
}

static void write_facts(mq_buf *out, const char *caption, const mq_report_fact *facts, int64_t n)
{
    if (n == 0)
        return;
    mq_buf_str(out, "<div class=\"w\"><table><caption>");
    mq_html_text(out, caption);
    mq_buf_str(out, "</caption><tbody>\n");
    for (int64_t i = 0; i < n; i++) {
        mq_buf_str(out, "<tr><th scope=\"row\">");
        mq_html_text(out, facts[i].name);
        mq_buf_str(out, "</th>");
        cell_text(out, facts[i].value);
        mq_buf_str(out, "</tr>\n");
    }
    end_table(out);
}

static void write_notices(mq_buf *out, const char *lines)
{
    if (!lines || !lines[0])
        return;
    mq_buf_str(out, "<h2>Notices</h2>\n<ul>\n");
    for (const char *at = lines; *at;) {
        size_t n = strcspn(at, "\n");
        mq_buf line = mq_buf_empty();
        mq_buf_append(&line, at, (int64_t)n);
        if (n && line.data) {
            mq_buf_str(out, "<li>");
            mq_html_text(out, line.data);
            mq_buf_str(out, "</li>\n");
        }
        out->nomem = out->nomem || line.nomem;
        mq_buf_release(&line);
        at += n + (at[n] == '\n');
    }
    mq_buf_str(out, "</ul>\n");
}

/* ---- Plots by layer ---- */

typedef enum figure { WEIGHT_ERROR, LOSS, OUTPUT_ERROR } figure;

static double figure_of(const mq_report_layer *l, figure f, int series)
{
    if (f == OUTPUT_ERROR)
        return 100 * l->output_rel_error;
    sums s = sum_projection(l, series);
    return 100 * (f == LOSS ? ratio(s.loss, s.energy) : ratio(s.err2, s.norm2));
}

static void plot_by_layer(mq_buf *out, const mq_report *r, figure f, const char *id, const char *title)
{
    static const char *const output_name[] = {"behind the layer"};
    int n_series = f == OUTPUT_ERROR ? 1 : MQ_CALIB_MATRICES;
    int *x = malloc((size_t)(r->n_layers + 1) * sizeof *x);
    double *y = malloc((size_t)(r->n_layers * MQ_CALIB_MATRICES + 1) * sizeof *y);
    mq_plot_series series[MQ_CALIB_MATRICES];
    if (x && y) {
        for (int s = 0; s < n_series; s++) {
            series[s] = (mq_plot_series){f == OUTPUT_ERROR ? output_name[s] : projections[s], y + s * r->n_layers};
            for (int64_t i = 0; i < r->n_layers; i++)
                y[s * r->n_layers + i] = figure_of(&r->layers[i], f, s);
        }
        for (int64_t i = 0; i < r->n_layers; i++)
            x[i] = r->layers[i].layer;
        mq_line_plot plot = {.id = id, .title = title, .x_name = "layer", .unit = " %", .x = x, .n = r->n_layers,
                             .series = series, .n_series = n_series};
        mq_svg_lines(out, &plot);
    } else {
        out->nomem = true;
    }
    free(x);
    free(y);
}

static bool has_output(const mq_report *r)
{
    for (int64_t i = 0; i < r->n_layers; i++)
        if (isfinite(r->layers[i].output_rel_error))
            return true;
    return false;
}

static void write_plots(mq_buf *out, const mq_report *r)
{
    mq_buf_str(out, "<h2>Error of the weights</h2>\n<p>Root mean square error relative to the source's weights, all experts of a "
                    "layer.</p>\n");
    plot_by_layer(out, r, WEIGHT_ERROR, "weights", "Relative error of the weights by layer and projection");
    if (r->calibrated) {
        mq_buf_str(out, "<h2>Error on the calibration tokens</h2>\n<p>The error of each matrix's product with its inputs, relative to "
                        "the product: what calibration makes small.</p>\n");
        plot_by_layer(out, r, LOSS, "loss", "Relative error on the calibration tokens by layer and projection");
    }
    if (has_output(r)) {
        mq_buf_str(out, "<h2>Error of the layers' output</h2>\n<p>The residual stream behind each layer, quantized experts against "
                        "the source's, same input.</p>\n");
        plot_by_layer(out, r, OUTPUT_ERROR, "output", "Relative error of the layers' output");
    }
}

/* ---- Tokens ---- */

static int compare_counts(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void write_token_row(mq_buf *out, const mq_report_layer *l, int64_t *counts)
{
    int64_t sum = 0, n_none = 0;
    qsort(counts, (size_t)l->n_experts, sizeof *counts, compare_counts);
    for (int64_t e = 0; e < l->n_experts; e++) {
        sum += counts[e];
        n_none += counts[e] == 0;
    }
    mq_buf_fmt(out, "<tr><th scope=\"row\">%d</th>", l->layer);
    cell_count(out, counts[0]);
    cell_count(out, counts[l->n_experts / 2]);
    cell_number(out, "%.1f", (double)sum / (double)l->n_experts);
    cell_count(out, counts[l->n_experts - 1]);
    cell_count(out, n_none);
    mq_buf_str(out, "</tr>\n");
}

/* counts [n_rows, n_cols] of the layers that were quantized; layers of one model have the same number of experts. */
static void write_token_map(mq_buf *out, const mq_report *r, int64_t n_cols, int64_t n_rows, int *rows, int64_t *counts)
{
    static const char *const heads[] = {"layer", "fewest", "median", "mean", "most", "experts without a token"};
    int64_t k = 0;
    for (int64_t i = 0; i < r->n_layers; i++) {
        const mq_report_layer *l = &r->layers[i];
        if (l->n_experts != n_cols)
            continue;
        rows[k] = l->layer;
        for (int64_t e = 0; e < n_cols; e++)
            counts[k * n_cols + e] = account(l, e, MQ_CALIB_GATE)->n_tokens;
        k++;
    }
    mq_heat_map map = {.id = "tokens", .title = "Calibration tokens by layer and expert", .row_name = "layer",
                       .col_name = "expert", .what = "tokens", .row_numbers = rows, .counts = counts, .n_rows = n_rows,
                       .n_cols = n_cols};
    mq_svg_heat(out, &map);
    begin_table(out, "Calibration tokens an expert", heads, (int)(sizeof heads / sizeof heads[0]));
    k = 0;
    for (int64_t i = 0; i < r->n_layers; i++)
        if (r->layers[i].n_experts == n_cols)
            write_token_row(out, &r->layers[i], counts + n_cols * k++);
    end_table(out);
}

static void write_tokens(mq_buf *out, const mq_report *r)
{
    int64_t n_cols = 0, n_rows = 0;
    for (int64_t i = 0; i < r->n_layers; i++)
        n_cols = r->layers[i].n_experts > n_cols ? r->layers[i].n_experts : n_cols;
    for (int64_t i = 0; i < r->n_layers; i++)
        n_rows += r->layers[i].n_experts == n_cols;
    if (n_cols == 0)
        return;
    mq_buf_str(out, "<h2>Tokens of the experts</h2>\n<p>How many calibration tokens the router sent to each expert; the shade is "
                    "the count over the mean of its layer.</p>\n");
    int *rows = malloc((size_t)n_rows * sizeof *rows);
    int64_t *counts = malloc((size_t)(n_rows * n_cols) * sizeof *counts);
    if (rows && counts)
        write_token_map(out, r, n_cols, n_rows, rows, counts);
    else
        out->nomem = true;
    free(rows);
    free(counts);
}

/* ---- Paths ---- */

typedef struct path_row {
    int64_t n, n_retries, fewest, most; /* tokens */
    double loss, energy, err2, norm2;
} path_row;

static path_row sum_path(const mq_report *r, mq_calib_path path, int projection)
{
    path_row row = {.fewest = INT64_MAX};
    for (int64_t i = 0; i < r->n_layers; i++)
        for (int64_t e = 0; e < r->layers[i].n_experts; e++) {
            const mq_calib_account *a = account(&r->layers[i], e, projection);
            if (a->path != path)
                continue;
            row.n++;
            row.n_retries += a->n_retries;
            row.fewest = a->n_tokens < row.fewest ? a->n_tokens : row.fewest;
            row.most = a->n_tokens > row.most ? a->n_tokens : row.most;
            row.loss += a->loss;
            row.energy += a->energy;
            row.err2 += a->err2;
            row.norm2 += a->norm2;
        }
    return row;
}

static void write_paths(mq_buf *out, const mq_report *r)
{
    static const char *const heads[] = {"path",        "projection",  "matrices", "fewest tokens", "most tokens",
                                        "error on tokens", "error of weights", "more damping"};
    static const char *const meaning =
        "<p>own: the expert's own second moment; shrunk: blended with the layer's (gate, up) or a sample's (down); layer: no token of "
        "its own, the layer's moment or the sample's; diagonal: no factorisation, weighted search alone; plain: search without "
        "activations. More damping: factorisations that were tried again.</p>\n";
    mq_buf_str(out, "<h2>How the matrices got their codes</h2>\n");
    mq_buf_str(out, meaning);
    begin_table(out, "Paths", heads, (int)(sizeof heads / sizeof heads[0]));
    for (int path = 0; path < MQ_CALIB_PATH_COUNT; path++)
        for (int p = 0; p < MQ_CALIB_MATRICES; p++) {
            path_row row = sum_path(r, (mq_calib_path)path, p);
            if (row.n == 0)
                continue;
            mq_buf_fmt(out, "<tr><th scope=\"row\">%s</th>", mq_calib_path_name((mq_calib_path)path));
            cell_text(out, projections[p]);
            cell_count(out, row.n);
            cell_count(out, row.fewest);
            cell_count(out, row.most);
            cell_number(out, "%.3f %%", 100 * ratio(row.loss, row.energy));
            cell_number(out, "%.3f %%", 100 * ratio(row.err2, row.norm2));
            cell_count(out, row.n_retries);
            mq_buf_str(out, "</tr>\n");
        }
    end_table(out);
}

/* ---- Worst matrices ---- */

typedef struct worst {
    const mq_report_layer *layer;
    int64_t expert;
    int projection;
    double error;
} worst;

/* Keep the N_WORST largest errors in falling order; among equals the earlier one stands first. */
static int find_worst(worst list[N_WORST + 1], const mq_report *r)
{
    int n = 0;
    for (int64_t i = 0; i < r->n_layers; i++)
        for (int64_t e = 0; e < r->layers[i].n_experts; e++)
            for (int p = 0; p < MQ_CALIB_MATRICES; p++) {
                worst w = {&r->layers[i], e, p, matrix_error(r, account(&r->layers[i], e, p))};
                int at = n;
                if (!isfinite(w.error))
                    continue;
                for (; at > 0 && list[at - 1].error < w.error; at--)
                    list[at] = list[at - 1];
                list[at] = w;
                n += n < N_WORST;
            }
    return n;
}

static void write_worst(mq_buf *out, const mq_report *r)
{
    static const char *const heads[] = {"layer", "expert", "projection", "error of weights", "error on tokens", "tokens", "path"};
    worst list[N_WORST + 1];
    int n = find_worst(list, r);
    if (n == 0)
        return;
    mq_buf_str(out, "<h2>Worst matrices</h2>\n");
    begin_table(out, r->calibrated ? "Largest error on the calibration tokens" : "Largest error of the weights", heads,
                r->calibrated ? 7 : 4);
    for (int i = 0; i < n; i++) {
        const mq_calib_account *a = account(list[i].layer, list[i].expert, list[i].projection);
        mq_buf_fmt(out, "<tr><th scope=\"row\">%d</th>", list[i].layer->layer);
        cell_count(out, list[i].expert);
        cell_text(out, projections[list[i].projection]);
        cell_number(out, "%.3f %%", 100 * ratio(a->err2, a->norm2));
        if (r->calibrated) {
            cell_number(out, "%.3f %%", 100 * ratio(a->loss, a->energy));
            cell_count(out, a->n_tokens);
            cell_text(out, mq_calib_path_name(a->path));
        }
        mq_buf_str(out, "</tr>\n");
    }
    end_table(out);
}

/* ---- Every layer ---- */

static void write_layer(mq_buf *out, const mq_report *r, const mq_report_layer *l)
{
    mq_buf_fmt(out, "<tr><th scope=\"row\">%d</th>", l->layer);
    cell_text(out, l->scheme);
    for (int p = 0; p < MQ_CALIB_MATRICES; p++) {
        sums s = sum_projection(l, p);
        cell_number(out, "%.3f %%", 100 * ratio(s.err2, s.norm2));
    }
    for (int p = 0; r->calibrated && p < MQ_CALIB_MATRICES; p++) {
        sums s = sum_projection(l, p);
        cell_number(out, "%.3f %%", 100 * ratio(s.loss, s.energy));
    }
    if (has_output(r)) {
        cell_number(out, "%.3f %%", 100 * l->output_rel_error);
        cell_number(out, "%.8f", l->output_cosine);
    }
    mq_buf_str(out, "</tr>\n");
}

static void write_layers(mq_buf *out, const mq_report *r)
{
    const char *heads[10] = {"layer", "experts", "gate_proj", "up_proj", "down_proj"};
    int n = 5;
    if (r->calibrated) {
        heads[n++] = "gate_proj, tokens";
        heads[n++] = "up_proj, tokens";
        heads[n++] = "down_proj, tokens";
    }
    if (has_output(r)) {
        heads[n++] = "output";
        heads[n++] = "cosine";
    }
    mq_buf_str(out, "<h2>Every layer</h2>\n");
    begin_table(out, r->calibrated ? "Errors relative to the source: of the weights, on the calibration tokens, of the output"
                                   : "Errors of the weights relative to the source",
                heads, n);
    for (int64_t i = 0; i < r->n_layers; i++)
        write_layer(out, r, &r->layers[i]);
    end_table(out);
}

/* ---- The page ---- */

static const char style[] =
    ":root{color-scheme:light dark;--ink:#1c1f23;--faint:#4d555e;--line:#d4d9de;--paper:#fff;--c0:#0063a6;--c1:#b34700;"
    "--c2:#00785a;--c3:#8a3f86;--cold:#c4261d}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--faint:#b3bac2;--line:#3d444c;--paper:#16191d;--c0:#62b5f0;"
    "--c1:#f0965a;--c2:#4fc9a0;--c3:#d690d2;--cold:#ff7a70}}\n"
    "body{margin:2rem auto;max-width:54rem;padding:0 1rem;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,sans-serif}\n"
    "h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}.w{overflow-x:auto}\n"
    "table{border-collapse:collapse;margin:.5rem 0;font-size:.875rem}caption{text-align:left;color:var(--faint);padding:.2rem 0}\n"
    "th,td{padding:.2rem .7rem .2rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}\n"
    "td{overflow-wrap:anywhere}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\n";

mq_status mq_report_html(mq_buf *out, const mq_report *r, mq_err *err)
{
    mq_buf_str(out, "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
                    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>");
    mq_html_text(out, r->title);
    mq_buf_str(out, "</title>\n<style>\n");
    mq_buf_str(out, style);
    mq_buf_str(out, mq_svg_css());
    mq_buf_str(out, "</style>\n</head>\n<body>\n<main>\n<h1>");
    mq_html_text(out, r->title);
    mq_buf_str(out, "</h1>\n");
    write_facts(out, "Recipe", r->recipe, r->n_recipe);
    write_notices(out, r->notices);
    write_plots(out, r);
    if (r->calibrated) {
        write_tokens(out, r);
        write_paths(out, r);
    }
    write_worst(out, r);
    write_layers(out, r);
    mq_buf_str(out, "<h2>Source</h2>\n");
    write_facts(out, "Files with their sizes and SHA-256", r->source, r->n_source);
    mq_buf_str(out, "</main>\n</body>\n</html>\n");
    return mq_buf_status(out, err);
}
