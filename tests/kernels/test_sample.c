/* Sampling: hand cases, exact filters, draws against the exact distribution, and noise that depends on seed, position
 * and id alone.  Logit statistics against long double. */
#include <math.h>

#include "kernels/kernels.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *k;
static mq_dev *dev;

static int32_t draw(const float *logits, mq_sampling s, int64_t vocab, int64_t pos)
{
    int32_t token;
    ck_assert(k->sample(dev, &token, logits, &s, 1, vocab, pos, NULL) == MQ_OK);
    return token;
}

START_TEST(greedy_takes_the_lowest_id_of_the_largest)
{
    float x[70] = {0};
    mq_sampling s = {.temperature = 0.0f, .top_p = 1.0f};
    x[69] = x[33] = 2.0f;
    ck_assert_int_eq(draw(x, s, 70, 0), 33);
    ck_assert_int_eq(draw(x, s, 1, 0), 0);
    x[0] = NAN;
    ck_assert_int_eq(draw(x, s, 70, 0), 33);
    for (int i = 0; i < 70; i++)
        x[i] = NAN;
    ck_assert_int_eq(draw(x, s, 70, 0), 0);
    s.temperature = 1.0f;
    ck_assert_int_lt(draw(x, s, 70, 0), 70);
}
END_TEST

/* Chi-square of n draws at positions 0 .. n - 1 against p [vocab]; ids of p 0 must not appear. */
static void check_draws(const float *logits, mq_sampling s, const double *p, int vocab, int n)
{
    int *count = calloc((size_t)vocab, sizeof *count), freedom = -1;
    double chi = 0.0;
    for (int i = 0; i < n; i++)
        count[draw(logits, s, vocab, i)]++;
    for (int i = 0; i < vocab; i++) {
        if (p[i] == 0.0) {
            ck_assert_msg(count[i] == 0, "id %d was filtered but drawn", i);
            continue;
        }
        double d = count[i] - n * p[i];
        chi += d * d / (n * p[i]);
        freedom++;
    }
    /* mean f, deviation sqrt(2 f): five deviations */
    ck_assert_msg(chi < freedom + 5.0 * sqrt(2.0 * freedom) + 1.0, "chi-square %g with %d degrees of freedom", chi, freedom);
    free(count);
}

enum { V = 24, DRAWS = 40000 };

/* The definition: sort by logit, then id; top-k; top-p over what is left; renormalize. */
static void exact(double *p, const float *logits, mq_sampling s)
{
    int order[V], kept = s.top_k > 0 && s.top_k < V ? s.top_k : V;
    double total = 0.0, sum = 0.0;
    for (int i = 0; i < V; i++) {
        int at = i;
        for (; at > 0 && logits[i] > logits[order[at - 1]]; at--)
            order[at] = order[at - 1];
        order[at] = i;
        p[i] = 0.0;
    }
    for (int i = 0; i < kept; i++)
        total += exp((double)logits[order[i]] / (double)s.temperature);
    for (int i = 0; i < kept; i++) {
        sum += exp((double)logits[order[i]] / (double)s.temperature);
        if (sum >= (double)s.top_p * total) {
            kept = i + 1;
            break;
        }
    }
    for (int i = 0; i < kept; i++)
        p[order[i]] = exp((double)logits[order[i]] / (double)s.temperature) / (kept ? sum : 1.0);
    total = 0.0;
    for (int i = 0; i < V; i++)
        total += p[i];
    for (int i = 0; i < V; i++)
        p[i] /= total;
}

START_TEST(draws_follow_the_distribution)
{
    static const mq_sampling cases[] = {
        {1.0f, 0, 1.0f, 1},  {0.7f, 0, 1.0f, 2}, {2.0f, 5, 1.0f, 3},  {1.0f, 0, 0.8f, 4},
        {1.5f, 10, 0.5f, 5}, {1.0f, 1, 1.0f, 6}, {1.0f, 0, 1e-6f, 7}, {1.0f, 100, 0.999f, 0xfeedfacecafe},
    };
    float *logits = random_floats(V, 3);
    logits[5] = logits[9] = logits[2]; /* ties */
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        double p[V];
        exact(p, logits, cases[c]);
        check_draws(logits, cases[c], p, V, DRAWS);
    }
    free(logits);
}
END_TEST

