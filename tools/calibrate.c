/* The order of a calibrated run: text, memory, layers one after the other. */
#include "tools/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "src/file.h"
#include "src/tokenizer.h"
#include "tools/calibrate_state.h"

void mq_hidden_name(char name[MQ_HIDDEN_NAME_BYTES], int layer)
{
    snprintf(name, MQ_HIDDEN_NAME_BYTES, MQ_HIDDEN_NAME "-%03d", layer);
}

mq_status mq_calibration_check_stop(const mq_calibration *c, mq_err *err)
{
    if (c->means->hasher && mq_hasher_failed(c->means->hasher))
        return mq_fail(err, MQ_E_STOPPED, "hashing the checkpoint failed");
    if (__atomic_load_n(&c->end_failed, __ATOMIC_ACQUIRE))
        return mq_fail(err, MQ_E_STOPPED, "writing a layer failed");
    return mq_cli_check_stop(err);
}

/* ---- Opening ---- */

static mq_status read_text(mq_calibration *c, mq_err *err)
{
    const mq_convert_calib *o = &c->job->opt.calib;
    int64_t window = mq_calibration_window(c->job);
    if (window > c->m->max_positions)
        return mq_fail(err, MQ_E_ARG, "calibration windows of %lld tokens, expected at most %d (max_position_embeddings)",
                       (long long)window, c->m->max_positions);
    char *path = mq_path_join(c->job->opt.checkpoint, "tokenizer.json");
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_tokenizer *tokenizer = NULL;
    mq_status st = mq_tokenizer_open(&tokenizer, path, err);
    if (st == MQ_OK) {
        int32_t end = mq_tokenizer_find(tokenizer, "<|endoftext|>");
        st = end < 0 ? mq_fail(err, MQ_E_FORMAT, "%s: no token <|endoftext|>, which ends a document", path)
                     : mq_corpus_read(&c->corpus, o->files, o->n_files, tokenizer, end, window, o->n_tokens, err);
    }
    for (int64_t i = 0; st == MQ_OK && i < c->corpus.n_windows * window; i++)
        if (c->corpus.ids[i] < 0 || c->corpus.ids[i] >= c->m->vocab)
            st = mq_fail(err, MQ_E_FORMAT, "%s: token id %d, expected 0 to %d", path, c->corpus.ids[i], c->m->vocab - 1);
    mq_tokenizer_close(tokenizer);
    free(path);
    return st;
}

mq_status mq_calibration_open(mq_calibration **out, mq_convert_job *job, mq_err *err)
{
    *out = NULL;
    mq_calibration *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    c->job = job;
    c->m = &job->source->model;
    for (int l = 0; l < c->m->n_layers; l++)
        c->last = job->expert_scheme[l] == MQ_SCHEME_INT4 ? l : c->last;
    mq_status st = read_text(c, err);
    if (st == MQ_OK) {
        c->n_rows = c->corpus.n_windows * c->corpus.window;
        c->span_windows = mq_span_windows(c->corpus.window, c->corpus.n_windows);
        if (c->n_rows > INT32_MAX / c->m->n_experts_per_tok)
            st = mq_fail(err, MQ_E_ARG, "%lld calibration tokens, expected at most %d", (long long)c->n_rows,
                         INT32_MAX / c->m->n_experts_per_tok);
    }
    if (st == MQ_OK)
        st = mq_calibration_fill_recipe(c, err);
    if (st != MQ_OK) {
        mq_calibration_close(c);
        return st;
    }
    *out = c;
    return MQ_OK;
}

void mq_calibration_close(mq_calibration *c)
{
    if (!c)
        return;
    mq_hidden_close(c->before);
    mq_corpus_release(&c->corpus);
    free(c->lines);
    free(c->is_sound);
    free(c);
}

int64_t mq_calibration_rows(const mq_calibration *c)
{
    return c->n_rows;
}

const mq_corpus *mq_calibration_corpus(const mq_calibration *c)
{
    return &c->corpus;
}

/* ---- Groups ---- */

void mq_calibration_others(const mq_convert_job *job, bool *wanted)
{
    for (int64_t g = 0; g < job->n_groups; g++)
        wanted[g] = !mq_convert_group_is_calibrated(job, g);
}

int64_t mq_calibration_scratch_left(const mq_calibration *c, const mq_calibration_plan *plan)
{
    if (c->first_layer > c->last)
        return 0;
    return plan->scratch_bytes - (c->before ? 4 * c->n_rows * c->m->hidden : 0);
}

