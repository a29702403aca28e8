/* Push exchange between devices: sentinels in the receiver's memory, three buffers in turn, nothing but relaxed words.
 *
 * Each thread has cells (row, 4 columns) of its own: it sends its device's values of these, then waits for the others'.  Sending
 * never waits, and adding a two-shot slice waits for sends only, so no order of threads or blocks can stand still.  Exchange
 * k uses buffer k % 3 and clears that of k - 1, which the kernel before has read.  A peer may be one exchange ahead, in
 * buffer k + 1, clean since the kernel of k - 1 ended; it reaches k + 2, this one's again after clearing, only with what
 * this device sends in k + 1.  Kernel boundaries on the receiving device order clearing before that. */
#include <stdlib.h>

#include "kernels/cuda/exchange.cuh"

namespace mq_cuda {

enum { ROWS = MQ_EXCHANGE_ROWS, RANKS = MQ_EXCHANGE_MAX_RANKS, MOST_THREADS = 256, POLLS_A_CLOCK = 64 };
enum { PARTS = 2 }; /* beside MQ_EXCHANGE_ONE_SHOT and MQ_EXCHANGE_TWO_SHOT, which give sums */
static const uint32_t SENTINEL = 0x80000000u; /* -0.0 */

/* ---- cells ---- */

static __device__ __forceinline__ uint4 all_sentinel()
{
    return make_uint4(SENTINEL, SENTINEL, SENTINEL, SENTINEL);
}
static __device__ __forceinline__ uint32_t clean_word(uint32_t v)
{
    return v == SENTINEL ? 0 : v;
}
static __device__ __forceinline__ uint4 clean(uint4 v)
{
    return make_uint4(clean_word(v.x), clean_word(v.y), clean_word(v.z), clean_word(v.w));
}
static __device__ __forceinline__ bool has_come(uint4 v)
{
    return v.x != SENTINEL && v.y != SENTINEL && v.z != SENTINEL && v.w != SENTINEL;
}
static __device__ __forceinline__ uint32_t add_words(uint32_t a, uint32_t b)
{
    return __float_as_uint(__uint_as_float(a) + __uint_as_float(b));
}

/* A cell of this exchange: where it lies in every window. */
struct cell {
    int row, vec;
    int64_t slot; /* rank 0's */
    int64_t sum;
};

static __device__ __forceinline__ cell cell_at(const exchange_args &a, int buffer, int row, int vec)
{
    int64_t rows = (int64_t)a.vectors * ROWS;
    int64_t at = (int64_t)row * a.vectors + vec;
    return {row, vec, buffer * a.n_ranks * rows + at, (EXCHANGE_BUFFERS * a.n_ranks + buffer) * rows + at};
}

static __device__ __forceinline__ int owner(const exchange_args &a, int vec)
{
    return a.device_of[vec * a.n_ranks / a.vectors];
}

static __device__ __forceinline__ bool is_local(const exchange_args &a, int rank)
{
    return rank >= a.first_rank && rank < a.first_rank + a.n_local;
}

/* ---- waiting ---- */

struct patience {
    uint64_t start; /* 0: not yet looked at the clock */
    unsigned polls;
    unsigned long long number;
};

static __device__ void give_up(const exchange_args &a, const patience &p, unsigned why, int rank, const cell &c)
{
    if (atomicCAS(&a.state->failed, 0u, 1u) != 0)
        return; /* another thread says what it waited for */
    exchange_report *r = a.report;
    store_relaxed_sys4(&r->number[0], (uint32_t)p.number);
    store_relaxed_sys4(&r->number[1], (uint32_t)(p.number >> 32));
    store_relaxed_sys4(&r->rank, (uint32_t)rank);
    store_relaxed_sys4(&r->row, (uint32_t)c.row);
    store_relaxed_sys4(&r->column, 4 * (uint32_t)c.vec);
    __threadfence_system();
    store_relaxed_sys4(&r->given_up, why);
}

/* Now and then: the clock, the host's word, and whether another thread has given up.  True: leave. */
static __device__ __forceinline__ bool is_over(const exchange_args &a, patience *p, int rank, const cell &c)
{
    if (++p->polls % POLLS_A_CLOCK)
        return false;
    uint64_t now = clock_ns();
    if (p->start == 0)
        p->start = now;
    bool stopped = load_relaxed_sys4(&a.report->stop) != 0;
    if (stopped || now - p->start > a.timeout_ns)
        give_up(a, *p, stopped ? 2 : 1, rank, c);
    return load_relaxed_sys4(&a.state->failed) != 0;
}

/* v[r] = rank r's values of a cell, for all ranks; false: given up. */
static __device__ __forceinline__ bool collect(const exchange_args &a, uint4 v[RANKS], const float *local, const cell &c,
                                               patience *p)
{
    const uint4 *mine = a.window[a.self] + c.slot, *own = (const uint4 *)local + (int64_t)c.row * a.vectors + c.vec;
    const int64_t rank_step = (int64_t)a.vectors * ROWS;
    unsigned missing = 0;
#pragma unroll
    for (int r = 0; r < RANKS; r++)
        if (r < a.n_ranks) {
            if (is_local(a, r))
                v[r] = clean(load_l2_16(own + (r - a.first_rank) * rank_step));
            else
                missing |= 1u << r;
        }
    while (missing) {
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            if (missing >> r & 1)
                v[r] = load_relaxed_sys16(mine + r * rank_step);
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            if ((missing >> r & 1) && has_come(v[r]))
                missing &= ~(1u << r);
        if (missing && is_over(a, p, __ffs((int)missing) - 1, c))
            return false;
    }
    return true;
}

static __device__ __forceinline__ uint4 add_in_order(const exchange_args &a, const uint4 v[RANKS])
{
    uint4 s = v[0];
#pragma unroll
    for (int r = 1; r < RANKS; r++)
        if (r < a.n_ranks)
            s = make_uint4(add_words(s.x, v[r].x), add_words(s.y, v[r].y), add_words(s.z, v[r].z),
                           add_words(s.w, v[r].w));
    return s;
}

/* ---- the steps of an exchange, for one cell ---- */

template <int MODE>
static __device__ __forceinline__ void send(const exchange_args &a, const float *local, const cell &c)
{
    const int64_t rank_step = (int64_t)a.vectors * ROWS;
    const uint4 *own = (const uint4 *)local + (int64_t)c.row * a.vectors + c.vec;
    int to = owner(a, c.vec);
    for (int l = 0; l < a.n_local; l++) {
        uint4 v = clean(load_l2_16(own + l * rank_step));
        int64_t at = c.slot + (a.first_rank + l) * rank_step;
        if (MODE == MQ_EXCHANGE_TWO_SHOT) {
            if (to != a.self)
                store_relaxed_sys16(a.window[to] + at, v);
        } else {
            for (int d = 0; d < a.n_devices; d++)
                if (d != a.self)
                    store_relaxed_sys16(a.window[d] + at, v);
        }
    }
}

/* Parts, or the sum, of a cell for which this device has, or gets, everything. */
template <int MODE>
static __device__ __forceinline__ void receive(const exchange_args &a, float *out, const float *local, const cell &c,
                                               patience *p)
{
    uint4 v[RANKS], *to = (uint4 *)out + (int64_t)c.row * a.vectors + c.vec;
    if (!collect(a, v, local, c, p))
        return;
    if (MODE == PARTS) {
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            if (r < a.n_ranks)
                to[r * (int64_t)a.vectors * ROWS] = v[r];
        return;
    }
    uint4 s = clean(add_in_order(a, v));
    *to = s;
    if (MODE == MQ_EXCHANGE_TWO_SHOT)
        for (int d = 0; d < a.n_devices; d++)
            if (d != a.self)
                store_relaxed_sys16(a.window[d] + c.sum, s);
}

/* Two-shot: a sum that another device makes. */
static __device__ __forceinline__ void receive_sum(const exchange_args &a, float *out, const cell &c, patience *p)
{
    const uint4 *from = a.window[a.self] + c.sum;
    for (;;) {
        uint4 v = load_relaxed_sys16(from);
        if (has_come(v)) {
            ((uint4 *)out)[(int64_t)c.row * a.vectors + c.vec] = v;
            return;
        }
        if (is_over(a, p, c.vec * a.n_ranks / a.vectors, c))
            return;
    }
}

/* What an exchange of this way has left in a cell. */
static __device__ __forceinline__ void clear(const exchange_args &a, int way, const cell &c)
{
    uint4 *mine = a.window[a.self];
    if (way == MQ_EXCHANGE_TWO_SHOT && owner(a, c.vec) != a.self) {
        store_relaxed_sys16(mine + c.sum, all_sentinel());
        return;
    }
    for (int r = 0; r < a.n_ranks; r++)
        if (!is_local(a, r))
            store_relaxed_sys16(mine + c.slot + r * (int64_t)a.vectors * ROWS, all_sentinel());
}

/* f(row, vec) for the cells of a block's columns, rows first .. end - 1, each by one thread, always the same one. */
template <class F> static __device__ __forceinline__ void for_cells(const exchange_args &a, int first, int end, F f)
{
    int v0 = (int)blockIdx.x * a.per_block;
    int n = v0 + a.per_block < a.vectors ? a.per_block : a.vectors - v0;
    for (int i = (int)threadIdx.x; i < n * ROWS; i += (int)blockDim.x) {
        int row = i / n;
        if (row >= first && row < end)
            f(row, v0 + i % n);
    }
}

template <int MODE>
static __global__ void __launch_bounds__(MOST_THREADS)
    exchange_kernel(exchange_args a, float *out, const float *local, const int32_t *n_rows)
{
    wait_for_previous();
    uint4 *mine = &a.state->blocks[blockIdx.x], before = load_l2_16(mine);
    patience p = {0, 0, before.x | (unsigned long long)before.y << 32};
    int buffer = (int)(p.number % EXCHANGE_BUFFERS), last = (buffer + 2) % EXCHANGE_BUFFERS;
    int last_rows = (int)before.z, last_way = (int)before.w, n = (int)load_l2_4(n_rows);
    n = n < 0 ? 0 : n > ROWS ? ROWS : n;
    if (load_relaxed_sys4(&a.state->failed))
        return; /* the run is over */

    for_cells(a, 0, n, [&](int row, int vec) { send<MODE>(a, local, cell_at(a, buffer, row, vec)); });
    let_next_start();

    /* while others send: rows that nobody has, and the last exchange's buffer */
    for_cells(a, n, ROWS, [&](int row, int vec) {
        for (int r = 0; r < (MODE == PARTS ? a.n_ranks : 1); r++)
            ((uint4 *)out)[((int64_t)r * ROWS + row) * a.vectors + vec] = make_uint4(0, 0, 0, 0);
    });
    for_cells(a, 0, last_rows, [&](int row, int vec) { clear(a, last_way, cell_at(a, last, row, vec)); });

    for_cells(a, 0, n, [&](int row, int vec) {
        if (MODE != MQ_EXCHANGE_TWO_SHOT || owner(a, vec) == a.self)
            receive<MODE>(a, out, local, cell_at(a, buffer, row, vec), &p);
    });
    if (MODE == MQ_EXCHANGE_TWO_SHOT)
        for_cells(a, 0, n, [&](int row, int vec) {
            if (owner(a, vec) != a.self)
                receive_sum(a, out, cell_at(a, buffer, row, vec), &p);
        });

    __syncthreads(); /* everybody has read the block's state */
    if (threadIdx.x == 0)
        *mine = make_uint4((unsigned)(p.number + 1), (unsigned)((p.number + 1) >> 32), (unsigned)n, MODE);
}

static __global__ void fill_sentinel_kernel(uint4 *p, int64_t n)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        p[i] = all_sentinel();
}

