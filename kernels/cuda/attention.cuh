/* Attention's two forms: sums in F32 on ordinary cores (attention.cu), and the tensor cores' (attention_tensor.cu). */
#ifndef MQ_KERNELS_CUDA_ATTENTION_CUH
#define MQ_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/common.cuh"

namespace mq_cuda {

/* What mq_kernels.attention and attention_block are given. */
struct attention_job {
    float *out;
    const float *q, *sink;
    mq_kv kv;
    int n_heads, window;
    bool is_block; /* the rows see one another */
    int64_t n, pos0;
    float scale;
};

/* The first position that any row sees, and the one behind the last. */
static inline int64_t first_seen(const attention_job *job)
{
    return job->window > 0 && job->pos0 + 1 > job->window ? job->pos0 + 1 - job->window : 0;
}

/* Whether attention_tensor takes heads of this size. */
bool attention_tensor_fits(const mq_kv *kv);

/* Products of queries and keys, weights and values on the tensor cores: every F32 factor is a sum of two BF16 values, of whose
 * four products the three larger are taken, so that results are within about 2^-15 of those in F32.  A row's bits depend
 * on that row and the keys and values it sees alone. */
mq_status attention_tensor(mq_dev *dev, const attention_job *job, mq_err *err);

} // namespace mq_cuda

#endif
