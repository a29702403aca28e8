/* Byte-level BPE tokenizer read from a Hugging Face tokenizer.json: text to ids and back.
 *
 * Supported, anything else is refused by name: model BPE (merges as "a b" strings or [a, b] pairs,
 * no dropout, unk, prefix or suffix, byte_fallback and ignore_merges false, all 256 byte tokens
 * there, ids below 2^21); normalizer null or NFC (or a Sequence of them); pre_tokenizer Sequence
 * [Split(Regex, behavior Isolated, invert false), ByteLevel(add_prefix_space false, use_regex
 * false)] as Qwen2 and MiMo ship it; decoder ByteLevel; post_processor null or ByteLevel;
 * truncation and padding null; added tokens of 1 to 512 bytes with lstrip, rstrip and single_word
 * false, unchanged by NFC where marked normalized, with the ids that the library gives them.
 *
 * With Qwen2's pattern, ids and text equal those of the library (tokenizers 0.23) whatever the
 * text; unicode.h says with which utf8proc.  Another pattern is run by PCRE2: ids may differ where
 * it and the library's Oniguruma do, at characters assigned after Unicode 14 for example
 * (pretokenize.h). The parts: tokenizer_json (reading), vocab, bpe, pretokenize (PCRE2), unicode
 * (utf8proc). A tokenizer is immutable after opening: calls from several threads are fine. */
#ifndef MQ_SRC_TOKENIZER_H
#define MQ_SRC_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_tokenizer mq_tokenizer;

/* A growable list of token ids. */
typedef struct mq_tokens {
    int32_t *ids; /* [n] heap */
    int64_t n, cap;
} mq_tokens;
void mq_tokens_release(mq_tokens *t);
mq_status mq_tokens_append(mq_tokens *t, int32_t id, mq_err *err); /* MQ_E_NOMEM */

/* Read dir/tokenizer.json style file at path (at most 256 MiB).
 * MQ_E_IO, MQ_E_FORMAT (JSON or a rule: duplicate ids, merges of unknown tokens, ids out of range),
 * MQ_E_UNSUPPORTED (named), MQ_E_NOMEM; the text names the file. */
mq_status mq_tokenizer_open(mq_tokenizer **out, const char *path, mq_err *err);
/* The same from memory; name is used in error texts. */
mq_status mq_tokenizer_parse(mq_tokenizer **out, const char *json, int64_t n_bytes,
                             const char *name, mq_err *err);
void mq_tokenizer_close(mq_tokenizer *t); /* accepts NULL */

/* Largest id + 1. */
int32_t mq_tokenizer_n_ids(const mq_tokenizer *t);

/* Append the ids of text [n_bytes] to out.  with_added: added tokens such as <|im_start|> in the
 * text become their ids (the library's behaviour); false: they are split as plain text (for text
 * that came from a user). MQ_E_FORMAT: not UTF-8 (byte offset named), or a limit of PCRE2's was hit
 * under another pattern than Qwen2's; MQ_E_ARG: over 2^30 bytes; MQ_E_NOMEM.  On failure out is as
 * it was.  Time is linear in n_bytes, times its logarithm for one long word. */
mq_status mq_tokenizer_encode(const mq_tokenizer *t, mq_tokens *out, const char *text,
                              int64_t n_bytes, bool with_added, mq_err *err);

/* Append the bytes of one token to out (byte-level decoded, ASCII added tokens as their text;
 * skip_special: special added tokens give nothing).  The bytes may be part of a UTF-8 sequence.
 * MQ_E_ARG: id unknown; MQ_E_NOMEM. */
mq_status mq_tokenizer_token_bytes(const mq_tokenizer *t, mq_buf *out, int32_t id,
                                   bool skip_special, mq_err *err);

/* Append the text of ids [n]; with invalid UTF-8 replaced by U+FFFD as the library does (which
 * skips unknown ids; here they are MQ_E_ARG). */
mq_status mq_tokenizer_decode(const mq_tokenizer *t, mq_buf *out, const int32_t *ids, int64_t n,
                              bool skip_special, mq_err *err);

/* Id of an added or vocabulary token by its text (added tokens first), or -1. */
int32_t mq_tokenizer_find(const mq_tokenizer *t, const char *text);

#ifdef __cplusplus
}
#endif
#endif
