/* See text_out.h.  Held bytes are few (a UTF-8 sequence or a stop string), so plain scans are
 * enough. */
#include "tools/text_out.h"

#include <string.h>

#include "src/unicode.h"

mq_text_out mq_text_out_begin(const mq_tokenizer *t, const char *const *stops, int n_stops)
{
    mq_text_out o = {.tokenizer = t,
                     .stops = stops,
                     .n_stops = n_stops,
                     .held = mq_buf_empty(),
                     .all = mq_buf_empty()};
    return o;
}

void mq_text_out_release(mq_text_out *o)
{
    mq_buf_release(&o->held);
    mq_buf_release(&o->all);
}

/* Bytes of the sequence that starts with c: 1 to 4, or 0 when c cannot start one. */
static int sequence_bytes(unsigned char c)
{
    return c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
}

/* Bytes at the end of text that begin a UTF-8 sequence which is not complete. */
static int64_t open_tail(const char *text, int64_t n)
{
    for (int64_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)text[n - back];
        if ((c & 0xc0) == 0x80)
            continue;
        return sequence_bytes(c) > back ? back : 0;
    }
    return 0;
}

/* Where the stop string that is complete first begins in the held text, or -1; of two that end
 * together the longer one. *keep is the longest suffix that may still become one.  First complete,
 * not first begun: the answer must not depend on how the text is cut into tokens. */
static int64_t find_stop(const mq_text_out *o, int64_t *keep)
{
    int64_t first = -1, first_end = INT64_MAX, n = o->held.n_bytes;
    *keep = 0;
    for (int s = 0; s < o->n_stops; s++) {
        int64_t m = (int64_t)strlen(o->stops[s]);
        for (int64_t at = 0; m > 0 && at < n; at++) {
            int64_t overlap = n - at < m ? n - at : m;
            if (memcmp(o->held.data + at, o->stops[s], (size_t)overlap) != 0)
                continue;
            if (overlap < m) {
                *keep = n - at > *keep ? n - at : *keep;
            } else if (at + m < first_end || (at + m == first_end && at < first)) {
                first = at;
                first_end = at + m;
            }
            break;
        }
    }
    return first;
}

static mq_status release_front(mq_text_out *o, mq_buf *out, int64_t n, mq_err *err)
{
    int64_t before = out->n_bytes;
    mq_unicode_append_lossy(
        out, o->held.data,
        n); /* cut where a sequence begins, so pieces give what the whole gives */
    mq_buf_append(&o->all, out->data + before, out->n_bytes - before);
    int64_t left = o->held.n_bytes - n;
    if (left > 0)
        memmove(o->held.data, o->held.data + n, (size_t)left);
    o->held.n_bytes = left;
    MQ_TRY(mq_buf_status(out, err));
    return mq_buf_status(&o->all, err);
}

mq_status mq_text_out_add(mq_text_out *o, mq_buf *out, int32_t token, mq_err *err)
{
    mq_buf_clear(out);
    if (o->stopped)
        return MQ_OK;
    mq_status st = mq_tokenizer_token_bytes(o->tokenizer, &o->held, token, true, err);
    if (st != MQ_OK && st != MQ_E_ARG) /* ARG: an unknown id */
        return st;
    int64_t keep, stop = find_stop(o, &keep);
    if (stop >= 0) {
        o->stopped = true;
        return release_front(o, out, stop, err);
    }
    int64_t tail = o->held.n_bytes ? open_tail(o->held.data, o->held.n_bytes) : 0;
    int64_t held = tail > keep ? tail : keep;
    return o->held.n_bytes > held ? release_front(o, out, o->held.n_bytes - held, err) : MQ_OK;
}

mq_status mq_text_out_end(mq_text_out *o, mq_buf *out, mq_err *err)
{
    mq_buf_clear(out);
    return o->stopped || !o->held.n_bytes ? MQ_OK : release_front(o, out, o->held.n_bytes, err);
}
