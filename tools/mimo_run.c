/* mimo-run: load a packed model (or a checkpoint, or make one up from a config) and write text: one
 * prompt, given tokens, or a benchmark. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/manifest.h"
#include "runtime/engine.h"
#include "src/file.h"
#include "src/tokenizer.h"
#include "tools/cli.h"
#include "tools/draft_report.h"
#include "tools/generate.h"
#include "tools/run_options.h"

enum {
    MAX_PROMPT_BYTES = 64 << 20,
    BENCH_PROMPT = 512,
    BENCH_TOKENS = 128
};

/* Everything one run holds. */
typedef struct run_state {
    mq_cli *cli;
    mq_run_options *o;
    const char *model; /* folder, or the config.json of a synthetic model */
    mq_bench bench;
    mq_engine *engine;
    mq_speculate *speculate;
    mq_tokenizer *tokenizer; /* NULL: no text */
    mq_tokens prompt;
    mq_generation generation;
    mq_cli_devices devices;
    int n_ranks; /* dealt */
    mq_progress *load_progress;
    int64_t loaded;
    double load_s;
} run_state;

static void on_load(void *ctx, int64_t done, int64_t total)
{
    run_state *r = ctx;
    (void)total;
    mq_progress_add(r->load_progress, done - r->loaded);
    r->loaded = done;
}

/* dir/tokenizer.json; token ids alone can do without. */
static mq_status open_tokenizer(run_state *r, const char *dir, mq_err *err)
{
    char *path = mq_path_join(dir, "tokenizer.json");
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = MQ_OK;
    if (!r->o->tokens_file || access(path, F_OK) == 0)
        st = mq_tokenizer_open(&r->tokenizer, path, err);
    else
        mq_cli_note(r->cli, "%s is not there: token ids instead of text", path);
    free(path);
    if (st == MQ_OK && !r->tokenizer && r->o->stops.n)
        st = mq_fail(err, MQ_E_ARG, "--stop needs a tokenizer.json in %s", dir);
    return st;
}

/* Memory that is free on the devices together. */
static mq_status available_bytes(int64_t *out, const mq_kernels *kernels, const mq_engine_options *o, mq_err *err)
{
    *out = 0;
    for (int i = 0; i == 0 || i < o->n_devices; i++) {
        mq_dev *dev;
        int64_t free_bytes = 0, total;
        MQ_TRY(kernels->dev_open(&dev, o->n_devices > 0 ? o->ordinals[i] : 0, 1, NULL, err));
        mq_status st = kernels->memory(dev, &free_bytes, &total, err);
        kernels->dev_close(dev);
        MQ_TRY(st);
        *out += free_bytes;
    }
    return MQ_OK;
}

/* --context; without it a benchmark at a long context asks for what it needs. */
static int64_t wanted_context(const mq_run_options *o)
{
    int64_t usual = 8192, need = o->bench_context_given ? o->bench_context + MQ_BENCH_ROWS : 0;
    return o->context || need <= usual ? o->context : need;
}

/* The table of operations of --device. */
static mq_status find_kernels(const mq_kernels **out, run_state *r, mq_err *err)
{
    const char *name;
    MQ_TRY(mq_cli_device(&name, &r->devices, r->o->device, err));
    *out = mq_kernels_find(name);
    return MQ_OK;
}

/* The ranks a packed model is cut for; 0 for a checkpoint. */
static mq_status packed_ranks(int *out, const char *dir, mq_err *err)
{
    mq_packed *p;
    char *manifest = mq_path_join(dir, "manifest.json");
    *out = 0;
    if (!manifest)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    bool there = mq_path_exists(manifest);
    free(manifest);
    if (!there)
        return MQ_OK;
    MQ_TRY(mq_packed_open(&p, dir, err));
    *out = p->plan->n_ranks;
    mq_packed_close(p);
    return MQ_OK;
}

static int largest_divisor(int n, int most)
{
    int d = n < most ? n : most;
    while (n % d != 0)
        d--;
    return d;
}

