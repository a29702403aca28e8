/* Ownership of the output folder.
 *
 * The rule is simple so that nobody loses a file: a folder is ours when it has our journal or a manifest that reads as
 * ours, and even then only names that we write are touched.  The lock is on the folder itself: nothing has to be left
 * behind, and it ends with the process however that ends. */
#include "tools/convert_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/manifest.h"
#include "src/file.h"
#include "src/map.h"
#include "tools/calibrate.h"
#include "tools/calibrate_codes.h"
#include "tools/journal.h"

static const char partial[] = ".partial";
static const char drafter[] = "dflash";

static bool ends_with(const char *s, size_t n, const char *suffix)
{
    size_t m = strlen(suffix);
    return n > m && memcmp(s + n - m, suffix, m) == 0;
}

/* "layer-", digits and so on, ".mqs": a shard's name. */
static bool is_shard_name(const char *name, size_t n)
{
    static const char *const starts[] = {"common.", "layer-", "head-rank-", "mtp-", "draft-rank-"};
    if (!ends_with(name, n, ".mqs"))
        return false;
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (strncmp(name, starts[i], strlen(starts[i])) == 0)
            return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") >= n;
    return false;
}

/* "scratch-codes", its other one, "scratch-hidden-" and a layer's number: what calibration leaves while it is unfinished. */
static bool is_scratch_name(const char *name, size_t n)
{
    static const char hidden[] = MQ_HIDDEN_NAME "-";
    static const char *const codes[] = {MQ_CODES_NAME, MQ_OTHER_CODES_NAME};
    for (int i = 0; i < 2; i++)
        if (n == strlen(codes[i]) && memcmp(name, codes[i], n) == 0)
            return true;
    size_t m = sizeof hidden - 1;
    return n > m && memcmp(name, hidden, m) == 0 && strspn(name + m, "0123456789") >= n - m;
}

/* A name that a run writes, finished or partial. */
static bool is_our_name(const char *name)
{
    static const char *const fixed[] = {
        MQ_JOURNAL_NAME,         "manifest.json", "report.json", "README.md",  "chat_template.jinja", "config.json",
        "generation_config.json", "merges.txt",   "tokenizer.json", "tokenizer_config.json", "vocab.json"};
    size_t n = strlen(name);
    if (ends_with(name, n, partial))
        n -= strlen(partial);
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        if (strlen(fixed[i]) == n && memcmp(fixed[i], name, n) == 0)
            return true;
    return is_shard_name(name, n) || is_scratch_name(name, n);
}

/* dflash/ holds at most the drafter's config. */
static mq_status check_drafter(const char *dir, mq_err *err)
{
    char *path = mq_path_join(dir, drafter);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    char **names = NULL;
    int64_t n = 0;
    struct stat info; /* of a link itself: what it leads to is not ours to clean */
    bool is_dir = lstat(path, &info) == 0 && S_ISDIR(info.st_mode);
    mq_status st = is_dir ? mq_dir_list(&names, &n, path, err)
                          : mq_fail(err, MQ_E_EXISTS, "%s: is not a folder of a packed model", path);
    for (int64_t i = 0; st == MQ_OK && i < n; i++)
        if (strcmp(names[i], "config.json") != 0 && strcmp(names[i], "config.json.partial") != 0)
            st = mq_fail(err, MQ_E_EXISTS, "%s: '%s' is not a file of a packed model; nothing was changed", path,
                         names[i]);
    mq_dir_list_free(names, n);
    free(path);
    return st;
}

