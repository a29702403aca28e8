/* Damaged packed models, one kind of damage each: refused when opened or verified, with file,
 * tensor and rule named.
 *
 * A small model of every kind of file is written once.  Each case damages a copy of one file in
 * memory and writes it.  "Sealed" cases recompute the digests behind the damage, as somebody would
 * who writes bad files on purpose, so that the rule itself must find it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "formats/manifest.h"
#include "src/codec.h"
#include "tests/harness.h"

static const char config_text[] =
    "{\"model_type\":\"mimo_v2_flash\",\"architectures\":[\"MiMoV2FlashForCausalLM\"],\"num_hidden_"
    "layers\":3,"
    "\"hidden_size\":128,\"num_attention_heads\":4,\"swa_num_attention_heads\":4,\"num_key_value_"
    "heads\":1,"
    "\"swa_num_key_value_heads\":2,\"head_dim\":48,\"swa_head_dim\":48,\"v_head_dim\":32,\"swa_v_"
    "head_dim\":32,"
    "\"rope_theta\":5000000.0,\"swa_rope_theta\":10000.0,\"partial_rotary_factor\":0.334,\"sliding_"
    "window\":64,"
    "\"sliding_window_size\":64,\"attention_value_scale\":0.707,\"add_swa_attention_sink_bias\":"
    "true,"
    "\"add_full_attention_sink_bias\":false,\"attention_bias\":false,\"tie_word_embeddings\":false,"
    "\"intermediate_size\":128,"
    "\"n_routed_experts\":4,\"num_experts_per_tok\":2,\"moe_intermediate_size\":128,\"n_shared_"
    "experts\":null,"
    "\"moe_layer_freq\":[0,1,1],\"hybrid_layer_pattern\":[0,1,0],\"scoring_func\":\"sigmoid\","
    "\"topk_method\":\"noaux_tc\","
    "\"n_group\":1,\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":null,"
    "\"layernorm_epsilon\":1e-05,"
    "\"vocab_size\":64,\"max_position_embeddings\":4096,\"hidden_act\":\"silu\",\"torch_dtype\":"
    "\"bfloat16\",\"eos_token_id\":40}";
static const char draft_text[] = "{\"architectures\":[\"DFlashDraftModel\"],\"model_type\":"
                                 "\"qwen3\",\"hidden_size\":128,\"intermediate_size\":128,"
                                 "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"num_key_"
                                 "value_heads\":2,\"head_dim\":32,\"v_head_dim\":32,"
                                 "\"partial_rotary_factor\":0.5,\"rope_theta\":10000.0,\"rms_norm_"
                                 "eps\":1e-05,\"block_size\":8,\"sliding_window\":256,"
                                 "\"num_target_layers\":3,\"vocab_size\":64,\"max_position_"
                                 "embeddings\":4096,\"attention_bias\":false,"
                                 "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,\"torch_"
                                 "dtype\":\"bfloat16\",\"dflash_config\":{"
                                 "\"target_layer_ids\":[0,2],\"mask_token_id\":43,\"block_size\":8,"
                                 "\"use_swa\":true,\"swa_window_size\":256,"
                                 "\"attention_sink_bias\":true,\"attention_value_scale\":0.612}}";

/* ---- The sound model ---- */

static mq_scheme scheme_of(const mq_record_spec *r)
{
    if (r->is_expert)
        return r->key.layer == 1 ? MQ_SCHEME_INT4 : MQ_SCHEME_MXFP4;
    if (r->key.role == MQ_ROLE_ROUTER || r->key.role == MQ_ROLE_ROUTER_BIAS)
        return MQ_SCHEME_F32;
    bool fp8 = r->key.role == MQ_ROLE_Q || r->key.role == MQ_ROLE_V || r->key.role == MQ_ROLE_GATE;
    return fp8 ? MQ_SCHEME_FP8_BLOCK : r->key.role == MQ_ROLE_SINK ? MQ_SCHEME_F16 : MQ_SCHEME_BF16;
}

static void write_shard(const char *dir, const mq_file_spec *f, int level, mq_shard_info *info)
{
    static uint8_t plain[1 << 18];
    mq_err err;
    mq_shard_writer *w;
    mq_assert_ok(mq_shard_writer_create(&w, dir, f, 2, level, &err), &err);
    for (int64_t i = 0; i < f->n_records; i++) {
        const mq_record_spec *r = &f->records[i];
        int64_t n = mq_record_plain_bytes(r, scheme_of(r), 64);
        ck_assert_int_le(n, (int64_t)sizeof plain);
        for (int64_t k = 0; k < n; k++)
            plain[k] = (uint8_t)(k % 2 ? 0x3f : 0x40 + (k + i) % 9);
        int64_t codes = r->rows * r->cols; /* multiples of 16 here: no fill */
        ck_assert(scheme_of(r) != MQ_SCHEME_FP8_BLOCK || codes % 16 == 0);
        mq_assert_ok(mq_shard_writer_begin(w, i, scheme_of(r), 64, &err), &err);
        mq_assert_ok(mq_shard_writer_append(w, plain, n, NULL, 0, &err), &err);
        mq_assert_ok(mq_shard_writer_end(w, &err), &err);
    }
    mq_assert_ok(mq_shard_writer_commit(w, info, &err), &err);
}

static void add_extra(mq_manifest *m, const char *dir, const char *name, const char *text)
{
    mq_err err;
    const char *slash = strchr(name, '/');
    char *sub = slash ? mq_path_join(dir, "dflash") : strdup(dir);
    mq_assert_ok(mq_dir_create(sub, &err), &err);
    mq_assert_ok(mq_file_save(sub, slash ? slash + 1 : name, text, (int64_t)strlen(text), &err),
                 &err);
    free(sub);
    mq_file_digest *d = &m->extra[m->n_extra++];
    d->name = strdup(name);
    d->bytes = (int64_t)strlen(text);
    mq_sha256_of(d->sha256, text, d->bytes);
}

