/* Codes by error feedback.
 *
 * Rows stand in processing order of the columns.  Columns are halved recursively: once the first half is done, one cuBLAS
 * product feeds its errors into the second half; up to LEAF columns are done one after the other by a warp a row, lane l
 * holding columns l and l + 32.  Rows do not see each other.  In BF16 products over many columns are those of high and low parts
 * (moment.cu). */
#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256, LEAF = 64, WARPS = 4, MANY = 128 };

/* A chunk of rows. */
struct ldlq_job {
    uint8_t *codes;     /* [rows, cols], the columns' own order */
    const float *scale; /* [rows, cols / group] */
    const float *a, *d;
    const int32_t *perm;
    float *w, *sum; /* [rows, cols], processing order: weights, then D; what earlier columns feed into each */
    double *loss;   /* [rows] */
    uint16_t *high, *low; /* [rows, cols] parts of D; NULL in F32 */
    parts factor;         /* of a */
    int64_t rows, cols;
    int group;
};

static __global__ void ldlq_load_kernel(ldlq_job job, const float *w)
{
    for (int64_t i = blockIdx.y; i < job.rows; i += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < job.cols;
             k += (int64_t)gridDim.x * blockDim.x) {
            job.w[i * job.cols + k] = w[i * job.cols + job.perm[k]];
            job.sum[i * job.cols + k] = 0.0f;
            if (k == 0)
                job.loss[i] = 0.0;
        }
}

/* clamp(rne(x), -8, 7): clamping first gives the same. */
static __device__ __forceinline__ float code_of(float x)
{
    x = x < 7.0f ? x : 7.0f;
    x = x > -8.0f ? x : -8.0f;
    return rintf(x);
}

/* Column k in processing order, col in its own: its code and its error.  Returns what it adds to the loss. */
static __device__ __forceinline__ double store_column(const ldlq_job &job, int64_t row, int64_t k, int64_t col, float w,
                                                      float t, float s)
{
    float q = code_of(t / s), back = q * s, e = w - back, miss = t - back;
    int64_t at = row * job.cols + k;
    job.codes[row * job.cols + col] = (uint8_t)((int)q + 8);
    job.w[at] = e;
    if (job.high) {
        uint16_t high = mq_f32_to_bf16(e);
        job.high[at] = high;
        job.low[at] = mq_f32_to_bf16(e - mq_bf16_to_f32(high));
    }
    return (double)job.d[k] * ((double)miss * (double)miss);
}

static __global__ void ldlq_leaf_kernel(ldlq_job job, int64_t lo, int size)
{
    MQ_SHARED(a, float[LEAF][LEAF]);
    int lane = (int)(threadIdx.x % WARP);
    for (int i = (int)threadIdx.x; i < LEAF * LEAF; i += WARPS * WARP) {
        int j = i / LEAF, k = i % LEAF;
        a[j][k] = k < size && j < k ? job.a[(lo + j) * job.cols + lo + k] : 0.0f;
    }
    __syncthreads();
    for (int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP; row < job.rows; row += (int64_t)gridDim.x * WARPS) {
        float w[2], t[2], s[2];
        int64_t col[2];
        double loss = 0.0;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int k = lane + WARP * h;
            int64_t at = row * job.cols + lo + k;
            col[h] = k < size ? job.perm[lo + k] : 0;
            w[h] = k < size ? job.w[at] : 0.0f;
            t[h] = k < size ? w[h] + job.sum[at] : 0.0f;
            s[h] = k < size ? job.scale[row * (job.cols / job.group) + col[h] / job.group] : 1.0f;
        }
        /* a is zero for columns that are done: a lane's t stays what its code came from */
#pragma unroll
        for (int h = 0; h < 2; h++)
            for (int l = 0; l < WARP && WARP * h + l < size; l++) {
                int k = WARP * h + l;
                float e = __shfl_sync(ALL_LANES, w[h] - code_of(t[h] / s[h]) * s[h], l);
                t[0] = fmaf(a[k][lane], e, t[0]);
                t[1] = fmaf(a[k][lane + WARP], e, t[1]);
            }
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (lane + WARP * h < size)
                loss += store_column(job, row, lo + lane + WARP * h, col[h], w[h], t[h], s[h]);
        loss = warp_sum(loss);
        if (lane == 0)
            job.loss[row] += loss;
    }
}

