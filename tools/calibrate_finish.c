/* Leaving a layer behind, beside the work on the next one.
 *
 * A layer is left behind in this order: residual stream saved under its own name, shards committed and journalled, the layer's own
 * line journalled, the residual stream in front of it removed.  Whatever a crash cuts off, the last journalled layer's stream
 * is whole, and what comes after is done again with the same result.  A thread does this while the next layer is
 * calibrated from the same stream; the next layer's own stream and codes lie apart, and no layer is left behind before the one
 * in front of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "tools/calibrate_state.h"

mq_status mq_calibration_remove_hidden(const mq_calibration *c, int layer, mq_err *err)
{
    char name[MQ_HIDDEN_NAME_BYTES];
    mq_hidden_name(name, layer);
    char *path = mq_path_join(c->job->opt.out_dir, name);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = MQ_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        st = mq_fail(err, MQ_E_IO, "%s: remove: %s", path, strerror(errno));
    free(path);
    return st;
}

static mq_status write_shards(mq_layer_end *e, mq_err *err)
{
    mq_calibration *c = e->c;
    bool *wanted = calloc((size_t)c->job->n_groups, sizeof *wanted);
    if (!wanted)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    wanted[e->group] = true;
    mq_convert_ready ready = {e->codes, &e->account};
    mq_convert_means means = *c->means;
    means.progress = NULL; /* counts bytes, ours counts rows */
    mq_status st = mq_convert_run(e->done, e->n_weights, c->job, wanted, &ready, &means, err);
    free(wanted);
    return st;
}

static mq_status end_layer(mq_layer_end *e, mq_err *err)
{
    mq_calibration *c = e->c;
    mq_convert_done *done = e->group >= 0 ? &e->done[e->group] : NULL;
    if (e->line.has_hidden)
        MQ_TRY(mq_hidden_save(e->stream, e->line.hidden, c->plan->n_threads, err));
    mq_calibration_check_line(c, e->done, &e->line);
    if (e->has_codes) {
        MQ_TRY(write_shards(e, err));
        e->line.loss = e->account.loss;
        mq_account_release(&done->account);
        done->account = e->account;
        memset(&e->account, 0, sizeof e->account);
    } else if (done) {
        e->line.loss = done->account.loss; /* of a layer whose shards were there: none where it is not calibrated */
    }
    mq_progress_add(c->progress, done ? c->n_rows : 0);
    MQ_TRY(mq_journal_write_layer(c->means->journal, &e->line, err));
    return e->line.layer > 0 ? mq_calibration_remove_hidden(c, (int)e->line.layer - 1, err) : MQ_OK;
}

static void *end_thread(void *arg)
{
    mq_layer_end *e = arg;
    e->st = end_layer(e, &e->err);
    if (e->st != MQ_OK)
        __atomic_store_n(&e->c->end_failed, true, __ATOMIC_RELEASE);
    return NULL;
}

mq_status mq_calibration_join(mq_calibration *c, mq_err *err)
{
    mq_layer_end *e = &c->end;
    if (!e->is_running)
        return MQ_OK;
    pthread_join(e->thread, NULL);
    e->is_running = false;
    mq_account_release(&e->account);
    if (e->st != MQ_OK && err)
        *err = e->err;
    return e->st;
}

mq_status mq_calibration_end_layer(mq_calibration *c, bool has_codes, mq_convert_done *done, int64_t *n_weights, mq_err *err)
{
    mq_layer_end *e = &c->end;
    bool is_calibrated = c->job->expert_scheme[c->layer] == MQ_SCHEME_INT4;
    *e = (mq_layer_end){.c = c,
                        .line = {.layer = c->layer, .has_hidden = c->layer < c->last},
                        .stream = c->before,
                        .has_codes = has_codes,
                        .group = is_calibrated ? mq_calibration_group(c->job, c->layer) : -1,
                        .codes = c->codes,
                        .account = c->account,
                        .done = done,
                        .n_weights = n_weights};
    memset(&c->account, 0, sizeof c->account);
    mq_codes *other = c->other_codes;
    c->other_codes = c->codes;
    c->codes = other;
    int code = pthread_create(&e->thread, NULL, end_thread, e);
    if (code != 0) {
        mq_account_release(&e->account);
        return mq_fail(err, MQ_E_NOMEM, "a thread to write layer %d: %s", c->layer, strerror(code));
    }
    e->is_running = true;
    /* What the old journal tells of this layer decides how the next ones are done. */
    bool is_known = c->lines && c->lines[c->layer].layer >= 0;
    return is_known || c->layer == c->last ? mq_calibration_join(c, err) : MQ_OK;
}