/* ---- Running ---- */

/* A row from each of n_sample equal parts of all rows, drawn by the seed (splitmix64). */
static mq_status draw_sample(mq_calibration *c, mq_err *err)
{
    c->n_sample = c->n_rows < MQ_CALIB_SAMPLE_ROWS ? c->n_rows : MQ_CALIB_SAMPLE_ROWS;
    c->sample = malloc((size_t)(c->n_sample + 1) * sizeof *c->sample);
    if (!c->sample)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    uint64_t state = c->job->opt.seed;
    for (int64_t i = 0; i < c->n_sample; i++) {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        int64_t from = i * c->n_rows / c->n_sample, to = (i + 1) * c->n_rows / c->n_sample;
        c->sample[i] = (int32_t)(from + (int64_t)(z % (uint64_t)(to - from)));
    }
    return MQ_OK;
}

static mq_status open_model(mq_calibration *c, mq_err *err)
{
    int n_threads = c->plan->n_threads;
    int64_t window = c->corpus.window, span = mq_span_rows(c, 0);
    int64_t block = span < MQ_CALIB_BLOCK_ROWS ? span : MQ_CALIB_BLOCK_ROWS;
    void *p;
    c->k = mq_calibration_kernels(c->job);
    MQ_TRY(c->k->dev_open(&c->dev, mq_calibration_ordinal(c->job, 0), n_threads, NULL, err));
    MQ_TRY(c->k->set_precision(c->dev, c->job->opt.calib.recipe.precision, err));
    MQ_TRY(mq_stage_init(&c->stage, c->k, c->dev, MQ_CALIB_BLOCK_ROWS, c->m->hidden, err));
    mq_store_options o = {.n_ranks = 1, .n_threads = n_threads, .kernels = c->k, .dev = c->dev};
    MQ_TRY(mq_store_open(&c->store, c->job->opt.checkpoint, &o, err));
    MQ_TRY(mq_forward_create(&c->forward, c->k, c->dev, c->store, block, span, err));
    MQ_TRY(mq_cache_create_scratch(&c->cache, c->k, c->dev, c->m, 1, window, window < block ? window : block, err));
    MQ_TRY(c->k->alloc(c->dev, &p, span * c->m->hidden * (int64_t)sizeof(float), err));
    c->x = p;
    MQ_TRY(c->k->alloc(c->dev, &p, (int64_t)c->m->hidden * c->m->hidden * (int64_t)sizeof(float), err));
    c->layer_gram = p;
    if (c->stage.on_host)
        return MQ_OK;
    MQ_TRY(c->k->alloc(c->dev, &p, mq_expert_units_bytes(c->job), err));
    c->device_codes = p;
    return MQ_OK;
}

static mq_status open_rows(mq_calibration *c, mq_err *err)
{
    size_t picks = (size_t)(c->n_rows * c->m->n_experts_per_tok);
    mq_codes_shape shape = {.n_experts = c->m->n_experts, .hidden = c->m->hidden, .width = c->m->moe_intermediate};
    c->route_ids = malloc(picks * sizeof *c->route_ids);
    c->route_coef = malloc(picks * sizeof *c->route_coef);
    c->routes.rows = malloc(picks * sizeof *c->routes.rows);
    c->routes.coef = malloc(picks * sizeof *c->routes.coef);
    c->routes.first = malloc((size_t)(c->m->n_experts + 1) * sizeof *c->routes.first);
    if (!c->route_ids || !c->route_coef || !c->routes.rows || !c->routes.coef || !c->routes.first)
        return mq_fail(err, MQ_E_NOMEM, "routes of %lld tokens: out of memory", (long long)c->n_rows);
    MQ_TRY(draw_sample(c, err));
    MQ_TRY(mq_codes_create(&c->codes, c->job->opt.out_dir, MQ_CODES_NAME, &shape, err));
    MQ_TRY(mq_codes_create(&c->other_codes, c->job->opt.out_dir, MQ_OTHER_CODES_NAME, &shape, err));
    return mq_expert_benches_open(c, err);
}

