/* Scales by least squares, codes fixed, under the true second moment.
 *
 * A row's equations are M[i][j] = u_i g u_j^T over its groups.  A block takes one group i of 128 rows: its codes stay in registers as the
 * A operand of the tensor core (they are exact in BF16), tiles of g pass through shared memory as high and low parts
 * (moment.cu), and what comes out for group j is summed against the codes of j.  A lane's columns of a tile are next to each other, so
 * its codes are one load; tiles are laid down in the order that this asks for.  Then every row is one block's work. */
#include "kernels/cuda/blas.cuh"
#include "kernels/cuda/moments.cuh"

namespace mq_cuda {

enum {
    THREADS = 256,
    WARPS = 4,        /* of the equations' blocks */
    WARP_TILES = 2,   /* of 16 rows */
    TILE_ROWS = WARPS * WARP_TILES * 16,
    MOST_SHARED = 200 << 10 /* of a row's factor */
};

/* Place of (i, j), j <= i, in a lower triangle stored row by row. */
static __host__ __device__ __forceinline__ int64_t lower_at(int64_t i, int64_t j)
{
    return i * (i + 1) / 2 + j;
}

/* ---- equations ---- */

struct equations_job {
    float *m; /* [rows, lower triangle of n] */
    const uint8_t *codes;
    const uint16_t *high, *low;
    int64_t rows, cols;
    int n;
};

/* A tile: UNIT rows of g (columns of group j) by UNIT columns (of group i). */
template <int GROUP> struct tile_shape {
    static const int UNIT = GROUP < 64 ? GROUP : 64, UNITS = GROUP / UNIT; /* of a group */
    static const int OWN = UNIT / 4;                                       /* columns of a lane */
    static const int STEPS = UNIT / 16, BLOCKS = UNIT / 8;                 /* products along each side */
    static const int STRIDE = UNIT == 64 ? 72 : UNIT;                      /* 16-byte reads of 8 lanes meet all banks */
    static const int PART = UNIT * STRIDE, PIECES = UNIT / 8;
};

/* One tile, both parts, to shared memory; row r stands where the lane that has its codes finds it in its accumulators. */
template <int GROUP>
static __device__ __forceinline__ void load_tile(uint16_t *to, const equations_job &job, int64_t row0, int64_t col0)
{
    typedef tile_shape<GROUP> shape;
    const int all = shape::UNIT * shape::PIECES;
    for (int at = (int)threadIdx.x; at < 2 * all; at += WARPS * WARP) {
        int r = at % all / shape::PIECES, piece = at % shape::PIECES, own = r % shape::OWN;
        int place = own / 2 * 8 + r / shape::OWN * 2 + own % 2;
        const uint16_t *from = (at < all ? job.high : job.low) + (row0 + r) * job.cols + col0 + piece * 8;
        copy_async16(to + at / all * shape::PART + place * shape::STRIDE + piece * 8, from);
    }
    copy_async_commit();
}

static __device__ __forceinline__ float number_of(uint32_t word, int byte)
{
    return (float)((int)(word >> 8 * byte & 15u) - 8);
}

/* Two codes as BF16, exact. */
static __device__ __forceinline__ uint32_t pair_of(uint32_t word, int byte)
{
    return (mq_f32_bits(number_of(word, byte + 1)) & 0xffff0000u) | mq_f32_bits(number_of(word, byte)) >> 16;
}

/* The lane's OWN codes of a row, from column col on. */
template <int OWN>
static __device__ __forceinline__ void load_codes(uint32_t out[OWN / 4], const equations_job &job, int64_t row, int64_t col)
{
    const uint8_t *from = job.codes + (row < job.rows ? row : job.rows - 1) * job.cols + col;
    if (OWN == 16) {
        uint4 v = *(const uint4 *)from;
        out[0] = v.x, out[1] = v.y, out[OWN / 4 - 2] = v.z, out[OWN / 4 - 1] = v.w;
    } else {
        uint2 v = *(const uint2 *)from;
        out[0] = v.x, out[OWN / 4 - 1] = v.y;
    }
}

/* acc += codes of group i times one part of a tile. */
template <int GROUP>
static __device__ __forceinline__ void multiply_part(float acc[WARP_TILES][tile_shape<GROUP>::BLOCKS][4],
                                                     const uint32_t a[WARP_TILES][tile_shape<GROUP>::STEPS][4],
                                                     const uint16_t *part, int lane)
{
    typedef tile_shape<GROUP> shape;
    const uint16_t *mine = part + lane / 4 * shape::STRIDE + lane % 4 * shape::OWN;
#pragma unroll
    for (int q = 0; q < shape::BLOCKS; q++)
#pragma unroll
        for (int s = 0; s < shape::STEPS; s += 2) {
            uint4 v = *(const uint4 *)(mine + q * 8 * shape::STRIDE + s * 4);
            uint32_t first[2] = {v.x, v.y}, second[2] = {v.z, v.w};
#pragma unroll
            for (int m = 0; m < WARP_TILES; m++) {
                mma_bf16(acc[m][q], a[m][s], first);
                mma_bf16(acc[m][q], a[m][s + 1], second);
            }
        }
}

template <int GROUP> static __global__ void __launch_bounds__(WARPS *WARP) equations_kernel(equations_job job)
{
    typedef tile_shape<GROUP> shape;
    MQ_SHARED(tiles, uint4[2][2 * tile_shape<GROUP>::PART / 8]);
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int64_t i = job.n - 1 - (int)blockIdx.x, row0 = (int64_t)blockIdx.y * TILE_ROWS + threadIdx.x / WARP * WARP_TILES * 16;
    uint32_t a[shape::UNITS][WARP_TILES][shape::STEPS][4], code[shape::OWN / 4];
#pragma unroll
    for (int u = 0; u < shape::UNITS; u++)
#pragma unroll
        for (int h = 0; h < 2 * WARP_TILES; h++) {
            load_codes<shape::OWN>(code, job, row0 + 8 * h + g, i * GROUP + u * shape::UNIT + t * shape::OWN);
#pragma unroll
            for (int s = 0; s < shape::STEPS; s++) {
                a[u][h / 2][s][h % 2] = pair_of(code[s], 0);
                a[u][h / 2][s][h % 2 + 2] = pair_of(code[s], 2);
            }
        }
    const int per_group = shape::UNITS * shape::UNITS, n_tiles = (int)(i + 1) * per_group;
    load_tile<GROUP>((uint16_t *)tiles[0], job, 0, i * GROUP);
    float sum[2 * WARP_TILES] = {};
    for (int64_t j = 0; j <= i; j++) {
#pragma unroll
        for (int u = 0; u < shape::UNITS; u++) { /* columns of j */
            float acc[WARP_TILES][shape::BLOCKS][4] = {};
#pragma unroll
            for (int v = 0; v < shape::UNITS; v++) { /* columns of i */
                int at = (int)j * per_group + u * shape::UNITS + v, next = at + 1;
                copy_async_wait<0>();
                __syncthreads(); /* the tile is there for all, and all are done with the one before */
                if (next < n_tiles)
                    load_tile<GROUP>((uint16_t *)tiles[next % 2], job,
                                     next / per_group * GROUP + next % per_group / shape::UNITS * shape::UNIT,
                                     i * GROUP + next % shape::UNITS * shape::UNIT);
                const uint16_t *tile = (const uint16_t *)tiles[at % 2];
                multiply_part<GROUP>(acc, a[v], tile + shape::PART, lane);
                multiply_part<GROUP>(acc, a[v], tile, lane);
            }
#pragma unroll
            for (int h = 0; h < 2 * WARP_TILES; h++) {
                load_codes<shape::OWN>(code, job, row0 + 8 * h + g, j * GROUP + u * shape::UNIT + t * shape::OWN);
#pragma unroll
                for (int c = 0; c < shape::OWN; c++)
                    sum[h] = fmaf(acc[h / 2][c / 2][h % 2 * 2 + c % 2], number_of(code[c / 4], c % 4), sum[h]);
            }
        }
#pragma unroll
        for (int h = 0; h < 2 * WARP_TILES; h++) {
            float all = sum[h] + __shfl_xor_sync(ALL_LANES, sum[h], 1);
            all += __shfl_xor_sync(ALL_LANES, all, 2);
            int64_t row = row0 + 8 * h + g;
            if (t == 0 && row < job.rows)
                job.m[row * lower_at(job.n, 0) + lower_at(i, j)] = all;
            sum[h] = 0.0f;
        }
    }
}

static mq_status build_equations(mq_dev *dev, const equations_job *job, int group, mq_err *err)
{
    dim3 grid((unsigned)job->n, n_blocks(job->rows, TILE_ROWS));
    auto kernel = group == 32 ? equations_kernel<32> : group == 64 ? equations_kernel<64> : equations_kernel<128>;
    return launch(dev, err, "refit_scales", kernel, grid, WARPS * WARP, 0, *job);
}

/* r [row, k] = y times the codes of group k, before [row] = y times e.  A row a block. */
static __global__ void sides_kernel(double *r, double *before, const float *y, const float *e, const uint8_t *codes,
                                    int64_t cols, int group)
{
    int lane = (int)threadIdx.x % WARP, n = (int)(cols / group);
    int64_t from = (int64_t)blockIdx.x * cols;
    double loss = 0.0;
    for (int k = (int)threadIdx.x / WARP; k < n; k += THREADS / WARP) {
        double sum = 0.0;
        for (int64_t at = from + k * group + lane; at < from + (k + 1) * group; at += WARP) {
            sum = fma((double)y[at], (double)((int)codes[at] - 8), sum);
            loss = fma((double)y[at], (double)e[at], loss);
        }
        sum = warp_sum(sum);
        if (lane == 0)
            r[(int64_t)blockIdx.x * n + k] = sum;
    }
    loss = block_sum(loss);
    if (threadIdx.x == 0)
        before[blockIdx.x] = loss;
}

/* ---- their solution ---- */

/* A chunk of rows; arrays of the workspace. */
struct refit_job {
    float *scale, *loss; /* loss may be NULL */
    const float *m;      /* [rows, lower triangle of n] equations */
    double *b;           /* their factors where shared memory is too small, else NULL */
    const double *r, *before; /* [rows, n] right sides, [rows] losses */
    int n;               /* groups of a row */
};

/* b = R transposed with m enlarged = R R^T, R upper: from the last group up.  False where m is not positive definite.  A warp a row of
 * the triangle. */
static __device__ bool factor_equations(const float *m, double *b, int n)
{
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    for (int i = warp; i < n; i += THREADS / WARP) {
        bool is_dead = !(m[lower_at(i, i)] > 0.0f);
        for (int j = lane; j <= i; j += WARP) {
            double v = (double)m[lower_at(i, j)];
            bool other_is_dead = !(m[lower_at(j, j)] > 0.0f);
            b[lower_at(i, j)] = j == i ? is_dead ? 1.0 : v * (1.0 + 1e-4) : is_dead || other_is_dead ? 0.0 : v;
        }
    }
    __syncthreads();
    for (int k = n - 1; k >= 0; k--) {
        double *row = b + lower_at(k, 0), pivot = row[k];
        if (!(pivot > 0.0) || !isfinite(pivot))
            return false; /* the same in all threads */
        double inv = 1.0 / sqrt(pivot);
        __syncthreads();
        for (int j = (int)threadIdx.x; j <= k; j += THREADS)
            row[j] *= inv;
        __syncthreads();
        for (int i = warp; i < k; i += THREADS / WARP)
            for (int j = lane; j <= i; j += WARP)
                b[lower_at(i, j)] -= row[i] * row[j];
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

/* y = what each scale moves by: R z = r, then R^T delta = z, each delta replaced by what is taken.  One warp. */
static __device__ void solve_equations(double *y, double *z, const float *m, const double *b, const double *r,
                                       const float *scale, int n, int lane)
{
    for (int k = lane; k < n; k += WARP)
        z[k] = m[lower_at(k, k)] > 0.0f ? r[k] : 0.0;
    __syncwarp();
    for (int k = n - 1; k >= 0; k--) {
        double zk = z[k] / b[lower_at(k, k)];
        __syncwarp();
        if (lane == 0)
            z[k] = zk;
        for (int j = lane; j < k; j += WARP)
            z[j] -= b[lower_at(k, j)] * zk;
        __syncwarp();
    }
    for (int k = 0; k < n; k++) {
        double sum = 0.0, s = (double)scale[k];
        for (int j = lane; j < k; j += WARP)
            sum += b[lower_at(k, j)] * y[j];
        sum = warp_sum(sum);
        if (lane == 0)
            y[k] = m[lower_at(k, k)] > 0.0f ? (double)refit_round(s + (z[k] - sum) / b[lower_at(k, k)], scale[k]) - s : 0.0;
        __syncwarp();
    }
}

/* A row a block; y and z, n doubles each, in shared memory, and behind them the factor where it fits. */
static __global__ void refit_kernel(refit_job job)
{
    MQ_SHARED_DYNAMIC(y, double);
    int t = (int)threadIdx.x, n = job.n;
    double *z = y + n, *b = job.b ? job.b + (int64_t)blockIdx.x * lower_at(n, 0) : z + n;
    const float *m = job.m + (int64_t)blockIdx.x * lower_at(n, 0);
    const double *r = job.r + (int64_t)blockIdx.x * n;
    float *scale = job.scale + (int64_t)blockIdx.x * n;
    double gain = 0.0;
    bool is_sound = factor_equations(m, b, n);
    __syncthreads();
    if (is_sound && t < WARP)
        solve_equations(y, z, m, b, r, scale, n, t);
    __syncthreads();
    for (int i = t; is_sound && i < n; i += THREADS) {
        double s = 0.0;
        for (int j = 0; j < i; j++)
            s += 2.0 * (double)m[lower_at(i, j)] * y[j];
        gain += y[i] * (2.0 * r[i] - (double)m[lower_at(i, i)] * y[i] - s);
    }
    gain = block_sum(gain);
    gain = gain > 0.0 ? gain : 0.0;
    for (int k = t; gain > 0.0 && k < n; k += THREADS)
        scale[k] = (float)((double)scale[k] + y[k]);
    if (t == 0 && job.loss)
        job.loss[blockIdx.x] = (float)(job.before[blockIdx.x] - gain);
}

static int64_t factor_bytes(int64_t n)
{
    return lower_at(n, 0) * (int64_t)sizeof(double);
}
static bool fits_shared(int64_t n)
{
    return factor_bytes(n) + 2 * n * (int64_t)sizeof(double) <= MOST_SHARED;
}

int64_t refit_bytes(int64_t rows, int64_t n)
{
    int64_t at_once = rows < REFIT_ROWS ? rows : (int64_t)REFIT_ROWS;
    int64_t doubles = n + 1 + (fits_shared(n) ? 0 : lower_at(n, 0));
    return at_once * (lower_at(n, 0) * (int64_t)sizeof(float) + doubles * (int64_t)sizeof(double));
}

mq_status refit_scales(mq_dev *dev, float *scale, float *loss, const uint8_t *codes, const float *w, const float *g,
                       int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t chunk = rows < REFIT_ROWS ? rows : (int64_t)REFIT_ROWS, n = cols / group;
    moment both;
    void *room, *sums, *small;
    if (rows <= 0)
        return MQ_OK;
    MQ_TRY(open_moment(dev, &both, g, cols, true, err));
    MQ_TRY(workspace(dev, WS_ROWS, chunk * cols * (int64_t)sizeof *w, &room, err));
    MQ_TRY(workspace(dev, WS_SUMS, chunk * cols * (int64_t)sizeof *w, &sums, err));
    MQ_TRY(workspace(dev, WS_SMALL, refit_bytes(rows, n), &small, err));
    float *e = (float *)room, *y = (float *)sums;
    double *r = (double *)small, *before = r + chunk * n, *b = before + chunk;
    float *m = (float *)(fits_shared(n) ? b : b + chunk * lower_at(n, 0));
    size_t shared = (size_t)(2 * n * (int64_t)sizeof(double) + (fits_shared(n) ? factor_bytes(n) : 0));
    for (int64_t r0 = 0; r0 < rows; r0 += chunk) {
        int64_t at_once = rows - r0 < chunk ? rows - r0 : chunk;
        const uint8_t *codes0 = codes + r0 * cols;
        float *scale0 = scale + r0 * n;
        equations_job equations = {m, codes0, both.high, both.low, at_once, cols, (int)n};
        refit_job job = {scale0, loss ? loss + r0 : NULL, m, fits_shared(n) ? NULL : b, r, before, (int)n};
        MQ_TRY(residual(dev, e, w + r0 * cols, codes0, scale0, at_once, cols, group, err));
        MQ_TRY(times_moment(dev, "refit_scales", y, e, &both, at_once, err));
        MQ_TRY(launch(dev, err, "refit_scales", sides_kernel, (unsigned)at_once, THREADS, 0, r, before, (const float *)y,
                      (const float *)e, codes0, cols, group));
        MQ_TRY(build_equations(dev, &equations, group, err));
        MQ_TRY(launch(dev, err, "refit_scales", refit_kernel, (unsigned)at_once, THREADS, shared, job));
    }
    return MQ_OK;
}

} // namespace mq_cuda
