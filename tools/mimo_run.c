/* mimo-run: load a packed model (or a checkpoint) and write text: one prompt, given tokens, or a benchmark. */
#include <stdlib.h>
#include <string.h>

#include "runtime/engine.h"
#include "src/file.h"
#include "src/tokenizer.h"
#include "tools/cli.h"
#include "tools/text_out.h"

enum { MAX_PROMPT_BYTES = 64 << 20, BENCH_PROMPT = 512, BENCH_TOKENS = 128 };

typedef struct run_options {
    const char *prompt, *prompt_file, *tokens_file, *device, *draft;
    bool bench, ignore_eos, dry_run;
    int64_t max_tokens, top_k, seed, ranks, threads, context, memory;
    double temperature, top_p;
    mq_opt_list stops;
    bool max_tokens_given, temperature_given, top_p_given;
} run_options;

/* Everything one run holds. */
typedef struct run_state {
    mq_cli *cli;
    run_options *o;
    mq_engine *engine;
    mq_tokenizer *tokenizer;
    mq_tokens prompt, output;
    mq_text_out text;
    mq_progress *load_progress;
    int64_t loaded;
    double load_s, prefill_s, decode_s, first_token_s;
    const char *finish_reason;
} run_state;

static void on_load(void *ctx, int64_t done, int64_t total)
{
    run_state *r = ctx;
    (void)total;
    mq_progress_add(r->load_progress, done - r->loaded);
    r->loaded = done;
}

static mq_status open_tokenizer(run_state *r, const char *dir, mq_err *err)
{
    char *path = mq_path_join(dir, "tokenizer.json");
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = mq_tokenizer_open(&r->tokenizer, path, err);
    free(path);
    return st;
}

static mq_status open_engine(run_state *r, const char *dir, mq_err *err)
{
    const char *name;
    MQ_TRY(mq_cli_device(&name, r->o->device, err));
    int64_t resident, streaming;
    MQ_TRY(mq_store_plan_bytes(&resident, &streaming, dir, err));
    MQ_TRY(mq_progress_create(&r->load_progress, r->cli, "loading", resident, "B", err));
    mq_engine_options options = {.n_ranks = (int)r->o->ranks,
                                 .n_threads = (int)r->o->threads,
                                 .context = r->o->context,
                                 .memory_bytes = r->o->memory,
                                 .progress = on_load,
                                 .progress_ctx = r};
    double start = mq_cli_now();
    mq_status st = mq_engine_open(&r->engine, dir, mq_kernels_find(name), &options, err);
    r->load_s = mq_cli_now() - start;
    mq_progress_free(r->load_progress);
    r->load_progress = NULL;
    return st;
}

/* A JSON array of token ids, or an object with a member "tokens" of that form. */
static mq_status read_tokens(mq_tokens *out, const char *path, mq_err *err)
{
    mq_json *doc;
    MQ_TRY(mq_json_load(&doc, path, MAX_PROMPT_BYTES, 4, err));
    const mq_json_node *list = mq_json_root(doc);
    if (mq_json_type_of(list) == MQ_JSON_OBJECT)
        list = mq_json_find(list, "tokens");
    mq_status st = list && mq_json_type_of(list) == MQ_JSON_ARRAY
                       ? MQ_OK
                       : mq_fail(err, MQ_E_FORMAT, "%s: expected an array of token ids", path);
    const mq_json_node *n = st == MQ_OK ? mq_json_first(list) : NULL;
    for (; n && st == MQ_OK; n = mq_json_next(n)) {
        int64_t id;
        if (!mq_json_int(n, &id) || id < 0 || id > INT32_MAX)
            st = mq_fail(err, MQ_E_FORMAT, "%s: token %lld is not an id", path, (long long)out->n);
        else
            st = mq_tokens_append(out, (int32_t)id, err);
    }
    mq_json_free(doc);
    return st;
}

