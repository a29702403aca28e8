/* The inner loops of kernels/cpu compiled for AVX2, FMA and F16C; the sources are the *_impl.h files. */
#include "kernels/cpu/vector.h"

#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/elementwise_impl.h"
#include "kernels/cpu/fixed_impl.h"
#include "kernels/cpu/ldlq_impl.h"
#include "kernels/cpu/refine_impl.h"
#include "kernels/cpu/widen_impl.h"

const mq_vector_ops mq_vector_avx2 = {
    .isa = "avx2",
    .fixed = fixed_rows,
    .widen = widen_rows,
    .attention = attention_rows,
    .swiglu = swiglu_run,
    .ldlq = ldlq_columns,
    .residual = residual_row,
    .dots = dots_run,
    .descend = descend_row,
    .refit = refit_row,
    .square_sum = square_sum_run,
    .max = max_run,
    .softmax_sums = softmax_sums_run,
};
