/* The whole of a conversion, in order: look at checkpoint and folder, begin or take up the journal, convert while the checkpoint
 * is hashed, carry small files along, write report and card, and the manifest last. */
#include "tools/convert.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "src/file.h"
#include "tools/calibrate.h"
#include "tools/convert_dry.h"
#include "tools/convert_folder.h"
#include "tools/convert_report.h"
#include "tools/convert_resume.h"
#include "tools/model_card.h"
#include "tools/report_run.h"

enum { MAX_EXTRA_BYTES = 256 << 20, FILE_BUFFER_BYTES = 4 << 20, GROUPS_IN_FLIGHT = 2 };

typedef struct conversion {
    mq_convert_options opt;
    const mq_cli *cli;
    mq_convert_result *result;
    mq_convert_job job;
    mq_inputs in;
    mq_folder_state state;
    int lock_fd;
    int n_threads; /* under the memory limit */
    mq_convert_done *done; /* [n_groups] */
    mq_journal_record old; /* resumed: what the journal said */
    mq_journal *journal;
    mq_calibration *calib; /* NULL: not calibrated */
    mq_calibration_plan calib_plan;
} conversion;

/* ---- Before the work ---- */

static void tell_about_job(const conversion *c)
{
    if (c->calib && mq_calibration_rows(c->calib) + mq_calibration_window(&c->job) <= c->opt.calib.n_tokens)
        mq_cli_note(c->cli, "the calibration text has %lld tokens in whole windows, fewer than the %lld asked for",
                    (long long)mq_calibration_rows(c->calib), (long long)c->opt.calib.n_tokens);
    mq_cli_warn_lines(c->cli, &c->job.source->notices);
    if (c->opt.calib.n_files && !c->calib)
        mq_cli_note(c->cli, "no layer's experts become INT4, so nothing is calibrated and no calibration text is read");
    if (c->job.n_requantized_layers)
        mq_cli_warn(c->cli, "--experts int4 quantizes %lld MXFP4 layers again, which loses precision; the default keeps them",
                    (long long)c->job.n_requantized_layers);
    if (c->opt.n_ranks == 0 && c->job.plan->n_ranks < 8)
        mq_cli_note(c->cli, "packed for %d rank%s, the most that the dimensions allow", c->job.plan->n_ranks,
                    c->job.plan->n_ranks == 1 ? "" : "s");
}

/* Before hours of work: what will be carried along must be of a size that mq_file_load takes. */
static mq_status check_extras(const conversion *c, mq_err *err)
{
    for (int64_t i = 0; i < c->in.n; i++)
        if (c->in.items[i].is_extra && c->in.items[i].bytes > MAX_EXTRA_BYTES)
            return mq_fail(err, MQ_E_FORMAT, "%s/%s: %lld bytes, expected at most %d", c->opt.checkpoint,
                           c->in.items[i].name, (long long)c->in.items[i].bytes, MAX_EXTRA_BYTES);
    return MQ_OK;
}

/* Memory that does not depend on the number of threads: what is in use now, and the files being written. */
static int64_t fixed_memory(const conversion *c)
{
    const mq_plan *plan = c->job.plan;
    int64_t entries = 0;
    for (int64_t i = 0; i < plan->n_files; i++)
        entries = plan->files[i].n_records > entries ? plan->files[i].n_records : entries;
    int64_t per_file = FILE_BUFFER_BYTES + entries * (int64_t)(sizeof(mq_shard_entry) + 3 * sizeof(mq_convert_item));
    return mq_cli_peak_host_bytes() + GROUPS_IN_FLIGHT * plan->n_ranks * per_file + (8 << 20);
}

static mq_status choose_threads(conversion *c, mq_err *err)
{
    int64_t fixed = fixed_memory(c), limit = c->opt.memory_bytes, each = c->job.worker_bytes;
    c->n_threads = c->opt.n_threads;
    if (limit > 0 && limit < fixed + each) {
        char asked[32], needed[32];
        mq_cli_bytes_text(asked, limit);
        mq_cli_bytes_text(needed, fixed + each);
        return mq_fail(err, MQ_E_NOMEM, "--memory of %s: this model needs %s", asked, needed);
    }
    if (limit > 0 && (limit - fixed) / each < c->n_threads)
        c->n_threads = (int)((limit - fixed) / each);
    c->result->peak_bytes = fixed + c->n_threads * each;
    if (!mq_convert_is_calibrated(&c->job))
        return MQ_OK;
    int64_t window = mq_calibration_window(&c->job);
    int64_t n_rows = mq_calibration_rows(c->calib);
    MQ_TRY(mq_calibration_plan_for(&c->calib_plan, &c->job, n_rows, window, c->n_threads, limit, fixed, each, err));
    c->n_threads = c->calib_plan.n_threads;
    c->result->peak_bytes = c->calib_plan.peak_bytes;
    c->result->scratch_bytes = c->calib_plan.scratch_bytes;
    c->result->hidden_in_memory = c->calib_plan.in_memory;
    c->result->device_bytes = c->calib_plan.device_bytes;
    c->result->calib_tokens = n_rows;
    c->result->calib_window = window;
    return MQ_OK;
}

