/* See verify_report.h. */
#include "tools/verify_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *experts_text(const mq_packed *p)
{
    bool int4 = false, mxfp4 = false;
    for (int i = 0; i < p->manifest.n_layers; i++) {
        int4 = int4 || p->manifest.expert_scheme[i] == MQ_SCHEME_INT4;
        mxfp4 = mxfp4 || p->manifest.expert_scheme[i] == MQ_SCHEME_MXFP4;
    }
    return int4 && mxfp4 ? "int4 and mxfp4" : int4 ? "int4" : mxfp4 ? "mxfp4" : "none";
}

void mq_report_model(mq_cli *c, const mq_packed *p, bool text)
{
    const mq_manifest *m = &p->manifest;
    int64_t bytes = 0;
    for (int64_t i = 0; i < m->n_shards; i++)
        bytes += m->shards[i].bytes;
    mq_json_writer *w = &c->json;
    mq_json_write_string(w, "packed", p->dir);
    mq_json_write_string(w, "method", m->recipe.method);
    mq_json_write_string(w, "experts", experts_text(p));
    mq_json_write_int(w, "group", m->group);
    mq_json_write_int(w, "ranks", m->n_ranks);
    mq_json_write_int(w, "files", m->n_shards);
    mq_json_write_int(w, "bytes_packed", bytes);
    char hex[MQ_SHA256_HEX];
    mq_sha256_hex(hex, m->content);
    mq_json_write_string(w, "content_sha256", hex);
    if (!text)
        return;
    char size[32];
    mq_cli_bytes_text(size, bytes);
    printf("packed model  %s\n              %s, %d layers, hidden %d, %d experts of which %d per "
           "token\n",
           p->dir, p->model.model_type, p->model.n_layers, p->model.hidden, p->model.n_experts,
           p->model.n_experts_per_tok);
    printf("              experts %s", experts_text(p));
    if (m->group)
        printf(", groups of %d, method %s", m->group, m->recipe.method);
    printf("; %d ranks, %d MTP layers, %s drafter; %lld files, %s\n", m->n_ranks, m->n_mtp,
           m->has_draft ? "with" : "no", (long long)m->n_shards, size);
}

static void report_record(mq_cli *c, const char *file, const mq_shard *s, int64_t i, bool text)
{
    const mq_shard_entry *e = mq_shard_entry_at(s, i);
    char scheme[32];
    snprintf(scheme, sizeof scheme, e->group ? "%s g%d" : "%s",
             mq_scheme_name((mq_scheme)e->scheme), e->group);
    if (text)
        printf("  %-64s %-10s [%llu, %llu] at [%llu, %llu]  %llu bytes%s\n", mq_shard_name(s, i),
               scheme, (unsigned long long)e->rows, (unsigned long long)e->cols,
               (unsigned long long)e->row0, (unsigned long long)e->col0,
               (unsigned long long)e->stored_bytes, e->codec ? " zstd" : "");
    mq_json_write_object(&c->json, NULL);
    mq_json_write_string(&c->json, "file", file);
    mq_json_write_string(&c->json, "tensor", mq_shard_name(s, i));
    mq_json_write_string(&c->json, "scheme", scheme);
    mq_json_write_int(&c->json, "rows", (int64_t)e->rows);
    mq_json_write_int(&c->json, "cols", (int64_t)e->cols);
    mq_json_write_int(&c->json, "stored_bytes", (int64_t)e->stored_bytes);
    mq_json_write_end_object(&c->json);
}

mq_status mq_report_list(mq_cli *c, const mq_packed *p, bool text, mq_err *err)
{
    mq_status st = MQ_OK;
    mq_json_write_array(&c->json, "records");
    for (int64_t f = 0; f < p->plan->n_files; f++) {
        const char *file = p->plan->files[f].name;
        mq_shard *s;
        st = mq_packed_shard(&s, p, f, err);
        if (st != MQ_OK)
            break;
        if (text)
            printf("%s  %lld bytes\n", file, (long long)mq_shard_bytes(s));
        for (int64_t i = 0; i < mq_shard_count(s); i++)
            report_record(c, file, s, i, text);
        mq_shard_close(s);
    }
    mq_json_write_end_array(&c->json); /* also after a failure: others write behind it */
    return st;
}

/* Sums over the matrices of one projection. */
typedef struct projection {
    mq_role role;
    const char *name;
    int64_t n, n_exact;
    double err2, norm2, worst;
    const mq_matrix_error *worst_matrix;
} projection;

static projection sum_projection(const mq_comparison *w, mq_role role, const char *name)
{
    projection p = {.role = role, .name = name};
    for (int64_t i = 0; i < w->n_matrices; i++) {
        const mq_matrix_error *e = &w->matrices[i];
        if (e->key.role != role)
            continue;
        p.n++;
        p.n_exact += e->exact;
        p.err2 += e->err2;
        p.norm2 += e->norm2;
        double rel = mq_matrix_relative_error(e);
        if (!p.worst_matrix || rel > p.worst) {
            p.worst = rel;
            p.worst_matrix = e;
        }
    }
    return p;
}

