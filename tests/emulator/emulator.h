/* What tests may ask of the emulator: its table of operations, and the faults and orders it can be told to use.
 * The product never sees it: mq_kernels_find knows no such name. */
#ifndef MQ_TESTS_EMULATOR_EMULATOR_H
#define MQ_TESTS_EMULATOR_EMULATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The table of kernels/cuda compiled for the host; static storage.  Its name is "cuda". */
extern const mq_kernels mq_cuda_emulated_kernels;

/* Run blocks, warps and lanes from the last to the first (or, the default, from the first): a missing barrier that one
 * order forgives shows in the other. */
void mq_emulator_run_backwards(bool backwards);

/* How many devices there are, ordinals from 0; 1 unless changed.  A kernel or copy on one that is given the memory of another
 * fails as with the host's, unless it has enabled access to that peer; this call ends all such access. */
void mq_emulator_set_devices(int n);

/* Whether devices can use each other's memory, and with native atomics; both unless changed. */
void mq_emulator_set_peers(bool access, bool atomics);

/* Memory of each device; 16 GiB unless changed. */
void mq_emulator_set_memory(int64_t n_bytes);

/* The compute capability that the devices report; 9.0 unless changed. */
void mq_emulator_set_capability(int major, int minor);

/* Let the n-th allocation of device memory from now fail (1: the next); 0: none. */
void mq_emulator_fail_allocation(int n);

/* Let kernels be given pointers to host memory; otherwise, the default, such a launch fails. */
void mq_emulator_allow_host_pointers(bool allowed);

/* From now on device memory is allocated where the host cannot touch it: outside kernels and copies a read or write of it ends
 * the process.  It stays so for what was allocated meanwhile. */
void mq_emulator_guard_memory(bool guarded);

/* Device memory in use, bytes. */
int64_t mq_emulator_allocated(void);

/* Let the n-th launch from now fail (1: the next); 0: none. */
void mq_emulator_fail_launch(int n);

#ifdef __cplusplus
}
#endif
#endif
