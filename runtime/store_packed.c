/* Weights of a packed model: records of N file ranks, lent to R logical ranks.
 *
 * A slot with a load gets no bytes here: each record is noted with its place in the slot, slices that must be merged as a task,
 * and only vectors, which are small, are read at once.
 *
 * With R equal to N a record's bytes are used as they are.  With fewer, N/R slices are merged while
 * loading (merge.c); KV heads that several file ranks repeat are kept once.  What a record is
 * called, and that its shape is the plan's, formats has checked when the shard was opened. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/manifest.h"
#include "runtime/load.h"
#include "runtime/merge.h"
#include "runtime/slices.h"
#include "runtime/store_backend.h"
#include "src/dtype.h"

typedef struct packed {
    mq_packed *p;
    const mq_model *m;
    mq_shard *common;
    int n_files, n_ranks; /* N and R */
    bool check;
} packed;

/* The shards of one layer, of the head, or of the DFlash drafter. */
typedef struct reader {
    int64_t first_file; /* plan index of rank 0's file; -1: none open */
    int n_shards;
    mq_shard *shards[];
} reader;

/* A layer of the model or of a drafter. */
typedef struct place {
    mq_stack stack;
    int layer;
} place;

static const place NO_LAYER = {MQ_STACK_MODEL, -1};

static mq_key key_of(place at, mq_role role)
{
    return (mq_key){at.stack, at.layer, role, -1};
}

static void close_shards(reader *r)
{
    for (int i = 0; i < r->n_shards; i++) {
        mq_shard_close(r->shards[i]);
        r->shards[i] = NULL;
    }
    r->first_file = -1;
}

/* Plan order: common, layers with the rank running fastest, head, MTP layers, drafter
 * (formats/plan.h). */
static int64_t first_file(const packed *c, mq_key key)
{
    int64_t layers = c->m->n_layers;
    int64_t group = key.stack == MQ_STACK_DRAFT ? layers + 1 + c->m->n_mtp
                    : key.stack == MQ_STACK_MTP ? layers + 1 + key.layer
                    : key.layer >= 0            ? key.layer
                                                : layers;
    return 1 + group * c->n_files;
}

static mq_status open_shards(const packed *c, reader *r, mq_key key, mq_err *err)
{
    int64_t first = first_file(c, key);
    if (r->first_file == first)
        return MQ_OK;
    close_shards(r);
    for (int i = 0; i < c->n_files; i++)
        MQ_TRY(mq_packed_shard(&r->shards[i], c->p, first + i, err));
    r->first_file = first;
    return MQ_OK;
}

static mq_status find_record(int64_t *index, const mq_shard *s, mq_key key, mq_err *err)
{
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    *index = mq_shard_find(s, name);
    return *index >= 0 ? MQ_OK : mq_fail(err, MQ_E_FORMAT, "tensor '%s': missing", name);
}

/* Record i of s, its bytes in slot. */
static mq_status load_record(const packed *c, mq_slot *slot, mq_matrix *out, const mq_shard *s,
                             int64_t i, mq_err *err)
{
    void *plain;
    MQ_TRY(mq_slot_take(slot, &plain, (int64_t)mq_shard_entry_at(s, i)->plain_bytes, err));
    *out = mq_shard_matrix(s, i, plain);
    if (slot->load)
        return mq_load_record(slot->load, s, i, plain, err);
    return slot->measuring ? MQ_OK : mq_shard_load(s, i, plain, c->check, err);
}

/* A record of the common file as F32, elements [first, first + n); n 0: all. */
static mq_status load_vector(const packed *c, mq_slot *slot, const float **out, mq_key key,
                             int64_t first, int64_t n, mq_err *err)
{
    int64_t i;
    void *values;
    MQ_TRY(find_record(&i, c->common, key, err));
    const mq_shard_entry *e = mq_shard_entry_at(c->common, i);
    n = n ? n : (int64_t)e->cols;
    MQ_TRY(mq_slot_take(slot, &values, 4 * n, err));
    *out = values;
    if (slot->measuring)
        return MQ_OK;
    float *all = malloc(((size_t)e->cols + 1) * sizeof *all);
    void *plain = aligned_alloc(64, (size_t)mq_round_up((int64_t)e->plain_bytes + 1, 64));
    mq_status st = MQ_OK;
    if (!all || !plain)
        st = mq_fail(err, MQ_E_NOMEM, "a vector of %lld bytes: out of memory",
                     (long long)e->plain_bytes);
    else if (slot->load)
        st = mq_load_read(slot->load, 0, c->common, i, plain, err);
    else
        st = mq_shard_load(c->common, i, plain, c->check, err);
    if (st == MQ_OK) {
        mq_matrix view = mq_shard_matrix(c->common, i, plain);
        mq_matrix_widen(&view, 0, 1, all);
        if (slot->load)
            st = mq_load_put(slot->load, 0, values, all + first, 4 * n, err);
        else
            memcpy(values, all + first, (size_t)n * sizeof *all);
    }
    free(plain);
    free(all);
    return st;
}

