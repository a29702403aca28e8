/* The plan of a packed model: files, order and slices, worked by hand for the released geometries,
 * and which numbers of ranks are refused with which text. */
#include "formats/plan.h"

#include <stdlib.h>
#include <string.h>

#include "src/units.h"
#include "tests/harness.h"

static mq_attn_geometry attn(int n_heads, int n_kv_heads, int head_dim, int v_head_dim,
                             bool has_sink)
{
    mq_attn_geometry a = {0};
    a.n_heads = n_heads;
    a.n_kv_heads = n_kv_heads;
    a.head_dim = head_dim;
    a.v_head_dim = v_head_dim;
    a.has_sink = has_sink;
    return a;
}

/* Layer 0 full and dense, the others sliding experts, but for the last, which is full. */
static mq_model *make_model(int n_layers, int hidden, int n_heads, int kv_full, int kv_swa,
                            int head_dim, int v_head_dim)
{
    mq_model *m = calloc(1, sizeof *m);
    m->n_layers = n_layers;
    m->hidden = hidden;
    m->full = attn(n_heads, kv_full, head_dim, v_head_dim, false);
    m->swa = attn(n_heads, kv_swa, head_dim, v_head_dim, true);
    for (int l = 1; l < n_layers; l++) {
        m->is_moe[l] = true;
        m->is_swa[l] = l < n_layers - 1;
    }
    m->n_mtp = 3;
    return m;
}

static mq_model *pro(void)
{
    mq_model *m = make_model(70, 6144, 128, 8, 8, 192, 128);
    m->vocab = 152576;
    m->intermediate = 16384;
    m->n_experts = 384;
    m->moe_intermediate = 2048;
    m->fused_qkv = true;
    return m;
}

static mq_model *v25(void)
{
    mq_model *m = make_model(3, 4096, 64, 4, 8, 192, 128);
    m->vocab = 152576;
    m->intermediate = 16384;
    m->n_experts = 256;
    m->moe_intermediate = 2048;
    m->fused_qkv = true;
    return m;
}

static mq_model *nano(void)
{
    mq_model *m = make_model(3, 128, 8, 2, 4, 48, 32);
    m->vocab = 4096;
    m->intermediate = 256;
    m->n_experts = 2;
    m->moe_intermediate = 128;
    m->n_mtp = 1;
    return m;
}

static mq_draft_model nano_draft(void)
{
    mq_draft_model d = {
        .n_layers = 1, .hidden = 128, .intermediate = 256, .vocab = 4096, .n_taps = 3};
    d.attn = attn(8, 2, 32, 32, true);
    return d;
}

static const mq_file_spec *find_file(const mq_plan *p, const char *name)
{
    for (int64_t i = 0; i < p->n_files; i++)
        if (strcmp(p->files[i].name, name) == 0)
            return &p->files[i];
    ck_abort_msg("no file %s", name);
    return NULL;
}

static const mq_record_spec *find_record(const mq_file_spec *f, const char *name)
{
    for (int64_t i = 0; i < f->n_records; i++) {
        char text[MQ_KEY_NAME];
        mq_key_name(text, sizeof text, f->records[i].key);
        if (strcmp(text, name) == 0)
            return &f->records[i];
    }
    ck_abort_msg("no record %s in %s", name, f->name);
    return NULL;
}

static void check_slice(const mq_file_spec *f, const char *name, int64_t rows, int64_t cols,
                        int64_t row0, int64_t col0, int64_t seg_rows, int row_phase, int col_phase)
{
    const mq_record_spec *r = find_record(f, name);
    int64_t found[] = {r->rows, r->cols, r->row0, r->col0, r->seg_rows, r->row_phase, r->col_phase};
    int64_t expected[] = {rows, cols, row0, col0, seg_rows, row_phase, col_phase};
    for (int i = 0; i < 7; i++)
        ck_assert_msg(found[i] == expected[i], "%s %s: number %d is %lld, expected %lld", f->name,
                      name, i, (long long)found[i], (long long)expected[i]);
}

