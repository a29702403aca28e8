/* Calibration's operations on weights and codes: scales by the weighted search, codes one by one, their error, and the
 * way into packed units.
 *
 * The search is that of kernels/round.h in the same operations and order, so its scales are the CPU's bit for bit: a warp a
 * group, a candidate a lane; every lane walks the group's weights in ascending order. */
#include "kernels/cuda/common.cuh"
#include "src/units.h"

namespace mq_cuda {

enum { THREADS = 128, WARPS = THREADS / WARP, MOST_GROUP = 128 };

/* ---- one group, kernels/round.h ---- */

enum { STEPS = 25, EXACT = 3, CANDIDATES = EXACT + 2 * STEPS };

/* 6.5, 6.6, ... 8.9 */
static __device__ __constant__ const float step_of[STEPS] = {6.5f, 6.6f, 6.7f, 6.8f, 6.9f, 7.0f, 7.1f, 7.2f, 7.3f,
                                                             7.4f, 7.5f, 7.6f, 7.7f, 7.8f, 7.9f, 8.0f, 8.1f, 8.2f,
                                                             8.3f, 8.4f, 8.5f, 8.6f, 8.7f, 8.8f, 8.9f};

/* Half to even, clamped to -8..7; 1.5 * 2^23 + 8 leaves q + 8 in the low bits. */
static __device__ __forceinline__ float magic_code(float x)
{
    x = x < 7.0f ? x : 7.0f;
    x = x > -8.0f ? x : -8.0f;
    return x + 12582920.0f;
}
static __device__ __forceinline__ float code_of(float x)
{
    return magic_code(x) - 12582920.0f;
}

static __device__ __forceinline__ float to_bf16(float x)
{
    return mq_bf16_to_f32(mq_f32_to_bf16(x));
}

/* e of the unit 2^e, from the bits of the largest magnitude. */
static __device__ __forceinline__ int exponent_of(uint32_t max)
{
    int e = (int)(max >> 23) - 127;
    return e < -122 ? -122 : e > 126 ? 126 : e;
}
static __device__ __forceinline__ float pow2(int e)
{
    return mq_f32_from_bits((uint32_t)(e + 127) << 23);
}

/* The group in units of 2^e, its weights, and the least magnitude of a scale. */
struct group_view {
    const float *w, *omega;
    int size;
    float least;
};

struct candidate {
    float s, inv, err;
    int order;
};

/* Round s to BF16 and away from zero, and code with it. */
static __device__ candidate try_scale(const group_view &g, float s, int order)
{
    s = to_bf16(s);
    s = copysignf(fabsf(s) > g.least ? fabsf(s) : g.least, s);
    float inv = 1.0f / s, err = 0.0f;
    for (int i = 0; i < g.size; i++) {
        float e = fmaf(-s, code_of(g.w[i] * inv), g.w[i]);
        err = fmaf(g.omega[i] * e, e, err);
    }
    return {s, inv, err, order};
}

/* Least-squares scale of the codes that inv gives. */
static __device__ float refit(const group_view &g, float inv)
{
    float wq = 0.0f, qq = 0.0f;
    for (int i = 0; i < g.size; i++) {
        float q = code_of(g.w[i] * inv);
        wq = fmaf(g.omega[i] * g.w[i], q, wq);
        qq = fmaf(g.omega[i] * q, q, qq);
    }
    return wq / qq;
}

/* The least error, the first of equal ones; an error that is no number never wins. */
static __device__ __forceinline__ candidate better(candidate a, candidate b)
{
    bool b_wins = b.err < a.err || (b.err == a.err && b.order < a.order);
    return b_wins ? b : a;
}

static __device__ float search_group(const group_view &g, float absmax, float m, int lane)
{
    candidate best = {0.0f, 0.0f, INFINITY, CANDIDATES};
    for (int k = lane; k < CANDIDATES; k += WARP) {
        float s = k == 0 ? absmax / 7.0f : k == 1 ? absmax / 7.5f : m / -8.0f;
        if (k >= EXACT) {
            float inv = step_of[(k - EXACT) / 2] * (1.0f / m);
            s = refit(g, (k - EXACT) % 2 ? inv : -inv);
        }
        if (k >= EXACT && !isfinite(s)) /* an omega of zeros leaves no least-squares scale */
            continue;
        candidate c = try_scale(g, s, k);
        if (c.err < INFINITY)
            best = better(best, c);
    }
    for (int step = 16; step; step /= 2) {
        candidate other = {__shfl_xor_sync(ALL_LANES, best.s, step), 0.0f, __shfl_xor_sync(ALL_LANES, best.err, step),
                           __shfl_xor_sync(ALL_LANES, best.order, step)};
        best = better(best, other);
    }
    return best.order < CANDIDATES ? best.s : to_bf16(absmax / 7.0f); /* omega overflows: any finite scale is as good */
}

/* Bits of the largest magnitude of a group, in all lanes. */
static __device__ uint32_t largest_bits(const float *w, int group, int lane)
{
    uint32_t max = 0;
    for (int i = lane; i < group; i += WARP) {
        uint32_t bits = mq_f32_bits(w[i]) & 0x7fffffffu;
        max = bits > max ? bits : max;
    }
    for (int step = 16; step; step /= 2) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, max, step);
        max = other > max ? other : max;
    }
    return max;
}

