/* A whole layer of packed experts against double sums over rounded inputs: odd numbers of rows and experts, experts without
 * a row, with one, with all of them; and a row's bits do not depend on its company. */
#include "tests/kernels/cuda_test.h"

typedef struct geometry {
    mq_scheme scheme;
    int group;
    int64_t hidden, width;
    int n_experts, topk;
} geometry;

typedef struct experts {
    geometry g;
    random_matrix gate_up[16], down[16];
    mq_matrix device[32];
    mq_decode_expert_table table;
} experts;

static experts *make(geometry g)
{
    experts *e = calloc(1, sizeof *e);
    const void *gate_up[16], *down[16];
    e->g = g;
    for (int i = 0; i < g.n_experts; i++) {
        matrix_spec a = {g.scheme, g.group, 2 * g.width, g.hidden, 0, 0, 0}, b = {g.scheme, g.group, g.hidden, g.width, 0, 0, 0};
        e->gate_up[i] = random_matrix_create(a, (uint64_t)i);
        e->down[i] = random_matrix_create(b, (uint64_t)(100 + i));
        e->device[2 * i] = put_matrix(&e->gate_up[i], &a);
        e->device[2 * i + 1] = put_matrix(&e->down[i], &b);
        gate_up[i] = e->device[2 * i].data;
        down[i] = e->device[2 * i + 1].data;
    }
    e->table = (mq_decode_expert_table){(const uint8_t *const *)put(gate_up, g.n_experts * (int64_t)sizeof *gate_up),
                                        (const uint8_t *const *)put(down, g.n_experts * (int64_t)sizeof *down),
                                        g.group, g.hidden, g.width, g.n_experts, g.topk};
    return e;
}

static void unmake(experts *e)
{
    for (int i = 0; i < e->g.n_experts; i++) {
        random_matrix_free(&e->gate_up[i]);
        random_matrix_free(&e->down[i]);
        drop_matrix(&e->device[2 * i]);
        drop_matrix(&e->device[2 * i + 1]);
    }
    drop(e->table.gate_up);
    drop(e->table.down);
    free(e);
}

static double dot(const float *a, const float *b, int64_t n, double *size)
{
    double sum = 0.0;
    *size = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)a[i] * (double)b[i];
        *size += fabs((double)a[i] * (double)b[i]);
    }
    return sum;
}

/* want, size [hidden] += coef * one expert's output for x [hidden], x rounded already. */
static void add_expert(double *want, double *size, const experts *e, int expert, const float *x, double coef)
{
    int64_t hidden = e->g.hidden, width = e->g.width;
    float *h = floats(width);
    double s;
    for (int64_t c = 0; c < width; c++) {
        double gate = dot(e->gate_up[expert].wide + mq_gate_up_row(c, 0) * hidden, x, hidden, &s);
        double up = dot(e->gate_up[expert].wide + mq_gate_up_row(c, 1) * hidden, x, hidden, &s);
        h[c] = mq_bf16_to_f32(mq_f32_to_bf16((float)(gate / (1.0 + exp(-gate)) * up)));
    }
    for (int64_t r = 0; r < hidden; r++) {
        want[r] += coef * dot(e->down[expert].wide + r * width, h, width, &s);
        size[r] += fabs(coef) * s;
    }
    free(h);
}

static void run(float *y, const experts *e, const float *x, const int32_t *ids, const float *coef, int64_t n)
{
    int64_t picks = n * e->g.topk, count = n * e->g.hidden;
    float *dy = put_floats(NULL, count), *dx = put_floats(x, count), *dc = put_floats(coef, picks);
    int32_t *di = put(ids, picks * 4);
    mq_assert_ok(gpu->experts(gpu_dev, dy, dx, di, dc, &e->table, n, &err), &err);
    take(y, dy, count * 4);
    drop(dx);
    drop(di);
    drop(dc);
}

/* An h that stands within F32's error of the middle between two BF16 values may be rounded to the other one: then it is off by
 * 2^-8 of itself.  Of one output's sum that is the error of a few of its terms: 1e-3 of the sum of magnitudes; nearly all are
 * within 2e-6. */
static void check_rows(const float *y, const experts *e, const float *x, const int32_t *ids, const float *coef, int64_t n)
{
    int64_t hidden = e->g.hidden, topk = e->g.topk, n_off = 0;
    float *half = floats(hidden);
    for (int64_t i = 0; i < n; i++) {
        double *want = calloc((size_t)hidden, sizeof *want), *size = calloc((size_t)hidden, sizeof *size);
        for (int64_t c = 0; c < hidden; c++)
            half[c] = mq_bf16_to_f32(mq_f32_to_bf16(x[i * hidden + c]));
        for (int64_t k = 0; k < topk; k++)
            add_expert(want, size, e, ids[i * topk + k], half, (double)coef[i * topk + k]);
        for (int64_t r = 0; r < hidden; r++) {
            double off = fabs((double)y[i * hidden + r] - want[r]);
            ck_assert_msg(off <= 1e-3 * size[r], "group %d, %d rows: row %d, output %d: %g, expected %g", e->g.group, (int)n,
                          (int)i, (int)r, (double)y[i * hidden + r], want[r]);
            n_off += off > 2e-6 * size[r];
        }
        free(want);
        free(size);
    }
    ck_assert_msg(n_off * 4 <= n * hidden, "%d of %d outputs differ", (int)n_off, (int)(n * hidden));
    free(half);
}