static mq_status read_prompt(run_state *r, mq_err *err)
{
    const run_options *o = r->o;
    if (o->tokens_file)
        return read_tokens(&r->prompt, o->tokens_file, err);
    if (o->prompt)
        return mq_tokenizer_encode(r->tokenizer, &r->prompt, o->prompt, (int64_t)strlen(o->prompt), true, err);
    mq_buf text = mq_buf_empty();
    mq_status st = mq_file_load(&text, o->prompt_file, MAX_PROMPT_BYTES, err);
    if (st == MQ_OK)
        st = mq_wrap(err, mq_tokenizer_encode(r->tokenizer, &r->prompt, text.data, text.n_bytes, true, err), "%s",
                     o->prompt_file);
    mq_buf_release(&text);
    return st;
}

static bool is_eos(const mq_model *m, int32_t token)
{
    for (int i = 0; i < m->n_eos; i++)
        if (m->eos[i] == token)
            return true;
    return false;
}

/* Print a piece of text as it comes, unless stdout carries the JSON object. */
static mq_status show(const run_state *r, const mq_buf *piece, mq_err *err)
{
    if (!piece->n_bytes || (r->cli->json_path && strcmp(r->cli->json_path, "-") == 0))
        return MQ_OK;
    if (fwrite(piece->data, 1, (size_t)piece->n_bytes, stdout) != (size_t)piece->n_bytes || fflush(stdout) != 0)
        return mq_fail(err, MQ_E_IO, "stdout cannot be written");
    return MQ_OK;
}

/* Sample until the limit, an end token or a stop string. */
static mq_status decode_loop(run_state *r, mq_buf *piece, mq_err *err)
{
    const run_options *o = r->o;
    const mq_model *m = mq_engine_model(r->engine);
    const mq_sampling sampling = {(float)o->temperature, (int)o->top_k, (float)o->top_p, (uint64_t)o->seed};
    r->finish_reason = "length";
    while (r->output.n < o->max_tokens) {
        MQ_TRY(mq_cli_check_stop(err));
        int32_t token;
        MQ_TRY(mq_engine_sample(r->engine, &token, 0, &sampling, err));
        if (r->output.n == 0)
            r->first_token_s = mq_cli_now();
        if (!o->ignore_eos && is_eos(m, token)) {
            r->finish_reason = "stop";
            break;
        }
        MQ_TRY(mq_tokens_append(&r->output, token, err));
        if (r->tokenizer) {
            MQ_TRY(mq_text_out_add(&r->text, piece, token, err));
            MQ_TRY(show(r, piece, err));
            if (r->text.stopped) {
                r->finish_reason = "stop";
                break;
            }
        }
        if (r->output.n == o->max_tokens)
            break;
        if (mq_engine_length(r->engine) == mq_engine_context(r->engine)) {
            r->finish_reason = "context";
            break;
        }
        MQ_TRY(mq_engine_step(r->engine, &token, 1, err));
    }
    return MQ_OK;
}

static mq_status generate(run_state *r, mq_err *err)
{
    if (r->prompt.n == 0)
        return mq_fail(err, MQ_E_ARG, "the prompt is empty");
    double start = mq_cli_now();
    MQ_TRY(mq_engine_prefill(r->engine, r->prompt.ids, r->prompt.n, err));
    double ready = mq_cli_now();
    r->prefill_s = ready - start;
    mq_buf piece = mq_buf_empty();
    if (r->tokenizer)
        r->text = mq_text_out_begin(r->tokenizer, r->o->stops.items, r->o->stops.n);
    mq_status st = decode_loop(r, &piece, err);
    if (st == MQ_OK && r->tokenizer) {
        st = mq_text_out_end(&r->text, &piece, err);
        if (st == MQ_OK)
            st = show(r, &piece, err);
    }
    r->decode_s = mq_cli_now() - ready;
    r->first_token_s -= start;
    mq_buf_release(&piece);
    return st;
}

