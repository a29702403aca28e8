/* What the parts of the emulator offer each other. */
#ifndef MQ_TESTS_EMULATOR_SCHEDULER_H
#define MQ_TESTS_EMULATOR_SCHEDULER_H

#include <cuda_runtime.h>

/* Run call->run() once for every thread of the grid.  Sizes are checked by the caller.  Host threads that run grids of
 * different devices do so at the same time. */
void emu_run_grid(int device, dim3 grid, dim3 block, size_t dynamic_bytes, emu_call *call);
void emu_set_backwards(bool on);
bool emu_is_backwards(void);

/* Whether all n_bytes at p are memory of the calling thread's device, or of one whose memory it may use (peer access); or also
 * pinned memory of the host.  Never true of NULL. */
bool emu_is_device(const void *p, size_t n_bytes);
bool emu_can_touch(const void *p, size_t n_bytes);
bool emu_allows_host_pointers(void);

/* Guarded device memory is open to the host while one of these lives. */
struct emu_memory_use {
    emu_memory_use();
    ~emu_memory_use();
};

/* Keep e for cudaGetLastError; returns it. */
cudaError_t emu_remember(cudaError_t e);
int emu_current_device(void);
bool emu_has_device(int ordinal);

/* ---- streams.cpp ---- */

/* Run op with the stream's device current, or record it where the stream captures. */
cudaError_t emu_queue(cudaStream_t s, std::function<cudaError_t()> op);
/* The stream's device; the current one for the default stream. */
int emu_stream_device(cudaStream_t s);
/* A call that must not be made while this thread captures, or in global mode another one: it fails and ends the capture. */
cudaError_t emu_unsafe_call(void);
void emu_set_current_device(int ordinal);

/* ---- bulk.cpp: barriers in shared memory and the copies that they count ---- */

/* Let the oldest copy under way arrive; false when there is none. */
bool emu_bulk_deliver(void);
/* The block's threads have ended. */
void emu_bulk_end_block(void);
/* What phases are waited for, to stderr. */
void emu_bulk_explain(void);

/* ---- for threads that wait by asking again ---- */

/* Others run; then the caller goes on.  outside: what it waits for may come from another device. */
void emu_poll(bool outside, const char *file, int line);
/* Something happened that threads may wait for. */
void emu_progress(void);
/* Whether n_bytes at p are shared memory of the block that runs. */
bool emu_is_shared(const void *p, size_t n_bytes);
/* End the process, naming the block, the calling thread and its place. */
[[noreturn]] void emu_mistake(const char *what, const char *file, int line);

#endif
