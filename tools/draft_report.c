/* See draft_report.h.  Figures that were drawn and not measured say so in every form. */
#include "tools/draft_report.h"

#include <stdio.h>

#include "src/model.h"

const char *mq_draft_kind_name(mq_draft_kind kind)
{
    return kind == MQ_DRAFT_DFLASH ? "dflash" : kind == MQ_DRAFT_MTP ? "mtp" : "none";
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0.0;
}

static double accept_length(const mq_speculate_figures *f)
{
    return ratio((double)f->n_tokens, (double)f->n_steps);
}

static double draft_share(const mq_speculate_figures *f)
{
    return ratio(f->draft_s, f->draft_s + f->verify_s);
}

/* Guesses that ever had a row. */
static int n_positions(const mq_speculate_figures *f)
{
    int n = 0;
    while (n < MQ_SPECULATE_ROWS && f->offered[n] > 0)
        n++;
    return n;
}

/* Distinct experts of a layer in a step of that many rows. */
static double experts_of(const mq_draft_report *r, int rows, int layer)
{
    const mq_speculate_figures *f = r->figures;
    return ratio((double)f->experts[rows - 1][layer], (double)f->steps[rows - 1]);
}

static double mean_experts(const mq_draft_report *r, int rows)
{
    double sum = 0.0;
    int n = 0;
    for (int l = 0; l < r->model->n_layers; l++)
        if (r->model->is_moe[l]) {
            sum += experts_of(r, rows, l);
            n++;
        }
    return ratio(sum, n);
}

static void write_experts(mq_json_writer *w, const mq_draft_report *r)
{
    mq_json_write_array(w, "distinct_experts");
    for (int rows = 1; rows <= MQ_SPECULATE_ROWS; rows++) {
        if (r->figures->steps[rows - 1] == 0)
            continue;
        mq_json_write_object(w, NULL);
        mq_json_write_int(w, "width", rows);
        mq_json_write_double(w, "mean", mean_experts(r, rows));
        mq_json_write_array(w, "layers");
        for (int l = 0; l < r->model->n_layers; l++)
            mq_json_write_double(w, NULL, experts_of(r, rows, l));
        mq_json_write_end_array(w);
        mq_json_write_end_object(w);
    }
    mq_json_write_end_array(w);
}

void mq_draft_report_json(mq_json_writer *w, const mq_draft_report *r)
{
    const mq_speculate_figures *f = r->figures;
    mq_json_write_string(w, "draft", mq_draft_kind_name(r->kind));
    if (r->width)
        mq_json_write_int(w, "draft_width", r->width);
    else
        mq_json_write_string(w, "draft_width", "auto");
    mq_json_write_int(w, "verify_steps", f->n_steps);
    mq_json_write_double(w, "accept_length", accept_length(f));
    mq_json_write_array(w, "accept_per_position");
    for (int i = 0; i < n_positions(f); i++)
        mq_json_write_double(w, NULL, ratio((double)f->accepted[i], (double)f->offered[i]));
    mq_json_write_end_array(w);
    mq_json_write_array(w, "width_histogram");
    for (int i = 0; i < MQ_SPECULATE_ROWS; i++)
        mq_json_write_int(w, NULL, f->steps[i]);
    mq_json_write_end_array(w);
    write_experts(w, r);
    mq_json_write_double(w, "draft_seconds", f->draft_s);
    mq_json_write_double(w, "draft_share", draft_share(f));
    if (r->synthetic > 0)
        mq_json_write_double(w, "synthetic_acceptance", r->synthetic);
    else
        mq_json_write_null(w, "synthetic_acceptance");
}

void mq_draft_report_print(const mq_draft_report *r)
{
    const mq_speculate_figures *f = r->figures;
    if (r->synthetic > 0)
        printf("SYNTHETIC     acceptance is drawn, %g tokens a full step on average: the speed "
               "alone means something\n",
               r->synthetic);
    if (r->kind == MQ_DRAFT_NONE)
        printf("draft         none\n");
    else if (r->width)
        printf("draft         %s, width %d\n", mq_draft_kind_name(r->kind), r->width);
    else
        printf("draft         %s, width auto\n", mq_draft_kind_name(r->kind));
    printf("acceptance    %.3f tokens a step%s", accept_length(f),
           r->synthetic > 0 ? " (synthetic)" : "");
    for (int i = 0; i < n_positions(f); i++)
        printf("%s%.2f", i ? " " : "; by position ",
               ratio((double)f->accepted[i], (double)f->offered[i]));
    printf("\nwidths       ");
    for (int i = 0; i < MQ_SPECULATE_ROWS; i++)
        if (f->steps[i])
            printf(" %d: %lld steps, %.1f experts a layer;", i + 1, (long long)f->steps[i],
                   mean_experts(r, i + 1));
    printf("\ndrafting      %.1f ms, %.1f %% of the time of the steps\n", 1e3 * f->draft_s,
           100 * draft_share(f));
}

void mq_draft_report_line(char out[160], const mq_draft_report *r)
{
    out[0] = '\0';
    if (r->kind != MQ_DRAFT_NONE)
        snprintf(out, 160, ", %s: %.2f tokens a step, drafting %.0f %% of the time",
                 mq_draft_kind_name(r->kind), accept_length(r->figures),
                 100 * draft_share(r->figures));
}
