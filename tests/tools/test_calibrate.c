/* Calibrated conversions: the residual stream that calibration saves is, bit for bit, that of a forward pass over the finished model;
 * the same bytes whatever the threads, the memory and the restarts; every status that calibrate.h promises. */
#include "tools/calibrate.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/hidden.h"
#include "runtime/forward.h"
#include "src/file.h"
#include "src/float.h"
#include "src/tokenizer.h"
#include "tests/harness.h"
#include "tests/maker/maker.h"
#include "tools/compare.h"
#include "tools/journal.h"

static const mq_cli quiet_cli = {.tool = "test_calibrate", .usage = "", .summary = "", .quiet = true};

enum { WINDOW = 128, WINDOWS = 12 };

static char *in_dir(const char *dir, const char *name)
{
    char *path = mq_path_join(dir, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

static const mq_corpus_file *text(void)
{
    static mq_corpus_file file = {NULL, 1.0};
    if (!file.path)
        file.path = mq_test_path("tests/data/text/eval.txt");
    return &file;
}

static mq_convert_options options(const char *checkpoint, const char *out_dir)
{
    mq_convert_options o = {.checkpoint = checkpoint, .out_dir = out_dir, .group = 64, .n_threads = 2};
    o.calib = (mq_convert_calib){.files = text(), .n_files = 1, .n_tokens = WINDOW * WINDOWS, .window = WINDOW};
    o.calib.recipe = mq_calib_recipe_default(MQ_CALIB_GPTQ, 64);
    o.calib.recipe.rounds = o.calib.recipe.descent = 0; /* what an expert costs is not the matter here */
    return o;
}

/* One hash of all names and contents of a folder (dflash/ left out). */
static void folder_digest(uint8_t digest[MQ_SHA256_BYTES], const char *dir)
{
    mq_err err;
    mq_sha256 *sha;
    char **names;
    int64_t n;
    mq_assert_ok(mq_sha256_create(&sha, &err), &err);
    mq_assert_ok(mq_dir_list(&names, &n, dir, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        char *path = in_dir(dir, names[i]);
        mq_buf bytes = mq_buf_empty();
        mq_sha256_update(sha, names[i], (int64_t)strlen(names[i]));
        if (!mq_path_is_dir(path)) {
            mq_assert_ok(mq_file_load(&bytes, path, 1 << 30, &err), &err);
            mq_sha256_update(sha, bytes.data, bytes.n_bytes);
        }
        mq_buf_release(&bytes);
        free(path);
    }
    mq_dir_list_free(names, n);
    mq_sha256_finish(sha, digest);
    mq_sha256_free(sha);
}

static void convert(mq_convert_result *r, const mq_convert_options *o)
{
    mq_err err;
    mq_assert_ok(mq_convert(r, o, &quiet_cli, &err), &err);
}

/* Sound, the source's bytes where nothing was quantized, and no trace of scratch. */
static void check_model(const char *checkpoint, const char *dir)
{
    mq_err err;
    mq_packed *packed;
    mq_source *source;
    mq_comparison c;
    mq_assert_ok(mq_packed_open(&packed, dir, &err), &err);
    mq_assert_ok(mq_packed_verify(packed, 2, 256 << 20, NULL, NULL, NULL, &err), &err);
    mq_assert_ok(mq_source_open(&source, checkpoint, &err), &err);
    mq_assert_ok(mq_compare_weights(&c, source, packed, 2, INT64_MAX, NULL, NULL, NULL, &err), &err);
    ck_assert_msg(c.n_different == 0, "%s", c.first_difference);
    mq_comparison_release(&c);
    mq_source_close(source);
    mq_packed_close(packed);
}

/* ---- The invariant ---- */

/* A thread that gives the journal a second name as soon as it is there: the run removes the first at its end. */
typedef struct keeper {
    char *from, *to;
    volatile bool stop;
} keeper;

static void *keep_journal(void *ctx)
{
    keeper *k = ctx;
    while (!k->stop && link(k->from, k->to) != 0)
        usleep(200);
    return NULL;
}

static int32_t *ids_of(const char *checkpoint, int64_t window, int64_t n_windows)
{
    mq_err err;
    mq_tokenizer *tokenizer;
    mq_corpus corpus;
    char *path = in_dir(checkpoint, "tokenizer.json");
    mq_assert_ok(mq_tokenizer_open(&tokenizer, path, &err), &err);
    mq_assert_ok(mq_corpus_read(&corpus, text(), 1, tokenizer, mq_tokenizer_find(tokenizer, "<|endoftext|>"), window,
                                window * n_windows, &err),
                 &err);
    ck_assert_int_eq(corpus.n_windows, n_windows);
    int32_t *ids = corpus.ids;
    corpus.ids = NULL;
    mq_corpus_release(&corpus);
    mq_tokenizer_close(tokenizer);
    free(path);
    return ids;
}

/* One layer of a plain forward pass over all windows, cut into spans. */
static void run_layer(mq_forward *f, mq_cache *cache, int layer, float *x, int64_t hidden, int64_t window,
                      int64_t n_windows)
{
    mq_err err;
    int64_t most = MQ_CALIB_SPAN_ROWS / window;
    for (int64_t w = 0, n; w < n_windows; w += n) {
        n = n_windows - w < most ? n_windows - w : most;
        float *at = x + w * window * hidden;
        mq_assert_ok(mq_forward_attention_windows(f, MQ_FORWARD_BATCH, layer, at, n, window, cache, NULL, &err), &err);
        mq_assert_ok(mq_forward_mlp(f, MQ_FORWARD_BATCH, layer, at, n * window, NULL, NULL, &err), &err);
    }
}

/* How many streams the journal kept in keep_dir tells of; this one, behind layer, is the same. */
static int compare_stream(const mq_journal_record *journal, int layer, const float *x, int64_t n_rows, int64_t hidden,
                          const char *keep_dir)
{
    mq_err err;
    uint8_t digest[MQ_SHA256_BYTES];
    mq_hidden *h;
    int n_compared = 0;
    mq_assert_ok(mq_hidden_create(&h, keep_dir, "mine", n_rows, hidden, true, &err), &err);
    mq_assert_ok(mq_hidden_write(h, x, 0, n_rows, &err), &err);
    mq_assert_ok(mq_hidden_save(h, digest, 1, &err), &err);
    mq_hidden_close(h);
    for (int64_t i = 0; i < journal->n_layers; i++)
        if (journal->layers[i].layer == layer && journal->layers[i].has_hidden) {
            ck_assert_msg(memcmp(journal->layers[i].hidden, digest, sizeof digest) == 0, "layer %d", layer);
            n_compared++;
        }
    return n_compared;
}

/* Compare the digests in the journal with the streams of a plain forward pass over the packed model. */
static int compare_streams(const char *checkpoint, const char *packed, const char *keep_dir, int64_t window,
                           int64_t n_windows)
{
    mq_err err;
    mq_journal_record journal;
    mq_assert_ok(mq_journal_read(&journal, keep_dir, &err), &err);
    const mq_kernels *k = mq_kernels_find("cpu");
    mq_dev *dev;
    mq_store *store;
    mq_forward *f;
    mq_cache *cache;
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_assert_ok(mq_store_open(&store, packed, &(mq_store_options){.n_ranks = 1, .n_threads = 2, .check = true}, &err),
                 &err);
    const mq_model *m = mq_store_model(store);
    int64_t rows = window * n_windows, span = rows < MQ_CALIB_SPAN_ROWS ? rows : MQ_CALIB_SPAN_ROWS;
    int64_t block = span < MQ_CALIB_BLOCK_ROWS ? span : MQ_CALIB_BLOCK_ROWS;
    mq_assert_ok(mq_forward_create(&f, k, dev, store, block, span, &err), &err);
    mq_assert_ok(mq_cache_create_scratch(&cache, k, dev, m, 1, window, window, &err), &err);
    float *x = malloc((size_t)(rows * m->hidden) * sizeof *x);
    int32_t *ids = ids_of(checkpoint, window, n_windows);
    mq_assert_ok(mq_forward_embed(f, x, ids, rows, &err), &err);
    int n_compared = 0;
    for (int l = 0; l < m->n_layers; l++) {
        run_layer(f, cache, l, x, m->hidden, window, n_windows);
        n_compared += compare_stream(&journal, l, x, rows, m->hidden, keep_dir);
    }
    free(ids);
    free(x);
    mq_forward_free(f);
    mq_cache_free(cache);
    mq_store_close(store);
    k->dev_close(dev);
    mq_journal_record_release(&journal);
    return n_compared;
}

static void check_streams(const char *checkpoint, int n_ranks, bool force_int4, int64_t window, int64_t n_windows)
{
    const char *dir = mq_test_dir();
    char *out = in_dir(dir, "streams"), *kept = in_dir(dir, "kept");
    mq_err err;
    mq_assert_ok(mq_dir_create(out, &err), &err);
    mq_assert_ok(mq_dir_create(kept, &err), &err);
    keeper keep = {in_dir(out, MQ_JOURNAL_NAME), in_dir(kept, MQ_JOURNAL_NAME), false};
    unlink(keep.from);
    unlink(keep.to);
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, keep_journal, &keep), 0);
    mq_convert_options o = options(checkpoint, out);
    mq_convert_result r;
    o.overwrite = true;
    o.n_ranks = n_ranks;
    o.force_int4 = force_int4;
    o.calib.window = window;
    o.calib.n_tokens = window * n_windows;
    convert(&r, &o);
    keep.stop = true;
    pthread_join(thread, NULL);
    ck_assert_str_eq(r.method, "gptq");
    check_model(checkpoint, out);
    /* Behind the last of six layers nothing is saved. */
    ck_assert_int_eq(compare_streams(checkpoint, out, kept, window, n_windows), 5);
    free(keep.from);
    free(keep.to);
    free(out);
    free(kept);
}

START_TEST(saved_streams_are_those_of_the_finished_model)
{
    check_streams(mq_test_path("tests/data/nano"), 1, false, WINDOW, WINDOWS);
    check_streams(mq_test_path("tests/data/nano-fp8"), 2, false, WINDOW, WINDOWS);
    check_streams(mq_test_path("tests/data/nano-mxfp4"), 1, true, WINDOW, WINDOWS);
    check_streams(mq_test_path("tests/data/nano"), 2, false, 512, 66); /* two spans, the second short */
}
END_TEST

START_TEST(the_account_tells_of_every_matrix)
{
    char *out = in_dir(mq_test_dir(), "account");
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    mq_convert_result r;
    convert(&r, &o);
    for (int p = 0; p < MQ_PROJ_COUNT; p++) {
        ck_assert_double_gt(r.rel_error[p], 0.02);
        ck_assert_double_lt(r.rel_error[p], 0.3);
    }
    mq_err err;
    mq_manifest m;
    mq_assert_ok(mq_manifest_load(&m, out, &err), &err);
    ck_assert_str_eq(m.recipe.method, "gptq");
    ck_assert(m.recipe.calib.present);
    ck_assert_int_eq(m.recipe.calib.tokens, WINDOW * WINDOWS);
    ck_assert_int_eq(m.recipe.calib.window, WINDOW);
    ck_assert(strstr(m.recipe.calib.options, "act-order=on") != NULL);
    ck_assert(strstr(m.recipe.calib.library, "OpenBLAS") == m.recipe.calib.library);
    ck_assert_str_ne(m.recipe.isa, "any");
    mq_manifest_release(&m);
    free(out);
}
END_TEST

/* ---- The same bytes ---- */

/* Convert with the least budget that is accepted, to 1 MiB.  The residual stream would take more than that twice over, so
 * it lies in files. */
static void convert_tight(mq_convert_result *r, mq_convert_options o)
{
    for (o.memory_bytes = 16 << 20;; o.memory_bytes += 1 << 20) {
        mq_err err;
        mq_status st = mq_convert(r, &o, &quiet_cli, &err);
        if (st == MQ_OK)
            return;
        ck_assert_msg(st == MQ_E_NOMEM && strstr(err.text, "needs"), "%s", err.text);
    }
}

START_TEST(threads_and_memory_change_no_byte)
{
    const char *dir = mq_test_dir();
    char *out = in_dir(dir, "same");
    mq_convert_result r;
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    for (int i = 0; i < 5; i++) {
        mq_convert_options o = options(mq_test_path("tests/data/nano-fp8"), out);
        o.overwrite = true;
        o.n_threads = i == 4 ? 1 : i + 1;
        if (i == 4)
            convert_tight(&r, o);
        else
            convert(&r, &o);
        folder_digest(got, out);
        if (i == 0)
            memcpy(want, got, sizeof want);
        ck_assert_msg(memcmp(want, got, sizeof want) == 0, "run %d", i);
    }
    free(out);
}
END_TEST

/* ---- Interruptions ---- */

/* Run in a child and kill it after us microseconds (0: not); true if it ended by itself. */
static bool run_child(const mq_convert_options *o, int64_t us)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        mq_convert_result r;
        mq_err err;
        mq_status st = mq_convert(&r, o, &quiet_cli, &err);
        if (st != MQ_OK)
            fprintf(stderr, "child: %s\n", err.text);
        _exit(st != MQ_OK);
    }
    usleep((useconds_t)us);
    if (us)
        kill(pid, SIGKILL);
    int status;
    waitpid(pid, &status, 0);
    ck_assert_msg(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0), "child: %d", status);
    return WIFEXITED(status);
}

