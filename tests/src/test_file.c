/* Files: what may be opened, exact reads, and output that is whole or absent. */
#include "src/file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/harness.h"

/* dir/name, released with the process's other memory by the caller's free. */
static char *at(const char *dir, const char *name)
{
    char *path = mq_path_join(dir, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

static void assert_content(const char *path, const char *want)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    mq_assert_ok(mq_file_load(&b, path, 1000, &err), &err);
    ck_assert_str_eq(b.data, want);
    mq_buf_release(&b);
}

START_TEST(only_regular_files_open)
{
    mq_err err;
    mq_file *f;
    const char *dir = mq_test_dir();
    char *fifo = at(dir, "fifo"), *sock = at(dir, "sock"), *link = at(dir, "link"),
         *file = at(dir, "file");
    mq_assert_fails(mq_file_open(&f, dir, &err), MQ_E_FORMAT, &err, "not a regular file");
    mq_assert_fails(mq_file_open(&f, "/dev/null", &err), MQ_E_FORMAT, &err,
                    "/dev/null: not a regular file");
    ck_assert_int_eq(mkfifo(fifo, 0600), 0);
    mq_assert_fails(mq_file_open(&f, fifo, &err), MQ_E_FORMAT, &err,
                    "fifo: not a regular file"); /* and returns */
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    ck_assert_uint_lt(strlen(sock), sizeof addr.sun_path);
    strcpy(addr.sun_path, sock);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0)
        mq_assert_fails(mq_file_open(&f, sock, &err), MQ_E_FORMAT, &err,
                        "sock: not a regular file");
    if (fd >= 0)
        close(fd);
    mq_assert_fails(mq_file_open(&f, file, &err), MQ_E_IO, &err,
                    "file: open: No such file or directory");
    ck_assert_ptr_null(f);
    ck_assert_int_eq(symlink("file", link), 0);
    mq_assert_fails(mq_file_open(&f, link, &err), MQ_E_IO, &err, "link: open: ");
    mq_assert_ok(mq_file_save(dir, "file", "hello", 5, &err), &err);
    mq_assert_ok(mq_file_open(&f, link, &err), &err);
    ck_assert_int_eq(f->n_bytes, 5);
    ck_assert_int_gt(f->mtime_ns, INT64_C(1000000000) * 1000000000);
    ck_assert_str_eq(f->path, link);
    mq_file_close(f);
    mq_file_close(NULL);
    free(fifo), free(sock), free(link), free(file);
}
END_TEST

START_TEST(reads_are_exact_or_fail_with_the_path)
{
    mq_err err;
    mq_file *f;
    char b[8] = "";
    const char *dir = mq_test_dir();
    char *path = at(dir, "f");
    mq_assert_ok(mq_file_save(dir, "f", "0123456789", 10, &err), &err);
    mq_assert_ok(mq_file_open(&f, path, &err), &err);
    mq_assert_ok(mq_file_read(f, b, 3, 4, &err), &err);
    ck_assert_mem_eq(b, "3456", 4);
    mq_assert_ok(mq_file_read(f, b, 10, 0, &err), &err);
    mq_assert_ok(mq_file_read(f, b, 9, 1, &err), &err);
    mq_assert_fails(mq_file_read(f, b, 9, 2, &err), MQ_E_IO, &err,
                    "2 bytes asked for at 9, the file has 10");
    mq_assert_fails(mq_file_read(f, b, -1, 1, &err), MQ_E_IO, &err, "asked for at -1");
    mq_assert_fails(mq_file_read(f, b, INT64_MAX, INT64_MAX, &err), MQ_E_IO, &err, "f: ");
    ck_assert_int_eq(truncate(path, 5), 0);
    mq_assert_fails(mq_file_read(f, b, 3, 4, &err), MQ_E_IO, &err,
                    "file shrank while being read: it ends at 5");
    ck_assert_ptr_eq(strstr(err.text, path), err.text);
    mq_file_close(f);
    free(path);
}
END_TEST

