/* Weights of a checkpoint folder: matrices as stored (BF16, F16, F32, FP8, MXFP4 rows), vectors
 * widened to F32.
 *
 * Each logical rank gets the slice that a packed model of as many ranks would hold, so that ranks
 * can be compared without packing.  Layout and legality of the stored bytes are formats/source's
 * business. */
#include <stdlib.h>

#include "formats/plan.h"
#include "formats/source.h"
#include "runtime/slices.h"
#include "runtime/store_backend.h"

typedef struct checkpoint {
    mq_source *source;
    const mq_model *m;
    int n_ranks;
} checkpoint;

/* Rows and columns of a slice; n_rows or n_cols 0: all. */
typedef struct span {
    int64_t row0, n_rows, col0, n_cols;
} span;

/* A layer of the model or of a drafter. */
typedef struct place {
    mq_stack stack;
    int layer;
} place;

static mq_key key_of(place at, mq_role role)
{
    return (mq_key){at.stack, at.layer, role, -1};
}

static const place NO_LAYER = {MQ_STACK_MODEL, -1};

static mq_status read_matrix(const checkpoint *c, mq_slot *slot, mq_matrix *out, mq_key key, span s,
                             mq_err *err)
{
    mq_source_tensor t;
    MQ_TRY(mq_source_find(&t, c->source, key, err));
    int64_t n_rows = s.n_rows ? s.n_rows : t.rows, n_cols = s.n_cols ? s.n_cols : t.cols;
    int64_t data_bytes, scale_bytes;
    void *data, *scale = NULL;
    MQ_TRY(
        mq_source_slice(out, &data_bytes, &scale_bytes, &t, s.row0, n_rows, s.col0, n_cols, err));
    MQ_TRY(mq_slot_take(slot, &data, data_bytes, err));
    if (scale_bytes > 0)
        MQ_TRY(mq_slot_take(slot, &scale, scale_bytes, err));
    if (slot->measuring)
        return MQ_OK;
    MQ_TRY(mq_source_read(out, data, scale, &t, s.row0, n_rows, s.col0, n_cols, err));
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    return mq_wrap(err, mq_backend_check(out, n_rows, n_cols, err), "tensor '%s'", name);
}

/* Elements [first, first + n) of a vector as F32; n 0: all. */
static mq_status read_vector(const checkpoint *c, mq_slot *slot, const float **out, mq_key key,
                             int64_t first, int64_t n, mq_err *err)
{
    mq_source_tensor t;
    mq_matrix view;
    int64_t data_bytes, scale_bytes;
    void *widened;
    MQ_TRY(mq_source_find(&t, c->source, key, err));
    n = n ? n : t.cols;
    MQ_TRY(mq_source_slice(&view, &data_bytes, &scale_bytes, &t, 0, 1, first, n, err));
    MQ_TRY(mq_slot_take(slot, &widened, n * (int64_t)sizeof(float), err));
    *out = widened;
    if (slot->measuring)
        return MQ_OK;
    void *stored = malloc((size_t)data_bytes + 1);
    if (!stored)
        return mq_fail(err, MQ_E_NOMEM, "a vector of %lld bytes: out of memory",
                       (long long)data_bytes);
    mq_status st = mq_source_read(&view, stored, NULL, &t, 0, 1, first, n, err);
    if (st == MQ_OK)
        mq_matrix_widen(&view, 0, 1, widened);
    free(stored);
    return st;
}

static mq_status read_attn(const checkpoint *c, mq_slot *slot, mq_attn_weights *out, place at,
                           const mq_attn_geometry *g, int rank, mq_err *err)
{
    mq_head_slice h = mq_slice_heads(g, c->n_ranks, rank);
    span q = {(int64_t)h.head0 * g->head_dim, (int64_t)h.n_heads * g->head_dim, 0, 0};
    span k = {(int64_t)h.kv_head0 * g->head_dim, (int64_t)h.n_kv_heads * g->head_dim, 0, 0};
    span v = {(int64_t)h.kv_head0 * g->v_head_dim, (int64_t)h.n_kv_heads * g->v_head_dim, 0, 0};
    span o = {0, 0, (int64_t)h.head0 * g->v_head_dim, (int64_t)h.n_heads * g->v_head_dim};

    *out = (mq_attn_weights){.n_heads = h.n_heads, .n_kv_heads = h.n_kv_heads};
    MQ_TRY(read_matrix(c, slot, &out->q, key_of(at, MQ_ROLE_Q), q, err));
    MQ_TRY(read_matrix(c, slot, &out->k, key_of(at, MQ_ROLE_K), k, err));
    MQ_TRY(read_matrix(c, slot, &out->v, key_of(at, MQ_ROLE_V), v, err));
    MQ_TRY(read_matrix(c, slot, &out->o, key_of(at, MQ_ROLE_O), o, err));
    if (g->has_sink)
        MQ_TRY(read_vector(c, slot, &out->sink, key_of(at, MQ_ROLE_SINK), h.head0, h.n_heads, err));
    return MQ_OK;
}