START_TEST(killed_runs_go_on_to_the_same_bytes)
{
    const char *dir = mq_test_dir(), *kills_text = getenv("MQ_KILLS");
    char *out = in_dir(dir, "killed");
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    o.resume = true;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    ck_assert(run_child(&o, 0));
    clock_gettime(CLOCK_MONOTONIC, &b);
    int64_t took_us = (b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000;
    folder_digest(want, out);
    int kills = kills_text ? atoi(kills_text) : 6, killed = 0;
    uint64_t seed = 5;
    o.overwrite = true;
    o.resume = false;
    for (int i = 0; i < 4 * kills && killed < kills; i++) {
        bool ended = run_child(&o, 1 + (int64_t)(mq_test_rand(&seed) % (uint64_t)took_us));
        killed += !ended;
        o.overwrite = false;
        o.resume = true;
        if (!ended && killed % 4)
            continue;
        ck_assert(ended || run_child(&o, 0));
        folder_digest(got, out);
        ck_assert_msg(memcmp(want, got, sizeof want) == 0, "after kill %d", killed);
        o.overwrite = true;
        o.resume = false;
    }
    ck_assert_int_eq(killed, kills);
    free(out);
}
END_TEST

/* Kill a run as soon as OUT has a file of that name. */
static void kill_at(const mq_convert_options *o, const char *name)
{
    char *path = in_dir(o->out_dir, name);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        mq_convert_result r;
        mq_err err;
        _exit(mq_convert(&r, o, &quiet_cli, &err) != MQ_OK);
    }
    int status;
    while (!mq_path_exists(path)) {
        ck_assert_msg(waitpid(pid, &status, WNOHANG) == 0, "the run ended without %s", name);
        usleep(500);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    free(path);
}

static void flip_byte(const char *dir, const char *name)
{
    char *path = in_dir(dir, name);
    FILE *f = fopen(path, "r+b");
    ck_assert_msg(f != NULL, "%s", path);
    fseek(f, 5000, SEEK_SET);
    int c = fgetc(f);
    fseek(f, 5000, SEEK_SET);
    fputc(c ^ 1, f);
    fclose(f);
    free(path);
}

/* What a crash or a hand may do to an unfinished run: the stream lost, damaged, its shards damaged, all of it. */
START_TEST(damage_costs_work_and_no_byte)
{
    const char *dir = mq_test_dir();
    char *out = in_dir(dir, "harmed");
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    ck_assert(run_child(&o, 0));
    folder_digest(want, out);
    for (int harm = 0; harm < 4; harm++) {
        o.overwrite = true;
        o.resume = false;
        kill_at(&o, harm == 3 ? "scratch-hidden-001" : "scratch-hidden-003");
        o.overwrite = false;
        o.resume = true;
        char **names;
        int64_t n;
        mq_err err;
        mq_assert_ok(mq_dir_list(&names, &n, out, &err), &err);
        for (int64_t i = 0; i < n; i++)
            if (strncmp(names[i], "scratch-hidden", 14) == 0 && !strstr(names[i], "partial")) {
                char *path = in_dir(out, names[i]);
                if (harm == 0)
                    unlink(path);
                else if (harm == 1)
                    flip_byte(out, names[i]);
                free(path);
            }
        mq_dir_list_free(names, n);
        if (harm == 2)
            flip_byte(out, "layer-001-rank-00-of-02.mqs");
        ck_assert(run_child(&o, 0));
        folder_digest(got, out);
        ck_assert_msg(memcmp(want, got, sizeof want) == 0, "harm %d", harm);
    }
    free(out);
}
END_TEST

/* Lines of the journal that hold text. */
static int journal_lines(const char *dir, const char *text)
{
    char *path = in_dir(dir, MQ_JOURNAL_NAME);
    mq_buf all = mq_buf_empty();
    mq_err err;
    mq_assert_ok(mq_file_load(&all, path, 1 << 24, &err), &err);
    int n = 0;
    for (const char *at = all.data; (at = strstr(at, text)) != NULL; at++)
        n++;
    mq_buf_release(&all);
    free(path);
    return n;
}

/* A run that lost its streams begins with the first layer; when it is killed again it goes on from where it had come to, although
 * the journal tells of later layers. */
START_TEST(a_run_that_went_back_is_not_sent_back_again)
{
    const char *dir = mq_test_dir(), *streams[] = {"scratch-hidden-003", "scratch-hidden-004"};
    char *out = in_dir(dir, "back");
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    ck_assert(run_child(&o, 0));
    folder_digest(want, out);
    o.overwrite = true;
    kill_at(&o, "scratch-hidden-004");
    for (int i = 0; i < 2; i++) {
        char *path = in_dir(out, streams[i]);
        unlink(path);
        free(path);
    }
    o.overwrite = false;
    o.resume = true;
    kill_at(&o, "scratch-hidden-001");
    ck_assert_int_eq(journal_lines(out, "{\"layer\":0,"), 2);
    kill_at(&o, "scratch-hidden-002");
    ck_assert_int_eq(journal_lines(out, "{\"layer\":0,"), 2);
    ck_assert(run_child(&o, 0));
    folder_digest(got, out);
    ck_assert_msg(memcmp(want, got, sizeof want) == 0, "other bytes");
    free(out);
}
END_TEST

/* Scale searches of this process: two an expert that is calibrated. */
static _Atomic int n_searches;

static mq_status counted_search(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                                int group, mq_err *err)
{
    n_searches++;
    return mq_kernels_find("cpu")->search_scales(dev, scale, w, omega, rows, cols, group, err);
}

/* Run in a child to the end; how many layers it calibrated, of 16 experts each. */
static int run_counted(const mq_convert_options *options)
{
    int ends[2], n = -1;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        mq_kernels counted = *mq_kernels_find("cpu");
        mq_convert_options o = *options;
        mq_convert_result r;
        mq_err err;
        counted.search_scales = counted_search;
        o.kernels = &counted;
        mq_status st = mq_convert(&r, &o, &quiet_cli, &err);
        if (st != MQ_OK)
            fprintf(stderr, "child: %s\n", err.text);
        n = st == MQ_OK ? n_searches : -1;
        _exit(write(ends[1], &n, sizeof n) != sizeof n);
    }
    close(ends[1]);
    ck_assert_int_eq(read(ends[0], &n, sizeof n), sizeof n);
    close(ends[0]);
    waitpid(pid, NULL, 0);
    ck_assert_int_ge(n, 0);
    ck_assert_int_eq(n % 32, 0);
    return n / 32;
}