static void write_model(const char *dir, int level)
{
    mq_err err;
    mq_manifest m = {.version = 1,
                     .tool_version = "test",
                     .n_ranks = 2,
                     .n_mtp = 1,
                     .has_draft = true,
                     .n_layers = 3,
                     .group = 64};
    m.expert_scheme[1] = MQ_SCHEME_INT4;
    m.expert_scheme[2] = MQ_SCHEME_MXFP4;
    m.recipe = (mq_recipe){.method = "rtn",
                           .group = 64,
                           .compress = "none",
                           .backend = "cpu",
                           .isa = "any",
                           .seed = 1};
    if (level) {
        strcpy(m.recipe.compress, "zstd:3");
        strcpy(m.recipe.zstd_version, mq_zstd_version());
    }
    m.extra = calloc(4, sizeof *m.extra);
    add_extra(&m, dir, "config.json", config_text);
    add_extra(&m, dir, "dflash/config.json", draft_text);
    add_extra(&m, dir, "tokenizer.json", "{}");
    m.source = calloc(1, sizeof *m.source);
    m.n_source = 1;
    m.source[0].name = strdup("model.safetensors");
    m.source[0].bytes = 12345;

    mq_model model;
    mq_draft_model draft;
    mq_plan *plan;
    char *config = mq_path_join(dir, "config.json"),
         *draft_config = mq_path_join(dir, "dflash/config.json");
    mq_assert_ok(mq_model_load(&model, config, &err), &err);
    model.n_mtp = 1;
    mq_assert_ok(mq_draft_model_load(&draft, draft_config, &model, &err), &err);
    mq_assert_ok(mq_plan_create(&plan, &model, &draft, 2, 64, &err), &err);
    m.shards = calloc((size_t)plan->n_files, sizeof *m.shards);
    m.n_shards = plan->n_files;
    for (int64_t i = 0; i < plan->n_files; i++)
        write_shard(dir, &plan->files[i], level, &m.shards[i]);
    mq_manifest_digest(&m);
    mq_assert_ok(mq_manifest_save(&m, dir, &err), &err);
    mq_plan_free(plan);
    mq_draft_model_release(&draft);
    mq_model_release(&model);
    mq_manifest_release(&m);
    free(config);
    free(draft_config);
}

static mq_status open_and_verify(const char *dir, mq_err *err)
{
    mq_packed *p;
    MQ_TRY(mq_packed_open(&p, dir, err));
    mq_status st = mq_packed_verify(p, 2, 1 << 24, NULL, NULL, NULL, err);
    mq_packed_close(p);
    return st;
}

/* ---- Damage ---- */

/* What is changed: a field of the header, of an entry, of the trailer; a record's stored bytes; its
 * padding; the name. */
typedef enum area {
    HEADER,
    ENTRY,
    TRAILER,
    RECORD,
    PADDING,
    NAMES,
    TRUNCATE,
    APPEND,
    REMOVE,
    SWAP,
    ADD_FILE,
    MAKE_DIR,
    TEXT,
    TEXT_END
} area;
/* Which digests are made right again. */
typedef enum seal { OPEN, INDEX, ALL } seal;

typedef struct damage {
    const char *label, *file;
    area where;
    int record; /* ENTRY, RECORD, PADDING, NAMES */
    int64_t off;
    int width; /* bytes of value */
    uint64_t value;
    seal sealed;
    const char *from, *to; /* TEXT: replaced; SWAP, ADD_FILE: the other name */
    mq_status status;
    const char *place, *rule; /* both must be in the error's text */
} damage;

#define COMMON "common.mqs"
#define L0 "layer-000-rank-00-of-02.mqs"
#define L1 "layer-001-rank-00-of-02.mqs"
#define L1B "layer-001-rank-01-of-02.mqs"
#define L2 "layer-002-rank-01-of-02.mqs"
#define MANIFEST "manifest.json"
#define GU1 "tensor 'model.layers.1.mlp.experts.0.gate_up_proj.weight'"
#define Q0 "tensor 'model.layers.0.self_attn.q_proj.weight'"
#define Q1 "tensor 'model.layers.1.self_attn.q_proj.weight'"
#define FIELD(name) (int64_t) offsetof(mq_shard_entry, name)
#define F MQ_E_FORMAT
#define H MQ_E_HASH

