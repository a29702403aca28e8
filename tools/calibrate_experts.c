/* The experts of a layer, each on a bench of its own, side by side: weights from the checkpoint, rows from the residual stream,
 * units to the scratch file.
 *
 * An expert's result depends on its weights, its rows and the layer's moment alone, so neither the number of benches nor the order
 * in which experts end shows. */
#include <stdlib.h>
#include <string.h>

#include "src/dtype.h"
#include "src/pool.h"
#include "src/units.h"
#include "tools/calibrate_state.h"

static const mq_role roles[MQ_CALIB_MATRICES] = {MQ_ROLE_EXPERT_GATE, MQ_ROLE_EXPERT_UP, MQ_ROLE_EXPERT_DOWN};

/* ---- Benches ---- */

/* Stored bytes of the three matrices of one expert, pieces aligned; views may be NULL. */
static mq_status expert_bytes(int64_t *data_bytes, int64_t *scale_bytes, const mq_convert_job *job, int layer, int expert,
                              mq_err *err)
{
    *data_bytes = *scale_bytes = 0;
    for (int i = 0; i < MQ_CALIB_MATRICES; i++) {
        mq_source_tensor t;
        mq_matrix view;
        int64_t data, scale;
        MQ_TRY(mq_source_find(&t, job->source, (mq_key){MQ_STACK_MODEL, layer, roles[i], expert}, err));
        MQ_TRY(mq_source_slice(&view, &data, &scale, &t, 0, t.rows, 0, t.cols, err));
        *data_bytes += mq_round_up(data, 64);
        *scale_bytes += mq_round_up(scale, 64);
    }
    return MQ_OK;
}

/* The most that any expert takes. */
static mq_status most_bytes(int64_t *data_bytes, int64_t *scale_bytes, const mq_convert_job *job, mq_err *err)
{
    const mq_model *m = &job->source->model;
    *data_bytes = *scale_bytes = 64;
    for (int l = 0; l < m->n_layers; l++)
        for (int e = 0; m->is_moe[l] && e < m->n_experts; e++) {
            int64_t data, scale;
            MQ_TRY(expert_bytes(&data, &scale, job, l, e, err));
            *data_bytes = data > *data_bytes ? data : *data_bytes;
            *scale_bytes = scale > *scale_bytes ? scale : *scale_bytes;
        }
    return MQ_OK;
}

static mq_codes_shape shape_of(const mq_convert_job *job)
{
    const mq_model *m = &job->source->model;
    return (mq_codes_shape){.n_experts = m->n_experts, .hidden = m->hidden, .width = m->moe_intermediate};
}

static int64_t larger_group_bytes(int64_t (*bytes)(const mq_codes_shape *, int), const mq_convert_job *job)
{
    mq_codes_shape s = shape_of(job);
    int64_t a = bytes(&s, job->opt.group), b = job->n_mxfp4_layers ? bytes(&s, MQ_GROUP_MXFP4) : 0;
    return a > b ? a : b;
}

int64_t mq_expert_bench_bytes(const mq_convert_job *job)
{
    int64_t data, scale;
    mq_err err;
    if (most_bytes(&data, &scale, job, &err) != MQ_OK)
        return 0; /* the run will say why */
    return data + scale + mq_expert_units_bytes(job);
}

int64_t mq_expert_units_bytes(const mq_convert_job *job)
{
    return larger_group_bytes(mq_codes_gate_up_bytes, job) + larger_group_bytes(mq_codes_down_bytes, job);
}

static mq_status room(const mq_calibration *c, mq_expert_bench *b, uint8_t **out, int64_t n_bytes, mq_err *err)
{
    void *p;
    MQ_TRY(c->k->host_alloc(b->dev, &p, n_bytes + 1, err));
    *out = p;
    return MQ_OK;
}

