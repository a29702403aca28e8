/* Host versions of kernels/cuda/ptx.cuh: shared variables, matrix fragments, asynchronous copies, other devices' words.
 *
 * Included by ptx.cuh instead of its PTX when MQ_CUDA_EMULATED is set.  The product of fragments follows the layout of
 * the PTX manual, "Matrix fragments for mma.m16n8k16 with floating point type": lane l, g = l / 4, t = l % 4 holds
 *
 *   A  16 x 16, row    a[0] row g, a[1] row g + 8 at columns 2 t, 2 t + 1; a[2], a[3] the same rows at 2 t + 8, 2 t + 9
 *   B  16 x 8, column  b[0] rows 2 t, 2 t + 1 and b[1] rows 2 t + 8, 2 t + 9 of column g
 *   C  16 x 8          c[0], c[1] row g at columns 2 t, 2 t + 1; c[2], c[3] row g + 8
 *
 * the lower column (row of B) in the low half of a register.  Each output is one double sum rounded once; the
 * hardware's order and rounding of the 16 products are not specified, so bits may differ there. */
#ifndef MQ_TESTS_EMULATOR_EMULATED_PTX_H
#define MQ_TESTS_EMULATOR_EMULATED_PTX_H

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "src/float.h"

#define MQ_SHARED(name, ...)               \
    using name##_type = __VA_ARGS__;       \
    static const char name##_key = 0;      \
    name##_type &name = *(name##_type *)emu_shared(&name##_key, sizeof(name##_type))
#define MQ_SHARED_DYNAMIC(name, type) type *name = (type *)emu_dynamic_shared()

/* bulk.cpp and scheduler.cpp */
void emu_mbarrier_init(uint64_t *at, unsigned count, const char *file, int line);
void emu_mbarrier_fence(void);
void emu_mbarrier_arrive(uint64_t *at, const char *file, int line);
void emu_mbarrier_expect(uint64_t *at, uint32_t n_bytes, bool and_arrive, const char *file, int line);
bool emu_mbarrier_try_wait(uint64_t *at, unsigned parity, const char *file, int line);
void emu_bulk_copy(void *shared, const void *global, uint32_t n_bytes, uint64_t *at, const char *file, int line);
void emu_read_outside(const void *p, const char *file, int line);

namespace mq_cuda {

struct emu_mma {
    float c[4];
    uint32_t a[4], b[2];
};

inline double emu_bf16(uint32_t pair, int high)
{
    return (double)__uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

inline void emu_combine_mma(void *const *payloads, unsigned mask, const char *file, int line)
{
    if (mask != 0xffffffffu) {
        fprintf(stderr, "emulator: %s:%d: a matrix product takes a whole warp\n", file, line);
        abort();
    }
    double a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        const emu_mma *p = (const emu_mma *)payloads[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 2; i++)
            for (int h = 0; h < 2; h++) {
                a[g][2 * t + 8 * h + i] = emu_bf16(p->a[2 * h], i);
                a[g + 8][2 * t + 8 * h + i] = emu_bf16(p->a[2 * h + 1], i);
                b[2 * t + 8 * h + i][g] = emu_bf16(p->b[h], i);
            }
    }
    for (int l = 0; l < 32; l++) {
        emu_mma *p = (emu_mma *)payloads[l];
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + 8 * (i / 2), col = 2 * (l % 4) + i % 2;
            double sum = (double)p->c[i];
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[k][col];
            p->c[i] = (float)sum;
        }
    }
}

inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2], EMU_SITE)
{
    emu_mma m;
    memcpy(m.c, c, sizeof m.c);
    memcpy(m.a, a, sizeof m.a);
    memcpy(m.b, b, sizeof m.b);
    emu_meet(0xffffffffu, emu_combine_mma, &m, file, line);
    memcpy(c, m.c, sizeof m.c);
}

/* Copies arrive at once here: a wait that is missing does not show. */
inline void copy_async16(void *shared, const void *global)
{
    if (((uintptr_t)shared | (uintptr_t)global) % 16) {
        fprintf(stderr, "emulator: copy_async16: addresses are not multiples of 16\n");
        abort();
    }
    memcpy(shared, global, 16);
}
inline void copy_async_commit() {}
template <int LEFT> inline void copy_async_wait() {}

/* Kernels run one after the other: there is nothing to wait for. */
inline void wait_for_previous() {}
inline void let_next_start() {}

inline void emu_check_aligned(const void *p, size_t n_bytes)
{
    if ((uintptr_t)p % n_bytes) {
        fprintf(stderr, "emulator: %zu bytes at an address that is no multiple of it\n", n_bytes);
        abort();
    }
}
template <class T> inline T emu_load(const void *p)
{
    emu_check_aligned(p, sizeof(T));
    return *(const T *)p;
}
inline uint4 load_weights16(const void *p) { return emu_load<uint4>(p); }
inline uint32_t load_weights4(const void *p) { return emu_load<uint32_t>(p); }
inline void load_weights16_if(uint4 &v, const void *p, bool wanted)
{
    if (wanted)
        v = emu_load<uint4>(p);
}
inline void load_weights8_if(uint32_t v[2], const void *p, bool wanted)
{
    if (!wanted)
        return;
    uint2 both = emu_load<uint2>(p);
    v[0] = both.x;
    v[1] = both.y;
}
inline void load_weights4_if(uint32_t &v, const void *p, bool wanted)
{
    if (wanted)
        v = emu_load<uint32_t>(p);
}
inline uint4 load_l2_16(const void *p) { return emu_load<uint4>(p); }
inline uint32_t load_l2_4(const void *p) { return emu_load<uint32_t>(p); }

