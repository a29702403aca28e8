/* After the codes: codes by coordinate descent, scales by least squares, both under the true second moment.
 *
 * A chunk's D g is one cuBLAS product with both triangles of g; for the scales' equations the codes of one group of all
 * rows are multiplied with that group's rows of g, and the parts of the result that belong to a group are summed
 * against its codes.  Then every row is one block's work. */
#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256 };

/* e [n, cols] = D of rows row0 .., y [n, cols] = D g. */
static mq_status load_rows(mq_dev *dev, float *e, float *y, const float *full, const float *w, const uint8_t *codes,
                           const float *scale, int64_t n, int64_t cols, int group, mq_err *err)
{
    MQ_TRY(residual(dev, e, w, codes, scale, n, cols, group, err));
    return gemm(dev, "refine", false, false, n, cols, cols, 1.0f, e, cols, full, cols, 0.0f, y, cols, err);
}

/* ---- coordinate descent ---- */

struct descend_job {
    uint8_t *codes;
    float *y; /* D g */
    const float *scale, *full;
    int64_t cols;
    int group, n_passes;
};

/* The best code of column c given all others; the present one where the column is dead. */
static __device__ __forceinline__ int best_code(const descend_job &job, const uint8_t *codes, const float *scale,
                                                const float *y, int64_t c)
{
    float diag = job.full[c * job.cols + c], s = scale[c / job.group], q = (float)((int)codes[c] - 8);
    float x = q + y[c] / (diag * s);
    x = x < 7.0f ? x : 7.0f;
    x = x > -8.0f ? x : -8.0f;
    return diag > 0.0f && fabsf(diag * s) >= 0x1p-126f ? (int)rintf(x) + 8 : (int)codes[c];
}

/* A row a block.  The block looks at as many columns as it has threads, takes the first whose code is not the best,
 * changes it, and goes on behind it. */
static __global__ void descend_kernel(descend_job job)
{
    MQ_SHARED_DYNAMIC(y, float);
    MQ_SHARED(first, int);
    MQ_SHARED(moved, float);
    int64_t cols = job.cols;
    uint8_t *codes = job.codes + blockIdx.x * cols;
    const float *scale = job.scale + blockIdx.x * (cols / job.group);
    float *kept = job.y + blockIdx.x * cols;
    int t = (int)threadIdx.x;
    for (int64_t c = t; c < cols; c += THREADS)
        y[c] = kept[c];
    for (int pass = 0; pass < job.n_passes; pass++) {
        bool has_changed = false;
        for (int64_t at = 0; at < cols;) {
            __syncthreads(); /* y and codes are up to date, first has been read */
            if (t == 0)
                first = THREADS;
            int best = at + t < cols ? best_code(job, codes, scale, y, at + t) : 0;
            bool differs = at + t < cols && best != (int)codes[at + t];
            __syncthreads();
            if (differs)
                atomicMin(&first, t);
            __syncthreads();
            int found = first;
            if (found == THREADS) {
                at += THREADS;
                continue;
            }
            int64_t c = at + found;
            const float *row = job.full + c * cols;
            if (t == found) {
                moved = (float)(best - (int)codes[c]) * scale[c / job.group];
                codes[c] = (uint8_t)best;
            }
            __syncthreads();
            float step = moved;
            for (int64_t j = t; j < cols; j += THREADS)
                y[j] = fmaf(-step, row[j], y[j]);
            has_changed = true;
            at = c + 1;
        }
        if (!has_changed)
            break;
    }
    __syncthreads();
    for (int64_t c = t; c < cols; c += THREADS)
        kept[c] = y[c];
}

mq_status descend(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                  int n_passes, int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t chunk = rows < ROWS_AT_ONCE ? rows : (int64_t)ROWS_AT_ONCE;
    const float *full;
    void *room, *sums, *small;
    if (rows <= 0)
        return MQ_OK;
    MQ_TRY(mirror(dev, &full, g, cols, err));
    MQ_TRY(workspace(dev, WS_ROWS, chunk * cols * (int64_t)sizeof *w, &room, err));
    MQ_TRY(workspace(dev, WS_SUMS, chunk * cols * (int64_t)sizeof *w, &sums, err));
    MQ_TRY(workspace(dev, WS_SMALL, chunk * (int64_t)sizeof(double), &small, err));
    float *e = (float *)room, *y = (float *)sums;
    double *dots = (double *)small;
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        int64_t n = rows - r0 < chunk ? rows - r0 : chunk;
        const float *w0 = w + r0 * cols, *scale0 = scale + r0 * (cols / group);
        descend_job job = {codes + r0 * cols, y, scale0, full, cols, group, n_passes};
        MQ_TRY(load_rows(dev, e, y, full, w0, job.codes, scale0, n, cols, group, err));
        MQ_TRY(launch(dev, err, "descend", descend_kernel, (unsigned)n, THREADS, (size_t)cols * sizeof *y, job));
        if (!loss)
            continue;
        MQ_TRY(residual(dev, e, w0, job.codes, scale0, n, cols, group, err));
        MQ_TRY(row_dots(dev, dots, 1, e, y, n, cols, 1, cols, err));
        MQ_TRY(narrow(dev, loss + r0, dots, n, err));
    }
    return MQ_OK;
}

