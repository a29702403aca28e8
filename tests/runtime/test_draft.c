/* What runtime/draft.h promises of both kinds of drafters, on random features: pieces, lengths,
 * ranks, residency, sizes and refusals. */
#include <math.h>

#include "tests/runtime/draft_bench.h"

enum { POSITIONS = 600, N_KINDS = 2 };

static const mq_draft_kind KINDS[N_KINDS] = {MQ_DRAFT_DFLASH, MQ_DRAFT_MTP};

/* A drafter on features of its own, no target. */
typedef struct lone {
    const mq_kernels *k;
    mq_dev *dev;
    mq_store *store;
    const mq_model *m;
    mq_draft *d;
    int n_taps;
} lone;

static void open_lone(lone *l, const char *dir, mq_draft_kind kind, int n_ranks, bool resident,
                      int64_t max_rows)
{
    mq_err err;
    const int *layers;
    l->k = ref_kernels();
    l->dev = ref_dev(2);
    l->store = draft_store(dir, n_ranks, resident);
    l->m = mq_store_model(l->store);
    mq_assert_ok(mq_draft_create(&l->d, kind, l->k, l->dev, l->store, max_rows, &err), &err);
    ck_assert(mq_draft_kind_of(l->d) == kind);
    l->n_taps = mq_draft_taps(l->d, &layers);
}

static void close_lone(lone *l)
{
    mq_draft_free(l->d);
    mq_store_close(l->store);
    l->k->dev_close(l->dev);
}

/* Features and tokens of POSITIONS positions. */
typedef struct text {
    float *features[MQ_MAX_TAPS];
    int32_t ids[POSITIONS];
} text;

static void make_text(text *t, const mq_model *m)
{
    uint64_t state = 7;
    for (int i = 0; i < MQ_MAX_TAPS; i++)
        t->features[i] = NULL;
    for (int i = 0; i < 3; i++) {
        t->features[i] = malloc((size_t)(POSITIONS * m->hidden) * sizeof(float));
        for (int64_t j = 0; j < (int64_t)POSITIONS * m->hidden; j++)
            t->features[i][j] = mq_test_normal(&state);
    }
    for (int i = 0; i < POSITIONS; i++)
        t->ids[i] = (int32_t)(mq_test_rand(&state) % (uint64_t)m->vocab);
}

static void free_text(text *t)
{
    for (int i = 0; i < MQ_MAX_TAPS; i++)
        free(t->features[i]);
}

/* Commit rows row0 .. row0 + n - 1 of t. */
static void commit(lone *l, const text *t, int64_t row0, int64_t n)
{
    mq_err err;
    const float *features[MQ_MAX_TAPS];
    for (int i = 0; i < l->n_taps; i++)
        features[i] = t->features[i] + row0 * l->m->hidden;
    ck_assert_int_eq(mq_draft_length(l->d), row0);
    mq_assert_ok(mq_draft_commit(l->d, t->ids + row0, features, n, &err), &err);
    ck_assert_int_eq(mq_draft_length(l->d), row0 + n);
}

typedef struct guesses {
    int32_t tokens[MQ_DRAFT_MOST];
    float confidence[MQ_DRAFT_MOST];
} guesses;

static guesses propose(lone *l, int32_t anchor, int n)
{
    mq_err err;
    guesses g = {{0}, {0}};
    mq_assert_ok(mq_draft_propose(l->d, g.tokens, g.confidence, anchor, n, &err), &err);
    return g;
}

START_TEST(pieces_and_guesses_between_change_no_bit)
{
    const char *dir = ref_model("nano");
    for (int k = 0; dir && k < N_KINDS; k++) {
        lone a, b; /* in pieces with a small ring; at once with a large one */
        text t;
        uint64_t state = 3;
        open_lone(&a, dir, KINDS[k], 1, true, 8);
        open_lone(&b, dir, KINDS[k], 1, true, POSITIONS);
        make_text(&t, a.m);
        int most = mq_draft_most(a.d), n_checked = 0;
        for (int64_t pos = 0; pos < POSITIONS;) {
            int64_t n = 1 + (int64_t)(mq_test_rand(&state) % 8);
            n = n < POSITIONS - pos ? n : POSITIONS - pos;
            commit(&a, &t, pos, n);
            pos += n;
            /* Guesses after a token that will not be committed, and of any length. */
            propose(&a, (int32_t)(mq_test_rand(&state) % (uint64_t)a.m->vocab),
                    1 + (int)(mq_test_rand(&state) % (uint64_t)most));
            if (pos % 7 != 0 && pos != POSITIONS)
                continue;
            mq_draft_reset(b.d);
            commit(&b, &t, 0, pos);
            guesses in_pieces = propose(&a, t.ids[pos - 1], most);
            guesses at_once = propose(&b, t.ids[pos - 1], most);
            ck_assert_msg(memcmp(&in_pieces, &at_once, sizeof at_once) == 0, "kind %d, position %d",
                          k, (int)pos);
            n_checked++;
        }
        ck_assert_int_gt(n_checked, 5);
        free_text(&t);
        close_lone(&a);
        close_lone(&b);
    }
}
END_TEST