/* ---- Slices ---- */

/* Rows of a fused chunk's share of q, k or v; INT64_MAX where nothing is fused. */
static int64_t chunk_rows(const mq_model *m, mq_key key)
{
    if (!m->fused_qkv || key.layer < 0 || key.stack == MQ_STACK_DRAFT)
        return INT64_MAX;
    const mq_attn_geometry *g = key.stack == MQ_STACK_MTP ? &m->swa : mq_model_attn(m, key.layer);
    int64_t chunks = m->full.n_kv_heads;
    switch (key.role) {
    case MQ_ROLE_Q:
        return (int64_t)g->n_heads / chunks * g->head_dim;
    case MQ_ROLE_K:
        return (int64_t)g->n_kv_heads / chunks * g->head_dim;
    case MQ_ROLE_V:
        return (int64_t)g->n_kv_heads / chunks * g->v_head_dim;
    default:
        return INT64_MAX;
    }
}

/* The file ranks' slices before they are merged. */
typedef struct slice {
    const mq_shard *shard;
    int64_t index; /* of the record */
    void *bytes;   /* plain bytes, heap; NULL until loaded */
} slice;

typedef struct slices {
    int n;
    mq_part *parts; /* views of the slices; pointers NULL until loaded */
    slice *from;
} slices;

static void free_slices(slices *s)
{
    for (int i = 0; s->from && i < s->n; i++)
        free(s->from[i].bytes);
    free(s->from);
    free(s->parts);
}

/* Append the slice that shard holds, unless it repeats the one before (a KV head of several ranks).
 */
static mq_status add_slice(slices *s, const mq_shard *shard, mq_key key, mq_err *err)
{
    int64_t i;
    MQ_TRY(find_record(&i, shard, key, err));
    const mq_shard_entry *e = mq_shard_entry_at(shard, i);
    mq_part part = {mq_shard_matrix(shard, i, NULL), (int64_t)e->row0, (int64_t)e->col0};
    const mq_part *last = s->n > 0 ? &s->parts[s->n - 1] : NULL;
    if (last && part.row0 == last->row0 && part.col0 == last->col0)
        return MQ_OK;
    s->parts[s->n] = part;
    s->from[s->n++] = (slice){shard, i, NULL};
    return MQ_OK;
}

/* Slices by rows without scales of their own: their bytes are simply appended. */
static bool is_stack(const slices *s)
{
    return s->parts[0].m.scheme != MQ_SCHEME_FP8_BLOCK &&
           (s->n == 1 || s->parts[1].col0 == s->parts[0].col0);
}

static mq_status merge(mq_slot *slot, mq_matrix *out, const slices *s, mq_key key,
                       int64_t part_rows, mq_err *err)
{
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    return mq_wrap(err, mq_merge_parts(slot, out, s->parts, s->n, part_rows, err), "tensor '%s'",
                   name);
}

/* Load appended slices right where they belong: an embedding is too large to hold twice. */
static mq_status load_stack(const packed *c, mq_slot *slot, mq_matrix *out, const slices *s,
                            mq_key key, mq_err *err)
{
    mq_slot probe = {.measuring = true};
    void *at;
    MQ_TRY(merge(&probe, out, s, key, INT64_MAX, err)); /* checks, and sets out's shape */
    MQ_TRY(mq_slot_take(slot, &at, probe.used, err));
    out->data = at;
    for (int i = 0; !slot->measuring && i < s->n; i++) {
        const slice *f = &s->from[i];
        MQ_TRY(slot->load ? mq_load_record(slot->load, f->shard, f->index, at, err)
                          : mq_shard_load(f->shard, f->index, at, c->check, err));
        at = (uint8_t *)at + mq_shard_entry_at(f->shard, f->index)->plain_bytes;
    }
    return MQ_OK;
}