/* One damage a line. */
/* clang-format off */
/* Records of layer files: 0..3 q k v o; dense 4 gate 5 up 6 down; experts 4..7 gate_up, 8..11 down. */
static const damage damages[] = {
    /* Whole files */
    {"empty shard", L1, TRUNCATE, 0, 0, 0, 0, OPEN, 0, 0, F, L1, "0 bytes, expected at least 4160"},
    {"shard cut in the header", L1, TRUNCATE, 0, 100, 0, 0, OPEN, 0, 0, F, L1, "100 bytes, expected at least"},
    {"shard cut in a record", L1, TRUNCATE, 0, 9000, 0, 0, OPEN, 0, 0, F, L1, "trailer: wrong magic (truncated?)"},
    {"shard without its last byte", L1, TRUNCATE, 0, -1, 0, 0, OPEN, 0, 0, F, L1, "trailer: wrong magic"},
    {"shard with a byte more", L1, APPEND, 0, 1, 0, 0, OPEN, 0, 0, F, L1, "trailer: wrong magic"},
    {"shard missing", L1, REMOVE, 0, 0, 0, 0, OPEN, 0, 0, F, L1, "missing, but listed in the manifest"},
    {"common missing", COMMON, REMOVE, 0, 0, 0, 0, OPEN, 0, 0, F, COMMON, "missing"},
    {"ranks swapped", L1, SWAP, 0, 0, 0, 0, OPEN, 0, L1B, F, L1, "rank 1 of 2, expected kind 1, layer 1, rank 0"},
    {"layers swapped", L1, SWAP, 0, 0, 0, 0, OPEN, 0, "layer-002-rank-00-of-02.mqs", F, L1, "layer 2"},
    {"head in place of the drafter", "head-rank-00-of-02.mqs", SWAP, 0, 0, 0, 0, OPEN, 0, "draft-rank-00-of-02.mqs", F,
     "head-rank-00", "as in the manifest"},
    {"config.json in place of a shard", L1, SWAP, 0, 0, 0, 0, OPEN, 0, "tokenizer.json", F, L1, "2 bytes, expected at least"},
    {"a folder in place of a shard", L1, MAKE_DIR, 0, 0, 0, 0, OPEN, 0, 0, F, L1, "not a regular file"},
    {"an unlisted file", MANIFEST, ADD_FILE, 0, 0, 0, 0, OPEN, 0, "notes.txt", F, "notes.txt", "not listed in the manifest"},
    {"a left partial file", MANIFEST, ADD_FILE, 0, 0, 0, 0, OPEN, 0, L1 ".partial", F, L1 ".partial", "not listed"},
    {"an unlisted file of the drafter", MANIFEST, ADD_FILE, 0, 0, 0, 0, OPEN, 0, "dflash/x.bin", F, "dflash/x.bin", "not listed"},
    {"a shard of another rank count", MANIFEST, ADD_FILE, 0, 0, 0, 0, OPEN, 0, "layer-001-rank-00-of-04.mqs", F, "of-04", "not listed"},
    /* Header */
    {"magic", L1, HEADER, 0, 0, 1, 'X', ALL, 0, 0, F, L1, "wrong magic"},
    {"magic after a text-mode transfer", L1, HEADER, 0, 3, 1, '\n', ALL, 0, 0, F, L1, "wrong magic"},
    {"version 2", L1, HEADER, 0, 8, 4, 2, ALL, 0, 0, MQ_E_UNSUPPORTED, L1, "format version 2, this program reads 1"},
    {"kind 5", L1, HEADER, 0, 12, 4, 5, ALL, 0, 0, F, L1, "kind 5, expected 0 to 4"},
    {"another kind", L1, HEADER, 0, 12, 4, 3, ALL, 0, 0, F, L1, "kind 3, layer 1"},
    {"layer 512", L1, HEADER, 0, 16, 4, 512, ALL, 0, 0, F, L1, "layer 512, expected 0 to 511"},
    {"another layer", L1, HEADER, 0, 16, 4, 2, ALL, 0, 0, F, L1, "layer 2, rank 0 of 2, expected kind 1, layer 1"},
    {"rank beyond", L1, HEADER, 0, 20, 4, 2, ALL, 0, 0, F, L1, "rank 2 of 2"},
    {"another rank, unsealed", L1, HEADER, 0, 20, 4, 1, OPEN, 0, 0, H, L1, "SHA-256 of header and index"},
    {"no ranks", L1, HEADER, 0, 24, 4, 0, ALL, 0, 0, F, L1, "rank 0 of 0"},
    {"common of 2 ranks", COMMON, HEADER, 0, 24, 4, 2, ALL, 0, 0, F, COMMON, "rank 0 of 2"},
    {"reserved header byte", L1, HEADER, 0, 40, 1, 1, ALL, 0, 0, F, L1, "reserved bytes are not zero"},
    {"byte behind the header", L1, HEADER, 0, 64, 1, 1, OPEN, 0, 0, F, L1, "bytes 64 to 4095 are not zero"},
    /* Trailer */
    {"trailer magic", L1, TRAILER, 0, 56, 1, 'X', OPEN, 0, 0, F, L1, "trailer: wrong magic"},
    {"index offset", L1, TRAILER, 0, 0, 8, 4096, OPEN, 0, 0, F, L1, "does not end at the trailer"},
    {"huge index offset", L1, TRAILER, 0, 0, 8, UINT64_MAX, OPEN, 0, 0, F, L1, "does not end at the trailer"},
    {"index bytes", L1, TRAILER, 0, 8, 8, UINT64_MAX, OPEN, 0, 0, F, L1, "trailer: index of 18446744073709551615 bytes"},
    {"no records", L1, TRAILER, 0, 16, 4, 0, OPEN, 0, 0, F, L1, "0 records, expected 1 to"},
    {"2^32 - 1 records", L1, TRAILER, 0, 16, 4, UINT32_MAX, OPEN, 0, 0, F, L1, "4294967295 records"},
    {"names bytes", L1, TRAILER, 0, 20, 4, 1, OPEN, 0, 0, F, L1, "trailer: index of"},
    {"index digest", L1, TRAILER, 0, 24, 1, 0x5a, OPEN, 0, 0, H, L1, "SHA-256 of header and index"},
    /* Entries */
    {"record moved", L1, ENTRY, 0, FIELD(off), 8, 8192, ALL, 0, 0, F, Q1, "offset 8192, expected 4096"},
    {"records overlap", L1, ENTRY, 1, FIELD(off), 8, 4096, ALL, 0, 0, F, "k_proj", "offset 4096, expected"},
    {"stored bytes beyond the file", L1, ENTRY, 0, FIELD(stored_bytes), 8, UINT64_MAX / 2, ALL, 0, 0, F, Q1, "before the index"},
    {"no stored bytes", L1, ENTRY, 0, FIELD(stored_bytes), 8, 0, ALL, 0, 0, F, Q1, "0 stored bytes"},
    {"stored bytes of a plain record", L1, ENTRY, 3, FIELD(stored_bytes), 8, 100, ALL, 0, 0, F, "o_proj", "100 stored bytes of an uncompressed"},
    {"plain bytes", L1, ENTRY, 3, FIELD(plain_bytes), 8, 64, ALL, 0, 0, F, "o_proj", "64 plain bytes, expected 16384 for bf16 [128, 64]"},
    {"no rows", L1, ENTRY, 0, FIELD(rows), 8, 0, ALL, 0, 0, F, Q1, "shape [0, 128]"},
    {"rows that overflow", L1, ENTRY, 0, FIELD(rows), 8, (uint64_t)1 << 57, ALL, 0, 0, F, Q1, "expected 1 to 2^31 rows"},
    {"shape that overflows", L1, ENTRY, 3, FIELD(rows), 16, (uint64_t)1 << 31, ALL, 0, 0, F, "o_proj", "shape [2147483648, 0]"},
    {"2^31 rows", L1, ENTRY, 3, FIELD(rows), 8, (uint64_t)1 << 31, ALL, 0, 0, F, "o_proj", "plain bytes, expected 274877906944"},
    {"rows and columns exchanged", L1, ENTRY, 4, FIELD(rows), 16, 128, ALL, 0, 0, F, GU1, "shape [128, 0]"},
    {"slice of another rank", L1, ENTRY, 0, FIELD(row0), 8, 96, ALL, 0, 0, F, Q1, "from [96, 0], expected [96, 128] from [0, 0]"},
    {"slice begins at 2^63", L1, ENTRY, 0, FIELD(row0), 8, (uint64_t)1 << 63, ALL, 0, 0, F, Q1, "slice begins at"},
    {"slice of other columns", L1, ENTRY, 8, FIELD(col0), 8, 64, ALL, 0, 0, F, "experts.0.down_proj", "from [0, 64], expected"},
    {"segments that do not divide", L0, ENTRY, 0, FIELD(seg_rows), 8, 7, ALL, 0, 0, F, Q0, "segments of 7 rows"},
    {"no segments", L0, ENTRY, 0, FIELD(seg_rows), 8, 0, ALL, 0, 0, F, Q0, "segments of 0 rows"},
    {"segments above the rows", L0, ENTRY, 0, FIELD(seg_rows), 8, UINT64_MAX, ALL, 0, 0, F, Q0, "segments of 18446744073709551615"},
    {"segments of a BF16 record", L1, ENTRY, 3, FIELD(seg_rows), 8, 128, ALL, 0, 0, F, "o_proj", "bf16 with segments or phases"},
    {"row phase 128", L0, ENTRY, 0, FIELD(row_phase), 1, 128, ALL, 0, 0, F, Q0, "phases (128, 0)"},
    {"another row phase", L0, ENTRY, 0, FIELD(row_phase), 1, 8, ALL, 0, 0, F, Q0, "phases (8, 0), expected"},
    {"column phase", L0, ENTRY, 0, FIELD(col_phase), 1, 1, ALL, 0, 0, F, Q0, "plain bytes, expected"},
    {"scheme 0", L1, ENTRY, 0, FIELD(scheme), 1, 0, ALL, 0, 0, F, Q1, "scheme 0, expected 1 to 6"},
    {"scheme 7", L1, ENTRY, 0, FIELD(scheme), 1, 7, ALL, 0, 0, F, Q1, "scheme 7, expected 1 to 6"},
    {"bf16 called f16: values differ", COMMON, ENTRY, 0, FIELD(scheme), 1, 3, ALL, 0, 0, F, "tensor 'model.norm.weight'", "256 plain bytes, expected 512"},
    {"codec 2", L1, ENTRY, 0, FIELD(codec), 1, 2, ALL, 0, 0, F, Q1, "codec 2, expected 0 or 1"},
    {"plain record called compressed", L1, ENTRY, 0, FIELD(codec), 1, 1, ALL, 0, 0, F, Q1, "compressed with zstd, but the manifest's compress is 'none'"},
    {"group 96", L1, ENTRY, 4, FIELD(group), 2, 96, ALL, 0, 0, F, GU1, "int4 with group 96"},
    {"group 128: same bytes?", L1, ENTRY, 4, FIELD(group), 2, 128, ALL, 0, 0, F, GU1, "plain bytes, expected"},
    {"group of a BF16 record", L1, ENTRY, 3, FIELD(group), 2, 64, ALL, 0, 0, F, "o_proj", "bf16 with group 64, expected 0"},
    {"MXFP4 with group 64", L2, ENTRY, 4, FIELD(group), 2, 64, ALL, 0, 0, F, "layers.2.mlp.experts.0.gate_up", "mxfp4 with group 64, expected 32"},
    {"reserved entry byte", L1, ENTRY, 0, FIELD(reserved), 1, 1, ALL, 0, 0, F, Q1, "reserved bytes of the entry"},
    {"record digest", L1, ENTRY, 0, FIELD(sha256), 1, 0x5a, INDEX, 0, 0, H, Q1, "SHA-256 of the record differs"},
    {"name offset", L1, ENTRY, 1, FIELD(name_off), 4, 0, ALL, 0, 0, F, L1, "record 1: name of 38 bytes at 0"},
    {"name beyond the names", L1, ENTRY, 11, FIELD(name_bytes), 2, 120, ALL, 0, 0, F, L1, "record 11: name of 120 bytes"},
    {"name of 128 bytes", L1, ENTRY, 0, FIELD(name_bytes), 2, 128, ALL, 0, 0, F, L1, "name of 128 bytes"},
    {"no name", L1, ENTRY, 0, FIELD(name_bytes), 2, 0, ALL, 0, 0, F, L1, "name of 0 bytes"},
    {"NUL in a name", L1, NAMES, 0, 3, 1, 0, ALL, 0, 0, F, L1, "name holds byte 0x00, expected printable ASCII"},
    {"control character in a name", L1, NAMES, 0, 3, 1, 0x1b, ALL, 0, 0, F, L1, "name holds byte 0x1b"},
    {"invalid UTF-8 in a name", L1, NAMES, 0, 3, 1, 0xff, ALL, 0, 0, F, L1, "name holds byte 0xff"},
    {"a name twice", L1, NAMES, 1, 25, 1, 'q', ALL, 0, 0, F, Q1, "is there twice"},
    {"another name", L1, NAMES, 0, 13, 1, '7', ALL, 0, 0, F, "tensor 'model.layers.7.self_attn.q_proj.weight'", "expected 'model.layers.1.self_attn.q_proj.weight' there"},
    /* Bytes and values */
    {"record byte", L1, RECORD, 5, 100, 1, 0x11, OPEN, 0, 0, H, "experts.1.gate_up_proj", "SHA-256 of the record differs"},
    {"record byte, index sealed", L1, RECORD, 5, 100, 1, 0x11, INDEX, 0, 0, H, "experts.1.gate_up_proj", "SHA-256 of the record differs"},
    {"padding", L1, PADDING, 4, 0, 1, 1, OPEN, 0, 0, F, GU1, "padding behind the record is not zero"},
    {"padding, sealed", L1, PADDING, 0, 5, 1, 1, ALL, 0, 0, F, Q1, "padding behind the record is not zero"},
    {"BF16 infinity", L1, RECORD, 3, 2, 2, 0x7f80, ALL, 0, 0, F, "o_proj", "byte 2: bf16 value is not finite"},
    {"BF16 NaN in a norm", COMMON, RECORD, 0, 0, 2, 0xffc1, ALL, 0, 0, F, "tensor 'model.norm.weight'", "byte 0: bf16 value"},
    {"F16 infinity in a sink", COMMON, RECORD, 5, 2, 2, 0xfc00, ALL, 0, 0, F, "layers.1.self_attn.attention_sink_bias", "byte 2: f16 value is not finite"},
    {"F32 NaN in a router", COMMON, RECORD, 6, 400, 4, 0x7fc00000, ALL, 0, 0, F, "layers.1.mlp.gate.weight", "byte 400: f32 value"},
    {"E4M3 NaN", L0, RECORD, 0, 77, 1, 0x7f, ALL, 0, 0, F, Q0, "byte 77: E4M3 code is NaN"},
    {"E4M3 negative NaN", L0, RECORD, 4, 5, 1, 0xff, ALL, 0, 0, F, "layers.0.mlp.gate_proj", "byte 5: E4M3 code is NaN"},
    {"FP8 scale infinity", L0, RECORD, 4, 64 * 128, 4, 0x7f800000, ALL, 0, 0, F, "layers.0.mlp.gate_proj", "byte 8192: FP8 scale is not finite"},
    {"INT4 scale zero", L1, RECORD, 4, 512, 2, 0, ALL, 0, 0, F, GU1, "byte 512: INT4 scale 0x0000"},
    {"INT4 scale subnormal", L1, RECORD, 4, 544 + 514, 2, 0x7f, ALL, 0, 0, F, GU1, "byte 1058: INT4 scale 0x007f"},
    {"INT4 scale infinity", L1, RECORD, 8, 542, 2, 0xff80, ALL, 0, 0, F, "experts.0.down_proj", "byte 542: INT4 scale 0xff80"},
    {"INT4 scale NaN", L1, RECORD, 8, 512, 2, 0x7fc0, ALL, 0, 0, F, "experts.0.down_proj", "byte 512: INT4 scale 0x7fc0"},
    {"E8M0 255", L2, RECORD, 4, 543, 1, 255, ALL, 0, 0, F, "layers.2.mlp.experts.0.gate_up_proj", "byte 543: E8M0 scale is 255 (NaN)"},
    {"sealed but for the manifest", L1, RECORD, 3, 2, 2, 0x3f80, ALL, "unlisted", 0, H, L1, "the content digest differs from the manifest"},
    /* Carried files */
    {"config.json edited", "config.json", TEXT, 0, 0, 0, 0, OPEN, "10000.0", "10000.1", H, "config.json", "SHA-256 differs from the manifest"},
    {"config.json longer", "config.json", TEXT, 0, 0, 0, 0, OPEN, "10000.0", "10000.25", F, "config.json", "expected"},
    {"config.json missing", "config.json", REMOVE, 0, 0, 0, 0, OPEN, 0, 0, F, "config.json", "missing"},
    {"tokenizer edited", "tokenizer.json", TEXT, 0, 0, 0, 0, OPEN, "{}", "[]", H, "tokenizer.json", "SHA-256 differs"},
    {"tokenizer missing", "tokenizer.json", REMOVE, 0, 0, 0, 0, OPEN, 0, 0, F, "tokenizer.json", "missing"},
    {"drafter's config edited", "dflash/config.json", TEXT, 0, 0, 0, 0, OPEN, "0.612", "0.613", H, "dflash/config.json", "SHA-256 differs"},
    /* Manifest: text damage, then edits with the digest made right */
    {"no manifest", MANIFEST, REMOVE, 0, 0, 0, 0, OPEN, 0, 0, F, "", "not a packed model (no manifest.json)"},
    {"empty manifest", MANIFEST, TRUNCATE, 0, 0, 0, 0, OPEN, 0, 0, F, MANIFEST, "does not end with the member 'digest'"},
    {"manifest cut", MANIFEST, TRUNCATE, 0, 500, 0, 0, OPEN, 0, 0, F, MANIFEST, "truncated?"},
    {"manifest with text behind", MANIFEST, APPEND, 0, 1, 0, 0, OPEN, 0, 0, F, MANIFEST, "digest"},
    {"recipe edited", MANIFEST, TEXT, 0, 0, 0, 0, OPEN, "\"rtn\"", "\"RTN\"", H, MANIFEST, "SHA-256 of the manifest differs"},
    {"source edited", MANIFEST, TEXT, 0, 0, 0, 0, OPEN, "12345", "12346", H, MANIFEST, "SHA-256 of the manifest differs"},
    {"manifest digest edited", MANIFEST, TEXT, 0, 0, 0, 0, OPEN, "\"digest\": \"", "\"digest\": \"g", F, MANIFEST, "digest"},
    {"not JSON", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"format\":", "\"format\"", F, MANIFEST, "manifest.json"},
    {"another format", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "mimo-packed", "other", F, MANIFEST, "member 'format'"},
    {"manifest version 2", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"version\": 1", "\"version\": 2", MQ_E_UNSUPPORTED, MANIFEST, "format version 2"},
    {"member missing", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_mtp\": 1,", "", F, MANIFEST, "member 'n_mtp' is missing"},
    {"member twice", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_mtp\": 1,", "\"n_mtp\": 1, \"n_mtp\": 1,", F, MANIFEST, "n_mtp"},
    {"member unknown", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_mtp\": 1,", "\"n_mtp\": 1, \"x\": 1,", F, MANIFEST, "unknown member 'x'"},
    {"member of another type", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_mtp\": 1", "\"n_mtp\": \"1\"", F, MANIFEST, "member 'n_mtp': expected an integer"},
    {"ranks that do not fit", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_ranks\": 2", "\"n_ranks\": 4", F, MANIFEST, "4 ranks"},
    {"too many ranks", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_ranks\": 2", "\"n_ranks\": 9", F, MANIFEST, "member 'n_ranks': 9, expected 1 to 8"},
    {"fewer ranks", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_ranks\": 2", "\"n_ranks\": 1", F, MANIFEST, "shards: entry 1 is"},
    {"no MTP", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_mtp\": 1", "\"n_mtp\": 0", F, MANIFEST, "shards: entry 9 is 'mtp-000"},
    {"no drafter", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"has_draft\": true", "\"has_draft\": false", F, MANIFEST, "shards: 'draft-rank-00-of-02.mqs' is not a file of this model"},
    {"layers", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"n_layers\": 3", "\"n_layers\": 4", F, MANIFEST, "'expert_schemes': 3 entries, expected 4"},
    {"group 48", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"group\": 64", "\"group\": 48", F, MANIFEST, "member 'group': 48"},
    {"group of the recipe", MANIFEST, TEXT_END, 0, 0, 0, 0, ALL, "\"group\": 64", "\"group\": 32", F, MANIFEST, "recipe: group 32"},
    {"another expert scheme", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"mxfp4\"", "\"int4\"", F, "layers.2.mlp.experts.0", "expected int4 with group 64"},
    {"experts on a dense layer", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"none\",\n    \"int4\"", "\"int4\",\n    \"int4\"", F, MANIFEST, "layer 0 is int4, but 'dense'"},
    {"unknown expert scheme", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"mxfp4\"", "\"fp8_block\"", F, MANIFEST, "layer 2: expected none, int4 or mxfp4"},
    {"compress", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"compress\": \"none\"", "\"compress\": \"lz4\"", F, MANIFEST, "member 'compress': 'lz4'"},
    {"zstd version without zstd", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"zstd_version\": \"\"", "\"zstd_version\": \"1\"", F, MANIFEST, "member 'zstd_version'"},
    {"seed", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"seed\": \"1\"", "\"seed\": \"-1\"", F, MANIFEST, "member 'seed': '-1'"},
    {"path as a name", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"tokenizer.json\"", "\"../tokenizer.json\"", F, MANIFEST, "expected a plain file name"},
    {"path as a shard's name", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"common.mqs\"", "\"a/common.mqs\"", F, MANIFEST, "expected a plain file name"},
    {"names out of order", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"tokenizer.json\"", "\"a.json\"", F, MANIFEST, "'a.json' is repeated or out of order"},
    {"name repeated", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"tokenizer.json\"", "\"dflash/config.json\"", F, MANIFEST, "is repeated"},
    {"config not listed", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"config.json\"", "\"abcdef.json\"", F, MANIFEST, "'config.json' is not listed"},
    {"shard listed twice", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"" L1B "\"", "\"" L1 "\"", F, MANIFEST, "shards: entry 4 is '" L1 "', expected '" L1B "'"},
    {"shard's size", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"common.mqs\",\n      \"bytes\": ", "\"common.mqs\",\n      \"bytes\": 9", F, COMMON, "as in the manifest"},
    {"carried file's size", MANIFEST, TEXT_END, 0, 0, 0, 0, ALL, "\"bytes\": 2", "\"bytes\": 3", F, "tokenizer.json", "2 bytes, expected 3 as in the manifest"},
    {"shard's plain bytes", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"plain_bytes\": ", "\"plain_bytes\": 9", H, COMMON, "the number of plain bytes differs from the manifest"},
    {"negative size", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"bytes\": ", "\"bytes\": -", F, MANIFEST, "member 'bytes': -"},
    {"upper-case digest", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"content\": \"", "\"content\": \"A", F, MANIFEST, "expected 64 lower-case"},
    {"content digest of a shard", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"content\": \"?", "", H, MANIFEST, "member 'content' is not the digest"},
    {"digest of a shard", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"sha256\": \"?", "common.mqs", H, COMMON, "SHA-256 differs from the manifest"},
    {"digest of a carried file", MANIFEST, TEXT, 0, 0, 0, 0, ALL, "\"sha256\": \"?", "tokenizer.json", H, "tokenizer.json", "SHA-256 differs from the manifest"},
};
enum { N_DAMAGES = sizeof damages / sizeof *damages };

