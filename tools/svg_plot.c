/* Axes, lines, markers and cells.  Coordinates are printed with one decimal: enough for a screen, and short. */
#include "tools/svg_plot.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "src/unicode.h"

enum { WIDTH = 760, LEFT = 64, RIGHT = 12, TOP = 30, PLOT_HEIGHT = 220, BOTTOM = 40, MAX_SERIES = 4 };

/* ---- Text ---- */

static const char *entity(char c)
{
    switch (c) {
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '&':
        return "&amp;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    }
    return NULL;
}

/* May XML hold the code point?  (XML 1.0, production 2; surrogates are no UTF-8.) */
static bool is_xml_char(int32_t cp)
{
    return cp == '\t' || cp == '\n' || cp == '\r' || (cp >= 0x20 && cp != 0xFFFE && cp != 0xFFFF);
}

void mq_html_text(mq_buf *out, const char *text)
{
    int64_t n = (int64_t)strlen(text);
    for (int64_t i = 0; i < n;) {
        int32_t cp;
        int taken = mq_unicode_next(text + i, n - i, &cp);
        if (cp < 0 || !is_xml_char(cp))
            mq_buf_str(out, "\xEF\xBF\xBD");
        else if (cp < 0x80 && entity((char)cp))
            mq_buf_str(out, entity((char)cp));
        else
            mq_buf_append(out, text + i, taken);
        i += taken;
    }
}

const char *mq_svg_css(void)
{
    return "svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\n"
           "svg text{fill:var(--ink)}svg text.s{fill:var(--faint)}\n"
           ".ax{stroke:var(--line);stroke-width:1}\n"
           ".l0,.l1,.l2,.l3{fill:none;stroke-width:2}\n"
           ".l0{stroke:var(--c0)}.l1{stroke:var(--c1);stroke-dasharray:7 3}\n"
           ".l2{stroke:var(--c2);stroke-dasharray:2 3}.l3{stroke:var(--c3);stroke-dasharray:9 3 2 3}\n"
           ".m0{fill:var(--c0)}.m1{fill:var(--c1)}.m2{fill:var(--c2)}.m3{fill:var(--c3)}\n"
           ".h1,.h2,.h3,.h4,.h5,.h6,.h7{fill:var(--c0)}.h0{fill:var(--cold)}\n"
           ".h1{fill-opacity:.08}.h2{fill-opacity:.18}.h3{fill-opacity:.32}.h4{fill-opacity:.48}\n"
           ".h5{fill-opacity:.64}.h6{fill-opacity:.82}.h7{fill-opacity:1}\n";
}

static void begin_svg(mq_buf *out, const char *id, const char *title, const char *description, double height)
{
    mq_buf_fmt(out, "<svg id=\"%s\" viewBox=\"0 0 %d %.0f\" role=\"img\" aria-labelledby=\"%s-t %s-d\">", id, (int)WIDTH, height,
               id, id);
    mq_buf_fmt(out, "<title id=\"%s-t\">", id);
    mq_html_text(out, title);
    mq_buf_fmt(out, "</title><desc id=\"%s-d\">", id);
    mq_html_text(out, description);
    mq_buf_str(out, "</desc>\n");
}

static void svg_text(mq_buf *out, double x, double y, const char *anchor, const char *text)
{
    mq_buf_fmt(out, "<text class=\"s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    mq_html_text(out, text);
    mq_buf_str(out, "</text>");
}

/* ---- Lines ---- */

typedef struct frame {
    double x0, x1; /* numbers at the edges */
    double y1;     /* value at the top; the bottom is 0 */
    double step;   /* between ticks of y */
} frame;

static double at_x(const frame *f, double x)
{
    double w = WIDTH - LEFT - RIGHT;
    return f->x1 > f->x0 ? LEFT + w * (x - f->x0) / (f->x1 - f->x0) : LEFT + w / 2;
}

static double at_y(const frame *f, double y)
{
    return TOP + PLOT_HEIGHT * (1 - y / f->y1);
}

/* 1, 2 or 5 times a power of ten such that three to six ticks reach max. */
static double nice_step(double max)
{
    double step = pow(10, floor(log10(max)));
    if (max / step < 1.5)
        return step / 5;
    if (max / step < 3)
        return step / 2;
    return max / step < 6 ? step : 2 * step;
}

static bool fit_frame(frame *f, const mq_line_plot *p)
{
    double max = -1;
    for (int s = 0; s < p->n_series; s++)
        for (int64_t i = 0; i < p->n; i++)
            if (isfinite(p->series[s].y[i]) && p->series[s].y[i] > max)
                max = p->series[s].y[i];
    if (max < 0)
        return false;
    f->x0 = p->x[0];
    f->x1 = p->x[p->n - 1];
    f->step = max > 0 ? nice_step(max) : 1;
    f->y1 = max > 0 ? f->step * ceil(max / f->step - 1e-9) : 1;
    return true;
}

static void draw_axes(mq_buf *out, const frame *f, const mq_line_plot *p)
{
    char text[64];
    for (int k = 0; k * f->step <= f->y1 * (1 + 1e-9); k++) {
        double y = at_y(f, k * f->step);
        mq_buf_fmt(out, "<line class=\"ax\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", (int)LEFT, WIDTH - RIGHT, y, y);
        snprintf(text, sizeof text, "%g%s", k * f->step, p->unit);
        svg_text(out, LEFT - 6, y + 4, "end", text);
    }
    int every = 1;
    static const int steps[] = {1, 2, 5, 10, 20, 50, 100};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0] && (f->x1 - f->x0) / every > 16; i++)
        every = steps[i];
    for (int64_t i = 0; i < p->n; i++)
        if (p->x[i] % every == 0) {
            snprintf(text, sizeof text, "%d", p->x[i]);
            svg_text(out, at_x(f, p->x[i]), TOP + PLOT_HEIGHT + 16, "middle", text);
        }
    svg_text(out, (LEFT + WIDTH - RIGHT) / 2.0, TOP + PLOT_HEIGHT + 34, "middle", p->x_name);
    mq_buf_str(out, "\n");
}

