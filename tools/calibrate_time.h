/* How long a calibrated run will take on this machine: a measurement of a second or two, and arithmetic.
 *
 * Each kind of work is timed on the model's own shapes, or on smaller ones of the same proportions where the model is large, with random
 * numbers; nothing of the checkpoint's weights is read but a piece to time the disk.  The estimate assumes that tokens spread
 * evenly over experts, that the machine has nothing else to do and that reading, computing and writing do not overlap. */
#ifndef MQ_TOOLS_CALIBRATE_TIME_H
#define MQ_TOOLS_CALIBRATE_TIME_H

#include "calib/expert.h"
#include "kernels/kernels.h"
#include "src/model.h"

/* The size of a run, from headers alone. */
typedef struct mq_calib_work {
    const mq_model *m;
    const mq_calib_recipe *recipe;
    int64_t n_rows, window, sample_rows, loss_rows;
    int64_t n_calibrated; /* layers whose experts are calibrated */
    int64_t n_layers;     /* layers that calibration tokens pass: up to the last calibrated one */
    int64_t n_dense;      /* of these, layers without experts */
    int n_threads, n_workers;
    int64_t read_bytes, write_bytes; /* of the whole run: checkpoint in, shards out */
    int64_t scratch_bytes, saved_bytes; /* written to scratch files in the whole run; of these, saved and hashed */
} mq_calib_work;

/* Seconds, of one unit each, measured with the threads that the run has. */
typedef struct mq_calib_rates {
    double linear_flop;            /* a multiplication or addition of a source linear */
    double full_row, swa_row;      /* a token's rotation and attention in a layer of either kind */
    double route_row;              /* a token's choice of experts and norm */
    double expert_row;             /* a token through one packed expert */
    double gram_flop;              /* of the layer's moment */
    double expert, expert_token;   /* one expert on one thread: what it takes anyway, and for each of its tokens */
    double read_byte, write_byte;  /* of the checkpoint, of OUT's file system; 0: could not be measured */
    double hash_byte;              /* SHA-256, one thread */
    double seconds;                /* that measuring took */
} mq_calib_rates;

/* Measure.  path: a file of the checkpoint; dir: an existing folder of OUT's file system (an unnamed file is written to and vanishes).
 * MQ_E_NOMEM, MQ_E_DEVICE. */
mq_status mq_calib_measure(mq_calib_rates *out, const mq_calib_work *work, const char *path, const char *dir, mq_err *err);

typedef struct mq_calib_seconds {
    double attention, experts, forward, disk; /* forward: through the packed experts, and the layers' losses */
    double total;
} mq_calib_seconds;

mq_calib_seconds mq_calib_estimate(const mq_calib_work *work, const mq_calib_rates *rates);

#endif
