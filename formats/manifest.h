/* manifest.json of a packed model: written last; without it a folder is not a packed model.  SHARD.md section "Manifest".
 * Nothing in it depends on time, path or machine speed. */
#ifndef MQ_FORMATS_MANIFEST_H
#define MQ_FORMATS_MANIFEST_H

#include <stdint.h>

#include "formats/plan.h"
#include "formats/shard_read.h"
#include "src/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A file with its size and digest: of the source, or carried along (config.json, tokenizer, ...). */
typedef struct mq_file_digest {
    char *name; /* relative to the folder, '/' allowed once for dflash/ */
    int64_t bytes;
    uint8_t sha256[MQ_SHA256_BYTES];
} mq_file_digest;

/* What experts were calibrated on, and how. */
typedef struct mq_recipe_calib {
    bool present;                  /* method "imatrix" or "gptq" */
    uint8_t text[MQ_SHA256_BYTES]; /* of the token ids as little-endian 32-bit words */
    int64_t tokens, window;
    char options[256];             /* the method's switches as "key=value,...", all of them */
    char library[64];              /* of the large matrix products: another one gives other bits */
} mq_recipe_calib;

typedef struct mq_recipe {
    char method[16];        /* "rtn", "search", "imatrix", "gptq"; "none" when no expert was quantized */
    int group;              /* 32, 64, 128; 0 when no layer is INT4 */
    char compress[16];      /* "none" or "zstd:LEVEL" */
    char backend[16];       /* "cpu", "cuda" */
    char isa[16];           /* instruction set, or compute capability ("sm_90"); "any": results do not depend on it */
    char zstd_version[16];  /* "" without compression */
    uint64_t seed;
    mq_recipe_calib calib;
} mq_recipe;

typedef struct mq_manifest {
    int version;            /* MQ_SHARD_VERSION */
    char tool_version[32];
    int n_ranks, n_mtp;
    bool has_draft;
    int n_layers;
    uint8_t expert_scheme[MQ_MAX_LAYERS]; /* mq_scheme of each layer's experts; NONE on dense layers */
    int group;              /* of the INT4 layers, or 0 */
    mq_recipe recipe;
    mq_file_digest *source; int64_t n_source; /* every input file, sorted by name */
    mq_shard_info *shards;  int64_t n_shards; /* in plan order */
    mq_file_digest *extra;  int64_t n_extra;  /* config.json, tokenizer..., report.json, README.md; sorted by name */
    uint8_t content[MQ_SHA256_BYTES]; /* over the shards' content digests */
} mq_manifest;

void mq_manifest_release(mq_manifest *m);

/* Fill m->content from the shards. */
void mq_manifest_digest(mq_manifest *m);
/* Text of the manifest (deterministic), and its writing as dir/manifest.json (crash-safe). */
mq_status mq_manifest_print(mq_buf *out, const mq_manifest *m, mq_err *err);
mq_status mq_manifest_save(const mq_manifest *m, const char *dir, mq_err *err);

/* Read and check: the manifest's own digest, every member, types, ranges, digests' form, plain names in ascending order, the
 * content digest.  A missing manifest is MQ_E_FORMAT "not a packed model (no manifest.json)"; another format version is
 * MQ_E_UNSUPPORTED; MQ_E_HASH, MQ_E_FORMAT name file and member. */
mq_status mq_manifest_load(mq_manifest *out, const char *dir, mq_err *err);
mq_status mq_manifest_parse(mq_manifest *out, const char *text, int64_t n_bytes, const char *name, mq_err *err);
/* The same without comparing digests.  For fuzzing alone: behind the manifest's own digest nothing would be reached. */
mq_status mq_manifest_parse_unhashed(mq_manifest *out, const char *text, int64_t n_bytes, const char *name, mq_err *err);

/* A packed model opened: manifest, model, drafter, plan. */
typedef struct mq_packed {
    char *dir;
    mq_manifest manifest;
    mq_model model;
    bool has_draft;
    mq_draft_model draft;
    mq_plan *plan;
} mq_packed;

/* Manifest, config.json (its digest compared), drafter config, plan; the manifest's shards are exactly the plan's files.
 * Shard files are not opened yet. */
mq_status mq_packed_open(mq_packed **out, const char *dir, mq_err *err);
void mq_packed_close(mq_packed *p); /* accepts NULL */

/* Open shard file i of the plan, check size against the manifest and records against the plan. */
mq_status mq_packed_shard(mq_shard **out, const mq_packed *p, int64_t i, mq_err *err);

/* Bytes of the folder checked so far; calls do not overlap, but come from any thread. */
typedef void (*mq_packed_progress_fn)(void *ctx, int64_t done_bytes, int64_t total_bytes);

/* Read the whole folder: every shard against plan, index, digests, legal values and manifest; every carried file against its
 * digest; no file that is not listed, dflash/ included.  Files are spread over n_threads.  budget_bytes bounds the memory for
 * records of compressed models (plain ones pass in pieces of 4 MiB per thread).  progress may be NULL.
 * stopped, which may be NULL, is asked before every file, from any thread: true ends with MQ_E_STOPPED.
 * MQ_E_FORMAT and MQ_E_HASH name file, tensor and rule (a missing file is MQ_E_FORMAT); MQ_E_IO; MQ_E_NOMEM. */
mq_status mq_packed_verify(const mq_packed *p, int n_threads, int64_t budget_bytes, mq_packed_progress_fn progress, void *ctx,
                           bool (*stopped)(void), mq_err *err);

#ifdef __cplusplus
}
#endif
#endif
