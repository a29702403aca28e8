/* Random activations, moments, scales and permutations for the tests and benchmarks of the calibration operations, and plain
 * double-precision forms of what those compute. */
#ifndef MQ_TESTS_MAKER_CALIBRATION_DATA_H
#define MQ_TESTS_MAKER_CALIBRATION_DATA_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/harness.h"
#include "tests/maker/random_matrix.h"

/* x [n, cols]: correlated columns of very different size, as activations have. */
static inline float *random_activations(int64_t n, int64_t cols, uint64_t seed)
{
    float *x = random_floats(n * cols, seed);
    for (int64_t i = 0; i < n; i++) {
        float common = mq_test_normal(&seed);
        for (int64_t c = 0; c < cols; c++) {
            float size = 0.2f + (float)((c * 7919) % 31) / 10.0f;
            x[i * cols + c] = size * (x[i * cols + c] + common + (c ? 0.5f * x[i * cols + c - 1] : 0.0f));
        }
    }
    return x;
}

/* A permutation of 0 .. n - 1; the identity for seed 0. */
static inline int32_t *random_permutation(int64_t n, uint64_t seed)
{
    int32_t *p = malloc((size_t)(n + 1) * sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)i;
    for (int64_t i = n - 1; seed && i > 0; i--) {
        int64_t j = (int64_t)(mq_test_rand(&seed) % (uint64_t)(i + 1));
        int32_t t = p[i];
        p[i] = p[j];
        p[j] = t;
    }
    return p;
}

/* Moment [n, n] in double of n_tokens random activations over n_tokens, both triangles. */
static inline double *random_moment(int64_t n, int64_t n_tokens, uint64_t seed)
{
    float *x = random_activations(n_tokens, n, seed);
    double *h = calloc((size_t)(n * n) + 1, sizeof *h);
    for (int64_t t = 0; t < n_tokens; t++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                h[i * n + j] += (double)x[t * n + i] * (double)x[t * n + j] / (double)n_tokens;
    free(x);
    return h;
}

/* The lower triangle as floats, NaN above it: nobody may read that. */
static inline float *lower_floats(const double *h, int64_t n)
{
    float *g = malloc((size_t)(n * n + 1) * sizeof *g);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            g[i * n + j] = j <= i ? (float)h[i * n + j] : NAN;
    return g;
}

/* Scales [rows, cols / group] exact in BF16: largest magnitude over 7, every third one negative. */
static inline float *simple_scales(const float *w, int64_t rows, int64_t cols, int group)
{
    float *s = malloc((size_t)(rows * cols / group + 1) * sizeof *s);
    for (int64_t i = 0; i < rows * cols / group; i++) {
        float most = 0.0f;
        for (int c = 0; c < group; c++)
            most = fabsf(w[i * group + c]) > most ? fabsf(w[i * group + c]) : most;
        s[i] = mq_bf16_to_f32(mq_f32_to_bf16(most > 0.0f ? most / 7.0f : 1.0f));
        s[i] = i % 3 == 2 ? -s[i] : s[i];
    }
    return s;
}

/* D[row][col] of codes. */
static inline double error_of(const float *w, const float *scale, const uint8_t *codes, int64_t at, int group)
{
    return (double)w[at] - (double)scale[at / group] * ((double)codes[at] - 8.0);
}

/* x h x^T */
static inline double quadratic_form(const double *x, const double *h, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            sum += x[i] * h[i * n + j] * x[j];
    return sum;
}

/* clamp(round half to even, -8, 7) */
static inline int code_of(double t, double scale)
{
    double q = nearbyint(t / scale);
    return (int)(q < -8.0 ? -8.0 : q > 7.0 ? 7.0 : q);
}

/* Run body on every instruction set that is there, with two threads. */
static inline void on_each_isa(const mq_kernels *k, void (*body)(mq_dev *dev))
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < 3; i++) {
        mq_dev *dev;
        if (k->dev_open(&dev, 0, 2, isas[i], NULL) != MQ_OK)
            continue;
        body(dev);
        k->dev_close(dev);
    }
}

#endif
