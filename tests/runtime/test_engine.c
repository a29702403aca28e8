/* The engine: greedy continuations of the transformers port token for token, and the promises of
 * the decode step: a row's bits depend on neither the number of rows nor what was taken back. */
#include <math.h>

#include "runtime/engine.h"
#include "tests/runtime/reference.h"

enum { N_PROMPTS = 12, PROMPT = 128, TOTAL = 224, VOCAB = 4096 };

static mq_engine *open_engine(const char *dir, int n_ranks, int64_t prefill_rows)
{
    mq_engine *e;
    mq_err err;
    mq_engine_options o = {
        .n_ranks = n_ranks, .n_threads = 2, .context = 1024, .prefill_rows = prefill_rows};
    mq_assert_ok(mq_engine_open(&e, dir, ref_kernels(), &o, &err), &err);
    return e;
}

static int32_t *prompts(const char *dir)
{
    return ref_load(dir, "prompt_and_greedy", N_PROMPTS * TOTAL);
}

static void check_greedy(const char *name, int n_ranks)
{
    const char *dir = ref_model(name);
    if (!dir)
        return;
    mq_err err;
    int32_t *all = prompts(dir);
    mq_engine *e = open_engine(dir, n_ranks, 100);
    mq_sampling greedy = {.temperature = 0.0f, .top_p = 1.0f};
    double seconds = 0.0;
    for (int p = 0; p < N_PROMPTS; p++) {
        const int32_t *ids = all + p * TOTAL;
        mq_engine_reset(e);
        mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
        double start = ref_seconds();
        for (int i = PROMPT; i < TOTAL; i++) {
            int32_t token;
            mq_assert_ok(mq_engine_sample(e, &token, 0, &greedy, &err), &err);
            ck_assert_msg(token == ids[i], "%s, prompt %d, token %d: %d, expected %d", name, p, i,
                          (int)token, (int)ids[i]);
            mq_assert_ok(mq_engine_step(e, &token, 1, &err), &err);
        }
        seconds += ref_seconds() - start;
        ck_assert_int_eq(mq_engine_length(e), TOTAL);
    }
    printf("%s, %d ranks: %d continuations equal, %.0f tokens/s\n", name, n_ranks, N_PROMPTS,
           N_PROMPTS * (TOTAL - PROMPT) / seconds);
    mq_engine_close(e);
    free(all);
}

START_TEST(greedy_text_equals_the_port)
{
    check_greedy("nano", 1);
    check_greedy("mini", 1);
}
END_TEST

START_TEST(greedy_text_of_two_ranks_equals_the_port)
{
    check_greedy("nano", 2);
}
END_TEST

/* Logits of the last row after feeding ids [n] in chunks. */
static void chunked(float *logits, const char *dir, const int32_t *ids, int64_t n, int64_t chunk)
{
    mq_err err;
    mq_engine *e = open_engine(dir, 1, chunk);
    mq_assert_ok(mq_engine_prefill(e, ids, n, &err), &err);
    mq_assert_ok(mq_engine_logits(e, logits, &err), &err);
    mq_engine_close(e);
}

/* Window 64 and chunks of 8 make a ring of 72 slots: 320 positions go around it more than four
 * times. */
START_TEST(a_ring_that_wraps_forgets_nothing_visible)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    static float whole[VOCAB], small[VOCAB];
    int32_t *ids = ref_load(dir, "input_ids", 3 * 320);
    chunked(whole, dir, ids, 320, 320);
    static const int64_t chunks[3] = {8, 13, 65};
    for (int i = 0; i < 3; i++) {
        chunked(small, dir, ids, 320, chunks[i]);
        for (int j = 0; j < VOCAB; j++)
            ck_assert_double_eq_tol((double)small[j], (double)whole[j], 1e-4);
    }
    free(ids);
}
END_TEST

/* rows [n, vocab] of a step of n ids after the prompt. */
static void step_rows(mq_engine *e, float *rows, const int32_t *ids, int n)
{
    mq_err err;
    mq_assert_ok(mq_engine_step(e, ids, n, &err), &err);
    mq_assert_ok(mq_engine_logits(e, rows, &err), &err);
}

