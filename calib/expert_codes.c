/* From weights and a moment H to codes and scales.
 *
 *   order    columns by falling diagonal, ties by index
 *   ridge    H' = H with a larger diagonal, kept for all that follows: what a step may gain on the tokens seen is held against
 *            what it costs on others.  Relative to each column's own element, its limit is the weighted search; a small part
 *            relative to the mean keeps weights near the source's where inputs are faint.  A failed
 *            factorisation is tried again with twice the ridge, ten times in all, then the matrix gets that limit (path
 *            "diagonal")
 *   target   down: W* = W + f W c^T H'^-1, so that what h lost on the way is made up for
 *   scales   the search of kernels/round.h weighted by H's diagonal, once and for all, so that any order of columns may follow
 *   codes    error feedback, then descent on D H' D^T
 *   rounds   scales by least squares for these codes, descent; error feedback with these scales, descent; each row keeps
 *            the best it has met; at the end scales once more
 *
 * Columns that no input ever moves (a zero on the diagonal) have zeros in all of H; they count like the mean column without
 * ties to others, which is plain rounding.  They are not set to zero: with few tokens "never seen" is no promise.
 * Sources: expert.h; damping that falls with the tokens, shrinkage, rounds: own. */
#include <math.h>
#include <stdlib.h>

#include "calib/expert_parts.h"

enum { F = sizeof(float), MAX_TRIES = 10 };

/* One matrix on its way. */
typedef struct choice {
    mq_calib_worker *w;
    const mq_calib_recipe *r;
    const mq_calib_moment *moment;
    int64_t rows, cols, n_tokens;
    const float *target; /* what the codes should come near: w->w, or W* behind it */
    double mean;         /* of the diagonal */
    double damp; /* relative ridge */
    int n_retries;
    mq_calib_path path;
} choice;

/* ---- order and importance ---- */

typedef struct column {
    float weight;
    int32_t index;
} column;

