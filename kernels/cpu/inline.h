/* What the vector headers share: scalar conversions, and the two hints that turn a kernel written once into one
 * straight piece of code per shape. */
#ifndef MQ_KERNELS_CPU_INLINE_H
#define MQ_KERNELS_CPU_INLINE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "src/float.h"

#if !defined(__AVX2__)
#define MQ_UNROLL /* plain C: lanes are loops already */
#elif defined(__clang__)
#define MQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MQ_UNROLL _Pragma("GCC unroll 16")
#endif
#define MQ_INLINE static inline __attribute__((always_inline, unused))

#endif
