/* Threads of a block as fibers: each runs until it ends or waits, then the next one does.
 *
 * Blocks run one after the other.  A warp's lanes run in turn until all wait or have ended; lanes that wait for each
 * other in a warp operation go on as soon as the last of them has arrived; when every warp stands still, the block
 * barrier opens if all threads wait at the same one.  Threads that ask again and again (emu_poll) have their turn once in
 * every round.  Anything else is a mistake of the kernel, said with the place in its source, and ends the process.
 *
 * A device runs one launch at a time (a lock each); devices run beside each other, each in the host thread that launched,
 * which owns all of the state here. */
#include <cuda_runtime.h>
#include <emulated_ptx.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/emulator/scheduler.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(EMU_ASAN)
#include <sanitizer/common_interface_defs.h>
#define EMU_LEAVE(save, stack, n_bytes) __sanitizer_start_switch_fiber(save, stack, n_bytes)
#define EMU_ARRIVE(save, stack, n_bytes) __sanitizer_finish_switch_fiber(save, stack, n_bytes)
#else
#define EMU_LEAVE(save, stack, n_bytes) ((void)(save), (void)(stack), (void)(n_bytes))
#define EMU_ARRIVE(save, stack, n_bytes) ((void)(save), (void)(stack), (void)(n_bytes))
#endif

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

/* Save the registers a callee must keep and the stack pointer in *save, go on where load was saved. */
extern "C" void emu_switch(void **save, void *load);
#if !defined(__x86_64__)
#error "the emulator switches stacks on x86-64 only"
#endif
__asm__(".text\n.globl emu_switch\n.type emu_switch, @function\nemu_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
        ".size emu_switch, .-emu_switch\n"
        ".section .note.GNU-stack, \"\", @progbits\n.text\n");

namespace {

enum { STACK_BYTES = 256 << 10, PAGE = 4096 };
enum { MOST_DEVICES = 16, EAGER_ROUNDS = 256, PAUSE_US = 50, READS_IN_A_ROW = 16 };
enum state { READY, AT_BARRIER, IN_WARP, POLLS, ENDED };

struct fiber {
    state st;
    void *sp, *asan;
    char *stack;
    uint3 idx;
    const char *file; /* where it waits */
    int line;
    unsigned mask; /* IN_WARP */
    emu_combine *combine;
    void *payload;
    emu_barrier_kind kind; /* AT_BARRIER */
    int operand;
    bool outside; /* POLLS: what comes from another device may end it */
    const void *read_last;
    unsigned n_reads; /* of what other devices write */
};

struct shared_variable {
    const void *key;
    void *p;
    size_t n_bytes;
};

/* A host thread's. */
struct engine {
    std::vector<fiber> fibers; /* as many as any block had */
    int n_fibers = 0;          /* of this block */
    fiber *current = nullptr;
    void *scheduler_sp = nullptr, *scheduler_asan = nullptr;
    const void *scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    emu_call *call = nullptr;
    std::vector<shared_variable> shared_variables;
    void *dynamic_shared = nullptr;
    size_t dynamic_bytes = 0;
    int barrier_result = 0;
    bool backwards = false;
    uint64_t n_events = 0; /* of what threads may wait for */
    int n_idle_rounds = 0;