/* Rows of parts that came from elsewhere, added in rank order as the push does. */
static __global__ void __launch_bounds__(MOST_THREADS)
    sum_parts_kernel(float *sum, const float *parts, const int32_t *n_rows, int64_t hidden, int n_ranks)
{
    wait_for_previous();
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= ROWS * hidden)
        return;
    uint32_t s = 0;
    if (i < *n_rows * hidden) {
        const uint32_t *p = (const uint32_t *)parts + i;
        s = clean_word(p[0]);
        for (int r = 1; r < n_ranks; r++)
            s = add_words(s, clean_word(p[r * ROWS * hidden]));
    }
    ((uint32_t *)sum)[i] = s;
}

/* Parts from elsewhere as the push leaves them. */
static __global__ void __launch_bounds__(MOST_THREADS)
    clean_parts_kernel(float *parts, const int32_t *n_rows, int64_t hidden, int n_ranks)
{
    wait_for_previous();
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= n_ranks * ROWS * hidden)
        return;
    uint32_t *p = (uint32_t *)parts + i;
    *p = i / hidden % ROWS < *n_rows ? clean_word(*p) : 0;
}

/* ---- launches ---- */

template <int MODE>
static mq_status push(mq_exchange *x, float *out, const float *local, const int32_t *n_rows, mq_err *err)
{
    const exchange_args &a = x->args;
    if (!x->is_connected)
        return mq_fail(err, MQ_E_ARG, "cuda %d: this end of the exchange is not connected", x->dev->ordinal);
    int64_t cells = (int64_t)a.per_block * ROWS;
    unsigned threads = (unsigned)(cells < MOST_THREADS ? (cells + 31) / 32 * 32 : (int64_t)MOST_THREADS);
    return launch_dependent(x->dev, err, "exchange", exchange_kernel<MODE>, dim3(n_blocks(a.vectors, a.per_block)), threads, 0,
                            a, out, local, n_rows);
}

