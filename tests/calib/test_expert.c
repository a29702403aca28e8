/* One expert's calibration against the whole job in double precision, its ladder of fallbacks rung by rung, what it refuses,
 * and that better methods are better where it counts: on the true moment. */
#include "tests/calib/expert_fixture.h"

#include <stdio.h>

static const mq_kernels *k;

typedef struct result {
    uint8_t *gate_up, *down;
    int64_t gate_up_bytes, down_bytes;
    mq_calib_account account[MQ_CALIB_MATRICES];
} result;

enum { BLOCK = 64 };

static mq_status run_on(mq_dev *dev, result *out, const fixture *f, const mq_calib_recipe *r, mq_err *err)
{
    mq_calib_worker *w;
    mq_assert_ok(mq_calib_worker_create(&w, k, dev, f->hidden, f->width, r->group, BLOCK, err), err);
    out->gate_up_bytes = mq_units_bytes(2 * f->width, f->hidden, r->group);
    out->down_bytes = mq_units_bytes(f->hidden, f->width, r->group);
    out->gate_up = malloc((size_t)out->gate_up_bytes);
    out->down = malloc((size_t)out->down_bytes);
    mq_status st = mq_calib_expert_run(w, out->gate_up, out->down, out->account, &f->e, r, err);
    mq_calib_worker_free(w);
    return st;
}

static mq_status run(result *out, const fixture *f, const mq_calib_recipe *r, mq_err *err)
{
    mq_dev *dev;
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, err), err);
    mq_status st = run_on(dev, out, f, r, err);
    k->dev_close(dev);
    return st;
}

static void result_free(result *r)
{
    free(r->gate_up);
    free(r->down);
}

/* Weights of a finished matrix: gate, up or down. */
static double *weights_of(const result *r, const fixture *f, int matrix, int group)
{
    bool is_down = matrix == MQ_CALIB_DOWN;
    int64_t rows = is_down ? f->hidden : f->width, cols = is_down ? f->width : f->hidden;
    double *w = doubles(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t row = is_down ? i / cols : mq_gate_up_row(i / cols, matrix == MQ_CALIB_UP);
        w[i] = (double)mq_units_at(is_down ? r->down : r->gate_up, cols, group, row, i % cols);
    }
    return w;
}

static const float *source_of(const fixture *f, int matrix)
{
    return matrix == MQ_CALIB_GATE ? f->gate.wide : matrix == MQ_CALIB_UP ? f->up.wide : f->down.wide;
}

/* D g D^T of a finished matrix against its source. */
static double true_loss(const result *r, const fixture *f, int matrix, int group, const double *g)
{
    bool is_down = matrix == MQ_CALIB_DOWN;
    int64_t rows = is_down ? f->hidden : f->width, cols = is_down ? f->width : f->hidden;
    double *d = weights_of(r, f, matrix, group);
    for (int64_t i = 0; i < rows * cols; i++)
        d[i] = (double)source_of(f, matrix)[i] - d[i];
    double loss = loss_of(d, g, rows, cols);
    free(d);
    return loss;
}

/* Moment of the inputs by the ladder. */
static double *input_moment(const fixture *f, const mq_calib_recipe *r)
{
    double *x = widened(f->x, f->n_tokens * f->hidden);
    double *g = moment_of(x, f->n_tokens, f->hidden, f->coef, r->weight_power);
    if (f->n_tokens == 0 || (r->shrink && f->n_tokens < 4 * f->hidden)) {
        double *layer = doubles(f->hidden * f->hidden);
        for (int64_t i = 0; i < f->hidden; i++)
            for (int64_t j = 0; j < f->hidden; j++)
                layer[i * f->hidden + j] = (double)f->layer[i > j ? i * f->hidden + j : j * f->hidden + i];
        blend_into(g, layer, f->n_tokens, (double)r->kappa, f->hidden);
        free(layer);
    }
    free(x);
    return g;
}

