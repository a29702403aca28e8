/* Both ends of a proposal: what goes into the drafter's layers, and the best token of each row of logits.
 *
 * The best token comes in two stages, pieces of BEST_IDS ids each and then the pieces of a row in ascending order, so that
 * nothing depends on which block or device had which piece. */
#include "kernels/cuda/weights.cuh"

#include "kernels/cuda/decode/draft.cuh"

namespace mq_cuda {
namespace decode {

enum { THREADS = 256, PER_THREAD = 4, BEST_IDS = THREADS * PER_THREAD };

/* ---- begin ---- */

/* Cosines and sines of 2 R rows: committed, then the block's; rounding as in rope.cu. */
static __device__ __forceinline__ void make_angles(float *cos_sin, const draft_heads &h, int64_t pos0, int n, int row)
{
    for (int i = (int)threadIdx.x; i < 2 * h.half; i += THREADS) {
        int k = i % h.half, which = i / h.half;
        float exponent = (float)(2 * k) / (float)(2 * h.half);
        float inv_freq = 1.0f / (float)pow((double)(float)h.theta, (double)exponent);
        float angle = (float)(pos0 + (which ? n : 0) + row) * inv_freq;
        float *to = cos_sin + (which * ROWS + row) * 2 * h.half;
        to[k] = (float)cos((double)angle);
        to[h.half + k] = (float)sin((double)angle);
    }
}

template <int SCHEME>
static __global__ void draft_begin_kernel(draft_begin job, weight_view embedding)
{
    int row = (int)blockIdx.y;
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x, at = row * job.hidden + c;
    int n = job.in->n;
    let_next_start();
    if (c < job.n_taps * job.hidden) {
        int64_t tap = c / job.hidden, within = c % job.hidden;
        float v = row < n ? job.in->features[tap][row * job.hidden + within] : 0.0f;
        job.wide[row * job.n_taps * job.hidden + c] = mq_f32_to_bf16(v);
    }
    if (c < job.hidden) {
        job.context[at] = 0.0f;
        job.x[at] = row == 0 ? weight_at<SCHEME>(embedding, job.in->anchor, c) : row < job.h.block ? job.mask[c] : 0.0f;
    }
    if (blockIdx.x == 0)
        make_angles(job.cos_sin, job.h, job.in->pos0, n, row);
}

mq_status begin_draft(mq_dev *dev, const draft_begin *job, mq_err *err)
{
    dim3 grid((unsigned)((job->n_taps * job->hidden + THREADS - 1) / THREADS), ROWS);
    return by_scheme(&job->embedding, [=](auto scheme) {
        return launch(dev, err, "draft begin", draft_begin_kernel<decltype(scheme)::value>, grid, THREADS, 0, *job,
                      view_of(&job->embedding));
    });
}

/* ---- the best token ---- */

int64_t draft_entries(int64_t vocab)
{
    return (vocab + BEST_IDS - 1) / BEST_IDS;
}

static __global__ void draft_best_kernel(draft_best *entries, const float *logits, int64_t vocab, int64_t id0)
{
    wait_for_previous();
    let_next_start();
    const float *row = logits + blockIdx.y * vocab;
    int64_t first = (int64_t)blockIdx.x * BEST_IDS + threadIdx.x;
    float v[PER_THREAD];
    ranked best = {-INFINITY, INT32_MAX};
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int64_t id = first + i * THREADS;
        v[i] = id < vocab ? row[id] : NAN; /* which is never the best */
    }
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        ranked r = {v[i], (int32_t)(first + i * THREADS)};
        best = ranks_before(r, best) ? r : best;
    }
    best = block_best(best);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++)
        sum += v[i] > -INFINITY ? (double)expf(v[i] - best.value) : 0.0;
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        draft_best e = {best.value, (float)(best.id == INT32_MAX ? 0 : id0 + best.id), (float)sum};
        entries[blockIdx.y * gridDim.x + blockIdx.x] = e;
    }
}

mq_status best_of_logits(mq_dev *dev, draft_best *entries, const float *logits, int64_t vocab, int64_t id0, mq_err *err)
{
    dim3 grid((unsigned)draft_entries(vocab), ROWS);
    return launch_dependent(dev, err, "draft best", draft_best_kernel, grid, THREADS, 0, entries, logits, vocab, id0);
}

/* A warp a row; ids ascend from entry to entry, so the first of equals has the lowest. */
static __global__ void draft_join_kernel(float *out, int64_t out_stride, draft_output *result, const float *from, int64_t n,
                                         int64_t stride_entry, int64_t stride_row)
{
    wait_for_previous();
    let_next_start();
    int lane = (int)threadIdx.x;
    const float *row = from + blockIdx.x * stride_row;
    ranked best = {-INFINITY, INT32_MAX}; /* the entry's number for an id */
    for (int64_t i = lane; i < n; i += WARP) {
        ranked r = {row[i * stride_entry], (int32_t)i};
        best = ranks_before(r, best) ? r : best;
    }
    best = warp_best(best);
    bool is_there = best.id != INT32_MAX;
    double sum = 0.0;
    for (int64_t i = lane; i < n && is_there; i += WARP) {
        const float *e = row + i * stride_entry;
        sum += e[0] == best.value ? (double)e[2] : (double)e[2] * exp((double)e[0] - (double)best.value);
    }
    sum = warp_sum(sum);
    if (lane)
        return;
    float id = is_there ? row[best.id * stride_entry + 1] : 0.0f;
    if (out) {
        float *to = out + blockIdx.x * out_stride;
        to[0] = best.value;
        to[1] = id;
        to[2] = (float)sum;
        return;
    }
    float p = (float)(1.0 / sum);
    result->token[blockIdx.x] = (int32_t)id;
    result->confidence[blockIdx.x] = isfinite(best.value) && p >= 0.0f && p <= 1.0f ? p : 0.0f;
}

mq_status join_best(mq_dev *dev, float *out, int64_t out_stride, draft_output *result, const float *from, int64_t n,
                    int64_t stride_entry, int64_t stride_row, mq_err *err)
{
    return launch_dependent(dev, err, "draft join", draft_join_kernel, ROWS, WARP, 0, out, out_stride, result, from, n,
                            stride_entry, stride_row);
}

} // namespace decode
} // namespace mq_cuda
