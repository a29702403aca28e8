/* One UTF-8 sequence (RFC 3629) at a time: the rule shared by error texts, JSON and whoever prints
 * bytes from files. */
#ifndef MQ_SRC_UTF8_H
#define MQ_SRC_UTF8_H

#include <stdint.h>

/* Bytes (1..4) of the valid sequence at the start of s [n_bytes], 0 when there is none: a stray or
 * missing continuation byte, an overlong form, a surrogate, past U+10FFFF, or n_bytes is 0.  A NUL
 * byte is a valid sequence; a NUL-terminated s may be passed with any larger n_bytes, since reading
 * stops at the terminator. */
static inline int mq_utf8_bytes(const char *s, int64_t n_bytes)
{
    const unsigned char *u = (const unsigned char *)s;
    if (n_bytes < 1)
        return 0;
    if (u[0] < 0x80)
        return 1;
    if (u[0] < 0xc2 || u[0] > 0xf4)
        return 0;
    int n = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    if (n > n_bytes)
        return 0;
    for (int i = 1; i < n; i++)
        if ((u[i] & 0xc0) != 0x80)
            return 0;
    if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xf0 && u[1] < 0x90)) /* overlong */
        return 0;
    if ((u[0] == 0xed && u[1] > 0x9f) ||
        (u[0] == 0xf4 && u[1] > 0x8f)) /* surrogate, past U+10FFFF */
        return 0;
    return n;
}

#endif
