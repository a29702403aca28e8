/* Many rows times packed experts: 4-bit codes become the A operand of the tensor core on their way from storage, tokens
 * are columns of B, scales are applied to the F32 sums of each group.
 *
 * A block of four warps takes 128 weight rows (8 tiles of 16, two a warp) and up to 64 tokens; columns come 64 at a time,
 * one unit of every tile, through a ring of RING stages filled by asynchronous copies.  The permutation of columns inside a
 * unit puts the columns of one lane for two products next to each other: a lane reads 16 bytes of a token for them.
 * In shared memory the eight 16-byte pieces of a token's 128 bytes stand in order, with halves swapped for odd tokens: the
 * lanes of a quarter warp then read all banks once.
 *
 * Every output is one chain over the columns in ascending order, whatever the grid and the other tokens. */
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/packed.cuh"
#include "src/units.h"

namespace mq_cuda {

enum {
    WARPS = 4,
    THREADS = WARPS * WARP,
    WARP_TILES = 2,
    BLOCK_TILES = WARPS * WARP_TILES,
    RING = 4,
    TOKEN_BYTES = MQ_UNIT_COLS * 2, /* of one stage */
    PIECES = TOKEN_BYTES / 16,
    COLUMNS = 8, /* tokens of one product */
    TOKEN_GROUPS = PACKED_TOKENS / COLUMNS,
    LOAD_ROWS = THREADS / PIECES /* tokens that one copy of every thread covers */
};

template <int GROUP> struct unit_layout {
    static const int N_GROUPS = GROUP == 32 || GROUP == MQ_GROUP_MXFP4 ? 2 : 1; /* in a unit */
    static const int SCALE_BYTES = GROUP == 32 ? 64 : 32;
    static const int BYTES = MQ_UNIT_CODE_BYTES + SCALE_BYTES; /* in a stage */
    static const int STAGE_BYTES = PACKED_TOKENS * TOKEN_BYTES + BLOCK_TILES * BYTES;
};

/* Where unit u of a tile has its codes and its scales, in bytes. */
template <int GROUP> static __device__ __forceinline__ int64_t codes_at(int64_t u)
{
    return GROUP == 128 ? u / 2 * mq_block_bytes(GROUP) + u % 2 * MQ_UNIT_CODE_BYTES : u * mq_block_bytes(GROUP);
}
template <int GROUP> static __device__ __forceinline__ int64_t scales_at(int64_t u)
{
    return GROUP == 128 ? u / 2 * mq_block_bytes(GROUP) + 2 * MQ_UNIT_CODE_BYTES
                        : u * mq_block_bytes(GROUP) + MQ_UNIT_CODE_BYTES;
}

/* Where a thread's copies come from, in the first of RING units: places in the next are a constant further, so that a copy is one
 * instruction. */
struct loader {
    const uint8_t *token[PACKED_TOKENS / LOAD_ROWS], *codes[WARP_TILES], *scales;
    int n_tokens; /* a multiple of COLUMNS: those that are copied */
};

/* k: a constant, counted from the loader's unit. */
template <int GROUP>
static __device__ __forceinline__ void load_stage(uint8_t *stage, const loader &from, int k)
{
    typedef unit_layout<GROUP> unit;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    int piece = (int)threadIdx.x % PIECES, token = (int)threadIdx.x / PIECES;
    uint8_t *tokens = stage + token * TOKEN_BYTES + (piece ^ token % 2 * (PIECES / 2)) * 16;
#pragma unroll
    for (int i = 0; i < PACKED_TOKENS / LOAD_ROWS; i++)
        if (token + i * LOAD_ROWS < from.n_tokens)
            copy_async16(tokens + i * LOAD_ROWS * TOKEN_BYTES, from.token[i] + k * TOKEN_BYTES);
    uint8_t *units = stage + PACKED_TOKENS * TOKEN_BYTES + warp * WARP_TILES * unit::BYTES;
#pragma unroll
    for (int m = 0; m < WARP_TILES; m++)
        copy_async16(units + m * unit::BYTES + lane * 16, from.codes[m] + codes_at<GROUP>(k));
    int m = lane / (unit::SCALE_BYTES / 16), at = lane % (unit::SCALE_BYTES / 16) * 16;
    if (m < WARP_TILES)
        copy_async16(units + m * unit::BYTES + MQ_UNIT_CODE_BYTES + at, from.scales + scales_at<GROUP>(k));
}

template <int GROUP> static __device__ __forceinline__ void advance(loader &from)
{
#pragma unroll
    for (int i = 0; i < PACKED_TOKENS / LOAD_ROWS; i++)
        from.token[i] += RING * TOKEN_BYTES;
#pragma unroll
    for (int m = 0; m < WARP_TILES; m++)
        from.codes[m] += codes_at<GROUP>(RING);
    from.scales += codes_at<GROUP>(RING);
}

/* One word of codes to the four registers of A: exact BF16 values.  INT4: 0x4300 | u is 128 + u, then less 136.  MXFP4:
 * sign, exponent and mantissa moved to their places are the value times 2^-126. */
template <int GROUP> static __device__ __forceinline__ void widen_word(uint32_t a[4], uint32_t w)
{
    if (GROUP == MQ_GROUP_MXFP4) {
        const uint32_t SIGN = 0x80008000u, REST = 0x01c001c0u, TWO_126 = 0x7e807e80u, MINUS_0 = 0x80008000u;
        a[0] = fma_bf16x2((w << 12 & SIGN) | (w << 6 & REST), TWO_126, MINUS_0);
        a[1] = fma_bf16x2((w << 8 & SIGN) | (w << 2 & REST), TWO_126, MINUS_0);
        a[2] = fma_bf16x2((w << 4 & SIGN) | (w >> 2 & REST), TWO_126, MINUS_0);
        a[3] = fma_bf16x2((w & SIGN) | (w >> 6 & REST), TWO_126, MINUS_0);
        return;
    }
    const uint32_t MASK = 0x000f000fu, BASE = 0x43004300u, ONE = 0x3f803f80u, MINUS_136 = 0xc308c308u;
#pragma unroll
    for (int p = 0; p < 4; p++)
        a[p] = fma_bf16x2(and_or(w >> 4 * p, MASK, BASE), ONE, MINUS_136);
}

/* scale [group][row g, row g + 8] of lane's g. */
template <int GROUP> static __device__ __forceinline__ void widen_scales(float scale[2][2], const uint8_t *scales, int g)
{
    const int N = unit_layout<GROUP>::N_GROUPS;
#pragma unroll
    for (int k = 0; k < N; k++)
        if (GROUP == MQ_GROUP_MXFP4) {
            uint16_t both = ((const uint16_t *)scales)[g * N + k];
            scale[k][0] = mq_e8m0_to_f32((uint8_t)both);
            scale[k][1] = mq_e8m0_to_f32((uint8_t)(both >> 8));
        } else {
            uint32_t both = ((const uint32_t *)scales)[g * N + k];
            scale[k][0] = __uint_as_float(both << 16);
            scale[k][1] = __uint_as_float(both & 0xffff0000u);
        }
}

typedef float sums[WARP_TILES][TOKEN_GROUPS][4];

/* sum += one stage's products; n_groups: groups of 8 tokens that there are. */
template <int GROUP> static __device__ __forceinline__ void multiply(sums &sum, const uint8_t *stage, int n_groups)
{
    typedef unit_layout<GROUP> unit;
    const int N = unit::N_GROUPS, PER_GROUP = 4 / N;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint8_t *units = stage + PACKED_TOKENS * TOKEN_BYTES + warp * WARP_TILES * unit::BYTES;
    uint32_t a[WARP_TILES][4][4];
    float scale[WARP_TILES][2][2];
#pragma unroll
    for (int m = 0; m < WARP_TILES; m++) {
        uint4 words = *(const uint4 *)(units + m * unit::BYTES + lane * 16);
        widen_word<GROUP>(a[m][0], words.x);
        widen_word<GROUP>(a[m][1], words.y);
        widen_word<GROUP>(a[m][2], words.z);
        widen_word<GROUP>(a[m][3], words.w);
        widen_scales<GROUP>(scale[m], units + m * unit::BYTES + MQ_UNIT_CODE_BYTES, g);
    }
    const uint8_t *token = stage + g * TOKEN_BYTES;
    int low = (t ^ g % 2 * (PIECES / 2)) * 16, high = low ^ PIECES / 2 * 16;
#pragma unroll
    for (int j = 0; j < TOKEN_GROUPS; j++) {
        if (j >= n_groups)
            break;
        uint4 left = *(const uint4 *)(token + j * COLUMNS * TOKEN_BYTES + low);
        uint4 right = *(const uint4 *)(token + j * COLUMNS * TOKEN_BYTES + high);
        const uint32_t b[4][2] = {{left.x, left.y}, {left.z, left.w}, {right.x, right.y}, {right.z, right.w}};
#pragma unroll
        for (int m = 0; m < WARP_TILES; m++)
#pragma unroll
            for (int k = 0; k < N; k++) {
                float part[4] = {};
#pragma unroll
                for (int i = k * PER_GROUP; i < (k + 1) * PER_GROUP; i++)
                    mma_bf16(part, a[m][i], b[i]);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[m][j][i] = fmaf(part[i], scale[m][k][i / 2], sum[m][j][i]);
            }
    }
}

template <bool SWIGLU>
static __device__ __forceinline__ void store(const packed_job &job, const packed_span &span, const sums &sum, int64_t tile)
{
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < TOKEN_GROUPS; j++) {
        if (j * COLUMNS >= span.n)
            break;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int token = j * COLUMNS + 2 * t + i;
            int64_t row = (int64_t)(span.first + token) * job.stride;
#pragma unroll
            for (int m = 0; m < WARP_TILES; m++) {
                if (token >= span.n || tile + m >= job.n_tiles)
                    continue;
                float top = sum[m][j][i], bottom = sum[m][j][2 + i];
                if (SWIGLU) {
                    ((uint16_t *)job.out)[row + (tile + m) * 8 + g] = mq_f32_to_bf16(top / (1.0f + expf(-top)) * bottom);
                } else {
                    ((float *)job.out)[row + (tile + m) * MQ_UNIT_ROWS + g] = top;
                    ((float *)job.out)[row + (tile + m) * MQ_UNIT_ROWS + 8 + g] = bottom;
                }
            }
        }
    }
}

