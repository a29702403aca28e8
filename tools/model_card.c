/* The model card: what this folder is, how it was made, what was lost, how to use and check it. */
#include "tools/model_card.h"

#include <string.h>

#include "tools/convert_report.h"

static void write_table(mq_buf *out, const mq_convert_job *job, int64_t bytes_in, int64_t bytes_out)
{
    const mq_model *m = &job->source->model;
    const mq_recipe *r = &job->recipe;
    char in[32], to[32];
    mq_cli_bytes_text(in, bytes_in);
    mq_cli_bytes_text(to, bytes_out);
    mq_buf_str(out, "| | |\n|---|---|\n");
    mq_buf_fmt(out, "| architecture | %s, %d layers, hidden size %d, %d experts of width %d, %d per token |\n",
               m->model_type, m->n_layers, m->hidden, m->n_experts, m->moe_intermediate, m->n_experts_per_tok);
    if (job->n_int4_layers)
        mq_buf_fmt(out, "| INT4 experts | %lld layers, symmetric, groups of %d, BF16 scales, method `%s` |\n",
                   (long long)job->n_int4_layers, r->group, r->method);
    if (r->calib.present) {
        char hex[MQ_SHA256_HEX];
        mq_sha256_hex(hex, r->calib.text);
        mq_buf_fmt(out, "| calibrated on | %lld tokens in windows of %lld, SHA-256 of the ids `%s` |\n",
                   (long long)r->calib.tokens, (long long)r->calib.window, hex);
        mq_buf_fmt(out, "| calibration | `%s`, seed %llu, on %s with %s and %s |\n", r->calib.options,
                   (unsigned long long)r->seed, r->backend, r->isa, r->calib.library);
    }
    if (job->n_mxfp4_layers)
        mq_buf_fmt(out, "| MXFP4 experts | %lld layers, carried over without loss |\n", (long long)job->n_mxfp4_layers);
    if (job->n_requantized_layers)
        mq_buf_fmt(out, "| quantized twice | %lld layers were MXFP4 in the source |\n",
                   (long long)job->n_requantized_layers);
    mq_buf_str(out, "| everything else | as in the source, bit for bit |\n");
    mq_buf_fmt(out, "| multi-token prediction | %d layers |\n| DFlash drafter | %s |\n", m->n_mtp,
               job->source->has_draft ? "included" : "none");
    mq_buf_fmt(out, "| cut for | %d rank%s |\n| compression | %s |\n", job->plan->n_ranks,
               job->plan->n_ranks == 1 ? "" : "s", r->compress);
    mq_buf_fmt(out, "| weight files | %s before, %s after |\n\n", in, to);
}

mq_status mq_model_card(mq_buf *out, const mq_convert_job *job, const mq_convert_done *done, int64_t bytes_in,
                        int64_t bytes_out, mq_err *err)
{
    mq_buf_str(out, "# Packed MiMo model\n\nA model of the MiMo-V2 family with routed experts in 4 bits, written by "
                    "`mimo-quantize` " MQ_VERSION ".\n\n");
    write_table(out, job, bytes_in, bytes_out);
    if (job->n_int4_layers) {
        mq_buf_str(out, "## Error of the quantized weights\n\nRoot mean square error relative to the source's weights, "
                        "over all quantized experts (`report.json` has every matrix):\n\n| projection | error |\n|---|---|\n");
        for (int p = 0; p < MQ_PROJ_COUNT; p++)
            mq_buf_fmt(out, "| %s | %.3f %% |\n", mq_convert_projection_name(p),
                       100.0 * mq_convert_rel_error(mq_convert_sum(job, done, -1, p)));
        mq_buf_str(out, "\n");
    }
    mq_buf_str(out, "## Use\n\n```\nmimo-verify .                      # hashes, structure, value ranges\n"
                    "mimo-verify --source CHECKPOINT .  # against the checkpoint it was made from\n"
                    "mimo-run --prompt \"...\" .\n```\n\n"
                    "`manifest.json` lists every file with its SHA-256, and the SHA-256 of every input file.\n");
    return mq_buf_status(out, err);
}
