/* CUDA against CPU: RoPE, the ring cache and attention: windows, sinks, grouped and odd head counts, ring wraps, garbage in
 * slots that no row may see; a row's bits whatever stands beside it. */
#include "tests/kernels/cuda_test.h"

typedef struct shape {
    int n_heads, n_kv_heads, head_dim, v_dim, window;
    int64_t n_slots, total, n; /* positions in all, rows of the last call */
    bool sink;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 0, 1, 1, 1, false},        {2, 1, 16, 16, 0, 3, 3, 1, true},      {8, 2, 48, 32, 0, 130, 130, 130, false},
    {8, 4, 48, 32, 64, 128, 200, 64, true}, {8, 4, 48, 32, 64, 65, 200, 2, true},  {3, 3, 20, 13, 0, 97, 97, 17, true},
    {5, 1, 192, 128, 7, 24, 91, 17, true},  {6, 2, 33, 72, 32, 64, 129, 33, false}, {15, 5, 31, 33, 31, 33, 64, 3, true},
    {4, 2, 300, 320, 0, 40, 40, 3, true},   {16, 1, 192, 128, 40, 96, 75, 33, true}, {1, 1, 16, 8, 0, 8200, 8200, 17, true},
    {2, 1, 64, 32, 40, 64, 8210, 21, true},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

typedef struct setup {
    float *q, *keys, *values, *sink;
    mq_kv host, dev;
} setup;

static int64_t k_cols(const shape *s)
{
    return (int64_t)s->n_kv_heads * s->head_dim;
}

static int64_t v_cols(const shape *s)
{
    return (int64_t)s->n_kv_heads * s->v_dim;
}

/* All positions stored on both sides, in two calls, over garbage. */
static setup make_setup(const shape *s)
{
    setup t = {.host = {.n_slots = s->n_slots, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .v_head_dim = s->v_dim}};
    t.q = random_floats(s->total * s->n_heads * s->head_dim, 1);
    t.keys = random_floats(s->total * k_cols(s), 2);
    t.values = random_floats(s->total * v_cols(s), 3);
    t.sink = random_floats(s->n_heads, 4);
    t.dev = t.host;
    t.host.k = floats(s->n_slots * k_cols(s));
    t.host.v = floats(s->n_slots * v_cols(s));
    memset(t.host.k, 0xff, (size_t)(s->n_slots * k_cols(s)) * 4);
    memset(t.host.v, 0xff, (size_t)(s->n_slots * v_cols(s)) * 4);
    t.dev.k = put_floats(t.host.k, s->n_slots * k_cols(s));
    t.dev.v = put_floats(t.host.v, s->n_slots * v_cols(s));
    float *dk = put_floats(t.keys, s->total * k_cols(s)), *dv = put_floats(t.values, s->total * v_cols(s));
    int64_t half = s->total / 2;
    for (int part = 0; part < 2; part++) {
        int64_t from = part ? half : 0, n = part ? s->total - half : half;
        mq_assert_ok(cpu->kv_store(cpu_dev, &t.host, t.keys + from * k_cols(s), t.values + from * v_cols(s), 0.5f, n, from,
                                   &err), &err);
        mq_assert_ok(gpu->kv_store(gpu_dev, &t.dev, dk + from * k_cols(s), dv + from * v_cols(s), 0.5f, n, from, &err),
                     &err);
    }
    drop(dk);
    drop(dv);
    return t;
}

static void free_setup(setup *t)
{
    free(t->q);
    free(t->keys);
    free(t->values);
    free(t->sink);
    free(t->host.k);
    free(t->host.v);
    drop(t->dev.k);
    drop(t->dev.v);
}