START_TEST(fewer_guesses_are_the_first_of_more)
{
    const char *dir = ref_model("nano");
    for (int k = 0; dir && k < N_KINDS; k++) {
        lone l;
        text t;
        open_lone(&l, dir, KINDS[k], 1, true, 100);
        make_text(&t, l.m);
        commit(&l, &t, 0, 100);
        int most = mq_draft_most(l.d);
        ck_assert_int_eq(most, KINDS[k] == MQ_DRAFT_DFLASH ? 7 : 3);
        guesses all = propose(&l, 17, most);
        for (int n = most; n >= 1; n--) {
            guesses few = propose(&l, 17, n);
            ck_assert_mem_eq(few.tokens, all.tokens, (size_t)n * sizeof few.tokens[0]);
            ck_assert_mem_eq(few.confidence, all.confidence, (size_t)n * sizeof(float));
        }
        free_text(&t);
        close_lone(&l);
    }
}
END_TEST

START_TEST(streaming_equals_resident)
{
    const char *dir = ref_model("nano");
    for (int k = 0; dir && k < N_KINDS; k++)
        for (int ranks = 1; ranks <= 2; ranks++) {
            guesses g[2];
            for (int resident = 0; resident < 2; resident++) {
                lone l;
                text t;
                open_lone(&l, dir, KINDS[k], ranks, resident, 90);
                make_text(&t, l.m);
                commit(&l, &t, 0, 90);
                propose(&l, 5, 1);
                commit(&l, &t, 90, 3);
                g[resident] = propose(&l, 6, mq_draft_most(l.d));
                free_text(&t);
                close_lone(&l);
            }
            ck_assert(memcmp(&g[0], &g[1], sizeof g[0]) == 0);
        }
}
END_TEST

/* The same text on several ranks: sums in another order, so close and not equal. */
START_TEST(ranks_agree)
{
    const char *dir = ref_model("nano");
    for (int k = 0; dir && k < N_KINDS; k++) {
        lone one, two;
        text t;
        open_lone(&one, dir, KINDS[k], 1, true, 50);
        open_lone(&two, dir, KINDS[k], 2, true, 50);
        make_text(&t, one.m);
        for (int64_t pos = 0; pos < POSITIONS; pos += 50) {
            commit(&one, &t, pos, 50);
            commit(&two, &t, pos, 50);
            guesses a = propose(&one, t.ids[pos], mq_draft_most(one.d));
            guesses b = propose(&two, t.ids[pos], mq_draft_most(two.d));
            for (int i = 0; i < mq_draft_most(one.d); i++) {
                ck_assert_int_eq(a.tokens[i], b.tokens[i]);
                ck_assert_float_eq_tol(a.confidence[i], b.confidence[i],
                                       1e-4f * a.confidence[i]); /* logits agree to 1e-5 */
            }
        }
        free_text(&t);
        close_lone(&one);
        close_lone(&two);
    }
}
END_TEST

/* Adds up what is allocated. */
static int64_t allocated;

static mq_status count_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    allocated += n_bytes;
    return ref_kernels()->alloc(dev, out, n_bytes, err);
}

START_TEST(bytes_are_those_taken)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    mq_kernels counting = *ref_kernels();
    counting.alloc = count_alloc;
    mq_dev *dev = ref_dev(1);
    for (int k = 0; k < N_KINDS; k++)
        for (int ranks = 1; ranks <= 2; ranks++) {
            mq_err err;
            mq_draft *d;
            mq_store *s = draft_store(dir, ranks, false);
            allocated = 0;
            mq_assert_ok(mq_draft_create(&d, KINDS[k], &counting, dev, s, 33, &err), &err);
            int64_t bytes = mq_draft_bytes(s, KINDS[k], 33);
            ck_assert_int_ge(bytes, allocated);
            ck_assert_int_lt(bytes - allocated, 4096); /* host memory: views and tokens */
            ck_assert_int_gt(mq_draft_bytes(s, KINDS[k], 34), bytes);
            mq_draft_free(d);
            mq_store_close(s);
        }
    ref_kernels()->dev_close(dev);
}
END_TEST

