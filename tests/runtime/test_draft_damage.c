/* Drafters that do not fit are refused by name: copies of nano whose dflash folder is damaged in
 * one place each. */
#include <limits.h>
#include <sys/stat.h>

#include "runtime/draft.h"
#include "src/dtype.h"
#include "src/file.h"
#include "tests/maker/maker_parts.h"
#include "tests/runtime/reference.h"

enum { MAX_HEADER = 1 << 20 };

static const char CONFIG[] = "config.json", TENSORS[] = "dflash_draft_model.safetensors",
                  MASK[] = "mask_embedding.pt";

/* A whole file; the caller frees it. */
static char *slurp(const char *path, size_t *n_bytes)
{
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s", path);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    *n_bytes = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*n_bytes + 1);
    ck_assert_ptr_nonnull(text);
    ck_assert_uint_eq(fread(text, 1, *n_bytes, f), *n_bytes);
    text[*n_bytes] = 0;
    fclose(f);
    return text;
}

static void spill(const char *path, const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    FILE *f = fopen(path, "wb");
    ck_assert_msg(f != NULL, "%s", path);
    ck_assert_uint_eq(fwrite(a, 1, a_bytes, f), a_bytes);
    ck_assert_uint_eq(fwrite(b, 1, b_bytes, f), b_bytes);
    ck_assert_int_eq(fclose(f), 0);
}

/* text with the first find replaced by put, room for more; the caller frees it. */
static char *replaced(const char *text, const char *find, const char *put)
{
    const char *at = strstr(text, find);
    ck_assert_msg(at != NULL, "'%s' is not there", find);
    char *out = calloc(strlen(text) + strlen(put) + 64, 1);
    ck_assert_ptr_nonnull(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, put, at + strlen(find));
    return out;
}

/* dir/dflash/file as in nano, with find replaced by put: in the text, or in a safetensors header.
 */
static void edit(const char *dir, const char *nano, const char *file, const char *find,
                 const char *put)
{
    char from[PATH_MAX], to[PATH_MAX];
    size_t n_bytes;
    snprintf(from, sizeof from, "%s/dflash/%s", nano, file);
    snprintf(to, sizeof to, "%s/dflash/%s", dir, file);
    char *all = slurp(from, &n_bytes);
    unlink(to);
    if (file != TENSORS) {
        char *out = replaced(all, find, put);
        spill(to, out, strlen(out), "", 0);
        free(out);
    } else {
        uint64_t head;
        memcpy(&head, all, 8);
        ck_assert_uint_lt(head, MAX_HEADER);
        char *data = all + 8 + head, *text = strndup(all + 8, head), *out;
        out = replaced(text, find, put);
        uint64_t padded = (uint64_t)mq_round_up((int64_t)strlen(out), 8);
        memset(out + strlen(out), ' ', padded - strlen(out)); /* calloc'ed beyond */
        char *both = malloc(8 + padded);
        memcpy(both, &padded, 8);
        memcpy(both + 8, out, padded);
        spill(to, both, 8 + padded, data, n_bytes - 8 - head);
        free(both);
        free(out);
        free(text);
    }
    free(all);
}

/* A folder of links to nano's files, dflash included; the caller frees its path. */
static char *copy_of(const char *nano)
{
    static const char *const below[] = {"", "/dflash"};
    static int n_copies = 0;
    mq_err err;
    char *dir = malloc(PATH_MAX), from[PATH_MAX], to[PATH_MAX];
    snprintf(dir, PATH_MAX, "%s/copy%d", mq_test_dir(), n_copies++);
    for (int i = 0; i < 2; i++) {
        char **names;
        int64_t n;
        snprintf(from, sizeof from, "%s%s", nano, below[i]);
        snprintf(to, sizeof to, "%s%s", dir, below[i]);
        ck_assert_int_eq(mkdir(to, 0700), 0);
        mq_assert_ok(mq_dir_list(&names, &n, from, &err), &err);
        for (int64_t k = 0; k < n; k++) {
            snprintf(from, sizeof from, "%s%s/%s", nano, below[i], names[k]);
            snprintf(to, sizeof to, "%s%s/%s", dir, below[i], names[k]);
            if (strcmp(names[k], "dflash") != 0)
                ck_assert_int_eq(symlink(from, to), 0);
        }
        mq_dir_list_free(names, n);
    }
    return dir;
}