/* The slices' bytes; load NULL: read here, else by its worker. */
static mq_status load_pieces(const packed *c, slices *s, mq_load *load, int worker, mq_err *err)
{
    for (int i = 0; i < s->n; i++) {
        slice *f = &s->from[i];
        int64_t n_bytes = (int64_t)mq_shard_entry_at(f->shard, f->index)->plain_bytes;
        f->bytes = aligned_alloc(64, (size_t)mq_round_up(n_bytes + 1, 64));
        if (!f->bytes)
            return mq_fail(err, MQ_E_NOMEM, "a record of %lld bytes: out of memory",
                           (long long)n_bytes);
        MQ_TRY(load ? mq_load_read(load, worker, f->shard, f->index, f->bytes, err)
                    : mq_shard_load(f->shard, f->index, f->bytes, c->check, err));
        s->parts[i].m = mq_shard_matrix(f->shard, f->index, f->bytes);
    }
    return MQ_OK;
}

/* A merge that is done when its slices are read. */
typedef struct merge_task {
    const packed *c;
    slices s; /* owned */
    mq_key key;
    uint8_t *dst; /* [n_bytes] in the slot */
    int64_t n_bytes;
} merge_task;

static void free_merge(void *ctx)
{
    merge_task *t = ctx;
    free_slices(&t->s);
    free(t);
}

static mq_status run_merge(void *ctx, mq_load *load, int worker, mq_err *err)
{
    merge_task *t = ctx;
    mq_matrix whole;
    mq_slot slot = {.mem = t->dst, .cap = t->n_bytes};
    bool in_place = mq_load_is_host(load);
    MQ_TRY(load_pieces(t->c, &t->s, load, worker, err));
    if (!in_place)
        MQ_TRY(mq_slot_alloc(&slot, t->n_bytes, err));
    mq_status st = merge(&slot, &whole, &t->s, t->key, chunk_rows(t->c->m, t->key), err);
    if (in_place)
        return st;
    if (st == MQ_OK)
        st = mq_load_put(load, worker, t->dst, slot.mem, t->n_bytes, err);
    mq_slot_free(&slot);
    return st;
}

/* Note the merge of s, which is taken over: its place in slot and out's shape are known from headers. */
static mq_status plan_merge(const packed *c, mq_slot *slot, mq_matrix *out, slices *s, mq_key key,
                            mq_err *err)
{
    mq_slot probe = {.measuring = true};
    void *at;
    MQ_TRY(merge(&probe, out, s, key, chunk_rows(c->m, key), err));
    MQ_TRY(mq_slot_take(slot, &at, probe.used, err));
    out->data = at;
    if (out->scheme == MQ_SCHEME_FP8_BLOCK) /* the last that a merge takes */
        out->scale = (uint8_t *)at + probe.used - 4 * mq_fp8_n_scales(out);
    merge_task *t = malloc(sizeof *t);
    if (!t)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    *t = (merge_task){c, *s, key, at, probe.used};
    *s = (slices){0, NULL, NULL};
    const slice *first = &t->s.from[0];
    return mq_load_add(slot->load, first->shard, first->index,
                       (mq_load_task){run_merge, free_merge, t, probe.used}, err);
}

/* Slices of file ranks [first, first + n) merged into slot; the shards are open. */
static mq_status load_merged(const packed *c, const reader *r, mq_slot *slot, mq_matrix *out,
                             mq_key key, int first, int n, mq_err *err)
{
    slices s = {0, calloc((size_t)n, sizeof *s.parts), calloc((size_t)n, sizeof *s.from)};
    mq_status st = MQ_OK;
    if (!s.parts || !s.from)
        st = mq_fail(err, MQ_E_NOMEM, "out of memory");
    for (int i = 0; st == MQ_OK && i < n; i++)
        st = add_slice(&s, r->shards[first + i], key, err);
    if (st == MQ_OK && is_stack(&s)) {
        st = load_stack(c, slot, out, &s, key, err);
    } else if (st == MQ_OK && slot->load) {
        st = plan_merge(c, slot, out, &s, key, err);
    } else if (st == MQ_OK) {
        st = slot->measuring ? MQ_OK : load_pieces(c, &s, NULL, 0, err);
        if (st == MQ_OK)
            st = merge(slot, out, &s, key, chunk_rows(c->m, key), err);
    }
    free_slices(&s);
    return st;
}