START_TEST(pro_on_8_ranks_gives_each_rank_one_chunk)
{
    mq_err err;
    mq_model *m = pro();
    mq_plan *p;
    mq_assert_ok(mq_plan_create(&p, m, NULL, 8, 64, &err), &err);
    ck_assert_int_eq(p->n_files, 1 + 70 * 8 + 8 + 3 * 8);
    const mq_file_spec *f = find_file(p, "layer-001-rank-03-of-08.mqs");
    ck_assert_int_eq(f->n_records, 4 + 2 * 384);
    check_slice(f, "model.layers.1.self_attn.q_proj.weight", 3072, 6144, 9216, 0, 3072, 0, 0);
    check_slice(f, "model.layers.1.self_attn.k_proj.weight", 192, 6144, 576, 0, 192, 0, 0);
    check_slice(f, "model.layers.1.self_attn.v_proj.weight", 128, 6144, 384, 0, 128, 64,
                0); /* row 3264 of the chunk */
    check_slice(f, "model.layers.1.self_attn.o_proj.weight", 6144, 2048, 0, 6144, 6144, 0, 0);
    check_slice(f, "model.layers.1.mlp.experts.5.gate_up_proj.weight", 512, 6144, 1536, 0, 0, 0, 0);
    check_slice(f, "model.layers.1.mlp.experts.5.down_proj.weight", 6144, 256, 0, 768, 0, 0, 0);
    check_slice(find_file(p, "head-rank-07-of-08.mqs"), "lm_head.weight", 19072, 6144, 133504, 0,
                19072, 0, 0);
    check_slice(find_file(p, "mtp-002-rank-01-of-08.mqs"), "model.mtp.layers.2.eh_proj.weight", 768,
                12288, 768, 0, 768, 0, 0);
    check_slice(find_file(p, "layer-000-rank-02-of-08.mqs"), "model.layers.0.mlp.down_proj.weight",
                6144, 2048, 0, 4096, 6144, 0, 0);
    mq_plan_free(p);
    free(m);
}
END_TEST

/* 69 layers x 384 experts x 20,054,016 bytes: the MXFP4 release's own count. */
START_TEST(pro_expert_bytes_are_the_release_s)
{
    mq_err err;
    mq_model *m = pro();
    mq_plan *p;
    mq_assert_ok(mq_plan_create(&p, m, NULL, 8, 0, &err), &err);
    int64_t mxfp4 = 0, g32 = 0;
    for (int64_t i = 0; i < p->n_files; i++)
        for (int64_t k = 0; k < p->files[i].n_records; k++) {
            const mq_record_spec *r = &p->files[i].records[k];
            if (!r->is_expert)
                continue;
            mxfp4 += mq_record_plain_bytes(r, MQ_SCHEME_MXFP4, 0);
            g32 += mq_record_plain_bytes(r, MQ_SCHEME_INT4, 32);
        }
    ck_assert_int_eq(mxfp4, 531351207936);
    ck_assert_int_eq(g32, 562607161344); /* 4.5 bits a weight */
    mq_plan_free(p);
    free(m);
}
END_TEST

