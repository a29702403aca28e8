/* What the vector headers share: scalar conversions, and the two hints that turn a kernel written once into one
 * straight piece of code per shape. */
#ifndef MQ_KERNELS_CPU_INLINE_H
#define MQ_KERNELS_CPU_INLINE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "src/float.h"

/* Kernels with shape parameters (MQ_TEMPLATE) become one copy per shape in vector builds; in plain C and under a sanitizer they
 * stay one function, or compiling takes minutes. */
#define MQ_INLINE static inline __attribute__((always_inline, unused))
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define MQ_ONE_COPY
#endif
#endif
#if !defined(MQ_ONE_COPY) && (defined(__SANITIZE_ADDRESS__) || !defined(__AVX2__) || !defined(__OPTIMIZE__))
#define MQ_ONE_COPY
#endif

#if defined(MQ_ONE_COPY)
#define MQ_TEMPLATE static __attribute__((noinline, unused))
#define MQ_UNROLL
#elif defined(__clang__)
#define MQ_TEMPLATE MQ_INLINE
#define MQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MQ_TEMPLATE MQ_INLINE
#define MQ_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
