/* Noise into the JSON reader.  Whatever it accepts must survive its own writer: written text parses
 * again and is written the same way; walking every node stays inside the document. */
#include <stdlib.h>
#include <string.h>

#include "src/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void write_again(mq_buf *b, const mq_json *doc)
{
    mq_json_writer w = mq_json_write_begin(b, 1);
    mq_json_write_node(&w, NULL, mq_json_root(doc));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    mq_json *doc, *again;
    mq_err err;
    if (mq_json_parse(&doc, (const char *)data, (int64_t)n, 64, &err) != MQ_OK) {
        if (err.text[0] == '\0')
            abort();
        return 0;
    }
    mq_buf first = mq_buf_empty(), second = mq_buf_empty();
    write_again(&first, doc);
    if (mq_json_parse(&again, first.data, first.n_bytes, 64, &err) != MQ_OK)
        abort();
    write_again(&second, again);
    if (first.n_bytes != second.n_bytes ||
        memcmp(first.data, second.data, (size_t)first.n_bytes) != 0)
        abort();
    mq_json_free(again);
    mq_json_free(doc);
    mq_buf_release(&first);
    mq_buf_release(&second);
    return 0;
}
