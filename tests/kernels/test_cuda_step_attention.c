/* The decode step's attention against the CPU's rope, kv_store and attention: chunk borders, windows across them, ring wraps,
 * sinks, grouped and odd head counts, 1 to 8 rows, garbage in slots that no row may see; a row's bits alone and in company. */
#include "tests/kernels/cuda_test.h"

enum { R = MQ_DECODE_ROWS };

typedef struct shape {
    int n_heads, n_kv_heads, head_dim, v_dim, rotary, window;
    bool sink;
    int extra_slots; /* beyond what the last row's step needs */
} shape;

static const shape shapes[] = {
    {4, 2, 24, 16, 8, 0, false, 0},     {16, 1, 192, 128, 64, 0, true, 5}, {16, 1, 192, 128, 64, 128, true, 3},
    {3, 3, 20, 13, 0, 0, true, 1},      {9, 1, 33, 31, 32, 300, true, 0},  {8, 2, 48, 40, 48, 1, false, 0},
    {12, 1, 16, 8, 2, 256, false, 2},   {20, 2, 12, 300, 6, 257, true, 0}, {1, 1, 1, 1, 0, 7, true, 9},
    {34, 1, 8, 132, 4, 0, false, 0},    {8, 4, 256, 256, 128, 40, true, 0}, {20, 1, 192, 128, 64, 3, true, 0},
    {4, 2, 192, 128, 64, 100, false, 2},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

static const int64_t starts[] = {0, 1, 57, 120, 248, 255, 256, 257, 507, 770};
enum { N_STARTS = sizeof starts / sizeof starts[0] };

/* Eight rows, and a cache that holds what the first of them sees before itself and NaN elsewhere. */
typedef struct setup {
    const shape *s;
    int64_t pos0, q_cols, k_cols, v_cols, o_cols, k_count, v_count;
    float *q, *k, *v, *sink, *k_cache, *v_cache;
    mq_kv kv; /* sizes */
} setup;

static const mq_decode_parts *parts(void)
{
    return gpu->decode->parts;
}

static setup make_setup(const shape *s, int64_t pos0, uint64_t seed)
{
    setup t = {.s = s, .pos0 = pos0};
    t.q_cols = (int64_t)s->n_heads * s->head_dim;
    t.k_cols = (int64_t)s->n_kv_heads * s->head_dim;
    t.v_cols = (int64_t)s->n_kv_heads * s->v_dim;
    t.o_cols = (int64_t)s->n_heads * s->v_dim;
    int64_t need = s->window > 0 && s->window + R - 1 < pos0 + R ? s->window + R - 1 : pos0 + R;
    t.kv = (mq_kv){.n_slots = need + s->extra_slots, .n_kv_heads = s->n_kv_heads};
    t.kv.head_dim = s->head_dim;
    t.kv.v_head_dim = s->v_dim;
    t.k_count = t.kv.n_slots * t.k_cols;
    t.v_count = t.kv.n_slots * t.v_cols;
    t.q = random_floats(R * t.q_cols, seed);
    t.k = random_floats(R * t.k_cols, seed + 1);
    t.v = random_floats(R * t.v_cols, seed + 2);
    t.sink = random_floats(s->n_heads, seed + 3);
    t.k_cache = random_floats(t.k_count, seed + 4);
    t.v_cache = random_floats(t.v_count, seed + 5);
    int64_t first = s->window > 0 && pos0 + 1 > s->window ? pos0 + 1 - s->window : 0;
    for (int64_t pos = pos0; pos < first + t.kv.n_slots; pos++) { /* slots without a position that anybody sees */
        int64_t slot = pos % t.kv.n_slots;
        memset(t.k_cache + slot * t.k_cols, 0xff, (size_t)t.k_cols * 4);
        memset(t.v_cache + slot * t.v_cols, 0xff, (size_t)t.v_cols * 4);
    }
    return t;
}

static void free_setup(setup *t)
{
    free(t->q);
    free(t->k);
    free(t->v);
    free(t->sink);
    free(t->k_cache);
    free(t->v_cache);
}

static float *padded_rows(const float *x, int64_t n, int64_t cols, int64_t stride)
{
    float *y = floats(R * stride);
    memset(y, 0xff, (size_t)(R * stride) * 4);
    for (int64_t i = 0; i < n; i++)
        memcpy(y + i * stride, x + i * cols, (size_t)cols * 4);
    float *d = put_floats(y, R * stride);
    free(y);
    return d;
}

static const double theta = 10000.0;
static const float v_scale = 0.612f;

/* Rows row .. row + n - 1 of t in one step; out [R, o_cols] BF16; the caches on the device change. */
static void step(uint16_t *out, const setup *t, float *k_cache, float *v_cache, int row, int n)
{
    const shape *s = t->s;
    int64_t n_out = R * t->o_cols * 2, max_context = t->pos0 + R;
    int64_t n_bytes = parts()->attention_bytes(s->n_heads, s->v_dim, s->window, max_context);
    mq_decode_input in = {.pos0 = t->pos0 + row, .n = n};
    int pad = t->pos0 % 2 == 0 ? 4 : 1; /* with and without alignment */
    mq_decode_attention a = {.q_stride = t->q_cols + 3 * pad, .k_stride = t->k_cols + pad, .v_stride = t->v_cols, .kv = t->kv};
    a.q = padded_rows(t->q + row * t->q_cols, n, t->q_cols, a.q_stride);
    a.k = padded_rows(t->k + row * t->k_cols, n, t->k_cols, a.k_stride);
    a.v = padded_rows(t->v + row * t->v_cols, n, t->v_cols, a.v_stride);
    a.kv.k = k_cache;
    a.kv.v = v_cache;
    float *sink = put_floats(t->sink, s->n_heads);
    a.sink = s->sink ? sink : NULL;
    a.n_heads = s->n_heads;
    a.rotary_dims = s->rotary;
    a.window = s->window;
    a.v_scale = v_scale;
    a.in = (const mq_decode_input *)put(&in, sizeof in);
    float *rope = s->rotary > 0 ? put_floats(NULL, (int64_t)R * s->rotary) : NULL;
    mq_assert_ok(parts()->rope_table(gpu_dev, rope, s->rotary, theta, a.in, &err), &err);
    a.rope = rope;
    memset(out, 0xff, (size_t)n_out);
    a.out = (uint16_t *)put(out, n_out);
    a.workspace = n_bytes ? put(NULL, n_bytes) : NULL;
    a.max_context = max_context;
    mq_assert_ok(parts()->check_attention(&a.kv, s->n_heads, s->rotary, &err), &err);
    mq_assert_ok(parts()->attention(gpu_dev, &a, &err), &err);
    take(out, a.out, n_out);
    drop(a.q);
    drop(a.k);
    drop(a.v);
    drop(sink);
    drop(rope);
    drop(a.in);
    drop(a.workspace);
}

/* The same on the CPU, F32 out [n, o_cols]; the caches change. */
static void expect(float *out, const setup *t, float *k_cache, float *v_cache, int n)
{
    const shape *s = t->s;
    mq_kv kv = t->kv;
    kv.k = k_cache;
    kv.v = v_cache;
    float *q = floats(n * t->q_cols), *k = floats(n * t->k_cols);
    memcpy(q, t->q, (size_t)(n * t->q_cols) * 4);
    memcpy(k, t->k, (size_t)(n * t->k_cols) * 4);
    mq_assert_ok(cpu->rope(cpu_dev, q, n, s->n_heads, s->head_dim, s->rotary, theta, t->pos0, &err), &err);
    mq_assert_ok(cpu->rope(cpu_dev, k, n, s->n_kv_heads, s->head_dim, s->rotary, theta, t->pos0, &err), &err);
    mq_assert_ok(cpu->kv_store(cpu_dev, &kv, k, t->v, v_scale, n, t->pos0, &err), &err);
    mq_assert_ok(cpu->attention(cpu_dev, out, q, &kv, s->n_heads, s->sink ? t->sink : NULL, s->window, n, t->pos0, &err),
                 &err);
    free(q);
    free(k);
}

static void check_step(const setup *t, int n)
{
    float *y = floats(n * t->o_cols), *kc = floats(t->k_count), *vc = floats(t->v_count);
    uint16_t *z = (uint16_t *)malloc((size_t)(R * t->o_cols) * 2);
    float *dk = put_floats(t->k_cache, t->k_count), *dv = put_floats(t->v_cache, t->v_count);
    ck_assert(z != NULL);
    step(z, t, dk, dv, 0, n);
    memcpy(kc, t->k_cache, (size_t)t->k_count * 4);
    memcpy(vc, t->v_cache, (size_t)t->v_count * 4);
    expect(y, t, kc, vc, n);
    for (int64_t i = 0; i < R * t->o_cols; i++) {
        double got = (double)mq_bf16_to_f32(z[i]), want = i < n * t->o_cols ? (double)y[i] : 0.0;
        /* half a place of BF16, and sums of up to 800 values in another order */
        double bound = i < n * t->o_cols ? fabs(want) / 256.0 + 2e-5 : 0.0;
        ck_assert_msg(fabs(got - want) <= bound, "heads %d, window %d, pos0 %d, n %d, element %d: %g, expected %g",
                      t->s->n_heads, t->s->window, (int)t->pos0, n, (int)i, got, want);
    }
    float *k = floats(t->k_count), *v = floats(t->v_count);
    take(k, dk, t->k_count * 4);
    take(v, dv, t->v_count * 4);
    ck_assert(same_bytes(v, vc, t->v_count * 4));
    if (is_emulated) /* a device's pow may differ in its last bit */
        ck_assert(same_bytes(k, kc, t->k_count * 4));
    free(y);
    free(z);
    free(kc);
    free(vc);
    free(k);
    free(v);
}

START_TEST(a_step_is_rope_store_and_attention)
{
    bool is_small = getenv("MQ_TEST_SMALL") != NULL;
    for (int c = 0; c < N_SHAPES; c++)
        for (int p = 0; p < N_STARTS; p++) {
            if (is_small && (c + p) % 3 != 0)
                continue;
            setup t = make_setup(&shapes[c], starts[p], (uint64_t)(c + p));
            check_step(&t, 1 + (c + p) % R);
            free_setup(&t);
        }
}
END_TEST

START_TEST(positions_beyond_a_million_keep_their_chunks)
{
    static const int few[] = {2, 4, 6, 7};
    for (int c = 0; c < 4; c++) {
        setup t = make_setup(&shapes[few[c]], 1048576 - 4, (uint64_t)c);
        const shape *s = &shapes[few[c]];
        float *dk = put_floats(t.k_cache, t.k_count), *dv = put_floats(t.v_cache, t.v_count), *y = floats(R * t.o_cols);
        uint16_t *z = (uint16_t *)malloc((size_t)(R * t.o_cols) * 2);
        ck_assert(z != NULL);
        step(z, &t, dk, dv, 0, R);
        expect(y, &t, t.k_cache, t.v_cache, R);
        /* a device's pow may differ in its last bit, which moves such an angle by 0.06 */
        for (int64_t i = 0; i < R * t.o_cols && (is_emulated || s->rotary == 0); i++)
            ck_assert(fabs((double)mq_bf16_to_f32(z[i]) - (double)y[i]) <= fabs((double)y[i]) / 256.0 + 2e-5);
        drop(dk);
        drop(dv);
        free(y);
        free(z);
        free_setup(&t);
    }
}
END_TEST

START_TEST(a_row_has_the_same_bits_alone_and_in_company)
{
    static const int64_t from[] = {0, 125, 252, 509};
    bool is_small = getenv("MQ_TEST_SMALL") != NULL;
    for (int c = 0; c < N_SHAPES; c++)
        for (int p = 0; p < 4; p++) {
            if (is_small && (c + p) % 4 != 0)
                continue;
            setup t = make_setup(&shapes[c], from[p], (uint64_t)(7 * c + p));
            size_t n_row = (size_t)t.o_cols * 2;
            uint16_t *all = (uint16_t *)malloc(R * n_row), *some = (uint16_t *)malloc(R * n_row);
            float *k_all = floats(t.k_count), *k_some = floats(t.k_count);
            float *dk = put_floats(t.k_cache, t.k_count), *dv = put_floats(t.v_cache, t.v_count);
            ck_assert(all != NULL && some != NULL);
            step(all, &t, dk, dv, 0, R);
            take(k_all, dk, t.k_count * 4);
            drop(dv);
            dk = put_floats(t.k_cache, t.k_count);
            dv = put_floats(t.v_cache, t.v_count);
            for (int row = 0, n = 1; row < R; row += n, n = row + 3 <= R ? 3 : 1) { /* 1, 3, 3, 1 rows */
                step(some, &t, dk, dv, row, n);
                ck_assert_msg(same_bytes(some, all + row * t.o_cols, n * t.o_cols * 2), "shape %d, pos0 %d, row %d", c,
                              (int)t.pos0, row);
            }
            take(k_some, dk, t.k_count * 4);
            drop(dv);
            ck_assert(same_bytes(k_some, k_all, t.k_count * 4));
            free(all);
            free(some);
            free(k_all);
            free(k_some);
            free_setup(&t);
        }
}
END_TEST

START_TEST(a_broken_row_stays_alone)
{
    for (int c = 0; c < 5; c++) {
        setup t = make_setup(&shapes[c], 250, (uint64_t)c);
        size_t n_row = (size_t)t.o_cols * 2;
        uint16_t *good = (uint16_t *)malloc(R * n_row), *bad = (uint16_t *)malloc(R * n_row);
        float *dk = put_floats(t.k_cache, t.k_count), *dv = put_floats(t.v_cache, t.v_count);
        ck_assert(good != NULL && bad != NULL);
        step(good, &t, dk, dv, 0, R);
        drop(dk);
        drop(dv);
        memset(t.q + 5 * t.q_cols, 0xff, (size_t)t.q_cols * 4);
        memset(t.k + 5 * t.k_cols, 0xff, (size_t)t.k_cols * 4);
        memset(t.v + 5 * t.v_cols, 0xff, (size_t)t.v_cols * 4);
        dk = put_floats(t.k_cache, t.k_count);
        dv = put_floats(t.v_cache, t.v_count);
        step(bad, &t, dk, dv, 0, R);
        ck_assert(same_bytes(good, bad, 5 * t.o_cols * 2)); /* NaN in rows 5 to 7 */
        for (int64_t i = 5 * t.o_cols; i < 6 * t.o_cols; i++)
            ck_assert(isnan(mq_bf16_to_f32(bad[i])));
        drop(dk);
        drop(dv);
        free(good);
        free(bad);
        free_setup(&t);
    }
}
END_TEST

START_TEST(a_hand_worked_row)
{
    /* One key: its weight is 1 without a sink, 1 / (1 + e^(sink - score)) with one. */
    static const shape one = {1, 1, 1, 1, 0, 0, true, 0};
    setup t = make_setup(&one, 0, 1);
    float *dk = put_floats(t.k_cache, t.k_count), *dv = put_floats(t.v_cache, t.v_count), v;
    uint16_t out[R];
    t.q[0] = 2.0f;
    t.k[0] = 0.5f;
    t.v[0] = 3.0f;
    t.sink[0] = 1.0f;
    step(out, &t, dk, dv, 0, 1);
    ck_assert(out[0] == mq_f32_to_bf16(3.0f * v_scale / 2.0f) && out[1] == 0);
    mq_assert_ok(gpu->download(gpu_dev, &v, dv, sizeof v, &err), &err);
    mq_assert_ok(gpu->dev_sync(gpu_dev, &err), &err);
    ck_assert(v == 3.0f * v_scale);
    drop(dk);
    drop(dv);
    free_setup(&t);
}
END_TEST

START_TEST(parts_take_what_their_chunks_need)
{
    const mq_decode_parts *p = parts();
    ck_assert_int_eq((int)p->attention_bytes(16, 128, 0, 1024), 4 * 16 * 8 * 130 * 4);
    ck_assert_int_eq((int)p->attention_bytes(16, 128, 0, 1025), 5 * 16 * 8 * 130 * 4);
    ck_assert_int_eq((int)p->attention_bytes(1, 13, 257, 1 << 20), 3 * 8 * 18 * 4); /* positions 255 .. 518 */
    ck_assert_int_eq((int)p->attention_bytes(1, 13, 257, 100), 1 * 8 * 18 * 4);
    ck_assert_int_eq((int)p->attention_bytes(16, 128, 128, 1 << 20), 0); /* a window in one block */
}
END_TEST

START_TEST(what_it_does_not_compute_is_refused)
{
    static const struct {
        mq_kv kv;
        int n_heads, rotary;
        const char *text;
    } bad[] = {
        {{.n_kv_heads = 2, .head_dim = 8, .v_head_dim = 8}, 3, 4, "3 heads are no multiple of 2 KV heads"},
        {{.n_kv_heads = 2, .head_dim = 8, .v_head_dim = 8}, 4, 3,
         "3 rotary dimensions of 8: expected an even number of at most as many"},
        {{.n_kv_heads = 2, .head_dim = 8, .v_head_dim = 8}, 4, 10,
         "10 rotary dimensions of 8: expected an even number of at most as many"},
        {{.n_kv_heads = 1, .head_dim = 8, .v_head_dim = 2000}, 1, 0,
         "heads of 8 and 2000 dimensions: expected at most 1024"},
    };
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(parts()->check_attention(&bad[i].kv, bad[i].n_heads, bad[i].rotary, &err), MQ_E_UNSUPPORTED);
        ck_assert_str_eq(err.text, bad[i].text);
    }
}
END_TEST

