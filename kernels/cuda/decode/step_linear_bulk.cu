/* The products of step_linear.cu with weights that come by bulk copies, for matrices of few columns in 16 bits (the output
 * of attention): the same sums in the same order, so the same bits.  Compute capability 9.0.
 *
 * The rows of all matrices are dealt evenly to one block a processor, which goes through its rows in tiles of 16.  A place
 * in the ring is a tile times one chunk a warp.  Four warps have PLACES of them copied, a row at a time; they ask for the
 * first ones before the previous kernel has finished.  Eight others compute: chunk k belongs to warp k mod 8, whose
 * columns of x stay in its registers for all tiles. */
#include "kernels/cuda/decode/linear_tile.cuh"

namespace mq_cuda {
namespace decode {

using namespace linear_tile;

enum { COPIERS = 4, COPIED_ROWS = TILE_ROWS / COPIERS, BULK_THREADS = THREADS + COPIERS * WARP };
enum { KEPT = 2 /* chunks of x a warp */, PLACES = 3, CHUNK = MQ_FP8_BLOCK, CODE_BYTES = 2 };
enum { PANEL_BYTES = WARPS * CHUNK * CODE_BYTES /* of a row in a place */, PAD_BYTES = 64 /* keeps the banks apart */ };
enum { ROW_BYTES = PANEL_BYTES + PAD_BYTES, PLACE_BYTES = TILE_ROWS * ROW_BYTES, RING_BYTES = PLACES * PLACE_BYTES };

/* One matrix of a launch. */
struct bulk_part {
    const uint8_t *data;
    float *y;
    int64_t stride;
    uint32_t first_row; /* among the rows of all */
};
struct bulk_job {
    bulk_part part[MQ_DECODE_MAX_PARTS];
    const uint16_t *x; /* [ROWS, cols] */
    uint32_t rows;     /* of all */
    int n_parts, cols;
};

static __device__ __forceinline__ const bulk_part &part_with(const bulk_job &job, uint32_t row)
{
    int which = 0;
    while (which + 1 < job.n_parts && row >= job.part[which + 1].first_row)
        which++;
    return job.part[which];
}

struct row_range {
    uint32_t begin, end;
};
static __device__ __forceinline__ row_range rows_of_block(uint32_t rows)
{
    row_range r;
    r.begin = (uint32_t)((uint64_t)rows * blockIdx.x / gridDim.x);
    r.end = (uint32_t)((uint64_t)rows * (blockIdx.x + 1) / gridDim.x);
    return r;
}

struct bulk_barriers {
    uint64_t full[PLACES], empty[PLACES];
    uint64_t summed; /* a phase a tile: every computing warp has left its sums */
};

/* The next place, and the parity of the phase to wait for. */
struct ring_position {
    int place;
    unsigned parity;
    __device__ __forceinline__ void advance()
    {
        if (++place == PLACES) {
            place = 0;
            parity ^= 1;
        }
    }
};

/* By the copying warps: each has COPIED_ROWS rows of every tile, a lane a row. */
static __device__ __forceinline__ void copy_places(const bulk_job &job, row_range rows, uint8_t *ring, bulk_barriers &bar)
{
    const uint32_t panel = PANEL_BYTES, row_bytes = (uint32_t)job.cols * CODE_BYTES;
    uint64_t policy = l2_evict_first();
    uint32_t lane = threadIdx.x % WARP, own_row = (threadIdx.x / WARP - WARPS) * COPIED_ROWS;
    ring_position at = {0, 1};
    for (uint32_t first = rows.begin; first < rows.end; first += TILE_ROWS) {
        uint32_t row = first + own_row, left = row < rows.end ? rows.end - row : 0;
        uint32_t count = left < (uint32_t)COPIED_ROWS ? left : (uint32_t)COPIED_ROWS;
        row = lane < count ? row + lane : first;
        const bulk_part &part = part_with(job, row);
        const uint8_t *from = part.data + (int64_t)(row - part.first_row) * row_bytes;
        for (uint32_t off = 0; off < row_bytes; off += panel) {
            uint32_t n_bytes = row_bytes - off < panel ? row_bytes - off : panel;
            while (!mbarrier_try_wait(bar.empty + at.place, at.parity))
                ;
            if (lane == 0)
                mbarrier_arrive_expect_tx(bar.full + at.place, count * n_bytes);
            __syncwarp();
            if (lane < count)
                copy_bulk_hint(ring + at.place * PLACE_BYTES + (own_row + lane) * ROW_BYTES, from + off, n_bytes,
                               bar.full + at.place, policy);
            at.advance();
        }
    }
}

/* The sums of tile index to y: by one half of the computing threads, then by the other. */
static __device__ __forceinline__ void write_tile(const float part_sums[WARPS][ROWS * SUM_STRIDE], const bulk_job &job,
                                                  uint32_t first, uint32_t end, int index)
{
    int i = (int)threadIdx.x - index % 2 * (ROWS * TILE_ROWS), row = i / TILE_ROWS, within = i % TILE_ROWS;
    uint32_t r = first + (uint32_t)within;
    if (i < 0 || i >= ROWS * TILE_ROWS || r >= end)
        return;
    const bulk_part &part = part_with(job, r);
    part.y[row * part.stride + (r - part.first_row)] = add_warps(part_sums, row, within);
}

/* s += a chunk of the lane's rows times the lane's columns of x. */
template <int SCHEME>
static __device__ __forceinline__ void add_chunk(sums &s, const uint8_t *weights, const uint32_t x[][layout<SCHEME>::X_WORDS])
{
    const int step_bytes = layout<SCHEME>::STEP * CODE_BYTES;
#pragma unroll
    for (int i = 0; i < layout<SCHEME>::STEPS; i++) {
        uint32_t w[2][4];
        set_row(w[0], *(const uint4 *)(weights + i * step_bytes));
        set_row(w[1], *(const uint4 *)(weights + 8 * ROW_BYTES + i * step_bytes));
        multiply<SCHEME>(s, w, x[i]);
    }
}

static __device__ __forceinline__ void init_barriers(bulk_barriers &bar)
{
    for (int i = 0; i < PLACES; i++) {
        mbarrier_init(bar.full + i, COPIERS);
        mbarrier_init(bar.empty + i, WARPS);
    }
    mbarrier_init(&bar.summed, WARPS);
    mbarrier_fence_init();
}

template <int SCHEME> static __global__ void __launch_bounds__(BULK_THREADS) step_linear_bulk_kernel(bulk_job job)
{
    typedef layout<SCHEME> L;
    MQ_SHARED_DYNAMIC(ring, uint8_t);
    MQ_SHARED(part_sums, float[2][WARPS][ROWS * SUM_STRIDE]); /* [row of x][row of w]; the stride keeps the banks apart */
    MQ_SHARED(bar, bulk_barriers);
    int lane = (int)(threadIdx.x % WARP), warp = (int)(threadIdx.x / WARP), n_chunks = job.cols / CHUNK, index = 0;
    row_range rows = rows_of_block(job.rows);
    if (threadIdx.x == THREADS)
        init_barriers(bar);
    __syncthreads();
    let_next_start();
    if (warp >= WARPS) {
        copy_places(job, rows, ring, bar);
        return;
    }
    wait_for_previous();
    uint32_t x[KEPT][L::STEPS][L::X_WORDS];
    const uint16_t *from = job.x + (int64_t)(lane / 4) * job.cols + (warp * CHUNK + lane % 4 * L::E);
#pragma unroll
    for (int p = 0; p < KEPT; p++)
        if (warp + p * WARPS < n_chunks)
#pragma unroll
            for (int i = 0; i < L::STEPS; i++)
                load_x<SCHEME>(x[p][i], from + p * WARPS * CHUNK + i * L::STEP);

    ring_position at = {0, 0};
    const uint8_t *mine = ring + lane / 4 * ROW_BYTES + warp * (CHUNK * CODE_BYTES) + lane % 4 * 16;
#pragma unroll 1
    for (uint32_t first = rows.begin; first < rows.end; first += TILE_ROWS, index++) {
        float total[4] = {};
        sums s = {};
#pragma unroll
        for (int p = 0; p < KEPT; p++) {
            if (p * WARPS >= n_chunks)
                break;
            while (!mbarrier_try_wait(bar.full + at.place, at.parity))
                ;
            if (warp + p * WARPS < n_chunks)
                add_chunk<SCHEME>(s, mine + at.place * PLACE_BYTES, x[p]);
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(bar.empty + at.place);
            at.advance();
        }
        const float one[2] = {1.0f, 1.0f};
        apply_scale(total, s, one);
#pragma unroll
        for (int i = 0; i < 4; i++)
            part_sums[index % 2][warp][(2 * (lane % 4) + i % 2) * SUM_STRIDE + lane / 4 + 8 * (i / 2)] = total[i];
        __syncwarp();
        if (lane == 0)
            mbarrier_arrive(&bar.summed);
        while (!mbarrier_try_wait(&bar.summed, (unsigned)index % 2)) /* also: those of the tile before the last are in y */
            ;
        write_tile(part_sums[index % 2], job, first, rows.end, index);
    }
}

/* Whether the kernel computes w; rows: of the parts before it. */
static bool takes(const mq_matrix *w, uint32_t rows)
{
    return (uintptr_t)w->data % 16 == 0 && w->cols % CHUNK == 0 && w->cols <= KEPT * WARPS * CHUNK && w->rows <= INT32_MAX - rows;
}

mq_status linear_bulk(mq_dev *dev, const mq_decode_linear *parts, int n_parts, const uint16_t *x, mq_scheme scheme, bool *done,
                      mq_err *err)
{
    bulk_job job = {};
    *done = false;
    if (!dev->can_start_early || (uintptr_t)x % 16 != 0)
        return MQ_OK;
    job.x = x;
    for (int i = 0; i < n_parts; i++) {
        const mq_matrix *w = &parts[i].w;
        if (w->scheme != scheme || w->rows == 0)
            continue;
        if (!takes(w, job.rows))
            return MQ_OK;
        job.part[job.n_parts++] = {(const uint8_t *)w->data, parts[i].y, parts[i].stride, job.rows};
        job.rows += (uint32_t)w->rows;
        job.cols = (int)w->cols;
    }
    *done = true;
    unsigned n = (unsigned)dev->n_processors;
    return launch_dependent(dev, err, "step linear", scheme == MQ_SCHEME_F16 ? step_linear_bulk_kernel<MQ_SCHEME_F16>
                                                                             : step_linear_bulk_kernel<MQ_SCHEME_BF16>,
                            job.rows < n ? job.rows : n, BULK_THREADS, RING_BYTES, job);
}

} // namespace decode
} // namespace mq_cuda
