/* What calibration adds to the forward pass: the routes of rows ahead of the MLP half, and experts lent by somebody else. */
#include "runtime/forward.h"
#include "tests/runtime/reference.h"

enum { N = 150, LAYER = 2, BLOCK = 40 };

typedef struct bench {
    mq_dev *dev;
    mq_store *store;
    mq_forward *f;
    const mq_model *m;
    float *x;
} bench;

static void open_bench(bench *b, const char *dir)
{
    mq_err err;
    b->dev = ref_dev(2);
    b->store = ref_store(dir, 1, false);
    b->m = mq_store_model(b->store);
    b->x = ref_floats(b->dev, (int64_t)N * b->m->hidden);
    mq_assert_ok(mq_forward_create(&b->f, ref_kernels(), b->dev, b->store, BLOCK, N, &err), &err);
    uint64_t seed = 7;
    for (int64_t i = 0; i < (int64_t)N * b->m->hidden; i++)
        b->x[i] = mq_test_normal(&seed);
}

static void close_bench(bench *b)
{
    mq_forward_free(b->f);
    mq_store_close(b->store);
    ref_kernels()->release(b->dev, b->x);
    ref_kernels()->dev_close(b->dev);
}

/* Every (row, expert, coefficient) that the MLP half uses, by row. */
typedef struct seen {
    int n[N];
    int32_t ids[N][MQ_MAX_TOPK];
    float coef[N][MQ_MAX_TOPK];
} seen;

static mq_status see(void *ctx, mq_tap_point point, int layer, int expert, const float *x, const int32_t *tokens,
                     const float *coef, int64_t n, int64_t cols, mq_err *err)
{
    (void)layer, (void)x, (void)cols, (void)err;
    seen *s = ctx;
    for (int64_t i = 0; i < n && point == MQ_TAP_EXPERT_IN; i++) {
        int at = s->n[tokens[i]]++;
        s->ids[tokens[i]][at] = expert;
        s->coef[tokens[i]][at] = coef[i];
    }
    return MQ_OK;
}

START_TEST(routes_are_those_of_the_mlp_half)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    bench b;
    mq_err err;
    open_bench(&b, dir);
    int topk = b.m->n_experts_per_tok;
    int32_t *ids = calloc((size_t)(N * topk), sizeof *ids);
    float *coef = calloc((size_t)(N * topk), sizeof *coef), *before = calloc((size_t)(N * b.m->hidden), sizeof *before);
    memcpy(before, b.x, (size_t)(N * b.m->hidden) * sizeof *before);
    mq_assert_ok(mq_forward_route(b.f, MQ_FORWARD_BATCH, LAYER, ids, coef, b.x, N, &err), &err);
    ck_assert_mem_eq(before, b.x, (size_t)(N * b.m->hidden) * sizeof *before);
    static seen s;
    mq_tap tap = {see, &s};
    mq_assert_ok(mq_forward_mlp(b.f, MQ_FORWARD_BATCH, LAYER, b.x, N, NULL, &tap, &err), &err);
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(s.n[i], topk);
        ck_assert_mem_eq(ids + i * topk, s.ids[i], (size_t)topk * sizeof *ids);
        ck_assert_mem_eq(coef + i * topk, s.coef[i], (size_t)topk * sizeof *coef);
    }
    free(ids);
    free(coef);
    free(before);
    close_bench(&b);
}
END_TEST

/* Lends the experts of another store, the next one instead of each where shift is 1. */
typedef struct lender {
    mq_store *store;
    int shift, n_calls, n_experts;
} lender;

static mq_status lend(void *ctx, mq_mlp_weights *out, int layer, int expert, mq_err *err)
{
    lender *l = ctx;
    ck_assert_int_eq(layer, LAYER);
    l->n_calls++;
    return mq_store_expert(l->store, out, layer, (expert + l->shift) % l->n_experts, 0, err);
}

START_TEST(lent_experts_take_the_place_of_the_stores)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    bench b;
    mq_err err;
    open_bench(&b, dir);
    size_t bytes = (size_t)(N * b.m->hidden) * sizeof(float);
    float *x = malloc(bytes), *want = malloc(bytes);
    memcpy(x, b.x, bytes);
    mq_assert_ok(mq_forward_mlp(b.f, MQ_FORWARD_BATCH, LAYER, b.x, N, NULL, NULL, &err), &err);
    memcpy(want, b.x, bytes);
    lender l = {.store = ref_store(dir, 1, false), .n_experts = b.m->n_experts};
    for (l.shift = 0; l.shift < 2; l.shift++) {
        mq_store_set_experts(b.store, lend, &l);
        memcpy(b.x, x, bytes);
        mq_assert_ok(mq_forward_mlp(b.f, MQ_FORWARD_BATCH, LAYER, b.x, N, NULL, NULL, &err), &err);
        ck_assert_int_eq(memcmp(b.x, want, bytes) != 0, l.shift);
    }
    ck_assert_int_gt(l.n_calls, b.m->n_experts / 2);
    mq_store_set_experts(b.store, NULL, NULL);
    memcpy(b.x, x, bytes);
    mq_assert_ok(mq_forward_mlp(b.f, MQ_FORWARD_BATCH, LAYER, b.x, N, NULL, NULL, &err), &err);
    ck_assert_mem_eq(b.x, want, bytes);
    free(x);
    free(want);
    mq_store_close(l.store);
    close_bench(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("forward_route");
    TCase *t = tcase_create("route");
    tcase_add_test(t, routes_are_those_of_the_mlp_half);
    tcase_add_test(t, lent_experts_take_the_place_of_the_stores);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
