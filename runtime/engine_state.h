/* The state of an engine, for runtime/engine*.c alone. */
#ifndef MQ_RUNTIME_ENGINE_STATE_H
#define MQ_RUNTIME_ENGINE_STATE_H

#include "runtime/engine.h"
#include "runtime/group.h"
#include "runtime/join.h"
#include "runtime/lane.h"

enum { MAX_STEP = MQ_LANE_STEP_ROWS };

/* What sampling gave for the rows of a call. */
typedef struct chosen {
    int32_t token[MAX_STEP];
    float logit[MAX_STEP];
} chosen;

struct mq_engine {
    const mq_kernels *kernels;
    mq_group *group;
    mq_lane *lanes[MQ_ENGINE_DEVICES];
    int n_lanes;
    mq_join *join; /* NULL with one lane */
    mq_dev *dev;   /* of lane 0, where tokens are sampled and the drafter lives */
    mq_store *store;
    int64_t context, prefill_rows;
    bool (*stopped)(void);   /* of the options */
    bool has_failed;         /* a lane, while loading: the others need not go on; atomic (engine.c) */
    int64_t free_at_open, planned; /* bytes of the first device */
    chosen *sampled;    /* [1], dev's memory */
    int64_t n_logits;   /* rows of the last call */
    int64_t logits_pos; /* position of the first of them */
    bool has_sampled;   /* host_sampled holds what sampling gives for the last call's rows */
    mq_sampling sampling;
    chosen host_sampled;

    mq_draft *draft;      /* of lane 0; NULL: none */
    mq_draft *drafts[MQ_ENGINE_DEVICES]; /* [n_drafts] of the lanes: all, or the first's alone */
    int n_drafts;
    int n_taps;           /* layers it looks at */
    int64_t reach;        /* mq_draft_reach */
    int64_t most_waiting; /* rows of */
    float *features[MQ_ENGINE_DEVICES]; /* of each drafter's lane: [n_taps, most_waiting, hidden], positions from */
    int32_t *waiting_ids; /* [most_waiting] the drafter's length on, and their tokens */
    int64_t n_waiting;
};

/* ---- engine_draft.c ---- */

/* The drafter, on every lane or on the first; and, when lanes are connected, its way through its layers. */
mq_status mq_engine_open_draft(mq_engine *e, mq_draft_kind kind, bool is_spread, mq_err *err);
mq_status mq_engine_prepare_draft(mq_engine *e, const mq_engine_options *o, mq_err *err);
void mq_engine_close_draft(mq_engine *e); /* lanes are still there, and idle */
/* Room for n rows more to wait; then where lane member keeps them of each tap, false where it has no drafter. */
mq_status mq_engine_make_room(mq_engine *e, int64_t n, mq_err *err);
bool mq_engine_captures(const mq_engine *e, int member, float **out);

#endif
