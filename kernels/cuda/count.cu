/* The GPUs of this machine: how many, and their names for people.  device.cu opens them.
 * A machine without a driver has none; that is no error. */
#include <cuda_runtime.h>
#include <stdio.h>

#include "kernels/kernels.h"

int mq_cuda_count(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0 ? count : 0;
}

bool mq_cuda_name(int ordinal, char *name, int64_t name_bytes)
{
    cudaDeviceProp prop;
    if (name_bytes <= 0)
        return false;
    name[0] = 0;
    if (ordinal < 0 || ordinal >= mq_cuda_count() || cudaGetDeviceProperties(&prop, ordinal) != cudaSuccess)
        return false;
    snprintf(name, (size_t)name_bytes, "%s", prop.name);
    return true;
}
