/* How long an exchange takes: a graph of many, launched a few times, timed by the device's events. */
#include "kernels/cuda/exchange.cuh"

namespace mq_cuda {

enum { LAUNCHES = 5 };

struct timing {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
};

static mq_status capture(mq_exchange *x, timing *t, mq_exchange_way way, float *sum, const float *local,
                         const int32_t *n_rows, int n, mq_err *err)
{
    mq_dev *dev = x->dev;
    mq_status st = MQ_OK;
    MQ_TRY(check(dev, cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal), "capture", err));
    for (int i = 0; i < n && st == MQ_OK; i++)
        st = exchange_ops.sum(x, way, sum, local, n_rows, err);
    cudaError_t e = cudaStreamEndCapture(dev->stream, &t->graph);
    MQ_TRY(st);
    MQ_TRY(check(dev, e, "capture", err));
    return check(dev, cudaGraphInstantiate(&t->exec, t->graph, 0), "graph", err);
}

/* The first launch, which is not timed, absorbs that devices begin at different times. */
static mq_status run(mq_exchange *x, timing *t, int n, double *us, mq_err *err)
{
    mq_dev *dev = x->dev;
    float ms = 0.0f;
    cudaError_t e = cudaEventCreate(&t->from);
    if (e == cudaSuccess)
        e = cudaEventCreate(&t->to);
    if (e == cudaSuccess)
        e = cudaGraphLaunch(t->exec, dev->stream);
    if (e == cudaSuccess)
        e = cudaEventRecord(t->from, dev->stream);
    for (int i = 0; i < LAUNCHES && e == cudaSuccess; i++)
        e = cudaGraphLaunch(t->exec, dev->stream);
    if (e == cudaSuccess)
        e = cudaEventRecord(t->to, dev->stream);
    if (e == cudaSuccess)
        e = cudaEventSynchronize(t->to);
    if (e == cudaSuccess)
        e = cudaEventElapsedTime(&ms, t->from, t->to);
    *us = 1e3 * (double)ms / (LAUNCHES * (double)n);
    return check(dev, e, "time of an exchange", err);
}

mq_status exchange_time(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows, int n,
                        double *us, mq_err *err)
{
    timing t = {};
    *us = 0.0;
    MQ_TRY(check(x->dev, cudaSetDevice(x->dev->ordinal), "time of an exchange", err));
    mq_status st = capture(x, &t, way, sum, local, n_rows, n, err);
    if (st == MQ_OK)
        st = run(x, &t, n, us, err);
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