/* ---- scales ---- */

/* A chunk of rows; arrays of the workspace. */
struct refit_job {
    float *scale, *loss; /* loss may be NULL */
    double *m, *b;       /* [rows, n, n] equations, lower triangle; their factor */
    double *r, *before;  /* [rows, n] right sides, [rows] losses */
    int n;               /* groups of a row */
};

/* b = R transposed with m enlarged = R R^T, R upper: from the last group up.  False where m is not positive definite. */
static __device__ bool factor_equations(const double *m, double *b, int n)
{
    int t = (int)threadIdx.x;
    for (int at = t; at < n * n; at += THREADS) {
        int i = at / n, j = at % n;
        bool is_dead = !(m[i * n + i] > 0.0), other_is_dead = !(m[j * n + j] > 0.0);
        if (j < i)
            b[at] = is_dead || other_is_dead ? 0.0 : m[at];
        if (j == i)
            b[at] = is_dead ? 1.0 : m[at] * (1.0 + 1e-4);
    }
    __syncthreads();
    for (int k = n - 1; k >= 0; k--) {
        double pivot = b[k * n + k];
        if (!(pivot > 0.0) || !isfinite(pivot))
            return false; /* the same in all threads */
        double inv = 1.0 / sqrt(pivot);
        __syncthreads();
        for (int j = t; j <= k; j += THREADS)
            b[k * n + j] *= inv;
        __syncthreads();
        for (int at = t; at < k * k; at += THREADS)
            if (at % k <= at / k)
                b[at / k * n + at % k] -= b[k * n + at / k] * b[k * n + at % k];
        __syncthreads();
    }
    return true;
}

/* BF16 nearest to x with x kept between 0.8 and 1.2 times s, magnitude at least 2^-126. */
static __device__ float refit_round(double x, float s)
{
    double a = 0.8 * (double)s, b = 1.2 * (double)s, lo = a < b ? a : b, hi = a < b ? b : a;
    float v = mq_bf16_to_f32(mq_f32_to_bf16((float)(x < lo ? lo : x > hi ? hi : x)));
    return fabsf(v) < 0x1p-126f ? copysignf(0x1p-126f, s) : v;
}

/* A row a block; z and y, n doubles each, in shared memory. */
static __global__ void refit_kernel(refit_job job)
{
    MQ_SHARED_DYNAMIC(z, double);
    int t = (int)threadIdx.x, n = job.n;
    double *y = z + n, *b = job.b + (int64_t)blockIdx.x * n * n;
    const double *m = job.m + (int64_t)blockIdx.x * n * n, *r = job.r + (int64_t)blockIdx.x * n;
    float *scale = job.scale + (int64_t)blockIdx.x * n;
    double gain = 0.0;
    bool is_sound = factor_equations(m, b, n);
    for (int k = t; k < n; k += THREADS)
        z[k] = m[k * n + k] > 0.0 ? r[k] : 0.0;
    for (int k = n - 1; is_sound && k >= 0; k--) { /* R z = r */
        __syncthreads();
        if (t == 0)
            z[k] /= b[k * n + k];
        __syncthreads();
        for (int j = t; j < k; j += THREADS)
            z[j] -= b[k * n + j] * z[k];
    }
    __syncthreads();
    for (int k = 0; is_sound && k < n; k++) { /* R^T delta = z, each delta replaced by what is taken */
        double sum = 0.0;
        for (int j = t; j < k; j += THREADS)
            sum += b[k * n + j] * y[j];
        sum = block_sum(sum);
        if (t == 0) {
            double s = (double)scale[k];
            y[k] = m[k * n + k] > 0.0 ? (double)refit_round(s + (z[k] - sum) / b[k * n + k], scale[k]) - s : 0.0;
        }
        __syncthreads();
    }
    for (int i = t; is_sound && i < n; i += THREADS) {
        double s = 0.0;
        for (int j = 0; j < i; j++)
            s += 2.0 * m[i * n + j] * y[j];
        gain += y[i] * (2.0 * r[i] - m[i * n + i] * y[i] - s);
    }
    gain = block_sum(gain);
    gain = gain > 0.0 ? gain : 0.0;
    for (int k = t; gain > 0.0 && k < n; k += THREADS)
        scale[k] = (float)((double)scale[k] + y[k]);
    if (t == 0 && job.loss)
        job.loss[blockIdx.x] = (float)(job.before[blockIdx.x] - gain);
}

