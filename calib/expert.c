/* The job on one expert, in order: gate and up from the moment of the inputs, packed; then down from the moment of the h
 * that these give.  Here are the worker's memory and the checks; expert_moment.c sums, expert_codes.c chooses.
 *
 * Gate and up are one matrix of 2 width rows on the way, because they share the moment, its factor and the order of
 * columns. */
#include "calib/expert.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/expert_parts.h"
#include "src/units.h"

mq_calib_recipe mq_calib_recipe_default(mq_calib_method method, int group)
{
    bool gptq = method == MQ_CALIB_GPTQ;
    return (mq_calib_recipe){
        .method = method,
        .group = group,
        .precision = MQ_PRECISION_F32,
        .weight_power = 1,
        .weighted_search = true,
        .act_order = true,
        .refit = true,
        .rounds = gptq ? 2 : 0,
        .descent = gptq ? 4 : 0,
        .shrink = true,
        .quantized_h = true,
        .down_target = gptq,
        .target_few = 4.0f,
        .kappa = 0.5f,
        .damp_columns = true,
        .damp = 0.01f,
        .damp_few = 15.0f,
    };
}

const char *mq_calib_path_name(mq_calib_path p)
{
    static const char *const names[MQ_CALIB_PATH_COUNT] = {"own", "shrunk", "layer", "diagonal", "plain"};
    return (unsigned)p < MQ_CALIB_PATH_COUNT ? names[p] : "unknown";
}

/* Without shrinkage other tokens still stand in where the expert has none at all. */
static bool needs_others(const mq_calib_recipe *r, int64_t n_tokens, int64_t n)
{
    return n_tokens == 0 || (r->shrink && n_tokens < 4 * n);
}

bool mq_calib_needs_layer(const mq_calib_recipe *r, int64_t n_tokens, int64_t hidden)
{
    return needs_others(r, n_tokens, hidden);
}

bool mq_calib_needs_sample(const mq_calib_recipe *r, int64_t n_tokens, int64_t width)
{
    return needs_others(r, n_tokens, width);
}

/* ---- memory ---- */

typedef struct room {
    void **at;
    int64_t n_bytes;
} room;

enum { N_DEVICE = 23, N_HOST = 6, F = sizeof(float) };

static void set_shape(mq_calib_worker *w, int64_t hidden, int64_t width, int group, int64_t block_rows)
{
    w->hidden = hidden;
    w->width = width;
    w->group = group;
    w->block_rows = block_rows;
    w->n_max = hidden > width ? hidden : width;
    w->n_rows = 2 * width > hidden ? 2 * width : hidden;
    w->n_weights = 2 * width * hidden;
}

/* void ** of a typed pointer's address: what alloc and release want. */
#define ROOM(field, count) {(void **)(void *)&w->field, (count) * (int64_t)sizeof *w->field}

static void list_device(mq_calib_worker *w, room rooms[N_DEVICE])
{
    int64_t b = w->block_rows, n = w->n_max, rows = w->n_rows, all = w->n_weights;
    const room list[N_DEVICE] = {
        ROOM(x, b * w->hidden),
        ROOM(mid, b * 2 * w->width),
        ROOM(h, b * w->width),
        ROOM(h_source, b * w->width),
        ROOM(weight, b),
        ROOM(g, n * n),
        ROOM(a, n * n),
        ROOM(c, w->width * w->width),
        ROOM(c2, w->width * w->width),
        ROOM(vec, n),
        ROOM(d, n),
        ROOM(perm, n),
        ROOM(w, all),
        ROOM(scale, all / w->group),
        ROOM(scale_new, all / w->group),
        ROOM(codes, all),
        ROOM(codes_new, all),
        ROOM(loss, rows),
        ROOM(loss_new, rows),
        ROOM(norm, rows),
        ROOM(err2, rows),
        ROOM(norm2, rows),
        ROOM(gate_up, mq_units_bytes(2 * w->width, w->hidden, w->group) + mq_units_bytes(w->hidden, w->width, w->group)),
    };
    memcpy(rooms, list, sizeof list);
}

static void list_host(mq_calib_worker *w, room rooms[N_HOST])
{
    const room list[N_HOST] = {
        ROOM(host_weight, w->block_rows), ROOM(diag, w->n_max),         ROOM(omega, w->n_max),
        ROOM(host_perm, w->n_max),        ROOM(host_rows, 2 * w->n_rows), ROOM(host_sums, 2 * w->n_rows),
    };
    memcpy(rooms, list, sizeof list);
}

int64_t mq_calib_worker_bytes(int64_t hidden, int64_t width, int group, int64_t block_rows)
{
    mq_calib_worker w = {0};
    room rooms[N_DEVICE];
    set_shape(&w, hidden, width, group, block_rows);
    list_device(&w, rooms);
    int64_t sum = 0;
    for (int i = 0; i < N_DEVICE; i++)
        sum += (rooms[i].n_bytes + 255) / 256 * 256;
    return sum;
}

