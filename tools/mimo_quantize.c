/* mimo-quantize: a checkpoint of the MiMo-V2 family becomes a packed model.  Reads options, calls mq_convert, prints. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/file.h"
#include "src/pool.h"
#include "tools/calib_options.h"
#include "tools/convert.h"
#include "tools/convert_report.h"

typedef struct quantize_args {
    const char *method, *experts, *format, *compress, *device, *recipe, *report;
    int64_t group, ranks, threads, memory, seed, calib_tokens, calib_window;
    mq_opt_list calib;
    mq_corpus_file *calib_files; /* [calib.n] */
    mq_cli_devices devices;
    bool has_calib_tokens;
    bool resume, overwrite, rehash, dry_run;
} quantize_args;

/* "none", "zstd" or "zstd:LEVEL". */
static mq_status read_compress(int *level, const char *text, mq_err *err)
{
    *level = 0;
    if (strcmp(text, "none") == 0)
        return MQ_OK;
    if (strcmp(text, "zstd") == 0) {
        *level = 3;
        return MQ_OK;
    }
    char *end = NULL;
    bool has_level = strncmp(text, "zstd:", 5) == 0 && text[5] >= '0' && text[5] <= '9';
    long n = has_level ? strtol(text + 5, &end, 10) : 0;
    if (!end || *end || n < 1 || n > 19)
        return mq_fail(err, MQ_E_ARG, "--compress %s: expected none, zstd or zstd:1 to zstd:19", text);
    *level = (int)n;
    return MQ_OK;
}

/* Is place the folder dir, or the drafter's folder in it? */
static bool is_model_folder(const struct stat *place, const char *dir)
{
    struct stat info;
    char *drafter = mq_path_join(dir, "dflash");
    bool same = stat(dir, &info) == 0 && info.st_dev == place->st_dev && info.st_ino == place->st_ino;
    if (!same && drafter && stat(drafter, &info) == 0)
        same = info.st_dev == place->st_dev && info.st_ino == place->st_ino;
    free(drafter);
    return same;
}

/* The folder that path lies in; errno after false. */
static bool stat_parent(struct stat *parent, const char *path, bool writable)
{
    char *dir = strdup(path);
    if (!dir)
        return false;
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    const char *name = slash ? dir : ".";
    bool there = stat(name, parent) == 0 && (!writable || access(name, W_OK | X_OK) == 0);
    int why = errno;
    free(dir);
    errno = why;
    return there;
}

/* Files outside of OUT are written last.  Their folder must be there and take files before hours of work, and it may be neither the
 * checkpoint's nor OUT's, whose files they could replace and where a stranger's file makes the model unsound. */
static mq_status check_place(const mq_cli *cli, const char *option, const char *path, mq_err *err)
{
    if (!path || strcmp(path, "-") == 0)
        return MQ_OK;
    struct stat parent, there;
    if (!stat_parent(&parent, path, true))
        return mq_fail(err, MQ_E_IO, "--%s %s: %s", option, path, strerror(errno));
    if (path[0] == '\0' || (stat(path, &there) == 0 && S_ISDIR(there.st_mode)))
        return mq_fail(err, MQ_E_ARG, "--%s %s: is a folder, expected the name of a file", option, path);
    for (int i = 0; i < 2; i++)
        if (is_model_folder(&parent, cli->args[i]))
            return mq_fail(err, MQ_E_ARG, "--%s %s: lies in %s; give a place outside of CHECKPOINT and OUT", option, path,
                           cli->args[i]);
    return MQ_OK;
}

/* What a run reads may not be what it writes: with the text gone, nothing could go on after an interruption. */
static mq_status check_text_place(const mq_cli *cli, const char *path, mq_err *err)
{
    struct stat parent;
    if (stat_parent(&parent, path, false) && is_model_folder(&parent, cli->args[1]))
        return mq_fail(err, MQ_E_ARG, "--calib %s: lies in %s, which is written; give a place outside of OUT", path, cli->args[1]);
    return MQ_OK;
}

