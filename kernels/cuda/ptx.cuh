/* Everything that plain CUDA C++ cannot say: the matrix product of fragments, asynchronous copies and the barriers that count
 * them, words that another GPU writes, clocks; and the one way to declare shared memory.
 *
 * Kernels use these and no asm of their own, so that they also compile as C++ for the host: tests/emulator brings its
 * own versions of this file's functions and of cuda_runtime.h, and runs the kernels in tests without a GPU.
 *
 *   MQ_SHARED(name, type)            a shared variable; type may be an array: MQ_SHARED(tile, float[32][33])
 *   MQ_SHARED_DYNAMIC(name, type)    type *name, the launch's dynamic shared memory, 16-byte aligned */
#ifndef MQ_KERNELS_CUDA_PTX_CUH
#define MQ_KERNELS_CUDA_PTX_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include "src/float.h"

#ifdef MQ_CUDA_EMULATED
#include <emulated_ptx.h>
#else

#define MQ_SHARED(name, ...)         \
    using name##_type = __VA_ARGS__; \
    __shared__ name##_type name
#define MQ_SHARED_DYNAMIC(name, type)                   \
    extern __shared__ float4 mq_dynamic_shared_bytes[]; \
    type *name = (type *)mq_dynamic_shared_bytes

namespace mq_cuda {

/* c [16, 8] += a [16, 16] * b [16, 8], BF16 pairs, F32 sums, by a whole warp.  Lane l, g = l / 4, t = l % 4 holds rows g
 * and g + 8 of a at columns 2 t, 2 t + 1 (a[0], a[1]) and 2 t + 8, 2 t + 9 (a[2], a[3]); column g of b at the same
 * rows (b[0], b[1]); rows g (c[0], c[1]) and g + 8 of c at columns 2 t, 2 t + 1.  Source: PTX manual, mma.m16n8k16. */
static __device__ __forceinline__ void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* 16 bytes to shared memory, both addresses multiples of 16; there after commit and wait (and a barrier for others). */
static __device__ __forceinline__ void copy_async16(void *shared, const void *global)
{
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

static __device__ __forceinline__ void copy_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most LEFT of this thread's committed groups are under way. */
template <int LEFT> static __device__ __forceinline__ void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* Programmatic dependent launch (PTX manual, griddepcontrol).  wait_for_previous: until all work queued before this kernel has
 * finished and can be seen.  let_next_start: the next kernel's blocks may be scheduled once every block of this one has said so
 * or ended.  Both do nothing in a kernel launched plainly. */
static __device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static __device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* a & mask | bits, one instruction whatever the constants. */
static __device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits)
{
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(bits)); /* 0xea: (0xf0 & 0xcc) | 0xaa */
    return d;
}

/* a * b + c of two BF16 values each, rounded once. */
static __device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* PTX manual, rcp.approx.ftz: 1 / x to a place of F32; 0 where that is below the normal numbers. */
static __device__ __forceinline__ float reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two F32 rounded to BF16, nearest even: a in the low half. */
static __device__ __forceinline__ uint32_t bf16x2_of_floats(float a, float b)
{
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(b), "f"(a));
    return d;
}

/* Two F16 as F32, exact. */
static __device__ __forceinline__ float2 floats_of_f16x2(uint32_t pair)
{
    float2 v;
    asm("{ .reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.f32.f16 %0, low;\n"
        "cvt.f32.f16 %1, high; }"
        : "=f"(v.x), "=f"(v.y)
        : "r"(pair));
    return v;
}

/* Two E4M3 codes, the first in the low byte, as F32: exact, NaN stays NaN. */
static __device__ __forceinline__ float2 floats_of_e4m3x2(uint16_t codes)
{
#if __CUDA_ARCH__ >= 890
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
    return floats_of_f16x2(halves);
#else
    float2 v = {mq_e4m3_to_f32((uint8_t)codes), mq_e4m3_to_f32((uint8_t)(codes >> 8))};
    return v;
#endif
}