/* Moment of h of the finished gate and up, or of the source's, by the ladder. */
static double *h_moment(const fixture *f, const result *res, const mq_calib_recipe *r)
{
    double *gate = r->quantized_h ? weights_of(res, f, MQ_CALIB_GATE, r->group)
                                  : widened(f->gate.wide, f->width * f->hidden);
    double *up = r->quantized_h ? weights_of(res, f, MQ_CALIB_UP, r->group) : widened(f->up.wide, f->width * f->hidden);
    double *h = h_of(f->x, f->n_tokens, gate, up, f->hidden, f->width);
    double *g = moment_of(h, f->n_tokens, f->width, f->coef, r->weight_power);
    if (f->n_tokens == 0 || (r->shrink && f->n_tokens < 4 * f->width)) {
        double *hs = h_of(f->sample, f->n_sample, gate, up, f->hidden, f->width);
        double *gs = moment_of(hs, f->n_sample, f->width, NULL, 0);
        blend_into(g, gs, f->n_tokens, (double)r->kappa, f->width);
        free(hs);
        free(gs);
    }
    free(gate);
    free(up);
    free(h);
    return g;
}

static mq_calib_recipe basic(mq_calib_method method, int group)
{
    mq_calib_recipe r = mq_calib_recipe_default(method, group);
    r.rounds = 0;
    r.descent = 0;
    r.down_target = false;
    return r;
}

/* ---- the double reference ---- */

/* One matrix: codes of the plain loop in double for this moment against the finished ones.  F32 moments, factors and sums
 * move t by some 1e-5 of a step, so one code in about 1e5 may round the other way; error feedback then moves its row's
 * later codes too, but never what the row loses by more than a little.  A scale may differ where two candidates tie. */
static void compare_matrix(const fixture *f, const result *res, int matrix, const double *g, const mq_calib_recipe *r)
{
    bool is_down = matrix == MQ_CALIB_DOWN;
    int64_t rows = is_down ? f->hidden : f->width, n = is_down ? f->width : f->hidden, count = rows * n, m = f->n_tokens;
    const float *w = source_of(f, matrix);
    float *scale = malloc((size_t)(count / r->group) * sizeof *scale);
    uint8_t *codes = malloc((size_t)count);
    search_of(scale, codes, w, g, rows, n, r->group);
    if (r->method == MQ_CALIB_GPTQ) {
        int64_t *perm = malloc((size_t)n * sizeof *perm);
        order_of(perm, g, n, r->act_order);
        double damp = (double)r->damp + (double)r->damp_few * (double)n / (double)(n + m);
        double *a = factor_of(g, perm, damp, r->damp_columns, n);
        feed_back_of(codes, w, scale, a, perm, rows, n, r->group);
        ck_assert(fabs(res->account[matrix].damp - damp) < 1e-6 * damp);
        free(a);
        free(perm);
    }
    double *got = weights_of(res, f, matrix, r->group), *d = doubles(count);
    int64_t n_rows_off = 0;
    for (int64_t row = 0; row < rows; row++) {
        bool off = false;
        for (int64_t i = row * n; i < (row + 1) * n; i++) {
            double want = ((double)codes[i] - 8.0) * (double)scale[i / r->group];
            off = off || want != got[i];
            d[i] = (double)w[i] - want;
        }
        n_rows_off += off;
    }
    double want_loss = loss_of(d, g, rows, n), got_loss = true_loss(res, f, matrix, r->group, g);
    ck_assert_msg(n_rows_off <= 1 + rows / 10 && fabs(got_loss - want_loss) <= 0.01 * want_loss,
                  "hidden %lld, width %lld, g%d, m %lld, matrix %d: %lld of %lld rows differ, loss %g, expected %g",
                  (long long)f->hidden, (long long)f->width, r->group, (long long)m, matrix, (long long)n_rows_off,
                  (long long)rows, got_loss, want_loss);
    ck_assert_msg(fabs(res->account[matrix].loss - got_loss) <= 1e-3 * got_loss, "account says %g, loss is %g",
                  res->account[matrix].loss, got_loss);
    free(scale);
    free(codes);
    free(got);
    free(d);
}

