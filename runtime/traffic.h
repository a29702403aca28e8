/* What a step of the model has to read at the least: the figure that decoding is measured against.
 *
 * Bytes as they lie in memory, each once a step whatever the number of rows: every matrix and vector of every layer but
 * the routed experts, the head, one row of the embedding for each row; the experts that rows chose, once each; keys and
 * values that any row sees.  Ranks that are held count together; what ranks share counts once.  Source: own. */
#ifndef MQ_RUNTIME_TRAFFIC_H
#define MQ_RUNTIME_TRAFFIC_H

#include <stdint.h>

#include "runtime/store.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_traffic {
    int n_layers;
    int64_t fixed;                      /* bytes of a step whatever it does */
    int64_t embedding_row;              /* bytes of one row */
    int64_t expert[MQ_MAX_LAYERS];      /* [n_layers] bytes of one expert, all ranks held; 0 for a dense layer */
    mq_scheme expert_scheme;            /* of the first MoE layer; MQ_SCHEME_NONE: a dense model */
    int expert_group;
    int64_t full_key, swa_key;          /* bytes of one position's keys and values in all full, all sliding layers */
    int window;
} mq_traffic;

/* Of a resident store; a streaming one would read every layer.  Statuses of the store. */
mq_status mq_traffic_read(mq_traffic *out, mq_store *s, mq_err *err);

/* Weights of a step of n rows that chose distinct[layer] experts in each layer, [n_layers]. */
int64_t mq_traffic_weights(const mq_traffic *t, const int32_t *distinct, int n);

/* Keys and values that rows at positions pos0 .. pos0 + n - 1 see. */
int64_t mq_traffic_kv(const mq_traffic *t, int64_t pos0, int n);

/* Bytes of a matrix, its scales included. */
int64_t mq_traffic_matrix(const mq_matrix *m);

#ifdef __cplusplus
}
#endif
#endif
