/* A checkpoint folder: config.json, the safetensors files behind model.safetensors.index.json (or a single
 * model.safetensors), and the drafter in dflash/.  Lends tensors by name, whichever file they lie in.
 *
 * Index checks: one object with weight_map; plain file names; no duplicate keys; every mapped tensor is in that very
 * file; every tensor of every file is mapped once; a wrong total_size is a warning. */
#ifndef MQ_FORMATS_CHECKPOINT_H
#define MQ_FORMATS_CHECKPOINT_H

#include <stdint.h>

#include "formats/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_checkpoint mq_checkpoint;

/* A tensor and the file it lies in. */
typedef struct mq_tensor_ref {
    const mq_safetensors *file;
    const mq_st_tensor *tensor;
} mq_tensor_ref;

/* Open dir with its index.  file_stem is "model" for the target and "dflash_draft_model" for a drafter's folder:
 * "STEM.safetensors" is used where there is no index ("model.safetensors.index.json").
 * MQ_E_IO, MQ_E_FORMAT (file, tensor, rule), MQ_E_NOMEM. */
mq_status mq_checkpoint_open(mq_checkpoint **out, const char *dir, const char *file_stem, mq_err *err);
void mq_checkpoint_close(mq_checkpoint *c);

const char *mq_checkpoint_dir(const mq_checkpoint *c);
int64_t mq_checkpoint_n_files(const mq_checkpoint *c);
const mq_safetensors *mq_checkpoint_file(const mq_checkpoint *c, int64_t i); /* in order of name */
const char *mq_checkpoint_file_name(const mq_checkpoint *c, int64_t i);
int64_t mq_checkpoint_n_tensors(const mq_checkpoint *c);
mq_tensor_ref mq_checkpoint_tensor(const mq_checkpoint *c, int64_t i);
/* Position of a tensor by name, -1 when there is none; and the tensor itself, {NULL, NULL} when there is none. */
int64_t mq_checkpoint_index(const mq_checkpoint *c, const char *name);
mq_tensor_ref mq_checkpoint_find(const mq_checkpoint *c, const char *name);
/* Lines of warnings ("" when none), owned by c. */
const char *mq_checkpoint_warnings(const mq_checkpoint *c);

#ifdef __cplusplus
}
#endif
#endif