/* Do --method and the options of calibration fit together?  *calibrated says which kind it is. */
static mq_status check_method(bool *calibrated, const quantize_args *a, mq_err *err)
{
    bool any = a->calib.n || a->has_calib_tokens || a->calib_window || a->recipe;
    *calibrated = strcmp(a->method, "imatrix") == 0 || strcmp(a->method, "gptq") == 0;
    if (*calibrated && a->calib.n == 0)
        return mq_fail(err, MQ_E_ARG,
                       "--method %s needs --calib FILE, text to calibrate on (plain or .jsonl); --method search needs none",
                       a->method);
    if (!*calibrated && any)
        return mq_fail(err, MQ_E_ARG, "--method %s is not calibrated: %s goes with gptq and imatrix", a->method,
                       a->calib.n              ? "--calib"
                       : a->has_calib_tokens ? "--calib-tokens"
                       : a->calib_window     ? "--calib-window"
                                             : "--recipe");
    return MQ_OK;
}

static mq_status fill_calib(mq_convert_calib *c, quantize_args *a, mq_err *err)
{
    MQ_TRY(mq_calib_files_read(&a->calib_files, &a->calib, err));
    *c = (mq_convert_calib){
        .files = a->calib_files,
        .n_files = a->calib.n,
        .n_tokens = a->calib_tokens,
        .window = a->calib_window,
        .recipe = mq_calib_recipe_default(strcmp(a->method, "gptq") == 0 ? MQ_CALIB_GPTQ : MQ_CALIB_IMATRIX, (int)a->group),
    };
    if (a->devices.cuda)
        c->recipe.precision = MQ_PRECISION_BF16;
    return a->recipe ? mq_calib_recipe_read(&c->recipe, a->recipe, err) : MQ_OK;
}

static mq_status fill_options(mq_convert_options *opt, const mq_cli *cli, quantize_args *a, mq_err *err)
{
    bool calibrated;
    MQ_TRY(check_method(&calibrated, a, err));
    if (strcmp(a->experts, "mxfp4") == 0)
        return mq_fail(err, MQ_E_ARG, "--experts mxfp4: not built yet; auto keeps MXFP4 experts as they are");
    if (strcmp(a->format, "packed") != 0)
        return mq_fail(err, MQ_E_ARG, "--format %s: not built yet; use packed", a->format);
    if (a->group != 32 && a->group != 64 && a->group != 128)
        return mq_fail(err, MQ_E_ARG, "--group %lld: expected 32, 64 or 128", (long long)a->group);
    MQ_TRY(mq_cli_devices_read(&a->devices, a->device, err));
    *opt = (mq_convert_options){
        .checkpoint = cli->args[0],
        .out_dir = cli->args[1],
        .method = strcmp(a->method, "rtn") == 0 ? MQ_ROUND_RTN : MQ_ROUND_SEARCH,
        .group = (int)a->group,
        .force_int4 = strcmp(a->experts, "int4") == 0,
        .n_ranks = (int)a->ranks,
        .n_threads = a->threads ? (int)a->threads : mq_cpu_count(),
        .memory_bytes = a->memory,
        .seed = (uint64_t)a->seed,
        .resume = a->resume,
        .overwrite = a->overwrite,
        .rehash = a->rehash,
        .dry_run = a->dry_run,
        .report_path = a->report,
        .kernels = mq_kernels_find(a->devices.cuda ? "cuda" : "cpu"),
        .devices = a->devices.ordinals,
        .n_devices = a->devices.n,
    };
    if (a->report && strcmp(a->report, "-") == 0)
        return mq_fail(err, MQ_E_ARG, "--report -: expected the name of a file");
    if (calibrated)
        MQ_TRY(fill_calib(&opt->calib, a, err));
    if (a->rehash && !a->resume)
        return mq_fail(err, MQ_E_ARG, "--rehash goes with --resume");
    return read_compress(&opt->zstd_level, a->compress, err);
}

static void print_size_line(const char *label, int64_t bytes)
{
    char text[32];
    mq_cli_bytes_text(text, bytes);
    printf("%-12s %s\n", label, text);
}

