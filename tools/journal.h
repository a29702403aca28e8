/* The journal of an unfinished conversion: OUT/.mimo-quantize.journal, one JSON object a line, each fsynced before the
 * run goes on.
 *
 *   line 1    {"journal": "mimo-quantize", "version": 1, "recipe": {...}, "source": [{"name", "bytes", "mtime_ns", "head"}...]}
 *   then      {"group": g, "files": [{"name", "bytes", "plain_bytes", "sha256", "content"}...], "stats": [err2, norm2, ...]}
 *             {"hashed": name, "sha256": hex}
 *             {"layer": l, "hidden": hex or "", "loss": [rows, ...] or []}   calibrated runs, after the layer's group
 *
 * A line cut short by a crash is dropped, with everything after it. */
#ifndef MQ_TOOLS_JOURNAL_H
#define MQ_TOOLS_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/shard_write.h"
#include "src/json.h"
#include "tools/convert_account.h"
#include "tools/source_hash.h"

#define MQ_JOURNAL_NAME ".mimo-quantize.journal"

/* A finished group as journalled. */
typedef struct mq_journal_group {
    int64_t group;
    int n_files;
    mq_shard_info files[8];
    double *stats; /* [n_stats] */
    int64_t n_stats;
} mq_journal_group;

/* A layer that calibration has left behind. */
typedef struct mq_journal_layer {
    int64_t layer;
    bool has_hidden; /* the residual stream behind it was saved */
    uint8_t hidden[MQ_SHA256_BYTES];
    mq_output_loss loss;
} mq_journal_layer;

/* What an old journal says. */
typedef struct mq_journal_record {
    mq_json *head;                   /* line 1; NULL where even that is not whole */
    mq_journal_group *groups;        /* [n_groups] in the order written */
    int64_t n_groups;
    mq_input *hashed;                /* [n_hashed]: name and sha256 */
    int64_t n_hashed;
    mq_journal_layer *layers;        /* [n_layers] in the order written */
    int64_t n_layers;
    int64_t good_bytes;              /* up to the end of the last whole line */
} mq_journal_record;

/* Read DIR's journal.  A missing one is MQ_E_IO; damage shortens what is returned and is no failure. */
mq_status mq_journal_read(mq_journal_record *out, const char *dir, mq_err *err);
void mq_journal_record_release(mq_journal_record *r);

typedef struct mq_journal mq_journal; /* open for appending; any thread */

/* Begin a new journal (an old one is replaced in one step); head is line 1 without its newline. */
mq_status mq_journal_create(mq_journal **out, const char *dir, const mq_buf *head, mq_err *err);
/* Go on with the journal that was read: cut it to good_bytes and append. */
mq_status mq_journal_continue(mq_journal **out, const char *dir, int64_t good_bytes, mq_err *err);
void mq_journal_close(mq_journal *j); /* accepts NULL */

mq_status mq_journal_write_group(mq_journal *j, const mq_journal_group *g, mq_err *err);
mq_status mq_journal_write_hashed(mq_journal *j, const mq_input *f, mq_err *err);
mq_status mq_journal_write_layer(mq_journal *j, const mq_journal_layer *l, mq_err *err);

#endif