/* Blocks run one after the other: no clusters, and nobody gets here. */
static constexpr bool CLUSTERS_RUN = false;
inline void cluster_barrier() { abort(); }
inline void store_cluster(double *, double, unsigned) { abort(); }

/* The device is off by a place of F32, and has 0 for what is below the normal numbers. */
inline float reciprocal(float x) { return 1.0f / x; }

/* Blocks run one after the other. */
enum { BLOCKS_RUN_TOGETHER = 0 };
inline void add_release4(uint32_t *p, uint32_t v) { *p += v; }
inline uint32_t load_acquire4(const uint32_t *p) { return emu_load<uint32_t>(p); }
inline void give_up() { abort(); }

inline uint32_t bf16x2_of_floats(float a, float b)
{
    return (uint32_t)mq_f32_to_bf16(a) | (uint32_t)mq_f32_to_bf16(b) << 16;
}
inline float2 floats_of_f16x2(uint32_t pair)
{
    return {mq_f16_to_f32((uint16_t)pair), mq_f16_to_f32((uint16_t)(pair >> 16))};
}
inline float2 floats_of_e4m3x2(uint16_t codes)
{
    return {mq_e4m3_to_f32((uint8_t)codes), mq_e4m3_to_f32((uint8_t)(codes >> 8))};
}

inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) | bits; }

/* Rounded to F32 before BF16: where the result needs no more than BF16's 8 bits, as in all our uses, that is exact. */
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d = 0;
    for (int high = 0; high < 2; high++) {
        double v = emu_bf16(a, high) * emu_bf16(b, high) + emu_bf16(c, high);
        d |= (uint32_t)mq_f32_to_bf16((float)v) << 16 * high;
    }
    return d;
}

/* Barriers that count: bulk.cpp keeps the counts beside the memory. */
inline void mbarrier_init(uint64_t *bar, unsigned count, EMU_SITE) { emu_mbarrier_init(bar, count, file, line); }
inline void mbarrier_fence_init() { emu_mbarrier_fence(); }
inline void mbarrier_arrive(uint64_t *bar, EMU_SITE) { emu_mbarrier_arrive(bar, file, line); }
inline void copy_async_arrive(uint64_t *bar, EMU_SITE) { emu_mbarrier_arrive(bar, file, line); }
inline void mbarrier_expect_tx(uint64_t *bar, uint32_t n_bytes, EMU_SITE)
{
    emu_mbarrier_expect(bar, n_bytes, false, file, line);
}
inline void mbarrier_arrive_expect_tx(uint64_t *bar, uint32_t n_bytes, EMU_SITE)
{
    emu_mbarrier_expect(bar, n_bytes, true, file, line);
}
inline bool mbarrier_try_wait(uint64_t *bar, unsigned parity, EMU_SITE)
{
    return emu_mbarrier_try_wait(bar, parity, file, line);
}
inline void copy_bulk(void *shared, const void *global, uint32_t n_bytes, uint64_t *bar, EMU_SITE)
{
    emu_bulk_copy(shared, global, n_bytes, bar, file, line);
}
inline uint64_t l2_evict_first() { return 0; }
inline void copy_bulk_hint(void *shared, const void *global, uint32_t n_bytes, uint64_t *bar, uint64_t, EMU_SITE)
{
    emu_bulk_copy(shared, global, n_bytes, bar, file, line);
}
inline void prefetch_bulk_l2(const void *, uint32_t) {}

/* Elements are atomic by themselves, as on the device.  Who reads the same address again waits: others have their turn. */
inline uint32_t emu_read_word(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED); }
inline void emu_write_word(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELAXED); }
inline uint4 load_relaxed_sys16(const void *p, EMU_SITE)
{
    emu_read_outside(p, file, line);
    const uint4 *v = (const uint4 *)p;
    emu_check_aligned(p, 16);
    return {emu_read_word(&v->x), emu_read_word(&v->y), emu_read_word(&v->z), emu_read_word(&v->w)};
}
inline void store_relaxed_sys16(void *p, uint4 v)
{
    emu_check_aligned(p, 16);
    uint4 *to = (uint4 *)p;
    emu_write_word(&to->x, v.x);
    emu_write_word(&to->y, v.y);
    emu_write_word(&to->z, v.z);
    emu_write_word(&to->w, v.w);
}
inline uint32_t load_relaxed_sys4(const void *p, EMU_SITE)
{
    emu_read_outside(p, file, line);
    return emu_read_word(p);
}
inline void store_relaxed_sys4(void *p, uint32_t v) { emu_write_word(p, v); }
inline uint64_t clock_ns()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
inline uint64_t clock_cycles() { return clock_ns(); }

} // namespace mq_cuda

#endif
