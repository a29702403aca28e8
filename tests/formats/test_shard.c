/* Shard files: what the writer makes is what SHARD.md shows byte for byte, what the reader lends is
 * what was written, and misuse of either is named. */
#include <stdlib.h>
#include <string.h>

#include "formats/shard_read.h"
#include "formats/shard_write.h"
#include "src/codec.h"
#include "src/units.h"
#include "tests/harness.h"

/* ---- The worked example of SHARD.md ---- */

static mq_record_spec example_record(void)
{
    mq_record_spec r = {
        .key = {MQ_STACK_MODEL, 1, MQ_ROLE_EXPERT_DOWN, 0}, .full_rows = 16, .full_cols = 64};
    r.rows = 16;
    r.cols = 64;
    r.is_expert = true;
    return r;
}

/* Row r, column c holds (r + 3 c) mod 16 - 8; the scale of row r is 2^(r - 8), negative for odd
 * rows. */
static void example_units(uint8_t units[544])
{
    memset(units, 0, 544);
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 64; c++)
            units[mq_unit_byte(r, c)] |= (uint8_t)(((r + 3 * c) & 15) << mq_unit_shift(r));
        uint16_t s = mq_f32_to_bf16(ldexpf(r % 2 ? -1.0f : 1.0f, r - 8));
        memcpy(units + 512 + 2 * mq_unit_scale_index(r, 0, 64), &s, 2);
    }
}

static mq_file_spec file_of(mq_record_spec *records, int64_t n, mq_shard_kind kind,
                            const char *name)
{
    mq_file_spec f = {.kind = kind,
                      .layer = kind == MQ_SHARD_LAYER ? 1 : 0,
                      .rank = 0,
                      .records = records,
                      .n_records = n};
    strcpy(f.name, name);
    return f;
}

static void write_example(const char *dir, mq_shard_info *info)
{
    mq_err err;
    uint8_t units[544];
    mq_record_spec r = example_record();
    mq_file_spec f = file_of(&r, 1, MQ_SHARD_LAYER, "layer-001-rank-00-of-01.mqs");
    mq_shard_writer *w;
    example_units(units);
    mq_assert_ok(mq_shard_writer_create(&w, dir, &f, 1, 0, &err), &err);
    mq_assert_ok(mq_shard_writer_begin(w, 0, MQ_SCHEME_INT4, 64, &err), &err);
    mq_assert_ok(mq_shard_writer_append(w, units, 500, NULL, 0, &err), &err);
    mq_assert_ok(mq_shard_writer_append(w, units + 500, 44, NULL, 0, &err), &err);
    mq_assert_ok(mq_shard_writer_end(w, &err), &err);
    mq_assert_ok(mq_shard_writer_commit(w, info, &err), &err);
}

static mq_buf load(const char *dir, const char *name)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    char *path = mq_path_join(dir, name);
    mq_assert_ok(mq_file_load(&b, path, 1 << 24, &err), &err);
    free(path);
    return b;
}

/* "OFFSET: hex bytes" lines of the block after the heading; everything not listed is zero. */
static int64_t parse_example(uint8_t *out, int64_t cap)
{
    mq_err err;
    mq_buf text = mq_buf_empty();
    mq_assert_ok(mq_file_load(&text, mq_test_path("formats/SHARD.md"), 1 << 20, &err), &err);
    char *line = strstr(text.data, "## 12. Worked example");
    ck_assert_ptr_nonnull(line);
    line = strstr(line, "```hex\n");
    ck_assert_ptr_nonnull(line);
    memset(out, 0, (size_t)cap);
    int64_t end = 0;
    for (line += 7; strncmp(line, "```", 3) != 0; line = strchr(line, '\n') + 1) {
        char *at;
        int64_t off = strtol(line, &at, 16);
        ck_assert_int_eq(*at, ':');
        for (at++; *at == ' '; at += 3) {
            ck_assert_int_lt(off, cap);
            out[off++] = (uint8_t)strtol(at + 1, NULL, 16);
        }
        end = off;
    }
    mq_buf_release(&text);
    return end;
}

