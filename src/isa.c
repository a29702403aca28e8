/* See isa.h.  Compiled for the baseline, so that it runs anywhere; other processors than x86-64 get plain C. */
#include "src/isa.h"

#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* F16C by hand: older compilers do not know its name.  The system's support of the registers comes with AVX2. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static mq_isa best(void)
{
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()))
        return MQ_ISA_SCALAR;
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return wide ? MQ_ISA_AVX512 : MQ_ISA_AVX2;
}
#else
static mq_isa best(void) { return MQ_ISA_SCALAR; }
#endif

mq_status mq_isa_choose(mq_isa *out, const char *name, mq_err *err)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    mq_isa have = best();
    *out = have;
    if (!name)
        return MQ_OK;
    for (mq_isa i = MQ_ISA_SCALAR; i <= MQ_ISA_AVX512; i++) {
        if (strcmp(name, names[i]) != 0)
            continue;
        *out = i;
        return i <= have ? MQ_OK : mq_fail(err, MQ_E_DEVICE, "instruction set '%s': this processor lacks it", name);
    }
    return mq_fail(err, MQ_E_ARG, "instruction set '%s': expected scalar, avx2 or avx512", name);
}