/* How many ranks, on how many of the devices: without --ranks as many as there are devices, if the packed model can be cut so. */
static mq_status deal_ranks(mq_engine_options *out, run_state *r, const char *dir, mq_err *err)
{
    bool is_alone = out->synthetic && out->synthetic->only_rank >= 0; /* takes one device */
    int n = is_alone && r->devices.n > 1 ? 1 : r->devices.n < MQ_ENGINE_DEVICES ? r->devices.n : MQ_ENGINE_DEVICES;
    out->ordinals = r->devices.ordinals;
    out->n_devices = n;
    if (n > 1 && out->n_ranks == 0) {
        int packed = 0;
        if (!out->synthetic)
            MQ_TRY(packed_ranks(&packed, dir, err));
        out->n_ranks = packed ? largest_divisor(packed, n) : n;
    }
    r->n_ranks = out->n_ranks > 0 ? out->n_ranks : 1;
    out->n_ranks = r->n_ranks;
    if (n > 1)
        out->n_devices = largest_divisor(out->n_ranks, n);
    return MQ_OK;
}

/* The same for a run and for --dry-run.  Without --memory the budget is what is free. */
static mq_status engine_options(mq_engine_options *out, run_state *r, const mq_kernels *kernels,
                                const char *dir, mq_err *err)
{
    const char *draft = r->o->draft;
    *out = (mq_engine_options){.n_ranks = (int)r->o->ranks,
                               .n_threads = (int)r->o->threads,
                               .context = wanted_context(r->o),
                               .synthetic = r->o->config ? &r->o->synthetic : NULL,
                               .prefill_rows = MQ_GENERATE_PREFILL_ROWS,
                               .memory_bytes = r->o->memory,
                               .draft = !draft                         ? MQ_DRAFT_NONE
                                        : strcmp(draft, "dflash") == 0 ? MQ_DRAFT_DFLASH
                                        : strcmp(draft, "mtp") == 0    ? MQ_DRAFT_MTP
                                                                       : MQ_DRAFT_NONE,
                               .draft_any = draft == NULL,
                               .progress = on_load,
                               .progress_ctx = r,
                               .verify = r->o->how_far,
                               .allreduce = r->o->allreduce_way,
                               .stopped = mq_cli_stopped,
                               .precision = r->devices.cuda ? MQ_PRECISION_BF16 : MQ_PRECISION_F32};
    MQ_TRY(deal_ranks(out, r, dir, err));
    return r->o->memory ? MQ_OK : available_bytes(&out->memory_bytes, kernels, out, err);
}

static mq_status open_engine(run_state *r, const char *dir, mq_err *err)
{
    const mq_kernels *kernels;
    MQ_TRY(find_kernels(&kernels, r, err));
    mq_engine_bytes plan;
    mq_engine_options options;
    MQ_TRY(engine_options(&options, r, kernels, dir, err));
    if (!r->o->memory && strcmp(kernels->name, "cpu") != 0)
        options.memory_bytes = 0; /* the engine asks the device, and says what a rank needs */
    MQ_TRY(mq_engine_plan(&plan, dir, kernels, &options, err));
    /* The first device speaks for all. */
    int64_t spoken_of = options.n_devices > 1 ? plan.weights / options.n_devices : plan.weights;
    MQ_TRY(mq_progress_create(&r->load_progress, r->cli, "loading", spoken_of, "B", err));
    double start = mq_cli_now();
    mq_status st = mq_engine_open(&r->engine, dir, kernels, &options, err);
    if (st == MQ_E_STOPPED)
        st = mq_cli_check_stop(err); /* which signal it was */
    r->load_s = mq_cli_now() - start;
    mq_progress_free(r->load_progress);
    r->load_progress = NULL;
    const mq_speculate_options so = {.width = r->o->width,
                                     .no_experts = !r->o->bench && !r->cli->json_path,
                                     .synthetic = r->o->synthetic_acceptance_given ? r->o->synthetic_acceptance : 0.0,
                                     .synthetic_seed = (uint64_t)r->o->seed};
    return st == MQ_OK ? mq_speculate_create(&r->speculate, r->engine, &so, err) : st;
}

/* How fast a packed model was read, and how much of it was checked; "" for a checkpoint. */
static void load_text(char out[120], const run_state *r)
{
    const mq_load_figures f = mq_engine_loaded(r->engine);
    out[0] = 0;
    if (f.n_records)
        snprintf(out, 120, ", files at %.2f GB/s, digests of %lld of %lld records compared",
                 f.seconds > 0 ? 1e-9 * (double)f.read_bytes / f.seconds : 0.0,
                 (long long)f.n_checked, (long long)f.n_records);
}

