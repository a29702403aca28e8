/* Loading packed models into host memory: the same bytes as record by record, whatever the way and the number of threads; what is
 * compared and what is not; files that are damaged, missing, or change while they are read. */
#include <fcntl.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include "formats/shard_read.h"
#include "tests/runtime/load_fixture.h"

static mq_err err;

static fix_side open_side(const char *dir, int n_ranks, bool resident, mq_load_io io)
{
    mq_store_options o = {.resident = resident, .n_ranks = n_ranks, .n_threads = 3, .check = true, .io = io};
    fix_side s = {NULL, NULL, NULL};
    mq_assert_ok(mq_store_open(&s.store, dir, &o, &err), &err);
    return s;
}

static void loaded_equals_streamed(const char *dir, int n_ranks, mq_load_io io)
{
    fix_side a = open_side(dir, n_ranks, true, io), b = open_side(dir, n_ranks, false, MQ_LOAD_AUTO);
    fix_same_store(&a, &b);
    mq_load_figures f = mq_store_loaded(a.store), none = mq_store_loaded(b.store);
    ck_assert_int_gt(f.n_records, 0);
    ck_assert_int_eq(f.n_checked, f.n_records);
    ck_assert(io != MQ_LOAD_BUFFERED || f.direct_bytes == 0);
    ck_assert_int_le(f.direct_bytes, f.read_bytes);
    ck_assert_int_eq(none.n_records, 0);
    mq_store_close(a.store);
    mq_store_close(b.store);
}

START_TEST(the_bytes_are_those_of_records_read_one_by_one)
{
    const char *plain = fix_model("nano", 2, 32, 0), *packed = fix_model("nano", 2, 64, 1);
    for (int n_ranks = 1; n_ranks <= 2; n_ranks++)
        for (int io = 0; io < 3; io++) {
            loaded_equals_streamed(plain, n_ranks, (mq_load_io)io);
            loaded_equals_streamed(packed, n_ranks, (mq_load_io)io);
        }
}
END_TEST

START_TEST(eight_ranks_that_repeat_kv_heads_merge_as_before)
{
    const char *dir = fix_model("pro-small", 8, 64, 0);
    for (int n_ranks = 1; n_ranks <= 8; n_ranks *= 2)
        loaded_equals_streamed(dir, n_ranks, n_ranks == 2 ? MQ_LOAD_DIRECT : MQ_LOAD_AUTO);
}
END_TEST

/* Progress: never back, and all in the end. */
typedef struct watch {
    int64_t done, total, calls;
} watch;

static void watch_progress(void *ctx, int64_t done, int64_t total)
{
    watch *w = ctx;
    ck_assert_int_gt(done, w->done);
    ck_assert_int_le(done, total);
    *w = (watch){done, total, w->calls + 1};
}

START_TEST(progress_grows_and_ends_at_the_total)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    for (int n_ranks = 1; n_ranks <= 2; n_ranks++) {
        watch w = {0, 0, 0};
        mq_store *s;
        mq_store_options o = {.resident = true, .n_ranks = n_ranks, .n_threads = 3, .check = true, .progress = watch_progress,
                              .progress_ctx = &w};
        mq_assert_ok(mq_store_open(&s, dir, &o, &err), &err);
        ck_assert_int_eq(w.total, mq_store_resident_bytes(s));
        ck_assert_int_eq(w.done, w.total);
        ck_assert_int_gt(w.calls, 100); /* record by record, not layer by layer */
        mq_store_close(s);
    }
}
END_TEST

/* ---- What is compared ---- */

static mq_status try_load(const char *dir, mq_load_verify verify, mq_load_io io, int n_threads, mq_load_figures *figures)
{
    mq_store *s;
    mq_store_options o = {.resident = true, .n_ranks = 2, .n_threads = n_threads, .check = true, .verify = verify, .io = io};
    mq_status st = mq_store_open(&s, dir, &o, &err);
    if (st == MQ_OK && figures)
        *figures = mq_store_loaded(s);
    mq_store_close(s);
    return st;
}

