/* One block of memory for many arrays: the same list of pieces first counts the bytes, then hands them out. */
#ifndef MQ_RUNTIME_CARVE_H
#define MQ_RUNTIME_CARVE_H

#include <stddef.h>
#include <stdint.h>

#include "src/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_CARVE_ALIGN = 64 };

/* base NULL: only counts. */
typedef struct mq_carver {
    char *base;   /* aligned to MQ_CARVE_ALIGN; borrowed */
    int64_t used; /* bytes */
} mq_carver;

/* The next n elements, aligned; NULL while counting.  n * element_bytes must not overflow: the caller's geometry is checked. */
static inline void *mq_carve(mq_carver *c, int64_t n, int64_t element_bytes)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += mq_round_up(n * element_bytes, MQ_CARVE_ALIGN);
    return p;
}

#ifdef __cplusplus
}
#endif
#endif