static bool in_shard_md(const uint8_t digest[MQ_SHA256_BYTES])
{
    mq_err err;
    mq_buf text = mq_buf_empty();
    char hex[MQ_SHA256_HEX];
    mq_sha256_hex(hex, digest);
    mq_assert_ok(mq_file_load(&text, mq_test_path("formats/SHARD.md"), 1 << 20, &err), &err);
    bool found = strstr(text.data, hex) != NULL;
    mq_buf_release(&text);
    return found;
}

START_TEST(writer_makes_the_worked_example)
{
    static uint8_t expected[16384];
    mq_shard_info info;
    const char *dir = mq_test_dir();
    write_example(dir, &info);
    mq_buf b = load(dir, "layer-001-rank-00-of-01.mqs");
    int64_t n = parse_example(expected, sizeof expected);
    ck_assert_int_eq(b.n_bytes, n);
    ck_assert_int_eq(info.bytes, n);
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg((uint8_t)b.data[i] == expected[i], "byte 0x%llx: %02x, SHARD.md has %02x",
                      (unsigned long long)i, (uint8_t)b.data[i], expected[i]);
    ck_assert(in_shard_md(info.content));
    ck_assert(in_shard_md(info.sha256));
    mq_buf_release(&b);
}
END_TEST

START_TEST(worked_example_reads_back_as_its_formula)
{
    mq_err err;
    mq_shard_info info, again;
    mq_shard *s;
    const char *dir = mq_test_dir();
    write_example(dir, &info);
    char *path = mq_path_join(dir, info.name);
    mq_assert_ok(mq_shard_open(&s, path, &err), &err);
    ck_assert_int_eq(mq_shard_count(s), 1);
    ck_assert_str_eq(mq_shard_name(s, 0), "model.layers.1.mlp.experts.0.down_proj.weight");
    ck_assert_int_eq(mq_shard_find(s, "model.layers.1.mlp.experts.0.down_proj.weight"), 0);
    ck_assert_int_eq(mq_shard_find(s, "model.layers.1.mlp.experts.0.down_proj"), -1);
    uint8_t plain[544], part[10];
    float w[16 * 64];
    mq_assert_ok(mq_shard_load(s, 0, plain, true, &err), &err);
    mq_matrix v = mq_shard_matrix(s, 0, plain);
    mq_matrix_widen(&v, 0, 16, w);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 64; c++)
            ck_assert_float_eq(w[64 * r + c],
                               (float)((r + 3 * c) % 16 - 8) * ldexpf(r % 2 ? -1.0f : 1.0f, r - 8));
    mq_assert_ok(mq_shard_load_range(s, 0, part, 512, 10, &err), &err);
    ck_assert_mem_eq(part, plain + 512, 10);
    mq_assert_fails(mq_shard_load_range(s, 0, part, 540, 10, &err), MQ_E_ARG, &err,
                    "bytes 540 + 10 of a record of 544");
    mq_assert_ok(mq_shard_check_values(s, 0, plain, &err), &err);
    mq_assert_ok(mq_shard_verify(s, &again, 1 << 20, &err), &err);
    ck_assert_mem_eq(&again, &info, sizeof info);
    mq_shard_close(s);
    free(path);
}
END_TEST

/* ---- All schemes, plain and compressed ---- */

enum { N_MIXED = 6 };

static void mixed_records(mq_record_spec r[N_MIXED])
{
    memset(r, 0, N_MIXED * sizeof *r);
    for (int i = 0; i < N_MIXED; i++) {
        r[i].key = (mq_key){MQ_STACK_MODEL, 1,
                            i < 4    ? (mq_role)((int)MQ_ROLE_Q + i)
                            : i == 4 ? MQ_ROLE_EXPERT_GATE_UP
                                     : MQ_ROLE_EXPERT_DOWN,
                            i < 4 ? -1 : 0};
        r[i].rows = r[i].full_rows = i < 4 ? 5 : 32;
        r[i].cols = r[i].full_cols = i < 4 ? 7 : 128;
        r[i].is_expert = i >= 4;
        r[i].seg_rows = 5;
        r[i].row_phase = 126;
    }
}

static const mq_scheme mixed_schemes[N_MIXED] = {MQ_SCHEME_BF16, MQ_SCHEME_F16,
                                                 MQ_SCHEME_F32,  MQ_SCHEME_FP8_BLOCK,
                                                 MQ_SCHEME_INT4, MQ_SCHEME_INT4};

