/* After the codes: coordinate descent under the true second moment.
 *
 * A chunk's D g is a product with both triangles of g (moment.cu).  Then every row is one block's work. */
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum { THREADS = 256 };

struct descend_job {
    uint8_t *codes;
    float *y; /* D g */
    const float *scale, *diag;
    moment g;
    int64_t cols;
    int group, n_passes;
};

/* The best code of column c given all others; the present one where the column is dead. */
static __device__ __forceinline__ int best_code(const descend_job &job, const uint8_t *codes, const float *scale,
                                                const float *y, int64_t c)
{
    float step = job.diag[c] * scale[c / job.group], q = (float)((int)codes[c] - 8);
    float x = q + y[c] / step;
    x = x < 7.0f ? x : 7.0f;
    x = x > -8.0f ? x : -8.0f;
    return job.diag[c] > 0.0f && fabsf(step) >= 0x1p-126f ? (int)rintf(x) + 8 : (int)codes[c];
}

enum { PER = 4 }; /* columns that a thread moves at once; their number is a multiple of 32 */

static __device__ __forceinline__ void add_scaled(float *y, float step, float4 v)
{
    float4 old = *(const float4 *)y;
    *(float4 *)y = {fmaf(step, v.x, old.x), fmaf(step, v.y, old.y), fmaf(step, v.z, old.z), fmaf(step, v.w, old.w)};
}

static __device__ __forceinline__ float sum_low(uint32_t high, uint32_t low)
{
    return mq_f32_from_bits(high << 16) + mq_f32_from_bits(low << 16);
}
static __device__ __forceinline__ float sum_high(uint32_t high, uint32_t low)
{
    return mq_f32_from_bits(high & 0xffff0000u) + mq_f32_from_bits(low & 0xffff0000u);
}

/* y += step * row c of g. */
static __device__ __forceinline__ void add_row(const descend_job &job, float *y, int64_t c, float step, int t)
{
    if (job.g.full) {
        const float *row = job.g.full + c * job.cols;
        for (int64_t j = t * PER; j < job.cols; j += THREADS * PER)
            add_scaled(y + j, step, *(const float4 *)(row + j));
        return;
    }
    const uint16_t *high = job.g.high + c * job.cols, *low = job.g.low + c * job.cols;
    for (int64_t j = t * PER; j < job.cols; j += THREADS * PER) {
        uint2 h = *(const uint2 *)(high + j), l = *(const uint2 *)(low + j);
        add_scaled(y + j, step, {sum_low(h.x, l.x), sum_high(h.x, l.x), sum_low(h.y, l.y), sum_high(h.y, l.y)});
    }
}

/* A warp's first column whose code is not the best: how far behind the first one looked at, and by what its weight moves. */
struct found {
    int at;
    float step;
};

/* A row a block.  The block looks at as many columns as it has threads, takes the first whose code is not the best, changes it, and
 * goes on behind it.  What the warps found stands in two places in turn, so one barrier a look is enough while nothing changes. */
