/* The runtime's calls for devices, memory and launches: a few devices alike, memory from the heap, everything done before
 * the call returns (streams.cpp: unless a stream captures).
 *
 * Device memory is remembered with its device, so that a copy from or to a pointer of the host, or of another device, where
 * the current device's belongs is an error, and filled with NaN, so that what was never written shows. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "tests/emulator/emulator.h"
#include "tests/emulator/scheduler.h"

enum { DEFAULT_SHARED = 48 << 10, MOST_SHARED = 227 << 10, MOST_THREADS = 1024, MOST_GRID_YZ = 65535, PAGE = 4096 };

namespace {
std::mutex lock;
struct block {
    size_t n_bytes;
    int device;
};
std::map<const char *, block> blocks; /* device memory by its start */
std::map<const char *, size_t> pinned; /* the host's */
std::set<std::pair<int, int>> peers;   /* (device, whose memory it may use) */
std::map<const void *, int> shared_limits;
thread_local cudaError_t last = cudaSuccess;
thread_local int current_device;
std::atomic<int> n_devices{1}, allocation_to_fail, launch_to_fail;
int major = 9, minor;
std::atomic<int64_t> memory_bytes{(int64_t)1 << 34}; /* of each device */
bool peers_can_access = true, peers_have_atomics = true;

bool allow_host_pointers, guard_new_memory;

/* Guarded memory: addresses are reserved once and never used twice. */
const size_t ARENA_BYTES = (size_t)1 << 38;
char *arena;
size_t arena_used;
std::mutex use_lock;
int n_uses;

void protect_arena(int how)
{
    if (arena_used && mprotect(arena, arena_used, how)) {
        perror("emulator: mprotect");
        abort();
    }
}

/* Ends where its last page ends, but for what the alignment of 256 leaves; a page behind it stays closed. */
void *arena_allocate(size_t n_bytes)
{
    std::lock_guard<std::mutex> guard(use_lock);
    if (!arena) {
        void *p = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        arena = p == MAP_FAILED ? nullptr : (char *)p;
    }
    size_t room = (n_bytes + PAGE - 1) / PAGE * PAGE;
    if (!arena || arena_used + room > ARENA_BYTES)
        return nullptr;
    char *p = arena + arena_used + (room - n_bytes) / 256 * 256;
    arena_used += room;
    protect_arena(n_uses ? PROT_READ | PROT_WRITE : PROT_NONE);
    return p;
}

bool is_in_arena(const void *p)
{
    return arena && (const char *)p >= arena && (const char *)p < arena + ARENA_BYTES;
}

bool counts_down_to_failure(std::atomic<int> *n)
{
    return *n > 0 && --*n == 0;
}

cudaError_t remember(cudaError_t e)
{
    return emu_remember(e);
}

/* The entry that holds all n_bytes at p, or NULL; lock is held. */
const block *find_block(const void *p, size_t n_bytes)
{
    auto it = blocks.upper_bound((const char *)p);
    if (it == blocks.begin())
        return nullptr;
    --it;
    return (const char *)p + n_bytes <= it->first + it->second.n_bytes ? &it->second : nullptr;
}

int64_t allocated_on(int device)
{
    int64_t sum = 0;
    for (const auto &b : blocks)
        sum += device < 0 || b.second.device == device ? (int64_t)b.second.n_bytes : 0;
    return sum;
}
} // namespace