/* What the equations are made of, and room for them. */
struct refit_room {
    float *e, *u, *q; /* [rows, cols] D; products; codes as numbers */
    double *m, *b, *r, *before;
};

static mq_status find_room(mq_dev *dev, refit_room *p, int64_t rows, int64_t cols, int64_t n, mq_err *err)
{
    void *room, *sums, *small;
    MQ_TRY(workspace(dev, WS_ROWS, 2 * rows * cols * (int64_t)sizeof(float), &room, err));
    MQ_TRY(workspace(dev, WS_SUMS, rows * cols * (int64_t)sizeof(float), &sums, err));
    MQ_TRY(workspace(dev, WS_SMALL, (2 * rows * n * n + rows * n + rows) * (int64_t)sizeof(double), &small, err));
    p->e = (float *)room;
    p->q = p->e + rows * cols;
    p->u = (float *)sums;
    p->m = (double *)small;
    p->b = p->m + rows * n * n;
    p->r = p->b + rows * n * n;
    p->before = p->r + rows * n;
    return MQ_OK;
}

/* The equations of n rows. */
static mq_status build_equations(mq_dev *dev, const refit_room *p, const float *full, const float *w,
                                 const uint8_t *codes, const float *scale, int64_t n, int64_t cols, int group, mq_err *err)
{
    int64_t groups = cols / group;
    MQ_TRY(load_rows(dev, p->e, p->u, full, w, codes, scale, n, cols, group, err));
    MQ_TRY(residual(dev, p->q, NULL, codes, NULL, n, cols, group, err));
    MQ_TRY(row_dots(dev, p->r, groups, p->u, p->q, n, cols, groups, group, err));
    MQ_TRY(row_dots(dev, p->before, 1, p->u, p->e, n, cols, 1, cols, err));
    for (int64_t i = 0; i < groups; i++) {
        int64_t c0 = i * group;
        MQ_TRY(gemm(dev, "refit_scales", false, false, n, c0 + group, group, 1.0f, p->q + c0, cols, full + c0 * cols, cols,
                    0.0f, p->u, cols, err));
        MQ_TRY(row_dots(dev, p->m + i * groups, groups * groups, p->u, p->q, n, cols, i + 1, group, err));
    }
    return MQ_OK;
}

mq_status refit_scales(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w, const float *g,
                       int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t chunk = rows < REFIT_ROWS ? rows : (int64_t)REFIT_ROWS, groups = cols / group;
    const float *full;
    refit_room p;
    if (rows <= 0)
        return MQ_OK;
    MQ_TRY(mirror(dev, &full, g, cols, err));
    MQ_TRY(find_room(dev, &p, chunk, cols, groups, err));
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        int64_t n = rows - r0 < chunk ? rows - r0 : chunk;
        refit_job job = {scale + r0 * groups, loss ? loss + r0 : NULL, p.m, p.b, p.r, p.before, (int)groups};
        MQ_TRY(build_equations(dev, &p, full, w + r0 * cols, codes + r0 * cols, job.scale, n, cols, group, err));
        MQ_TRY(launch(dev, err, "refit_scales", refit_kernel, (unsigned)n, THREADS, 2 * (size_t)groups * sizeof(double),
                      job));
    }
    return MQ_OK;
}

int64_t calibration_bytes(const mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n)
{
    const int64_t CUBLAS_BYTES = 64 << 20; /* its own workspace, 32 MiB on Hopper, and its code */
    int64_t most = rows > cols ? rows : cols, groups = (most + group - 1) / group;
    int64_t at_once = most < ROWS_AT_ONCE ? most : (int64_t)ROWS_AT_ONCE;
    at_once = at_once < 2 * REFIT_ROWS ? 2 * REFIT_ROWS : at_once;
    at_once = at_once < n ? n : at_once;
    int64_t per_row = 2 * groups * groups + groups + 1, doubles = REFIT_ROWS * per_row + ROWS_AT_ONCE + most;
    int64_t half = dev->precision == MQ_PRECISION_BF16 ? 2 * n * most : 0;
    return linear_bytes(rows, cols) + 4 * most * most + 2 * 4 * at_once * most + half + 8 * doubles + CUBLAS_BYTES;
}

} // namespace mq_cuda
