/* Attention over the ring cache against a double-precision loop: windows, sinks, grouped heads, odd widths, positions around
 * block and ring edges; a row's bits whatever stands beside it. */
#include <math.h>

#include "kernels/kernels.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *k;
static const char *const isas[] = {"scalar", "avx2", "avx512"};

typedef struct shape {
    int n_heads, n_kv_heads, head_dim, v_dim, window;
    int64_t n_slots, total, n; /* positions in all, rows of the last call */
    bool sink;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 0, 1, 1, 1, false},      {2, 1, 16, 16, 0, 3, 3, 1, true},     {8, 2, 48, 32, 0, 130, 130, 130, false},
    {8, 4, 48, 32, 64, 128, 300, 64, true}, {8, 4, 48, 32, 64, 65, 300, 2, true}, {4, 4, 20, 13, 0, 200, 200, 17, true},
    {4, 1, 192, 128, 7, 24, 91, 17, true}, {6, 2, 33, 72, 100, 164, 257, 65, false}, {4, 2, 96, 64, 0, 600, 600, 8, false},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

typedef struct setup {
    float *q, *keys, *values, *sink; /* of all positions; the cache is in kv */
    mq_kv kv;
} setup;

static mq_dev *open_isa(int n_threads, const char *isa)
{
    mq_dev *dev;
    return k->dev_open(&dev, 0, n_threads, isa, NULL) == MQ_OK ? dev : NULL;
}

static setup make_setup(mq_dev *dev, const shape *s)
{
    setup t = {.kv = {.n_slots = s->n_slots, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .v_head_dim = s->v_dim}};
    t.q = random_floats(s->total * s->n_heads * s->head_dim, 1);
    t.keys = random_floats(s->total * s->n_kv_heads * s->head_dim, 2);
    t.values = random_floats(s->total * s->n_kv_heads * s->v_dim, 3);
    t.sink = random_floats(s->n_heads, 4);
    t.kv.k = malloc((size_t)(s->n_slots * s->n_kv_heads * s->head_dim) * sizeof(float));
    t.kv.v = malloc((size_t)(s->n_slots * s->n_kv_heads * s->v_dim) * sizeof(float));
    mq_err err;
    /* garbage that no row may see */
    memset(t.kv.k, 0xff, (size_t)(s->n_slots * s->n_kv_heads * s->head_dim) * sizeof(float));
    memset(t.kv.v, 0xff, (size_t)(s->n_slots * s->n_kv_heads * s->v_dim) * sizeof(float));
    /* in two calls, so that a call starts inside the ring */
    int64_t half = s->total / 2;
    mq_assert_ok(k->kv_store(dev, &t.kv, t.keys, t.values, 0.5f, half, 0, &err), &err);
    mq_assert_ok(k->kv_store(dev, &t.kv, t.keys + half * s->n_kv_heads * s->head_dim,
                             t.values + half * s->n_kv_heads * s->v_dim, 0.5f, s->total - half, half, &err), &err);
    return t;
}

static void free_setup(setup *t)
{
    free(t->q);
    free(t->keys);
    free(t->values);
    free(t->sink);
    free(t->kv.k);
    free(t->kv.v);
}

/* One row and head over the keys up to last in double; values are scaled by 0.5. */
static void slow_attention(double *out, const shape *s, const setup *t, int64_t pos, int64_t last, int head)
{
    int kv_head = head / (s->n_heads / s->n_kv_heads);
    const float *q = t->q + (pos * s->n_heads + head) * s->head_dim;
    double sum = s->sink ? exp((double)t->sink[head]) : 0.0;
    for (int d = 0; d < s->v_dim; d++)
        out[d] = 0.0;
    for (int64_t j = 0; j <= last; j++) {
        if (s->window && j <= pos - s->window)
            continue;
        double dot = 0.0;
        for (int d = 0; d < s->head_dim; d++)
            dot += (double)q[d] * (double)t->keys[(j * s->n_kv_heads + kv_head) * s->head_dim + d];
        double e = exp(dot / sqrt(s->head_dim));
        sum += e;
        for (int d = 0; d < s->v_dim; d++)
            out[d] += e * 0.5 * (double)t->values[(j * s->n_kv_heads + kv_head) * s->v_dim + d];
    }
    for (int d = 0; d < s->v_dim; d++)
        out[d] /= sum;
}