static void compare_all(const fixture *f, const mq_calib_recipe *r)
{
    result res;
    mq_err err;
    mq_assert_ok(run(&res, f, r, &err), &err);
    double *g = input_moment(f, r), *gh = h_moment(f, &res, r);
    compare_matrix(f, &res, MQ_CALIB_GATE, g, r);
    compare_matrix(f, &res, MQ_CALIB_UP, g, r);
    compare_matrix(f, &res, MQ_CALIB_DOWN, gh, r);
    free(g);
    free(gh);
    result_free(&res);
}

START_TEST(codes_equal_the_double_reference)
{
    static const struct {
        int64_t hidden, width, n_tokens;
        int group;
    } shapes[] = {{64, 64, 300, 32},  {64, 128, 40, 64},   {128, 192, 700, 32}, {256, 64, 1100, 64},
                  {128, 128, 90, 128}, {256, 128, 130, 128}, {64, 192, 1, 32},    {128, 64, 0, 64}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        fixture *f = fixture_create(MQ_SCHEME_F32, shapes[i].hidden, shapes[i].width, shapes[i].n_tokens, 10 * i + 1);
        for (int method = 0; method < 2; method++) {
            mq_calib_recipe r = basic((mq_calib_method)method, shapes[i].group);
            r.weight_power = (int)(i % 3);
            compare_all(f, &r);
        }
        fixture_free(f);
    }
}
END_TEST

START_TEST(every_ingredient_can_be_left_out)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 64, 64, 150, 3);
    for (int i = 0; i < 4; i++) {
        mq_calib_recipe r = basic(MQ_CALIB_GPTQ, 32);
        r.act_order = i != 0;
        r.shrink = i != 1;
        r.quantized_h = i != 2;
        r.damp_columns = i != 3;
        compare_all(f, &r);
    }
    fixture_free(f);
}
END_TEST

/* ---- better is better ---- */

/* Output error of the whole expert on rows x, over the output's energy. */
static double output_error(const fixture *f, const result *res, int group, const float *x, int64_t n)
{
    double *w[3], *q[3];
    for (int m = 0; m < 3; m++) {
        w[m] = widened(source_of(f, m), f->width * f->hidden);
        q[m] = weights_of(res, f, m, group);
    }
    double *h = h_of(x, n, w[0], w[1], f->hidden, f->width), *hq = h_of(x, n, q[0], q[1], f->hidden, f->width);
    double err = 0.0, energy = 0.0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < f->hidden; r++) {
            double y = 0.0, yq = 0.0;
            for (int64_t c = 0; c < f->width; c++) {
                y += w[2][r * f->width + c] * h[i * f->width + c];
                yq += q[2][r * f->width + c] * hq[i * f->width + c];
            }
            err += (y - yq) * (y - yq);
            energy += y * y;
        }
    for (int m = 0; m < 3; m++) {
        free(w[m]);
        free(q[m]);
    }
    free(h);
    free(hq);
    return err / energy;
}

START_TEST(each_step_lowers_the_true_loss)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 128, 128, 1500, 17);
    float *fresh = correlated(400, f->hidden, 17, 99); /* the same kind of text, never calibrated on */
    for (int group = 32; group <= 128; group *= 2) {
        mq_calib_recipe steps[5];
        for (int i = 0; i < 5; i++)
            steps[i] = i < 2 ? basic(MQ_CALIB_IMATRIX, group) : basic(MQ_CALIB_GPTQ, group);
        steps[0].weighted_search = false;
        steps[3] = mq_calib_recipe_default(MQ_CALIB_GPTQ, group);
        steps[3].down_target = false;
        steps[4] = mq_calib_recipe_default(MQ_CALIB_GPTQ, group);
        double *g = input_moment(f, &steps[2]), loss[5], output[5];
        for (int i = 0; i < 5; i++) {
            result res;
            mq_err err;
            mq_assert_ok(run(&res, f, &steps[i], &err), &err);
            loss[i] = true_loss(&res, f, MQ_CALIB_GATE, group, g) + true_loss(&res, f, MQ_CALIB_UP, group, g);
            output[i] = output_error(f, &res, group, fresh, 400);
            ck_assert(i < 3 || res.account[MQ_CALIB_GATE].n_refit > 32);
            result_free(&res);
        }
        ck_assert_msg(loss[1] < 0.97 * loss[0] && loss[2] < 0.7 * loss[1] && loss[3] < 0.99 * loss[2] && loss[4] == loss[3],
                      "g%d: plain %g, weighted %g, gptq %g, rounds %g", group, loss[0], loss[1], loss[2], loss[3]);
        /* weighting serves the loss; what it does for fresh tokens is small beside the rest */
        ck_assert_msg(output[1] < 1.1 * output[0] && output[2] < 0.1 * output[1] && output[3] < output[2] && output[4] < output[3],
                      "g%d: plain %g, weighted %g, gptq %g, rounds %g, target %g", group, output[0], output[1], output[2],
                      output[3], output[4]);
        free(g);
    }
    free(fresh);
    fixture_free(f);
}
END_TEST