/* Matrix key [rows, cols] of file ranks [first, first + n). */
static mq_status load_matrix(const packed *c, reader *r, mq_slot *slot, mq_matrix *out, mq_key key,
                             int first, int n, int64_t rows, int64_t cols, mq_err *err)
{
    MQ_TRY(open_shards(c, r, key, err));
    if (n == 1) {
        int64_t i;
        MQ_TRY(find_record(&i, r->shards[first], key, err));
        MQ_TRY(load_record(c, slot, out, r->shards[first], i, err));
    } else {
        MQ_TRY(load_merged(c, r, slot, out, key, first, n, err));
    }
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    return mq_wrap(err, mq_backend_check(out, rows, cols, err), "tensor '%s'", name);
}

/* The same for a logical rank. */
static mq_status load_rank(const packed *c, reader *r, mq_slot *slot, mq_matrix *out, mq_key key,
                           int rank, int64_t rows, int64_t cols, mq_err *err)
{
    int n = c->n_files / c->n_ranks;
    return load_matrix(c, r, slot, out, key, rank * n, n, rows, cols, err);
}

static mq_status load_attn(const packed *c, reader *r, mq_slot *slot, mq_attn_weights *out,
                           place at, const mq_attn_geometry *g, int rank, mq_err *err)
{
    mq_head_slice h = mq_slice_heads(g, c->n_ranks, rank);
    int64_t hidden = c->m->hidden, nh = h.n_heads, nkv = h.n_kv_heads;
    *out = (mq_attn_weights){.n_heads = h.n_heads, .n_kv_heads = h.n_kv_heads};
    MQ_TRY(
        load_rank(c, r, slot, &out->q, key_of(at, MQ_ROLE_Q), rank, nh * g->head_dim, hidden, err));
    MQ_TRY(load_rank(c, r, slot, &out->k, key_of(at, MQ_ROLE_K), rank, nkv * g->head_dim, hidden,
                     err));
    MQ_TRY(load_rank(c, r, slot, &out->v, key_of(at, MQ_ROLE_V), rank, nkv * g->v_head_dim, hidden,
                     err));
    MQ_TRY(load_rank(c, r, slot, &out->o, key_of(at, MQ_ROLE_O), rank, hidden, nh * g->v_head_dim,
                     err));
    if (g->has_sink)
        MQ_TRY(load_vector(c, slot, &out->sink, key_of(at, MQ_ROLE_SINK), h.head0, h.n_heads, err));
    return MQ_OK;
}

/* A dense MLP whose full width is width. */
static mq_status load_dense(const packed *c, reader *r, mq_slot *slot, mq_mlp_weights *out,
                            place at, int64_t width, int rank, mq_err *err)
{
    int64_t part = width / c->n_ranks, hidden = c->m->hidden;
    *out = (mq_mlp_weights){.interleaved = false};
    MQ_TRY(load_rank(c, r, slot, &out->gate, key_of(at, MQ_ROLE_GATE), rank, part, hidden, err));
    MQ_TRY(load_rank(c, r, slot, &out->up, key_of(at, MQ_ROLE_UP), rank, part, hidden, err));
    return load_rank(c, r, slot, &out->down, key_of(at, MQ_ROLE_DOWN), rank, hidden, part, err);
}

/* A matrix of the common file. */
static mq_status load_common(const packed *c, mq_slot *slot, mq_matrix *out, mq_key key,
                             int64_t rows, int64_t cols, mq_err *err)
{
    int64_t i;
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    MQ_TRY(find_record(&i, c->common, key, err));
    MQ_TRY(load_record(c, slot, out, c->common, i, err));
    return mq_wrap(err, mq_backend_check(out, rows, cols, err), "tensor '%s'", name);
}