START_TEST(a_rows_bits_do_not_depend_on_the_number_of_rows)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    static float one[8 * VOCAB], many[8 * VOCAB];
    mq_err err;
    int32_t *ids = prompts(dir);
    for (int n_ranks = 1; n_ranks <= 2; n_ranks++) {
        mq_engine *e = open_engine(dir, n_ranks, 64);
        mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
        for (int i = 0; i < 8; i++)
            step_rows(e, one + i * VOCAB, ids + PROMPT + i, 1);
        for (int n = 2; n <= 8; n++) {
            mq_engine_rollback(e, PROMPT);
            step_rows(e, many, ids + PROMPT, n);
            ck_assert_msg(memcmp(one, many, (size_t)n * VOCAB * sizeof *one) == 0,
                          "%d rows differ from single rows", n);
        }
        mq_engine_close(e);
    }
    free(ids);
}
END_TEST

/* Wrong tokens, taken back, leave no trace, also where the ring had moved on. */
START_TEST(rollback_then_redo_is_bit_equal)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    static float plain[VOCAB], redone[8 * VOCAB];
    mq_err err;
    int32_t *ids = prompts(dir), wrong[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    mq_engine *a = open_engine(dir, 1, 8), *b = open_engine(dir, 1, 8);
    mq_assert_ok(mq_engine_prefill(a, ids, PROMPT, &err), &err);
    mq_assert_ok(mq_engine_prefill(b, ids, PROMPT, &err), &err);
    for (int i = 0; i < 40; i++) {
        step_rows(a, plain, ids + PROMPT + i, 1);
        wrong[0] = ids[PROMPT + i];
        mq_assert_ok(mq_engine_step(b, wrong, 8, &err), &err);
        mq_engine_rollback(b, PROMPT + i);
        step_rows(b, redone, ids + PROMPT + i, 1);
        ck_assert_msg(memcmp(plain, redone, sizeof plain) == 0, "step %d differs", i);
    }
    mq_engine_close(a);
    mq_engine_close(b);
    free(ids);
}
END_TEST

/* A drafter that is asked after every chunk has been told of every position, one that is asked at the end only of
 * those in its reach: their guesses are the same, bit for bit. */
START_TEST(positions_out_of_reach_change_no_guess)
{
    enum { CHUNK = 40, ASKED = 7 };
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    static const int lengths[] = {200, 255, 256, 257, 520, 840, 1000};
    mq_err err;
    int32_t *ids = prompts(dir), tokens[2][ASKED];
    float confidence[2][ASKED];
    mq_engine *e[2];
    mq_engine_options o = {.n_ranks = 1, .n_threads = 2, .context = 1024, .prefill_rows = CHUNK, .draft = MQ_DRAFT_DFLASH};
    for (int k = 0; k < 2; k++)
        mq_assert_ok(mq_engine_open(&e[k], dir, ref_kernels(), &o, &err), &err);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        int n = lengths[i];
        for (int k = 0; k < 2; k++) {
            mq_engine_reset(e[k]);
            for (int at = 0; at < n; at += CHUNK) {
                int rows = n - at < CHUNK ? n - at : CHUNK;
                mq_assert_ok(mq_engine_prefill(e[k], ids + at, rows, &err), &err);
                if (k == 0)
                    mq_assert_ok(mq_engine_propose(e[k], tokens[k], confidence[k], 1, 1, &err), &err);
            }
            /* Eight rows taken back: what they had pushed out of reach is there again. */
            mq_assert_ok(mq_engine_step(e[k], ids + n, 8, &err), &err);
            mq_engine_rollback(e[k], n);
            mq_assert_ok(mq_engine_propose(e[k], tokens[k], confidence[k], ids[n], ASKED, &err), &err);
        }
        ck_assert_msg(memcmp(tokens[0], tokens[1], sizeof tokens[0]) == 0 &&
                          memcmp(confidence[0], confidence[1], sizeof confidence[0]) == 0,
                      "other guesses after %d positions", n);
    }
    for (int k = 0; k < 2; k++)
        mq_engine_close(e[k]);
    free(ids);
}
END_TEST

