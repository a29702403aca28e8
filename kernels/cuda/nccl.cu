/* The one user of NCCL: parts of all ranks gathered, as the plain alternative to the push of exchange.cu.
 *
 * The library is loaded when an exchange asks for it, by name: nothing needs it otherwise.  Its functions are declared here, as
 * few as are used; they have not changed since version 2.4, the least accepted.  ncclAllGather leaves parts in rank order, so
 * sums are made here in our order, not NCCL's. */
#include <dlfcn.h>
#include <stdlib.h>

#include "kernels/cuda/exchange.cuh"

namespace mq_cuda {

enum { LEAST_VERSION = 2400, NCCL_SUCCESS = 0, NCCL_FLOAT32 = 7 };
typedef struct nccl_comm *nccl_comm_t;

struct nccl_library {
    void *handle;
    int (*get_version)(int *version);
    const char *(*error_string)(int result);
    int (*init_all)(nccl_comm_t *comms, int n_devices, const int *devices);
    int (*all_gather)(const void *send, void *receive, size_t count, int type, nccl_comm_t comm, cudaStream_t stream);
    int (*destroy)(nccl_comm_t comm);
    int (*abort)(nccl_comm_t comm);
};

/* Each end has opened the library once. */
struct nccl_end {
    nccl_library library;
    nccl_comm_t comm; /* NULL: not made, or gone by abort; swapped atomically */
};

static mq_status check_nccl(const mq_dev *dev, const nccl_library *l, int result, const char *what, mq_err *err)
{
    if (result == NCCL_SUCCESS)
        return MQ_OK;
    return mq_fail(err, MQ_E_DEVICE, "cuda %d: %s: NCCL: %s", dev->ordinal, what, l->error_string(result));
}

template <class F> static bool find(const nccl_library *l, F *function, const char *name)
{
    *function = (F)dlsym(l->handle, name);
    return *function != NULL;
}

static mq_status open_library(const mq_dev *dev, nccl_library *l, const char *file, mq_err *err)
{
    int version = 0;
    l->handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!l->handle)
        return mq_fail(err, MQ_E_DEVICE, "NCCL is not there: %s", dlerror());
    if (!find(l, &l->get_version, "ncclGetVersion") || !find(l, &l->error_string, "ncclGetErrorString") ||
        !find(l, &l->init_all, "ncclCommInitAll") || !find(l, &l->all_gather, "ncclAllGather") ||
        !find(l, &l->destroy, "ncclCommDestroy") || !find(l, &l->abort, "ncclCommAbort"))
        return mq_fail(err, MQ_E_DEVICE, "NCCL lacks a function: %s", dlerror());
    MQ_TRY(check_nccl(dev, l, l->get_version(&version), "ncclGetVersion", err));
    if (version < LEAST_VERSION)
        return mq_fail(err, MQ_E_DEVICE, "NCCL has version code %d, expected %d or later", version, (int)LEAST_VERSION);
    return MQ_OK;
}

static mq_status check_ends(mq_exchange *const *ends, int n, mq_err *err)
{
    for (int i = 0; i < n; i++) {
        if (ends[i]->nccl)
            return mq_fail(err, MQ_E_ARG, "cuda %d: NCCL is connected already", ends[i]->dev->ordinal);
        if (ends[i]->plan.n_local != ends[0]->plan.n_local)
            return mq_fail(err, MQ_E_ARG, "NCCL: %d ranks on cuda %d, %d on cuda %d, expected equally many",
                           ends[i]->plan.n_local, ends[i]->dev->ordinal, ends[0]->plan.n_local,
                           ends[0]->dev->ordinal);
        for (int j = 0; j < i; j++)
            if (ends[i]->dev->ordinal == ends[j]->dev->ordinal)
                return mq_fail(err, MQ_E_ARG, "NCCL: cuda %d twice", ends[i]->dev->ordinal);
    }
    return MQ_OK;
}

mq_status nccl_connect(mq_exchange *const *ends, int n, const char *library, mq_err *err)
{
    nccl_comm_t comms[MQ_EXCHANGE_MAX_RANKS] = {};
    int devices[MQ_EXCHANGE_MAX_RANKS] = {};
    MQ_TRY(check_ends(ends, n, err));
    mq_status st = MQ_OK;
    for (int i = 0; i < n && st == MQ_OK; i++) {
        devices[i] = ends[i]->dev->ordinal;
        ends[i]->nccl = (nccl_end *)calloc(1, sizeof *ends[i]->nccl);
        st = ends[i]->nccl ? open_library(ends[i]->dev, &ends[i]->nccl->library, library ? library : "libnccl.so.2", err)
                           : mq_fail(err, MQ_E_NOMEM, "cuda %d: out of host memory", devices[i]);
    }
    if (st == MQ_OK) {
        const nccl_library *l = &ends[0]->nccl->library;
        st = check_nccl(ends[0]->dev, l, l->init_all(comms, n, devices), "ncclCommInitAll", err);
    }
    for (int i = 0; i < n && st == MQ_OK; i++)
        ends[i]->nccl->comm = comms[i];
    for (int i = 0; i < n && st != MQ_OK; i++)
        nccl_close(ends[i]);
    return st;
}

mq_status nccl_gather(mq_exchange *x, float *parts, const float *local, mq_err *err)
{
    nccl_comm_t comm = x->nccl ? __atomic_load_n(&x->nccl->comm, __ATOMIC_ACQUIRE) : NULL;
    if (!comm)
        return mq_fail(err, x->nccl ? MQ_E_DEVICE : MQ_E_ARG, "cuda %d: %s", x->dev->ordinal,
                       x->nccl ? "NCCL was stopped" : "this end of the exchange is not connected to NCCL");
    const nccl_library *l = &x->nccl->library;
    size_t count = (size_t)x->plan.n_local * MQ_EXCHANGE_ROWS * (size_t)x->plan.hidden;
    MQ_TRY(check(x->dev, cudaSetDevice(x->dev->ordinal), "NCCL", err));
    return check_nccl(x->dev, l, l->all_gather(local, parts, count, NCCL_FLOAT32, comm, x->dev->stream), "ncclAllGather",
                      err);
}

void nccl_abort(mq_exchange *x)
{
    nccl_comm_t comm = x->nccl ? __atomic_exchange_n(&x->nccl->comm, (nccl_comm_t)NULL, __ATOMIC_ACQ_REL) : NULL;
    if (comm)
        (void)x->nccl->library.abort(comm);
}

void nccl_close(mq_exchange *x)
{
    if (!x->nccl)
        return;
    if (x->nccl->comm)
        (void)x->nccl->library.destroy(x->nccl->comm);
    if (x->nccl->library.handle)
        dlclose(x->nccl->library.handle);
    free(x->nccl);
    x->nccl = NULL;
}

} // namespace mq_cuda