START_TEST(shrinkage_helps_an_expert_with_few_tokens)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 128, 128, 20, 23);
    float *fresh = correlated(400, f->hidden, 23, 77);
    mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    double error[2];
    for (int shrink = 0; shrink < 2; shrink++) {
        result res;
        mq_err err;
        r.shrink = shrink;
        mq_assert_ok(run(&res, f, &r, &err), &err);
        error[shrink] = output_error(f, &res, 64, fresh, 400);
        ck_assert_int_eq(res.account[MQ_CALIB_DOWN].path, shrink ? MQ_CALIB_SHRUNK : MQ_CALIB_OWN);
        result_free(&res);
    }
    ck_assert_msg(error[1] < 0.9 * error[0], "with %g, without %g", error[1], error[0]);
    fixture_free(f);
    free(fresh);
}
END_TEST

/* ---- the ladder ---- */

static void expect_paths(const fixture *f, const mq_calib_recipe *r, mq_calib_path gate_up, mq_calib_path down)
{
    result res;
    mq_err err;
    mq_assert_ok(run(&res, f, r, &err), &err);
    const mq_calib_path want[3] = {gate_up, gate_up, down};
    for (int m = 0; m < 3; m++) {
        const mq_calib_account *a = &res.account[m];
        ck_assert_msg(a->path == want[m], "%lld tokens, matrix %d: path %s, expected %s", (long long)f->e.n_tokens, m,
                      mq_calib_path_name(a->path), mq_calib_path_name(want[m]));
        ck_assert_int_eq(a->n_tokens, f->e.n_tokens);
        ck_assert(a->norm2 > 0.0 && a->err2 > 0.0 && a->err2 < 0.1 * a->norm2);
        if (a->path == MQ_CALIB_PLAIN)
            ck_assert(a->loss == 0.0 && a->energy == 0.0 && a->damp == 0.0);
        if (a->path == MQ_CALIB_DIAGONAL)
            ck_assert(a->n_retries == 10 && a->damp == 0.0);
        if (a->path <= MQ_CALIB_LAYER)
            ck_assert(a->loss > 0.0 && a->loss < 0.05 * a->energy && a->n_retries == 0);
    }
    result_free(&res);
}

START_TEST(every_rung_of_the_ladder_is_reached_and_told)
{
    mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 32), alone = r;
    alone.shrink = false;
    const int64_t counts[5] = {0, 1, 255, 256, 512}; /* 4 n = 256 for gate and up, 512 for down */
    for (int i = 0; i < 5; i++) {
        fixture *f = fixture_create(MQ_SCHEME_F32, 64, 128, counts[i], 5);
        mq_calib_path gate_up = i == 0 ? MQ_CALIB_LAYER : i < 3 ? MQ_CALIB_SHRUNK : MQ_CALIB_OWN;
        mq_calib_path down = i == 0 ? MQ_CALIB_LAYER : i < 4 ? MQ_CALIB_SHRUNK : MQ_CALIB_OWN;
        expect_paths(f, &r, gate_up, down);
        ck_assert(mq_calib_needs_layer(&r, counts[i], 64) == (i < 3));
        ck_assert(mq_calib_needs_sample(&r, counts[i], 128) == (i < 4));
        ck_assert(mq_calib_needs_layer(&alone, counts[i], 64) == (i == 0));
        f->e.layer_gram = NULL; /* nothing to lean on */
        f->e.n_sample = 0;
        expect_paths(f, &r, i == 0 ? MQ_CALIB_PLAIN : MQ_CALIB_OWN, i == 0 ? MQ_CALIB_PLAIN : MQ_CALIB_OWN);
        if (i > 1)
            expect_paths(f, &alone, MQ_CALIB_OWN, MQ_CALIB_OWN);
        fixture_free(f);
    }
}
END_TEST

