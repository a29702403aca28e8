/* Calibration tokens: text files to windows of token ids, in an order that depends on the texts, the options and
 * nothing else.
 *
 * Several files are a mixture: file i gives a share weight_i / sum of the windows (largest remainders, ties to the earlier file), or
 * all it has (the others then give more); windows of the files alternate in proportion, so that any prefix is mixed alike: in the
 * first k windows file i has its share of k, give or take less than one.  A file's own windows come in the order of its text.
 *
 * A file that gives n windows gives them evenly spread over its bytes; not all of it is tokenized, or read.  With the starts
 * and parts of src/documents.h (a part of plain text reaches up to the next start, one of .jsonl is a document):
 *     span = file_bytes; list = []; at = 0               (tokens; the byte behind what is tokenized, in the file)
 *     for j = 0 ... n - 1:
 *         if at <= floor(j * span / n):
 *             cut list to j * window tokens; at = the first start at or behind floor(j * span / n)
 *         while list holds less than (j + 1) * window tokens:
 *             append the ids of the part at byte at, tokenized by itself, then end_of_text if the part ends its document;
 *             at = the byte behind the part, and behind the separator or line feed if one ended it
 *     list, cut to n * window tokens, is the windows one behind the other.
 * So a window begins at the first start in its n-th of the file or, where the window before reaches that far, with the token behind
 * it; nothing is used twice.  When the end of the file comes before the last window is full, the same is tried with span =
 * floor(file_bytes * 7 / 8), then * 6 / 8, then * 4 / 8; when that leads nowhere either, the file's windows are the first ones of all
 * its documents, each tokenized whole and followed by end_of_text; a last piece shorter than a window is left out, and a file that
 * has not even n of them gives what it has. */
#ifndef MQ_CALIB_CORPUS_H
#define MQ_CALIB_CORPUS_H

#include <stdint.h>

#include "src/sha256.h"
#include "src/status.h"
#include "src/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_corpus_file {
    const char *path;
    double weight; /* positive */
} mq_corpus_file;

typedef struct mq_corpus {
    int32_t *ids; /* [n_windows, window] heap */
    int64_t n_windows, window;
    uint8_t sha256[MQ_SHA256_BYTES]; /* of ids as little-endian bytes: identifies what was calibrated on */
    int64_t *windows_of;             /* [n_files] windows each file gave */
    int64_t n_files;
} mq_corpus;

/* Read files until n_tokens (rounded down to whole windows, at least one) are there, or all that they hold.
 * end_of_text: the id behind each document.
 *
 * MQ_E_IO        a file cannot be read
 * MQ_E_FORMAT    not UTF-8 (byte offset), a .jsonl line that is not an object with a string "text" (line number), no text at all;
 *                seen in what is tokenized, not elsewhere
 * MQ_E_ARG       less than one window of tokens (says how many there are); no file, a weight that is not positive and finite, a
 *                window below 1 or more than 2^28 windows
 * MQ_E_NOMEM */
mq_status mq_corpus_read(mq_corpus *out, const mq_corpus_file *files, int64_t n_files, const mq_tokenizer *tokenizer,
                         int32_t end_of_text, int64_t window, int64_t n_tokens, mq_err *err);
void mq_corpus_release(mq_corpus *c); /* accepts a zeroed one */

/* Append the tokens of all documents of one file: what perplexity is measured on.  end_of_text below 0: nothing follows a document.
 * MQ_E_IO, MQ_E_FORMAT, MQ_E_NOMEM as above. */
mq_status mq_corpus_tokens(mq_tokens *out, const char *path, const mq_tokenizer *tokenizer, int32_t end_of_text,
                           mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
