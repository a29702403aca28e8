/* mask_embedding.pt: the real files are read; every layer of damage (zip, pickle, contents) is refused with its reason,
 * and nothing a pickle asks for is run. */
#include "formats/torch_pt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/buf.h"
#include "src/file.h"
#include "tests/harness.h"

static const char REAL[] = "tests/data/nano/dflash/mask_embedding.pt";

static void load(mq_buf *b, const char *path)
{
    mq_err err;
    *b = mq_buf_empty();
    mq_assert_ok(mq_file_load(b, path, 1 << 20, &err), &err);
}

START_TEST(the_real_files_are_read)
{
    mq_mask_embedding e;
    mq_err err;
    mq_buf b;
    mq_assert_ok(mq_mask_embedding_load(&e, mq_test_path(REAL), &err), &err);
    ck_assert(e.mask_token_id == 4093 && e.dtype == MQ_DT_BF16 && e.n == 128);
    load(&b, mq_test_path(REAL));
    ck_assert_int_eq(memcmp(e.bytes, b.data + 768, 256), 0); /* data/0 is aligned to 64 bytes; read off with xxd */
    mq_buf_release(&b);
    mq_mask_embedding_release(&e);

    const char *mini = mq_test_model("mini");
    if (!mini)
        return;
    char path[4200];
    snprintf(path, sizeof path, "%s/dflash/mask_embedding.pt", mini);
    mq_assert_ok(mq_mask_embedding_load(&e, path, &err), &err);
    ck_assert(e.mask_token_id == 4093 && e.dtype == MQ_DT_BF16 && e.n == 256);
    mq_mask_embedding_release(&e);
}
END_TEST

START_TEST(a_real_file_cut_anywhere_is_refused)
{
    mq_mask_embedding e;
    mq_err err;
    mq_buf b;
    load(&b, mq_test_path(REAL));
    for (int64_t n = 0; n < b.n_bytes; n++) {
        uint8_t *copy = malloc((size_t)(n > 0 ? n : 1)); /* exact size, so that a sanitizer sees a read behind it */
        memcpy(copy, b.data, (size_t)n);
        mq_assert_fails(mq_mask_embedding_parse(&e, copy, n, "mem", &err), MQ_E_FORMAT, &err, "mem: ");
        ck_assert_ptr_null(e.bytes);
        free(copy);
    }
    mq_buf_release(&b);
}
END_TEST

/* Dates, versions and attributes carry nothing; any other changed bit must show (or change only the padding). */
START_TEST(flipped_bits_never_change_the_result_silently)
{
    mq_mask_embedding good, e;
    mq_err err;
    mq_buf b;
    int n_refused = 0;
    load(&b, mq_test_path(REAL));
    mq_assert_ok(mq_mask_embedding_parse(&good, (uint8_t *)b.data, b.n_bytes, "mem", &err), &err);
    for (int64_t bit = 0; bit < 8 * b.n_bytes; bit++) {
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ 1 << bit % 8);
        mq_status st = mq_mask_embedding_parse(&e, (uint8_t *)b.data, b.n_bytes, "mem", &err);
        ck_assert(st == MQ_OK || st == MQ_E_FORMAT || st == MQ_E_UNSUPPORTED);
        if (st == MQ_OK)
            ck_assert(e.n == good.n && e.mask_token_id == good.mask_token_id && e.dtype == good.dtype &&
                      memcmp(e.bytes, good.bytes, 256) == 0);
        n_refused += st != MQ_OK;
        mq_mask_embedding_release(&e);
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ 1 << bit % 8);
    }
    ck_assert_int_gt(n_refused, 8 * (256 + 197)); /* at least every bit of the vector and the pickle: CRC-32 */
    mq_mask_embedding_release(&good);
    mq_buf_release(&b);
}
END_TEST

/* ---- archives made here ---- */

static void put(mq_buf *b, uint64_t v, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++) {
        uint8_t byte = (uint8_t)(i < 8 ? v >> (8 * i) : 0);
        mq_buf_append(b, &byte, 1);
    }
}

