/* Streams, events and captured graphs.  Work runs before the call that queues it returns; in a stream that captures it is kept,
 * with a copy of the kernel's parameters, and runs when the graph is launched, one node after the other.
 *
 * A capture ends, as on a device, by what must not happen meanwhile: allocations, copies that wait, waiting for the stream. */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <time.h>

#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/emulator/scheduler.h"

struct emu_node {
    int device;
    std::function<cudaError_t()> op;
};
struct emu_graph {
    std::vector<emu_node> nodes;
};
struct emu_graph_exec {
    std::vector<emu_node> nodes;
};
struct emu_capture {
    emu_stream *origin;
    cudaStreamCaptureMode mode;
    std::thread::id owner;
    bool invalid;
    std::vector<emu_node> nodes;
    std::set<emu_stream *> joined; /* streams that wait for an event of the capture */
};
struct emu_stream {
    int device;
    emu_capture *capture;
};
struct emu_event {
    int device;
    bool has_timing, is_recorded;
    timespec time;
    emu_capture *capture; /* recorded in it */
};

namespace {
std::mutex lock; /* of captures and whatever points to them */
std::set<emu_capture *> captures;

emu_capture *capture_of(cudaStream_t s)
{
    return s ? s->capture : nullptr;
}

cudaError_t invalidate(emu_capture *c)
{
    c->invalid = true;
    return emu_remember(cudaErrorStreamCaptureUnsupported);
}

struct with_device {
    int before = emu_current_device();
    explicit with_device(int ordinal) { emu_set_current_device(ordinal); }
    ~with_device() { emu_set_current_device(before); }
};
} // namespace

int emu_stream_device(cudaStream_t s)
{
    return s ? s->device : emu_current_device();
}

cudaError_t emu_unsafe_call(void)
{
    std::lock_guard<std::mutex> guard(lock);
    cudaError_t e = cudaSuccess;
    for (emu_capture *c : captures) {
        bool own = c->owner == std::this_thread::get_id() && c->mode != cudaStreamCaptureModeRelaxed;
        if (own || c->mode == cudaStreamCaptureModeGlobal)
            e = invalidate(c);
    }
    return e;
}

cudaError_t emu_queue(cudaStream_t s, std::function<cudaError_t()> op)
{
    {
        std::lock_guard<std::mutex> guard(lock);
        if (emu_capture *c = capture_of(s)) {
            if (c->invalid)
                return emu_remember(cudaErrorStreamCaptureInvalidated);
            c->nodes.push_back({s->device, std::move(op)});
            return cudaSuccess;
        }
    }
    with_device use(emu_stream_device(s));
    return emu_remember(op());
}

/* ---- streams ---- */

cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    return cudaStreamCreateWithFlags(out, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    *out = new emu_stream{emu_current_device(), nullptr};
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    {
        std::lock_guard<std::mutex> guard(lock);
        if (emu_capture *c = capture_of(s)) {
            if (c->origin == s) {
                for (emu_stream *j : c->joined)
                    j->capture = nullptr;
                captures.erase(c);
                delete c;
            } else {
                c->joined.erase(s);
            }
        }
    }
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    std::lock_guard<std::mutex> guard(lock);
    emu_capture *c = capture_of(s);
    return c ? invalidate(c) : cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    return cudaStreamSynchronize(s);
}

cudaError_t cudaDeviceSynchronize(void)
{
    std::lock_guard<std::mutex> guard(lock);
    cudaError_t e = cudaSuccess;
    for (emu_capture *c : captures)
        if (c->origin->device == emu_current_device())
            e = invalidate(c);
    return e;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    std::lock_guard<std::mutex> guard(lock);
    if (!e->capture || !s || s->capture == e->capture)
        return cudaSuccess;
    if (s->capture || !captures.count(e->capture))
        return emu_remember(cudaErrorStreamCaptureUnsupported);
    s->capture = e->capture;
    s->capture->joined.insert(s);
    return cudaSuccess;
}

/* ---- events ---- */

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    *out = new emu_event{emu_current_device(), !(flags & cudaEventDisableTiming), false, {}, nullptr};
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (emu_stream_device(s) != e->device)
        return emu_remember(cudaErrorInvalidResourceHandle);
    std::lock_guard<std::mutex> guard(lock);
    e->capture = capture_of(s);
    e->is_recorded = true;
    clock_gettime(CLOCK_MONOTONIC, &e->time);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    return cudaEventSynchronize(e);
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    std::lock_guard<std::mutex> guard(lock);
    return e->capture && captures.count(e->capture) ? invalidate(e->capture) : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    if (!from->is_recorded || !to->is_recorded || !from->has_timing || !to->has_timing || from->capture || to->capture ||
        from->device != to->device)
        return emu_remember(cudaErrorInvalidResourceHandle);
    *ms = (float)(1e3 * (double)(to->time.tv_sec - from->time.tv_sec) +
                  1e-6 * (double)(to->time.tv_nsec - from->time.tv_nsec));
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    std::lock_guard<std::mutex> guard(lock);
    if (!s)
        return emu_remember(cudaErrorStreamCaptureUnsupported);
    if (s->capture)
        return emu_remember(cudaErrorIllegalState);
    s->capture = new emu_capture{s, mode, std::this_thread::get_id(), false, {}, {}};
    captures.insert(s->capture);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    std::lock_guard<std::mutex> guard(lock);
    emu_capture *c = capture_of(s);
    *out = nullptr;
    if (!c || c->origin != s)
        return emu_remember(cudaErrorIllegalState);
    if (c->mode != cudaStreamCaptureModeRelaxed && c->owner != std::this_thread::get_id())
        return emu_remember(cudaErrorStreamCaptureWrongThread);
    cudaError_t e = c->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    if (e == cudaSuccess)
        *out = new emu_graph{std::move(c->nodes)};
    for (emu_stream *j : c->joined)
        j->capture = nullptr;
    s->capture = nullptr;
    captures.erase(c);
    delete c;
    return emu_remember(e);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *out)
{
    std::lock_guard<std::mutex> guard(lock);
    emu_capture *c = capture_of(s);
    *out = !c           ? cudaStreamCaptureStatusNone
           : c->invalid ? cudaStreamCaptureStatusInvalidated
                        : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes)
{
    if (nodes)
        return emu_remember(cudaErrorInvalidValue); /* their number is all there is */
    *n_nodes = graph->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    *out = new emu_graph_exec{graph->nodes};
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    /* a copy of the nodes: a stream that captures keeps them beyond exec */
    return emu_queue(s, [nodes = exec->nodes]() {
        for (const emu_node &n : nodes) {
            with_device use(n.device);
            cudaError_t e = n.op();
            if (e != cudaSuccess)
                return e;
        }
        return cudaSuccess;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
