/* The instruction set of vector code, chosen once at run time. */
#ifndef MQ_SRC_ISA_H
#define MQ_SRC_ISA_H

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_isa {
    MQ_ISA_SCALAR, /* plain C */
    MQ_ISA_AVX2,   /* AVX2, FMA, F16C */
    MQ_ISA_AVX512  /* AVX-512 F, BW, VL, DQ, and the above */
} mq_isa;

/* The best this processor has (name NULL), or the one called "scalar", "avx2" or "avx512" (tests).
 * MQ_E_ARG: no such name.  MQ_E_DEVICE: the processor lacks it. */
mq_status mq_isa_choose(mq_isa *out, const char *name, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
