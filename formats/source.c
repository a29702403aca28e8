/* Opens a checkpoint folder with its configurations and drafter, and checks that the tensors are exactly those the
 * model needs.
 *
 * Every key the configuration implies is resolved once, marking the stored tensors it stands on; what is not marked at the
 * end is another modality (a notice) or unknown (refused by name: a weight we would silently leave out changes the
 * model).  Lookups go through the checkpoint's hash table, so opening is linear in the number of tensors. */
#include "formats/source.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "formats/source_resolve.h"

enum { MAX_MTP = 64 };

/* Tensors of other modalities, skipped with a notice. */
static const char *const SKIPPED[] = {"visual.", "audio_encoder.", "speech_embeddings.", "model.visual.",
                                      "model.audio_encoder.", "model.speech_embeddings.", "vision_tower.",
                                      "audio_tokenizer.", "audio_tower."};
enum { N_SKIPPED = sizeof SKIPPED / sizeof SKIPPED[0] };

static bool model_has(const mq_model *m, mq_key k)
{
    if (k.layer < 0)
        return k.expert < 0 && (k.role == MQ_ROLE_EMBED || k.role == MQ_ROLE_HEAD || k.role == MQ_ROLE_FINAL_NORM);
    if (k.layer >= m->n_layers)
        return false;
    if (k.role >= MQ_ROLE_EXPERT_GATE && k.role <= MQ_ROLE_EXPERT_DOWN)
        return m->is_moe[k.layer] && k.expert >= 0 && k.expert < m->n_experts;
    if (k.expert >= 0)
        return false;
    switch (k.role) {
    case MQ_ROLE_INPUT_NORM:
    case MQ_ROLE_POST_NORM:
    case MQ_ROLE_Q:
    case MQ_ROLE_K:
    case MQ_ROLE_V:
    case MQ_ROLE_O:
        return true;
    case MQ_ROLE_SINK:
        return mq_model_attn(m, k.layer)->has_sink;
    case MQ_ROLE_ROUTER:
    case MQ_ROLE_ROUTER_BIAS:
        return m->is_moe[k.layer];
    case MQ_ROLE_GATE:
    case MQ_ROLE_UP:
    case MQ_ROLE_DOWN:
        return !m->is_moe[k.layer];
    default:
        return false;
    }
}

/* MTP layers are dense, with the sliding geometry. */
static bool mtp_has(const mq_model *m, mq_key k)
{
    if (k.layer < 0 || k.layer >= m->n_mtp || k.expert >= 0)
        return false;
    if (k.role == MQ_ROLE_SINK)
        return m->swa.has_sink;
    return k.role == MQ_ROLE_INPUT_NORM || k.role == MQ_ROLE_POST_NORM ||
           (k.role >= MQ_ROLE_Q && k.role <= MQ_ROLE_DOWN) ||
           (k.role >= MQ_ROLE_MTP_ENORM && k.role <= MQ_ROLE_MTP_EH_PROJ);
}

static bool draft_has(const mq_source *s, mq_key k)
{
    if (!s->has_draft || k.expert >= 0 || k.layer >= s->draft.n_layers)
        return false;
    if (k.layer < 0)
        return k.role == MQ_ROLE_DRAFT_FC || k.role == MQ_ROLE_DRAFT_HIDDEN_NORM || k.role == MQ_ROLE_DRAFT_NORM ||
               k.role == MQ_ROLE_DRAFT_MASK;
    if (k.role == MQ_ROLE_SINK)
        return s->draft.attn.has_sink;
    return k.role == MQ_ROLE_INPUT_NORM || k.role == MQ_ROLE_POST_NORM ||
           (k.role >= MQ_ROLE_Q && k.role <= MQ_ROLE_DOWN) || k.role == MQ_ROLE_DRAFT_Q_NORM ||
           k.role == MQ_ROLE_DRAFT_K_NORM;
}

