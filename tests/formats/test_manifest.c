/* The manifest: what is printed reads back, the same model gives the same text, and the folder's
 * face is checked before any shard is opened.  Damage is in test_shard_damage.c. */
#include "formats/manifest.h"

#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

static char *copy(const char *s)
{
    char *c = malloc(strlen(s) + 1);
    return strcpy(c, s);
}

static void make(mq_manifest *m)
{
    memset(m, 0, sizeof *m);
    m->version = MQ_SHARD_VERSION;
    strcpy(m->tool_version, "0.1.0");
    m->n_ranks = 2;
    m->n_mtp = 3;
    m->has_draft = true;
    m->n_layers = 3;
    m->group = 64;
    m->expert_scheme[1] = MQ_SCHEME_INT4;
    m->expert_scheme[2] = MQ_SCHEME_MXFP4;
    m->recipe = (mq_recipe){.method = "search",
                            .group = 64,
                            .compress = "zstd:3",
                            .backend = "cpu",
                            .isa = "any",
                            .zstd_version = "1.5.4",
                            .seed = UINT64_MAX};
    m->source = calloc(2, sizeof *m->source);
    m->n_source = 2;
    m->source[0] = (mq_file_digest){.name = copy("config.json"), .bytes = 0};
    m->source[1] = (mq_file_digest){.name = copy("dflash/weights \"1\" \xc3\xa9.safetensors"),
                                    .bytes = INT64_MAX};
    m->shards = calloc(2, sizeof *m->shards);
    m->n_shards = 2;
    strcpy(m->shards[0].name, "common.mqs");
    strcpy(m->shards[1].name, "head-rank-00-of-01.mqs");
    for (int i = 0; i < 2; i++) {
        m->shards[i].bytes = 5000 + i;
        m->shards[i].plain_bytes = 4000 + i;
        memset(m->shards[i].sha256, 0xa0 + i, MQ_SHA256_BYTES);
        memset(m->shards[i].content, 0xb0 + i, MQ_SHA256_BYTES);
    }
    mq_manifest_digest(m);
}

START_TEST(printed_manifest_reads_back)
{
    mq_err err;
    mq_manifest m, r;
    mq_buf text = mq_buf_empty(), again = mq_buf_empty();
    make(&m);
    mq_assert_ok(mq_manifest_print(&text, &m, &err), &err);
    mq_assert_ok(mq_manifest_parse(&r, text.data, text.n_bytes, "m", &err), &err);
    ck_assert_int_eq(r.n_ranks, 2);
    ck_assert_int_eq(r.n_mtp, 3);
    ck_assert(r.has_draft);
    ck_assert_mem_eq(r.expert_scheme, m.expert_scheme, sizeof m.expert_scheme);
    ck_assert_mem_eq(&r.recipe, &m.recipe, sizeof m.recipe);
    ck_assert(r.recipe.seed == UINT64_MAX);
    ck_assert_int_eq(r.source[1].bytes, INT64_MAX);
    ck_assert_str_eq(r.source[1].name, m.source[1].name);
    ck_assert_mem_eq(r.shards, m.shards, 2 * sizeof *m.shards);
    ck_assert_mem_eq(r.content, m.content, MQ_SHA256_BYTES);
    mq_assert_ok(mq_manifest_print(&again, &r, &err), &err);
    ck_assert_int_eq(again.n_bytes, text.n_bytes);
    ck_assert_mem_eq(again.data, text.data, (size_t)text.n_bytes);
    mq_buf_release(&text);
    mq_buf_release(&again);
    mq_manifest_release(&m);
    mq_manifest_release(&r);
}
END_TEST

/* The text with one piece of it replaced, parsed without its digest. */
static mq_status parse_changed(const mq_buf *text, const char *from, const char *to, mq_err *err)
{
    mq_buf changed = mq_buf_empty();
    mq_manifest r;
    const char *at = strstr(text->data, from);
    ck_assert_ptr_nonnull(at);
    mq_buf_append(&changed, text->data, at - text->data);
    mq_buf_str(&changed, to);
    mq_buf_str(&changed, at + strlen(from));
    mq_status st = mq_manifest_parse_unhashed(&r, changed.data, changed.n_bytes, "m", err);
    mq_manifest_release(&r);
    mq_buf_release(&changed);
    return st;
}