/* Rows pos0 .. pos0 + n - 1 on the GPU, out [n, n_heads * v_dim] on the host; is_block: attention_block. */
static void run_kind(float *out, const shape *s, const setup *t, bool is_block, int64_t n, int64_t pos0)
{
    int64_t q_cols = (int64_t)s->n_heads * s->head_dim, o_cols = (int64_t)s->n_heads * s->v_dim;
    float *dq = put_floats(t->q + pos0 * q_cols, n * q_cols), *dout = put_floats(NULL, n * o_cols);
    float *ds = put_floats(t->sink, s->n_heads);
    mq_assert_ok((is_block ? gpu->attention_block : gpu->attention)(gpu_dev, dout, dq, &t->dev, s->n_heads,
                                                                    s->sink ? ds : NULL, s->window, n, pos0, &err),
                 &err);
    take(out, dout, n * o_cols * 4);
    drop(dq);
    drop(ds);
}

static void run(float *out, const shape *s, const setup *t, int64_t n, int64_t pos0)
{
    run_kind(out, s, t, false, n, pos0);
}

START_TEST(the_ring_holds_the_same_bits)
{
    for (int c = 0; c < N_SHAPES; c++) {
        const shape *s = &shapes[c];
        setup t = make_setup(s);
        float *k = floats(s->n_slots * k_cols(s)), *v = floats(s->n_slots * v_cols(s));
        mq_assert_ok(gpu->download(gpu_dev, k, t.dev.k, s->n_slots * k_cols(s) * 4, &err), &err);
        mq_assert_ok(gpu->download(gpu_dev, v, t.dev.v, s->n_slots * v_cols(s) * 4, &err), &err);
        ck_assert(same_bytes(k, t.host.k, s->n_slots * k_cols(s) * 4));
        ck_assert(same_bytes(v, t.host.v, s->n_slots * v_cols(s) * 4));
        free(k);
        free(v);
        free_setup(&t);
    }
}
END_TEST

/* BF16: products of parts of BF16 values, where heads are not too large. */
static void check_attention(bool is_block, mq_precision precision)
{
    double bound = precision == MQ_PRECISION_F32 ? 8e-6 : 4e-5;
    mq_assert_ok(gpu->set_precision(gpu_dev, precision, &err), &err);
    for (int c = 0; c < N_SHAPES; c++) {
        const shape *s = &shapes[c];
        if (s->window == 0 && s->total > 1000 && getenv("MQ_TEST_SMALL"))
            continue; /* sanitizers are slow */
        setup t = make_setup(s);
        int64_t count = s->n * s->n_heads * s->v_dim, pos0 = s->total - s->n;
        float *y = floats(count), *z = floats(count);
        mq_assert_ok((is_block ? cpu->attention_block : cpu->attention)(
                         cpu_dev, y, t.q + pos0 * s->n_heads * s->head_dim, &t.host, s->n_heads, s->sink ? t.sink : NULL,
                         s->window, s->n, pos0, &err), &err);
        run_kind(z, s, &t, is_block, s->n, pos0);
        for (int64_t i = 0; i < count; i++) /* F32: both are within 4e-6 of sums in double */
            ck_assert_msg(fabs((double)y[i] - (double)z[i]) < bound, "shape %d, element %d: %g, expected %g", c, (int)i,
                          (double)z[i], (double)y[i]);
        run_kind(z, s, &t, is_block, 0, pos0);
        free(y);
        free(z);
        free_setup(&t);
    }
    mq_assert_ok(gpu->set_precision(gpu_dev, MQ_PRECISION_F32, &err), &err);
}

START_TEST(attention_agrees)
{
    check_attention(false, MQ_PRECISION_F32);
    check_attention(false, MQ_PRECISION_BF16);
}
END_TEST

START_TEST(attention_of_a_block_agrees)
{
    check_attention(true, MQ_PRECISION_F32);
    check_attention(true, MQ_PRECISION_BF16);
}
END_TEST

