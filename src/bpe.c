/* Merging with a heap of candidate pairs over a linked list of symbols.
 *
 * The heap holds rank << 32 | position, so its order is the rule's order.  A candidate is not
 * removed when a neighbour's merge makes it stale: when it comes up, the pair at its position is
 * looked up again and the candidate counts only if the result is still the same, which is the
 * library's test.  At most three candidates are pushed for each byte of the piece.
 *
 * Merges are kept in rows, one for each left id, sorted by right id: a lookup is a binary search in
 * a row.  No hash: the pairs come from a file, and somebody may have chosen them to collide. */
#include "src/bpe.h"

#include <stdlib.h>
#include <string.h>

typedef struct pair {
    int32_t right;
    uint32_t rank;
} pair;

struct mq_bpe {
    int32_t byte_ids[256];
    int32_t n_ids;
    uint32_t *row;    /* [n_ids + 1] first pair of a left id */
    pair *pairs;      /* [n_merges] */
    int32_t *results; /* [n_merges] by rank */
};

/* One symbol of the piece; a merged one keeps the left position, the right one dies. */
typedef struct symbol {
    int32_t id;         /* -1: dead */
    int32_t prev, next; /* positions, -1: none */
} symbol;

enum { CACHE_SLOTS = 16384, CACHE_KEY_BYTES = 26, CACHE_IDS = 9 };

typedef struct cache_slot { /* 64 bytes: a cache line */
    int32_t ids[CACHE_IDS];
    uint8_t n_ids, n_bytes; /* n_bytes 0: empty */
    char key[CACHE_KEY_BYTES];
} cache_slot;

struct mq_bpe_work {
    symbol *symbols; /* [cap] */
    int32_t *ids;    /* [cap] */
    uint64_t *heap;  /* [3 cap] */
    int64_t cap, n_heap;
    cache_slot *cache; /* [CACHE_SLOTS] or NULL */
};

/* ---- the table ---- */

typedef struct sort_key {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank;
} sort_key;

static int compare_keys(const void *a, const void *b)
{
    const sort_key *x = a, *y = b;
    if (x->pair != y->pair)
        return x->pair < y->pair ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static mq_status fill_rows(mq_bpe *b, sort_key *keys, const mq_merge *merges, int64_t n_merges,
                           mq_err *err)
{
    for (int64_t i = 0; i < n_merges; i++) {
        keys[i].pair = (uint64_t)merges[i].left << 32 | (uint32_t)merges[i].right;
        keys[i].rank = (uint32_t)i;
        b->results[i] = merges[i].result;
    }
    if (n_merges > 1)
        qsort(keys, (size_t)n_merges, sizeof *keys, compare_keys);
    for (int64_t i = 0; i < n_merges; i++) {
        if (i > 0 && keys[i].pair == keys[i - 1].pair)
            return mq_fail(err, MQ_E_FORMAT, "merge %u joins the same pair as merge %u",
                           keys[i].rank, keys[i - 1].rank);
        b->pairs[i] = (pair){(int32_t)(keys[i].pair & 0xFFFFFFFFu), keys[i].rank};
        b->row[(keys[i].pair >> 32) + 1]++;
    }
    for (int32_t id = 0; id < b->n_ids; id++)
        b->row[id + 1] += b->row[id];
    return MQ_OK;
}

mq_status mq_bpe_create(mq_bpe **out, const int32_t byte_ids[256], const mq_merge *merges,
                        int64_t n_merges, int32_t n_ids, mq_err *err)
{
    *out = NULL;
    mq_bpe *b = calloc(1, sizeof *b);
    sort_key *keys = calloc((size_t)n_merges + 1, sizeof *keys);
    mq_status st = MQ_OK;
    if (b) {
        memcpy(b->byte_ids, byte_ids, sizeof b->byte_ids);
        b->n_ids = n_ids;
        b->row = calloc((size_t)n_ids + 1, sizeof *b->row);
        b->pairs = calloc((size_t)n_merges + 1, sizeof *b->pairs);
        b->results = calloc((size_t)n_merges + 1, sizeof *b->results);
    }
    if (!b || !keys || !b->row || !b->pairs || !b->results)
        st = mq_fail(err, MQ_E_NOMEM, "out of memory for %lld merges", (long long)n_merges);
    else
        st = fill_rows(b, keys, merges, n_merges, err);
    free(keys);
    if (st != MQ_OK) {
        mq_bpe_free(b);
        return st;
    }
    *out = b;
    return MQ_OK;
}

void mq_bpe_free(mq_bpe *b)
{
    if (!b)
        return;
    free(b->row);
    free(b->pairs);
    free(b->results);
    free(b);
}

/* Rank of the merge of left and right; false where there is none. */
static bool find_merge(const mq_bpe *b, int32_t left, int32_t right, uint32_t *rank)
{
    uint32_t lo = b->row[left], end = b->row[left + 1], hi = end;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (b->pairs[mid].right < right)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == end || b->pairs[lo].right != right)
        return false;
    *rank = b->pairs[lo].rank;
    return true;
}

/* ---- scratch memory ---- */