START_TEST(load_takes_up_to_the_limit)
{
    mq_err err;
    mq_buf b = mq_buf_empty();
    const char *dir = mq_test_dir();
    char *path = at(dir, "f");
    mq_buf_str(&b, "old content that is longer than the file, so that its room is used again");
    mq_assert_ok(mq_file_save(dir, "f", "a\0b", 3, &err), &err);
    mq_assert_ok(mq_file_load(&b, path, 3, &err), &err);
    ck_assert_int_eq(b.n_bytes, 3);
    ck_assert_mem_eq(b.data, "a\0b\0", 4);
    mq_buf_str(&b, "c"); /* still a buffer */
    ck_assert_mem_eq(b.data, "a\0bc\0", 5);
    mq_assert_fails(mq_file_load(&b, path, 2, &err), MQ_E_FORMAT, &err,
                    "f: 3 bytes, expected at most 2");
    ck_assert_int_eq(b.n_bytes, 0);
    mq_assert_ok(mq_file_save(dir, "f", NULL, 0, &err), &err);
    mq_buf_release(&b);
    mq_assert_ok(mq_file_load(&b, path, 0, &err), &err);
    ck_assert_str_eq(b.data, "");
    mq_buf_release(&b);
    free(path);
}
END_TEST

START_TEST(commit_makes_the_file_appear_whole_with_its_digest)
{
    mq_err err;
    mq_out *o;
    uint8_t digest[MQ_SHA256_BYTES], want[MQ_SHA256_BYTES];
    const char *dir = mq_test_dir();
    char *path = at(dir, "f"), *partial = at(dir, "f.partial");
    mq_assert_ok(mq_out_create(&o, dir, "f", true, &err), &err);
    mq_assert_ok(mq_out_append(o, "hello ", 6, &err), &err);
    mq_assert_ok(mq_out_append(o, NULL, 0, &err), &err);
    ck_assert(mq_path_exists(partial) && !mq_path_exists(path));
    mq_assert_ok(mq_out_append(o, "world", 5, &err), &err);
    ck_assert_int_eq(mq_out_bytes(o), 11);
    mq_assert_ok(mq_out_commit(o, digest, &err), &err);
    ck_assert(!mq_path_exists(partial));
    assert_content(path, "hello world");
    mq_sha256_of(want, "hello world", 11);
    ck_assert_mem_eq(digest, want, sizeof want);
    free(path), free(partial);
}
END_TEST

START_TEST(abandon_leaves_neither_name_and_keeps_the_old_file)
{
    mq_err err;
    mq_out *o;
    const char *dir = mq_test_dir();
    char *path = at(dir, "f"), *partial = at(dir, "f.partial");
    mq_assert_ok(mq_out_create(&o, dir, "f", false, &err), &err);
    mq_assert_ok(mq_out_append(o, "x", 1, &err), &err);
    mq_out_abandon(o);
    ck_assert(!mq_path_exists(partial) && !mq_path_exists(path));
    mq_assert_ok(mq_file_save(dir, "f", "old", 3, &err), &err);
    mq_assert_ok(mq_out_create(&o, dir, "f", false, &err), &err);
    mq_assert_ok(mq_out_append(o, "new", 3, &err), &err);
    assert_content(path, "old");
    mq_out_abandon(o);
    mq_out_abandon(NULL);
    assert_content(path, "old");
    ck_assert(!mq_path_exists(partial));
    free(path), free(partial);
}
END_TEST

START_TEST(an_existing_file_is_replaced_not_rewritten)
{
    /* A reader that holds the old file keeps the old bytes: the name moved, the file did not
     * change. */
    mq_err err;
    mq_file *old;
    char b[3];
    const char *dir = mq_test_dir();
    char *path = at(dir, "f");
    mq_assert_ok(mq_file_save(dir, "f", "old", 3, &err), &err);
    mq_assert_ok(mq_file_open(&old, path, &err), &err);
    mq_assert_ok(mq_file_save(dir, "f", "newer", 5, &err), &err);
    mq_assert_ok(mq_file_read(old, b, 0, 3, &err), &err);
    ck_assert_mem_eq(b, "old", 3);
    assert_content(path, "newer");
    mq_file_close(old);
    free(path);
}
END_TEST

START_TEST(an_old_partial_file_is_replaced_even_when_it_is_a_link)
{
    mq_err err;
    mq_out *o;
    const char *dir = mq_test_dir();
    char *path = at(dir, "f"), *partial = at(dir, "f.partial"), *victim = at(dir, "victim");
    mq_assert_ok(mq_file_save(dir, "victim", "precious", 8, &err), &err);
    ck_assert_int_eq(symlink("victim", partial), 0);
    mq_assert_ok(mq_out_create(&o, dir, "f", false, &err), &err);
    mq_assert_ok(mq_out_append(o, "x", 1, &err), &err);
    mq_assert_ok(mq_out_commit(o, NULL, &err), &err);
    assert_content(victim, "precious");
    assert_content(path, "x");
    struct stat info;
    ck_assert(lstat(path, &info) == 0 && S_ISREG(info.st_mode));
    free(path), free(partial), free(victim);
}
END_TEST