START_TEST(a_seeded_draw_repeats)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    mq_err err;
    int32_t *ids = prompts(dir), tokens[2][20];
    mq_engine *e = open_engine(dir, 1, 64);
    mq_sampling s = {.temperature = 1.0f, .top_k = 50, .top_p = 0.95f, .seed = 7};
    for (int run = 0; run < 2; run++) {
        mq_engine_reset(e);
        mq_assert_ok(mq_engine_prefill(e, ids, PROMPT, &err), &err);
        for (int i = 0; i < 20; i++) {
            mq_assert_ok(mq_engine_sample(e, &tokens[run][i], 0, &s, &err), &err);
            ck_assert_int_ge(tokens[run][i], 0);
            ck_assert_int_lt(tokens[run][i], VOCAB);
            mq_assert_ok(mq_engine_step(e, &tokens[run][i], 1, &err), &err);
        }
    }
    ck_assert_mem_eq(tokens[0], tokens[1], sizeof tokens[0]);
    mq_engine_close(e);
    free(ids);
}
END_TEST

START_TEST(wrong_calls_are_refused)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    mq_engine *e;
    mq_err err;
    mq_engine_options o = {.context = 5000};
    mq_assert_fails(mq_engine_open(&e, dir, ref_kernels(), &o, &err), MQ_E_ARG, &err,
                    "a context of 5000 positions, expected at most 4096");
    ck_assert_ptr_null(e);
    o = (mq_engine_options){.memory_bytes = 1 << 20};
    mq_assert_fails(mq_engine_open(&e, dir, ref_kernels(), &o, &err), MQ_E_NOMEM, &err,
                    "a budget of 1048576 bytes, but");
    o = (mq_engine_options){.n_ranks = 3};
    mq_assert_fails(mq_engine_open(&e, dir, ref_kernels(), &o, &err), MQ_E_ARG, &err, "3 ranks");
    const int twice[] = {0, 0};
    o = (mq_engine_options){.n_ranks = 2, .ordinals = twice, .n_devices = 2, .precision = MQ_PRECISION_BF16};
    mq_assert_fails(mq_engine_open(&e, dir, ref_kernels(), &o, &err), MQ_E_UNSUPPORTED, &err, "expected F32");
    o = (mq_engine_options){.n_ranks = 1};
    mq_assert_fails(mq_engine_open(&e, "/nonexistent", ref_kernels(), &o, &err), MQ_E_IO, &err,
                    "/nonexistent");

    e = open_engine(dir, 1, 64);
    int32_t ids[1025] = {0};
    ck_assert_int_eq(mq_engine_context(e), 1024);
    ck_assert_int_eq(mq_engine_model(e)->vocab, VOCAB);
    ck_assert_int_gt(mq_engine_weight_bytes(e), 8 << 20);
    mq_assert_fails(mq_engine_prefill(e, ids, 0, &err), MQ_E_ARG, &err, "an empty prompt");
    mq_assert_fails(mq_engine_prefill(e, ids, 1025, &err), MQ_E_ARG, &err,
                    "1025 tokens after 0, expected at most 1024");
    mq_assert_fails(mq_engine_step(e, ids, 9, &err), MQ_E_ARG, &err, "9 rows, expected 1 to 8");
    ids[70] = VOCAB;
    mq_assert_fails(mq_engine_prefill(e, ids, 100, &err), MQ_E_ARG, &err,
                    "token id 4096 at position 70, expected 0 to 4095");
    ck_assert_int_eq(mq_engine_length(e), 0);
    mq_engine_close(e);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine");
    TCase *t = tcase_create("engine");
    tcase_add_test(t, greedy_text_equals_the_port);
    tcase_add_test(t, greedy_text_of_two_ranks_equals_the_port);
    tcase_add_test(t, a_ring_that_wraps_forgets_nothing_visible);
    tcase_add_test(t, a_rows_bits_do_not_depend_on_the_number_of_rows);
    tcase_add_test(t, rollback_then_redo_is_bit_equal);
    tcase_add_test(t, positions_out_of_reach_change_no_guess);
    tcase_add_test(t, a_seeded_draw_repeats);
    tcase_add_test(t, wrong_calls_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