static uint32_t crc32_of(const void *data, int64_t n)
{
    const uint8_t *p = data;
    uint32_t c = 0xffffffffu;
    for (int64_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (0xedb88320u & (0u - (c & 1)));
    }
    return ~c;
}

typedef struct zip {
    mq_buf body, dir;
    int n;
    uint32_t method, flags;
} zip;

static void add(zip *z, const char *name, const void *data, int64_t n)
{
    uint64_t crc = crc32_of(data, n), size = (uint64_t)n, off = (uint64_t)z->body.n_bytes;
    mq_buf_append(&z->body, "PK\3\4\0\0", 6);
    put(&z->body, z->flags, 2);
    put(&z->body, z->method, 2);
    put(&z->body, 0, 4);
    put(&z->body, crc, 4);
    put(&z->body, size, 4);
    put(&z->body, size, 4);
    put(&z->body, strlen(name), 2);
    put(&z->body, 0, 2);
    mq_buf_str(&z->body, name);
    mq_buf_append(&z->body, data, n);
    mq_buf_append(&z->dir, "PK\1\2\0\0\0\0", 8);
    put(&z->dir, z->flags, 2);
    put(&z->dir, z->method, 2);
    put(&z->dir, 0, 4);
    put(&z->dir, crc, 4);
    put(&z->dir, size, 4);
    put(&z->dir, size, 4);
    put(&z->dir, strlen(name), 2);
    put(&z->dir, 0, 12);
    put(&z->dir, off, 4);
    mq_buf_str(&z->dir, name);
    z->n++;
}

static zip begin(void)
{
    zip z = {mq_buf_empty(), mq_buf_empty(), 0, 0, 0};
    return z;
}

/* Close the archive and parse it. */
static mq_status finish(zip *z, mq_mask_embedding *e, mq_err *err)
{
    uint64_t dir_off = (uint64_t)z->body.n_bytes, dir_bytes = (uint64_t)z->dir.n_bytes;
    mq_buf_append(&z->body, z->dir.data, z->dir.n_bytes);
    mq_buf_append(&z->body, "PK\5\6\0\0\0\0", 8);
    put(&z->body, (uint64_t)z->n, 2);
    put(&z->body, (uint64_t)z->n, 2);
    put(&z->body, dir_bytes, 4);
    put(&z->body, dir_off, 4);
    put(&z->body, 0, 2);
    mq_status st = mq_mask_embedding_parse(e, (uint8_t *)z->body.data, z->body.n_bytes, "mem", err);
    mq_buf_release(&z->body);
    mq_buf_release(&z->dir);
    return st;
}

#define TEXT(n, s) "X" n "\0\0\0" s
#define ID TEXT("\x0d", "mask_token_id") "K\x07"
#define STORAGE(type, elements) "(" TEXT("\x07", "storage") "ctorch\n" type "\n" TEXT("\x01", "0") TEXT("\x03", "cpu") "K" elements "tQ"
#define TENSOR(storage, rest) TEXT("\x09", "embedding") "ctorch._utils\n_rebuild_tensor_v2\n(" storage rest "tR"
#define REST "K\0K\x04\x85K\x01\x85\x89" "ccollections\nOrderedDict\n)R"
#define DICT(items) "\x80\x02}(" items "u."
#define BF16_4 STORAGE("BFloat16Storage", "\x04")

#define PICKLE(s) s, sizeof s - 1

static mq_status parse_pickle(mq_mask_embedding *e, const char *pickle, int64_t n, int64_t data_bytes, mq_err *err)
{
    static const uint8_t data[64] = {1, 2, 3, 4};
    zip z = begin();
    add(&z, "x/data.pkl", pickle, n);
    add(&z, "x/data/0", data, data_bytes);
    return finish(&z, e, err);
}

