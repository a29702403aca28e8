/* Writes a made checkpoint: cuts the list of tensors into files, streams each, then index and configs.
 *
 * Inside a file tensors stand as the reference writer orders them: wide dtypes first, then by name as strings (expert 10
 * before expert 8).  No fsync: these are test inputs, and gigabytes should take seconds. */
#include "tests/maker/maker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/file.h"
#include "src/json.h"
#include "tests/maker/maker_parts.h"

static const mq_maker NANO = {
    .layers = 6, .hidden = 128, .vocab = 4096, .heads = 8, .kv_heads = 2, .head_dim = 48, .v_head_dim = 32,
    .swa_heads = 8, .swa_kv_heads = 4, .swa_head_dim = 48, .swa_v_head_dim = 32, .window = 64, .full_every = 3,
    .dense_layers = 1, .intermediate = 256, .experts = 16, .top_k = 4, .moe_intermediate = 128, .max_positions = 4096,
    .eos = 4090, .rope_theta = 5e6, .swa_rope_theta = 1e4, .partial_rotary = 0.334, .value_scale = 0.707, .eps = 1e-5,
    .swa_sink = true, .expert_scheme = MQ_SCHEME_BF16, .scheme = MQ_SCHEME_BF16, .mtp = 3, .draft_layers = 3,
    .draft_heads = 8, .draft_kv_heads = 2, .draft_head_dim = 32, .draft_intermediate = 256, .draft_window = 256,
    .files = 1, .seed = 1};

static void set_attention(mq_maker *m, int heads, int kv, int swa_kv, int dim, int v_dim)
{
    m->heads = m->swa_heads = heads;
    m->kv_heads = kv;
    m->swa_kv_heads = swa_kv;
    m->head_dim = m->swa_head_dim = dim;
    m->v_head_dim = m->swa_v_head_dim = v_dim;
}

static void set_draft(mq_maker *m, int layers, int heads, int kv, int dim, int width)
{
    m->draft_layers = layers;
    m->draft_heads = heads;
    m->draft_kv_heads = kv;
    m->draft_head_dim = dim;
    m->draft_intermediate = width;
}

static void set_pro_small(mq_maker *m)
{
    m->layers = 4;
    m->hidden = 512;
    m->full_every = 8;
    set_attention(m, 16, 4, 8, 48, 32); /* fewer KV heads than ranks on full layers */
    m->intermediate = 1024;
    m->experts = 32;
    m->top_k = 8;
    m->moe_intermediate = 512; /* 64 columns for each of 8 ranks */
    m->value_scale = 0.612;
    m->rope_theta = 1e7;
    m->fused = true;
    m->scheme = m->expert_scheme = MQ_SCHEME_FP8_BLOCK;
    m->files = 3;
    set_draft(m, 2, 16, 8, 32, 1024);
}

static void set_released(mq_maker *m, bool pro, bool flash)
{
    m->layers = pro ? 70 : 48;
    m->hidden = pro ? 6144 : 4096;
    m->vocab = 152576;
    m->eos = 151645;
    m->full_every = pro ? 8 : 6;
    set_attention(m, pro ? 128 : 64, pro ? 8 : 4, 8, 192, 128);
    m->window = 128;
    m->intermediate = 16384;
    m->experts = pro ? 384 : 256;
    m->top_k = 8;
    m->moe_intermediate = 2048;
    m->value_scale = pro ? 0.612 : 0.707;
    m->rope_theta = flash ? 5e6 : 1e7;
    m->max_positions = flash ? 262144 : 1048576;
    m->fused = !flash;
    m->scheme = m->expert_scheme = MQ_SCHEME_FP8_BLOCK;
    m->files = pro ? 34 : 16;
    set_draft(m, 5, pro ? 128 : 64, 8, 128, 16384);
    m->draft_window = 1024;
}

bool mq_maker_preset(mq_maker *m, const char *name)
{
    *m = NANO;
    if (strcmp(name, "nano") == 0)
        return true;
    if (strcmp(name, "mini") == 0) {
        m->layers = 8;
        m->hidden = 256;
        m->full_every = 4;
        set_attention(m, 8, 2, 4, 96, 64);
        m->intermediate = 768;
        m->experts = 24;
        m->files = 4;
    } else if (strcmp(name, "pro-small") == 0) {
        set_pro_small(m);
    } else if (strcmp(name, "flash") == 0 || strcmp(name, "v25") == 0 || strcmp(name, "pro") == 0) {
        set_released(m, strcmp(name, "pro") == 0, strcmp(name, "flash") == 0);
    } else {
        return false;
    }
    return true;
}

