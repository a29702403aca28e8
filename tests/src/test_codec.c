/* zstd: round trips at every edge, concatenated frames, and refusal of what is damaged, foreign,
 * short or long. */
#include "src/codec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness.h"

/* A frame of n bytes of compressible noise; both blocks are the caller's to free. */
static uint8_t *make_frame(int64_t n, int level, uint8_t **plain, int64_t *frame_bytes)
{
    mq_err err;
    uint64_t seed = (uint64_t)n + 1;
    *plain = malloc(n ? (size_t)n : 1);
    uint8_t *frame = malloc((size_t)mq_zstd_bound(n));
    ck_assert(*plain && frame);
    for (int64_t i = 0; i < n; i++)
        (*plain)[i] = (uint8_t)(mq_test_rand(&seed) & 15);
    mq_assert_ok(mq_zstd_compress(frame, mq_zstd_bound(n), frame_bytes, *plain, n, level, &err),
                 &err);
    return frame;
}

START_TEST(round_trip_restores_every_byte)
{
    static const int64_t sizes[] = {0, 1, 2, 255, 256, 4096, 131071, 131072, 131073, 1000003};
    static const int levels[] = {1, 3, 19};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int l = 0; l < 3; l++) {
            mq_err err;
            uint8_t *plain;
            int64_t n = sizes[i], frame_bytes;
            uint8_t *frame = make_frame(n, levels[l], &plain, &frame_bytes),
                    *back = malloc(n ? (size_t)n : 1);
            ck_assert_ptr_nonnull(back);
            mq_assert_ok(mq_zstd_decompress(n ? back : NULL, n, frame, frame_bytes, &err), &err);
            ck_assert(memcmp(back, plain, (size_t)n) == 0);
            if (n > 4096)
                ck_assert_int_lt(frame_bytes, n * 6 / 10); /* 4 bits of 8 carry anything */
            free(back);
            free(frame);
            free(plain);
        }
    }
}
END_TEST

START_TEST(frames_may_follow_each_other)
{
    mq_err err;
    uint8_t *plain, back[600], both[4000];
    int64_t frame_bytes;
    uint8_t *frame = make_frame(200, 3, &plain, &frame_bytes);
    for (int i = 0; i < 3; i++)
        memcpy(both + i * frame_bytes, frame, (size_t)frame_bytes);
    mq_assert_ok(mq_zstd_decompress(back, 600, both, 3 * frame_bytes, &err), &err);
    for (int i = 0; i < 3; i++)
        ck_assert_mem_eq(back + 200 * i, plain, 200);
    mq_assert_fails(mq_zstd_decompress(back, 599, both, 3 * frame_bytes, &err), MQ_E_FORMAT, &err,
                    "holds more than the expected 599 bytes");
    mq_assert_fails(mq_zstd_decompress(back, 600, both, 2 * frame_bytes, &err), MQ_E_FORMAT, &err,
                    "400 bytes after decompression, expected 600");
    mq_assert_fails(mq_zstd_decompress(back, 600, both, 3 * frame_bytes - 1, &err), MQ_E_FORMAT,
                    &err, "frame at byte");
    both[3 * frame_bytes] = 0;
    mq_assert_fails(mq_zstd_decompress(back, 600, both, 3 * frame_bytes + 1, &err), MQ_E_FORMAT,
                    &err, "too few for a frame");
    free(frame);
    free(plain);
}
END_TEST

START_TEST(every_truncation_is_refused)
{
    mq_err err;
    uint8_t *plain, back[300];
    int64_t frame_bytes;
    uint8_t *frame = make_frame(300, 3, &plain, &frame_bytes);
    for (int64_t n = 0; n < frame_bytes; n++) {
        uint8_t *cut = malloc(n ? (size_t)n : 1); /* exact: the sanitizer sees a read behind it */
        ck_assert_ptr_nonnull(cut);
        memcpy(cut, frame, (size_t)n);
        mq_assert_fails(mq_zstd_decompress(back, 300, cut, n, &err), MQ_E_FORMAT, &err, "zstd: ");
        free(cut);
    }
    free(frame);
    free(plain);
}
END_TEST

