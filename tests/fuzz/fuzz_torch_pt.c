/* Noise into the reader of mask_embedding.pt.  The first byte chooses: even, the rest is the archive; odd, the rest is a
 * pickle, put into an archive with right sizes and CRC-32, or noise would never get past the zip.  What is accepted is
 * a whole vector. */
#include <stdlib.h>
#include <string.h>

#include "formats/torch_pt.h"
#include "src/buf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void put(mq_buf *b, uint64_t v, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++) {
        uint8_t byte = (uint8_t)(v >> (8 * i));
        mq_buf_append(b, &byte, 1);
    }
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (0xedb88320u & (0u - (c & 1)));
    }
    return ~c;
}

static void member(mq_buf *zip, mq_buf *dir, const char *name, const uint8_t *data, size_t n)
{
    uint64_t crc = crc32_of(data, n), off = (uint64_t)zip->n_bytes;
    mq_buf_append(zip, "PK\3\4\0\0\0\0\0\0\0\0\0\0", 14);
    put(zip, crc, 4);
    put(zip, n, 4);
    put(zip, n, 4);
    put(zip, strlen(name), 4);
    mq_buf_str(zip, name);
    mq_buf_append(zip, data, (int64_t)n);
    mq_buf_append(dir, "PK\1\2\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    put(dir, crc, 4);
    put(dir, n, 4);
    put(dir, n, 4);
    put(dir, strlen(name), 8);
    put(dir, 0, 6);
    put(dir, off, 4);
    mq_buf_str(dir, name);
}

static void wrap(mq_buf *zip, const uint8_t *pickle, size_t n)
{
    static const uint8_t storage[256];
    mq_buf dir = mq_buf_empty();
    member(zip, &dir, "x/data.pkl", pickle, n);
    member(zip, &dir, "x/data/0", storage, sizeof storage);
    uint64_t dir_off = (uint64_t)zip->n_bytes;
    mq_buf_append(zip, dir.data, dir.n_bytes);
    mq_buf_append(zip, "PK\5\6\0\0\0\0\2\0\2\0", 12);
    put(zip, (uint64_t)dir.n_bytes, 4);
    put(zip, dir_off, 4);
    put(zip, 0, 2);
    mq_buf_release(&dir);
}

static void parse(const uint8_t *data, int64_t n)
{
    mq_mask_embedding e;
    mq_err err;
    if (mq_mask_embedding_parse(&e, data, n, "fuzz", &err) != MQ_OK) {
        if (e.bytes || strncmp(err.text, "fuzz: ", 6) != 0)
            abort();
        return;
    }
    unsigned sum = 0;
    for (int64_t i = 0; i < e.n * mq_dtype_bits(e.dtype) / 8; i++)
        sum += e.bytes[i];
    if (e.n < 1 || e.mask_token_id < 0 || sum == UINT32_MAX)
        abort();
    mq_mask_embedding_release(&e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1)
        return 0;
    if (data[0] % 2 == 0) {
        parse(data + 1, (int64_t)n - 1);
        return 0;
    }
    mq_buf zip = mq_buf_empty();
    wrap(&zip, data + 1, n - 1);
    parse((const uint8_t *)zip.data, zip.n_bytes);
    mq_buf_release(&zip);
    return 0;
}