static __global__ void descend_kernel(descend_job job)
{
    MQ_SHARED_DYNAMIC(y, float);
    MQ_SHARED(finds, found[2][THREADS / WARP]);
    int64_t cols = job.cols;
    uint8_t *codes = job.codes + blockIdx.x * cols;
    const float *scale = job.scale + blockIdx.x * (cols / job.group);
    float *kept = job.y + blockIdx.x * cols;
    int t = (int)threadIdx.x, warp = t / WARP, turn = 0;
    for (int64_t c = t; c < cols; c += THREADS)
        y[c] = kept[c];
    __syncthreads();
    for (int pass = 0; pass < job.n_passes; pass++) {
        bool has_changed = false;
        for (int64_t at = 0; at < cols; turn = !turn) {
            int old = at + t < cols ? (int)codes[at + t] : 0;
            int best = at + t < cols ? best_code(job, codes, scale, y, at + t) : 0;
            unsigned differ = __ballot_sync(ALL_LANES, best != old);
            if (differ ? t % WARP == __ffs((int)differ) - 1 : t % WARP == 0)
                finds[turn][warp] = {differ ? t : (int)THREADS, differ ? (float)(best - old) * scale[(at + t) / job.group] : 0.0f};
            __syncthreads();
            found first = finds[turn][0];
            for (int k = 1; k < THREADS / WARP; k++) {
                found other = finds[turn][k];
                first = other.at < first.at ? other : first;
            }
            if (first.at == THREADS) {
                at += THREADS;
                continue;
            }
            if (t == first.at)
                codes[at + t] = (uint8_t)best;
            add_row(job, y, at + first.at, -first.step, t);
            has_changed = true;
            at += first.at + 1;
            __syncthreads(); /* y and codes are up to date */
        }
        if (!has_changed)
            break;
    }
    for (int64_t c = t; c < cols; c += THREADS)
        kept[c] = y[c];
}

mq_status descend(mq_dev *dev, uint8_t *codes, float *loss, const float *w, const float *scale, const float *g,
                  int n_passes, int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t chunk = rows < ROWS_AT_ONCE ? rows : (int64_t)ROWS_AT_ONCE, diag_bytes = cols * (int64_t)sizeof(float);
    moment both;
    void *room, *sums, *small;
    if (rows <= 0)
        return MQ_OK;
    MQ_TRY(open_moment(dev, &both, g, cols, false, err));
    MQ_TRY(workspace(dev, WS_ROWS, chunk * cols * (int64_t)sizeof *w, &room, err));
    MQ_TRY(workspace(dev, WS_SUMS, chunk * cols * (int64_t)sizeof *w, &sums, err));
    MQ_TRY(workspace(dev, WS_SMALL, chunk * (int64_t)sizeof(double) + diag_bytes, &small, err));
    float *e = (float *)room, *y = (float *)sums;
    double *dots = (double *)small;
    float *diagonal = (float *)(dots + chunk);
    MQ_TRY(diag(dev, diagonal, g, cols, err));
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        int64_t n = rows - r0 < chunk ? rows - r0 : chunk;
        const float *w0 = w + r0 * cols, *scale0 = scale + r0 * (cols / group);
        descend_job job = {codes + r0 * cols, y, scale0, diagonal, both, cols, group, n_passes};
        MQ_TRY(residual(dev, e, w0, job.codes, scale0, n, cols, group, err));
        MQ_TRY(times_moment(dev, "descend", y, e, &both, n, err));
        MQ_TRY(launch(dev, err, "descend", descend_kernel, (unsigned)n, THREADS, (size_t)diag_bytes, job));
        if (!loss)
            continue;
        MQ_TRY(residual(dev, e, w0, job.codes, scale0, n, cols, group, err));
        MQ_TRY(row_dots(dev, dots, e, y, n, cols, err));
        MQ_TRY(narrow(dev, loss + r0, dots, n, err));
    }
    return MQ_OK;
}

int64_t calibration_bytes(const mq_dev *dev, int64_t rows, int64_t cols, int group, int64_t n)
{
    const int64_t CUBLAS_BYTES = 64 << 20; /* its own workspace, 32 MiB on Hopper, and its code */
    int64_t most = rows > cols ? rows : cols, groups = (most + group - 1) / group;
    int64_t at_once = most < ROWS_AT_ONCE ? most : (int64_t)ROWS_AT_ONCE;
    at_once = at_once < n ? n : at_once;
    int64_t moments = 2 * 4 * most * most, small = refit_bytes(most, groups) + 16 * most + 8 * (int64_t)ROWS_AT_ONCE;
    int64_t half = dev->precision == MQ_PRECISION_BF16 ? 2 * 2 * at_once * most : 0;
    return linear_bytes(rows, cols) + moments + 2 * 4 * at_once * most + half + small + CUBLAS_BYTES;
}

} // namespace mq_cuda