START_TEST(v25_on_8_ranks_halves_its_4_chunks)
{
    mq_err err;
    mq_model *m = v25();
    mq_plan *p;
    mq_assert_ok(mq_plan_create(&p, m, NULL, 8, 64, &err), &err);
    /* Full layer: chunk of 3072 q, 192 k, 128 v rows.  Rank 5 has the second half of chunk 2. */
    const mq_file_spec *f = find_file(p, "layer-000-rank-05-of-08.mqs");
    check_slice(f, "model.layers.0.self_attn.q_proj.weight", 1536, 4096, 7680, 0, 1536, 0, 0);
    check_slice(f, "model.layers.0.self_attn.k_proj.weight", 192, 4096, 384, 0, 192, 0, 0);
    check_slice(f, "model.layers.0.self_attn.v_proj.weight", 128, 4096, 256, 0, 128, 64, 0);
    /* Rank 4 uses the same KV head. */
    check_slice(find_file(p, "layer-000-rank-04-of-08.mqs"),
                "model.layers.0.self_attn.k_proj.weight", 192, 4096, 384, 0, 192, 0, 0);
    /* Sliding layer: chunk of 3072 q, 384 k, 256 v rows; rank 5 has the second of its KV heads. */
    f = find_file(p, "layer-001-rank-05-of-08.mqs");
    check_slice(f, "model.layers.1.self_attn.q_proj.weight", 1536, 4096, 7680, 0, 1536, 0, 0);
    check_slice(f, "model.layers.1.self_attn.k_proj.weight", 192, 4096, 960, 0, 192, 64, 0);
    check_slice(f, "model.layers.1.self_attn.v_proj.weight", 128, 4096, 640, 0, 128, 0, 0);
    mq_plan_free(p);
    free(m);
}
END_TEST

START_TEST(fewer_ranks_than_chunks_make_segments)
{
    mq_err err;
    mq_model *m = v25();
    mq_plan *p;
    mq_assert_ok(mq_plan_create(&p, m, NULL, 2, 64, &err), &err);
    const mq_file_spec *f = find_file(p, "layer-001-rank-01-of-02.mqs");
    check_slice(f, "model.layers.1.self_attn.q_proj.weight", 6144, 4096, 6144, 0, 3072, 0, 0);
    check_slice(f, "model.layers.1.self_attn.k_proj.weight", 768, 4096, 768, 0, 384, 0, 0);
    check_slice(f, "model.layers.1.self_attn.v_proj.weight", 512, 4096, 512, 0, 256, 0, 0);
    check_slice(find_file(p, "layer-000-rank-01-of-02.mqs"),
                "model.layers.0.self_attn.v_proj.weight", 256, 4096, 256, 0, 128, 64, 0);
    mq_plan_free(p);
    free(m);
}
END_TEST

START_TEST(split_nano_slices_start_inside_blocks)
{
    mq_err err;
    mq_model *m = nano();
    mq_plan *p;
    mq_assert_ok(mq_plan_create(&p, m, NULL, 2, 64, &err), &err);
    const mq_file_spec *f = find_file(p, "layer-000-rank-01-of-02.mqs");
    check_slice(f, "model.layers.0.self_attn.q_proj.weight", 192, 128, 192, 0, 192, 64, 0);
    check_slice(f, "model.layers.0.self_attn.k_proj.weight", 48, 128, 48, 0, 48, 48, 0);
    check_slice(f, "model.layers.0.self_attn.v_proj.weight", 32, 128, 32, 0, 32, 32, 0);
    check_slice(f, "model.layers.0.self_attn.o_proj.weight", 128, 128, 0, 128, 128, 0, 0);
    f = find_file(p, "layer-001-rank-01-of-02.mqs");
    check_slice(f, "model.layers.1.self_attn.k_proj.weight", 96, 128, 96, 0, 96, 96, 0);
    check_slice(f, "model.layers.1.mlp.experts.1.gate_up_proj.weight", 128, 128, 128, 0, 0, 0, 0);
    ck_assert_int_eq(mq_gate_up_row(64, 0), 128); /* rank 1 begins with gate row 64 */
    mq_plan_free(p);
    free(m);
}
END_TEST

