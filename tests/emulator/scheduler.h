/* What the parts of the emulator offer each other. */
#ifndef MQ_TESTS_EMULATOR_SCHEDULER_H
#define MQ_TESTS_EMULATOR_SCHEDULER_H

#include <cuda_runtime.h>

/* Run run(context) once for every thread of the grid.  Sizes are checked by the caller. */
void emu_run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, void (*run)(void *), void *context);
void emu_set_backwards(bool on);

/* Whether all n_bytes at p are memory of the calling thread's device; never true of NULL. */
bool emu_is_device(const void *p, size_t n_bytes);
bool emu_allows_host_pointers(void);

/* Guarded device memory is open to the host while one of these lives. */
struct emu_memory_use {
    emu_memory_use();
    ~emu_memory_use();
};

#endif