/* A shape of its own for each series, so that colour is not needed. */
static void draw_marker(mq_buf *out, int series, double x, double y)
{
    switch (series) {
    case 0:
        mq_buf_fmt(out, "<circle class=\"m0\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\">", x, y);
        break;
    case 1:
        mq_buf_fmt(out, "<path class=\"m1\" d=\"M%.1f %.1fh7v7h-7z\">", x - 3.5, y - 3.5);
        break;
    case 2:
        mq_buf_fmt(out, "<path class=\"m2\" d=\"M%.1f %.1fl4.5 8h-9z\">", x, y - 5);
        break;
    default:
        mq_buf_fmt(out, "<path class=\"m3\" d=\"M%.1f %.1fl4.5 4.5l-4.5 4.5l-4.5-4.5z\">", x, y - 4.5);
        break;
    }
}

static void end_marker(mq_buf *out, int series)
{
    mq_buf_str(out, series == 0 ? "</circle>" : "</path>");
}

static void draw_series(mq_buf *out, const frame *f, const mq_line_plot *p, int s)
{
    const mq_plot_series *line = &p->series[s];
    bool pen_down = false;
    mq_buf_fmt(out, "<path class=\"l%d\" d=\"", s);
    for (int64_t i = 0; i < p->n; i++) {
        bool there = isfinite(line->y[i]);
        if (there)
            mq_buf_fmt(out, "%s%.1f %.1f", pen_down ? "L" : "M", at_x(f, p->x[i]), at_y(f, line->y[i]));
        pen_down = there;
    }
    mq_buf_str(out, "\"/>\n");
    for (int64_t i = 0; i < p->n; i++) {
        if (!isfinite(line->y[i]))
            continue;
        draw_marker(out, s, at_x(f, p->x[i]), at_y(f, line->y[i]));
        mq_buf_str(out, "<title>");
        mq_html_text(out, p->x_name);
        mq_buf_fmt(out, " %d, ", p->x[i]);
        mq_html_text(out, line->name);
        mq_buf_fmt(out, ": %.4g", line->y[i]);
        mq_html_text(out, p->unit);
        mq_buf_str(out, "</title>");
        end_marker(out, s);
    }
    mq_buf_str(out, "\n");
}

