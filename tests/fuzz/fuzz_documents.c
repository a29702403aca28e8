/* Noise as a text file and as JSON lines.  Documents are well-formed UTF-8 whatever the bytes; documents of plain text, joined by
 * the separator, are the file again (but for a mark at its beginning and a separator at its end).  Entered anywhere, the parts are
 * well-formed too, and read from the beginning they are the documents. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "src/buf.h"
#include "src/documents.h"
#include "src/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Read all; joined gets the documents with a separator behind each.  True when the end was reached. */
static bool read_all(const char *path, bool is_jsonl, mq_buf *joined)
{
    mq_err err = {MQ_OK, ""};
    mq_documents *d;
    const char *text;
    int64_t n_bytes;
    mq_status st = mq_documents_open(&d, path, is_jsonl, &err);
    assert(st == MQ_OK);
    while ((st = mq_documents_next(d, &text, &n_bytes, &err)) == MQ_OK && text) {
        assert(mq_unicode_check(text, n_bytes, &err) == MQ_OK);
        mq_buf_append(joined, text, n_bytes);
        mq_buf_str(joined, MQ_DOCUMENTS_SEPARATOR);
    }
    assert(st == MQ_OK || st == MQ_E_FORMAT);
    assert(st == MQ_OK || err.text[0] != '\0');
    mq_documents_close(d);
    return st == MQ_OK;
}

/* The same in parts, from the first start at or behind off. */
static bool read_parts(const char *path, bool is_jsonl, int64_t off, mq_buf *joined)
{
    mq_err err = {MQ_OK, ""};
    mq_documents *d;
    const char *text;
    int64_t n_bytes;
    bool ends = true;
    mq_status st = mq_documents_open(&d, path, is_jsonl, &err);
    assert(st == MQ_OK);
    st = mq_documents_seek(d, off, &err);
    assert(st == MQ_OK && (off > mq_documents_file_bytes(d) || mq_documents_off(d) >= off));
    while ((st = mq_documents_next_part(d, &text, &n_bytes, &ends, &err)) == MQ_OK && text) {
        assert(mq_unicode_check(text, n_bytes, &err) == MQ_OK);
        mq_buf_append(joined, text, n_bytes);
        if (ends)
            mq_buf_str(joined, MQ_DOCUMENTS_SEPARATOR);
    }
    assert(st == MQ_E_FORMAT || (st == MQ_OK && ends && mq_documents_off(d) == mq_documents_file_bytes(d)));
    mq_documents_close(d);
    return st == MQ_OK;
}

static void check_parts(const char *path, bool is_jsonl, const mq_buf *documents, bool whole, int64_t n)
{
    mq_buf parts = mq_buf_empty();
    bool same = read_parts(path, is_jsonl, 0, &parts) == whole;
    assert(same);
    assert(!whole || (parts.n_bytes == documents->n_bytes &&
                      (parts.n_bytes == 0 || memcmp(parts.data, documents->data, (size_t)parts.n_bytes) == 0)));
    for (int64_t k = 1; k < 8; k++)
        read_parts(path, is_jsonl, n * k / 7, &parts);
    mq_buf_release(&parts);
}

static void check_joined(const mq_buf *joined, const char *data, int64_t n)
{
    const int64_t n_end = (int64_t)strlen(MQ_DOCUMENTS_SEPARATOR);
    if (n >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) {
        data += 3;
        n -= 3;
    }
    if (n == 0) {
        assert(joined->n_bytes == 0);
        return;
    }
    bool ends = n >= n_end && memcmp(data + n - n_end, MQ_DOCUMENTS_SEPARATOR, (size_t)n_end) == 0;
    assert(joined->n_bytes == n + (ends ? 0 : n_end));
    assert(memcmp(joined->data, data, (size_t)n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char path[64];
    int fd = memfd_create("fuzz", 0);
    assert(fd >= 0);
    ssize_t written = write(fd, data, n);
    assert(written == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    mq_buf text = mq_buf_empty(), lines = mq_buf_empty();
    bool whole = read_all(path, false, &text);
    if (whole)
        check_joined(&text, (const char *)data, (int64_t)n);
    check_parts(path, false, &text, whole, (int64_t)n);
    whole = read_all(path, true, &lines);
    check_parts(path, true, &lines, whole, (int64_t)n);
    mq_buf_release(&text);
    mq_buf_release(&lines);
    close(fd);
    return 0;
}
