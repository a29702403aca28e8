/* Plots as inline SVG, for pages without scripts.
 *
 * Everything is text and well-formed XML: values stand in <title> elements (tooltips), lines differ by dash and marker as well as by
 * colour, colours come from the page's style sheet (mq_svg_css), light and dark.  The same input gives the same bytes. */
#ifndef MQ_TOOLS_SVG_PLOT_H
#define MQ_TOOLS_SVG_PLOT_H

#include <stdint.h>

#include "src/buf.h"

/* Append text with <, >, &, " and ' escaped; ill-formed UTF-8 and characters that XML does not know become U+FFFD. */
void mq_html_text(mq_buf *out, const char *text);

/* Rules for the classes used here; the page defines --ink, --faint, --line, --c0 .. --c3, --cold. */
const char *mq_svg_css(void);

typedef struct mq_plot_series {
    const char *name;
    const double *y; /* [n]; NaN: nothing there */
} mq_plot_series;

/* A line plot over whole numbers. */
typedef struct mq_line_plot {
    const char *id;               /* of the SVG element; letters, digits and dashes */
    const char *title, *x_name;   /* "layer" */
    const char *unit;             /* behind values: " %" */
    const int *x;                 /* [n] ascending */
    int64_t n;
    const mq_plot_series *series; /* [n_series], at most 4 */
    int n_series;
} mq_line_plot;

/* Append the plot; nothing but a note where there is no value at all. */
void mq_svg_lines(mq_buf *out, const mq_line_plot *p);

/* A heat map of counts against a fair share, row by row. */
typedef struct mq_heat_map {
    const char *id, *title, *row_name, *col_name, *what; /* "layer", "expert", "tokens" */
    const int *row_numbers;                              /* [n_rows] */
    const int64_t *counts;                               /* [n_rows, n_cols] */
    int64_t n_rows, n_cols;
} mq_heat_map;

/* Append the map: each cell's shade is its count over the mean of its row, in powers of two; 0 has a colour of its own. */
void mq_svg_heat(mq_buf *out, const mq_heat_map *m);

#endif
