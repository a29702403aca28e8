/* Random checkpoints of any geometry, for tests: a folder that mq_source_open reads, with index, configs and, if asked for,
 * MTP layers and a drafter.  Values are cheap noise (a random block read at hashed offsets) of about N(0, 1 / sqrt(cols)), so
 * that a forward pass stays sane and gigabytes take seconds.  The same settings give the same bytes. */
#ifndef MQ_TESTS_MAKER_H
#define MQ_TESTS_MAKER_H

#include <stdbool.h>
#include <stdint.h>

#include "src/matrix.h"
#include "src/status.h"

typedef struct mq_maker {
    int layers, hidden, vocab;
    int heads, kv_heads, head_dim, v_head_dim;                 /* full attention */
    int swa_heads, swa_kv_heads, swa_head_dim, swa_v_head_dim; /* sliding attention */
    int window;
    int full_every;   /* full attention at layer 0, at the last, and where (i + 1) % full_every == 0 */
    int dense_layers; /* leading layers without experts */
    int intermediate, experts, top_k, moe_intermediate;
    int max_positions, eos;
    double rope_theta, swa_rope_theta, partial_rotary, value_scale, eps;
    bool swa_sink, full_sink;
    bool fused;              /* fused qkv, as in V2.5 and Pro */
    mq_scheme expert_scheme; /* BF16, F16, F32, FP8_BLOCK or MXFP4_ROWS */
    int mx_layers;           /* of the layers with experts, so many first ones have MXFP4 experts whatever expert_scheme */
    mq_scheme scheme;        /* of the other matrices: BF16, F16, F32 or FP8_BLOCK (o_proj, embedding, head stay BF16) */
    bool router_bf16;        /* F32 otherwise */
    int mtp;                 /* MTP layers */
    int draft_layers;        /* 0: no drafter */
    int draft_heads, draft_kv_heads, draft_head_dim, draft_intermediate, draft_window;
    int files;
    bool split_pairs; /* scales in the file after their weights' */
    bool no_index;    /* files == 1: model.safetensors alone */
    uint64_t seed;
    const char *tokenizer; /* folder to copy tokenizer files from, or NULL; borrowed */
} mq_maker;

/* "nano", "mini", "pro-small" (Pro's proportions at 1/12, eight ranks), "flash", "v25", "pro" (the real geometries): full
 * settings, BF16 split for nano, mini; the released storage for the others.  false: no such preset. */
bool mq_maker_preset(mq_maker *m, const char *name);

/* Write the checkpoint into dir (created; files there are replaced).  n_bytes (may be NULL) gets the size of all
 * tensors.  MQ_E_ARG: settings that do not fit together; MQ_E_IO; MQ_E_NOMEM. */
mq_status mq_maker_write(const mq_maker *m, const char *dir, int64_t *n_bytes, mq_err *err);

#endif