/* Another digest than that of the stream behind layer 1, wherever the journal tells of it. */
static void change_digest(const char *dir)
{
    static const char start[] = "{\"layer\":1,\"hidden\":\"";
    char *path = in_dir(dir, MQ_JOURNAL_NAME);
    mq_buf all = mq_buf_empty();
    mq_err err;
    mq_assert_ok(mq_file_load(&all, path, 1 << 24, &err), &err);
    char *at = strstr(all.data, start);
    ck_assert_ptr_nonnull(at);
    at += sizeof start - 1;
    *at = *at == '0' ? '1' : '0';
    mq_assert_ok(mq_file_save(dir, MQ_JOURNAL_NAME, all.data, all.n_bytes, &err), &err);
    mq_buf_release(&all);
    free(path);
}

static void remove_streams(const char *dir)
{
    char **names;
    int64_t n;
    mq_err err;
    mq_assert_ok(mq_dir_list(&names, &n, dir, &err), &err);
    for (int64_t i = 0; i < n; i++)
        if (strncmp(names[i], MQ_HIDDEN_NAME, strlen(MQ_HIDDEN_NAME)) == 0) {
            char *path = in_dir(dir, names[i]);
            unlink(path);
            free(path);
        }
    mq_dir_list_free(names, n);
}

/* Layers whose shards are sound are not calibrated again: not behind a damaged one, unless what it leaves behind is another than
 * before, and not where only the stream was lost. */
