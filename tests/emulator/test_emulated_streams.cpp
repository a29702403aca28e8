/* The emulator's streams, graphs, pinned memory and peers; barriers that count and bulk copies; devices beside each other. */
#include <thread>
#include <vector>

#include "kernels/cuda/ptx.cuh"
#include "tests/emulator/emulator_test.h"

using namespace mq_cuda;

/* ---- graphs ---- */

static __global__ void add_kernel(int *out, int by)
{
    atomicAdd(out, by);
}

static cudaError_t add_on(cudaStream_t s, int *out, int by)
{
    cudaLaunchConfig_t c = {};
    c.gridDim = 2;
    c.blockDim = 32;
    c.stream = s;
    return cudaLaunchKernelEx(&c, add_kernel, out, by);
}

static int *device_int()
{
    int *p;
    ck_assert(cudaMalloc((void **)&p, sizeof *p) == cudaSuccess);
    ck_assert(cudaMemset(p, 0, sizeof *p) == cudaSuccess);
    return p;
}

static int value_of(const int *p)
{
    int v;
    ck_assert(cudaMemcpy(&v, p, sizeof v, cudaMemcpyDeviceToHost) == cudaSuccess);
    return v;
}

START_TEST(a_graph_replays_what_was_captured)
{
    cudaStream_t s;
    cudaGraph_t graph, whole;
    cudaGraphExec_t exec;
    cudaStreamCaptureStatus status;
    size_t n_nodes;
    int *p = device_int(), *q = device_int(), host = 7;
    ck_assert(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) == cudaSuccess);
    ck_assert(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    ck_assert(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaErrorIllegalState);
    ck_assert(cudaStreamIsCapturing(s, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive);
    {
        int by = 2; /* the parameter is kept with the node */
        ck_assert(add_on(s, p, by) == cudaSuccess);
        by = 100;
    }
    ck_assert(cudaMemcpyAsync(q, &host, sizeof host, cudaMemcpyHostToDevice, s) == cudaSuccess);
    ck_assert(add_on(s, q, 1) == cudaSuccess);
    ck_assert(cudaStreamEndCapture(s, &graph) == cudaSuccess);
    ck_assert(cudaGraphGetNodes(graph, nullptr, &n_nodes) == cudaSuccess && n_nodes == 3);
    ck_assert(value_of(p) == 0 && value_of(q) == 0); /* recorded, not run */
    ck_assert(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
    ck_assert(cudaGraphDestroy(graph) == cudaSuccess);
    for (int i = 1; i <= 3; i++) {
        host = 10 * i; /* host memory is read when the graph runs */
        ck_assert(cudaGraphLaunch(exec, s) == cudaSuccess);
        ck_assert(cudaStreamSynchronize(s) == cudaSuccess);
        ck_assert_int_eq(value_of(p), 128 * i);
        ck_assert_int_eq(value_of(q), 10 * i + 64);
    }
    ck_assert(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    ck_assert(cudaGraphLaunch(exec, s) == cudaSuccess);
    ck_assert(cudaMemsetAsync(p, 0, sizeof *p, s) == cudaSuccess);
    ck_assert(cudaStreamEndCapture(s, &whole) == cudaSuccess);
    ck_assert(cudaGraphExecDestroy(exec) == cudaSuccess);
    ck_assert(cudaGraphInstantiate(&exec, whole) == cudaSuccess && value_of(p) == 128 * 3);
    ck_assert(cudaGraphLaunch(exec, s) == cudaSuccess && value_of(p) == 0);
    ck_assert(cudaFree(p) == cudaSuccess);
    ck_assert(cudaGraphLaunch(exec, s) == cudaErrorIllegalAddress); /* its memory is gone */
    (void)cudaGetLastError();
    (void)cudaGraphDestroy(whole);
    (void)cudaGraphExecDestroy(exec);
    (void)cudaFree(q);
    (void)cudaStreamDestroy(s);
}
END_TEST

START_TEST(what_waits_ends_a_capture)
{
    cudaStream_t s, other;
    cudaGraph_t graph;
    cudaStreamCaptureStatus status;
    int *p = device_int(), host;
    void *q;
    ck_assert(cudaStreamCreate(&s) == cudaSuccess && cudaStreamCreate(&other) == cudaSuccess);
    for (int c = 0; c < 6; c++) {
        ck_assert(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        ck_assert(cudaStreamSynchronize(other) == cudaSuccess); /* has nothing to do with it */
        cudaError_t e = c == 0   ? cudaMalloc(&q, 4)
                        : c == 1 ? cudaFree(p)
                        : c == 2 ? cudaStreamSynchronize(s)
                        : c == 3 ? cudaMemcpy(&host, p, 4, cudaMemcpyDeviceToHost)
                        : c == 4 ? cudaDeviceSynchronize()
                                 : cudaHostAlloc(&q, 4, 0);
        ck_assert_int_eq(e, cudaErrorStreamCaptureUnsupported);
        ck_assert(cudaStreamIsCapturing(s, &status) == cudaSuccess && status == cudaStreamCaptureStatusInvalidated);
        ck_assert(add_on(s, p, 1) == cudaErrorStreamCaptureInvalidated);
        ck_assert(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
        ck_assert_str_eq(cudaGetErrorString(cudaGetLastError()), "operation failed due to a previous error during capture");
    }
    ck_assert(cudaStreamEndCapture(s, &graph) == cudaErrorIllegalState);
    ck_assert(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed) == cudaSuccess);
    ck_assert(cudaMalloc(&q, 4) == cudaSuccess && cudaFree(q) == cudaSuccess);
    ck_assert(cudaStreamEndCapture(s, &graph) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
    ck_assert(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed) == cudaErrorStreamCaptureUnsupported);
    ck_assert_int_eq(value_of(p), 0);
    (void)cudaGetLastError();
    (void)cudaFree(p);
    (void)cudaStreamDestroy(s);
    (void)cudaStreamDestroy(other);
}
END_TEST

START_TEST(events_join_streams_and_tell_time)
{
    cudaStream_t s, t;
    cudaEvent_t a, b;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    size_t n_nodes;
    float ms = -1.0f;
    int *p = device_int();
    ck_assert(cudaStreamCreate(&s) == cudaSuccess && cudaStreamCreate(&t) == cudaSuccess);
    ck_assert(cudaEventCreate(&a) == cudaSuccess && cudaEventCreate(&b) == cudaSuccess);
    ck_assert(cudaEventElapsedTime(&ms, a, b) == cudaErrorInvalidResourceHandle);
    ck_assert(cudaEventRecord(a, s) == cudaSuccess && cudaEventRecord(b, s) == cudaSuccess);
    ck_assert(cudaEventSynchronize(b) == cudaSuccess && cudaEventElapsedTime(&ms, a, b) == cudaSuccess && ms >= 0.0f);
    ck_assert(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    ck_assert(cudaEventRecord(a, s) == cudaSuccess && cudaStreamWaitEvent(t, a) == cudaSuccess);
    ck_assert(add_on(t, p, 1) == cudaSuccess); /* captured too */
    ck_assert(cudaEventRecord(b, t) == cudaSuccess && cudaStreamWaitEvent(s, b) == cudaSuccess);
    ck_assert(cudaStreamEndCapture(s, &graph) == cudaSuccess);
    ck_assert(cudaGraphGetNodes(graph, nullptr, &n_nodes) == cudaSuccess && n_nodes == 1);
    ck_assert(add_on(t, p, 1) == cudaSuccess && value_of(p) == 64);
    ck_assert(cudaGraphInstantiate(&exec, graph) == cudaSuccess && cudaGraphLaunch(exec, t) == cudaSuccess);
    ck_assert_int_eq(value_of(p), 128);
    (void)cudaGetLastError();
    (void)cudaGraphDestroy(graph);
    (void)cudaGraphExecDestroy(exec);
    (void)cudaEventDestroy(a);
    (void)cudaEventDestroy(b);
    (void)cudaStreamDestroy(s);
    (void)cudaStreamDestroy(t);
    (void)cudaFree(p);
}
END_TEST

/* ---- memory ---- */

START_TEST(pinned_memory_serves_both_sides)
{
    int *p, *on_device, *back;
    ck_assert(cudaHostAlloc((void **)&p, sizeof *p, cudaHostAllocMapped) == cudaSuccess);
    ck_assert(cudaHostGetDevicePointer((void **)&on_device, p, 0) == cudaSuccess);
    *p = 0;
    ck_assert(run(add_kernel, 1, 32, 0, on_device, 1) == cudaSuccess);
    ck_assert_int_eq(*p, 32);
    back = device_int();
    ck_assert(cudaMemcpyAsync(back, p, sizeof *p, cudaMemcpyHostToDevice, nullptr) == cudaSuccess);
    ck_assert_int_eq(value_of(back), 32);
    ck_assert(cudaMemcpyAsync(back, p, sizeof *p, cudaMemcpyDeviceToDevice, nullptr) == cudaErrorInvalidValue);
    ck_assert(cudaFree(back) == cudaSuccess && cudaFreeHost(p) == cudaSuccess && cudaFreeHost(nullptr) == cudaSuccess);
    ck_assert(cudaFreeHost(p) == cudaErrorInvalidValue);
    (void)cudaGetLastError();
}
END_TEST

START_TEST(memory_has_an_end)
{
    size_t free_bytes, total;
    void *p, *q;
    mq_emulator_set_memory(1000);
    ck_assert(cudaMalloc(&p, 600) == cudaSuccess);
    ck_assert(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && free_bytes == 400 && total == 1000);
    ck_assert(cudaMalloc(&q, 401) == cudaErrorMemoryAllocation);
    ck_assert(cudaMalloc(&q, 400) == cudaSuccess);
    ck_assert(cudaFree(p) == cudaSuccess && cudaFree(q) == cudaSuccess);
    mq_emulator_set_memory((int64_t)1 << 34);
    (void)cudaGetLastError();
}
END_TEST

START_TEST(peers_share_memory_once_it_is_enabled)
{
    int can, value;
    mq_emulator_set_devices(2);
    int *p = device_int();
    ck_assert(cudaSetDevice(1) == cudaSuccess);
    ck_assert(run(add_kernel, 1, 1, 0, p, 1) == cudaErrorIllegalAddress);
    ck_assert(cudaDeviceCanAccessPeer(&can, 1, 0) == cudaSuccess && can == 1);
    ck_assert(cudaDeviceGetP2PAttribute(&value, cudaDevP2PAttrNativeAtomicSupported, 1, 0) == cudaSuccess && value == 1);
    ck_assert(cudaDeviceEnablePeerAccess(1, 0) == cudaErrorInvalidDevice);
    ck_assert(cudaDeviceEnablePeerAccess(0, 0) == cudaSuccess);
    ck_assert(cudaDeviceEnablePeerAccess(0, 0) == cudaErrorPeerAccessAlreadyEnabled);
    ck_assert(run(add_kernel, 1, 1, 0, p, 1) == cudaSuccess);
    ck_assert(cudaSetDevice(0) == cudaSuccess);
    ck_assert_int_eq(value_of(p), 1);
    ck_assert(cudaSetDevice(1) == cudaSuccess && cudaDeviceDisablePeerAccess(0) == cudaSuccess);
    ck_assert(cudaDeviceDisablePeerAccess(0) == cudaErrorPeerAccessNotEnabled);
    ck_assert(run(add_kernel, 1, 1, 0, p, 1) == cudaErrorIllegalAddress);
    mq_emulator_set_peers(false, false);
    ck_assert(cudaDeviceCanAccessPeer(&can, 1, 0) == cudaSuccess && can == 0);
    ck_assert(cudaDeviceEnablePeerAccess(0, 0) == cudaErrorPeerAccessUnsupported);
    mq_emulator_set_peers(true, true);
    ck_assert(cudaSetDevice(0) == cudaSuccess && cudaFree(p) == cudaSuccess);
    mq_emulator_set_devices(1);
    (void)cudaGetLastError();
}
END_TEST

/* ---- devices beside each other ---- */

enum { N_ROUNDS = 50 };

/* Every thread hands a number to its twin and waits for the twin's; block barriers in between. */
static __global__ void ping_kernel(uint32_t *mine, uint32_t *peers, int *wrong)
{
    uint32_t *from = mine + 4 * threadIdx.x, *to = peers + 4 * threadIdx.x;
    for (uint32_t i = 1; i <= N_ROUNDS; i++) {
        store_relaxed_sys16(to, {i, i, i, i});
        uint64_t start = clock_ns();
        uint4 v;
        do {
            v = load_relaxed_sys16(from);
        } while (v.x < i && clock_ns() - start < 20000000000ull);
        if (v.x < i || blockDim.x != 64)
            atomicAdd(wrong, 1);
        __syncthreads();
    }
}

START_TEST(kernels_of_two_devices_wait_for_each_other)
{
    uint32_t *words[2];
    int *wrong[2];
    mq_emulator_set_devices(2);
    for (int d = 0; d < 2; d++) {
        ck_assert(cudaSetDevice(d) == cudaSuccess && cudaDeviceEnablePeerAccess(1 - d, 0) == cudaSuccess);
        ck_assert(cudaMalloc((void **)&words[d], 64 * 16) == cudaSuccess);
        ck_assert(cudaMemset(words[d], 0, 64 * 16) == cudaSuccess);
        wrong[d] = device_int();
    }
    std::vector<std::thread> threads;
    cudaError_t e[2];
    for (int d = 0; d < 2; d++)
        threads.emplace_back([&, d]() {
            e[d] = cudaSetDevice(d);
            if (e[d] == cudaSuccess)
                e[d] = run(ping_kernel, 1, 64, 0, words[d], words[1 - d], wrong[d]);
        });
    for (std::thread &t : threads)
        t.join();
    for (int d = 0; d < 2; d++) {
        ck_assert(cudaSetDevice(d) == cudaSuccess && e[d] == cudaSuccess && value_of(wrong[d]) == 0);
        ck_assert(cudaFree(words[d]) == cudaSuccess && cudaFree(wrong[d]) == cudaSuccess);
    }
    ck_assert(cudaSetDevice(0) == cudaSuccess);
    mq_emulator_set_devices(1);
}
END_TEST

/* ---- barriers that count, bulk copies ---- */

enum { STAGES = 2, STAGE = 64, N_STAGES = 7 };

/* Thread 32 fetches N_STAGES pieces through a ring of STAGES; warp 0 adds them up. */
static __global__ void ring_kernel(int *sum, const int *data, int wait)
{
    MQ_SHARED(ring, int[STAGES][STAGE]);
    MQ_SHARED(full, uint64_t[STAGES]);
    MQ_SHARED(empty, uint64_t[STAGES]);
    int t = (int)threadIdx.x;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], 32);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (t == 32) {
        uint64_t policy = l2_evict_first();
        for (int k = 0; k < N_STAGES; k++) {
            int s = k % STAGES;
            unsigned round = (unsigned)(k / STAGES);
            while (wait && !mbarrier_try_wait(&empty[s], (round & 1) ^ 1)) {
            }
            mbarrier_arrive_expect_tx(&full[s], sizeof ring[s]);
            copy_bulk_hint(ring[s], data + k * STAGE, sizeof ring[s], &full[s], policy);
        }
    } else if (t < 32) {
        int mine = 0;
        for (int k = 0; k < N_STAGES; k++) {
            int s = k % STAGES;
            while (!mbarrier_try_wait(&full[s], (unsigned)(k / STAGES) & 1)) {
            }
            for (int i = t; i < STAGE; i += 32)
                mine += ring[s][i];
            mbarrier_arrive(&empty[s]);
        }
        atomicAdd(sum, mine);
    }
}

START_TEST(a_ring_of_bulk_copies_brings_everything)
{
    int data[N_STAGES * STAGE], sum = 0, *p;
    for (int i = 0; i < N_STAGES * STAGE; i++)
        sum += data[i] = i * i % 101;
    ck_assert(cudaMalloc((void **)&p, sizeof data) == cudaSuccess);
    ck_assert(cudaMemcpy(p, data, sizeof data, cudaMemcpyHostToDevice) == cudaSuccess);
    for (int backwards = 0; backwards < 2; backwards++) {
        int *out = device_int();
        mq_emulator_run_backwards(backwards);
        ck_assert(run(ring_kernel, 1, 64, 0, out, (const int *)p, 1) == cudaSuccess);
        mq_emulator_run_backwards(false);
        ck_assert_int_eq(value_of(out), sum);
        (void)cudaFree(out);
    }
    int *out = device_int();
    dies("more arrivals at a barrier than its count", ring_kernel, out, (const int *)p, 0);
    (void)cudaFree(out);
    (void)cudaFree(p);
}
END_TEST

/* One copy of 64 bytes with one thing wrong. */
static __global__ void wrong_bulk_kernel(int *out, const int *data, int what)
{
    MQ_SHARED(to, int[32]);
    MQ_SHARED(bar, uint64_t);
    if (threadIdx.x == 0) {
        if (what != 0)
            mbarrier_init(&bar, 1);
        if (what == 1)
            mbarrier_init(&bar, 1);
        if (what != 2)
            mbarrier_fence_init();
        if (what != 3)
            mbarrier_arrive_expect_tx(&bar, what == 4 ? 80 : 64);
        copy_bulk(to + (what == 5 ? 1 : what == 6 ? 20 : 0), data, what == 7 ? 60 : 64, &bar);
        if (what == 8)
            return;
        while (!mbarrier_try_wait(&bar, 0)) {
        }
        out[0] = to[0];
    }
}

START_TEST(mistakes_with_barriers_end_the_process)
{
    int *p, *out = device_int();
    ck_assert(cudaMalloc((void **)&p, 64) == cudaSuccess);
    dies("a barrier is used before mbarrier_init", wrong_bulk_kernel, out, (const int *)p, 0);
    dies("a barrier is initialized twice", wrong_bulk_kernel, out, (const int *)p, 1);
    dies("no mbarrier_fence_init since", wrong_bulk_kernel, out, (const int *)p, 2);
    dies("lacks 1 arrivals and -64 bytes", wrong_bulk_kernel, out, (const int *)p, 3);
    dies("lacks 0 arrivals and 16 bytes", wrong_bulk_kernel, out, (const int *)p, 4);
    dies("addresses and size are multiples of 16", wrong_bulk_kernel, out, (const int *)p, 5);
    dies("goes beyond the shared variable", wrong_bulk_kernel, out, (const int *)p, 6);
    dies("addresses and size are multiples of 16", wrong_bulk_kernel, out, (const int *)p, 7);
    dies("1 bulk copies are under way at the end", wrong_bulk_kernel, out, (const int *)p, 8);
    ck_assert(run(wrong_bulk_kernel, 1, 32, 0, out, (const int *)p, 9) == cudaSuccess);
    (void)cudaFree(p);
    (void)cudaFree(out);
}
END_TEST

int main()
{
    Suite *s = suite_create("emulated_streams");
    TCase *t = tcase_create("all");
    tcase_add_test(t, a_graph_replays_what_was_captured);
    tcase_add_test(t, what_waits_ends_a_capture);
    tcase_add_test(t, events_join_streams_and_tell_time);
    tcase_add_test(t, pinned_memory_serves_both_sides);
    tcase_add_test(t, memory_has_an_end);
    tcase_add_test(t, peers_share_memory_once_it_is_enabled);
    tcase_add_test(t, kernels_of_two_devices_wait_for_each_other);
    tcase_add_test(t, a_ring_of_bulk_copies_brings_everything);
    tcase_add_test(t, mistakes_with_barriers_end_the_process);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