static void run(mq_dev *dev, float *out, const shape *s, const setup *t, int64_t n, int64_t pos0)
{
    mq_err err;
    mq_assert_ok(k->attention(dev, out, t->q + pos0 * s->n_heads * s->head_dim, &t->kv, s->n_heads,
                              s->sink ? t->sink : NULL, s->window, n, pos0, &err), &err);
}

START_TEST(attention_equals_the_double_loop)
{
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev = open_isa(2, isas[i]);
        for (int c = 0; dev && c < N_SHAPES; c++) {
            const shape *s = &shapes[c];
            setup t = make_setup(dev, s);
            float *out = malloc((size_t)(s->n * s->n_heads * s->v_dim) * sizeof *out);
            double want[128];
            run(dev, out, s, &t, s->n, s->total - s->n);
            for (int64_t row = 0; row < s->n; row++)
                for (int h = 0; h < s->n_heads; h++) {
                    slow_attention(want, s, &t, s->total - s->n + row, s->total - s->n + row, h);
                    for (int d = 0; d < s->v_dim; d++) {
                        double got = (double)out[(row * s->n_heads + h) * s->v_dim + d];
                        /* scores of size up to about 10 err by 1e-6, weights by as much relatively */
                        ck_assert_msg(fabs(got - want[d]) < 4e-6, "shape %d row %d head %d dim %d: %g, expected %g", c,
                                      (int)row, h, d, got, want[d]);
                    }
                }
            free(out);
            free_setup(&t);
        }
        if (dev)
            k->dev_close(dev);
    }
}
END_TEST

START_TEST(rows_of_a_block_see_one_another)
{
    float *first[N_SHAPES] = {NULL};
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev = open_isa(2, isas[i]);
        for (int c = 0; dev && c < N_SHAPES; c++) {
            const shape *s = &shapes[c];
            setup t = make_setup(dev, s);
            int64_t n = s->n, pos0 = s->total - n;
            size_t bytes = (size_t)(n * s->n_heads * s->v_dim) * sizeof(float);
            float *out = malloc(bytes);
            double want[128];
            mq_err err;
            mq_assert_ok(k->attention_block(dev, out, t.q + pos0 * s->n_heads * s->head_dim, &t.kv, s->n_heads,
                                            s->sink ? t.sink : NULL, s->window, n, pos0, &err),
                         &err);
            for (int64_t row = 0; row < n; row++)
                for (int h = 0; h < s->n_heads; h++) {
                    slow_attention(want, s, &t, pos0 + row, s->total - 1, h);
                    for (int d = 0; d < s->v_dim; d++) {
                        double got = (double)out[(row * s->n_heads + h) * s->v_dim + d];
                        ck_assert_msg(fabs(got - want[d]) < 4e-6, "shape %d row %d head %d dim %d: %g, expected %g", c,
                                      (int)row, h, d, got, want[d]);
                    }
                }
            if (first[c])
                ck_assert_msg(!memcmp(first[c], out, bytes), "shape %d: %s differs", c, isas[i]);
            else
                first[c] = out;
            if (first[c] != out)
                free(out);
            free_setup(&t);
        }
        if (dev)
            k->dev_close(dev);
    }
    for (int c = 0; c < N_SHAPES; c++)
        free(first[c]);
}
END_TEST

START_TEST(a_row_has_the_same_bits_alone_and_in_company)
{
    float *first = NULL;
    const shape *s = &shapes[3];
    size_t row_bytes = (size_t)(s->n_heads * s->v_dim) * sizeof(float);
    for (size_t i = 0; i < 3; i++)
        for (int threads = 1; threads <= 2; threads++) {
            mq_dev *dev = open_isa(threads, isas[i]);
            if (!dev)
                continue;
            setup t = make_setup(dev, s);
            float *all = malloc((size_t)s->n * row_bytes), *one = malloc(7 * row_bytes);
            run(dev, all, s, &t, s->n, s->total - s->n);
            for (int64_t row = 0; row + 7 <= s->n; row += 7) {
                run(dev, one, s, &t, 7, s->total - s->n + row);
                ck_assert(!memcmp(one, (char *)all + (size_t)row * row_bytes, 7 * row_bytes));
                run(dev, one, s, &t, 1, s->total - s->n + row);
                ck_assert(!memcmp(one, (char *)all + (size_t)row * row_bytes, row_bytes));
            }
            if (!first)
                first = all;
            else {
                ck_assert_msg(!memcmp(first, all, (size_t)s->n * row_bytes), "%s differs", isas[i]);
                free(all);
            }
            free(one);
            free_setup(&t);
            k->dev_close(dev);
        }
    free(first);
}
END_TEST

