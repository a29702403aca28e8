/* The DFlash drafter as the CUDA table's own step: against the drafter composed of single operations with BF16 products, and
 * against itself with other pieces of context and without its graphs; the window's edge, refusals.
 *
 * In the emulator, once in each order of threads, with the device's memory closed to the host; with MQ_TEST_DEVICE=cuda on
 * GPU 0, or 77 where there is none. */
#include <math.h>

#include "runtime/draft.h"
#include "src/file.h"
#include "tests/emulator/emulator.h"
#include "tests/runtime/reference.h"

enum { N_TAPS = 3, POSITIONS = 300, MOST = 7, ROWS = 8, N_LENGTHS = 9, MAX_ROWS = 32 };

/* Around chunks of 64 keys and the window of 256. */
static const int64_t lengths[N_LENGTHS] = {1, 8, 57, 64, 65, 249, 256, 264, 300};

static const mq_kernels *gpu;
static mq_kernels composed; /* gpu's table, attention in F32 whatever the precision */
static bool is_emulated;
static mq_err err;
static const mq_draft_step_options options = {.plain = false};

static mq_status exact_attention(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                                 int window, int64_t n, int64_t pos0, mq_err *e)
{
    MQ_TRY(gpu->set_precision(dev, MQ_PRECISION_F32, e));
    mq_status st = gpu->attention_block(dev, out, q, kv, n_heads, sink, window, n, pos0, e);
    MQ_TRY(gpu->set_precision(dev, MQ_PRECISION_BF16, e));
    return st;
}

typedef enum way { COMPOSED, GRAPH, PLAIN } way;

typedef struct bench {
    mq_dev *dev;
    mq_store *store;
    mq_draft *d;
    int64_t hidden;
    float *features[N_TAPS]; /* [POSITIONS, hidden], dev's memory */
} bench;

static mq_store *open_store(mq_dev *dev, int n_ranks, bool resident)
{
    mq_store *s;
    const mq_store_options o = {.resident = resident, .n_ranks = n_ranks, .n_threads = 2, .dflash = true,
                                .kernels = resident ? gpu : NULL, .dev = resident ? dev : NULL};
    mq_assert_ok(mq_store_open(&s, mq_test_path("tests/data/nano"), &o, &err), &err);
    return s;
}

/* changed: the position whose features are others; -1: none. */
static bench open_bench(way how, int n_ranks, int64_t changed)
{
    bench b = {0};
    uint64_t state = 11;
    mq_assert_ok(gpu->dev_open(&b.dev, 0, 2, NULL, &err), &err);
    mq_assert_ok(gpu->set_precision(b.dev, MQ_PRECISION_BF16, &err), &err);
    b.store = open_store(b.dev, n_ranks, true);
    b.hidden = mq_store_model(b.store)->hidden;
    mq_assert_ok(mq_draft_create(&b.d, MQ_DRAFT_DFLASH, how == COMPOSED ? &composed : gpu, b.dev, b.store, MAX_ROWS, &err), &err);
    if (how != COMPOSED)
        mq_assert_ok(mq_draft_use_step(b.d, &(mq_draft_step_options){.plain = how == PLAIN}, &err), &err);
    ck_assert(mq_draft_has_step(b.d) == (how != COMPOSED));
    int64_t count = POSITIONS * b.hidden;
    float *x = malloc((size_t)count * sizeof *x);
    for (int t = 0; t < N_TAPS; t++) {
        void *p;
        for (int64_t i = 0; i < count; i++) {
            x[i] = mq_test_normal(&state);
            x[i] = i / b.hidden == changed ? -x[i] : x[i];
        }
        mq_assert_ok(gpu->alloc(b.dev, &p, count * 4, &err), &err);
        mq_assert_ok(gpu->upload(b.dev, p, x, count * 4, &err), &err);
        b.features[t] = p;
    }
    free(x);
    return b;
}

static void close_bench(bench *b)
{
    for (int t = 0; t < N_TAPS; t++)
        gpu->release(b->dev, b->features[t]);
    mq_draft_free(b->d);
    mq_store_close(b->store);
    gpu->dev_close(b->dev);
}

typedef struct guesses {
    int32_t token[MOST];
    float confidence[MOST];
} guesses;

