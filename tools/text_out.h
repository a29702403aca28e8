/* Turns tokens into text as they come: holds back bytes that are not yet a whole UTF-8 sequence or
 * that may be the start of a stop string.  All pieces together are what mq_tokenizer_decode gives
 * without special tokens, up to the stop string that is complete first, however the text is cut
 * into tokens. */
#ifndef MQ_TOOLS_TEXT_OUT_H
#define MQ_TOOLS_TEXT_OUT_H

#include <stdbool.h>

#include "src/buf.h"
#include "src/tokenizer.h"

typedef struct mq_text_out {
    const mq_tokenizer *tokenizer; /* borrowed */
    const char *const *stops;      /* [n_stops] not empty, UTF-8; borrowed */
    int n_stops;
    mq_buf held;  /* decoded, not released yet */
    mq_buf all;   /* everything released so far */
    bool stopped; /* a stop string was met; it and what follows are dropped */
} mq_text_out;

mq_text_out mq_text_out_begin(const mq_tokenizer *t, const char *const *stops, int n_stops);
void mq_text_out_release(mq_text_out *o);

/* Add one token; text that is now certain goes to out (cleared first) and to o->all.  At a stop
 * string everything before it is released and o->stopped set.  An id that the tokenizer does not
 * know (a row of a padded vocabulary) has no text. MQ_E_NOMEM. */
mq_status mq_text_out_add(mq_text_out *o, mq_buf *out, int32_t token, mq_err *err);
/* The rest, with an unfinished sequence as U+FFFD. */
mq_status mq_text_out_end(mq_text_out *o, mq_buf *out, mq_err *err);

#endif
