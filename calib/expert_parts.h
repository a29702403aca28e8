/* What the files of calib/expert*.c share: the worker's memory, a moment, and the steps of the job.  Private to calib. */
#ifndef MQ_CALIB_EXPERT_PARTS_H
#define MQ_CALIB_EXPERT_PARTS_H

#include "calib/expert.h"

#ifdef __cplusplus
extern "C" {
#endif

/* n_max: the larger of hidden and width; n_rows: of 2 width and hidden; n_weights: 2 width hidden. */
struct mq_calib_worker {
    const mq_kernels *k;
    mq_dev *dev;
    int64_t hidden, width, block_rows, n_max, n_rows, n_weights;
    int group;

    /* Device. */
    float *x;        /* [block_rows, hidden] inputs of a block of tokens */
    float *mid;      /* [block_rows, 2 width] gate and up of them */
    float *h, *h_source; /* [block_rows, width] */
    float *weight;   /* [block_rows] of the tokens */
    float *g;        /* [n_max, n_max] the moment */
    float *a;        /* [n_max, n_max] the sample's moment, later the factor */
    float *c, *c2;   /* [width, width] cross moments of h and h_source - h: the expert's, the sample's */
    float *vec, *d;  /* [n_max] */
    int32_t *perm;   /* [n_max] */
    float *w;        /* [n_weights] gate, then up; or down, then its target */
    float *scale, *scale_new;    /* [n_weights / group] */
    uint8_t *codes, *codes_new;  /* [n_weights] */
    float *loss, *loss_new, *norm; /* [n_rows] */
    double *err2, *norm2;        /* [n_rows] */
    uint8_t *gate_up, *down;     /* packed units */

    /* Host. */
    float *host_weight;  /* [block_rows] */
    float *diag;         /* [n_max] of the moment at hand */
    float *omega;        /* [n_max] */
    int32_t *host_perm;  /* [n_max] */
    float *host_rows;    /* [2, n_rows] */
    double *host_sums;   /* [2, n_rows] */

    /* What x holds: rows first .. first + n - 1 of the tokens or of the sample; n = 0: nothing. */
    bool held_sample;
    int64_t held_first, held_n;
};

/* A second moment in w->g, with its diagonal in w->diag. */
typedef struct mq_calib_moment {
    mq_calib_path path; /* OWN, SHRUNK, LAYER, PLAIN (no moment) */
    int64_t n;          /* columns */
    double trace;
    bool has_cross;     /* w->c belongs to it */
} mq_calib_moment;

/* Moments of the expert's input and, once w->gate_up is there, of its h.  MQ_E_NUMERIC names a value that is not finite. */
mq_status mq_calib_moment_input(mq_calib_worker *w, mq_calib_moment *out, const mq_calib_expert *e,
                                const mq_calib_recipe *r, mq_err *err);
mq_status mq_calib_moment_h(mq_calib_worker *w, mq_calib_moment *out, const mq_calib_expert *e, const mq_calib_recipe *r,
                            mq_err *err);

/* Codes and scales of the first rows * moment.n weights of w->w into w->codes and w->scale.  account [n_accounts] is filled;
 * each has an equal share of the rows, in order. */
mq_status mq_calib_choose(mq_calib_worker *w, mq_calib_account *account, int n_accounts, const mq_calib_moment *moment,
                          int64_t rows, int64_t n_tokens, const mq_calib_recipe *r, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