/* What calibration takes, and on what that rests. */
static void print_calib_plan(const mq_convert_result *r)
{
    const mq_calib_seconds *s = &r->expect;
    const mq_calib_rates *q = &r->rates;
    char total[32], attention[32], experts[32], forward[32], disk[32];
    print_size_line("scratch", r->scratch_bytes);
    print_size_line("device", r->device_bytes);
    printf("%-12s %lld tokens in windows of %lld; the residual stream in %s\n", "calibration",
           (long long)r->calib_tokens, (long long)r->calib_window, r->hidden_in_memory ? "memory" : "scratch files");
    if (s->total <= 0)
        return;
    mq_cli_seconds_text(total, s->total);
    mq_cli_seconds_text(attention, s->attention);
    mq_cli_seconds_text(experts, s->experts);
    mq_cli_seconds_text(forward, s->forward);
    mq_cli_seconds_text(disk, s->disk);
    printf("%-12s about %s: attention %s, experts %s, their forward pass %s, reading and writing %s\n", "time", total,
           attention, experts, forward, disk);
    printf("%-12s in %.1f s: linears %.0f GFLOP/s, an expert %.3g s and %.3g ms a token, disk read %.0f MB/s, written %.0f MB/s\n",
           "measured", q->seconds, 1e-9 / q->linear_flop, q->expert, 1e3 * q->expert_token,
           q->read_byte > 0 ? 1e-6 / q->read_byte : 0.0, q->write_byte > 0 ? 1e-6 / q->write_byte : 0.0);
    printf("%-12s tokens spread evenly over experts, an otherwise idle machine, nothing overlaps; large models are extrapolated "
           "from smaller shapes\n",
           "assumed");
}

/* The plan of a dry run, below the table that mq_convert printed. */
static void print_dry(const mq_convert_result *r, const mq_convert_options *opt)
{
    printf("\n");
    print_size_line("before", r->bytes_in);
    print_size_line(opt->zstd_level ? "after, most" : "after", r->bytes_out);
    printf("%-12s %d\n", "ranks", r->n_ranks);
    print_size_line("free space", r->free_bytes);
    print_size_line("peak memory", r->peak_bytes);
    if (r->calib_tokens)
        print_calib_plan(r);
    printf("nothing was written\n");
}

static void print_done(const mq_convert_result *r, const mq_convert_options *opt)
{
    char in[32], out[32], time[32];
    mq_cli_bytes_text(in, r->bytes_in);
    mq_cli_bytes_text(out, r->bytes_out);
    mq_cli_seconds_text(time, r->seconds);
    if (r->already_complete) {
        printf("already complete: %s (%s)\n", opt->out_dir, out);
        return;
    }
    printf("%-12s %s -> %s (%.1f %%)\n", "size", in, out,
           r->bytes_in ? 100.0 * (double)r->bytes_out / (double)r->bytes_in : 0.0);
    if (r->n_int4_layers)
        printf("%-12s INT4 in groups of %d by %s, %lld layers\n", "experts", r->group, r->method,
               (long long)r->n_int4_layers);
    if (r->calib_tokens)
        printf("%-12s on %lld tokens in windows of %lld\n", "calibrated", (long long)r->calib_tokens,
               (long long)r->calib_window);
    if (r->n_mxfp4_layers)
        printf("%-12s MXFP4 carried over, %lld layers\n", r->n_int4_layers ? "" : "experts", (long long)r->n_mxfp4_layers);
    if (r->n_int4_layers)
        printf("%-12s gate %.3f %%, up %.3f %%, down %.3f %% (root mean square, relative)\n", "error",
               100.0 * r->rel_error[MQ_PROJ_GATE], 100.0 * r->rel_error[MQ_PROJ_UP], 100.0 * r->rel_error[MQ_PROJ_DOWN]);
    printf("%-12s %lld for %d rank%s, in %s\n", "files", (long long)r->n_files, r->n_ranks, r->n_ranks == 1 ? "" : "s",
           opt->out_dir);
    printf("%-12s %s\n", "time", time);
}

static void write_calib_json(mq_json_writer *w, const mq_convert_result *r, bool dry_run)
{
    const mq_calib_seconds *s = &r->expect;
    mq_json_write_int(w, "calib_tokens", r->calib_tokens);
    mq_json_write_int(w, "calib_window", r->calib_window);
    mq_json_write_int(w, "scratch_bytes", r->scratch_bytes);
    if (!dry_run)
        return;
    mq_json_write_int(w, "estimated_peak_device_bytes", r->device_bytes);
    if (s->total <= 0)
        return;
    mq_json_write_double(w, "estimated_seconds", s->total);
    mq_json_write_object(w, "estimated_parts");
    mq_json_write_double(w, "attention", s->attention);
    mq_json_write_double(w, "experts", s->experts);
    mq_json_write_double(w, "expert_forward", s->forward);
    mq_json_write_double(w, "disk", s->disk);
    mq_json_write_end_object(w);
    mq_json_write_object(w, "measured");
    mq_json_write_double(w, "seconds", r->rates.seconds);
    mq_json_write_double(w, "linear_gflop_per_s", 1e-9 / r->rates.linear_flop);
    mq_json_write_double(w, "seconds_per_expert", r->rates.expert);
    mq_json_write_double(w, "seconds_per_expert_token", r->rates.expert_token);
    mq_json_write_double(w, "read_bytes_per_s", r->rates.read_byte > 0 ? 1 / r->rates.read_byte : 0);
    mq_json_write_double(w, "write_bytes_per_s", r->rates.write_byte > 0 ? 1 / r->rates.write_byte : 0);
    mq_json_write_end_object(w);
}

