/* The page of --report from made-up layers: values stand in it, hostile names are escaped, what was not measured is left
 * out, tags match up, and the same input gives the same bytes. */
#include "tools/report_html.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"
#include "tools/svg_plot.h"

/* Do all tags of the page match up, with nothing but known entities between them?  A small reader of XML. */
static void check_well_formed(const char *page)
{
    char stack[64][16];
    int depth = 0, n_roots = 0;
    ck_assert(strncmp(page, "<!DOCTYPE html>\n", 16) == 0);
    for (const char *at = page + 16; *at;) {
        if (*at == '&') {
            const char *end = strchr(at, ';');
            ck_assert_msg(end && end - at <= 5, "a bare & at '%.20s'", at);
            at = end + 1;
            continue;
        }
        if (*at != '<') {
            ck_assert(*at != '>' || depth > 0);
            at++;
            continue;
        }
        bool closes = at[1] == '/';
        const char *name = at + 1 + closes;
        size_t n = strcspn(name, " />");
        const char *end = strchr(at, '>');
        ck_assert(end && n > 0 && n < 16);
        if (closes) {
            depth--;
            ck_assert_msg(depth >= 0 && strlen(stack[depth]) == n && memcmp(stack[depth], name, n) == 0, "'%.20s' does not close '%s'",
                          at, depth >= 0 ? stack[depth] : "");
        } else if (end[-1] != '/') {
            ck_assert(depth < 63);
            n_roots += depth == 0;
            memcpy(stack[depth], name, n);
            stack[depth++][n] = '\0';
        }
        at = end + 1;
    }
    ck_assert_int_eq(depth, 0);
    ck_assert_int_eq(n_roots, 1);
}

static void has(const mq_buf *page, const char *text)
{
    ck_assert_msg(strstr(page->data, text) != NULL, "the page lacks '%s'", text);
}

static void lacks(const mq_buf *page, const char *text)
{
    ck_assert_msg(strstr(page->data, text) == NULL, "the page has '%s'", text);
}

static mq_buf print(const mq_report *r)
{
    mq_err err = {0};
    mq_buf page = mq_buf_empty();
    mq_assert_ok(mq_report_html(&page, r, &err), &err);
    check_well_formed(page.data);
    return page;
}

enum { EXPERTS = 4 };

/* Errors of 1, 2, 3 % of the weights and 10, 20, 30 % on the tokens; expert e saw 1000 * e tokens. */
static void fill(mq_calib_account a[EXPERTS * MQ_CALIB_MATRICES])
{
    for (int e = 0; e < EXPERTS; e++)
        for (int p = 0; p < MQ_CALIB_MATRICES; p++)
            a[e * MQ_CALIB_MATRICES + p] = (mq_calib_account){.path = e ? MQ_CALIB_OWN : MQ_CALIB_LAYER, .n_tokens = 1000 * e,
                                                              .err2 = 1e-4 * (p + 1) * (p + 1), .norm2 = 1,
                                                              .loss = 1e-2 * (p + 1) * (p + 1), .energy = 1};
}

static const mq_report_fact recipe[] = {{"method", "gptq"}, {"group", "64"}};
static const mq_report_fact source[] = {{"model.safetensors", "123 bytes"}};

static mq_report calibrated(const mq_report_layer *layers, int64_t n)
{
    return (mq_report){.title = "a model", .calibrated = true, .recipe = recipe, .n_recipe = 2, .source = source,
                       .n_source = 1, .layers = layers, .n_layers = n};
}

