/* Synthetic models: the same bytes on CPU and CUDA, ranks that cut one model, one rank alone, magnitudes, refusals.
 *
 * On the emulator, or with MQ_TEST_DEVICE=cuda on GPU 0 (77 where there is none). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/engine.h"
#include "src/file.h"
#include "tests/emulator/emulator.h"
#include "tests/runtime/reference.h"

enum { VOCAB = 512, HIDDEN = 128, N_IDS = 5 };

static const mq_kernels *cuda;
static mq_err err;

/* Three layers: full attention and a dense MLP, then two sliding MoE layers; extra goes in front of the last brace. */
static const char *write_config(const char *extra)
{
    static const char *const geometry =
        "{\"model_type\":\"mimo_v2\",\"num_hidden_layers\":3,\"hidden_size\":128,\"vocab_size\":512,"
        "\"num_attention_heads\":8,\"num_key_value_heads\":4,\"swa_num_attention_heads\":8,"
        "\"swa_num_key_value_heads\":4,\"head_dim\":48,\"v_head_dim\":32,\"swa_head_dim\":48,\"swa_v_head_dim\":32,"
        "\"rope_theta\":10000000,\"swa_rope_theta\":10000,\"partial_rotary_factor\":0.334,\"sliding_window\":8,"
        "\"attention_value_scale\":0.612,\"add_swa_attention_sink_bias\":true,\"intermediate_size\":256,"
        "\"n_routed_experts\":6,\"num_experts_per_tok\":2,\"moe_intermediate_size\":256,\"moe_layer_freq\":[0,1,1],"
        "\"hybrid_layer_pattern\":[0,1,1],\"scoring_func\":\"sigmoid\",\"norm_topk_prob\":true,"
        "\"layernorm_epsilon\":1e-5,\"max_position_embeddings\":4096%s}";
    static const char *dir;
    static int n;
    char name[32], text[2048];
    if (!dir)
        dir = mq_test_dir();
    snprintf(name, sizeof name, "config%d.json", n++);
    snprintf(text, sizeof text, geometry, extra);
    char *path = mq_path_join(dir, name);
    FILE *f = fopen(path, "w");
    ck_assert(path && f && fputs(text, f) >= 0 && fclose(f) == 0);
    static char kept[4096];
    snprintf(kept, sizeof kept, "%s", path);
    free(path);
    return kept;
}

#define FP8                                                                                                \
    ",\"attention_projection_layout\":\"fused_qkv\",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\"," \
    "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}"

static const mq_synthetic ALL = {.only_rank = -1, .seed = 11};

static mq_store *open_store(const char *path, const mq_synthetic *synthetic, int n_ranks, bool resident,
                            const mq_kernels *k, mq_dev *dev)
{
    mq_store *s;
    mq_store_options o = {.resident = resident, .n_ranks = n_ranks, .n_threads = 2, .kernels = k, .dev = dev,
                          .synthetic = synthetic};
    mq_assert_ok(mq_store_open(&s, path, &o, &err), &err);
    return s;
}

/* [rows, cols] widened; the caller frees it. */
static float *widened(const mq_matrix *m)
{
    float *w = malloc((size_t)(m->rows * m->cols) * sizeof *w);
    ck_assert_ptr_nonnull(w);
    mq_matrix_widen(m, 0, m->rows, w);
    return w;
}

static void check_std(const mq_matrix *m, double std, double within, const char *what)
{
    float *w = widened(m);
    double sum2 = 0;
    int64_t n = m->rows * m->cols;
    for (int64_t i = 0; i < n; i++)
        sum2 += (double)w[i] * w[i];
    double ratio = sqrt(sum2 / (double)n) / std;
    ck_assert_msg(ratio < within && ratio > 1 / within, "%s: %g times what is expected", what, ratio);
    free(w);
}

