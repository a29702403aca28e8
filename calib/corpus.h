/* Calibration tokens: text files to windows of token ids, in an order that depends on the texts, the options and
 * nothing else.
 *
 * Plain text: documents separated by <|endoftext|>; .jsonl: one JSON object a line whose "text" is a document.  Documents
 * are tokenized, each followed by the end-of-text id, joined per file and cut into windows of equal length; a last
 * piece shorter than a window is left out.  Several files are a mixture: file i gives a share weight_i / sum of the windows
 * (largest remainders, ties to the earlier file), its first windows, or all it has (the others then give more);
 * windows of the files alternate in proportion, so that any prefix is mixed alike. */
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

/* Read files until n_tokens (rounded down to whole windows, at least one) are there.
 *
 * MQ_E_IO        a file cannot be read
 * MQ_E_FORMAT    not UTF-8 (byte offset), a .jsonl line that is not an object with a string "text" (line number), or no text at all
 * MQ_E_ARG       less than one window of tokens (says how many there are)
 * MQ_E_NOMEM */
mq_status mq_corpus_read(mq_corpus *out, const mq_corpus_file *files, int64_t n_files, const mq_tokenizer *tokenizer,
                         int32_t end_of_text, int64_t window, int64_t n_tokens, mq_err *err);
void mq_corpus_release(mq_corpus *c);

#ifdef __cplusplus
}
#endif
#endif
