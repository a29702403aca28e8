/* The products of a decode step with weights as stored: y = x w^T for eight rows of x and up to four matrices.
 *
 * A block has 16 rows of one matrix, the A operand; the rows of x are the columns of B, so what one of them gets does not
 * depend on the others.  Columns are cut into chunks of 128 (F32: 64), which for FP8 are the columns of one scale
 * block, counted from where column 0 stands in its block; chunk k belongs to warp k mod 8.  A warp adds its chunks in
 * ascending order (but an incomplete first chunk after all others), the warps' sums are added in the order of the warps.
 *
 * A step is one 16-byte load a lane and row: lane l, g = l / 4, t = l % 4 has rows g and g + 8, and of the step's columns
 * the t-th quarter, E elements in a row.  Product j of the step takes elements 4 j .. 4 j + 3 of every lane for its 16
 * columns, in x as in w: which columns a product calls 0 to 15 does not matter.
 *
 *   FP8 E = 16, 64 columns a step     BF16, F16 E = 8, 32 columns     F32 E = 4, 16 columns
 *
 * BF16 goes in as it is, FP8 codes are BF16 values; a chunk's sum is multiplied with the block's scale in F32.  F16 and
 * F32 are split in a high and a low BF16 part: exact for F16, to 2^-17 for F32.
 *
 * DEPTH steps of weights and activations are under way in registers; the first weights are asked for before the previous
 * kernel has finished.  Incomplete chunks, and matrices that are not aligned to 16 bytes, come element by element. */
#include "kernels/cuda/decode/linear_tile.cuh"

namespace mq_cuda {
namespace decode {

using namespace linear_tile;

enum { DEPTH = 4 };

/* One matrix of a launch. */
struct linear_part {
    const uint8_t *data;
    const float *scale; /* [.., n_chunks], FP8 */
    float *y;
    int64_t stride;
    uint32_t rows, seg_rows, seg_scale_rows, row_phase;
    int col_phase;                          /* of the first column in chunk 0 */
    int n_chunks, wide_begin, wide_end;     /* wide_begin .. wide_end - 1: complete, and loads of 16 bytes are aligned */
    unsigned first_block;
};
struct linear_job {
    linear_part part[MQ_DECODE_MAX_PARTS];
    const uint16_t *x; /* [ROWS, cols] */
    int n_parts, cols;
};

/* What a lane holds of one step.  DEPTH is a multiple of STEPS. */
template <int SCHEME> struct step_data {
    uint32_t w[2][4]; /* rows g, g + 8 */
    uint32_t x[layout<SCHEME>::X_WORDS];
};

/* The lane's place in its matrix. */
struct place {
    const uint8_t *row[2]; /* rows g and g + 8, the last row for those beyond it */
    const float *scale;    /* row g's */
    int scale_off;         /* from there to row g + 8's, elements */
    const uint16_t *x;     /* row g */
    int t, cols;
};

template <int SCHEME> static __device__ __forceinline__ place place_of(const linear_job &job, const linear_part &part)
{
    int lane = (int)(threadIdx.x % WARP);
    place p = {};
    p.t = lane % 4;
    p.cols = job.cols;
    p.x = job.x + (int64_t)(lane / 4) * job.cols;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t r = (blockIdx.x - part.first_block) * TILE_ROWS + (uint32_t)(lane / 4 + 8 * h);
        r = r < part.rows ? r : part.rows - 1;
        p.row[h] = part.data + (int64_t)r * job.cols * layout<SCHEME>::BYTES;
        if (SCHEME == MQ_SCHEME_FP8_BLOCK) {
            uint32_t segment = r / part.seg_rows, within = part.row_phase + r % part.seg_rows;
            int64_t off = ((int64_t)segment * part.seg_scale_rows + within / MQ_FP8_BLOCK) * part.n_chunks;
            if (h == 0)
                p.scale = part.scale + off;
            else
                p.scale_off = (int)(part.scale + off - p.scale);
        }
    }
    return p;
}

/* The warp's complete chunks.  Every load of x follows wait_for_previous(). */
template <int SCHEME>
static __device__ __forceinline__ void add_wide_chunks(float total[4], sums &s, const place &at, const linear_part &part)
{
    typedef layout<SCHEME> L;
    const bool scaled = SCHEME == MQ_SCHEME_FP8_BLOCK;
    const int at_once = DEPTH / L::STEPS; /* chunks */
    int warp = (int)(threadIdx.x / WARP), first = warp < part.wide_begin ? warp + WARPS : warp;
    int n = first < part.wide_end ? (part.wide_end - first + WARPS - 1) / WARPS * L::STEPS : 0; /* steps */
    int col = first * L::CHUNK - part.col_phase + at.t * L::E;
    /* Of the next DEPTH steps to ask for. */
    const uint8_t *w0 = at.row[0] + (int64_t)col * L::BYTES, *w1 = at.row[1] + (int64_t)col * L::BYTES;
    const float *scales = scaled ? at.scale + first : NULL; /* row g's; row g + 8's are at.scale_off further */
    const uint16_t *x = at.x + col;
    step_data<SCHEME> ring[DEPTH];
    float scale[at_once][2];

    auto load_weights = [&](int d) {
        int off = (d / L::STEPS * WARPS * L::CHUNK + d % L::STEPS * L::STEP) * L::BYTES;
        set_row(ring[d].w[0], load_weights16(w0 + off));
        set_row(ring[d].w[1], load_weights16(w1 + off));
    };
    auto load_scales = [&](int chunk) {
        scale[chunk][0] = __uint_as_float(load_weights4(scales + chunk * WARPS));
        scale[chunk][1] = __uint_as_float(load_weights4(scales + at.scale_off + chunk * WARPS));
    };
    auto load_activations = [&](int d) {
        load_x<SCHEME>(ring[d].x, x + d / L::STEPS * WARPS * L::CHUNK + d % L::STEPS * L::STEP);
    };
    auto advance = [&] {
        w0 += at_once * WARPS * L::CHUNK * L::BYTES;
        w1 += at_once * WARPS * L::CHUNK * L::BYTES;
        x += at_once * WARPS * L::CHUNK;
        if (scaled)
            scales += at_once * WARPS;
    };

#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < n) {
            load_weights(d);
            if (scaled && d % L::STEPS == 0)
                load_scales(d / L::STEPS);
        }
    wait_for_previous();
    let_next_start();
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < n)
            load_activations(d);
    advance();
    /* DEPTH steps, left in all; are_more: there are as many behind them. */
    auto add_steps = [&](int left, auto are_more) {
        const bool always = decltype(are_more)::value;
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (!always && d >= left) /* between chunks only */
                break;
            bool more = always || d + DEPTH < left;
            multiply<SCHEME>(s, ring[d].w, ring[d].x);
            if (more) {
                load_weights(d);
                load_activations(d);
            }
            if (scaled && d % L::STEPS == L::STEPS - 1) {
                apply_scale(total, s, scale[d / L::STEPS]);
                if (more)
                    load_scales(d / L::STEPS);
            }
        }
        advance();
    };
