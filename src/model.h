/* config.json of a MiMo-V2 model to its geometry; the drafter's config; what we do not compute is refused by name.
 *
 * Source: the released configs of MiMo-V2-Flash, V2.5 and V2.5-Pro.  Geometry never comes from the model's name.
 * A key we know with a value we do not compute is MQ_E_UNSUPPORTED naming key and value; an unknown key is a
 * warning (mq_model.warnings). */
#ifndef MQ_SRC_MODEL_H
#define MQ_SRC_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/json.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_MAX_LAYERS = 512, MQ_MAX_EXPERTS = 4096, MQ_MAX_TOPK = 64, MQ_MAX_EOS = 16, MQ_MAX_TAPS = 16 };

/* Attention of one kind (full or sliding). */
typedef struct mq_attn_geometry {
    int n_heads, n_kv_heads;
    int head_dim, v_head_dim; /* q and k width, v width */
    int rotary_dims;          /* even; the first dims of each q and k head */
    double rope_theta;
    int window;               /* key j visible to query i iff i - j < window; 0: no limit */
    bool has_sink;
} mq_attn_geometry;

typedef struct mq_model {
    char model_type[32]; /* "mimo_v2_flash" or "mimo_v2" */
    int n_layers, hidden, vocab;
    mq_attn_geometry full, swa;
    bool is_swa[MQ_MAX_LAYERS]; /* hybrid_layer_pattern */
    bool is_moe[MQ_MAX_LAYERS]; /* moe_layer_freq */
    int intermediate;           /* dense MLP width */
    int n_experts, n_experts_per_tok, moe_intermediate;
    bool norm_topk_prob;
    double routed_scaling; /* 1.0 where null */
    double value_scale;    /* attention_value_scale; 1.0 where absent */
    double norm_eps;       /* layernorm_epsilon */
    int max_positions;
    bool fused_qkv;        /* attention_projection_layout == "fused_qkv": C chunks, C = full.n_kv_heads */
    bool fp8;              /* quantization_config quant_method fp8, 128 x 128 blocks */
    bool mxfp4;            /* store_dtype mxfp4, block 32: routed experts */
    int n_eos, eos[MQ_MAX_EOS];
    int n_mtp;             /* MTP layers found in the checkpoint's tensors or manifest; not in config.json: set by the
                              caller that looked (formats/source, manifest) */
    mq_buf warnings;       /* one line each, released by mq_model_release */
} mq_model;

/* The geometry of layer L's attention. */
const mq_attn_geometry *mq_model_attn(const mq_model *m, int layer);

/* Read a parsed config.json.  name goes into error texts.  MQ_E_FORMAT: missing key, wrong type, out of range (every
 * count is bounded so that no product of two overflows); MQ_E_UNSUPPORTED; MQ_E_SHAPE: numbers do not fit together
 * (n_heads not a multiple of n_kv_heads, pattern lengths, top-k above the experts, ...).  On failure nothing to release. */
mq_status mq_model_read(mq_model *out, const mq_json *config, const char *name, mq_err *err);
mq_status mq_model_load(mq_model *out, const char *path, mq_err *err); /* a config.json file, at most 16 MiB */
void mq_model_release(mq_model *m);

/* Add eos ids of a generation_config.json (int or array) to m->eos without repeats; a missing file is fine. */
mq_status mq_model_load_generation(mq_model *m, const char *path, mq_err *err);

/* The DFlash drafter's config. */
typedef struct mq_draft_model {
    int n_layers, hidden, intermediate, vocab;
    mq_attn_geometry attn; /* window = sliding_window; has_sink as attention_sink_bias says */
    double norm_eps, value_scale;
    int block_size, mask_token_id;
    int n_taps, taps[MQ_MAX_TAPS]; /* target_layer_ids: residual after that layer */
    mq_buf warnings;
} mq_draft_model;

/* Read dflash/config.json against its target (hidden, num_target_layers, taps and mask id must fit).  Where target_layer_ids
 * is absent, the DFlash reference implementation's spacing over the target's layers is used. */
mq_status mq_draft_model_load(mq_draft_model *out, const char *path, const mq_model *target, mq_err *err);
void mq_draft_model_release(mq_draft_model *d);

#ifdef __cplusplus
}
#endif
#endif