bool mq_source_has(const mq_source *s, mq_key key)
{
    return key.stack == MQ_STACK_MODEL ? model_has(&s->model, key)
           : key.stack == MQ_STACK_MTP ? mtp_has(&s->model, key)
                                       : draft_has(s, key);
}

static mq_scheme mask_scheme(const mq_mask_embedding *mask)
{
    return mask->dtype == MQ_DT_BF16 ? MQ_SCHEME_BF16 : mask->dtype == MQ_DT_F16 ? MQ_SCHEME_F16 : MQ_SCHEME_F32;
}

static void find_mask(mq_source_tensor *out, const mq_mask_embedding *mask)
{
    memset(out, 0, sizeof *out);
    out->scheme = mask_scheme(mask);
    out->rows = out->chunk_rows = out->part_rows = 1;
    out->cols = mask->n;
    out->resident = mask->bytes;
}

mq_status mq_source_find(mq_source_tensor *out, const mq_source *s, mq_key key, mq_err *err)
{
    assert(mq_source_has(s, key));
    if (key.role != MQ_ROLE_DRAFT_MASK)
        return mq_source_resolve(out, s, key, NULL, NULL, err);
    find_mask(out, &s->mask);
    return MQ_OK;
}

/* Which stored tensors have been asked for. */
typedef struct marks {
    bool *model, *draft;
} marks;

static mq_status check_key(const mq_source *s, marks *u, mq_key key, mq_scheme *scheme, mq_err *err)
{
    mq_source_tensor t;
    if (!mq_source_has(s, key) || key.role == MQ_ROLE_DRAFT_MASK)
        return MQ_OK;
    MQ_TRY(mq_source_resolve(&t, s, key, u->model, u->draft, err));
    if (!scheme)
        return MQ_OK;
    if (*scheme != MQ_SCHEME_NONE && t.scheme != *scheme)
        return mq_source_fail(err, MQ_E_UNSUPPORTED, t.data, "stored as %s, other experts of its layer as %s",
                              mq_scheme_name(t.scheme), mq_scheme_name(*scheme));
    *scheme = t.scheme;
    return MQ_OK;
}

static mq_status check_stack(const mq_source *s, marks *u, mq_stack stack, int n_layers, mq_err *err)
{
    for (int layer = -1; layer < n_layers; layer++) {
        for (mq_role role = 0; role < MQ_ROLE_COUNT; role++) {
            bool is_expert = role >= MQ_ROLE_EXPERT_GATE && role <= MQ_ROLE_EXPERT_DOWN;
            if (!is_expert)
                MQ_TRY(check_key(s, u, (mq_key){stack, layer, role, -1}, NULL, err));
        }
        mq_scheme scheme = MQ_SCHEME_NONE;
        int n_experts = stack == MQ_STACK_MODEL && layer >= 0 && s->model.is_moe[layer] ? s->model.n_experts : 0;
        for (int e = 0; e < n_experts; e++)
            for (mq_role role = MQ_ROLE_EXPERT_GATE; role <= MQ_ROLE_EXPERT_DOWN; role++)
                MQ_TRY(check_key(s, u, (mq_key){stack, layer, role, e}, &scheme, err));
    }
    return MQ_OK;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0;
}

static mq_status check_unused(mq_source *s, const mq_checkpoint *c, const bool *used, mq_err *err)
{
    int64_t n_skipped[N_SKIPPED] = {0}, n_bytes[N_SKIPPED] = {0};
    for (int64_t i = 0; i < mq_checkpoint_n_tensors(c); i++) {
        mq_tensor_ref ref = mq_checkpoint_tensor(c, i);
        const char *name = ref.tensor->name;
        if (used[i])
            continue;
        int k = 0;
        while (k < N_SKIPPED && strncmp(name, SKIPPED[k], strlen(SKIPPED[k])) != 0)
            k++;
        if (k == N_SKIPPED)
            return mq_source_fail(err, MQ_E_UNSUPPORTED, ref, "%s",
                                  ends_with(name, "_scale_inv") || ends_with(name, "_scale")
                                      ? "scales of a matrix that is absent or needs none"
                                      : "not a tensor of this model as its configuration describes it");
        n_skipped[k]++;
        n_bytes[k] += ref.tensor->n_bytes;
    }
    for (int k = 0; k < N_SKIPPED; k++)
        if (n_skipped[k])
            mq_buf_fmt(&s->notices, "%s*: %lld tensors skipped (%lld bytes): only the text part is converted\n",
                       SKIPPED[k], (long long)n_skipped[k], (long long)n_bytes[k]);
    return MQ_OK;
}