/* Compressed model. */
static const damage zstd_damages[] = {
    {"frame byte", L1, RECORD, 4, 12, 1, 0x5a, OPEN, 0, 0, H, GU1, "SHA-256 of the record differs"},
    {"frame magic", L1, RECORD, 0, 0, 4, 0, OPEN, 0, 0, F, Q1, "zstd"},
    {"frame's length", L1, ENTRY, 11, FIELD(stored_bytes), 8, 9, ALL, 0, 0, F, "experts.3.down_proj", "zstd"},
    {"more plain bytes than zstd can hold", L1, ENTRY, 3, FIELD(rows), 8, (uint64_t)1 << 31, ALL, 0, 0, F, "o_proj", "plain bytes, expected"},
    {"called plain", L1, ENTRY, 4, FIELD(codec), 1, 0, ALL, 0, 0, F, GU1, "stored bytes of an uncompressed record"},
    {"padding behind a frame", L1, PADDING, 4, 0, 1, 1, ALL, 0, 0, F, GU1, "padding behind the record"},
};

/* clang-format on */

/* ---- Doing it ---- */

static mq_buf load(const char *dir, const char *name)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    char *path = mq_path_join(dir, name);
    mq_assert_ok(mq_file_load(&b, path, 1 << 24, &err), &err);
    free(path);
    return b;
}