/* 16 and 4 bytes of weights: read once, so not kept in L1.  Addresses aligned to the size. */
static __device__ __forceinline__ uint4 load_weights16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint32_t load_weights4(const void *p)
{
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* 16, 8 or 4 such bytes where wanted; otherwise nothing is read and v stays what it was.  No branch, so that loads stay where they stand. */
static __device__ __forceinline__ void load_weights16_if(uint4 &v, const void *p, bool wanted)
{
    asm volatile("{ .reg .pred wanted; setp.ne.u32 wanted, %5, 0;"
                 " @wanted ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(p), "r"((uint32_t)wanted));
}
static __device__ __forceinline__ void load_weights8_if(uint32_t v[2], const void *p, bool wanted)
{
    asm volatile("{ .reg .pred wanted; setp.ne.u32 wanted, %3, 0;"
                 " @wanted ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2]; }"
                 : "+r"(v[0]), "+r"(v[1])
                 : "l"(p), "r"((uint32_t)wanted));
}
static __device__ __forceinline__ void load_weights4_if(uint32_t &v, const void *p, bool wanted)
{
    asm volatile("{ .reg .pred wanted; setp.ne.u32 wanted, %2, 0; @wanted ld.global.nc.L1::no_allocate.u32 %0, [%1]; }"
                 : "+r"(v)
                 : "l"(p), "r"((uint32_t)wanted));
}

/* 16 and 4 bytes as they are in L2, whatever an L1 holds. */
static __device__ __forceinline__ uint4 load_l2_16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
static __device__ __forceinline__ uint32_t load_l2_4(const void *p)
{
    uint32_t v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

/* ---- between the blocks of a grid (PTX manual, ld.acquire and red.release at scope gpu) ----
 *
 * Counts one more; who reads that with load_acquire4 also sees what this thread did before, and what other threads of its block
 * did before a barrier with it.  A loop that waits for another block needs BLOCKS_RUN_TOGETHER: a grid without more blocks than fit. */
enum { BLOCKS_RUN_TOGETHER = 1 };
static __device__ __forceinline__ void add_release4(uint32_t *p, uint32_t v)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
static __device__ __forceinline__ uint32_t load_acquire4(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
/* The launch fails, and the device with it. */
static __device__ __forceinline__ void give_up()
{
    __trap();
}

/* ---- barriers in shared memory and bulk copies: compute capability 9.0; a kernel that reaches one elsewhere traps ----
 *
 * A barrier is 8 bytes of shared memory, aligned to 8.  It completes a phase when count arrivals have come and all bytes that
 * were expected have been copied; the next phase, with the count anew, starts at once.  Phases are told apart by parity: the
 * first has 0, and waiting for parity 1 on a new barrier returns at once.  Order: one thread inits, then fences; a block
 * barrier; a producer says arrive_expect_tx and queues copies of as many bytes; consumers wait, read, and arrive at
 * another barrier, by which the producer knows that the place is free.  Source: PTX manual, "mbarrier". */

static __device__ __forceinline__ uint32_t shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* PTX manual, mbarrier.init.  By one thread, once; count 1 to 2^20 - 1. */
static __device__ __forceinline__ void mbarrier_init(uint64_t *bar, unsigned count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}

/* PTX manual, membar/fence: new barriers can be seen by asynchronous copies (fence.mbarrier_init, fence.proxy.async). */
static __device__ __forceinline__ void mbarrier_fence_init()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    __trap();
#endif
}

/* PTX manual, mbarrier.arrive: one arrival; what this thread did before is seen by those who wait (release, block). */
static __device__ __forceinline__ void mbarrier_arrive(uint64_t *bar)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
#else
    __trap();
#endif
}

/* PTX manual, cp.async.mbarrier.arrive.noinc: one arrival, when what this thread has asked for with copy_async16 is there. */
static __device__ __forceinline__ void copy_async_arrive(uint64_t *bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}

/* PTX manual, mbarrier.expect_tx and mbarrier.arrive.expect_tx: this phase also waits for n_bytes (below 2^20 in all). */
static __device__ __forceinline__ void mbarrier_expect_tx(uint64_t *bar, uint32_t n_bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(n_bytes)
                 : "memory");
#else
    __trap();
#endif
}
static __device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t *bar, uint32_t n_bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(n_bytes)
                 : "memory");
