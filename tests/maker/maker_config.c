/* Configurations and the mask embedding of a made checkpoint, in the released forms. */
#include <stdio.h>
#include <string.h>

#include "src/json.h"
#include "tests/maker/maker_parts.h"

static void integers(mq_json_writer *w, const mq_maker *m)
{
    const struct {
        const char *key;
        int value;
    } all[] = {{"num_hidden_layers", m->layers},
               {"hidden_size", m->hidden},
               {"num_attention_heads", m->heads},
               {"swa_num_attention_heads", m->swa_heads},
               {"num_key_value_heads", m->kv_heads},
               {"swa_num_key_value_heads", m->swa_kv_heads},
               {"head_dim", m->head_dim},
               {"swa_head_dim", m->swa_head_dim},
               {"v_head_dim", m->v_head_dim},
               {"swa_v_head_dim", m->swa_v_head_dim},
               {"sliding_window", m->window},
               {"sliding_window_size", m->window},
               {"intermediate_size", m->intermediate},
               {"n_routed_experts", m->experts},
               {"num_experts_per_tok", m->top_k},
               {"moe_intermediate_size", m->moe_intermediate},
               {"n_group", 1},
               {"topk_group", 1},
               {"vocab_size", m->vocab},
               {"max_position_embeddings", m->max_positions},
               {"eos_token_id", m->eos},
               {"pad_token_id", m->eos}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        mq_json_write_int(w, all[i].key, all[i].value);
}

static void quantization(mq_json_writer *w, const mq_maker *m)
{
    bool mx = m->expert_scheme == MQ_SCHEME_MXFP4_ROWS || m->mx_layers > 0;
    if (!mx && m->expert_scheme != MQ_SCHEME_FP8_BLOCK && m->scheme != MQ_SCHEME_FP8_BLOCK)
        return;
    mq_json_write_object(w, "quantization_config");
    mq_json_write_string(w, "quant_method", "fp8");
    mq_json_write_string(w, "fmt", "e4m3");
    mq_json_write_string(w, "activation_scheme", "dynamic");
    mq_json_write_array(w, "weight_block_size");
    mq_json_write_int(w, NULL, 128);
    mq_json_write_int(w, NULL, 128);
    mq_json_write_end_array(w);
    mq_json_write_array(w, "ignored_layers");
    mq_json_write_string(w, NULL, "model.decoder.self_attn.o_proj");
    mq_json_write_end_array(w);
    if (mx) {
        mq_json_write_string(w, "store_dtype", "mxfp4");
        mq_json_write_int(w, "mxfp4_block_size", 32);
    }
    mq_json_write_end_object(w);
}

static void layer_list(mq_json_writer *w, const char *key, const mq_maker *m, bool pattern)
{
    mq_json_write_array(w, key);
    for (int i = 0; i < m->layers; i++) {
        bool swa = i > 0 && i + 1 < m->layers && (i + 1) % m->full_every != 0;
        mq_json_write_int(w, NULL, pattern ? swa : i >= m->dense_layers);
    }
    mq_json_write_end_array(w);
}

void maker_config(mq_buf *out, const mq_maker *m)
{
    mq_json_writer w = mq_json_write_begin(out, 1);
    mq_json_write_object(&w, NULL);
    mq_json_write_array(&w, "architectures");
    mq_json_write_string(&w, NULL, m->fused ? "MiMoV2ForCausalLM" : "MiMoV2FlashForCausalLM");
    mq_json_write_end_array(&w);
    mq_json_write_string(&w, "model_type", m->fused ? "mimo_v2" : "mimo_v2_flash");
    integers(&w, m);
    mq_json_write_double(&w, "rope_theta", m->rope_theta);
    mq_json_write_double(&w, "swa_rope_theta", m->swa_rope_theta);
    mq_json_write_double(&w, "partial_rotary_factor", m->partial_rotary);
    mq_json_write_double(&w, "attention_value_scale", m->value_scale);
    mq_json_write_double(&w, "layernorm_epsilon", m->eps);
    mq_json_write_bool(&w, "add_swa_attention_sink_bias", m->swa_sink);
    mq_json_write_bool(&w, "add_full_attention_sink_bias", m->full_sink);
    mq_json_write_bool(&w, "attention_bias", false);
    mq_json_write_bool(&w, "tie_word_embeddings", false);
    mq_json_write_bool(&w, "norm_topk_prob", true);
    mq_json_write_null(&w, "n_shared_experts");
    mq_json_write_null(&w, "routed_scaling_factor");
    mq_json_write_string(&w, "hidden_act", "silu");
    mq_json_write_string(&w, "scoring_func", "sigmoid");
    mq_json_write_string(&w, "topk_method", "noaux_tc");
    mq_json_write_string(&w, "torch_dtype", "bfloat16");
    layer_list(&w, "moe_layer_freq", m, false);
    layer_list(&w, "hybrid_layer_pattern", m, true);
    if (m->fused)
        mq_json_write_string(&w, "attention_projection_layout", "fused_qkv");
    quantization(&w, m);
    mq_json_write_end_object(&w);
    mq_buf_str(out, "\n");
}

int maker_mask_token(const mq_maker *m)
{
    return m->vocab > 3 ? m->vocab - 3 : 0;
}

void maker_draft_config(mq_buf *out, const mq_maker *m)
{
    mq_json_writer w = mq_json_write_begin(out, 1);
    mq_json_write_object(&w, NULL);
    mq_json_write_string(&w, "model_type", "qwen3");
    mq_json_write_int(&w, "hidden_size", m->hidden);
    mq_json_write_int(&w, "intermediate_size", m->draft_intermediate);
    mq_json_write_int(&w, "num_hidden_layers", m->draft_layers);
    mq_json_write_int(&w, "num_attention_heads", m->draft_heads);
    mq_json_write_int(&w, "num_key_value_heads", m->draft_kv_heads);
    mq_json_write_int(&w, "head_dim", m->draft_head_dim);
    mq_json_write_double(&w, "partial_rotary_factor", 0.5);
    mq_json_write_double(&w, "rope_theta", 10000.0);
    mq_json_write_double(&w, "rms_norm_eps", m->eps);
    mq_json_write_int(&w, "block_size", 8);
    mq_json_write_int(&w, "sliding_window", m->draft_window);
    mq_json_write_int(&w, "num_target_layers", m->layers);
    mq_json_write_int(&w, "vocab_size", m->vocab);
    mq_json_write_bool(&w, "attention_bias", false);
    mq_json_write_string(&w, "hidden_act", "silu");
    mq_json_write_object(&w, "dflash_config");
    mq_json_write_array(&w, "target_layer_ids");
    for (int i = 0; i < m->draft_layers; i++)
        mq_json_write_int(&w, NULL, m->draft_layers == 1 ? 0 : i * (m->layers - 1) / (m->draft_layers - 1));
    mq_json_write_end_array(&w);
    mq_json_write_int(&w, "mask_token_id", maker_mask_token(m));
    mq_json_write_bool(&w, "use_swa", true);
    mq_json_write_int(&w, "swa_window_size", m->draft_window);
    mq_json_write_bool(&w, "attention_sink_bias", true);
    mq_json_write_double(&w, "attention_value_scale", 0.612);
    mq_json_write_end_object(&w);
    mq_json_write_end_object(&w);
    mq_buf_str(out, "\n");
}

/* ---- the mask embedding: a pickle in a zip ---- */

static void put(mq_buf *b, uint64_t v, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++) {
        uint8_t byte = (uint8_t)(i < 8 ? v >> (8 * i) : 0);
        mq_buf_append(b, &byte, 1);
    }
}