/* Flip a bit in the middle of record i's stored bytes; record < 0: in the first one that a sample passes over.  Again: as before. */
static void flip(const char *dir, const char *name, int64_t record)
{
    char *path = mq_path_join(dir, name);
    mq_shard *s;
    mq_assert_ok(mq_shard_open(&s, path, &err), &err);
    for (int64_t i = 1; record < 0; i++)
        record = mq_shard_entry_at(s, i)->sha256[0] % MQ_VERIFY_SAMPLE ? i : -1;
    const mq_shard_entry *e = mq_shard_entry_at(s, record);
    off_t at = (off_t)(e->off + e->stored_bytes / 2);
    mq_shard_close(s);
    int fd = open(path, O_RDWR);
    uint8_t byte;
    ck_assert(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 1;
    ck_assert(pwrite(fd, &byte, 1, at) == 1);
    close(fd);
    free(path);
}

START_TEST(a_wrong_digest_names_file_and_record)
{
    static const char file[] = "layer-001-rank-01-of-02.mqs";
    const char *dir = fix_model("nano", 2, 64, 0);
    for (int io = 0; io < 3; io++) {
        flip(dir, file, 9);
        mq_assert_fails(try_load(dir, MQ_VERIFY_FULL, (mq_load_io)io, 3, NULL), MQ_E_HASH, &err, file);
        ck_assert_ptr_nonnull(strstr(err.text, "tensor '"));
        ck_assert_ptr_nonnull(strstr(err.text, "SHA-256 of the record differs from the index"));
        mq_assert_ok(try_load(dir, MQ_VERIFY_NONE, (mq_load_io)io, 3, NULL), &err);
        flip(dir, file, 9);
        mq_assert_ok(try_load(dir, MQ_VERIFY_FULL, (mq_load_io)io, 3, NULL), &err);
    }
}
END_TEST

START_TEST(a_sample_is_the_first_record_of_a_file_and_some_others)
{
    static const char file[] = "layer-002-rank-00-of-02.mqs";
    const char *dir = fix_model("nano", 2, 64, 0);
    mq_load_figures all, some, again, none;
    mq_assert_ok(try_load(dir, MQ_VERIFY_FULL, MQ_LOAD_AUTO, 3, &all), &err);
    mq_assert_ok(try_load(dir, MQ_VERIFY_PART, MQ_LOAD_AUTO, 3, &some), &err);
    mq_assert_ok(try_load(dir, MQ_VERIFY_PART, MQ_LOAD_AUTO, 1, &again), &err);
    mq_assert_ok(try_load(dir, MQ_VERIFY_NONE, MQ_LOAD_AUTO, 3, &none), &err);
    ck_assert_int_eq(all.n_checked, all.n_records);
    ck_assert(some.n_checked > 0 && some.n_checked < all.n_checked / 2);
    ck_assert_int_eq(some.n_checked, again.n_checked);
    ck_assert_int_eq(none.n_checked, 0);
    flip(dir, file, 0);
    mq_assert_fails(try_load(dir, MQ_VERIFY_PART, MQ_LOAD_AUTO, 3, NULL), MQ_E_HASH, &err, file);
    flip(dir, file, 0);
    flip(dir, file, -1);
    mq_assert_ok(try_load(dir, MQ_VERIFY_PART, MQ_LOAD_AUTO, 3, NULL), &err);
    mq_assert_fails(try_load(dir, MQ_VERIFY_FULL, MQ_LOAD_AUTO, 3, NULL), MQ_E_HASH, &err, file);
}
END_TEST

START_TEST(the_first_damaged_record_is_named_whatever_the_threads)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    char want[MQ_ERR_TEXT];
    flip(dir, "layer-001-rank-00-of-02.mqs", 20);
    flip(dir, "layer-001-rank-01-of-02.mqs", 3);
    mq_assert_fails(try_load(dir, MQ_VERIFY_FULL, MQ_LOAD_AUTO, 1, NULL), MQ_E_HASH, &err, "rank-00");
    strcpy(want, err.text);
    for (int i = 0; i < 20; i++) {
        mq_assert_fails(try_load(dir, MQ_VERIFY_FULL, MQ_LOAD_AUTO, 1 + i % 5, NULL), MQ_E_HASH, &err, "rank-00");
        ck_assert_str_eq(err.text, want);
    }
}
END_TEST

START_TEST(damaged_compressed_records_are_refused)
{
    static const char file[] = "layer-002-rank-01-of-02.mqs";
    const char *dir = fix_model("nano", 2, 64, 1);
    for (int record = 0; record < 12; record += 5) {
        flip(dir, file, record);
        mq_status st = try_load(dir, MQ_VERIFY_FULL, MQ_LOAD_AUTO, 3, NULL);
        ck_assert_msg(st == MQ_E_HASH || st == MQ_E_FORMAT, "record %d: %s", record, mq_status_name(st));
        ck_assert_ptr_nonnull(strstr(err.text, file));
        ck_assert_ptr_nonnull(strstr(err.text, "tensor '"));
        flip(dir, file, record);
    }
}
END_TEST

START_TEST(a_missing_file_is_named)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    char *path = mq_path_join(dir, "layer-001-rank-01-of-02.mqs");
    unlink(path);
    mq_assert_fails(try_load(dir, MQ_VERIFY_FULL, MQ_LOAD_AUTO, 3, NULL), MQ_E_FORMAT, &err,
                    "layer-001-rank-01-of-02.mqs: missing, but listed in the manifest");
    free(path);
}
END_TEST

/* ---- Files that change while they are read ---- */

/* Done once, when the first record has arrived: one thread reads rank 0's file before rank 1's. */
typedef struct meddler {
    const char *dir, *name;
    bool cut, done;
} meddler;

