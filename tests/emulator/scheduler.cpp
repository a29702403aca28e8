/* Threads of a block as fibers: each runs until it ends or waits, then the next one does.
 *
 * Blocks run one after the other.  A warp's lanes run in turn until all wait or have ended; lanes that wait for each
 * other in a warp operation go on as soon as the last of them has arrived; when every warp stands still, the block
 * barrier opens if all threads wait at the same one.  Anything else is a mistake of the kernel, said with the
 * place in its source, and ends the process.  One launch at a time (a lock), so the state is plain globals. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

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

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

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
enum state { READY, AT_BARRIER, IN_WARP, ENDED };

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
};

struct shared_variable {
    const void *key;
    void *p;
};

std::mutex one_launch;
std::vector<fiber> fibers; /* as many as any block had */
int n_fibers;              /* of this block */
fiber *current;
void *scheduler_sp, *scheduler_asan;
const void *scheduler_stack;
size_t scheduler_stack_bytes;
void (*thread_run)(void *);
void *thread_context;
std::vector<shared_variable> shared_variables;
void *dynamic_shared;
bool backwards;
int barrier_result;

[[noreturn]] void stop(const char *what, const fiber *a, const fiber *b)
{
    fprintf(stderr, "emulator: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
    for (const fiber *f : {a, b})
        if (f)
            fprintf(stderr, "  thread (%u, %u, %u) %s %s:%d\n", f->idx.x, f->idx.y, f->idx.z,
                    f->st == ENDED        ? "has ended; it last waited at"
                    : f->st == AT_BARRIER ? "waits at the barrier"
                                          : "is at",
                    f->file ? f->file : "-", f->line);
    abort();
}

/* From a thread back to the scheduler. */
void leave(state st)
{
    fiber *f = current;
    f->st = st;
    EMU_LEAVE(st == ENDED ? nullptr : &f->asan, scheduler_stack, scheduler_stack_bytes);
    emu_switch(&f->sp, scheduler_sp);
    EMU_ARRIVE(f->asan, nullptr, nullptr);
}

void fiber_main()
{
    EMU_ARRIVE(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    thread_run(thread_context);
    leave(ENDED);
    abort(); /* nobody resumes an ended thread */
}

void resume(fiber *f)
{
    current = f;
    threadIdx = f->idx;
    EMU_LEAVE(&scheduler_asan, f->stack, STACK_BYTES);
    emu_switch(&scheduler_sp, f->sp);
    EMU_ARRIVE(scheduler_asan, nullptr, nullptr);
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
    unsigned n = (unsigned)number;
    f->idx = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
}

/* The k-th of n in the order asked for. */
int in_order(int k, int n)
{
    return backwards ? n - 1 - k : k;
}

/* Let the lanes go on whose whole mask has arrived at the same operation. */
bool release_warp(int first)
{
    bool released = false;
    for (int l = 0; l < 32 && first + l < n_fibers; l++) {
        fiber *f = &fibers[(size_t)(first + l)];
        if (f->st != IN_WARP)
            continue;
        void *payloads[32] = {};
        bool all = true;
        for (int o = 0; o < 32; o++) {
            if (!(f->mask >> o & 1u))
                continue;
            fiber *g = first + o < n_fibers ? &fibers[(size_t)(first + o)] : nullptr;
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
                fibers[(size_t)(first + o)].st = READY;
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
            if (at < n_fibers && fibers[(size_t)at].st == READY) {
                resume(&fibers[(size_t)at]);
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
    for (int i = 0; i < n_fibers; i++) {
        const fiber *f = &fibers[(size_t)i];
        if (f->st == IN_WARP)
            stop("a warp operation waits for a lane that never comes", f, nullptr);
        (f->st == ENDED ? ended : waits) = f;
        n_true += f->st == AT_BARRIER && f->operand != 0;
    }
    if (!waits)
        return false;
    if (ended)
        stop("a thread ended while another waits at a barrier", ended, waits);
    for (int i = 0; i < n_fibers; i++) {
        fiber *f = &fibers[(size_t)i];
        if (f->file != waits->file || f->line != waits->line || f->kind != waits->kind)
            stop("threads wait at different barriers", f, waits);
        f->st = READY;
    }
    barrier_result = waits->kind == EMU_BARRIER_AND ? n_true == n_fibers : waits->kind == EMU_BARRIER_OR ? n_true > 0 : n_true;
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

void run_block(size_t dynamic_bytes)
{
    dynamic_shared = poisoned(dynamic_bytes);
    for (int i = 0; i < n_fibers; i++)
        start_fiber(&fibers[(size_t)i], i);
    int n_warps = (n_fibers + 31) / 32;
    do {
        bool ran;
        do {
            ran = false;
            for (int w = 0; w < n_warps; w++)
                ran |= run_warp(32 * in_order(w, n_warps));
        } while (ran);
    } while (open_barrier());
    free(dynamic_shared);
    for (const shared_variable &v : shared_variables)
        free(v.p);
    shared_variables.clear();
}

} // namespace

void emu_run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, void (*run)(void *), void *context)
{
    std::lock_guard<std::mutex> lock(one_launch);
    gridDim = grid;
    blockDim = block;
    thread_run = run;
    thread_context = context;
    n_fibers = (int)(block.x * block.y * block.z);
    if ((size_t)n_fibers > fibers.size())
        fibers.resize((size_t)n_fibers);
    int64_t n_blocks = (int64_t)grid.x * grid.y * grid.z;
    for (int64_t k = 0; k < n_blocks; k++) {
        int64_t b = backwards ? n_blocks - 1 - k : k;
        blockIdx = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
        run_block(dynamic_bytes);
    }
}

void emu_set_backwards(bool on)
{
    std::lock_guard<std::mutex> lock(one_launch);
    backwards = on;
}

int emu_barrier(emu_barrier_kind kind, int operand, const char *file, int line)
{
    fiber *f = current;
    f->kind = kind;
    f->operand = operand;
    f->file = file;
    f->line = line;
    leave(AT_BARRIER);
    return barrier_result;
}

void emu_meet(unsigned mask, emu_combine *combine, void *payload, const char *file, int line)
{
    fiber *f = current;
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

void *emu_shared(const void *key, size_t n_bytes)
{
    for (const shared_variable &v : shared_variables)
        if (v.key == key)
            return v.p;
    shared_variables.push_back({key, poisoned(n_bytes)});
    return shared_variables.back().p;
}

void *emu_dynamic_shared(void)
{
    return dynamic_shared;
}