static void store(const char *dir, const char *name, const void *bytes, int64_t n)
{
    char *path = mq_path_join(dir, name);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq((int64_t)fwrite(bytes, 1, (size_t)n, f), n);
    fclose(f);
    free(path);
}

static void patch_shard(mq_buf *b, const damage *d)
{
    uint8_t *bytes = (uint8_t *)b->data;
    mq_shard_trailer t;
    memcpy(&t, bytes + b->n_bytes - 64, 64);
    mq_shard_entry *entries = (mq_shard_entry *)(void *)(bytes + t.index_off),
                   *e = &entries[d->record];
    int64_t names = (int64_t)(t.index_off + 128ull * t.n_records);
    int64_t end = (int64_t)(e->off + e->stored_bytes);
    int64_t at = d->where == HEADER    ? d->off
                 : d->where == ENTRY   ? (int64_t)t.index_off + 128 * d->record + d->off
                 : d->where == TRAILER ? b->n_bytes - 64 + d->off
                 : d->where == RECORD  ? (int64_t)e->off + d->off
                 : d->where == PADDING ? end + d->off
                                       : names + e->name_off + d->off;
    uint64_t value[2] = {d->value, 0};
    mq_shard_entry before = *e;
    memcpy(bytes + at, value, (size_t)d->width);
    if (d->sealed == ALL && d->where == RECORD)
        mq_sha256_of(e->sha256, bytes + before.off, (int64_t)before.stored_bytes);
    if (d->sealed == OPEN)
        return;
    mq_buf all = mq_buf_empty();
    mq_buf_append(&all, bytes, 64);
    mq_buf_append(&all, bytes + t.index_off, (int64_t)t.index_bytes);
    mq_sha256_of(t.index_sha256, all.data, all.n_bytes);
    memcpy(bytes + b->n_bytes - 64, &t, 64);
    mq_buf_release(&all);
}