/* Legal bytes of any scheme: values around 1. */
static void fill_plain(uint8_t *plain, int64_t n, mq_scheme scheme)
{
    for (int64_t i = 0; i < n; i++)
        plain[i] = (uint8_t)(i % 2 ? 0x3f : 0x40 + i % 7);
    if (scheme == MQ_SCHEME_FP8_BLOCK)
        memset(plain + 35, 0, 13); /* 5 x 7 codes, fill to 48 */
}

static void write_mixed(const char *dir, int zstd_level, bool packed_by_caller, mq_shard_info *info)
{
    mq_err err;
    mq_record_spec r[N_MIXED];
    mixed_records(r);
    mq_file_spec f = file_of(r, N_MIXED, MQ_SHARD_LAYER, "layer-001-rank-00-of-01.mqs");
    mq_shard_writer *w;
    mq_assert_ok(mq_shard_writer_create(&w, dir, &f, 1, zstd_level, &err), &err);
    for (int i = 0; i < N_MIXED; i++) {
        static uint8_t plain[65536], frame[70000];
        int64_t n = mq_record_plain_bytes(&r[i], mixed_schemes[i], 64), half = n / 2, used;
        fill_plain(plain, n, mixed_schemes[i]);
        mq_assert_ok(mq_shard_writer_begin(w, i, mixed_schemes[i], 64, &err), &err);
        mq_assert_ok(mq_shard_writer_append(w, plain, half, NULL, 0, &err), &err);
        if (packed_by_caller)
            mq_assert_ok(mq_zstd_compress(frame, sizeof frame, &used, plain + half, n - half,
                                          zstd_level, &err),
                         &err);
        mq_assert_ok(mq_shard_writer_append(w, plain + half, n - half,
                                            packed_by_caller ? frame : NULL,
                                            packed_by_caller ? used : 0, &err),
                     &err);
        mq_assert_ok(mq_shard_writer_end(w, &err), &err);
    }
    mq_assert_ok(mq_shard_writer_commit(w, info, &err), &err);
}

static mq_shard *open_in(const char *dir, const char *name)
{
    mq_err err;
    mq_shard *s;
    char *path = mq_path_join(dir, name);
    mq_assert_ok(mq_shard_open(&s, path, &err), &err);
    free(path);
    return s;
}

START_TEST(every_scheme_reads_back_plain_and_compressed)
{
    mq_err err;
    mq_shard_info plain_info, zstd_info, own_info, seen;
    mq_record_spec r[N_MIXED];
    mixed_records(r);
    const char *dir = mq_test_dir();
    write_mixed(dir, 3, false, &own_info);
    write_mixed(dir, 3, true, &zstd_info);
    ck_assert_mem_eq(&own_info, &zstd_info,
                     sizeof own_info); /* whoever compresses, the same bytes */
    for (int level = 3; level >= 0; level -= 3) {
        if (!level)
            write_mixed(dir, 0, false, &plain_info);
        mq_shard *s = open_in(dir, "layer-001-rank-00-of-01.mqs");
        mq_file_spec f = file_of(r, N_MIXED, MQ_SHARD_LAYER, "layer-001-rank-00-of-01.mqs");
        mq_assert_ok(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), &err);
        for (int i = 0; i < N_MIXED; i++) {
            static uint8_t expected[65536], found[65536];
            int64_t n = mq_record_plain_bytes(&r[i], mixed_schemes[i], 64);
            ck_assert_int_eq((int64_t)mq_shard_entry_at(s, i)->plain_bytes, n);
            ck_assert_int_eq(mq_shard_entry_at(s, i)->off % 4096, 0);
            fill_plain(expected, n, mixed_schemes[i]);
            mq_assert_ok(mq_shard_load(s, i, found, true, &err), &err);
            ck_assert_mem_eq(found, expected, (size_t)n);
            mq_matrix v = mq_shard_matrix(s, i, found);
            mq_assert_ok(mq_matrix_check(&v, &err), &err);
        }
        mq_assert_ok(mq_shard_verify(s, &seen, 1 << 20, &err), &err);
        ck_assert_mem_eq(&seen, level ? &zstd_info : &plain_info, sizeof seen);
        mq_shard_close(s);
    }
    ck_assert_mem_eq(plain_info.content, zstd_info.content,
                     MQ_SHA256_BYTES); /* the content digest sees no compressor */
    ck_assert_mem_ne(plain_info.sha256, zstd_info.sha256, MQ_SHA256_BYTES);
}
END_TEST

