/* Hash table from byte strings to int64 values.  Keys are borrowed, not copied.
 *
 * Expected time per call is constant even for keys that an attacker chose (keyed hash).  Finding is safe from several
 * threads while nobody puts. */
#ifndef MQ_SRC_MAP_H
#define MQ_SRC_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mq_map mq_map;

/* n_hint entries fit without growing.  MQ_E_NOMEM. */
mq_status mq_map_create(mq_map **out, int64_t n_hint, mq_err *err);
void mq_map_free(mq_map *m); /* accepts NULL */

/* Insert key -> value.  *is_new is false (and the old value kept) when the key is there already.
 * key [key_bytes] must outlive the map.  MQ_E_NOMEM. */
mq_status mq_map_put(mq_map *m, const char *key, int64_t key_bytes, int64_t value, bool *is_new, mq_err *err);

/* Value of key, or -1.  The second takes a NUL-terminated key. */
int64_t mq_map_find(const mq_map *m, const char *key, int64_t key_bytes);
int64_t mq_map_find_str(const mq_map *m, const char *key);
int64_t mq_map_count(const mq_map *m);

#ifdef __cplusplus
}
#endif
#endif