/* Commit up to length, piece rows at a time; with_last: the last of them together with the proposal. */
static guesses guess(bench *b, int64_t length, int64_t piece, bool with_last)
{
    static const int32_t ids[MAX_ROWS] = {0}; /* DFlash does not look at them */
    const int32_t anchor = (int32_t)(7 * length);
    guesses g;
    int64_t n = 0;
    const float *rows[N_TAPS];
    for (;;) {
        int64_t at = mq_draft_length(b->d);
        n = length - at < piece ? length - at : piece;
        for (int t = 0; t < N_TAPS; t++)
            rows[t] = b->features[t] + at * b->hidden;
        if (n == 0 || (with_last && at + n == length))
            break;
        mq_assert_ok(mq_draft_commit(b->d, ids, rows, n, &err), &err);
    }
    if (with_last)
        mq_assert_ok(mq_draft_commit_propose(b->d, g.token, g.confidence, ids, rows, n, anchor, MOST, &err), &err);
    else
        mq_assert_ok(mq_draft_propose(b->d, g.token, g.confidence, anchor, MOST, &err), &err);
    ck_assert_int_eq(mq_draft_length(b->d), length);
    return g;
}

static int n_lengths(void)
{
    return getenv("MQ_TEST_FULL") ? N_LENGTHS : 5;
}

/* Products of equal inputs, in another order: what is left are single BF16 roundings that fall the other way.  One of
 * them is 0.4 % of an input; of all lengths the worst confidence was off by 1.6 %. */
START_TEST(guesses_are_those_of_the_composed_drafter)
{
    const int n_ranks = _i + 1;
    bench a = open_bench(COMPOSED, n_ranks, -1), b = open_bench(GRAPH, n_ranks, -1);
    double worst = 0.0;
    int n_other = 0;
    for (int i = 0; i < n_lengths(); i++) {
        guesses want = guess(&a, lengths[i], MAX_ROWS, false), got = guess(&b, lengths[i], MAX_ROWS, true);
        for (int j = 0; j < MOST; j++) {
            n_other += want.token[j] != got.token[j];
            worst = fmax(worst, fabs((double)got.confidence[j] / (double)want.confidence[j] - 1.0));
        }
    }
    printf("%d ranks: confidence off by %.1e at most, %d other tokens\n", n_ranks, worst, n_other);
    ck_assert_double_lt(worst, 0.03);
    ck_assert_int_le(n_other, 1);
    close_bench(&a);
    close_bench(&b);
}
END_TEST

START_TEST(pieces_and_graphs_change_no_bit)
{
    static const struct {
        way how;
        int64_t piece;
        bool with_last;
    } ways[] = {{GRAPH, 8, true}, {GRAPH, 3, false}, {PLAIN, 8, true}, {GRAPH, 29, true}};
    bench b[4];
    for (int i = 0; i < 4; i++)
        b[i] = open_bench(ways[i].how, 2, -1);
    for (int l = 0; l < n_lengths(); l += 2) {
        guesses first = guess(&b[0], lengths[l], ways[0].piece, ways[0].with_last);
        for (int i = 1; i < 4; i++) {
            guesses other = guess(&b[i], lengths[l], ways[i].piece, ways[i].with_last);
            ck_assert_msg(!memcmp(&first, &other, sizeof first), "length %d, way %d", (int)lengths[l], i);
        }
        guesses again = guess(&b[0], lengths[l], 1, true); /* nothing to commit */
        ck_assert(!memcmp(&first, &again, sizeof first));
    }
    for (int i = 0; i < 4; i++)
        close_bench(&b[i]);
}
END_TEST

/* The anchor at 300 sees positions from 45 on. */
START_TEST(the_last_visible_position_matters_and_the_one_before_does_not)
{
    static const int64_t changed[] = {-1, 44, 45};
    guesses g[3];
    for (int i = 0; i < 3; i++) {
        bench b = open_bench(GRAPH, 1, changed[i]);
        g[i] = guess(&b, 300, MAX_ROWS, true);
        close_bench(&b);
    }
    ck_assert_mem_eq(&g[0], &g[1], sizeof g[0]);
    ck_assert_mem_ne(g[0].confidence, g[2].confidence, sizeof g[0].confidence);
}
END_TEST

