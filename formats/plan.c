/* Lays out a packed model: files, and for each file its records in canonical order (SHARD.md
 * "Record order").
 *
 * Everything follows from geometry, so writer, verifier and loader compute the same plan instead of
 * exchanging one. Records are appended in their final order; nothing is sorted.  The only subtle
 * part is slice_fp8: a slice of a fused qkv chunk may start inside a 128-row scale block, and the
 * phases say where. */
#include "formats/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/dtype.h"
#include "src/units.h"

/* Names have two digits for ranks; one server has at most eight GPUs. */
enum { MAX_RANKS = 8 };
/* Ten times what the largest model has; bounds the memory that a hostile config.json can ask for.
 */
enum { MAX_PLAN_RECORDS = 1 << 22 };

/* ---- Which numbers of ranks work ---- */

static mq_status check_divides(const char *what, int64_t n, int n_ranks, mq_err *err)
{
    if (n % n_ranks == 0)
        return MQ_OK;
    return mq_fail(err, MQ_E_ARG, "%d ranks: %s %lld does not divide by %d", n_ranks, what,
                   (long long)n, n_ranks);
}

static mq_status check_attn(const char *what, const mq_attn_geometry *a, int n_ranks, mq_err *err)
{
    if (a->n_heads % n_ranks)
        return mq_fail(err, MQ_E_ARG,
                       "%d ranks: %s attention has %d heads, which do not divide by %d", n_ranks,
                       what, a->n_heads, n_ranks);
    if (a->n_kv_heads % n_ranks && n_ranks % a->n_kv_heads)
        return mq_fail(
            err, MQ_E_ARG,
            "%d ranks: %s attention has %d KV heads, neither a multiple nor a divisor of %d",
            n_ranks, what, a->n_kv_heads, n_ranks);
    return MQ_OK;
}

static bool has_layer(const bool *flags, int n_layers, bool value)
{
    for (int i = 0; i < n_layers; i++)
        if (flags[i] == value)
            return true;
    return false;
}

static mq_status check_experts(const mq_model *m, int n_ranks, int group, mq_err *err)
{
    int unit = group == 128 ? 128 : MQ_UNIT_COLS;
    if (m->hidden % unit)
        return mq_fail(
            err, MQ_E_ARG,
            "%d ranks: hidden_size %d is not a multiple of %d, the width of a packed block",
            n_ranks, m->hidden, unit);
    MQ_TRY(check_divides("moe_intermediate_size", m->moe_intermediate, n_ranks, err));
    int64_t width = m->moe_intermediate / n_ranks;
    if (width % unit)
        return mq_fail(
            err, MQ_E_ARG,
            "%d ranks: an expert slice is %lld columns wide (moe_intermediate_size %d), not a "
            "multiple of %d",
            n_ranks, (long long)width, m->moe_intermediate, unit);
    return MQ_OK;
}

/* Why n_ranks does not work, without the advice. */
static mq_status check_one(const mq_model *m, const mq_draft_model *draft, int n_ranks, int group,
                           mq_err *err)
{
    if (n_ranks < 1 || n_ranks > MAX_RANKS)
        return mq_fail(err, MQ_E_ARG, "%d ranks: expected 1 to %d", n_ranks, MAX_RANKS);
    if (has_layer(m->is_swa, m->n_layers, false) || m->fused_qkv)
        MQ_TRY(check_attn("full", &m->full, n_ranks, err));
    if (has_layer(m->is_swa, m->n_layers, true) || m->n_mtp > 0)
        MQ_TRY(check_attn("sliding", &m->swa, n_ranks, err));
    if (has_layer(m->is_moe, m->n_layers, false) || m->n_mtp > 0)
        MQ_TRY(check_divides("intermediate_size", m->intermediate, n_ranks, err));
    if (has_layer(m->is_moe, m->n_layers, true))
        MQ_TRY(check_experts(m, n_ranks, group, err));
    MQ_TRY(check_divides("vocab_size", m->vocab, n_ranks, err));
    if (m->n_mtp > 0)
        MQ_TRY(check_divides("hidden_size (eh_proj)", m->hidden, n_ranks, err));
    if (draft) {
        MQ_TRY(check_attn("the drafter's", &draft->attn, n_ranks, err));
        MQ_TRY(check_divides("the drafter's intermediate_size", draft->intermediate, n_ranks, err));
    }
    return MQ_OK;
}