START_TEST(files_and_records_stand_in_canonical_order)
{
    static const char *const files[] = {"common.mqs",
                                        "layer-000-rank-00-of-01.mqs",
                                        "layer-001-rank-00-of-01.mqs",
                                        "layer-002-rank-00-of-01.mqs",
                                        "head-rank-00-of-01.mqs",
                                        "mtp-000-rank-00-of-01.mqs",
                                        "draft-rank-00-of-01.mqs"};
    static const char *const layer1[] = {"model.layers.1.self_attn.q_proj.weight",
                                         "model.layers.1.self_attn.k_proj.weight",
                                         "model.layers.1.self_attn.v_proj.weight",
                                         "model.layers.1.self_attn.o_proj.weight",
                                         "model.layers.1.mlp.experts.0.gate_up_proj.weight",
                                         "model.layers.1.mlp.experts.1.gate_up_proj.weight",
                                         "model.layers.1.mlp.experts.0.down_proj.weight",
                                         "model.layers.1.mlp.experts.1.down_proj.weight"};
    static const char *const common[] = {"model.norm.weight",
                                         "model.layers.0.input_layernorm.weight",
                                         "model.layers.0.post_attention_layernorm.weight",
                                         "model.layers.1.input_layernorm.weight",
                                         "model.layers.1.post_attention_layernorm.weight",
                                         "model.layers.1.self_attn.attention_sink_bias",
                                         "model.layers.1.mlp.gate.weight",
                                         "model.layers.1.mlp.gate.e_score_correction_bias",
                                         "model.layers.2.input_layernorm.weight",
                                         "model.layers.2.post_attention_layernorm.weight",
                                         "model.layers.2.mlp.gate.weight",
                                         "model.layers.2.mlp.gate.e_score_correction_bias",
                                         "model.mtp.layers.0.input_layernorm.weight",
                                         "model.mtp.layers.0.pre_mlp_layernorm.weight",
                                         "model.mtp.layers.0.self_attn.attention_sink_bias",
                                         "model.mtp.layers.0.enorm.weight",
                                         "model.mtp.layers.0.hnorm.weight",
                                         "model.mtp.layers.0.final_layernorm.weight",
                                         "draft.fc.weight",
                                         "draft.hidden_norm.weight",
                                         "draft.norm.weight",
                                         "draft.mask_embedding",
                                         "draft.layers.0.input_layernorm.weight",
                                         "draft.layers.0.post_attention_layernorm.weight",
                                         "draft.layers.0.self_attn.attention_sink_bias",
                                         "draft.layers.0.self_attn.q_norm.weight",
                                         "draft.layers.0.self_attn.k_norm.weight"};
    mq_err err;
    mq_model *m = nano();
    mq_draft_model d = nano_draft();
    mq_plan *p;
    mq_assert_ok(mq_plan_create(&p, m, &d, 1, 128, &err), &err);
    ck_assert_int_eq(p->n_files, 7);
    for (int i = 0; i < 7; i++)
        ck_assert_str_eq(p->files[i].name, files[i]);
    const mq_file_spec *f[] = {&p->files[2], &p->files[0]};
    const char *const *names[] = {layer1, common};
    int64_t counts[] = {8, (int64_t)(sizeof common / sizeof *common)};
    for (int k = 0; k < 2; k++) {
        ck_assert_int_eq(f[k]->n_records, counts[k]);
        for (int64_t i = 0; i < counts[k]; i++) {
            char name[MQ_KEY_NAME];
            mq_key_name(name, sizeof name, f[k]->records[i].key);
            ck_assert_str_eq(name, names[k][i]);
        }
    }
    mq_plan_free(p);
    free(m);
}
END_TEST

