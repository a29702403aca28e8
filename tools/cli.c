/* The end of a tool's run: exit statuses, the error line, the JSON object, signals, and numbers for
 * people. Parsing of options is in options.c, the progress line in progress.c. */
#include "tools/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "kernels/kernels.h"

static volatile sig_atomic_t stop_signal; /* written by the handler alone */

static void on_signal(int number)
{
    stop_signal = number;
}

/* Were one of 0, 1, 2 closed, the next file opened would get its number and what is printed would land in that file.  Writing to
 * the stand-ins fails, as it did before. */
static void keep_streams(void)
{
    for (int fd = open("/dev/null", O_RDONLY); fd >= 0; fd = open("/dev/null", O_RDONLY))
        if (fd > 2) {
            close(fd);
            return;
        }
}

void mq_cli_catch_signals(void)
{
    keep_streams();
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    /* A second signal ends the process at once; reads and writes go on, since the flag is polled.
     */
    action.sa_flags = (int)(SA_RESETHAND | SA_RESTART);
    const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction old;
        if (numbers[i] == SIGHUP && sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler == SIG_IGN)
            continue; /* nohup */
        sigaction(numbers[i], &action, NULL);
    }
    signal(SIGPIPE, SIG_IGN); /* a closed stdout is an I/O error, not a death */
    signal(SIGXFSZ, SIG_IGN); /* so is a file above the limit of ulimit -f */
}

bool mq_cli_stopped(void)
{
    return stop_signal != 0;
}

mq_status mq_cli_check_stop(mq_err *err)
{
    if (stop_signal)
        return mq_fail(err, MQ_E_STOPPED, "stopped by signal %d", (int)stop_signal);
    return MQ_OK;
}

int mq_cli_exit_status(mq_status st)
{
    switch (st) {
    case MQ_OK:
        return 0;
    case MQ_E_ARG:
        return 2;
    case MQ_E_FORMAT:
    case MQ_E_UNSUPPORTED:
    case MQ_E_SHAPE:
    case MQ_E_HASH:
    case MQ_E_NUMERIC:
        return 3;
    case MQ_E_IO:
        return 4;
    case MQ_E_NOMEM:
    case MQ_E_DEVICE:
        return 5;
    case MQ_E_EXISTS:
        return 6;
    case MQ_E_STOPPED:
        return 128 + (stop_signal ? (int)stop_signal : SIGTERM);
    case MQ_E_BUG:
        break;
    }
    return 70;
}

double mq_cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t mq_cli_peak_host_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}

void mq_cli_bytes_text(char out[32], int64_t n_bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB"};
    double value = (double)n_bytes;
    int unit = 0;
    while (value >= 999.5 && unit < 5) {
        value /= 1000;
        unit++;
    }
    snprintf(out, 32,
             value < 9.995 && unit   ? "%.2f %s"
             : value < 99.95 && unit ? "%.1f %s"
                                     : "%.0f %s",
             value, units[unit]);
}

void mq_cli_seconds_text(char out[32], double seconds)
{
    if (seconds < 99.95) {
        snprintf(out, 32, "%.1f s", seconds);
        return;
    }
    long whole = (long)(seconds + 0.5);
    if (whole < 3600)
        snprintf(out, 32, "%ld min %02ld s", whole / 60, whole % 60);
    else
        snprintf(out, 32, "%ld h %02ld min", whole / 3600, whole % 3600 / 60);
}

static void say(const mq_cli *c, const char *label, const char *fmt, va_list args)
{
    mq_err text;
    char line[MQ_ERR_TEXT];
    vsnprintf(line, sizeof line, fmt, args);
    mq_fail(&text, MQ_E_BUG, "%s", line); /* one printable line, whatever file names hold */
    fprintf(stderr, "%s%s: %s%s\n", mq_cli_line_start(), c->tool, label, text.text);
}

void mq_cli_warn(const mq_cli *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say(c, "warning: ", fmt, args);
    va_end(args);
}

void mq_cli_warn_lines(const mq_cli *c, const mq_buf *lines)
{
    const char *at = lines->n_bytes ? lines->data : "";
    while (*at) {
        int n = (int)strcspn(at, "\n");
        if (n)
            mq_cli_warn(c, "%.*s", n, at);
        at += n + (at[n] == '\n');
    }
}

void mq_cli_note(const mq_cli *c, const char *fmt, ...)
{
    if (c->quiet)
        return;
    va_list args;
    va_start(args, fmt);
    say(c, "", fmt, args);
    va_end(args);
}

/* The numbers of "0,1,2"; false: the list is of another form, too long, or names one twice. */
static bool read_ordinals(mq_cli_devices *out, const char *list)
{
    for (const char *p = list;; p++) {
        char *end;
        long ordinal = strtol(p, &end, 10);
        if (*p < '0' || *p > '9' || (*end && *end != ',') || ordinal > INT_MAX || out->n == MQ_CLI_MAX_DEVICES)
            return false;
        for (int i = 0; i < out->n; i++)
            if (out->ordinals[i] == ordinal)
                return false;
        out->ordinals[out->n++] = (int)ordinal;
        p = end;
        if (!*p)
            return true;
    }
}