static mq_draft_report draft_report(const run_state *r)
{
    return (mq_draft_report){.model = mq_engine_model(r->engine),
                             .figures = mq_speculate_get_figures(r->speculate),
                             .kind = mq_engine_draft_kind(r->engine),
                             .width = mq_speculate_width(r->speculate)->fixed,
                             .synthetic = r->o->synthetic_acceptance_given ? r->o->synthetic_acceptance : 0.0};
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
            st = mq_fail(err, MQ_E_FORMAT, "%s: element %lld is not a token id", path,
                         (long long)out->n);
        else
            st = mq_tokens_append(out, (int32_t)id, err);
    }
    mq_json_free(doc);
    return st;
}

static mq_status read_prompt(run_state *r, mq_err *err)
{
    const mq_run_options *o = r->o;
    mq_status st = MQ_OK;
    if (o->tokens_file) {
        st = read_tokens(&r->prompt, o->tokens_file, err);
    } else if (o->prompt) {
        st = mq_tokenizer_encode(r->tokenizer, &r->prompt, o->prompt, (int64_t)strlen(o->prompt),
                                 true, err);
        st = mq_wrap(err, st, "--prompt");
    } else {
        mq_buf text = mq_buf_empty();
        st = mq_file_load(&text, o->prompt_file, MAX_PROMPT_BYTES, err);
        if (st == MQ_OK && text.n_bytes)
            st = mq_wrap(
                err,
                mq_tokenizer_encode(r->tokenizer, &r->prompt, text.data, text.n_bytes, true, err),
                "%s", o->prompt_file);
        mq_buf_release(&text);
    }
    if (st == MQ_OK && r->prompt.n == 0)
        st = mq_fail(err, MQ_E_ARG, "the prompt is empty");
    return st;
}

/* Print a piece of text as it comes. */
static mq_status show(void *ctx, const mq_buf *piece, mq_err *err)
{
    (void)ctx;
    if (fwrite(piece->data, 1, (size_t)piece->n_bytes, stdout) != (size_t)piece->n_bytes ||
        fflush(stdout) != 0)
        return mq_fail(err, MQ_E_IO, "stdout: %s", strerror(errno));
    return MQ_OK;
}

/* Fixed work: a prompt of pseudo-random ids, then greedy tokens; the text means nothing. */
static mq_status prepare_bench(run_state *r, mq_err *err)
{
    const mq_model *m = mq_engine_model(r->engine);
    const mq_bench_options *measure = &r->o->measure;
    int64_t room = mq_engine_context(r->engine);
    int64_t n_prompt = measure->n_prompts ? measure->prompts[0] : BENCH_PROMPT;
    if (!r->o->max_tokens_given)
        r->o->max_tokens = BENCH_TOKENS;
    r->o->ignore_eos = true;
    if (r->prompt.n)
        return MQ_OK;
    if (n_prompt > room - r->o->max_tokens)
        n_prompt = room - r->o->max_tokens;
    if (n_prompt < 1)
        return mq_fail(err, MQ_E_ARG,
                       "--bench: %lld tokens leave no room for a prompt in a context of %lld",
                       (long long)r->o->max_tokens, (long long)room);
    return mq_bench_tokens(&r->prompt, m->vocab, n_prompt, measure->seed, err);
}

static double rate(int64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0.0;
}

/* The text as a JSON string; a NUL, which C strings and many readers of JSON end at, becomes
 * U+FFFD. */
static void report_text(mq_json_writer *w, const mq_buf *text)
{
    mq_buf clean = mq_buf_empty();
    for (int64_t at = 0; at < text->n_bytes;) {
        const char *from = text->data + at, *nul = memchr(from, 0, (size_t)(text->n_bytes - at));
        int64_t n = nul ? nul - from : text->n_bytes - at;
        mq_buf_append(&clean, from, n);
        if (nul)
            mq_buf_str(&clean, "\xef\xbf\xbd");
        at += n + (nul != NULL);
    }
    mq_json_write_string(w, "text", clean.data ? clean.data : "");
    w->b->nomem = w->b->nomem || clean.nomem;
    mq_buf_release(&clean);
}