/* Fixed work: a prompt of pseudo-random ids, then greedy tokens; the text means nothing. */
static mq_status prepare_bench(run_state *r, mq_err *err)
{
    const mq_model *m = mq_engine_model(r->engine);
    int64_t room = mq_engine_context(r->engine), n_prompt = BENCH_PROMPT;
    if (!r->o->max_tokens_given)
        r->o->max_tokens = BENCH_TOKENS;
    if (n_prompt + r->o->max_tokens > room)
        n_prompt = room - r->o->max_tokens;
    if (n_prompt < 1)
        return mq_fail(err, MQ_E_ARG, "--bench: %lld tokens leave no room for a prompt in a context of %lld",
                       (long long)r->o->max_tokens, (long long)room);
    if (r->prompt.n == 0) {
        uint64_t state = 0x9e3779b97f4a7c15ull;
        for (int64_t i = 0; i < n_prompt; i++) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            MQ_TRY(mq_tokens_append(&r->prompt, (int32_t)((state >> 33) % (uint64_t)m->vocab), err));
        }
    }
    r->o->ignore_eos = true;
    return MQ_OK;
}

static double rate(int64_t n, double seconds) { return seconds > 0 ? (double)n / seconds : 0.0; }

static void report(run_state *r)
{
    mq_json_writer *w = &r->cli->json;
    int64_t n_steps = r->output.n > 0 ? r->output.n - 1 : 0; /* the first token comes out of the prompt */
    mq_json_write_string(w, "model", r->cli->args[0]);
    mq_json_write_string(w, "device", mq_engine_device_name(r->engine));
    mq_json_write_int(w, "ranks", r->o->ranks ? r->o->ranks : 1);
    mq_json_write_int(w, "weight_bytes", mq_engine_weight_bytes(r->engine));
    mq_json_write_int(w, "context", mq_engine_context(r->engine));
    mq_json_write_double(w, "load_seconds", r->load_s);
    mq_json_write_int(w, "prompt_tokens", r->prompt.n);
    mq_json_write_int(w, "tokens", r->output.n);
    mq_json_write_double(w, "prompt_tok_per_s", rate(r->prompt.n, r->prefill_s));
    mq_json_write_double(w, "tok_per_s", rate(n_steps, r->decode_s));
    mq_json_write_double(w, "ttft_ms", 1e3 * r->first_token_s);
    mq_json_write_string(w, "finish_reason", r->finish_reason);
    if (r->tokenizer && r->text.all.data)
        mq_json_write_string(w, "text", r->text.all.data);
    mq_json_write_array(w, "output_tokens");
    for (int64_t i = 0; i < r->output.n; i++)
        mq_json_write_int(w, NULL, r->output.ids[i]);
    mq_json_write_end_array(w);
    if (!r->o->bench) {
        mq_cli_note(r->cli, "%lld prompt tokens at %.0f tokens/s, %lld tokens at %.1f tokens/s, %s", (long long)r->prompt.n,
                    rate(r->prompt.n, r->prefill_s), (long long)r->output.n, rate(n_steps, r->decode_s),
                    mq_engine_device_name(r->engine));
        return;
    }
    char weights[32];
    mq_cli_bytes_text(weights, mq_engine_weight_bytes(r->engine));
    if (r->cli->json_path && strcmp(r->cli->json_path, "-") == 0)
        return;
    printf("device        %s\nranks         %d\nweights       %s\nload          %.2f s\n", mq_engine_device_name(r->engine),
           r->o->ranks ? (int)r->o->ranks : 1, weights, r->load_s);
    printf("context       %lld\nprompt        %lld tokens, %.1f tokens/s\n", (long long)mq_engine_context(r->engine),
           (long long)r->prompt.n, rate(r->prompt.n, r->prefill_s));
    printf("decode        %lld steps of width 1, %.1f tokens/s, %.3f ms each\nfirst token   %.2f ms\n", (long long)n_steps,
           rate(n_steps, r->decode_s), n_steps ? 1e3 * r->decode_s / (double)n_steps : 0.0, 1e3 * r->first_token_s);
}

