/* The documents of a text file, one at a time, so that a file may be larger than memory.
 *
 * Plain text: documents are separated by <|endoftext|>; nothing else is taken away, neither line ends nor blanks.  Two
 * separators in a row hold an empty document; what follows the last separator is a document unless it is empty.
 * JSON lines: one object a line, whose string "text" is a document (it may be empty); blank lines are passed over.
 * A byte-order mark at the beginning of either is left out. */
#ifndef MQ_SRC_DOCUMENTS_H
#define MQ_SRC_DOCUMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MQ_DOCUMENTS_SEPARATOR "<|endoftext|>"

/* Bytes of a document (of a line) that are held at most: what mq_tokenizer_encode takes at once. */
enum { MQ_DOCUMENT_MAX_BYTES = 1 << 30 };

typedef struct mq_documents mq_documents;

/* Does the name end in .jsonl, in capitals or not? */
bool mq_documents_is_jsonl(const char *path);

/* Open a regular file.  MQ_E_IO, MQ_E_FORMAT (not a regular file), MQ_E_NOMEM. */
mq_status mq_documents_open(mq_documents **out, const char *path, bool is_jsonl, mq_err *err);
void mq_documents_close(mq_documents *d); /* accepts NULL */

/* The next document: text [n_bytes], well-formed UTF-8, the reader's until the next call; text is NULL behind the last.
 *
 * MQ_E_IO      read error
 * MQ_E_FORMAT  not UTF-8 (offset in the file), a document above the limit (its offset), a line that is not JSON, not an
 *              object or without a string "text" (its number)
 * MQ_E_NOMEM
 * The text names the file.  After a failure only closing is left. */
mq_status mq_documents_next(mq_documents *d, const char **text, int64_t *n_bytes, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