mq_status exchange_parts(mq_exchange *x, float *parts, const float *local, const int32_t *n_rows, mq_err *err)
{
    return push<PARTS>(x, parts, local, n_rows, err);
}

mq_status exchange_sum(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows,
                       mq_err *err)
{
    return way == MQ_EXCHANGE_ONE_SHOT ? push<MQ_EXCHANGE_ONE_SHOT>(x, sum, local, n_rows, err)
                                       : push<MQ_EXCHANGE_TWO_SHOT>(x, sum, local, n_rows, err);
}

static mq_status gather(mq_exchange *x, mq_exchange_way way, float *parts, const float *local, const int32_t *n_rows,
                        mq_err *err)
{
    if (way == MQ_EXCHANGE_TWO_SHOT)
        return mq_fail(err, MQ_E_ARG, "a two-shot exchange gives sums, not parts");
    if (way == MQ_EXCHANGE_ONE_SHOT)
        return exchange_parts(x, parts, local, n_rows, err);
    MQ_TRY(nccl_gather(x, parts, local, err));
    int64_t count = (int64_t)x->plan.n_ranks * ROWS * x->plan.hidden;
    return launch(x->dev, err, "exchange", clean_parts_kernel, dim3(n_blocks(count, MOST_THREADS)), MOST_THREADS, 0, parts,
                  n_rows, x->plan.hidden, x->plan.n_ranks);
}