START_TEST(dtypes_are_the_releases_and_values_keep_their_variance)
{
    static const char *const configs[] = {"", FP8, ",\"moe_router_dtype\":\"bfloat16\""};
    for (int i = 0; i < 3; i++) {
        mq_synthetic o = ALL;
        o.expert_scheme = i == 1 ? MQ_SCHEME_MXFP4 : MQ_SCHEME_NONE;
        mq_store *s = open_store(write_config(configs[i]), &o, 1, false, NULL, NULL);
        mq_layer_weights dense, moe;
        mq_mlp_weights expert;
        mq_matrix embedding, head;
        const mq_scheme linear = i == 1 ? MQ_SCHEME_FP8_BLOCK : MQ_SCHEME_BF16;
        mq_assert_ok(mq_store_layer(s, &dense, 0, 0, &err), &err);
        ck_assert(!dense.is_moe && !dense.attn.sink && dense.attn.q.scheme == linear && dense.mlp.down.scheme == linear);
        ck_assert_int_eq(dense.attn.o.scheme, MQ_SCHEME_BF16);
        double within = i == 1 ? 2.0 : 1.05; /* FP8: a scale for every 128 columns, so one or two draws */
        check_std(&dense.attn.q, 1 / sqrt(HIDDEN), within, "q");
        check_std(&dense.attn.k, 1 / sqrt(HIDDEN), within, "k");
        check_std(&dense.attn.o, 1 / sqrt(256.0), 1.05, "o");
        check_std(&dense.mlp.down, 1 / sqrt(256.0), within, "down");
        for (int j = 0; j < HIDDEN; j++)
            ck_assert(dense.input_norm[j] == 1.0f && dense.post_norm[j] == 1.0f);
        mq_assert_ok(mq_store_layer(s, &moe, 2, 0, &err), &err);
        ck_assert(moe.is_moe && moe.attn.sink && moe.router.scheme == (i == 2 ? MQ_SCHEME_BF16 : MQ_SCHEME_F32));
        check_std(&moe.router, 1 / sqrt(HIDDEN), 1.1, "router");
        for (int j = 0; j < 6; j++)
            ck_assert(moe.router_bias[j] == 0.0f);
        for (int j = 0; j < 8; j++)
            ck_assert(fabsf(moe.attn.sink[j]) < 1.0f && moe.attn.sink[j] != moe.attn.sink[(j + 1) % 8]);
        mq_assert_ok(mq_store_expert(s, &expert, 2, 5, 0, &err), &err);
        ck_assert(expert.interleaved && expert.gate_up.scheme == (i == 1 ? MQ_SCHEME_MXFP4 : MQ_SCHEME_INT4));
        ck_assert_int_eq(expert.down.group, i == 1 ? MQ_GROUP_MXFP4 : 64);
        check_std(&expert.gate_up, 1 / sqrt(HIDDEN), i == 1 ? 1.45 : 1.05, "gate_up");
        check_std(&expert.down, 1 / 16.0, i == 1 ? 1.45 : 1.05, "expert down");
        mq_assert_ok(mq_store_embedding(s, &embedding, &err), &err);
        check_std(&embedding, 1.0, 1.02, "embedding");
        mq_assert_ok(mq_store_head(s, &head, 0, &err), &err);
        check_std(&head, 1 / sqrt(HIDDEN), 1.02, "head");
        ck_assert(mq_store_is_synthetic(s) && !mq_store_is_packed(s) && mq_store_only_rank(s) == -1);
        mq_store_close(s);
    }
}
END_TEST

/* The composed step: F32, so that CPU and CUDA can be compared. */
static mq_engine *open_engine(const char *path, const mq_synthetic *o, int n_ranks, const mq_kernels *k)
{
    mq_engine *e;
    mq_engine_options eo = {.n_ranks = n_ranks, .n_threads = 2, .context = 64, .prefill_rows = 8, .synthetic = o,
                            .composed_step = true};
    mq_assert_ok(mq_engine_open(&e, path, k, &eo, &err), &err);
    return e;
}

