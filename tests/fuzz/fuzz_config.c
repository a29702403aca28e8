/* Noise into config.json and the drafter's keys: what is accepted has bounded, consistent geometry. */
#include <stdlib.h>
#include <string.h>

#include "src/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_attn(const mq_attn_geometry *a)
{
    if (a->n_heads < 1 || a->n_kv_heads < 1 || a->n_heads % a->n_kv_heads != 0 || a->head_dim < 1 ||
        a->v_head_dim < 1 || a->rotary_dims < 2 || a->rotary_dims > a->head_dim || a->rotary_dims % 2 != 0 ||
        !(a->rope_theta > 0) || a->window < 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    mq_json *doc;
    mq_model m;
    mq_err err;
    if (mq_json_parse(&doc, (const char *)data, (int64_t)n, 64, &err) != MQ_OK)
        return 0;
    mq_status st = mq_model_read(&m, doc, "fuzz", &err);
    mq_json_free(doc);
    if (st != MQ_OK) {
        if (strncmp(err.text, "fuzz", 4) != 0)
            abort();
        return 0;
    }
    check_attn(&m.full);
    check_attn(&m.swa);
    if (m.n_layers < 1 || m.n_layers > MQ_MAX_LAYERS || m.hidden < 1 || m.vocab < 1 || m.n_eos > MQ_MAX_EOS)
        abort();
    for (int i = 0; i < m.n_layers; i++)
        if ((m.is_moe[i] && (m.n_experts < 1 || m.n_experts_per_tok > m.n_experts)) || (m.is_swa[i] && m.swa.window < 1))
            abort();
    mq_model_release(&m);
    return 0;
}
