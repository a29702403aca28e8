/* mimo-verify: reads options, calls mq_verify, ends with its status. */
#include <string.h>

#include "tools/cli.h"
#include "tools/verify.h"

int main(int argc, char **argv)
{
    mq_verify_options o = {.max_weight_error = 0.5};
    int64_t n_threads = 0;
    const char *precision = NULL;
    const mq_opt opts[] = {
        {"source", MQ_OPT_STRING, &o.source, "CHECKPOINT", NULL,
         "compare weights with the checkpoint it was made from", 0, 0, 0, 0, NULL},
        {"list", MQ_OPT_FLAG, &o.list, "", NULL, "list files, records, schemes and sizes", 0, 0, 0,
         0, NULL},
        {"text", MQ_OPT_STRING, &o.text, "FILE", NULL,
         "perplexity on this text; with --source also KL and top-1", 0, 0, 0, 0, NULL},
        {"window", MQ_OPT_INT, &o.window, "N", NULL,
         "tokens of a window (default 2048 or the model's limit)", 1, 1 << 24, 0, 0, NULL},
        {"windows", MQ_OPT_INT, &o.n_windows, "N", NULL,
         "number of windows (default 32, or what the text holds)", 1, 1 << 24, 0, 0, NULL},
        {"max-ppl-increase", MQ_OPT_DOUBLE, &o.max_ppl_increase, "PCT", NULL,
         "exit 1 when perplexity rises more", 0, 0, -100, 1e9, &o.has_max_ppl_increase},
        {"max-kl", MQ_OPT_DOUBLE, &o.max_kl, "X", NULL,
         "exit 1 when the mean KL divergence is larger", 0, 0, 0, 1e9, &o.has_max_kl},
        {"min-top1", MQ_OPT_DOUBLE, &o.min_top1, "X", NULL,
         "exit 1 when the top-1 agreement is smaller", 0, 0, 0, 1, &o.has_min_top1},
        {"max-weight-error", MQ_OPT_DOUBLE, &o.max_weight_error, "X", NULL,
         "exit 1 when an expert's relative RMS error is larger (default 0.5)", 0, 0, 0, 1e9,
         &o.has_max_weight_error},
        {"threads", MQ_OPT_INT, &n_threads, "N", NULL, "host threads (default: all processors)", 1,
         1024, 0, 0, NULL},
        {"memory", MQ_OPT_SIZE, &o.memory_bytes, "BYTES", NULL,
         "budget (default: half of the machine's memory, and what is free on a GPU)", 1 << 20, 0, 0, 0, NULL},
        {"device", MQ_OPT_STRING, &o.device, "cpu|cuda[:0,1]", NULL, "where to run (default cpu)",
         0, 0, 0, 0, NULL},
        {"precision", MQ_OPT_STRING, &precision, "NAME", "f32|bf16",
         "inputs of products; bf16: as mimo-run on a GPU (default f32)", 0, 0, 0, 0, NULL},
        {"save-logits", MQ_OPT_LATER, NULL, "FILE", NULL, "write a compact reference", 0, 0, 0, 0,
         NULL},
        {"logits", MQ_OPT_LATER, NULL, "FILE", NULL, "compare with a compact reference", 0, 0, 0, 0,
         NULL},
        {"report", MQ_OPT_LATER, NULL, "FILE.html", NULL, "report for people", 0, 0, 0, 0, NULL},
        {"junit", MQ_OPT_LATER, NULL, "FILE", NULL, "report for pipelines", 0, 0, 0, 0, NULL},
        {"public-key", MQ_OPT_LATER, NULL, "FILE", NULL, "check a signature", 0, 0, 0, 0, NULL},
    };
    mq_cli cli = {
        .tool = "mimo-verify",
        .usage = "[options] PACKED",
        .summary =
            "Proves a packed model: hashes, structure, weights and quality against its source.",
        .opts = opts,
        .n_opts = (int)(sizeof opts / sizeof opts[0]),
        .n_args_min = 1,
        .n_args_max = 1};
    mq_err err = {MQ_OK, ""};
    bool done, missed = false;
    mq_cli_catch_signals();
    mq_status st = mq_cli_parse(&cli, argc, argv, &done, &err);
    if (st == MQ_OK && !done) {
        o.packed = cli.args[0];
        o.n_threads = (int)n_threads;
        o.bf16 = precision && strcmp(precision, "bf16") == 0;
        st = mq_verify(&missed, &o, &cli, &err);
    }
    if (done)
        cli.json_path = NULL;
    return mq_cli_finish(&cli, st, missed ? 1 : -1, &err);
}
