/* Writes a packed model without a checkpoint: every record is a stretch of one of three blocks of noise, chosen by its
 * number, so that records differ and nothing is computed per weight.  Files are spread over threads. */
#include "tests/maker/maker_packed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/manifest.h"
#include "src/codec.h"
#include "src/float.h"
#include "src/pool.h"
#include "src/units.h"
#include "tests/maker/maker_parts.h"

enum { N_BLOCKS = 2039, N_VALUES = 1 << 18 };

typedef struct packer {
    const mq_maker_packed *p;
    const char *dir;
    mq_manifest manifest;
    mq_plan *plan;
    uint8_t *units; /* [N_BLOCKS] group blocks */
    float *f32;     /* [N_VALUES] */
    uint16_t *bf16; /* [N_VALUES] */
} packer;

static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Four uniform numbers: about normal, of variance 1. */
static float normal(uint64_t *state)
{
    uint64_t r = next(state);
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (double)(r >> (16 * i) & 0xffff) / 65536.0 - 0.5;
    return (float)(sum * sqrt(3.0));
}

/* INT4 codes of about N(0, 2) and scales near 0.01. */
static void fill_units(packer *k, uint64_t *state)
{
    int block = mq_block_bytes(k->p->group), codes = MQ_UNIT_CODE_BYTES * (mq_block_cols(k->p->group) / MQ_UNIT_COLS);
    for (int64_t b = 0; b < N_BLOCKS; b++) {
        uint8_t *at = k->units + b * block;
        for (int i = 0; i < codes; i++) {
            int lo = (int)lrintf(2.0f * normal(state)), hi = (int)lrintf(2.0f * normal(state));
            at[i] = (uint8_t)((lo + 8) | (hi + 8) << 4);
        }
        for (int i = codes; i < block; i += 2) {
            uint16_t scale = mq_f32_to_bf16(0.01f + 0.002f * normal(state));
            memcpy(at + i, &scale, 2);
        }
    }
}

static mq_status make_noise(packer *k, uint64_t seed, mq_err *err)
{
    k->units = malloc((size_t)N_BLOCKS * (size_t)mq_block_bytes(k->p->group));
    k->f32 = malloc(N_VALUES * sizeof *k->f32);
    k->bf16 = malloc(N_VALUES * sizeof *k->bf16);
    if (!k->units || !k->f32 || !k->bf16)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int64_t i = 0; i < N_VALUES; i++) {
        k->f32[i] = 0.02f * normal(&seed);
        k->bf16[i] = mq_f32_to_bf16(k->f32[i]);
    }
    fill_units(k, &seed);
    return MQ_OK;
}

/* Record i of a file, a stretch that wraps around its block of noise. */
static mq_status write_record(const packer *k, mq_shard_writer *w, const mq_file_spec *file, int64_t i, mq_err *err)
{
    const mq_record_spec *r = &file->records[i];
    bool is_f32 = r->key.role == MQ_ROLE_ROUTER;
    mq_scheme scheme = r->is_expert ? MQ_SCHEME_INT4 : is_f32 ? MQ_SCHEME_F32 : MQ_SCHEME_BF16;
    int64_t piece = r->is_expert ? mq_block_bytes(k->p->group) : is_f32 ? 4 : 2, n_pieces = r->is_expert ? N_BLOCKS : N_VALUES;
    const uint8_t *noise = r->is_expert ? k->units : is_f32 ? (const uint8_t *)k->f32 : (const uint8_t *)k->bf16;
    int group = r->is_expert ? k->p->group : 0;
    int64_t left = mq_record_plain_bytes(r, scheme, group);
    uint64_t number = ((uint64_t)file->layer << 40) + ((uint64_t)file->rank << 32) + ((uint64_t)file->kind << 28) + (uint64_t)i;
    int64_t at = (int64_t)(next(&number) % (uint64_t)n_pieces);
    MQ_TRY(mq_shard_writer_begin(w, i, scheme, group, err));
    while (left > 0) {
        int64_t n = (n_pieces - at) * piece < left ? (n_pieces - at) * piece : left;
        MQ_TRY(mq_shard_writer_append(w, noise + at * piece, n, NULL, 0, err));
        left -= n;
        at = 0;
    }
    return mq_shard_writer_end(w, err);
}