static void report_json(run_state *r)
{
    const mq_generation *g = &r->generation;
    mq_json_writer *w = &r->cli->json;
    mq_json_write_string(w, "model", r->model);
    mq_json_write_string(w, "device", mq_engine_device_name(r->engine));
    mq_json_write_int(w, "ranks", r->n_ranks);
    mq_json_write_int(w, "seed", r->o->seed);
    mq_json_write_int(w, "weight_bytes", mq_engine_weight_bytes(r->engine));
    mq_json_write_int(w, "context", mq_engine_context(r->engine));
    mq_json_write_double(w, "load_seconds", r->load_s);
    const mq_load_figures loaded = mq_engine_loaded(r->engine);
    mq_json_write_double(w, "load_read_seconds", loaded.seconds);
    mq_json_write_int(w, "load_read_bytes", loaded.read_bytes);
    mq_json_write_int(w, "load_direct_bytes", loaded.direct_bytes);
    mq_json_write_int(w, "load_records", loaded.n_records);
    mq_json_write_int(w, "load_records_checked", loaded.n_checked);
    mq_json_write_int(w, "prompt_tokens", r->prompt.n);
    mq_json_write_int(w, "tokens", g->output.n);
    mq_json_write_double(w, "prompt_tok_per_s", rate(r->prompt.n, g->prefill_s));
    mq_json_write_double(w, "tok_per_s", rate(g->n_decoded, g->decode_s));
    mq_json_write_double(w, "ttft_ms", 1e3 * g->first_token_s);
    mq_json_write_double(w, "itl_ms_p50", g->itl_ms_p50);
    mq_json_write_double(w, "itl_ms_p99", g->itl_ms_p99);
    const mq_draft_report draft = draft_report(r);
    mq_draft_report_json(w, &draft);
    if (r->o->bench)
        mq_bench_json(w, &r->bench, r->engine);
    mq_json_write_string(w, "finish_reason", g->finish_reason);
    if (r->tokenizer)
        report_text(w, &g->text);
    mq_json_write_array(w, "output_tokens");
    for (int64_t i = 0; i < g->output.n; i++)
        mq_json_write_int(w, NULL, g->output.ids[i]);
    mq_json_write_end_array(w);
}

static void print_bench(const run_state *r)
{
    const mq_generation *g = &r->generation;
    char weights[32];
    mq_cli_bytes_text(weights, mq_engine_weight_bytes(r->engine));
    for (int i = 0; i < mq_engine_n_devices(r->engine); i++)
        printf("device        %s\n", mq_engine_nth_device_name(r->engine, i));
    printf("ranks         %d\n", r->n_ranks);
    printf("weights       %s\n", weights);
    char load[120];
    load_text(load, r);
    printf("load          %.2f s%s\n", r->load_s, load);
    printf("context       %lld\n", (long long)mq_engine_context(r->engine));
    printf("seed          %lld\n", (long long)r->o->seed);
    mq_bench_print(&r->bench, r->engine);
    printf("prompt        %lld tokens, %.1f tokens/s\n", (long long)r->prompt.n,
           rate(r->prompt.n, g->prefill_s));
    printf("first token   %.2f ms\n", 1e3 * g->first_token_s);
    printf("decode        %lld tokens in %lld steps, %.1f tokens/s, %.3f ms a token (p99 %.3f ms)\n",
           (long long)g->n_decoded, (long long)mq_speculate_get_figures(r->speculate)->n_steps,
           rate(g->n_decoded, g->decode_s), g->itl_ms_p50, g->itl_ms_p99);
    const mq_draft_report draft = draft_report(r);
    mq_draft_report_print(&draft);
}

/* What people see behind the streamed text: the benchmark's table, or ids where there is no text.
 */
static void print_end(const run_state *r)
{
    const mq_generation *g = &r->generation;
    if (r->o->bench) {
        print_bench(r);
        return;
    }
    for (int64_t i = 0; !r->tokenizer && i < g->output.n; i++)
        printf("%s%d", i ? " " : "", g->output.ids[i]);
    putchar('\n');
    fflush(stdout); /* before the note behind it; a failure is seen by mq_cli_finish */
}