static mq_status check(const mq_maker *m, mq_err *err)
{
    const int positive[] = {m->layers, m->hidden, m->vocab, m->heads, m->kv_heads, m->head_dim, m->v_head_dim,
                            m->swa_heads, m->swa_kv_heads, m->swa_head_dim, m->swa_v_head_dim, m->window,
                            m->full_every, m->intermediate, m->experts, m->top_k, m->moe_intermediate, m->files};
    for (size_t i = 0; i < sizeof positive / sizeof positive[0]; i++)
        if (positive[i] < 1)
            return mq_fail(err, MQ_E_ARG, "a dimension or count below 1");
    if (m->fused && (m->heads % m->kv_heads || m->swa_heads % m->kv_heads || m->swa_kv_heads % m->kv_heads))
        return mq_fail(err, MQ_E_ARG, "fused: heads are not multiples of the %d chunks", m->kv_heads);
    if ((m->expert_scheme == MQ_SCHEME_MXFP4_ROWS || m->mx_layers) &&
        (m->hidden % MQ_MX_GROUP || m->moe_intermediate % MQ_MX_GROUP))
        return mq_fail(err, MQ_E_ARG, "MXFP4: widths are not multiples of %d", MQ_MX_GROUP);
    if (m->top_k > m->experts)
        return mq_fail(err, MQ_E_ARG, "%d experts a token of %d", m->top_k, m->experts);
    if (m->no_index && m->files != 1)
        return mq_fail(err, MQ_E_ARG, "no index: expected one file");
    return MQ_OK;
}

/* By file, wide dtypes first, then by name. */
static int compare_tensors(const void *va, const void *vb)
{
    const maker_tensor *a = va, *b = vb;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    int bits_a = mq_dtype_bits(a->dtype), bits_b = mq_dtype_bits(b->dtype);
    return bits_a != bits_b ? (bits_a > bits_b ? -1 : 1) : strcmp(a->name, b->name);
}

/* Cut the list into files of about equal size, in layer order, then sort. */
static void assign_files(maker_list *l, int n_files, bool split_pairs, uint64_t seed)
{
    int64_t total = 0, sum = 0;
    for (int64_t i = 0; i < l->n; i++)
        total += l->tensors[i].n_bytes;
    for (int64_t i = 0; i < l->n; i++) {
        maker_tensor *t = &l->tensors[i];
        t->file = (int)((double)sum / (double)total * n_files);
        if (split_pairs && t->is_scale)
            t->file = (t->file + 1) % n_files;
        t->seed = seed + 0x100000001b3u * (uint64_t)i;
        sum += t->n_bytes;
    }
    /* a large tensor may leave a file without any: close the gaps so that every file exists */
    qsort(l->tensors, (size_t)l->n, sizeof *l->tensors, compare_tensors);
    int next = -1, last = -1;
    for (int64_t i = 0; i < l->n; i++) {
        if (l->tensors[i].file != last) {
            last = l->tensors[i].file;
            next++;
        }
        l->tensors[i].file = next;
    }
}

static void header_of(mq_buf *b, const maker_tensor *t, int64_t n)
{
    int64_t off = 0;
    mq_buf_str(b, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0; i < n; i++, t++) {
        mq_buf_fmt(b, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld", t->name, mq_dtype_name(t->dtype),
                   (long long)t->dims[0]);
        if (t->n_dims == 2)
            mq_buf_fmt(b, ",%lld", (long long)t->dims[1]);
        mq_buf_fmt(b, "],\"data_offsets\":[%lld,%lld]}", (long long)off, (long long)(off + t->n_bytes));
        off += t->n_bytes;
    }
    mq_buf_str(b, "}");
    while (b->n_bytes % 8 != 0)
        mq_buf_str(b, " ");
}

