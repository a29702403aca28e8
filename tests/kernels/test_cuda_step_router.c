/* The router of a decode step against the CPU's linear and route: who is chosen, with what weight, and the plan made of it; a
 * row's bits whatever its neighbours; ties; weights narrowed; refusals. */
#include "kernels/decode_parts.h"
#include "src/model.h"
#include "tests/kernels/cuda_test.h"

enum { R = MQ_DECODE_ROWS };

typedef struct geometry {
    mq_scheme scheme;
    int n_experts, topk;
    int64_t hidden;
    bool norm;
} geometry;

static const geometry geometries[] = {
    {MQ_SCHEME_F32, 16, 4, 128, true},    {MQ_SCHEME_BF16, 37, 8, 200, true},   {MQ_SCHEME_F16, 5, 5, 7, false},
    {MQ_SCHEME_F32, 129, 3, 130, false},  {MQ_SCHEME_BF16, 300, 8, 1024, true}, {MQ_SCHEME_BF16, 1, 1, 16, true},
    {MQ_SCHEME_F32, 64, 64, 33, true},
    /* experts of a lane: 12, 16, 32 and 128; columns of one part (1536), and more */
    {MQ_SCHEME_F32, 384, 8, 1536, true},  {MQ_SCHEME_BF16, 385, 3, 36, false},  {MQ_SCHEME_F16, 1000, 8, 20, true},
    {MQ_SCHEME_F32, 1025, 64, 12, true},  {MQ_SCHEME_F32, 1200, 64, 12, true},  {MQ_SCHEME_F32, 20, 8, 1540, true},   {MQ_SCHEME_BF16, 13, 2, 6148, true},
};
enum { N_GEOMETRIES = sizeof geometries / sizeof geometries[0] };

static const mq_decode_parts *parts(void)
{
    return gpu->decode->parts;
}

/* A plan on the host; slots of experts from n on are not looked at. */
typedef struct plan {
    int32_t n, *expert, *slot;
    float *coef;
} plan;

static void plan_free(plan *p)
{
    free(p->expert);
    free(p->slot);
    free(p->coef);
}

/* Route the first n of R rows. */
static plan run(const geometry *g, const mq_matrix *dw, const float *x, const float *bias, int n)
{
    int64_t slots = R * g->topk;
    mq_decode_input in = {.pos0 = 3, .n = n};
    plan p = {0, malloc((size_t)slots * 4), malloc((size_t)slots * R * 4), malloc((size_t)slots * 4)};
    ck_assert(p.expert && p.slot && p.coef);
    mq_decode_router job = {.w = *dw, .topk = g->topk, .norm = g->norm, .scaling = 1.5f};
    job.x = put_floats(x, R * g->hidden);
    job.bias = put_floats(bias, g->n_experts);
    job.in = put(&in, sizeof in);
    job.workspace = put(NULL, parts()->router_bytes(g->n_experts, g->hidden));
    job.plan.n = put(NULL, 4);
    job.plan.expert = put(NULL, slots * 4);
    job.plan.slot = put(NULL, slots * R * 4);
    job.plan.coef = put(NULL, slots * 4);
    mq_assert_ok(parts()->check_router(dw, g->topk, &err), &err);
    mq_assert_ok(parts()->router(gpu_dev, &job, &err), &err);
    take(&p.n, job.plan.n, 4);
    take(p.expert, job.plan.expert, slots * 4);
    take(p.slot, job.plan.slot, slots * R * 4);
    take(p.coef, job.plan.coef, slots * 4);
    drop(job.x);
    drop(job.bias);
    drop(job.in);
    drop(job.workspace);
    return p;
}

/* The ids of a row, ascending, from the plan; -1 behind them. */
static void ids_of_row(const geometry *g, const plan *p, int row, int32_t *ids)
{
    for (int k = 0; k < g->topk; k++)
        ids[k] = -1;
    for (int i = 0; i < p->n; i++) {
        int32_t s = p->slot[i * R + row];
        ck_assert(s == -1 || (s >= row * g->topk && s < (row + 1) * g->topk));
        if (s >= 0)
            ids[s - row * g->topk] = p->expert[i];
    }
}

