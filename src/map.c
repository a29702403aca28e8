/* Hash table of borrowed keys: open addressing, linear probing, at most half full.
 *
 * Keys come from files, so somebody may have chosen them to collide.  The hash is therefore
 * SipHash-1-3 (Aumasson and Bernstein, 2012) under a key drawn when the table is made.  No function
 * here shows the order of entries, so the random key changes no output of ours. */
#include "src/map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

typedef struct slot {
    const char *key;
    int64_t key_bytes, value;
    uint64_t hash; /* 0: the slot is empty */
} slot;

struct mq_map {
    slot *slots; /* [n_slots], a power of two */
    int64_t n_slots, n_entries;
    uint64_t seed[2];
};

static inline uint64_t rotl(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotl(v[1], 13) ^ v[0];
    v[3] = rotl(v[3], 16) ^ v[2];
    v[0] = rotl(v[0], 32) + v[3];
    v[2] += v[1];
    v[3] = rotl(v[3], 21) ^ v[0];
    v[1] = rotl(v[1], 17) ^ v[2];
    v[2] = rotl(v[2], 32);
}

/* SipHash-1-3 of the key, never 0.  Words are read in the machine's byte order: the value stays in
 * memory. */
static uint64_t hash_key(const uint64_t seed[2], const char *key, int64_t key_bytes)
{
    uint64_t v[4] = {seed[0] ^ 0x736f6d6570736575u, seed[1] ^ 0x646f72616e646f6du,
                     seed[0] ^ 0x6c7967656e657261u, seed[1] ^ 0x7465646279746573u};
    uint64_t word;
    int64_t left = key_bytes;
    for (; left >= 8; left -= 8, key += 8) {
        memcpy(&word, key, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    word = 0;
    if (left > 0)
        memcpy(&word, key, (size_t)left);
    word |= (uint64_t)key_bytes << 56;
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    uint64_t h = v[0] ^ v[1] ^ v[2] ^ v[3];
    return h ? h : 1;
}

mq_status mq_map_create(mq_map **out, int64_t n_hint, mq_err *err)
{
    *out = NULL;
    int64_t n_slots = 16;
    while (n_slots / 2 < n_hint) {
        if (n_slots > INT64_MAX / 4)
            return mq_fail(err, MQ_E_NOMEM, "out of memory for a table of %lld entries",
                           (long long)n_hint);
        n_slots *= 2;
    }
    mq_map *m = calloc(1, sizeof *m);
    slot *slots = calloc((size_t)n_slots, sizeof *slots);
    if (!m || !slots) {
        free(m);
        free(slots);
        return mq_fail(err, MQ_E_NOMEM, "out of memory for a table of %lld entries",
                       (long long)n_hint);
    }
    m->slots = slots;
    m->n_slots = n_slots;
    if (getrandom(m->seed, sizeof m->seed, GRND_NONBLOCK) != (ssize_t)sizeof m->seed) {
        /* No entropy yet (early boot) or no such call: the clock and the heap address still vary.
         */
        m->seed[0] = (uint64_t)time(NULL) * 0x9e3779b97f4a7c15u;
        m->seed[1] = (uint64_t)(uintptr_t)m;
    }
    *out = m;
    return MQ_OK;
}

void mq_map_free(mq_map *m)
{
    if (!m)
        return;
    free(m->slots);
    free(m);
}

/* The slot of the key, or the empty one where it would go. */
static slot *locate(const mq_map *m, const char *key, int64_t key_bytes, uint64_t hash)
{
    uint64_t mask = (uint64_t)m->n_slots - 1;
    for (uint64_t i = hash & mask;; i = (i + 1) & mask) {
        slot *s = &m->slots[i];
        if (s->hash == 0)
            return s;
        if (s->hash == hash && s->key_bytes == key_bytes &&
            (key_bytes == 0 || memcmp(s->key, key, (size_t)key_bytes) == 0))
            return s;
    }
}

static mq_status grow(mq_map *m, mq_err *err)
{
    slot *old = m->slots;
    int64_t n_old = m->n_slots;
    slot *slots = calloc((size_t)n_old * 2, sizeof *slots);
    if (!slots)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for a table of %lld entries",
                       (long long)n_old);
    m->slots = slots;
    m->n_slots = 2 * n_old;
    uint64_t mask = (uint64_t)m->n_slots - 1;
    for (int64_t i = 0; i < n_old; i++) {
        if (old[i].hash == 0)
            continue;
        uint64_t to = old[i].hash & mask;
        while (slots[to].hash != 0)
            to = (to + 1) & mask;
        slots[to] = old[i];
    }
    free(old);
    return MQ_OK;
}

mq_status mq_map_put(mq_map *m, const char *key, int64_t key_bytes, int64_t value, bool *is_new,
                     mq_err *err)
{
    assert(key_bytes >= 0);
    uint64_t hash = hash_key(m->seed, key, key_bytes);
    slot *s = locate(m, key, key_bytes, hash);
    *is_new = s->hash == 0;
    if (!*is_new)
        return MQ_OK;
    if (m->n_entries >= m->n_slots / 2) {
        *is_new = false;
        MQ_TRY(grow(m, err));
        *is_new = true;
        s = locate(m, key, key_bytes, hash);
    }
    *s = (slot){key, key_bytes, value, hash};
    m->n_entries++;
    return MQ_OK;
}

int64_t mq_map_find(const mq_map *m, const char *key, int64_t key_bytes)
{
    assert(key_bytes >= 0);
    const slot *s = locate(m, key, key_bytes, hash_key(m->seed, key, key_bytes));
    return s->hash ? s->value : -1;
}

int64_t mq_map_find_str(const mq_map *m, const char *key)
{
    return mq_map_find(m, key, (int64_t)strlen(key));
}

int64_t mq_map_count(const mq_map *m)
{
    return m->n_entries;
}