static mq_status dry_run(run_state *r, const char *dir, mq_err *err)
{
    int64_t resident, streaming, free_bytes = 0;
    MQ_TRY(mq_store_plan_bytes(&resident, &streaming, dir, err));
    char text[32];
    mq_cli_bytes_text(text, resident);
    FILE *meminfo = fopen("/proc/meminfo", "r");
    char line[128];
    while (meminfo && fgets(line, sizeof line, meminfo))
        if (sscanf(line, "MemAvailable: %ld kB", &free_bytes) == 1)
            break;
    if (meminfo)
        fclose(meminfo);
    free_bytes *= 1024;
    mq_json_write_int(&r->cli->json, "weight_bytes", resident);
    mq_json_write_int(&r->cli->json, "available_bytes", free_bytes);
    if (!(r->cli->json_path && strcmp(r->cli->json_path, "-") == 0)) {
        printf("weights on the CPU  %s\n", text);
        mq_cli_bytes_text(text, free_bytes);
        printf("memory available    %s\n", text);
    }
    if (free_bytes && resident > free_bytes)
        return mq_fail(err, MQ_E_NOMEM, "%s needs %lld bytes for its weights, %lld are available", dir,
                       (long long)resident, (long long)free_bytes);
    return MQ_OK;
}

static mq_status check_options(run_options *o, mq_err *err)
{
    int ways = (o->prompt != NULL) + (o->prompt_file != NULL) + (o->tokens_file != NULL);
    if (o->draft && strcmp(o->draft, "none") != 0)
        return mq_fail(err, MQ_E_ARG, "--draft %s: not built yet; use --draft none", o->draft);
    if (ways > 1)
        return mq_fail(err, MQ_E_ARG, "give one of --prompt, --prompt-file and --tokens");
    if (ways == 0 && !o->bench && !o->dry_run)
        return mq_fail(err, MQ_E_ARG, "nothing to do: give --prompt, --prompt-file, --tokens or --bench");
    if (o->stops.n && o->bench)
        return mq_fail(err, MQ_E_ARG, "--stop has no meaning with --bench");
    for (int i = 0; i < o->stops.n; i++)
        if (!o->stops.items[i][0])
            return mq_fail(err, MQ_E_ARG, "--stop: the text is empty");
    return MQ_OK;
}

static mq_status run(run_state *r, mq_err *err)
{
    run_options *o = r->o;
    const char *dir = r->cli->args[0];
    MQ_TRY(check_options(o, err));
    const char *name;
    MQ_TRY(mq_cli_device(&name, o->device, err));
    if (o->dry_run)
        return dry_run(r, dir, err);
    bool want_text = !o->bench || o->prompt || o->prompt_file;
    if (want_text)
        MQ_TRY(open_tokenizer(r, dir, err));
    if (o->prompt || o->prompt_file || o->tokens_file)
        MQ_TRY(read_prompt(r, err));
    MQ_TRY(open_engine(r, dir, err));
    if (o->bench)
        MQ_TRY(prepare_bench(r, err));
    bool text_wanted = !o->bench;
    if (!text_wanted) { /* a benchmark prints its table alone */
        mq_tokenizer_close(r->tokenizer);
        r->tokenizer = NULL;
    }
    MQ_TRY(generate(r, err));
    if (text_wanted && !(r->cli->json_path && strcmp(r->cli->json_path, "-") == 0))
        putchar('\n');
    report(r);
    return MQ_OK;
}

