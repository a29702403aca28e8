/* Finds a table of operations by name, and answers for CUDA where it is not built in.  The only place that knows
 * what was built. */
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"

const mq_kernels *mq_kernels_find(const char *name)
{
    return !strcmp(name, mq_cpu_kernels.name) ? &mq_cpu_kernels : NULL;
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
