/* Rows of the residual stream: what is written is read, on the heap and in a file alike; saved files are whole, and
 * recognized again; every status that hidden.h promises. */
#include "calib/hidden.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/file.h"
#include "src/pool.h"
#include "tests/harness.h"

static float value(int64_t row, int64_t col)
{
    return (float)row + (float)col / 1024.0f;
}

static mq_hidden *filled(const char *dir, const char *name, int64_t n_rows, int64_t cols, bool in_memory)
{
    mq_err err;
    mq_hidden *h;
    mq_assert_ok(mq_hidden_create(&h, dir, name, n_rows, cols, in_memory, &err), &err);
    float *row = malloc((size_t)(cols + 1) * sizeof *row);
    for (int64_t i = n_rows - 1; i >= 0; i--) { /* in any order */
        for (int64_t c = 0; c < cols; c++)
            row[c] = value(i, c);
        mq_assert_ok(mq_hidden_write(h, row, i, 1, &err), &err);
    }
    free(row);
    return h;
}

static void check_all(const mq_hidden *h)
{
    mq_err err;
    int64_t n = mq_hidden_rows(h), cols = mq_hidden_cols(h);
    float *all = malloc((size_t)(n * cols + 1) * sizeof *all);
    mq_assert_ok(mq_hidden_read(h, all, 0, n, &err), &err);
    int64_t n_wrong = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < cols; c++)
            n_wrong += all[i * cols + c] != value(i, c);
    ck_assert_int_eq(n_wrong, 0);
    free(all);
}

static bool exists(const char *dir, const char *name)
{
    char *path = mq_path_join(dir, name);
    bool there = mq_path_exists(path);
    free(path);
    return there;
}

START_TEST(heap_and_file_hold_the_same_rows)
{
    static const int32_t index[] = {5, 6, 7, 0, 99, 99, 3, 4, 50};
    const char *dir = mq_test_dir();
    for (int m = 0; m < 2; m++) {
        mq_err err;
        mq_hidden *h = filled(dir, "rows", 100, 7, m == 0);
        ck_assert_int_eq(mq_hidden_rows(h), 100);
        ck_assert_int_eq(mq_hidden_cols(h), 7);
        check_all(h);
        float got[9 * 7];
        mq_assert_ok(mq_hidden_gather(h, got, index, 9, &err), &err);
        for (int i = 0; i < 9; i++)
            for (int c = 0; c < 7; c++)
                ck_assert(got[i * 7 + c] == value(index[i], c));
        mq_assert_ok(mq_hidden_gather(h, got, index, 0, &err), &err);
        ck_assert_int_eq(exists(dir, "rows.partial"), m == 1);
        mq_hidden_close(h);
        ck_assert(!exists(dir, "rows.partial")); /* what was not saved is gone */
        ck_assert(!exists(dir, "rows"));
    }
    mq_hidden_close(NULL);
}
END_TEST

/* 0 rows, one, less than a digest block, exactly one, more. */
START_TEST(saved_rows_open_again_with_their_digest)
{
    static const int64_t sizes[] = {0, 1, 1000, 4096, 4097, 9000};
    const char *dir = mq_test_dir();
    for (int s = 0; s < 6; s++) {
        uint8_t digests[2][MQ_SHA256_BYTES];
        for (int m = 0; m < 2; m++) {
            mq_err err;
            mq_hidden *h = filled(dir, "saved", sizes[s], 256, m == 0);
            mq_assert_ok(mq_hidden_save(h, digests[m], 1 + m, &err), &err);
            check_all(h); /* still usable */
            mq_hidden_close(h);
            ck_assert(exists(dir, "saved") && !exists(dir, "saved.partial"));
            for (int again = 0; again < 2; again++) {
                mq_assert_ok(mq_hidden_open(&h, dir, "saved", sizes[s], 256, digests[m], again == 0, 3, &err), &err);
                check_all(h);
                mq_hidden_close(h);
                ck_assert(exists(dir, "saved"));
            }
        }
        ck_assert_mem_eq(digests[0], digests[1], MQ_SHA256_BYTES);
    }
}
END_TEST