void mq_calib_worker_free(mq_calib_worker *w)
{
    if (!w)
        return;
    room device[N_DEVICE], host[N_HOST];
    list_device(w, device);
    list_host(w, host);
    for (int i = 0; i < N_DEVICE; i++)
        if (*device[i].at)
            w->k->release(w->dev, *device[i].at);
    for (int i = 0; i < N_HOST; i++)
        free(*host[i].at);
    free(w);
}

static mq_status check_shape(int64_t hidden, int64_t width, int group, int64_t block_rows, mq_err *err)
{
    if (group != 32 && group != 64 && group != 128)
        return mq_fail(err, MQ_E_SHAPE, "group %d, expected 32, 64 or 128", group);
    int64_t step = mq_block_cols(group);
    if (hidden < step || width < step || hidden % step || width % step || hidden > 1 << 20 || width > 1 << 20)
        return mq_fail(err, MQ_E_SHAPE, "experts of width %lld at hidden size %lld, expected multiples of %lld up to 2^20",
                       (long long)width, (long long)hidden, (long long)step);
    if (block_rows < 1 || block_rows > 1 << 20)
        return mq_fail(err, MQ_E_SHAPE, "blocks of %lld rows, expected 1 to 2^20", (long long)block_rows);
    return MQ_OK;
}

mq_status mq_calib_worker_create(mq_calib_worker **out, const mq_kernels *kernels, mq_dev *dev, int64_t hidden,
                                 int64_t width, int group, int64_t block_rows, mq_err *err)
{
    *out = NULL;
    MQ_TRY(check_shape(hidden, width, group, block_rows, err));
    mq_calib_worker *w = calloc(1, sizeof *w);
    if (!w)
        return mq_fail(err, MQ_E_NOMEM, "out of memory (calibration)");
    w->k = kernels;
    w->dev = dev;
    set_shape(w, hidden, width, group, block_rows);
    room device[N_DEVICE], host[N_HOST];
    list_device(w, device);
    list_host(w, host);
    mq_status st = MQ_OK;
    for (int i = 0; st == MQ_OK && i < N_HOST; i++) {
        *host[i].at = malloc((size_t)host[i].n_bytes);
        if (!*host[i].at)
            st = mq_fail(err, MQ_E_NOMEM, "out of memory (calibration)");
    }
    for (int i = 0; st == MQ_OK && i < N_DEVICE; i++)
        st = kernels->alloc(dev, device[i].at, device[i].n_bytes, err);
    if (st != MQ_OK) {
        mq_calib_worker_free(w);
        return st;
    }
    w->down = w->gate_up + mq_units_bytes(2 * width, hidden, group);
    *out = w;
    return MQ_OK;
}

/* ---- checks ---- */

static mq_status check_matrix(const mq_matrix *m, const char *name, int64_t rows, int64_t cols, mq_err *err)
{
    if (m->rows != rows || m->cols != cols)
        return mq_fail(err, MQ_E_SHAPE, "%s: [%lld, %lld], expected [%lld, %lld]", name, (long long)m->rows,
                       (long long)m->cols, (long long)rows, (long long)cols);
    return MQ_OK;
}

static mq_status check_expert(const mq_calib_worker *w, const mq_calib_expert *e, const mq_calib_recipe *r, mq_err *err)
{
    MQ_TRY(check_matrix(&e->gate, "gate", w->width, w->hidden, err));
    MQ_TRY(check_matrix(&e->up, "up", w->width, w->hidden, err));
    MQ_TRY(check_matrix(&e->down, "down", w->hidden, w->width, err));
    if (r->group != w->group)
        return mq_fail(err, MQ_E_SHAPE, "group %d, expected the worker's %d", r->group, w->group);
    for (int64_t i = 0; i < e->n_tokens; i++)
        if (!(e->coef[i] >= 0.0f) || !isfinite(e->coef[i]))
            return mq_fail(err, MQ_E_NUMERIC, "coefficient of token %lld is %g, expected finite and not negative",
                           (long long)i, (double)e->coef[i]);
    return MQ_OK;
}

/* Name the weight of row r of w->w that is not finite, or the largest one where the row as a whole is too large. */
static mq_status refuse_row(mq_calib_worker *w, const char *name, int64_t r, int64_t row, int64_t cols, mq_err *err)
{
    float *v = malloc((size_t)cols * sizeof *v);
    if (!v)
        return mq_fail(err, MQ_E_NOMEM, "out of memory (calibration)");
    mq_status st = w->k->download(w->dev, v, w->w + r * cols, cols * F, err);
    int64_t at = 0;
    for (int64_t c = 1; st == MQ_OK && c < cols && isfinite(v[at]); c++)
        at = !isfinite(v[c]) || fabsf(v[c]) > fabsf(v[at]) ? c : at;
    if (st == MQ_OK)
        st = mq_fail(err, MQ_E_NUMERIC, "%s: row %lld, column %lld: weight %g, expected %s", name, (long long)row,
                     (long long)at, (double)v[at],
                     isfinite(v[at]) ? "rows whose sum of squares is finite in FP32" : "a finite number");
    free(v);
    return st;
}