cudaError_t emu_remember(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

int emu_current_device(void)
{
    return current_device;
}

void emu_set_current_device(int ordinal)
{
    current_device = ordinal;
}

bool emu_is_device(const void *p, size_t n_bytes)
{
    std::lock_guard<std::mutex> guard(lock);
    const block *b = find_block(p, n_bytes);
    return b && (b->device == current_device || peers.count({current_device, b->device}));
}

bool emu_can_touch(const void *p, size_t n_bytes)
{
    if (emu_is_device(p, n_bytes))
        return true;
    std::lock_guard<std::mutex> guard(lock);
    auto it = pinned.upper_bound((const char *)p);
    return it != pinned.begin() && (--it, (const char *)p + n_bytes <= it->first + it->second);
}

/* Heap, stack and program lie above; pairs of 32-bit numbers, and the address sanitizer's own memory, mostly below. */
static const uint64_t LEAST_ADDRESS = (uint64_t)0x50 << 40;

bool emu_has_host_address(const void *p, size_t n_bytes)
{
    for (size_t at = 0; at + 8 <= n_bytes; at += 8) {
        uint64_t word;
        unsigned char resident;
        memcpy(&word, (const char *)p + at, sizeof word);
        if (word >= LEAST_ADDRESS && word >> 47 == 0 && !emu_can_touch((const void *)word, 0) &&
            mincore((void *)(word / PAGE * PAGE), PAGE, &resident) == 0)
            return true;
    }
    return false;
}

bool emu_allows_host_pointers(void)
{
    return allow_host_pointers;
}

emu_memory_use::emu_memory_use()
{
    std::lock_guard<std::mutex> guard(use_lock);
    if (n_uses++ == 0)
        protect_arena(PROT_READ | PROT_WRITE);
}

emu_memory_use::~emu_memory_use()
{
    std::lock_guard<std::mutex> guard(use_lock);
    if (--n_uses == 0)
        protect_arena(PROT_NONE);
}

extern "C" {
void mq_emulator_allow_host_pointers(bool allowed)
{
    allow_host_pointers = allowed;
}

void mq_emulator_guard_memory(bool guarded)
{
    guard_new_memory = guarded;
}

void mq_emulator_run_backwards(bool on)
{
    emu_set_backwards(on);
}

void mq_emulator_set_devices(int n)
{
    n_devices = n;
    std::lock_guard<std::mutex> guard(lock);
    peers.clear();
}

void mq_emulator_set_peers(bool access, bool atomics)
{
    peers_can_access = access;
    peers_have_atomics = atomics;
}

void mq_emulator_set_memory(int64_t n_bytes)
{
    memory_bytes = n_bytes;
}

void mq_emulator_set_capability(int to_major, int to_minor)
{
    major = to_major;
    minor = to_minor;
}

void mq_emulator_fail_allocation(int n)
{
    allocation_to_fail = n;
}

int64_t mq_emulator_allocated(void)
{
    std::lock_guard<std::mutex> guard(lock);
    return allocated_on(-1);
}

void mq_emulator_fail_launch(int n)
{
    launch_to_fail = n;
}
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorPeerAccessUnsupported: return "peer access is not supported between these two devices";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorIllegalState: return "the operation cannot be performed in the present state";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorPeerAccessAlreadyEnabled: return "peer access is already enabled";
    case cudaErrorPeerAccessNotEnabled: return "peer access has not been enabled";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureImplicit:
        return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorStreamCaptureWrongThread:
        return "attempt to terminate a thread-local capture sequence from another thread";
    }
    return "unknown error";
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last;
    last = cudaSuccess;
    return e;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = n_devices;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int ordinal)
{
    if (ordinal < 0 || ordinal >= n_devices)
        return remember(cudaErrorInvalidDevice);
    *prop = {};
    snprintf(prop->name, sizeof prop->name, "emulated GPU");
    prop->major = major;
    prop->minor = minor;
    prop->multiProcessorCount = 4;
    prop->totalGlobalMem = (size_t)memory_bytes;
    prop->sharedMemPerBlockOptin = MOST_SHARED;
    prop->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

/* An emulated GPU has no clocks. */
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int ordinal)
{
    if (ordinal < 0 || ordinal >= n_devices)
        return remember(cudaErrorInvalidDevice);
    *value = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal)
{
    if (ordinal < 0 || ordinal >= n_devices)
        return remember(cudaErrorInvalidDevice);
    current_device = ordinal;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *ordinal)
{
    *ordinal = current_device;
    return cudaSuccess;
}

/* ---- memory of peers ---- */