static void close_all(mq_calibration *c)
{
    mq_expert_benches_close(c);
    mq_codes_close(c->codes);
    mq_codes_close(c->other_codes);
    mq_hidden_close(c->before);
    mq_hidden_close(c->mid);
    mq_account_release(&c->account);
    mq_forward_free(c->forward);
    mq_cache_free(c->cache);
    mq_store_close(c->store);
    void *arrays[] = {c->x, c->layer_gram, c->device_codes};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        if (arrays[i])
            c->k->release(c->dev, arrays[i]);
    mq_stage_release(&c->stage);
    if (c->dev)
        c->k->dev_close(c->dev);
    free(c->route_ids);
    free(c->route_coef);
    free(c->routes.rows);
    free(c->routes.coef);
    free(c->routes.first);
    free(c->sample);
    c->before = c->mid = NULL;
    mq_progress_free(c->progress);
}

/* Does the layer only have to be run, its codes lying in shards? */
static bool is_replay(const mq_calibration *c)
{
    return c->is_sound && c->is_sound[c->layer] && c->job->expert_scheme[c->layer] == MQ_SCHEME_INT4;
}

/* What the attention half of an MoE layer leaves, to codes and, where a layer follows, to the stream behind the layer. */
static mq_status do_moe(mq_calibration *c, mq_err *err)
{
    mq_layer_weights w;
    MQ_TRY(mq_store_layer(c->store, &w, c->layer, 0, err));
    c->post_norm = w.post_norm;
    if (is_replay(c)) {
        MQ_TRY(mq_replay_experts(c, err));
    } else if (c->job->expert_scheme[c->layer] == MQ_SCHEME_INT4) {
        MQ_TRY(mq_calibrate_experts(c, err));
        MQ_TRY(mq_calibrate_loss(c, err));
    } else {
        MQ_TRY(mq_reorder_experts(c, err));
    }
    return c->layer < c->last ? mq_calibrate_mlp(c, err) : MQ_OK;
}

static mq_status do_layer(mq_calibration *c, mq_convert_done *done, int64_t *n_weights, mq_err *err)
{
    char name[MQ_HIDDEN_NAME_BYTES];
    bool calibrated = c->job->expert_scheme[c->layer] == MQ_SCHEME_INT4;
    mq_hidden_name(name, c->layer);
    MQ_TRY(mq_hidden_create(&c->mid, c->job->opt.out_dir, name, c->n_rows, c->m->hidden, c->plan->in_memory, err));
    MQ_TRY(mq_calibrate_attention(c, err));
    if (c->m->is_moe[c->layer])
        MQ_TRY(do_moe(c, err));
    MQ_TRY(mq_calibration_join(c, err)); /* which saves the stream in front of this layer */
    mq_hidden_close(c->before);
    c->before = c->mid;
    c->mid = NULL;
    return mq_calibration_end_layer(c, calibrated && !is_replay(c), done, n_weights, err);
}

/* Progress counts rows, weighed by what is done with them. */
static int64_t work_of(const mq_calibration *c)
{
    int64_t total = 0;
    for (int l = c->first_layer; l <= c->last; l++) {
        if (c->jump_to && l > c->jump_after && l <= c->jump_to)
            continue;
        bool calibrated = c->job->expert_scheme[l] == MQ_SCHEME_INT4;
        total += c->n_rows;
        total += c->m->is_moe[l] ? 10 * c->n_rows / c->m->n_experts * c->m->n_experts : 0;
        total += c->m->is_moe[l] && l < c->last ? 4 * c->n_rows : 0;
        total += calibrated ? c->n_rows : 0;
    }
    return total;
}

mq_status mq_calibration_run(mq_calibration *c, mq_convert_done *done, int64_t *n_weights,
                             const mq_calibration_plan *plan, const mq_convert_means *means, const mq_cli *cli,
                             mq_err *err)
{
    if (c->first_layer > c->last)
        return MQ_OK;
    c->plan = plan;
    c->means = means;
    mq_status st = mq_progress_create(&c->progress, cli, "calibrating", work_of(c), "", err);
    if (st == MQ_OK)
        st = open_model(c, err);
    if (st == MQ_OK)
        st = open_rows(c, err);
    for (c->layer = c->first_layer; st == MQ_OK && c->layer <= c->last; c->layer++) {
        st = do_layer(c, done, n_weights, err);
        if (st == MQ_OK && c->jump_to && c->layer == c->jump_after)
            st = mq_calibration_jump(c, err);
    }
    mq_err why;
    mq_status ended = mq_calibration_join(c, &why);
    if (ended != MQ_OK && (st == MQ_OK || st == MQ_E_STOPPED)) { /* the cause of both */
        *err = why;
        st = ended;
    }
    close_all(c);
    return st;
}