/* Logits [N_IDS, VOCAB] of a prefill and four steps; the caller frees them. */
static float *logits_of(const char *path, const mq_synthetic *o, int n_ranks, const mq_kernels *k)
{
    static const int32_t ids[N_IDS] = {3, 500, 77, 77, 1};
    mq_engine *e = open_engine(path, o, n_ranks, k);
    float *out = malloc(sizeof *out * N_IDS * VOCAB);
    ck_assert_ptr_nonnull(out);
    mq_assert_ok(mq_engine_prefill(e, ids, 1, &err), &err);
    mq_assert_ok(mq_engine_logits(e, out, &err), &err);
    mq_assert_ok(mq_engine_step(e, ids + 1, N_IDS - 1, &err), &err);
    mq_assert_ok(mq_engine_logits(e, out + VOCAB, &err), &err);
    mq_engine_close(e);
    return out;
}

static double largest_difference(const float *a, const float *b)
{
    double most = 0;
    for (int i = 0; i < N_IDS * VOCAB; i++) {
        ck_assert(isfinite(a[i]) && isfinite(b[i]));
        most = fmax(most, fabs((double)a[i] - b[i]));
    }
    return most;
}

START_TEST(ranks_cut_one_model)
{
    static const char *const configs[] = {"", FP8};
    for (int i = 0; i < 2; i++) {
        const char *path = write_config(configs[i]);
        float *one = logits_of(path, &ALL, 1, ref_kernels());
        for (int r = 2; r <= 4; r *= 2) {
            float *many = logits_of(path, &ALL, r, ref_kernels());
            ck_assert(largest_difference(one, many) < 1e-4); /* orders of F32 sums; logits are of about 1 */
            free(many);
        }
        mq_synthetic other = ALL;
        other.seed++;
        float *another = logits_of(path, &other, 1, ref_kernels());
        ck_assert(largest_difference(one, another) > 0.1);
        free(another);
        free(one);
    }
}
END_TEST

START_TEST(one_rank_alone_holds_its_slices)
{
    const char *path = write_config(FP8);
    mq_store *all = open_store(path, &ALL, 4, true, NULL, NULL);
    for (int r = 0; r < 4; r++) {
        mq_synthetic o = ALL;
        o.only_rank = r;
        mq_store *s = open_store(path, &o, 4, r % 2, NULL, NULL);
        ck_assert_int_eq(mq_store_only_rank(s), r);
        for (int asked = 0; asked < 4; asked++) {
            mq_layer_weights a, b;
            mq_mlp_weights x, y;
            mq_assert_ok(mq_store_layer(all, &a, 1, r, &err), &err);
            mq_assert_ok(mq_store_layer(s, &b, 1, asked, &err), &err);
            mq_assert_ok(mq_store_expert(all, &x, 2, 3, r, &err), &err);
            mq_assert_ok(mq_store_expert(s, &y, 2, 3, asked, &err), &err);
            ck_assert_int_eq(memcmp(x.down.data, y.down.data, (size_t)mq_units_bytes(128, 64, 64)), 0);
            const mq_matrix *left[] = {&a.attn.q, &a.attn.v, &a.attn.o}, *right[] = {&b.attn.q, &b.attn.v, &b.attn.o};
            for (int i = 0; i < 3; i++) {
                float *u = widened(left[i]), *v = widened(right[i]);
                ck_assert_int_eq(memcmp(u, v, (size_t)(left[i]->rows * left[i]->cols) * 4), 0);
                free(u);
                free(v);
            }
            ck_assert(a.attn.sink[1] == b.attn.sink[1]);
        }
        ck_assert(mq_store_resident_bytes(s) < mq_store_resident_bytes(all) / 2);
        mq_store_close(s);
    }
    mq_store_close(all);
}
END_TEST