    ~engine()
    {
        for (const fiber &f : fibers)
            if (f.stack)
                munmap(f.stack, STACK_BYTES);
    }
};

std::mutex one_launch[MOST_DEVICES];
std::atomic<bool> run_backwards;
__thread engine *e;

[[noreturn]] void stop(const char *what, const fiber *a, const fiber *b)
{
    fprintf(stderr, "emulator: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
    for (const fiber *f : {a, b})
        if (f)
            fprintf(stderr, "  thread (%u, %u, %u) %s %s:%d\n", f->idx.x, f->idx.y, f->idx.z,
                    f->st == ENDED        ? "has ended; it last waited at"
                    : f->st == AT_BARRIER ? "waits at the barrier"
                    : f->st == POLLS      ? "waits for a phase at"
                                          : "is at",
                    f->file ? f->file : "-", f->line);
    abort();
}

/* From a thread back to the scheduler. */
void leave(state st)
{
    fiber *f = e->current;
    f->st = st;
    e->n_events += st != POLLS;
    EMU_LEAVE(st == ENDED ? nullptr : &f->asan, e->scheduler_stack, e->scheduler_stack_bytes);
    emu_switch(&f->sp, e->scheduler_sp);
    EMU_ARRIVE(f->asan, nullptr, nullptr);
}

void fiber_main()
{
    EMU_ARRIVE(nullptr, &e->scheduler_stack, &e->scheduler_stack_bytes);
    e->call->run();
    leave(ENDED);
    abort(); /* nobody resumes an ended thread */
}

void resume(fiber *f)
{
    e->current = f;
    threadIdx = f->idx;
    EMU_LEAVE(&e->scheduler_asan, f->stack, STACK_BYTES);
    emu_switch(&e->scheduler_sp, f->sp);
    EMU_ARRIVE(e->scheduler_asan, nullptr, nullptr);
}

/* A stack whose lowest page faults, and on it the frame that emu_switch leaves into fiber_main. */
void start_fiber(fiber *f, int number)
{
    if (!f->stack) {
        f->stack = (char *)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED || mprotect(f->stack, PAGE, PROT_NONE))
            stop("no memory for a thread's stack", nullptr, nullptr);
    }
    void **top = (void **)(f->stack + STACK_BYTES);
    *--top = nullptr; /* fiber_main's return address: none */
    *--top = (void *)fiber_main;
    for (int r = 0; r < 6; r++)
        *--top = nullptr;
    f->sp = top;
    f->st = READY;
    f->file = nullptr;
    f->line = 0;
    f->read_last = nullptr;
    f->n_reads = 0;
    unsigned n = (unsigned)number;
    f->idx = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
}

/* The k-th of n in the order asked for. */
int in_order(int k, int n)
{
    return e->backwards ? n - 1 - k : k;
}

/* Let the lanes go on whose whole mask has arrived at the same operation. */
bool release_warp(int first)
{
    bool released = false;
    for (int l = 0; l < 32 && first + l < e->n_fibers; l++) {
        fiber *f = &e->fibers[(size_t)(first + l)];
        if (f->st != IN_WARP)
            continue;
        void *payloads[32] = {};
        bool all = true;
        for (int o = 0; o < 32; o++) {
            if (!(f->mask >> o & 1u))
                continue;
            fiber *g = first + o < e->n_fibers ? &e->fibers[(size_t)(first + o)] : nullptr;
            if (!g || g->st == ENDED)
                stop("a warp operation names a lane that is not there", f, g);
            if (g->st != IN_WARP) {
                all = false;
                break;
            }
            if (g->file != f->file || g->line != f->line || g->mask != f->mask || g->combine != f->combine)
                stop("lanes of one mask wait in different warp operations", f, g);
            payloads[o] = g->payload;
        }
        if (!all)
            continue;
        if (f->combine)
            f->combine(payloads, f->mask, f->file, f->line);
        for (int o = 0; o < 32; o++)
            if (f->mask >> o & 1u)
                e->fibers[(size_t)(first + o)].st = READY;
        released = true;
    }
    return released;
}

bool run_warp(int first)
{
    bool ran = false;
    do {
        for (int k = 0; k < 32; k++) {
            int at = first + in_order(k, 32);
            if (at < e->n_fibers && e->fibers[(size_t)at].st == READY) {
                resume(&e->fibers[(size_t)at]);
                ran = true;
            }
        }
    } while (release_warp(first));
    return ran;
}

/* All threads wait at one barrier: open it.  False when all have ended. */
bool open_barrier()
{
    const fiber *waits = nullptr, *ended = nullptr;
    int n_true = 0;
    for (int i = 0; i < e->n_fibers; i++) {
        const fiber *f = &e->fibers[(size_t)i];
        if (f->st == IN_WARP)
            stop("a warp operation waits for a lane that never comes", f, nullptr);
        (f->st == ENDED ? ended : waits) = f;
        n_true += f->st == AT_BARRIER && f->operand != 0;
    }
    if (!waits)
        return false;
    if (ended)
        stop("a thread ended while another waits at a barrier", ended, waits);
    for (int i = 0; i < e->n_fibers; i++) {
        fiber *f = &e->fibers[(size_t)i];
        if (f->file != waits->file || f->line != waits->line || f->kind != waits->kind)
            stop("threads wait at different barriers", f, waits);
        f->st = READY;
    }
    e->barrier_result = waits->kind == EMU_BARRIER_AND ? n_true == e->n_fibers : waits->kind == EMU_BARRIER_OR ? n_true > 0 : n_true;
    return true;
}

/* Exactly n_bytes, full of NaN. */
void *poisoned(size_t n_bytes)
{
    void *p = nullptr;
    if (posix_memalign(&p, 256, n_bytes ? n_bytes : 1))
        stop("no memory", nullptr, nullptr);
    memset(p, 0xff, n_bytes);
    return p;
}

/* Nobody did anything but ask: a copy may arrive now, or another device has to. */
void nothing_happened(const fiber *local, const fiber *outside)
{
    if (emu_bulk_deliver())
        return;
    if (!outside) {
        emu_bulk_explain();
        stop("a thread waits for a phase that never completes", local, nullptr);
    }
    if (++e->n_idle_rounds < EAGER_ROUNDS)
        sched_yield();
    else
        usleep(PAUSE_US);
}

/* Every warp in turn until nobody can go on. */
void run_warps()
{
    int n_warps = (e->n_fibers + 31) / 32;
    bool ran;
    do {
        const fiber *local = nullptr, *outside = nullptr;
        for (int i = 0; i < e->n_fibers; i++) {
            fiber *f = &e->fibers[(size_t)i];
            if (f->st == POLLS) {
                (f->outside ? outside : local) = f;
                f->st = READY;
            }
        }
        uint64_t before = e->n_events;
        ran = false;
        for (int w = 0; w < n_warps; w++)
            ran |= run_warp(32 * in_order(w, n_warps));
        if (e->n_events != before)
            e->n_idle_rounds = 0;
        else if (local || outside)
            nothing_happened(local, outside);
    } while (ran);
}

void run_block()
{
    e->dynamic_shared = poisoned(e->dynamic_bytes);
    for (int i = 0; i < e->n_fibers; i++)
        start_fiber(&e->fibers[(size_t)i], i);
    do
        run_warps();
    while (open_barrier());
    emu_bulk_end_block();
    free(e->dynamic_shared);
    for (const shared_variable &v : e->shared_variables)
        free(v.p);
    e->shared_variables.clear();
}

} // namespace

