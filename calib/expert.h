/* One routed expert from source precision to 4-bit codes, calibrated: second moments of its inputs,
 * scales, error feedback, the ladder of fallbacks for rare experts, and an account of what was done.
 *
 * Gate and up share the second moment of the expert's input; down's comes from h = silu(gate x) * (up x)
 * of the codes just chosen for gate and up.  All arithmetic is the table's (kernels/kernels.h), so
 * the same code runs on a CPU and on a GPU; the result is a function of the arguments alone.
 * Sources: GPTQ, arXiv 2210.17323; QuIP, arXiv 2307.13304 (LDLQ); MoEQuant, arXiv 2505.03804 (tokens
 * weighted by the router's coefficient); shrinkage toward the layer's moment: own. */
#ifndef MQ_CALIB_EXPERT_H
#define MQ_CALIB_EXPERT_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_calib_method { MQ_CALIB_IMATRIX, MQ_CALIB_GPTQ } mq_calib_method;

/* The recipe.  Every ingredient can be left out, for comparisons; mq_calib_recipe_default sets what the
 * tables in QUALITY.md chose. */
typedef struct mq_calib_recipe {
    mq_calib_method method;
    int group;            /* 32, 64, 128 */
    mq_precision precision; /* of matrix products, mq_kernels.set_precision: whoever opens devices sets it there */
    int weight_power;     /* a token counts with coefficient^power: 0, 1, 2 */
    bool weighted_search; /* the scale search weighs columns by the moment's diagonal; false: all alike */
    bool act_order;       /* columns by falling diagonal of the moment */
    bool refit;           /* rounds of least-squares scales, then of error feedback with these; rows keep what lowers their loss */
    int rounds;           /* so many; 0 as without refit */
    int descent;          /* passes of coordinate descent over the codes after every choice of codes; 0: none */
    bool shrink;          /* blend an expert's moment with the layer's */
    bool quantized_h;     /* down sees h of the quantized gate and up; false: of the source's */
    bool down_target;     /* with quantized_h: down aims at the source's output, W* = W + f W C H^-1, C = sum of
                             (h_source - h) h^T, H with its ridge; false: at its own weights */
    float target_few;     /* f = m / (m + target_few * n): few tokens say little about what is missing */
    float kappa;          /* shrinkage: rho = m / (m + kappa * n), n columns */
    float damp, damp_few; /* s = damp + damp_few * n / (n + m); the ridge is part of H in all that follows */
    bool damp_columns;    /* ridge of a column = s * its own diagonal element + damp * their mean; false: s * their mean */
} mq_calib_recipe;

mq_calib_recipe mq_calib_recipe_default(mq_calib_method method, int group);

/* How a matrix got its codes, in falling order of trust. */
typedef enum mq_calib_path {
    MQ_CALIB_OWN,      /* the expert's own moment alone: m >= 4 n, or there is nothing to blend it with */
    MQ_CALIB_SHRUNK,   /* blended with the layer's moment (gate, up) or the sample's (down) */
    MQ_CALIB_LAYER,    /* no token of its own: the layer's moment, or the sample's */
    MQ_CALIB_DIAGONAL, /* the factorisation failed even with more damping: weighted search only */
    MQ_CALIB_PLAIN,    /* no activations at all: plain search */
    MQ_CALIB_PATH_COUNT
} mq_calib_path;
const char *mq_calib_path_name(mq_calib_path p); /* "own", "shrunk", "layer", "diagonal", "plain" */

/* What happened to one matrix. */
typedef struct mq_calib_account {
    mq_calib_path path;
    int64_t n_tokens;    /* of the expert's own */
    double err2, norm2;  /* squared weight error and squared weights */
    double loss, energy; /* D H D^T and W H W^T over all rows, H the moment used, without ridge; both 0 on PLAIN.  With
                            down_target W is the target here, D what is left of it */
    double damp;         /* relative ridge that worked; 0 without a factorisation */
    int n_retries;       /* factorisations that failed before */
    int64_t n_refit;     /* rows that a round improved */
} mq_calib_account;

enum { MQ_CALIB_GATE, MQ_CALIB_UP, MQ_CALIB_DOWN, MQ_CALIB_MATRICES };

/* The expert and its tokens.  Everything is borrowed for the call. */
typedef struct mq_calib_expert {
    mq_matrix gate, up, down; /* source precision, dev's memory: [width, hidden] twice, [hidden, width] */
    int64_t n_tokens;         /* may be 0 */
    const float *coef;        /* [n_tokens] host: the router's coefficients */
    int64_t n_sample;         /* rows of the fixed sample of all tokens, pushed through a cold expert; may be 0 */
    /* x [n, hidden] in dev's memory = inputs (normed) of the expert's tokens first .. first + n - 1, or with
     * sample those of the fixed sample.  n at most the worker's block. */
    mq_status (*rows)(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err);
    void *ctx;
    const float *layer_gram; /* [hidden, hidden] dev's memory: second moment of all tokens that enter the layer's
                                experts, a sum over layer_tokens; NULL: not there */
    int64_t layer_tokens;
    int *refused;            /* may be NULL: on MQ_E_NUMERIC the matrix whose own weights broke a rule; MQ_CALIB_MATRICES: what gate
                                and up made of the inputs did; -1: inputs or coefficients */
} mq_calib_expert;

/* Does any expert of the layer need layer_gram (fewer than 4 * hidden tokens, shrink on)?  One rule for driver and worker. */
bool mq_calib_needs_layer(const mq_calib_recipe *r, int64_t n_tokens, int64_t hidden);
/* Does this expert need the sample for down? */
bool mq_calib_needs_sample(const mq_calib_recipe *r, int64_t n_tokens, int64_t width);

typedef struct mq_calib_worker mq_calib_worker; /* workspace on one device; one thread */

/* Room for experts of this shape, rows in blocks of block_rows (part of the recipe: sums are cut there; 2048 is
 * usual).  kernels and dev are borrowed.  MQ_E_NOMEM, MQ_E_DEVICE. */
mq_status mq_calib_worker_create(mq_calib_worker **out, const mq_kernels *kernels, mq_dev *dev, int64_t hidden,
                                 int64_t width, int group, int64_t block_rows, mq_err *err);
void mq_calib_worker_free(mq_calib_worker *w); /* accepts NULL */
/* Device bytes it takes. */
int64_t mq_calib_worker_bytes(int64_t hidden, int64_t width, int group, int64_t block_rows);

/* Do it: gate_up [mq_units_bytes(2 width, hidden, group)] and down [mq_units_bytes(hidden, width, group)] host memory get
 * whole matrices as packed units (the layout of one rank), account [MQ_CALIB_MATRICES] what happened.  Returns when done.
 *
 * MQ_E_SHAPE    shapes are not the worker's
 * MQ_E_NUMERIC  a weight or an input is not finite, or so large that FP32 sums overflow (said which, with the projection)
 * and the statuses of rows and of the table. */
mq_status mq_calib_expert_run(mq_calib_worker *w, uint8_t *gate_up, uint8_t *down,
                              mq_calib_account account[MQ_CALIB_MATRICES], const mq_calib_expert *e,
                              const mq_calib_recipe *recipe, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