/* Make the manifest tell the damaged file's digests, as far as they can be computed. */
static void reseal_manifest(const char *dir, const char *file, const mq_buf *b)
{
    mq_err err;
    mq_manifest m;
    mq_sha256 *h;
    mq_shard_trailer t;
    mq_assert_ok(mq_manifest_load(&m, dir, &err), &err);
    mq_assert_ok(mq_sha256_create(&h, &err), &err);
    memcpy(&t, b->data + b->n_bytes - 64, 64);
    const mq_shard_entry *entries = (const mq_shard_entry *)(const void *)(b->data + t.index_off);
    const char *names = b->data + t.index_off + 128ull * t.n_records;
    bool names_inside = true;
    for (uint32_t i = 0; i < t.n_records; i++)
        names_inside &= entries[i].name_off + entries[i].name_bytes <= t.names_bytes;
    for (int64_t i = 0; i < m.n_shards; i++)
        if (strcmp(m.shards[i].name, file) == 0) {
            mq_sha256_of(m.shards[i].sha256, b->data, b->n_bytes);
            if (names_inside)
                mq_shard_digest_content(m.shards[i].content, h,
                                        (const mq_shard_header *)(const void *)b->data, entries,
                                        t.n_records, names);
        }
    mq_manifest_digest(&m);
    mq_assert_ok(mq_manifest_save(&m, dir, &err), &err);
    mq_sha256_free(h);
    mq_manifest_release(&m);
}

