/* Rounding speed on one thread: weights per second of processor time by method, group, instruction
 * set and source dtype.
 *
 *   bench_round [seconds per line, default 0.3]
 *
 * The source is 64 rows of a large matrix, read again and again (it stays in the second- or
 * third-level cache): the arithmetic is measured, not the memory.  "tiles" lines start from F32
 * rows, the others from stored bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/round.h"
#include "src/float.h"
#include "src/units.h"

enum { ROWS = 64, COLS = 6144, N = ROWS * COLS };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* what other programs take does not count */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sum of four uniform numbers, near enough to a normal one. */
static float noise(uint64_t *x)
{
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) {
        *x = *x * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*x >> 40) * 0x1p-24f - 0.5f;
    }
    return 0.03f * sum;
}

static uint8_t *bytes_of(size_t n)
{
    uint8_t *p = aligned_alloc(64, (n + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(5);
    }
    return p;
}

/* One source matrix of each scheme. */
static mq_matrix make_source(mq_scheme scheme)
{
    uint64_t seed = 1;
    mq_matrix m = {.scheme = scheme, .rows = ROWS, .cols = COLS};
    uint8_t *data = bytes_of((size_t)N * 4);
    for (int64_t i = 0; i < N; i++) {
        float w = noise(&seed);
        uint16_t half = mq_f32_to_bf16(w);
        if (scheme == MQ_SCHEME_F32)
            memcpy(data + 4 * i, &w, 4);
        else if (scheme == MQ_SCHEME_BF16)
            memcpy(data + 2 * i, &half, 2);
        else
            data[i] = (uint8_t)((mq_f32_bits(w) >> 24 & 0x80u) | ((seed >> 33) % 0x7fu));
    }
    m.data = data;
    if (scheme == MQ_SCHEME_FP8_BLOCK) {
        m.seg_rows = ROWS;
        float *scale = (float *)(void *)bytes_of((size_t)COLS / 128 * 4);
        for (int i = 0; i < COLS / 128; i++)
            scale[i] = 1e-4f;
        m.scale = scale;
    } else if (scheme == MQ_SCHEME_MXFP4_ROWS) {
        uint8_t *scale = bytes_of(N / 32);
        memset(scale, 120, N / 32);
        m.scale = scale;
    }
    return m;
}

static void check(mq_status st, const mq_err *err)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(70);
}

static double measure(mq_rounder *r, mq_round_method method, int group, const mq_matrix *m,
                      uint8_t *units, const float *const *rows_of, double limit_s)
{
    mq_round_window win = {m, NULL, 0, ROWS, 0, COLS};
    mq_round_stats stats[2];
    mq_err err;
    double weights = 0.0, start = now_s(), spent;
    do {
        check(rows_of
                  ? mq_round_tiles(r, method, rows_of, ROWS, COLS, group, units, false, stats, &err)
                  : mq_round_matrix(r, method, &win, group, units, stats, &err),
              &err);
        weights += N;
        spent = now_s() - start;
    } while (spent < limit_s);
    return weights / spent;
}

int main(int argc, char **argv)
{
    double limit_s = argc > 1 ? atof(argv[1]) : 0.3;
    const char *const isas[3] = {"scalar", "avx2", "avx512"};
    const mq_scheme schemes[4] = {MQ_SCHEME_BF16, MQ_SCHEME_FP8_BLOCK, MQ_SCHEME_MXFP4_ROWS,
                                  MQ_SCHEME_F32};
    uint8_t *units = bytes_of((size_t)mq_units_bytes(ROWS, COLS, 32));
    float *wide = (float *)(void *)bytes_of((size_t)N * 4);
    mq_matrix sources[4];
    for (int k = 0; k < 4; k++)
        sources[k] = make_source(schemes[k]);

    for (int i = 0; i < 3; i++) {
        mq_rounder *r;
        mq_err err;
        if (mq_rounder_create(&r, isas[i], &err) != MQ_OK) {
            printf("%s: %s\n", isas[i], err.text);
            continue;
        }
        double start = now_s(), n = 0;
        for (int k = 0; k < 4; k++, n = 0, start = now_s()) {
            do
                mq_round_widen(r, &sources[k], 0, ROWS, wide), n += N;
            while (now_s() - start < limit_s);
            printf("%-6s widen  %-10s      %8.1f M weights/s\n", isas[i],
                   mq_scheme_name(schemes[k]), n / (now_s() - start) / 1e6);
        }
        const float *rows_of[ROWS];
        for (int k = 0; k < ROWS; k++)
            rows_of[k] = wide + (int64_t)k * COLS;
        for (int method = 0; method < 2; method++)
            for (int group = 32; group <= 128; group *= 2)
                for (int k = 0; k < 5; k++)
                    printf("%-6s %-6s %-10s g%-4d %8.1f M weights/s\n", isas[i],
                           method ? "search" : "rtn", k < 4 ? mq_scheme_name(schemes[k]) : "tiles",
                           group,
                           measure(r, (mq_round_method)method, group, &sources[k % 4], units,
                                   k < 4 ? NULL : rows_of, limit_s) /
                               1e6);
        mq_rounder_free(r);
    }
    return 0;
}
