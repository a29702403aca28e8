/* Everything that plain CUDA C++ cannot say: the matrix product of fragments, asynchronous copies; and the one way to
 * declare shared memory.
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

/* a * b + c of two BF16 values each, rounded once. */
static __device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* 16, 8 and 4 bytes of weights: read once, so not kept in L1.  Addresses aligned to the size. */
static __device__ __forceinline__ uint4 load_weights16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint2 load_weights8(const void *p)
{
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
static __device__ __forceinline__ uint32_t load_weights4(const void *p)
{
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
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

} // namespace mq_cuda
#endif

#endif