START_TEST(values_of_a_calibrated_run_stand_in_the_page)
{
    mq_calib_account a[EXPERTS * MQ_CALIB_MATRICES], b[EXPERTS * MQ_CALIB_MATRICES];
    fill(a);
    fill(b);
    b[2 * MQ_CALIB_MATRICES + MQ_CALIB_UP].loss = 0.25; /* the worst: 50 % */
    b[1].n_retries = 3;
    mq_report_layer layers[] = {{1, "int4", EXPERTS, a, 0.0123, 0.9999}, {2, "int4", EXPERTS, b, 0.02, 0.9998}};
    mq_report r = calibrated(layers, 2);
    mq_buf page = print(&r);
    has(&page, "<h1>a model</h1>");
    has(&page, "<th scope=\"row\">method</th><td>gptq</td>");
    has(&page, "<th scope=\"row\">model.safetensors</th><td>123 bytes</td>");
    has(&page, "layer 1, gate_proj: 1 %</title>");
    has(&page, "layer 2, down_proj: 30 %</title>");
    has(&page, "layer 1, behind the layer: 1.23 %</title>");
    has(&page, "<title>layer 2, expert 3: 3000 tokens</title>");
    /* fewest, median, mean, most, none */
    has(&page, "<tr><th scope=\"row\">1</th><td class=\"n\">0</td><td class=\"n\">2000</td><td class=\"n\">1500.0</td>"
               "<td class=\"n\">3000</td><td class=\"n\">1</td></tr>");
    /* path, projection, matrices, tokens, errors, retries */
    has(&page, "<th scope=\"row\">own</th><td>gate_proj</td><td class=\"n\">6</td><td class=\"n\">1000</td><td class=\"n\">3000</td>"
               "<td class=\"n\">10.000 %</td><td class=\"n\">1.000 %</td><td class=\"n\">0</td>");
    has(&page, "<th scope=\"row\">layer</th><td>up_proj</td><td class=\"n\">2</td><td class=\"n\">0</td><td class=\"n\">0</td>"
               "<td class=\"n\">20.000 %</td><td class=\"n\">2.000 %</td><td class=\"n\">3</td>");
    has(&page, "<tbody>\n<tr><th scope=\"row\">2</th><td class=\"n\">2</td><td>up_proj</td><td class=\"n\">2.000 %</td>"
               "<td class=\"n\">50.000 %</td><td class=\"n\">2000</td><td>own</td></tr>");
    has(&page, "<td class=\"n\">1.230 %</td><td class=\"n\">0.99990000</td>");
    lacks(&page, "<script");
    lacks(&page, "nan");
    mq_buf again = print(&r);
    ck_assert_str_eq(page.data, again.data);
    mq_buf_release(&page);
    mq_buf_release(&again);
}
END_TEST

START_TEST(a_run_without_calibration_shows_weights_alone)
{
    mq_calib_account a[EXPERTS * MQ_CALIB_MATRICES];
    fill(a);
    mq_report_layer layers[] = {{3, "int4", EXPERTS, a, NAN, NAN}, {4, "mxfp4", 0, NULL, NAN, NAN}};
    mq_report r = calibrated(layers, 2);
    r.calibrated = false;
    mq_buf page = print(&r);
    has(&page, "layer 3, up_proj: 2 %</title>");
    has(&page, "<tr><th scope=\"row\">4</th><td>mxfp4</td><td class=\"n\">-</td>");
    has(&page, "<td>down_proj</td><td class=\"n\">3.000 %</td></tr>");
    lacks(&page, "tokens</title>");
    lacks(&page, "How the matrices got their codes");
    lacks(&page, "cosine");
    mq_buf_release(&page);
}
END_TEST

START_TEST(a_model_with_nothing_quantized_has_a_page)
{
    mq_report r = calibrated(NULL, 0);
    mq_buf page = print(&r);
    has(&page, "no values");
    mq_buf_release(&page);
    mq_report_layer layer = {0, "mxfp4", 0, NULL, NAN, NAN};
    r = calibrated(&layer, 1);
    page = print(&r);
    has(&page, "<td>mxfp4</td>");
    mq_buf_release(&page);
}
END_TEST

