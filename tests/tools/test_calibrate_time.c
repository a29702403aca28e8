/* The estimate of time: arithmetic worked by hand on a small model, and a measurement that gives numbers for small and large
 * shapes.  How near they come is measured by people: a machine may be busy. */
#include "tools/calibrate_time.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/harness.h"

/* Two layers: a dense one with full attention, one of 4 experts with sliding attention. */
static mq_model small_model(void)
{
    mq_model m;
    memset(&m, 0, sizeof m);
    m.n_layers = 2;
    m.hidden = 64;
    m.vocab = 100;
    m.full = (mq_attn_geometry){.n_heads = 2, .n_kv_heads = 1, .head_dim = 16, .v_head_dim = 8, .rotary_dims = 8, .rope_theta = 1e4};
    m.swa = m.full;
    m.swa.window = 4;
    m.is_swa[1] = m.is_moe[1] = true;
    m.intermediate = 128;
    m.n_experts = 4;
    m.n_experts_per_tok = 2;
    m.moe_intermediate = 64;
    m.norm_eps = 1e-5;
    m.max_positions = 4096;
    return m;
}

static mq_calib_work small_work(const mq_model *m, const mq_calib_recipe *recipe)
{
    return (mq_calib_work){.m = m, .recipe = recipe, .n_rows = 1000, .window = 100, .sample_rows = 300, .loss_rows = 200,
                           .n_calibrated = 1, .n_layers = 2, .n_dense = 1, .n_threads = 2, .n_workers = 1,
                           .read_bytes = 7000, .write_bytes = 3000, .scratch_bytes = 900, .saved_bytes = 400};
}

START_TEST(each_part_is_counted)
{
    mq_model m = small_model();
    mq_calib_recipe recipe = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    mq_calib_work work = small_work(&m, &recipe);
    /* q 32, k 16, v 8, o 16 columns times 64, twice; dense MLP 6 * 128 * 64; the router twice 2 * 4 * 64 */
    double flops = 2 * 2 * 64 * (32 + 16 + 8 + 16) + 6 * 128 * 64 + 2 * 2 * 4 * 64;
    mq_calib_seconds s = mq_calib_estimate(&work, &(mq_calib_rates){.linear_flop = 1});
    ck_assert(fabs(s.attention - 1000 * flops) < 1e-6);
    ck_assert(s.total == s.attention && s.experts == 0 && s.forward == 0 && s.disk == 0);
    s = mq_calib_estimate(&work, &(mq_calib_rates){.full_row = 3, .swa_row = 2, .route_row = 1});
    ck_assert(s.attention == 1000 * (3 + 2 + 2 * 1));
    /* 2000 choices; 500 a expert are enough for width and hidden of 64: neither sample nor the layer's moment */
    s = mq_calib_estimate(&work, &(mq_calib_rates){.expert = 10, .expert_token = 1, .gram_flop = 1});
    ck_assert(s.experts == 4 * 10 + 2000);
    /* twice the 200 rows of the loss through two experts each; behind the one layer with experts nothing follows */
    s = mq_calib_estimate(&work, &(mq_calib_rates){.expert_row = 1});
    ck_assert(s.forward == 400 * 2);
    work.n_layers = 5; /* three with experts behind the dense one of which one is not calibrated */
    work.n_dense = 2;
    work.n_calibrated = 2;
    ck_assert(mq_calib_estimate(&work, &(mq_calib_rates){.expert_row = 1}).forward == (2 * 1000 + 2 * 400) * 2);
    work = small_work(&m, &recipe);
    s = mq_calib_estimate(&work, &(mq_calib_rates){.read_byte = 1});
    ck_assert(s.disk == 7000);
    s = mq_calib_estimate(&work, &(mq_calib_rates){.write_byte = 1, .hash_byte = 2});
    ck_assert(s.disk == (3000 + 900) * 1 + (3000 + 400) * 2 / 2.0);
    ck_assert(s.total == s.disk);
}
END_TEST

