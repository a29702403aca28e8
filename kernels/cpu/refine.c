/* After the codes: scales by least squares, codes by coordinate descent, both under the true second moment.
 *
 * Chunks of rows are dealt to threads.  A chunk's D g is one BLAS product with both triangles of g; for the scales'
 * equations the codes of one group of all rows are multiplied with that group's rows of g, and the parts of the result
 * that belong to a group are summed against its codes.  Then every row is on its own (refine_impl.h). */
#include <omp.h>
#include <stddef.h>

#include "kernels/cpu/cpu.h"

enum {
    DESCEND_ROWS = 128,
    REFIT_ROWS = 64
};

/* y [n, cols] = D g of rows row0 .., e [n, cols] = D. */
typedef struct refine_job {
    const mq_vector_ops *v;
    const uint8_t *codes;
    const float *w, *scale, *full;
    int64_t rows, cols, n_groups;
    int group;
} refine_job;

static void load_rows(const refine_job *j, float *e, float *y, int64_t row0, int64_t n)
{
    for (int64_t r = 0; r < n; r++)
        j->v->residual(e + r * j->cols, j->w + (row0 + r) * j->cols, j->codes + (row0 + r) * j->cols,
                       j->scale + (row0 + r) * j->n_groups, j->cols, j->group);
    mq_blas_gemm(false, false, n, j->cols, j->cols, 1.0f, e, j->cols, j->full, j->cols, 0.0f, y, j->cols);
}

/* ---- coordinate descent ---- */

static int64_t descend_bytes(int64_t cols)
{
    return 2 * DESCEND_ROWS * cols * (int64_t)sizeof(float);
}

mq_status mq_cpu_descend(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                         int n_passes, int64_t rows, int64_t cols, int group, mq_err *err)
{
    refine_job j = {dev->v, codes, w, scale, NULL, rows, cols, cols / group, group};
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols * (double)cols / 8.0);
    void *room;
    MQ_TRY(mq_cpu_mirror(dev, &j.full, g, cols, err));
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_CHUNK, cols * (int64_t)sizeof *w + threads * descend_bytes(cols), &room, err));
    float *diag = room;
    MQ_TRY(mq_cpu_diag(dev, diag, g, cols, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r0 = 0; r0 < rows; r0 += DESCEND_ROWS) {
        float *e = diag + (1 + omp_get_thread_num() * 2 * DESCEND_ROWS) * cols, *y = e + DESCEND_ROWS * cols;
        int64_t n = rows - r0 < DESCEND_ROWS ? rows - r0 : DESCEND_ROWS;
        load_rows(&j, e, y, r0, n);
        for (int64_t r = 0; r < n; r++) {
            mq_descend_row row = {
                .codes = codes + (r0 + r) * cols,
                .y = y + r * cols,
                .scale = scale + (r0 + r) * j.n_groups,
                .full = j.full,
                .diag = diag,
                .cols = cols,
                .group = group,
                .n_passes = n_passes,
            };
            dev->v->descend(&row);
            if (!loss)
                continue;
            double sum;
            dev->v->residual(e, w + (r0 + r) * cols, row.codes, row.scale, cols, group);
            dev->v->dots(&sum, e, row.y, 1, cols);
            loss[r0 + r] = (float)sum;
        }
    }
    return MQ_OK;
}

/* ---- scales ---- */

/* One thread's workspace. */
typedef struct refit_room {
    double *m;      /* [REFIT_ROWS, n_groups, n_groups] */
    double *r;      /* [REFIT_ROWS, n_groups] */
    double *b;      /* [n_groups, n_groups] */
    double *z, *y;  /* [n_groups] */
    double *before; /* [REFIT_ROWS] loss */
    float *q;       /* [REFIT_ROWS, cols] codes as numbers */
    float *e, *u;   /* [REFIT_ROWS, cols] */
} refit_room;

static int64_t refit_bytes(int64_t cols, int64_t groups)
{
    return (REFIT_ROWS + 1) * groups * groups * 8 + (REFIT_ROWS + 2) * groups * 8 + REFIT_ROWS * 8 + 3 * REFIT_ROWS * cols * 4;
}

int64_t mq_cpu_refine_bytes(int64_t cols, int group)
{
    int64_t refit = refit_bytes(cols, cols / group), descend = descend_bytes(cols) + cols * (int64_t)sizeof(float);
    return refit > descend ? refit : descend;
}

static refit_room place_room(char *at, int64_t cols, int64_t groups)
{
    refit_room p;
    p.m = (double *)at;
    p.r = p.m + REFIT_ROWS * groups * groups;
    p.b = p.r + REFIT_ROWS * groups;
    p.z = p.b + groups * groups;
    p.y = p.z + groups;
    p.before = p.y + groups;
    p.q = (float *)(p.before + REFIT_ROWS);
    p.e = p.q + REFIT_ROWS * cols;
    p.u = p.e + REFIT_ROWS * cols;
    return p;
}

/* The equations of n rows from row0 on. */
static void build_equations(const refine_job *j, const refit_room *p, int64_t row0, int64_t n)
{
    const int64_t cols = j->cols, groups = j->n_groups;
    load_rows(j, p->e, p->u, row0, n);
    for (int64_t r = 0; r < n; r++) {
        j->v->residual(p->q + r * cols, NULL, j->codes + (row0 + r) * cols, NULL, cols, j->group);
        j->v->dots(p->r + r * groups, p->u + r * cols, p->q + r * cols, groups, j->group);
        j->v->dots(p->before + r, p->u + r * cols, p->e + r * cols, 1, cols);
    }
    for (int64_t i = 0; i < groups; i++) {
        int64_t c0 = i * j->group, width = c0 + j->group;
        mq_blas_gemm(false, false, n, width, j->group, 1.0f, p->q + c0, cols, j->full + c0 * cols, cols, 0.0f, p->u, cols);
        for (int64_t r = 0; r < n; r++)
            j->v->dots(p->m + (r * groups + i) * groups, p->u + r * cols, p->q + r * cols, i + 1, j->group);
    }
}

mq_status mq_cpu_refit_scales(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w,
                              const float *g, int64_t rows, int64_t cols, int group, mq_err *err)
{
    refine_job j = {dev->v, codes, w, scale, NULL, rows, cols, cols / group, group};
    int threads = mq_cpu_threads(dev, (double)rows * (double)cols * (double)cols / 4.0);
    int64_t bytes = refit_bytes(cols, j.n_groups);
    void *room;
    MQ_TRY(mq_cpu_mirror(dev, &j.full, g, cols, err));
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_CHUNK, threads * bytes, &room, err));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r0 = 0; r0 < rows; r0 += REFIT_ROWS) {
        refit_room p = place_room((char *)room + omp_get_thread_num() * bytes, cols, j.n_groups);
        int64_t n = rows - r0 < REFIT_ROWS ? rows - r0 : REFIT_ROWS;
        build_equations(&j, &p, r0, n);
        for (int64_t r = 0; r < n; r++) {
            mq_refit_row row = {
                .m = p.m + r * j.n_groups * j.n_groups,
                .r = p.r + r * j.n_groups,
                .scale = scale + (r0 + r) * j.n_groups,
                .b = p.b,
                .z = p.z,
                .y = p.y,
                .n = (int)j.n_groups,
            };
            double gain = dev->v->refit(&row);
            if (loss)
                loss[r0 + r] = (float)(p.before[r] - gain);
        }
    }
    return MQ_OK;
}