START_TEST(output_errors_name_the_path_and_leave_nothing)
{
    mq_err err;
    mq_out *o;
    const char *dir = mq_test_dir();
    char *path = at(dir, "taken"), *partial = at(dir, "taken.partial");
    mq_assert_fails(mq_out_create(&o, "/nonexistent", "f", false, &err), MQ_E_IO, &err,
                    "/nonexistent/f.partial: create: No such file or directory");
    ck_assert_ptr_null(o);
    mq_assert_fails(mq_out_create(&o, dir, "../f", false, &err), MQ_E_ARG, &err,
                    "'../f' is not a plain file name");
    mq_assert_fails(mq_out_create(&o, dir, "", false, &err), MQ_E_ARG, &err,
                    "'' is not a plain file name");
    /* The final name is a folder: rename refuses, the partial file goes. */
    mq_assert_ok(mq_dir_create(path, &err), &err);
    mq_assert_fails(mq_file_save(dir, "taken", "x", 1, &err), MQ_E_IO, &err, "taken: rename: ");
    ck_assert(!mq_path_exists(partial) && mq_path_is_dir(path));
    free(path), free(partial);
}
END_TEST

START_TEST(appended_pieces_of_any_size_arrive_in_order)
{
    mq_err err;
    const char *dir = mq_test_dir();
    const int64_t pieces[] = {0, 1, 4095, 4096, (4 << 20) - 8192, 1, (4 << 20) + 7, 3 << 20, 0, 12345};
    int64_t total = 0, at_byte = 0;
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
        total += pieces[i];
    uint8_t *bytes = malloc((size_t)total), want[MQ_SHA256_BYTES], got[MQ_SHA256_BYTES];
    uint64_t state = 7;
    for (int64_t i = 0; i < total; i++)
        bytes[i] = (uint8_t)mq_test_rand(&state);
    mq_out *o;
    mq_assert_ok(mq_out_create(&o, dir, "pieces", true, &err), &err);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        mq_assert_ok(mq_out_append(o, bytes + at_byte, pieces[i], &err), &err);
        at_byte += pieces[i];
    }
    ck_assert_int_eq(mq_out_bytes(o), total);
    mq_assert_ok(mq_out_commit(o, got, &err), &err);
    mq_sha256_of(want, bytes, total);
    ck_assert_mem_eq(got, want, sizeof want);
    char *path = at(dir, "pieces");
    mq_buf back = mq_buf_empty();
    mq_assert_ok(mq_file_load(&back, path, total, &err), &err);
    ck_assert_int_eq(back.n_bytes, total);
    ck_assert_mem_eq(back.data, bytes, (size_t)total);
    mq_buf_release(&back);
    free(path), free(bytes);
}
END_TEST

START_TEST(a_failed_write_cannot_be_committed)
{
    mq_err err;
    mq_out *o;
    const char *dir = mq_test_dir();
    char *path = at(dir, "f"), *partial = at(dir, "f.partial");
    struct rlimit was, small = {.rlim_cur = 4096};
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &was), 0);
    small.rlim_max = was.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    mq_assert_ok(mq_out_create(&o, dir, "f", true, &err), &err);
    static const char block[(4 << 20) + 1] = ""; /* one block goes out, one byte is gathered */
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    /* The first write is short (4096 bytes), its retry fails: as on a full disk. */
    mq_status st = mq_out_append(o, block, sizeof block, &err);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, handler);
    ck_assert_int_eq(st, MQ_E_IO);
    ck_assert_ptr_nonnull(strstr(err.text, "f.partial: write: File too large"));
    mq_assert_fails(mq_out_append(o, "x", 1, &err), MQ_E_IO, &err,
                    "f.partial: an earlier write failed");
    mq_assert_fails(mq_out_commit(o, NULL, &err), MQ_E_IO, &err,
                    "f.partial: an earlier write failed");
    ck_assert(!mq_path_exists(path) && !mq_path_exists(partial));
    free(path), free(partial);
}
END_TEST