START_TEST(one_rank_alone_answers_for_all)
{
    const char *path = write_config("");
    for (int r = 0; r < 4; r++) {
        mq_synthetic o = ALL;
        o.only_rank = r;
        float *x = logits_of(path, &o, 4, ref_kernels());
        for (int i = 0; i < N_IDS * VOCAB; i++) /* every slice of the vocabulary is the first */
            ck_assert(isfinite(x[i]) && x[i] == x[i / VOCAB * VOCAB + i % (VOCAB / 4)]);
        free(x);
    }
    mq_synthetic single = ALL;
    single.only_rank = 0;
    float *a = logits_of(path, &ALL, 1, ref_kernels()), *b = logits_of(path, &single, 1, ref_kernels());
    ck_assert_int_eq(memcmp(a, b, sizeof *a * N_IDS * VOCAB), 0);
    free(a);
    free(b);
}
END_TEST

/* Copy a device's matrix and compare; the host's memory does not hold the device's. */
static void check_same(const mq_kernels *k, mq_dev *dev, const void *device, const void *host, int64_t n)
{
    void *copy = malloc((size_t)n);
    ck_assert_ptr_nonnull(copy);
    mq_assert_ok(k->download(dev, copy, device, n, &err), &err);
    ck_assert_int_eq(memcmp(copy, host, (size_t)n), 0);
    free(copy);
}

START_TEST(a_device_fills_its_own_memory)
{
    const mq_kernels *k = cuda;
    const char *path = write_config(FP8);
    mq_dev *dev;
    mq_assert_ok(k->dev_open(&dev, 0, 0, NULL, &err), &err);
    mq_synthetic o = ALL;
    o.only_rank = 1;
    for (int resident = 0; resident < 2; resident++) {
        mq_store *c = open_store(path, &o, 2, true, NULL, NULL), *d = open_store(path, &o, 2, resident, k, dev);
        mq_layer_weights a, b;
        mq_mlp_weights x, y;
        mq_matrix h, g;
        const float *n, *m;
        mq_assert_ok(mq_store_layer(c, &a, 1, 1, &err), &err);
        mq_assert_ok(mq_store_layer(d, &b, 1, 1, &err), &err);
        check_same(k, dev, b.attn.q.data, a.attn.q.data, a.attn.q.rows * a.attn.q.cols);
        check_same(k, dev, b.attn.q.scale, a.attn.q.scale, 4 * mq_fp8_n_scales(&a.attn.q));
        check_same(k, dev, b.attn.sink, a.attn.sink, 4 * a.attn.n_heads);
        check_same(k, dev, b.router.data, a.router.data, 4 * 6 * HIDDEN);
        mq_assert_ok(mq_store_expert(c, &x, 2, 4, 1, &err), &err);
        mq_assert_ok(mq_store_expert(d, &y, 2, 4, 1, &err), &err);
        check_same(k, dev, y.gate_up.data, x.gate_up.data, mq_units_bytes(256, HIDDEN, 64));
        mq_assert_ok(mq_store_head(c, &h, 1, &err), &err);
        mq_assert_ok(mq_store_head(d, &g, 1, &err), &err);
        check_same(k, dev, g.data, h.data, 2 * VOCAB / 2 * HIDDEN);
        mq_assert_ok(mq_store_final_norm(c, &n, &err), &err);
        mq_assert_ok(mq_store_final_norm(d, &m, &err), &err);
        check_same(k, dev, m, n, 4 * HIDDEN);
        mq_store_close(c);
        mq_store_close(d);
    }
    k->dev_close(dev);
    float *cpu = logits_of(path, &o, 2, ref_kernels()), *gpu = logits_of(path, &o, 2, k);
    ck_assert(largest_difference(cpu, gpu) < 1e-4);
    free(cpu);
    free(gpu);
}
END_TEST

