/* Weights of a model that does not exist: shapes and dtypes from a config.json, values from kernels/fill.h.
 *
 * Everything lies as the packed model of that config would (formats/plan.h), cut for the ranks asked for, and is filled
 * where it will be used: nothing is read or copied, so a GPU's memory is full in seconds.  Values are a pure function of
 * seed, layer, matrix and place in the whole matrix; another number of ranks cuts the same model.  Magnitudes keep
 * activations in range: a matrix's values have variance 1 / columns, norms are ones, router biases zeros.  Dtypes are
 * those of released checkpoints: with an fp8 quantization_config q, k, v and dense MLPs are FP8, else BF16; o_proj,
 * embedding and head BF16; the router F32, or BF16 where moe_router_dtype says so.  A DFlash drafter (BF16) where its config is
 * given; no MTP layers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/plan.h"
#include "runtime/slices.h"
#include "runtime/store_backend.h"

typedef struct synthetic {
    mq_model m;
    mq_plan *plan;
    mq_draft_model draft; /* of the drafter's config */
    mq_plan *draft_plan;  /* with the drafter; NULL: none */
    const mq_kernels *kernels;
    mq_dev *dev;
    bool owns_dev;
    int n_ranks;
    mq_scheme expert_scheme, router_scheme;
    int group; /* of the experts */
    uint64_t seed;
} synthetic;

static mq_scheme scheme_of(const synthetic *c, const mq_record_spec *r)
{
    if (r->key.stack == MQ_STACK_DRAFT)
        return MQ_SCHEME_BF16;
    switch (r->key.role) {
    case MQ_ROLE_EXPERT_GATE_UP:
    case MQ_ROLE_EXPERT_DOWN:
        return c->expert_scheme;
    case MQ_ROLE_ROUTER:
        return c->router_scheme;
    case MQ_ROLE_Q:
    case MQ_ROLE_K:
    case MQ_ROLE_V:
    case MQ_ROLE_GATE:
    case MQ_ROLE_UP:
    case MQ_ROLE_DOWN:
        return c->m.fp8 ? MQ_SCHEME_FP8_BLOCK : MQ_SCHEME_BF16;
    default:
        return MQ_SCHEME_BF16;
    }
}

/* Kind and scale of a scheme's values, so that their standard deviation is std (MXFP4: within a factor of sqrt 2). */
static void set_values(mq_fill *f, mq_scheme scheme, double std)
{
    switch (scheme) {
    case MQ_SCHEME_INT4:
        f->kind = MQ_FILL_INT4;
        f->scale = (float)(std / (MQ_FILL_INT4_RMS * MQ_FILL_UP_RMS));
        return;
    case MQ_SCHEME_MXFP4: /* scales s and s / 2 evenly: 0.79 s */
        f->kind = MQ_FILL_MXFP4;
        f->scale = exp2f(rintf(log2f((float)(std / (MQ_FILL_E2M1_RMS * 0.79)))));
        return;
    case MQ_SCHEME_FP8_BLOCK:
        f->kind = MQ_FILL_E4M3;
        return;
    default:
        f->kind = scheme == MQ_SCHEME_F32 ? MQ_FILL_F32 : MQ_FILL_BF16;
        f->scale = (float)(std * sqrt(3.0));
        return;
    }
}

/* Scales of an FP8 matrix: they differ from column to column of blocks only, so that slices of any phase agree. */
static mq_status fill_scales(const synthetic *c, const mq_matrix *m, const mq_record_spec *r, uint64_t key, double std,
                             mq_err *err)
{
    const mq_fill f = {.kind = MQ_FILL_F32_UP,
                       .key = ~key,
                       .scale = (float)(std / (MQ_FILL_E4M3_RMS * MQ_FILL_UP_RMS)),
                       .rows = mq_fp8_n_scales(m) / mq_fp8_scale_cols(m),
                       .cols = mq_fp8_scale_cols(m),
                       .col0 = r->col0 / MQ_FP8_BLOCK};
    return c->kernels->fill(c->dev, (void *)(uintptr_t)m->scale, &f, err);
}

/* A number for every layer of every stack. */
static int place_of(mq_stack stack, int layer)
{
    return (int)stack * (MQ_MAX_LAYERS + 1) + layer;
}

