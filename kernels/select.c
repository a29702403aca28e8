/* Finds a table of operations by name, and answers for CUDA where it is not built in.  The only place that knows
 * what was built. */
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"

#ifdef MQ_CUDA
extern const mq_kernels mq_cuda_kernels; /* kernels/cuda/device.cu */
static const mq_kernels *const others = &mq_cuda_kernels;
#else
static const mq_kernels *const others = NULL;
#endif

const mq_kernels *mq_kernels_find(const char *name)
{
    if (!strcmp(name, mq_cpu_kernels.name))
        return &mq_cpu_kernels;
    return others && !strcmp(name, others->name) ? others : NULL;
}

#ifndef MQ_CUDA
int mq_cuda_count(void)
{
    return 0;
}

bool mq_cuda_name(int ordinal, char *name, int64_t name_bytes)
{
    (void)ordinal;
    if (name_bytes > 0)
        name[0] = 0;
    return false;
}
#endif
