/* Second moments of an expert's inputs and of its h, and the ladder for experts with few tokens.
 *
 * With m tokens of its own and n columns:  m >= 4 n: the expert's own moment H;  0 < m < 4 n: H' = rho H + (1 - rho) (tr H /
 * tr H_o) H_o, rho = m / (m + kappa n), where H_o is of all tokens: the layer's moment for gate and up, for down that of h of
 * a fixed sample pushed through this very expert (the h of different experts have nothing in common);  m = 0: H_o as it is.
 * A moment of zeros (inputs all zero) says nothing and counts as none.  The cross moments for down's target are blended alike. */
#include <math.h>
#include <stdlib.h>

#include "calib/expert_parts.h"
#include "src/units.h"

enum { F = sizeof(float) };

/* Where tokens come from. */
typedef struct token_rows {
    const mq_calib_expert *e;
    const mq_calib_recipe *r;
    bool sample;
    int64_t n;
} token_rows;

static token_rows own_rows(const mq_calib_expert *e, const mq_calib_recipe *r)
{
    return (token_rows){e, r, false, e->n_tokens};
}

static token_rows sample_rows(const mq_calib_expert *e, const mq_calib_recipe *r)
{
    return (token_rows){e, r, true, e->n_sample};
}

/* Inputs first .. first + n - 1 into w->x, unless they are there. */
static mq_status load_rows(mq_calib_worker *w, const token_rows *t, int64_t first, int64_t n, mq_err *err)
{
    if (w->held_n == n && w->held_first == first && w->held_sample == t->sample)
        return MQ_OK;
    w->held_n = 0;
    MQ_TRY(t->e->rows(t->e->ctx, w->x, t->sample, first, n, err));
    w->held_sample = t->sample;
    w->held_first = first;
    w->held_n = n;
    return MQ_OK;
}

/* coefficient^power of the tokens to w->weight; *out is NULL where all count 1. */
static mq_status load_weights(mq_calib_worker *w, const float **out, const token_rows *t, int64_t first, int64_t n,
                              mq_err *err)
{
    *out = NULL;
    if (t->sample || t->r->weight_power == 0)
        return MQ_OK;
    for (int64_t i = 0; i < n; i++) {
        float c = t->e->coef[first + i], p = c;
        for (int k = 1; k < t->r->weight_power; k++)
            p *= c;
        w->host_weight[i] = p;
    }
    *out = w->weight;
    return w->k->upload(w->dev, w->weight, w->host_weight, n * F, err);
}

/* w->h [n, width] of the inputs in w->x through packed gate and up, and w->h_source through the source's, as wanted. */
static mq_status push_rows(mq_calib_worker *w, const token_rows *t, bool packed, bool source, int64_t n, mq_err *err)
{
    const mq_kernels *k = w->k;
    if (packed) {
        mq_matrix gate_up = {.scheme = MQ_SCHEME_INT4, .rows = 2 * w->width, .cols = w->hidden, .data = w->gate_up,
                             .group = w->group};
        MQ_TRY(k->linear(w->dev, w->mid, w->x, &gate_up, n, err));
        MQ_TRY(k->swiglu(w->dev, w->h, w->mid, NULL, true, n, w->width, err));
    }
    if (source) {
        float *up = w->mid + n * w->width;
        MQ_TRY(k->linear(w->dev, w->mid, w->x, &t->e->gate, n, err));
        MQ_TRY(k->linear(w->dev, up, w->x, &t->e->up, n, err));
        MQ_TRY(k->swiglu(w->dev, w->h_source, w->mid, up, false, n, w->width, err));
    }
    return MQ_OK;
}

/* What to sum: inputs, or h with or without its cross moment. */
typedef enum content { INPUTS, H_PACKED, H_SOURCE, H_CROSS } content;

/* The rows whose moment is wanted, in device memory, for the block in w->x. */
static mq_status block_rows_of(mq_calib_worker *w, const float **out, const token_rows *t, content what, int64_t n,
                               mq_err *err)
{
    *out = what == INPUTS ? w->x : what == H_SOURCE ? w->h_source : w->h;
    return what == INPUTS ? MQ_OK : push_rows(w, t, what != H_SOURCE, what == H_SOURCE || what == H_CROSS, n, err);
}