static void check_against_cpu(const geometry *g, const plan *p, const random_matrix *w, const float *x, const float *bias, int n)
{
    float *logits = floats(n * g->n_experts), *coef = floats(n * g->topk), *margin = floats(n);
    int32_t *ids = malloc((size_t)(n * g->topk + 1) * 4), *got = malloc((size_t)g->topk * 4);
    mq_assert_ok(cpu->linear_fixed(cpu_dev, logits, x, &w->m, n, &err), &err);
    mq_assert_ok(cpu->route(cpu_dev, ids, coef, margin, logits, bias, n, g->n_experts, g->topk, g->norm, 1.5f, &err), &err);
    for (int i = 1; i < p->n; i++)
        ck_assert_int_lt(p->expert[i - 1], p->expert[i]);
    for (int i = 0; i < p->n; i++) { /* nobody is active for nothing */
        int n_rows = 0;
        for (int row = 0; row < R; row++)
            n_rows += p->slot[i * R + row] >= 0;
        ck_assert_int_gt(n_rows, 0);
    }
    for (int row = 0; row < R; row++) {
        ids_of_row(g, p, row, got);
        for (int k = 0; k < g->topk; k++) {
            if (row >= n) {
                ck_assert_int_eq(got[k], -1);
                continue;
            }
            if (margin[row] < 1e-5f) /* a tie but for rounding */
                break;
            ck_assert_int_eq(got[k], ids[row * g->topk + k]);
            /* sums of up to 6148 products in another order: logits differ by some 1e-6, sigmoids by a quarter of it */
            ck_assert_float_eq_tol(p->coef[row * g->topk + k], coef[row * g->topk + k], 2e-5f);
        }
    }
    free(logits);
    free(coef);
    free(margin);
    free(ids);
    free(got);
}

START_TEST(rows_choose_as_on_the_cpu)
{
    for (int c = 0; c < N_GEOMETRIES; c++) {
        const geometry *g = &geometries[c];
        matrix_spec spec = {.scheme = g->scheme, .rows = g->n_experts, .cols = g->hidden};
        random_matrix w = random_matrix_create(spec, (uint64_t)c + 1);
        mq_matrix dw = put_matrix(&w, &spec);
        float *x = random_floats(R * g->hidden, 11), *bias = random_floats(g->n_experts, 12);
        for (int n = 1; n <= R; n += n == 1 ? 4 : 3) {
            plan p = run(g, &dw, x, bias, n);
            check_against_cpu(g, &p, &w, x, bias, n);
            plan_free(&p);
        }
        drop(dw.data);
        random_matrix_free(&w);
        free(x);
        free(bias);
    }
}
END_TEST

/* Row 2 among others, alone in another place, and among NaN and infinities. */
START_TEST(a_rows_choice_does_not_depend_on_its_neighbours)
{
    const geometry *g = &geometries[1];
    matrix_spec spec = {.scheme = g->scheme, .rows = g->n_experts, .cols = g->hidden};
    random_matrix w = random_matrix_create(spec, 5);
    mq_matrix dw = put_matrix(&w, &spec);
    float *x = random_floats(R * g->hidden, 21), *bias = random_floats(g->n_experts, 22), *y = floats(R * g->hidden);
    plan want = run(g, &dw, x, bias, R);
    int32_t ids[64], got[64];
    ids_of_row(g, &want, 2, ids);
    for (int to = 0; to < R; to += 7)
        for (int kind = 0; kind < 2; kind++) {
            for (int64_t i = 0; i < R * g->hidden; i++)
                y[i] = kind ? (i % 3 ? NAN : INFINITY) : 0.25f;
            memcpy(y + to * g->hidden, x + 2 * g->hidden, (size_t)g->hidden * 4);
            plan p = run(g, &dw, y, bias, to + 1);
            ids_of_row(g, &p, to, got);
            ck_assert(same_bytes(ids, got, g->topk * 4));
            ck_assert(same_bytes(want.coef + 2 * g->topk, p.coef + to * g->topk, g->topk * 4));
            plan_free(&p);
        }
    plan_free(&want);
    drop(dw.data);
    random_matrix_free(&w);
    free(x);
    free(bias);
    free(y);
}
END_TEST