static uint32_t crc32_of(const mq_buf *b)
{
    uint32_t c = 0xffffffffu;
    for (int64_t i = 0; i < b->n_bytes; i++) {
        c ^= (uint8_t)b->data[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (0xedb88320u & (0u - (c & 1)));
    }
    return ~c;
}

/* Name and contents as a stored member; its directory entry goes to dir. */
static void member(mq_buf *zip, mq_buf *dir, const char *name, const mq_buf *data)
{
    uint64_t crc = crc32_of(data), n = (uint64_t)data->n_bytes, name_bytes = strlen(name), off = (uint64_t)zip->n_bytes;
    mq_buf_append(zip, "PK\3\4\0\0\0\0\0\0\0\0\0\0", 14);
    put(zip, crc, 4);
    put(zip, n, 4);
    put(zip, n, 4);
    put(zip, name_bytes, 2);
    put(zip, 0, 2);
    mq_buf_str(zip, name);
    mq_buf_append(zip, data->data, data->n_bytes);
    mq_buf_append(dir, "PK\1\2\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    put(dir, crc, 4);
    put(dir, n, 4);
    put(dir, n, 4);
    put(dir, name_bytes, 2);
    put(dir, 0, 12);
    put(dir, off, 4);
    mq_buf_str(dir, name);
}

static void text(mq_buf *b, const char *s)
{
    mq_buf_str(b, "X");
    put(b, strlen(s), 4);
    mq_buf_str(b, s);
}

static void integer(mq_buf *b, int v)
{
    mq_buf_str(b, "J");
    put(b, (uint64_t)v, 4);
}

void maker_mask_pt(mq_buf *out, int mask_token, const uint16_t *embedding, int hidden)
{
    mq_buf pkl = mq_buf_empty(), data = mq_buf_empty(), dir = mq_buf_empty();
    mq_buf_str(&pkl, "\x80\x02}(");
    text(&pkl, "mask_token_id");
    integer(&pkl, mask_token);
    text(&pkl, "embedding");
    mq_buf_str(&pkl, "ctorch._utils\n_rebuild_tensor_v2\n((");
    text(&pkl, "storage");
    mq_buf_str(&pkl, "ctorch\nBFloat16Storage\n");
    text(&pkl, "0");
    text(&pkl, "cpu");
    integer(&pkl, hidden);
    mq_buf_append(&pkl, "tQK\0", 4);
    integer(&pkl, hidden);
    mq_buf_str(&pkl, "\x85K\x01\x85\x89" "ccollections\nOrderedDict\n)RtRu.");
    mq_buf_append(&data, embedding, 2 * (int64_t)hidden);
    member(out, &dir, "mask_embedding/data.pkl", &pkl);
    member(out, &dir, "mask_embedding/data/0", &data);
    uint64_t dir_off = (uint64_t)out->n_bytes;
    mq_buf_append(out, dir.data, dir.n_bytes);
    mq_buf_append(out, "PK\5\6\0\0\0\0\2\0\2\0", 12);
    put(out, (uint64_t)dir.n_bytes, 4);
    put(out, dir_off, 4);
    put(out, 0, 2);
    mq_buf_release(&pkl);
    mq_buf_release(&data);
    mq_buf_release(&dir);
}
