/* Reads the limits of control groups, of either version: "0::/a/b" in the process's list is root/a/b/memory.max, "9:memory:/a/b" is
 * root/memory/a/b/memory.limit_in_bytes.  Groups above count too.  A container may be told of a group by its name outside, where
 * nothing is inside: the walk up passes over what is not there. */
#include "src/machine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4352, LINE_BYTES = 4096 };

/* The number in a file; INT64_MAX: none ("max"), or no file. */
static int64_t read_limit(const char *path)
{
    int64_t n;
    FILE *f = fopen(path, "re");
    if (!f)
        return INT64_MAX;
    if (fscanf(f, "%" SCNd64, &n) != 1 || n <= 0)
        n = INT64_MAX;
    fclose(f);
    return n;
}

/* group: changed on the way up. */
static int64_t smallest_limit(const char *root, const char *controller, char *group, const char *file)
{
    int64_t least = INT64_MAX;
    for (;;) {
        char path[PATH_BYTES];
        int n = snprintf(path, sizeof path, "%s%s%s/%s", root, controller, group, file);
        int64_t limit = n > 0 && n < (int)sizeof path ? read_limit(path) : INT64_MAX;
        least = limit < least ? limit : least;
        char *slash = strrchr(group, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

int64_t mq_cgroup_bytes(const char *self, const char *root)
{
    int64_t least = INT64_MAX;
    char line[LINE_BYTES];
    FILE *f = fopen(self, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        names++;
        int64_t limit = INT64_MAX;
        if (!*names)
            limit = smallest_limit(root, "", group, "memory.max");
        else if (strcmp(names, "memory") == 0)
            limit = smallest_limit(root, "/memory", group, "memory.limit_in_bytes");
        least = limit < least ? limit : least;
    }
    if (f)
        fclose(f);
    return least;
}

int64_t mq_machine_bytes(void)
{
    int64_t all = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    int64_t ours = mq_cgroup_bytes("/proc/self/cgroup", "/sys/fs/cgroup");
    return ours < all ? ours : all;
}