static void check_company(mq_precision precision)
{
    mq_assert_ok(gpu->set_precision(gpu_dev, precision, &err), &err);
    for (int c = 3; c < N_SHAPES; c += c == 7 ? 3 : 2) {
        const shape *s = &shapes[c];
        setup t = make_setup(s);
        int64_t o_cols = (int64_t)s->n_heads * s->v_dim, pos0 = s->total - s->n;
        float *all = floats(s->n * o_cols), *part = floats(7 * o_cols);
        run(all, s, &t, s->n, pos0);
        for (int64_t row = 0; row < s->n; row += 5) {
            int64_t n = s->n - row < 7 ? s->n - row : 7;
            run(part, s, &t, n, pos0 + row);
            ck_assert(same_bytes(part, all + row * o_cols, n * o_cols * 4));
            run(part, s, &t, 1, pos0 + row);
            ck_assert(same_bytes(part, all + row * o_cols, o_cols * 4));
        }
        free(all);
        free(part);
        free_setup(&t);
    }
    mq_assert_ok(gpu->set_precision(gpu_dev, MQ_PRECISION_F32, &err), &err);
}

START_TEST(a_row_has_the_same_bits_alone_and_in_company)
{
    check_company(MQ_PRECISION_F32);
    check_company(MQ_PRECISION_BF16);
}
END_TEST

START_TEST(more_rows_than_slots_keep_the_last)
{
    float rows[5] = {1, 2, 3, 4, 5}, key[3], value[3], *dr = put_floats(rows, 5);
    mq_kv kv = {.k = put_floats(NULL, 3), .v = put_floats(NULL, 3), .n_slots = 3, .n_kv_heads = 1, .head_dim = 1, .v_head_dim = 1};
    mq_assert_ok(gpu->kv_store(gpu_dev, &kv, dr, dr, 2.0f, 5, 1, &err), &err);
    take(key, kv.k, sizeof key);
    take(value, kv.v, sizeof value);
    ck_assert(key[0] == 3.0f && key[1] == 4.0f && key[2] == 5.0f);
    ck_assert(value[0] == 6.0f && value[1] == 8.0f && value[2] == 10.0f);
    drop(dr);
}
END_TEST

START_TEST(rope_agrees)
{
    static const int shape_of[][3] = {{3, 24, 16}, {1, 2, 2}, {5, 33, 32}, {2, 128, 128}, {2, 8, 0}};
    static const int64_t starts[] = {0, 1, 4095, 1000000};
    enum { N = 3 };
    for (int c = 0; c < 5; c++)
        for (int p = 0; p < 4; p++) {
            int heads = shape_of[c][0], dim = shape_of[c][1], rot = shape_of[c][2], count = N * heads * dim;
            float *x = random_floats(count, 1), *z = floats(count), *dx = put_floats(x, count);
            mq_assert_ok(cpu->rope(cpu_dev, x, N, heads, dim, rot, 1e6, starts[p], &err), &err);
            mq_assert_ok(gpu->rope(gpu_dev, dx, N, heads, dim, rot, 1e6, starts[p], &err), &err);
            mq_assert_ok(gpu->rope(gpu_dev, dx, 0, heads, dim, rot, 1e6, starts[p], &err), &err);
            take(z, dx, count * 4);
            /* an inverse frequency one place off moves an angle of 10^6 by 0.06: on a device, whose pow may differ in its
             * last bit, only small positions compare */
            for (int i = 0; i < count && (is_emulated || starts[p] < 2); i++)
                ck_assert(fabs((double)x[i] - (double)z[i]) <= (is_emulated ? 0.0 : 1e-6));
            free(x);
            free(z);
        }
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_attention");
    TCase *t = tcase_create("all");
    tcase_add_test(t, the_ring_holds_the_same_bits);
    tcase_add_test(t, attention_agrees);
    tcase_add_test(t, attention_of_a_block_agrees);
    tcase_add_test(t, a_row_has_the_same_bits_alone_and_in_company);
    tcase_add_test(t, more_rows_than_slots_keep_the_last);
    tcase_add_test(t, rope_agrees);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