/* What columns lo .. mid - 1 feed into mid .. hi - 1. */
static mq_status feed(mq_dev *dev, const ldlq_job *job, int64_t lo, int64_t mid, int64_t hi, mq_err *err)
{
    int64_t cols = job->cols;
    if (!job->high || mid - lo < MANY)
        return gemm(dev, "ldlq", false, false, job->rows, hi - mid, mid - lo, 1.0f, job->w + lo, cols,
                    job->a + lo * cols + mid, cols, 1.0f, job->sum + mid, cols, err);
    parts d = {job->high + lo, job->low + lo, cols};
    parts a = {job->factor.high + lo * cols + mid, job->factor.low + lo * cols + mid, cols};
    return gemm_parts(dev, "ldlq", job->rows, hi - mid, mid - lo, d, a, 1.0f, job->sum + mid, cols, err);
}

static mq_status do_range(mq_dev *dev, const ldlq_job *job, int64_t lo, int64_t hi, mq_err *err)
{
    if (hi - lo <= LEAF)
        return launch(dev, err, "ldlq", ldlq_leaf_kernel, n_blocks(job->rows, WARPS), WARPS * WARP, 0, *job, lo,
                      (int)(hi - lo));
    int64_t mid = lo + ((hi - lo) / 2 + LEAF - 1) / LEAF * LEAF;
    MQ_TRY(do_range(dev, job, lo, mid, err));
    MQ_TRY(feed(dev, job, lo, mid, hi, err));
    return do_range(dev, job, mid, hi, err);
}

/* Room for the parts of D for rows, and a in parts: in BF16, where there are products over many columns. */
static mq_status open_parts(mq_dev *dev, ldlq_job *job, int64_t rows, mq_err *err)
{
    void *room, *both;
    int64_t cols = job->cols;
    if (dev->precision != MQ_PRECISION_BF16 || cols < 2 * MANY)
        return MQ_OK;
    MQ_TRY(workspace(dev, WS_HALF, 2 * rows * cols * (int64_t)sizeof(uint16_t), &room, err));
    MQ_TRY(workspace(dev, WS_PARTS, 2 * cols * cols * (int64_t)sizeof(uint16_t), &both, err));
    uint16_t *high = (uint16_t *)both, *low = high + cols * cols;
    job->high = (uint16_t *)room;
    job->low = job->high + rows * cols;
    job->factor = {high, low, cols};
    return split(dev, "ldlq", high, low, job->a, cols * cols, err);
}

mq_status ldlq(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *a,
               const float *d, const int32_t *perm, int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t chunk = rows < ROWS_AT_ONCE ? rows : (int64_t)ROWS_AT_ONCE;
    void *room, *sums, *small;
    if (rows <= 0)
        return MQ_OK;
    MQ_TRY(workspace(dev, WS_ROWS, chunk * cols * (int64_t)sizeof *w, &room, err));
    MQ_TRY(workspace(dev, WS_SUMS, chunk * cols * (int64_t)sizeof *w, &sums, err));
    MQ_TRY(workspace(dev, WS_SMALL, chunk * (int64_t)sizeof(double), &small, err));
    ldlq_job job = {};
    job.a = a;
    job.d = d;
    job.perm = perm;
    job.w = (float *)room;
    job.sum = (float *)sums;
    job.loss = (double *)small;
    job.cols = cols;
    job.group = group;
    MQ_TRY(open_parts(dev, &job, chunk, err));
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        job.codes = codes + r0 * cols;
        job.scale = scale + r0 * (cols / group);
        job.rows = rows - r0 < chunk ? rows - r0 : chunk;
        MQ_TRY(launch(dev, err, "ldlq", ldlq_load_kernel,
                      dim3(n_blocks(cols, THREADS), n_blocks(job.rows, 1, GRID_Y_LIMIT)), THREADS, 0, job, w + r0 * cols));
        MQ_TRY(do_range(dev, &job, 0, cols, err));
        MQ_TRY(narrow(dev, loss + r0, job.loss, job.rows, err));
    }
    return MQ_OK;
}

} // namespace mq_cuda
