/* Noise as a tokenizer.json.  Input that begins with '{' is the whole file; any other input
 * completes a file that begins with the 256 byte tokens, which mutation would never keep whole.
 * What parses must encode and decode without fault: ids below n_ids, text in UTF-8. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "src/tokenizer.h"
#include "src/unicode.h"
#include "src/vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

/* A file up to the 256th token; rest begins with more tokens, or closes the vocabulary. */
static void build(mq_buf *b, const char *rest, int64_t n_bytes)
{
    mq_buf_str(b, "{\"version\":\"1.0\",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":"
                  "\"BPE\",\"vocab\":{");
    for (int i = 0; i < 256; i++)
        mq_buf_fmt(b, "%s\"\\u%04x\":%d", i ? "," : "", (unsigned)mq_byte_to_char(i), i);
    mq_buf_append(b, rest, n_bytes);
}

static void use(const mq_tokenizer *t, const char *text, int64_t n_bytes)
{
    mq_err err;
    mq_tokens ids = {0};
    mq_buf out = mq_buf_empty();
    for (int with_added = 0; with_added < 2; with_added++) {
        ids.n = 0;
        if (mq_tokenizer_encode(t, &ids, text, n_bytes, with_added, &err) != MQ_OK)
            continue; /* not UTF-8, or a pattern's limit */
        for (int64_t i = 0; i < ids.n; i++)
            assert(ids.ids[i] >= 0 && ids.ids[i] < mq_tokenizer_n_ids(t));
        mq_status st = mq_tokenizer_decode(t, &out, ids.ids, ids.n, false, &err);
        assert(st == MQ_OK);
        assert(mq_unicode_check(out.data ? out.data : "", out.n_bytes, &err) == MQ_OK);
    }
    mq_tokens_release(&ids);
    mq_buf_release(&out);
}

static void parse_and_use(const char *json, int64_t n_bytes, const char *noise, int64_t n_noise)
{
    static const char text[] =
        "It's  a caf\xC3\xA9, e\xCC\x81\xCC\xA3 12\r\n\n \xE6\x97\xA5\xF0\x9F\x98\x80<|a|><t>  ";
    mq_err err = {0};
    mq_tokenizer *t = NULL;
    mq_status st = mq_tokenizer_parse(&t, json, n_bytes, "fuzz", &err);
    assert((st == MQ_OK) == (t != NULL));
    assert(st == MQ_OK || err.text[0] != '\0');
    if (t) {
        use(t, text, (int64_t)sizeof text - 1);
        use(t, noise, n_noise < 512 ? n_noise : 512);
    }
    mq_tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    const char *input = (const char *)data;
    int64_t n = (int64_t)n_bytes;
    if (n > 0 && input[0] == '{') {
        parse_and_use(input, n, input, n);
        return 0;
    }
    mq_buf b = mq_buf_empty();
    build(&b, input, n);
    if (mq_buf_status(&b, NULL) == MQ_OK)
        parse_and_use(b.data, b.n_bytes, input, n);
    mq_buf_release(&b);
    return 0;
}