void emu_run_grid(int device, dim3 grid, dim3 block, size_t dynamic_bytes, emu_call *call)
{
    static thread_local engine mine;
    std::lock_guard<std::mutex> lock(one_launch[device % MOST_DEVICES]);
    e = &mine;
    gridDim = grid;
    blockDim = block;
    e->call = call;
    e->dynamic_bytes = dynamic_bytes;
    e->backwards = run_backwards;
    e->n_idle_rounds = 0;
    e->n_fibers = (int)(block.x * block.y * block.z);
    if ((size_t)e->n_fibers > e->fibers.size())
        e->fibers.resize((size_t)e->n_fibers);
    int64_t n_blocks = (int64_t)grid.x * grid.y * grid.z;
    for (int64_t k = 0; k < n_blocks; k++) {
        int64_t b = e->backwards ? n_blocks - 1 - k : k;
        blockIdx = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
        run_block();
    }
}

void emu_set_backwards(bool on)
{
    run_backwards = on;
}

bool emu_is_backwards(void)
{
    return e->backwards;
}

void emu_poll(bool outside, const char *file, int line)
{
    fiber *f = e->current;
    f->outside = outside;
    f->file = file;
    f->line = line;
    leave(POLLS);
}

/* Called before each such read: the same address again, or many of them, may be a loop that waits. */
void emu_read_outside(const void *p, const char *file, int line)
{
    fiber *f = e->current;
    if (p == f->read_last || ++f->n_reads % READS_IN_A_ROW == 0)
        emu_poll(true, file, line);
    f->read_last = p;
}

