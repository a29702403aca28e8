/* The width policy: widths worked by hand, chances that follow what happens, and a simulated
 * drafter on which auto is as fast as the best fixed width. */
#include <math.h>
#include <stdio.h>

#include "runtime/width.h"
#include "tests/harness.h"

/* Seconds of proposals: the same whatever the number of guesses. */
static void set_costs(mq_width *w, const double *step_s, double draft_s)
{
    double s[MQ_WIDTH_ROWS] = {0};
    for (int n = 1; n <= w->most; n++)
        s[n] = draft_s;
    mq_width_costs(w, step_s, s);
}

static double uniform(uint64_t *state)
{
    return ((double)(mq_test_rand(state) >> 11) + 0.5) * 0x1p-53;
}

START_TEST(a_fixed_width_stays_and_keeps_to_the_room)
{
    mq_width w;
    const float sure[7] = {1, 1, 1, 1, 1, 1, 1}, none[7] = {0};
    for (int fixed = 1; fixed <= 8; fixed++) {
        mq_width_init(&w, 7, fixed);
        ck_assert_int_eq(mq_width_guesses(&w, 100), fixed - 1);
        ck_assert_int_eq(mq_width_guesses(&w, 1), 0);
        ck_assert_int_eq(mq_width_guesses(&w, 3), fixed < 3 ? fixed - 1 : 2);
        ck_assert_int_eq(mq_width_choose(&w, sure, fixed - 1), fixed);
        ck_assert_int_eq(mq_width_choose(&w, none, fixed - 1), fixed);
        for (int i = 0; i < 500; i++) /* whatever happens */
            mq_width_learn(&w, none, fixed - 1, fixed, 0, 1.0, 9.0);
        ck_assert_int_eq(mq_width_guesses(&w, 100), fixed - 1);
    }
    mq_width_init(&w, 0, 0); /* nobody guesses */
    ck_assert_int_eq(mq_width_guesses(&w, 100), 0);
    ck_assert_int_eq(mq_width_choose(&w, none, 0), 1);
}
END_TEST

/* Before anything is learnt the drafter's word counts and the pace is plain decoding's, 1 token in
 * 1 s: guess i has a row while c1 .. ci beats the cost of a row. */
START_TEST(widths_by_hand)
{
    mq_width w;
    double step_s[8];
    for (int i = 0; i < 8; i++)
        step_s[i] = 1.0 + 0.3 * i;
    mq_width_init(&w, 7, 0);
    set_costs(&w, step_s, 0.1);
    ck_assert_int_eq(mq_width_guesses(&w, 100), 7);
    ck_assert_int_eq(mq_width_guesses(&w, 4), 3);
    const float half[7] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};
    ck_assert_int_eq(mq_width_choose(&w, half, 7), 2); /* 0.5 > 0.3 > 0.25 */
    const float falling[7] = {0.9f, 0.8f, 0.7f, 0.6f, 0.6f, 0.6f, 0.6f};
    ck_assert_int_eq(mq_width_choose(&w, falling, 7), 5); /* .9 .72 .504 .3024 > .3 > .18 */
    ck_assert_int_eq(mq_width_choose(&w, falling, 2), 3); /* no more guesses than there are */
    const float low[7] = {0.29f, 1, 1, 1, 1, 1, 1};
    ck_assert_int_eq(mq_width_choose(&w, low, 7), 1); /* 0.29 seven times, a row costs 0.3 */
    const float sure[7] = {1, 1, 1, 1, 1, 1, 1};
    ck_assert_int_eq(mq_width_choose(&w, sure, 7), 8);

    /* A step of two rows may be dear and one of eight hardly dearer: look further than one row. */
    const double stairs[8] = {1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0};
    set_costs(&w, stairs, 0.1);
    ck_assert_int_eq(mq_width_choose(&w, falling, 7), 8); /* 2.9 more tokens for 1 s more */
    ck_assert_int_eq(mq_width_choose(&w, falling, 1), 1); /* 0.9 for 1 s is not worth it */

    /* More rows never cost less: a bad measurement of a shorter step is bounded by a longer one's.
     */
    const double spike[8] = {1.0, 5.0, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7};
    set_costs(&w, spike, 0.1);
    ck_assert_int_eq(mq_width_choose(&w, half, 7), 4); /* .5 > .2, .25 > 0, .125 > .1 > .0625 */
}
END_TEST

