/* Noise for the shard reader: everything behind the digests (mq_shard_open_unhashed).
 *
 * An input that begins with the magic is a whole file.  Any other is the telling part of one, so
 * that few bytes reach deep: 0..1   index bytes, 2 record bytes / 16, 3 number of records;  then
 * the index, then the records' bytes. Header, trailer and fill are put around it. */
#include <stdlib.h>
#include <string.h>

#include "formats/shard_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { MAX_PLAIN = 1 << 20, MAX_FILE = 1 << 17 };

static void try_file(const uint8_t *bytes, int64_t n)
{
    mq_err err;
    mq_shard *s;
    mq_shard_info info;
    if (mq_shard_open_unhashed(&s, bytes, n, "fuzz", &err) != MQ_OK)
        return;
    for (int64_t i = 0; i < mq_shard_count(s); i++) {
        const mq_shard_entry *e = mq_shard_entry_at(s, i);
        if (mq_shard_find(s, mq_shard_name(s, i)) != i)
            abort();
        if (e->plain_bytes > MAX_PLAIN)
            continue;
        void *plain = malloc(e->plain_bytes);
        if (mq_shard_load(s, i, plain, true, &err) == MQ_OK &&
            mq_shard_check_values(s, i, plain, &err) == MQ_OK) {
            mq_matrix v = mq_shard_matrix(s, i, plain);
            float *row = malloc((size_t)v.cols * sizeof *row);
            if (mq_matrix_check(&v, &err) != MQ_OK)
                abort();
            if (row)
                mq_matrix_widen(&v, v.rows - 1, 1, row); /* reads the last byte */
            free(row);
        }
        free(plain);
    }
    (void)mq_shard_verify(s, &info, MAX_PLAIN, &err);
    mq_shard_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n >= 4 && memcmp(data, MQ_SHARD_MAGIC, 3) == 0) {
        try_file(data, (int64_t)n);
        return 0;
    }
    if (n < 4)
        return 0;
    size_t index = (size_t)(data[0] | data[1] << 8), records = 16u * data[2], left = n - 4;
    if (index > left)
        index = left;
    if (records > left - index)
        records = left - index;
    size_t pages = (records + 4095) / 4096, size = 4096 + 4096 * pages + index + 64;
    uint8_t *file = size <= MAX_FILE ? calloc(1, size) : NULL;
    if (!file)
        return 0;
    mq_shard_header h = {.version = MQ_SHARD_VERSION, .kind = MQ_SHARD_LAYER, .n_ranks = 1};
    memcpy(h.magic, MQ_SHARD_MAGIC, 8);
    memcpy(file, &h, sizeof h);
    memcpy(file + 4096, data + 4 + index, records);
    memcpy(file + 4096 + 4096 * pages, data + 4, index);
    mq_shard_trailer t = {
        .index_off = 4096 + 4096 * pages, .index_bytes = index, .n_records = data[3]};
    t.names_bytes = (uint32_t)(index - (index < 128u * data[3] ? 0 : 128u * data[3]));
    memcpy(t.magic, MQ_SHARD_TRAILER_MAGIC, 8);
    memcpy(file + size - 64, &t, sizeof t);
    try_file(file, (int64_t)size);
    free(file);
    return 0;
}