/* Widen m to row0 of w->w and see that every weight is finite, and small enough for the sums that follow. */
static mq_status take_matrix(mq_calib_worker *w, const char *name, const mq_matrix *m, int64_t row0, mq_err *err)
{
    float *to = w->w + row0 * m->cols;
    MQ_TRY(w->k->widen(w->dev, to, m, 0, m->rows, err));
    MQ_TRY(w->k->weight_error(w->dev, NULL, w->norm2, NULL, to, NULL, m->rows, m->cols, w->group, err));
    MQ_TRY(w->k->download(w->dev, w->host_sums, w->norm2, m->rows * (int64_t)sizeof(double), err));
    for (int64_t r = 0; r < m->rows; r++)
        if (!(w->host_sums[r] <= (double)FLT_MAX))
            return refuse_row(w, name, row0 + r, r, m->cols, err);
    return MQ_OK;
}

/* ---- the job ---- */

/* Matrix i (or all together) takes the blame for st where it is MQ_E_NUMERIC. */
static mq_status blame(const mq_calib_expert *e, int i, mq_status st)
{
    if (st == MQ_E_NUMERIC && e->refused)
        *e->refused = i;
    return st;
}

/* Sums that came out infinite say nothing, and nothing finite could be told of them. */
static mq_status check_account(const mq_calib_expert *e, const mq_calib_account *account, int i, mq_err *err)
{
    static const char *const names[MQ_CALIB_MATRICES] = {"gate", "up", "down"};
    const mq_calib_account *a = &account[i];
    if (isfinite(a->loss) && isfinite(a->energy) && isfinite(a->err2) && isfinite(a->norm2))
        return MQ_OK;
    return blame(e, i, mq_fail(err, MQ_E_NUMERIC, "%s: the loss of its codes is %g of %g, expected finite sums", names[i],
                               a->loss, a->energy));
}

static mq_status run_gate_up(mq_calib_worker *w, mq_calib_account *account, const mq_calib_expert *e,
                             const mq_calib_recipe *r, mq_err *err)
{
    mq_calib_moment moment;
    MQ_TRY(blame(e, MQ_CALIB_GATE, take_matrix(w, "gate", &e->gate, 0, err)));
    MQ_TRY(blame(e, MQ_CALIB_UP, take_matrix(w, "up", &e->up, w->width, err)));
    MQ_TRY(mq_wrap(err, mq_calib_moment_input(w, &moment, e, r, err), "gate and up"));
    MQ_TRY(mq_calib_choose(w, account, 2, &moment, 2 * w->width, e->n_tokens, r, err));
    MQ_TRY(check_account(e, account, MQ_CALIB_GATE, err));
    MQ_TRY(check_account(e, account, MQ_CALIB_UP, err));
    int64_t half = w->width * w->hidden;
    return w->k->pack_units(w->dev, w->gate_up, w->codes, w->scale, w->codes + half, w->scale + half / w->group, w->width,
                            w->hidden, w->group, err);
}

static mq_status run_down(mq_calib_worker *w, mq_calib_account *account, const mq_calib_expert *e,
                          const mq_calib_recipe *r, mq_err *err)
{
    mq_calib_moment moment;
    MQ_TRY(blame(e, MQ_CALIB_DOWN, take_matrix(w, "down", &e->down, 0, err)));
    MQ_TRY(blame(e, MQ_CALIB_MATRICES, mq_wrap(err, mq_calib_moment_h(w, &moment, e, r, err), "down")));
    MQ_TRY(mq_calib_choose(w, account + MQ_CALIB_DOWN, 1, &moment, w->hidden, e->n_tokens, r, err));
    MQ_TRY(check_account(e, account, MQ_CALIB_DOWN, err));
    return w->k->pack_units(w->dev, w->down, w->codes, w->scale, NULL, NULL, w->hidden, w->width, w->group, err);
}

mq_status mq_calib_expert_run(mq_calib_worker *w, uint8_t *gate_up, uint8_t *down,
                              mq_calib_account account[MQ_CALIB_MATRICES], const mq_calib_expert *e,
                              const mq_calib_recipe *recipe, mq_err *err)
{
    if (e->refused)
        *e->refused = -1;
    MQ_TRY(check_expert(w, e, recipe, err));
    w->held_n = 0;
    MQ_TRY(run_gate_up(w, account, e, recipe, err));
    MQ_TRY(run_down(w, account, e, recipe, err));
    MQ_TRY(w->k->download(w->dev, gate_up, w->gate_up, mq_units_bytes(2 * w->width, w->hidden, w->group), err));
    return w->k->download(w->dev, down, w->down, mq_units_bytes(w->hidden, w->width, w->group), err);
}