static void write_json(mq_cli *cli, const mq_convert_result *r, const quantize_args *a)
{
    mq_json_writer *w = &cli->json;
    mq_json_write_string(w, "method", r->method);
    mq_json_write_int(w, "group", r->group);
    mq_json_write_int(w, "ranks", r->n_ranks);
    mq_json_write_string(w, "compress", a->compress);
    mq_json_write_bool(w, "dry_run", a->dry_run);
    mq_json_write_bool(w, "already_complete", r->already_complete);
    mq_json_write_int(w, "files", r->n_files);
    mq_json_write_int(w, "bytes_in", r->bytes_in);
    mq_json_write_int(w, "bytes_out", r->bytes_out);
    mq_json_write_int(w, "expert_weights", r->n_expert_weights);
    mq_json_write_int(w, "int4_layers", r->n_int4_layers);
    mq_json_write_int(w, "mxfp4_layers", r->n_mxfp4_layers);
    if (r->calib_tokens)
        write_calib_json(w, r, a->dry_run);
    if (a->dry_run) {
        mq_json_write_int(w, "free_bytes", r->free_bytes);
        mq_json_write_int(w, "need_bytes", r->need_bytes);
        mq_json_write_int(w, "estimated_peak_bytes", r->peak_bytes);
        return;
    }
    char hex[MQ_SHA256_HEX];
    mq_sha256_hex(hex, r->content);
    mq_json_write_string(w, "content", hex);
    mq_json_write_double(w, "params_per_s", r->seconds > 0 ? (double)r->n_done_weights / r->seconds : 0.0);
    if (r->already_complete)
        return;
    mq_json_write_object(w, "rel_rms_error");
    for (int p = 0; p < MQ_PROJ_COUNT; p++)
        mq_json_write_double(w, mq_convert_projection_name(p), r->rel_error[p]);
    mq_json_write_end_object(w);
}

static mq_status quantize(mq_cli *cli, quantize_args *a, mq_err *err)
{
    mq_convert_options opt;
    mq_convert_result result;
    MQ_TRY(fill_options(&opt, cli, a, err));
    mq_status placed = check_place(cli, "json", cli->json_path, err);
    if (placed != MQ_OK) {
        cli->json_path = NULL; /* the failure is not written there either */
        return placed;
    }
    MQ_TRY(check_place(cli, "report", a->report, err));
    for (int64_t i = 0; i < opt.calib.n_files; i++)
        MQ_TRY(check_text_place(cli, opt.calib.files[i].path, err));
    mq_status st = mq_convert(&result, &opt, cli, err);
    bool tell = !cli->json_path || strcmp(cli->json_path, "-") != 0;
    if (a->dry_run && tell && result.need_bytes)
        print_dry(&result, &opt);
    else if (st == MQ_OK && tell)
        print_done(&result, &opt);
    if (st == MQ_OK || a->dry_run)
        write_json(cli, &result, a);
    return st;
}

