/* What the files of calibration share; private to calibrate*.c. */
#ifndef MQ_TOOLS_CALIBRATE_STATE_H
#define MQ_TOOLS_CALIBRATE_STATE_H

#include <pthread.h>

#include "calib/hidden.h"
#include "runtime/forward.h"
#include "tools/calibrate.h"
#include "tools/calibrate_device.h"

enum { MQ_HIDDEN_NAME_BYTES = 32 };

/* The tokens of one layer, grouped by expert: rows ascending within each. */
typedef struct mq_routes {
    int64_t *first; /* [n_experts + 1] */
    int32_t *rows;  /* [n_rows * topk] */
    float *coef;    /* [n_rows * topk] */
} mq_routes;

/* One expert at a time on one thread. */
typedef struct mq_expert_bench {
    mq_dev *dev;
    mq_stage stage;
    mq_calib_worker *worker;
    uint8_t *data, *scale;   /* stored bytes of gate, up and down, in host memory that the device copies from and to ... */
    int64_t data_bytes, scale_bytes; /* ... and how many */
    uint8_t *gate_up, *down; /* its units */
    /* In the device's memory where it is not the host's, otherwise NULL. */
    uint8_t *device_data, *device_scale; /* copies of data and scale */
    float *post_norm, *layer_gram;       /* copies of the calibration's */
    int32_t *index;                      /* [block rows] */
    const float *stream;                 /* [n_rows, hidden] what enters the MoE, shared by a device's benches; NULL: on the host alone */
} mq_expert_bench;

/* The end of a layer, on a thread of its own while the next layer is done. */
typedef struct mq_layer_end {
    mq_calibration *c;
    pthread_t thread;
    bool is_running;
    mq_journal_layer line;
    mq_hidden *stream;          /* behind the layer, lent by the calibration, which reads it */
    bool has_codes;             /* shards are to be made of codes and account */
    int64_t group;              /* of the layer's shards; -1: not calibrated */
    const mq_codes *codes;
    mq_convert_account account; /* owned until it is in done */
    mq_convert_done *done;
    int64_t *n_weights;
    mq_status st;
    mq_err err;
} mq_layer_end;

struct mq_calibration {
    mq_convert_job *job;
    const mq_model *m;
    mq_corpus corpus;
    int64_t n_rows, span_windows;
    int last; /* the last layer with calibrated experts: what follows need not be run */

    /* From the journal. */
    int first_layer; /* to be done */
    char saved_name[MQ_HIDDEN_NAME_BYTES];
    mq_journal_layer *lines; /* [last + 1] layer -1: none; NULL: not resumed */
    bool *is_sound;          /* [last + 1] the layer has all that it leaves behind; NULL: not resumed */
    /* Once jump_after is done, with the stream that its line tells of, the layers to jump_to are not run; jump_to 0: no such. */
    int jump_after, jump_to;
    char jump_name[MQ_HIDDEN_NAME_BYTES];

    /* While running. */
    const mq_calibration_plan *plan;
    const mq_convert_means *means;
    const mq_kernels *k;
    mq_dev *dev; /* the first */
    mq_stage stage;
    mq_store *store;
    mq_forward *forward;
    mq_cache *cache;
    float *x; /* [span rows, hidden], dev's memory */
    mq_hidden *before; /* residual stream in front of the layer; NULL: the embedding */
    mq_hidden *mid;    /* between its halves, and then behind it */
    int32_t *route_ids; /* [n_rows, topk] */
    float *route_coef;
    mq_routes routes;
    mq_codes *codes, *other_codes; /* of the layer being done; of the one that is being written */
    uint8_t *device_codes; /* of the expert lent last, dev's memory; NULL on the host */
    float *layer_gram; /* [hidden, hidden] lower triangle, dev's memory */
    float **streams;   /* [devices] what lies on each of rows that enter the experts; NULL: nothing */
    int32_t *sample;   /* [n_sample] rows for cold experts, ascending */
    int64_t n_sample;
    mq_expert_bench *benches; /* [plan->n_workers] */
    const float *post_norm;   /* of the layer being done, lent by the store */
    int layer;
    mq_convert_account account; /* of the layer being done */
    mq_layer_end end;           /* of the layer before */
    bool end_failed; /* written by the thread of end, read by others: by __atomic operations alone */
    mq_progress *progress;
};

