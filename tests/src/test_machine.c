/* Memory limits of control groups: both versions, groups above, names that lead nowhere, files that say nothing. */
#include "src/machine.h"

#include <stdio.h>
#include <stdlib.h>

#include "src/file.h"
#include "tests/harness.h"

static char *in_dir(const char *dir, const char *name)
{
    char *path = mq_path_join(dir, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

static char *make_dir(const char *dir, const char *name)
{
    char *path = in_dir(dir, name);
    mq_err err;
    mq_assert_ok(mq_dir_create(path, &err), &err);
    return path;
}

static void put(const char *dir, const char *name, const char *text)
{
    char *path = in_dir(dir, name);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
    free(path);
}

static int64_t limit(const char *dir, const char *groups)
{
    put(dir, "self", groups);
    char *self = in_dir(dir, "self");
    int64_t n = mq_cgroup_bytes(self, dir);
    free(self);
    return n;
}

START_TEST(the_smallest_limit_up_to_the_root_counts)
{
    const char *dir = mq_test_dir();
    char *a = make_dir(dir, "a"), *b = make_dir(a, "b");
    put(b, "memory.max", "max\n");
    ck_assert_int_eq(limit(dir, "0::/a/b\n"), INT64_MAX);
    put(dir, "memory.max", "9000\n");
    ck_assert_int_eq(limit(dir, "0::/a/b\n"), 9000);
    put(a, "memory.max", "5000\n");
    ck_assert_int_eq(limit(dir, "0::/a/b\n"), 5000);
    ck_assert_int_eq(limit(dir, "0::/\n"), 9000);
    ck_assert_int_eq(limit(dir, "0::/host/name\n"), 9000);
    put(b, "memory.max", "7000\n");
    ck_assert_int_eq(limit(dir, "1:cpu:/x\n0::/a/b\n"), 5000);
    free(a);
    free(b);
}
END_TEST

START_TEST(the_first_version_has_a_folder_for_memory)
{
    const char *dir = mq_test_dir();
    char *memory = make_dir(dir, "memory"), *a = make_dir(memory, "a");
    put(memory, "memory.limit_in_bytes", "9223372036854771712\n"); /* what stands for none */
    ck_assert_int_eq(limit(dir, "9:memory:/a\n1:cpu:/a\n"), INT64_C(9223372036854771712));
    put(a, "memory.limit_in_bytes", "4096\n");
    ck_assert_int_eq(limit(dir, "9:memory:/a\n1:cpu:/a\n"), 4096);
    ck_assert_int_eq(limit(dir, "9:memoryless:/a\n"), INT64_MAX);
    free(memory);
    free(a);
}
END_TEST

START_TEST(what_cannot_be_read_is_no_limit)
{
    const char *dir = mq_test_dir();
    ck_assert_int_eq(mq_cgroup_bytes("/nowhere/at/all", dir), INT64_MAX);
    ck_assert_int_eq(limit(dir, ""), INT64_MAX);
    ck_assert_int_eq(limit(dir, "no colon\none:colon\n0::\n"), INT64_MAX);
    put(dir, "memory.max", "0\n");
    ck_assert_int_eq(limit(dir, "0::/\n"), INT64_MAX);
    put(dir, "memory.max", "words\n");
    ck_assert_int_eq(limit(dir, "0::/\n"), INT64_MAX);
    ck_assert_int_gt(mq_machine_bytes(), 1 << 20);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("machine");
    TCase *t = tcase_create("machine");
    tcase_add_test(t, the_smallest_limit_up_to_the_root_counts);
    tcase_add_test(t, the_first_version_has_a_folder_for_memory);
    tcase_add_test(t, what_cannot_be_read_is_no_limit);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