void emu_progress(void)
{
    e->n_events++;
}

void emu_mistake(const char *what, const char *file, int line)
{
    fiber *f = e->current;
    f->file = file;
    f->line = line;
    stop(what, f, nullptr);
}

bool emu_is_shared(const void *p, size_t n_bytes)
{
    const char *at = (const char *)p, *d = (const char *)e->dynamic_shared;
    if (at >= d && at + n_bytes <= d + e->dynamic_bytes)
        return true;
    for (const shared_variable &v : e->shared_variables)
        if (at >= (const char *)v.p && at + n_bytes <= (const char *)v.p + v.n_bytes)
            return true;
    return false;
}

int emu_barrier(emu_barrier_kind kind, int operand, const char *file, int line)
{
    fiber *f = e->current;
    f->kind = kind;
    f->operand = operand;
    f->file = file;
    f->line = line;
    leave(AT_BARRIER);
    return e->barrier_result;
}

void emu_meet(unsigned mask, emu_combine *combine, void *payload, const char *file, int line)
{
    fiber *f = e->current;
    f->mask = mask;
    f->combine = combine;
    f->payload = payload;
    f->file = file;
    f->line = line;
    if (!(mask >> emu_lane() & 1u))
        stop("a lane's mask lacks the lane itself", f, nullptr);
    leave(IN_WARP);
}

void emu_combine_shuffle(void *const *payloads, unsigned mask, const char *file, int line)
{
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1u))
            continue;
        emu_shuffle *s = (emu_shuffle *)payloads[l];
        if (s->source < 0 || s->source > 31 || !payloads[s->source]) {
            fprintf(stderr, "emulator: %s:%d: lane %d reads lane %d, which takes no part\n", file, line, l, s->source);
            abort();
        }
        s->out = ((emu_shuffle *)payloads[s->source])->in;
    }
}

static void combine_ballot(void *const *payloads, unsigned mask, const char *, int)
{
    uint64_t votes = 0;
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1u) && ((emu_shuffle *)payloads[l])->in)
            votes |= 1u << l;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1u)
            ((emu_shuffle *)payloads[l])->out = votes;
}

unsigned emu_ballot(unsigned mask, int predicate, const char *file, int line)
{
    emu_shuffle s = {predicate != 0, 0, 0};
    emu_meet(mask, combine_ballot, &s, file, line);
    return (unsigned)s.out;
}

static void combine_max(void *const *payloads, unsigned mask, const char *, int)
{
    uint64_t most = 0;
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1u) && ((emu_shuffle *)payloads[l])->in > most)
            most = ((emu_shuffle *)payloads[l])->in;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1u)
            ((emu_shuffle *)payloads[l])->out = most;
}

unsigned emu_reduce_max(unsigned mask, unsigned v, const char *file, int line)
{
    emu_shuffle s = {v, 0, 0};
    emu_meet(mask, combine_max, &s, file, line);
    return (unsigned)s.out;
}

void *emu_shared(const void *key, size_t n_bytes)
{
    for (const shared_variable &v : e->shared_variables)
        if (v.key == key)
            return v.p;
    e->shared_variables.push_back({key, poisoned(n_bytes), n_bytes});
    return e->shared_variables.back().p;
}

void *emu_dynamic_shared(void)
{
    return e->dynamic_shared;
}