START_TEST(hostile_names_are_text)
{
    static const char evil[] = "</title><script>alert(1)</script>&\"'\x01\x7F\xFF\xC3 caf\xC3\xA9 \xEF\xBF\xBF";
    mq_calib_account a[EXPERTS * MQ_CALIB_MATRICES];
    fill(a);
    mq_report_layer layer = {1, evil, EXPERTS, a, 0.1, 0.9};
    mq_report_fact fact = {evil, evil};
    mq_report r = calibrated(&layer, 1);
    r.title = evil;
    r.recipe = r.source = &fact;
    r.n_recipe = r.n_source = 1;
    r.notices = "one <b>\n\ntwo & more";
    mq_buf page = print(&r);
    lacks(&page, "<script");
    lacks(&page, "\x01");
    lacks(&page, "\xFF");
    has(&page, "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;\xEF\xBF\xBD\x7F\xEF\xBF\xBD\xEF\xBF\xBD caf\xC3\xA9 "
               "\xEF\xBF\xBD");
    has(&page, "<li>one &lt;b&gt;</li>\n<li>two &amp; more</li>\n</ul>");
    mq_buf_release(&page);
}
END_TEST

/* Values at the edges: none at all, all zero, one point, tiny and huge ones. */
START_TEST(axes_fit_any_values)
{
    static const double sets[][3] = {{0, 0, 0}, {1e-12, 2e-12, 3e-12}, {1e12, NAN, 0}, {NAN, 5, NAN}, {99.9, 1, 1}};
    static const int x[] = {0, 7, 100};
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        mq_plot_series s = {"s", sets[i]};
        mq_buf b = mq_buf_empty();
        for (int64_t n = 1; n <= 3; n++) {
            mq_buf_clear(&b);
            mq_buf_str(&b, "<!DOCTYPE html>\n");
            mq_line_plot p = {.id = "p", .title = "t", .x_name = "layer", .unit = "", .x = x, .n = n, .series = &s, .n_series = 1};
            mq_svg_lines(&b, &p);
            check_well_formed(b.data);
            lacks(&b, "inf");
            lacks(&b, "\"nan");
        }
        mq_buf_release(&b);
    }
    mq_plot_series none = {"s", (double[]){NAN}};
    mq_line_plot p = {.id = "p", .title = "t", .x_name = "layer", .unit = "", .x = x, .n = 1, .series = &none, .n_series = 1};
    mq_buf b = mq_buf_empty();
    mq_svg_lines(&b, &p);
    ck_assert_str_eq(b.data, "<p>no values</p>\n");
    mq_buf_release(&b);
}
END_TEST

/* Mean 8: 0, below an eighth of it, 1/8, 1/4, 1/2, 1, 2, 4 and more. */
START_TEST(shades_are_powers_of_two_of_the_mean)
{
    static const int64_t counts[] = {0, 1, 2, 4, 8, 16, 40, 1, 0, 8};
    static const char *const classes[] = {"h0", "h2", "h3", "h4", "h5", "h6", "h7"};
    int row = 5;
    mq_heat_map m = {.id = "m", .title = "t", .row_name = "layer", .col_name = "expert", .what = "tokens", .row_numbers = &row,
                     .counts = counts, .n_rows = 1, .n_cols = 10};
    mq_buf b = mq_buf_empty();
    mq_svg_heat(&b, &m);
    for (int i = 0; i < 7; i++) {
        char text[64];
        snprintf(text, sizeof text, "expert %d: %d tokens", i, (int)counts[i]);
        char *at = strstr(b.data, text);
        ck_assert_ptr_nonnull(at);
        while (strncmp(at, "<rect", 5) != 0)
            at--;
        ck_assert_msg(strncmp(at + 13, classes[i], 2) == 0, "%s: %.20s, expected %s", text, at, classes[i]);
    }
    mq_buf_release(&b);
    static const int64_t nothing[] = {0, 0};
    mq_heat_map cold = m;
    cold.counts = nothing;
    cold.n_cols = 2;
    mq_svg_heat(&b, &cold);
    ck_assert_ptr_nonnull(strstr(b.data, "expert 1: 0 tokens"));
    mq_buf_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("report_html");
    TCase *t = tcase_create("report_html");
    tcase_add_test(t, values_of_a_calibrated_run_stand_in_the_page);
    tcase_add_test(t, a_run_without_calibration_shows_weights_alone);
    tcase_add_test(t, a_model_with_nothing_quantized_has_a_page);
    tcase_add_test(t, hostile_names_are_text);
    tcase_add_test(t, axes_fit_any_values);
    tcase_add_test(t, shades_are_powers_of_two_of_the_mean);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
