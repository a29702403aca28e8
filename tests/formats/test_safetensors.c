/* Good safetensors files: what the format allows is read, names and ranges come out exactly, large headers in linear
 * time, and a file that changes while it is read is noticed. */
#include "formats/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "src/buf.h"
#include "src/sha256.h"
#include "tests/harness.h"

static const char *write_file(const char *header, int64_t header_bytes, const void *data, int64_t data_bytes)
{
    static char path[4200];
    snprintf(path, sizeof path, "%s/x.safetensors", mq_test_dir());
    FILE *f = fopen(path, "wb");
    ck_assert(f != NULL);
    uint8_t frame[8];
    for (int i = 0; i < 8; i++)
        frame[i] = (uint8_t)((uint64_t)header_bytes >> (8 * i));
    fwrite(frame, 1, 8, f);
    fwrite(header, 1, (size_t)header_bytes, f);
    fwrite(data, 1, (size_t)data_bytes, f);
    ck_assert_int_eq(fclose(f), 0);
    return path;
}

static mq_safetensors *parse(const char *header, int64_t data_bytes)
{
    mq_safetensors *s;
    mq_err err;
    mq_assert_ok(mq_safetensors_parse(&s, header, (int64_t)strlen(header), data_bytes, "mem", &err), &err);
    return s;
}

START_TEST(tensors_stand_in_order_of_offset_and_are_found_by_name)
{
    static const char header[] = "{\"z\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[4,8]},"
                                 "\"__metadata__\":{\"format\":\"pt\"},"
                                 "\"a\":{\"data_offsets\":[0,4],\"shape\":[],\"dtype\":\"F32\"},"
                                 "\"e\":{\"dtype\":\"BF16\",\"shape\":[3,0],\"data_offsets\":[4,4]}}   ";
    static const uint8_t data[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    mq_safetensors *s;
    mq_err err;
    const char *path = write_file(header, sizeof header - 1, data, 8);
    mq_assert_ok(mq_safetensors_open(&s, path, &err), &err);
    ck_assert_int_eq(mq_safetensors_count(s), 3);
    ck_assert_str_eq(mq_safetensors_get(s, 0)->name, "a");
    ck_assert_str_eq(mq_safetensors_get(s, 1)->name, "e");
    ck_assert_str_eq(mq_safetensors_get(s, 2)->name, "z");
    const mq_st_tensor *z = mq_safetensors_find(s, "z"), *a = mq_safetensors_find(s, "a");
    ck_assert(z->n_dims == 2 && z->dims[0] == 2 && z->dims[1] == 2 && z->dtype == MQ_DT_U8 && z->n_bytes == 4);
    ck_assert(a->n_dims == 0 && a->n_bytes == 4 && a->off == (int64_t)sizeof header - 1 + 8);
    ck_assert_int_eq(mq_safetensors_find(s, "e")->n_bytes, 0);
    ck_assert_ptr_null(mq_safetensors_find(s, "b"));
    ck_assert_ptr_null(mq_safetensors_find(s, "__metadata__"));
    uint8_t out[3] = {0};
    mq_assert_ok(mq_safetensors_read(s, z, out, 1, 3, &err), &err);
    ck_assert(out[0] == 6 && out[1] == 7 && out[2] == 8);
    mq_assert_ok(mq_safetensors_read(s, z, out, 4, 0, &err), &err);
    ck_assert_str_eq(mq_safetensors_file(s)->path, path);

    uint8_t all[8 + sizeof header - 1] = {sizeof header - 1}, digest[MQ_SHA256_BYTES];
    memcpy(all + 8, header, sizeof header - 1);
    mq_sha256_of(digest, all, sizeof all);
    ck_assert_int_eq(memcmp(digest, mq_safetensors_header_digest(s), sizeof digest), 0);
    mq_safetensors_close(s);
}
END_TEST

START_TEST(what_the_format_allows_is_read)
{
    static const char *const headers[] = {
        "{}", " \n\t\r{} \n", "{\"__metadata__\":{}}",
        "{\"__metadata__\":{\"a\":\"1\",\"dtype\":\"x\"}}",
        /* unknown members of any shape, once each */
        "{\"t\":{\"dtype\":\"U8\",\"x\":[1,-2.5e+3,null,true,false,\"\\n\"],\"shape\":[0],\"y\":{\"z\":{}},"
        "\"data_offsets\":[0,0]}}",
        "{\"t\":{\"dtype\":\"F4\",\"shape\":[0,3],\"data_offsets\":[0,0]}}",
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,0],\"data_offsets\":[0,0]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"};
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++)
        mq_safetensors_close(parse(headers[i], 0));
}
END_TEST

