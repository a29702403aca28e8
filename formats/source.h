/* The logical tensors of a checkpoint: each weight matrix or vector of the model, wherever and however the
 * checkpoint stores it (split or fused q/k/v, BF16, F16, F32, FP8 with block scales, MXFP4), checked for presence, shape
 * and dtype once, then read in row ranges as stored bytes.
 *
 * Fused qkv (MiMo-V2.5, Pro): C = full.n_kv_heads equal chunks [q heads | k heads | v heads], for every layer and
 * for MTP; FP8 scale rows restart at every chunk. */
#ifndef MQ_FORMATS_SOURCE_H
#define MQ_FORMATS_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/checkpoint.h"
#include "formats/torch_pt.h"
#include "src/matrix.h"
#include "src/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a logical tensor is.  Numbers order the records of a shard (SHARD.md "Record order"). */
typedef enum mq_role {
    MQ_ROLE_EMBED = 0,      /* [vocab, hidden] */
    MQ_ROLE_HEAD,           /* [vocab, hidden] */
    MQ_ROLE_FINAL_NORM,     /* [hidden] */
    MQ_ROLE_INPUT_NORM,     /* [hidden], per layer, MTP layer, draft layer */
    MQ_ROLE_POST_NORM,      /* [hidden]: post_attention_layernorm, MTP pre_mlp_layernorm */
    MQ_ROLE_SINK,           /* [n_heads] */
    MQ_ROLE_ROUTER,         /* [n_experts, hidden] */
    MQ_ROLE_ROUTER_BIAS,    /* [n_experts] */
    MQ_ROLE_Q, MQ_ROLE_K, MQ_ROLE_V, MQ_ROLE_O,
    MQ_ROLE_GATE, MQ_ROLE_UP, MQ_ROLE_DOWN, /* dense MLP */
    MQ_ROLE_EXPERT_GATE, MQ_ROLE_EXPERT_UP, MQ_ROLE_EXPERT_DOWN,
    MQ_ROLE_EXPERT_GATE_UP, /* packed models only: gate and up interleaved */
    MQ_ROLE_MTP_ENORM, MQ_ROLE_MTP_HNORM, MQ_ROLE_MTP_FINAL_NORM, /* [hidden] */
    MQ_ROLE_MTP_EH_PROJ,    /* [hidden, 2 hidden] */
    MQ_ROLE_DRAFT_FC,       /* [hidden, n_taps * hidden] */
    MQ_ROLE_DRAFT_HIDDEN_NORM, MQ_ROLE_DRAFT_NORM, /* [hidden] */
    MQ_ROLE_DRAFT_Q_NORM, MQ_ROLE_DRAFT_K_NORM,    /* [head_dim], per draft layer */
    MQ_ROLE_DRAFT_MASK,     /* [hidden] */
    MQ_ROLE_COUNT
} mq_role;

/* Which stack a layer number counts in. */
typedef enum mq_stack { MQ_STACK_MODEL = 0, MQ_STACK_MTP = 1, MQ_STACK_DRAFT = 2 } mq_stack;

/* Key of a logical tensor; layer and expert are -1 where they do not apply. */
typedef struct mq_key {
    mq_stack stack;
    int layer;
    mq_role role;
    int expert;
} mq_key;

/* Name as in the split checkpoint layout, for example "model.layers.3.self_attn.q_proj.weight",
 * "model.layers.3.mlp.experts.7.gate_up_proj.weight" (packed), "model.mtp.layers.0.eh_proj.weight",
 * "draft.layers.0.self_attn.q_proj.weight", "draft.mask_embedding". */
void mq_key_name(char *out, int64_t out_bytes, mq_key key);
enum { MQ_KEY_NAME = 128 };

/* A logical tensor found in the checkpoint.  Vectors have rows = 1, cols = n. */
typedef struct mq_source_tensor {
    mq_scheme scheme;          /* BF16, F16, F32, FP8_BLOCK or MXFP4_ROWS */
    int64_t rows, cols;
    mq_tensor_ref data, scale; /* scale: FP8 and MXFP4 only */
    /* Fused storage: logical row i lies at stored row i / part_rows * chunk_rows + part_off + i % part_rows; not fused:
     * part_rows = chunk_rows = rows, part_off = 0. */
    int64_t chunk_rows, part_off, part_rows;
    const uint8_t *resident; /* MQ_ROLE_DRAFT_MASK: its bytes, lent by the source, and data is empty; else NULL */
} mq_source_tensor;

typedef struct mq_source {
    mq_checkpoint *checkpoint; /* owned */
    mq_model model;            /* n_mtp set */
    bool has_draft;            /* dflash/ is there */
    mq_checkpoint *draft_checkpoint;
    mq_draft_model draft;
    mq_mask_embedding mask;
    mq_buf notices;            /* skipped tensors (vision, audio, speech), warnings; one line each */
} mq_source;

/* Open a checkpoint folder, read its configs, and check that every tensor the model needs is there with a dtype and
 * shape we read, and that no unknown tensor is (visual.*, audio_encoder.*, speech_embeddings.* and other non-text parts are
 * skipped with one notice each kind).  MQ_E_FORMAT, MQ_E_SHAPE, MQ_E_UNSUPPORTED name file and tensor. */
mq_status mq_source_open(mq_source **out, const char *dir, mq_err *err);
void mq_source_close(mq_source *s); /* accepts NULL */

/* The logical tensor; it exists for every key the model has (programming error otherwise). */
mq_status mq_source_find(mq_source_tensor *out, const mq_source *s, mq_key key, mq_err *err);
bool mq_source_has(const mq_source *s, mq_key key);

/* View of logical rows [row0, row0 + n_rows) x columns [col0, col0 + n_cols) to be read by mq_source_read: scheme, phases
 * and segments set, pointers NULL.  For FP8 a range must lie inside one chunk part or cover whole parts; col0 of
 * MXFP4 is a multiple of 32.  *data_bytes and *scale_bytes are what the caller's buffers need. */
mq_status mq_source_slice(mq_matrix *view, int64_t *data_bytes, int64_t *scale_bytes, const mq_source_tensor *t,
                          int64_t row0, int64_t n_rows, int64_t col0, int64_t n_cols, mq_err *err);

/* Read the slice's bytes: data [data_bytes], scale [scale_bytes] (may be NULL when 0), exactly as stored, rows packed;
 * view->data and view->scale are set to them.  FP8 NaN codes, E8M0 255 and (in F32 scales) non-finite values are
 * MQ_E_FORMAT naming tensor and offset, BF16, F16 and F32 weights that are not finite MQ_E_NUMERIC naming row and column.  Any
 * thread. */
mq_status mq_source_read(mq_matrix *view, void *data, void *scale, const mq_source_tensor *t, int64_t row0,
                         int64_t n_rows, int64_t col0, int64_t n_cols, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