START_TEST(the_three_float_dtypes_are_read)
{
    mq_mask_embedding e;
    mq_err err;
    mq_assert_ok(parse_pickle(&e, PICKLE(DICT(ID TENSOR(BF16_4, REST))), 8, &err), &err);
    ck_assert(e.mask_token_id == 7 && e.n == 4 && e.dtype == MQ_DT_BF16 && e.bytes[0] == 1 && e.bytes[3] == 4);
    mq_mask_embedding_release(&e);
    mq_assert_ok(parse_pickle(&e, PICKLE(DICT(TENSOR(STORAGE("HalfStorage", "\x04"), REST) ID)), 8, &err), &err);
    ck_assert(e.dtype == MQ_DT_F16 && e.n == 4);
    mq_mask_embedding_release(&e);
    mq_assert_ok(parse_pickle(&e, PICKLE(DICT(ID TENSOR(STORAGE("FloatStorage", "\x04"), REST))), 16, &err), &err);
    ck_assert(e.dtype == MQ_DT_F32 && e.n == 4);
    mq_mask_embedding_release(&e);
}
END_TEST

static const struct {
    const char *pickle;
    int64_t n, data_bytes;
    mq_status status;
    const char *fragment;
} PICKLES[] = {
    /* programs */
    {PICKLE("\x80\x02" "cos\nsystem\n(X\x02\0\0\0lstR."), 8, MQ_E_UNSUPPORTED, "global 'os.system'"},
    {PICKLE("\x80\x02" "cposix\nsystem\n."), 8, MQ_E_UNSUPPORTED, "global 'posix.system'"},
    {PICKLE("\x80\x02" "cbuiltins\neval\n."), 8, MQ_E_UNSUPPORTED, "global 'builtins.eval'"},
    {PICKLE(DICT(ID TENSOR(STORAGE("DoubleStorage", "\x04"), REST))), 32, MQ_E_UNSUPPORTED, "'torch.DoubleStorage'"},
    {PICKLE("\x80\x02(ios\nsystem\n."), 8, MQ_E_UNSUPPORTED, "opcode 0x69"},
    {PICKLE("\x80\x02" "ccollections\nOrderedDict\n(K\x01tR."), 8, MQ_E_UNSUPPORTED, "REDUCE"},
    {PICKLE("\x80\x02})R."), 8, MQ_E_UNSUPPORTED, "REDUCE"},
    {PICKLE("\x80\x02}}R."), 8, MQ_E_FORMAT, "REDUCE without a tuple"},
    /* other values */
    {PICKLE("\x80\x02K\x01."), 8, MQ_E_UNSUPPORTED, "not a dict"},
    {PICKLE(DICT(ID)), 8, MQ_E_UNSUPPORTED, "expected {mask_token_id: int, embedding: tensor}"},
    {PICKLE(DICT(TENSOR(BF16_4, REST))), 8, MQ_E_UNSUPPORTED, "expected {mask_token_id"},
    {PICKLE(DICT(TEXT("\x03", "abc") "K\x01")), 8, MQ_E_UNSUPPORTED, "key 'abc'"},
    {PICKLE(DICT("K\x01K\x01")), 8, MQ_E_UNSUPPORTED, "not a string"},
    {PICKLE(DICT(ID ID TENSOR(BF16_4, REST))), 8, MQ_E_FORMAT, "a key twice"},
    {PICKLE(DICT(TEXT("\x0d", "mask_token_id") "J\xff\xff\xff\xff" TENSOR(BF16_4, REST))), 8, MQ_E_FORMAT, "negative"},
    {PICKLE(DICT(ID TENSOR(BF16_4, "K\x01K\x03\x85K\x01\x85\x89" "ccollections\nOrderedDict\n)R"))), 8,
     MQ_E_UNSUPPORTED, "contiguous"},
    {PICKLE(DICT(ID TENSOR(BF16_4, "K\0K\x02\x85K\x02\x85\x89" "ccollections\nOrderedDict\n)R"))), 8,
     MQ_E_UNSUPPORTED, "contiguous"},
    {PICKLE(DICT(ID TENSOR(BF16_4, "K\0K\x02K\x02\x86K\x02K\x01\x86\x89" "ccollections\nOrderedDict\n)R"))), 8,
     MQ_E_UNSUPPORTED, "contiguous"},
    {PICKLE(DICT(ID TENSOR(BF16_4, "K\0K\x04\x85K\x01\x85\x89"))), 8, MQ_E_FORMAT, "arguments of _rebuild_tensor_v2"},
    {PICKLE(DICT(ID TENSOR(BF16_4, REST))), 7, MQ_E_FORMAT, "'data/0': 7 bytes, expected 4 elements of BF16"},
    {PICKLE(DICT(ID TENSOR(BF16_4, REST))), 10, MQ_E_FORMAT, "10 bytes, expected 4"},
    /* a broken machine */
    {PICKLE(""), 8, MQ_E_FORMAT, "PROTO 2"},
    {PICKLE("\x80\x04}."), 8, MQ_E_FORMAT, "PROTO 2"},
    {PICKLE("\x80\x02}"), 8, MQ_E_FORMAT, "without STOP"},
    {PICKLE("\x80\x02}.x"), 8, MQ_E_FORMAT, "bytes behind STOP"},
    {PICKLE("\x80\x02."), 8, MQ_E_UNSUPPORTED, "not a dict"},
    {PICKLE("\x80\x02}}."), 8, MQ_E_UNSUPPORTED, "not a dict"},
    {PICKLE("\x80\x02t."), 8, MQ_E_FORMAT, "no mark"},
    {PICKLE("\x80\x02u."), 8, MQ_E_FORMAT, "SETITEMS"},
    {PICKLE("\x80\x02(u."), 8, MQ_E_FORMAT, "SETITEMS"},
    {PICKLE("\x80\x02}(K\x01u."), 8, MQ_E_FORMAT, "SETITEMS"},
    {PICKLE("\x80\x02s."), 8, MQ_E_FORMAT, "SETITEMS"},
    {PICKLE("\x80\x02\x85."), 8, MQ_E_FORMAT, "underflow"},
    {PICKLE("\x80\x02(\x85."), 8, MQ_E_FORMAT, "underflow"},
    {PICKLE("\x80\x02R."), 8, MQ_E_FORMAT, "underflow"},
    {PICKLE("\x80\x02Q."), 8, MQ_E_FORMAT, "underflow"},
    {PICKLE("\x80\x02q\0."), 8, MQ_E_FORMAT, "underflow"},
    {PICKLE("\x80\x02h\x05."), 8, MQ_E_FORMAT, "never set"},
    {PICKLE("\x80\x02}r\0\x01\0\0."), 8, MQ_E_FORMAT, "memo index above 255"},
    {PICKLE("\x80\x02j\xff\xff\xff\xff."), 8, MQ_E_FORMAT, "never set"},
    {PICKLE("\x80\x02X\xff\xff\xff\xff."), 8, MQ_E_FORMAT, "longer than 256"},
    {PICKLE("\x80\x02X\x10\0\0\0abc."), 8, MQ_E_FORMAT, "ends inside an operand"},
    {PICKLE("\x80\x02M\x01"), 8, MQ_E_FORMAT, "ends inside an operand"},
    {PICKLE("\x80\x02" "cos"), 8, MQ_E_FORMAT, "does not end"},
    {PICKLE("\x80\x02" "cos\nsystem"), 8, MQ_E_FORMAT, "does not end"},
    {PICKLE("\x80\x02K\x01Q."), 8, MQ_E_UNSUPPORTED, "persistent id"},
    {PICKLE("\x80\x02}((K\x01K\x02u."), 8, MQ_E_FORMAT, "SETITEMS"},
    {PICKLE("\x80\x02}}(K\x01K\x02u."), 8, MQ_E_UNSUPPORTED, "not the outermost"},
};