static void draw_legend(mq_buf *out, const mq_line_plot *p)
{
    for (int s = 0; s < p->n_series; s++) {
        double x = LEFT + 150 * s;
        mq_buf_fmt(out, "<path class=\"l%d\" d=\"M%.1f 12h28\"/>", s, x);
        draw_marker(out, s, x + 14, 12);
        end_marker(out, s);
        svg_text(out, x + 34, 16, "start", p->series[s].name);
    }
    mq_buf_str(out, "\n");
}

void mq_svg_lines(mq_buf *out, const mq_line_plot *p)
{
    frame f;
    if (p->n < 1 || p->n_series > MAX_SERIES || !fit_frame(&f, p)) {
        mq_buf_str(out, "<p>no values</p>\n");
        return;
    }
    begin_svg(out, p->id, p->title, "A line plot; the table below holds its values.", TOP + PLOT_HEIGHT + BOTTOM);
    draw_axes(out, &f, p);
    for (int s = 0; s < p->n_series; s++)
        draw_series(out, &f, p, s);
    draw_legend(out, p);
    mq_buf_str(out, "</svg>\n");
}

/* ---- Heat map ---- */

/* 0: none; 1: below an eighth of the mean; then powers of two; 7: four times the mean and more. */
static int shade(int64_t count, double mean)
{
    if (count == 0)
        return 0;
    double power = floor(log2((double)count / mean));
    return power < -3 ? 1 : power > 1 ? 7 : (int)power + 5;
}

static void draw_scale(mq_buf *out, double y)
{
    static const char *const names[] = {"none", "< 1/8", "1/8", "1/4", "1/2", "1", "2", "4 x mean"};
    for (int i = 0; i < 8; i++) {
        double x = LEFT + 80 * i;
        mq_buf_fmt(out, "<rect class=\"h%d\" x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"12\"/>", i, x, y);
        svg_text(out, x + 18, y + 10, "start", names[i]);
    }
    mq_buf_str(out, "\n");
}

static void draw_row(mq_buf *out, const mq_heat_map *m, int64_t row, double y, double cell_w, double cell_h)
{
    const int64_t *counts = m->counts + row * m->n_cols;
    char text[32];
    double sum = 0;
    for (int64_t c = 0; c < m->n_cols; c++)
        sum += (double)counts[c];
    snprintf(text, sizeof text, "%d", m->row_numbers[row]);
    svg_text(out, LEFT - 6, y + cell_h / 2 + 4, "end", text);
    for (int64_t c = 0; c < m->n_cols; c++) {
        mq_buf_fmt(out, "<rect class=\"h%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>",
                   shade(counts[c], sum / (double)m->n_cols), LEFT + cell_w * (double)c, y, cell_w * 0.94, cell_h * 0.92);
        mq_html_text(out, m->row_name);
        mq_buf_fmt(out, " %d, ", m->row_numbers[row]);
        mq_html_text(out, m->col_name);
        mq_buf_fmt(out, " %lld: %lld ", (long long)c, (long long)counts[c]);
        mq_html_text(out, m->what);
        mq_buf_str(out, "</title></rect>");
    }
    mq_buf_str(out, "\n");
}

void mq_svg_heat(mq_buf *out, const mq_heat_map *m)
{
    if (m->n_rows < 1 || m->n_cols < 1) {
        mq_buf_str(out, "<p>no values</p>\n");
        return;
    }
    double cell_w = (double)(WIDTH - LEFT - RIGHT) / (double)m->n_cols, cell_h = cell_w > 22 ? 22 : cell_w;
    cell_h = cell_h < 14 ? 14 : cell_h;
    begin_svg(out, m->id, m->title, "One row a layer; each cell holds its count as a tooltip, the table below the extremes.",
              TOP + cell_h * (double)m->n_rows + BOTTOM);
    draw_scale(out, 4);
    for (int64_t r = 0; r < m->n_rows; r++)
        draw_row(out, m, r, TOP + cell_h * (double)r, cell_w, cell_h);
    svg_text(out, (LEFT + WIDTH - RIGHT) / 2.0, TOP + cell_h * (double)m->n_rows + 20, "middle", m->col_name);
    mq_buf_str(out, "</svg>\n");
}