static void report_projection(mq_cli *c, const projection *p, bool text)
{
    char name[MQ_KEY_NAME] = "";
    if (p->worst_matrix)
        mq_key_name(name, sizeof name, p->worst_matrix->key);
    double rel =
        mq_matrix_relative_error(&(mq_matrix_error){.err2 = p->err2, .norm2 = p->norm2});
    mq_json_write_object(&c->json, p->name);
    mq_json_write_int(&c->json, "matrices", p->n);
    mq_json_write_int(&c->json, "exact", p->n_exact);
    mq_json_write_double(&c->json, "rel_rms_error", rel);
    mq_json_write_double(&c->json, "worst", p->worst);
    mq_json_write_string(&c->json, "worst_tensor", name);
    mq_json_write_end_object(&c->json);
    if (!text || !p->n)
        return;
    if (p->n_exact == p->n)
        printf("  experts, %-6s  %lld matrices, all without loss\n", p->name, (long long)p->n);
    else
        printf("  experts, %-6s  %lld matrices, relative RMS error %.3f %%, worst %.3f %% (%s)\n",
               p->name, (long long)p->n, 100 * rel, 100 * p->worst, name);
}

void mq_report_weights(mq_cli *c, const mq_comparison *w, bool text)
{
    const projection parts[] = {sum_projection(w, MQ_ROLE_EXPERT_GATE, "gate"),
                                sum_projection(w, MQ_ROLE_EXPERT_UP, "up"),
                                sum_projection(w, MQ_ROLE_EXPERT_DOWN, "down")};
    if (text) {
        char size[32];
        mq_cli_bytes_text(size, w->untouched_bytes);
        printf("weights against the source\n  untouched        %lld tensors, %s, %s\n",
               (long long)w->n_untouched, size,
               w->n_different ? "DIFFERENT" : "equal byte for byte");
        if (w->n_different)
            printf("                   %lld records differ, the first: %s\n",
                   (long long)w->n_different, w->first_difference);
    }
    mq_json_write_object(&c->json, "weights");
    mq_json_write_int(&c->json, "untouched_tensors", w->n_untouched);
    mq_json_write_int(&c->json, "untouched_bytes", w->untouched_bytes);
    mq_json_write_int(&c->json, "different_records", w->n_different);
    mq_json_write_string(&c->json, "first_difference", w->first_difference);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        report_projection(c, &parts[i], text);
    mq_json_write_array(&c->json, "tensors");
    for (int64_t i = 0; i < w->n_matrices; i++) {
        char name[MQ_KEY_NAME];
        mq_key_name(name, sizeof name, w->matrices[i].key);
        mq_json_write_object(&c->json, NULL);
        mq_json_write_string(&c->json, "tensor", name);
        mq_json_write_string(&c->json, "scheme", mq_scheme_name(w->matrices[i].scheme));
        mq_json_write_double(&c->json, "rel_rms_error", mq_matrix_relative_error(&w->matrices[i]));
        mq_json_write_end_object(&c->json);
    }
    mq_json_write_end_array(&c->json);
    mq_json_write_end_object(&c->json);
}

static void report_windows(mq_cli *c, const mq_quality *q, bool has_source, bool text)
{
    mq_json_write_array(&c->json, "windows");
    for (int64_t i = 0; i < q->n_windows; i++) {
        const mq_window_result *r = &q->windows[i];
        mq_json_write_object(&c->json, NULL);
        if (has_source)
            mq_json_write_double(&c->json, "nll_source", r->nll_a);
        mq_json_write_double(&c->json, "nll", has_source ? r->nll_b : r->nll_a);
        if (has_source)
            mq_json_write_double(&c->json, "kl", r->kl);
        mq_json_write_double(&c->json, "router_margin", (double)r->margin_a);
        mq_json_write_end_object(&c->json);
        if (text && r->margin_a < MQ_TIE_MARGIN)
            printf("  window %lld: two experts tie within %.1e; its figures may differ by about "
                   "1e-3 elsewhere\n",
                   (long long)i, (double)r->margin_a);
    }
    mq_json_write_end_array(&c->json);
}

/* A divergence is never below zero, but its rounded sum can be: no "-0.00000" for people. */
static double shown(double kl)
{
    return kl < 0 ? 0.0 : kl;
}

void mq_report_quality(mq_cli *c, const mq_quality *q, bool has_source, bool text)
{
    mq_json_writer *w = &c->json;
    double ppl = has_source ? q->ppl_b : q->ppl_a, increase = 100 * (q->ppl_b / q->ppl_a - 1);
    mq_json_write_int(w, "tokens", q->n_tokens);
    mq_json_write_int(w, "window", q->window);
    mq_json_write_double(w, "ppl", ppl);
    if (has_source) {
        mq_json_write_double(w, "ppl_source", q->ppl_a);
        mq_json_write_double(w, "ppl_increase_pct", increase);
        const struct {
            const char *name;
            double value;
        } rows[] = {{"kl_mean", q->kl_mean},
                    {"kl_median", q->kl_median},
                    {"kl_p90", q->kl_p90},
                    {"kl_p99", q->kl_p99},
                    {"kl_p999", q->kl_p999},
                    {"kl_max", q->kl_max},
                    {"top1_agreement", q->top1_agreement}};
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
            mq_json_write_double(w, rows[i].name, rows[i].value);
    }
    if (text) {
        printf("quality over %lld windows of %lld tokens\n", (long long)q->n_windows,
               (long long)q->window);
        if (has_source) {
            printf("  perplexity       source %.4f, packed %.4f (%+.2f %%)\n", q->ppl_a, q->ppl_b,
                   increase);
            printf("  KL divergence    mean %.5f, median %.5f, p90 %.5f, p99 %.5f, p99.9 %.5f, max "
                   "%.4f nats\n",
                   shown(q->kl_mean), shown(q->kl_median), shown(q->kl_p90), shown(q->kl_p99),
                   shown(q->kl_p999), shown(q->kl_max));
            printf("  top-1 agreement  %.4f\n", q->top1_agreement);
        } else {
            printf("  perplexity       %.4f\n", ppl);
        }
    }
    report_windows(c, q, has_source, text);
}