/* topk distinct experts in ascending order, those below first never chosen. */
static void random_choices(int32_t *ids, float *coef, const geometry *g, int first, int64_t n)
{
    uint64_t seed = 11;
    for (int64_t i = 0; i < n; i++)
        for (int e = first, left = g->topk; e < g->n_experts && left; e++)
            if ((int)(mq_test_rand(&seed) % (uint64_t)(g->n_experts - e)) < left) {
                int64_t at = i * g->topk + g->topk - left--;
                ids[at] = e;
                coef[at] = 0.1f + (float)(mq_test_rand(&seed) % 100u) / 100.0f;
            }
}

static const geometry geometries[] = {{MQ_SCHEME_INT4, 32, 192, 64, 5, 2},
                                      {MQ_SCHEME_INT4, 64, 64, 192, 7, 3},
                                      {MQ_SCHEME_INT4, 128, 256, 128, 3, 2},
                                      {MQ_SCHEME_MXFP4, MQ_GROUP_MXFP4, 128, 64, 6, 2}};

START_TEST(layers_of_every_scheme)
{
    static const int64_t counts[] = {0, 1, 9, 37};
    for (int c = 0; c < 4; c++)
        for (int k = 0; k < 4; k++) {
            int64_t n = counts[k], count = n * geometries[c].hidden;
            experts *e = make(geometries[c]);
            float *x = random_floats(count, 3), *y = floats(count), *coef = floats(n * e->g.topk);
            int32_t *ids = calloc((size_t)(n * e->g.topk + 1), sizeof *ids);
            random_choices(ids, coef, &e->g, 0, n);
            run(y, e, x, ids, coef, n);
            check_rows(y, e, x, ids, coef, n);
            free(x);
            free(y);
            free(coef);
            free(ids);
            unmake(e);
        }
}
END_TEST

/* One choice each: all rows the same expert (more than a block's tokens), then each expert one row, then none the first four. */
START_TEST(uneven_choices)
{
    geometry g = {MQ_SCHEME_INT4, 64, 128, 64, 16, 1};
    experts *e = make(g);
    enum { N = 131 };
    float *x = random_floats(N * g.hidden, 3), *y = floats(N * g.hidden), coef[N];
    int32_t ids[N];
    for (int form = 0; form < 3; form++) {
        int64_t n = form == 0 ? N : form == 1 ? g.n_experts : 29;
        for (int i = 0; i < N; i++) {
            ids[i] = form == 0 ? 9 : form == 1 ? i * 7 % 16 : 4 + i % 12;
            coef[i] = 1.0f + (float)i;
        }
        run(y, e, x, ids, coef, n);
        check_rows(y, e, x, ids, coef, n);
    }
    free(x);
    free(y);
    unmake(e);
}
END_TEST

START_TEST(a_row_keeps_its_bits_in_any_company)
{
    experts *e = make(geometries[1]);
    enum { N = 75 };
    int64_t hidden = e->g.hidden, topk = e->g.topk;
    float *x = random_floats(N * hidden, 3), *y = floats(N * hidden), *one = floats(hidden), *coef = floats(N * topk);
    int32_t *ids = calloc((size_t)(N * topk), sizeof *ids);
    random_choices(ids, coef, &e->g, 2, N); /* the first two experts: nobody's */
    run(y, e, x, ids, coef, N);
    for (int i = 0; i < N; i += 6) {
        run(one, e, x + i * hidden, ids + i * topk, coef + i * topk, 1);
        ck_assert_msg(same_bytes(one, y + i * hidden, hidden * 4), "row %d has other bits alone", i);
    }
    run(one, e, x, ids, coef, 1);
    ck_assert(same_bytes(one, y, hidden * 4));
    free(x);
    free(y);
    free(one);
    free(coef);
    free(ids);
    unmake(e);
}
END_TEST

START_TEST(the_cpu_has_none)
{
    ck_assert(cpu->experts == NULL);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_moe");
    TCase *t = tcase_create("all");
    tcase_add_test(t, layers_of_every_scheme);
    tcase_add_test(t, uneven_choices);
    tcase_add_test(t, a_row_keeps_its_bits_in_any_company);
    tcase_add_test(t, the_cpu_has_none);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