START_TEST(damage_never_writes_outside_dst)
{
    mq_err err;
    uint8_t *plain;
    int64_t frame_bytes;
    uint8_t *frame = make_frame(300, 3, &plain, &frame_bytes), *back = malloc(300);
    ck_assert_ptr_nonnull(back);
    for (int64_t i = 0; i < frame_bytes * 8;
         i++) { /* every single bit; content may differ, memory must hold */
        frame[i / 8] ^= (uint8_t)(1u << (i % 8));
        mq_status st = mq_zstd_decompress(back, 300, frame, frame_bytes, &err);
        ck_assert(st == MQ_OK || st == MQ_E_FORMAT);
        frame[i / 8] ^= (uint8_t)(1u << (i % 8));
    }
    free(back);
    free(frame);
    free(plain);
}
END_TEST

START_TEST(foreign_frames_and_wide_windows_are_refused)
{
    mq_err err;
    uint8_t out[4];
    static const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'};
    mq_assert_fails(mq_zstd_decompress(out, 0, skippable, sizeof skippable, &err), MQ_E_FORMAT,
                    &err, "no frame starts at byte 0");
    mq_assert_fails(mq_zstd_decompress(out, 0, NULL, 0, &err), MQ_E_FORMAT, &err,
                    "expected a frame");
    static const uint8_t sizeless[] = {0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 0x09, 0, 0, 'x'};
    mq_assert_fails(mq_zstd_decompress(out, 1, sizeless, sizeof sizeless, &err), MQ_E_FORMAT, &err,
                    "frame at byte 0 without its content size");
    /* A single segment, whose window is its content: 2^27 + 1 bytes, it says. */
    static const uint8_t single[] = {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 1, 0, 0, 8, 0x09, 0, 0, 'x'};
    mq_assert_fails(mq_zstd_decompress(out, 1, single, sizeof single, &err), MQ_E_FORMAT, &err,
                    "window of 134217729 bytes");
    /* Magic, content size in 4 bytes, window byte, the size, one last raw block of 1 byte. */
    uint8_t frame[] = {0x28, 0xb5, 0x2f, 0xfd, 0x80, 17 << 3, 1, 0, 0, 0, 0x09, 0, 0, 'x'};
    mq_assert_ok(mq_zstd_decompress(out, 1, frame, sizeof frame, &err), &err); /* 2^27 */
    ck_assert_int_eq(out[0], 'x');
    frame[5] = 17 << 3 | 1; /* 2^27 + 2^24 */
    mq_assert_fails(mq_zstd_decompress(out, 1, frame, sizeof frame, &err), MQ_E_FORMAT, &err,
                    "window of 150994944 bytes at byte 0, expected at most 134217728");
    frame[5] = 0xff;
    mq_assert_fails(mq_zstd_decompress(out, 1, frame, sizeof frame, &err), MQ_E_FORMAT, &err,
                    "window of ");
}
END_TEST

/* Pieces of cap bytes, put together in out. */
typedef struct collector {
    uint8_t buf[64], *out;
    int64_t cap, n_bytes, n_calls;
} collector;

static mq_status collect(void *ctx, int64_t n_bytes, uint8_t **buf, int64_t *buf_bytes, mq_err *err)
{
    collector *c = ctx;
    memcpy(c->out + c->n_bytes, c->buf, (size_t)n_bytes);
    c->n_bytes += n_bytes;
    if (c->n_calls-- == 0)
        return mq_fail(err, MQ_E_IO, "enough");
    if (buf) {
        *buf = c->buf;
        *buf_bytes = c->cap;
    }
    return MQ_OK;
}

