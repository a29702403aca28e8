/* Which files a packed model has and which records each holds: names, slices per rank, canonical order.  Computed from
 * geometry alone, so that the writer, the verifier and the loader agree by construction.
 *
 * Rank r of N owns query heads [r nh/N, (r+1) nh/N) and the KV heads they use (repeated where N exceeds their
 * number), the matching columns of o_proj, intermediate columns [r I/N, (r+1) I/N) of dense MLPs and experts, rows
 * [r H/N, ...) of eh_proj, and rows [r V/N, ...) of embedding and head.  Common: norms, routers, sinks, drafter's fc, norms
 * and mask embedding. */
#ifndef MQ_FORMATS_PLAN_H
#define MQ_FORMATS_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/shard.h"
#include "src/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One record of one file. */
typedef struct mq_record_spec {
    mq_key key;               /* EXPERT_GATE_UP and EXPERT_DOWN for experts */
    int64_t full_rows, full_cols; /* logical tensor; gate_up: 2 moe_intermediate rows */
    int64_t rows, cols, row0, col0; /* this slice; gate_up counts packed rows (two per gate row) */
    int64_t seg_rows;         /* if stored as FP8_BLOCK: segment and phases of this slice */
    int row_phase, col_phase;
    bool is_expert;           /* stored as the layer's expert scheme; otherwise as in the source */
    bool is_vector;           /* BF16, F16 or F32 only */
} mq_record_spec;

typedef struct mq_file_spec {
    mq_shard_kind kind;
    int layer, rank;
    char name[64];
    mq_record_spec *records; /* [n_records], canonical order */
    int64_t n_records;
} mq_file_spec;

typedef struct mq_plan {
    int n_ranks;
    mq_file_spec *files; /* [n_files]: common, layers (rank fastest), head, mtp, draft */
    int64_t n_files;
} mq_plan;

/* Do these dimensions allow n_ranks at this group (0: MXFP4)?  MQ_OK, or MQ_E_ARG with the reason and the largest of 8, 4, 2,
 * 1 that works: n_heads, KV heads (multiple or divisor), intermediate, vocabulary, hidden (eh_proj), drafter's heads and
 * MLP divide; an expert slice is a multiple of max(group, 64). */
mq_status mq_plan_check_ranks(const mq_model *m, const mq_draft_model *draft, int n_ranks, int group, mq_err *err);
/* Largest of 8, 4, 2, 1 that works, or 0 with the reason for 1 in err. */
int mq_plan_default_ranks(const mq_model *m, const mq_draft_model *draft, int group, mq_err *err);

/* Lay out the whole model; draft may be NULL.  MQ_E_ARG as above; MQ_E_NOMEM. */
mq_status mq_plan_create(mq_plan **out, const mq_model *m, const mq_draft_model *draft, int n_ranks, int group,
                         mq_err *err);
void mq_plan_free(mq_plan *p);

/* Plain bytes of a record stored in scheme (group for INT4). */
int64_t mq_record_plain_bytes(const mq_record_spec *r, mq_scheme scheme, int group);
/* View of a record's plain bytes (16-byte aligned) as a matrix. */
mq_matrix mq_record_matrix(const mq_record_spec *r, mq_scheme scheme, int group, const void *plain);

#ifdef __cplusplus
}
#endif
#endif