template <int GROUP, bool SWIGLU>
static __global__ void __launch_bounds__(THREADS, 3) packed_kernel(packed_job job)
{
    typedef unit_layout<GROUP> unit;
    MQ_SHARED_DYNAMIC(ring, uint8_t);
    int64_t blocks = (job.n_tiles + BLOCK_TILES - 1) / BLOCK_TILES, at = blockIdx.x / blocks;
    int n_units = (int)(job.cols / MQ_UNIT_COLS);
    packed_span span = {0, (int32_t)(at * PACKED_TOKENS), 0};
    if (job.spans) {
        if (at >= *job.n_spans)
            return;
        span = job.spans[at];
    } else {
        int64_t left = job.n - span.first;
        span.n = left < PACKED_TOKENS ? (int32_t)left : (int32_t)PACKED_TOKENS;
    }

    /* what this thread copies: beyond the last token and the last tile those themselves, again */
    int n_groups = (span.n + COLUMNS - 1) / COLUMNS;
    int64_t tile = blockIdx.x % blocks * BLOCK_TILES + threadIdx.x / WARP * WARP_TILES;
    loader from;
    from.n_tokens = n_groups * COLUMNS;
#pragma unroll
    for (int k = 0; k < PACKED_TOKENS / LOAD_ROWS; k++) {
        int token = (int)threadIdx.x / PIECES + k * LOAD_ROWS;
        int64_t position = span.first + (token < span.n ? token : span.n - 1);
        int64_t row = job.rows ? job.rows[position] : position;
        from.token[k] = (const uint8_t *)(job.x + row * job.cols) + threadIdx.x % PIECES * 16;
    }
    const uint8_t *units = job.units ? job.units[span.expert] : job.matrix;
    int64_t last = job.n_tiles - 1, tile_bytes = mq_tile_bytes(job.cols, GROUP);
    int lane = (int)threadIdx.x % WARP, of_scales = lane / (unit::SCALE_BYTES / 16);
#pragma unroll
    for (int m = 0; m < WARP_TILES; m++)
        from.codes[m] = units + (job.tile0 + (tile + m < last ? tile + m : last)) * tile_bytes + lane * 16;
    from.scales = units + (job.tile0 + (tile + of_scales < last ? tile + of_scales : last)) * tile_bytes +
                  lane % (unit::SCALE_BYTES / 16) * 16;

    /* the ring: stage u % RING holds unit u; one barrier a unit says that it is there and that unit u - 1 was read */
    sums sum = {};
#pragma unroll
    for (int u = 0; u < RING - 1; u++) {
        if (u < n_units)
            load_stage<GROUP>(ring + u * unit::STAGE_BYTES, from, u);
        copy_async_commit();
    }
    for (int u = 0; u < n_units; u += RING, advance<GROUP>(from))
#pragma unroll
        for (int k = 0; k < RING; k++) {
            if (u + k >= n_units)
                break;
            copy_async_wait<RING - 2>();
            __syncthreads();
            if (u + k + RING - 1 < n_units)
                load_stage<GROUP>(ring + (k + RING - 1) % RING * unit::STAGE_BYTES, from, k + RING - 1);
            copy_async_commit();
            multiply<GROUP>(sum, ring + k * unit::STAGE_BYTES, n_groups);
        }
    store<SWIGLU>(job, span, sum, tile);
}