START_TEST(pieces_are_the_whole)
{
    static const int64_t caps[] = {1, 7, 64};
    for (int64_t n = 0; n <= 200; n += 50)
        for (int i = 0; i < 3; i++) {
            mq_err err;
            uint8_t *plain, back[400], both[4000];
            int64_t frame_bytes;
            uint8_t *frame = make_frame(n, 3, &plain, &frame_bytes);
            for (int k = 0; k < 2; k++)
                memcpy(both + k * frame_bytes, frame, (size_t)frame_bytes);
            collector c = {.out = back, .cap = caps[i], .n_calls = 1000};
            mq_assert_ok(mq_zstd_decompress_to(collect, &c, 2 * n, both, 2 * frame_bytes, &err), &err);
            ck_assert_int_eq(c.n_bytes, 2 * n);
            ck_assert(memcmp(back, plain, (size_t)n) == 0 && memcmp(back + n, plain, (size_t)n) == 0);
            free(frame);
            free(plain);
        }
}
END_TEST

START_TEST(pieces_stop_at_the_size_that_was_said)
{
    mq_err err;
    uint8_t *plain, back[1000];
    int64_t n = 1000, frame_bytes;
    uint8_t *frame = make_frame(n, 3, &plain, &frame_bytes);
    collector c = {.out = back, .cap = 64, .n_calls = 1000};
    mq_assert_fails(mq_zstd_decompress_to(collect, &c, 999, frame, frame_bytes, &err), MQ_E_FORMAT,
                    &err, "holds more than the expected 999 bytes");
    ck_assert_int_le(c.n_bytes, 999);
    c = (collector){.out = back, .cap = 64, .n_calls = 1000};
    mq_assert_fails(mq_zstd_decompress_to(collect, &c, 1001, frame, frame_bytes, &err), MQ_E_FORMAT,
                    &err, "1000 bytes after decompression, expected 1001");
    for (int64_t cut = 0; cut < frame_bytes; cut++) {
        c = (collector){.out = back, .cap = 64, .n_calls = 1000};
        mq_assert_fails(mq_zstd_decompress_to(collect, &c, n, frame, cut, &err), MQ_E_FORMAT, &err,
                        "zstd: ");
    }
    c = (collector){.out = back, .cap = 64, .n_calls = 3};
    mq_assert_fails(mq_zstd_decompress_to(collect, &c, n, frame, frame_bytes, &err), MQ_E_IO, &err,
                    "enough");
    frame[0] = 0x50; /* skippable: 50 2a 4d 18 */
    c = (collector){.out = back, .cap = 64, .n_calls = 1000};
    mq_assert_fails(mq_zstd_decompress_to(collect, &c, n, frame, frame_bytes, &err), MQ_E_FORMAT, &err,
                    "no frame starts at byte 0");
    free(frame);
    free(plain);
}
END_TEST

START_TEST(our_own_mistakes_are_bugs)
{
    mq_err err;
    uint8_t dst[64] = {0};
    int64_t n;
    mq_assert_fails(mq_zstd_compress(dst, sizeof dst, &n, dst, 64, 3, &err), MQ_E_BUG, &err,
                    "64 bytes of room");
    mq_assert_fails(mq_zstd_compress(dst, sizeof dst, &n, dst, 0, 0, &err), MQ_E_BUG, &err,
                    "level 0, expected 1..19");
    mq_assert_fails(mq_zstd_compress(dst, sizeof dst, &n, dst, 0, 20, &err), MQ_E_BUG, &err,
                    "level 20");
    ck_assert_int_eq(n, 0);
}
END_TEST

START_TEST(the_version_has_three_numbers)
{
    int a, b, c;
    ck_assert_int_eq(sscanf(mq_zstd_version(), "%d.%d.%d", &a, &b, &c), 3);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("codec");
    TCase *t = tcase_create("codec");
    tcase_add_test(t, round_trip_restores_every_byte);
    tcase_add_test(t, frames_may_follow_each_other);
    tcase_add_test(t, every_truncation_is_refused);
    tcase_add_test(t, damage_never_writes_outside_dst);
    tcase_add_test(t, foreign_frames_and_wide_windows_are_refused);
    tcase_add_test(t, pieces_are_the_whole);
    tcase_add_test(t, pieces_stop_at_the_size_that_was_said);
    tcase_add_test(t, our_own_mistakes_are_bugs);
    tcase_add_test(t, the_version_has_three_numbers);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