/* Room for what the device needs of the host's, where it has memory of its own. */
static mq_status open_device_room(const mq_calibration *c, mq_expert_bench *b, int64_t data, int64_t scale, mq_err *err)
{
    int64_t hidden = c->m->hidden, floats = (int64_t)sizeof(float);
    struct {
        void *p;
        int64_t n_bytes;
    } all[] = {{NULL, data}, {NULL, scale}, {NULL, hidden * floats}, {NULL, hidden * hidden * floats},
               {NULL, MQ_CALIB_BLOCK_ROWS * (int64_t)sizeof(int32_t)}};
    mq_status st = MQ_OK;
    if (b->stage.on_host)
        return MQ_OK;
    for (int i = 0; st == MQ_OK && i < 5; i++)
        st = c->k->alloc(b->dev, &all[i].p, all[i].n_bytes, err);
    b->device_data = all[0].p;
    b->device_scale = all[1].p;
    b->post_norm = all[2].p;
    b->layer_gram = all[3].p;
    b->index = all[4].p;
    return st;
}

static mq_status open_bench(const mq_calibration *c, int i, int64_t data, int64_t scale, mq_err *err)
{
    mq_expert_bench *b = &c->benches[i];
    MQ_TRY(c->k->dev_open(&b->dev, mq_calibration_ordinal(c->job, i), 1, NULL, err));
    MQ_TRY(c->k->set_precision(b->dev, c->job->opt.calib.recipe.precision, err));
    MQ_TRY(mq_stage_init(&b->stage, c->k, b->dev, MQ_CALIB_BLOCK_ROWS, c->m->hidden, err));
    MQ_TRY(mq_calib_worker_create(&b->worker, c->k, b->dev, c->m->hidden, c->m->moe_intermediate, c->job->opt.group,
                                  MQ_CALIB_BLOCK_ROWS, err));
    MQ_TRY(room(c, b, &b->data, data, err));
    MQ_TRY(room(c, b, &b->scale, scale, err));
    MQ_TRY(room(c, b, &b->gate_up, larger_group_bytes(mq_codes_gate_up_bytes, c->job), err));
    MQ_TRY(room(c, b, &b->down, larger_group_bytes(mq_codes_down_bytes, c->job), err));
    return open_device_room(c, b, data, scale, err);
}

/* The rows that enter the experts on every device; the benches of one share them. */
static mq_status open_streams(mq_calibration *c, mq_err *err)
{
    int n = mq_calibration_n_devices(c->job);
    if (!c->plan->on_devices)
        return MQ_OK;
    c->streams = calloc((size_t)n, sizeof *c->streams);
    if (!c->streams)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int i = 0; i < c->plan->n_workers; i++) {
        void *p;
        if (i < n) {
            MQ_TRY(c->k->alloc(c->benches[i].dev, &p, c->n_rows * c->m->hidden * (int64_t)sizeof(float), err));
            c->streams[i] = p;
            MQ_TRY(c->k->dev_sync(c->benches[i].dev, err)); /* its zeros are there before another stream of the device writes */
        }
        c->benches[i].stream = c->streams[i % n];
    }
    return MQ_OK;
}

mq_status mq_expert_benches_open(mq_calibration *c, mq_err *err)
{
    int64_t data, scale;
    MQ_TRY(most_bytes(&data, &scale, c->job, err));
    c->benches = calloc((size_t)c->plan->n_workers, sizeof *c->benches);
    if (!c->benches)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int i = 0; i < c->plan->n_workers; i++)
        MQ_TRY(open_bench(c, i, data, scale, err));
    return open_streams(c, err);
}

void mq_expert_benches_close(mq_calibration *c)
{
    for (int i = 0; c->streams && i < c->plan->n_workers && i < mq_calibration_n_devices(c->job); i++)
        if (c->streams[i])
            c->k->release(c->benches[i].dev, c->streams[i]);
    free(c->streams);
    c->streams = NULL;
    for (int i = 0; c->benches && i < c->plan->n_workers; i++) {
        mq_expert_bench *b = &c->benches[i];
        void *arrays[] = {b->device_data, b->device_scale, b->post_norm, b->layer_gram, b->index};
        uint8_t *host[] = {b->data, b->scale, b->gate_up, b->down};
        for (size_t k = 0; k < sizeof arrays / sizeof arrays[0]; k++)
            if (arrays[k])
                c->k->release(b->dev, arrays[k]);
        mq_calib_worker_free(b->worker);
        for (size_t k = 0; k < sizeof host / sizeof host[0]; k++)
            if (host[k])
                c->k->host_free(b->dev, host[k]);
        mq_stage_release(&b->stage);
        if (b->dev)
            c->k->dev_close(b->dev);
    }
    free(c->benches);
    c->benches = NULL;
}