/* Replace the first (TEXT_END: last) occurrence of from.  A from that ends in '?' changes the digit
 * there, behind the first occurrence of to.  Then make the manifest's digest right. */
static void patch_text(mq_buf *b, const damage *d)
{
    mq_buf out = mq_buf_empty();
    size_t n_from = strlen(d->from);
    bool digit = d->from[n_from - 1] == '?';
    char *start = digit && *d->to ? strstr(b->data, d->to) : b->data;
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)(n_from - digit), d->from);
    char *at = strstr(start, key);
    for (char *next; d->where == TEXT_END && (next = strstr(at + 1, key));)
        at = next;
    ck_assert_msg(at != NULL, "%s: '%s' is not in the text", d->label, key);
    mq_buf_append(&out, b->data, at - b->data);
    if (digit) {
        mq_buf_str(&out, key);
        at += strlen(key);
        mq_buf_str(&out, *at == '0' ? "1" : "0");
        at++;
    } else {
        mq_buf_str(&out, d->to);
        at += n_from;
    }
    mq_buf_append(&out, at, b->data + b->n_bytes - at);
    if (d->sealed == ALL) {
        const int64_t tail = 15 + 64 + 4;
        uint8_t digest[MQ_SHA256_BYTES];
        char hex[MQ_SHA256_HEX];
        mq_sha256_of(digest, out.data, out.n_bytes - tail);
        mq_sha256_hex(hex, digest);
        memcpy(out.data + out.n_bytes - 68, hex, 64);
    }
    mq_buf_release(b);
    *b = out;
}

