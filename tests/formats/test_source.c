/* Logical tensors: every bundled checkpoint opens; split and fused storage give the same rows; FP8 slices through
 * phases and segments equal the whole; what is missing, misshapen, mixed or unknown is refused by name. */
#include "formats/source.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "src/float.h"
#include "tests/harness.h"
#include "tests/maker/maker.h"

static mq_source *open_ok(const char *dir)
{
    mq_source *s;
    mq_err err;
    mq_assert_ok(mq_source_open(&s, dir, &err), &err);
    return s;
}

/* Columns [col0, +n_cols) of logical rows [row0, +n_rows), widened; heap. */
static float *widened(const mq_source_tensor *t, int64_t row0, int64_t n_rows, int64_t col0, int64_t n_cols)
{
    mq_matrix m;
    mq_err err;
    int64_t data_bytes, scale_bytes;
    mq_assert_ok(mq_source_slice(&m, &data_bytes, &scale_bytes, t, row0, n_rows, col0, n_cols, &err), &err);
    mq_assert_ok(mq_matrix_check(&m, &err), &err);
    void *data = malloc((size_t)data_bytes), *scale = scale_bytes ? malloc((size_t)scale_bytes) : NULL;
    float *out = malloc((size_t)(n_rows * n_cols) * sizeof *out);
    mq_assert_ok(mq_source_read(&m, data, scale, t, row0, n_rows, col0, n_cols, &err), &err);
    mq_matrix_widen(&m, 0, n_rows, out);
    free(data);
    free(scale);
    return out;
}

static mq_source_tensor find(const mq_source *s, mq_stack stack, int layer, mq_role role, int expert)
{
    mq_source_tensor t;
    mq_err err;
    mq_key key = {stack, layer, role, expert};
    ck_assert(mq_source_has(s, key));
    mq_assert_ok(mq_source_find(&t, s, key, &err), &err);
    return t;
}

START_TEST(the_bundled_checkpoints_open)
{
    static const char *const dirs[] = {"tests/data/nano", "tests/data/nano-fp8", "tests/data/nano-mxfp4"};
    for (int i = 0; i < 3; i++) {
        mq_source *s = open_ok(mq_test_path(dirs[i]));
        ck_assert(s->model.n_mtp == 3 && s->has_draft && s->mask.n == 128 && s->draft.n_taps == 3);
        ck_assert_int_eq(s->notices.n_bytes, 0);
        mq_source_tensor t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_UP, 15);
        static const mq_scheme schemes[] = {MQ_SCHEME_BF16, MQ_SCHEME_FP8_BLOCK, MQ_SCHEME_MXFP4_ROWS};
        ck_assert(t.scheme == schemes[i] && t.rows == 128 && t.cols == 128);
        t = find(s, MQ_STACK_MTP, 2, MQ_ROLE_K, -1);
        ck_assert(t.rows == 192 && t.cols == 128 && t.chunk_rows == (i ? 352 : 192));
        t = find(s, MQ_STACK_DRAFT, 2, MQ_ROLE_DRAFT_Q_NORM, -1);
        ck_assert(t.rows == 1 && t.cols == 32);
        t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_SINK, -1);
        ck_assert(t.rows == 1 && t.cols == 8);
        float *mask, *router;
        t = find(s, MQ_STACK_DRAFT, -1, MQ_ROLE_DRAFT_MASK, -1);
        mask = widened(&t, 0, 1, 0, 128);
        ck_assert_float_eq(mask[5], mq_bf16_to_f32((uint16_t)(s->mask.bytes[10] | s->mask.bytes[11] << 8)));
        t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_ROUTER, -1);
        ck_assert_int_eq(t.scheme, MQ_SCHEME_F32);
        router = widened(&t, 3, 2, 7, 30);
        free(mask);
        free(router);
        mq_source_close(s);
    }
}
END_TEST

START_TEST(keys_follow_the_geometry)
{
    mq_source *s = open_ok(mq_test_path("tests/data/nano"));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MODEL, 0, MQ_ROLE_SINK, -1}));   /* full attention */
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MODEL, 0, MQ_ROLE_ROUTER, -1})); /* dense */
    ck_assert(mq_source_has(s, (mq_key){MQ_STACK_MODEL, 0, MQ_ROLE_GATE, -1}));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MODEL, 1, MQ_ROLE_GATE, -1}));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_GATE, 16}));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MODEL, 6, MQ_ROLE_Q, -1}));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MTP, 3, MQ_ROLE_Q, -1}));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_GATE_UP, 0}));
    ck_assert(!mq_source_has(s, (mq_key){MQ_STACK_DRAFT, 0, MQ_ROLE_EXPERT_GATE, 0}));
    mq_source_close(s);
}
END_TEST

