/* Which tensor is behind a number that calibration cannot go on with.
 *
 * Only ever runs when a run ends: weights are read again, and the largest of those that may be at fault is told with its place.
 * Non-finite weights never come so far, because reading refuses them; what is left are weights so large that sums overflow. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/safetensors.h"
#include "src/dtype.h"
#include "tools/calibrate_state.h"

enum { SCAN_ROWS = 128 };

/* The largest weight met so far. */
typedef struct largest {
    mq_key key;
    float weight; /* with its sign */
    int64_t row, col;
    const char *path; /* of its file */
} largest;

static void look_at(largest *l, mq_key key, const mq_source_tensor *t, const float *w, int64_t row0, int64_t n_rows)
{
    for (int64_t i = 0; i < n_rows * t->cols; i++) {
        if (l->path && !(fabsf(w[i]) > fabsf(l->weight)))
            continue;
        const mq_file *file = mq_safetensors_file(t->data.file);
        *l = (largest){key, w[i], row0 + i / t->cols, i % t->cols, file ? file->path : "checkpoint"};
    }
}

/* A tensor, a few rows at a time.  A failure only leaves it out. */
static void scan_tensor(largest *l, const mq_source *s, mq_key key)
{
    mq_source_tensor t;
    if (mq_source_find(&t, s, key, NULL) != MQ_OK)
        return;
    for (int64_t row = 0, n; row < t.rows; row += n) {
        int64_t left = t.rows - row, part = t.part_rows - row % t.part_rows, data_bytes, scale_bytes;
        n = left < SCAN_ROWS ? left : SCAN_ROWS;
        n = n < part ? n : part;
        mq_matrix view;
        if (mq_source_slice(&view, &data_bytes, &scale_bytes, &t, row, n, 0, t.cols, NULL) != MQ_OK)
            return;
        uint8_t *bytes = aligned_alloc(64, (size_t)(mq_round_up(data_bytes, 64) + mq_round_up(scale_bytes + 1, 64)));
        float *wide = malloc((size_t)(n * t.cols) * sizeof *wide);
        bool good = bytes && wide &&
                    mq_source_read(&view, bytes, scale_bytes ? bytes + mq_round_up(data_bytes, 64) : NULL, &t, row, n, 0, t.cols,
                                   NULL) == MQ_OK;
        if (good) {
            mq_matrix_widen(&view, 0, n, wide);
            look_at(l, key, &t, wide, row, n);
        }
        free(bytes);
        free(wide);
        if (!good)
            return;
    }
}

static void scan_expert(largest *l, const mq_calibration *c, int expert, int matrix)
{
    static const mq_role roles[MQ_CALIB_MATRICES] = {MQ_ROLE_EXPERT_GATE, MQ_ROLE_EXPERT_UP, MQ_ROLE_EXPERT_DOWN};
    for (int i = 0; i < MQ_CALIB_MATRICES; i++)
        if (matrix < 0 || matrix == i)
            scan_tensor(l, c->job->source, (mq_key){MQ_STACK_MODEL, c->layer, roles[i], expert});
}

/* Everything outside of experts that a row passes on its way to the experts of c->layer. */
static void scan_way(largest *l, const mq_calibration *c)
{
    const mq_plan *plan = c->job->plan;
    for (int64_t f = 0; f < plan->n_files; f++)
        for (int64_t i = 0; plan->files[f].rank == 0 && i < plan->files[f].n_records; i++) {
            const mq_record_spec *r = &plan->files[f].records[i];
            bool on_way = r->key.stack == MQ_STACK_MODEL && r->key.layer <= c->layer && !r->is_expert;
            if (on_way && r->key.role != MQ_ROLE_HEAD && r->key.role != MQ_ROLE_FINAL_NORM)
                scan_tensor(l, c->job->source, r->key);
        }
}

/* Put file and tensor in front of err's text, and the weight behind it. */
static mq_status name_tensor(const largest *l, const char *what, mq_status st, mq_err *err)
{
    if (!l->path)
        return st;
    char name[MQ_KEY_NAME], cause[MQ_ERR_TEXT];
    mq_key_name(name, sizeof name, l->key);
    memcpy(cause, err->text, sizeof cause);
    return mq_fail(err, st, "%s: tensor '%s': %s (%s: %g in row %lld, column %lld)", l->path, name, cause, what,
                   (double)l->weight, (long long)l->row, (long long)l->col);
}

/* First value of the residual stream in front of the experts that is not finite; false: there is none. */
static bool find_in_stream(const mq_calibration *c, int64_t *row, int64_t *col, float *value)
{
    int64_t hidden = c->m->hidden;
    float *x = malloc((size_t)(SCAN_ROWS * hidden) * sizeof *x);
    bool found = false;
    for (int64_t at = 0; x && !found && at < c->n_rows; at += SCAN_ROWS) {
        int64_t n = c->n_rows - at < SCAN_ROWS ? c->n_rows - at : SCAN_ROWS;
        if (mq_hidden_read(c->mid, x, at, n, NULL) != MQ_OK)
            break;
        for (int64_t i = 0; !found && i < n * hidden; i++)
            if (!isfinite(x[i])) {
                found = true;
                *row = at + i / hidden;
                *col = i % hidden;
                *value = x[i];
            }
    }
    free(x);
    return found;
}

mq_status mq_calibration_blame_expert(const mq_calibration *c, int expert, int refused, mq_status st, mq_err *err)
{
    largest l = {.path = NULL};
    int64_t row, col;
    float value;
    mq_err here = {MQ_OK, ""};
    if (!err)
        err = &here;
    mq_wrap(err, st, "layer %d, expert %d", c->layer, expert);
    if (st != MQ_E_NUMERIC)
        return st;
    bool own = refused >= 0 && refused < MQ_CALIB_MATRICES;
    if (!own && find_in_stream(c, &row, &col, &value)) {
        char cause[MQ_ERR_TEXT];
        memcpy(cause, err->text, sizeof cause);
        mq_fail(err, st, "%s; in front of the experts the residual stream of calibration token %lld is %g in column %lld", cause,
                (long long)row, (double)value, (long long)col);
    } else if (refused >= 0) {
        scan_expert(&l, c, expert, own ? refused : -1);
        return name_tensor(&l, own ? "its largest weight" : "the expert's largest weight", st, err);
    }
    scan_way(&l, c);
    return name_tensor(&l, "the largest weight outside of experts so far", st, err);
}

mq_status mq_calibration_blame_layer(const mq_calibration *c, mq_status st, mq_err *err)
{
    largest l = {.path = NULL};
    for (int e = 0; e < c->m->n_experts; e++)
        scan_expert(&l, c, e, -1);
    mq_err here = {MQ_OK, ""};
    if (!err)
        err = &here;
    mq_wrap(err, st, "layer %d", c->layer);
    return name_tensor(&l, "the largest weight of its experts", st, err);
}