/* g [n, n] and (H_CROSS) c = sums over all rows of t, block by block. */
static mq_status sum_rows(mq_calib_worker *w, float *g, float *c, const token_rows *t, content what, mq_err *err)
{
    const mq_kernels *k = w->k;
    int64_t cols = what == INPUTS ? w->hidden : w->width;
    MQ_TRY(k->axpby(w->dev, g, 0.0f, NULL, 0.0f, cols * cols, err));
    if (what == H_CROSS)
        MQ_TRY(k->axpby(w->dev, c, 0.0f, NULL, 0.0f, cols * cols, err));
    for (int64_t first = 0; first < t->n; first += w->block_rows) {
        int64_t n = t->n - first < w->block_rows ? t->n - first : w->block_rows;
        const float *rows, *weight;
        MQ_TRY(load_rows(w, t, first, n, err));
        MQ_TRY(load_weights(w, &weight, t, first, n, err));
        MQ_TRY(block_rows_of(w, &rows, t, what, n, err));
        MQ_TRY(k->gram(w->dev, g, rows, weight, n, cols, err));
        if (what != H_CROSS)
            continue;
        MQ_TRY(k->axpby(w->dev, w->h_source, 1.0f, w->h, -1.0f, n * cols, err));
        MQ_TRY(k->cross(w->dev, c, w->h, w->h_source, weight, n, cols, cols, err));
    }
    return MQ_OK;
}

/* ---- finite or refused ---- */

/* First value of values [n, cols] that is not finite; -1: none. */
static int64_t find_bad(const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return i;
    return -1;
}

/* Say which row of t made the moment's column bad.  Goes through the rows once more; the run ends here. */
static mq_status refuse_rows(mq_calib_worker *w, const token_rows *t, content what, int64_t column, mq_err *err)
{
    const char *name = what == INPUTS ? "input" : "h", *whose = t->sample ? "sample row" : "token";
    int64_t cols = what == INPUTS ? w->hidden : w->width;
    float *values = malloc((size_t)(w->block_rows * cols) * sizeof *values);
    mq_status st = values ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory (calibration)");
    for (int64_t first = 0; st == MQ_OK && first < t->n; first += w->block_rows) {
        int64_t n = t->n - first < w->block_rows ? t->n - first : w->block_rows;
        const float *rows;
        st = load_rows(w, t, first, n, err);
        if (st == MQ_OK)
            st = block_rows_of(w, &rows, t, what, n, err);
        if (st == MQ_OK)
            st = w->k->download(w->dev, values, rows, n * cols * F, err);
        int64_t bad = st == MQ_OK ? find_bad(values, n * cols) : -1;
        if (bad >= 0)
            st = mq_fail(err, MQ_E_NUMERIC, "%s of %s %lld, column %lld is %g, expected a finite number", name, whose,
                         (long long)(first + bad / cols), (long long)(bad % cols), (double)values[bad]);
    }
    free(values);
    if (st == MQ_OK)
        st = mq_fail(err, MQ_E_NUMERIC, "second moment of the %s overflows in column %lld", name, (long long)column);
    return st;
}

/* Diagonal of g [n, n] to w->diag; *bad is a column that is not finite, or -1. */
static mq_status read_diag(mq_calib_worker *w, double *trace, int64_t *bad, const float *g, int64_t n, mq_err *err)
{
    MQ_TRY(w->k->diag(w->dev, w->vec, g, n, err));
    MQ_TRY(w->k->download(w->dev, w->diag, w->vec, n * F, err));
    *bad = find_bad(w->diag, n);
    *trace = 0.0;
    for (int64_t i = 0; i < n; i++)
        *trace += (double)w->diag[i];
    return MQ_OK;
}

static mq_status sum_checked(mq_calib_worker *w, float *g, float *c, double *trace, const token_rows *t, content what,
                             mq_err *err)
{
    int64_t bad;
    MQ_TRY(sum_rows(w, g, c, t, what, err));
    MQ_TRY(read_diag(w, trace, &bad, g, what == INPUTS ? w->hidden : w->width, err));
    return bad < 0 ? MQ_OK : refuse_rows(w, t, what, bad, err);
}

/* ---- blends ---- */

