/* Whole models on the CUDA table against the CPU: perplexity of every storage, streamed, and an engine that writes text.
 *
 * In the emulator the device's memory is closed to the host outside kernels and copies, so a pointer taken for
 * the wrong side ends the program or fails a launch.  With MQ_TEST_DEVICE=cuda on GPU 0, or 77 where there is none. */
#include <math.h>

#include "runtime/engine.h"
#include "runtime/perplexity.h"
#include "tests/emulator/emulator.h"
#include "tests/runtime/reference.h"

enum { WINDOW = 24, WINDOWS = 1, N_IDS = WINDOW * WINDOWS + 1, PROMPT = 18, N_TEXT = 5 };

static const mq_kernels *gpu;
static mq_err err;

static mq_quality measure(const mq_kernels *k, const char *a, const char *b, const int32_t *ids)
{
    mq_dev *dev;
    mq_quality q;
    mq_store *sa, *sb = NULL;
    mq_quality_options o = {.window = WINDOW, .n_windows = WINDOWS, .memory_bytes = (int64_t)1 << 30};
    mq_assert_ok(k->dev_open(&dev, 0, 2, NULL, &err), &err);
    mq_store_options so = {.n_ranks = 1, .n_threads = 2, .kernels = k, .dev = dev};
    mq_assert_ok(mq_store_open(&sa, a, &so, &err), &err);
    if (b)
        mq_assert_ok(mq_store_open(&sb, b, &so, &err), &err);
    mq_assert_ok(mq_quality_run(&q, k, dev, sa, sb, ids, N_IDS, &o, &err), &err);
    mq_store_close(sa);
    mq_store_close(sb);
    k->dev_close(dev);
    return q;
}

static void ids_of(int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(17 + i * i * 31 % 900);
}

START_TEST(perplexity_is_the_cpus)
{
    static const char *const names[][2] = {{"nano", "nano-fp8"}, {"nano-mxfp4", NULL}};
    int32_t ids[N_IDS];
    ids_of(ids, N_IDS);
    for (int i = 0; i < 2; i++) {
        const char *a = ref_model(names[i][0]), *b = names[i][1] ? ref_model(names[i][1]) : NULL;
        if (!a || (names[i][1] && !b))
            continue;
        mq_quality want = measure(ref_kernels(), a, b, ids), got = measure(gpu, a, b, ids);
        for (int w = 0; w < WINDOWS; w++) {
            const mq_window_result *x = &want.windows[w], *y = &got.windows[w];
            ck_assert_msg(fabs(x->nll_a - y->nll_a) < 1e-5 && fabs(x->kl - y->kl) < 1e-6,
                          "%s window %d: nll %.9f, expected %.9f; kl %.9f, expected %.9f", names[i][0], w, y->nll_a,
                          x->nll_a, y->kl, x->kl);
        }
        mq_quality_release(&want);
        mq_quality_release(&got);
    }
}
END_TEST

/* Greedy text after a prompt that ends inside a window. */
static void write_text(const mq_kernels *k, const char *dir, mq_draft_kind draft, int32_t *out)
{
    mq_engine *e;
    mq_engine_options o = {.n_threads = 2, .context = 64, .prefill_rows = 16, .draft = draft};
    mq_sampling greedy = {0, 0, 1, 0};
    int32_t ids[PROMPT], token, guess[3];
    float sure[3];
    ids_of(ids, PROMPT);
    mq_assert_ok(mq_engine_open(&e, dir, k, &o, &err), &err);
    mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
    mq_assert_ok(mq_engine_sample(e, &token, 0, &greedy, &err), &err);
    for (int i = 0; i < N_TEXT; i++) {
        out[i] = token;
        if (draft != MQ_DRAFT_NONE && i == 2) {
            mq_assert_ok(mq_engine_propose(e, guess, sure, token, 3, &err), &err);
            for (int g = 0; g < 3; g++)
                ck_assert(sure[g] >= 0.0f && sure[g] <= 1.0f);
            memcpy(out + N_TEXT, guess, sizeof guess);
        }
        mq_assert_ok(mq_engine_step(e, &token, 1, &err), &err);
        mq_assert_ok(mq_engine_sample(e, &token, 0, &greedy, &err), &err);
    }
    mq_engine_close(e);
}

START_TEST(an_engine_writes_the_same_text)
{
    static const mq_draft_kind kinds[] = {MQ_DRAFT_DFLASH, MQ_DRAFT_MTP};
    const char *dir = ref_model("nano");
    for (int i = 0; dir && i < 2; i++) {
        int32_t want[N_TEXT + 3] = {0}, got[N_TEXT + 3] = {0};
        write_text(ref_kernels(), dir, kinds[i], want);
        write_text(gpu, dir, kinds[i], got);
        ck_assert_msg(!memcmp(want, got, sizeof want), "drafter %d: other tokens", i);
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
    mq_emulator_guard_memory(true);
    Suite *s = suite_create("cuda_model");
    TCase *t = tcase_create("all");
    tcase_add_test(t, perplexity_is_the_cpus);
    tcase_add_test(t, an_engine_writes_the_same_text);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