/* The FP8 release is the BF16 one rounded: at most 1/16 of a weight, or half the smallest step, apart.  A wrong chunk or
 * scale row would show as errors of the weights' own size. */
START_TEST(fused_fp8_rows_are_the_split_ones)
{
    static const mq_role roles[] = {MQ_ROLE_Q, MQ_ROLE_K, MQ_ROLE_V};
    mq_source *a = open_ok(mq_test_path("tests/data/nano")), *b = open_ok(mq_test_path("tests/data/nano-fp8"));
    for (int layer = 0; layer < 2; layer++) { /* one full, one sliding */
        for (int i = 0; i < 3; i++) {
            mq_source_tensor ta = find(a, MQ_STACK_MODEL, layer, roles[i], -1);
            mq_source_tensor tb = find(b, MQ_STACK_MODEL, layer, roles[i], -1);
            ck_assert_int_eq(ta.rows, tb.rows);
            float *x = widened(&ta, 0, ta.rows, 0, ta.cols), *y = widened(&tb, 0, tb.rows, 0, tb.cols);
            double norm = 0, error = 0;
            for (int64_t k = 0; k < ta.rows * ta.cols; k++) {
                norm += (double)x[k] * x[k];
                error += ((double)x[k] - y[k]) * ((double)x[k] - y[k]);
            }
            ck_assert(sqrt(error / norm) < 0.04); /* E4M3 rounds to about 2.6 % */
            free(x);
            free(y);
        }
    }
    mq_source_close(a);
    mq_source_close(b);
}
END_TEST

/* Every slice equals the same place of the whole matrix. */
static void check_slices(const mq_source_tensor *t, int64_t col_step)
{
    float *all = widened(t, 0, t->rows, 0, t->cols);
    int64_t part = t->part_rows;
    for (int64_t row0 = 0; row0 < t->rows; row0 += part / 2 + 1) {
        for (int64_t col0 = 0; col0 < t->cols; col0 += col_step * 3) {
            int64_t n_rows = part - row0 % part < 37 ? part - row0 % part : 37;
            int64_t n_cols = t->cols - col0 < 2 * col_step ? t->cols - col0 : 2 * col_step;
            float *some = widened(t, row0, n_rows, col0, n_cols);
            for (int64_t r = 0; r < n_rows; r++)
                ck_assert_int_eq(memcmp(some + r * n_cols, all + (row0 + r) * t->cols + col0, (size_t)n_cols * 4), 0);
            free(some);
        }
    }
    if (t->rows / part > 1) { /* whole parts that begin inside a block */
        float *some = widened(t, part, t->rows - part, 0, t->cols);
        ck_assert_int_eq(memcmp(some, all + part * t->cols, (size_t)((t->rows - part) * t->cols) * 4), 0);
        free(some);
    }
    free(all);
}

static const char *make_from(mq_maker m, mq_scheme experts, int files, bool split_pairs)
{
    mq_err err;
    const char *dir = mq_test_dir();
    m.layers = 3;
    m.vocab = 512;
    m.eos = 500;
    m.experts = 8;
    m.top_k = 2;
    m.mtp = 1;
    m.hidden = 288; /* partial edge blocks: 288 = 2 * 128 + 32 */
    m.moe_intermediate = 160;
    m.intermediate = 352;
    m.expert_scheme = experts;
    m.files = files;
    m.split_pairs = split_pairs;
    mq_assert_ok(mq_maker_write(&m, dir, NULL, &err), &err);
    return dir;
}

static const char *make(const char *preset, mq_scheme experts, int files, bool split_pairs)
{
    mq_maker m;
    ck_assert(mq_maker_preset(&m, preset));
    return make_from(m, experts, files, split_pairs);
}

/* Split qkv, everything stored as scheme. */
static const char *make_plain(mq_scheme scheme)
{
    mq_maker m;
    ck_assert(mq_maker_preset(&m, "nano"));
    m.scheme = scheme;
    return make_from(m, scheme, 1, false);
}

