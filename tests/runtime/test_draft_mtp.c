/* The MTP layers against values of a second implementation (reference.safetensors), and as drafters
 * of greedy verification. */
#include "runtime/draft_state.h"
#include "tests/runtime/draft_bench.h"

enum { N_SEQS = 2, SEQ = 516, SEEN = 512, N_MTP = 3 };

/* The target over the first SEEN ids of a sequence, its last residuals in b->taps. */
static void run_target(draft_bench *b, const int32_t *ids)
{
    mq_cache_truncate(b->cache, 0);
    mq_draft_reset(b->d);
    draft_target(b, ids, SEEN);
}

static void commit_rows(draft_bench *b, const int32_t *ids, int64_t row0, int64_t n)
{
    mq_err err;
    const float *features[1] = {b->taps[0] + row0 * b->m->hidden};
    mq_assert_ok(mq_draft_commit(b->d, ids + row0, features, n, &err), &err);
}

static void check_reference(const char *name)
{
    const char *dir = ref_model(name);
    if (!dir)
        return;
    draft_bench b;
    mq_err err;
    int32_t *ids = ref_load(dir, "mtp_input_ids", N_SEQS * SEQ), *want[N_MTP];
    for (int k = 0; k < N_MTP; k++) {
        char tensor[32];
        snprintf(tensor, sizeof tensor, "mtp%d_argmax", k);
        want[k] = ref_load(dir, tensor, N_SEQS * SEEN);
    }
    open_draft_bench(&b, dir, MQ_DRAFT_MTP, 1, SEQ, SEEN);
    ck_assert_int_eq(mq_draft_most(b.d), N_MTP);
    for (int s = 0; s < N_SEQS; s++) {
        const int32_t *seq = ids + s * SEQ;
        run_target(&b, seq);
        for (int p = 0; p < SEEN; p++) {
            commit_rows(&b, seq, p, 1);
            for (int k = 0; k < N_MTP; k++) {
                int32_t token;
                float confidence;
                mq_assert_ok(mq_draft_mtp_guess(b.d, &token, &confidence, k, seq + p + 1, &err),
                             &err);
                ck_assert_msg(token == want[k][s * SEEN + p],
                              "%s: sequence %d, layer %d, position %d: %d, expected %d", name, s, k,
                              p, token, want[k][s * SEEN + p]);
            }
        }
    }
    close_draft_bench(&b);
    for (int k = 0; k < N_MTP; k++)
        free(want[k]);
    free(ids);
}

START_TEST(nano_chooses_as_the_reference)
{
    check_reference("nano");
}
END_TEST

START_TEST(mini_chooses_as_the_reference)
{
    check_reference("mini");
}
END_TEST

/* Whatever is guessed, the text is the target's; and most of what is guessed is right. */
static void check_text(const char *name, double least)
{
    const char *dir = ref_model(name);
    if (!dir)
        return;
    draft_bench b;
    int32_t *text = ref_load(dir, "prompt_and_greedy", N_PROMPTS * ROW);
    int64_t n_steps = 0, total = 0;
    open_draft_bench(&b, dir, MQ_DRAFT_MTP, 1, 512, PROMPT / 4);
    for (int p = 0; p < N_PROMPTS; p++) {
        const int32_t *ids = text + p * ROW;
        int32_t anchor = draft_prefill(&b, ids, PROMPT), next;
        ck_assert_int_eq(anchor, ids[PROMPT]);
        for (int64_t done = 0; done < GREEDY; n_steps++, anchor = next) {
            int n = draft_step(&b, anchor, N_MTP, &next);
            done += n;
            total += n;
            ck_assert(done >= GREEDY || next == ids[PROMPT + done]);
        }
    }
    double mean = (double)total / (double)n_steps;
    printf("%s: %lld steps, %.3f tokens a step\n", name, (long long)n_steps, mean);
    ck_assert_double_gt(mean, least);
    free(text);
    close_draft_bench(&b);
}

START_TEST(nano_keeps_its_text)
{
    check_text("nano", 2.0);
}
END_TEST

START_TEST(mini_keeps_its_text)
{
    check_text("mini", 2.0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("draft_mtp");
    TCase *t = tcase_create("draft_mtp");
    tcase_add_test(t, nano_chooses_as_the_reference);
    tcase_add_test(t, mini_chooses_as_the_reference);
    tcase_add_test(t, nano_keeps_its_text);
    tcase_add_test(t, mini_keeps_its_text);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
