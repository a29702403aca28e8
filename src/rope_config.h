/* Rotary settings of a configuration, in the old form (rope_theta, swa_rope_theta, partial_rotary_factor, rope_scaling)
 * and the new one (rope_parameters, for all layers or by layer type).  For src/model.c and src/model_draft.c. */
#ifndef MQ_SRC_ROPE_CONFIG_H
#define MQ_SRC_ROPE_CONFIG_H

#include "src/config.h"
#include "src/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fill rope_theta and rotary_dims of the full and sliding geometry, whose head_dim is set; swa may be NULL (one kind of
 * layer).  Absent partial_rotary_factor means 1.  MQ_E_UNSUPPORTED: a rope type other than "default", an odd number of
 * rotary dims; MQ_E_SHAPE: the two forms are both there and differ; MQ_E_FORMAT: no theta, wrong types. */
mq_status mq_rope_config_read(mq_attn_geometry *full, mq_attn_geometry *swa, const mq_config *c);

#ifdef __cplusplus
}
#endif
#endif