static bool has_name(char **names, int64_t n, const char *name)
{
    for (int64_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

static mq_status inspect_names(mq_folder_state *state, const char *dir, char **names, int64_t n, mq_err *err)
{
    if (has_name(names, n, MQ_JOURNAL_NAME) || (n == 1 && strcmp(names[0], MQ_JOURNAL_NAME ".partial") == 0)) {
        *state = MQ_FOLDER_UNFINISHED;
    } else {
        mq_manifest m;
        mq_err why;
        if (!has_name(names, n, "manifest.json") || mq_manifest_load(&m, dir, &why) != MQ_OK)
            return mq_fail(err, MQ_E_EXISTS, "%s: holds files ('%s') and is no packed model; give an empty or a new folder",
                           dir, names[0]);
        mq_manifest_release(&m);
        *state = MQ_FOLDER_COMPLETE;
    }
    for (int64_t i = 0; i < n; i++) {
        if (strcmp(names[i], drafter) == 0)
            MQ_TRY(check_drafter(dir, err));
        else if (!is_our_name(names[i]))
            return mq_fail(err, MQ_E_EXISTS, "%s: '%s' is not a file of a packed model; nothing was changed", dir,
                           names[i]);
    }
    return MQ_OK;
}

mq_status mq_folder_inspect(mq_folder_state *state, const char *dir, mq_err *err)
{
    *state = MQ_FOLDER_NEW;
    if (!mq_path_exists(dir))
        return MQ_OK;
    if (!mq_path_is_dir(dir))
        return mq_fail(err, MQ_E_EXISTS, "%s: exists and is not a folder", dir);
    char **names;
    int64_t n;
    MQ_TRY(mq_dir_list(&names, &n, dir, err));
    mq_status st = n ? inspect_names(state, dir, names, n, err) : MQ_OK;
    mq_dir_list_free(names, n);
    return st;
}

mq_status mq_folder_lock(int *fd, const char *dir, mq_err *err)
{
    *fd = -1;
    MQ_TRY(mq_dir_create(dir, err));
    int got = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (got < 0)
        return mq_fail(err, MQ_E_IO, "%s: %s", dir, strerror(errno));
    if (flock(got, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        close(got);
        return mq_fail(err, MQ_E_EXISTS, "%s: another mimo-quantize is writing here", dir);
    }
    *fd = got;
    return MQ_OK;
}

static mq_status remove_file(const char *dir, const char *name, mq_err *err)
{
    char *path = mq_path_join(dir, name);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = MQ_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        st = mq_fail(err, MQ_E_IO, "%s: remove: %s", path, strerror(errno));
    free(path);
    return st;
}

static mq_status remove_drafter(const char *dir, mq_err *err)
{
    char *path = mq_path_join(dir, drafter);
    if (!path)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    mq_status st = remove_file(path, "config.json", err);
    if (st == MQ_OK)
        st = remove_file(path, "config.json.partial", err);
    if (st == MQ_OK && rmdir(path) != 0)
        st = mq_fail(err, MQ_E_IO, "%s: remove: %s", path, strerror(errno));
    free(path);
    return st;
}

static mq_status remove_others(const char *dir, char **names, int64_t n, const mq_map *kept, mq_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        if (strcmp(names[i], MQ_JOURNAL_NAME) == 0 || mq_map_find_str(kept, names[i]) >= 0)
            continue;
        if (strcmp(names[i], drafter) == 0)
            MQ_TRY(remove_drafter(dir, err));
        else if (is_our_name(names[i]))
            MQ_TRY(remove_file(dir, names[i], err));
    }
    return mq_dir_sync(dir, err);
}

mq_status mq_folder_clean(const char *dir, const char *const *keep, int64_t n_keep, mq_err *err)
{
    MQ_TRY(remove_file(dir, "manifest.json", err));
    MQ_TRY(mq_dir_sync(dir, err));
    char **names;
    int64_t n;
    MQ_TRY(mq_dir_list(&names, &n, dir, err));
    mq_map *kept = NULL;
    mq_status st = mq_map_create(&kept, n_keep, err);
    for (int64_t i = 0; st == MQ_OK && i < n_keep; i++) {
        bool is_new;
        st = mq_map_put(kept, keep[i], (int64_t)strlen(keep[i]), i, &is_new, err);
    }
    if (st == MQ_OK)
        st = remove_others(dir, names, n, kept, err);
    mq_map_free(kept);
    mq_dir_list_free(names, n);
    return st;
}
