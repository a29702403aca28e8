/* From a checkpoint to a packed model: what mimo-quantize does behind its options.
 *
 * The conversion is a function of checkpoint and recipe alone: neither threads, memory limits, restarts nor the time of day
 * change a byte of the output.  OUT holds a journal while a run is unfinished (tools/journal.h), and a manifest once
 * it is done, never neither (but for the first instant, when it holds nothing). */
#ifndef MQ_TOOLS_CONVERT_H
#define MQ_TOOLS_CONVERT_H

#include <stdbool.h>
#include <stdint.h>

#include "calib/corpus.h"
#include "calib/expert.h"
#include "kernels/kernels.h"
#include "kernels/round.h"
#include "src/sha256.h"
#include "tools/calibrate_time.h"
#include "tools/cli.h"

enum { MQ_PROJ_GATE, MQ_PROJ_UP, MQ_PROJ_DOWN, MQ_PROJ_COUNT };

/* What a calibrated run is calibrated on, and how; everything borrowed for the call. */
typedef struct mq_convert_calib {
    const mq_corpus_file *files; /* [n_files] */
    int64_t n_files;             /* 0: not calibrated */
    int64_t n_tokens;            /* rounded down to whole windows */
    int64_t window;              /* 0: 2048 or the model's limit */
    mq_calib_recipe recipe;      /* method, switches; group is the options' */
} mq_convert_calib;

typedef struct mq_convert_options {
    const char *checkpoint, *out_dir;
    mq_round_method method; /* of a run that is not calibrated */
    mq_convert_calib calib;
    const mq_kernels *kernels; /* what calibrates; NULL: the CPU's.  Everything else is the CPU's work anyway */
    const int *devices;        /* [n_devices] ordinals, of one kind, each once; an expert at a time on each; borrowed for the call */
    int n_devices;             /* 0: device 0; the CPU has no other */
    const char *report_path; /* HTML page, written last, outside of OUT; NULL: none */
    int group;            /* 32, 64, 128 */
    bool force_int4;      /* --experts int4: MXFP4 layers are quantized again */
    int n_ranks;          /* 0: the largest of 8, 4, 2, 1 that works */
    int zstd_level;       /* 0: not compressed */
    int n_threads;        /* at least 1 */
    int64_t memory_bytes; /* 0: no limit; otherwise fewer threads work, the bytes written stay the same */
    uint64_t seed;
    bool resume, overwrite, rehash, dry_run;
} mq_convert_options;

typedef struct mq_convert_result {
    bool already_complete;    /* --resume of a finished model: nothing was done */
    char method[16];          /* "none" when no layer was quantized */
    int group, n_ranks;       /* group 0: no INT4 layer */
    int64_t n_files;          /* shards */
    int64_t bytes_in;         /* of the checkpoint's weight files */
    int64_t bytes_out;        /* of the packed model's shards (a dry run: uncompressed) */
    int64_t n_expert_weights; /* of the model */
    int64_t n_done_weights;   /* expert weights this run converted; fewer after a resume */
    int64_t n_int4_layers, n_mxfp4_layers;
    double seconds;           /* of the conversion, hashing and writing included */
    double rel_error[MQ_PROJ_COUNT]; /* relative RMS error over all quantized layers; 0 without any */
    uint8_t content[MQ_SHA256_BYTES];
    int64_t free_bytes, need_bytes, peak_bytes; /* dry run: free space, needed space, estimated peak memory */
    /* calibrated runs */
    int64_t calib_tokens, calib_window;
    int64_t scratch_bytes;   /* in OUT while the run lasts, at most; part of need_bytes */
    int64_t device_bytes;    /* memory of the fullest device, at most; 0 on the CPU */
    bool hidden_in_memory;   /* the residual stream is on the heap; otherwise in scratch files */
    mq_calib_rates rates;    /* dry run: measured ... */
    mq_calib_seconds expect; /* ... and what follows from it */
} mq_convert_result;

/* Run.  cli is told of notices, warnings and progress, and polled for signals.
 * MQ_E_ARG: group or ranks do not divide (the largest number of ranks that works is named); a page or new hashes of a finished model.  MQ_E_FORMAT, MQ_E_SHAPE,
 * MQ_E_UNSUPPORTED, MQ_E_NUMERIC: the checkpoint.  MQ_E_EXISTS: OUT is not ours, is unfinished or finished and neither
 * resume nor overwrite was asked for, belongs to another recipe or source, or is being written by another run.
 * MQ_E_IO: no space, read or write error; MQ_E_STOPPED: a signal; after both --resume goes on.
 * MQ_E_NOMEM: memory_bytes is too little, or a device's memory.  MQ_E_DEVICE: a device is not there or of another kind. */
mq_status mq_convert(mq_convert_result *out, const mq_convert_options *opt, const mq_cli *cli, mq_err *err);

#endif
