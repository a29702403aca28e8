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

static mq_key key_of(int layer, mq_role role, int expert)
{
    return (mq_key){MQ_STACK_MODEL, layer, role, expert};
}

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

static mq_status read_attn(const checkpoint *c, mq_slot *slot, mq_attn_weights *out, int layer,
                           int rank, mq_err *err)
{
    const mq_attn_geometry *g = mq_model_attn(c->m, layer);
    mq_head_slice h = mq_slice_heads(g, c->n_ranks, rank);
    span q = {(int64_t)h.head0 * g->head_dim, (int64_t)h.n_heads * g->head_dim, 0, 0};
    span k = {(int64_t)h.kv_head0 * g->head_dim, (int64_t)h.n_kv_heads * g->head_dim, 0, 0};
    span v = {(int64_t)h.kv_head0 * g->v_head_dim, (int64_t)h.n_kv_heads * g->v_head_dim, 0, 0};
    span o = {0, 0, (int64_t)h.head0 * g->v_head_dim, (int64_t)h.n_heads * g->v_head_dim};

    *out = (mq_attn_weights){.n_heads = h.n_heads, .n_kv_heads = h.n_kv_heads};
    MQ_TRY(read_matrix(c, slot, &out->q, key_of(layer, MQ_ROLE_Q, -1), q, err));
    MQ_TRY(read_matrix(c, slot, &out->k, key_of(layer, MQ_ROLE_K, -1), k, err));
    MQ_TRY(read_matrix(c, slot, &out->v, key_of(layer, MQ_ROLE_V, -1), v, err));
    MQ_TRY(read_matrix(c, slot, &out->o, key_of(layer, MQ_ROLE_O, -1), o, err));
    if (g->has_sink)
        MQ_TRY(read_vector(c, slot, &out->sink, key_of(layer, MQ_ROLE_SINK, -1), h.head0, h.n_heads,
                           err));
    return MQ_OK;
}

/* The three matrices of a SwiGLU block whose full width is width; roles are those of gate, up and
 * down. */
static mq_status read_mlp(const checkpoint *c, mq_slot *slot, mq_mlp_weights *out, int layer,
                          const mq_role roles[3], int expert, int64_t width, int rank, mq_err *err)
{
    int64_t part = width / c->n_ranks;
    span rows = {rank * part, part, 0, 0}, cols = {0, 0, rank * part, part};
    *out = (mq_mlp_weights){.interleaved = false};
    MQ_TRY(read_matrix(c, slot, &out->gate, key_of(layer, roles[0], expert), rows, err));
    MQ_TRY(read_matrix(c, slot, &out->up, key_of(layer, roles[1], expert), rows, err));
    return read_matrix(c, slot, &out->down, key_of(layer, roles[2], expert), cols, err);
}

static mq_status load_layer(void *impl, void *reader, mq_slot *slot, mq_layer_weights *out,
                            int layer, mq_err *err)
{
    static const mq_role dense[3] = {MQ_ROLE_GATE, MQ_ROLE_UP, MQ_ROLE_DOWN};
    const checkpoint *c = impl;
    (void)reader;
    mq_layer_weights common = {.is_moe = c->m->is_moe[layer]};
    MQ_TRY(
        read_vector(c, slot, &common.input_norm, key_of(layer, MQ_ROLE_INPUT_NORM, -1), 0, 0, err));
    MQ_TRY(
        read_vector(c, slot, &common.post_norm, key_of(layer, MQ_ROLE_POST_NORM, -1), 0, 0, err));
    if (common.is_moe) {
        span all = {0, 0, 0, 0};
        MQ_TRY(read_matrix(c, slot, &common.router, key_of(layer, MQ_ROLE_ROUTER, -1), all, err));
        MQ_TRY(read_vector(c, slot, &common.router_bias, key_of(layer, MQ_ROLE_ROUTER_BIAS, -1), 0,
                           0, err));
    }
    for (int r = 0; r < c->n_ranks; r++) {
        out[r] = common;
        MQ_TRY(read_attn(c, slot, &out[r].attn, layer, r, err));
        if (!common.is_moe)
            MQ_TRY(read_mlp(c, slot, &out[r].mlp, layer, dense, -1, c->m->intermediate, r, err));
    }
    return MQ_OK;
}

static mq_status load_expert(void *impl, void *reader, mq_slot *slot, mq_mlp_weights *out,
                             int layer, int expert, int rank, mq_err *err)
{
    static const mq_role routed[3] = {MQ_ROLE_EXPERT_GATE, MQ_ROLE_EXPERT_UP, MQ_ROLE_EXPERT_DOWN};
    const checkpoint *c = impl;
    (void)reader;
    return read_mlp(c, slot, out, layer, routed, expert, c->m->moe_intermediate, rank, err);
}

static mq_status load_embedding(void *impl, void *reader, mq_slot *slot, mq_matrix *out,
                                mq_err *err)
{
    (void)reader;
    return read_matrix(impl, slot, out, key_of(-1, MQ_ROLE_EMBED, -1), (span){0, 0, 0, 0}, err);
}

static mq_status load_head(void *impl, void *reader, mq_slot *slot, mq_matrix *out, mq_err *err)
{
    const checkpoint *c = impl;
    (void)reader;
    int64_t part = c->m->vocab / c->n_ranks;
    for (int r = 0; r < c->n_ranks; r++)
        MQ_TRY(read_matrix(c, slot, &out[r], key_of(-1, MQ_ROLE_HEAD, -1),
                           (span){r * part, part, 0, 0}, err));
    return MQ_OK;
}

static mq_status load_final_norm(void *impl, void *reader, mq_slot *slot, const float **out,
                                 mq_err *err)
{
    (void)reader;
    return read_vector(impl, slot, out, key_of(-1, MQ_ROLE_FINAL_NORM, -1), 0, 0, err);
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

mq_status mq_backend_open_checkpoint(mq_backend *out, const char *dir, int n_ranks, mq_err *err)
{
    static const mq_backend_ops ops = {open_reader,     close_reader,    load_layer,
                                       load_expert,     load_embedding,  load_head,
                                       load_final_norm, close_checkpoint};
    *out = (mq_backend){NULL, NULL, NULL};
    checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    c->n_ranks = n_ranks;
    mq_status st = mq_source_open(&c->source, dir, err);
    if (st == MQ_OK && n_ranks != 1)
        st = mq_wrap(err, mq_plan_check_ranks(&c->source->model, NULL, n_ranks, 0, err), "%s", dir);
    if (st != MQ_OK) {
        close_checkpoint(c);
        return st;
    }
    c->m = &c->source->model;
    *out = (mq_backend){&ops, c, c->m};
    return MQ_OK;
}