/* Bytes that a run would take, from headers alone, and whether they fit. */
static mq_status dry_run(run_state *r, const char *dir, mq_err *err)
{
    mq_engine_options options;
    const mq_kernels *kernels;
    mq_engine_bytes b;
    MQ_TRY(find_kernels(&kernels, r, err));
    MQ_TRY(engine_options(&options, r, kernels, dir, err));
    MQ_TRY(mq_engine_plan(&b, dir, kernels, &options, err));
    int64_t room = options.memory_bytes, need = b.weights + b.cache + b.workspace + b.drafter;
    int64_t reserve = r->o->memory ? 0 : b.reserve; /* as the engine asks: of what is free */
    need += reserve;
    mq_json_write_int(&r->cli->json, "weight_bytes", b.weights);
    mq_json_write_int(&r->cli->json, "context", b.context);
    mq_json_write_int(&r->cli->json, "cache_bytes", b.cache);
    mq_json_write_int(&r->cli->json, "workspace_bytes", b.workspace);
    mq_json_write_string(&r->cli->json, "draft", mq_draft_kind_name(b.draft));
    mq_json_write_int(&r->cli->json, "drafter_bytes", b.drafter);
    mq_json_write_int(&r->cli->json, "reserve_bytes", reserve);
    mq_json_write_int(&r->cli->json, "available_bytes", room);
    mq_json_write_bool(&r->cli->json, "fits", room <= 0 || need <= room);
    if (mq_cli_text(r->cli)) {
        char text[7][32];
        const int64_t values[7] = {b.weights, b.cache, b.workspace, b.drafter, need, room, reserve};
        for (int i = 0; i < 7; i++)
            mq_cli_bytes_text(text[i], values[i]);
        printf("weights       %s%s\ncache         %s for a context of %lld\nworkspace     %s\n",
               text[0], b.draft ? ", the drafter's included" : "", text[1], (long long)b.context,
               text[2]);
        printf("drafter       %s (%s)\n", text[3], mq_draft_kind_name(b.draft));
        if (reserve)
            printf("reserve       %s for libraries, code and graphs\n", text[6]);
        printf("in all        %s\navailable     %s\n", text[4], text[5]);
    }
    if (room > 0 && need > room)
        return mq_fail(err, MQ_E_NOMEM, "%s needs %lld bytes of memory, %lld are available", dir,
                       (long long)need, (long long)room);
    return MQ_OK;
}

static mq_status generate(run_state *r, mq_err *err)
{
    const mq_run_options *o = r->o;
    const mq_generate_options options = {
        .max_tokens = o->max_tokens,
        .sampling = {(float)o->temperature, (int)o->top_k, (float)o->top_p, (uint64_t)o->seed},
        .ignore_eos = o->ignore_eos,
        .stops = o->stops.items,
        .n_stops = o->stops.n,
        .show = mq_cli_text(r->cli) ? show : NULL,
    };
    mq_status st =
        mq_generate(&r->generation, r->engine, r->speculate, r->tokenizer, &r->prompt, &options,
                    r->cli, err);
    const mq_generation *g = &r->generation;
    if (g->output.n || st == MQ_OK)
        report_json(r); /* also what came before a signal or a closed stdout */
    if (mq_cli_text(r->cli) && (st == MQ_OK || (g->text.n_bytes && st != MQ_E_IO)))
        print_end(r);
    if (st == MQ_OK && !o->bench) {
        char line[160];
        const mq_draft_report draft = draft_report(r);
        mq_draft_report_line(line, &draft);
        mq_cli_note(r->cli,
                    "%lld prompt tokens at %.0f tokens/s, %lld tokens at %.1f tokens/s, %s%s",
                    (long long)r->prompt.n, rate(r->prompt.n, g->prefill_s), (long long)g->output.n,
                    rate(g->n_decoded, g->decode_s), mq_engine_device_name(r->engine), line);
    }
    return st;
}

