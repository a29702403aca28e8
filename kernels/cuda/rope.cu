/* Rotary position embedding: a block a row, which makes the row's cosines and sines once for all heads.
 *
 * Rounding as in kernels/cpu/rope.c: exponents, inverse frequencies and angles in F32, cosine and sine of that angle in
 * double and rounded once. */
#include "kernels/cuda/common.cuh"

namespace mq_cuda {

enum { THREADS = 256 };

static __global__ void rope_kernel(float *x, int64_t n, int n_heads, int head_dim, int rotary_dims, float theta,
                                   int64_t pos0)
{
    MQ_SHARED_DYNAMIC(table, float);
    int half = rotary_dims / 2;
    float *cosine = table, *sine = table + half;
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        __syncthreads(); /* the row before has read the table */
        for (int k = (int)threadIdx.x; k < half; k += (int)blockDim.x) {
            float exponent = (float)(2 * k) / (float)rotary_dims;
            float inv_freq = 1.0f / (float)pow((double)theta, (double)exponent);
            float angle = (float)(pos0 + i) * inv_freq;
            cosine[k] = (float)cos((double)angle);
            sine[k] = (float)sin((double)angle);
        }
        __syncthreads();
        for (int at = (int)threadIdx.x; at < n_heads * half; at += (int)blockDim.x) {
            int k = at % half;
            float *a = x + (i * n_heads + at / half) * head_dim + k, *b = a + half;
            float a0 = *a, b0 = *b;
            *a = a0 * cosine[k] - b0 * sine[k];
            *b = b0 * cosine[k] + a0 * sine[k];
        }
    }
}

mq_status rope(mq_dev *dev, float *x, int64_t n, int n_heads, int head_dim, int rotary_dims, double theta, int64_t pos0,
               mq_err *err)
{
    if (rotary_dims < 2)
        return MQ_OK;
    return launch(dev, err, "rope", rope_kernel, n_blocks(n, 1), THREADS, (size_t)rotary_dims * sizeof *x, x, n, n_heads,
                  head_dim, rotary_dims, (float)theta, pos0);
}

} // namespace mq_cuda