static __global__ void search_scales_kernel(float *scale, const float *w, const float *omega, int64_t n_groups,
                                            int64_t cols, int group)
{
    MQ_SHARED(weights, float[WARPS][2][MOST_GROUP]);
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP);
    float *mine = weights[warp][0], *importance = weights[warp][1];
    for (int64_t k = (int64_t)blockIdx.x * WARPS + warp; k < n_groups; k += (int64_t)gridDim.x * WARPS) {
        const float *from = w + k * group;
        uint32_t max = largest_bits(from, group, lane);
        if (max == 0) {
            if (lane == 0)
                scale[k] = 1.0f;
            continue;
        }
        int e = exponent_of(max);
        float pre = pow2(-e), absmax = mq_f32_from_bits(max) * pre;
        bool has_positive = false;
        for (int i = lane; i < group; i += WARP) {
            mine[i] = from[i] * pre;
            importance[i] = omega ? omega[k * group % cols + i] : 1.0f;
            has_positive |= mine[i] == absmax;
        }
        float m = __any_sync(ALL_LANES, has_positive) ? absmax : -absmax;
        __syncwarp();
        group_view g = {mine, importance, group, pow2(-126 - e > -40 ? -126 - e : -40)};
        float s = search_group(g, absmax, m, lane);
        if (lane == 0)
            scale[k] = s * pow2(e);
        __syncwarp(); /* the next group overwrites the weights */
    }
}

mq_status search_scales(mq_dev *dev, float *scale, const float *w, const float *omega, int64_t rows, int64_t cols,
                        int group, mq_err *err)
{
    int64_t groups = rows * (cols / group);
    return launch(dev, err, "search_scales", search_scales_kernel, n_blocks(groups, WARPS), THREADS, 0, scale, w, omega,
                  groups, cols, group);
}

/* The search works in units of 2^e, so its codes are (w 2^-e) times the inverse of (s 2^-e). */
static __global__ void nearest_kernel(uint8_t *codes, const float *w, const float *scale, int64_t n_groups, int group)
{
    int lane = (int)(threadIdx.x % WARP);
    for (int64_t k = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP; k < n_groups; k += (int64_t)gridDim.x * WARPS) {
        const float *from = w + k * group;
        uint32_t max = largest_bits(from, group, lane);
        float pre = max ? pow2(-exponent_of(max)) : 1.0f, inv = 1.0f / (scale[k] * pre);
        for (int i = lane; i < group; i += WARP)
            codes[k * group + i] = (uint8_t)(mq_f32_bits(magic_code(from[i] * pre * inv)) & 15u);
    }
}

mq_status nearest(mq_dev *dev, uint8_t *codes, const float *w, const float *scale, int64_t rows, int64_t cols, int group,
                  mq_err *err)
{
    int64_t groups = rows * (cols / group);
    return launch(dev, err, "nearest", nearest_kernel, n_blocks(groups, WARPS), THREADS, 0, codes, w, scale, groups,
                  group);
}