START_TEST(inputs_of_zeros_count_as_none)
{
    mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    for (int64_t n = 3; n <= 600; n += 597) {
        fixture *f = fixture_create(MQ_SCHEME_F32, 128, 64, n, 6);
        memset(f->x, 0, (size_t)(n * f->hidden) * sizeof *f->x);
        expect_paths(f, &r, MQ_CALIB_LAYER, MQ_CALIB_LAYER);
        f->e.layer_gram = NULL;
        memset(f->sample, 0, (size_t)(f->n_sample * f->hidden) * sizeof *f->sample);
        expect_paths(f, &r, MQ_CALIB_PLAIN, MQ_CALIB_PLAIN);
        fixture_free(f);
    }
}
END_TEST

/* The plain path is data-free rounding: the same bytes as mq_round_matrix. */
START_TEST(plain_is_rounding_without_activations)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 128, 64, 0, 8);
    f->e.layer_gram = NULL;
    f->e.n_sample = 0;
    for (int method = 0; method < 2; method++) {
        mq_calib_recipe r = mq_calib_recipe_default((mq_calib_method)method, 64);
        result res;
        mq_err err;
        mq_assert_ok(run(&res, f, &r, &err), &err);
        uint8_t *want = malloc((size_t)res.gate_up_bytes);
        mq_rounder *rounder;
        mq_round_stats stats[2];
        mq_assert_ok(mq_rounder_create(&rounder, NULL, &err), &err);
        mq_round_window win = {&f->e.gate, &f->e.up, 0, 64, 0, 128};
        mq_assert_ok(mq_round_matrix(rounder, MQ_ROUND_SEARCH, &win, 64, want, stats, &err), &err);
        ck_assert(!memcmp(want, res.gate_up, (size_t)res.gate_up_bytes));
        for (int m = 0; m < 2; m++)
            ck_assert(fabs(stats[m].err2 - res.account[m].err2) <= 1e-12 * stats[m].err2 &&
                      fabs(stats[m].norm2 - res.account[m].norm2) <= 1e-12 * stats[m].norm2);
        win = (mq_round_window){&f->e.down, NULL, 0, 128, 0, 64};
        mq_assert_ok(mq_round_matrix(rounder, MQ_ROUND_SEARCH, &win, 64, want, stats, &err), &err);
        ck_assert(!memcmp(want, res.down, (size_t)res.down_bytes));
        mq_rounder_free(rounder);
        free(want);
        result_free(&res);
    }
    fixture_free(f);
}
END_TEST

START_TEST(too_little_damping_is_doubled_until_the_factor_exists)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 128, 128, 5, 9); /* rank 5 of 128 */
    mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    r.shrink = false;
    r.damp = 1e-12f;
    r.damp_few = 0.0f;
    result res;
    mq_err err;
    mq_assert_ok(run(&res, f, &r, &err), &err);
    for (int m = 0; m < 3; m++) {
        const mq_calib_account *a = &res.account[m];
        ck_assert_msg(a->path == MQ_CALIB_OWN || a->path == MQ_CALIB_DIAGONAL, "path %s", mq_calib_path_name(a->path));
        ck_assert(isfinite(a->loss) && a->err2 < a->norm2);
        if (a->path == MQ_CALIB_OWN)
            ck_assert(fabs(a->damp - ldexp(1e-12, a->n_retries)) <= 1e-6 * a->damp);
    }
    result_free(&res);
    r.damp = 0.0f; /* starts at 1e-4 of the mean after the first failure */
    mq_assert_ok(run(&res, f, &r, &err), &err);
    ck_assert(res.account[0].path == MQ_CALIB_OWN);
    ck_assert(res.account[0].n_retries > 0 && res.account[0].damp >= 0.99e-4);
    result_free(&res);
    fixture_free(f);
}
END_TEST