mq_status mq_bpe_work_create(mq_bpe_work **out, bool with_cache, mq_err *err)
{
    mq_bpe_work *w = calloc(1, sizeof *w);
    if (w && with_cache)
        w->cache = calloc(CACHE_SLOTS, sizeof *w->cache);
    if (!w || (with_cache && !w->cache)) {
        mq_bpe_work_free(w);
        *out = NULL;
        return mq_fail(err, MQ_E_NOMEM, "out of memory for merging");
    }
    *out = w;
    return MQ_OK;
}

void mq_bpe_work_free(mq_bpe_work *w)
{
    if (!w)
        return;
    free(w->symbols);
    free(w->ids);
    free(w->heap);
    free(w->cache);
    free(w);
}

static mq_status reserve(mq_bpe_work *w, int64_t n_bytes, mq_err *err)
{
    if (n_bytes <= w->cap)
        return MQ_OK;
    int64_t cap = n_bytes + n_bytes / 2 + 64;
    free(w->symbols);
    free(w->ids);
    free(w->heap);
    w->symbols = malloc((size_t)cap * sizeof *w->symbols);
    w->ids = malloc((size_t)cap * sizeof *w->ids);
    w->heap = malloc((size_t)cap * 3 * sizeof *w->heap);
    w->cap = w->symbols && w->ids && w->heap ? cap : 0;
    return w->cap ? MQ_OK
                  : mq_fail(err, MQ_E_NOMEM, "out of memory for a piece of %lld bytes",
                            (long long)n_bytes);
}

/* ---- merging ---- */

static void heap_push(mq_bpe_work *w, uint64_t key)
{
    int64_t i = w->n_heap++;
    while (i > 0 && w->heap[(i - 1) / 2] > key) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = key;
}

static uint64_t heap_pop(mq_bpe_work *w)
{
    uint64_t top = w->heap[0], key = w->heap[--w->n_heap];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child])
            child++;
        if (w->heap[child] >= key)
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = key;
    return top;
}

/* Push the pair at pos if it has a merge. */
static void push_pair(const mq_bpe *b, mq_bpe_work *w, int32_t pos)
{
    uint32_t rank;
    int32_t next = w->symbols[pos].next;
    if (next >= 0 && find_merge(b, w->symbols[pos].id, w->symbols[next].id, &rank))
        heap_push(w, (uint64_t)rank << 32 | (uint32_t)pos);
}

static void merge_all(const mq_bpe *b, mq_bpe_work *w, const char *piece, int32_t n)
{
    symbol *s = w->symbols;
    for (int32_t i = 0; i < n; i++)
        s[i] = (symbol){b->byte_ids[(uint8_t)piece[i]], i - 1, i + 1 < n ? i + 1 : -1};
    w->n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++)
        push_pair(b, w, i);
    while (w->n_heap > 0) {
        uint64_t key = heap_pop(w);
        int32_t pos = (int32_t)(key & 0xFFFFFFFFu), next = s[pos].next,
                result = b->results[key >> 32];
        uint32_t rank;
        if (s[pos].id < 0 || next < 0 || !find_merge(b, s[pos].id, s[next].id, &rank) ||
            b->results[rank] != result)
            continue;
        s[pos].id = result;
        s[pos].next = s[next].next;
        s[next].id = -1;
        if (s[pos].next >= 0)
            s[s[pos].next].prev = pos;
        if (s[pos].prev >= 0)
            push_pair(b, w, s[pos].prev);
        push_pair(b, w, pos);
    }
}

/* The cache line of a short piece.  Collisions only cost time, so a plain multiplicative hash
 * (FNV-1a) will do. */
static cache_slot *find_slot(mq_bpe_work *w, const char *piece, int64_t n_bytes)
{
    uint32_t h = 2166136261u;
    for (int64_t i = 0; i < n_bytes; i++)
        h = (h ^ (uint8_t)piece[i]) * 16777619u;
    return &w->cache[(h ^ h >> 15) % CACHE_SLOTS];
}

mq_status mq_bpe_encode(const mq_bpe *b, mq_bpe_work *w, const int32_t **ids, int64_t *n_ids,
                        const char *piece, int64_t n_bytes, mq_err *err)
{
    cache_slot *slot = w->cache && n_bytes <= CACHE_KEY_BYTES ? find_slot(w, piece, n_bytes) : NULL;
    if (slot && slot->n_bytes == n_bytes && memcmp(slot->key, piece, (size_t)n_bytes) == 0) {
        *ids = slot->ids;
        *n_ids = slot->n_ids;
        return MQ_OK;
    }
    MQ_TRY(reserve(w, n_bytes, err));
    merge_all(b, w, piece, (int32_t)n_bytes);
    int64_t n = 0;
    for (int32_t pos = 0; pos >= 0; pos = w->symbols[pos].next)
        w->ids[n++] = w->symbols[pos].id;
    if (slot && n <= CACHE_IDS) {
        slot->n_bytes = (uint8_t)n_bytes;
        slot->n_ids = (uint8_t)n;
        memcpy(slot->key, piece, (size_t)n_bytes);
        memcpy(slot->ids, w->ids, (size_t)n * sizeof *w->ids);
    }
    *ids = w->ids;
    *n_ids = n;
    return MQ_OK;
}
