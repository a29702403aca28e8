/* The CUDA table's calibration operations over host arrays, in place of mq_kernels_find(name); for tests. */
#ifndef MQ_TESTS_KERNELS_CUDA_ON_HOST_ARRAYS_H
#define MQ_TESTS_KERNELS_CUDA_ON_HOST_ARRAYS_H

#include "kernels/kernels.h"
#include "src/units.h"

/* The emulator's table, or the real one with MQ_TEST_DEVICE=cuda (the process exits with 77 where there is no GPU); the emulator runs
 * threads in the other order with MQ_TEST_ORDER=backwards. */
const mq_kernels *mq_test_cuda_on_host_arrays(const char *name);

/* The emulator's table as it is, given pointers to host memory as they are, for tests that mix both. */
const mq_kernels *mq_test_cuda_emulated(const char *name);

#endif
