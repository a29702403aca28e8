/* A random expert with correlated inputs, and the job on it in double precision: what test_expert.c compares with. */
#ifndef MQ_TESTS_CALIB_EXPERT_FIXTURE_H
#define MQ_TESTS_CALIB_EXPERT_FIXTURE_H

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "calib/expert.h"
#include "kernels/round.h"
#include "src/float.h"
#include "src/units.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

/* ---- data ---- */

typedef struct fixture {
    const mq_kernels *k;
    int64_t hidden, width, n_tokens, n_sample, n_layer;
    random_matrix gate, up, down;
    float *x, *sample; /* [n, hidden] */
    float *coef;       /* [n_tokens] */
    float *layer;      /* [hidden, hidden] lower triangle: the moment of n_layer other tokens */
    mq_calib_expert e; /* lends from all above; ctx is the fixture */
} fixture;

static inline mq_status fixture_rows(void *ctx, float *x, bool sample, int64_t first, int64_t n, mq_err *err)
{
    (void)err;
    fixture *f = ctx;
    memcpy(x, (sample ? f->sample : f->x) + first * f->hidden, (size_t)(n * f->hidden) * sizeof *x);
    return MQ_OK;
}

/* Inputs that a few directions dominate, with columns of very different size, as behind a norm. */
static inline float *correlated(int64_t n, int64_t cols, uint64_t shape_seed, uint64_t seed)
{
    enum { DIRECTIONS = 12 };
    float *mix = random_floats(DIRECTIONS * cols, shape_seed), *size = random_floats(cols, shape_seed + 1);
    float *x = random_floats(n * cols, seed);
    for (int64_t i = 0; i < n; i++) {
        float z[DIRECTIONS];
        for (int d = 0; d < DIRECTIONS; d++)
            z[d] = mq_test_normal(&seed) / (float)(1 + d);
        for (int64_t c = 0; c < cols; c++) {
            float sum = 0.2f * x[i * cols + c];
            for (int d = 0; d < DIRECTIONS; d++)
                sum += z[d] * mix[d * cols + c];
            x[i * cols + c] = sum * expf(0.5f * size[c]);
        }
    }
    free(mix);
    free(size);
    return x;
}

/* Weights of about the size that keeps h of order one. */
static inline random_matrix weights(mq_scheme scheme, int64_t rows, int64_t cols, uint64_t seed)
{
    random_matrix m = random_matrix_create((matrix_spec){scheme, 0, rows, cols, rows, 0, 0}, seed);
    if (scheme == MQ_SCHEME_F32)
        for (int64_t i = 0; i < rows * cols; i++)
            m.wide[i] = ((float *)m.data)[i] *= 0.05f;
    return m;
}

static inline fixture *fixture_create(mq_scheme scheme, int64_t hidden, int64_t width, int64_t n_tokens, uint64_t seed)
{
    fixture *f = calloc(1, sizeof *f);
    f->k = mq_kernels_find("cpu");
    f->hidden = hidden;
    f->width = width;
    f->n_tokens = n_tokens;
    f->n_sample = 100;
    f->n_layer = 2000;
    f->gate = weights(scheme, width, hidden, seed + 1);
    f->up = weights(scheme, width, hidden, seed + 2);
    f->down = weights(scheme, hidden, width, seed + 3);
    f->x = correlated(n_tokens, hidden, seed, seed + 4);
    f->sample = correlated(f->n_sample, hidden, seed, seed + 5);
    f->coef = malloc((size_t)(n_tokens + 1) * sizeof *f->coef);
    uint64_t draw = seed + 7;
    for (int64_t i = 0; i < n_tokens; i++)
        f->coef[i] = 0.05f + 0.6f * (float)(mq_test_rand(&draw) % 1000u) / 1000.0f;
    float *others = correlated(f->n_layer, hidden, seed, seed + 6);
    f->layer = calloc((size_t)(hidden * hidden), sizeof *f->layer);
    for (int64_t i = 0; i < f->n_layer; i++)
        for (int64_t r = 0; r < hidden; r++)
            for (int64_t c = 0; c <= r; c++)
                f->layer[r * hidden + c] += others[i * hidden + r] * others[i * hidden + c];
    free(others);
    f->e = (mq_calib_expert){f->gate.m, f->up.m, f->down.m, n_tokens, f->coef, f->n_sample, fixture_rows, f, f->layer,
                             f->n_layer, NULL};
    return f;
}