static mq_status run(run_state *r, mq_err *err)
{
    mq_run_options *o = r->o;
    const char *name;
    MQ_TRY(mq_run_options_check(o, r->cli->n_args, r->cli->usage, err));
    const char *dir = r->model = o->config ? o->config : r->cli->args[0];
    MQ_TRY(mq_cli_device(&name, NULL, o->device, err));
    if (o->dry_run)
        return dry_run(r, dir, err);
    if (!o->config && (!o->bench || o->prompt || o->prompt_file))
        MQ_TRY(open_tokenizer(r, dir, err));
    if (o->prompt || o->prompt_file || o->tokens_file)
        MQ_TRY(read_prompt(r, err));
    MQ_TRY(open_engine(r, dir, err));
    char load[120];
    load_text(load, r);
    if (o->how_far != MQ_VERIFY_FULL && load[0])
        mq_cli_note(r->cli, "loaded in %.2f s%s", r->load_s, load);
    mq_cli_warn_lines(r->cli, &mq_engine_model(r->engine)->warnings);
    MQ_TRY(mq_cli_check_stop(err));
    if (o->bench) { /* its table alone, no text */
        mq_tokenizer_close(r->tokenizer);
        r->tokenizer = NULL;
        MQ_TRY(prepare_bench(r, err));
        MQ_TRY(mq_bench_run(&r->bench, r->engine, &o->measure, r->cli, err));
    }
    return generate(r, err);
}

