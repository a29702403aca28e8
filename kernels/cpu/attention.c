/* Attention: the KV cache's ring, and the split of attention into pieces of rows and KV heads (attention_impl.h
 * computes a piece). */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

mq_status mq_cpu_kv_store(mq_dev *dev, const mq_kv *kv, const float *k, const float *v, float v_scale, int64_t n,
                          int64_t pos0, mq_err *err)
{
    (void)err;
    int64_t k_cols = (int64_t)kv->n_kv_heads * kv->head_dim, v_cols = (int64_t)kv->n_kv_heads * kv->v_head_dim;
    int64_t first = n > kv->n_slots ? n - kv->n_slots : 0; /* earlier rows would be overwritten */
#pragma omp parallel for schedule(static) num_threads(mq_cpu_threads(dev, (double)n * (double)(k_cols + v_cols) / 4.0))
    for (int64_t i = first; i < n; i++) {
        int64_t slot = (pos0 + i) % kv->n_slots;
        memcpy(kv->k + slot * k_cols, k + i * k_cols, (size_t)k_cols * sizeof *k);
        for (int64_t c = 0; c < v_cols; c++)
            kv->v[slot * v_cols + c] = v[i * v_cols + c] * v_scale;
    }
    return MQ_OK;
}

int64_t mq_attention_scratch_floats(const mq_attention_job *job)
{
    int64_t share = job->n_heads / job->kv->n_kv_heads, items = MQ_ATTENTION_ROWS * share;
    int64_t keys = (int64_t)job->kv->head_dim * MQ_ATTENTION_KEYS, item_floats = 16; /* 64 bytes an item */
    return (keys + items * (MQ_ATTENTION_KEYS + item_floats) + 15) / 16 * 16;
}

static mq_status attend(mq_dev *dev, const mq_attention_job *job, mq_err *err)
{
    const mq_kv *kv = job->kv;
    int64_t n = job->n, window = job->window, scratch = mq_attention_scratch_floats(job), seen = job->pos0 + n;
    if (n == 0)
        return MQ_OK;
    if (window > 0 && seen > window + n)
        seen = window + n;
    double ops = (double)n * job->n_heads * (double)seen * (kv->head_dim + kv->v_head_dim) / 8.0;
    int threads = mq_cpu_threads(dev, ops);
    void *room;
    MQ_TRY(mq_cpu_workspace(dev, MQ_WS_ATTENTION, threads * scratch * (int64_t)sizeof(float), &room, err));
    int64_t n_blocks = (n + MQ_ATTENTION_ROWS - 1) / MQ_ATTENTION_ROWS;
    /* Later rows see more keys: deal pieces out one by one so that threads end together. */
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t piece = 0; piece < n_blocks * kv->n_kv_heads; piece++) {
        int64_t row0 = piece / kv->n_kv_heads * MQ_ATTENTION_ROWS;
        int64_t row1 = row0 + MQ_ATTENTION_ROWS < n ? row0 + MQ_ATTENTION_ROWS : n;
        dev->v->attention(job, (int)(piece % kv->n_kv_heads), row0, row1,
                          (float *)room + omp_get_thread_num() * scratch);
    }
    return MQ_OK;
}

static float score_scale(const mq_kv *kv)
{
    return (float)(1.0 / sqrt((double)kv->head_dim));
}

mq_status mq_cpu_attention(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads, const float *sink,
                           int window, int64_t n, int64_t pos0, mq_err *err)
{
    mq_attention_job job = {out, q, kv, sink, n_heads, window, n, pos0, score_scale(kv), false};
    return attend(dev, &job, err);
}

mq_status mq_cpu_attention_block(mq_dev *dev, float *out, const float *q, const mq_kv *kv, int n_heads,
                                 const float *sink, int window, int64_t n, int64_t pos0, mq_err *err)
{
    mq_attention_job job = {out, q, kv, sink, n_heads, window, n, pos0, score_scale(kv), true};
    return attend(dev, &job, err);
}