int mq_plan_default_ranks(const mq_model *m, const mq_draft_model *draft, int group, mq_err *err)
{
    for (int n = 8; n >= 1; n /= 2)
        if (check_one(m, draft, n, group, n == 1 ? err : NULL) == MQ_OK)
            return n;
    return 0;
}

mq_status mq_plan_check_ranks(const mq_model *m, const mq_draft_model *draft, int n_ranks,
                              int group, mq_err *err)
{
    if (group != 0 && group != 32 && group != 64 && group != 128)
        return mq_fail(err, MQ_E_ARG, "group %d: expected 32, 64 or 128", group);
    mq_err why;
    if (check_one(m, draft, n_ranks, group, &why) == MQ_OK)
        return MQ_OK;
    int best = mq_plan_default_ranks(m, draft, group, NULL);
    if (best == 0)
        return mq_fail(err, MQ_E_ARG, "%s; no number of ranks works for this model", why.text);
    return mq_fail(err, MQ_E_ARG, "%s; the largest that works is %d", why.text, best);
}

/* ---- Building ---- */

typedef struct builder {
    const mq_model *m;
    const mq_draft_model *draft;
    mq_plan *plan;
    mq_file_spec *file; /* the file being filled */
    int64_t cap;        /* of its records */
    int64_t n_total;
    mq_status st;
    mq_err *err;
} builder;

static void file_begin(builder *b, mq_shard_kind kind, int layer, int rank)
{
    int n = b->plan->n_ranks;
    b->file = &b->plan->files[b->plan->n_files++];
    b->cap = 0;
    b->file->kind = kind;
    b->file->layer = layer;
    b->file->rank = rank;
    char *name = b->file->name;
    size_t cap = sizeof b->file->name;
    switch (kind) {
    case MQ_SHARD_LAYER:
        snprintf(name, cap, "layer-%03d-rank-%02d-of-%02d.mqs", layer, rank, n);
        break;
    case MQ_SHARD_HEAD:
        snprintf(name, cap, "head-rank-%02d-of-%02d.mqs", rank, n);
        break;
    case MQ_SHARD_MTP:
        snprintf(name, cap, "mtp-%03d-rank-%02d-of-%02d.mqs", layer, rank, n);
        break;
    case MQ_SHARD_DRAFT:
        snprintf(name, cap, "draft-rank-%02d-of-%02d.mqs", rank, n);
        break;
    default:
        snprintf(name, cap, "common.mqs");
        break;
    }
}

/* A fresh record of the current file, or NULL once something failed. */
static mq_record_spec *add(builder *b, mq_stack stack, int layer, mq_role role, int expert,
                           int64_t full_rows, int64_t full_cols)
{
    if (b->st != MQ_OK)
        return NULL;
    mq_file_spec *f = b->file;
    if (++b->n_total > MAX_PLAN_RECORDS) {
        b->st = mq_fail(b->err, MQ_E_UNSUPPORTED, "the model has more than %d records",
                        MAX_PLAN_RECORDS);
        return NULL;
    }
    if (f->n_records == b->cap) {
        int64_t cap = b->cap ? 2 * b->cap : 8;
        mq_record_spec *grown = realloc(f->records, (size_t)cap * sizeof *grown);
        if (!grown) {
            b->st =
                mq_fail(b->err, MQ_E_NOMEM, "%s: out of memory for the list of records", f->name);
            return NULL;
        }
        f->records = grown;
        b->cap = cap;
    }
    mq_record_spec *r = &f->records[f->n_records++];
    memset(r, 0, sizeof *r);
    r->key = (mq_key){stack, layer, role, expert};
    r->full_rows = r->rows = full_rows;
    r->full_cols = r->cols = full_cols;
    return r;
}

static void add_vector(builder *b, mq_stack stack, int layer, mq_role role, int64_t n)
{
    mq_record_spec *r = add(b, stack, layer, role, -1, 1, n);
    if (r)
        r->is_vector = true;
}

/* Where the rows of a logical matrix stand in the stored one whose 128-row scale blocks count:
 * chunks of part_rows logical rows, each beginning part_off rows into its chunk (SHARD.md "FP8
 * slices").  Not fused: one part, offset 0. */