static void fill_result(conversion *c)
{
    mq_convert_result *r = c->result;
    const mq_convert_job *job = &c->job;
    memcpy(r->method, job->recipe.method, sizeof r->method);
    r->group = job->recipe.group;
    r->n_ranks = job->plan->n_ranks;
    r->n_files = job->plan->n_files;
    r->n_expert_weights = job->n_expert_weights;
    r->n_int4_layers = job->n_int4_layers;
    r->n_mxfp4_layers = job->n_mxfp4_layers;
    for (int64_t i = 0; i < c->in.n; i++)
        r->bytes_in += c->in.items[i].is_weights ? c->in.items[i].bytes : 0;
}

/* Bytes of the files in OUT that --overwrite will remove. */
static int64_t reclaimable_bytes(const conversion *c)
{
    char **names;
    int64_t n, total = 0;
    if (!c->opt.overwrite || c->journal || mq_dir_list(&names, &n, c->opt.out_dir, NULL) != MQ_OK)
        return 0;
    for (int64_t i = 0; i < n; i++) {
        char *path = mq_path_join(c->opt.out_dir, names[i]);
        mq_file *file = NULL;
        if (path && mq_file_open(&file, path, NULL) == MQ_OK)
            total += file->n_bytes;
        mq_file_close(file);
        free(path);
    }
    mq_dir_list_free(names, n);
    return total;
}

/* OUT or the nearest folder above it that is there; heap. */
static char *existing_parent(const char *dir)
{
    char *path = strdup(dir);
    for (char *slash; path && !mq_path_exists(path); slash[slash == path] = '\0') {
        slash = strrchr(path, '/');
        if (!slash) {
            free(path);
            return strdup(".");
        }
    }
    return path;
}

/* Space for the files that are not done, on the file system of OUT (or of where it will be). */
static mq_status measure_space(conversion *c, mq_err *err)
{
    int64_t need = 4 << 20, total = 0;
    int64_t scratch = c->calib ? mq_calibration_scratch_left(c->calib, &c->calib_plan) : 0;
    for (int64_t g = 0; g < c->job.n_groups; g++)
        for (int f = 0; f < c->job.groups[g].n_files; f++) {
            int64_t bytes;
            MQ_TRY(mq_convert_file_bytes(&bytes, &c->job, &c->job.plan->files[c->job.groups[g].file0 + f], err));
            total += bytes;
            need += c->done && c->done[g].is_done ? 0 : bytes;
        }
    for (int64_t i = 0; i < c->in.n; i++)
        need += c->in.items[i].is_extra ? c->in.items[i].bytes : 0;
    c->result->bytes_out = total;
    c->result->need_bytes = scratch + (c->opt.zstd_level ? need / 10 * 7 : need); /* the most that zstd saves is 30 % */
    char *path = existing_parent(c->opt.out_dir);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = mq_dir_free_bytes(&c->result->free_bytes, path, err);
    free(path);
    c->result->free_bytes += reclaimable_bytes(c);
    return st;
}

static mq_status check_space(conversion *c, mq_err *err)
{
    MQ_TRY(measure_space(c, err));
    if (c->result->free_bytes >= c->result->need_bytes)
        return MQ_OK;
    char need[32], have[32];
    mq_cli_bytes_text(need, c->result->need_bytes);
    mq_cli_bytes_text(have, c->result->free_bytes);
    return mq_fail(err, MQ_E_IO, "%s: not enough space: %s needed, %s free", c->opt.out_dir, need, have);
}

/* ---- The folder ---- */