START_TEST(the_digest_is_that_of_the_blocks_digests)
{
    enum { ROWS = 4097, COLS = 256, BLOCK = 4 << 20 };
    mq_err err;
    uint8_t digest[MQ_SHA256_BYTES], parts[2 * MQ_SHA256_BYTES], want[MQ_SHA256_BYTES];
    mq_hidden *h = filled(mq_test_dir(), "digest", ROWS, COLS, true);
    mq_assert_ok(mq_hidden_save(h, digest, 2, &err), &err);
    float *all = malloc(ROWS * COLS * sizeof *all);
    mq_assert_ok(mq_hidden_read(h, all, 0, ROWS, &err), &err);
    mq_sha256_of(parts, all, BLOCK);
    mq_sha256_of(parts + MQ_SHA256_BYTES, (char *)all + BLOCK, ROWS * COLS * 4 - BLOCK);
    mq_sha256_of(want, parts, sizeof parts);
    ck_assert_mem_eq(digest, want, sizeof want);
    free(all);
    mq_hidden_close(h);
}
END_TEST

START_TEST(damage_is_told)
{
    const char *dir = mq_test_dir();
    mq_err err;
    uint8_t digest[MQ_SHA256_BYTES];
    mq_hidden *h = filled(dir, "damaged", 10, 64, true);
    mq_assert_ok(mq_hidden_save(h, digest, 1, &err), &err);
    mq_hidden_close(h);
    for (int m = 0; m < 2; m++) {
        mq_assert_fails(mq_hidden_open(&h, dir, "nowhere", 10, 64, digest, m, 1, &err), MQ_E_IO, &err, "nowhere");
        ck_assert_ptr_null(h);
        mq_assert_fails(mq_hidden_open(&h, dir, "damaged", 11, 64, digest, m, 1, &err), MQ_E_HASH, &err,
                        "2560 bytes, expected 2816");
        uint8_t other[MQ_SHA256_BYTES];
        memcpy(other, digest, sizeof other);
        other[31] ^= 1;
        mq_assert_fails(mq_hidden_open(&h, dir, "damaged", 10, 64, other, m, 1, &err), MQ_E_HASH, &err,
                        "its digest is not the recorded one");
    }
    mq_assert_fails(mq_hidden_create(&h, "/nonexistent/dir", "x", 10, 64, false, &err), MQ_E_IO, &err, "/nonexistent");
    ck_assert_ptr_null(h);
    mq_assert_fails(mq_hidden_create(&h, dir, "huge", INT64_MAX / 8 / 4096, 4096, false, &err), MQ_E_IO, &err,
                    "not enough space");
}
END_TEST

typedef struct crowd {
    mq_hidden *h;
} crowd;

/* Even jobs write their 16 rows, odd ones read rows of the upper half, which nobody writes. */
static mq_status crowd_job(void *ctx, int64_t job, int worker, mq_err *err)
{
    (void)worker;
    crowd *c = ctx;
    float rows[16 * 32];
    int64_t row0 = job / 2 * 16;
    for (int i = 0; i < 16 * 32; i++)
        rows[i] = value(row0 + i / 32, i % 32);
    if (job % 2 == 0)
        return mq_hidden_write(c->h, rows, row0, 16, err);
    float got[16 * 32];
    MQ_TRY(mq_hidden_read(c->h, got, 512 + row0, 16, err));
    for (int i = 0; i < 16 * 32; i++)
        if (got[i] != value(512 + row0 + i / 32, i % 32))
            return mq_fail(err, MQ_E_BUG, "row %lld", (long long)(512 + row0 + i / 32));
    return MQ_OK;
}

START_TEST(threads_read_and_write_side_by_side)
{
    for (int m = 0; m < 2; m++) {
        mq_err err;
        crowd c = {filled(mq_test_dir(), "crowd", 1024, 32, m)};
        mq_assert_ok(mq_pool_run(4, 64, crowd_job, &c, &err), &err);
        check_all(c.h);
        mq_hidden_close(c.h);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hidden");
    TCase *t = tcase_create("hidden");
    tcase_add_test(t, heap_and_file_hold_the_same_rows);
    tcase_add_test(t, saved_rows_open_again_with_their_digest);
    tcase_add_test(t, the_digest_is_that_of_the_blocks_digests);
    tcase_add_test(t, damage_is_told);
    tcase_add_test(t, threads_read_and_write_side_by_side);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
