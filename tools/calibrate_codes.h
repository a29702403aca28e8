/* The finished codes of one layer's experts between the job that makes them and the shards: a scratch file in OUT, one place
 * per expert, whole matrices as packed units (the layout of one rank).
 *
 * Written by any threads in any order, read by any threads; ranks' slices are cut out of the whole: rows are whole tiles,
 * columns are runs of group blocks in every tile.  The same file serves layer after layer. */
#ifndef MQ_TOOLS_CALIBRATE_CODES_H
#define MQ_TOOLS_CALIBRATE_CODES_H

#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"
#include "src/weights.h"

#define MQ_CODES_NAME "scratch-codes"
#define MQ_OTHER_CODES_NAME "scratch-codes-other"

typedef struct mq_codes mq_codes;

/* Shapes of the experts; group 32, 64, 128, or MQ_GROUP_MXFP4 for layers that keep MXFP4. */
typedef struct mq_codes_shape {
    int64_t n_experts, hidden, width;
} mq_codes_shape;

/* Bytes of an expert's gate_up and of its down. */
int64_t mq_codes_gate_up_bytes(const mq_codes_shape *s, int group);
int64_t mq_codes_down_bytes(const mq_codes_shape *s, int group);
/* Bytes of the file. */
int64_t mq_codes_bytes(const mq_codes_shape *s, int group);

/* Create DIR/NAME.partial.  MQ_E_IO, MQ_E_NOMEM. */
mq_status mq_codes_create(mq_codes **out, const char *dir, const char *name, const mq_codes_shape *shape, mq_err *err);
void mq_codes_close(mq_codes *c); /* removes the file; accepts NULL */

/* What follows belongs to layer, in this group. */
void mq_codes_begin(mq_codes *c, int layer, int group);
int mq_codes_layer(const mq_codes *c);

mq_status mq_codes_write(mq_codes *c, int64_t expert, const uint8_t *gate_up, const uint8_t *down, mq_err *err);

/* out = tiles [tile0, tile0 + n_tiles) of the expert's down or gate_up, all columns.  Any thread. */
mq_status mq_codes_read(const mq_codes *c, uint8_t *out, int64_t expert, bool is_down, int64_t tile0, int64_t n_tiles,
                        mq_err *err);
/* out = columns [col0, col0 + n_cols) of whole tiles of full_cols columns. */
void mq_codes_cut(uint8_t *out, const uint8_t *tiles, int64_t n_tiles, int64_t full_cols, int64_t col0, int64_t n_cols,
                  int group);

/* And back: part, such columns, to their place in tiles. */
void mq_codes_paste(uint8_t *tiles, const uint8_t *part, int64_t n_tiles, int64_t full_cols, int64_t col0, int64_t n_cols,
                    int group);

/* Lend an expert to a store (mq_store_expert_fn); ctx is the mq_codes.  Valid until the next call; one thread. */
mq_status mq_codes_lend(void *ctx, mq_mlp_weights *out, int layer, int expert, mq_err *err);

#endif