/* The three matrices of a SwiGLU block whose full width is width, the gate's key given; those of up
 * and down are the next two roles. */
static mq_status read_mlp(const checkpoint *c, mq_slot *slot, mq_mlp_weights *out, mq_key gate,
                          int64_t width, int rank, mq_err *err)
{
    mq_key up = gate, down = gate;
    up.role = gate.role + 1;
    down.role = gate.role + 2;
    int64_t part = width / c->n_ranks;
    span rows = {rank * part, part, 0, 0}, cols = {0, 0, rank * part, part};
    *out = (mq_mlp_weights){.interleaved = false};
    MQ_TRY(read_matrix(c, slot, &out->gate, gate, rows, err));
    MQ_TRY(read_matrix(c, slot, &out->up, up, rows, err));
    return read_matrix(c, slot, &out->down, down, cols, err);
}

static mq_status read_norms(const checkpoint *c, mq_slot *slot, mq_layer_weights *out, place at,
                            mq_err *err)
{
    MQ_TRY(read_vector(c, slot, &out->input_norm, key_of(at, MQ_ROLE_INPUT_NORM), 0, 0, err));
    return read_vector(c, slot, &out->post_norm, key_of(at, MQ_ROLE_POST_NORM), 0, 0, err);
}

static mq_status load_layer(void *impl, void *reader, mq_slot *slot, mq_layer_weights *out,
                            int layer, mq_rank_span ranks, mq_err *err)
{
    const checkpoint *c = impl;
    const place at = {MQ_STACK_MODEL, layer};
    (void)reader;
    mq_layer_weights common = {.is_moe = c->m->is_moe[layer]};
    MQ_TRY(read_norms(c, slot, &common, at, err));
    if (common.is_moe) {
        span all = {0, 0, 0, 0};
        MQ_TRY(read_matrix(c, slot, &common.router, key_of(at, MQ_ROLE_ROUTER), all, err));
        MQ_TRY(
            read_vector(c, slot, &common.router_bias, key_of(at, MQ_ROLE_ROUTER_BIAS), 0, 0, err));
    }
    for (int i = 0; i < ranks.n; i++) {
        int r = ranks.first + i;
        out[i] = common;
        MQ_TRY(read_attn(c, slot, &out[i].attn, at, mq_model_attn(c->m, layer), r, err));
        if (!common.is_moe)
            MQ_TRY(read_mlp(c, slot, &out[i].mlp, key_of(at, MQ_ROLE_GATE), c->m->intermediate, r,
                            err));
    }
    return MQ_OK;
}

static mq_status load_expert(void *impl, void *reader, mq_slot *slot, mq_mlp_weights *out,
                             int layer, int expert, int rank, mq_err *err)
{
    const checkpoint *c = impl;
    mq_key gate = {MQ_STACK_MODEL, layer, MQ_ROLE_EXPERT_GATE, expert};
    (void)reader;
    return read_mlp(c, slot, out, gate, c->m->moe_intermediate, rank, err);
}

/* ---- Drafters ---- */

static mq_status load_draft(void *impl, void *reader, mq_slot *slot, mq_draft_weights *out,
                            mq_err *err)
{
    static const place draft = {MQ_STACK_DRAFT, -1};
    const checkpoint *c = impl;
    (void)reader;
    MQ_TRY(
        read_matrix(c, slot, &out->fc, key_of(draft, MQ_ROLE_DRAFT_FC), (span){0, 0, 0, 0}, err));
    MQ_TRY(read_vector(c, slot, &out->hidden_norm, key_of(draft, MQ_ROLE_DRAFT_HIDDEN_NORM), 0, 0,
                       err));
    MQ_TRY(read_vector(c, slot, &out->norm, key_of(draft, MQ_ROLE_DRAFT_NORM), 0, 0, err));
    return read_vector(c, slot, &out->mask, key_of(draft, MQ_ROLE_DRAFT_MASK), 0, 0, err);
}

