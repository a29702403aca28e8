/* The calibrated part of a conversion: layer by layer, calibration tokens run through the model as it is being quantized.
 *
 * For each layer: the attention half for all windows; rows routed to their experts; every INT4 expert quantized with the rows it
 * will see (calib/expert.h), side by side; the MoE half with the codes just chosen, so that the next layer sees what it will see
 * in the packed model; the layer's shards.  The residual stream is on the heap or in scratch files in OUT, saved after every
 * layer; memory does not grow with depth.
 *
 * All arithmetic is that of one table of operations.  With GPUs the halves run on the first one and experts on all.
 *
 * The bytes depend on checkpoint, text and recipe (with the kind of processor and the matrix library), not on threads, the number
 * of GPUs, memory limit or restarts: windows are cut into spans, and rows into blocks, of fixed size. */
#ifndef MQ_TOOLS_CALIBRATE_H
#define MQ_TOOLS_CALIBRATE_H

#include "tools/convert_run.h"

#define MQ_HIDDEN_NAME "scratch-hidden"

enum {
    MQ_CALIB_BLOCK_ROWS = 2048,      /* rows of a forward block and of a block of sums */
    MQ_CALIB_SPAN_ROWS = 32768,      /* rows that meet in one call of the MoE half, rounded down to whole windows */
    MQ_CALIB_SAMPLE_ROWS = 8 * 2048, /* rows that are pushed through a cold expert */
    MQ_CALIB_REPORT_ROWS = 8192,     /* rows on which a layer's loss is measured */
    MQ_CALIB_BENCHES = 4             /* experts at a time on a GPU, where its memory holds them: copies and what one block does overlap */
};

typedef struct mq_calibration mq_calibration;

/* Read the text and complete job's recipe.  job (calibrated; borrowed) must outlive the calibration.
 * MQ_E_ARG: too little text, a window longer than the model's limit; MQ_E_DEVICE: a device is not there or of another kind than the
 * first; the statuses of mq_corpus_read and mq_tokenizer_open. */
mq_status mq_calibration_open(mq_calibration **out, mq_convert_job *job, mq_err *err);
void mq_calibration_close(mq_calibration *c); /* accepts NULL */

/* What a run of n_rows tokens takes under a budget, from headers alone. */
typedef struct mq_calibration_plan {
    int64_t n_rows;
    bool in_memory;        /* the residual stream */
    int n_threads;         /* at most those asked for: as many as let the most experts be worked on */
    int n_workers;         /* experts at a time; with GPUs up to MQ_CALIB_BENCHES on each, in turn */
    bool on_devices;       /* rows that enter the experts also lie on every GPU */
    int64_t peak_bytes;    /* host memory, with what fixed_bytes says */
    int64_t scratch_bytes; /* in OUT, at most */
    int64_t device_bytes;  /* memory of the first device, the fullest, at most; 0 on the CPU, whose memory is the host's */
} mq_calibration_plan;

/* budget 0: half of mq_machine_bytes.  fixed_bytes and, for each thread,
 * thread_bytes: what the process takes besides.  MQ_E_NOMEM says what is needed
 * and what there is, of the budget or of a device's free memory. */
mq_status mq_calibration_plan_for(mq_calibration_plan *out, const mq_convert_job *job, int64_t n_rows, int64_t window,
                                  int n_threads, int64_t budget, int64_t fixed_bytes, int64_t thread_bytes, mq_err *err);
/* Bytes that a whole run writes to scratch files, one layer after the other; *saved_bytes of them are residual streams to go on from. */
int64_t mq_calibration_scratch_writes(int64_t *saved_bytes, const mq_convert_job *job, const mq_calibration_plan *plan);
/* Windows of the calibration: the option's, or 2048, or the model's limit. */
int64_t mq_calibration_window(const mq_convert_job *job);
int64_t mq_calibration_rows(const mq_calibration *c);
/* Tokens that each file of the text gave: [n_files] windows. */
const mq_corpus *mq_calibration_corpus(const mq_calibration *c);

/* After mq_resume_groups: which layers need not be done again.  Fills the accounts of those in done.  keep [*n_keep] are the names of
 * the saved residual streams to go on from, borrowed.  Layers whose shards are sound are not calibrated again, at most run. */
enum { MQ_CALIB_KEEP = 2 };
mq_status mq_calibration_resume(mq_calibration *c, const char *keep[MQ_CALIB_KEEP], int64_t *n_keep, mq_convert_done *done,
                                const mq_journal_record *old, const mq_calibration_plan *plan, mq_err *err);

/* Free space that the scratch files still need: less after mq_calibration_resume, which found some of them. */
int64_t mq_calibration_scratch_left(const mq_calibration *c, const mq_calibration_plan *plan);

/* Groups of job that calibration finishes itself (wanted false), [n_groups]. */
void mq_calibration_others(const mq_convert_job *job, bool *wanted);

/* Do it.  Nothing of scratch is left after success.  Statuses: those of the conversion; MQ_E_NUMERIC names layer,
 * expert and projection, the rule that was broken, and the file and tensor behind it. */
mq_status mq_calibration_run(mq_calibration *c, mq_convert_done *done, int64_t *n_weights,
                             const mq_calibration_plan *plan, const mq_convert_means *means, const mq_cli *cli,
                             mq_err *err);

#endif