static mq_status load_record(const synthetic *c, mq_slot *slot, mq_matrix *out, const mq_record_spec *r, mq_err *err)
{
    mq_scheme scheme = scheme_of(c, r);
    void *plain;
    MQ_TRY(mq_slot_take(slot, &plain, mq_record_plain_bytes(r, scheme, c->group), err));
    *out = mq_record_matrix(r, scheme, c->group, plain);
    MQ_TRY(mq_matrix_check(out, err));
    if (slot->measuring)
        return MQ_OK;
    double std = r->key.role == MQ_ROLE_EMBED ? 1.0 : 1.0 / sqrt((double)r->full_cols);
    uint64_t key = mq_fill_key(c->seed, place_of(r->key.stack, r->key.layer), (int)r->key.role, r->key.expert);
    mq_fill f = {.group = out->group,
                 .key = key,
                 .rows = r->rows,
                 .cols = r->cols,
                 .row0 = r->row0,
                 .col0 = r->col0,
                 .whole_cols = r->full_cols};
    set_values(&f, scheme, std);
    MQ_TRY(c->kernels->fill(c->dev, plain, &f, err));
    return scheme == MQ_SCHEME_FP8_BLOCK ? fill_scales(c, out, r, key, std, err) : MQ_OK;
}

/* A record of the file of layer (the head's: n_layers) and rank, or of the common file (layer -1). */
static const mq_record_spec *find_record(const synthetic *c, int layer, int rank, mq_role role, int expert)
{
    const mq_file_spec *file = &c->plan->files[layer < 0 ? 0 : 1 + (int64_t)layer * c->n_ranks + rank];
    int64_t i = 0;
    while (file->records[i].key.role != role)
        i++; /* the plan has every role that the loads below name */
    return &file->records[i + (expert > 0 ? expert : 0)];
}

static mq_status load(const synthetic *c, mq_slot *slot, mq_matrix *out, int layer, int rank, mq_role role, int expert,
                      mq_err *err)
{
    return load_record(c, slot, out, find_record(c, layer, rank, role, expert), err);
}

/* n of n_all values of a vector from first on. */
static mq_status load_vector(const synthetic *c, mq_slot *slot, const float **out, int layer, mq_role role,
                             int64_t first, int64_t n, int64_t n_all, mq_err *err)
{
    void *values;
    MQ_TRY(mq_slot_take(slot, &values, 4 * n, err));
    *out = values;
    if (slot->measuring)
        return MQ_OK;
    const mq_fill f = {.kind = role == MQ_ROLE_SINK || role == MQ_ROLE_DRAFT_MASK ? MQ_FILL_F32 : MQ_FILL_CONSTANT,
                       .key = mq_fill_key(c->seed, layer, (int)role, 0),
                       .scale = role == MQ_ROLE_ROUTER_BIAS ? 0.0f : 1.0f,
                       .rows = 1,
                       .cols = n,
                       .col0 = first,
                       .whole_cols = n_all};
    return c->kernels->fill(c->dev, values, &f, err);
}

static mq_status load_attn(const synthetic *c, mq_slot *slot, mq_attn_weights *out, int layer, int rank, mq_err *err)
{
    const mq_attn_geometry *g = mq_model_attn(&c->m, layer);
    mq_head_slice h = mq_slice_heads(g, c->n_ranks, rank);
    *out = (mq_attn_weights){.n_heads = h.n_heads, .n_kv_heads = h.n_kv_heads};
    MQ_TRY(load(c, slot, &out->q, layer, rank, MQ_ROLE_Q, 0, err));
    MQ_TRY(load(c, slot, &out->k, layer, rank, MQ_ROLE_K, 0, err));
    MQ_TRY(load(c, slot, &out->v, layer, rank, MQ_ROLE_V, 0, err));
    MQ_TRY(load(c, slot, &out->o, layer, rank, MQ_ROLE_O, 0, err));
    return g->has_sink ? load_vector(c, slot, &out->sink, layer, MQ_ROLE_SINK, h.head0, h.n_heads, g->n_heads, err)
                       : MQ_OK;
}

/* The record of layer's router in the common file, which holds all layers'. */
static mq_status load_router(const synthetic *c, mq_slot *slot, mq_matrix *out, int layer, mq_err *err)
{
    const mq_record_spec *r = find_record(c, -1, 0, MQ_ROLE_ROUTER, 0);
    while (r->key.role != MQ_ROLE_ROUTER || r->key.layer != layer)
        r++;
    return load_record(c, slot, out, r, err);
}

/* ---- What the store asks for ---- */