typedef struct damage {
    const char *file, *find, *put;
    mq_status status;
    const char *file_named, *what; /* both in the text */
} damage;

static const damage DAMAGES[] = {
    /* hidden size */
    {CONFIG, "\"hidden_size\": 128", "\"hidden_size\": 256", MQ_E_SHAPE, "dflash/config.json",
     "hidden_size: 256, expected the target's hidden_size = 128"},
    {TENSORS, "\"hidden_norm.weight\":{\"dtype\":\"BF16\",\"shape\":[128]",
     "\"hidden_norm.weight\":{\"dtype\":\"BF16\",\"shape\":[2,64]", MQ_E_SHAPE,
     "dflash_draft_model.safetensors",
     "tensor 'hidden_norm.weight': shape [2, 64], expected [128]"},
    /* layer ids */
    {CONFIG, "   5\n", "   6\n", MQ_E_FORMAT, "dflash/config.json",
     "target_layer_ids[2]: 6, expected 0 to 5"},
    {CONFIG, "   0,\n", "   -1,\n", MQ_E_FORMAT, "dflash/config.json",
     "target_layer_ids[0]: -1, expected 0 to 5"},
    {CONFIG, "   3,\n", "", MQ_E_SHAPE, "dflash_draft_model.safetensors", "2 target_layer_ids: "},
    {CONFIG, "   3,\n", "", MQ_E_SHAPE, "dflash_draft_model.safetensors",
     "tensor 'fc.weight': shape [128, 384], expected [128, 256]"},
    {CONFIG, "\"num_target_layers\": 6", "\"num_target_layers\": 48", MQ_E_SHAPE,
     "dflash/config.json", "num_target_layers: 48, expected the target's num_hidden_layers = 6"},
    /* mask id */
    {CONFIG, "\"mask_token_id\": 4093", "\"mask_token_id\": 4096", MQ_E_FORMAT,
     "dflash/config.json", "mask_token_id: 4096, expected 0 to 4095"},
    {CONFIG, "\"mask_token_id\": 4093", "\"mask_token_id\": 4092", MQ_E_SHAPE,
     "dflash/mask_embedding.pt", "mask_token_id 4093, the drafter's config says 4092"},
    {MASK, NULL, "4090", MQ_E_SHAPE, "dflash/mask_embedding.pt",
     "mask_token_id 4090, the drafter's config says 4093"},
    {MASK, NULL, "", MQ_E_IO, "dflash/mask_embedding.pt", ""},
    /* sinks */
    {TENSORS, "layers.1.self_attn.attention_sink_bias", "layers.1.self_attn.attention_sink_bios",
     MQ_E_FORMAT, "dflash",
     "tensor 'layers.1.self_attn.attention_sink_bias': missing, the configuration asks for it"},
    {TENSORS, "layers.2.self_attn.attention_sink_bias\":{\"dtype\":\"BF16\",\"shape\":[8]",
     "layers.2.self_attn.attention_sink_bias\":{\"dtype\":\"BF16\",\"shape\":[4,2]", MQ_E_SHAPE,
     "dflash_draft_model.safetensors",
     "tensor 'layers.2.self_attn.attention_sink_bias': shape [4, 2], expected [8]"},
    {CONFIG, "\"attention_sink_bias\": true", "\"attention_sink_bias\": false", MQ_E_UNSUPPORTED,
     "dflash_draft_model.safetensors",
     "tensor 'layers.0.self_attn.attention_sink_bias': not a tensor of this model as its "
     "configuration describes it"},
};

/* mask_embedding.pt with another id, or none at all. */
static void put_mask(const char *dir, const char *id)
{
    char to[PATH_MAX];
    snprintf(to, sizeof to, "%s/dflash/%s", dir, MASK);
    unlink(to);
    if (!*id)
        return;
    uint16_t embedding[128] = {0x3f80};
    mq_buf pt = mq_buf_empty();
    maker_mask_pt(&pt, atoi(id), embedding, 128);
    spill(to, (const char *)pt.data, (size_t)pt.n_bytes, "", 0);
    mq_buf_release(&pt);
}