static void meddle(void *ctx, int64_t done, int64_t total)
{
    meddler *m = ctx;
    (void)done;
    (void)total;
    if (m->done)
        return;
    m->done = true;
    char *path = mq_path_join(m->dir, m->name);
    int fd = open(path, O_RDWR);
    uint8_t byte = 0;
    ck_assert(fd >= 0);
    if (m->cut)
        ck_assert(ftruncate(fd, 8192) == 0);
    else
        ck_assert(pread(fd, &byte, 1, 70) == 1 && pwrite(fd, &byte, 1, 70) == 1);
    close(fd);
    free(path);
}

START_TEST(files_that_change_meanwhile_are_noticed)
{
    static const char file[] = "layer-000-rank-01-of-02.mqs";
    for (int io = 1; io < 3; io++)
        for (int cut = 0; cut < 2; cut++) {
            const char *dir = fix_model("nano", 2, 64, 0);
            meddler m = {dir, file, cut, false};
            mq_store *s;
            mq_store_options o = {.resident = true, .n_ranks = 2, .n_threads = 1, .check = true, .verify = MQ_VERIFY_NONE,
                                  .io = (mq_load_io)io, .progress = meddle, .progress_ctx = &m};
            mq_assert_fails(mq_store_open(&s, dir, &o, &err), MQ_E_IO, &err, file);
            ck_assert_msg(strstr(err.text, cut ? "file shrank while being read" : "changed while being read: it was written to"),
                          "%s", err.text);
            ck_assert_ptr_null(s);
        }
}
END_TEST

static void on_alarm(int signal)
{
    (void)signal;
}

START_TEST(signals_do_not_disturb)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    struct sigaction action = {.sa_handler = on_alarm}, before; /* no SA_RESTART: calls end with EINTR */
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, &before);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 5; i++)
        mq_assert_ok(try_load(dir, MQ_VERIFY_FULL, i & 1 ? MQ_LOAD_DIRECT : MQ_LOAD_BUFFERED, 3, NULL), &err);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &before, NULL);
}
END_TEST

START_TEST(after_a_failure_the_store_streams_on)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    fix_side a = open_side(dir, 2, false, MQ_LOAD_AUTO), b = open_side(dir, 2, false, MQ_LOAD_AUTO);
    flip(dir, "layer-002-rank-01-of-02.mqs", 4);
    mq_assert_fails(mq_store_load(a.store, &err), MQ_E_HASH, &err, "layer-002-rank-01-of-02.mqs");
    flip(dir, "layer-002-rank-01-of-02.mqs", 4);
    fix_same_store(&a, &b);
    mq_assert_ok(mq_store_load(a.store, &err), &err);
    fix_same_store(&a, &b);
    mq_store_close(a.store);
    mq_store_close(b.store);
}
END_TEST

static _Atomic int n_asked; /* that are still answered with "go on" */

static bool stop_after_some(void *ctx)
{
    (void)ctx;
    return n_asked-- <= 0;
}

START_TEST(a_load_that_is_told_to_stop_ends_and_can_begin_again)
{
    const char *dir = fix_model("nano", 2, 64, 0);
    for (int asked = 0; asked < 8; asked += 3) {
        watch w = {0, 0, 0};
        mq_store *s;
        mq_store_options o = {.n_ranks = 2, .n_threads = 3, .check = true, .progress = watch_progress, .progress_ctx = &w,
                              .stopped = stop_after_some};
        mq_assert_ok(mq_store_open(&s, dir, &o, &err), &err);
        n_asked = asked;
        mq_assert_fails(mq_store_load(s, &err), MQ_E_STOPPED, &err, "stopped");
        ck_assert(!mq_store_is_resident(s) && w.done < mq_store_resident_bytes(s));
        w = (watch){0, 0, 0};
        n_asked = INT32_MAX;
        mq_assert_ok(mq_store_load(s, &err), &err);
        ck_assert_int_eq(w.done, w.total);
        mq_store_close(s);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("load");
    TCase *t = tcase_create("all");
    tcase_add_test(t, the_bytes_are_those_of_records_read_one_by_one);
    tcase_add_test(t, eight_ranks_that_repeat_kv_heads_merge_as_before);
    tcase_add_test(t, progress_grows_and_ends_at_the_total);
    tcase_add_test(t, a_wrong_digest_names_file_and_record);
    tcase_add_test(t, a_sample_is_the_first_record_of_a_file_and_some_others);
    tcase_add_test(t, the_first_damaged_record_is_named_whatever_the_threads);
    tcase_add_test(t, damaged_compressed_records_are_refused);
    tcase_add_test(t, a_missing_file_is_named);
    tcase_add_test(t, files_that_change_meanwhile_are_noticed);
    tcase_add_test(t, signals_do_not_disturb);
    tcase_add_test(t, after_a_failure_the_store_streams_on);
    tcase_add_test(t, a_load_that_is_told_to_stop_ends_and_can_begin_again);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