/* ---- errors ---- */

static __global__ void weight_error_kernel(double *err2, double *norm2, const uint8_t *codes, const float *w,
                                           const float *scale, int64_t rows, int64_t cols, int group)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        double err = 0.0, norm = 0.0;
        for (int64_t c = threadIdx.x; c < cols; c += THREADS) {
            float v = w[r * cols + c];
            norm += (double)v * (double)v;
            if (codes) {
                float d = v - scale[r * (cols / group) + c / group] * (float)((int)codes[r * cols + c] - 8);
                err += (double)d * (double)d;
            }
        }
        norm = block_sum(norm);
        err = block_sum(err);
        if (threadIdx.x == 0) {
            norm2[r] = norm;
            if (codes)
                err2[r] = err;
        }
    }
}

mq_status weight_error(mq_dev *dev, double *err2, double *norm2, const uint8_t *codes, const float *w,
                       const float *scale, int64_t rows, int64_t cols, int group, mq_err *err)
{
    return launch(dev, err, "weight_error", weight_error_kernel, n_blocks(rows, 1), THREADS, 0, err2, norm2, codes, w,
                  scale, rows, cols, group);
}

/* ---- packed units ---- */

struct pack_job {
    uint8_t *units;
    const uint8_t *codes[2]; /* a, b */
    const float *scale[2];
    int64_t n_tiles, cols;
    int group;
    bool is_pair; /* rows 0..7 of a tile are a's, 8..15 b's */
};

static __device__ __forceinline__ uint16_t scale_bits(float s)
{
    return (uint16_t)(mq_f32_bits(s) >> 16); /* exact */
}

/* A byte of codes a thread: column c of rows g and g + 8 of a tile; and their scales at the first column of a group. */
static __global__ void pack_units_kernel(pack_job job)
{
    int64_t tile = blockIdx.y + (int64_t)gridDim.y * blockIdx.z, per_tile = job.cols * 8;
    int block_cols = mq_block_cols(job.group);
    if (tile >= job.n_tiles)
        return;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < per_tile; at += (int64_t)gridDim.x * blockDim.x) {
        int g = (int)(at / job.cols);
        int64_t col = at % job.cols, groups = job.cols / job.group;
        int64_t low = job.is_pair ? 8 * tile + g : MQ_UNIT_ROWS * tile + g, high = job.is_pair ? low : low + 8;
        int c = (int)(col % block_cols), b = job.is_pair ? 1 : 0;
        uint8_t *block = job.units + tile * mq_tile_bytes(job.cols, job.group) + col / block_cols * mq_block_bytes(job.group);
        unsigned lo = job.codes[0][low * job.cols + col], hi = job.codes[b][high * job.cols + col];
        block[c / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES + mq_unit_byte(g, c % MQ_UNIT_COLS)] = (uint8_t)(lo | hi << 4);
        if (c % job.group == 0) {
            uint16_t *scales = (uint16_t *)(block + block_cols / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES);
            scales[mq_unit_scale_index(g, c, job.group)] = scale_bits(job.scale[0][low * groups + col / job.group]);
            scales[mq_unit_scale_index(g + 8, c, job.group)] = scale_bits(job.scale[b][high * groups + col / job.group]);
        }
    }
}

mq_status pack_units(mq_dev *dev, uint8_t *units, const uint8_t *codes_a, const float *scale_a, const uint8_t *codes_b,
                     const float *scale_b, int64_t rows, int64_t cols, int group, mq_err *err)
{
    int64_t n_tiles = (codes_b ? 2 * rows : rows) / MQ_UNIT_ROWS;
    pack_job job = {units, {codes_a, codes_b}, {scale_a, scale_b}, n_tiles, cols, group, codes_b != NULL};
    unsigned y = n_blocks(n_tiles, 1, GRID_Y_LIMIT);
    dim3 grid(n_blocks(cols * 8, THREADS), y, n_tiles ? n_blocks(n_tiles, y) : 1);
    return launch(dev, err, "pack_units", pack_units_kernel, grid, THREADS, 0, job);
}

} // namespace mq_cuda