static bool *new_marks(const mq_checkpoint *c)
{
    int64_t n = c ? mq_checkpoint_n_tensors(c) : 0;
    return calloc((size_t)(n > 0 ? n : 1), sizeof(bool));
}

static mq_status check_tensors(mq_source *s, mq_err *err)
{
    marks u = {new_marks(s->checkpoint), new_marks(s->draft_checkpoint)};
    mq_status st = u.model && u.draft ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory for marks of tensors");
    if (st == MQ_OK)
        st = check_stack(s, &u, MQ_STACK_MODEL, s->model.n_layers, err);
    if (st == MQ_OK)
        st = check_stack(s, &u, MQ_STACK_MTP, s->model.n_mtp, err);
    if (st == MQ_OK && s->has_draft)
        st = check_stack(s, &u, MQ_STACK_DRAFT, s->draft.n_layers, err);
    if (st == MQ_OK)
        st = check_unused(s, s->checkpoint, u.model, err);
    if (st == MQ_OK && s->has_draft)
        st = check_unused(s, s->draft_checkpoint, u.draft, err);
    free(u.model);
    free(u.draft);
    return st;
}

/* MTP layers are not in config.json: count them by their tensors, which must be numbered from 0 without a gap. */
static mq_status count_mtp(mq_source *s, mq_err *err)
{
    static const char prefix[] = "model.mtp.layers.";
    bool seen[MAX_MTP] = {false};
    for (int64_t i = 0; i < mq_checkpoint_n_tensors(s->checkpoint); i++) {
        mq_tensor_ref ref = mq_checkpoint_tensor(s->checkpoint, i);
        if (strncmp(ref.tensor->name, prefix, sizeof prefix - 1) != 0)
            continue;
        const char *digits = ref.tensor->name + sizeof prefix - 1;
        char *end;
        long layer = *digits >= '0' && *digits <= '9' ? strtol(digits, &end, 10) : -1;
        if (layer < 0 || *end != '.' || layer >= MAX_MTP)
            return mq_source_fail(err, MQ_E_UNSUPPORTED, ref, "not a number of an MTP layer, 0 to %d", MAX_MTP - 1);
        seen[layer] = true;
    }
    while (s->model.n_mtp < MAX_MTP && seen[s->model.n_mtp])
        s->model.n_mtp++;
    for (int i = s->model.n_mtp; i < MAX_MTP; i++)
        if (seen[i])
            return mq_fail(err, MQ_E_FORMAT, "%s: tensors of MTP layer %d are there, but none of layer %d",
                           mq_checkpoint_dir(s->checkpoint), i, s->model.n_mtp);
    return MQ_OK;
}

/* DIR/name, or DIR/sub/name. */
static mq_status join(char **out, const char *dir, const char *name, mq_err *err)
{
    *out = mq_path_join(dir, name);
    return *out ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
}

static mq_status open_model(mq_source *s, const char *dir, mq_err *err)
{
    char *path;
    MQ_TRY(join(&path, dir, "config.json", err));
    mq_status st = mq_path_is_dir(dir) && !mq_path_exists(path)
                       ? mq_fail(err, MQ_E_FORMAT, "%s: no config.json: not a checkpoint", dir)
                       : mq_model_load(&s->model, path, err);
    free(path);
    MQ_TRY(st);
    MQ_TRY(join(&path, dir, "generation_config.json", err));
    st = mq_model_load_generation(&s->model, path, err);
    free(path);
    MQ_TRY(st);
    MQ_TRY(mq_checkpoint_open(&s->checkpoint, dir, "model", err));
    return count_mtp(s, err);
}