START_TEST(a_faster_pace_asks_more_of_a_guess)
{
    mq_width w;
    double step_s[8];
    for (int i = 0; i < 8; i++)
        step_s[i] = 1.0 + 0.1 * i;
    mq_width_init(&w, 7, 0);
    set_costs(&w, step_s, 0.0);
    float c[7] = {0.99f, 0.99f, 0.99f, 0.99f, 0.4f, 0.5f, 0.9f};
    ck_assert_int_eq(mq_width_choose(&w, c, 7), 8); /* at 1 token/s a row is worth 0.1 token */
    for (int i = 0; i < 400; i++)
        mq_width_learn(&w, c, 7, 5, 4, 0, 0); /* 5 tokens in 1.4 s: a row is worth 0.357 */
    ck_assert_int_eq(mq_width_choose(&w, c, 7), 6);
    c[4] = 0.3f;
    ck_assert_int_eq(mq_width_choose(&w, c, 7), 5);
}
END_TEST

/* A drafter that says 0.9 and is right half the time, at the second position never. */
START_TEST(chances_follow_what_happens_and_return_to_the_drafters_word)
{
    mq_width w;
    mq_width_init(&w, 3, 0);
    const float c[3] = {0.9f, 0.9f, 0.3f};
    ck_assert_double_eq_tol(mq_width_chance(&w, 0, 0.9f), 0.9, 1e-6);
    ck_assert_double_eq_tol(mq_width_chance(&w, 2, 0.0f), 0.0, 1e-6);
    ck_assert_double_eq_tol(mq_width_chance(&w, 2, -1.0f), 0.0, 1e-6);
    ck_assert_double_eq_tol(mq_width_chance(&w, 2, 2.0f), 1.0, 1e-6);
    for (int i = 0; i < 4000; i++)
        mq_width_learn(&w, c, 3, 4, i % 2, 0, 0);
    ck_assert_double_eq_tol(mq_width_chance(&w, 0, 0.9f), 0.5, 0.02);
    ck_assert_double_eq_tol(mq_width_chance(&w, 1, 0.9f), 0.0, 0.02);
    ck_assert_double_eq_tol(mq_width_chance(&w, 0, 0.3f), 0.3,
                            1e-6); /* another bin, never reached */
    for (int i = 0; i < 10000; i++)
        mq_width_learn(&w, c, 3, 1, 0, 0, 0); /* nothing is verified: old counts fade */
    ck_assert_double_eq_tol(mq_width_chance(&w, 1, 0.9f), 0.9, 0.02);
}
END_TEST

START_TEST(costs_follow_the_clock_but_not_an_accident)
{
    mq_width w;
    const double step_s[2] = {1.0, 1.5};
    const float c[1] = {0.8f};
    mq_width_init(&w, 1, 0);
    set_costs(&w, step_s, 0.2);
    for (int i = 0; i < 50; i++)
        mq_width_learn(&w, c, 1, 2, 1, 1.5, 0.2);
    ck_assert_double_eq_tol(w.step_s[1], 1.5, 1e-9);
    mq_width_learn(&w, c, 1, 2, 1, 1000.0, 1000.0);
    ck_assert_double_lt(w.step_s[1], 1.5 * 1.2);
    ck_assert_double_lt(w.draft_s[1], 0.2 * 1.2);
    for (int i = 0; i < 300; i++)
        mq_width_learn(&w, c, 1, 2, 1, 3.0, 0.4);
    ck_assert_double_eq_tol(w.step_s[1], 3.0, 0.01);
    ck_assert_double_eq_tol(w.draft_s[1], 0.4, 0.01);
    ck_assert_double_gt(w.step_s[0], 1.2); /* a one-row step was not seen, but things got slower */
}
END_TEST

/* ---- A simulated drafter ---- */

typedef struct world {
    double row_s, draft_s; /* a step of r rows takes 1 + row_s (r - 1) */
    double guess_s;        /* a proposal of n guesses takes draft_s + guess_s (n - 1) */
    double mean;           /* of a guess's chance; chances are u^((1 - mean) / mean) */
    bool honest;           /* confidence is the chance; otherwise it is its square root */
} world;

/* Tokens per second over many steps. */
static double simulate(const world *x, int fixed, double *share_drafted)
{
    enum { STEPS = 30000 };
    mq_width w;
    double step_s[8], draft_s[8], tokens = 0.0, s = 0.0;
    uint64_t state = 11;
    int64_t drafted = 0;
    for (int i = 0; i < 8; i++) {
        step_s[i] = 1.0 + x->row_s * i;
        draft_s[i] = i ? x->draft_s + x->guess_s * (i - 1) : 0.0;
    }
    mq_width_init(&w, 7, fixed);
    mq_width_costs(&w, step_s, draft_s);
    for (int step = 0; step < STEPS; step++) {
        float confidence[7];
        double chance[7];
        int n = mq_width_guesses(&w, 1 << 20), accepted = 0;
        for (int i = 0; i < 7; i++) {
            chance[i] = pow(uniform(&state), (1.0 - x->mean) / x->mean);
            confidence[i] = (float)(x->honest ? chance[i] : sqrt(chance[i]));
        }
        int rows = mq_width_choose(&w, confidence, n);
        while (accepted + 1 < rows && uniform(&state) < chance[accepted])
            accepted++;
        mq_width_learn(&w, confidence, n, rows, accepted, step_s[rows - 1], draft_s[n]);
        tokens += accepted + 1;
        s += step_s[rows - 1] + draft_s[n];
        drafted += n > 0;
    }
    *share_drafted = (double)drafted / STEPS;
    return tokens / s;
}