START_TEST(slices_equal_the_whole_through_phases_chunks_and_edge_blocks)
{
    mq_source *s = open_ok(make("pro-small", MQ_SCHEME_FP8_BLOCK, 3, true));
    mq_source_tensor t;
    static const mq_role roles[] = {MQ_ROLE_Q, MQ_ROLE_K, MQ_ROLE_V, MQ_ROLE_O};
    for (int layer = 0; layer < 2; layer++)
        for (int i = 0; i < 4; i++) {
            t = find(s, MQ_STACK_MODEL, layer, roles[i], -1);
            check_slices(&t, 50);
        }
    t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_DOWN, 7);
    ck_assert_int_eq(t.scheme, MQ_SCHEME_FP8_BLOCK);
    check_slices(&t, 45);
    mq_source_close(s);

    s = open_ok(make("pro-small", MQ_SCHEME_MXFP4_ROWS, 2, true));
    t = find(s, MQ_STACK_MODEL, 2, MQ_ROLE_EXPERT_GATE, 3);
    ck_assert_int_eq(t.scheme, MQ_SCHEME_MXFP4_ROWS);
    ck_assert_ptr_ne(t.data.file, t.scale.file); /* the pair is split over files */
    check_slices(&t, 32);
    mq_source_close(s);
}
END_TEST

START_TEST(ranges_that_cannot_be_viewed_are_refused)
{
    mq_source *s = open_ok(make("pro-small", MQ_SCHEME_MXFP4_ROWS, 1, false));
    mq_matrix m;
    mq_err err;
    int64_t data_bytes, scale_bytes;
    mq_source_tensor t = find(s, MQ_STACK_MODEL, 0, MQ_ROLE_Q, -1);
    mq_assert_fails(mq_source_slice(&m, &data_bytes, &scale_bytes, &t, 1, t.part_rows, 0, 10, &err), MQ_E_SHAPE, &err,
                    "expected a range inside one chunk part");
    t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_UP, 0);
    mq_assert_fails(mq_source_slice(&m, &data_bytes, &scale_bytes, &t, 0, 1, 16, 32, &err), MQ_E_SHAPE, &err,
                    "expected multiples of 32");
    mq_source_close(s);
}
END_TEST

