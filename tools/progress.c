/* The progress line: share done, rate and time left.  On a terminal one line is rewritten four
 * times a second; elsewhere a line is printed every 10 s, so that logs stay short.  NO_COLOR needs
 * nothing: no colours are used. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli.h"

struct mq_progress {
    pthread_mutex_t lock;
    const char *tool, *what, *unit;
    int64_t total, done;
    double started, printed;
    bool terminal, quiet, dirty; /* dirty: a rewriting line stands on the terminal */
};

static bool rewrites_line(void)
{
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

const char *mq_cli_line_start(void)
{
    return rewrites_line() ? "\r\033[K" : "";
}

mq_status mq_progress_create(mq_progress **out, const mq_cli *c, const char *what, int64_t total,
                             const char *unit, mq_err *err)
{
    *out = NULL;
    mq_progress *p = calloc(1, sizeof *p);
    if (!p)
        return mq_fail(err, MQ_E_NOMEM, "out of memory");
    pthread_mutex_init(&p->lock, NULL);
    p->tool = c->tool;
    p->what = what;
    p->unit = unit;
    p->total = total;
    p->quiet = c->quiet;
    p->terminal = rewrites_line();
    p->started = p->printed = mq_cli_now();
    *out = p;
    return MQ_OK;
}

static void amount_text(char out[32], const mq_progress *p, double amount)
{
    if (strcmp(p->unit, "B") == 0)
        mq_cli_bytes_text(out, (int64_t)amount);
    else if (amount >= 1e6)
        snprintf(out, 32, "%.3g M%s", amount / 1e6, p->unit);
    else
        snprintf(out, 32, "%.0f %s", amount, p->unit);
}

static void print_line(mq_progress *p, double now)
{
    double elapsed = now - p->started,
           share = p->total > 0 ? (double)p->done / (double)p->total : 1.0;
    share = share < 1.0 ? share : 1.0; /* a total is an estimate now and then */
    char amount[32], rate[48] = "", left[32];
    if (p->unit[0]) {
        amount_text(amount, p, elapsed > 0 ? (double)p->done / elapsed : 0.0);
        snprintf(rate, sizeof rate, ", %s/s", amount);
    }
    mq_cli_seconds_text(left, share > 0 ? elapsed * (1.0 - share) / share : 0.0);
    fprintf(stderr, "%s%s: %s %5.1f %%%s, %s left%s", p->terminal ? "\r\033[K" : "", p->tool,
            p->what, 100.0 * share, rate, left, p->terminal ? "" : "\n");
    fflush(stderr);
    p->printed = now;
    p->dirty = p->terminal;
}

void mq_progress_add(mq_progress *p, int64_t n)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->done += n;
    double now = mq_cli_now();
    if (!p->quiet && now - p->printed >= (p->terminal ? 0.25 : 10.0))
        print_line(p, now);
    pthread_mutex_unlock(&p->lock);
}

void mq_progress_free(mq_progress *p)
{
    if (!p)
        return;
    if (p->dirty)
        fprintf(stderr, "\r\033[K");
    pthread_mutex_destroy(&p->lock);
    free(p);
}
