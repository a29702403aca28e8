/* Prefill with BF16 products on CUDA: close to the CPU in F32 on a trained model; a layer's experts as one operation give what they
 * give one by one; taps and the decode step go on seeing single experts.
 *
 * In the emulator the device's memory is closed to the host outside kernels and copies.  With MQ_TEST_DEVICE=cuda on GPU 0, or
 * 77 where there is none. */
#include <math.h>

#include "runtime/forward.h"
#include "src/file.h"
#include "tests/emulator/emulator.h"
#include "tests/runtime/reference.h"

enum { N_IDS = 21, VOCAB = 512 };

static const mq_kernels *gpu;
static mq_kernels counting; /* gpu's table with an experts of its own */
static int n_calls, n_taps;
static mq_err err;

static mq_status counted_experts(mq_dev *dev, float *y, const float *x, const int32_t *ids, const float *coef,
                                 const mq_decode_expert_table *t, int64_t n, mq_err *e)
{
    n_calls++;
    return gpu->experts(dev, y, x, ids, coef, t, n, e);
}

static mq_status count_experts_seen(void *ctx, mq_tap_point point, int layer, int expert, const float *x,
                                    const int32_t *tokens, const float *coef, int64_t n, int64_t cols, mq_err *e)
{
    (void)ctx, (void)layer, (void)x, (void)tokens, (void)coef, (void)n, (void)cols, (void)e;
    n_taps += expert >= 0 && point == MQ_TAP_EXPERT_DOWN;
    return MQ_OK;
}

typedef struct run {
    const mq_kernels *k;
    mq_precision precision;
    const char *path;
    const mq_synthetic *synthetic;
    int n_ranks;
    mq_forward_mode mode;
    bool tapped;
} run;

/* logits [N_IDS, vocab] of the first N_IDS - 2 positions at once, then of the last two; the caller frees them. */
static float *logits_of(const run *r, int64_t *vocab)
{
    mq_dev *dev;
    mq_store *s;
    mq_cache *cache;
    mq_forward *f;
    void *x, *logits;
    int32_t ids[N_IDS];
    const mq_tap tap = {count_experts_seen, NULL};
    mq_assert_ok(r->k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_assert_ok(r->k->set_precision(dev, r->precision, &err), &err);
    mq_store_options so = {.resident = true, .n_ranks = r->n_ranks, .n_threads = 2, .kernels = r->k, .dev = dev,
                           .synthetic = r->synthetic};
    mq_assert_ok(mq_store_open(&s, r->path, &so, &err), &err);
    const mq_model *m = mq_store_model(s);
    for (int i = 0; i < N_IDS; i++)
        ids[i] = (17 + i * i * 31) % m->vocab;
    mq_assert_ok(mq_forward_create(&f, r->k, dev, s, N_IDS, N_IDS, &err), &err);
    mq_assert_ok(mq_cache_create(&cache, r->k, dev, m, r->n_ranks, N_IDS, N_IDS, &err), &err);
    mq_assert_ok(r->k->alloc(dev, &x, 4 * (int64_t)N_IDS * m->hidden, &err), &err);
    mq_assert_ok(r->k->alloc(dev, &logits, 4 * (int64_t)N_IDS * m->vocab, &err), &err);
    const mq_tap *seen = r->tapped ? &tap : NULL;
    float *rest = (float *)x + (N_IDS - 2) * m->hidden;
    mq_assert_ok(mq_forward_tokens(f, r->mode, x, ids, N_IDS - 2, cache, NULL, seen, &err), &err);
    mq_assert_ok(mq_forward_tokens(f, r->mode, rest, ids + N_IDS - 2, 2, cache, NULL, seen, &err), &err);
    mq_assert_ok(mq_forward_head(f, r->mode, logits, x, N_IDS, &err), &err);
    *vocab = m->vocab;
    float *out = malloc(4 * (size_t)N_IDS * (size_t)*vocab);
    ck_assert_ptr_nonnull(out);
    mq_assert_ok(r->k->download(dev, out, logits, 4 * N_IDS * *vocab, &err), &err);
    mq_assert_ok(r->k->dev_sync(dev, &err), &err);
    r->k->release(dev, logits);
    r->k->release(dev, x);
    mq_cache_free(cache);
    mq_forward_free(f);
    mq_store_close(s);
    r->k->dev_close(dev);
    return out;
}

/* Mean KL(a || b) over rows, nats. */
static double mean_kl(const float *a, const float *b, int64_t vocab)
{
    double sum = 0.0;
    for (int i = 0; i < N_IDS; i++) {
        const float *p = a + i * vocab, *q = b + i * vocab;
        double zp = 0.0, zq = 0.0, kl = 0.0;
        for (int64_t v = 0; v < vocab; v++) {
            zp += exp((double)p[v] - (double)p[0]);
            zq += exp((double)q[v] - (double)q[0]);
        }
        for (int64_t v = 0; v < vocab; v++) {
            double lp = (double)p[v] - (double)p[0] - log(zp), lq = (double)q[v] - (double)q[0] - log(zq);
            kl += exp(lp) * (lp - lq);
        }
        sum += kl;
    }
    return sum / N_IDS;
}

static double kl_between(const run *a, const run *b)
{
    int64_t vocab, same;
    float *x = logits_of(a, &vocab), *y = logits_of(b, &same);
    ck_assert_int_eq(vocab, same);
    double kl = mean_kl(x, y, vocab);
    free(x);
    free(y);
    return kl;
}

START_TEST(bf16_prefill_is_close_to_the_cpu)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    run want = {ref_kernels(), MQ_PRECISION_F32, dir, NULL, 1, MQ_FORWARD_BATCH, false}, got = want;
    got.k = gpu;
    got.precision = MQ_PRECISION_BF16;
    double kl = kl_between(&want, &got);
    printf("mean KL of BF16 prefill against the CPU: %.3g nats\n", kl);
    ck_assert_msg(kl < 6e-4 && kl > 1e-9, "mean KL %g", kl);
}
END_TEST

