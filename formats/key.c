/* Names of logical tensors, as the split checkpoint layout has them (SHARD.md "Names").
 *
 * The drafter's tensors get the prefix "draft."; gate and up of a packed expert are one tensor,
 * gate_up_proj, which no checkpoint has. */
#include <stdio.h>

#include "formats/source.h"

/* What follows the layer's prefix; for a tensor outside of layers, what follows the stack's. */
static const char *role_text(mq_stack stack, mq_role role)
{
    switch (role) {
    case MQ_ROLE_EMBED:
        return "embed_tokens.weight";
    case MQ_ROLE_HEAD:
        return "lm_head.weight";
    case MQ_ROLE_FINAL_NORM:
    case MQ_ROLE_DRAFT_NORM:
        return "norm.weight";
    case MQ_ROLE_INPUT_NORM:
        return "input_layernorm.weight";
    case MQ_ROLE_POST_NORM:
        return stack == MQ_STACK_MTP ? "pre_mlp_layernorm.weight"
                                     : "post_attention_layernorm.weight";
    case MQ_ROLE_SINK:
        return "self_attn.attention_sink_bias";
    case MQ_ROLE_ROUTER:
        return "mlp.gate.weight";
    case MQ_ROLE_ROUTER_BIAS:
        return "mlp.gate.e_score_correction_bias";
    case MQ_ROLE_Q:
        return "self_attn.q_proj.weight";
    case MQ_ROLE_K:
        return "self_attn.k_proj.weight";
    case MQ_ROLE_V:
        return "self_attn.v_proj.weight";
    case MQ_ROLE_O:
        return "self_attn.o_proj.weight";
    case MQ_ROLE_GATE:
        return "mlp.gate_proj.weight";
    case MQ_ROLE_UP:
        return "mlp.up_proj.weight";
    case MQ_ROLE_DOWN:
        return "mlp.down_proj.weight";
    case MQ_ROLE_EXPERT_GATE:
        return "gate_proj.weight";
    case MQ_ROLE_EXPERT_UP:
        return "up_proj.weight";
    case MQ_ROLE_EXPERT_DOWN:
        return "down_proj.weight";
    case MQ_ROLE_EXPERT_GATE_UP:
        return "gate_up_proj.weight";
    case MQ_ROLE_MTP_ENORM:
        return "enorm.weight";
    case MQ_ROLE_MTP_HNORM:
        return "hnorm.weight";
    case MQ_ROLE_MTP_FINAL_NORM:
        return "final_layernorm.weight";
    case MQ_ROLE_MTP_EH_PROJ:
        return "eh_proj.weight";
    case MQ_ROLE_DRAFT_FC:
        return "fc.weight";
    case MQ_ROLE_DRAFT_HIDDEN_NORM:
        return "hidden_norm.weight";
    case MQ_ROLE_DRAFT_Q_NORM:
        return "self_attn.q_norm.weight";
    case MQ_ROLE_DRAFT_K_NORM:
        return "self_attn.k_norm.weight";
    case MQ_ROLE_DRAFT_MASK:
        return "mask_embedding";
    case MQ_ROLE_COUNT:
        break;
    }
    return "";
}

void mq_key_name(char *out, int64_t out_bytes, mq_key key)
{
    static const char *const prefixes[] = {"model.", "model.mtp.", "draft."};
    const char *prefix = key.role == MQ_ROLE_HEAD ? "" : prefixes[key.stack];
    const char *text = role_text(key.stack, key.role);
    size_t cap = (size_t)out_bytes;
    if (key.layer < 0)
        snprintf(out, cap, "%s%s", prefix, text);
    else if (key.expert < 0)
        snprintf(out, cap, "%slayers.%d.%s", prefix, key.layer, text);
    else
        snprintf(out, cap, "%slayers.%d.mlp.experts.%d.%s", prefix, key.layer, key.expert, text);
}