START_TEST(sound_layers_are_not_calibrated_again)
{
    enum { SHARD = 1, TWO_SHARDS = 2, STREAMS = 4, DIGEST = 8, COMPRESSED = 16 };
    const struct {
        int harm, n_again; /* of layers 1 to 3 */
    } cases[] = {{TWO_SHARDS, 2}, {SHARD | DIGEST, 3}, {SHARD, 1}, {STREAMS, 0}, {SHARD | STREAMS, 1}, {SHARD | COMPRESSED, 1}};
    const char *dir = mq_test_dir();
    char *out = in_dir(dir, "sound");
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    size_t n_cases = getenv("MQ_TEST_SMALL") ? 2 : sizeof cases / sizeof cases[0];
    for (size_t i = 0; i < n_cases; i++) {
        int harm = cases[i].harm;
        o.zstd_level = harm & COMPRESSED ? 1 : 0;
        o.resume = false;
        if (i == 0 || o.zstd_level) {
            o.overwrite = i > 0;
            ck_assert_int_eq(run_counted(&o), 5);
            folder_digest(want, out);
        }
        o.overwrite = true;
        kill_at(&o, "scratch-hidden-004");
        int left = 2 - journal_lines(out, "{\"layer\":4,"); /* layers 4 and 5 */
        if (harm & (SHARD | TWO_SHARDS))
            flip_byte(out, "layer-001-rank-01-of-02.mqs");
        if (harm & TWO_SHARDS)
            flip_byte(out, "layer-003-rank-00-of-02.mqs");
        if (harm & STREAMS)
            remove_streams(out);
        if (harm & DIGEST)
            change_digest(out);
        o.overwrite = false;
        o.resume = true;
        int n = run_counted(&o), expected = harm & DIGEST ? 5 : cases[i].n_again + left;
        ck_assert_msg(n == expected, "case %zu: %d layers calibrated, expected %d", i, n, expected);
        folder_digest(got, out);
        ck_assert_msg(memcmp(want, got, sizeof want) == 0, "case %zu: other bytes", i);
    }
    free(out);
}
END_TEST