START_TEST(a_reset_forgets_everything)
{
    bench b = open_bench(GRAPH, 1, -1);
    guesses first = guess(&b, 9, 8, true);
    (void)guess(&b, 40, 8, true);
    mq_draft_reset(b.d);
    guesses again = guess(&b, 9, 4, true);
    ck_assert_mem_eq(&first, &again, sizeof first);
    close_bench(&b);
}
END_TEST

START_TEST(what_has_no_step_says_why_and_stays_composed)
{
    mq_dev *dev;
    mq_draft *d;
    mq_store *s = open_store(NULL, 1, false);
    mq_assert_ok(ref_kernels()->dev_open(&dev, 0, 1, NULL, &err), &err);
    mq_assert_ok(mq_draft_create(&d, MQ_DRAFT_DFLASH, ref_kernels(), dev, s, 8, &err), &err);
    mq_assert_fails(mq_draft_use_step(d, &options, &err), MQ_E_UNSUPPORTED, &err, "cpu: no draft step of its own");
    ck_assert(!mq_draft_has_step(d));
    ck_assert_int_eq(mq_draft_step_bytes(ref_kernels(), s, MQ_DRAFT_DFLASH), 0);
    ck_assert_int_eq(mq_draft_step_bytes(gpu, s, MQ_DRAFT_MTP), 0);
    ck_assert_int_gt(mq_draft_step_bytes(gpu, s, MQ_DRAFT_DFLASH), 0);
    mq_draft_free(d);
    ref_kernels()->dev_close(dev);
    mq_store_close(s);
}
END_TEST

START_TEST(failures_of_the_device_are_reported)
{
    if (!is_emulated)
        return;
    bench b = open_bench(COMPOSED, 1, -1);
    const float *rows[N_TAPS] = {b.features[0], b.features[1], b.features[2]};
    int32_t ids[1] = {0}, token[MOST];
    float confidence[MOST];
    mq_emulator_fail_allocation(1);
    mq_assert_fails(mq_draft_use_step(b.d, &options, &err), MQ_E_NOMEM, &err, "bytes for the draft step");
    ck_assert(!mq_draft_has_step(b.d));
    mq_assert_ok(mq_draft_use_step(b.d, &(mq_draft_step_options){.plain = true}, &err), &err);
    mq_emulator_fail_launch(1);
    mq_assert_fails(mq_draft_commit_propose(b.d, token, confidence, ids, rows, 1, 5, MOST, &err), MQ_E_DEVICE, &err,
                    "cuda 0: draft begin: ");
    ck_assert_int_eq(mq_draft_length(b.d), 0);
    mq_assert_fails(mq_draft_commit_propose(b.d, token, confidence, ids, rows, 0, 5, MOST, &err), MQ_E_ARG, &err,
                    "before the first committed position");
    mq_assert_ok(mq_draft_commit_propose(b.d, token, confidence, ids, rows, 1, 5, MOST, &err), &err);
    close_bench(&b);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda_draft");
    TCase *t = tcase_create("all");
    tcase_add_loop_test(t, guesses_are_those_of_the_composed_drafter, 0, 2);
    tcase_add_test(t, pieces_and_graphs_change_no_bit);
    tcase_add_test(t, the_last_visible_position_matters_and_the_one_before_does_not);
    tcase_add_test(t, a_reset_forgets_everything);
    tcase_add_test(t, what_has_no_step_says_why_and_stays_composed);
    tcase_add_test(t, failures_of_the_device_are_reported);
    suite_add_tcase(s, t);
    return s;
}

int main(void)
{
    const char *device = getenv("MQ_TEST_DEVICE");
    is_emulated = !device || strcmp(device, "cuda");
    gpu = is_emulated ? &mq_cuda_emulated_kernels : mq_kernels_find("cuda");
    if (!gpu || (!is_emulated && mq_cuda_count() == 0)) {
        printf("SKIPPED: no GPU\n");
        return MQ_TEST_SKIP;
    }
    composed = *gpu;
    composed.attention_block = exact_attention;
    mq_emulator_guard_memory(true);
    int status = mq_test_run(suite());
    if (is_emulated && status == 0) {
        printf("backwards\n");
        mq_emulator_run_backwards(true);
        status = mq_test_run(suite());
    }
    return status;
}