START_TEST(a_moment_without_a_factor_leaves_the_diagonal)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 64, 64, 0, 10);
    f->layer[40 * 64 + 3] = 1e9f; /* far from positive definite at any damping */
    f->e.n_sample = 0;
    mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64), weighted = mq_calib_recipe_default(MQ_CALIB_IMATRIX, 64);
    result res, want;
    mq_err err;
    mq_assert_ok(run(&res, f, &r, &err), &err);
    mq_assert_ok(run(&want, f, &weighted, &err), &err);
    ck_assert_int_eq(res.account[MQ_CALIB_GATE].path, MQ_CALIB_DIAGONAL);
    ck_assert_int_eq(res.account[MQ_CALIB_UP].path, MQ_CALIB_DIAGONAL);
    ck_assert_int_eq(res.account[MQ_CALIB_GATE].n_retries, 10);
    ck_assert_int_eq(res.account[MQ_CALIB_DOWN].path, MQ_CALIB_PLAIN);
    ck_assert(!memcmp(res.gate_up, want.gate_up, (size_t)res.gate_up_bytes)); /* the weighted search and nothing else */
    result_free(&res);
    result_free(&want);
    fixture_free(f);
}
END_TEST

/* A column that no token moves keeps weights near its own: it is rounded plainly, not zeroed. */
START_TEST(dead_inputs_are_rounded_plainly)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 64, 64, 300, 11);
    for (int64_t i = 0; i < f->n_tokens; i++)
        f->x[i * 64 + 7] = f->x[i * 64 + 40] = 0.0f;
    mq_calib_recipe r = basic(MQ_CALIB_GPTQ, 32);
    result res;
    mq_err err;
    mq_assert_ok(run(&res, f, &r, &err), &err);
    ck_assert_int_eq(res.account[MQ_CALIB_GATE].path, MQ_CALIB_OWN);
    double *w = weights_of(&res, f, MQ_CALIB_GATE, 32);
    for (int64_t row = 0; row < 64; row++)
        for (int dead = 7; dead <= 40; dead += 33) {
            int64_t i = row * 64 + dead;
            double most = 0.0; /* of the group: a step is at most its seventh and a bit */
            for (int64_t j = i / 32 * 32; j < i / 32 * 32 + 32; j++)
                most = fmax(most, fabs((double)f->gate.wide[j]));
            ck_assert(fabs(w[i] - (double)f->gate.wide[i]) <= most / 6.0);
        }
    free(w);
    result_free(&res);
    fixture_free(f);
}
END_TEST

/* ---- what is refused ---- */

static void expect_refusal(const fixture *f, int method, mq_status status, const char *text)
{
    mq_calib_recipe r = mq_calib_recipe_default((mq_calib_method)method, 32);
    result res;
    mq_err err;
    mq_assert_fails(run(&res, f, &r, &err), status, &err, text);
    result_free(&res);
}

START_TEST(values_that_are_not_finite_are_refused_by_name)
{
    for (int method = 0; method < 2; method++) {
        fixture *f = fixture_create(MQ_SCHEME_F32, 64, 128, 150, 12);
        struct {
            float *at, value;
            const char *text;
        } bad[] = {
            {(float *)f->gate.data + 5 * 64 + 9, NAN, "gate: row 5, column 9: weight nan"},
            {(float *)f->up.data + 127 * 64 + 63, INFINITY, "up: row 127, column 63: weight inf"},
            {(float *)f->down.data + 3 * 128 + 100, -INFINITY, "down: row 3, column 100: weight -inf"},
            {f->x + 130 * 64 + 2, NAN, "input of token 130, column 2 is nan"},
            {f->x + 64 * 64, INFINITY, "input of token 64, column 0 is inf"},
            {f->x + 3 * 64 + 5, 1e30f, "second moment of the input overflows in column 5"},
            {f->sample + 99 * 64 + 63, NAN, "h of sample row 99, column 0 is"},
            {f->coef + 77, NAN, "coefficient of token 77 is nan"},
            {f->coef + 78, -0.5f, "coefficient of token 78 is -0.5"},
            {f->layer + 11 * 64 + 11, INFINITY, "the layer's moment is not finite in column 11"},
        };
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            float keep = *bad[i].at;
            *bad[i].at = bad[i].value;
            expect_refusal(f, method, MQ_E_NUMERIC, bad[i].text);
            *bad[i].at = keep;
        }
        mq_calib_recipe r = mq_calib_recipe_default((mq_calib_method)method, 32);
        result res;
        mq_err err;
        mq_assert_ok(run(&res, f, &r, &err), &err); /* all mended */
        result_free(&res);
        fixture_free(f);
    }
}
END_TEST