/* A run that is killed while it makes a damaged layer again still jumps when it goes on. */
START_TEST(a_run_that_mends_a_layer_may_be_killed)
{
    const char *dir = mq_test_dir();
    char *out = in_dir(dir, "mended");
    uint8_t want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    ck_assert(run_child(&o, 0));
    folder_digest(want, out);
    o.overwrite = true;
    kill_at(&o, "scratch-hidden-004");
    int left = 2 - journal_lines(out, "{\"layer\":4,");
    flip_byte(out, "layer-002-rank-00-of-02.mqs");
    o.overwrite = false;
    o.resume = true;
    kill_at(&o, "scratch-hidden-001");
    int n = run_counted(&o);
    ck_assert_msg(n == 1 + left, "%d layers calibrated, expected %d", n, 1 + left);
    folder_digest(got, out);
    ck_assert_msg(memcmp(want, got, sizeof want) == 0, "other bytes");
    free(out);
}
END_TEST

/* ---- The plan ---- */

/* Bytes that this process has written. */
static int64_t bytes_written(void)
{
    FILE *f = fopen("/proc/self/io", "r");
    long long n = -1;
    char line[128];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "wchar: %lld", &n) == 1)
            break;
    if (f)
        fclose(f);
    return n;
}

static int64_t folder_bytes(const char *dir)
{
    char **names;
    int64_t n, total = 0;
    mq_err err;
    mq_assert_ok(mq_dir_list(&names, &n, dir, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        char *path = in_dir(dir, names[i]);
        mq_file *file;
        if (!mq_path_is_dir(path)) {
            mq_assert_ok(mq_file_open(&file, path, &err), &err);
            total += file->n_bytes;
            mq_file_close(file);
        }
        free(path);
    }
    mq_dir_list_free(names, n);
    return total;
}

/* What a plan says of a model whose layers keep MXFP4 or become INT4 is what the run writes: shards to the byte, scratch but
 * for the journal, which is small. */
START_TEST(a_plan_for_mixed_layers_is_what_a_run_writes)
{
    const char *dir = mq_test_dir();
    char *checkpoint = in_dir(dir, "mixed"), *out = in_dir(dir, "mixed-out");
    mq_err err;
    mq_maker m;
    ck_assert(mq_maker_preset(&m, "nano"));
    m.tokenizer = mq_test_path("tests/data/nano");
    m.mx_layers = 2;
    m.mtp = m.draft_layers = 0;
    mq_assert_ok(mq_maker_write(&m, checkpoint, NULL, &err), &err);
    /* Not in the sanitizer build: its own memory counts, and grows from run to run. */
    int n_budgets = getenv("MQ_TEST_SMALL") ? 1 : 2;
    for (int tight = 0; tight < n_budgets; tight++) {
        mq_convert_options o = options(checkpoint, out);
        mq_convert_result dry, r;
        mq_convert_job job;
        mq_calibration_plan plan;
        int64_t saved;
        o.group = o.calib.recipe.group = 128; /* its codes take less than those of MXFP4 */
        o.overwrite = true;
        o.dry_run = true;
        convert(&dry, &o);
        o.dry_run = false;
        if (tight) { /* the least budget, so that nothing is written before the run that counts */
            convert_tight(&r, o);
            o.memory_bytes = r.peak_bytes + (1 << 20);
        }
        int64_t before = bytes_written();
        convert(&r, &o);
        ck_assert(before >= 0 && r.hidden_in_memory == !tight);
        ck_assert_int_eq(r.n_mxfp4_layers, 2);
        ck_assert_int_eq(r.n_int4_layers, 3);
        ck_assert_int_eq(dry.bytes_out, r.bytes_out);
        mq_assert_ok(mq_convert_job_open(&job, &o, &err), &err);
        mq_assert_ok(mq_calibration_plan_for(&plan, &job, r.calib_tokens, WINDOW, 2, o.memory_bytes, 0, 0, &err), &err);
        plan.in_memory = r.hidden_in_memory;
        int64_t written = bytes_written() - before - folder_bytes(out);
        int64_t planned = mq_calibration_scratch_writes(&saved, &job, &plan);
        ck_assert_int_eq(saved, 5 * 4 * r.calib_tokens * job.source->model.hidden);
        ck_assert_msg(written >= planned && written - planned < 256 << 10, "%lld bytes of scratch and journal, planned %lld",
                      (long long)written, (long long)planned);
        mq_convert_job_close(&job);
    }
    free(checkpoint);
    free(out);
}
END_TEST

START_TEST(another_recipe_or_text_is_refused)
{
    const char *dir = mq_test_dir();
    char *out = in_dir(dir, "refused"), *small = in_dir(dir, "small.txt");
    mq_convert_options o = options(mq_test_path("tests/data/nano"), out);
    mq_convert_result r;
    mq_err err;
    mq_assert_ok(mq_file_save(dir, "small.txt", "too little", 10, &err), &err);
    mq_corpus_file few = {small, 1.0};
    o.calib.files = &few;
    mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_ARG, &err, "token");
    o.calib.files = text();
    o.calib.window = 1 << 20;
    mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_ARG, &err, "max_position_embeddings");
    ck_assert(!mq_path_exists(out));
    o.calib.window = WINDOW;
    convert(&r, &o);
    o.resume = true;
    convert(&r, &o);
    ck_assert(r.already_complete);
    o.calib.n_tokens -= WINDOW;
    mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_EXISTS, &err, "calibration text was");
    o.calib.n_tokens += WINDOW;
    o.calib.recipe.shrink = !o.calib.recipe.shrink;
    mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_EXISTS, &err, "calibration options was");
    o.calib.n_files = 0;
    mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_EXISTS, &err, "method was gptq, now rtn");
    free(out);
    free(small);
}
END_TEST