static inline void fixture_free(fixture *f)
{
    random_matrix_free(&f->gate);
    random_matrix_free(&f->up);
    random_matrix_free(&f->down);
    free(f->x);
    free(f->sample);
    free(f->coef);
    free(f->layer);
    free(f);
}

/* ---- a run and what came out ---- */

static inline double *doubles(int64_t n)
{
    return calloc((size_t)n + 1, sizeof(double));
}

typedef struct result {
    uint8_t *gate_up, *down;
    int64_t gate_up_bytes, down_bytes;
    mq_calib_account account[MQ_CALIB_MATRICES];
} result;

enum { BLOCK = 64 }; /* rows of tokens at a time: several blocks in most tests */

static inline mq_status run_on(mq_dev *dev, result *out, const fixture *f, const mq_calib_recipe *r, mq_err *err)
{
    mq_calib_worker *w;
    mq_assert_ok(mq_calib_worker_create(&w, f->k, dev, f->hidden, f->width, r->group, BLOCK, err), err);
    out->gate_up_bytes = mq_units_bytes(2 * f->width, f->hidden, r->group);
    out->down_bytes = mq_units_bytes(f->hidden, f->width, r->group);
    out->gate_up = malloc((size_t)out->gate_up_bytes);
    out->down = malloc((size_t)out->down_bytes);
    mq_status st = mq_calib_expert_run(w, out->gate_up, out->down, out->account, &f->e, r, err);
    mq_calib_worker_free(w);
    return st;
}

static inline mq_status run(result *out, const fixture *f, const mq_calib_recipe *r, mq_err *err)
{
    mq_dev *dev;
    mq_assert_ok(f->k->dev_open(&dev, 0, 2, NULL, err), err);
    mq_status st = run_on(dev, out, f, r, err);
    f->k->dev_close(dev);
    return st;
}

static inline void result_free(result *r)
{
    free(r->gate_up);
    free(r->down);
}

/* Weights of a finished matrix: gate, up or down. */
static inline double *weights_of(const result *r, const fixture *f, int matrix, int group)
{
    bool is_down = matrix == MQ_CALIB_DOWN;
    int64_t rows = is_down ? f->hidden : f->width, cols = is_down ? f->width : f->hidden;
    double *w = doubles(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t row = is_down ? i / cols : mq_gate_up_row(i / cols, matrix == MQ_CALIB_UP);
        w[i] = (double)mq_units_at(is_down ? r->down : r->gate_up, cols, group, row, i % cols);
    }
    return w;
}

static inline const float *source_of(const fixture *f, int matrix)
{
    return matrix == MQ_CALIB_GATE ? f->gate.wide : matrix == MQ_CALIB_UP ? f->up.wide : f->down.wide;
}

static inline mq_calib_recipe basic(mq_calib_method method, int group)
{
    mq_calib_recipe r = mq_calib_recipe_default(method, group);
    r.rounds = 0;
    r.descent = 0;
    r.down_target = false;
    return r;
}

/* ---- the job in double ---- */

/* g [n, n] full += weight x x^T; weight of row i: coef[i]^power, 1 without coef. */
static inline double *moment_of(const double *x, int64_t rows, int64_t n, const float *coef, int power)
{
    double *g = doubles(n * n);
    for (int64_t i = 0; i < rows; i++) {
        double w = coef ? pow((double)coef[i], power) : 1.0;
        for (int64_t r = 0; r < n; r++)
            for (int64_t c = 0; c < n; c++)
                g[r * n + c] += w * x[i * n + r] * x[i * n + c];
    }
    return g;
}

static inline double *widened(const float *x, int64_t n)
{
    double *y = doubles(n);
    for (int64_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    return y;
}

/* h [rows, width] of x through gate and up [width, hidden]. */
static inline double *h_of(const float *x, int64_t rows, const double *gate, const double *up, int64_t hidden, int64_t width)
{
    double *h = doubles(rows * width);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++) {
            double g = 0.0, u = 0.0;
            for (int64_t c = 0; c < hidden; c++) {
                g += gate[j * hidden + c] * (double)x[i * hidden + c];
                u += up[j * hidden + c] * (double)x[i * hidden + c];
            }
            h[i * width + j] = g / (1.0 + exp(-g)) * u;
        }
    return h;
}

static inline double trace_of(const double *g, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += g[i * n + i];
    return sum;
}