static mq_status write_all(int fd, const char *path, const void *bytes, int64_t n_bytes, mq_err *err)
{
    const uint8_t *p = bytes;
    while (n_bytes > 0) {
        ssize_t n = write(fd, p, (size_t)n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return mq_fail(err, MQ_E_IO, "%s: write: %s", path, strerror(errno));
        p += n;
        n_bytes -= n;
    }
    return MQ_OK;
}

/* Header, then the tensors through one buffer of many chunks. */
static mq_status stream(int fd, const char *path, const maker_noise *noise, const maker_tensor *t, int64_t n,
                        mq_err *err)
{
    enum { CHUNKS = 16 };
    mq_buf header = mq_buf_empty();
    header_of(&header, t, n);
    uint8_t frame[8];
    for (int i = 0; i < 8; i++)
        frame[i] = (uint8_t)((uint64_t)header.n_bytes >> (8 * i));
    mq_status st = mq_buf_status(&header, err);
    if (st == MQ_OK)
        st = write_all(fd, path, frame, 8, err);
    if (st == MQ_OK)
        st = write_all(fd, path, header.data, header.n_bytes, err);
    mq_buf_release(&header);
    uint8_t *buf = malloc((size_t)CHUNKS * MAKER_CHUNK);
    if (!buf)
        st = mq_fail(err, MQ_E_NOMEM, "out of memory");
    int64_t held = 0;
    for (int64_t i = 0; i < n && st == MQ_OK; i++) {
        for (int64_t off = 0; off < t[i].n_bytes && st == MQ_OK; off += MAKER_CHUNK) {
            int64_t piece = t[i].n_bytes - off < MAKER_CHUNK ? t[i].n_bytes - off : MAKER_CHUNK;
            if (held + piece > (int64_t)CHUNKS * MAKER_CHUNK) {
                st = write_all(fd, path, buf, held, err);
                held = 0;
            }
            maker_fill_bytes(noise, &t[i], off, buf + held, piece);
            held += piece;
        }
    }
    if (st == MQ_OK)
        st = write_all(fd, path, buf, held, err);
    free(buf);
    return st;
}

/* Open DIR/name for writing; *path is the caller's to free. */
static mq_status create_file(int *fd, char **path, const char *dir, const char *name, mq_err *err)
{
    *fd = -1;
    *path = mq_path_join(dir, name);
    if (!*path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    *fd = open(*path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return *fd < 0 ? mq_fail(err, MQ_E_IO, "%s: open: %s", *path, strerror(errno)) : MQ_OK;
}

static mq_status finish_file(int fd, char *path, mq_status st, mq_err *err)
{
    if (fd >= 0 && close(fd) != 0 && st == MQ_OK)
        st = mq_fail(err, MQ_E_IO, "%s: close: %s", path, strerror(errno));
    free(path);
    return st;
}

static mq_status write_file(const char *dir, const char *name, const maker_noise *noise, const maker_tensor *t,
                            int64_t n, mq_err *err)
{
    int fd;
    char *path;
    mq_status st = create_file(&fd, &path, dir, name, err);
    if (st == MQ_OK)
        st = stream(fd, path, noise, t, n, err);
    return finish_file(fd, path, st, err);
}

/* A small file at once, without the fsync of mq_file_save, which would wait for the gigabytes before it. */
static mq_status save(const char *dir, const char *name, mq_buf *b, mq_err *err)
{
    int fd;
    char *path;
    mq_status st = mq_buf_status(b, err);
    if (st == MQ_OK) {
        st = create_file(&fd, &path, dir, name, err);
        if (st == MQ_OK)
            st = write_all(fd, path, b->data, b->n_bytes, err);
        st = finish_file(fd, path, st, err);
    }
    mq_buf_release(b);
    return st;
}

static mq_status write_index(const char *dir, const maker_list *l, int n_files, int64_t total, mq_err *err)
{
    mq_buf b = mq_buf_empty();
    mq_buf_fmt(&b, "{\n\"metadata\": {\"total_size\": %lld},\n\"weight_map\": {", (long long)total);
    for (int64_t i = 0; i < l->n; i++)
        mq_buf_fmt(&b, "%s\n\"%s\": \"model-%05d-of-%05d.safetensors\"", i ? "," : "", l->tensors[i].name,
                   l->tensors[i].file + 1, n_files);
    mq_buf_str(&b, "\n}\n}\n");
    return save(dir, "model.safetensors.index.json", &b, err);
}

/* All files of one folder; stem NULL: numbered ones and an index. */
static mq_status write_tensors(maker_list *l, const mq_maker *m, const maker_noise *noise, const char *dir,
                               const char *stem, int64_t *total, mq_err *err)
{
    if (l->st != MQ_OK)
        return mq_fail(err, l->st, "out of memory for the list of tensors");
    assign_files(l, stem ? 1 : m->files, m->split_pairs && !stem, m->seed);
    int n_files = l->tensors[l->n - 1].file + 1;
    for (int64_t i = 0, end; i < l->n; i = end) {
        for (end = i; end < l->n && l->tensors[end].file == l->tensors[i].file; end++)
            *total += l->tensors[end].n_bytes;
        char name[64];
        if (stem)
            snprintf(name, sizeof name, "%s.safetensors", stem);
        else
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", l->tensors[i].file + 1, n_files);
        MQ_TRY(write_file(dir, name, noise, &l->tensors[i], end - i, err));
    }
    return stem ? MQ_OK : write_index(dir, l, n_files, *total, err);
}

static mq_status write_draft(const mq_maker *m, const maker_noise *noise, const char *dir, mq_err *err)
{
    maker_list l = {NULL, 0, 0, MQ_OK};
    int64_t total = 0;
    mq_buf b = mq_buf_empty();
    MQ_TRY(mq_dir_create(dir, err));
    maker_list_draft(&l, m);
    mq_status st = write_tensors(&l, m, noise, dir, "dflash_draft_model", &total, err);
    free(l.tensors);
    MQ_TRY(st);
    maker_draft_config(&b, m);
    MQ_TRY(save(dir, "config.json", &b, err));
    maker_tensor mask = {.dtype = MQ_DT_BF16, .n_bytes = 2 * m->hidden, .fill = FILL_NORMAL, .sigma = 0.5, .seed = m->seed};
    uint16_t *values = calloc((size_t)m->hidden, 2);
    if (!values)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    int64_t n = mask.n_bytes < MAKER_CHUNK ? mask.n_bytes : MAKER_CHUNK;
    maker_fill_bytes(noise, &mask, 0, (uint8_t *)values, n);
    b = mq_buf_empty();
    maker_mask_pt(&b, maker_mask_token(m), values, m->hidden);
    free(values);
    return save(dir, "mask_embedding.pt", &b, err);
}

static mq_status copy_tokenizer(const char *from, const char *to, mq_err *err)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    for (int i = 0; i < 3; i++) {
        char *path = mq_path_join(from, names[i]);
        mq_buf b = mq_buf_empty();
        mq_status st = path ? mq_file_load(&b, path, 64 << 20, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
        free(path);
        if (st == MQ_OK)
            st = save(to, names[i], &b, err);
        mq_buf_release(&b);
        MQ_TRY(st);
    }
    return MQ_OK;
}

static mq_status write_parts(const mq_maker *m, const maker_noise *noise, const char *dir, int64_t *total, mq_err *err)
{
    maker_list l = {NULL, 0, 0, MQ_OK};
    mq_buf b = mq_buf_empty();
    maker_list_model(&l, m);
    mq_status st = write_tensors(&l, m, noise, dir, m->no_index ? "model" : NULL, total, err);
    free(l.tensors);
    MQ_TRY(st);
    maker_config(&b, m);
    MQ_TRY(save(dir, "config.json", &b, err));
    b = mq_buf_empty();
    mq_buf_fmt(&b, "{\"eos_token_id\": [%d]}\n", m->eos);
    MQ_TRY(save(dir, "generation_config.json", &b, err));
    if (m->draft_layers > 0) {
        char *draft_dir = mq_path_join(dir, "dflash");
        st = draft_dir ? write_draft(m, noise, draft_dir, err) : mq_fail(err, MQ_E_NOMEM, "out of memory");
        free(draft_dir);
        MQ_TRY(st);
    }
    return m->tokenizer ? copy_tokenizer(m->tokenizer, dir, err) : MQ_OK;
}

mq_status mq_maker_write(const mq_maker *m, const char *dir, int64_t *n_bytes, mq_err *err)
{
    int64_t total = 0;
    MQ_TRY(check(m, err));
    MQ_TRY(mq_dir_create(dir, err));
    maker_noise *noise = maker_noise_create(m->seed);
    if (!noise)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = write_parts(m, noise, dir, &total, err);
    maker_noise_free(noise);
    if (n_bytes)
        *n_bytes = total;
    return st;
}