START_TEST(shapes_are_refused)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 64, 128, 2, 13);
    f->e.down.rows = 128;
    expect_refusal(f, MQ_CALIB_GPTQ, MQ_E_SHAPE, "down: [128, 128], expected [64, 128]");
    mq_dev *dev;
    mq_calib_worker *w;
    mq_err err;
    mq_assert_ok(k->dev_open(&dev, 0, 1, NULL, &err), &err);
    mq_assert_fails(mq_calib_worker_create(&w, k, dev, 64, 128, 128, 64, &err), MQ_E_SHAPE, &err,
                    "width 128 at hidden size 64, expected multiples of 128");
    mq_assert_fails(mq_calib_worker_create(&w, k, dev, 64, 128, 48, 64, &err), MQ_E_SHAPE, &err, "group 48");
    mq_assert_fails(mq_calib_worker_create(&w, k, dev, 64, 128, 32, 0, &err), MQ_E_SHAPE, &err, "blocks of 0 rows");
    ck_assert(w == NULL);
    mq_calib_worker_free(NULL);
    k->dev_close(dev);
    fixture_free(f);
}
END_TEST

static mq_status failing_rows(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err)
{
    (void)ctx, (void)x, (void)sample, (void)n;
    return first > 0 ? mq_fail(err, MQ_E_IO, "scratch: gone") : fixture_rows(ctx, x, sample, first, n, err);
}

START_TEST(what_rows_says_is_passed_on)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 64, 64, 100, 14);
    f->e.rows = failing_rows;
    expect_refusal(f, MQ_CALIB_GPTQ, MQ_E_IO, "scratch: gone");
    fixture_free(f);
}
END_TEST

/* ---- one result ---- */

static bool equal(const result *a, const result *b)
{
    return !memcmp(a->gate_up, b->gate_up, (size_t)a->gate_up_bytes) && !memcmp(a->down, b->down, (size_t)a->down_bytes) &&
           !memcmp(a->account, b->account, sizeof a->account);
}

START_TEST(threads_change_nothing_and_a_worker_forgets)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 128, 192, 333, 15), *other = fixture_create(MQ_SCHEME_F32, 128, 192, 9, 16);
    mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    result first = {0}, res;
    mq_err err;
    for (int threads = 1; threads <= 5; threads += 2) {
        mq_dev *dev;
        mq_assert_ok(k->dev_open(&dev, 0, threads, NULL, &err), &err);
        mq_assert_ok(run_on(dev, threads == 1 ? &first : &res, f, &r, &err), &err);
        k->dev_close(dev);
        if (threads == 1)
            continue;
        ck_assert(equal(&first, &res));
        result_free(&res);
    }
    mq_dev *dev;
    mq_calib_worker *w;
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_assert_ok(mq_calib_worker_create(&w, k, dev, 128, 192, 64, BLOCK, &err), &err);
    res = (result){malloc((size_t)first.gate_up_bytes), malloc((size_t)first.down_bytes), first.gate_up_bytes,
                   first.down_bytes, {{0}}};
    other->x[3] = NAN; /* a run that fails half way */
    ck_assert(mq_calib_expert_run(w, res.gate_up, res.down, res.account, &other->e, &r, &err) == MQ_E_NUMERIC);
    mq_assert_ok(mq_calib_expert_run(w, res.gate_up, res.down, res.account, &f->e, &r, &err), &err);
    memset(res.account + 2, 0, sizeof res.account[2]);
    mq_assert_ok(mq_calib_expert_run(w, res.gate_up, res.down, res.account, &f->e, &r, &err), &err);
    ck_assert(equal(&first, &res));
    mq_calib_worker_free(w);
    k->dev_close(dev);
    result_free(&first);
    result_free(&res);
    fixture_free(f);
    fixture_free(other);
}
END_TEST