template <int GROUP>
static mq_status run(mq_dev *dev, const char *what, const packed_job *job, bool is_swiglu, int64_t n_spans, mq_err *err)
{
    int64_t blocks = (job->n_tiles + BLOCK_TILES - 1) / BLOCK_TILES;
    return launch(dev, err, what, is_swiglu ? packed_kernel<GROUP, true> : packed_kernel<GROUP, false>,
                  dim3((unsigned)(blocks * n_spans)), THREADS, RING * unit_layout<GROUP>::STAGE_BYTES, *job);
}

mq_status packed_rows(mq_dev *dev, const char *what, const packed_job *job, int group, bool is_swiglu, int64_t span_limit,
                      mq_err *err)
{
    switch (group) {
    case 32:
        return run<32>(dev, what, job, is_swiglu, span_limit, err);
    case 64:
        return run<64>(dev, what, job, is_swiglu, span_limit, err);
    case 128:
        return run<128>(dev, what, job, is_swiglu, span_limit, err);
    default:
        return run<MQ_GROUP_MXFP4>(dev, what, job, is_swiglu, span_limit, err);
    }
}

mq_status packed_linear(mq_dev *dev, float *y, const float *x, const mq_matrix *w, int64_t n, mq_err *err)
{
    void *room;
    MQ_TRY(workspace(dev, WS_HALF, n * w->cols * (int64_t)sizeof(uint16_t), &room, err));
    MQ_TRY(to_bf16(dev, "linear", (uint16_t *)room, x, n, w->cols, err));
    packed_job job = {};
    job.matrix = (const uint8_t *)w->data;
    job.x = (const uint16_t *)room;
    job.n = n;
    job.cols = w->cols;
    job.n_tiles = w->rows / MQ_UNIT_ROWS;
    job.out = y;
    job.stride = w->rows;
    return packed_rows(dev, "linear", &job, w->group, false, (n + PACKED_TOKENS - 1) / PACKED_TOKENS, err);
}

} // namespace mq_cuda