static mq_status refuse_existing(const conversion *c, mq_err *err)
{
    if (c->state == MQ_FOLDER_NEW || c->opt.resume || c->opt.overwrite)
        return MQ_OK;
    return mq_fail(err, MQ_E_EXISTS, "%s: holds %s; --resume %s, --overwrite begins anew", c->opt.out_dir,
                   c->state == MQ_FOLDER_COMPLETE ? "a packed model" : "an unfinished run",
                   c->state == MQ_FOLDER_COMPLETE ? "checks its recipe" : "goes on with it");
}

static mq_status begin_anew(conversion *c, mq_err *err)
{
    mq_buf head = mq_buf_empty();
    mq_status st = mq_resume_head(&head, &c->job, &c->in, err);
    if (st == MQ_OK)
        st = mq_journal_create(&c->journal, c->opt.out_dir, &head, err);
    mq_buf_release(&head);
    return st == MQ_OK ? mq_folder_clean(c->opt.out_dir, NULL, 0, err) : st;
}

static mq_status take_up(conversion *c, mq_err *err)
{
    MQ_TRY(mq_resume_check(&c->old, &c->job, &c->in, err));
    int64_t n_damaged, n_keep = 0;
    MQ_TRY(mq_resume_groups(c->done, &n_damaged, &c->old, &c->job, c->n_threads, err));
    if (!c->opt.rehash)
        mq_resume_hashes(&c->in, &c->old);
    MQ_TRY(mq_journal_continue(&c->journal, c->opt.out_dir, c->old.good_bytes, err));
    const char *scratch[MQ_CALIB_KEEP];
    int64_t n_scratch = 0;
    if (c->calib)
        MQ_TRY(mq_calibration_resume(c->calib, scratch, &n_scratch, c->done, &c->old, &c->calib_plan, err));
    const char **keep = calloc((size_t)c->job.plan->n_files + MQ_CALIB_KEEP, sizeof *keep);
    if (!keep)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int64_t g = 0; g < c->job.n_groups; g++)
        for (int f = 0; c->done[g].is_done && f < c->done[g].entry.n_files; f++)
            keep[n_keep++] = c->done[g].entry.files[f].name;
    for (int64_t i = 0; i < n_scratch; i++)
        keep[n_keep + i] = scratch[i];
    mq_status st = mq_folder_clean(c->opt.out_dir, keep, n_keep + n_scratch, err);
    free(keep);
    if (n_damaged)
        mq_cli_warn(c->cli, "%lld finished parts are damaged or missing and are done again", (long long)n_damaged);
    mq_cli_note(c->cli, "resuming: %lld of %lld files are done", (long long)n_keep, (long long)c->job.plan->n_files);
    return st;
}

/* Begin or take up the journal; after it everything in the folder that is not done is gone. */
static mq_status begin(conversion *c, mq_err *err)
{
    if (c->state == MQ_FOLDER_UNFINISHED && c->opt.resume) {
        mq_err why;
        if (mq_journal_read(&c->old, c->opt.out_dir, &why) == MQ_OK && c->old.head)
            return take_up(c, err);
        mq_cli_warn(c->cli, "the journal has no readable beginning; beginning anew");
    }
    return begin_anew(c, err);
}

/* ---- The work ---- */

static mq_status on_hashed(void *ctx, const mq_input *f, mq_err *err)
{
    conversion *c = ctx;
    return mq_journal_write_hashed(c->journal, f, err);
}