START_TEST(every_dtype_has_its_size)
{
    for (int dt = 0; dt < MQ_DT_COUNT; dt++) {
        char header[200];
        int64_t n = 24 * mq_dtype_bits((mq_dtype)dt) / 8;
        snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[4,6],\"data_offsets\":[0,%lld]}}",
                 mq_dtype_name((mq_dtype)dt), (long long)n);
        mq_safetensors *s = parse(header, n);
        ck_assert_int_eq(mq_safetensors_get(s, 0)->dtype, dt);
        ck_assert_int_eq(mq_safetensors_get(s, 0)->n_bytes, n);
        mq_safetensors_close(s);
    }
}
END_TEST

START_TEST(escapes_in_names_are_decoded)
{
    mq_safetensors *s = parse("{\"\\u0061\\/\\\"\\\\\\u00e9\\u20ac\\ud83d\\ude00\\t\":"
                              "{\"dty\\u0070e\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                              "\"\xf0\x9f\x98\x80\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                              2);
    ck_assert_str_eq(mq_safetensors_get(s, 0)->name, "a/\"\\\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\t");
    ck_assert_int_eq(mq_safetensors_get(s, 0)->name_bytes, 14);
    ck_assert_ptr_nonnull(mq_safetensors_find(s, "\xf0\x9f\x98\x80"));
    mq_safetensors_close(s);
}
END_TEST

START_TEST(a_million_empty_tensors_take_about_a_second)
{
    mq_buf b = mq_buf_empty();
    mq_buf_str(&b, "{");
    for (int i = 0; i < 1000000; i++)
        mq_buf_fmt(&b, "%s\"%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "", i);
    mq_buf_str(&b, "}");
    struct timespec t0, t1;
    mq_safetensors *s;
    mq_err err;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    mq_assert_ok(mq_safetensors_parse(&s, b.data, b.n_bytes, 0, "mem", &err), &err);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    printf("1,000,000 tensors, header of %lld MB: %.2f s\n", (long long)b.n_bytes / 1000000, seconds);
    ck_assert_int_eq(mq_safetensors_count(s), 1000000);
    ck_assert_str_eq(mq_safetensors_find(s, "999999")->name, "999999");
    ck_assert(seconds < 20.0); /* far above linear time on any machine, sanitizers included */
    mq_safetensors_close(s);
    mq_buf_release(&b);
}
END_TEST

START_TEST(a_sparse_file_reads_as_zeros)
{
    static const char header[] = "{\"t\":{\"dtype\":\"U8\",\"shape\":[4294967296],\"data_offsets\":[0,4294967296]}}";
    mq_safetensors *s;
    mq_err err;
    const char *path = write_file(header, sizeof header - 1, "", 0);
    ck_assert_int_eq(truncate(path, 8 + (int64_t)sizeof header - 1 + 4294967296), 0);
    mq_assert_ok(mq_safetensors_open(&s, path, &err), &err);
    uint8_t out[16];
    memset(out, 1, sizeof out);
    mq_assert_ok(mq_safetensors_read(s, mq_safetensors_get(s, 0), out, 4294967296 - 16, 16, &err), &err);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(out[i], 0);
    mq_safetensors_close(s);
}
END_TEST

START_TEST(a_file_that_shrinks_while_open_is_an_io_error)
{
    static const char header[] = "{\"t\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}";
    mq_safetensors *s;
    mq_err err;
    const char *path = write_file(header, sizeof header - 1, "12345678", 8);
    mq_assert_ok(mq_safetensors_open(&s, path, &err), &err);
    ck_assert_int_eq(truncate(path, 8 + (int64_t)sizeof header - 1 + 4), 0);
    uint8_t out[8];
    mq_assert_ok(mq_safetensors_read(s, mq_safetensors_get(s, 0), out, 0, 4, &err), &err);
    mq_assert_fails(mq_safetensors_read(s, mq_safetensors_get(s, 0), out, 0, 8, &err), MQ_E_IO, &err, path);
    mq_safetensors_close(s);
}
END_TEST

START_TEST(missing_files_are_io_errors_and_close_takes_null)
{
    mq_safetensors *s;
    mq_err err;
    mq_assert_fails(mq_safetensors_open(&s, "/nonexistent/x.safetensors", &err), MQ_E_IO, &err, "/nonexistent/x");
    ck_assert_ptr_null(s);
    mq_safetensors_close(NULL);
    mq_assert_fails(mq_safetensors_parse(&s, "", 0, 0, "mem", &err), MQ_E_FORMAT, &err, "mem: rule S5");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("safetensors");
    TCase *t = tcase_create("good");
    tcase_add_test(t, tensors_stand_in_order_of_offset_and_are_found_by_name);
    tcase_add_test(t, what_the_format_allows_is_read);
    tcase_add_test(t, every_dtype_has_its_size);
    tcase_add_test(t, escapes_in_names_are_decoded);
    tcase_add_test(t, a_million_empty_tensors_take_about_a_second);
    tcase_add_test(t, a_sparse_file_reads_as_zeros);
    tcase_add_test(t, a_file_that_shrinks_while_open_is_an_io_error);
    tcase_add_test(t, missing_files_are_io_errors_and_close_takes_null);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
