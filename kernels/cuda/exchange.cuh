/* An end of the exchange (kernels/exchange.h) for the files of kernels/cuda: what step.cu strings between its kernels. */
#ifndef MQ_KERNELS_CUDA_EXCHANGE_CUH
#define MQ_KERNELS_CUDA_EXCHANGE_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/exchange.h"

namespace mq_cuda {

enum { EXCHANGE_MOST_BLOCKS = 128, EXCHANGE_BUFFERS = 3 };

/* Of the blocks of one device: each advances its own, so that no block waits for another.  Device memory. */
struct exchange_state {
    unsigned failed; /* an exchange was given up: no other is begun */
    unsigned reserved[3];
    /* x, y: number of exchanges so far, low and high half; z, w: rows and way of the last one, which lie in its buffer */
    uint4 blocks[EXCHANGE_MOST_BLOCKS];
};

/* Mapped memory of the host. */
struct exchange_report {
    uint32_t stop;      /* 1 + ordinal of the device that will not come */
    uint32_t given_up;  /* written last: 1, or 2 because of stop */
    uint32_t number[2]; /* low and high half */
    uint32_t rank, row, column;
};

/* What the kernel is given.  A window, one a device, in vectors of four floats:
 *   slots [3 buffers][n_ranks][8 rows][vectors]   parts, of one-shot whole, of two-shot this device's column slices
 *   sums  [3 buffers][8 rows][vectors]            two-shot: slices that other devices have added */
struct exchange_args {
    uint4 *window[MQ_EXCHANGE_MAX_RANKS]; /* by device */
    exchange_state *state;
    exchange_report *report;
    uint64_t timeout_ns;
    int n_ranks, first_rank, n_local, n_devices, self;
    int vectors, per_block; /* of a row, and of these a block's */
    int device_of[MQ_EXCHANGE_MAX_RANKS];
};

struct nccl_end;
} // namespace mq_cuda

struct mq_exchange {
    mq_dev *dev;
    mq_exchange_plan plan;
    mq_cuda::exchange_args args;
    uint4 *window;
    mq_cuda::exchange_state *state;
    mq_cuda::exchange_report *report; /* as the host sees it */
    bool is_connected;
    int n_ends;
    mq_exchange *ends[MQ_EXCHANGE_MAX_RANKS]; /* all of them, itself too */
    mq_cuda::nccl_end *nccl;                  /* NULL until connected */
    float *gathered;                          /* [n_ranks, 8, hidden], for sums through NCCL */
};

namespace mq_cuda {

/* gather by push and one-shot, as a kernel that starts early (launch_dependent) and lets the next one start: parts for the norm
 * that follows (decode_parts.h: mq_decode_norm.part, stride 8 * hidden). */
mq_status exchange_parts(mq_exchange *x, float *parts, const float *local, const int32_t *n_rows, mq_err *err);

/* sum by push; way ONE_SHOT or TWO_SHOT.  The bits of adding exchange_parts' parts one after another, the first to nothing. */
mq_status exchange_sum(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows,
                       mq_err *err);

/* exchange_time.cu */
mq_status exchange_time(mq_exchange *x, mq_exchange_way way, float *sum, const float *local, const int32_t *n_rows, int n,
                        double *us, mq_err *err);

/* nccl.cu */
mq_status nccl_connect(mq_exchange *const *ends, int n, const char *library, mq_err *err);
mq_status nccl_gather(mq_exchange *x, float *parts, const float *local, mq_err *err);
void nccl_abort(mq_exchange *x); /* what waits in NCCL leaves */
void nccl_close(mq_exchange *x);

extern const mq_exchange_ops exchange_ops;

} // namespace mq_cuda

#endif