static mq_status load_layer(void *impl, void *reader, mq_slot *slot, mq_layer_weights *out, int layer, mq_rank_span ranks,
                            mq_err *err)
{
    const synthetic *c = impl;
    int64_t hidden = c->m.hidden, n_experts = c->m.n_experts;
    (void)reader;
    mq_layer_weights common = {.is_moe = c->m.is_moe[layer]};
    MQ_TRY(load_vector(c, slot, &common.input_norm, layer, MQ_ROLE_INPUT_NORM, 0, hidden, hidden, err));
    MQ_TRY(load_vector(c, slot, &common.post_norm, layer, MQ_ROLE_POST_NORM, 0, hidden, hidden, err));
    if (common.is_moe) {
        MQ_TRY(load_router(c, slot, &common.router, layer, err));
        MQ_TRY(load_vector(c, slot, &common.router_bias, layer, MQ_ROLE_ROUTER_BIAS, 0, n_experts, n_experts, err));
    }
    int first = ranks.first;
    for (int i = 0; i < ranks.n; i++) {
        out[i] = common;
        MQ_TRY(load_attn(c, slot, &out[i].attn, layer, first + i, err));
        if (common.is_moe)
            continue;
        MQ_TRY(load(c, slot, &out[i].mlp.gate, layer, first + i, MQ_ROLE_GATE, 0, err));
        MQ_TRY(load(c, slot, &out[i].mlp.up, layer, first + i, MQ_ROLE_UP, 0, err));
        MQ_TRY(load(c, slot, &out[i].mlp.down, layer, first + i, MQ_ROLE_DOWN, 0, err));
    }
    return MQ_OK;
}

static mq_status load_expert(void *impl, void *reader, mq_slot *slot, mq_mlp_weights *out, int layer, int expert,
                             int rank, mq_err *err)
{
    (void)reader;
    *out = (mq_mlp_weights){.interleaved = true};
    MQ_TRY(load(impl, slot, &out->gate_up, layer, rank, MQ_ROLE_EXPERT_GATE_UP, expert, err));
    return load(impl, slot, &out->down, layer, rank, MQ_ROLE_EXPERT_DOWN, expert, err);
}

/* Whole, whatever the ranks. */
static mq_status load_embedding(void *impl, void *reader, mq_slot *slot, mq_matrix *out, mq_err *err)
{
    const synthetic *c = impl;
    mq_record_spec whole = *find_record(c, c->m.n_layers, 0, MQ_ROLE_EMBED, 0);
    (void)reader;
    whole.rows = whole.full_rows;
    return load_record(c, slot, out, &whole, err);
}

static mq_status load_head(void *impl, void *reader, mq_slot *slot, mq_matrix *out, mq_rank_span ranks,
                           mq_err *err)
{
    const synthetic *c = impl;
    (void)reader;
    for (int i = 0; i < ranks.n; i++)
        MQ_TRY(load(c, slot, &out[i], c->m.n_layers, ranks.first + i, MQ_ROLE_HEAD, 0, err));
    return MQ_OK;
}

static mq_status load_final_norm(void *impl, void *reader, mq_slot *slot, const float **out, mq_err *err)
{
    const synthetic *c = impl;
    (void)reader;
    return load_vector(c, slot, out, -1, MQ_ROLE_FINAL_NORM, 0, c->m.hidden, c->m.hidden, err);
}

/* ---- The drafter ---- */

static mq_status load_draft_matrix(const synthetic *c, mq_slot *slot, mq_matrix *out, const mq_file_spec *file, int layer,
                                   mq_role role, mq_err *err)
{
    const mq_record_spec *r = file->records;
    while (r->key.stack != MQ_STACK_DRAFT || r->key.layer != layer || r->key.role != role)
        r++; /* the plan has every role that is named below */
    return load_record(c, slot, out, r, err);
}

static mq_status load_draft_vector(const synthetic *c, mq_slot *slot, const float **out, int layer, mq_role role, int64_t n,
                                   mq_err *err)
{
    return load_vector(c, slot, out, place_of(MQ_STACK_DRAFT, layer), role, 0, n, n, err);
}