/* Gate, up and down as stored. */
static mq_status read_expert(mq_matrix views[MQ_CALIB_MATRICES], const mq_calibration *c, mq_expert_bench *b, int expert,
                             mq_err *err)
{
    int64_t data_at = 0, scale_at = 0;
    for (int i = 0; i < MQ_CALIB_MATRICES; i++) {
        mq_source_tensor t;
        int64_t data, scale;
        MQ_TRY(mq_source_find(&t, c->job->source, (mq_key){MQ_STACK_MODEL, c->layer, roles[i], expert}, err));
        MQ_TRY(mq_source_slice(&views[i], &data, &scale, &t, 0, t.rows, 0, t.cols, err));
        MQ_TRY(mq_source_read(&views[i], b->data + data_at, scale ? b->scale + scale_at : NULL, &t, 0, t.rows, 0, t.cols,
                              err));
        data_at += mq_round_up(data, 64);
        scale_at += mq_round_up(scale, 64);
    }
    b->data_bytes = data_at;
    b->scale_bytes = scale_at;
    return MQ_OK;
}

/* ---- Calibrated experts ---- */

/* What read_expert read, to the device; the views move along. */
static mq_status upload_expert(mq_matrix w[MQ_CALIB_MATRICES], mq_expert_bench *b, mq_err *err)
{
    MQ_TRY(mq_bytes_to_device(&b->stage, b->device_data, b->data, b->data_bytes, err));
    MQ_TRY(mq_bytes_to_device(&b->stage, b->device_scale, b->scale, b->scale_bytes, err));
    for (int i = 0; i < MQ_CALIB_MATRICES; i++) {
        w[i].data = mq_moved_address(&b->stage, w[i].data, b->data, b->data_bytes, b->device_data);
        w[i].scale = mq_moved_address(&b->stage, w[i].scale, b->scale, b->scale_bytes, b->device_scale);
    }
    return MQ_OK;
}

typedef struct row_source {
    const mq_calibration *c;
    mq_expert_bench *b;
    const int32_t *rows; /* of the expert's tokens */
} row_source;

/* Rows that enter the experts: gathered, then normed as the forward pass does. */
static mq_status lend_rows(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err)
{
    const row_source *s = ctx;
    const mq_calibration *c = s->c;
    const float *norm = s->b->post_norm ? s->b->post_norm : c->post_norm;
    const int32_t *rows = (sample ? c->sample : s->rows) + first;
    if (s->b->stream) {
        MQ_TRY(c->k->upload(s->b->dev, s->b->index, rows, n * (int64_t)sizeof *rows, err));
        MQ_TRY(c->k->gather(s->b->dev, x, s->b->stream, s->b->index, n, c->m->hidden, err));
    } else {
        MQ_TRY(mq_stage_gather(&s->b->stage, x, c->mid, rows, n, err));
    }
    return c->k->rmsnorm(s->b->dev, x, x, norm, c->m->norm_eps, n, c->m->hidden, err);
}