static mq_status write_file(void *ctx, int64_t job, int worker, mq_err *err)
{
    packer *k = ctx;
    const mq_file_spec *file = &k->plan->files[job];
    mq_shard_writer *w;
    (void)worker;
    MQ_TRY(mq_shard_writer_create(&w, k->dir, file, k->plan->n_ranks, k->p->zstd_level, err));
    for (int64_t i = 0; i < file->n_records; i++) {
        mq_status st = write_record(k, w, file, i, err);
        if (st != MQ_OK) {
            mq_shard_writer_abandon(w);
            return st;
        }
    }
    return mq_shard_writer_commit(w, &k->manifest.shards[job], err);
}

/* config.json, written and listed. */
static mq_status write_config(packer *k, const mq_maker *m, mq_model *model, mq_err *err)
{
    mq_buf text = mq_buf_empty();
    maker_config(&text, m);
    mq_status st = mq_buf_status(&text, err);
    if (st == MQ_OK)
        st = mq_file_save(k->dir, "config.json", text.data, text.n_bytes, err);
    mq_file_digest *extra = calloc(1, sizeof *extra);
    k->manifest.extra = extra;
    if (extra && st == MQ_OK) {
        extra->name = strdup("config.json");
        extra->bytes = text.n_bytes;
        mq_sha256_of(extra->sha256, text.data, text.n_bytes);
        k->manifest.n_extra = extra->name ? 1 : 0;
    }
    mq_buf_release(&text);
    char *path = mq_path_join(k->dir, "config.json");
    if (st == MQ_OK && (!path || !k->manifest.n_extra))
        st = mq_fail(err, MQ_E_NOMEM, "out of memory");
    if (st == MQ_OK)
        st = mq_model_load(model, path, err);
    free(path);
    return st;
}

static mq_status fill_manifest(packer *k, const mq_model *model, mq_err *err)
{
    mq_manifest *f = &k->manifest;
    f->version = MQ_SHARD_VERSION;
    strcpy(f->tool_version, "made");
    f->n_ranks = k->p->n_ranks;
    f->n_layers = model->n_layers;
    f->group = f->recipe.group = k->p->group;
    for (int l = 0; l < model->n_layers; l++)
        f->expert_scheme[l] = model->is_moe[l] ? MQ_SCHEME_INT4 : MQ_SCHEME_NONE;
    strcpy(f->recipe.method, "rtn");
    strcpy(f->recipe.compress, "none");
    strcpy(f->recipe.backend, "cpu");
    strcpy(f->recipe.isa, "any");
    if (k->p->zstd_level > 0) {
        snprintf(f->recipe.compress, sizeof f->recipe.compress, "zstd:%d", k->p->zstd_level);
        snprintf(f->recipe.zstd_version, sizeof f->recipe.zstd_version, "%s", mq_zstd_version());
    }
    f->shards = calloc((size_t)k->plan->n_files, sizeof *f->shards);
    if (!f->shards)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    f->n_shards = k->plan->n_files;
    return MQ_OK;
}

static mq_status write_all(packer *k, const mq_maker *m, mq_model *model, mq_err *err)
{
    MQ_TRY(mq_dir_create(k->dir, err));
    MQ_TRY(write_config(k, m, model, err));
    model->n_mtp = 0;
    MQ_TRY(mq_plan_create(&k->plan, model, NULL, k->p->n_ranks, k->p->group, err));
    MQ_TRY(fill_manifest(k, model, err));
    MQ_TRY(make_noise(k, m->seed, err));
    MQ_TRY(mq_pool_run(k->p->n_threads, k->plan->n_files, write_file, k, err));
    mq_manifest_digest(&k->manifest);
    return mq_manifest_save(&k->manifest, k->dir, err);
}

mq_status mq_maker_write_packed(const mq_maker *m, const mq_maker_packed *p, const char *dir, int64_t *n_bytes,
                                mq_err *err)
{
    packer k = {.p = p, .dir = dir};
    mq_maker plain = *m;
    mq_model *model = calloc(1, sizeof *model);
    if (!model)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    plain.mtp = plain.draft_layers = 0;
    mq_status st = write_all(&k, &plain, model, err);
    for (int64_t i = 0; n_bytes && i < k.manifest.n_shards; i++)
        *n_bytes = (i ? *n_bytes : 0) + k.manifest.shards[i].bytes;
    mq_manifest_release(&k.manifest);
    mq_plan_free(k.plan);
    mq_model_release(model);
    free(model);
    free(k.units);
    free(k.f32);
    free(k.bf16);
    return st;
}