START_TEST(a_calibrated_recipe_reads_back_and_is_checked)
{
    mq_err err;
    mq_manifest m, r;
    mq_buf text = mq_buf_empty(), again = mq_buf_empty();
    make(&m);
    strcpy(m.recipe.method, "gptq");
    m.recipe.calib = (mq_recipe_calib){.present = true, .text = {1, 2, 3}, .tokens = 1 << 20, .window = 2048,
                                       .options = "weight=1,damp=0.01", .library = "OpenBLAS 0.3.21 Haswell"};
    mq_assert_ok(mq_manifest_print(&text, &m, &err), &err);
    mq_assert_ok(mq_manifest_parse(&r, text.data, text.n_bytes, "m", &err), &err);
    ck_assert(r.recipe.calib.present && r.recipe.calib.tokens == 1 << 20 && r.recipe.calib.window == 2048);
    ck_assert_mem_eq(r.recipe.calib.text, m.recipe.calib.text, MQ_SHA256_BYTES);
    ck_assert_str_eq(r.recipe.calib.options, "weight=1,damp=0.01");
    ck_assert_str_eq(r.recipe.calib.library, "OpenBLAS 0.3.21 Haswell");
    mq_assert_ok(mq_manifest_print(&again, &r, &err), &err);
    ck_assert_str_eq(again.data, text.data);
    mq_assert_fails(parse_changed(&text, "\"tokens\": 1048576", "\"tokens\": 0", &err), MQ_E_FORMAT, &err, "'tokens'");
    mq_assert_fails(parse_changed(&text, "\"window\": 2048", "\"window\": \"2048\"", &err), MQ_E_FORMAT, &err, "'window'");
    mq_assert_fails(parse_changed(&text, "\"options\"", "\"switches\"", &err), MQ_E_FORMAT, &err, "'switches'");
    mq_buf_release(&text);
    mq_buf_release(&again);
    mq_manifest_release(&m);
    mq_manifest_release(&r);
}
END_TEST

/* SHARD.md section 10: 32 bytes of each file, in order. */
START_TEST(content_is_the_digest_of_the_shards_digests)
{
    mq_manifest m;
    uint8_t all[64], expected[MQ_SHA256_BYTES];
    make(&m);
    memset(all, 0xb0, 32);
    memset(all + 32, 0xb1, 32);
    mq_sha256_of(expected, all, 64);
    ck_assert_mem_eq(m.content, expected, sizeof expected);
    mq_manifest_release(&m);
}
END_TEST

START_TEST(every_flipped_bit_of_the_text_is_refused)
{
    mq_err err;
    mq_manifest m, r;
    mq_buf text = mq_buf_empty();
    make(&m);
    mq_assert_ok(mq_manifest_print(&text, &m, &err), &err);
    for (int64_t bit = 0; bit < 8 * text.n_bytes; bit++) {
        text.data[bit / 8] = (char)(text.data[bit / 8] ^ 1 << bit % 8);
        mq_status st = mq_manifest_parse(&r, text.data, text.n_bytes, "m", &err);
        ck_assert_msg(st == MQ_E_FORMAT || st == MQ_E_HASH, "bit %lld: %s", (long long)bit,
                      mq_status_name(st));
        mq_manifest_release(&r); /* nothing is left, and releasing it is fine */
        text.data[bit / 8] = (char)(text.data[bit / 8] ^ 1 << bit % 8);
    }
    for (int64_t n = 0; n < text.n_bytes; n++)
        ck_assert_int_eq(mq_manifest_parse(&r, text.data, n, "m", &err), MQ_E_FORMAT);
    mq_buf_release(&text);
    mq_manifest_release(&m);
}
END_TEST

START_TEST(a_folder_without_manifest_is_not_a_packed_model)
{
    mq_err err;
    mq_manifest m;
    mq_packed *p;
    const char *dir = mq_test_dir();
    mq_assert_fails(mq_manifest_load(&m, dir, &err), MQ_E_FORMAT, &err,
                    "not a packed model (no manifest.json)");
    mq_assert_fails(mq_packed_open(&p, dir, &err), MQ_E_FORMAT, &err, dir);
    ck_assert_ptr_null(p);
    mq_packed_close(NULL);
    make(&m);
    mq_assert_ok(mq_manifest_save(&m, dir, &err), &err);
    mq_manifest_release(&m);
    mq_assert_ok(mq_manifest_load(&m, dir, &err), &err);
    mq_manifest_release(&m);
    mq_assert_fails(mq_packed_open(&p, dir, &err), MQ_E_FORMAT, &err,
                    "extra: 'config.json' is not listed");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("manifest");
    TCase *t = tcase_create("manifest");
    tcase_add_test(t, printed_manifest_reads_back);
    tcase_add_test(t, a_calibrated_recipe_reads_back_and_is_checked);
    tcase_add_test(t, content_is_the_digest_of_the_shards_digests);
    tcase_add_test(t, every_flipped_bit_of_the_text_is_refused);
    tcase_add_test(t, a_folder_without_manifest_is_not_a_packed_model);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