static inline int64_t mq_span_rows(const mq_calibration *c, int64_t window0)
{
    int64_t left = c->corpus.n_windows - window0;
    return (left < c->span_windows ? left : c->span_windows) * c->corpus.window;
}

/* The table of operations, and the ordinal of its i-th device. */
const mq_kernels *mq_calibration_kernels(const mq_convert_job *job);
int mq_calibration_n_devices(const mq_convert_job *job);
int mq_calibration_ordinal(const mq_convert_job *job, int i);

/* Complete the job's recipe from options, text, devices and machine. */
mq_status mq_calibration_fill_recipe(mq_calibration *c, mq_err *err);

/* The group of a layer's shards. */
int64_t mq_calibration_group(const mq_convert_job *job, int layer);
/* c->layer is done, c->before the stream behind it, c->account (which is taken) its account: begin to leave it behind.  Then c->codes
 * are others. */
mq_status mq_calibration_end_layer(mq_calibration *c, bool has_codes, mq_convert_done *done, int64_t *n_weights, mq_err *err);
/* Wait until the layer before is left behind, if one is. */
mq_status mq_calibration_join(mq_calibration *c, mq_err *err);
/* Remove the stream saved behind layer, if it is there. */
mq_status mq_calibration_remove_hidden(const mq_calibration *c, int layer, mq_err *err);
/* line is about to be journalled.  If the old journal told of another stream, nothing that was made behind it holds. */
void mq_calibration_check_line(mq_calibration *c, mq_convert_done *done, const mq_journal_layer *line);
/* jump_after is done: go on behind jump_to. */
mq_status mq_calibration_jump(mq_calibration *c, mq_err *err);

void mq_hidden_name(char name[MQ_HIDDEN_NAME_BYTES], int layer);
int64_t mq_span_windows(int64_t window, int64_t n_windows);

/* Has a signal come, or the hashing of the checkpoint failed? */
mq_status mq_calibration_check_stop(const mq_calibration *c, mq_err *err);

/* Host memory of one bench, beyond what its device and worker take. */
int64_t mq_expert_bench_bytes(const mq_convert_job *job);
/* Bytes of an expert's units, in the larger of the two groups that the job has. */
int64_t mq_expert_units_bytes(const mq_convert_job *job);
mq_status mq_expert_benches_open(mq_calibration *c, mq_err *err);
void mq_expert_benches_close(mq_calibration *c);

/* Codes of all experts of c->layer into c->codes, and with INT4 its account; c->mid and the routes are there. */
mq_status mq_calibrate_experts(mq_calibration *c, mq_err *err);
/* Codes of all experts of c->layer, which is sound, out of its shards into c->codes. */
mq_status mq_replay_experts(mq_calibration *c, mq_err *err);
/* Experts that stay MXFP4: their units into c->codes, so that the forward pass computes what the packed model will. */
mq_status mq_reorder_experts(mq_calibration *c, mq_err *err);

/* st of an expert's job: layer and expert in front of err's text, and where it is MQ_E_NUMERIC the file and tensor behind it.
 * refused: as in calib/expert.h.  Returns st. */
mq_status mq_calibration_blame_expert(const mq_calibration *c, int expert, int refused, mq_status st, mq_err *err);
/* The same for what all experts of c->layer put out together. */
mq_status mq_calibration_blame_layer(const mq_calibration *c, mq_status st, mq_err *err);

/* The halves of c->layer for all rows. */
mq_status mq_calibrate_attention(mq_calibration *c, mq_err *err);
mq_status mq_calibrate_mlp(mq_calibration *c, mq_err *err);
/* Fills c->account.loss; c->mid holds what enters the MoE. */
mq_status mq_calibrate_loss(mq_calibration *c, mq_err *err);

#endif
