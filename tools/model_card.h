/* README.md of a packed model: a model card made from the recipe. */
#ifndef MQ_TOOLS_MODEL_CARD_H
#define MQ_TOOLS_MODEL_CARD_H

#include "tools/convert_run.h"

/* Text of the card; a function of checkpoint and recipe.  bytes_in, bytes_out: weight files before and after. */
mq_status mq_model_card(mq_buf *out, const mq_convert_job *job, const mq_convert_done *done, int64_t bytes_in,
                        int64_t bytes_out, mq_err *err);

#endif
