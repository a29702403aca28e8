/* Noise for the manifest reader, behind its digests.  What is accepted must print, and read back as
 * the same text. */
#include <stdlib.h>
#include <string.h>

#include "formats/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    mq_err err;
    mq_manifest m, again;
    (void)mq_manifest_parse(&m, (const char *)data, (int64_t)n, "fuzz", &err);
    mq_manifest_release(&m);
    if (mq_manifest_parse_unhashed(&m, (const char *)data, (int64_t)n, "fuzz", &err) != MQ_OK)
        return 0;
    mq_buf text = mq_buf_empty(), second = mq_buf_empty();
    mq_manifest_digest(&m);
    if (mq_manifest_print(&text, &m, &err) != MQ_OK)
        abort();
    if (mq_manifest_parse(&again, text.data, text.n_bytes, "again", &err) != MQ_OK)
        abort();
    if (mq_manifest_print(&second, &again, &err) != MQ_OK)
        abort();
    if (text.n_bytes != second.n_bytes || memcmp(text.data, second.data, (size_t)text.n_bytes) != 0)
        abort();
    mq_buf_release(&text);
    mq_buf_release(&second);
    mq_manifest_release(&m);
    mq_manifest_release(&again);
    return 0;
}
