/* The part of the emulator that runs threads, for the part that is the runtime. */
#ifndef MQ_TESTS_EMULATOR_SCHEDULER_H
#define MQ_TESTS_EMULATOR_SCHEDULER_H

#include <cuda_runtime.h>

/* Run run(context) once for every thread of the grid.  Sizes are checked by the caller. */
void emu_run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, void (*run)(void *), void *context);
void emu_set_backwards(bool on);

#endif