static mq_status check_mask(const mq_source *s, const char *path, mq_err *err)
{
    if (s->mask.n != s->draft.hidden)
        return mq_fail(err, MQ_E_SHAPE, "%s: embedding of %lld elements, expected hidden_size = %d", path,
                       (long long)s->mask.n, s->draft.hidden);
    if (s->mask.mask_token_id != s->draft.mask_token_id)
        return mq_fail(err, MQ_E_SHAPE, "%s: mask_token_id %lld, the drafter's config says %d", path,
                       (long long)s->mask.mask_token_id, s->draft.mask_token_id);
    int64_t bad = mq_source_find_not_finite(s->mask.bytes, s->mask.n, mask_scheme(&s->mask));
    if (bad >= 0)
        return mq_fail(err, MQ_E_NUMERIC, "%s: tensor 'embedding': value %lld is not finite", path, (long long)bad);
    return MQ_OK;
}

static mq_status open_draft(mq_source *s, const char *dir, mq_err *err)
{
    char *path;
    MQ_TRY(join(&path, dir, "config.json", err));
    mq_status st = mq_draft_model_load(&s->draft, path, &s->model, err);
    free(path);
    MQ_TRY(st);
    MQ_TRY(mq_checkpoint_open(&s->draft_checkpoint, dir, "dflash_draft_model", err));
    MQ_TRY(join(&path, dir, "mask_embedding.pt", err));
    st = mq_mask_embedding_load(&s->mask, path, err);
    if (st == MQ_OK)
        st = check_mask(s, path, err);
    free(path);
    return st;
}

static mq_status open_all(mq_source *s, const char *dir, mq_err *err)
{
    char *draft_dir;
    MQ_TRY(open_model(s, dir, err));
    MQ_TRY(join(&draft_dir, dir, "dflash", err));
    s->has_draft = mq_path_is_dir(draft_dir);
    mq_status st = MQ_OK;
    if (s->has_draft)
        st = open_draft(s, draft_dir, err);
    else if (mq_path_exists(draft_dir)) /* a link to nothing, say: not the same as no drafter */
        st = mq_fail(err, MQ_E_FORMAT, "%s: exists and is not a folder, expected the drafter's", draft_dir);
    free(draft_dir);
    MQ_TRY(st);
    MQ_TRY(check_tensors(s, err));
    mq_buf_str(&s->notices, s->model.warnings.data ? s->model.warnings.data : "");
    mq_buf_str(&s->notices, mq_checkpoint_warnings(s->checkpoint));
    if (s->has_draft) {
        mq_buf_str(&s->notices, s->draft.warnings.data ? s->draft.warnings.data : "");
        mq_buf_str(&s->notices, mq_checkpoint_warnings(s->draft_checkpoint));
    }
    return mq_buf_status(&s->notices, err);
}

mq_status mq_source_open(mq_source **out, const char *dir, mq_err *err)
{
    *out = NULL;
    mq_source *s = calloc(1, sizeof *s);
    if (!s)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    s->notices = mq_buf_empty();
    mq_status st = open_all(s, dir, err);
    if (st != MQ_OK) {
        mq_source_close(s);
        return st;
    }
    *out = s;
    return MQ_OK;
}

void mq_source_close(mq_source *s)
{
    if (!s)
        return;
    mq_checkpoint_close(s->checkpoint);
    mq_checkpoint_close(s->draft_checkpoint);
    mq_mask_embedding_release(&s->mask);
    mq_model_release(&s->model);
    mq_draft_model_release(&s->draft);
    mq_buf_release(&s->notices);
    free(s);
}