/* Logits [2, VOCAB] of a step behind 40 made-up positions; the caller frees them. */
static float *skipped_logits(const char *path, const mq_kernels *k, uint64_t seed, int64_t *n_read)
{
    static const int32_t ids[2] = {9, 400};
    mq_engine *e = open_engine(path, &ALL, 2, k);
    float *out = malloc(sizeof *out * N_IDS * VOCAB);
    ck_assert_ptr_nonnull(out);
    memset(out, 0, sizeof *out * N_IDS * VOCAB);
    mq_assert_fails(mq_engine_skip(e, 65, seed, &err), MQ_E_ARG, &err, "65 positions after 0, expected at most 64");
    mq_assert_ok(mq_engine_skip(e, 40, seed, &err), &err);
    ck_assert_int_eq(mq_engine_length(e), 40);
    mq_assert_ok(mq_engine_step(e, ids, 2, &err), &err);
    mq_assert_ok(mq_engine_logits(e, out, &err), &err);
    mq_assert_ok(mq_engine_read_weights(e, n_read, &err), &err);
    ck_assert(*n_read > 0 && *n_read <= mq_engine_weight_bytes(e));
    mq_engine_close(e);
    return out;
}

START_TEST(skipped_positions_are_a_function_of_the_seed)
{
    const char *path = write_config("");
    int64_t n_cpu, n_gpu, n;
    float *cpu = skipped_logits(path, ref_kernels(), 3, &n_cpu);
    float *gpu = skipped_logits(path, cuda, 3, &n_gpu);
    float *other = skipped_logits(path, ref_kernels(), 4, &n);
    ck_assert(largest_difference(cpu, gpu) < 1e-4);
    ck_assert(largest_difference(cpu, other) > 1e-3);
    ck_assert_int_eq(n_cpu, n_gpu);
    free(cpu);
    free(gpu);
    free(other);
}
END_TEST

START_TEST(the_first_layers_are_the_models)
{
    const char *path = write_config("");
    mq_synthetic two = ALL;
    two.n_layers = 2;
    mq_store *a = open_store(path, &two, 1, false, NULL, NULL), *b = open_store(path, &ALL, 1, false, NULL, NULL);
    const mq_model *m = mq_store_model(a);
    ck_assert(m->n_layers == 2 && !m->is_moe[0] && m->is_moe[1] && m->is_swa[1]);
    mq_matrix x, y;
    mq_assert_ok(mq_store_head(a, &x, 0, &err), &err);
    mq_assert_ok(mq_store_head(b, &y, 0, &err), &err);
    ck_assert_int_eq(memcmp(x.data, y.data, 2 * VOCAB * HIDDEN), 0);
    ck_assert(mq_store_resident_bytes(a) < mq_store_resident_bytes(b));
    mq_store_close(a);
    mq_store_close(b);
}
END_TEST

/* A whole speculative run of a rank alone, through the device's own steps: what the drafter reads is there. */
START_TEST(a_made_up_drafter_proposes)
{
    static const char drafter[] =
        "{\"model_type\": \"qwen3\", \"num_hidden_layers\": 2, \"hidden_size\": 128, \"intermediate_size\": 256,"
        "\"num_attention_heads\": 8, \"num_key_value_heads\": 2, \"head_dim\": 32, \"partial_rotary_factor\": 0.5,"
        "\"rope_theta\": 10000, \"rms_norm_eps\": 1e-5, \"sliding_window\": 16, \"block_size\": 8, \"num_target_layers\": 3,"
        "\"dflash_config\": {\"target_layer_ids\": [0, 2], \"mask_token_id\": 500, \"block_size\": 8, \"use_swa\": true,"
        "\"attention_sink_bias\": true}}";
    char *drafter_path = mq_path_join(mq_test_dir(), "drafter.json");
    FILE *f = fopen(drafter_path, "w");
    ck_assert(f && fputs(drafter, f) >= 0 && fclose(f) == 0);
    const char *path = write_config("");
    for (int only = -1; only < 2; only += 2) {
        mq_synthetic o = ALL;
        o.only_rank = only;
        o.drafter = drafter_path;
        mq_engine *e;
        mq_engine_options eo = {.n_ranks = 2, .n_threads = 2, .context = 128, .prefill_rows = 16, .synthetic = &o,
                                .draft = MQ_DRAFT_DFLASH};
        int32_t ids[40], guesses[7];
        float confidence[7];
        for (int i = 0; i < 40; i++)
            ids[i] = (int32_t)(i * 37 % VOCAB);
        mq_assert_ok(mq_engine_open(&e, path, cuda, &eo, &err), &err);
        ck_assert_msg(!mq_engine_why_composed(e), "composed: %s", mq_engine_why_composed(e));
        mq_assert_ok(mq_engine_prefill(e, ids, 40, &err), &err);
        for (int rows = 1; rows <= 8; rows++) {
            mq_assert_ok(mq_engine_propose(e, guesses, confidence, ids[rows], 7, &err), &err);
            for (int i = 0; i < 7; i++)
                ck_assert(guesses[i] >= 0 && guesses[i] < VOCAB && confidence[i] > 0.0f && confidence[i] <= 1.0f);
            mq_assert_ok(mq_engine_step(e, ids, rows, &err), &err);
            mq_engine_rollback(e, mq_engine_length(e) - rows / 2);
        }
        mq_engine_close(e);
    }
    free(drafter_path);
}
END_TEST

