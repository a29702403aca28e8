/* How a warp's stream of packed weights reaches the tensor core: two ways with the same bits.
 *
 * The stream is a sequence of places, up to HELD blocks (units.cuh) each, contiguous in memory; every warp has its own
 * and nobody else takes part.  DEPTH places are under way at a time.  A supply offers, for place i, i + 1, ...:
 *
 *   fill      ask for one of the first DEPTH places
 *   await     until the oldest is there
 *   block     one of its blocks
 *   used      n of its blocks are used up; then `all_used`: the place after those under way is asked for in its stead
 *
 * slot is the place's number modulo DEPTH, known to the compiler (the loop around is unrolled UNROLL times).
 *
 * register_supply   loads to registers, block by block as they are used up.  Works everywhere.
 * shared_supply     one bulk copy a place, to shared memory, waited for at a barrier of its own: no registers and hardly an
 *                   instruction are spent on what is under way.  Compute capability 9.0.  The warp is its own
 *                   producer: __syncwarp tells lane 0 that all have read what its next copy overwrites. */
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

template <int GROUP, int WARPS, int HELD, int DEPTH_> struct register_supply {
    using F = unit_format<GROUP>;
    enum { DEPTH = DEPTH_, UNROLL = DEPTH_, SHARED_BYTES = 0 };
    weight_block<GROUP> ring[DEPTH][HELD] = {};
    unsigned lane;

    __device__ __forceinline__ register_supply(uint8_t *, unsigned, unsigned lane_) : lane(lane_) {}

    __device__ __forceinline__ void fill(int slot, next_place p)
    {
#pragma unroll
        for (int u = 0; u < HELD; u++)
            load_block<GROUP>(ring[slot][u], p.from + u * F::BYTES, lane, p.is_there && u < p.count);
    }
    __device__ __forceinline__ void await(int) {}
    __device__ __forceinline__ const weight_block<GROUP> &block(int slot, int u) const { return ring[slot][u]; }

    /* With n above 1, p has all of them or none. */
    __device__ __forceinline__ void used(int slot, int first, int n, next_place p)
    {
#pragma unroll
        for (int u = first; u < first + n; u++)
            load_block<GROUP>(ring[slot][u], p.from + u * F::BYTES, lane, p.is_there && first < p.count);
    }
    __device__ __forceinline__ void all_used(next_place) {}
};

template <int GROUP, int WARPS, int HELD, int DEPTH_> struct shared_supply {
    using F = unit_format<GROUP>;
    enum { DEPTH = DEPTH_, UNROLL = 1, PLACE_BYTES = HELD * F::BYTES };
    enum { COPIES_BYTES = WARPS * DEPTH * PLACE_BYTES, SHARED_BYTES = COPIES_BYTES + WARPS * DEPTH * 8 };
    uint8_t *copies;   /* [DEPTH] places of this warp */
    uint64_t *barrier; /* [DEPTH] */
    uint64_t policy;
    unsigned lane, parity;
    int at; /* slot of the oldest */

    /* memory: SHARED_BYTES of the block's.  A block barrier comes before fill. */
    __device__ __forceinline__ shared_supply(uint8_t *memory, unsigned warp, unsigned lane_)
        : copies(memory + warp * (DEPTH * PLACE_BYTES)), barrier((uint64_t *)(memory + COPIES_BYTES) + warp * DEPTH),
          policy(l2_evict_first()), lane(lane_), parity(0), at(0)
    {
        if (lane)
            return;
        for (int i = 0; i < DEPTH; i++)
            mbarrier_init(barrier + i, 1);
        mbarrier_fence_init();
    }

    __device__ __forceinline__ void fill(int slot, next_place p)
    {
        if (lane || !p.is_there)
            return;
        if (p.count == 0) { /* nothing comes, but the phase has to end */
            mbarrier_arrive(barrier + slot);
            return;
        }
        uint32_t n_bytes = (uint32_t)(p.count * F::BYTES);
        mbarrier_arrive_expect_tx(barrier + slot, n_bytes);
        copy_bulk_hint(copies + slot * PLACE_BYTES, p.from, n_bytes, barrier + slot, policy);
    }

    __device__ __forceinline__ void await(int)
    {
        while (!mbarrier_try_wait(barrier + at, parity))
            ;
    }

    __device__ __forceinline__ weight_block<GROUP> block(int, int u) const
    {
        const uint8_t *from = copies + at * PLACE_BYTES + u * F::BYTES;
        const uint32_t *scale = (const uint32_t *)(from + F::CODE_BYTES) + lane / 4 * F::SCALE_WORDS;
        weight_block<GROUP> w;
#pragma unroll
        for (int i = 0; i < F::UNITS; i++)
            w.codes[i] = *(const uint4 *)(from + i * MQ_UNIT_CODE_BYTES + lane * 16);
#pragma unroll
        for (int i = 0; i < F::SCALE_WORDS; i++)
            w.scale[i] = scale[i];
        return w;
    }

    __device__ __forceinline__ void used(int, int, int, next_place) {}
    __device__ __forceinline__ void all_used(next_place p)
    {
        __syncwarp();
        fill(at, p);
        if (++at == DEPTH) {
            at = 0;
            parity ^= 1;
        }
    }
};

} // namespace decode
} // namespace mq_cuda

#endif