static mq_status sum(mq_exchange *x, mq_exchange_way way, float *out, const float *local, const int32_t *n_rows,
                     mq_err *err)
{
    if (way != MQ_EXCHANGE_NCCL)
        return exchange_sum(x, way, out, local, n_rows, err);
    MQ_TRY(nccl_gather(x, x->gathered, local, err));
    int64_t count = ROWS * x->plan.hidden;
    return launch(x->dev, err, "exchange", sum_parts_kernel, dim3(n_blocks(count, MOST_THREADS)), MOST_THREADS, 0, out,
                  (const float *)x->gathered, n_rows, x->plan.hidden, x->plan.n_ranks);
}

/* ---- ends ---- */

static void close(mq_exchange *x)
{
    if (!x)
        return;
    (void)cudaSetDevice(x->dev->ordinal);
    nccl_close(x);
    (void)cudaFree(x->window);
    (void)cudaFree(x->state);
    (void)cudaFree(x->gathered);
    if (x->report)
        (void)cudaFreeHost(x->report);
    free(x);
}

static mq_status check_plan(const mq_exchange_plan *p, mq_err *err)
{
    if (p->n_ranks < 1 || p->n_ranks > RANKS || p->first_rank < 0 || p->n_local < 1 ||
        p->n_local > p->n_ranks - p->first_rank)
        return mq_fail(err, MQ_E_ARG, "exchange: ranks %d to %d of %d, expected some of at most %d", p->first_rank,
                       p->first_rank + p->n_local - 1, p->n_ranks, (int)RANKS);
    if (p->hidden < 4 || p->hidden % 4 || p->hidden > 1 << 20)
        return mq_fail(err, MQ_E_ARG, "exchange: rows of %lld, expected a multiple of 4", (long long)p->hidden);
    if (p->timeout_ms < 0)
        return mq_fail(err, MQ_E_ARG, "exchange: a time-out of %d ms", p->timeout_ms);
    return MQ_OK;
}