START_TEST(tied_candidates_are_kept_by_lower_id)
{
    float x[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    mq_sampling s = {.temperature = 1.0f, .top_k = 3, .top_p = 1.0f, .seed = 9};
    int seen[8] = {0};
    for (int i = 0; i < 300; i++)
        seen[draw(x, s, 8, i)] = 1;
    ck_assert(seen[0] && seen[1] && seen[2] && !seen[3] && !seen[7]);
    s.top_k = 0;
    s.top_p = 0.5f; /* exactly four of eight */
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < 300; i++)
        seen[draw(x, s, 8, i)] = 1;
    ck_assert(seen[3] && !seen[4]);
}
END_TEST

START_TEST(a_draw_depends_on_seed_position_and_id_alone)
{
    enum { WIDE = 20001, ROWS = 6 };
    float *logits = random_floats(WIDE, 5), *rows = malloc(ROWS * WIDE * sizeof *rows);
    mq_sampling s = {.temperature = 1.0f, .top_p = 1.0f, .seed = 11};
    int32_t batch[ROWS], again[ROWS], filtered[ROWS];
    int differ = 0;
    for (int i = 0; i < ROWS; i++)
        memcpy(rows + i * WIDE, logits, WIDE * sizeof *rows);
    ck_assert(k->sample(dev, batch, rows, &s, ROWS, WIDE, 1000, NULL) == MQ_OK);
    for (int i = 0; i < ROWS; i++) {
        ck_assert_int_eq(draw(logits, s, WIDE, 1000 + i), batch[i]);
        differ += batch[i] != batch[0];
    }
    ck_assert_int_gt(differ, 0);
    /* A filter that keeps everything changes nothing; neither do threads and instruction set. */
    mq_sampling all = s;
    all.top_k = WIDE - 1;
    ck_assert(k->sample(dev, filtered, rows, &all, ROWS, WIDE, 1000, NULL) == MQ_OK);
    mq_dev *other;
    ck_assert(k->dev_open(&other, 0, 1, "scalar", NULL) == MQ_OK);
    ck_assert(k->sample(other, again, rows, &s, ROWS, WIDE, 1000, NULL) == MQ_OK);
    k->dev_close(other);
    ck_assert(!memcmp(batch, again, sizeof batch));
    ck_assert(!memcmp(batch, filtered, sizeof batch));
    s.seed = 12;
    ck_assert(k->sample(dev, again, rows, &s, ROWS, WIDE, 1000, NULL) == MQ_OK);
    ck_assert(memcmp(batch, again, sizeof batch) != 0);
    free(logits);
    free(rows);
}
END_TEST

START_TEST(top_p_over_a_flat_wide_vocabulary)
{
    enum { WIDE = 10000 };
    float *x = calloc(WIDE, sizeof *x);
    mq_sampling s = {.temperature = 1.0f, .top_p = 0.5f, .seed = 1};
    int low = 0;
    for (int i = 0; i < 200; i++) {
        int32_t t = draw(x, s, WIDE, i);
        ck_assert_int_lt(t, WIDE / 2);
        low += t < WIDE / 4;
    }
    ck_assert(low > 60 && low < 140); /* 100, deviation 7 */
    free(x);
}
END_TEST

static void check_stats(int64_t vocab, float spread)
{
    enum { ROWS = 4 };
    float *a = random_floats(ROWS * vocab, 1), *b = random_floats(ROWS * vocab, 2);
    int32_t targets[ROWS];
    mq_logit_stats st[ROWS], alone[ROWS];
    for (int64_t i = 0; i < ROWS * vocab; i++) {
        a[i] *= spread;
        b[i] = a[i] + 0.3f * b[i];
    }
    for (int i = 0; i < ROWS; i++)
        targets[i] = (int32_t)((i * 7919) % vocab);
    ck_assert(k->logit_stats(dev, st, a, b, targets, ROWS, vocab, NULL) == MQ_OK);
    ck_assert(k->logit_stats(dev, alone, a, NULL, targets, ROWS, vocab, NULL) == MQ_OK);
    for (int i = 0; i < ROWS; i++) {
        const float *ra = a + i * vocab, *rb = b + i * vocab;
        long double sa = 0, sb = 0, kl = 0;
        int ta = 0, tb = 0;
        for (int64_t j = 0; j < vocab; j++) {
            ta = ra[j] > ra[ta] ? (int)j : ta;
            tb = rb[j] > rb[tb] ? (int)j : tb;
        }
        for (int64_t j = 0; j < vocab; j++) {
            sa += expl((long double)ra[j] - (long double)ra[ta]);
            sb += expl((long double)rb[j] - (long double)rb[tb]);
        }
        long double la = logl(sa) + (long double)ra[ta], lb = logl(sb) + (long double)rb[tb];
        for (int64_t j = 0; j < vocab; j++)
            kl += expl((long double)ra[j] - la) * (((long double)ra[j] - la) - ((long double)rb[j] - lb));
        ck_assert_int_eq(st[i].top_a, ta);
        ck_assert_int_eq(st[i].top_b, tb);
        ck_assert(fabsl((long double)st[i].nll_a - (la - (long double)ra[targets[i]])) < 1e-7L);
        ck_assert(fabsl((long double)st[i].nll_b - (lb - (long double)rb[targets[i]])) < 1e-7L);
        ck_assert_msg(fabsl((long double)st[i].kl - kl) < 1e-7L, "vocab %d: kl %.9g, expected %.9Lg", (int)vocab, st[i].kl, kl);
        ck_assert(alone[i].nll_a == st[i].nll_a && alone[i].top_a == st[i].top_a);
    }
    ck_assert(k->logit_stats(dev, st, a, a, targets, ROWS, vocab, NULL) == MQ_OK);
    for (int i = 0; i < ROWS; i++)
        ck_assert(st[i].kl == 0.0);
    free(a);
    free(b);
}

