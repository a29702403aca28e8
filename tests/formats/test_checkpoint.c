/* The index says exactly what the files say: good folders are opened, every way an index can lie is refused by name. */
#include "formats/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/harness.h"

/* A file with U8 tensors of one byte each, named by the letters of names. */
static void write_shard(const char *dir, const char *file, const char *names)
{
    mq_buf b = mq_buf_empty();
    mq_err err;
    uint8_t frame[8] = {0};
    mq_buf_append(&b, frame, 8);
    mq_buf_str(&b, "{");
    for (int i = 0; names[i]; i++)
        mq_buf_fmt(&b, "%s\"%c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i ? "," : "", names[i], i,
                   i + 1);
    mq_buf_str(&b, "}");
    b.data[0] = (char)((b.n_bytes - 8) & 255);
    b.data[1] = (char)((b.n_bytes - 8) >> 8);
    mq_buf_str(&b, names); /* each tensor's byte is its letter */
    mq_assert_ok(mq_file_save(dir, file, b.data, b.n_bytes, &err), &err);
    mq_buf_release(&b);
}

static void write_index(const char *dir, const char *text)
{
    mq_err err;
    mq_assert_ok(mq_file_save(dir, "model.safetensors.index.json", text, (int64_t)strlen(text), &err), &err);
}

/* Files one (a, b) and two (c). */
static const char *two_files(void)
{
    const char *dir = mq_test_dir();
    write_shard(dir, "one", "ab");
    write_shard(dir, "two", "c");
    return dir;
}

START_TEST(tensors_of_all_files_are_found)
{
    const char *dir = two_files();
    mq_checkpoint *c;
    mq_err err;
    write_index(dir, "{\"metadata\":{\"total_size\":3},\"weight_map\":{\"c\":\"two\",\"b\":\"one\",\"a\":\"one\"}}");
    write_shard(dir, "reference.safetensors", "abc"); /* not indexed: never opened */
    mq_assert_ok(mq_checkpoint_open(&c, dir, "model", &err), &err);
    ck_assert_str_eq(mq_checkpoint_dir(c), dir);
    ck_assert_int_eq(mq_checkpoint_n_files(c), 2);
    ck_assert_str_eq(mq_checkpoint_file_name(c, 0), "one");
    ck_assert_str_eq(mq_checkpoint_file_name(c, 1), "two");
    ck_assert_int_eq(mq_checkpoint_n_tensors(c), 3);
    mq_tensor_ref ref = mq_checkpoint_find(c, "c");
    ck_assert_ptr_eq(ref.file, mq_checkpoint_file(c, 1));
    char byte;
    mq_assert_ok(mq_safetensors_read(ref.file, ref.tensor, &byte, 0, 1, &err), &err);
    ck_assert_int_eq(byte, 'c');
    ck_assert_ptr_null(mq_checkpoint_find(c, "d").tensor);
    ck_assert_int_eq(mq_checkpoint_index(c, "d"), -1);
    ck_assert_ptr_eq(mq_checkpoint_tensor(c, mq_checkpoint_index(c, "b")).tensor, mq_checkpoint_find(c, "b").tensor);
    ck_assert_str_eq(mq_checkpoint_warnings(c), "");
    mq_checkpoint_close(c);
}
END_TEST

START_TEST(a_wrong_total_size_is_a_warning)
{
    static const char *const totals[] = {"4", "0", "-3", "3.0", "\"3\"", "null"};
    mq_checkpoint *c;
    mq_err err;
    for (size_t i = 0; i < sizeof totals / sizeof totals[0]; i++) {
        const char *dir = two_files();
        char text[200];
        snprintf(text, sizeof text,
                 "{\"metadata\":{\"total_size\":%s},\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\"}}",
                 totals[i]);
        write_index(dir, text);
        mq_assert_ok(mq_checkpoint_open(&c, dir, "model", &err), &err);
        ck_assert_msg(strstr(mq_checkpoint_warnings(c), "the tensors have 3 bytes\n") != NULL, "%s: '%s'", totals[i],
                      mq_checkpoint_warnings(c));
        mq_checkpoint_close(c);
    }
}
END_TEST