#pragma unroll 1
    for (; n >= 2 * DEPTH; n -= DEPTH)
        add_steps(n, std::true_type());
#pragma unroll 1
    for (; n > 0; n -= DEPTH)
        add_steps(n, std::false_type());
}

/* One step of any chunk, element by element; what lies outside the matrix is 0 in w and x. */
template <int SCHEME>
static __device__ __forceinline__ void load_elements(step_data<SCHEME> &d, const place &at, int col)
{
    typedef layout<SCHEME> L;
    step_data<SCHEME> zero = {};
    d = zero;
#pragma unroll
    for (int e = 0; e < L::E; e++) {
        int c = col + e;
        if (c < 0 || c >= at.cols)
            continue;
        d.x[e / 2] |= (uint32_t)at.x[c] << 16 * (e % 2);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (SCHEME == MQ_SCHEME_F32)
                d.w[h][e % 4] = ((const uint32_t *)at.row[h])[c];
            else if (SCHEME == MQ_SCHEME_FP8_BLOCK)
                d.w[h][e / 4] |= (uint32_t)at.row[h][c] << 8 * (e % 4);
            else
                d.w[h][e / 2 % 4] |= (uint32_t)((const uint16_t *)at.row[h])[c] << 16 * (e % 2);
        }
    }
}

/* The warp's other chunks; an incomplete chunk 0 stands behind the last. */
template <int SCHEME>
static __device__ __forceinline__ void add_other_chunks(float total[4], sums &s, const place &at, const linear_part &part)
{
    typedef layout<SCHEME> L;
    int warp = (int)(threadIdx.x / WARP);
    for (int e = part.wide_end; e < part.n_chunks + part.wide_begin; e++) {
        int k = e < part.n_chunks ? e : 0;
        if (k % WARPS != warp)
            continue;
#pragma unroll 1
        for (int i = 0; i < L::STEPS; i++) {
            step_data<SCHEME> d;
            load_elements<SCHEME>(d, at, k * L::CHUNK - part.col_phase + i * L::STEP + at.t * L::E);
            multiply<SCHEME>(s, d.w, d.x);
        }
        if (SCHEME == MQ_SCHEME_FP8_BLOCK) {
            float scale[2] = {at.scale[k], at.scale[at.scale_off + k]};
            apply_scale(total, s, scale);
        }
    }
}

template <int SCHEME> static __global__ void __launch_bounds__(THREADS, 2) step_linear_kernel(linear_job job)
{
    MQ_SHARED(part_sums, float[WARPS][ROWS * SUM_STRIDE]); /* [row of x][row of w]; the stride keeps the banks apart */
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP), which = 0;
    while (which + 1 < job.n_parts && blockIdx.x >= job.part[which + 1].first_block)
        which++;
    const linear_part &part = job.part[which];
    place at = place_of<SCHEME>(job, part);

    float total[4] = {};
    sums s = {};
    add_wide_chunks<SCHEME>(total, s, at, part);
    add_other_chunks<SCHEME>(total, s, at, part);
    if (SCHEME != MQ_SCHEME_FP8_BLOCK) {
        const float one[2] = {1.0f, 1.0f};
        apply_scale(total, s, one);
    }