/* Two rows of two columns and five experts, by hand: logits of row 0 are 0 1 0 1 -1, of row 1 all 0. */
START_TEST(ties_go_to_the_lower_expert)
{
    static const geometry g = {MQ_SCHEME_F32, 5, 3, 2, false};
    static const float w[10] = {0, 0, 1, 0, 0, 0, 1, 0, -1, 0}, bias[5] = {0};
    float x[R * 2] = {1, 0, 0, 0};
    mq_matrix dw = {.scheme = MQ_SCHEME_F32, .rows = 5, .cols = 2, .data = put(w, sizeof w)};
    plan p = run(&g, &dw, x, bias, 2);
    int32_t ids[3];
    static const int32_t first[3] = {0, 1, 3}, second[3] = {0, 1, 2}, active[4] = {0, 1, 2, 3};
    ids_of_row(&g, &p, 0, ids);
    ck_assert(same_bytes(ids, first, sizeof ids));
    ids_of_row(&g, &p, 1, ids);
    ck_assert(same_bytes(ids, second, sizeof ids));
    ck_assert_int_eq(p.n, 4);
    ck_assert(same_bytes(p.expert, active, sizeof active));
    ck_assert_float_eq(p.coef[0], 0.75f); /* sigmoid(0) * 1.5 */
    plan_free(&p);
    drop(dw.data);
}
END_TEST

/* Every logit is 0, so the bias decides: equal ones, in the same lane and in others, zeros of both signs, infinities and NaN. */
START_TEST(choices_that_tie_or_are_no_numbers_as_on_the_cpu)
{
    static const int counts[] = {3, 40, 300, 384, 1025};
    static const float kinds[] = {0.0f, -0.0f, 0.5f, 0.5f, -INFINITY, NAN, -0.5f, INFINITY};
    for (int c = 0; c < 5; c++)
        for (int by = 0; by < 9; by += 2) {
            geometry g = {MQ_SCHEME_F32, counts[c], counts[c] < 8 ? counts[c] : 8, 4, true};
            float *w = floats(g.n_experts * 4), *bias = floats(g.n_experts), *logits = floats(g.n_experts);
            float x[R * 4] = {1, 1, 1, 1}, coef[8];
            int32_t want[8], got[8];
            for (int e = 0; e < g.n_experts; e++) {
                bias[e] = by == 8 ? 0.0f : kinds[(e / 7 + e * by) % 8];
                logits[e] = w[e * 4] = w[e * 4 + 1] = w[e * 4 + 2] = w[e * 4 + 3] = 0.0f;
            }
            mq_matrix dw = {.scheme = MQ_SCHEME_F32, .rows = g.n_experts, .cols = 4, .data = put_floats(w, g.n_experts * 4)};
            mq_assert_ok(cpu->route(cpu_dev, want, coef, NULL, logits, bias, 1, g.n_experts, g.topk, g.norm, 1.5f, &err), &err);
            plan p = run(&g, &dw, x, bias, 1);
            ids_of_row(&g, &p, 0, got);
            ck_assert(same_bytes(got, want, g.topk * 4));
            ck_assert(same_bytes(p.expert, want, g.topk * 4));
            ck_assert_int_eq(p.n, g.topk);
            ck_assert(same_bytes(p.coef, coef, g.topk * 4));
            for (int i = 0; i < R * g.topk * R; i++) /* nothing else is in the plan */
                ck_assert_int_eq(p.slot[i], i % R == 0 && i / R < g.topk ? i / R : -1);
            plan_free(&p);
            drop(dw.data);
            free(w);
            free(bias);
            free(logits);
        }
}
END_TEST

