#include "kernels/cuda/graph_time.cuh"

#include <stdlib.h>

namespace mq_cuda {

struct graph_timing {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
};

/* And the first launch, queued. */
static mq_status capture(mq_dev *dev, graph_timing *t, mq_queue *queue, void *arg, mq_err *err)
{
    MQ_TRY(check(dev, cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal), "capture", err));
    mq_status st = queue(arg, err);
    cudaError_t e = cudaStreamEndCapture(dev->stream, &t->graph);
    MQ_TRY(st);
    MQ_TRY(check(dev, e, "capture", err));
    MQ_TRY(check(dev, cudaGraphInstantiate(&t->exec, t->graph, 0), "graph", err));
    MQ_TRY(check(dev, cudaEventCreate(&t->from), "event", err));
    MQ_TRY(check(dev, cudaEventCreate(&t->to), "event", err));
    return check(dev, cudaGraphLaunch(t->exec, dev->stream), "graph", err);
}

/* Seconds of n launches. */
static mq_status run(mq_dev *dev, double *seconds, graph_timing *t, int n, mq_err *err)
{
    float ms = 0.0f;
    cudaError_t e = cudaEventRecord(t->from, dev->stream);
    for (int i = 0; i < n && e == cudaSuccess; i++)
        e = cudaGraphLaunch(t->exec, dev->stream);
    if (e == cudaSuccess)
        e = cudaEventRecord(t->to, dev->stream);
    if (e == cudaSuccess)
        e = cudaEventSynchronize(t->to);
    if (e == cudaSuccess)
        e = cudaEventElapsedTime(&ms, t->from, t->to);
    *seconds = 1e-3 * (double)ms;
    return check(dev, e, "time of a graph", err);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static mq_status median(mq_dev *dev, double *seconds, graph_timing *t, int n, mq_err *err)
{
    double *each = (double *)malloc((size_t)n * sizeof *each);
    if (!each)
        return mq_fail(err, MQ_E_NOMEM, "time of a graph: out of host memory");
    mq_status st = MQ_OK;
    for (int i = 0; i < n && st == MQ_OK; i++)
        st = run(dev, &each[i], t, 1, err);
    qsort(each, (size_t)n, sizeof *each, by_size);
    *seconds = each[n / 2];
    free(each);
    return st;
}

mq_status graph_time(mq_dev *dev, double *seconds, mq_queue *queue, void *arg, int n_launches, bool together, mq_err *err)
{
    graph_timing t = {};
    *seconds = 0.0;
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "time of a graph", err));
    mq_status st = capture(dev, &t, queue, arg, err);
    if (st == MQ_OK)
        st = together ? run(dev, seconds, &t, n_launches, err) : median(dev, seconds, &t, n_launches, err);
    if (together)
        *seconds /= n_launches;
    if (t.from)
        (void)cudaEventDestroy(t.from);
    if (t.to)
        (void)cudaEventDestroy(t.to);
    if (t.exec)
        (void)cudaGraphExecDestroy(t.exec);
    if (t.graph)
        (void)cudaGraphDestroy(t.graph);
    return st;
}

} // namespace mq_cuda
