/* See run_bench.h.  Times are taken around calls of the engine that return when the device is done. */
#include "tools/run_bench.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/fill.h"
#include "tools/generate.h"

enum { DEFAULT_PROMPT = 512, READS = 5 };

/* One call of mq_bench_run. */
typedef struct bench {
    mq_bench *out;
    mq_engine *engine;
    const mq_bench_options *o;
    const mq_cli *cli;
    mq_progress *progress;
    double *times[MQ_BENCH_LIST]; /* seconds of a width's steps */
    double sums[MQ_BENCH_LIST][3]; /* distinct experts, bytes of weights, bytes of keys and values */
    uint64_t n_drawn;
    int32_t distinct[MQ_MAX_LAYERS];
} bench;

mq_status mq_bench_tokens(mq_tokens *out, int vocab, int64_t n, uint64_t seed, mq_err *err)
{
    for (int64_t i = 0; i < n; i++)
        MQ_TRY(mq_tokens_append(out, (int32_t)(mq_fill_hash(seed, (uint64_t)i) % (uint64_t)vocab), err));
    return MQ_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Of sorted values. */
static double percentile(const double *sorted, int64_t n, double share)
{
    return n ? sorted[(int64_t)(share * (double)(n - 1) + 0.5)] : 0.0;
}

/* ---- What is measured ---- */

static mq_status plan_prompts(bench *b, mq_err *err)
{
    const mq_bench_options *o = b->o;
    int64_t room = mq_engine_context(b->engine);
    b->out->n_prompts = o->n_prompts ? o->n_prompts : 1;
    b->out->prompts[0].n = room < DEFAULT_PROMPT ? room : DEFAULT_PROMPT;
    for (int i = 0; i < o->n_prompts; i++) {
        b->out->prompts[i].n = o->prompts[i];
        if (o->prompts[i] > room)
            return mq_fail(err, MQ_E_ARG, "--bench-prompt %lld: the context holds %lld; --context sets it",
                           (long long)o->prompts[i], (long long)room);
    }
    return MQ_OK;
}

static mq_status plan_widths(bench *b, mq_err *err)
{
    static const int usual[] = {1, 2, 4, 8};
    const mq_bench_options *o = b->o;
    mq_bench *out = b->out;
    int64_t room = mq_engine_context(b->engine);
    int most = 0;
    for (int i = 0; i < 4 && !o->n_widths && usual[i] <= room; i++)
        out->widths[out->n_widths++].width = usual[i];
    for (int i = 0; i < o->n_widths; i++)
        out->widths[out->n_widths++].width = (int)o->widths[i];
    for (int i = 0; i < out->n_widths; i++)
        most = out->widths[i].width > most ? out->widths[i].width : most;
    out->context = o->context >= 0 ? o->context : out->prompts[0].n;
    if (o->context < 0 && out->context > room - most)
        out->context = room > most ? room - most : 0;
    if (out->context + most > room)
        return mq_fail(err, MQ_E_ARG,
                       "--bench-context %lld and a width of %d: the context holds %lld; --context sets it",
                       (long long)out->context, most, (long long)room);
    return MQ_OK;
}

static mq_status prefill(bench *b, int64_t n, mq_err *err)
{
    mq_tokens ids = {0};
    mq_status st = mq_bench_tokens(&ids, mq_engine_model(b->engine)->vocab, n, b->o->seed, err);
    for (int64_t at = 0, rows; at < n && st == MQ_OK; at += rows) {
        rows = n - at < MQ_GENERATE_PREFILL_ROWS ? n - at : MQ_GENERATE_PREFILL_ROWS;
        st = mq_cli_check_stop(err);
        if (st == MQ_OK)
            st = mq_engine_prefill(b->engine, ids.ids + at, rows, err);
    }
    mq_tokens_release(&ids);
    return st;
}

static mq_status measure_prompt(bench *b, mq_bench_prompt *p, mq_err *err)
{
    double *times = b->times[0]; /* no step has been measured yet */
    mq_engine_reset(b->engine);
    if (p == b->out->prompts) /* the first of all also loads what is loaded when it is needed */
        MQ_TRY(prefill(b, p->n, err));
    for (int64_t i = 0; i < b->o->repeats; i++) {
        mq_engine_reset(b->engine);
        double start = mq_cli_now();
        MQ_TRY(prefill(b, p->n, err));
        times[i] = mq_cli_now() - start;
        mq_progress_add(b->progress, 1);
    }
    qsort(times, (size_t)b->o->repeats, sizeof *times, compare_doubles);
    p->seconds = percentile(times, b->o->repeats, 0.5);
    return MQ_OK;
}

/* Positions before the steps. */
static mq_status fill_context(bench *b, mq_err *err)
{
    mq_engine_reset(b->engine);
    b->out->made_up_cache = mq_store_is_synthetic(mq_engine_store(b->engine)) && b->out->context > 0;
    return b->out->made_up_cache ? mq_engine_skip(b->engine, b->out->context, b->o->seed, err)
                                 : prefill(b, b->out->context, err);
}

static double mean_distinct(const mq_model *m, const int32_t *distinct)
{
    int64_t sum = 0, n = 0;
    for (int l = 0; l < m->n_layers; l++) {
        sum += m->is_moe[l] ? distinct[l] : 0;
        n += m->is_moe[l];
    }
    return n ? (double)sum / (double)n : 0.0;
}

/* The traffic is that of the first device's ranks; the others hold as many. */
static double n_devices(const bench *b)
{
    const mq_store *s = mq_engine_store(b->engine);
    return mq_store_only_rank(s) >= 0 ? 1.0 : (double)(mq_store_n_ranks(s) / mq_store_n_held(s));
}

/* One step of the i-th width; seconds NULL: a warm-up. */
static mq_status step(bench *b, int i, double *seconds, mq_err *err)
{
    int32_t ids[MQ_BENCH_ROWS];
    int width = b->out->widths[i].width, vocab = mq_engine_model(b->engine)->vocab;
    int64_t pos = mq_engine_length(b->engine);
    for (int j = 0; j < width; j++)
        ids[j] = (int32_t)(mq_fill_hash(~b->o->seed, b->n_drawn++) % (uint64_t)vocab);
    MQ_TRY(mq_cli_check_stop(err));
    double start = mq_cli_now();
    MQ_TRY(mq_engine_step(b->engine, ids, width, err));
    MQ_TRY(mq_engine_wait(b->engine, err));
    if (seconds) {
        *seconds = mq_cli_now() - start;
        MQ_TRY(mq_engine_distinct_experts(b->engine, b->distinct, err));
        b->sums[i][0] += mean_distinct(mq_engine_model(b->engine), b->distinct);
        b->sums[i][1] += n_devices(b) * (double)mq_traffic_weights(&b->out->traffic, b->distinct, width);
        b->sums[i][2] += n_devices(b) * (double)mq_traffic_kv(&b->out->traffic, pos, width);
    }
    mq_engine_rollback(b->engine, pos);
    return MQ_OK;
}

static mq_status measure_round(bench *b, int64_t round, mq_err *err)
{
    for (int i = 0; i < b->out->n_widths; i++) {
        MQ_TRY(step(b, i, NULL, err));
        for (int64_t k = 0; k < b->o->steps; k++)
            MQ_TRY(step(b, i, &b->times[i][round * b->o->steps + k], err));
        mq_progress_add(b->progress, 1);
    }
    return MQ_OK;
}

static void finish_width(bench *b, int i)
{
    mq_bench_width *w = &b->out->widths[i];
    int64_t n = b->o->steps * b->o->repeats;
    qsort(b->times[i], (size_t)n, sizeof *b->times[i], compare_doubles);
    w->n_steps = n;
    w->ms_p10 = 1e3 * percentile(b->times[i], n, 0.1);
    w->ms_p50 = 1e3 * percentile(b->times[i], n, 0.5);
    w->ms_p90 = 1e3 * percentile(b->times[i], n, 0.9);
    w->distinct = b->sums[i][0] / (double)n;
    w->weight_bytes = (int64_t)(b->sums[i][1] / (double)n + 0.5);
    w->kv_bytes = (int64_t)(b->sums[i][2] / (double)n + 0.5);
}

/* What memory can do: all weights as one stream. */
static mq_status measure_read(bench *b, mq_err *err)
{
    double best = 0.0;
    for (int i = 0; i < READS; i++) {
        MQ_TRY(mq_cli_check_stop(err));
        double start = mq_cli_now();
        MQ_TRY(mq_engine_read_weights(b->engine, &b->out->read_bytes, err));
        double seconds = mq_cli_now() - start;
        best = i == 0 || seconds < best ? seconds : best;
    }
    b->out->read_bytes_per_s = best > 0 ? (double)b->out->read_bytes / best : 0.0;
    return MQ_OK;
}

static mq_status measure(bench *b, mq_err *err)
{
    mq_bench *out = b->out;
    MQ_TRY(plan_prompts(b, err));
    MQ_TRY(plan_widths(b, err));
    MQ_TRY(mq_traffic_read(&out->traffic, mq_engine_store(b->engine), err));
    int64_t n = (b->o->steps > 1 ? b->o->steps : 1) * b->o->repeats;
    for (int i = 0; i < MQ_BENCH_LIST; i++) {
        b->times[i] = calloc((size_t)n, sizeof *b->times[i]);
        if (!b->times[i])
            return mq_fail(err, MQ_E_NOMEM, "times of %lld steps: out of memory", (long long)n);
    }
    mq_engine_clocks(b->engine, &out->core_mhz, &out->memory_mhz);
    MQ_TRY(mq_progress_create(&b->progress, b->cli, "measuring", b->o->repeats * (out->n_prompts + out->n_widths), "",
                              err));
    MQ_TRY(measure_read(b, err));
    for (int i = 0; i < out->n_prompts; i++)
        MQ_TRY(measure_prompt(b, &out->prompts[i], err));
    MQ_TRY(fill_context(b, err));
    for (int64_t round = 0; round < b->o->repeats; round++)
        MQ_TRY(measure_round(b, round, err));
    for (int i = 0; i < out->n_widths; i++)
        finish_width(b, i);
    return mq_engine_memory(b->engine, &out->planned_bytes, &out->taken_bytes, err);
}

mq_status mq_bench_run(mq_bench *out, mq_engine *engine, const mq_bench_options *o, const mq_cli *cli, mq_err *err)
{
    memset(out, 0, sizeof *out);
    bench b = {.out = out, .engine = engine, .o = o, .cli = cli};
    mq_status st = measure(&b, err);
    mq_progress_free(b.progress);
    for (int i = 0; i < MQ_BENCH_LIST; i++)
        free(b.times[i]);
    mq_engine_reset(engine);
    return st;
}

/* ---- Output ---- */

static double bytes_per_s(const mq_bench_width *w)
{
    return w->ms_p50 > 0 ? 1e3 * (double)(w->weight_bytes + w->kv_bytes) / w->ms_p50 : 0.0;
}

static double share_of_read(const mq_bench *b, const mq_bench_width *w)
{
    return b->read_bytes_per_s > 0 ? bytes_per_s(w) / b->read_bytes_per_s : 0.0;
}

static double prompt_rate(const mq_bench_prompt *p)
{
    return p->seconds > 0 ? (double)p->n / p->seconds : 0.0;
}

static void json_clock(mq_json_writer *w, const char *key, int mhz)
{
    if (mhz > 0)
        mq_json_write_int(w, key, mhz);
    else
        mq_json_write_null(w, key);
}

/* All devices, and whether they bring a decode step of their own. */
static void json_devices(mq_json_writer *w, const mq_bench *b, mq_engine *engine)
{
    mq_json_write_array(w, "devices");
    for (int i = 0; i < mq_engine_n_devices(engine); i++)
        mq_json_write_string(w, NULL, mq_engine_nth_device_name(engine, i));
    mq_json_write_end_array(w);
    if (mq_engine_why_composed(engine))
        mq_json_write_string(w, "step_composed", mq_engine_why_composed(engine));
    else
        mq_json_write_null(w, "step_composed");
    mq_json_write_int(w, "planned_bytes", b->planned_bytes);
    mq_json_write_int(w, "taken_bytes", b->taken_bytes);
}

static void json_conditions(mq_json_writer *w, const mq_bench *b, mq_engine *engine)
{
    const mq_store *s = mq_engine_store(engine);
    const mq_model *m = mq_engine_model(engine);
    mq_json_write_bool(w, "synthetic", mq_store_is_synthetic(s));
    if (mq_store_only_rank(s) >= 0)
        mq_json_write_int(w, "only_rank", mq_store_only_rank(s));
    else
        mq_json_write_null(w, "only_rank");
    mq_json_write_int(w, "layers", m->n_layers);
    mq_json_write_string(w, "expert_scheme", mq_scheme_name(b->traffic.expert_scheme));
    mq_json_write_int(w, "expert_group", b->traffic.expert_group);
    json_clock(w, "core_mhz", b->core_mhz);
    json_clock(w, "memory_mhz", b->memory_mhz);
    mq_json_write_int(w, "bench_context", b->context);
    mq_json_write_bool(w, "bench_context_made_up", b->made_up_cache);
    mq_json_write_int(w, "read_bytes", b->read_bytes);
    mq_json_write_double(w, "read_bytes_per_s", b->read_bytes_per_s);
}

void mq_bench_json(mq_json_writer *w, const mq_bench *b, mq_engine *engine)
{
    json_devices(w, b, engine);
    json_conditions(w, b, engine);
    mq_json_write_array(w, "bench_prompts");
    for (int i = 0; i < b->n_prompts; i++) {
        mq_json_write_object(w, NULL);
        mq_json_write_int(w, "tokens", b->prompts[i].n);
        mq_json_write_double(w, "tok_per_s", prompt_rate(&b->prompts[i]));
        mq_json_write_end_object(w);
    }
    mq_json_write_end_array(w);
    mq_json_write_array(w, "bench_widths");
    for (int i = 0; i < b->n_widths; i++) {
        const mq_bench_width *x = &b->widths[i];
        mq_json_write_object(w, NULL);
        mq_json_write_int(w, "width", x->width);
        mq_json_write_int(w, "steps", x->n_steps);
        mq_json_write_double(w, "step_ms_p10", x->ms_p10);
        mq_json_write_double(w, "step_ms_p50", x->ms_p50);
        mq_json_write_double(w, "step_ms_p90", x->ms_p90);
        mq_json_write_double(w, "distinct_experts", x->distinct);
        mq_json_write_int(w, "weight_bytes", x->weight_bytes);
        mq_json_write_int(w, "kv_bytes", x->kv_bytes);
        mq_json_write_double(w, "bytes_per_s", bytes_per_s(x));
        mq_json_write_double(w, "bandwidth_share", share_of_read(b, x));
        mq_json_write_end_object(w);
    }
    mq_json_write_end_array(w);
}

static void print_clocks(const mq_bench *b)
{
    printf("clocks        ");
    if (b->core_mhz > 0)
        printf("core at most %d MHz", b->core_mhz);
    if (b->memory_mhz > 0)
        printf("%smemory at most %d MHz", b->core_mhz > 0 ? ", " : "", b->memory_mhz);
    printf("%s\n", b->core_mhz > 0 || b->memory_mhz > 0 ? "" : "not known");
}

static void print_memory(const mq_bench *b)
{
    char planned[32], taken[32];
    mq_cli_bytes_text(planned, b->planned_bytes);
    mq_cli_bytes_text(taken, b->taken_bytes);
    printf("memory        %s planned on the first device, %s gone\n", planned, taken);
}

static void print_experts(const mq_bench *b, const mq_model *m)
{
    char text[32];
    int64_t bytes = 0;
    for (int l = 0; l < m->n_layers && !bytes; l++)
        bytes = b->traffic.expert[l];
    if (!bytes)
        return;
    mq_cli_bytes_text(text, bytes);
    printf("experts       %d a layer, %d a token, %s", m->n_experts, m->n_experts_per_tok,
           mq_scheme_name(b->traffic.expert_scheme));
    if (b->traffic.expert_group)
        printf(" in groups of %d", b->traffic.expert_group);
    printf(", %s each\n", text);
}

static void print_widths(const mq_bench *b)
{
    printf("  width   step ms: p10      p50      p90   experts a layer   weights MB     KV MB      GB/s   of read\n");
    for (int i = 0; i < b->n_widths; i++) {
        const mq_bench_width *x = &b->widths[i];
        printf("  %5d %14.3f %8.3f %8.3f %17.2f %12.3f %9.3f %9.2f %8.1f%%\n", x->width, x->ms_p10, x->ms_p50, x->ms_p90,
               x->distinct, 1e-6 * (double)x->weight_bytes, 1e-6 * (double)x->kv_bytes, 1e-9 * bytes_per_s(x),
               100.0 * share_of_read(b, x));
    }
}

void mq_bench_print(const mq_bench *b, mq_engine *engine)
{
    const mq_model *m = mq_engine_model(engine);
    const mq_store *s = mq_engine_store(engine);
    char text[32];
    if (mq_engine_why_composed(engine))
        printf("step          composed of single operations: %s\n", mq_engine_why_composed(engine));
    print_clocks(b);
    print_memory(b);
    printf("layers        %d\n", m->n_layers);
    print_experts(b, m);
    if (mq_store_only_rank(s) >= 0)
        printf("one rank      rank %d of %d alone; the others are taken to answer as it does\n", mq_store_only_rank(s),
               mq_store_n_ranks(s));
    if (mq_store_is_synthetic(s))
        printf("SYNTHETIC     weights are made up and route at random: the speed alone means something\n");
    mq_cli_bytes_text(text, b->read_bytes);
    printf("memory read   %.2f GB/s, %s of weights in one stream, the best of %d\n", 1e-9 * b->read_bytes_per_s, text,
           READS);
    for (int i = 0; i < b->n_prompts; i++)
        printf("prefill       %lld tokens, %.1f tokens/s\n", (long long)b->prompts[i].n, prompt_rate(&b->prompts[i]));
    printf("steps         %lld of each width at a context of %lld%s\n",
           b->n_widths ? (long long)b->widths[0].n_steps : 0LL, (long long)b->context,
           b->made_up_cache ? ", its keys and values made up" : "");
    print_widths(b);
}