/* Summed over ranks, every matrix is covered once; KV heads as often as ranks outnumber them. */
START_TEST(slices_of_all_ranks_cover_each_tensor)
{
    mq_err err;
    mq_model *models[] = {v25(), nano()};
    int ranks[] = {8, 2};
    for (int k = 0; k < 2; k++) {
        mq_plan *p;
        mq_assert_ok(mq_plan_create(&p, models[k], NULL, ranks[k], 64, &err), &err);
        const mq_file_spec *first = &p->files[1]; /* layer 0, rank 0 */
        for (int l = 0; l < models[k]->n_layers; l++)
            for (int64_t i = 0; i < first[l * ranks[k]].n_records; i++) {
                const mq_record_spec *r0 = &first[l * ranks[k]].records[i];
                int64_t sum = 0, copies = 1;
                for (int rank = 0; rank < ranks[k]; rank++) {
                    const mq_record_spec *r = &first[l * ranks[k] + rank].records[i];
                    sum += r->rows * r->cols;
                    ck_assert_int_le(r->row0 + r->rows, r->full_rows);
                    ck_assert_int_le(r->col0 + r->cols, r->full_cols);
                }
                if (r0->key.role == MQ_ROLE_K || r0->key.role == MQ_ROLE_V) {
                    int kv = models[k]->is_swa[l] ? models[k]->swa.n_kv_heads
                                                  : models[k]->full.n_kv_heads;
                    copies = ranks[k] > kv ? ranks[k] / kv : 1;
                }
                ck_assert_int_eq(sum, copies * r0->full_rows * r0->full_cols);
            }
        mq_plan_free(p);
        free(models[k]);
    }
}
END_TEST

START_TEST(refused_ranks_name_the_largest_that_works)
{
    mq_err err;
    mq_model *m = nano();
    mq_draft_model d = nano_draft();
    mq_plan *p;
    mq_assert_ok(mq_plan_check_ranks(m, &d, 2, 64, &err), &err);
    mq_assert_fails(mq_plan_create(&p, m, &d, 4, 64, &err), MQ_E_ARG, &err,
                    "4 ranks: an expert slice is 32 columns wide (moe_intermediate_size 128), not "
                    "a multiple of 64; "
                    "the largest that works is 2");
    ck_assert_ptr_null(p);
    mq_assert_fails(mq_plan_check_ranks(m, &d, 2, 128, &err), MQ_E_ARG, &err,
                    "not a multiple of 128; the largest that works is 1");
    mq_assert_fails(mq_plan_check_ranks(m, &d, 3, 64, &err), MQ_E_ARG, &err,
                    "3 ranks: full attention has 8 heads");
    mq_assert_fails(mq_plan_check_ranks(m, &d, 0, 64, &err), MQ_E_ARG, &err,
                    "0 ranks: expected 1 to 8");
    mq_assert_fails(mq_plan_check_ranks(m, &d, 16, 64, &err), MQ_E_ARG, &err,
                    "16 ranks: expected 1 to 8");
    mq_assert_fails(mq_plan_check_ranks(m, &d, 2, 48, &err), MQ_E_ARG, &err,
                    "group 48: expected 32, 64 or 128");
    m->vocab = 4095;
    mq_assert_fails(mq_plan_check_ranks(m, &d, 2, 64, &err), MQ_E_ARG, &err,
                    "vocab_size 4095 does not divide by 2");
    m->vocab = 4096;
    d.intermediate = 255;
    mq_assert_fails(mq_plan_check_ranks(m, &d, 2, 64, &err), MQ_E_ARG, &err,
                    "the drafter's intermediate_size 255");
    d.intermediate = 256;
    d.attn.n_kv_heads = 3;
    d.attn.n_heads = 12;
    mq_assert_fails(mq_plan_check_ranks(m, &d, 2, 64, &err), MQ_E_ARG, &err,
                    "3 KV heads, neither a multiple nor a divisor of 2");
    m->intermediate = 255;
    mq_assert_fails(mq_plan_check_ranks(m, NULL, 2, 64, &err), MQ_E_ARG, &err,
                    "intermediate_size 255 does not divide by 2");
    m->intermediate = 256;
    m->moe_intermediate = 96;
    mq_assert_fails(mq_plan_check_ranks(m, NULL, 1, 64, &err), MQ_E_ARG, &err,
                    "no number of ranks works");
    ck_assert_int_eq(mq_plan_default_ranks(m, NULL, 64, &err), 0);
    ck_assert_ptr_nonnull(strstr(err.text, "96"));
    free(m);
}
END_TEST