static mq_status do_expert(mq_calibration *c, mq_expert_bench *b, int expert, mq_err *err)
{
    mq_matrix w[MQ_CALIB_MATRICES];
    const mq_calib_recipe *recipe = &c->job->opt.calib.recipe;
    int64_t at = c->routes.first[expert], n = c->routes.first[expert + 1] - at;
    row_source source = {c, b, c->routes.rows + at};
    int refused;
    const float *layer_gram = b->layer_gram ? b->layer_gram : c->layer_gram;
    MQ_TRY(read_expert(w, c, b, expert, err));
    MQ_TRY(mq_wrap(err, upload_expert(w, b, err), "layer %d, expert %d", c->layer, expert));
    mq_calib_expert e = {
        .gate = w[MQ_CALIB_GATE],
        .up = w[MQ_CALIB_UP],
        .down = w[MQ_CALIB_DOWN],
        .n_tokens = n,
        .coef = c->routes.coef + at,
        .n_sample = mq_calib_needs_sample(recipe, n, c->m->moe_intermediate) ? c->n_sample : 0,
        .rows = lend_rows,
        .ctx = &source,
        .refused = &refused,
        .layer_gram = mq_calib_needs_layer(recipe, n, c->m->hidden) ? layer_gram : NULL,
        .layer_tokens = c->n_rows,
    };
    mq_calib_account *account = c->account.matrices + (int64_t)expert * MQ_CALIB_MATRICES;
    mq_status st = mq_calib_expert_run(b->worker, b->gate_up, b->down, account, &e, recipe, err);
    if (st != MQ_OK)
        return mq_calibration_blame_expert(c, expert, refused, st, err);
    for (int64_t i = 0; i < n; i++)
        c->account.coef_sums[expert] += (double)e.coef[i];
    return mq_codes_write(c->codes, expert, b->gate_up, b->down, err);
}

static mq_status expert_job(void *ctx, int64_t expert, int worker, mq_err *err)
{
    mq_calibration *c = ctx;
    MQ_TRY(mq_calibration_check_stop(c, err));
    mq_status st = do_expert(c, &c->benches[worker], (int)expert, err);
    mq_progress_add(c->progress, 10 * c->n_rows / c->m->n_experts);
    return st;
}

/* The second moment of all rows that enter the layer's experts, where any of them will ask for it. */
static mq_status sum_layer(mq_calibration *c, mq_err *err)
{
    int64_t hidden = c->m->hidden;
    bool needed = false;
    for (int e = 0; e < c->m->n_experts; e++)
        needed |= mq_calib_needs_layer(&c->job->opt.calib.recipe, c->routes.first[e + 1] - c->routes.first[e], hidden);
    if (!needed)
        return MQ_OK;
    MQ_TRY(c->k->axpby(c->dev, c->layer_gram, 0.0f, NULL, 0.0f, hidden * hidden, err));
    for (int64_t row = 0; row < c->n_rows; row += MQ_CALIB_BLOCK_ROWS) {
        int64_t n = c->n_rows - row < MQ_CALIB_BLOCK_ROWS ? c->n_rows - row : MQ_CALIB_BLOCK_ROWS;
        MQ_TRY(mq_calibration_check_stop(c, err));
        MQ_TRY(mq_stage_read(&c->stage, c->x, c->mid, row, n, err));
        MQ_TRY(c->k->rmsnorm(c->dev, c->x, c->x, c->post_norm, c->m->norm_eps, n, hidden, err));
        MQ_TRY(c->k->gram(c->dev, c->layer_gram, c->x, NULL, n, hidden, err));
    }
    MQ_TRY(c->k->dev_sync(c->dev, err));
    for (int i = 0; i < c->plan->n_workers; i++)
        if (c->benches[i].layer_gram)
            MQ_TRY(mq_floats_across(c->k, c->benches[i].dev, c->benches[i].layer_gram, c->dev, c->layer_gram,
                                    hidden * hidden, err));
    return MQ_OK;
}

/* The norm in front of the experts to every device. */
static mq_status share_norm(mq_calibration *c, mq_err *err)
{
    for (int i = 0; i < c->plan->n_workers; i++)
        if (c->benches[i].post_norm)
            MQ_TRY(mq_floats_across(c->k, c->benches[i].dev, c->benches[i].post_norm, c->dev, c->post_norm, c->m->hidden,
                                    err));
    return MQ_OK;
}