START_TEST(plain_names)
{
    char longest[257];
    memset(longest, 'a', sizeof longest);
    ck_assert(mq_name_is_plain("a", 1) && mq_name_is_plain("...", 3) && mq_name_is_plain(".a", 2) &&
              mq_name_is_plain("a b", 3) && mq_name_is_plain(longest, 255));
    ck_assert(!mq_name_is_plain("", 0) && !mq_name_is_plain(".", 1) && !mq_name_is_plain("..", 2) &&
              !mq_name_is_plain("a/b", 3) && !mq_name_is_plain("/", 1) &&
              !mq_name_is_plain("a\0b", 3) && !mq_name_is_plain(longest, 256));
}
END_TEST

START_TEST(folders_are_made_once_and_listed_sorted)
{
    mq_err err;
    char **names;
    int64_t n;
    const char *dir = mq_test_dir();
    char *sub = at(dir, "sub"), *deep = at(dir, "no/deep"), *file = at(dir, "file");
    mq_assert_ok(mq_dir_create(sub, &err), &err);
    mq_assert_ok(mq_dir_create(sub, &err), &err);
    mq_assert_ok(mq_dir_sync(sub, &err), &err);
    ck_assert(mq_path_is_dir(sub) && mq_path_exists(sub) && !mq_path_exists(deep));
    mq_assert_fails(mq_dir_create(deep, &err), MQ_E_IO, &err,
                    "no/deep: create folder: No such file");
    mq_assert_ok(mq_file_save(dir, "file", "x", 1, &err), &err);
    ck_assert(!mq_path_is_dir(file));
    mq_assert_fails(mq_dir_create(file, &err), MQ_E_EXISTS, &err,
                    "file: exists and is not a folder");
    mq_assert_fails(mq_dir_sync(deep, &err), MQ_E_IO, &err, "no/deep: open folder: ");
    mq_assert_ok(mq_dir_list(&names, &n, sub, &err), &err);
    ck_assert_int_eq(n, 0);
    mq_dir_list_free(names, n);
    static const char *const unsorted[] = {"b", "a10", "a2", "B", "\xc3\xa9", ".x"};
    static const char *const sorted[] = {".x", "B", "a10", "a2", "b", "\xc3\xa9"};
    for (int i = 0; i < 6; i++)
        mq_assert_ok(mq_file_save(sub, unsorted[i], "", 0, &err), &err);
    mq_assert_ok(mq_dir_list(&names, &n, sub, &err), &err);
    ck_assert_int_eq(n, 6);
    for (int i = 0; i < 6; i++)
        ck_assert_str_eq(names[i], sorted[i]);
    mq_dir_list_free(names, n);
    mq_assert_fails(mq_dir_list(&names, &n, deep, &err), MQ_E_IO, &err, "no/deep: open folder: ");
    ck_assert_ptr_null(names);
    free(sub), free(deep), free(file);
}
END_TEST

START_TEST(free_space_is_known)
{
    mq_err err;
    int64_t n = -1;
    mq_assert_ok(mq_dir_free_bytes(&n, mq_test_dir(), &err), &err);
    ck_assert_int_ge(n, 0);
    mq_assert_fails(mq_dir_free_bytes(&n, "/nonexistent", &err), MQ_E_IO, &err,
                    "/nonexistent: statvfs: ");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("file");
    TCase *t = tcase_create("file");
    tcase_add_test(t, only_regular_files_open);
    tcase_add_test(t, reads_are_exact_or_fail_with_the_path);
    tcase_add_test(t, load_takes_up_to_the_limit);
    tcase_add_test(t, commit_makes_the_file_appear_whole_with_its_digest);
    tcase_add_test(t, abandon_leaves_neither_name_and_keeps_the_old_file);
    tcase_add_test(t, an_existing_file_is_replaced_not_rewritten);
    tcase_add_test(t, an_old_partial_file_is_replaced_even_when_it_is_a_link);
    tcase_add_test(t, output_errors_name_the_path_and_leave_nothing);
    tcase_add_test(t, appended_pieces_of_any_size_arrive_in_order);
    tcase_add_test(t, a_failed_write_cannot_be_committed);
    tcase_add_test(t, plain_names);
    tcase_add_test(t, folders_are_made_once_and_listed_sorted);
    tcase_add_test(t, free_space_is_known);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