START_TEST(weights_of_drafters_are_counted_where_they_are_asked_for)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    mq_err err;
    mq_store *s[4];
    for (int i = 0; i < 4; i++) {
        mq_store_options o = {.n_ranks = 1, .n_threads = 1, .dflash = i & 1, .mtp = i & 2};
        mq_assert_ok(mq_store_open(&s[i], dir, &o, &err), &err);
        ck_assert_ptr_nonnull(mq_store_draft_model(s[i])); /* whatever the options */
        ck_assert(mq_draft_available(s[i], MQ_DRAFT_DFLASH));
        ck_assert(mq_draft_available(s[i], MQ_DRAFT_MTP));
        ck_assert(!mq_draft_available(s[i], MQ_DRAFT_NONE));
    }
    int64_t none = mq_store_resident_bytes(s[0]);
    int64_t dflash = mq_store_resident_bytes(s[1]) - none;
    int64_t mtp = mq_store_resident_bytes(s[2]) - none;
    const mq_draft_model *d = mq_store_draft_model(s[0]);
    const mq_model *m = mq_store_model(s[0]);
    /* BF16 matrices of a layer: q, k, v, o, gate, up, down; the norms are small. */
    const mq_attn_geometry *a = &d->attn, *b = &m->swa;
    int64_t h = m->hidden;
    int64_t draft_layer =
        2 * h *
        (2 * a->n_heads * a->head_dim + 2 * a->n_kv_heads * a->head_dim + 3 * d->intermediate);
    int64_t mtp_layer =
        2 * h *
        (b->n_heads * (b->head_dim + b->v_head_dim) +
         b->n_kv_heads * (b->head_dim + b->v_head_dim) + 3 * m->intermediate + 2 * h);
    ck_assert_int_ge(dflash, d->n_layers * draft_layer + 2 * d->n_taps * h * h);
    ck_assert_int_lt(dflash, d->n_layers * (draft_layer + 4096) + 2 * d->n_taps * h * h + 4096);
    ck_assert_int_ge(mtp, m->n_mtp * mtp_layer);
    ck_assert_int_lt(mtp, m->n_mtp * (mtp_layer + 8192));
    ck_assert_int_eq(mq_store_resident_bytes(s[3]), none + dflash + mtp);
    ck_assert_int_gt(mq_store_streaming_bytes(s[3]), mq_store_streaming_bytes(s[0]));
    for (int i = 0; i < 4; i++)
        mq_store_close(s[i]);
}
END_TEST

START_TEST(wrong_calls_are_refused)
{
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    lone l;
    text t;
    mq_err err;
    mq_draft *d;
    int32_t tokens[8], bad_ids[2] = {1, 4096};
    float confidence[8];
    open_lone(&l, dir, MQ_DRAFT_DFLASH, 1, true, 10);
    make_text(&t, l.m);
    mq_assert_fails(mq_draft_propose(l.d, tokens, confidence, 1, 3, &err), MQ_E_ARG, &err,
                    "a draft before the first committed position");
    commit(&l, &t, 0, 0);
    commit(&l, &t, 0, 10);
    mq_assert_fails(mq_draft_propose(l.d, tokens, confidence, 1, 0, &err), MQ_E_ARG, &err,
                    "a draft of 0 tokens, expected 1 to 7");
    mq_assert_fails(mq_draft_propose(l.d, tokens, confidence, 1, 8, &err), MQ_E_ARG, &err,
                    "a draft of 8 tokens, expected 1 to 7");
    mq_assert_fails(mq_draft_propose(l.d, tokens, confidence, -1, 7, &err), MQ_E_ARG, &err,
                    "token id -1 at position 10, expected 0 to 4095");
    mq_assert_fails(mq_draft_commit(l.d, bad_ids, (const float *const *)t.features, 2, &err),
                    MQ_E_ARG, &err, "token id 4096 at position 11, expected 0 to 4095");
    ck_assert_int_eq(mq_draft_length(l.d), 10);
    mq_assert_fails(mq_draft_create(&d, MQ_DRAFT_NONE, l.k, l.dev, l.store, 8, &err),
                    MQ_E_UNSUPPORTED, &err, "the model has no drafter");
    ck_assert_ptr_null(d);
    ck_assert_int_eq(mq_draft_bytes(l.store, MQ_DRAFT_NONE, 8), 0);
    mq_store *plain = ref_store(dir, 1, false);
    for (int k = 0; k < N_KINDS; k++)
        mq_assert_fails(mq_draft_create(&d, KINDS[k], l.k, l.dev, plain, 8, &err), MQ_E_ARG, &err,
                        "opened without");
    mq_store_close(plain);
    mq_draft_free(NULL);
    free_text(&t);
    close_lone(&l);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("draft");
    TCase *t = tcase_create("draft");
    tcase_add_test(t, pieces_and_guesses_between_change_no_bit);
    tcase_add_test(t, fewer_guesses_are_the_first_of_more);
    tcase_add_test(t, streaming_equals_resident);
    tcase_add_test(t, ranks_agree);
    tcase_add_test(t, bytes_are_those_taken);
    tcase_add_test(t, weights_of_drafters_are_counted_where_they_are_asked_for);
    tcase_add_test(t, wrong_calls_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
