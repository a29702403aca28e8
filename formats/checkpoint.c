/* A checkpoint folder: the index, the files it names, and one table of all their tensors.
 *
 * The reference libraries trust the index; here it must say exactly what the files say.  The index is walked once and
 * thrown away: what stays is the open files and a hash table. */
#include "formats/checkpoint.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/safetensors_header.h"
#include "src/json.h"
#include "src/map.h"

/* An index of 160,000 tensors has 15 MB; MAX_FILES descriptors fit under the usual limit of 1024. */
enum { MAX_INDEX_BYTES = 64 << 20, INDEX_DEPTH = 8, MAX_FILES = 900 };

static const char INDEX_NAME[] = "model.safetensors.index.json";

struct mq_checkpoint {
    char *dir;
    char **names; /* [n_files] plain file names, sorted */
    mq_safetensors **files;
    int64_t n_files;
    mq_tensor_ref *tensors; /* [n_tensors] file by file, by offset in each */
    int64_t *file_of;       /* [n_tensors] */
    int64_t n_tensors;
    mq_map *by_name;
    mq_buf warnings;
};

static mq_status fail_entry(mq_err *err, const char *tensor, const char *what)
{
    return mq_fail(err, MQ_E_FORMAT, "tensor '%.*s': %s", MQ_ST_NAME_SHOWN, tensor, what);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static mq_status add_file_name(mq_checkpoint *c, const char *name, mq_err *err)
{
    if (c->n_files == MAX_FILES)
        return mq_fail(err, MQ_E_FORMAT, "weight_map names more than %d files", MAX_FILES);
    c->names[c->n_files] = strdup(name);
    if (!c->names[c->n_files])
        return mq_fail(err, MQ_E_NOMEM, "out of memory for file names");
    c->n_files++;
    return MQ_OK;
}

/* The distinct file names of the weight map, each checked to be a plain name. */
static mq_status collect_files(mq_checkpoint *c, const mq_json_node *weight_map, mq_map *seen, mq_err *err)
{
    for (const mq_json_node *n = mq_json_first(weight_map); n; n = mq_json_next(n)) {
        const char *name = mq_json_string(n);
        if (!name)
            return fail_entry(err, mq_json_key(n), "weight_map holds something else than a file name");
        int64_t name_bytes = (int64_t)strlen(name);
        if (!mq_name_is_plain(name, name_bytes)) {
            mq_status st = mq_fail(err, MQ_E_FORMAT, "weight_map: '%.100s' is not a plain file name", name);
            return mq_wrap(err, st, "tensor '%.*s'", MQ_ST_NAME_SHOWN, mq_json_key(n));
        }
        bool is_new;
        MQ_TRY(mq_map_put(seen, name, name_bytes, 0, &is_new, err));
        if (is_new)
            MQ_TRY(add_file_name(c, name, err));
    }
    qsort(c->names, (size_t)c->n_files, sizeof *c->names, compare_names);
    return MQ_OK;
}

static mq_status open_one(mq_checkpoint *c, int64_t i, bool from_index, mq_err *err)
{
    char *path = mq_path_join(c->dir, c->names[i]);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", c->dir);
    mq_status st = from_index && !mq_path_exists(path)
                       ? mq_fail(err, MQ_E_FORMAT, "%s: named in %s, but not there", path, INDEX_NAME)
                       : mq_safetensors_open(&c->files[i], path, err);
    free(path);
    return st;
}

static mq_status open_files(mq_checkpoint *c, bool from_index, mq_err *err)
{
    c->files = calloc((size_t)c->n_files, sizeof *c->files);
    if (!c->files)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", c->dir);
    for (int64_t i = 0; i < c->n_files; i++) {
        MQ_TRY(open_one(c, i, from_index, err));
        c->n_tensors += mq_safetensors_count(c->files[i]);
    }
    return MQ_OK;
}

/* One table of all tensors; a name in two files is refused. */
static mq_status index_tensors(mq_checkpoint *c, mq_err *err)
{
    size_t n = (size_t)(c->n_tensors > 0 ? c->n_tensors : 1);
    c->tensors = malloc(n * sizeof *c->tensors);
    c->file_of = malloc(n * sizeof *c->file_of);
    if (!c->tensors || !c->file_of)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory for %lld tensors", c->dir, (long long)c->n_tensors);
    MQ_TRY(mq_map_create(&c->by_name, c->n_tensors, err));
    int64_t at = 0;
    for (int64_t i = 0; i < c->n_files; i++) {
        for (int64_t k = 0; k < mq_safetensors_count(c->files[i]); k++, at++) {
            const mq_st_tensor *t = mq_safetensors_get(c->files[i], k);
            c->tensors[at] = (mq_tensor_ref){c->files[i], t};
            c->file_of[at] = i;
            bool is_new;
            MQ_TRY(mq_map_put(c->by_name, t->name, t->name_bytes, at, &is_new, err));
            if (!is_new) {
                int64_t first = c->file_of[mq_map_find(c->by_name, t->name, t->name_bytes)];
                mq_status st = mq_fail(err, MQ_E_FORMAT, "tensor '%.*s': already in %.200s", MQ_ST_NAME_SHOWN, t->name,
                                       c->names[first]);
                return mq_wrap(err, st, "%s/%s", c->dir, c->names[i]);
            }
        }
    }
    return MQ_OK;
}

/* Every mapped tensor lies in that very file. */
static mq_status check_map(const mq_checkpoint *c, const mq_json_node *weight_map, bool *mapped, mq_err *err)
{
    for (const mq_json_node *n = mq_json_first(weight_map); n; n = mq_json_next(n)) {
        int64_t i = mq_map_find_str(c->by_name, mq_json_key(n));
        if (i < 0 || strcmp(c->names[c->file_of[i]], mq_json_string(n)) != 0) {
            const char *where = i < 0 ? "no file" : c->names[c->file_of[i]];
            mq_status st = mq_fail(err, MQ_E_FORMAT, "weight_map says %.200s, but %.200s has it", mq_json_string(n), where);
            return mq_wrap(err, st, "tensor '%.*s'", MQ_ST_NAME_SHOWN, mq_json_key(n));
        }
        mapped[i] = true;
    }
    return MQ_OK;
}

/* Every tensor of every file is mapped; the map has no key twice, so once. */
static mq_status check_all_mapped(const mq_checkpoint *c, const bool *mapped, mq_err *err)
{
    for (int64_t i = 0; i < c->n_tensors; i++)
        if (!mapped[i]) {
            mq_status st = fail_entry(err, c->tensors[i].tensor->name, "not in weight_map");
            return mq_wrap(err, st, "in %s", c->names[c->file_of[i]]);
        }
    return MQ_OK;
}

static mq_status check_cover(const mq_checkpoint *c, const mq_json_node *weight_map, mq_err *err)
{
    bool *mapped = calloc((size_t)(c->n_tensors > 0 ? c->n_tensors : 1), sizeof *mapped);
    if (!mapped)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for %lld tensors", (long long)c->n_tensors);
    mq_status st = check_map(c, weight_map, mapped, err);
    if (st == MQ_OK)
        st = check_all_mapped(c, mapped, err);
    free(mapped);
    return st;
}

/* metadata is optional; a total_size that does not fit is only a warning: converted copies often carry one. */
static mq_status check_total(mq_checkpoint *c, const mq_json_node *root, mq_err *err)
{
    const mq_json_node *metadata = mq_json_find(root, "metadata");
    if (!metadata || mq_json_type_of(metadata) == MQ_JSON_NULL)
        return MQ_OK;
    if (mq_json_type_of(metadata) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "metadata is %s, expected an object",
                       mq_json_type_name(mq_json_type_of(metadata)));
    const mq_json_node *total = mq_json_find(metadata, "total_size");
    if (!total)
        return MQ_OK;
    int64_t n_bytes = 0, found;
    for (int64_t i = 0; i < c->n_tensors; i++)
        n_bytes += c->tensors[i].tensor->n_bytes;
    if (!mq_json_int(total, &found))
        mq_buf_fmt(&c->warnings, "%s: total_size is not an integer, the tensors have %lld bytes\n", INDEX_NAME,
                   (long long)n_bytes);
    else if (found != n_bytes)
        mq_buf_fmt(&c->warnings, "%s: total_size is %lld, the tensors have %lld bytes\n", INDEX_NAME,
                   (long long)found, (long long)n_bytes);
    return mq_buf_status(&c->warnings, err);
}

static mq_status weight_map_of(const mq_json *doc, const mq_json_node **out, mq_err *err)
{
    const mq_json_node *root = mq_json_root(doc);
    if (mq_json_type_of(root) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "found %s, expected an object", mq_json_type_name(mq_json_type_of(root)));
    *out = mq_json_find(root, "weight_map");
    if (!*out)
        return mq_fail(err, MQ_E_FORMAT, "weight_map is missing");
    if (mq_json_type_of(*out) != MQ_JSON_OBJECT)
        return mq_fail(err, MQ_E_FORMAT, "weight_map is %s, expected an object",
                       mq_json_type_name(mq_json_type_of(*out)));
    return mq_json_count(*out) > 0 ? MQ_OK : mq_fail(err, MQ_E_FORMAT, "weight_map is empty");
}

static mq_status read_index(mq_checkpoint *c, const mq_json *doc, const char *path, mq_err *err)
{
    const mq_json_node *weight_map = NULL;
    mq_map *seen = NULL;
    mq_status st = weight_map_of(doc, &weight_map, err);
    if (st == MQ_OK)
        st = mq_map_create(&seen, 64, err);
    if (st == MQ_OK)
        st = collect_files(c, weight_map, seen, err);
    mq_map_free(seen);
    if (st != MQ_OK)
        return mq_wrap(err, st, "%s", path);
    MQ_TRY(open_files(c, true, err));
    MQ_TRY(index_tensors(c, err));
    st = check_cover(c, weight_map, err);
    if (st == MQ_OK)
        st = check_total(c, mq_json_root(doc), err);
    return mq_wrap(err, st, "%s", path);
}

static mq_status open_index(mq_checkpoint *c, const char *path, mq_err *err)
{
    mq_json *doc;
    MQ_TRY(mq_json_load(&doc, path, MAX_INDEX_BYTES, INDEX_DEPTH, err));
    mq_status st = read_index(c, doc, path, err);
    mq_json_free(doc);
    return st;
}

static mq_status open_single(mq_checkpoint *c, const char *file_stem, mq_err *err)
{
    char name[256];
    snprintf(name, sizeof name, "%s.safetensors", file_stem);
    char *path = mq_path_join(c->dir, name);
    bool there = path && mq_path_exists(path);
    free(path);
    if (!there)
        return mq_fail(err, MQ_E_FORMAT, "%s: neither %s nor %s is there: not a checkpoint", c->dir, INDEX_NAME, name);
    MQ_TRY(add_file_name(c, name, err));
    MQ_TRY(open_files(c, false, err));
    return index_tensors(c, err);
}

static mq_status open_dir(mq_checkpoint *c, const char *dir, const char *file_stem, mq_err *err)
{
    c->dir = strdup(dir);
    c->names = calloc(MAX_FILES, sizeof *c->names);
    char *path = mq_path_join(dir, INDEX_NAME);
    mq_status st = c->dir && c->names && path ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    if (st == MQ_OK && !mq_path_is_dir(dir))
        st = mq_fail(err, mq_path_exists(dir) ? MQ_E_FORMAT : MQ_E_IO, "%s: %s", dir,
                     mq_path_exists(dir) ? "not a folder" : "no such folder");
    if (st == MQ_OK)
        st = mq_path_exists(path) ? open_index(c, path, err) : open_single(c, file_stem, err);
    free(path);
    return st;
}

mq_status mq_checkpoint_open(mq_checkpoint **out, const char *dir, const char *file_stem, mq_err *err)
{
    *out = NULL;
    mq_checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return mq_fail(err, MQ_E_NOMEM, "%s: out of memory", dir);
    c->warnings = mq_buf_empty();
    mq_status st = open_dir(c, dir, file_stem, err);
    if (st != MQ_OK) {
        mq_checkpoint_close(c);
        return st;
    }
    *out = c;
    return MQ_OK;
}

void mq_checkpoint_close(mq_checkpoint *c)
{
    if (!c)
        return;
    for (int64_t i = 0; i < c->n_files; i++) {
        if (c->files)
            mq_safetensors_close(c->files[i]);
        free(c->names[i]);
    }
    mq_map_free(c->by_name);
    mq_buf_release(&c->warnings);
    free(c->files);
    free(c->names);
    free(c->tensors);
    free(c->file_of);
    free(c->dir);
    free(c);
}

const char *mq_checkpoint_dir(const mq_checkpoint *c)
{
    return c->dir;
}

int64_t mq_checkpoint_n_files(const mq_checkpoint *c)
{
    return c->n_files;
}

const mq_safetensors *mq_checkpoint_file(const mq_checkpoint *c, int64_t i)
{
    return c->files[i];
}

const char *mq_checkpoint_file_name(const mq_checkpoint *c, int64_t i)
{
    return c->names[i];
}

int64_t mq_checkpoint_n_tensors(const mq_checkpoint *c)
{
    return c->n_tensors;
}

mq_tensor_ref mq_checkpoint_tensor(const mq_checkpoint *c, int64_t i)
{
    return c->tensors[i];
}

int64_t mq_checkpoint_index(const mq_checkpoint *c, const char *name)
{
    return mq_map_find_str(c->by_name, name);
}

mq_tensor_ref mq_checkpoint_find(const mq_checkpoint *c, const char *name)
{
    int64_t i = mq_map_find_str(c->by_name, name);
    return i < 0 ? (mq_tensor_ref){NULL, NULL} : c->tensors[i];
}

const char *mq_checkpoint_warnings(const mq_checkpoint *c)
{
    return c->warnings.data ? c->warnings.data : "";
}