/* How much faster auto is than the best fixed width. */
static double check_world(const world *x)
{
    double best = 0.0, share;
    int at = 0;
    for (int fixed = 1; fixed <= 8; fixed++) {
        double rate = simulate(x, fixed, &share);
        at = rate > best ? fixed : at;
        best = rate > best ? rate : best;
    }
    double rate = simulate(x, 0, &share);
    ck_assert_msg(rate > 0.97 * best,
                  "chance %g, a row %g s, a draft %g s and %g s a guess: auto brings %g tokens/s, "
                  "fixed width %d %g",
                  x->mean, x->row_s, x->draft_s, x->guess_s, rate, at, best);
    return rate / best - 1.0;
}

START_TEST(auto_is_never_slower_than_the_best_fixed_width_by_more_than_3_percent)
{
    static const double means[5] = {0.05, 0.4, 0.7, 0.85, 0.97}, rows[4] = {0.02, 0.1, 0.3, 0.8};
    double worst = 1.0, best = -1.0;
    for (int m = 0; m < 5; m++)
        for (int r = 0; r < 4; r++)
            for (int k = 0; k < 8; k++) {
                world x = {rows[r], k & 1 ? 0.4 : 0.05, k & 4 ? 0.15 : 0.0, means[m], k & 2};
                double gain = check_world(&x);
                worst = fmin(worst, gain);
                best = fmax(best, gain);
            }
    printf("auto against the best fixed width: %+.1f %% to %+.1f %%\n", 100 * worst, 100 * best);
}
END_TEST

/* A proposal takes as long as one or two plain steps. */
START_TEST(a_drafter_as_large_as_the_model_costs_little)
{
    static const double means[4] = {0.02, 0.3, 0.5, 0.7};
    double worst = 1.0;
    for (int m = 0; m < 4; m++)
        for (int k = 0; k < 8; k++) {
            world x = {k & 1 ? 0.5 : 0.2, k & 2 ? 2.0 : 1.0, 0.0, means[m], k & 4};
            worst = fmin(worst, check_world(&x));
        }
    printf("a large drafter: %+.1f %%\n", 100 * worst);
    ck_assert_double_gt(worst, -0.02);
}
END_TEST

/* A drafter that is of no use and suddenly of much is found out soon. */
START_TEST(a_drafter_that_becomes_useful_is_noticed)
{
    enum { BEFORE = 6000, AFTER = 3000 };
    mq_width w;
    uint64_t state = 5;
    int drafted = 0;
    mq_width_init(&w, 7, 0);
    for (int step = 0; step < BEFORE + AFTER; step++) {
        double chance = step < BEFORE ? 0.05 : 0.9;
        float confidence[7] = {0.0f};
        int n = mq_width_guesses(&w, 1 << 20), accepted = 0;
        for (int i = 0; i < n; i++)
            confidence[i] = (float)chance;
        int rows = mq_width_choose(&w, confidence, n);
        while (accepted + 1 < rows && uniform(&state) < chance)
            accepted++;
        mq_width_learn(&w, confidence, n, rows, accepted, 1.0 + 0.1 * (rows - 1), n ? 0.5 : 0.0);
        drafted += step >= BEFORE && n > 0;
    }
    ck_assert_int_gt(drafted, AFTER / 2);
}
END_TEST

START_TEST(a_useless_drafter_is_hardly_ever_asked)
{
    world x = {0.1, 0.5, 0.0, 0.02, true};
    double share;
    simulate(&x, 0, &share);
    ck_assert_double_lt(share, 0.01);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("width");
    TCase *t = tcase_create("width");
    tcase_add_test(t, a_fixed_width_stays_and_keeps_to_the_room);
    tcase_add_test(t, widths_by_hand);
    tcase_add_test(t, a_faster_pace_asks_more_of_a_guess);
    tcase_add_test(t, chances_follow_what_happens_and_return_to_the_drafters_word);
    tcase_add_test(t, costs_follow_the_clock_but_not_an_accident);
    tcase_add_test(t, auto_is_never_slower_than_the_best_fixed_width_by_more_than_3_percent);
    tcase_add_test(t, a_drafter_as_large_as_the_model_costs_little);
    tcase_add_test(t, a_drafter_that_becomes_useful_is_noticed);
    tcase_add_test(t, a_useless_drafter_is_hardly_ever_asked);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