static bool are_devices(int a, int b)
{
    return a >= 0 && b >= 0 && a < n_devices && b < n_devices;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    if (!are_devices(device, peer))
        return remember(cudaErrorInvalidDevice);
    *can = device != peer && peers_can_access;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, cudaDeviceP2PAttr attribute, int from, int to)
{
    if (!are_devices(from, to) || from == to)
        return remember(cudaErrorInvalidDevice);
    *value = attribute == cudaDevP2PAttrAccessSupported          ? peers_can_access
             : attribute == cudaDevP2PAttrNativeAtomicSupported ? peers_can_access && peers_have_atomics
                                                                 : 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags)
{
    if (!are_devices(current_device, peer) || peer == current_device)
        return remember(cudaErrorInvalidDevice);
    if (flags)
        return remember(cudaErrorInvalidValue);
    if (!peers_can_access)
        return remember(cudaErrorPeerAccessUnsupported);
    std::lock_guard<std::mutex> guard(lock);
    return peers.insert({current_device, peer}).second ? cudaSuccess : remember(cudaErrorPeerAccessAlreadyEnabled);
}

cudaError_t cudaDeviceDisablePeerAccess(int peer)
{
    std::lock_guard<std::mutex> guard(lock);
    return peers.erase({current_device, peer}) ? cudaSuccess : remember(cudaErrorPeerAccessNotEnabled);
}

/* ---- allocation ---- */

static bool has_room(size_t n_bytes)
{
    std::lock_guard<std::mutex> guard(lock);
    int64_t left = memory_bytes - allocated_on(current_device);
    return left >= 0 && n_bytes <= (size_t)left;
}

