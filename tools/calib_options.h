/* The values of --calib and --recipe. */
#ifndef MQ_TOOLS_CALIB_OPTIONS_H
#define MQ_TOOLS_CALIB_OPTIONS_H

#include "calib/corpus.h"
#include "calib/expert.h"
#include "tools/cli.h"

/* The files of --calib, each FILE or FILE@WEIGHT (weight 1 where none is given): what follows the last @ is the weight if it is a plain
 * number, and otherwise part of the name, so that a file called a@2 is given as a@2@1.
 *
 * *files [list->n] heap, released by mq_calib_files_free.  MQ_E_ARG: a weight that is not positive or above 1e9, no name; MQ_E_NOMEM. */
mq_status mq_calib_files_read(mq_corpus_file **files, const mq_opt_list *list, mq_err *err);
void mq_calib_files_free(mq_corpus_file *files, int64_t n_files); /* accepts NULL */

/* Change r as KEY=VALUE,... of --recipe says; MQ_CALIB_RECIPE_HELP lists the keys.  MQ_E_ARG names the key or value. */
mq_status mq_calib_recipe_read(mq_calib_recipe *r, const char *text, mq_err *err);

#define MQ_CALIB_RECIPE_HELP                                                                                          \
    "for comparisons: precision=f32|bf16 (of products; default bf16 on GPUs, the CPU has f32 alone), weight=0|1|2 "   \
    "(power of the router's coefficient), weighted-search, act-order, refit, shrink, quantized-h, down-target, "      \
    "damp-columns (each =on|off), rounds=N, descent=N, target-few=X, kappa=X, damp=X, damp-few=X"

#endif
