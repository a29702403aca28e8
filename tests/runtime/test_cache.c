/* The KV cache's room: slots of full and sliding layers, heads of a rank, bytes, and which
 * truncations it allows. */
#include "runtime/cache.h"
#include "runtime/slices.h"
#include "tests/harness.h"

/* Layer 0 full, layer 1 sliding with window 64. */
static mq_model small_model(void)
{
    mq_model m = {.n_layers = 2, .hidden = 64, .vocab = 100};
    m.full = (mq_attn_geometry){.n_heads = 8, .n_kv_heads = 2, .head_dim = 48, .v_head_dim = 32};
    m.swa = m.full;
    m.swa.n_kv_heads = 4;
    m.swa.window = 64;
    m.is_swa[1] = true;
    return m;
}

static mq_dev *open_dev(const mq_kernels *k)
{
    mq_dev *dev;
    mq_err err;
    mq_assert_ok(k->dev_open(&dev, 0, 1, NULL, &err), &err);
    return dev;
}

START_TEST(a_rank_has_its_heads)
{
    mq_model m = small_model();
    mq_head_slice s = mq_slice_heads(&m.swa, 2, 1); /* heads 4 to 7, KV heads 2 and 3 */
    ck_assert_int_eq(s.head0, 4);
    ck_assert_int_eq(s.n_heads, 4);
    ck_assert_int_eq(s.kv_head0, 2);
    ck_assert_int_eq(s.n_kv_heads, 2);
    s = mq_slice_heads(&m.full, 8, 5); /* head 5 uses KV head 5 / 4 */
    ck_assert_int_eq(s.head0, 5);
    ck_assert_int_eq(s.n_heads, 1);
    ck_assert_int_eq(s.kv_head0, 1);
    ck_assert_int_eq(s.n_kv_heads, 1);
}
END_TEST

START_TEST(sliding_layers_hold_a_ring)
{
    const mq_kernels *k = mq_kernels_find("cpu");
    mq_dev *dev = open_dev(k);
    mq_model m = small_model();
    mq_cache *c;
    mq_err err;
    mq_assert_ok(mq_cache_create(&c, k, dev, &m, 1, 500, 8, &err), &err);
    ck_assert_int_eq(mq_cache_capacity(c), 500);
    ck_assert_int_eq(mq_cache_kv(c, 0, 0)->n_slots, 500);
    ck_assert_int_eq(mq_cache_kv(c, 1, 0)->n_slots, 72);
    ck_assert_int_eq(mq_cache_kv(c, 1, 0)->n_kv_heads, 4);
    /* full: 500 * 2 * (48 + 32) floats; sliding: 72 * 4 * (48 + 32) */
    ck_assert_int_eq(mq_cache_bytes(&m, 1, 500, 8), 4 * (80000 + 23040));
    ck_assert_int_eq(mq_cache_scratch_bytes(&m, 1, 500, 8), 4 * 80000);
    mq_cache_free(c);

    /* A ring as long as the text is the text; two ranks' arrays do not overlap. */
    mq_assert_ok(mq_cache_create(&c, k, dev, &m, 2, 50, 8, &err), &err);
    ck_assert_int_eq(mq_cache_kv(c, 1, 1)->n_slots, 50);
    ck_assert(mq_cache_kv(c, 1, 1)->k >= mq_cache_kv(c, 1, 0)->v + 50 * 2 * 32);
    mq_cache_free(c);

    mq_assert_ok(mq_cache_create_scratch(&c, k, dev, &m, 1, 50, 8, &err), &err);
    ck_assert_ptr_eq(mq_cache_kv(c, 1, 0)->k, mq_cache_kv(c, 0, 0)->k);
    mq_cache_free(c);
    mq_cache_free(NULL);
    k->dev_close(dev);
}
END_TEST

START_TEST(length_follows_advance_and_truncate)
{
    const mq_kernels *k = mq_kernels_find("cpu");
    mq_dev *dev = open_dev(k);
    mq_model m = small_model();
    mq_cache *c;
    mq_err err;
    mq_assert_ok(mq_cache_create(&c, k, dev, &m, 1, 500, 8, &err), &err);
    mq_cache_advance(c, 300);
    mq_cache_truncate(c, 292);
    ck_assert_int_eq(mq_cache_length(c), 292);
    mq_cache_advance(c, 9);
    mq_cache_truncate(c, 293);
    mq_cache_truncate(c, 0);
    ck_assert_int_eq(mq_cache_length(c), 0);
    mq_cache_advance(c, 500);
    ck_assert_int_eq(mq_cache_length(c), 500);
    mq_cache_free(c);
    k->dev_close(dev);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cache");
    TCase *t = tcase_create("cache");
    tcase_add_test(t, a_rank_has_its_heads);
    tcase_add_test(t, sliding_layers_hold_a_ring);
    tcase_add_test(t, length_follows_advance_and_truncate);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