/* The rows that enter the experts from the first device to the others. */
static mq_status share_stream(mq_calibration *c, mq_err *err)
{
    int n = mq_calibration_n_devices(c->job) < c->plan->n_workers ? mq_calibration_n_devices(c->job) : c->plan->n_workers;
    int64_t n_bytes = c->n_rows * c->m->hidden * (int64_t)sizeof(float);
    MQ_TRY(c->k->dev_sync(c->dev, err));
    for (int i = 1; c->streams && i < n; i++)
        MQ_TRY(c->k->copy(c->benches[i].dev, c->streams[i], c->streams[0], n_bytes, err));
    for (int i = 1; c->streams && i < n; i++)
        MQ_TRY(c->k->dev_sync(c->benches[i].dev, err)); /* other benches of the device read them too */
    return MQ_OK;
}

/* Rows ascending within each expert. */
static void group_rows(mq_calibration *c)
{
    int topk = c->m->n_experts_per_tok, n_experts = c->m->n_experts;
    int64_t *first = c->routes.first, picks = c->n_rows * topk;
    memset(first, 0, (size_t)(n_experts + 1) * sizeof *first);
    for (int64_t i = 0; i < picks; i++)
        first[c->route_ids[i] + 1]++;
    for (int e = 0; e < n_experts; e++)
        first[e + 1] += first[e];
    for (int64_t i = 0; i < picks; i++) {
        int64_t at = first[c->route_ids[i]]++;
        c->routes.rows[at] = (int32_t)(i / topk);
        c->routes.coef[at] = c->route_coef[i];
    }
    /* Filling moved every start to its end, which is the next one's start. */
    for (int e = n_experts; e > 0; e--)
        first[e] = first[e - 1];
    first[0] = 0;
}

mq_status mq_calibrate_experts(mq_calibration *c, mq_err *err)
{
    group_rows(c);
    MQ_TRY(mq_account_init(&c->account, c->m->n_experts, err));
    mq_codes_begin(c->codes, c->layer, c->job->opt.group);
    MQ_TRY(share_norm(c, err));
    MQ_TRY(share_stream(c, err));
    MQ_TRY(sum_layer(c, err));
    return mq_pool_run(c->plan->n_workers, c->m->n_experts, expert_job, c, err);
}

/* ---- Experts that stay MXFP4 ---- */

static void reorder(uint8_t *units, const mq_matrix *parts, int n_parts)
{
    int64_t cols = parts[0].cols, rows_per_part = MQ_UNIT_ROWS / n_parts;
    int64_t n_tiles = parts[0].rows / rows_per_part, tile_bytes = mq_tile_bytes(cols, MQ_GROUP_MXFP4);
    for (int64_t tile = 0; tile < n_tiles; tile++) {
        const uint8_t *rows_q[MQ_UNIT_ROWS], *rows_s[MQ_UNIT_ROWS];
        for (int i = 0; i < MQ_UNIT_ROWS; i++) {
            int64_t row = tile * rows_per_part + i % rows_per_part;
            rows_q[i] = (const uint8_t *)parts[i / rows_per_part].data + row * cols / 2;
            rows_s[i] = (const uint8_t *)parts[i / rows_per_part].scale + row * cols / MQ_MX_GROUP;
        }
        mq_mxfp4_tiles(rows_q, rows_s, MQ_UNIT_ROWS, cols, units + tile * tile_bytes);
    }
}

static mq_status reorder_job(void *ctx, int64_t expert, int worker, mq_err *err)
{
    mq_calibration *c = ctx;
    mq_expert_bench *b = &c->benches[worker];
    mq_matrix w[MQ_CALIB_MATRICES];
    MQ_TRY(mq_calibration_check_stop(c, err));
    MQ_TRY(read_expert(w, c, b, (int)expert, err));
    reorder(b->gate_up, &w[MQ_CALIB_GATE], 2);
    reorder(b->down, &w[MQ_CALIB_DOWN], 1);
    mq_progress_add(c->progress, 10 * c->n_rows / c->m->n_experts);
    return mq_codes_write(c->codes, expert, b->gate_up, b->down, err);
}

mq_status mq_reorder_experts(mq_calibration *c, mq_err *err)
{
    mq_codes_begin(c->codes, c->layer, MQ_GROUP_MXFP4);
    return mq_pool_run(c->plan->n_workers, c->m->n_experts, reorder_job, c, err);
}