/* Overwrite bytes of a stored tensor in its file. */
static void poke(const mq_source_tensor *t, bool scale, int64_t off, const void *bytes, size_t n)
{
    mq_tensor_ref ref = scale ? t->scale : t->data;
    FILE *f = fopen(mq_safetensors_file(ref.file)->path, "r+b");
    ck_assert(f != NULL);
    ck_assert_int_eq(fseek(f, (long)(ref.tensor->off + off), SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static mq_status read_all(const mq_source_tensor *t, int64_t row0, int64_t n_rows, int64_t col0, int64_t n_cols, mq_err *err)
{
    mq_matrix m;
    int64_t data_bytes, scale_bytes;
    MQ_TRY(mq_source_slice(&m, &data_bytes, &scale_bytes, t, row0, n_rows, col0, n_cols, err));
    void *data = malloc((size_t)data_bytes), *scale = malloc((size_t)scale_bytes + 1);
    mq_status st = mq_source_read(&m, data, scale, t, row0, n_rows, col0, n_cols, err);
    free(data);
    free(scale);
    return st;
}

START_TEST(values_that_are_not_numbers_are_refused_where_they_stand)
{
    mq_source *s = open_ok(make("pro-small", MQ_SCHEME_FP8_BLOCK, 1, false));
    mq_err err;
    mq_source_tensor t = find(s, MQ_STACK_MODEL, 0, MQ_ROLE_K, -1);
    uint8_t nan8 = 0xff;
    float inf = INFINITY;
    int64_t off = (t.chunk_rows + t.part_off + 3) * t.cols + 70; /* second chunk, row 3, column 70 */
    char want[64];
    poke(&t, false, off, &nan8, 1);
    snprintf(want, sizeof want, "NaN code 0xff at byte %lld", (long long)off);
    mq_assert_fails(read_all(&t, 0, t.rows, 0, t.cols, &err), MQ_E_FORMAT, &err, want);
    mq_assert_fails(read_all(&t, t.part_rows, 10, 64, 20, &err), MQ_E_FORMAT, &err, want);
    ck_assert(strstr(err.text, "tensor 'model.layers.0.self_attn.qkv_proj.weight'") != NULL);
    mq_assert_ok(read_all(&t, 0, t.part_rows, 0, t.cols, &err), &err);
    t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_GATE, 2);
    poke(&t, true, 4, &inf, 4);
    mq_assert_fails(read_all(&t, 0, t.rows, 0, t.cols, &err), MQ_E_FORMAT, &err, "gate_proj.weight_scale_inv': scale inf");
    mq_source_close(s);

    s = open_ok(make("pro-small", MQ_SCHEME_MXFP4_ROWS, 1, false));
    t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_GATE, 2);
    poke(&t, true, 9 * 2, &nan8, 1); /* 288 / 32 = 9 scales a row */
    mq_assert_fails(read_all(&t, 0, t.rows, 0, t.cols, &err), MQ_E_FORMAT, &err, "scale 255 (NaN) of row 2");
    mq_source_close(s);

    /* Plain values: whatever is copied must be a value that a shard may hold. */
    const struct {
        mq_scheme scheme;
        uint32_t bits, beside; /* refused, and the largest finite value */
        int bytes;
        const char *want;
    } plain[] = {
        {MQ_SCHEME_BF16, 0xff80, 0xff7f, 2, "q_proj.weight': row 3, column 5 is infinite"},
        {MQ_SCHEME_BF16, 0x7f81, 0x7f7f, 2, "q_proj.weight': row 3, column 5 is NaN"},
        {MQ_SCHEME_F16, 0x7c00, 0x7bff, 2, "q_proj.weight': row 3, column 5 is infinite"},
        {MQ_SCHEME_F16, 0xfe00, 0xfbff, 2, "q_proj.weight': row 3, column 5 is NaN"},
        {MQ_SCHEME_F32, 0x7f800000, 0x7f7fffff, 4, "q_proj.weight': row 3, column 5 is infinite"},
        {MQ_SCHEME_F32, 0xff800001, 0xff7fffff, 4, "q_proj.weight': row 3, column 5 is NaN"},
    };
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        s = open_ok(make_plain(plain[i].scheme));
        t = find(s, MQ_STACK_MODEL, 1, MQ_ROLE_Q, -1);
        ck_assert_int_eq(t.scheme, plain[i].scheme);
        poke(&t, false, (3 * t.cols + 5) * plain[i].bytes, &plain[i].beside, (size_t)plain[i].bytes);
        mq_assert_ok(read_all(&t, 0, t.rows, 0, t.cols, &err), &err);
        poke(&t, false, (3 * t.cols + 5) * plain[i].bytes, &plain[i].bits, (size_t)plain[i].bytes);
        mq_assert_fails(read_all(&t, 2, 3, 4, 8, &err), MQ_E_NUMERIC, &err, plain[i].want);
        mq_assert_ok(read_all(&t, 4, t.rows - 4, 0, t.cols, &err), &err);
        mq_source_close(s);
    }
}
END_TEST

/* Replace find by put (same length) in the header of dir's only file and in its index. */
static void rename_tensor(const char *dir, const char *file, const char *from, const char *to)
{
    char path[4200];
    mq_buf b = mq_buf_empty();
    mq_err err;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    ck_assert_uint_eq(strlen(from), strlen(to));
    mq_assert_ok(mq_file_load(&b, path, 1 << 28, &err), &err);
    char *at = memmem(b.data, (size_t)b.n_bytes, from, strlen(from));
    ck_assert_msg(at != NULL, "'%s' is not in %s", from, path);
    memcpy(at, to, strlen(to));
    mq_assert_ok(mq_file_save(dir, file, b.data, b.n_bytes, &err), &err);
    mq_buf_release(&b);
}

typedef struct damage {
    const char *from, *to; /* of the same length */
    mq_status status;
    const char *fragment;
} damage;

static const damage DAMAGES[] = {
    {"\"model.norm.weight\"", "\"model.morn.weight\"", MQ_E_FORMAT,
     "tensor 'model.norm.weight': missing, the configuration asks for it"},
    {"\"model.layers.1.mlp.experts.7.up_proj.weight\"", "\"model.layers.1.mlp.experts.9.up_proj.weight\"",
     MQ_E_FORMAT, "tensor 'model.layers.1.mlp.experts.7.up_proj.weight': missing"},
    {"\"model.layers.1.mlp.experts.7.up_proj.weight_scale_inv\"",
     "\"model.layers.1.mlp.experts.7.up_proj.weight_scale_inx\"", MQ_E_FORMAT,
     "up_proj.weight_scale_inv': missing, its weight is F8_E4M3"},
    {"\"model.mtp.layers.0.enorm.weight\"", "\"model.mtp.layers.1.enorm.weight\"", MQ_E_FORMAT,
     "tensor 'model.mtp.layers.0.enorm.weight': missing"},
    {"\"model.mtp.layers.0.enorm.weight\"", "\"model.mtp.layers.x.enorm.weight\"", MQ_E_UNSUPPORTED,
     "not a number of an MTP layer"},
};

