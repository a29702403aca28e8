/* How long an exchange takes: a graph of many, launched a few times, timed by the device's events. */
#include "kernels/cuda/exchange.cuh"
#include "kernels/cuda/graph_time.cuh"

namespace mq_cuda {

enum { LAUNCHES = 5 };

struct many_exchanges {
    mq_exchange *x;
    mq_exchange_way way;
    float *sum;
    const float *local;
    const int32_t *n_rows;
    int n;
};

static mq_status queue_exchanges(void *arg, mq_err *err)
{
    const many_exchanges *m = (const many_exchanges *)arg;
    mq_status st = MQ_OK;
    for (int i = 0; i < m->n && st == MQ_OK; i++)
        st = exchange_ops.sum(m->x, m->way, m->sum, m->local, m->n_rows, err);
    return st;
}

mq_status exchange_time(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows, int n,
                        double *us, mq_err *err)
{
    many_exchanges m = {x, way, sum, local, n_rows, n};
    double seconds;
    mq_status st = graph_time(x->dev, &seconds, queue_exchanges, &m, LAUNCHES, true, err);
    *us = 1e6 * seconds / n;
    return st;
}

} // namespace mq_cuda