static void slice_fp8(mq_record_spec *r, int64_t part_rows, int64_t part_off)
{
    int64_t in_part = r->row0 % part_rows;
    bool whole = in_part == 0 && r->rows % part_rows == 0;
    assert(whole || in_part + r->rows <= part_rows);
    r->seg_rows = whole ? part_rows : r->rows;
    r->row_phase = (int)((part_off + in_part) % MQ_FP8_BLOCK);
    r->col_phase = (int)(r->col0 % MQ_FP8_BLOCK);
}

/* Rows [rank n/N, (rank + 1) n/N) of a matrix [n, cols]. */
static void add_row_slice(builder *b, mq_stack stack, int layer, mq_role role, int64_t n,
                          int64_t cols)
{
    mq_record_spec *r = add(b, stack, layer, role, -1, n, cols);
    if (!r)
        return;
    r->rows = n / b->plan->n_ranks;
    r->row0 = r->rows * b->file->rank;
    slice_fp8(r, n, 0);
}

/* Columns [rank n/N, (rank + 1) n/N) of a matrix [rows, n]. */
static void add_col_slice(builder *b, mq_stack stack, int layer, mq_role role, int64_t rows,
                          int64_t n)
{
    mq_record_spec *r = add(b, stack, layer, role, -1, rows, n);
    if (!r)
        return;
    r->cols = n / b->plan->n_ranks;
    r->col0 = r->cols * b->file->rank;
    slice_fp8(r, rows, 0);
}

/* n_heads heads of head_dim rows, shared by ranks where there are fewer; each chunk of the stored
 * tensor holds part_heads of them, part_off rows from its start. */
static void add_heads(builder *b, mq_stack stack, int layer, mq_role role, int64_t n_heads,
                      int64_t head_dim, int64_t cols, int64_t part_heads, int64_t part_off)
{
    mq_record_spec *r = add(b, stack, layer, role, -1, n_heads * head_dim, cols);
    if (!r)
        return;
    int64_t n = b->plan->n_ranks, rank = b->file->rank;
    int64_t mine = n_heads >= n ? n_heads / n : 1;
    r->rows = mine * head_dim;
    r->row0 = rank * n_heads / n * head_dim;
    slice_fp8(r, part_heads * head_dim, part_off);
}

/* q, k, v and o; chunks is the number of fused chunks, 1 where q, k and v are separate tensors. */
static void add_attn(builder *b, mq_stack stack, int layer, const mq_attn_geometry *a,
                     int64_t hidden, int64_t chunks)
{
    int64_t nh = a->n_heads, nkv = a->n_kv_heads;
    int64_t q_rows = nh / chunks * a->head_dim, k_rows = nkv / chunks * a->head_dim;
    bool fused = chunks > 1;
    add_heads(b, stack, layer, MQ_ROLE_Q, nh, a->head_dim, hidden, nh / chunks, 0);
    add_heads(b, stack, layer, MQ_ROLE_K, nkv, a->head_dim, hidden, nkv / chunks,
              fused ? q_rows : 0);
    add_heads(b, stack, layer, MQ_ROLE_V, nkv, a->v_head_dim, hidden, nkv / chunks,
              fused ? q_rows + k_rows : 0);
    add_col_slice(b, stack, layer, MQ_ROLE_O, hidden, nh * a->v_head_dim);
}

static void add_dense(builder *b, mq_stack stack, int layer, int64_t hidden, int64_t width)
{
    add_row_slice(b, stack, layer, MQ_ROLE_GATE, width, hidden);
    add_row_slice(b, stack, layer, MQ_ROLE_UP, width, hidden);
    add_col_slice(b, stack, layer, MQ_ROLE_DOWN, hidden, width);
}

/* All gate_up of the layer in expert order, then all down. */
static void add_experts(builder *b, int layer)
{
    const mq_model *m = b->m;
    int64_t width = m->moe_intermediate / b->plan->n_ranks;
    for (int e = 0; e < m->n_experts; e++) {
        mq_record_spec *r = add(b, MQ_STACK_MODEL, layer, MQ_ROLE_EXPERT_GATE_UP, e,
                                2 * (int64_t)m->moe_intermediate, m->hidden);
        if (!r)
            return;
        r->is_expert = true;
        r->rows = 2 * width;
        r->row0 = 2 * width * b->file->rank;
    }
    for (int e = 0; e < m->n_experts; e++) {
        mq_record_spec *r =
            add(b, MQ_STACK_MODEL, layer, MQ_ROLE_EXPERT_DOWN, e, m->hidden, m->moe_intermediate);
        if (!r)
            return;
        r->is_expert = true;
        r->cols = width;
        r->col0 = width * b->file->rank;
    }
}