static mq_status load_draft(void *impl, void *reader, mq_slot *slot, mq_draft_weights *out, mq_err *err)
{
    const synthetic *c = impl;
    int64_t hidden = c->m.hidden;
    (void)reader;
    MQ_TRY(load_draft_matrix(c, slot, &out->fc, &c->draft_plan->files[0], -1, MQ_ROLE_DRAFT_FC, err));
    MQ_TRY(load_draft_vector(c, slot, &out->hidden_norm, -1, MQ_ROLE_DRAFT_HIDDEN_NORM, hidden, err));
    MQ_TRY(load_draft_vector(c, slot, &out->norm, -1, MQ_ROLE_DRAFT_NORM, hidden, err));
    return load_draft_vector(c, slot, &out->mask, -1, MQ_ROLE_DRAFT_MASK, hidden, err);
}

static mq_status load_draft_slices(const synthetic *c, mq_slot *slot, mq_layer_weights *out, int layer, int rank, mq_err *err)
{
    const mq_plan *plan = c->draft_plan;
    const mq_file_spec *file = &plan->files[plan->n_files - c->n_ranks + rank]; /* the drafter's are the last */
    const mq_attn_geometry *g = &c->draft.attn;
    mq_head_slice h = mq_slice_heads(g, c->n_ranks, rank);
    const struct {
        mq_matrix *m;
        mq_role role;
    } matrices[] = {{&out->attn.q, MQ_ROLE_Q},       {&out->attn.k, MQ_ROLE_K},   {&out->attn.v, MQ_ROLE_V},
                    {&out->attn.o, MQ_ROLE_O},       {&out->mlp.gate, MQ_ROLE_GATE}, {&out->mlp.up, MQ_ROLE_UP},
                    {&out->mlp.down, MQ_ROLE_DOWN}};
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++)
        MQ_TRY(load_draft_matrix(c, slot, matrices[i].m, file, layer, matrices[i].role, err));
    out->attn.n_heads = h.n_heads;
    out->attn.n_kv_heads = h.n_kv_heads;
    return g->has_sink ? load_vector(c, slot, &out->attn.sink, place_of(MQ_STACK_DRAFT, layer), MQ_ROLE_SINK, h.head0,
                                     h.n_heads, g->n_heads, err)
                       : MQ_OK;
}

static mq_status load_draft_layer(void *impl, void *reader, mq_slot *slot, mq_draft_layer_weights *out, mq_stack stack,
                                  int layer, mq_rank_span ranks, mq_err *err)
{
    const synthetic *c = impl;
    int64_t hidden = c->m.hidden, head_dim = c->draft.attn.head_dim;
    mq_draft_layer_weights common = {.layer = {.is_moe = false}};
    (void)reader;
    if (stack != MQ_STACK_DRAFT)
        return mq_fail(err, MQ_E_BUG, "a synthetic model has no MTP layers");
    MQ_TRY(load_draft_vector(c, slot, &common.layer.input_norm, layer, MQ_ROLE_INPUT_NORM, hidden, err));
    MQ_TRY(load_draft_vector(c, slot, &common.layer.post_norm, layer, MQ_ROLE_POST_NORM, hidden, err));
    MQ_TRY(load_draft_vector(c, slot, &common.q_norm, layer, MQ_ROLE_DRAFT_Q_NORM, head_dim, err));
    MQ_TRY(load_draft_vector(c, slot, &common.k_norm, layer, MQ_ROLE_DRAFT_K_NORM, head_dim, err));
    for (int i = 0; i < ranks.n; i++) {
        out[i] = common;
        MQ_TRY(load_draft_slices(c, slot, &out[i].layer, layer, ranks.first + i, err));
    }
    return MQ_OK;
}

static mq_status open_reader(void *impl, void **reader, mq_err *err)
{
    (void)impl, (void)err;
    *reader = NULL;
    return MQ_OK;
}

static void close_reader(void *impl, void *reader)
{
    (void)impl, (void)reader;
}

static void close_synthetic(void *impl)
{
    synthetic *c = impl;
    if (!c)
        return;
    if (c->owns_dev)
        c->kernels->dev_close(c->dev);
    mq_plan_free(c->plan);
    mq_plan_free(c->draft_plan);
    mq_draft_model_release(&c->draft);
    mq_model_release(&c->m);
    free(c);
}

/* ---- Opening ---- */

