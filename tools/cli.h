/* What the three command lines share: options, exit statuses, progress, signals, the JSON result.
 *
 * Results go to stdout, everything else to stderr.  design.md section 4 is the contract. */
#ifndef MQ_TOOLS_CLI_H
#define MQ_TOOLS_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "src/json.h"
#include "src/status.h"

typedef enum mq_opt_kind {
    MQ_OPT_FLAG,   /* bool: --resume */
    MQ_OPT_INT,    /* int64_t with min and max */
    MQ_OPT_SIZE,   /* int64_t bytes, at least min: 1000000, 512M, 1.5GiB; powers of 1024 */
    MQ_OPT_DOUBLE, /* double with dmin and dmax */
    MQ_OPT_STRING, /* const char *, borrowed from argv */
    MQ_OPT_LIST,   /* mq_opt_list: may be given several times */
    MQ_OPT_LATER   /* of the design, but not built yet: exit 2 saying so */
} mq_opt_kind;

typedef struct mq_opt_list {
    const char *items[16];
    int n;
} mq_opt_list;

/* One option.  help is one line for --help; value_name "" for flags; choices "a|b|c" limits
 * strings. */
typedef struct mq_opt {
    const char *name; /* without dashes */
    mq_opt_kind kind;
    void *out; /* where the value goes; the default stands there before parsing */
    const char *value_name, *choices, *help;
    int64_t min, max;
    double dmin, dmax;
    bool *given; /* set when the option was given; may be NULL */
} mq_opt;

/* What every tool has: --json FILE|-, --quiet, --help, --version. */
typedef struct mq_cli {
    const char *tool, *usage, *summary; /* "mimo-quantize", "[options] CHECKPOINT OUT", one line */
    const mq_opt *opts;
    int n_opts;
    int n_args_min, n_args_max;
    const char *args[4]; /* positional, after parsing */
    int n_args;
    const char *json_path; /* NULL, "-" or a file */
    bool quiet;
    /* result */
    int argc; /* the command line, borrowed: "command" of the JSON object */
    char **argv;
    mq_buf json_body; /* members the tool adds through json */
    mq_json_writer json;
    double started; /* monotonic seconds */
} mq_cli;

/* True when results belong on stdout as text; false with --json -, which leaves stdout to the JSON
 * object. */
bool mq_cli_text(const mq_cli *c);

/* Parse argv (--opt V, --opt=V, -- ends options; unknown or repeated options are errors).  MQ_OK;
 * MQ_E_ARG with the reason; *done is set when --help or --version was printed (the tool then exits
 * 0). */
mq_status mq_cli_parse(mq_cli *c, int argc, char **argv, bool *done, mq_err *err);

/* Exit status of design.md for a code: ARG 2, FORMAT UNSUPPORTED SHAPE HASH NUMERIC 3, IO 4, NOMEM
 * DEVICE 5, EXISTS 6, BUG 70, STOPPED 128 + signal. */
int mq_cli_exit_status(mq_status st);

/* End a tool: flush stdout (a failure is MQ_E_IO), print the error line ("mimo-verify: error:
 * ..."), write the JSON object (schema "mimo-1", tool, version, command[], status, exit_code,
 * seconds, peak_host_bytes, the tool's members, errors[]), release c. Arrays and objects that a
 * failure left open in the tool's members are closed.  status_override >= 0 replaces exit status 0
 * (1: a threshold was missed; status "failed").  Returns the exit status. */
int mq_cli_finish(mq_cli *c, mq_status st, int status_override, const mq_err *err);

/* A notice or warning line on stderr: "mimo-quantize: warning: ...". */
void mq_cli_warn(const mq_cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void mq_cli_note(const mq_cli *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))); /* silent with --quiet */

/* One warning for each line of a buffer: what a reader of files had to say. */
void mq_cli_warn_lines(const mq_cli *c, const mq_buf *lines);

/* Progress: one rewriting line on a terminal, a line every 10 s elsewhere, nothing with --quiet.
 * Thread safe. */
typedef struct mq_progress mq_progress;
mq_status mq_progress_create(
    mq_progress **out, const mq_cli *c, const char *what, int64_t total, const char *unit,
    mq_err *err); /* unit "B": sizes and rates in bytes; "": share and time left alone */
void mq_progress_add(mq_progress *p, int64_t n); /* accepts NULL */
void mq_progress_free(mq_progress *p);           /* clears the line; accepts NULL */
/* What to print before a line on stderr: wipes a rewriting progress line on a terminal, ""
 * elsewhere. */
const char *mq_cli_line_start(void);

/* To be called first: sees that 0, 1 and 2 are open (were one closed, a file would take its number and be printed into), then
 * installs handlers for SIGINT, SIGTERM, SIGHUP; mq_cli_stopped tells whether one arrived (poll it
 * between pieces of work); mq_cli_check_stop fills err with MQ_E_STOPPED when so. */
void mq_cli_catch_signals(void);
bool mq_cli_stopped(void);
mq_status mq_cli_check_stop(mq_err *err);

/* Numbers for people: "1.2 GB", "3 min 05 s". */
void mq_cli_bytes_text(char out[32], int64_t n_bytes);
void mq_cli_seconds_text(char out[32], double seconds);
double mq_cli_now(void);              /* monotonic seconds */
int64_t mq_cli_peak_host_bytes(void); /* maximum resident set of this process */

/* The devices of --device cuda:0,1,... */
enum { MQ_CLI_MAX_DEVICES = 64 };
typedef struct mq_cli_devices {
    bool cuda; /* otherwise the CPU, and n is 0 */
    int ordinals[MQ_CLI_MAX_DEVICES];
    int n;
} mq_cli_devices;

/* cpu|cuda[:0,1,...], NULL: cpu; "cuda" is every GPU there is.  MQ_E_ARG: another form, one GPU twice.  MQ_E_DEVICE: a GPU
 * that is not there. */
mq_status mq_cli_devices_read(mq_cli_devices *out, const char *device, mq_err *err);

/* --device cpu|cuda[:0,1,...] to the name of a kernel table; devices (may be NULL) as
 * mq_cli_devices_read.  NULL: cpu.  MQ_E_ARG: another form; cuda is MQ_E_DEVICE without that GPU
 * (exit 5) and MQ_E_ARG "not built yet" with it. */
mq_status mq_cli_device(const char **kernels_name, mq_cli_devices *devices, const char *device,
                        mq_err *err);

#endif