static mq_status load_norms(const packed *c, mq_slot *slot, mq_layer_weights *out, place at,
                            mq_err *err)
{
    MQ_TRY(load_vector(c, slot, &out->input_norm, key_of(at, MQ_ROLE_INPUT_NORM), 0, 0, err));
    return load_vector(c, slot, &out->post_norm, key_of(at, MQ_ROLE_POST_NORM), 0, 0, err);
}

/* ---- What the store asks for ---- */

static mq_status load_layer(void *impl, void *rd, mq_slot *slot, mq_layer_weights *out, int layer, mq_rank_span ranks,
                            mq_err *err)
{
    const packed *c = impl;
    const place at = {MQ_STACK_MODEL, layer};
    mq_layer_weights common = {.is_moe = c->m->is_moe[layer]};
    MQ_TRY(load_norms(c, slot, &common, at, err));
    if (common.is_moe) {
        MQ_TRY(load_common(c, slot, &common.router, key_of(at, MQ_ROLE_ROUTER), c->m->n_experts,
                           c->m->hidden, err));
        MQ_TRY(
            load_vector(c, slot, &common.router_bias, key_of(at, MQ_ROLE_ROUTER_BIAS), 0, 0, err));
    }
    for (int i = 0; i < ranks.n; i++) {
        int r = ranks.first + i;
        out[i] = common;
        MQ_TRY(load_attn(c, rd, slot, &out[i].attn, at, mq_model_attn(c->m, layer), r, err));
        if (!common.is_moe)
            MQ_TRY(load_dense(c, rd, slot, &out[i].mlp, at, c->m->intermediate, r, err));
    }
    return MQ_OK;
}

static mq_status load_expert(void *impl, void *rd, mq_slot *slot, mq_mlp_weights *out, int layer,
                             int expert, int rank, mq_err *err)
{
    const packed *c = impl;
    int64_t width = c->m->moe_intermediate / c->n_ranks, hidden = c->m->hidden;
    mq_key gate_up = {MQ_STACK_MODEL, layer, MQ_ROLE_EXPERT_GATE_UP, expert},
           down = {MQ_STACK_MODEL, layer, MQ_ROLE_EXPERT_DOWN, expert};
    *out = (mq_mlp_weights){.interleaved = true};
    MQ_TRY(load_rank(c, rd, slot, &out->gate_up, gate_up, rank, 2 * width, hidden, err));
    return load_rank(c, rd, slot, &out->down, down, rank, hidden, width, err);
}

static mq_status load_draft(void *impl, void *rd, mq_slot *slot, mq_draft_weights *out, mq_err *err)
{
    static const place draft = {MQ_STACK_DRAFT, -1};
    const packed *c = impl;
    int64_t hidden = c->m->hidden;
    (void)rd;
    MQ_TRY(load_common(c, slot, &out->fc, key_of(draft, MQ_ROLE_DRAFT_FC), hidden,
                       c->p->draft.n_taps * hidden, err));
    MQ_TRY(load_vector(c, slot, &out->hidden_norm, key_of(draft, MQ_ROLE_DRAFT_HIDDEN_NORM), 0, 0,
                       err));
    MQ_TRY(load_vector(c, slot, &out->norm, key_of(draft, MQ_ROLE_DRAFT_NORM), 0, 0, err));
    return load_vector(c, slot, &out->mask, key_of(draft, MQ_ROLE_DRAFT_MASK), 0, 0, err);
}

/* Norms, which all ranks share. */
static mq_status load_draft_norms(const packed *c, mq_slot *slot, mq_draft_layer_weights *out,
                                  place at, mq_err *err)
{
    MQ_TRY(load_norms(c, slot, &out->layer, at, err));
    if (at.stack == MQ_STACK_DRAFT) {
        MQ_TRY(load_vector(c, slot, &out->q_norm, key_of(at, MQ_ROLE_DRAFT_Q_NORM), 0, 0, err));
        return load_vector(c, slot, &out->k_norm, key_of(at, MQ_ROLE_DRAFT_K_NORM), 0, 0, err);
    }
    MQ_TRY(load_vector(c, slot, &out->enorm, key_of(at, MQ_ROLE_MTP_ENORM), 0, 0, err));
    MQ_TRY(load_vector(c, slot, &out->hnorm, key_of(at, MQ_ROLE_MTP_HNORM), 0, 0, err));
    return load_vector(c, slot, &out->final_norm, key_of(at, MQ_ROLE_MTP_FINAL_NORM), 0, 0, err);
}