static mq_status check_options(synthetic *c, const mq_synthetic *o, mq_err *err)
{
    c->expert_scheme = o->expert_scheme == MQ_SCHEME_NONE ? MQ_SCHEME_INT4 : o->expert_scheme;
    c->group = c->expert_scheme == MQ_SCHEME_INT4 && o->group == 0 ? 64 : o->group;
    bool is_int4 = c->expert_scheme == MQ_SCHEME_INT4 && (c->group == 32 || c->group == 64 || c->group == 128);
    bool is_mxfp4 = c->expert_scheme == MQ_SCHEME_MXFP4 && c->group == 0;
    if (!is_int4 && !is_mxfp4)
        return mq_fail(err, MQ_E_ARG, "experts as %s with group %d, expected int4 with 32, 64 or 128, or mxfp4",
                       mq_scheme_name(c->expert_scheme), c->group);
    if (o->only_rank < -1 || o->only_rank >= c->n_ranks)
        return mq_fail(err, MQ_E_ARG, "rank %d of %d ranks alone, expected 0 to %d", o->only_rank, c->n_ranks,
                       c->n_ranks - 1);
    if (o->n_layers < 0 || o->n_layers > c->m.n_layers)
        return mq_fail(err, MQ_E_ARG, "%d layers, expected at most the %d of num_hidden_layers", o->n_layers,
                       c->m.n_layers);
    c->m.n_layers = o->n_layers ? o->n_layers : c->m.n_layers;
    return MQ_OK;
}

/* moe_router_dtype, which the geometry does not keep. */
static mq_status read_router_scheme(synthetic *c, const char *path, mq_err *err)
{
    mq_json *doc;
    MQ_TRY(mq_json_load(&doc, path, 16 << 20, 64, err));
    const mq_json_node *dtype = mq_json_find(mq_json_root(doc), "moe_router_dtype");
    const char *name = dtype ? mq_json_string(dtype) : NULL;
    c->router_scheme = name && strcmp(name, "bfloat16") == 0 ? MQ_SCHEME_BF16 : MQ_SCHEME_F32;
    mq_json_free(doc);
    return MQ_OK;
}

/* The drafter of a model of the layers that the config has: with fewer it looks at the last one there is instead. */
static mq_status open_drafter(synthetic *c, const char *path, int n_layers, mq_err *err)
{
    mq_model m = c->m;
    m.n_layers = n_layers;
    MQ_TRY(mq_draft_model_load(&c->draft, path, &m, err));
    for (int i = 0; i < c->draft.n_taps; i++)
        c->draft.taps[i] = c->draft.taps[i] < c->m.n_layers ? c->draft.taps[i] : c->m.n_layers - 1;
    return mq_wrap(err, mq_plan_create(&c->draft_plan, &c->m, &c->draft, c->n_ranks, c->group, err), "%s", path);
}

static mq_status open_model(synthetic *c, const char *path, const mq_synthetic *o, int n_threads, mq_err *err)
{
    MQ_TRY(mq_model_load(&c->m, path, err));
    int n_layers = c->m.n_layers;
    c->m.n_mtp = 0;
    MQ_TRY(mq_wrap(err, check_options(c, o, err), "%s", path));
    MQ_TRY(read_router_scheme(c, path, err));
    MQ_TRY(mq_wrap(err, mq_plan_create(&c->plan, &c->m, NULL, c->n_ranks, c->group, err), "%s", path));
    if (o->drafter)
        MQ_TRY(open_drafter(c, o->drafter, n_layers, err));
    if (c->kernels)
        return MQ_OK;
    c->kernels = mq_kernels_find("cpu");
    MQ_TRY(c->kernels->dev_open(&c->dev, 0, n_threads, NULL, err));
    c->owns_dev = true;
    return MQ_OK;
}

mq_status mq_backend_open_synthetic(mq_backend *out, const char *path, int n_ranks, const mq_synthetic *o,
                                    const mq_kernels *kernels, mq_dev *dev, int n_threads, mq_err *err)
{
    static const mq_backend_ops ops = {.reader_open = open_reader,
                                       .reader_close = close_reader,
                                       .layer = load_layer,
                                       .expert = load_expert,
                                       .embedding = load_embedding,
                                       .head = load_head,
                                       .final_norm = load_final_norm,
                                       .draft = load_draft,
                                       .draft_layer = load_draft_layer,
                                       .close = close_synthetic};
    *out = (mq_backend){.ops = NULL};
    synthetic *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", path);
    c->kernels = kernels;
    c->dev = dev;
    c->n_ranks = n_ranks;
    c->seed = o->seed;
    mq_status st = open_model(c, path, o, n_threads, err);
    if (st != MQ_OK) {
        close_synthetic(c);
        return st;
    }
    *out = (mq_backend){
        .ops = &ops, .impl = c, .model = &c->m, .draft = c->draft_plan ? &c->draft : NULL, .in_place = true};
    return MQ_OK;
}