/* Wait for the hashing thread, but not through a signal. */
static mq_status wait_hasher(mq_hasher *h, mq_err *err)
{
    while (mq_hasher_running(h) && !mq_cli_stopped()) {
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
    mq_err why = {MQ_OK, ""};
    mq_status st = mq_hasher_join(h, mq_cli_stopped(), &why);
    if (st == MQ_E_STOPPED)
        return mq_cli_check_stop(err);
    if (st != MQ_OK)
        *err = why;
    return st;
}

/* Every group: first those that need no calibration, then layer by layer the others. */
static mq_status convert_groups(conversion *c, const mq_hasher *hasher, mq_err *err)
{
    bool *wanted = calloc((size_t)c->job.n_groups, sizeof *wanted);
    if (!wanted)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_calibration_others(&c->job, wanted);
    int64_t todo = 0, *n_weights = &c->result->n_done_weights;
    for (int64_t g = 0; g < c->job.n_groups; g++)
        todo += c->done[g].is_done || !wanted[g] ? 0 : c->job.groups[g].in_bytes;
    mq_convert_means means = {.n_threads = c->n_threads, .journal = c->journal, .hasher = hasher};
    mq_status st = mq_progress_create(&means.progress, c->cli, "converting", todo, "B", err);
    if (st == MQ_OK)
        st = mq_convert_run(c->done, n_weights, &c->job, wanted, NULL, &means, err);
    mq_progress_free(means.progress);
    means.progress = NULL;
    free(wanted);
    if (st == MQ_OK && c->calib)
        st = mq_calibration_run(c->calib, c->done, n_weights, &c->calib_plan, &means, c->cli, err);
    return st;
}

static mq_status work(conversion *c, mq_err *err)
{
    mq_hasher *hasher = NULL;
    mq_status st = mq_hasher_start(&hasher, c->opt.checkpoint, &c->in, on_hashed, c, err);
    if (st == MQ_OK)
        st = convert_groups(c, hasher, err);
    if (hasher && st == MQ_OK) {
        st = wait_hasher(hasher, err);
    } else if (hasher) {
        mq_err why;
        bool hasher_failed = mq_hasher_failed(hasher);
        mq_status other = mq_hasher_join(hasher, true, &why);
        if (hasher_failed && st == MQ_E_STOPPED) {
            *err = why;
            st = other;
        }
    }
    if (st == MQ_OK)
        st = mq_inputs_check_unchanged(&c->in, c->opt.checkpoint, err);
    if (st == MQ_OK && c->opt.rehash)
        st = mq_resume_compare_hashes(&c->in, &c->old, err);
    return st;
}

/* ---- The end ---- */

static mq_status list_extra(mq_manifest *m, const char *name, const void *bytes, int64_t n_bytes, mq_err *err)
{
    mq_file_digest *grown = realloc(m->extra, (size_t)(m->n_extra + 1) * sizeof *grown);
    if (grown)
        m->extra = grown;
    char *copy = strdup(name);
    if (!grown || !copy) {
        free(copy);
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    }
    mq_file_digest *f = &m->extra[m->n_extra++];
    f->name = copy;
    f->bytes = n_bytes;
    mq_sha256_of(f->sha256, bytes, n_bytes);
    return MQ_OK;
}

/* Write a small file into OUT or OUT/dflash and list it. */
static mq_status save_extra(conversion *c, mq_manifest *m, const char *name, const mq_buf *text, mq_err *err)
{
    const char *plain = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
    char *dir = plain == name ? strdup(c->opt.out_dir) : mq_path_join(c->opt.out_dir, "dflash");
    mq_status st = dir ? mq_dir_create(dir, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = mq_file_save(dir, plain, text->data ? text->data : "", text->n_bytes, err);
    if (st == MQ_OK)
        st = list_extra(m, name, text->data ? text->data : "", text->n_bytes, err);
    free(dir);
    return st;
}

static mq_status save_extras(conversion *c, mq_manifest *m, mq_err *err)
{
    mq_buf text = mq_buf_empty();
    mq_status st = MQ_OK;
    for (int64_t i = 0; st == MQ_OK && i < c->in.n; i++) {
        const mq_input *f = &c->in.items[i];
        if (!f->is_extra)
            continue;
        char *path = mq_path_join(c->opt.checkpoint, f->name);
        st = path ? mq_file_load(&text, path, MAX_EXTRA_BYTES, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
        if (st == MQ_OK)
            st = save_extra(c, m, f->name, &text, err);
        free(path);
        /* It was hashed a while ago: what is carried along must be what was hashed. */
        if (st == MQ_OK && memcmp(m->extra[m->n_extra - 1].sha256, f->sha256, MQ_SHA256_BYTES) != 0)
            st = mq_fail(err, MQ_E_IO, "%s/%s: changed while being read", c->opt.checkpoint, f->name);
    }
    mq_buf_clear(&text);
    if (st == MQ_OK)
        st = mq_convert_report(&text, &c->job, c->done, err);
    if (st == MQ_OK)
        st = save_extra(c, m, "report.json", &text, err);
    mq_buf_clear(&text);
    if (st == MQ_OK)
        st = mq_model_card(&text, &c->job, c->done, c->result->bytes_in, c->result->bytes_out, err);
    if (st == MQ_OK)
        st = save_extra(c, m, "README.md", &text, err);
    mq_buf_release(&text);
    return st;
}

static int compare_digests(const void *a, const void *b)
{
    return strcmp(((const mq_file_digest *)a)->name, ((const mq_file_digest *)b)->name);
}

static mq_status fill_manifest(conversion *c, mq_manifest *m, mq_err *err)
{
    const mq_convert_job *job = &c->job;
    m->version = MQ_SHARD_VERSION;
    snprintf(m->tool_version, sizeof m->tool_version, "%s", MQ_VERSION);
    m->n_ranks = job->plan->n_ranks;
    m->n_mtp = job->source->model.n_mtp;
    m->has_draft = job->source->has_draft;
    m->n_layers = job->source->model.n_layers;
    memcpy(m->expert_scheme, job->expert_scheme, sizeof m->expert_scheme);
    m->group = job->recipe.group;
    m->recipe = job->recipe;
    m->source = calloc((size_t)c->in.n + 1, sizeof *m->source);
    m->shards = calloc((size_t)job->plan->n_files, sizeof *m->shards);
    if (!m->source || !m->shards)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int64_t i = 0; i < c->in.n; i++) {
        mq_file_digest *f = &m->source[i];
        f->name = strdup(c->in.items[i].name);
        if (!f->name)
            return mq_fail(err, MQ_E_NOMEM, "out of memory");
        m->n_source++;
        f->bytes = c->in.items[i].bytes;
        memcpy(f->sha256, c->in.items[i].sha256, sizeof f->sha256);
    }
    c->result->bytes_out = 0;
    for (int64_t g = 0; g < job->n_groups; g++)
        for (int f = 0; f < job->groups[g].n_files; f++) {
            if (!c->done[g].is_done)
                return mq_fail(err, MQ_E_BUG, "group %lld was never finished", (long long)g);
            m->shards[m->n_shards++] = c->done[g].entry.files[f];
            c->result->bytes_out += c->done[g].entry.files[f].bytes;
        }
    mq_manifest_digest(m);
    memcpy(c->result->content, m->content, sizeof m->content);
    return MQ_OK;
}

static mq_status remove_journal(const char *dir, mq_err *err)
{
    char *path = mq_path_join(dir, MQ_JOURNAL_NAME);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = MQ_OK;
    if (unlink(path) != 0)
        st = mq_fail(err, MQ_E_IO, "%s: remove: %s", path, strerror(errno));
    free(path);
    return st == MQ_OK ? mq_dir_sync(dir, err) : st;
}

/* Experts whose tokens say little about them. */
static void warn_about_tokens(const conversion *c)
{
    int64_t smallest, n = mq_report_few_tokens(&smallest, &c->job, c->done), hidden = c->job.source->model.hidden;
    if (n > 0)
        mq_cli_warn(c->cli,
                    "%lld experts saw fewer than %lld calibration tokens (hidden size / 4), the least %lld; more text or a larger "
                    "--calib-tokens serves them better",
                    (long long)n, (long long)(hidden / 4), (long long)smallest);
}

static mq_status finish(conversion *c, mq_err *err)
{
    mq_manifest m;
    memset(&m, 0, sizeof m);
    mq_status st = fill_manifest(c, &m, err);
    if (st == MQ_OK)
        st = save_extras(c, &m, err);
    if (st == MQ_OK && c->opt.report_path)
        st = mq_report_write(c->opt.report_path, &c->job, c->done, &c->in, err);
    if (st == MQ_OK) {
        qsort(m.extra, (size_t)m.n_extra, sizeof *m.extra, compare_digests);
        st = mq_manifest_save(&m, c->opt.out_dir, err);
    }
    mq_manifest_release(&m);
    if (st == MQ_OK)
        st = remove_journal(c->opt.out_dir, err);
    warn_about_tokens(c);
    for (int p = 0; p < MQ_PROJ_COUNT; p++)
        c->result->rel_error[p] = mq_convert_rel_error(mq_convert_sum(&c->job, c->done, -1, p));
    return st;
}

/* --resume where a manifest stands and no journal: nothing to do, if it is what was asked for. */
static mq_status check_complete(conversion *c, mq_err *err)
{
    mq_manifest m;
    MQ_TRY(mq_manifest_load(&m, c->opt.out_dir, err));
    mq_status st = MQ_OK;
    if (c->opt.rehash)
        st = mq_fail(err, MQ_E_ARG, "--rehash: the model in %s is finished; mimo-verify --source compares it",
                     c->opt.out_dir);
    if (st == MQ_OK)
        st = mq_resume_check_complete(&m, &c->job, &c->in, false, err);
    if (st == MQ_OK && c->opt.report_path) /* what the page draws went with the journal */
        st = mq_fail(err, MQ_E_ARG,
                     "--report %s: the model in %s is finished, and its page is written by the run that finishes it; report.json "
                     "in it has the figures",
                     c->opt.report_path, c->opt.out_dir);
    c->result->already_complete = st == MQ_OK;
    memcpy(c->result->content, m.content, sizeof m.content);
    c->result->bytes_out = 0;
    for (int64_t i = 0; i < m.n_shards; i++)
        c->result->bytes_out += m.shards[i].bytes;
    mq_manifest_release(&m);
    return st;
}

static mq_status convert_into(conversion *c, mq_err *err)
{
    MQ_TRY(mq_folder_inspect(&c->state, c->opt.out_dir, err));
    MQ_TRY(refuse_existing(c, err));
    if (!c->opt.resume)
        MQ_TRY(check_space(c, err)); /* before anything is created or removed */
    MQ_TRY(mq_folder_lock(&c->lock_fd, c->opt.out_dir, err));
    MQ_TRY(mq_folder_inspect(&c->state, c->opt.out_dir, err)); /* another run may have ended meanwhile */
    MQ_TRY(refuse_existing(c, err));
    if (c->state == MQ_FOLDER_COMPLETE && c->opt.resume)
        return check_complete(c, err);
    c->done = calloc((size_t)c->job.n_groups, sizeof *c->done);
    if (!c->done)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    MQ_TRY(begin(c, err));
    MQ_TRY(check_space(c, err));
    MQ_TRY(work(c, err));
    return finish(c, err);
}

/* Headers and text only, and a piece of the checkpoint to time the disk: measure, print, leave nothing.  A lack of space is an error, after the table. */
static mq_status dry_run(conversion *c, mq_err *err)
{
    MQ_TRY(mq_folder_inspect(&c->state, c->opt.out_dir, err)); /* what the run itself would refuse */
    MQ_TRY(refuse_existing(c, err));
    mq_status space = check_space(c, err);
    if (space != MQ_OK && !c->result->need_bytes)
        return space;
    bool tell = !c->cli->json_path || strcmp(c->cli->json_path, "-") != 0;
    mq_err why;
    mq_status st = tell ? mq_convert_print_plan(&c->job, &why) : MQ_OK;
    if (st == MQ_OK && mq_convert_is_calibrated(&c->job)) {
        char *dir = existing_parent(c->opt.out_dir);
        st = dir ? mq_convert_expect(c->result, &c->job, &c->calib_plan, &c->in, c->n_threads, dir, &why)
                 : mq_fail(&why, MQ_E_NOMEM, "out of memory");
        free(dir);
    }
    if (space == MQ_OK && st != MQ_OK)
        *err = why;
    return space != MQ_OK ? space : st;
}

mq_status mq_convert(mq_convert_result *out, const mq_convert_options *opt, const mq_cli *cli, mq_err *err)
{
    memset(out, 0, sizeof *out);
    if (opt->resume && opt->overwrite)
        return mq_fail(err, MQ_E_ARG, "--resume and --overwrite exclude each other");
    conversion c = {.opt = *opt, .cli = cli, .result = out, .lock_fd = -1};
    double started = mq_cli_now();
    mq_status st = mq_convert_job_open(&c.job, opt, err);
    if (st != MQ_OK)
        return st;
    st = mq_inputs_list(&c.in, c.job.source, err);
    if (st == MQ_OK)
        st = check_extras(&c, err);
    if (st == MQ_OK && mq_convert_is_calibrated(&c.job)) /* a dry run too: how many tokens the text has decides sizes */
        st = mq_calibration_open(&c.calib, &c.job, err);
    if (st == MQ_OK) {
        tell_about_job(&c);
        fill_result(&c);
        st = choose_threads(&c, err);
    }
    if (st == MQ_OK)
        st = opt->dry_run ? dry_run(&c, err) : convert_into(&c, err);
    out->seconds = mq_cli_now() - started;
    mq_journal_close(c.journal);
    mq_journal_record_release(&c.old);
    mq_calibration_close(c.calib);
    for (int64_t g = 0; c.done && g < c.job.n_groups; g++) {
        free(c.done[g].entry.stats);
        mq_account_release(&c.done[g].account);
    }
    free(c.done);
    mq_inputs_release(&c.in);
    mq_convert_job_close(&c.job);
    if (c.lock_fd >= 0)
        close(c.lock_fd);
    return st;
}