/* y = rho y + (1 - rho) (tr y / tr x) x, or x where y is nothing. */
static inline void blend_into(double *y, const double *x, int64_t n_tokens, double kappa, int64_t n)
{
    double own = trace_of(y, n), rho = (double)n_tokens / ((double)n_tokens + kappa * (double)n);
    for (int64_t i = 0; i < n * n; i++)
        y[i] = own > 0.0 ? rho * y[i] + (1.0 - rho) * own / trace_of(x, n) * x[i] : x[i];
}

/* D g D^T summed over rows. */
static inline double loss_of(const double *d, const double *g, int64_t rows, int64_t n)
{
    double sum = 0.0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) {
            double dot = 0.0;
            for (int64_t j = 0; j < n; j++)
                dot += g[i * n + j] * d[r * n + j];
            sum += dot * d[r * n + i];
        }
    return sum;
}

/* Columns by falling diagonal. */
static inline void order_of(int64_t *perm, const double *g, int64_t n, bool act_order)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i;
        for (; act_order && at > 0 && g[perm[at - 1] * n + perm[at - 1]] < g[i * n + i]; at--)
            perm[at] = perm[at - 1];
        perm[at] = i;
    }
}

/* Unit upper factor a of P g P^T with its ridge: a[j][k] = R[j][k] / R[k][k], from the last row up. */
static inline double *factor_of(const double *g, const int64_t *perm, double damp_own, double damp_mean, int64_t n)
{
    double *r = doubles(n * n), mean = trace_of(g, n) / (double)n;
    for (int64_t k = n - 1; k >= 0; k--) {
        double d = g[perm[k] * n + perm[k]];
        d += damp_own * d + damp_mean * mean;
        for (int64_t j = k + 1; j < n; j++)
            d -= r[k * n + j] * r[k * n + j];
        ck_assert(d > 0.0);
        r[k * n + k] = sqrt(d);
        for (int64_t i = 0; i < k; i++) {
            double s = g[perm[i] * n + perm[k]];
            for (int64_t j = k + 1; j < n; j++)
                s -= r[i * n + j] * r[k * n + j];
            r[i * n + k] = s / r[k * n + k];
        }
    }
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < k; i++)
            r[i * n + k] /= r[k * n + k];
    return r;
}

/* y [rows, n] = y h^-1, h symmetric and positive definite; elimination, h is used up. */
static inline void solve_rows(double *y, double *h, int64_t rows, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = k + 1; i < n; i++) {
            double by = h[k * n + i] / h[k * n + k];
            for (int64_t j = k; j < n; j++)
                h[j * n + i] -= by * h[j * n + k];
            for (int64_t r = 0; r < rows; r++)
                y[r * n + i] -= by * y[r * n + k];
        }
    for (int64_t k = n - 1; k >= 0; k--)
        for (int64_t r = 0; r < rows; r++) {
            y[r * n + k] /= h[k * n + k];
            for (int64_t i = 0; i < k; i++)
                y[r * n + i] -= y[r * n + k] * h[k * n + i];
        }
}

/* Scales of every group by the definition, omega = the diagonal over its mean (g NULL: none); their plain codes too. */
static inline void search_of(float *scale, uint8_t *codes, const float *w, const double *g, int64_t rows, int64_t n,
                             int group)
{
    float *omega = malloc((size_t)n * sizeof *omega);
    double mean = g ? trace_of(g, n) / (double)n : 1.0;
    for (int64_t i = 0; g && i < n; i++)
        omega[i] = g[i * n + i] > 0.0 ? (float)(g[i * n + i] / mean) : 1.0f;
    for (int64_t i = 0; i < rows * n; i += group) {
        uint16_t bits;
        ck_assert(!mq_round_group(NULL, MQ_ROUND_SEARCH, w + i, g ? omega + i % n : NULL, group, codes + i, &bits, NULL));
        scale[i / group] = mq_bf16_to_f32(bits);
    }
    free(omega);
}

/* codes of error feedback */
static inline void feed_back_of(uint8_t *codes, const float *w, const float *scale, const double *a, const int64_t *perm,
                                int64_t rows, int64_t n, int group)
{
    double *d = doubles(n);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < n; k++) {
            int64_t c = perm[k];
            double t = (double)w[r * n + c], s = (double)scale[(r * n + c) / group];
            for (int64_t j = 0; j < k; j++)
                t += d[j] * a[j * n + k];
            double q = fmin(fmax(nearbyint(t / s), -8.0), 7.0);
            d[k] = (double)w[r * n + c] - s * q;
            codes[r * n + c] = (uint8_t)((int)q + 8);
        }
    free(d);
}

#endif