START_TEST(a_pickle_of_anything_else_is_refused_and_never_run)
{
    mq_mask_embedding e;
    mq_err err;
    for (size_t i = 0; i < sizeof PICKLES / sizeof PICKLES[0]; i++) {
        mq_status st = parse_pickle(&e, PICKLES[i].pickle, PICKLES[i].n, PICKLES[i].data_bytes, &err);
        ck_assert_msg(st == PICKLES[i].status, "%s: %s (%s)", PICKLES[i].fragment, mq_status_name(st),
                      st ? err.text : "accepted");
        ck_assert_msg(strstr(err.text, PICKLES[i].fragment) != NULL, "'%s' lacks '%s'", err.text, PICKLES[i].fragment);
        ck_assert_ptr_null(e.bytes);
    }
    mq_buf deep = mq_buf_empty();
    mq_buf_str(&deep, "\x80\x02");
    for (int i = 0; i < 100000; i++)
        mq_buf_str(&deep, "(");
    mq_assert_fails(parse_pickle(&e, deep.data, deep.n_bytes, 8, &err), MQ_E_FORMAT, &err, "stack overflow");
    mq_buf_clear(&deep);
    mq_buf_str(&deep, "\x80\x02}");
    for (int i = 0; i < 1000; i++)
        mq_buf_str(&deep, "\x85");
    mq_assert_fails(parse_pickle(&e, deep.data, deep.n_bytes, 8, &err), MQ_E_FORMAT, &err, "too many tuple members");
    mq_buf_release(&deep);
}
END_TEST