/* y = rho y + (1 - rho) (own / other) x over n * n elements; y is x where own is 0. */
static mq_status blend(mq_calib_worker *w, float *y, const float *x, const mq_calib_recipe *r, int64_t n_tokens, int64_t n,
                       double own, double other, mq_err *err)
{
    double m = (double)n_tokens, rho = m / (m + (double)r->kappa * (double)n);
    if (!(own > 0.0))
        return w->k->axpby(w->dev, y, 0.0f, x, 1.0f, n * n, err);
    return w->k->axpby(w->dev, y, (float)rho, x, (float)((1.0 - rho) * own / other), n * n, err);
}

/* The path of a moment that may be blended, given the traces of both. */
static mq_calib_path path_of(double own, double other)
{
    return own > 0.0 ? other > 0.0 ? MQ_CALIB_SHRUNK : MQ_CALIB_OWN : other > 0.0 ? MQ_CALIB_LAYER : MQ_CALIB_PLAIN;
}

/* Diagonal and trace of what w->g became. */
static mq_status finish(mq_calib_worker *w, mq_calib_moment *out, mq_err *err)
{
    int64_t bad;
    if (out->path == MQ_CALIB_PLAIN)
        return MQ_OK;
    MQ_TRY(read_diag(w, &out->trace, &bad, w->g, out->n, err));
    if (bad >= 0)
        return mq_fail(err, MQ_E_NUMERIC, "blended moment overflows in column %lld", (long long)bad);
    return MQ_OK;
}

static mq_status layer_trace(mq_calib_worker *w, double *trace, const mq_calib_expert *e, mq_err *err)
{
    int64_t bad;
    *trace = 0.0;
    if (!e->layer_gram || e->layer_tokens <= 0)
        return MQ_OK;
    MQ_TRY(read_diag(w, trace, &bad, e->layer_gram, w->hidden, err));
    if (bad >= 0)
        return mq_fail(err, MQ_E_NUMERIC, "the layer's moment is not finite in column %lld", (long long)bad);
    return MQ_OK;
}

mq_status mq_calib_moment_input(mq_calib_worker *w, mq_calib_moment *out, const mq_calib_expert *e,
                                const mq_calib_recipe *r, mq_err *err)
{
    token_rows own = own_rows(e, r);
    double of_own = 0.0, of_layer = 0.0;
    *out = (mq_calib_moment){.path = MQ_CALIB_OWN, .n = w->hidden};
    if (own.n > 0)
        MQ_TRY(sum_checked(w, w->g, NULL, &of_own, &own, INPUTS, err));
    if (!(of_own > 0.0) || mq_calib_needs_layer(r, own.n, w->hidden)) {
        MQ_TRY(layer_trace(w, &of_layer, e, err));
        out->path = path_of(of_own, of_layer);
        if (of_layer > 0.0)
            MQ_TRY(blend(w, w->g, e->layer_gram, r, own.n, w->hidden, of_own, of_layer, err));
    }
    return finish(w, out, err);
}

mq_status mq_calib_moment_h(mq_calib_worker *w, mq_calib_moment *out, const mq_calib_expert *e, const mq_calib_recipe *r,
                            mq_err *err)
{
    token_rows own = own_rows(e, r), sample = sample_rows(e, r);
    double of_own = 0.0, of_sample = 0.0;
    bool cross = r->quantized_h && r->down_target && r->method == MQ_CALIB_GPTQ;
    content what = !r->quantized_h ? H_SOURCE : cross ? H_CROSS : H_PACKED;
    *out = (mq_calib_moment){.path = MQ_CALIB_OWN, .n = w->width, .has_cross = cross};
    if (own.n > 0)
        MQ_TRY(sum_checked(w, w->g, w->c, &of_own, &own, what, err));
    if (!(of_own > 0.0) || mq_calib_needs_sample(r, own.n, w->width)) {
        if (sample.n > 0)
            MQ_TRY(sum_checked(w, w->a, w->c2, &of_sample, &sample, what, err));
        out->path = path_of(of_own, of_sample);
        if (of_sample > 0.0)
            MQ_TRY(blend(w, w->g, w->a, r, own.n, w->width, of_own, of_sample, err));
        if (of_sample > 0.0 && cross)
            MQ_TRY(blend(w, w->c, w->c2, r, own.n, w->width, of_own, of_sample, err));
    }
    return finish(w, out, err);
}
