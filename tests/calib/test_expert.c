/* One expert's calibration against the whole job in double precision, and that better methods are better where it counts: on
 * the true moment and on tokens never calibrated on.  Its ladder of fallbacks: test_expert_ladder.c. */
#include "tests/calib/expert_fixture.h"

#include <stdio.h>

static const mq_kernels *k;

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

/* ---- the double reference ---- */

/* One matrix: codes of the plain loop in double for this moment against the finished ones.  F32 moments, factors and sums
 * move t by some 1e-5 of a step, so one code in about 1e5 may round the other way; error feedback then moves its row's
 * later codes too, but never what the row loses by more than a little.  A scale may differ where two candidates tie. */
static void compare_matrix(const fixture *f, const result *res, int matrix, const double *g, const mq_calib_recipe *r,
                           const float *w)
{
    bool is_down = matrix == MQ_CALIB_DOWN;
    int64_t rows = is_down ? f->hidden : f->width, n = is_down ? f->width : f->hidden, count = rows * n, m = f->n_tokens;
    float *scale = malloc((size_t)(count / r->group) * sizeof *scale);
    uint8_t *codes = malloc((size_t)count);
    search_of(scale, codes, w, g, rows, n, r->group);
    if (r->method == MQ_CALIB_GPTQ) {
        int64_t *perm = malloc((size_t)n * sizeof *perm);
        order_of(perm, g, n, r->act_order);
        double damp = (double)r->damp + (double)r->damp_few * (double)n / (double)(n + m);
        double *a = factor_of(g, perm, r->damp_columns ? damp : 0.0, r->damp_columns ? (double)r->damp : damp, n);
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
    double want_loss = loss_of(d, g, rows, n);
    for (int64_t i = 0; i < count; i++)
        d[i] = (double)w[i] - got[i];
    double got_loss = loss_of(d, g, rows, n);
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

/* W* = W + f W C^T H'^-1 in double, C the sum of weighted h (h_source - h)^T; the expert's own tokens only. */
static float *down_target(const fixture *f, const result *res, const double *g, const mq_calib_recipe *r)
{
    int64_t n = f->width, rows = f->hidden;
    double *gate = weights_of(res, f, MQ_CALIB_GATE, r->group), *up = weights_of(res, f, MQ_CALIB_UP, r->group);
    double *source[2] = {widened(f->gate.wide, n * rows), widened(f->up.wide, n * rows)};
    double *h = h_of(f->x, f->n_tokens, gate, up, rows, n), *hs = h_of(f->x, f->n_tokens, source[0], source[1], rows, n);
    double *c = doubles(n * n), *y = doubles(rows * n), *hd = doubles(n * n);
    for (int64_t t = 0; t < f->n_tokens; t++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] += pow((double)f->coef[t], r->weight_power) * h[t * n + i] * (hs[t * n + j] - h[t * n + j]);
    double m = (double)f->n_tokens, damp = (double)r->damp + (double)r->damp_few * (double)n / ((double)n + m);
    double mean = trace_of(g, n) / (double)n;
    for (int64_t i = 0; i < n * n; i++)
        hd[i] = g[i] * (i % (n + 1) == 0 ? 1.0 + damp : 1.0) + (i % (n + 1) == 0 ? (double)r->damp * mean : 0.0);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                y[row * n + i] += (double)f->down.wide[row * n + j] * c[i * n + j];
    solve_rows(y, hd, rows, n);
    float *target = malloc((size_t)(rows * n) * sizeof *target);
    for (int64_t i = 0; i < rows * n; i++)
        target[i] = (float)((double)f->down.wide[i] + m / (m + (double)r->target_few * (double)n) * y[i]);
    double *all[] = {gate, up, source[0], source[1], h, hs, c, y, hd};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    return target;
}

static void compare_all(const fixture *f, const mq_calib_recipe *r)
{
    result res;
    mq_err err;
    mq_assert_ok(run(&res, f, r, &err), &err);
    double *g = input_moment(f, r), *gh = h_moment(f, &res, r);
    compare_matrix(f, &res, MQ_CALIB_GATE, g, r, f->gate.wide);
    compare_matrix(f, &res, MQ_CALIB_UP, g, r, f->up.wide);
    float *target = r->down_target ? down_target(f, &res, gh, r) : NULL;
    compare_matrix(f, &res, MQ_CALIB_DOWN, gh, r, target ? target : f->down.wide);
    free(target);
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

START_TEST(down_aims_at_what_the_source_puts_out)
{
    fixture *f = fixture_create(MQ_SCHEME_F32, 64, 64, 400, 4);
    mq_calib_recipe r = basic(MQ_CALIB_GPTQ, 64);
    r.down_target = true;
    compare_all(f, &r);
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
    tcase_add_test(t, down_aims_at_what_the_source_puts_out);
    tcase_add_test(t, each_step_lowers_the_true_loss);
    tcase_add_test(t, shrinkage_helps_an_expert_with_few_tokens);
    tcase_add_test(t, threads_change_nothing_and_a_worker_forgets);
    tcase_add_test(t, stored_schemes_equal_their_widened_weights);
    tcase_add_test(t, worker_bytes_bound_what_is_allocated);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
