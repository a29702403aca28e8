/* The shared part of the test programs: Check runner, temporary folders, paths, noise.  What it
 * lends (strings, folders) lives until the process ends; a list owns it so that the leak checker
 * stays quiet and folders vanish. */
#include "tests/harness.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct lent {
    struct lent *next;
    bool is_dir; /* a folder to remove */
    char text[];
} lent;

static lent *all_lent;
static pid_t owner; /* a forked test must not remove its parent's folders */

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

static void release_all(void)
{
    while (all_lent) {
        lent *l = all_lent;
        all_lent = l->next;
        if (l->is_dir && getpid() == owner)
            nftw(l->text, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
        free(l);
    }
}

/* Keep a copy of text until the process ends. */
static char *lend(const char *text, bool is_dir)
{
    size_t n = strlen(text) + 1;
    lent *l = malloc(sizeof *l + n);
    if (!l) {
        fprintf(stderr, "harness: out of memory\n");
        abort();
    }
    if (!owner) {
        owner = getpid();
        atexit(release_all);
    }
    memcpy(l->text, text, n);
    l->is_dir = is_dir;
    l->next = all_lent;
    all_lent = l;
    return l->text;
}

int mq_test_run(Suite *s)
{
    SRunner *r = srunner_create(s);
    if (!getenv("CK_FORK"))
        srunner_set_fork_status(r, CK_NOFORK);
    srunner_run_all(r, getenv("CK_VERBOSITY") ? CK_ENV : CK_VERBOSE);
    int n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    return n_failed ? 1 : 0;
}

const char *mq_test_dir(void)
{
    const char *base = getenv("TMPDIR");
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/mq-test-XXXXXX", base && *base ? base : "/tmp");
    if (n < 0 || n >= (int)sizeof path || !mkdtemp(path)) {
        fprintf(stderr, "harness: %s: %s\n", path, strerror(errno));
        abort();
    }
    return lend(path, true);
}

static bool is_root(const char *dir)
{
    char path[PATH_MAX];
    struct stat info;
    int n = snprintf(path, sizeof path, "%s/formats", dir);
    if (n < 0 || n >= (int)sizeof path || stat(path, &info) != 0)
        return false;
    n = snprintf(path, sizeof path, "%s/CMakeLists.txt", dir);
    return n > 0 && n < (int)sizeof path && stat(path, &info) == 0;
}

/* The project's root folder into root. */
static void find_root(char root[PATH_MAX])
{
    const char *env = getenv("MQ_SOURCE");
    if (env && *env && strlen(env) < PATH_MAX) {
        strcpy(root, env);
        return;
    }
    if (!getcwd(root, PATH_MAX)) {
        fprintf(stderr, "harness: getcwd: %s\n", strerror(errno));
        abort();
    }
    while (!is_root(root)) {
        char *slash = strrchr(root, '/');
        if (!slash || slash == root) {
            fprintf(stderr,
                    "harness: no project root above the working directory; set MQ_SOURCE\n");
            abort();
        }
        *slash = '\0';
    }
}

const char *mq_test_path(const char *rel)
{
    char root[PATH_MAX], path[2 * PATH_MAX];
    find_root(root);
    snprintf(path, sizeof path, "%s/%s", root, rel);
    return lend(path, false);
}

const char *mq_test_model(const char *name)
{
    const char *base = getenv("MQ_TEST_MODELS");
    char rel[PATH_MAX];
    int n = snprintf(rel, sizeof rel, "%s/%s", base && *base ? base : "../shared/models", name);
    if (n < 0 || n >= (int)sizeof rel)
        return NULL;
    const char *path = base && *base ? lend(rel, false) : mq_test_path(rel);
    return access(path, R_OK) == 0 ? path : NULL;
}

uint64_t mq_test_rand(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

float mq_test_normal(uint64_t *state)
{
    double u = ((double)(mq_test_rand(state) >> 11) + 1.0) * 0x1p-53; /* (0, 1]: log is finite */
    double v = (double)(mq_test_rand(state) >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}