START_TEST(logit_statistics_equal_long_double)
{
    static const int64_t vocabs[] = {1, 2, 15, 16, 17, 63, 64, 65, 4096, 50001};
    for (size_t i = 0; i < sizeof vocabs / sizeof vocabs[0]; i++) {
        check_stats(vocabs[i], 1.0f);
        check_stats(vocabs[i], 6.0f);
    }
}
END_TEST

START_TEST(the_top_id_has_its_probability)
{
    enum { ROWS = 3, VOCAB = 700 };
    float *x = random_floats(ROWS * VOCAB, 3), prob[ROWS], alone;
    int32_t id[ROWS], id_alone;
    x[VOCAB + 44] = x[VOCAB + 512] = 9.0f; /* equal: the lower id */
    ck_assert(k->top(dev, id, prob, x, ROWS, VOCAB, NULL) == MQ_OK);
    ck_assert_int_eq(id[1], 44);
    for (int i = 0; i < ROWS; i++) {
        const float *row = x + i * VOCAB;
        double sum = 0.0;
        for (int j = 0; j < VOCAB; j++) {
            ck_assert(row[j] <= row[id[i]]);
            sum += exp((double)row[j] - (double)row[id[i]]);
        }
        ck_assert(fabs((double)prob[i] - 1.0 / sum) < 1e-6 / sum);
        ck_assert(k->top(dev, &id_alone, &alone, row, 1, VOCAB, NULL) == MQ_OK);
        ck_assert(id_alone == id[i] && memcmp(&alone, &prob[i], sizeof alone) == 0);
    }
    /* Hostile values: an id and a value of 0 to 1 whatever comes. */
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int b = 0; b < 3; b++) {
        for (int j = 0; j < VOCAB; j++)
            x[j] = bad[b];
        x[2 * VOCAB + 5] = bad[b];
        ck_assert(k->top(dev, id, prob, x, ROWS, VOCAB, NULL) == MQ_OK);
        ck_assert_int_eq(id[0], 0);
        ck_assert(prob[0] == 0.0f);
        ck_assert(id[2] >= 0 && id[2] < VOCAB && prob[2] >= 0.0f && prob[2] <= 1.0f);
    }
    free(x);
}
END_TEST

int main(void)
{
    k = mq_kernels_find("cpu");
    if (k->dev_open(&dev, 0, 2, NULL, NULL) != MQ_OK)
        return 1;
    Suite *s = suite_create("sample");
    TCase *t = tcase_create("cpu");
    tcase_add_test(t, greedy_takes_the_lowest_id_of_the_largest);
    tcase_add_test(t, draws_follow_the_distribution);
    tcase_add_test(t, tied_candidates_are_kept_by_lower_id);
    tcase_add_test(t, a_draw_depends_on_seed_position_and_id_alone);
    tcase_add_test(t, top_p_over_a_flat_wide_vocabulary);
    tcase_add_test(t, logit_statistics_equal_long_double);
    tcase_add_test(t, the_top_id_has_its_probability);
    suite_add_tcase(s, t);
    int status = mq_test_run(s);
    k->dev_close(dev);
    return status;
}