static const struct {
    const char *kind, *index, *fragment;
} REFUSED[] = {
    {"not JSON", "model", "model.safetensors.index.json"},
    {"empty file", "", "index.json"},
    {"array at the top", "[]", "found array, expected an object"},
    {"no weight_map", "{\"metadata\":{}}", "weight_map is missing"},
    {"weight_map is null", "{\"weight_map\":null}", "weight_map is null, expected an object"},
    {"weight_map is an array", "{\"weight_map\":[\"a\"]}", "weight_map is array"},
    {"weight_map is empty", "{\"weight_map\":{}}", "weight_map is empty"},
    {"weight_map twice", "{\"weight_map\":{\"a\":\"one\"},\"weight_map\":{\"a\":\"one\"}}", "weight_map"},
    {"tensor twice", "{\"weight_map\":{\"a\":\"one\",\"a\":\"one\",\"b\":\"one\"}}", "'a'"},
    {"file name is a number", "{\"weight_map\":{\"a\":1}}", "tensor 'a': weight_map holds something else"},
    {"file name is null", "{\"weight_map\":{\"a\":null}}", "tensor 'a': weight_map holds something else"},
    {"file name is empty", "{\"weight_map\":{\"a\":\"\"}}", "tensor 'a': weight_map: '' is not a plain file name"},
    {"parent folder", "{\"weight_map\":{\"a\":\"../one\"}}", "tensor 'a': weight_map: '../one' is not a plain"},
    {"two dots", "{\"weight_map\":{\"a\":\"..\"}}", "is not a plain file name"},
    {"absolute path", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "'/etc/passwd' is not a plain file name"},
    {"path with a folder", "{\"weight_map\":{\"a\":\"x/one\"}}", "'x/one' is not a plain file name"},
    {"file that is not there", "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"three\"}}",
     "three: named in model.safetensors.index.json, but not there"},
    {"tensor in another file", "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\",\"c\":\"two\"}}",
     "tensor 'b': weight_map says two, but one has it"},
    {"tensor in no file", "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\",\"d\":\"two\"}}",
     "tensor 'd': weight_map says two, but no file has it"},
    {"tensor not mapped", "{\"weight_map\":{\"a\":\"one\",\"c\":\"two\"}}", "in one: tensor 'b': not in weight_map"},
    {"metadata is a string", "{\"metadata\":\"x\",\"weight_map\":{\"a\":\"one\",\"b\":\"one\"}}",
     "metadata is string, expected an object"},
    {"text behind the object", "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\"}} x", "index.json"},
    {"byte-order mark", "\xef\xbb\xbf{\"weight_map\":{\"a\":\"one\",\"b\":\"one\"}}", "index.json"},
    {"invalid UTF-8", "{\"weight_map\":{\"a\":\"on\xff\"}}", "index.json"},
};

START_TEST(an_index_that_lies_is_refused)
{
    mq_checkpoint *c;
    mq_err err;
    for (size_t i = 0; i < sizeof REFUSED / sizeof REFUSED[0]; i++) {
        const char *dir = two_files();
        write_index(dir, REFUSED[i].index);
        mq_status st = mq_checkpoint_open(&c, dir, "model", &err);
        ck_assert_msg(st == MQ_E_FORMAT, "%s: %s", REFUSED[i].kind, mq_status_name(st));
        ck_assert_msg(strstr(err.text, REFUSED[i].fragment) != NULL, "%s: '%s'", REFUSED[i].kind, err.text);
        ck_assert_msg(strncmp(err.text, dir, strlen(dir)) == 0, "%s: '%s' lacks the folder", REFUSED[i].kind, err.text);
        ck_assert_ptr_null(c);
    }
}
END_TEST

START_TEST(a_tensor_in_two_files_is_refused)
{
    const char *dir = two_files();
    mq_checkpoint *c;
    mq_err err;
    write_shard(dir, "two", "bc");
    write_index(dir, "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\"}}");
    mq_assert_fails(mq_checkpoint_open(&c, dir, "model", &err), MQ_E_FORMAT, &err, "two: tensor 'b': already in one");
}
END_TEST

START_TEST(a_damaged_shard_is_named)
{
    const char *dir = two_files();
    char path[4200];
    mq_checkpoint *c;
    mq_err err;
    write_index(dir, "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"two\"}}");
    snprintf(path, sizeof path, "%s/two", dir);
    ck_assert_int_eq(truncate(path, 30), 0);
    mq_assert_fails(mq_checkpoint_open(&c, dir, "model", &err), MQ_E_FORMAT, &err, "two: rule S3");
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    mq_assert_fails(mq_checkpoint_open(&c, dir, "model", &err), MQ_E_FORMAT, &err, "not a regular file");
}
END_TEST

START_TEST(without_an_index_the_single_file_is_used)
{
    const char *dir = mq_test_dir();
    mq_checkpoint *c;
    mq_err err;
    mq_assert_fails(mq_checkpoint_open(&c, dir, "model", &err), MQ_E_FORMAT, &err,
                    "neither model.safetensors.index.json nor model.safetensors is there");
    write_shard(dir, "model.safetensors", "xyz");
    mq_assert_ok(mq_checkpoint_open(&c, dir, "model", &err), &err);
    ck_assert_int_eq(mq_checkpoint_n_tensors(c), 3);
    mq_checkpoint_close(c);
    mq_assert_fails(mq_checkpoint_open(&c, dir, "dflash_draft_model", &err), MQ_E_FORMAT, &err,
                    "dflash_draft_model.safetensors");
    mq_assert_fails(mq_checkpoint_open(&c, "/nonexistent", "model", &err), MQ_E_IO, &err, "/nonexistent");
    char path[4200];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    mq_assert_fails(mq_checkpoint_open(&c, path, "model", &err), MQ_E_FORMAT, &err, "not a folder");
    mq_checkpoint_close(NULL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("checkpoint");
    TCase *t = tcase_create("index");
    tcase_add_test(t, tensors_of_all_files_are_found);
    tcase_add_test(t, a_wrong_total_size_is_a_warning);
    tcase_add_test(t, an_index_that_lies_is_refused);
    tcase_add_test(t, a_tensor_in_two_files_is_refused);
    tcase_add_test(t, a_damaged_shard_is_named);
    tcase_add_test(t, without_an_index_the_single_file_is_used);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
