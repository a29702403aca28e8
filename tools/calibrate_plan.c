/* How large the pieces of a calibration are, and what fits into a budget.
 *
 * Everything comes from geometry and headers, so that --dry-run can say it.  Only three things give way to a small budget: the residual
 * stream goes to scratch files, fewer experts are worked on at a time, and fewer threads work.  Spans and blocks keep their sizes: they are
 * part of the result. */
#include "src/machine.h"
#include "src/units.h"
#include "tools/calibrate_state.h"

enum { DEFAULT_WINDOW = 2048, HASH_BLOCK = 4 << 20, WEIGHT_ROWS = 128, SMALL_THINGS = 16 << 20 };

static int64_t min2(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max2(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t mq_calibration_window(const mq_convert_job *job)
{
    const mq_model *m = &job->source->model;
    return job->opt.calib.window > 0 ? job->opt.calib.window : min2(DEFAULT_WINDOW, m->max_positions);
}

int64_t mq_span_windows(int64_t window, int64_t n_windows)
{
    return min2(max2(MQ_CALIB_SPAN_ROWS / window, 1), n_windows);
}

/* Columns of the widest input of a linear: a product widens blocks of its rows. */
static int64_t widest(const mq_model *m)
{
    int64_t heads = max2((int64_t)m->full.n_heads * m->full.v_head_dim, (int64_t)m->swa.n_heads * m->swa.v_head_dim);
    return max2(max2(m->hidden, m->intermediate), max2(heads, m->moe_intermediate));
}

static mq_codes_shape codes_shape(const mq_model *m)
{
    return (mq_codes_shape){.n_experts = m->n_experts, .hidden = m->hidden, .width = m->moe_intermediate};
}

/* One expert's bench: memory of the host, and of its device where that is another. */
static mq_status bench_bytes(int64_t *host, int64_t *device, const mq_convert_job *job, mq_err *err)
{
    const mq_model *m = &job->source->model;
    const mq_kernels *k = mq_calibration_kernels(job);
    int64_t rows = max2(m->hidden, m->moe_intermediate);
    mq_dev *dev;
    MQ_TRY(k->dev_open(&dev, mq_calibration_ordinal(job, 0), 1, NULL, err));
    mq_status st = k->set_precision(dev, job->opt.calib.recipe.precision, err);
    int64_t worker = k->calibration_bytes(dev, rows, rows, job->opt.group, MQ_CALIB_BLOCK_ROWS) +
                     mq_calib_worker_bytes(m->hidden, m->moe_intermediate, job->opt.group, MQ_CALIB_BLOCK_ROWS);
    k->dev_close(dev);
    MQ_TRY(st);
    bool on_host = mq_kernels_on_host(k);
    *host = mq_expert_bench_bytes(job) + mq_stage_bytes(k, MQ_CALIB_BLOCK_ROWS, m->hidden) + (on_host ? worker : 0);
    *device = on_host ? 0 : worker + mq_expert_bench_bytes(job) + 4 * (int64_t)m->hidden * (m->hidden + 1) + 4 * MQ_CALIB_BLOCK_ROWS;
    return MQ_OK;
}

/* What is there once, whatever the number of workers; without the residual stream. */
static int64_t common_bytes(const mq_convert_job *job, int64_t n_rows, int64_t window, int n_threads)
{
    const mq_model *m = &job->source->model;
    mq_codes_shape shape = codes_shape(m);
    int64_t span = mq_span_windows(window, n_rows / window) * window, block = min2(MQ_CALIB_BLOCK_ROWS, span);
    int64_t total = mq_forward_workspace_bytes(m, 1, block, span);
    total += mq_cache_scratch_bytes(m, 1, window, min2(window, block));
    total += 4 * span * m->hidden;                                        /* x */
    total += 4 * n_rows + 16 * n_rows * m->n_experts_per_tok;             /* ids, routes as they come and sorted */
    total += 4 * (int64_t)m->hidden * m->hidden;                          /* the layer's moment */
    total += 3 * 4 * min2(MQ_CALIB_REPORT_ROWS, n_rows) * m->hidden;      /* a layer's loss */
    total += 2 * (mq_codes_gate_up_bytes(&shape, job->opt.group) + mq_codes_down_bytes(&shape, job->opt.group));
    total += n_threads * (5 * WEIGHT_ROWS * widest(m) + HASH_BLOCK) + 5 * block * widest(m);
    return total + SMALL_THINGS;
}

/* Sizes that a plan is made of. */
typedef struct sizes {
    int64_t fixed, stream, bench, budget;
    int64_t least_benches; /* 1, or as many as there are GPUs */
    int64_t most_benches;  /* that the GPUs' memory holds */
    bool on_host;
    const mq_convert_job *job;
    int64_t n_rows, window, thread_bytes;
} sizes;

/* With n threads: everything but benches, and whether the residual stream is on the heap; how many benches fit beside it. */
static int64_t fit(mq_calibration_plan *out, const sizes *s, int n)
{
    int64_t common = s->fixed + n * s->thread_bytes + common_bytes(s->job, s->n_rows, s->window, n);
    out->n_threads = n;
    out->in_memory = 2 * s->stream <= s->budget / 2 && common + 2 * s->stream + s->least_benches * s->bench <= s->budget;
    int64_t without = common + (out->in_memory ? 2 * s->stream : 0), fitting = (s->budget - without) / s->bench;
    int64_t most = s->on_host ? min2(n, s->job->source->model.n_experts) : s->most_benches;
    out->n_workers = (int)(fitting >= s->least_benches ? min2(most, fitting) : 0);
    out->peak_bytes = without + max2(out->n_workers, s->least_benches) * s->bench;
    return out->n_workers;
}

/* What the run takes of a device: for all that is there once, on the first alone; for each bench; for the rows that enter experts. */
typedef struct device_sizes {
    int64_t first, bench, stream;
} device_sizes;

/* Free memory of device i.  MQ_E_NOMEM where it is less than need. */
static mq_status free_memory(int64_t *free_bytes, const mq_convert_job *job, int i, int64_t need, mq_err *err)
{
    const mq_kernels *k = mq_calibration_kernels(job);
    int64_t total_bytes;
    char needed[32], left[32];
    mq_dev *dev;
    MQ_TRY(k->dev_open(&dev, mq_calibration_ordinal(job, i), 1, NULL, err));
    mq_status st = k->memory(dev, free_bytes, &total_bytes, err);
    if (st == MQ_OK && *free_bytes < need) {
        mq_cli_bytes_text(needed, need);
        mq_cli_bytes_text(left, *free_bytes);
        st = mq_fail(err, MQ_E_NOMEM, "%s: calibrating this model needs %s of its memory, %s are free", k->dev_name(dev), needed,
                     left);
    }
    k->dev_close(dev);
    return st;
}

/* How many benches every one of n devices holds, at most MQ_CALIB_BENCHES, and whether the rows fit beside them.  Too little for one
 * bench is found out here, before hours of work. */
static mq_status fit_devices(int64_t *benches, bool *stream_fits, const mq_convert_job *job, int64_t n, const device_sizes *s,
                             mq_err *err)
{
    int64_t least = INT64_MAX;
    for (int i = 0; i < n; i++) {
        int64_t first = i == 0 ? s->first : 0, free_bytes;
        MQ_TRY(free_memory(&free_bytes, job, i, first + s->bench, err));
        least = min2(least, free_bytes - first);
    }
    *benches = min2(MQ_CALIB_BENCHES, least / s->bench);
    *stream_fits = *benches * s->bench + s->stream <= least;
    return MQ_OK;
}

mq_status mq_calibration_plan_for(mq_calibration_plan *out, const mq_convert_job *job, int64_t n_rows, int64_t window,
                                  int n_threads, int64_t budget, int64_t fixed_bytes, int64_t thread_bytes, mq_err *err)
{
    const mq_model *m = &job->source->model;
    int64_t resident, streaming, before = mq_cli_peak_host_bytes();
    MQ_TRY(mq_store_plan_bytes(&resident, &streaming, job->opt.checkpoint, err));
    int64_t headers = mq_cli_peak_host_bytes() - before; /* the store reads the checkpoint's headers for itself */
    const mq_kernels *k = mq_calibration_kernels(job);
    sizes s = {.fixed = fixed_bytes + headers + streaming + mq_stage_bytes(k, MQ_CALIB_BLOCK_ROWS, m->hidden),
               .stream = 4 * n_rows * m->hidden, .job = job, .n_rows = n_rows,
               .budget = budget > 0 ? budget : mq_machine_bytes() / 2, .window = window, .thread_bytes = thread_bytes,
               .on_host = mq_kernels_on_host(k)};
    device_sizes device = {.first = streaming + common_bytes(job, n_rows, window, 0), .stream = s.stream};
    s.least_benches = s.on_host ? 1 : min2(mq_calibration_n_devices(job), m->n_experts);
    MQ_TRY(bench_bytes(&s.bench, &device.bench, job, err));
    int64_t per_device = 0;
    bool stream_fits = false;
    if (!s.on_host)
        MQ_TRY(fit_devices(&per_device, &stream_fits, job, s.least_benches, &device, err));
    s.most_benches = min2(per_device * s.least_benches, m->n_experts);
    mq_codes_shape shape = codes_shape(m);

    mq_calibration_plan best = {.n_workers = -1}, p = {.n_rows = n_rows};
    for (int n = n_threads; n >= 1; n--)
        if (fit(&p, &s, n) > best.n_workers)
            best = p;
    if (best.n_workers == 0) {
        char asked[32], needed[32];
        fit(&p, &s, 1);
        mq_cli_bytes_text(asked, s.budget);
        mq_cli_bytes_text(needed, p.peak_bytes);
        return mq_fail(err, MQ_E_NOMEM, "a memory budget of %s: calibrating this model needs %s", asked, needed);
    }
    *out = best;
    /* On the host common_bytes counts more than there is, as what lies on the first device is among it. */
    if (!s.on_host) {
        int64_t n = (best.n_workers + s.least_benches - 1) / s.least_benches;
        out->on_devices = stream_fits;
        out->device_bytes = device.first + n * device.bench + (stream_fits ? device.stream : 0);
    }
    /* While a layer is written the next one is done: of the streams two are saved, a third is being made. */
    int64_t codes = max2(mq_codes_bytes(&shape, job->opt.group),
                         job->n_mxfp4_layers ? mq_codes_bytes(&shape, MQ_GROUP_MXFP4) : 0);
    out->scratch_bytes = (out->in_memory ? 2 : 3) * s.stream + 2 * codes;
    return MQ_OK;
}

int64_t mq_calibration_scratch_writes(int64_t *saved_bytes, const mq_convert_job *job, const mq_calibration_plan *plan)
{
    const mq_model *m = &job->source->model;
    mq_codes_shape shape = codes_shape(m);
    int64_t stream = 4 * plan->n_rows * m->hidden, total = 0;
    int last = 0;
    *saved_bytes = 0;
    for (int l = 0; l < m->n_layers; l++)
        last = job->expert_scheme[l] == MQ_SCHEME_INT4 ? l : last;
    for (int l = 0; l <= last; l++) {
        int group = job->expert_scheme[l] == MQ_SCHEME_INT4 ? job->opt.group : MQ_GROUP_MXFP4;
        if (m->is_moe[l])
            total += m->n_experts * (mq_codes_gate_up_bytes(&shape, group) + mq_codes_down_bytes(&shape, group));
        /* In a file both halves write their rows, on the heap they are written once; behind the last layer nothing is. */
        int64_t n_writes = plan->in_memory ? l < last : 1 + (m->is_moe[l] && l < last);
        total += n_writes * stream;
        *saved_bytes += l < last ? stream : 0;
    }
    return total;
}
