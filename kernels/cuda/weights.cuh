/* One weight of a stored matrix, on the device: the definition of src/matrix.h scheme by scheme.
 *
 * Addresses of packed weights come from the inline functions of src/units.h.  Data and scales are aligned to their
 * elements. */
#ifndef MQ_KERNELS_CUDA_WEIGHTS_CUH
#define MQ_KERNELS_CUDA_WEIGHTS_CUH

#include <type_traits>

#include "kernels/cuda/common.cuh"
#include "src/units.h"

namespace mq_cuda {

/* mq_matrix with what its scheme's addresses need. */
struct weight_view {
    const uint8_t *data, *scale;
    int64_t cols, seg_rows, seg_scale_rows, scale_cols;
    int group, row_phase, col_phase;
};

static inline weight_view view_of(const mq_matrix *m)
{
    weight_view v = {};
    v.data = (const uint8_t *)m->data;
    v.scale = (const uint8_t *)m->scale;
    v.cols = m->cols;
    v.group = m->group;
    v.row_phase = m->row_phase;
    v.col_phase = m->col_phase;
    if (m->scheme == MQ_SCHEME_FP8_BLOCK) {
        v.seg_rows = m->seg_rows;
        v.seg_scale_rows = mq_fp8_seg_scale_rows(m);
        v.scale_cols = mq_fp8_scale_cols(m);
    }
    return v;
}

static __device__ __forceinline__ float unit_weight(const weight_view &w, int64_t row, int64_t col)
{
    int block_cols = mq_block_cols(w.group), r = (int)(row % MQ_UNIT_ROWS), c = (int)(col % block_cols);
    const uint8_t *block = w.data + row / MQ_UNIT_ROWS * mq_tile_bytes(w.cols, w.group) +
                           col / block_cols * mq_block_bytes(w.group);
    const uint8_t *codes = block + c / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
    const uint8_t *scales = block + block_cols / MQ_UNIT_COLS * MQ_UNIT_CODE_BYTES;
    unsigned u = (unsigned)codes[mq_unit_byte(r, c % MQ_UNIT_COLS)] >> mq_unit_shift(r) & 15u;
    int k = mq_unit_scale_index(r, c, w.group);
    if (w.group == MQ_GROUP_MXFP4)
        return mq_e2m1_to_f32(u) * mq_e8m0_to_f32(scales[k]);
    return (float)((int)u - 8) * mq_bf16_to_f32(((const uint16_t *)scales)[k]);
}

template <int SCHEME> static __device__ __forceinline__ float weight_at(const weight_view &w, int64_t r, int64_t c)
{
    int64_t at = r * w.cols + c;
    if (SCHEME == MQ_SCHEME_BF16)
        return mq_bf16_to_f32(((const uint16_t *)w.data)[at]);
    if (SCHEME == MQ_SCHEME_F16)
        return mq_f16_to_f32(((const uint16_t *)w.data)[at]);
    if (SCHEME == MQ_SCHEME_F32)
        return ((const float *)w.data)[at];
    if (SCHEME == MQ_SCHEME_FP8_BLOCK) {
        int64_t scale_row = r / w.seg_rows * w.seg_scale_rows + (w.row_phase + r % w.seg_rows) / MQ_FP8_BLOCK;
        float s = ((const float *)w.scale)[scale_row * w.scale_cols + (w.col_phase + c) / MQ_FP8_BLOCK];
        return mq_e4m3_to_f32(w.data[at]) * s;
    }
    if (SCHEME == MQ_SCHEME_MXFP4_ROWS) {
        unsigned code = (unsigned)w.data[r * (w.cols / 2) + c / 2] >> (c % 2 * 4) & 15u;
        return mq_e2m1_to_f32(code) * mq_e8m0_to_f32(w.scale[r * (w.cols / MQ_MX_GROUP) + c / MQ_MX_GROUP]);
    }
    return unit_weight(w, r, c);
}

/* f(integral_constant of the scheme); INT4 stands for both packed schemes, which unit_weight tells apart. */
template <class F> static inline mq_status by_scheme(const mq_matrix *m, F f)
{
    switch (m->scheme) {
    case MQ_SCHEME_BF16:
        return f(std::integral_constant<int, MQ_SCHEME_BF16>());
    case MQ_SCHEME_F16:
        return f(std::integral_constant<int, MQ_SCHEME_F16>());
    case MQ_SCHEME_F32:
        return f(std::integral_constant<int, MQ_SCHEME_F32>());
    case MQ_SCHEME_FP8_BLOCK:
        return f(std::integral_constant<int, MQ_SCHEME_FP8_BLOCK>());
    case MQ_SCHEME_MXFP4_ROWS:
        return f(std::integral_constant<int, MQ_SCHEME_MXFP4_ROWS>());
    default:
        return f(std::integral_constant<int, MQ_SCHEME_INT4>());
    }
}

} // namespace mq_cuda

#endif
