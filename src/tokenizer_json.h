/* Reading a tokenizer.json into its parts; what is accepted stands in tokenizer.h. */
#ifndef MQ_SRC_TOKENIZER_JSON_H
#define MQ_SRC_TOKENIZER_JSON_H

#include <stdbool.h>

#include "src/bpe.h"
#include "src/json.h"
#include "src/pretokenize.h"
#include "src/status.h"
#include "src/vocab.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Deepest nesting that is read. */
enum { MQ_TOKENIZER_JSON_DEPTH = 32 };

typedef struct mq_tokenizer_parts {
    mq_vocab vocab;
    mq_bpe *bpe;
    mq_split *split;
    bool nfc;
} mq_tokenizer_parts;

/* Fill p from a document, which may be freed afterwards.  MQ_E_FORMAT, MQ_E_UNSUPPORTED, MQ_E_NOMEM
 * name the member; p is empty then. */
mq_status mq_tokenizer_json_read(mq_tokenizer_parts *p, const mq_json_node *root, mq_err *err);
void mq_tokenizer_parts_release(mq_tokenizer_parts *p);

#ifdef __cplusplus
}
#endif
#endif