START_TEST(missing_and_misnamed_tensors_are_refused_by_name)
{
    mq_source *s;
    mq_err err;
    for (size_t i = 0; i < sizeof DAMAGES / sizeof DAMAGES[0]; i++) {
        const damage *d = &DAMAGES[i];
        const char *dir = make("pro-small", MQ_SCHEME_FP8_BLOCK, 1, false);
        rename_tensor(dir, "model-00001-of-00001.safetensors", d->from, d->to);
        rename_tensor(dir, "model.safetensors.index.json", d->from, d->to);
        mq_assert_fails(mq_source_open(&s, dir, &err), d->status, &err, d->fragment);
        ck_assert_ptr_null(s);
    }
}
END_TEST

/* Change the configuration below the tensors: the first tensor that no longer fits is named. */
static void edit_config(const char *dir, const char *from, const char *to)
{
    char path[4200];
    mq_buf b = mq_buf_empty(), out = mq_buf_empty();
    mq_err err;
    snprintf(path, sizeof path, "%s/config.json", dir);
    mq_assert_ok(mq_file_load(&b, path, 1 << 20, &err), &err);
    char *at = strstr(b.data, from);
    ck_assert_msg(at != NULL, "'%s' is not in the config", from);
    mq_buf_append(&out, b.data, at - b.data);
    mq_buf_str(&out, to);
    mq_buf_str(&out, at + strlen(from));
    mq_assert_ok(mq_file_save(dir, "config.json", out.data, out.n_bytes, &err), &err);
    mq_buf_release(&b);
    mq_buf_release(&out);
}

static const struct {
    const char *from, *to;
    mq_status status;
    const char *fragment;
} MISFITS[] = {
    {"\"hidden_size\": 288", "\"hidden_size\": 320", MQ_E_SHAPE, "expected the target's hidden_size = 320"},
    {"\"vocab_size\": 512", "\"vocab_size\": 511", MQ_E_SHAPE,
     "tensor 'model.embed_tokens.weight': shape [512, 288], expected [511, 288]"},
    {"\"intermediate_size\": 352", "\"intermediate_size\": 353", MQ_E_SHAPE, "mlp.gate_proj.weight': shape [352, 288], expected [353, 288]"},
    {"\"moe_intermediate_size\": 160", "\"moe_intermediate_size\": 128", MQ_E_SHAPE, "experts.0.gate_proj.weight': shape [160, 288]"},
    {"\"n_routed_experts\": 8", "\"n_routed_experts\": 7", MQ_E_SHAPE, "mlp.gate.weight': shape [8, 288], expected [7, 288]"},
    {"\"head_dim\": 48", "\"head_dim\": 96", MQ_E_SHAPE, "self_attn.qkv_proj.weight': shape"},
    {"\"fused_qkv\"", "\"split\"", MQ_E_FORMAT, "self_attn.q_proj.weight': missing"},
    {"\"add_swa_attention_sink_bias\": true", "\"add_swa_attention_sink_bias\": false", MQ_E_UNSUPPORTED,
     "attention_sink_bias': not a tensor of this model"},
    {"\"add_full_attention_sink_bias\": false", "\"add_full_attention_sink_bias\": true", MQ_E_FORMAT,
     "model.layers.0.self_attn.attention_sink_bias': missing"},
    {"\"quantization_config\"", "\"x_config\"", MQ_E_UNSUPPORTED, "dtype F8_E4M3, but config.json has no quantization_config"},
    {"\"num_key_value_heads\": 4", "\"num_key_value_heads\": 2", MQ_E_SHAPE, "self_attn.qkv_proj.weight': shape"},
};

START_TEST(a_configuration_that_does_not_fit_the_tensors_is_refused)
{
    mq_source *s;
    mq_err err;
    const char *dir = make("pro-small", MQ_SCHEME_FP8_BLOCK, 1, false);
    for (size_t i = 0; i < sizeof MISFITS / sizeof MISFITS[0]; i++) {
        edit_config(dir, MISFITS[i].from, MISFITS[i].to);
        mq_assert_fails(mq_source_open(&s, dir, &err), MISFITS[i].status, &err, MISFITS[i].fragment);
        edit_config(dir, MISFITS[i].to, MISFITS[i].from);
    }
    mq_source_close(open_ok(dir));
}
END_TEST