START_TEST(cold_experts_cost_the_sample_and_the_layers_moment)
{
    mq_model m = small_model();
    mq_calib_recipe recipe = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    mq_calib_work work = small_work(&m, &recipe);
    work.n_rows = 200; /* 100 tokens an expert, fewer than 4 * 64 */
    mq_calib_seconds s = mq_calib_estimate(&work, &(mq_calib_rates){.expert_token = 1, .gram_flop = 1});
    ck_assert(s.experts == 400 + 4 * 200 + 200.0 * 64 * 64);
    recipe.shrink = false;
    s = mq_calib_estimate(&work, &(mq_calib_rates){.expert_token = 1, .gram_flop = 1});
    ck_assert(s.experts == 400);
}
END_TEST

static void check_measured(const mq_model *m, const mq_calib_recipe *recipe, double most_seconds)
{
    mq_err err = {0};
    mq_calib_work work = small_work(m, recipe);
    mq_calib_rates r;
    mq_assert_ok(mq_calib_measure(&r, &work, mq_test_path("tests/data/nano/model-00001-of-00001.safetensors"), mq_test_dir(), &err), &err);
    const double rates[] = {r.linear_flop, r.full_row, r.swa_row, r.route_row, r.expert_row, r.gram_flop, r.expert, r.hash_byte, r.seconds};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++)
        ck_assert_msg(rates[i] > 0 && isfinite(rates[i]), "rate %zu is %g", i, rates[i]);
    ck_assert(r.expert_token >= 0 && r.read_byte >= 0 && r.write_byte >= 0);
    ck_assert_msg(r.seconds < most_seconds, "%g s to measure", r.seconds);
    printf("measured in %.2f s: linear %.1f GFLOP/s, expert %.1f ms and %.2f us a token, read %.0f MB/s, write %.0f MB/s\n", r.seconds,
           1e-9 / r.linear_flop, 1e3 * r.expert, 1e6 * r.expert_token, r.read_byte > 0 ? 1e-6 / r.read_byte : 0,
           r.write_byte > 0 ? 1e-6 / r.write_byte : 0);
}

START_TEST(small_and_large_shapes_are_measured)
{
    mq_model m = small_model();
    mq_calib_recipe recipe = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    check_measured(&m, &recipe, 60);
    m.hidden = 6144; /* as MiMo-V2.5-Pro */
    m.moe_intermediate = 2048;
    m.n_experts = 384;
    m.n_experts_per_tok = 8;
    m.full.n_heads = m.swa.n_heads = 128;
    m.full.n_kv_heads = m.swa.n_kv_heads = 8;
    m.full.head_dim = m.swa.head_dim = 192;
    m.full.v_head_dim = m.swa.v_head_dim = 128;
    m.full.rotary_dims = m.swa.rotary_dims = 64;
    recipe = mq_calib_recipe_default(MQ_CALIB_GPTQ, 128);
    check_measured(&m, &recipe, 60); /* a second or two on an idle machine */
    recipe = mq_calib_recipe_default(MQ_CALIB_IMATRIX, 32);
    check_measured(&m, &recipe, 60);
}
END_TEST

START_TEST(what_cannot_be_read_or_written_counts_nothing)
{
    mq_err err = {0};
    mq_model m = small_model();
    mq_calib_recipe recipe = mq_calib_recipe_default(MQ_CALIB_IMATRIX, 64);
    mq_calib_work work = small_work(&m, &recipe);
    mq_calib_rates r;
    mq_assert_ok(mq_calib_measure(&r, &work, "/nowhere/x", "/nowhere", &err), &err);
    ck_assert(r.read_byte == 0 && r.write_byte == 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("calibrate_time");
    TCase *t = tcase_create("calibrate_time");
    tcase_add_test(t, each_part_is_counted);
    tcase_add_test(t, cold_experts_cost_the_sample_and_the_layers_moment);
    tcase_add_test(t, small_and_large_shapes_are_measured);
    tcase_add_test(t, what_cannot_be_read_or_written_counts_nothing);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
