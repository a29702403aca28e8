/* Status codes and the one-line error every fallible function fills.
 *
 * MQ_OK is the only success.  The callee writes the cause; a caller that knows the file, layer or rank puts
 * it in front with mq_wrap.  tools/ maps codes to the exit statuses of the command lines. */
#ifndef MQ_SRC_STATUS_H
#define MQ_SRC_STATUS_H

#include <stdarg.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mq_status {
    MQ_OK = 0,
    MQ_E_ARG,         /* wrong usage: an option or argument outside its domain */
    MQ_E_IO,          /* read, write, fsync, rename failed, or no space */
    MQ_E_FORMAT,      /* bytes break a rule of their format */
    MQ_E_UNSUPPORTED, /* well-formed, but asks for something we do not compute */
    MQ_E_SHAPE,       /* dimensions do not fit together */
    MQ_E_HASH,        /* a digest differs from the recorded one */
    MQ_E_EXISTS,      /* output exists and is not ours, or belongs to another recipe */
    MQ_E_NOMEM,       /* memory or a memory budget is exhausted */
    MQ_E_DEVICE,      /* device missing, too small, or a device call failed */
    MQ_E_NUMERIC,     /* a value is not finite or a factorization broke down */
    MQ_E_STOPPED,     /* the caller asked to stop (signal); what was finished can be resumed */
    MQ_E_BUG          /* an invariant of ours is broken */
} mq_status;

/* Why a call failed.  text is one line, never empty after a failure, at most MQ_ERR_TEXT - 1 bytes
 * (longer texts are cut and end in "..."). */
enum { MQ_ERR_TEXT = 1024 };
typedef struct mq_err {
    mq_status code;
    char text[MQ_ERR_TEXT];
} mq_err;

/* Fill err (may be NULL) with code and a printf-style text; returns code.  Control characters and invalid
 * UTF-8 that come in through arguments are written as \xNN, so that the text stays one line. */
mq_status mq_fail(mq_err *err, mq_status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "prefix: " in front of err's text when st is not MQ_OK; returns st unchanged. */
mq_status mq_wrap(mq_err *err, mq_status st, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Short lower-case name of a code, as in JSON output: "format", "io", ...; never NULL. */
const char *mq_status_name(mq_status st);

/* Leave the function with the callee's status.  Only for functions that hold nothing. */
#define MQ_TRY(call)                    \
    do {                                \
        mq_status mq_try_st_ = (call);  \
        if (mq_try_st_ != MQ_OK)        \
            return mq_try_st_;          \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
