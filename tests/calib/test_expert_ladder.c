/* One expert's calibration: its ladder of fallbacks rung by rung, and what it refuses by name. */
#include "tests/calib/expert_fixture.h"

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
            int refused;
        } bad[] = {
            {(float *)f->gate.data + 5 * 64 + 9, NAN, "gate: row 5, column 9: weight nan, expected a finite number", MQ_CALIB_GATE},
            {(float *)f->up.data + 127 * 64 + 63, INFINITY, "up: row 127, column 63: weight inf", MQ_CALIB_UP},
            {(float *)f->down.data + 3 * 128 + 100, -INFINITY, "down: row 3, column 100: weight -inf", MQ_CALIB_DOWN},
            {f->x + 130 * 64 + 2, NAN, "gate and up: input of token 130, column 2 is nan", -1},
            {f->x + 64 * 64, INFINITY, "gate and up: input of token 64, column 0 is inf", -1},
            {f->x + 3 * 64 + 5, 1e30f, "gate and up: second moment of the input overflows in column 5", -1},
            {f->sample + 99 * 64 + 63, NAN, "down: h of sample row 99, column 0 is", MQ_CALIB_MATRICES},
            {f->coef + 77, NAN, "coefficient of token 77 is nan", -1},
            {f->coef + 78, -0.5f, "coefficient of token 78 is -0.5", -1},
            {f->layer + 11 * 64 + 11, INFINITY, "gate and up: the layer's moment is not finite in column 11", -1},
            /* Finite, and too large for what is summed in FP32. */
            {(float *)f->gate.data + 5 * 64 + 9, 3e38f,
             "gate: row 5, column 9: weight 3e+38, expected rows whose sum of squares is finite in FP32", MQ_CALIB_GATE},
            {(float *)f->up.data + 9, -2e19f,
             "up: row 0, column 9: weight -2e+19, expected rows whose sum of squares is finite in FP32", MQ_CALIB_UP},
            {(float *)f->down.data + 3 * 128 + 100, 3e38f, "down: row 3, column 100: weight 3e+38, expected rows",
             MQ_CALIB_DOWN},
            {(float *)f->up.data + 9, 1e19f, "up: the loss of its codes is", MQ_CALIB_UP},
        };
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            float keep = *bad[i].at;
            *bad[i].at = bad[i].value;
            int refused = -7;
            f->e.refused = &refused;
            expect_refusal(f, method, MQ_E_NUMERIC, bad[i].text);
            ck_assert_msg(refused == bad[i].refused, "%s: %d", bad[i].text, refused);
            f->e.refused = NULL;
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
    mq_assert_ok(f->k->dev_open(&dev, 0, 1, NULL, &err), &err);
    mq_assert_fails(mq_calib_worker_create(&w, f->k, dev, 64, 128, 128, 64, &err), MQ_E_SHAPE, &err,
                    "width 128 at hidden size 64, expected multiples of 128");
    mq_assert_fails(mq_calib_worker_create(&w, f->k, dev, 64, 128, 48, 64, &err), MQ_E_SHAPE, &err, "group 48");
    mq_assert_fails(mq_calib_worker_create(&w, f->k, dev, 64, 128, 32, 0, &err), MQ_E_SHAPE, &err, "blocks of 0 rows");
    ck_assert(w == NULL);
    mq_calib_worker_free(NULL);
    f->k->dev_close(dev);
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

int main(void)
{
    Suite *s = suite_create("expert_ladder");
    TCase *t = tcase_create("all");
    tcase_add_test(t, every_rung_of_the_ladder_is_reached_and_told);
    tcase_add_test(t, inputs_of_zeros_count_as_none);
    tcase_add_test(t, plain_is_rounding_without_activations);
    tcase_add_test(t, too_little_damping_is_doubled_until_the_factor_exists);
    tcase_add_test(t, a_moment_without_a_factor_leaves_the_diagonal);
    tcase_add_test(t, dead_inputs_are_rounded_plainly);
    tcase_add_test(t, values_that_are_not_finite_are_refused_by_name);
    tcase_add_test(t, shapes_are_refused);
    tcase_add_test(t, what_rows_says_is_passed_on);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
