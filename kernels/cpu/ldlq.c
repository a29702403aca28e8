/* Codes by error feedback over a chunk of rows at a time.
 *
 * A chunk is held transposed, columns in processing order: [cols, rows of the chunk], so that a row of the matrix is a
 * lane.  Columns are halved recursively: once the first half is done, one BLAS product feeds its errors into the second
 * half; up to LEAF columns are done one after the other by the vector code.  Rows do not see each other, chunks are cut by
 * the shape alone and belong to one thread each, so the bits do not depend on the number of threads. */
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum {
    CHUNK = 256, /* rows */
    LEAF = 64,   /* columns */
    TILE = 16    /* rows transposed together: whole cache lines of the transposed side */
};

/* The arguments of mq_kernels.ldlq. */
typedef struct ldlq_job {
    const mq_vector_ops *v;
    uint8_t *codes;
    float *loss;
    const float *w, *scale, *a, *d;
    const int32_t *perm;
    int64_t rows, cols;
    int group;
} ldlq_job;

/* One thread's workspace, [.., lanes]; lanes is the chunk's rows in whole MQ_LDLQ_LANES. */
typedef struct ldlq_chunk {
    int64_t row0, rows, lanes;
    float *w;            /* [cols, lanes] weights, then D, in processing order */
    float *sum;          /* [cols, lanes] */
    float *scale;        /* [cols / group, lanes] */
    const float **col_scale; /* [cols] rows of scale */
    double *loss;        /* [lanes] */
    float *leaf_loss;    /* [lanes] */
    uint8_t *codes;      /* [cols, lanes] */
} ldlq_chunk;

static int64_t chunk_lanes(int64_t rows)
{
    int64_t most = rows < CHUNK ? rows : CHUNK;
    return (most + MQ_LDLQ_LANES - 1) / MQ_LDLQ_LANES * MQ_LDLQ_LANES;
}

int64_t mq_cpu_ldlq_bytes(int64_t rows, int64_t cols, int group)
{
    int64_t lanes = chunk_lanes(rows);
    int64_t bytes = lanes * (cols * 9 + cols / group * 4 + 12) + cols * (int64_t)sizeof(float *);
    return (bytes + 63) / 64 * 64;
}

static void place_chunk(ldlq_chunk *c, char *room, int64_t cols, int group)
{
    int64_t lanes = c->lanes;
    c->w = (float *)room;
    c->sum = c->w + cols * lanes;
    c->scale = c->sum + cols * lanes;
    c->leaf_loss = c->scale + cols / group * lanes;
    c->loss = (double *)(c->leaf_loss + lanes);
    c->col_scale = (const float **)(c->loss + lanes);
    c->codes = (uint8_t *)(c->col_scale + cols);
}

/* Weights and scales, transposed; lanes past the last row get weight 0 and scale 1. */
static void load_chunk(const ldlq_job *job, ldlq_chunk *c)
{
    const int64_t groups = job->cols / job->group;
    for (int64_t r0 = 0; r0 < c->lanes; r0 += TILE) {
        int64_t n = c->rows - r0 < TILE ? c->rows - r0 : TILE, row = c->row0 + r0; /* n <= 0: padding */
        for (int64_t k = 0; k < job->cols; k++) {
            float *to = c->w + k * c->lanes + r0;
            for (int64_t r = 0; r < TILE; r++)
                to[r] = r < n ? job->w[(row + r) * job->cols + job->perm[k]] : 0.0f;
        }
        for (int64_t k = 0; k < groups; k++)
            for (int64_t r = 0; r < TILE; r++)
                c->scale[k * c->lanes + r0 + r] = r < n ? job->scale[(row + r) * groups + k] : 1.0f;
    }
    for (int64_t k = 0; k < job->cols; k++)
        c->col_scale[k] = c->scale + job->perm[k] / job->group * c->lanes;
    memset(c->sum, 0, (size_t)(job->cols * c->lanes) * sizeof *c->sum);
    memset(c->loss, 0, (size_t)c->lanes * sizeof *c->loss);
}

static void store_chunk(const ldlq_job *job, const ldlq_chunk *c)
{
    for (int64_t r0 = 0; r0 < c->rows; r0 += TILE) {
        int64_t stop = c->rows - r0 < TILE ? c->rows - r0 : TILE;
        uint8_t *codes = job->codes + (c->row0 + r0) * job->cols;
        for (int64_t k = 0; k < job->cols; k++)
            for (int64_t r = 0; r < stop; r++)
                codes[r * job->cols + job->perm[k]] = c->codes[k * c->lanes + r0 + r];
    }
    for (int64_t r = 0; r < c->rows; r++)
        job->loss[c->row0 + r] = (float)c->loss[r];
}

static void do_leaf(const ldlq_job *job, ldlq_chunk *c, int64_t lo, int64_t hi)
{
    int64_t at = lo * c->lanes;
    mq_ldlq_leaf leaf = {
        .w = c->w + at,
        .sum = c->sum + at,
        .a = job->a + lo * job->cols + lo,
        .d = job->d + lo,
        .scale = c->col_scale + lo,
        .codes = c->codes + at,
        .loss = c->leaf_loss,
        .lda = job->cols,
        .lanes = c->lanes,
        .n_cols = (int)(hi - lo),
    };
    memset(c->leaf_loss, 0, (size_t)c->lanes * sizeof *c->leaf_loss);
    job->v->ldlq(&leaf);
    for (int64_t r = 0; r < c->lanes; r++)
        c->loss[r] += (double)c->leaf_loss[r];
}

static void do_range(const ldlq_job *job, ldlq_chunk *c, int64_t lo, int64_t hi)
{
    if (hi - lo <= LEAF) {
        do_leaf(job, c, lo, hi);
        return;
    }
    int64_t mid = lo + ((hi - lo) / 2 + LEAF - 1) / LEAF * LEAF;
    do_range(job, c, lo, mid);
    mq_blas_gemm(true, false, hi - mid, c->lanes, mid - lo, 1.0f, job->a + lo * job->cols + mid, job->cols,
                 c->w + lo * c->lanes, c->lanes, 1.0f, c->sum + mid * c->lanes, c->lanes);
    do_range(job, c, mid, hi);
}

mq_status mq_cpu_ldlq(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a,
                      const float *d, const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err)
{
    if (rows <= 0)
        return MQ_OK;
    ldlq_job job = {dev->v, codes, loss, w, scale, a, d, perm, rows, cols, group};
    int64_t n_chunks = (rows + CHUNK - 1) / CHUNK, bytes = mq_cpu_ldlq_bytes(rows, cols, group);
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols * (double)cols / 16.0);
    threads = threads < n_chunks ? threads : (int)n_chunks;
    void *room;
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_CHUNK, threads * bytes, &room, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n_chunks; i++) {
        ldlq_chunk c = {.row0 = i * CHUNK, .rows = rows - i * CHUNK < CHUNK ? rows - i * CHUNK : CHUNK};
        c.lanes = chunk_lanes(c.rows);
        place_chunk(&c, (char *)room + omp_get_thread_num() * bytes, cols, group);
        load_chunk(&job, &c);
        do_range(&job, &c, 0, cols);
        store_chunk(&job, &c);
    }
    return MQ_OK;
}