START_TEST(compressed_records_obey_the_budget_and_have_no_ranges)
{
    mq_err err;
    mq_shard_info info;
    uint8_t b[4];
    const char *dir = mq_test_dir();
    write_mixed(dir, 3, false, &info);
    mq_shard *s = open_in(dir, info.name);
    mq_assert_fails(mq_shard_verify(s, &info, 60, &err), MQ_E_NOMEM, &err, "60 are allowed");
    mq_assert_fails(mq_shard_load_range(s, 0, b, 0, 4, &err), MQ_E_ARG, &err,
                    "a compressed record has no ranges");
    mq_shard_close(s);
}
END_TEST

/* ---- Against the plan ---- */

START_TEST(plan_differences_are_named)
{
    mq_err err;
    mq_shard_info info;
    mq_record_spec r[N_MIXED];
    const char *dir = mq_test_dir();
    write_mixed(dir, 0, false, &info);
    mq_shard *s = open_in(dir, info.name);
    mixed_records(r);
    mq_file_spec f = file_of(r, N_MIXED, MQ_SHARD_LAYER, info.name);
    mq_assert_fails(mq_shard_check_plan(s, &f, 2, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "rank 0 of 1, expected kind 1");
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 32, &err), MQ_E_FORMAT, &err,
                    "expected int4 with group 32");
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_MXFP4, 64, &err), MQ_E_FORMAT, &err,
                    "expected mxfp4 with group 32");
    r[1].row0 = 5;
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "tensor 'model.layers.1.self_attn.k_proj.weight': shape [5, 7] from [0, 0], "
                    "expected [5, 7] from [5, 0]");
    mixed_records(r);
    r[3].row_phase = 1;
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "phases (126, 0), expected 5 with (1, 0)");
    r[3].is_vector = true;
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "stored as fp8_block");
    mixed_records(r);
    r[0].key.role = MQ_ROLE_GATE;
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "record 0, expected 'model.layers.1.mlp.gate_proj");
    f.n_records = 5;
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "6 records, expected 5");
    f.layer = 2;
    mq_assert_fails(mq_shard_check_plan(s, &f, 1, MQ_SCHEME_INT4, 64, &err), MQ_E_FORMAT, &err,
                    "layer 1, rank 0 of 1, expected kind 1, layer 2");
    mq_shard_close(s);
}
END_TEST

/* ---- Misuse of the writer ---- */

START_TEST(writer_refuses_misuse_and_leaves_nothing)
{
    mq_err err;
    mq_shard_info info;
    mq_record_spec r[N_MIXED];
    uint8_t bytes[128] = {0};
    const char *dir = mq_test_dir();
    mixed_records(r);
    mq_file_spec f = file_of(r, N_MIXED, MQ_SHARD_LAYER, "layer-001-rank-00-of-01.mqs");
    mq_shard_writer *w;
    mq_assert_ok(mq_shard_writer_create(&w, dir, &f, 1, 0, &err), &err);
    mq_assert_fails(mq_shard_writer_append(w, bytes, 1, NULL, 0, &err), MQ_E_BUG, &err,
                    "no record open");
    mq_assert_fails(mq_shard_writer_end(w, &err), MQ_E_BUG, &err, "layer-001");
    mq_assert_fails(mq_shard_writer_begin(w, 1, MQ_SCHEME_BF16, 0, &err), MQ_E_BUG, &err,
                    "out of order");
    mq_assert_fails(mq_shard_writer_begin(w, 0, MQ_SCHEME_INT4, 64, &err), MQ_E_BUG, &err,
                    "begun as int4");
    mq_assert_ok(mq_shard_writer_begin(w, 0, MQ_SCHEME_BF16, 0, &err), &err);
    mq_assert_fails(mq_shard_writer_append(w, bytes, 71, NULL, 0, &err), MQ_E_BUG, &err,
                    "more bytes than the record holds");
    mq_assert_ok(mq_shard_writer_append(w, bytes, 69, NULL, 0, &err), &err);
    mq_assert_fails(mq_shard_writer_end(w, &err), MQ_E_BUG, &err,
                    "ended with 69 bytes, expected 70");
    mq_assert_fails(mq_shard_writer_commit(w, &info, &err), MQ_E_BUG, &err,
                    "committed after 1 of 6 records");
    char **names;
    int64_t n;
    mq_assert_ok(mq_dir_list(&names, &n, dir, &err), &err);
    ck_assert_int_eq(n, 0);
    mq_dir_list_free(names, n);
    mq_assert_ok(mq_shard_writer_create(&w, dir, &f, 1, 0, &err), &err);
    mq_shard_writer_abandon(w);
    mq_shard_writer_abandon(NULL);
    mq_assert_fails(mq_shard_writer_create(&w, "/nonexistent", &f, 1, 0, &err), MQ_E_IO, &err,
                    "layer-001");
    ck_assert_ptr_null(w);
}
END_TEST

