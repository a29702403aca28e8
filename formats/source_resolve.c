/* Where each logical tensor lies and how it is stored.
 *
 * Shapes come from the configuration, the storage scheme from the stored dtype: the lists of unquantized layers in
 * released configs name tensors that do not exist and leave out others (seen in MiMo-V2.5-Pro).  Fused qkv is always read
 * in chunks when the configuration says so; the number of scale rows cannot tell (quantization 3). */
#include "formats/source_resolve.h"

#include <stdio.h>
#include <string.h>

#include "formats/safetensors_header.h"

/* What the configuration expects of a tensor. */
typedef struct want {
    int64_t rows, cols;
    bool is_vector, may_fp8, is_expert;
} want;

mq_status mq_source_fail(mq_err *err, mq_status code, mq_tensor_ref ref, const char *fmt, ...)
{
    char what[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    const mq_file *f = mq_safetensors_file(ref.file);
    return mq_fail(err, code, "%s: tensor '%.*s': %s", f ? f->path : "(memory)", MQ_ST_NAME_SHOWN, ref.tensor->name,
                   what);
}

static const mq_attn_geometry *attn_of(const mq_source *s, mq_key key)
{
    return key.stack == MQ_STACK_DRAFT ? &s->draft.attn
           : key.stack == MQ_STACK_MTP ? &s->model.swa
                                       : mq_model_attn(&s->model, key.layer);
}

static want matrix(int64_t rows, int64_t cols)
{
    return (want){rows, cols, false, true, false};
}

static want plain(int64_t rows, int64_t cols)
{
    return (want){rows, cols, false, false, false};
}

static want expert(int64_t rows, int64_t cols)
{
    return (want){rows, cols, false, true, true};
}

static want vector(int64_t n)
{
    return (want){1, n, true, false, false};
}

static want expect(const mq_source *s, mq_key key)
{
    const mq_model *m = &s->model;
    int64_t hidden = m->hidden, width = key.stack == MQ_STACK_DRAFT ? s->draft.intermediate : m->intermediate;
    const mq_attn_geometry *a;
    switch (key.role) {
    case MQ_ROLE_EMBED:
    case MQ_ROLE_HEAD:
        return plain(m->vocab, hidden);
    case MQ_ROLE_ROUTER:
        return plain(m->n_experts, hidden);
    case MQ_ROLE_ROUTER_BIAS:
        return vector(m->n_experts);
    case MQ_ROLE_SINK:
        return vector(attn_of(s, key)->n_heads);
    case MQ_ROLE_Q:
        a = attn_of(s, key);
        return matrix((int64_t)a->n_heads * a->head_dim, hidden);
    case MQ_ROLE_K:
        a = attn_of(s, key);
        return matrix((int64_t)a->n_kv_heads * a->head_dim, hidden);
    case MQ_ROLE_V:
        a = attn_of(s, key);
        return matrix((int64_t)a->n_kv_heads * a->v_head_dim, hidden);
    case MQ_ROLE_O:
        a = attn_of(s, key);
        return matrix(hidden, (int64_t)a->n_heads * a->v_head_dim);
    case MQ_ROLE_GATE:
    case MQ_ROLE_UP:
        return matrix(width, hidden);
    case MQ_ROLE_DOWN:
        return matrix(hidden, width);
    case MQ_ROLE_EXPERT_GATE:
    case MQ_ROLE_EXPERT_UP:
        return expert(m->moe_intermediate, hidden);
    case MQ_ROLE_EXPERT_DOWN:
        return expert(hidden, m->moe_intermediate);
    case MQ_ROLE_MTP_EH_PROJ:
        return matrix(hidden, 2 * hidden);
    case MQ_ROLE_DRAFT_FC:
        return matrix(hidden, s->draft.n_taps * hidden);
    case MQ_ROLE_DRAFT_Q_NORM:
    case MQ_ROLE_DRAFT_K_NORM:
        return vector(s->draft.attn.head_dim);
    default:
        return vector(hidden);
    }
}

/* Set the chunks of a fused q, k or v; otherwise one part that is the whole. */
static bool set_parts(mq_source_tensor *t, const mq_source *s, mq_key key)
{
    bool is_qkv = key.role == MQ_ROLE_Q || key.role == MQ_ROLE_K || key.role == MQ_ROLE_V;
    t->chunk_rows = t->part_rows = t->rows;
    t->part_off = 0;
    if (!is_qkv || !s->model.fused_qkv || key.stack == MQ_STACK_DRAFT)
        return false;
    const mq_attn_geometry *a = attn_of(s, key);
    int64_t n_chunks = s->model.full.n_kv_heads;
    int64_t q = a->n_heads / n_chunks * a->head_dim, k = a->n_kv_heads / n_chunks * a->head_dim;
    int64_t v = a->n_kv_heads / n_chunks * a->v_head_dim;
    t->chunk_rows = q + k + v;
    t->part_rows = key.role == MQ_ROLE_Q ? q : key.role == MQ_ROLE_K ? k : v;
    t->part_off = key.role == MQ_ROLE_Q ? 0 : key.role == MQ_ROLE_K ? q : q + k;
    return true;
}

/* Name in the checkpoint: the drafter's folder has no prefix, fused storage another projection. */
static void stored_name(char *out, size_t out_bytes, mq_key key, bool fused)
{
    char name[MQ_KEY_NAME];
    mq_key_name(name, sizeof name, key);
    const char *start = key.stack == MQ_STACK_DRAFT ? name + strlen("draft.") : name;
    const char *self = fused ? strstr(start, "self_attn.") : NULL;
    if (self)
        snprintf(out, out_bytes, "%.*sself_attn.qkv_proj.weight", (int)(self - start), start);
    else
        snprintf(out, out_bytes, "%s", start);
}

static mq_status lookup(mq_tensor_ref *out, const mq_checkpoint *c, const char *name, const char *why, bool *used,
                        mq_err *err)
{
    int64_t i = mq_checkpoint_index(c, name);
    if (i < 0)
        return mq_fail(err, MQ_E_FORMAT, "%s: tensor '%s': missing, %s", mq_checkpoint_dir(c), name, why);
    if (used)
        used[i] = true;
    *out = mq_checkpoint_tensor(c, i);
    return MQ_OK;
}

static mq_status check_dims(mq_tensor_ref ref, int n_dims, int64_t d0, int64_t d1, mq_err *err)
{
    const mq_st_tensor *t = ref.tensor;
    if (t->n_dims == n_dims && t->dims[0] == d0 && (n_dims == 1 || t->dims[1] == d1))
        return MQ_OK;
    char found[MQ_ST_MAX_DIMS * 22 + 4] = "[";
    for (int i = 0; i < t->n_dims; i++)
        snprintf(found + strlen(found), sizeof found - strlen(found), i ? ", %lld" : "%lld", (long long)t->dims[i]);
    if (n_dims == 1)
        return mq_source_fail(err, MQ_E_SHAPE, ref, "shape %s], expected [%lld]", found, (long long)d0);
    return mq_source_fail(err, MQ_E_SHAPE, ref, "shape %s], expected [%lld, %lld]", found, (long long)d0,
                          (long long)d1);
}

static mq_status scheme_of(mq_source_tensor *t, const mq_source *s, const want *w, mq_err *err)
{
    mq_dtype dt = t->data.tensor->dtype;
    t->scheme = dt == MQ_DT_BF16                    ? MQ_SCHEME_BF16
                : dt == MQ_DT_F16                   ? MQ_SCHEME_F16
                : dt == MQ_DT_F32                   ? MQ_SCHEME_F32
                : dt == MQ_DT_F8_E4M3 && w->may_fp8 ? MQ_SCHEME_FP8_BLOCK
                : dt == MQ_DT_U8 && w->is_expert    ? MQ_SCHEME_MXFP4_ROWS
                                                    : MQ_SCHEME_NONE;
    if (t->scheme == MQ_SCHEME_NONE)
        return mq_source_fail(err, MQ_E_UNSUPPORTED, t->data, "dtype %s, expected BF16, F16, F32%s%s", mq_dtype_name(dt),
                              w->may_fp8 ? ", F8_E4M3" : "", w->is_expert ? ", U8 (MXFP4)" : "");
    if (t->scheme == MQ_SCHEME_FP8_BLOCK && !s->model.fp8)
        return mq_source_fail(err, MQ_E_UNSUPPORTED, t->data,
                              "dtype F8_E4M3, but config.json has no quantization_config that says fp8");
    if (t->scheme == MQ_SCHEME_MXFP4_ROWS && !s->model.mxfp4)
        return mq_source_fail(err, MQ_E_UNSUPPORTED, t->data,
                              "dtype U8, but config.json has no quantization_config with store_dtype mxfp4");
    return MQ_OK;
}

/* The scales that stand beside the matrix, and their shape. */
static mq_status find_scale(mq_source_tensor *t, const mq_checkpoint *c, const char *name, bool *used, mq_err *err)
{
    bool is_fp8 = t->scheme == MQ_SCHEME_FP8_BLOCK;
    char scale_name[MQ_KEY_NAME + 16];
    snprintf(scale_name, sizeof scale_name, "%s%s", name, is_fp8 ? "_scale_inv" : "_scale");
    MQ_TRY(lookup(&t->scale, c, scale_name, is_fp8 ? "its weight is F8_E4M3" : "its weight is MXFP4", used, err));
    mq_dtype wanted = is_fp8 ? MQ_DT_F32 : MQ_DT_U8;
    if (t->scale.tensor->dtype != wanted)
        return mq_source_fail(err, MQ_E_UNSUPPORTED, t->scale, "dtype %s, expected %s",
                              mq_dtype_name(t->scale.tensor->dtype), mq_dtype_name(wanted));
    if (is_fp8) {
        int64_t n_chunks = t->rows / t->part_rows;
        return check_dims(t->scale, 2, n_chunks * mq_ceil_div(t->chunk_rows, MQ_FP8_BLOCK),
                          mq_ceil_div(t->cols, MQ_FP8_BLOCK), err);
    }
    return check_dims(t->scale, 2, t->rows, t->cols / MQ_MX_GROUP, err);
}

mq_status mq_source_resolve(mq_source_tensor *out, const mq_source *s, mq_key key, bool *model_used, bool *draft_used,
                            mq_err *err)
{
    bool is_draft = key.stack == MQ_STACK_DRAFT;
    const mq_checkpoint *c = is_draft ? s->draft_checkpoint : s->checkpoint;
    bool *used = is_draft ? draft_used : model_used;
    want w = expect(s, key);
    memset(out, 0, sizeof *out);
    out->rows = w.rows;
    out->cols = w.cols;
    bool fused = set_parts(out, s, key);
    char name[MQ_KEY_NAME];
    stored_name(name, sizeof name, key, fused);

    MQ_TRY(lookup(&out->data, c, name, "the configuration asks for it", used, err));
    MQ_TRY(scheme_of(out, s, &w, err));
    int64_t stored_rows = w.rows / out->part_rows * out->chunk_rows;
    if (w.is_vector)
        return check_dims(out->data, 1, w.cols, 0, err);
    if (out->scheme == MQ_SCHEME_MXFP4_ROWS) {
        if (w.cols % MQ_MX_GROUP != 0)
            return mq_source_fail(err, MQ_E_SHAPE, out->data, "MXFP4 with %lld columns, expected a multiple of %d",
                                  (long long)w.cols, MQ_MX_GROUP);
        MQ_TRY(check_dims(out->data, 2, stored_rows, w.cols / 2, err));
    } else {
        mq_status st = check_dims(out->data, 2, stored_rows, w.cols, err);
        if (key.role == MQ_ROLE_DRAFT_FC) /* its width says how many layers feed it */
            st = mq_wrap(err, st, "dflash/config.json: %d target_layer_ids", s->draft.n_taps);
        MQ_TRY(st);
    }
    bool has_scale = out->scheme == MQ_SCHEME_FP8_BLOCK || out->scheme == MQ_SCHEME_MXFP4_ROWS;
    return has_scale ? find_scale(out, c, name, used, err) : MQ_OK;
}