START_TEST(a_drafter_that_does_not_fit_is_refused_by_name)
{
    const char *nano = ref_model("nano");
    mq_store_options options = {.n_ranks = 1, .n_threads = 1, .dflash = true, .mtp = true};
    for (size_t i = 0; nano && i < sizeof DAMAGES / sizeof DAMAGES[0]; i++) {
        const damage *d = &DAMAGES[i];
        char *dir = copy_of(nano);
        mq_err err;
        mq_store *s;
        mq_assert_ok(mq_store_open(&s, dir, &options, &err), &err); /* the copy is sound */
        mq_store_close(s);
        if (d->file == MASK)
            put_mask(dir, d->put);
        else
            edit(dir, nano, d->file, d->find, d->put);
        mq_assert_fails(mq_store_open(&s, dir, &options, &err), d->status, &err, d->what);
        ck_assert_msg(strstr(err.text, d->file_named) != NULL, "'%s' lacks '%s'", err.text,
                      d->file_named);
        ck_assert_ptr_null(s);
        free(dir);
    }
}
END_TEST

START_TEST(a_window_narrower_than_the_block_is_refused)
{
    const char *nano = ref_model("nano");
    if (!nano)
        return;
    char *dir = copy_of(nano);
    char from[PATH_MAX], to[PATH_MAX];
    size_t n_bytes;
    mq_err err;
    mq_store *s;
    mq_draft *d;
    mq_store_options options = {.n_ranks = 1, .n_threads = 1, .dflash = true};
    mq_dev *dev = ref_dev(1);
    snprintf(from, sizeof from, "%s/dflash/%s", nano, CONFIG);
    snprintf(to, sizeof to, "%s/dflash/%s", dir, CONFIG);
    char *text = slurp(from, &n_bytes);
    char *once = replaced(text, "\"sliding_window\": 256", "\"sliding_window\": 7");
    char *twice = replaced(once, "\"swa_window_size\": 256", "\"swa_window_size\": 7");
    unlink(to);
    spill(to, twice, strlen(twice), "", 0);
    mq_assert_ok(mq_store_open(&s, dir, &options, &err), &err);
    ck_assert_int_eq(mq_draft_bytes(s, MQ_DRAFT_DFLASH, 8), 0);
    mq_assert_fails(mq_draft_create(&d, MQ_DRAFT_DFLASH, ref_kernels(), dev, s, 8, &err),
                    MQ_E_UNSUPPORTED, &err,
                    "dflash/config.json: sliding_window: 7, only windows of at least the "
                    "block_size of 8 are supported");
    mq_store_close(s);
    ref_kernels()->dev_close(dev);
    free(dir);
    free(text);
    free(once);
    free(twice);
}
END_TEST

START_TEST(a_model_without_a_drafter_says_so)
{
    const char *nano = ref_model("nano");
    if (!nano)
        return;
    char *dir = copy_of(nano);
    char path[PATH_MAX];
    mq_err err;
    mq_store *s;
    mq_draft *d;
    mq_store_options options = {.n_ranks = 1, .n_threads = 1, .dflash = true};
    mq_dev *dev = ref_dev(1);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/dflash/%s", dir, i == 0 ? CONFIG : i == 1 ? TENSORS : MASK);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/dflash", dir);
    ck_assert_int_eq(rmdir(path), 0);
    mq_assert_ok(mq_store_open(&s, dir, &options, &err), &err);
    ck_assert(!mq_draft_available(s, MQ_DRAFT_DFLASH) && mq_draft_available(s, MQ_DRAFT_MTP));
    mq_assert_fails(mq_draft_create(&d, MQ_DRAFT_DFLASH, ref_kernels(), dev, s, 8, &err),
                    MQ_E_UNSUPPORTED, &err, "the model has no DFlash drafter");
    mq_store_close(s);
    ref_kernels()->dev_close(dev);
    free(dir);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("draft_damage");
    TCase *t = tcase_create("draft_damage");
    tcase_add_test(t, a_drafter_that_does_not_fit_is_refused_by_name);
    tcase_add_test(t, a_window_narrower_than_the_block_is_refused);
    tcase_add_test(t, a_model_without_a_drafter_says_so);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
