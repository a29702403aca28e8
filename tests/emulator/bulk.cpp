/* Barriers in shared memory and bulk copies (kernels/cuda/ptx.cuh), with the counts that the PTX manual gives them: a phase
 * completes when no arrival and no byte is missing, which starts the next one with the count anew.
 *
 * A copy arrives as late as can be, when all threads of the block wait; or at once, when threads run from the last to the
 * first: what is read without waiting shows in the first order, what is overwritten too early in the second. */
#include <cuda_runtime.h>
#include <emulated_ptx.h>
#include <stdio.h>
#include <string.h>

#include <deque>
#include <vector>

#include "tests/emulator/scheduler.h"

namespace {
enum { MOST_COUNT = (1 << 20) - 1 };

struct barrier {
    const uint64_t *at;
    int64_t count, missing, bytes; /* of arrivals; of this phase: arrivals and bytes still to come */
    unsigned phase;
    int waited_for; /* parity asked for last, or -1 */
};
struct bulk_copy {
    void *to;
    const void *from;
    uint32_t n_bytes;
    const uint64_t *barrier;
    const char *file;
    int line;
};
/* Of the block that this host thread runs. */
struct block_state {
    std::vector<barrier> barriers;
    std::deque<bulk_copy> under_way;
    bool is_fenced = true; /* no barrier is newer than the last fence */
};

block_state &state()
{
    static thread_local block_state mine;
    return mine;
}

barrier *find(const uint64_t *at)
{
    for (barrier &b : state().barriers)
        if (b.at == at)
            return &b;
    return nullptr;
}

barrier *need(const uint64_t *at, const char *file, int line)
{
    barrier *b = find(at);
    if (!b)
        emu_mistake("a barrier is used before mbarrier_init", file, line);
    return b;
}

void complete(barrier *b)
{
    emu_progress();
    if (b->missing || b->bytes)
        return;
    b->missing = b->count;
    b->phase++;
}

void arrive(barrier *b, const char *file, int line)
{
    if (b->missing == 0)
        emu_mistake("more arrivals at a barrier than its count, while bytes of the phase are missing", file, line);
    b->missing--;
    complete(b);
}
} // namespace

bool emu_bulk_deliver(void)
{
    block_state &s = state();
    if (s.under_way.empty())
        return false;
    bulk_copy c = s.under_way.front();
    s.under_way.pop_front();
    memcpy(c.to, c.from, c.n_bytes);
    barrier *b = find(c.barrier);
    b->bytes -= c.n_bytes;
    complete(b);
    return true;
}

void emu_bulk_explain(void)
{
    for (const barrier &b : state().barriers)
        if (b.waited_for == (int)(b.phase & 1))
            fprintf(stderr, "emulator: a barrier's phase of parity %d lacks %lld arrivals and %lld bytes\n", b.waited_for,
                    (long long)b.missing, (long long)b.bytes);
}

void emu_bulk_end_block(void)
{
    block_state &s = state();
    if (!s.under_way.empty()) {
        fprintf(stderr, "emulator: %zu bulk copies are under way at the end of their block, the first from %s:%d\n",
                s.under_way.size(), s.under_way.front().file, s.under_way.front().line);
        abort();
    }
    s.barriers.clear();
    s.is_fenced = true;
}

void emu_mbarrier_init(uint64_t *at, unsigned count, const char *file, int line)
{
    if (!emu_is_shared(at, sizeof *at) || (uintptr_t)at % 8)
        emu_mistake("a barrier is 8 aligned bytes of shared memory", file, line);
    if (count < 1 || count > MOST_COUNT)
        emu_mistake("a barrier's count is 1 to 2^20 - 1", file, line);
    if (find(at))
        emu_mistake("a barrier is initialized twice", file, line);
    state().barriers.push_back({at, count, count, 0, 0, -1});
    state().is_fenced = false;
}

void emu_mbarrier_fence(void)
{
    state().is_fenced = true;
}

void emu_mbarrier_arrive(uint64_t *at, const char *file, int line)
{
    arrive(need(at, file, line), file, line);
}

void emu_mbarrier_expect(uint64_t *at, uint32_t n_bytes, bool and_arrive, const char *file, int line)
{
    barrier *b = need(at, file, line);
    b->bytes += n_bytes;
    if (b->bytes > MOST_COUNT)
        emu_mistake("a barrier expects 2^20 bytes or more", file, line);
    if (and_arrive)
        arrive(b, file, line);
}

bool emu_mbarrier_try_wait(uint64_t *at, unsigned parity, const char *file, int line)
{
    for (int tries = 0; tries < 2; tries++) {
        barrier *b = need(at, file, line);
        if (parity > 1)
            emu_mistake("a parity is 0 or 1", file, line);
        if ((b->phase & 1) != parity) {
            emu_progress();
            return true;
        }
        b->waited_for = (int)parity;
        if (tries == 0)
            emu_poll(false, file, line);
    }
    return false;
}

void emu_bulk_copy(void *shared, const void *global, uint32_t n_bytes, uint64_t *at, const char *file, int line)
{
    need(at, file, line);
    if (((uintptr_t)shared | (uintptr_t)global | n_bytes) % 16)
        emu_mistake("a bulk copy's addresses and size are multiples of 16", file, line);
    if (!emu_is_shared(shared, n_bytes))
        emu_mistake("a bulk copy goes beyond the shared variable", file, line);
    if (!emu_is_device(global, n_bytes) && !emu_allows_host_pointers())
        emu_mistake("a bulk copy reads what is not the device's memory", file, line);
    if (!state().is_fenced)
        emu_mistake("a bulk copy, but no mbarrier_fence_init since the last mbarrier_init", file, line);
    if (n_bytes)
        state().under_way.push_back({shared, global, n_bytes, at, file, line});
    emu_progress();
    if (emu_is_backwards())
        (void)emu_bulk_deliver();
}
