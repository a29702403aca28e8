/* Calibration tokens: text files to windows of token ids, in an order that depends on the texts, the options and
 * nothing else.
 *
 * Documents come from plain text or .jsonl (src/documents.h), are tokenized, each followed by the end-of-text id, joined per file
 * and cut into windows of equal length; a last piece shorter than a window is left out.  Several files are a mixture: file i gives a
 * share weight_i / sum of the windows (largest remainders, ties to the earlier file), its first windows, or all it has (the others
 * then give more); windows of the files alternate in proportion, so that any prefix is mixed alike: in the first k windows file i has
 * its share of k, give or take less than one.  A file is read only as far as its share goes, a document at a time. */
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
 * MQ_E_FORMAT    not UTF-8 (byte offset), a .jsonl line that is not an object with a string "text" (line number), no text at all
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