static mq_status allocate(mq_exchange *x, mq_err *err)
{
    mq_dev *dev = x->dev;
    int64_t n = (int64_t)(x->plan.n_ranks + 1) * EXCHANGE_BUFFERS * ROWS * (x->plan.hidden / 4);
    MQ_TRY(check(dev, cudaSetDevice(dev->ordinal), "exchange", err));
    if (cudaMalloc((void **)&x->window, (size_t)n * sizeof *x->window) != cudaSuccess ||
        cudaMalloc((void **)&x->state, sizeof *x->state) != cudaSuccess ||
        cudaHostAlloc((void **)&x->report, sizeof *x->report, cudaHostAllocMapped | cudaHostAllocPortable) !=
            cudaSuccess) {
        (void)cudaGetLastError();
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of memory for the exchange (%lld bytes)", dev->ordinal,
                       (long long)n * 16);
    }
    *x->report = exchange_report{};
    MQ_TRY(check(dev, cudaHostGetDevicePointer((void **)&x->args.report, x->report, 0), "exchange", err));
    MQ_TRY(check(dev, cudaMemsetAsync(x->state, 0, sizeof *x->state, dev->stream), "exchange", err));
    MQ_TRY(launch(dev, err, "exchange", fill_sentinel_kernel, dim3(n_blocks(n, MOST_THREADS, 1024)), MOST_THREADS, 0,
                  x->window, n));
    return check(dev, cudaStreamSynchronize(dev->stream), "exchange", err);
}

static mq_status create(mq_exchange **out, mq_dev *dev, const mq_exchange_plan *plan, mq_err *err)
{
    *out = NULL;
    MQ_TRY(check_plan(plan, err));
    mq_exchange *x = (mq_exchange *)calloc(1, sizeof *x);
    if (!x)
        return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of host memory", dev->ordinal);
    x->dev = dev;
    x->plan = *plan;
    x->n_ends = 1;
    x->ends[0] = x;
    mq_status st = allocate(x, err);
    if (st != MQ_OK) {
        close(x);
        return st;
    }
    exchange_args *a = &x->args;
    int blocks = dev->n_processors < EXCHANGE_MOST_BLOCKS ? dev->n_processors : (int)EXCHANGE_MOST_BLOCKS;
    a->state = x->state;
    a->timeout_ns = (uint64_t)(plan->timeout_ms ? plan->timeout_ms : (int)MQ_EXCHANGE_TIMEOUT_MS) * 1000000u;
    a->n_ranks = plan->n_ranks;
    a->first_rank = plan->first_rank;
    a->n_local = plan->n_local;
    a->vectors = (int)(plan->hidden / 4);
    a->per_block = (a->vectors + blocks - 1) / blocks;
    *out = x;
    return MQ_OK;
}

/* a may write into b's memory. */
static mq_status reach(const mq_dev *a, const mq_dev *b, mq_err *err)
{
    int access = 0, atomics = 0;
    if (a->ordinal == b->ordinal)
        return MQ_OK;
    MQ_TRY(check(a, cudaDeviceCanAccessPeer(&access, a->ordinal, b->ordinal), "exchange", err));
    if (!access)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s and %s: no access to each other's memory", a->name, b->name);
    MQ_TRY(check(a, cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, a->ordinal, b->ordinal),
                 "exchange", err));
    if (!atomics)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%s and %s: no native atomics across their link", a->name, b->name);
    MQ_TRY(check(a, cudaSetDevice(a->ordinal), "exchange", err));
    cudaError_t e = cudaDeviceEnablePeerAccess(b->ordinal, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();
        return MQ_OK;
    }
    return check(a, e, "access to a peer's memory", err);
}

