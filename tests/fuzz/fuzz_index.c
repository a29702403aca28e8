/* Noise as model.safetensors.index.json beside two fixed files of three tensors.  What is accepted maps
 * every tensor of the files it names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/checkpoint.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char dir[64]; /* a folder in memory where there is one */

static void write_file(const char *name, const void *bytes, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        abort();
}

static void write_shard(const char *name, const char *header)
{
    char bytes[256] = {0};
    size_t n = strlen(header);
    bytes[0] = (char)n;
    memcpy(bytes + 8, header, n);
    write_file(name, bytes, 8 + n);
}

static void remove_all(void)
{
    static const char *const names[] = {"one", "two", "model.safetensors.index.json"};
    char path[128];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    snprintf(dir, sizeof dir, "%s", "/dev/shm/mq-fuzz-index-XXXXXX");
    if (!mkdtemp(dir)) {
        snprintf(dir, sizeof dir, "%s", "/tmp/mq-fuzz-index-XXXXXX");
        if (!mkdtemp(dir))
            abort();
    }
    write_shard("one", "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
                       "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    write_shard("two", "{\"c\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    atexit(remove_all);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    mq_checkpoint *c;
    mq_err err;
    write_file("model.safetensors.index.json", data, n);
    mq_status st = mq_checkpoint_open(&c, dir, "model", &err);
    if (st != MQ_OK) {
        if (c || strncmp(err.text, dir, strlen(dir)) != 0)
            abort();
        return 0;
    }
    int64_t n_tensors = 0; /* every tensor of every file that the index names, and no other */
    for (int64_t i = 0; i < mq_checkpoint_n_files(c); i++)
        n_tensors += mq_safetensors_count(mq_checkpoint_file(c, i));
    if (n_tensors == 0 || mq_checkpoint_n_tensors(c) != n_tensors)
        abort();
    mq_checkpoint_close(c);
    return 0;
}