START_TEST(archives_that_are_not_plain_are_refused)
{
    static const char pickle[] = DICT(ID TENSOR(BF16_4, REST));
    static const uint8_t data[8] = {0};
    mq_mask_embedding e;
    mq_err err;
    zip z = begin();
    z.method = 8;
    add(&z, "x/data.pkl", PICKLE(pickle));
    mq_assert_fails(finish(&z, &e, &err), MQ_E_UNSUPPORTED, &err, "mem: zip member 'x/data.pkl': compressed");
    z = begin();
    z.flags = 1;
    add(&z, "x/data.pkl", PICKLE(pickle));
    mq_assert_fails(finish(&z, &e, &err), MQ_E_UNSUPPORTED, &err, "encrypted");
    z = begin();
    add(&z, "x/data.pkl", PICKLE(pickle));
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "zip member 'data/0' is missing");
    z = begin();
    add(&z, "x/data/0", data, 8);
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "'data.pkl' is missing");
    z = begin();
    add(&z, "x/data.pkl", PICKLE(pickle));
    add(&z, "x/data.pkl", PICKLE(pickle));
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "there twice");
    z = begin();
    add(&z, "x/data.pkl", PICKLE(pickle));
    add(&z, "y/data/0", data, 8);
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "in another folder");
    z = begin();
    add(&z, "data.pkl", PICKLE(pickle));
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "not inside a folder");
    z = begin();
    add(&z, "x/data.pkl", PICKLE(pickle));
    add(&z, "x/data/0", data, 8);
    add(&z, "x/byteorder", "big", 3);
    mq_assert_fails(finish(&z, &e, &err), MQ_E_UNSUPPORTED, &err, "byteorder");
    z = begin();
    for (int i = 0; i < 65; i++) {
        char name[16];
        snprintf(name, sizeof name, "x/%d", i);
        add(&z, name, data, 1);
    }
    mq_assert_fails(finish(&z, &e, &err), MQ_E_UNSUPPORTED, &err, "65 members");
    z = begin();
    add(&z, "x/data.pkl", PICKLE(pickle));
    mq_buf_str(&z.body, "gap");
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "between the last member and the central directory");
    z = begin();
    mq_buf_str(&z.body, "gap");
    add(&z, "x/data.pkl", PICKLE(pickle));
    mq_assert_fails(finish(&z, &e, &err), MQ_E_FORMAT, &err, "not a zip archive");
    mq_assert_fails(mq_mask_embedding_parse(&e, NULL, 0, "mem", &err), MQ_E_FORMAT, &err, "mem: zip: not a zip");
    mq_assert_fails(mq_mask_embedding_load(&e, "/nonexistent.pt", &err), MQ_E_IO, &err, "/nonexistent.pt");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("torch_pt");
    TCase *t = tcase_create("mask_embedding");
    tcase_add_test(t, the_real_files_are_read);
    tcase_add_test(t, a_real_file_cut_anywhere_is_refused);
    tcase_add_test(t, flipped_bits_never_change_the_result_silently);
    tcase_add_test(t, the_three_float_dtypes_are_read);
    tcase_add_test(t, a_pickle_of_anything_else_is_refused_and_never_run);
    tcase_add_test(t, archives_that_are_not_plain_are_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
