/* A target with its drafter, run together: prefill, greedy verification of chains.  Shared by the
 * drafter's tests. */
#ifndef MQ_TESTS_RUNTIME_DRAFT_BENCH_H
#define MQ_TESTS_RUNTIME_DRAFT_BENCH_H

#include "runtime/draft.h"
#include "runtime/forward.h"
#include "tests/runtime/reference.h"

enum { N_PROMPTS = 12, PROMPT = 128, GREEDY = 96, ROW = PROMPT + GREEDY, BLOCK = 8 };

typedef struct draft_bench {
    const mq_kernels *k;
    mq_dev *dev;
    mq_store *store;
    const mq_model *m;
    mq_forward *f;
    mq_cache *cache;
    mq_draft *d;
    int64_t max_rows;
    int n_taps;
    float *x, *logits;        /* [max_rows, hidden], [BLOCK, vocab] */
    float *taps[MQ_MAX_TAPS]; /* [max_rows, hidden] residuals of the last forward call */
    int32_t *tokens;          /* [BLOCK], dev's memory */
} draft_bench;

static inline mq_store *draft_store(const char *dir, int n_ranks, bool resident)
{
    mq_store *s;
    mq_err err;
    mq_store_options o = {.resident = resident,
                          .n_ranks = n_ranks,
                          .n_threads = 2,
                          .check = true,
                          .dflash = true,
                          .mtp = true};
    mq_assert_ok(mq_store_open(&s, dir, &o, &err), &err);
    return s;
}

/* Room for context positions and calls of max_rows rows. */
static inline void open_draft_bench(draft_bench *b, const char *dir, mq_draft_kind kind,
                                    int n_ranks, int64_t context, int64_t max_rows)
{
    mq_err err;
    memset(b, 0, sizeof *b);
    b->k = ref_kernels();
    b->dev = ref_dev(2);
    b->store = draft_store(dir, n_ranks, true);
    b->m = mq_store_model(b->store);
    b->max_rows = max_rows;
    mq_assert_ok(mq_forward_create(&b->f, b->k, b->dev, b->store, max_rows, max_rows, &err), &err);
    mq_assert_ok(mq_cache_create(&b->cache, b->k, b->dev, b->m, n_ranks, context, max_rows, &err),
                 &err);
    mq_assert_ok(mq_draft_create(&b->d, kind, b->k, b->dev, b->store, max_rows, &err), &err);
    b->x = ref_floats(b->dev, max_rows * b->m->hidden);
    b->logits = ref_floats(b->dev, (int64_t)BLOCK * b->m->vocab);
    b->tokens = (int32_t *)(void *)ref_floats(b->dev, BLOCK);
    const int *layers;
    b->n_taps = mq_draft_taps(b->d, &layers);
    for (int i = 0; i < b->n_taps; i++)
        b->taps[i] = ref_floats(b->dev, max_rows * b->m->hidden);
    mq_forward_capture(b->f, layers, b->taps, b->n_taps);
}

static inline void close_draft_bench(draft_bench *b)
{
    for (int i = 0; i < b->n_taps; i++)
        b->k->release(b->dev, b->taps[i]);
    b->k->release(b->dev, b->tokens);
    b->k->release(b->dev, b->logits);
    b->k->release(b->dev, b->x);
    mq_draft_free(b->d);
    mq_cache_free(b->cache);
    mq_forward_free(b->f);
    mq_store_close(b->store);
    b->k->dev_close(b->dev);
}

/* Target over ids [n]; the features are in taps. */
static inline void draft_target(draft_bench *b, const int32_t *ids, int64_t n)
{
    mq_err err;
    mq_assert_ok(mq_forward_tokens(b->f, MQ_FORWARD_STEP, b->x, ids, n, b->cache, NULL, NULL, &err),
                 &err);
}

/* The target's choices after rows row0 .. row0 + n - 1 of the last call. */
static inline void draft_choices(draft_bench *b, int32_t *tokens, int64_t row0, int64_t n)
{
    mq_err err;
    mq_sampling greedy = {.temperature = 0.0f};
    mq_assert_ok(
        mq_forward_head(b->f, MQ_FORWARD_STEP, b->logits, b->x + row0 * b->m->hidden, n, &err),
        &err);
    mq_assert_ok(b->k->sample(b->dev, b->tokens, b->logits, &greedy, n, b->m->vocab, 0, &err),
                 &err);
    mq_assert_ok(b->k->download(b->dev, tokens, b->tokens, n * 4, &err), &err);
}

/* Commit the first n rows of the last call. */
static inline void draft_commit(draft_bench *b, const int32_t *ids, int64_t n)
{
    mq_err err;
    mq_assert_ok(mq_draft_commit(b->d, ids, (const float *const *)b->taps, n, &err), &err);
}

/* Target and drafter over a prompt from nothing, in calls of max_rows; the token that follows. */
static inline int32_t draft_prefill(draft_bench *b, const int32_t *ids, int64_t n)
{
    int32_t token;
    mq_cache_truncate(b->cache, 0);
    mq_draft_reset(b->d);
    for (int64_t i = 0; i < n; i += b->max_rows) {
        int64_t rows = n - i < b->max_rows ? n - i : b->max_rows;
        draft_target(b, ids + i, rows);
        draft_commit(b, ids + i, rows);
        if (i + rows == n)
            draft_choices(b, &token, rows - 1, 1);
    }
    return token;
}

/* One step of greedy chain verification after anchor with a chain of at most most guesses: commits
 * the anchor and what was right, next is the token after.  Returns how many were committed, next
 * included. */
static inline int draft_step(draft_bench *b, int32_t anchor, int most, int32_t *next)
{
    mq_err err;
    int32_t rows[BLOCK] = {anchor}, choice[BLOCK];
    float confidence[BLOCK];
    mq_assert_ok(mq_draft_propose(b->d, rows + 1, confidence, anchor, most, &err), &err);
    int64_t length = mq_cache_length(b->cache);
    draft_target(b, rows, most + 1);
    draft_choices(b, choice, 0, most + 1);
    int right = 0;
    while (right < most && rows[right + 1] == choice[right])
        right++;
    draft_commit(b, rows, right + 1);
    mq_cache_truncate(b->cache, length + right + 1);
    *next = choice[right];
    return right + 1;
}

#endif