mq_status mq_cli_devices_read(mq_cli_devices *out, const char *device, mq_err *err)
{
    *out = (mq_cli_devices){.cuda = false};
    if (!device || strcmp(device, "cpu") == 0)
        return MQ_OK;
    out->cuda = true;
    bool all = strcmp(device, "cuda") == 0;
    if (!all && (strncmp(device, "cuda:", 5) != 0 || !read_ordinals(out, device + 5)))
        return mq_fail(err, MQ_E_ARG, "--device %s: expected cpu, cuda or cuda:0,1,..., each once", device);
    int count = mq_cuda_count();
    if (count == 0)
        return mq_fail(err, MQ_E_DEVICE, "--device %s: no CUDA device is visible", device);
    for (int i = 0; all && i < count && i < MQ_CLI_MAX_DEVICES; i++)
        out->ordinals[out->n++] = i;
    for (int i = 0; i < out->n; i++)
        if (out->ordinals[i] >= count)
            return mq_fail(err, MQ_E_DEVICE, "--device %s: device %d, but there are %d", device, out->ordinals[i], count);
    return MQ_OK;
}

mq_status mq_cli_device(const char **kernels_name, mq_cli_devices *devices, const char *device,
                        mq_err *err)
{
    mq_cli_devices read;
    *kernels_name = "cpu";
    MQ_TRY(mq_cli_devices_read(&read, device, err));
    *kernels_name = read.cuda ? "cuda" : "cpu";
    if (devices)
        *devices = read;
    return MQ_OK;
}

bool mq_cli_text(const mq_cli *c)
{
    return !(c->json_path && strcmp(c->json_path, "-") == 0);
}

/* Close the arrays and objects that a failure left open in body, so that the whole stays JSON. What
 * stands there is the writer's, so quotes and brackets match up to the end. */
static void close_open(mq_buf *out, const mq_buf *body)
{
    char open[64]; /* closing brackets; our results nest three or four deep */
    int depth = 0;
    bool quoted = false;
    for (int64_t i = 0; i < body->n_bytes; i++) {
        char c = body->data[i];
        if (quoted && c == '\\')
            i++;
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == '[' || c == '{') && depth < (int)sizeof open)
            open[depth++] = c == '[' ? ']' : '}';
        else if (!quoted && (c == ']' || c == '}') && depth > 0)
            depth--;
    }
    while (depth > 0)
        mq_buf_append(out, &open[--depth], 1);
}

/* The members every result has, then the tool's, then the errors. */
static mq_status print_result(const mq_cli *c, mq_buf *out, mq_status st, int exit_status,
                              const mq_err *why, mq_err *err)
{
    MQ_TRY(mq_buf_status(&c->json_body, err));
    mq_buf_str(out, "{");
    mq_json_writer w = mq_json_write_begin(out, 2);
    w.depth = 1;
    mq_json_write_string(&w, "schema", "mimo-1");
    mq_json_write_string(&w, "tool", c->tool);
    mq_json_write_string(&w, "version", MQ_VERSION);
    mq_json_write_array(&w, "command");
    for (int i = 0; i < c->argc; i++)
        mq_json_write_string(&w, NULL, c->argv[i]);
    mq_json_write_end_array(&w);
    mq_json_write_string(&w, "status",
                         st != MQ_OK   ? mq_status_name(st)
                         : exit_status ? "failed"
                                       : "ok");
    mq_json_write_int(&w, "exit_code", exit_status);
    mq_json_write_double(&w, "seconds", mq_cli_now() - c->started);
    mq_json_write_int(&w, "peak_host_bytes", mq_cli_peak_host_bytes());
    if (c->json_body.n_bytes) {
        mq_buf_append(out, c->json_body.data, c->json_body.n_bytes);
        close_open(out, &c->json_body);
    }
    mq_json_write_array(&w, "errors");
    if (st != MQ_OK) {
        mq_json_write_object(&w, NULL);
        mq_json_write_string(&w, "code", mq_status_name(st));
        mq_json_write_string(&w, "message", why->text);
        mq_json_write_end_object(&w);
    }
    mq_json_write_end_array(&w);
    mq_buf_str(out, "\n}\n");
    return mq_buf_status(out, err);
}

static mq_status write_text(const char *path, const mq_buf *text, mq_err *err)
{
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (!f)
        return mq_fail(err, MQ_E_IO, "%s: %s", path, strerror(errno));
    bool good =
        fwrite(text->data, 1, (size_t)text->n_bytes, f) == (size_t)text->n_bytes && fflush(f) == 0;
    int reason = errno;
    if (f != stdout && fclose(f) != 0 && good) {
        good = false;
        reason = errno;
    }
    return good ? MQ_OK : mq_fail(err, MQ_E_IO, "%s: %s", path, strerror(reason));
}

int mq_cli_finish(mq_cli *c, mq_status st, int status_override, const mq_err *err)
{
    mq_err why = {st, ""}, failure;
    if (st != MQ_OK && err)
        why = *err;
    if ((fflush(stdout) != 0 || ferror(stdout)) && st == MQ_OK)
        st = mq_fail(&why, MQ_E_IO, "stdout: %s", errno ? strerror(errno) : "write error");
    int exit_status = st != MQ_OK            ? mq_cli_exit_status(st)
                      : status_override >= 0 ? status_override
                                             : 0;
    if (st != MQ_OK)
        fprintf(stderr, "%s%s: %s%s\n", mq_cli_line_start(), c->tool,
                st == MQ_E_STOPPED ? "" : "error: ", why.text); /* "stopped by signal 2" */
    if (c->json_path) {
        mq_buf out = mq_buf_empty();
        mq_status wrote = print_result(c, &out, st, exit_status, &why, &failure);
        if (wrote == MQ_OK)
            wrote = write_text(c->json_path, &out, &failure);
        if (wrote != MQ_OK) {
            fprintf(stderr, "%s: error: --json: %s\n", c->tool, failure.text);
            exit_status = exit_status ? exit_status : mq_cli_exit_status(wrote);
        }
        mq_buf_release(&out);
    }
    mq_buf_release(&c->json_body);
    return exit_status;
}
