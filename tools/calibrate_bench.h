/* What the files of calibrate_time share: a device with arrays on it, a clock, and the measurements.  Private to them. */
#ifndef MQ_TOOLS_CALIBRATE_BENCH_H
#define MQ_TOOLS_CALIBRATE_BENCH_H

#include <stdbool.h>

#include "tools/calibrate_time.h"

enum {
    MQ_BENCH_ROWS = 2048,      /* of a block, as the run has it */
    MQ_BENCH_LINEAR = 1024,    /* rows and columns of a product, at most */
    MQ_BENCH_ARRAYS = 40
};

/* A device with arrays that are released together. */
typedef struct mq_bench {
    const mq_kernels *k;
    mq_dev *dev;
    void *arrays[MQ_BENCH_ARRAYS];
    int n_arrays;
    uint64_t noise;
} mq_bench;

mq_status mq_bench_open(mq_bench *b, int n_threads, mq_err *err);
void mq_bench_close(mq_bench *b);
/* out is the address of a pointer of any type. */
mq_status mq_bench_array(void *out, mq_bench *b, int64_t n_bytes, mq_err *err);
/* n floats of noise; as_bf16: n BF16 numbers. */
mq_status mq_bench_noise(void *out, mq_bench *b, int64_t n, bool as_bf16, mq_err *err);

typedef mq_status (*mq_bench_step)(mq_bench *b, void *ctx, mq_err *err);

/* Seconds of one step: once to warm up, then until enough time has passed; the shortest. */
mq_status mq_bench_time(double *seconds, mq_bench *b, mq_bench_step step, void *ctx, mq_err *err);

/* Each fills its members of out; what is cut down to a smaller size says so by its flops: a rate is per flop, per row or per
 * token, never per call. */
mq_status mq_measure_forward(mq_calib_rates *out, const mq_calib_work *work, mq_err *err);
mq_status mq_measure_experts(mq_calib_rates *out, const mq_calib_work *work, mq_err *err);

static inline int64_t mq_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t mq_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
