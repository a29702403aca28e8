/* A warp's stream of packed weights on its way to the tensor core, through registers.
 *
 * The stream is a sequence of places, up to HELD blocks (units.cuh) each, contiguous in memory; every warp has its own
 * and nobody else takes part.  DEPTH places are under way at a time; slot is the place's number modulo DEPTH, known to the
 * compiler (the loop around is unrolled DEPTH times). */
#ifndef MQ_KERNELS_CUDA_DECODE_SUPPLY_CUH
#define MQ_KERNELS_CUDA_DECODE_SUPPLY_CUH

#include "kernels/cuda/decode/units.cuh"

namespace mq_cuda {
namespace decode {

/* The next place: count blocks at from; is_there: false beyond the end of the stream. */
struct next_place {
    const uint8_t *from;
    int count;
    bool is_there;
};

template <int GROUP, int HELD, int DEPTH> struct register_supply {
    using F = unit_format<GROUP>;
    weight_block<GROUP> ring[DEPTH][HELD] = {};
    unsigned lane;

    __device__ __forceinline__ register_supply(unsigned lane_) : lane(lane_) {}

    /* Ask for one of the first DEPTH places. */
    __device__ __forceinline__ void fill(int slot, next_place p)
    {
#pragma unroll
        for (int u = 0; u < HELD; u++)
            load_block<GROUP>(ring[slot][u], p.from + u * F::BYTES, lane, p.is_there && u < p.count);
    }
    __device__ __forceinline__ const weight_block<GROUP> &block(int slot, int u) const { return ring[slot][u]; }

    /* n blocks are used up: the same of p, the place after those under way, are asked for in their stead.  With n above 1,
     * p has all of them or none. */
    __device__ __forceinline__ void used(int slot, int first, int n, next_place p)
    {
#pragma unroll
        for (int u = first; u < first + n; u++)
            load_block<GROUP>(ring[slot][u], p.from + u * F::BYTES, lane, p.is_there && first < p.count);
    }
};

} // namespace decode
} // namespace mq_cuda

#endif
