/* Stand-in for CUDA's runtime header: kernels/cuda compiled by a C++ compiler and run on the host.
 *
 * Only what our kernels use is here.  Qualifiers vanish; threadIdx and its kin belong to the host thread, and the scheduler
 * (tests/emulator/scheduler.cpp) sets them before a thread runs; barriers and warp operations give control back to it
 * until every thread they name has arrived.  Memory of the "device" is the heap's, so an address sanitizer sees every
 * overrun; all calls complete before they return.  emulated_api.h has the runtime's calls.  README.md beside this folder
 * says what is checked and what is not. */
#ifndef MQ_TESTS_EMULATOR_CUDA_RUNTIME_H
#define MQ_TESTS_EMULATOR_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;

/* ---- threads of a block meet ---- */

/* Wait for all threads of the block; kind and operand as in __syncthreads_or and its kin. */
enum emu_barrier_kind { EMU_BARRIER, EMU_BARRIER_OR, EMU_BARRIER_AND, EMU_BARRIER_COUNT };
int emu_barrier(emu_barrier_kind kind, int operand, const char *file, int line);

/* Wait for the lanes of mask; then combine(payloads [32] of those lanes, mask) runs once. */
typedef void emu_combine(void *const *payloads, unsigned mask, const char *file, int line);
void emu_meet(unsigned mask, emu_combine *combine, void *payload, const char *file, int line);

#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMU_SITE) { emu_barrier(EMU_BARRIER, 0, file, line); }
inline int __syncthreads_or(int p, EMU_SITE) { return emu_barrier(EMU_BARRIER_OR, p, file, line); }
inline int __syncthreads_and(int p, EMU_SITE) { return emu_barrier(EMU_BARRIER_AND, p, file, line); }
inline int __syncthreads_count(int p, EMU_SITE) { return emu_barrier(EMU_BARRIER_COUNT, p, file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) { emu_meet(mask, nullptr, nullptr, file, line); }

struct emu_shuffle {
    uint64_t in, out;
    int source; /* lane */
};
void emu_combine_shuffle(void *const *payloads, unsigned mask, const char *file, int line);
unsigned emu_ballot(unsigned mask, int predicate, const char *file, int line);
inline int emu_lane() { return (int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32); }

template <class T> T emu_shuffle_from(unsigned mask, T v, int source, const char *file, int line)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    emu_shuffle s = {0, 0, source};
    memcpy(&s.in, &v, sizeof v);
    emu_meet(mask, emu_combine_shuffle, &s, file, line);
    memcpy(&v, &s.out, sizeof v);
    return v;
}

/* Lanes outside the sub-warp of width lanes read themselves, as the hardware has it. */
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, EMU_SITE)
{
    int base = emu_lane() / width * width;
    return emu_shuffle_from(mask, v, base + (from & (width - 1)), file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMU_SITE)
{
    int lane = emu_lane(), from = lane ^ bits;
    return emu_shuffle_from(mask, v, from / width > lane / width ? lane : from, file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_SITE)
{
    int lane = emu_lane(), from = lane + (int)by;
    return emu_shuffle_from(mask, v, from / width != lane / width ? lane : from, file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_SITE)
{
    int lane = emu_lane(), from = lane - (int)by;
    return emu_shuffle_from(mask, v, from < lane / width * width ? lane : from, file, line);
}
unsigned emu_reduce_max(unsigned mask, unsigned v, const char *file, int line);
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, EMU_SITE) { return emu_reduce_max(mask, v, file, line); }
inline unsigned __ballot_sync(unsigned mask, int p, EMU_SITE) { return emu_ballot(mask, p, file, line); }
inline int __any_sync(unsigned mask, int p, EMU_SITE) { return emu_ballot(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, EMU_SITE) { return emu_ballot(mask, p, file, line) == mask; }

/* ---- atomics and fences: of a device one thread runs at a time, so plain operations ---- */

template <class T> T atomicAdd(T *p, T v)
{
    T old = *p;
    *p = (T)(old + v);
    return old;
}
template <class T> T atomicMax(T *p, T v)
{
    T old = *p;
    *p = v > old ? v : old;
    return old;
}
template <class T> T atomicMin(T *p, T v)
{
    T old = *p;
    *p = v < old ? v : old;
    return old;
}
template <class T> T atomicOr(T *p, T v)
{
    T old = *p;
    *p = old | v;
    return old;
}
template <class T> T atomicExch(T *p, T v) { return std::exchange(*p, v); }
template <class T> T atomicCAS(T *p, T expected, T v)
{
    T old = *p;
    *p = old == expected ? v : old;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

/* ---- intrinsics ---- */

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }

/* ---- shared memory, one allocation a variable and block; kernels/cuda/ptx.cuh has the macros ---- */

void *emu_shared(const void *key, size_t n_bytes);
void *emu_dynamic_shared(void);

#include <emulated_api.h>

#endif