/* Weights that are BF16 values choose the same as F32 and as BF16, bit for bit; one that is not keeps all of them F32. */
START_TEST(narrowed_weights_give_the_same_bits)
{
    static const geometry kinds[] = {{MQ_SCHEME_F32, 40, 8, 1600, true}, {MQ_SCHEME_F32, 13, 5, 31, false}};
    for (int c = 0; c < 2; c++) {
        const geometry *g = &kinds[c];
        int64_t count = g->n_experts * g->hidden;
        float *w = random_floats(count, 31), *x = random_floats(R * g->hidden, 32), *bias = random_floats(g->n_experts, 33);
        float *after = floats(count);
        for (int64_t i = 0; i < count; i++)
            w[i] = mq_bf16_to_f32(mq_f32_to_bf16(w[i]));
        for (int64_t odd = -1; odd < count; odd += odd < 0 ? 1 : count - 1) { /* none, the first, the last */
            float kept = odd < 0 ? 0.0f : w[odd];
            if (odd >= 0)
                w[odd] = nextafterf(kept, 9.0f);
            mq_matrix dw = {.scheme = MQ_SCHEME_F32, .rows = g->n_experts, .cols = g->hidden, .data = put_floats(w, count)};
            plan want = run(g, &dw, x, bias, R);
            mq_assert_ok(gpu->decode->narrow(gpu_dev, &dw, &err), &err);
            ck_assert_int_eq(dw.scheme, odd < 0 ? MQ_SCHEME_BF16 : MQ_SCHEME_F32);
            plan got = run(g, &dw, x, bias, R);
            ck_assert(same_bytes(want.coef, got.coef, R * g->topk * 4) && same_bytes(want.slot, got.slot, R * R * g->topk * 4));
            mq_assert_ok(gpu->decode->narrow(gpu_dev, &dw, &err), &err); /* again: BF16 stays what it is */
            mq_assert_ok(gpu->download(gpu_dev, after, dw.data, count * (odd < 0 ? 2 : 4), &err), &err);
            for (int64_t i = 0; i < count; i++)
                ck_assert((odd < 0 ? mq_bf16_to_f32(((uint16_t *)after)[i]) : after[i]) == w[i]);
            if (odd >= 0)
                w[odd] = kept;
            plan_free(&want);
            plan_free(&got);
            drop(dw.data);
        }
        free(w);
        free(x);
        free(bias);
        free(after);
    }
}
END_TEST

START_TEST(what_it_does_not_compute_is_refused)
{
    mq_matrix w = {.scheme = MQ_SCHEME_FP8_BLOCK, .rows = 16, .cols = 128};
    mq_assert_fails(parts()->check_router(&w, 4, &err), MQ_E_UNSUPPORTED, &err,
                    "router in fp8_block, expected bf16, f16 or f32");
    w.scheme = MQ_SCHEME_F32;
    mq_assert_fails(parts()->check_router(&w, 17, &err), MQ_E_UNSUPPORTED, &err, "17 of 16 experts a token");
    mq_assert_fails(parts()->check_router(&w, 0, &err), MQ_E_UNSUPPORTED, &err, "0 of 16 experts a token");
    w.rows = MQ_MAX_EXPERTS + 1;
    mq_assert_fails(parts()->check_router(&w, 4, &err), MQ_E_UNSUPPORTED, &err, "expected 1 to 64 of at most 4096");
    w.rows = MQ_MAX_EXPERTS;
    mq_assert_ok(parts()->check_router(&w, 64, &err), &err);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *s = suite_create("cuda_step_router");
    TCase *t = tcase_create("all");
    tcase_add_test(t, rows_choose_as_on_the_cpu);
    tcase_add_test(t, a_rows_choice_does_not_depend_on_its_neighbours);
    tcase_add_test(t, ties_go_to_the_lower_expert);
    tcase_add_test(t, choices_that_tie_or_are_no_numbers_as_on_the_cpu);
    tcase_add_test(t, narrowed_weights_give_the_same_bits);
    tcase_add_test(t, what_it_does_not_compute_is_refused);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, make_suite);
}
