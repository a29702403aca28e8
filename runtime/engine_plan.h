/* What an engine will take, computed from headers and options before anything large is allocated: engine.c opens what is
 * planned here.  Private to runtime/engine*.c. */
#ifndef MQ_RUNTIME_ENGINE_PLAN_H
#define MQ_RUNTIME_ENGINE_PLAN_H

#include "runtime/engine.h"
#include "runtime/lane.h"

/* Rows of a chunk of a prompt; devices. */
int64_t mq_engine_prefill_rows(const mq_engine_options *o);
int mq_engine_n_lanes(const mq_engine_options *o);

/* Which drafter a store of dir shall lend: known from headers. */
mq_status mq_engine_choose_draft(mq_draft_kind *out, const char *dir, const mq_engine_options *o, mq_err *err);

/* Rows that wait for a drafter while nothing is proposed, and how many there is room for; reach: mq_draft_reach, rows: of
 * a chunk. */
int64_t mq_engine_waiting_kept(int64_t reach);
int64_t mq_engine_waiting_rows(int64_t reach, int64_t rows);

/* MQ_E_ARG: ranks and devices do not fit each other. */
mq_status mq_engine_check_lanes(const mq_engine_options *o, mq_err *err);
/* Is the drafter cut for the lanes, each with its ranks?  Otherwise it lives with the first. */
bool mq_engine_spreads_draft(const mq_kernels *kernels, const mq_engine_options *o, mq_draft_kind draft);
/* What a lane's store is opened with. */
mq_store_options mq_engine_store_options(const mq_kernels *kernels, const mq_engine_options *o, mq_draft_kind draft, int lane);

/* Everything but out->weights, of an open store.  MQ_E_ARG: context; MQ_E_UNSUPPORTED: no such drafter. */
mq_status mq_engine_plan_bytes(mq_engine_bytes *out, const mq_kernels *kernels, const mq_store *s, const mq_engine_options *o,
                               mq_draft_kind draft, mq_err *err);
/* MQ_E_NOMEM, with the sums, when they are more than budget; 0: no limit. */
mq_status mq_engine_check_budget(const mq_engine_bytes *b, int64_t budget, mq_err *err);

#endif