/* A dense layer and two MoE layers, sliding and full. */
static const char *write_config(void)
{
    static const char *const geometry =
        "{\"model_type\":\"mimo_v2\",\"num_hidden_layers\":3,\"hidden_size\":128,\"vocab_size\":512,"
        "\"num_attention_heads\":8,\"num_key_value_heads\":4,\"swa_num_attention_heads\":8,"
        "\"swa_num_key_value_heads\":4,\"head_dim\":48,\"v_head_dim\":32,\"swa_head_dim\":48,\"swa_v_head_dim\":32,"
        "\"rope_theta\":10000000,\"swa_rope_theta\":10000,\"partial_rotary_factor\":0.334,\"sliding_window\":8,"
        "\"attention_value_scale\":0.612,\"add_swa_attention_sink_bias\":true,\"intermediate_size\":256,"
        "\"n_routed_experts\":6,\"num_experts_per_tok\":2,\"moe_intermediate_size\":256,\"moe_layer_freq\":[0,1,1],"
        "\"hybrid_layer_pattern\":[0,1,0],\"scoring_func\":\"sigmoid\",\"norm_topk_prob\":true,"
        "\"layernorm_epsilon\":1e-5,\"max_position_embeddings\":4096}";
    static char kept[4096];
    char *path = mq_path_join(mq_test_dir(), "config.json");
    FILE *f = fopen(path, "w");
    ck_assert(path && f && fputs(geometry, f) >= 0 && fclose(f) == 0);
    snprintf(kept, sizeof kept, "%s", path);
    free(path);
    return kept;
}

START_TEST(experts_at_once_equal_experts_one_by_one)
{
    const char *path = write_config();
    for (int i = 0; i < 3; i++) {
        mq_synthetic o = {.only_rank = -1, .seed = 11, .expert_scheme = i == 2 ? MQ_SCHEME_MXFP4 : MQ_SCHEME_INT4};
        run at_once = {&counting, MQ_PRECISION_BF16, path, &o, i == 1 ? 2 : 1, MQ_FORWARD_BATCH, false}, single = at_once;
        mq_kernels none = counting;
        none.experts = NULL;
        single.k = &none;
        int64_t vocab;
        n_calls = 0;
        float *a = logits_of(&at_once, &vocab);
        ck_assert_int_eq(n_calls, 2 * 2 * at_once.n_ranks); /* chunks, layers, ranks */
        float *b = logits_of(&single, &vocab);
        ck_assert_int_eq(n_calls, 2 * 2 * at_once.n_ranks);
        /* The same products in the same order; only coef * output is added with one rounding instead of two. */
        double worst = 0.0, size = 0.0;
        for (int64_t j = 0; j < N_IDS * vocab; j++) {
            worst = fmax(worst, fabs((double)a[j] - (double)b[j]));
            size = fmax(size, fabs((double)b[j]));
        }
        /* an input of a later product next to a BF16 boundary may be rounded the other way */
        ck_assert_msg(worst <= 4e-3 * size && size > 0.1, "logits differ by %g of %g", worst, size);
        free(a);
        free(b);
    }
}
END_TEST

START_TEST(taps_the_step_and_f32_see_single_experts)
{
    mq_synthetic o = {.only_rank = -1, .seed = 11};
    const run base = {&counting, MQ_PRECISION_BF16, write_config(), &o, 1, MQ_FORWARD_BATCH, false};
    int64_t vocab;
    for (int i = 0; i < 3; i++) {
        run r = base;
        r.tapped = i == 0;
        r.mode = i == 1 ? MQ_FORWARD_STEP : MQ_FORWARD_BATCH;
        r.precision = i == 2 ? MQ_PRECISION_F32 : MQ_PRECISION_BF16;
        n_calls = n_taps = 0;
        free(logits_of(&r, &vocab));
        ck_assert_int_eq(n_calls, 0);
        ck_assert((n_taps > 0) == r.tapped);
    }
}
END_TEST

int main(void)
{
    const char *device = getenv("MQ_TEST_DEVICE");
    bool is_real = device && !strcmp(device, "cuda");
    gpu = is_real ? mq_kernels_find("cuda") : &mq_cuda_emulated_kernels;
    if (!gpu || (is_real && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    counting = *gpu;
    counting.experts = counted_experts;
    mq_emulator_guard_memory(true);
    Suite *s = suite_create("cuda_prefill");
    TCase *t = tcase_create("all");
    tcase_add_test(t, experts_at_once_equal_experts_one_by_one);
    tcase_add_test(t, taps_the_step_and_f32_see_single_experts);
    tcase_add_test(t, bf16_prefill_is_close_to_the_cpu);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