/* ---- Values ---- */

static mq_shard_entry entry_of(mq_scheme scheme, uint64_t rows, uint64_t cols, uint16_t group)
{
    mq_shard_entry e = {.scheme = (uint8_t)scheme, .rows = rows, .cols = cols, .group = group};
    if (scheme == MQ_SCHEME_FP8_BLOCK)
        e.seg_rows = rows;
    return e;
}

START_TEST(illegal_values_are_named_by_byte)
{
    mq_err err;
    uint8_t b[2176];
    static const struct {
        mq_scheme scheme;
        uint64_t rows, cols;
        int group, at;
        uint8_t lo, hi;
        const char *text;
    } cases[] = {
        {MQ_SCHEME_BF16, 5, 7, 0, 68, 0x80, 0x7f, "byte 68: bf16 value is not finite"},
        {MQ_SCHEME_BF16, 5, 7, 0, 0, 0xc1, 0xff, "byte 0: bf16 value is not finite"},
        {MQ_SCHEME_F16, 5, 7, 0, 2, 0x00, 0x7c, "byte 2: f16 value is not finite"},
        {MQ_SCHEME_F32, 5, 7, 0, 138, 0x80, 0xff, "byte 136: f32 value is not finite"},
        {MQ_SCHEME_FP8_BLOCK, 5, 7, 0, 33, 0x40, 0xff, "byte 34: E4M3 code is NaN"},
        {MQ_SCHEME_FP8_BLOCK, 5, 7, 0, 46, 0x00, 0x01,
         "byte 47: fill between codes and scales is not zero"},
        {MQ_SCHEME_FP8_BLOCK, 5, 7, 0, 50, 0x80, 0x7f, "byte 48: FP8 scale is not finite"},
        {MQ_SCHEME_INT4, 16, 64, 64, 512, 0x00, 0x00, "byte 512: INT4 scale 0x0000"},
        {MQ_SCHEME_INT4, 16, 64, 64, 542, 0x80, 0x7f, "byte 542: INT4 scale 0x7f80"},
        {MQ_SCHEME_INT4, 16, 128, 32, 1088, 0x7f, 0x80, "byte 1088: INT4 scale 0x807f"},
        {MQ_SCHEME_INT4, 16, 256, 128, 2080, 0xff, 0xff, "byte 2080: INT4 scale 0xffff"},
        {MQ_SCHEME_MXFP4, 16, 128, 32, 1086, 0x40, 0xff, "byte 1087: E8M0 scale is 255 (NaN)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mq_shard_entry e =
            entry_of(cases[i].scheme, cases[i].rows, cases[i].cols, (uint16_t)cases[i].group);
        mq_matrix v = mq_shard_entry_matrix(&e, NULL);
        mq_record_spec r = {.rows = v.rows, .cols = v.cols, .seg_rows = v.seg_rows};
        int64_t n = mq_record_plain_bytes(&r, cases[i].scheme, v.group);
        fill_plain(b, n, cases[i].scheme);
        mq_assert_ok(mq_shard_check_piece(&e, 0, b, n, &err), &err);
        b[cases[i].at] = cases[i].lo;
        b[cases[i].at + 1] = cases[i].hi;
        mq_assert_fails(mq_shard_check_piece(&e, 0, b, n, &err), MQ_E_FORMAT, &err, cases[i].text);
        /* In pieces the same is found at the same byte. */
        int64_t step = mq_shard_piece_bytes(&e, 16);
        mq_status st = MQ_OK;
        for (int64_t off = 0; st == MQ_OK && off < n; off += step)
            st = mq_shard_check_piece(&e, off, b + off, n - off < step ? n - off : step, &err);
        ck_assert_int_eq(st, MQ_E_FORMAT);
        ck_assert_msg(strstr(err.text, cases[i].text) != NULL, "%s", err.text);
    }
}
END_TEST

/* ---- Every bit ---- */

/* A 64 KiB shard of every scheme: each of its 524,288 single-bit flips is refused, by open or by
 * verify. */
START_TEST(every_flipped_bit_of_64_kib_is_detected)
{
    mq_err err;
    mq_shard_info info;
    const char *dir = mq_test_dir();
    mq_record_spec r[N_MIXED];
    mixed_records(r);
    mq_file_spec f = file_of(r, N_MIXED, MQ_SHARD_LAYER, "layer-001-rank-00-of-01.mqs");
    r[4].rows = r[4].full_rows = 32 * 16; /* 34816 bytes: with the others 64 KiB */
    mq_shard_writer *w;
    mq_assert_ok(mq_shard_writer_create(&w, dir, &f, 1, 0, &err), &err);
    for (int i = 0; i < N_MIXED; i++) {
        static uint8_t plain[65536];
        int64_t n = mq_record_plain_bytes(&r[i], mixed_schemes[i], 64);
        fill_plain(plain, n, mixed_schemes[i]);
        mq_assert_ok(mq_shard_writer_begin(w, i, mixed_schemes[i], 64, &err), &err);
        mq_assert_ok(mq_shard_writer_append(w, plain, n, NULL, 0, &err), &err);
        mq_assert_ok(mq_shard_writer_end(w, &err), &err);
    }
    mq_assert_ok(mq_shard_writer_commit(w, &info, &err), &err);
    mq_buf b = load(dir, info.name);
    ck_assert_int_gt(b.n_bytes, 65536 - 4096);
    ck_assert_int_lt(b.n_bytes, 65536 + 4096);
    mq_shard *s;
    uint8_t *bytes = (uint8_t *)b.data;
    mq_assert_ok(mq_shard_open_memory(&s, bytes, b.n_bytes, "flipped", &err), &err);
    mq_assert_ok(mq_shard_verify(s, &info, 0, &err), &err);
    mq_shard_close(s);
    int64_t missed = 0;
    for (int64_t bit = 0; bit < 8 * b.n_bytes; bit++) {
        bytes[bit / 8] = (uint8_t)(bytes[bit / 8] ^ 1u << bit % 8);
        mq_status st = mq_shard_open_memory(&s, bytes, b.n_bytes, "flipped", &err);
        if (st == MQ_OK)
            st = mq_shard_verify(s, &info, 0, &err);
        mq_shard_close(s);
        missed += st != MQ_E_FORMAT && st != MQ_E_HASH && st != MQ_E_UNSUPPORTED;
        bytes[bit / 8] = (uint8_t)(bytes[bit / 8] ^ 1u << bit % 8);
    }
    ck_assert_int_eq(missed, 0);
    mq_buf_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("shard");
    TCase *t = tcase_create("shard");
    tcase_add_test(t, writer_makes_the_worked_example);
    tcase_add_test(t, worked_example_reads_back_as_its_formula);
    tcase_add_test(t, every_scheme_reads_back_plain_and_compressed);
    tcase_add_test(t, compressed_records_obey_the_budget_and_have_no_ranges);
    tcase_add_test(t, plan_differences_are_named);
    tcase_add_test(t, writer_refuses_misuse_and_leaves_nothing);
    tcase_add_test(t, illegal_values_are_named_by_byte);
    tcase_add_test(t, every_flipped_bit_of_64_kib_is_detected);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