#pragma unroll
    for (int i = 0; i < 4; i++)
        part_sums[warp][(2 * at.t + i % 2) * SUM_STRIDE + lane / 4 + 8 * (i / 2)] = total[i];
    __syncthreads();
    if (threadIdx.x >= ROWS * TILE_ROWS)
        return;
    int row = (int)threadIdx.x / TILE_ROWS, within = (int)threadIdx.x % TILE_ROWS;
    uint32_t r = (blockIdx.x - part.first_block) * TILE_ROWS + (uint32_t)within;
    float sum = add_warps(part_sums, row, within);
    if (r < part.rows)
        part.y[row * part.stride + r] = sum;
}

mq_status check_linear(const mq_matrix *w, mq_err *err)
{
    if (w->scheme != MQ_SCHEME_BF16 && w->scheme != MQ_SCHEME_F16 && w->scheme != MQ_SCHEME_F32 &&
        w->scheme != MQ_SCHEME_FP8_BLOCK)
        return mq_fail(err, MQ_E_UNSUPPORTED, "weights are %s, the decode step computes bf16, f16, f32 and fp8_block",
                       mq_scheme_name(w->scheme));
    if (w->cols % 16 != 0)
        return mq_fail(err, MQ_E_UNSUPPORTED, "%lld columns, the decode step computes multiples of 16", (long long)w->cols);
    if (w->rows > INT32_MAX || w->cols > INT32_MAX - MQ_FP8_BLOCK)
        return mq_fail(err, MQ_E_UNSUPPORTED, "shape [%lld, %lld], the decode step computes dimensions below 2^31",
                       (long long)w->rows, (long long)w->cols);
    return MQ_OK;
}

static linear_part part_of(const mq_decode_linear *l, const uint16_t *x, int chunk, unsigned first_block)
{
    const mq_matrix *w = &l->w;
    linear_part p = {};
    p.data = (const uint8_t *)w->data;
    p.scale = (const float *)w->scale;
    p.y = l->y;
    p.stride = l->stride;
    p.rows = (uint32_t)w->rows;
    if (w->scheme == MQ_SCHEME_FP8_BLOCK) {
        p.seg_rows = (uint32_t)w->seg_rows;
        p.seg_scale_rows = (uint32_t)mq_fp8_seg_scale_rows(w);
        p.row_phase = (uint32_t)w->row_phase;
        p.col_phase = w->col_phase;
    }
    int end = p.col_phase + (int)w->cols;
    bool aligned = ((uintptr_t)w->data | (uintptr_t)x) % 16 == 0 && p.col_phase % 16 == 0;
    p.n_chunks = (end + chunk - 1) / chunk;
    p.wide_begin = p.col_phase > 0;
    p.wide_end = aligned && end / chunk > p.wide_begin ? end / chunk : p.wide_begin;
    p.first_block = first_block;
    return p;
}

/* Every part of the scheme, in one launch. */
template <int SCHEME>
static mq_status launch_scheme(mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_err *err)
{
    linear_job job = {};
    unsigned n_tiles = 0;
    job.x = x;
    for (int i = 0; i < n_parts; i++)
        if (parts[i].w.scheme == SCHEME && parts[i].w.rows > 0) {
            job.part[job.n_parts++] = part_of(&parts[i], x, layout<SCHEME>::CHUNK, n_tiles);
            n_tiles += (unsigned)((parts[i].w.rows + TILE_ROWS - 1) / TILE_ROWS);
            job.cols = (int)parts[i].w.cols;
        }
    return launch_dependent(dev, err, "step linear", step_linear_kernel<SCHEME>, n_tiles, THREADS, 0, job);
}

/* The same, by bulk copies where they are of use. */
template <int SCHEME>
static mq_status launch_best(mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_err *err)
{
    bool done = false;
    MQ_TRY(linear_bulk(dev, parts, n_parts, x, (mq_scheme)SCHEME, &done, err));
    return done ? MQ_OK : launch_scheme<SCHEME>(dev, parts, n_parts, x, err);
}

mq_status linear(mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_err *err)
{
    MQ_TRY(launch_scheme<MQ_SCHEME_FP8_BLOCK>(dev, parts, n_parts, x, err));
    MQ_TRY(launch_best<MQ_SCHEME_BF16>(dev, parts, n_parts, x, err));
    MQ_TRY(launch_best<MQ_SCHEME_F16>(dev, parts, n_parts, x, err));
    return launch_scheme<MQ_SCHEME_F32>(dev, parts, n_parts, x, err);
}

} // namespace decode
} // namespace mq_cuda