/* ---- Numbers that overflow ---- */

/* Set one BF16 or F32 weight of a checkpoint. */
static void poke(const char *checkpoint, mq_key key, int64_t at, float value)
{
    mq_err err;
    mq_source *s;
    mq_source_tensor t;
    mq_assert_ok(mq_source_open(&s, checkpoint, &err), &err);
    mq_assert_ok(mq_source_find(&t, s, key, &err), &err);
    int64_t bytes = t.scheme == MQ_SCHEME_F32 ? 4 : 2;
    ck_assert(bytes == 4 || t.scheme == MQ_SCHEME_BF16);
    uint16_t half = mq_f32_to_bf16(value);
    int fd = open(mq_safetensors_file(t.data.file)->path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, bytes == 4 ? (void *)&value : (void *)&half, (size_t)bytes, t.data.tensor->off + at * bytes),
                     bytes);
    close(fd);
    mq_source_close(s);
}

/* Huge weights are finite, so reading takes them; the refusal names file, tensor, place, layer, expert, projection and rule. */
START_TEST(huge_weights_are_refused_by_name)
{
    mq_err err;
    mq_maker m;
    ck_assert(mq_maker_preset(&m, "nano"));
    m.files = 1;
    m.tokenizer = mq_test_path("tests/data/nano");
    char *out = in_dir(mq_test_dir(), "huge-out");
    struct {
        mq_key key;
        int64_t at;
        float value;
        const char *texts[3];
    } bad[] = {
        {{MQ_STACK_MODEL, 2, MQ_ROLE_EXPERT_UP, 3}, 7, 3e38f,
         {"/model-00001-of-00001.safetensors: tensor 'model.layers.2.mlp.experts.3.up_proj.weight': layer 2, expert 3: up: row 0, column 7",
          "expected rows whose sum of squares is finite in FP32", "its largest weight: 3.0"}},
        {{MQ_STACK_MODEL, 2, MQ_ROLE_EXPERT_DOWN, 3}, 7, 1e19f,
         {"tensor 'model.layers.2.mlp.experts.3.down_proj.weight': layer 2, expert 3: down: ", "expected finite sums",
          "in row 0, column 7"}},
        {{MQ_STACK_MODEL, 0, MQ_ROLE_DOWN, -1}, 5, 3e38f,
         {"tensor 'model.layers.0.mlp.down_proj.weight': layer 1, expert ", "the residual stream of calibration token",
          "the largest weight outside of experts so far: "}},
        {{MQ_STACK_MODEL, 3, MQ_ROLE_POST_NORM, -1}, 9, 3e38f,
         {"tensor 'model.layers.3.post_attention_layernorm.weight': layer 3, expert ", ": ", "in row 0, column 9"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char *checkpoint = in_dir(mq_test_dir(), "huge");
        mq_assert_ok(mq_maker_write(&m, checkpoint, NULL, &err), &err);
        poke(checkpoint, bad[i].key, bad[i].at, bad[i].value);
        mq_convert_options o = options(checkpoint, out);
        mq_convert_result r;
        o.overwrite = true;
        for (int k = 0; k < 3; k++)
            mq_assert_fails(mq_convert(&r, &o, &quiet_cli, &err), MQ_E_NUMERIC, &err, bad[i].texts[k]);
        free(checkpoint);
    }
    free(out);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("calibrate");
    TCase *t = tcase_create("calibrate");
    /* First: a process that has run OpenMP threads cannot fork children that do. */
    tcase_add_test(t, killed_runs_go_on_to_the_same_bytes);
    tcase_add_test(t, damage_costs_work_and_no_byte);
    tcase_add_test(t, a_run_that_went_back_is_not_sent_back_again);
    tcase_add_test(t, sound_layers_are_not_calibrated_again);
    tcase_add_test(t, a_run_that_mends_a_layer_may_be_killed);
    tcase_add_test(t, saved_streams_are_those_of_the_finished_model);
    tcase_add_test(t, the_account_tells_of_every_matrix);
    tcase_add_test(t, threads_and_memory_change_no_byte);
    tcase_add_test(t, a_plan_for_mixed_layers_is_what_a_run_writes);
    tcase_add_test(t, another_recipe_or_text_is_refused);
    tcase_add_test(t, huge_weights_are_refused_by_name);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
