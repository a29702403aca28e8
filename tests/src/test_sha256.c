/* SHA-256 against the examples of FIPS 180-4 (NIST's published values) and itself in pieces. */
#include "src/sha256.h"

#include <string.h>

#include "tests/harness.h"

static const struct {
    const char *text, *hex;
} known[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
};

START_TEST(published_examples)
{
    mq_err err;
    mq_sha256 *h;
    uint8_t digest[MQ_SHA256_BYTES];
    char hex[MQ_SHA256_HEX];
    int64_t n = (int64_t)strlen(known[_i].text);
    mq_sha256_of(digest, known[_i].text, n);
    mq_sha256_hex(hex, digest);
    ck_assert_str_eq(hex, known[_i].hex);
    mq_assert_ok(mq_sha256_create(&h, &err), &err);
    for (int round = 0; round < 2; round++) { /* finish resets */
        for (int64_t i = 0; i < n; i++)
            mq_sha256_update(h, known[_i].text + i, 1);
        mq_sha256_update(h, NULL, 0);
        mq_sha256_finish(h, digest);
        mq_sha256_hex(hex, digest);
        ck_assert_str_eq(hex, known[_i].hex);
    }
    mq_sha256_free(h);
}
END_TEST

START_TEST(a_million_letters_in_uneven_pieces)
{
    mq_err err;
    mq_sha256 *h;
    uint8_t digest[MQ_SHA256_BYTES];
    char hex[MQ_SHA256_HEX], piece[4096];
    memset(piece, 'a', sizeof piece);
    mq_assert_ok(mq_sha256_create(&h, &err), &err);
    mq_sha256_update(h, "dropped by reset", 16);
    mq_sha256_reset(h);
    int64_t left = 1000000;
    for (int64_t n = 1; left > 0; n = n * 3 % 4093 + 1) {
        int64_t take = n < left ? n : left;
        mq_sha256_update(h, piece, take);
        left -= take;
    }
    mq_sha256_finish(h, digest);
    mq_sha256_hex(hex, digest);
    ck_assert_str_eq(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    mq_sha256_free(h);
    mq_sha256_free(NULL);
}
END_TEST

START_TEST(one_shot_takes_null_for_nothing)
{
    uint8_t digest[MQ_SHA256_BYTES];
    char hex[MQ_SHA256_HEX];
    mq_sha256_of(digest, NULL, 0);
    mq_sha256_hex(hex, digest);
    ck_assert_str_eq(hex, known[0].hex);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sha256");
    TCase *t = tcase_create("sha256");
    tcase_add_loop_test(t, published_examples, 0, 3);
    tcase_add_test(t, a_million_letters_in_uneven_pieces);
    tcase_add_test(t, one_shot_takes_null_for_nothing);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