START_TEST(a_strong_sink_takes_the_weight)
{
    mq_dev *dev = open_isa(1, NULL);
    float key = 0.0f, value = 8.0f, q = 1.0f, sink = 0.0f, out;
    mq_kv kv = {.k = &key, .v = &value, .n_slots = 1, .n_kv_heads = 1, .head_dim = 1, .v_head_dim = 1};
    ck_assert(k->attention(dev, &out, &q, &kv, 1, &sink, 0, 1, 0, NULL) == MQ_OK);
    ck_assert(out == 4.0f); /* score 0 and sink 0: half each */
    sink = 200.0f;
    ck_assert(k->attention(dev, &out, &q, &kv, 1, &sink, 0, 1, 0, NULL) == MQ_OK);
    ck_assert(out >= 0.0f && out < 1e-35f);
    sink = -200.0f;
    ck_assert(k->attention(dev, &out, &q, &kv, 1, &sink, 0, 1, 0, NULL) == MQ_OK);
    ck_assert(out == 8.0f);
    k->dev_close(dev);
}
END_TEST

START_TEST(store_of_more_rows_than_slots_keeps_the_last)
{
    mq_dev *dev = open_isa(1, NULL);
    float key[3], value[3], rows[5] = {1, 2, 3, 4, 5};
    mq_kv kv = {.k = key, .v = value, .n_slots = 3, .n_kv_heads = 1, .head_dim = 1, .v_head_dim = 1};
    ck_assert(k->kv_store(dev, &kv, rows, rows, 2.0f, 5, 1, NULL) == MQ_OK);
    /* positions 3, 4, 5 hold rows 2, 3, 4 */
    ck_assert(key[0] == 3.0f && key[1] == 4.0f && key[2] == 5.0f);
    ck_assert(value[0] == 6.0f && value[1] == 8.0f && value[2] == 10.0f);
    k->dev_close(dev);
}
END_TEST

START_TEST(rope_rotates_pairs_by_the_f32_angle)
{
    enum { N = 5, HEADS = 3, DIM = 24, ROT = 16 };
    mq_dev *dev = open_isa(1, NULL);
    static const int64_t starts[] = {0, 1, 4096, 1000000};
    for (size_t c = 0; c < 4; c++) {
        float *x = random_floats(N * HEADS * DIM, 9), *y = random_floats(N * HEADS * DIM, 9);
        ck_assert(k->rope(dev, y, N, HEADS, DIM, ROT, 10000.0, starts[c], NULL) == MQ_OK);
        for (int i = 0; i < N; i++)
            for (int h = 0; h < HEADS; h++)
                for (int d = 0; d < DIM; d++) {
                    int at = (i * HEADS + h) * DIM;
                    double want = (double)x[at + d];
                    if (d < ROT) {
                        int p = d % (ROT / 2);
                        float inv = 1.0f / (float)pow(10000.0, (double)((float)(2 * p) / (float)ROT));
                        float angle = (float)(starts[c] + i) * inv;
                        double a = (double)x[at + p], b = (double)x[at + p + ROT / 2];
                        double cs = cos((double)angle), sn = sin((double)angle);
                        want = d < ROT / 2 ? a * cs - b * sn : b * cs + a * sn;
                    }
                    ck_assert(fabs((double)y[at + d] - want) <= 5e-7);
                }
        /* a later position of a table made before has the same bits */
        float *one = random_floats(N * HEADS * DIM, 9);
        ck_assert(k->rope(dev, one + 2 * HEADS * DIM, 1, HEADS, DIM, ROT, 10000.0, starts[c] + 2, NULL) == MQ_OK);
        ck_assert(!memcmp(one + 2 * HEADS * DIM, y + 2 * HEADS * DIM, HEADS * DIM * sizeof *y));
        free(one);
        free(x);
        free(y);
    }
    k->dev_close(dev);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    Suite *s = suite_create("attention");
    TCase *t = tcase_create("cpu");
    tcase_add_test(t, attention_equals_the_double_loop);
    tcase_add_test(t, rows_of_a_block_see_one_another);
    tcase_add_test(t, a_row_has_the_same_bits_alone_and_in_company);
    tcase_add_test(t, a_strong_sink_takes_the_weight);
    tcase_add_test(t, store_of_more_rows_than_slots_keeps_the_last);
    tcase_add_test(t, rope_rotates_pairs_by_the_f32_angle);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