START_TEST(default_ranks_are_the_largest_that_fit)
{
    mq_err err;
    mq_model *p = pro(), *n = nano();
    ck_assert_int_eq(mq_plan_default_ranks(p, NULL, 128, &err), 8);
    ck_assert_int_eq(mq_plan_default_ranks(n, NULL, 32, &err), 2);
    ck_assert_int_eq(mq_plan_default_ranks(n, NULL, 0, &err), 2);
    ck_assert_int_eq(mq_plan_default_ranks(n, NULL, 128, &err), 1);
    free(p);
    free(n);
}
END_TEST

START_TEST(hostile_config_is_bounded)
{
    mq_err err;
    mq_model *m = pro();
    mq_plan *p;
    m->n_experts = MQ_MAX_EXPERTS;
    m->n_layers = MQ_MAX_LAYERS;
    for (int l = 1; l < m->n_layers; l++)
        m->is_moe[l] = true;
    mq_assert_fails(mq_plan_create(&p, m, NULL, 8, 64, &err), MQ_E_UNSUPPORTED, &err,
                    "more than 4194304 records");
    ck_assert_ptr_null(p);
    free(m);
}
END_TEST

START_TEST(fp8_record_has_aligned_codes_then_scales)
{
    mq_record_spec r = {.rows = 3, .cols = 5, .seg_rows = 3, .row_phase = 126, .col_phase = 125};
    uint8_t plain[64];
    ck_assert_int_eq(mq_record_plain_bytes(&r, MQ_SCHEME_FP8_BLOCK, 0), 16 + 4 * 2 * 2);
    mq_matrix v = mq_record_matrix(&r, MQ_SCHEME_FP8_BLOCK, 0, plain);
    ck_assert_ptr_eq(v.scale, plain + 16);
    ck_assert_int_eq(v.row_phase, 126);
    ck_assert_int_eq(mq_record_plain_bytes(&r, MQ_SCHEME_BF16, 0), 30);
    ck_assert_int_eq(mq_record_plain_bytes(&r, MQ_SCHEME_F32, 0), 60);
    mq_record_spec e = {.rows = 16, .cols = 128};
    ck_assert_int_eq(mq_record_plain_bytes(&e, MQ_SCHEME_INT4, 32), 1152);
    ck_assert_int_eq(mq_record_plain_bytes(&e, MQ_SCHEME_INT4, 64), 1088);
    ck_assert_int_eq(mq_record_plain_bytes(&e, MQ_SCHEME_INT4, 128), 1056);
    ck_assert_int_eq(mq_record_plain_bytes(&e, MQ_SCHEME_MXFP4, 0), 1088);
    ck_assert_int_eq(mq_record_matrix(&e, MQ_SCHEME_MXFP4, 32, plain).group, MQ_GROUP_MXFP4);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("plan");
    TCase *t = tcase_create("plan");
    tcase_add_test(t, pro_on_8_ranks_gives_each_rank_one_chunk);
    tcase_add_test(t, pro_expert_bytes_are_the_release_s);
    tcase_add_test(t, v25_on_8_ranks_halves_its_4_chunks);
    tcase_add_test(t, fewer_ranks_than_chunks_make_segments);
    tcase_add_test(t, split_nano_slices_start_inside_blocks);
    tcase_add_test(t, files_and_records_stand_in_canonical_order);
    tcase_add_test(t, slices_of_all_ranks_cover_each_tensor);
    tcase_add_test(t, refused_ranks_name_the_largest_that_works);
    tcase_add_test(t, default_ranks_are_the_largest_that_fit);
    tcase_add_test(t, hostile_config_is_bounded);
    tcase_add_test(t, fp8_record_has_aligned_codes_then_scales);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