START_TEST(a_failed_launch_is_reported)
{
    if (!is_emulated)
        return;
    mq_decode_attention a = {.n_heads = 1, .max_context = 8};
    a.kv = (mq_kv){.n_slots = 8, .n_kv_heads = 1, .head_dim = 4, .v_head_dim = 4};
    for (int k = 1; k <= 2; k++) {
        mq_decode_input in = {.pos0 = 0, .n = 1};
        float *x = put_floats(NULL, R * 4), *kv = put_floats(NULL, 8 * 4);
        memset(&err, 0, sizeof err);
        a.q = a.k = a.v = x;
        a.q_stride = a.k_stride = a.v_stride = 4;
        a.kv.k = a.kv.v = kv;
        a.in = (const mq_decode_input *)put(&in, sizeof in);
        a.out = (uint16_t *)put(NULL, R * 8);
        a.workspace = put(NULL, parts()->attention_bytes(1, 4, 0, 8));
        mq_emulator_fail_launch(k);
        ck_assert_int_eq(parts()->attention(gpu_dev, &a, &err), MQ_E_DEVICE);
        ck_assert_ptr_nonnull(strstr(err.text, k == 1 ? "step attention:" : "step attention: join:"));
        drop(x);
        drop(kv);
        drop(a.in);
        drop(a.out);
        drop(a.workspace);
    }
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_step_attention");
    TCase *t = tcase_create("all");
    tcase_add_test(t, a_step_is_rope_store_and_attention);
    tcase_add_test(t, positions_beyond_a_million_keep_their_chunks);
    tcase_add_test(t, a_row_has_the_same_bits_alone_and_in_company);
    tcase_add_test(t, a_broken_row_stays_alone);
    tcase_add_test(t, a_hand_worked_row);
    tcase_add_test(t, parts_take_what_their_chunks_need);
    tcase_add_test(t, what_it_does_not_compute_is_refused);
    tcase_add_test(t, a_failed_launch_is_reported);
    suite_add_tcase(s, t);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, suite);
}
