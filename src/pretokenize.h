/* Cutting text into the pieces that byte-pair merging works on: the Split step of a tokenizer.json.
 *
 * Qwen2's pattern (MiMo ships it) is matched by own code: exact, linear, with the character classes
 * of unicode.h. Any other pattern is compiled by PCRE2 (UTF, UCP, JIT where there is one) under
 * match and heap limits.  PCRE2 10.42 knows Unicode 14, takes U+180E for \s and is not Oniguruma:
 * under another pattern, ids around characters assigned after 14.0, and what the two engines read
 * differently, may differ from the library's. pretokenize.c is the only user of PCRE2. */
#ifndef MQ_SRC_PRETOKENIZE_H
#define MQ_SRC_PRETOKENIZE_H

#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The pattern that own code matches. */
#define MQ_SPLIT_QWEN2                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "                          \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"                                                                \
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* A compiled pattern; immutable, any number of threads. */
typedef struct mq_split mq_split;

/* MQ_E_UNSUPPORTED: the pattern does not compile (PCRE2's words and the offset), or is over 4096
 * bytes.  MQ_E_NOMEM. */
mq_status mq_split_create(mq_split **out, const char *pattern, mq_err *err);
/* The same, always through PCRE2: the tests compare the two. */
mq_status mq_split_create_pcre2(mq_split **out, const char *pattern, mq_err *err);
void mq_split_free(mq_split *s); /* accepts NULL */

/* A walk over one text; init/release by one thread. */
typedef struct mq_split_walk {
    const mq_split *split;
    const char *text;
    int64_t n_bytes, pos;           /* pos: end of the last piece */
    int64_t search_pos;             /* where the next search begins (PCRE2 only) */
    int64_t match_start, match_end; /* found, not given yet; start -1: none (PCRE2 only) */
    int64_t last_match_end;         /* -1: none */
    void *match_data, *match_context, *jit_stack; /* owned; PCRE2 only */
} mq_split_walk;

/* Walk text [n_bytes], well-formed UTF-8, borrowed until release.  MQ_E_NOMEM. */
mq_status mq_split_walk_init(mq_split_walk *w, const mq_split *split, const char *text,
                             int64_t n_bytes, mq_err *err);
void mq_split_walk_release(mq_split_walk *w);
/* Restart on another text with the same pattern. */
void mq_split_walk_restart(mq_split_walk *w, const char *text, int64_t n_bytes);
/* Next piece, text + *start [*end - *start], never empty; pieces cover the text without a gap.
 * *start == *end: no more.  MQ_E_FORMAT: a match or heap limit was hit (byte named); MQ_E_NOMEM. */
mq_status mq_split_walk_next(mq_split_walk *w, int64_t *start, int64_t *end, mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