cudaError_t cudaMalloc(void **out, size_t n_bytes)
{
    cudaError_t unsafe = emu_unsafe_call();
    *out = nullptr;
    if (unsafe != cudaSuccess || n_bytes == 0)
        return unsafe;
    if (counts_down_to_failure(&allocation_to_fail) || !has_room(n_bytes))
        return remember(cudaErrorMemoryAllocation);
    if (guard_new_memory)
        *out = arena_allocate(n_bytes);
    else if (posix_memalign(out, 256, n_bytes))
        *out = nullptr;
    if (!*out)
        return remember(cudaErrorMemoryAllocation);
    emu_memory_use open;
    memset(*out, 0xff, n_bytes);
    std::lock_guard<std::mutex> guard(lock);
    blocks[(const char *)*out] = {n_bytes, current_device};
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    std::lock_guard<std::mutex> guard(lock);
    int64_t left = memory_bytes - allocated_on(current_device);
    *free_bytes = left > 0 ? (size_t)left : 0;
    *total_bytes = (size_t)memory_bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    size_t n_bytes = 0;
    cudaError_t unsafe = emu_unsafe_call();
    if (unsafe != cudaSuccess)
        return unsafe;
    {
        std::lock_guard<std::mutex> guard(lock);
        auto it = blocks.find((const char *)p);
        if (p && it == blocks.end())
            return remember(cudaErrorInvalidValue);
        if (p) {
            n_bytes = it->second.n_bytes;
            blocks.erase(it);
        }
    }
    if (is_in_arena(p))
        madvise((void *)((uintptr_t)p / PAGE * PAGE), n_bytes, MADV_DONTNEED); /* addresses are not used again */
    else
        free(p);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t n_bytes, unsigned)
{
    cudaError_t unsafe = emu_unsafe_call();
    *out = nullptr;
    if (unsafe != cudaSuccess || n_bytes == 0)
        return unsafe;
    if (posix_memalign(out, PAGE, n_bytes))
        return remember(cudaErrorMemoryAllocation);
    std::lock_guard<std::mutex> guard(lock);
    pinned[(const char *)*out] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t n_bytes)
{
    return cudaHostAlloc(out, n_bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *p)
{
    cudaError_t unsafe = emu_unsafe_call();
    if (unsafe != cudaSuccess || !p)
        return unsafe;
    {
        std::lock_guard<std::mutex> guard(lock);
        if (!pinned.erase((const char *)p))
            return remember(cudaErrorInvalidValue);
    }
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *p, unsigned)
{
    std::lock_guard<std::mutex> guard(lock);
    auto it = pinned.upper_bound((const char *)p);
    *out = nullptr;
    if (it == pinned.begin() || (--it, (const char *)p >= it->first + it->second))
        return remember(cudaErrorInvalidValue);
    *out = p;
    return cudaSuccess;
}

/* ---- copies ---- */

static bool is_on_a_device(const void *p, size_t n_bytes)
{
    std::lock_guard<std::mutex> guard(lock);
    return find_block(p, n_bytes) != NULL;
}

/* From device to device without access to each other's memory: the driver has its own way. */
static cudaError_t copy_now(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind)
{
    bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
    bool is_across = to_device && from_device && is_on_a_device(src, n_bytes);
    if (n_bytes && (emu_is_device(dst, n_bytes) != to_device || (!is_across && emu_is_device(src, n_bytes) != from_device)))
        return cudaErrorInvalidValue;
    emu_memory_use open;
    if (n_bytes)
        memcpy(dst, src, n_bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind, cudaStream_t s)
{
    return emu_queue(s, [=]() { return copy_now(dst, src, n_bytes, kind); });
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind)
{
    cudaError_t unsafe = emu_unsafe_call();
    return unsafe != cudaSuccess ? unsafe : remember(copy_now(dst, src, n_bytes, kind));
}

/* Needs no access of one device to the other's memory. */
cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device, size_t n_bytes,
                                cudaStream_t s)
{
    return emu_queue(s, [=]() {
        {
            std::lock_guard<std::mutex> guard(lock);
            const block *to = find_block(dst, n_bytes), *from = find_block(src, n_bytes);
            if (n_bytes && (!to || !from || to->device != dst_device || from->device != src_device))
                return cudaErrorInvalidValue;
        }
        emu_memory_use open;
        if (n_bytes)
            memcpy(dst, src, n_bytes);
        return cudaSuccess;
    });
}

static cudaError_t set_now(void *p, int value, size_t n_bytes)
{
    if (n_bytes && !emu_is_device(p, n_bytes))
        return cudaErrorInvalidValue;
    emu_memory_use open;
    if (n_bytes)
        memset(p, value, n_bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n_bytes, cudaStream_t s)
{
    return emu_queue(s, [=]() { return set_now(p, value, n_bytes); });
}

cudaError_t cudaMemset(void *p, int value, size_t n_bytes)
{
    cudaError_t unsafe = emu_unsafe_call();
    return unsafe != cudaSuccess ? unsafe : remember(set_now(p, value, n_bytes));
}

/* ---- launches ---- */

cudaError_t emu_set_shared_limit(const void *kernel, cudaFuncAttribute, int n_bytes)
{
    if (n_bytes < 0 || n_bytes > MOST_SHARED)
        return remember(cudaErrorInvalidValue);
    std::lock_guard<std::mutex> guard(lock);
    shared_limits[kernel] = n_bytes;
    return cudaSuccess;
}

cudaError_t emu_launch(const cudaLaunchConfig_t *c, const void *kernel, std::shared_ptr<emu_call> call)
{
    size_t most = DEFAULT_SHARED;
    {
        std::lock_guard<std::mutex> guard(lock);
        auto it = shared_limits.find(kernel);
        if (it != shared_limits.end() && (size_t)it->second > most)
            most = (size_t)it->second;
    }
    uint64_t threads = (uint64_t)c->blockDim.x * c->blockDim.y * c->blockDim.z;
    if (threads == 0 || threads > MOST_THREADS || c->blockDim.z > 64 || c->dynamicSmemBytes > most ||
        c->gridDim.x == 0 || c->gridDim.y == 0 || c->gridDim.z == 0 || c->gridDim.x > INT32_MAX ||
        c->gridDim.y > MOST_GRID_YZ || c->gridDim.z > MOST_GRID_YZ)
        return remember(cudaErrorInvalidConfiguration);
    if (counts_down_to_failure(&launch_to_fail))
        return remember(cudaErrorInvalidValue);
    if (emu_stream_device(c->stream) != current_device)
        return remember(cudaErrorInvalidResourceHandle);
    return emu_queue(c->stream, [grid = c->gridDim, block = c->blockDim, shared = c->dynamicSmemBytes, call]() {
        if (!allow_host_pointers && call->has_host_pointer())
            return cudaErrorIllegalAddress;
        emu_memory_use open;
        emu_run_grid(current_device, grid, block, shared, call.get());
        return cudaSuccess;
    });
}