static void add_common_model(builder *b)
{
    const mq_model *m = b->m;
    add_vector(b, MQ_STACK_MODEL, -1, MQ_ROLE_FINAL_NORM, m->hidden);
    for (int l = 0; l < m->n_layers; l++) {
        const mq_attn_geometry *a = m->is_swa[l] ? &m->swa : &m->full;
        add_vector(b, MQ_STACK_MODEL, l, MQ_ROLE_INPUT_NORM, m->hidden);
        add_vector(b, MQ_STACK_MODEL, l, MQ_ROLE_POST_NORM, m->hidden);
        if (a->has_sink)
            add_vector(b, MQ_STACK_MODEL, l, MQ_ROLE_SINK, a->n_heads);
        if (!m->is_moe[l])
            continue;
        mq_record_spec *r = add(b, MQ_STACK_MODEL, l, MQ_ROLE_ROUTER, -1, m->n_experts, m->hidden);
        if (r)
            slice_fp8(r, r->rows, 0);
        add_vector(b, MQ_STACK_MODEL, l, MQ_ROLE_ROUTER_BIAS, m->n_experts);
    }
    for (int k = 0; k < m->n_mtp; k++) {
        add_vector(b, MQ_STACK_MTP, k, MQ_ROLE_INPUT_NORM, m->hidden);
        add_vector(b, MQ_STACK_MTP, k, MQ_ROLE_POST_NORM, m->hidden);
        if (m->swa.has_sink)
            add_vector(b, MQ_STACK_MTP, k, MQ_ROLE_SINK, m->swa.n_heads);
        add_vector(b, MQ_STACK_MTP, k, MQ_ROLE_MTP_ENORM, m->hidden);
        add_vector(b, MQ_STACK_MTP, k, MQ_ROLE_MTP_HNORM, m->hidden);
        add_vector(b, MQ_STACK_MTP, k, MQ_ROLE_MTP_FINAL_NORM, m->hidden);
    }
}

static void add_common_draft(builder *b)
{
    const mq_draft_model *d = b->draft;
    mq_record_spec *r =
        add(b, MQ_STACK_DRAFT, -1, MQ_ROLE_DRAFT_FC, -1, d->hidden, (int64_t)d->n_taps * d->hidden);
    if (r)
        slice_fp8(r, r->rows, 0);
    add_vector(b, MQ_STACK_DRAFT, -1, MQ_ROLE_DRAFT_HIDDEN_NORM, d->hidden);
    add_vector(b, MQ_STACK_DRAFT, -1, MQ_ROLE_DRAFT_NORM, d->hidden);
    add_vector(b, MQ_STACK_DRAFT, -1, MQ_ROLE_DRAFT_MASK, d->hidden);
    for (int l = 0; l < d->n_layers; l++) {
        add_vector(b, MQ_STACK_DRAFT, l, MQ_ROLE_INPUT_NORM, d->hidden);
        add_vector(b, MQ_STACK_DRAFT, l, MQ_ROLE_POST_NORM, d->hidden);
        if (d->attn.has_sink)
            add_vector(b, MQ_STACK_DRAFT, l, MQ_ROLE_SINK, d->attn.n_heads);
        add_vector(b, MQ_STACK_DRAFT, l, MQ_ROLE_DRAFT_Q_NORM, d->attn.head_dim);
        add_vector(b, MQ_STACK_DRAFT, l, MQ_ROLE_DRAFT_K_NORM, d->attn.head_dim);
    }
}

