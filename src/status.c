/* Error texts.  One line each: what comes in through arguments (paths, tensor names, tokens) is
 * hostile, so control characters and bytes that are not UTF-8 become \xNN and the line is safe for
 * a terminal and for a JSON string. A text that does not fit is cut between characters and ends in
 * "...". */
#include "src/status.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "src/utf8.h"

/* Append the characters of src to dst [MQ_ERR_TEXT] from byte n_bytes on, escaped; returns the new
 * end.  cut says that src itself was cut short already. */
static size_t append_clean(char *dst, size_t n_bytes, const char *src, bool cut)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *s = (const unsigned char *)src;
    size_t fits = n_bytes; /* last end that leaves room for "..." and NUL */
    while (*s) {
        char piece[4];
        int n_src = mq_utf8_bytes((const char *)s, MQ_ERR_TEXT), n_out = n_src;
        bool c1 = n_src == 2 && s[0] == 0xc2 &&
                  s[1] < 0xa0; /* U+0080..U+009F are control characters too */
        if (n_src == 0 || *s < 0x20 || *s == 0x7f || c1) {
            n_src = 1;
            n_out = 4;
            piece[0] = '\\';
            piece[1] = 'x';
            piece[2] = hex[*s >> 4];
            piece[3] = hex[*s & 15];
        } else {
            memcpy(piece, s, (size_t)n_src);
        }
        if (n_bytes + (size_t)n_out > MQ_ERR_TEXT - 1) {
            cut = true;
            break;
        }
        memcpy(dst + n_bytes, piece, (size_t)n_out);
        n_bytes += (size_t)n_out;
        s += n_src;
        if (n_bytes <= MQ_ERR_TEXT - 4)
            fits = n_bytes;
    }
    if (cut) {
        memcpy(dst + fits, "...", 3);
        n_bytes = fits + 3;
    }
    dst[n_bytes] = '\0';
    return n_bytes;
}

/* Format into raw, twice as large as a text so that a cut is noticed; true when even that was too
 * small. */
static bool format_raw(char raw[2 * MQ_ERR_TEXT], const char *fmt, va_list args)
{
    int n = vsnprintf(raw, 2 * MQ_ERR_TEXT, fmt, args);
    if (n < 0) {
        memcpy(raw, "unprintable error text", 23);
        return false;
    }
    return n >= 2 * MQ_ERR_TEXT;
}

mq_status mq_fail(mq_err *err, mq_status code, const char *fmt, ...)
{
    if (!err)
        return code;
    char raw[2 * MQ_ERR_TEXT];
    va_list args;
    va_start(args, fmt);
    bool cut = format_raw(raw, fmt, args);
    va_end(args);
    err->code = code;
    if (append_clean(err->text, 0, raw, cut) == 0)
        append_clean(err->text, 0, mq_status_name(code), false);
    return code;
}

mq_status mq_wrap(mq_err *err, mq_status st, const char *fmt, ...)
{
    if (!err || st == MQ_OK)
        return st;
    char raw[2 * MQ_ERR_TEXT], cause[MQ_ERR_TEXT];
    memcpy(cause, err->text, sizeof cause);
    cause[MQ_ERR_TEXT - 1] = '\0';
    va_list args;
    va_start(args, fmt);
    bool cut = format_raw(raw, fmt, args);
    va_end(args);
    size_t n = append_clean(err->text, 0, raw, cut);
    n = append_clean(err->text, n, ": ", false);
    append_clean(err->text, n, cause, false);
    return st;
}

const char *mq_status_name(mq_status st)
{
    switch (st) {
    case MQ_OK:
        return "ok";
    case MQ_E_ARG:
        return "arg";
    case MQ_E_IO:
        return "io";
    case MQ_E_FORMAT:
        return "format";
    case MQ_E_UNSUPPORTED:
        return "unsupported";
    case MQ_E_SHAPE:
        return "shape";
    case MQ_E_HASH:
        return "hash";
    case MQ_E_EXISTS:
        return "exists";
    case MQ_E_NOMEM:
        return "nomem";
    case MQ_E_DEVICE:
        return "device";
    case MQ_E_NUMERIC:
        return "numeric";
    case MQ_E_STOPPED:
        return "stopped";
    case MQ_E_BUG:
        return "bug";
    }
    return "unknown";
}
