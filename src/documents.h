/* The documents of a text file, one at a time, so that a file may be larger than memory.
 *
 * Plain text: documents are separated by <|endoftext|>; nothing else is taken away, neither line ends nor blanks.  Two
 * separators in a row hold an empty document; what follows the last separator is a document unless it is empty.
 * JSON lines: one object a line, whose string "text" is a document (it may be empty); blank lines are passed over.
 * A byte-order mark at the beginning of either is left out.
 *
 * A file can be entered anywhere and read in parts, for a sample of a large one.  Its starts, the places where that may happen:
 * plain text: its first byte behind the mark; the byte behind a separator; a byte behind a line feed that is neither white space
 * (0x09 to 0x0D, 0x20) nor the beginning of a separator.  So a start divides no UTF-8 sequence and, with Qwen2's pattern, no token.
 * JSON lines: the first byte behind the mark; the byte behind a line feed. */
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

int64_t mq_documents_file_bytes(const mq_documents *d);
/* How far the file is read: the offset of the byte that the next document or part begins with. */
int64_t mq_documents_off(const mq_documents *d);

/* Go, forward or back, to the first start at or behind byte off of the file (0 or more); to the end when there is none.
 * MQ_E_IO, MQ_E_NOMEM. */
mq_status mq_documents_seek(mq_documents *d, int64_t off, mq_err *err);

/* The next part of a document, as mq_documents_next gives a document.  Plain text: up to the next start, separator or end of the
 * file, whichever comes first; JSON lines: a document.  *ends: no more of this document comes. */
mq_status mq_documents_next_part(mq_documents *d, const char **text, int64_t *n_bytes, bool *ends, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