/* Norms, which all ranks share. */
static mq_status read_draft_norms(const checkpoint *c, mq_slot *slot, mq_draft_layer_weights *out,
                                  place at, mq_err *err)
{
    MQ_TRY(read_norms(c, slot, &out->layer, at, err));
    if (at.stack == MQ_STACK_DRAFT) {
        MQ_TRY(read_vector(c, slot, &out->q_norm, key_of(at, MQ_ROLE_DRAFT_Q_NORM), 0, 0, err));
        return read_vector(c, slot, &out->k_norm, key_of(at, MQ_ROLE_DRAFT_K_NORM), 0, 0, err);
    }
    MQ_TRY(read_vector(c, slot, &out->enorm, key_of(at, MQ_ROLE_MTP_ENORM), 0, 0, err));
    MQ_TRY(read_vector(c, slot, &out->hnorm, key_of(at, MQ_ROLE_MTP_HNORM), 0, 0, err));
    return read_vector(c, slot, &out->final_norm, key_of(at, MQ_ROLE_MTP_FINAL_NORM), 0, 0, err);
}

static mq_status load_draft_layer(void *impl, void *reader, mq_slot *slot,
                                  mq_draft_layer_weights *out, mq_stack stack, int layer,
                                  mq_rank_span ranks, mq_err *err)
{
    const checkpoint *c = impl;
    const mq_draft_model *d = &c->source->draft;
    const place at = {stack, layer};
    const mq_attn_geometry *g = stack == MQ_STACK_DRAFT ? &d->attn : &c->m->swa;
    int64_t width = stack == MQ_STACK_DRAFT ? d->intermediate : c->m->intermediate;
    int64_t part = c->m->hidden / c->n_ranks;
    (void)reader;
    mq_draft_layer_weights common = {.layer = {.is_moe = false}};
    MQ_TRY(read_draft_norms(c, slot, &common, at, err));
    for (int i = 0; i < ranks.n; i++) {
        int r = ranks.first + i;
        out[i] = common;
        MQ_TRY(read_attn(c, slot, &out[i].layer.attn, at, g, r, err));
        MQ_TRY(read_mlp(c, slot, &out[i].layer.mlp, key_of(at, MQ_ROLE_GATE), width, r, err));
        if (stack == MQ_STACK_MTP)
            MQ_TRY(read_matrix(c, slot, &out[i].eh_proj, key_of(at, MQ_ROLE_MTP_EH_PROJ),
                               (span){r * part, part, 0, 0}, err));
    }
    return MQ_OK;
}

/* ---- What is not in a layer ---- */

static mq_status load_embedding(void *impl, void *reader, mq_slot *slot, mq_matrix *out,
                                mq_err *err)
{
    (void)reader;
    return read_matrix(impl, slot, out, key_of(NO_LAYER, MQ_ROLE_EMBED), (span){0, 0, 0, 0}, err);
}

static mq_status load_head(void *impl, void *reader, mq_slot *slot, mq_matrix *out, mq_rank_span ranks,
                           mq_err *err)
{
    const checkpoint *c = impl;
    (void)reader;
    int64_t part = c->m->vocab / c->n_ranks;
    for (int i = 0; i < ranks.n; i++)
        MQ_TRY(read_matrix(c, slot, &out[i], key_of(NO_LAYER, MQ_ROLE_HEAD),
                           (span){(ranks.first + i) * part, part, 0, 0}, err));
    return MQ_OK;
}

static mq_status load_final_norm(void *impl, void *reader, mq_slot *slot, const float **out,
                                 mq_err *err)
{
    (void)reader;
    return read_vector(impl, slot, out, key_of(NO_LAYER, MQ_ROLE_FINAL_NORM), 0, 0, err);
}

static mq_status open_reader(void *impl, void **reader, mq_err *err)
{
    (void)impl, (void)err;
    *reader = NULL; /* tensors are read by position, nothing is kept between reads */
    return MQ_OK;
}

static void close_reader(void *impl, void *reader)
{
    (void)impl, (void)reader;
}

static void close_checkpoint(void *impl)
{
    checkpoint *c = impl;
    if (!c)
        return;
    mq_source_close(c->source);
    free(c);
}

mq_status mq_backend_open_checkpoint(mq_backend *out, const char *dir, int n_ranks, bool with_draft,
                                     mq_err *err)
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
                                       .close = close_checkpoint};
    *out = (mq_backend){.ops = NULL};
    checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    c->n_ranks = n_ranks;
    mq_status st = mq_source_open(&c->source, dir, err);
    const mq_draft_model *draft = st == MQ_OK && c->source->has_draft ? &c->source->draft : NULL;
    if (st == MQ_OK && n_ranks != 1)
        st = mq_wrap(
            err, mq_plan_check_ranks(&c->source->model, with_draft ? draft : NULL, n_ranks, 0, err),
            "%s", dir);
    if (st != MQ_OK) {
        close_checkpoint(c);
        return st;
    }
    c->m = &c->source->model;
    *out = (mq_backend){.ops = &ops, .impl = c, .model = c->m, .draft = draft};
    return MQ_OK;
}