#else
    __trap();
#endif
}

/* PTX manual, mbarrier.try_wait.parity: whether the phase of this parity has completed; false after a while (the hardware
 * suspends the thread meanwhile), so that it stands in a loop.  What was copied or released is seen after true. */
static __device__ __forceinline__ bool mbarrier_try_wait(uint64_t *bar, unsigned parity)
{
#if __CUDA_ARCH__ >= 900
    uint32_t done;
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                 "selp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return done != 0;
#else
    __trap();
    return true;
#endif
}

/* PTX manual, cp.async.bulk (1-D, global to shared, complete_tx): n_bytes, a multiple of 16, between addresses that are
 * multiples of 16; by one thread.  The barrier counts the bytes as they come. */
static __device__ __forceinline__ void copy_bulk(void *shared, const void *global, uint32_t n_bytes, uint64_t *bar)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(n_bytes), "r"(shared_address(bar))
                 : "memory");
#else
    __trap();
#endif
}

/* PTX manual, createpolicy: what comes through L2 with this policy is the first to leave it.  Made once a thread. */
static __device__ __forceinline__ uint64_t l2_evict_first()
{
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}

/* copy_bulk with .L2::cache_hint: weights, which are read once. */
static __device__ __forceinline__ void copy_bulk_hint(void *shared, const void *global, uint32_t n_bytes, uint64_t *bar,
                                                      uint64_t policy)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
                 "%4;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(n_bytes), "r"(shared_address(bar)), "l"(policy)
                 : "memory");
#else
    __trap();
#endif
}

/* PTX manual, cp.async.bulk.prefetch.L2: n_bytes, a multiple of 16, into L2; nothing before 9.0. */
static __device__ __forceinline__ void prefetch_bulk_l2(const void *global, uint32_t n_bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(n_bytes) : "memory");
#endif
}

/* ---- clusters: blocks that run at the same time and may write each other's shared memory; compute capability 9.0 ---- */

static constexpr bool CLUSTERS_RUN = true; /* where the capability has them; the emulator has none */

/* PTX manual, barrier.cluster: all threads of all blocks of the cluster; what they wrote before, in shared memory too, is seen
 * after.  With a cluster of one block as __syncthreads. */
static __device__ __forceinline__ void cluster_barrier()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __trap();
#endif
}

/* PTX manual, mapa and st.shared::cluster: v to the place in block rank of the cluster that has this address in this block. */
static __device__ __forceinline__ void store_cluster(double *shared, double v, unsigned rank)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.f64 [there], %2; }" ::"r"(
                     shared_address(shared)),
                 "r"(rank), "d"(v)
                 : "memory");
#else
    __trap();
#endif
}

/* ---- words that another GPU writes or reads while this kernel runs ----
 *
 * PTX manual, ld and st .relaxed.sys: each 32-bit element by itself is read or written whole; nothing is said about the order of
 * elements or of other accesses.  A loop that waits for another GPU calls load_relaxed_sys16 every time. */
static __device__ __forceinline__ uint4 load_relaxed_sys16(const void *p)
{
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
static __device__ __forceinline__ void store_relaxed_sys16(void *p, uint4 v)
{
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
/* The same for one word, such as one in mapped memory of the host. */
static __device__ __forceinline__ uint32_t load_relaxed_sys4(const void *p)
{
    uint32_t v;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ void store_relaxed_sys4(void *p, uint32_t v)
{
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

/* PTX manual, %globaltimer: nanoseconds, one clock for all multiprocessors, in steps of up to about a microsecond.  For
 * time-outs: read it once in many rounds.  clock_cycles (%clock64) counts a multiprocessor's cycles. */
static __device__ __forceinline__ uint64_t clock_ns()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
    return t;
}
static __device__ __forceinline__ uint64_t clock_cycles()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
    return t;
}

} // namespace mq_cuda
#endif

#endif