START_TEST(other_modalities_are_skipped_with_a_notice_and_strangers_refused)
{
    mq_source *s;
    mq_err err;
    const char *dir = make("pro-small", MQ_SCHEME_FP8_BLOCK, 1, false);
    edit_config(dir, "\"hidden_act\"", "\"unheard_of\": 1, \"hidden_act\"");
    s = open_ok(dir);
    ck_assert(strstr(s->notices.data, "unknown key 'unheard_of' is ignored") != NULL);
    mq_source_close(s);
    static const char from[] = "\"model.mtp.layers.0.", visual[] = "\"visual.mtp.layer.0.";
    for (bool more = true; more;) { /* all tensors of the only MTP layer */
        char path[4200];
        mq_buf b = mq_buf_empty();
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
        mq_assert_ok(mq_file_load(&b, path, 1 << 20, &err), &err);
        more = strstr(b.data, from) != NULL;
        mq_buf_release(&b);
        if (!more)
            break;
        rename_tensor(dir, "model.safetensors.index.json", from, visual);
        rename_tensor(dir, "model-00001-of-00001.safetensors", from, visual);
    }
    s = open_ok(dir);
    ck_assert_int_eq(s->model.n_mtp, 0);
    ck_assert_msg(strstr(s->notices.data, "visual.*: ") != NULL, "%s", s->notices.data);
    mq_source_close(s);
    static const char known[] = "\"visual.mtp.layer.0.enorm.weight\"", strange[] = "\"risual.mtp.layer.0.enorm.weight\"";
    rename_tensor(dir, "model.safetensors.index.json", known, strange);
    rename_tensor(dir, "model-00001-of-00001.safetensors", known, strange);
    mq_assert_fails(mq_source_open(&s, dir, &err), MQ_E_UNSUPPORTED, &err,
                    "tensor 'risual.mtp.layer.0.enorm.weight': not a tensor of this model");
}
END_TEST

START_TEST(opening_is_linear_in_the_tensors)
{
    mq_maker m;
    mq_err err;
    struct timespec t0, t1;
    const char *dir = mq_test_dir();
    mq_maker_preset(&m, "nano");
    m.layers = 20;
    m.hidden = 32;
    m.moe_intermediate = 32;
    m.intermediate = 32;
    m.experts = 512;
    m.draft_layers = 0;
    m.expert_scheme = MQ_SCHEME_FP8_BLOCK;
    mq_assert_ok(mq_maker_write(&m, dir, NULL, &err), &err);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    mq_source *s = open_ok(dir);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    printf("%lld tensors opened and checked in %.2f s\n", (long long)mq_checkpoint_n_tensors(s->checkpoint), seconds);
    ck_assert_int_gt(mq_checkpoint_n_tensors(s->checkpoint), 58000);
    ck_assert(seconds < 20.0);
    mq_source_close(s);
}
END_TEST

START_TEST(folders_that_are_no_checkpoint_say_so)
{
    mq_source *s;
    mq_err err;
    mq_assert_fails(mq_source_open(&s, mq_test_dir(), &err), MQ_E_FORMAT, &err, "no config.json: not a checkpoint");
    mq_assert_fails(mq_source_open(&s, "/nonexistent", &err), MQ_E_IO, &err, "/nonexistent");
    mq_source_close(NULL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("source");
    TCase *t = tcase_create("logical tensors");
    tcase_add_test(t, the_bundled_checkpoints_open);
    tcase_add_test(t, keys_follow_the_geometry);
    tcase_add_test(t, fused_fp8_rows_are_the_split_ones);
    tcase_add_test(t, slices_equal_the_whole_through_phases_chunks_and_edge_blocks);
    tcase_add_test(t, ranges_that_cannot_be_viewed_are_refused);
    tcase_add_test(t, values_that_are_not_numbers_are_refused_where_they_stand);
    tcase_add_test(t, missing_and_misnamed_tensors_are_refused_by_name);
    tcase_add_test(t, a_configuration_that_does_not_fit_the_tensors_is_refused);
    tcase_add_test(t, other_modalities_are_skipped_with_a_notice_and_strangers_refused);
    tcase_add_test(t, opening_is_linear_in_the_tensors);
    tcase_add_test(t, folders_that_are_no_checkpoint_say_so);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