static mq_status load_draft_layer(void *impl, void *rd, mq_slot *slot, mq_draft_layer_weights *out,
                                  mq_stack stack, int layer, mq_rank_span ranks, mq_err *err)
{
    const packed *c = impl;
    const place at = {stack, layer};
    bool is_mtp = stack == MQ_STACK_MTP;
    const mq_attn_geometry *g = is_mtp ? &c->m->swa : &c->p->draft.attn;
    int64_t width = is_mtp ? c->m->intermediate : c->p->draft.intermediate, hidden = c->m->hidden;
    mq_draft_layer_weights common = {.layer = {.is_moe = false}};
    MQ_TRY(load_draft_norms(c, slot, &common, at, err));
    for (int i = 0; i < ranks.n; i++) {
        int r = ranks.first + i;
        out[i] = common;
        MQ_TRY(load_attn(c, rd, slot, &out[i].layer.attn, at, g, r, err));
        MQ_TRY(load_dense(c, rd, slot, &out[i].layer.mlp, at, width, r, err));
        if (is_mtp)
            MQ_TRY(load_rank(c, rd, slot, &out[i].eh_proj, key_of(at, MQ_ROLE_MTP_EH_PROJ), r,
                             hidden / c->n_ranks, 2 * hidden, err));
    }
    return MQ_OK;
}

static mq_status load_embedding(void *impl, void *rd, mq_slot *slot, mq_matrix *out, mq_err *err)
{
    const packed *c = impl;
    return load_matrix(c, rd, slot, out, key_of(NO_LAYER, MQ_ROLE_EMBED), 0, c->n_files,
                       c->m->vocab, c->m->hidden, err);
}

static mq_status load_head(void *impl, void *rd, mq_slot *slot, mq_matrix *out, mq_rank_span ranks,
                           mq_err *err)
{
    const packed *c = impl;
    int64_t part = c->m->vocab / c->n_ranks;
    for (int i = 0; i < ranks.n; i++)
        MQ_TRY(load_rank(c, rd, slot, &out[i], key_of(NO_LAYER, MQ_ROLE_HEAD), ranks.first + i, part,
                         c->m->hidden, err));
    return MQ_OK;
}

static mq_status load_final_norm(void *impl, void *rd, mq_slot *slot, const float **out,
                                 mq_err *err)
{
    (void)rd;
    return load_vector(impl, slot, out, key_of(NO_LAYER, MQ_ROLE_FINAL_NORM), 0, 0, err);
}

static mq_status open_reader(void *impl, void **out, mq_err *err)
{
    const packed *c = impl;
    reader *r = calloc(1, sizeof *r + (size_t)c->n_files * sizeof r->shards[0]);
    *out = r;
    if (!r)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", c->p->dir);
    r->first_file = -1;
    r->n_shards = c->n_files;
    return MQ_OK;
}

static void close_reader(void *impl, void *rd)
{
    (void)impl;
    if (rd)
        close_shards(rd);
    free(rd);
}

static void close_packed(void *impl)
{
    packed *c = impl;
    if (!c)
        return;
    mq_shard_close(c->common);
    mq_packed_close(c->p);
    free(c);
}

mq_status mq_backend_open_packed(mq_backend *out, const char *dir, int n_ranks, bool check,
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
                                       .close = close_packed,
                                       .plans = true};
    *out = (mq_backend){.ops = NULL};
    packed *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    c->n_ranks = n_ranks;
    c->check = check;
    mq_status st = mq_packed_open(&c->p, dir, err);
    if (st == MQ_OK) {
        c->m = &c->p->model;
        c->n_files = c->p->plan->n_ranks;
        if (c->n_files % n_ranks != 0)
            st = mq_fail(err, MQ_E_ARG, "%s: %d ranks, expected a divisor of the packed model's %d",
                         dir, n_ranks, c->n_files);
    }
    if (st == MQ_OK)
        st = mq_packed_shard(&c->common, c->p, 0, err);
    if (st != MQ_OK) {
        close_packed(c);
        return st;
    }
    *out = (mq_backend){
        .ops = &ops, .impl = c, .model = c->m, .draft = c->p->has_draft ? &c->p->draft : NULL};
    return MQ_OK;
}