int main(int argc, char **argv)
{
    mq_run_options o = {
        .max_tokens = 256, .top_p = 1.0, .seed = 0, .bench_steps = 16, .bench_repeats = 3};
    const mq_opt opts[] = {
        {"prompt", MQ_OPT_STRING, &o.prompt, "TEXT", NULL, "continue this text", 0, 0, 0, 0, NULL},
        {"prompt-file", MQ_OPT_STRING, &o.prompt_file, "FILE", NULL, "continue the text in FILE", 0,
         0, 0, 0, NULL},
        {"tokens", MQ_OPT_STRING, &o.tokens_file, "FILE.json", NULL,
         "continue an array of token ids", 0, 0, 0, 0, NULL},
        {"bench", MQ_OPT_FLAG, &o.bench, "", NULL, "measure prompt and decode speed", 0, 0, 0, 0,
         NULL},
        {"max-tokens", MQ_OPT_INT, &o.max_tokens, "N", NULL, "tokens to write (default 256)", 1,
         1 << 24, 0, 0, &o.max_tokens_given},
        {"temperature", MQ_OPT_DOUBLE, &o.temperature, "T", NULL, "0 is greedy (default 0)", 0, 0,
         0, 100, NULL},
        {"top-p", MQ_OPT_DOUBLE, &o.top_p, "P", NULL,
         "keep the smallest set of tokens with this probability (default 1)", 0, 0, 1e-6, 1, NULL},
        {"top-k", MQ_OPT_INT, &o.top_k, "K", NULL, "keep the K likeliest tokens (default 0: all)",
         0, 1 << 30, 0, 0, NULL},
        {"seed", MQ_OPT_INT, &o.seed, "N", NULL, "seed of the sampling noise (default 0)", 0,
         INT64_MAX, 0, 0, NULL},
        {"stop", MQ_OPT_LIST, &o.stops, "TEXT", NULL, "end before this text; may be repeated", 0, 0,
         0, 0, NULL},
        {"ignore-eos", MQ_OPT_FLAG, &o.ignore_eos, "", NULL, "go on after end tokens", 0, 0, 0, 0,
         NULL},
        {"ranks", MQ_OPT_INT, &o.ranks, "R", NULL,
         "logical ranks, a divisor of the packed ranks (default: as many as devices)", 1, 64, 0, 0, NULL},
        {"allreduce", MQ_OPT_STRING, &o.allreduce, "push|nccl", NULL,
         "how several GPUs add up (default push)", 0, 0, 0, 0, NULL},
        {"device", MQ_OPT_STRING, &o.device, "cpu|cuda[:0,1]", NULL, "where to run (default cpu)",
         0, 0, 0, 0, NULL},
        {"threads", MQ_OPT_INT, &o.threads, "N", NULL, "host threads (default: all processors)", 1,
         1024, 0, 0, NULL},
        {"context", MQ_OPT_INT, &o.context, "N", NULL,
         "positions to hold (default: the model's limit, at most 8192)", 1, 1 << 24, 0, 0, NULL},
        {"memory", MQ_OPT_SIZE, &o.memory, "BYTES", NULL, "refuse to start when more is needed (default: what is free)", 1,
         0, 0, 0, NULL},
        {"verify", MQ_OPT_STRING, &o.verify, "HOW", "full|sample|none",
         "which digests of a packed model to compare while loading (default full)", 0, 0, 0, 0, NULL},
        {"dry-run", MQ_OPT_FLAG, &o.dry_run, "", NULL, "bytes needed, and whether they fit", 0, 0,
         0, 0, NULL},
        {"draft", MQ_OPT_STRING, &o.draft, "NAME", "dflash|mtp|none",
         "who guesses tokens ahead (default: the best the model has)", 0, 0, 0, 0, NULL},
        {"draft-width", MQ_OPT_STRING, &o.draft_width, "N|auto", NULL,
         "tokens a step checks, 1 to 8 (default auto)", 0, 0, 0, 0, NULL},
        {"synthetic-acceptance", MQ_OPT_DOUBLE, &o.synthetic_acceptance, "X", NULL,
         "with --bench: X tokens a full step, drawn", 0, 0, 1, MQ_SPECULATE_ROWS,
         &o.synthetic_acceptance_given},
        {"bench-prompt", MQ_OPT_STRING, &o.bench_prompt, "N,...", NULL,
         "prompt lengths to measure (default 512)", 0, 0, 0, 0, NULL},
        {"bench-widths", MQ_OPT_STRING, &o.bench_widths, "N,...", NULL,
         "rows of a step to measure (default 1,2,4,8)", 0, 0, 0, 0, NULL},
        {"bench-steps", MQ_OPT_INT, &o.bench_steps, "N", NULL,
         "steps of each width in a round (default 16)", 1, 100000, 0, 0, &o.bench_steps_given},
        {"bench-repeats", MQ_OPT_INT, &o.bench_repeats, "N", NULL,
         "rounds, and runs of a prompt (default 3)", 1, 1000, 0, 0, &o.bench_repeats_given},
        {"bench-context", MQ_OPT_INT, &o.bench_context, "N", NULL,
         "positions before a step (default: the prompt's)", 0, 1 << 24, 0, 0,
         &o.bench_context_given},
        {"synthetic", MQ_OPT_STRING, &o.config, "CONFIG.json", NULL,
         "in place of MODEL: weights made up for this config", 0, 0, 0, 0, NULL},
        {"synthetic-experts", MQ_OPT_STRING, &o.synthetic_experts, "int4:G|mxfp4", NULL,
         "how made up experts are stored (default int4:64)", 0, 0, 0, 0, NULL},
        {"synthetic-drafter", MQ_OPT_STRING, &o.drafter, "CONFIG.json", NULL,
         "with --synthetic: a DFlash drafter too", 0, 0, 0, 0, NULL},
        {"layers", MQ_OPT_INT, &o.layers, "N", NULL,
         "with --synthetic: the first N layers (default all)", 1, MQ_MAX_LAYERS, 0, 0,
         &o.layers_given},
        {"only-rank", MQ_OPT_INT, &o.only_rank, "R", NULL,
         "with --synthetic: hold rank R alone; the others answer as it does", 0, 63, 0, 0,
         &o.only_rank_given},
        {"chat", MQ_OPT_LATER, NULL, "", NULL, "interactive, through the chat template", 0, 0, 0, 0,
         NULL},
        {"serve", MQ_OPT_LATER, NULL, "", NULL, "OpenAI-compatible server", 0, 0, 0, 0, NULL},
        {"host", MQ_OPT_LATER, NULL, "ADDRESS", NULL, "address of --serve", 0, 0, 0, 0, NULL},
        {"port", MQ_OPT_LATER, NULL, "N", NULL, "port of --serve", 0, 0, 0, 0, NULL},
        {"api-key-file", MQ_OPT_LATER, NULL, "FILE", NULL, "keys of --serve", 0, 0, 0, 0, NULL},
    };
    mq_cli cli = {.tool = "mimo-run",
                  .usage = "[options] MODEL | --synthetic CONFIG.json",
                  .summary = "Runs a packed model, or a checkpoint in its own precision.",
                  .opts = opts,
                  .n_opts = (int)(sizeof opts / sizeof opts[0]),
                  .n_args_min = 0,
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
    mq_speculate_free(r.speculate);
    mq_engine_close(r.engine);
    mq_tokenizer_close(r.tokenizer);
    mq_tokens_release(&r.prompt);
    mq_generation_release(&r.generation);
    return mq_cli_finish(&cli, st, -1, &err);
}
