/* The DFlash drafter against values of a second implementation (reference.safetensors), its
 * window's edge against a larger ring, and what its header promises about pieces, ranks and
 * lengths. */
#include <math.h>

#include "tests/runtime/draft_bench.h"

/* Number of elements of a reference tensor. */
static int64_t ref_count(const char *dir, const char *tensor)
{
    char path[4096];
    mq_err err;
    mq_safetensors *s;
    snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    mq_assert_ok(mq_safetensors_open(&s, path, &err), &err);
    const mq_st_tensor *t = mq_safetensors_find(s, tensor);
    ck_assert_ptr_nonnull(t);
    int64_t n = t->n_bytes / 4;
    mq_safetensors_close(s);
    return n;
}

static void check_reference(const char *name, double mean)
{
    const char *dir = ref_model(name);
    if (!dir)
        return;
    int64_t n_steps = ref_count(dir, "accept_lengths"), step = 0, total = 0;
    int32_t *text = ref_load(dir, "prompt_and_greedy", N_PROMPTS * ROW);
    int32_t *first = ref_load(dir, "first_draft", N_PROMPTS * (BLOCK - 1));
    int32_t *lengths = ref_load(dir, "accept_lengths", n_steps);
    draft_bench b;
    open_draft_bench(&b, dir, MQ_DRAFT_DFLASH, 1, 512, PROMPT);
    ck_assert_int_eq(mq_draft_most(b.d), BLOCK - 1);
    for (int p = 0; p < N_PROMPTS; p++) {
        const int32_t *ids = text + p * ROW;
        int32_t anchor = draft_prefill(&b, ids, PROMPT), guess[BLOCK];
        float confidence[BLOCK];
        mq_err err;
        ck_assert_int_eq(anchor, ids[PROMPT]);
        mq_assert_ok(mq_draft_propose(b.d, guess, confidence, anchor, BLOCK - 1, &err), &err);
        for (int i = 0; i < BLOCK - 1; i++) {
            ck_assert_msg(guess[i] == first[p * (BLOCK - 1) + i],
                          "%s: prompt %d, guess %d: %d, expected %d", name, p, i, guess[i],
                          first[p * (BLOCK - 1) + i]);
            ck_assert(confidence[i] > 0.0f && confidence[i] <= 1.0f);
        }
        for (int64_t done = 0; done < GREEDY; step++) {
            int32_t next;
            int n = draft_step(&b, anchor, BLOCK - 1, &next);
            ck_assert_int_lt(step, n_steps);
            ck_assert_msg(n == lengths[step], "%s: prompt %d, step %d: %d committed, expected %d",
                          name, p, (int)step, n, lengths[step]);
            anchor = next;
            done += n;
            total += n;
            ck_assert(done >= GREEDY || next == ids[PROMPT + done]);
        }
    }
    ck_assert_int_eq(step, n_steps);
    printf("%s: %lld steps, %.3f tokens a step\n", name, (long long)n_steps,
           (double)total / (double)n_steps);
    ck_assert_double_eq_tol((double)total / (double)n_steps, mean, 5e-4);
    free(text);
    free(first);
    free(lengths);
    close_draft_bench(&b);
}

START_TEST(nano_drafts_and_commits_as_the_reference)
{
    check_reference("nano", 2.821);
}
END_TEST

START_TEST(mini_drafts_and_commits_as_the_reference)
{
    check_reference("mini", 3.171);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("draft_dflash");
    TCase *t = tcase_create("draft_dflash");
    tcase_add_test(t, nano_drafts_and_commits_as_the_reference);
    tcase_add_test(t, mini_drafts_and_commits_as_the_reference);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
