/* Unicode as the tokenizer needs it: strict UTF-8, the classes L, N and White_Space, and NFC.
 *
 * "The library" is Hugging Face tokenizers; its two sources of Unicode data are of different age,
 * and ids must equal its ids, so this file reproduces both instead of being right: classes
 * Oniguruma 6.9.10, Unicode 16: utf8proc's categories (15.0 in Debian 12) and a table of the
 * letters and numbers added in 15.1 and 16.0.  With utf8proc of Unicode 15.0 to 16.0 every code
 * point agrees with tokenizers 0.23; a newer utf8proc knows letters that the library does not. NFC
 * a crate of Unicode 9 data: combining marks that came later are starters to it (nothing is
 * reordered across them), and U+11935 U+11930 is not composed.  A table lists them. unicode.c is
 * the only user of utf8proc.  No state; any thread. */
#ifndef MQ_SRC_UNICODE_H
#define MQ_SRC_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Read one code point of text [n_bytes], n_bytes at least 1.  Returns the bytes taken, 1 to 4.
 * Ill-formed: *cp is -1 and the bytes are the maximal subpart that one U+FFFD replaces
 * (Unicode 3.9, table 3-8). */
int mq_unicode_next(const char *text, int64_t n_bytes, int32_t *cp);
/* Write cp (a scalar value) as UTF-8 to out [4]; returns the bytes written. */
int mq_unicode_put(char *out, int32_t cp);

/* MQ_E_FORMAT: "byte N is not UTF-8". */
mq_status mq_unicode_check(const char *text, int64_t n_bytes, mq_err *err);
/* Append bytes with every ill-formed maximal subpart replaced by U+FFFD. */
void mq_unicode_append_lossy(mq_buf *out, const char *bytes, int64_t n_bytes);

typedef enum mq_char_class {
    MQ_CHAR_OTHER,
    MQ_CHAR_LETTER, /* \p{L} */
    MQ_CHAR_NUMBER, /* \p{N} */
    MQ_CHAR_SPACE,  /* \s, White_Space, but not the next */
    MQ_CHAR_NEWLINE /* CR and LF */
} mq_char_class;
mq_char_class mq_unicode_class(int32_t cp);

/* True when NFC leaves the text as it is for a cheap reason (every code point is below U+0300). */
bool mq_unicode_is_plain(const char *text, int64_t n_bytes);
/* Append the NFC form of well-formed UTF-8 text [n_bytes] to out.  Time is linear in n_bytes
 * whatever the marks; memory is up to 20 bytes for each byte of the longest span without ASCII.
 * MQ_E_NOMEM. */
mq_status mq_unicode_nfc(mq_buf *out, const char *text, int64_t n_bytes, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