int main(int argc, char **argv)
{
    quantize_args a = {.method = "gptq", .experts = "auto", .format = "packed", .compress = "none", .group = 64,
                       .calib_tokens = 1 << 20};
    const mq_opt opts[] = {
        {.name = "method", .kind = MQ_OPT_STRING, .out = &a.method, .choices = "rtn|search|imatrix|gptq",
         .help = "how codes are chosen (default gptq; it and imatrix need --calib)"},
        {.name = "group", .kind = MQ_OPT_INT, .out = &a.group, .value_name = "32|64|128", .min = 0, .max = 1 << 20,
         .help = "weights that share a scale (default 64)"},
        {.name = "experts", .kind = MQ_OPT_STRING, .out = &a.experts, .choices = "auto|int4|mxfp4",
         .help = "auto keeps MXFP4 layers; int4 quantizes them again (default auto)"},
        {.name = "calib", .kind = MQ_OPT_LIST, .out = &a.calib, .value_name = "FILE[@WEIGHT]",
         .help = "calibration text, plain or .jsonl; may be given several times, mixed by weight (default 1)"},
        {.name = "calib-tokens", .kind = MQ_OPT_INT, .out = &a.calib_tokens, .value_name = "N", .min = 1,
         .max = INT64_C(1) << 40, .given = &a.has_calib_tokens, .help = "tokens to calibrate on (default 1048576)"},
        {.name = "calib-window", .kind = MQ_OPT_INT, .out = &a.calib_window, .value_name = "N", .min = 1, .max = 1 << 24,
         .help = "tokens of a window (default 2048 or the model's limit)"},
        {.name = "recipe", .kind = MQ_OPT_STRING, .out = &a.recipe, .value_name = "KEY=VALUE,...",
         .help = MQ_CALIB_RECIPE_HELP},
        {.name = "ranks", .kind = MQ_OPT_INT, .out = &a.ranks, .value_name = "N", .min = 1, .max = 64,
         .help = "GPUs to cut for (default 8, or the most that the dimensions allow)"},
        {.name = "format", .kind = MQ_OPT_STRING, .out = &a.format, .choices = "packed|compressed-tensors",
         .help = "(default packed; compressed-tensors is not built yet)"},
        {.name = "compress", .kind = MQ_OPT_STRING, .out = &a.compress, .value_name = "none|zstd[:LEVEL]",
         .help = "of the records in the shards (default none)"},
        {.name = "device", .kind = MQ_OPT_STRING, .out = &a.device, .value_name = "cpu|cuda[:0,1,...]",
         .help = "(default cpu)"},
        {.name = "threads", .kind = MQ_OPT_INT, .out = &a.threads, .value_name = "N", .min = 1, .max = 1024,
         .help = "working threads (default: one per processor)"},
        {.name = "memory", .kind = MQ_OPT_SIZE, .out = &a.memory, .value_name = "BYTES", .min = 1,
         .help = "use at most this much memory"},
        {.name = "seed", .kind = MQ_OPT_INT, .out = &a.seed, .value_name = "N", .min = 0, .max = INT64_MAX,
         .help = "draws the rows that cold experts are calibrated on (default 0)"},
        {.name = "resume", .kind = MQ_OPT_FLAG, .out = &a.resume, .value_name = "",
         .help = "go on with an interrupted run"},
        {.name = "rehash", .kind = MQ_OPT_FLAG, .out = &a.rehash, .value_name = "",
         .help = "with --resume: hash the whole checkpoint again"},
        {.name = "overwrite", .kind = MQ_OPT_FLAG, .out = &a.overwrite, .value_name = "",
         .help = "replace a packed model or an unfinished run"},
        {.name = "dry-run", .kind = MQ_OPT_FLAG, .out = &a.dry_run, .value_name = "",
         .help = "sizes, ranks, memory, space and (calibrated) time from headers and text alone; leave nothing"},
        {.name = "report", .kind = MQ_OPT_STRING, .out = &a.report, .value_name = "FILE.html",
         .help = "write a page with plots and tables of what was done"},
    };
    mq_cli cli = {
        .tool = "mimo-quantize",
        .usage = "[options] CHECKPOINT OUT",
        .summary = "Turn a MiMo-V2 checkpoint (BF16, FP8 or MXFP4 safetensors) into a packed model with 4-bit experts.",
        .opts = opts,
        .n_opts = (int)(sizeof opts / sizeof opts[0]),
        .n_args_min = 2,
        .n_args_max = 2,
    };
    mq_err err = {MQ_OK, ""};
    bool done;
    mq_cli_catch_signals();
    mq_status st = mq_cli_parse(&cli, argc, argv, &done, &err);
    if (done)
        return 0;
    if (st == MQ_OK)
        st = quantize(&cli, &a, &err);
    mq_calib_files_free(a.calib_files, a.calib.n);
    return mq_cli_finish(&cli, st, -1, &err);
}