static void apply(const char *dir, const damage *d, mq_buf *b)
{
    char *path = mq_path_join(dir, d->file), *other = d->to ? mq_path_join(dir, d->to) : NULL;
    char *spare = mq_path_join(dir, "spare");
    int64_t n = d->off < 0 ? b->n_bytes + d->off : d->off;
    switch (d->where) {
    case TRUNCATE:
        store(dir, d->file, b->data, n);
        break;
    case APPEND:
        store(dir, d->file, b->data, b->n_bytes + 1);
        break; /* the buffer's NUL */
    case REMOVE:
        ck_assert_int_eq(remove(path), 0);
        break;
    case SWAP:
        ck_assert(rename(path, spare) == 0 && rename(other, path) == 0 &&
                  rename(spare, other) == 0);
        break;
    case ADD_FILE:
        store(dir, d->to, "x", 1);
        break;
    case MAKE_DIR: {
        mq_err err;
        ck_assert_int_eq(remove(path), 0);
        mq_assert_ok(mq_dir_create(path, &err), &err);
        break;
    }
    case TEXT:
    case TEXT_END:
        patch_text(b, d);
        store(dir, d->file, b->data, b->n_bytes);
        break;
    default:
        patch_shard(b, d);
        store(dir, d->file, b->data, b->n_bytes);
        if (d->sealed != OPEN && !d->from)
            reseal_manifest(dir, d->file, b);
    }
    free(path);
    free(other);
    free(spare);
}

static void undo(const char *dir, const damage *d, const mq_buf *original, const mq_buf *manifest)
{
    char *path = mq_path_join(dir, d->file), *other = d->to ? mq_path_join(dir, d->to) : NULL;
    char *spare = mq_path_join(dir, "spare");
    if (d->where == SWAP)
        ck_assert(rename(path, spare) == 0 && rename(other, path) == 0 &&
                  rename(spare, other) == 0);
    if (d->where == ADD_FILE)
        remove(other);
    if (d->where == MAKE_DIR)
        rmdir(path);
    store(dir, d->file, original->data, original->n_bytes);
    store(dir, MANIFEST, manifest->data, manifest->n_bytes);
    free(path);
    free(other);
    free(spare);
}

/* One case; false, with a line that says why, when it is not refused as it should be. */
static bool run(const char *dir, const damage *d)
{
    mq_err err = {MQ_OK, ""};
    mq_buf original = load(dir, d->file), manifest = load(dir, MANIFEST), b = load(dir, d->file);
    apply(dir, d, &b);
    mq_status st = open_and_verify(dir, &err);
    bool good = st == d->status && strstr(err.text, d->place) && strstr(err.text, d->rule);
    if (!good)
        printf("%s: %s '%s', expected %s with '%s' and '%s'\n", d->label, mq_status_name(st),
               err.text, mq_status_name(d->status), d->place, d->rule);
    undo(dir, d, &original, &manifest);
    mq_buf_release(&original);
    mq_buf_release(&manifest);
    mq_buf_release(&b);
    return good;
}

START_TEST(sound_models_verify)
{
    mq_err err;
    for (int level = 0; level <= 3; level += 3) {
        const char *dir = mq_test_dir();
        write_model(dir, level);
        mq_assert_ok(open_and_verify(dir, &err), &err);
    }
}
END_TEST

START_TEST(each_damage_is_refused_and_named)
{
    mq_err err;
    const char *dir = mq_test_dir();
    write_model(dir, 0);
    ck_assert_int_ge(N_DAMAGES, 60);
    int bad = 0;
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < N_DAMAGES; i++)
        bad += !run(dir, &damages[i]);
    getrusage(RUSAGE_SELF, &after);
    ck_assert_int_eq(bad, 0);
    /* KiB.  Sizes that the damage claims go to 2^63; a sanitizer keeps up to 256 MiB of freed blocks. */
    ck_assert_int_lt(after.ru_maxrss - before.ru_maxrss, 512 * 1024);
    mq_assert_ok(open_and_verify(dir, &err), &err); /* every undo was complete */
}
END_TEST

START_TEST(each_damage_of_a_compressed_model_is_refused_and_named)
{
    mq_err err;
    const char *dir = mq_test_dir();
    write_model(dir, 3);
    int bad = 0;
    for (size_t i = 0; i < sizeof zstd_damages / sizeof *zstd_damages; i++)
        bad += !run(dir, &zstd_damages[i]);
    ck_assert_int_eq(bad, 0);
    mq_assert_ok(open_and_verify(dir, &err), &err);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("shard_damage");
    TCase *t = tcase_create("shard_damage");
    tcase_add_test(t, sound_models_verify);
    tcase_add_test(t, each_damage_is_refused_and_named);
    tcase_add_test(t, each_damage_of_a_compressed_model_is_refused_and_named);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
