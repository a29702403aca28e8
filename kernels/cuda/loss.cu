/* What rounding costs under a second moment, D g D^T of each row, and the choice between two roundings by it.
 *
 * D g is a product with both triangles of g per chunk of rows (moment.cu); its product with D is summed in double. */
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256 };

static __global__ void residual_kernel(float *out, const float *w, const uint8_t *codes, const float *scale, int64_t n,
                                       int64_t cols, int group)
{
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y)
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < cols; c += (int64_t)gridDim.x * blockDim.x) {
            float q = (float)((int)codes[i * cols + c] - 8);
            out[i * cols + c] = w[i * cols + c] - q * scale[i * (cols / group) + c / group];
        }
}

mq_status residual(mq_dev *dev, float *out, const float *w, const uint8_t *codes, const float *scale, int64_t n,
                   int64_t cols, int group, mq_err *err)
{
    dim3 grid(n_blocks(cols, THREADS), n_blocks(n, 1, GRID_Y_LIMIT));
    return launch(dev, err, "residual", residual_kernel, grid, THREADS, 0, out, w, codes, scale, n, cols, group);
}

/* A warp a row. */
static __global__ void row_dots_kernel(double *out, const float *a, const float *b, int64_t n, int64_t cols)
{
    int lane = (int)(threadIdx.x % WARP);
    int64_t warps = (int64_t)gridDim.x * (THREADS / WARP);
    for (int64_t i = (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; i < n; i += warps) {
        double sum = 0.0;
        for (int64_t c = lane; c < cols; c += WARP)
            sum = fma((double)a[i * cols + c], (double)b[i * cols + c], sum);
        sum = warp_sum(sum);
        if (lane == 0)
            out[i] = sum;
    }
}

mq_status row_dots(mq_dev *dev, double *out, const float *a, const float *b, int64_t n, int64_t cols, mq_err *err)
{
    return launch(dev, err, "row_dots", row_dots_kernel, n_blocks(n, THREADS / WARP), THREADS, 0, out, a, b, n, cols);
}

static __global__ void narrow_kernel(float *out, const double *in, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = (float)in[i];
}

mq_status narrow(mq_dev *dev, float *out, const double *in, int64_t n, mq_err *err)
{
    return launch(dev, err, "narrow", narrow_kernel, n_blocks(n, THREADS), THREADS, 0, out, in, n);
}

/* out [n] = x g x^T of n rows; sum [n, cols] and dots [n] are scratch. */
static mq_status quadratic(mq_dev *dev, float *out, const float *x, const moment *g, float *sum, double *dots, int64_t n,
                           mq_err *err)
{
    MQ_TRY(times_moment(dev, "quant_loss", sum, x, g, n, err));
    MQ_TRY(row_dots(dev, dots, x, sum, n, g->n, err));
    return narrow(dev, out, dots, n, err);
}

mq_status quant_loss(mq_dev *dev, float *loss, float *norm, const uint8_t *codes, const float *w, const float *scale,
                     const float *g, int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t chunk = rows < ROWS_AT_ONCE ? rows : (int64_t)ROWS_AT_ONCE;
    moment both;
    void *room, *sums, *small;
    if (rows <= 0)
        return MQ_OK;
    MQ_TRY(open_moment(dev, &both, g, cols, false, err));
    MQ_TRY(workspace(dev, WS_ROWS, chunk * cols * (int64_t)sizeof *w, &room, err));
    MQ_TRY(workspace(dev, WS_SUMS, chunk * cols * (int64_t)sizeof *w, &sums, err));
    MQ_TRY(workspace(dev, WS_SMALL, chunk * (int64_t)sizeof(double), &small, err));
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        int64_t n = rows - r0 < chunk ? rows - r0 : chunk;
        float *e = (float *)room, *sum = (float *)sums;
        double *dots = (double *)small;
        MQ_TRY(residual(dev, e, w + r0 * cols, codes + r0 * cols, scale + r0 * (cols / group), n, cols, group, err));
        MQ_TRY(quadratic(dev, loss + r0, e, &both, sum, dots, n, err));
        if (norm)
            MQ_TRY(quadratic(dev, norm + r0, w + r0 * cols, &both, sum, dots, n, err));
    }
    return MQ_OK;
}

struct keep_job {
    uint8_t *codes;
    float *scale, *loss;
    const uint8_t *codes_new;
    const float *scale_new, *loss_new;
    unsigned long long *n_kept;
    int64_t rows, cols, n_groups;
};

static __global__ void keep_better_kernel(keep_job job)
{
    for (int64_t r = blockIdx.x; r < job.rows; r += gridDim.x) {
        bool is_better = job.loss_new[r] < job.loss[r];
        __syncthreads(); /* all have read the loss */
        if (!is_better)
            continue;
        for (int64_t c = threadIdx.x; c < job.cols; c += THREADS)
            job.codes[r * job.cols + c] = job.codes_new[r * job.cols + c];
        for (int64_t k = threadIdx.x; k < job.n_groups; k += THREADS)
            job.scale[r * job.n_groups + k] = job.scale_new[r * job.n_groups + k];
        if (threadIdx.x == 0) {
            job.loss[r] = job.loss_new[r];
            atomicAdd(job.n_kept, 1ull);
        }
    }
}

mq_status keep_better(mq_dev *dev, uint8_t *codes, float *scale, float *loss, int64_t *n_kept, const uint8_t *codes_new,
                      const float *scale_new, const float *loss_new, int64_t rows, int64_t cols, int group, mq_err *err)
{
    void *count;
    unsigned long long kept = 0;
    MQ_TRY(workspace(dev, WS_SMALL, (int64_t)sizeof kept, &count, err));
    MQ_TRY(check(dev, cudaMemsetAsync(count, 0, sizeof kept, dev->stream), "keep_better", err));
    keep_job job = {codes, scale, loss, codes_new, scale_new, loss_new, (unsigned long long *)count, rows, cols, cols / group};
    MQ_TRY(launch(dev, err, "keep_better", keep_better_kernel, n_blocks(rows, 1), THREADS, 0, job));
    MQ_TRY(download(dev, &kept, count, (int64_t)sizeof kept, err));
    if (n_kept)
        *n_kept = (int64_t)kept;
    return MQ_OK;
}

} // namespace mq_cuda