static void add_rank_files(builder *b)
{
    const mq_model *m = b->m;
    const mq_draft_model *d = b->draft;
    int n = b->plan->n_ranks;
    int64_t chunks = m->fused_qkv ? m->full.n_kv_heads : 1;
    for (int i = 0; i < m->n_layers * n; i++) {
        int l = i / n;
        file_begin(b, MQ_SHARD_LAYER, l, i % n);
        add_attn(b, MQ_STACK_MODEL, l, m->is_swa[l] ? &m->swa : &m->full, m->hidden, chunks);
        if (m->is_moe[l])
            add_experts(b, l);
        else
            add_dense(b, MQ_STACK_MODEL, l, m->hidden, m->intermediate);
    }
    for (int rank = 0; rank < n; rank++) {
        file_begin(b, MQ_SHARD_HEAD, 0, rank);
        add_row_slice(b, MQ_STACK_MODEL, -1, MQ_ROLE_EMBED, m->vocab, m->hidden);
        add_row_slice(b, MQ_STACK_MODEL, -1, MQ_ROLE_HEAD, m->vocab, m->hidden);
    }
    for (int i = 0; i < m->n_mtp * n; i++) {
        int k = i / n;
        file_begin(b, MQ_SHARD_MTP, k, i % n);
        add_attn(b, MQ_STACK_MTP, k, &m->swa, m->hidden, chunks);
        add_dense(b, MQ_STACK_MTP, k, m->hidden, m->intermediate);
        add_row_slice(b, MQ_STACK_MTP, k, MQ_ROLE_MTP_EH_PROJ, m->hidden, 2 * (int64_t)m->hidden);
    }
    for (int rank = 0; d && rank < n; rank++) {
        file_begin(b, MQ_SHARD_DRAFT, 0, rank);
        for (int l = 0; l < d->n_layers; l++) {
            add_attn(b, MQ_STACK_DRAFT, l, &d->attn, d->hidden, 1);
            add_dense(b, MQ_STACK_DRAFT, l, d->hidden, d->intermediate);
        }
    }
}

mq_status mq_plan_create(mq_plan **out, const mq_model *m, const mq_draft_model *draft, int n_ranks,
                         int group, mq_err *err)
{
    *out = NULL;
    MQ_TRY(mq_plan_check_ranks(m, draft, n_ranks, group, err));
    int64_t n_files = 1 + (int64_t)n_ranks * (m->n_layers + 1 + m->n_mtp + (draft ? 1 : 0));
    mq_plan *plan = calloc(1, sizeof *plan);
    if (plan)
        plan->files = calloc((size_t)n_files, sizeof *plan->files);
    if (!plan || !plan->files) {
        mq_plan_free(plan);
        return mq_fail(err, MQ_E_NOMEM, "out of memory for the list of %lld files",
                       (long long)n_files);
    }
    plan->n_ranks = n_ranks;
    builder b = {.m = m, .draft = draft, .plan = plan, .st = MQ_OK, .err = err};
    file_begin(&b, MQ_SHARD_COMMON, 0, 0);
    add_common_model(&b);
    if (draft)
        add_common_draft(&b);
    add_rank_files(&b);
    assert(plan->n_files == n_files);
    if (b.st != MQ_OK) {
        mq_plan_free(plan);
        return b.st;
    }
    *out = plan;
    return MQ_OK;
}

void mq_plan_free(mq_plan *p)
{
    if (!p)
        return;
    for (int64_t i = 0; i < p->n_files; i++)
        free(p->files[i].records);
    free(p->files);
    free(p);
}

/* ---- Records as matrices ---- */

/* Bytes of the codes of an FP8 record: its scales stand behind, aligned. */
static int64_t fp8_code_bytes(const mq_matrix *v)
{
    return mq_round_up(v->rows * v->cols, 16);
}

mq_matrix mq_record_matrix(const mq_record_spec *r, mq_scheme scheme, int group, const void *plain)
{
    mq_matrix v = {.scheme = scheme, .rows = r->rows, .cols = r->cols, .data = plain};
    if (scheme == MQ_SCHEME_INT4)
        v.group = group;
    if (scheme == MQ_SCHEME_MXFP4)
        v.group = MQ_GROUP_MXFP4;
    if (scheme == MQ_SCHEME_FP8_BLOCK) {
        v.seg_rows = r->seg_rows;
        v.row_phase = r->row_phase;
        v.col_phase = r->col_phase;
        v.scale = plain ? (const uint8_t *)plain + fp8_code_bytes(&v) : NULL;
    }
    return v;
}

int64_t mq_record_plain_bytes(const mq_record_spec *r, mq_scheme scheme, int group)
{
    mq_matrix v = mq_record_matrix(r, scheme, group, NULL);
    switch (scheme) {
    case MQ_SCHEME_BF16:
    case MQ_SCHEME_F16:
        return 2 * v.rows * v.cols;
    case MQ_SCHEME_F32:
        return 4 * v.rows * v.cols;
    case MQ_SCHEME_FP8_BLOCK:
        return fp8_code_bytes(&v) + 4 * mq_fp8_n_scales(&v);
    case MQ_SCHEME_INT4:
    case MQ_SCHEME_MXFP4:
        return mq_units_bytes(v.rows, v.cols, v.group);
    default:
        return 0;
    }
}