/* Sources of other schemes are nothing but their widened weights.  (No block of 8 rows or fewer: there `linear` sums in an
 * order of its own for each scheme.) */
START_TEST(stored_schemes_equal_their_widened_weights)
{
    const mq_scheme schemes[3] = {MQ_SCHEME_FP8_BLOCK, MQ_SCHEME_MXFP4_ROWS, MQ_SCHEME_BF16};
    for (int i = 0; i < 3; i++) {
        fixture *f = fixture_create(schemes[i], 256, 128, 220, 18), *wide = fixture_create(schemes[i], 256, 128, 220, 18);
        random_matrix *m[3] = {&wide->gate, &wide->up, &wide->down};
        mq_matrix *lent[3] = {&wide->e.gate, &wide->e.up, &wide->e.down};
        for (int j = 0; j < 3; j++)
            *lent[j] = (mq_matrix){.scheme = MQ_SCHEME_F32, .rows = m[j]->m.rows, .cols = m[j]->m.cols, .data = m[j]->wide};
        for (int target = 0; target < 2; target++) {
            mq_calib_recipe r = mq_calib_recipe_default(MQ_CALIB_GPTQ, 128);
            r.down_target = target;
            result a, b;
            mq_err err;
            mq_assert_ok(run(&a, f, &r, &err), &err);
            mq_assert_ok(run(&b, wide, &r, &err), &err);
            ck_assert_msg(equal(&a, &b), "%s, target %d", mq_scheme_name(schemes[i]), target);
            result_free(&a);
            result_free(&b);
        }
        fixture_free(f);
        fixture_free(wide);
    }
}
END_TEST

/* ---- memory ---- */

static int64_t allocated;

static mq_status counting_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    allocated += n_bytes;
    return k->alloc(dev, out, n_bytes, err);
}

START_TEST(worker_bytes_bound_what_is_allocated)
{
    mq_kernels counting = *k;
    counting.alloc = counting_alloc;
    mq_dev *dev;
    mq_err err;
    mq_assert_ok(k->dev_open(&dev, 0, 1, NULL, &err), &err);
    const int64_t shapes[3][3] = {{64, 192, 10}, {256, 64, 2048}, {128, 128, 1}};
    for (int i = 0; i < 3; i++) {
        mq_calib_worker *w;
        allocated = 0;
        mq_assert_ok(mq_calib_worker_create(&w, &counting, dev, shapes[i][0], shapes[i][1], 64, shapes[i][2], &err), &err);
        int64_t told = mq_calib_worker_bytes(shapes[i][0], shapes[i][1], 64, shapes[i][2]);
        ck_assert(allocated <= told && told <= allocated + 23 * 256);
        mq_calib_worker_free(w);
    }
    k->dev_close(dev);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("expert");
    TCase *t = tcase_create("all");
    tcase_add_test(t, codes_equal_the_double_reference);
    tcase_add_test(t, every_ingredient_can_be_left_out);
    tcase_add_test(t, each_step_lowers_the_true_loss);
    tcase_add_test(t, shrinkage_helps_an_expert_with_few_tokens);
    tcase_add_test(t, every_rung_of_the_ladder_is_reached_and_told);
    tcase_add_test(t, inputs_of_zeros_count_as_none);
    tcase_add_test(t, plain_is_rounding_without_activations);
    tcase_add_test(t, too_little_damping_is_doubled_until_the_factor_exists);
    tcase_add_test(t, a_moment_without_a_factor_leaves_the_diagonal);
    tcase_add_test(t, dead_inputs_are_rounded_plainly);
    tcase_add_test(t, values_that_are_not_finite_are_refused_by_name);
    tcase_add_test(t, shapes_are_refused);
    tcase_add_test(t, what_rows_says_is_passed_on);
    tcase_add_test(t, threads_change_nothing_and_a_worker_forgets);
    tcase_add_test(t, stored_schemes_equal_their_widened_weights);
    tcase_add_test(t, worker_bytes_bound_what_is_allocated);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
