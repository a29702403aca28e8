/* The token table of a tokenizer: id to text and bytes, text to id, and which added token begins at
 * a place.
 *
 * Filled once (create, add, finish), then immutable and safe for any thread. */
#ifndef MQ_SRC_VOCAB_H
#define MQ_SRC_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

#include "src/buf.h"
#include "src/map.h"
#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Ids are 0 .. MQ_VOCAB_MAX_IDS - 1: tables are indexed by them, so a file must not choose them
 * freely (2^21 is eight times the largest vocabulary in use).  Added tokens are short: the search
 * for them tries every place. */
enum { MQ_VOCAB_MAX_IDS = 1 << 21, MQ_VOCAB_MAX_ADDED_BYTES = 512 };

typedef struct mq_token {
    const char *text;  /* [n_text] as the file has it, NUL-terminated; NULL: no token has this id */
    int64_t bytes_off; /* into the vocabulary's bytes */
    int32_t n_text, n_bytes;
    bool added, special, normalized; /* the last two: added tokens only */
} mq_token;

/* What is searched for in text: an added token and its text. */
typedef struct mq_needle {
    const char *text; /* [n_bytes] */
    int32_t n_bytes, id;
} mq_needle;

/* Added tokens of one kind, sorted by their bytes. */
typedef struct mq_needles {
    mq_needle *at; /* [n] heap */
    int32_t n;
    bool first[256]; /* some token begins with this byte */
} mq_needles;

typedef struct mq_vocab {
    mq_token *tokens; /* [n_ids] heap */
    int32_t n_ids;    /* largest id + 1 */
    char *text_pool;  /* every text; [text_cap] heap */
    int64_t text_used, text_cap;
    mq_buf bytes;           /* every token as it decodes */
    mq_map *ids;            /* text to id */
    mq_needles raw, normal; /* added tokens looked for before and after NFC */
} mq_vocab;

/* Room for n_tokens tokens below n_ids (at most MQ_VOCAB_MAX_IDS) with n_text_bytes of text, a NUL
 * each included. MQ_E_NOMEM. */
mq_status mq_vocab_create(mq_vocab *v, int32_t n_ids, int64_t n_tokens, int64_t n_text_bytes,
                          mq_err *err);
void mq_vocab_release(mq_vocab *v);

/* Add a token; text is copied, flags are taken from *flags.  An added token whose text and id are
 * there already takes the place of the plain one.  MQ_E_FORMAT: id not below n_ids, id taken by
 * another text, or text there under another id or as an added token; MQ_E_NOMEM. */
mq_status mq_vocab_add(mq_vocab *v, int64_t id, const char *text, mq_token flags, mq_err *err);

/* Decode the bytes of every token and build the needles.  nfc: text is normalised before it meets
 * v->normal. MQ_E_UNSUPPORTED: an added token is empty or over 512 bytes, or is marked normalized
 * and NFC changes it. */
mq_status mq_vocab_finish(mq_vocab *v, bool nfc, mq_err *err);

/* Token of id, or NULL. */
const mq_token *mq_vocab_get(const mq_vocab *v, int64_t id);
/* Id of text [n_bytes], or -1. */
int32_t mq_vocab_find(const mq_vocab *v, const char *text, int64_t n_bytes);

/* The longest needle that text [n_bytes] begins with, or NULL. */
const mq_needle *mq_needles_match(const mq_needles *s, const char *text, int64_t n_bytes);

/* The code point below U+0180 that stands for a byte in token texts (GPT-2's table), and the byte
 * of a code point or -1. */
int32_t mq_byte_to_char(int byte);
int mq_byte_of_char(int32_t cp);

#ifdef __cplusplus
}
#endif
#endif