START_TEST(what_cannot_be_is_refused)
{
    const char *path = write_config("");
    mq_store *s;
    mq_synthetic o = ALL;
    mq_store_options so = {.n_ranks = 2, .n_threads = 1, .synthetic = &o};
    o.n_layers = 4;
    mq_assert_fails(mq_store_open(&s, path, &so, &err), MQ_E_ARG, &err, "4 layers, expected at most the 3");
    o.n_layers = 0;
    o.only_rank = 2;
    mq_assert_fails(mq_store_open(&s, path, &so, &err), MQ_E_ARG, &err, "rank 2 of 2 ranks alone, expected 0 to 1");
    o.only_rank = -1;
    so.n_ranks = 3;
    mq_assert_fails(mq_store_open(&s, path, &so, &err), MQ_E_ARG, &err, "3 ranks");
    so.n_ranks = 8;
    mq_assert_fails(mq_store_open(&s, path, &so, &err), MQ_E_ARG, &err, "an expert slice is 32 columns wide");
    so.n_ranks = 1;
    o.group = 48;
    mq_assert_fails(mq_store_open(&s, path, &so, &err), MQ_E_ARG, &err, "int4 with group 48");
    o.expert_scheme = MQ_SCHEME_BF16;
    mq_assert_fails(mq_store_open(&s, path, &so, &err), MQ_E_ARG, &err, "experts as bf16");
    o = ALL;
    mq_assert_fails(mq_store_open(&s, "/nowhere/config.json", &so, &err), MQ_E_IO, &err, "/nowhere/config.json");
    mq_engine *e;
    mq_engine_options eo = {.synthetic = &o, .draft = MQ_DRAFT_MTP};
    mq_assert_fails(mq_engine_open(&e, path, ref_kernels(), &eo, &err), MQ_E_UNSUPPORTED, &err, "no MTP layers");
}
END_TEST

int main(void)
{
    const char *name = getenv("MQ_TEST_DEVICE");
    bool is_real = name && !strcmp(name, "cuda");
    cuda = is_real ? mq_kernels_find("cuda") : &mq_cuda_emulated_kernels;
    if (!cuda || (is_real && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    Suite *s = suite_create("cuda_synthetic");
    TCase *t = tcase_create("all");
    tcase_add_test(t, dtypes_are_the_releases_and_values_keep_their_variance);
    tcase_add_test(t, ranks_cut_one_model);
    tcase_add_test(t, one_rank_alone_holds_its_slices);
    tcase_add_test(t, one_rank_alone_answers_for_all);
    tcase_add_test(t, a_device_fills_its_own_memory);
    tcase_add_test(t, skipped_positions_are_a_function_of_the_seed);
    tcase_add_test(t, the_first_layers_are_the_models);
    tcase_add_test(t, a_made_up_drafter_proposes);
    tcase_add_test(t, what_cannot_be_is_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