int main(int argc, char **argv)
{
    run_options o = {.max_tokens = 256, .top_p = 1.0, .seed = 0};
    const mq_opt opts[] = {
        {"prompt", MQ_OPT_STRING, &o.prompt, "TEXT", NULL, "continue this text", 0, 0, 0, 0, NULL},
        {"prompt-file", MQ_OPT_STRING, &o.prompt_file, "FILE", NULL, "continue the text in FILE", 0, 0, 0, 0, NULL},
        {"tokens", MQ_OPT_STRING, &o.tokens_file, "FILE.json", NULL, "continue an array of token ids", 0, 0, 0, 0, NULL},
        {"bench", MQ_OPT_FLAG, &o.bench, "", NULL, "measure prompt and decode speed", 0, 0, 0, 0, NULL},
        {"max-tokens", MQ_OPT_INT, &o.max_tokens, "N", NULL, "tokens to write (default 256)", 1, 1 << 24, 0, 0,
         &o.max_tokens_given},
        {"temperature", MQ_OPT_DOUBLE, &o.temperature, "T", NULL, "0 is greedy (default 0)", 0, 0, 0, 100, NULL},
        {"top-p", MQ_OPT_DOUBLE, &o.top_p, "P", NULL, "keep the smallest set of tokens with this probability (default 1)", 0,
         0, 1e-6, 1, NULL},
        {"top-k", MQ_OPT_INT, &o.top_k, "K", NULL, "keep the K likeliest tokens (default 0: all)", 0, 1 << 30, 0, 0, NULL},
        {"seed", MQ_OPT_INT, &o.seed, "N", NULL, "seed of the sampling noise (default 0)", 0, INT64_MAX, 0, 0, NULL},
        {"stop", MQ_OPT_LIST, &o.stops, "TEXT", NULL, "end before this text; may be repeated", 0, 0, 0, 0, NULL},
        {"ignore-eos", MQ_OPT_FLAG, &o.ignore_eos, "", NULL, "go on after end tokens", 0, 0, 0, 0, NULL},
        {"ranks", MQ_OPT_INT, &o.ranks, "R", NULL, "logical ranks, a divisor of the packed ranks (default 1)", 1, 64, 0, 0,
         NULL},
        {"device", MQ_OPT_STRING, &o.device, "cpu|cuda[:0,1]", NULL, "where to run (default cpu)", 0, 0, 0, 0, NULL},
        {"threads", MQ_OPT_INT, &o.threads, "N", NULL, "host threads (default: all processors)", 1, 1024, 0, 0, NULL},
        {"context", MQ_OPT_INT, &o.context, "N", NULL, "positions to hold (default: the model's limit, at most 8192)", 1,
         1 << 24, 0, 0, NULL},
        {"memory", MQ_OPT_SIZE, &o.memory, "BYTES", NULL, "refuse to start when more is needed", 1, 0, 0, 0, NULL},
        {"dry-run", MQ_OPT_FLAG, &o.dry_run, "", NULL, "bytes needed, and whether they fit", 0, 0, 0, 0, NULL},
        {"draft", MQ_OPT_STRING, &o.draft, "", "dflash|mtp|none", "speculative drafter (only none is built yet)", 0, 0, 0, 0,
         NULL},
        {"draft-width", MQ_OPT_LATER, NULL, "N|auto", NULL, "tokens per draft", 0, 0, 0, 0, NULL},
        {"chat", MQ_OPT_LATER, NULL, "", NULL, "interactive, through the chat template", 0, 0, 0, 0, NULL},
        {"serve", MQ_OPT_LATER, NULL, "", NULL, "OpenAI-compatible server", 0, 0, 0, 0, NULL},
        {"host", MQ_OPT_LATER, NULL, "ADDRESS", NULL, "address of --serve", 0, 0, 0, 0, NULL},
        {"port", MQ_OPT_LATER, NULL, "N", NULL, "port of --serve", 0, 0, 0, 0, NULL},
        {"api-key-file", MQ_OPT_LATER, NULL, "FILE", NULL, "keys of --serve", 0, 0, 0, 0, NULL},
    };
    mq_cli cli = {.tool = "mimo-run",
                  .usage = "[options] MODEL",
                  .summary = "Runs a packed model, or a checkpoint in its own precision.",
                  .opts = opts,
                  .n_opts = (int)(sizeof opts / sizeof opts[0]),
                  .n_args_min = 1,
                  .n_args_max = 1};
    run_state r = {.cli = &cli, .o = &o};
    mq_err err = {MQ_OK, ""};
    bool done;
    mq_cli_catch_signals();
    mq_status st = mq_cli_parse(&cli, argc, argv, &done, &err);
    if (st == MQ_OK && !done)
        st = run(&r, &err);
    if (done)
        cli.json_path = NULL;
    mq_engine_close(r.engine);
    mq_tokenizer_close(r.tokenizer);
    mq_text_out_release(&r.text);
    mq_tokens_release(&r.prompt);
    mq_tokens_release(&r.output);
    return mq_cli_finish(&cli, st, -1, &err);
}
