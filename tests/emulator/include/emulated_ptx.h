/* Host versions of kernels/cuda/ptx.cuh: shared variables, matrix fragments, asynchronous copies.
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

#include "src/float.h"

#define MQ_SHARED(name, ...)               \
    using name##_type = __VA_ARGS__;       \
    static const char name##_key = 0;      \
    name##_type &name = *(name##_type *)emu_shared(&name##_key, sizeof(name##_type))
#define MQ_SHARED_DYNAMIC(name, type) type *name = (type *)emu_dynamic_shared()

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

template <class T> inline T emu_load(const void *p)
{
    if ((uintptr_t)p % sizeof(T)) {
        fprintf(stderr, "emulator: a load of %zu bytes from an address that is no multiple of it\n", sizeof(T));
        abort();
    }
    return *(const T *)p;
}
inline uint4 load_weights16(const void *p) { return emu_load<uint4>(p); }
inline uint2 load_weights8(const void *p) { return emu_load<uint2>(p); }
inline uint32_t load_weights4(const void *p) { return emu_load<uint32_t>(p); }
inline uint4 load_l2_16(const void *p) { return emu_load<uint4>(p); }
inline uint32_t load_l2_4(const void *p) { return emu_load<uint32_t>(p); }

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

} // namespace mq_cuda

#endif