static mq_status check_ends(mq_exchange *const *ends, int n, mq_err *err)
{
    int next = 0;
    for (int i = 0; i < n; i++) {
        const mq_exchange_plan *p = &ends[i]->plan, *q = &ends[0]->plan;
        if (p->n_ranks != q->n_ranks || p->hidden != q->hidden)
            return mq_fail(err, MQ_E_ARG, "exchange: %d ranks of %lld columns beside %d of %lld", p->n_ranks,
                           (long long)p->hidden, q->n_ranks, (long long)q->hidden);
        if (p->first_rank != next)
            return mq_fail(err, MQ_E_ARG, "exchange: end %d begins with rank %d, expected %d", i, p->first_rank, next);
        next += p->n_local;
    }
    if (n < 1 || next != ends[0]->plan.n_ranks)
        return mq_fail(err, MQ_E_ARG, "exchange: the ends hold %d ranks, expected all", next);
    for (int i = 0; i < n; i++) {
        ends[i]->n_ends = n;
        for (int j = 0; j < n; j++)
            ends[i]->ends[j] = ends[j];
    }
    return MQ_OK;
}

static mq_status connect(mq_exchange *const *ends, int n, mq_err *err)
{
    MQ_TRY(check_ends(ends, n, err));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            MQ_TRY(reach(ends[i]->dev, ends[j]->dev, err));
    for (int i = 0; i < n; i++) {
        exchange_args *a = &ends[i]->args;
        a->n_devices = n;
        a->self = i;
        for (int j = 0; j < n; j++) {
            const mq_exchange_plan *p = &ends[j]->plan;
            a->window[j] = ends[j]->window;
            for (int r = 0; r < p->n_local; r++)
                a->device_of[p->first_rank + r] = j;
        }
        ends[i]->is_connected = true;
    }
    return MQ_OK;
}

static mq_status connect_nccl(mq_exchange *const *ends, int n, const char *library, mq_err *err)
{
    MQ_TRY(check_ends(ends, n, err));
    for (int i = 0; i < n; i++) {
        mq_exchange *x = ends[i];
        size_t n_bytes = (size_t)x->plan.n_ranks * ROWS * (size_t)x->plan.hidden * sizeof(float);
        MQ_TRY(check(x->dev, cudaSetDevice(x->dev->ordinal), "exchange", err));
        if (!x->gathered && cudaMalloc((void **)&x->gathered, n_bytes) != cudaSuccess) {
            (void)cudaGetLastError();
            return mq_fail(err, MQ_E_NOMEM, "cuda %d: out of memory for the exchange", x->dev->ordinal);
        }
    }
    return nccl_connect(ends, n, library, err);
}

static mq_status check_end(const mq_exchange *x, mq_err *err)
{
    const exchange_report *r = x->report;
    uint32_t given_up = __atomic_load_n(&r->given_up, __ATOMIC_ACQUIRE), stop = __atomic_load_n(&r->stop, __ATOMIC_RELAXED);
    unsigned long long number = (unsigned long long)r->number[1] << 32 | r->number[0];
    if (!given_up)
        return stop ? mq_fail(err, MQ_E_STOPPED, "cuda %d: the exchange was stopped by cuda %u", x->dev->ordinal, stop - 1)
                    : MQ_OK;
    if (given_up == 2)
        return mq_fail(err, MQ_E_STOPPED, "cuda %d: exchange %llu: given up, cuda %u has stopped", x->dev->ordinal, number,
                       stop - 1);
    int from = x->args.device_of[r->rank % RANKS];
    return mq_fail(err, MQ_E_DEVICE, "cuda %d: exchange %llu: rank %u (cuda %d) sent nothing for row %u, column %u in %d ms",
                   x->dev->ordinal, number, r->rank, x->ends[from]->dev->ordinal, r->row, r->column,
                   (int)(x->args.timeout_ns / 1000000u));
}

static void stop(mq_exchange *x)
{
    for (int i = 0; i < x->n_ends; i++)
        __atomic_store_n(&x->ends[i]->report->stop, 1 + (uint32_t)x->dev->ordinal, __ATOMIC_RELEASE);
    for (int i = 0; i < x->n_ends; i++)
        nccl_abort(x->ends[i]);
}

static constexpr mq_exchange_ops ops_table()
{
    mq_exchange_ops t = {};
    t.create = create;
    t.connect = connect;
    t.connect_nccl = connect_nccl;
    t.close = close;
    t.gather = gather;
    t.sum = sum;
    t.time = exchange_time;
    t.check = check_end;
    t.stop = stop;
    return t;
}

const mq_exchange_ops exchange_ops = ops_table();

} // namespace mq_cuda