static int by_falling_weight(const void *a, const void *b)
{
    const column *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static mq_status set_order(choice *c, mq_err *err)
{
    mq_calib_worker *w = c->w;
    column *columns = malloc((size_t)c->cols * sizeof *columns);
    if (!columns)
        return mq_fail(err, MQ_E_NOMEM, "out of memory (calibration)");
    for (int64_t i = 0; i < c->cols; i++)
        columns[i] = (column){w->diag[i], (int32_t)i};
    if (c->r->act_order)
        qsort(columns, (size_t)c->cols, sizeof *columns, by_falling_weight);
    for (int64_t i = 0; i < c->cols; i++)
        w->host_perm[i] = columns[i].index;
    free(columns);
    return w->k->upload(w->dev, w->perm, w->host_perm, c->cols * (int64_t)sizeof *w->perm, err);
}

/* The diagonal over its mean: the search has no unit to overflow then. */
static mq_status set_omega(choice *c, const float **omega, mq_err *err)
{
    mq_calib_worker *w = c->w;
    *omega = NULL;
    if (c->path == MQ_CALIB_PLAIN || !c->r->weighted_search)
        return MQ_OK;
    for (int64_t i = 0; i < c->cols; i++)
        w->omega[i] = w->diag[i] > 0.0f ? (float)((double)w->diag[i] / c->mean) : 1.0f;
    *omega = w->vec;
    return w->k->upload(w->dev, w->vec, w->omega, c->cols * F, err);
}

/* ---- factor and target ---- */

/* Tokens behind the moment: those that stand in for the expert's own count for nothing. */
static double tokens_of(const choice *c)
{
    return c->path == MQ_CALIB_LAYER ? 0.0 : (double)c->n_tokens;
}

/* W* behind W in w->w.  *ok: every element is finite. */
static mq_status set_target(choice *c, bool *ok, mq_err *err)
{
    mq_calib_worker *w = c->w;
    const mq_kernels *k = w->k;
    float *to = w->w + c->rows * c->cols;
    mq_matrix cross = {.scheme = MQ_SCHEME_F32, .rows = c->cols, .cols = c->cols, .data = w->c};
    *ok = true;
    if (!c->moment->has_cross)
        return MQ_OK;
    MQ_TRY(k->linear(w->dev, to, w->w, &cross, c->rows, err)); /* W c^T */
    MQ_TRY(k->solve(w->dev, to, to, w->a, w->d, w->perm, c->rows, c->cols, err));
    double m = tokens_of(c), f = m > 0.0 ? m / (m + (double)c->r->target_few * (double)c->cols) : 0.0;
    MQ_TRY(k->axpby(w->dev, to, (float)f, w->w, 1.0f, c->rows * c->cols, err));
    MQ_TRY(k->weight_error(w->dev, NULL, w->norm2, NULL, to, NULL, c->rows, c->cols, w->group, err));
    MQ_TRY(k->download(w->dev, w->host_sums, w->norm2, c->rows * (int64_t)sizeof(double), err));
    for (int64_t r = 0; r < c->rows; r++)
        *ok = *ok && isfinite(w->host_sums[r]);
    c->target = to;
    return MQ_OK;
}

/* w->g's diagonal with the ridge, or as it was. */
static mq_status set_ridge(choice *c, bool on, mq_err *err)
{
    mq_calib_worker *w = c->w;
    for (int64_t i = 0; i < c->cols; i++) {
        double own = (double)w->diag[i], ridge = c->damp * c->mean;
        if (c->r->damp_columns)
            ridge = c->damp * own + ldexp((double)c->r->damp, c->n_retries) * c->mean;
        w->omega[i] = (float)(!on ? own : own > 0.0 ? own + ridge : c->mean);
    }
    MQ_TRY(w->k->upload(w->dev, w->vec, w->omega, c->cols * F, err));
    return w->k->set_diag(w->dev, w->g, w->vec, c->cols, err);
}

/* Factor of H' into w->a, w->d, or the diagonal path. */
static mq_status set_factor(choice *c, mq_err *err)
{
    mq_calib_worker *w = c->w;
    double n = (double)c->cols, m = tokens_of(c);
    c->damp = (double)c->r->damp + (double)c->r->damp_few * n / (n + m);
    for (c->n_retries = 0; c->n_retries < MAX_TRIES; c->n_retries++) {
        bool ok = false;
        MQ_TRY(set_ridge(c, true, err));
        mq_status st = w->k->factor(w->dev, w->a, w->d, w->g, w->perm, 0.0f, c->cols, err);
        if (st == MQ_OK)
            st = set_target(c, &ok, err);
        if (st != MQ_OK && st != MQ_E_NUMERIC)
            return st;
        if (st == MQ_OK && ok)
            return MQ_OK;
        c->damp = c->damp > 0.0 ? 2.0 * c->damp : 1e-4;
    }
    c->path = MQ_CALIB_DIAGONAL;
    c->damp = 0.0;
    c->target = w->w;
    return MQ_OK;
}

/* ---- codes ---- */

/* Error feedback with scale, then descent; loss is D H' D^T. */
static mq_status feed_back(const choice *c, uint8_t *codes, float *loss, const float *scale, mq_err *err)
{
    mq_calib_worker *w = c->w;
    MQ_TRY(w->k->ldlq(w->dev, codes, loss, c->target, scale, w->a, w->d, w->perm, c->rows, c->cols, w->group, err));
    if (c->r->descent > 0)
        return w->k->descend(w->dev, codes, loss, c->target, scale, w->g, c->r->descent, c->rows, c->cols, w->group, err);
    return w->k->quant_loss(w->dev, loss, NULL, codes, c->target, scale, w->g, c->rows, c->cols, w->group, err);
}

static mq_status keep_better(const choice *c, mq_err *err)
{
    mq_calib_worker *w = c->w;
    return w->k->keep_better(w->dev, w->codes, w->scale, w->loss, NULL, w->codes_new, w->scale_new, w->loss_new, c->rows,
                             c->cols, w->group, err);
}

static mq_status run_round(const choice *c, mq_err *err)
{
    mq_calib_worker *w = c->w;
    const mq_kernels *k = w->k;
    int64_t count = c->rows * c->cols;
    MQ_TRY(k->copy(w->dev, w->codes_new, w->codes, count, err));
    MQ_TRY(k->copy(w->dev, w->scale_new, w->scale, count / w->group * F, err));
    MQ_TRY(k->refit_scales(w->dev, w->scale_new, w->loss_new, w->codes_new, c->target, w->g, c->rows, c->cols, w->group,
                           err));
    if (c->r->descent > 0)
        MQ_TRY(k->descend(w->dev, w->codes_new, w->loss_new, c->target, w->scale_new, w->g, c->r->descent, c->rows, c->cols,
                          w->group, err));
    /* The new scales go on into the error feedback of every row, also of those that keep their old ones here. */
    MQ_TRY(keep_better(c, err));
    MQ_TRY(feed_back(c, w->codes_new, w->loss_new, w->scale_new, err));
    return keep_better(c, err);
}

/* The losses of all rows to host_rows' half. */
static mq_status read_losses(const choice *c, int half, const float *from, mq_err *err)
{
    mq_calib_worker *w = c->w;
    return w->k->download(w->dev, w->host_rows + half * w->n_rows, from, c->rows * F, err);
}

/* account: rows whose loss fell are counted. */
static mq_status run_rounds(const choice *c, mq_calib_account *account, int n_accounts, mq_err *err)
{
    mq_calib_worker *w = c->w;
    int n_rounds = c->r->refit ? c->r->rounds : 0;
    if (n_rounds <= 0)
        return MQ_OK;
    MQ_TRY(read_losses(c, 0, w->loss, err));
    for (int i = 0; i < n_rounds; i++)
        MQ_TRY(run_round(c, err));
    MQ_TRY(w->k->refit_scales(w->dev, w->scale, w->loss, w->codes, c->target, w->g, c->rows, c->cols, w->group, err));
    MQ_TRY(read_losses(c, 1, w->loss, err));
    for (int64_t r = 0; r < c->rows; r++)
        account[r / (c->rows / n_accounts)].n_refit += w->host_rows[w->n_rows + r] < w->host_rows[r];
    return MQ_OK;
}

/* ---- account ---- */

static mq_status add_losses(choice *c, mq_calib_account *account, int n_accounts, mq_err *err)
{
    mq_calib_worker *w = c->w;
    if (c->r->method == MQ_CALIB_GPTQ)
        MQ_TRY(set_ridge(c, false, err));
    MQ_TRY(w->k->quant_loss(w->dev, w->loss, w->norm, w->codes, c->target, w->scale, w->g, c->rows, c->cols, w->group, err));
    MQ_TRY(read_losses(c, 0, w->loss, err));
    MQ_TRY(read_losses(c, 1, w->norm, err));
    for (int64_t r = 0; r < c->rows; r++) {
        mq_calib_account *to = &account[r / (c->rows / n_accounts)];
        to->loss += (double)w->host_rows[r];
        to->energy += (double)w->host_rows[w->n_rows + r];
    }
    return MQ_OK;
}

static mq_status fill_accounts(choice *c, mq_calib_account *account, int n_accounts, mq_err *err)
{
    mq_calib_worker *w = c->w;
    if (c->path != MQ_CALIB_PLAIN)
        MQ_TRY(add_losses(c, account, n_accounts, err));
    double *err2 = w->host_sums, *norm2 = w->host_sums + w->n_rows;
    MQ_TRY(w->k->weight_error(w->dev, w->err2, w->norm2, w->codes, w->w, w->scale, c->rows, c->cols, w->group, err));
    MQ_TRY(w->k->download(w->dev, err2, w->err2, c->rows * (int64_t)sizeof *err2, err));
    MQ_TRY(w->k->download(w->dev, norm2, w->norm2, c->rows * (int64_t)sizeof *norm2, err));
    for (int64_t r = 0; r < c->rows; r++) {
        mq_calib_account *to = &account[r / (c->rows / n_accounts)];
        to->err2 += err2[r];
        to->norm2 += norm2[r];
    }
    for (int i = 0; i < n_accounts; i++) {
        account[i].path = c->path;
        account[i].damp = c->damp;
        account[i].n_retries = c->n_retries;
    }
    return MQ_OK;
}

mq_status mq_calib_choose(mq_calib_worker *w, mq_calib_account *account, int n_accounts, const mq_calib_moment *moment,
                          int64_t rows, int64_t n_tokens, const mq_calib_recipe *r, mq_err *err)
{
    choice c = {.w = w, .r = r, .moment = moment, .rows = rows, .cols = moment->n, .n_tokens = n_tokens, .target = w->w,
                .mean = moment->trace / (double)moment->n, .path = moment->path};
    for (int i = 0; i < n_accounts; i++)
        account[i] = (mq_calib_account){.n_tokens = n_tokens};
    if (c.path != MQ_CALIB_PLAIN && r->method == MQ_CALIB_GPTQ) {
        MQ_TRY(set_order(&c, err));
        MQ_TRY(set_factor(&c, err));
    }
    const float *omega;
    MQ_TRY(set_omega(&c, &omega, err));
    MQ_TRY(w->k->search_scales(w->dev, w->scale, c.target, omega, rows, c.cols, w->group, err));
    if (c.path == MQ_CALIB_PLAIN || c.path == MQ_CALIB_DIAGONAL || r->method == MQ_CALIB_IMATRIX) {
        MQ_TRY(w->k->nearest(w->dev, w->codes, c.target, w->scale, rows, c.cols, w->group, err));
    } else {
        MQ_TRY(feed_back(&c, w->codes, w->loss, w->scale, err));
        MQ_TRY(run_rounds(&c, account, n_accounts, err));
    }
    return fill_accounts(&c, account, n_accounts, err);
}
