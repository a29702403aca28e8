/* The figures of speculative decoding, for people and for the JSON object. */
#ifndef MQ_TOOLS_DRAFT_REPORT_H
#define MQ_TOOLS_DRAFT_REPORT_H

#include "runtime/speculate.h"
#include "src/json.h"

/* What ran: all of it goes into the output. */
typedef struct mq_draft_report {
    const mq_model *model;
    const mq_speculate_figures *figures;
    mq_draft_kind kind;
    int width;        /* --draft-width; 0: auto */
    double synthetic; /* --synthetic-acceptance; 0: acceptance is real */
} mq_draft_report;

const char *mq_draft_kind_name(mq_draft_kind kind); /* "dflash", "mtp", "none" */

/* Members draft, draft_width, verify_steps, accept_length, accept_per_position (share of the steps
 * in which guess 1, 2, ... had a row that took it), width_histogram (steps of 1, 2, ... 8 rows),
 * distinct_experts (by width: experts of an MoE layer that the rows chose, mean over steps, and per
 * layer), draft_seconds, draft_share (of the time of all steps), synthetic_acceptance (null: real).
 */
void mq_draft_report_json(mq_json_writer *w, const mq_draft_report *r);
/* The same as lines of --bench on stdout. */
void mq_draft_report_print(const mq_draft_report *r);
/* For one line behind a text: ", dflash: 2.93 tokens a step, drafting 12 % of the time"; "" without
 * a drafter. */
void mq_draft_report_line(char out[160], const mq_draft_report *r);

#endif
